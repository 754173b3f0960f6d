//! kill -9 at any moment is harmless (design promise 14): nothing whole is lost, nothing partial is served, no litter is left, the
//! next start is ready at once, and a download that was cut is continued and not begun anew.
//!
//! The moments are drawn from a printed seed and are events, never times: so many bytes at the clients, or so many requests at the
//! upstream, since the load began.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::process::Roadstead;
use crate::support::client::{Client, End, Request};
use crate::support::content::{Blob, Image, MIB, sha256};
use crate::support::fake::{Fake, Kind, Then, When};
use crate::support::gate::{Gate, within};

const KILLS: u64 = 24;
const SEED: u64 = 20_261_122;
const NAME: &str = "up.test/team/app";
/// Every so many kills there is a new large blob, so that each is cut several times.
const KILLS_PER_LARGE_BLOB: u64 = 3;
const LARGE_BYTES: u64 = 48 * MIB;
/// What containerd reads of each open-ended range.
const CHUNK: u64 = 4 * MIB;
/// From the start of the process to its first answer, on a machine that does much else.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What is pulled in one round: images of its own, and a large blob that some rounds share.
#[derive(Clone)]
struct Load {
    images: Vec<Image>,
    large: Blob,
}

impl Load {
    fn of_round(round: u64) -> Self {
        let image = |number: u64| {
            let name = format!("crash {round} {number}");
            let layer = Blob::synthetic(1000 + 2 * round + number, 3 * MIB);
            Image::build(&name).layers(3).layer(layer).finish()
        };
        let seed = 500 + round / KILLS_PER_LARGE_BLOB;
        Self { images: vec![image(0), image(1)], large: Blob::synthetic(seed, LARGE_BYTES) }
    }

    fn push(&self, fake: &Fake) {
        for image in &self.images {
            fake.push("team/app", &tag_of(image), image);
        }
        fake.push_blob("team/app", &self.large);
    }

    fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.images.iter().flat_map(|image| &image.blobs).chain([&self.large])
    }

    /// Every path with the digest of its content.
    fn paths(&self) -> Vec<(String, String)> {
        let manifests = self.images.iter().map(|image| path("manifests", &image.digest));
        manifests.chain(self.blobs().map(|blob| path("blobs", &blob.digest))).collect()
    }
}

fn tag_of(image: &Image) -> String {
    format!("v{}", &image.digest["sha256:".len()..][..12])
}

fn path(kind: &str, digest: &str) -> (String, String) {
    (format!("/v2/{NAME}/{kind}/{digest}"), digest.to_owned())
}

/// What the clients of one round have seen, shared by all of them.
#[derive(Clone, Default)]
struct Seen {
    received: Arc<watch::Sender<u64>>,
    /// Paths and digests that were received whole, and of which the product said afterwards that they are in the cache.
    committed: Arc<Mutex<BTreeSet<(String, String)>>>,
}

impl Seen {
    /// Reads an answer as far as it comes. `Some` is the whole of it, which has to be right.
    async fn read(&self, request: Request, digest: &str) -> Option<u16> {
        let mut body = request.try_open().await.ok()?;
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            self.received.send_modify(|count| *count += piece.len() as u64);
            bytes.extend_from_slice(&piece);
        }
        let end = body.rest().await;
        if end.end != End::Clean {
            return None;
        }
        assert!(end.status != 200 || sha256(&bytes) == digest, "what ends cleanly is right");
        Some(end.status)
    }

    async fn pull(self, client: Client, things: Vec<(String, String)>) {
        for (path, digest) in things {
            match self.read(client.get(&path), &digest).await {
                Some(200) => {}
                Some(status) => panic!("{path} was answered {status}"),
                None => return,
            }
            // Only what the product itself calls stored has to survive.
            let Ok(head) = client.head(&path).try_send().await else { return };
            if head.header("Cache-Status").is_some_and(|text| text.contains("; hit")) {
                self.committed.lock().unwrap().insert((path, digest));
            }
        }
    }

    /// Reads a blob as containerd does: open-ended ranges, one chunk taken of each.
    async fn pull_in_ranges(self, client: Client, blob: Blob) {
        let mut at = 0;
        while at < blob.len() {
            let end = (at + CHUNK).min(blob.len());
            let request = client.blob(NAME, &blob.digest).range(&format!("{at}-"));
            let Ok(mut body) = request.try_open().await else { return };
            assert_eq!(body.status, 206);
            let mut taken = Vec::new();
            while (taken.len() as u64) < end - at {
                let Some(piece) = body.next().await else { return };
                self.received.send_modify(|count| *count += piece.len() as u64);
                taken.extend_from_slice(&piece);
            }
            taken.truncate(usize::try_from(end - at).unwrap());
            assert!(blob.data.slice(at..end) == taken, "other bytes in a range");
            at = end;
        }
    }
}

/// When the process is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The clients have received so many bytes.
    Received(u64),
    /// The upstream was asked so many times.
    Asked(usize),
}

impl Moment {
    fn draw(random: &mut SmallRng) -> Self {
        if random.random_bool(0.75) {
            // Everything together comes to several clients; the last bytes of the large blob come last.
            Self::Received(random.random_range(0..96 * MIB))
        } else {
            Self::Asked(random.random_range(0..14))
        }
    }

    /// Returns at the moment; never if the load ends before.
    async fn wait(self, fake: &Fake, mark: usize, seen: &Seen) {
        match self {
            Self::Received(bytes) => {
                let mut received = seen.received.subscribe();
                received.wait_for(|count| *count >= bytes).await.unwrap();
            }
            Self::Asked(count) => fake.asked(mark + count).await,
        }
    }
}

/// Every file under `blobs/` is what its name says, and what lies in `partial/` is a file with its record.
fn check_files(data: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(data.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        let digest = format!("sha256:{name}");
        assert_eq!(sha256(&bytes), digest, "a name under blobs/ implies verified content");
        count += 1;
    }
    let names = fs::read_dir(data.join("partial")).unwrap();
    let names: BTreeSet<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for name in &names {
        let other = match name.strip_suffix(".map") {
            Some(file) => file.to_owned(),
            None => format!("{name}.map"),
        };
        assert!(name.starts_with("d-") && names.contains(&other), "litter: {names:?}");
    }
    count
}

/// Upstream is asked once, so that a refusal is told at once.
fn configure(home: &Path, fake: &Fake) {
    let text = format!("[upstream.\"up.test\"]\nurl = \"{}\"\nlimits.attempts = 1\n", fake.url());
    fs::write(home.join("r.toml"), text).unwrap();
}

/// With upstream gone everything committed is here, and of the rest either all or nothing.
async fn check_offline(client: &Client, committed: &BTreeSet<(String, String)>, load: &Load) {
    for (path, digest) in committed {
        assert_eq!(client.get(path).expect(200).await.digest(), *digest, "{path}");
    }
    for (path, digest) in load.paths() {
        let reply = client.get(&path).send().await;
        assert_eq!(reply.end, End::Clean, "a part of {path} was served");
        assert!(reply.status >= 500 || reply.digest() == digest, "{path}: {}", reply.status);
    }
}

/// One process from its start to its kill; tells how long it took to answer.
async fn live_and_die(
    home: &Path,
    fake: &Fake,
    moment: Moment,
    load: &Load,
    before: &Seen,
) -> Duration {
    fake.stop().await;
    let started = Instant::now();
    let roadstead = Roadstead::start(home, &["--config", "r.toml"]);
    Client::new(roadstead.observe).get("/readyz").expect(200).await;
    let ready = started.elapsed();
    check_files(&home.join("roadstead-data"));
    let client = Client::new(roadstead.data);
    // What survived one kill is looked at again in the end.
    let committed = std::mem::take(&mut *before.committed.lock().unwrap());
    check_offline(&client, &committed, load).await;
    fake.switch_on().await;
    within("the upstream that was left alone is asked again", async {
        while client.manifest(NAME, "absent").send().await.status != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;

    let (mark, seen) = (fake.mark(), Seen { received: Arc::default(), ..before.clone() });
    let paths = load.paths();
    let half = paths.len() / 2;
    let turned: Vec<_> = paths[half..].iter().chain(&paths[..half]).cloned().collect();
    let mut clients = vec![
        tokio::spawn(seen.clone().pull_in_ranges(client.clone(), load.large.clone())),
        tokio::spawn(seen.clone().pull(client.clone(), vec![path("blobs", &load.large.digest)])),
    ];
    for things in [paths.clone(), turned, paths] {
        clients.push(tokio::spawn(seen.clone().pull(client.clone(), things)));
    }
    let mut all = Box::pin(async {
        for client in clients {
            client.await.unwrap();
        }
    });
    let moment = moment.wait(fake, mark, &seen);
    tokio::select! {
        () = within("the moment of the kill, or the end of the load", moment) => {}
        () = &mut all => {
            roadstead.kill();
            return ready;
        }
    }
    roadstead.kill();
    all.await;
    ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_in_a_loop() {
    println!("seed {SEED}");
    let fake = Fake::start().await;
    // What upstream has sent and nobody has read dies with the process; it shall not count as fetched twice.
    fake.switch(|switch| switch.send_buffer = Some(64 * 1024));
    let home = TempDir::new().unwrap();
    let mut random = SmallRng::seed_from_u64(SEED);
    configure(home.path(), &fake);
    let (seen, mut slowest, mut survived) = (Seen::default(), Duration::ZERO, 0);
    for round in 0..KILLS {
        let load = Load::of_round(round);
        load.push(&fake);
        let moment = Moment::draw(&mut random);
        let committed = seen.committed.lock().unwrap().len();
        survived += committed;
        println!("round {round}: {committed} committed, kill at {moment:?}");
        slowest = slowest.max(live_and_die(home.path(), &fake, moment, &load, &seen).await);
    }
    assert!(slowest < READY_WITHIN, "ready after {slowest:?}");
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml"]);
    let loads: Vec<Load> = (0..KILLS).map(Load::of_round).collect();
    let all: BTreeSet<_> = loads.iter().flat_map(Load::paths).collect();
    seen.clone().pull(Client::new(roadstead.data), all.iter().cloned().collect()).await;
    fake.stop().await;
    roadstead.kill();
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml", "--offline"]);
    for (path, digest) in &all {
        let reply = Client::new(roadstead.data).get(path).expect(200).await;
        assert_eq!(reply.digest(), *digest, "{path}");
    }
    assert_eq!(check_files(&home.path().join("roadstead-data")), all.len());

    let large: BTreeSet<_> = loads.iter().map(|load| &load.large.digest).collect();
    let content = large.len() as u64 * LARGE_BYTES;
    let gets = fake.log().of(Kind::Blob).gets().filter(|entry| entry.status < 300);
    let sent = gets.filter(|entry| large.contains(&entry.reference)).sent();
    let amplification = sent as f64 / content as f64;
    println!(
        "{KILLS} kills, ready after at most {slowest:?}, {survived} committed before a kill, \
         {content} bytes of large blobs cost {sent} ({amplification:.3})"
    );
}

/// What was recorded of a download is not fetched again: all of it but the bytes since the last record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_download_is_continued() {
    const HELD_AT: u64 = 40 * MIB;
    /// Bytes from the beginning of one record of a download to that of the next one, as much again while the last one was being made
    /// durable beside the download, and what may lie in queues behind them.
    const UNRECORDED_MAX: u64 = 2 * 8 * MIB + 2 * MIB;
    let fake = Fake::start().await;
    let blob = Blob::synthetic(499, LARGE_BYTES);
    fake.push_blob("team/app", &blob);
    let gate = Gate::new();
    fake.rule(When::blob().get().about(&blob.digest).once(), Then::gate_at(HELD_AT, &gate));
    let home = TempDir::new().unwrap();
    configure(home.path(), &fake);
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml"]);
    let mut body = Client::new(roadstead.data).blob(NAME, &blob.digest).open().await;
    // The last bytes before the gate may still be gathered.
    body.take(HELD_AT - MIB).await;
    roadstead.kill();
    gate.open();
    let mark = fake.mark();
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml"]);
    let reply = Client::new(roadstead.data).blob(NAME, &blob.digest).expect(200).await;
    assert_eq!(reply.digest(), blob.digest);
    let again = fake.since(mark).of(Kind::Blob).gets().sent();
    let missing = LARGE_BYTES - (HELD_AT - MIB);
    assert!(
        again <= missing + UNRECORDED_MAX,
        "{again} bytes were fetched, {missing} were missing"
    );
}
