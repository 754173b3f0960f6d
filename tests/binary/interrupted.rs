//! Ctrl-C and SIGTERM during the long commands, and what becomes of them when the server goes: the exit code, the words, and that the
//! next one goes on and nothing is left over.
//!
//! A command blocks the thread of its test, so the upstream has another one.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Roadstead, binary, command, run};
use crate::support::client::Client;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Then, When};
use crate::support::gate::Gate;
use crate::takeover;

const NAME: &str = "up.test/team/app";
/// As shells tell it, whichever of the two signals it was.
const INTERRUPTED: Option<i32> = Some(130);
/// Longest wait for a file or an exit; a slow machine needs a second, a hang needs an end.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Who works on the store while a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Served,
    Stopped,
}

/// A home with a store in it that has been served once.
struct Scene {
    fake: Fake,
    home: TempDir,
    /// Upstream is not asked, so that whatever is served is here.
    offline: bool,
}

impl Scene {
    async fn new() -> Self {
        Self::with(false).await
    }

    async fn offline() -> Self {
        Self::with(true).await
    }

    async fn with(offline: bool) -> Self {
        let fake = Fake::start().await;
        let home = TempDir::new().unwrap();
        let config = format!("[upstream.\"up.test\"]\nurl = \"{}\"\n", fake.url());
        fs::write(home.path().join("roadstead.toml"), config).unwrap();
        let scene = Self { fake, home, offline };
        ended(scene.serve());
        scene
    }

    fn serve(&self) -> Roadstead {
        let arguments = ["--config", "roadstead.toml", "--offline"];
        Roadstead::start(self.home.path(), &arguments[..if self.offline { 3 } else { 2 }])
    }

    fn served(&self, store: Store) -> Option<Roadstead> {
        (store == Store::Served).then(|| self.serve())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.home.path());
        command.args(arguments).args(["--config", "roadstead.toml"]);
        command
    }

    fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// To the end: exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let (status, out, err) = run(self.command(arguments));
        (status.code(), out, err)
    }

    /// To a good end, of which the last event is told.
    #[track_caller]
    fn done(&self, arguments: &[&str]) -> Value {
        let (code, out, err) = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {out}{err}");
        let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(last["event"], "ended", "{arguments:?}: {out}");
        last
    }

    /// To a good end, also if whoever was before needs a moment to go.
    #[track_caller]
    fn patiently(&self, arguments: &[&str], busy: &str) -> Value {
        let begun = Instant::now();
        loop {
            let (code, out, err) = self.run(&[arguments, &["--json"]].concat());
            if code == Some(0) {
                return serde_json::from_str(out.lines().last().unwrap()).unwrap();
            }
            assert!(err.contains(busy), "{arguments:?}: {out}{err}");
            assert!(begun.elapsed() < PATIENCE, "what was before never ends");
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn has_stored(&self, digest: &str) -> bool {
        self.at("roadstead-data/blobs").join(digest.replace(':', "/")).exists()
    }

    /// Nothing of what was cut short is in the store; a server that runs may need a moment for that.
    fn has_no_litter(&self) {
        let partial = self.at("roadstead-data/partial");
        until("what was begun to be removed", || fs::read_dir(&partial).unwrap().next().is_none());
    }

    /// Names in the home that are hidden, as what is being written is.
    fn hidden(&self) -> Vec<String> {
        let names = fs::read_dir(self.home.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }
}

#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(PAUSE);
    }
}

fn ended(server: Roadstead) {
    server.signal("TERM");
    assert!(server.wait().0.success());
}

fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits for the end of a command: exit code, and what it said on both outputs.
#[track_caller]
fn end(mut child: Child) -> (Option<i32>, String) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the command does not end");
        }
        std::thread::sleep(PAUSE);
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// A signal ends a command at once, and it says so.
#[track_caller]
fn interrupt(child: Child, signal: Signal) {
    send(&child, signal);
    let (code, said) = end(child);
    assert_eq!(code, INTERRUPTED, "{signal:?}: {said}");
    assert!(said.contains("interrupted"), "{signal:?}: {said}");
}

fn bundle(image: &Image) -> Vec<u8> {
    let mut entry = image.descriptor();
    entry["annotations"] = json!({"io.containerd.image.name": format!("{NAME}:1")});
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let text = |value: Value| value.to_string().into_bytes();
    let mut members = vec![
        ("oci-layout".to_owned(), text(json!({"imageLayoutVersion": "1.0.0"}))),
        ("index.json".to_owned(), text(json!({"schemaVersion": 2, "manifests": [entry]}))),
        (path(&image.digest), image.bytes.to_vec()),
    ];
    let blobs = image.all_blobs().into_iter();
    members.extend(blobs.map(|blob| (path(&blob.digest), blob.bytes().to_vec())));
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, &name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Begins an import and feeds it into its last layer; what is before that is stored.
fn begin_import(scene: &Scene, image: &Image, bundle: &[u8]) -> (Child, ChildStdin) {
    let mut child = scene.begin(&["import", "-", "--set", "s"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(&bundle[..bundle.len() - 2500]).unwrap();
    input.flush().unwrap();
    let (_last, before) = image.blobs.split_last().unwrap();
    until("the first layers", || before.iter().all(|blob| scene.has_stored(&blob.digest)));
    (child, input)
}

/// Nobody is served anything of the image, and there is no set of it.
async fn is_not_in(scene: &Scene, server: &Roadstead, image: &Image) {
    let client = Client::new(server.data);
    for reference in ["1", &image.digest] {
        assert_eq!(client.manifest(NAME, reference).send().await.status, 404, "{reference}");
    }
    for blob in image.all_blobs() {
        assert_eq!(client.blob(NAME, &blob.digest).send().await.status, 404);
    }
    let (code, out, err) = scene.run(&["set", "ls"]);
    assert!(code == Some(0) && err.contains("there is no set"), "{out}{err}");
}

async fn is_in(server: &Roadstead, image: &Image) {
    let client = Client::new(server.data);
    let manifest = client.manifest(NAME, "1").expect(200).await;
    assert_eq!(manifest.body, image.bytes);
    for blob in image.all_blobs() {
        assert_eq!(client.blob(NAME, &blob.digest).expect(200).await.digest(), blob.digest);
    }
}

/// Takes the bundle in; so many objects of it are here.
fn import_again(scene: &Scene, bundle: &[u8], here: usize) {
    fs::write(scene.at("bundle.tar"), bundle).unwrap();
    let ended = scene.patiently(&["import", "bundle.tar", "--set", "s"], "being taken in just now");
    assert!(ended["here"].as_u64().unwrap() >= here as u64, "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_import_is_not_in_and_the_next_one_goes_on() {
    for (store, signal) in [(Store::Served, Signal::INT), (Store::Stopped, Signal::TERM)] {
        let scene = Scene::offline().await;
        let image = Image::build("interrupted import").layers(3).finish();
        let bundle = bundle(&image);
        let server = scene.served(store);
        let (child, input) = begin_import(&scene, &image, &bundle);
        interrupt(child, signal);
        drop(input);
        scene.has_no_litter();
        let server = server.unwrap_or_else(|| scene.serve());
        is_not_in(&scene, &server, &image).await;
        // The manifest, the configuration and all layers but the last.
        import_again(&scene, &bundle, image.blobs.len());
        is_in(&server, &image).await;
        scene.has_no_litter();
        ended(server);
    }
}

/// Who begins a command with nohup(1) wants it to outlive his terminal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_to_survive_its_terminal_does() {
    let scene = Scene::offline().await;
    let image = Image::build("survives").layers(3).finish();
    let bundle = bundle(&image);
    let server = scene.serve();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", binary()]);
    shell.args(["import", "-", "--set", "s", "--config", "roadstead.toml"]);
    shell.current_dir(scene.home.path()).env_clear();
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let (first, rest) = bundle.split_at(bundle.len() - 2500);
    input.write_all(first).unwrap();
    until("the first layers", || scene.has_stored(&image.blobs[1].digest));
    send(&child, Signal::HUP);
    input.write_all(rest).unwrap();
    drop(input);
    let (code, said) = end(child);
    assert_eq!(code, Some(0), "{said}");
    is_in(&server, &image).await;
    ended(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_whose_server_is_killed_goes_on_with_the_next_one() {
    for kill in [true, false] {
        let scene = Scene::offline().await;
        let image = Image::build("killed import").layers(3).finish();
        let bundle = bundle(&image);
        let server = scene.serve();
        let (child, input) = begin_import(&scene, &image, &bundle);
        if kill {
            server.kill();
        } else {
            ended(server);
        }
        let (code, said) = end(child);
        assert_eq!(code, Some(1), "{said}");
        let why = if kill { "the connection to the store broke" } else { "the program stops" };
        assert!(said.contains(why), "{said}");
        drop(input);
        let server = scene.serve();
        scene.has_no_litter();
        is_not_in(&scene, &server, &image).await;
        // Of what got its name last, the row may be missing.
        import_again(&scene, &bundle, image.blobs.len() - 1);
        is_in(&server, &image).await;
        scene.has_no_litter();
        ended(server);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_export_leaves_no_file() {
    /// A bundle may be out before the signal comes.
    const TRIES: usize = 20;
    let scene = Scene::new().await;
    let image = Image::build("interrupted export").layer(Blob::synthetic(71, 64 * MIB)).finish();
    scene.fake.push("team/app", "1", &image);
    let server = scene.serve();
    scene.done(&["warm", &format!("{NAME}:1")]);
    let mut server = Some(server);
    for store in [Store::Served, Store::Stopped] {
        if let Some(server) = server.take_if(|_server| store == Store::Stopped) {
            ended(server);
        }
        // The last is what comes of a line that is cut.
        for (target, more, signal) in [
            ("a.tar", &[][..], Signal::INT),
            ("b.tar", &["--split", "1MiB"], Signal::TERM),
            ("layout", &[], Signal::HUP),
        ] {
            let image = format!("{NAME}:1");
            let arguments = [&["export", &image, "-o", target, "--force"], more].concat();
            let interrupted = (0..TRIES).any(|_try| {
                let child = scene.begin(&arguments);
                until("something to be written", || !scene.hidden().is_empty());
                send(&child, signal);
                let (code, said) = end(child);
                assert!(code == INTERRUPTED || code == Some(0), "{target}: {said}");
                assert_eq!(scene.hidden(), [""; 0], "{store:?} {target}: {said}");
                code == INTERRUPTED && said.contains("interrupted")
            });
            assert!(interrupted, "{store:?} {target}: it is always too late");
        }
    }
    // The store is as it was.
    let server = scene.serve();
    let (code, out, err) = scene.run(&["check-offline", &format!("{NAME}:1")]);
    assert_eq!(code, Some(0), "{out}{err}");
    ended(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_or_the_end_of_a_recording_that_is_interrupted_goes_on_with_the_next_one() {
    let scene = Scene::new().await;
    let server = scene.serve();
    let names = ["one", "two", "three", "four"];
    for (number, name) in names.into_iter().enumerate() {
        let (signal, by_record) = ([Signal::INT, Signal::TERM][number % 2], number >= 2);
        let image = Image::build(&format!("interrupted {name}")).layers(3).finish();
        scene.fake.push("team/app", name, &image);
        let whole = format!("{NAME}:{name}");
        if by_record {
            let (code, ..) = scene.run(&["record", "start", name]);
            assert_eq!(code, Some(0));
            Client::new(server.data).manifest_head(NAME, name).expect(200).await;
        }
        let record = ["record", "stop", name];
        let arguments = if by_record { &record[..] } else { &["warm", &whole] };
        let gate = Gate::new();
        let rule = scene.fake.rule(When::blob().get(), Then::hold(&gate));
        let child = scene.begin(arguments);
        gate.reached().await;
        interrupt(child, signal);
        scene.fake.remove(&rule);
        gate.open();
        let ended = scene.done(arguments);
        assert_eq!((&ended["images"], &ended["failed"]), (&1.into(), &0.into()), "{ended}");
        let here = scene.done(&["warm", &whole]);
        assert_eq!(here["objects"], 0, "{here}");
    }
    ended(server);
    scene.has_no_litter();
}

/// What is read of it takes a while, and nothing of the disk.
const LONG_BYTES: u64 = 4 * 1024 * MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_that_is_cut_short_keeps_what_it_has_and_the_next_one_goes_on() {
    let images = ["first", "long", "last"].map(Image::single);
    for (store, signal) in [
        (Store::Served, Some(Signal::INT)),
        (Store::Stopped, Some(Signal::TERM)),
        (Store::Served, None),
    ] {
        let scene = Scene::offline().await;
        let old = scene.at("old");
        takeover::write_folder(&old, &images);
        let long = takeover::data(&old, &images[1].blobs[1].digest);
        File::options().write(true).open(&long).unwrap().set_len(LONG_BYTES).unwrap();
        let mut server = scene.served(store);
        let order = ["import", "registry:old", "--upstream", "up.test", "--set", "s"];
        let child = scene.begin(&order);
        // The first image is in, and the long layer of the second one is being read.
        until("the second image", || scene.has_stored(&images[1].blobs[0].digest));
        match signal {
            Some(signal) => interrupt(child, signal),
            None => {
                server.take().unwrap().kill();
                let (code, said) = end(child);
                assert_eq!(code, Some(1), "{said}");
                assert!(said.contains("the connection to the store broke"), "{said}");
                server = Some(scene.serve());
            }
        }
        scene.has_no_litter();
        fs::write(&long, images[1].blobs[1].bytes()).unwrap();
        let ended = scene.patiently(&order, "being taken in already");
        assert_eq!((&ended["images"], &ended["failed"]), (&3.into(), &0.into()), "{ended}");
        let first = 1 + images[0].blobs.len() as u64;
        // Of what got its name last, a kill may leave no row.
        let of_second = u64::from(signal.is_some());
        assert!(ended["here"].as_u64().unwrap() >= first + of_second, "{ended}");
        assert!(ended["objects"].as_u64().unwrap() >= first, "it was too late: {ended}");
        scene.has_no_litter();
        let server = server.unwrap_or_else(|| scene.serve());
        takeover::is_served(server.data, &images).await;
        self::ended(server);
    }
}

/// Whoever reads standard output may stand still for ever; a second Ctrl-C does not wait for him, and nothing does after a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_output_nobody_takes_can_be_ended() {
    /// Lines that are more than a pipe holds, 64 KiB (pipe(7)), each longer than this.
    const LINES: usize = 600;
    const LENGTH: usize = 200;
    const FULL: u64 = 60 * 1024;
    for store in [Store::Served, Store::Stopped] {
        let scene = Scene::offline().await;
        takeover::write_folder(&scene.at("old"), &[Image::single("odd")]);
        for number in 0..LINES {
            let name = format!("old/docker/registry/v2/repositories/ODD-{number:0LENGTH$}");
            fs::create_dir(scene.at(&name)).unwrap();
        }
        let server = scene.served(store);
        let mut child = scene.begin(&["import", "registry:old", "--upstream", "up.test"]);
        let output = child.stdout.take().unwrap();
        until("the pipe to be full", || rustix::io::ioctl_fionread(&output).unwrap() >= FULL);
        let begun = Instant::now();
        let status = loop {
            send(&child, Signal::INT);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the command does not end");
            }
            std::thread::sleep(PAUSE);
        };
        assert_eq!(status.code(), INTERRUPTED, "{store:?}");
        drop(output);
        let server = server.unwrap_or_else(|| scene.serve());
        scene.has_no_litter();
        ended(server);
    }
}
