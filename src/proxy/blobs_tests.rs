//! Downloads against a store that has little room, and against an upstream that does not end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::blobs::testing::FaultyDisk;
use crate::blobs::{RealDisk, Volume};
use crate::clock::{Clock, SystemClock};
use crate::content::{Content, MinFree, Settings};
use crate::metadata::Proof;
use crate::proxy::{Metrics, Parts, Source, UpstreamPolicy};
use crate::upstream::{Limits, ProxyEnv, Upstream};

const MIB: u64 = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers every request with one head and then with one piece of the body per permit.
struct Origin {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Origin {
    async fn start(head: String, piece: Vec<u8>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let origin = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            permits: Arc::new(Semaphore::new(0)),
        };
        let (requests, permits) = (Arc::clone(&origin.requests), Arc::clone(&origin.permits));
        let (answer, tasks) = (Arc::new((head.into_bytes(), piece)), TaskTracker::new());
        let inner = tasks.clone();
        tasks.spawn(async move {
            while let Ok((stream, _peer)) = listener.accept().await {
                let (requests, permits) = (Arc::clone(&requests), Arc::clone(&permits));
                inner.spawn(serve(stream, Arc::clone(&answer), requests, permits));
            }
        });
        origin
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: Arc<(Vec<u8>, Vec<u8>)>,
    requests: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    requests.fetch_add(1, Ordering::SeqCst);
    if stream.write_all(&answer.0).await.is_err() {
        return;
    }
    loop {
        permits.acquire().await.unwrap().forget();
        if stream.write_all(&answer.1).await.is_err() {
            return;
        }
    }
}

/// A proxy of one upstream, over a disk that has the room that a test gives it.
struct Scene {
    shared: Arc<Shared>,
    repository: Proxied,
    origin: Origin,
    disk: Arc<FaultyDisk>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _root: tempfile::TempDir,
}

impl Scene {
    async fn new(head: String, piece: Vec<u8>) -> Self {
        let origin = Origin::start(head, piece).await;
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let (mut metrics, tasks) = (Registry::default(), TaskTracker::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let mut settings = Settings::new(root.path().join("data"));
        settings.min_free = MinFree::Bytes(MIB);
        let (on, tracker) = (Arc::clone(&disk) as _, tasks.clone());
        let content =
            Content::open_on(on, settings, Arc::clone(&clock), tracker, &mut metrics).unwrap();
        let settings = upstream::Settings {
            limits: Limits { idle_body: Duration::from_secs(2), ..Limits::default() },
            ..upstream::Settings::new(
                "r.test".parse().unwrap(),
                format!("http://{}", origin.address).parse().unwrap(),
            )
        };
        let shared = upstream::Shared {
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            instance_id: "instance-1".into(),
            metrics: upstream::Metrics::new(&mut metrics),
            proxies: ProxyEnv::default(),
            search_path: None,
            shutdown: CancellationToken::new(),
        };
        let upstream = Arc::new(Upstream::new(settings, &shared).unwrap());
        let source = Source::new(upstream, UpstreamPolicy::default()).unwrap();
        let shutdown = CancellationToken::new();
        let parts = Parts {
            content,
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            metrics: Metrics::new(&mut metrics, clock),
        };
        Self {
            shared: Arc::new(Shared::new(parts)),
            repository: Proxied::new(Arc::new(source), "team/app".parse().unwrap()),
            origin,
            disk,
            tasks,
            shutdown,
            _root: root,
        }
    }

    /// The repository holds the blob, as a manifest told.
    async fn holds(&self, digest: &Digest, size: Option<u64>) {
        let proof = Proof { proved: self.shared.now(), credential: None };
        let metadata = self.shared.content().metadata();
        let proved = metadata.prove(self.repository.key(), digest, size, proof);
        proved.await.unwrap();
    }

    fn free(&self, free: u64) {
        self.disk.set_volume(Some(Volume { total: 1000 * MIB, free }));
    }

    async fn blob(&self, digest: &Digest) -> Result<Blob, Error> {
        timeout(PATIENCE, self.shared.blob(&self.repository, digest, None))
            .await
            .expect("an answer comes in time")
    }

    async fn downloads_over(&self) {
        let over = async {
            while !self.shared.downloads.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, over).await.expect("the download ends");
    }

    async fn finish(self) {
        self.shutdown.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.expect("no task is left");
        self.shared.content().close().await;
    }
}

async fn read(blob: &Blob) -> Vec<u8> {
    let range = ByteRange { start: 0, end: blob.size };
    let frames = blob.body.stream(range).try_collect::<Vec<_>>();
    let frames = timeout(PATIENCE, frames).await.expect("the body ends");
    frames.unwrap().into_iter().flat_map(|chunk| chunk.read().unwrap()).collect()
}

#[tokio::test]
async fn a_download_that_takes_the_last_room_is_joined() {
    let half = vec![7; 4 * 1024 * 1024];
    let whole = [half.clone(), half.clone()].concat();
    let digest = Digest::sha256_of(&whole);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", whole.len());
    let scene = Scene::new(head, half).await;
    scene.holds(&digest, Some(8 * MIB)).await;
    scene.free(10 * MIB);
    scene.origin.permits.add_permits(1);
    let first = scene.blob(&digest).await.unwrap();
    assert_eq!(first.found, Found::Fetched);
    scene.free(2 * MIB);
    let second = scene.blob(&digest).await.unwrap();
    assert_eq!(second.found, Found::Joined);
    scene.origin.permits.add_permits(1);
    assert!(read(&first).await == whole && read(&second).await == whole);
    assert_eq!(scene.origin.requests.load(Ordering::SeqCst), 1);
    scene.finish().await;
}

/// Its client has the last byte while the disk still syncs: the end of the program is no reason to forget the blob.
#[tokio::test]
async fn a_verified_download_is_committed_whatever_ends() {
    let whole = vec![7; 9 * 1024 * 1024];
    let digest = Digest::sha256_of(&whole);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", whole.len());
    let scene = Scene::new(head, whole.clone()).await;
    scene.holds(&digest, Some(9 * MIB)).await;
    scene.origin.permits.add_permits(1);
    scene.disk.hold_syncs(true);
    let blob = scene.blob(&digest).await.unwrap();
    assert!(read(&blob).await == whole);
    scene.shutdown.cancel();
    scene.downloads_over().await;
    scene.disk.hold_syncs(false);
    scene.tasks.close();
    timeout(PATIENCE, scene.tasks.wait()).await.expect("no task is left");
    let found = scene.shared.content().open_blob(scene.repository.key(), &digest).await.unwrap();
    assert!(found.span.is_some(), "it is stored");
    scene.finish().await;
}

#[tokio::test]
async fn a_body_without_length_ends_where_its_descriptor_does() {
    const PIECES: usize = 2000;
    let piece = [b"10000\r\n", &[7; 0x10000][..], b"\r\n"].concat();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let scene = Scene::new(head.to_owned(), piece).await;
    let digest = Digest::sha256_of(b"something else");
    scene.holds(&digest, Some(100_000)).await;
    scene.origin.permits.add_permits(PIECES);
    // An answer or an error: the beginning may be out before the end is known to be wrong.
    drop(scene.blob(&digest).await);
    scene.downloads_over().await;
    let sent = PIECES - scene.origin.permits.available_permits();
    assert!(sent < PIECES / 2, "{sent} of {PIECES} pieces were taken");
    scene.finish().await;
}

#[tokio::test]
async fn a_body_of_unknown_size_stops_where_the_room_ends() {
    let piece = [b"10000\r\n", &[7; 0x10000][..], b"\r\n"].concat();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let scene = Scene::new(head.to_owned(), piece).await;
    let digest = Digest::sha256_of(b"something else");
    scene.holds(&digest, None).await;
    scene.free(64 * MIB);
    scene.origin.permits.add_permits(4);
    let feed = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while scene.origin.requests.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        scene.free(0);
        loop {
            tick.tick().await;
            scene.origin.permits.add_permits(1);
        }
    };
    let answer = tokio::select! {
        answer = scene.blob(&digest) => answer,
        () = feed => unreachable!("it feeds for ever"),
    };
    assert!(answer.is_err(), "there is no size to announce: {answer:?}");
    scene.finish().await;
}

#[tokio::test]
async fn the_rest_of_an_earlier_download_is_waited_for() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let scene = Scene::new(head.to_owned(), b"bytes".to_vec()).await;
    let digest = Digest::sha256_of(b"bytes");
    scene.holds(&digest, Some(5)).await;
    scene.origin.permits.add_permits(1);
    let earlier = scene.shared.content().stage(&digest, Some(5)).await.unwrap();
    let leave = async {
        while scene.origin.requests.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        drop(earlier);
    };
    let (blob, ()) = tokio::join!(scene.blob(&digest), leave);
    let blob = blob.unwrap();
    assert_eq!(blob.found, Found::Fetched);
    assert_eq!(read(&blob).await, b"bytes");
    scene.finish().await;
}

#[tokio::test]
async fn a_download_of_which_nothing_is_missing_needs_no_body() {
    let whole = vec![7; 3 * 1024 * 1024];
    for right in [true, false] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", whole.len());
        let scene = Scene::new(head, whole.clone()).await;
        let digest = Digest::sha256_of(&whole);
        scene.holds(&digest, Some(3 * MIB)).await;
        // As a crash leaves it between the last byte and the commit.
        let stage = scene.shared.content().stage(&digest, Some(3 * MIB)).await.unwrap();
        let left = if right { whole.clone() } else { vec![8; whole.len()] };
        let kept = scene.tasks.spawn_blocking(move || {
            stage.write_at(0, &left).unwrap();
            stage.keep(std::slice::from_ref(&(0..3 * MIB)));
        });
        kept.await.unwrap();
        scene.origin.permits.add_permits(1);
        let blob = scene.blob(&digest).await;
        if right {
            assert!(read(&blob.unwrap()).await == whole);
            assert_eq!(scene.origin.requests.load(Ordering::SeqCst), 0);
        } else if let Ok(blob) = blob {
            let range = ByteRange { start: 0, end: blob.size };
            let frames = blob.body.stream(range).try_collect::<Vec<_>>();
            assert!(timeout(PATIENCE, frames).await.unwrap().is_err(), "wrong bytes to the end");
        }
        scene.downloads_over().await;
        assert_eq!(scene.shared.content().unfinished(&digest).await.unwrap(), None);
        let blob = scene.blob(&digest).await.unwrap();
        assert!(read(&blob).await == whole, "what was wrong is forgotten");
        scene.finish().await;
    }
}
