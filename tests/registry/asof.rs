//! Names with a moment of the past: what a tag was then, from the store alone, under the rules of today.

use std::time::Duration;

use serde_json::json;

use crate::support::client::Client;
use crate::support::content::{Image, sha256};
use crate::support::fake::Fake;
use crate::support::pull::{is_hit, is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const HOUR: Duration = Duration::from_secs(3600);

/// A world that began at 2026-11-22T00:00Z, saw the tag move at 02:00 and at 04:00, and where it is 05:00 now.
async fn moved_twice() -> (Fake, World, [Image; 3]) {
    let images = ["first", "second", "third"].map(Image::single);
    let fake = Fake::start().await;
    let world = World::builder().upstream("docker.io", &fake).fresh_for("0s").start().await;
    for (hours, image) in images.iter().enumerate() {
        if hours > 0 {
            world.advance(2 * HOUR);
        }
        fake.push(NAME, "latest", image);
        pull(&world.client(), NAME, "latest", image).await;
    }
    fake.push(NAME, "newer", &images[2]);
    pull(&world.client(), NAME, "newer", &images[2]).await;
    world.downloads_over().await;
    world.advance(HOUR);
    (fake, world, images)
}

async fn gives(client: &Client, name: &str, image: &Image) {
    let reply = client.manifest(name, "latest").expect(200).await;
    is_manifest(&reply, image);
    is_hit(&reply);
    let head = client.manifest_head(name, "latest").expect(200).await;
    assert_eq!(head.must("Docker-Content-Digest"), image.digest, "{name}");
    pull(client, name, "latest", image).await;
}

#[tokio::test]
async fn each_moment_gives_its_revision_and_upstream_is_not_asked() {
    let (fake, world, [first, second, third]) = moved_twice().await;
    let mark = fake.mark();
    let client = world.client();
    for (moment, image) in [
        ("20261122t0000z", &first),
        ("20261122t015959z", &first),
        ("20261122t0200z", &second),
        ("20261122t0359z", &second),
        ("20261122t040000z", &third),
        ("20261122t0500z", &third),
    ] {
        gives(&client, &format!("asof-{moment}/{NAME}"), image).await;
        gives(&client, &format!("asof-{moment}/docker.io/{NAME}"), image).await;
        gives(&client.clone().ns("docker.io"), &format!("asof-{moment}/{NAME}"), image).await;
        let both = format!("asof-{moment}/docker.io/{NAME}");
        gives(&client.clone().ns("docker.io"), &both, image).await;
        let mounted = format!("/docker.io/v2/asof-{moment}/{NAME}/manifests/latest");
        is_manifest(&client.get(&mounted).expect(200).await, image);
    }
    fake.since(mark).expect_none("the past is here");
    // Nothing of it is taken for the present, which is asked for as ever.
    is_manifest(&client.manifest(NAME, "latest").expect(200).await, &third);
    fake.since(mark).heads().expect(1, "the plain name is a revalidation");
    world.advance(24 * HOUR);
    gives(&client, &format!("asof-20261122/{NAME}"), &third).await;
    world.finish().await;
}

#[tokio::test]
async fn before_it_was_seen_the_answer_says_when_it_was() {
    let (fake, world, _images) = moved_twice().await;
    let mark = fake.mark();
    let client = world.client();
    let reply = client.manifest(&format!("asof-20261121/{NAME}"), "latest").expect(404).await;
    reply.error("MANIFEST_UNKNOWN");
    assert!(reply.text().contains("2026-11-22T00:00:00Z"), "{}", reply.text());
    let reply = client.manifest(&format!("asof-20261122t0300z/{NAME}"), "newer").expect(404).await;
    assert!(reply.text().contains("2026-11-22T04:00:00Z"), "{}", reply.text());
    client.manifest(&format!("asof-20261122t0300z/{NAME}"), "never").expect(404).await;
    client.manifest("asof-20261122t0300z/other/app", "latest").expect(404).await;
    fake.since(mark).expect_none("nobody knows the past better");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_that_was_absent_then_is_absent() {
    let (fake, world, [_, _, third]) = moved_twice().await;
    fake.untag(NAME, "latest");
    world.client().manifest(NAME, "latest").expect(404).await;
    world.advance(HOUR);
    fake.push(NAME, "latest", &third);
    world.advance(HOUR);
    pull(&world.client(), NAME, "latest", &third).await;
    let client = world.client();
    client.manifest(&format!("asof-20261122t0530z/{NAME}"), "latest").expect(404).await;
    gives(&client, &format!("asof-20261122t0459z/{NAME}"), &third).await;
    gives(&client, &format!("asof-20261122t0700z/{NAME}"), &third).await;
    world.finish().await;
}

#[tokio::test]
async fn what_is_no_moment_of_the_past_is_refused() {
    let (fake, world, _images) = moved_twice().await;
    let mark = fake.mark();
    for moment in ["20261122", "20261122t0501z", "2027", "20261322", "20260230", "20261122t2460z"] {
        let name = format!("asof-{moment}/{NAME}");
        for path in [format!("/v2/{name}/manifests/latest"), format!("/v2/{name}/tags/list")] {
            let reply = world.client().get(&path).expect(400).await;
            reply.error("NAME_INVALID");
            assert!(reply.text().contains("asof-YYYYMMDD"), "{}", reply.text());
        }
    }
    fake.since(mark).expect_none("refused");
    // What only looks similar is a name like any other.
    let image = Image::single("of an organisation");
    fake.push("asof-org/app", "latest", &image);
    pull(&world.client(), "asof-org/app", "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn content_that_is_not_here_is_not_fetched() {
    let (fake, world, [first, ..]) = moved_twice().await;
    let unseen = Image::single("unseen");
    fake.push(NAME, "unseen", &unseen);
    let (mark, client) = (fake.mark(), world.client());
    let name = format!("asof-20261122t0500z/{NAME}");
    client.blob(&name, &unseen.blobs[0].digest).expect(404).await;
    client.blob_head(&name, &unseen.blobs[0].digest).expect(404).await;
    client.manifest(&name, &unseen.digest).expect(404).await;
    client.get(&format!("/v2/{name}/referrers/{}", first.digest)).expect(404).await;
    client.blob(&name, &sha256(b"nowhere")).expect(404).await;
    is_manifest(&client.manifest(&name, &first.digest).expect(200).await, &first);
    fake.since(mark).expect_none("the past is here or nowhere");
    world.finish().await;
}

#[tokio::test]
async fn the_list_of_tags_is_the_one_of_then() {
    let (fake, world, _images) = moved_twice().await;
    let (mark, client) = (fake.mark(), world.client());
    let list = async |moment: &str| {
        let path = format!("/v2/asof-{moment}/{NAME}/tags/list");
        client.get(&path).expect(200).await.json()
    };
    let name = format!("asof-20261122t0300z/{NAME}");
    assert_eq!(list("20261122t0300z").await, json!({"name": name, "tags": ["latest"]}));
    assert_eq!(list("20261122t0500z").await["tags"], json!(["latest", "newer"]));
    let path = format!("/v2/asof-20261122t0500z/{NAME}/tags/list?n=1");
    let reply = client.get(&path).expect(200).await;
    assert_eq!(reply.json()["tags"], json!(["latest"]));
    assert!(reply.must("Link").contains("/v2/asof-20261122t0500z/"), "{reply:?}");
    client.get(&format!("/v2/asof-20261121/{NAME}/tags/list")).expect(404).await;
    fake.since(mark).expect_none("the past is here");
    world.finish().await;
}

#[tokio::test]
async fn the_rules_of_today_hold_for_the_past() {
    let (fake, mut world, [first, ..]) = moved_twice().await;
    let name = format!("asof-20261122t0100z/{NAME}");
    gives(&world.client(), &name, &first).await;
    let denied = |builder: crate::support::world::WorldBuilder| {
        builder.upstream_with("docker.io", &fake, "deny = [\"team/*\"]")
    };
    world.reload_with(denied).expect("a good configuration");
    world.client().manifest(&name, "latest").expect(403).await;
    world.client().manifest(&name, &first.digest).expect(403).await;
    world.client().get(&format!("/v2/{name}/tags/list")).expect(403).await;
    world.finish().await;
}
