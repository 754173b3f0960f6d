//! Work that tells what it does: a bounded stream of events from a task to whoever asked for it, which ends when he goes.
//!
//! What must hold: dropping the reader ends the work; a reader that takes nothing for a while has gone. Which events there are is the
//! business of the rooms that do the work.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Events that wait for their reader.
const EVENTS_MAX: usize = 64;
/// A reader that takes no event for this long has gone.
const READER_PATIENCE: Duration = Duration::from_secs(60);

/// Running work, in the hands of whoever asked for it. Dropping it ends the work.
#[derive(Debug)]
pub struct Job<E> {
    events: mpsc::Receiver<E>,
    _ends: DropGuard,
}

/// The work's end of a job.
#[derive(Debug)]
pub struct Story<E> {
    events: mpsc::Sender<E>,
    cancel: CancellationToken,
}

/// The work is to end: its reader has gone, or the program stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Both ends of a new story, which is over when `cancel` is; `cancel` should be a child of the program's own token.
pub fn begin<E>(cancel: CancellationToken) -> (Story<E>, Job<E>) {
    begin_with(cancel, EVENTS_MAX)
}

/// The same where no more than `waiting` events wait for their reader, because they are large.
pub fn begin_with<E>(cancel: CancellationToken, waiting: usize) -> (Story<E>, Job<E>) {
    let (events, receiver) = mpsc::channel(waiting);
    let story = Story { events, cancel: cancel.clone() };
    (story, Job { events: receiver, _ends: cancel.drop_guard() })
}

impl<E> Job<E> {
    /// The next event; `None` after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<E>> {
        self.events.poll_recv(cx)
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<E> {
        self.events.recv().await
    }
}

impl<E> Story<E> {
    /// Tells something that must not be lost.
    ///
    /// # Errors
    /// The reader has gone, or the program stops.
    pub async fn tell(&self, event: E) -> Result<(), Stopped> {
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
    pub fn mention(&self, event: E) {
        // A reader that is behind reads it later, from the next one.
        drop(self.events.try_send(event));
    }

    pub fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Cancelled when the work is to end.
    pub fn stopped(&self) -> &CancellationToken {
        &self.cancel
    }
}
