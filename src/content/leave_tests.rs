//! Content that leaves: in order, only on evidence, never under a reader, and whole again after any failure.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::fault_tests::assert_consistent;
use super::tests::*;
use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::blobs::{Disk, RealDisk, Volume};
use crate::clock::Timestamp;
use crate::metadata;
use crate::oci::Digest;

const HOUR: Duration = Duration::from_secs(3600);

fn layer() -> Digest {
    Digest::sha256_of(LAYER)
}

fn manifest() -> Digest {
    Digest::sha256_of(MANIFEST)
}

/// A store with the image, unused since long.
async fn pulled(disk: Arc<dyn Disk>, root: &std::path::Path) -> Store {
    let store = Store::open_on(disk, root);
    store_manifest(&store).await.unwrap();
    drop(download(&store, LAYER).await.unwrap());
    store.clock.advance(HOUR);
    store
}

/// What somebody sees who wants room.
async fn evidence(store: &Content, digest: &Digest) -> Evidence {
    let found = store.metadata().idle(Timestamp::from_millis(i64::MAX), None, 99).await.unwrap();
    let idle = found.into_iter().find(|idle| idle.digest == *digest).unwrap();
    Evidence { since: idle.since, rules: store.metadata().rules_epoch() }
}

async fn evict(store: &Content, digest: &Digest) -> Result<Left, Error> {
    let evidence = evidence(store, digest).await;
    store.evict(digest, evidence).await
}

#[tokio::test]
async fn what_was_evicted_is_not_here_and_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let store = pulled(Arc::new(RealDisk), root.path()).await;
    let size = LAYER.len() as u64;
    assert_eq!(evict(&store, &layer()).await.unwrap(), Left::Gone(size));
    assert!(!blob_path(root.path(), LAYER).exists());
    assert!(read_blob(&store, LAYER).await.is_none());
    let found = store.open_blob(&repository("a"), &layer()).await.unwrap();
    assert!(found.record.proof.is_some(), "what is known of it stays");
    assert_consistent(root.path(), &store).await;
    let gone = Evidence { since: Timestamp::from_millis(0), rules: 0 };
    let left = store.evict(&Digest::sha256_of(b"nobody"), gone).await.unwrap();
    assert_eq!(left, Left::NotHere);
    // A manifest goes from memory, too.
    assert_eq!(evict(&store, &manifest()).await.unwrap(), Left::Gone(MANIFEST.len() as u64));
    assert!(store.manifest(&repository("a"), &manifest()).await.unwrap().is_none());
    assert!(store.metadata().hot_manifest(&repository("a"), None, &manifest()).is_none());
    store_manifest(&store).await.unwrap();
    drop(download(&store, LAYER).await.unwrap());
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    assert_consistent(root.path(), &store).await;
    store.finish().await;
}

#[tokio::test]
async fn nothing_is_taken_from_a_reader_or_a_download() {
    let root = tempfile::tempdir().unwrap();
    let store = pulled(Arc::new(RealDisk), root.path()).await;
    let found = store.open_blob(&repository("a"), &layer()).await.unwrap();
    let part = found.span.unwrap().slice(3, 5);
    assert_eq!(evict(&store, &layer()).await.unwrap(), Left::Stays);
    // On an order it goes all the same, and who reads reads on.
    assert_eq!(store.remove(&layer()).await.unwrap(), Left::Gone(LAYER.len() as u64));
    assert!(read_blob(&store, LAYER).await.is_none());
    assert_eq!(read_span(&part), &LAYER[3..5]);
    assert_eq!(store.remove(&layer()).await.unwrap(), Left::NotHere);
    drop(part);
    drop(download(&store, LAYER).await.unwrap());
    let stage = store.stage(&layer(), Some(9)).await.unwrap();
    assert_eq!(evict(&store, &layer()).await.unwrap(), Left::Stays);
    drop(stage);
    store.settle().await;
    let span = download(&store, LAYER).await.unwrap();
    assert_eq!(evict(&store, &layer()).await.unwrap(), Left::Stays, "it was just committed");
    drop(span);
    assert!(matches!(evict(&store, &layer()).await.unwrap(), Left::Gone(_)));
    store.finish().await;
}

#[tokio::test]
async fn what_was_used_meanwhile_or_pinned_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = pulled(Arc::new(RealDisk), root.path()).await;
    let before = evidence(&store, &layer()).await;
    // A use of the image is one of its layers.
    store.metadata().touch(&manifest(), Timestamp::from_millis(1).plus(HOUR));
    assert_eq!(store.evict(&layer(), before).await.unwrap(), Left::Stays);
    let now = evidence(&store, &layer()).await;
    assert!(now.since > before.since);
    let rule = store.metadata().add_rule(
        metadata::RuleKind::Pin,
        "docker.io".parse().unwrap(),
        None,
        String::new(),
    );
    rule.await.unwrap();
    assert_eq!(store.evict(&layer(), now).await.unwrap(), Left::Stays);
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn what_nothing_holds_goes_with_its_row_from_the_top_down() {
    let root = tempfile::tempdir().unwrap();
    let store = pulled(Arc::new(RealDisk), root.path()).await;
    let (rows, rules) = (store.metadata(), store.metadata().rules_epoch());
    for digest in [layer(), manifest()] {
        assert_eq!(store.collect(&digest, rules).await.unwrap(), Left::Stays);
    }
    rows.delete_tag(&repository("a"), &"latest".parse().unwrap()).await.unwrap();
    assert_eq!(store.collect(&layer(), rules).await.unwrap(), Left::Stays, "a row refers to it");
    assert_eq!(store.collect(&manifest(), rules + 1).await.unwrap(), Left::Stays);
    assert!(matches!(store.collect(&manifest(), rules).await.unwrap(), Left::Gone(_)));
    assert!(rows.object(&manifest()).await.unwrap().is_none());
    let waiting = rows.doomed(Timestamp::from_millis(i64::MAX), 9).await.unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].digest, layer());
    assert!(matches!(store.collect(&layer(), rules).await.unwrap(), Left::Gone(_)));
    assert_eq!(store.collect(&layer(), rules).await.unwrap(), Left::NotHere);
    assert_eq!(count_files(&root.path().join("data/blobs/sha256")), 0);
    assert_consistent(root.path(), &store).await;
    store.finish().await;
}

/// Whatever an operation of the disk or a step of the rows does: what was not taken is whole, what was taken is not served, and after
/// the walk over the files none is without a row.
async fn check_after(root: &std::path::Path, went: bool) {
    let store = Store::open(root);
    assert_consistent(root, &store).await;
    let report = store.adopt_orphans(Haste::Full, &|_| (), &CancellationToken::new()).await;
    assert_eq!(report.unwrap().damaged, 0);
    assert_eq!(store.count_orphans(&CancellationToken::new()).await.unwrap(), 0);
    assert_consistent(root, &store).await;
    let rows = store.metadata();
    let waiting = rows.doomed(Timestamp::from_millis(i64::MAX), 9).await.unwrap();
    assert!(went || !waiting.is_empty(), "whoever did not finish has more to do");
    for _round in 0..2 {
        for digest in [manifest(), layer()] {
            let left = store.collect(&digest, rows.rules_epoch()).await.unwrap();
            assert_ne!(left, Left::Stays);
        }
    }
    assert!(rows.object(&layer()).await.unwrap().is_none());
    assert_eq!(count_files(&root.join("data/blobs/sha256")), 0);
    // And it can be had again.
    store_manifest(&store).await.unwrap();
    drop(download(&store, LAYER).await.unwrap());
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

async fn collect_all(store: &Content) -> bool {
    let rules = store.metadata().rules_epoch();
    let mut whole = true;
    for digest in [manifest(), layer()] {
        whole &= matches!(store.collect(&digest, rules).await, Ok(Left::Gone(_)));
    }
    whole
}

#[tokio::test]
async fn any_operation_of_the_disk_may_fail_when_content_leaves() {
    for fault in [Fault::Io, Fault::ReadOnly] {
        for lasting in [false, true] {
            for at in 1.. {
                let root = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(Arc::new(RealDisk));
                let store = pulled(Arc::clone(&disk) as _, root.path()).await;
                let latest = "latest".parse().unwrap();
                store.metadata().delete_tag(&repository("a"), &latest).await.unwrap();
                disk.fail(Plan { at, lasting, fault, only: Some(Operation::Unlink) });
                let went = collect_all(&store).await;
                let injected = disk.injected();
                disk.heal();
                store.finish().await;
                check_after(root.path(), went).await;
                if injected == 0 {
                    assert!(went && at > 2, "only {at} operations were counted");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn any_step_of_the_rows_may_fail_when_content_leaves() {
    for lasting in [false, true] {
        for at in 1.. {
            let root = tempfile::tempdir().unwrap();
            let store = pulled(Arc::new(RealDisk), root.path()).await;
            let latest = "latest".parse().unwrap();
            store.metadata().delete_tag(&repository("a"), &latest).await.unwrap();
            let fault = metadata::testing::Fault::Full;
            store.metadata().fail_writes(Some(metadata::testing::Plan { at, lasting, fault }));
            let went = collect_all(&store).await;
            let injected = store.metadata().failed_writes();
            store.finish().await;
            check_after(root.path(), went).await;
            if injected == 0 {
                assert!(went && at > 6, "only {at} steps were counted");
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_removed_is_a_leftover_after_an_order_and_stays_after_an_eviction() {
    for ordered in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let store = pulled(Arc::clone(&disk) as _, root.path()).await;
        let only = Some(Operation::Unlink);
        disk.fail(Plan { at: 1, lasting: false, fault: Fault::Io, only });
        let failed =
            if ordered { store.remove(&layer()).await } else { evict(&store, &layer()).await };
        assert!(matches!(failed, Err(Error::Disk(_))));
        assert!(blob_path(root.path(), LAYER).exists());
        assert_eq!(read_blob(&store, LAYER).await.is_some(), !ordered);
        let report = store.adopt_orphans(Haste::Full, &|_| (), &CancellationToken::new()).await;
        assert_eq!(report.unwrap().adopted, 0);
        assert_eq!(blob_path(root.path(), LAYER).exists(), !ordered);
        assert_eq!(read_blob(&store, LAYER).await.is_some(), !ordered);
        assert_consistent(root.path(), &store).await;
        store.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_and_pulls_at_the_same_time_leave_a_whole_store() {
    let root = tempfile::tempdir().unwrap();
    let store = pulled(Arc::new(RealDisk), root.path()).await;
    let evictor = async {
        let mut gone = 0;
        for round in 0..60 {
            let found =
                store.metadata().idle(Timestamp::from_millis(i64::MAX), None, 99).await.unwrap();
            for idle in found {
                let evidence = Evidence { since: idle.since, rules: 0 };
                let left = store.evict(&idle.digest, evidence).await.unwrap();
                gone += u32::from(matches!(left, Left::Gone(_)));
            }
            if round % 3 == 0 {
                store.remove(&layer()).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
        gone
    };
    let puller = async {
        for _round in 0..60 {
            let (here, digest) = (repository("a"), layer());
            match store.open_blob(&here, &digest).await.unwrap().span {
                // Whatever becomes of the row, an open file is whole.
                Some(span) => assert_eq!(read_span(&span), LAYER),
                None => drop(download(&store, LAYER).await.unwrap()),
            }
            store.metadata().touch(&manifest(), Timestamp::from_millis(1));
            if store.manifest(&here, &manifest()).await.unwrap().is_none() {
                store_manifest(&store).await.unwrap();
            }
        }
    };
    let (gone, ()) = futures_util::future::join(evictor, puller).await;
    assert!(gone > 0);
    assert_consistent(root.path(), &store).await;
    assert_eq!(store.count_orphans(&CancellationToken::new()).await.unwrap(), 0);
    store.finish().await;
}

#[tokio::test]
async fn what_is_refused_and_what_comes_near_presses() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let mut settings = Settings::new(root.path().join("data"));
    settings.min_free = MinFree::Bytes(1000);
    let store = Store::try_open(Arc::clone(&disk) as _, settings).unwrap();
    let set_free = |free| {
        disk.set_volume(Some(Volume { total: 100_000, free }));
        store.space().note_removal();
    };
    let evicting = store.evicting();
    let pressed = || {
        let pressed = futures_util::FutureExt::now_or_never(Box::pin(evicting.pressed()));
        pressed.map(|()| evicting.look().refused())
    };
    let refused = Some(Some(Refused { bytes: 49_001, is_a_guess: false }));
    let near = Some(None);
    set_free(50_000);
    assert!(store.admits(Some(10), None) && pressed().is_none());
    assert_eq!(store.room(), Room { free: 50_000, min_free: 1000 });
    assert!(!store.admits(Some(49_001), None));
    assert_eq!((pressed(), pressed()), (refused, None), "once for each time");
    assert!(!store.admits(Some(99_001), None));
    assert_eq!(pressed(), None, "the file system is smaller: nobody can make room for it");
    drop(download(&store, LAYER).await.unwrap());
    assert_eq!(pressed(), None);
    set_free(1_099);
    drop(download(&store, b"another").await.unwrap());
    assert_eq!(pressed(), near, "there is little more than what is left to others");
    set_free(50_000);
    store_manifest(&store).await.unwrap();
    assert_eq!(pressed(), None);
    // Marks of what is stored.
    let stored = store.metadata().usage().await.unwrap().bytes;
    store.set_marks(Some(stored + 5), Vec::new());
    drop(download(&store, b"12345").await.unwrap());
    assert_eq!(pressed(), None);
    drop(download(&store, b"6").await.unwrap());
    assert_eq!(pressed(), near);
    let hub = "docker.io".parse().unwrap();
    store.set_marks(None, vec![(hub, 1)]);
    store_manifest(&store).await.unwrap();
    assert_eq!(pressed(), near);
    store.set_marks(None, vec![("ghcr.io".parse().unwrap(), 1)]);
    store_manifest(&store).await.unwrap();
    assert_eq!(pressed(), None);
    store.finish().await;
}

#[tokio::test]
async fn a_closed_store_lets_through_what_it_is_told() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let (hub, ghcr) = ("docker.io".parse().unwrap(), "ghcr.io".parse().unwrap());
    let admits = || [None, Some(&hub), Some(&ghcr)].map(|from| store.admits(Some(1), from));
    assert_eq!(admits(), [true, true, true]);
    store.set_closed(false, vec![ghcr.clone()]);
    assert_eq!(admits(), [true, true, false]);
    store.set_closed(true, Vec::new());
    assert_eq!(admits(), [false, false, false]);
    store.set_closed(false, Vec::new());
    assert_eq!(admits(), [true, true, true]);
    store.finish().await;
}
