//! The storage folder of a real `docker-registry` is taken over, one that people pushed to and one that was a pull-through cache, and
//! served to skopeo and docker with every old registry stopped. Afterwards the old registry still serves its folder.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::docker::Docker;
use crate::skopeo::Skopeo;
use crate::support::{
    Client as _, Image, Library, Roadstead, Scene, Upstream, Watched, registries, requirements_met,
    serial,
};

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How long a takeover may say nothing.
const SILENCE: Duration = Duration::from_secs(120);

#[test]
fn a_folder_that_people_pushed_to_is_served_to_docker_and_skopeo() {
    if !requirements_met("takeover", &["skopeo", "dockerd", "docker", "containerd"]) {
        return;
    }
    let _turn = serial();
    let scene = Scene::new("takeover");
    let library = Library::shared();
    let mut upstream = Upstream::start(&scene, &library);
    upstream.cut_off();
    // Hard links change the files' count of links, and the library is shared.
    let old = scene.path("old");
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(library.storage()).arg(&old);
    Watched::run("cp", &mut copy, COMMAND).success("cp");
    served_and_still_whole(&scene, &upstream, &old, library.images());
    drop(upstream);
    scene.finish();
}

#[test]
fn the_folder_of_a_pull_through_cache_is_served_to_docker_and_skopeo() {
    if !requirements_met("takeover", &["skopeo", "dockerd", "docker", "containerd"]) {
        return;
    }
    let _turn = serial();
    let scene = Scene::new("takeover");
    let library = Library::shared();
    let mut upstream = Upstream::start(&scene, &library);
    let old = scene.path("old");
    let mut cache = Upstream::over(&scene, &old, Some(upstream.address()));
    // The large one is last, and adds nothing here.
    let images = &library.images()[..2];
    for image in images {
        copied(&scene, &cache, image, "through");
    }
    // The old cache stores a blob behind its answer.
    for image in images {
        let platforms = [Some(&image.native), image.foreign.as_ref()];
        for platform in platforms.into_iter().flatten() {
            for digest in platform.layers.iter().chain([&platform.config]) {
                cache.has_stored(&old, image.repository, digest);
            }
        }
    }
    cache.stop();
    upstream.cut_off();
    served_and_still_whole(&scene, &upstream, &old, images);
    drop(upstream);
    scene.finish();
}

/// Takes the folder over, pulls everything, and sees that the old registry serves it as before.
fn served_and_still_whole(scene: &Scene, gone: &Upstream, old: &Path, images: &[Image]) {
    let product = Roadstead::start(scene, gone, None);
    for registry in ["docker.io", "quay.io"] {
        let ended = take_over(scene, old, registry);
        assert_eq!(ended["event"], "ended", "{ended}");
        assert_eq!((&ended["failed"], &ended["left_out"]), (&0.into(), &0.into()), "{ended}");
        assert_eq!(ended["objects"].as_u64().unwrap_or(0) > 0, registry == "docker.io", "{ended}");
    }
    registries::configure(scene, product.address());
    let mut skopeo = Skopeo::new(scene);
    let mut docker = Docker::start(scene, product.address());
    for image in images {
        skopeo.pull(image);
        docker.pull(image);
        let said = docker.says(image).expect("docker runs it");
        assert_eq!(said.trim(), image.says, "what {} says", image.reference());
    }
    skopeo.wipe();
    docker.finish();
    product.finish();
    let mut registry = Upstream::over(scene, old, None);
    for image in images {
        copied(scene, &registry, image, "again");
    }
    registry.stop();
}

/// skopeo copies every platform of the image from this registry.
fn copied(scene: &Scene, registry: &Upstream, image: &Image, to: &str) {
    let source = format!("docker://{}/{}:{}", registry.address(), image.repository, image.tag);
    let target = scene.path(&format!("{to}-{}", image.repository.replace('/', "-")));
    scene.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let mut command = scene.command("skopeo");
    command.arg("--policy").arg(scene.path("policy.json"));
    command.args(["copy", "--all", "--quiet", "--src-tls-verify=false", &source]);
    command.arg(format!("dir:{}", target.display()));
    Watched::run("skopeo", &mut command, COMMAND).success(&source);
}

/// Orders a takeover over the socket; the last line of its story.
fn take_over(scene: &Scene, folder: &Path, registry: &str) -> Value {
    let socket = scene.path("roadstead").join("admin.sock");
    let mut stream = UnixStream::connect(socket).expect("roadstead listens");
    stream.set_read_timeout(Some(SILENCE)).expect("it is a socket");
    let folder = folder.display();
    let target = format!("/api/v1/takeover?folder={folder}&upstream={registry}");
    write!(stream, "POST {target} HTTP/1.0\r\nHost: roadstead\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer ends");
    let last = answer.lines().last().expect("it has lines");
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
