//! That the tests leave nothing behind, and that they would notice if they did.

use std::time::Duration;

use crate::containerd::Containerd;
use crate::docker::Docker;
use crate::support::{Scene, Watched, requirements_met, serial};

/// How long a dropped daemon's helpers may take to go.
const SETTLING: Duration = Duration::from_secs(20);
/// An address at which no mirror listens; these daemons pull nothing.
const NO_MIRROR: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

#[test]
fn a_process_or_a_mount_that_is_left_over_is_seen() {
    if !requirements_met("leftovers", &[]) {
        return;
    }
    let scene = Scene::new("left");
    assert!(scene.remains().is_empty(), "a fresh scene has nothing: {:?}", scene.remains());

    // The process names the scene in its environment only. Its first line proves that it runs: the kernel shows no
    // environment while a program is being loaded.
    let mut watcher = Watched::start("tail", scene.command("tail").args(["-f", "/etc/hostname"]));
    assert!(watcher.line(SETTLING, |_| Some(())).is_some(), "tail prints {}", watcher.tail());
    let remains = scene.remains();
    assert!(remains.iter().any(|line| line.contains("tail -f")), "{remains:?}");
    watcher.stop();

    let point = scene.path("mounted");
    std::fs::create_dir(&point).expect("the scene is writable");
    let mount = ["-t", "tmpfs", "none"];
    let mut command = scene.command("mount");
    Watched::run("mount", command.args(mount).arg(&point), SETTLING).success("mount");
    let remains = scene.remains();
    assert!(remains.iter().any(|line| line.starts_with("mount ")), "{remains:?}");
    scene.remove("mounted");
    scene.finish();
}

#[test]
fn daemons_that_a_failed_test_drops_leave_nothing() {
    if !requirements_met("docker and containerd", &["dockerd", "docker", "containerd", "ctr"]) {
        return;
    }
    let _turn = serial();
    let scene = Scene::new("drop");
    let docker = Docker::start(&scene, NO_MIRROR.into());
    let containerd = Containerd::start(&scene, NO_MIRROR.into());
    let running = scene.remains();
    for name in ["dockerd", "containerd --config"] {
        assert!(running.iter().any(|line| line.contains(name)), "{name} runs: {running:?}");
    }
    drop(docker);
    drop(containerd);
    scene.finish();
}
