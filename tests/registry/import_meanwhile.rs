//! What happens while a bundle is taken in: its client falls silent, the same content is pulled, downloaded, evicted, purged or deleted, and
//! the same bundle comes a second time.

use std::time::Duration;

use bytes::Bytes;

use super::import::{Bundle, NAME, builder, gc, import, is_refused, last, world};
use crate::support::client::{Connection, End};
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Then, When};
use crate::support::gate::{Gate, within};
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

/// Tags are fresh for ever, so that nobody waits for an upstream that is gone.
fn fresh(fake: &Fake) -> WorldBuilder {
    builder(fake).fresh_for("1000h")
}

/// Sends all of an import but the last bytes, and waits until they have come.
async fn almost(
    world: &World,
    image: &Image,
    bundle: &Bytes,
    last: usize,
) -> (Connection, Vec<u8>) {
    let request =
        world.admin().request("POST", "/api/v1/import?set=s").body(bundle.clone()).bytes();
    let (first, last) = request.split_at(request.len() - last);
    let mut connection = world.admin().connect().await;
    connection.send(first).await;
    let (before, _last) = image.blobs.split_at(image.blobs.len() - 1);
    within("all but the last layer to be stored", async {
        while !before.iter().all(|blob| world.has_stored(&blob.digest)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (connection, last.to_vec())
}

#[tokio::test]
async fn a_client_that_falls_silent_is_waited_for_five_minutes() {
    const ALMOST: Duration = Duration::from_secs(290);
    let fake = Fake::start().await;
    let world = fresh(&fake).start().await;
    fake.stop().await;
    let image = Image::build("silent").layers(3).finish();
    let bundle = Bundle::good(&image, &format!("{NAME}:1")).end();
    // Whoever feeds it may be slow: each byte is worth as long.
    let (mut slow, rest) = almost(&world, &image, &bundle, 1500).await;
    for byte in rest.chunks(500) {
        world.pass(ALMOST).await;
        slow.send(byte).await;
        // So that it was looked at before the next pause.
        for _turn in 0..20 {
            world.client().get("/v2/").expect(200).await;
        }
    }
    last(&slow.incoming(false).await.rest().await);
    pull(&world.client(), "docker.io/team/app", "1", &image).await;

    let other = Image::build("silent for ever").layers(3).finish();
    let bundle = Bundle::good(&other, &format!("{NAME}:2")).end();
    let (silent, _rest) = almost(&world, &other, &bundle, 1500).await;
    world.pass(ALMOST).await;
    is_refused(&import(&world, "?set=t", bundle.clone()).await, "busy", "taken in");
    world.pass(Duration::from_secs(11)).await;
    let told = within("the answer", silent.incoming(false)).await.rest().await;
    is_refused(&told, "bundle", "sent nothing for 300 s");
    let ended = last(&import(&world, "?set=s", bundle).await);
    assert!(ended["here"].as_u64().unwrap() >= 3, "{ended}");
    pull(&world.client(), "docker.io/team/app", "2", &other).await;
    world.finish().await;
}

#[tokio::test]
async fn what_was_pulled_before_may_be_purged_and_evicted_while_it_is_taken_in() {
    let image = Image::build("purged meanwhile").layers(3).finish();
    let purge = format!("/api/v1/purge?within={NAME}&kind=repository");
    for (was_here, method, path) in [
        (true, "POST", purge.clone()),
        (false, "POST", purge),
        (true, "POST", "/api/v1/purge?within=docker.io&kind=registry".to_owned()),
        (true, "DELETE", format!("/api/v1/images?image={NAME}@{}&force=true", image.digest)),
        // What is unused goes.
        (true, "POST", "/api/v1/gc".to_owned()),
    ] {
        let fake = Fake::start().await;
        fake.push("team/app", "old", &image);
        let builder = fresh(&fake).set("max_unused", "\"1h\"").set("young_for", "\"1s\"");
        let world = builder.start().await;
        if was_here {
            pull(&world.client(), "docker.io/team/app", "old", &image).await;
            world.downloads_over().await;
        }
        fake.stop().await;
        let bundle = Bundle::good(&image, &format!("{NAME}:1")).end();
        let (mut connection, rest) = almost(&world, &image, &bundle, 1).await;
        world.advance(Duration::from_secs(7200));
        let answer = world.admin().request(method, &path).send().await;
        assert!(answer.status == 200 || !was_here, "{answer:?}");
        world.advance(Duration::from_secs(7200));
        gc(&world).await;
        connection.send(&rest).await;
        let told = connection.incoming(false).await.rest().await;
        assert_eq!(last(&told)["images"], 1, "{method} {path}, was here: {was_here}");
        world.advance(Duration::from_secs(7200));
        gc(&world).await;
        pull(&world.client(), "docker.io/team/app", "1", &image).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn the_same_bundle_from_two_sides_at_once_is_taken_in_once() {
    let world = world().await;
    let image = Image::index("twice");
    let bundle = Bundle::good(&image, &format!("{NAME}:1")).end();
    let twice = async |set: &'static str| {
        let mut tries = 0;
        loop {
            tries += 1;
            let told = import(&world, set, bundle.clone()).await;
            if told.status == 200 {
                return (last(&told)["objects"].as_u64().unwrap(), tries);
            }
            is_refused(&told, "busy", "try again");
            tokio::task::yield_now().await;
        }
    };
    let (one, other) =
        within("both", async { tokio::join!(twice("?set=s"), twice("?set=t")) }).await;
    let objects = image.manifests().len() + image.all_blobs().len();
    assert_eq!(one.0 + other.0, objects as u64, "each object is stored once");
    assert!(one.1 + other.1 > 2, "they came one after the other, which proves nothing");
    let sets = world.metadata().sets().await.unwrap();
    let sets: Vec<_> = sets.iter().map(|set| (set.name.as_str(), set.members)).collect();
    assert_eq!(sets, [("s", 1), ("t", 1)]);
    pull(&world.client(), "docker.io/team/app", "1", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn clients_pull_while_a_bundle_is_taken_in() {
    let fake = Fake::start().await;
    let (busy, carried) = (Image::index("busy"), Image::build("carried").layers(6).finish());
    fake.push("team/other", "1", &busy);
    // What both bring: whoever is first, the other one is not disturbed.
    fake.push("team/app", "up", &carried);
    let world = builder(&fake).start().await;
    let client = world.client();
    let pulls = async {
        for _round in 0..10 {
            pull(&client, "docker.io/team/other", "1", &busy).await;
            pull(&client, "docker.io/team/app", "up", &carried).await;
        }
    };
    let bundle = Bundle::good(&carried, &format!("{NAME}:1")).end();
    let imports = async {
        for _round in 0..5 {
            last(&import(&world, "?set=s", bundle.clone()).await);
        }
    };
    tokio::join!(pulls, imports);
    world.downloads_over().await;
    fake.stop().await;
    pull(&client, "docker.io/team/app", "1", &carried).await;
    world.finish().await;
}

#[tokio::test]
async fn a_layer_that_is_being_downloaded_may_come_by_a_bundle_first() {
    const HELD_AT: u64 = 2 * MIB;
    for upstream_dies in [true, false] {
        let fake = Fake::start().await;
        let layer = Blob::synthetic(91, 5 * MIB);
        let image = Image::build("both ways").layer(layer.clone()).finish();
        fake.push("team/app", "up", &image);
        let impatient = fresh(&fake).upstream_with("docker.io", &fake, "limits.attempts = 1");
        let world = impatient.start().await;
        let client = world.client();
        client.manifest("docker.io/team/app", "up").expect(200).await;
        let gate = Gate::new();
        let held =
            fake.rule(When::blob().get().about(&layer.digest), Then::gate_at(HELD_AT, &gate));
        let mut follower = client.blob("docker.io/team/app", &layer.digest).open().await;
        let begun = follower.take(HELD_AT / 2).await;
        let bundle = Bundle::good(&image, &format!("{NAME}:up")).end();
        last(&import(&world, "?set=s", bundle).await);
        // What is here is served while the download is still held.
        pull(&client, "docker.io/team/app", "up", &image).await;
        fake.remove(&held);
        if upstream_dies {
            fake.stop().await;
        }
        gate.open();
        let rest = follower.rest().await;
        let whole = rest.end == End::Clean;
        assert!(whole || upstream_dies, "a download that goes on is no worse for it");
        let bytes = [begun, rest.body].concat();
        assert_eq!(bytes, layer.data.slice(0..bytes.len() as u64), "other bytes");
        assert!(!whole || bytes.len() as u64 == layer.len());
        world.downloads_over().await;
        if !upstream_dies {
            fake.stop().await;
        }
        pull(&client, "docker.io/team/app", "up", &image).await;
        gc(&world).await;
        pull(&client, "docker.io/team/app", "up", &image).await;
        world.finish().await;
    }
}
