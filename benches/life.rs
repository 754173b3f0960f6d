//! What the life of content costs over a store of a million blobs and 200,000 tags: a step of eviction, a page of tags, a collection.
//!
//! `cargo bench --bench life` runs it by hand: making the store takes a minute or two. It prints figures and asserts none, except that the
//! work was done. Blobs have rows and no files, so an eviction is the rows, the lock and an unlink that finds nothing.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to say")]
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use roadstead::clock::{Clock, ManualClock, SystemClock};
use roadstead::content::populate::{Plan, populate};
use roadstead::content::{
    self, Content, Evidence, HOLDERS_MAX, KeepPolicy, Left, MinFree, verdict,
};
use roadstead::upkeep::{Event, JobKind, Parts, Settings, Upkeep};

const BLOBS: u32 = 1_000_000;
const TAGS: u32 = 200_000;
/// Objects of an eviction step, as upkeep takes them.
const STEP: u32 = 64;
/// How many of them leave at the same time.
const PARALLEL: usize = 16;
const STEPS: usize = 100;
const PAGE: u32 = 100;
/// Tags that are deleted for the collection.
const DELETED: u32 = 100;

struct House {
    plan: Plan,
    clock: ManualClock,
    content: Content,
    upkeep: Upkeep,
    _root: tempfile::TempDir,
}

fn open() -> House {
    let root = tempfile::tempdir().unwrap();
    let plan = Plan::new("docker.io".parse().unwrap(), SystemClock.now(), BLOBS, TAGS);
    let begun = Instant::now();
    let usage = populate(root.path(), &plan, 0).unwrap();
    println!("{} objects made in {:.1?}", usage.objects, begun.elapsed());
    let clock = ManualClock::starting_at(SystemClock.now());
    let held: Arc<dyn Clock> = Arc::new(clock.clone());
    let mut store = content::Settings::new(root.path().to_owned());
    store.min_free = MinFree::Bytes(0);
    let (tasks, mut registry) = (TaskTracker::new(), Registry::default());
    let begun = Instant::now();
    let content = Content::open(store, Arc::clone(&held), tasks.clone(), &mut registry).unwrap();
    println!("opened in {:.1?}", begun.elapsed());
    let parts = Parts {
        content: content.clone(),
        clock: held,
        tasks,
        shutdown: CancellationToken::new(),
        settings: Settings::default(),
    };
    let upkeep = Upkeep::new(parts, &mut registry);
    House { plan, clock, content, upkeep, _root: root }
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!("{what}: p50 {:.2?}, p99 {:.2?}, max {:.2?}", at(50), at(99), at(100));
}

/// The queue, what holds each object, and its way out, as upkeep does it.
async fn evict(house: &House) {
    let rows = house.content.metadata();
    let mut times = Vec::with_capacity(STEPS);
    let mut gone = 0;
    for _ in 0..STEPS {
        let begun = Instant::now();
        let page = rows.idle(house.clock.now(), None, STEP).await.unwrap();
        let rules = rows.rules();
        for object in &page {
            let holders = rows.holders(&object.digest, HOLDERS_MAX).await.unwrap();
            let _verdict = verdict(&holders, &rules, &KeepPolicy::default(), house.clock.now());
        }
        let leaving = page.iter().map(|object| {
            let evidence = Evidence { since: object.since, rules: rules.epoch() };
            house.content.evict(&object.digest, evidence)
        });
        let left: Vec<_> =
            futures_util::stream::iter(leaving).buffer_unordered(PARALLEL).collect().await;
        gone += left.iter().filter(|left| matches!(left, Ok(Left::Gone(_)))).count();
        times.push(begun.elapsed());
    }
    assert!(gone > 0);
    println!("{gone} objects evicted");
    tell("a step of 64 evictions", times);
}

async fn list(house: &House) {
    let rows = house.content.metadata();
    let (mut after, mut times, mut tags) = (None, Vec::new(), 0);
    loop {
        let begun = Instant::now();
        let page = rows.tag_records(None, after.as_ref(), PAGE).await.unwrap();
        times.push(begun.elapsed());
        tags += page.len();
        let Some(last) = page.last() else {
            break;
        };
        after = Some((last.repository.clone(), last.tag.clone()));
    }
    println!("{tags} tags listed");
    tell("a page of 100 tags", times);
}

async fn collect(house: &House) {
    let rows = house.content.metadata();
    let mut times = Vec::new();
    for image in 0..DELETED {
        let begun = Instant::now();
        rows.delete_tag(&house.plan.repository(image), &house.plan.tag(image)).await.unwrap();
        times.push(begun.elapsed());
    }
    tell("a deletion of a tag", times);
    house.clock.advance(Duration::from_secs(25 * 3600));
    let begun = Instant::now();
    let mut job = house.upkeep.begin(JobKind::Gc).await.unwrap();
    let mut last = None;
    while let Some(event) = job.next().await {
        last = Some(event);
    }
    let took = begun.elapsed();
    let Some(Event::Ended(report)) = last else {
        println!("the collection did not end: {last:?}");
        return;
    };
    println!("gc after {DELETED} deletions: {} objects in {took:.1?}", report.collected);
    let begun = Instant::now();
    let mut job = house.upkeep.begin(JobKind::Gc).await.unwrap();
    while job.next().await.is_some() {}
    println!("gc with nothing to do: {:.1?}", begun.elapsed());
}

fn main() {
    let runtime = Runtime::new().unwrap();
    let house = open();
    runtime.block_on(async {
        list(&house).await;
        evict(&house).await;
        collect(&house).await;
        house.content.close().await;
    });
}
