//! What is made of hot records is never older than the last write that was answered: all orders of the steps of a write, a load and the
//! making of an answer, and then real threads on a real store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::task::TaskTracker;

use super::hot::{Generation, Hot, Key, Record, Stamp};
use super::tests::{at, digest, open_at, repository, revision, tag, tagged};
use super::*;

const OLD: u64 = 1;
const NEW: u64 = 2;
const MOVES: u64 = 150;

fn record(size: u64) -> Record {
    Record::Object(ObjectRecord { size: Some(size), present: true, mark: None })
}

fn size(record: &Record) -> u64 {
    match record {
        Record::Object(object) => object.size.unwrap(),
        _ => panic!("only objects are put in"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Actor {
    /// Holds, commits, settles, answers.
    Writer,
    /// Notes the generation, reads the rows, puts in what it read.
    Loader,
    /// Takes a stamp, looks the record up, keeps what it made of it.
    Maker,
}

const STEPS: [(Actor, usize); 3] = [(Actor::Writer, 4), (Actor::Loader, 3), (Actor::Maker, 3)];

/// Every order in which the actors can take their steps.
fn schedules() -> Vec<Vec<Actor>> {
    let mut whole = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(begun) = open.pop() {
        let mut ended = true;
        for (actor, steps) in STEPS {
            if begun.iter().filter(|step| **step == actor).count() < steps {
                let mut longer = begun.clone();
                longer.push(actor);
                open.push(longer);
                ended = false;
            }
        }
        if ended {
            whole.push(begun);
        }
    }
    whole
}

struct World {
    hot: Hot,
    rows: u64,
    answered: bool,
    taken: [usize; 3],
    generation: Option<Generation>,
    read: u64,
    stamp: Option<Stamp>,
    seen: Option<u64>,
    /// What the maker keeps.
    kept: Option<(u64, Stamp)>,
    /// The same in a cache that is filled by whoever has loaded something, and emptied by whoever has written something.
    naive: Option<u64>,
}

impl World {
    fn new(warm: bool) -> Self {
        let hot = Hot::new(100);
        if warm {
            hot.settle(key(), || Some(record(OLD)));
        }
        Self {
            hot,
            rows: OLD,
            answered: false,
            taken: [0; 3],
            generation: None,
            read: 0,
            stamp: None,
            seen: None,
            kept: None,
            naive: None,
        }
    }

    fn step(&mut self, actor: Actor) {
        let place = STEPS.iter().position(|(other, _)| *other == actor).unwrap();
        let step = self.taken[place];
        self.taken[place] += 1;
        match (actor, step) {
            (Actor::Writer, 0) => self.hot.hold(&key()),
            (Actor::Writer, 1) => self.rows = NEW,
            (Actor::Writer, 2) => {
                self.hot.settle(key(), || Some(record(NEW)));
                self.naive = None;
            }
            (Actor::Writer, _) => self.answered = true,
            (Actor::Loader, 0) => self.generation = Some(self.hot.begin_load(&key())),
            (Actor::Loader, 1) => self.read = self.rows,
            (Actor::Loader, _) => {
                let read = self.read;
                self.hot.finish_load(key(), self.generation.unwrap(), || record(read));
                self.naive = Some(read);
            }
            (Actor::Maker, 0) => self.stamp = Some(self.hot.stamp(&[&key()])),
            (Actor::Maker, 1) => self.seen = self.hot.get(&key()).as_ref().map(size),
            (Actor::Maker, _) => self.kept = self.seen.zip(self.stamp),
        }
    }

    fn current(&self) -> Option<u64> {
        let (value, stamp) = self.kept.as_ref()?;
        self.hot.is_current(stamp).then_some(*value)
    }
}

fn key() -> Key {
    Key::Object(digest("x"))
}

#[test]
fn no_order_of_steps_shows_what_was_before_a_commit() {
    let (mut shown, mut naive_losses) = (0, 0);
    for warm in [false, true] {
        for schedule in schedules() {
            let mut world = World::new(warm);
            for actor in &schedule {
                world.step(*actor);
                if world.rows == NEW {
                    assert_ne!(world.current(), Some(OLD), "warm: {warm}, {schedule:?}");
                    let hot = world.hot.get(&key()).as_ref().map(size);
                    assert_ne!(hot, Some(OLD), "warm: {warm}, {schedule:?}");
                }
            }
            assert!(world.answered);
            shown += usize::from(world.current() == Some(NEW));
            naive_losses += usize::from(world.naive == Some(OLD));
        }
    }
    assert!(shown > 0, "what was made after the write is shown");
    assert!(naive_losses > 0, "these orders are the ones that a cache without generations loses");
}

/// What is kept of the tag, and by how many moves it is known.
type Kept = Mutex<Option<(u64, HotManifest)>>;

fn text(number: u64) -> String {
    format!("m{number}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_never_see_a_tag_where_it_was_before_an_answered_move() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("team/app"), tag("latest"));
    let numbers: Arc<HashMap<_, _>> =
        Arc::new((0..=MOVES).map(|number| (digest(&text(number)), number)).collect());
    let moved_to = |number: u64| {
        tagged(revision("team/app", &text(number), &[], i64::try_from(number).unwrap()), "latest")
    };
    store.commit_revision(moved_to(0)).await.unwrap();
    let kept: Arc<Kept> = Arc::default();
    let (answered, done, uses) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (tasks, mut makers) = (TaskTracker::new(), Vec::new());
    for _ in 0..3 {
        let (store, here, latest) = (store.clone(), here.clone(), latest.clone());
        let (kept, done, numbers) = (Arc::clone(&kept), Arc::clone(&done), Arc::clone(&numbers));
        makers.push(tasks.spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let record = store.tag(&here, &latest).await.unwrap().unwrap();
                let digest = record.digest.unwrap();
                store.revision(&here, &digest).await.unwrap().unwrap();
                if let Some(made) = store.hot_manifest(&here, Some(&latest), &digest) {
                    *kept.lock().unwrap() = Some((numbers[&digest], made));
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, kept) = (store.clone(), Arc::clone(&kept));
            let (answered, done, uses) =
                (Arc::clone(&answered), Arc::clone(&done), Arc::clone(&uses));
            std::thread::spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let before = answered.load(Ordering::SeqCst);
                    let made = kept.lock().unwrap().clone();
                    if let Some((number, made)) = made
                        && store.is_current(&made.stamp)
                    {
                        assert!(number >= before, "move {before} was answered, {number} is shown");
                        uses.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    for number in 1..=MOVES {
        store.commit_revision(moved_to(number)).await.unwrap();
        answered.store(number, Ordering::SeqCst);
        // Somebody has to see it before it moves on, or nothing would be shown.
        let shown = uses.load(Ordering::SeqCst);
        while uses.load(Ordering::SeqCst) == shown {
            tokio::task::yield_now().await;
        }
    }
    done.store(true, Ordering::SeqCst);
    for maker in makers {
        maker.await.unwrap();
    }
    for reader in readers {
        reader.join().unwrap();
    }
    assert!(uses.load(Ordering::SeqCst) >= MOVES);
    store.close().await;
}

#[tokio::test]
async fn each_kind_of_write_outdates_what_it_changes_before_its_answer() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest, m1) = (repository("team/app"), tag("latest"), digest("m1"));
    let commit = || tagged(revision("team/app", "m1", &["l1"], 7), "latest");
    let made = || store.hot_manifest(&here, Some(&latest), &m1);
    assert!(made().is_none(), "nothing is known yet");
    store.commit_revision(commit()).await.unwrap();
    store.set_visibility(&here, true, at(7)).await.unwrap();
    let first = made().unwrap();
    assert_eq!(first.tag.as_ref().unwrap().confirmed, at(7));
    assert_eq!(first.visibility, Some((true, at(7))));
    assert!(store.is_current(&first.stamp));

    store.confirm_tag(&here, &latest, at(9));
    assert!(!store.is_current(&first.stamp), "a confirmation counts at once");
    let second = made().unwrap();
    assert_eq!(second.tag.as_ref().unwrap().confirmed, at(9));

    let renewed = Proof { proved: at(10), credential: Some([3; 16]) };
    store.prove(&here, &m1, None, renewed).await.unwrap();
    assert!(!store.is_current(&second.stamp), "a proof");
    let third = made().unwrap();
    assert_eq!(third.proof, renewed);

    store.set_visibility(&here, false, at(11)).await.unwrap();
    assert!(!store.is_current(&third.stamp), "a verdict");
    let fourth = made().unwrap();
    assert_eq!(fourth.visibility, Some((false, at(11))));

    store.set_absent(&m1, true).await.unwrap();
    assert!(!store.is_current(&fourth.stamp), "absence");
    assert!(made().is_none(), "the bytes are not here");
    store.set_present(&m1, 2).await.unwrap();
    let fifth = made().unwrap();

    store.move_tag(&here, &latest, None, "registry-1.docker.io", at(12)).await.unwrap();
    assert!(!store.is_current(&fifth.stamp), "the end of the tag");
    assert!(made().is_none(), "it points at nothing");
    assert!(store.hot_manifest(&here, None, &m1).is_some(), "the revision stays");
    assert!(store.hot_manifest(&repository("team/other"), None, &m1).is_none());
    store.close().await;
}

#[tokio::test]
async fn an_end_that_cannot_be_written_outdates_everything() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, m1) = (repository("team/app"), digest("m1"));
    store.commit_revision(tagged(revision("team/app", "m1", &[], 7), "latest")).await.unwrap();
    let made = store.hot_manifest(&here, None, &m1).unwrap();
    let broken = testing::Plan { at: 1, lasting: true, fault: testing::Fault::Full };
    store.fail_writes(Some(broken));
    store.set_absent(&m1, false).await.unwrap_err();
    assert!(!store.is_current(&made.stamp));
    assert!(store.hot_manifest(&here, None, &m1).is_none(), "the rows tell what is not so");
    store.fail_writes(None);
    store.flush().await.unwrap();
    assert!(!store.is_current(&made.stamp), "it is written now");
    assert!(store.hot_manifest(&here, None, &m1).is_none());
    store.close().await;
}
