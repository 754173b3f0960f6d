//! Rate limits and quotas: storms stay at home, the last pulls are spared.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::client::Response;
use crate::support::content::{Blob, Image};
use crate::support::fake::{
    BlobHead, Edit, Fake, Hidden, Kind, Mode, ReferrersMode, Reply, Then, When,
};
use crate::support::pull::{is_manifest, is_stale, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
/// No tag is fresh, and a failed check is not remembered.
const EAGER: &str = "fresh_for = \"0s\"\nretry_after_failure = \"0s\"\nabsent_for = \"0s\"";

async fn eager(image: &Image, settings: &str) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let settings = format!("{EAGER}\n{settings}");
    let world = World::builder().upstream_with("docker.io", &fake, &settings).start().await;
    (fake, world)
}

async fn latest(world: &World) -> Response {
    world.client().manifest(NAME, "latest").send().await
}

#[tokio::test]
async fn what_is_left_is_shown_by_credential() {
    let image = Image::single("gauge");
    let (fake, world) = eager(&image, "").await;
    fake.switch(|switch| switch.ratelimit = Some(77));
    latest(&world).await.expect("cold", 200);
    let labels = [("upstream", "docker.io"), ("credential", "anonymous")];
    let left = |metrics: &crate::support::world::Metrics| {
        metrics.sum("roadstead_upstream_ratelimit_remaining", &labels)
    };
    assert!((left(&world.metrics().await) - 76.0).abs() < 0.5);
    latest(&world).await.expect("a HEAD tells it too, and costs none", 200);
    assert!((left(&world.metrics().await) - 76.0).abs() < 0.5);
    world.finish().await;
}

#[tokio::test]
async fn at_the_reserve_unneeded_gets_stop_and_heads_go_on() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let (fake, world) = eager(&old, "").await;
    fake.switch(|switch| switch.ratelimit = Some(11));
    latest(&world).await.expect("cold, ten are left", 200);
    let mark = fake.mark();
    let reply = latest(&world).await.expect("a HEAD is free", 200);
    assert_eq!(reply.header("Warning"), None, "{reply:?}");
    fake.since(mark).heads().expect(1, "HEAD goes on");
    // A HEAD that is refused would have to be repeated as GET.
    let refused = fake.rule(When::manifest().head(), Then::status(405));
    let mark = fake.mark();
    is_stale(&latest(&world).await, &old);
    fake.since(mark).gets().expect_none("the last pulls are not for this");
    fake.remove(&refused);
    // A moved tag and an image never seen are worth one of the last.
    fake.push(NAME, "latest", &new);
    is_manifest(&latest(&world).await.expect("moved", 200), &new);
    fake.push(NAME, "other", &old);
    world.client().manifest("team/never", "seen").expect(404).await;
    is_manifest(&world.client().manifest(NAME, "other").expect(200).await, &old);
    world.finish().await;
}

#[tokio::test]
async fn the_figure_is_forgotten_with_its_window() {
    let image = Image::single("window");
    let (fake, world) = eager(&image, "").await;
    fake.switch(|switch| switch.ratelimit = Some(3));
    latest(&world).await.expect("cold", 200);
    fake.rule(When::manifest().head(), Then::status(405));
    is_stale(&latest(&world).await, &image);
    world.advance(Duration::from_secs(21_600));
    fake.switch(|switch| switch.ratelimit = Some(100));
    let reply = latest(&world).await.expect("the window has passed", 200);
    assert_eq!(reply.header("Warning"), None, "{reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn the_reserve_is_the_operators() {
    let image = Image::single("reserve");
    let (fake, world) = eager(&image, "quota_reserve = 0").await;
    fake.switch(|switch| switch.ratelimit = Some(5));
    latest(&world).await.expect("cold", 200);
    fake.rule(When::manifest().head(), Then::status(405));
    let reply = latest(&world).await.expect("four are left, and they are to be used", 200);
    assert_eq!(reply.header("Warning"), None, "{reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn lists_that_are_remembered_are_not_asked_for_again() {
    let image = Image::single("lists");
    let (fake, world) = eager(&image, "").await;
    let signature = Image::artifact("signature", "x/sig", &image);
    fake.push_untagged(NAME, &signature);
    let tags = format!("/v2/{NAME}/tags/list");
    let referrers = format!("/v2/{NAME}/referrers/{}", image.digest);
    for path in [&tags, &referrers] {
        world.client().get(path).expect(200).await;
    }
    fake.switch(|switch| switch.ratelimit = Some(3));
    latest(&world).await.expect("cold", 200);
    world.advance(Duration::from_secs(60));
    let mark = fake.mark();
    for path in [&tags, &referrers] {
        let reply = world.client().get(path).expect(200).await;
        assert!(reply.text().contains("latest") || reply.text().contains("x/sig"), "{reply:?}");
    }
    fake.since(mark).expect_none("they are here");
    world.finish().await;
}

#[tokio::test]
async fn a_proof_that_can_be_bridged_costs_no_get() {
    let image = Image::build("proofs").layer(Blob::layer("proofs", 5000)).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    fake.private(NAME, &["joe"]);
    fake.auth(|auth| {
        auth.mode = Mode::Basic;
        auth.users = vec![("joe".to_owned(), "hush-hush".to_owned())];
        auth.hidden = Hidden::Denied;
    });
    let settings =
        format!("{EAGER}\nusername = \"joe\"\npassword = \"hush-hush\"\nprivate = \"shared\"");
    let world = World::builder().upstream_with("docker.io", &fake, &settings).start().await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    // The proofs have aged; HEAD is refused; few requests are left.
    world.advance(Duration::from_secs(25 * 3600));
    fake.switch(|switch| {
        switch.blob_head = BlobHead::Status(403);
        switch.ratelimit = Some(2);
    });
    world.client().manifest(NAME, "latest").expect(200).await;
    fake.push(NAME, "spends", &Image::single("spends one"));
    world.client().manifest(NAME, "spends").expect(200).await;
    fake.rule(When::manifest().head(), Then::status(405));
    let mark = fake.mark();
    world.client().manifest(NAME, &image.digest).expect(200).await;
    for blob in image.all_blobs() {
        world.client().blob(NAME, &blob.digest).expect(200).await;
    }
    fake.since(mark).gets().expect_none("what was proved bridges");
    world.finish().await;
}

#[tokio::test]
async fn a_look_whether_anybody_may_read_is_bridged_too() {
    let image = Image::single("looks");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    fake.push("team/new", "latest", &image);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.users = vec![("joe".to_owned(), "hush-hush".to_owned())];
    });
    let settings = "username = \"joe\"\npassword = \"hush-hush\"";
    let world = World::builder().upstream_with("docker.io", &fake, settings).start().await;
    latest(&world).await.expect("public", 200);
    // The verdict has aged, and a look at another repository tells that little is left for nobody in particular.
    world.advance(Duration::from_secs(25 * 3600));
    fake.switch(|switch| switch.ratelimit = Some(4));
    world.client().manifest("team/new", "latest").expect(200).await;
    let refused = fake.rule(When::manifest().head(), Then::status(405));
    let mark = fake.mark();
    world.client().manifest(NAME, &image.digest).expect(200).await;
    fake.since(mark).of(Kind::Manifest).gets().expect_none("the old verdict bridges");
    refused.expect_hit();
    world.finish().await;
}

#[tokio::test]
async fn a_storm_of_clients_is_no_storm_upstream() {
    const TAGS: usize = 20;
    let image = Image::single("storm");
    for retry_after in [Some("60"), None, Some("garbage"), Some("86400")] {
        let (fake, world) = eager(&image, "").await;
        for tag in 0..TAGS {
            fake.push(NAME, &format!("v{tag}"), &image);
        }
        fake.rule(When::manifest(), Then::limited(retry_after));
        let storm = || async {
            let client = world.client();
            let all = (0..200).map(|n| {
                let client = client.clone();
                let tag = format!("v{}", n % TAGS);
                async move { client.manifest(NAME, &tag).send().await }
            });
            join_all(all).await
        };
        let replies = storm().await;
        assert!(replies.iter().all(|reply| reply.status == 503), "a Hub name has a fallback");
        // A pause of our own is short, so a few questions go ahead, one at a time.
        let more = if matches!(retry_after, Some("60" | "86400")) { 0 } else { 6 };
        let asked = fake.log().of(Kind::Manifest).len();
        assert!(asked <= TAGS + more, "{retry_after:?}: {asked}");
        let quiet = fake.mark();
        storm().await;
        let asked = fake.since(quiet).len();
        assert!(asked <= more, "{retry_after:?}: {asked}");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_limit_ends_and_one_question_finds_out() {
    let image = Image::single("one finds out");
    let (fake, world) = eager(&image, "").await;
    for tag in 0..10 {
        fake.push(NAME, &format!("v{tag}"), &image);
    }
    let limit = fake.rule(When::manifest().times(1), Then::limited(Some("1")));
    let client = world.client();
    let all = (0..10).map(|n| {
        let client = client.clone();
        async move { client.manifest(NAME, &format!("v{n}")).send().await }
    });
    for reply in join_all(all).await {
        is_manifest(&reply.expect("a second is waited for", 200), &image);
    }
    assert_eq!(limit.hits(), 1);
    world.finish().await;
}

#[tokio::test]
async fn a_limit_with_a_revision_here_is_a_hit_and_without_one_the_plain_truth() {
    let image = Image::single("bridged limit");
    for retry_after in
        [Some("60"), Some("Sun, 22 Nov 2026 01:00:00 GMT"), Some("86400"), Some("x"), None]
    {
        let (fake, world) = eager(&image, "").await;
        latest(&world).await.expect("cold", 200);
        fake.rule(When::any().early(), Then::limited(retry_after));
        is_stale(&latest(&world).await, &image);
        let bare = world.client().manifest(NAME, "never").expect(503).await;
        assert_eq!(bare.header("Retry-After"), None, "a client with a fallback goes there");
        let prefixed = world.client().manifest("docker.io/team/app", "never").expect(429).await;
        let wait: u32 = prefixed.must("Retry-After").parse().expect("seconds");
        assert!(wait <= 5, "{wait}");
        is_stale(&latest(&world).await, &image);
        world.finish().await;
    }
}

/// Docker Hub counts GETs only.
#[tokio::test]
async fn heads_go_on_while_gets_are_limited() {
    let image = Image::single("heads go on");
    let (fake, world) = eager(&image, "").await;
    latest(&world).await.expect("cold", 200);
    let limit = fake.rule(When::manifest().get(), Then::limited(Some("60")));
    world.client().manifest(NAME, "never").expect(503).await;
    limit.expect_hit();
    let mark = fake.mark();
    let reply = latest(&world).await.expect("confirmed", 200);
    assert_eq!(reply.header("Warning"), None, "{}", fake.since(mark).lines());
    assert_eq!(fake.since(mark).len(), 1, "{}", fake.since(mark).lines());
    world.finish().await;
}

#[tokio::test]
async fn rude_ends_of_a_limit_are_the_limit() {
    let image = Image::single("rude");
    let rude = [
        Then::Drop { reset: true },
        Then::Drop { reset: false },
        Then::Raw("Too Many Requests (HAP429).\n".into()),
    ];
    for then in rude {
        let (fake, world) = eager(&image, "").await;
        latest(&world).await.expect("cold", 200);
        fake.rule(When::manifest().times(1), Then::limited(Some("0")));
        let rule = fake.rule(When::manifest().starting_at(2), then);
        // A limit of no time is asked again at once, and gets the rude end.
        let bare = world.client().manifest("docker.io/team/app", "never").send().await;
        assert_eq!(bare.status, 429, "{bare:?}{}", fake.log().lines());
        rule.expect_hit();
        let mark = fake.mark();
        is_stale(&latest(&world).await, &image);
        assert!(fake.since(mark).len() <= 4, "{}", fake.since(mark).lines());
        world.finish().await;
    }
}

#[tokio::test]
async fn a_limited_token_service_is_left_alone_and_the_registry_is_not_blamed() {
    let image = Image::single("token limit");
    let (fake, world) = eager(&image, "").await;
    fake.auth(|auth| auth.mode = Mode::Bearer);
    for n in 0..10 {
        fake.push(&format!("team/app{n}"), "latest", &image);
    }
    latest(&world).await.expect("cold", 200);
    let limit = fake.rule(When::token(), Then::limited(Some("60")));
    let mark = fake.mark();
    let client = world.client();
    let all = (0..50).map(|n| {
        let client = client.clone();
        async move { client.manifest(&format!("team/app{}", n % 10), "latest").send().await }
    });
    assert!(join_all(all).await.iter().all(|reply| reply.status == 503));
    let tokens = fake.since(mark).of(Kind::Token).len();
    assert!(tokens <= 10, "{tokens} token requests for ten repositories");
    let quiet = fake.mark();
    world.client().manifest("team/app3", "latest").expect(503).await;
    fake.since(quiet).of(Kind::Token).expect_none("it asked for a minute of peace");
    // Whose token is still good is served by the registry, which has no limit.
    let reply = latest(&world).await.expect("its token lives", 200);
    assert_eq!(reply.header("Warning"), None, "{reply:?}");
    limit.expect_hit();
    world.finish().await;
}

#[tokio::test]
async fn a_code_that_is_only_a_label_is_none() {
    let image = Image::build("label").layer(Blob::layer("label", 100_000)).finish();
    let (fake, world) = eager(&image, "").await;
    fake.rule(When::manifest(), Then::set("Content-Encoding", "gzip"));
    fake.rule(When::blob(), Then::set("Content-Encoding", "x-gzip"));
    pull(&world.client(), NAME, "latest", &image).await;
    let reply = latest(&world).await;
    assert_eq!(reply.header("Content-Encoding"), None, "{reply:?}");
    world.downloads_over().await;
    assert!(world.has_stored(&image.digest));
    world.finish().await;
}

#[tokio::test]
async fn a_body_that_is_really_coded_is_never_taken_for_the_content() {
    let image = Image::build("coded").layer(Blob::layer("coded", 5000)).finish();
    let (fake, world) = eager(&image, "").await;
    let coded = Reply::new(200)
        .with("Content-Encoding", "gzip")
        .data(bytes::Bytes::from_static(b"\x1f\x8b\x08coded"));
    let manifests = fake.rule(When::manifest(), Then::reply(coded.clone()));
    assert_eq!(latest(&world).await.status, 502);
    assert_eq!(world.client().manifest(NAME, &image.digest).send().await.status, 502);
    fake.remove(&manifests);
    latest(&world).await.expect("plain", 200);
    fake.rule(When::blob().get(), Then::reply(coded));
    let layer = image.all_blobs().last().expect("it has a layer").digest.clone();
    let reply = world.client().blob(NAME, &layer).send().await;
    assert_ne!(reply.status, 200, "{reply:?}");
    assert!(!world.has_stored(&layer));
    world.finish().await;
}
