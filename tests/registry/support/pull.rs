//! What real clients do to pull an image, with every byte checked.

use super::client::{Client, Response};
use super::content::{Blob, Image};
use super::fake::Fake;
use super::world::World;

/// Pulls as skopeo does: GET of the tag, then of the children by digest, then of the blobs.
pub async fn pull(client: &Client, repository: &str, reference: &str, image: &Image) {
    let reply = client.manifest(repository, reference).expect(200).await;
    is_manifest(&reply, image);
    pull_below(client, repository, image).await;
}

/// Pulls as containerd does: HEAD of the tag, GET of all manifests by digest, then the blobs.
pub async fn pull_by_head(client: &Client, repository: &str, tag: &str, image: &Image) {
    let head = client.manifest_head(repository, tag).expect(200).await;
    assert_eq!(head.must("Docker-Content-Digest"), image.digest);
    let reply = client.manifest(repository, &image.digest).expect(200).await;
    is_manifest(&reply, image);
    pull_below(client, repository, image).await;
}

/// A world that holds the image under the tag `latest`, and its upstream.
pub async fn pulled(repository: &str, image: &Image) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(repository, "latest", image);
    let world = World::with(&fake).await;
    pull(&world.client(), repository, "latest", image).await;
    world.downloads_over().await;
    (fake, world)
}

async fn pull_below(client: &Client, repository: &str, image: &Image) {
    for child in image.manifests().into_iter().skip(1) {
        let reply = client.manifest(repository, &child.digest).expect(200).await;
        is_manifest(&reply, child);
    }
    for blob in image.all_blobs() {
        if blob.urls.is_empty() {
            is_blob(&client.blob(repository, &blob.digest).expect(200).await, blob);
        }
    }
}

/// Fails unless this answer is the manifest, with the headers that clients need.
#[track_caller]
pub fn is_manifest(reply: &Response, image: &Image) {
    assert_eq!(reply.body, image.bytes);
    describes_manifest(reply, image);
}

/// Fails unless these are the headers of the manifest, to GET or to HEAD.
#[track_caller]
pub fn describes_manifest(reply: &Response, image: &Image) {
    assert_eq!(reply.must("Content-Type"), image.media_type);
    assert_eq!(reply.must("Content-Length"), image.bytes.len().to_string());
    assert_eq!(reply.must("Docker-Content-Digest"), image.digest);
    assert_eq!(reply.must("ETag"), format!("\"{}\"", image.digest));
    assert_eq!(reply.must("Docker-Distribution-Api-Version"), "registry/2.0");
    assert_eq!(reply.header("Content-Encoding"), None);
    assert_eq!(reply.header("Transfer-Encoding"), None);
}

/// Fails unless this answer is the whole blob, with the headers that clients need.
#[track_caller]
pub fn is_blob(reply: &Response, blob: &Blob) {
    assert_eq!(reply.body.len(), super::content::to_usize(blob.len()));
    assert!(reply.body == blob.bytes(), "the blob has other bytes");
    describes_blob(reply, blob);
}

/// Fails unless these are the headers of the whole blob, to GET or to HEAD.
#[track_caller]
pub fn describes_blob(reply: &Response, blob: &Blob) {
    assert_eq!(reply.must("Content-Type"), "application/octet-stream");
    assert_eq!(reply.must("Content-Length"), blob.len().to_string());
    assert_eq!(reply.must("Docker-Content-Digest"), blob.digest);
    assert_eq!(reply.must("ETag"), format!("\"{}\"", blob.digest));
    assert_eq!(reply.must("Accept-Ranges"), "bytes");
    assert_eq!(reply.must("Docker-Distribution-Api-Version"), "registry/2.0");
    assert_eq!(reply.header("Content-Encoding"), None);
    assert_eq!(reply.header("Transfer-Encoding"), None);
}

/// The `Cache-Status` of an answer that came from the cache without asking upstream.
#[track_caller]
pub fn is_hit(reply: &Response) {
    let status = reply.must("Cache-Status");
    assert!(status.starts_with("roadstead; hit"), "not a hit: {status}");
}

/// Fails unless this answer is the last good revision, and tells that it is stale.
#[track_caller]
pub fn is_stale(reply: &Response, image: &Image) {
    assert_eq!(reply.status, 200, "{reply:?}");
    is_manifest(reply, image);
    assert!(reply.must("Warning").starts_with("299 "), "{reply:?}");
    let status = reply.must("Cache-Status");
    assert!(status.starts_with("roadstead;") && status.contains("stale"), "{status}");
}
