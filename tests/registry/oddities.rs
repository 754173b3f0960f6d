//! Upstreams that refuse, redirect, encode, mislabel or downgrade: put right, or an error; never passed on.

use super::pull::{NAME, with};
use crate::support::content::{Image, noise};
use crate::support::fake::{
    BlobHead, Delivery, Edit, Fake, Framing, Kind, LocationForm, Origin, Reply, Then, When,
};
use crate::support::pull::{describes_blob, describes_manifest, is_blob, is_manifest, pull};
use crate::support::world::World;

#[tokio::test]
async fn cold_heads_work_where_upstream_refuses_them() {
    let image = Image::single("no heads");
    for head in [
        BlobHead::Status(401),
        BlobHead::Status(403),
        BlobHead::Status(405),
        BlobHead::NotFoundUntilGet,
        BlobHead::NoLength,
    ] {
        let (fake, world) = with(&image).await;
        fake.switch(|switch| switch.blob_head = head);
        fake.rule(When::manifest().head(), Then::status(404));
        let client = world.client();
        describes_manifest(&client.manifest_head(NAME, "latest").expect(200).await, &image);
        for blob in &image.blobs {
            describes_blob(&client.blob_head(NAME, &blob.digest).expect(200).await, blob);
        }
        pull(&client, NAME, "latest", &image).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn accept_encoding_changes_nothing() {
    let image = Image::single("encoding");
    let (fake, world) = with(&image).await;
    let client = world.client().with("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5");
    pull(&client, NAME, "latest", &image).await;
    pull(&client, NAME, "latest", &image).await;
    for entry in &fake.log().content().0 {
        assert_eq!(entry.header("accept-encoding").unwrap_or("identity"), "identity");
    }
    world.finish().await;
}

#[tokio::test]
async fn encoded_answers_of_upstream_never_reach_a_client() {
    let image = Image::single("encoded");
    let (fake, world) = with(&image).await;
    let rule = fake.rule(When::manifest(), Then::edit(Edit::Gzip));
    let reply = world.client().manifest(NAME, "latest").send().await;
    if reply.status == 200 {
        is_manifest(&reply, &image);
    } else {
        assert_eq!(reply.status, 502, "{reply:?}");
    }
    rule.expect_hit();
    fake.remove(&rule);
    world.client().manifest(NAME, &image.digest).expect(200).await;
    let blob = &image.blobs[1];
    let rule = fake.rule(When::blob().get(), Then::edit(Edit::Gzip));
    let reply = world.client().blob(NAME, &blob.digest).send().await;
    if reply.status == 200 {
        is_blob(&reply, blob);
    } else {
        assert_eq!(reply.status, 502, "{reply:?}");
    }
    fake.remove(&rule);
    world.finish().await;
}

#[tokio::test]
async fn wrong_headers_of_upstream_are_put_right() {
    let image = Image::index("headers");
    let lies = [
        Then::unset("Docker-Content-Digest"),
        Then::unset("Content-Type"),
        Then::set("Content-Type", "text/plain"),
        Then::set("Content-Type", "application/octet-stream"),
        Then::set("Content-Type", "application/json"),
        Then::set("ETag", "nonsense"),
        Then::edit(Edit::Framing(Framing::Chunked)),
        Then::edit(Edit::Framing(Framing::UntilClose)),
        Then::edit(Edit::Extra("X-Padding", "x".repeat(8000))),
    ];
    for lie in lies {
        let (fake, world) = with(&image).await;
        let rule = fake.rule(When::any(), lie);
        pull(&world.client(), NAME, "latest", &image).await;
        rule.expect_hit();
        world.finish().await;
    }
}

#[tokio::test]
async fn junk_is_never_a_manifest() {
    let image = Image::single("junk");
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let junk = [
        Then::reply(Reply::html(200)),
        Then::edit(Edit::Body("".into())),
        Then::edit(Edit::Body("null".into())),
        Then::edit(Edit::Body("{\"schemaVersion\":2".into())),
        Then::edit(Edit::Body(nested.into())),
        Then::edit(Edit::Body(noise("binary", 4000))),
        Then::edit(Edit::Append("\n".into())),
        Then::chunked_end_at(300),
    ];
    for then in junk {
        let what = format!("{then:?}");
        let (fake, world) = with(&image).await;
        fake.rule(When::manifest(), then);
        for reference in ["latest", &image.digest] {
            let reply = world.client().manifest(NAME, reference).send().await;
            assert_eq!(reply.status, 502, "{reference} with {:.80} gave {reply:?}", what);
        }
        assert!(!world.has_stored(&image.digest));
        world.finish().await;
    }
}

#[tokio::test]
async fn a_digest_header_that_differs_from_the_body_is_junk_for_a_tag() {
    let (image, other) = (Image::single("digest header"), Image::single("another"));
    let (fake, world) = with(&image).await;
    fake.rule(When::manifest(), Then::set("Docker-Content-Digest", &other.digest));
    world.client().manifest(NAME, "latest").expect(502).await;
    world.finish().await;
}

#[tokio::test]
async fn every_kind_of_redirect_is_followed() {
    let image = Image::single("redirects");
    let forms = [
        Delivery::Redirect { status: 301, form: LocationForm::Absolute },
        Delivery::Redirect { status: 302, form: LocationForm::Relative },
        Delivery::Redirect { status: 303, form: LocationForm::SchemeRelative },
        Delivery::Redirect { status: 307, form: LocationForm::Absolute },
        Delivery::Redirect { status: 308, form: LocationForm::Absolute },
        Delivery::Hops(5),
    ];
    for form in forms {
        let (fake, world) = with(&image).await;
        fake.switch(|switch| switch.delivery = form);
        pull(&world.client(), NAME, "latest", &image).await;
        fake.log().at(Origin::Cdn).no_referer_or_cookie();
        world.finish().await;
    }
}

#[tokio::test]
async fn bad_redirects_end_in_an_error_within_their_limit() {
    let image = Image::single("bad redirects");
    for form in [
        Delivery::Loop,
        Delivery::Hops(12),
        Delivery::MissingLocation,
        Delivery::To("ftp://127.0.0.1/x".to_owned()),
        Delivery::To("http://".to_owned()),
        Delivery::To("file:///etc/passwd".to_owned()),
    ] {
        let (fake, world) = with(&image).await;
        world.client().manifest(NAME, "latest").expect(200).await;
        fake.switch(|switch| switch.delivery = form.clone());
        let reply = world.client().blob(NAME, &image.blobs[1].digest).send().await;
        assert_eq!(reply.status, 502, "{form:?}: {reply:?}");
        assert!(fake.log().of(Kind::Hop).len() <= 3 * 11, "{form:?}");
        world.finish().await;
    }
}

#[tokio::test]
async fn upstream_over_tls_with_its_own_ca() {
    for h2 in [false, true] {
        let image = Image::single("tls");
        let fake = Fake::start_tls(h2).await;
        fake.push(NAME, "latest", &image);
        fake.switch(|switch| {
            switch.delivery = Delivery::Redirect { status: 307, form: LocationForm::Absolute };
        });
        let world = World::with(&fake).await;
        pull(&world.client(), NAME, "latest", &image).await;
        let spoken = fake.log().filter(|entry| entry.http2).len();
        assert_eq!(spoken > 0, h2, "HTTP/2 is used where it is offered");
        world.finish().await;
    }
}

#[tokio::test]
async fn https_is_never_left_for_http() {
    let image = Image::single("downgrade");
    let fake = Fake::start_tls(false).await;
    let plain = Fake::start().await;
    fake.push(NAME, "latest", &image);
    plain.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let blob = &image.blobs[1].digest;
    let target = format!("{}/v2/{NAME}/blobs/{blob}", plain.url());
    fake.switch(|switch| switch.delivery = Delivery::To(target));
    assert_eq!(world.client().blob(NAME, blob).send().await.status, 502);
    plain.log().expect_none("no downgrade");
    world.finish().await;
}
