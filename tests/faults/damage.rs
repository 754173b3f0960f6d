//! Damage on the disk heals itself.
//!
//! A byte that flips without a trace in length, time or inode is a matter of the scrub and is tested beside the store.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::client::{Client, End};
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::Fake;
use crate::support::product::{Fault, FaultyDisk, Operation, Plan, RealDisk};
use crate::support::pull::{describes_blob, is_blob, is_hit, pull, pulled};
use crate::support::world::World;

const NAME: &str = "team/app";

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Flipped,
    Short,
    Empty,
    Long,
    Missing,
    /// A directory in its place: it can be opened and not be read.
    Unreadable,
    /// A file with other bytes of the same length under its name.
    Replaced,
}

const ALL: [Damage; 7] = [
    Damage::Flipped,
    Damage::Short,
    Damage::Empty,
    Damage::Long,
    Damage::Missing,
    Damage::Unreadable,
    Damage::Replaced,
];

impl Damage {
    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).expect("it was stored");
        let middle = bytes.len() / 2;
        match self {
            Self::Flipped => {
                bytes[middle] ^= 1;
                fs::write(path, bytes).expect("it is ours");
                touch(path);
            }
            Self::Short => fs::write(path, &bytes[..bytes.len() - 1]).expect("it is ours"),
            Self::Empty => fs::write(path, b"").expect("it is ours"),
            Self::Long => {
                bytes.push(0);
                fs::write(path, bytes).expect("it is ours");
            }
            Self::Missing => fs::remove_file(path).expect("it is ours"),
            Self::Unreadable => {
                fs::remove_file(path).expect("it is ours");
                fs::create_dir(path).expect("it is ours");
            }
            Self::Replaced => {
                bytes[0] ^= 1;
                replace(path, &bytes);
            }
        }
    }
}

/// A new file under the name: as a restored backup, or a copy of the directory.
fn replace(path: &Path, bytes: &[u8]) {
    let other = path.with_file_name("other");
    fs::write(&other, bytes).expect("it is ours");
    fs::rename(other, path).expect("it is ours");
}

/// The clock of the file system may be too coarse to show two writes in a row.
fn touch(path: &Path) {
    let file = File::options().write(true).open(path).expect("it is ours");
    let later = file.metadata().and_then(|found| found.modified()).expect("it has a time");
    let times = FileTimes::new().set_modified(later + Duration::from_secs(1));
    file.set_times(times).expect("it is ours");
}

fn image() -> (Image, Blob) {
    let blob = Blob::synthetic(61, MIB);
    (Image::build("damage").layer(blob.clone()).finish(), blob)
}

/// The ways to ask for a blob, each of which may be the first to meet the damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Get,
    Head,
    Range,
}

impl Way {
    async fn is_right(self, client: &Client, blob: &Blob) {
        match self {
            Self::Get => is_blob(&client.blob(NAME, &blob.digest).expect(200).await, blob),
            Self::Head => {
                describes_blob(&client.blob_head(NAME, &blob.digest).expect(200).await, blob);
            }
            Self::Range => {
                let middle = blob.len() / 2;
                let range = format!("{}-{}", middle - 5, middle + 4);
                let part = client.blob(NAME, &blob.digest).range(&range).expect(206).await;
                assert_eq!(part.body, blob.data.slice(middle - 5..middle + 5));
            }
        }
    }

    /// Without upstream: a clean failure, never wrong bytes.
    async fn is_refused(self, client: &Client, blob: &Blob) {
        let request = match self {
            Self::Get => client.blob(NAME, &blob.digest),
            Self::Head => client.blob_head(NAME, &blob.digest),
            Self::Range => client.blob(NAME, &blob.digest).range("500000-500999"),
        };
        let reply = request.send().await;
        assert!(reply.status >= 400 && reply.end == End::Clean, "{self:?}: {reply:?}");
    }
}

#[tokio::test]
async fn a_damaged_blob_is_fetched_again_and_nobody_gets_its_bytes() {
    let (image, blob) = image();
    for damage in ALL {
        for way in [Way::Get, Way::Head, Way::Range] {
            let (fake, world) = pulled(NAME, &image).await;
            damage.apply(&world.blob_file(&blob.digest));
            let what = format!("{damage:?}, {way:?}");
            way.is_right(&world.client(), &blob).await;
            world.downloads_over().await;
            Way::Get.is_right(&world.client(), &blob).await;
            world.downloads_over().await;
            assert!(fake.blob_bytes(&blob.digest) >= 2 * blob.len(), "{what}: fetched again");
            fake.stop().await;
            for again in [Way::Get, Way::Head, Way::Range] {
                again.is_right(&world.client(), &blob).await;
            }
            let put_aside = fs::read_dir(world.data().join("quarantine")).expect("ours").count();
            assert_eq!(put_aside, usize::from(damage != Damage::Missing), "{what}");
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn a_damaged_blob_is_refused_while_upstream_is_down_and_heals_after() {
    let (image, blob) = image();
    for damage in ALL {
        let (fake, world) = pulled(NAME, &image).await;
        fake.stop().await;
        damage.apply(&world.blob_file(&blob.digest));
        for way in [Way::Head, Way::Range, Way::Get] {
            way.is_refused(&world.client(), &blob).await;
        }
        fake.switch_on().await;
        world.advance(Duration::from_secs(120));
        pull(&world.client(), NAME, "latest", &image).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn the_same_bytes_in_another_file_are_served_without_upstream() {
    let (image, blob) = image();
    let (fake, world) = pulled(NAME, &image).await;
    fake.stop().await;
    let path = world.blob_file(&blob.digest);
    replace(&path, &blob.bytes());
    touch(&path);
    for _twice in 0..2 {
        let reply = world.client().blob(NAME, &blob.digest).expect(200).await;
        is_blob(&reply, &blob);
        is_hit(&reply);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_is_sent_costs_no_client_its_answer() {
    let blob = Blob::synthetic(62, 48 * MIB);
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::build("cut").layer(blob.clone()).finish());
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let get = world.client().blob(NAME, &blob.digest);
    get.open().await.hashed().await.is_whole(&blob.digest, blob.len());
    world.downloads_over().await;
    let before = fake.blob_bytes(&blob.digest);
    let mut body = get.open().await;
    assert_eq!(body.take(1000).await, blob.data.slice(0..1000));
    // Far beyond all that the sockets hold.
    let file =
        File::options().write(true).open(world.blob_file(&blob.digest)).expect("it is stored");
    file.set_len(24 * MIB + 77).expect("it is ours");
    let rest = body.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()), "other bytes");
    assert!(fake.blob_bytes(&blob.digest) > before, "the rest came from upstream");
    world.downloads_over().await;
    Way::Get.is_right(&world.client(), &blob).await;
    world.finish().await;
}

#[tokio::test]
async fn a_device_that_fails_while_upstream_is_down_and_comes_back_has_lost_nothing() {
    let (image, blob) = image();
    for only in [Operation::Open, Operation::Stat, Operation::Read] {
        let fake = Fake::start().await;
        fake.push(NAME, "latest", &image);
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let world = World::builder().upstream("docker.io", &fake).disk(&disk).start().await;
        pull(&world.client(), NAME, "latest", &image).await;
        world.downloads_over().await;
        fake.stop().await;
        // Another time makes it a file that is read before anybody gets it.
        touch(&world.blob_file(&blob.digest));
        disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(only) });
        for _again in 0..3 {
            for way in [Way::Head, Way::Range, Way::Get] {
                way.is_refused(&world.client(), &blob).await;
            }
        }
        assert!(disk.injected() > 0, "{only:?}");
        disk.heal();
        for way in [Way::Get, Way::Head, Way::Range] {
            way.is_right(&world.client(), &blob).await;
        }
        let put_aside = fs::read_dir(world.data().join("quarantine")).expect("ours").count();
        assert_eq!(put_aside, 0, "{only:?}");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_damaged_manifest_is_fetched_again_or_refused() {
    let (image, _blob) = image();
    for damage in ALL {
        for up in [true, false] {
            let (fake, mut world) = pulled(NAME, &image).await;
            // Otherwise it is served from memory.
            let stopping = world.stopping();
            assert_eq!(stopping.await, 0);
            damage.apply(&world.blob_file(&image.digest));
            world.start_again().await;
            if !up {
                fake.stop().await;
                let client = world.client();
                for reference in ["latest", image.digest.as_str()] {
                    for request in
                        [client.manifest_head(NAME, reference), client.manifest(NAME, reference)]
                    {
                        let reply = request.send().await;
                        let right = reply.status == 200
                            && reply.must("Docker-Content-Digest") == image.digest;
                        assert!(right || reply.status >= 400, "{damage:?}: {reply:?}");
                        let bytes = reply.body.is_empty() || reply.body == image.bytes;
                        assert!(bytes || reply.status >= 400, "{damage:?}: wrong bytes");
                    }
                }
                fake.switch_on().await;
                world.advance(Duration::from_secs(120));
            }
            pull(&world.client(), NAME, "latest", &image).await;
            pull(&world.client(), NAME, &image.digest, &image).await;
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn junk_in_any_file_costs_one_refetch_at_most() {
    let (image, blob) = image();
    let junk = vec![0xAA; 50_000];
    for name in ["roadstead.db", "roadstead.db-wal", "roadstead.db-shm", "LOCK"] {
        for bytes in [&junk[..], b"", b"x"] {
            let (fake, mut world) = pulled(NAME, &image).await;
            let stopping = world.stopping();
            assert_eq!(stopping.await, 0);
            fs::write(world.data().join(name), bytes).expect("it is ours");
            world.start_again().await;
            pull(&world.client(), NAME, "latest", &image).await;
            world.downloads_over().await;
            assert!(fake.blob_bytes(&blob.digest) <= 2 * blob.len(), "{name}");
            let told = world.log_lines().iter().any(|line| line.contains("roadstead.db.damaged-"));
            let aside = fs::read_dir(world.data()).expect("ours").flatten().any(|entry| {
                entry.file_name().to_string_lossy().starts_with("roadstead.db.damaged-")
            });
            assert_eq!(aside, name == "roadstead.db" && !bytes.is_empty(), "{name}");
            assert!(told || !aside, "it is said in the log");
            fake.stop().await;
            pull(&world.client(), NAME, "latest", &image).await;
            world.finish().await;
        }
    }
}

#[tokio::test]
async fn foreign_files_harm_nothing() {
    let (image, blob) = image();
    let (fake, mut world) = pulled(NAME, &image).await;
    let other = Blob::synthetic(62, 1000);
    let (_, hex) = other.digest.split_once(':').expect("a digest has a colon");
    let data = world.data();
    let litter = |data: &Path| {
        fs::write(data.join("notes.txt"), b"mine").expect("it is ours");
        for name in ["w-0", "d-sha256-zz", "notes.txt", &format!("d-sha256-{hex}")] {
            fs::write(data.join("partial").join(name), b"junk").expect("it is ours");
        }
        fs::write(data.join("partial").join(format!("d-sha256-{hex}.map")), b"junk").expect("ours");
    };
    let stopping = world.stopping();
    assert_eq!(stopping.await, 0);
    litter(&data);
    // A file that no row knows, with other bytes than its name says.
    fs::write(data.join("blobs/sha256").join(hex), b"junk").expect("it is ours");
    world.start_again().await;
    fake.stop().await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.switch_on().await;
    let changed = Image::build("another").layer(blob.clone()).layer(other.clone()).finish();
    fake.push(NAME, "other", &changed);
    pull(&world.client(), NAME, "other", &changed).await;
    world.downloads_over().await;
    fake.stop().await;
    is_blob(&world.client().blob(NAME, &other.digest).expect(200).await, &other);
    assert!(data.join("notes.txt").exists(), "what is not ours stays");
    world.finish().await;
}
