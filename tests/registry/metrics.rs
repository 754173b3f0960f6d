//! The metrics page: every family that operators are promised, with labels from closed sets only, and numbers that are right.

use crate::support::client::Client;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Then, When};
use crate::support::gate::Gate;
use crate::support::pull::pull;
use crate::support::world::World;

const NAME: &str = "team/app";
const REQUESTS: &str = "roadstead_requests_total";

async fn pulled() -> (Fake, World, Image) {
    let fake = Fake::start().await;
    let image = Image::of_eleven_objects("metrics");
    fake.push(NAME, "latest", &image);
    fake.switch(|switch| switch.ratelimit = Some(76));
    let world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    (fake, world, image)
}

#[tokio::test]
async fn the_page_is_text_that_scrapers_read() {
    let (_fake, world, _image) = pulled().await;
    let reply = world.observer().get("/metrics").expect(200).await;
    let kind = reply.must("Content-Type");
    assert!(kind.contains("openmetrics") || kind.starts_with("text/plain"), "{kind}");
    assert!(reply.text().contains("# TYPE"));
    assert!(!kind.contains("openmetrics") || reply.text().trim_end().ends_with("# EOF"));
    world.finish().await;
}

#[tokio::test]
async fn requests_are_counted_by_kind_and_outcome() {
    let (fake, world, image) = pulled().await;
    let client = world.client();
    pull(&client, NAME, "latest", &image).await;
    client.manifest(NAME, "absent").expect(404).await;
    client.manifest(NAME, "-bad").expect(400).await;
    fake.stop().await;
    client.manifest(NAME, "unseen").expect(502).await;
    let all = [("upstream", "docker.io")];
    let metrics = world
        .metrics_where("the last request to be counted", |metrics| {
            metrics.sum(REQUESTS, &[("status", "502")]) >= 1.0
        })
        .await;
    let count = |labels: &[(&str, &str)]| metrics.sum(REQUESTS, labels);
    assert_eq!(count(&[("kind", "manifest"), ("outcome", "miss")]), 1.0);
    assert_eq!(count(&[("kind", "blob"), ("outcome", "miss")]), 10.0);
    assert_eq!(count(&[("kind", "manifest"), ("outcome", "hit")]), 1.0);
    assert_eq!(count(&[("kind", "blob"), ("outcome", "hit")]), 10.0);
    assert!(count(&[("outcome", "refused"), ("status", "404")]) >= 1.0);
    assert!(count(&[("status", "400")]) >= 1.0);
    assert!(count(&[("outcome", "error"), ("status", "502")]) >= 1.0);
    assert!(count(&all) >= 24.0);
    world.finish().await;
}

#[tokio::test]
async fn bytes_are_counted_on_both_sides() {
    let (fake, world, image) = pulled().await;
    pull(&world.client(), NAME, "latest", &image).await;
    let blobs: u64 = image.blobs.iter().map(Blob::len).sum();
    let metrics = world.metrics().await;
    let served = metrics.sum("roadstead_served_bytes_total", &[("kind", "blob")]);
    assert_eq!(served, as_f64(2 * blobs));
    let manifest = metrics.sum("roadstead_served_bytes_total", &[("kind", "manifest")]);
    assert_eq!(manifest, as_f64(2 * u64::try_from(image.bytes.len()).expect("small")));
    let fetched = metrics.sum("roadstead_upstream_bytes_total", &[("kind", "blob")]);
    assert_eq!(fetched, as_f64(blobs));
    let asked = metrics.sum("roadstead_upstream_requests_total", &[("upstream", "docker.io")]);
    assert_eq!(asked, as_f64(u64::try_from(fake.log().len()).expect("small")));
    world.finish().await;
}

fn as_f64(number: u64) -> f64 {
    f64::from(u32::try_from(number).expect("a small number"))
}

#[tokio::test]
async fn every_promised_family_is_there() {
    let (fake, world, _image) = pulled().await;
    fake.stop().await;
    let metrics = world.metrics().await;
    for name in [
        REQUESTS,
        "roadstead_served_bytes_total",
        "roadstead_first_byte_seconds_bucket",
        "roadstead_connections",
        "roadstead_upstream_requests_total",
        "roadstead_upstream_bytes_total",
        "roadstead_upstream_last_success_timestamp_seconds",
        "roadstead_upstream_ratelimit_remaining",
        "roadstead_store_bytes",
        "roadstead_store_objects",
        "roadstead_store_free_bytes",
        "roadstead_store_reserve_bytes",
        "roadstead_caching_disabled",
    ] {
        assert!(metrics.has(name, &[]), "{name} is not among {:?}", metrics.names());
    }
    let left = metrics.sum("roadstead_upstream_ratelimit_remaining", &[("upstream", "docker.io")]);
    assert_eq!(left, 75.0);
    assert_eq!(metrics.sum("roadstead_store_objects", &[]), 11.0);
    assert_eq!(metrics.sum("roadstead_caching_disabled", &[]), 0.0);
    for part in ["build", "flight", "stale"] {
        let found = metrics.names().into_iter().any(|name| name.contains(part));
        assert!(found, "nothing about {part} in {:?}", metrics.names());
    }
    world.finish().await;
}

#[tokio::test]
async fn the_store_is_counted_without_scanning_after_a_restart() {
    let (_fake, mut world, image) = pulled().await;
    let before = world.metrics().await.sum("roadstead_store_bytes", &[]);
    let blobs: u64 = image.blobs.iter().map(Blob::len).sum();
    assert!(before >= as_f64(blobs), "{before}");
    world.restart().await;
    let after = world.metrics().await.sum("roadstead_store_bytes", &[]);
    assert!((before - after).abs() < 0.5, "{before} {after}");
    world.finish().await;
}

#[tokio::test]
async fn no_client_makes_a_label() {
    let (_fake, world, _image) = pulled().await;
    let client: Client = world.client().with("User-Agent", "label-maker/1");
    for path in [
        "/v2/label/maker/manifests/label-maker",
        "/v2/x/y/tags/list?n=1&last=label-maker",
        "/label-maker",
    ] {
        client.get(path).send().await;
    }
    client.request("LABELMAKER", "/v2/").send().await;
    let text = world.observer().get("/metrics").expect(200).await.text();
    assert!(!text.to_lowercase().replace('-', "").contains("labelmaker"));
    let metrics = world.metrics().await;
    let known = [
        "build",
        "credential",
        "endpoint",
        "features",
        "kind",
        "le",
        "limit",
        "outcome",
        "quantile",
        "reason",
        "registry",
        "result",
        "revision",
        "rustc",
        "status",
        "upstream",
        "version",
    ];
    for label in metrics.label_names() {
        assert!(known.contains(&label), "{label} is no label of ours");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_download_that_runs_is_seen() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(41, 4 * MIB);
    fake.push(NAME, "latest", &Image::build("running").layer(blob.clone()).finish());
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let body = world.client().blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    let metrics = world.metrics().await;
    let running: f64 = metrics
        .names()
        .into_iter()
        .filter(|name| name.contains("flight") && !name.ends_with("_total"))
        .map(|name| metrics.sum(name, &[]))
        .sum();
    assert!(running >= 1.0, "{:?}", metrics.names());
    gate.open();
    body.hashed().await.is_whole(&blob.digest, blob.len());
    world.finish().await;
}

#[tokio::test]
async fn stale_answers_and_joiners_are_told_apart() {
    let fake = Fake::start().await;
    let image = Image::single("stale");
    fake.push(NAME, "latest", &image);
    let world = World::builder().upstream("docker.io", &fake).fresh_for("0s").start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    fake.stop().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let metrics = world.metrics().await;
    for outcome in ["miss", "revalidated", "stale"] {
        assert_eq!(metrics.sum(REQUESTS, &[("outcome", outcome)]), 1.0, "{outcome}");
    }
    world.finish().await;
}
