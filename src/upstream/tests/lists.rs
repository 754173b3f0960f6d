//! Tags over several pages, and referrers where they exist.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::stub::*;
use crate::upstream::{Cause, Error};

const LIST: &str = "/v2/org/app/tags/list";

/// Three pages `a`, `b`, `c`; `link` makes the Link to the page after the given name.
async fn paged(link: fn(&Seen, &str) -> String) -> Stub {
    Stub::start("127.0.0.1", move |seen| {
        let (tag, next) = match seen.query.split('&').find_map(|pair| pair.strip_prefix("last=")) {
            None => ("a", Some("a")),
            Some("a") => ("b", Some("b")),
            Some(_) => ("c", None),
        };
        let page = reply(200, format!(r#"{{"name":"org/app","tags":["{tag}"]}}"#))
            .with("content-type", "text/plain");
        match next {
            Some(next) => page.with("link", link(seen, next)),
            None => page,
        }
    })
    .await
}

async fn tags_of(stub: &Stub) -> Vec<String> {
    anonymous(stub).tags(&name(), 100).await.unwrap()
}

#[tokio::test]
async fn three_pages_by_every_kind_of_link() {
    let links: [fn(&Seen, &str) -> String; 4] = [
        |_seen, last| format!(r#"<{LIST}?last={last}&n=1>; rel="next""#),
        |seen, last| format!(r#"<{}{LIST}?n=1&last={last}>; rel="next""#, seen.origin),
        |_seen, last| format!(r#"</v2/lost/tags/list?last={last}>; rel="next""#),
        |_seen, last| format!(r#"</x?last=z>; rel="prev", <?last={last}>; rel=next"#),
    ];
    for link in links {
        let stub = paged(link).await;
        assert_eq!(tags_of(&stub).await, ["a", "b", "c"]);
        assert!(stub.seen().iter().all(|seen| seen.path == LIST));
        assert_eq!(stub.seen()[0].query, "n=1000");
    }
}

#[tokio::test]
async fn an_alien_link_is_not_followed() {
    let alien = Stub::start("127.0.0.2", |_seen| reply(200, r#"{"tags":["evil"]}"#)).await;
    let origin = alien.origin();
    let stub = Stub::start("127.0.0.1", move |_seen| {
        let link = format!(r#"<{origin}{LIST}?last=a>; rel="next""#);
        reply(200, r#"{"tags":["a"]}"#).with("link", link)
    })
    .await;
    assert_eq!(tags_of(&stub).await, ["a"]);
    assert_eq!((alien.seen().len(), stub.seen().len()), (0, 1));
}

#[tokio::test]
async fn a_repeated_link_ends_the_list() {
    let stub = paged(|_seen, _last| format!(r#"<{LIST}?last=a>; rel="next""#)).await;
    assert_eq!(tags_of(&stub).await, ["a", "b"]);
    assert_eq!(stub.seen().len(), 2);
}

#[tokio::test]
async fn endless_lists_end() {
    let page = AtomicUsize::new(0);
    let stub = Stub::start("127.0.0.1", move |_seen| {
        let number = page.fetch_add(1, Ordering::SeqCst);
        let link = format!(r#"<{LIST}?last={number}>; rel="next""#);
        reply(200, format!(r#"{{"tags":["t{number}"]}}"#)).with("link", link)
    })
    .await;
    let mut settings = settings(&stub.origin(), crate::upstream::CredentialSource::None);
    settings.limits.tag_pages = 7;
    let upstream = build(settings);
    assert_eq!(upstream.tags(&name(), 1000).await.unwrap().len(), 7);
    assert_eq!(upstream.tags(&name(), 3).await.unwrap().len(), 3);
    assert_eq!(stub.seen().len(), 10);
}

#[tokio::test]
async fn odd_lists_are_read() {
    for (body, want) in [
        (r#"{"tags":null}"#, vec![]),
        (r#"{"name":"x"}"#, vec![]),
        (r#"{"tags":["ok","not a tag","ok","../x"],"child":[]}"#, vec!["ok"]),
    ] {
        let stub = Stub::start("127.0.0.1", move |_seen| reply(200, body)).await;
        assert_eq!(tags_of(&stub).await, want, "{body}");
    }
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, "true")).await;
    assert!(matches!(anonymous(&stub).tags(&name(), 1).await, Err(Error::Junk(_))));
    let stub = Stub::start("127.0.0.1", |_seen| reply(404, "")).await;
    assert_eq!(anonymous(&stub).tags(&name(), 1).await, Err(Error::Absent));
}

#[tokio::test]
async fn a_refused_page_size_is_left_out() {
    for status in [400, 405] {
        let stub = Stub::start("127.0.0.1", move |seen| match seen.query.as_str() {
            "" => reply(200, r#"{"tags":["a"]}"#),
            _ => reply(status, r#"{"errors":[{"code":"PAGINATION_NUMBER_INVALID"}]}"#),
        })
        .await;
        assert_eq!(tags_of(&stub).await, ["a"]);
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_an_error() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.query.as_str() {
        "n=1000" => reply(200, r#"{"tags":["a"]}"#).with("link", "<?last=a>; rel=next"),
        _ => reply(500, ""),
    })
    .await;
    let error = anonymous(&stub).tags(&name(), 100).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Status(500)));
}

#[tokio::test]
async fn a_wider_scope_for_lists_is_learned() {
    let stub = Stub::start("127.0.0.1", |seen| {
        let wide = "repository%3Aorg%2Fapp%3Ametadata_read";
        let list = seen.path.ends_with("/tags/list");
        match (seen.path.as_str(), seen.authorization()) {
            ("/token", _) if seen.query.contains(wide) => reply(200, r#"{"access_token":"wide"}"#),
            ("/token", _) => reply(200, r#"{"access_token":"narrow"}"#),
            (_, Some("Bearer wide")) if list => reply(200, r#"{"tags":["a"]}"#),
            (_, Some("Bearer narrow")) if !list => reply(200, MANIFEST),
            _ => {
                let action = if list { "metadata_read" } else { "pull" };
                challenge(
                    &format!("{}/token", seen.origin),
                    &format!("repository:org/app:{action}"),
                )
            }
        }
    })
    .await;
    let upstream = anonymous(&stub);
    for _round in 0..2 {
        upstream.manifest(&name(), &tag()).await.unwrap();
        assert_eq!(upstream.tags(&name(), 1).await.unwrap(), ["a"]);
    }
    assert_eq!(stub.count("/token"), 2);
}

fn index(manifests: &str) -> String {
    format!(r#"{{ "schemaVersion":2, "manifests":[{manifests}] }}"#)
}

#[tokio::test]
async fn referrers_of_one_page_pass_unchanged() {
    let stub =
        Stub::start("127.0.0.1", |_seen| reply(200, index("{}")).with("content-type", INDEX)).await;
    let bytes = anonymous(&stub).referrers(&name(), &digest()).await.unwrap().unwrap();
    assert_eq!(bytes, index("{}"));
    let asked = &stub.seen()[0];
    assert_eq!(asked.path, format!("/v2/org/app/referrers/{}", digest()));
    assert_eq!(asked.header("accept"), Some(INDEX));
}

#[tokio::test]
async fn referrers_of_several_pages_are_one_index() {
    let stub = Stub::start("127.0.0.1", |seen| {
        let page = |body: &str| reply(200, index(body)).with("content-type", INDEX);
        match seen.query.as_str() {
            "" => page(r#"{"digest":"a"}"#).with("link", "<?page=2>; rel=next"),
            "page=2" => page("").with("link", "<?page=3>; rel=next"),
            _ => page(r#"{"digest":"b"},{"digest":"c"}"#),
        }
    })
    .await;
    let bytes = anonymous(&stub).referrers(&name(), &digest()).await.unwrap().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let digests: Vec<_> = value["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["digest"].as_str().unwrap())
        .collect();
    assert_eq!(digests, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_registry_without_referrers_is_unsupported() {
    let elsewhere =
        Stub::start("127.0.0.2", |_seen| reply(200, index("")).with("content-type", INDEX)).await;
    let target = elsewhere.origin();
    let foreign =
        Stub::start("127.0.0.1", move |_seen| reply(303, "").with("location", target.clone()))
            .await;
    assert_eq!(anonymous(&foreign).referrers(&name(), &digest()).await, Ok(None));
    assert_eq!(elsewhere.seen().len(), 0);
    let replies: [fn() -> Reply; 9] = [
        || reply(404, ""),
        || reply(400, r#"{"errors":[{"code":"MANIFEST_INVALID"}]}"#),
        || reply(405, ""),
        || reply(406, ""),
        || reply(403, r#"{"errors":[{"code":"DENIED"}]}"#),
        || reply(200, "{}").with("content-type", "application/json"),
        || reply(200, "<html>").with("content-type", "text/html"),
        || reply(404, "<html>not found</html>").with("content-type", "text/html"),
        || reply(501, ""),
    ];
    for answer in replies {
        let stub = Stub::start("127.0.0.1", move |_seen| answer()).await;
        assert_eq!(
            anonymous(&stub).referrers(&name(), &digest()).await,
            Ok(None),
            "{:?}",
            answer()
        );
    }
}

#[tokio::test]
async fn an_outage_is_never_an_empty_list_of_referrers() {
    let replies: [fn() -> Reply; 3] = [
        || reply(500, ""),
        || reply(429, ""),
        || reply(200, "not json").with("content-type", INDEX),
    ];
    for answer in replies {
        let stub = Stub::start("127.0.0.1", move |_seen| answer()).await;
        assert!(anonymous(&stub).referrers(&name(), &digest()).await.is_err(), "{:?}", answer());
    }
    let stub = Stub::start("127.0.0.1", |seen| match seen.query.as_str() {
        "" => reply(200, index("")).with("content-type", INDEX).with("link", "<?page=2>; rel=next"),
        _ => reply(404, ""),
    })
    .await;
    assert!(anonymous(&stub).referrers(&name(), &digest()).await.is_err());
}
