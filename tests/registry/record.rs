//! Recording: everything that clients pull between a start and a stop becomes a set, closed over references, that can be replayed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::client::{Client, End, Response};
use crate::support::content::{Blob, Image, MIB, sha256};
use crate::support::fake::{Fake, Then, When};
use crate::support::gate::{Gate, within};
use crate::support::product::{RowFault, RowPlan};
use crate::support::pull::{pull, pull_by_head};
use crate::support::world::{World, WorldBuilder};

const APP: &str = "team/app";
const DB: &str = "library/db";

fn builder(fake: &Fake) -> WorldBuilder {
    World::builder().upstream("docker.io", fake).set("admin_listen", "\"127.0.0.1:0\"")
}

async fn world_of(images: &[(&str, &str, &Image)]) -> (Fake, World) {
    let fake = Fake::start().await;
    for (name, tag, image) in images {
        fake.push(name, tag, image);
    }
    let world = builder(&fake).fresh_for("60s").start().await;
    (fake, world)
}

async fn post(world: &World, path: &str, status: u16) -> Value {
    let reply = world.admin().request("POST", &format!("/api/v1{path}")).send().await;
    reply.expect(path, status).json()
}

async fn start(world: &World, query: &str) -> Value {
    post(world, &format!("/records?{query}"), 200).await
}

/// The story of an end.
struct Ended(Vec<Value>);

async fn stop(world: &World, query: &str) -> Ended {
    let path = format!("/api/v1/records/stop?{query}");
    let reply = world.admin().request("POST", &path).send().await.expect("stop", 200);
    let lines = reply.text();
    let events = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    Ended(events)
}

impl Ended {
    fn last(&self) -> &Value {
        self.0.last().expect("a story")
    }

    fn of(&self, event: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |one| one["event"] == event)
    }

    #[track_caller]
    fn fate(&self, image: &str) -> &str {
        let found = self.of("image").find(|one| one["image"] == image);
        found.unwrap_or_else(|| panic!("{image} is not in {:?}", self.0))["fate"]
            .as_str()
            .expect("a fate")
    }

    #[track_caller]
    fn is_whole(&self, images: u64) {
        let last = self.last();
        assert_eq!(last["event"], "ended", "{:?}", self.0);
        assert_eq!((&last["failed"], &last["left_out"]), (&json!(0), &json!(0)), "{:?}", self.0);
        assert_eq!(last["images"], images, "{:?}", self.0);
    }
}

/// The images of a set as its rows have them.
async fn members(world: &World, set: &str) -> BTreeSet<String> {
    let rows = world.metadata();
    let sets = rows.sets().await.expect("the rows can be read");
    let set = sets.into_iter().find(|one| one.name.as_str() == set).expect("there is the set");
    let members = rows.set_members(set.id, None, 1000).await.expect("the rows can be read");
    assert_eq!(set.members, members.len() as u64, "they are counted");
    let name = |tag: Option<String>, digest: String| tag.unwrap_or(digest);
    members
        .into_iter()
        .map(|one| {
            let what = name(one.tag.map(|tag| format!(":{tag}")), format!("@{}", one.digest));
            format!("{}{what}", one.repository)
        })
        .collect()
}

/// Waits until so many images have rows. The set's own count is what is asked: it is written with the rows
/// in one transaction, and one read of it cannot fall between two writes.
async fn noted(world: &World, set: &str, count: u64) {
    let counted = async || {
        let sets = world.metadata().sets().await.expect("the rows can be read");
        sets.into_iter().find(|one| one.name.as_str() == set).expect("there is the set").members
    };
    within("the images to be noted", async {
        while counted().await < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn detail(world: &World, set: &str) -> String {
    let sets = world.metadata().sets().await.expect("the rows can be read");
    sets.into_iter().find(|one| one.name.as_str() == set).expect("there is the set").detail
}

fn names<'a>(list: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    list.into_iter().map(ToOwned::to_owned).collect()
}

/// What containerd asks of an index: HEAD of the tag, the index by its digest, one child; and its blobs.
async fn pull_platform(client: &Client, name: &str, index: &Image, child: &Image) {
    client.manifest_head(name, "latest").expect(200).await;
    client.manifest(name, &index.digest).expect(200).await;
    pull(client, name, &child.digest, child).await;
}

#[tokio::test]
async fn a_roll_out_becomes_a_set_that_can_be_replayed() {
    let (app, db) = (Image::index("rolled out"), Image::single("held by the node"));
    let before = Image::single("pulled before");
    let (fake, mut world) =
        world_of(&[(APP, "latest", &app), (DB, "16", &db), ("team/before", "1", &before)]).await;
    pull(&world.client(), "team/before", "1", &before).await;
    let begun = start(&world, "name=roll-out").await;
    assert_eq!((&begun["name"], &begun["kind"]), (&json!("roll-out"), &json!("record")));
    assert_eq!((&begun["until"], &begun["images"]), (&Value::Null, &json!(0)));

    // One node has nothing, the other holds all layers of the database and asks what its tag is.
    let (first, second) = (world.client().at_loopback(11), world.client().at_loopback(12));
    pull_platform(&first, APP, &app, &app.children[0]).await;
    pull_platform(&first, APP, &app, &app.children[0]).await;
    second.manifest_head("db", "16").expect(200).await;
    second.manifest("db", "16").expect(200).await;
    world.downloads_over().await;

    let mark = fake.mark();
    let ended = stop(&world, "name=roll-out&fetch=true").await;
    ended.is_whole(2);
    assert_eq!(ended.fate("docker.io/library/db:16"), "fetched");
    // The attestation of what was pulled goes with it.
    assert_eq!(ended.fate("docker.io/team/app:latest"), "fetched");
    let asked: BTreeSet<String> =
        fake.since(mark).content().0.iter().map(|entry| entry.reference.clone()).collect();
    let attestation = &app.children[2];
    let mut missing: BTreeSet<String> =
        db.blobs.iter().chain(&attestation.blobs).map(|blob| blob.digest.clone()).collect();
    missing.insert(attestation.digest.clone());
    assert_eq!(asked, missing, "exactly what is missing is fetched");
    let want = names(["docker.io/library/db:16", "docker.io/team/app:latest"]);
    assert_eq!(members(&world, "roll-out").await, want);
    assert_eq!(detail(&world, "roll-out").await, "platform=linux/amd64");

    // What comes later is none of it, and the upstream is needed no more.
    pull(&world.client(), "team/before", "1", &before).await;
    fake.stop().await;
    world.restart_with(|builder| builder.set("offline", "true")).await;
    pull(&world.client().at_loopback(13), "db", "16", &db).await;
    pull_platform(&world.client().at_loopback(13), APP, &app, &app.children[0]).await;
    assert_eq!(members(&world, "roll-out").await, want);
    world.finish().await;
}

#[tokio::test]
async fn the_children_that_clients_ask_for_decide_the_platforms() {
    let (app, held) = (Image::index("asked for"), Image::index("held"));
    let (fake, world) = world_of(&[(APP, "latest", &app), ("team/held", "latest", &held)]).await;
    start(&world, "name=arm").await;
    // The nodes are arm64, whatever this machine is; of the second image they have everything.
    pull_platform(&world.client(), APP, &app, &app.children[1]).await;
    world.client().manifest_head("team/held", "latest").expect(200).await;
    world.downloads_over().await;
    let mark = fake.mark();
    let ended = stop(&world, "name=arm&fetch=true").await;
    ended.is_whole(2);
    assert_eq!(ended.fate("docker.io/team/app:latest"), "here");
    assert_eq!(ended.fate("docker.io/team/held:latest"), "fetched");
    let asked = fake.since(mark);
    for blob in &held.children[1].blobs {
        assert_eq!(asked.about(&blob.digest).len(), 1);
    }
    for other in [&app.children[0], &held.children[0]] {
        assert!(asked.about(&other.digest).is_empty(), "nobody wants that platform");
    }
    assert_eq!(detail(&world, "arm").await, "platform=linux/arm64");

    // Nobody asks for a child: this machine's platform is meant. Or those that are named.
    let machine = match std::env::consts::ARCH {
        "aarch64" => 1,
        _ => 0,
    };
    let fresh = Image::index("only looked at");
    fake.push("team/fresh", "latest", &fresh);
    start(&world, "name=machine").await;
    world.client().manifest("team/fresh", "latest").expect(200).await;
    stop(&world, "name=machine&fetch=true").await.is_whole(1);
    for (at, child) in fresh.children[..2].iter().enumerate() {
        assert_eq!(world.has_stored(&child.digest), at == machine);
    }
    let both = "name=machine&fetch=true&platform=linux/amd64&platform=linux/arm64";
    stop(&world, both).await.is_whole(1);
    assert!(fresh.children[..2].iter().all(|child| world.has_stored(&child.digest)));
    let none = stop(&world, "name=machine&fetch=true&platform=linux/riscv64").await;
    assert_eq!(none.fate("docker.io/team/fresh:latest"), "failed");
    assert_eq!(none.last()["failed"], 1);
    world.finish().await;
}

#[tokio::test]
async fn two_recordings_at_once_note_what_each_is_of() {
    let (app, other) = (Image::single("everybody's"), Image::single("of the other registry"));
    let (fake, second) = (Fake::start().await, Fake::start().await);
    fake.push(APP, "latest", &app);
    second.push("org/tool", "1", &other);
    let world = builder(&fake).upstream("ghcr.io", &second).fresh_for("60s").start().await;
    let net = start(&world, "name=net&client=127.0.0.16/28&client=10.0.0.7").await;
    assert_eq!(net["detail"], "client=127.0.0.16/28 client=10.0.0.7/32");
    start(&world, "name=ghcr&upstream=ghcr.io").await;
    start(&world, "name=hub&upstream=index.docker.io&client=127.0.0.1").await;
    start(&world, "name=nobody&client=10.0.0.0/8").await;
    let (inside, outside) = (world.client().at_loopback(17), world.client().at_loopback(32));
    pull(&inside, APP, "latest", &app).await;
    pull(&outside, "ghcr.io/org/tool", "1", &other).await;
    let (app_name, tool) = ("docker.io/team/app:latest", "ghcr.io/org/tool:1");
    for (set, want) in [
        ("net", names([app_name])),
        ("ghcr", names([tool])),
        ("hub", names([])),
        ("nobody", names([])),
    ] {
        let ended = stop(&world, &format!("name={set}&fetch=true")).await;
        ended.is_whole(want.len() as u64);
        assert_eq!(members(&world, set).await, want, "{set}");
    }
    assert_eq!(detail(&world, "hub").await, "client=127.0.0.1/32 upstream=docker.io");
    world.finish().await;
}

#[tokio::test]
async fn answers_of_every_kind_are_noted() {
    let image = Image::single("of every kind");
    let tags = ["get", "head", "same", "twice"];
    let (_fake, world) = world_of(&tags.map(|tag| (APP, tag, &image))).await;
    let client = world.client();
    // All of them are ready in memory before anything is recorded.
    for tag in tags {
        for _round in 0..3 {
            client.manifest(APP, tag).expect(200).await;
        }
    }
    world.downloads_over().await;
    start(&world, "name=hot").await;
    let quoted = format!("\"{}\"", image.digest);
    client.manifest(APP, "get").expect(200).await;
    client.manifest_head(APP, "head").expect(200).await;
    client.manifest(APP, "same").header("If-None-Match", &quoted).expect(304).await;
    for _round in 0..3 {
        client.manifest(APP, "twice").expect(200).await;
        client.manifest_head(APP, "twice").expect(200).await;
    }
    // By the long way too, and what is refused is not noted.
    client.get(&format!("/v2/{APP}/manifests/get/{}", image.digest)).expect(200).await;
    client.manifest(APP, "absent").expect(404).await;
    client.manifest(APP, &sha256(b"absent")).expect(404).await;
    client.blob(APP, &image.blobs[0].digest).expect(200).await;
    world.admin().get("/api/v1/inspect?image=team/app:get").expect(200).await;
    let ended = stop(&world, "name=hot").await;
    let want = tags.map(|tag| format!("docker.io/team/app:{tag}"));
    assert_eq!(members(&world, "hot").await, want.into_iter().collect());
    assert_eq!(ended.last()["images"], 1, "they are one image under four tags");
    world.finish().await;
}

#[tokio::test]
async fn own_traffic_is_not_recorded_and_the_past_is_by_its_revision() {
    let (old, new, warmed) = (Image::single("then"), Image::single("now"), Image::single("warmed"));
    let fake = Fake::start().await;
    fake.push(APP, "latest", &old);
    fake.push(DB, "1", &warmed);
    let world = builder(&fake).fresh_for("5s").start().await;
    pull(&world.client(), APP, "latest", &old).await;
    let then = world.moment_ago(std::time::Duration::ZERO).to_string();
    let then = then.replace(['-', ':'], "").to_lowercase();
    let then = format!("{}z", then.split(['.', 'z']).next().expect("a moment"));
    world.advance(std::time::Duration::from_secs(3600));
    fake.push(APP, "latest", &new);
    pull(&world.client(), APP, "latest", &new).await;
    world.downloads_over().await;
    start(&world, "name=past").await;
    let warm = world.admin().request("POST", "/api/v1/warm").body("db:1\n").send().await;
    assert!(warm.expect("warm", 200).text().contains("\"fetched\""));
    post(&world, "/refresh?image=team/app", 200).await;
    pull(&world.client(), &format!("asof-{then}/{APP}"), "latest", &old).await;
    stop(&world, "name=past&fetch=true").await.is_whole(1);
    let want = format!("docker.io/team/app@{}", old.digest);
    assert_eq!(members(&world, "past").await, names([&*want]));
    world.finish().await;
}

#[tokio::test]
async fn a_restart_in_the_middle_loses_nothing() {
    let (first, second) = (Image::single("before it"), Image::index("after it"));
    let (fake, mut world) =
        world_of(&[(APP, "1", &first), (APP, "2", &first), (DB, "latest", &second)]).await;
    start(&world, "name=ci&upstream=docker.io").await;
    pull(&world.client(), APP, "1", &first).await;
    world.restart().await;
    pull(&world.client(), APP, "2", &first).await;
    pull_platform(&world.client(), DB, &second, &second.children[1]).await;
    world.restart().await;
    world.downloads_over().await;
    let mark = fake.mark();
    stop(&world, "name=ci&fetch=true").await.is_whole(2);
    fake.since(mark).content().expect_none("all of it is here");
    let want = ["docker.io/team/app:1", "docker.io/team/app:2", "docker.io/library/db:latest"];
    assert_eq!(members(&world, "ci").await, names(want));
    world.restart().await;
    pull(&world.client(), APP, "1", &first).await;
    fake.push(APP, "3", &second);
    world.client().manifest(APP, "3").expect(200).await;
    assert_eq!(members(&world, "ci").await, names(want), "it has ended");
    world.finish().await;
}

#[tokio::test]
async fn without_fetching_it_tells_what_is_missing_and_another_end_fetches_it() {
    let image = Image::index("looked at");
    let (fake, world) = world_of(&[(APP, "latest", &image)]).await;
    start(&world, "name=looked").await;
    world.client().manifest(APP, "latest").expect(200).await;
    world.client().manifest(APP, &image.children[1].digest).expect(200).await;
    let mark = fake.mark();
    let ended = stop(&world, "name=looked").await;
    assert_eq!(ended.fate("docker.io/team/app:latest"), "failed");
    assert_eq!((&ended.last()["failed"], &ended.last()["images"]), (&json!(1), &json!(1)));
    let reason = ended.of("image").next().expect("an image")["reason"].to_string();
    assert!(reason.contains("3 of its objects"), "{reason}");
    fake.since(mark).expect_none("nothing was to be fetched");
    // What was asked for then decides the platform still.
    let ended = stop(&world, "name=looked&fetch=true").await;
    ended.is_whole(1);
    assert!(!world.has_stored(&image.children[0].digest));
    assert!(image.children[1].blobs.iter().all(|blob| world.has_stored(&blob.digest)));
    // A second time there is nothing to do, and a blob that went meanwhile is fetched again.
    let mark = fake.mark();
    assert_eq!(
        stop(&world, "name=looked&fetch=true").await.fate("docker.io/team/app:latest"),
        "here"
    );
    fake.since(mark).expect_none("it is here");
    world.finish().await;
}

#[tokio::test]
async fn rows_that_fail_fail_no_pull_and_are_written_later() {
    let (known, fresh) = (Image::single("known"), Image::single("fresh"));
    let (fake, world) = world_of(&[(APP, "latest", &known), (DB, "1", &fresh)]).await;
    pull(&world.client(), APP, "latest", &known).await;
    world.downloads_over().await;
    start(&world, "name=failing").await;
    world.fail_rows(Some(RowPlan { at: 1, lasting: true, fault: RowFault::Full }));
    pull(&world.client(), APP, "latest", &known).await;
    pull(&world.client(), "db", "1", &fresh).await;
    within("a row to fail", async {
        while world.failed_rows() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It cannot end either, and goes on.
    let refused = post(&world, "/records/stop?name=failing&fetch=true", 500).await;
    assert_eq!(refused["error"]["reason"], "store");
    world.fail_rows(None);
    let ended = stop(&world, "name=failing&fetch=true").await;
    ended.is_whole(2);
    assert_eq!(ended.fate("docker.io/library/db:1"), "fetched");
    let want = ["docker.io/team/app:latest", "docker.io/library/db:1"];
    assert_eq!(members(&world, "failing").await, names(want));
    fake.stop().await;
    pull(&world.client(), "db", "1", &fresh).await;
    world.finish().await;
}

#[tokio::test]
async fn a_full_disk_fails_no_pull_and_the_story_says_what_is_not_in_the_set() {
    let image = Image::single("no room");
    let fake = Fake::start().await;
    fake.push(APP, "latest", &image);
    let mut world = builder(&fake).set("min_free", "\"1000TiB\"").start().await;
    start(&world, "name=full").await;
    pull(&world.client(), APP, "latest", &image).await;
    let ended = stop(&world, "name=full&fetch=true").await;
    assert_eq!(ended.fate("docker.io/team/app:latest"), "failed");
    assert_eq!((&ended.last()["failed"], &ended.last()["left_out"]), (&json!(1), &json!(1)));
    let left = ended.of("left_out").next().expect("something is left out");
    assert_eq!(left["what"], format!("docker.io/team/app:latest@{}", image.digest));
    assert!(members(&world, "full").await.is_empty());
    // With room again it is noted as it is pulled.
    world.restart_with(|builder| builder.set("min_free", "\"1MiB\"")).await;
    start(&world, "name=room").await;
    pull_by_head(&world.client(), APP, "latest", &image).await;
    noted(&world, "room", 1).await;
    stop(&world, "name=room&fetch=true").await.is_whole(1);
    world.finish().await;
}

#[tokio::test]
async fn what_is_in_no_row_is_not_forgotten_when_nobody_waits_for_the_end() {
    let image = Image::single("no room, no patience");
    let fake = Fake::start().await;
    fake.push(APP, "latest", &image);
    let world = builder(&fake).set("min_free", "\"1000TiB\"").start().await;
    start(&world, "name=full").await;
    pull(&world.client(), APP, "latest", &image).await;
    for _time in 0..2 {
        let gate = Gate::new();
        let rule = fake.rule(When::manifest().get(), Then::hold(&gate));
        let path = "/api/v1/records/stop?name=full&fetch=true";
        let told = || {
            let lines = world.log_lines();
            lines.iter().filter(|line| line.contains("nobody waited for the end")).count()
        };
        let before = told();
        let story = world.admin().request("POST", path).open().await;
        gate.reached().await;
        drop(story);
        within("the end to be given up", async {
            while told() == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
        fake.remove(&rule);
        gate.open();
    }
    let ended = stop(&world, "name=full&fetch=true").await;
    assert_eq!(ended.fate("docker.io/team/app:latest"), "failed");
    let left = ended.of("left_out").next().expect("something is left out");
    assert_eq!(left["what"], format!("docker.io/team/app:latest@{}", image.digest));
    // Once it was told it is not told again.
    stop(&world, "name=full&fetch=true").await.is_whole(0);
    world.finish().await;
}

/// As a bundle on another roadstead, which asks nobody.
async fn carried(bundle: &Response) -> World {
    let fake = Fake::start().await;
    let island = builder(&fake).set("offline", "true").start().await;
    let request = island.admin().request("POST", "/api/v1/import?set=carried");
    let told = request.body(bundle.body.clone()).expect(200).await.text();
    let last: Value = serde_json::from_str(told.lines().last().expect("a story")).expect("JSON");
    assert_eq!((&last["event"], &last["failed"]), (&json!("ended"), &json!(0)), "{told}");
    island
}

#[tokio::test]
async fn a_set_is_written_out_while_it_is_recorded_and_goes_on() {
    // Large enough that it is not all on its way when its first byte arrives.
    let early = Image::build("early").layer(Blob::synthetic(81, 16 * MIB)).finish();
    let late = Image::single("late");
    let (_fake, world) = world_of(&[(APP, "latest", &early), (DB, "1", &late)]).await;
    start(&world, "name=live").await;
    pull(&world.client(), APP, "latest", &early).await;
    noted(&world, "live", 1).await;
    world.downloads_over().await;
    let order = json!({ "sets": ["live"] }).to_string();
    let export = || world.admin().request("POST", "/api/v1/export").body(order.clone());
    let mut bundle = export().open().await;
    let begun = bundle.take(1000).await;
    pull(&world.client(), "db", "1", &late).await;
    noted(&world, "live", 2).await;
    world.downloads_over().await;
    let mut rest = bundle.rest().await;
    assert_eq!(rest.end, End::Clean);
    rest.body = [begun, rest.body].concat().into();
    let island = carried(&rest).await;
    pull(&island.client(), APP, "latest", &early).await;
    assert_eq!(island.client().manifest("db", "1").send().await.status, 404);
    island.finish().await;
    // It was not ended by that, and what came meanwhile is in it.
    let island = carried(&export().expect(200).await).await;
    pull(&island.client(), APP, "latest", &early).await;
    pull(&island.client(), "db", "1", &late).await;
    island.finish().await;
    stop(&world, "name=live&fetch=true").await.is_whole(2);
    world.finish().await;
}

#[tokio::test]
async fn what_upstream_does_not_have_fails_its_image_only() {
    let (gone, good) = (Image::single("half gone"), Image::single("all there"));
    let (fake, world) = world_of(&[(APP, "latest", &gone), (DB, "1", &good)]).await;
    start(&world, "name=half").await;
    world.client().manifest(APP, "latest").expect(200).await;
    world.client().manifest("db", "1").expect(200).await;
    fake.delete_blob(APP, &gone.blobs[1].digest);
    let ended = stop(&world, "name=half&fetch=true").await;
    assert_eq!(ended.fate("docker.io/team/app:latest"), "failed");
    assert_eq!(ended.fate("docker.io/library/db:1"), "fetched");
    assert_eq!((&ended.last()["failed"], &ended.last()["images"]), (&json!(1), &json!(2)));
    // When upstream has it again, the same end goes on.
    fake.push(APP, "latest", &gone);
    let mark = fake.mark();
    stop(&world, "name=half&fetch=true").await.is_whole(2);
    assert_eq!(fake.since(mark).content().len(), 1, "only what was missing");
    world.finish().await;
}

#[tokio::test]
async fn what_a_tag_was_is_recorded_by_its_digest() {
    let (old, new) = (Image::single("was it"), Image::single("is it"));
    let (fake, world) = world_of(&[(APP, "latest", &old)]).await;
    pull(&world.client(), APP, "latest", &old).await;
    world.downloads_over().await;
    fake.push(APP, "latest", &new);
    world.advance(std::time::Duration::from_secs(120));
    pull(&world.client(), APP, "latest", &new).await;
    world.downloads_over().await;
    start(&world, "name=past").await;
    let path = format!("/v2/{APP}/manifests/latest/{}", old.digest);
    world.client().get(&path).expect(200).await;
    noted(&world, "past", 1).await;
    let by_digest = format!("docker.io/{APP}@{}", old.digest);
    assert_eq!(members(&world, "past").await, names([by_digest.as_str()]));
    stop(&world, "name=past").await.is_whole(1);
    world.finish().await;
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused() {
    let (_fake, world) = world_of(&[]).await;
    start(&world, "name=once").await;
    for (path, status, reason) in [
        ("/records?name=once", 409, "set_exists"),
        ("/records?name=other&upstream=quay.io", 404, "unknown_registry"),
        ("/records?name=other&client=10.0.0.0/33", 400, "query"),
        ("/records?name=other&client=host", 400, "query"),
        ("/records?name=-other", 400, "query"),
        ("/records", 400, "query"),
        ("/records/stop?name=never", 404, "set"),
        ("/records/stop?name=once&platform=amd64", 400, "query"),
    ] {
        let error = post(&world, path, status).await["error"].clone();
        assert_eq!(error["reason"], reason, "{path}: {error}");
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{error}");
    }
    let many: String = (0..80).map(|at| format!("&client=192.168.{at}.0/24")).collect();
    let error = post(&world, &format!("/records?name=long{many}"), 400).await["error"].clone();
    assert_eq!(error["reason"], "value", "{error}");
    for at in 1..16 {
        start(&world, &format!("name=r{at}")).await;
    }
    let error = post(&world, "/records?name=r16", 409).await["error"].clone();
    assert_eq!(error["reason"], "busy", "{error}");
    stop(&world, "name=r1").await.is_whole(0);
    start(&world, "name=r16").await;
    stop(&world, "name=r2").await.is_whole(0);
    let error = post(&world, "/records?name=r1", 409).await["error"].clone();
    assert_eq!(error["reason"], "set_exists", "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("set rm")), "{error}");
    world.finish().await;
}
