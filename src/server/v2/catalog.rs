//! `/v2/_catalog` (Docker registry v2 API): the repositories that are here and that anybody may read.

use http::Response;
use serde_json::json;

use super::super::body::Payload;
use super::super::dispatch::{Answered, Exchange, Refused};
use super::super::route::PageAsked;
use super::listing::{self, Place};
use crate::registry::CatalogReply;

pub(in crate::server) async fn list(
    exchange: &Exchange<'_>,
    page: &PageAsked,
) -> Result<Answered, Refused> {
    let found = exchange.registry.catalog(&page.to_page()).await?;
    let place = Place { path: exchange.path, ns: exchange.ns };
    Ok(Answered::new(respond(found.value, place, page), found.report))
}

fn respond(mut found: CatalogReply, place: Place<'_>, page: &PageAsked) -> Response<Payload> {
    if page.n == Some(0) {
        found.repositories.clear();
    }
    let body = json!({ "repositories": found.repositories });
    listing::respond(&body, place, page, found.repositories.last().map(String::as_str), found.more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_repositories() {
        let found =
            CatalogReply { repositories: vec!["docker.io/library/nginx".into()], more: true };
        let page = PageAsked { n: Some(1), last: None };
        let response = respond(found, Place { path: "/v2/_catalog", ns: None }, &page);
        assert_eq!(
            response.headers()["link"],
            "</v2/_catalog?n=1&last=docker.io/library/nginx>; rel=\"next\""
        );
        assert_eq!(response.headers()["content-length"], response.body().length().to_string());
        assert!(
            matches!(response.body(), Payload::Bytes(bytes) if *bytes == r#"{"repositories":["docker.io/library/nginx"]}"#)
        );
    }
}
