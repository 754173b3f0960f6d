//! The bytes of a blob for one client: from the store, from a running download, or past the store.
//!
//! What must hold: a stream yields exactly the range that was asked for or ends in an error; a runtime worker never waits for the disk;
//! a frame in memory is at most [`crate::span::FRAME_BYTES`] long, so a stalled client holds one frame and no more. Bytes in the page
//! cache go on as a part of their file, to be sent from there; others are read on the blocking pool, where a disk that cannot be read
//! shows, which is no reason to break off: the stream goes on from upstream at its position.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use futures_util::{Stream, TryStreamExt as _};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::bypass::{Bypass, Given, past_the_store};
use super::fill::{Following, Seat};
use super::flight::{Failure, View};
use super::shared::Shared;
use super::source::Proxied;
use crate::oci::{ByteRange, Digest};
use crate::span::{Chunk, FRAME_BYTES, FramePool, Span};

/// What is no longer than this is copied: one system call finds out whether it is here and reads it.
const COPY_BYTES_MAX: u64 = 64 * 1024;
/// Times that a stream looks for its content again because it cannot be read where it was found.
const SECOND_LOOKS_MAX: u32 = 2;

/// Frames of a range, in order. The error is the word for the log; the connection must then be closed short of the announced length.
pub type Frames = Pin<Box<dyn Stream<Item = Result<Chunk, &'static str>> + Send>>;

/// Where a blob's bytes come from.
#[derive(Debug)]
pub struct Body {
    pub(super) digest: Digest,
    pub(super) from: From,
}

#[derive(Debug)]
pub(super) enum From {
    /// Verified bytes in the store.
    Stored { span: Span, reader: Reader, finder: Finder },
    /// A download that is running, or has just ended.
    Flight { seat: Arc<Seat>, reader: Reader },
    /// A small blob that was verified in memory, because the store takes nothing.
    Verified(Bytes),
    /// Straight from upstream, for the same reason.
    Bypass(Arc<Bypass>),
}

impl Body {
    /// The bytes of `range`, which lies within the blob.
    pub fn stream(&self, range: ByteRange) -> Frames {
        self.stream_again(range, SECOND_LOOKS_MAX)
    }

    /// Waits until the download that this comes from is over: clients have their last bytes before these are in the store.
    pub async fn settled(&self) {
        if let From::Flight { seat, .. } = &self.from {
            seat.running.ended.cancelled().await;
        }
    }

    fn stream_again(&self, range: ByteRange, looks: u32) -> Frames {
        match &self.from {
            From::Stored { span, reader, finder } => {
                let stored = Stored {
                    digest: self.digest,
                    span: span.clone(),
                    position: range.start,
                    end: range.end,
                    reader: reader.clone(),
                    finder: finder.clone(),
                    looks,
                    rest: None,
                };
                Box::pin(try_unfold(stored, |mut stored| async move {
                    Ok(stored.next().await?.map(|frame| (frame, stored)))
                }))
            }
            From::Flight { seat, reader } => {
                let follow = Follow {
                    digest: self.digest,
                    changes: seat.running.flight.changes(),
                    seat: Arc::clone(seat),
                    start: range.start,
                    position: range.start,
                    end: range.end,
                    reader: reader.clone(),
                    following: None,
                    rest: None,
                };
                Box::pin(try_unfold(follow, |mut follow| async move {
                    Ok(follow.next().await?.map(|frame| (frame, follow)))
                }))
            }
            From::Verified(bytes) => in_memory(bytes, range),
            From::Bypass(bypass) => past_the_store(Arc::clone(bypass), range, None),
        }
    }
}

/// Gets at the bytes of files, for all bodies of the process.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) tasks: TaskTracker,
    pub(super) frames: FramePool,
}

impl Reader {
    /// The first bytes of the span; `None` if they cannot be read.
    async fn next(&self, digest: &Digest, span: Span) -> Result<Option<Chunk>, &'static str> {
        let here = if span.length() <= COPY_BYTES_MAX {
            span.read_cached(&self.frames).map(Chunk::Memory)
        } else {
            span.sendable().map(Chunk::File)
        };
        match here {
            Some(chunk) => Ok(Some(chunk)),
            None => Ok(self.read(digest, span).await?.map(Chunk::Memory)),
        }
    }

    /// Reads the first frame on the blocking pool. The task is counted by the tracker and ends by itself if the client goes away.
    async fn read(&self, digest: &Digest, span: Span) -> Result<Option<Bytes>, &'static str> {
        let frames = self.frames.clone();
        let read = move || {
            if span.length() > COPY_BYTES_MAX {
                span.read_in_order();
            }
            span.read_frame(0, &frames)
        };
        match self.tasks.spawn_blocking(read).await {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(error)) => {
                tracing::error!(%error, %digest, "cannot read content");
                Ok(None)
            }
            Err(_panic_or_shutdown) => Err("shutdown"),
        }
    }
}

/// Finds the content of a digest once more, for a stream whose file cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Finder {
    pub(super) shared: Arc<Shared>,
    pub(super) repository: Proxied,
}

impl Finder {
    /// Looks at all of the content, puts it aside if it is damaged, and finds it where it is now: usually in a new download.
    fn again(
        &self,
        digest: Digest,
        range: ByteRange,
        looks: u32,
    ) -> Pin<Box<dyn Future<Output = Result<Frames, &'static str>> + Send>> {
        let Self { shared, repository } = self.clone();
        Box::pin(async move {
            if let Err(error) = shared.content().verify(&digest).await {
                tracing::warn!(?error, %digest, "damaged content could not be put aside");
            }
            let blob = shared.blob(&repository, &digest, None).await;
            let blob = blob.map_err(|error| error.reason())?;
            if range.end > blob.size {
                return Err("disk");
            }
            Ok(blob.body.stream_again(range, looks))
        })
    }
}

impl Finder {
    /// The disk reads this content differently each time: the rest comes past the store.
    fn alone(&self, digest: Digest, range: ByteRange, size: u64) -> Result<Frames, &'static str> {
        if self.shared.is_offline(&self.repository) {
            return Err("disk");
        }
        let bypass = Bypass::new(self.repository.clone(), digest, size, &[range], None);
        Ok(past_the_store(Arc::new(bypass), range, None))
    }
}

/// A stream from the store.
struct Stored {
    digest: Digest,
    span: Span,
    position: u64,
    end: u64,
    reader: Reader,
    finder: Finder,
    looks: u32,
    /// Where the rest comes from, if not from the file.
    rest: Option<Frames>,
}

impl Stored {
    async fn next(&mut self) -> Result<Option<Chunk>, &'static str> {
        loop {
            if let Some(rest) = &mut self.rest {
                return rest.try_next().await;
            }
            if self.position >= self.end {
                return Ok(None);
            }
            let span = self.span.slice(self.position, self.end);
            if let Some(chunk) = self.reader.next(&self.digest, span).await? {
                self.position += chunk.length();
                return Ok(Some(chunk));
            }
            let range = ByteRange { start: self.position, end: self.end };
            self.rest = Some(match self.looks.checked_sub(1) {
                Some(looks) => self.finder.again(self.digest, range, looks).await?,
                None => self.finder.alone(self.digest, range, self.span.length())?,
            });
        }
    }
}

/// A stream from a running download.
struct Follow {
    digest: Digest,
    changes: watch::Receiver<()>,
    seat: Arc<Seat>,
    start: u64,
    position: u64,
    end: u64,
    reader: Reader,
    /// Our place among the followers, from the first poll on.
    following: Option<Following>,
    /// Where the rest comes from, if not from the download.
    rest: Option<Frames>,
}

impl Follow {
    async fn next(&mut self) -> Result<Option<Chunk>, &'static str> {
        if self.rest.is_none() && self.following.is_none() {
            let range = ByteRange { start: self.position, end: self.end };
            self.following = Some(Following::new(&self.seat.running, range));
        }
        loop {
            if let Some(rest) = &mut self.rest {
                return rest.try_next().await;
            }
            if self.position >= self.end {
                self.following = None;
                return Ok(None);
            }
            match self.seat.running.flight.view(self.seat.source, self.position) {
                View::Ready { readable_to, .. } if readable_to > self.position => {
                    let file = self.seat.running.flight.file().ok_or("no_file")?;
                    let span = Span::new(file, self.position, readable_to.min(self.end));
                    match self.reader.next(&self.digest, span).await? {
                        Some(chunk) => return Ok(Some(self.took(chunk))),
                        None => self.go_alone()?,
                    }
                }
                View::Ring { bytes, .. } => {
                    let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
                    let frame = bytes.slice(..bytes.len().min(left).min(FRAME_BYTES));
                    return Ok(Some(self.took(frame.into())));
                }
                View::Alone { .. } | View::Failed(Failure::Store) => self.go_alone()?,
                View::Refused(error) => return Err(error.reason()),
                View::Failed(failure) => return Err(failure.reason()),
                // The sender lives in the flight that we hold, so this ends only by a change.
                View::Ready { .. } | View::Wait => {
                    self.changes.changed().await.map_err(|_closed| "abandoned")?;
                }
            }
        }
    }

    fn took(&mut self, chunk: Chunk) -> Chunk {
        self.position += chunk.length();
        if let Some(following) = &self.following {
            following.moved(self.position);
        }
        chunk
    }

    /// What the download gave so far. It may have been wrong, which the right digest of another download would not tell.
    fn given(&self, size: u64) -> Result<Option<Given>, &'static str> {
        if self.position == self.start || self.end < size {
            return Ok(None);
        }
        match self.seat.running.flight.hashed() {
            Some((hashed, hasher)) if hashed >= self.position => {
                Ok(Some(Given::prefix(hashed, hasher)))
            }
            // A part that lies ahead of all that was hashed is put together, and verified, by its client.
            _ if self.start > 0 => Ok(None),
            _ => Err("unverified"),
        }
    }

    /// The download cannot help any more: the rest comes past the store.
    fn go_alone(&mut self) -> Result<(), &'static str> {
        let Seat { running, source, .. } = &*self.seat;
        let size = running.flight.size().ok_or("store")?;
        let repository = running.source(*source).ok_or("store")?;
        let given = self.given(size)?;
        self.following = None;
        self.seat.give_up();
        let range = ByteRange { start: self.position, end: self.end };
        tracing::info!(digest = %self.digest, from = range.start, "a client goes on past the store");
        let bypass = Bypass::new(repository, self.digest, size, &[range], None);
        self.rest = Some(past_the_store(Arc::new(bypass), range, given));
        Ok(())
    }
}

fn in_memory(bytes: &Bytes, range: ByteRange) -> Frames {
    let place = |offset| usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
    let part = bytes.slice(place(range.start)..place(range.end));
    let frame = (!part.is_empty()).then_some(Ok(part.into()));
    Box::pin(futures_util::stream::iter(frame))
}
