//! The fake upstream does what it is told to: a fault that does not happen would make every other test here worthless.

use std::time::Duration;

use serde_json::json;

use crate::support::client::{Client, End, Response};
use crate::support::content::{Blob, DOCKER_LIST, Image, MIB, OCI_INDEX, SCHEMA1_SIGNED, sha256};
use crate::support::fake::{
    AcceptMode, BlobHead, Delivery, Edit, EtagForm, Fake, Framing, Kind, LinkForm, LocationForm,
    Origin, RangeMode, Reply, StoreAuth, Then, When,
};
use crate::support::gate::Gate;

pub(super) fn client(fake: &Fake) -> Client {
    Client::new(fake.address(Origin::Registry))
}

/// A request to an absolute URL of the fake.
pub(super) async fn follow(url: &str) -> Response {
    follow_with(url, &[]).await
}

pub(super) async fn follow_with(url: &str, headers: &[(&str, &str)]) -> Response {
    let rest = url.split_once("://").map_or_else(|| url.trim_start_matches("//"), |(_, r)| r);
    let (address, path) = rest.split_once('/').expect("a URL with a path");
    let mut request = Client::new(address.parse().expect("an address")).get(&format!("/{path}"));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.send().await
}

pub(super) const PATH: &str = "/v2/a/b/manifests/latest";

pub(super) async fn with_image() -> (Fake, Image) {
    let fake = Fake::start().await;
    let image = Image::single("self");
    fake.push("a/b", "latest", &image);
    (fake, image)
}

#[tokio::test]
async fn a_manifest_and_its_blobs_are_served_and_logged() {
    let (fake, image) = with_image().await;
    let client = client(&fake);
    client.get("/v2/").expect(200).await;
    let reply = client.manifest("a/b", "latest").expect(200).await;
    assert_eq!(reply.body, image.bytes);
    assert_eq!(reply.must("Docker-Content-Digest"), image.digest);
    let head = client.manifest_head("a/b", &image.digest).expect(200).await;
    assert_eq!(head.must("Content-Length"), image.bytes.len().to_string());
    assert!(head.body.is_empty());
    for blob in &image.blobs {
        let reply = client.blob("a/b", &blob.digest).expect(200).await;
        assert_eq!(reply.digest(), blob.digest);
        assert_eq!(fake.blob_bytes(&blob.digest), blob.len());
    }
    client.manifest("a/b", "nope").expect(404).await.error("MANIFEST_UNKNOWN");
    client.manifest("no/such", "latest").expect(404).await.error("NAME_UNKNOWN");
    client.request("PUT", PATH).expect(405).await;
    fake.log().of(Kind::Manifest).gets().expect(3, "three GETs of manifests");
    fake.log().of(Kind::Blob).expect(3, "three blobs");
    assert_eq!(fake.log().content().len(), 9);
}

#[tokio::test]
async fn generated_images_are_what_they_say() {
    let index = Image::index("kinds");
    assert_eq!(index.media_type, OCI_INDEX);
    assert_eq!(index.children.len(), 3);
    assert_eq!(Image::docker_list("kinds").media_type, DOCKER_LIST);
    assert_eq!(Image::schema1("kinds").media_type, SCHEMA1_SIGNED);
    assert_eq!(Image::nested_index("kinds").manifests().len(), 5);
    let eleven = Image::of_eleven_objects("kinds");
    assert_eq!(eleven.manifests().len() + eleven.all_blobs().len(), 11);
    let limit = 8 * MIB;
    assert_eq!(Image::build("big").layers(1).size(limit).finish().bytes.len(), 8 << 20);
    let longer = Image::build("big").layers(1).size(limit + 1).finish();
    assert_eq!(longer.bytes.len(), (8 << 20) + 1);
    assert_eq!(longer.digest, sha256(&longer.bytes));
    let sha512 = Image::build("long").layers(1).sha512().finish();
    assert!(sha512.digest.starts_with("sha512:") && sha512.digest.len() == 7 + 128);
    let artifact = Image::artifact("sbom", "application/x-sbom", &eleven);
    assert_eq!(artifact.subject.as_ref(), Some(&eleven.digest));
    let foreign = Blob::layer("windows", 10).foreign("https://example.com/layer");
    let image = Image::build("windows").layer(foreign).finish();
    assert!(String::from_utf8_lossy(&image.bytes).contains("example.com"));
}

#[tokio::test]
async fn a_synthetic_blob_is_the_same_from_any_offset() {
    let blob = Blob::synthetic(7, 3 * MIB + 5);
    let whole = blob.bytes();
    assert_eq!(sha256(&whole), blob.digest);
    for range in [0..1, 63..65, 1_048_570..1_048_583, 2_000_001..2_100_003] {
        let start = usize::try_from(range.start).expect("small");
        let end = usize::try_from(range.end).expect("small");
        assert_eq!(blob.data.slice(range), whole.slice(start..end));
    }
    assert_ne!(blob.data.slice(0..128), blob.data.slice(MIB..MIB + 128));
}

#[tokio::test]
async fn a_gate_holds_a_body_until_it_is_opened() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(1, MIB);
    fake.push_blob("a/b", &blob);
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(1000, &gate));
    let mut body = client(&fake).blob("a/b", &blob.digest).open().await;
    assert_eq!(body.take(1000).await, blob.data.slice(0..1000));
    gate.reached().await;
    assert_eq!(fake.blob_bytes(&blob.digest), 1000);
    gate.open();
    let rest = body.rest().await;
    assert_eq!((rest.end, rest.body.len()), (End::Clean, (1 << 20) - 1000));
}

#[tokio::test]
async fn bodies_break_where_they_are_told_to() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(2, MIB);
    fake.push_blob("a/b", &blob);
    let get = || client(&fake).blob("a/b", &blob.digest);
    let cases = [
        (Then::close_at(70_000), 70_000, End::Cut),
        (Then::edit(Edit::LengthOff(5)), 1 << 20, End::Cut),
        (Then::edit(Edit::LengthOff(-5)), (1 << 20) - 5, End::Clean),
        (Then::chunked(), 1 << 20, End::Clean),
        (Then::chunked_end_at(99), 99, End::Clean),
        (Then::edit(Edit::Framing(Framing::UntilClose)), 1 << 20, End::Clean),
        (Then::edit(Edit::Framing(Framing::Claim(0))), 0, End::Clean),
        (Then::drip(300_000, Duration::from_millis(1)), 1 << 20, End::Clean),
    ];
    for (then, length, end) in cases {
        let what = format!("{then:?}");
        let rule = fake.rule(When::blob(), then);
        let reply = get().send().await;
        assert_eq!((reply.body.len(), reply.end), (length, end), "{what}");
        rule.expect_hit();
        fake.remove(&rule);
    }
    let rule = fake.rule(When::blob(), Then::corrupt_at(500_000));
    let reply = get().expect(200).await;
    assert_ne!(reply.digest(), blob.digest);
    assert_eq!(reply.body.len(), 1 << 20);
    fake.remove(&rule);
    let rule = fake.rule(When::blob(), Then::reset_at(70_000));
    assert_eq!(get().send().await.end, End::Reset);
    fake.remove(&rule);
    get().expect(200).await;
}

#[tokio::test]
async fn a_stalled_body_ends_when_the_client_goes() {
    let (fake, image) = with_image().await;
    fake.rule(When::blob(), Then::stall_at(10));
    let layer = &image.blobs[1];
    let mut body = client(&fake).blob("a/b", &layer.digest).open().await;
    body.take(10).await;
    drop(body);
    fake.quiet().await;
    assert_eq!(fake.blob_bytes(&layer.digest), 10);
    fake.rule(When::manifest(), Then::Hang);
    let mut connection = client(&fake).connect().await;
    connection.send(&client(&fake).get(PATH).bytes()).await;
    fake.wait_for("the request", |log| log.of(Kind::Manifest).len() == 1).await;
    drop(connection);
    fake.quiet().await;
}

#[tokio::test]
async fn rules_count_their_requests() {
    let (fake, _image) = with_image().await;
    let burst = fake.rule(When::manifest().get().starting_at(2).times(2), Then::status(503));
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(client(&fake).get(PATH).send().await.status);
    }
    assert_eq!(seen, [200, 503, 503, 200, 200]);
    assert_eq!(burst.hits(), 2);
    let limited = fake.rule(When::any().path("/v2/*/manifests/lat*"), Then::limited(Some("7")));
    assert_eq!(client(&fake).get(PATH).expect(429).await.must("Retry-After"), "7");
    fake.remove(&limited);
    fake.rule(When::manifest().head(), Then::Drop { reset: false });
    let mut connection = client(&fake).connect().await;
    connection.send(&client(&fake).head(PATH).bytes()).await;
    assert!(connection.drain().await.is_empty());
    fake.rule(When::manifest().about("latest").get(), Then::limited_with_bare_lf());
    let mut connection = client(&fake).connect().await;
    connection.send(&client(&fake).get(PATH).bytes()).await;
    assert!(connection.drain().await.starts_with(b"HTTP/1.1 429 Too Many Requests\nContent"));
}

#[tokio::test]
async fn a_rule_can_act_between_two_requests() {
    let (fake, old) = with_image().await;
    let new = Image::single("new");
    fake.push_untagged("a/b", &new);
    let digest = new.digest.clone();
    let moved = Then::run(move |fake| fake.tag("a/b", "latest", &digest));
    fake.rule(When::manifest().head().once(), moved);
    let head = client(&fake).head(PATH).expect(200).await;
    assert_eq!(head.must("Docker-Content-Digest"), old.digest);
    assert_eq!(client(&fake).get(PATH).expect(200).await.body, new.bytes);
}

#[tokio::test]
async fn replies_can_be_altered() {
    let (fake, image) = with_image().await;
    let cases = [
        Then::unset("Docker-Content-Digest"),
        Then::set("Content-Type", "text/plain"),
        Then::edit(Edit::Extra("X-More", "1".to_owned())),
        Then::edit(Edit::Append("\n\n".into())),
        Then::edit(Edit::Gzip),
        Then::edit(Edit::Body("{}".into())),
        Then::edit(Edit::Status(203)),
        Then::edit(Edit::Close),
        Then::reply(Reply::html(200)),
    ];
    let plain = client(&fake).get(PATH).send().await;
    for then in cases {
        let what = format!("{then:?}");
        let rule = fake.rule(When::manifest(), then);
        let reply = client(&fake).get(PATH).send().await;
        let same = (reply.status, &reply.headers, &reply.body)
            == (plain.status, &plain.headers, &plain.body);
        assert!(!same, "{what} changed nothing");
        fake.remove(&rule);
    }
    fake.rule(When::manifest(), Then::edit(Edit::Framing(Framing::Twice(1))));
    let mut connection = client(&fake).connect().await;
    connection.send(&client(&fake).get(PATH).bytes()).await;
    let text = String::from_utf8_lossy(&connection.drain().await).into_owned();
    assert_eq!(text.matches("Content-Length").count(), 2);
    assert_eq!(plain.digest(), image.digest);
}

#[tokio::test]
async fn ranges_can_be_honoured_ignored_and_wrong() {
    let fake = Fake::start().await;
    let blob = Blob::layer("ranged", 1000);
    fake.push_blob("a/b", &blob);
    let get = || client(&fake).blob("a/b", &blob.digest).range("100-199");
    let reply = get().expect(206).await;
    assert_eq!(reply.must("Content-Range"), "bytes 100-199/1000");
    assert_eq!(reply.body, blob.bytes().slice(100..200));
    let expected = [
        (RangeMode::Ignore, 200, None),
        (RangeMode::WrongStart, 206, Some("bytes 101-199/1000")),
        (RangeMode::WrongTotal, 206, Some("bytes 100-199/1007")),
        (RangeMode::NoContentRange, 206, None),
        (RangeMode::Refuse416, 416, Some("bytes */1000")),
        (RangeMode::BadRequestXml, 400, None),
    ];
    for (mode, status, told) in expected {
        fake.switch(|switch| switch.range = mode);
        assert_eq!(get().expect(status).await.header("Content-Range"), told, "{mode:?}");
    }
    fake.switch(|switch| switch.range = RangeMode::Honour);
    client(&fake).blob("a/b", &blob.digest).range("1000-").expect(416).await;
}

#[tokio::test]
async fn blobs_are_redirected_to_a_store_that_refuses_credentials() {
    let (fake, image) = with_image().await;
    let layer = &image.blobs[1];
    let get = || client(&fake).blob("a/b", &layer.digest);
    for form in [LocationForm::Absolute, LocationForm::SchemeRelative] {
        fake.switch(|s| s.delivery = Delivery::Redirect { status: 307, form });
        let location = get().expect(307).await.must("Location").to_owned();
        assert!(location.contains("127.0.0.3"));
        assert_eq!(follow(&location).await.digest(), layer.digest);
        let refused = follow_with(&location, &[("Authorization", "Bearer x")]).await;
        assert_eq!(refused.status, 400);
    }
    fake.switch(|switch| switch.store_auth = StoreAuth::Azure);
    let location = get().expect(307).await.must("Location").to_owned();
    assert_eq!(follow_with(&location, &[("Authorization", "Basic x")]).await.status, 403);
    fake.expire_urls();
    assert_eq!(follow(&location).await.status, 403);
    fake.switch(|switch| {
        switch.single_use_urls = true;
        switch.delivery = Delivery::Redirect { status: 302, form: LocationForm::Relative };
    });
    let location = get().expect(302).await.must("Location").to_owned();
    assert!(location.starts_with("/artifacts-downloads/"));
    client(&fake).get(&location).expect(200).await;
    client(&fake).get(&location).expect(403).await;
    let store = fake.log().of(Kind::Store).at(Origin::Cdn);
    store.no_referer_or_cookie();
    assert_eq!(store.filter(|entry| entry.authorization.is_some()).len(), 3);
}

#[tokio::test]
async fn redirects_can_be_long_endless_and_broken() {
    let (fake, image) = with_image().await;
    let digest = image.blobs[1].digest.clone();
    let get = || client(&fake).blob("a/b", &digest);
    fake.switch(|switch| switch.delivery = Delivery::Hops(3));
    let mut location = get().expect(307).await.must("Location").to_owned();
    let mut hops = 1;
    let reply = loop {
        let reply = follow(&location).await;
        if reply.status != 307 {
            break reply;
        }
        hops += 1;
        location = reply.must("Location").to_owned();
    };
    assert_eq!((hops, reply.digest()), (5, digest.clone()));
    fake.switch(|switch| switch.delivery = Delivery::Loop);
    let location = get().expect(307).await.must("Location").to_owned();
    assert_eq!(follow(&location).await.must("Location"), location);
    fake.switch(|switch| switch.delivery = Delivery::MissingLocation);
    assert_eq!(get().expect(307).await.header("Location"), None);
    fake.switch(|switch| switch.delivery = Delivery::To("http://169.254.169.254/x".to_owned()));
    assert_eq!(get().expect(307).await.must("Location"), "http://169.254.169.254/x");
}

#[tokio::test]
async fn heads_of_blobs_can_lie() {
    let (fake, image) = with_image().await;
    let digest = &image.blobs[1].digest;
    let head = || client(&fake).blob_head("a/b", digest);
    assert_eq!(head().expect(200).await.must("Content-Length"), "2000");
    fake.switch(|switch| switch.blob_head = BlobHead::Status(401));
    head().expect(401).await;
    fake.switch(|switch| switch.blob_head = BlobHead::NoLength);
    assert_eq!(head().expect(200).await.header("Content-Length"), None);
    fake.switch(|switch| switch.blob_head = BlobHead::NotFoundUntilGet);
    head().expect(404).await;
    client(&fake).blob("a/b", digest).expect(200).await;
    head().expect(200).await;
    fake.switch(|switch| {
        switch.blob_head = BlobHead::Redirect;
        switch.get_only_urls = true;
        switch.delivery = Delivery::Redirect { status: 307, form: LocationForm::Relative };
    });
    let location = head().expect(307).await.must("Location").to_owned();
    client(&fake).head(&location).expect(403).await;
}

#[tokio::test]
async fn manifests_depend_on_accept_when_told_so() {
    let fake = Fake::start().await;
    let index = Image::index("accept");
    fake.push("a/b", "latest", &index);
    let get = || client(&fake).get(PATH);
    fake.switch(|switch| switch.accept = AcceptMode::NotFound);
    get().expect(404).await;
    get().header("Accept", OCI_INDEX).expect(200).await;
    fake.switch(|switch| switch.accept = AcceptMode::FirstChild);
    assert_eq!(get().expect(200).await.digest(), index.children[0].digest);
    fake.switch(|switch| switch.accept = AcceptMode::Ignore);
    for (form, etag) in [
        (EtagForm::Quoted, Some(format!("\"{}\"", index.digest))),
        (EtagForm::Bare, Some(index.digest.clone())),
        (EtagForm::Weak, Some(format!("W/\"{}\"", index.digest))),
        (EtagForm::Absent, None),
    ] {
        fake.switch(|switch| switch.etag = form);
        assert_eq!(get().expect(200).await.header("ETag"), etag.as_deref());
    }
    fake.switch(|switch| switch.etag = EtagForm::Quoted);
    get().header("If-None-Match", &format!("\"{}\"", index.digest)).expect(304).await;
    fake.switch(|switch| {
        switch.no_digest_on_get = true;
        switch.manifest_type = Some("application/octet-stream".to_owned());
        switch.ratelimit = Some(10);
        switch.loud_headers = true;
        switch.manifests_elsewhere = false;
    });
    let reply = get().expect(200).await;
    assert_eq!(reply.header("Docker-Content-Digest"), None);
    assert_eq!(reply.must("Content-Type"), "application/octet-stream");
    assert_eq!(reply.must("RateLimit-Remaining"), "9;w=21600");
    assert!(reply.headers.iter().any(|(name, _)| name == "RATELIMIT-LIMIT"));
    fake.switch(|switch| switch.manifests_elsewhere = true);
    let location = get().expect(307).await.must("Location").to_owned();
    assert_eq!(follow(&location).await.digest(), index.digest);
}

#[tokio::test]
async fn lists_are_paged_and_mislinked() {
    let (fake, image) = with_image().await;
    for n in 0..5 {
        fake.tag("a/b", &format!("v{n}"), &image.digest);
    }
    let get = |query: &str| client(&fake).get(&format!("/v2/a/b/tags/list{query}"));
    let all = get("").expect(200).await;
    assert_eq!(all.json()["tags"], json!(["latest", "v0", "v1", "v2", "v3", "v4"]));
    assert_eq!(all.header("Link"), None);
    fake.switch(|switch| switch.tags_page = Some(2));
    let page = get("?n=100").expect(200).await;
    assert_eq!(page.must("Link"), "</v2/a/b/tags/list?n=100&last=v0>; rel=\"next\"");
    assert_eq!(get("?n=100&last=v3").expect(200).await.header("Link"), None);
    for (form, start) in [
        (LinkForm::Absolute, Some("<http://127.0.0.1")),
        (LinkForm::Foreign, Some("<http://127.0.0.2")),
        (LinkForm::Repeating, Some("</v2/a/b/tags/list?n=100&last=v0")),
        (LinkForm::None, None),
    ] {
        fake.switch(|switch| switch.link = form);
        let page = get("?n=100").expect(200).await;
        assert_eq!(page.header("Link").is_some(), start.is_some());
        assert!(page.header("Link").unwrap_or("").starts_with(start.unwrap_or("")), "{form:?}");
    }
    let catalog = client(&fake).get("/v2/_catalog").expect(200).await;
    assert_eq!(catalog.json()["repositories"], json!(["a/b"]));
}

#[tokio::test]
async fn it_can_be_switched_off_and_on_at_the_same_port() {
    let (fake, image) = with_image().await;
    let mut open = client(&fake).connect().await;
    open.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (reply, open) = open.incoming(false).await.rest_and_connection().await;
    assert_eq!(reply.status, 200);
    fake.stop().await;
    assert!(open.drain().await.is_empty());
    assert_eq!(fake.open_connections(), 0);
    let refused = tokio::net::TcpStream::connect(fake.address(Origin::Registry)).await;
    let kind = refused.map_err(|error| error.kind()).err();
    assert_eq!(kind, Some(std::io::ErrorKind::ConnectionRefused));
    fake.switch_on().await;
    assert_eq!(client(&fake).get(PATH).expect(200).await.body, image.bytes);
    assert!(fake.connections() >= 2 && fake.most_parallel(Origin::Registry) == 1);
}

#[tokio::test]
async fn content_can_vanish() {
    let (fake, image) = with_image().await;
    fake.delete_blob("a/b", &image.blobs[1].digest);
    client(&fake).blob("a/b", &image.blobs[1].digest).expect(404).await;
    fake.delete_manifest("a/b", &image.digest);
    client(&fake).get(PATH).expect(404).await.error("MANIFEST_UNKNOWN");
    fake.push("a/b", "latest", &image);
    fake.untag("a/b", "latest");
    client(&fake).get(PATH).expect(404).await.error("MANIFEST_UNKNOWN");
    fake.delete_repository("a/b");
    client(&fake).get(PATH).expect(404).await.error("NAME_UNKNOWN");
}

#[tokio::test]
async fn a_held_answer_comes_after_the_gate() {
    let (fake, _image) = with_image().await;
    let gate = Gate::new();
    fake.rule(When::manifest().authorized(false).ranged(false), Then::hold(&gate));
    let mut connection = client(&fake).connect().await;
    connection.send(&client(&fake).get(PATH).bytes()).await;
    gate.reached().await;
    assert_eq!((gate.arrivals(), fake.log().0[0].status), (1, 0));
    gate.open();
    assert_eq!(connection.incoming(false).await.rest().await.status, 200);
}
