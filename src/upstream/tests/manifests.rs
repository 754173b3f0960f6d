//! Manifests: exact bytes, the HEAD probe and its oddities, refusals and limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;

use super::stub::*;
use crate::upstream::BlobRange;
use crate::upstream::{Cause, CredentialSource, Error, Upstream};

#[tokio::test]
async fn bytes_and_headers_come_as_they_are() {
    let other = "sha512:00";
    let stub = Stub::start("127.0.0.1", move |seen| {
        let answer = reply(200, MANIFEST).with("content-type", "text/plain; charset=utf-8");
        match seen.path.ends_with("/v1") {
            true => answer.with("docker-content-digest", digest().to_string()),
            false => answer.with("docker-content-digest", other),
        }
    })
    .await;
    let upstream = anonymous(&stub);
    let manifest = upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(manifest.bytes, MANIFEST);
    assert_eq!(manifest.content_type.as_deref(), Some("text/plain; charset=utf-8"));
    assert_eq!(manifest.digest_header, Some(digest()));
    let by_digest = digest().to_string().parse().unwrap();
    let manifest = upstream.manifest(&name(), &by_digest).await.unwrap();
    assert_eq!(manifest.digest_header, None);
    assert!(stub.seen()[1].path.ends_with(&format!("/manifests/{}", digest())));
}

#[tokio::test]
async fn refusals_are_decisions_or_trouble() {
    const DENIED: &str = r#"{"errors":[{"code":"DENIED"}]}"#;
    let cases: [(fn() -> Reply, Error); 12] = [
        (|| reply(404, r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#), Error::Absent),
        (|| reply(404, "File not found."), Error::Absent),
        (|| reply(404, "<html>nginx</html>"), Error::Unreachable(Cause::Status(404))),
        (|| reply(401, "").with("www-authenticate", "Basic realm=x"), Error::Denied),
        (|| reply(403, DENIED), Error::Denied),
        (|| reply(403, "blocked by your administrator"), Error::Unreachable(Cause::Status(403))),
        (
            || reply(403, "<html>blocked</html>").with("content-type", "text/html"),
            Error::Unreachable(Cause::Status(403)),
        ),
        (
            || reply(429, "Too Many Requests (HAP429).").with("retry-after", "60"),
            Error::Limited { retry_after: Some(Duration::from_secs(60)) },
        ),
        (|| reply(429, ""), Error::Limited { retry_after: None }),
        (|| reply(500, ""), Error::Unreachable(Cause::Status(500))),
        (|| reply(508, ""), Error::Unreachable(Cause::Loop)),
        (|| reply(400, DENIED), Error::Unreachable(Cause::Status(400))),
    ];
    for (answer, want) in cases {
        let stub = Stub::start("127.0.0.1", move |_seen| answer()).await;
        assert_eq!(anonymous(&stub).manifest(&name(), &tag()).await, Err(want));
    }
}

#[tokio::test]
async fn what_is_no_manifest_is_junk() {
    let replies: [fn() -> Reply; 5] = [
        || reply(200, "{}").with("content-type", "text/html"),
        || reply(200, "  <!doctype html>").with("content-type", "application/json"),
        || reply(200, "\x1f\u{8b}").with("content-encoding", "gzip"),
        || reply(200, ""),
        || reply(203, "{}"),
    ];
    for answer in replies {
        let stub = Stub::start("127.0.0.1", move |_seen| answer()).await;
        let error = anonymous(&stub).manifest(&name(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::Junk(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_manifest_is_limited_with_and_without_a_length() {
    let big = vec![b' '; 2000];
    let chunked = [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n",
        big.as_slice(),
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    let replies = [reply(200, &big), Reply::Raw(chunked)];
    for answer in replies {
        let stub = Stub::start("127.0.0.1", move |_seen| answer.clone()).await;
        let mut settings = settings(&stub.origin(), CredentialSource::None);
        settings.limits.manifest_bytes = 1999;
        assert_eq!(build(settings).manifest(&name(), &tag()).await, Err(Error::TooLarge));
    }
}

#[tokio::test]
async fn head_says_what_it_knows() {
    let stub = Stub::start("127.0.0.1", |seen| {
        assert_eq!(seen.method, "HEAD");
        match seen.path.as_str() {
            MANIFEST_PATH => reply(200, MANIFEST)
                .with("content-type", INDEX)
                .with("docker-content-digest", digest().to_string()),
            _ => Reply::Raw(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        }
    })
    .await;
    let upstream = anonymous(&stub);
    let head = upstream.manifest_head(&name(), &tag()).await.unwrap();
    assert_eq!(head.digest, Some(digest()));
    assert_eq!(head.size, Some(u64::try_from(MANIFEST.len()).unwrap()));
    assert_eq!(head.content_type.as_deref(), Some(INDEX));
    let head = upstream.manifest_head(&name(), &"bare".parse().unwrap()).await.unwrap();
    assert_eq!((head.digest, head.size, head.content_type), (None, None, None));
}

/// A registry whose HEAD answers as told and whose GET works while `get` says so.
async fn odd_head(head: fn() -> Reply, get: bool) -> (Stub, Arc<Upstream>) {
    let stub = Stub::start("127.0.0.1", move |seen| match seen.method.as_str() {
        "HEAD" => head(),
        _ if get => reply(200, MANIFEST),
        _ => reply(404, ""),
    })
    .await;
    let upstream = anonymous(&stub);
    (stub, upstream)
}

#[tokio::test]
async fn a_refused_head_is_not_tried_again_once_get_works() {
    let heads: [fn() -> Reply; 5] = [
        || reply(401, ""),
        || reply(403, ""),
        || reply(404, ""),
        || reply(405, ""),
        || Reply::Close,
    ];
    for head in heads {
        let (stub, upstream) = odd_head(head, true).await;
        assert_eq!(upstream.manifest_head(&name(), &tag()).await, Err(Error::HeadUnusable));
        upstream.manifest(&name(), &tag()).await.unwrap();
        let asked = stub.seen().len();
        assert_eq!(upstream.manifest_head(&name(), &tag()).await, Err(Error::HeadUnusable));
        assert_eq!(stub.seen().len(), asked, "{:?}", head());
    }
}

#[tokio::test]
async fn a_head_that_told_the_truth_stays_in_use() {
    let (stub, upstream) = odd_head(|| reply(404, ""), false).await;
    for round in 1..=2 {
        assert_eq!(upstream.manifest_head(&name(), &tag()).await, Err(Error::HeadUnusable));
        assert_eq!(upstream.manifest(&name(), &tag()).await, Err(Error::Absent));
        assert_eq!(stub.seen().iter().filter(|seen| seen.method == "HEAD").count(), round);
    }
}

#[tokio::test]
async fn a_server_error_on_head_says_nothing_about_head() {
    let (stub, upstream) = odd_head(|| reply(503, ""), true).await;
    for round in 1..=2 {
        assert_eq!(upstream.manifest_head(&name(), &tag()).await, Err(Error::HeadUnusable));
        upstream.manifest(&name(), &tag()).await.unwrap();
        assert_eq!(stub.seen().iter().filter(|seen| seen.method == "HEAD").count(), round);
    }
}

#[tokio::test]
async fn head_does_not_hide_an_outage_or_a_limit() {
    let (_stub, upstream) = odd_head(|| reply(429, "").with("retry-after", "30"), true).await;
    let limited = Error::Limited { retry_after: Some(Duration::from_secs(30)) };
    assert_eq!(upstream.manifest_head(&name(), &tag()).await, Err(limited));
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Stall(Vec::new())).await;
    let mut settings = settings(&stub.origin(), CredentialSource::None);
    settings.limits.answer = Duration::from_millis(100);
    let error = build(settings).manifest_head(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Timeout));
}

#[tokio::test]
async fn a_whole_head_ends_within_its_limit_even_if_every_stage_is_slow() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.path.as_str() {
        "/token" => Reply::Stall(Vec::new()),
        _ => challenge(&format!("{}/token", seen.origin), "x"),
    })
    .await;
    let mut settings = settings(&stub.origin(), CredentialSource::None);
    settings.limits.answer = Duration::from_millis(300);
    let started = tokio::time::Instant::now();
    let error = build(settings).manifest_head(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Timeout));
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_short_limit_is_waited_for_and_a_long_one_keeps_us_quiet() {
    let asked = AtomicUsize::new(0);
    let stub = Stub::start("127.0.0.1", move |_seen| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => reply(429, "").with("retry-after", "0"),
        1 => reply(200, MANIFEST),
        _ => reply(429, "").with("retry-after", "86400"),
    })
    .await;
    let upstream = anonymous(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    let told = upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert_eq!(told, Error::Limited { retry_after: Some(Duration::from_secs(86_400)) });
    let quiet = upstream.manifest(&"other".parse().unwrap(), &tag()).await.unwrap_err();
    assert!(
        matches!(quiet, Error::Limited { retry_after: Some(left) } if left > Duration::from_secs(3500) && left <= Duration::from_secs(3600))
    );
    assert_eq!(stub.seen().len(), 3);
}

#[tokio::test]
async fn the_numbers_tell_what_happened() {
    let fail = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&fail);
    let stub =
        Stub::start("127.0.0.1", move |seen| match (seen.path.as_str(), seen.authorization()) {
            ("/token", _) if switch.load(Ordering::SeqCst) => reply(401, ""),
            ("/token", _) => reply(200, r#"{"token":"t","expires_in":300}"#),
            (_, Some("Bearer t")) if !switch.load(Ordering::SeqCst) => {
                reply(200, MANIFEST).with("ratelimit-remaining", "76;w=21600")
            }
            _ => challenge(&format!("{}/token", seen.origin), "repository:org/app:pull"),
        })
        .await;
    let (shared, registry) = shared();
    let upstream = Upstream::new(settings(&stub.origin(), basic()), &shared).unwrap();
    let text = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    };
    upstream.manifest(&name(), &tag()).await.unwrap();
    let page = text();
    for line in [
        r#"upstream_requests_total{upstream="stub.example",kind="manifest",status="200"} 1"#,
        r#"upstream_requests_total{upstream="stub.example",kind="manifest",status="401"} 1"#,
        r#"upstream_requests_total{upstream="stub.example",kind="token",status="200"} 1"#,
        r#"upstream_credential_ok{upstream="stub.example"} 1"#,
        r#"upstream_ratelimit_remaining{upstream="stub.example",credential="own"} 76"#,
        r#"upstream_ttfb_seconds_count{upstream="stub.example"} 3"#,
        r#"upstream_last_success_timestamp_seconds{upstream="stub.example"} 1"#,
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    fail.store(true, Ordering::SeqCst);
    upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert!(text().contains(r#"upstream_credential_ok{upstream="stub.example"} 0"#));
    shared.tasks.close();
    shared.tasks.wait().await;
    assert!(!page.contains("hunter2"));
}

#[tokio::test]
async fn nothing_that_can_be_printed_shows_a_secret() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.path.as_str() {
        "/token" => reply(200, r#"{"token":"token-secret","expires_in":300}"#),
        _ if seen.authorization().is_some() => {
            redirect_to("https://127.0.0.1:1/x?X-Amz-Signature=signature-secret")
        }
        _ => challenge(&format!("{}/token", seen.origin), "repository:org/app:pull"),
    })
    .await;
    let upstream = known(&stub);
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    let blob = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await;
    let text = format!("{upstream:?} {error:?} {error} {blob:?}");
    for secret in ["hunter2", "Ym90Omh1bnRlcjI", "token-secret", "signature-secret"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

#[tokio::test]
async fn a_path_with_v2_goes_before_the_repository() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, MANIFEST)).await;
    for (path, want) in [
        ("/v2/hub-mirror", "/v2/hub-mirror/org/app/manifests/v1"),
        ("/deep", "/deep/v2/org/app/manifests/v1"),
    ] {
        let url = format!("{}{path}", stub.origin());
        let upstream = build(settings(&url, CredentialSource::None));
        upstream.manifest(&name(), &tag()).await.unwrap();
        assert_eq!(stub.seen().last().unwrap().path, want);
    }
}
