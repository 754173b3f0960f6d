//! Damage is found when a file is opened, by a scrub, or by whoever looks for files without a row; and nothing is condemned for
//! other reasons.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::tests::*;
use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::blobs::{QUARANTINE_KEPT, RealDisk};
use crate::clock::Timestamp;
use crate::oci::Digest;

fn quarantined(root: &Path) -> usize {
    count_files(&root.join("data/quarantine"))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_modified(path: &Path, at: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(at)).unwrap();
}

/// Changes one byte of the file and leaves its time as it was.
fn flip_unseen(path: &Path) {
    let before = modified(path);
    flip(path);
    set_modified(path, before);
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[3] ^= 1;
    fs::write(path, bytes).unwrap();
    // The clock of the file system may be too coarse to show it.
    set_modified(path, modified(path) + Duration::from_secs(1));
}

async fn stored(root: &Path) -> Store {
    let store = Store::open(root);
    store_manifest(&store).await.unwrap();
    download(&store, LAYER).await.unwrap();
    store
}

#[tokio::test]
async fn a_flipped_byte_with_a_new_time_is_found_before_it_is_served() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    flip(&blob_path(root.path(), LAYER));
    assert!(read_blob(&store, LAYER).await.is_none());
    assert_eq!(quarantined(root.path()), 1);
    download(&store, LAYER).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn the_right_bytes_in_another_file_are_served_and_looked_at_once() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    store_manifest(&store).await.unwrap();
    download(&store, LAYER).await.unwrap();
    let path = blob_path(root.path(), LAYER);
    let copy = root.path().join("copy");
    fs::write(&copy, LAYER).unwrap();
    fs::rename(&copy, &path).unwrap();
    // Many at once: one reads, the others wait for it.
    let read = Operation::Read;
    disk.fail(Plan { at: u64::MAX, lasting: false, fault: Fault::Io, only: Some(read) });
    let look = || read_blob(&store, LAYER);
    let (a, b, c, d) = futures_util::future::join4(look(), look(), look(), look()).await;
    for found in [a, b, c, d] {
        assert_eq!(found.unwrap(), LAYER);
    }
    assert_eq!(disk.counted(), 1, "the file was read once");
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    assert_eq!(disk.counted(), 1);
    assert_eq!(quarantined(root.path()), 0);
    store.finish().await;
}

#[tokio::test]
async fn a_kept_time_hides_a_flipped_byte_from_all_but_a_scrub() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    let (path, digest) = (blob_path(root.path(), LAYER), Digest::sha256_of(LAYER));
    flip_unseen(&path);
    assert!(read_blob(&store, LAYER).await.is_some());
    let cancel = CancellationToken::new();
    let looked = store.examine_paced(&digest, |_| {}, &cancel).await.unwrap();
    assert_eq!(looked, Verdict::Damaged);
    assert!(path.exists(), "a mere look changes nothing");
    let verdict = store.verify_paced(&digest, |_| {}, &cancel).await.unwrap();
    assert_eq!((verdict, path.exists(), quarantined(root.path())), (Verdict::Damaged, false, 1));
    assert_eq!(store.verify_paced(&digest, |_| {}, &cancel).await.unwrap(), Verdict::Gone);
    download(&store, LAYER).await.unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(store.verify_paced(&digest, |_| {}, &cancel).await.unwrap(), Verdict::Missing);
    assert_eq!(store.verify_paced(&digest, |_| {}, &cancel).await.unwrap(), Verdict::Gone);
    store.finish().await;
}

#[tokio::test]
async fn a_scrub_is_paced_can_be_stopped_and_records_good_looks() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let (large, small) = (vec![7; 3_000_000], b"small".to_vec());
    let digest = Digest::sha256_of(&large);
    download(&store, &large).await.unwrap();
    store.clock.advance(Duration::from_millis(9));
    download(&store, &small).await.unwrap();
    let order = |objects: Vec<StoredObject>| -> Vec<u64> {
        objects.into_iter().map(|object| object.size).collect()
    };
    let later = Timestamp::from_millis(1000);
    assert_eq!(order(store.oldest_verified(later, 9).await.unwrap()), [3_000_000, 5]);
    assert_eq!(
        order(store.oldest_verified(Timestamp::from_millis(5), 9).await.unwrap()),
        [3_000_000]
    );
    store.clock.advance(Duration::from_millis(90));
    let read = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&read);
    let pace = move |bytes| {
        count.fetch_add(bytes, Ordering::SeqCst);
    };
    let cancel = CancellationToken::new();
    assert_eq!(store.verify_paced(&digest, pace, &cancel).await.unwrap(), Verdict::Sound);
    assert_eq!(read.load(Ordering::SeqCst), 3_000_000);
    let oldest = store.oldest_verified(later, 9).await.unwrap();
    assert_eq!(oldest[1].verified, Some(Timestamp::from_millis(100)));
    assert_eq!(order(oldest), [5, 3_000_000]);
    let stop = cancel.clone();
    assert!(store.verify_paced(&digest, move |_| stop.cancel(), &cancel).await.is_err());
    flip(&blob_path(root.path(), &large));
    let stopped = store.examine(&digest, open::Depth::Bytes, &cancel).await;
    assert!(stopped.is_err(), "a second look under the lock ends too: {stopped:?}");
    assert_eq!(quarantined(root.path()), 0, "a look that was stopped condemns nothing");

    let mut seen = Vec::new();
    let mut after = None;
    while let Some(object) = store.objects(after.as_ref(), 1).await.unwrap().first() {
        seen.push(object.digest);
        after = Some(object.digest);
    }
    assert!(seen.is_sorted() && seen.len() == 2);
    store.finish().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_condemned_by_nobody() {
    for fault in [Fault::TooManyFiles, Fault::Denied, Fault::Io] {
        for only in [Operation::Open, Operation::Stat, Operation::Read, Operation::Rename] {
            for at in 1..=3 {
                let root = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(Arc::new(RealDisk));
                let store = Store::open_on(Arc::clone(&disk) as _, root.path());
                store_manifest(&store).await.unwrap();
                download(&store, LAYER).await.unwrap();
                store.content.manifests().invalidate_all();
                disk.fail(Plan { at, lasting: true, fault, only: Some(only) });
                let digest = Digest::sha256_of(MANIFEST);
                if let Some(found) = store.manifest(&repository("a"), &digest).await.unwrap() {
                    assert_eq!(found.bytes, MANIFEST);
                }
                if let Some(found) = read_blob(&store, LAYER).await {
                    assert_eq!(found, LAYER);
                }
                let (layer, cancel) = (Digest::sha256_of(LAYER), CancellationToken::new());
                drop(store.verify(&layer).await);
                for object in [&layer, &digest] {
                    drop(store.verify_paced(object, |_| {}, &cancel).await);
                }
                disk.heal();
                store.settle().await;
                assert_eq!(quarantined(root.path()), 0, "{fault:?} {only:?} {at}");
                store.unreadable().forget(&layer);
                assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
                let found = store.manifest(&repository("a"), &digest).await.unwrap();
                assert_eq!(found.unwrap().bytes, MANIFEST);
                store.finish().await;
            }
        }
    }
}

#[tokio::test]
async fn without_descriptors_nothing_is_stored_for_a_moment() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    store_manifest(&store).await.unwrap();
    download(&store, LAYER).await.unwrap();
    let fault = Fault::TooManyFiles;
    for only in [Operation::Open, Operation::Create] {
        disk.fail(Plan { at: 1, lasting: false, fault, only: Some(only) });
        if only == Operation::Open {
            assert!(read_blob(&store, LAYER).await.is_none());
        } else {
            assert!(download(&store, b"another").await.is_err());
        }
        assert!(!store.admits(Some(1), None));
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        assert!(store.admits(Some(1), None));
    }
    disk.heal();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn whoever_met_a_bad_place_finds_nothing_until_it_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    store_manifest(&store).await.unwrap();
    download(&store, LAYER).await.unwrap();
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Read) });
    assert!(store.verify(&Digest::sha256_of(LAYER)).await.is_err());
    assert!(read_blob(&store, LAYER).await.is_none(), "the file opens, and is not believed");
    disk.heal();
    download(&store, LAYER).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    assert_eq!(quarantined(root.path()), 0);
    store.finish().await;
}

#[tokio::test]
async fn a_file_without_a_row_that_cannot_be_read_stays() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    fs::write(blob_path(root.path(), LAYER), LAYER).unwrap();
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Read) });
    let cancel = CancellationToken::new();
    let report = store.adopt_orphans(Haste::Full, &|_| {}, &cancel).await.unwrap();
    assert_eq!((report, quarantined(root.path())), (AdoptReport::default(), 0));
    disk.heal();
    assert_eq!(store.adopt_orphans(Haste::Full, &|_| {}, &cancel).await.unwrap().adopted, 1);
    store.finish().await;
}

#[tokio::test]
async fn a_store_whose_directory_goes_away_and_comes_back_has_lost_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    let (blobs, away) = (root.path().join("data/blobs"), root.path().join("away"));
    fs::rename(&blobs, &away).unwrap();
    store.content.manifests().invalidate_all();
    let digest = Digest::sha256_of(MANIFEST);
    assert!(read_blob(&store, LAYER).await.is_none());
    assert!(store.manifest(&repository("a"), &digest).await.unwrap().is_none());
    fs::rename(&away, &blobs).unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    assert!(store.manifest(&repository("a"), &digest).await.unwrap().is_some());
    store.finish().await;
}

#[tokio::test]
async fn what_is_no_file_is_not_waited_for_nor_followed() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    let (path, outside) = (blob_path(root.path(), LAYER), root.path().join("outside"));
    fs::write(&outside, LAYER).unwrap();
    for kind in ["pipe", "symlink", "socket"] {
        fs::remove_file(&path).unwrap();
        match kind {
            "pipe" => {
                let mode = rustix::fs::Mode::RUSR;
                rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                    .unwrap();
            }
            "symlink" => std::os::unix::fs::symlink(&outside, &path).unwrap(),
            _ => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
        }
        assert!(read_blob(&store, LAYER).await.is_none(), "{kind}");
        assert!(fs::symlink_metadata(&path).is_err(), "{kind} is put aside");
        download(&store, LAYER).await.unwrap();
        assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    }
    assert_eq!(fs::read(&outside).unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn files_without_a_row_are_adopted_if_they_are_right() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    let content: Vec<Vec<u8>> = (0..300_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    for bytes in &content {
        fs::write(blob_path(root.path(), bytes), bytes).unwrap();
    }
    fs::write(blob_path(root.path(), b"another"), b"damaged").unwrap();
    let foreign = root.path().join("data/blobs/sha256/notes.txt");
    fs::write(&foreign, b"kept").unwrap();
    let cancel = CancellationToken::new();
    let heard = AtomicUsize::new(0);
    let hear = |_adopted: Adopted| {
        heard.fetch_add(1, Ordering::SeqCst);
    };
    let report = store.adopt_orphans(Haste::Full, &hear, &cancel).await.unwrap();
    assert_eq!(report, AdoptReport { adopted: 300, damaged: 1, bytes: 1207 });
    assert_eq!(heard.load(Ordering::SeqCst), 300);
    assert_eq!(store.metadata().usage().await.unwrap().objects, 302);
    assert!(foreign.exists() && quarantined(root.path()) == 1);
    let again = store.adopt_orphans(Haste::Background, &hear, &cancel).await.unwrap();
    assert_eq!(again, AdoptReport::default());
    store.finish().await;
}

#[tokio::test]
async fn a_walk_in_the_background_can_be_stopped_and_finds_the_same() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    for number in 0..300_u32 {
        let bytes = number.to_be_bytes();
        fs::write(blob_path(root.path(), &bytes), bytes).unwrap();
    }
    let (cancel, heard) = (CancellationToken::new(), AtomicUsize::new(0));
    let hear = |_adopted: Adopted| {
        if heard.fetch_add(1, Ordering::SeqCst) == 250 {
            cancel.cancel();
        }
    };
    let report = store.adopt_orphans(Haste::Background, &hear, &cancel).await.unwrap();
    assert_eq!(report.adopted, 251);
    let whole = CancellationToken::new();
    assert_eq!(store.count_orphans(&whole).await.unwrap(), 49);
    let report = store.adopt_orphans(Haste::Background, &hear, &whole).await.unwrap();
    assert_eq!(report.adopted, 49);
    store.finish().await;
}

#[tokio::test]
async fn a_lost_metadata_file_is_begun_anew_and_the_content_adopted() {
    let root = tempfile::tempdir().unwrap();
    stored(root.path()).await.finish().await;
    fs::write(root.path().join("data/roadstead.db"), vec![0xAA; 100_000]).unwrap();
    let store = Store::open(root.path());
    let kept = store.lost_metadata().unwrap().to_owned();
    assert_eq!(fs::read(&kept).unwrap(), vec![0xAA; 100_000]);
    assert!(read_blob(&store, LAYER).await.is_none());
    let cancel = CancellationToken::new();
    let report = store.adopt_orphans(Haste::Full, &|_adopted| {}, &cancel).await.unwrap();
    assert_eq!((report.adopted, report.damaged), (2, 0));
    // Who may have it is learned from upstream; nothing but the permission is fetched again.
    let digest = Digest::sha256_of(LAYER);
    store.metadata().prove(&repository("a"), &digest, None, proof()).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
    let store = Store::open(root.path());
    assert_eq!(store.lost_metadata(), None);
    store.finish().await;
}

#[tokio::test]
async fn the_quarantine_is_bounded_and_takes_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let store = stored(root.path()).await;
    let directory = root.path().join("data/quarantine");
    for number in 0..QUARANTINE_KEPT + 20 {
        fs::write(directory.join(format!("old {number}")), b"x").unwrap();
    }
    let path = blob_path(root.path(), LAYER);
    for _twice in 0..2 {
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read_blob(&store, LAYER).await.is_none());
        assert!(!path.exists());
        download(&store, LAYER).await.unwrap();
    }
    flip(&path);
    assert!(read_blob(&store, LAYER).await.is_none());
    assert!(quarantined(root.path()) <= QUARANTINE_KEPT);
    download(&store, LAYER).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}
