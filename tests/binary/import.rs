//! `roadstead import` on the real binary: killed half-way and begun again, with damaged files, interrupted, and what it says.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Roadstead, command, run};
use crate::support::client::Client;
use crate::support::content::{Image, sha256};

/// Longest wait for a file.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "up.test/team/app";

/// A store that nobody works on, with a registry that does not answer.
struct Scene {
    home: TempDir,
    image: Image,
}

impl Scene {
    fn new() -> Self {
        let home = TempDir::new().unwrap();
        fs::write(
            home.path().join("roadstead.toml"),
            "[upstream.\"up.test\"]\nurl = \"http://127.0.0.1:1\"\n",
        )
        .unwrap();
        let scene = Self { home, image: Image::build("carried").layers(3).finish() };
        let roadstead = scene.serve();
        roadstead.signal("TERM");
        assert!(roadstead.wait().0.success());
        scene
    }

    fn serve(&self) -> Roadstead {
        Roadstead::start(self.home.path(), &["--config", "roadstead.toml", "--offline"])
    }

    fn import(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.home.path());
        command.args(["import", "--config", "roadstead.toml"]).args(arguments);
        command
    }

    fn imported(&self, arguments: &[&str]) -> (ExitStatus, String, String) {
        run(self.import(arguments))
    }

    fn file(&self, digest: &str) -> PathBuf {
        self.home.path().join("roadstead-data/blobs").join(digest.replace(':', "/"))
    }

    /// The members of a good bundle.
    fn members(&self) -> Vec<(String, Vec<u8>)> {
        let mut entry = self.image.descriptor();
        entry["annotations"] = json!({"io.containerd.image.name": format!("{NAME}:1")});
        let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
        let text = |value: Value| value.to_string().into_bytes();
        let mut members = vec![
            ("oci-layout".to_owned(), text(json!({"imageLayoutVersion": "1.0.0"}))),
            ("index.json".to_owned(), text(json!({"schemaVersion": 2, "manifests": [entry]}))),
            (path(&self.image.digest), self.image.bytes.to_vec()),
        ];
        let blobs = self.image.all_blobs().into_iter();
        members.extend(blobs.map(|blob| (path(&blob.digest), blob.bytes().to_vec())));
        members
    }

    fn bundle(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in self.members() {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, &name, bytes.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    async fn is_served(&self) {
        let roadstead = self.serve();
        let client = Client::new(roadstead.data);
        let manifest = client.manifest(NAME, "1").expect(200).await;
        assert_eq!(manifest.body, self.image.bytes);
        for blob in self.image.all_blobs() {
            let body = client.blob(NAME, &blob.digest).open().await.rest().await;
            assert_eq!(body.digest(), blob.digest);
        }
        roadstead.signal("TERM");
        assert!(roadstead.wait().0.success());
    }
}

fn ended(said: &str) -> Value {
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "ended", "{said}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_goes_on_at_the_next_try() {
    let scene = Scene::new();
    let bundle = scene.bundle();
    let mut child = scene
        .import(&["-", "--set", "s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // Into the last layer.
    input.write_all(&bundle[..bundle.len() - 2500]).unwrap();
    input.flush().unwrap();
    let (begun, first) = (Instant::now(), scene.file(&scene.image.blobs[1].digest));
    while !first.exists() {
        assert!(begun.elapsed() < PATIENCE, "nothing is stored");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(input);
    fs::write(scene.home.path().join("bundle.tar"), &bundle).unwrap();
    let (status, said, complaints) = scene.imported(&["bundle.tar", "--json"]);
    assert!(status.success(), "{said}{complaints}");
    let ended = ended(&said);
    assert!(ended["here"].as_u64().unwrap() >= 2, "{ended}");
    let partial = fs::read_dir(scene.home.path().join("roadstead-data/partial")).unwrap().count();
    assert_eq!(partial, 0, "a file of the first try is left");
    scene.is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_bundle_is_checked_part_by_part_and_taken_in_by_a_running_server() {
    let scene = Scene::new();
    let bundle = scene.bundle();
    let mut sums = String::new();
    for (number, part) in bundle.chunks(4096).enumerate() {
        let name = format!("bundle.tar.{:03}", number + 1);
        sums.push_str(&format!("{}  {name}\n", &sha256(part)[7..]));
        fs::write(scene.home.path().join(name), part).unwrap();
    }
    fs::write(scene.home.path().join("bundle.tar.sha256"), sums).unwrap();
    let second = scene.home.path().join("bundle.tar.002");
    let good = fs::read(&second).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    fs::write(&second, &bad).unwrap();
    let (status, said, complaints) = scene.imported(&["bundle.tar.001"]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(complaints.contains("bundle.tar.002 is damaged"), "{complaints}");
    fs::write(&second, &good).unwrap();
    let roadstead = scene.serve();
    let (status, said, complaints) = scene.imported(&["bundle.tar", "--set", "s"]);
    assert!(status.success(), "{said}{complaints}");
    assert!(said.contains("through the running roadstead") && said.contains("the set s"), "{said}");
    Client::new(roadstead.data).manifest(NAME, "1").expect(200).await;
    roadstead.signal("TERM");
    assert!(roadstead.wait().0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_taken_in_and_what_is_wrong_is_said() {
    let scene = Scene::new();
    let layout = scene.home.path().join("layout");
    for (name, bytes) in scene.members() {
        let file = layout.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    fs::write(layout.join("README"), "hello").unwrap();
    let (status, said, complaints) = scene.imported(&["layout"]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        complaints.contains("README") && complaints.contains("nothing of it was taken in"),
        "{complaints}"
    );
    fs::remove_file(layout.join("README")).unwrap();
    let (status, said, complaints) = scene.imported(&["layout", "--set", "s"]);
    assert!(status.success(), "{said}{complaints}");
    scene.is_served().await;
    for (arguments, code) in [
        (&["nothing.tar"][..], 1),
        (&["layout", "--upstream", "docker.io"], 2),
        (&["registry:layout"], 2),
        (&["layout", "--as", "a b"], 2),
        (&["layout", "--set", "-"], 2),
    ] {
        let (status, said, complaints) = scene.imported(arguments);
        assert_eq!(status.code(), Some(code), "{arguments:?}: {said}{complaints}");
    }
}
