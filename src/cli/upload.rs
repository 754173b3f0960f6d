//! A long body of a request: bytes from a thread that reads files, through a bounded channel.
//!
//! What must hold: memory stays bounded whatever the size; the reading thread ends when the request does, and one that waits for standard
//! input keeps nothing from ending; who waits for the answer knows how far the body is, and whether it is this side that is slow.

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// Bytes that are read and sent at a time.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait.
const PIECES: usize = 8;
/// The other side takes no byte for this long although there are some: it has gone. Its disk may be slow.
pub(super) const STALL_TIME: Duration = Duration::from_secs(300);
/// From the last byte to the answer: the other side verifies what it has read and writes it down.
pub(super) const FINISH_TIME: Duration = Duration::from_secs(1800);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far a body is.
#[derive(Debug, Default)]
pub(super) struct Sent {
    bytes: AtomicU64,
    /// The other side took what there was, and more is being read.
    starved: AtomicBool,
    ended: AtomicBool,
    /// Why this side could not read on.
    failure: OnceLock<String>,
}

/// The body.
#[derive(Debug)]
pub(super) struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// Exactly so many bytes, if that is known.
    size: Option<u64>,
    sent: Arc<Sent>,
}

/// The reading thread's end.
#[derive(Debug)]
pub(super) struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Sent {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why this side could not read on; then the other one has been told nothing but that the body broke.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Returns when the other side has been silent for too long; how long that was.
    pub(super) async fn until_silent(&self) -> Duration {
        let (mut seen, mut since) = (self.bytes(), Instant::now());
        loop {
            sleep(LOOK_EVERY).await;
            let ended = self.ended.load(Ordering::Relaxed);
            let slow_source = self.starved.load(Ordering::Relaxed) && !ended;
            let now = self.bytes();
            if now != seen || slow_source {
                (seen, since) = (now, Instant::now());
            }
            let patience = if ended { FINISH_TIME } else { STALL_TIME };
            if since.elapsed() >= patience {
                return patience;
            }
        }
    }
}

impl Upload {
    /// A body that `read` writes, on a thread of its own. `size`: exactly so many bytes, if that is known.
    pub(super) fn new(
        size: Option<u64>,
        read: impl FnOnce(&mut Pieces) -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, pieces) = mpsc::channel(PIECES);
        let sent = Arc::new(Sent::default());
        let told = Arc::clone(&sent);
        // No task of the runtime, which would wait for it: a read of standard input ends when it wants.
        thread::Builder::new().name("upload".to_owned()).spawn(move || {
            let mut pieces = Pieces { sender, buffer: Vec::with_capacity(PIECE_BYTES) };
            let read =
                read(&mut pieces).and_then(|()| pieces.send().map_err(|error| error.to_string()));
            // Nobody takes the pieces any more, so whatever failed failed for that.
            if pieces.sender.is_closed() {
                return;
            }
            if let Err(reason) = read {
                let error = io::Error::other(reason.clone());
                told.failure.set(reason).expect("this thread alone sets it, and once");
                drop(pieces.sender.blocking_send(Err(error)));
            }
        })?;
        Ok(Self { pieces, size, sent })
    }

    pub(super) fn sent(&self) -> Arc<Sent> {
        Arc::clone(&self.sent)
    }
}

impl Pieces {
    /// Hands on what is in the buffer.
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        let sent = self.sender.blocking_send(Ok(Bytes::from(piece)));
        sent.map_err(|_gone| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES - self.buffer.len();
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = self.pieces.poll_recv(cx);
        self.sent.starved.store(piece.is_pending(), Ordering::Relaxed);
        piece.map(|piece| match piece {
            Some(Ok(bytes)) => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let before = self.sent.bytes.fetch_add(length, Ordering::Relaxed);
                // Whoever was told the size asks for nothing behind it.
                if self.size == Some(before.saturating_add(length)) {
                    self.sent.ended.store(true, Ordering::Relaxed);
                }
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => Some(Err(error)),
            None => {
                self.sent.ended.store(true, Ordering::Relaxed);
                None
            }
        })
    }

    fn size_hint(&self) -> SizeHint {
        match self.size {
            Some(size) => SizeHint::with_exact(size.saturating_sub(self.sent.bytes())),
            None => SizeHint::default(),
        }
    }
}
