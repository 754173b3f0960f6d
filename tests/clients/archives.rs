//! Archives that real programs wrote (docker save, skopeo's `oci-archive:` and `docker-archive:`), taken in by an empty roadstead whose
//! upstream is gone, and pulled back.

use crate::docker::Docker;
use crate::support::{
    Client as _, Image, Library, Roadstead, Scene, Upstream, Watched, registries, requirements_met,
    serial,
};

/// How long one command may take.
const COMMAND: std::time::Duration = std::time::Duration::from_secs(120);

fn skopeo(scene: &Scene, arguments: &[&str]) -> String {
    let mut command = registries::command(scene, "skopeo");
    command.arg("--insecure-policy").args(arguments);
    let what = format!("skopeo {}", arguments.join(" "));
    Watched::run(&what, &mut command, COMMAND).success(&what)
}

#[test]
fn archives_are_taken_in_and_pulled_back_with_the_same_id() {
    if !requirements_met("archives", &["dockerd", "docker", "containerd", "skopeo"]) {
        return;
    }
    let _turn = serial();
    let scene = Scene::new("archives");
    let library = Library::shared();
    let mut upstream = Upstream::start(&scene, &library);
    let mut product = Roadstead::start(&scene, &upstream, None);
    registries::configure(&scene, product.address());
    let mut docker = Docker::start(&scene, product.address());
    let images = library.images().iter();
    let images: Vec<&Image> = images.filter(|image| image.registry == "docker.io").collect();
    assert!(!images.is_empty(), "the library has images of Docker Hub");

    // Written with the upstream there.
    let file = |name: &str| scene.path(name).to_str().expect("a plain path").to_owned();
    let saved = file("saved.tar");
    let names: Vec<String> = images.iter().map(|image| docker.name(image)).collect();
    images.iter().for_each(|image| docker.pull(image));
    let mut save = vec!["save", "-o", &saved];
    save.extend(names.iter().map(String::as_str));
    docker.docker(&save);
    let image = images[0];
    let source = format!("docker://{}/{}", product.address(), image.reference());
    let mut others = Vec::new();
    for kind in ["oci-archive", "docker-archive"] {
        let name = format!("docker.io/{}:{kind}", image.repository);
        let target = format!("{kind}:{}:{name}", file(&format!("{kind}.tar")));
        skopeo(&scene, &["copy", "--quiet", "--src-tls-verify=false", &source, &target]);
        others.push((kind, name));
    }

    docker.wipe();
    upstream.cut_off();
    product.restart_empty();
    let said = product.runs(&["import", &saved]);
    assert!(said.contains("which is pinned"), "{said}");
    for (image, name) in images.iter().zip(&names) {
        docker.docker(&["pull", name]);
        let id = docker.docker(&["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(id.trim(), image.native.config, "the ID of {name}");
        let config = skopeo(
            &scene,
            &[
                "inspect",
                "--tls-verify=false",
                "--raw",
                &format!("docker://{}/{}", product.address(), image.reference()),
            ],
        );
        assert!(config.contains(&image.native.config), "{config}");
        let copy = format!("dir:{}", file("copy"));
        let source = format!("docker://{}/{}", product.address(), image.reference());
        skopeo(&scene, &["copy", "--quiet", "--src-tls-verify=false", &source, &copy]);
        let says = docker.says(image).expect("docker runs images");
        assert_eq!(says.trim(), image.says);
    }
    for (kind, name) in &others {
        product.runs(&["import", &file(&format!("{kind}.tar"))]);
        let bare = name.trim_start_matches("docker.io/").trim_start_matches("library/");
        docker.docker(&["pull", bare]);
        let says = docker.docker(&["run", "--rm", "--network", "none", bare]);
        assert_eq!(says.trim(), image.says, "{kind}");
    }
    docker.finish();
    product.finish();
    scene.finish();
}
