//! Blobs: from the store, from a running download, by a new one, or past the store.
//!
//! What must hold: a digest is downloaded once, whoever asks and by whichever way; a client gets bytes of a download only after his
//! own repository was found to hold the digest; a store that takes nothing costs clients the cache, not their blob.

use std::sync::{Arc, PoisonError};

use super::body::{Body, Finder, From};
use super::bypass::{Bypass, whole};
use super::error::Error;
use super::fill::{Filler, Following, Order, Running, Seat};
use super::flight::{Failure, HOLD_BACK, View};
use super::shared::Shared;
use super::source::Proxied;
use crate::content::BlobLookup;
use crate::metadata::BlobRecord;
use crate::oci::{ByteRange, Digest, RangeSpec};
use crate::span::Span;
use crate::upstream;

/// Times that a request starts over because the flight that it joined failed in a way that is none of its business.
const FLIGHTS_PER_REQUEST_MAX: u32 = 3;

/// How a blob was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Stored,
    Joined,
    Fetched,
    PastTheStore,
}

/// A blob with its bytes, here or on their way.
#[derive(Debug)]
pub struct Blob {
    pub size: u64,
    pub found: Found,
    pub body: Body,
}

/// Who told the size of a blob, if anybody did.
enum Told {
    /// Upstream, for this request.
    Now(Option<u64>),
    /// A manifest, or an earlier download.
    Before(Option<u64>),
}

/// How the wait for a flight's headers ended badly.
enum Ended {
    Refused(upstream::Error),
    Failed(Failure),
}

impl Shared {
    /// The blob `digest` of `repository`. Returns as soon as its size is known and the first byte that is `wanted` is here.
    pub(super) async fn blob(
        self: &Arc<Self>,
        repository: &Proxied,
        digest: &Digest,
        wanted: Option<&[RangeSpec]>,
    ) -> Result<Blob, Error> {
        let (span, told) = self.authorise(repository, digest).await?;
        if let Some(span) = span {
            return Ok(self.here(repository, digest, span));
        }
        if self.is_offline(repository) {
            return Err(Error::Offline);
        }
        let (Told::Now(expected) | Told::Before(expected)) = told;
        self.fly(repository, Wanted { digest: *digest, expected, ranges: wanted }).await
    }

    /// The size of the blob without its bytes.
    pub(super) async fn blob_size(
        &self,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<(u64, Found), Error> {
        let (span, told) = self.authorise(repository, digest).await?;
        if let Some(span) = span {
            return Ok((span.length(), Found::Stored));
        }
        if *digest == Digest::of(digest.algorithm(), b"") {
            return Ok((0, Found::Stored));
        }
        if self.is_offline(repository) {
            return Err(Error::Offline);
        }
        if let Some(size) = self.size_in_flight(repository, digest) {
            return Ok((size, Found::Joined));
        }
        let size = match told {
            Told::Now(size) => size,
            // A descriptor stands in a manifest that was verified; what HEAD says is hearsay.
            Told::Before(size) => {
                let upstream = repository.upstream();
                let asked = upstream::Spending::Needed;
                size.or(upstream.blob_head(repository.name(), digest, asked).await?)
            }
        };
        let message = "upstream does not tell the size of the blob".to_owned();
        size.map(|size| (size, Found::Fetched))
            .ok_or(Error::Unreachable { reason: "no_size", message })
    }

    fn here(self: &Arc<Self>, repository: &Proxied, digest: &Digest, span: Span) -> Blob {
        let size = span.length();
        let finder = Finder { shared: Arc::clone(self), repository: repository.clone() };
        let from = From::Stored { span, reader: self.reader.clone(), finder };
        Blob { size, found: Found::Stored, body: Body { digest: *digest, from } }
    }

    async fn lookup(&self, repository: &Proxied, digest: &Digest) -> Result<BlobLookup, Error> {
        match self.content().open_blob(repository.key(), digest).await {
            // A manifest is not a blob: an octet-stream in its place would poison containerd's content store.
            Ok(lookup) if lookup.record.revision => Err(Error::Absent),
            Ok(lookup) => Ok(lookup),
            Err(error) => {
                tracing::warn!(?error, %digest, "the store cannot be asked; going upstream");
                Ok(BlobLookup { record: BlobRecord::default(), span: None })
            }
        }
    }

    /// The stored bytes if there are any, and what is told of the size if not, for a caller who may have them.
    async fn authorise(
        &self,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<(Option<Span>, Told), Error> {
        let lookup = self.lookup(repository, digest).await?;
        let proved = self.prove_blob(repository, digest, lookup.record.proof).await?;
        let Some(size) = proved else {
            return Ok((lookup.span, Told::Before(lookup.record.size)));
        };
        // The store shows its bytes only to members, and while upstream was asked a download may have ended.
        let lookup = self.lookup(repository, digest).await?;
        Ok((lookup.span, Told::Now(lookup.record.size.or(size))))
    }

    /// Joins the download of a blob, or starts it.
    async fn fly(
        self: &Arc<Self>,
        repository: &Proxied,
        wanted: Wanted<'_>,
    ) -> Result<Blob, Error> {
        let Wanted { digest, expected, .. } = wanted;
        let mut failure = Failure::Abandoned;
        for _ in 0..FLIGHTS_PER_REQUEST_MAX {
            let (seat, joined) = match self.join(repository, &digest) {
                Some(seat) => (seat, true),
                None => {
                    // A download that ended since the store was asked left the table after its bytes were committed.
                    if let Some(span) = self.lookup(repository, &digest).await?.span {
                        return Ok(self.here(repository, &digest, span));
                    }
                    // Asked only here: a running download has its room already, and everybody may have a part in it.
                    if !self.content().admits(expected, Some(&repository.key().upstream)) {
                        return past_the_store(repository, wanted).await;
                    }
                    self.board(repository, wanted)
                }
            };
            match wait_for_headers(&seat, wanted.ranges).await {
                Ok(size) => {
                    let found = if joined { Found::Joined } else { Found::Fetched };
                    let from = From::Flight { seat: Arc::new(seat), reader: self.reader.clone() };
                    return Ok(Blob { size, found, body: Body { digest, from } });
                }
                Err(Ended::Refused(error)) => return Err(error.into()),
                Err(Ended::Failed(Failure::Store)) => {
                    return past_the_store(repository, wanted).await;
                }
                // The leader of a joined flight may have had bad luck that is not ours; a flight of our own decides.
                Err(Ended::Failed(ended)) => {
                    failure = ended;
                    if !joined || self.parts.shutdown.is_cancelled() {
                        break;
                    }
                }
            }
        }
        Err(match failure {
            Failure::Upstream(error) => error.into(),
            ended => Error::Unreachable {
                reason: ended.reason(),
                message: format!("the download of the blob failed: {}", ended.reason()),
            },
        })
    }

    /// A place on the running download of `digest`, if there is one that takes joiners.
    fn join(&self, repository: &Proxied, digest: &Digest) -> Option<Seat> {
        let running = {
            let downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(downloads.get(digest)?)
        };
        running.join(repository)
    }

    /// The size of a blob that is being downloaded, or was a moment ago.
    fn size_in_flight(&self, repository: &Proxied, digest: &Digest) -> Option<u64> {
        let seat = self.join(repository, digest)?;
        size_seen(&seat.running.flight.view(seat.source, 0))
    }

    /// A place on the running download of a blob, or on a new one; the flag tells which.
    fn board(self: &Arc<Self>, repository: &Proxied, wanted: Wanted<'_>) -> (Seat, bool) {
        let Wanted { digest, expected, .. } = wanted;
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = downloads.get(&digest).and_then(|running| running.join(repository)) {
            return (seat, true);
        }
        let running = Running::new();
        let seat = running.join(repository).expect("a new flight takes joiners");
        downloads.insert(digest, Arc::clone(&running));
        self.parts.metrics.flights.inc();
        drop(downloads);
        let lead = expected.and_then(|size| wanted.first(size)).map(|range| range.start);
        self.launch(
            running,
            Order { digest, expected, lead: lead.filter(|_| wanted.ranges.is_some()) },
        );
        (seat, false)
    }

    fn launch(self: &Arc<Self>, running: Arc<Running>, order: Order) {
        let shared = Arc::clone(self);
        let ended = running.ended.clone().drop_guard();
        self.parts.tasks.spawn(async move {
            // Dropped last: whoever waits for the end finds the content, and no flight.
            let _ended = ended;
            let filler = Filler {
                content: shared.parts.content.clone(),
                tasks: shared.parts.tasks.clone(),
                shutdown: shared.parts.shutdown.clone(),
                rings: Arc::clone(&shared.rings),
                writers: shared.writers.clone(),
            };
            filler.run(&running, order).await;
            let mut downloads = shared.downloads.lock().unwrap_or_else(PoisonError::into_inner);
            // A failed flight may have been replaced by the next one already.
            let digest = order.digest;
            if downloads.get(&digest).is_some_and(|current| Arc::ptr_eq(current, &running)) {
                downloads.remove(&digest);
            }
            shared.parts.metrics.flights.dec();
        });
    }
}

/// What a client wants of a blob that is not here.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    digest: Digest,
    /// The size, as far as it is known without asking upstream.
    expected: Option<u64>,
    /// `None`: all of it.
    ranges: Option<&'a [RangeSpec]>,
}

impl Wanted<'_> {
    /// What is sent first, if anything can be.
    fn first(&self, size: u64) -> Option<ByteRange> {
        first(self.ranges, size)
    }

    /// All that is sent.
    fn all(&self, size: u64) -> Vec<ByteRange> {
        match self.ranges {
            None => vec![ByteRange { start: 0, end: size }],
            Some(specs) => specs.iter().filter_map(|spec| spec.resolve(size).ok()).collect(),
        }
    }
}

fn first(ranges: Option<&[RangeSpec]>, size: u64) -> Option<ByteRange> {
    match ranges {
        None => Some(ByteRange { start: 0, end: size }),
        Some(specs) => specs.iter().find_map(|spec| spec.resolve(size).ok()),
    }
}

fn size_seen(view: &View) -> Option<u64> {
    match view {
        View::Ready { size, .. } | View::Ring { size, .. } | View::Alone { size } => Some(*size),
        View::Wait | View::Refused(_) | View::Failed(_) => None,
    }
}

/// Waits until the size may be announced and the first byte that is wanted is here (or, for a small blob, all of it). A range that lies
/// within the held-back tail is not waited for: its bytes come when the digest is right.
async fn wait_for_headers(seat: &Seat, wanted: Option<&[RangeSpec]>) -> Result<u64, Ended> {
    let flight = &seat.running.flight;
    let mut changes = flight.changes();
    let mut place: Option<(ByteRange, Following)> = None;
    loop {
        let at = place.as_ref().map_or(0, |(range, _)| range.start);
        let view = flight.view(seat.source, at);
        match (&view, size_seen(&view)) {
            (View::Refused(error), _) => return Err(Ended::Refused(error.clone())),
            (View::Failed(failure), _) => return Err(Ended::Failed(failure.clone())),
            (View::Ready { readable_to, .. }, Some(size)) => {
                let in_the_tail = at >= size.saturating_sub(HOLD_BACK);
                if place.is_some() && (*readable_to > at || in_the_tail) {
                    return Ok(size);
                }
                if place.is_none() {
                    let Some(range) = first(wanted, size).filter(|range| range.start < size) else {
                        return Ok(size);
                    };
                    // From here on the flight knows that somebody waits there.
                    place = Some((range, Following::new(&seat.running, range)));
                    continue;
                }
            }
            (_, Some(size)) => return Ok(size),
            (_, None) => {}
        }
        if changes.changed().await.is_err() {
            return Err(Ended::Failed(Failure::Abandoned));
        }
    }
}

/// Streams the blob from upstream without storing it, for this client alone.
async fn past_the_store(repository: &Proxied, wanted: Wanted<'_>) -> Result<Blob, Error> {
    let digest = wanted.digest;
    if let Some(size) = wanted.expected.filter(|size| *size > HOLD_BACK && wanted.ranges.is_some())
    {
        let ranges = wanted.all(size);
        let bypass = Bypass::new(repository.clone(), digest, size, &ranges, None);
        if let Some(first) = ranges.first() {
            bypass.prepare(*first).await?;
        }
        let from = From::Bypass(Arc::new(bypass));
        return Ok(Blob { size, found: Found::PastTheStore, body: Body { digest, from } });
    }
    let first =
        repository.upstream().blob(repository.name(), &digest, upstream::BlobRange::WHOLE).await?;
    let message =
        "upstream does not tell the size of the blob, and the store has no room for it".to_owned();
    // The store is where the digest could decide between the two; without it, an upstream could keep a client busy for ever.
    if let (Some(told), Some(expected)) = (first.total, wanted.expected)
        && told != expected
    {
        let message = format!("upstream sends {told} bytes for a blob of {expected}");
        return Err(Error::Unreachable { reason: "length_mismatch", message });
    }
    let size =
        first.total.or(wanted.expected).ok_or(Error::Unreachable { reason: "no_size", message })?;
    let from = if size <= HOLD_BACK {
        From::Verified(whole(repository, first, &digest, size).await?)
    } else {
        let ranges = wanted.all(size);
        From::Bypass(Arc::new(Bypass::new(repository.clone(), digest, size, &ranges, Some(first))))
    };
    Ok(Blob { size, found: Found::PastTheStore, body: Body { digest, from } })
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
