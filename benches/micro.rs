//! What single steps cost: reading a route, a look-up in the metadata, the loop of one client that follows a download.
//!
//! `cargo bench --bench micro` runs it. It guides work on one of these steps; what counts is `benches/run`, which measures whole requests.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to say")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use divan::Bencher;
use divan::counter::BytesCount;
use futures_util::{FutureExt as _, TryStreamExt as _};
use http::Method;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use roadstead::clock::{Clock, SystemClock};
use roadstead::content::{self, Content, MinFree};
use roadstead::metadata::populate::{Plan, populate};
use roadstead::metadata::{self, Metadata, Proof};
use roadstead::oci::{ByteRange, Digest};
use roadstead::proxy::{self, Blob, Proxied, Proxy, Source, UpstreamPolicy};
use roadstead::server::{Limits, doors};
use roadstead::upstream::{self, ProxyEnv, Upstream};

/// Tags in the store, and how many of them the small cache keeps.
const TAGS: u32 = 5_000;
const BLOBS: u32 = 20_000;
const FEW_RECORDS: u64 = 16;
/// Bytes of the download that is followed, how many of them come, and how many are followed.
const BLOB_BYTES: u64 = 24 << 20;
const SENT_BYTES: usize = 20 << 20;
const FOLLOWED_BYTES: u64 = 16 << 20;

fn main() {
    divan::main();
}

#[divan::bench(args = ["ping", "tag", "digest", "blob"])]
fn route(bencher: Bencher<'_, '_>, kind: &str) {
    let digest = Digest::sha256_of(b"whatever");
    let path = match kind {
        "ping" => "/v2/".to_owned(),
        "tag" => "/v2/library/alpine/manifests/3.20".to_owned(),
        "digest" => format!("/v2/ghcr.io/organisation/image/manifests/{digest}"),
        _ => format!("/v2/library/alpine/blobs/{digest}"),
    };
    let limits = Limits::default();
    assert!(doors::is_route(&Method::GET, &path, None, &limits));
    bencher.bench(|| doors::is_route(&Method::GET, divan::black_box(&path), None, &limits));
}

/// A store of a few thousand tags.
struct Store {
    plan: Plan,
    metadata: Metadata,
    runtime: Runtime,
    _root: tempfile::TempDir,
}

impl Store {
    fn new(hot_records_max: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("rows.db");
        let plan = Plan::new("docker.io".parse().unwrap(), SystemClock.now(), BLOBS, TAGS);
        populate(&path, &plan, &mut |_| Ok(None)).unwrap();
        let settings = metadata::Settings { hot_records_max, ..metadata::Settings::new(path) };
        let metadata =
            Metadata::open(settings, Arc::new(SystemClock), &mut Registry::default()).unwrap();
        Self { plan, metadata, runtime: Runtime::new().unwrap(), _root: root }
    }
}

#[divan::bench]
fn look_up_of_a_hot_tag(bencher: Bencher<'_, '_>) {
    let store = Store::new(metadata::HOT_RECORDS_MAX_DEFAULT);
    let (repository, tag) = (store.plan.repository(7), store.plan.tag(7));
    assert!(store.runtime.block_on(store.metadata.tag(&repository, &tag)).unwrap().is_some());
    // What is hot is answered without waiting.
    bencher.bench(|| store.metadata.tag(&repository, &tag).now_or_never().unwrap().unwrap());
}

#[divan::bench]
fn look_up_of_a_cold_tag(bencher: Bencher<'_, '_>) {
    let store = Store::new(FEW_RECORDS);
    let mut image = 0;
    let next = || {
        // A number without a common divisor: all tags have their turn.
        image = (image + 1_237) % TAGS;
        (store.plan.repository(image), store.plan.tag(image))
    };
    bencher.with_inputs(next).bench_local_refs(|(repository, tag)| {
        store.runtime.block_on(store.metadata.tag(repository, tag)).unwrap().unwrap()
    });
}

/// A download that has given much and has not ended.
struct Download {
    blob: Blob,
    runtime: Runtime,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    content: Content,
    _root: tempfile::TempDir,
}

impl Download {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let root = tempfile::tempdir().unwrap();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let inside = runtime.enter();
        let (proxy, repository, content) = proxy(root.path().into(), &tasks, &shutdown);
        let digest = Digest::sha256_of(b"whatever is never seen as a whole");
        let blob = runtime.block_on(async {
            let proof = Proof { proved: SystemClock.now(), credential: None };
            let metadata = content.metadata();
            let proved = metadata.prove(repository.key(), &digest, Some(BLOB_BYTES), proof);
            proved.await.unwrap();
            proxy.blob(&repository, &digest, None).await.unwrap()
        });
        drop(inside);
        Self { blob, runtime, tasks, shutdown, content, _root: root }
    }

    /// Takes the first part as a client does.
    fn follow(&self) {
        let frames = self.blob.body.stream(ByteRange { start: 0, end: FOLLOWED_BYTES });
        let taken = frames.try_for_each(|frame| async {
            divan::black_box_drop(frame);
            Ok(())
        });
        self.runtime.block_on(taken).unwrap();
    }

    fn finish(self) {
        self.shutdown.cancel();
        self.tasks.close();
        drop(self.blob);
        self.runtime.block_on(async {
            self.tasks.wait().await;
            self.content.close().await;
        });
    }
}

/// A proxy of one upstream, which sends most of a blob and then waits.
fn proxy(
    root: PathBuf,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> (Proxy, Proxied, Content) {
    let mut metrics = Registry::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = content::Settings {
        min_free: MinFree::Bytes(1 << 20),
        ..content::Settings::new(root.join("data"))
    };
    let content = Content::open(settings, Arc::clone(&clock), tasks.clone(), &mut metrics).unwrap();
    let url = format!("http://{}", origin()).parse().unwrap();
    let settings = upstream::Settings::new("r.test".parse().unwrap(), url);
    let shared = upstream::Shared {
        clock: Arc::clone(&clock),
        tasks: tasks.clone(),
        instance_id: "bench".into(),
        metrics: upstream::Metrics::new(&mut metrics),
        proxies: ProxyEnv::default(),
        search_path: None,
        shutdown: shutdown.clone(),
    };
    let upstream = Arc::new(Upstream::new(settings, &shared).unwrap());
    let source = Source::new(upstream, UpstreamPolicy::default()).unwrap();
    let parts = proxy::Parts {
        content: content.clone(),
        clock: Arc::clone(&clock),
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
        metrics: proxy::Metrics::new(&mut metrics, clock),
    };
    let repository = Proxied::new(Arc::new(source), "team/app".parse().unwrap());
    (Proxy::new(parts), repository, content)
}

fn origin() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|n| n > 0) {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BLOB_BYTES}\r\n\r\n");
                    stream.write_all(head.as_bytes()).ok();
                    stream.write_all(&vec![7; SENT_BYTES]).ok();
                }
            });
        }
    });
    address
}

#[divan::bench(sample_count = 20)]
fn follow_16_mib_of_a_download(bencher: Bencher<'_, '_>) {
    let download = Download::start();
    // The first time waits for the bytes.
    download.follow();
    bencher.counter(BytesCount::new(FOLLOWED_BYTES)).bench_local(|| download.follow());
    download.finish();
}
