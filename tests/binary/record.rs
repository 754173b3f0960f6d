//! `roadstead record` with the real binary: a set is recorded, closed over what nobody asked for, and replayed with the upstream gone.
//!
//! A command blocks the thread of its test, so the upstream has another one.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Roadstead, command, run};
use crate::support::client::Client;
use crate::support::content::Image;
use crate::support::fake::Fake;

const NAME: &str = "up.test/team/app";

/// Runs a command beside the server: its exit code, and what it said on both outputs.
fn roadstead(home: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = command(home);
    command.args(arguments).args(["--config", "roadstead.toml"]);
    let (status, out, err) = run(command);
    (status.code(), format!("{out}{err}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_is_replayed_with_the_upstream_gone() {
    let fake = Fake::start().await;
    let image = Image::build("recorded").layers(2).finish();
    fake.push("team/app", "v1", &image);
    let home = TempDir::new().unwrap();
    let config = format!("[upstream.\"up.test\"]\nurl = \"{}\"\n", fake.url());
    fs::write(home.path().join("roadstead.toml"), config).unwrap();
    let ask = |arguments: &[&str]| roadstead(home.path(), arguments);
    let said = |arguments: &[&str], code: i32, parts: &[&str]| {
        let (exit, text) = ask(arguments);
        assert_eq!(exit, Some(code), "{arguments:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: no {part:?} in {text}");
        }
        text
    };

    let server = Roadstead::start(home.path(), &["--config", "roadstead.toml"]);
    let begin = ["record", "start", "roll-out", "--client", "127.0.0.0/8", "--upstream", "up.test"];
    said(&begin, 0, &["client=127.0.0.0/8 upstream=up.test", "roadstead record stop roll-out"]);
    said(&["record", "start", "roll-out"], 1, &["roll-out is being recorded already"]);
    said(&["record", "start", "more", "--client", "10.0.0.0/33"], 2, &["10.0.0.0/33"]);
    said(&["record", "start", "more", "--upstream", "nowhere.test"], 1, &["nowhere.test"]);
    said(&["record", "start", "no/name"], 2, &["no/name"]);

    // A node that holds the layers asks what the tag is, and nothing more. The recording outlives a kill.
    Client::new(server.data).manifest_head(NAME, "v1").expect(200).await;
    said(&["record", "stop", "roll-out", "--no-fetch"], 1, &["failed", "not here", "looking for"]);
    said(&["record", "start", "again"], 0, &["what all clients pull as again"]);
    let (status, _) = {
        server.signal("TERM");
        server.wait()
    };
    assert!(status.success());
    let server = Roadstead::start(home.path(), &["--config", "roadstead.toml"]);
    server.pulled(&image).await;
    fs::remove_file(blob_file(home.path(), &image.blobs[1].digest)).unwrap();
    said(&["record", "stop", "again"], 0, &["fetched   up.test/team/app:v1", "1 image"]);
    let story = said(&["record", "stop", "again", "--json"], 0, &["\"here\""]);
    let last: Value = serde_json::from_str(story.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["failed"]), (&"ended".into(), &0.into()));
    said(&["record", "stop", "never"], 1, &["no set \"never\""]);
    server.signal("TERM");
    server.wait();
    // Nobody asks an upstream through a store that rests, and nothing has to be asked.
    said(&["record", "stop", "roll-out"], 0, &["here      up.test/team/app:v1"]);

    fake.stop().await;
    let server = Roadstead::start(home.path(), &["--config", "roadstead.toml", "--offline"]);
    server.pulled(&image).await;
    server.signal("TERM");
    server.wait();
}

fn blob_file(home: &Path, digest: &str) -> std::path::PathBuf {
    home.join("roadstead-data/blobs").join(digest.replace(':', "/"))
}
