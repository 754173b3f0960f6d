//! One body from upstream on its way to the writer of a flight.
//!
//! What must hold: a fetcher brings what its claim says and nothing that is here already; where the body begins, what it belongs to and
//! how it ends is checked before a byte counts; a source that upstream refuses fails only the clients that brought it. It runs inside
//! the task that fills the flight and may be dropped at any await: whoever drops it releases its claim.

use std::time::Duration;

use super::claims::{Part, Step};
use super::fill::Running;
use super::interval::length;
use super::queue::{Message, Sender};
use crate::content::Content;
use crate::oci::Digest;
use crate::upstream::{self, BlobBody, BlobRange};

/// How a fetcher ended.
#[derive(Debug)]
pub(super) enum End {
    /// It brought its part.
    Done,
    /// It brought the beginning of its part; upstream said that it would give no more at a time.
    Short,
    /// The body broke, or there was none.
    Broken(upstream::Error),
    /// Upstream gives no parts of a blob.
    NoRanges,
    /// A body of unknown size has outgrown the room.
    NoRoom,
    /// The writer has ended; its result says why.
    Gone,
}

/// What all fetchers of a flight share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetcher<'a> {
    pub(super) running: &'a Running,
    pub(super) digest: &'a Digest,
    pub(super) content: &'a Content,
    pub(super) chunks: &'a Sender,
}

impl Running {
    /// Asks one source after the other for a part of the blob until one gives a body.
    pub(super) async fn open(
        &self,
        digest: &Digest,
        range: BlobRange,
    ) -> Result<BlobBody, Option<upstream::Error>> {
        let (mut tried, mut last) = (Vec::new(), None);
        while let Some(index) = self.flight.next_source(&tried) {
            tried.push(index);
            let Some(source) = self.source(index) else {
                continue;
            };
            match source.upstream().blob(source.name(), digest, range).await {
                Ok(body) => {
                    self.flight.accept(index);
                    self.givers.note(&source, &body);
                    return Ok(body);
                }
                Err(error @ (upstream::Error::Absent | upstream::Error::Denied)) => {
                    self.flight.refuse(index, error.clone());
                    // Trouble that passes tells more about the flight than one source's refusal.
                    last.get_or_insert(error);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last)
    }
}

impl Fetcher<'_> {
    /// Brings `part`, from `body` if it is open already, else after a pause from a body of its own.
    pub(super) async fn run(
        self,
        part: Part,
        body: Option<BlobBody>,
        pause: Duration,
    ) -> (Part, End) {
        let end = match body {
            Some(body) => self.bring(part, body).await,
            None => {
                tokio::time::sleep(pause).await;
                let size = self.running.flight.claims(|claims| claims.size());
                match self.running.open(self.digest, part.range(size)).await {
                    Ok(body) => self.bring(part, body).await,
                    Err(Some(upstream::Error::Junk(_))) if part.to.is_some() => End::NoRanges,
                    Err(Some(error)) => End::Broken(error),
                    // Every source was refused, and their clients know.
                    Err(None) => End::Broken(upstream::Error::Absent),
                }
            }
        };
        (part, end)
    }

    async fn bring(&self, part: Part, mut body: BlobBody) -> End {
        let flight = &self.running.flight;
        let size = flight.claims(|claims| claims.size());
        if body.total.is_some() && size.is_some() && body.total != size {
            return End::Broken(body.unfit("another size than before"));
        }
        let Some(cursor) = flight.claims(|claims| claims.cursor(part.id)) else {
            return End::Done;
        };
        if body.from > cursor {
            return End::Broken(body.unfit("another range than was asked"));
        }
        // More than the part, from the beginning: the upstream has not looked at the range.
        let beyond = |to: u64| body.from == 0 && body.to.is_none_or(|end| end > to);
        if body.from < cursor || part.to.is_some_and(beyond) {
            if !part.main {
                return End::NoRanges;
            }
            flight.claims(|claims| claims.widen(part.id, body.from));
        }
        loop {
            flight.room().await;
            match body.chunk().await {
                Ok(Some(chunk)) => {
                    if let Some(end) = self.hand_over(part.id, chunk).await {
                        return end;
                    }
                }
                Ok(None) => return self.ended(part.id, size, &body),
                Err(error) => return End::Broken(error),
            }
        }
    }

    /// Gives the writer what is wanted of a chunk; the end, if nothing more is.
    async fn hand_over(&self, id: u64, mut chunk: bytes::Bytes) -> Option<End> {
        let flight = &self.running.flight;
        while !chunk.is_empty() {
            let length = length(&chunk);
            let (at, step, unbounded) = flight.claims(|claims| {
                (claims.cursor(id), claims.take(id, length), claims.size().is_none())
            });
            // No more than the chunk's own length, so it fits.
            let cut = |chunk: &mut bytes::Bytes, count: u64| {
                chunk.split_to(usize::try_from(count).unwrap_or(usize::MAX).min(chunk.len()))
            };
            match (step, at) {
                (Step::Keep(count), Some(at)) => {
                    // Nothing was reserved for a body of unknown size, and it may have no end.
                    if unbounded && !self.content.admits(Some(0), None) {
                        return Some(End::NoRoom);
                    }
                    let message = Message::Chunk(at, cut(&mut chunk, count));
                    if self.chunks.send(message).await.is_err() {
                        return Some(End::Gone);
                    }
                }
                (Step::Skip(count), _) => drop(cut(&mut chunk, count)),
                (Step::Stop, _) | (_, None) => return Some(End::Done),
            }
        }
        flight.claims(|claims| claims.is_over(id)).then_some(End::Done)
    }

    /// The body has ended cleanly: with all that was wanted, or with less.
    fn ended(&self, id: u64, size: Option<u64>, body: &BlobBody) -> End {
        self.running.flight.claims(|claims| {
            let Some(cursor) = claims.cursor(id) else {
                return End::Done;
            };
            if size.is_none() {
                claims.end_at(cursor);
                return End::Done;
            }
            // An upstream may give less than was asked, if it says so and gives something.
            let as_told = body.to == Some(cursor) && cursor > body.from;
            if claims.is_over(id) {
                return End::Done;
            }
            if as_told {
                return End::Short;
            }
            End::Broken(body.unfit("short_body"))
        })
    }
}
