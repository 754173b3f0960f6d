//! Following redirects by hand.
//!
//! What must hold: at most the configured number of hops; our Authorization goes only to the origin where the walk began, never again
//! once it left, and never beside a signature in the URL (object stores refuse two credentials at once); never from https to http; no
//! user and password from a Location. Whether an address may be dialled is checked for every hop by the transport.

use std::fmt;

use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};

use super::endpoint::Endpoint;
use super::error::Error;
use super::metrics::Kind;
use super::transport::{Deadline, Outgoing, Transport};
use crate::oci::Digest;

/// Query parameters that carry a signature of S3, Google, CloudFront, Azure or Cloudflare.
const SIGNATURES: [&str; 6] =
    ["x-amz-signature", "x-goog-signature", "signature", "sig", "verify", "policy"];

static DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How far a walk may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hops {
    /// To any host.
    Anywhere,
    /// Not away from the origin where it began; a redirect that leads away is itself the answer.
    SameOrigin,
    /// A redirect is itself the answer.
    None,
}

/// One request that may be redirected. The method is GET or HEAD: redirects keep it.
pub(super) struct Walk<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) headers: &'a HeaderMap,
    pub(super) authorization: Option<&'a HeaderValue>,
    pub(super) hops: Hops,
    pub(super) hops_max: usize,
    /// Whose health the origin's answers tell of.
    pub(super) endpoint: Option<&'a Endpoint>,
}

/// A walk without an answer at its end.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) error: Error,
    /// Was it lost on its way from the origin that was asked to where that had sent it?
    pub(super) elsewhere: bool,
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        lost.error
    }
}

/// The answer at the end of a walk.
pub(super) struct Arrival {
    pub(super) response: Response,
    /// `Docker-Content-Digest`, from the first hop that said it: a store behind a redirect does not know it.
    pub(super) digest: Option<Digest>,
    /// Did the answer come from the very URL that was asked?
    pub(super) direct: bool,
    /// Did it come from the origin that was asked, without having left it?
    pub(super) at_home: bool,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the response: its URL is a bearer secret.
        f.debug_struct("Arrival")
            .field("status", &self.status())
            .field("digest", &self.digest)
            .field("direct", &self.direct)
            .field("at_home", &self.at_home)
            .finish_non_exhaustive()
    }
}

impl Arrival {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }
}

/// Walks to the end of the redirects.
///
/// # Errors
/// [`Error::Junk`] for a redirect that may not be followed, or how an exchange failed.
pub(super) async fn walk(
    transport: &Transport,
    walk: &Walk<'_>,
    deadline: Deadline,
) -> Result<Arrival, Lost> {
    let mut url = walk.url.clone();
    let mut digest = None;
    let mut at_home = true;
    for hop in 0..=walk.hops_max {
        at_home &= url.origin() == walk.url.origin();
        let outgoing = Outgoing {
            kind: walk.kind,
            method: walk.method.clone(),
            url: url.clone(),
            headers: walk.headers,
            authorization: walk.authorization.filter(|_| at_home && !is_signed(&url)),
            body: None,
        };
        let lost = |error| Lost { error, elsewhere: !at_home };
        let response = transport.exchange(outgoing, deadline).await.map_err(lost)?;
        if let Some(endpoint) = walk.endpoint.filter(|_| at_home) {
            endpoint.spoke();
        }
        digest = digest.or_else(|| digest_header(response.headers()));
        let arrived = |response| Arrival { response, digest, direct: hop == 0, at_home };
        if walk.hops == Hops::None || !is_redirect(response.status()) {
            return Ok(arrived(response));
        }
        let next = target(&url, response.headers()).map_err(lost)?;
        if walk.hops == Hops::SameOrigin && next.origin() != walk.url.origin() {
            return Ok(arrived(response));
        }
        transport.drain(walk.kind, response, deadline).await;
        url = next;
    }
    Err(Lost { error: Error::Junk("too many redirects"), elsewhere: !at_home })
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect from `current` leads.
fn target(current: &Url, headers: &HeaderMap) -> Result<Url, Error> {
    let location = headers.get(LOCATION).ok_or(Error::Junk("a redirect without a Location"))?;
    let next = std::str::from_utf8(location.as_bytes())
        .ok()
        .and_then(|location| current.join(location.trim()).ok());
    let mut next = next.ok_or(Error::Junk("a redirect to what is no URL"))?;
    match (current.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(Error::Junk("a redirect from https to http")),
        _ => return Err(Error::Junk("a redirect to another protocol")),
    }
    strip(&mut next);
    Ok(next)
}

/// Removes user, password and fragment: reqwest would send the former as Basic.
pub(super) fn strip(url: &mut Url) {
    let stripped = url.set_username("").and_then(|()| url.set_password(None));
    debug_assert!(stripped.is_ok(), "an http URL has a host");
    url.set_fragment(None);
}

fn is_signed(url: &Url) -> bool {
    url.query_pairs().any(|(name, _value)| SIGNATURES.contains(&name.to_ascii_lowercase().as_str()))
}

pub(super) fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    let value = headers.get(&DOCKER_CONTENT_DIGEST)?;
    value.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(current: &str, location: &str) -> Result<String, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_bytes(location.as_bytes()).unwrap());
        target(&current.parse().unwrap(), &headers).map(Into::into)
    }

    #[test]
    fn locations_of_every_form() {
        let from = "https://r.example/v2/a/blobs/x";
        assert_eq!(to(from, "https://cdn.example/y?sig=1").unwrap(), "https://cdn.example/y?sig=1");
        assert_eq!(
            to(from, "/artifacts-downloads/y").unwrap(),
            "https://r.example/artifacts-downloads/y"
        );
        assert_eq!(to(from, "//cdn.example/y").unwrap(), "https://cdn.example/y");
        assert_eq!(to(from, "y#part").unwrap(), "https://r.example/v2/a/blobs/y");
        assert_eq!(to(from, "https://u:p@cdn.example/").unwrap(), "https://cdn.example/");
        assert_eq!(to("http://r.example/", "https://r.example/x").unwrap(), "https://r.example/x");
    }

    #[test]
    fn redirects_that_are_not_followed() {
        let from = "https://r.example/v2/a/blobs/x";
        for bad in
            ["http://r.example/x", "ftp://r.example/x", "file:///etc/passwd", "https://", "data:,x"]
        {
            assert!(matches!(to(from, bad), Err(Error::Junk(_))), "{bad}");
        }
        assert!(matches!(target(&from.parse().unwrap(), &HeaderMap::new()), Err(Error::Junk(_))));
    }

    #[test]
    fn signatures_are_known() {
        let signed =
            |query: &str| is_signed(&format!("https://s.example/x?{query}").parse().unwrap());
        for query in [
            "X-Amz-Signature=1",
            "X-Goog-Signature=1",
            "a=b&Signature=1",
            "sig=1",
            "verify=1",
            "Policy=1",
        ] {
            assert!(signed(query), "{query}");
        }
        assert!(!signed("n=1&last=sig") && !signed("significant=1"));
    }
}
