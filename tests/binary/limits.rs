//! What a process is left with: few descriptors, and nothing of clients who went away.

use std::collections::BTreeMap;
use std::io;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tempfile::TempDir;

use crate::process::Roadstead;
use crate::support::client::{Client, End};
use crate::support::content::{Blob, Image, MIB, sha256};
use crate::support::fake::Fake;
use crate::support::gate::within;

const NAME: &str = "up.test/team/app";
/// What the process may hold while the crowd comes; at rest it holds some twenty.
const DESCRIPTORS: u64 = 40;
const CLIENTS: usize = 60;
/// Lines that a process short of descriptors may write; one for each refused connection and retry would be thousands.
const LOG_LINES_MAX: usize = 2000;
/// Clients who leave in the middle.
const ABORTED: u64 = 200;
/// The same before the levels are taken: the allocator and the rows of metadata in memory have found theirs by then.
const WARM_UP: u64 = 400;
/// Leaving at a time.
const PARALLEL: usize = 8;
/// Anonymous memory that the allocator may keep beyond its level after the warm-up.
const GROWTH_BYTES: u64 = 6 << 20;

async fn metric(roadstead: &Roadstead, name: &str) -> f64 {
    let page = Client::new(roadstead.observe).get("/metrics").expect(200).await.text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("there is no {name} in {page}")).parse().unwrap()
}

/// Waits until nothing is downloaded and only whoever asks is connected.
async fn rests(roadstead: &Roadstead) {
    within("downloads and connections to end", async {
        while metric(roadstead, "roadstead_flights").await > 0.0
            || metric(roadstead, "roadstead_connections").await > 1.0
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// What came of one client's blob.
async fn outcome(client: &Client, blob: &Blob) -> io::Result<&'static str> {
    let reply = client.blob(NAME, &blob.digest).try_send().await?;
    Ok(match (reply.status, reply.end) {
        (200, End::Clean) => {
            assert_eq!(sha256(&reply.body), blob.digest, "wrong bytes to the end");
            "whole"
        }
        (200, _) => {
            assert!(blob.bytes().starts_with(&reply.body), "wrong bytes on the way");
            "cut"
        }
        (500..=599, _) => "refused",
        (status, _) => panic!("a blob was answered {status}"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_descriptors_give_nobody_wrong_bytes_and_it_recovers() {
    let fake = Fake::start().await;
    let blobs: Vec<Blob> = (0..12).map(|seed| Blob::synthetic(90 + seed, MIB)).collect();
    let builder =
        blobs.iter().fold(Image::build("few"), |builder, blob| builder.layer(blob.clone()));
    fake.push("team/app", "v1", &builder.finish());
    let home = TempDir::new().unwrap();
    let upstream = format!("up.test={}", fake.url());
    let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream]);
    let client = Client::new(roadstead.data);
    client.get(&format!("/v2/{NAME}/manifests/v1")).expect(200).await;
    assert!(roadstead.descriptors() < 35, "{} descriptors at rest", roadstead.descriptors());
    roadstead.limit_descriptors(DESCRIPTORS);

    let mut counts = BTreeMap::<&str, usize>::new();
    for round in 0..3 {
        let crowd = (0..CLIENTS).map(|number| {
            let (client, blob) = (&client, &blobs[(number + round) % blobs.len()]);
            async move { outcome(client, blob).await.unwrap_or("no answer") }
        });
        for end in join_all(crowd).await {
            *counts.entry(end).or_default() += 1;
        }
    }
    println!("{CLIENTS} clients on {DESCRIPTORS} descriptors, three times: {counts:?}");
    assert!(counts.contains_key("whole"), "{counts:?}");
    rests(&roadstead).await;
    for blob in &blobs {
        assert_eq!(outcome(&client, blob).await.unwrap(), "whole", "it did not recover");
    }
    let lines = roadstead.log_text().lines().count();
    assert!(lines < LOG_LINES_MAX, "{lines} lines of log");
}

/// Leaves after so many bytes of the body.
async fn leave(client: Client, digest: String, bytes: u64) {
    let mut body = client.blob(NAME, &digest).open().await;
    assert_eq!(body.status, 200);
    body.take(bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_who_leave_leave_nothing() {
    let fake = Fake::start().await;
    // No idle connections to upstream, so that the figures are exact.
    fake.switch(|switch| switch.keep_alive = false);
    let home = TempDir::new().unwrap();
    let upstream = format!("up.test={}", fake.url());
    let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream]);
    let client = Client::new(roadstead.data);
    let abort = async |numbers: std::ops::Range<u64>| {
        let leaving = numbers.map(|number| {
            let blob = Blob::synthetic(1000 + number, MIB);
            fake.push_blob("team/app", &blob);
            leave(client.clone(), blob.digest, number * 7919 % MIB)
        });
        stream::iter(leaving).for_each_concurrent(PARALLEL, |left| left).await;
        rests(&roadstead).await;
    };
    abort(0..WARM_UP).await;
    let level = (roadstead.descriptors(), roadstead.anonymous_memory());
    abort(WARM_UP..WARM_UP + ABORTED).await;
    // The last files are closed a moment after the last client was told.
    let given_back = async {
        while roadstead.descriptors() > level.0 {
            tokio::task::yield_now().await;
        }
    };
    within("all descriptors to be given back", given_back).await;
    let after = (roadstead.descriptors(), roadstead.anonymous_memory());
    println!("{ABORTED} aborted downloads: descriptors and anonymous bytes {level:?} -> {after:?}");
    assert!(after.1 <= level.1 + GROWTH_BYTES, "memory: {level:?} -> {after:?}");
}
