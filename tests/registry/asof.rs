//! Names with a moment of the past: what a tag was then, from the store alone, under the rules of today.

use std::time::Duration;

use serde_json::json;

use crate::support::client::Client;
use crate::support::content::{Image, sha256};
use crate::support::fake::{Fake, Hidden, Mode, Then, When};
use crate::support::pull::{is_hit, is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const HOUR: Duration = Duration::from_secs(3600);

/// A world that began at 2026-11-22T00:00Z, saw the tag move at 02:00 and at 04:00, and where it is 05:00 now.
async fn moved_twice() -> (Fake, World, [Image; 3]) {
    let images = ["first", "second", "third"].map(Image::single);
    let fake = Fake::start().await;
    let world = World::builder().upstream("docker.io", &fake).fresh_for("0s").start().await;
    for (hours, image) in images.iter().enumerate() {
        if hours > 0 {
            world.advance(2 * HOUR);
        }
        fake.push(NAME, "latest", image);
        pull(&world.client(), NAME, "latest", image).await;
    }
    fake.push(NAME, "newer", &images[2]);
    pull(&world.client(), NAME, "newer", &images[2]).await;
    world.downloads_over().await;
    world.advance(HOUR);
    (fake, world, images)
}

async fn gives(client: &Client, name: &str, image: &Image) {
    let reply = client.manifest(name, "latest").expect(200).await;
    is_manifest(&reply, image);
    is_hit(&reply);
    let head = client.manifest_head(name, "latest").expect(200).await;
    assert_eq!(head.must("Docker-Content-Digest"), image.digest, "{name}");
    pull(client, name, "latest", image).await;
}

#[tokio::test]
async fn each_moment_gives_its_revision_and_upstream_is_not_asked() {
    let (fake, world, [first, second, third]) = moved_twice().await;
    let mark = fake.mark();
    let client = world.client();
    for (moment, image) in [
        ("20261122t0000z", &first),
        ("20261122t015959z", &first),
        ("20261122t0200z", &second),
        ("20261122t0359z", &second),
        ("20261122t040000z", &third),
        ("20261122t0500z", &third),
    ] {
        gives(&client, &format!("asof-{moment}/{NAME}"), image).await;
        gives(&client, &format!("asof-{moment}/docker.io/{NAME}"), image).await;
        gives(&client.clone().ns("docker.io"), &format!("asof-{moment}/{NAME}"), image).await;
        let both = format!("asof-{moment}/docker.io/{NAME}");
        gives(&client.clone().ns("docker.io"), &both, image).await;
        let mounted = format!("/docker.io/v2/asof-{moment}/{NAME}/manifests/latest");
        is_manifest(&client.get(&mounted).expect(200).await, image);
    }
    fake.since(mark).expect_none("the past is here");
    // Nothing of it is taken for the present, which is asked for as ever.
    is_manifest(&client.manifest(NAME, "latest").expect(200).await, &third);
    fake.since(mark).heads().expect(1, "the plain name is a revalidation");
    world.advance(24 * HOUR);
    gives(&client, &format!("asof-20261122/{NAME}"), &third).await;
    world.finish().await;
}

#[tokio::test]
async fn before_it_was_seen_the_answer_says_when_it_was() {
    let (fake, world, _images) = moved_twice().await;
    let mark = fake.mark();
    let client = world.client();
    let reply = client.manifest(&format!("asof-20261121/{NAME}"), "latest").expect(404).await;
    reply.error("MANIFEST_UNKNOWN");
    assert!(reply.text().contains("2026-11-22T00:00:00Z"), "{}", reply.text());
    let reply = client.manifest(&format!("asof-20261122t0300z/{NAME}"), "newer").expect(404).await;
    assert!(reply.text().contains("2026-11-22T04:00:00Z"), "{}", reply.text());
    client.manifest(&format!("asof-20261122t0300z/{NAME}"), "never").expect(404).await;
    client.manifest("asof-20261122t0300z/other/app", "latest").expect(404).await;
    fake.since(mark).expect_none("nobody knows the past better");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_that_was_absent_then_is_absent() {
    let (fake, world, [_, _, third]) = moved_twice().await;
    fake.untag(NAME, "latest");
    world.client().manifest(NAME, "latest").expect(404).await;
    world.advance(HOUR);
    fake.push(NAME, "latest", &third);
    world.advance(HOUR);
    pull(&world.client(), NAME, "latest", &third).await;
    let client = world.client();
    client.manifest(&format!("asof-20261122t0530z/{NAME}"), "latest").expect(404).await;
    gives(&client, &format!("asof-20261122t0459z/{NAME}"), &third).await;
    gives(&client, &format!("asof-20261122t0700z/{NAME}"), &third).await;
    world.finish().await;
}

#[tokio::test]
async fn what_is_no_moment_of_the_past_is_refused() {
    let (fake, world, _images) = moved_twice().await;
    let mark = fake.mark();
    for moment in ["20261122", "20261122t0501z", "2027", "20261322", "20260230", "20261122t2460z"] {
        let name = format!("asof-{moment}/{NAME}");
        for path in [format!("/v2/{name}/manifests/latest"), format!("/v2/{name}/tags/list")] {
            let reply = world.client().get(&path).expect(400).await;
            reply.error("NAME_INVALID");
            assert!(reply.text().contains("asof-YYYYMMDD"), "{}", reply.text());
        }
    }
    fake.since(mark).expect_none("refused");
    // What only looks similar is a name like any other.
    let image = Image::single("of an organisation");
    fake.push("asof-org/app", "latest", &image);
    pull(&world.client(), "asof-org/app", "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn content_that_is_not_here_is_not_fetched() {
    let (fake, world, [first, ..]) = moved_twice().await;
    let unseen = Image::single("unseen");
    fake.push(NAME, "unseen", &unseen);
    let (mark, client) = (fake.mark(), world.client());
    let name = format!("asof-20261122t0500z/{NAME}");
    client.blob(&name, &unseen.blobs[0].digest).expect(404).await;
    client.blob_head(&name, &unseen.blobs[0].digest).expect(404).await;
    client.manifest(&name, &unseen.digest).expect(404).await;
    client.get(&format!("/v2/{name}/referrers/{}", first.digest)).expect(404).await;
    client.blob(&name, &sha256(b"nowhere")).expect(404).await;
    is_manifest(&client.manifest(&name, &first.digest).expect(200).await, &first);
    fake.since(mark).expect_none("the past is here or nowhere");
    world.finish().await;
}

#[tokio::test]
async fn the_list_of_tags_is_the_one_of_then() {
    let (fake, world, _images) = moved_twice().await;
    let (mark, client) = (fake.mark(), world.client());
    let list = async |moment: &str| {
        let path = format!("/v2/asof-{moment}/{NAME}/tags/list");
        client.get(&path).expect(200).await.json()
    };
    let name = format!("asof-20261122t0300z/{NAME}");
    assert_eq!(list("20261122t0300z").await, json!({"name": name, "tags": ["latest"]}));
    assert_eq!(list("20261122t0500z").await["tags"], json!(["latest", "newer"]));
    let path = format!("/v2/asof-20261122t0500z/{NAME}/tags/list?n=1");
    let reply = client.get(&path).expect(200).await;
    assert_eq!(reply.json()["tags"], json!(["latest"]));
    assert!(reply.must("Link").contains("/v2/asof-20261122t0500z/"), "{reply:?}");
    client.get(&format!("/v2/asof-20261121/{NAME}/tags/list")).expect(404).await;
    fake.since(mark).expect_none("the past is here");
    world.finish().await;
}

#[tokio::test]
async fn the_rules_of_today_hold_for_the_past() {
    let (fake, mut world, [first, ..]) = moved_twice().await;
    let name = format!("asof-20261122t0100z/{NAME}");
    gives(&world.client(), &name, &first).await;
    let denied = |builder: crate::support::world::WorldBuilder| {
        builder.upstream_with("docker.io", &fake, "deny = [\"team/*\"]")
    };
    world.reload_with(denied).expect("a good configuration");
    world.client().manifest(&name, "latest").expect(403).await;
    world.client().manifest(&name, &first.digest).expect(403).await;
    world.client().get(&format!("/v2/{name}/tags/list")).expect(403).await;
    world.finish().await;
}

#[tokio::test]
async fn every_form_of_addressing_takes_a_moment() {
    let (hub, fake) = (Fake::start().await, Fake::start().await);
    let [old, new] = ["form old", "form new"].map(Image::single);
    // The same name elsewhere, which nothing here means.
    hub.push(NAME, "latest", &Image::single("of another registry"));
    let settings = "hosts = [\"mirror.corp\"]\nlisten = \"127.0.0.1:0\"";
    let world = World::builder()
        .upstream("docker.io", &hub)
        .upstream_with("other.example.com", &fake, settings)
        .fresh_for("0s")
        .start()
        .await;
    let full = format!("other.example.com/{NAME}");
    for image in [&old, &new] {
        fake.push(NAME, "latest", image);
        pull(&world.client(), &full, "latest", image).await;
        world.downloads_over().await;
        world.advance(HOUR);
    }
    let (mark, client) = (fake.mark(), world.client());
    let by_host = client.clone().with("Host", "mirror.corp");
    let by_port = client.clone().with("Host", "MIRROR.corp:5000");
    let by_ns = client.clone().ns("other.example.com");
    let listener = world.client_of("other.example.com");
    for (moment, image) in [("asof-20261122t0030z", &old), ("asof-20261122t0130z", &new)] {
        let plain = format!("/v2/{moment}/{NAME}");
        let long = format!("/v2/{moment}/{full}");
        for (client, base) in [
            (&client, &long),
            (&by_host, &plain),
            (&by_port, &plain),
            (&by_host, &long),
            (&by_ns, &plain),
            (&by_ns, &long),
            (&listener, &plain),
            (&client, &format!("/{moment}/other.example.com/v2/{NAME}")),
            (&client, &format!("/other.example.com/v2/{moment}/{NAME}")),
            (&by_host, &format!("/{moment}/v2/{NAME}")),
            (&by_ns, &format!("/{moment}/v2/{NAME}")),
        ] {
            let reply = client.get(&format!("{base}/manifests/latest")).send().await;
            is_manifest(&reply.expect(base, 200), image);
            let path = format!("{base}/manifests/latest/{}", image.digest);
            is_manifest(&client.get(&path).send().await.expect(base, 200), image);
            let tags = client.get(&format!("{base}/tags/list")).send().await.expect(base, 200);
            assert_eq!(tags.json()["tags"], json!(["latest"]), "{base}");
            let blob = format!("{base}/blobs/{}", image.blobs[1].digest);
            client.get(&blob).send().await.expect(base, 200);
        }
        // Nothing of it is Docker Hub's.
        client.manifest(&format!("{moment}/{NAME}"), "latest").expect(404).await;
    }
    fake.since(mark).expect_none("the past is here");
    hub.log().expect_none("it was never meant");
    world.finish().await;
}

#[tokio::test]
async fn a_ping_with_a_moment_is_a_ping() {
    let (fake, world, _images) = moved_twice().await;
    let (mark, client) = (fake.mark(), world.client());
    let moment = "asof-20261122t0300z";
    for path in [
        format!("/v2/{moment}/"),
        format!("/v2/{moment}"),
        format!("/v2/{moment}/docker.io/"),
        format!("/v2/{moment}/?ns=docker.io"),
        format!("/{moment}/v2/"),
        format!("/{moment}/docker.io/v2/"),
        format!("/docker.io/v2/{moment}/"),
        "/v2/asof-20261121/".to_owned(),
    ] {
        let reply = client.get(&path).send().await.expect(&path, 200);
        assert_eq!(reply.body, "{}", "{path}");
        client.head(&path).send().await.expect(&path, 200);
    }
    for path in [
        format!("/v2/{moment}/quay.io/"),
        format!("/v2/{moment}/?ns=quay.io"),
        format!("/{moment}/quay.io/v2/"),
        // Only the first component is a moment.
        format!("/v2/{moment}/{moment}/"),
        "/v2/asof-org/".to_owned(),
    ] {
        client.get(&path).send().await.expect(&path, 404);
    }
    for path in ["/v2/asof-2027/", "/v2/asof-20261122t0501z/", "/asof-20261322/v2/"] {
        let reply = client.get(path).expect(400).await;
        reply.error("NAME_INVALID");
        assert!(reply.text().contains("asof-YYYYMMDD"), "{}", reply.text());
    }
    fake.since(mark).expect_none("a ping asks nobody");
    world.finish().await;
}

#[tokio::test]
async fn a_revision_of_a_tag_is_one_that_it_had_had_by_then() {
    let (fake, world, [first, second, third]) = moved_twice().await;
    let (mark, client) = (fake.mark(), world.client());
    for (moment, had) in [
        ("asof-20261121", &[][..]),
        ("asof-20261122t0100z", &[&first][..]),
        // What the tag had before counts as well, as it does without a moment.
        ("asof-20261122t0200z", &[&first, &second]),
        ("asof-20261122t0500z", &[&first, &second, &third]),
    ] {
        for image in [&first, &second, &third] {
            let path = format!("/v2/{moment}/{NAME}/manifests/latest/{}", image.digest);
            let reply = client.get(&path).send().await;
            if had.iter().any(|had| had.digest == image.digest) {
                is_manifest(&reply.expect(&path, 200), image);
            } else {
                reply.expect(&path, 404).error("MANIFEST_UNKNOWN");
            }
        }
    }
    for image in [&first, &second, &third] {
        let path = format!("/v2/{NAME}/manifests/latest/{}", image.digest);
        is_manifest(&client.get(&path).expect(200).await, image);
    }
    // Another tag's revision.
    let path = format!("/v2/asof-20261122t0500z/{NAME}/manifests/newer/{}", first.digest);
    client.get(&path).expect(404).await;
    fake.since(mark).expect_none("the past is here");
    world.finish().await;
}

/// A world in which joe's credential pulled an image an hour ago, and the name of its past.
async fn behind_a_credential(settings: &str, public: bool) -> (Fake, World, Image) {
    let fake = Fake::start().await;
    let image = Image::single("behind a credential");
    fake.push(NAME, "latest", &image);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
        auth.users = vec![("joe".to_owned(), "pass-of-joe".to_owned())];
    });
    if !public {
        fake.private(NAME, &["joe"]);
    }
    let settings = format!("username = \"joe\"\npassword = \"pass-of-joe\"\n{settings}");
    let world = World::builder().upstream_with("docker.io", &fake, &settings).start().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    world.advance(HOUR);
    (fake, world, image)
}

/// The past of the image, by tag, by digest, by tag and digest, and a blob of it.
fn past(image: &Image) -> [String; 4] {
    let base = format!("/v2/asof-20261122t0010z/{NAME}");
    [
        format!("{base}/manifests/latest"),
        format!("{base}/manifests/{}", image.digest),
        format!("{base}/manifests/latest/{}", image.digest),
        format!("{base}/blobs/{}", image.blobs[1].digest),
    ]
}

#[tokio::test]
async fn what_a_credential_opened_is_asked_for_once_a_day_and_closed_when_upstream_closes_it() {
    let (fake, world, image) = behind_a_credential("private = \"shared\"", false).await;
    let (client, mark) = (world.client(), fake.mark());
    for path in past(&image) {
        client.get(&path).send().await.expect(&path, 200);
    }
    fake.since(mark).expect_none("the proof is not a day old");
    world.advance(25 * HOUR);
    for path in past(&image) {
        client.get(&path).send().await.expect("still joe's", 200);
    }
    assert!(!fake.since(mark).is_empty(), "upstream was asked again");
    assert_eq!(fake.blob_bytes(&image.blobs[1].digest), image.blobs[1].len(), "not for bytes");
    let mark = fake.mark();
    for path in past(&image) {
        client.get(&path).send().await.expect("renewed", 200);
    }
    fake.since(mark).expect_none("once a day is enough");

    fake.private(NAME, &["somebody else"]);
    fake.expire_tokens();
    world.advance(25 * HOUR);
    for path in past(&image) {
        let reply = client.get(&path).send().await;
        assert!([403, 404].contains(&reply.status), "{path}: {reply:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn an_outage_bridges_the_past_of_a_credential_for_its_grace() {
    let (fake, world, image) = behind_a_credential("private = \"shared\"", false).await;
    fake.stop().await;
    world.advance(48 * HOUR);
    for path in past(&image) {
        world.client().get(&path).send().await.expect("an outage closes nothing", 200);
    }
    world.finish().await;

    let (fake, world, image) = behind_a_credential("private = \"shared\"", false).await;
    fake.auth(|auth| auth.users = vec![("joe".to_owned(), "changed".to_owned())]);
    fake.expire_tokens();
    world.advance(60 * HOUR);
    for path in past(&image) {
        let status = world.client().get(&path).send().await.status;
        assert_ne!(status, 200, "{path}: a revoked credential opens nothing for ever");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_repository_that_was_public_and_is_not_has_no_public_past() {
    let (fake, mut world, image) = behind_a_credential("", true).await;
    for path in past(&image) {
        world.client().get(&path).send().await.expect("it is public", 200);
    }
    fake.private(NAME, &["joe"]);
    fake.expire_tokens();
    world.advance(25 * HOUR);
    for path in past(&image) {
        let reply = world.client().get(&path).send().await;
        // Of a blob it is said with the code that lets clients go on elsewhere.
        let status = if path.contains("/blobs/") { 404 } else { 403 };
        assert!(reply.text().contains("is not public"), "{path}: {reply:?}");
        reply.expect(&path, status);
    }
    let list = format!("/v2/asof-20261122t0010z/{NAME}/tags/list");
    world.client().get(&list).expect(403).await;
    // The verdict is kept, whoever cannot be asked.
    fake.stop().await;
    world.restart().await;
    world.client().get(&past(&image)[0]).expect(403).await;
    world.finish().await;
}

/// The tags that are listed as of a moment.
async fn tags(client: &Client, moment: &str) -> Vec<String> {
    let list = client.get(&format!("/v2/{moment}/{NAME}/tags/list")).expect(200).await.json();
    serde_json::from_value(list["tags"].clone()).expect("a list of tags")
}

#[tokio::test]
async fn a_tag_that_is_denied_since_then_is_not_given_as_it_was() {
    let (fake, mut world, [first, ..]) = moved_twice().await;
    let name = format!("asof-20261122t0100z/{NAME}");
    gives(&world.client(), &name, &first).await;
    let before = "asof-20261122t0459z";
    assert_eq!(tags(&world.client(), before).await, ["latest", "newer"]);
    let denial = fake.rule(When::manifest().about("latest"), Then::status(403));
    // Nobody knows of it yet.
    gives(&world.client(), &name, &first).await;
    world.client().manifest(NAME, "latest").expect(403).await;
    for _ in 0..2 {
        world.client().manifest(&name, "latest").expect(403).await.error("DENIED");
        // The other tag was there then as well.
        assert_eq!(tags(&world.client(), before).await, ["newer"]);
        world.restart().await;
    }
    // Another tag is not concerned.
    world.client().manifest(&format!("asof-20261122t0500z/{NAME}"), "newer").expect(200).await;
    fake.remove(&denial);
    let outage = fake.rule(When::any(), Then::status(500));
    let status = world.client().manifest(&name, "latest").send().await.status;
    assert!((500..=504).contains(&status), "an outage takes no denial back: {status}");
    fake.remove(&outage);
    world.advance(HOUR);
    // Upstream says something else, and with that the denial is over.
    gives(&world.client(), &name, &first).await;
    assert_eq!(tags(&world.client(), before).await, ["latest", "newer"]);
    let mark = fake.mark();
    gives(&world.client(), &name, &first).await;
    fake.since(mark).expect_none("it is over");
    world.finish().await;
}
