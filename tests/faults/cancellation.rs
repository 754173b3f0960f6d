//! A request that is given up at any point, and the same request after it.
//!
//! What must hold: whoever leaves takes nothing with him and leaves nothing behind. The same request succeeds at once, nothing is
//! fetched twice, and no task, file or connection is left.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use crate::support::client::Client;
use crate::support::content::{Blob, Image, to_u64};
use crate::support::fake::{Delivery, Fake, Kind, LocationForm, Mode, StoreAuth, Then, When};
use crate::support::gate::Gate;
use crate::support::product::Asked;
use crate::support::world::World;

const NAME: &str = "team/app";
/// Large enough for several frames, and for bytes beyond the last block that is held back.
const LAYER: usize = 300_000;
const PART: std::ops::Range<u64> = 100_000..200_000;
/// A request needs fewer polls than this.
const POLLS_MAX: usize = 2000;

/// An upstream with tokens and redirects, so that there is much to wait for.
async fn scene() -> (Fake, World) {
    let fake = Fake::start().await;
    fake.auth(|auth| auth.mode = Mode::Bearer);
    fake.switch(|switch| {
        switch.delivery = Delivery::Redirect { status: 307, form: LocationForm::Absolute };
        switch.store_auth = StoreAuth::S3;
    });
    // Tags are asked for again each time, and a tag that was absent is not remembered.
    let settings = "fresh_for = \"0s\"\nabsent_for = \"0s\"";
    let world = World::builder().upstream_with("docker.io", &fake, settings).start().await;
    (fake, world)
}

/// An image that nobody has seen before.
fn fresh(fake: &Fake, what: &str, number: usize) -> Image {
    let seed = format!("{what} {number}");
    let image = Image::build(&seed).layer(Blob::layer(&seed, LAYER)).finish();
    fake.push(NAME, "latest", &image);
    image
}

/// Polls so many times, then drops; `None` if it was not done by then.
async fn polled<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut done = 0;
    poll_fn(|context| {
        done += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if done >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Drops a request after 1, 2, 3 ... polls until it is through; `asked` says what to ask for of an image and what must come.
async fn sweep(what: &str, asked: impl Fn(&Image, &Blob) -> (Asked, Vec<u8>), warm: bool) {
    let (fake, world) = scene().await;
    let idle = world.idle_tasks().await;
    let mut through = None;
    for polls in 1..POLLS_MAX {
        let image = fresh(&fake, what, polls);
        // Blobs belong to an image whose manifest is here.
        world.client().manifest(NAME, "latest").expect(200).await;
        let loose = Blob::layer(&format!("loose {what} {polls}"), LAYER);
        fake.push_blob(NAME, &loose);
        fake.expire_tokens();
        let (request, right) = asked(&image, &loose);
        if warm {
            assert_eq!(Box::pin(world.ask(NAME, request.clone())).await.as_ref(), Ok(&right));
        }
        let ended = polled(Box::pin(world.ask(NAME, request.clone())), polls).await;
        let again = Box::pin(world.ask(NAME, request)).await;
        assert!(again == Ok(right), "{what}, dropped after {polls} polls: {:?}", again.err());
        world.downloads_over().await;
        for blob in image.blobs.iter().chain([&loose]) {
            assert!(fake.blob_bytes(&blob.digest) <= blob.len(), "{what}: fetched twice");
        }
        if let Some(ended) = ended {
            assert!(ended.is_ok(), "{what}: {ended:?}");
            through = Some(polls);
            break;
        }
        world.tasks_at_most(idle).await;
        assert!(world.partial_files().is_empty(), "{:?}", world.partial_files());
    }
    let through = through.expect("a request needs fewer polls");
    println!("{what}: dropped after every number of polls up to {through}");
    world.finish().await;
}

#[tokio::test]
async fn a_blob_may_be_dropped_after_any_poll() {
    let blob = |image: &Image, _loose: &Blob| {
        let layer = &image.blobs[1];
        (Asked::Blob(layer.digest.clone()), layer.bytes().to_vec())
    };
    sweep("a cold blob", blob, false).await;
    sweep("a warm blob", blob, true).await;
}

/// Here the client's own request asks upstream whether the repository holds the blob.
#[tokio::test]
async fn a_blob_of_no_manifest_may_be_dropped_after_any_poll() {
    let loose =
        |_image: &Image, loose: &Blob| (Asked::Blob(loose.digest.clone()), loose.bytes().to_vec());
    sweep("a blob of no manifest", loose, false).await;
}

#[tokio::test]
async fn a_part_of_a_blob_may_be_dropped_after_any_poll() {
    let part = |image: &Image, _loose: &Blob| {
        let layer = &image.blobs[1];
        (Asked::Part(layer.digest.clone(), PART), layer.data.slice(PART).to_vec())
    };
    sweep("a cold part", part, false).await;
}

#[tokio::test]
async fn a_manifest_may_be_dropped_after_any_poll() {
    let tag =
        |image: &Image, _loose: &Blob| (Asked::Manifest("latest".to_owned()), image.bytes.to_vec());
    sweep("a tag that is checked", tag, false).await;
    let digest = |image: &Image, _loose: &Blob| {
        (Asked::Manifest(image.digest.clone()), image.bytes.to_vec())
    };
    sweep("a manifest by digest", digest, false).await;
}

#[tokio::test]
async fn a_cold_tag_may_be_dropped_after_any_poll() {
    let (fake, world) = scene().await;
    let idle = world.idle_tasks().await;
    for polls in 1..POLLS_MAX {
        let image = Image::single(&format!("cold tag {polls}"));
        let tag = format!("v{polls}");
        fake.push(NAME, &tag, &image);
        let request = Asked::Manifest(tag);
        let ended = polled(Box::pin(world.ask(NAME, request.clone())), polls).await;
        assert_eq!(world.ask(NAME, request).await, Ok(image.bytes.to_vec()), "after {polls}");
        world.tasks_at_most(idle).await;
        let gets = fake.log().of(Kind::Manifest).gets().about(&format!("v{polls}"));
        gets.filter(|entry| entry.status == 200).expect(1, "fetched once");
        if ended.is_some() {
            println!("a cold tag: dropped after every number of polls up to {polls}");
            return world.finish().await;
        }
    }
    panic!("a request needs fewer polls");
}

/// Sends the request, reads so many bytes of the answer, and hangs up.
async fn hang_up_after(client: &Client, path: &str, bytes: usize) -> usize {
    let mut connection = client.connect().await;
    connection.send(&client.get(path).bytes()).await;
    connection.read_up_to(bytes).await.len()
}

#[tokio::test]
async fn a_client_may_hang_up_at_every_byte_of_a_small_answer() {
    let (fake, world) = scene().await;
    let image = fresh(&fake, "small", 0);
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let path = format!("/v2/{NAME}/manifests/{}", image.digest);
    let whole = hang_up_after(&client, &path, image.bytes.len() + 400).await;
    assert!(whole > image.bytes.len(), "there is a head too");
    for bytes in 0..whole {
        assert_eq!(hang_up_after(&client, &path, bytes).await, bytes);
    }
    assert_eq!(client.get(&path).expect(200).await.body, image.bytes);
    let mine = |connections: f64| connections < 1.5;
    let no_others =
        |metrics: &crate::support::world::Metrics| mine(metrics.sum("roadstead_connections", &[]));
    world.metrics_where("the connections to end", no_others).await;
    world.finish().await;
}

#[tokio::test]
async fn a_client_may_hang_up_at_the_edges_of_a_cold_blob() {
    let (fake, world) = scene().await;
    let client = world.client();
    let (block, size) = (64 * 1024, LAYER);
    let edges = [block, size - block, 2 * block, size];
    let near = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
    for (number, body_bytes) in near.chain([0, 1, 2]).enumerate() {
        let image = fresh(&fake, "edges", number);
        client.manifest(NAME, "latest").expect(200).await;
        let blob = &image.blobs[1];
        let body = client.blob(NAME, &blob.digest).open().await;
        let mut body = body;
        body.take(to_u64(body_bytes.min(size))).await;
        drop(body);
        let again = client.blob(NAME, &blob.digest).open().await;
        again.hashed().await.is_whole(&blob.digest, blob.len());
        world.downloads_over().await;
        assert!(fake.blob_bytes(&blob.digest) <= blob.len(), "fetched twice");
    }
    world.finish().await;
}

/// The client hangs up while upstream is being asked for each of the things that an answer needs.
#[tokio::test]
async fn a_client_may_hang_up_at_every_question_to_upstream() {
    let (fake, world) = scene().await;
    let client = world.client();
    let idle = world.idle_tasks().await;
    let stages = [
        ("the token", When::token().early(), false),
        ("the manifest", When::manifest().get(), false),
        ("the refusal before the token", When::manifest().get().early(), false),
        ("the blob", When::blob().get(), true),
        ("the store behind the redirect", When::store().get(), true),
        ("the middle of the body", When::store().get(), true),
    ];
    for (number, (what, when, of_blob)) in stages.into_iter().enumerate() {
        let image = fresh(&fake, what, number);
        let path = if of_blob {
            client.manifest(NAME, "latest").expect(200).await;
            format!("/v2/{NAME}/blobs/{}", image.blobs[1].digest)
        } else {
            format!("/v2/{NAME}/manifests/latest")
        };
        fake.expire_tokens();
        let gate = Gate::new();
        let then = match what {
            "the middle of the body" => Then::gate_at(150_000, &gate),
            _ => Then::hold(&gate),
        };
        let rule = fake.rule(when.once(), then);
        let mut connection = client.connect().await;
        connection.send(&client.get(&path).bytes()).await;
        gate.reached().await;
        drop(connection);
        gate.open();
        let right = if of_blob { image.blobs[1].bytes() } else { image.bytes.clone() };
        assert!(client.get(&path).expect(200).await.body == right, "{what}: other bytes");
        rule.expect_hit();
        fake.remove(&rule);
        world.downloads_over().await;
        if of_blob {
            let blob = &image.blobs[1];
            assert!(fake.blob_bytes(&blob.digest) <= blob.len(), "{what}: fetched twice");
        }
    }
    // The connections of the clients that are gone have tasks of their own, which end with them.
    world.tasks_at_most(idle).await;
    world.finish().await;
}
