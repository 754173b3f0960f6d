//! The upstream: Debian's `docker-registry` on a loopback port, and what its access log says was asked of it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, process};

use super::availability::find;
use super::http::exchange;
use super::images::Library;
use super::process::Watched;
use super::scene::Scene;

/// How long the registry may take until it listens.
const START: Duration = Duration::from_secs(60);
/// How long its log may take until it shows a request.
const LOG: Duration = Duration::from_secs(5);
/// How long a cache may take until it has stored a blob.
const STORED: Duration = Duration::from_secs(60);
/// The ports that are tried: below the range from which the kernel gives ports to clients.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
/// How many ports may turn out to be taken between the probe and the start.
pub(super) const PORT_ATTEMPTS: u32 = 5;

/// A running registry.
pub(crate) struct Upstream {
    process: Watched,
    address: SocketAddr,
    sentinels: AtomicU32,
    /// Keeps the storage while the registry serves it.
    _library: Option<Arc<Library>>,
}

/// One line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path without its query.
    pub(crate) path: String,
    pub(crate) status: u16,
}

impl Request {
    /// Reads a line of Apache's combined format; `None` for a line of the registry's own log.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once("] \"")?;
        let (request, rest) = rest.split_once("\" ")?;
        let mut words = request.split(' ');
        let method = words.next()?.to_owned();
        let path = words.next()?.split('?').next()?.to_owned();
        words.next().filter(|version| version.starts_with("HTTP/"))?;
        let status = rest.split(' ').next()?.parse().ok()?;
        Some(Self { method, path, status })
    }

    /// True for a successful GET of a path that ends so.
    pub(crate) fn got(&self, end: &str) -> bool {
        self.method == "GET" && self.status == 200 && self.path.ends_with(end)
    }
}

impl Upstream {
    /// A registry that serves the library and cannot be written to. Each test has its own, to be stopped at will.
    pub(crate) fn start(scene: &Scene, library: &Arc<Library>) -> Self {
        let config = scene.path("upstream.yml");
        let command = || scene.command("docker-registry");
        let storage = (library.storage(), true, None);
        let mut started = Self::launch(&config, &storage, &command);
        started._library = Some(Arc::clone(library));
        started
    }

    /// A registry into which the images are pushed.
    pub(super) fn writable(work: &Path, storage: &Path) -> Self {
        let program = find("docker-registry").expect("docker-registry was found");
        let command = || {
            let mut command = Command::new(&program);
            command.env_clear();
            command
        };
        Self::launch(&work.join("upstream.yml"), &(storage.to_owned(), false, None), &command)
    }

    /// A registry on a folder of the scene: a pull-through cache of `remote`, or one that serves what is there.
    pub(crate) fn over(scene: &Scene, storage: &Path, remote: Option<SocketAddr>) -> Self {
        let config = scene.path("old.yml");
        let command = || scene.command("docker-registry");
        Self::launch(&config, &(storage.to_owned(), remote.is_none(), remote), &command)
    }

    /// Waits until a blob that went through a cache lies in its folder. The cache stores it behind its answer, and says so nowhere but
    /// in what it answers next.
    pub(crate) fn has_stored(&self, storage: &Path, repository: &str, digest: &str) {
        let link = format!(
            "docker/registry/v2/repositories/{repository}/_layers/{}/link",
            digest.replace(':', "/")
        );
        let deadline = Instant::now() + STORED;
        while !storage.join(&link).exists() {
            assert!(Instant::now() < deadline, "{digest} is not stored\n{}", self.process.tail());
            let path = format!("/v2/{repository}/blobs/{digest}");
            exchange(self.address, "HEAD", &path, None).expect("the cache answers");
        }
    }

    /// Ends it in good order.
    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    fn launch(
        config: &Path,
        storage: &(PathBuf, bool, Option<SocketAddr>),
        command: &dyn Fn() -> Command,
    ) -> Self {
        for _ in 0..PORT_ATTEMPTS {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let text = config_text(address, storage);
            fs::write(config, text).expect("the scene is writable");
            let mut process = Watched::start("upstream", command().arg("serve").arg(config));
            let up = process.line(START, |line| {
                let word = if line.contains("msg=\"listening on ") { Some(true) } else { None };
                word.or_else(|| line.contains("address already in use").then_some(false))
            });
            match up {
                Some(true) => {
                    return Self { process, address, sentinels: AtomicU32::new(0), _library: None };
                }
                Some(false) => {
                    process.stop();
                }
                None => panic!("the upstream does not start\n{}", process.tail()),
            }
        }
        panic!("no free port in {PORT_ATTEMPTS} attempts");
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that was asked so far, once `complete` is true of it. A request of our own marks the end of the
    /// log; the registry writes a line when it has answered, so a line may come a little after its answer.
    pub(crate) fn requests(&self, complete: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        let number = self.sentinels.fetch_add(1, Ordering::Relaxed);
        let mark = format!("/v2/sentinel-{number}/tags/list");
        exchange(self.address, "GET", &mark, None).expect("the upstream answers");
        let parse = |lines: &[String]| -> Vec<_> {
            lines.iter().filter_map(|line| Request::parse(line)).collect()
        };
        // A log that never becomes complete is for the caller to judge.
        self.process.wait_lines(LOG, |lines| {
            let requests = parse(lines);
            requests.iter().any(|request| request.path == mark) && complete(&requests)
        });
        let mut requests = parse(&self.process.lines());
        let marked = requests.iter().any(|request| request.path == mark);
        assert!(marked, "the upstream's log shows {mark}\n{}", self.process.tail());
        requests.retain(|request| !request.path.starts_with("/v2/sentinel-"));
        requests
    }

    /// Kills it, as a cut cable would, and sees that nobody answers any more.
    pub(crate) fn cut_off(&mut self) {
        self.process.kill();
        let refused = TcpStream::connect(self.address);
        assert!(refused.is_err(), "nobody listens where the upstream was");
    }

    /// Ends it in good order.
    pub(super) fn finish(mut self) {
        self.stop();
    }
}

/// The registry's configuration.
fn config_text(
    address: SocketAddr,
    (storage, read_only, remote): &(PathBuf, bool, Option<SocketAddr>),
) -> String {
    let storage = storage.display();
    let proxy = remote.map(|remote| format!("proxy: {{ remoteurl: \"http://{remote}\" }}\n"));
    let proxy = proxy.unwrap_or_default();
    format!(
        r#"version: 0.1
log: {{ level: info, accesslog: {{ disabled: false }} }}
storage:
  filesystem: {{ rootdirectory: "{storage}" }}
  maintenance: {{ uploadpurging: {{ enabled: false }}, readonly: {{ enabled: {read_only} }} }}
http: {{ addr: "{address}", secret: "a secret of the tests" }}
{proxy}"#
    )
}

/// A port on which nobody listens now. Each call in this process starts behind the last one.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(process::id() % u32::from(PORTS)).expect("a remainder is small");
    for _ in 0..PORTS {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let port = FIRST_PORT + (start + offset) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST_PORT} on");
}
