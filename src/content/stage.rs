//! A download on its way to the disk.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::lock::Slot;
use super::space::Promise;
use crate::blobs::{Blobs, FileStat, Partial};
use crate::oci::Digest;

/// The file of a running download, and the right to be the only one for its digest. Committed by
/// [`super::Content::commit`]; dropped without that, the download has failed and the file goes.
#[derive(Debug)]
pub struct Stage {
    work: Option<Work>,
    tasks: TaskTracker,
}

/// What has to live until the file is published or removed.
#[derive(Debug)]
struct Work {
    blobs: Arc<Blobs>,
    partial: Partial,
    promise: Promise,
    /// Makes the tracker wait: a stage may be on its way between two tracked tasks, and its file must not outlive the end.
    _counted: TaskTrackerToken,
    // Last, so that a second stage of the digest cannot begin before this one's file is gone.
    slot: Slot,
}

impl Work {
    /// Removes the file, and gives the right to stage the digest back after that.
    fn discard(self) {
        self.blobs.discard(&self.partial);
    }
}

impl Stage {
    pub(super) fn new(
        blobs: Arc<Blobs>,
        partial: Partial,
        promise: Promise,
        slot: Slot,
        tasks: TaskTracker,
    ) -> Self {
        let work = Some(Work { blobs, partial, promise, _counted: tasks.token(), slot });
        Self { work, tasks }
    }

    fn work(&self) -> &Work {
        self.work.as_ref().expect("only publish and drop take it out, and both end the stage")
    }

    pub(super) fn digest(&self) -> &Digest {
        self.work().slot.digest()
    }

    /// The file, for readers of what is already written. It is never truncated, and survives its name.
    pub fn file(&self) -> Arc<File> {
        self.work().partial.file()
    }

    /// Writes all of `bytes` at `offset`. Blocks.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let work = self.work();
        work.blobs
            .write_at(&work.partial, offset, bytes)
            .inspect_err(|error| work.promise.space().note_failure(error))
    }

    /// Gives the file its final name, or removes it. Blocks; the caller holds the digest's lock.
    pub(super) fn publish(mut self, size: u64) -> io::Result<(Arc<File>, FileStat)> {
        let work = self.work.take().expect("taken once, because self is consumed");
        match work.blobs.publish(&work.partial, work.slot.digest(), size) {
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
        // Removing a large file takes a while, which is too long for a worker of the runtime.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.tasks.spawn_blocking(move || work.discard()));
        } else {
            work.discard();
        }
    }
}
