//! skopeo 1.9 with `registries.conf`: copies every platform of an image, byte for byte, into a directory.

use std::fs;
use std::time::Duration;

use crate::support::{
    Client, Image, Scene, Watched, cold_warm_and_cut_off, digest_of, registries, requirements_met,
};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The name of the copies' directory in the scene.
const HOME: &str = "skopeo";

#[test]
fn skopeo_copies_cold_warm_and_cut_off() {
    if !requirements_met("skopeo", &["skopeo"]) {
        return;
    }
    let scene = Scene::new("skopeo");
    cold_warm_and_cut_off(&scene, |scene, product| {
        registries::configure(scene, product.address());
        Skopeo::new(scene)
    });
    scene.finish();
}

/// skopeo, which stores nothing but what it is told to copy.
pub(crate) struct Skopeo<'a> {
    scene: &'a Scene,
}

impl<'a> Skopeo<'a> {
    /// skopeo with the configuration that the scene has.
    pub(crate) fn new(scene: &'a Scene) -> Self {
        Self { scene }
    }

    fn skopeo(&self, arguments: &[&str]) -> String {
        let mut command = registries::command(self.scene, "skopeo");
        command
            .arg("--policy")
            .arg(self.scene.path("policy.json"))
            // skopeo 1.9 does not read the environment variable that podman and buildah know.
            .arg("--registries-conf")
            .arg(self.scene.path("registries.conf"))
            .args(arguments);
        let what = format!("skopeo {}", arguments.join(" "));
        Watched::run(&what, &mut command, COMMAND).success(&what)
    }
}

impl Client for Skopeo<'_> {
    fn pull(&mut self, image: &Image) {
        let source = format!("docker://{}", image.reference());
        let home = self.scene.path(HOME);
        fs::create_dir_all(&home).expect("the scene is writable");
        let copy = home.join(image.repository.replace('/', "-"));
        let target = format!("dir:{}", copy.display());
        self.skopeo(&["copy", "--all", "--quiet", &source, &target]);

        let read = |name: &str| {
            let read = fs::read(copy.join(name));
            read.unwrap_or_else(|error| panic!("{name} of {source}: {error}"))
        };
        assert_eq!(digest_of(&read("manifest.json")), image.digest, "the manifest of {source}");
        for platform in [Some(&image.native), image.foreign.as_ref()].into_iter().flatten() {
            for digest in platform.layers.iter().chain([&platform.config]) {
                let bytes = read(digest.trim_start_matches("sha256:"));
                assert_eq!(digest_of(&bytes), *digest, "a blob of {source}");
            }
        }
        // Without the list of tags, for which skopeo does not turn to mirrors.
        let seen = self.skopeo(&["inspect", "--no-tags", "--format", "{{.Digest}}", &source]);
        assert_eq!(seen.trim(), image.digest, "skopeo inspect {source}");
    }

    fn pull_by_name(&mut self, name: &str, image: &Image) {
        let source = format!("docker://{name}");
        let home = self.scene.path(HOME);
        fs::create_dir_all(&home).expect("the scene is writable");
        let copy = home.join("by-name");
        let target = format!("dir:{}", copy.display());
        self.skopeo(&["copy", "--all", "--quiet", "--src-tls-verify=false", &source, &target]);
        let manifest = fs::read(copy.join("manifest.json")).expect("skopeo has copied it");
        assert_eq!(digest_of(&manifest), image.digest, "the manifest of {source}");
    }

    fn wipe(&mut self) {
        self.scene.remove(HOME);
    }

    fn says(&mut self, _image: &Image) -> Option<String> {
        None
    }

    fn wants_every_platform(&self) -> bool {
        true
    }

    fn finish(self) {}
}
