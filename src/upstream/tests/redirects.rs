//! Redirects: where they lead, what they take along, and where they must not lead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::stub::*;
use crate::upstream::BlobRange;
use crate::upstream::metrics::Kind;
use crate::upstream::redirect::{self, Hops, Walk};
use crate::upstream::transport::{Deadline, Outgoing};
use crate::upstream::{BlobBody, Cause, CredentialSource, Error, Upstream};

/// A store that has the blob and refuses any Authorization, as S3 and Azure do.
fn store(seen: &Seen) -> Reply {
    match seen.authorization() {
        Some(_) => reply(400, "<Error><Code>InvalidArgument</Code></Error>"),
        None => reply(200, "blob"),
    }
}

async fn whole(mut body: BlobBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

/// A registry that wants Basic and redirects blobs to `target`.
async fn redirecting(target: impl Fn(&Seen) -> String + Send + Sync + 'static) -> Stub {
    Stub::start("127.0.0.1", move |seen| match seen.authorization() {
        _ if seen.path.starts_with("/store") => store(seen),
        Some(BASIC) => redirect_to(target(seen)),
        _ => reply(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await
}

async fn fetch(upstream: &Arc<Upstream>) -> Result<Vec<u8>, Error> {
    Ok(whole(upstream.blob(&name(), &digest(), BlobRange::WHOLE).await?).await)
}

#[tokio::test]
async fn another_host_gets_no_authorization_and_no_referer() {
    let cdn = Stub::start("127.0.0.2", store).await;
    let target = format!("{}/x?X-Amz-Signature=s", cdn.origin());
    let stub = redirecting(move |_seen| target.clone()).await;
    assert_eq!(fetch(&known(&stub)).await.unwrap(), b"blob");
    let seen = &cdn.seen()[0];
    assert_eq!((seen.authorization(), seen.header("referer")), (None, None));
    assert_eq!(seen.query, "X-Amz-Signature=s");
}

#[tokio::test]
async fn another_port_is_another_origin() {
    let cdn = Stub::start("127.0.0.1", store).await;
    let target = format!("{}/x", cdn.origin());
    let stub = redirecting(move |_seen| target.clone()).await;
    assert_eq!(fetch(&known(&stub)).await.unwrap(), b"blob");
    assert_eq!(cdn.seen()[0].authorization(), None);
}

#[tokio::test]
async fn a_signature_at_the_same_host_travels_alone() {
    let stub = redirecting(|_seen| "/store/x?Signature=s".into()).await;
    assert_eq!(fetch(&known(&stub)).await.unwrap(), b"blob");
    let plain = redirecting(|_seen| "/store/x?a=b".into()).await;
    let error = fetch(&known(&plain)).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Status(400)));
}

#[tokio::test]
async fn who_left_comes_back_without_authorization() {
    let back = Arc::new(std::sync::Mutex::new(String::new()));
    let home = Arc::clone(&back);
    let cdn =
        Stub::start("127.0.0.2", move |_seen| redirect_to(home.lock().unwrap().clone())).await;
    let target = cdn.origin();
    let stub = redirecting(move |_seen| target.clone()).await;
    *back.lock().unwrap() = format!("{}/store", stub.origin());
    assert_eq!(fetch(&known(&stub)).await.unwrap(), b"blob");
}

#[tokio::test]
async fn ten_hops_are_followed_and_twelve_are_not() {
    for (hops, fine) in [(10, true), (12, false)] {
        let stub = Stub::start("127.0.0.1", move |seen| {
            let hop: usize = seen.query.parse().unwrap_or(0);
            if hop == hops { reply(200, "blob") } else { redirect_to(format!("?{}", hop + 1)) }
        })
        .await;
        let answer = fetch(&anonymous(&stub)).await;
        assert_eq!(answer.is_ok(), fine, "{hops} hops: {answer:?}");
        assert!(stub.seen().len() <= 11);
    }
    let circle = Stub::start("127.0.0.1", |seen| redirect_to(seen.path.clone())).await;
    assert!(matches!(fetch(&anonymous(&circle)).await, Err(Error::Junk(_))));
    assert_eq!(circle.seen().len(), 11);
}

#[tokio::test]
async fn every_redirect_status_is_followed_with_the_same_method() {
    for status in [301, 302, 303, 307, 308] {
        let stub = Stub::start("127.0.0.1", move |seen| match seen.path.as_str() {
            "/there" => reply(200, MANIFEST).with("docker-content-digest", digest().to_string()),
            _ => reply(status, "").with("location", "/there"),
        })
        .await;
        let upstream = anonymous(&stub);
        upstream.manifest(&name(), &tag()).await.unwrap();
        let head = upstream.manifest_head(&name(), &tag()).await.unwrap();
        assert_eq!(head.digest, Some(digest()), "{status}");
        assert!(stub.seen().iter().any(|seen| seen.is("HEAD", "/there")), "{status}");
    }
}

#[tokio::test]
async fn private_targets_are_not_dialled() {
    for target in
        ["http://169.254.169.254/latest/meta-data", "http://[fe80::1]/x", "http://0.0.0.0/x"]
    {
        let stub = Stub::start("127.0.0.1", move |_seen| redirect_to(target)).await;
        assert!(matches!(fetch(&anonymous(&stub)).await, Err(Error::Junk(_))), "{target}");
        assert_eq!(stub.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_not_dialled() {
    let stub = Stub::start("127.0.0.1", store).await;
    // The upstream is at a public address, and is not dialled here.
    let upstream = build(settings("http://93.184.216.34", CredentialSource::None));
    let outgoing = Outgoing {
        kind: Kind::Blob,
        method: http::Method::GET,
        url: format!("http://localhost:{}/x", stub.address.port()).parse().unwrap(),
        headers: &http::HeaderMap::new(),
        authorization: None,
        body: None,
    };
    let until = Deadline::after(Duration::from_secs(5));
    let answer = upstream.origin().transport.exchange(outgoing, until).await;
    let text = answer.unwrap_err().to_string();
    assert!(text.contains("loopback") && text.contains("allow_addresses"), "{text}");
    assert_eq!(stub.seen().len(), 0);
}

#[tokio::test]
async fn broken_redirects_are_junk() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(307, "")).await;
    assert!(matches!(fetch(&anonymous(&stub)).await, Err(Error::Junk(_))));
    let stub = Stub::start("127.0.0.1", |_seen| redirect_to("ftp://127.0.0.1/x")).await;
    assert!(matches!(fetch(&anonymous(&stub)).await, Err(Error::Junk(_))));
}

#[tokio::test]
async fn a_challenge_from_a_redirect_target_is_not_answered() {
    let thief =
        Stub::start("127.0.0.2", |seen| challenge(&format!("{}/token", seen.origin), "x")).await;
    let target = format!("{}/x", thief.origin());
    let stub = redirecting(move |_seen| target.clone()).await;
    let error = fetch(&known(&stub)).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Status(401)));
    assert_eq!(thief.count("/token"), 0);
    assert!(thief.seen().iter().all(|seen| seen.authorization().is_none()));
}

#[tokio::test]
async fn a_stale_signed_url_is_replaced_by_a_new_one() {
    let served = AtomicUsize::new(0);
    let cdn = Stub::start("127.0.0.2", move |seen| {
        let fresh = served.fetch_add(1, Ordering::SeqCst) > 0 && seen.query == "verify=2";
        if fresh { reply(200, "blob") } else { reply(403, "<Error>AccessDenied</Error>") }
    })
    .await;
    let (target, urls) = (cdn.origin(), AtomicUsize::new(0));
    let stub = Stub::start("127.0.0.1", move |_seen| {
        let number = urls.fetch_add(1, Ordering::SeqCst) + 1;
        redirect_to(format!("{target}/x?verify={number}"))
    })
    .await;
    assert_eq!(fetch(&anonymous(&stub)).await.unwrap(), b"blob");
    assert_eq!((stub.seen().len(), cdn.seen().len()), (2, 2));
}

#[tokio::test]
async fn a_lost_object_behind_a_redirect_is_no_absence() {
    let cdn = Stub::start("127.0.0.2", |_seen| reply(404, "<Error>NoSuchKey</Error>")).await;
    let target = cdn.origin();
    let stub = Stub::start("127.0.0.1", move |_seen| redirect_to(target.clone())).await;
    let error = fetch(&anonymous(&stub)).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Status(404)));
    let registry =
        Stub::start("127.0.0.2", |_seen| reply(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#))
            .await;
    let target = registry.origin();
    let stub = Stub::start("127.0.0.1", move |_seen| redirect_to(target.clone())).await;
    assert_eq!(anonymous(&stub).manifest(&name(), &tag()).await, Err(Error::Absent));
}

#[tokio::test]
async fn an_artifactory_that_redirects_within_itself_is_still_authenticated() {
    let stub = Stub::start("127.0.0.1", |seen| match (seen.path.as_str(), seen.authorization()) {
        ("/token", _) => reply(200, r#"{"token":"t"}"#),
        (path, _) if path.starts_with("/v2/") => redirect_to("/artifactory/api/docker/x"),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        _ => challenge(&format!("{}/token", seen.origin), "repository:org/app:pull"),
    })
    .await;
    let upstream = anonymous(&stub);
    for _request in 0..2 {
        upstream.manifest(&name(), &tag()).await.unwrap();
    }
    assert_eq!(stub.count("/token"), 1);
}

#[tokio::test]
async fn no_debug_print_shows_a_signature_or_a_proxys_password() {
    let store = Stub::start("127.0.0.1", |_seen| reply(200, "blob")).await;
    let mut settings = settings(&store.origin(), CredentialSource::None);
    settings.proxy = Some("http://me:geheim@127.0.0.1:1".into());
    let printed = format!("{:?}", build(settings));
    assert!(!printed.contains("geheim"), "{printed}");
    let upstream = anonymous(&store);
    let url = format!("{}/x?sig=geheim", store.origin()).parse().unwrap();
    let walk = Walk {
        kind: Kind::Blob,
        method: http::Method::GET,
        url: &url,
        headers: &http::HeaderMap::new(),
        authorization: None,
        hops: Hops::None,
        hops_max: 0,
        endpoint: None,
    };
    let deadline = Deadline::after(Duration::from_secs(5));
    let arrival = redirect::walk(&upstream.origin().transport, &walk, deadline).await;
    let printed = format!("{arrival:?}");
    assert!(!printed.contains("geheim"), "{printed}");
    assert!(printed.contains("200"), "{printed}");
}
