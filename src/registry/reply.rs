//! What the registry answers: values in domain terms, and the report that logs, metrics and `Cache-Status` are made of.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;

use super::error::Refusal;
use crate::oci::{ByteRange, Digest, MediaType, RegistryName};
use crate::span::Chunk;

/// How an answer came about. The words are shared by the log, the metrics and the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the cache, upstream not asked.
    Hit,
    /// From a download that was already running.
    Joined,
    /// Fetched from upstream for this request.
    Miss,
    /// From the cache after upstream confirmed it.
    Revalidated,
    /// From the cache although upstream could not confirm it.
    Stale,
    /// Streamed from upstream without being stored.
    Bypass,
    /// Taken out on the client's order.
    Deleted,
    /// Refused: absent, denied, malformed.
    Refused,
    /// Could not be served: upstream or we are in trouble.
    Error,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Joined => "joined",
            Self::Miss => "miss",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::Deleted => "deleted",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// What the log line, the metrics and the `Cache-Status` header of an answer say.
#[derive(Clone, Debug)]
pub struct Report {
    pub upstream: Option<RegistryName>,
    pub outcome: Outcome,
    /// One stable word, such as `unreachable` or `digest_mismatch`.
    pub reason: Option<&'static str>,
    /// Freshness left, for tags.
    pub ttl: Option<Duration>,
    /// How long past its freshness a stale answer is.
    pub stale_for: Option<Duration>,
    /// Direct children of the manifest that are not here, counted for stale answers only.
    pub missing_children: u64,
}

/// A good answer.
#[derive(Debug)]
pub struct Reply<T> {
    pub value: T,
    pub report: Report,
}

/// What every operation of the registry returns.
pub type Answer<T> = Result<Reply<T>, Refusal>;

/// A manifest, byte for byte as upstream gave it.
#[derive(Clone, Debug)]
pub struct ManifestReply {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
}

/// A blob whose size is known and whose bytes may still be on their way.
#[derive(Debug)]
pub struct BlobReply {
    pub digest: Digest,
    pub size: u64,
    pub body: BlobBody,
}

/// What is known of a blob without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct BlobHead {
    pub digest: Digest,
    pub size: u64,
}

/// The bytes of a blob, readable by range.
pub struct BlobBody(Box<dyn Fn(ByteRange) -> BlobStream + Send + Sync>);

/// Chunks of one range, in order. An error means that the connection must be closed before the announced length.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Chunk, StreamError>> + Send>>;

/// The body cannot be completed; the reason is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamError(pub &'static str);

impl BlobBody {
    pub(super) fn new(open: impl Fn(ByteRange) -> BlobStream + Send + Sync + 'static) -> Self {
        Self(Box::new(open))
    }

    /// The bytes of `range`, which must lie within the blob. May be called once per part of a multi-part answer.
    pub fn stream(&self, range: ByteRange) -> BlobStream {
        (self.0)(range)
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobBody")
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for StreamError {}

/// A page of a listing, as the client asked for it.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// At most this many entries; the registry has its own upper limit.
    pub n: Option<u64>,
    /// Entries after this one in lexical order.
    pub last: Option<String>,
}

#[derive(Clone, Debug)]
pub struct TagsReply {
    pub tags: Vec<String>,
    /// There is a next page after the last entry.
    pub more: bool,
}

#[derive(Clone, Debug)]
pub struct CatalogReply {
    /// Names in the form in which a client of the data plane addresses them (`docker.io/library/nginx`).
    pub repositories: Vec<String>,
    pub more: bool,
}

#[derive(Clone, Debug)]
pub struct ReferrersReply {
    /// An OCI image index.
    pub body: Bytes,
    /// The `artifactType` filter was applied.
    pub filtered: bool,
}
