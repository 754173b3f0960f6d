//! Walks over images that are here whole, in part, or point at each other.

use std::fs;

use bytes::Bytes;

use super::super::shelf::{Paper, Shelf, blob, config_of, image, image_with, index};
use super::*;

fn all() -> Wish {
    Wish { platforms: Vec::new(), referrers: true }
}

fn only(platform: &str) -> Wish {
    Wish { platforms: vec![platform.parse().unwrap()], referrers: false }
}

async fn tree(shelf: &Shelf, digest: &Digest, wish: &Wish) -> Vec<Member> {
    let found = walk(&shelf.content, &shelf.key, digest, wish).await.unwrap();
    let mut seen = HashSet::new();
    assert!(found.iter().all(|member| seen.insert(member.digest)), "each counts once");
    found
}

fn digests(found: &[Member]) -> Vec<Digest> {
    found.iter().map(|member| member.digest).collect()
}

fn of(found: &[Member], bytes: &[u8]) -> Member {
    let digest = Digest::sha256_of(bytes);
    found.iter().find(|member| member.digest == digest).cloned().expect("it belongs to it")
}

/// Two platforms that share a layer, each with an attestation; the first attestation stands in front of everything.
struct Pair {
    amd: Paper,
    arm: Paper,
    amd_proof: Paper,
    arm_proof: Paper,
    index: Paper,
}

const SHARED: &[u8] = b"a layer of both";

fn pair() -> Pair {
    let amd = image(&config_of("amd64"), &[SHARED, b"amd"]);
    let arm = image(&config_of("arm64"), &[SHARED, b"arm"]);
    let amd_proof = image(b"{}", &[b"amd proof", SHARED]);
    let arm_proof = image(b"{}", &[b"arm proof"]);
    let index = index(&[
        amd_proof.attesting(&amd),
        amd.on("linux", "amd64"),
        arm.on("linux", "arm64"),
        arm_proof.attesting(&arm),
        image(b"x", &[]).on("unknown", "unknown"),
    ]);
    Pair { amd, arm, amd_proof, arm_proof, index }
}

#[tokio::test]
async fn the_wanted_platform_comes_with_its_attestation_and_nothing_else() {
    let (shelf, pair) = (Shelf::new(), pair());
    for paper in [&pair.index, &pair.amd, &pair.amd_proof, &pair.arm] {
        shelf.put(paper, None).await;
    }
    shelf.put_blobs(&[SHARED, b"amd", &config_of("amd64"), b"amd proof", b"{}"]).await;
    let root = pair.index.digest();

    let found = tree(&shelf, &root, &only("linux/amd64")).await;
    let wanted = [
        root,
        pair.amd.digest(),
        Digest::sha256_of(&config_of("amd64")),
        Digest::sha256_of(SHARED),
        Digest::sha256_of(b"amd"),
        pair.amd_proof.digest(),
        Digest::sha256_of(b"{}"),
        Digest::sha256_of(b"amd proof"),
    ];
    assert_eq!(digests(&found), wanted);
    assert!(found.iter().all(|member| member.present && !member.damaged && !member.removed));
    let platforms: Vec<_> = found.iter().map(|member| member.platform.as_deref()).collect();
    assert_eq!(platforms[0], None);
    assert!(platforms[1..].iter().all(|platform| *platform == Some("linux/amd64")));
    let referring: Vec<bool> = found.iter().map(|member| member.of_referrer).collect();
    assert_eq!(referring, [false, false, false, false, false, true, true, true]);
    assert_eq!(found[0].children, [pair.amd_proof.digest(), pair.amd.digest()]);
    assert_eq!(found[5].children.len(), 3, "what both have is told of both");
    assert_eq!((found[3].role, found[3].size), (Some(Role::Layer), Some(15)));

    let found = tree(&shelf, &root, &Wish::default()).await;
    assert_eq!(found.len(), 13, "{found:?}");
    assert!(!of(&found, b"arm").present && of(&found, b"arm").size == Some(3));
    let arm_proof = found.iter().find(|member| member.digest == pair.arm_proof.digest()).unwrap();
    assert!(!arm_proof.present && arm_proof.of_referrer && arm_proof.children.is_empty());
    assert_eq!(tree(&shelf, &root, &only("linux/s390x")).await.len(), 1);
    shelf.close().await;
}

#[tokio::test]
async fn an_image_alone_has_the_platform_of_its_configuration() {
    let shelf = Shelf::new();
    let paper = image(&config_of("arm64"), &[b"layer"]);
    shelf.put(&paper, None).await;
    let found = tree(&shelf, &paper.digest(), &only("linux/amd64")).await;
    assert_eq!((found.len(), found[0].platform.as_deref()), (3, None), "it is the image itself");
    shelf.put_blobs(&[&config_of("arm64")]).await;
    let found = tree(&shelf, &paper.digest(), &only("linux/amd64")).await;
    assert_eq!(found[0].platform.as_deref(), Some("linux/arm64"));
    assert_eq!(found[2].platform.as_deref(), Some("linux/arm64"));
    shelf.close().await;
}

#[tokio::test]
async fn what_is_not_here_is_told_with_the_reason() {
    let (shelf, pair) = (Shelf::new(), pair());
    let root = pair.amd.digest();
    let found = tree(&shelf, &root, &all()).await;
    assert_eq!((found.len(), found[0].present), (1, false), "nothing is known of it");
    shelf.put(&pair.amd, None).await;
    shelf.put_blobs(&[SHARED, b"amd", &config_of("amd64")]).await;

    fs::remove_file(shelf.file(&Digest::sha256_of(b"amd"))).unwrap();
    fs::write(shelf.file(&Digest::sha256_of(SHARED)), b"another length").unwrap();
    shelf.content.remove(&Digest::sha256_of(&config_of("amd64"))).await.unwrap();
    for _again in 0..2 {
        let found = tree(&shelf, &root, &all()).await;
        let state = |bytes: &[u8]| {
            let Member { present, damaged, removed, size, .. } = of(&found, bytes);
            assert_eq!(size, Some(bytes.len() as u64));
            (present, damaged, removed)
        };
        assert_eq!(state(b"amd"), (false, false, false));
        assert_eq!(state(SHARED), (false, true, false));
        assert_eq!(state(&config_of("amd64")), (false, false, true));
    }
    // A manifest is served from memory, and its file is what counts for the next start.
    fs::remove_file(shelf.file(&root)).unwrap();
    let found = tree(&shelf, &root, &all()).await;
    assert_eq!((found.len(), found[0].present), (1, false));
    shelf.close().await;
}

#[tokio::test]
async fn a_foreign_layer_is_a_part_of_it_only_if_it_is_here() {
    let shelf = Shelf::new();
    let document = serde_json::json!({
        "schemaVersion": 2,
        "config": blob(b"{}", MediaType::OCI_CONFIG),
        "layers": [
            blob(b"windows", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            blob(b"own", "application/vnd.oci.image.layer.v1.tar"),
        ],
    });
    let paper = Paper::image(&document);
    shelf.put(&paper, None).await;
    shelf.put_blobs(&[b"{}", b"own"]).await;
    let found = tree(&shelf, &paper.digest(), &all()).await;
    assert_eq!(digests(&found)[1..], [Digest::sha256_of(b"{}"), Digest::sha256_of(b"own")]);
    shelf.close().await;
}

#[tokio::test]
async fn what_refers_to_it_is_found_by_each_of_its_ways() {
    let shelf = Shelf::new();
    let paper = image(&config_of("amd64"), &[b"layer"]);
    shelf.put(&paper, Some("latest")).await;
    let (digest, named) = (paper.digest(), paper.descriptor());
    // Upstream's list, of which one is here and one is not.
    let listed = image_with(b"sbom", &[b"listed"], &named);
    let away = image_with(b"sbom", &[b"away"], &named);
    let list = index(&[listed.descriptor(), away.descriptor()]);
    shelf.content.put(&list.digest(), list.0.clone()).await.unwrap();
    let (metadata, at) = (shelf.content.metadata(), crate::clock::Timestamp::from_millis(1));
    metadata.set_referrers(&shelf.key, &digest, &list.digest(), at).await.unwrap();
    shelf.put(&listed, None).await;
    // One that says so itself, and a signature of that one under a tag of cosign.
    let own = image_with(b"own", &[b"own layer"], &named);
    shelf.put(&own, None).await;
    let signature = image(b"sig", &[b"signature"]);
    let tag = format!("sha256-{}.sig", own.digest().hex());
    shelf.put(&signature, Some(&tag)).await;

    let found = tree(&shelf, &digest, &all()).await;
    let (image, referring) = found.split_at(3);
    assert!(image.iter().all(|member| !member.of_referrer));
    assert!(referring.iter().all(|member| member.of_referrer));
    let roots: Vec<_> = referring.iter().filter(|member| member.role.is_none()).collect();
    let wanted = [listed.digest(), away.digest(), own.digest(), signature.digest()];
    assert_eq!(roots.iter().map(|member| member.digest).collect::<Vec<_>>(), wanted);
    assert!(roots[0].present && !roots[1].present && roots[1].size.is_some());
    assert_eq!(roots[3].tag.as_ref().map(Tag::as_str), Some(&*tag));
    assert_eq!(referring.len(), roots.len() + 6, "each that is here with what is below it");
    assert_eq!(tree(&shelf, &digest, &only("linux/amd64")).await.len(), 3);
    shelf.close().await;
}

#[tokio::test]
async fn documents_that_point_at_each_other_end() {
    let shelf = Shelf::new();
    // Two manifests cannot name each other's digest, but each may refer to what the other one lists.
    let leaf = image(b"{}", &[b"layer"]);
    let inner = index(&[leaf.descriptor(), leaf.on("linux", "amd64")]);
    let outer = index(&[inner.descriptor(), leaf.descriptor(), inner.descriptor()]);
    let back = image_with(b"{}", &[], &outer.descriptor());
    for paper in [&leaf, &inner, &outer, &back] {
        shelf.put(paper, None).await;
    }
    shelf.put(&inner, Some(&format!("sha256-{}", leaf.digest().hex()))).await;
    let found = tree(&shelf, &outer.digest(), &all()).await;
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(!found[1].of_referrer && found[1].digest == inner.digest());
    let nested = tree(&shelf, &outer.digest(), &only("linux/arm64")).await;
    assert_eq!(nested.len(), 5, "an index in an index is looked into");
    shelf.close().await;
}

#[test]
fn the_platform_in_a_configuration() {
    let read = |text: &str| platform_in(text.as_bytes()).map(|platform| platform.to_string());
    let full = r#"{"os":"linux","architecture":"arm","variant":"v7","rootfs":{}}"#;
    assert_eq!(read(full).as_deref(), Some("linux/arm/v7"));
    assert_eq!(
        read(r#"{"os":"linux","architecture":"amd64","variant":""}"#).as_deref(),
        Some("linux/amd64")
    );
    for none in ["{}", "", "[]", r#"{"os":"","architecture":"amd64"}"#, r#"{"os":"linux"}"#] {
        assert_eq!(read(none), None, "{none}");
    }
}

#[test]
fn the_tags_of_referrers_are_tags() {
    let digest = Digest::sha256_of(b"x");
    let tags: Vec<String> = referrer_tags(&digest).map(|tag| tag.to_string()).collect();
    let plain = format!("sha256-{}", digest.hex());
    assert_eq!(
        tags,
        [plain.clone(), format!("{plain}.sig"), format!("{plain}.att"), format!("{plain}.sbom")]
    );
    let long = Digest::of(oci::Algorithm::Sha512, &Bytes::new());
    assert_eq!(referrer_tags(&long).count(), 0);
}
