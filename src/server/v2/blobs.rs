//! `/v2/<name>/blobs/<digest>` (OCI distribution spec 1.1, "Pulling blobs"), whole, in ranges, or not at all.
//!
//! Range support does not depend on the state of the cache: containerd splices later answers blindly once it has seen one 206. HEAD
//! goes through the same selection as GET, with a source that is never opened.

use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response};

use super::super::body::Payload;
use super::super::dispatch::{Answered, Exchange, Refused};
use super::super::parts::{Multipart, Parts, Selection, Source};
use super::super::reply::Problem;
use super::super::{headers, reply};
use crate::oci::{ByteRange, Digest, MediaType, RangeError, RangeSpec};
use crate::registry::Repository;

/// Single ranges and whole blobs: the type of a blob is in the manifest that names it, not here.
const OCTET_STREAM: HeaderValue = HeaderValue::from_static(MediaType::OCTET_STREAM);

/// A blob, or its head.
pub(in crate::server) async fn get(
    exchange: &Exchange<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Answered, Refused> {
    let specs = headers::ranges(exchange.headers, digest, exchange.limits.ranges)
        .map_err(|error| Refused::from(Problem::Range { error, size: None }))?;
    let held = headers::holds_already(exchange.headers, digest);
    // Whoever holds the blob needs no bytes, only our word that it is here for him.
    if exchange.head || held {
        let found = exchange.registry.blob_head(repository, digest).await?;
        let response = respond(digest, found.value.size, specs.as_deref(), held, nothing());
        return finish(response, found.value.size, found.report);
    }
    let found = exchange.registry.blob(repository, digest, specs.as_deref()).await?;
    let (size, body) = (found.value.size, found.value.body);
    let source = Box::new(move |range: ByteRange| body.stream(range));
    finish(respond(digest, size, specs.as_deref(), held, source), size, found.report)
}

fn finish(
    response: Result<Response<Payload>, RangeError>,
    size: u64,
    report: crate::registry::Report,
) -> Result<Answered, Refused> {
    match response {
        Ok(response) => Ok(Answered::new(response, report)),
        Err(error) => Err(Refused {
            problem: Problem::Range { error, size: Some(size) },
            report: Some(report),
        }),
    }
}

/// The source of an answer whose body is not sent.
fn nothing() -> Source {
    Box::new(|_range| Box::pin(stream::empty()))
}

fn respond(
    digest: &Digest,
    size: u64,
    specs: Option<&[RangeSpec]>,
    held: bool,
    source: Source,
) -> Result<Response<Payload>, RangeError> {
    let mut response = Response::new(Payload::Empty);
    let fields = response.headers_mut();
    headers::identify(fields, digest);
    headers::accept_ranges(fields);
    if held {
        *response.status_mut() = reply::NOT_MODIFIED;
        return Ok(response);
    }
    let (status, payload) = match Selection::of(specs, size)? {
        Selection::Whole => (reply::OK, whole(size, fields, source)),
        Selection::One(range) => {
            headers::content_range(fields, &range.content_range(size));
            let parts = Parts::one(range, source);
            headers::describe(fields, OCTET_STREAM, parts.length());
            (reply::PARTIAL, Payload::Parts(parts))
        }
        Selection::Many(ranges) => {
            let framing = Multipart::new();
            let parts = Parts::many(&ranges, size, &framing, source);
            headers::describe(fields, headers::value(&framing.content_type()), parts.length());
            (reply::PARTIAL, Payload::Parts(parts))
        }
    };
    *response.status_mut() = status;
    *response.body_mut() = payload;
    Ok(response)
}

fn whole(size: u64, fields: &mut HeaderMap, source: Source) -> Payload {
    headers::describe(fields, OCTET_STREAM, size);
    if size == 0 {
        return Payload::Empty;
    }
    Payload::Parts(Parts::one(ByteRange { start: 0, end: size }, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::parse_range;

    fn ask(range: Option<&str>, size: u64, held: bool) -> Result<Response<Payload>, RangeError> {
        let specs = range.and_then(|range| parse_range(range).unwrap());
        respond(&Digest::sha256_of(b""), size, specs.as_deref(), held, nothing())
    }

    fn field<'a>(response: &'a Response<Payload>, name: &str) -> &'a str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[test]
    fn a_whole_blob() {
        for size in [0, 10] {
            let response = ask(None, size, false).unwrap();
            assert_eq!(response.status(), reply::OK);
            assert_eq!(field(&response, "content-length"), size.to_string());
            assert_eq!(response.body().length(), size);
            assert_eq!(field(&response, "content-type"), "application/octet-stream");
            assert_eq!(field(&response, "accept-ranges"), "bytes");
            assert_eq!(
                field(&response, "docker-content-digest"),
                Digest::sha256_of(b"").to_string()
            );
            assert_eq!(field(&response, "content-range"), "");
        }
    }

    #[test]
    fn one_range_is_exact() {
        for (asked, range, length) in [
            ("bytes=0-", "bytes 0-9/10", 10),
            ("bytes=4-99", "bytes 4-9/10", 6),
            ("bytes=-1", "bytes 9-9/10", 1),
        ] {
            let response = ask(Some(asked), 10, false).unwrap();
            assert_eq!(response.status(), reply::PARTIAL);
            assert_eq!(field(&response, "content-range"), range);
            assert_eq!(field(&response, "content-length"), length.to_string());
            assert_eq!(response.body().length(), length);
            assert_eq!(field(&response, "content-type"), "application/octet-stream");
            assert_eq!(field(&response, "accept-ranges"), "bytes");
        }
    }

    #[test]
    fn many_ranges_are_multipart_with_a_known_length() {
        let response = ask(Some("bytes=0-0,5-"), 10, false).unwrap();
        assert_eq!(response.status(), reply::PARTIAL);
        assert!(field(&response, "content-type").starts_with("multipart/byteranges; boundary="));
        assert_eq!(field(&response, "content-length"), response.body().length().to_string());
        assert_eq!(field(&response, "content-range"), "");
    }

    #[test]
    fn beyond_the_end_and_already_held() {
        assert_eq!(ask(Some("bytes=10-"), 10, false).unwrap_err(), RangeError::Unsatisfiable);
        let response = ask(Some("bytes=10-"), 10, true).unwrap();
        assert_eq!(response.status(), reply::NOT_MODIFIED, "the condition comes before the range");
        assert_eq!(response.body().length(), 0);
    }
}
