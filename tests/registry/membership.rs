//! The cache widens nobody's access: a repository serves only what upstream showed under that repository.

use std::time::Duration;

use crate::support::content::{Blob, Image, MIB, OCI_INDEX, OCI_MANIFEST};
use crate::support::fake::{BlobHead, Fake, Hidden, Kind, Mode, Then, When};
use crate::support::pull::{is_blob, is_manifest, pull};
use crate::support::world::World;

const MINE: &str = "team/mine";
const OTHER: &str = "team/other";

/// `MINE` is in the cache whole; `OTHER` exists and holds something else.
async fn two() -> (Fake, World, Image) {
    let fake = Fake::start().await;
    let mine = Image::index("mine");
    fake.push(MINE, "latest", &mine);
    fake.push(OTHER, "latest", &Image::single("other"));
    let world = World::with(&fake).await;
    pull(&world.client(), MINE, "latest", &mine).await;
    (fake, world, mine)
}

#[tokio::test]
async fn a_blob_of_one_repository_is_not_read_through_another() {
    let (fake, world, mine) = two().await;
    let client = world.client();
    for blob in mine.all_blobs() {
        for name in [OTHER, "no/such"] {
            client.blob(name, &blob.digest).expect(404).await;
            client.blob_head(name, &blob.digest).expect(404).await;
            client.blob(name, &blob.digest).range("0-0").expect(404).await;
        }
    }
    let bytes: u64 = mine.all_blobs().iter().map(|blob| fake.blob_bytes(&blob.digest)).sum();
    let whole: u64 = mine.all_blobs().iter().map(|blob| blob.len()).sum();
    assert_eq!(bytes, whole, "nothing was fetched twice");
    world.finish().await;
}

#[tokio::test]
async fn a_manifest_of_one_repository_is_not_read_through_another() {
    let (_fake, world, mine) = two().await;
    for manifest in mine.manifests() {
        world.client().manifest(OTHER, &manifest.digest).expect(404).await;
        world.client().manifest_head(OTHER, &manifest.digest).expect(404).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn the_same_holds_offline_and_after_a_restart() {
    let (fake, mut world, mine) = two().await;
    fake.stop().await;
    world.restart().await;
    let blob = &mine.children[0].blobs[0];
    for reply in [
        world.client().blob(OTHER, &blob.digest).send().await,
        world.client().manifest(OTHER, &mine.digest).send().await,
    ] {
        assert!([404, 502].contains(&reply.status), "{reply:?}");
    }
    is_blob(&world.client().blob(MINE, &blob.digest).expect(200).await, blob);
    world.finish().await;
}

#[tokio::test]
async fn what_upstream_shows_under_another_name_is_served_there_without_a_second_download() {
    let (fake, world, mine) = two().await;
    let blob = &mine.children[0].blobs[1];
    fake.push_blob(OTHER, blob);
    world.downloads_over().await;
    is_blob(&world.client().blob(OTHER, &blob.digest).expect(200).await, blob);
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len(), "a HEAD was proof enough");
    let mark = fake.mark();
    is_blob(&world.client().blob(OTHER, &blob.digest).expect(200).await, blob);
    fake.since(mark).expect_none("the proof is kept");
    world.finish().await;
}

#[tokio::test]
async fn where_head_is_refused_a_get_is_dropped_after_its_headers() {
    for head in [BlobHead::Status(401), BlobHead::Status(403), BlobHead::Status(405)] {
        let fake = Fake::start().await;
        let blob = Blob::synthetic(21, 32 * MIB);
        let mine = Image::build("large").layer(blob.clone()).finish();
        fake.push(MINE, "latest", &mine);
        fake.push(OTHER, "latest", &Image::single("other"));
        fake.push_blob(OTHER, &blob);
        fake.switch(|switch| switch.blob_head = head);
        let world = World::with(&fake).await;
        let client = world.client();
        client.manifest(MINE, "latest").expect(200).await;
        let body = client.blob(MINE, &blob.digest).open().await;
        body.hashed().await.is_whole(&blob.digest, blob.len());
        world.downloads_over().await;
        let mark = fake.mark();
        let body = client.blob(OTHER, &blob.digest).open().await;
        body.hashed().await.is_whole(&blob.digest, blob.len());
        fake.quiet().await;
        assert!(fake.since(mark).sent() < blob.len(), "the body was not fetched again");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_manifest_of_another_repository_with_the_same_blob_is_proof() {
    let (fake, world, mine) = two().await;
    let blob = mine.children[0].blobs[1].clone();
    let image = Image::build("other with it").layer(blob.clone()).finish();
    fake.push(OTHER, "v2", &image);
    let client = world.client();
    is_manifest(&client.manifest(OTHER, "v2").expect(200).await, &image);
    let mark = fake.mark();
    is_blob(&client.blob(OTHER, &blob.digest).expect(200).await, &blob);
    fake.since(mark).of(Kind::Blob).expect_none("the manifest lists it, and the bytes are here");
    world.finish().await;
}

#[tokio::test]
async fn another_upstream_is_another_world() {
    let (hub, other) = (Fake::start().await, Fake::start().await);
    let image = Image::single("two upstreams");
    hub.push(MINE, "latest", &image);
    other.push(MINE, "else", &Image::single("something else"));
    let world = World::builder()
        .upstream("docker.io", &hub)
        .upstream("other.example.com", &other)
        .start()
        .await;
    let client = world.client();
    pull(&client, MINE, "latest", &image).await;
    let name = format!("other.example.com/{MINE}");
    client.manifest(&name, &image.digest).expect(404).await;
    client.blob(&name, &image.blobs[1].digest).expect(404).await;
    world.finish().await;
}

#[tokio::test]
async fn a_private_repository_s_content_is_not_shared_with_a_public_one() {
    let fake = Fake::start().await;
    let secret = Image::single("secret");
    fake.push(MINE, "latest", &secret);
    fake.push(OTHER, "latest", &Image::single("public"));
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
        auth.users = vec![("joe".to_owned(), "pass-of-joe".to_owned())];
    });
    fake.private(MINE, &["joe"]);
    let settings = "username = \"joe\"\npassword = \"pass-of-joe\"\nprivate = \"shared\"";
    let world = World::builder().upstream_with("docker.io", &fake, settings).start().await;
    let client = world.client();
    pull(&client, MINE, "latest", &secret).await;
    client.blob(OTHER, &secret.blobs[1].digest).expect(404).await;
    client.manifest(OTHER, &secret.digest).expect(404).await;
    world.finish().await;
}

/// A private repository whose content is in the cache, opened by our credential.
async fn shared_secret() -> (Fake, World, Image) {
    let fake = Fake::start().await;
    let secret = Image::single("of joe");
    fake.push(MINE, "latest", &secret);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
        auth.users = vec![("joe".to_owned(), "pass-of-joe".to_owned())];
    });
    fake.private(MINE, &["joe"]);
    let settings = "username = \"joe\"\npassword = \"pass-of-joe\"\nprivate = \"shared\"";
    let world = World::builder().upstream_with("docker.io", &fake, settings).start().await;
    pull(&world.client(), MINE, "latest", &secret).await;
    world.downloads_over().await;
    (fake, world, secret)
}

#[tokio::test]
async fn a_private_proof_is_renewed_after_a_day_and_without_a_download() {
    let (fake, world, secret) = shared_secret().await;
    let blob = &secret.blobs[1];
    world.advance(Duration::from_secs(23 * 3600));
    let mark = fake.mark();
    is_blob(&world.client().blob(MINE, &blob.digest).expect(200).await, blob);
    fake.since(mark).expect_none("the proof is not a day old");
    world.advance(Duration::from_secs(2 * 3600));
    is_blob(&world.client().blob(MINE, &blob.digest).expect(200).await, blob);
    assert!(!fake.since(mark).of(Kind::Blob).is_empty(), "the proof was renewed");
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len(), "and nothing was fetched again");
    world.finish().await;
}

#[tokio::test]
async fn a_private_blob_is_closed_a_day_after_upstream_closed_it() {
    let (fake, world, secret) = shared_secret().await;
    fake.private(MINE, &["somebody else"]);
    fake.expire_tokens();
    world.advance(Duration::from_secs(25 * 3600));
    let client = world.client();
    let reply = client.blob(MINE, &secret.blobs[1].digest).send().await;
    assert!([403, 404].contains(&reply.status), "{reply:?}");
    let reply = client.manifest(MINE, &secret.digest).send().await;
    assert!([403, 404].contains(&reply.status), "{reply:?}");
    let reply = client.manifest(MINE, "latest").send().await;
    assert!([403, 404].contains(&reply.status), "{reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn an_outage_bridges_an_old_private_proof() {
    let (fake, world, secret) = shared_secret().await;
    fake.stop().await;
    world.advance(Duration::from_secs(48 * 3600));
    pull(&world.client(), MINE, &secret.digest, &secret).await;
    world.finish().await;
}

#[tokio::test]
async fn trouble_with_our_credential_bridges_private_content_for_its_grace_only() {
    let (fake, world, secret) = shared_secret().await;
    fake.auth(|auth| auth.users = vec![("joe".to_owned(), "changed".to_owned())]);
    fake.expire_tokens();
    world.advance(Duration::from_secs(25 * 3600));
    pull(&world.client(), MINE, &secret.digest, &secret).await;
    world.advance(Duration::from_secs(30 * 3600));
    let reply = world.client().blob(MINE, &secret.blobs[1].digest).send().await;
    assert_ne!(reply.status, 200, "the grace of a day is over");
    let reply = world.client().manifest(MINE, &secret.digest).send().await;
    assert_ne!(reply.status, 200, "the grace of a day is over");
    let reply = world.client().manifest(MINE, "latest").send().await;
    assert_ne!(reply.status, 200, "the grace of a day is over");
    world.finish().await;
}

#[tokio::test]
async fn with_refuse_again_what_was_shared_is_closed() {
    let fake = Fake::start().await;
    let secret = Image::single("closed again");
    fake.push(MINE, "latest", &secret);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
        auth.users = vec![("joe".to_owned(), "pass-of-joe".to_owned())];
    });
    fake.private(MINE, &["joe"]);
    let credential = "username = \"joe\"\npassword = \"pass-of-joe\"\n";
    let shared = format!("{credential}private = \"shared\"");
    let mut world = World::builder().upstream_with("docker.io", &fake, &shared).start().await;
    pull(&world.client(), MINE, "latest", &secret).await;
    world.restart_with(|builder| builder.upstream_with("docker.io", &fake, credential)).await;
    let client = world.client();
    client.manifest(MINE, "latest").expect(403).await.error("DENIED");
    client.manifest(MINE, &secret.digest).expect(403).await.error("DENIED");
    let blob = client.blob(MINE, &secret.blobs[1].digest).send().await;
    assert!([403, 404].contains(&blob.status), "{blob:?}");
    world.finish().await;
}

#[tokio::test]
async fn allow_and_deny_are_obeyed_before_anything_is_asked() {
    let fake = Fake::start().await;
    let image = Image::single("rules");
    for name in ["team/app", "team/secret", "else/app"] {
        fake.push(name, "latest", &image);
    }
    let rules = "allow = [\"team/*\"]\ndeny = [\"team/secret\"]";
    let world = World::builder().upstream_with("docker.io", &fake, rules).start().await;
    let client = world.client();
    pull(&client, "team/app", "latest", &image).await;
    let mark = fake.mark();
    for name in ["team/secret", "else/app"] {
        let reply = client.manifest(name, "latest").expect(403).await;
        assert!(!reply.error("DENIED").is_empty());
        let reply = client.blob(name, &image.blobs[1].digest).send().await;
        assert!([403, 404].contains(&reply.status), "{reply:?}");
    }
    fake.since(mark).expect_none("upstream has no part in it");
    world.finish().await;
}

#[tokio::test]
async fn a_failing_proof_is_no_proof() {
    let (fake, world, mine) = two().await;
    let blob = &mine.children[0].blobs[1];
    fake.push_blob(OTHER, blob);
    let rule = fake.rule(When::blob().repository(OTHER), Then::status(503));
    let reply = world.client().blob(OTHER, &blob.digest).send().await;
    assert!([404, 502].contains(&reply.status), "{reply:?}");
    fake.remove(&rule);
    is_blob(&world.client().blob(OTHER, &blob.digest).expect(200).await, blob);
    world.finish().await;
}

#[tokio::test]
async fn the_grace_of_a_credential_ends_where_head_is_refused_too() {
    let (fake, world, secret) = shared_secret().await;
    fake.rule(When::manifest().head().early(), Then::status(405));
    world.advance(Duration::from_secs(25 * 3600));
    let client = world.client();
    client.manifest(MINE, &secret.digest).expect(200).await;
    fake.auth(|auth| auth.users = vec![("joe".to_owned(), "changed".to_owned())]);
    fake.expire_tokens();
    world.advance(Duration::from_secs(47 * 3600));
    client.manifest(MINE, &secret.digest).expect(200).await;
    world.advance(Duration::from_secs(2 * 3600));
    let reply = client.manifest(MINE, &secret.digest).send().await;
    assert_ne!(reply.status, 200, "the grace of a day is over");
    world.finish().await;
}

#[tokio::test]
async fn an_index_that_names_a_foreign_blob_as_its_child_proves_nothing() {
    let (fake, world, mine) = two().await;
    let client = world.client();
    let secrets = [&mine.children[0].blobs[1].digest, &mine.children[0].digest];
    for (number, digest) in secrets.into_iter().enumerate() {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 1234}],
        });
        // Many registries take an index whose children they do not have.
        let sparse = Image::from_bytes(OCI_INDEX, index.to_string(), Vec::new(), Vec::new());
        let tag = format!("sparse-{number}");
        fake.push(OTHER, &tag, &sparse);
        client.manifest(OTHER, &tag).expect(200).await;
        client.blob(OTHER, digest).expect(404).await;
        client.blob_head(OTHER, digest).expect(404).await;
        client.manifest(OTHER, digest).expect(404).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn after_a_failed_renewal_nobody_waits_for_a_while() {
    let (fake, world, secret) = shared_secret().await;
    let client = world.client();
    world.advance(Duration::from_secs(25 * 3600));
    let rule = fake.rule(When::any().early(), Then::status(503));
    client.manifest(MINE, &secret.digest).expect(200).await;
    let mark = fake.mark();
    pull(&client, MINE, &secret.digest, &secret).await;
    fake.since(mark).expect_none("upstream failed a moment ago, and old proofs bridge that");
    fake.remove(&rule);
    world.advance(Duration::from_secs(31));
    is_blob(&client.blob(MINE, &secret.blobs[1].digest).expect(200).await, &secret.blobs[1]);
    assert!(!fake.since(mark).is_empty(), "then it is asked again");
    world.finish().await;
}

#[tokio::test]
async fn a_private_proof_from_the_future_is_renewed() {
    let (fake, mut world, secret) = shared_secret().await;
    world.turn_back(Duration::from_secs(240 * 3600));
    world.restart().await;
    let mark = fake.mark();
    let blob = &secret.blobs[1];
    is_blob(&world.client().blob(MINE, &blob.digest).expect(200).await, blob);
    assert!(
        !fake.since(mark).of(Kind::Blob).is_empty(),
        "the clock was set back, so nothing is known of its age"
    );
    world.finish().await;
}
