//! The scrub: decay that nobody asked for is found, put aside and fetched again, and no client sees a wrong byte.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Kind};
use crate::support::pull::{pull, pulled};
use crate::support::world::World;

const NAME: &str = "team/app";
const DAY: Duration = Duration::from_secs(86_400);
const OBJECTS: &str = "roadstead_scrub_objects_total";

/// Changes one byte and keeps length and time of the file, as decay does: nothing but reading finds it.
fn decay(file: &Path) {
    let modified = fs::metadata(file).and_then(|stat| stat.modified()).expect("it is stored");
    let mut bytes = fs::read(file).expect("it is stored");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let open = fs::File::options().write(true).open(file).expect("it is ours");
    std::os::unix::fs::FileExt::write_all_at(&open, &bytes, 0).expect("it is ours");
    open.set_modified(modified).expect("it is ours");
}

#[tokio::test]
async fn decay_is_found_and_the_next_pull_is_right() {
    let blob = Blob::synthetic(71, MIB);
    let image = Image::build("decay").layer(blob.clone()).finish();
    let (fake, world) = pulled(NAME, &image).await;
    decay(&world.blob_file(&blob.digest));
    world.advance(31 * DAY);
    world.wake_upkeep();
    let all = |metrics: &crate::support::world::Metrics| {
        metrics.sum(OBJECTS, &[("result", "sound")]) >= 2.0
            && metrics.sum(OBJECTS, &[("result", "damaged")]) >= 1.0
    };
    world.metrics_where("the scrub to have read everything", all).await;
    assert!(!world.has_stored(&blob.digest));
    let aside = world.data().join("quarantine").join(blob.digest.replace(':', "-"));
    assert!(aside.exists(), "it is kept for whoever wants to know why");
    let told = world
        .log_lines()
        .into_iter()
        .any(|line| line.contains("scrub found damaged") && line.contains(&blob.digest));
    assert!(told, "the log names it and says what to do");
    let mark = fake.mark();
    pull(&world.client(), NAME, &image.digest, &image).await;
    assert_eq!(fake.since(mark).of(Kind::Blob).len(), 1, "only what was damaged is fetched");
    world.downloads_over().await;
    assert!(world.has_stored(&blob.digest));
    world.finish().await;
}

#[tokio::test]
async fn what_was_just_fetched_is_not_read_again() {
    let image = Image::single("fresh");
    let (_fake, world) = pulled(NAME, &image).await;
    world.advance(DAY);
    world.wake_upkeep();
    let looked = |metrics: &crate::support::world::Metrics| {
        metrics.sum("roadstead_scrub_oldest_seconds", &[]) >= DAY.as_secs_f64()
    };
    let metrics = world.metrics_where("the worker to look", looked).await;
    assert_eq!(metrics.sum("roadstead_scrub_bytes_total", &[]), 0.0);
    world.finish().await;
}

#[tokio::test]
async fn a_reload_turns_the_scrub_off_and_on() {
    let image = Image::single("off and on");
    let (_fake, mut world) = pulled(NAME, &image).await;
    world.reload_with(|builder| builder.set("scrub_period", "\"off\"")).expect("it is valid");
    world.advance(400 * DAY);
    world.wake_upkeep();
    let looked = |metrics: &crate::support::world::Metrics| {
        metrics.sum("roadstead_scrub_oldest_seconds", &[]) >= DAY.as_secs_f64()
    };
    let metrics = world.metrics_where("the worker to look", looked).await;
    assert_eq!(metrics.sum("roadstead_scrub_bytes_total", &[]), 0.0);
    world.reload_with(|builder| builder.set("scrub_period", "\"2h\"")).expect("it is valid");
    world
        .metrics_where("the scrub", |metrics| metrics.sum(OBJECTS, &[("result", "sound")]) >= 2.0)
        .await;
    world.finish().await;
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_scrub_is_prompt_and_clean() {
    let blob = Blob::synthetic(72, 16 * MIB);
    let image = Image::build("long").layer(blob.clone()).finish();
    let (_fake, world) = pulled(NAME, &image).await;
    // Half of the period: the pace is the slowest there is.
    world.advance(16 * DAY);
    world.wake_upkeep();
    world
        .metrics_where("the scrub to begin", |metrics| {
            metrics.sum("roadstead_scrub_bytes_total", &[]) > 2.0 * 1024.0 * 1024.0
        })
        .await;
    world.finish().await;
}

#[tokio::test]
async fn after_junk_in_the_database_the_files_are_taken_in_again() {
    let image = Image::build("junk").layers(3).layer(Blob::synthetic(73, MIB)).finish();
    let (fake, mut world) = pulled(NAME, &image).await;
    assert_eq!(world.stopping().await, 0);
    for companion in ["roadstead.db-wal", "roadstead.db-shm"] {
        drop(fs::remove_file(world.data().join(companion)));
    }
    fs::write(world.data().join("roadstead.db"), vec![0x5a; 100_000]).expect("it is ours");
    world.start_again().await;
    world.client().get("/readyz").expect(200).await;
    let objects = f64::from(u32::try_from(image.all_blobs().len() + 1).expect("a few"));
    let all = |metrics: &crate::support::world::Metrics| {
        metrics.sum("roadstead_adopted_objects_total", &[]) >= objects
    };
    world.metrics_where("the files to be taken in", all).await;
    let before: u64 = image.all_blobs().iter().map(|blob| fake.blob_bytes(&blob.digest)).sum();
    pull(&world.client(), NAME, "latest", &image).await;
    let after: u64 = image.all_blobs().iter().map(|blob| fake.blob_bytes(&blob.digest)).sum();
    assert_eq!(after, before, "nothing that was verified is downloaded again");
    world.finish().await;
}
