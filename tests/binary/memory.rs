//! Memory is bounded by configuration, not by blobs or clients (design promise 17).

use tempfile::TempDir;

use crate::process::Roadstead;
use crate::support::client::Client;
use crate::support::content::{Blob, Image};
use crate::support::fake::{Fake, Kind};

const CLIENTS: usize = 16;
const BLOB_BYTES: u64 = 1 << 30;
/// Anonymous memory at the peak; mappings and the page cache are the system's.
const PEAK_BYTES: u64 = 40 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_pull_a_gibibyte_in_forty_mebibytes() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(7, BLOB_BYTES);
    let image = Image::build("memory").layer(blob.clone()).finish();
    fake.push("team/app", "v1", &image);
    let home = TempDir::new().unwrap();
    let upstream = format!("up.test={}", fake.url());
    let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream]);
    let client = Client::new(roadstead.data);
    client.get("/v2/up.test/team/app/manifests/v1").expect(200).await;

    let (sender, mut progress) = tokio::sync::mpsc::channel::<()>(64);
    let mut pulls = Vec::new();
    for _ in 0..CLIENTS {
        let (client, digest, sender) = (client.clone(), blob.digest.clone(), sender.clone());
        pulls.push(tokio::spawn(async move {
            let mut body = client.blob("up.test/team/app", &digest).open().await;
            assert_eq!(body.status, 200);
            let (mut taken, mut told) = (0u64, 0u64);
            while let Some(bytes) = body.next().await {
                taken += bytes.len() as u64;
                // The peak is looked for many times on the way, at moments that the bytes give.
                if taken - told > (8 << 20) {
                    told = taken;
                    sender.try_send(()).ok();
                }
            }
            taken
        }));
    }
    drop(sender);
    let mut peak = roadstead.anonymous_memory();
    while progress.recv().await.is_some() {
        peak = peak.max(roadstead.anonymous_memory());
    }
    for pull in pulls {
        assert_eq!(pull.await.unwrap(), BLOB_BYTES);
    }
    println!("anonymous memory at the peak: {:.1} MiB", peak as f64 / f64::from(1 << 20));
    assert!(peak <= PEAK_BYTES, "{peak} bytes of anonymous memory");
    fake.log().of(Kind::Blob).about(&blob.digest).expect(1, "one download for all clients");
}
