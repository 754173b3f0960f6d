//! The writer's place in a flight that has lost its disk.
//!
//! What must hold: each byte is hashed once, in order, those that are on the disk read from there; every chunk goes to the followers
//! before it is hashed, and none of them gets the end before the digest is right (the flight holds it back). It blocks, so it runs on
//! the blocking pool, one for each ring ([`super::fill::RINGS_MAX`]).

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::fill::Running;
use super::queue::{Message, Receiver};
use super::writer::Prefix;
use crate::oci::Digest;
use crate::span::{ContentFile, FramePool, Span};

/// Hashes what comes and hands it to the followers.
pub(super) struct Passer {
    pub(super) prefix: Prefix,
    /// What was written before.
    pub(super) file: Arc<ContentFile>,
    pub(super) running: Arc<Running>,
    pub(super) shutdown: CancellationToken,
}

impl Passer {
    /// Runs until the queue ends; gives the digest of the whole and its length, or `None` if the download was broken off.
    pub(super) fn run(mut self, mut queue: Receiver) -> io::Result<Option<(u64, Digest)>> {
        let frames = FramePool::default();
        while let Some(message) = queue.next_blocking() {
            match message {
                Message::Chunk(offset, bytes) => {
                    self.running.flight.push(offset, bytes.clone());
                    if !self.read_back(offset, &frames)? {
                        break;
                    }
                    self.prefix.update([bytes.as_ref()], &self.running);
                }
                Message::End(length) => {
                    let hashed = self.read_back(length, &frames)?;
                    return Ok(hashed.then(|| (length, self.prefix.finish())));
                }
                Message::Discard => break,
            }
        }
        Ok(None)
    }

    /// Hashes what is in the file up to `to`: everything that does not come through the ring is there. `false` on shutdown.
    fn read_back(&mut self, to: u64, frames: &FramePool) -> io::Result<bool> {
        while self.prefix.length() < to {
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
            let span = Span::new(Arc::clone(&self.file), self.prefix.length(), to);
            self.prefix.update([span.read_frame(0, frames)?.as_ref()], &self.running);
        }
        Ok(true)
    }
}
