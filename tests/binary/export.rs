//! `roadstead export`: files, parts, directories and streams; what is refused; and that nothing is left over of what did not become whole.
//!
//! A command blocks the thread of its test, so the upstream has another one.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::mount::Mount;
use crate::process::{Roadstead, command};
use crate::support::content::{Blob, Image};
use crate::support::fake::Fake;

const IMAGE: &str = "up.test/team/app:v1";
const PLACE: [&str; 2] = ["--data", "roadstead-data"];

/// A store with one image of some 400 KiB in it, and its upstream.
struct Scene {
    fake: Fake,
    image: Image,
    home: TempDir,
}

/// What a command did.
struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    #[track_caller]
    fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.text(), self.err);
        self
    }

    /// This exit, these on standard error, and nothing on standard output but what was planned.
    #[track_caller]
    fn refused(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.text(), self.err);
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {}", self.err);
        }
        assert!(self.err.lines().all(|line| line.starts_with("roadstead: ")), "{}", self.err);
        self
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Scene {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let image =
            Image::build("exported").layer(Blob::layer("large", 400_000)).layers(1).finish();
        fake.push("team/app", "v1", &image);
        let home = TempDir::new().unwrap();
        let config = format!("[upstream.\"up.test\"]\nurl = \"{}\"\n", fake.url());
        fs::write(home.path().join("roadstead.toml"), config).unwrap();
        Self { fake, image, home }
    }

    async fn serve(&self) -> Roadstead {
        let roadstead = Roadstead::start(self.home.path(), &["--config", "roadstead.toml"]);
        roadstead.pulled(&self.image).await;
        roadstead
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.home.path());
        command.arg("export").args(arguments).args(PLACE);
        command
    }

    fn export(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments))
    }

    /// Names in the home that begin so.
    fn names(&self, begin: &str) -> Vec<String> {
        let names = names(self.home.path());
        names.into_iter().filter(|name| name.trim_start_matches('.').starts_with(begin)).collect()
    }

    /// The sums are right, by the program that everybody has.
    fn sums_hold(&self, file: &str) {
        let mut check = Command::new("sha256sum");
        check.args(["--check", "--strict", "--quiet", file]).current_dir(self.home.path());
        ran(check).done();
    }
}

fn ran(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    Ran { code: output.status.code(), out: output.stdout, err }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_as_a_file_in_parts_as_a_directory_and_as_a_stream() {
    let scene = Scene::new().await;
    let roadstead = scene.serve().await;
    let said = scene.export(&[IMAGE, "-o", "a.tar"]).done().text();
    assert!(said.starts_with("1 image, 4 objects, "), "{said}");
    assert!(said.contains("a.tar.sha256") && said.contains("a.tar.receipt"), "{said}");
    assert_eq!(scene.names("a.tar"), ["a.tar", "a.tar.receipt", "a.tar.sha256"]);
    scene.sums_hold("a.tar.sha256");
    let whole = fs::read(scene.at("a.tar")).unwrap();
    let receipt = fs::read_to_string(scene.at("a.tar.receipt")).unwrap();
    assert_eq!(receipt.lines().next(), Some("roadstead-receipt 1"));
    assert!(receipt.contains(&scene.image.digest) && receipt.lines().count() == 5, "{receipt}");

    let dry = scene.export(&[IMAGE, "--dry-run", "--json"]).done();
    let told: Value = serde_json::from_slice(&dry.out).unwrap();
    assert_eq!(told["bytes"], whole.len());
    let table = scene.export(&[IMAGE, "--dry-run"]).done().text();
    assert!(table.contains("IMAGE") && table.contains(IMAGE), "{table}");

    scene.export(&[IMAGE, "-o", "a.tar"]).refused(1, &["a.tar", "--force"]);
    assert_eq!(fs::read(scene.at("a.tar")).unwrap(), whole);
    fs::write(scene.at("a.tar"), "old").unwrap();
    scene.export(&[IMAGE, "-o", "a.tar", "--force"]).done();
    assert_eq!(fs::read(scene.at("a.tar")).unwrap(), whole, "the same bytes");

    scene.export(&[IMAGE, "-o", "b.tar", "--split", "64KiB"]).done();
    let parts = scene.names("b.tar.0");
    assert_eq!(parts.len(), whole.len().div_ceil(64 * 1024));
    let together: Vec<u8> =
        parts.iter().flat_map(|part| fs::read(scene.at(part)).unwrap()).collect();
    assert_eq!(together, whole);
    scene.sums_hold("b.tar.sha256");

    scene.export(&[IMAGE, "-o", "layout"]).done();
    scene.sums_hold("layout.sha256");
    let layer = &scene.image.all_blobs()[1].digest;
    let stored = scene.at("layout/blobs").join(layer.replace(':', "/"));
    assert_eq!(crate::support::content::sha256(&fs::read(stored).unwrap()), *layer);
    scene.export(&[IMAGE, "-o", "layout"]).refused(1, &["layout", "--force"]);
    scene.export(&[IMAGE, "-o", "layout", "--force"]).done();
    fs::create_dir(scene.at("diary")).unwrap();
    fs::write(scene.at("diary/today"), "dear diary").unwrap();
    scene.export(&[IMAGE, "-o", "diary", "--force"]).refused(1, &["diary", "left alone"]);
    assert_eq!(names(&scene.at("diary")), ["today"]);

    let stream = scene.export(&[IMAGE, "-o", "-"]).done();
    assert!(stream.out == whole && stream.err.contains("1 image"), "{}", stream.err);

    let delta = scene.export(&[IMAGE, "-o", "c.tar", "--base", "a.tar.receipt"]).done().text();
    assert!(delta.contains("3 objects left out"), "{delta}");
    assert!(fs::metadata(scene.at("c.tar")).unwrap().len() < 10_000);
    assert_eq!(fs::read_to_string(scene.at("c.tar.receipt")).unwrap(), receipt);

    // The same from a store that nobody serves.
    roadstead.signal("TERM");
    assert!(roadstead.wait().0.success());
    let stopped = scene.export(&[IMAGE, "-o", "-"]).done();
    assert_eq!(stopped.out, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_out_leaves_nothing() {
    let scene = Scene::new().await;
    let _roadstead = scene.serve().await;
    for (name, text) in [
        ("list", "up.test/team/app:v1\nup.test/team/app:v1 again\n"),
        ("empty", "# nothing yet\n"),
        ("receipt", "roadstead-receipt 1\nsha256:zz\n"),
    ] {
        fs::write(scene.at(name), text).unwrap();
    }
    for (arguments, code, parts) in [
        (&["-o", "x.tar"][..], 2, &[][..]),
        (&[IMAGE], 2, &[]),
        (&["--file", "list", "-o", "x.tar"], 2, &["line 2"]),
        (&["--file", "empty", "-o", "x.tar"], 2, &["empty"]),
        (&["--file", "absent", "-o", "x.tar"], 2, &["absent"]),
        (&[IMAGE, "--base", "receipt", "-o", "x.tar"], 2, &["receipt: line 2"]),
        (&[IMAGE, "--split", "-5GB", "-o", "x.tar"], 2, &[]),
        (&[IMAGE, "--split", "1B", "-o", "x.tar"], 2, &["--split"]),
        (&[IMAGE, "--split", "1MiB", "-o", "x"], 2, &["--split"]),
        (&[IMAGE, "--split", "1MiB", "-o", "-"], 2, &["--split"]),
        (&[IMAGE, "--platform", "linux", "-o", "x.tar"], 2, &[]),
        (&["not a name", "-o", "x.tar"], 2, &["not a name"]),
        (&["up.test/team/app:v9", "-o", "x.tar"], 1, &["v9"]),
        (&[IMAGE, "--platform", "linux/s390x", "-o", "x.tar"], 1, &["unknown", "linux/s390x"]),
        (&["--set", "nobody", "-o", "x.tar"], 1, &["nobody"]),
        (&[IMAGE, "-o", "no/such/x.tar"], 1, &["no/such"]),
    ] {
        let refused = scene.export(arguments);
        assert_eq!(refused.code, Some(code), "{arguments:?}: {}{}", refused.text(), refused.err);
        for part in parts {
            assert!(refused.err.contains(part), "{arguments:?}: no {part:?} in {}", refused.err);
        }
    }
    let layer = scene.image.all_blobs()[1].digest.clone();
    let mut delete = command(scene.home.path());
    delete.args(["delete", &layer, "--force"]).args(PLACE);
    ran(delete).done();
    let incomplete = scene.export(&[IMAGE, "-o", "x.tar"]);
    incomplete.refused(1, &["not complete", "warm", &format!("removed: {IMAGE}: layer {layer}")]);
    assert_eq!(scene.names("x"), [""; 0]);
    drop(scene.fake);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_target_is_told_before_and_leaves_nothing_afterwards() {
    let scene = Scene::new().await;
    let _roadstead = scene.serve().await;
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut stream = scene.command(&[IMAGE, "-o", "-"]);
    stream.stdout(full);
    let refused = Ran { out: Vec::new(), ..ran_with_stdout(stream) };
    refused.refused(1, &["standard output"]);

    let Some(mount) = Mount::tmpfs("size=64k") else { return };
    let medium = mount.point();
    let medium = medium.to_str().unwrap();
    scene.export(&[IMAGE, "-o", medium]).refused(1, &["is a mount point", "/small.tar"]);
    assert_eq!(names(medium.strip_suffix("/small").unwrap().as_ref()), ["small"]);
    if let Some(again) = Mount::bind(&scene.at("")) {
        let again = again.point();
        scene.export(&[IMAGE, "-o", again.to_str().unwrap()]).refused(1, &["is a mount point"]);
    }
    for name in ["x.tar", "layout"] {
        let target = mount.at(name);
        scene.export(&[IMAGE, "-o", &target]).refused(1, &["free", "wanted"]);
        assert_eq!(names(&mount.point()), [""; 0], "{name}");
    }
    drop(mount);
    // There are bytes enough, and then no more files can be made.
    let Some(mount) = Mount::tmpfs("size=16m,nr_inodes=4") else { return };
    for arguments in [
        &[IMAGE, "-o", &mount.at("layout")][..],
        &[IMAGE, "--split", "64KiB", "-o", &mount.at("x.tar")],
    ] {
        scene.export(arguments).refused(1, &["No space left", "nothing was kept"]);
        assert_eq!(names(&mount.point()), [""; 0], "{arguments:?}");
    }
    scene.export(&[IMAGE, "-o", &mount.at("y.tar")]).done();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_does_not_hold_the_command_back() {
    let scene = Scene::new().await;
    let _roadstead = scene.serve().await;
    let mut command = scene.command(&[IMAGE, "-o", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    // The bundle is larger than any pipe, so it is being written.
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begun.elapsed() > Duration::from_secs(20) {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(status.expect("it ends").code(), Some(130));
}

fn ran_with_stdout(mut command: Command) -> Ran {
    let output = command.stderr(Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    Ran { code: output.status.code(), out: output.stdout, err }
}
