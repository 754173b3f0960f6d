//! A disk without room turns the cache into a plain proxy, and it caches again when there is room.

use bytes::Bytes;

use crate::support::client::End;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Edit, Fake, Kind, Then, When};
use crate::support::gate::Gate;
use crate::support::pull::{is_blob, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
/// More than any disk has.
const TOO_MUCH: &str = "\"1000TiB\"";

async fn full(image: &Image) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let world =
        World::builder().upstream("docker.io", &fake).set("min_free", TOO_MUCH).start().await;
    (fake, world)
}

#[tokio::test]
async fn without_room_content_passes_through_and_is_not_stored() {
    let image = Image::build("full").layers(2).layer(Blob::synthetic(51, 2 * MIB)).finish();
    let (fake, world) = full(&image).await;
    for _round in 0..2 {
        pull(&world.client(), NAME, "latest", &image).await;
        pull(&world.client(), NAME, &image.digest, &image).await;
    }
    for blob in &image.blobs {
        assert!(!world.has_stored(&blob.digest));
        assert!(fake.blob_bytes(&blob.digest) >= 2 * blob.len());
    }
    assert!(!world.has_stored(&image.digest));
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("roadstead_caching_disabled", &[]), 1.0);
    assert!(metrics.sum("roadstead_requests_total", &[("outcome", "bypass")]) >= 1.0);
    world.client().get("/readyz").expect(200).await;
    world.finish().await;
}

#[tokio::test]
async fn when_there_is_room_again_it_caches() {
    let image = Image::index("room");
    let (fake, mut world) = full(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.restart_with(|builder| builder.set("min_free", "\"1MiB\"")).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    fake.stop().await;
    pull(&world.client(), NAME, "latest", &image).await;
    assert_eq!(world.metrics().await.sum("roadstead_caching_disabled", &[]), 0.0);
    world.finish().await;
}

#[tokio::test]
async fn what_was_stored_is_served_without_room_for_more() {
    let image = Image::single("stored before");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let mut world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    world.restart_with(|builder| builder.set("min_free", TOO_MUCH)).await;
    let mark = fake.mark();
    pull(&world.client(), NAME, "latest", &image).await;
    fake.since(mark).expect_none("it is here");
    world.finish().await;
}

#[tokio::test]
async fn ranges_and_heads_work_without_room() {
    let blob = Blob::synthetic(52, 2 * MIB);
    let image = Image::build("ranges").layer(blob.clone()).finish();
    let (_fake, world) = full(&image).await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let part = client.blob(NAME, &blob.digest).range("1000000-1000999").expect(206).await;
    assert_eq!(part.body, blob.data.slice(1_000_000..1_001_000));
    let head = client.blob_head(NAME, &blob.digest).expect(200).await;
    assert_eq!(head.must("Content-Length"), blob.len().to_string());
    let many = client.blob(NAME, &blob.digest).range("0-9,100-109").send().await;
    assert!([200, 206, 400].contains(&many.status), "{}", many.status);
    is_blob(&client.blob(NAME, &blob.digest).expect(200).await, &blob);
    world.finish().await;
}

#[tokio::test]
async fn a_wrong_body_is_cut_without_room_too() {
    let blob = Blob::synthetic(53, 2 * MIB);
    let image = Image::build("wrong").layer(blob.clone()).finish();
    let (fake, world) = full(&image).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    for fault in [Then::corrupt_at(MIB), Then::corrupt_at(2 * MIB - 1), Then::close_at(MIB)] {
        let what = format!("{fault:?}");
        let rule = fake.rule(When::blob().get(), fault);
        let body = world.client().blob(NAME, &blob.digest).open().await.hashed().await;
        let clean = body.status == 200 && body.end == End::Clean;
        assert!(!clean || body.digest == blob.digest, "{what} ended cleanly");
        rule.expect_hit();
        fake.remove(&rule);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_written_passes_content_through() {
    let image = Image::build("unwritable").layers(2).layer(Blob::synthetic(54, MIB)).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    // A file in the place of the directory: every creation fails, whoever runs the test.
    let partial = world.data().join("partial");
    std::fs::remove_dir_all(&partial).expect("it is ours");
    std::fs::write(&partial, b"in the way").expect("it is ours");
    pull(&world.client(), NAME, "latest", &image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    std::fs::remove_file(&partial).expect("it is ours");
    std::fs::create_dir(&partial).expect("it is ours");
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_directory_that_vanishes_under_a_download_cuts_no_client() {
    let blob = Blob::synthetic(55, 4 * MIB);
    let image = Image::build("vanishing").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let mut body = world.client().blob(NAME, &blob.digest).open().await;
    body.take(1000).await;
    gate.reached().await;
    for dir in ["partial", "blobs/sha256"] {
        std::fs::remove_dir_all(world.data().join(dir)).expect("it is ours");
    }
    gate.open();
    let rest = body.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()), "other bytes");
    for dir in ["partial", "blobs/sha256"] {
        let dir = world.data().join(dir);
        std::fs::create_dir_all(dir).expect("it is ours");
    }
    let again = world.client().blob(NAME, &blob.digest).open().await;
    again.hashed().await.is_whole(&blob.digest, blob.len());
    assert!(fake.log().of(Kind::Blob).len() <= 4, "{}", fake.log().lines());
    world.finish().await;
}

#[tokio::test]
async fn a_range_to_the_last_byte_is_verified_without_room_too() {
    let blob = Blob::synthetic(56, 2 * MIB);
    let image = Image::build("resumed").layer(blob.clone()).finish();
    let (fake, world) = full(&image).await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let tail = || client.blob(NAME, &blob.digest).range("1000000-");
    let part = tail().expect(206).await;
    assert!(part.body == blob.data.slice(1_000_000..blob.len()));
    let footer = client.blob(NAME, &blob.digest).range("-47");
    let footer = footer.expect(206).await;
    assert_eq!(footer.body, blob.data.slice(2 * MIB - 47..2 * MIB));
    let rule = fake.rule(When::blob().get(), Then::corrupt_at(10));
    let part = tail().send().await;
    assert_ne!((part.status, part.end), (206, End::Clean), "unverified to its last byte");
    rule.expect_hit();
    fake.remove(&rule);
    world.finish().await;
}

#[tokio::test]
async fn a_small_or_empty_lie_is_an_error_without_room_too() {
    let small = Blob::synthetic(57, 60_000);
    let large = Blob::synthetic(58, MIB);
    let image = Image::build("lies")
        .layer(small.clone())
        .layer(large.clone())
        .layer(Blob::empty())
        .finish();
    let (fake, world) = full(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    for blob in [&small, &large] {
        for body in [Bytes::new(), Bytes::from_static(b"nothing of the kind")] {
            let then = Then::edit(Edit::Body(body));
            let rule = fake.rule(When::blob().get().about(&blob.digest), then);
            let reply = world.client().blob(NAME, &blob.digest).send().await;
            assert_eq!(reply.status, 502, "before the headers: {reply:?}");
            rule.expect_hit();
            fake.remove(&rule);
        }
    }
    world.finish().await;
}
