//! Outages, junk and our own troubles are bridged with the last good revision, and the answer says so.

use super::tags::{NAME, eager, eager_with, latest};
use crate::support::client::Response;
use crate::support::content::{Image, noise};
use crate::support::fake::{Auth, Edit, Mode, Rejection, Reply, Then, When};
use crate::support::gate::Gate;
use crate::support::pull::{describes_manifest, is_manifest, is_stale, pull};
use std::time::Duration;

#[tokio::test]
async fn an_outage_is_bridged_and_told() {
    let image = Image::single("outage");
    let troubles = [
        Then::status(500),
        Then::status(502),
        Then::status(503),
        Then::status(504),
        Then::limited(Some("60")),
        Then::limited(None),
        Then::limited_with_bare_lf(),
        Then::Drop { reset: false },
        Then::Drop { reset: true },
        Then::reply(Reply::html(200)),
        Then::Raw("garbage that is not HTTP\r\n\r\n".into()),
    ];
    for trouble in troubles {
        let (fake, world) = eager(&image).await;
        latest(&world.client()).await.expect("cold", 200);
        let rule = fake.rule(When::any(), trouble);
        is_stale(&latest(&world.client()).await, &image);
        let head = world.client().manifest_head(NAME, "latest").expect(200).await;
        describes_manifest(&head, &image);
        assert!(head.must("Warning").starts_with("299 "));
        rule.expect_hit();
        world.finish().await;
    }
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_bridged_and_the_metric_says_so() {
    let image = Image::index("gone");
    let (fake, world) = eager(&image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.stop().await;
    is_stale(&latest(&world.client()).await, &image);
    pull(&world.client(), NAME, "latest", &image).await;
    let metrics = world.metrics().await;
    assert!(metrics.sum("roadstead_requests_total", &[("outcome", "stale")]) >= 2.0);
    fake.switch_on().await;
    world.finish().await;
}

#[tokio::test]
async fn a_stale_answer_counts_the_parts_that_are_missing() {
    let image = Image::build("parts").layers(3).finish();
    let (fake, world) = eager(&image).await;
    latest(&world.client()).await.expect("only the manifest", 200);
    fake.stop().await;
    let reply = latest(&world.client()).await;
    is_stale(&reply, &image);
    assert!(reply.must("Warning").contains('4'), "config and three layers: {reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn after_a_failed_check_nobody_waits_for_a_while() {
    let image = Image::single("failed check");
    let (fake, world) = eager(&image).await;
    latest(&world.client()).await.expect("cold", 200);
    fake.rule(When::any(), Then::status(503));
    is_stale(&latest(&world.client()).await, &image);
    let mark = fake.mark();
    for _ in 0..5 {
        is_stale(&latest(&world.client()).await, &image);
    }
    fake.quiet().await;
    let asked = fake.since(mark).len();
    assert!(asked <= 6, "{asked} requests while upstream is known to be down");
    world.finish().await;
}

#[tokio::test]
async fn after_that_while_upstream_is_asked_again() {
    let image = Image::single("asked again");
    let (fake, world) = eager(&image).await;
    latest(&world.client()).await.expect("cold", 200);
    let trouble = fake.rule(When::any(), Then::status(503));
    is_stale(&latest(&world.client()).await, &image);
    fake.remove(&trouble);
    fake.quiet().await;
    world.advance(Duration::from_secs(31));
    let reply = latest(&world.client()).await;
    is_manifest(&reply, &image);
    assert_eq!(reply.header("Warning"), None, "{reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_hanging_upstream_is_waited_for_only_so_long() {
    let image = Image::single("hanging");
    let settings = "wait = \"200ms\"\nwait_recent = \"100ms\"";
    let (fake, world) = eager_with(&image, settings).await;
    latest(&world.client()).await.expect("cold", 200);
    let gate = Gate::new();
    fake.rule(When::manifest(), Then::hold(&gate));
    is_stale(&latest(&world.client()).await, &image);
    assert_eq!(gate.arrivals(), 1);
    gate.open();
    fake.quiet().await;
    world.finish().await;
}

#[tokio::test]
async fn stale_if_error_can_have_an_end() {
    let image = Image::single("end of stale");
    let (fake, world) = eager_with(&image, "stale_if_error = \"0s\"").await;
    latest(&world.client()).await.expect("cold", 200);
    fake.stop().await;
    world.advance(Duration::from_secs(1));
    assert_eq!(latest(&world.client()).await.status, 502);
    is_manifest(&world.client().manifest(NAME, &image.digest).expect(200).await, &image);
    world.finish().await;
}

#[tokio::test]
async fn a_failing_token_service_is_our_trouble_and_bridged() {
    let image = Image::single("token trouble");
    let breakers: [fn(&mut Auth); 2] = [
        |auth| auth.rejection = Rejection::OtherRealm,
        |auth| auth.anonymous = crate::support::fake::Anonymous::Refused(500),
    ];
    for breaker in breakers {
        let (fake, world) = eager(&image).await;
        fake.auth(|auth| auth.mode = Mode::Bearer);
        latest(&world.client()).await.expect("cold", 200);
        fake.auth(breaker);
        fake.rule(When::token(), Then::status(500));
        fake.expire_tokens();
        is_stale(&latest(&world.client()).await, &image);
        world.finish().await;
    }
}

#[tokio::test]
async fn junk_is_bridged() {
    let image = Image::single("junk");
    let (fake, world) = eager(&image).await;
    latest(&world.client()).await.expect("cold", 200);
    fake.rule(When::manifest().head(), Then::status(405));
    for junk in [
        Then::reply(Reply::html(200)),
        Then::edit(Edit::Body("".into())),
        Then::edit(Edit::Body(noise("binary", 2000))),
        Then::set("Docker-Content-Digest", &Image::single("other").digest),
        Then::chunked_end_at(100),
    ] {
        let what = format!("{junk:?}");
        let rule = fake.rule(When::manifest().get(), junk);
        let reply = latest(&world.client()).await;
        assert_eq!(reply.body, image.bytes, "{what}");
        fake.remove(&rule);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_head_that_lies_about_the_digest_moves_no_tag() {
    let image = Image::single("lie");
    let (fake, world) = eager(&image).await;
    latest(&world.client()).await.expect("cold", 200);
    let nowhere = Image::single("nowhere").digest;
    fake.rule(When::manifest().head(), Then::set("Docker-Content-Digest", &nowhere));
    is_manifest(&latest(&world.client()).await, &image);
    let mut world = world;
    fake.stop().await;
    world.restart().await;
    is_manifest(&latest(&world.client()).await, &image);
    world.finish().await;
}
