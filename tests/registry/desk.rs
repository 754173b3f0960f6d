//! What the operator asks and orders over the admin API: lists, timelines, explanations, rules, deletions; good input and bad.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::content::{Image, sha256};
use crate::support::fake::{Fake, Then, When};
use crate::support::product::{RowFault, RowPlan};
use crate::support::pull::{is_manifest, pull};
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const FULL: &str = "docker.io/team/app";

/// A world with the admin API on a port.
fn builder(fake: &Fake) -> WorldBuilder {
    World::builder().upstream("docker.io", fake).set("admin_listen", "\"127.0.0.1:0\"")
}

async fn world_with(image: &Image) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let world = builder(&fake).fresh_for("60s").start().await;
    pull(&world.client(), NAME, "latest", image).await;
    world.downloads_over().await;
    (fake, world)
}

async fn ask(world: &World, method: &str, path: &str) -> Response {
    world.admin().request(method, &format!("/api/v1{path}")).send().await
}

async fn get(world: &World, path: &str) -> Value {
    ask(world, "GET", path).await.expect(path, 200).json()
}

/// A refusal's word; its message must not be empty.
async fn refused(world: &World, method: &str, path: &str, status: u16) -> (String, Value) {
    let error = ask(world, method, path).await.expect(path, status).json()["error"].clone();
    assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{path}: {error}");
    (error["reason"].as_str().unwrap_or_default().to_owned(), error)
}

/// The last line of a job.
fn last_line(response: &Response) -> Value {
    let text = response.text();
    serde_json::from_str(text.lines().last().expect("a line")).expect("it is JSON")
}

#[tokio::test]
async fn the_list_is_paged_in_the_order_of_names() {
    let fake = Fake::start().await;
    let image = Image::single("listed");
    for tag in ["v1", "v2", "v3"] {
        fake.push(NAME, tag, &image);
    }
    fake.push("library/nginx", "1.27", &image);
    let world = builder(&fake).start().await;
    for (name, tag) in [(NAME, "v1"), (NAME, "v2"), (NAME, "v3"), ("nginx", "1.27")] {
        world.client().manifest(name, tag).expect(200).await;
    }
    let all = get(&world, "/images").await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().expect("items").iter();
        items.map(|item| item["image"].as_str().expect("a name").to_owned()).collect()
    };
    let want = [
        "docker.io/library/nginx:1.27",
        "docker.io/team/app:v1",
        "docker.io/team/app:v2",
        "docker.io/team/app:v3",
    ];
    assert_eq!(names(&all), want);
    assert_eq!(all["items"][0]["digest"], image.digest.as_str());
    assert_eq!(all["items"][0]["present"], true);
    assert_eq!(all["items"][0]["pinned"], false);
    let (mut paged, mut path) = (Vec::new(), "/images?limit=3".to_owned());
    loop {
        let page = get(&world, &path).await;
        paged.extend(names(&page));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/images?limit=3&after={next}");
    }
    assert_eq!(paged, want);
    assert_eq!(names(&get(&world, "/images?within=nginx").await), &want[..1]);
    assert_eq!(names(&get(&world, "/images?within=docker.io/team/app").await), &want[1..]);
    assert_eq!(names(&get(&world, "/images?within=docker.io&limit=1").await).len(), 1);
    for (path, reason) in [
        ("/images?within=quay.io", "unknown_registry"),
        ("/images?within=quay.io/a/b", "unknown_registry"),
        ("/images?within=never/pulled", "unknown_image"),
    ] {
        assert_eq!(refused(&world, "GET", path, 404).await.0, reason, "{path}");
    }
    for (path, reason) in [
        ("/images?within=nginx:1.27", "image"),
        ("/images?within=", "image"),
        ("/images?after=nonsense", "value"),
        ("/images?limit=0", "query"),
        ("/images?limit=5000", "query"),
        ("/images?limit=1&limit=2", "query"),
    ] {
        assert_eq!(refused(&world, "GET", path, 400).await.0, reason, "{path}");
    }
    world.finish().await;
}

#[tokio::test]
async fn an_index_is_inspected_platform_by_platform() {
    let fake = Fake::start().await;
    let image = Image::index("inspected");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let amd64 = &image.children[0];
    pull(&client, NAME, &amd64.digest, amd64).await;
    world.downloads_over().await;
    let told = get(&world, "/inspect?image=team/app").await;
    assert_eq!(told["image"], "docker.io/team/app:latest");
    assert_eq!(told["digest"], image.digest.as_str());
    assert_eq!(told["tags"], json!(["latest"]));
    assert_eq!(told["complete"], false);
    let platforms = told["platforms"].as_array().expect("platforms");
    assert_eq!(platforms.len(), 3);
    assert_eq!(
        (&platforms[0]["platform"], &platforms[0]["complete"]),
        (&json!("linux/amd64"), &json!(true))
    );
    assert_eq!(platforms[1]["complete"], false);
    let content = told["content"].as_array().expect("content");
    assert_eq!(content[0]["role"], "index");
    let of =
        |digest: &str| content.iter().find(|part| part["digest"] == digest).expect("it is listed");
    assert_eq!(of(&amd64.digest)["state"], "present");
    assert_eq!(of(&image.children[1].digest)["state"], "absent");
    assert_eq!(told["holds"][0], json!({"by": "tag", "what": "docker.io/team/app:latest"}));
    let child = get(&world, &format!("/inspect?image={FULL}@{}", amd64.digest)).await;
    assert_eq!(child["complete"], true);
    let needs = child["holds"].to_string();
    assert!(needs.contains(&image.digest) && needs.contains("revision"), "{needs}");
    world.finish().await;
}

#[tokio::test]
async fn images_that_nobody_knows_say_so_on_every_path() {
    let (_fake, world) = world_with(&Image::single("known")).await;
    let never = sha256(b"never");
    for method_and_path in ["GET /inspect", "GET /history", "GET /locked", "DELETE /images"] {
        let (method, path) = method_and_path.split_once(' ').expect("two words");
        let reason = async |image: &str, status| {
            refused(&world, method, &format!("{path}?image={image}"), status).await.0
        };
        assert_eq!(reason("team/app:v9", 404).await, "unknown_image", "{path}");
        assert_eq!(reason("quay.io/team/app:latest", 404).await, "unknown_registry", "{path}");
        for malformed in [
            "",
            "Team/App:v1",
            "team/app:",
            "team//app:x",
            "docker://a:b",
            "a:b@sha256:12",
            "docker.io:x",
        ] {
            assert_eq!(reason(malformed, 400).await, "image", "{path} {malformed}");
        }
        if path != "/history" {
            assert_eq!(reason(&format!("team/app@{never}"), 404).await, "unknown_image", "{path}");
            assert_eq!(
                reason(&format!("team/app:latest@{never}"), 404).await,
                "unknown_image",
                "{path}"
            );
        }
        let long = "a".repeat(2000);
        assert_eq!(reason(&long, 400).await, "image", "{path}");
    }
    let huge = "a".repeat(13_000);
    assert_eq!(refused(&world, "GET", &format!("/inspect?image={huge}"), 400).await.0, "query");
    assert_eq!(refused(&world, "GET", "/history?image=team/app@sha256:12", 400).await.0, "image");
    for path in ["/explain?image=quay.io/a/b", "/refresh?image=quay.io/a/b"] {
        let method = if path.starts_with("/explain") { "GET" } else { "POST" };
        assert_eq!(refused(&world, method, path, 404).await.0, "unknown_registry");
    }
    assert_eq!(get(&world, "/images").await["items"].as_array().map(Vec::len), Some(1));
    world.finish().await;
}

#[tokio::test]
async fn a_timeline_is_paged_and_says_what_is_served() {
    let (fake, world) = world_with(&Image::single("one")).await;
    let first = get(&world, "/locked?image=team/app").await["images"][0].clone();
    let second = Image::single("two");
    fake.push(NAME, "latest", &second);
    world.advance(Duration::from_secs(100));
    let refreshed =
        ask(&world, "POST", "/refresh?image=team/app").await.expect("refresh", 200).json();
    assert_eq!(refreshed["outcome"], "moved");
    assert_eq!(
        (&refreshed["before"], &refreshed["now"]),
        (&first["digest"], &json!(second.digest))
    );
    let page = get(&world, "/history?image=team/app&limit=1").await;
    assert_eq!(page["items"][0]["digest"], second.digest.as_str());
    assert_eq!(page["items"][0]["served"], true);
    assert_eq!(page["items"][0]["until"], Value::Null);
    let next = page["next"].as_str().expect("there is more");
    let rest = get(&world, &format!("/history?image=team/app&before={next}")).await;
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(rest["items"][0]["digest"], first["digest"]);
    assert_eq!(rest["items"][0]["served"], false);
    assert!(rest["items"][0]["until"].is_string() && rest["next"].is_null());
    // The former revision is still the tag's, by name and digest.
    let old = first["digest"].as_str().expect("a digest");
    let told = get(&world, &format!("/inspect?image=team/app:latest@{old}")).await;
    assert_eq!((&told["digest"], &told["tags"]), (&first["digest"], &json!([])));
    world.finish().await;
}

#[tokio::test]
async fn rules_are_added_listed_and_taken_back() {
    let (_fake, world) = world_with(&Image::single("ruled")).await;
    let pin = ask(&world, "POST", "/pins?scope=team/app:latest&for=1d&reason=a%20release").await;
    let pin = pin.expect("a pin", 200).json();
    assert_eq!(pin["scope"], "docker.io/team/app:latest");
    assert_eq!(pin["reason"], "a release");
    let until = "2026-11-23T00:00:00Z";
    assert_eq!(pin["until"], until);
    assert_eq!(get(&world, "/pins").await["rules"], json!([pin]));
    assert_eq!(get(&world, "/freezes").await["rules"], json!([]));
    assert_eq!(get(&world, "/images").await["items"][0]["pinned"], true);
    let held = get(&world, "/inspect?image=team/app").await["holds"].clone();
    assert_eq!(held[0]["by"], "pin");
    let scope = async |typed: &str| {
        let rule = ask(&world, "POST", &format!("/pins?scope={typed}")).await;
        rule.expect(typed, 200).json()["scope"].as_str().expect("a scope").to_owned()
    };
    assert_eq!(scope("nginx").await, "docker.io/library/nginx");
    assert_eq!(scope("postgres:16").await, "docker.io/library/postgres:16");
    assert_eq!(scope("docker.io").await, "docker.io");
    assert_eq!(scope("team/*:v*").await, "docker.io/team/*:v*");
    let gone = ask(&world, "DELETE", &format!("/pins?id={}", pin["id"])).await;
    assert_eq!(gone.expect("unpin", 200).json(), json!({"removed": 1}));
    let gone = ask(&world, "DELETE", "/pins?scope=nginx").await;
    assert_eq!(gone.expect("unpin", 200).json(), json!({"removed": 1}));
    for path in ["/pins?scope=nginx", "/pins?id=99999", "/freezes?scope=docker.io"] {
        assert_eq!(refused(&world, "DELETE", path, 404).await.0, "unknown_rule", "{path}");
    }
    for (path, reason) in [
        ("/pins?scope=", "scope"),
        ("/pins?scope=team/app:", "scope"),
        ("/pins?scope=team/[a", "scope"),
        ("/pins?scope=a&until=yesterday", "query"),
        ("/pins?scope=a&until=2020-01-01", "value"),
        ("/pins?scope=a&for=0s", "value"),
        ("/pins?scope=a&for=-5d", "query"),
        ("/pins?scope=a&reason=two%0Alines", "value"),
        ("/pins?scope=a&for=1d&until=2030-01-01", "query"),
        ("/pins", "query"),
    ] {
        assert_eq!(refused(&world, "POST", path, 400).await.0, reason, "{path}");
    }
    let digest = sha256(b"x");
    let frozen = format!("/freezes?scope=team/app@{digest}");
    assert_eq!(refused(&world, "POST", &frozen, 400).await.0, "scope");
    assert_eq!(refused(&world, "POST", "/pins?scope=quay.io/a", 404).await.0, "unknown_registry");
    assert_eq!(get(&world, "/pins").await["rules"].as_array().map(Vec::len), Some(3));
    world.finish().await;
}

#[tokio::test]
async fn what_is_pinned_is_deleted_by_force_alone() {
    let image = Image::single("guarded");
    let (_fake, world) = world_with(&image).await;
    ask(&world, "POST", "/pins?scope=team/app:latest").await.expect("a pin", 200);
    for path in [
        "/images?image=team/app:latest".to_owned(),
        format!("/images?image=team/app:latest@{}", image.digest),
        format!("/images?image=team/app@{}", image.digest),
        format!("/blobs?digest={}", image.blobs[0].digest),
    ] {
        let (reason, error) = refused(&world, "DELETE", &path, 409).await;
        assert_eq!(reason, "held", "{path}");
        assert_eq!(error["holds"][0]["by"], "pin", "{path}: {error}");
    }
    world.client().manifest(NAME, "latest").expect(200).await;
    let deleted = ask(&world, "DELETE", "/images?image=team/app:latest&force=true").await;
    let deleted = deleted.expect("by force", 200).json();
    assert_eq!(deleted["tags"], json!(["docker.io/team/app:latest"]));
    assert!(deleted["revisions"].to_string().contains(&image.digest), "{deleted}");
    assert!(deleted["collected_after"].is_string(), "{deleted}");
    assert_eq!(refused(&world, "GET", "/inspect?image=team/app", 404).await.0, "unknown_image");
    world.finish().await;
}

#[tokio::test]
async fn a_pin_or_a_freeze_of_a_tag_holds_one_revision_of_it_and_no_other() {
    let (old, new) = (Image::single("held old"), Image::single("held new"));
    let (fake, world) = world_with(&old).await;
    ask(&world, "POST", "/freezes?scope=team/app:latest").await.expect("a freeze", 200);
    world.advance(Duration::from_secs(7200));
    fake.push(NAME, "latest", &new);
    ask(&world, "POST", "/refresh?image=team/app:latest").await.expect("it moves", 200);
    let of = |image: &Image| format!("/images?image=team/app:latest@{}", image.digest);
    // The freeze serves the old one.
    let (_, error) = refused(&world, "DELETE", &of(&old), 409).await;
    assert_eq!(error["holds"][0]["by"], "freeze", "{error}");
    ask(&world, "DELETE", "/freezes?scope=team/app:latest").await.expect("thawed", 200);
    // The pin keeps the new one.
    ask(&world, "POST", "/pins?scope=team/app:latest").await.expect("a pin", 200);
    let (_, error) = refused(&world, "DELETE", &of(&new), 409).await;
    assert_eq!(error["holds"][0]["by"], "pin", "{error}");
    let deleted = ask(&world, "DELETE", &of(&old)).await.expect("nothing wants it", 200).json();
    assert!(deleted["revisions"].to_string().contains(&old.digest), "{deleted}");
    is_manifest(&world.client().manifest(NAME, "latest").expect(200).await, &new);
    world.finish().await;
}

#[tokio::test]
async fn a_blob_that_is_needed_leaves_a_hole_that_is_named() {
    let image = Image::single("holey");
    let (_fake, world) = world_with(&image).await;
    let layer = &image.blobs[1];
    let path = format!("/blobs?digest={}", layer.digest);
    let (reason, error) = refused(&world, "DELETE", &path, 409).await;
    assert_eq!(reason, "held");
    assert!(error["holds"].to_string().contains("docker.io/team/app@"), "{error}");
    assert!(world.has_stored(&layer.digest));
    let deleted = ask(&world, "DELETE", &format!("{path}&force=true")).await;
    let deleted = deleted.expect("by force", 200).json();
    assert_eq!(deleted["removed"], json!([layer.digest]));
    assert!(deleted["incomplete"].to_string().contains("(latest)"), "{deleted}");
    assert!(!world.has_stored(&layer.digest));
    let told = get(&world, "/inspect?image=team/app").await;
    assert_eq!(told["complete"], false);
    let parts = told["content"].as_array().expect("content");
    let part = parts.iter().find(|part| part["digest"] == layer.digest.as_str()).expect("listed");
    assert_eq!(part["state"], "removed");
    assert_eq!(refused(&world, "DELETE", &path, 404).await.0, "unknown_digest");
    // The next pull heals it.
    world.client().blob(NAME, &layer.digest).expect(200).await;
    world.downloads_over().await;
    assert_eq!(get(&world, "/inspect?image=team/app").await["complete"], true);
    for (digest, status, reason) in [
        (sha256(b"never"), 404, "unknown_digest"),
        ("sha256:12".to_owned(), 400, "digest"),
        ("latest".to_owned(), 400, "digest"),
        (String::new(), 400, "digest"),
    ] {
        let path = format!("/blobs?digest={digest}");
        assert_eq!(refused(&world, "DELETE", &path, status).await.0, reason, "{digest}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_child_that_an_index_needs_is_refused() {
    let image = Image::index("family");
    let (_fake, world) = world_with(&image).await;
    let child = &image.children[0].digest;
    let path = format!("/images?image=team/app@{child}");
    let (reason, error) = refused(&world, "DELETE", &path, 409).await;
    assert_eq!(reason, "held");
    assert!(error["holds"].to_string().contains(&image.digest), "{error}");
    let deleted = ask(&world, "DELETE", &format!("{path}&force=true")).await;
    let deleted = deleted.expect("by force", 200).json();
    assert_eq!(deleted["removed"], json!([child]));
    assert!(deleted["incomplete"].to_string().contains(&image.digest), "{deleted}");
    assert_eq!(refused(&world, "DELETE", "/images?image=team/app", 400).await.0, "image");
    world.finish().await;
}

#[tokio::test]
async fn it_is_explained_what_would_happen_and_nobody_is_asked() {
    let image = Image::single("explained");
    let (fake, world) = world_with(&image).await;
    let mark = fake.mark();
    let fresh = get(&world, "/explain?image=team/app").await;
    assert_eq!(fresh["verdict"], "fresh");
    assert_eq!(fresh["upstream"], "docker.io");
    assert_eq!(fresh["digest"], image.digest.as_str());
    assert_eq!((&fresh["missing"], &fresh["offline"]), (&json!(0), &json!(false)));
    assert_eq!(fresh["endpoints"][0]["role"], "registry");
    assert!(fresh["fresh_until"].is_string() && fresh["bytes_present"].as_u64() > Some(1000));
    world.advance(Duration::from_secs(100));
    assert_eq!(get(&world, "/explain?image=team/app").await["verdict"], "check");
    assert_eq!(get(&world, "/explain?image=team/never").await["verdict"], "fetch");
    let by_digest = get(&world, &format!("/explain?image=team/app@{}", image.digest)).await;
    assert_eq!(by_digest["verdict"], "fresh");
    ask(&world, "POST", "/freezes?scope=team/app:latest").await.expect("a freeze", 200);
    let frozen = get(&world, "/explain?image=team/app").await;
    assert_eq!(frozen["verdict"], "frozen");
    assert_eq!(frozen["holds"][0]["by"], "freeze");
    assert_eq!(refused(&world, "GET", "/explain?image=A", 400).await.0, "image");
    fake.since(mark).expect_none("explaining asks nobody");
    world.finish().await;
}

#[tokio::test]
async fn a_refresh_tells_what_upstream_says() {
    let image = Image::single("refreshed");
    let (fake, world) = world_with(&image).await;
    let refresh = async |image: &str| {
        let path = format!("/refresh?image={image}");
        ask(&world, "POST", &path).await.expect(&path, 200).json()
    };
    let mark = fake.mark();
    let told = refresh("team/app").await;
    assert_eq!((&told["outcome"], &told["now"]), (&json!("confirmed"), &json!(image.digest)));
    fake.since(mark).expect(1, "it is asked however fresh it is");
    fake.push(NAME, "new", &image);
    assert_eq!(refresh("team/app:new").await["outcome"], "first_seen");
    let broken = fake.rule(When::manifest(), Then::status(503));
    let told = refresh("team/app").await;
    assert_eq!((&told["outcome"], &told["now"]), (&json!("unreachable"), &json!(image.digest)));
    assert!(told["detail"].is_string());
    fake.remove(&broken);
    fake.untag(NAME, "latest");
    assert_eq!(refresh("team/app").await["outcome"], "absent");
    assert_eq!(refused(&world, "GET", "/inspect?image=team/app", 404).await.0, "absent");
    assert_eq!(get(&world, "/explain?image=team/app").await["verdict"], "absent");
    fake.push(NAME, "latest", &image);
    let told = refresh("team/app").await;
    assert_eq!((&told["outcome"], &told["before"]), (&json!("moved"), &json!(null)), "it is back");
    let path = format!("/refresh?image=team/app@{}", image.digest);
    assert_eq!(refused(&world, "POST", &path, 400).await.0, "image");
    world.finish().await;
}

#[tokio::test]
async fn an_upstream_that_is_offline_or_closed_is_not_refreshed() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("away"));
    let offline = World::builder()
        .upstream_with("docker.io", &fake, "offline = true")
        .upstream_with("r.test", &fake, "deny = [\"team/*\"]")
        .set("admin_listen", "\"127.0.0.1:0\"");
    let world = offline.start().await;
    assert_eq!(refused(&world, "POST", "/refresh?image=team/app", 409).await.0, "offline");
    assert_eq!(get(&world, "/explain?image=team/app").await["verdict"], "refused");
    let denied = ask(&world, "POST", "/refresh?image=r.test/team/app").await;
    let denied = denied.expect("a refusal of the rules", 200).json();
    assert_eq!(denied["outcome"], "denied");
    assert!(denied["detail"].to_string().contains("deny"), "{denied}");
    let told = get(&world, "/explain?image=r.test/team/app").await;
    assert_eq!(told["verdict"], "refused");
    fake.log().expect_none("nobody is asked");
    world.finish().await;
}

#[tokio::test]
async fn usage_adds_up_and_names_upstreams() {
    let (_fake, world) = world_with(&Image::single("sums")).await;
    let usage = get(&world, "/usage").await;
    assert_eq!(usage["objects"], 4);
    assert_eq!(usage["upstreams"][0]["upstream"], "docker.io");
    assert_eq!(usage["upstreams"][0]["bytes"], usage["bytes"]);
    assert_eq!(usage["min_free_bytes"], 1 << 20);
    assert!(usage["free_bytes"].as_u64() > Some(0));
    assert_eq!(refused(&world, "GET", "/usage?x=1", 400).await.0, "query");
    world.finish().await;
}

#[tokio::test]
async fn lockfiles_have_all_images_or_none() {
    let image = Image::single("locked");
    let (_fake, world) = world_with(&image).await;
    let locked = get(&world, "/locked?image=team/app&image=team/app:latest").await;
    let both = locked["images"].as_array().expect("images");
    assert_eq!(both.len(), 2);
    assert_eq!(both[1]["image"], "docker.io/team/app:latest");
    assert_eq!(both[1]["digest"], image.digest.as_str());
    assert_eq!(
        refused(&world, "GET", "/locked?image=team/app&image=never", 404).await.0,
        "unknown_image"
    );
    let many = vec!["image=team/app"; 65].join("&");
    assert_eq!(refused(&world, "GET", &format!("/locked?{many}"), 400).await.0, "value");
    world.finish().await;
}

#[tokio::test]
async fn a_purge_takes_one_repository_or_all() {
    let (fake, world) = world_with(&Image::single("purged")).await;
    fake.push("other/app", "v1", &Image::single("stays"));
    world.client().manifest("other/app", "v1").expect(200).await;
    for (within, status, reason) in [
        ("quay.io", 404, "unknown_registry"),
        ("never/pulled", 404, "unknown_image"),
        ("team/app:latest", 400, "image"),
        ("docker.io&kind=repository", 400, "image"),
        ("team/app&kind=registry", 400, "image"),
        ("team/app&kind=other", 400, "query"),
    ] {
        let path = format!("/purge?within={within}");
        assert_eq!(refused(&world, "POST", &path, status).await.0, reason, "{within}");
    }
    let story = ask(&world, "POST", "/purge?within=team/app").await.expect("a purge", 200);
    assert_eq!(last_line(&story)["event"], "ended", "{}", story.text());
    let left = get(&world, "/images").await;
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(left["items"][0]["image"], "docker.io/other/app:v1");
    world.finish().await;
}

#[tokio::test]
async fn a_collection_can_be_tried_dry() {
    let (_fake, world) = world_with(&Image::single("collected")).await;
    ask(&world, "DELETE", "/images?image=team/app:latest").await.expect("deleted", 200);
    let before = get(&world, "/usage").await;
    assert!(before["doomed"].as_u64() > Some(0), "{before}");
    world.advance(Duration::from_secs(25 * 3600));
    let dry = ask(&world, "POST", "/gc?dry_run=true").await.expect("a dry run", 200);
    assert_eq!(last_line(&dry)["event"], "ended", "{}", dry.text());
    assert_eq!(get(&world, "/usage").await["objects"], before["objects"], "nothing went");
    // What a manifest held begins to wait when it goes.
    for _ in 0..2 {
        let real = ask(&world, "POST", "/gc").await.expect("a collection", 200);
        assert_eq!(last_line(&real)["event"], "ended", "{}", real.text());
        assert!(last_line(&real)["collected"].as_u64() > Some(0), "{}", real.text());
        if get(&world, "/usage").await["objects"] == 0 {
            break;
        }
        world.advance(Duration::from_secs(25 * 3600));
    }
    assert_eq!(get(&world, "/usage").await["objects"], 0);
    world.finish().await;
}

#[tokio::test]
async fn rows_that_fail_are_an_error_and_no_end() {
    let (_fake, world) = world_with(&Image::single("failing")).await;
    world.fail_rows(Some(RowPlan { at: 1, lasting: true, fault: RowFault::Full }));
    let (reason, _) = refused(&world, "POST", "/pins?scope=team/app", 500).await;
    assert_eq!(reason, "store");
    let (reason, _) = refused(&world, "DELETE", "/images?image=team/app:latest", 500).await;
    assert_eq!(reason, "store");
    world.fail_rows(None);
    assert_eq!(get(&world, "/pins").await["rules"], json!([]));
    world.client().manifest(NAME, "latest").expect(200).await;
    world.finish().await;
}
