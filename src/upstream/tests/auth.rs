//! Authentication: the token flow, Basic, realms, and who gets to see what.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::stub::*;
use crate::upstream::BlobRange;
use crate::upstream::{Cause, CredentialSource, Error, Spending, Upstream};
use std::sync::Arc;

const SCOPE: &str = "repository:org/app:pull";

/// A registry with its own realm at `/token`, which gives the token `t`.
fn bearer(seen: &Seen) -> Reply {
    match (seen.path.as_str(), seen.authorization()) {
        ("/token", _) => reply(200, r#"{"token":"t","expires_in":300}"#),
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        (_, _) => challenge(&format!("{}/token", seen.origin), SCOPE),
    }
}

#[tokio::test]
async fn eleven_requests_need_one_challenge_and_one_token() {
    let stub = Stub::start("127.0.0.1", bearer).await;
    let upstream = anonymous(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    for _request in 0..10 {
        let mut body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
        while body.chunk().await.unwrap().is_some() {}
    }
    assert_eq!(stub.count("/token"), 1);
    assert_eq!(stub.count("/v2/"), 12);
    let token = stub.seen().into_iter().find(|seen| seen.path == "/token").unwrap();
    assert_eq!(token.query, "service=stub&scope=repository%3Aorg%2Fapp%3Apull");
    assert_eq!(token.authorization(), None);
}

#[tokio::test]
async fn every_request_says_who_we_are_and_asks_for_plain_bytes() {
    let stub = Stub::start("127.0.0.1", bearer).await;
    anonymous(&stub).manifest(&name(), &tag()).await.unwrap();
    for seen in stub.seen() {
        assert_eq!(seen.header("via"), Some("1.1 instance-1"), "{seen:?}");
        assert!(seen.header("user-agent").unwrap().starts_with("roadstead/"));
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert_eq!(seen.header("referer"), None);
        assert_eq!(seen.header("cookie"), None);
    }
    let asked = &stub.seen()[0];
    assert_eq!(asked.header("accept").unwrap().split(", ").count(), 4);
}

#[tokio::test]
async fn requests_at_once_share_one_token_request() {
    let gate = Arc::new(Semaphore::new(0));
    let (inner, challenged) = (Arc::clone(&gate), AtomicUsize::new(0));
    // The realm waits until all sixteen were challenged.
    let stub = Stub::start("127.0.0.1", move |seen| {
        if seen.path == "/token" {
            return Reply::Gate(Arc::clone(&inner), Box::new(bearer(seen)));
        }
        if seen.authorization().is_none() && challenged.fetch_add(1, Ordering::SeqCst) == 15 {
            inner.add_permits(1);
        }
        bearer(seen)
    })
    .await;
    let upstream = anonymous(&stub);
    let asks = (0..16).map(|_| {
        let upstream = Arc::clone(&upstream);
        async move { upstream.manifest(&name(), &tag()).await }
    });
    let tasks = tokio_util::task::TaskTracker::new();
    let running: Vec<_> = asks.map(|ask| tasks.spawn(ask)).collect();
    for task in running {
        task.await.unwrap().unwrap();
    }
    assert_eq!(stub.count("/token"), 1);
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_take_the_token_with_it() {
    let gate = Arc::new(Semaphore::new(0));
    let inner = Arc::clone(&gate);
    let (asked, mut was_asked) = tokio::sync::watch::channel(false);
    let stub = Stub::start("127.0.0.1", move |seen| {
        if seen.path == "/token" {
            asked.send_replace(true);
            return Reply::Gate(Arc::clone(&inner), Box::new(bearer(seen)));
        }
        bearer(seen)
    })
    .await;
    let upstream = anonymous(&stub);
    let (repository, reference) = (name(), tag());
    tokio::select! {
        _ = upstream.manifest(&repository, &reference) => panic!("the gate is closed"),
        asked = was_asked.wait_for(|asked| *asked) => { asked.unwrap(); }
    }
    gate.add_permits(1);
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(stub.count("/token"), 1);
}

#[tokio::test]
async fn a_failing_realm_is_asked_once_for_all() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.path.as_str() {
        "/token" => reply(400, "no"),
        _ => bearer(seen),
    })
    .await;
    let upstream = anonymous(&stub);
    for _request in 0..3 {
        let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::Credential(_)), "{error:?}");
    }
    assert_eq!(stub.count("/token"), 1);
}

#[tokio::test]
async fn the_realm_gets_our_password_and_the_registry_only_the_token() {
    let stub = Stub::start("127.0.0.1", bearer).await;
    let upstream = known(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    for seen in stub.seen() {
        if seen.path == "/token" {
            assert_eq!(seen.authorization(), Some(BASIC));
            assert!(seen.query.ends_with("&account=bot"));
        } else {
            assert_ne!(seen.authorization(), Some(BASIC));
        }
    }
    assert!(upstream.credential_fingerprint().is_some());
    assert!(anonymous(&stub).credential_fingerprint().is_none());
}

/// A registry at `127.0.0.1` whose realm is at another host.
async fn with_foreign_realm(
    credential: CredentialSource,
    realms: Vec<String>,
) -> (Stub, Stub, Arc<Upstream>) {
    let realm = Stub::start("127.0.0.2", bearer).await;
    let target = format!("{}/token", realm.origin());
    let registry = Stub::start("127.0.0.1", move |seen| match seen.authorization() {
        Some("Bearer t") => reply(200, MANIFEST),
        _ => challenge(&target, SCOPE),
    })
    .await;
    let mut settings = settings(&registry.origin(), credential);
    settings.realms = realms;
    let upstream = build(settings);
    (registry, realm, upstream)
}

#[tokio::test]
async fn a_foreign_realm_gets_nothing_of_ours() {
    let (_registry, realm, upstream) = with_foreign_realm(basic(), vec![]).await;
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    let Error::Credential(message) = &error else {
        panic!("{error:?}");
    };
    assert!(message.contains("realms") && !message.contains("hunter2"));
    assert_eq!(realm.seen().len(), 0);
}

#[tokio::test]
async fn a_named_realm_gets_the_credential_and_an_anonymous_one_is_just_asked() {
    let (_registry, realm, upstream) = with_foreign_realm(basic(), vec!["127.0.0.2".into()]).await;
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(realm.seen()[0].authorization(), Some(BASIC));
    let (_registry, realm, upstream) = with_foreign_realm(CredentialSource::None, vec![]).await;
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(realm.seen()[0].authorization(), None);
}

#[tokio::test]
async fn a_realm_at_a_private_address_is_not_dialled() {
    for realm in ["http://169.254.169.254/token", "http://[fe80::1]/token"] {
        let stub = Stub::start("127.0.0.1", move |_seen| challenge(realm, SCOPE)).await;
        let error = anonymous(&stub).manifest(&name(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::Junk(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_realm_that_points_elsewhere_takes_no_credential_along() {
    let thief = Stub::start("127.0.0.2", bearer).await;
    let target = format!("{}/token", thief.origin());
    let stub = Stub::start("127.0.0.1", move |seen| match seen.path.as_str() {
        "/token" => redirect_to(target.clone()),
        _ => bearer(seen),
    })
    .await;
    let error = known(&stub).manifest(&name(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Credential(_)), "{error:?}");
    assert_eq!(thief.seen().len(), 0);
    anonymous(&stub).manifest(&name(), &tag()).await.unwrap();
    assert_eq!(thief.seen()[0].authorization(), None);
}

#[tokio::test]
async fn basic_is_sent_only_when_asked_for_and_then_at_once() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.authorization() {
        Some(BASIC) => reply(200, MANIFEST),
        _ => reply(401, "").with("www-authenticate", r#"Basic realm="ecr""#),
    })
    .await;
    let upstream = known(&stub);
    for _request in 0..3 {
        upstream.manifest(&name(), &tag()).await.unwrap();
    }
    upstream.manifest(&"other".parse().unwrap(), &tag()).await.unwrap();
    let shown: Vec<_> = stub.seen().iter().map(|seen| seen.authorization().is_some()).collect();
    assert_eq!(shown, vec![false, true, true, true, true]);
    let nobody = anonymous(&stub).manifest(&name(), &tag()).await.unwrap_err();
    assert_eq!(nobody, Error::Denied);
}

#[tokio::test]
async fn a_wrong_password_is_our_trouble() {
    let stub =
        Stub::start("127.0.0.1", |_seen| reply(401, "").with("www-authenticate", "Basic realm=x"))
            .await;
    let upstream = known(&stub);
    for _request in 0..2 {
        let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::Credential(_)), "{error:?}");
    }
    assert!(stub.seen().len() <= 5);
    let realm = Stub::start("127.0.0.1", |seen| match seen.path.as_str() {
        "/token" => reply(403, r#"{"errors":[{"code":"DENIED"}]}"#),
        _ => bearer(seen),
    })
    .await;
    let error = known(&realm).manifest(&name(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Credential(_)), "{error:?}");
    assert_eq!(anonymous(&realm).manifest(&name(), &tag()).await, Err(Error::Denied));
}

#[tokio::test]
async fn a_token_that_opens_nothing_is_a_denial() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.path.as_str() {
        "/token" => bearer(seen),
        _ => {
            let value = format!(
                r#"Bearer realm="{}/token",service="stub",scope="{SCOPE}",error="insufficient_scope""#,
                seen.origin
            );
            reply(401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#).with("www-authenticate", value)
        }
    })
    .await;
    let upstream = anonymous(&stub);
    for _request in 0..2 {
        assert_eq!(upstream.manifest(&name(), &tag()).await, Err(Error::Denied));
    }
    // The second time the remembered challenge saves the clean request.
    assert_eq!((stub.count("/token"), stub.count("/v2/")), (2, 3));
    assert_eq!(upstream.public(&name(), Some(&tag()), Spending::Needed).await, Ok(false));
}

#[tokio::test]
async fn a_401_without_a_challenge_is_looked_up_at_the_ping() {
    let stub = Stub::start("127.0.0.1", |seen| match (seen.path.as_str(), seen.authorization()) {
        ("/token", _) if seen.query.contains("org%2Fapp") => reply(200, r#"{"access_token":"t"}"#),
        ("/v2/", None) => {
            challenge(&format!("{}/token", seen.origin), "repository:user/image:pull")
        }
        (_, Some("Bearer t")) => reply(200, MANIFEST),
        _ => reply(401, "").with("www-authenticate", ""),
    })
    .await;
    let upstream = anonymous(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    upstream.manifest(&name(), &tag()).await.unwrap();
    let paths: Vec<_> = stub.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, [MANIFEST_PATH, "/v2/", "/token", MANIFEST_PATH, MANIFEST_PATH]);
}

#[tokio::test]
async fn a_realm_for_each_repository_and_no_cross_use() {
    let stub = Stub::start("127.0.0.1", |seen| {
        let key = if seen.path.contains("/one/") { "one" } else { "two" };
        if let Some(path) = seen.path.strip_prefix("/token/") {
            return reply(200, format!(r#"{{"token":"t-{path}"}}"#));
        }
        if seen.authorization() == Some(&format!("Bearer t-{key}")) {
            return reply(200, MANIFEST);
        }
        assert!(seen.authorization().is_none(), "a token was shown for another repository");
        challenge(&format!("{}/token/{key}", seen.origin), "repository:x:pull")
    })
    .await;
    let upstream = anonymous(&stub);
    for _round in 0..2 {
        for repository in ["one/x", "two/x"] {
            upstream.manifest(&repository.parse().unwrap(), &tag()).await.unwrap();
        }
    }
    assert_eq!((stub.count("/token"), stub.count("/v2/")), (2, 6));
}

#[tokio::test]
async fn a_new_repository_is_asked_as_the_others_were() {
    let stub = Stub::start("127.0.0.1", |seen| {
        let repository = if seen.path.contains("/b/") { "a/b" } else { "org/app" };
        match (seen.path.as_str(), seen.authorization()) {
            ("/token", _) => reply(200, r#"{"token":"t"}"#),
            (_, Some(_)) => reply(200, MANIFEST),
            _ => challenge(
                &format!("{}/token", seen.origin),
                &format!("repository:{repository}:pull"),
            ),
        }
    })
    .await;
    let upstream = anonymous(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    upstream.manifest(&"a/b".parse().unwrap(), &tag()).await.unwrap();
    assert_eq!((stub.count("/token"), stub.count("/v2/")), (2, 3));
    assert!(stub.seen()[3].query.contains("a%2Fb"));
}

#[tokio::test]
async fn a_refresh_token_is_posted_and_its_successor_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let config = r#"{"auths":{"stub.example":{"identitytoken":"r0","username":"u"}}}"#;
    std::fs::write(&path, config).unwrap();
    let round = AtomicUsize::new(0);
    let stub = Stub::start("127.0.0.1", move |seen| match seen.path.as_str() {
        "/token" => {
            let round = round.fetch_add(1, Ordering::SeqCst);
            assert_eq!(seen.method, "POST");
            assert!(seen.body.contains(&format!("refresh_token=r{round}")), "{}", seen.body);
            assert_eq!(seen.authorization(), None);
            reply(200, format!(r#"{{"access_token":"t","refresh_token":"r{}"}}"#, round + 1))
        }
        path if path.contains("/second/") && seen.authorization() == Some("Bearer t") => {
            reply(200, MANIFEST)
        }
        path if path.contains("/second/") => {
            challenge(&format!("{}/token", seen.origin), "repository:second/x:pull")
        }
        _ => bearer(seen),
    })
    .await;
    let upstream = build(settings(&stub.origin(), CredentialSource::DockerConfig { path }));
    upstream.manifest(&name(), &tag()).await.unwrap();
    upstream.manifest(&"second/x".parse().unwrap(), &tag()).await.unwrap();
    assert_eq!(stub.count("/token"), 2);
}

#[tokio::test]
async fn a_ready_token_goes_to_the_registry() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, r#"{"auths":{"stub.example":{"registrytoken":"t"}}}"#).unwrap();
    let stub = Stub::start("127.0.0.1", bearer).await;
    let source = CredentialSource::DockerConfig { path: path.clone() };
    let upstream = build(settings(&stub.origin(), source));
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(stub.seen().len(), 1);
    std::fs::write(&path, r#"{"auths":{"stub.example":{"registrytoken":"stale-token"}}}"#).unwrap();
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Credential(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("stale-token"));
}

#[tokio::test]
async fn a_config_that_needs_a_helper_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, r#"{"auths":{"stub.example":{}},"credsStore":"desktop"}"#).unwrap();
    let stub = Stub::start("127.0.0.1", bearer).await;
    let upstream = build(settings(&stub.origin(), CredentialSource::DockerConfig { path }));
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Credential(message) if message.contains("docker-credential-desktop")),
        "it is nowhere to be found: {error}"
    );
    assert_eq!(stub.seen().len(), 0, "never anonymously");
}

#[tokio::test]
async fn who_may_read_is_asked_without_our_credential() {
    let stub = Stub::start("127.0.0.1", |seen| match (seen.path.as_str(), seen.authorization()) {
        ("/token", Some(_)) => reply(200, r#"{"token":"ours"}"#),
        ("/token", None) => reply(200, r#"{"token":"anybody"}"#),
        (path, Some("Bearer ours")) if path.contains("org") => reply(200, MANIFEST),
        (path, Some("Bearer anybody")) if path.contains("/open") => reply(200, r#"{"tags":[]}"#),
        (path, _) => {
            let scope = if path.contains("/open") { "repository:org/open:pull" } else { SCOPE };
            challenge(&format!("{}/token", seen.origin), scope)
        }
    })
    .await;
    let upstream = known(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(upstream.public(&name(), Some(&tag()), Spending::Needed).await, Ok(false));
    assert_eq!(upstream.public(&name(), None, Spending::Needed).await, Ok(false));
    let open = "org/open".parse().unwrap();
    assert_eq!(upstream.public(&open, Some(&tag()), Spending::Needed).await, Ok(true));
    assert_eq!(upstream.public(&open, None, Spending::Needed).await, Ok(true));
    upstream.manifest(&name(), &tag()).await.unwrap();
}

#[tokio::test]
async fn what_is_hidden_behind_a_404_is_not_public_and_what_is_nowhere_is_not_judged() {
    let stub = Stub::start("127.0.0.1", |seen| match (seen.path.as_str(), seen.authorization()) {
        ("/token", Some(_)) => reply(200, r#"{"token":"ours"}"#),
        ("/token", None) => reply(200, r#"{"token":"anybody"}"#),
        (_, None) => challenge(&format!("{}/token", seen.origin), SCOPE),
        (path, Some("Bearer ours")) if path.contains("/v1") => reply(200, MANIFEST),
        (path, Some("Bearer ours")) if path.ends_with("/list") => reply(200, "{}"),
        _ => reply(404, ""),
    })
    .await;
    let upstream = known(&stub);
    assert_eq!(upstream.public(&name(), Some(&tag()), Spending::Needed).await, Ok(false));
    assert_eq!(upstream.public(&name(), None, Spending::Needed).await, Ok(false));
    let missing = "missing".parse().unwrap();
    let nowhere = upstream.public(&name(), Some(&missing), Spending::Needed).await;
    assert_eq!(nowhere, Err(Error::Absent));
    let nowhere = anonymous(&stub).public(&name(), Some(&missing), Spending::Needed).await;
    assert_eq!(nowhere, Err(Error::Absent));
}

#[tokio::test]
async fn an_upstream_that_is_down_cannot_say_who_may_read() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(503, "")).await;
    let error = known(&stub).public(&name(), Some(&tag()), Spending::Needed).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Status(503)));
}
