//! Bundles taken in: what is good is served with the upstream gone and stays; what is bad is refused whole, with the member that is wrong,
//! and leaves nothing that anybody is served, no set, and no file after the next sweep.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::client::Response;
use crate::support::content::{
    Blob, DOCKER_MANIFEST, Image, MIB, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, sha256,
};
use crate::support::fake::{Fake, Hidden, Mode};
use crate::support::gate::within;
use crate::support::product::{Fault, FaultyDisk, Operation, Plan, RealDisk};
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

pub const NAME: &str = "docker.io/team/app";

/// A tar in the making.
#[derive(Clone, Default)]
pub struct Bundle(Vec<u8>);

impl Bundle {
    pub fn header(name: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        // The crate refuses names that lead outside, which is what some of these are to do.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    pub fn raw(mut self, header: &tar::Header, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, bytes: &[u8]) -> Self {
        // As GNU tar writes long names.
        let long = if name.len() > 100 {
            let text = [name.as_bytes(), b"\0"].concat();
            let header =
                Self::header("././@LongLink", tar::EntryType::GNULongName, text.len() as u64);
            self.raw(&header, &text)
        } else {
            self
        };
        let short = &name[..name.len().min(100)];
        let header = Self::header(short, tar::EntryType::Regular, bytes.len() as u64);
        long.raw(&header, bytes)
    }

    fn of_kind(self, name: &str, kind: tar::EntryType) -> Self {
        let header = Self::header(name, kind, 0);
        self.raw(&header, b"")
    }

    fn link(self, name: &str, kind: tar::EntryType, target: &str) -> Self {
        let mut header = Self::header(name, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.raw(&header, b"")
    }

    fn blob(self, bytes: &[u8]) -> Self {
        self.file(&path(&sha256(bytes)), bytes)
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string().as_bytes())
    }

    /// The layout, with an index of these.
    fn index(self, manifests: &[Value]) -> Self {
        self.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
            .json("index.json", &json!({"schemaVersion": 2, "manifests": manifests}))
    }

    /// Everything of an image.
    fn image(self, image: &Image) -> Self {
        let with =
            |bundle: Self, manifest: &&Image| bundle.file(&path(&manifest.digest), &manifest.bytes);
        let bundle = image.manifests().iter().fold(self, with);
        let with = |bundle: Self, blob: &&Blob| bundle.file(&path(&blob.digest), &blob.bytes());
        image.all_blobs().iter().fold(bundle, with)
    }

    /// What ends a tar.
    pub fn end(mut self) -> Bytes {
        self.0.resize(self.0.len() + 1024, 0);
        self.0.into()
    }

    /// A good bundle of one image.
    pub fn good(image: &Image, name: &str) -> Self {
        Self::default().index(&[named(image, name)]).image(image)
    }
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

pub fn named(image: &Image, name: &str) -> Value {
    let mut descriptor = image.descriptor();
    descriptor["annotations"] =
        json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    descriptor
}

pub fn builder(fake: &Fake) -> WorldBuilder {
    World::builder()
        .upstream("docker.io", fake)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .set("delete_grace", "\"1m\"")
}

/// A world without its upstream, so that whatever it serves it has.
pub async fn world() -> World {
    let fake = Fake::start().await;
    let world = builder(&fake).start().await;
    fake.stop().await;
    world
}

pub async fn import(world: &World, query: &str, bundle: Bytes) -> Response {
    world.admin().request("POST", &format!("/api/v1/import{query}")).body(bundle).send().await
}

fn events(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn last(response: &Response) -> Value {
    let last = events(response).pop().unwrap();
    assert_eq!(last["event"], "ended", "{last}");
    last
}

/// Refused for this, and with this in the message.
#[track_caller]
pub fn is_refused(response: &Response, reason: &str, says: &str) {
    let error = response.json()["error"].clone();
    assert_eq!(error["reason"], reason, "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(says), "{message:?} says nothing of {says:?}");
}

/// A bundle of it is refused, because nothing in it is an image.
pub(crate) async fn is_nothing_to_run(world: &World, image: &Image) {
    let bundle = Bundle::good(image, "docker.io/team/app:nothing").end();
    is_refused(&import(world, "?set=nothing", bundle).await, "incomplete", "no platform");
}

pub async fn gc(world: &World) {
    world.advance(Duration::from_secs(120));
    let told = world.admin().request("POST", "/api/v1/gc").send().await;
    assert_eq!(events(&told).pop().unwrap()["event"], "ended");
}

fn stored(world: &World) -> usize {
    let count = |name: &str| fs::read_dir(world.data().join("blobs").join(name)).unwrap().count();
    count("sha256") + count("sha512")
}

/// Nothing of it reaches a client; upstream, which would be asked, is gone.
async fn is_not_served(world: &World, image: &Image) {
    let client = world.client();
    for reference in ["1", &image.digest] {
        let reply = client.manifest("docker.io/team/app", reference).send().await;
        assert_ne!(reply.status, 200, "{reference} is served");
    }
    for blob in image.all_blobs() {
        let reply = client.blob("docker.io/team/app", &blob.digest).send().await;
        assert_ne!(reply.status, 200, "{} is served", blob.digest);
    }
}

/// Nothing of a refused bundle is left.
async fn is_clean(world: &World) {
    assert!(world.metadata().sets().await.unwrap().is_empty(), "a set is left");
    let repositories = world.metadata().repositories(None, 10, false).await.unwrap();
    assert!(repositories.is_empty(), "{repositories:?}");
    gc(world).await;
    assert_eq!(stored(world), 0, "a file is left");
    assert_eq!(world.partial_files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_bundle_is_served_with_the_upstream_gone_and_becomes_a_pinned_set() {
    let world = world().await;
    let image = Image::index("bundle");
    let name = format!("{NAME}:1");
    let told = import(&world, "?set=carried", Bundle::good(&image, &name).end()).await;
    let events = events(&told);
    assert_eq!(events[0]["event"], "begun");
    assert_eq!(events[1]["image"], name.as_str());
    assert_eq!(
        (events[1]["fate"].as_str(), events[1]["digest"].as_str()),
        (Some("taken"), Some(image.digest.as_str()))
    );
    let objects = image.manifests().len() + image.all_blobs().len();
    assert_eq!(last(&told)["objects"], objects);
    pull(&world.client(), "docker.io/team/app", "1", &image).await;
    let sets = world.metadata().sets().await.unwrap();
    assert_eq!((sets[0].name.as_str(), sets[0].kept, sets[0].members), ("carried", true, 1));
    // Nothing of it waits for its end.
    gc(&world).await;
    pull(&world.client(), "docker.io/team/app", "1", &image).await;
    // Again: all of it is here, and nothing changes.
    let again = import(&world, "?set=carried", Bundle::good(&image, &name).end()).await;
    assert_eq!(
        (last(&again)["objects"].clone(), last(&again)["here"].clone()),
        (json!(0), json!(objects))
    );
    world.finish().await;
}

#[tokio::test]
async fn the_order_of_members_is_of_no_matter_and_neither_is_gzip() {
    use std::io::Write as _;
    let world = world().await;
    let image = Image::single("backwards");
    let bundle = Bundle::default().of_kind("blobs/", tar::EntryType::Directory).image(&image);
    let bundle = bundle.index(&[named(&image, &format!("{NAME}:1"))]).end();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&bundle).unwrap();
    last(&import(&world, "?set=s", packed.finish().unwrap().into()).await);
    pull(&world.client(), "docker.io/team/app", "1", &image).await;
    world.finish().await;
}

#[expect(clippy::too_many_lines, reason = "a list of cases reads best in one piece")]
#[tokio::test]
async fn bad_members_are_named_and_nothing_is_taken_in() {
    use tar::EntryType;
    let world = world().await;
    let image = Image::single("bad members");
    let good = || Bundle::good(&image, &format!("{NAME}:1"));
    let hex = "ab".repeat(32);
    let odd = path(&format!("sha256:{hex}"));
    let mut sparse_pax = Bundle::default();
    let record = b"22 GNU.sparse.major=1\n";
    let header = Bundle::header("pax", EntryType::XHeader, record.len() as u64);
    sparse_pax = sparse_pax.raw(&header, record).file("index.json", b"{}");
    let huge = {
        let mut header = Bundle::header(&odd, EntryType::Regular, 0);
        header.set_size(1 << 60);
        header.set_cksum();
        good().raw(&header, b"")
    };
    let long_json = good().file("manifest.json", &vec![b' '; 9 << 20]);
    let long_name = {
        let header = Bundle::header("././@LongLink", EntryType::GNULongName, 1 << 40);
        good().raw(&header, b"")
    };
    let cases: Vec<(&str, Bundle, &str, &str)> = vec![
        ("a wrong digest", good().file(&odd, b"other bytes"), "bundle", &odd),
        ("traversal", good().file("../../etc/passwd", b"x"), "bundle", "../../etc/passwd"),
        (
            "traversal inside",
            good().file("blobs/../index.json", b"x"),
            "bundle",
            "blobs/../index.json",
        ),
        ("an absolute name", good().file("/etc/passwd", b"x"), "bundle", "/etc/passwd"),
        ("a stranger", good().file("notes.txt", b"x"), "bundle", "notes.txt"),
        (
            "a link outside",
            good().link(&odd, EntryType::Symlink, "../../../etc/passwd"),
            "bundle",
            &odd,
        ),
        ("an absolute link", good().link(&odd, EntryType::Symlink, "/etc/passwd"), "bundle", &odd),
        ("a hard link outside", good().link(&odd, EntryType::Link, "/etc/passwd"), "bundle", &odd),
        ("a link to nothing", good().link(&odd, EntryType::Symlink, "nothing"), "bundle", &odd),
        (
            "a link to other content",
            good().link(&odd, EntryType::Symlink, &format!("../../{}", path(&image.digest))),
            "bundle",
            &odd,
        ),
        (
            "links in a circle",
            good()
                .link(&format!("{hex}/layer.tar"), EntryType::Symlink, &format!("../{hex}.tar"))
                .link(&format!("{hex}.tar"), EntryType::Symlink, &format!("{hex}/layer.tar")),
            "bundle",
            "circle",
        ),
        (
            "a device",
            good().of_kind("blobs/sda", EntryType::Block),
            "bundle",
            "blobs/sda: it is a device",
        ),
        (
            "a pipe",
            good().of_kind("blobs/pipe", EntryType::Fifo),
            "bundle",
            "blobs/pipe: it is a pipe",
        ),
        ("a sparse file", good().of_kind(&odd, EntryType::GNUSparse), "bundle", "sparse"),
        ("a sparse file by PAX", sparse_pax, "bundle", "sparse"),
        ("more than there is room for", huge, "room", &odd),
        ("long JSON", long_json, "bundle", "manifest.json"),
        ("a name of a terabyte", long_name, "bundle", "longer than any name"),
        (
            "a text twice",
            good().file("oci-layout", b"{}"),
            "bundle",
            "oci-layout: it is there twice",
        ),
        (
            "a file that is a directory",
            good().of_kind("index.json/", EntryType::Directory),
            "bundle",
            "index.json",
        ),
    ];
    for (what, bundle, reason, says) in cases {
        let response = import(&world, "?set=bad", bundle.end()).await;
        assert_ne!(response.status, 200, "{what}");
        is_refused(&response, reason, says);
        is_not_served(&world, &image).await;
    }
    is_clean(&world).await;
    world.finish().await;
}

#[expect(clippy::too_many_lines, reason = "a list of cases reads best in one piece")]
#[tokio::test]
async fn what_a_list_says_must_be_so() {
    let world = world().await;
    let image = Image::index("bad lists");
    let name = format!("{NAME}:1");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut entry = named(&image, &name);
        change(&mut entry);
        Bundle::default().index(&[entry]).image(&image)
    };
    let single = Image::single("bad lists child");
    let without = |image: &Image, digest: &str| {
        let bundle = Bundle::default().index(&[named(image, &name)]);
        let bundle = if image.digest == digest { bundle } else { bundle.blob(&image.bytes) };
        let blobs = image.blobs.iter().filter(|blob| blob.digest != digest);
        blobs.fold(bundle, |bundle, blob| bundle.blob(&blob.bytes()))
    };
    // What an earlier try brought counts as here, so this one has nothing in common with the others.
    let fresh = Image::single("bad lists fresh");
    // An index without one whole platform.
    let bare = Image::index("bad lists bare");
    let hollow = Bundle::default().index(&[named(&bare, &name)]).blob(&bare.bytes);
    let lying = {
        let layer = single.blobs[1].clone();
        let document = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": single.blobs[0].digest, "size": single.blobs[0].len()},
            "layers": [{"mediaType": OCI_LAYER, "digest": layer.digest, "size": layer.len() + 1}],
        });
        Image::from_bytes(
            OCI_MANIFEST,
            document.to_string(),
            vec![single.blobs[0].clone(), layer],
            Vec::new(),
        )
    };
    let both = {
        let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "layers": [], "config": null});
        Image::from_bytes(OCI_INDEX, document.to_string(), Vec::new(), Vec::new())
    };
    let other = Image::single("bad lists other");
    let nowhere = format!("sha256:{}", "cd".repeat(32));
    let unknown = Bundle::good(&image, "quay.example/team/app:1");
    let cases: Vec<(&str, Bundle, &str, &str)> = vec![
        ("a wrong size", with(&|entry| entry["size"] = json!(7)), "bundle", "index.json says 7"),
        (
            "another media type",
            with(&|entry| entry["mediaType"] = json!(OCI_MANIFEST)),
            "bundle",
            &image.digest[7..],
        ),
        (
            "the type of a layer",
            with(&|entry| entry["mediaType"] = json!(OCI_LAYER)),
            "bundle",
            &image.digest[7..],
        ),
        (
            "no digest",
            with(&|entry| entry["digest"] = json!("sha256:12")),
            "bundle",
            "invalid digest",
        ),
        (
            "an entry that points nowhere",
            with(&|entry| entry["digest"] = json!(nowhere)),
            "bundle",
            &nowhere,
        ),
        (
            "no such moment",
            with(&|entry| entry["annotations"]["dev.roadstead.since"] = json!("soon")),
            "bundle",
            "dev.roadstead.since",
        ),
        (
            "no image",
            with(&|entry| entry["annotations"] = json!({"io.containerd.image.name": "a b/c"})),
            "image",
            "a b/c",
        ),
        ("no name", with(&|entry| entry["annotations"] = json!({})), "bundle", "--as"),
        (
            "a tag alone",
            with(&|entry| entry["annotations"] = json!({"org.opencontainers.image.ref.name": "1"})),
            "bundle",
            "--as",
        ),
        ("a registry of others", unknown, "unknown_registry", "[upstream.\"quay.example\"]"),
        (
            "a missing layer",
            without(&single, &single.blobs[2].digest),
            "incomplete",
            &single.blobs[2].digest,
        ),
        (
            "a missing configuration",
            without(&fresh, &fresh.blobs[0].digest),
            "incomplete",
            &fresh.blobs[0].digest,
        ),
        ("a missing manifest", without(&single, &single.digest), "bundle", &single.digest),
        ("missing children", hollow, "incomplete", &bare.children[0].digest),
        (
            "a layer of another size",
            Bundle::good(&lying, &name),
            "bundle",
            &single.blobs[1].digest[7..],
        ),
        ("two kinds of manifest", Bundle::good(&both, &name), "bundle", "more than one kind"),
        (
            "one name for two images",
            Bundle::default()
                .index(&[named(&single, &name), named(&other, &name)])
                .image(&single)
                .image(&other),
            "bundle",
            "two different images",
        ),
        ("an empty list", Bundle::default().index(&[]), "bundle", "lists nothing"),
        ("no list", Bundle::default().image(&single), "bundle", "manifest.json"),
        ("nothing", Bundle::default(), "bundle", "empty"),
    ];
    for (what, bundle, reason, says) in cases {
        let response = import(&world, "?set=bad", bundle.end()).await;
        assert_ne!(response.status, 200, "{what}");
        is_refused(&response, reason, says);
        is_not_served(&world, &image).await;
        is_not_served(&world, &single).await;
    }
    is_clean(&world).await;
    world.finish().await;
}

#[tokio::test]
async fn a_tar_that_is_cut_or_goes_on_is_refused() {
    let world = world().await;
    let image = Image::single("cut");
    let bundle = Bundle::good(&image, &format!("{NAME}:1"));
    let whole = bundle.0.len();
    let end = bundle.end();
    let garbage = [&end[..], b"garbage"].concat();
    for (bytes, says) in [
        (end.slice(..whole), "cut off"),
        (end.slice(..whole - 1), "cut off"),
        (end.slice(..700), "cut off"),
        (end.slice(..100), "ends before its first member"),
        (garbage.into(), "behind the end"),
        (Bytes::from_static(b"this is no tar at all").repeat(100).into(), "no tar"),
        (Bytes::from_static(&[0x1f, 0x8b, 8, 0, 1, 2, 3]), "did not come whole"),
    ] {
        is_refused(&import(&world, "?set=bad", bytes).await, "bundle", says);
    }
    is_clean(&world).await;
    // More zeros are what tar itself writes.
    let padded = [&end[..], &[0; 10_240]].concat();
    last(&import(&world, "?set=good", padded.into()).await);
    world.finish().await;
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_and_the_next_try_goes_on() {
    let world = world().await;
    let image = Image::build("interrupted").layers(3).finish();
    let bundle = Bundle::good(&image, &format!("{NAME}:1")).end();
    let request =
        world.admin().request("POST", "/api/v1/import?set=s").body(bundle.clone()).bytes();
    let mut connection = world.admin().connect().await;
    // All but the end and some of the last layer.
    connection.send(&request[..request.len() - 2048]).await;
    within("the first blobs to be stored", async {
        while !world.has_stored(&image.blobs[1].digest) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(connection);
    within("the next import", async {
        loop {
            let told = import(&world, "?set=s", bundle.clone()).await;
            if told.status == 200 {
                let ended = last(&told);
                assert!(ended["here"].as_u64().unwrap() >= 2, "{ended}");
                break;
            }
            is_refused(&told, "busy", "taken in");
        }
    })
    .await;
    pull(&world.client(), "docker.io/team/app", "1", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn one_at_a_time_and_a_refusal_reaches_whoever_sends() {
    let world = world().await;
    let image = Image::single("slow");
    let bundle = Bundle::good(&image, &format!("{NAME}:1")).end();
    let request = world.admin().request("POST", "/api/v1/import?set=s").body(bundle).bytes();
    let mut slow = world.admin().connect().await;
    slow.send(&request[..request.len() - 1]).await;
    within("the import to be under way", async {
        while !world.has_stored(&image.blobs[2].digest) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Sixteen megabytes, which no buffer of a socket holds; the answer is there although nobody wants them.
    let large = vec![0; usize::try_from(16 * MIB).unwrap()];
    is_refused(&import(&world, "?set=t", large.into()).await, "busy", "taken in");
    slow.send(&request[request.len() - 1..]).await;
    let told = slow.incoming(false).await.rest().await;
    last(&told);
    // The first member is wrong, and much follows.
    let rest = vec![7; usize::try_from(16 * MIB).unwrap()];
    let bad = Bundle::default().file("notes.txt", b"x").file("more.txt", &rest).end();
    is_refused(&import(&world, "?set=t", bad).await, "bundle", "notes.txt");
    world.finish().await;
}

#[tokio::test]
async fn a_full_disk_half_way_is_told_and_nothing_is_half_done() {
    let fake = Fake::start().await;
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let world = builder(&fake).disk(&disk).start().await;
    fake.stop().await;
    let image = Image::build("full").layers(4).finish();
    let bundle = Bundle::good(&image, &format!("{NAME}:1")).end();
    disk.fail(Plan { at: 4, lasting: true, fault: Fault::NoSpace, only: Some(Operation::Write) });
    is_refused(&import(&world, "?set=s", bundle.clone()).await, "room", "no room");
    is_not_served(&world, &image).await;
    assert!(world.metadata().sets().await.unwrap().is_empty());
    assert_eq!(world.partial_files(), Vec::<std::path::PathBuf>::new());
    disk.heal();
    world.pass(Duration::from_secs(10)).await;
    let ended = last(&import(&world, "?set=s", bundle).await);
    assert!(ended["here"].as_u64().unwrap() >= 1, "{ended}");
    pull(&world.client(), "docker.io/team/app", "1", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_tag_does_not_go_back() {
    let fake = Fake::start().await;
    let (old, new) = (Image::single("old"), Image::single("new"));
    fake.push("team/app", "1", &new);
    let world = builder(&fake).start().await;
    pull(&world.client(), "docker.io/team/app", "1", &new).await;
    fake.stop().await;
    let mut entry = named(&old, &format!("{NAME}:1"));
    entry["annotations"]["dev.roadstead.since"] = json!("2020-01-01T00:00:00Z");
    let bundle = Bundle::default().index(&[entry]).image(&old).end();
    let told = import(&world, "?set=s", bundle).await;
    assert_eq!(events(&told)[1]["fate"], "tag_kept");
    pull(&world.client(), "docker.io/team/app", "1", &new).await;
    // It is here all the same, and its moment is in the timeline.
    pull(&world.client(), "docker.io/team/app", &old.digest, &old).await;
    let history =
        world.admin().get(&format!("/api/v1/history?image={NAME}:1")).expect(200).await.text();
    assert!(history.contains(&old.digest) && history.contains("import s"), "{history}");
    world.finish().await;
}

#[tokio::test]
async fn a_delta_wants_its_base() {
    let world = world().await;
    let shared = Blob::layer("shared", 5000);
    let base = Image::build("base").layer(shared.clone()).finish();
    let next = Image::build("next").layer(shared.clone()).layers(1).finish();
    let delta = || {
        let bundle =
            Bundle::default().index(&[named(&next, &format!("{NAME}:2"))]).blob(&next.bytes);
        let own = next.blobs.iter().filter(|blob| blob.digest != shared.digest);
        own.fold(bundle, |bundle, blob| bundle.blob(&blob.bytes())).end()
    };
    let refused = import(&world, "?set=s", delta()).await;
    is_refused(&refused, "incomplete", &shared.digest);
    is_refused(&refused, "incomplete", "--base");
    last(&import(&world, "?set=s", Bundle::good(&base, &format!("{NAME}:1")).end()).await);
    last(&import(&world, "?set=s", delta()).await);
    pull(&world.client(), "docker.io/team/app", "2", &next).await;
    world.finish().await;
}

#[tokio::test]
async fn a_frozen_tag_stays_whatever_a_bundle_says_of_the_past() {
    let fake = Fake::start().await;
    let (old, new) = (Image::single("old"), Image::single("new"));
    fake.push("team/app", "1", &old);
    let world = builder(&fake).start().await;
    pull(&world.client(), "docker.io/team/app", "1", &old).await;
    world.advance(Duration::from_secs(600));
    let path = format!("/api/v1/freezes?scope={NAME}:1");
    world.admin().request("POST", &path).expect(200).await;
    fake.stop().await;
    let mut entry = named(&new, &format!("{NAME}:1"));
    // After it was seen here, and before it was frozen.
    entry["annotations"]["dev.roadstead.since"] =
        json!(world.moment_ago(Duration::from_secs(300)).to_string());
    last(&import(&world, "?set=s", Bundle::default().index(&[entry]).image(&new).end()).await);
    let served = world.client().manifest("docker.io/team/app", "1").expect(200).await;
    assert_eq!(served.body, old.bytes, "a frozen tag moved");
    world.admin().request("DELETE", &path).expect(200).await;
    let served = world.client().manifest("docker.io/team/app", "1").expect(200).await;
    assert_eq!(served.body, new.bytes);
    world.finish().await;
}

/// What docker wrote before it wrote layouts.
fn legacy(layer: &[u8], diff_id: &str, tags: &Value) -> (Bundle, String, Vec<u8>) {
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = config.to_string().into_bytes();
    let id = sha256(&config)[7..].to_owned();
    let directory = "0f".repeat(32);
    let list = json!([{
        "Config": format!("{id}.json"), "RepoTags": tags, "Layers": [format!("{directory}/layer.tar")],
    }]);
    let bundle = Bundle::default()
        .of_kind(&format!("{directory}/"), tar::EntryType::Directory)
        .file(&format!("{directory}/VERSION"), b"1.0")
        .file(&format!("{directory}/json"), b"{}")
        .file(&format!("{directory}.tar"), layer)
        .link(
            &format!("{directory}/layer.tar"),
            tar::EntryType::Symlink,
            &format!("../{directory}.tar"),
        )
        .file(&format!("{id}.json"), &config)
        .json("manifest.json", &list)
        .json("repositories", &json!({}));
    (bundle, id, config)
}

#[tokio::test]
async fn an_archive_of_docker_save_gets_the_manifest_that_it_lacks() {
    use std::io::Write as _;
    let world = world().await;
    let plain = b"a layer that is not compressed".repeat(50);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&plain).unwrap();
    let packed = packed.finish().unwrap();
    let diff_id = sha256(&plain);
    for (tag, layer, wanted) in [
        ("plain", plain.clone(), "application/vnd.docker.image.rootfs.diff.tar"),
        ("packed", packed, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let (bundle, id, config) = legacy(&layer, &diff_id, &json!([format!("team/app:{tag}")]));
        last(&import(&world, "?set=s", bundle.end()).await);
        let manifest = world.client().manifest("docker.io/team/app", tag).expect(200).await;
        assert_eq!(manifest.header("Content-Type"), Some(DOCKER_MANIFEST));
        let document = manifest.json();
        assert_eq!(document["config"]["digest"], format!("sha256:{id}"), "the image keeps its ID");
        assert_eq!(document["layers"][0]["mediaType"], wanted);
        let served = world.client().blob("docker.io/team/app", &sha256(&layer)).expect(200).await;
        assert_eq!(served.body, layer);
        let served = world.client().blob("docker.io/team/app", &sha256(&config)).expect(200).await;
        assert_eq!(served.body, config);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_bad_archive_of_docker_save_is_refused_and_one_without_a_name_gets_it() {
    let world = world().await;
    let layer = b"some layer".repeat(50);
    let (wrong, ..) = legacy(&layer, &sha256(b"another"), &json!(["team/app:1"]));
    is_refused(&import(&world, "?set=s", wrong.end()).await, "bundle", "layer.tar");
    let (elsewhere, ..) = legacy(&layer, &sha256(&layer), &json!(["quay.example/team/app:1"]));
    is_refused(
        &import(&world, "?set=s", elsewhere.end()).await,
        "unknown_registry",
        "quay.example",
    );
    let (nameless, id, _) = legacy(&layer, &sha256(&layer), &Value::Null);
    is_refused(&import(&world, "?set=s", nameless.clone().end()).await, "bundle", "--as");
    is_clean(&world).await;
    last(&import(&world, "?set=s&name=team/app:9", nameless.end()).await);
    let manifest = world.client().manifest("docker.io/team/app", "9").expect(200).await.json();
    assert_eq!(manifest["config"]["digest"], format!("sha256:{id}"));
    world.finish().await;
}

#[tokio::test]
async fn signatures_come_along_and_are_listed_with_the_upstream_gone() {
    let world = world().await;
    let image = Image::single("signed");
    let sbom = Image::artifact("sbom", "application/spdx+json", &image);
    let of_sbom = Image::artifact("of sbom", "application/vnd.dev.sigstore", &sbom);
    let name = format!("{NAME}:1");
    let entries = [of_sbom.descriptor(), sbom.descriptor(), named(&image, &name)];
    let bundle = Bundle::default().index(&entries).image(&image).image(&sbom).image(&of_sbom);
    last(&import(&world, "?set=s", bundle.end()).await);
    let listed = world
        .client()
        .get(&format!("/v2/docker.io/team/app/referrers/{}", image.digest))
        .expect(200)
        .await
        .json();
    assert_eq!(listed["manifests"][0]["digest"], sbom.digest.as_str());
    pull(&world.client(), "docker.io/team/app", &of_sbom.digest, &of_sbom).await;
    gc(&world).await;
    pull(&world.client(), "docker.io/team/app", &sbom.digest, &sbom).await;
    world.finish().await;
}

#[tokio::test]
async fn what_was_imported_survives_eviction() {
    let fake = Fake::start().await;
    let world = builder(&fake).set("max_unused", "\"1h\"").set("young_for", "\"1s\"").start().await;
    let kept = Image::single("imported");
    let cached = Image::single("cached");
    fake.push("team/other", "1", &cached);
    pull(&world.client(), "docker.io/team/other", "1", &cached).await;
    last(&import(&world, "?set=s", Bundle::good(&kept, &format!("{NAME}:1")).end()).await);
    world.downloads_over().await;
    world.advance(Duration::from_secs(7200));
    gc(&world).await;
    assert!(!world.has_stored(&cached.blobs[1].digest), "what is unused goes");
    assert!(kept.all_blobs().iter().all(|blob| world.has_stored(&blob.digest)));
    fake.stop().await;
    pull(&world.client(), "docker.io/team/app", "1", &kept).await;
    world.finish().await;
}

const JOE: &str = "username = \"joe\"\npassword = \"pass-of-joe\"\nprivate = \"shared\"";

/// An upstream where `team/secret` is joe's, and a world that opens it by his credential and has `secret` of it.
async fn shared_secret(secret: &Image) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push("team/secret", "1", secret);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
        auth.users = vec![("joe".to_owned(), "pass-of-joe".to_owned())];
    });
    fake.private("team/secret", &["joe"]);
    let world = World::builder()
        .upstream_with("docker.io", &fake, JOE)
        .set("admin_listen", "\"127.0.0.1:0\"")
        .start()
        .await;
    pull(&world.client(), "docker.io/team/secret", "1", secret).await;
    world.downloads_over().await;
    (fake, world)
}

#[tokio::test]
async fn a_delta_does_not_open_what_only_a_credential_brought_here() {
    let layer = Blob::layer("a private layer", 5000);
    let secret = Image::build("secret").layer(layer.clone()).finish();
    let (_fake, world) = shared_secret(&secret).await;
    let thief = Image::build("thief").layer(layer.clone()).finish();
    let delta = |image: &Image, name: &str| {
        let bundle = Bundle::default().index(&[named(image, name)]).blob(&image.bytes);
        let own = image.blobs.iter().filter(|blob| blob.digest != layer.digest);
        own.fold(bundle, |bundle, blob| bundle.blob(&blob.bytes())).end()
    };
    // A layer of it, and the whole image by its manifest alone.
    let refused = import(&world, "?set=s", delta(&thief, "docker.io/team/app:1")).await;
    is_refused(&refused, "incomplete", &layer.digest);
    let bare = Bundle::default().index(&[named(&secret, "docker.io/team/app:1")]);
    let refused = import(&world, "?set=s", bare.blob(&secret.bytes).end()).await;
    is_refused(&refused, "incomplete", &layer.digest);
    assert_ne!(world.client().blob("docker.io/team/app", &layer.digest).send().await.status, 200);
    // In a bundle that has both, each repository is asked for itself.
    let both = Bundle::default()
        .index(&[named(&thief, "docker.io/team/secret:2"), named(&thief, "docker.io/team/app:2")])
        .blob(&thief.bytes);
    let own = thief.blobs.iter().filter(|blob| blob.digest != layer.digest);
    let both = own.fold(both, |bundle, blob| bundle.blob(&blob.bytes())).end();
    is_refused(&import(&world, "?set=s", both).await, "incomplete", &layer.digest);
    // The repository that has it may build on it.
    last(&import(&world, "?set=s", delta(&thief, "docker.io/team/secret:2")).await);
    let served = world.client().manifest("docker.io/team/secret", &thief.digest).expect(200).await;
    assert_eq!(served.body, thief.bytes);
    // Whoever brings the bytes needs nobody's credential.
    last(&import(&world, "?set=s", Bundle::good(&thief, "docker.io/team/app:1").end()).await);
    world.client().blob("docker.io/team/app", &layer.digest).expect(200).await;
    world.finish().await;
}

#[tokio::test]
async fn what_is_imported_beside_a_credential_ends_with_it_unless_it_is_public() {
    let secret = Image::single("secret");
    let (fake, mut world) = shared_secret(&secret).await;
    let brought = Image::single("brought");
    let name = "docker.io/team/secret";
    for image in [&secret, &brought] {
        let bundle = Bundle::good(image, &format!("{name}:2")).end();
        last(&import(&world, "?set=s", bundle).await);
        world.client().manifest(name, &image.digest).expect(200).await;
    }
    world.restart_with(|builder| builder.upstream_with("docker.io", &fake, "")).await;
    for image in [&secret, &brought] {
        assert_ne!(world.client().manifest(name, &image.digest).send().await.status, 200);
        let blob = &image.blobs[1].digest;
        assert_ne!(world.client().blob(name, blob).send().await.status, 200);
    }
    // Without a credential the operator's word is all there is, and it opens what it brings; what was bound stays so until he says more.
    let third = Image::single("third");
    last(&import(&world, "?set=s", Bundle::good(&third, &format!("{name}:3")).end()).await);
    world.client().manifest(name, &third.digest).expect(200).await;
    last(&import(&world, "?set=s", Bundle::good(&secret, &format!("{name}:4")).end()).await);
    assert_ne!(world.client().manifest(name, &secret.digest).send().await.status, 200);
    let public = Bundle::good(&secret, &format!("{name}:4")).end();
    last(&import(&world, "?set=s&public=true", public).await);
    world.client().manifest(name, &secret.digest).expect(200).await;
    world.client().blob(name, &secret.blobs[1].digest).expect(200).await;
    world.finish().await;
}
