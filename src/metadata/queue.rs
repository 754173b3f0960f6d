//! A bounded queue from async callers to a thread.
//!
//! Senders wait for room without blocking their worker; the thread waits without a runtime, and with a time limit. A few slots
//! beyond the limit are kept for signals, which never wait.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Slots for signals beyond the limit of ordinary messages.
const SIGNAL_SLOTS: usize = 32;

pub(super) fn bounded<T>(limit: usize) -> (Sender<T>, Receiver<T>) {
    let (channel, receiver) = mpsc::sync_channel(limit + SIGNAL_SLOTS);
    let room = Arc::new(Semaphore::new(limit));
    (Sender { channel, room }, Receiver(receiver))
}

#[derive(Debug)]
pub(super) struct Sender<T> {
    channel: mpsc::SyncSender<Slot<T>>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
pub(super) struct Receiver<T>(mpsc::Receiver<Slot<T>>);

#[derive(Debug)]
struct Slot<T> {
    message: T,
    /// Gives its room back when the message is taken out.
    _room: Option<OwnedSemaphorePermit>,
}

/// The thread is gone or about to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<T> {
    Message(T),
    TimedOut,
    Closed,
}

impl<T> Sender<T> {
    /// Waits for room and sends. A caller that is dropped while it waits has sent nothing.
    pub(super) async fn send(&self, message: T) -> Result<(), Closed> {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_closed| Closed)?;
        let slot = Slot { message, _room: Some(room) };
        self.channel.try_send(slot).map_err(|_disconnected| Closed)
    }

    /// Sends without waiting. `false` if the queue is full or closed; a full queue means that the thread is awake.
    pub(super) fn signal(&self, message: T) -> bool {
        let slot = Slot { message, _room: None };
        self.channel.try_send(slot).is_ok()
    }

    /// No ordinary message gets in from now on; returns `false` if that was so before.
    pub(super) fn close(&self) -> bool {
        let open = !self.room.is_closed();
        self.room.close();
        open
    }
}

impl<T> Receiver<T> {
    /// Waits for a message, for at most `limit` if there is one.
    pub(super) fn receive(&self, limit: Option<Duration>) -> Received<T> {
        let received = match limit {
            Some(limit) => self.0.recv_timeout(limit),
            None => self.0.recv().map_err(|_disconnected| mpsc::RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(slot) => Received::Message(slot.message),
            Err(mpsc::RecvTimeoutError::Timeout) => Received::TimedOut,
            Err(mpsc::RecvTimeoutError::Disconnected) => Received::Closed,
        }
    }

    /// The next message if there is one already.
    pub(super) fn take(&self) -> Option<T> {
        self.0.try_recv().ok().map(|slot| slot.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_makes_senders_wait_but_not_signals() {
        let (sender, receiver) = bounded(1);
        sender.send(1).await.unwrap();
        let mut second = Box::pin(sender.send(2));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(sender.signal(9));
        assert_eq!(receiver.receive(None), Received::Message(1));
        second.await.unwrap();
        assert_eq!(receiver.take(), Some(9));
        assert_eq!(receiver.take(), Some(2));
        assert_eq!(receiver.take(), None);
        assert_eq!(receiver.receive(Some(Duration::ZERO)), Received::TimedOut);
    }

    #[tokio::test]
    async fn a_closed_queue_takes_nothing() {
        let (sender, receiver) = bounded(1);
        assert!(sender.close());
        assert!(!sender.close());
        assert_eq!(sender.send(1).await, Err(Closed));
        drop(sender);
        assert_eq!(receiver.receive(None), Received::Closed);
    }
}
