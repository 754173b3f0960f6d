//! What is missing is told exactly, and counts for whom it should.

use super::super::shelf::{Paper, Shelf, config_of, image, image_with, index};
use super::super::tree::walk;
use super::*;

const SHARED: &[u8] = b"a layer of both";

async fn judge(shelf: &Shelf, paper: &Paper, wanted: &[&str]) -> CheckedImage {
    let platforms: Vec<PlatformPattern> = wanted.iter().map(|text| text.parse().unwrap()).collect();
    let wish = Wish { platforms: platforms.clone(), referrers: true };
    let members = walk(&shelf.content, &shelf.key, &paper.digest(), &wish).await.unwrap();
    judged("image".to_owned(), &paper.digest(), &members, &platforms)
}

#[tokio::test]
async fn an_index_is_complete_for_those_that_are() {
    let shelf = Shelf::new();
    let amd = image(&config_of("amd64"), &[SHARED, b"amd"]);
    let arm = image(&config_of("arm64"), &[SHARED, b"arm"]);
    let proof = image(b"{}", &[b"proof"]);
    let paper = index(&[amd.on("linux", "amd64"), arm.on("linux", "arm64"), proof.attesting(&amd)]);
    for paper in [&paper, &amd, &arm] {
        shelf.put(paper, None).await;
    }
    shelf.put_blobs(&[SHARED, b"amd", &config_of("amd64")]).await;

    let checked = judge(&shelf, &paper, &[]).await;
    assert!(checked.complete && checked.reason.is_none());
    let platforms: Vec<_> = checked
        .platforms
        .iter()
        .map(|platform| (&*platform.platform, platform.complete, platform.bytes_missing))
        .collect();
    let short = 3 + config_of("arm64").len() as u64;
    assert_eq!(platforms, [("linux/amd64", true, 0), ("linux/arm64", false, short)]);
    // The layer of both counts for both.
    assert!(checked.platforms.iter().all(|platform| platform.bytes_present > 500));
    let missing: Vec<_> =
        checked.missing.iter().map(|part| (&*part.role, part.platform.as_deref())).collect();
    let (arm64, amd64) = (Some("linux/arm64"), Some("linux/amd64"));
    assert_eq!(missing, [("config", arm64), ("layer", arm64), ("referrer", amd64)]);
    assert_eq!((&*checked.missing[1].state, checked.missing[1].size), ("absent", Some(3)));

    let checked = judge(&shelf, &paper, &["linux/amd64"]).await;
    assert!(checked.complete && checked.platforms.len() == 1 && checked.missing.len() == 1);
    let checked = judge(&shelf, &paper, &["linux/amd64", "linux/arm64"]).await;
    assert!(!checked.complete);
    let checked = judge(&shelf, &paper, &["linux/amd64", "linux/s390x"]).await;
    assert!(!checked.complete);
    assert_eq!(checked.reason.as_deref(), Some("it has no linux/s390x"));
    shelf.close().await;
}

#[tokio::test]
async fn an_image_alone_is_for_its_own_platform() {
    let shelf = Shelf::new();
    let paper = image(&config_of("arm64"), &[]);
    shelf.put(&paper, None).await;
    let checked = judge(&shelf, &paper, &[]).await;
    assert!(!checked.complete && checked.platforms[0].platform == "unknown");
    shelf.put_blobs(&[&config_of("arm64")]).await;
    assert!(judge(&shelf, &paper, &["linux/arm64/v8"]).await.complete);
    assert!(!judge(&shelf, &paper, &["linux/amd64"]).await.complete);
    // What has no platform is for everybody.
    let chart = image(b"{}", &[]);
    shelf.put(&chart, None).await;
    shelf.put_blobs(&[b"{}"]).await;
    assert!(judge(&shelf, &chart, &["linux/amd64"]).await.complete);
    shelf.close().await;
}

#[tokio::test]
async fn referrers_are_counted_when_they_are_whole() {
    let shelf = Shelf::new();
    let paper = image(&config_of("amd64"), &[]);
    shelf.put(&paper, None).await;
    shelf.put_blobs(&[&config_of("amd64"), b"{}", b"one"]).await;
    for layer in [b"one", b"two"] {
        shelf.put(&image_with(b"{}", &[layer], &paper.descriptor()), None).await;
    }
    let checked = judge(&shelf, &paper, &["linux/amd64"]).await;
    assert!(checked.complete && checked.referrers == 1, "{checked:?}");
    assert_eq!(checked.missing.len(), 1);
    shelf.close().await;
}

#[tokio::test]
async fn without_the_index_there_is_nothing() {
    let shelf = Shelf::new();
    let paper = index(&[]);
    let checked = judge(&shelf, &paper, &[]).await;
    assert!(!checked.complete && checked.missing[0].role == "manifest");
    shelf.put(&paper, None).await;
    let checked = judge(&shelf, &paper, &[]).await;
    assert!(!checked.complete && checked.missing.is_empty(), "an empty index is no image");
    shelf.close().await;
}
