//! What clients are served while somebody records: noted on the way of an answer, written behind it.
//!
//! What must hold: a request never waits for a row, and none fails because one cannot be written; while nothing is recorded, an answer
//! costs one look at a flag. What was noted is known here until its row is written, and what could not be written is told at the end
//! rather than forgotten in silence. Memory is bounded, whatever clients ask for. A crash loses what was served within the last moment.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::filter::Filter;
use super::settings::IMAGES_MAX;
use crate::clock::Clock;
use crate::metadata::{Metadata, RepositoryKey, SetMember};
use crate::oci::{Digest, Tag};

/// Recordings that may run at once; each answer is compared with the filter of each.
pub const RECORDINGS_MAX: usize = 16;
/// Images of one recording whose rows could not be written yet. What is served beyond that is counted and not noted; an image takes
/// about 300 bytes.
const WAITING_MAX: usize = 10_000;
/// Rows that are written at once.
const BATCH: usize = 256;
/// Between two attempts to write rows: the first time, and at the most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Notes which manifests clients are served. Clones are handles to the same.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

/// A manifest that a client was just served, by whatever kind of answer.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The address as access control sees it.
    pub client: IpAddr,
    pub repository: &'a RepositoryKey,
    /// The tag by which it was asked for, if that is what the tag is now.
    pub tag: Option<&'a Tag>,
    pub digest: &'a Digest,
}

struct Inner {
    /// Is anything recorded? Read by every answer; changed with the state locked.
    on: AtomicBool,
    state: Mutex<State>,
    /// Its key is secret, so nobody can choose names that collide.
    hasher: RandomState,
    metadata: Metadata,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct State {
    recordings: Vec<Recording>,
    /// What recordings that have ended could not note in rows, and nobody was told; at most as many as may run.
    untold: Vec<(i64, Left)>,
    /// A task writes, and looks once more before it ends.
    writing: bool,
}

/// One recording that runs.
struct Recording {
    id: i64,
    filter: Filter,
    /// What was noted, as hashes.
    noted: HashSet<u64>,
    /// What has no row yet, in the order in which it came. Only whoever writes takes something away, from the front.
    waiting: Vec<SetMember>,
    left: Left,
}

/// What a recording could not note in rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Left {
    /// Its rows could not be written, or its revision has none because it passed by the store.
    pub(super) members: Vec<SetMember>,
    /// Answers that were not noted at all, because too much was waiting or the recording is full.
    pub(super) answers: u64,
}

impl Recorder {
    pub(super) fn new(
        metadata: Metadata,
        clock: Arc<dyn Clock>,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            on: AtomicBool::new(false),
            state: Mutex::default(),
            hasher: RandomState::new(),
            metadata,
            clock,
            tasks,
            shutdown,
        }))
    }

    /// Is anything recorded? To be asked before [`Recorder::note`]; it costs nothing.
    pub fn is_recording(&self) -> bool {
        self.0.on.load(Relaxed)
    }

    /// Notes what a client was served, in each recording that is of it. Never waits for a row.
    pub fn note(&self, served: &Served<'_>) {
        let place = self.0.hasher.hash_one((served.repository, served.tag, served.digest));
        let mut state = self.0.state();
        let mut added = false;
        for recording in &mut state.recordings {
            if !recording.filter.covers(served.client, &served.repository.upstream)
                || recording.noted.contains(&place)
            {
                continue;
            }
            if recording.is_full() {
                recording.left.answers += 1;
                continue;
            }
            recording.noted.insert(place);
            recording.waiting.push(SetMember {
                repository: served.repository.clone(),
                digest: *served.digest,
                tag: served.tag.cloned(),
                at: self.0.clock.now(),
            });
            added = true;
        }
        if added && !state.writing {
            state.writing = true;
            let inner = Arc::clone(&self.0);
            self.0.tasks.spawn(async move { inner.write().await });
        }
    }

    /// Begins to note for a recording. Refused (`false`) when there are as many as there may be.
    pub(super) fn begin(&self, id: i64, filter: Filter) -> bool {
        let mut state = self.0.state();
        if state.recordings.iter().any(|recording| recording.id == id) {
            return true;
        }
        if state.recordings.len() >= RECORDINGS_MAX {
            return false;
        }
        let (noted, waiting, left) = (HashSet::new(), Vec::new(), Left::default());
        state.recordings.push(Recording { id, filter, noted, waiting, left });
        self.0.on.store(true, Relaxed);
        true
    }

    /// How many recordings run.
    pub(super) fn count(&self) -> usize {
        self.0.state().recordings.len()
    }

    /// Ends a recording, and gives what has no row: what could not be written, and what was still waiting for it. Of one that has ended
    /// before it is what was put back.
    pub(super) fn end(&self, id: i64) -> Left {
        let mut state = self.0.state();
        let untold = state.untold.iter().position(|(of, _)| *of == id);
        let mut left = untold.map(|at| state.untold.remove(at).1).unwrap_or_default();
        let at = state.recordings.iter().position(|recording| recording.id == id);
        let Some(recording) = at.map(|at| state.recordings.swap_remove(at)) else {
            return left;
        };
        self.0.on.store(!state.recordings.is_empty(), Relaxed);
        left.members.extend(recording.left.members);
        left.members.extend(recording.waiting);
        left.answers += recording.left.answers;
        left
    }

    /// Keeps what an end gave for the next end of the same recording, because nobody waited to be told of it. Lost when the program ends.
    pub(super) fn put_back(&self, id: i64, left: Left) {
        if left.members.is_empty() && left.answers == 0 {
            return;
        }
        let mut state = self.0.state();
        if state.untold.len() >= RECORDINGS_MAX {
            // The oldest, which may be of a set that was forgotten since.
            state.untold.remove(0);
        }
        state.untold.push((id, left));
    }
}

#[cfg(test)]
impl Recorder {
    /// One that records nothing, for tests of the faces.
    pub(crate) fn idle(registry: &crate::registry::Registry) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(crate::clock::SystemClock);
        let metadata = registry.rows().clone();
        Self::new(metadata, clock, TaskTracker::new(), CancellationToken::new())
    }
}

impl Recording {
    fn is_full(&self) -> bool {
        self.noted.len() >= IMAGES_MAX
            || self.waiting.len().saturating_add(self.left.members.len()) >= WAITING_MAX
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until nothing waits. While rows cannot be written it tries again and again, until the program stops.
    async fn write(&self) {
        let mut pause = PAUSE.0;
        while let Some(batches) = self.batches() {
            let mut failed = false;
            for (id, members) in batches {
                failed |= !self.write_some(id, members).await;
            }
            if !failed {
                pause = PAUSE.0;
                continue;
            }
            if self.shutdown.is_cancelled() {
                let mut state = self.state();
                state.writing = false;
                let lost: usize = state.recordings.iter().map(|one| one.waiting.len()).sum();
                tracing::error!(
                    lost,
                    "images that were pulled are in no recording, because their rows cannot be written"
                );
                return;
            }
            // The end of the program is worth one more attempt.
            drop(tokio::time::timeout(pause, self.shutdown.cancelled()).await);
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// The next rows of each recording; `None` if nothing waits, and then nobody writes any more.
    fn batches(&self) -> Option<Vec<(i64, Vec<SetMember>)>> {
        let mut state = self.state();
        let waiting = state.recordings.iter().filter(|one| !one.waiting.is_empty());
        let batches: Vec<_> = waiting
            .map(|one| (one.id, one.waiting.iter().take(BATCH).cloned().collect()))
            .collect();
        state.writing = !batches.is_empty();
        state.writing.then_some(batches)
    }

    /// Writes rows of a recording, unless they cannot be written now.
    async fn write_some(&self, id: i64, members: Vec<SetMember>) -> bool {
        let count = members.len();
        let unknown = match self.metadata.add_members(id, members).await {
            Ok(unknown) => unknown,
            Err(error) => {
                tracing::warn!(?error, "what is recorded cannot be written now");
                return false;
            }
        };
        let mut state = self.state();
        // It may have ended meanwhile; whoever ended it has them.
        if let Some(recording) = state.recordings.iter_mut().find(|one| one.id == id) {
            recording.waiting.drain(..count);
            recording.left.members.extend(unknown);
        }
        true
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("recordings", &self.count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
