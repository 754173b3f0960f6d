//! A bundle carried from one roadstead to another whose upstream is gone: the whole image, its signatures, a delta after it, and the way on
//! to a third one.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::content::{Blob, Image, OCI_INDEX, fallback_tag, sha256};
use crate::support::fake::Fake;
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
/// Bytes of the layer that both images have.
const SHARED: usize = 50_000;
const SIGNATURE: &str = "application/vnd.example.signature";

fn builder(fake: &Fake) -> WorldBuilder {
    World::builder().upstream("docker.io", fake).set("admin_listen", "\"127.0.0.1:0\"")
}

/// A roadstead that has nothing and reaches nobody.
async fn island() -> World {
    let fake = Fake::start().await;
    let world = builder(&fake).start().await;
    fake.stop().await;
    world
}

async fn export(world: &World, order: &Value) -> Response {
    let request = world.admin().request("POST", "/api/v1/export");
    request.body(order.to_string()).expect(200).await
}

/// The digests that whoever takes the bundle of this order in has then.
async fn receipt(world: &World, order: &Value) -> Value {
    let request = world.admin().request("POST", "/api/v1/export?plan=true");
    request.body(order.to_string()).expect(200).await.json()["receipt"].clone()
}

/// Carries the bundle over; tells how many objects were new there.
async fn carry(bundle: &Response, to: &World, set: &str) -> u64 {
    let request = to.admin().request("POST", &format!("/api/v1/import?set={set}"));
    let told = request.body(bundle.body.clone()).expect(200).await.text();
    let last: Value = serde_json::from_str(told.lines().last().expect("a story")).expect("JSON");
    assert_eq!((&last["event"], &last["failed"]), (&json!("ended"), &json!(0)), "{told}");
    last["objects"].as_u64().expect("a number")
}

/// A manifest that is served under the tag here, from the store alone.
async fn points_at(world: &World, image: &Image) {
    let reply = world.client().manifest(NAME, "latest").expect(200).await;
    assert_eq!(reply.header("Docker-Content-Digest"), Some(image.digest.as_str()));
}

#[tokio::test]
async fn bundles_keep_their_order_where_the_clock_is_behind_and_where_it_is_right_again() {
    const BEHIND: Duration = Duration::from_secs(30 * 24 * 3600);
    let (old, new) = (Image::single("carried old"), Image::single("carried new"));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &old);
    let home = builder(&fake).start().await;
    let (island, farther) = (island().await, island().await);
    home.advance(BEHIND);
    pull(&home.client(), NAME, "latest", &old).await;
    home.downloads_over().await;
    let order = json!({ "images": ["team/app:latest"] });
    let base = export(&home, &order).await;
    fake.push(NAME, "latest", &new);
    home.advance(Duration::from_secs(3600));
    pull(&home.client(), NAME, "latest", &new).await;
    home.downloads_over().await;
    let delta = export(&home, &order).await;

    carry(&base, &island, "base").await;
    carry(&delta, &island, "delta").await;
    points_at(&island, &new).await;
    carry(&base, &island, "base").await;
    points_at(&island, &new).await;
    // Somebody sets the clock, and the base comes once more.
    island.advance(2 * BEHIND);
    carry(&base, &island, "base").await;
    points_at(&island, &new).await;

    // Whoever gets both from different hands has the same order.
    let onward = export(&island, &order).await;
    farther.advance(2 * BEHIND);
    carry(&onward, &farther, "onward").await;
    carry(&base, &farther, "base").await;
    points_at(&farther, &new).await;
    for world in [home, island, farther] {
        world.finish().await;
    }
}

#[tokio::test]
async fn what_is_carried_is_served_and_can_be_carried_on() {
    let shared = Blob::layer("shared", SHARED);
    let old = Image::build("old").layer(shared.clone()).layers(1).finish();
    let new = Image::build("new").layer(shared.clone()).layers(1).finish();
    let signature = Image::artifact("signature", SIGNATURE, &old);
    let cosign = Image::build("cosign").layers(1).finish();
    let cosign_tag = format!("{}.sig", fallback_tag(&old.digest));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &old);
    fake.push(NAME, &cosign_tag, &cosign);
    fake.push_untagged(NAME, &signature);
    let home = builder(&fake).start().await;
    pull(&home.client(), NAME, "latest", &old).await;
    pull(&home.client(), NAME, &cosign_tag, &cosign).await;
    pull(&home.client(), NAME, &signature.digest, &signature).await;
    home.downloads_over().await;
    let order = json!({ "images": ["team/app:latest"] });
    let (first, known) = (export(&home, &order).await, receipt(&home, &order).await);

    let island = island().await;
    carry(&first, &island, "first").await;
    for (reference, image) in
        [("latest", &old), (cosign_tag.as_str(), &cosign), (signature.digest.as_str(), &signature)]
    {
        pull(&island.client(), NAME, reference, image).await;
    }

    // The tag moves at home, and only what is new goes over.
    fake.push(NAME, "latest", &new);
    home.advance(Duration::from_secs(3600));
    pull(&home.client(), NAME, "latest", &new).await;
    home.downloads_over().await;
    let delta = json!({ "images": ["team/app:latest"], "base": known });
    let second = export(&home, &delta).await;
    assert!(second.body.len() < SHARED, "what the other side has is not in it");
    // Its manifest, its configuration and one layer.
    assert_eq!(carry(&second, &island, "second").await, 3);
    pull(&island.client(), NAME, "latest", &new).await;
    pull(&island.client(), NAME, &old.digest, &old).await;

    // The old bundle again is no way back.
    assert_eq!(carry(&first, &island, "first").await, 0);
    pull(&island.client(), NAME, "latest", &new).await;

    // What an island has it writes out byte for byte as home does, but for when it came.
    let onward = export(&island, &order).await;
    let farther = self::island().await;
    carry(&onward, &farther, "third").await;
    pull(&farther.client(), NAME, "latest", &new).await;
    for world in [home, island, farther] {
        world.finish().await;
    }
}

/// An index of one image, under a descriptor with these members besides.
fn listing(image: &Image, members: &Value) -> Image {
    let mut descriptor = image.descriptor();
    for (name, value) in members.as_object().expect("members") {
        descriptor[name] = value.clone();
    }
    let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]});
    Image::from_bytes(OCI_INDEX, document.to_string(), Vec::new(), vec![image.clone()])
}

#[tokio::test]
async fn check_export_and_import_agree_on_what_is_of_no_platform() {
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let attests = json!({"vnd.docker.reference.digest": sha256(b"what is not in the index")});
    let nowhere = listing(&Image::single("nowhere"), &json!({}));
    let anywhere = listing(&Image::single("anywhere"), &json!({"platform": unknown}));
    let proof = json!({"platform": unknown, "annotations": attests});
    let proof = listing(&Image::single("proof"), &proof);
    let fake = Fake::start().await;
    let tags = [("nowhere", &nowhere), ("anywhere", &anywhere), ("proof", &proof)];
    for (tag, image) in tags {
        fake.push(NAME, tag, image);
    }
    let world = builder(&fake).start().await;
    for (tag, image) in tags {
        pull(&world.client(), NAME, tag, image).await;
    }
    world.downloads_over().await;
    let island = island().await;
    for (tag, image) in tags {
        let name = format!("docker.io/{NAME}:{tag}");
        let path = format!("/api/v1/check?image={name}");
        let checked = world.admin().get(&path).expect(200).await.json();
        let is_image = tag != "proof";
        assert_eq!(checked["images"][0]["complete"], is_image, "{checked}");
        let order = json!({ "images": [name] });
        if is_image {
            carry(&export(&world, &order).await, &island, tag).await;
            pull(&island.client(), NAME, tag, image).await;
            let checked = island.admin().get(&path).expect(200).await.json();
            assert_eq!(checked["images"][0]["complete"], true, "{checked}");
        } else {
            let request = world.admin().request("POST", "/api/v1/export").body(order.to_string());
            let error = request.expect(409).await.json()["error"].clone();
            assert_eq!(error["reason"], "incomplete", "{error}");
        }
    }
    super::import::is_nothing_to_run(&island, &proof).await;
    island.finish().await;
    world.finish().await;
}
