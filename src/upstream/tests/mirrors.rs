//! Several endpoints: whose word counts, who is asked next, and who is left alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stub::*;
use crate::clock::{ManualClock, Timestamp};
use crate::oci::{Digest, Reference};
use crate::upstream::{
    BlobRange, Cause, Error, Metrics, Parent, ProxyEnv, Settings, Shared, Spending, Upstream,
};

/// An index that says what it is.
const DOCUMENT: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

/// A registry that has everything: the manifest under tag and digest, and the blob.
fn has_all(seen: &Seen) -> Reply {
    match seen.path.as_str() {
        path if path.contains("/manifests/") => {
            let digest = Digest::sha256_of(DOCUMENT.as_bytes()).to_string();
            reply(200, DOCUMENT).with("content-type", INDEX).with("docker-content-digest", digest)
        }
        path if path.contains("/blobs/") => reply(200, "blob"),
        _ => reply(404, ""),
    }
}

fn has_nothing(_seen: &Seen) -> Reply {
    reply(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)
}

/// The 404 of a roadstead, which says why.
fn explained(reason: &str) -> Reply {
    let body = format!(
        r#"{{"errors":[{{"code":"MANIFEST_UNKNOWN","message":"x","detail":{{"reason":"{reason}"}}}}]}}"#
    );
    reply(404, body)
}

/// An address at which nobody listens.
fn nobody() -> String {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", closed.local_addr().unwrap())
}

fn with(origin: &str, mirrors: &[&str], parent: Option<&str>) -> Settings {
    Settings {
        mirrors: mirrors.iter().map(|mirror| mirror.parse().unwrap()).collect(),
        parent: parent.map(|url| Parent { url: url.parse().unwrap(), ca_file: None }),
        ..settings(origin, crate::upstream::CredentialSource::None)
    }
}

fn held(settings: Settings) -> (Arc<Upstream>, ManualClock, Registry) {
    let clock = ManualClock::starting_at(Timestamp::from_millis(1_000_000));
    let mut registry = Registry::default();
    let shared = Shared {
        clock: Arc::new(clock.clone()),
        tasks: TaskTracker::new(),
        instance_id: "roadstead-1".into(),
        metrics: Metrics::new(&mut registry),
        proxies: ProxyEnv::default(),
        search_path: None,
        shutdown: CancellationToken::new(),
    };
    (Arc::new(Upstream::new(settings, &shared).unwrap()), clock, registry)
}

fn by_digest() -> Reference {
    Reference::Digest(Digest::sha256_of(DOCUMENT.as_bytes()))
}

#[tokio::test]
async fn the_parent_comes_first_and_is_told_which_registry_is_meant() {
    let parent = Stub::start("127.0.0.2", has_all).await;
    let mirror = Stub::start("127.0.0.3", has_all).await;
    let origin = Stub::start("127.0.0.4", has_all).await;
    let settings = with(&origin.origin(), &[&mirror.origin()], Some(&parent.origin()));
    let (upstream, ..) = held(settings);
    let manifest = upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(manifest.endpoint.to_string(), parent.address.to_string());
    let head = upstream.manifest_head(&name(), &tag()).await.unwrap();
    assert!(!head.endpoint.is_origin());
    let body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert_eq!(body.endpoint(), &head.endpoint);
    assert!(parent.seen().iter().all(|seen| seen.query == "ns=stub.example"));
    assert_eq!((parent.seen().len(), mirror.seen().len(), origin.seen().len()), (3, 0, 0));
    let head = upstream.manifest_head_beyond(&head.endpoint, &name(), &tag()).await.unwrap();
    assert_eq!(head.endpoint.host(), mirror.address.to_string());
    let last = upstream.manifest_beyond(&head.endpoint, &name(), &tag()).await.unwrap();
    assert!(last.endpoint.is_origin());
    assert_eq!(origin.seen()[0].query, "");
    assert!(upstream.has_endpoint_at(last.endpoint.host()) && !upstream.has_endpoint_at("other"));
}

#[tokio::test]
async fn what_a_mirror_refuses_the_next_one_is_asked() {
    let wrong = r#"{"schemaVersion":2,"layers":[],"x":1}"#;
    let refusals: [fn(&Seen) -> Reply; 8] = [
        has_nothing,
        |_| reply(401, ""),
        |_| reply(403, r#"{"errors":[{"code":"DENIED"}]}"#),
        |_| reply(429, "").with("retry-after", "60"),
        |_| reply(500, ""),
        |_| reply(200, "<html>").with("content-type", "text/html"),
        |_| Reply::Close,
        |_| reply(508, ""),
    ];
    let origin = Stub::start("127.0.0.4", has_all).await;
    for refusal in refusals {
        let mirror = Stub::start("127.0.0.3", refusal).await;
        let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
        assert!(upstream.manifest(&name(), &tag()).await.unwrap().endpoint.is_origin());
        assert!(upstream.manifest_head(&name(), &tag()).await.unwrap().endpoint.is_origin());
        upstream.blob_head(&name(), &digest(), Spending::Needed).await.unwrap();
        let body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
        assert!(body.endpoint().is_origin());
        assert!(!mirror.seen().is_empty());
    }
    // Content that is not what was asked for.
    let lies: [fn(&Seen) -> Reply; 3] = [
        |_| reply(200, "{}").with("content-type", INDEX),
        |_| reply(200, "not JSON").with("content-type", INDEX),
        |_| reply(200, ""),
    ];
    for lie in lies {
        let mirror = Stub::start("127.0.0.3", lie).await;
        let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
        assert!(upstream.manifest(&name(), &tag()).await.unwrap().endpoint.is_origin());
        assert!(upstream.manifest(&name(), &by_digest()).await.unwrap().endpoint.is_origin());
        assert_eq!(mirror.seen().len(), 2);
    }
    let mirror = Stub::start("127.0.0.3", move |_| reply(200, wrong)).await;
    let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
    assert!(upstream.manifest(&name(), &by_digest()).await.unwrap().endpoint.is_origin());
    let body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert!(body.endpoint().is_origin(), "who gave wrong content stands last");
}

#[tokio::test]
async fn only_the_registry_itself_decides() {
    let full = Stub::start("127.0.0.3", has_all).await;
    let empty = Stub::start("127.0.0.4", has_nothing).await;
    let (upstream, ..) = held(with(&empty.origin(), &[&full.origin()], None));
    assert!(upstream.manifest(&name(), &tag()).await.is_ok(), "what a mirror gives counts");
    let dead = nobody();
    let (upstream, ..) = held(with(&dead, &[&empty.origin()], None));
    let missed = upstream.manifest(&name(), &tag()).await;
    assert_eq!(missed.unwrap_err(), Error::Unreachable(Cause::Connect));
    let missed = upstream.blob_head(&name(), &digest(), Spending::Needed).await;
    assert_eq!(missed.unwrap_err(), Error::Unreachable(Cause::Connect));
}

#[tokio::test]
async fn a_parents_absence_stands_when_the_registry_is_gone_and_it_says_absent() {
    let dead = nobody();
    let absent = Stub::start("127.0.0.2", |_| explained("absent")).await;
    let (upstream, ..) = held(with(&dead, &[], Some(&absent.origin())));
    assert_eq!(upstream.manifest(&name(), &tag()).await.unwrap_err(), Error::Absent);
    assert_eq!(upstream.manifest_head(&name(), &tag()).await.unwrap_err(), Error::HeadUnusable);
    for reason in ["offline", "unknown_registry", "connect", "denied"] {
        let other = Stub::start("127.0.0.2", move |_| explained(reason)).await;
        let (upstream, ..) = held(with(&dead, &[], Some(&other.origin())));
        let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
        assert_eq!(error, Error::Unreachable(Cause::Connect), "{reason}");
    }
    let settings = with(&dead, &[], Some(&absent.origin()));
    let (upstream, ..) = held(Settings { credential: basic(), ..settings });
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Connect), "we might see what it does not");
}

#[tokio::test]
async fn the_credential_goes_to_the_registry_alone() {
    let mirror = Stub::start("127.0.0.3", |seen| match seen.path.as_str() {
        "/token" => reply(200, r#"{"token":"anonymous"}"#),
        _ if seen.authorization() == Some("Bearer anonymous") => has_all(seen),
        _ => challenge(&format!("{}/token", seen.origin), "repository:org/app:pull"),
    })
    .await;
    let picky =
        Stub::start("127.0.0.2", |_| reply(401, "").with("www-authenticate", "Basic")).await;
    let origin = Stub::start("127.0.0.4", |seen| match seen.authorization() {
        Some(BASIC) => has_all(seen),
        _ => reply(401, "").with("www-authenticate", "Basic"),
    })
    .await;
    let copies = [picky.origin(), mirror.origin()];
    let settings = with(&origin.origin(), &[&copies[0], &copies[1]], None);
    let (upstream, ..) = held(Settings { credential: basic(), ..settings });
    let manifest = upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(manifest.endpoint.host(), mirror.address.to_string());
    let last = upstream.manifest_beyond(&manifest.endpoint, &name(), &tag()).await.unwrap();
    assert!(last.endpoint.is_origin());
    assert!(origin.seen().iter().any(|seen| seen.authorization() == Some(BASIC)));
    assert!(
        picky
            .seen()
            .iter()
            .chain(&mirror.seen())
            .all(|seen| { seen.authorization().is_none_or(|shown| shown == "Bearer anonymous") })
    );
    // Whether anybody may read it is asked of the registry, whatever a mirror shows to everybody.
    let before = mirror.seen().len();
    assert_eq!(upstream.public(&name(), Some(&tag()), Spending::Needed).await, Ok(false));
    assert_eq!(mirror.seen().len(), before);
}

#[tokio::test]
async fn a_copy_that_is_silent_costs_its_share_once() {
    let silent = Stub::start("127.0.0.3", |_| Reply::Stall(Vec::new())).await;
    let origin = Stub::start("127.0.0.4", has_all).await;
    let mut settings = with(&origin.origin(), &[&silent.origin()], None);
    settings.limits.headers = Duration::from_millis(100);
    let (upstream, clock, _) = held(settings);
    upstream.manifest(&name(), &tag()).await.unwrap();
    for _ in 0..5 {
        let begun = Instant::now();
        upstream.manifest(&name(), &tag()).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(100), "it is left alone");
    }
    assert_eq!(silent.seen().len(), 1);
    clock.advance(Duration::from_secs(1));
    upstream.manifest(&name(), &tag()).await.unwrap();
    assert_eq!(silent.seen().len(), 2, "one question finds out whether it is back");
}

#[tokio::test]
async fn a_registry_that_is_gone_costs_nothing_after_three_questions() {
    let dead = nobody();
    let (upstream, clock, metrics) = held(with(&dead, &[], None));
    for _ in 0..3 {
        let error = upstream.manifest_head(&name(), &tag()).await.unwrap_err();
        assert_eq!(error, Error::Unreachable(Cause::Connect));
    }
    let error = upstream.manifest_head(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Breaker));
    assert_eq!(error.reason(), "breaker");
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &metrics).unwrap();
    assert!(page.contains("upstream_endpoint_up{upstream=\"stub.example\""), "{page}");
    // A download that broke off is asked for all the same.
    let part = upstream.blob(&name(), &digest(), BlobRange::rest(3)).await.unwrap_err();
    assert_eq!(part, Error::Unreachable(Cause::Connect));
    let whole = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap_err();
    assert_eq!(whole, Error::Unreachable(Cause::Breaker));
    clock.advance(Duration::from_secs(2));
    let error = upstream.manifest_head(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Connect));
}

#[tokio::test]
async fn one_answer_closes_the_breaker() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let origin =
        Stub::start("127.0.0.4", move |seen| match counted.fetch_add(1, Ordering::SeqCst) {
            0..3 => Reply::Stall(Vec::new()),
            _ => has_all(seen),
        })
        .await;
    let mut settings = with(&origin.origin(), &[], None);
    settings.limits.headers = Duration::from_millis(50);
    let (upstream, clock, _) = held(settings);
    for _ in 0..3 {
        upstream.manifest(&name(), &tag()).await.unwrap_err();
    }
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Breaker));
    clock.advance(Duration::from_secs(1));
    for _ in 0..3 {
        upstream.manifest(&name(), &tag()).await.unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn server_errors_leave_the_rest_of_a_registry_alone() {
    let origin = Stub::start("127.0.0.4", |seen| {
        if seen.path.contains("/broken") { reply(503, "") } else { has_all(seen) }
    })
    .await;
    let (upstream, ..) = held(with(&origin.origin(), &[], None));
    let broken = "broken".parse().unwrap();
    for _ in 0..5 {
        let error = upstream.manifest(&broken, &tag()).await.unwrap_err();
        assert_eq!(error, Error::Unreachable(Cause::Status(503)));
    }
    upstream.manifest(&name(), &tag()).await.unwrap();
    // The same for a mirror.
    let (upstream, ..) = held(with(&nobody(), &[&origin.origin()], None));
    for _ in 0..5 {
        upstream.manifest(&broken, &tag()).await.unwrap_err();
    }
    assert!(!upstream.manifest(&name(), &tag()).await.unwrap().endpoint.is_origin());
}

#[tokio::test]
async fn sixty_four_failures_at_once_are_one() {
    let origin = Stub::start("127.0.0.4", |_| Reply::Stall(Vec::new())).await;
    let mut settings = with(&origin.origin(), &[], None);
    settings.limits.headers = Duration::from_millis(500);
    let (upstream, ..) = held(settings);
    let (name, tag) = (name(), tag());
    let questions = (0..64).map(|_| upstream.manifest(&name, &tag));
    let answers: Vec<_> = questions.collect::<FuturesUnordered<_>>().collect().await;
    assert!(answers.iter().all(Result::is_err));
    assert_eq!(origin.seen().len(), 64);
    let error = upstream.manifest(&name, &tag).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Timeout), "it is still asked");
}

#[tokio::test]
async fn a_credential_in_trouble_is_not_hidden_by_a_mirror() {
    let mirror = Stub::start("127.0.0.3", has_all).await;
    let origin =
        Stub::start("127.0.0.4", |_| reply(401, "").with("www-authenticate", "Basic")).await;
    let settings = with(&origin.origin(), &[&mirror.origin()], None);
    let (upstream, _, metrics) = held(Settings { credential: basic(), ..settings });
    let beyond = upstream.manifest(&name(), &tag()).await.unwrap().endpoint;
    let error = upstream.manifest_beyond(&beyond, &name(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Credential(_)));
    upstream.manifest(&name(), &tag()).await.unwrap();
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &metrics).unwrap();
    assert!(page.contains("upstream_credential_ok{upstream=\"stub.example\"} 0"), "{page}");
}

#[tokio::test]
async fn a_question_that_is_given_up_leaves_no_trial_behind() {
    let silent = Stub::start("127.0.0.3", |_| Reply::Stall(Vec::new())).await;
    let mut settings = with(&silent.origin(), &[], None);
    settings.limits.headers = Duration::from_millis(50);
    let (upstream, clock, _) = held(settings);
    for _ in 0..3 {
        upstream.manifest(&name(), &tag()).await.unwrap_err();
    }
    clock.advance(Duration::from_secs(1));
    let (name, tag) = (name(), tag());
    let mut trial = Box::pin(upstream.manifest(&name, &tag));
    while silent.seen().len() < 4 {
        assert!(futures_util::poll!(&mut trial).is_pending());
        tokio::task::yield_now().await;
    }
    let error = upstream.manifest(&name, &tag).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Breaker), "one is under way");
    drop(trial);
    let error = upstream.manifest(&name, &tag).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Timeout), "the next one tries");
}

#[tokio::test]
async fn a_body_that_breaks_is_continued_elsewhere() {
    let broken = Stub::start("127.0.0.3", |_| {
        Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbl".to_vec())
    })
    .await;
    let origin = Stub::start("127.0.0.4", |seen| match seen.header("range") {
        Some("bytes=2-") => reply(206, "ob").with("content-range", "bytes 2-3/4"),
        _ => reply(200, "blob"),
    })
    .await;
    let (upstream, clock, _) = held(with(&origin.origin(), &[&broken.origin()], None));
    let mut body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert!(!body.endpoint().is_origin());
    assert_eq!(body.chunk().await.unwrap().unwrap(), "bl");
    assert!(body.chunk().await.is_err());
    let mut rest = upstream.blob(&name(), &digest(), BlobRange::rest(2)).await.unwrap();
    assert!(rest.endpoint().is_origin());
    assert_eq!((rest.from, rest.total), (2, Some(4)));
    assert_eq!(rest.chunk().await.unwrap().unwrap(), "ob");
    assert_eq!(rest.chunk().await, Ok(None));
    clock.advance(Duration::from_secs(1));
    let again = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert!(!again.endpoint().is_origin(), "after a moment it has another chance");
    upstream.blame(again.endpoint());
    clock.advance(Duration::from_secs(30));
    let after = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert!(after.endpoint().is_origin(), "wrong content is remembered longer");
}

#[tokio::test]
async fn a_store_that_is_gone_is_no_registry_that_is_gone() {
    let store = nobody();
    let away = format!("{store}/x");
    let mirror = Stub::start("127.0.0.3", move |seen| {
        if seen.path.contains("/blobs/") { redirect_to(&away) } else { has_all(seen) }
    })
    .await;
    let origin = Stub::start("127.0.0.4", has_all).await;
    let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
    for _ in 0..2 {
        let body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
        assert!(body.endpoint().is_origin());
    }
    assert_eq!(mirror.seen().len(), 1, "its bodies stand last");
    let manifest = upstream.manifest(&name(), &tag()).await.unwrap();
    assert!(!manifest.endpoint.is_origin(), "its manifests do not");
}

#[tokio::test]
async fn lists_of_a_mirror_keep_the_registrys_name_and_are_not_believed_when_empty() {
    let mirror = Stub::start("127.0.0.3", |seen| {
        if seen.query.contains("last=a") {
            reply(200, r#"{"tags":["b"]}"#)
        } else {
            let next = "</v2/org/app/tags/list?n=1&last=a>; rel=\"next\"";
            reply(200, r#"{"tags":["a"]}"#).with("link", next)
        }
    })
    .await;
    let origin = Stub::start("127.0.0.4", |seen| {
        if seen.path.contains("referrers") {
            let manifests = format!(
                r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"a/b","digest":"{}","size":1}}]}}"#,
                digest()
            );
            reply(200, manifests).with("content-type", INDEX)
        } else {
            reply(200, r#"{"tags":["c"]}"#)
        }
    })
    .await;
    let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
    assert_eq!(upstream.tags(&name(), 10).await.unwrap(), ["a", "b"]);
    assert!(mirror.seen().iter().all(|seen| seen.query.ends_with("ns=stub.example")));
    let empty = Stub::start("127.0.0.3", |seen| {
        if seen.path.contains("referrers") {
            let none = format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[]}}"#);
            reply(200, none).with("content-type", INDEX)
        } else {
            reply(200, r#"{"tags":[]}"#)
        }
    })
    .await;
    let (upstream, ..) = held(with(&origin.origin(), &[&empty.origin()], None));
    assert_eq!(upstream.tags(&name(), 10).await.unwrap(), ["c"]);
    let index = upstream.referrers(&name(), &digest()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&index).contains("a/b"));
    let (upstream, ..) = held(with(&nobody(), &[&empty.origin()], None));
    assert!(upstream.referrers(&name(), &digest()).await.is_err(), "nothing is made up");
}

#[tokio::test]
async fn the_chain_of_roadsteads_is_passed_on() {
    let origin = Stub::start("127.0.0.4", has_all).await;
    let (upstream, ..) = held(with(&origin.origin(), &[], None));
    upstream.manifest(&name(), &tag()).await.unwrap();
    let passed = upstream.asked_via(Some("1.1 roadstead-a, 1.1 roadstead-b".into()));
    passed.manifest(&name(), &tag()).await.unwrap();
    let via: Vec<_> =
        origin.seen().iter().map(|seen| seen.header("via").unwrap().to_owned()).collect();
    assert_eq!(via, ["1.1 roadstead-1", "1.1 roadstead-a, 1.1 roadstead-b, 1.1 roadstead-1"]);
}

#[tokio::test]
async fn an_endpoint_that_is_ourselves_says_so() {
    let ourselves = Stub::start("127.0.0.4", |_| reply(508, "")).await;
    let (upstream, ..) = held(with(&ourselves.origin(), &[], None));
    for _ in 0..5 {
        let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
        assert_eq!(error, Error::Unreachable(Cause::Loop));
        assert!(error.to_string().contains("names itself"), "{error}");
    }
    let (upstream, ..) = held(with(&nobody(), &[], Some(&ourselves.origin())));
    let errors: Vec<Error> = {
        let mut errors = Vec::new();
        for _ in 0..4 {
            errors.push(upstream.manifest(&name(), &tag()).await.unwrap_err());
        }
        errors
    };
    assert_eq!(errors[0], Error::Unreachable(Cause::Connect));
    assert_eq!(errors[3], Error::Unreachable(Cause::Loop), "nothing is left but the loop");
}

#[tokio::test]
async fn a_limit_at_one_delays_no_other() {
    const LIMIT: Duration = Duration::from_secs(1);
    let limited = |_: &Seen| reply(429, "").with("retry-after", "1");
    let mirror = Stub::start("127.0.0.3", limited).await;
    let origin = Stub::start("127.0.0.4", has_all).await;
    let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
    let begun = Instant::now();
    for _ in 0..5 {
        assert!(upstream.manifest(&name(), &tag()).await.unwrap().endpoint.is_origin());
    }
    assert!(begun.elapsed() < LIMIT, "somebody else can be asked");
    assert_eq!(mirror.seen().len(), 1, "it asked to be left alone");
    assert_eq!(origin.seen().len(), 5, "and the registry did not");

    // The same the other way round, for a body that is asked of the registry first. Its limit is one of the token service, too.
    let mirror = Stub::start("127.0.0.3", has_all).await;
    let origin = Stub::start("127.0.0.4", move |seen| match seen.path.as_str() {
        "/token" => limited(seen),
        _ => challenge(&format!("{}/token", seen.origin), "repository:org/app:pull"),
    })
    .await;
    let (upstream, ..) = held(with(&origin.origin(), &[&mirror.origin()], None));
    let body = async || upstream.blob(&name(), &digest(), BlobRange::WHOLE).await;
    let given = body().await.unwrap();
    upstream.blame(given.endpoint());
    body().await.unwrap();
    assert!(!origin.seen().is_empty(), "the registry stands first now");
    let begun = Instant::now();
    let tokens = || origin.seen().iter().filter(|seen| seen.path == "/token").count();
    let before = tokens();
    for _ in 0..5 {
        assert!(!body().await.unwrap().endpoint().is_origin());
    }
    assert!(begun.elapsed() < LIMIT, "a mirror need not wait for the registry");
    assert_eq!(tokens(), before);
}

#[tokio::test]
async fn the_quota_is_that_of_the_registry() {
    let tells = |left: &'static str| {
        move |seen: &Seen| match seen.method.as_str() {
            "HEAD" => reply(405, ""),
            _ => has_all(seen).with("ratelimit-remaining", left),
        }
    };
    let mirror = Stub::start("127.0.0.3", tells("3;w=60")).await;
    let origin = Stub::start("127.0.0.4", tells("7;w=60")).await;
    let (upstream, _clock, registry) = held(with(&origin.origin(), &[&mirror.origin()], None));
    let told = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines()
            .find(|line| line.starts_with("upstream_ratelimit_remaining{"))
            .map(str::to_owned)
    };
    let given = upstream.manifest(&name(), &tag()).await.unwrap();
    assert!(!given.endpoint.is_origin() && !upstream.is_sparing());
    assert_eq!(told(), None, "what a mirror has left is its own affair");
    upstream.manifest_beyond(&given.endpoint, &name(), &tag()).await.unwrap();
    assert!(upstream.is_sparing());
    assert!(told().unwrap().ends_with(" 7"));
    // The reserve is kept back at the registry alone.
    let before = origin.seen().len();
    upstream.blob_head(&name(), &digest(), Spending::Optional).await.unwrap();
    assert_eq!(origin.seen().len(), before);
    let dead = nobody();
    let (upstream, ..) = held(with(&origin.origin(), &[&dead], None));
    upstream.manifest(&name(), &tag()).await.unwrap();
    let spared = upstream.blob_head(&name(), &digest(), Spending::Optional).await;
    assert!(matches!(spared, Err(Error::Limited { .. })), "{spared:?}");
    upstream.blob_head(&name(), &digest(), Spending::Needed).await.unwrap();
}

#[tokio::test]
async fn a_mirrors_answers_may_lead_where_the_upstreams_may() {
    let store = Stub::start("127.0.0.1", has_all).await;
    let port = store.address.port();
    let mirror = Stub::start("127.0.0.3", move |seen| {
        // This machine under an address of no zone that a mirror opens.
        reply(307, "").with("location", format!("http://0.0.0.0:{port}{}", seen.path))
    })
    .await;
    for (allowed, reached) in [(vec![], false), (vec!["0.0.0.0/32".parse().unwrap()], true)] {
        let settings = with(&nobody(), &[&mirror.origin()], None);
        let (upstream, ..) = held(Settings { allow_addresses: allowed, ..settings });
        let body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await;
        assert_eq!(body.is_ok(), reached, "{body:?}");
        assert_eq!(!store.seen().is_empty(), reached);
    }
}
