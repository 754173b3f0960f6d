//! Real file systems that are too small, out of inodes, or gone read-only under the product, the rows included.
//!
//! The test mounts them itself, which needs root; where that is not possible it says so in a line that begins with "left out:".
//! With `TESTS_REQUIRE_CLIENTS=1` it must run, unless the machine forbids every mount.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use roadstead::span::{ContentFile, FramePool, Span};
use tempfile::TempDir;

use crate::support::client::End;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Then, When};
use crate::support::gate::Gate;
use crate::support::product::{FaultyDisk, RealDisk};
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
/// Longer than a store that was found full is left alone.
const A_WHILE: Duration = Duration::from_secs(30);
/// Nothing stays free: the file system itself has to say no.
const TO_THE_LAST_BYTE: &str = "\"0B\"";

/// A file system of its own, for as long as this lives.
struct Mount {
    /// Holds the mount point, and for a file system on a file its image.
    home: TempDir,
}

/// Says what is left out; fails where it is required and nothing but the test's own needs is missing.
fn left_out(why: &str, forbidden: bool) {
    let required = std::env::var_os("TESTS_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
    assert!(forbidden || !required, "a small file system is required: {why}");
    writeln!(io::stderr(), "left out: a small file system ({why})").expect("stderr takes a line");
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Mount {
    fn point(&self) -> PathBuf {
        self.home.path().join("small")
    }

    /// Mounts with these arguments; `None` if that cannot be done here.
    fn new(prepare: impl FnOnce(&Path) -> Result<(), String>, arguments: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            left_out("not root", false);
            return None;
        }
        let mount = Self { home: TempDir::new().expect("a temporary directory can be made") };
        fs::create_dir(mount.point()).expect("it is ours");
        let prepared = prepare(mount.home.path());
        let point = mount.point();
        let image = mount.home.path().join("image");
        let image = image.to_str().expect("temporary names are text");
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|argument| if *argument == "IMAGE" { image } else { argument })
            .chain(point.to_str())
            .collect();
        match prepared.and_then(|()| run("mount", &arguments)) {
            Ok(()) => Some(mount),
            Err(why) => {
                left_out(&why, true);
                None
            }
        }
    }

    fn tmpfs(options: &str) -> Option<Self> {
        Self::new(|_home| Ok(()), &["-t", "tmpfs", "-o", options, "roadstead-test"])
    }

    /// Where the product keeps its data.
    fn data(&self) -> PathBuf {
        self.point().join("data")
    }

    /// Somebody else's file that takes all room there is, and then all inodes.
    fn fill(&self) {
        let mut file = fs::File::create(self.point().join("filler")).expect("there is an inode");
        let piece = vec![7; 4096];
        while file.write_all(&piece).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.point().join("filler")).expect("it was made");
    }

    fn use_up_inodes(&self) -> usize {
        let name = |number: usize| self.point().join(format!("inode-{number}"));
        (0..).take_while(|number| fs::File::create(name(*number)).is_ok()).count()
    }

    fn give_back_inodes(&self, count: usize) {
        for number in 0..count {
            let name = self.point().join(format!("inode-{number}"));
            fs::remove_file(name).expect("it was made");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let point = self.point();
        if let Some(point) = point.to_str() {
            // Lazily: a test that failed may still have files open.
            drop(run("umount", &["--lazy", point]));
        }
    }
}

fn builder(fake: &Fake, mount: &Mount) -> WorldBuilder {
    let settings = "retry_after_failure = \"0s\"\nfresh_for = \"0s\"";
    World::builder()
        .upstream_with("docker.io", fake, settings)
        .data(&mount.data())
        .set("min_free", TO_THE_LAST_BYTE)
}

fn image(seed: u64, size: u64) -> Image {
    Image::build(&format!("small {seed}")).layers(2).layer(Blob::synthetic(seed, size)).finish()
}

/// Everything that was pulled is here, and is served with upstream gone and after a restart.
async fn is_cached(fake: &Fake, world: &mut World, images: &[(&str, &Image)]) {
    world.downloads_over().await;
    fake.stop().await;
    for (tag, image) in images {
        pull(&world.client(), NAME, tag, image).await;
    }
    world.restart().await;
    for (tag, image) in images {
        pull(&world.client(), NAME, &image.digest, image).await;
        pull(&world.client(), NAME, tag, image).await;
    }
    fake.switch_on().await;
}

#[tokio::test]
async fn a_disk_that_fills_in_the_middle_of_a_blob_cuts_nobody() {
    let Some(mount) = Mount::tmpfs("size=12m") else { return };
    let fake = Fake::start().await;
    let (before, during, meanwhile) = (image(61, MIB), image(62, 6 * MIB), image(63, 2 * MIB));
    for (tag, image) in [("before", &before), ("during", &during), ("meanwhile", &meanwhile)] {
        fake.push(NAME, tag, image);
    }
    // Room is not reserved, so that it is missing in the middle and not at the beginning.
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    disk.reserve_nothing();
    let mut world = builder(&fake, &mount).disk(&disk).start().await;
    let client = world.client();
    pull(&client, NAME, "before", &before).await;
    world.downloads_over().await;

    let blob = during.all_blobs()[3];
    client.manifest(NAME, "during").expect(200).await;
    let gate = Gate::new();
    let held = fake.rule(When::blob().about(&blob.digest).once(), Then::gate_at(2 * MIB, &gate));
    let mut first = client.blob(NAME, &blob.digest).open().await;
    let mut begun = first.take(MIB).await.to_vec();
    gate.reached().await;
    let second = client.blob(NAME, &blob.digest).open().await;
    mount.fill();
    gate.open();
    let (rest, second) = tokio::join!(first.rest(), second.rest());
    held.expect_hit();
    begun.extend_from_slice(&rest.body);
    assert_eq!((rest.end, second.end), (End::Clean, End::Clean));
    assert!(blob.bytes() == begun && blob.bytes() == second.body, "other bytes");
    world.downloads_over().await;
    assert!(!world.has_stored(&blob.digest), "there was no room for it");
    assert_eq!(world.partial_files(), Vec::<PathBuf>::new(), "what is of no use takes no room");

    // Nothing fits any more, rows neither.
    for _again in 0..2 {
        pull(&client, NAME, "during", &during).await;
        pull(&client, NAME, "meanwhile", &meanwhile).await;
        pull(&client, NAME, "before", &before).await;
    }
    assert!(!world.has_stored(&meanwhile.blobs[3].digest));
    mount.make_room();
    world.pass(A_WHILE).await;
    let all = [("before", &before), ("during", &during), ("meanwhile", &meanwhile)];
    for (tag, image) in all {
        pull(&client, NAME, tag, image).await;
    }
    is_cached(&fake, &mut world, &all).await;
    world.finish().await;
}

#[tokio::test]
async fn it_starts_on_a_full_disk_and_serves_what_is_there() {
    let Some(mount) = Mount::tmpfs("size=8m") else { return };
    let fake = Fake::start().await;
    let (before, after) = (image(64, MIB), image(65, 2 * MIB));
    fake.push(NAME, "before", &before);
    fake.push(NAME, "after", &after);
    let mut world = builder(&fake, &mount).start().await;
    pull(&world.client(), NAME, "before", &before).await;
    world.downloads_over().await;
    mount.fill();
    world.restart().await;
    pull(&world.client(), NAME, "after", &after).await;
    fake.stop().await;
    pull(&world.client(), NAME, &before.digest, &before).await;
    fake.switch_on().await;
    mount.make_room();
    world.pass(A_WHILE).await;
    pull(&world.client(), NAME, "before", &before).await;
    pull(&world.client(), NAME, "after", &after).await;
    is_cached(&fake, &mut world, &[("before", &before), ("after", &after)]).await;
    world.finish().await;
}

#[tokio::test]
async fn a_disk_without_inodes_passes_content_through() {
    let Some(mount) = Mount::tmpfs("size=32m,nr_inodes=60") else { return };
    let fake = Fake::start().await;
    let (before, during) = (image(66, MIB), image(67, 2 * MIB));
    fake.push(NAME, "before", &before);
    fake.push(NAME, "during", &during);
    let mut world = builder(&fake, &mount).start().await;
    pull(&world.client(), NAME, "before", &before).await;
    world.downloads_over().await;
    let taken = mount.use_up_inodes();
    assert!(taken > 10, "only {taken} inodes were left");
    for _again in 0..2 {
        pull(&world.client(), NAME, "during", &during).await;
        pull(&world.client(), NAME, "before", &before).await;
        world.pass(A_WHILE).await;
    }
    assert!(during.all_blobs().iter().all(|blob| !world.has_stored(&blob.digest)));
    mount.give_back_inodes(taken);
    world.pass(A_WHILE).await;
    pull(&world.client(), NAME, "during", &during).await;
    is_cached(&fake, &mut world, &[("before", &before), ("during", &during)]).await;
    world.finish().await;
}

/// The journal of a real ext4 is aborted under a running download: the kernel answers EROFS or EIO to everything from then on.
#[tokio::test]
async fn a_file_system_that_goes_read_only_cuts_nobody() {
    let make = |home: &Path| {
        let image = home.join("image");
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(48 * MIB).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", image.to_str().expect("temporary names are text")])
    };
    let options = ["-o", "loop,errors=remount-ro", "IMAGE"];
    let Some(mount) = Mount::new(make, &options) else { return };
    let point = mount.point();
    let point = point.to_str().expect("temporary names are text");
    let fake = Fake::start().await;
    let (before, during) = (image(68, MIB), image(69, 6 * MIB));
    fake.push(NAME, "before", &before);
    fake.push(NAME, "during", &during);
    let mut world = builder(&fake, &mount).start().await;
    let client = world.client();
    pull(&client, NAME, "before", &before).await;
    world.downloads_over().await;

    let blob = during.all_blobs()[3];
    client.manifest(NAME, "during").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob().about(&blob.digest).once(), Then::gate_at(2 * MIB, &gate));
    let mut body = client.blob(NAME, &blob.digest).open().await;
    let mut begun = body.take(MIB).await.to_vec();
    gate.reached().await;
    run("mount", &["-o", "remount,abort", point]).expect("a mounted ext4 can be aborted");
    gate.open();
    let rest = body.rest().await;
    begun.extend_from_slice(&rest.body);
    assert_eq!(rest.end, End::Clean);
    assert!(blob.bytes() == begun, "other bytes");
    for _again in 0..2 {
        pull(&client, NAME, "during", &during).await;
        pull(&client, NAME, "before", &before).await;
    }
    world.downloads_over().await;

    // The operator repairs it: mounted again it is as good as new.
    assert_eq!(world.stopping().await, 0, "tasks are left");
    run("umount", &[point]).expect("nothing is open any more");
    let device = mount.home.path().join("image");
    let device = device.to_str().expect("temporary names are text");
    drop(run("fsck.ext4", &["-p", device]));
    run("mount", &["-o", "loop", device, point]).expect("it was mounted before");
    world.start_again().await;
    pull(&world.client(), NAME, "before", &before).await;
    pull(&world.client(), NAME, "during", &during).await;
    is_cached(&fake, &mut world, &[("before", &before), ("during", &during)]).await;
    world.finish().await;
}

/// A file of three extents, the middle one of which lies behind both others on the device, and then behind the device's end.
struct BadPlace {
    mount: Mount,
    size: u64,
}

impl BadPlace {
    const PAGE: u64 = 4096;
    /// Pages of the file, and those that will not be readable.
    const PAGES: u64 = 200;
    const BAD: std::ops::Range<u64> = 125..157;

    fn path(&self) -> PathBuf {
        self.mount.point().join("file")
    }

    fn make() -> Option<Self> {
        let image = |home: &Path| {
            let image = home.join("image");
            let file = fs::File::create(&image).map_err(|error| error.to_string())?;
            file.set_len(32 * MIB).map_err(|error| error.to_string())?;
            let image = image.to_str().expect("temporary names are text");
            run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-O", "^has_journal", image])
        };
        let mount = Mount::new(image, &["-o", "loop", "IMAGE"])?;
        let place = Self { mount, size: Self::PAGES * Self::PAGE };
        match place.lose() {
            Ok(()) => Some(place),
            Err(why) => {
                left_out(&why, true);
                None
            }
        }
    }

    fn lose(&self) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let bad = Self::BAD.end - Self::BAD.start;
        let (offset, length) = (Self::BAD.start * Self::PAGE, bad * Self::PAGE);
        let bytes = |count| vec![b'x'; usize::try_from(count).expect("it is small")];
        let file = fs::File::create_new(self.path()).map_err(text)?;
        file.write_all_at(&bytes(self.size - length), 0).map_err(text)?;
        file.sync_all().map_err(text)?;
        // What lies behind it is taken, so that the middle cannot come next.
        let behind = fs::File::create(self.mount.point().join("behind")).map_err(text)?;
        behind.write_all_at(&bytes(8 * MIB), 0).map_err(text)?;
        behind.sync_all().map_err(text)?;
        let path = self.path();
        let path = path.to_str().expect("temporary names are text");
        let (at, long) = (offset.to_string(), length.to_string());
        run("fallocate", &["--insert-range", "--offset", &at, "--length", &long, path])?;
        file.write_all_at(&bytes(length), offset).map_err(text)?;
        file.sync_all().map_err(text)?;
        let map = Command::new("filefrag").args(["-v", path]).output().map_err(text)?;
        let blocks = extents(&String::from_utf8_lossy(&map.stdout));
        let [first, middle, last] = *blocks else {
            return Err(format!("the file has {} extents", blocks.len()));
        };
        if middle < first.max(last) {
            return Err("the middle does not lie behind the rest".to_owned());
        }
        let image = self.mount.home.path().join("image");
        let cut = fs::File::options().write(true).open(&image).map_err(text)?;
        cut.set_len(middle * Self::PAGE).map_err(text)?;
        let image = image.to_str().expect("temporary names are text");
        let found = Command::new("losetup").args(["-n", "-O", "NAME", "-j", image]).output();
        let device = String::from_utf8_lossy(&found.map_err(text)?.stdout).trim().to_owned();
        run("losetup", &["--set-capacity", &device])?;
        // Nothing of it stays in memory.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|error| error.to_string())
    }
}

/// The first blocks of a file's extents on the device, as `filefrag -v` tells them.
fn extents(map: &str) -> Vec<u64> {
    let lines = map.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split(':').map(str::trim).collect();
        columns[0].parse::<u64>().ok()?;
        columns.get(2)?.split("..").next()?.trim().parse().ok()
    });
    lines.collect()
}

/// A page that the disk could not read stays in the page cache and counts as cached. It must be met by a reader, who can go elsewhere,
/// and not by `sendfile` again and again.
#[test]
fn a_bad_place_is_sent_from_at_most_once() {
    let Some(place) = BadPlace::make() else { return };
    let file = Arc::new(fs::File::open(place.path()).expect("its metadata are there"));
    let whole = Span::new(ContentFile::new(file, Some(place.size)), 0, place.size);
    let pool = FramePool::default();
    // As an answer goes: it misses, reads a frame, and the kernel reads ahead over the bad place.
    assert!(whole.sendable().is_none() && whole.read_frame(0, &pool).is_ok());
    whole.read_in_order();
    let _more = whole.read_frame(200_000, &pool);
    let tail = whole.slice(BadPlace::BAD.end * BadPlace::PAGE, place.size);
    assert!(tail.read_frame(0, &pool).is_ok(), "behind the bad place all is well");
    let rest = whole.slice(BadPlace::BAD.start * BadPlace::PAGE, place.size);
    assert!(rest.sendable().is_some(), "it looks as if it were all there");
    let (ours, _theirs) = UnixStream::pair().expect("sockets can be had");
    let error = rest.send(&ours).expect_err("the disk cannot read it");
    assert_eq!(rustix::io::Errno::from_io_error(&error), Some(rustix::io::Errno::IO));
    assert!(rest.sendable().is_none(), "the next one reads it, and hears of the error");
    assert!(rest.read_frame(0, &pool).is_err());
}
