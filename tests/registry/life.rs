//! The life of content against a small model of it: random pulls, moves of tags, deletions, forced removals, pins, freezes, imports,
//! recordings, sets that are kept and forgotten, evictions, collections, crashes, failing disks and failing writes of rows, one after the
//! other and at the same time, and what must hold.
//!
//! What must hold after every step: a row that says "present" has a file with the bytes of its name; nothing that is kept and was here is
//! gone; nothing that a live image needs was forgotten; what was taken away by force comes back with a pull or a bundle alone; a set has the
//! members that it was given, and a bundle comes whole or not at all. Unless something
//! crashed or failed since the last sweep no file is without a row. A step that fails has changed nothing that the model knows of, and
//! succeeds when it is done again. After a `gc` that wants everything gone, nothing is left but what is kept or young.
//!
//! The seeds are fixed; `ROADSTEAD_LIFE_SEED` adds some, and a failure names its seed and step.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]
#![expect(clippy::print_stderr, reason = "the last line of a seed names the step that failed")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use roadstead::blobs::testing::{Fault, Plan};
use roadstead::metadata::testing::{Fault as RowFault, Plan as RowPlan};
use roadstead::metadata::{Rule, RuleKind};
use roadstead::oci::Digest;

use super::life_carry::{Bundle, Load, SETS, set_name};
use super::life_house::{Done, House, Tally};
use super::life_images::{
    IMAGES, REPOSITORIES, TAGS, children, closure, digest_of, goes_with, name_of, objects,
    repository, scope, subject, tag,
};
use super::life_model::Move;

const SEEDS: [u64; 6] = [1, 20, 300, 4000, 50_000, 600_000];
const STEPS: usize = 330;
/// Scopes that rules of the test have.
const SCOPES: usize = 60;

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }

    /// A step of the disk or of the writer of rows at which something breaks.
    fn place(&mut self, bound: usize) -> u64 {
        u64::try_from(1 + self.below(bound)).unwrap()
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
    /// One that an index of the repository needs goes by force alone, and its bytes at once.
    DeleteRevision {
        repository: usize,
        image: usize,
        force: bool,
    },
    /// The bytes of an object go at once, whoever needs them.
    Remove {
        object: usize,
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
    /// A pull into each repository, a collection, and something else, at the same time.
    Together {
        images: [usize; REPOSITORIES.len()],
        tag: usize,
        beside: Beside,
    },
    Import(Bundle),
    /// A recording begins, or the one of that name ends.
    Record {
        set: usize,
    },
    Keep {
        set: usize,
        kept: bool,
    },
    Forget {
        set: usize,
    },
    Sweep,
    Crash,
}

/// What is done beside pulls and a collection.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    Pin(usize),
    Import(Bundle),
    Forget(usize),
}

/// What somebody was told beside the pulls.
enum Known {
    Nothing,
    Rule(Box<Rule>),
    Moved(bool),
}

impl House {
    /// Does the step in the store and, if it succeeded, in the model.
    async fn step(&mut self, step: Step) -> Done {
        let now = self.now();
        self.model.now = now;
        match step {
            Step::Pull { repository, image, tag: number } => {
                closure(image).iter().for_each(|object| {
                    self.model.removed.remove(object);
                });
                self.pull(repository, image, number.map(tag)).await?;
                self.pulled(repository, image, number).await;
                self.recorded(repository, image, number).await?;
            }
            Step::Import(bundle) => self.take_in(&bundle).await?,
            Step::Record { set } => self.record(set).await?,
            Step::Keep { set, kept } => self.keep(set, kept).await?,
            Step::Forget { set } => self.forget(set).await?,
            Step::Remove { object } => self.remove(&objects()[object]).await?,
            Step::Pin { scope: number } => self.rule(RuleKind::Pin, number).await?,
            Step::Freeze { scope: number } => self.rule(RuleKind::Freeze, number).await?,
            Step::Release => {
                if let Some((id, ..)) = self.model.rules.last() {
                    assert!(self.content().metadata().remove_rule(*id).await?);
                    self.model.rules.pop();
                }
                // What a rule kept until now is looked at again after another grace time.
                self.model.dead.values_mut().for_each(|since| *since = now);
            }
            Step::Wait { minutes } => {
                self.clock.advance(Duration::from_secs(u64::try_from(minutes).unwrap() * 60));
            }
            Step::Gc { everything } => self.collect(everything).await?,
            Step::Together { images, tag, beside } => self.together(images, tag, beside).await,
            Step::Sweep => self.sweep().await,
            Step::Crash => self.crash().await,
            other => self.delete(other).await?,
        }
        Ok(())
    }

    /// Steps that take tags, links and revisions away.
    async fn delete(&mut self, step: Step) -> Done {
        let (now, rows) = (self.now(), self.content().metadata().clone());
        match step {
            Step::Absent { repository: at, tag: number } => {
                rows.move_tag(&repository(at), &tag(number), None, "upstream", now).await?;
                let is_known = self.model.current.contains_key(&(at, number));
                let timeline = self.model.timelines.get_mut(&(at, number));
                let points = |all: &&mut Vec<Move>| all.last().is_some_and(|last| last.1.is_some());
                if let Some(timeline) = timeline.filter(points).filter(|_| is_known) {
                    timeline.push((now, None));
                }
            }
            Step::DeleteTag { repository: at, tag: number } => {
                rows.delete_tag(&repository(at), &tag(number)).await?;
                self.model.delete_tag(at, number);
            }
            Step::DeleteLink { repository: at, tag: number, image: which } => {
                let revision = digest_of(which);
                rows.delete_link(&repository(at), &tag(number), &revision).await?;
                self.delete_link(at, number, which);
            }
            Step::DeleteRevision { repository: at, image: which, force } => {
                self.delete_revision(at, which, force).await?;
            }
            other => panic!("{other:?} is no deletion"),
        }
        Ok(())
    }

    /// The model learns of a pull that went well; all of the image must be here.
    async fn pulled(&mut self, at: usize, number: usize, tag: Option<usize>) {
        let present = self.present().await;
        for object in closure(number) {
            assert!(present.contains(&object), "{} was pulled and is not here", name_of(&object));
        }
        let waited = self.model.may_return(at, children(number).into_iter().chain([number]));
        self.model.pull(at, number, tag, self.now());
        self.returned(at, waited).await;
    }

    /// What belongs to an image or refers to it waits no more when the image is back, unless it was collected before.
    pub async fn returned(&mut self, at: usize, waited: BTreeSet<usize>) {
        for other in waited {
            match self.waits(at, other).await {
                None => {}
                // It was let go behind the pull that could have brought it back.
                Some(true) => assert!(self.undecided, "image {other} still waits for its end"),
                Some(false) => {
                    self.model.dead.remove(&(at, other));
                    self.model.live.insert((at, other));
                    self.tally.returned += 1;
                }
            }
        }
    }

    /// Does a revision wait for its end? `None`: it is not known any more.
    async fn waits(&self, at: usize, number: usize) -> Option<bool> {
        let rows = self.content().metadata();
        let holders = rows.holders(&digest_of(number), 1000).await.unwrap().revisions;
        let mut own = holders.into_iter().filter(|one| one.revision == digest_of(number));
        let own = own.find(|one| one.repository == repository(at));
        own.map(|own| own.unlinked.is_some())
    }

    /// Takes bytes away, and looks at who is told to be incomplete.
    async fn remove(&mut self, object: &Digest) -> Done {
        // They may be gone although the order fails.
        let was_here = self.before.remove(object);
        self.content().remove(object).await?;
        self.model.removed.insert(*object);
        let wanted = self.model.needing(object);
        let holders = self.content().metadata().holders(object, 1000).await?;
        let needing = holders.revisions.iter().filter(|one| !one.over_subject);
        let told: BTreeSet<String> = needing
            .filter(|one| one.unlinked.is_none())
            .map(|one| {
                format!("{}/{}@{}", one.repository.upstream, one.repository.name, one.revision)
            })
            .collect();
        let wanted: BTreeSet<String> = wanted
            .into_iter()
            .map(|(at, number)| format!("{}@{}", REPOSITORIES[at], digest_of(number)))
            .collect();
        assert_eq!(told, wanted, "those that need {}", name_of(object));
        self.tally.forced += u64::from(was_here && !told.is_empty());
        Ok(())
    }

    async fn collect(&mut self, everything: bool) -> Done {
        let report = self.gc(everything).await.ok_or("the job failed")?;
        self.note(&report);
        // With a fault under it, it may have left what it could not take.
        if report.failed > 0 || self.is_broken() {
            return Err("it could not take everything".into());
        }
        let rows = self.content().metadata().clone();
        for (at, number) in self.model.must_be_gone(self.now()) {
            let revision = digest_of(number);
            if rows.revision(&repository(at), &revision).await?.is_some() {
                let holders = rows.holders(&revision, 99).await?;
                let doomed = rows.doomed(self.now(), 1000).await?;
                let doomed = doomed.into_iter().find(|doomed| doomed.digest == revision);
                panic!("image {number} is still in {}: {doomed:?} {holders:#?}", REPOSITORIES[at]);
            }
            self.model.leave(at, number);
            self.tally.gone += 1;
            self.tally.followed += u64::from(subject(number).is_some());
        }
        if everything {
            self.check_emptied().await;
            // What was looked at and kept is looked at again later.
            self.used_now().await;
        }
        Ok(())
    }

    /// Only what is certain in any order is compared: every pull is whole, and what was kept all the time is here.
    async fn together(
        &mut self,
        images: [usize; REPOSITORIES.len()],
        number: usize,
        beside: Beside,
    ) {
        let kept = self.model.kept(self.now());
        for object in images.into_iter().flat_map(closure) {
            self.model.removed.remove(&object);
        }
        if let Beside::Import(bundle) = &beside {
            self.brought(bundle);
        }
        let pulls = images.into_iter().enumerate();
        let pulls = join_all(pulls.map(|(at, which)| self.pull(at, which, Some(tag(number)))));
        let (pulls, done, report) = tokio::join!(pulls, self.beside(beside), self.gc(true));
        for pull in pulls {
            pull.expect("nothing is broken");
        }
        let report = report.expect("nothing is broken");
        assert_eq!(report.failed, 0);
        self.note(&report);
        let dead = self.model.dead.clone();
        if let Beside::Forget(set) = beside {
            self.model.forget(set);
        }
        self.undecided = self.model.dead.keys().any(|revision| !dead.contains_key(revision));
        for (at, which) in images.into_iter().enumerate() {
            self.pulled(at, which, Some(number)).await;
        }
        self.undecided = false;
        // The new pin may have come too late for what was kept by nothing else.
        let still = self.model.kept(self.now());
        self.before.retain(|object| kept.contains(object) && still.contains(object));
        match (done, beside) {
            (Known::Rule(rule), Beside::Pin(number)) => {
                self.check().await;
                self.know(*rule, number);
            }
            (Known::Moved(moved), Beside::Import(bundle)) => {
                let all = bundle.included(&BTreeSet::new()).expect("it is whole");
                self.taken_in(&bundle, &all, moved).await;
                self.check().await;
            }
            _ => self.check().await,
        }
        for (at, which) in images.into_iter().enumerate() {
            self.recorded(at, which, Some(number)).await.expect("nothing is broken");
        }
        self.before.clear();
        self.used_now().await;
    }

    async fn beside(&self, beside: Beside) -> Known {
        let rows = self.content().metadata();
        match beside {
            Beside::Nothing => {}
            Beside::Pin(number) => {
                let scope = scope(number).parse().unwrap();
                let rule = rows.add_rule(RuleKind::Pin, scope, None, String::new()).await;
                return Known::Rule(Box::new(rule.unwrap()));
            }
            Beside::Import(bundle) => {
                let moved = self.import(&bundle).await.expect("nothing is broken");
                return Known::Moved(moved.expect("it is whole"));
            }
            Beside::Forget(set) if self.model.sets.contains_key(&set) => {
                let removed = self.carry().remove_set(set_name(set).as_str()).await;
                assert!(removed.expect("nothing is broken"), "there is one");
            }
            Beside::Forget(_) => {}
        }
        Known::Nothing
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

    /// A revision that an index of the repository needs goes as the desk does it: not at all, or bytes first.
    async fn delete_revision(&mut self, at: usize, which: usize, force: bool) -> Done {
        let needed = self
            .model
            .live
            .iter()
            .any(|(of, parent)| *of == at && children(*parent).contains(&which));
        if needed && !force {
            return Ok(());
        }
        let revision = digest_of(which);
        if needed {
            self.remove(&revision).await?;
        }
        let rows = self.content().metadata().clone();
        let deleted = rows.delete_revision(&repository(at), &revision).await?;
        self.model.leave(at, which);
        self.model.wait_again(which);
        let all: Vec<usize> = (0..TAGS.len()).collect();
        for number in all {
            let Some(timeline) = self.model.timelines.get_mut(&(at, number)) else {
                continue;
            };
            timeline.retain(|(_, image)| *image != Some(which));
            self.cut(at, number, which);
        }
        if deleted.found {
            self.model.unlink(at, &goes_with(which));
        }
        Ok(())
    }

    async fn rule(&mut self, kind: RuleKind, number: usize) -> Done {
        let (rows, scope) = (self.content().metadata().clone(), scope(number).parse().unwrap());
        let rule = rows.add_rule(kind, scope, None, "a test".to_owned()).await?;
        self.know(rule, number);
        Ok(())
    }

    /// Breaks something, does the step, mends it with or without a restart, and says whether the step is done.
    async fn broken(&mut self, step: Step, random: &mut Random) -> bool {
        let on_disk = matches!(
            step,
            Step::Pull { .. } | Step::Gc { .. } | Step::Remove { .. } | Step::Import(_)
        );
        let of_rows = random.below(2) == 0;
        if matches!(step, Step::Together { .. } | Step::Crash | Step::Sweep) || !on_disk && !of_rows
        {
            return false;
        }
        if of_rows {
            let fault = [RowFault::Full, RowFault::Io, RowFault::Busy][random.below(3)];
            let plan = RowPlan { at: random.place(6), lasting: random.below(3) > 0, fault };
            self.break_rows(plan);
        } else {
            self.break_disk(Plan {
                at: random.place(8),
                lasting: true,
                fault: Fault::Io,
                only: None,
            });
        }
        let done = self.step(step).await.is_ok();
        let failed = u64::from(!done);
        if !of_rows {
            self.tally.broken += failed;
            self.crash().await;
        } else if random.below(2) == 0 {
            self.tally.unwritten += failed;
            self.crash().await;
        } else {
            self.tally.unwritten += failed;
            self.tally.healed += failed;
            self.heal().await;
        }
        self.check().await;
        done
    }
}

fn any_step(random: &mut Random) -> Step {
    let (repository, tag) = (random.below(REPOSITORIES.len()), random.below(TAGS.len()));
    let (image, set) = (random.below(IMAGES), random.below(SETS));
    match random.below(45) {
        0..=6 => Step::Pull { repository, image, tag: (random.below(4) > 0).then_some(tag) },
        7 => Step::Absent { repository, tag },
        8 => Step::DeleteTag { repository, tag },
        9 => Step::DeleteLink { repository, tag, image },
        10..=11 => Step::DeleteRevision { repository, image, force: random.below(2) == 0 },
        12..=13 => Step::Remove { object: random.below(objects().len()) },
        14 => Step::Pin { scope: random.below(SCOPES) },
        15 => Step::Freeze { scope: random.below(SCOPES) },
        16..=18 => Step::Release,
        19..=22 => Step::Wait { minutes: [10, 100, 700, 1500, 3000][random.below(5)] },
        23 => Step::Gc { everything: false },
        24..=25 => Step::Gc { everything: true },
        26..=27 => Step::Together {
            images: [image, random.below(IMAGES), random.below(IMAGES)],
            tag,
            beside: match random.below(6) {
                0 => Beside::Pin(random.below(SCOPES)),
                1 => Beside::Forget(set),
                // Another tag than that of the pulls, so that it is certain where both are in the end.
                2..=3 => {
                    let load = if random.below(2) == 0 { Load::Whole } else { Load::Signed };
                    let tag = Some((tag + 1) % TAGS.len());
                    Beside::Import(bundle(random, (repository, tag), load, set))
                }
                _ => Beside::Nothing,
            },
        },
        28 => Step::Sweep,
        29..=33 => {
            let load = match random.below(6) {
                0 => Load::Signed,
                1..=4 => Load::Delta(random.below(IMAGES)),
                _ => Load::Whole,
            };
            let tag = (random.below(4) > 0).then_some(tag);
            Step::Import(bundle(random, (repository, tag), load, set))
        }
        34..=37 => Step::Record { set },
        38..=39 => Step::Keep { set, kept: random.below(4) == 0 },
        40..=43 => Step::Forget { set },
        _ => Step::Crash,
    }
}

fn bundle(
    random: &mut Random,
    (repository, tag): (usize, Option<usize>),
    load: Load,
    set: usize,
) -> Bundle {
    let since = [None, Some(0), Some(20), Some(200), Some(5000)][random.below(5)];
    Bundle { repository, image: random.below(IMAGES), tag, since, load, set }
}

async fn live(seed: u64) -> Tally {
    let (mut random, mut house) = (Random(seed), House::new());
    for number in 0..STEPS {
        let step = any_step(&mut random);
        house.clock.advance(Duration::from_secs(1));
        house.before = house.present().await;
        eprintln!("seed {seed}, step {number}: {step:?}");
        // Now and then something fails; then the same is done again.
        if random.below(4) == 0 && house.broken(step, &mut random).await {
            continue;
        }
        if let Err(error) = house.step(step).await {
            panic!("a step fails although nothing is broken: {error}");
        }
        house.check().await;
    }
    house.crash().await;
    house.check().await;
    house.close().await
}

#[tokio::test]
async fn content_lives_as_the_model_says() {
    let own = std::env::var("ROADSTEAD_LIFE_SEED").unwrap_or_default();
    let own = own.split_whitespace().map(|seed| seed.parse().expect("a number"));
    // At the same time, because each of them mostly waits for its disk.
    let lives = SEEDS.into_iter().chain(own).map(|seed| async move {
        let life = AssertUnwindSafe(live(seed)).catch_unwind().await;
        life.unwrap_or_else(|failure| {
            eprintln!("seed {seed} failed at its last step above");
            resume_unwind(failure)
        })
    });
    let mut all = Tally::default();
    for tally in join_all(lives).await {
        all.add(tally);
    }
    let Tally { evicted, collected, kept, gone, broken, .. } = all;
    assert!(evicted > 40 && collected > 2 && kept > 100 && gone > 4 && broken > 10, "{all:?}");
    let Tally { unwritten, healed, forced, followed, returned, .. } = all;
    assert!(unwritten > 20 && healed > 10 && forced > 10, "{all:?}");
    assert!(followed > 0 && returned > 1, "{all:?}");
    let Tally { imported, refused, unmoved, recorded, forgotten, .. } = all;
    assert!(imported > 100 && refused > 2 && unmoved > 20, "{all:?}");
    assert!(recorded > 4 && forgotten > 50, "{all:?}");
}
