//! Clients that are slow, idle, many or gone: each harms only himself, is told so where he can be, and leaves nothing behind.
//!
//! `Scene::over` ends every test: a well-behaved client is served while the rude ones are still there, and when they are gone no
//! connection of theirs is left. What is wrong with the bytes of a request is in `rude_requests`.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, interval};

use crate::support::client::{Client, Connection, End, Incoming};
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::Fake;
use crate::support::gate::within;
use crate::support::pull::{is_manifest, pull};
use crate::support::world::{Metrics, World};

pub(super) const NAME: &str = "team/app";
/// More than all buffers between two sockets hold.
const LARGE: u64 = 32 * MIB;

/// A world with a warm image, one layer of which is large.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) image: Image,
    pub(super) large: Blob,
    pub(super) fake: Fake,
    mark: usize,
}

impl Scene {
    pub(super) async fn with(limits: &str) -> Self {
        let fake = Fake::start().await;
        let large = Blob::synthetic(4, LARGE);
        let image = Image::build("rude").layer(Blob::layer("rude", 5000)).layer(large.clone());
        let image = image.finish();
        fake.push(NAME, "latest", &image);
        let tables = format!("[limits]\n{limits}\n");
        let world = World::builder().upstream("docker.io", &fake).tables(&tables).start().await;
        pull(&world.client(), NAME, "latest", &image).await;
        world.downloads_over().await;
        let mark = fake.mark();
        Self { world, image, large, fake, mark }
    }

    pub(super) fn client(&self) -> Client {
        self.world.client()
    }

    /// A request for the large layer of which only the head is read.
    async fn stuck(&self, client: &Client) -> Incoming {
        let body = client.blob(NAME, &self.large.digest).open().await;
        assert_eq!(body.status, 200);
        body
    }

    /// A well-behaved client gets everything.
    pub(super) async fn serves_others(&self) {
        let other = self.client().at_loopback(9);
        is_manifest(&other.manifest(NAME, "latest").expect(200).await, &self.image);
        let body = other.blob(NAME, &self.large.digest).open().await;
        body.hashed().await.is_whole(&self.large.digest, LARGE);
    }

    pub(super) async fn reached(&self, limit: &str) -> f64 {
        self.world.metrics().await.sum("roadstead_limits_reached_total", &[("limit", limit)])
    }

    /// The rude ones are gone: none of their connections is left, and upstream never heard of them.
    pub(super) async fn over(self) {
        self.serves_others().await;
        // The scrape itself is on a connection.
        let alone = |metrics: &Metrics| metrics.sum("roadstead_connections", &[]) < 1.5;
        self.world.metrics_where("the rude clients' connections to end", alone).await;
        self.fake.since(self.mark).expect_none("upstream is not bothered");
        self.world.finish().await;
    }
}

/// The status and the JSON of an answer that was read to the end of its connection.
#[track_caller]
pub(super) fn refusal(answer: &[u8], status: u16) {
    let text = String::from_utf8_lossy(answer);
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{status} was expected: {text:.300}");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head ends");
    assert!(head.to_lowercase().contains("connection: close"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).expect("an error in JSON");
    assert!(body["errors"][0]["message"].is_string(), "{body}");
}

#[tokio::test]
async fn two_hundred_half_sent_heads() {
    let scene = Scene::with("header_time = \"1s\"").await;
    let mut halves = Vec::new();
    for n in 0..200_usize {
        let mut connection = scene.client().connect().await;
        let head = "GET /v2/team/app/manifests/latest HTTP/1.1\r\nHost: x\r\nX-Long: ";
        connection.send(&head.as_bytes()[..=n % head.len()]).await;
        halves.push(connection);
    }
    scene.serves_others().await;
    for answer in join_all(halves.into_iter().map(Connection::drain)).await {
        refusal(&answer, 408);
    }
    assert!(scene.reached("header_time").await >= 200.0);
    scene.over().await;
}

#[tokio::test]
async fn a_head_that_trickles_has_no_more_time_than_another() {
    let scene = Scene::with("header_time = \"500ms\"").await;
    let began = Instant::now();
    let mut connection = scene.client().connect().await;
    let mut pace = interval(Duration::from_millis(20));
    let mut sent = 0;
    // The server reads on for a moment after its answer, so that the client can read it; then the bytes have nowhere to go.
    while connection.try_send(b"G").await && began.elapsed() < Duration::from_secs(20) {
        sent += 1;
        pace.tick().await;
    }
    refusal(&connection.drain().await, 408);
    assert!(sent > 2, "the head trickled");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    scene.over().await;
}

#[tokio::test]
async fn one_client_cannot_take_all_places() {
    let scene = Scene::with("connections_per_client = 3").await;
    let greedy = scene.client().at_loopback(2);
    let mut stuck = Vec::new();
    for _ in 0..3 {
        stuck.push(scene.stuck(&greedy).await);
    }
    let one_more = greedy.connect().await;
    refusal(&one_more.drain().await, 503);
    let reply = greedy.get("/v2/").send().await;
    assert_eq!(reply.status, 503, "whether the request comes before the answer or after it");
    reply.error("UNAVAILABLE");
    scene.serves_others().await;
    assert!(scene.reached("connections_per_client").await >= 2.0);
    drop(stuck.pop());
    let free = |metrics: &Metrics| metrics.sum("roadstead_connections", &[]) < 3.5;
    scene.world.metrics_where("a place to be free", free).await;
    greedy.get("/v2/").expect(200).await;
    drop(stuck);
    scene.over().await;
}

#[tokio::test]
async fn without_a_place_the_next_client_hears_so_in_time() {
    let scene = Scene::with("connections = 8").await;
    let mut stuck = Vec::new();
    for last in 20..28 {
        stuck.push(scene.stuck(&scene.client().at_loopback(last)).await);
    }
    let began = Instant::now();
    let refused: Vec<_> = (30..60)
        .map(|last| scene.client().at_loopback(last))
        .map(|client| async move {
            client.get("/v2/").send().await.expect("no place", 503).error("UNAVAILABLE");
        })
        .collect();
    // All of them together, and not one after the other.
    join_all(refused).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(scene.reached("connections").await >= 30.0);
    let lines = scene.world.log_lines();
    let told = lines.iter().filter(|line| line.contains("connections are refused")).count();
    assert!((1..10).contains(&told), "told now and then, not {told} times");
    drop(stuck.pop());
    within("a place", async {
        while scene.client().at_loopback(99).get("/v2/").send().await.status != 200 {}
    })
    .await;
    drop(stuck);
    within("a place", async {
        while scene.client().at_loopback(9).get("/v2/").send().await.status != 200 {}
    })
    .await;
    scene.over().await;
}

#[tokio::test]
async fn thousands_of_idle_connections_make_room() {
    let scene = Scene::with("connections = 400\nconnections_per_client = 400").await;
    let mut idle = Vec::new();
    for last in 20..30 {
        for _ in 0..200 {
            idle.push(scene.client().at_loopback(last).connect().await);
        }
    }
    // Idle for a second, they are ended as soon as somebody wants their places.
    within("a place", async {
        while scene.client().at_loopback(9).get("/v2/").send().await.status != 200 {}
    })
    .await;
    scene.serves_others().await;
    drop(idle);
    within("all places", async {
        while scene.client().at_loopback(9).get("/v2/").send().await.status != 200 {}
    })
    .await;
    scene.over().await;
}

/// Takes a little at a time, with pauses; gives how the body ended and how many bytes came.
async fn trickle(mut body: Incoming, piece: u64, most: u64) -> (Option<End>, u64) {
    let mut pace = interval(Duration::from_millis(50));
    let mut taken = 0;
    while taken < most {
        pace.tick().await;
        let mut wanted = piece;
        while wanted > 0 {
            match body.next_up_to(usize::try_from(wanted).expect("small")).await {
                Some(bytes) => {
                    let count = u64::try_from(bytes.len()).expect("small");
                    taken += count;
                    wanted -= count;
                }
                None => return (body.end(), taken),
            }
        }
    }
    (None, taken)
}

#[tokio::test]
async fn a_reader_that_takes_a_byte_now_and_then_is_cut() {
    // A thousandth of what the others take, and yet it never pauses for long.
    let scene = Scene::with("idle_body = \"3s\"\nmin_rate = \"1GiB\"").await;
    let slow = scene.stuck(&scene.client()).await;
    let (end, taken) = trickle(slow, 150_000, LARGE).await;
    assert!(matches!(end, Some(End::Cut | End::Reset)), "{end:?} after {taken}");
    assert!(taken < LARGE);
    assert_eq!(scene.reached("min_rate").await, 1.0);
    scene.over().await;
}

#[tokio::test]
async fn a_slow_reader_that_goes_on_reading_is_left_in_peace() {
    let scene = Scene::with("idle_body = \"1s\"\nmin_rate = \"10KiB\"").await;
    let slow = scene.stuck(&scene.client()).await;
    let (end, taken) = trickle(slow, 400_000, 16 * MIB).await;
    assert_eq!(end, None, "after {taken}");
    assert_eq!(scene.reached("min_rate").await + scene.reached("idle_body").await, 0.0);
    scene.over().await;
}

#[tokio::test]
async fn a_reader_that_stops_is_cut() {
    let scene = Scene::with("idle_body = \"1s\"").await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(scene.stuck(&scene.client()).await);
    }
    scene.serves_others().await;
    let all = |metrics: &Metrics| {
        metrics.sum("roadstead_limits_reached_total", &[("limit", "idle_body")]) >= 20.0
    };
    scene.world.metrics_where("the readers to be cut", all).await;
    for body in stuck {
        assert_ne!(body.hashed().await.end, End::Clean);
    }
    scene.over().await;
}

#[tokio::test]
async fn clients_that_leave_at_every_byte_of_their_request() {
    let scene = Scene::with("").await;
    let request = scene.client().manifest(NAME, "latest").bytes();
    for end in 0..=request.len() {
        let mut connection = scene.client().connect().await;
        connection.send(&request[..end]).await;
        drop(connection);
        let mut half = scene.client().connect().await;
        half.send(&request[..end]).await;
        half.finish_sending().await;
        let answer = half.drain().await;
        let text = String::from_utf8_lossy(&answer);
        if end == request.len() {
            assert!(text.starts_with("HTTP/1.1 200 "), "a whole request is answered: {text}");
        } else {
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{end}: {text}");
        }
    }
    scene.over().await;
}

#[tokio::test]
async fn clients_that_leave_at_every_byte_of_the_answer() {
    let scene = Scene::with("").await;
    let manifest = scene.client().manifest(NAME, "latest");
    let small = scene.client().blob(NAME, &scene.image.blobs[1].digest);
    for (request, step) in [(&manifest, 3), (&small, 61)] {
        let request = request.clone().header("Connection", "close");
        let mut whole = scene.client().connect().await;
        whole.send(&request.bytes()).await;
        let length = whole.drain().await.len();
        for taken in (0..length).step_by(step) {
            let mut connection = scene.client().connect().await;
            connection.send(&request.bytes()).await;
            assert_eq!(connection.read_up_to(taken).await.len(), taken);
        }
    }
    for taken in [1, 1000, 65_536, 1_000_000, 20_000_000, LARGE - 1] {
        let mut body = scene.stuck(&scene.client()).await;
        body.take(taken).await;
    }
    scene.over().await;
}

#[tokio::test]
async fn clients_that_leave_a_cold_blob_harm_no_other() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(5, 8 * MIB);
    fake.push(NAME, "latest", &Image::build("left").layer(blob.clone()).finish());
    let world = World::with(&fake).await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let stayed = client.blob(NAME, &blob.digest).open().await;
    for taken in [0, 1, 4096, 100_000, 7 * MIB] {
        let mut body = client.blob(NAME, &blob.digest).open().await;
        body.take(taken).await;
    }
    stayed.hashed().await.is_whole(&blob.digest, blob.len());
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len(), "one download for all of them");
    world.finish().await;
}
