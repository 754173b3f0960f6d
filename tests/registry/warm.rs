//! Fetching images before anybody asks: what is fetched, what is not, and how upstreams are treated.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::content::{Blob, Image, OCI_LAYER, fallback_tag, noise};
use crate::support::fake::{Fake, Kind, Then, When};
use crate::support::gate::{Gate, within};
use crate::support::pull::{is_blob, is_manifest, pull};
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const AMD64: &str = "platform=linux/amd64";
/// Longer than tags are fresh.
const LATER: Duration = Duration::from_secs(2 * 3600);

pub fn builder(fake: &Fake) -> WorldBuilder {
    World::builder().upstream("docker.io", fake).set("admin_listen", "\"127.0.0.1:0\"")
}

async fn post(world: &World, query: &str, list: &str) -> Response {
    let path = format!("/api/v1/warm?{query}");
    world.admin().request("POST", &path).body(list.to_owned()).send().await
}

/// Warms a list to the end; the events of the images in the order of their names, and the report.
pub async fn warm(world: &World, query: &str, list: &str) -> (Vec<Value>, Value) {
    let text = post(world, query, list).await.expect("a story", 200).text();
    let events: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect();
    assert_eq!((&events[0]["event"], &events[0]["work"]), (&json!("begun"), &json!("warm")));
    let report = events.last().expect("there is an end").clone();
    assert_eq!(report["event"], "ended", "{text}");
    let mut images: Vec<Value> =
        events.into_iter().filter(|event| event["event"] == "image").collect();
    images.sort_by_key(|event| event["image"].to_string());
    assert_eq!(report["images"], json!(images.len()));
    (images, report)
}

fn fates(images: &[Value]) -> Vec<&str> {
    images.iter().map(|image| image["fate"].as_str().expect("a fate")).collect()
}

fn reason(image: &Value) -> &str {
    image["reason"].as_str().unwrap_or_default()
}

/// All of an image is served.
async fn replays(world: &World, image: &Image) {
    let client = world.client();
    is_manifest(&client.manifest(NAME, &image.digest).expect(200).await, image);
    for blob in &image.blobs {
        is_blob(&client.blob(NAME, &blob.digest).expect(200).await, blob);
    }
}

#[tokio::test]
async fn only_the_wanted_platform_is_fetched_and_replays_without_its_upstream() {
    let fake = Fake::start().await;
    let image = Image::index("wanted");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    // As `wanted` prints it.
    let list = format!("docker.io/{NAME}:latest  # 3 times, last 2026-11-22T12:00:00Z\n");
    let (images, report) = warm(&world, AMD64, &list).await;
    assert_eq!(fates(&images), ["fetched"]);
    assert_eq!(images[0]["image"], format!("docker.io/{NAME}:latest"));
    assert_eq!(images[0]["digest"], image.digest.as_str());
    let [amd64, arm64, proof] = &image.children[..] else { panic!("it has three") };
    let parts = [&image, amd64, proof];
    let sizes = parts
        .iter()
        .map(|part| part.bytes.len() as u64 + part.blobs.iter().map(Blob::len).sum::<u64>());
    assert_eq!(report["bytes"], json!(sizes.sum::<u64>()), "{report}");
    let objects = parts.iter().map(|part| 1 + part.blobs.len()).sum::<usize>();
    assert_eq!((&report["objects"], &report["here"]), (&json!(objects), &json!(0)), "{report}");
    let log = fake.log();
    for other in std::iter::once(&arm64.digest).chain(arm64.blobs.iter().map(|blob| &blob.digest)) {
        assert_eq!(log.about(other).len(), 0, "nobody wanted {other}");
    }
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("roadstead_warm_images_total", &[("result", "fetched")]), 1.0);
    assert_eq!(metrics.sum("roadstead_warm_objects_total", &[]), objects as f64);

    fake.stop().await;
    world.advance(LATER);
    let reply = world.client().manifest(NAME, "latest").expect(200).await;
    assert_eq!(reply.body, image.bytes);
    replays(&world, amd64).await;
    replays(&world, proof).await;
    world.finish().await;
}

#[tokio::test]
async fn what_is_here_costs_the_check_of_its_tag_and_no_more() {
    let fake = Fake::start().await;
    let image = Image::index("again");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    warm(&world, AMD64, NAME).await;
    let mark = fake.mark();
    let (images, report) = warm(&world, AMD64, &format!("{NAME}\n{NAME}:latest\n")).await;
    assert_eq!(fates(&images), ["here"], "an image that is named twice is one");
    assert_eq!((&report["objects"], &report["bytes"]), (&json!(0), &json!(0)));
    assert!(report["here"].as_u64() > Some(6), "{report}");
    assert_eq!(fake.mark(), mark, "the tag is fresh");
    world.advance(LATER);
    warm(&world, AMD64, NAME).await;
    let asked = fake.since(mark);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked.of(Kind::Manifest).about("latest").len(), 1);

    // What was taken away comes again, and alone.
    let layer = &image.children[0].blobs[1];
    let path = format!("/api/v1/blobs?force=true&digest={}", layer.digest);
    world.admin().request("DELETE", &path).expect(200).await;
    let (images, report) = warm(&world, AMD64, NAME).await;
    assert_eq!((fates(&images), &report["bytes"]), (vec!["fetched"], &json!(layer.len())));
    world.finish().await;
}

#[tokio::test]
async fn an_image_that_upstream_does_not_have_fails_alone() {
    let fake = Fake::start().await;
    let (image, broken) = (Image::single("alone"), Image::single("broken"));
    fake.push(NAME, "v1", &image);
    fake.push("team/broken", "v1", &broken);
    fake.delete_blob("team/broken", &broken.blobs[1].digest);
    fake.push("team/arm", "v1", &Image::index("arm only"));
    let world = builder(&fake).start().await;
    let list = format!("{NAME}:v1\n{NAME}:v9\nteam/none\nteam/broken:v1\n");
    let (images, report) = warm(&world, AMD64, &list).await;
    assert_eq!(fates(&images), ["fetched", "failed", "failed", "failed"]);
    assert!(reason(&images[1]).contains("no tag v9"), "{images:?}");
    let missing = &broken.blobs[1].digest;
    assert!(
        reason(&images[2]).starts_with("1 object is missing")
            && reason(&images[2]).contains(missing),
        "{images:?}"
    );
    assert_eq!(images[3]["digest"], Value::Null);
    assert_eq!(report["failed"], 3);
    replays(&world, &image).await;
    let (images, _) = warm(&world, "platform=linux/s390x", "team/arm:v1").await;
    assert_eq!((fates(&images), reason(&images[0])), (vec!["failed"], "it has no linux/s390x"));
    let both = "platform=linux/s390x&platform=linux/amd64";
    let (images, _) = warm(&world, both, "team/arm:v1").await;
    assert_eq!((fates(&images), reason(&images[0])), (vec!["fetched"], "it has no linux/s390x"));
    world.finish().await;
}

#[tokio::test]
async fn a_list_with_a_mistake_is_refused_whole_with_its_line() {
    let fake = Fake::start().await;
    let image = Image::single("mistakes");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    for (list, line) in [
        ("team/app\n# good so far\n\nteam/app 1.27\n", "line 4: "),
        ("team/app\nTeam/App\n", "line 2: "),
        ("team/app\nquay.io/a/b\n", "line 2: "),
        ("docker://team/app\n", "line 1: "),
        ("roadstead-lock 1\nteam/app x y\n", "line 2: "),
    ] {
        let error = post(&world, "", list).await.expect(list, 400).json()["error"].clone();
        assert_eq!(error["reason"], "list", "{error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.starts_with(line), "{list}: {message}");
    }
    assert_eq!(fake.mark(), 0, "nothing was asked");
    let (images, _) = warm(&world, "", "# nothing is wanted\n").await;
    assert!(images.is_empty());
    world.finish().await;
}

#[tokio::test]
async fn an_upstream_that_has_had_enough_is_left_alone_and_the_others_are_not() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let image = Image::single("limited");
    other.push(NAME, "latest", &image);
    let names: Vec<String> = (0..20).map(|number| format!("team/app{number}")).collect();
    for name in &names {
        fake.push(name, "latest", &image);
    }
    let known = Image::single("known before");
    fake.push(NAME, "latest", &known);
    let world = builder(&fake).upstream("ghcr.io", &other).start().await;
    warm(&world, "", NAME).await;
    let rule = fake.rule(When::manifest(), Then::limited(Some("3600")));
    let mark = fake.mark();
    let list = format!("{}\nghcr.io/{NAME}\n{NAME}\n", names.join("\n"));
    let (images, report) = warm(&world, "", &list).await;
    assert_eq!(report["failed"], 20, "{images:?}");
    for image in images.iter().filter(|image| image["fate"] == "failed") {
        assert!(reason(image).contains("docker.io limits us for another"), "{image}");
    }
    let fate_of = |name: &str| {
        let found = images.iter().find(|image| image["image"] == name).expect("it is told");
        found["fate"].clone()
    };
    assert_eq!(fate_of(&format!("ghcr.io/{NAME}:latest")), "fetched");
    assert_eq!(fate_of(&format!("docker.io/{NAME}:latest")), "here", "nothing of it is missing");
    assert!(fake.since(mark).len() <= 4, "{:?}", fake.since(mark));
    fake.remove(&rule);
    world.finish().await;
}

#[tokio::test]
async fn a_short_limit_is_waited_for() {
    let fake = Fake::start().await;
    let image = Image::single("patience");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    let rule = fake.rule(When::blob().get().once(), Then::limited(Some("3")));
    let (images, _) = warm(&world, "", NAME).await;
    assert_eq!(fates(&images), ["fetched"], "{images:?}");
    rule.expect_hit();
    replays(&world, &image).await;
    world.finish().await;
}

#[tokio::test]
async fn what_is_left_of_a_quota_is_kept_for_clients() {
    let fake = Fake::start().await;
    let (image, other) = (Image::single("quota"), Image::single("another"));
    fake.push(NAME, "latest", &image);
    fake.push("team/other", "latest", &other);
    let world = builder(&fake).start().await;
    fake.rule(When::manifest(), Then::set("ratelimit-remaining", "5;w=21600"));
    warm(&world, "", NAME).await;
    let mark = fake.mark();
    let (images, _) = warm(&world, "", &format!("{NAME}\nteam/other")).await;
    assert!(reason(&images[1]).contains("kept for clients"), "{images:?}");
    assert_eq!(images[1]["fate"], "failed");
    assert_eq!(fake.mark(), mark, "not one request is spent");
    world.client().manifest("team/other", "latest").expect(200).await;
    world.finish().await;
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_stopped() {
    let fake = Fake::start().await;
    let layer = Blob::new(OCI_LAYER, noise("breaks off", 3_000_000));
    let image = Image::build("breaks off").layer(layer.clone()).finish();
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    let broken = When::blob().get().about(&layer.digest);
    fake.rule(broken.clone().once(), Then::close_at(1_000_000));
    let (images, _) = warm(&world, "", NAME).await;
    assert_eq!(fates(&images), ["fetched"], "{images:?}");
    assert!(fake.blob_bytes(&layer.digest) < 2 * layer.len(), "it was not fetched twice");

    // One that breaks off again and again fails, and the next order goes on from there.
    let layer = Blob::new(OCI_LAYER, noise("breaks often", 3_000_000));
    let image = Image::build("breaks often").layer(layer.clone()).finish();
    fake.push(NAME, "often", &image);
    let broken = When::blob().get().about(&layer.digest);
    let first = fake.rule(broken.clone().once(), Then::close_at(2_000_000));
    let rest = fake.rule(broken.starting_at(2), Then::status(503));
    let list = format!("{NAME}:often");
    let (images, _) = warm(&world, "", &list).await;
    assert_eq!(fates(&images), ["failed"]);
    assert!(reason(&images[0]).contains("1 object is missing"), "{images:?}");
    first.expect_hit();
    fake.remove(&rest);
    let before = fake.blob_bytes(&layer.digest);
    let (images, report) = warm(&world, "", &list).await;
    assert_eq!((fates(&images), &report["bytes"]), (vec!["fetched"], &json!(layer.len())));
    let brought = fake.blob_bytes(&layer.digest) - before;
    assert!(brought < layer.len() / 2, "{brought} bytes came although most were here");
    world.finish().await;
}

#[tokio::test]
async fn an_upstream_that_dies_half_way_fails_what_it_owes_and_the_next_order_goes_on() {
    const LARGE: usize = 3_000_000;
    let fake = Fake::start().await;
    let large = Blob::new(OCI_LAYER, noise("dies", LARGE));
    let (first, second) = (Image::single("before it dies"), Image::single("after it died"));
    let third = Image::build("when it dies").layer(large.clone()).finish();
    fake.push("team/first", "v1", &first);
    fake.push("team/second", "v1", &second);
    fake.push(NAME, "v1", &third);
    let world = builder(&fake).start().await;
    warm(&world, "", "team/first:v1").await;
    let gate = Gate::new();
    fake.rule(When::blob().get().about(&large.digest).once(), Then::gate_at(2_000_000, &gate));
    let held = Gate::new();
    fake.rule(When::manifest().repository("team/second").once(), Then::hold(&held));
    let list = format!("team/first:v1\n{NAME}:v1\nteam/second:v1\n");
    let dying = async {
        gate.reached().await;
        held.reached().await;
        fake.stop().await;
        gate.open();
        held.open();
    };
    let ((images, report), ()) = tokio::join!(warm(&world, "", &list), dying);
    assert_eq!(fates(&images), ["failed", "here", "failed"], "{images:?}");
    assert!(reason(&images[0]).contains("1 object is missing"), "{images:?}");
    assert!(!reason(&images[2]).is_empty(), "{images:?}");
    assert_eq!((&report["failed"], &report["images"]), (&json!(2), &json!(3)));

    // It is left alone for a while, which no order waits for; then the next one brings what is missing and no more.
    fake.switch_on().await;
    let before = fake.blob_bytes(&large.digest);
    within("the upstream to be asked again", async {
        while warm(&world, "", &list).await.1["failed"] != json!(0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let brought = fake.blob_bytes(&large.digest) - before;
    assert!(brought < large.len() / 2, "{brought} bytes came although most were here");
    for (name, image) in [("team/first", &first), ("team/second", &second), (NAME, &third)] {
        pull(&world.client(), name, "v1", image).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_reader_that_goes_ends_the_work() {
    let fake = Fake::start().await;
    let image = Image::single("left");
    for number in 0..10 {
        fake.push(&format!("team/app{number}"), "latest", &image);
    }
    let world = builder(&fake).start().await;
    let gate = Gate::new();
    fake.rule(When::blob().get(), Then::hold(&gate));
    let list: Vec<String> = (0..10).map(|number| format!("team/app{number}")).collect();
    let request = world.admin().request("POST", "/api/v1/warm").body(list.join("\n"));
    let mut story = request.open().await;
    assert!(story.next().await.is_some());
    gate.reached().await;
    let running = "roadstead_warm_running";
    assert_eq!(world.metrics().await.sum(running, &[]), 1.0);
    drop(story);
    world.metrics_where("the work to end", |metrics| metrics.sum(running, &[]) == 0.0).await;
    let asked = |log: &crate::support::fake::Log| log.of(Kind::Manifest).len();
    let before = asked(&fake.log());
    gate.open();
    world.downloads_over().await;
    assert!(before < 10 && asked(&fake.log()) == before, "nothing more was begun");
    // The next order finds what came.
    let (images, report) = warm(&world, "", "team/app0").await;
    assert_eq!(fates(&images).len(), 1);
    assert_eq!(report["failed"], 0, "{images:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_lockfile_is_fetched_by_its_digests() {
    let fake = Fake::start().await;
    let (old, new, same) = (Image::single("old"), Image::single("new"), Image::single("same"));
    fake.push(NAME, "moved", &old);
    fake.push(NAME, "moved", &new);
    fake.push(NAME, "same", &same);
    let world = builder(&fake).start().await;
    let line = |tag: &str, image: &Image| {
        format!("docker.io/{NAME}{tag} {} 2026-11-01T12:00:00Z\n", image.digest)
    };
    let lockfile = format!("roadstead-lock 1\n{}{}", line(":moved", &old), line(":same", &same));
    let (images, report) = warm(&world, "", &lockfile).await;
    assert_eq!((fates(&images), &report["failed"]), (vec!["fetched", "fetched"], &json!(0)));
    assert_eq!(images[0]["digest"], old.digest.as_str());
    assert!(reason(&images[0]).contains(&format!("moved points at {} now", new.digest)));
    assert_eq!(images[1]["reason"], Value::Null, "{images:?}");
    fake.stop().await;
    replays(&world, &old).await;
    replays(&world, &same).await;
    let reply = world.client().manifest(NAME, "same").expect(200).await;
    assert_eq!(reply.body, same.bytes);
    world.finish().await;
}

#[tokio::test]
async fn signatures_and_other_referrers_come_when_they_are_wanted() {
    let fake = Fake::start().await;
    let image = Image::single("signed");
    let sbom = Image::artifact("sbom", "application/spdx+json", &image);
    let signature = Image::single("signature");
    fake.push(NAME, "latest", &image);
    fake.push_untagged(NAME, &sbom);
    let tag = format!("{}.sig", fallback_tag(&image.digest));
    fake.push(NAME, &tag, &signature);
    let world = builder(&fake).start().await;
    warm(&world, "", NAME).await;
    assert_eq!(fake.log().of(Kind::Referrers).len(), 0);
    assert_eq!(fake.log().about(&signature.digest).len() + fake.log().about(&tag).len(), 0);
    let (images, _) = warm(&world, "referrers=true", NAME).await;
    assert_eq!((fates(&images), reason(&images[0])), (vec!["fetched"], ""), "{images:?}");
    fake.stop().await;
    world.advance(LATER);
    let client = world.client();
    let path = format!("/v2/{NAME}/referrers/{}", image.digest);
    let listed = client.get(&path).expect(200).await;
    assert!(listed.text().contains(&sbom.digest), "{}", listed.text());
    replays(&world, &sbom).await;
    replays(&world, &signature).await;
    let reply = client.manifest(NAME, &tag).expect(200).await;
    assert_eq!(reply.body, signature.bytes);
    world.finish().await;
}

#[tokio::test]
async fn lists_of_the_configuration_are_followed() {
    let fake = Fake::start().await;
    let (old, new) = (Image::index("followed"), Image::index("followed later"));
    fake.push(NAME, "latest", &old);
    let table = |images: &str| {
        format!("[[warm]]\nimages = [{images}]\nevery = \"6h\"\nplatforms = [\"linux/amd64\"]\n")
    };
    let mut world = builder(&fake).tables(&table("\"team/app\"")).start().await;
    let runs = "roadstead_warm_schedule_runs_total";
    let whole = |count: f64| {
        move |metrics: &crate::support::world::Metrics| {
            metrics.sum(runs, &[("result", "whole")]) >= count
        }
    };
    assert_eq!(fake.mark(), 0, "the first run has its time");
    world.wake_lists();
    world.metrics_where("the first run", whole(1.0)).await;
    fake.push(NAME, "latest", &new);
    world.advance(LATER);
    world.wake_lists();
    world.metrics_where("the second run", whole(2.0)).await;
    for image in [&old, &new] {
        replays(&world, &image.children[0]).await;
    }
    assert_eq!(fake.log().about(&new.children[1].digest).len(), 0);
    let log = world.log_lines().join("\n");
    assert_eq!(log.matches("a list was warmed").count(), 2, "{log}");

    // An image that is not there fails the run, which is told, and the others come.
    fake.push("team/other", "latest", &Image::single("other"));
    let lists = table("\"team/none\", \"team/other\"");
    // The tables stand behind everything else, so the new ones are another world's.
    world.restart_with(|_| builder(&fake).tables(&lists)).await;
    world.wake_lists();
    let failed = |metrics: &crate::support::world::Metrics| {
        metrics.sum(runs, &[("result", "failed")]) >= 1.0
    };
    world.metrics_where("the third run", failed).await;
    let log = world.log_lines().join("\n");
    assert!(log.contains("docker.io/team/none:latest: upstream has no tag latest"), "{log}");
    world.finish().await;
}

#[tokio::test]
async fn offline_nothing_is_asked_and_what_is_missing_is_said() {
    let fake = Fake::start().await;
    let image = Image::index("offline");
    fake.push(NAME, "latest", &image);
    let mut world = builder(&fake).start().await;
    warm(&world, AMD64, NAME).await;
    world.restart_with(|builder| builder.set("offline", "true")).await;
    let mark = fake.mark();
    let (images, _) = warm(&world, AMD64, NAME).await;
    assert_eq!(fates(&images), ["here"]);
    let (images, _) = warm(&world, "all_platforms=true", NAME).await;
    assert_eq!(fates(&images), ["failed"]);
    assert!(reason(&images[0]).contains("1 object is missing"), "{images:?}");
    assert!(reason(&images[0]).contains("offline"), "{images:?}");
    assert_eq!(fake.mark(), mark);
    world.finish().await;
}
