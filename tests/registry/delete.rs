//! DELETE on the data plane: off unless the operator allows it, and then a tag, a revision of a tag, or a revision leaves what is here.

use std::time::Duration;

use crate::support::client::Response;
use crate::support::content::Image;
use crate::support::fake::{Fake, Then, When};
use crate::support::gate::within;
use crate::support::pull::{is_hit, is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const ALLOWED: &str = "allow_delete = true";

/// A world in which `image` was pulled, and is answered out of memory.
async fn pulled(image: &Image, settings: &str) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let world = World::builder()
        .upstream_with("docker.io", &fake, settings)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .start()
        .await;
    pull(&world.client(), NAME, "latest", image).await;
    world.downloads_over().await;
    for reference in ["latest", &image.digest] {
        is_hit(&world.client().manifest(NAME, reference).expect(200).await);
    }
    (fake, world)
}

async fn delete(world: &World, reference: &str) -> Response {
    let path = format!("/v2/{NAME}/manifests/{reference}");
    world.client().request("DELETE", &path).send().await
}

async fn is_deleted(world: &World, reference: &str) {
    let reply = delete(world, reference).await.expect(reference, 202);
    assert!(reply.body.is_empty());
    assert_eq!(reply.must("Content-Length"), "0");
    assert_eq!(reply.header("Cache-Status"), None);
}

/// What is asked for now is not what was here: the answer of a fake that has nothing.
async fn is_gone(world: &World, reference: &str) {
    world.client().manifest(NAME, reference).expect(404).await.error("MANIFEST_UNKNOWN");
}

async fn rule(world: &World, method: &str, path: &str) {
    let request = world.admin().request(method, &format!("/api/v1{path}"));
    request.send().await.expect(path, 200);
}

#[tokio::test]
async fn nobody_deletes_unless_the_operator_allows_it() {
    let image = Image::single("not allowed");
    let (fake, world) = pulled(&image, "").await;
    let mark = fake.mark();
    for reference in ["latest".to_owned(), image.digest.clone(), format!("latest/{}", image.digest)]
    {
        let reply = delete(&world, &reference).await.expect(&reference, 405);
        assert_eq!(reply.must("Allow"), "GET, HEAD");
        let message = reply.error("UNSUPPORTED");
        assert!(message.contains("allow_delete = true"), "{message}");
        assert!(message.contains("[upstream.\"docker.io\"]"), "{message}");
    }
    is_hit(&world.client().manifest(NAME, "latest").expect(200).await);
    fake.since(mark).expect_none("nothing of it goes upstream");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_goes_and_its_revision_stays_for_the_grace_time() {
    let image = Image::index("tag goes");
    let (fake, world) = pulled(&image, ALLOWED).await;
    fake.delete_repository(NAME);
    let mark = fake.mark();
    is_deleted(&world, "latest").await;
    fake.since(mark).expect_none("nothing of it goes upstream");
    is_gone(&world, "latest").await;
    is_manifest(&world.client().manifest(NAME, &image.digest).expect(200).await, &image);
    delete(&world, "latest").await.expect("a second time", 404).error("MANIFEST_UNKNOWN");
    world.finish().await;
}

#[tokio::test]
async fn a_revision_goes_with_the_tags_that_point_at_it() {
    let image = Image::single("revision goes");
    let (fake, world) = pulled(&image, ALLOWED).await;
    fake.delete_repository(NAME);
    is_deleted(&world, &image.digest).await;
    is_gone(&world, "latest").await;
    is_gone(&world, &image.digest).await;
    delete(&world, &image.digest).await.expect("a second time", 404).error("MANIFEST_UNKNOWN");
    world.finish().await;
}

#[tokio::test]
async fn one_revision_of_a_tag_goes() {
    let (old, new) = (Image::single("link old"), Image::single("link new"));
    let (fake, world) = pulled(&old, ALLOWED).await;
    world.advance(Duration::from_secs(2 * 3600));
    fake.push(NAME, "latest", &new);
    pull(&world.client(), NAME, "latest", &new).await;
    let (of_old, of_new) = (format!("latest/{}", old.digest), format!("latest/{}", new.digest));
    let never = format!("latest/{}", Image::single("never").digest);
    delete(&world, &never).await.expect("never its own", 404).error("MANIFEST_UNKNOWN");
    is_deleted(&world, &of_old).await;
    is_gone(&world, &of_old).await;
    is_manifest(&world.client().manifest(NAME, "latest").expect(200).await, &new);
    fake.delete_repository(NAME);
    is_deleted(&world, &of_new).await;
    is_gone(&world, "latest").await;
    world.finish().await;
}

#[tokio::test]
async fn what_is_kept_is_not_deleted() {
    let image = Image::index("kept");
    let (_fake, world) = pulled(&image, ALLOWED).await;
    let refused = async |reference: &str| {
        delete(&world, reference).await.expect(reference, 403).error("DENIED")
    };
    // The index needs it.
    let message = refused(&image.children[0].digest).await;
    assert!(message.contains(&image.digest) && message.contains("latest"), "{message}");
    for (kind, words) in [("pins", ["pin", "pinned"]), ("freezes", ["freeze", "frozen"])] {
        let path = format!("/{kind}?scope=docker.io/team/app:latest");
        rule(&world, "POST", &path).await;
        let of_tag = format!("latest/{}", image.digest);
        for reference in ["latest", &image.digest, &of_tag] {
            let message = refused(reference).await;
            assert!(words.iter().any(|word| message.contains(word)), "{reference}: {message}");
        }
        is_manifest(&world.client().manifest(NAME, "latest").expect(200).await, &image);
        rule(&world, "DELETE", &path).await;
    }
    is_deleted(&world, "latest").await;
    world.finish().await;
}

#[tokio::test]
async fn blobs_and_everything_else_stay_405() {
    let image = Image::single("blobs stay");
    let (_fake, world) = pulled(&image, ALLOWED).await;
    let blob = &image.blobs[0].digest;
    for path in [
        format!("/v2/{NAME}/blobs/{blob}"),
        format!("/v2/{NAME}/referrers/{}", image.digest),
        format!("/v2/{NAME}/tags/list"),
        format!("/v2/{NAME}/manifests/sha256:00"),
        "/v2/".to_owned(),
        "/v2/_catalog".to_owned(),
        "/livez".to_owned(),
    ] {
        let reply = world.client().request("DELETE", &path).expect(405).await;
        reply.error("UNSUPPORTED");
    }
    world.client().blob(NAME, blob).expect(200).await;
    world.finish().await;
}

#[tokio::test]
async fn only_who_may_pull_may_delete() {
    let image = Image::single("who may");
    let (fake, mut world) = pulled(&image, ALLOWED).await;
    // A rule against the repository is one against its deletion.
    let denied = format!("{ALLOWED}\ndeny = [\"team/*\"]");
    let reload = |builder: crate::support::world::WorldBuilder, settings: &str| {
        builder.upstream_with("docker.io", &fake, settings)
    };
    world.reload_with(|builder| reload(builder, &denied)).expect("it is legal");
    delete(&world, "latest").await.expect("denied", 403).error("DENIED");
    world.reload_with(|builder| reload(builder, "")).expect("it is legal");
    delete(&world, "latest").await.expect("off again", 405).error("UNSUPPORTED");
    world
        .restart_with(|builder| reload(builder, ALLOWED).set("clients", "[\"192.0.2.0/24\"]"))
        .await;
    delete(&world, "latest").await.expect("not of the clients", 403).error("DENIED");
    world.restart_with(|builder| builder.unset("clients")).await;
    is_deleted(&world, "latest").await;
    world.finish().await;
}

#[tokio::test]
async fn an_outage_stops_no_deletion_and_a_body_is_never_read() {
    let image = Image::single("outage");
    let (fake, world) = pulled(&image, ALLOWED).await;
    fake.rule(When::any(), Then::status(500));
    let path = format!("/v2/{NAME}/manifests/latest");
    let reply = world.client().request("DELETE", &path).body("{}").expect(202).await;
    assert_eq!(reply.must("Connection"), "close");
    world.finish().await;
}

#[tokio::test]
async fn a_deletion_leaves_a_line_and_is_counted() {
    let image = Image::single("line");
    let (_fake, world) = pulled(&image, ALLOWED).await;
    let id = delete(&world, "latest").await.expect("deleted", 202).must("X-Request-Id").to_owned();
    let line = within("the access line", async {
        loop {
            let lines = world.log_lines();
            if let Some(line) =
                lines.into_iter().find(|line| line.contains(&format!("id=\"{id}\"")))
            {
                return line;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    for field in
        ["method=DELETE", "kind=\"manifest\"", "status=202", "outcome=\"deleted\"", "latest"]
    {
        assert!(line.contains(field), "{field}: {line}");
    }
    let labels = [("outcome", "deleted"), ("kind", "manifest"), ("status", "202")];
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("roadstead_requests_total", &labels), 1.0);
    world.finish().await;
}
