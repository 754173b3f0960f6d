//! What the life of content costs over a store of a million blobs and 200,000 tags: a step of eviction, a page of tags, a collection; and
//! how long the import and the removal of a large set hold up others who write.
//!
//! `cargo bench --bench life` runs it by hand: making the store takes a minute or two; `-- sets` runs the second part alone, over a smaller
//! store, and `-- sets 1000 50000` for sets of so many images. It prints figures and asserts none, except that the work was done. Blobs have rows and no files, so an eviction is the rows, the
//! lock and an unlink that finds nothing.

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
use roadstead::metadata::{
    ImportCommit, ImportedTag, Proof, RepositoryKey, RevisionCommit, SetMember, Within,
};
use roadstead::oci::{Digest, Manifest, RegistryName};
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

/// Blobs and tags of the store over which sets are measured, and the sets that are.
const SET_BLOBS: u32 = 200_000;
const SETS_OF: [u32; 3] = [1_000, 10_000, 200_000];

struct House {
    plan: Plan,
    clock: ManualClock,
    content: Content,
    upkeep: Upkeep,
    _root: tempfile::TempDir,
}

fn open(blobs: u32) -> House {
    let root = tempfile::tempdir().unwrap();
    let plan = Plan::new("docker.io".parse().unwrap(), SystemClock.now(), blobs, TAGS);
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

impl House {
    fn manifest(&self, image: u32) -> Digest {
        Digest::sha256_of(&self.plan.manifest(image))
    }
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

/// An import of the first images, into repositories of another registry, with a tag for each of them.
fn import_of(house: &House, images: u32) -> ImportCommit {
    let (plan, at) = (&house.plan, house.clock.now());
    let upstream: RegistryName = "quay.io".parse().unwrap();
    let key = |image| RepositoryKey { upstream: upstream.clone(), ..plan.repository(image) };
    let revision = |image| {
        let bytes = plan.manifest(image);
        let document = Manifest::parse(&bytes, None).unwrap();
        RevisionCommit {
            repository: key(image),
            digest: Digest::sha256_of(&bytes),
            media_type: document.media_type,
            size: u64::try_from(bytes.len()).unwrap(),
            children: document.children,
            subject: None,
            artifact_type: document.artifact_type,
            proof: Proof { proved: at, credential: None },
            at,
            tag: None,
        }
    };
    let revisions: Vec<RevisionCommit> = (0..images).map(revision).collect();
    let numbered = || (0..images).zip(&revisions);
    let tag = |(image, revision): (u32, &RevisionCommit)| ImportedTag {
        repository: revision.repository.clone(),
        tag: plan.tag(image),
        moves: vec![(revision.digest, at)],
        source: "import".to_owned(),
    };
    let member = |(image, revision): (u32, &RevisionCommit)| SetMember {
        repository: revision.repository.clone(),
        digest: revision.digest,
        tag: Some(plan.tag(image)),
        at,
    };
    let (tags, members) = (numbered().map(tag).collect(), numbered().map(member).collect());
    let (set, detail) = ("large".parse().unwrap(), String::new());
    ImportCommit { revisions, tags, set, detail, members, public: Vec::new(), at }
}

/// Does something while another one moves a tag again and again, and tells how long both took.
async fn beside(house: &House, what: &str, work: impl Future<Output = ()>) {
    let rows = house.content.metadata();
    let (name, tag) = (house.plan.repository(TAGS - 1), house.plan.tag(TAGS - 1));
    let ended = CancellationToken::new();
    let others = async {
        let mut waits = Vec::new();
        while !ended.is_cancelled() {
            let begun = Instant::now();
            let digest = waits.len().is_multiple_of(2).then(|| house.manifest(TAGS - 1));
            rows.move_tag(&name, &tag, digest, "a pull", house.clock.now()).await.unwrap();
            waits.push(begun.elapsed());
        }
        waits
    };
    let working = async {
        let begun = Instant::now();
        work.await;
        ended.cancel();
        begun.elapsed()
    };
    let (waits, took) = tokio::join!(others, working);
    println!("{what}: {took:.2?}");
    tell("  others who write wait", waits);
}

/// Sets of these sizes, or of those that the command line names.
async fn sets(house: &House) {
    let rows = house.content.metadata();
    let named: Vec<u32> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    for images in if named.is_empty() { SETS_OF.to_vec() } else { named } {
        let import = import_of(house, images);
        let (again, name) = (import.clone(), import.set.clone());
        let taking = async {
            rows.import(import).await.unwrap();
        };
        beside(house, &format!("the import of {images} images"), taking).await;
        let taking = async {
            rows.import(again).await.unwrap();
        };
        beside(house, "  the same again", taking).await;
        let removing = async {
            let sets = rows.sets().await.unwrap();
            let set = sets.into_iter().find(|set| set.name == name).unwrap();
            assert_eq!(set.members, u64::from(images));
            assert!(rows.remove_set(set.id).await.unwrap());
        };
        beside(house, "  its removal", removing).await;
        // So that the next one is as new to the store.
        let begun = Instant::now();
        let within = Within::Upstream("quay.io".parse().unwrap());
        while rows.purge(&within).await.unwrap().more {}
        println!("  the purge of its registry: {:.2?}", begun.elapsed());
    }
}

fn main() {
    let runtime = Runtime::new().unwrap();
    if !std::env::args().any(|word| word == "sets") {
        let house = open(BLOBS);
        runtime.block_on(async {
            list(&house).await;
            evict(&house).await;
            collect(&house).await;
            house.content.close().await;
        });
    }
    let house = open(SET_BLOBS);
    runtime.block_on(async {
        sets(&house).await;
        house.content.close().await;
    });
}
