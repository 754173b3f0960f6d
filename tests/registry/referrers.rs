//! Referrers: proxied, with the tag-schema fallback, and never an answer that breaks a pull.

use std::time::Duration;

use serde_json::json;

use crate::support::client::Response;
use crate::support::content::{Image, OCI_INDEX, fallback_tag};
use crate::support::fake::{Edit, Fake, Kind, Origin, ReferrersMode, Then, When};
use crate::support::pull::{is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const SBOM: &str = "application/vnd.example.sbom";
/// Longer than an absent tag is remembered.
const ABSENT_FOR: Duration = Duration::from_secs(6);
const SIGNATURE: &str = "application/vnd.example.signature";

struct Scene {
    fake: Fake,
    world: World,
    image: Image,
    sbom: Image,
    signature: Image,
}

impl Scene {
    async fn new() -> Self {
        let fake = Fake::start().await;
        let image = Image::single("subject");
        let sbom = Image::artifact("sbom", SBOM, &image);
        let signature = Image::artifact("signature", SIGNATURE, &image);
        fake.push(NAME, "latest", &image);
        fake.push_untagged(NAME, &sbom);
        fake.push_untagged(NAME, &signature);
        let world = World::builder().upstream("docker.io", &fake).fresh_for("0s").start().await;
        Self { fake, world, image, sbom, signature }
    }

    fn path(&self) -> String {
        format!("/v2/{NAME}/referrers/{}", self.image.digest)
    }

    async fn get(&self) -> Response {
        self.world.client().get(&self.path()).send().await
    }

    async fn filtered(&self) -> Response {
        let path = format!("{}?artifactType={}", self.path(), SBOM.replace('/', "%2F"));
        self.world.client().get(&path).send().await
    }

    /// The referrers as the tag schema keeps them.
    fn push_fallback(&self) {
        let manifests = [self.sbom.descriptor(), self.signature.descriptor()];
        let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let children = vec![self.sbom.clone(), self.signature.clone()];
        let index = Image::from_bytes(OCI_INDEX, document.to_string(), Vec::new(), children);
        self.fake.push(NAME, &fallback_tag(&self.image.digest), &index);
    }
}

/// The digests that an index of referrers names.
fn listed(reply: &Response) -> Vec<String> {
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.must("Content-Type"), OCI_INDEX, "exactly this type, no charset");
    let document = reply.json();
    assert_eq!(document["schemaVersion"], 2);
    let list = document["manifests"].as_array().expect("an index has manifests");
    list.iter().map(|one| one["digest"].as_str().expect("a digest").to_owned()).collect()
}

#[tokio::test]
async fn they_are_proxied() {
    let scene = Scene::new().await;
    let reply = scene.get().await;
    assert_eq!(listed(&reply), [scene.sbom.digest.clone(), scene.signature.digest.clone()]);
    assert_eq!(reply.header("OCI-Filters-Applied"), None);
    let head = scene.world.client().head(&scene.path()).expect(200).await;
    assert_eq!(head.must("Content-Length"), reply.body.len().to_string());
    pull(&scene.world.client(), NAME, &scene.sbom.digest, &scene.sbom).await;
    scene.world.finish().await;
}

#[tokio::test]
async fn the_filter_is_applied_whether_upstream_can_or_not() {
    for mode in [ReferrersMode::Index, ReferrersMode::Filtering] {
        let scene = Scene::new().await;
        scene.fake.switch(|switch| switch.referrers = mode);
        let reply = scene.filtered().await;
        assert_eq!(listed(&reply), [scene.sbom.digest.as_str()], "{mode:?}");
        assert_eq!(reply.must("OCI-Filters-Applied"), "artifactType");
        assert_eq!(listed(&scene.get().await).len(), 2, "a filtered list is not remembered as all");
        scene.world.finish().await;
    }
}

#[tokio::test]
async fn none_is_an_empty_index() {
    let scene = Scene::new().await;
    let path = format!("/v2/{NAME}/referrers/{}", Image::single("nobody").digest);
    let reply = scene.world.client().get(&path).expect(200).await;
    assert_eq!(listed(&reply), Vec::<String>::new());
    scene.world.finish().await;
}

#[tokio::test]
async fn where_the_api_is_missing_the_tag_schema_is_used() {
    for mode in [
        ReferrersMode::Status(404),
        ReferrersMode::Status(400),
        ReferrersMode::Status(405),
        ReferrersMode::Status(406),
        ReferrersMode::RedirectForeign,
        ReferrersMode::Html,
        ReferrersMode::WrongType,
    ] {
        let scene = Scene::new().await;
        scene.fake.switch(|switch| switch.referrers = mode);
        assert_eq!(listed(&scene.get().await), Vec::<String>::new(), "{mode:?} without a tag");
        scene.push_fallback();
        scene.world.advance(ABSENT_FOR);
        let all = listed(&scene.get().await);
        assert_eq!(all, [scene.sbom.digest.clone(), scene.signature.digest.clone()], "{mode:?}");
        let reply = scene.filtered().await;
        assert_eq!(listed(&reply), [scene.sbom.digest.as_str()], "{mode:?}");
        assert_eq!(reply.must("OCI-Filters-Applied"), "artifactType");
        scene.fake.log().at(Origin::Foreign).expect_none("a foreign redirect is not followed");
        scene.world.finish().await;
    }
}

#[tokio::test]
async fn the_fallback_tag_itself_is_proxied_truly() {
    let scene = Scene::new().await;
    let tag = fallback_tag(&scene.image.digest);
    let client = scene.world.client();
    client.manifest(NAME, &tag).expect(404).await.error("MANIFEST_UNKNOWN");
    scene.push_fallback();
    scene.world.advance(ABSENT_FOR);
    client.manifest(NAME, &tag).expect(200).await;
    let cosign = Image::single("cosign");
    scene.fake.push(NAME, &format!("{tag}.sig"), &cosign);
    is_manifest(&client.manifest(NAME, &format!("{tag}.sig")).expect(200).await, &cosign);
    scene.world.finish().await;
}

#[tokio::test]
async fn when_upstream_is_in_trouble_it_is_404_and_never_an_empty_index() {
    for trouble in [
        Then::status(500),
        Then::status(503),
        Then::limited(Some("60")),
        Then::Drop { reset: false },
        Then::status(401),
        Then::status(403),
    ] {
        let what = format!("{trouble:?}");
        let scene = Scene::new().await;
        pull(&scene.world.client(), NAME, "latest", &scene.image).await;
        scene.fake.rule(When::any(), trouble);
        let reply = scene.get().await;
        assert_eq!(reply.status, 404, "{what}: {reply:?}");
        assert!(reply.must("Content-Type").starts_with("application/json"));
        let tag = fallback_tag(&scene.image.digest);
        let reply = scene.world.client().manifest(NAME, &tag).send().await;
        assert_eq!(reply.status, 404, "{what}, the tag: {reply:?}");
        scene.world.finish().await;
    }
}

#[tokio::test]
async fn when_upstream_is_gone_the_last_good_index_is_kept() {
    let mut scene = Scene::new().await;
    let all = listed(&scene.get().await);
    pull(&scene.world.client(), NAME, &scene.sbom.digest, &scene.sbom).await;
    scene.fake.stop().await;
    scene.world.restart().await;
    assert_eq!(listed(&scene.get().await), all);
    assert_eq!(listed(&scene.filtered().await), [scene.sbom.digest.as_str()]);
    pull(&scene.world.client(), NAME, &scene.sbom.digest, &scene.sbom).await;
    let other = format!("/v2/{NAME}/referrers/{}", Image::single("nobody").digest);
    scene.world.client().get(&other).expect(404).await;
    scene.world.finish().await;
}

#[tokio::test]
async fn a_slow_upstream_is_404_soon() {
    let scene = Scene::new().await;
    scene.fake.rule(When::kind(Kind::Referrers), Then::Hang);
    scene.fake.rule(When::manifest().about(&fallback_tag(&scene.image.digest)), Then::Hang);
    let before = tokio::time::Instant::now();
    let reply = scene.get().await;
    assert_eq!(reply.status, 404, "{reply:?}");
    assert!(before.elapsed().as_secs() < 8, "took {:?}", before.elapsed());
    scene.world.finish().await;
}

#[tokio::test]
async fn an_index_that_is_none_is_not_passed_on() {
    for body in ["", "[]", "null", "{\"manifests\":7}", "<html>"] {
        let scene = Scene::new().await;
        let junk = Then::edit(Edit::Body(body.into()));
        scene.fake.rule(When::kind(Kind::Referrers), junk);
        let reply = scene.get().await;
        assert!([200, 404].contains(&reply.status), "{body:?}: {reply:?}");
        if reply.status == 200 {
            assert_eq!(listed(&reply), Vec::<String>::new());
        }
        scene.world.finish().await;
    }
}

#[tokio::test]
async fn bad_digests_are_refused_and_absent_repositories_are_404() {
    let scene = Scene::new().await;
    let client = scene.world.client();
    client.get(&format!("/v2/{NAME}/referrers/latest")).expect(400).await.error("DIGEST_INVALID");
    client.get(&format!("/v2/{NAME}/referrers/sha256:12")).expect(400).await;
    let path = format!("/v2/no/such/referrers/{}", scene.image.digest);
    let status = client.get(&path).send().await.status;
    assert!([200, 404].contains(&status), "{status}");
    scene.world.finish().await;
}

#[tokio::test]
async fn an_empty_index_is_not_kept_over_an_outage() {
    let scene = Scene::new().await;
    let path = format!("/v2/{NAME}/referrers/{}", Image::single("nobody").digest);
    let client = scene.world.client();
    assert!(listed(&client.get(&path).expect(200).await).is_empty());
    scene.fake.stop().await;
    let reply = client.get(&path).expect(404).await;
    reply.error("MANIFEST_UNKNOWN");
    scene.world.finish().await;
}
