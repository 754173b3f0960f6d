//! The roadstead under test: the real binary with a data directory of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::http::exchange;
use super::moving::Moving;
use super::process::Watched;
use super::scene::Scene;
use super::upstream::{PORT_ATTEMPTS, Upstream, free_port};

/// How long it may take to say where it listens.
const START: Duration = Duration::from_secs(60);
/// How long a bundle of all images may take.
const EXPORT: Duration = Duration::from_secs(300);
/// A freshness that is over before the next phase, so that every later pull has to ask about the tag again.
const TAG_FRESH_FOR: &str = "10ms";
/// How long one of its commands may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The name of the data directory in the scene.
const DATA: &str = "roadstead";
/// The names that the upstream is known by.
const NAMES: [&str; 2] = ["docker.io", "quay.io"];

/// A running roadstead.
pub(crate) struct Roadstead<'a> {
    scene: &'a Scene,
    process: Watched,
    address: SocketAddr,
    observability: SocketAddr,
}

impl<'a> Roadstead<'a> {
    /// Starts it in front of `upstream`, and of the one whose image moves if there is one, empty.
    pub(crate) fn start(scene: &'a Scene, upstream: &Upstream, moving: Option<&Moving>) -> Self {
        let table = |name: &str, address: SocketAddr| {
            format!("[upstream.\"{name}\"]\nurl = \"http://{address}\"\n")
        };
        let tables = NAMES.map(|name| table(name, upstream.address()));
        let moving = moving.map(|moving| table(Moving::REGISTRY, moving.address()));
        let tables = tables.concat() + &moving.unwrap_or_default();
        scene.write("roadstead.toml", &tables);
        for _ in 0..PORT_ATTEMPTS {
            // Not port 0: clients must find it at the same address after a restart, when the kernel may have lent a
            // port of its own range to somebody else.
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            match Self::launch(scene, address) {
                Ok(started) => return started,
                Err(log) => assert!(log.contains("in use"), "roadstead does not start\n{log}"),
            }
        }
        panic!("no free port in {PORT_ATTEMPTS} attempts");
    }

    /// Starts the binary; what it said when it did not come up.
    fn launch(scene: &'a Scene, address: SocketAddr) -> Result<Self, String> {
        let mut command = scene.command(env!("CARGO_BIN_EXE_roadstead"));
        command.args(["serve", "--listen", &address.to_string(), "--observe", "127.0.0.1:0"]);
        command.args(["--tag-fresh-for", TAG_FRESH_FOR]);
        command.arg("--config").arg(scene.path("roadstead.toml"));
        command.arg("--data").arg(scene.path(DATA));
        let process = Watched::start("roadstead", &mut command);
        let bound = |what: &str| {
            let what = format!("{what} on http://");
            let found = process.line(START, |line| {
                line.split_once(&what)?.1.split([' ', '/']).next()?.parse::<SocketAddr>().ok()
            });
            found.ok_or_else(|| process.tail())
        };
        let (said, observability) = (bound("listening")?, bound("observability")?);
        assert_eq!(said, address, "roadstead listens where it was told to");
        Ok(Self { scene, process, address, observability })
    }

    /// Stops it in good order and starts it again on what it stored.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let started = Self::launch(self.scene, self.address);
        *self = started.unwrap_or_else(|log| panic!("roadstead does not start again\n{log}"));
    }

    /// Stops it, removes all that it stored, and starts it again at the same address.
    pub(crate) fn restart_empty(&mut self) {
        self.stop();
        self.scene.remove(DATA);
        let started = Self::launch(self.scene, self.address);
        *self = started.unwrap_or_else(|log| panic!("roadstead does not start again\n{log}"));
    }

    /// Runs another of its commands on its store and gives what it prints.
    pub(crate) fn runs(&self, arguments: &[&str]) -> String {
        let mut command = self.scene.command(env!("CARGO_BIN_EXE_roadstead"));
        command.args(arguments);
        command.arg("--config").arg(self.scene.path("roadstead.toml"));
        command.arg("--data").arg(self.scene.path(DATA));
        let what = format!("roadstead {}", arguments.join(" "));
        Watched::run(&what, &mut command, COMMAND).success(&what)
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests for manifests and blobs ended with `outcome`, by its own metrics.
    pub(crate) fn requests_with(&self, outcome: &str) -> u64 {
        let page = exchange(self.observability, "GET", "/metrics", None);
        let page = page.expect("the observability port answers");
        assert_eq!(page.status, 200, "{}", page.body);
        let label = format!("outcome=\"{outcome}\"");
        let counts = page
            .body
            .lines()
            .filter(|line| line.starts_with("roadstead_requests_total{") && line.contains(&label));
        let counts =
            counts.map(|line| line.rsplit(' ').next().and_then(|count| count.parse().ok()));
        counts.map(|count: Option<u64>| count.expect("a sample ends with its value")).sum()
    }

    /// Runs `export` beside it.
    pub(crate) fn export(&self, images: &[String], output: &Path) {
        let mut command = self.scene.command(env!("CARGO_BIN_EXE_roadstead"));
        command.arg("export").args(images).arg("--output").arg(output);
        command.arg("--config").arg(self.scene.path("roadstead.toml"));
        command.arg("--data").arg(self.scene.path("roadstead"));
        Watched::run("roadstead export", &mut command, EXPORT).success("roadstead export");
    }

    /// Ends it.
    pub(crate) fn finish(mut self) {
        self.stop();
    }

    /// Asks it to end; it must drain and say that all is well.
    fn stop(&mut self) {
        let status = self.process.stop();
        let status = status.unwrap_or_else(|| panic!("roadstead had to be killed"));
        assert!(status.success(), "roadstead ended with {status}\n{}", self.process.tail());
    }
}
