//! Downloads that are broken off and gone on with, through the verbs of the store.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::tests::*;
use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::blobs::{Disk, RealDisk, Volume};
use crate::oci::Digest;

fn layer(seed: u8) -> Vec<u8> {
    (0..300_000_u32).map(|n| u8::try_from((n + u32::from(seed)) % 251 + 1).unwrap()).collect()
}

fn only(part: Range<u64>) -> [Range<u64>; 1] {
    [part]
}

fn size_of(bytes: &[u8]) -> Option<u64> {
    Some(bytes.len() as u64)
}

fn put(stage: &Stage, bytes: &[u8], part: Range<usize>) -> std::io::Result<()> {
    stage.write_at(part.start as u64, &bytes[part])
}

fn partials(root: &Path) -> usize {
    count_files(&root.join("data/partial"))
}

/// Begins a download and leaves two parts of it.
async fn leave(store: &Content, bytes: &[u8]) -> Result<(), Error> {
    let stage = store.stage(&Digest::sha256_of(bytes), size_of(bytes)).await?;
    put(&stage, bytes, 0..100_000)?;
    put(&stage, bytes, 200_000..250_000)?;
    stage.keep(&[0..100_000, 200_000..250_000]);
    Ok(())
}

async fn left(store: &Content, bytes: &[u8]) -> Option<Vec<Range<u64>>> {
    let found = store.unfinished(&Digest::sha256_of(bytes)).await.unwrap()?;
    assert_eq!(Some(found.size), size_of(bytes));
    Some(found.present)
}

/// Goes on with what is left, checking it, to the end.
async fn complete(store: &Content, bytes: &[u8]) -> Result<(), Error> {
    let stage = store.stage(&Digest::sha256_of(bytes), size_of(bytes)).await?;
    let mut here = vec![0; bytes.len()];
    for part in stage.present().to_vec() {
        let range = usize::try_from(part.start).unwrap()..usize::try_from(part.end).unwrap();
        stage.read_at(part.start, &mut here[range.clone()])?;
        assert!(here[range.clone()] == bytes[range]);
    }
    for (number, chunk) in bytes.chunks(50_000).enumerate() {
        let start = number * 50_000;
        if here[start..start + chunk.len()] != *chunk {
            stage.write_at(start as u64, chunk)?;
        }
    }
    store.commit(stage, bytes.len() as u64).await.map(drop)
}

#[tokio::test]
async fn a_download_goes_on_where_it_was_broken_off_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let bytes = layer(1);
    let digest = Digest::sha256_of(&bytes);
    let store = Store::open(root.path());
    assert_eq!(left(&store, &bytes).await, None);
    leave(&store, &bytes).await.unwrap();
    let parts = [0..100_000, 200_000..250_000];
    assert_eq!(left(&store, &bytes).await.unwrap(), parts);
    store.finish().await;

    let store = Store::open(root.path());
    assert_eq!(left(&store, &bytes).await.unwrap(), parts);
    let stage = store.stage(&digest, size_of(&bytes)).await.unwrap();
    assert_eq!(stage.present(), parts);
    assert_eq!(left(&store, &bytes).await, None, "a running download is not a leftover");
    assert!(matches!(store.stage(&digest, None).await, Err(Error::Busy)));
    stage.keep(&parts);
    complete(&store, &bytes).await.unwrap();
    assert_eq!(partials(root.path()), 0);
    assert_eq!(left(&store, &bytes).await, None);
    assert!(store.verify(&digest).await.unwrap());
    store.finish().await;
}

#[tokio::test]
async fn a_crash_leaves_what_the_last_checkpoint_names() {
    let root = tempfile::tempdir().unwrap();
    let bytes = layer(1);
    let store = Store::open(root.path());
    let stage = store.stage(&Digest::sha256_of(&bytes), size_of(&bytes)).await.unwrap();
    put(&stage, &bytes, 0..50_000).unwrap();
    stage.checkpoint(&only(0..50_000)).unwrap();
    put(&stage, &bytes, 50_000..90_000).unwrap();
    // The process ends without a word.
    let _gone = std::mem::ManuallyDrop::new(stage);
    store.content.close().await;
    let store = Store::open(root.path());
    assert_eq!(left(&store, &bytes).await.unwrap(), only(0..50_000));
    complete(&store, &bytes).await.unwrap();
    store.finish().await;
}

#[tokio::test]
async fn a_stage_of_another_or_no_size_begins_anew() {
    for size in [Some(17), None] {
        let root = tempfile::tempdir().unwrap();
        let bytes = layer(1);
        let store = Store::open(root.path());
        leave(&store, &bytes).await.unwrap();
        let stage = store.stage(&Digest::sha256_of(&bytes), size).await.unwrap();
        assert_eq!(stage.present(), []);
        assert_eq!(stage.file().metadata().unwrap().len(), 0);
        assert_eq!(partials(root.path()), 1, "the record is gone");
        drop(stage);
        store.settle().await;
        assert_eq!(partials(root.path()), 0);
        store.finish().await;
    }
}

#[tokio::test]
async fn a_dropped_stage_takes_what_it_adopted_with_it() {
    let root = tempfile::tempdir().unwrap();
    let bytes = layer(1);
    let store = Store::open(root.path());
    leave(&store, &bytes).await.unwrap();
    drop(store.stage(&Digest::sha256_of(&bytes), size_of(&bytes)).await.unwrap());
    store.settle().await;
    assert_eq!(partials(root.path()), 0);
    // Nothing to keep is nothing kept.
    let stage = store.stage(&Digest::sha256_of(&bytes), size_of(&bytes)).await.unwrap();
    put(&stage, &bytes, 0..10).unwrap();
    stage.keep(&[]);
    let stage = store.stage(&Digest::sha256_of(&bytes), None).await.unwrap();
    put(&stage, &bytes, 0..10).unwrap();
    stage.keep(&only(0..10));
    assert_eq!(partials(root.path()), 0);
    store.finish().await;
}

/// The blocking pool is busy with something else meanwhile, so that the caller goes before its turn comes.
#[test]
fn a_caller_that_goes_before_it_has_its_stage_loses_nothing() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.max_blocking_threads(1).enable_all().build().unwrap().block_on(async {
        let root = tempfile::tempdir().unwrap();
        let bytes = layer(1);
        let store = Store::open(root.path());
        leave(&store, &bytes).await.unwrap();
        let digest = Digest::sha256_of(&bytes);
        let (free, busy) = std::sync::mpsc::channel::<()>();
        let busy = tokio_util::task::TaskTracker::new().spawn_blocking(move || busy.recv());
        {
            let mut stage = Box::pin(store.stage(&digest, size_of(&bytes)));
            assert!(futures_util::poll!(&mut stage).is_pending());
        }
        free.send(()).unwrap();
        busy.await.unwrap().unwrap();
        store.settle().await;
        assert_eq!(left(&store, &bytes).await.unwrap().len(), 2);
        complete(&store, &bytes).await.unwrap();
        store.finish().await;
    });
}

#[tokio::test]
async fn old_and_useless_leftovers_are_swept_and_running_downloads_are_not() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let (old, young, junk, running) = (layer(1), layer(2), layer(3), layer(4));
    let stage = store.stage(&Digest::sha256_of(&running), size_of(&running)).await.unwrap();
    stage.write_at(0, b"x").unwrap();
    stage.checkpoint(&only(0..1)).unwrap();
    leave(&store, &old).await.unwrap();
    store.clock.advance(UNFINISHED_KEPT);
    leave(&store, &young).await.unwrap();
    leave(&store, &junk).await.unwrap();
    let record = format!("d-sha256-{}.map", Digest::sha256_of(&junk).hex());
    fs::write(root.path().join("data/partial").join(record), b"junk").unwrap();
    assert_eq!(store.sweep_unfinished().await.unwrap(), 1, "the junk");
    store.clock.advance(Duration::from_millis(1));
    assert_eq!(store.sweep_unfinished().await.unwrap(), 1, "the old one");
    assert_eq!(left(&store, &old).await, None);
    assert!(left(&store, &young).await.is_some());
    put(&stage, &running, 0..10).unwrap();
    stage.checkpoint(&only(0..10)).unwrap();
    drop(stage);
    store.settle().await;
    assert_eq!(partials(root.path()), 2);
    store.finish().await;
}

#[tokio::test]
async fn junk_is_removed_by_whoever_asks_for_it() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let bytes = layer(1);
    leave(&store, &bytes).await.unwrap();
    let record = format!("d-sha256-{}.map", Digest::sha256_of(&bytes).hex());
    fs::write(root.path().join("data/partial").join(record), b"junk").unwrap();
    assert_eq!(left(&store, &bytes).await, None);
    assert_eq!(partials(root.path()), 0);
    complete(&store, &bytes).await.unwrap();
    store.finish().await;
}

#[tokio::test]
async fn when_room_is_short_the_oldest_leftovers_go_first() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    let (first, second, third) = (layer(1), layer(2), layer(3));
    for bytes in [&second, &first, &third] {
        leave(&store, bytes).await.unwrap();
        store.clock.advance(Duration::from_secs(1));
    }
    let mine = store.stage(&Digest::sha256_of(&second), size_of(&second)).await.unwrap();
    // Too little for anything, whatever goes.
    disk.set_volume(Some(Volume { total: 1 << 40, free: 0 }));
    store.space().note_removal();
    assert!(matches!(
        store.stage(&Digest::sha256_of(b"x"), Some(1 << 40)).await,
        Err(Error::NoSpace)
    ));
    assert!(left(&store, &first).await.is_some(), "nothing goes in vain");
    // The figures are set by hand, so they do not show what was removed: everything that nobody goes on with goes.
    let refused = store.stage(&Digest::sha256_of(b"x"), Some(200_000)).await;
    assert!(matches!(refused, Err(Error::NoSpace)));
    assert_eq!((left(&store, &first).await, left(&store, &third).await), (None, None));
    mine.keep(&[0..100_000, 200_000..250_000]);
    assert!(left(&store, &second).await.is_some(), "it was in use");

    // A request that is not admitted makes room for the next.
    assert!(!store.admits(Some(1), None));
    store.settle().await;
    assert_eq!(left(&store, &second).await, None);
    assert_eq!(partials(root.path()), 0);
    disk.set_volume(None);
    store.space().note_removal();
    assert!(store.admits(Some(1), None));
    store.finish().await;
}

#[tokio::test]
async fn a_leftover_that_stays_is_no_removal() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    leave(&store, &layer(1)).await.unwrap();
    disk.set_volume(Some(Volume { total: 1 << 40, free: 0 }));
    store.space().note_removal();
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Unlink) });
    let removals = || store.space().state().looks.removals;
    let before = removals();
    let refused = store.stage(&Digest::sha256_of(b"x"), Some(200_000)).await;
    assert!(matches!(refused, Err(Error::NoSpace)));
    assert!(disk.injected() > 0, "it was tried");
    assert_eq!(removals(), before, "whoever waits for room must not take it for progress");
    disk.heal();
    store.finish().await;
}

#[tokio::test]
async fn a_full_disk_takes_the_write_again_after_a_leftover_went() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    let (old, newer, bytes) = (layer(1), layer(2), layer(3));
    leave(&store, &old).await.unwrap();
    store.clock.advance(Duration::from_secs(1));
    leave(&store, &newer).await.unwrap();
    for (operation, goes) in [(Operation::Write, &old), (Operation::Allocate, &newer)] {
        let plan = Plan { at: 1, lasting: false, fault: Fault::NoSpace, only: Some(operation) };
        disk.fail(plan);
        download(&store, &bytes).await.unwrap();
        assert_eq!(disk.injected(), 1);
        assert_eq!(left(&store, goes).await, None);
        assert!(store.admits(Some(1), None));
    }
    disk.fail(Plan { at: 1, lasting: false, fault: Fault::NoSpace, only: Some(Operation::Write) });
    assert!(matches!(download(&store, &bytes).await, Err(Error::NoSpace)), "nothing is left to go");
    store.settle().await;
    store.finish().await;
}

#[tokio::test]
async fn any_operation_of_the_disk_may_fail_in_a_download_that_is_continued() {
    for lasting in [false, true] {
        for fault in [Fault::NoSpace, Fault::TooManyFiles, Fault::Io] {
            for at in 1.. {
                let root = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(Arc::new(RealDisk));
                let store = Store::open_on(Arc::clone(&disk) as Arc<dyn Disk>, root.path());
                store_manifest(&store).await.unwrap();
                let bytes = layer(1);
                disk.fail(Plan { at, lasting, fault, only: None });
                let result = match leave(&store, &bytes).await {
                    Ok(()) => complete(&store, &bytes).await,
                    Err(error) => Err(error),
                };
                let injected = disk.injected();
                disk.heal();
                store.finish().await;
                disk.cut_power_after(usize::try_from(at % 3).unwrap()).unwrap();
                let store = Store::open(root.path());
                let digest = Digest::sha256_of(&bytes);
                assert_eq!(store.verify(&digest).await.unwrap(), result.is_ok());
                // It checks what is left against what was written.
                complete(&store, &bytes).await.unwrap();
                assert!(store.verify(&digest).await.unwrap());
                assert_eq!(partials(root.path()), 0);
                store.finish().await;
                if injected == 0 {
                    assert!(result.is_ok());
                    assert!(at > 25, "only {at} operations were counted");
                    break;
                }
            }
        }
    }
}
