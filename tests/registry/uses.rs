//! What counts as a use: everything that tells a client that it has the content, with or without the bytes, makes the whole image young.

use std::time::Duration;

use crate::support::client::Request;
use crate::support::content::Image;
use crate::support::fake::Fake;
use crate::support::pull::pull;
use crate::support::world::World;

const NAME: &str = "team/app";
const HOUR: Duration = Duration::from_secs(3600);

/// Content that was not used within the last second, as the eviction would find it.
async fn unused(world: &World) -> Vec<String> {
    let before = world.moment_ago(Duration::from_secs(1));
    let idle = world.metadata().idle(before, None, 1000).await.expect("the rows can be read");
    idle.iter().map(|one| one.digest.to_string()).collect()
}

#[tokio::test]
async fn a_head_and_a_304_are_uses_of_the_whole_image() {
    let image = Image::index("uses");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::builder().upstream("docker.io", &fake).fresh_for("1000h").start().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    let held = format!("\"{}\"", image.digest);
    let revision = format!("latest/{}", image.digest);
    for reference in ["latest", image.digest.as_str(), revision.as_str()] {
        let client = world.client();
        let head = || client.manifest_head(NAME, reference);
        let not_modified = || client.manifest(NAME, reference).header("If-None-Match", &held);
        let long = |request: Request| request.header("Via", "1.1 proxy.example");
        for (what, request, status) in [
            ("the long HEAD", long(head()), 200),
            ("the short HEAD", head(), 200),
            ("the long 304", long(not_modified()), 304),
            ("the short 304", not_modified(), 304),
        ] {
            world.advance(HOUR);
            let before = unused(&world).await;
            // The index, two manifests, and what is below them.
            assert!(before.len() >= 5, "{what}: {before:?}");
            request.expect(status).await;
            assert_eq!(unused(&world).await, [""; 0], "{what} of {reference}");
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn a_head_and_a_304_are_uses_of_a_blob() {
    let image = Image::single("uses of a blob");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    let blob = image.blobs.first().expect("it has blobs").digest.clone();
    let client = world.client();
    let held = client.blob(NAME, &blob).header("If-None-Match", &format!("\"{blob}\""));
    for (request, status) in [(client.blob_head(NAME, &blob), 200), (held, 304)] {
        world.advance(HOUR);
        assert!(unused(&world).await.contains(&blob));
        request.expect(status).await;
        let rest = unused(&world).await;
        assert!(!rest.is_empty() && !rest.contains(&blob), "the blob alone: {rest:?}");
    }
    world.finish().await;
}
