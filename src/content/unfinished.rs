//! Downloads that were broken off: found, continued, swept, and the first to go when room is short.
//!
//! What must hold: whoever looks at the files of a digest in order to change them has its slot, so a running download is never
//! touched. All work here blocks and is done on the blocking pool; nothing is remembered of the files but whether there may be any.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::error::Error;
use super::lock::{Slot, Slots};
use super::space::Space;
use super::stage::Stage;
use super::store::Content;
use crate::blobs::{self, Adopted, Blobs, Leftover, Partial};
use crate::clock::{Clock, Timestamp};
use crate::oci::Digest;

/// Age at which an unfinished download is swept away.
pub const UNFINISHED_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Unfinished downloads that one write or creation may cost when the disk is full although its figures say otherwise (a quota).
const RECLAIMED_MAX: u32 = 16;

/// A download that was broken off, and can be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Size of the whole, as it was announced then.
    pub size: u64,
    /// The bytes that are here, as disjoint intervals in order.
    pub present: Vec<Range<u64>>,
}

/// The files of unfinished downloads.
#[derive(Debug)]
pub(super) struct Leftovers {
    blobs: Arc<Blobs>,
    slots: Slots,
    space: Arc<Space>,
    clock: Arc<dyn Clock>,
    /// There may be some that nobody goes on with. Saves the look at the directory for as long as there are none.
    some: AtomicBool,
    /// Room is being made behind a request.
    making_room: AtomicBool,
}

/// One that could go.
struct Candidate {
    digest: Digest,
    written: Timestamp,
    allocated: u64,
}

impl Content {
    /// What an earlier download of the digest left here, if anything; `None` while one is running. Cheap: it reads a small record,
    /// not the bytes. What is left of one that cannot be continued is removed.
    pub async fn unfinished(&self, digest: &Digest) -> Result<Option<Unfinished>, Error> {
        if self.slots().is_taken(digest) {
            return Ok(None);
        }
        let (leftovers, digest) = (self.leftovers(), *digest);
        self.blocking(move || leftovers.find(&digest)).await
    }

    /// Begins to store a download, or goes on with what [`Content::unfinished`] tells if `size` is the same; what is left of another
    /// size is removed. `NoSpace` below `min_free`, `Busy` while another stage of the digest lives.
    pub async fn stage(&self, digest: &Digest, size: Option<u64>) -> Result<Stage, Error> {
        let slot = self.slots().take(digest).ok_or(Error::Busy)?;
        let (leftovers, tasks) = (self.leftovers(), self.tasks().clone());
        let stage = self.blocking(move || leftovers.begin(slot, size, tasks)).await?;
        // If the caller has gone meanwhile, the stage is dropped unclaimed, and leaves what it has found and nothing of its own.
        stage.map(Stage::claimed).ok_or(Error::NoSpace)
    }

    /// Removes unfinished downloads older than [`UNFINISHED_KEPT`], and what is left of those that cannot be continued. Returns how
    /// many.
    pub async fn sweep_unfinished(&self) -> Result<usize, Error> {
        let leftovers = self.leftovers();
        self.blocking(move || leftovers.sweep()).await
    }
}

impl Leftovers {
    pub(super) fn new(
        blobs: Arc<Blobs>,
        slots: Slots,
        space: Arc<Space>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (some, making_room) = (AtomicBool::new(true), AtomicBool::new(false));
        Self { blobs, slots, space, clock, some, making_room }
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A download has left its bytes.
    pub(super) fn note_kept(&self) {
        self.some.store(true, Ordering::SeqCst);
    }

    fn find(&self, digest: &Digest) -> io::Result<Option<Unfinished>> {
        match self.blobs.leftover(digest)? {
            Leftover::Nothing => return Ok(None),
            Leftover::Whole { size, present, .. } => return Ok(Some(Unfinished { size, present })),
            Leftover::Junk => {}
        }
        // It may have been changing under our eyes; with the slot nobody changes it.
        let Some(_slot) = self.slots.take(digest) else {
            return Ok(None);
        };
        Ok(match self.blobs.leftover(digest)? {
            Leftover::Whole { size, present, .. } => Some(Unfinished { size, present }),
            Leftover::Nothing => None,
            Leftover::Junk => {
                tracing::info!(%digest, "an unfinished download cannot be continued; it is removed");
                self.remove(digest);
                None
            }
        })
    }

    /// `None`: there is no room.
    fn begin(
        self: Arc<Self>,
        slot: Slot,
        size: Option<u64>,
        tasks: TaskTracker,
    ) -> io::Result<Option<Stage>> {
        let noted = |error: &io::Error| self.space.note_failure(error);
        let adopted = match size {
            Some(size) => self.blobs.adopt(slot.digest(), size).inspect_err(noted)?,
            None => None,
        };
        let held = adopted.as_ref().map_or(0, |adopted| adopted.allocated);
        let wanted = size.map(|size| size.saturating_sub(held));
        let Some(mut promise) = self.space.promise(wanted).or_else(|| {
            self.make_room(wanted);
            self.space.promise(wanted)
        }) else {
            return Ok(None);
        };
        let begun = match (adopted, size) {
            (Some(adopted), Some(size)) => self.go_on(adopted, size),
            _ => {
                let create = || self.blobs.create_download(slot.digest(), size);
                (self.retried(create).inspect_err(noted)?, Vec::new())
            }
        };
        if begun.0.is_allocated() {
            promise.reserved();
        }
        Ok(Some(Stage::new(self, begun, promise, slot, tasks)))
    }

    fn go_on(&self, adopted: Adopted, size: u64) -> (Partial, Vec<Range<u64>>) {
        let Adopted { mut partial, present, .. } = adopted;
        self.blobs.reserve_rest(&mut partial, size);
        (partial, present)
    }

    /// Does `work` again after each unfinished download that goes, as long as it fails for want of room.
    pub(super) fn retried<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let mut reclaimed = 0;
        loop {
            match work() {
                Err(error) if blobs::is_no_space(&error) && reclaimed < RECLAIMED_MAX => {
                    reclaimed += 1;
                    if !self.reclaim_oldest() {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    fn reclaim_oldest(&self) -> bool {
        self.candidates().into_iter().any(|candidate| self.reclaim(&candidate))
    }

    /// Removes the oldest unfinished downloads until there is room for `size` bytes; none if all of them together would not do.
    pub(super) fn make_room(&self, size: Option<u64>) {
        let candidates = self.candidates();
        let all = candidates.iter().map(|candidate| candidate.allocated).sum();
        if self.space.would_fit(size, all) != Some(true) {
            return;
        }
        for candidate in &candidates {
            if self.reclaim(candidate) && self.space.would_fit(size, 0) == Some(true) {
                return;
            }
        }
    }

    /// The same behind a request, by one task at a time.
    pub(super) fn make_room_behind(self: &Arc<Self>, size: Option<u64>, tasks: &TaskTracker) {
        let idle =
            !self.some.load(Ordering::SeqCst) || tokio::runtime::Handle::try_current().is_err();
        if idle || self.making_room.swap(true, Ordering::SeqCst) {
            return;
        }
        let leftovers = Arc::clone(self);
        tasks.spawn_blocking(move || {
            leftovers.make_room(size);
            leftovers.making_room.store(false, Ordering::SeqCst);
        });
    }

    /// The oldest first. What cannot be continued is older than all.
    fn candidates(&self) -> Vec<Candidate> {
        // Taken back before the look, so that whoever leaves something during it is not overlooked.
        if !self.some.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        let found = self.blobs.leftovers().unwrap_or_else(|error| {
            tracing::warn!(%error, "unfinished downloads cannot be listed");
            self.note_kept();
            Vec::new()
        });
        let mut candidates: Vec<Candidate> = found
            .into_iter()
            .filter(|digest| !self.slots.is_taken(digest))
            .filter_map(|digest| match self.blobs.leftover(&digest).ok()? {
                Leftover::Whole { written, allocated, .. } => {
                    Some(Candidate { digest, written, allocated })
                }
                Leftover::Junk | Leftover::Nothing => {
                    let written = Timestamp::from_millis(i64::MIN);
                    Some(Candidate { digest, written, allocated: 0 })
                }
            })
            .collect();
        if !candidates.is_empty() {
            self.note_kept();
        }
        candidates.sort_unstable_by_key(|candidate| candidate.written);
        candidates
    }

    /// `false`: somebody goes on with it, or it cannot be removed.
    fn reclaim(&self, candidate: &Candidate) -> bool {
        let Some(_slot) = self.slots.take(&candidate.digest) else {
            return false;
        };
        let digest = &candidate.digest;
        tracing::info!(%digest, bytes = candidate.allocated, "room is short; an unfinished download goes");
        let removed = self.remove(digest);
        if removed {
            self.space.note_removal();
        }
        removed
    }

    /// With the slot of the digest.
    fn remove(&self, digest: &Digest) -> bool {
        let removed = self.blobs.remove_leftover(digest);
        if let Err(error) = &removed {
            tracing::warn!(%digest, %error, "an unfinished download could not be removed");
        }
        removed.is_ok()
    }

    fn sweep(&self) -> io::Result<usize> {
        let now = self.now();
        let mut removed = 0;
        for digest in self.blobs.leftovers()? {
            let Some(_slot) = self.slots.take(&digest) else {
                continue;
            };
            let old = match self.blobs.leftover(&digest) {
                Ok(Leftover::Whole { written, .. }) => {
                    // One from a future that far was written under a wrong clock, and would stay for as long.
                    now.since(written).max(written.since(now)) > UNFINISHED_KEPT
                }
                Ok(Leftover::Junk | Leftover::Nothing) => true,
                Err(_circumstance) => false,
            };
            if old && self.remove(&digest) {
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "old unfinished downloads were removed");
            self.space.note_removal();
        }
        Ok(removed)
    }
}
