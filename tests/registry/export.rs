//! Writing images out as a bundle: what is in it, byte for byte, what refuses it, and what becomes of content meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::client::{End, Request, Response};
use crate::support::content::{Blob, Image, MIB, OCI_EMPTY, fallback_tag, sha256, to_u64};
use crate::support::fake::Fake;
use crate::support::gate::within;
use crate::support::product::set_of;
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const FULL: &str = "docker.io/team/app";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const SIGNATURE: &str = "application/vnd.example.signature";
const DAY: Duration = Duration::from_secs(25 * 3600);

fn builder(fake: &Fake) -> WorldBuilder {
    World::builder()
        .upstream("docker.io", fake)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .set("max_unused", "\"2h\"")
        .fresh_for("1000h")
}

async fn pulled(tags: &[(&str, &Image)]) -> (Fake, World) {
    let fake = Fake::start().await;
    for (tag, image) in tags {
        fake.push(NAME, tag, image);
    }
    let world = builder(&fake).start().await;
    for (tag, image) in tags {
        pull(&world.client(), NAME, tag, image).await;
    }
    world.downloads_over().await;
    (fake, world)
}

fn export(world: &World, order: &Value) -> Request {
    world.admin().request("POST", "/api/v1/export").body(order.to_string())
}

async fn plan(world: &World, order: &Value) -> Value {
    let request = world.admin().request("POST", "/api/v1/export?plan=true");
    request.body(order.to_string()).expect(200).await.json()
}

async fn refused(world: &World, order: &Value, status: u16) -> Value {
    for path in ["/api/v1/export?plan=true", "/api/v1/export"] {
        let reply = world.admin().request("POST", path).body(order.to_string()).send().await;
        let error = reply.expect(path, status).json()["error"].clone();
        if path == "/api/v1/export" {
            return error;
        }
    }
    unreachable!("the last path answers")
}

/// A bundle, read as any reader of tars reads it.
struct Bundle {
    bytes: Bytes,
    /// In the order of the tar.
    files: Vec<(String, Vec<u8>)>,
}

impl Bundle {
    async fn of(world: &World, order: &Value) -> Self {
        let planned = plan(world, order).await;
        let reply = export(world, order).expect(200).await;
        assert_eq!(reply.must("Content-Type"), "application/x-tar");
        let bundle = Self::read(&reply);
        assert_eq!(planned["bytes"], to_u64(bundle.bytes.len()), "the size is told before");
        assert_eq!(planned["objects"], to_u64(bundle.blobs().count()));
        bundle
    }

    /// Every blob has the digest of its name.
    fn read(reply: &Response) -> Self {
        assert_eq!(reply.must("Content-Length"), reply.body.len().to_string());
        let mut archive = tar::Archive::new(&reply.body[..]);
        let mut files = Vec::new();
        for entry in archive.entries().expect("it is a tar") {
            let mut entry = entry.expect("it is whole");
            let path = entry.path().expect("it has a name").to_str().expect("plain").to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("it is whole");
            files.push((path, content));
        }
        let bundle = Self { bytes: reply.body.clone(), files };
        for (hex, content) in bundle.blobs() {
            assert_eq!(sha256(content), format!("sha256:{hex}"));
        }
        bundle
    }

    fn blobs(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let files = self.files.iter();
        files
            .filter_map(|(path, content)| Some((path.strip_prefix("blobs/sha256/")?, &content[..])))
    }

    fn has(&self, digest: &str) -> bool {
        self.blobs().any(|(hex, _)| digest == format!("sha256:{hex}"))
    }

    fn has_all(&self, image: &Image) -> bool {
        let manifests = image.manifests().into_iter().map(|image| &image.digest);
        let blobs = image.all_blobs().into_iter().map(|blob| &blob.digest);
        manifests.chain(blobs).all(|digest| self.has(digest))
    }

    fn document(&self, name: &str) -> Option<Value> {
        let found = self.files.iter().find(|(path, _)| path == name)?;
        Some(serde_json::from_slice(&found.1).expect("it is JSON"))
    }

    /// The descriptors of the index: those with a name by it, and the digests of the others.
    fn index(&self) -> (BTreeMap<String, Value>, Vec<String>) {
        let index = self.document("index.json").expect("it has an index");
        let (mut named, mut others) = (BTreeMap::new(), Vec::new());
        for descriptor in index["manifests"].as_array().expect("a list") {
            let digest = descriptor["digest"].as_str().expect("a digest").to_owned();
            assert!(self.has(&digest), "{digest} is named and not in the bundle");
            match descriptor["annotations"][REF_NAME].as_str() {
                Some(name) => drop(named.insert(name.to_owned(), descriptor.clone())),
                None => others.push(digest),
            }
        }
        (named, others)
    }
}

#[tokio::test]
async fn the_same_content_gives_the_same_bytes() {
    let (one, two) = (Image::index("same one"), Image::single("same two"));
    let (fake, mut world) = pulled(&[("v1", &one), ("v2", &two), ("again", &two)]).await;
    let order = json!({ "images": ["team/app:v2", "team/app:v1", "team/app:again"] });
    let bundle = Bundle::of(&world, &order).await;
    assert!(bundle.has_all(&one) && bundle.has_all(&two));

    let names: Vec<&str> = bundle.files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    let manifests = one.manifests().len() + 1;
    assert!(names[3..3 + manifests].is_sorted() && names[3 + manifests..].is_sorted());
    let is_manifest = |name: &str| {
        let all = one.manifests().into_iter().chain([&two]);
        all.map(|image| image.digest.replace(':', "/")).any(|path| name.ends_with(&path))
    };
    assert!(names[3..3 + manifests].iter().all(|name| is_manifest(name)));
    let (named, others) = bundle.index();
    let wanted = ["again", "v1", "v2"].map(|tag| format!("{FULL}:{tag}"));
    assert_eq!(named.keys().cloned().collect::<Vec<_>>(), wanted);
    assert_eq!(others, [""; 0]);
    let v1 = &named[&wanted[1]];
    assert_eq!((&v1["digest"], &v1["mediaType"]), (&json!(one.digest), &json!(one.media_type)));
    assert_eq!(v1["annotations"]["io.containerd.image.name"], wanted[1]);
    assert_eq!(v1["annotations"]["dev.roadstead.since"], "2026-11-22T00:00:00Z");

    let again = json!({ "images": [format!("{FULL}:again"), format!("{FULL}:v1"), "team/app:v2", "team/app:v2"] });
    assert_eq!(Bundle::of(&world, &again).await.bytes, bundle.bytes);
    fake.stop().await;
    world.restart().await;
    world.advance(DAY);
    assert_eq!(Bundle::of(&world, &order).await.bytes, bundle.bytes);
    world.finish().await;

    let (_fake, other) = pulled(&[("again", &two), ("v1", &one), ("v2", &two)]).await;
    assert_eq!(Bundle::of(&other, &order).await.bytes, bundle.bytes);
    other.finish().await;
}

#[tokio::test]
async fn docker_finds_what_it_can_run() {
    let (single, chart) = (
        Image::build("docker single").docker().layers(2).finish(),
        Image::build("docker chart")
            .config(Blob::new("application/vnd.cncf.helm.config.v1+json", "{}"))
            .layer(Blob::new("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "chart"))
            .finish(),
    );
    let fake = Fake::start().await;
    fake.push("library/nginx", "1.27", &single);
    fake.push("library/nginx", "1", &single);
    fake.push(NAME, "chart", &chart);
    let world = builder(&fake).start().await;
    for (name, tag, image) in
        [("nginx", "1.27", &single), ("nginx", "1", &single), (NAME, "chart", &chart)]
    {
        pull(&world.client(), name, tag, image).await;
    }
    world.downloads_over().await;
    let order = json!({ "images": ["nginx:1.27", "nginx:1", "team/app:chart"] });
    let bundle = Bundle::of(&world, &order).await;
    let images = bundle.document("manifest.json").expect("it has a list for docker");
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let [config, layers @ ..] = &single.blobs[..] else { panic!("it has blobs") };
    let layers: Vec<String> = layers.iter().map(|layer| path(&layer.digest)).collect();
    let wanted = json!([{
        "Config": path(&config.digest), "RepoTags": ["nginx:1", "nginx:1.27"], "Layers": layers,
    }]);
    assert_eq!(images, wanted);
    let charts = Bundle::of(&world, &json!({ "images": ["team/app:chart"] })).await;
    assert_eq!(charts.document("manifest.json"), None, "docker runs no chart");
    assert!(charts.has_all(&chart));

    // By its digest alone it has no tag to give, and can be run all the same.
    let untagged = json!({ "images": [format!("nginx@{}", single.digest)] });
    let bundle = Bundle::of(&world, &untagged).await;
    let (named, _) = bundle.index();
    assert!(named.contains_key(&format!("docker.io/library/nginx@{}", single.digest)));
    let images = bundle.document("manifest.json").expect("it has a list for docker");
    assert_eq!(images[0]["RepoTags"], json!([]));
    world.finish().await;
}

#[tokio::test]
async fn what_refers_to_an_image_goes_with_it() {
    let image = Image::index("referred");
    let fake = Fake::start().await;
    let amd64 = &image.children[0];
    let signature = Image::artifact("signature", SIGNATURE, amd64);
    let of_signature = Image::artifact("of the signature", SIGNATURE, &signature);
    let elsewhere = Image::artifact("elsewhere", SIGNATURE, &Image::single("another image"));
    let unfetched = Image::artifact("unfetched", SIGNATURE, &image);
    let cosign = Image::build("cosign")
        .layer(Blob::new("application/vnd.dev.cosign.simplesigning.v1+json", "signed"))
        .finish();
    let cosign_tag = format!("{}.sig", fallback_tag(&image.digest));
    fake.push(NAME, "v1", &image);
    fake.push(NAME, &cosign_tag, &cosign);
    for one in [&signature, &of_signature, &elsewhere, &unfetched] {
        fake.push_untagged(NAME, one);
    }
    let world = builder(&fake).start().await;
    let client = world.client();
    pull(&client, NAME, "v1", &image).await;
    pull(&client, NAME, &cosign_tag, &cosign).await;
    for one in [&signature, &of_signature, &elsewhere] {
        pull(&client, NAME, &one.digest, one).await;
    }
    client.manifest(NAME, &unfetched.digest).expect(200).await;
    world.downloads_over().await;

    let bundle = Bundle::of(&world, &json!({ "images": ["team/app:v1"] })).await;
    for one in [&image, &signature, &of_signature, &cosign] {
        assert!(bundle.has_all(one), "{}", one.digest);
    }
    assert!(!bundle.has(&elsewhere.digest) && !bundle.has(&unfetched.digest));
    let (named, others) = bundle.index();
    let names: Vec<&String> = named.keys().collect();
    assert_eq!(names, [&format!("{FULL}:{cosign_tag}"), &format!("{FULL}:v1")]);
    let mut wanted = [signature.digest.clone(), of_signature.digest.clone()];
    wanted.sort();
    assert_eq!(others, wanted);
    let index = bundle.document("index.json").expect("it has an index");
    assert_eq!(index["manifests"][2]["artifactType"], SIGNATURE);

    let alone = json!({ "images": ["team/app:v1"], "without_referrers": true });
    let bundle = Bundle::of(&world, &alone).await;
    assert_eq!((bundle.index().0.len(), bundle.index().1.len()), (1, 0));
    assert!(!bundle.has(&signature.digest) && !bundle.has(&cosign.digest));
    assert!(bundle.has_all(amd64) && !bundle.has(&image.children[2].digest), "no attestation");
    world.finish().await;
}

/// Clients leave an index of nothing under the tag for referrers when the last one goes.
#[tokio::test]
async fn an_index_of_nothing_stands_in_no_bundles_way() {
    let (image, nothing) = (Image::index("carried"), Image::index_with(Vec::new()));
    let tag = fallback_tag(&image.digest);
    let (fake, world) = pulled(&[("v1", &image)]).await;
    fake.push(NAME, &tag, &nothing);
    world.client().manifest(NAME, &tag).expect(200).await;
    world.downloads_over().await;
    let bundle = Bundle::of(&world, &json!({ "images": ["team/app:v1"] })).await;
    assert!(bundle.has_all(&image) && !bundle.has(&nothing.digest));
    let alone = json!({ "images": [format!("team/app:{tag}")] });
    let error = refused(&world, &alone, 409).await;
    assert!(error.to_string().contains("lists no image"), "{error}");

    let elsewhere = builder(&fake).start().await;
    let taken = elsewhere.admin().request("POST", "/api/v1/import?set=carried");
    let taken = taken.body(bundle.bytes).expect(200).await;
    let last = taken.text().lines().last().expect("it tells its end").to_owned();
    assert!(last.contains("\"ended\"") && last.contains("\"failed\":0"), "{last}");
    world.finish().await;
    elsewhere.finish().await;
}

#[tokio::test]
async fn a_receipt_leaves_out_what_the_other_side_has() {
    let shared = Blob::layer("shared", 4000);
    let old = Image::build("old").layer(shared.clone()).layers(1).finish();
    let new = Image::build("new").layer(shared.clone()).layers(1).finish();
    let (_fake, world) = pulled(&[("old", &old), ("new", &new)]).await;
    let first = plan(&world, &json!({ "images": ["team/app:old"] })).await;
    let receipt = first["receipt"].as_array().expect("a receipt").clone();
    assert_eq!(receipt.len(), 1 + old.blobs.len());

    let order = json!({ "images": ["team/app:old", "team/app:new"], "base": receipt });
    let delta = Bundle::of(&world, &order).await;
    assert!(delta.has(&old.digest), "manifests are always in");
    assert!(delta.has_all(&Image { blobs: Vec::new(), ..new.clone() }));
    assert!(!delta.has(&shared.digest));
    assert!(old.blobs.iter().all(|blob| !delta.has(&blob.digest)));
    let own: Vec<_> = new.blobs.iter().filter(|blob| blob.digest != shared.digest).collect();
    assert!(!own.is_empty() && own.iter().all(|blob| delta.has(&blob.digest)));
    assert_eq!(delta.document("manifest.json"), None, "docker could load none of them");
    let planned = plan(&world, &order).await;
    assert_eq!(planned["left_out"], to_u64(old.blobs.len()));
    let all: Vec<&str> = planned["receipt"]
        .as_array()
        .expect("a receipt")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(all.is_sorted() && all.contains(&shared.digest.as_str()));
    assert_eq!(all.len(), 2 + old.blobs.len() + own.len());

    let strangers = json!({ "images": ["team/app:old"], "base": [sha256(b"never seen")] });
    let whole = Bundle::of(&world, &strangers).await;
    assert!(whole.has_all(&old) && whole.document("manifest.json").is_some());
    world.finish().await;
}

#[tokio::test]
async fn platforms_are_those_that_are_complete_or_those_that_were_named() {
    let image = Image::index("platforms");
    let fake = Fake::start().await;
    fake.push(NAME, "v1", &image);
    let world = builder(&fake).start().await;
    let client = world.client();
    let (amd64, arm64, proof) = (&image.children[0], &image.children[1], &image.children[2]);
    client.manifest(NAME, "v1").expect(200).await;
    world.downloads_over().await;
    let nothing = refused(&world, &json!({ "images": ["team/app:v1"] }), 409).await;
    assert_eq!(nothing["reason"], "incomplete");
    assert!(nothing.to_string().contains(&amd64.digest), "{nothing}");

    pull(&client, NAME, &amd64.digest, amd64).await;
    client.manifest(NAME, &arm64.digest).expect(200).await;
    world.downloads_over().await;
    let any = json!({ "images": ["team/app:v1"] });
    let bundle = Bundle::of(&world, &any).await;
    assert!(bundle.has(&image.digest) && bundle.has_all(amd64));
    assert!(!bundle.has(&arm64.digest) && !bundle.has(&proof.digest));
    let told = plan(&world, &any).await;
    assert_eq!(told["images"][0]["platforms"], json!(["linux/amd64"]));
    assert_eq!(told["images"][0]["image"], format!("{FULL}:v1"));

    for (platforms, state, what) in [
        (json!(["linux/arm64"]), "absent", &arm64.blobs[0].digest),
        (json!(["linux/amd64", "linux/arm64"]), "absent", &arm64.blobs[1].digest),
        (json!(["linux/s390x"]), "unknown", &"linux/s390x".to_owned()),
    ] {
        let order = json!({ "images": ["team/app:v1"], "platforms": platforms });
        let error = refused(&world, &order, 409).await;
        assert_eq!(error["reason"], "incomplete");
        let holds = error["holds"].as_array().expect("what is missing");
        assert!(
            holds.iter().any(|hold| hold["by"] == state
                && hold["what"].as_str().is_some_and(|text| text.contains(what))),
            "{error}"
        );
        assert!(!error.to_string().contains(&amd64.blobs[0].digest), "{error}");
    }

    pull(&client, NAME, &arm64.digest, arm64).await;
    pull(&client, NAME, &proof.digest, proof).await;
    world.downloads_over().await;
    let one = json!({ "images": ["team/app:v1"], "platforms": ["linux/arm64"] });
    let bundle = Bundle::of(&world, &one).await;
    assert!(bundle.has_all(arm64) && !bundle.has(&amd64.digest) && !bundle.has(&proof.digest));
    let bundle = Bundle::of(&world, &any).await;
    assert!(bundle.has_all(&image), "the attestation goes with what it is about");
    world.finish().await;
}

#[tokio::test]
async fn orders_that_cannot_be_met_are_refused_with_a_reason() {
    let image = Image::single("orders");
    let (_fake, world) = pulled(&[("v1", &image)]).await;
    for (order, status, reason) in [
        (json!({ "images": [] }), 400, "value"),
        (json!({}), 400, "value"),
        (json!({ "images": ["team/app:v1", "team/app:v9"] }), 404, "unknown_image"),
        (json!({ "images": ["quay.io/a/b:1"] }), 404, "unknown_registry"),
        (json!({ "images": ["Not/A:name"] }), 400, "image"),
        (json!({ "images": [format!("team/app:v1@{}", sha256(b"no"))] }), 404, "unknown_image"),
        (json!({ "images": ["team/app:v1"], "platforms": ["linux"] }), 400, "value"),
        (json!({ "images": ["team/app:v1"], "base": ["sha256:../.."] }), 400, "digest"),
        (json!({ "sets": ["nobody"] }), 404, "set"),
        (json!({ "images": ["team/app:v1"], "colour": "red" }), 400, "query"),
        (json!({ "images": "team/app:v1" }), 400, "query"),
    ] {
        let error = refused(&world, &order, status).await;
        assert_eq!(error["reason"], reason, "{order}");
    }
    let admin = world.admin();
    for text in ["", "{", "null", "\u{fffd}"] {
        admin.request("POST", "/api/v1/export").body(text.to_owned()).expect(400).await;
    }
    // By the tag and the digest together it keeps its tag.
    let exact = json!({ "images": [format!("team/app:v1@{}", image.digest)] });
    let (named, _) = Bundle::of(&world, &exact).await.index();
    assert!(named.contains_key(&format!("{FULL}:v1")), "{named:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_set_is_written_out_as_it_was_recorded() {
    let (old, new) = (Image::single("recorded"), Image::single("of today"));
    let (fake, world) = pulled(&[("v1", &old)]).await;
    set_of(&world.metadata(), "rollout", &[(FULL, "v1", &old.digest)]).await;
    let order = json!({ "sets": ["rollout"] });
    let before = Bundle::of(&world, &order).await;
    fake.push(NAME, "v1", &new);
    world.advance(Duration::from_secs(1));
    world.admin().request("POST", "/api/v1/refresh?image=team/app:v1").expect(200).await;
    pull(&world.client(), NAME, "v1", &new).await;
    world.downloads_over().await;
    let after = Bundle::of(&world, &order).await;
    assert_eq!(after.bytes, before.bytes);
    // Of two revisions under one tag the older is known by its digest.
    let both = json!({ "sets": ["rollout"], "images": ["team/app:v1"] });
    let (named, _) = Bundle::of(&world, &both).await.index();
    let of = |name: &str| named[&format!("{FULL}{name}")]["digest"].clone();
    assert_eq!(named.len(), 2);
    assert_eq!(of(&format!("@{}", old.digest)), old.digest);
    assert_eq!(of(":v1"), new.digest);
    world.finish().await;
}

/// What is stored after everything that may go has gone.
async fn swept(world: &World) -> u64 {
    world.admin().request("POST", "/api/v1/gc").expect(200).await;
    let usage = world.admin().get("/api/v1/usage").expect(200).await.json();
    usage["objects"].as_u64().expect("a number")
}

/// Large enough that it is not all on its way when the first byte arrives.
fn large(seed: u64) -> Image {
    Image::build(&format!("large {seed}")).layer(Blob::synthetic(seed, 64 * MIB)).finish()
}

#[tokio::test]
async fn what_is_being_written_out_does_not_go_and_goes_afterwards() {
    let image = large(61);
    let (fake, world) = pulled(&[("v1", &image)]).await;
    fake.stop().await;
    let tasks = world.idle_tasks().await;
    let order = json!({ "images": ["team/app:v1"] });
    let whole = export(&world, &order).expect(200).await;
    let mut slow = export(&world, &order).open().await;
    let begun = slow.take(1000).await;
    world.advance(DAY);
    assert_eq!(swept(&world).await, 3, "manifest, config and layer are in use");
    let rest = slow.rest().await;
    assert_eq!(begun.len() + rest.body.len(), whole.body.len());
    assert_eq!(rest.body, whole.body.slice(begun.len()..));
    world.tasks_at_most(tasks).await;
    world.advance(DAY);
    assert_eq!(swept(&world).await, 0, "nothing is in use any more");
    world.finish().await;
}

/// Who may have the image was asked when the bundle began: what becomes of its name and its rows meanwhile is no matter.
#[tokio::test]
async fn an_image_that_is_deleted_while_it_is_written_out_comes_whole() {
    let layer = Blob::synthetic(64, 24 * MIB);
    let image = Image::build("deleted meanwhile").layer(layer).finish();
    for (method, path) in [
        ("DELETE", format!("/api/v1/images?image={FULL}@{}&force=true", image.digest)),
        ("POST", format!("/api/v1/purge?within={FULL}&kind=repository")),
    ] {
        let (fake, world) = pulled(&[("v1", &image)]).await;
        fake.stop().await;
        let tasks = world.idle_tasks().await;
        let order = json!({ "images": ["team/app:v1"] });
        let announced = plan(&world, &order).await["bytes"].as_u64();
        let mut slow = export(&world, &order).open().await;
        let begun = slow.take(1000).await;
        world.admin().request(method, &path).expect(200).await;
        world.advance(DAY);
        world.admin().request("POST", "/api/v1/gc").expect(200).await;
        let rest = slow.rest().await;
        assert_eq!(rest.end, End::Clean, "{method} {path}");
        assert_eq!(Some(to_u64(begun.len() + rest.body.len())), announced);
        let bytes = [begun, rest.body].concat();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = 0;
        for entry in archive.entries().expect("it is a tar") {
            let mut entry = entry.expect("it is whole");
            let path = entry.path().expect("it has a name").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("it is whole");
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(sha256(&content), format!("sha256:{hex}"));
                found += 1;
            }
        }
        assert_eq!(found, 1 + image.blobs.len());
        world.tasks_at_most(tasks).await;
        world.advance(DAY);
        assert_eq!(swept(&world).await, 0, "what was deleted goes when the bundle is out");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_reader_may_pause_for_less_than_a_minute() {
    /// More than is on its way, so that whoever takes it waits for what is written then.
    const SOME: u64 = 12 * MIB;
    let image = large(65);
    let (fake, world) = pulled(&[("v1", &image)]).await;
    fake.stop().await;
    let order = json!({ "images": ["team/app:v1"] });
    let announced = plan(&world, &order).await["bytes"].as_u64();
    let mut slow = export(&world, &order).open().await;
    for _pause in 0..3 {
        world.pass(Duration::from_secs(50)).await;
        slow.take(SOME).await;
    }
    let rest = slow.rest().await;
    assert_eq!((rest.end, announced), (End::Clean, Some(3 * SOME + to_u64(rest.body.len()))));
    let tasks = world.idle_tasks().await;
    let mut slower = export(&world, &order).open().await;
    slower.take(1000).await;
    // The minute begins when what is on its way fills the buffers, which on a busy machine is some turns later.
    for _pause in 0..200 {
        if world.tasks() <= tasks {
            break;
        }
        for _turn in 0..20 {
            world.client().get("/v2/").expect(200).await;
        }
        world.pass(Duration::from_secs(61)).await;
    }
    assert_ne!(slower.rest().await.end, End::Clean, "whoever takes half a bundle must know");
    world.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing() {
    let image = large(62);
    let (fake, world) = pulled(&[("v1", &image)]).await;
    fake.stop().await;
    let tasks = world.idle_tasks().await;
    let mut gone = export(&world, &json!({ "images": ["team/app:v1"] })).open().await;
    gone.take(1000).await;
    drop(gone);
    world.tasks_at_most(tasks).await;
    world.advance(DAY);
    assert_eq!(swept(&world).await, 0, "nothing is held any more");
    world.finish().await;
}

#[tokio::test]
async fn content_that_is_damaged_cuts_the_bundle_and_is_told_from_then_on() {
    let image = large(63);
    let layer = &image.all_blobs().into_iter().max_by_key(|blob| blob.len()).expect("one").digest;
    let (fake, world) = pulled(&[("v1", &image)]).await;
    fake.stop().await;
    let order = json!({ "images": ["team/app:v1"] });
    // Damage that no look at the marks finds.
    let file = world.data().join("blobs").join(layer.replace(':', "/"));
    let modified = fs::metadata(&file).expect("it is stored").modified().expect("it has a time");
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");
    let mut open = File::options().write(true).open(&file).expect("ours");
    open.write_all(b"not what it was").expect("ours");
    open.set_modified(modified).expect("ours");
    drop(open);
    let cut = export(&world, &order).open().await;
    let announced = cut.header("Content-Length").expect("a length").to_owned();
    let mut cut = cut;
    let mut came = 0;
    while let Some(bytes) = cut.next().await {
        came += bytes.len();
    }
    assert!(cut.end().is_some_and(|end| !matches!(end, End::Clean)), "it is no bundle");
    assert!(announced.parse::<usize>().expect("a number") > came);
    within("the damage to be known", async {
        loop {
            let error = refused(&world, &order, 409).await;
            let holds = error["holds"].to_string();
            if holds.contains("damaged") && holds.contains(layer) {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn odd_content_is_written_out_as_it_came() {
    let empty = Image::build("empty layer").layer(Blob::empty()).finish();
    let foreign = Image::build("foreign")
        .layer(Blob::layer("far away", 100).foreign("https://far.example/layer"))
        .layers(1)
        .finish();
    let schema1 = Image::schema1("old");
    let list = Image::docker_list("list");
    let tags = [("empty", &empty), ("foreign", &foreign), ("schema1", &schema1), ("list", &list)];
    let (_fake, world) = pulled(&tags).await;
    for (tag, image) in tags {
        let bundle = Bundle::of(&world, &json!({ "images": [format!("team/app:{tag}")] })).await;
        let (named, _) = bundle.index();
        assert_eq!(named[&format!("{FULL}:{tag}")]["mediaType"], image.media_type);
        let here = image.all_blobs().into_iter().filter(|blob| blob.urls.is_empty());
        assert!(here.clone().all(|blob| bundle.has(&blob.digest)), "{tag}");
        let loadable = bundle.document("manifest.json").is_some();
        assert_eq!(loadable, tag == "list", "{tag}: {OCI_EMPTY}");
    }
    world.finish().await;
}
