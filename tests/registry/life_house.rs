//! The store of [`super::life`]: opened, pulled into, swept, crashed, and held against the model.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use roadstead::blobs::RealDisk;
use roadstead::blobs::testing::{FaultyDisk, Plan};
use roadstead::carry::Carry;
use roadstead::clock::{Clock, ManualClock, Timestamp};
use roadstead::content::{self, Content, Haste, KeepPolicy, MinFree, UpstreamKeep};
use roadstead::metadata::testing::Plan as RowPlan;
use roadstead::metadata::{Proof, RevisionCommit, Rule, RuleKind, TagMove};
use roadstead::oci::{Digest, Manifest, Tag};
use roadstead::upkeep::{Event, JobKind, Parts, Report, Settings, Upkeep};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::life_carry::{Quay, SETS};
use super::life_images::{
    IMAGES, REPOSITORIES, blob, blobs, children, digest, digest_of, family, image,
    list_of_referrers, name_of, repository, scope,
};
use super::life_model::{COARSE, GRACE, LAST, Model, YOUNG};

/// What a step could not do.
pub type Done = Result<(), Box<dyn Error>>;

/// A store, what keeps it small, and what should be true of it.
pub struct House {
    dir: TempDir,
    disk: Arc<FaultyDisk>,
    pub clock: ManualClock,
    open: Option<Open>,
    settings: Settings,
    quay: Quay,
    pub model: Model,
    pub tally: Tally,
    /// What was here before the step, except what the step may take away.
    pub before: BTreeSet<Digest>,
    /// Whether a revision came back or was let go is decided by which of two things came first.
    pub undecided: bool,
    /// Nothing crashed or failed since the last sweep.
    tidy: bool,
    /// Something is broken on purpose.
    faulty: bool,
}

/// How much of everything happened, so that the test cannot pass by doing nothing.
#[derive(Debug, Default)]
pub struct Tally {
    pub evicted: u64,
    pub collected: u64,
    pub kept: u64,
    pub gone: u64,
    /// Steps that the disk broke.
    pub broken: u64,
    /// Steps that the writer of rows broke, and those of them that were done again without a restart.
    pub unwritten: u64,
    pub healed: u64,
    /// Objects whose bytes were taken although something needs them.
    pub forced: u64,
    /// Referrers that went with what they refer to, and those that came back with it.
    pub followed: u64,
    pub returned: u64,
    /// Bundles that were taken in, and those that were refused because what they build on was not here.
    pub imported: u64,
    pub refused: u64,
    /// Tags that an import did not move.
    pub unmoved: u64,
    /// Recordings that were closed, and sets that were forgotten.
    pub recorded: u64,
    pub forgotten: u64,
}

impl Tally {
    fn all(&mut self) -> [&mut u64; 15] {
        let Self {
            evicted,
            collected,
            kept,
            gone,
            broken,
            unwritten,
            healed,
            forced,
            followed,
            returned,
            imported,
            refused,
            unmoved,
            recorded,
            forgotten,
        } = self;
        [
            evicted, collected, kept, gone, broken, unwritten, healed, forced, followed, returned,
            imported, refused, unmoved, recorded, forgotten,
        ]
    }

    pub fn add(&mut self, mut other: Self) {
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            *sum += *more;
        }
    }
}

struct Open {
    content: Content,
    upkeep: Upkeep,
    carry: Carry,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl House {
    pub fn new() -> Self {
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
            quay: Quay::new(),
            model: Model::default(),
            tally: Tally::default(),
            before: BTreeSet::new(),
            undecided: false,
            tidy: true,
            faulty: false,
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
        let carry = self.quay.carry(&parts, &mut registry);
        let upkeep = Upkeep::new(parts, &mut registry);
        self.open = Some(Open { content, upkeep, carry, tasks, stop });
    }

    /// Ends without writing anything more, and starts again.
    pub async fn crash(&mut self) {
        let Open { content, upkeep, carry, tasks, stop } = self.open.take().expect("it is open");
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        drop((content, upkeep, carry));
        self.disk.heal();
        self.faulty = false;
        // Uses that were not written yet are lost.
        self.model.used.clear();
        self.start();
        self.settle().await;
        self.carry().resume().await;
        self.sweep().await;
    }

    /// What was cut short and goes on by itself has gone on: members of sets that were removed.
    async fn settle(&self) {
        for _set in 0..=SETS {
            self.content().metadata().flush().await.expect("the writer works again");
        }
    }

    pub fn break_disk(&mut self, plan: Plan) {
        self.disk.fail(plan);
        (self.faulty, self.tidy) = (true, false);
    }

    pub fn break_rows(&mut self, plan: RowPlan) {
        self.content().metadata().fail_writes(Some(plan));
        (self.faulty, self.tidy) = (true, false);
    }

    /// Did something fail since it was broken?
    pub fn is_broken(&self) -> bool {
        self.faulty && (self.disk.injected() > 0 || self.content().metadata().failed_writes() > 0)
    }

    /// The writer of rows works again, without a restart; files of what could not be written may be left.
    pub async fn heal(&mut self) {
        self.content().metadata().fail_writes(None);
        self.faulty = false;
        // Whatever was cut short has ended.
        self.settle().await;
    }

    /// Ends the house, and tells what happened in it.
    pub async fn close(mut self) -> Tally {
        let open = self.open.take().expect("it is open");
        open.stop.cancel();
        open.content.close().await;
        self.tally
    }

    /// A rule of the model.
    pub fn know(&mut self, rule: Rule, number: usize) {
        self.model.rules.push((rule.id, rule.kind, scope(number), rule.since));
    }

    pub fn note(&mut self, report: &Report) {
        self.tally.evicted += report.evicted;
        self.tally.collected += report.collected;
        self.tally.kept += report.kept;
    }

    pub async fn used_now(&mut self) {
        let now = self.now();
        for object in self.present().await {
            self.model.maybe_used.insert(object, now);
        }
    }

    pub fn content(&self) -> &Content {
        &self.open.as_ref().expect("it is open").content
    }

    pub fn carry(&self) -> &Carry {
        &self.open.as_ref().expect("it is open").carry
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub async fn pull(&self, at: usize, number: usize, tag: Option<Tag>) -> Done {
        let content = self.content();
        let bytes = image(number);
        let document = Manifest::parse(&bytes, None).unwrap();
        let commit = RevisionCommit {
            repository: repository(at),
            digest: digest(&bytes),
            media_type: document.media_type,
            size: u64::try_from(bytes.len()).unwrap(),
            children: document.children,
            subject: document.subject.map(|subject| subject.digest),
            artifact_type: document.artifact_type,
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
        content.metadata().touch(&digest_of(number), self.now());
        content.metadata().flush().await?;
        Ok(())
    }

    /// Runs a job to its end, and tells what it did; `None` if it failed.
    pub async fn gc(&self, everything: bool) -> Option<Report> {
        let open = self.open.as_ref().expect("it is open");
        let max_size = everything.then_some(1);
        open.upkeep.configure(Settings { max_size, ..self.settings.clone() });
        let mut job = open.upkeep.begin(JobKind::Gc).await.expect("nothing else runs");
        let mut last = None;
        while let Some(event) = job.next().await {
            last = Some(event);
        }
        let Some(Event::Ended(report)) = last else {
            return None;
        };
        Some(report)
    }

    /// After it no file is without a row.
    pub async fn sweep(&mut self) {
        let content = self.content();
        let token = CancellationToken::new();
        content.adopt_orphans(Haste::Full, &|_| (), &token).await.expect("the sweep ends");
        self.tidy = true;
        // What the sweep took in is young.
        self.used_now().await;
    }

    pub async fn present(&self) -> BTreeSet<Digest> {
        let rows = self.content().objects(None, 10_000).await.unwrap();
        rows.into_iter().map(|object| object.digest).collect()
    }

    /// What must hold after every step.
    pub async fn check(&self) {
        let present = self.present().await;
        if self.tidy {
            let orphans = self.content().count_orphans(&CancellationToken::new()).await.unwrap();
            assert_eq!(orphans, 0, "a file is without a row");
        }
        for object in &present {
            let file = self.dir.path().join("data/blobs/sha256").join(object.hex());
            let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{object}: {error}"));
            assert_eq!(digest(&bytes), *object, "a row says that another file is here");
        }
        for object in self.model.kept(self.now()).intersection(&self.before) {
            assert!(present.contains(object), "{} is kept and gone", name_of(object));
        }
        let back: Vec<String> = self.model.removed.intersection(&present).map(name_of).collect();
        assert!(back.is_empty(), "{back:?} was taken away by force, and is back");
        let rows = self.content().metadata();
        let counted = rows.usage().await.unwrap().objects;
        assert_eq!(counted, u64::try_from(present.len()).unwrap(), "what is stored is miscounted");
        self.check_sets().await;
        for (at, number) in &self.model.live {
            let (repository, revision) = (repository(*at), digest_of(*number));
            let known = rows.revision(&repository, &revision).await.unwrap();
            assert!(known.is_some(), "image {number} in {} is forgotten", REPOSITORIES[*at]);
            for layer in blobs(*number) {
                let known = rows.blob(&repository, &digest(&blob(layer))).await.unwrap();
                assert!(known.proof.is_some(), "blob {layer} of image {number} is forgotten");
            }
        }
    }

    /// After a `gc` that wanted everything gone.
    pub async fn check_emptied(&self) {
        let (now, mut may) = (self.now(), self.model.may_be_kept(self.now()));
        let young =
            self.model.maybe_used.iter().filter(|(_, used)| now.since(**used) < YOUNG + COARSE);
        may.extend(young.map(|(object, _)| *object));
        // A pin keeps what was deleted, too, as long as it waits.
        let waiting = self.model.dead.keys().filter(|(at, _)| self.model.is_pinned(*at));
        may.extend(waiting.flat_map(|(_, number)| family(*number)));
        let lists = (0..IMAGES).filter(|number| may.contains(&digest_of(*number)));
        let lists: Vec<Digest> = lists.filter_map(list_of_referrers).collect();
        may.extend(lists);
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
}
