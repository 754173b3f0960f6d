//! An upstream that breaks in the middle: the answer goes on, and no client notices but for time.

use futures_util::future::join_all;

use crate::support::client::End;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Delivery, Fake, Kind, LocationForm, RangeMode, Then, When};
use crate::support::gate::Gate;
use crate::support::world::World;

const NAME: &str = "team/app";
const COPY: &str = "team/copy";
/// An upstream that is silent for so long has stalled.
const LIMITS: &str = "[upstream.\"docker.io\".limits]\nidle_body = \"300ms\"\n";

async fn cold(size: u64) -> (Fake, World, Blob) {
    let blob = Blob::synthetic(73, size);
    let fake = Fake::start().await;
    for name in [NAME, COPY] {
        fake.push(name, "latest", &Image::build(name).layer(blob.clone()).finish());
    }
    let world = World::builder().upstream("docker.io", &fake).tables(LIMITS).start().await;
    for name in [NAME, COPY] {
        world.client().manifest(name, "latest").expect(200).await;
    }
    (fake, world, blob)
}

/// Two clients, one from the beginning and one that comes when bytes flow, get all of it.
async fn both_get_all(fake: &Fake, world: &World, blob: &Blob) {
    let client = world.client();
    let early = client.blob(NAME, &blob.digest).open().await;
    let late = client.blob(COPY, &blob.digest).open().await;
    let (early, late) = tokio::join!(early.hashed(), late.hashed());
    early.is_whole(&blob.digest, blob.len());
    late.is_whole(&blob.digest, blob.len());
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest), "{}", fake.log().lines());
}

#[tokio::test]
async fn every_break_at_every_edge_is_mended() {
    const SIZE: u64 = 3 * MIB / 2;
    const TAIL: u64 = SIZE - 65_536;
    let edges = [
        0,
        1,
        65_535,
        65_536,
        65_537,
        524_287,
        524_288,
        524_289,
        MIB - 1,
        MIB,
        MIB + 1,
        TAIL - 1,
        TAIL,
        TAIL + 1,
        SIZE - 30_000,
        SIZE - 1,
    ];
    let kinds: [fn(u64) -> Then; 4] =
        [Then::close_at, Then::reset_at, Then::stall_at, Then::chunked_end_at];
    for kind in kinds {
        for at in edges {
            let (fake, world, blob) = cold(SIZE).await;
            let fault = fake.rule(When::blob().get().once(), kind(at));
            both_get_all(&fake, &world, &blob).await;
            fault.expect_hit();
            // A reset takes with it what lies in the sockets.
            let lost = if format!("{:?}", kind(at)).contains("Reset") { SIZE } else { SIZE / 20 };
            assert!(fake.blob_bytes(&blob.digest) <= SIZE + lost, "at {at}");
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_again_and_again_is_mended_while_it_gets_on() {
    let (fake, world, blob) = cold(24 * MIB).await;
    let fault = fake.rule(When::blob().get(), Then::close_at(2 * MIB));
    both_get_all(&fake, &world, &blob).await;
    assert!(fault.hits() >= 10, "{} breaks", fault.hits());
    assert!(fake.blob_bytes(&blob.digest) <= blob.len() + blob.len() / 20);
    world.finish().await;
}

#[tokio::test]
async fn an_expired_signed_url_is_asked_for_again() {
    let (fake, world, blob) = cold(4 * MIB).await;
    fake.switch(|switch| {
        switch.delivery = Delivery::Redirect { status: 307, form: LocationForm::Absolute };
    });
    let gate = Gate::new();
    let cut = Then::edit(crate::support::fake::Edit::Fault(crate::support::fake::Fault::GateAt(
        MIB,
        gate.clone(),
    )));
    fake.rule(When::store().once(), cut);
    fake.rule(When::store().once(), Then::close_at(2 * MIB));
    let body = world.client().blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    fake.expire_urls();
    gate.open();
    body.hashed().await.is_whole(&blob.digest, blob.len());
    let asked = fake.log().of(Kind::Blob).gets();
    assert_eq!(asked.len(), 2, "the registry is asked for a fresh URL: {}", asked.lines());
    world.finish().await;
}

#[tokio::test]
async fn trouble_while_it_is_mended_is_survived() {
    for status in [500, 502, 503, 429] {
        let (fake, world, blob) = cold(4 * MIB).await;
        fake.rule(When::blob().get().ranged(false).once(), Then::close_at(MIB));
        let trouble = fake.rule(When::blob().get().ranged(true).times(2), Then::status(status));
        both_get_all(&fake, &world, &blob).await;
        trouble.expect_hit();
        world.finish().await;
    }
}

#[tokio::test]
async fn a_continuation_that_is_the_whole_or_something_else_is_coped_with() {
    for mode in RangeMode::UNUSABLE {
        let (fake, world, blob) = cold(4 * MIB).await;
        fake.switch(|switch| switch.range = mode);
        fake.rule(When::blob().get().once(), Then::close_at(MIB + 5));
        both_get_all(&fake, &world, &blob).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn continuations_in_pieces_are_taken_unless_they_are_crumbs() {
    let (fake, world, blob) = cold(12 * MIB).await;
    fake.switch(|switch| switch.range = RangeMode::Short(2 * MIB));
    fake.rule(When::blob().get().once(), Then::close_at(MIB));
    both_get_all(&fake, &world, &blob).await;
    world.finish().await;
    let (fake, world, blob) = cold(12 * MIB).await;
    fake.switch(|switch| switch.range = RangeMode::Short(1000));
    fake.rule(When::blob().get().once(), Then::close_at(MIB));
    let body = world.client().blob(NAME, &blob.digest).open().await.hashed().await;
    assert_eq!((body.status, body.end), (200, End::Cut));
    world.downloads_over().await;
    let asked = fake.log().of(Kind::Blob).gets().len();
    assert!(asked <= 20, "{asked} requests that brought next to nothing");
    world.finish().await;
}

#[tokio::test]
async fn another_whole_under_the_same_name_is_a_clean_failure() {
    let (fake, world, blob) = cold(4 * MIB).await;
    fake.switch(|switch| switch.range = RangeMode::WrongTotal);
    let cut = fake.rule(When::blob().get().once(), Then::close_at(MIB));
    let body = world.client().blob(NAME, &blob.digest).open().await.hashed().await;
    cut.expect_hit();
    assert_eq!((body.status, body.end), (200, End::Cut));
    world.downloads_over().await;
    assert!(!world.has_stored(&blob.digest));
    fake.switch(|switch| switch.range = RangeMode::Honour);
    both_get_all(&fake, &world, &blob).await;
    world.finish().await;
}

#[tokio::test]
async fn a_continuation_with_wrong_bytes_is_a_clean_failure_and_is_forgotten() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let cut = fake.rule(When::blob().get().ranged(false).once(), Then::close_at(3 * MIB));
    let wrong = fake.rule(When::blob().get().ranged(true).once(), Then::corrupt_at(1000));
    let bodies =
        join_all((0..4).map(|_| async {
            world.client().blob(NAME, &blob.digest).open().await.hashed().await
        }));
    for body in bodies.await {
        assert_eq!((body.status, body.end), (200, End::Cut), "never a wrong byte to the end");
    }
    cut.expect_hit();
    wrong.expect_hit();
    world.downloads_over().await;
    assert!(!world.has_stored(&blob.digest));
    both_get_all(&fake, &world, &blob).await;
    world.finish().await;
}

#[tokio::test]
async fn what_one_repository_refuses_another_one_continues() {
    let (fake, world, blob) = cold(8 * MIB).await;
    let (client, gate) = (world.client(), Gate::new());
    fake.rule(When::blob().get().once(), Then::gate_at(MIB, &gate));
    fake.rule(When::blob().get().once(), Then::close_at(2 * MIB));
    let first = client.blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    let second = client.blob(COPY, &blob.digest).open().await;
    fake.delete_blob(NAME, &blob.digest);
    gate.open();
    let (first, second) = tokio::join!(first.hashed(), second.hashed());
    second.is_whole(&blob.digest, blob.len());
    assert_eq!((first.status, first.end), (200, End::Cut), "its repository has it no more");
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest));
    world.finish().await;
}

#[tokio::test]
async fn a_download_without_clients_is_mended_too() {
    let (fake, world, blob) = cold(8 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob().get().once(), Then::gate_at(MIB, &gate));
    fake.rule(When::blob().get().once(), Then::reset_at(2 * MIB));
    let mut body = world.client().blob(NAME, &blob.digest).open().await;
    body.take(1000).await;
    gate.reached().await;
    drop(body);
    gate.open();
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest));
    world.finish().await;
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_given_up_and_taken_again() {
    let (fake, world, blob) = cold(8 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob().get().once(), Then::gate_at(4 * MIB, &gate));
    let body = world.client().blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    fake.stop().await;
    let body = body.hashed().await;
    assert_eq!((body.status, body.end), (200, End::Cut));
    world.downloads_over().await;
    fake.switch_on().await;
    both_get_all(&fake, &world, &blob).await;
    world.finish().await;
}

#[tokio::test]
async fn a_restart_in_the_middle_continues() {
    let (fake, mut world, blob) = cold(24 * MIB).await;
    let gate = Gate::new();
    let held = fake.rule(When::blob().get(), Then::gate_at(12 * MIB, &gate));
    let mut body = world.client().blob(NAME, &blob.digest).open().await;
    // What goes on after a stall is held too.
    let later = fake.rule(When::blob().get().ranged(true), Then::hold(&gate));
    body.take(12 * MIB - 300_000).await;
    gate.reached().await;
    drop(body);
    world.restart().await;
    gate.open();
    fake.remove(&held);
    fake.remove(&later);
    let mark = fake.mark();
    both_get_all(&fake, &world, &blob).await;
    let asked = fake.since(mark).of(Kind::Blob).gets();
    asked.expect(1, "one request for the rest");
    assert!(asked.0[0].header("range").is_some(), "{}", asked.lines());
    assert!(fake.blob_bytes(&blob.digest) <= blob.len() + blob.len() / 20);
    world.finish().await;
}

#[tokio::test]
async fn what_was_left_is_continued_after_an_outage_and_not_when_it_is_wrong() {
    let (fake, world, blob) = cold(24 * MIB).await;
    let gate = Gate::new();
    let held = fake.rule(When::blob().get().once(), Then::gate_at(12 * MIB, &gate));
    let corrupt = fake.rule(When::blob().get().once(), Then::corrupt_at(5 * MIB));
    let body = world.client().blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    fake.stop().await;
    assert_eq!(body.hashed().await.end, End::Cut);
    world.downloads_over().await;
    gate.open();
    fake.remove(&held);
    corrupt.expect_hit();
    fake.switch_on().await;
    let mark = fake.mark();
    let wrong = world.client().blob(NAME, &blob.digest).open().await.hashed().await;
    assert_eq!(wrong.end, End::Cut, "what was left was wrong");
    assert!(fake.since(mark).of(Kind::Blob).sent() <= 12 * MIB + MIB, "only the rest was fetched");
    world.downloads_over().await;
    both_get_all(&fake, &world, &blob).await;
    world.finish().await;
}
