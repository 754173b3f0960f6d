//! Freezes: a tag stays where it was when it was frozen, whatever upstream does, until the freeze is taken back or over.

use std::time::Duration;

use serde_json::Value;

use crate::support::client::Response;
use crate::support::content::Image;
use crate::support::fake::{Fake, Then, When};
use crate::support::pull::{is_hit, is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const FULL: &str = "docker.io/team/app:latest";
const FREEZE: &str = "/freezes?scope=docker.io/team/app:latest";

/// A world in which `old` was pulled and `latest` is frozen.
async fn frozen(old: &Image, fresh_for: &str, settings: &str) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", old);
    let world = World::builder()
        .upstream_with("docker.io", &fake, settings)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .fresh_for(fresh_for)
        .start()
        .await;
    pull(&world.client(), NAME, "latest", old).await;
    world.downloads_over().await;
    world.advance(Duration::from_secs(1));
    admin(&world, "POST", FREEZE).await;
    world.advance(Duration::from_secs(1));
    (fake, world)
}

async fn admin(world: &World, method: &str, path: &str) -> Value {
    let request = world.admin().request(method, &format!("/api/v1{path}"));
    request.send().await.expect(path, 200).json()
}

async fn latest(world: &World) -> Response {
    world.client().manifest(NAME, "latest").send().await
}

/// The answer of a freeze: the revision, and why.
async fn is_frozen_at(world: &World, image: &Image) {
    let reply = latest(world).await.expect("it is frozen", 200);
    is_manifest(&reply, image);
    assert_eq!(reply.must("Cache-Status"), "roadstead; hit; detail=frozen");
}

async fn explained(world: &World) -> (String, Value) {
    let told = admin(world, "GET", &format!("/explain?image={FULL}")).await;
    (told["verdict"].as_str().expect("a word").to_owned(), told["digest"].clone())
}

#[tokio::test]
async fn a_frozen_tag_stays_while_its_moves_are_recorded() {
    let (old, new) = (Image::index("frozen old"), Image::single("frozen new"));
    let (fake, world) = frozen(&old, "0s", "").await;
    let idle = world.idle_tasks().await;
    fake.push(NAME, "latest", &new);
    let mark = fake.mark();
    is_frozen_at(&world, &old).await;
    fake.wait_for("the move to be seen behind the answer", |log| {
        !log.about(&new.digest).gets().is_empty()
    })
    .await;
    world.tasks_at_most(idle).await;
    assert!(!fake.since(mark).heads().is_empty(), "the check went on");
    is_frozen_at(&world, &old).await;
    assert_eq!(explained(&world).await, ("frozen".to_owned(), old.digest.as_str().into()));
    let history = admin(&world, "GET", &format!("/history?image={FULL}")).await;
    let all = history["items"].as_array().expect("entries");
    let digests: Vec<&Value> = all.iter().map(|entry| &entry["digest"]).collect();
    assert_eq!(digests, [new.digest.as_str(), old.digest.as_str()], "the newest first");
    // By digest the new one is as reachable as ever.
    is_manifest(&world.client().manifest(NAME, &new.digest).expect(200).await, &new);

    admin(&world, "DELETE", FREEZE).await;
    is_manifest(&latest(&world).await, &new);
    assert_eq!(explained(&world).await.1, new.digest.as_str());
    world.finish().await;
}

#[tokio::test]
async fn a_freeze_counts_for_the_next_request_and_so_does_its_end() {
    let (old, new) = (Image::single("hot old"), Image::single("hot new"));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &old);
    let world = World::builder()
        .upstream("docker.io", &fake)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .fresh_for("60s")
        .start()
        .await;
    // Cold, then out of memory.
    latest(&world).await.expect("cold", 200);
    is_hit(&latest(&world).await);
    world.advance(Duration::from_secs(1));
    admin(&world, "POST", FREEZE).await;
    is_frozen_at(&world, &old).await;
    is_frozen_at(&world, &old).await;
    // The move is found out when freshness ends, and not before.
    fake.push(NAME, "latest", &new);
    let mark = fake.mark();
    is_frozen_at(&world, &old).await;
    fake.since(mark).expect_none("it is fresh");
    let idle = world.idle_tasks().await;
    world.advance(Duration::from_secs(60));
    is_frozen_at(&world, &old).await;
    world.tasks_at_most(idle).await;
    is_frozen_at(&world, &old).await;
    fake.since(mark).heads().expect(1, "fresh again after one check");

    admin(&world, "DELETE", FREEZE).await;
    for _ in 0..2 {
        let reply = latest(&world).await;
        is_manifest(&reply, &new);
        is_hit(&reply);
        assert!(!reply.must("Cache-Status").contains("frozen"));
    }
    // Frozen anew, at what it is now.
    world.advance(Duration::from_secs(1));
    admin(&world, "POST", FREEZE).await;
    is_frozen_at(&world, &new).await;
    world.finish().await;
}

#[tokio::test]
async fn a_freeze_ends_by_itself() {
    let (old, new) = (Image::single("over old"), Image::single("over new"));
    let (fake, world) = frozen(&old, "0s", "").await;
    admin(&world, "DELETE", FREEZE).await;
    admin(&world, "POST", &format!("{FREEZE}&for=60s")).await;
    fake.push(NAME, "latest", &new);
    world.advance(Duration::from_secs(59));
    is_frozen_at(&world, &old).await;
    world.advance(Duration::from_secs(1));
    is_manifest(&latest(&world).await, &new);
    world.finish().await;
}

#[tokio::test]
async fn absence_upstream_does_not_end_a_freeze() {
    for when_absent in ["keep", "obey"] {
        let old = Image::single(&format!("absent {when_absent}"));
        let settings = format!("when_absent = {when_absent:?}");
        let (fake, mut world) = frozen(&old, "0s", &settings).await;
        let idle = world.idle_tasks().await;
        fake.untag(NAME, "latest");
        for _ in 0..3 {
            is_frozen_at(&world, &old).await;
            world.tasks_at_most(idle).await;
        }
        assert_eq!(explained(&world).await.0, "frozen");
        world.restart().await;
        let idle = world.idle_tasks().await;
        is_frozen_at(&world, &old).await;
        // What is absent is asked for now and then, and not with each answer.
        world.tasks_at_most(idle).await;
        let mark = fake.mark();
        is_frozen_at(&world, &old).await;
        fake.since(mark).expect_none("it was absent a moment ago");
        if when_absent == "obey" {
            admin(&world, "DELETE", FREEZE).await;
            latest(&world).await.expect("the end was recorded", 404);
        }
        world.finish().await;
    }
}

#[tokio::test]
async fn a_denial_is_obeyed_and_outlives_an_outage_and_a_restart() {
    let old = Image::single("denied");
    let (fake, mut world) = frozen(&old, "0s", "").await;
    let idle = world.idle_tasks().await;
    let denial = fake.rule(When::manifest().about("latest"), Then::status(403));
    // The check behind this answer learns of it.
    is_frozen_at(&world, &old).await;
    world.tasks_at_most(idle).await;
    latest(&world).await.expect("denied", 403);
    let told = admin(&world, "GET", &format!("/explain?image={FULL}")).await;
    assert_eq!(told["verdict"], "refused");
    let why = told["sentences"].to_string();
    assert!(why.contains("Upstream denies access to it since"), "{why}");
    assert!(why.contains("It is frozen since"), "{why}");
    assert!(!why.contains("no such tag"), "{why}");
    world.restart().await;
    latest(&world).await.expect("denied still", 403);
    fake.remove(&denial);
    let outage = fake.rule(When::any(), Then::status(500));
    let status = latest(&world).await.status;
    assert!((500..=504).contains(&status), "an outage does not take a denial back: {status}");
    fake.remove(&outage);
    world.advance(Duration::from_secs(120));
    is_frozen_at(&world, &old).await;
    world.finish().await;
}

#[tokio::test]
async fn an_absent_tag_that_is_denied_then_is_refused() {
    let old = Image::single("absent, then denied");
    let (fake, mut world) = frozen(&old, "0s", "when_absent = \"obey\"").await;
    let idle = world.idle_tasks().await;
    fake.untag(NAME, "latest");
    is_frozen_at(&world, &old).await;
    world.tasks_at_most(idle).await;
    fake.rule(When::manifest().about("latest"), Then::status(403));
    world.advance(Duration::from_secs(3600));
    is_frozen_at(&world, &old).await;
    world.tasks_at_most(idle).await;
    latest(&world).await.expect("denied", 403);
    world.restart().await;
    latest(&world).await.expect("denied still", 403);
    world.finish().await;
}

#[tokio::test]
async fn an_outage_and_offline_change_nothing() {
    let old = Image::single("offline");
    let (fake, mut world) = frozen(&old, "0s", "").await;
    fake.stop().await;
    world.advance(Duration::from_secs(3600 * 24 * 30));
    for _ in 0..3 {
        is_frozen_at(&world, &old).await;
    }
    world.restart_with(|builder| builder.set("offline", "true")).await;
    is_frozen_at(&world, &old).await;
    assert_eq!(explained(&world).await.0, "frozen");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_never_seen_is_fetched_and_is_the_frozen_one_then() {
    let (old, new) = (Image::single("first seen"), Image::single("second seen"));
    let fake = Fake::start().await;
    let world = World::builder()
        .upstream("docker.io", &fake)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .fresh_for("0s")
        .start()
        .await;
    admin(&world, "POST", "/freezes?scope=docker.io/team/app:v1.*").await;
    world.advance(Duration::from_secs(1));
    latest(&world).await.expect("not there", 404);
    for tag in ["v1.1", "v2"] {
        fake.push(NAME, tag, &old);
        is_manifest(&world.client().manifest(NAME, tag).expect(200).await, &old);
        fake.push(NAME, tag, &new);
        world.advance(Duration::from_secs(1));
    }
    let client = world.client();
    let of = |tag: &'static str| client.manifest(NAME, tag);
    let reply = of("v1.1").expect(200).await;
    is_manifest(&reply, &old);
    assert_eq!(reply.must("Cache-Status"), "roadstead; hit; detail=frozen");
    is_manifest(&of("v2").expect(200).await, &new);
    world.finish().await;
}

#[tokio::test]
async fn lost_bytes_of_a_frozen_revision_are_fetched_by_its_digest() {
    let (old, new) = (Image::single("lost"), Image::single("not the lost one"));
    let (fake, world) = frozen(&old, "60s", "").await;
    fake.push(NAME, "latest", &new);
    admin(&world, "DELETE", &format!("/blobs?digest={}&force=true", old.digest)).await;
    let mark = fake.mark();
    let reply = latest(&world).await.expect("by its digest", 200);
    is_manifest(&reply, &old);
    assert_eq!(reply.must("Cache-Status"), "roadstead; fwd=uri-miss; stored; detail=frozen");
    fake.since(mark).about(&old.digest).gets().expect(1, "by digest");
    is_frozen_at(&world, &old).await;
    world.finish().await;
}
