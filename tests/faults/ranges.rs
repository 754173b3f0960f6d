//! Ranges of a blob that is not here: right at once, wherever they lie, and upstream pays for each byte once.

use futures_util::future::join_all;

use crate::support::client::{Client, End, Response};
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Delivery, Fake, Kind, LocationForm, RangeMode, Then, When};
use crate::support::gate::Gate;
use crate::support::world::World;

const NAME: &str = "team/app";

async fn cold(size: u64) -> (Fake, World, Blob) {
    let blob = Blob::synthetic(71, size);
    let image = Image::build("cold ranges").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    (fake, world, blob)
}

#[track_caller]
fn is_part(reply: &Response, blob: &Blob, start: u64, end: u64) {
    assert_eq!((reply.status, reply.end), (206, End::Clean), "{start}..{end}: {:?}", reply.headers);
    let want = format!("bytes {start}-{}/{}", end - 1, blob.len());
    assert_eq!(reply.must("Content-Range"), want);
    assert!(reply.body == blob.data.slice(start..end), "{start}..{end} has other bytes");
}

async fn read(client: &Client, blob: &Blob, start: u64, end: u64) {
    let range = format!("{start}-{}", end - 1);
    is_part(&client.blob(NAME, &blob.digest).range(&range).send().await, blob, start, end);
}

/// The whole is stored, and upstream was paid once; what was on the way when a connection was cut comes on top.
async fn ends_fairly(fake: &Fake, world: World, blob: &Blob, what: &str) {
    paid_at_most(fake, world, blob, blob.len() / 20, what).await;
}

/// The same, with so many bytes on top.
async fn paid_at_most(fake: &Fake, world: World, blob: &Blob, more: u64, what: &str) {
    world.downloads_over().await;
    fake.quiet().await;
    assert!(world.has_stored(&blob.digest), "{what}: the cache wants the whole");
    let (sent, size) = (fake.blob_bytes(&blob.digest), blob.len());
    assert!(sent >= size && sent <= size + more, "{what}: {sent} bytes for a blob of {size}");
    world.finish().await;
}

/// A repeatable order of `0..count`.
fn shuffled(count: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..count).collect();
    let key = |n: &u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ 0x55;
    order.sort_by_key(key);
    order
}

#[tokio::test]
async fn parts_in_any_order_cost_upstream_each_byte_once() {
    let orders: [(&str, Vec<u64>); 3] = [
        ("in order", (0..48).collect()),
        ("reversed", (0..48).rev().collect()),
        ("shuffled", shuffled(48)),
    ];
    for (what, order) in orders {
        let (fake, world, blob) = cold(48 * MIB).await;
        for part in order {
            read(&world.client(), &blob, part * MIB, (part + 1) * MIB).await;
        }
        ends_fairly(&fake, world, &blob, what).await;
    }
}

#[tokio::test]
async fn small_ranges_here_and_there_cost_upstream_each_byte_once() {
    let (fake, world, blob) = cold(48 * MIB).await;
    for n in shuffled(200) {
        let start = n * 250_000 + n;
        read(&world.client(), &blob, start, start + 1 + n * 37 % 5000).await;
    }
    ends_fairly(&fake, world, &blob, "small ranges").await;
}

#[tokio::test]
async fn parallel_readers_of_a_chunk_each_cost_upstream_each_byte_once() {
    // As containerd fetches a layer: open-ended requests, each read for one chunk and then closed.
    let (fake, world, blob) = cold(64 * MIB).await;
    let client = world.client();
    let readers = (0..8u64).map(|n| {
        let request = client.blob(NAME, &blob.digest).range(&format!("{}-", n * 8 * MIB));
        let blob = &blob;
        async move {
            let mut body = request.open().await;
            assert_eq!(body.status, 206);
            for at in (0..8).map(|step| (n * 8 + step) * MIB) {
                assert!(body.take(MIB).await == blob.data.slice(at..at + MIB), "others at {at}");
            }
        }
    });
    join_all(readers).await;
    ends_fairly(&fake, world, &blob, "parallel readers").await;
}

#[tokio::test]
async fn a_footer_and_several_parts_at_once_cost_upstream_each_byte_once() {
    let (fake, world, blob) = cold(32 * MIB).await;
    let client = world.client();
    let footer = client.blob(NAME, &blob.digest).range("-51").send().await;
    is_part(&footer, &blob, blob.len() - 51, blob.len());
    let many = client.blob(NAME, &blob.digest).range("20000000-20000099,5-9,30000000-30000099");
    let many = many.expect(206).await;
    for (start, end) in [(20_000_000, 20_000_100), (5, 10), (30_000_000, 30_000_100)] {
        let part = blob.data.slice(start..end);
        assert!(many.body.windows(part.len()).any(|window| window == part), "{start}..{end}");
    }
    ends_fairly(&fake, world, &blob, "footer and parts").await;
}

#[tokio::test]
async fn a_plain_download_stays_one_request_without_a_range() {
    let (fake, world, blob) = cold(20 * MIB).await;
    let body = world.client().blob(NAME, &blob.digest).open().await;
    body.hashed().await.is_whole(&blob.digest, blob.len());
    world.downloads_over().await;
    let asked = fake.log().of(Kind::Blob).gets();
    asked.expect(1, "one download");
    assert_eq!(asked.0[0].header("range"), None);
    world.finish().await;
}

#[tokio::test]
async fn a_reader_far_ahead_does_not_wait_for_the_download() {
    let (fake, world, blob) = cold(64 * MIB).await;
    let (client, gate) = (world.client(), Gate::new());
    fake.rule(When::blob().ranged(false), Then::gate_at(MIB, &gate));
    let whole = client.blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    for start in [10 * MIB, 40 * MIB, 63 * MIB] {
        read(&client, &blob, start, start + MIB / 2).await;
    }
    assert_eq!(gate.arrivals(), 1, "the download still stands where it was held");
    gate.open();
    whole.hashed().await.is_whole(&blob.digest, blob.len());
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest));
    world.finish().await;
}

#[tokio::test]
async fn a_sequential_reader_far_ahead_gets_larger_and_larger_parts() {
    let (fake, world, blob) = cold(64 * MIB).await;
    let (client, gate) = (world.client(), Gate::new());
    fake.rule(When::blob().ranged(false), Then::gate_at(MIB, &gate));
    let whole = client.blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    let mut ahead = client.blob(NAME, &blob.digest).range(&format!("{}-", 16 * MIB)).open().await;
    for at in 16..62 {
        assert!(ahead.take(MIB).await == blob.data.slice(at * MIB..(at + 1) * MIB), "at {at} MiB");
    }
    let parts = fake.log().of(Kind::Blob).filter(|entry| entry.header("range").is_some()).len();
    assert!((3..=10).contains(&parts), "46 MiB came in {parts} parts");
    gate.open();
    whole.hashed().await.is_whole(&blob.digest, blob.len());
    assert!(ahead.rest().await.body == blob.data.slice(62 * MIB..64 * MIB));
    world.finish().await;
}

#[tokio::test]
async fn a_range_in_the_tail_has_its_headers_at_once_and_its_bytes_when_they_are_verified() {
    let (fake, world, blob) = cold(16 * MIB).await;
    let (client, gate) = (world.client(), Gate::new());
    fake.rule(When::blob().starting_at(2), Then::hold(&gate));
    let footer = client.blob(NAME, &blob.digest).range("-1000").open().await;
    assert_eq!(footer.status, 206);
    gate.open();
    let footer = footer.rest().await;
    assert_eq!((footer.end, footer.body), (End::Clean, blob.data.slice(16 * MIB - 1000..16 * MIB)));
    world.finish().await;

    let (fake, world, blob) = cold(16 * MIB).await;
    let wrong = fake.rule(When::blob().starting_at(2).once(), Then::corrupt_at(5000));
    let footer = world.client().blob(NAME, &blob.digest).range("-1000").send().await;
    wrong.expect_hit();
    assert_eq!((footer.status, footer.end), (206, End::Cut), "an end that cannot be verified");
    world.downloads_over().await;
    assert!(!world.has_stored(&blob.digest));
    let again = world.client().blob(NAME, &blob.digest).open().await;
    again.hashed().await.is_whole(&blob.digest, blob.len());
    world.finish().await;
}

#[tokio::test]
async fn an_upstream_that_gives_no_ranges_is_read_as_a_whole() {
    for mode in RangeMode::UNUSABLE {
        for redirect in [false, true] {
            let (fake, world, blob) = cold(16 * MIB).await;
            fake.switch(|switch| {
                switch.range = mode;
                if redirect {
                    let form = LocationForm::Absolute;
                    switch.delivery = Delivery::Redirect { status: 307, form };
                }
            });
            let client = world.client();
            for start in [9 * MIB, 3 * MIB, 15 * MIB + 1000, 0] {
                read(&client, &blob, start, start + MIB / 2).await;
            }
            world.downloads_over().await;
            assert!(world.has_stored(&blob.digest), "{mode:?}");
            let sent = fake.blob_bytes(&blob.digest);
            assert!(sent <= 2 * blob.len(), "{mode:?}: {sent} bytes");
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn a_part_that_breaks_is_fetched_again() {
    for fault in [Then::close_at(300_000), Then::reset_at(0), Then::status(503), Then::Hang] {
        let (fake, world, blob) = cold(32 * MIB).await;
        let (client, gate) = (world.client(), Gate::new());
        fake.rule(When::blob().ranged(false), Then::gate_at(MIB, &gate));
        let whole = client.blob(NAME, &blob.digest).open().await;
        gate.reached().await;
        // Hangs end only with the client's patience; the download comes by before that.
        let hangs = matches!(fault, Then::Hang);
        let rule = fake.rule(When::blob().ranged(true).once(), fault);
        let part = client.blob(NAME, &blob.digest).range(&format!("{}-{}", 20 * MIB, 21 * MIB - 1));
        let (part, ()) = tokio::join!(part.send(), async {
            if hangs {
                fake.wait_for("the part that hangs", |_log| rule.hits() > 0).await;
                gate.open();
            }
        });
        is_part(&part, &blob, 20 * MIB, 21 * MIB);
        rule.expect_hit();
        gate.open();
        whole.hashed().await.is_whole(&blob.digest, blob.len());
        world.finish().await;
    }
}

#[tokio::test]
async fn every_range_is_a_206_also_over_a_restart() {
    let (fake, mut world, blob) = cold(32 * MIB).await;
    // Slow enough for the download to be under way at each stop.
    let slow = fake.rule(When::blob(), Then::drip(64 * 1024, std::time::Duration::from_millis(10)));
    for round in 0..3u64 {
        for n in 0..2 {
            let start = ((round * 7 + n * 13) % 31) * MIB + 1000;
            let body = world.client().blob(NAME, &blob.digest);
            let body = body.range(&format!("{start}-{}", start + 999)).open().await;
            assert_eq!(body.status, 206, "round {round}");
        }
        world.restart().await;
        assert!(!world.has_stored(&blob.digest));
    }
    fake.remove(&slow);
    read(&world.client(), &blob, 5 * MIB, 6 * MIB).await;
    // Each stop leaves in the sockets what a busy machine has not read by then.
    paid_at_most(&fake, world, &blob, blob.len() / 8, "over restarts").await;
}

#[tokio::test]
async fn parts_past_the_store_share_requests() {
    let blob = Blob::synthetic(72, 40 * MIB);
    let image = Image::build("past the store").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let full = World::builder().upstream("docker.io", &fake).set("min_free", "\"1000TiB\"");
    let world = full.start().await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let near: Vec<u64> = (0..20).map(|n| MIB + n * 300_000).collect();
    let far: Vec<u64> = (0..5).map(|n| n * 7 * MIB + 17).collect();
    let many: Vec<u64> = (0..19).map(|n| n * 2 * MIB + 99).collect();
    // The first request tells the size; neighbours share one body, and so does everything when it would be too many.
    for (starts, most) in [(near, 2), (far, 6), (many, 16)] {
        let mark = fake.mark();
        let list: Vec<String> = starts.iter().map(|at| format!("{at}-{}", at + 99)).collect();
        let reply = client.blob(NAME, &blob.digest).range(&list.join(",")).expect(206).await;
        for at in &starts {
            let part = blob.data.slice(*at..at + 100);
            assert!(reply.body.windows(100).any(|window| window == part), "no part at {at}");
        }
        let asked = fake.since(mark).of(Kind::Blob).gets().len();
        assert!(asked <= most, "{} parts took {asked} requests", starts.len());
    }
    world.finish().await;
}
