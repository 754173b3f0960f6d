//! Whole pulls: cold, warm, after a restart, with upstream gone; bytes and types unchanged; HEAD like GET.

use crate::support::client::Response;
use crate::support::content::{
    Blob, DOCKER_MANIFEST, Image, MIB, OCI_INDEX, OCI_MANIFEST, OCTET_STREAM, noise,
};
use crate::support::fake::{AcceptMode, Fake, Kind, Origin};
use crate::support::pull::{
    describes_blob, describes_manifest, is_blob, is_hit, is_manifest, pull, pull_by_head,
};
use crate::support::world::World;

pub(super) const NAME: &str = "team/app";

pub(super) async fn with(image: &Image) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let world = World::with(&fake).await;
    (fake, world)
}

#[tokio::test]
async fn a_never_seen_image_of_eleven_objects_costs_eleven_requests() {
    let image = Image::of_eleven_objects("eleven");
    let (fake, world) = with(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.log().content().expect(11, "one request for each object");
    let mark = fake.mark();
    pull(&world.client(), NAME, "latest", &image).await;
    pull_by_head(&world.client(), NAME, "latest", &image).await;
    fake.since(mark).expect_none("all of it is here");
    world.finish().await;
}

#[tokio::test]
async fn a_pull_that_begins_with_head_costs_no_more() {
    let image = Image::of_eleven_objects("by head");
    let (fake, world) = with(&image).await;
    pull_by_head(&world.client(), NAME, "latest", &image).await;
    fake.log().content().expect(11, "one request for each object");
    world.finish().await;
}

#[tokio::test]
async fn containerd_names_the_registry_on_every_request() {
    let image = Image::index("containerd");
    let (fake, world) = with(&image).await;
    let client = world.client().ns("docker.io").with("User-Agent", "containerd/1.6.20");
    pull_by_head(&client, NAME, "latest", &image).await;
    fake.stop().await;
    pull_by_head(&client, NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn with_tokens_and_redirects_a_cold_pull_still_costs_eleven_requests() {
    let image = Image::of_eleven_objects("profile");
    let fake = Fake::profile(crate::support::fake::Profile::Hub).await;
    fake.push("library/app", "latest", &image);
    let world = World::with(&fake).await;
    pull(&world.client(), "library/app", "latest", &image).await;
    fake.log().content().expect(11, "one request for each object");
    fake.log().of(Kind::Token).expect(1, "one token");
    fake.log().at(Origin::Cdn).expect(10, "one fetch for each blob");
    fake.log().at(Origin::Cdn).no_authorization();
    fake.log().no_referer_or_cookie();
    world.finish().await;
}

#[tokio::test]
async fn indexes_lists_artifacts_and_schema_1_pass_unchanged() {
    let subject = Image::single("subject");
    let images = [
        Image::index("index"),
        Image::docker_list("list"),
        Image::nested_index("nested"),
        Image::schema1("old"),
        Image::artifact("sbom", "application/vnd.example.sbom", &subject),
        Image::build("docker").docker().layers(2).finish(),
        Image::build("helm")
            .config(Blob::new("application/vnd.cncf.helm.config.v1+json", "{\"name\":\"chart\"}"))
            .layers(1)
            .finish(),
        Image::build("typed").layers(1).media_type("application/vnd.tomorrow.v9+json").finish(),
    ];
    let fake = Fake::start().await;
    for (n, image) in images.iter().enumerate() {
        fake.push(&format!("kinds/k{n}"), "latest", image);
    }
    let mut world = World::with(&fake).await;
    for _round in 0..2 {
        for (n, image) in images.iter().enumerate() {
            pull(&world.client(), &format!("kinds/k{n}"), "latest", image).await;
            pull_by_head(&world.client(), &format!("kinds/k{n}"), "latest", image).await;
        }
        fake.stop().await;
        world.restart().await;
    }
    world.finish().await;
}

#[tokio::test]
async fn sha512_is_a_digest_like_any_other() {
    let blob = Blob::sha512(OCTET_STREAM, noise("long digest", 5000));
    let image = Image::build("sha512").layer(blob.clone()).sha512().finish();
    let (fake, world) = with(&image).await;
    let client = world.client();
    for _round in 0..2 {
        let reply = client.manifest(NAME, &image.digest).expect(200).await;
        is_manifest(&reply, &image);
        is_blob(&client.blob(NAME, &blob.digest).expect(200).await, &blob);
    }
    fake.log().content().expect(2, "manifest and blob once each");
    world.finish().await;
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let image = Image::build("empty").layer(Blob::empty()).finish();
    for manifest_first in [true, false] {
        let (fake, world) = with(&image).await;
        if manifest_first {
            world.client().manifest(NAME, "latest").expect(200).await;
        }
        for _round in 0..2 {
            let reply = world.client().blob(NAME, &Blob::empty().digest).expect(200).await;
            is_blob(&reply, &Blob::empty());
        }
        assert!(fake.log().content().gets().of(Kind::Blob).len() <= 1);
        world.finish().await;
    }
}

#[tokio::test]
async fn a_cold_head_of_an_empty_blob_tells_its_size() {
    let image = Image::build("empty").layer(Blob::empty()).finish();
    for manifest_first in [true, false] {
        let (_fake, world) = with(&image).await;
        if manifest_first {
            world.client().manifest(NAME, "latest").expect(200).await;
        }
        let head = world.client().blob_head(NAME, &Blob::empty().digest).expect(200).await;
        describes_blob(&head, &Blob::empty());
        world.finish().await;
    }
}

#[tokio::test]
async fn a_manifest_may_have_8_mib_and_not_a_byte_more() {
    let fake = Fake::start().await;
    let fits = Image::build("fits").layers(1).size(8 * MIB).finish();
    let over = Image::build("over").layers(1).size(8 * MIB + 1).finish();
    fake.push(NAME, "fits", &fits);
    fake.push(NAME, "over", &over);
    let world = World::with(&fake).await;
    is_manifest(&world.client().manifest(NAME, "fits").expect(200).await, &fits);
    let reply = world.client().manifest(NAME, "over").send().await;
    assert!([502, 404].contains(&reply.status), "{} {}", reply.status, reply.text());
    assert!(!world.has_stored(&over.digest));
    world.finish().await;
}

/// All headers that must be the same whoever asks and however warm the cache is.
fn stable(reply: &Response) -> Vec<(String, String)> {
    let volatile = ["date", "cache-status", "x-request-id", "age"];
    let mut headers: Vec<_> = reply
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| !volatile.contains(&name.as_str()))
        .collect();
    headers.sort();
    headers
}

#[tokio::test]
async fn head_is_get_without_a_body_cold_and_warm() {
    let image = Image::single("heads");
    let blob = &image.blobs[1];
    let (_fake, world) = with(&image).await;
    let client = world.client();
    let cold_head = client.manifest_head(NAME, "latest").expect(200).await;
    let warm_head = client.manifest_head(NAME, "latest").expect(200).await;
    let warm = client.manifest(NAME, "latest").expect(200).await;
    let by_digest = client.manifest(NAME, &image.digest).expect(200).await;
    for reply in [&cold_head, &warm_head, &warm, &by_digest] {
        describes_manifest(reply, &image);
        assert_eq!(stable(reply), stable(&warm));
    }
    assert!(cold_head.body.is_empty() && warm_head.body.is_empty());
    let cold_head = client.blob_head(NAME, &blob.digest).expect(200).await;
    let cold = client.blob(NAME, &blob.digest).expect(200).await;
    let warm_head = client.blob_head(NAME, &blob.digest).expect(200).await;
    let warm = client.blob(NAME, &blob.digest).expect(200).await;
    for reply in [&cold_head, &cold, &warm_head, &warm] {
        describes_blob(reply, blob);
        assert_eq!(stable(reply), stable(&warm));
    }
    world.finish().await;
}

#[tokio::test]
async fn a_cold_head_of_a_blob_fetches_no_body() {
    let image = Image::build("cold head").layer(Blob::synthetic(11, 4 * MIB)).finish();
    let (fake, world) = with(&image).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let blob = &image.blobs[1];
    describes_blob(&world.client().blob_head(NAME, &blob.digest).expect(200).await, blob);
    assert_eq!(fake.blob_bytes(&blob.digest), 0);
    world.finish().await;
}

#[tokio::test]
async fn accept_never_turns_a_stored_manifest_into_a_404() {
    let index = Image::index("accept");
    let (fake, world) = with(&index).await;
    fake.switch(|switch| switch.accept = AcceptMode::NotFound);
    let client = world.client();
    for accept in [
        "",
        "*/*",
        OCI_MANIFEST,
        DOCKER_MANIFEST,
        "text/html",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    ] {
        let by_tag = client.manifest(NAME, "latest").header("Accept", accept);
        is_manifest(&by_tag.expect(200).await, &index);
        let by_digest = client.manifest(NAME, &index.digest).header("Accept", accept);
        is_manifest(&by_digest.expect(200).await, &index);
    }
    is_manifest(&client.manifest(NAME, "latest").expect(200).await, &index);
    fake.log().of(Kind::Manifest).expect(1, "one entry for all of them");
    let sent = fake.log().of(Kind::Manifest).0[0].header("accept").unwrap_or("").to_owned();
    assert!(sent.contains(OCI_INDEX) && sent.contains(DOCKER_MANIFEST), "{sent}");
    world.finish().await;
}

#[tokio::test]
async fn six_accept_lines_in_any_order_are_one_list() {
    let index = Image::index("lines");
    let (_fake, world) = with(&index).await;
    let types = [
        OCI_MANIFEST,
        DOCKER_MANIFEST,
        "application/vnd.docker.distribution.manifest.v1+json",
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ];
    let request = types
        .iter()
        .rev()
        .fold(world.client().manifest(NAME, "latest"), |r, kind| r.header("Accept", kind));
    is_manifest(&request.expect(200).await, &index);
    world.finish().await;
}

#[tokio::test]
async fn everything_pulls_again_after_a_restart_with_upstream_gone() {
    let images = [Image::index("offline"), Image::single("offline too")];
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &images[0]);
    fake.push("team/other", "v1", &images[1]);
    let mut world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &images[0]).await;
    pull(&world.client(), "team/other", "v1", &images[1]).await;
    fake.stop().await;
    for fresh_for in ["1h", "0s"] {
        world.restart_with(|builder| builder.fresh_for(fresh_for)).await;
        let client = world.client();
        pull(&client, NAME, "latest", &images[0]).await;
        pull_by_head(&client, NAME, "latest", &images[0]).await;
        pull(&client, "team/other", "v1", &images[1]).await;
        let blob = images[1].blobs.first().expect("an image has a config");
        describes_blob(&client.blob_head("team/other", &blob.digest).expect(200).await, blob);
    }
    world.finish().await;
}

#[tokio::test]
async fn offline_mode_asks_nobody() {
    let image = Image::single("offline mode");
    let (fake, mut world) = with(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.restart_with(|builder| builder.set("offline", "true").fresh_for("0s")).await;
    let mark = fake.mark();
    let client = world.client();
    pull(&client, NAME, "latest", &image).await;
    for path in [
        format!("/v2/{NAME}/manifests/other"),
        format!("/v2/{NAME}/blobs/{}", Blob::layer("unknown", 1).digest),
        "/v2/no/such/manifests/latest".to_owned(),
    ] {
        let reply = client.get(&path).expect(404).await;
        assert!(reply.text().contains("offline, not cached"), "{}", reply.text());
    }
    fake.since(mark).expect_none("nobody is asked");
    world.finish().await;
}

#[tokio::test]
async fn a_manifest_digest_is_no_blob() {
    let image = Image::single("no blob");
    let (_fake, world) = with(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.client().blob(NAME, &image.digest).expect(404).await.error("BLOB_UNKNOWN");
    world.client().blob_head(NAME, &image.digest).expect(404).await;
    world.finish().await;
}

#[tokio::test]
async fn a_tag_and_its_revision_address_one_manifest() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let (fake, world) = with(&old).await;
    let world = {
        pull(&world.client(), NAME, "latest", &old).await;
        let mut world = world;
        world.restart_with(|builder| builder.fresh_for("0s")).await;
        world
    };
    fake.push(NAME, "latest", &new);
    pull(&world.client(), NAME, "latest", &new).await;
    for image in [&old, &new] {
        let path = format!("/v2/{NAME}/manifests/latest/{}", image.digest);
        is_manifest(&world.client().get(&path).expect(200).await, image);
    }
    let other = format!("/v2/{NAME}/manifests/v2/{}", old.digest);
    world.client().get(&other).expect(404).await.error("MANIFEST_UNKNOWN");
    world.finish().await;
}

#[tokio::test]
async fn a_foreign_layer_is_not_our_business() {
    let foreign = Blob::layer("windows", 4000).foreign("http://127.0.0.1:9/layer");
    let image = Image::build("windows").layers(1).layer(foreign.clone()).finish();
    let (_fake, world) = with(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.client().blob(NAME, &foreign.digest).expect(404).await.error("BLOB_UNKNOWN");
    world.finish().await;
}

#[tokio::test]
async fn two_repositories_share_bytes_on_disk() {
    let image = Image::single("shared");
    let (fake, world) = with(&image).await;
    fake.push("team/copy", "latest", &image);
    pull(&world.client(), NAME, "latest", &image).await;
    pull(&world.client(), "team/copy", "latest", &image).await;
    for blob in &image.blobs {
        assert_eq!(fake.blob_bytes(&blob.digest), blob.len(), "fetched once");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_warm_answer_says_so() {
    let image = Image::single("says so");
    let (_fake, world) = with(&image).await;
    let client = world.client();
    let cold = client.manifest(NAME, "latest").expect(200).await;
    assert!(cold.must("Cache-Status").contains("fwd="), "{cold:?}");
    is_hit(&client.manifest(NAME, "latest").expect(200).await);
    is_hit(&client.manifest(NAME, &image.digest).expect(200).await);
    let blob = &image.blobs[1].digest;
    let cold = client.blob(NAME, blob).expect(200).await;
    assert!(cold.must("Cache-Status").contains("fwd="), "{cold:?}");
    world.downloads_over().await;
    is_hit(&client.blob(NAME, blob).expect(200).await);
    assert_eq!(client.blob(NAME, blob).expect(200).await.header("Warning"), None);
    world.finish().await;
}
