//! The writer of a flight: gathers what the fetchers bring, writes it, publishes it, and hashes it in order.
//!
//! It blocks, so it runs on the blocking pool, one per flight. What must hold: bytes are published only after they are in the file; each
//! byte is hashed once, in order, from memory when it is next in line and from the disk when it was there before; however the writer ends,
//! the file is handed over whole, kept for the next download, or removed. A disk that fails ends the writer and not the flight:
//! [`Passer`] takes its place.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_util::sync::CancellationToken;

use super::fill::Running;
use super::interval::{IntervalSet, length};
use crate::content::Stage;
use crate::oci::{Digest, DigestHasher};
use crate::span::{FramePool, Span};

/// Bytes that the writer gathers before it writes and publishes them: large writes cost half of small ones.
pub(super) const WRITE_BYTES: usize = 512 * 1024;
/// New bytes between two records of what is here, each of which makes them durable.
pub(super) const CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;
/// Less than this is not worth keeping when a download breaks off.
pub(super) const KEEP_BYTES_MIN: u64 = 1024 * 1024;

/// What the writer is told. A queue that ends without [`Message::End`] is a download that was broken off.
#[derive(Debug)]
pub(super) enum Message {
    Chunk(u64, Bytes),
    /// That was all; the whole has this many bytes.
    End(u64),
    /// What is here is worth nothing.
    Discard,
}

/// How the writer ended.
pub(super) enum Written {
    Whole {
        stage: Stage,
        length: u64,
        digest: Digest,
    },
    /// The disk failed. The file is nobody's any more, but what was published can still be read.
    Broken(Prefix),
    /// Nobody brings the rest; what is here was kept, or removed.
    Unfinished,
}

/// The hash of the first bytes.
pub(super) struct Prefix {
    hasher: DigestHasher,
    length: u64,
}

/// See the file's text.
pub(super) struct Writer {
    pub(super) stage: Stage,
    pub(super) digest: Digest,
    /// What is in the file.
    pub(super) covered: IntervalSet,
    /// Size of the whole, if it is known; only then can another download continue this one.
    pub(super) total: Option<u64>,
    pub(super) running: Arc<Running>,
    pub(super) shutdown: CancellationToken,
}

/// The writer at work.
struct Work {
    writer: Writer,
    prefix: Prefix,
    since_checkpoint: u64,
    batch: Vec<u8>,
    /// Came after the chunks that are being written.
    next: Option<Message>,
    worthless: bool,
}

impl Writer {
    /// Runs until the queue ends.
    pub(super) fn run(self, mut queue: Receiver<Message>) -> Written {
        let prefix = Prefix { hasher: DigestHasher::new(self.digest.algorithm()), length: 0 };
        let mut work = Work {
            writer: self,
            prefix,
            since_checkpoint: 0,
            batch: Vec::with_capacity(WRITE_BYTES),
            next: None,
            worthless: false,
        };
        let end = work.fill(&mut queue);
        let Work { writer, prefix, worthless, .. } = work;
        match end {
            Ok(Some(length)) => {
                Written::Whole { stage: writer.stage, length, digest: prefix.hasher.finish() }
            }
            Ok(None) => {
                if !worthless {
                    writer.keep();
                }
                Written::Unfinished
            }
            Err(error) => {
                let digest = &writer.digest;
                tracing::warn!(%digest, %error, "a download cannot be written; its clients are served past the store");
                // A full disk makes room from such leftovers when somebody else needs it; a broken one loses them anyway.
                writer.keep();
                Written::Broken(prefix)
            }
        }
    }
}

impl Writer {
    /// Leaves what is here to the next download, if that is worth it.
    fn keep(self) {
        if self.total.is_some() && self.covered.total() >= KEEP_BYTES_MIN {
            self.stage.keep(&self.covered.to_vec());
        }
    }
}

impl Work {
    /// `Ok(None)` if the download was broken off.
    fn fill(&mut self, queue: &mut Receiver<Message>) -> io::Result<Option<u64>> {
        loop {
            let message = if self.next.is_some() {
                self.next.take()
            } else if self.is_behind() {
                match queue.try_recv() {
                    Ok(message) => Some(message),
                    Err(TryRecvError::Empty) => {
                        self.hash_more()?;
                        continue;
                    }
                    Err(TryRecvError::Disconnected) => None,
                }
            } else {
                queue.blocking_recv()
            };
            match message {
                Some(Message::Chunk(offset, bytes)) => self.write(offset, bytes, queue)?,
                Some(Message::End(length)) => {
                    while self.is_behind() {
                        if self.writer.shutdown.is_cancelled() {
                            return Ok(None);
                        }
                        self.hash_more()?;
                    }
                    return Ok((self.prefix.length == length).then_some(length));
                }
                Some(Message::Discard) => {
                    self.worthless = true;
                    return Ok(None);
                }
                None => return Ok(None),
            }
        }
    }

    /// Are there bytes next in line that were not hashed when they were written?
    fn is_behind(&self) -> bool {
        self.writer.covered.covered_to(self.prefix.length) > self.prefix.length
    }

    /// Hashes a piece of what is in the file.
    fn hash_more(&mut self) -> io::Result<()> {
        let from = self.prefix.length;
        let run = self.writer.covered.covered_to(from) - from;
        let length = usize::try_from(run).unwrap_or(usize::MAX).min(WRITE_BYTES);
        self.batch.resize(length, 0);
        self.writer.stage.read_at(from, &mut self.batch)?;
        self.prefix.update(&self.batch, &self.writer.running);
        self.batch.clear();
        Ok(())
    }

    /// Writes this chunk and those that wait behind it: sorted, because several fetchers bring them, and in runs as long as possible.
    fn write(
        &mut self,
        offset: u64,
        bytes: Bytes,
        queue: &mut Receiver<Message>,
    ) -> io::Result<()> {
        let mut gathered = bytes.len();
        let mut chunks = vec![(offset, bytes)];
        while gathered < WRITE_BYTES {
            match queue.try_recv() {
                Ok(Message::Chunk(offset, bytes)) => {
                    gathered += bytes.len();
                    chunks.push((offset, bytes));
                }
                Ok(other) => {
                    self.next = Some(other);
                    break;
                }
                Err(_empty_or_closed) => break,
            }
        }
        chunks.sort_by_key(|(offset, _)| *offset);
        let mut start = chunks[0].0;
        for (offset, bytes) in chunks {
            if offset != start + length(&self.batch) {
                self.flush(start)?;
                start = offset;
            }
            self.batch.extend_from_slice(&bytes);
        }
        self.flush(start)?;
        if self.since_checkpoint >= CHECKPOINT_BYTES && self.writer.total.is_some() {
            self.since_checkpoint = 0;
            self.writer.stage.checkpoint(&self.writer.covered.to_vec())?;
        }
        Ok(())
    }

    fn flush(&mut self, start: u64) -> io::Result<()> {
        let end = start + length(&self.batch);
        self.writer.stage.write_at(start, &self.batch)?;
        self.writer.covered.insert(start, end);
        // First, so that whoever was given the bytes can tell later whether they were right.
        if start == self.prefix.length {
            self.prefix.update(&self.batch, &self.writer.running);
        }
        self.writer.running.flight.advance(start, end);
        self.since_checkpoint += length(&self.batch);
        self.batch.clear();
        Ok(())
    }
}

impl Prefix {
    fn update(&mut self, bytes: &[u8], running: &Running) {
        self.hasher.update(bytes);
        self.length += length(bytes);
        running.flight.hash(self.length, &self.hasher);
    }
}

/// The writer's place in a flight that has lost its disk: hashes what comes and hands it to the followers.
pub(super) struct Passer {
    pub(super) prefix: Prefix,
    /// What was written before.
    pub(super) file: Arc<File>,
    pub(super) running: Arc<Running>,
    pub(super) shutdown: CancellationToken,
}

impl Passer {
    /// Runs until the queue ends; gives the digest of the whole and its length, or `None` if the download was broken off.
    pub(super) fn run(mut self, mut queue: Receiver<Message>) -> io::Result<Option<(u64, Digest)>> {
        let frames = FramePool::default();
        while let Some(message) = queue.blocking_recv() {
            match message {
                Message::Chunk(offset, bytes) => {
                    self.running.flight.push(offset, bytes.clone());
                    if !self.read_back(offset, &frames)? {
                        break;
                    }
                    self.prefix.update(&bytes, &self.running);
                }
                Message::End(length) => {
                    let hashed = self.read_back(length, &frames)?;
                    return Ok(hashed.then(|| (length, self.prefix.hasher.finish())));
                }
                Message::Discard => break,
            }
        }
        Ok(None)
    }

    /// Hashes what is in the file up to `to`: everything that does not come through the ring is there. `false` on shutdown.
    fn read_back(&mut self, to: u64, frames: &FramePool) -> io::Result<bool> {
        while self.prefix.length < to {
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
            let span = Span::new(Arc::clone(&self.file), self.prefix.length, to);
            self.prefix.update(&span.read_frame(0, frames)?, &self.running);
        }
        Ok(true)
    }
}
