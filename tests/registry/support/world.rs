//! A world for one test: the product, started in this process on ports of its own with a data directory of its own, beside the
//! fake upstreams that the test made.
//!
//! What must hold: a test ends its world with [`World::finish`], which fails if a task, a connection or an unfinished file is left,
//! if a stored file does not have the bytes of its name, or if a secret of a fake stands in the log, in the metrics or in an answer. Dropping an unfinished world
//! panics, so that no test forgets.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::client::{self, Client};
use super::content::{sha256, sha512};
use super::fake::{Fake, ca_pem};
use super::gate::within;
use super::log_capture;
use super::product::{
    Asked, Clock as _, Disk, FaultyDisk, ManualClock, Metadata, Product, RealDisk, RowPlan,
    Timestamp,
};

/// When every world begins: 2026-11-22 in milliseconds. Its clock moves only when the test says so.
const BEGINNING: Timestamp = Timestamp::from_millis(1_795_305_600_000);

/// What the product is told, and what it stands beside.
#[derive(Clone)]
pub struct WorldBuilder {
    settings: BTreeMap<String, String>,
    upstreams: Vec<Upstream>,
    tables: String,
    disk: Option<Arc<FaultyDisk>>,
    data: Option<PathBuf>,
    secrets: Vec<String>,
    search_path: Option<PathBuf>,
}

#[derive(Clone)]
struct Upstream {
    name: String,
    fake: Fake,
    settings: String,
}

impl WorldBuilder {
    /// A registry that is served, with the fake behind it.
    pub fn upstream(self, name: &str, fake: &Fake) -> Self {
        self.upstream_with(name, fake, "")
    }

    /// The same with lines for its table.
    pub fn upstream_with(mut self, name: &str, fake: &Fake, settings: &str) -> Self {
        self.upstreams.retain(|upstream| upstream.name != name);
        let (name, settings) = (name.to_owned(), settings.to_owned());
        self.upstreams.push(Upstream { name, fake: fake.clone(), settings });
        self
    }

    pub fn without_upstream(mut self, name: &str) -> Self {
        self.upstreams.retain(|upstream| upstream.name != name);
        self
    }

    /// A top-level key; the value as it stands in TOML.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Tables behind everything else, as they stand in TOML.
    pub fn tables(mut self, text: &str) -> Self {
        self.tables.push_str(text);
        self
    }

    /// Content files lie on this disk, which the test can break. Restarts keep it.
    pub fn disk(mut self, disk: &Arc<FaultyDisk>) -> Self {
        self.disk = Some(Arc::clone(disk));
        self
    }

    /// The data directory, in place of a temporary one. It is the test's to remove.
    pub fn data(mut self, directory: &Path) -> Self {
        self.data = Some(directory.to_owned());
        self
    }

    /// A text of the test's own, besides the secrets of the fakes, that must appear in no log and no answer.
    pub fn secret(mut self, text: &str) -> Self {
        self.secrets.push(text.to_owned());
        self
    }

    /// The product finds programs in this directory and nowhere else.
    pub fn search_path(mut self, directory: &Path) -> Self {
        self.search_path = Some(directory.to_owned());
        self
    }

    /// How long all tags are fresh.
    pub fn fresh_for(self, duration: &str) -> Self {
        self.set("tag_fresh_for", &format!("{duration:?}"))
    }

    /// Leaves a key to its default.
    pub fn unset(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    pub async fn start(self) -> World {
        log_capture::install();
        let dir = TempDir::new().expect("a temporary directory can be made");
        let log_start = log_capture::position();
        let answers_start = client::answers_position();
        let mut world = World {
            product: None,
            builder: self,
            clock: ManualClock::starting_at(BEGINNING),
            dir,
            log_start,
            answers_start,
            finished: false,
        };
        world.start_product().await;
        world
    }

    fn data_in(&self, dir: &Path) -> PathBuf {
        self.data.clone().unwrap_or_else(|| dir.join("data"))
    }

    fn toml(&self, dir: &Path) -> String {
        let mut text = String::new();
        for (key, value) in &self.settings {
            writeln!(text, "{key} = {value}").expect("writing to a String cannot fail");
        }
        writeln!(text, "data = {:?}", self.data_in(dir)).expect("writing to a String cannot fail");
        for upstream in &self.upstreams {
            let ca = if upstream.fake.is_tls() {
                let file = dir.join("ca.pem");
                fs::write(&file, ca_pem()).expect("the temporary directory can be written");
                format!("ca_file = {file:?}\n")
            } else {
                String::new()
            };
            let Upstream { name, fake, settings } = upstream;
            let url = fake.url();
            write!(text, "\n[upstream.{name:?}]\nurl = {url:?}\n{ca}{settings}\n")
                .expect("writing to a String cannot fail");
        }
        text + &self.tables
    }
}

/// See the module's text.
pub struct World {
    product: Option<Product>,
    builder: WorldBuilder,
    clock: ManualClock,
    dir: TempDir,
    log_start: usize,
    answers_start: usize,
    finished: bool,
}

impl World {
    /// Ports 0, no built-in upstreams, tags fresh for an hour, no reserve of disk space.
    pub fn builder() -> WorldBuilder {
        let defaults = [
            ("listen", "\"127.0.0.1:0\""),
            ("observe", "\"127.0.0.1:0\""),
            ("builtin_upstreams", "false"),
            ("min_free", "\"1MiB\""),
            ("tag_fresh_for", "\"1h\""),
            ("drain", "\"10s\""),
        ];
        let settings = defaults.map(|(key, value)| (key.to_owned(), value.to_owned()));
        WorldBuilder {
            settings: settings.into_iter().collect(),
            upstreams: Vec::new(),
            tables: String::new(),
            disk: None,
            data: None,
            secrets: Vec::new(),
            search_path: None,
        }
    }

    /// The fake as docker.io, the upstream of bare names.
    pub async fn with(fake: &Fake) -> Self {
        Self::builder().upstream("docker.io", fake).start().await
    }

    async fn start_product(&mut self) {
        let disk: Arc<dyn Disk> = match &self.builder.disk {
            Some(faulty) => Arc::clone(faulty) as _,
            None => Arc::new(RealDisk),
        };
        let file = self.write_config();
        let sources = (file.as_path(), self.builder.search_path.as_deref());
        let starting = Product::start(sources, &self.clock, disk);
        let started = within("the product to start", starting).await;
        match started {
            Ok(product) => self.product = Some(product),
            Err(why) => {
                self.finished = true;
                panic!("the product does not start: {why}");
            }
        }
    }

    /// The configuration as it is in force.
    pub fn configuration(&self) -> String {
        self.builder.toml(self.dir.path())
    }

    fn write_config(&self) -> PathBuf {
        let file = self.dir.path().join("roadstead.toml");
        fs::write(&file, self.builder.toml(self.dir.path())).expect("the directory is ours");
        file
    }

    fn product(&self) -> &Product {
        self.product.as_ref().expect("the product runs between start and finish")
    }

    /// A client of the data plane.
    pub fn client(&self) -> Client {
        Client::new(self.product().data_address())
    }

    /// A client of the observability listener.
    pub fn observer(&self) -> Client {
        Client::new(self.product().observe_address())
    }

    /// Where the admin API listens; the configuration must switch it on.
    pub fn admin_address(&self) -> SocketAddr {
        self.product().admin_address()
    }

    /// A client of the admin API that knows the token.
    pub fn admin(&self) -> Client {
        let token = fs::read_to_string(self.data().join("admin-token")).expect("it was made");
        let bearer = format!("Bearer {}", token.trim_end());
        Client::new(self.admin_address()).with("Authorization", &bearer)
    }

    /// A client of an upstream's own listener.
    pub fn client_of(&self, upstream: &str) -> Client {
        Client::new(self.product().extra_address(upstream))
    }

    /// Lets this much time pass on the product's wall clock.
    pub fn advance(&self, duration: Duration) {
        self.clock.advance(duration);
    }

    /// Makes the background look now at what is due; without this it looks every few minutes of real time.
    pub fn wake_upkeep(&self) {
        self.product().wake_upkeep();
    }

    /// Makes the lists of images that are followed due now.
    pub fn wake_lists(&self) {
        self.product().wake_lists();
    }

    /// Puts a clock in its place that is this much behind; the product sees it from its next start on.
    pub fn turn_back(&mut self, duration: Duration) {
        let back = i64::try_from(duration.as_millis()).expect("less than an age");
        let now = self.clock.now().as_millis();
        self.clock = ManualClock::starting_at(Timestamp::from_millis(now - back));
    }

    /// Lets this much time pass on all clocks of the product, timers included. For a moment in which nothing is under way that may
    /// take long; the runtime must be single-threaded.
    pub async fn pass(&self, duration: Duration) {
        self.advance(duration);
        tokio::time::pause();
        tokio::time::advance(duration).await;
        tokio::time::resume();
    }

    /// Asks the product in this process, without HTTP; see [`Product::ask`].
    pub fn ask(
        &self,
        repository: &str,
        asked: Asked,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + use<> {
        self.product().ask(repository, asked)
    }

    /// Tasks of the product that are alive now.
    pub fn tasks(&self) -> usize {
        self.product().tasks()
    }

    /// Waits until no more tasks are alive than this.
    pub async fn tasks_at_most(&self, count: usize) {
        within("the tasks of the product to end", async {
            while self.tasks() > count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Tasks of the product that are alive when it has nothing to do: the fewest seen between some round trips. To be asked when
    /// nothing is under way; what the start began has ended by then.
    pub async fn idle_tasks(&self) -> usize {
        let mut fewest = usize::MAX;
        for _ in 0..50 {
            self.client().get("/v2/").expect(200).await;
            // The connection ends with its client, which takes some turns.
            for _ in 0..10 {
                tokio::task::yield_now().await;
                fewest = fewest.min(self.tasks());
            }
        }
        fewest
    }

    /// The rows, for what no answer tells.
    pub fn metadata(&self) -> Metadata {
        self.product().metadata()
    }

    /// This long ago on the product's wall clock.
    pub fn moment_ago(&self, ago: Duration) -> Timestamp {
        let ago = i64::try_from(ago.as_millis()).expect("less than an age");
        Timestamp::from_millis(self.clock.now().as_millis() - ago)
    }

    /// Makes steps of the writer of rows fail, until the next restart.
    pub fn fail_rows(&self, plan: Option<RowPlan>) {
        self.product().fail_rows(plan);
    }

    /// Steps of that writer that failed since the last plan was made.
    pub fn failed_rows(&self) -> u64 {
        self.product().failed_rows()
    }

    /// Stops, removes everything that is stored, and starts again.
    pub async fn restart_empty(&mut self) {
        self.stop().await;
        fs::remove_dir_all(self.data()).expect("the data directory is ours");
        self.start_product().await;
    }

    /// Stops, and fails to start again on the same data; gives the reason.
    pub async fn refuses_to_start_again(mut self) -> String {
        self.stop().await;
        self.finished = true;
        let file = self.write_config();
        let sources = (file.as_path(), self.builder.search_path.as_deref());
        let started = Product::start(sources, &self.clock, Arc::new(RealDisk));
        match within("the product to refuse its start", started).await {
            Ok(_product) => panic!("the product starts"),
            Err(why) => why,
        }
    }

    /// Stops and starts again on the same data.
    pub async fn restart(&mut self) {
        self.restart_with(|builder| builder).await;
    }

    /// The same with another configuration.
    pub async fn restart_with(&mut self, change: impl FnOnce(WorldBuilder) -> WorldBuilder) {
        self.stop().await;
        self.builder = change(self.builder.clone());
        self.start_product().await;
    }

    /// What SIGHUP does after the configuration file was changed.
    pub fn reload_with(
        &mut self,
        change: impl FnOnce(WorldBuilder) -> WorldBuilder,
    ) -> Result<(), String> {
        let before = self.builder.clone();
        self.builder = change(before.clone());
        let file = self.write_config();
        let result = self.product().reload((&file, self.builder.search_path.as_deref()));
        if result.is_err() {
            self.builder = before;
        }
        result
    }

    async fn stop(&mut self) {
        let product = self.product.take().expect("the product runs between start and finish");
        let left = within("the product to stop", product.stop()).await;
        assert_eq!(left, 0, "tasks are left after the stop");
    }

    /// Begins to stop and gives the rest of it as a future, so that a test can look while it drains.
    pub fn stopping(&mut self) -> impl Future<Output = usize> + use<> {
        let product = self.product.take().expect("the product runs between start and finish");
        product.stop()
    }

    /// Starts the product again after [`World::stopping`].
    pub async fn start_again(&mut self) {
        self.start_product().await;
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.observer().get("/metrics").expect(200).await.text())
    }

    /// Waits until the metrics look like this.
    pub async fn metrics_where(&self, what: &str, holds: impl Fn(&Metrics) -> bool) -> Metrics {
        within(what, async {
            loop {
                let metrics = self.metrics().await;
                if holds(&metrics) {
                    return metrics;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Waits until this many clients are connected and what they have sent was looked at: a few round trips later everything that
    /// was ready on this single-threaded runtime has run.
    pub async fn holds_clients(&self, count: u32) {
        let what = format!("{count} connections");
        let enough = |metrics: &Metrics| metrics.sum("roadstead_connections", &[]) >= count.into();
        self.metrics_where(&what, enough).await;
        for _ in 0..3 {
            self.client().get("/v2/").expect(200).await;
        }
    }

    /// Waits until every download has been stored or given up: a client has its last byte before the store has its file.
    pub async fn downloads_over(&self) {
        let none = |metrics: &Metrics| metrics.sum("roadstead_flights", &[]) < 0.5;
        self.metrics_where("the downloads to end", none).await;
    }

    /// Log lines since this world began; other tests of the same process write to the same log.
    pub fn log_lines(&self) -> Vec<String> {
        log_capture::since(self.log_start)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.builder.data_in(self.dir.path())
    }

    /// Where the content of a digest is stored.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest has a colon");
        self.data().join("blobs").join(algorithm).join(hex)
    }

    pub fn has_stored(&self, digest: &str) -> bool {
        self.blob_file(digest).exists()
    }

    /// Files of downloads that are not finished, and their records.
    pub fn partial_files(&self) -> Vec<PathBuf> {
        files(&self.data().join("partial"))
    }

    /// Fails unless every stored file has the bytes that its name tells.
    pub fn check_files(&self) {
        for file in files(&self.data().join("blobs")) {
            let bytes = fs::read(&file).expect("a stored file can be read");
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // What a faulty disk keeps of a file that was replaced and may come back.
            if name.starts_with(".replaced-") {
                continue;
            }
            let digest = if name.len() == 128 { sha512(&bytes) } else { sha256(&bytes) };
            assert!(digest.ends_with(&format!(":{name}")), "{file:?} holds {digest}");
        }
    }

    /// Stops the product and checks what it leaves behind.
    pub async fn finish(mut self) {
        self.finished = true;
        let mut page = String::new();
        if self.product.is_some() {
            if !self.secrets().is_empty() {
                page = self.observer().get("/metrics").expect(200).await.text();
            }
            self.stop().await;
        }
        for Upstream { name, fake, .. } in &self.builder.upstreams {
            let closed = fake.wait_for("connections to end", |_log| fake.open_connections() == 0);
            within(&format!("the connections to {name} to end"), closed).await;
        }
        let litter: Vec<_> =
            self.partial_files().into_iter().filter(|file| !can_be_continued(file)).collect();
        assert_eq!(litter, Vec::<PathBuf>::new(), "files are left that no download goes on with");
        self.check_files();
        let (lines, answers) = (self.log_lines(), client::answers_since(self.answers_start));
        let secrets = Secrets::new(self.secrets().into_iter());
        let leak = |text: &str| secrets.first_in(text).map(str::to_owned);
        let line = lines.iter().find_map(|line| Some((leak(line)?, line)));
        assert_eq!(line, None, "the log holds a secret");
        let answer = answers.iter().find_map(|answer| Some((leak(answer)?, answer)));
        assert_eq!(answer, None, "a client was told a secret");
        assert_eq!(leak(&page), None, "the metrics hold a secret");
    }

    fn secrets(&self) -> Vec<String> {
        let fakes = self.builder.upstreams.iter().map(|upstream| &upstream.fake);
        fakes.flat_map(Fake::secrets).chain(self.builder.secrets.iter().cloned()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        assert!(self.finished || std::thread::panicking(), "the test did not finish its World");
    }
}

/// Is this one of a pair: an unfinished download, and a record that is right in itself and fits it?
fn can_be_continued(file: &Path) -> bool {
    let (download, record) = match file.extension() {
        Some(_map) => (file.with_extension(""), file.to_owned()),
        None => (file.to_owned(), file.with_extension("map")),
    };
    let (Ok(download), Ok(record)) = (fs::metadata(download), fs::read(record)) else {
        return false;
    };
    // Magic, version, number of intervals, size, inode and time; intervals; the sum over it all.
    let Some((body, sum)) = record.split_at_checked(record.len().saturating_sub(32)) else {
        return false;
    };
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    if body.len() < 40 || !body.starts_with(b"RdStPart") || !sha256(body).ends_with(&hex) {
        return false;
    }
    let numbers: Vec<u64> = body[16..]
        .chunks_exact(8)
        .map(|bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
        .collect();
    let [size, inode, _written, ref bounds @ ..] = numbers[..] else {
        return false;
    };
    let in_order = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
    let end = bounds.last().copied().unwrap_or_default();
    in_order && end <= download.len() && download.len() <= size && download.ino() == inode
}

/// What must stand nowhere. A long test has thousands of tokens and signatures, which are known by how they begin.
struct Secrets {
    marked: HashSet<String>,
    others: Vec<String>,
}

impl Secrets {
    /// How the fake's tokens and signatures begin.
    const MARKS: [&str; 2] = ["tok-", "sig"];

    fn new(all: impl Iterator<Item = String>) -> Self {
        let is_marked = |secret: &String| {
            let begins = Self::MARKS.iter().any(|mark| secret.starts_with(mark));
            begins && Self::word(secret) == secret
        };
        let (marked, others): (Vec<_>, Vec<_>) = all.partition(is_marked);
        Self { marked: marked.into_iter().collect(), others }
    }

    /// The letters, digits and dashes at the beginning.
    fn word(text: &str) -> &str {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        &text[..end.unwrap_or(text.len())]
    }

    fn first_in(&self, line: &str) -> Option<&str> {
        let words = Self::MARKS
            .iter()
            .flat_map(|mark| line.match_indices(mark))
            .map(|(at, _)| Self::word(&line[at..]));
        let marked = words.filter_map(|word| self.marked.get(word)).next();
        marked.or(self.others.iter().find(|secret| line.contains(*secret))).map(String::as_str)
    }
}

/// All files below a directory; none if it does not exist.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// One scrape.
#[derive(Debug)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text format; fails on a line that is not in it.
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(Sample::parse).collect())
    }

    /// The sum of all samples of this name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).map(|sample| sample.value).sum()
    }

    /// Is there any such sample?
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.find(name, labels).next().is_some()
    }

    fn find<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            let same = |(key, value): &(&str, &str)| {
                sample.labels.get(*key).is_some_and(|have| have == value)
            };
            sample.name == name && labels.iter().all(same)
        })
    }

    /// All label names in use.
    pub fn label_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.0.iter().flat_map(|sample| sample.labels.keys()).map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|sample| sample.name.as_str()).collect()
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (head, value) = line.rsplit_once(' ').expect("a sample has a value");
        let (name, labels) = match head.split_once('{') {
            None => (head, BTreeMap::new()),
            Some((name, rest)) => {
                let rest = rest.strip_suffix('}').expect("labels end with a brace");
                let pairs = rest.split("\",").filter(|pair| !pair.is_empty()).map(|pair| {
                    let (key, value) = pair.split_once("=\"").expect("a label has a value");
                    (key.to_owned(), value.trim_end_matches('"').to_owned())
                });
                (name, pairs.collect())
            }
        };
        let value = value.parse().expect("a value is a number");
        Self { name: name.to_owned(), labels, value }
    }
}

#[test]
fn a_secret_is_found_wherever_it_stands() {
    let all = ["tok-1-00ff", "sig2x00ff", "pass word", "signal!"].map(str::to_owned);
    let secrets = Secrets::new(all.into_iter());
    for line in
        ["Bearer tok-1-00ff", "?X=sig2x00ff&y", "a pass word b", "x=tok-1-00ff", "a signal!"]
    {
        assert!(secrets.first_in(line).is_some(), "{line}");
    }
    for line in ["tok-1-00fe", "sig3x00ff", "password", "signal"] {
        assert_eq!(secrets.first_in(line), None, "{line}");
    }
}
