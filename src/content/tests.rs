//! The verbs of the store on a real disk: what goes in comes out, and damage heals.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio_util::task::TaskTracker;

use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::blobs::{Disk, RealDisk, Volume};
use crate::clock::{ManualClock, Timestamp};
use crate::metadata::{self, Proof, RepositoryKey, RevisionCommit, TagMove};
use crate::oci::{Descriptor, Digest, MediaType, Role};
use crate::span::FramePool;
use crate::span::{ContentFile, Span};

pub(super) const LAYER: &[u8] = b"a layer, as it came from upstream";
pub(super) const MANIFEST: &[u8] = b"{ \"any\": \"bytes\", kept exactly }";

/// A store with its tasks, so that a test ends only when none is left.
pub(super) struct Store {
    pub(super) content: Content,
    tasks: TaskTracker,
    pub(super) clock: ManualClock,
    pub(super) registry: Registry,
}

impl std::ops::Deref for Store {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.content
    }
}

impl Store {
    pub(super) fn open(root: &Path) -> Self {
        Self::open_on(Arc::new(RealDisk), root)
    }

    pub(super) fn open_on(disk: Arc<dyn Disk>, root: &Path) -> Self {
        let mut settings = Settings::new(root.join("data"));
        settings.min_free = MinFree::Bytes(0);
        Self::try_open(disk, settings).unwrap()
    }

    pub(super) fn try_open(disk: Arc<dyn Disk>, settings: Settings) -> Result<Self, OpenError> {
        let clock = ManualClock::starting_at(Timestamp::from_millis(1));
        let (tasks, mut registry) = (TaskTracker::new(), Registry::default());
        let time = Arc::new(clock.clone());
        let content = Content::open_on(disk, settings, time, tasks.clone(), &mut registry)?;
        Ok(Self { content, tasks, clock, registry })
    }

    /// Waits for what is still running.
    pub(super) async fn settle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
        assert_eq!(self.content.locks_held(), 0, "a lock was left held");
    }

    pub(super) async fn finish(self) {
        self.settle().await;
        self.content.close().await;
    }

    fn metric(&self, line: &str) -> bool {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text.lines().any(|found| found == line)
    }
}

pub(super) fn repository(name: &str) -> RepositoryKey {
    RepositoryKey { upstream: "docker.io".parse().unwrap(), name: name.parse().unwrap() }
}

pub(super) fn proof() -> Proof {
    Proof { proved: Timestamp::from_millis(1), credential: None }
}

/// A manifest of repository `a` that points at `layers`, tagged `tag`.
pub(super) fn commit_of(manifest: &[u8], layers: &[&[u8]], tag: &str) -> RevisionCommit {
    let descriptor = |bytes: &&[u8]| Descriptor {
        media_type: MediaType::OCTET_STREAM.parse().unwrap(),
        digest: Digest::sha256_of(bytes),
        size: bytes.len() as u64,
        platform: None,
        artifact_type: None,
        foreign: false,
    };
    RevisionCommit {
        repository: repository("a"),
        digest: Digest::sha256_of(manifest),
        media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
        size: manifest.len() as u64,
        children: layers.iter().map(|layer| (Role::Layer, descriptor(layer))).collect(),
        subject: None,
        artifact_type: None,
        proof: proof(),
        at: Timestamp::from_millis(1),
        tag: Some(TagMove { tag: tag.parse().unwrap(), source: "upstream".to_owned() }),
    }
}

pub(super) async fn download(store: &Content, bytes: &[u8]) -> Result<Span, Error> {
    let digest = Digest::sha256_of(bytes);
    let size = bytes.len() as u64;
    let stage = store.stage(&digest, Some(size)).await?;
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    stage.write_at(0, head)?;
    stage.write_at(head.len() as u64, tail)?;
    store.commit(stage, size).await
}

pub(super) async fn store_manifest(store: &Content) -> Result<(), Error> {
    let commit = commit_of(MANIFEST, &[LAYER], "latest");
    store.store_revision(commit, Bytes::from_static(MANIFEST)).await
}

/// The blob as a client of repository `a` gets it.
pub(super) async fn read_blob(store: &Content, bytes: &[u8]) -> Option<Bytes> {
    let digest = Digest::sha256_of(bytes);
    let found = store.open_blob(&repository("a"), &digest).await.unwrap();
    assert_eq!(found.span.is_some(), found.record.present && found.record.proof.is_some());
    let span = found.span?;
    assert_eq!(span.length(), bytes.len() as u64);
    Some(read_span(&span))
}

pub(super) fn read_span(span: &Span) -> Bytes {
    let pool = FramePool::default();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < span.length() {
        bytes.extend_from_slice(&span.read_frame(bytes.len() as u64, &pool).unwrap());
    }
    bytes.into()
}

pub(super) fn blob_path(root: &Path, bytes: &[u8]) -> PathBuf {
    root.join("data/blobs/sha256").join(Digest::sha256_of(bytes).hex())
}

pub(super) fn count_files(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[tokio::test]
async fn content_goes_in_and_comes_out_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    assert!(read_blob(&store, LAYER).await.is_none());
    store_manifest(&store).await.unwrap();
    let before = store.open_blob(&repository("a"), &Digest::sha256_of(LAYER)).await;
    let before = before.unwrap();
    assert_eq!(before.record.size, Some(LAYER.len() as u64));
    assert!(before.span.is_none());
    let span = download(&store, LAYER).await.unwrap();
    assert_eq!(read_span(&span), LAYER);
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    assert!(store.metric("store_objects 2"));
    store.finish().await;

    let store = Store::open(root.path());
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    let digest = Digest::sha256_of(MANIFEST);
    for _pass in ["disk", "memory"] {
        let found = store.manifest(&repository("a"), &digest).await.unwrap();
        let found = found.unwrap();
        assert_eq!(found.bytes, MANIFEST);
        assert_eq!(found.media_type.as_str(), MediaType::OCI_MANIFEST);
        assert_eq!(found.proof, proof());
    }
    assert_eq!(count_files(&root.path().join("data/partial")), 0);
    store.finish().await;
}

#[tokio::test]
async fn nobody_gets_bytes_through_a_repository_that_never_had_them() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    download(&store, LAYER).await.unwrap();
    let (other, layer) = (repository("b"), Digest::sha256_of(LAYER));
    let found = store.open_blob(&other, &layer).await.unwrap();
    assert!(found.span.is_none() && found.record.proof.is_none());
    let manifest = store.manifest(&other, &Digest::sha256_of(MANIFEST)).await;
    assert_eq!(manifest.unwrap(), None);
    store.metadata().prove(&other, &layer, None, proof()).await.unwrap();
    let found = store.open_blob(&other, &layer).await.unwrap();
    assert!(found.span.is_some());
    store.finish().await;
}

#[tokio::test]
async fn a_digest_is_staged_once_at_a_time_and_a_dropped_stage_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let digest = Digest::sha256_of(LAYER);
    let stage = store.stage(&digest, None).await.unwrap();
    stage.write_at(0, &LAYER[..5]).unwrap();
    assert!(matches!(store.stage(&digest, None).await, Err(Error::Busy)));
    let reader = Span::new(ContentFile::new(stage.file(), None), 0, 5);
    drop(stage);
    store.settle().await;
    assert_eq!(count_files(&root.path().join("data/partial")), 0);
    assert_eq!(read_span(&reader), &LAYER[..5]);
    download(&store, LAYER).await.unwrap();
    store.finish().await;
}

#[test]
fn the_right_to_stage_comes_back_only_after_the_file_is_gone() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let root = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let store = Store::open(root.path());
        let digest = Digest::sha256_of(LAYER);
        let stage = store.stage(&digest, None).await.unwrap();
        // The only thread that may block is busy, so the file cannot be removed yet.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let busy = store.tasks.spawn_blocking(move || held.recv());
        drop(stage);
        assert!(matches!(store.stage(&digest, None).await, Err(Error::Busy)));
        drop(release);
        assert!(busy.await.unwrap().is_err());
        store.settle().await;
        download(&store, LAYER).await.unwrap();
        store.finish().await;
    });
}

#[tokio::test]
async fn a_stage_of_another_length_is_not_committed() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let digest = Digest::sha256_of(LAYER);
    let size = LAYER.len() as u64;
    let stage = store.stage(&digest, Some(size)).await.unwrap();
    stage.write_at(0, &LAYER[1..]).unwrap();
    assert!(matches!(store.commit(stage, size).await, Err(Error::Disk(_))));
    assert_eq!(count_files(&root.path().join("data/partial")), 0);
    assert!(!blob_path(root.path(), LAYER).exists());
    download(&store, LAYER).await.unwrap();
    store.finish().await;
}

#[tokio::test]
async fn a_file_without_a_row_is_replaced_by_the_next_download() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    fs::write(blob_path(root.path(), LAYER), b"left by a crash").unwrap();
    assert!(read_blob(&store, LAYER).await.is_none());
    download(&store, LAYER).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn a_missing_or_short_blob_is_not_present_and_heals() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    let path = blob_path(root.path(), LAYER);
    for damage in ["missing", "short"] {
        download(&store, LAYER).await.unwrap();
        match damage {
            "missing" => fs::remove_file(&path).unwrap(),
            _ => fs::write(&path, &LAYER[1..]).unwrap(),
        }
        assert!(read_blob(&store, LAYER).await.is_none(), "{damage}");
        let usage = store.metadata().usage().await.unwrap();
        assert_eq!(usage.objects, 1, "{damage}");
        let put_aside = usize::from(damage == "short");
        let quarantine = root.path().join("data/quarantine");
        assert_eq!(count_files(&quarantine), put_aside);
        assert!(!path.exists());
        // Still the length that was verified once.
        let digest = Digest::sha256_of(LAYER);
        let record = store.open_blob(&repository("a"), &digest).await.unwrap().record;
        assert_eq!((record.present, record.size), (false, Some(LAYER.len() as u64)));
    }
    assert!(store.metric("digest_mismatches_total{kind=\"disk\"} 1"));
    download(&store, LAYER).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn a_flipped_bit_in_a_manifest_is_never_served_and_heals() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    store.finish().await;
    let path = blob_path(root.path(), MANIFEST);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] ^= 1;
    fs::write(&path, bytes).unwrap();

    let store = Store::open(root.path());
    let (here, digest) = (repository("a"), Digest::sha256_of(MANIFEST));
    for _ in 0..2 {
        assert_eq!(store.manifest(&here, &digest).await.unwrap(), None);
    }
    assert!(!path.exists());
    assert_eq!(count_files(&root.path().join("data/quarantine")), 1);
    assert!(store.metric("digest_mismatches_total{kind=\"disk\"} 1"));
    // The tag still says where it points: only the bytes are fetched again.
    let record = store.metadata().tag(&here, &"latest".parse().unwrap()).await;
    assert_eq!(record.unwrap().unwrap().digest, Some(digest));
    store_manifest(&store).await.unwrap();
    let found = store.manifest(&here, &digest).await.unwrap().unwrap();
    assert_eq!(found.bytes, MANIFEST);
    store.finish().await;
}

#[tokio::test]
async fn verification_finds_a_flipped_bit_in_a_blob() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    // More than one piece of reading.
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::sha256_of(&large);
    assert!(!store.verify(&digest).await.unwrap());
    download(&store, &large).await.unwrap();
    assert!(store.verify(&digest).await.unwrap());
    let path = blob_path(root.path(), &large);
    let mut damaged = large.clone();
    damaged[2_999_999] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert!(!store.verify(&digest).await.unwrap());
    assert!(!path.exists());
    assert!(!store.verify(&digest).await.unwrap());
    store.finish().await;
}

#[tokio::test]
async fn hot_manifests_need_no_disk_and_are_bounded_by_bytes() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    fs::remove_file(blob_path(root.path(), MANIFEST)).unwrap();
    let (here, digest) = (repository("a"), Digest::sha256_of(MANIFEST));
    let found = store.manifest(&here, &digest).await.unwrap();
    assert_eq!(found.unwrap().bytes, MANIFEST);
    store.finish().await;

    let mut settings = Settings::new(root.path().join("data"));
    settings.manifest_cache_bytes = 10_000;
    settings.min_free = MinFree::Bytes(1);
    let store = Store::try_open(Arc::new(RealDisk), settings).unwrap();
    for number in 0..50_u8 {
        let bytes = vec![number; 2_000];
        let commit = commit_of(&bytes, &[], "latest");
        store.store_revision(commit, bytes.into()).await.unwrap();
    }
    store.content.manifests().run_pending_tasks();
    assert!(store.content.manifests().weighted_size() <= 10_000);
    store.finish().await;
}

#[tokio::test]
async fn small_content_is_put_and_got_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let digest = Digest::sha256_of(LAYER);
    assert_eq!(store.get(&digest, 1 << 20).await.unwrap(), None);
    store.put(&digest, Bytes::from_static(LAYER)).await.unwrap();
    let size = LAYER.len() as u64;
    assert_eq!(store.get(&digest, size).await.unwrap().unwrap(), LAYER);
    assert_eq!(store.get(&digest, size - 1).await.unwrap(), None);
    let empty = Digest::sha256_of(b"");
    store.put(&empty, Bytes::new()).await.unwrap();
    assert_eq!(store.get(&empty, 0).await.unwrap().unwrap(), "");
    store.finish().await;
}

#[tokio::test]
async fn many_writers_of_one_digest_make_one_object() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    let digest = Digest::sha256_of(LAYER);
    let put = || store.put(&digest, Bytes::from_static(LAYER));
    let results = futures_util::future::join4(put(), put(), put(), put()).await;
    assert!(results.0.is_ok() && results.1.is_ok() && results.2.is_ok() && results.3.is_ok());
    let usage = store.metadata().usage().await.unwrap();
    assert_eq!((usage.objects, usage.bytes), (1, LAYER.len() as u64));
    store.finish().await;
}

#[tokio::test]
async fn below_the_reserve_nothing_is_stored_until_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let volume = |free| Some(Volume { total: 1_000_000, free });
    disk.set_volume(volume(100_005));
    let settings = Settings::new(root.path().join("data"));
    let store = Store::try_open(Arc::clone(&disk) as _, settings.clone()).unwrap();
    assert_eq!(store.space().figures(), (100_005, 100_000));
    assert!(
        store.admits(Some(5), None) && !store.admits(Some(6), None) && !store.admits(None, None)
    );
    assert!(matches!(download(&store, LAYER).await, Err(Error::NoSpace)));
    assert!(matches!(store_manifest(&store).await, Err(Error::NoSpace)));
    assert_eq!(count_files(&root.path().join("data/partial")), 0);
    assert!(store.metric("caching_disabled 1"));
    assert!(store.metric("store_free_bytes 100005"));
    assert!(store.metric("store_reserve_bytes 100000"));
    store.finish().await;
    disk.set_volume(volume(900_000));
    let mut settings = settings;
    settings.min_free = MinFree::Bytes(0);
    let store = Store::try_open(disk, settings).unwrap();
    download(&store, LAYER).await.unwrap();
    assert!(store.metric("caching_disabled 1"), "1 MiB of unknown size has no room");
    store.finish().await;
}

#[tokio::test]
async fn a_disk_that_fills_up_under_a_download_fails_it_and_stops_the_next() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let store = Store::open_on(Arc::clone(&disk) as _, root.path());
    disk.fail(Plan { at: 2, lasting: true, fault: Fault::NoSpace, only: Some(Operation::Write) });
    assert!(matches!(download(&store, LAYER).await, Err(Error::NoSpace)));
    disk.heal();
    assert!(!store.admits(Some(1), None), "the disk said that it is full");
    store.settle().await;
    assert_eq!(count_files(&root.path().join("data/partial")), 0);
    store.finish().await;
}

#[tokio::test]
async fn rows_that_fail_fail_the_commit_and_leave_no_promise() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    store.metadata().fail_writes(Some(metadata::testing::Plan {
        at: 1,
        lasting: true,
        fault: metadata::testing::Fault::Full,
    }));
    let failed = download(&store, LAYER).await;
    assert!(matches!(failed, Err(Error::Metadata(metadata::Error::Full))));
    assert!(read_blob(&store, LAYER).await.is_none());
    store.metadata().fail_writes(None);
    download(&store, LAYER).await.unwrap();
    assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
    store.finish().await;
}

#[tokio::test]
async fn a_caller_that_goes_at_any_await_loses_nothing_and_holds_nothing() {
    let mut polls = 0;
    let mut done = false;
    while !done {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path());
        {
            let mut manifest = Box::pin(store_manifest(&store));
            for _ in 0..polls {
                if futures_util::poll!(&mut manifest).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let size = LAYER.len() as u64;
        let digest = Digest::sha256_of(LAYER);
        let stage = store.stage(&digest, Some(size)).await.unwrap();
        stage.write_at(0, LAYER).unwrap();
        {
            let mut commit = Box::pin(store.commit(stage, size));
            for _ in 0..polls {
                if let std::task::Poll::Ready(result) = futures_util::poll!(&mut commit) {
                    result.unwrap();
                    done = true;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        store.settle().await;
        let present = store.metadata().object(&digest).await.unwrap();
        // A future that was never polled has done nothing; any other has gone the whole way.
        assert_eq!(present.is_some_and(|object| object.present), polls > 0);
        let manifest = store.manifest(&repository("a"), &Digest::sha256_of(MANIFEST)).await;
        assert_eq!(manifest.unwrap().is_some(), polls > 0);
        assert_eq!(count_files(&root.path().join("data/partial")), 0);
        store_manifest(&store).await.unwrap();
        download(&store, LAYER).await.unwrap();
        assert_eq!(read_blob(&store, LAYER).await.unwrap(), LAYER);
        store.finish().await;
        // Later steps take thousands of polls in this loop, so the distance grows.
        polls += 1 + polls / 2;
        assert!(polls < 1 << 30, "the commit never ends");
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_refused_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    let settings = || Settings::new(root.path().join("data"));
    let refusal = |disk: Arc<dyn Disk>| match Store::try_open(disk, settings()) {
        Ok(_) => panic!("it was opened"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            text
        }
    };
    let store = Store::open(root.path());
    let pid = format!("pid {}", std::process::id());
    assert!(refusal(Arc::new(RealDisk)).contains(&pid));
    let other_handle = store.content.clone();
    store.finish().await;
    // A handle that is still around does not keep the directory.
    Store::open(root.path()).finish().await;
    drop(other_handle);

    let disk = FaultyDisk::new(Arc::new(RealDisk));
    disk.fail(Plan {
        at: 1,
        lasting: true,
        fault: Fault::Denied,
        only: Some(Operation::CreateDir),
    });
    assert!(refusal(disk).contains("run: chown -R "));
    fs::remove_dir_all(root.path().join("data")).unwrap();
    fs::create_dir_all(root.path().join("data/docker")).unwrap();
    assert!(refusal(Arc::new(RealDisk)).contains("not a roadstead store"));
}

#[tokio::test]
async fn nothing_of_the_store_is_for_others_also_in_a_directory_that_is() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let store = Store::open(root.path());
    store_manifest(&store).await.unwrap();
    download(&store, LAYER).await.unwrap();
    let names = ["LOCK", "roadstead.db", "roadstead.db-wal", "roadstead.db-shm", "blobs"];
    let files = names.map(|name| data.join(name)).into_iter();
    for path in files.chain([blob_path(root.path(), LAYER), blob_path(root.path(), MANIFEST)]) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has {mode:o}", path.display());
    }
    store.finish().await;
}
