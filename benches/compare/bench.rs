//! One run: the servers that stay for all of it, the figures, and what all measures need.
//!
//! CPU is taken between two moments at which a server rests, so that what it does behind an answer is its own too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::{Client, Take};
use crate::figures as f;
use crate::image::{Contents, Image};
use crate::options::Options;
use crate::origin::Origin;
use crate::peers::{self, Ground, Kind, Server};
use crate::process::{Memory, cpu_seconds, find};
use crate::table::{Table, eprint};

/// A server rests when it used no CPU, and the origin had nothing to do, for this long; in a check, which has no use for exact figures.
const REST: Duration = Duration::from_millis(300);
const REST_TINY: Duration = Duration::from_millis(50);
/// After this long it is measured as it is; what it does by itself counts as its own.
const REST_LIMIT: Duration = Duration::from_secs(60);
const REST_POLL: Duration = Duration::from_millis(20);
const SAMPLE: Duration = Duration::from_millis(100);

const MIB: f64 = 1024.0 * 1024.0;
pub(crate) const GIB: f64 = 1024.0 * MIB;

/// A run.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) ground: Ground,
    pub(crate) contents: Contents,
    pub(crate) origin: Origin,
    /// The image that everybody has.
    pub(crate) image: Image,
    pub(crate) servers: Vec<Server>,
    pub(crate) table: Table,
    sampler: Sampler,
}

/// CPU and upstream at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    cpu: f64,
    upstream: u64,
    requests: u64,
    pings: u64,
}

/// What happened between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) cpu: f64,
    pub(crate) upstream: u64,
    pub(crate) requests: u64,
    pub(crate) pings: u64,
}

impl Bench {
    /// Makes the content, starts whom it can, and lets everybody pull the image once.
    pub(crate) fn new(options: Options, home: &Path, required: bool) -> Result<Self> {
        eprint("making the image, starting the servers");
        let mut contents = Contents::new(home.join("www"))?;
        let mut layers = vec![options.scale.large];
        layers.extend([options.scale.small; 8]);
        let image = contents.image("latest", &layers)?;
        let origin = Origin::start(contents.root())?;
        let root = contents.root().to_owned();
        let ground = Ground { home: home.to_owned(), root, origin: origin.address };
        let mut columns = vec![peers::DIRECT.to_owned()];
        let mut servers = Vec::new();
        for (column, kind) in columns_of(&options) {
            match kind.missing() {
                Some(why) if required || matches!(kind, Kind::Roadstead { .. }) => {
                    return Err(format!("{column} is required: {why}").into());
                }
                Some(why) => {
                    eprint(&format!("left out: {column} ({why})"));
                    continue;
                }
                None => {}
            }
            if kind == (Kind::Registry { cache: false }) {
                let store = ground.directory(&column).join("store");
                peers::host(&store, std::slice::from_ref(&image), &[])?;
            }
            servers.push(ground.start(&column, &kind)?.0);
            columns.push(column);
        }
        if find("wrk").is_none() {
            if required {
                return Err("wrk is required: not found".into());
            }
            eprint("left out: GET of manifests (wrk not found)");
        }
        let sampler = Sampler::start(&servers);
        let table = Table::new(columns);
        let bench = Self { options, ground, contents, origin, image, servers, table, sampler };
        // Ours first, because the others serve the files of its store.
        let (ours, others): (Vec<_>, Vec<_>) =
            bench.servers.iter().partition(|server| server.kind.is_roadstead());
        for (index, server) in ours.into_iter().chain(others).enumerate() {
            bench.pull(server, &bench.image).map_err(|e| format!("{}: {e}", server.column))?;
            bench.rest(Some(server))?;
            if index == 0 && server.kind.is_roadstead() {
                bench.share_files(server)?;
            }
        }
        Ok(bench)
    }

    /// Puts the files that this roadstead has written in the place of those that nginx and the hosted registry serve. What it costs to send
    /// a file depends, by up to a half, on the sizes of the pages in which it lies in the page cache, and those on who wrote it.
    fn share_files(&self, roadstead: &Server) -> Result<()> {
        let home = self.ground.directory(&roadstead.column);
        for blob in self.image.blobs() {
            let written = peers::stored(&home, blob);
            let hosting = Kind::Registry { cache: false };
            let hosted = self.servers.iter().find(|server| server.kind == hosting);
            let copy = hosted.map(|server| {
                peers::hosted(&self.ground.directory(&server.column).join("store"), blob)
            });
            for place in [Some(blob.file.clone()), copy].into_iter().flatten() {
                fs::remove_file(&place)?;
                fs::hard_link(&written, &place)?;
            }
        }
        Ok(())
    }

    /// Takes a whole image from a server and looks at every byte.
    pub(crate) fn pull(&self, server: &Server, image: &Image) -> Result<()> {
        let mut client = Client::connect(server.address)?;
        let manifest = image.manifest.bytes()?;
        client.get(&image.by_tag(), Take::Compare(&manifest))?;
        client.get(&image.by_digest(), Take::Compare(&manifest))?;
        for blob in image.blobs() {
            client.get(&blob.path(), Take::Compare(&blob.bytes()?))?;
        }
        Ok(())
    }

    /// Waits until the server and the origin have nothing to do, and gives what they did so far.
    pub(crate) fn rest(&self, server: Option<&Server>) -> Result<Moment> {
        let look = || -> Result<Moment> {
            let counts = self.origin.counts();
            let cpu = server.map_or(Ok(0.0), |server| cpu_seconds(server.process.id()))?;
            let (requests, pings) = (counts.requests, counts.pings);
            Ok(Moment { cpu, upstream: counts.bytes, requests, pings })
        };
        let enough = if self.options.tiny { REST_TINY } else { REST };
        let (mut last, mut since) = (look()?, Instant::now());
        let started = Instant::now();
        loop {
            thread::park_timeout(REST_POLL);
            let now = look()?;
            let moved = now.cpu > last.cpu || now.upstream > last.upstream;
            if moved || self.origin.counts().running > 0 {
                since = Instant::now();
            }
            last = now;
            if since.elapsed() >= enough {
                return Ok(now);
            }
            if started.elapsed() > REST_LIMIT {
                let who = server.map_or(peers::DIRECT, |server| &server.column);
                eprint(&format!("{who} does not come to rest"));
                return Ok(now);
            }
        }
    }

    /// Runs `work` against a server (none is the origin) and says what it cost.
    pub(crate) fn spend<T>(
        &self,
        server: Option<&Server>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Spent)> {
        let before = self.rest(server)?;
        let done = work()?;
        let after = self.rest(server)?;
        let spent = Spent {
            cpu: after.cpu - before.cpu,
            upstream: after.upstream - before.upstream,
            requests: after.requests - before.requests,
            pings: after.pings - before.pings,
        };
        Ok((done, spent))
    }

    /// The indexes of those servers that take part in a measure of warm bodies: the access log matters per request only.
    pub(crate) fn without_log(&self) -> Vec<usize> {
        self.indexes(|server| !matches!(server.kind, Kind::Roadstead { log: true, .. }))
    }

    /// Those that fetch what they have not.
    pub(crate) fn caches(&self) -> Vec<usize> {
        let logs = |kind: &Kind| matches!(kind, Kind::Roadstead { log: true, .. });
        self.indexes(|server| server.kind.is_cache() && !logs(&server.kind))
    }

    fn indexes(&self, wanted: impl Fn(&Server) -> bool) -> Vec<usize> {
        (0..self.servers.len()).filter(|index| wanted(&self.servers[*index])).collect()
    }

    /// Writes down the memory of all phases.
    pub(crate) fn remember(&mut self) {
        for (column, peak) in self.sampler.stop() {
            self.table.add(f::ANONYMOUS, &column, peak.anonymous as f64 / MIB);
            self.table.add(f::RESIDENT, &column, peak.resident as f64 / MIB);
        }
    }

    /// What the machine is and does, for the head of the table.
    pub(crate) fn head(&self, load_before: &str) -> Vec<String> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown processor", |(_, model)| model.trim());
        let cores = thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        let scale = self.options.scale;
        let mib = |bytes: u64| bytes as f64 / MIB;
        vec![
            format!("{model}, {cores} processors, Linux {}", kernel.trim()),
            format!("load average {load_before} before, {} after", load_average()),
            format!(
                "large blob {} MiB, small blob {} MiB, medians of {} rounds{}",
                mib(scale.large),
                mib(scale.small),
                scale.rounds,
                if self.options.tiny {
                    "; tiny: a check of the harness, not a measurement"
                } else {
                    ""
                }
            ),
        ]
    }
}

/// The machine's load average of one, five and fifteen minutes.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// The columns that are asked for, in their order.
fn columns_of(options: &Options) -> Vec<(String, Kind)> {
    let mut columns = vec![
        (peers::NGINX.to_owned(), Kind::NginxStatic { workers: 1 }),
        (peers::NGINX_2.to_owned(), Kind::NginxStatic { workers: 2 }),
        (peers::REGISTRY.to_owned(), Kind::Registry { cache: false }),
        (peers::REGISTRY_CACHE.to_owned(), Kind::Registry { cache: true }),
        (peers::NGINX_CACHE.to_owned(), Kind::NginxCache),
    ];
    for (name, program) in &options.roadsteads {
        let program = std::path::absolute(program).unwrap_or_else(|_| program.clone());
        let kind = |log| Kind::Roadstead { program: program.clone(), log, scrub: true };
        columns.push((name.clone(), kind(false)));
        columns.push((format!("{name}+log"), kind(true)));
    }
    columns.retain(|(column, _)| !options.without.contains(column));
    columns
}

/// Looks at the memory of all servers ten times a second.
#[derive(Debug)]
struct Sampler {
    peaks: Arc<Mutex<BTreeMap<String, Memory>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    fn start(servers: &[Server]) -> Self {
        let watched: Vec<(String, u32)> =
            servers.iter().map(|server| (server.column.clone(), server.process.id())).collect();
        let peaks = Arc::new(Mutex::new(BTreeMap::<String, Memory>::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (kept, end) = (Arc::clone(&peaks), Arc::clone(&over));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for (column, id) in &watched {
                    let now = Memory::of(*id);
                    let mut peaks = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    let peak = peaks.entry(column.clone()).or_default();
                    *peak = peak.max(now);
                }
                thread::park_timeout(SAMPLE);
            }
        });
        Self { peaks, over, thread: Some(thread) }
    }

    /// Ends it and gives the peaks.
    fn stop(&mut self) -> BTreeMap<String, Memory> {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join().ok();
        }
        std::mem::take(&mut self.peaks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop();
    }
}
