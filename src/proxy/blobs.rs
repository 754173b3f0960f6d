//! Blobs: from the store, from a running download, by a new one, or past the store.
//!
//! What must hold: a digest is downloaded once, whoever asks and by whichever way; a client gets bytes of a download only after his
//! own repository was found to hold the digest; a store that takes nothing costs clients the cache, not their blob.

use std::sync::{Arc, Mutex, PoisonError};

use super::body::{Body, Bypass, From, whole};
use super::error::Error;
use super::fill::{Filler, Running};
use super::flight::{Failure, HOLD_BACK, View};
use super::shared::Shared;
use super::source::Proxied;
use crate::content::BlobLookup;
use crate::metadata::BlobRecord;
use crate::oci::Digest;
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
    /// The blob `digest` of `repository`. Returns as soon as its size is known and its first byte is here.
    pub(super) async fn blob(
        self: &Arc<Self>,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<Blob, Error> {
        let (span, told) = self.authorise(repository, digest).await?;
        if let Some(span) = span {
            return Ok(self.here(digest, span));
        }
        if repository.policy().offline {
            return Err(Error::Offline);
        }
        let (Told::Now(expected) | Told::Before(expected)) = told;
        self.fly(repository, digest, expected).await
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
        if let Some(size) = self.size_in_flight(repository, digest) {
            return Ok((size, Found::Joined));
        }
        if repository.policy().offline {
            return Err(Error::Offline);
        }
        let size = match told {
            Told::Now(size) => size,
            Told::Before(size) => {
                repository.upstream().blob_head(repository.name(), digest).await?.or(size)
            }
        };
        let message = "upstream does not tell the size of the blob".to_owned();
        size.map(|size| (size, Found::Fetched))
            .ok_or(Error::Unreachable { reason: "no_size", message })
    }

    fn here(&self, digest: &Digest, span: Span) -> Blob {
        let size = span.length();
        let from = From::Stored { span, reader: self.reader.clone() };
        Blob { size, found: Found::Stored, body: Body { digest: *digest, from } }
    }

    async fn lookup(&self, repository: &Proxied, digest: &Digest) -> Result<BlobLookup, Error> {
        match self.content().open_blob(repository.key(), digest).await {
            // A manifest is not a blob: an octet-stream in its place would poison containerd's content store.
            Ok(lookup) if lookup.record.revision => Err(Error::Absent),
            Ok(lookup) => Ok(lookup),
            Err(error) => {
                tracing::warn!(?error, %digest, "the store cannot be asked; going upstream");
                let record =
                    BlobRecord { size: None, present: false, proof: None, revision: false };
                Ok(BlobLookup { record, span: None })
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
        Ok((lookup.span, Told::Now(size.or(lookup.record.size))))
    }

    /// Joins the download of `digest`, or starts it.
    async fn fly(
        self: &Arc<Self>,
        repository: &Proxied,
        digest: &Digest,
        expected: Option<u64>,
    ) -> Result<Blob, Error> {
        let mut failure = Failure::Abandoned;
        for _ in 0..FLIGHTS_PER_REQUEST_MAX {
            let (running, source, joined) = match self.join(repository, digest) {
                Some((running, source)) => (running, source, true),
                None => {
                    // A download that ended since the store was asked left the table after its bytes were committed.
                    if let Some(span) = self.lookup(repository, digest).await?.span {
                        return Ok(self.here(digest, span));
                    }
                    // Asked only here: a running download has its room already, and everybody may have a part in it.
                    if !self.content().admits(expected) {
                        return past_the_store(repository, digest, expected).await;
                    }
                    self.board(repository, digest, expected)
                }
            };
            match wait_for_headers(&running, source).await {
                Ok(size) => {
                    let found = if joined { Found::Joined } else { Found::Fetched };
                    let from = From::Flight { running, source, reader: self.reader.clone() };
                    return Ok(Blob { size, found, body: Body { digest: *digest, from } });
                }
                Err(Ended::Refused(error)) => return Err(error.into()),
                Err(Ended::Failed(Failure::Store)) => {
                    return past_the_store(repository, digest, expected).await;
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
    fn join(&self, repository: &Proxied, digest: &Digest) -> Option<(Arc<Running>, usize)> {
        let downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        let running = downloads.get(digest)?;
        Some((Arc::clone(running), running.join(repository)?))
    }

    /// The size of a blob that is being downloaded, or was a moment ago.
    fn size_in_flight(&self, repository: &Proxied, digest: &Digest) -> Option<u64> {
        let (running, source) = self.join(repository, digest)?;
        match running.flight.view(source, 0) {
            View::Ready { size, .. } => Some(size),
            View::Wait | View::Refused(_) | View::Failed(_) => None,
        }
    }

    /// A place on the running download of `digest`, or on a new one; the flag tells which.
    fn board(
        self: &Arc<Self>,
        repository: &Proxied,
        digest: &Digest,
        expected: Option<u64>,
    ) -> (Arc<Running>, usize, bool) {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = downloads.get(digest)
            && let Some(source) = running.join(repository)
        {
            return (Arc::clone(running), source, true);
        }
        let running = Running::new();
        // A new flight has not failed, so the join succeeds; source 0 is the leader's.
        let source = running.join(repository).unwrap_or(0);
        downloads.insert(*digest, Arc::clone(&running));
        self.parts.metrics.flights.inc();
        drop(downloads);
        self.launch(Arc::clone(&running), *digest, expected);
        (running, source, false)
    }

    fn launch(self: &Arc<Self>, running: Arc<Running>, digest: Digest, expected: Option<u64>) {
        let shared = Arc::clone(self);
        self.parts.tasks.spawn(async move {
            let filler = Filler {
                content: shared.parts.content.clone(),
                tasks: shared.parts.tasks.clone(),
                shutdown: shared.parts.shutdown.clone(),
            };
            filler.run(&running.flight, &digest, expected, |index| running.source(index)).await;
            let mut downloads = shared.downloads.lock().unwrap_or_else(PoisonError::into_inner);
            // A failed flight may have been replaced by the next one already.
            if downloads.get(&digest).is_some_and(|current| Arc::ptr_eq(current, &running)) {
                downloads.remove(&digest);
            }
            shared.parts.metrics.flights.dec();
        });
    }
}

/// Waits until the size may be announced and the first byte is here (or, for a small blob, all of it).
async fn wait_for_headers(running: &Running, source: usize) -> Result<u64, Ended> {
    let mut changes = running.flight.changes();
    loop {
        match running.flight.view(source, 0) {
            View::Ready { size, readable_to } if readable_to > 0 || size <= HOLD_BACK => {
                return Ok(size);
            }
            View::Ready { .. } | View::Wait => {}
            View::Refused(error) => return Err(Ended::Refused(error)),
            View::Failed(failure) => return Err(Ended::Failed(failure)),
        }
        if changes.changed().await.is_err() {
            return Err(Ended::Failed(Failure::Abandoned));
        }
    }
}

/// Streams the blob from upstream without storing it, for this client alone.
async fn past_the_store(
    repository: &Proxied,
    digest: &Digest,
    expected: Option<u64>,
) -> Result<Blob, Error> {
    let first = repository.upstream().blob(repository.name(), digest, 0).await?;
    let message =
        "upstream does not tell the size of the blob, and the store has no room for it".to_owned();
    let size = first.total.or(expected).ok_or(Error::Unreachable { reason: "no_size", message })?;
    let from = if size <= HOLD_BACK {
        From::Verified(whole(first, digest, size).await?)
    } else {
        From::Bypass(Arc::new(Bypass {
            source: repository.clone(),
            digest: *digest,
            size,
            first: Mutex::new(Some(first)),
        }))
    };
    Ok(Blob { size, found: Found::PastTheStore, body: Body { digest: *digest, from } })
}

#[cfg(test)]
#[path = "blobs_tests.rs"]
mod tests;
