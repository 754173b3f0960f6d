//! kill -9 at random moments.
//!
//! The test starts itself as a child that stores content in a loop and says aloud what was answered; the parent kills it, starts
//! again on the same directory, and checks that all that was said is there.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rand::RngExt;
use tokio_util::sync::CancellationToken;

use super::fault_tests::assert_consistent;
use super::tests::*;
use super::{Content, Haste, Left};
use crate::clock::Timestamp;
use crate::oci::Digest;

/// How often the child is killed.
const KILLS: usize = 20;
/// Lines after which the child is killed at the latest.
const LINES_MAX: usize = 12;
/// The name by which the child's part is found in the test binary.
const CHILD: &str = "content::crash_tests::child_that_stores_until_it_is_killed";
/// The same of the child whose content leaves again.
const LEAVING_CHILD: &str = "content::crash_tests::child_whose_content_leaves_until_it_is_killed";
/// Begins the child's lines, among those of the test harness.
const MARK: &str = "stored ";

/// Layer `number`; sizes from a few bytes to some hundred KiB.
fn layer(number: u64) -> Vec<u8> {
    let size = usize::try_from(number * 7919 % 300_000).unwrap();
    let mut bytes = format!("layer {number} ").into_bytes();
    bytes.resize(bytes.len() + size, u8::try_from(number % 251).unwrap());
    bytes
}

fn manifest(number: u64) -> Vec<u8> {
    format!("manifest {number}").into_bytes()
}

/// What a child is to do, from its standard input: the number to begin with, and the store. `None`: nobody told it.
fn order() -> Option<(u64, Store)> {
    let mut order = String::new();
    std::io::stdin().read_line(&mut order).unwrap();
    let (first, root) = order.trim().split_once(' ')?;
    Some((first.parse().unwrap(), Store::open(Path::new(root))))
}

/// Not a test by itself: the parent runs it by name and writes the directory to its standard input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of kill_9_at_any_moment_is_harmless"]
async fn child_that_stores_until_it_is_killed() {
    let Some((first, store)) = order() else {
        return;
    };
    for number in first.. {
        let layer = layer(number);
        let manifest = manifest(number);
        let commit = commit_of(&manifest, &[&layer], "latest");
        let (revision, blob) = futures_util::future::join(
            store.store_revision(commit, manifest.into()),
            download(&store, &layer),
        )
        .await;
        revision.unwrap();
        blob.unwrap();
        println!("{MARK}{number}");
    }
}

/// Not a test by itself, as the other. Of each image but the newest, one in three loses its layer, and the others go whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of kill_9_while_content_leaves_is_harmless"]
async fn child_whose_content_leaves_until_it_is_killed() {
    let Some((first, store)) = order() else {
        return;
    };
    for number in first.. {
        let (bytes, layer) = (manifest(number), layer(number));
        let commit = commit_of(&bytes, &[&layer], "latest");
        store.store_revision(commit, bytes.into()).await.unwrap();
        drop(download(&store, &layer).await.unwrap());
        if let Some(old) = number.checked_sub(1) {
            leave(&store, old).await;
        }
        println!("{MARK}{number}");
    }
}

fn is_only_evicted(number: u64) -> bool {
    number.is_multiple_of(3)
}

async fn leave(store: &Content, number: u64) {
    let digest = Digest::sha256_of(&layer(number));
    if is_only_evicted(number) {
        store.remove(&digest).await.unwrap();
        return;
    }
    let whole = Digest::sha256_of(&manifest(number));
    store.metadata().delete_revision(&repository("a"), &whole).await.unwrap();
    for digest in [whole, digest] {
        assert_ne!(store.collect(&digest, 0).await.unwrap(), Left::Stays);
    }
}

struct Killed {
    child: Child,
    lines: Receiver<u64>,
}

impl Killed {
    fn start(child: &str, root: &Path, first: u64) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(["--ignored", "--exact", child, "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{first} {}", root.display()).unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness may have left its own words on the line.
                let number = line.split(MARK).nth(1).and_then(|rest| rest.parse().ok());
                if let Some(number) = number
                    && sender.send(number).is_err()
                {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Kills after a random number of lines and a random part of the next; returns the last number that was said.
    fn kill(mut self) -> Option<u64> {
        let mut random = rand::rng();
        let lines = random.random_range(0..LINES_MAX);
        let mut last = None;
        for _ in 0..lines {
            last =
                Some(self.lines.recv_timeout(Duration::from_secs(60)).expect("the child stores"));
        }
        let pause = Duration::from_micros(random.random_range(0..20_000));
        if let Ok(number) = self.lines.recv_timeout(pause) {
            last = Some(number);
        }
        self.end();
        // What it said before it died counts.
        self.lines.iter().last().or(last)
    }
}

impl Drop for Killed {
    /// No child outlives a test that fails.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn kill_9_at_any_moment_is_harmless() {
    let root = tempfile::tempdir().unwrap();
    let mut next = 0;
    let mut stored = 0;
    for _kill in 0..KILLS {
        let last = Killed::start(CHILD, root.path(), next).kill();
        let store = Store::open(root.path());
        assert_consistent(root.path(), &store).await;
        let here = repository("a");
        for number in next..last.map_or(next, |last| last + 1) {
            let found = read_blob(&store, &layer(number)).await;
            assert!(found.unwrap() == layer(number), "layer {number}");
            let digest = Digest::sha256_of(&manifest(number));
            let found = store.manifest(&here, &digest).await.unwrap().unwrap();
            assert_eq!(found.bytes, manifest(number));
            stored += 1;
        }
        // The tag is where the last answer left it, or one further.
        let tag = store.metadata().tag(&here, &"latest".parse().unwrap()).await.unwrap();
        if let Some(last) = last {
            let digest = tag.unwrap().digest.unwrap();
            let allowed = [last, last + 1].map(|number| Digest::sha256_of(&manifest(number)));
            assert!(allowed.contains(&digest));
            next = last + 1;
        }
        store.finish().await;
    }
    assert!(stored > KILLS, "only {stored} were stored");
}

#[tokio::test]
async fn kill_9_while_content_leaves_is_harmless() {
    let root = tempfile::tempdir().unwrap();
    let (mut next, mut said) = (0, 0);
    for _kill in 0..KILLS {
        let last = Killed::start(LEAVING_CHILD, root.path(), next).kill();
        let store = Store::open(root.path());
        assert_consistent(root.path(), &store).await;
        // The walk takes in what was only on its way, and takes away what somebody wanted gone.
        let walked = store.adopt_orphans(Haste::Full, &|_| (), &CancellationToken::new()).await;
        assert_eq!(walked.unwrap().damaged, 0);
        assert_eq!(store.count_orphans(&CancellationToken::new()).await.unwrap(), 0);
        let rows = store.metadata();
        loop {
            let waiting = rows.doomed(Timestamp::from_millis(i64::MAX), 99).await.unwrap();
            if waiting.is_empty() {
                break;
            }
            for doomed in waiting {
                assert_ne!(store.collect(&doomed.digest, 0).await.unwrap(), Left::Stays);
            }
        }
        if let Some(last) = last {
            for number in next..last {
                let here = read_blob(&store, &layer(number)).await.is_some();
                assert!(!here, "layer {number} of {last}");
                let digest = Digest::sha256_of(&manifest(number));
                let kept = rows.object(&digest).await.unwrap().is_some_and(|row| row.present);
                assert_eq!(kept, is_only_evicted(number), "manifest {number} of {last}");
            }
            said += last - next;
            next = last + 1;
            // As the child would have done.
            leave(&store, last).await;
        }
        assert_consistent(root.path(), &store).await;
        store.finish().await;
    }
    assert!(said > 10, "only {said} left");
}
