//! Every operation of the disk and every step of the rows fails during a pull, one after the other; no client notices.
//!
//! For N = 1, 2, 3 ... the Nth operation of a whole pull fails, once or from there on, until a pull passes untouched. Then the disk
//! heals, and caching has to resume by itself; or the product starts again and what it calls present has to be there and right.
//! Counted are answers that end early (none is allowed) and clean refusals (allowed for the one blob of which nobody knows the size:
//! without a store it could not be verified before its length must be told).

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::support::client::{Client, End, Response};
use crate::support::content::{Blob, Image, to_usize};
use crate::support::fake::{Edit, Fake, Framing, Then, When};
use crate::support::product::{Fault, FaultyDisk, Plan, RealDisk, RowFault, RowPlan};
use crate::support::pull::{describes_blob, describes_manifest};
use crate::support::world::World;

const NAME: &str = "team/app";
/// Longer than a store that was found full is left alone.
const A_WHILE: Duration = Duration::from_secs(30);
/// Nothing tries again in these tests: a fault that is met by luck is met twice.
const LIMITS: &str = "[upstream.\"docker.io\".limits]\nattempts = 1\n";
/// The part that is also asked for as a range.
const PART: std::ops::Range<u64> = 1_500_000..1_500_100;
/// Rounds of random faults in both places.
const ROUNDS: u64 = 24;
const SEED: u64 = 20_261_123;

/// What is pulled: an index with two images, and a blob of a size that nobody tells.
struct Wanted {
    index: Image,
    loose: Blob,
}

impl Wanted {
    fn new() -> Self {
        let small = Blob::layer("just not large", 64 * 1024 - 1);
        let one = Image::build("one").layer(small).layer(Blob::layer("middle", 1 << 20)).finish();
        let two = Image::build("two").layer(Blob::layer("large", 3 << 20)).finish();
        let loose = Blob::layer("of unknown size", 300_000);
        Self { index: Image::index_with(vec![one, two]), loose }
    }

    fn large(&self) -> &Blob {
        self.index.all_blobs().into_iter().max_by_key(|blob| blob.len()).expect("it has blobs")
    }
}

struct Scene {
    fake: Fake,
    world: World,
    disk: Arc<FaultyDisk>,
    wanted: Wanted,
}

/// How the answers of one pull ended.
#[derive(Debug, Default)]
struct Tally {
    whole: u32,
    /// Clean errors, by what was asked.
    refused: Vec<String>,
    /// Answers that ended before their end.
    cut: Vec<String>,
}

impl Tally {
    fn take(&mut self, what: &str, reply: &Response, right: impl FnOnce(&Response)) {
        match (reply.status, reply.end) {
            (200 | 206, End::Clean) => {
                right(reply);
                self.whole += 1;
            }
            (200 | 206, end) => self.cut.push(format!("{what} {end:?} at {}", reply.body.len())),
            (404 | 502 | 503, End::Clean) => {
                let document = reply.json();
                assert!(document["errors"][0]["code"].is_string(), "{what}: {document}");
                self.refused.push(format!("{what} {}", reply.status));
            }
            _ => panic!("{what} was answered {reply:?}"),
        }
    }

    /// Nothing was cut, and nothing refused except the blob of unknown size.
    fn is_bridged(&self, loose: &Blob, context: &str) {
        assert_eq!(self.cut, Vec::<String>::new(), "{context}: answers ended early");
        let bare: Vec<_> =
            self.refused.iter().filter(|what| !what.contains(&loose.digest)).collect();
        assert!(bare.is_empty(), "{context}: refused {bare:?}");
    }

    fn is_whole(&self, context: &str) {
        assert!(self.cut.is_empty() && self.refused.is_empty(), "{context}: {self:?}");
    }
}

/// Pulls everything, one request after the other; what ends cleanly has to be right.
async fn pull(client: &Client, wanted: &Wanted) -> Tally {
    let mut tally = Tally::default();
    for (number, image) in wanted.index.manifests().into_iter().enumerate() {
        let reference = if number == 0 { "latest" } else { &image.digest };
        let reply = client.manifest(NAME, reference).try_send().await.expect("it is answered");
        tally.take(reference, &reply, |reply| {
            assert!(reply.body == image.bytes, "other bytes under {reference}");
            describes_manifest(reply, image);
        });
    }
    for blob in wanted.index.all_blobs().into_iter().chain([&wanted.loose]) {
        let reply = client.blob(NAME, &blob.digest).try_send().await.expect("it is answered");
        let right = blob.bytes();
        assert!(reply.status >= 400 || right.starts_with(&reply.body), "wrong bytes on the way");
        tally.take(&blob.digest, &reply, |reply| {
            assert_eq!(reply.body.len(), to_usize(blob.len()));
            describes_blob(reply, blob);
        });
    }
    let large = wanted.large();
    let range = format!("{}-{}", PART.start, PART.end - 1);
    let part = client.blob(NAME, &large.digest).range(&range).try_send().await;
    tally.take("a range", &part.expect("it is answered"), |reply| {
        assert_eq!((reply.status, &reply.body), (206, &large.data.slice(PART)));
    });
    tally
}

impl Scene {
    async fn new() -> Self {
        let (fake, wanted) = (Fake::start().await, Wanted::new());
        fake.push(NAME, "latest", &wanted.index);
        fake.push_blob(NAME, &wanted.loose);
        let loose = || When::blob().about(&wanted.loose.digest);
        fake.rule(loose().get(), Then::chunked());
        fake.rule(loose().head(), Then::edit(Edit::Framing(Framing::UntilClose)));
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let settings = "retry_after_failure = \"0s\"";
        let world = World::builder()
            .upstream_with("docker.io", &fake, settings)
            .tables(LIMITS)
            .disk(&disk)
            .start()
            .await;
        Self { fake, world, disk, wanted }
    }

    async fn pull(&self) -> Tally {
        pull(&self.world.client(), &self.wanted).await
    }

    /// With upstream gone: right, or cleanly refused.
    async fn pull_offline(&self) -> Tally {
        let gone = self.fake.rule(When::any().early(), Then::Drop { reset: false });
        let tally = self.pull().await;
        self.fake.remove(&gone);
        assert_eq!(tally.cut, Vec::<String>::new(), "half of something is called present");
        tally
    }

    /// The faults are over. Either caching resumes without a restart and everything is here afterwards, or the product starts again
    /// at once and tells the truth about what it has.
    async fn recovers(&mut self, restart_first: bool, context: &str) {
        if restart_first {
            self.world.restart().await;
            self.pull_offline().await;
        } else {
            self.world.pass(A_WHILE).await;
            self.pull().await.is_whole(context);
            self.world.downloads_over().await;
            self.world.restart().await;
            self.pull_offline().await.is_whole(context);
        }
        self.world.check_files();
        self.world.restart_empty().await;
    }
}

/// Fails operation N of a pull for every N, once and from there on.
async fn every_operation_fails(fault: Fault) {
    let mut scene = Scene::new().await;
    let (mut runs, mut refused) = (0, 0);
    for lasting in [false, true] {
        for at in 1.. {
            scene.disk.fail(Plan { at, lasting, fault, only: None });
            let tally = scene.pull().await;
            scene.world.downloads_over().await;
            let injected = scene.disk.injected();
            scene.disk.heal();
            let context = format!("{fault:?} at {at}, lasting: {lasting}");
            tally.is_bridged(&scene.wanted.loose, &context);
            if injected == 0 {
                tally.is_whole(&context);
                assert!(at > 40, "only {at} operations were counted");
                scene.world.restart_empty().await;
                break;
            }
            refused += tally.refused.len();
            runs += 1;
            scene.recovers((at % 2 == 0) == lasting, &context).await;
        }
    }
    println!("{fault:?}: {runs} pulls with a fault, 0 cut, {refused} refused (size unknown)");
    scene.world.finish().await;
}

#[tokio::test]
async fn every_operation_finds_no_space() {
    every_operation_fails(Fault::NoSpace).await;
}

#[tokio::test]
async fn every_operation_exceeds_the_quota() {
    every_operation_fails(Fault::Quota).await;
}

#[tokio::test]
async fn every_operation_has_an_error_of_the_device() {
    every_operation_fails(Fault::Io).await;
}

#[tokio::test]
async fn every_operation_finds_the_file_system_read_only() {
    every_operation_fails(Fault::ReadOnly).await;
}

#[tokio::test]
async fn every_operation_is_denied() {
    every_operation_fails(Fault::Denied).await;
}

#[tokio::test]
async fn every_operation_has_no_descriptor_left() {
    every_operation_fails(Fault::TooManyFiles).await;
}

#[tokio::test]
async fn every_step_of_the_rows_fails() {
    let mut scene = Scene::new().await;
    let mut runs = 0;
    for (fault, lasting) in [RowFault::Full, RowFault::Io, RowFault::Busy]
        .into_iter()
        .flat_map(|fault| [(fault, false), (fault, true)])
    {
        for at in 1.. {
            scene.world.fail_rows(Some(RowPlan { at, lasting, fault }));
            let tally = scene.pull().await;
            scene.world.downloads_over().await;
            let injected = scene.world.failed_rows();
            scene.world.fail_rows(None);
            let context = format!("{fault:?} at step {at}, lasting: {lasting}");
            // The files work, so that even the blob of unknown size is verified before its length is told.
            tally.is_whole(&context);
            if injected == 0 {
                assert!(at > 20, "{context}: only {at} steps were counted");
                scene.world.restart_empty().await;
                break;
            }
            runs += 1;
            scene.recovers((at % 2 == 0) == lasting, &context).await;
        }
    }
    println!("rows: {runs} pulls with a fault, 0 cut, 0 refused");
    scene.world.finish().await;
}

/// Disk and rows fail together, under several clients that pull the same.
#[tokio::test]
async fn disk_and_rows_fail_together_at_random() {
    let mut scene = Scene::new().await;
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut faults = 0;
    for round in 0..ROUNDS {
        let fault = Fault::ALL[random.random_range(0..Fault::ALL.len())];
        let lasting = random.random_bool(0.5);
        let at = random.random_range(1..90);
        let rows = [RowFault::Full, RowFault::Io, RowFault::Busy];
        let row_plan = RowPlan {
            at: random.random_range(1..30),
            lasting: random.random_bool(0.5),
            fault: rows[random.random_range(0..rows.len())],
        };
        let context = format!("seed {SEED}, round {round}: {fault:?} {at} {lasting}, {row_plan:?}");
        scene.disk.fail(Plan { at, lasting, fault, only: None });
        scene.world.fail_rows(Some(row_plan));
        for tally in join_all((0..4).map(|_client| scene.pull())).await {
            tally.is_bridged(&scene.wanted.loose, &context);
        }
        scene.world.downloads_over().await;
        faults += scene.disk.injected() + scene.world.failed_rows();
        scene.disk.heal();
        scene.world.fail_rows(None);
        scene.recovers(random.random_bool(0.5), &context).await;
    }
    println!("both: {ROUNDS} rounds of 4 clients, {faults} faults, 0 cut");
    assert!(faults > ROUNDS, "only {faults} faults");
    scene.world.finish().await;
}
