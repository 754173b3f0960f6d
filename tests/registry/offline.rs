//! Offline as a mode: upstreams that are switched off and on at run time, what clients asked for in vain meanwhile, and sets that keep
//! their content.

use std::time::Duration;

use roadstead::metadata::{RepositoryKey, SetKind, SetMember};
use serde_json::{Value, json};

use crate::support::content::{Blob, Image, MIB, fallback_tag, sha256};
use crate::support::fake::{Edit, Fake, Fault, Then, When};
use crate::support::gate::Gate;
use crate::support::pull::{is_hit, is_manifest, pull};
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const FULL: &str = "docker.io/team/app";
/// Longer than tags are fresh.
const LATER: Duration = Duration::from_secs(120);
/// Longer than content may be unused.
const UNUSED: Duration = Duration::from_secs(3 * 24 * 3600);

fn builder(fake: &Fake) -> WorldBuilder {
    World::builder()
        .upstream("docker.io", fake)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .fresh_for("60s")
}

async fn admin(world: &World, method: &str, path: &str) -> Value {
    let request = world.admin().request(method, &format!("/api/v1{path}"));
    request.send().await.expect(path, 200).json()
}

async fn refused(world: &World, method: &str, path: &str, status: u16) -> String {
    let request = world.admin().request(method, &format!("/api/v1{path}"));
    let error = request.send().await.expect(path, status).json()["error"].clone();
    assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{path}: {error}");
    error["reason"].as_str().expect("a word").to_owned()
}

/// What was asked for in vain: name, times, and why.
async fn wanted(world: &World) -> Vec<(String, u64, String)> {
    let list = admin(world, "GET", "/wanted").await;
    let item = |item: &Value| {
        let text = |key: &str| item[key].as_str().expect("a text").to_owned();
        (text("image"), item["times"].as_u64().expect("a number"), text("reason"))
    };
    list["items"].as_array().expect("items").iter().map(item).collect()
}

/// The client is told that nobody was asked.
async fn is_offline_miss(world: &World, path: &str) {
    let reply = world.client().get(path).expect(404).await;
    assert!(reply.text().contains("offline, not cached"), "{}", reply.text());
}

#[tokio::test]
async fn a_switch_counts_for_the_next_request_and_so_does_its_end() {
    let (old, new) = (Image::single("offline old"), Image::single("offline new"));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &old);
    let world = builder(&fake).start().await;
    let latest = || async { world.client().manifest(NAME, "latest").expect(200).await };
    pull(&world.client(), NAME, "latest", &old).await;
    world.downloads_over().await;
    is_hit(&latest().await);
    let info = admin(&world, "POST", "/offline?upstream=docker.io").await;
    let off = json!({"configured": false, "all": false, "upstreams": ["docker.io"]});
    assert_eq!(info, off);
    fake.push(NAME, "latest", &new);
    let mark = fake.mark();
    for _ in 0..2 {
        // However old it is, twice: the long way, and out of memory.
        world.advance(LATER);
        let reply = latest().await;
        is_manifest(&reply, &old);
        is_hit(&reply);
    }
    assert_eq!(admin(&world, "GET", &format!("/explain?image={FULL}")).await["offline"], true);
    let refresh = format!("/refresh?image={FULL}");
    assert_eq!(refused(&world, "POST", &refresh, 409).await, "offline");
    let tags = world.client().get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
    assert_eq!(tags.json()["tags"], json!(["latest"]));
    fake.since(mark).expect_none("nobody is asked");

    let info = admin(&world, "DELETE", "/offline?upstream=docker.io").await;
    assert_eq!(info["upstreams"], json!([]));
    is_manifest(&latest().await, &new);
    world.finish().await;
}

#[tokio::test]
async fn all_of_them_are_switched_and_a_restart_changes_nothing() {
    let image = Image::single("offline restart");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let second = Fake::start().await;
    second.push(NAME, "latest", &image);
    let mut world = builder(&fake).upstream("ghcr.io", &second).start().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    admin(&world, "POST", "/offline").await;
    admin(&world, "POST", "/offline?upstream=ghcr.io").await;
    world.restart().await;
    world.advance(LATER);
    let (mark, second_mark) = (fake.mark(), second.mark());
    is_hit(&world.client().manifest(NAME, "latest").expect(200).await);
    let ghcr = format!("/v2/ghcr.io/{NAME}/manifests/latest");
    is_offline_miss(&world, &ghcr).await;
    // One of them on is of no use while all are off.
    admin(&world, "DELETE", "/offline?upstream=ghcr.io").await;
    is_offline_miss(&world, &ghcr).await;
    fake.since(mark).expect_none("all are off");
    second.since(second_mark).expect_none("all are off");
    let info = admin(&world, "DELETE", "/offline").await;
    assert_eq!(info, json!({"configured": false, "all": false, "upstreams": []}));
    is_manifest(&world.client().get(&ghcr).expect(200).await, &image);

    // What the configuration says stays said.
    world.restart_with(|builder| builder.set("offline", "true")).await;
    let info = admin(&world, "DELETE", "/offline").await;
    assert_eq!(info["configured"], true);
    is_offline_miss(&world, &format!("/v2/{NAME}/manifests/never")).await;
    world.finish().await;
}

#[tokio::test]
async fn a_host_of_a_family_is_switched_by_its_own_name() {
    let fake = Fake::start().await;
    let family =
        "[upstream.\"pkg.test\"]\nurl = \"https://pkg.test\"\npatterns = [\"*.pkg.test\"]\n";
    let world = builder(&fake).tables(family).start().await;
    let info = admin(&world, "POST", "/offline?upstream=eu.pkg.test").await;
    assert_eq!(info["upstreams"], json!(["eu.pkg.test"]));
    is_offline_miss(&world, "/v2/eu.pkg.test/a/b/manifests/latest").await;
    assert_eq!(
        wanted(&world).await,
        [("eu.pkg.test/a/b:latest".to_owned(), 1, "offline".to_owned())]
    );
    for (path, status, reason) in [
        ("/offline?upstream=quay.io", 404, "unknown_registry"),
        ("/offline?upstream=docker.io/a/b", 400, "value"),
        ("/offline?upstream=%20", 400, "value"),
    ] {
        assert_eq!(refused(&world, "POST", path, status).await, reason, "{path}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_family_of_hosts_is_switched_as_one() {
    const IMAGE: &str = "eu.pkg.test/team/app:latest";
    const PATH: &str = "/v2/eu.pkg.test/team/app/manifests/latest";
    let (image, moved) = (Image::single("family"), Image::single("family moved"));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let family = format!(
        "[upstream.\"pkg.test\"]\nurl = \"https://pkg.test\"\npatterns = [\"*.pkg.test\"]\nmirrors = [{:?}]\n",
        fake.url()
    );
    let mut world = builder(&fake).tables(&family).start().await;
    let latest = || async { world.client().get(PATH).expect(200).await };
    latest().await;
    is_hit(&latest().await);
    let info = admin(&world, "POST", "/offline?upstream=*.PKG.test").await;
    assert_eq!(info, json!({"configured": false, "all": false, "upstreams": ["*.pkg.test"]}));
    fake.push(NAME, "latest", &moved);
    let mark = fake.mark();
    for _ in 0..2 {
        world.advance(LATER);
        let reply = latest().await;
        is_manifest(&reply, &image);
        is_hit(&reply);
    }
    let told = admin(&world, "GET", &format!("/explain?image={IMAGE}")).await;
    assert_eq!(told["offline"], true);
    let why = told["sentences"].to_string();
    assert!(why.contains("roadstead online '*.pkg.test'"), "{why}");
    let refresh = format!("/refresh?image={IMAGE}");
    assert_eq!(refused(&world, "POST", &refresh, 409).await, "offline");
    // One that nobody has named before is of it; the registry whose table has the pattern is not.
    is_offline_miss(&world, "/v2/us.pkg.test/a/b/manifests/latest").await;
    let missed = [("us.pkg.test/a/b:latest".to_owned(), 1, "offline".to_owned())];
    assert_eq!(wanted(&world).await, missed);
    fake.since(mark).expect_none("the family is off");
    let own = admin(&world, "GET", "/explain?image=pkg.test/team/app").await;
    assert_eq!(own["offline"], false);

    world.restart().await;
    let mark = fake.mark();
    is_hit(&world.client().get(PATH).expect(200).await);
    // A host of it is on again only with it.
    let info = admin(&world, "DELETE", "/offline?upstream=eu.pkg.test").await;
    assert_eq!(info["upstreams"], json!(["*.pkg.test"]));
    is_hit(&world.client().get(PATH).expect(200).await);
    fake.since(mark).expect_none("the family is off");
    for (path, status, reason) in [
        ("/offline?upstream=*.quay.io", 404, "unknown_registry"),
        ("/offline?upstream=*", 400, "value"),
        ("/offline?upstream=*.test", 400, "value"),
        ("/offline?upstream=*.pkg.test/a", 400, "value"),
    ] {
        assert_eq!(refused(&world, "POST", path, status).await, reason, "{path}");
    }
    let info = admin(&world, "DELETE", "/offline?upstream=*.pkg.test").await;
    assert_eq!(info["upstreams"], json!([]));
    is_manifest(&world.client().get(PATH).expect(200).await, &moved);
    world.finish().await;
}

#[tokio::test]
async fn a_family_that_is_offline_by_the_configuration_is_told_by_its_pattern() {
    let fake = Fake::start().await;
    let family = "patterns = [\"*.pkg.test\"]\noffline = true\n";
    let mut world = builder(&fake).upstream_with("pkg.test", &fake, family).start().await;
    let names = json!(["*.pkg.test", "pkg.test"]);
    assert_eq!(admin(&world, "GET", "/offline").await["upstreams"], names);
    let info = admin(&world, "DELETE", "/offline?upstream=*.pkg.test").await;
    assert_eq!(info["upstreams"], names, "what the configuration says stays said");
    let told = admin(&world, "GET", "/explain?image=eu.pkg.test/a/b").await;
    assert!(told["sentences"].to_string().contains("by the configuration"), "{told}");
    // A switch outlives its table, and can be taken back then.
    let switch = "/offline?upstream=*.pkg.test";
    admin(&world, "POST", switch).await;
    world.restart_with(|builder| builder.without_upstream("pkg.test")).await;
    assert_eq!(refused(&world, "POST", switch, 404).await, "unknown_registry");
    assert_eq!(admin(&world, "DELETE", switch).await["upstreams"], json!([]));
    assert_eq!(refused(&world, "DELETE", switch, 404).await, "unknown_registry");
    world.finish().await;
}

#[tokio::test]
async fn what_clients_miss_is_listed_in_the_form_that_warm_takes() {
    let (image, index) = (Image::single("missed"), Image::index("missed index"));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    fake.push(NAME, "multi", &index);
    let world = builder(&fake).start().await;
    let idle = world.idle_tasks().await;
    // Of the index its manifests are here, and of its first platform nothing else.
    world.client().manifest(NAME, "multi").expect(200).await;
    let amd64 = &index.children[0];
    world.client().manifest(NAME, &amd64.digest).expect(200).await;
    world.tasks_at_most(idle).await;
    admin(&world, "POST", "/offline").await;

    let client = world.client();
    for _ in 0..2 {
        client.manifest(NAME, "latest").expect(404).await;
        client.manifest_head(NAME, "latest").expect(404).await;
    }
    let arm64 = &index.children[1];
    client.manifest(NAME, &arm64.digest).expect(404).await;
    for blob in &amd64.blobs {
        client.blob(NAME, &blob.digest).expect(404).await;
    }
    let unknown = sha256(b"of no image");
    client.blob_head(NAME, &unknown).expect(404).await;
    // What clients try without knowing of it, and what was never here at a moment of the past.
    let signature = format!("{}.sig", fallback_tag(&index.digest));
    client.manifest(NAME, &signature).expect(404).await;
    client.manifest(NAME, &fallback_tag(&index.digest)).expect(404).await;
    client.get(&format!("/v2/{NAME}/referrers/{}", image.digest)).send().await;
    client.get(&format!("/v2/asof-20200101/{FULL}/manifests/v1")).expect(404).await;

    let offline = |image: String, times| (image, times, "offline".to_owned());
    let blobs = amd64.blobs.len() as u64;
    let mut want = vec![
        offline(format!("{FULL}:latest"), 4),
        offline(format!("{FULL}@{}", arm64.digest), 1),
        offline(format!("{FULL}@{}", amd64.digest), blobs),
        offline(format!("{FULL}@{unknown}"), 1),
    ];
    let mut found = wanted(&world).await;
    want.sort();
    found.sort();
    assert_eq!(found, want);
    let all = admin(&world, "GET", "/wanted").await["items"].clone();
    let kind_of = |image: &str| {
        let items = all.as_array().expect("items");
        let item = items.iter().find(|item| item["image"] == *image).expect("it is there");
        item["kind"].as_str().expect("a word").to_owned()
    };
    assert_eq!(kind_of(&format!("{FULL}@{unknown}")), "blob");
    assert_eq!(kind_of(&format!("{FULL}@{}", amd64.digest)), "manifest");
    pages_are_the_list(&world).await;
    let since = world.moment_ago(Duration::ZERO);
    world.advance(LATER);
    client.manifest(NAME, "other").expect(404).await;
    let path = format!("/wanted?since={}", world.moment_ago(Duration::from_secs(1)));
    assert!(world.moment_ago(Duration::ZERO) > since);
    let late = admin(&world, "GET", &path).await;
    assert_eq!(late["items"].as_array().map(Vec::len), Some(1), "{late}");

    // The list of what can be fetched is fetched, and nothing of it is wanted any more.
    admin(&world, "DELETE", "/offline").await;
    let manifests = found.iter().filter(|(image, ..)| !image.ends_with(&unknown));
    let list: String = manifests.map(|(image, ..)| format!("{image} # a comment\n")).collect();
    let (images, report) = super::warm::warm(&world, "all_platforms=true", &list).await;
    assert_eq!((images.len(), &report["failed"]), (3, &json!(0)), "{images:?}");
    let left: Vec<String> = wanted(&world).await.into_iter().map(|(image, ..)| image).collect();
    assert_eq!(left, [format!("{FULL}:other"), format!("{FULL}@{unknown}")]);
    assert!(admin(&world, "DELETE", "/wanted").await["removed"].as_u64().is_some_and(|n| n >= 2));
    assert!(wanted(&world).await.is_empty());
    assert_eq!(refused(&world, "GET", "/wanted?after=nonsense", 400).await, "value");
    world.finish().await;
}

/// Asked for piece by piece it is the same.
async fn pages_are_the_list(world: &World) {
    let whole = wanted(world).await;
    let (mut images, mut path) = (Vec::new(), "/wanted?limit=1".to_owned());
    loop {
        let page = admin(world, "GET", &path).await;
        for item in page["items"].as_array().expect("items") {
            images.push(item["image"].as_str().expect("a name").to_owned());
        }
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/wanted?limit=1&after={}", next.replace(' ', "%20"));
    }
    // The blobs of one image are one line in a page, and may be more over several.
    images.dedup();
    assert_eq!(images, whole.into_iter().map(|(image, ..)| image).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_outage_is_missed_and_a_real_absence_is_not() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("outage"));
    let world = builder(&fake).start().await;
    world.client().manifest(NAME, "never").expect(404).await;
    world.client().blob(NAME, &sha256(b"never")).expect(404).await;
    assert!(wanted(&world).await.is_empty(), "upstream has no such thing");
    let rule = fake.rule(When::manifest(), Then::status(503));
    let reply = world.client().manifest(NAME, "latest").send().await;
    assert!(reply.status >= 500, "{}", reply.status);
    fake.remove(&rule);
    assert_eq!(wanted(&world).await, [(format!("{FULL}:latest"), 1, "unreachable".to_owned())]);
    world.finish().await;
}

/// A world in which everything that is not kept goes when it was not used for a while; and an image in it that has not been used.
async fn world_with_unused(image: &Image) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let world = builder(&fake).set("max_unused", "\"1d\"").start().await;
    pull(&world.client(), NAME, "latest", image).await;
    world.downloads_over().await;
    world.advance(UNUSED);
    (fake, world)
}

/// What was kept the last time is looked at again when it was not used for as long again.
async fn collect(world: &World) -> String {
    world.advance(UNUSED);
    let reply = world.admin().request("POST", "/api/v1/gc").send().await;
    reply.expect("gc", 200).text()
}

fn is_whole(world: &World, image: &Image) -> bool {
    let manifests = image.manifests().into_iter().all(|one| world.has_stored(&one.digest));
    manifests && image.all_blobs().iter().all(|blob| world.has_stored(&blob.digest))
}

#[tokio::test]
async fn nothing_goes_while_its_upstream_is_switched_off() {
    let image = Image::single("kept offline");
    let (_fake, world) = world_with_unused(&image).await;
    for target in ["/offline?upstream=docker.io", "/offline"] {
        admin(&world, "POST", target).await;
        let story = collect(&world).await;
        assert!(story.contains("offline"), "{story}");
        assert!(is_whole(&world, &image));
        let blob = format!("/blobs?digest={}", image.all_blobs()[0].digest);
        assert_eq!(refused(&world, "DELETE", &blob, 409).await, "held");
        admin(&world, "DELETE", target).await;
    }
    collect(&world).await;
    assert!(image.all_blobs().iter().all(|blob| !world.has_stored(&blob.digest)));
    world.finish().await;
}

/// A set with the tag and its revision.
async fn make_set(world: &World, image: &Image) {
    let metadata = world.metadata();
    let name = "demo".parse().expect("a name");
    let set = metadata.add_set(name, SetKind::Record, "by hand".to_owned()).await;
    let set = set.expect("the rows can be written").expect("it is new");
    let repository = RepositoryKey {
        upstream: "docker.io".parse().expect("a name"),
        name: NAME.parse().expect("a name"),
    };
    let member = SetMember {
        repository,
        digest: image.digest.parse().expect("a digest"),
        tag: Some("latest".parse().expect("a tag")),
        at: world.moment_ago(Duration::ZERO),
    };
    metadata.add_members(set.id, vec![member]).await.expect("the rows can be written");
    let ended = metadata.change_set(set.id, Some(world.moment_ago(Duration::ZERO)), None).await;
    assert!(ended.expect("the rows can be written"));
}

#[tokio::test]
async fn a_pinned_set_keeps_its_content_until_it_is_unpinned_or_gone() {
    for release in [("DELETE", "/sets/pin?set=demo"), ("DELETE", "/sets?set=demo")] {
        let image = Image::index("set");
        let (_fake, world) = world_with_unused(&image).await;
        make_set(&world, &image).await;
        let pinned = admin(&world, "POST", "/sets/pin?set=demo").await;
        assert_eq!(
            (&pinned["pinned"], &pinned["images"], &pinned["kind"]),
            (&json!(true), &json!(1), &json!("record"))
        );
        let members = admin(&world, "GET", "/members?set=demo").await;
        assert_eq!(members["items"][0]["image"], format!("{FULL}:latest"));
        assert_eq!(members["items"][0]["digest"], image.digest.as_str());
        let story = collect(&world).await;
        assert!(story.contains("set demo keeps"), "{story}");
        assert!(is_whole(&world, &image));
        let told = admin(&world, "GET", &format!("/inspect?image={FULL}")).await;
        assert!(told["holds"].to_string().contains("set demo"), "{}", told["holds"]);
        for path in [
            format!("/images?image={FULL}:latest"),
            format!("/images?image={FULL}@{}", image.digest),
            format!("/blobs?digest={}", image.all_blobs()[0].digest),
        ] {
            assert_eq!(refused(&world, "DELETE", &path, 409).await, "held", "{path}");
        }
        admin(&world, release.0, release.1).await;
        collect(&world).await;
        assert!(image.all_blobs().iter().all(|blob| !world.has_stored(&blob.digest)));
        let left = admin(&world, "GET", "/sets").await["sets"].as_array().map(Vec::len);
        assert_eq!(left, Some(usize::from(release.1.contains("pin"))));
        world.finish().await;
    }
}

#[tokio::test]
async fn a_set_that_is_not_pinned_keeps_rows_and_no_bytes() {
    let image = Image::single("unpinned set");
    let (_fake, world) = world_with_unused(&image).await;
    make_set(&world, &image).await;
    admin(&world, "DELETE", &format!("/images?image={FULL}:latest")).await;
    world.advance(UNUSED);
    collect(&world).await;
    assert!(!is_whole(&world, &image), "the bytes go as those of others do");
    let told = admin(&world, "GET", &format!("/inspect?image={FULL}@{}", image.digest)).await;
    assert_eq!(told["digest"], image.digest.as_str(), "it is not forgotten");
    let removed = admin(&world, "DELETE", "/sets?set=demo").await;
    assert_eq!(removed["removed"], 1);
    world.advance(UNUSED);
    collect(&world).await;
    let gone = format!("/inspect?image={FULL}@{}", image.digest);
    assert_eq!(refused(&world, "GET", &gone, 404).await, "unknown_image");
    for (method, path) in
        [("DELETE", "/sets?set=demo"), ("POST", "/sets/pin?set=demo"), ("GET", "/members?set=demo")]
    {
        assert_eq!(refused(&world, method, path, 404).await, "set", "{method} {path}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_download_that_runs_is_finished_and_nothing_else_is_asked_for() {
    const SIZE: u64 = 3 * MIB;
    let running = Blob::synthetic(91, SIZE);
    let image = Image::build("offline half-way").layer(running.clone()).layers(1).finish();
    let blobs = image.all_blobs();
    let other = blobs.iter().find(|blob| blob.digest != running.digest).expect("another one");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let gate = Gate::new();
    let about = || When::blob().get().about(&running.digest);
    // It is held, and breaks soon after that.
    let faults = [Fault::GateAt(MIB, gate.clone()), Fault::CloseAt(MIB + MIB / 2)];
    let broken = fake.rule(about().once(), Then::Alter(faults.map(Edit::Fault).into()));
    let client = world.client();
    let body = client.blob(NAME, &running.digest).open().await;
    gate.reached().await;
    admin(&world, "POST", "/offline?upstream=docker.io").await;
    let mark = fake.mark();
    for digest in [&running.digest, &other.digest] {
        is_offline_miss(&world, &format!("/v2/{NAME}/blobs/{digest}")).await;
    }
    fake.since(mark).expect_none("what does not run is not begun");
    gate.open();
    body.hashed().await.is_whole(&running.digest, SIZE);
    broken.expect_hit();
    world.downloads_over().await;
    let asked = fake.since(mark);
    asked.about(&running.digest).gets().expect(1, "the rest of what broke");
    assert_eq!(asked.about(&running.digest).len(), asked.len(), "{}", asked.lines());
    world.client().blob(NAME, &running.digest).expect(200).await;
    world.finish().await;
}
