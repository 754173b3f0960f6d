//! The writer alone: over a disk that a test lets fail, fed by hand.

use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::time::timeout;

use super::super::queue::{Sender, queue};
use super::*;
use crate::blobs::RealDisk;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::clock::{Clock, SystemClock};
use crate::content::{Content, MinFree, Settings};
use crate::oci::Algorithm;

const MIB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// A store over a disk that can fail.
struct Scene {
    content: Content,
    disk: Arc<FaultyDisk>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    writers: Writers,
    root: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let tasks = TaskTracker::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let mut settings = Settings::new(root.path().join("data"));
        settings.min_free = MinFree::Bytes(1);
        let (on, tracker) = (Arc::clone(&disk) as _, tasks.clone());
        let content =
            Content::open_on(on, settings, clock, tracker, &mut Registry::default()).unwrap();
        let (shutdown, writers) = (CancellationToken::new(), Writers::default());
        Self { content, disk, tasks, shutdown, writers, root }
    }

    /// A writer that waits for the bytes of `whole`.
    async fn writer(&self, whole: &[u8]) -> (Arc<Running>, Writer) {
        let (digest, size) = (Digest::of(Algorithm::Sha256, whole), length(whole));
        let stage = self.content.stage(&digest, Some(size)).await.unwrap();
        let running = Running::new();
        let mut covered = IntervalSet::default();
        stage.present().iter().for_each(|part| covered.insert(part.start, part.end));
        let writer = Writer {
            stage,
            digest,
            covered,
            total: Some(size),
            running: Arc::clone(&running),
            writers: self.writers.clone(),
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        };
        (running, writer)
    }

    async fn finish(self) {
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.unwrap();
    }
}

/// Bytes in which no two places near each other look alike.
fn bytes(count: usize) -> Vec<u8> {
    let unit: Vec<u8> = (0..=250).collect();
    let mut bytes = unit.repeat(count / unit.len() + 1);
    bytes.truncate(count);
    bytes
}

/// Sends `whole[range]` in chunks of `step` bytes; `false` if the writer has gone.
async fn feed(sender: &Sender, whole: &[u8], range: std::ops::Range<usize>, step: usize) -> bool {
    for start in range.clone().step_by(step) {
        let end = range.end.min(start + step);
        let chunk = Bytes::copy_from_slice(&whole[start..end]);
        let message = Message::Chunk(u64::try_from(start).unwrap(), chunk);
        if sender.send(message).await.is_err() {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn chunks_of_any_size_in_any_order_become_the_whole() {
    for step in [1000, 16 * 1024, 400 * 1024, 3 * MIB] {
        let scene = Scene::new();
        let whole = bytes(5 * MIB + 12);
        let (running, writer) = scene.writer(&whole).await;
        let (sender, receiver) = queue();
        let writing = scene.tasks.spawn(writer.run(receiver));
        // The end first, which is hashed from the disk when its turn comes; then the beginning.
        assert!(feed(&sender, &whole, 4 * MIB..whole.len(), step).await);
        assert!(feed(&sender, &whole, 0..4 * MIB, step).await);
        sender.send(Message::End(length(&whole))).await.unwrap();
        let written = timeout(PATIENCE, writing).await.unwrap().unwrap();
        let Written::Whole { file, length: found, digest } = written else {
            unreachable!("{step}")
        };
        assert_eq!((found, digest), (length(&whole), Digest::of(Algorithm::Sha256, &whole)));
        assert_eq!(running.flight.hashed().map(|(hashed, _)| hashed), Some(found));
        let stage = file.settle().await.unwrap();
        let mut stored = vec![0; whole.len()];
        stage.read_at(0, &mut stored).unwrap();
        assert!(stored == whole, "{step}");
        drop(stage);
        scene.finish().await;
    }
}

/// One thread for all of them: a writer that waits for its upstream holds none.
#[test]
fn downloads_that_wait_hold_no_thread() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).max_blocking_threads(1).enable_all().build().unwrap().block_on(
        async {
            let scene = Scene::new();
            let mut flights = Vec::new();
            for number in 0..5 {
                let whole = bytes(MIB + 4 * number);
                let (_, writer) = scene.writer(&whole).await;
                let (sender, receiver) = queue();
                let writing = scene.tasks.spawn(writer.run(receiver));
                assert!(feed(&sender, &whole, 0..MIB / 2, 64 * 1024).await);
                flights.push((whole, sender, writing));
            }
            for (whole, sender, writing) in flights {
                let feeding = feed(&sender, &whole, MIB / 2..whole.len(), 64 * 1024);
                assert!(timeout(PATIENCE, feeding).await.unwrap());
                sender.send(Message::End(length(&whole))).await.unwrap();
                let written = timeout(PATIENCE, writing).await.unwrap().unwrap();
                assert!(matches!(written, Written::Whole { .. }));
            }
            scene.finish().await;
        },
    );
}

/// Whichever write fails, everything that was published is in the file, and was hashed.
#[tokio::test]
async fn any_write_may_fail() {
    let whole = bytes(6 * MIB);
    for at in 1.. {
        let scene = Scene::new();
        let (running, writer) = scene.writer(&whole).await;
        let file = writer.stage.file();
        let (sender, receiver) = queue();
        running.flight.start(
            crate::span::ContentFile::new(Arc::clone(&file), Some(length(&whole))),
            Some(length(&whole)),
            IntervalSet::default(),
            super::super::claims::Claims::new(None, IntervalSet::default(), None),
        );
        let only = Some(Operation::Write);
        scene.disk.fail(Plan { at, lasting: false, fault: Fault::Io, only });
        let writing = scene.tasks.spawn(writer.run(receiver));
        let fed = feed(&sender, &whole, 0..whole.len(), 100_000).await;
        if fed {
            // It may fail after the last chunk was queued.
            drop(sender.send(Message::End(length(&whole))).await);
        }
        match timeout(PATIENCE, writing).await.unwrap().unwrap() {
            Written::Whole { file, .. } => {
                drop(file);
                assert_eq!(scene.disk.injected(), 0);
                assert!(at > 4, "a write for each chunk, or none at all: {at}");
                scene.finish().await;
                return;
            }
            Written::Broken(prefix) => {
                let published = running.flight.published();
                assert_eq!(published, prefix.length());
                let mut stored = vec![0; usize::try_from(published).unwrap()];
                std::os::unix::fs::FileExt::read_exact_at(&*file, &mut stored, 0).unwrap();
                assert!(stored == whole[..stored.len()]);
                assert_eq!(prefix.finish(), Digest::of(Algorithm::Sha256, &stored));
            }
            Written::Unfinished => unreachable!("{at}"),
        }
        scene.finish().await;
    }
}

/// A checkpoint runs beside the writes; its failure ends the writer, and nothing of the file is believed any more.
#[tokio::test]
async fn a_checkpoint_that_fails_ends_the_writer() {
    let scene = Scene::new();
    let whole = bytes(9 * MIB);
    let (_, writer) = scene.writer(&whole).await;
    let (digest, (sender, receiver)) = (writer.digest, queue());
    let only = Some(Operation::SyncData);
    scene.disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only });
    let writing = scene.tasks.spawn(writer.run(receiver));
    let checkpoint = usize::try_from(CHECKPOINT_BYTES).unwrap();
    assert!(feed(&sender, &whole, 0..checkpoint, MIB).await);
    // The writer looks at it when it has written more.
    let mut at = checkpoint;
    while at < whole.len() && feed(&sender, &whole, at..at + 4, 4).await {
        while scene.disk.injected() == 0 {
            tokio::task::yield_now().await;
        }
        at += 4;
    }
    assert!(at < whole.len());
    let written = timeout(PATIENCE, writing).await.unwrap().unwrap();
    assert!(matches!(written, Written::Broken(_)));
    scene.disk.heal();
    assert_eq!(scene.content.unfinished(&digest).await.unwrap(), None);
    scene.finish().await;
}

/// What a download that is broken off has written is continued by the next one, and hashed from the disk.
#[tokio::test]
async fn what_is_left_is_continued() {
    let scene = Scene::new();
    let whole = bytes(20 * MIB);
    let (_, writer) = scene.writer(&whole).await;
    let (digest, (sender, receiver)) = (writer.digest, queue());
    let writing = scene.tasks.spawn(writer.run(receiver));
    assert!(feed(&sender, &whole, 0..17 * MIB, 300_000).await);
    drop(sender);
    let written = timeout(PATIENCE, writing).await.unwrap().unwrap();
    assert!(matches!(written, Written::Unfinished));
    let left = scene.content.unfinished(&digest).await.unwrap().unwrap();
    assert_eq!(left.present, vec![0..17 * 1024 * 1024]);
    let (_, writer) = scene.writer(&whole).await;
    let (sender, receiver) = queue();
    let writing = scene.tasks.spawn(writer.run(receiver));
    assert!(feed(&sender, &whole, 17 * MIB..whole.len(), 300_000).await);
    sender.send(Message::End(length(&whole))).await.unwrap();
    let written = timeout(PATIENCE, writing).await.unwrap().unwrap();
    let Written::Whole { file, length: size, digest: found } = written else { unreachable!() };
    assert_eq!(found, digest);
    let stage = file.settle().await.unwrap();
    scene.content.commit(stage, size).await.unwrap();
    let partial = scene.root.path().join("data").join("partial");
    assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0);
    scene.finish().await;
}

/// A writer whose bytes are of no use leaves nothing, however much it has written.
#[tokio::test]
async fn what_is_worth_nothing_goes() {
    let scene = Scene::new();
    let whole = bytes(20 * MIB);
    let (_, writer) = scene.writer(&whole).await;
    let (sender, receiver) = queue();
    let writing = scene.tasks.spawn(writer.run(receiver));
    assert!(feed(&sender, &whole, 0..17 * MIB, 300_000).await);
    sender.send(Message::Discard).await.unwrap();
    let written = timeout(PATIENCE, writing).await.unwrap().unwrap();
    assert!(matches!(written, Written::Unfinished));
    let partial = scene.root.path().join("data").join("partial");
    scene.finish().await;
    assert!(!partial.exists() || std::fs::read_dir(partial).unwrap().count() == 0);
}
