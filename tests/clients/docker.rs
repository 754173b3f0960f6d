//! docker 20.10 with the classic image store: its own daemon, roadstead as `registry-mirrors` for bare names and
//! as a prefix for another registry (that store knows mirrors for Docker Hub only).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::{
    Client, Image, Scene, Watched, cold_warm_and_cut_off, requirements_met, serial,
};

/// How long the daemon may take to listen.
const START: Duration = Duration::from_secs(60);
/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The name of the daemon's directory in the scene.
const HOME: &str = "docker";
/// The storage drivers, best first; `vfs` works on any file system.
const DRIVERS: [&str; 2] = ["overlay2", "vfs"];

#[test]
fn docker_pulls_cold_warm_and_cut_off() {
    if !requirements_met("docker", &["dockerd", "docker", "containerd"]) {
        return;
    }
    let _turn = serial();
    let scene = Scene::new("docker");
    cold_warm_and_cut_off(&scene, |scene, product| Docker::start(scene, product.address()));
    scene.finish();
}

/// A docker daemon and its client.
pub(crate) struct Docker<'a> {
    scene: &'a Scene,
    mirror: SocketAddr,
    daemon: Option<Watched>,
}

impl<'a> Docker<'a> {
    /// Starts a daemon whose mirror is `mirror`.
    pub(crate) fn start(scene: &'a Scene, mirror: SocketAddr) -> Self {
        let mut docker = Self { scene, mirror, daemon: None };
        docker.start_daemon();
        docker
    }

    fn start_daemon(&mut self) {
        for driver in DRIVERS {
            let mut daemon = Watched::start("dockerd", &mut self.daemon_command(driver));
            if daemon.line(START, |line| line.contains("API listen on ").then_some(())).is_some() {
                self.daemon = Some(daemon);
                return;
            }
            daemon.stop();
            eprintln!("dockerd does not start with {driver}\n{}", daemon.tail());
            self.scene.remove(HOME);
        }
        panic!("dockerd does not start with any of {DRIVERS:?}");
    }

    fn daemon_command(&self, driver: &str) -> Command {
        let home = self.scene.path(HOME);
        let mut command = self.scene.command("dockerd");
        command.arg("--data-root").arg(home.join("data"));
        command.arg("--exec-root").arg(home.join("exec"));
        command.arg("--pidfile").arg(home.join("pid"));
        command.arg("--config-file").arg(self.scene.write("daemon.json", "{}"));
        command.arg("--host").arg(format!("unix://{}", self.socket().display()));
        command.arg("--registry-mirror").arg(format!("http://{}", self.mirror));
        command.args(["--storage-driver", driver, "--bridge=none"]);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command
    }

    fn socket(&self) -> PathBuf {
        self.scene.path(HOME).join("docker.sock")
    }

    /// Runs the client and gives what it prints.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let mut command = self.scene.command("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket().display())).args(arguments);
        let what = format!("docker {}", arguments.join(" "));
        Watched::run(&what, &mut command, COMMAND).success(&what)
    }

    /// The name under which docker asks for an image: bare for Docker Hub's, else with roadstead in front.
    pub(crate) fn name(&self, image: &Image) -> String {
        if image.registry != "docker.io" {
            return format!("{}/{}", self.mirror, image.reference());
        }
        let bare = image.repository.strip_prefix("library/").unwrap_or(image.repository);
        format!("{bare}:{}", image.tag)
    }
}

impl Client for Docker<'_> {
    fn pull(&mut self, image: &Image) {
        let name = self.name(image);
        self.pull_by_name(&name, image);
    }

    fn pull_by_name(&mut self, name: &str, image: &Image) {
        // Loopback addresses may speak plain HTTP to docker.
        let said = self.docker(&["pull", name]);
        let digest = format!("Digest: {}", image.digest);
        assert!(said.contains(&digest), "{name} is {}: {said}", image.digest);
        let id = self.docker(&["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(id.trim(), image.native.config, "the id of {name}");
    }

    fn wipe(&mut self) {
        // The classic store keeps manifests aside even when every image is gone: only an empty directory is empty.
        self.daemon.take().expect("a wiped daemon runs").stop().expect("dockerd ends by itself");
        self.scene.remove(HOME);
        self.start_daemon();
    }

    fn says(&mut self, image: &Image) -> Option<String> {
        let name = self.name(image);
        Some(self.docker(&["run", "--rm", "--network", "none", &name]))
    }

    fn finish(mut self) {
        let mut daemon = self.daemon.take().expect("a daemon that is finished runs");
        assert!(daemon.stop().is_some(), "dockerd ends by itself\n{}", daemon.tail());
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // A daemon that had to be killed leaves its containerd behind.
        if let Some(daemon) = self.daemon.take() {
            drop(daemon);
            self.scene.end_strays(HOME);
        }
    }
}
