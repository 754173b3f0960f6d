//! Bundles in the hands of others: skopeo reads a tar and a directory by the names in them, and docker loads and runs what is in a tar,
//! with the upstream gone.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::docker::Docker;
use crate::support::{
    Client as _, Image, Library, Roadstead, Scene, Upstream, Watched, digest_of, registries,
    requirements_met, serial,
};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// The annotation that names an image (OCI image spec, "Pre-Defined Annotation Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A store with all images of the library in it, pulled by skopeo, and its upstream gone.
fn stocked<'a>(scene: &'a Scene, images: &mut Vec<Image>) -> Roadstead<'a> {
    let library = Library::shared();
    let mut upstream = Upstream::start(scene, &library);
    let product = Roadstead::start(scene, &upstream, None);
    registries::configure(scene, product.address());
    for image in library.images() {
        let source = format!("docker://{}", image.reference());
        let target = format!("dir:{}", scene.path("pulled").display());
        skopeo(scene, &["copy", "--all", "--quiet", &source, &target]);
        scene.remove("pulled");
    }
    upstream.cut_off();
    images.extend_from_slice(library.images());
    product
}

fn skopeo(scene: &Scene, arguments: &[&str]) -> String {
    let mut command = registries::command(scene, "skopeo");
    command
        .arg("--policy")
        .arg(scene.path("policy.json"))
        .arg("--registries-conf")
        .arg(scene.path("registries.conf"))
        .args(arguments);
    let what = format!("skopeo {}", arguments.join(" "));
    Watched::run(&what, &mut command, COMMAND).success(&what)
}

fn names(images: &[Image]) -> Vec<String> {
    images.iter().map(Image::reference).collect()
}

#[test]
fn skopeo_reads_a_bundle_by_its_names() {
    if !requirements_met("skopeo", &["skopeo"]) {
        return;
    }
    let (scene, mut images) = (Scene::new("skopeo-bundle"), Vec::new());
    let product = stocked(&scene, &mut images);
    let (tar, layout) = (scene.path("bundle.tar"), scene.path("layout"));
    product.export(&names(&images), &tar);
    product.export(&names(&images), &layout);
    let index = fs::read_to_string(layout.join("index.json")).expect("a layout has an index");
    let index: Value = serde_json::from_str(&index).expect("it is JSON");
    for image in &images {
        let name = image.reference();
        let mut descriptors = index["manifests"].as_array().expect("a list").iter();
        let named = descriptors.find(|one| one["annotations"][REF_NAME] == name.as_str());
        let media_type = named.expect("each image is named")["mediaType"].to_string();
        let mut sources = vec![
            format!("oci-archive:{}:{name}", tar.display()),
            format!("oci:{}:{name}", layout.display()),
        ];
        if media_type.contains("docker") {
            // By a name skopeo 1.9 finds OCI manifests alone; one image is found without.
            let alone = scene.path("alone.tar");
            product.export(&[name], &alone);
            sources = vec![format!("oci-archive:{}", alone.display())];
        }
        for source in sources {
            let raw = skopeo(&scene, &["inspect", "--raw", &source]);
            assert_eq!(digest_of(raw.trim_end_matches('\n').as_bytes()), image.digest, "{source}");
            let copy = scene.path("copy");
            let target = format!("dir:{}", copy.display());
            skopeo(&scene, &["copy", "--all", "--quiet", &source, &target]);
            for digest in image.native.layers.iter().chain([&image.native.config]) {
                let bytes = fs::read(copy.join(digest.trim_start_matches("sha256:")));
                assert_eq!(digest_of(&bytes.expect("it was copied")), *digest, "of {source}");
            }
            scene.remove("copy");
        }
    }
    product.finish();
    scene.finish();
}

#[test]
fn docker_loads_and_runs_a_bundle() {
    if !requirements_met("docker", &["dockerd", "docker", "containerd", "skopeo"]) {
        return;
    }
    let _turn = serial();
    let (scene, mut images) = (Scene::new("docker-bundle"), Vec::new());
    let product = stocked(&scene, &mut images);
    let tar = scene.path("bundle.tar");
    product.export(&names(&images), &tar);
    let docker = Docker::start(&scene, product.address());
    let said = docker.docker(&["load", "--input", tar.to_str().expect("a plain path")]);
    for image in &images {
        let name = match image.registry {
            "docker.io" => image.reference().replace("docker.io/library/", ""),
            _ => image.reference(),
        };
        assert!(said.contains(&format!("Loaded image: {name}")), "{name}: {said}");
        let id = docker.docker(&["image", "inspect", "--format", "{{.Id}}", &name]);
        assert_eq!(id.trim(), image.native.config, "the id of {name}");
        let ran = docker.docker(&["run", "--rm", "--network", "none", &name]);
        assert_eq!(ran.trim(), image.says, "what {name} says");
    }
    docker.finish();
    product.finish();
    scene.finish();
}
