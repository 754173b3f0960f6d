//! Start and stop: clean, with running answers finished or cut in time, and never a damaged store.

use crate::support::client::End;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Kind, Then, When};
use crate::support::gate::{Gate, within};
use crate::support::pull::pull;
use crate::support::world::World;

const NAME: &str = "team/app";

async fn with_blob(size: u64, drain: &str) -> (Fake, World, Image) {
    let fake = Fake::start().await;
    let image = Image::build("stop").layer(Blob::synthetic(9, size)).finish();
    fake.push(NAME, "latest", &image);
    let drain = format!("{drain:?}");
    let world = World::builder().upstream("docker.io", &fake).set("drain", &drain).start().await;
    (fake, world, image)
}

#[tokio::test]
async fn a_running_answer_is_finished_before_the_stop() {
    let (fake, mut world, image) = with_blob(4 * MIB, "20s").await;
    let blob = &image.blobs[1];
    world.client().manifest(NAME, "latest").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let client = world.client();
    let mut body = client.blob(NAME, &blob.digest).open().await;
    body.take(1000).await;
    let stopping = world.stopping();
    let reading = async {
        gate.reached().await;
        gate.open();
        body.rest().await
    };
    let (left, rest) = tokio::join!(within("the stop", stopping), reading);
    assert_eq!(left, 0);
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()));
    let refused = tokio::net::TcpStream::connect(client.address()).await;
    assert!(refused.is_err(), "nobody listens any more");
    world.start_again().await;
    let mark = fake.mark();
    pull(&world.client(), NAME, "latest", &image).await;
    fake.since(mark)
        .of(Kind::Blob)
        .about(&blob.digest)
        .expect_none("it was stored before the stop");
    world.finish().await;
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_and_not_stored() {
    let (fake, mut world, image) = with_blob(4 * MIB, "200ms").await;
    let blob = &image.blobs[1];
    world.client().manifest(NAME, "latest").expect(200).await;
    let stall = fake.rule(When::blob(), Then::stall_at(MIB));
    let mut body = world.client().blob(NAME, &blob.digest).open().await;
    body.take(1000).await;
    let left = within("the stop", world.stopping()).await;
    assert_eq!(left, 0);
    let rest = body.rest().await;
    assert_ne!(rest.end, End::Clean);
    assert!(!world.has_stored(&blob.digest));
    fake.remove(&stall);
    world.start_again().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_stop_at_any_moment_of_a_download_leaves_no_partial_file() {
    // In the middle; when upstream has sent all and the hash is perhaps not done; when the client has its last byte and the store
    // perhaps not yet its file.
    for round in 0..30 {
        let (fake, mut world, image) = with_blob(MIB, "0s").await;
        let blob = &image.blobs[1];
        world.client().manifest(NAME, "latest").expect(200).await;
        let gate = Gate::new();
        let client = world.client();
        match round % 3 {
            0 => {
                fake.rule(When::blob(), Then::gate_at(MIB / 30 * round, &gate));
                let request = client.blob(NAME, &blob.digest);
                tokio::select! {
                    () = gate.reached() => {}
                    _ = request.open() => {}
                }
            }
            1 => {
                client.blob(NAME, &blob.digest).range("0-0").expect(206).await;
                fake.quiet().await;
            }
            _ => drop(client.blob(NAME, &blob.digest).open().await.hashed().await),
        }
        assert_eq!(within("the stop", world.stopping()).await, 0);
        assert_eq!(world.partial_files(), Vec::<std::path::PathBuf>::new(), "round {round}");
        world.finish().await;
    }
}

#[tokio::test]
async fn idle_connections_do_not_hold_the_stop() {
    let (_fake, world, _image) = with_blob(1000, "20s").await;
    let idle = world.client().connect().await;
    let kept = world.client().get("/v2/").open().await;
    let (_reply, kept) = kept.rest_and_connection().await;
    let before = tokio::time::Instant::now();
    world.finish().await;
    assert!(before.elapsed().as_secs() < 10, "took {:?}", before.elapsed());
    drop((idle, kept));
}

#[tokio::test]
async fn it_starts_while_upstream_is_down_and_pulls_when_it_comes() {
    let fake = Fake::start().await;
    let image = Image::single("down at start");
    fake.push(NAME, "latest", &image);
    fake.stop().await;
    let settings = "retry_after_failure = \"0s\"";
    let world = World::builder().upstream_with("docker.io", &fake, settings).start().await;
    world.client().get("/readyz").expect(200).await;
    world.client().manifest(NAME, "latest").expect(502).await;
    fake.switch_on().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_leftover_of_a_crash_is_removed_and_never_served() {
    let (_fake, mut world, image) = with_blob(1000, "1s").await;
    pull(&world.client(), NAME, "latest", &image).await;
    let left = world.stopping().await;
    assert_eq!(left, 0);
    let blob = Blob::layer("half", 1000);
    let (algorithm, hex) = blob.digest.split_once(':').expect("a digest has a colon");
    let partial = world.data().join("partial").join(format!("d-{algorithm}-{hex}"));
    std::fs::write(&partial, b"half of it").expect("the directory is ours");
    world.start_again().await;
    assert!(world.partial_files().is_empty());
    world.client().blob(NAME, &blob.digest).expect(404).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_file_that_vanished_is_fetched_again() {
    let (fake, mut world, image) = with_blob(100_000, "1s").await;
    pull(&world.client(), NAME, "latest", &image).await;
    for restart in [false, true] {
        let blob = &image.blobs[1];
        world.downloads_over().await;
        std::fs::remove_file(world.blob_file(&blob.digest)).expect("it was stored");
        if restart {
            std::fs::remove_file(world.blob_file(&image.digest)).expect("it was stored");
            world.restart().await;
        }
        pull(&world.client(), NAME, "latest", &image).await;
        world.downloads_over().await;
        assert!(world.has_stored(&blob.digest) && world.has_stored(&image.digest));
    }
    fake.log()
        .of(Kind::Blob)
        .about(&image.blobs[1].digest)
        .expect(3, "once, and once for each loss");
    world.finish().await;
}

#[tokio::test]
async fn a_damaged_manifest_file_heals() {
    let (_fake, mut world, image) = with_blob(1000, "1s").await;
    pull(&world.client(), NAME, "latest", &image).await;
    let left = world.stopping().await;
    assert_eq!(left, 0);
    let file = world.blob_file(&image.digest);
    let mut bytes = std::fs::read(&file).expect("it was stored");
    bytes[10] ^= 1;
    std::fs::remove_file(&file).expect("it is ours");
    std::fs::write(&file, bytes).expect("it is ours");
    world.start_again().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_short_blob_file_heals() {
    let (_fake, mut world, image) = with_blob(100_000, "1s").await;
    pull(&world.client(), NAME, "latest", &image).await;
    let left = world.stopping().await;
    assert_eq!(left, 0);
    let file = world.blob_file(&image.blobs[1].digest);
    std::fs::remove_file(&file).expect("it was stored");
    std::fs::write(&file, b"short").expect("it is ours");
    world.start_again().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}
