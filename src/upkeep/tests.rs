//! The worker and the jobs on a real store with a held clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::blobs::{Disk, RealDisk};
use crate::clock::{ManualClock, Timestamp};
use crate::content::{self, Content, MinFree};
use crate::oci::Digest;

/// A test that waits longer than this for an event has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(86_400);

/// A store with upkeep over it.
pub(super) struct House {
    dir: TempDir,
    pub(super) clock: ManualClock,
    pub(super) content: Content,
    pub(super) upkeep: Upkeep,
    registry: Registry,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl House {
    pub(super) fn new(settings: Settings) -> Self {
        Self::on(Arc::new(RealDisk), settings)
    }

    pub(super) fn on(disk: Arc<dyn Disk>, settings: Settings) -> Self {
        let dir = TempDir::new().unwrap();
        let clock = ManualClock::starting_at(Timestamp::from_millis(1_795_305_600_000));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let mut registry = Registry::default();
        let mut store = content::Settings::new(dir.path().join("data"));
        store.min_free = MinFree::Bytes(0);
        let held = Arc::new(clock.clone());
        let content =
            Content::open_on(disk, store, Arc::clone(&held) as _, tasks.clone(), &mut registry)
                .unwrap();
        let parts = Parts {
            content: content.clone(),
            clock: held,
            tasks: tasks.clone(),
            shutdown: stop.clone(),
            settings,
        };
        let upkeep = Upkeep::new(parts, &mut registry);
        Self { dir, clock, content, upkeep, registry, tasks, stop }
    }

    pub(super) async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256_of(bytes);
        self.content.put(&digest, Bytes::copy_from_slice(bytes)).await.unwrap();
        digest
    }

    /// Two hundred objects without files: more findings than the queue of a job holds.
    async fn fill_with_missing(&self) {
        for number in 0..200_u32 {
            let digest = self.put(&number.to_be_bytes()).await;
            fs::remove_file(self.file(&digest)).unwrap();
        }
    }

    pub(super) fn file(&self, digest: &Digest) -> PathBuf {
        self.data().join("blobs/sha256").join(digest.hex())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The metrics that look like this.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has at least this value.
    pub(super) async fn reaches(&self, name: &str, value: f64) {
        let reached = async {
            while self.metric(name) < value {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let found = timeout(PATIENCE, reached).await;
        assert!(found.is_ok(), "{name} is {}, not {value}", self.metric(name));
    }

    /// Ends everything and looks whether anything is left.
    pub(super) async fn finish(self) -> TempDir {
        self.stop.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.expect("everything ends when told to");
        self.content.close().await;
        self.dir
    }
}

/// Changes one byte and keeps the time of the last change, as decay does.
fn damage(file: &Path) {
    let modified = fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
    fs::File::options().write(true).open(file).unwrap().set_modified(modified).unwrap();
}

/// Runs a job to its end.
pub(super) async fn story(house: &House, kind: JobKind) -> Vec<Event> {
    let (mut job, mut events) = (house.upkeep.begin(kind).await.unwrap(), Vec::new());
    while let Some(event) = timeout(PATIENCE, job.next()).await.expect("the story goes on") {
        events.push(event);
    }
    events
}

pub(super) fn report(events: &[Event]) -> Report {
    match events.last() {
        Some(Event::Ended(report)) => *report,
        other => panic!("ended with {other:?}"),
    }
}

const SOUND: &str = "scrub_objects_total{result=\"sound\"}";
const DAMAGED: &str = "scrub_objects_total{result=\"damaged\"}";
const UNREADABLE: &str = "scrub_objects_total{result=\"unreadable\"}";
const MISSING: &str = "scrub_objects_total{result=\"missing\"}";

#[tokio::test]
async fn the_scrub_reads_what_is_due_and_finds_damage() {
    let house = House::new(Settings::default());
    let (sound, bad, gone) = (
        house.put(b"sound content").await,
        house.put(b"bad content").await,
        house.put(b"gone").await,
    );
    damage(&house.file(&bad));
    fs::remove_file(house.file(&gone)).unwrap();
    house.upkeep.start();
    house.clock.advance(31 * DAY);
    house.upkeep.wake();
    house.reaches(SOUND, 1.0).await;
    house.reaches(DAMAGED, 1.0).await;
    house.reaches(MISSING, 1.0).await;
    for digest in [bad, gone] {
        assert!(!house.content.metadata().object(&digest).await.unwrap().unwrap().present);
    }
    assert!(house.content.metadata().object(&sound).await.unwrap().unwrap().present);
    let put_aside = house.data().join("quarantine").join(format!("sha256-{}", bad.hex()));
    assert!(put_aside.exists() && !house.file(&bad).exists());

    // What was verified just now is left alone until half of the period is over.
    house.clock.advance(14 * DAY);
    house.upkeep.wake();
    house.reaches("scrub_oldest_seconds", 14.0 * DAY.as_secs_f64()).await;
    assert_eq!(house.metric(SOUND), 1.0);
    house.clock.advance(2 * DAY);
    house.upkeep.wake();
    house.reaches(SOUND, 2.0).await;
    house.finish().await;
}

#[tokio::test]
async fn the_oldest_is_read_first_and_what_is_fresh_not_at_all() {
    let house = House::new(Settings::default());
    let old = house.put(b"old").await;
    house.clock.advance(20 * DAY);
    let fresh = house.put(b"fresh").await;
    damage(&house.file(&fresh));
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(SOUND, 1.0).await;
    assert_eq!(house.metric(DAMAGED), 0.0, "it is not due");
    assert!(house.content.metadata().object(&old).await.unwrap().unwrap().present);
    house.finish().await;
}

#[tokio::test]
async fn a_scrub_that_is_off_reads_nothing_until_it_is_on() {
    let house = House::new(Settings { scrub_period: None, ..Settings::default() });
    house.put(b"content").await;
    house.upkeep.start();
    house.clock.advance(400 * DAY);
    house.upkeep.wake();
    house.reaches("scrub_oldest_seconds", DAY.as_secs_f64()).await;
    assert_eq!(house.metric("scrub_bytes_total"), 0.0);
    house.upkeep.configure(Settings::default());
    house.reaches(SOUND, 1.0).await;
    house.finish().await;
}

#[tokio::test]
async fn the_worker_ends_in_the_middle_of_a_file() {
    let house = House::new(Settings::default());
    // At the slowest pace this takes a quarter of a minute.
    house.put(&vec![7; 16 << 20]).await;
    house.upkeep.start();
    house.clock.advance(16 * DAY);
    house.upkeep.wake();
    house.reaches("scrub_bytes_total", 1.0).await;
    let begun = std::time::Instant::now();
    let dir = house.finish().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(dir);
}

#[tokio::test]
async fn nothing_happens_before_the_first_look() {
    let house = House::new(Settings::default());
    house.put(b"content").await;
    house.clock.advance(400 * DAY);
    house.upkeep.start();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(house.metric("scrub_bytes_total"), 0.0);
    house.finish().await;
}

#[tokio::test]
async fn verify_tells_and_changes_nothing() {
    let house = House::new(Settings::default());
    let (bad, gone) = (house.put(b"bad content").await, house.put(b"gone").await);
    house.put(b"sound").await;
    damage(&house.file(&bad));
    fs::remove_file(house.file(&gone)).unwrap();
    for _ in 0..2 {
        let events = story(&house, JobKind::Verify).await;
        assert_eq!(
            events.first(),
            Some(&Event::Begun { job: JobKind::Verify, objects: 3, bytes: 20 })
        );
        for (digest, finding) in [(bad, Finding::Damaged), (gone, Finding::Missing)] {
            let file = format!("blobs/sha256/{}", digest.hex());
            let found = events.iter().any(|event| {
                matches!(event, Event::Found { finding: is, file: at, .. } if *is == finding && *at == file)
            });
            assert!(found, "{finding:?} is not in {events:?}");
        }
        let report = report(&events);
        assert_eq!((report.objects, report.damaged, report.missing), (3, 1, 1));
        assert!(!report.repaired && !report.is_sound());
        assert!(house.file(&bad).exists());
    }
    house.finish().await;
}

#[tokio::test]
async fn repair_corrects_and_a_second_look_finds_nothing() {
    let house = House::new(Settings::default());
    let (bad, gone) = (house.put(b"bad content").await, house.put(b"gone").await);
    damage(&house.file(&bad));
    fs::remove_file(house.file(&gone)).unwrap();
    let orphan = Digest::sha256_of(b"orphan");
    fs::write(house.file(&orphan), b"orphan").unwrap();
    let junk = Digest::sha256_of(b"what it should be");
    fs::write(house.file(&junk), b"junk").unwrap();
    let first = report(&story(&house, JobKind::Repair).await);
    assert_eq!((first.damaged, first.missing, first.adopted), (2, 1, 1));
    assert!(!house.file(&bad).exists() && !house.file(&junk).exists());
    assert!(house.content.metadata().object(&orphan).await.unwrap().unwrap().present);
    let second = report(&story(&house, JobKind::Repair).await);
    assert_eq!(second, Report { objects: 1, bytes: 6, repaired: true, ..Report::default() });
    house.finish().await;
}

#[tokio::test]
async fn one_job_at_a_time_and_it_ends_with_its_reader() {
    let house = House::new(Settings::default());
    house.fill_with_missing().await;
    // Two hundred findings do not fit into the queue, so the job waits for its reader.
    let first = house.upkeep.begin(JobKind::Verify).await.unwrap();
    assert_eq!(house.upkeep.begin(JobKind::Reindex).await.unwrap_err(), Busy);
    drop(first);
    let next = story(&house, JobKind::Verify).await;
    assert_eq!(report(&next).missing, 200);
    house.finish().await;
}

#[tokio::test]
async fn a_job_ends_when_the_program_stops() {
    let house = House::new(Settings::default());
    house.fill_with_missing().await;
    let mut job = house.upkeep.begin(JobKind::Verify).await.unwrap();
    assert!(matches!(job.next().await, Some(Event::Begun { .. })));
    house.finish().await;
    let mut last = None;
    while let Some(event) = job.next().await {
        last = Some(event);
    }
    assert!(!matches!(last, Some(Event::Ended(_))), "it did not come to its end");
}

#[tokio::test]
async fn files_without_a_row_are_taken_in_at_the_first_look() {
    let house = House::new(Settings::default());
    let orphan = Digest::sha256_of(b"left by a crash");
    fs::write(house.file(&orphan), b"left by a crash").unwrap();
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches("adopted_objects_total", 1.0).await;
    assert!(house.content.metadata().object(&orphan).await.unwrap().unwrap().present);
    house.finish().await;
}

/// The walk over so many rests for several seconds, and a command waits for two.
#[tokio::test]
async fn the_look_for_files_without_a_row_makes_way_for_a_job() {
    let house = House::new(Settings { scrub_period: None, ..Settings::default() });
    for number in 0..12_000_u32 {
        let bytes = number.to_be_bytes();
        fs::write(house.file(&Digest::sha256_of(&bytes)), bytes).unwrap();
    }
    house.upkeep.start();
    house.upkeep.wake();
    let begun = async {
        while house.content.metadata().usage().await.unwrap().objects == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, begun).await.unwrap();
    let job = house.upkeep.begin(JobKind::Verify).await.expect("the walk makes way");
    assert!(house.content.metadata().usage().await.unwrap().objects < 12_000);
    drop(job);
    // And it comes again.
    let before = house.content.metadata().usage().await.unwrap().objects;
    house.upkeep.wake();
    let more = async {
        while house.content.metadata().usage().await.unwrap().objects <= before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, more).await.unwrap();
    house.finish().await;
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_told_and_not_condemned() {
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let house = House::on(Arc::clone(&disk) as _, Settings::default());
    let digest = house.put(b"content").await;
    let all = [(Fault::TooManyFiles, Operation::Open), (Fault::Io, Operation::Read)];
    for ((fault, only), kind) in
        all.into_iter().flat_map(|plan| [(plan, JobKind::Verify), (plan, JobKind::Repair)])
    {
        disk.fail(Plan { at: 1, lasting: true, fault, only: Some(only) });
        let events = story(&house, kind).await;
        assert_eq!((report(&events).unknown, report(&events).damaged), (1, 0), "{events:?}");
        let told = events.iter().any(|event| matches!(event, Event::Found { reason: Some(_), .. }));
        assert!(told, "{events:?}");
    }
    assert!((house.metric(UNREADABLE) - 4.0).abs() < f64::EPSILON);
    // The scrub goes on with the others and comes back later.
    house.upkeep.start();
    house.clock.advance(31 * DAY);
    house.upkeep.wake();
    house.reaches("scrub_oldest_seconds", DAY.as_secs_f64()).await;
    disk.heal();
    assert!(house.content.metadata().object(&digest).await.unwrap().unwrap().present);
    house.upkeep.wake();
    house.reaches(SOUND, 1.0).await;
    house.finish().await;
}

#[tokio::test]
async fn litter_of_downloads_is_swept_at_the_first_look_and_hourly() {
    let house = House::new(Settings::default());
    let name = format!("d-sha256-{}", Digest::sha256_of(b"never finished").hex());
    let litter = house.data().join("partial").join(name);
    fs::write(&litter, b"junk").unwrap();
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches("swept_downloads_total", 1.0).await;
    assert!(!litter.exists());
    fs::write(&litter, b"junk").unwrap();
    house.clock.advance(Duration::from_secs(3600));
    house.upkeep.wake();
    house.reaches("swept_downloads_total", 2.0).await;
    house.finish().await;
}
