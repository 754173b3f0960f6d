//! Blobs: a body that flows as long as it flows.
//!
//! What must hold: no limit on the whole, only on silence; the place among the downloads is held as long as the body; the range that was
//! asked is the range that is given, checked against `Content-Range`, or the body begins at 0 and says so. Bytes are not verified here:
//! only the caller knows the digest's end. A resumed download asks the registry again, because signed URLs live for a minute.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::ask::{Ask, Failure};
use super::client::{Client, HTML, busy};
use super::endpoint::Endpoint;
use super::error::{Cause, Error};
use super::failover::Turn;
use super::manifest::is_heads_own;
use super::memory::{Asker, Need};
use super::metrics::{Kind, Meter};
use super::quota::Spending;
use super::redirect::{Arrival, Hops};
use super::transport::{self, Deadline};
use crate::oci::{Digest, RepositoryName};

/// The part of a blob that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRange {
    /// The first byte.
    pub from: u64,
    /// One past the last byte, more than `from`; `None` is the end of the blob.
    pub to: Option<u64>,
}

impl BlobRange {
    /// All of it.
    pub const WHOLE: Self = Self { from: 0, to: None };

    /// Everything from byte `from` on.
    pub const fn rest(from: u64) -> Self {
        Self { from, to: None }
    }

    /// The bytes `from..to`.
    pub const fn part(from: u64, to: u64) -> Self {
        Self { from, to: Some(to) }
    }

    /// The value of a `Range` header (RFC 9110, 14.2); the whole needs none.
    pub(super) fn header(self) -> Option<String> {
        match self {
            Self::WHOLE => None,
            Self { from, to: None } => Some(format!("bytes={from}-")),
            Self { from, to: Some(to) } => Some(format!("bytes={from}-{}", to.saturating_sub(1))),
        }
    }
}

/// The bytes of a blob as they come.
pub struct BlobBody {
    /// Size of the whole blob, if upstream said it.
    pub total: Option<u64>,
    /// Offset of the first byte that comes.
    pub from: u64,
    /// One past the last byte that comes, if upstream said it; an upstream may give less or more than was asked.
    pub to: Option<u64>,
    /// Bytes that are announced and have not come yet.
    left: Option<u64>,
    response: Response,
    idle_limit: Duration,
    meter: Meter,
    endpoint: Endpoint,
    _place: OwnedSemaphorePermit,
}

impl Client {
    /// See `Upstream::blob`.
    pub(super) async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: BlobRange,
        turn: Turn<'_>,
    ) -> Result<BlobBody, Error> {
        let outcome = self.begin_blob(repository, digest, range, turn).await;
        if let Err(failure) = &outcome
            && failure.elsewhere
        {
            // The registry answers; its store does not, which is trouble for bodies alone.
            self.endpoint.body_broke(&failure.error);
        }
        Ok(outcome?)
    }

    async fn begin_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: BlobRange,
        turn: Turn<'_>,
    ) -> Result<BlobBody, Failure> {
        let deadline = turn.deadline;
        let place = self.download_place(deadline).await?;
        let mut ask = self.blob_ask(Method::GET, repository, digest, turn);
        ask.range = range;
        let is_part = range != BlobRange::WHOLE;
        let answer = match self.ask(&ask, deadline).await {
            Ok(arrival) => check(&arrival, range.from).map(|extent| (arrival, extent)),
            Err(failure) if is_part && refuses_range(&failure) => Err(Error::Junk(WRONG_RANGE)),
            Err(failure) => return Err(failure),
        };
        let (arrival, extent) = match answer {
            // A store that does not do what was asked is asked for the whole, from the registry on.
            Err(Error::Junk(WRONG_RANGE)) if is_part && range.to.is_none() && turn.last => {
                ask.range = BlobRange::WHOLE;
                let arrival = self.ask(&ask, deadline).await?;
                let extent = check(&arrival, 0)?;
                (arrival, extent)
            }
            other => other?,
        };
        Ok(BlobBody {
            total: extent.total,
            from: extent.from,
            to: extent.length.map(|length| extent.from.saturating_add(length)),
            left: extent.length,
            response: arrival.response,
            idle_limit: self.limits.idle_body,
            meter: self.transport.meter().clone(),
            endpoint: self.endpoint.clone(),
            _place: place,
        })
    }

    /// See `Upstream::blob_head`.
    pub(super) async fn blob_head(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        spending: Spending,
        turn: Turn<'_>,
    ) -> Result<Option<u64>, Error> {
        let deadline = turn.deadline;
        let _place = self.place(deadline).await?;
        let mut ask = self.blob_ask(Method::HEAD, repository, digest, turn);
        ask.hops = Hops::None;
        let arrival = match self.ask(&ask, deadline).await {
            Ok(arrival) => arrival,
            Err(failure) if is_heads_own(&failure) => {
                let who = self.credentials.current(repository, deadline).await?;
                self.quota.allows(Asker::of(&who), spending)?;
                ask.method = Method::GET;
                self.ask(&ask, deadline).await?
            }
            Err(failure) => return Err(failure.error),
        };
        let headers = arrival.response.headers();
        if transport::is_html(headers) && arrival.status().is_success() {
            return Err(HTML);
        }
        let told = arrival.status() == StatusCode::OK && !transport::is_encoded(headers);
        // Some answer HEAD with a length of 0; only one blob really has it.
        let empty = *digest == Digest::of(digest.algorithm(), b"");
        let size = transport::content_length(headers).filter(|size| told && (*size > 0 || empty));
        Ok(size)
    }

    fn blob_ask<'a>(
        &self,
        method: Method,
        repository: &'a RepositoryName,
        digest: &Digest,
        turn: Turn<'a>,
    ) -> Ask<'a> {
        Ask {
            repository,
            need: Need::Pull,
            kind: Kind::Blob,
            method,
            url: self.url(repository, &format!("blobs/{digest}")),
            accept: None,
            range: BlobRange::WHOLE,
            hops: Hops::Anywhere,
            turn,
        }
    }

    async fn download_place(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit, Error> {
        let downloads = Arc::clone(&self.downloads);
        let place = timeout(deadline.remaining(), downloads.acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }
}

impl BlobBody {
    /// Who gives it.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The body is of no use to the caller; the endpoint stands behind the others for a moment. Gives the error.
    pub fn unfit(&self, reason: &'static str) -> Error {
        let error = Error::Junk(reason);
        self.endpoint.body_broke(&error);
        error
    }

    /// The next bytes; `None` is the end. It waits for at most `Limits::idle_body`; the time that the caller takes between two calls does
    /// not count.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if the body broke, stalled, or ended before what was announced; after an error there is nothing more.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let chunk = self.next().await;
        match &chunk {
            Ok(Some(_bytes)) => {}
            Ok(None) => self.endpoint.body_ended(),
            Err(error) => self.endpoint.body_broke(error),
        }
        chunk
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let chunk = match timeout(self.idle_limit, self.response.chunk()).await {
            Ok(Ok(chunk)) => chunk,
            Ok(Err(error)) => return Err(transport::failure(&error)),
            Err(_elapsed) => return Err(Error::Unreachable(Cause::Timeout)),
        };
        let Some(chunk) = chunk else {
            return match self.left {
                Some(1..) => Err(Error::Unreachable(Cause::Reset)),
                _ => Ok(None),
            };
        };
        self.meter.bytes(Kind::Blob, chunk.len());
        if let Some(left) = self.left {
            let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let rest = left.checked_sub(length);
            self.left = Some(rest.ok_or(Error::Junk("more bytes than it announced"))?);
        }
        Ok(Some(chunk))
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the response: its URL is a bearer secret.
        f.debug_struct("BlobBody")
            .field("total", &self.total)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("left", &self.left)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

const WRONG_RANGE: &str = "another range than was asked";

/// What part of the blob an answer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    total: Option<u64>,
    from: u64,
    length: Option<u64>,
}

/// Signed stores refuse a range in several ways; the registry itself would have said more.
fn refuses_range(failure: &Failure) -> bool {
    let status = failure.status.map(|status| status.as_u16());
    let decided = matches!(failure.error, Error::Absent | Error::Denied | Error::Credential(_));
    !decided && matches!(status, Some(400 | 401 | 403 | 404 | 416))
}

fn check(arrival: &Arrival, from: u64) -> Result<Extent, Error> {
    let headers = arrival.response.headers();
    // A code that is only a label is no reason to refuse: nothing is decoded, and the digest decides on the bytes as they come.
    if transport::is_html(headers) {
        return Err(HTML);
    }
    let length = transport::content_length(headers);
    extent(arrival.status(), headers, length, from)
}

fn extent(
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<u64>,
    from: u64,
) -> Result<Extent, Error> {
    match status {
        StatusCode::OK => Ok(Extent { total: length, from: 0, length }),
        StatusCode::PARTIAL_CONTENT => {
            let multipart = headers
                .get(CONTENT_TYPE)
                .is_some_and(|value| value.as_bytes().starts_with(b"multipart/"));
            let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            match range.and_then(content_range) {
                Some((first, last, total)) if first == from && !multipart => {
                    Ok(Extent { total, from, length: Some(last - first + 1) })
                }
                _ => Err(Error::Junk(WRONG_RANGE)),
            }
        }
        _ => Err(Error::Junk("a success that is neither 200 nor 206")),
    }
}

/// `bytes 5-9/10` (RFC 9110, 14.4); the total may be `*`.
pub(super) fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let sound = unit.eq_ignore_ascii_case("bytes")
        && first <= last
        && last < u64::MAX
        && total.is_none_or(|total| last < total);
    sound.then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn partial(range: &'static str, from: u64) -> Result<Extent, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_RANGE, HeaderValue::from_static(range));
        extent(StatusCode::PARTIAL_CONTENT, &headers, None, from)
    }

    #[test]
    fn a_part_is_asked_for_with_inclusive_ends() {
        assert_eq!(BlobRange::WHOLE.header(), None);
        assert_eq!(BlobRange::rest(7).header().unwrap(), "bytes=7-");
        assert_eq!(BlobRange::part(0, 10).header().unwrap(), "bytes=0-9");
    }

    #[test]
    fn a_range_is_what_was_asked() {
        let want = Extent { total: Some(10), from: 4, length: Some(6) };
        assert_eq!(partial("bytes 4-9/10", 4), Ok(want));
        let short = partial("bytes 4-6/10", 4).unwrap();
        assert_eq!((short.total, short.length), (Some(10), Some(3)));
        assert_eq!(partial("Bytes 4-9/*", 4).unwrap().total, None);
        for bad in [
            "bytes 3-9/10",
            "bytes 0-9/10",
            "bytes 4-10/10",
            "bytes 9-4/10",
            "bytes */10",
            "4-9/10",
            "items 4-9/10",
            "bytes 4-9",
            "bytes 4-18446744073709551615/*",
            "",
        ] {
            assert_eq!(partial(bad, 4), Err(Error::Junk(WRONG_RANGE)), "{bad}");
        }
    }

    #[test]
    fn multipart_and_missing_ranges_are_wrong() {
        let mut headers = HeaderMap::new();
        assert!(extent(StatusCode::PARTIAL_CONTENT, &headers, Some(6), 4).is_err());
        headers.insert(CONTENT_RANGE, HeaderValue::from_static("bytes 4-9/10"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("multipart/byteranges; boundary=x"));
        assert!(extent(StatusCode::PARTIAL_CONTENT, &headers, Some(6), 4).is_err());
    }

    #[test]
    fn a_whole_answer_begins_at_zero() {
        let whole = extent(StatusCode::OK, &HeaderMap::new(), Some(10), 4).unwrap();
        assert_eq!((whole.from, whole.total, whole.length), (0, Some(10), Some(10)));
        assert!(extent(StatusCode::NO_CONTENT, &HeaderMap::new(), None, 0).is_err());
    }
}
