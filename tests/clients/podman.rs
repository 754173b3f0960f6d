//! podman 4.3 with `registries.conf`: a store of its own, mirrors by path prefix.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{
    Client, Image, Scene, Watched, cold_warm_and_cut_off, registries, requirements_met,
};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The name of the store in the scene.
const HOME: &str = "podman";

#[test]
fn podman_pulls_cold_warm_and_cut_off() {
    if !requirements_met("podman", &["podman"]) {
        return;
    }
    let scene = Scene::new("podman");
    cold_warm_and_cut_off(&scene, |scene, product| {
        registries::configure(scene, product.address());
        Podman { scene }
    });
    scene.finish();
}

/// podman, which has no daemon.
struct Podman<'a> {
    scene: &'a Scene,
}

impl Podman<'_> {
    fn podman(&self, arguments: &[&str]) -> String {
        let mut command = registries::command(self.scene, "podman");
        registries::store(self.scene, HOME, &mut command);
        command.arg("--tmpdir").arg(self.scene.path(HOME).join("tmp"));
        command.args(arguments);
        let what = format!("podman {}", arguments.join(" "));
        Watched::run(&what, &mut command, COMMAND).success(&what)
    }

    /// Pulls an image and sees that it is the one.
    fn pull_with(&self, options: &[&str], name: &str, image: &Image) {
        let policy = self.scene.path("policy.json");
        let policy = policy.to_str().expect("a temporary directory has a readable name");
        let arguments = ["pull", "--quiet", "--signature-policy", policy];
        self.podman(&[&arguments[..], options, &[name]].concat());
        let seen = self.podman(&["image", "inspect", "--format", "{{.Id}} {{.RepoDigests}}", name]);
        let (id, digests) = seen.trim().split_once(' ').expect("an id and digests");
        assert_eq!(format!("sha256:{id}"), image.native.config, "the id of {name}");
        assert!(digests.contains(&image.digest), "{name} is {}: {digests}", image.digest);
    }
}

impl Client for Podman<'_> {
    fn pull(&mut self, image: &Image) {
        self.pull_with(&[], &image.reference(), image);
    }

    fn pull_by_name(&mut self, name: &str, image: &Image) {
        self.pull_with(&["--tls-verify=false"], name, image);
    }

    fn wipe(&mut self) {
        self.scene.remove(HOME);
    }

    fn says(&mut self, image: &Image) -> Option<String> {
        // Reading the unpacked files instead of running them: podman's runtimes need more of a machine (limits of open
        // files, a cgroup layout) than docker's do.
        let root = self.podman(&["image", "mount", &image.reference()]);
        let said = fs::read_to_string(Path::new(root.trim()).join("etc/greeting"));
        Some(said.expect("the image has a greeting"))
    }

    fn finish(self) {}
}
