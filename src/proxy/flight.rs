//! One running download: what is here, what was asked for, and how it ended.
//!
//! [`State`] is a small synchronous machine, events in and views out, so that a plain test can enumerate all interleavings. [`Flight`]
//! puts it behind a lock and wakes those who wait. What must hold: a failed or detached flight takes no joiners; a source that upstream
//! refuses fails all the clients that brought it and only those; nobody sees the last [`HOLD_BACK`] bytes before the digest is right; a
//! verified flight never fails. A client is a seat; each of its streams is a follower with a position, and one that goes away leaves
//! no trace. A flight that has lost its disk is *detached*: what is on the disk stays readable, the rest goes through a [`Ring`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::claims::{CLOSE_BYTES, Claims, Next, Part, SEGMENT_MAX, SEGMENT_MIN};
use super::interval::IntervalSet;
use super::ring::{RING_BYTES, RING_STALL, Ring};
use crate::metadata::RepositoryKey;
use crate::oci::{ByteRange, DigestHasher};
use crate::span::ContentFile;
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
    refused: Option<upstream::Error>,
}

/// A stream to a client.
#[derive(Debug)]
struct Follower {
    position: u64,
    end: u64,
    /// What it gets next if it has to be served on its own.
    segment: u64,
    /// When it took bytes last.
    moved: Instant,
    /// The ring waits for it no more.
    left_behind: bool,
}

/// What a follower at some position sees.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// Nothing yet: wait for a change.
    Wait,
    /// The follower's own source was refused by upstream.
    Refused(upstream::Error),
    Failed(Failure),
    /// Bytes up to `readable_to` may be read from the file; the whole has `size` bytes.
    Ready {
        size: u64,
        readable_to: u64,
    },
    /// These bytes come next.
    Ring {
        size: u64,
        bytes: Bytes,
    },
    /// The download does not come to this position any more: whoever is there goes upstream on his own.
    Alone {
        size: u64,
    },
}

/// May the download go on?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// Somebody needs all that is in the ring; look again after a change, or at the given time.
    Full(Option<Instant>),
}

/// The machine behind a [`Flight`].
#[derive(Debug)]
pub(super) struct State {
    phase: Phase,
    /// Size of the whole, once it may be announced to clients.
    size: Option<u64>,
    covered: IntervalSet,
    sources: Vec<Source>,
    /// The source that gave a body last.
    good: Option<usize>,
    seats: usize,
    /// By number, in the order in which they came.
    followers: BTreeMap<u64, Follower>,
    next_follower: u64,
    claims: Claims,
    ring: Option<Ring>,
    /// The hash over this many first bytes.
    hashed: Option<(u64, DigestHasher)>,
}

impl State {
    fn new() -> Self {
        Self {
            phase: Phase::Connecting,
            size: None,
            covered: IntervalSet::default(),
            sources: Vec::new(),
            good: None,
            seats: 0,
            followers: BTreeMap::new(),
            next_follower: 0,
            claims: Claims::new(None, IntervalSet::default(), None),
            ring: None,
            hashed: None,
        }
    }

    /// A client of `key` joins and takes a seat; the answer is the number of its source. `None`: this flight takes nobody any more,
    /// start another.
    fn join(&mut self, key: &RepositoryKey) -> Option<usize> {
        if matches!(self.phase, Phase::Failed(_)) || self.ring.is_some() {
            return None;
        }
        self.seats += 1;
        if let Some(index) = self.sources.iter().position(|source| source.key == *key) {
            return Some(index);
        }
        self.sources.push(Source { key: key.clone(), refused: None });
        Some(self.sources.len() - 1)
    }

    fn leave(&mut self) {
        self.seats = self.seats.saturating_sub(1);
    }

    /// The source to ask now, when those in `tried` had no luck: the one that gave the last body, else the first that was not refused.
    fn next_source(&self, tried: &[usize]) -> Option<usize> {
        let usable =
            |index: &usize| self.sources[*index].refused.is_none() && !tried.contains(index);
        self.good.filter(usable).or_else(|| (0..self.sources.len()).find(usable))
    }

    fn accept(&mut self, index: usize) {
        self.good = Some(index);
    }

    /// Upstream refused the source that was tried: absent or denied there.
    fn refuse(&mut self, index: usize, error: upstream::Error) {
        self.sources[index].refused = Some(error);
    }

    /// Bytes begin to flow. `size` is `None` as long as it may not be announced; `present` is here already.
    fn start(&mut self, size: Option<u64>, present: IntervalSet, claims: Claims) {
        if matches!(self.phase, Phase::Connecting) {
            self.phase = Phase::Streaming;
            self.size = size;
            self.covered = present;
            self.claims = claims;
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
            if self.ring.is_none() {
                self.covered.insert(0, size);
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        if !matches!(self.phase, Phase::Verified | Phase::Failed(_)) {
            self.phase = Phase::Failed(failure);
        }
    }

    /// The disk takes nothing more: from here on bytes go through the ring, in order from the first that is missing. `false` if there
    /// is nobody for whom that would be done, or nobody knows the size yet.
    fn detach(&mut self) -> bool {
        let Some(size) = self.size.filter(|_| matches!(self.phase, Phase::Streaming)) else {
            return false;
        };
        if size <= HOLD_BACK || self.seats == 0 || self.ring.is_some() {
            return false;
        }
        self.ring = Some(Ring::new(self.covered.covered_to(0)));
        self.claims.restart(self.covered.clone());
        true
    }

    fn push(&mut self, offset: u64, bytes: Bytes) {
        if let Some(ring) = &mut self.ring {
            ring.push(offset, bytes);
        }
    }

    fn follow(&mut self, range: ByteRange, now: Instant) -> u64 {
        let id = self.next_follower;
        self.next_follower += 1;
        let follower = Follower {
            position: range.start,
            end: range.end,
            segment: SEGMENT_MIN,
            moved: now,
            left_behind: false,
        };
        self.followers.insert(id, follower);
        id
    }

    fn unfollow(&mut self, id: u64) {
        self.followers.remove(&id);
    }

    fn moved(&mut self, id: u64, position: u64, now: Instant) {
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.position = position;
            follower.moved = now;
        }
    }

    /// Is the follower better served by a fetcher of its own?
    fn is_demand(&self, id: u64) -> bool {
        if !matches!(self.phase, Phase::Streaming) || self.size.is_none() || self.ring.is_some() {
            return false;
        }
        self.followers.get(&id).is_some_and(|follower| {
            let Follower { position, end, segment, .. } = *follower;
            self.claims.wants_side(position, end, segment).is_some()
        })
    }

    /// The next part for a side fetcher.
    fn next_side(&mut self) -> Option<Part> {
        if !matches!(self.phase, Phase::Streaming) || self.size.is_none() || self.ring.is_some() {
            return None;
        }
        let claims = &mut self.claims;
        self.followers.values_mut().find_map(|follower| {
            let Follower { position, end, segment, .. } = *follower;
            let part = claims.next_side(position, end, segment)?;
            follower.segment = (segment * 2).min(SEGMENT_MAX);
            Some(part)
        })
    }

    /// Makes room in the ring if nobody needs its oldest bytes.
    fn room(&mut self, now: Instant) -> Room {
        let Some(ring) = &mut self.ring else {
            return Room::Free;
        };
        while ring.is_full() {
            let Some((start, end)) = ring.oldest() else {
                return Room::Free;
            };
            let waits = self.followers.values().any(|follower| {
                follower.position >= ring.end() && follower.position < follower.end
            });
            let brake = self.followers.values_mut().find(|follower| {
                let needs = follower.position < end && follower.end > start;
                // One that is far behind is still reading from the disk, or was stopped there: it goes its own way later.
                let near = follower.position.saturating_add(RING_BYTES) >= start;
                needs && near && !follower.left_behind
            });
            match brake {
                None => ring.drop_oldest(),
                Some(brake) if waits && now.duration_since(brake.moved) >= RING_STALL => {
                    brake.left_behind = true;
                }
                Some(brake) => return Room::Full(waits.then(|| brake.moved + RING_STALL)),
            }
        }
        Room::Free
    }

    fn view(&self, source: usize, position: u64) -> View {
        // A follower whose own source was refused gets nothing from another's download, not even from a finished one.
        if let Some(error) = &self.sources[source].refused {
            return View::Refused(error.clone());
        }
        let (size, limit) = match (&self.phase, self.size) {
            (Phase::Failed(failure), _) => return View::Failed(failure.clone()),
            (Phase::Verified, Some(size)) => (size, size),
            (Phase::Streaming, Some(size)) if size > HOLD_BACK => (size, size - HOLD_BACK),
            (Phase::Connecting | Phase::Streaming | Phase::Verified, _) => return View::Wait,
        };
        let readable_to = self.covered.covered_to(position).min(limit);
        if readable_to > position || position >= limit {
            return View::Ready { size, readable_to: readable_to.max(position) };
        }
        let Some(ring) = &self.ring else {
            return View::Ready { size, readable_to: position };
        };
        if let Some(bytes) = ring.get(position) {
            let room = usize::try_from(limit - position).unwrap_or(usize::MAX);
            let length = bytes.len().min(room);
            return View::Ring { size, bytes: bytes.slice(..length) };
        }
        // What is on the disk behind the ring's end is not fetched again.
        let ahead = position.checked_sub(self.covered.covered_to(ring.end()));
        let comes = matches!(self.phase, Phase::Streaming);
        if comes && ahead.is_some_and(|ahead| ahead <= CLOSE_BYTES) {
            return View::Ready { size, readable_to: position };
        }
        View::Alone { size }
    }
}

/// A [`State`] that can be shared and waited for.
#[derive(Debug)]
pub(super) struct Flight {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Somebody wants bytes that nobody fetches; for the one task that fills.
    demand: Notify,
    /// A follower of the ring has come, moved or gone; for the same task.
    moved: Notify,
    file: OnceLock<Arc<ContentFile>>,
    /// Of its ring; held as long as somebody may read from it.
    place: OnceLock<OwnedSemaphorePermit>,
}

impl Flight {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State::new()),
            changed: watch::Sender::new(()),
            demand: Notify::new(),
            moved: Notify::new(),
            file: OnceLock::new(),
            place: OnceLock::new(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // The machine's methods leave it whole even if one of them panicked, so a poisoned lock is still a good state.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = self.with(act);
        self.changed.send_replace(());
        result
    }

    /// See [`State::join`].
    pub(super) fn join(&self, key: &RepositoryKey) -> Option<usize> {
        self.with(|state| state.join(key))
    }

    /// Gives the seat of a client back.
    pub(super) fn leave(&self) {
        self.change(State::leave);
    }

    /// The size, if it may be announced to everybody.
    pub(super) fn size(&self) -> Option<u64> {
        self.with(|state| state.size)
    }

    /// See [`State::next_source`].
    pub(super) fn next_source(&self, tried: &[usize]) -> Option<usize> {
        self.with(|state| state.next_source(tried))
    }

    /// The source gave a body.
    pub(super) fn accept(&self, source: usize) {
        self.with(|state| state.accept(source));
    }

    /// See [`State::refuse`].
    pub(super) fn refuse(&self, source: usize, error: upstream::Error) {
        self.change(|state| state.refuse(source, error));
    }

    /// Bytes begin to flow into `file`. `size` is `None` if it may not be announced before the end; `present` is in the file already.
    pub(super) fn start(
        &self,
        file: Arc<ContentFile>,
        size: Option<u64>,
        present: IntervalSet,
        claims: Claims,
    ) {
        self.file.get_or_init(|| file);
        self.change(|state| state.start(size, present, claims));
    }

    /// The bytes `start..end` are in the file.
    pub(super) fn advance(&self, start: u64, end: u64) {
        self.change(|state| state.advance(start, end));
    }

    /// The bytes from the beginning on that are in the file.
    #[cfg(test)]
    pub(super) fn published(&self) -> u64 {
        self.with(|state| state.covered.covered_to(0))
    }

    /// See [`State::verify`].
    pub(super) fn verify(&self, size: u64) {
        self.change(|state| state.verify(size));
    }

    /// See [`State::fail`].
    pub(super) fn fail(&self, failure: Failure) {
        self.change(|state| state.fail(failure));
    }

    /// See [`State::detach`]; `place` is the one that its ring takes.
    pub(super) fn detach(&self, place: OwnedSemaphorePermit) -> bool {
        let detached = self.change(State::detach);
        if detached {
            self.place.get_or_init(|| place);
        }
        detached
    }

    /// The first `length` bytes have this hash.
    pub(super) fn hash(&self, length: u64, hasher: &DigestHasher) {
        self.with(|state| state.hashed = Some((length, hasher.clone())));
    }

    /// The hash over the first bytes, as far as it was brought.
    pub(super) fn hashed(&self) -> Option<(u64, DigestHasher)> {
        self.with(|state| state.hashed.clone())
    }

    /// Bytes for the ring of a detached flight.
    pub(super) fn push(&self, offset: u64, bytes: Bytes) {
        self.change(|state| state.push(offset, bytes));
    }

    /// Decides what a fetcher does next.
    pub(super) fn claims<T>(&self, act: impl FnOnce(&mut Claims) -> T) -> T {
        self.with(|state| act(&mut state.claims))
    }

    /// See [`Claims::next_main`].
    pub(super) fn next_main(&self) -> Next {
        self.claims(Claims::next_main)
    }

    /// See [`State::next_side`].
    pub(super) fn next_side(&self) -> Option<Part> {
        self.with(State::next_side)
    }

    /// Waits until somebody may want a side fetcher. For one task only.
    pub(super) async fn demand(&self) {
        self.demand.notified().await;
    }

    /// Waits until there is room for more bytes. For one task only.
    pub(super) async fn room(&self) {
        loop {
            let moved = self.moved.notified();
            match self.with(|state| state.room(Instant::now())) {
                Room::Free => return,
                Room::Full(None) => moved.await,
                Room::Full(Some(until)) => {
                    // Whether it was moved or timed out: both are looked at above.
                    drop(tokio::time::timeout_at(until, moved).await);
                }
            }
        }
    }

    /// Waits until the last client has gone.
    pub(super) async fn deserted(&self) {
        let mut changes = self.changes();
        while self.with(|state| state.seats > 0) {
            // The sender lives as long as the flight.
            drop(changes.changed().await);
        }
    }

    /// What the follower with this source sees at `position`, now.
    pub(super) fn view(&self, source: usize, position: u64) -> View {
        self.with(|state| state.view(source, position))
    }

    /// The file that is being filled; there is one as soon as a view is [`View::Ready`].
    pub(super) fn file(&self) -> Option<Arc<ContentFile>> {
        self.file.get().map(Arc::clone)
    }

    /// Wakes at every change after this call.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A stream of these bytes begins; the answer is its number.
    pub(super) fn follow(&self, range: ByteRange) -> u64 {
        let (id, demand, ring) = self.with(|state| {
            let id = state.follow(range, Instant::now());
            (id, state.is_demand(id), state.ring.is_some())
        });
        if demand {
            self.demand.notify_one();
        }
        // Now somebody may be waiting for the one that holds the ring up.
        if ring {
            self.moved.notify_one();
        }
        id
    }

    /// The stream is over.
    pub(super) fn unfollow(&self, id: u64) {
        self.with(|state| state.unfollow(id));
        self.moved.notify_one();
    }

    /// The stream has taken everything before `position`.
    pub(super) fn moved(&self, id: u64, position: u64) {
        let (demand, ring) = self.with(|state| {
            state.moved(id, position, Instant::now());
            (state.is_demand(id), state.ring.is_some())
        });
        if demand {
            self.demand.notify_one();
        }
        if ring {
            self.moved.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
