//! `roadstead verify` and `roadstead reindex`, beside a running server and without one.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use tempfile::TempDir;

use crate::process::{Roadstead, binary, command, run};
use crate::support::content::{Blob, Image};
use crate::support::fake::Fake;

/// A store with one image in it, its upstream, and nobody who works on it.
struct Scene {
    fake: Fake,
    image: Image,
    home: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let image = Image::build("store").layers(3).layer(Blob::synthetic(5, 700_000)).finish();
        fake.push("team/app", "v1", &image);
        let scene = Self { fake, image, home: TempDir::new().unwrap() };
        let roadstead = scene.serve();
        roadstead.pulled(&scene.image).await;
        roadstead.signal("TERM");
        assert!(roadstead.wait().0.success());
        scene
    }

    fn serve(&self) -> Roadstead {
        Roadstead::start(self.home.path(), &["--upstream", &format!("up.test={}", self.fake.url())])
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("roadstead-data")
    }

    fn file(&self, digest: &str) -> PathBuf {
        self.data().join("blobs").join(digest.replace(':', "/"))
    }

    fn roadstead(&self, arguments: &[&str]) -> (ExitStatus, String, String) {
        let mut command = command(self.home.path());
        command.args(arguments);
        run(command)
    }

    /// Damages one blob so that only reading shows it, and takes another away.
    fn damage(&self) -> (String, String) {
        let blobs = self.image.all_blobs();
        let (bad, gone) = (blobs[1].digest.clone(), blobs[2].digest.clone());
        let path = self.file(&bad);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 10).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 10).unwrap();
        file.set_modified(modified).unwrap();
        fs::remove_file(self.file(&gone)).unwrap();
        (bad, gone)
    }
}

/// Everything below a directory with its length, so that a change shows.
fn tree(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else if !path.to_string_lossy().contains("roadstead.db") {
            found.push((path.clone(), fs::metadata(&path).unwrap().len()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn verify_of_a_stopped_store_tells_and_repair_repairs() {
    let scene = Scene::new().await;
    let (status, out, err) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}{err}");
    assert!(out.contains("no server runs") && out.contains("0 damaged, 0 missing"), "{out}");

    let (bad, gone) = scene.damage();
    let before = tree(&scene.data());
    for _ in 0..2 {
        let (status, out, err) = scene.roadstead(&["verify", "--data", "roadstead-data"]);
        assert_eq!(status.code(), Some(1), "{out}{err}");
        for (word, digest) in [("damaged", &bad), ("missing", &gone)] {
            let line = out.lines().find(|line| line.starts_with(word)).unwrap();
            assert!(line.contains(digest.as_str()) && line.contains("blobs/sha256/"), "{line}");
        }
        assert!(out.contains("nothing was changed") && out.contains("--repair"), "{out}");
        assert_eq!(tree(&scene.data()), before, "it only tells");
    }

    let (status, out, _) = scene.roadstead(&["verify", "--repair"]);
    assert_eq!(status.code(), Some(1), "{out}");
    assert!(out.contains("quarantine/") && out.contains("next pull"), "{out}");
    assert!(scene.data().join("quarantine").join(bad.replace(':', "-")).exists());
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}");
    let roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    assert!(scene.file(&bad).exists() && scene.file(&gone).exists());
}

#[tokio::test]
async fn verify_of_a_running_store_goes_through_the_server() {
    let scene = Scene::new().await;
    let roadstead = scene.serve();
    let socket = scene.data().join("admin.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let (status, out, err) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}{err}");
    assert!(
        out.contains(&format!("through the running roadstead (pid {})", roadstead.pid())),
        "{out}"
    );

    let (bad, _gone) = scene.damage();
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(1), "{out}");
    assert!(scene.file(&bad).exists(), "it only tells");
    let (status, out, _) = scene.roadstead(&["verify", "--repair", "--json"]);
    assert_eq!(status.code(), Some(1), "{out}");
    let events: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "begun");
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["damaged"], &last["missing"]),
        (&"ended".into(), &1.into(), &1.into())
    );
    roadstead.pulled(&scene.image).await;
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}");
    roadstead.signal("TERM");
    assert!(roadstead.wait().0.success());
    assert!(!socket.exists(), "the socket goes with the server");
}

#[tokio::test]
async fn the_socket_of_a_killed_server_is_no_server() {
    let scene = Scene::new().await;
    let roadstead = scene.serve();
    roadstead.kill();
    assert!(scene.data().join("admin.sock").exists());
    let (status, out, err) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}{err}");
    assert!(out.contains("no server runs"), "{out}");
    let roadstead = scene.serve();
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert!(status.success() && out.contains("through the running"), "{out}");
    drop(roadstead);
}

#[tokio::test]
async fn a_lost_database_is_rebuilt_from_the_files() {
    let scene = Scene::new().await;
    for name in ["roadstead.db", "roadstead.db-wal", "roadstead.db-shm"] {
        drop(fs::remove_file(scene.data().join(name)));
    }
    let sizes: Vec<u64> =
        scene.image.all_blobs().iter().map(|blob| scene.fake.blob_bytes(&blob.digest)).collect();
    let objects = scene.image.all_blobs().len() + 1;
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}");
    assert!(out.contains(&format!("{objects} files")) && out.contains("reindex"), "{out}");
    let (status, out, err) = scene.roadstead(&["reindex"]);
    assert_eq!(status.code(), Some(0), "{out}{err}");
    assert!(
        out.contains(&format!("{objects} files that the metadata did not know were taken in")),
        "{out}"
    );
    assert!(
        out.contains("tags") && out.contains("first pull"),
        "what cannot be rebuilt is said: {out}"
    );
    let (status, out, _) = scene.roadstead(&["reindex"]);
    assert!(status.success() && out.contains("0 files that"), "{out}");
    let roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    let after: Vec<u64> =
        scene.image.all_blobs().iter().map(|blob| scene.fake.blob_bytes(&blob.digest)).collect();
    assert_eq!(after, sizes, "nothing that is here is downloaded again");
}

#[tokio::test]
async fn junk_in_the_database_is_told_and_moved_aside_only_by_order() {
    let scene = Scene::new().await;
    for name in ["roadstead.db-wal", "roadstead.db-shm"] {
        drop(fs::remove_file(scene.data().join(name)));
    }
    let database = scene.data().join("roadstead.db");
    let junk = vec![0x5a; 100_000];
    fs::write(&database, &junk).unwrap();
    for _ in 0..2 {
        let (status, out, err) = scene.roadstead(&["verify"]);
        assert_eq!(status.code(), Some(1), "{out}{err}");
        assert!(err.contains("roadstead.db") && err.contains("roadstead reindex"), "{err}");
        assert_eq!(fs::read(&database).unwrap(), junk, "it only tells");
    }
    let (status, out, err) = scene.roadstead(&["reindex"]);
    assert_eq!(status.code(), Some(0), "{out}{err}");
    assert!(err.contains("roadstead.db.damaged-"), "{err}");
    let objects = scene.image.all_blobs().len() + 1;
    assert!(out.contains(&format!("{objects} files")), "{out}");
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(0), "{out}");
}

#[test]
fn what_is_no_store_is_left_alone() {
    let home = TempDir::new().unwrap();
    let photos = home.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("beach.jpg"), "x").unwrap();
    fs::create_dir(home.path().join("empty")).unwrap();
    fs::write(home.path().join("file"), "x").unwrap();
    for data in ["nowhere", "photos", "empty", "file"] {
        for arguments in [["verify", "--data", data], ["reindex", "--data", data]] {
            let mut command = command(home.path());
            command.args(arguments);
            let (status, out, err) = run(command);
            assert_eq!(status.code(), Some(2), "{out}{err}");
            assert!(
                err.contains(data) && err.contains("--data") && err.lines().count() == 1,
                "{err}"
            );
        }
    }
    assert!(!home.path().join("nowhere").exists());
    assert_eq!(fs::read_dir(&photos).unwrap().count(), 1);
    assert_eq!(fs::read_dir(home.path().join("empty")).unwrap().count(), 0);
}

#[test]
fn junk_arguments_are_wrong_usage() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("bad.toml"), "data = 7\n").unwrap();
    for arguments in [
        &["verify", "--repiar"][..],
        &["verify", "sha256:ab"],
        &["verify", "--data"],
        &["reindex", "--repair"],
        &["verify", "--config", "bad.toml"],
        &["verify", "--config", "absent.toml"],
    ] {
        let mut command = command(home.path());
        command.args(arguments);
        let (status, out, err) = run(command);
        assert_eq!(status.code(), Some(2), "{arguments:?}: {out}{err}");
        assert!(!err.is_empty());
    }
    assert!(!home.path().join("roadstead-data").exists());
}

#[tokio::test]
async fn a_store_of_somebody_else_is_one_line() {
    let scene = Scene::new().await;
    let copy = scene.home.path().join("roadstead");
    fs::copy(binary(), &copy).unwrap();
    fs::set_permissions(scene.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let unreadable = fs::metadata("/proc/self").unwrap();
    let mut command = Command::new(&copy);
    command.current_dir(scene.home.path()).env_clear().args(["verify"]).stdin(Stdio::null());
    if std::os::unix::fs::MetadataExt::uid(&unreadable) == 0 {
        command.uid(65_534).gid(65_534);
    } else {
        fs::set_permissions(scene.data(), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let (status, out, err) = run(command);
    fs::set_permissions(scene.data(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(status.code(), Some(1 | 2)), "{out}{err}");
    assert!(err.contains("roadstead-data") && err.lines().count() == 1, "{err}");
}

/// Rows of objects that are not there, thousands of them: a verify has more to tell than pipe and socket hold.
fn fill_with_missing(data: &Path) {
    let mut rows = rusqlite::Connection::open(data.join("roadstead.db")).unwrap();
    let transaction = rows.transaction().unwrap();
    for number in 0..6000_u32 {
        let mut key = vec![1; 33];
        key[1..5].copy_from_slice(&number.to_be_bytes());
        transaction
            .execute(
                "INSERT INTO objects (digest, kind, state, size, created, verified, accessed) VALUES (?1, 0, 1, 1, 1, 1, 1)",
                [key],
            )
            .unwrap();
    }
    transaction
        .execute("UPDATE usage SET objects = objects + 6000, bytes = bytes + 6000", [])
        .unwrap();
    transaction.commit().unwrap();
}

/// A verify whose output nobody reads, in the middle of its work.
fn stuck(scene: &Scene) -> Child {
    let mut command = command(scene.home.path());
    let mut child = command.args(["verify", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 16];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, br#"{"event":"begun""#);
    child
}

#[tokio::test]
async fn one_verify_at_a_time_and_a_killed_one_is_forgotten() {
    let scene = Scene::new().await;
    fill_with_missing(&scene.data());

    // Without a server, the first one holds the directory.
    let mut first = stuck(&scene);
    let (status, _, err) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.contains("in use by") && err.contains(&first.id().to_string()), "{err}");
    first.kill().unwrap();
    first.wait().unwrap();

    // With one, it holds the job.
    let roadstead = scene.serve();
    let mut first = stuck(&scene);
    let (status, _, err) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.contains("running already"), "{err}");
    first.kill().unwrap();
    first.wait().unwrap();
    let (status, out, _) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(1), "{out}");
    assert!(out.contains("6000 missing"), "{out}");

    // A stop of the server is told to whoever waits.
    let first = stuck(&scene);
    roadstead.signal("TERM");
    assert!(roadstead.wait().0.success());
    let output = first.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// Holds the directory as a server does, with a socket of the test's own.
struct Impostor {
    _lock: File,
    listener: UnixListener,
}

impl Impostor {
    fn new(data: &Path) -> Self {
        let lock = File::options().read(true).write(true).open(data.join("LOCK")).unwrap();
        lock.lock().unwrap();
        let listener = UnixListener::bind(data.join("admin.sock")).unwrap();
        Self { _lock: lock, listener }
    }

    /// Starts a verify and waits until it has sent its request.
    fn verify(&self, scene: &Scene) -> (Child, UnixStream) {
        let mut command = command(scene.home.path());
        let child =
            command.arg("verify").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        assert!(request.starts_with(b"POST /api/v1/verify HTTP/1.1\r\n"));
        (child, stream)
    }
}

#[tokio::test]
async fn control_c_ends_it_at_once() {
    let scene = Scene::new().await;
    let impostor = Impostor::new(&scene.data());
    for signal in ["INT", "TERM"] {
        let (child, _stream) = impostor.verify(&scene);
        let arguments = [format!("-{signal}"), child.id().to_string()];
        assert!(Command::new("kill").args(arguments).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.status.signal()), (Some(130), None));
        assert!(String::from_utf8(output.stderr).unwrap().contains("interrupted"));
    }
}

#[tokio::test]
async fn a_server_that_goes_away_or_talks_nonsense_is_an_error() {
    let scene = Scene::new().await;
    let impostor = Impostor::new(&scene.data());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";
    let begun = "{\"event\":\"begun\",\"job\":\"verify\",\"objects\":1,\"bytes\":1}\n";
    for (answer, said) in [
        (String::new(), "broke"),
        (format!("{head}{begun}"), "cut short"),
        (format!("{head}hello\n"), "another version"),
        (format!("{head}{}", "x".repeat(1 << 20)), "another version"),
        ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned(), "500"),
    ] {
        let (child, mut stream) = impostor.verify(&scene);
        // The command may hang up before it has read everything.
        drop(stream.write_all(answer.as_bytes()));
        drop(stream);
        let output = child.wait_with_output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}: {err}");
        assert!(err.contains(said), "{said}: {err}");
    }
}

#[tokio::test]
async fn a_holder_without_a_socket_is_told_as_such() {
    let scene = Scene::new().await;
    let lock = File::options().read(true).write(true).open(scene.data().join("LOCK")).unwrap();
    lock.lock().unwrap();
    let (status, _, err) = scene.roadstead(&["verify"]);
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.contains("in use by") && err.contains("admin.sock"), "{err}");
}
