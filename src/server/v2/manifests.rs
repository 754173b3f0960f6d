//! `/v2/<name>/manifests/<reference>` (OCI distribution spec 1.1, "Pulling manifests").
//!
//! The media type and the bytes are upstream's, whatever the client accepts: substituting either would change the digest. Ranges are
//! not offered: manifests are small, and clients that put a Range on every request take a 200 for one.

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Response};

use super::super::body::Payload;
use super::super::dispatch::{Answered, Exchange, Refused};
use super::super::reply::Problem;
use super::super::{headers, reply};
use crate::carry::Served;
use crate::oci::{Digest, Reference, Tag};
use crate::registry::{ManifestReply, Removal, Repository};

/// A manifest by tag or digest.
pub(in crate::server) async fn get(
    exchange: &Exchange<'_>,
    repository: &Repository,
    reference: &Reference,
) -> Result<Answered, Refused> {
    let found = exchange.registry.manifest(repository, reference).await?;
    note(exchange, repository, reference.tag(), &found.value);
    Ok(Answered::new(respond(found.value, exchange.headers), found.report))
}

/// A revision that a tag has or had.
pub(in crate::server) async fn get_tagged(
    exchange: &Exchange<'_>,
    repository: &Repository,
    tag: &Tag,
    digest: &Digest,
) -> Result<Answered, Refused> {
    let found = exchange.registry.tagged_manifest(repository, tag, digest).await?;
    // It may be what the tag was.
    note(exchange, repository, None, &found.value);
    Ok(Answered::new(respond(found.value, exchange.headers), found.report))
}

/// Takes a tag, a revision of a tag, or a revision out (OCI distribution spec 1.1, "Content Management").
pub(in crate::server) async fn delete(
    exchange: &Exchange<'_>,
    repository: &Repository,
    what: Removal<'_>,
) -> Result<Answered, Refused> {
    if !repository.allows_delete() {
        return Err(Problem::DeletionOff(repository.upstream().clone()).into());
    }
    let deleted = exchange.registry.delete(repository, what).await?;
    let mut response = Response::new(Payload::Empty);
    *response.status_mut() = reply::ACCEPTED;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(Answered::new(response, deleted.report))
}

/// Notes what the client gets, if somebody records.
fn note(
    exchange: &Exchange<'_>,
    repository: &Repository,
    tag: Option<&Tag>,
    manifest: &ManifestReply,
) {
    if exchange.recorder.is_recording() {
        exchange.recorder.note(&Served {
            client: exchange.client,
            repository: repository.key(),
            // What a tag was is not what it is.
            tag: tag.filter(|_| !repository.is_of_the_past()),
            digest: &manifest.digest,
        });
    }
}

fn respond(manifest: ManifestReply, asked: &HeaderMap) -> Response<Payload> {
    let mut response = Response::new(Payload::Empty);
    headers::identify(response.headers_mut(), &manifest.digest);
    if headers::holds_already(asked, &manifest.digest) {
        *response.status_mut() = reply::NOT_MODIFIED;
        return response;
    }
    *response.status_mut() = reply::OK;
    let payload = Payload::Bytes(manifest.bytes);
    let content_type = headers::value(manifest.media_type.as_str());
    headers::describe(response.headers_mut(), content_type, payload.length());
    *response.body_mut() = payload;
    response
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::{ACCEPT, IF_NONE_MATCH, RANGE};

    use super::*;

    fn manifest(media_type: &str) -> ManifestReply {
        let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
        ManifestReply {
            digest: Digest::sha256_of(&bytes),
            media_type: media_type.parse().unwrap(),
            bytes,
        }
    }

    #[test]
    fn type_and_bytes_pass_unchanged_whatever_is_accepted() {
        let mut asked = HeaderMap::new();
        asked.insert(ACCEPT, HeaderValue::from_static("text/html"));
        asked.insert(RANGE, HeaderValue::from_static("bytes=0-"));
        let media_type = "application/vnd.acme.thing+json; charset=utf-8";
        let response = respond(manifest(media_type), &asked);
        assert_eq!(response.status(), reply::OK);
        assert_eq!(response.headers()["content-type"], media_type);
        assert_eq!(response.headers()["content-length"], "19");
        let digest = manifest(media_type).digest.to_string();
        assert_eq!(response.headers()["docker-content-digest"], digest);
        assert_eq!(response.headers()["etag"], format!("\"{digest}\""));
        assert!(!response.headers().contains_key("content-encoding"));
        let Payload::Bytes(bytes) = response.into_body() else {
            panic!("a manifest goes out whole");
        };
        assert_eq!(bytes, manifest(media_type).bytes);
    }

    #[test]
    fn what_the_client_holds_is_not_sent_again() {
        let mut asked = HeaderMap::new();
        asked.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        let response = respond(manifest("a/b"), &asked);
        assert_eq!(response.status(), reply::NOT_MODIFIED);
        assert!(response.headers().contains_key("etag"));
        assert_eq!(response.body().length(), 0);
    }
}
