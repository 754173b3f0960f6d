//! `/v2/` and its variants, health, and everything that is no path of ours.

use crate::support::client::Response;
use crate::support::fake::{Fake, Kind};
use crate::support::world::World;

fn is_ping(reply: &Response) {
    assert_eq!(reply.body, "{}");
    assert_eq!(reply.must("Content-Type"), "application/json");
    assert_eq!(reply.must("Content-Length"), "2");
    assert_eq!(reply.must("Docker-Distribution-Api-Version"), "registry/2.0");
    assert_eq!(reply.header("WWW-Authenticate"), None);
    assert_eq!(reply.header("X-Registry-Supports-Signatures"), None);
}

#[tokio::test]
async fn every_form_of_the_ping_is_answered_without_asking_upstream() {
    let fake = Fake::start().await;
    let world = World::with(&fake).await;
    for path in [
        "/v2/",
        "/v2",
        "/v2/?ns=docker.io",
        "/v2/?ns=index.docker.io",
        "/v2/?ns=registry-1.docker.io",
        "/v2/?ns=DOCKER.IO",
        "/v2/docker.io/",
        "/v2/docker.io",
        "/v2/?unknown=key&another",
        "/docker.io/v2/",
    ] {
        is_ping(&world.client().get(path).expect(200).await);
        let head = world.client().head(path).expect(200).await;
        assert_eq!(head.must("Content-Length"), "2", "HEAD {path}");
    }
    assert_eq!(fake.connections(), 0);
    world.finish().await;
}

/// A client whose mirror is also the registry of the image sends our own name; it says nothing, here as in a pull.
#[tokio::test]
async fn a_ping_that_names_ourselves_names_nobody() {
    let fake = Fake::start().await;
    let world = World::with(&fake).await;
    let own = world.client().address();
    is_ping(&world.client().get(&format!("/v2/?ns={own}")).expect(200).await);
    world.finish().await;
}

#[tokio::test]
async fn the_ping_does_not_depend_on_upstream() {
    let fake = Fake::start().await;
    fake.stop().await;
    let world = World::with(&fake).await;
    is_ping(&world.client().get("/v2/").expect(200).await);
    world.finish().await;
}

#[tokio::test]
async fn the_ping_of_a_registry_that_is_not_served_is_404() {
    let fake = Fake::start().await;
    let world = World::with(&fake).await;
    for path in ["/v2/?ns=evil.example.com", "/v2/evil.example.com/", "/v2/?ns=a%0d%0ab"] {
        let reply = world.client().get(path).send().await;
        assert!([400, 404].contains(&reply.status), "{path}: {reply:?}");
        assert!(reply.must("Content-Type").starts_with("application/json"));
    }
    assert_eq!(fake.connections(), 0);
    world.finish().await;
}

#[tokio::test]
async fn an_authorization_that_nobody_asked_for_is_ignored() {
    let fake = Fake::start().await;
    let world = World::with(&fake).await;
    for value in ["Basic dXNlcjpwYXNz", "Bearer abc", "garbage", ""] {
        is_ping(&world.client().get("/v2/").header("Authorization", value).expect(200).await);
    }
    world.finish().await;
}

#[tokio::test]
async fn health_is_on_both_listeners() {
    let fake = Fake::start().await;
    fake.stop().await;
    let world = World::with(&fake).await;
    for client in [world.client(), world.observer()] {
        client.get("/livez").expect(200).await;
        client.get("/readyz").expect(200).await;
        client.head("/livez").expect(200).await;
    }
    world.client().get("/metrics").expect(404).await;
    world.observer().get("/v2/").expect(404).await;
    world.finish().await;
}

#[tokio::test]
async fn unknown_paths_are_404_in_json() {
    let fake = Fake::start().await;
    let world = World::with(&fake).await;
    for path in ["/", "/v1/_ping", "/v1/search?q=x", "/favicon.ico", "/v2x/", "/token", "/v3/"] {
        let reply = world.client().get(path).expect(404).await;
        let kind = reply.must("Content-Type");
        assert!(kind.starts_with("application/json"), "{path} is {kind}");
        assert!(reply.json()["errors"][0]["code"].is_string());
    }
    fake.log().of(Kind::Other).expect_none("nothing goes upstream");
    world.finish().await;
}
