//! Eviction and collection in the background, over a real store.

use std::time::Duration;

use super::collect::Collector;
use super::evict::Round;
use super::limits::{Aim, Goal};
use super::tests::{House, report, story};
use super::*;
use crate::blobs::RealDisk;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::clock::Clock as _;
use crate::content::{KeepPolicy, UpstreamKeep};
use crate::metadata::{RepositoryKey, RuleKind, Within};
use crate::oci::Digest;
use std::sync::Arc;

const HOUR: Duration = Duration::from_secs(3600);
const BY_SIZE: &str = "evicted_objects_total{reason=\"max_size\"}";
const BY_AGE: &str = "evicted_objects_total{reason=\"max_unused\"}";
const UNMET: &str = "eviction_limit_unmet{limit=\"max_size\"}";

fn limited(max_size: u64) -> Settings {
    Settings { scrub_period: None, max_size: Some(max_size), ..Settings::default() }
}

#[tokio::test]
async fn what_is_over_the_limit_goes_the_longest_unused_first() {
    let house = House::new(limited(250));
    let mut objects = Vec::new();
    for number in 0..4_u8 {
        objects.push(house.put(&[number; 100]).await);
        house.clock.advance(HOUR);
    }
    house.clock.advance(2 * HOUR);
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(BY_SIZE, 2.0).await;
    for (object, here) in objects.iter().zip([false, false, true, true]) {
        let known = house.content.metadata().object(object).await.unwrap().unwrap();
        assert_eq!(known.present, here);
        assert_eq!(house.file(object).exists(), here);
    }
    house.finish().await;
}

#[tokio::test]
async fn a_limit_that_only_young_content_exceeds_closes_the_store_until_it_is_old() {
    let house = House::new(limited(250));
    for number in 0..3_u8 {
        house.put(&[number; 100]).await;
    }
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(UNMET, 1.0).await;
    assert!(!house.content.admits(Some(1), None), "it is closed");
    assert_eq!(house.metric(BY_SIZE), 0.0);
    house.clock.advance(2 * HOUR);
    house.upkeep.wake();
    house.reaches(BY_SIZE, 1.0).await;
    let open = async {
        while !house.content.admits(Some(1), None) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), open).await.expect("it opens again");
    house.finish().await;
}

#[tokio::test]
async fn what_cannot_be_taken_is_passed_over_and_the_store_is_judged() {
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let house = House::on(Arc::clone(&disk) as _, limited(150));
    for number in 0..2_u8 {
        house.put(&[number; 100]).await;
    }
    house.clock.advance(2 * HOUR);
    for number in 2..4_u8 {
        house.put(&[number; 100]).await;
    }
    let fault = Fault::Io;
    disk.fail(Plan { at: 1, lasting: false, fault, only: Some(Operation::Unlink) });
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(UNMET, 1.0).await;
    assert_eq!(house.metric(BY_SIZE), 1.0, "the other one went");
    let stored = house.content.metadata().usage_by_upstream().await.unwrap();
    let stored: u64 = stored.iter().map(|(_, usage)| usage.bytes).sum();
    assert_eq!(stored, 300, "what could not be removed is here");
    assert!(!house.content.admits(Some(1), None), "it is closed");
    house.finish().await;
}

#[tokio::test]
async fn a_round_that_fails_tells_why_when_it_is_over() {
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let settings = limited(10);
    let house = House::on(Arc::clone(&disk) as _, settings.clone());
    for number in 0..3_u8 {
        house.put(&[number; 100]).await;
        house.clock.advance(HOUR);
    }
    house.clock.advance(2 * HOUR);
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Unlink) });
    let aim = Aim { from: None, goal: Goal::Stored { bytes: 0 } };
    let mut round = Round::new(&house.upkeep, &settings, aim);
    assert!(!round.step().await.unwrap().over);
    assert!(round.step().await.is_err());
    house.finish().await;
}

#[tokio::test]
async fn offline_nothing_goes() {
    let keep = Arc::new(KeepPolicy { offline: true, upstreams: Vec::new() });
    let house = House::new(Settings { keep, ..limited(10) });
    house.put(b"more than ten bytes").await;
    house.clock.advance(10 * HOUR);
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(UNMET, 1.0).await;
    assert_eq!(house.metric(BY_SIZE), 0.0);
    let dry = story(&house, JobKind::GcDryRun).await;
    let why = dry.iter().find_map(|event| match event {
        Event::Decided { fate: Fate::Kept, reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(why.expect("it is told").contains("offline"));
    house.finish().await;
}

#[tokio::test]
async fn what_was_not_used_for_so_long_goes() {
    let settings = Settings { max_unused: Some(30 * HOUR), ..Settings::default() };
    let house = House::new(settings);
    house.put(b"old").await;
    house.clock.advance(20 * HOUR);
    let fresh = house.put(b"fresh").await;
    house.clock.advance(11 * HOUR);
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(BY_AGE, 1.0).await;
    assert!(house.content.metadata().object(&fresh).await.unwrap().unwrap().present);
    house.finish().await;
}

#[tokio::test]
async fn a_rehearsal_tells_what_would_go_and_takes_nothing() {
    let house = House::new(limited(150));
    for number in 0..3_u8 {
        house.put(&[number; 100]).await;
        house.clock.advance(HOUR);
    }
    house.clock.advance(HOUR);
    let dry = report(&story(&house, JobKind::GcDryRun).await);
    assert_eq!((dry.evicted, dry.freed), (2, 200));
    assert_eq!(house.content.metadata().usage().await.unwrap().objects, 3);
    let real = report(&story(&house, JobKind::Gc).await);
    assert_eq!((real.evicted, real.freed), (2, 200));
    assert_eq!(house.content.metadata().usage().await.unwrap().objects, 1);
    house.finish().await;
}

#[tokio::test]
async fn a_reload_puts_a_limit_in_force() {
    let house = House::new(Settings { scrub_period: None, ..Settings::default() });
    house.put(&[1; 100]).await;
    house.clock.advance(2 * HOUR);
    house.upkeep.start();
    house.upkeep.wake();
    house.upkeep.configure(limited(50));
    house.reaches(BY_SIZE, 1.0).await;
    house.finish().await;
}

#[tokio::test]
async fn a_purge_needs_something_to_purge_and_ends() {
    let house = House::new(Settings::default());
    let nothing = story(&house, JobKind::Purge).await;
    assert!(matches!(nothing.last(), Some(Event::Aborted { .. })), "{nothing:?}");
    let within = Within::Upstream("docker.io".parse().unwrap());
    let mut job = house.upkeep.purge(within).await.unwrap();
    let mut last = None;
    while let Some(event) = job.next().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Ended(report)) if report.repositories == 0));
    house.finish().await;
}

/// A family's member has the limits of the family, and a pin is no rule for what nothing in its scope needs.
#[test]
fn limits_are_those_of_the_family() {
    let member = "europe-docker.pkg.dev".parse().unwrap();
    let family = UpstreamKeep {
        name: "pkg.dev".parse().unwrap(),
        families: vec!["*.pkg.dev".parse().unwrap()],
        offline: false,
        revisions: 0,
        rules: Vec::new(),
    };
    let own =
        UpstreamLimits { name: "pkg.dev".parse().unwrap(), max_size: Some(7), max_unused: None };
    let keep = Arc::new(KeepPolicy { offline: false, upstreams: vec![family] });
    let settings = Settings { upstreams: vec![own], keep, ..Settings::default() };
    assert_eq!(settings.limits(&member).and_then(|limits| limits.max_size), Some(7));
    assert_eq!(settings.limits(&"quay.io".parse().unwrap()), None);
}

/// A manifest of `docker.io/library/a`, which may refer to another one.
async fn manifest(house: &House, bytes: &[u8], subject: Option<Digest>) -> RepositoryKey {
    manifest_in(house, "library/a", bytes, subject).await
}

async fn manifest_in(
    house: &House,
    name: &str,
    bytes: &[u8],
    subject: Option<Digest>,
) -> RepositoryKey {
    let digest = house.put(bytes).await;
    let repository =
        RepositoryKey { upstream: "docker.io".parse().unwrap(), name: name.parse().unwrap() };
    let commit = crate::metadata::RevisionCommit {
        repository: repository.clone(),
        digest,
        media_type: crate::oci::MediaType::OCI_MANIFEST.parse().unwrap(),
        size: bytes.len() as u64,
        children: Vec::new(),
        subject,
        artifact_type: None,
        proof: crate::metadata::Proof { proved: house.clock.now(), credential: None },
        at: house.clock.now(),
        tag: None,
    };
    house.content.metadata().commit_revision(commit).await.unwrap();
    repository
}

/// A manifest that a pin of its repository keeps; the pin.
async fn pinned(house: &House) -> i64 {
    manifest(house, b"a manifest", None).await;
    let scope = "docker.io/library/*".parse().unwrap();
    let rows = house.content.metadata();
    rows.add_rule(RuleKind::Pin, scope, None, String::new()).await.unwrap().id
}

#[tokio::test]
async fn a_referrer_that_was_deleted_goes_although_its_subject_stays() {
    let house = House::new(Settings::default());
    let subject = Digest::sha256_of(b"an image");
    let repository = manifest(&house, b"an image", None).await;
    manifest(&house, b"a signature", Some(subject)).await;
    let signature = Digest::sha256_of(b"a signature");
    let rows = house.content.metadata();
    assert!(rows.delete_revision(&repository, &signature).await.unwrap().found);
    house.clock.advance(25 * HOUR);
    assert_eq!(report(&story(&house, JobKind::GcDryRun).await).collected, 1);
    assert_eq!(report(&story(&house, JobKind::Gc).await).collected, 1);
    assert!(rows.object(&signature).await.unwrap().is_none());
    assert!(rows.object(&subject).await.unwrap().is_some_and(|object| object.present));
    house.finish().await;
}

#[tokio::test]
async fn what_a_pin_kept_where_it_was_deleted_leaves_after_the_pin_although_others_hold_it() {
    let house = House::new(Settings::default());
    let (rows, digest) = (house.content.metadata(), Digest::sha256_of(b"a manifest"));
    manifest_in(&house, "other/b", b"a manifest", None).await;
    let repository = manifest(&house, b"a manifest", None).await;
    let tag: crate::oci::Tag = "latest".parse().unwrap();
    rows.move_tag(&repository, &tag, Some(digest), "docker.io", house.clock.now()).await.unwrap();
    let pin = pinned(&house).await;
    assert!(rows.delete_tag(&repository, &tag).await.unwrap().found);
    house.clock.advance(25 * HOUR);
    report(&story(&house, JobKind::Gc).await);
    assert!(rows.revision(&repository, &digest).await.unwrap().is_some(), "it is pinned");
    assert!(rows.remove_rule(pin).await.unwrap());
    house.clock.advance(25 * HOUR);
    report(&story(&house, JobKind::Gc).await);
    assert!(rows.revision(&repository, &digest).await.unwrap().is_none(), "it was deleted");
    assert!(rows.object(&digest).await.unwrap().is_some_and(|object| object.present));
    house.finish().await;
}

#[tokio::test]
async fn a_pin_keeps_and_a_rehearsal_says_which() {
    let house = House::new(limited(1));
    let pin = pinned(&house).await;
    let rows = house.content.metadata();
    house.clock.advance(2 * HOUR);
    let kept = story(&house, JobKind::GcDryRun).await;
    let told = kept.iter().any(|event| {
        matches!(event, Event::Decided { fate: Fate::Kept, reason, .. } if reason.contains("library/*"))
    });
    assert!(told, "{kept:?}");
    assert_eq!(report(&story(&house, JobKind::Gc).await).evicted, 0);
    // What was looked at and kept is looked at again when it was unused for a while.
    assert!(rows.remove_rule(pin).await.unwrap());
    house.clock.advance(2 * HOUR);
    assert_eq!(report(&story(&house, JobKind::Gc).await).evicted, 1);
    house.finish().await;
}

/// A round over everything that is stored.
async fn steps(house: &House, round: &mut Round<'_>) -> usize {
    for number in 1..20 {
        if round.step().await.unwrap().over {
            assert!(number > 1, "there was something to look at");
            return number;
        }
    }
    panic!("the round does not end; {:?}", house.content.metadata().usage().await)
}

#[tokio::test]
async fn a_round_ends_although_the_clock_is_set_back() {
    let settings = limited(10);
    let house = House::new(settings.clone());
    pinned(&house).await;
    house.clock.advance(10 * HOUR);
    let aim = Aim { from: None, goal: Goal::Stored { bytes: 0 } };
    let mut round = Round::new(&house.upkeep, &settings, aim);
    house.clock.set_back(5 * HOUR);
    steps(&house, &mut round).await;
    house.finish().await;
}

#[tokio::test]
async fn a_collection_ends_although_the_clock_is_set_back() {
    let settings = Settings { delete_grace: Duration::ZERO, ..Settings::default() };
    let house = House::new(settings.clone());
    let repository = manifest(&house, b"a manifest", None).await;
    pinned(&house).await;
    let (rows, digest) = (house.content.metadata(), Digest::sha256_of(b"a manifest"));
    let tag: crate::oci::Tag = "latest".parse().unwrap();
    rows.move_tag(&repository, &tag, Some(digest), "docker.io", house.clock.now()).await.unwrap();
    assert!(rows.delete_tag(&repository, &tag).await.unwrap().found);
    house.clock.advance(HOUR);
    let mut collector = Collector::new(&house.upkeep, &settings, false);
    house.clock.set_back(2 * HOUR);
    let mut looks = 0;
    while let Some(decisions) = collector.step().await.unwrap() {
        looks += decisions.len();
        assert!(looks < 5, "the same is looked at again and again");
    }
    assert_eq!(looks, 1);
    house.finish().await;
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_has_dated_goes_in_its_time() {
    let year = 365 * 24 * HOUR;
    let settings = Settings { delete_grace: HOUR, ..limited(250) };
    let house = House::new(settings);
    house.clock.advance(year);
    for number in 0..4_u8 {
        house.put(&[number; 100]).await;
    }
    let repository = manifest(&house, b"a manifest", None).await;
    let (rows, digest) = (house.content.metadata(), Digest::sha256_of(b"a manifest"));
    let tag: crate::oci::Tag = "latest".parse().unwrap();
    rows.move_tag(&repository, &tag, Some(digest), "docker.io", house.clock.now()).await.unwrap();
    assert!(rows.delete_tag(&repository, &tag).await.unwrap().found);
    house.clock.set_back(year);
    house.upkeep.start();
    house.upkeep.wake();
    house.reaches(UNMET, 1.0).await;
    let soon = |after: Duration| house.clock.now().plus(after);
    // Whether the clock is right now is not known before it went on for a day.
    assert_eq!(rows.idle(soon(HOUR), None, 9).await.unwrap(), []);
    let put_back = async {
        while rows.doomed(soon(HOUR), 9).await.unwrap().is_empty() {
            // As time goes on, and not as a clock is set.
            house.clock.advance(HOUR / 60);
            house.upkeep.wake();
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), put_back).await.expect("it is put back");
    assert_eq!(rows.idle(soon(HOUR), None, 9).await.unwrap().len(), 5);
    assert_eq!(house.metric(BY_SIZE), 0.0, "it counts as used just now");
    house.clock.advance(2 * HOUR);
    house.upkeep.wake();
    house.reaches(BY_SIZE, 2.0).await;
    house.reaches("collected_objects_total", 1.0).await;
    house.finish().await;
}
