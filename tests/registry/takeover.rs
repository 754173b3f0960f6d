//! The storage folder of registry:2 and 3 is taken over: good ones, damaged ones, and such as somebody has tampered with. The folders
//! are written here, file by file, as distribution writes them (registry/storage/paths.go); real ones are in `tests/clients`.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::client::Response;
use crate::support::content::{Blob, Image, sha256};
use crate::support::fake::Fake;
use crate::support::gate::within;
use roadstead::blobs::Volume;

use crate::support::product::{
    Fault as DiskFault, FaultyDisk, Operation, Plan as DiskPlan, RealDisk,
};
use crate::support::pull::{is_blob, is_manifest, pull};
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
/// Some day in 2026, in seconds; before the beginning of every world.
const LONG_AGO: u64 = 1_790_000_000;
const DAY: u64 = 24 * 3600;

/// A folder as distribution leaves it.
pub struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().expect("a temporary directory can be made"));
        fs::create_dir_all(folder.repositories()).expect("it is ours");
        folder
    }

    /// Of one tag.
    pub fn with(name: &str, tag: &str, image: &Image) -> Self {
        let folder = Self::new();
        folder.put(name, image);
        folder.tag(name, tag, &[(image, LONG_AGO)]);
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn repositories(&self) -> PathBuf {
        self.path().join("docker/registry/v2/repositories")
    }

    fn data(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("it is a digest");
        let blobs = self.path().join("docker/registry/v2/blobs");
        blobs.join(algorithm).join(&hex[..2]).join(hex).join("data")
    }

    fn write(path: &Path, bytes: &[u8], seconds: u64) {
        fs::create_dir_all(path.parent().expect("it has one")).expect("it is ours");
        fs::write(path, bytes).expect("it is ours");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::options().write(true).open(path).expect("it is ours");
        file.set_times(FileTimes::new().set_modified(time)).expect("it is ours");
    }

    fn link(&self, name: &str, below: &str, digest: &str, seconds: u64) {
        let below = below.replace("{}", &digest.replace(':', "/"));
        let path = self.repositories().join(name).join(below).join("link");
        Self::write(&path, digest.as_bytes(), seconds);
    }

    fn blob(&self, name: &str, blob: &Blob) {
        Self::write(&self.data(&blob.digest), &blob.bytes(), LONG_AGO);
        self.link(name, "_layers/{}", &blob.digest, LONG_AGO);
    }

    /// A manifest with all that is below it.
    fn put(&self, name: &str, image: &Image) {
        for manifest in image.manifests() {
            Self::write(&self.data(&manifest.digest), &manifest.bytes, LONG_AGO);
            self.link(name, "_manifests/revisions/{}", &manifest.digest, LONG_AGO);
        }
        for blob in image.all_blobs().into_iter().filter(|blob| blob.urls.is_empty()) {
            self.blob(name, blob);
        }
    }

    /// A tag with the times at which it was last set to each; the last is what it points at.
    fn tag(&self, name: &str, tag: &str, moves: &[(&Image, u64)]) {
        let tags = format!("_manifests/tags/{tag}");
        for (image, at) in moves {
            self.link(name, &format!("{tags}/index/{{}}"), &image.digest, *at);
        }
        let (last, at) = moves.last().expect("it points at something");
        self.link(name, &format!("{tags}/current"), &last.digest, *at);
    }

    /// Everything in it: size, time, mode and bytes.
    fn listing(&self) -> BTreeMap<PathBuf, (u64, i64, u32, String)> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).expect("it is ours").flatten() {
                let (path, about) = (entry.path(), entry.metadata().expect("it is there"));
                if about.is_dir() {
                    open.push(path.clone());
                }
                let bytes = if about.is_file() { fs::read(&path).expect("ours") } else { vec![] };
                let line = (about.len(), about.mtime_nsec() + about.mtime(), about.mode());
                found.insert(path, (line.0, line.1, line.2, sha256(&bytes)));
            }
        }
        found
    }

    fn links_of(&self, digest: &str) -> u64 {
        fs::metadata(self.data(digest)).expect("it is there").nlink()
    }
}

/// A request over the socket, where paths are taken; the answer's status and its lines.
async fn over_socket(world: &World, path: &str) -> (u16, Vec<Value>) {
    let socket = UnixStream::connect(world.data().join("admin.sock"));
    let mut stream = socket.await.expect("it listens");
    // Of HTTP/1.0, so that the body comes in no pieces.
    let request = format!("POST /api/v1{path} HTTP/1.0\r\nHost: roadstead\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    // The end may come as a reset.
    drop(within("the end of the answer", stream.read_to_end(&mut answer)).await);
    let answer = String::from_utf8(answer).expect("it is a text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let lines = body.lines().filter(|line| !line.is_empty());
    let lines = lines.map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    (status.expect("a status"), lines)
}

pub async fn take(world: &World, folder: &Folder, more: &str) -> Vec<Value> {
    let path = folder.path().display();
    let path = format!("/takeover?folder={path}&upstream=docker.io{more}");
    let (status, lines) = over_socket(world, &path).await;
    assert_eq!(status, 200, "{lines:?}");
    lines
}

fn last(story: &[Value]) -> &Value {
    story.last().expect("a story has lines")
}

fn of<'a>(story: &'a [Value], event: &str) -> Vec<&'a Value> {
    story.iter().filter(|line| line["event"] == event).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

async fn history(world: &World, image: &str) -> Vec<(String, String)> {
    let answer = world.admin().get(&format!("/api/v1/history?image={image}")).expect(200).await;
    let moves = answer.json()["items"].as_array().cloned().unwrap_or_default();
    let line =
        |entry: &Value| (text(&entry["digest"]).to_owned(), text(&entry["since"]).to_owned());
    moves.iter().map(line).collect()
}

fn builder(fake: &Fake) -> WorldBuilder {
    World::builder().upstream("docker.io", fake).set("admin_listen", "\"127.0.0.1:0\"")
}

/// A world whose upstream is gone.
async fn cut_off() -> (Fake, World) {
    let fake = Fake::start().await;
    let world = builder(&fake).start().await;
    fake.stop().await;
    (fake, world)
}

#[tokio::test]
async fn a_hosted_folder_is_served_with_the_old_registry_gone() {
    let image = Image::index("hosted");
    let docker = Image::docker_list("hub");
    let folder = Folder::with(NAME, "latest", &image);
    folder.put("library/nginx", &docker);
    folder.tag("library/nginx", "1.27", &[(&docker, LONG_AGO)]);
    let before = folder.listing();
    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    let ended = last(&story);
    assert_eq!(ended["event"], "ended", "{story:?}");
    assert_eq!(
        (&ended["images"], &ended["failed"], &ended["left_out"]),
        (&2.into(), &0.into(), &0.into())
    );
    let objects = [&image, &docker].map(|image| image.manifests().len() + image.all_blobs().len());
    assert_eq!(ended["objects"], objects.iter().sum::<usize>());
    assert_eq!(ended["here"], 0);
    for told in of(&story, "image") {
        assert_eq!(told["fate"], "taken", "{told}");
    }
    pull(&world.client(), NAME, "latest", &image).await;
    pull(&world.client(), "nginx", "1.27", &docker).await;
    // The bytes are the same file, and nothing else of the folder was touched.
    assert_eq!(folder.listing(), before);
    for blob in image.all_blobs() {
        assert_eq!(folder.links_of(&blob.digest), 2);
    }
    // The set is pinned.
    let sets = world.metadata().sets().await.expect("the rows can be read");
    assert_eq!(sets.len(), 1);
    assert_eq!(
        (sets[0].name.as_str(), sets[0].kept, sets[0].members),
        ("takeover-docker.io", true, 2)
    );
    world.finish().await;
}

#[tokio::test]
async fn a_second_takeover_finds_all_of_it_here_and_changes_nothing() {
    let (one, two) = (Image::single("one"), Image::single("two"));
    let folder = Folder::with(NAME, "latest", &one);
    folder.put(NAME, &two);
    folder.tag(NAME, "latest", &[(&one, LONG_AGO), (&two, LONG_AGO + DAY)]);
    let (_fake, world) = cut_off().await;
    take(&world, &folder, "").await;
    let before = history(&world, "docker.io/team/app:latest").await;
    let story = take(&world, &folder, "").await;
    let ended = last(&story);
    assert_eq!((&ended["objects"], &ended["here"]), (&0.into(), &8.into()), "{ended}");
    assert_eq!(of(&story, "image")[0]["fate"], "here");
    assert_eq!(history(&world, "docker.io/team/app:latest").await, before);
    world.finish().await;
}

#[tokio::test]
async fn the_index_of_a_tag_becomes_its_timeline() {
    let [one, two, three] = ["1", "2", "3"].map(Image::single);
    let folder = Folder::new();
    for image in [&one, &two, &three] {
        folder.put(NAME, image);
    }
    let times = [LONG_AGO, LONG_AGO + DAY, LONG_AGO + 2 * DAY];
    folder.tag(NAME, "latest", &[(&two, times[1]), (&one, times[0]), (&three, times[2])]);
    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["images"], 1, "{story:?}");
    let history = history(&world, "docker.io/team/app:latest").await;
    let mut digests: Vec<_> = history.iter().map(|(digest, _)| digest.clone()).collect();
    digests.sort_by_key(|digest| history.iter().find(|(d, _)| d == digest).map(|(_, t)| t.clone()));
    assert_eq!(digests, [one.digest.clone(), two.digest.clone(), three.digest.clone()]);
    assert!(history.iter().any(|(_, since)| since.starts_with("2026-09-21T")), "{history:?}");
    // The past can be pulled: a day and a bit later the tag was at the second.
    let then = world.client().manifest(&format!("asof-20260922t150000z/{NAME}"), "latest");
    is_manifest(&then.expect(200).await, &two);
    for image in [&one, &two] {
        let old = world.client().manifest(NAME, &image.digest).expect(200).await;
        is_manifest(&old, image);
    }
    world.finish().await;
}

#[tokio::test]
async fn damaged_and_missing_files_are_left_out_and_named_with_their_images() {
    let images = ["good", "flipped", "short", "gone", "manifest"].map(Image::single);
    let [good, flipped, short, gone, manifest] = &images;
    let folder = Folder::new();
    let tags = ["good", "flipped", "short", "gone", "manifest"];
    for (image, tag) in images.iter().zip(tags) {
        folder.put(NAME, image);
        folder.tag(NAME, tag, &[(image, LONG_AGO)]);
    }
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).expect("it is there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("it is ours");
    };
    let layer = |image: &Image| image.blobs.last().expect("it has layers").digest.clone();
    flip(&folder.data(&layer(flipped)));
    let truncated = File::options().write(true).open(folder.data(&layer(short))).expect("ours");
    truncated.set_len(100).expect("it is ours");
    fs::remove_file(folder.data(&layer(gone))).expect("it is ours");
    flip(&folder.data(&manifest.digest));
    // What refers to nothing at all.
    let nothing = sha256(b"nothing");
    folder.link(NAME, "_manifests/revisions/{}", &nothing, LONG_AGO);
    folder.link(NAME, "_manifests/tags/nothing/current", &nothing, LONG_AGO);
    folder.link(NAME, "_manifests/tags/expired/current", &sha256(b"expired"), LONG_AGO);

    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    let ended = last(&story);
    assert_eq!((&ended["images"], &ended["failed"]), (&7.into(), &6.into()), "{story:#?}");
    assert_eq!(ended["left_out"], 6);
    let left = of(&story, "left_out");
    let said = |what: &str| {
        let found = left.iter().find(|line| text(&line["what"]).contains(what));
        text(&found.unwrap_or_else(|| panic!("{what} is not named: {left:#?}"))["reason"])
    };
    let hex = |digest: &str| digest.replace("sha256:", "");
    for (digest, why, tag) in [
        (layer(flipped), "damaged", "flipped"),
        (layer(short), "damaged", "short"),
        (layer(gone), "not in the folder", "gone"),
        (manifest.digest.clone(), "damaged", "manifest"),
        (nothing, "not in the folder", "nothing"),
    ] {
        let reason = said(&hex(&digest));
        assert!(reason.contains(why), "{tag}: {reason}");
        assert!(reason.contains(&format!("needed by docker.io/team/app:{tag}")), "{reason}");
    }
    assert!(said("team/app:expired").contains("expired or was deleted"));
    for told in of(&story, "image") {
        let is_good = text(&told["image"]).ends_with(":good");
        assert_eq!(told["fate"], if is_good { "taken" } else { "failed" }, "{told}");
        assert_eq!(told["reason"].is_null(), is_good, "{told}");
    }
    let client = world.client();
    pull(&client, NAME, "good", good).await;
    // What is sound of an image is here, as of a pull that was cut short; what is damaged is not.
    is_manifest(&client.manifest(NAME, "flipped").expect(200).await, flipped);
    is_blob(&client.blob(NAME, &flipped.blobs[0].digest).expect(200).await, &flipped.blobs[0]);
    let answer = client.blob(NAME, &layer(flipped)).send().await;
    assert!(answer.status >= 400, "{answer:?}");
    let answer = client.manifest(NAME, "manifest").send().await;
    assert!(answer.status >= 400, "{answer:?}");
    world.finish().await;
}

#[tokio::test]
async fn what_is_missing_in_the_folder_is_fetched_when_it_is_asked_for() {
    let image = Image::single("half");
    let folder = Folder::with(NAME, "latest", &image);
    let layer = &image.blobs.last().expect("it has layers");
    fs::remove_file(folder.data(&layer.digest)).expect("it is ours");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["failed"], 1);
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    world.finish().await;
}

/// Names that are none, links that say something else, and no text at all.
fn tamper(folder: &Folder, image: &Image) {
    let repositories = folder.repositories();
    for name in ["UPPER", "a..b", "team/-x", "team/app/_strange", "x:y"] {
        fs::create_dir_all(repositories.join(name).join("_manifests")).expect("it is ours");
    }
    fs::write(repositories.join("file"), "x").expect("it is ours");
    let tags = repositories.join(NAME).join("_manifests/tags");
    Folder::write(&tags.join("../../../../v1/current/link"), b"x", LONG_AGO);
    for (tag, says) in [("empty", ""), ("junk", "sha256:xyz"), ("up", "../../../../etc/passwd")] {
        Folder::write(&tags.join(tag).join("current/link"), says.as_bytes(), LONG_AGO);
    }
    Folder::write(&tags.join("long/current/link"), &[b'a'; 100_000], LONG_AGO);
    Folder::write(&tags.join("-bad/current/link"), image.digest.as_bytes(), LONG_AGO);
    let revisions = repositories.join(NAME).join("_manifests/revisions");
    Folder::write(&revisions.join("sha256/nothex/link"), b"x", LONG_AGO);
    Folder::write(&revisions.join("md5/00/link"), b"x", LONG_AGO);
    let wrong = sha256(b"wrong").replace("sha256:", "sha256/");
    Folder::write(&revisions.join(wrong).join("link"), image.digest.as_bytes(), LONG_AGO);
}

#[tokio::test]
async fn names_links_and_files_that_lead_elsewhere_are_not_followed() {
    let image = Image::single("good");
    let folder = Folder::with(NAME, "latest", &image);
    let secret = Image::single("secret");
    let other = Folder::with(NAME, "latest", &secret);
    let repositories = folder.repositories();
    // A circle, a repository elsewhere, a blob elsewhere.
    symlink(&repositories, repositories.join("circle")).expect("it is ours");
    symlink(other.repositories().join(NAME), repositories.join("elsewhere")).expect("ours");
    let foreign = &secret.blobs[0];
    folder.link(NAME, "_layers/{}", &foreign.digest, LONG_AGO);
    fs::create_dir_all(folder.data(&foreign.digest).parent().expect("it has one")).expect("ours");
    symlink(other.data(&foreign.digest), folder.data(&foreign.digest)).expect("it is ours");
    // A pipe in the place of a blob, and of a link.
    let pipe = Blob::layer("pipe", 10);
    folder.blob(NAME, &pipe);
    fs::remove_file(folder.data(&pipe.digest)).expect("it is ours");
    mknodat(CWD, folder.data(&pipe.digest), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("ours");
    let link = repositories.join(NAME).join("_manifests/tags/pipe/current");
    fs::create_dir_all(&link).expect("it is ours");
    mknodat(CWD, link.join("link"), FileType::Fifo, Mode::RUSR, 0).expect("it is ours");
    tamper(&folder, &image);

    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["event"], "ended", "{story:#?}");
    let left = of(&story, "left_out");
    for (what, why) in [
        ("repositories/circle", "symbolic link"),
        ("repositories/elsewhere", "symbolic link"),
        (&foreign.digest["sha256:".len()..], "symbolic link"),
        (&pipe.digest["sha256:".len()..], "pipe"),
        ("tags/pipe/current/link", "pipe"),
        ("repositories/UPPER", "no name of a repository"),
        ("repositories/a..b", "no name of a repository"),
        ("repositories/team/-x", "no name of a repository"),
        ("repositories/team/app/_strange", "no name of a repository"),
        ("repositories/x:y", "no name of a repository"),
        ("repositories/file", ""),
        ("tags/empty/current/link", "empty"),
        ("tags/junk/current/link", "no digest"),
        ("tags/up/current/link", "no digest"),
        ("tags/long/current/link", "100000 bytes"),
        ("tags/-bad", "no name of a tag"),
        ("sha256/nothex", "no digest"),
        ("revisions/md5", "no algorithm"),
        (&sha256(b"wrong")["sha256:".len()..], "another digest"),
    ] {
        let found = left.iter().find(|line| text(&line["what"]).contains(what));
        let found = found.unwrap_or_else(|| panic!("{what} is not named: {left:#?}"));
        assert!(text(&found["reason"]).contains(why), "{found}");
    }
    pull(&world.client(), NAME, "latest", &image).await;
    for name in ["elsewhere", "circle/team/app", NAME] {
        let answer = world.client().blob(name, &foreign.digest).send().await;
        assert!(answer.status >= 400, "{name}: {answer:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn manifests_that_are_none_or_too_large_are_left_out() {
    let folder = Folder::new();
    let junk = Image::from_bytes("x/y", b"<html>no</html>".to_vec(), vec![], vec![]);
    let mut huge = b"{\"schemaVersion\":2,\"layers\":[],\"x\":\"".to_vec();
    huge.resize(9 * 1024 * 1024, b'a');
    huge.extend(b"\"}");
    let huge = Image::from_bytes("x/y", huge, vec![], vec![]);
    let deep = "[".repeat(100_000).into_bytes();
    let deep = Image::from_bytes("x/y", deep, vec![], vec![]);
    for (tag, image) in [("junk", &junk), ("huge", &huge), ("deep", &deep)] {
        folder.put(NAME, image);
        folder.tag(NAME, tag, &[(image, LONG_AGO)]);
    }
    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(
        (&last(&story)["failed"], &last(&story)["left_out"]),
        (&3.into(), &3.into()),
        "{story:#?}"
    );
    let reasons: Vec<_> = of(&story, "left_out").iter().map(|line| text(&line["reason"])).collect();
    assert_eq!(reasons.iter().filter(|reason| reason.contains("not a manifest")).count(), 2);
    assert_eq!(reasons.iter().filter(|reason| reason.contains("bytes")).count(), 1);
    assert_eq!(last(&story)["objects"], 0, "nothing of it was stored");
    world.finish().await;
}

#[tokio::test]
async fn schema_1_nested_indexes_artifacts_and_foreign_layers_pass() {
    let schema1 = Image::schema1("old");
    let nested = Image::nested_index("nested");
    let base = Image::single("base");
    let sbom = Image::artifact("base", "application/spdx+json", &base);
    let layer = Blob::layer("windows", 50).foreign("https://example.invalid/x");
    let windows = Image::build("windows").layer(layer).layers(1).finish();
    let folder = Folder::new();
    for (tag, image) in
        [("schema1", &schema1), ("nested", &nested), ("base", &base), ("windows", &windows)]
    {
        folder.put(NAME, image);
        folder.tag(NAME, tag, &[(image, LONG_AGO)]);
    }
    folder.put(NAME, &sbom);
    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(
        (&last(&story)["failed"], &last(&story)["left_out"]),
        (&0.into(), &0.into()),
        "{story:#?}"
    );
    for (tag, image) in
        [("schema1", &schema1), ("nested", &nested), ("base", &base), ("windows", &windows)]
    {
        pull(&world.client(), NAME, tag, image).await;
    }
    is_manifest(&world.client().manifest(NAME, &sbom.digest).expect(200).await, &sbom);
    world.finish().await;
}

#[tokio::test]
async fn of_an_index_the_platforms_that_were_pulled_are_enough() {
    let image = Image::index("sparse");
    let pulled = &image.children[0];
    let folder = Folder::new();
    let top = Image { children: vec![pulled.clone()], ..image.clone() };
    folder.put(NAME, &top);
    folder.tag(NAME, "latest", &[(&top, LONG_AGO)]);
    let none = Image { children: vec![], ..Image::index("none") };
    folder.put(NAME, &none);
    folder.tag(NAME, "none", &[(&none, LONG_AGO)]);
    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(
        (&last(&story)["failed"], &last(&story)["left_out"]),
        (&1.into(), &0.into()),
        "{story:#?}"
    );
    for told in of(&story, "image") {
        let is_none = text(&told["image"]).ends_with(":none");
        assert_eq!(told["fate"], if is_none { "failed" } else { "taken" }, "{told}");
    }
    pull(&world.client(), NAME, "latest", &top).await;
    world.finish().await;
}

#[tokio::test]
async fn a_file_that_may_not_be_read_is_left_out_and_the_rest_goes_on() {
    let image = Image::single("guarded");
    let folder = Folder::with(NAME, "latest", &image);
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let fake = Fake::start().await;
    let world = builder(&fake).disk(&disk).start().await;
    let only = Some(Operation::OpenBeneath);
    // In turn each file that is opened: the link of the revision, the manifest, what it needs.
    let mut at = 1;
    loop {
        disk.fail(DiskPlan { at, lasting: false, fault: DiskFault::Denied, only });
        let story = take(&world, &folder, "&copy=true").await;
        let injected = disk.injected();
        disk.heal();
        assert_eq!(last(&story)["event"], "ended", "{at}: {story:#?}");
        if injected == 0 {
            assert_eq!(last(&story)["left_out"], 0, "{story:#?}");
            break;
        }
        let left = of(&story, "left_out");
        assert!(
            left.iter().any(|line| text(&line["reason"]).contains("may not be read")),
            "{at}: {story:#?}"
        );
        at += 1;
        assert!(at < 100, "it never passes");
    }
    assert!(at > 5, "{at}");
    fake.stop().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_disk_that_fails_ends_it_and_the_next_one_goes_on() {
    let image = Image::single("unlucky");
    let folder = Folder::with(NAME, "latest", &image);
    for copy in ["", "&copy=true"] {
        for (only, fault) in [
            (Operation::SyncData, DiskFault::Io),
            (Operation::Rename, DiskFault::Io),
            (Operation::Create, DiskFault::NoSpace),
            (Operation::Write, DiskFault::NoSpace),
            (Operation::Link, DiskFault::NoSpace),
        ] {
            let disk = FaultyDisk::new(Arc::new(RealDisk));
            let fake = Fake::start().await;
            let mut world = builder(&fake).disk(&disk).start().await;
            fake.stop().await;
            disk.fail(DiskPlan { at: 2, lasting: true, fault, only: Some(only) });
            let story = take(&world, &folder, copy).await;
            let injected = disk.injected();
            disk.heal();
            if injected > 0 {
                assert_eq!(last(&story)["event"], "aborted", "{only:?}{copy}: {story:#?}");
                assert!(text(&last(&story)["reason"]).contains("run it again"), "{story:#?}");
                let answer = world.client().manifest(NAME, "latest").send().await;
                assert!(answer.status >= 400, "{only:?}{copy}: {answer:?}");
            }
            // What a full disk said is believed for a while.
            world.restart().await;
            let story = take(&world, &folder, copy).await;
            assert_eq!(last(&story)["failed"], 0, "{only:?}{copy}: {story:#?}");
            pull(&world.client(), NAME, "latest", &image).await;
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn hard_links_that_are_refused_become_copies() {
    let image = Image::single("copied");
    for (fault, more) in [(Some(DiskFault::Denied), ""), (None, "&copy=true")] {
        let folder = Folder::with(NAME, "latest", &image);
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let fake = Fake::start().await;
        let world = builder(&fake).disk(&disk).start().await;
        fake.stop().await;
        if let Some(fault) = fault {
            disk.fail(DiskPlan { at: 1, lasting: true, fault, only: Some(Operation::Link) });
        }
        let story = take(&world, &folder, more).await;
        assert_eq!((&last(&story)["failed"], &last(&story)["objects"]), (&0.into(), &4.into()));
        assert!(disk.injected() <= 4, "no file is tried twice");
        assert_eq!(folder.links_of(&image.digest), 1);
        let before = folder.listing();
        pull(&world.client(), NAME, "latest", &image).await;
        assert_eq!(folder.listing(), before);
        disk.heal();
        world.finish().await;
    }
}

#[tokio::test]
async fn one_link_that_is_refused_is_one_copy_and_no_more() {
    let image = Image::build("one refused").layers(6).finish();
    let folder = Folder::with(NAME, "latest", &image);
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let fake = Fake::start().await;
    let world = builder(&fake).disk(&disk).start().await;
    fake.stop().await;
    let (fault, only) = (DiskFault::Denied, Some(Operation::Link));
    disk.fail(DiskPlan { at: 2, lasting: false, fault, only });
    let story = take(&world, &folder, "").await;
    assert_eq!((&last(&story)["failed"], disk.injected()), (&0.into(), 1), "{story:#?}");
    let manifest = std::iter::once(&image.digest);
    let all = manifest.chain(image.blobs.iter().map(|blob| &blob.digest));
    let copied: Vec<_> = all.filter(|digest| folder.links_of(digest) == 1).collect();
    assert_eq!(copied.len(), 1, "{copied:?}");
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn links_that_are_refused_again_and_again_are_not_tried_any_more() {
    let image = Image::build("all refused").layers(40).finish();
    let folder = Folder::with(NAME, "latest", &image);
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let fake = Fake::start().await;
    let world = builder(&fake).disk(&disk).start().await;
    fake.stop().await;
    let (fault, only) = (DiskFault::Denied, Some(Operation::Link));
    disk.fail(DiskPlan { at: 1, lasting: true, fault, only });
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["failed"], 0, "{story:#?}");
    // Each costs the reading of a file that is read again; a few more were under way at that moment.
    assert!((8..12).contains(&disk.injected()), "{} links were tried", disk.injected());
    pull(&world.client(), NAME, "latest", &image).await;
    disk.heal();
    world.finish().await;
}

/// Lines of a story, each with a name as long as this; many more than a socket and the queue before it hold.
const LINES: usize = 1600;
const LENGTH: usize = 240;
/// More than a socket holds, so that whoever reads it waits for what is written then.
const MORE_THAN_A_SOCKET: usize = 256 * 1024;

#[tokio::test]
async fn a_slow_reader_of_a_story_is_waited_for_and_one_that_reads_nothing_has_gone() {
    let image = Image::single("behind the odd ones");
    let folder = Folder::with(NAME, "latest", &image);
    for number in 0..LINES {
        let odd = folder.repositories().join(format!("ODD-{number:0LENGTH$}"));
        fs::create_dir(odd).expect("it is ours");
    }
    let (_fake, world) = cut_off().await;
    let path = format!("/takeover?folder={}&upstream=docker.io", folder.path().display());
    let open = async || {
        let socket = UnixStream::connect(world.data().join("admin.sock"));
        let mut stream = socket.await.expect("it listens");
        let request = format!("POST /api/v1{path} HTTP/1.1\r\nHost: roadstead\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut head = [0; 12];
        within("the head", stream.read_exact(&mut head)).await.expect("an answer begins");
        assert_eq!(&head, b"HTTP/1.1 200");
        stream
    };
    let mut slow = open().await;
    let mut some = vec![0; MORE_THAN_A_SOCKET];
    for _pause in 0..2 {
        world.pass(Duration::from_secs(45)).await;
        within("some of the story", slow.read_exact(&mut some)).await.expect("it goes on");
    }
    let mut rest = Vec::new();
    within("the end of the story", slow.read_to_end(&mut rest)).await.expect("it is whole");
    assert!(String::from_utf8_lossy(&rest).contains("\"event\":\"ended\""));
    pull(&world.client(), NAME, "latest", &image).await;

    let silent = open().await;
    let mut minutes = 0;
    // It takes some of its time until nothing more is read.
    while over_socket(&world, &path).await.0 != 200 {
        world.pass(Duration::from_secs(61)).await;
        minutes += 1;
        assert!(minutes < 50, "it is waited for again and again");
    }
    assert!(minutes > 0, "it was not waited for");
    drop(silent);
    world.finish().await;
}

#[tokio::test]
async fn a_full_disk_refuses_copies_and_takes_links() {
    let image = Image::single("no room");
    let folder = Folder::with(NAME, "latest", &image);
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let fake = Fake::start().await;
    let world = builder(&fake).disk(&disk).start().await;
    fake.stop().await;
    disk.set_volume(Some(Volume { total: 1 << 30, free: 1000 }));
    let story = take(&world, &folder, "&copy=true").await;
    assert_eq!(last(&story)["event"], "aborted", "{story:#?}");
    assert!(text(&last(&story)["reason"]).contains("no room"), "{story:#?}");
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["failed"], 0, "{story:#?}");
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn the_old_folder_stays_whole_when_what_was_linked_is_deleted_here() {
    let image = Image::single("shared");
    let folder = Folder::with(NAME, "latest", &image);
    let before = folder.listing();
    let (_fake, world) = cut_off().await;
    take(&world, &folder, "").await;
    let layer = &image.blobs[0];
    assert_eq!(folder.links_of(&layer.digest), 2);
    let path = format!("/api/v1/blobs?digest={}&force=true", layer.digest);
    let deleted = world.admin().request("DELETE", &path).send().await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
    assert_eq!(folder.links_of(&layer.digest), 1);
    assert_eq!(folder.listing(), before);
    // And it can be taken over again.
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["objects"], 1, "{story:#?}");
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn damage_that_the_old_registry_does_later_is_found_here() {
    let image = Image::single("later");
    let folder = Folder::with(NAME, "latest", &image);
    let (_fake, world) = cut_off().await;
    take(&world, &folder, "").await;
    let layer = &image.blobs[0];
    fs::write(folder.data(&layer.digest), b"overwritten in place").expect("it is ours");
    let answer = world.client().blob(NAME, &layer.digest).send().await;
    assert!(answer.status >= 400, "{answer:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_that_was_seen_later_here_stays() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let folder = Folder::with(NAME, "latest", &old);
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &new);
    let world = builder(&fake).start().await;
    pull(&world.client(), NAME, "latest", &new).await;
    world.downloads_over().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(of(&story, "image")[0]["fate"], "tag_kept", "{story:#?}");
    pull(&world.client(), NAME, "latest", &new).await;
    is_manifest(&world.client().manifest(NAME, &old.digest).expect(200).await, &old);
    let history = history(&world, "docker.io/team/app:latest").await;
    assert_eq!(history.len(), 2, "{history:?}");
    world.finish().await;
}

#[tokio::test]
async fn content_is_served_under_the_repositories_that_had_it_and_no_other() {
    let (one, other) = (Image::single("one"), Image::single("other"));
    let folder = Folder::with(NAME, "latest", &one);
    folder.put("team/other", &other);
    folder.tag("team/other", "latest", &[(&other, LONG_AGO)]);
    // A layer that was pushed and never named by a manifest.
    let loose = Blob::layer("loose", 500);
    folder.blob("team/other", &loose);
    let (_fake, world) = cut_off().await;
    let story = take(&world, &folder, "").await;
    assert_eq!(last(&story)["left_out"], 0, "{story:#?}");
    let client = world.client();
    is_blob(&client.blob("team/other", &loose.digest).expect(200).await, &loose);
    for blob in [&one.blobs[0], &loose] {
        let wrong = if blob.digest == loose.digest { NAME } else { "team/other" };
        let answer = client.blob(wrong, &blob.digest).send().await;
        assert!(answer.status >= 400, "{answer:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn what_is_no_folder_of_a_registry_is_refused_with_what_is_wanted() {
    let folder = Folder::with(NAME, "latest", &Image::single("x"));
    let empty = TempDir::new().expect("a temporary directory can be made");
    let file = folder.path().join("a-file");
    fs::write(&file, "x").expect("it is ours");
    let fake = Fake::start().await;
    let world = builder(&fake).start().await;
    let error = async |path: String| {
        let (status, lines) = over_socket(&world, &path).await;
        let error = lines.first().expect("an error")["error"].clone();
        (status, text(&error["reason"]).to_owned(), text(&error["message"]).to_owned())
    };
    let takeover = |path: &Path, upstream: &str| {
        format!("/takeover?folder={}&upstream={upstream}", path.display())
    };
    for path in [empty.path(), &file, &folder.path().join("docker"), Path::new("/no/such")] {
        let (status, reason, message) = error(takeover(path, "docker.io")).await;
        assert_eq!((status / 100, reason.as_str()), (4, "bundle"), "{message}");
        assert!(
            message.contains("rootdirectory") && message.contains("docker/registry/v2"),
            "{message}"
        );
    }
    let (_, reason, message) = error(takeover(folder.path(), "quay.io")).await;
    assert_eq!(reason, "unknown_registry");
    assert!(message.contains("[upstream.\"quay.io\"]"), "{message}");
    let (_, reason, _) = error(takeover(folder.path(), "docker.io/team/app")).await;
    assert!(["image", "unknown_image"].contains(&reason.as_str()), "{reason}");
    let (status, ..) = error("/takeover?folder=relative&upstream=docker.io".to_owned()).await;
    assert_eq!(status, 400);
    // A path names a file of this machine: not over the port.
    let path = format!("/api/v1{}", takeover(folder.path(), "docker.io"));
    let over_port: Response = world.admin().request("POST", &path).send().await;
    assert!(over_port.text().contains("socket"), "{over_port:?}");
    world.finish().await;
}

#[tokio::test]
async fn who_goes_ends_the_work_and_the_next_one_goes_on() {
    let folder = Folder::new();
    let images: Vec<_> = (0..40).map(|n| Image::single(&format!("many {n}"))).collect();
    for (number, image) in images.iter().enumerate() {
        let name = format!("many/n{number}");
        folder.put(&name, image);
        folder.tag(&name, "latest", &[(image, LONG_AGO)]);
    }
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let fake = Fake::start().await;
    let world = builder(&fake).disk(&disk).start().await;
    let idle = world.idle_tasks().await;
    fake.stop().await;
    // It stands at its first file until whoever asked has gone.
    disk.hold_syncs(true);
    let mut stream =
        UnixStream::connect(world.data().join("admin.sock")).await.expect("it listens");
    let path = folder.path().display();
    let request = format!(
        "POST /api/v1/takeover?folder={path}&upstream=docker.io HTTP/1.1\r\nHost: roadstead\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut head = [0; 16];
    within("the head", stream.read_exact(&mut head)).await.expect("an answer begins");
    assert!(head.starts_with(b"HTTP/1.1 200"), "{head:?}");
    // Another one at the same time is refused.
    let (status, lines) =
        over_socket(&world, &format!("/takeover?folder={path}&upstream=docker.io")).await;
    assert_eq!((status / 100, &lines[0]["error"]["reason"]), (4, &"busy".into()), "{lines:?}");
    drop(stream);
    disk.hold_syncs(false);
    world.tasks_at_most(idle).await;
    let story = take(&world, &folder, "").await;
    assert_eq!((&last(&story)["images"], &last(&story)["failed"]), (&40.into(), &0.into()));
    for (number, image) in images.iter().enumerate() {
        pull(&world.client(), &format!("many/n{number}"), "latest", image).await;
    }
    world.finish().await;
}
