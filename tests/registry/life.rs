//! The life of content against a small model of it: random pulls, moves of tags, deletions, pins, freezes, evictions, collections and
//! crashes, and after each step what must hold.
//!
//! What must hold after every step: a row that says "present" has a file with the bytes of its name; nothing that is kept and was here is
//! gone; nothing that a live image needs was forgotten; after a sweep no file is without a row. After a `gc` that wants everything gone,
//! nothing is left but what is kept or young.
//!
//! The seeds are fixed; `ROADSTEAD_LIFE_SEED` adds one, and a failure names its seed and step.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]
#![expect(clippy::print_stderr, reason = "the last line names the step that failed")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use roadstead::blobs::RealDisk;
use roadstead::blobs::testing::{Fault, FaultyDisk, Plan};
use roadstead::clock::{Clock, ManualClock, Timestamp};
use roadstead::content::{self, Content, Haste, KeepPolicy, MinFree, UpstreamKeep};
use roadstead::metadata::{Proof, RepositoryKey, RevisionCommit, RuleKind, TagMove};
use roadstead::oci::{Descriptor, Digest, MediaType, Role, Tag};
use roadstead::upkeep::{Event, JobKind, Parts, Settings, Upkeep};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::life_model::{Model, Move};

const SEEDS: [u64; 5] = [1, 20, 300, 4000, 50_000];
const STEPS: usize = 300;
pub const REPOSITORIES: [&str; 3] = ["docker.io/library/a", "docker.io/library/b", "ghcr.io/o/c"];
pub const TAGS: [&str; 2] = ["latest", "v1"];
const BLOBS: usize = 9;
/// The first six are manifests, the last two indexes over some of them.
const IMAGES: usize = 8;
/// The newest revisions of each tag that are kept at ghcr.io.
pub const LAST: usize = 2;
pub const YOUNG: Duration = Duration::from_secs(3600);
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Uses are written in steps, so an age is only known to within this.
pub const COARSE: Duration = Duration::from_secs(600);

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pull {
        repository: usize,
        image: usize,
        tag: Option<usize>,
    },
    Absent {
        repository: usize,
        tag: usize,
    },
    DeleteTag {
        repository: usize,
        tag: usize,
    },
    DeleteLink {
        repository: usize,
        tag: usize,
        image: usize,
    },
    DeleteRevision {
        repository: usize,
        image: usize,
    },
    Pin {
        scope: usize,
    },
    Freeze {
        scope: usize,
    },
    Release,
    Wait {
        minutes: usize,
    },
    /// With no limit, or with one that wants everything gone.
    Gc {
        everything: bool,
    },
    Crash,
}

/// What the rules of the test may say.
fn scope(number: usize) -> String {
    let repository = REPOSITORIES[number % REPOSITORIES.len()];
    match number % 4 {
        0 => format!("{repository}:latest"),
        1 => format!("{repository}:v*"),
        2 => repository.to_owned(),
        _ => format!("{repository}@{}", digest(&image(number % IMAGES))),
    }
}

fn blob(number: usize) -> Vec<u8> {
    format!("blob {number} ").repeat(20 + number).into_bytes()
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256_of(bytes)
}

/// Images below an index.
pub fn children(number: usize) -> Vec<usize> {
    match number {
        6 => vec![0, 1],
        7 => vec![1, 2],
        _ => Vec::new(),
    }
}

/// Blobs of a manifest; neighbours share some.
fn blobs(number: usize) -> Vec<usize> {
    if number < 6 { vec![number, number + 1, 8] } else { Vec::new() }
}

fn below(number: usize) -> Vec<(Role, Vec<u8>)> {
    let manifests = children(number).into_iter().map(|child| (Role::Child, image(child)));
    let layers = blobs(number).into_iter().map(|layer| (Role::Layer, blob(layer)));
    manifests.chain(layers).collect()
}

pub fn image(number: usize) -> Vec<u8> {
    let names: Vec<String> =
        below(number).iter().map(|(_, bytes)| digest(bytes).to_string()).collect();
    format!("{{\"image\":{number},\"below\":{names:?}}}").into_bytes()
}

/// The image and everything below it.
pub fn closure(number: usize) -> BTreeSet<Digest> {
    let mut all = BTreeSet::from([digest(&image(number))]);
    all.extend(blobs(number).into_iter().map(|layer| digest(&blob(layer))));
    all.extend(children(number).into_iter().flat_map(closure));
    all
}

fn repository(number: usize) -> RepositoryKey {
    let (upstream, name) = REPOSITORIES[number].split_once('/').unwrap();
    RepositoryKey { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() }
}

fn tag(number: usize) -> Tag {
    TAGS[number].parse().unwrap()
}

struct House {
    dir: TempDir,
    disk: Arc<FaultyDisk>,
    clock: ManualClock,
    open: Option<Open>,
    settings: Settings,
    model: Model,
    tally: Tally,
}

/// How much of everything happened, so that the test cannot pass by doing nothing.
#[derive(Debug, Default)]
struct Tally {
    evicted: u64,
    collected: u64,
    kept: u64,
    gone: usize,
    broken: u64,
}

struct Open {
    content: Content,
    upkeep: Upkeep,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl House {
    fn new() -> Self {
        let ghcr = UpstreamKeep {
            name: "ghcr.io".parse().unwrap(),
            families: Vec::new(),
            offline: false,
            revisions: u32::try_from(LAST).unwrap(),
            rules: Vec::new(),
        };
        let keep = KeepPolicy { offline: false, upstreams: vec![ghcr] };
        let settings = Settings {
            young_for: YOUNG,
            delete_grace: GRACE,
            keep: Arc::new(keep),
            ..Settings::default()
        };
        let mut house = Self {
            dir: TempDir::new().unwrap(),
            disk: FaultyDisk::new(Arc::new(RealDisk)),
            clock: ManualClock::starting_at(Timestamp::from_millis(1_795_305_600_000)),
            open: None,
            settings,
            model: Model::default(),
            tally: Tally::default(),
        };
        house.start();
        house
    }

    fn start(&mut self) {
        let mut store = content::Settings::new(self.dir.path().join("data"));
        store.min_free = MinFree::Bytes(0);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let mut registry = Registry::default();
        let disk = Arc::clone(&self.disk) as _;
        let content =
            Content::open_on(disk, store, Arc::clone(&clock), tasks.clone(), &mut registry)
                .expect("a store opens after anything");
        let parts = Parts {
            content: content.clone(),
            clock,
            tasks: tasks.clone(),
            shutdown: stop.clone(),
            settings: self.settings.clone(),
        };
        let upkeep = Upkeep::new(parts, &mut registry);
        self.open = Some(Open { content, upkeep, tasks, stop });
    }

    /// Ends without writing anything more, and starts again.
    async fn crash(&mut self) {
        let Open { content, upkeep, tasks, stop } = self.open.take().expect("it is open");
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        drop((content, upkeep));
        self.disk.heal();
        // Uses that were not written yet are lost.
        self.model.used.clear();
        self.start();
        self.sweep().await;
        // What the sweep took in is young.
        self.used_now().await;
    }

    async fn used_now(&mut self) {
        let now = self.now();
        for object in self.present().await {
            self.model.maybe_used.insert(object, now);
        }
    }

    fn content(&self) -> &Content {
        &self.open.as_ref().expect("it is open").content
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pull(&self, at: usize, number: usize, tag: Option<Tag>) -> Result<(), content::Error> {
        let content = self.content();
        let bytes = image(number);
        let described = |(role, bytes): (Role, Vec<u8>)| {
            let descriptor = Descriptor {
                media_type: MediaType::OCTET_STREAM.parse().unwrap(),
                digest: digest(&bytes),
                size: u64::try_from(bytes.len()).unwrap(),
                platform: None,
                artifact_type: None,
                foreign: false,
            };
            (role, descriptor)
        };
        let commit = RevisionCommit {
            repository: repository(at),
            digest: digest(&bytes),
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            size: u64::try_from(bytes.len()).unwrap(),
            children: below(number).into_iter().map(described).collect(),
            subject: None,
            artifact_type: None,
            proof: Proof { proved: self.now(), credential: None },
            at: self.now(),
            tag: tag.map(|tag| TagMove { tag, source: "upstream".to_owned() }),
        };
        content.store_revision(commit, Bytes::from(bytes)).await?;
        for child in children(number) {
            Box::pin(self.pull(at, child, None)).await?;
        }
        for layer in blobs(number) {
            let bytes = blob(layer);
            let here = content.metadata().object(&digest(&bytes)).await?;
            if !here.is_some_and(|object| object.present) {
                content.put(&digest(&bytes), Bytes::from(bytes)).await?;
            }
        }
        content.metadata().touch(&digest(&image(number)), self.now());
        content.metadata().flush().await?;
        Ok(())
    }

    /// Runs a job to its end; what it could not do is told.
    async fn gc(&mut self, everything: bool) -> bool {
        let open = self.open.as_ref().expect("it is open");
        let max_size = everything.then_some(1);
        open.upkeep.configure(Settings { max_size, ..self.settings.clone() });
        let mut job = open.upkeep.begin(JobKind::Gc).await.expect("nothing else runs");
        let mut last = None;
        while let Some(event) = job.next().await {
            last = Some(event);
        }
        let Some(Event::Ended(report)) = last else {
            return false;
        };
        self.tally.evicted += report.evicted;
        self.tally.collected += report.collected;
        self.tally.kept += report.kept;
        report.failed == 0
    }

    /// After it no file is without a row.
    async fn sweep(&self) {
        let content = self.content();
        let token = CancellationToken::new();
        content.adopt_orphans(Haste::Full, &|_| (), &token).await.expect("the sweep ends");
        assert_eq!(content.count_orphans(&token).await.unwrap(), 0, "a file without a row is left");
    }

    async fn present(&self) -> BTreeSet<Digest> {
        let rows = self.content().objects(None, 10_000).await.unwrap();
        rows.into_iter().map(|object| object.digest).collect()
    }

    async fn check(&self, before: &BTreeSet<Digest>) {
        let present = self.present().await;
        for object in &present {
            let file = self.dir.path().join("data/blobs/sha256").join(object.hex());
            let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{object}: {error}"));
            assert_eq!(digest(&bytes), *object, "a row says that another file is here");
        }
        for object in self.model.kept(self.now()).intersection(before) {
            assert!(present.contains(object), "{} is kept and gone", name_of(object));
        }
        let rows = self.content().metadata();
        let counted = rows.usage().await.unwrap().objects;
        assert_eq!(counted, u64::try_from(present.len()).unwrap(), "what is stored is miscounted");
        for (at, number) in &self.model.live {
            let (repository, revision) = (repository(*at), digest(&image(*number)));
            let known = rows.revision(&repository, &revision).await.unwrap();
            assert!(known.is_some(), "image {number} in {} is forgotten", REPOSITORIES[*at]);
            for layer in blobs(*number) {
                let known = rows.blob(&repository, &digest(&blob(layer))).await.unwrap();
                assert!(known.proof.is_some(), "blob {layer} of image {number} is forgotten");
            }
        }
    }

    /// After a `gc` that wanted everything gone.
    async fn check_emptied(&self) {
        let (now, mut may) = (self.now(), self.model.kept(self.now()));
        let young =
            self.model.maybe_used.iter().filter(|(_, used)| now.since(**used) < YOUNG + COARSE);
        may.extend(young.map(|(object, _)| *object));
        // A pin keeps what was deleted, too, as long as it waits.
        let waiting = self.model.dead.keys().filter(|(at, _)| self.model.is_pinned(*at));
        may.extend(waiting.flat_map(|(_, number)| closure(*number)));
        for object in self.present().await {
            // A freeze may keep one more than it serves, after an absence.
            let frozen = self.model.rules.iter().any(|(_, kind, _, _)| *kind == RuleKind::Freeze);
            let holders = self.content().metadata().holders(&object, 99).await.unwrap();
            assert!(
                frozen || may.contains(&object),
                "{} was not evicted; {:?} {holders:?}",
                name_of(&object),
                self.model.maybe_used.get(&object)
            );
        }
    }

    /// Does the step in the store and, if it succeeded, in the model.
    async fn step(&mut self, step: Step) -> bool {
        let now = self.now();
        self.model.now = now;
        let rows = self.content().metadata().clone();
        match step {
            Step::Pull { repository, image, tag: number } => {
                if self.pull(repository, image, number.map(tag)).await.is_err() {
                    return false;
                }
                self.model.pull(repository, image, number, now);
            }
            Step::Absent { repository: at, tag: number } => {
                rows.move_tag(&repository(at), &tag(number), None, "upstream", now).await.unwrap();
                let timeline = self.model.timelines.get_mut(&(at, number));
                let points = |all: &&mut Vec<Move>| all.last().is_some_and(|last| last.1.is_some());
                if let Some(timeline) = timeline.filter(points) {
                    timeline.push((now, None));
                }
            }
            Step::DeleteTag { repository: at, tag: number } => {
                rows.delete_tag(&repository(at), &tag(number)).await.unwrap();
                self.model.delete_tag(at, number);
            }
            Step::DeleteLink { repository: at, tag: number, image: which } => {
                let revision = digest(&image(which));
                rows.delete_link(&repository(at), &tag(number), &revision).await.unwrap();
                self.delete_link(at, number, which);
            }
            Step::DeleteRevision { repository: at, image: which } => {
                self.delete_revision(at, which).await;
            }
            Step::Pin { scope: number } => self.rule(RuleKind::Pin, number).await,
            Step::Freeze { scope: number } => self.rule(RuleKind::Freeze, number).await,
            Step::Release => {
                // What a rule kept until now is looked at again after another grace time.
                self.model.dead.values_mut().for_each(|since| *since = now);
                if let Some((id, ..)) = self.model.rules.pop() {
                    assert!(rows.remove_rule(id).await.unwrap());
                }
            }
            Step::Wait { minutes } => {
                self.clock.advance(Duration::from_secs(u64::try_from(minutes).unwrap() * 60));
            }
            Step::Gc { everything } => {
                if !self.gc(everything).await {
                    return false;
                }
                for (at, number) in self.model.must_be_gone(now) {
                    let known = rows.revision(&repository(at), &digest(&image(number))).await;
                    assert!(
                        known.unwrap().is_none(),
                        "image {number} is still in {}",
                        REPOSITORIES[at]
                    );
                    self.model.dead.remove(&(at, number));
                    self.tally.gone += 1;
                }
                if everything {
                    self.check_emptied().await;
                    // What was looked at and kept is looked at again later.
                    self.used_now().await;
                }
            }
            Step::Crash => self.crash().await,
        }
        true
    }

    fn delete_link(&mut self, at: usize, number: usize, which: usize) {
        let Some(timeline) = self.model.timelines.get_mut(&(at, number)) else {
            return;
        };
        let known = timeline.iter().any(|(_, image)| *image == Some(which));
        timeline.retain(|(_, image)| *image != Some(which));
        if known {
            self.cut(at, number, which);
            self.model.unlink(at, &[which]);
        }
    }

    /// The tag itself goes if it points there; its past stays.
    fn cut(&mut self, at: usize, number: usize, which: usize) {
        if self.model.current.get(&(at, number)) == Some(&which) {
            self.model.current.remove(&(at, number));
        }
        self.model.cut.insert((at, number));
    }

    /// A revision that an index of the repository needs is not deleted, as the desk refuses it.
    async fn delete_revision(&mut self, at: usize, which: usize) {
        let needed = self
            .model
            .live
            .iter()
            .any(|(of, parent)| *of == at && children(*parent).contains(&which));
        if needed {
            return;
        }
        let rows = self.content().metadata().clone();
        rows.delete_revision(&repository(at), &digest(&image(which))).await.unwrap();
        self.model.live.remove(&(at, which));
        self.model.wait_again(which);
        let all: Vec<usize> = (0..TAGS.len()).collect();
        for number in all {
            let Some(timeline) = self.model.timelines.get_mut(&(at, number)) else {
                continue;
            };
            timeline.retain(|(_, image)| *image != Some(which));
            self.cut(at, number, which);
        }
        self.model.unlink(at, &children(which));
    }

    async fn rule(&mut self, kind: RuleKind, number: usize) {
        let text = scope(number);
        let rows = self.content().metadata().clone();
        let rule =
            rows.add_rule(kind, text.parse().unwrap(), None, "a test".to_owned()).await.unwrap();
        self.model.rules.push((rule.id, kind, text, rule.since));
    }
}

/// A name for a message.
fn name_of(object: &Digest) -> String {
    let images = (0..IMAGES).find(|number| digest(&image(*number)) == *object);
    let blobs = (0..BLOBS).find(|number| digest(&blob(*number)) == *object);
    images
        .map(|number| format!("image {number}"))
        .or_else(|| blobs.map(|number| format!("blob {number}")))
        .unwrap_or_else(|| object.to_string())
}

fn any_step(random: &mut Random) -> Step {
    let (repository, tag) = (random.below(REPOSITORIES.len()), random.below(TAGS.len()));
    let image = random.below(IMAGES);
    match random.below(24) {
        0..=5 => Step::Pull { repository, image, tag: (random.below(4) > 0).then_some(tag) },
        6 => Step::Absent { repository, tag },
        7 => Step::DeleteTag { repository, tag },
        8 => Step::DeleteLink { repository, tag, image },
        9 => Step::DeleteRevision { repository, image },
        10 => Step::Pin { scope: random.below(12) },
        11 => Step::Freeze { scope: random.below(12) },
        12..=14 => Step::Release,
        15..=18 => Step::Wait { minutes: [10, 100, 700, 3000][random.below(4)] },
        19 => Step::Gc { everything: false },
        20..=22 => Step::Gc { everything: true },
        _ => Step::Crash,
    }
}

async fn live(seed: u64) -> Tally {
    let (mut random, mut house) = (Random(seed), House::new());
    for number in 0..STEPS {
        let step = any_step(&mut random);
        house.clock.advance(Duration::from_secs(1));
        let before = house.present().await;
        eprintln!("seed {seed}, step {number}: {step:?}");
        // Now and then the disk fails from some operation on, which ends in a crash; then the same is done again.
        if random.below(6) == 0 && matches!(step, Step::Pull { .. } | Step::Gc { .. }) {
            let at = u64::try_from(1 + random.below(8)).unwrap();
            house.disk.fail(Plan { at, lasting: true, fault: Fault::Io, only: None });
            let done = house.step(step).await;
            house.tally.broken += u64::from(!done);
            house.crash().await;
            house.check(&before).await;
            if done {
                continue;
            }
        }
        assert!(house.step(step).await, "a step fails although nothing is broken");
        house.check(&before).await;
    }
    house.crash().await;
    let open = house.open.take().expect("it is open");
    open.stop.cancel();
    open.content.close().await;
    house.tally
}

#[tokio::test]
async fn content_lives_as_the_model_says() {
    let own = std::env::var("ROADSTEAD_LIFE_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut all = Tally::default();
    for seed in SEEDS.into_iter().chain(own) {
        let Tally { evicted, collected, kept, gone, broken } = live(seed).await;
        all.evicted += evicted;
        all.collected += collected;
        all.kept += kept;
        all.gone += gone;
        all.broken += broken;
    }
    let Tally { evicted, collected, kept, gone, broken } = all;
    assert!(evicted > 100 && collected > 5 && kept > 100 && gone > 10 && broken > 10, "{all:?}");
}
