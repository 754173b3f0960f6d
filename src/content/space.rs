//! Is there room? The cache never fills a disk: it stops at `min_free`.
//!
//! The answer is cheap enough for every request: the file system is asked at most once per second, and what has been promised
//! since is counted. Room that is reserved on the disk (`fallocate`) shows up in the file system's own figure at the next look;
//! room that could not be reserved is counted for as long as its stage lives, which is more than it takes and never less.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::leave::Refused;
use super::patience::{Ended, Looks};
use crate::blobs::{self, Blobs, Volume};
use crate::oci::RegistryName;

/// Share of the file system that is left free by default.
pub const MIN_FREE_PERCENT: u8 = 10;
/// The default leaves no more than this free, however large the file system is.
pub const MIN_FREE_BYTES_MAX: u64 = 20 * 1024 * 1024 * 1024;
/// Room that content of unknown size is assumed to take.
const UNKNOWN_SIZE: u64 = 1024 * 1024;
/// How long the file system's figure is believed.
const SAMPLE_FOR: Duration = Duration::from_secs(1);
/// After a write that found no room nothing is admitted for this long, because a quota does not show in the figures.
const FULL_FOR: Duration = Duration::from_secs(5);

/// Room is wanted already when what is free is less than the reserve and this part of it (one in so many) above.
const NEAR_SHARE: u64 = 10;

/// After an open or create that found no descriptor nothing is admitted for this long: others need those that come free.
const OUT_OF_DESCRIPTORS_FOR: Duration = Duration::from_secs(1);

/// How much of the file system is left free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinFree {
    /// [`MIN_FREE_PERCENT`] of the file system, at most [`MIN_FREE_BYTES_MAX`].
    #[default]
    Default,
    Bytes(u64),
    /// Of the file system; above 100 is 100.
    Percent(u8),
}

impl MinFree {
    fn bytes(self, total: u64) -> u64 {
        let percent = |share: u8| total / 100 * u64::from(share.min(100));
        match self {
            Self::Default => percent(MIN_FREE_PERCENT).min(MIN_FREE_BYTES_MAX),
            Self::Bytes(bytes) => bytes,
            Self::Percent(share) => percent(share),
        }
    }
}

#[derive(Debug)]
pub(super) struct Space {
    blobs: Arc<Blobs>,
    min_free: MinFree,
    state: Mutex<State>,
    /// Somebody was refused room, or there is little left.
    pub(super) pressure: Notify,
    /// The last look of whoever makes room.
    pub(super) ended: watch::Sender<Ended>,
    closed: RwLock<Closed>,
    /// Something is closed; spares every request the lock.
    some_closed: AtomicBool,
}

/// Whose content passes through, because a limit cannot be met.
#[derive(Debug, Default)]
struct Closed {
    all: bool,
    upstreams: Vec<RegistryName>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    sample: Option<(Instant, Volume)>,
    /// Promised since the sample and reserved on the disk.
    since_sample: u64,
    /// Promised and not reserved on the disk.
    pub(super) unreserved: u64,
    /// What was refused since the last look began.
    pub(super) refused: Option<Refused>,
    pub(super) looks: Looks,
    full_until: Option<Instant>,
    out_of_descriptors_until: Option<Instant>,
}

/// Room that is promised to one stage.
#[derive(Debug)]
pub(super) struct Promise {
    space: Arc<Space>,
    bytes: u64,
    reserved: bool,
}

impl Space {
    pub(super) fn new(blobs: Arc<Blobs>, min_free: MinFree) -> Self {
        Self {
            blobs,
            min_free,
            state: Mutex::default(),
            pressure: Notify::new(),
            ended: watch::Sender::default(),
            closed: RwLock::default(),
            some_closed: AtomicBool::new(false),
        }
    }

    /// Room is wanted.
    pub(super) fn press(&self) {
        self.pressure.notify_one();
    }

    /// Presses if there is not much more than what is left to others.
    pub(super) fn press_if_near(&self) {
        let mut state = self.state();
        let Some(volume) = self.sample(&mut state) else {
            return;
        };
        let reserve = self.min_free.bytes(volume.total);
        if state.unpromised(volume) < reserve.saturating_add(reserve / NEAR_SHARE) {
            self.press();
        }
    }

    pub(super) fn close(&self, all: bool, upstreams: Vec<RegistryName>) {
        let some = all || !upstreams.is_empty();
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = Closed { all, upstreams };
        self.some_closed.store(some, Ordering::Release);
    }

    /// Does content pass through, because a limit cannot be met? With an upstream, what comes from there.
    pub(super) fn is_closed(&self, from: Option<&RegistryName>) -> bool {
        if !self.some_closed.load(Ordering::Acquire) {
            return false;
        }
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        closed.all || from.is_some_and(|from| closed.upstreams.contains(from))
    }

    /// Is there room for `size` bytes? A file system that does not answer has none.
    pub(super) fn admits(&self, size: Option<u64>) -> bool {
        let mut state = self.state();
        self.has_room(&mut state, size)
    }

    /// The same without a refusal, for who asks for room in another way if there is none.
    pub(super) fn fits(&self, size: u64) -> bool {
        self.look(&mut self.state(), Some(size)).0
    }

    /// The same, and the room is promised to the caller.
    pub(super) fn promise(self: &Arc<Self>, size: Option<u64>) -> Option<Promise> {
        let mut state = self.state();
        self.has_room(&mut state, size).then(|| self.promised(state, size))
    }

    /// The same without a refusal.
    pub(super) fn promise_if_fits(self: &Arc<Self>, size: u64) -> Option<Promise> {
        let mut state = self.state();
        self.look(&mut state, Some(size)).0.then(|| self.promised(state, Some(size)))
    }

    fn promised(self: &Arc<Self>, mut state: MutexGuard<'_, State>, size: Option<u64>) -> Promise {
        let bytes = size.unwrap_or(UNKNOWN_SIZE);
        state.unreserved = state.unreserved.saturating_add(bytes);
        Promise { space: Arc::clone(self), bytes, reserved: false }
    }

    /// An operation failed: if for want of room or descriptors, believe it for a while.
    pub(super) fn note_failure(&self, error: &io::Error) {
        if blobs::is_no_space(error) {
            let mut state = self.state();
            state.full_until = Some(Instant::now() + FULL_FOR);
            state.sample = None;
            // Whoever comes next may come when this is forgotten, and meet the same.
            state.refuse(UNKNOWN_SIZE, true);
            self.press();
        } else if blobs::is_out_of_descriptors(error) {
            self.state().out_of_descriptors_until = Some(Instant::now() + OUT_OF_DESCRIPTORS_FOR);
        }
    }

    /// Would there be room for `size` bytes if `reclaimed` were free? `None`: room is not what is wanting.
    pub(super) fn would_fit(&self, size: Option<u64>, reclaimed: u64) -> Option<bool> {
        let mut state = self.state();
        if state.is_out_of_descriptors() {
            return None;
        }
        let volume = self.sample(&mut state)?;
        let free = state.unpromised(volume).saturating_add(reclaimed);
        Some(free >= self.wanted(volume, size.unwrap_or(UNKNOWN_SIZE)))
    }

    /// Something was removed: what was believed of the disk holds no more.
    pub(super) fn note_removal(&self) {
        let mut state = self.state();
        state.looks.removals += 1;
        state.full_until = None;
        state.sample = None;
    }

    /// Bytes that are free now and bytes that are left to others. The disk is asked, because whoever makes room has to see what was
    /// reserved a moment ago.
    pub(super) fn figures(&self) -> (u64, u64) {
        let mut state = self.state();
        state.sample = None;
        match self.sample(&mut state) {
            Some(volume) => (volume.free, self.min_free.bytes(volume.total)),
            None => (0, 0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses, and presses, if nothing but room is wanting.
    pub(super) fn has_room(&self, state: &mut State, size: Option<u64>) -> bool {
        let (fits, volume) = self.look(state, size);
        let Some(volume) = volume.filter(|_| !fits) else {
            return fits;
        };
        let bytes = size.unwrap_or(UNKNOWN_SIZE);
        // For what is larger than the file system nobody can make room, and whoever claims such a size must not empty the store.
        if self.wanted(volume, bytes) <= volume.total {
            // A disk that is full although its figures say otherwise, as under a quota, tells nobody how much is missing.
            let is_a_guess = size.is_none() || state.is_full();
            state.refuse(bytes, is_a_guess);
            self.press();
        }
        false
    }

    /// Is there room, and what does the file system say? Nothing if it does not answer, or if it is not room that is wanting.
    fn look(&self, state: &mut State, size: Option<u64>) -> (bool, Option<Volume>) {
        if state.is_out_of_descriptors() {
            return (false, None);
        }
        let Some(volume) = self.sample(state) else {
            return (false, None);
        };
        let wanted = self.wanted(volume, size.unwrap_or(UNKNOWN_SIZE));
        (!state.is_full() && state.unpromised(volume) >= wanted, Some(volume))
    }

    pub(super) fn wanted(&self, volume: Volume, bytes: u64) -> u64 {
        self.min_free.bytes(volume.total).saturating_add(bytes)
    }

    pub(super) fn sample(&self, state: &mut State) -> Option<Volume> {
        let now = Instant::now();
        if let Some((taken, volume)) = state.sample
            && now.duration_since(taken) < SAMPLE_FOR
        {
            return Some(volume);
        }
        let volume = self.blobs.volume().ok()?;
        state.sample = Some((now, volume));
        state.since_sample = 0;
        Some(volume)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.full_until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn is_out_of_descriptors(&self) -> bool {
        self.out_of_descriptors_until.is_some_and(|until| Instant::now() < until)
    }

    fn refuse(&mut self, bytes: u64, is_a_guess: bool) {
        // What is reserved on the disk is in the file system's own figure when somebody looks.
        let bytes = bytes.saturating_add(self.unreserved);
        let refused = self.refused.get_or_insert_default();
        refused.bytes = refused.bytes.max(bytes);
        refused.is_a_guess |= is_a_guess;
    }

    pub(super) fn unpromised(&self, volume: Volume) -> u64 {
        volume.free.saturating_sub(self.since_sample.saturating_add(self.unreserved))
    }
}

impl Promise {
    /// The room is reserved on the disk now.
    pub(super) fn reserved(&mut self) {
        let mut state = self.space.state();
        state.unreserved = state.unreserved.saturating_sub(self.bytes);
        state.since_sample = state.since_sample.saturating_add(self.bytes);
        drop(state);
        self.reserved = true;
    }

    pub(super) fn space(&self) -> &Space {
        &self.space
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.reserved {
            let mut state = self.space.state();
            state.unreserved = state.unreserved.saturating_sub(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
    use crate::blobs::{DirectoryLock, RealDisk};

    const MIB: u64 = 1024 * 1024;

    fn space(
        min_free: MinFree,
        free: u64,
    ) -> (Arc<Space>, Arc<FaultyDisk>, DirectoryLock, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let (blobs, lock) = Blobs::open(Arc::clone(&disk) as _, root.path()).unwrap();
        disk.set_volume(Some(Volume { total: 100 * MIB, free }));
        let space = Arc::new(Space::new(Arc::new(blobs), min_free));
        (space, disk, lock, root)
    }

    #[test]
    fn the_default_reserve_is_a_tenth_and_no_more_than_20_gib() {
        let gib = 1024 * MIB;
        assert_eq!(MinFree::Default.bytes(100 * gib), 10 * gib);
        assert_eq!(MinFree::Default.bytes(4096 * gib), 20 * gib);
        assert_eq!(MinFree::Percent(50).bytes(100 * gib), 50 * gib);
        assert_eq!(MinFree::Percent(250).bytes(100 * gib), 100 * gib);
        assert_eq!(MinFree::Bytes(7).bytes(100 * gib), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn room_ends_where_the_reserve_begins() {
        let (space, ..) = space(MinFree::Default, 12 * MIB);
        assert!(space.admits(Some(2 * MIB)));
        assert!(!space.admits(Some(2 * MIB + 1)));
        assert!(space.admits(None));
        assert_eq!(space.figures(), (12 * MIB, 10 * MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn promises_count_until_the_disk_shows_them_or_they_end() {
        let (space, disk, ..) = space(MinFree::Default, 14 * MIB);
        let unreserved = space.promise(Some(2 * MIB)).unwrap();
        let mut reserved = space.promise(Some(2 * MIB)).unwrap();
        reserved.reserved();
        assert!(!space.admits(Some(1)));
        // The next sample shows what was reserved; the other promise still counts.
        disk.set_volume(Some(Volume { total: 100 * MIB, free: 12 * MIB }));
        tokio::time::advance(SAMPLE_FOR).await;
        assert!(!space.admits(Some(1)));
        drop(unreserved);
        assert!(space.admits(Some(2 * MIB)));
        drop(reserved);
        assert!(!space.admits(Some(2 * MIB + 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_size_that_was_refused_is_told_once() {
        let (space, ..) = space(MinFree::Default, 14 * MIB);
        let evicting = space.evicting();
        let pressed = || evicting.pressed().now_or_never().and_then(|()| evicting.look().refused());
        assert!(!space.admits(Some(5 * MIB)) && !space.admits(Some(7 * MIB)));
        assert!(!space.admits(Some(6 * MIB)));
        let refused = Refused { bytes: 7 * MIB, is_a_guess: false };
        assert_eq!((pressed(), pressed()), (Some(refused), None));
        // What is promised takes room as well before the refused size has any.
        let _promise = space.promise(Some(4 * MIB)).unwrap();
        assert!(!space.admits(Some(MIB)) && !space.admits(None));
        let refused = Refused { bytes: 4 * MIB + UNKNOWN_SIZE, is_a_guess: true };
        assert_eq!(pressed(), Some(refused));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_said_full_is_believed_for_a_while() {
        let (space, ..) = space(MinFree::Default, 90 * MIB);
        space.note_failure(&io::Error::other("something else"));
        assert!(space.admits(None));
        space.note_failure(&io::ErrorKind::QuotaExceeded.into());
        assert!(!space.admits(Some(MIB)));
        // By its figures there is room, so the size alone would move nobody to make any.
        let refused = Refused { bytes: MIB, is_a_guess: true };
        let evicting = space.evicting();
        evicting.pressed().now_or_never().expect("it is pressed");
        assert_eq!(evicting.look().refused(), Some(refused));
        tokio::time::advance(FULL_FOR).await;
        assert!(space.admits(None));
    }

    #[tokio::test(start_paused = true)]
    async fn want_of_descriptors_is_believed_for_a_moment_and_no_removal_ends_it() {
        let (space, ..) = space(MinFree::Default, 90 * MIB);
        space.note_failure(&Fault::TooManyFiles.error());
        assert!(!space.admits(None));
        assert_eq!(space.would_fit(None, 0), None);
        space.note_removal();
        assert!(!space.admits(None));
        tokio::time::advance(OUT_OF_DESCRIPTORS_FOR).await;
        assert!(space.admits(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_be_reclaimed_counts() {
        let (space, ..) = space(MinFree::Default, 12 * MIB);
        assert_eq!(space.would_fit(Some(5 * MIB), 3 * MIB - 1), Some(false));
        assert_eq!(space.would_fit(Some(5 * MIB), 3 * MIB), Some(true));
        space.note_failure(&io::ErrorKind::StorageFull.into());
        assert!(!space.admits(None));
        space.note_removal();
        assert!(space.admits(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_has_no_room() {
        let (space, disk, ..) = space(MinFree::Bytes(0), 90 * MIB);
        disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Volume) });
        assert!(!space.admits(Some(1)));
        disk.heal();
        assert!(space.admits(Some(1)));
    }
}
