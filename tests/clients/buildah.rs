//! buildah 1.28 with `registries.conf`: a store of its own, mirrors by path prefix.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Client, Image, Scene, Watched, cold_warm_and_cut_off, registries, requirements_met,
};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The name of the store in the scene.
const HOME: &str = "buildah";

#[test]
fn buildah_pulls_cold_warm_and_cut_off() {
    if !requirements_met("buildah", &["buildah"]) {
        return;
    }
    let scene = Scene::new("buildah");
    cold_warm_and_cut_off(&scene, |scene, product| {
        registries::configure(scene, product.address());
        Buildah { scene }
    });
    scene.finish();
}

/// buildah, which has no daemon.
struct Buildah<'a> {
    scene: &'a Scene,
}

impl Buildah<'_> {
    fn buildah(&self, arguments: &[&str]) -> String {
        let mut command = registries::command(self.scene, "buildah");
        registries::store(self.scene, HOME, &mut command);
        command.args(arguments);
        let what = format!("buildah {}", arguments.join(" "));
        Watched::run(&what, &mut command, COMMAND).success(&what)
    }

    /// Pulls an image and sees that it is the one.
    fn pull_with(&self, options: &[&str], name: &str, image: &Image) {
        let policy = self.scene.path("policy.json");
        let policy = policy.to_str().expect("a temporary directory has a readable name");
        let arguments = ["pull", "--quiet", "--signature-policy", policy];
        let id = self.buildah(&[&arguments[..], options, &[name]].concat());
        let config = image.native.config.trim_start_matches("sha256:");
        assert_eq!(id.trim(), config, "the id of {name}");
        let seen = self.buildah(&["inspect", "--type", "image", name]);
        let seen: Value = serde_json::from_str(&seen).expect("inspect prints JSON");
        // buildah keeps the digest of the platform's own manifest, not that of the index.
        let digest = seen["FromImageDigest"].as_str().expect("an image has a digest");
        assert_eq!(digest, image.native.manifest, "the manifest of {name}");
    }
}

impl Client for Buildah<'_> {
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
        let container = self.buildah(&["from", "--pull=never", &image.reference()]);
        let root = self.buildah(&["mount", container.trim()]);
        let said = fs::read_to_string(Path::new(root.trim()).join("etc/greeting"));
        Some(said.expect("the image has a greeting"))
    }

    fn finish(self) {}
}
