//! A scripted HTTP/1.1 server that can also misbehave, and an upstream to point at it.
//!
//! Every stub has its own loopback address, so that hosts differ as they do in the world. It records what it was asked, in order.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::SystemClock;
use crate::oci::{Digest, Reference, RepositoryName};
use crate::upstream::{CredentialSource, Limits, Metrics, ProxyEnv, Settings, Shared, Upstream};

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// One request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
    /// `http://address` of the stub itself.
    pub(super) origin: String,
}

/// How the stub answers.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Head and body with the right length.
    Full { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then silence until the client goes.
    Stall(Vec<u8>),
    /// The end of the connection without a byte.
    Close,
    /// As the inner reply, once a permit is there.
    Gate(Arc<Semaphore>, Box<Reply>),
}

#[derive(Debug)]
pub(super) struct Stub {
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    _tasks: TaskTracker,
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    pub(super) fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }
}

/// An answer with a body.
pub(super) fn reply(status: u16, body: impl AsRef<[u8]>) -> Reply {
    Reply::Full { status, headers: Vec::new(), body: body.as_ref().to_vec() }
}

impl Reply {
    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        if let Self::Full { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.into()));
        }
        self
    }
}

pub(super) fn redirect_to(location: impl Into<String>) -> Reply {
    reply(307, "moved").with("location", location)
}

/// 401 with a Bearer challenge.
pub(super) fn challenge(realm: &str, scope: &str) -> Reply {
    let value = format!(r#"Bearer realm="{realm}",service="stub",scope="{scope}""#);
    reply(401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#).with("www-authenticate", value)
}

impl Stub {
    /// A stub at `ip`, one of 127/8.
    pub(super) async fn start(
        ip: &str,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let tasks = TaskTracker::new();
        let (inner, shared) = (tasks.clone(), Arc::clone(&log));
        tasks.spawn(async move {
            while let Ok((stream, _peer)) = listener.accept().await {
                inner.spawn(serve(stream, address, Arc::clone(&script), Arc::clone(&shared)));
            }
        });
        Self { address, log, _tasks: tasks }
    }

    pub(super) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that was asked so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// How many requests had a path that contains `part`.
    pub(super) fn count(&self, part: &str) -> usize {
        let log = self.log.lock().unwrap();
        log.iter().filter(|seen| seen.path.contains(part)).count()
    }
}

async fn serve(
    mut stream: TcpStream,
    address: SocketAddr,
    script: Arc<Script>,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    let mut unread = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut unread, address).await {
        log.lock().unwrap().push(seen.clone());
        let mut answer = script(&seen);
        while let Reply::Gate(gate, inner) = answer {
            gate.acquire().await.unwrap().forget();
            answer = *inner;
        }
        match answer {
            Reply::Full { status, headers, body } => {
                let head = head(status, &headers, body.len());
                let body = if seen.method == "HEAD" { Vec::new() } else { body };
                let whole = [head.into_bytes(), body].concat();
                if stream.write_all(&whole).await.is_err() {
                    return;
                }
            }
            Reply::Raw(bytes) => {
                drop(stream.write_all(&bytes).await);
                return;
            }
            Reply::Stall(bytes) => {
                drop(stream.write_all(&bytes).await);
                // Until the client gives up.
                drop(stream.read(&mut [0]).await);
                return;
            }
            Reply::Close | Reply::Gate(..) => return,
        }
    }
}

fn head(status: u16, headers: &[(String, String)], length: usize) -> String {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| name == "content-length") {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head + "\r\n"
}

async fn read_request(
    stream: &mut TcpStream,
    unread: &mut Vec<u8>,
    address: SocketAddr,
) -> Option<Seen> {
    let end = loop {
        if let Some(at) = unread.windows(4).position(|part| part == b"\r\n\r\n") {
            break at;
        }
        assert!(unread.len() < HEAD_BYTES_MAX, "the head of a request is too long");
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(unread[..end].to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    unread.drain(..end + 4);
    while unread.len() < length {
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(unread.drain(..length).collect()).unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Seen {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
        origin: format!("http://{address}"),
    })
}

/// Limits that let a failing test end soon.
pub(super) fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(2),
        headers: Duration::from_secs(2),
        answer: Duration::from_secs(5),
        exchange: Duration::from_secs(5),
        listing: Duration::from_secs(10),
        idle_body: Duration::from_millis(200),
        token: Duration::from_secs(3),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..Limits::default()
    }
}

pub(super) fn settings(url: &str, credential: CredentialSource) -> Settings {
    Settings {
        credential,
        limits: limits(),
        ..Settings::new("stub.example".parse().unwrap(), url.parse().unwrap())
    }
}

pub(super) fn shared() -> (Shared, Registry) {
    let mut registry = Registry::default();
    let shared = Shared {
        clock: Arc::new(SystemClock),
        tasks: TaskTracker::new(),
        instance_id: "instance-1".into(),
        metrics: Metrics::new(&mut registry),
        proxies: ProxyEnv::default(),
        search_path: None,
        shutdown: CancellationToken::new(),
    };
    (shared, registry)
}

pub(super) fn build(settings: Settings) -> Arc<Upstream> {
    Arc::new(Upstream::new(settings, &shared().0).unwrap())
}

/// An upstream at the stub that asks anonymously.
pub(super) fn anonymous(stub: &Stub) -> Arc<Upstream> {
    build(settings(&stub.origin(), CredentialSource::None))
}

pub(super) fn basic() -> CredentialSource {
    CredentialSource::Basic { username: "bot".into(), password: "hunter2".into() }
}

/// The Authorization that goes with [`basic`].
pub(super) const BASIC: &str = "Basic Ym90Omh1bnRlcjI=";

/// An upstream at the stub that has a password.
pub(super) fn known(stub: &Stub) -> Arc<Upstream> {
    build(settings(&stub.origin(), basic()))
}

pub(super) fn name() -> RepositoryName {
    "org/app".parse().unwrap()
}

pub(super) fn tag() -> Reference {
    "v1".parse().unwrap()
}

pub(super) fn digest() -> Digest {
    Digest::sha256_of(b"blob")
}

pub(super) fn blob_path() -> String {
    format!("/v2/org/app/blobs/{}", digest())
}

pub(super) const MANIFEST: &str = r#"{ "schemaVersion":2,"layers":[] }"#;
pub(super) const MANIFEST_PATH: &str = "/v2/org/app/manifests/v1";
