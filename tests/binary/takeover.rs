//! `roadstead import registry:FOLDER` on the real binary: a folder that no hard link leads into, and which goes away
//! afterwards.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::mount::Mount;
use crate::process::{Roadstead, command, run};
use crate::support::client::Client;
use crate::support::content::Image;

fn root(folder: &Path) -> PathBuf {
    folder.join("docker/registry/v2")
}

/// Where a folder has the content of a digest.
pub fn data(folder: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    root(folder).join("blobs").join(algorithm).join(&hex[..2]).join(hex).join("data")
}

/// How the repository of an image is called, by its place in the list.
fn name(number: usize) -> String {
    format!("many/n{number:03}")
}

/// A folder as distribution leaves it, with one image of one platform in each of so many repositories.
pub fn write_folder(folder: &Path, images: &[Image]) {
    let write = |path: PathBuf, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for (number, image) in images.iter().enumerate() {
        let repository = root(folder).join("repositories").join(name(number));
        let link = |below: &str, digest: &str| {
            write(repository.join(below).join("link"), digest.as_bytes());
        };
        write(data(folder, &image.digest), &image.bytes);
        let digest = image.digest.replace(':', "/");
        link(&format!("_manifests/revisions/{digest}"), &image.digest);
        link("_manifests/tags/latest/current", &image.digest);
        for blob in &image.blobs {
            write(data(folder, &blob.digest), &blob.bytes());
            link(&format!("_layers/{}", blob.digest.replace(':', "/")), &blob.digest);
        }
    }
}

/// All of them can be pulled.
pub async fn is_served(address: SocketAddr, images: &[Image]) {
    let client = Client::new(address);
    for (number, image) in images.iter().enumerate() {
        let name = format!("up.test/{}", name(number));
        assert_eq!(client.manifest(&name, "latest").expect(200).await.body, image.bytes);
        for blob in &image.blobs {
            assert_eq!(client.blob(&name, &blob.digest).expect(200).await.digest(), blob.digest);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_on_another_file_system_is_copied_and_may_go_afterwards() {
    let Some(mount) = Mount::tmpfs("size=16m") else { return };
    let images = ["one", "two"].map(Image::single);
    write_folder(&mount.point(), &images);
    is_copied(mount, &images).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_no_link_leads_into_is_copied_after_one_try() {
    let images = ["one", "two"].map(Image::single);
    let old = TempDir::new().unwrap();
    write_folder(old.path(), &images);
    let Some(mount) = Mount::bind(old.path()) else { return };
    let log = is_copied(mount, &images).await;
    let told = log.matches("files are copied, because no hard link can be made").count();
    assert_eq!(told, 1, "{log}");
}

/// Takes it over into a store of its own; gives the server's log.
async fn is_copied(mount: Mount, images: &[Image]) -> String {
    let home = TempDir::new().unwrap();
    let config = "[upstream.\"up.test\"]\nurl = \"http://127.0.0.1:1\"\n";
    fs::write(home.path().join("roadstead.toml"), config).unwrap();
    let arguments = ["--config", "roadstead.toml", "--offline"];
    let server = Roadstead::start(home.path(), &arguments);
    let mut command = command(home.path());
    command.arg("import").arg(format!("registry:{}", mount.point().display()));
    command.args(["--upstream", "up.test", "--config", "roadstead.toml", "--json"]);
    let (status, said, complaints) = run(command);
    assert!(status.success(), "{said}{complaints}");
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&last["images"], &last["failed"]), (&2.into(), &0.into()), "{last}");
    server.wait_for_log("a registry's folder was taken over");
    assert!(server.log_text().contains(" linked=0 "), "{}", server.log_text());
    for blob in images.iter().flat_map(|image| &image.blobs) {
        let here = home.path().join("roadstead-data/blobs").join(blob.digest.replace(':', "/"));
        let found = fs::metadata(here).unwrap();
        assert_eq!((found.nlink(), found.len()), (1, blob.len()));
        assert_eq!(fs::metadata(data(&mount.point(), &blob.digest)).unwrap().nlink(), 1);
    }
    let partial = home.path().join("roadstead-data/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0);
    // Nothing of it is open: it can be taken away, and is not missed.
    drop(mount);
    is_served(server.data, images).await;
    server.signal("TERM");
    assert!(server.wait().0.success());
    let server = Roadstead::start(home.path(), &arguments);
    is_served(server.data, images).await;
    let log = server.log_text();
    server.signal("TERM");
    assert!(server.wait().0.success());
    log
}
