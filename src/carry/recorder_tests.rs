//! The recorder over a real store: one row each, bounded waiting while rows fail, ends in every order.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;

use super::super::metrics::Metrics;
use super::super::record::RecordOrder;
use super::super::service::{Carry, Parts};
use super::super::settings::Settings;
use super::super::shelf::{Shelf, image};
use super::*;
use crate::clock::{ManualClock, Timestamp};
use crate::metadata::SetKind;
use crate::metadata::testing::{Fault, Plan};
use crate::oci::{PlatformPattern, SetName};
use crate::registry::{Registry, desk};

struct Desk {
    shelf: Shelf,
    recorder: Recorder,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Desk {
    fn new() -> Self {
        let (shelf, tasks, shutdown) = (Shelf::new(), TaskTracker::new(), CancellationToken::new());
        let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(5_000)));
        let recorder =
            Recorder::new(shelf.content.metadata().clone(), clock, tasks.clone(), shutdown.clone());
        Self { shelf, recorder, tasks, shutdown }
    }

    async fn begin(&self, name: &str, filter: &str) -> i64 {
        let metadata = self.shelf.content.metadata();
        let name = name.parse().unwrap();
        let set = metadata.add_set(name, SetKind::Record, filter.to_owned()).await.unwrap();
        let id = set.unwrap().id;
        assert!(self.recorder.begin(id, filter.parse().unwrap()));
        id
    }

    fn note(&self, tag: Option<&str>, digest: &Digest) {
        let tag = tag.map(|tag| tag.parse().unwrap());
        let (client, repository) = ([10, 0, 0, 1].into(), &self.shelf.key);
        self.recorder.note(&Served { client, repository, tag: tag.as_ref(), digest });
    }

    async fn members(&self, id: i64) -> Vec<SetMember> {
        self.shelf.content.metadata().set_members(id, None, 100).await.unwrap()
    }

    /// Waits until nothing is written any more.
    async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    async fn close(self) {
        self.settled().await;
        self.shelf.close().await;
    }
}

#[tokio::test]
async fn what_is_noted_gets_one_row_and_what_has_no_revision_is_told() {
    let desk = Desk::new();
    let paper = image(b"config", &[b"layer"]);
    desk.shelf.put(&paper, Some("v1")).await;
    let digest = paper.digest();
    assert!(!desk.recorder.is_recording());
    desk.note(Some("v1"), &digest);
    let (all, hub) = (desk.begin("all", "").await, desk.begin("hub", "upstream=docker.io").await);
    let other = desk.begin("other", "client=192.168.0.0/16").await;
    assert!(desk.recorder.is_recording());
    for _round in 0..3 {
        desk.note(Some("v1"), &digest);
        desk.note(None, &digest);
    }
    let stranger = Digest::sha256_of(b"never stored");
    desk.note(Some("v2"), &stranger);
    desk.settled().await;
    for (id, count) in [(all, 2), (hub, 2), (other, 0)] {
        assert_eq!(desk.members(id).await.len(), count);
    }
    let left = desk.recorder.end(all);
    assert_eq!(left.members.iter().map(|one| one.digest).collect::<Vec<_>>(), [stranger]);
    assert_eq!(left.answers, 0);
    assert!(desk.recorder.is_recording(), "two others run");
    desk.recorder.end(hub);
    assert!(desk.recorder.end(other).members.is_empty());
    assert!(!desk.recorder.is_recording());
    assert!(desk.recorder.end(other).members.is_empty(), "it has ended");
    desk.note(Some("v3"), &digest);
    desk.close().await;
}

#[tokio::test]
async fn rows_that_fail_wait_within_bounds_and_are_written_when_they_can_be() {
    let desk = Desk::new();
    let paper = image(b"config", &[b"layer"]);
    desk.shelf.put(&paper, None).await;
    let id = desk.begin("failing", "").await;
    let metadata = desk.shelf.content.metadata();
    metadata.fail_writes(Some(Plan { at: 1, lasting: true, fault: Fault::Full }));
    for at in 0..WAITING_MAX + 7 {
        desk.note(Some(&format!("v{at}")), &paper.digest());
    }
    let (waiting, answers) = {
        let state = desk.recorder.0.state();
        (state.recordings[0].waiting.len(), state.recordings[0].left.answers)
    };
    assert_eq!((waiting, answers), (WAITING_MAX, 7));
    metadata.fail_writes(None);
    // Those who were not noted are noted when they are asked for again.
    desk.settled().await;
    desk.note(Some("v10003"), &paper.digest());
    desk.settled().await;
    let sets = metadata.sets().await.unwrap();
    assert_eq!(sets[0].members, WAITING_MAX as u64 + 1);
    assert_eq!(desk.recorder.end(id).answers, 7);
    desk.close().await;
}

#[tokio::test]
async fn the_program_may_end_while_rows_fail() {
    let desk = Desk::new();
    let paper = image(b"config", &[b"layer"]);
    desk.shelf.put(&paper, None).await;
    let id = desk.begin("failing", "").await;
    let metadata = desk.shelf.content.metadata();
    metadata.fail_writes(Some(Plan { at: 1, lasting: true, fault: Fault::Full }));
    desk.note(Some("v1"), &paper.digest());
    desk.shutdown.cancel();
    desk.settled().await;
    metadata.fail_writes(None);
    assert_eq!(desk.recorder.end(id).members.len(), 1);
    desk.close().await;
}

#[tokio::test]
async fn recordings_have_a_limit_and_ends_are_forgotten() {
    let desk = Desk::new();
    for at in 0..RECORDINGS_MAX {
        desk.begin(&format!("r{at}"), "").await;
    }
    let many = i64::try_from(RECORDINGS_MAX).unwrap() + 1;
    assert!(!desk.recorder.begin(many, Filter::default()));
    assert!(desk.recorder.begin(1, Filter::default()), "it runs");
    desk.recorder.end(1);
    let platforms = vec![PlatformPattern::of_this_machine()];
    assert!(desk.recorder.begin(many, Filter { platforms, ..Filter::default() }));
    assert_eq!(desk.recorder.count(), RECORDINGS_MAX);
    desk.close().await;
}

/// A service whose registry has nothing, and its tasks.
fn idle_carry() -> (Carry, TaskTracker) {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::starting_at(Timestamp::from_millis(5_000)));
    let registry = Arc::new(Registry::serving_nothing());
    let desk = desk::Desk::new(registry, Arc::clone(&clock), desk::Settings::default());
    let (settings, metrics) = (Settings::default(), Metrics::default());
    let parts = Parts { desk, clock, tasks: tasks.clone(), shutdown, settings, metrics };
    (Carry::new(parts), tasks)
}

#[tokio::test]
async fn what_is_in_no_row_stays_though_who_ends_the_recording_goes_at_once() {
    let (carry, tasks) = idle_carry();
    let (clients, upstreams) = (Vec::new(), Vec::new());
    let name: SetName = "left".parse().unwrap();
    carry.record(RecordOrder { name: name.clone(), clients, upstreams }).await.unwrap();
    let id = carry.recorder().0.state().recordings[0].id;
    let (shelf, digest) = (Shelf::new(), Digest::sha256_of(b"no row knows it"));
    let client = [10, 0, 0, 1].into();
    carry.recorder().note(&Served { client, repository: &shelf.key, tag: None, digest: &digest });
    {
        let mut stopping = pin!(carry.stop_record(&name, Vec::new(), false));
        let begun = poll_fn(|cx| Poll::Ready(stopping.as_mut().poll(cx))).await;
        assert!(begun.is_pending());
    }
    tasks.close();
    tasks.wait().await;
    assert!(!carry.recorder().is_recording());
    assert_eq!(carry.recorder().end(id).members.len(), 1, "the next end tells it");
}

#[tokio::test]
async fn a_recording_ends_with_its_set_though_nobody_waits_for_that() {
    let (carry, tasks) = idle_carry();
    let (clients, upstreams) = (Vec::new(), Vec::new());
    let name = "left".parse().unwrap();
    carry.record(RecordOrder { name, clients, upstreams }).await.unwrap();
    assert!(carry.recorder().is_recording());
    {
        let mut removing = pin!(carry.remove_set("left"));
        // Its row goes while nobody looks, and then whoever asked goes too.
        'gone: while poll_fn(|cx| Poll::Ready(removing.as_mut().poll(cx))).await.is_pending() {
            for _ in 0..200 {
                if carry.sets().await.unwrap().is_empty() {
                    break 'gone;
                }
            }
        }
    }
    tasks.close();
    tasks.wait().await;
    assert!(!carry.recorder().is_recording(), "nothing records into a set that is gone");
}
