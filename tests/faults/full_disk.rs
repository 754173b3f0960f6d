//! A disk that fails while a download runs: its clients get all their bytes, and it caches again when it can.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use roadstead::blobs::Volume;

use crate::clocks::looked;
use crate::support::client::{End, Incoming};
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Edit, Fake, Fault as Lie, Kind, Then, When};
use crate::support::gate::{Gate, within};
use crate::support::product::{Fault, FaultyDisk, Operation, Plan, RealDisk};
use crate::support::world::World;

const NAME: &str = "team/app";

async fn cold(size: u64) -> (Fake, World, Blob, Arc<FaultyDisk>) {
    let blob = Blob::synthetic(74, size);
    let image = Image::build("full disk").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let world = World::builder().upstream("docker.io", &fake).disk(&disk).start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    (fake, world, blob, disk)
}

fn from_write(at: u64, fault: Fault) -> Plan {
    Plan { at, lasting: true, fault, only: Some(Operation::Write) }
}

async fn open(world: &World, blob: &Blob, count: usize) -> Vec<Incoming> {
    let client = world.client();
    join_all((0..count).map(|_| async { client.blob(NAME, &blob.digest).open().await })).await
}

async fn all_get_all(bodies: Vec<Incoming>, blob: &Blob) {
    for body in join_all(bodies.into_iter().map(Incoming::hashed)).await {
        body.is_whole(&blob.digest, blob.len());
    }
}

#[tokio::test]
async fn a_disk_that_is_full_at_any_write_cuts_nobody() {
    for clients in [1, 4, 16] {
        let mut nth = 1;
        loop {
            let (_fake, world, blob, disk) = cold(3 * MIB).await;
            disk.fail(from_write(nth, Fault::NoSpace));
            all_get_all(open(&world, &blob, clients).await, &blob).await;
            world.downloads_over().await;
            let untouched = disk.injected() == 0;
            assert_eq!(world.has_stored(&blob.digest), untouched, "write {nth}");
            disk.heal();
            world.finish().await;
            if untouched {
                break;
            }
            // Every write with one client; with many it is their number that is tested.
            nth += if clients == 1 { 1 } else { 3 };
        }
        assert!(nth > 3, "the plan met {nth} writes");
    }
}

#[tokio::test]
async fn whatever_the_disk_says_the_stream_goes_on() {
    for fault in [Fault::Io, Fault::ReadOnly, Fault::TooManyFiles, Fault::Denied] {
        let (_fake, world, blob, disk) = cold(6 * MIB).await;
        disk.fail(from_write(3, fault));
        all_get_all(open(&world, &blob, 3).await, &blob).await;
        assert!(disk.injected() > 0, "{fault:?}");
        disk.heal();
        world.downloads_over().await;
        // Some troubles are believed for a while; meanwhile everybody is served past the store.
        within("it to cache again", async {
            while !world.has_stored(&blob.digest) {
                all_get_all(open(&world, &blob, 2).await, &blob).await;
                world.downloads_over().await;
            }
        })
        .await;
        world.finish().await;
    }
}

#[tokio::test]
async fn late_joiners_are_served_and_caching_resumes_when_there_is_room() {
    let (fake, world, blob, disk) = cold(16 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob().get().once(), Then::gate_at(4 * MIB, &gate));
    let early = open(&world, &blob, 2).await;
    gate.reached().await;
    disk.fail(from_write(1, Fault::NoSpace));
    gate.open();
    tokio::join!(all_get_all(early, &blob), async {
        fake.wait_for("the disk to be full", |_log| disk.injected() > 0).await;
        all_get_all(open(&world, &blob, 3).await, &blob).await;
    });
    disk.heal();
    let room = |metrics: &crate::support::world::Metrics| {
        metrics.sum("roadstead_caching_disabled", &[]) < 0.5
    };
    world.metrics_where("room", room).await;
    world.downloads_over().await;
    all_get_all(open(&world, &blob, 2).await, &blob).await;
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stalls_holds_nobody_up_without_a_disk() {
    let (fake, world, blob, disk) = cold(48 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob().get().once(), Then::gate_at(4 * MIB, &gate));
    let mut stalled = open(&world, &blob, 1).await;
    let mut stalled = stalled.pop().expect("one was opened");
    stalled.take(1000).await;
    let others = open(&world, &blob, 3).await;
    gate.reached().await;
    disk.fail(from_write(1, Fault::NoSpace));
    gate.open();
    all_get_all(others, &blob).await;
    assert!(disk.injected() > 0);
    // It comes back, and is served on its own from where it was.
    let rest = stalled.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()), "other bytes");
    disk.heal();
    world.finish().await;
}

#[tokio::test]
async fn ranges_go_on_without_a_disk_too() {
    let (fake, world, blob, disk) = cold(32 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob().get().once(), Then::gate_at(2 * MIB, &gate));
    let client = world.client();
    let whole = client.blob(NAME, &blob.digest).open().await;
    let mut middle = client.blob(NAME, &blob.digest).range(&format!("{}-", 12 * MIB)).open().await;
    middle.take(1000).await;
    let tail = client.blob(NAME, &blob.digest).range("-1000").open().await;
    gate.reached().await;
    disk.fail(from_write(1, Fault::NoSpace));
    gate.open();
    let (whole, middle, tail) = tokio::join!(whole.hashed(), middle.rest(), tail.rest());
    whole.is_whole(&blob.digest, blob.len());
    assert!(middle.body == blob.data.slice(12 * MIB + 1000..32 * MIB), "other bytes");
    assert_eq!(tail.body, blob.data.slice(32 * MIB - 1000..32 * MIB));
    assert!(disk.injected() > 0);
    disk.heal();
    world.finish().await;
}

#[tokio::test]
async fn a_wrong_body_is_cut_without_a_disk_too() {
    let (fake, world, blob, disk) = cold(6 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob().get().once(), Then::gate_at(2 * MIB, &gate));
    let bodies = open(&world, &blob, 2).await;
    gate.reached().await;
    let wrong = fake.rule(When::blob().get(), Then::corrupt_at(MIB));
    disk.fail(from_write(1, Fault::Io));
    gate.open();
    for body in join_all(bodies.into_iter().map(Incoming::hashed)).await {
        assert_eq!((body.status, body.end), (200, End::Cut));
    }
    wrong.expect_hit();
    disk.heal();
    fake.remove(&wrong);
    world.downloads_over().await;
    all_get_all(open(&world, &blob, 2).await, &blob).await;
    world.finish().await;
}

#[tokio::test]
async fn a_commit_that_fails_costs_only_the_next_client() {
    for operation in [Operation::SyncData, Operation::Rename, Operation::SyncDir, Operation::Stat] {
        let (_fake, world, blob, disk) = cold(3 * MIB).await;
        let fault = Fault::Io;
        disk.fail(Plan { at: 1, lasting: true, fault, only: Some(operation) });
        all_get_all(open(&world, &blob, 4).await, &blob).await;
        world.downloads_over().await;
        assert!(disk.injected() > 0, "{operation:?}");
        disk.heal();
        all_get_all(open(&world, &blob, 2).await, &blob).await;
        world.downloads_over().await;
        assert!(world.has_stored(&blob.digest), "{operation:?}");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_stored_file_that_is_cut_short_under_its_reader_is_fetched_again() {
    let (fake, world, blob, _disk) = cold(24 * MIB).await;
    all_get_all(open(&world, &blob, 1).await, &blob).await;
    world.downloads_over().await;
    let mut body = open(&world, &blob, 1).await.pop().expect("one was opened");
    body.take(1000).await;
    let file = std::fs::OpenOptions::new().write(true).open(world.blob_file(&blob.digest));
    file.expect("it is stored").set_len(20 * MIB).expect("it is ours");
    let mark = fake.mark();
    let rest = body.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()), "other bytes");
    assert!(!fake.since(mark).is_empty(), "the file was too short to serve it");
    world.downloads_over().await;
    all_get_all(open(&world, &blob, 1).await, &blob).await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_download_gave_wrong_another_one_does_not_make_right() {
    let (fake, world, blob, disk) = cold(48 * MIB).await;
    let (gate, later) = (Gate::new(), Gate::new());
    let wrong = Edit::Fault(Lie::CorruptAt(MIB));
    let held = Edit::Fault(Lie::GateAt(4 * MIB, gate.clone()));
    fake.rule(When::blob().get().ranged(false).once(), Then::Alter(vec![wrong, held]));
    fake.rule(When::blob().get().ranged(true).once(), Then::gate_at(24 * MIB, &later));
    let mut stalled = open(&world, &blob, 1).await.pop().expect("one was opened");
    stalled.take(2 * MIB).await;
    let others = open(&world, &blob, 2).await;
    gate.reached().await;
    disk.fail(from_write(1, Fault::NoSpace));
    gate.open();
    tokio::join!(join_all(others.into_iter().map(Incoming::hashed)), async {
        // The download has left it behind and has not ended: it goes on alone, and all that comes is right.
        later.reached().await;
        assert_eq!(stalled.rest().await.end, End::Cut, "its beginning was wrong");
        later.open();
    });
    disk.heal();
    world.finish().await;
}

#[tokio::test]
async fn readers_of_a_chunk_each_do_not_cost_a_whole_each_without_a_disk() {
    // As containerd fetches a layer: open-ended requests, each read for one chunk and then closed.
    let (fake, world, blob, disk) = cold(64 * MIB).await;
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::ReadOnly, only: None });
    for at in (0..8).map(|n| n * 8 * MIB) {
        let request = world.client().blob(NAME, &blob.digest).range(&format!("{at}-"));
        let mut body = request.open().await;
        assert_eq!(body.status, 206);
        let mut bytes = Vec::new();
        for _ in 0..8 {
            bytes.extend(body.take(MIB).await);
        }
        assert!(bytes == blob.data.slice(at..at + 8 * MIB), "others at {at}");
    }
    fake.quiet().await;
    let sent = fake.blob_bytes(&blob.digest);
    // The last one pays for the digest, and each may have left some bytes in the sockets.
    assert!(sent <= blob.len() * 7 / 2, "{sent} bytes for a blob of {}", blob.len());
    // A flight that finds no room, then the body that is read, and the whole for the last one.
    assert!(fake.log().of(Kind::Blob).gets().len() <= 17);
    disk.heal();
    world.finish().await;
}

#[tokio::test]
async fn the_end_of_a_blob_is_right_or_does_not_come_without_a_disk() {
    for (lie_at, end) in [(None, End::Clean), (Some(MIB), End::Cut)] {
        let (fake, world, blob, disk) = cold(8 * MIB).await;
        disk.fail(Plan { at: 1, lasting: true, fault: Fault::ReadOnly, only: None });
        if let Some(at) = lie_at {
            fake.rule(When::blob().get().ranged(true), Then::corrupt_at(at));
        }
        let start = 4 * MIB;
        let rest = world.client().blob(NAME, &blob.digest).range(&format!("{start}-")).send().await;
        assert_eq!((rest.status, rest.end), (206, end));
        assert_eq!(rest.body == blob.data.slice(start..blob.len()), end == End::Clean);
        disk.heal();
        world.finish().await;
    }
}

/// Longer than content counts as young.
const UNUSED: Duration = Duration::from_secs(2 * 3600);
/// A refusal makes room for two of these.
const LARGE: u64 = 10 * MIB;
/// So many of them are here, unused, when the disk takes no more.
const OLD: usize = 8;

/// Waits until two looks at the limits are over that began now, and long after content was used.
async fn rests(world: &World) {
    for _look in 0..2 {
        world.pass(UNUSED).await;
        looked(world).await;
    }
}

#[tokio::test]
async fn a_quota_that_does_not_show_makes_room_for_what_it_refuses_and_for_no_more() {
    let layers: Vec<Blob> = (80..).take(OLD + 2).map(|seed| Blob::synthetic(seed, LARGE)).collect();
    let image = layers.iter().fold(Image::build("quota"), |image, one| image.layer(one.clone()));
    let image = image.finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    disk.set_volume(Some(Volume { total: 2 << 40, free: 1 << 40 }));
    let world =
        World::builder().upstream("docker.io", &fake).disk(&disk).fresh_for("1000h").start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let pulled = async |number: usize| {
        let layer = &layers[number];
        let body = world.client().blob(NAME, &layer.digest).open().await;
        body.hashed().await.is_whole(&layer.digest, LARGE);
        world.downloads_over().await;
    };
    let stored = || -> Vec<usize> {
        (0..layers.len()).filter(|number| world.has_stored(&layers[*number].digest)).collect()
    };
    for number in 0..OLD {
        pulled(number).await;
        world.advance(UNUSED);
    }

    let mut before: Vec<usize> = (0..OLD).collect();
    assert_eq!(stored(), before);
    for _refusal in 0..2 {
        let only = Some(Operation::Allocate);
        disk.fail(Plan { at: 1, lasting: true, fault: Fault::Quota, only });
        pulled(OLD).await;
        let gone = async {
            while stored().contains(&before[0]) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("what was unused for longest to go", gone).await;
        disk.heal();
        // What was refused while it looked is looked at, too, and after that it has no reason to go on.
        rests(&world).await;
        let left = stored();
        assert!(before.ends_with(&left), "{left:?} of {before:?}");
        assert!((1..=4).contains(&(before.len() - left.len())), "{left:?} of {before:?}");
        rests(&world).await;
        assert_eq!(stored(), left, "nothing is refused");
        before = left;
    }
    let metrics = world.metrics().await;
    let evicted = metrics.sum("roadstead_evicted_bytes_total", &[("reason", "quota")]);
    assert!(evicted >= 16.0 * 1_048_576.0, "{evicted}");
    // There is room, and what comes is stored again.
    pulled(OLD + 1).await;
    assert!(stored().contains(&(OLD + 1)));
    world.finish().await;
}
