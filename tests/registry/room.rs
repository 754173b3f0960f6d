//! A store at its limit takes in what somebody brings on purpose: it waits while eviction makes room, and says what keeps the rest when there
//! is none to be made.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::import::{Bundle, import, is_refused, last};
use crate::support::content::{Blob, Image, ImageBuilder, MIB};
use crate::support::fake::{Fake, Kind};
use crate::support::gate::within;
use crate::support::product::{Fault, FaultyDisk, Operation, Plan, RealDisk};
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};
use crate::takeover::Folder;
use crate::warm;

const NAME: &str = "team/app";
const NEW: &str = "team/new";
const TOTAL: u64 = 100 * MIB;
const MIN_FREE: u64 = 10 * MIB;
/// Longer than content counts as young.
const UNUSED: Duration = Duration::from_secs(2 * 3600);
/// Longer than the figure of the file system is believed.
const A_WHILE: Duration = Duration::from_secs(3);

/// A world whose disk is as full as it may be, with eight images of two MiB each, all of them unused.
struct Full {
    fake: Fake,
    disk: Arc<FaultyDisk>,
    world: World,
    old: Vec<Image>,
}

impl Full {
    async fn start(seed: u64) -> Self {
        Self::start_with(seed, |builder| builder).await
    }

    async fn start_with(seed: u64, more: impl Fn(WorldBuilder) -> WorldBuilder) -> Self {
        let (fake, disk) = (Fake::start().await, FaultyDisk::new(Arc::new(RealDisk)));
        disk.fill_up(TOTAL, 0);
        let builder = World::builder()
            .upstream("docker.io", &fake)
            .set("admin_listen", "\"127.0.0.1:0\"")
            .set("min_free", "\"10MiB\"")
            .fresh_for("1000h")
            .disk(&disk);
        let world = more(builder).start().await;
        let mut old = Vec::new();
        for number in 0..8 {
            let layer = Blob::synthetic(seed + number, 2 * MIB);
            let image = Image::build(&format!("old {}", layer.digest)).layer(layer).finish();
            fake.push(NAME, &format!("v{number}"), &image);
            pull(&world.client(), NAME, &format!("v{number}"), &image).await;
            world.downloads_over().await;
            world.advance(UNUSED);
            old.push(image);
        }
        let full = Self { fake, disk, world, old };
        full.fill().await;
        full
    }

    /// Somebody else takes all but what is to be left free, and the figure is believed no more.
    async fn fill(&self) {
        let stored: u64 = self.old.iter().flat_map(|image| &image.blobs).map(Blob::len).sum();
        // Each file takes whole blocks, so a little less is left than by the bytes alone.
        self.disk.fill_up(TOTAL, TOTAL - MIN_FREE - stored - MIB / 2);
        self.world.pass(A_WHILE).await;
    }

    /// Images of before whose layer is here.
    fn left(&self) -> usize {
        let here = |image: &&Image| self.world.has_stored(&image.blobs[1].digest);
        self.old.iter().filter(here).count()
    }

    async fn admin(&self, method: &str, path: &str) {
        self.world.admin().request(method, &format!("/api/v1{path}")).expect(200).await;
    }
}

/// Removals wait until it is dropped, also by a test that fails.
struct Held(Arc<FaultyDisk>);

impl Held {
    fn new(disk: &Arc<FaultyDisk>) -> Self {
        disk.hold_unlinks(true);
        Self(Arc::clone(disk))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.hold_unlinks(false);
    }
}

/// An image with layers of two MiB each.
fn large(seed: u64, layers: u64) -> Image {
    let layers = (0..layers).map(|number| Blob::synthetic(seed + number, 2 * MIB));
    layers.fold(Image::build(&format!("large {seed}")), ImageBuilder::layer).finish()
}

fn bundle(image: &Image) -> Bytes {
    Bundle::good(image, &format!("docker.io/{NEW}:1")).end()
}

async fn serves(world: &World, image: &Image) {
    pull(&world.client(), NEW, "1", image).await;
}

#[tokio::test]
async fn an_import_waits_while_room_is_made_and_stays() {
    let full = Full::start(9100).await;
    let image = large(9150, 3);
    last(&import(&full.world, "?set=s", bundle(&image)).await);
    // What it brought in the beginning did not go for what came at the end.
    full.fake.stop().await;
    serves(&full.world, &image).await;
    assert!((1..=5).contains(&full.left()), "{} are left", full.left());
    let metrics = full.world.metrics().await;
    assert!(metrics.sum("roadstead_evicted_objects_total", &[("reason", "min_free")]) >= 3.0);
    full.world.finish().await;
}

#[tokio::test]
async fn what_came_a_moment_ago_is_counted_when_room_is_made_for_the_next() {
    let full = Full::start(9600).await;
    let stored: u64 = full.old.iter().flat_map(|image| &image.blobs).map(Blob::len).sum();
    full.disk.fill_up(TOTAL, TOTAL - MIN_FREE - stored - 7 * MIB / 2);
    full.world.pass(A_WHILE).await;
    let image = large(9650, 3);
    // The first layer fits, and what the disk said before it came is not asked again so soon.
    last(&import(&full.world, "?set=s", bundle(&image)).await);
    full.fake.stop().await;
    serves(&full.world, &image).await;
    full.world.finish().await;
}

#[tokio::test]
async fn a_takeover_and_an_order_to_warm_wait_as_well() {
    let full = Full::start(9200).await;
    let (copied, warmed) = (large(9250, 3), large(9260, 3));
    let folder = Folder::with(NEW, "1", &copied);
    let story = crate::takeover::take(&full.world, &folder, "&copy=true").await;
    assert_eq!(story.last().map(|line| line["failed"].clone()), Some(json!(0)), "{story:#?}");
    full.fill().await;
    full.fake.push("team/warm", "1", &warmed);
    let (images, report) = warm::warm(&full.world, "", "team/warm:1").await;
    assert_eq!(images[0]["fate"], "fetched", "{images:?}");
    assert_eq!(report["failed"], 0);
    full.fake.stop().await;
    serves(&full.world, &copied).await;
    pull(&full.world.client(), "team/warm", "1", &warmed).await;
    full.world.finish().await;
}

#[tokio::test]
async fn where_no_room_can_be_made_it_is_said_what_keeps_the_rest() {
    let full = Full::start(9300).await;
    full.admin("POST", "/pins?scope=docker.io/team/app").await;
    let image = large(9350, 1);
    let told = import(&full.world, "?set=s", bundle(&image)).await;
    is_refused(&told, "room", "bytes are missing, and eviction could free nothing more");
    is_refused(&told, "room", "pinned");
    full.fake.push("team/warm", "1", &image);
    let (images, report) = warm::warm(&full.world, "", "team/warm:1").await;
    assert_eq!((&images[0]["fate"], &report["failed"]), (&json!("failed"), &json!(1)));
    let reason = images[0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("no room") && reason.contains("pinned"), "{reason}");
    let folder = Folder::with(NEW, "1", &image);
    let story: Vec<Value> = crate::takeover::take(&full.world, &folder, "&copy=true").await;
    let reason = story.last().map(|line| line["reason"].to_string()).unwrap_or_default();
    assert!(reason.contains("no room") && reason.contains("pinned"), "{story:#?}");

    full.admin("DELETE", "/pins?scope=docker.io/team/app").await;
    full.admin("POST", "/offline").await;
    is_refused(&import(&full.world, "?set=s", bundle(&image)).await, "room", "offline");
    assert_eq!(full.left(), 8);
    full.admin("DELETE", "/offline").await;
    // What was looked at while it was pinned is as good as used then.
    full.world.advance(UNUSED);
    last(&import(&full.world, "?set=s", bundle(&image)).await);
    full.world.finish().await;
}

#[tokio::test]
async fn a_disk_that_takes_nothing_though_it_has_room_costs_upstream_little() {
    let (fake, disk) = (Fake::start().await, FaultyDisk::new(Arc::new(RealDisk)));
    let world = warm::builder(&fake).disk(&disk).start().await;
    let image = large(9700, 1);
    fake.push(NAME, "latest", &image);
    world.client().manifest(NAME, "latest").expect(200).await;
    world.downloads_over().await;
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::ReadOnly, only: Some(Operation::Create) });
    let (images, _report) = warm::warm(&world, "", NAME).await;
    assert_eq!(images[0]["fate"], "failed", "{images:?}");
    let asked = fake.log().of(Kind::Blob).about(&image.blobs[1].digest).gets().len();
    assert!((1..=6).contains(&asked), "it was asked for {asked} times");
    disk.heal();
    world.finish().await;
}

#[tokio::test]
async fn what_never_fits_is_refused_at_once_and_takes_nothing() {
    let full = Full::start(9400).await;
    let mut header = Bundle::header("blobs/sha256/0", tar::EntryType::Regular, 0);
    let name = format!("blobs/sha256/{}", "ab".repeat(32));
    header.set_path(&name).expect("it is short");
    header.set_size(TOTAL - MIN_FREE + 1);
    header.set_cksum();
    let huge = Bundle::default().raw(&header, b"").end();
    let limit = TOTAL - MIN_FREE;
    let told = import(&full.world, "?set=s", huge).await;
    is_refused(&told, "room", &format!("it has {} bytes, and {limit} are the most", limit + 1));
    assert_eq!(full.left(), 8);
    full.world.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_the_wait() {
    let full = Full::start(9500).await;
    let image = large(9550, 3);
    let held = Held::new(&full.disk);
    let request =
        full.world.admin().request("POST", "/api/v1/import?set=s").body(bundle(&image)).bytes();
    let plan =
        Plan { at: u64::MAX, lasting: false, fault: Fault::Io, only: Some(Operation::Unlink) };
    full.disk.fail(plan);
    let socket = UnixStream::connect(full.world.data().join("admin.sock"));
    let mut client = socket.await.expect("it listens");
    let evicts = within("room to be wanted", async {
        while full.disk.counted() == 0 {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        _ = client.write_all(&request) => panic!("nobody reads while room is made"),
        () = evicts => {}
    }
    let empty = Bundle::default().end();
    is_refused(&import(&full.world, "?set=t", empty.clone()).await, "busy", "taken in");
    drop(client);
    within("the wait to end", async {
        while import(&full.world, "?set=t", empty.clone()).await.json()["error"]["reason"]
            != "bundle"
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(held);
    last(&import(&full.world, "?set=s", bundle(&image)).await);
    full.world.finish().await;
}
