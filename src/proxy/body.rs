//! The bytes of a blob for one client: from the store, from a running download, or past the store.
//!
//! What must hold: a stream yields exactly the range that was asked for or ends in an error; nothing is read on a runtime worker;
//! a frame is at most [`crate::span::FRAME_BYTES`] long, so a stalled client holds one frame and no more.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::try_unfold;
use tokio_util::task::TaskTracker;

use super::fill::Running;
use super::flight::{HOLD_BACK, View};
use super::source::Proxied;
use crate::content::Content;
use crate::oci::{ByteRange, Digest, DigestHasher};
use crate::span::{FramePool, Span};
use crate::upstream::{self, BlobBody};

/// Frames of a range, in order. The error is the word for the log; the connection must then be closed short of the announced length.
pub type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, &'static str>> + Send>>;

/// Where a blob's bytes come from.
#[derive(Debug)]
pub struct Body {
    pub(super) digest: Digest,
    pub(super) from: From,
}

#[derive(Debug)]
pub(super) enum From {
    /// Verified bytes in the store.
    Stored { span: Span, reader: Reader },
    /// A download that is running, or has just ended.
    Flight { running: Arc<Running>, source: usize, reader: Reader },
    /// A small blob that was verified in memory, because the store takes nothing.
    Verified(Bytes),
    /// Straight from upstream, for the same reason.
    Bypass(Arc<Bypass>),
}

/// A blob that is streamed past the store.
#[derive(Debug)]
pub(super) struct Bypass {
    pub(super) source: Proxied,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The answer that told the size; the first stream that wants its beginning takes it.
    pub(super) first: Mutex<Option<BlobBody>>,
}

impl Body {
    /// The bytes of `range`, which lies within the blob.
    pub fn stream(&self, range: ByteRange) -> Frames {
        let digest = self.digest;
        match &self.from {
            From::Stored { span, reader } => {
                stored(digest, span.slice(range.start, range.end), reader.clone())
            }
            From::Flight { running, source, reader } => {
                follow(digest, Arc::clone(running), *source, range, reader.clone())
            }
            From::Verified(bytes) => in_memory(bytes, range),
            From::Bypass(bypass) => past_the_store(Arc::clone(bypass), range),
        }
    }
}

/// Reads frames on the blocking pool, for all bodies of the process.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) content: Content,
    pub(super) tasks: TaskTracker,
    pub(super) frames: FramePool,
}

impl Reader {
    /// The task is counted by the tracker and ends by itself if the client goes away. Content that cannot be read is looked at as a
    /// whole behind the answer, and put aside if it is damaged, so that the next client gets it from upstream.
    async fn read(&self, digest: &Digest, span: Span, offset: u64) -> Result<Bytes, &'static str> {
        let frames = self.frames.clone();
        match self.tasks.spawn_blocking(move || span.read_frame(offset, &frames)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => {
                tracing::error!(%error, %digest, "cannot read stored content");
                let (content, digest) = (self.content.clone(), *digest);
                self.tasks.spawn(async move {
                    if let Err(error) = content.verify(&digest).await {
                        tracing::warn!(?error, %digest, "damaged content could not be put aside");
                    }
                });
                Err("disk")
            }
            Err(_panic_or_shutdown) => Err("shutdown"),
        }
    }
}

fn stored(digest: Digest, span: Span, reader: Reader) -> Frames {
    Box::pin(try_unfold((span, 0u64, reader), move |(span, offset, reader)| async move {
        if offset >= span.length() {
            return Ok(None);
        }
        let frame = reader.read(&digest, span.clone(), offset).await?;
        let next = offset + frame.len() as u64;
        Ok(Some((frame, (span, next, reader))))
    }))
}

fn follow(
    digest: Digest,
    running: Arc<Running>,
    source: usize,
    range: ByteRange,
    reader: Reader,
) -> Frames {
    Box::pin(try_unfold(
        (running, range.start, reader),
        move |(running, position, reader)| async move {
            if position >= range.end {
                return Ok(None);
            }
            let readable_to = wait_for(&running, source, position).await?.min(range.end);
            let file = running.flight.file().ok_or("no_file")?;
            let span = Span::new(file, position, readable_to);
            let frame = reader.read(&digest, span, 0).await?;
            let next = position + frame.len() as u64;
            Ok(Some((frame, (running, next, reader))))
        },
    ))
}

/// Waits until bytes from `position` on may be read; answers how far.
async fn wait_for(running: &Running, source: usize, position: u64) -> Result<u64, &'static str> {
    let mut changes = running.flight.changes();
    loop {
        match running.flight.view(source, position) {
            View::Ready { readable_to, .. } if readable_to > position => return Ok(readable_to),
            View::Ready { .. } | View::Wait => {}
            View::Refused(error) => return Err(error.reason()),
            View::Failed(failure) => return Err(failure.reason()),
        }
        // The sender lives in the flight that we hold, so this ends only by a change.
        changes.changed().await.map_err(|_closed| "abandoned")?;
    }
}

fn in_memory(bytes: &Bytes, range: ByteRange) -> Frames {
    let place = |offset| usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
    let part = bytes.slice(place(range.start)..place(range.end));
    let frame = (!part.is_empty()).then_some(Ok(part));
    Box::pin(futures_util::stream::iter(frame))
}

/// State of a stream past the store.
struct Passing {
    body: BlobBody,
    position: u64,
    /// Bytes before the range that upstream sends anyway.
    skip: u64,
    /// The hash over the whole blob, if its last byte is asked for.
    hasher: Option<DigestHasher>,
    /// Frames held back until the hash is known.
    held: Bytes,
}

fn past_the_store(bypass: Arc<Bypass>, range: ByteRange) -> Frames {
    Box::pin(try_unfold(None, move |state: Option<Passing>| {
        let bypass = Arc::clone(&bypass);
        let step: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let state = match state {
                Some(state) => state,
                None => bypass.begin(range).await?,
            };
            pass_on(state, &bypass, range).await
        });
        step
    }))
}

impl Bypass {
    async fn begin(&self, range: ByteRange) -> Result<Passing, &'static str> {
        // Whoever gets the last byte must be able to trust all of them, and only the whole has a digest.
        let verified = range.end == self.size;
        let from = if verified { 0 } else { range.start };
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .filter(|_body| from == 0);
        let body = match first {
            Some(body) => body,
            None => {
                let answer =
                    self.source.upstream().blob(self.source.name(), &self.digest, from).await;
                answer.map_err(|error| error.reason())?
            }
        };
        if body.from > from {
            return Err("wrong_range");
        }
        let hasher = verified.then(|| DigestHasher::new(self.digest.algorithm()));
        let skip = range.start - body.from;
        Ok(Passing { body, position: range.start, skip, hasher, held: Bytes::new() })
    }
}

/// One step: the next frame that may go out. The tail of the blob waits for its digest.
async fn pass_on(
    mut state: Passing,
    bypass: &Bypass,
    range: ByteRange,
) -> Result<Option<(Bytes, Option<Passing>)>, &'static str> {
    if !state.held.is_empty() {
        return finish(state, bypass).await;
    }
    loop {
        let at = state.position;
        if at >= range.end {
            return Ok(None);
        }
        let mut chunk =
            state.body.chunk().await.map_err(|error| error.reason())?.ok_or("short_body")?;
        if let Some(hasher) = &mut state.hasher {
            hasher.update(&chunk);
        }
        let cut = usize::try_from(state.skip).unwrap_or(usize::MAX).min(chunk.len());
        drop(chunk.split_to(cut));
        state.skip -= cut as u64;
        let room = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        if chunk.len() > room && state.hasher.is_some() {
            return Err("length_mismatch");
        }
        chunk.truncate(room);
        if chunk.is_empty() {
            continue;
        }
        state.position += chunk.len() as u64;
        if state.hasher.is_none() {
            return Ok(Some((chunk, Some(state))));
        }
        let safe_to = range.end.saturating_sub(HOLD_BACK);
        if state.position <= safe_to {
            return Ok(Some((chunk, Some(state))));
        }
        let safe =
            usize::try_from(safe_to.saturating_sub(at)).unwrap_or(usize::MAX).min(chunk.len());
        let out = chunk.split_to(safe);
        state.held = chunk;
        if out.is_empty() {
            return finish(state, bypass).await;
        }
        return Ok(Some((out, Some(state))));
    }
}

/// All of a small blob, verified.
pub(super) async fn whole(
    mut body: BlobBody,
    digest: &Digest,
    size: u64,
) -> Result<Bytes, upstream::Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > size {
            return Err(upstream::Error::Junk("more bytes than it announced"));
        }
    }
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        return Err(upstream::Error::Junk("digest_mismatch"));
    }
    Ok(bytes.freeze())
}

/// Collects the tail, at most [`HOLD_BACK`] bytes and one chunk, and lets it go if the digest is right.
async fn finish(
    mut state: Passing,
    bypass: &Bypass,
) -> Result<Option<(Bytes, Option<Passing>)>, &'static str> {
    let mut tail = state.held.to_vec();
    state.held = Bytes::new();
    let mut hasher = state.hasher.take().ok_or("no_hash")?;
    while let Some(chunk) = state.body.chunk().await.map_err(|error| error.reason())? {
        hasher.update(&chunk);
        state.position += chunk.len() as u64;
        if state.position > bypass.size {
            return Err("length_mismatch");
        }
        tail.extend_from_slice(&chunk);
    }
    if state.position != bypass.size {
        return Err("short_body");
    }
    if hasher.finish() != bypass.digest {
        return Err("digest_mismatch");
    }
    Ok(Some((Bytes::from(tail), Some(state))))
}
