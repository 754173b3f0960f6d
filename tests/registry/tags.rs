//! The life of a tag: fresh, revalidated, moved, stale, absent, denied, and how many requests each of them costs.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::support::client::{Client, Response};
use crate::support::content::Image;
use crate::support::fake::{Edit, Fake, Hidden, Kind, Mode, Then, When};
use crate::support::gate::Gate;
use crate::support::pull::{is_hit, is_manifest, pull};
use crate::support::world::World;

pub(super) const NAME: &str = "team/app";

/// A world in which every request for a tag is a revalidation.
pub(super) async fn eager(image: &Image) -> (Fake, World) {
    eager_with(image, "").await
}

pub(super) async fn eager_with(image: &Image, settings: &str) -> (Fake, World) {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    let world =
        World::builder().upstream_with("docker.io", &fake, settings).fresh_for("0s").start().await;
    (fake, world)
}

pub(super) async fn latest(client: &Client) -> Response {
    client.manifest(NAME, "latest").send().await
}

#[tokio::test]
async fn a_fresh_tag_costs_no_request() {
    let fake = Fake::start().await;
    let image = Image::single("fresh");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    latest(&world.client()).await.expect("cold", 200);
    let mark = fake.mark();
    for _ in 0..5 {
        let reply = latest(&world.client()).await;
        is_hit(&reply);
        let ttl = reply.must("Cache-Status").split("ttl=").nth(1).expect("a tag has a ttl");
        let seconds: String = ttl.chars().take_while(char::is_ascii_digit).collect();
        assert!((3500..=3600).contains(&seconds.parse::<u32>().expect("a number")), "{ttl}");
    }
    fake.since(mark).expect_none("it is fresh");
    world.finish().await;
}

#[tokio::test]
async fn freshness_ends_on_time_and_begins_again_with_a_confirmation() {
    let fake = Fake::start().await;
    let image = Image::single("on time");
    fake.push(NAME, "latest", &image);
    let world = World::builder().upstream("docker.io", &fake).fresh_for("60s").start().await;
    latest(&world.client()).await.expect("cold", 200);
    for _round in 0..3 {
        world.advance(Duration::from_secs(59));
        let mark = fake.mark();
        is_hit(&latest(&world.client()).await);
        fake.since(mark).expect_none("a second is left");
        world.advance(Duration::from_secs(2));
        is_manifest(&latest(&world.client()).await, &image);
        fake.since(mark).heads().expect(1, "it was not fresh any more");
    }
    world.finish().await;
}

#[tokio::test]
async fn an_added_upstream_s_tags_are_fresh_for_five_seconds() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("five"));
    let world = World::builder()
        .upstream("registry.example.com", &fake)
        .set("default_upstream", "\"registry.example.com\"")
        .unset("tag_fresh_for")
        .start()
        .await;
    latest(&world.client()).await.expect("cold", 200);
    world.advance(Duration::from_secs(4));
    latest(&world.client()).await.expect("fresh", 200);
    fake.log().expect(1, "fresh");
    world.advance(Duration::from_secs(2));
    latest(&world.client()).await.expect("revalidated", 200);
    fake.log().expect(2, "not fresh any more");
    world.finish().await;
}

#[tokio::test]
async fn a_clock_that_goes_wrong_breaks_nothing() {
    let image = Image::single("clock");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let mut world = World::with(&fake).await;
    latest(&world.client()).await.expect("cold", 200);
    // A restart on a machine whose clock is a year behind: what was confirmed lies in the future.
    world.turn_back(Duration::from_secs(365 * 24 * 3600));
    world.restart().await;
    is_manifest(&latest(&world.client()).await, &image);
    let new = Image::single("after the clock");
    fake.push(NAME, "latest", &new);
    world.advance(Duration::from_secs(3601));
    is_manifest(&latest(&world.client()).await, &new);
    world.finish().await;
}

#[tokio::test]
async fn an_unchanged_tag_costs_one_head() {
    let image = Image::single("unchanged");
    let (fake, world) = eager(&image).await;
    latest(&world.client()).await.expect("cold", 200);
    fake.log().content().expect(1, "a tag never seen costs one GET");
    let mark = fake.mark();
    is_manifest(&latest(&world.client()).await.expect("revalidated", 200), &image);
    let log = fake.since(mark);
    log.expect(1, "one request");
    log.heads().expect(1, "and it is a HEAD");
    world.finish().await;
}

#[tokio::test]
async fn a_moved_tag_is_fetched_by_its_digest() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let (fake, world) = eager(&old).await;
    pull(&world.client(), NAME, "latest", &old).await;
    fake.push(NAME, "latest", &new);
    let mark = fake.mark();
    pull(&world.client(), NAME, "latest", &new).await;
    let log = fake.since(mark).of(Kind::Manifest);
    log.heads().about("latest").expect(1, "the tag is asked with HEAD");
    log.gets().about("latest").expect_none("and never fetched by name");
    log.gets().about(&new.digest).expect(1, "but by digest");
    is_manifest(&world.client().manifest(NAME, &old.digest).expect(200).await, &old);
    world.finish().await;
}

#[tokio::test]
async fn a_tag_that_moves_back_costs_no_body() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let (fake, world) = eager(&old).await;
    latest(&world.client()).await.expect("old", 200);
    fake.push(NAME, "latest", &new);
    is_manifest(&latest(&world.client()).await, &new);
    fake.tag(NAME, "latest", &old.digest);
    let mark = fake.mark();
    is_manifest(&latest(&world.client()).await, &old);
    fake.since(mark).gets().expect_none("the old revision is here");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_that_moves_between_head_and_get_is_right_at_some_moment() {
    let (old, new, newest) = (Image::single("a"), Image::single("b"), Image::single("c"));
    let (fake, world) = eager(&old).await;
    latest(&world.client()).await.expect("old", 200);
    fake.push(NAME, "latest", &new);
    fake.push_untagged(NAME, &newest);
    let digest = newest.digest.clone();
    let moves = fake.rule(
        When::manifest().head().once(),
        Then::run(move |fake| fake.tag(NAME, "latest", &digest)),
    );
    is_manifest(&latest(&world.client()).await, &new);
    moves.expect_hit();
    is_manifest(&latest(&world.client()).await, &newest);
    world.finish().await;
}

#[tokio::test]
async fn a_digest_that_vanishes_between_head_and_get_is_fetched_by_tag() {
    let (old, new, newest) = (Image::single("a"), Image::single("b"), Image::single("c"));
    let (fake, world) = eager(&old).await;
    latest(&world.client()).await.expect("old", 200);
    fake.push(NAME, "latest", &new);
    fake.push_untagged(NAME, &newest);
    let (to, gone) = (newest.digest.clone(), new.digest.clone());
    fake.rule(
        When::manifest().head().once(),
        Then::run(move |fake| {
            fake.tag(NAME, "latest", &to);
            fake.delete_manifest(NAME, &gone);
        }),
    );
    is_manifest(&latest(&world.client()).await, &newest);
    world.finish().await;
}

#[tokio::test]
async fn where_head_is_refused_get_is_used() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    for refusal in [
        Then::status(401),
        Then::status(403),
        Then::status(404),
        Then::status(405),
        Then::Drop { reset: false },
        Then::unset("Docker-Content-Digest"),
    ] {
        let what = format!("{refusal:?}");
        let (fake, world) = eager(&old).await;
        latest(&world.client()).await.expect("cold", 200);
        let rule = fake.rule(When::manifest().head(), refusal);
        is_manifest(&latest(&world.client()).await, &old);
        rule.expect_hit();
        fake.push(NAME, "latest", &new);
        let reply = latest(&world.client()).await;
        assert_eq!(reply.body, new.bytes, "{what}");
        assert_eq!(reply.header("Warning"), None, "{what}");
        world.finish().await;
    }
}

#[tokio::test]
async fn stale_while_revalidate_answers_first_and_asks_behind() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let settings = "stale_while_revalidate = \"1h\"";
    let (fake, world) = eager_with(&old, settings).await;
    latest(&world.client()).await.expect("cold", 200);
    fake.push(NAME, "latest", &new);
    let gate = Gate::new();
    fake.rule(When::manifest().head(), Then::hold(&gate));
    is_manifest(&latest(&world.client()).await, &old);
    gate.reached().await;
    gate.open();
    fake.wait_for("the new revision to be fetched", |log| {
        !log.about(&new.digest).gets().is_empty()
    })
    .await;
    crate::support::gate::within("the tag to move", async {
        while latest(&world.client()).await.body != new.bytes {}
    })
    .await;
    world.finish().await;
}

#[tokio::test]
async fn absence_is_obeyed_and_content_stays() {
    let image = Image::single("absent");
    let (fake, mut world) = eager(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.untag(NAME, "latest");
    latest(&world.client()).await.expect("gone", 404).error("MANIFEST_UNKNOWN");
    world.client().manifest_head(NAME, "latest").expect(404).await;
    is_manifest(&world.client().manifest(NAME, &image.digest).expect(200).await, &image);
    // A later outage does not bring it back, not even after a restart: a tag never goes back by itself.
    fake.stop().await;
    world.restart().await;
    let status = latest(&world.client()).await.status;
    assert!([404, 502].contains(&status), "{status}");
    pull(&world.client(), NAME, &image.digest, &image).await;
    world.finish().await;
}

#[tokio::test]
async fn an_absent_tag_is_remembered_for_seconds_only() {
    let fake = Fake::start().await;
    let image = Image::single("soon");
    fake.push(NAME, "other", &image);
    let world = World::builder()
        .upstream_with("docker.io", &fake, "absent_for = \"1h\"")
        .upstream_with("fast.example.com", &fake, "absent_for = \"0s\"")
        .start()
        .await;
    let client = world.client();
    for _ in 0..4 {
        latest(&client).await.expect("absent", 404).error("MANIFEST_UNKNOWN");
    }
    assert!(fake.log().about("latest").len() <= 2, "remembered:{}", fake.log().lines());
    // The other upstream of the same fake remembers nothing: a build pushes and then pulls.
    let path = format!("/v2/fast.example.com/{NAME}/manifests/latest");
    client.get(&path).expect(404).await;
    fake.push(NAME, "latest", &image);
    is_manifest(&client.get(&path).expect(200).await, &image);
    world.finish().await;
}

#[tokio::test]
async fn when_absent_keep_goes_on_serving() {
    let image = Image::single("kept");
    let (fake, world) = eager_with(&image, "when_absent = \"keep\"").await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.untag(NAME, "latest");
    is_manifest(&latest(&world.client()).await.expect("kept", 200), &image);
    fake.delete_repository(NAME);
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn denial_is_obeyed() {
    let image = Image::single("denied");
    let (fake, world) = eager(&image).await;
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
    });
    latest(&world.client()).await.expect("cold", 200);
    fake.private(NAME, &["somebody"]);
    fake.expire_tokens();
    let reply = latest(&world.client()).await;
    assert_eq!(reply.status, 403, "{reply:?}");
    reply.error("DENIED");
    assert_eq!(reply.header("WWW-Authenticate"), None);
    fake.public(NAME);
    fake.expire_tokens();
    is_manifest(&latest(&world.client()).await.expect("public again", 200), &image);
    world.finish().await;
}

#[tokio::test]
async fn an_unauthorized_answer_to_anonymity_is_a_denial() {
    let image = Image::single("unauthorized");
    let (fake, world) = eager(&image).await;
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Unauthorized;
    });
    latest(&world.client()).await.expect("cold", 200);
    fake.private(NAME, &["somebody"]);
    fake.expire_tokens();
    let status = latest(&world.client()).await.status;
    assert!([403, 404].contains(&status), "{status}");
    world.finish().await;
}

#[tokio::test]
async fn thirty_two_clients_are_one_revalidation() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let (fake, world) = eager(&old).await;
    latest(&world.client()).await.expect("cold", 200);
    fake.push(NAME, "latest", &new);
    let gate = Gate::new();
    fake.rule(When::manifest().head(), Then::hold(&gate));
    let client = world.client();
    let mut requests: FuturesUnordered<_> = (0..32).map(|_| latest(&client)).collect();
    let mark = fake.mark();
    let mut answers = Vec::new();
    tokio::join!(
        async {
            while let Some(answer) = requests.next().await {
                answers.push(answer);
            }
        },
        async {
            gate.reached().await;
            world.holds_clients(32).await;
            gate.open();
        }
    );
    assert_eq!(answers.len(), 32);
    for answer in &answers {
        is_manifest(answer, &new);
    }
    let log = fake.since(mark);
    log.gets().expect(1, "one fetch of the new revision");
    assert!(log.heads().len() <= 2, "the revalidation is shared:{}", log.lines());
    world.finish().await;
}

#[tokio::test]
async fn thirty_two_clients_of_a_tag_never_seen_are_one_get() {
    let fake = Fake::start().await;
    let image = Image::single("never seen");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    let gate = Gate::new();
    fake.rule(When::manifest(), Then::hold(&gate));
    let client = world.client();
    let requests: FuturesUnordered<_> = (0..32).map(|_| latest(&client)).collect();
    let opener = async {
        gate.reached().await;
        world.holds_clients(32).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(requests.collect::<Vec<_>>(), opener);
    answers.iter().for_each(|answer| is_manifest(answer, &image));
    fake.log().content().expect(1, "one GET for all");
    world.finish().await;
}

#[tokio::test]
async fn an_immutable_tag_is_asked_for_once() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let fake = Fake::start().await;
    fake.push(NAME, "v1", &old);
    fake.push(NAME, "latest", &old);
    let rules = "[[upstream.\"docker.io\".tag]]\npattern = \"v*\"\nimmutable = true\n";
    let world =
        World::builder().upstream("docker.io", &fake).fresh_for("0s").tables(rules).start().await;
    let client = world.client();
    for tag in ["v1", "latest"] {
        client.manifest(NAME, tag).expect(200).await;
        fake.push(NAME, tag, &new);
    }
    let mark = fake.mark();
    is_manifest(&client.manifest(NAME, "v1").expect(200).await, &old);
    fake.since(mark).expect_none("it is immutable");
    is_manifest(&client.manifest(NAME, "latest").expect(200).await, &new);
    world.finish().await;
}

#[tokio::test]
async fn tag_rules_match_in_their_order() {
    let image = Image::single("rules");
    let fake = Fake::start().await;
    fake.push(NAME, "nightly", &image);
    fake.push("team/other", "nightly", &image);
    let rules = format!(
        "[[upstream.\"docker.io\".tag]]\npattern = \"{NAME}:night*\"\nfresh_for = \"1h\"\n\
         [[upstream.\"docker.io\".tag]]\npattern = \"nightly\"\nfresh_for = \"0s\"\n"
    );
    let world = World::builder().upstream("docker.io", &fake).tables(&rules).start().await;
    for name in [NAME, "team/other"] {
        world.client().manifest(name, "nightly").expect(200).await;
        world.client().manifest(name, "nightly").expect(200).await;
    }
    fake.log().filter(|entry| entry.repository == NAME).expect(1, "fresh by the first rule");
    fake.log().filter(|entry| entry.repository == "team/other").expect(2, "asked again");
    world.finish().await;
}

#[tokio::test]
async fn a_tag_survives_a_restart_with_its_freshness() {
    let fake = Fake::start().await;
    let image = Image::single("survives");
    fake.push(NAME, "latest", &image);
    let mut world = World::with(&fake).await;
    latest(&world.client()).await.expect("cold", 200);
    let mark = fake.mark();
    world.restart().await;
    is_hit(&latest(&world.client()).await.expect("warm", 200));
    fake.since(mark).expect_none("it is still fresh");
    world.finish().await;
}

#[tokio::test]
async fn digests_are_never_revalidated() {
    let image = Image::single("digests");
    let (fake, world) = eager(&image).await;
    let client = world.client();
    client.manifest(NAME, &image.digest).expect(200).await;
    let mark = fake.mark();
    is_hit(&client.manifest(NAME, &image.digest).expect(200).await);
    client.manifest_head(NAME, &image.digest).expect(200).await;
    fake.since(mark).expect_none("a digest says it all");
    world.finish().await;
}

#[tokio::test]
async fn each_move_is_recorded_in_order() {
    let images = [Image::single("one"), Image::single("two"), Image::single("three")];
    let (fake, mut world) = eager(&images[0]).await;
    for image in &images {
        fake.push(NAME, "latest", image);
        pull(&world.client(), NAME, "latest", image).await;
    }
    fake.stop().await;
    world.restart().await;
    for image in &images {
        let path = format!("/v2/{NAME}/manifests/latest/{}", image.digest);
        is_manifest(&world.client().get(&path).expect(200).await, image);
    }
    is_manifest(&latest(&world.client()).await, &images[2]);
    world.finish().await;
}

#[tokio::test]
async fn a_signed_schema_1_tag_is_revalidated_although_its_digest_is_over_the_payload() {
    let image = Image::schema1("signed");
    let (fake, world) = eager(&image).await;
    let payload = Image::single("the payload").digest;
    fake.rule(When::manifest().about("latest"), Then::set("Docker-Content-Digest", &payload));
    let by_payload = [
        Edit::Status(200),
        Edit::Header("Content-Type", Some(image.media_type.clone())),
        Edit::Body(image.bytes.clone()),
    ];
    fake.rule(When::manifest().about(&payload), Then::Alter(by_payload.to_vec()));
    for what in ["cold", "again"] {
        let reply = latest(&world.client()).await.expect(what, 200);
        is_manifest(&reply, &image);
        assert_eq!(reply.header("Warning"), None, "{what}: {reply:?}");
    }
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("roadstead_digest_mismatches_total", &[]), 0.0);
    world.finish().await;
}

#[tokio::test]
async fn what_is_junk_by_digest_is_fetched_by_tag() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let (fake, world) = eager(&old).await;
    latest(&world.client()).await.expect("cold", 200);
    fake.push(NAME, "latest", &new);
    let junk = Then::edit(Edit::Body(Bytes::from_static(b"<html>come in</html>")));
    let rule = fake.rule(When::manifest().get().about(&new.digest), junk);
    let reply = latest(&world.client()).await.expect("moved", 200);
    is_manifest(&reply, &new);
    rule.expect_hit();
    world.finish().await;
}
