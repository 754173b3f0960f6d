//! Work on demand: one job at a time, told as a stream of events, ended when its reader goes.

use std::fmt;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::events::{Event, JobKind};
use super::service::Upkeep;
use super::settings::{BUSY_PATIENCE, EVENTS_MAX, READER_PATIENCE};
use super::work::Work;
use crate::metadata::Within;

/// A running job, in the hands of whoever asked for it. Dropping it ends the work.
#[derive(Debug)]
pub struct Job {
    events: mpsc::Receiver<Event>,
    _ends: DropGuard,
}

/// Which job, and what it is about.
pub(super) type Order = (JobKind, Option<Within>);

/// Another job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// The work's end of a job.
#[derive(Debug)]
pub(super) struct Story {
    events: mpsc::Sender<Event>,
    pub(super) cancel: CancellationToken,
}

/// The job is to end: its reader has gone, or the program stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopped;

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
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let cancel = self.shutdown().child_token();
        let story = Story { events, cancel: cancel.clone() };
        let upkeep = self.clone();
        self.tasks().spawn(async move {
            Work::new(&upkeep, order, story).run().await;
            drop(slot);
        });
        Ok(Job { events: receiver, _ends: cancel.drop_guard() })
    }

    /// Waits for the right to run a job; none if the program stops.
    pub(super) async fn take_slot(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            () = self.shutdown().cancelled() => None,
            slot = std::sync::Arc::clone(self.slot()).acquire_owned() => slot.ok(),
        }
    }
}

impl Job {
    /// The next event; `None` after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Story {
    /// Tells something that must not be lost. A reader that takes nothing for a while has gone.
    pub(super) async fn tell(&self, event: Event) -> Result<(), Stopped> {
        let told = tokio::select! {
            () = self.cancel.cancelled() => return Err(Stopped),
            told = timeout(READER_PATIENCE, self.events.send(event)) => told,
        };
        if !matches!(told, Ok(Ok(()))) {
            self.cancel.cancel();
            return Err(Stopped);
        }
        Ok(())
    }

    /// Tells something that the next event makes obsolete.
    pub(super) fn mention(&self, event: Event) {
        // A reader that is behind reads it later, from the next one.
        drop(self.events.try_send(event));
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a verify, a reindex, a gc, a purge or the taking in of files without a row is running already; try again when it is over")
    }
}

impl std::error::Error for Busy {}
