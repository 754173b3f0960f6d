//! Work on demand: one job at a time, told as a stream of events, ended when its reader goes.

use std::fmt;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::events::{Event, JobKind};
use super::service::Upkeep;
use super::settings::BUSY_PATIENCE;
use super::work::Work;
use crate::metadata::Within;
use crate::story;

/// A running job of this room.
pub type Job = story::Job<Event>;
/// The work's end of it.
pub(super) type Story = story::Story<Event>;

/// Which job, and what it is about.
pub(super) type Order = (JobKind, Option<Within>);

/// Another job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Upkeep {
    /// Begins a job. A look for files without a row makes way for it, another job does not.
    ///
    /// [`JobKind::Purge`] wants [`Upkeep::purge`]; begun here it says so and does nothing.
    pub async fn begin(&self, kind: JobKind) -> Result<Job, Busy> {
        self.start_job((kind, None)).await
    }

    /// Begins to take out what is known of an upstream or of a repository; the content goes after the grace time, unless something else
    /// holds it.
    pub async fn purge(&self, within: Within) -> Result<Job, Busy> {
        self.start_job((JobKind::Purge, Some(within))).await
    }

    async fn start_job(&self, order: Order) -> Result<Job, Busy> {
        if self.slot().available_permits() == 0 {
            self.wanted().notify_waiters();
        }
        let slot = timeout(BUSY_PATIENCE, self.take_slot()).await.ok().flatten().ok_or(Busy)?;
        let (story, job) = story::begin(self.shutdown().child_token());
        let upkeep = self.clone();
        self.tasks().spawn(async move {
            Work::new(&upkeep, order, story).run().await;
            drop(slot);
        });
        Ok(job)
    }

    /// Waits for the right to run a job; none if the program stops.
    pub(super) async fn take_slot(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            () = self.shutdown().cancelled() => None,
            slot = std::sync::Arc::clone(self.slot()).acquire_owned() => slot.ok(),
        }
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a verify, a reindex, a gc, a purge or the taking in of files without a row is running already; try again when it is over")
    }
}

impl std::error::Error for Busy {}
