//! Content that comes by another way than a download: its digest may be known only at its end, and nothing holds it yet.
//!
//! What must hold: nobody is served from it before a repository has it; what no repository has in the end is collected after the grace time
//! of deletions, also after a crash, because that is written down before the bytes get their name; what was cut short leaves no file.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::error::Error;
use super::patience::Wanted;
use super::small::mark;
use super::space::Promise;
use super::store::Content;
use super::unfinished::Leftovers;
use crate::blobs::{FileStat, Partial};
use crate::oci::Digest;
use crate::span::Lease;

/// Bytes on their way to the disk. Dropped, they go.
pub struct Arrival {
    work: Option<Work>,
    size: u64,
    written: u64,
    tasks: TaskTracker,
}

/// What has to live until the file is published or removed.
struct Work {
    leftovers: Arc<Leftovers>,
    partial: Partial,
    promise: Promise,
    /// Makes the tracker wait until the file is gone or has its name.
    _counted: TaskTrackerToken,
}

/// Content that is here, and is not evicted while somebody has this.
#[derive(Debug)]
pub struct Held {
    pub size: u64,
    _lease: Lease,
}

impl Content {
    /// Holds content that is here with its size, whichever repository has it; `None`: it is not here, or cannot be read now. Tells nothing
    /// about who may have it.
    pub async fn hold(&self, digest: &Digest) -> Result<Option<Held>, Error> {
        // Before the look, so that what was seen stays.
        let lease = self.leases().take(digest.value());
        let Some(object) = self.metadata().object(digest).await?.filter(|object| object.present)
        else {
            return Ok(None);
        };
        let opened = self.open_unchanged(digest, object).await?;
        Ok(opened.map(|opened| Held { size: opened.stat.size, _lease: lease }))
    }

    /// Begins to take in `size` bytes. If they would not leave `min_free`, unfinished downloads give way first, then this waits while
    /// eviction makes room. Nothing is left behind if the caller goes meanwhile. The size is the word of whoever sends the bytes.
    ///
    /// # Errors
    /// `NoRoom` when nobody makes room, or enough of it, `NoSpace` when nobody can tell.
    pub async fn receive(&self, size: u64) -> Result<Arrival, Error> {
        self.patiently(Wanted::told(size), || self.try_receive(size)).await
    }

    /// `None`: there is no room.
    async fn try_receive(&self, size: u64) -> Result<Option<Arrival>, Error> {
        let (leftovers, space) = (self.leftovers(), Arc::clone(self.space()));
        let tasks = self.tasks().clone();
        let counted = tasks.clone();
        let begun = self.blocking(move || {
            let promised = space.promise_if_fits(size).or_else(|| {
                leftovers.make_room(Some(size));
                space.promise_if_fits(size)
            });
            let Some(mut promise) = promised else {
                return Ok(None);
            };
            let create = || leftovers.blobs().create_scratch(size);
            let partial =
                leftovers.retried(create).inspect_err(|error| space.note_failure(error))?;
            if partial.is_allocated() {
                promise.reserved();
            }
            // Made here, so that a caller who has gone meanwhile leaves no file.
            let work = Work { leftovers, partial, promise, _counted: counted.token() };
            Ok(Some(Arrival { work: Some(work), size, written: 0, tasks: counted }))
        });
        drop(tasks);
        begun.await
    }

    /// Gives the bytes their name and makes them present. The caller has hashed them, and all that were announced are written.
    pub async fn admit(&self, arrival: Arrival, digest: &Digest) -> Result<Held, Error> {
        // The same content may have come by another way; then its file stays.
        if let Some(held) = self.hold(digest).await? {
            return Ok(held);
        }
        let (content, digest) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&digest).await;
            let lease = content.leases().take(digest.value());
            content.metadata().await_holder(&digest).await?;
            let size = arrival.size;
            let stat = content.blocking(move || arrival.publish(&digest)).await?;
            content.unreadable().forget(&digest);
            content.metadata().set_stored(&digest, size, Some(mark(stat))).await?;
            drop(locked);
            content.press_if_above().await;
            Ok(Held { size, _lease: lease })
        })
        .await
    }
}

impl Arrival {
    fn work(&self) -> &Work {
        self.work.as_ref().expect("only publish and drop take it out, and both end the arrival")
    }

    /// Writes the next bytes; more than were announced are `InvalidInput`. Blocks.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let end = self.written.saturating_add(length);
        if end > self.size {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than was announced"));
        }
        let (work, offset) = (self.work(), self.written);
        let write = || work.leftovers.blobs().write_at(&work.partial, offset, bytes);
        work.leftovers
            .retried(write)
            .inspect_err(|error| work.promise.space().note_failure(error))?;
        self.written = end;
        Ok(())
    }

    fn publish(mut self, digest: &Digest) -> io::Result<FileStat> {
        let work = self.work.take().expect("taken once, because self is consumed");
        let blobs = work.leftovers.blobs();
        blobs.publish(&work.partial, digest, self.size).inspect_err(|error| {
            work.promise.space().note_failure(error);
            blobs.discard(&work.partial);
        })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else {
            return;
        };
        let discard = move || work.leftovers.blobs().discard(&work.partial);
        // Removing a large file takes a while, which is too long for a worker of the runtime.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.tasks.spawn_blocking(discard));
        } else {
            discard();
        }
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, written, .. } = self;
        f.debug_struct("Arrival")
            .field("size", size)
            .field("written", written)
            .finish_non_exhaustive()
    }
}
