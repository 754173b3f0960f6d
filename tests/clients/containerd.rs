//! containerd 1.6 with `hosts.toml`: a real pull into its own store, `?ns=` naming the registry.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{
    Client, Image, Scene, Watched, cold_warm_and_cut_off, requirements_met, serial,
};

/// How long the daemon may take to listen.
const START: Duration = Duration::from_secs(60);
/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The name of the daemon's directory in the scene.
const HOME: &str = "containerd";
/// The registries that roadstead stands in front of, with the servers that must never be asked.
const REGISTRIES: [(&str, &str); 2] =
    [("docker.io", "https://registry-1.docker.io"), ("quay.io", "https://quay.io")];

#[test]
fn containerd_pulls_cold_warm_and_cut_off() {
    if !requirements_met("containerd", &["containerd", "ctr", "runc"]) {
        return;
    }
    let _turn = serial();
    let scene = Scene::new("containerd");
    cold_warm_and_cut_off(&scene, |scene, product| Containerd::start(scene, product.address()));
    scene.finish();
}

/// A containerd and its `ctr`.
pub(crate) struct Containerd<'a> {
    scene: &'a Scene,
    daemon: Option<Watched>,
    snapshotter: &'static str,
    runs: u32,
}

impl<'a> Containerd<'a> {
    /// Starts a daemon; `mirror` is written into the `hosts.toml` of each registry.
    pub(crate) fn start(scene: &'a Scene, mirror: SocketAddr) -> Self {
        for (registry, server) in REGISTRIES {
            let text = format!(
                "server = \"{server}\"\n[host.\"http://{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            );
            scene.write(&format!("certs.d/{registry}/hosts.toml"), &text);
        }
        let mut containerd = Self { scene, daemon: None, snapshotter: "native", runs: 0 };
        containerd.start_daemon();
        containerd
    }

    fn start_daemon(&mut self) {
        let home = self.scene.path(HOME);
        let home = home.display();
        let config = format!(
            r#"version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
"#,
            socket = self.socket().display()
        );
        let config = self.scene.write("containerd.toml", &config);
        let mut command = self.scene.command("containerd");
        let daemon = Watched::start("containerd", command.arg("--config").arg(config));
        let up = daemon.line(START, |line| line.contains("successfully booted").then_some(()));
        assert!(up.is_some(), "containerd does not start\n{}", daemon.tail());
        self.daemon = Some(daemon);
        let plugins = self.ctr(&["plugins", "ls"]);
        let overlay =
            plugins.lines().any(|line| line.contains("overlayfs") && line.ends_with("ok"));
        self.snapshotter = if overlay { "overlayfs" } else { "native" };
    }

    /// Pulls an image and sees that it is here, whole.
    fn pull_with(&self, options: &[&str], name: &str, image: &Image) {
        let arguments = ["images", "pull", "--snapshotter", self.snapshotter];
        self.ctr(&[&arguments[..], options, &[name]].concat());
        let images = self.ctr(&["images", "ls"]);
        let row = images.lines().find(|line| line.starts_with(&format!("{name} ")));
        let row = row.unwrap_or_else(|| panic!("{name} is listed: {images}"));
        assert!(row.contains(&image.digest), "{name} is {}: {row}", image.digest);
        let content = self.ctr(&["content", "ls", "--quiet"]);
        for digest in image.native.layers.iter().chain([&image.native.config]) {
            assert!(content.lines().any(|line| line == digest), "{digest} is here: {content}");
        }
    }

    fn socket(&self) -> PathBuf {
        self.scene.path(HOME).join("sock")
    }

    /// Runs `ctr` and gives what it prints.
    fn ctr(&self, arguments: &[&str]) -> String {
        let mut command = self.scene.command("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "test"]).args(arguments);
        let what = format!("ctr {}", arguments.join(" "));
        Watched::run(&what, &mut command, COMMAND).success(&what)
    }
}

impl Client for Containerd<'_> {
    fn pull(&mut self, image: &Image) {
        let hosts = self.scene.path("certs.d");
        let hosts = hosts.to_str().expect("a temporary directory has a readable name");
        self.pull_with(&["--hosts-dir", hosts], &image.reference(), image);
    }

    fn pull_by_name(&mut self, name: &str, image: &Image) {
        self.pull_with(&["--plain-http"], name, image);
    }

    fn wipe(&mut self) {
        self.daemon.take().expect("a wiped daemon runs").stop().expect("containerd ends by itself");
        self.scene.remove(HOME);
        self.start_daemon();
    }

    fn says(&mut self, image: &Image) -> Option<String> {
        self.runs += 1;
        let (name, id) = (image.reference(), format!("run-{}", self.runs));
        Some(self.ctr(&["run", "--rm", "--snapshotter", self.snapshotter, &name, &id]))
    }

    fn finish(mut self) {
        let mut daemon = self.daemon.take().expect("a daemon that is finished runs");
        assert!(daemon.stop().is_some(), "containerd ends by itself\n{}", daemon.tail());
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            drop(daemon);
            self.scene.end_strays(HOME);
        }
    }
}
