//! Every operation of the disk and every step of the rows fails once, or from there on, with the power cut after it; then a clean
//! start has to find a store that keeps its promises.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::tests::*;
use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Plan};
use crate::blobs::{Disk, RealDisk};
use crate::metadata;
use crate::oci::Digest;

/// The promises of the store as files and rows show them: a name under `blobs/` tells the truth, a row "present" has its file,
/// nothing unfinished is left.
pub(super) async fn assert_consistent(root: &Path, store: &Content) {
    let directory = root.join("data/blobs/sha256");
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(Digest::sha256_of(&bytes).hex(), name);
    }
    let rows = store.metadata().present().await.unwrap();
    let mut bytes = 0;
    for (digest, size) in &rows {
        let file = fs::metadata(directory.join(digest.hex())).unwrap();
        assert_eq!(file.len(), *size, "the file of {digest}");
        bytes += size;
    }
    let usage = store.metadata().usage().await.unwrap();
    assert_eq!((usage.objects, usage.bytes), (rows.len() as u64, bytes));
    assert_eq!(count_files(&root.join("data/partial")), 0);
}

/// A whole pull: manifest, then layer.
async fn pull(store: &Content) -> (Result<(), Error>, Result<(), Error>) {
    let manifest = store_manifest(store).await;
    let layer = download(store, LAYER).await.map(drop);
    (manifest, layer)
}

async fn check_after(root: &Path, results: &(Result<(), Error>, Result<(), Error>)) {
    let store = Store::open(root);
    assert_consistent(root, &store).await;
    let (here, digest) = (repository("a"), Digest::sha256_of(MANIFEST));
    let manifest = store.manifest(&here, &digest).await.unwrap();
    if results.0.is_ok() {
        assert_eq!(manifest.as_ref().unwrap().bytes, MANIFEST);
        let tag = store.metadata().tag(&here, &"latest".parse().unwrap()).await;
        assert_eq!(tag.unwrap().unwrap().digest, Some(digest));
    }
    let layer = store.metadata().object(&Digest::sha256_of(LAYER)).await;
    let present = layer.unwrap().is_some_and(|object| object.present);
    assert!(present || results.1.is_err());
    // Whatever happened, the next pull works and nothing has to be repaired.
    let again = pull(&store).await;
    assert!(again.0.is_ok() && again.1.is_ok());
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    assert_consistent(root, &store).await;
    store.finish().await;
}

#[tokio::test]
async fn any_operation_of_the_disk_may_fail_in_a_pull() {
    for lasting in [false, true] {
        for fault in [Fault::NoSpace, Fault::Io] {
            for at in 1.. {
                let root = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(Arc::new(RealDisk));
                let store = Store::open_on(Arc::clone(&disk) as Arc<dyn Disk>, root.path());
                disk.fail(Plan { at, lasting, fault, only: None });
                let results = pull(&store).await;
                let injected = disk.injected();
                disk.heal();
                store.finish().await;
                disk.cut_power().unwrap();
                check_after(root.path(), &results).await;
                if injected == 0 {
                    assert!(results.0.is_ok() && results.1.is_ok());
                    assert!(at > 14, "only {at} operations were counted");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn any_operation_of_the_disk_may_fail_in_a_warm_read() {
    for fault in [Fault::Io, Fault::TooManyFiles] {
        for at in 1.. {
            let root = tempfile::tempdir().unwrap();
            let first = Store::open(root.path());
            let results = pull(&first).await;
            assert!(results.0.is_ok() && results.1.is_ok());
            first.finish().await;
            let disk = FaultyDisk::new(Arc::new(RealDisk));
            let store = Store::open_on(Arc::clone(&disk) as Arc<dyn Disk>, root.path());
            disk.fail(Plan { at, lasting: false, fault, only: None });
            let (here, digest) = (repository("a"), Digest::sha256_of(MANIFEST));
            let manifest = store.manifest(&here, &digest).await;
            let layer = store.open_blob(&here, &Digest::sha256_of(LAYER)).await;
            let injected = disk.injected();
            disk.heal();
            // An error or nothing, but never a wrong byte.
            if let Ok(Some(found)) = &manifest {
                assert_eq!(found.bytes, MANIFEST);
            }
            if let Ok(found) = &layer
                && let Some(span) = &found.span
            {
                assert_eq!(read_span(span), LAYER);
            }
            store.finish().await;
            check_after(root.path(), &results).await;
            if injected == 0 {
                assert!(manifest.unwrap().is_some() && layer.unwrap().span.is_some());
                assert!(at > 5, "only {at} operations were counted");
                break;
            }
        }
    }
}

#[tokio::test]
async fn any_step_of_the_rows_may_fail_in_a_pull() {
    for lasting in [false, true] {
        for fault in [metadata::testing::Fault::Full, metadata::testing::Fault::Io] {
            for at in 1.. {
                let root = tempfile::tempdir().unwrap();
                let store = Store::open(root.path());
                store.metadata().fail_writes(Some(metadata::testing::Plan { at, lasting, fault }));
                let results = pull(&store).await;
                let injected = store.metadata().failed_writes();
                store.finish().await;
                check_after(root.path(), &results).await;
                if injected == 0 {
                    assert!(results.0.is_ok() && results.1.is_ok());
                    assert!(at > 6, "only {at} steps were counted");
                    break;
                }
            }
        }
    }
}
