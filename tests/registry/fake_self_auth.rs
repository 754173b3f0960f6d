//! The fake's token service, challenges, referrers and profiles do what they are told to.

use super::fake_self::{PATH, client, follow, follow_with, with_image};
use crate::support::client::{Client, End, Response};
use crate::support::content::{Image, OCI_INDEX, fallback_tag};
use crate::support::fake::{
    Anonymous, Fake, Fault, Hidden, Kind, Mode, Origin, Profile, Realm, ReferrersMode, Rejection,
    Scope, Style, Then, TokenBody, When,
};
use base64::Engine as _;
use serde_json::json;

/// The value of one parameter of a challenge.
fn parameter(response: &Response, name: &str) -> String {
    let challenge = response.must("WWW-Authenticate");
    let (_, rest) = challenge.split_once(&format!("{name}=\"")).expect("the parameter is there");
    rest.split('"').next().unwrap_or_default().to_owned()
}

/// Goes through the token flow as a client would.
async fn token(fake: &Fake, path: &str, user: Option<(&str, &str)>) -> Response {
    let refused = client(fake).get(path).expect(401).await;
    let realm = parameter(&refused, "realm");
    let scope = parameter(&refused, "scope");
    let query = if realm.contains('?') { '&' } else { '?' };
    let url = format!("{realm}{query}service=fake.test&scope={scope}");
    match user {
        None => follow(&url).await,
        Some((name, password)) => {
            follow_with(&url, &[("Authorization", &basic(name, password))]).await
        }
    }
}

fn basic(name: &str, password: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
    format!("Basic {pair}")
}

fn bearer(response: &Response) -> String {
    let document = response.json();
    let token = document["token"].as_str().or(document["access_token"].as_str());
    format!("Bearer {}", token.expect("a token"))
}

#[tokio::test]
async fn a_token_opens_what_it_was_asked_for() {
    let (fake, _image) = with_image().await;
    fake.push("c/d", "latest", &Image::single("other"));
    fake.auth(|auth| auth.mode = Mode::Bearer);
    let header = bearer(&token(&fake, PATH, None).await);
    client(&fake).get(PATH).header("Authorization", &header).expect(200).await;
    let other = client(&fake).get("/v2/c/d/manifests/latest").header("Authorization", &header);
    assert_eq!(parameter(&other.expect(401).await, "error"), "insufficient_scope");
    assert_eq!(fake.log().of(Kind::Token).len(), 1);
    fake.expire_tokens();
    for (rejection, status) in [
        (Rejection::Bearer, 401),
        (Rejection::BasicOnly, 401),
        (Rejection::OtherRealm, 401),
        (Rejection::NoChallenge, 401),
        (Rejection::BadRequest, 400),
        (Rejection::Denied, 403),
    ] {
        fake.auth(|auth| auth.rejection = rejection);
        client(&fake).get(PATH).header("Authorization", &header).expect(status).await;
    }
    fake.auth(|auth| auth.uses = Some(2));
    let header = bearer(&token(&fake, PATH, None).await);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(client(&fake).get(PATH).header("Authorization", &header).send().await.status);
    }
    assert_eq!(seen, [200, 200, 403]);
    assert!(fake.secrets().iter().all(|secret| !fake.log().lines().contains(secret)));
}

#[tokio::test]
async fn private_repositories_need_the_right_user() {
    let (fake, _image) = with_image().await;
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.users = vec![("joe".to_owned(), "secret".to_owned())];
        auth.hidden = Hidden::Denied;
    });
    fake.private("a/b", &["joe"]);
    let anonymous = bearer(&token(&fake, PATH, None).await);
    client(&fake).get(PATH).header("Authorization", &anonymous).expect(403).await;
    let joe = bearer(&token(&fake, PATH, Some(("joe", "secret"))).await);
    client(&fake).get(PATH).header("Authorization", &joe).expect(200).await;
    assert_eq!(token(&fake, PATH, Some(("joe", "wrong"))).await.status, 401);
    fake.auth(|auth| {
        auth.bad_credentials = 403;
        auth.anonymous = Anonymous::Refused(401);
    });
    assert_eq!(token(&fake, PATH, Some(("joe", "wrong"))).await.status, 403);
    assert_eq!(token(&fake, PATH, None).await.status, 401);
    fake.auth(|auth| auth.mode = Mode::Basic);
    client(&fake).get(PATH).expect(401).await;
    client(&fake).get(PATH).header("Authorization", &basic("joe", "secret")).expect(200).await;
    fake.public("a/b");
    fake.auth(|auth| auth.mode = Mode::None);
    client(&fake).get(PATH).expect(200).await;
}

#[tokio::test]
async fn the_absent_are_hidden_in_many_ways() {
    let (fake, _image) = with_image().await;
    let cases = [
        (Hidden::Unauthorized, 401),
        (Hidden::Denied, 403),
        (Hidden::NameUnknown, 404),
        (Hidden::NotFound, 404),
        (Hidden::Plain, 404),
        (Hidden::Numeric, 404),
    ];
    for (hidden, status) in cases {
        fake.auth(|auth| auth.hidden = hidden);
        client(&fake).get("/v2/no/such/manifests/latest").expect(status).await;
    }
}

#[tokio::test]
async fn challenges_come_in_many_shapes() {
    let (fake, _image) = with_image().await;
    fake.auth(|auth| auth.mode = Mode::Bearer);
    let lines = async || {
        let reply = client(&fake).get(PATH).send().await;
        let all = reply.headers.iter().filter(|(name, _)| name == "WWW-Authenticate");
        (reply.status, all.map(|(_, value)| value.clone()).collect::<Vec<_>>())
    };
    let registry = fake.url();
    let realm = fake.url_at(Origin::Realm);
    let told = format!("Bearer realm=\"{realm}/token\",service=\"fake.test\",");
    assert_eq!(lines().await, (401, vec![told + "scope=\"repository:a/b:pull\""]));
    fake.auth(|auth| {
        auth.style = Style::Unquoted;
        auth.service = None;
        auth.scope = Scope::Missing;
        auth.realm = Realm::PerRepository;
    });
    let told = format!("bearer realm={registry}/api/docker/a/v2/token");
    assert_eq!(lines().await.1, [told]);
    fake.auth(|auth| {
        auth.style = Style::Quoted;
        auth.realm = Realm::Relative;
        auth.scope = Scope::WithoutFirstComponent;
        auth.mode = Mode::BearerAndBasicTwoLines;
    });
    let told = "Bearer realm=\"/service/token\",scope=\"repository:b:pull\"".to_owned();
    assert_eq!(lines().await.1, [told, "Basic".to_owned()]);
    fake.auth(|auth| {
        auth.realm = Realm::WithQuery;
        auth.scope = Scope::Text("::".to_owned());
        auth.mode = Mode::BearerAndBasicOneLine;
    });
    let told = format!(
        "Bearer realm=\"{realm}/token?tenant=acme&flag\",scope=\"::\",Basic realm=\"Fake Realm\""
    );
    assert_eq!(lines().await.1, [told]);
    fake.auth(|auth| auth.challenge = Some(vec!["Bearer realm=\"\u{e9}".to_owned()]));
    assert_eq!(lines().await.1.len(), 1);
    fake.auth(|auth| auth.challenge = None);
    for (mode, expected) in [
        (Mode::EmptyHeader, vec![String::new()]),
        (Mode::NoHeaderExceptPing, vec![]),
        (Mode::DigestOnly, vec!["Digest realm=\"x\", nonce=\"y\"".to_owned()]),
    ] {
        fake.auth(|auth| auth.mode = mode);
        assert_eq!(lines().await, (401, expected));
    }
    fake.auth(|auth| auth.mode = Mode::ChallengeOnSuccess);
    assert_eq!(lines().await.0, 200);
}

#[tokio::test]
async fn challenges_can_lead_astray() {
    let (fake, _image) = with_image().await;
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.realm = Realm::Foreign;
        auth.ping_scope = Some("repository:user/image:pull".to_owned());
    });
    let ping = client(&fake).get("/v2/").expect(401).await;
    assert_eq!(parameter(&ping, "scope"), "repository:user/image:pull");
    let foreign = parameter(&ping, "realm");
    assert!(foreign.contains("127.0.0.2"));
    follow_with(&foreign, &[("Authorization", &basic("a", "b"))]).await;
    assert_eq!(fake.log().at(Origin::Foreign).len(), 1);
    fake.auth(|auth| auth.realm = Realm::Text("http://169.254.169.254/token".to_owned()));
    let refused = client(&fake).get(PATH).expect(401).await;
    assert!(parameter(&refused, "realm").contains("169.254"));
}

#[tokio::test]
async fn token_bodies_differ() {
    let (fake, _image) = with_image().await;
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.realm = Realm::WithQuery;
        auth.users = vec![("joe".to_owned(), "secret".to_owned())];
    });
    let body = async || token(&fake, PATH, None).await.json();
    assert_eq!(body().await["expires_in"], 300);
    fake.auth(|auth| auth.token_body = TokenBody::TokenOnly);
    assert!(body().await.get("access_token").is_none());
    fake.auth(|auth| auth.token_body = TokenBody::AccessTokenOnly);
    assert!(body().await.get("token").is_none());
    fake.auth(|auth| auth.token_body = TokenBody::EmptyAccessToken);
    assert_eq!(body().await["access_token"], "");
    fake.auth(|auth| {
        auth.token_body = TokenBody::Custom(std::sync::Arc::new(|token| json!([token])));
    });
    assert!(body().await.is_array());
    // The realm's own query must come back, POST is refused unless OAuth2 is on, and scopes may be too many.
    let realm = Client::new(fake.address(Origin::Realm));
    realm.get("/token?service=x").expect(400).await;
    fake.auth(|auth| auth.realm = Realm::Own);
    realm.request("POST", "/token").body("grant_type=password").expect(404).await;
    fake.auth(|auth| auth.post = None);
    let form = "grant_type=password&username=joe&password=wrong&scope=repository%3Aa%2Fb%3Apull";
    realm.request("POST", "/token").body(form).expect(401).await;
    realm.request("POST", "/token").body(form.replace("wrong", "secret")).expect(200).await;
    fake.auth(|auth| auth.one_scope_or_400 = true);
    realm.get("/token?scope=repository:a/b:pull&scope=repository:c/d:pull").expect(400).await;
    fake.auth(|auth| {
        auth.one_scope_or_400 = false;
        auth.first_scope_only = true;
        auth.token_body = TokenBody::TokenOnly;
    });
    let two = "/token?scope=repository:x/y:pull&scope=repository:a/b:pull";
    let header = bearer(&realm.get(two).expect(200).await);
    client(&fake).get(PATH).header("Authorization", &header).expect(401).await;
    fake.rule(When::token().at(Origin::Realm).post().once(), Then::status(500));
    realm.request("POST", "/token").body(form).expect(500).await;
}

#[tokio::test]
async fn early_rules_come_before_credentials() {
    let (fake, _image) = with_image().await;
    fake.auth(|auth| auth.mode = Mode::Bearer);
    let late = fake.rule(When::manifest().repository("a/b"), Then::status(500));
    client(&fake).get(PATH).expect(401).await;
    assert_eq!(late.hits(), 0);
    fake.rule(When::manifest().early().once(), Then::fault(Fault::CloseAt(0)));
    assert_eq!(client(&fake).get(PATH).send().await.end, End::Cut);
}

#[tokio::test]
async fn every_profile_still_serves_a_patient_client() {
    for profile in Profile::ALL {
        let fake = Fake::profile(profile).await;
        let image = Image::single("profile");
        fake.push("a/b", "latest", &image);
        let mut reply = client(&fake).get(PATH).header("Accept", &image.media_type).send().await;
        if reply.status == 401 || reply.status == 502 {
            let challenged = match reply.header("WWW-Authenticate") {
                Some(_) => reply.clone(),
                None => client(&fake).get("/v2/").send().await,
            };
            if challenged.status == 401 {
                let realm = parameter(&challenged, "realm");
                let registry = fake.url();
                let realm = if realm.starts_with('/') { registry + &realm } else { realm };
                let scope = if profile == Profile::Artifactory { "b" } else { "a/b" };
                let url = format!("{realm}?scope=repository:{scope}:pull");
                let header = bearer(&follow(&url).await);
                let get = || client(&fake).get(PATH).header("Authorization", &header);
                let accepted = || get().header("Accept", &image.media_type);
                reply = accepted().send().await;
                if reply.status == 502 {
                    reply = accepted().send().await;
                }
            }
        }
        if reply.status == 307 {
            reply = follow(reply.must("Location")).await;
        }
        assert_eq!((reply.status, reply.digest()), (200, image.digest), "{profile:?}");
    }
}

#[tokio::test]
async fn referrers_come_in_all_modes() {
    let (fake, image) = with_image().await;
    let sbom = Image::artifact("sbom", "application/x-sbom", &image);
    fake.push_untagged("a/b", &sbom);
    fake.push_untagged("a/b", &Image::artifact("sig", "application/x-sig", &image));
    let path = format!("/v2/a/b/referrers/{}", image.digest);
    let get = || client(&fake).get(&format!("{path}?artifactType=application/x-sbom"));
    let reply = get().expect(200).await;
    assert_eq!(reply.must("Content-Type"), OCI_INDEX);
    assert_eq!(reply.json()["manifests"].as_array().map(Vec::len), Some(2));
    fake.switch(|switch| switch.referrers = ReferrersMode::Filtering);
    let reply = get().expect(200).await;
    assert_eq!(reply.must("OCI-Filters-Applied"), "artifactType");
    assert_eq!(reply.json()["manifests"][0]["digest"], sbom.digest);
    for (mode, status) in [
        (ReferrersMode::Status(404), 404),
        (ReferrersMode::RedirectForeign, 303),
        (ReferrersMode::Html, 200),
        (ReferrersMode::WrongType, 200),
    ] {
        fake.switch(|switch| switch.referrers = mode);
        let reply = get().expect(status).await;
        assert_ne!(reply.header("Content-Type"), Some(OCI_INDEX), "{mode:?}");
    }
    assert_eq!(fallback_tag("sha256:00"), "sha256-00");
}
