//! Credentials towards upstream: the token flow, Basic, expiry, and who must never see a secret.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::support::content::Image;
use crate::support::fake::{
    Anonymous, Auth, Delivery, Fake, Hidden, Kind, LocationForm, Mode, Origin, Realm, Rejection,
    Scope, Style, Then, TokenBody, When,
};
use crate::support::pull::{is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const USER: &str = "joe";
const PASSWORD: &str = "correct-horse-battery";
/// Our credential, for whatever it opens.
const SHARED: &str =
    "username = \"joe\"\npassword = \"correct-horse-battery\"\nprivate = \"shared\"";
/// Our credential, for quota only.
const REFUSE: &str = "username = \"joe\"\npassword = \"correct-horse-battery\"";

async fn guarded(image: &Image, change: impl FnOnce(&mut Auth)) -> Fake {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.users = vec![(USER.to_owned(), PASSWORD.to_owned())];
        change(auth);
    });
    fake
}

async fn world_with(fake: &Fake, settings: &str) -> World {
    World::builder().upstream_with("docker.io", fake, settings).start().await
}

#[tokio::test]
async fn one_token_serves_a_whole_pull() {
    let image = Image::of_eleven_objects("token");
    let fake = guarded(&image, |_auth| {}).await;
    let world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.log().of(Kind::Token).expect(1, "one token");
    fake.log().filter(|entry| entry.status == 401).expect(1, "one challenge");
    fake.log().of(Kind::Token).no_authorization();
    world.finish().await;
}

#[tokio::test]
async fn challenges_of_every_shape_are_understood() {
    let image = Image::single("shapes");
    let shapes: [fn(&mut Auth); 12] = [
        |auth| auth.style = Style::Unquoted,
        |auth| auth.mode = Mode::BearerAndBasicOneLine,
        |auth| auth.mode = Mode::BearerAndBasicTwoLines,
        |auth| auth.mode = Mode::NoHeaderExceptPing,
        |auth| auth.mode = Mode::ChallengeOnSuccess,
        |auth| auth.scope = Scope::Missing,
        |auth| auth.service = None,
        |auth| auth.realm = Realm::Relative,
        |auth| auth.realm = Realm::WithQuery,
        |auth| auth.one_scope_or_400 = true,
        |auth| auth.first_scope_only = true,
        |auth| auth.ping_scope = Some("repository:user/image:pull".to_owned()),
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        let fake = guarded(&image, shape).await;
        let world = World::with(&fake).await;
        let reply = world.client().manifest(NAME, "latest").send().await;
        assert_eq!(reply.status, 200, "shape {n}: {reply:?}{}", fake.log().lines());
        pull(&world.client(), NAME, "latest", &image).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn the_scope_of_the_challenge_wins() {
    let image = Image::single("scope");
    let fake = guarded(&image, |auth| {
        auth.realm = Realm::PerRepository;
        auth.scope = Scope::WithoutFirstComponent;
    })
    .await;
    let other = Image::single("another repository key");
    fake.push("second/app", "latest", &other);
    let world = World::with(&fake).await;
    let client = world.client();
    tokio::join!(
        pull(&client, NAME, "latest", &image),
        pull(&client, "second/app", "latest", &other),
    );
    let token_paths = fake.log().of(Kind::Token);
    assert!(token_paths.0.iter().any(|entry| entry.path.contains("/team/")));
    assert!(token_paths.0.iter().any(|entry| entry.path.contains("/second/")));
    world.finish().await;
}

#[tokio::test]
async fn token_bodies_of_every_shape_are_understood() {
    let image = Image::single("bodies");
    let custom = |make: fn(&str) -> serde_json::Value| TokenBody::Custom(Arc::new(make));
    let bodies = [
        TokenBody::TokenOnly,
        TokenBody::AccessTokenOnly,
        TokenBody::EmptyAccessToken,
        TokenBody::Full { expires_in: 0 },
        TokenBody::Full { expires_in: 1_000_000_000_000 },
        custom(|token| json!({"token": "", "access_token": token})),
        custom(|token| json!({"token": null, "access_token": token})),
        custom(|token| json!({"token": token, "expires_in": "300"})),
        custom(|token| json!({"token": token, "expires_in": -1})),
        custom(|token| json!({"token": token, "expires_in": 1.5})),
        custom(|token| json!({"token": token, "issued_at": "garbage", "refresh_token": 7})),
    ];
    for (n, body) in bodies.into_iter().enumerate() {
        let fake = guarded(&image, |auth| auth.token_body = body).await;
        let world = World::with(&fake).await;
        let reply = world.client().manifest(NAME, "latest").send().await;
        assert_eq!(reply.status, 200, "body {n}: {reply:?}{}", fake.log().lines());
        world.finish().await;
    }
}

#[tokio::test]
async fn a_token_that_dies_in_the_middle_of_a_pull_is_renewed_once() {
    let image = Image::of_eleven_objects("expiry");
    for rejection in [
        Rejection::Bearer,
        Rejection::BasicOnly,
        Rejection::OtherRealm,
        Rejection::BadRequest,
        Rejection::Denied,
        Rejection::NoChallenge,
    ] {
        let fake = guarded(&image, |auth| {
            auth.uses = Some(5);
            auth.rejection = rejection;
        })
        .await;
        let world = World::with(&fake).await;
        pull(&world.client(), NAME, "latest", &image).await;
        let tokens = fake.log().of(Kind::Token).filter(|entry| entry.status == 200).len();
        assert_eq!(tokens, 3, "{rejection:?}:{}", fake.log().lines());
        world.finish().await;
    }
}

#[tokio::test]
async fn many_requests_at_once_fetch_one_token() {
    let images: Vec<_> = (0..16).map(|n| Image::single(&format!("many {n}"))).collect();
    let fake = guarded(&images[0], |_auth| {}).await;
    for (n, image) in images.iter().enumerate() {
        fake.push(NAME, &format!("v{n}"), image);
    }
    let world = World::with(&fake).await;
    let client = world.client();
    let all = (0..16).map(|n| {
        let client = client.clone();
        async move { client.manifest(NAME, &format!("v{n}")).expect(200).await }
    });
    for (reply, image) in join_all(all).await.iter().zip(&images) {
        is_manifest(reply, image);
    }
    fake.log().of(Kind::Token).expect(1, "one token for one scope");
    world.finish().await;
}

#[tokio::test]
async fn a_token_for_one_repository_is_not_sent_for_another() {
    let image = Image::single("two repositories");
    let fake = guarded(&image, |_auth| {}).await;
    fake.push("team/other", "latest", &image);
    let world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    pull(&world.client(), "team/other", "latest", &image).await;
    let used = |name: &str| {
        let log = fake.log().filter(|entry| entry.repository == name && entry.status == 200);
        log.0.iter().map(|entry| entry.authorization.clone()).collect::<Vec<_>>()
    };
    let (first, second) = (used(NAME), used("team/other"));
    assert!(first.iter().all(|token| !second.contains(token)), "{first:?} {second:?}");
    world.finish().await;
}

#[tokio::test]
async fn basic_is_sent_where_basic_is_asked_for() {
    let image = Image::single("basic");
    let fake = guarded(&image, |auth| auth.mode = Mode::Basic).await;
    let world = world_with(&fake, SHARED).await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.log().of(Kind::Token).expect_none("Basic needs no token");
    // Apart from the anonymous look whether the repository is public.
    fake.log()
        .filter(|entry| entry.status == 401 && entry.kind != Kind::Tags)
        .expect(1, "remembered after one challenge");
    world.finish().await;
}

#[tokio::test]
async fn basic_without_a_credential_is_refused_without_a_challenge() {
    let image = Image::single("basic");
    let fake = guarded(&image, |auth| auth.mode = Mode::Basic).await;
    let world = World::with(&fake).await;
    let reply = world.client().manifest(NAME, "latest").send().await;
    assert!([403, 404, 502].contains(&reply.status), "{reply:?}");
    assert_eq!(reply.header("WWW-Authenticate"), None);
    world.finish().await;
}

#[tokio::test]
async fn challenges_that_nobody_can_answer_are_refusals() {
    let image = Image::single("unanswerable");
    let shapes: [fn(&mut Auth); 6] = [
        |auth| auth.mode = Mode::EmptyHeader,
        |auth| auth.mode = Mode::DigestOnly,
        |auth| auth.challenge = Some(vec!["Bearer realm=\"\u{e9}".to_owned()]),
        |auth| auth.challenge = Some(vec!["x".repeat(9000)]),
        |auth| auth.challenge = Some(vec!["Bearer".to_owned(), ",,,=".to_owned()]),
        |auth| auth.realm = Realm::Text("ftp://127.0.0.1/token".to_owned()),
    ];
    for (n, shape) in shapes.into_iter().enumerate() {
        let fake = guarded(&image, shape).await;
        let world = World::with(&fake).await;
        let reply = world.client().manifest(NAME, "latest").send().await;
        assert!([403, 404, 502].contains(&reply.status), "shape {n}: {reply:?}");
        assert_eq!(reply.header("WWW-Authenticate"), None);
        world.finish().await;
    }
}

#[tokio::test]
async fn a_foreign_realm_gets_no_password() {
    let image = Image::single("foreign");
    for realm in [Realm::Foreign, Realm::Text("http://169.254.169.254/token".to_owned())] {
        let fake = guarded(&image, |auth| auth.realm = realm).await;
        let world = world_with(&fake, SHARED).await;
        let reply = world.client().manifest(NAME, "latest").send().await;
        assert!([403, 404, 502, 504].contains(&reply.status), "{reply:?}");
        fake.log().at(Origin::Foreign).no_authorization();
        let bodies = fake.log().at(Origin::Foreign).filter(|entry| entry.query.contains(USER));
        bodies.expect_none("not even the user's name");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_realm_on_the_list_gets_the_password() {
    let image = Image::single("listed");
    let fake = guarded(&image, |auth| auth.realm = Realm::Foreign).await;
    let world = world_with(&fake, &format!("{SHARED}\nrealms = [\"127.0.0.2\"]")).await;
    world.client().manifest(NAME, "latest").send().await;
    let asked = fake.log().at(Origin::Foreign).filter(|entry| entry.authorization.is_some());
    assert!(!asked.is_empty(), "the operator allowed it:{}", fake.log().lines());
    world.finish().await;
}

#[tokio::test]
async fn a_token_service_that_redirects_gives_nothing_away() {
    let image = Image::single("redirecting realm");
    let fake = guarded(&image, |_auth| {}).await;
    let target = format!("{}/token", fake.url_at(Origin::Foreign));
    fake.rule(
        When::token().at(Origin::Realm),
        Then::reply(crate::support::fake::Reply::redirect(307, target)),
    );
    let world = world_with(&fake, SHARED).await;
    let reply = world.client().manifest(NAME, "latest").send().await;
    assert!([403, 404, 502].contains(&reply.status), "{reply:?}");
    fake.log().at(Origin::Foreign).no_authorization();
    world.finish().await;
}

#[tokio::test]
async fn the_blob_store_sees_no_authorization() {
    let image = Image::single("store");
    for form in [LocationForm::Absolute, LocationForm::Relative, LocationForm::SchemeRelative] {
        for mode in [Mode::Bearer, Mode::Basic] {
            let fake = guarded(&image, |auth| auth.mode = mode).await;
            fake.switch(|switch| switch.delivery = Delivery::Redirect { status: 307, form });
            let world = world_with(&fake, SHARED).await;
            pull(&world.client(), NAME, "latest", &image).await;
            let store = fake.log().of(Kind::Store);
            assert!(!store.is_empty());
            store.no_authorization();
            store.no_referer_or_cookie();
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn a_challenge_of_the_blob_store_is_not_answered() {
    let image = Image::single("store challenge");
    let fake = guarded(&image, |_auth| {}).await;
    fake.switch(|switch| {
        switch.delivery = Delivery::Redirect { status: 307, form: LocationForm::Absolute };
    });
    let realm = format!("Bearer realm=\"{}/token\"", fake.url_at(Origin::Foreign));
    let refusal = crate::support::fake::Reply::error(401, "UNAUTHORIZED", "give me a token")
        .with("WWW-Authenticate", realm);
    fake.rule(When::store(), Then::reply(refusal));
    let world = world_with(&fake, SHARED).await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let reply = client.blob(NAME, &image.blobs[1].digest).send().await;
    assert_ne!(reply.status, 200);
    fake.log().at(Origin::Foreign).expect_none("nobody follows that challenge");
    world.finish().await;
}

#[tokio::test]
async fn refuse_serves_what_anybody_may_read_and_nothing_else() {
    let (open, closed) = (Image::single("open"), Image::single("closed"));
    let fake = guarded(&open, |auth| auth.hidden = Hidden::Denied).await;
    fake.push("team/secret", "latest", &closed);
    fake.private("team/secret", &[USER]);
    let world = world_with(&fake, REFUSE).await;
    let client = world.client();
    pull(&client, NAME, "latest", &open).await;
    for path in [
        "/v2/team/secret/manifests/latest".to_owned(),
        format!("/v2/team/secret/manifests/{}", closed.digest),
    ] {
        let reply = client.get(&path).expect(403).await;
        let message = reply.error("DENIED");
        assert!(message.contains("private"), "the message names the setting: {message}");
        client.head(&path).expect(403).await;
    }
    let reply = client.blob("team/secret", &closed.blobs[1].digest).send().await;
    assert!([403, 404].contains(&reply.status), "{reply:?}");
    let reply = client.get("/v2/team/secret/tags/list").send().await;
    assert!([403, 404].contains(&reply.status), "{reply:?}");
    assert!(!world.has_stored(&closed.digest));
    world.finish().await;
}

#[tokio::test]
async fn the_verdict_public_is_kept() {
    let image = Image::of_eleven_objects("verdict");
    let fake = guarded(&image, |_auth| {}).await;
    let world = world_with(&fake, REFUSE).await;
    pull(&world.client(), NAME, "latest", &image).await;
    let anonymous = fake.log().of(Kind::Token).filter(|entry| entry.authorization.is_none());
    assert_eq!(anonymous.len(), 1, "one anonymous look:{}", fake.log().lines());
    world.finish().await;
}

#[tokio::test]
async fn shared_serves_what_the_credential_reads() {
    let image = Image::single("shared");
    let fake = guarded(&image, |auth| auth.hidden = Hidden::Unauthorized).await;
    fake.private(NAME, &[USER]);
    let world = world_with(&fake, SHARED).await;
    pull(&world.client(), NAME, "latest", &image).await;
    let mark = fake.mark();
    pull(&world.client(), NAME, "latest", &image).await;
    fake.since(mark).expect_none("warm");
    world.finish().await;
}

#[tokio::test]
async fn a_wrong_password_is_our_trouble() {
    let image = Image::single("wrong password");
    for status in [401, 403] {
        let fake = guarded(&image, |_auth| {}).await;
        let world = World::builder()
            .upstream_with("docker.io", &fake, SHARED)
            .fresh_for("0s")
            .start()
            .await;
        let client = world.client();
        pull(&client, NAME, "latest", &image).await;
        // The password is changed upstream: what is here is bridged, and said aloud.
        fake.auth(|auth| {
            auth.users = vec![(USER.to_owned(), "changed".to_owned())];
            auth.bad_credentials = status;
        });
        fake.expire_tokens();
        let reply = client.manifest(NAME, "latest").expect(200).await;
        is_manifest(&reply, &image);
        assert!(reply.must("Warning").starts_with("299 "));
        let metrics = world.metrics().await;
        let healthy = metrics.sum("roadstead_upstream_credential_ok", &[("upstream", "docker.io")]);
        assert!(metrics.has("roadstead_upstream_credential_ok", &[]) && healthy < 0.5);
        let cold = client.manifest(NAME, "other").send().await;
        assert!([502, 503].contains(&cold.status), "{cold:?}");
        assert!(!cold.text().contains(PASSWORD));
        world.finish().await;
    }
}

#[tokio::test]
async fn a_password_file_is_read_again_when_it_changes() {
    let image = Image::single("password file");
    let fake = guarded(&image, |_auth| {}).await;
    fake.private(NAME, &[USER]);
    let dir = tempfile::TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("password");
    std::fs::write(&file, "not yet right\n").expect("it is ours");
    let settings = format!("username = \"{USER}\"\npassword_file = {file:?}\nprivate = \"shared\"");
    let world = world_with(&fake, &settings).await;
    let client = world.client();
    assert_ne!(client.manifest(NAME, "latest").send().await.status, 200);
    std::fs::write(&file, format!("{PASSWORD}\n\n")).expect("it is ours");
    is_manifest(&client.manifest(NAME, "latest").expect(200).await, &image);
    world.finish().await;
}

#[tokio::test]
async fn a_docker_config_holds_credentials() {
    use base64::Engine as _;
    let image = Image::single("docker config");
    let fake = guarded(&image, |_auth| {}).await;
    fake.private(NAME, &[USER]);
    let dir = tempfile::TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("config.json");
    let pair = format!("{USER}:{PASSWORD}");
    let packed = base64::engine::general_purpose::STANDARD.encode(pair);
    let address = fake.address(Origin::Registry).to_string();
    let document = json!({"auths": {
        address: {"auth": packed}, "https://index.docker.io/v1/": {"auth": packed},
    }});
    std::fs::write(&file, document.to_string()).expect("it is ours");
    let settings = format!("docker_config = {file:?}\nprivate = \"shared\"");
    let world = world_with(&fake, &settings).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn the_client_s_own_credentials_go_nowhere() {
    let image = Image::single("client credentials");
    let fake = guarded(&image, |_auth| {}).await;
    let world = World::with(&fake).await;
    let client = world
        .client()
        .with("Authorization", "Basic c2VjcmV0OnNlY3JldA==")
        .with("Cookie", "session=secret")
        .with("X-Forwarded-For", "10.9.8.7");
    pull(&client, NAME, "latest", &image).await;
    fake.log().no_referer_or_cookie();
    let basic = |entry: &crate::support::fake::Entry| {
        entry.authorization.as_deref().is_some_and(|text| text.starts_with("Basic"))
    };
    fake.log().filter(basic).expect_none("the client's password stays with the client");
    fake.log().filter(|entry| entry.header("x-forwarded-for").is_some()).expect_none("nor this");
    let leaked = world.log_lines().into_iter().find(|line| line.contains("c2VjcmV0OnNlY3JldA"));
    assert_eq!(leaked, None);
    world.finish().await;
}

#[tokio::test]
async fn refused_anonymity_at_the_realm_is_a_denial() {
    let image = Image::single("refused anonymity");
    for status in [401, 403] {
        let fake = guarded(&image, |auth| auth.anonymous = Anonymous::Refused(status)).await;
        let world = World::with(&fake).await;
        let reply = world.client().manifest(NAME, "latest").send().await;
        assert!([403, 404].contains(&reply.status), "{reply:?}");
        assert_eq!(reply.header("WWW-Authenticate"), None);
        world.finish().await;
    }
}

#[tokio::test]
async fn a_failing_token_service_is_not_hammered() {
    let image = Image::single("not hammered");
    for trouble in [
        Then::status(500),
        Then::limited(Some("60")),
        Then::reply(crate::support::fake::Reply::html(200)),
        Then::edit(crate::support::fake::Edit::Body("{}".into())),
        Then::edit(crate::support::fake::Edit::Body("x".repeat(1 << 20).into())),
    ] {
        let what = format!("{trouble:.60?}");
        let fake = guarded(&image, |_auth| {}).await;
        fake.rule(When::token(), trouble);
        let world = World::with(&fake).await;
        let client = world.client();
        let all = (0..8).map(|_| async { client.manifest(NAME, "latest").send().await });
        let all: Vec<_> = join_all(all).await;
        for reply in &all {
            assert!([502, 503, 504].contains(&reply.status), "{what}: {reply:?}");
        }
        let asked = fake.log().of(Kind::Token).len();
        assert!(asked <= 8, "{what}: {asked} token requests for eight clients");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_wrong_tag_closes_no_public_repository() {
    let image = Image::single("wrong tag");
    let fake = guarded(&image, |_auth| {}).await;
    let world = world_with(&fake, REFUSE).await;
    let client = world.client();
    client.manifest(NAME, "no-such-tag").expect(404).await;
    pull(&client, NAME, "latest", &image).await;
    world.advance(Duration::from_secs(25 * 3600));
    client.manifest(NAME, "no-such-tag").expect(404).await;
    pull(&client, NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_private_repository_that_hides_behind_404_stays_closed() {
    for hidden in [Hidden::NameUnknown, Hidden::NotFound] {
        let closed = Image::single("closed");
        let fake = guarded(&Image::single("open"), |auth| auth.hidden = hidden).await;
        fake.push("team/secret", "latest", &closed);
        fake.private("team/secret", &[USER]);
        let world = world_with(&fake, REFUSE).await;
        let client = world.client();
        for reference in ["latest", "wrong", &closed.digest, "latest"] {
            let reply = client.manifest("team/secret", reference).send().await;
            assert!([403, 404].contains(&reply.status), "{reply:?}");
        }
        let blob = &closed.blobs[1].digest;
        let reply = client.blob("team/secret", blob).send().await;
        assert!([403, 404].contains(&reply.status), "{reply:?}");
        assert!(!world.has_stored(&closed.digest));
        world.finish().await;
    }
}

#[tokio::test]
async fn an_old_verdict_bridges_an_outage_without_asking_each_time() {
    let image = Image::single("old verdict");
    let fake = guarded(&image, |_auth| {}).await;
    let world = world_with(&fake, REFUSE).await;
    let client = world.client();
    pull(&client, NAME, "latest", &image).await;
    world.downloads_over().await;
    world.advance(Duration::from_secs(25 * 3600));
    let rule = fake.rule(When::any().early(), Then::status(503));
    client.manifest(NAME, &image.digest).expect(200).await;
    let mark = fake.mark();
    pull(&client, NAME, &image.digest, &image).await;
    fake.since(mark).expect_none("it failed a moment ago");
    fake.remove(&rule);
    world.advance(Duration::from_secs(31));
    pull(&client, NAME, &image.digest, &image).await;
    assert!(!fake.since(mark).is_empty(), "then it is asked again");
    world.finish().await;
}

#[tokio::test]
async fn sixteen_clients_are_one_look_at_who_may_read() {
    let image = Image::single("one look");
    let fake = guarded(&image, |_auth| {}).await;
    let world = world_with(&fake, REFUSE).await;
    let client = world.client();
    let asked = (0..16).map(|_| client.manifest(NAME, "latest"));
    let asked: Vec<_> = asked.collect();
    for reply in join_all(asked.iter().map(|request| request.send())).await {
        is_manifest(&reply.expect("public", 200), &image);
    }
    let heads = fake.log().of(Kind::Manifest).heads();
    let looks = heads.filter(|entry| entry.header("authorization").is_some());
    assert_eq!(looks.len(), 1, "{}", fake.log().lines());
    world.finish().await;
}
