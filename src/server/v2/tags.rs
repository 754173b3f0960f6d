//! `/v2/<name>/tags/list` (OCI distribution spec 1.1, "Listing Tags").

use http::Response;
use serde_json::json;

use super::super::body::Payload;
use super::super::dispatch::{Answered, Exchange, Refused};
use super::super::route::PageAsked;
use super::listing::{self, Place};
use crate::registry::{Repository, TagsReply};

pub(in crate::server) async fn list(
    exchange: &Exchange<'_>,
    repository: &Repository,
    page: &PageAsked,
) -> Result<Answered, Refused> {
    let found = exchange.registry.tags(repository, &page.to_page()).await?;
    let place = Place { path: exchange.path, ns: exchange.ns };
    Ok(Answered::new(respond(found.value, repository.asked(), place, page), found.report))
}

fn respond(
    mut found: TagsReply,
    name: &str,
    place: Place<'_>,
    page: &PageAsked,
) -> Response<Payload> {
    if page.n == Some(0) {
        found.tags.clear();
    }
    let body = json!({ "name": name, "tags": found.tags });
    listing::respond(&body, place, page, found.tags.last().map(String::as_str), found.more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_tags() {
        let page = |n| PageAsked { n, last: None };
        let place = Place { path: "/v2/a/tags/list", ns: None };
        let found = || TagsReply { tags: vec!["v1".into(), "v2".into()], more: true };
        let response = respond(found(), "a", place, &page(Some(2)));
        assert_eq!(response.headers()["link"], "</v2/a/tags/list?n=2&last=v2>; rel=\"next\"");
        assert_eq!(response.headers()["content-type"], "application/json");
        let Payload::Bytes(bytes) = response.into_body() else {
            panic!("a list goes out whole");
        };
        assert_eq!(bytes, r#"{"name":"a","tags":["v1","v2"]}"#);
        let none = respond(found(), "a", place, &page(Some(0)));
        assert!(!none.headers().contains_key("link"), "an empty page would repeat for ever");
        assert_eq!(none.headers()["content-length"], "22");
    }
}
