//! A download on its way to the disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::lock::Slot;
use super::space::Promise;
use super::unfinished::Leftovers;
use crate::blobs::{Blobs, FileStat, Partial};
use crate::oci::Digest;

/// The file of a running download, and the right to be the only one for its digest. Committed by
/// [`super::Content::commit`], left to a later download by [`Stage::keep`]; dropped without either, the download has failed and the
/// file goes.
#[derive(Debug)]
pub struct Stage {
    work: Option<Work>,
    present: Vec<Range<u64>>,
    /// Nobody has it yet: what it goes on with is left as it was.
    unclaimed: bool,
    tasks: TaskTracker,
}

/// What has to live until the file is published or removed.
#[derive(Debug)]
struct Work {
    leftovers: Arc<Leftovers>,
    partial: Partial,
    promise: Promise,
    // After the file, so that a second stage of the digest cannot begin before this one's file is gone.
    slot: Slot,
    /// Makes the tracker wait: a stage may be on its way between two tracked tasks, and its file must not outlive the end.
    _counted: TaskTrackerToken,
}

impl Work {
    fn blobs(&self) -> &Blobs {
        self.leftovers.blobs()
    }

    /// Removes the file, and gives the right to stage the digest back after that.
    fn discard(self) {
        self.blobs().discard(&self.partial);
    }
}

impl Stage {
    /// Goes on with `present`, or begins if that is empty.
    pub(super) fn new(
        leftovers: Arc<Leftovers>,
        (partial, present): (Partial, Vec<Range<u64>>),
        promise: Promise,
        slot: Slot,
        tasks: TaskTracker,
    ) -> Self {
        let _counted = tasks.token();
        let work = Some(Work { leftovers, partial, promise, slot, _counted });
        Self { work, unclaimed: !present.is_empty(), present, tasks }
    }

    /// The caller has it: from here on it decides what becomes of the file.
    pub(super) fn claimed(mut self) -> Self {
        self.unclaimed = false;
        self
    }

    fn work(&self) -> &Work {
        self.work.as_ref().expect("only publish and drop take it out, and both end the stage")
    }

    pub(super) fn digest(&self) -> &Digest {
        self.work().slot.digest()
    }

    /// The bytes that an earlier download of the digest left here, as disjoint intervals in order. They were written by us but not
    /// verified: whoever uses them hashes them.
    pub fn present(&self) -> &[Range<u64>] {
        &self.present
    }

    /// The file, for readers of what is already written. It is never truncated, and survives its name.
    pub fn file(&self) -> Arc<File> {
        self.work().partial.file()
    }

    /// [`Stage::write_parts_at`] of one part.
    #[cfg(test)]
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_parts_at(offset, &[bytes])
    }

    /// Writes all of `parts`, one behind the other, at `offset`, which may be beyond what is written already. On a full disk the oldest
    /// unfinished downloads that nobody goes on with make room first. Blocks.
    pub fn write_parts_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let work = self.work();
        let write = || work.blobs().write_parts_at(&work.partial, offset, parts);
        work.leftovers.retried(write).inspect_err(|error| work.promise.space().note_failure(error))
    }

    /// Fills all of `buffer` from `offset`; bytes beyond what was written are `UnexpectedEof`, holes are zeros. Blocks.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let work = self.work();
        work.blobs().read_at(&work.partial, offset, buffer)
    }

    /// Makes what was written durable and records that the bytes `present` (disjoint, in order) are here, so that a later download
    /// continues from them even after a crash. Of more than [`INTERVALS_RECORDED_MAX`] intervals the longest are recorded; a stage
    /// of unknown size cannot be continued, and nothing is done for it. Blocks.
    ///
    /// After a sync that failed no later one is believed: the stage can neither be kept nor committed any more.
    ///
    /// [`INTERVALS_RECORDED_MAX`]: super::INTERVALS_RECORDED_MAX
    pub fn checkpoint(&self, present: &[Range<u64>]) -> io::Result<()> {
        let work = self.work();
        let now = work.leftovers.now();
        work.blobs()
            .checkpoint(&work.partial, present, now)
            .inspect_err(|error| work.promise.space().note_failure(error))
    }

    /// Ends the stage without its content and leaves the bytes `present` to the next download of the digest. Best effort: what
    /// cannot be recorded is removed. Blocks.
    pub fn keep(mut self, present: &[Range<u64>]) {
        let recordable = !present.is_empty() && self.work().partial.can_be_continued();
        let kept = recordable && self.checkpoint(present).is_ok();
        if let Some(work) = self.work.take() {
            if kept {
                work.leftovers.note_kept();
            } else {
                work.discard();
            }
        }
    }

    /// Gives the file its final name, or removes it. Blocks; the caller holds the digest's lock.
    pub(super) fn publish(mut self, size: u64) -> io::Result<(Arc<File>, FileStat)> {
        let work = self.work.take().expect("taken once, because self is consumed");
        match work.blobs().publish(&work.partial, work.slot.digest(), size) {
            Ok(stat) => Ok((work.partial.file(), stat)),
            Err(error) => {
                work.promise.space().note_failure(&error);
                work.discard();
                Err(error)
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else {
            return;
        };
        if self.unclaimed {
            work.leftovers.note_kept();
            return;
        }
        // Removing a large file takes a while, which is too long for a worker of the runtime.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.tasks.spawn_blocking(move || work.discard()));
        } else {
            work.discard();
        }
    }
}
