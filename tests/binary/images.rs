//! The commands about images as wholes, as a shell sees them: what they print, and how they exit.
//!
//! A command blocks the thread of its test, so the upstream has another one.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Roadstead, command, run};
use crate::support::content::Image;
use crate::support::fake::{Fake, Then, When};

const IMAGE: &str = "up.test/team/app:v1";

struct Scene {
    fake: Fake,
    image: Image,
    home: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let image = Image::index("images as wholes");
        fake.push("team/app", "v1", &image);
        let home = TempDir::new().unwrap();
        let config = format!("[upstream.\"up.test\"]\nurl = \"{}\"\n", fake.url());
        fs::write(home.path().join("roadstead.toml"), config).unwrap();
        Self { fake, image, home }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.home.path());
        command.args(arguments).args(["--config", "roadstead.toml"]);
        command
    }

    /// Exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let (status, out, err) = run(self.command(arguments));
        (status.code(), out, err)
    }

    #[track_caller]
    fn expect(&self, arguments: &[&str], code: i32, said: &[&str]) -> String {
        let (found, out, err) = self.run(arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {out}{err}");
        let all = format!("{out}{err}");
        for part in said {
            assert!(all.contains(part), "no {part:?} in {all}");
        }
        out
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_warmed_and_checked_from_a_shell() {
    let scene = Scene::new().await;
    let server = Roadstead::start(scene.home.path(), &["--config", "roadstead.toml"]);
    let amd64 = ["--platform", "linux/amd64"];
    let with = |arguments: &[&'static str]| [arguments, &amd64[..]].concat();
    scene.expect(&with(&["check-offline", IMAGE]), 1, &["incomplete", "nothing is known"]);

    let list = scene.home.path().join("images.txt");
    fs::write(&list, format!("# ours\n\n{IMAGE}  # the app\nup.test/team/app v9\n")).unwrap();
    let mark = scene.fake.mark();
    scene.expect(&["warm", "--file", "images.txt"], 2, &["images.txt: line 4: "]);
    fs::write(&list, format!("{IMAGE}\nnowhere.test/a/b:1\n")).unwrap();
    scene.expect(&["warm", "--file", "images.txt"], 2, &["line 2: ", "nowhere.test"]);
    assert_eq!(scene.fake.mark(), mark, "nothing was asked");

    fs::write(&list, format!("{IMAGE}\nup.test/team/app:v9\n")).unwrap();
    let out = scene.expect(
        &with(&["warm", "--file", "images.txt"]),
        1,
        &["2 images", "fetched   up.test/team/app:v1", "no tag v9", "1 not complete"],
    );
    assert!(!out.contains('\u{1b}'), "no bar where there is no terminal: {out:?}");
    let json = scene.expect(&with(&["prefetch", IMAGE, "--json"]), 0, &[]);
    let events: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "begun");
    let ended = events.last().unwrap();
    assert_eq!((&ended["event"], &ended["objects"]), (&"ended".into(), &0.into()));

    scene.expect(
        &with(&["check-offline", IMAGE]),
        0,
        &["complete", "linux/amd64", "1 image, 1 complete"],
    );
    scene.expect(
        &["check-offline", IMAGE, "--platform", "linux/arm64"],
        1,
        &["linux/arm64", "absent      manifest", &scene.image.children[1].digest],
    );
    scene.expect(&["check-offline", "Not/A/Name"], 2, &["Not/A/Name"]);
    scene.expect(&["check-offline", IMAGE, "--platform", "amd64"], 2, &["os/architecture"]);
    let json = scene.expect(&with(&["check-offline", IMAGE, "--json"]), 0, &[]);
    let checked: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&checked["image"], &checked["complete"]), (&IMAGE.into(), &true.into()));
    server.signal("TERM");
    assert!(server.wait().0.success());

    // On a stopped store what is here is found, and nothing is fetched.
    scene.expect(&with(&["check-offline", IMAGE]), 0, &["1 complete"]);
    scene.expect(&with(&["warm", IMAGE]), 0, &["directly: no server runs", "here      "]);
    scene.expect(&["warm", IMAGE, "--all-platforms"], 1, &["failed", "offline"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_comes_from_standard_input_and_an_interrupt_leaves_nothing() {
    let scene = Scene::new().await;
    let server = Roadstead::start(scene.home.path(), &["--config", "roadstead.toml"]);
    let mut command = scene.command(&["warm", "--file", "-", "--all-platforms"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(IMAGE.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && out.contains("fetched   up.test"), "{out}");

    let later = Image::single("interrupted");
    scene.fake.push("team/app", "v2", &later);
    let gate = crate::support::gate::Gate::new();
    scene.fake.rule(When::blob().get(), Then::hold(&gate));
    let mut command = scene.command(&["warm", "up.test/team/app:v2"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    gate.reached().await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().contains("interrupted"));
    gate.open();
    scene.expect(&["warm", "up.test/team/app:v2"], 0, &["1 image"]);
    server.signal("TERM");
    assert!(server.wait().0.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_offline_is_listed_fetched_and_forgotten() {
    let scene = Scene::new().await;
    let server = Roadstead::start(scene.home.path(), &["--config", "roadstead.toml"]);
    scene.expect(&["offline", "--show"], 0, &["all upstreams are asked"]);
    scene.expect(&["wanted"], 0, &["nothing was asked for in vain"]);
    scene.expect(&["offline", "up.test"], 0, &["not asked: up.test"]);
    scene.expect(&["offline"], 0, &["no upstream is asked: switched off"]);
    scene.expect(&["offline", "nowhere.test"], 1, &["nowhere.test"]);
    scene.expect(&["offline", "Not a registry"], 2, &["Not a registry"]);
    let client = crate::support::client::Client::new(server.data);
    let reply = client.manifest("up.test/team/app", "v1").expect(404).await;
    assert!(reply.text().contains("offline, not cached"), "{}", reply.text());

    let list = scene.expect(&["wanted"], 0, &[]);
    assert!(list.starts_with(&format!("{IMAGE} # asked for once, last ")), "{list}");
    fs::write(scene.home.path().join("images.txt"), &list).unwrap();
    let json = scene.expect(&["wanted", "--json"], 0, &[]);
    let item: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&item["image"], &item["times"]), (&IMAGE.into(), &1.into()));
    scene.expect(&["wanted", "--since", "2100-01-01"], 0, &["nothing was asked for in vain"]);
    scene.expect(&["wanted", "--since", "long ago"], 2, &["long ago"]);
    scene.expect(&["warm", "--file", "images.txt"], 1, &["offline"]);
    scene.expect(&["online"], 0, &["all upstreams are asked"]);
    scene.expect(&["warm", "--file", "images.txt"], 0, &["fetched   up.test/team/app:v1"]);
    scene.expect(&["wanted"], 0, &["nothing was asked for in vain"]);
    scene.expect(&["wanted", "--forget"], 0, &["forgotten"]);

    // A switch of a stopped store counts for the next start.
    server.signal("TERM");
    assert!(server.wait().0.success());
    scene.expect(&["offline", "up.test"], 0, &["not asked: up.test"]);
    let server = Roadstead::start(scene.home.path(), &["--config", "roadstead.toml"]);
    scene.expect(&["offline", "--show"], 0, &["not asked: up.test"]);
    scene.expect(&["online", "up.test"], 0, &["all upstreams are asked"]);

    scene.expect(&["set", "ls"], 0, &["there is no set"]);
    scene.expect(&["set", "show", "demo"], 1, &["demo", "set ls"]);
    scene.expect(&["record", "start", "demo"], 0, &[]);
    scene.expect(&["set", "ls"], 0, &["NAME", "demo", "recording"]);
    scene.expect(&["set", "pin", "demo"], 0, &["demo", "is kept"]);
    scene.expect(&["set", "unpin", "demo"], 0, &["no longer"]);
    scene.expect(&["set", "show", "demo"], 0, &["no image in the set"]);
    scene.expect(&["set", "rm", "demo"], 0, &["1 set forgotten"]);
    scene.expect(&["set", "rm", "../demo"], 2, &["../demo"]);
    server.signal("TERM");
    assert!(server.wait().0.success());
}
