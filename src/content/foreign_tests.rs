//! Files of a folder are taken in: linked, copied, refused, and what is left after each.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Content, Evidence, Flaw, Folder, Left, Settings, TakenIn};
use crate::clock::SystemClock;
use crate::oci::Digest;

/// A store and a folder beside it, on one file system.
fn store() -> (Content, Arc<Folder>, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("old")).unwrap();
    let mut settings = Settings::new(root.path().join("data"));
    settings.min_free = super::MinFree::Bytes(0);
    let (clock, tasks) = (Arc::new(SystemClock), TaskTracker::new());
    let content = Content::open(settings, clock, tasks, &mut Registry::default()).unwrap();
    let folder = Arc::new(content.folder(root.path().join("old")));
    (content, folder, root)
}

async fn take(content: &Content, folder: &Arc<Folder>, digest: &Digest, copy: bool) -> TakenIn {
    let cancel = CancellationToken::new();
    content.take_in(folder, Path::new("x"), digest, copy, &cancel).await.unwrap()
}

fn partial_is_empty(root: &Path) -> bool {
    fs::read_dir(root.join("data/partial")).unwrap().next().is_none()
}

#[tokio::test]
async fn a_file_is_linked_or_copied_and_stays_while_it_is_leased() {
    for copy in [false, true] {
        let (content, folder, root) = store();
        let digest = Digest::sha256_of(b"content");
        fs::write(root.path().join("old/x"), b"content").unwrap();
        let taken = take(&content, &folder, &digest, copy).await;
        let TakenIn::Taken { size: 7, linked, lease } = taken else { panic!("{taken:?}") };
        assert_eq!(linked, !copy);
        let here = root.path().join("data/blobs/sha256").join(digest.hex());
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&here) == inode(&root.path().join("old/x")), !copy);
        assert!(partial_is_empty(root.path()));
        let evidence = Evidence {
            since: crate::clock::Timestamp::from_millis(0),
            rules: content.metadata().rules_epoch(),
        };
        assert_eq!(content.evict(&digest, evidence).await.unwrap(), Left::Stays);
        drop(lease);
        assert_eq!(content.remove(&digest).await.unwrap(), Left::Gone(7));
        assert_eq!(fs::read(root.path().join("old/x")).unwrap(), b"content");
        content.close().await;
    }
}

#[tokio::test]
async fn a_file_without_a_row_that_is_the_same_file_leaves_no_second_name() {
    let (content, folder, root) = store();
    let digest = Digest::sha256_of(b"content");
    let here = root.path().join("data/blobs/sha256").join(digest.hex());
    fs::write(root.path().join("old/x"), b"content").unwrap();
    // As a crash between file and row leaves it: rename(2) does nothing then, and keeps both names.
    fs::hard_link(root.path().join("old/x"), &here).unwrap();
    assert!(matches!(take(&content, &folder, &digest, false).await, TakenIn::Taken { .. }));
    assert!(partial_is_empty(root.path()));
    assert_eq!(fs::metadata(&here).unwrap().nlink(), 2);
    assert!(matches!(take(&content, &folder, &digest, false).await, TakenIn::Here { size: 7, .. }));
    content.close().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_an_answer_and_leaves_nothing() {
    for copy in [false, true] {
        let (content, folder, root) = store();
        let digest = Digest::sha256_of(b"content");
        let flaw = |taken: TakenIn| match taken {
            TakenIn::Flawed(flaw) => flaw,
            other => panic!("{other:?}"),
        };
        assert_eq!(flaw(take(&content, &folder, &digest, copy).await), Flaw::Missing);
        fs::write(root.path().join("old/x"), b"contents").unwrap();
        assert_eq!(flaw(take(&content, &folder, &digest, copy).await), Flaw::Damaged);
        fs::remove_file(root.path().join("old/x")).unwrap();
        fs::create_dir(root.path().join("old/x")).unwrap();
        let answer = flaw(take(&content, &folder, &digest, copy).await);
        assert!(
            matches!(&answer, Flaw::Unreadable(why) if why.contains("directory")),
            "{answer:?}"
        );
        assert!(partial_is_empty(root.path()));
        assert_eq!(content.metadata().usage().await.unwrap().objects, 0);
        assert_eq!(content.locks_held(), 0);
        content.close().await;
    }
}

#[tokio::test]
async fn who_stops_it_leaves_nothing() {
    for copy in [false, true] {
        let (content, folder, root) = store();
        fs::write(root.path().join("old/x"), b"content").unwrap();
        let (digest, cancel) = (Digest::sha256_of(b"content"), CancellationToken::new());
        cancel.cancel();
        let stopped = content.take_in(&folder, Path::new("x"), &digest, copy, &cancel).await;
        assert!(
            matches!(stopped, Err(super::Error::Disk(error)) if error.kind() == std::io::ErrorKind::Interrupted)
        );
        assert!(partial_is_empty(root.path()));
        content.close().await;
    }
}
