//! Eviction as a user meets it: a store with a limit is filled by pulls, what was used longest ago goes, and everything can still be
//! pulled.
//!
//! The pulls themselves wake the background, or the test does; the test waits for what the metrics say of it.

use std::time::Duration;

use roadstead::blobs::Volume;

use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Kind};
use crate::support::gate::within;
use crate::support::product::{FaultyDisk, RealDisk};
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const KIB: u64 = 1024;
/// Three images of the test fit into it, and four do not.
const LIMIT: &str = "\"1MiB\"";
/// Eviction goes on until so much is left of it.
const LOW: f64 = 0.95 * 1024.0 * 1024.0;
/// Longer than content counts as young.
const UNUSED: Duration = Duration::from_secs(2 * 3600);
/// Longer than the figure of the file system is believed, and than the rest between two rounds of eviction.
const A_WHILE: Duration = Duration::from_secs(3);

/// Images with a layer of their own each, above a base that they share.
struct Images {
    base: Blob,
    layers: Vec<Blob>,
    images: Vec<Image>,
}

impl Images {
    /// As many as there are tags, in a fake.
    async fn pushed(seed: u64) -> (Fake, Self) {
        let (fake, base) = (Fake::start().await, Blob::synthetic(seed, 200 * KIB));
        let layers: Vec<Blob> =
            (1..=4).map(|number| Blob::synthetic(seed + number, 250 * KIB)).collect();
        let image = |layer: &Blob| {
            let seed = format!("evicted {}", layer.digest);
            Image::build(&seed).layer(base.clone()).layer(layer.clone()).finish()
        };
        let images: Vec<Image> = layers.iter().map(image).collect();
        for (number, image) in images.iter().enumerate() {
            fake.push(NAME, &tag(number), image);
        }
        (fake, Self { base, layers, images })
    }

    async fn pull(&self, world: &World, number: usize) {
        pull(&world.client(), NAME, &tag(number), &self.images[number]).await;
        world.downloads_over().await;
    }

    /// The first three, each of them unused when the next one comes.
    async fn fill(&self, world: &World) {
        for number in 0..3 {
            self.pull(world, number).await;
            world.advance(UNUSED);
        }
    }

    /// Whose own layers are here.
    fn stored(&self, world: &World) -> Vec<usize> {
        let here = |number: &usize| world.has_stored(&self.layers[*number].digest);
        (0..self.layers.len()).filter(here).collect()
    }

    /// Waits until the own layers of these are here, and no others: what goes is taken out of the rows first, and its file after that.
    async fn are(&self, world: &World, wanted: &[usize]) {
        let gone = async {
            while self.stored(world) != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(&format!("{wanted:?} alone to be here"), gone).await;
    }
}

fn tag(number: usize) -> String {
    format!("v{number}")
}

fn builder(fake: &Fake) -> WorldBuilder {
    World::builder()
        .upstream("docker.io", fake)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .fresh_for("1000h")
}

/// Waits until an eviction has brought the store down.
async fn is_low(world: &World) {
    world
        .metrics_where("the store to be small again", |metrics| {
            metrics.sum("roadstead_store_bytes", &[]) <= LOW
                && metrics.sum("roadstead_evicted_objects_total", &[]) > 0.0
        })
        .await;
}

/// Waits until the background says that it cannot meet a limit, or can again.
async fn is_unmet(world: &World, limit: &str, unmet: bool) {
    let labels = [("limit", limit)];
    world
        .metrics_where("a look at the limit", |metrics| {
            metrics.sum("roadstead_eviction_limit_unmet", &labels) == f64::from(u8::from(unmet))
        })
        .await;
}

async fn admin(world: &World, method: &str, path: &str) -> String {
    let reply = world.admin().request(method, &format!("/api/v1{path}")).send().await;
    reply.expect(path, 200).text()
}

#[tokio::test]
async fn what_was_used_longest_ago_goes_and_the_next_pull_fetches_that_alone() {
    let (fake, images) = Images::pushed(7100).await;
    let world = builder(&fake).set("max_size", LIMIT).start().await;
    images.fill(&world).await;
    assert_eq!(images.stored(&world), [0, 1, 2]);
    images.pull(&world, 3).await;
    is_low(&world).await;
    images.are(&world, &[1, 2, 3]).await;
    let metrics = world.metrics().await;
    let evicted = metrics.sum("roadstead_evicted_objects_total", &[("reason", "max_size")]);
    // Its manifest, its configuration and its layer.
    assert!((1.0..=3.0).contains(&evicted), "{evicted}");

    world.advance(UNUSED);
    let mark = fake.mark();
    images.pull(&world, 0).await;
    let asked = fake.since(mark);
    asked.about(&images.base.digest).expect_none("the base is here");
    asked.about(&images.layers[0].digest).gets().expect(1, "what was evicted");
    asked.of(Kind::Manifest).filter(|entry| entry.reference == "v0").expect_none("it is known");
    is_low(&world).await;
    images.are(&world, &[0, 2, 3]).await;
    world.finish().await;
}

#[tokio::test]
async fn a_head_and_a_304_keep_the_whole_image() {
    for conditional in [false, true] {
        let (fake, images) = Images::pushed(7200).await;
        let world = builder(&fake).set("max_size", LIMIT).start().await;
        images.fill(&world).await;
        let client = world.client();
        if conditional {
            let held = format!("\"{}\"", images.images[0].digest);
            client.manifest(NAME, "v0").header("If-None-Match", &held).expect(304).await;
        } else {
            client.manifest_head(NAME, "v0").expect(200).await;
        }
        images.pull(&world, 3).await;
        is_low(&world).await;
        images.are(&world, &[0, 2, 3]).await;
        let mark = fake.mark();
        images.pull(&world, 0).await;
        fake.since(mark).expect_none("all of it is here");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_pinned_image_stays_and_goes_when_the_pin_does() {
    let (fake, images) = Images::pushed(7300).await;
    let world = builder(&fake).set("max_size", LIMIT).start().await;
    images.fill(&world).await;
    admin(&world, "POST", "/pins?scope=docker.io/team/app:v0").await;
    images.pull(&world, 3).await;
    is_low(&world).await;
    images.are(&world, &[0, 2, 3]).await;
    let mark = fake.mark();
    images.pull(&world, 0).await;
    fake.since(mark).expect_none("all of it is here");

    // First, because what is looked at while it is kept is as good as used then, and the clock stands.
    admin(&world, "DELETE", "/pins?scope=docker.io/team/app:v0").await;
    world.advance(UNUSED);
    for number in [2, 3] {
        world.client().manifest_head(NAME, &tag(number)).expect(200).await;
    }
    images.pull(&world, 1).await;
    is_low(&world).await;
    images.are(&world, &[1, 2, 3]).await;
    world.finish().await;
}

#[tokio::test]
async fn offline_nothing_goes_and_online_it_does() {
    let (fake, images) = Images::pushed(7400).await;
    let mut world = builder(&fake).start().await;
    images.fill(&world).await;
    images.pull(&world, 3).await;
    world.advance(UNUSED);
    world.restart_with(|builder| builder.set("max_size", LIMIT).set("offline", "true")).await;
    world.wake_upkeep();
    is_unmet(&world, "max_size", true).await;
    let told = admin(&world, "POST", "/gc").await;
    assert!(told.contains("offline") && !told.contains("\"fate\":\"evicted\""), "{told}");
    assert_eq!(images.stored(&world), [0, 1, 2, 3]);
    assert_eq!(world.metrics().await.sum("roadstead_evicted_objects_total", &[]), 0.0);
    for number in 0..4 {
        images.pull(&world, number).await;
    }

    world.advance(UNUSED);
    world.restart_with(|builder| builder.unset("offline")).await;
    world.wake_upkeep();
    is_low(&world).await;
    for number in 0..4 {
        images.pull(&world, number).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_limit_that_cannot_be_met_lets_pulls_through_and_opens_again() {
    let (fake, images) = Images::pushed(7500).await;
    let world = builder(&fake).set("max_size", LIMIT).start().await;
    // All of them are young.
    for number in 0..4 {
        images.pull(&world, number).await;
    }
    is_unmet(&world, "max_size", true).await;
    let here = images.stored(&world);
    let more = Image::build("one more").layer(Blob::synthetic(7600, 100 * KIB)).finish();
    fake.push(NAME, "more", &more);
    for _round in 0..2 {
        pull(&world.client(), NAME, "more", &more).await;
    }
    world.downloads_over().await;
    assert!(more.blobs.iter().all(|blob| !world.has_stored(&blob.digest)));
    assert_eq!(fake.blob_bytes(&more.blobs[1].digest), 200 * KIB);
    assert_eq!(images.stored(&world), here);

    world.pass(A_WHILE).await;
    world.advance(UNUSED);
    world.wake_upkeep();
    is_low(&world).await;
    is_unmet(&world, "max_size", false).await;
    pull(&world.client(), NAME, "more", &more).await;
    world.downloads_over().await;
    assert!(more.blobs.iter().all(|blob| world.has_stored(&blob.digest)));
    world.finish().await;
}

#[tokio::test]
async fn a_short_file_system_lets_pulls_through_and_makes_room_by_itself() {
    let (fake, images) = Images::pushed(7700).await;
    let disk = FaultyDisk::new(std::sync::Arc::new(RealDisk));
    let free = |free| disk.set_volume(Some(Volume { total: 100 * MIB, free }));
    free(50 * MIB);
    let world = builder(&fake).disk(&disk).set("min_free", "\"10MiB\"").start().await;
    images.pull(&world, 0).await;
    assert_eq!(images.stored(&world), [0]);

    // What is here is young, so nothing can go; the refused pull is what makes the background look.
    free(5 * MIB);
    world.pass(A_WHILE).await;
    for _round in 0..2 {
        images.pull(&world, 1).await;
    }
    assert_eq!(fake.blob_bytes(&images.layers[1].digest), 500 * KIB);
    is_unmet(&world, "min_free", true).await;
    assert_eq!(world.metrics().await.sum("roadstead_caching_disabled", &[]), 1.0);
    assert_eq!(images.stored(&world), [0]);
    let mark = fake.mark();
    images.pull(&world, 0).await;
    fake.since(mark).expect_none("what is here is served");

    // Unused it goes, on the next refusal, without anybody's order.
    world.advance(UNUSED);
    world.pass(A_WHILE).await;
    images.pull(&world, 1).await;
    let reason = [("reason", "min_free")];
    world
        .metrics_where("room to be made", |metrics| {
            metrics.sum("roadstead_evicted_objects_total", &reason) > 0.0
                && metrics.sum("roadstead_store_objects", &[]) <= 1.0
        })
        .await;
    images.are(&world, &[]).await;

    // Somebody else made room, too.
    free(50 * MIB);
    world.pass(A_WHILE).await;
    world.wake_upkeep();
    is_unmet(&world, "min_free", false).await;
    images.pull(&world, 1).await;
    assert_eq!(images.stored(&world), [1]);
    assert_eq!(world.metrics().await.sum("roadstead_caching_disabled", &[]), 0.0);
    world.finish().await;
}
