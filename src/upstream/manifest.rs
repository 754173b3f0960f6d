//! Manifests: GET with the bytes, HEAD as the cheap probe for freshness.
//!
//! What must hold: bytes come back exactly as upstream sent them, within the limit; neither the digest nor the type that upstream says
//! is believed here. HEAD is free at Docker Hub and refused, or answered wrongly, elsewhere: a refusal is [`Error::HeadUnusable`], and
//! when the GET that follows succeeds, HEAD is left alone for an hour.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, WARNING};
use http::{HeaderMap, Method, StatusCode};

use super::ask::{Ask, Failure};
use super::blob::BlobRange;
use super::client::{Client, HTML};
use super::credentials::Credential;
use super::endpoint::Endpoint;
use super::error::{Cause, Error};
use super::failover::Turn;
use super::memory::{Asker, Need};
use super::metrics::Kind;
use super::quota::Spending;
use super::redirect::Hops;
use super::transport;
use crate::oci::{Digest, Reference, RepositoryName};

/// One fixed list whatever the client accepts, so that one entry of the cache serves all. Without it registries convert to schema 1,
/// pick the amd64 child or answer 404; naming more only invites a conversion.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest as upstream sent it; neither parsed nor verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// At most `Limits::manifest_bytes`.
    pub bytes: Bytes,
    /// The whole header; it lies at some registries.
    pub content_type: Option<String>,
    /// `Docker-Content-Digest`, if it was there and is a digest.
    pub digest_header: Option<Digest>,
    /// Who gave it.
    pub endpoint: Endpoint,
    /// A cache gave it that could not confirm it.
    pub stale: bool,
}

/// What HEAD says about a manifest; each part may be missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    pub size: Option<u64>,
    pub content_type: Option<String>,
    /// Who said it.
    pub endpoint: Endpoint,
    /// A cache said it that could not confirm it.
    pub stale: bool,
}

impl Client {
    /// See `Upstream::manifest`.
    pub(super) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        turn: Turn<'_>,
    ) -> Result<FetchedManifest, Error> {
        let _place = self.place(turn.deadline).await?;
        let outcome = self.fetch_manifest(repository, reference, turn).await;
        self.memory.get_ended(repository, reference, outcome.is_ok());
        outcome
    }

    /// See `Upstream::manifest_head`.
    pub(super) async fn manifest_head(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        turn: Turn<'_>,
    ) -> Result<ManifestHead, Error> {
        if !self.memory.head_usable() {
            return Err(Error::HeadUnusable);
        }
        let _place = self.place(turn.deadline).await?;
        let ask = self.manifest_ask(Method::HEAD, repository, reference, turn);
        match self.ask(&ask, turn.deadline).await {
            Ok(arrival) => {
                let headers = arrival.response.headers();
                if transport::is_html(headers) || arrival.status() != StatusCode::OK {
                    return Err(Error::HeadUnusable);
                }
                let encoded = transport::is_encoded(headers);
                let size = transport::content_length(headers);
                Ok(ManifestHead {
                    digest: arrival.digest,
                    size: size.filter(|size| *size > 0 && !encoded),
                    content_type: content_type(headers),
                    endpoint: self.endpoint.clone(),
                    stale: is_stale(headers),
                })
            }
            Err(failure) => Err(self.judge_head(failure, repository, reference)),
        }
    }

    /// A refusal that may be HEAD's alone is remembered until the GET that follows; a server error says nothing about HEAD.
    fn judge_head(
        &self,
        failure: Failure,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Error {
        if !is_heads_own(&failure) {
            return failure.error;
        }
        if !failure.status.is_some_and(|status| status.is_server_error()) {
            self.memory.head_refused(repository, reference);
        }
        Error::HeadUnusable
    }

    async fn fetch_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        turn: Turn<'_>,
    ) -> Result<FetchedManifest, Error> {
        let ask = self.manifest_ask(Method::GET, repository, reference, turn);
        let arrival = self.ask(&ask, turn.deadline).await?;
        if arrival.status() != StatusCode::OK {
            return Err(Error::Junk("a success that is not 200"));
        }
        let headers = arrival.response.headers();
        let (content_type, stale) = (content_type(headers), is_stale(headers));
        let bytes = self.small_body(Kind::Manifest, arrival.response, turn.deadline).await?;
        if bytes.is_empty() {
            return Err(Error::Junk("an empty manifest"));
        }
        if bytes.trim_ascii_start().starts_with(b"<") {
            return Err(HTML);
        }
        let endpoint = self.endpoint.clone();
        let digest_header = arrival.digest;
        Ok(FetchedManifest { bytes, content_type, digest_header, endpoint, stale })
    }

    /// May `who` see the manifest? HEAD, and if that is refused a GET that is dropped after its headers.
    pub(super) async fn visible_manifest(
        &self,
        who: &Arc<Credential>,
        repository: &RepositoryName,
        reference: &Reference,
        (spending, turn): (Spending, Turn<'_>),
    ) -> Result<(), Error> {
        if self.memory.head_usable() {
            let ask = self.manifest_ask(Method::HEAD, repository, reference, turn);
            match self.ask_as(who, &ask, turn.deadline).await {
                Ok(_arrival) => return Ok(()),
                Err(failure) if is_heads_own(&failure) => {}
                Err(failure) => return Err(failure.error),
            }
        }
        self.quota.allows(Asker::of(who), spending)?;
        let ask = self.manifest_ask(Method::GET, repository, reference, turn);
        let arrival = self.ask_as(who, &ask, turn.deadline).await?;
        if transport::is_html(arrival.response.headers()) || arrival.status() != StatusCode::OK {
            return Err(HTML);
        }
        Ok(())
    }

    fn manifest_ask<'a>(
        &self,
        method: Method,
        repository: &'a RepositoryName,
        reference: &Reference,
        turn: Turn<'a>,
    ) -> Ask<'a> {
        Ask {
            repository,
            need: Need::Pull,
            kind: Kind::Manifest,
            method,
            url: self.url(repository, &format!("manifests/{reference}")),
            accept: Some(ACCEPT),
            range: BlobRange::WHOLE,
            hops: Hops::Anywhere,
            turn,
        }
    }
}

/// Could GET succeed where this HEAD failed?
pub(super) fn is_heads_own(failure: &Failure) -> bool {
    match failure.status {
        Some(status) => {
            matches!(status.as_u16(), 400 | 401 | 403 | 404 | 405) || status.is_server_error()
        }
        None => matches!(failure.error, Error::Unreachable(Cause::Reset)),
    }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    headers.get(CONTENT_TYPE)?.to_str().ok().map(str::to_owned)
}

/// Does a cache say that it could not confirm its answer? The codes are those of RFC 7234, 5.5; a roadstead says it with 299.
fn is_stale(headers: &HeaderMap) -> bool {
    headers.get_all(WARNING).iter().any(|value| {
        let text = String::from_utf8_lossy(value.as_bytes());
        let text = text.trim_start();
        ["110 ", "111 ", "112 "].iter().any(|code| text.starts_with(code))
            || text.starts_with("299 ") && text.contains("served stale")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn stale_answers_say_so() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(WARNING, HeaderValue::from_static(text));
            is_stale(&headers)
        };
        assert!(of(r#"299 - "served stale, docker.io could not confirm it (connect)""#));
        assert!(of(r#"110 proxy "Response is Stale""#) && of("111 proxy x"));
        assert!(!of(r#"299 - "deprecated""#) && !of("") && !is_stale(&HeaderMap::new()));
    }
}
