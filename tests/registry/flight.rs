//! One download per blob: bytes flow as they come, to everybody, and never a wrong one to the end.

use futures_util::future::join_all;

use crate::support::client::End;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Edit, Fake, Framing, Hidden, Kind, Mode, RangeMode, Then, When};
use crate::support::gate::{Gate, within};
use crate::support::pull::is_blob;
use crate::support::world::World;

const NAME: &str = "team/app";

/// An image with one large layer; its manifest is in the cache and its blobs are not.
async fn cold(size: u64) -> (Fake, World, Blob) {
    let blob = Blob::synthetic(64, size);
    let image = Image::build("flight").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    (fake, world, blob)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_on_one_cold_blob_are_one_download() {
    let (fake, world, blob) = cold(64 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let client = world.client();
    let mut bodies = Vec::new();
    for _ in 0..16 {
        bodies.push(client.blob(NAME, &blob.digest).open().await);
    }
    gate.open();
    let all = bodies.into_iter().map(|body| tokio::task::spawn(body.hashed()));
    for body in join_all(all).await {
        body.expect("the reader does not panic").is_whole(&blob.digest, blob.len());
    }
    fake.log().of(Kind::Blob).expect(1, "one download");
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len());
    let mark = fake.mark();
    client.blob(NAME, &blob.digest).open().await.hashed().await.is_whole(&blob.digest, blob.len());
    fake.since(mark).expect_none("it is here now");
    world.finish().await;
}

#[tokio::test]
async fn the_first_byte_arrives_while_upstream_is_still_sending() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let mut body = world.client().blob(NAME, &blob.digest).open().await;
    assert_eq!(body.status, 200);
    assert_eq!(body.take(512 * 1024).await, blob.data.slice(0..512 * 1024));
    assert_eq!(fake.blob_bytes(&blob.digest), MIB, "upstream has sent a quarter");
    gate.open();
    assert_eq!(body.rest().await.end, End::Clean);
    world.finish().await;
}

#[tokio::test]
async fn a_late_joiner_starts_at_once_with_what_is_there() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(2 * MIB, &gate));
    let first = world.client().blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    let mut late = world.client().blob(NAME, &blob.digest).open().await;
    assert!(late.header("Cache-Status").is_some_and(|text| text.contains("collapsed")));
    assert_eq!(late.take(MIB).await, blob.data.slice(0..MIB));
    gate.open();
    first.hashed().await.is_whole(&blob.digest, blob.len());
    assert_eq!(late.rest().await.body, blob.data.slice(MIB..4 * MIB));
    fake.log().of(Kind::Blob).expect(1, "one download");
    world.finish().await;
}

#[tokio::test]
async fn the_download_outlives_the_client_that_began_it() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let mut leader = world.client().blob(NAME, &blob.digest).open().await;
    leader.take(1000).await;
    gate.reached().await;
    drop(leader);
    gate.open();
    fake.quiet().await;
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len());
    let body = world.client().blob(NAME, &blob.digest).open().await;
    body.hashed().await.is_whole(&blob.digest, blob.len());
    fake.log().of(Kind::Blob).expect(1, "one download");
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest));
    world.finish().await;
}

#[tokio::test]
async fn a_follower_goes_on_when_the_leader_leaves() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let mut leader = world.client().blob(NAME, &blob.digest).open().await;
    leader.take(1000).await;
    let mut follower = world.client().blob(NAME, &blob.digest).open().await;
    follower.take(1000).await;
    drop(leader);
    gate.open();
    let rest = follower.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()), "the follower got other bytes");
    fake.log().of(Kind::Blob).expect(1, "one download");
    world.finish().await;
}

#[tokio::test]
async fn a_reader_that_stops_reading_slows_nobody() {
    let (fake, world, blob) = cold(32 * MIB).await;
    let mut slow = world.client().blob(NAME, &blob.digest).open().await;
    slow.take(1000).await;
    let fast = world.client().blob(NAME, &blob.digest).open().await;
    fast.hashed().await.is_whole(&blob.digest, blob.len());
    let rest = slow.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()), "the slow reader got other bytes");
    fake.log().of(Kind::Blob).expect(1, "one download");
    world.finish().await;
}

#[tokio::test]
async fn a_corrupt_body_never_ends_cleanly_and_is_not_stored() {
    for at in [0, 100_000, MIB - 1] {
        let (fake, world, blob) = cold(MIB).await;
        let gate = Gate::new();
        fake.rule(When::blob(), Then::corrupt_at(at));
        fake.rule(When::blob(), Then::gate_at(1000, &gate));
        let client = world.client();
        let opened =
            join_all((0..4).map(|_| async { client.blob(NAME, &blob.digest).send().await }));
        let (bodies, ()) = tokio::join!(opened, async {
            gate.reached().await;
            gate.open();
        });
        for body in bodies {
            let clean = body.status == 200 && body.end == End::Clean;
            assert!(!clean, "a corrupt body ended cleanly with {} bytes", body.body.len());
            assert_ne!(body.end, End::Reset, "a broken body ends with FIN");
        }
        world.downloads_over().await;
        assert!(!world.has_stored(&blob.digest));
        world.finish().await;
    }
}

#[tokio::test]
async fn a_corrupt_small_blob_is_an_error_before_headers() {
    let blob = Blob::layer("small", 60_000);
    let image = Image::build("small").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let rule = fake.rule(When::blob(), Then::corrupt_at(30_000));
    let reply = world.client().blob(NAME, &blob.digest).send().await;
    assert_eq!(reply.status, 502, "{reply:?}");
    fake.remove(&rule);
    is_blob(&world.client().blob(NAME, &blob.digest).expect(200).await, &blob);
    let metrics = world.metrics().await;
    assert!(metrics.sum("roadstead_digest_mismatches_total", &[]) >= 1.0, "{:?}", metrics.names());
    world.finish().await;
}

#[tokio::test]
async fn a_body_that_ends_early_never_ends_cleanly() {
    let faults = [
        vec![Then::close_at(300_000)],
        vec![Then::reset_at(300_000)],
        vec![Then::chunked_end_at(300_000)],
        vec![Then::edit(Edit::LengthOff(-5))],
        vec![Then::edit(Edit::LengthOff(5))],
        vec![Then::edit(Edit::Append("more".into()))],
        vec![Then::edit(Edit::Framing(Framing::UntilClose)), Then::close_at(300_000)],
        vec![Then::edit(Edit::Framing(Framing::Claim(0)))],
        vec![Then::edit(Edit::Framing(Framing::Twice(3)))],
        vec![Then::reply(crate::support::fake::Reply::html(200))],
    ];
    for fault in faults {
        let what = format!("{fault:?}");
        let (fake, world, blob) = cold(MIB).await;
        // However often it tries: there is nothing else to be had.
        fake.switch(|switch| switch.range = RangeMode::Ignore);
        let rules: Vec<_> = fault.into_iter().map(|then| fake.rule(When::blob(), then)).collect();
        let body = world.client().blob(NAME, &blob.digest).open().await;
        let hashed = within("the end of a broken body", body.hashed()).await;
        let clean = hashed.status == 200 && hashed.end == End::Clean;
        assert!(!clean || hashed.digest == blob.digest, "{what} ended cleanly: {hashed:?}");
        assert_ne!(hashed.end, End::Reset, "{what}");
        assert_eq!(world.has_stored(&blob.digest), clean, "{what}");
        rules.iter().for_each(|rule| fake.remove(rule));
        let again = world.client().blob(NAME, &blob.digest).open().await;
        again.hashed().await.is_whole(&blob.digest, blob.len());
        world.finish().await;
    }
}

#[tokio::test]
async fn a_chunked_upstream_without_length_is_served_with_one() {
    for framing in [Framing::Chunked, Framing::UntilClose] {
        let (fake, world, blob) = cold(MIB).await;
        fake.rule(When::blob(), Then::edit(Edit::Framing(framing)));
        is_blob(&world.client().blob(NAME, &blob.digest).expect(200).await, &blob);
        world.finish().await;
    }
}

#[tokio::test]
async fn a_stalled_upstream_is_given_up() {
    let blob = Blob::synthetic(64, MIB);
    let image = Image::build("stall").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let limits = "[upstream.\"docker.io\".limits]\nidle_body = \"300ms\"\nheaders = \"300ms\"\n";
    let world = World::builder().upstream("docker.io", &fake).tables(limits).start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    for at in [0, 500_000] {
        // Either what is missing is fetched by another request, or the body is cut; and it is never wrong.
        let stall = fake.rule(When::blob(), Then::stall_at(at));
        let body = world.client().blob(NAME, &blob.digest).open().await;
        let hashed = body.hashed().await;
        if hashed.status == 200 && hashed.end == End::Clean {
            hashed.is_whole(&blob.digest, blob.len());
            world.downloads_over().await;
            let file = world.blob_file(&blob.digest);
            std::fs::remove_file(file).expect("a whole download is stored");
        }
        stall.expect_hit();
        fake.remove(&stall);
    }
    let hang = fake.rule(When::blob(), Then::Hang);
    let reply = world.client().blob(NAME, &blob.digest).send().await;
    assert!([502, 504].contains(&reply.status), "{reply:?}");
    hang.expect_hit();
    fake.remove(&hang);
    let body = world.client().blob(NAME, &blob.digest).open().await;
    body.hashed().await.is_whole(&blob.digest, blob.len());
    world.finish().await;
}

#[tokio::test]
async fn errors_before_the_first_byte_are_tried_again() {
    let (fake, world, blob) = cold(MIB).await;
    let burst = fake.rule(When::blob().times(2), Then::status(503));
    let body = world.client().blob(NAME, &blob.digest).open().await;
    body.hashed().await.is_whole(&blob.digest, blob.len());
    assert_eq!(burst.hits(), 2);
    world.finish().await;
}

#[tokio::test]
async fn the_same_digest_through_several_repositories_is_one_download() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let copy = Image::build("copy").layer(blob.clone()).finish();
    fake.push("team/copy", "latest", &copy);
    let client = world.client();
    client.manifest("team/copy", "latest").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob().get(), Then::gate_at(MIB, &gate));
    let one = client.blob(NAME, &blob.digest).open().await;
    let two = client.blob("team/copy", &blob.digest).open().await;
    gate.open();
    let (one, two) = tokio::join!(one.hashed(), two.hashed());
    one.is_whole(&blob.digest, blob.len());
    two.is_whole(&blob.digest, blob.len());
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len());
    world.finish().await;
}

#[tokio::test]
async fn a_download_that_ends_while_the_next_client_is_checked_is_not_repeated() {
    let (fake, world, blob) = cold(MIB).await;
    fake.push_blob("team/copy", &blob);
    let (client, gate) = (world.client(), Gate::new());
    fake.rule(When::blob().head().repository("team/copy"), Then::hold(&gate));
    let late = client.blob("team/copy", &blob.digest);
    let (body, ()) = tokio::join!(async { late.open().await.hashed().await }, async {
        gate.reached().await;
        let first = client.blob(NAME, &blob.digest).open().await;
        first.hashed().await.is_whole(&blob.digest, blob.len());
        world.downloads_over().await;
        gate.open();
    });
    body.is_whole(&blob.digest, blob.len());
    fake.quiet().await;
    assert_eq!(
        fake.blob_bytes(&blob.digest),
        blob.len(),
        "it was here before it was asked for again"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_source_that_is_refused_is_replaced_by_the_next_ones() {
    let (fake, world, blob) = cold(4 * MIB).await;
    let copy = Image::build("copy").layer(blob.clone()).finish();
    fake.push("team/copy", "latest", &copy);
    let client = world.client();
    client.manifest("team/copy", "latest").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob().repository(NAME), Then::hold(&gate));
    fake.rule(When::blob().repository(NAME), Then::status(403));
    let client_one = client.clone();
    let refused = client_one.blob(NAME, &blob.digest);
    let accepted = client.blob("team/copy", &blob.digest);
    let (one, two, ()) = tokio::join!(
        refused.send(),
        async {
            // The refused one leads; the other joins while it waits for upstream.
            gate.reached().await;
            accepted.open().await.hashed().await
        },
        async {
            gate.reached().await;
            world.holds_clients(2).await;
            gate.open();
        }
    );
    two.is_whole(&blob.digest, blob.len());
    assert!([403, 404].contains(&one.status), "{one:?}");
    world.finish().await;
}

#[tokio::test]
async fn an_absent_blob_is_absent_for_everybody_who_asked() {
    let (fake, world, blob) = cold(MIB).await;
    fake.delete_blob(NAME, &blob.digest);
    let client = world.client();
    for reply in
        join_all((0..4).map(|_| async { client.blob(NAME, &blob.digest).send().await })).await
    {
        assert_eq!(reply.status, 404, "{reply:?}");
        reply.error("BLOB_UNKNOWN");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_denied_blob_opens_no_door() {
    let (fake, world, blob) = cold(MIB).await;
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
    });
    fake.private(NAME, &["somebody"]);
    let reply = world.client().blob(NAME, &blob.digest).send().await;
    assert!([403, 404].contains(&reply.status), "{reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn every_place_to_cut_is_survived() {
    let edges = [0, 1, 65_535, 65_536, 65_537, MIB - 65_537, MIB - 65_536, MIB - 1];
    for at in edges {
        let (fake, world, blob) = cold(MIB).await;
        let cut = fake.rule(When::blob().once(), Then::close_at(at));
        let first = world.client().blob(NAME, &blob.digest).open().await.hashed().await;
        cut.expect_hit();
        if first.status == 200 && first.end == End::Clean {
            first.is_whole(&blob.digest, blob.len());
        }
        let again = world.client().blob(NAME, &blob.digest).open().await;
        again.hashed().await.is_whole(&blob.digest, blob.len());
        world.finish().await;
    }
}
