//! Blobs that are streamed past the store, for one client alone.
//!
//! What must hold: whoever gets the last byte gets it only after the digest of the whole is known to be right, and what the client got
//! from elsewhere before is known to be the same; a body that breaks is continued where it stopped; the parts of one request share
//! bodies where they are neighbours, and cost upstream at most [`REQUESTS_MAX`] requests. Who reads from the middle on gets his bytes
//! from there, and upstream is asked for the whole only if he reads on to the held-back tail. Nothing is kept but that tail.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream::try_unfold;

use super::body::Frames;
use super::claims::SKIP_MAX;
use super::fill::{BARREN_ATTEMPTS_MAX, PROGRESS_BYTES, RESUME_PAUSE};
use super::flight::HOLD_BACK;
use super::givers::Givers;
use super::interval::length;
use super::source::Proxied;
use crate::oci::{ByteRange, Digest, DigestHasher};
use crate::span::Chunk;
use crate::upstream::{self, BlobBody, BlobRange};

/// Upstream requests for one request of a client, continuations of broken bodies not counted.
pub(super) const REQUESTS_MAX: u32 = 16;
/// See the file's text.
#[derive(Debug)]
pub(super) struct Bypass {
    source: Proxied,
    digest: Digest,
    size: u64,
    /// Several parts are asked for, so a body goes on behind the part for which it was opened.
    several: bool,
    /// There are more parts than requests, so a body is read through gaps of any length.
    frugal: bool,
    /// A body that is open and may serve the next part.
    parked: Mutex<Option<Stretch>>,
    requests: AtomicU32,
    givers: Givers,
}

/// A body that goes on when it breaks.
#[derive(Debug)]
struct Stretch {
    /// `None` while another one is asked for: one stream has one place at its upstream.
    body: Option<BlobBody>,
    /// Offset of the next byte.
    at: u64,
    /// Bytes before it that the body repeats.
    repeats: u64,
    /// Bytes that were taken from the body for an earlier part and belong behind it.
    unread: Bytes,
    barren: u32,
    /// Where it broke last.
    broke: u64,
}

/// What a client got before, from somewhere else.
#[derive(Debug)]
pub(super) struct Given {
    /// It lies within these bytes of the blob, ...
    range: ByteRange,
    /// ... which have this digest.
    digest: Digest,
}

impl Given {
    /// The first `length` bytes, as `hasher` has seen them.
    pub(super) fn prefix(length: u64, hasher: DigestHasher) -> Self {
        Self { range: ByteRange { start: 0, end: length }, digest: hasher.finish() }
    }
}

/// How a range is fetched.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Where the body begins.
    from: u64,
    /// Where this part of the stream ends; what is left is fetched by another plan.
    end: u64,
    /// The body is the whole, and is verified.
    verified: bool,
}

impl Stretch {
    fn new(body: BlobBody, at: u64) -> Result<Self, upstream::Error> {
        let repeats = at.checked_sub(body.from);
        let repeats = repeats.ok_or(upstream::Error::Junk("another range than was asked"))?;
        Ok(Self { body: Some(body), at, repeats, unread: Bytes::new(), barren: 0, broke: at })
    }

    fn unread(&mut self, bytes: Bytes) {
        self.at -= length(&bytes);
        self.unread = bytes;
    }
}

impl Bypass {
    /// For a client who wants `ranges` of the blob; `first` is a body that is open already.
    pub(super) fn new(
        source: Proxied,
        digest: Digest,
        size: u64,
        ranges: &[ByteRange],
        first: Option<BlobBody>,
    ) -> Self {
        let far = |pair: &[ByteRange]| {
            pair[1].start.checked_sub(pair[0].end).is_none_or(|gap| gap > SKIP_MAX)
        };
        let bodies = ranges.windows(2).filter(|pair| far(pair)).count();
        let frugal = u32::try_from(bodies).map_or(true, |bodies| bodies >= REQUESTS_MAX);
        let requests = u32::from(first.is_some());
        let givers = Givers::default();
        first.iter().for_each(|body| givers.note(&source, body));
        let first = first.and_then(|body| Stretch::new(body, 0).ok());
        Self {
            source,
            digest,
            size,
            several: ranges.len() > 1,
            frugal,
            parked: Mutex::new(first),
            requests: AtomicU32::new(requests),
            givers,
        }
    }

    async fn ask(&self, range: BlobRange) -> Result<BlobBody, upstream::Error> {
        let name = self.source.name();
        let answer = match self.source.upstream().blob(name, &self.digest, range).await {
            // An upstream without parts may have the rest.
            Err(upstream::Error::Junk(_)) if range.to.is_some() => {
                let rest = BlobRange::rest(range.from);
                self.source.upstream().blob(name, &self.digest, rest).await
            }
            answer => answer,
        };
        answer.inspect(|body| self.givers.note(&self.source, body))
    }

    fn plan(&self, range: ByteRange, given: Option<&Given>) -> Plan {
        // Whoever gets the last byte must be able to trust all of them, and only the whole has a digest.
        let to_the_end = range.end == self.size;
        let safe_to = self.size.saturating_sub(HOLD_BACK);
        // Most of those who read from the middle on stop before the end, and none of them should wait for the beginning.
        let far = range.start > SKIP_MAX && range.start < safe_to;
        if to_the_end && far && given.is_none() && !self.several {
            return Plan { from: range.start, end: safe_to, verified: false };
        }
        let from = if to_the_end { 0 } else { range.start };
        Plan { from, end: range.end, verified: to_the_end }
    }

    /// Opens what `range` needs first, so that a refusal is known before anything is promised.
    pub(super) async fn prepare(&self, range: ByteRange) -> Result<(), upstream::Error> {
        let stretch = self.open(self.plan(range, None)).await?;
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(stretch);
        Ok(())
    }

    async fn open(&self, plan: Plan) -> Result<Stretch, upstream::Error> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let ask = if self.several || plan.verified {
            BlobRange::rest(plan.from)
        } else {
            BlobRange::part(plan.from, plan.end)
        };
        let body = self.ask(ask).await?;
        if body.total.is_some_and(|total| total != self.size) {
            return Err(upstream::Error::Junk("another size than before"));
        }
        Stretch::new(body, plan.from)
    }

    async fn begin(&self, range: ByteRange, given: Option<Given>) -> Result<Passing, &'static str> {
        let plan = self.plan(range, given.as_ref());
        let Plan { from, end, verified } = plan;
        let spent = self.requests.load(Ordering::Relaxed) >= REQUESTS_MAX;
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reach = if verified {
            0
        } else if self.frugal || spent {
            u64::MAX
        } else {
            SKIP_MAX
        };
        let fits = |stretch: &Stretch| from.checked_sub(stretch.at).is_some_and(|gap| gap <= reach);
        let stretch = match parked.filter(fits) {
            Some(stretch) => stretch,
            None if spent => return Err("too_many_parts"),
            None => self.open(plan).await.map_err(|error| error.reason())?,
        };
        let hasher = || DigestHasher::new(self.digest.algorithm());
        let check = verified.then(|| Check {
            hasher: hasher(),
            at: 0,
            given: given.map(|given| (given, hasher())),
        });
        let passed = (end < range.end).then(hasher);
        let (stretch, position) = (Some(stretch), range.start);
        Ok(Passing { stretch, position, end, check, passed, held: BytesMut::new() })
    }

    /// The next bytes of a stretch, which must not be at the end of the blob.
    async fn next(&self, stretch: &mut Stretch) -> Result<Bytes, &'static str> {
        let unread = std::mem::take(&mut stretch.unread);
        if !unread.is_empty() {
            stretch.at += length(&unread);
            return Ok(unread);
        }
        loop {
            let chunk = match &mut stretch.body {
                Some(body) => body.chunk().await,
                None => Ok(None),
            };
            let error = match chunk {
                Ok(Some(mut chunk)) => {
                    let cut =
                        usize::try_from(stretch.repeats).unwrap_or(usize::MAX).min(chunk.len());
                    stretch.repeats -= length(&chunk.split_to(cut));
                    if chunk.is_empty() {
                        continue;
                    }
                    stretch.at += length(&chunk);
                    if stretch.at > self.size {
                        return Err("length_mismatch");
                    }
                    return Ok(chunk);
                }
                Ok(None) => upstream::Error::Junk("short_body"),
                Err(error) => error,
            };
            self.resume(stretch, error).await?;
        }
    }

    async fn resume(
        &self,
        stretch: &mut Stretch,
        mut cause: upstream::Error,
    ) -> Result<(), &'static str> {
        if stretch.at - stretch.broke >= PROGRESS_BYTES {
            stretch.barren = 0;
        }
        stretch.broke = stretch.at;
        stretch.body = None;
        loop {
            stretch.barren += 1;
            if stretch.barren >= BARREN_ATTEMPTS_MAX {
                return Err(cause.reason());
            }
            tokio::time::sleep(RESUME_PAUSE * stretch.barren).await;
            match self.ask(BlobRange::rest(stretch.at)).await {
                Ok(body) if body.from > stretch.at => return Err("wrong_range"),
                Ok(body) if body.total.is_some_and(|total| total != self.size) => {
                    return Err("length_mismatch");
                }
                Ok(body) => {
                    stretch.repeats = stretch.at - body.from;
                    stretch.body = Some(body);
                    return Ok(());
                }
                Err(error) => cause = error,
            }
        }
    }

    fn park(&self, stretch: Stretch) {
        if self.several && stretch.at < self.size {
            *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(stretch);
        }
    }
}

/// State of a stream past the store.
struct Passing {
    /// `None` when the part is complete: the next part may have the body before this stream is dropped.
    stretch: Option<Stretch>,
    position: u64,
    end: u64,
    /// The hash over the whole blob, if its last byte is asked for.
    check: Option<Check>,
    /// The hash over what this part passes on, if another one follows.
    passed: Option<DigestHasher>,
    /// The tail, held back until the hash is known: at most [`HOLD_BACK`] bytes.
    held: BytesMut,
}

/// The hashes over a whole blob and over what was given of it before.
struct Check {
    hasher: DigestHasher,
    at: u64,
    given: Option<(Given, DigestHasher)>,
}

impl Check {
    fn update(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        if let Some((Given { range, .. }, hasher)) = &mut self.given {
            let place = |offset: u64| {
                let within = usize::try_from(offset.saturating_sub(self.at));
                within.map_or(chunk.len(), |within| within.min(chunk.len()))
            };
            hasher.update(&chunk[place(range.start)..place(range.end)]);
        }
        self.at += length(chunk);
    }
}

/// Streams `range` of the blob, to a client who was given what is told of it before.
pub(super) fn past_the_store(
    bypass: Arc<Bypass>,
    range: ByteRange,
    given: Option<Given>,
) -> Frames {
    Box::pin(try_unfold((None, given), move |(state, given)| {
        let bypass = Arc::clone(&bypass);
        let step: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let mut state = match state {
                Some(state) => state,
                None => bypass.begin(range, given).await?,
            };
            loop {
                if let Some(frame) = pass_on(&mut state, &bypass).await? {
                    return Ok(Some((Chunk::Memory(frame), (Some(state), None))));
                }
                let Some(passed) = state.passed.take() else {
                    return Ok(None);
                };
                let passed_on = ByteRange { start: range.start, end: state.end };
                let given = Given { range: passed_on, digest: passed.finish() };
                let rest = ByteRange { start: state.end, end: range.end };
                state = bypass.begin(rest, Some(given)).await?;
            }
        });
        step
    }))
}

/// One step: the next frame that may go out. The tail of the blob waits for its digest.
async fn pass_on(state: &mut Passing, bypass: &Bypass) -> Result<Option<Bytes>, &'static str> {
    while state.position < state.end
        && let Some(stretch) = &mut state.stretch
    {
        let begins = stretch.at;
        if state.check.is_some() && begins >= bypass.size {
            return finish(state, bypass);
        }
        let mut chunk = bypass.next(stretch).await?;
        if let Some(check) = &mut state.check {
            check.update(&chunk);
        }
        let before = state.position.saturating_sub(begins);
        let cut = usize::try_from(before).unwrap_or(usize::MAX).min(chunk.len());
        drop(chunk.split_to(cut));
        if state.check.is_none() {
            let room = usize::try_from(state.end - state.position).unwrap_or(usize::MAX);
            if chunk.len() > room {
                stretch.unread(chunk.split_off(room));
            }
            if chunk.is_empty() {
                continue;
            }
            state.position += length(&chunk);
            if let Some(passed) = &mut state.passed {
                passed.update(&chunk);
            }
            if state.position >= state.end {
                state.stretch.take().into_iter().for_each(|stretch| bypass.park(stretch));
            }
            return Ok(Some(chunk));
        }
        let out = state.position + length(&state.held);
        let safe_to = state.end.saturating_sub(HOLD_BACK);
        let safe = usize::try_from(safe_to.saturating_sub(out)).unwrap_or(usize::MAX);
        let frame = chunk.split_to(safe.min(chunk.len()));
        state.held.extend_from_slice(&chunk);
        if !frame.is_empty() {
            state.position += length(&frame);
            return Ok(Some(frame));
        }
        if stretch.at >= bypass.size {
            return finish(state, bypass);
        }
    }
    Ok(None)
}

/// Lets the tail go if the digest is right, and with it all that went before.
fn finish(state: &mut Passing, bypass: &Bypass) -> Result<Option<Bytes>, &'static str> {
    let check = state.check.take().ok_or("no_hash")?;
    if check.hasher.finish() != bypass.digest {
        bypass.givers.blame();
        return Err("digest_mismatch");
    }
    if check.given.is_some_and(|(given, hasher)| hasher.finish() != given.digest) {
        return Err("digest_mismatch");
    }
    let tail = state.held.split().freeze();
    state.position += length(&tail);
    Ok(Some(tail))
}

/// All of a small blob, verified.
pub(super) async fn whole(
    source: &Proxied,
    mut body: BlobBody,
    digest: &Digest,
    size: u64,
) -> Result<Bytes, upstream::Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if length(&bytes) > size {
            return Err(upstream::Error::Junk("more bytes than it announced"));
        }
    }
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        source.upstream().blame(body.endpoint());
        return Err(upstream::Error::Junk("digest_mismatch"));
    }
    Ok(bytes.freeze())
}
