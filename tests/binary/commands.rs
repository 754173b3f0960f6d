//! The commands for the life of content, each against a running server, a stopped store, and a TCP listener with a token.
//!
//! A command blocks the thread of its test, so the upstream has another one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Roadstead, command, run};
use crate::support::content::Image;
use crate::support::fake::Fake;

const IMAGE: &str = "up.test/team/app:v1";

/// A store with one image in it, its upstream, and a configuration that knows both.
struct Scene {
    fake: Fake,
    image: Image,
    home: TempDir,
}

/// What a command did.
struct Ran {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Ran {
    /// Exit 0, and these on standard output.
    #[track_caller]
    fn said(self, parts: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(0), "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.out.contains(part), "no {part:?} in {}", self.out);
        }
        self
    }

    /// This exit, these on standard error.
    #[track_caller]
    fn refused(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {}", self.err);
        }
        assert!(self.err.lines().all(|line| line.starts_with("roadstead: ")), "{}", self.err);
        self
    }

    fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Scene {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let image = Image::build("commands").layers(2).finish();
        fake.push("team/app", "v1", &image);
        let home = TempDir::new().unwrap();
        let config = format!(
            "admin_listen = \"127.0.0.1:0\"\n[upstream.\"up.test\"]\nurl = \"{}\"\naliases = [\"short\"]\n",
            fake.url()
        );
        fs::write(home.path().join("roadstead.toml"), config).unwrap();
        Self { fake, image, home }
    }

    fn serve(&self) -> Roadstead {
        Roadstead::start(self.home.path(), &["--config", "roadstead.toml"])
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("roadstead-data")
    }

    fn run(&self, arguments: &[&str], place: &[&str]) -> Ran {
        let mut command = command(self.home.path());
        command.args(arguments).args(place);
        let (status, out, err) = run(command);
        Ran { status, out, err }
    }

    /// What can be asked wherever the store is, and changes nothing that lasts.
    fn ask_everything(&self, place: &[&str]) {
        let digest = self.image.digest.as_str();
        let run = |arguments: &[&str]| self.run(arguments, place);
        let listed = run(&["ls"]).said(&["IMAGE", IMAGE, &digest[..19]]);
        assert_eq!(listed.out.lines().count(), 2, "{}", listed.out);
        run(&["ls", "up.test"]).said(&[IMAGE]);
        run(&["ls", "up.test/team/app"]).said(&[IMAGE]);
        let nothing = run(&["ls", "ghcr.io"]).said(&[]);
        assert!(nothing.out.is_empty() && nothing.err.contains("no tag is known in ghcr.io"));
        let tags = run(&["ls", "--json"]).json();
        assert_eq!((&tags[0]["image"], &tags[0]["digest"]), (&IMAGE.into(), &digest.into()));

        run(&["inspect", IMAGE]).said(&[digest, "all of it", "layer", "config", "present"]);
        let inspected = run(&["inspect", IMAGE, "--json"]).json();
        assert_eq!((inspected.len(), &inspected[0]["complete"]), (1, &true.into()));
        run(&["history", IMAGE]).said(&["SINCE", digest, "served now"]);
        assert_eq!(run(&["history", IMAGE, "--json"]).json()[0]["served"], true);
        run(&["explain", IMAGE]).said(&["verdict:", digest, "nothing known is missing"]);
        run(&["du"]).said(&["REGISTRY", "up.test", "total", "free on the disk"]);
        assert!(run(&["du", "--json"]).json()[0]["bytes"].as_u64().unwrap() > 0);

        for command in ["inspect", "history", "refresh"] {
            run(&[command, "up.test/team/nothing:v9"]).refused(1, &[]);
            run(&[command, "not a name"]).refused(2, &["not a name"]);
        }

        self.lock(place);
        self.rules(place);
        run(&["gc", "--dry-run"]).said(&["looking for", "would take 0 objects"]);
        run(&["gc"]).said(&["took 0 objects"]);
        let story = run(&["gc", "--json"]).json();
        assert_eq!(story.last().unwrap()["event"], "ended");
        run(&["verify"]).said(&["0 damaged, 0 missing"]);
        run(&["purge", "up.test"]).refused(2, &["--upstream up.test"]);
        run(&["purge", "short"]).refused(2, &["no repository but a registry, up.test"]);
        run(&["purge", "--upstream", "team"]).refused(2, &["no registry"]);
    }

    fn lock(&self, place: &[&str]) {
        let digest = self.image.digest.as_str();
        let run = |arguments: &[&str]| self.run(arguments, place);
        let wanted = format!("{IMAGE} {digest} ");
        let line = |text: &str| text.lines().nth(1).unwrap().starts_with(&wanted);
        let locked = run(&["lock", IMAGE]).said(&["roadstead-lock 1\n"]);
        assert!(line(&locked.out), "{}", locked.out);
        assert_eq!(run(&["lock", IMAGE, "--json"]).json()[0]["digest"], digest);
        let file = self.home.path().join("images.lock");
        drop(fs::remove_file(&file));
        run(&["lock", IMAGE, IMAGE, "-o", "images.lock"]).said(&[]);
        assert!(line(&fs::read_to_string(&file).unwrap()));
        fs::write(&file, format!("roadstead-lock 1\n{wanted} 2020-01-01\n")).unwrap();
        run(&["lock", "-o", "images.lock"]).said(&[]);
        let text = fs::read_to_string(&file).unwrap();
        assert!(line(&text) && !text.contains("2020"), "{text}");

        fs::write(self.home.path().join("diary"), "dear diary\n").unwrap();
        run(&["lock", IMAGE, "-o", "diary"]).refused(2, &["diary: line 1", "left alone"]);
        assert_eq!(fs::read_to_string(self.home.path().join("diary")).unwrap(), "dear diary\n");
        run(&["lock", "-o", "absent.lock"]).refused(2, &["no image to lock"]);
        run(&["lock", "up.test/no/thing:x", "-o", "absent.lock"]).refused(1, &["up.test/no/thing"]);
        run(&["lock", IMAGE, "-o", "no/such/dir.lock"]).refused(1, &["no/such/dir.lock"]);
        assert!(!self.home.path().join("absent.lock").exists());
    }

    fn rules(&self, place: &[&str]) {
        let run = |arguments: &[&str]| self.run(arguments, place);
        for (make, take, word) in [("pin", "unpin", "pinned"), ("freeze", "unfreeze", "frozen")] {
            let none = run(&[make]).said(&[]);
            assert!(none.out.is_empty() && none.err.contains(make), "{}", none.err);
            run(&[make, "up.test/team/*:v*", "--for", "30d", "--reason", "audit = 100 % & more"])
                .said(&[word, "up.test/team/*:v*", "(in 30 days)"]);
            run(&[make]).said(&["SCOPE", "up.test/team/*:v*", "audit = 100 % & more"]);
            run(&["ls"]).said(&[word]);
            run(&[make, "up.test", "--until", "2020-01-01"]).refused(2, &["2020-01-01"]);
            run(&[make, "[", "--for", "1d"]).refused(2, &["scope"]);
            run(&[take, "up.test/team/*:v*"]).said(&["1 ", "taken back"]);
            run(&[take, "up.test/team/*:v*"]).refused(1, &["up.test/team/*:v*"]);
            let made = run(&[make, "up.test", "--json"]).json();
            let id = made[0]["id"].to_string();
            run(&[take, &id]).said(&["taken back"]);
            run(&[take, "999999999"]).refused(1, &["999999999"]);
        }
    }

    /// Takes out one thing after the other.
    fn take_out(&self, place: &[&str]) {
        let run = |arguments: &[&str]| self.run(arguments, place);
        let layer = self.image.all_blobs()[1].digest.clone();
        run(&["delete", &layer]).refused(1, &["kept by", "force", "up.test/team/app"]);
        run(&["delete", &layer, "--force"]).said(&["bytes gone", &layer, "incomplete now"]);
        run(&["inspect", IMAGE]).said(&["not all of it", "removed"]);
        run(&["delete", IMAGE]).said(&["tag gone: up.test/team/app:v1", "the content goes after"]);
        run(&["delete", IMAGE]).refused(1, &["up.test/team/app:v1"]);
        run(&["gc", "--dry-run"]).said(&["would take"]);
        run(&["purge", "--upstream", "up.test"]).said(&["taking out", "up.test", "taken out"]);
        let empty = run(&["ls"]).said(&[]);
        assert!(empty.out.is_empty() && empty.err.contains("no tag"), "{}{}", empty.out, empty.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_through_the_socket_of_a_running_server() {
    let scene = Scene::new().await;
    let roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    let place = ["--data", "roadstead-data"];
    scene.ask_everything(&place);

    // A frozen tag moves upstream: that is recorded, and the old one is served.
    let old = scene.image.digest.clone();
    let new = Image::build("commands, newer").layers(1).finish();
    scene.run(&["freeze", IMAGE], &place).said(&["frozen", IMAGE]);
    scene.run(&["refresh", IMAGE], &place).said(&["is what it was"]);
    scene.fake.push("team/app", "v1", &new);
    scene.run(&["refresh", IMAGE], &place).said(&["moved", &new.digest]);
    let history = scene.run(&["history", IMAGE], &place).said(&[&old, &new.digest]);
    let served = history.out.lines().find(|line| line.contains("served now")).unwrap();
    assert!(served.contains(&old), "{}", history.out);
    scene.run(&["explain", IMAGE], &place).said(&["frozen", &old]);
    scene.run(&["unfreeze", IMAGE], &place).said(&["1 freeze taken back"]);
    scene.run(&["ls", "--json"], &place).said(&[&new.digest]);
    scene.fake.stop().await;
    scene.run(&["refresh", IMAGE], &place).refused(1, &[]);
    scene.run(&["history", IMAGE], &place).said(&["now"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_takes_things_out() {
    let scene = Scene::new().await;
    let roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    scene.take_out(&["--config", "roadstead.toml"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_a_stopped_store() {
    let scene = Scene::new().await;
    let roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    roadstead.signal("TERM");
    assert!(roadstead.wait().0.success());
    let place = ["--config", "roadstead.toml"];
    scene.ask_everything(&place);
    scene.run(&["refresh", IMAGE], &place).refused(1, &[]);
    scene.take_out(&place);

    for arguments in [&["ls"][..], &["du"], &["gc"], &["inspect", IMAGE], &["purge", "a/b"]] {
        scene.run(arguments, &["--data", "nowhere"]).refused(2, &["nowhere", "--data"]);
    }
    assert!(!scene.home.path().join("nowhere").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_over_tcp_with_the_token() {
    let scene = Scene::new().await;
    let mut roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    let line = roadstead.wait_for_line("admin API on ");
    let url = line.split(' ').find(|word| word.starts_with("http://")).unwrap();
    let url = url.trim_end_matches(',').to_owned();
    let token = scene.data().join("admin-token");
    let token = token.to_str().unwrap();
    scene.ask_everything(&["--admin", &url, "--token-file", token]);

    let home = scene.home.path();
    fs::write(home.join("wrong"), "x".repeat(43)).unwrap();
    fs::write(home.join("empty"), "\n").unwrap();
    let at = |url: &str, token: &str| scene.run(&["ls"], &["--admin", url, "--token-file", token]);
    at(&url, "wrong").refused(1, &["token"]);
    at(&url, "empty").refused(2, &["empty", "admin-token"]);
    at(&url, "absent").refused(2, &["absent"]);
    at("https://127.0.0.1:1", token).refused(2, &["tunnel"]);
    at("127.0.0.1:1", token).refused(2, &["http://HOST:PORT"]);
    at("http://127.0.0.1:1", token).refused(1, &["http://127.0.0.1:1", "cannot be reached"]);
    let data_plane = format!("http://{}", roadstead.data);
    at(&data_plane, token).refused(1, &["404", "admin_listen"]);
    scene.take_out(&["--admin", &url, "--token-file", token]);
    let secret = fs::read_to_string(token).unwrap();
    assert!(!roadstead.log_text().contains(secret.trim()), "the token is no text for a log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_ends_a_list_quietly() {
    let scene = Scene::new().await;
    let roadstead = scene.serve();
    roadstead.pulled(&scene.image).await;
    let mut ls = command(scene.home.path());
    let mut child = ls.arg("ls").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut ls = command(scene.home.path());
    let output = ls.arg("ls").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
}
