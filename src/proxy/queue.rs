//! The way from the fetchers of a flight to its writer: bounded by bytes, and woken once for many chunks.
//!
//! What must hold: what fetchers have handed over and the writer has not written stays below [`QUEUE_BYTES`] and one chunk more, however
//! small or large the chunks of an upstream are; the room of a batch is given back at once, so that a fetcher that waits is woken once
//! and finds room for many chunks; a queue that loses one of its ends wakes the other. Nothing here is a thread or a task.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc};

/// Bytes on their way from the fetchers of one flight to the disk. Upstream's chunks have up to 400 KiB, so up to twice what the writer
/// gathers may be written and hashed while as much comes.
pub(super) const QUEUE_BYTES: usize = 4 * super::writer::WRITE_BYTES;
/// The least that a chunk counts, so that an upstream that drips bytes fills no memory with the descriptions of them.
const CHUNK_COST_MIN: usize = 2 * 1024;

/// As many chunks as there is room for, and the two words that take none: whoever has room never finds the channel full.
const MESSAGES_MAX: usize = QUEUE_BYTES / CHUNK_COST_MIN + 2;

/// What the writer is told. A queue that ends without [`Message::End`] is a download that was broken off.
#[derive(Debug)]
pub(super) enum Message {
    Chunk(u64, Bytes),
    /// That was all; the whole has this many bytes.
    End(u64),
    /// What is here is worth nothing.
    Discard,
}

/// What waits in a queue.
#[derive(Debug)]
pub(super) enum Waiting {
    Message(Message),
    Nothing,
    /// Nothing, and nothing comes any more.
    Closed,
}

/// The writer has gone.
#[derive(Debug)]
pub(super) struct Gone;

/// The fetchers' end.
#[derive(Debug)]
pub(super) struct Sender {
    messages: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct Receiver {
    messages: mpsc::Receiver<Message>,
    room: Arc<Semaphore>,
    /// Comes before all others.
    first: Option<Message>,
    /// Room of what was taken out and is not written yet.
    owed: usize,
}

/// An empty queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let room = Arc::new(Semaphore::new(QUEUE_BYTES));
    let receiver = Receiver { messages, room: Arc::clone(&room), first: None, owed: 0 };
    (Sender { messages: sender, room }, receiver)
}

/// The room that a message takes.
fn cost(message: &Message) -> usize {
    match message {
        Message::Chunk(_, bytes) => bytes.len().clamp(CHUNK_COST_MIN, QUEUE_BYTES),
        Message::End(_) | Message::Discard => 0,
    }
}

impl Sender {
    /// Waits for room. Dropped while it waits, it has sent nothing.
    pub(super) async fn send(&self, message: Message) -> Result<(), Gone> {
        let cost = u32::try_from(cost(&message)).expect("a queue's room fits in 32 bits");
        if cost > 0 {
            self.room.acquire_many(cost).await.map_err(|_closed| Gone)?.forget();
        }
        self.messages.try_send(message).map_err(|_closed| Gone)
    }
}

impl Receiver {
    /// Waits until something is waiting, or nothing comes any more. Dropped while it waits, it has taken nothing.
    pub(super) async fn ready(&mut self) {
        if self.first.is_none() {
            self.first = self.messages.recv().await;
        }
    }

    /// What waits now.
    pub(super) fn take(&mut self) -> Waiting {
        let message = match self.first.take().map_or_else(|| self.messages.try_recv(), Ok) {
            Ok(message) => message,
            Err(TryRecvError::Empty) => return Waiting::Nothing,
            Err(TryRecvError::Disconnected) => return Waiting::Closed,
        };
        self.owed += cost(&message);
        Waiting::Message(message)
    }

    /// Puts back what was taken last.
    pub(super) fn put_back(&mut self, message: Message) {
        self.owed -= cost(&message);
        self.first = Some(message);
    }

    /// What was taken so far takes no room any more.
    pub(super) fn written(&mut self) {
        self.room.add_permits(std::mem::take(&mut self.owed));
    }

    /// The next message, as soon as there is one; `None` if nothing comes any more. Blocks; what was taken before takes no room any more.
    pub(super) fn next_blocking(&mut self) -> Option<Message> {
        self.written();
        let message = self.first.take().or_else(|| self.messages.blocking_recv())?;
        self.owed += cost(&message);
        Some(message)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn chunk(length: usize) -> Message {
        Message::Chunk(0, Bytes::from(vec![0; length]))
    }

    async fn waits(sender: &Sender, length: usize) -> bool {
        let sending = std::pin::pin!(sender.send(chunk(length)));
        futures_util::poll!(sending).is_pending()
    }

    #[tokio::test]
    async fn room_comes_back_when_a_batch_is_written() {
        let (sender, mut receiver) = queue();
        sender.send(chunk(QUEUE_BYTES / 2)).await.unwrap();
        sender.send(chunk(QUEUE_BYTES / 2)).await.unwrap();
        assert!(waits(&sender, 1).await);
        assert!(matches!(receiver.take(), Waiting::Message(Message::Chunk(..))));
        assert!(waits(&sender, 1).await);
        receiver.written();
        sender.send(chunk(QUEUE_BYTES / 2)).await.unwrap();
        assert!(waits(&sender, 1).await);
    }

    #[tokio::test]
    async fn a_chunk_larger_than_the_queue_goes_alone() {
        let (sender, mut receiver) = queue();
        sender.send(chunk(QUEUE_BYTES * 3)).await.unwrap();
        assert!(waits(&sender, 1).await);
        assert!(matches!(receiver.take(), Waiting::Message(Message::Chunk(..))));
        receiver.written();
        assert!(!waits(&sender, QUEUE_BYTES).await);
    }

    #[tokio::test]
    async fn single_bytes_are_bounded_too() {
        let (sender, _receiver) = queue();
        for _ in 0..QUEUE_BYTES / CHUNK_COST_MIN {
            sender.send(chunk(1)).await.unwrap();
        }
        assert!(waits(&sender, 1).await);
        assert!(!waits_for_the_end(&sender).await);
    }

    async fn waits_for_the_end(sender: &Sender) -> bool {
        futures_util::poll!(std::pin::pin!(sender.send(Message::End(1)))).is_pending()
    }

    #[tokio::test]
    async fn what_is_put_back_comes_first_and_keeps_its_room() {
        let (sender, mut receiver) = queue();
        sender.send(chunk(QUEUE_BYTES)).await.unwrap();
        sender.send(Message::End(7)).await.unwrap();
        let Waiting::Message(first) = receiver.take() else { unreachable!() };
        receiver.put_back(first);
        receiver.written();
        assert!(waits(&sender, 1).await);
        receiver.ready().await;
        assert!(matches!(receiver.take(), Waiting::Message(Message::Chunk(..))));
        assert!(matches!(receiver.take(), Waiting::Message(Message::End(7))));
        assert!(matches!(receiver.take(), Waiting::Nothing));
        drop(sender);
        timeout(PATIENCE, receiver.ready()).await.unwrap();
        assert!(matches!(receiver.take(), Waiting::Closed));
    }

    #[tokio::test]
    async fn a_sender_that_waits_learns_that_the_writer_has_gone() {
        let (sender, receiver) = queue();
        sender.send(chunk(QUEUE_BYTES)).await.unwrap();
        let sending = sender.send(chunk(1));
        let (sent, ()) =
            timeout(PATIENCE, async { tokio::join!(sending, async { drop(receiver) }) })
                .await
                .unwrap();
        assert!(sent.is_err());
        assert!(sender.send(Message::End(1)).await.is_err());
    }
}
