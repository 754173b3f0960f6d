//! Tokens and credentials that die in the middle of a pull, in all the ways that registries say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::stub::*;
use crate::upstream::Error;

const SCOPE: &str = "repository:org/app:pull";

/// A registry that accepts only the newest token `t<n>`; `refuse` is how it refuses another. Each token is good for `uses`.
async fn expiring(uses: usize, refuse: fn(&Seen) -> Reply) -> Stub {
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Stub::start("127.0.0.1", move |seen| {
        if seen.path == "/token" {
            used.store(0, Ordering::SeqCst);
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return reply(200, format!(r#"{{"token":"t{number}","expires_in":300}}"#));
        }
        let newest = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        match seen.authorization() {
            Some(shown) if shown == newest && used.fetch_add(1, Ordering::SeqCst) < uses => {
                reply(200, MANIFEST)
            }
            Some(_) => refuse(seen),
            None => challenge(&format!("{}/token", seen.origin), SCOPE),
        }
    })
    .await
}

/// Ten manifests while tokens die after three uses: nobody notices.
async fn heals(refuse: fn(&Seen) -> Reply) -> Stub {
    let stub = expiring(3, refuse).await;
    let upstream = known(&stub);
    for number in 0..10 {
        let answer = upstream.manifest(&name(), &tag()).await;
        assert!(answer.is_ok(), "request {number}: {answer:?}");
    }
    // One challenge, ten answers, three refusals of old tokens.
    assert_eq!((stub.count("/token"), stub.count("/v2/")), (4, 14));
    stub
}

#[tokio::test]
async fn a_401_with_a_bearer_challenge() {
    heals(|seen| {
        let value = format!(
            r#"Bearer realm="{}/token",service="stub",scope="{SCOPE}",error="invalid_token""#,
            seen.origin
        );
        reply(401, "").with("www-authenticate", value)
    })
    .await;
}

#[tokio::test]
async fn a_401_that_offers_only_basic() {
    let stub =
        heals(|_seen| reply(401, "").with("www-authenticate", r#"Basic realm="harbor""#)).await;
    let leaked =
        stub.seen().iter().any(|seen| seen.path != "/token" && seen.authorization() == Some(BASIC));
    assert!(!leaked, "the password went to the registry");
}

#[tokio::test]
async fn a_401_without_a_challenge() {
    heals(|_seen| reply(401, "")).await;
}

#[tokio::test]
async fn a_bare_400() {
    heals(|_seen| reply(400, "")).await;
}

#[tokio::test]
async fn a_403_denied() {
    heals(|_seen| {
        reply(403, r#"{"errors":[{"code":"DENIED","message":"authorization token has expired"}]}"#)
    })
    .await;
}

#[tokio::test]
async fn a_400_about_the_question_costs_no_token() {
    let stub = expiring(1, |_seen| reply(400, r#"{"errors":[{"code":"MANIFEST_INVALID"}]}"#)).await;
    let upstream = anonymous(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(upstream.referrers(&name(), &digest()).await, Ok(None));
    assert_eq!(stub.count("/token"), 1);
}

#[tokio::test]
async fn a_realm_that_moves_is_learned_from_a_clean_request() {
    let asked = AtomicUsize::new(0);
    let stub = Stub::start("127.0.0.1", move |seen| {
        match (seen.path.as_str(), seen.authorization()) {
            ("/old", _) if asked.load(Ordering::SeqCst) == 0 => reply(200, r#"{"token":"old"}"#),
            ("/old", _) => reply(404, ""),
            ("/new", _) => reply(200, r#"{"token":"new"}"#),
            (_, Some("Bearer old")) if asked.fetch_add(1, Ordering::SeqCst) == 0 => {
                reply(200, MANIFEST)
            }
            (_, Some("Bearer new")) => reply(200, MANIFEST),
            // As nvcr.io: what a refused token is told is not what a clean request is told.
            (_, Some(_)) => challenge(&format!("{}/trap", seen.origin), SCOPE),
            (_, None) => {
                let realm = if asked.load(Ordering::SeqCst) == 0 { "old" } else { "new" };
                challenge(&format!("{}/{realm}", seen.origin), SCOPE)
            }
        }
    })
    .await;
    let upstream = anonymous(&stub);
    for _request in 0..3 {
        upstream.manifest(&name(), &tag()).await.unwrap();
    }
    assert_eq!((stub.count("/trap"), stub.count("/new")), (0, 1));
}

#[tokio::test]
async fn an_expired_basic_credential_is_our_trouble() {
    let stub = Stub::start("127.0.0.1", |seen| match seen.authorization() {
        Some(_) => reply(403, r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#),
        None => reply(401, "").with("www-authenticate", "Basic realm=ecr"),
    })
    .await;
    let upstream = known(&stub);
    for _request in 0..2 {
        let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
        assert!(matches!(error, Error::Credential(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_password_file_that_changes_heals_the_next_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    std::fs::write(&path, "stale\n").unwrap();
    let stub = Stub::start("127.0.0.1", |seen| match seen.authorization() {
        Some(BASIC) => reply(200, MANIFEST),
        _ => reply(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let source = crate::upstream::CredentialSource::PasswordFile {
        username: "bot".into(),
        path: path.clone(),
    };
    let upstream = build(settings(&stub.origin(), source));
    let before = upstream.credential_fingerprint();
    assert!(matches!(upstream.manifest(&name(), &tag()).await, Err(Error::Credential(_))));
    std::fs::write(&path, "hunter2\n").unwrap();
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_ne!(upstream.credential_fingerprint(), before);
}

#[tokio::test]
async fn many_requests_with_a_dead_token_renew_it_once() {
    let stub = expiring(1000, |seen| challenge(&format!("{}/token", seen.origin), SCOPE)).await;
    let upstream = anonymous(&stub);
    upstream.manifest(&name(), &tag()).await.unwrap();
    // Somebody else's token request makes ours the old one.
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls_config())
        .build()
        .unwrap();
    client.get(format!("{}/token", stub.origin())).send().await.unwrap();
    let tasks = tokio_util::task::TaskTracker::new();
    let running: Vec<_> = (0..16)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tasks.spawn(async move { upstream.manifest(&name(), &tag()).await })
        })
        .collect();
    for task in running {
        task.await.unwrap().unwrap();
    }
    assert_eq!(stub.count("/token"), 3);
}

fn tls_config() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
