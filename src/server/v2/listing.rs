//! What the two listings share: the JSON answer and the `Link` to the next page (RFC 8288).

use http::header::LINK;
use http::{HeaderValue, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::body::Payload;
use super::super::route::PageAsked;
use super::super::{headers, reply};

/// What may stand unencoded in a query value here: the characters of names and tags.
const VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');

/// Where the listing is, in the client's own form of addressing, so that the next page is found the same way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The path of the request as it came, mount included.
    pub(super) path: &'a str,
    pub(super) ns: Option<&'a str>,
}

/// A page: `entries` are what its body lists, in order.
pub(super) fn respond(
    body: &serde_json::Value,
    place: Place<'_>,
    page: &PageAsked,
    last: Option<&str>,
    more: bool,
) -> Response<Payload> {
    let mut response = Response::new(Payload::Bytes(body.to_string().into()));
    *response.status_mut() = reply::OK;
    let length = response.body().length();
    headers::describe(response.headers_mut(), headers::JSON, length);
    if let Some(last) = last.filter(|_| more) {
        response.headers_mut().insert(LINK, next(place, page, last));
    }
    response
}

fn next(place: Place<'_>, page: &PageAsked, last: &str) -> HeaderValue {
    let mut link = format!("<{}?", place.path);
    if let Some(n) = page.n {
        link += &format!("n={n}&");
    }
    link += &format!("last={}", utf8_percent_encode(last, VALUE));
    if let Some(ns) = place.ns {
        link += &format!("&ns={}", utf8_percent_encode(ns, VALUE));
    }
    link += ">; rel=\"next\"";
    headers::value(&link)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn link(
        path: &str,
        ns: Option<&str>,
        n: Option<u64>,
        last: Option<&str>,
        more: bool,
    ) -> Option<String> {
        let page = PageAsked { n, last: None };
        let response = respond(&json!({}), Place { path, ns }, &page, last, more);
        response.headers().get(LINK).map(|link| link.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_next_page_is_addressed_as_the_first_was() {
        assert_eq!(
            link("/v2/ghcr.io/a/tags/list", None, Some(2), Some("v1"), true).unwrap(),
            "</v2/ghcr.io/a/tags/list?n=2&last=v1>; rel=\"next\""
        );
        assert_eq!(
            link("/p/v2/_catalog", Some("localhost:5001"), None, Some("a/b&c"), true).unwrap(),
            "</p/v2/_catalog?last=a/b%26c&ns=localhost:5001>; rel=\"next\""
        );
    }

    #[test]
    fn the_last_page_has_no_next() {
        assert_eq!(link("/v2/a/tags/list", None, Some(2), Some("v1"), false), None);
        assert_eq!(link("/v2/a/tags/list", None, Some(0), None, true), None);
    }
}
