//! What podman, skopeo and buildah share: `registries.conf` with roadstead as mirror of each registry.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::scene::Scene;

/// The registries that roadstead stands in front of.
const REGISTRIES: [&str; 2] = ["docker.io", "quay.io"];

/// Writes the configuration of the containers libraries into the scene: mirrors, a policy that accepts every image
/// (nothing here is signed), and engine settings that keep podman out of the machine's directories.
pub(crate) fn configure(scene: &Scene, mirror: SocketAddr) {
    let blocks = REGISTRIES.map(|name| {
        format!(
            "[[registry]]\nprefix = \"{name}\"\nlocation = \"{name}\"\n\
             [[registry.mirror]]\nlocation = \"{mirror}/{name}\"\ninsecure = true\n"
        )
    });
    let text = format!("unqualified-search-registries = []\n{}", blocks.concat());
    scene.write("registries.conf", &text);
    scene.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let engine =
        "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n";
    scene.write("containers.conf", engine);
    let storage = scene.path("storage");
    let storage = storage.display();
    let text = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{storage}/root\"\nrunroot = \"{storage}/run\"\n"
    );
    scene.write("storage.conf", &text);
}

/// A command of that family with this configuration.
pub(crate) fn command(scene: &Scene, program: &str) -> Command {
    let mut command = scene.command(Path::new(program));
    command
        .env("CONTAINERS_REGISTRIES_CONF", scene.path("registries.conf"))
        .env("CONTAINERS_CONF", scene.path("containers.conf"))
        .env("CONTAINERS_STORAGE_CONF", scene.path("storage.conf"))
        .env("XDG_RUNTIME_DIR", scene.path("tmp"));
    command
}

/// The `--root`, `--runroot` and driver of a store under `home`.
pub(crate) fn store(scene: &Scene, home: &str, command: &mut Command) {
    let home = scene.path(home);
    command.arg("--root").arg(home.join("root")).arg("--runroot").arg(home.join("run"));
    command.args(["--storage-driver", "vfs"]);
}
