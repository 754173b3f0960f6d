//! The servers that are measured side by side, each with the configuration that a careful operator would give it.
//!
//! All serve the same paths on loopback and write no access log, unless their column says so. A program that is not installed is left
//! out and named.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::image::{Blob, Image, MANIFEST_TYPE, REPOSITORY};
use crate::process::{Process, find};

/// How long a server may take to answer after its start.
const START: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_micros(200);
const CONNECT: Duration = Duration::from_secs(2);
/// Ports below those that the kernel lends to clients.
const FIRST_PORT: u16 = 21000;
const PORTS: u16 = 9000;
/// The name under which roadstead knows the origin.
pub(crate) const UPSTREAM: &str = "bench.test";

/// The origin itself, without a cache.
pub(crate) const DIRECT: &str = "direct";
/// Static files, one worker: the measure of all things.
pub(crate) const NGINX: &str = "nginx";
pub(crate) const NGINX_2: &str = "nginx 2w";
pub(crate) const REGISTRY: &str = "registry";
pub(crate) const REGISTRY_CACHE: &str = "registry cache";
pub(crate) const NGINX_CACHE: &str = "nginx cache";
pub(crate) const ROADSTEAD: &str = "roadstead";

/// What a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    NginxStatic {
        workers: u8,
    },
    NginxCache,
    Registry {
        cache: bool,
    },
    /// With its access log, and with its scrub of stored content.
    Roadstead {
        program: PathBuf,
        log: bool,
        scrub: bool,
    },
}

/// A server and its column.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) column: String,
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

/// Where a roadstead with this directory keeps a blob.
pub(crate) fn stored(home: &Path, blob: &Blob) -> PathBuf {
    home.join("data/blobs/sha256").join(hex(&blob.digest))
}

/// Where a hosted registry with this store keeps a blob.
pub(crate) fn hosted(store: &Path, blob: &Blob) -> PathBuf {
    let hex = hex(&blob.digest);
    let blobs = store.join("docker/registry/v2/blobs/sha256");
    blobs.join(&hex[..2]).join(hex).join("data")
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

/// What all servers are started from.
#[derive(Debug)]
pub(crate) struct Ground {
    /// The directory of this run.
    pub(crate) home: PathBuf,
    /// The tree of the content.
    pub(crate) root: PathBuf,
    pub(crate) origin: SocketAddr,
}

impl Kind {
    pub(crate) fn is_roadstead(&self) -> bool {
        matches!(self, Self::Roadstead { .. })
    }

    /// Does it fetch what it has not?
    pub(crate) fn is_cache(&self) -> bool {
        matches!(self, Self::NginxCache | Self::Registry { cache: true } | Self::Roadstead { .. })
    }

    fn program(&self) -> Option<PathBuf> {
        match self {
            Self::NginxStatic { .. } | Self::NginxCache => find("nginx"),
            Self::Registry { .. } => find("docker-registry"),
            Self::Roadstead { program, .. } => program.is_file().then(|| program.clone()),
        }
    }

    /// Why it cannot be started here.
    pub(crate) fn missing(&self) -> Option<String> {
        let name = match self {
            Self::NginxStatic { .. } | Self::NginxCache => "nginx".to_owned(),
            Self::Registry { .. } => "docker-registry".to_owned(),
            Self::Roadstead { program, .. } => program.display().to_string(),
        };
        self.program().is_none().then(|| format!("{name} not found"))
    }
}

impl Ground {
    /// Where a server keeps its things.
    pub(crate) fn directory(&self, column: &str) -> PathBuf {
        self.home.join(column.replace([' ', '/'], "-"))
    }

    /// Starts a server and waits until it answers; how long that took.
    pub(crate) fn start(&self, column: &str, kind: &Kind) -> Result<(Server, Duration)> {
        let home = self.directory(column);
        fs::create_dir_all(&home)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let program = kind.program().ok_or_else(|| kind.missing().unwrap_or_default())?;
        let mut command = Command::new(program);
        match kind {
            Kind::NginxStatic { workers } => {
                let text = self.nginx(&home, *workers, &self.static_server(address));
                fs::write(home.join("nginx.conf"), text)?;
                command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
            }
            Kind::NginxCache => {
                let text = self.nginx(&home, 2, &self.cache_server(address, &home));
                fs::write(home.join("nginx.conf"), text)?;
                command.arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
            }
            Kind::Registry { cache } => {
                fs::write(home.join("config.yml"), self.registry(address, &home, *cache))?;
                command.arg("serve").arg(home.join("config.yml"));
            }
            Kind::Roadstead { log, scrub, .. } => {
                fs::write(home.join("roadstead.toml"), self.roadstead(address, *log, *scrub))?;
                command.args(["serve", "--config"]).arg(home.join("roadstead.toml"));
                command.arg("--data").arg(home.join("data"));
            }
        }
        let started = Instant::now();
        let mut process = Process::start(&mut command, &home)?;
        while !answers(address) {
            if process.has_ended()? || started.elapsed() > START {
                return Err(format!("{column} does not start\n{}", process.tail()).into());
            }
            thread::park_timeout(POLL);
        }
        let took = started.elapsed();
        Ok((Server { column: column.to_owned(), kind: kind.clone(), address, process }, took))
    }

    fn nginx(&self, home: &Path, workers: u8, server: &str) -> String {
        // As root nginx would give its rights away to a user who may not read below our home directory.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let home = home.display();
        format!(
            r#"{user} worker_processes {workers}; daemon off; error_log "{home}/error.log"; pid "{home}/pid";
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; keepalive_timeout 300s;
  open_file_cache max=1000;
  client_body_temp_path "{home}/body"; proxy_temp_path "{home}/proxy"; fastcgi_temp_path "{home}/fastcgi";
  uwsgi_temp_path "{home}/uwsgi"; scgi_temp_path "{home}/scgi";
{server}
}}
"#
        )
    }

    fn static_server(&self, address: SocketAddr) -> String {
        let root = self.root.display();
        format!(
            r#"  server {{
    listen {address}; root "{root}"; default_type application/octet-stream;
    location = /v2/ {{ return 200 "{{}}"; }}
    location /v2/{REPOSITORY}/manifests/ {{ default_type {MANIFEST_TYPE}; }}
    location /v2/ {{ }}
  }}"#
        )
    }

    fn cache_server(&self, address: SocketAddr, home: &Path) -> String {
        let (origin, home) = (self.origin, home.display());
        format!(
            r#"  proxy_cache_path "{home}/cache" levels=1:2 keys_zone=images:64m max_size=100g inactive=1d use_temp_path=off;
  upstream origin {{ server {origin}; keepalive 32; }}
  server {{
    listen {address};
    location = /v2/ {{ return 200 "{{}}"; }}
    location /v2/ {{
      proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 600s;
      proxy_cache images; proxy_cache_key $uri; proxy_cache_valid 200 206 1h;
      proxy_cache_lock on; proxy_cache_lock_timeout 600s; proxy_cache_lock_age 600s;
      proxy_cache_use_stale error timeout updating http_500 http_502 http_503 http_504;
    }}
  }}"#
        )
    }

    fn registry(&self, address: SocketAddr, home: &Path, cache: bool) -> String {
        let proxy = if cache {
            format!("proxy: {{ remoteurl: \"http://{}\" }}\n", self.origin)
        } else {
            String::new()
        };
        format!(
            r#"version: 0.1
log: {{ level: error, accesslog: {{ disabled: true }} }}
storage:
  cache: {{ blobdescriptor: inmemory }}
  filesystem: {{ rootdirectory: "{}" }}
  maintenance: {{ uploadpurging: {{ enabled: false }} }}
http: {{ addr: "{address}", secret: "benches" }}
{proxy}"#,
            home.join("store").display()
        )
    }

    fn roadstead(&self, address: SocketAddr, log: bool, scrub: bool) -> String {
        let filter =
            if log { "" } else { "log_filter = \"roadstead::access=off,roadstead=info,warn\"\n" };
        let scrub = if scrub { "" } else { "scrub_period = \"off\"\n" };
        format!(
            r#"listen = "{address}"
observe = "127.0.0.1:0"
{filter}{scrub}default_upstream = "{UPSTREAM}"
builtin_upstreams = false
min_free = "64MiB"
tag_fresh_for = "1h"
[upstream."{UPSTREAM}"]
url = "http://{}"
"#,
            self.origin
        )
    }
}

/// Puts an image into the store of a hosted registry, as links to the files of the tree. The layout is that of the file system driver.
pub(crate) fn host(store: &Path, images: &[Image], blobs: &[Blob]) -> Result<()> {
    let v2 = store.join("docker/registry/v2");
    let repository = v2.join("repositories").join(REPOSITORY);
    let link = |path: PathBuf, digest: &str| -> Result<()> {
        fs::create_dir_all(&path)?;
        Ok(fs::write(path.join("link"), digest)?)
    };
    let add = |blob: &Blob| -> Result<()> {
        let data = hosted(store, blob);
        if !data.exists() {
            fs::create_dir_all(data.parent().ok_or("a blob has a directory")?)?;
            fs::hard_link(&blob.file, data)?;
        }
        link(repository.join("_layers/sha256").join(hex(&blob.digest)), &blob.digest)
    };
    for image in images {
        add(&image.manifest)?;
        image.blobs().try_for_each(&add)?;
        let (digest, manifests) = (&image.manifest.digest, repository.join("_manifests"));
        link(manifests.join("revisions/sha256").join(hex(digest)), digest)?;
        let tag = manifests.join("tags").join(&image.tag);
        link(tag.join("current"), digest)?;
        link(tag.join("index/sha256").join(hex(digest)), digest)?;
    }
    blobs.iter().try_for_each(add)
}

/// Does somebody say 200 to `GET /v2/`?
fn answers(address: SocketAddr) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
        stream.set_read_timeout(Some(CONNECT))?;
        write!(stream, "GET /v2/ HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status == *b"HTTP/1.1 200")
    };
    asked().unwrap_or(false)
}

/// A port on which nobody listens now, each one given once.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(PORTS))?;
    for _ in 0..PORTS {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let port = FIRST_PORT + (start + offset) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(format!("no free port from {FIRST_PORT} on").into())
}
