//! One running download: what is here, what was asked for, and how it ended.
//!
//! [`State`] is a small synchronous machine, events in and views out, so that a plain test can enumerate all interleavings. [`Flight`]
//! puts it behind a lock and wakes those who wait. What must hold: a failed flight takes no joiners; a source that upstream refuses
//! fails all the clients that brought it and only those; nobody sees the last [`HOLD_BACK`] bytes before the digest is right; a verified flight never
//! fails. The flight knows nothing of clients: a follower that goes away leaves no trace.

use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;

use super::interval::IntervalSet;
use crate::metadata::RepositoryKey;
use crate::upstream;

/// Bytes at the end of a blob that no client gets before the digest is verified; a blob no larger than this is verified before its
/// headers go out.
pub(super) const HOLD_BACK: u64 = 64 * 1024;

/// Why a download ended without its content.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Upstream(upstream::Error),
    /// The bytes are not what the digest names.
    DigestMismatch,
    /// Upstream sent more or fewer bytes than it announced.
    LengthMismatch,
    /// The store has no room, or cannot be written; clients are served past it.
    Store,
    /// The task that filled it is gone: shutdown, or a bug.
    Abandoned,
}

impl Failure {
    /// The word for logs and metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Upstream(error) => error.reason(),
            Self::DigestMismatch => "digest_mismatch",
            Self::LengthMismatch => "length_mismatch",
            Self::Store => "store",
            Self::Abandoned => "abandoned",
        }
    }
}

#[derive(Clone, Debug)]
enum Phase {
    Connecting,
    Streaming,
    Verified,
    Failed(Failure),
}

/// Where a client may be answered from: each brings its own.
#[derive(Debug)]
struct Source {
    key: RepositoryKey,
    standing: Standing,
}

#[derive(Clone, Debug)]
enum Standing {
    Waiting,
    Trying,
    Refused(upstream::Error),
}

/// What a follower at some position sees.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// Nothing yet: wait for a change.
    Wait,
    /// The follower's own source was refused by upstream.
    Refused(upstream::Error),
    Failed(Failure),
    /// Bytes up to `readable_to` may be read; the whole has `size` bytes.
    Ready {
        size: u64,
        readable_to: u64,
    },
}

/// The machine behind a [`Flight`].
#[derive(Debug)]
pub(super) struct State {
    phase: Phase,
    /// Size of the whole, once it may be announced to clients.
    size: Option<u64>,
    covered: IntervalSet,
    sources: Vec<Source>,
}

impl State {
    fn new() -> Self {
        Self {
            phase: Phase::Connecting,
            size: None,
            covered: IntervalSet::default(),
            sources: Vec::new(),
        }
    }

    /// A client of `key` joins; the answer is the number of its source. `None`: this flight has failed, start another.
    fn join(&mut self, key: &RepositoryKey) -> Option<usize> {
        if matches!(self.phase, Phase::Failed(_)) {
            return None;
        }
        if let Some(index) = self.sources.iter().position(|source| source.key == *key) {
            return Some(index);
        }
        self.sources.push(Source { key: key.clone(), standing: Standing::Waiting });
        Some(self.sources.len() - 1)
    }

    /// The next source that was not tried yet.
    fn next_source(&mut self) -> Option<usize> {
        let index =
            self.sources.iter().position(|source| matches!(source.standing, Standing::Waiting))?;
        self.sources[index].standing = Standing::Trying;
        Some(index)
    }

    /// Upstream refused the source that was tried: absent or denied there.
    fn refuse(&mut self, index: usize, error: upstream::Error) {
        self.sources[index].standing = Standing::Refused(error);
    }

    /// Bytes begin to flow. `size` is `None` as long as it may not be announced.
    fn start(&mut self, size: Option<u64>) {
        if matches!(self.phase, Phase::Connecting) {
            self.phase = Phase::Streaming;
            self.size = size;
        }
    }

    fn advance(&mut self, start: u64, end: u64) {
        self.covered.insert(start, end);
    }

    /// All bytes are here and they are the right ones.
    fn verify(&mut self, size: u64) {
        if !matches!(self.phase, Phase::Failed(_)) {
            self.phase = Phase::Verified;
            self.size = Some(size);
            self.covered.insert(0, size);
        }
    }

    fn fail(&mut self, failure: Failure) {
        if !matches!(self.phase, Phase::Verified | Phase::Failed(_)) {
            self.phase = Phase::Failed(failure);
        }
    }

    fn view(&self, source: usize, position: u64) -> View {
        // A follower whose own source was refused gets nothing from another's download, not even from a finished one.
        if let Standing::Refused(error) = &self.sources[source].standing {
            return View::Refused(error.clone());
        }
        match (&self.phase, self.size) {
            (Phase::Failed(failure), _) => View::Failed(failure.clone()),
            (Phase::Verified, Some(size)) => View::Ready { size, readable_to: size },
            (Phase::Streaming, Some(size)) if size > HOLD_BACK => {
                let readable_to = self.covered.covered_to(position).min(size - HOLD_BACK);
                View::Ready { size, readable_to: readable_to.max(position) }
            }
            (Phase::Connecting | Phase::Streaming | Phase::Verified, _) => View::Wait,
        }
    }
}

/// A [`State`] that can be shared and waited for.
#[derive(Debug)]
pub(super) struct Flight {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    file: OnceLock<Arc<File>>,
}

impl Flight {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::new()),
            changed: watch::Sender::new(()),
            file: OnceLock::new(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // The machine's methods leave it whole even if one of them panicked, so a poisoned lock is still a good state.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, act: impl FnOnce(&mut State)) {
        self.with(act);
        self.changed.send_replace(());
    }

    /// See [`State::join`].
    pub(super) fn join(&self, key: &RepositoryKey) -> Option<usize> {
        self.with(|state| state.join(key))
    }

    /// See [`State::next_source`].
    pub(super) fn next_source(&self) -> Option<usize> {
        self.with(State::next_source)
    }

    /// See [`State::refuse`].
    pub(super) fn refuse(&self, source: usize, error: upstream::Error) {
        self.change(|state| state.refuse(source, error));
    }

    /// Bytes begin to flow into `file`. `size` is `None` if it may not be announced before the end.
    pub(super) fn start(&self, file: Arc<File>, size: Option<u64>) {
        self.file.get_or_init(|| file);
        self.change(|state| state.start(size));
    }

    /// The bytes `start..end` are in the file.
    pub(super) fn advance(&self, start: u64, end: u64) {
        self.change(|state| state.advance(start, end));
    }

    /// See [`State::verify`].
    pub(super) fn verify(&self, size: u64) {
        self.change(|state| state.verify(size));
    }

    /// See [`State::fail`].
    pub(super) fn fail(&self, failure: Failure) {
        self.change(|state| state.fail(failure));
    }

    /// What the follower with this source sees at `position`, now.
    pub(super) fn view(&self, source: usize, position: u64) -> View {
        self.with(|state| state.view(source, position))
    }

    /// The file that is being filled; there is one as soon as a view is [`View::Ready`].
    pub(super) fn file(&self) -> Option<Arc<File>> {
        self.file.get().map(Arc::clone)
    }

    /// Wakes at every change after this call.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> RepositoryKey {
        RepositoryKey { upstream: "r.test".parse().unwrap(), name: name.parse().unwrap() }
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Join,
        Try,
        Refuse,
        Start,
        StartUnknown,
        Advance,
        Verify,
        Fail,
    }

    const EVENTS: [Event; 8] = [
        Event::Join,
        Event::Try,
        Event::Refuse,
        Event::Start,
        Event::StartUnknown,
        Event::Advance,
        Event::Verify,
        Event::Fail,
    ];
    const SIZE: u64 = HOLD_BACK + 100;

    /// What the test remembers beside the machine.
    #[derive(Default)]
    struct Model {
        joined: Vec<usize>,
        trying: Option<usize>,
        refused: Vec<usize>,
        written: u64,
        verified: bool,
        failed: bool,
    }

    fn apply(state: &mut State, model: &mut Model, event: Event) {
        match event {
            Event::Join => {
                let name = if model.joined.is_empty() { "a" } else { "b" };
                match state.join(&key(name)) {
                    Some(index) => model.joined.push(index),
                    None => assert!(model.failed, "only a failed flight turns joiners away"),
                }
            }
            Event::Try => model.trying = state.next_source().or(model.trying),
            Event::Refuse => {
                if let Some(index) = model.trying.take() {
                    state.refuse(index, upstream::Error::Absent);
                    model.refused.push(index);
                }
            }
            Event::Start => state.start(Some(SIZE)),
            Event::StartUnknown => state.start(None),
            Event::Advance => {
                state.advance(model.written, model.written + SIZE / 2);
                model.written += SIZE / 2;
            }
            Event::Verify => {
                model.verified |= !model.failed;
                state.verify(SIZE);
            }
            Event::Fail => {
                model.failed |= !model.verified;
                state.fail(Failure::LengthMismatch);
            }
        }
    }

    fn check(state: &State, model: &Model, path: &[Event]) {
        assert!(!(model.verified && model.failed));
        for source in &model.joined {
            for position in [0, 1, SIZE - HOLD_BACK, SIZE] {
                match state.view(*source, position) {
                    View::Ready { size, readable_to } => {
                        assert_eq!(size, SIZE, "{path:?}");
                        assert!(
                            readable_to <= SIZE && readable_to >= position.min(SIZE),
                            "{path:?}"
                        );
                        let unverified_tail =
                            readable_to > position && readable_to > SIZE - HOLD_BACK;
                        assert!(model.verified || !unverified_tail, "{path:?}: the tail leaked");
                        let written = readable_to <= position
                            || model.verified
                            || readable_to <= model.written;
                        assert!(written, "{path:?}: bytes that are not here");
                        assert!(!model.failed, "{path:?}");
                        assert!(!model.refused.contains(source), "{path:?}");
                    }
                    View::Failed(_) => {
                        assert!(model.failed && !model.refused.contains(source), "{path:?}")
                    }
                    View::Refused(_) => assert!(model.refused.contains(source), "{path:?}"),
                    View::Wait => {
                        assert!(!model.failed && !model.verified, "{path:?}: nobody waits for ever")
                    }
                }
            }
        }
    }

    #[test]
    fn all_interleavings_up_to_six_events() {
        fn walk(path: &mut Vec<Event>, count: &mut u64) {
            let (mut state, mut model) = (State::new(), Model::default());
            for event in path.iter() {
                apply(&mut state, &mut model, *event);
            }
            check(&state, &model, path);
            *count += 1;
            if path.len() < 6 {
                for event in EVENTS {
                    path.push(event);
                    walk(path, count);
                    path.pop();
                }
            }
        }
        let mut count = 0;
        walk(&mut Vec::new(), &mut count);
        assert_eq!(count, (0..=6).map(|depth| 8u64.pow(depth)).sum::<u64>());
    }

    #[tokio::test]
    async fn a_change_after_subscribing_wakes() {
        let flight = Flight::new();
        let source = flight.join(&key("a")).unwrap();
        let mut changes = flight.changes();
        assert!(matches!(flight.view(source, 0), View::Wait));
        flight.verify(5);
        changes.changed().await.unwrap();
        assert!(matches!(flight.view(source, 0), View::Ready { size: 5, readable_to: 5 }));
    }
}
