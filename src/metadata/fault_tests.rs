//! The writer under faults, and the hot records under concurrency.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::task::TaskTracker;

use super::hot::Key;
use super::testing::{Fault, Plan};
use super::tests::{at, digest, open_at, open_with, proof, repository, revision, tag, tagged};
use super::*;

/// Holds the writer until the returned sender is dropped, so that what is sent meanwhile becomes one group.
async fn hold_writer(store: &Metadata) -> (mpsc::Sender<()>, impl Future<Output = ()> + use<>) {
    let (release, held) = mpsc::channel::<()>();
    let (begun, wait) = tokio::sync::oneshot::channel();
    let handle = store.clone();
    let inspect = async move {
        handle
            .inspect(move |_| {
                begun.send(()).unwrap();
                assert!(held.recv().is_err());
            })
            .await;
    };
    let mut inspect = Box::pin(inspect);
    assert!(futures_util::poll!(&mut inspect).is_pending());
    wait.await.unwrap();
    (release, inspect)
}

#[tokio::test]
async fn an_operation_that_fails_fails_alone() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    let (release, held) = hold_writer(&store).await;
    let (one, two) = (digest("one"), digest("two"));
    let latest = tag("latest");
    let mut first = Box::pin(store.prove(&here, &one, None, proof(1)));
    let mut bad = Box::pin(store.move_tag(&here, &latest, Some(one), "x", at(1)));
    let mut last = Box::pin(store.prove(&here, &two, None, proof(1)));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut bad).is_pending());
    assert!(futures_util::poll!(&mut last).is_pending());
    drop(release);
    held.await;
    assert!(first.await.is_ok());
    assert!(matches!(bad.await, Err(Error::Failed(_))));
    assert!(last.await.is_ok());
    assert!(store.blob(&here, &two).await.unwrap().proof.is_some());
    store.close().await;
}

#[tokio::test]
async fn an_operation_that_the_database_refuses_leaves_nothing_and_its_neighbours_stand() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (release, held) = hold_writer(&store).await;
    // Steps of the group: begin, three operations, commit. The third step is the second operation.
    let plan = Plan { at: 3, lasting: false, fault: Fault::Io };
    store.fail_writes(Some(plan));
    let commits = ["m1", "m2", "m3"].map(|text| {
        let commit = tagged(revision("a", text, &["layer"], 1), text);
        Box::pin(store.commit_revision(commit))
    });
    let [mut first, mut second, mut third] = commits;
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    assert!(futures_util::poll!(&mut third).is_pending());
    drop(release);
    held.await;
    assert!(first.await.is_ok());
    assert!(matches!(second.await, Err(Error::Failed(_))));
    assert!(third.await.is_ok());
    for (text, expected) in [("m1", true), ("m2", false), ("m3", true)] {
        let found = store.revision(&repository("a"), &digest(text)).await;
        assert_eq!(found.unwrap().is_some(), expected);
        let found = store.tag(&repository("a"), &tag(text)).await.unwrap();
        assert_eq!(found.is_some(), expected);
    }
    store.close().await;
}

#[tokio::test]
async fn every_step_of_the_writer_may_fail_and_nothing_is_half_done() {
    for lasting in [false, true] {
        for fault in [Fault::Full, Fault::Io, Fault::Busy] {
            for step in 1.. {
                let root = tempfile::tempdir().unwrap();
                let store = open_at(root.path());
                let (here, latest) = (repository("a"), tag("latest"));
                let commit = |text: &str| tagged(revision("a", text, &["layer"], 5), "latest");
                store.commit_revision(commit("old")).await.unwrap();
                store.fail_writes(Some(Plan { at: step, lasting, fault }));
                let result = store.commit_revision(commit("new")).await;
                let failed = store.failed_writes() > 0;
                assert_eq!(result.is_err(), failed);
                let expected = match fault {
                    Fault::Full => "full",
                    Fault::Io => "failed",
                    Fault::Busy => "busy",
                };
                assert!(result.as_ref().err().is_none_or(|error| error.reason() == expected));
                let now = if failed { "old" } else { "new" };
                for _pass in ["hot", "cold"] {
                    let record = store.tag(&here, &latest).await.unwrap().unwrap();
                    assert_eq!(record.digest, Some(digest(now)));
                    let found = store.revision(&here, &digest("new")).await.unwrap();
                    assert_eq!(found.is_some(), !failed);
                    store.shared().hot.forget(&Key::Tag(here.clone(), latest.clone()));
                }
                // The disk recovers, and so does the writer, without a restart.
                store.fail_writes(None);
                store.commit_revision(commit("new")).await.unwrap();
                assert_eq!(store.timeline(&here, &latest, 9).await.unwrap().len(), 2);
                store.close().await;
                if !failed {
                    assert!(step > 3, "only {step} steps were counted");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_group_whose_commit_fails_is_tried_one_by_one() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    let (release, held) = hold_writer(&store).await;
    // Begin, two operations, and then the commit.
    store.fail_writes(Some(Plan { at: 4, lasting: false, fault: Fault::Full }));
    let (one, two) = (digest("one"), digest("two"));
    let mut first = Box::pin(store.prove(&here, &one, None, proof(1)));
    let mut second = Box::pin(store.prove(&here, &two, None, proof(1)));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(release);
    held.await;
    assert_eq!((first.await, second.await), (Ok(()), Ok(())));
    assert_eq!(store.failed_writes(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_full_database_answers_and_takes_writes_again_when_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    // A real SQLITE_FULL, from inside SQLite: no more pages than there are now.
    let limit = |pages: i64| {
        store.inspect(move |rows| {
            rows.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
                .unwrap()
        })
    };
    limit(1).await;
    let mut stored = Vec::new();
    let mut refused = 0;
    for number in 0..2_000 {
        let digest = digest(&format!("blob {number}"));
        match store.prove(&here, &digest, None, proof(1)).await {
            Ok(()) => stored.push(digest),
            Err(error) => {
                assert_eq!(error, Error::Full);
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
        }
    }
    assert_eq!(refused, 3, "the limit was never reached");
    store.confirm_tag(&here, &tag("latest"), at(9));
    limit(1_000_000).await;
    for digest in &stored {
        assert!(store.blob(&here, digest).await.unwrap().proof.is_some());
    }
    store.prove(&here, &digest("after"), None, proof(1)).await.unwrap();
    store.flush().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn pending_entries_wait_for_the_disk_to_recover() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    store.commit_revision(tagged(revision("a", "m1", &[], 1), "latest")).await.unwrap();
    store.fail_writes(Some(Plan { at: 1, lasting: true, fault: Fault::Full }));
    store.confirm_tag(&here, &latest, at(9));
    assert_eq!(store.flush().await, Err(Error::Full));
    store.shared().hot.forget(&Key::Tag(here.clone(), latest.clone()));
    let record = store.tag(&here, &latest).await.unwrap().unwrap();
    assert_eq!(record.confirmed, at(9));
    store.fail_writes(None);
    store.flush().await.unwrap();
    store.close().await;
    let store = open_at(root.path());
    let record = store.tag(&here, &latest).await.unwrap().unwrap();
    assert_eq!(record.confirmed, at(9));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_never_sees_less_than_an_answered_write() {
    const MOVES: i64 = 300;
    let root = tempfile::tempdir().unwrap();
    // So few hot records that loads race with replacements all the time.
    let mut settings = Settings::new(root.path().join("roadstead.db"));
    settings.hot_records_max = 2;
    let store = open_with(settings);
    let (here, latest) = (repository("a"), tag("latest"));
    let (answered, done) = (Arc::new(AtomicI64::new(-1)), Arc::new(AtomicBool::new(false)));
    let tasks = TaskTracker::new();
    let mut readers = FuturesUnordered::new();
    for _ in 0..4 {
        let (store, here, latest) = (store.clone(), here.clone(), latest.clone());
        let (answered, done) = (Arc::clone(&answered), Arc::clone(&done));
        readers.push(tasks.spawn(async move {
            let (mut last, mut reads) = (-1, 0_u64);
            while !done.load(Ordering::SeqCst) {
                let floor = answered.load(Ordering::SeqCst);
                let record = store.tag(&here, &latest).await.unwrap();
                let moved = record.map_or(-1, |record| record.moved.as_millis());
                assert!(moved >= floor, "saw {moved} after {floor} was answered");
                assert!(moved >= last, "went back from {last} to {moved}");
                last = moved;
                reads += 1;
                if reads.is_multiple_of(3) {
                    store.shared().hot.forget(&Key::Tag(here.clone(), latest.clone()));
                }
                tokio::task::yield_now().await;
            }
            reads
        }));
    }
    for number in 0..MOVES {
        let text = if number % 2 == 0 { "even" } else { "odd" };
        let commit = tagged(revision("a", text, &["layer"], number), "latest");
        store.commit_revision(commit).await.unwrap();
        answered.store(number, Ordering::SeqCst);
    }
    done.store(true, Ordering::SeqCst);
    while let Some(reads) = readers.next().await {
        assert!(reads.unwrap() > 0);
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_and_more_than_the_queue_holds_are_all_answered() {
    const WRITERS: usize = 3_000;
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    let writes: FuturesUnordered<_> = (0..WRITERS)
        .map(|number| {
            let (store, here) = (store.clone(), here.clone());
            async move {
                let digest = digest(&format!("blob {number}"));
                store.set_present(&digest, 1).await?;
                store.prove(&here, &digest, None, proof(1)).await
            }
        })
        .collect();
    let results: Vec<_> = writes.collect().await;
    assert!(results.iter().all(Result::is_ok));
    let usage = store.usage().await.unwrap();
    assert_eq!(usage.objects, WRITERS as u64);
    store.close().await;
}

#[tokio::test]
async fn an_end_that_cannot_be_written_counts_all_the_same_and_is_written_later() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    store.commit_revision(tagged(revision("a", "m1", &["l1"], 1), "latest")).await.unwrap();
    store.set_visibility(&here, true, at(1)).await.unwrap();
    for fault in [Fault::Full, Fault::Io, Fault::Busy] {
        store.fail_writes(Some(Plan { at: 1, lasting: true, fault }));
        assert!(store.move_tag(&here, &latest, None, "up", at(5)).await.is_err());
        assert!(store.set_visibility(&here, false, at(5)).await.is_err());
        assert!(store.set_absent(&digest("m1"), false).await.is_err());
    }
    // From memory, from the rows, and with a confirmation that came before the end.
    for _pass in ["hot", "read"] {
        let record = store.tag(&here, &latest).await.unwrap().unwrap();
        assert_eq!((record.digest, record.moved), (None, at(5)));
        assert_eq!(store.visibility(&here).await.unwrap(), Some((false, at(5))));
        assert!(!store.object(&digest("m1")).await.unwrap().unwrap().present);
        assert!(!store.revision(&here, &digest("m1")).await.unwrap().unwrap().present);
        assert_eq!(store.repositories(None, 9, true).await.unwrap(), []);
        assert!(!store.peek(&digest("m1")).await.unwrap().unwrap().present);
        let absent = store.absent_among(vec![digest("m1"), digest("never seen")]).await.unwrap();
        assert_eq!(absent, [digest("m1"), digest("never seen")]);
        store.shared().hot.forget(&Key::Tag(here.clone(), latest.clone()));
        store.shared().hot.forget(&Key::Object(digest("m1")));
        store.shared().hot.forget(&Key::Visibility(here.clone()));
    }
    assert!(store.flush().await.is_err(), "they still wait");
    store.fail_writes(None);
    store.flush().await.unwrap();
    store.close().await;
    let store = open_at(root.path());
    let record = store.tag(&here, &latest).await.unwrap().unwrap();
    assert_eq!((record.digest, record.moved), (None, at(5)));
    assert_eq!(store.visibility(&here).await.unwrap(), Some((false, at(5))));
    assert!(!store.object(&digest("m1")).await.unwrap().unwrap().present);
    store.close().await;
}

#[tokio::test]
async fn a_later_write_of_the_same_fact_overrules_an_end_that_waits() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    store.commit_revision(tagged(revision("a", "m1", &[], 1), "latest")).await.unwrap();
    store.fail_writes(Some(Plan { at: 1, lasting: true, fault: Fault::Full }));
    assert!(store.move_tag(&here, &latest, None, "up", at(5)).await.is_err());
    assert!(store.set_absent(&digest("m1"), false).await.is_err());
    // One that fails overrules nothing.
    assert!(store.set_present(&digest("m1"), 2).await.is_err());
    assert!(!store.object(&digest("m1")).await.unwrap().unwrap().present);
    store.fail_writes(None);
    store.commit_revision(tagged(revision("a", "m1", &[], 9), "latest")).await.unwrap();
    store.flush().await.unwrap();
    let record = store.tag(&here, &latest).await.unwrap().unwrap();
    assert_eq!(record.digest, Some(digest("m1")));
    assert!(store.object(&digest("m1")).await.unwrap().unwrap().present);
    assert_eq!(store.absent_among(vec![digest("m1")]).await.unwrap(), []);
    store.close().await;
}
