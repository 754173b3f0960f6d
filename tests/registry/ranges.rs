//! `Range`, `If-Range` and `If-None-Match`: the same answers from a cold, a warm and a half-fetched blob.

use crate::support::client::{End, Response};
use crate::support::content::{Blob, Image, MIB, to_usize};
use crate::support::fake::{Fake, Kind, Then, When};
use crate::support::gate::Gate;
use crate::support::multipart::parts;
use crate::support::pull::{describes_blob, is_blob};
use crate::support::world::World;

const NAME: &str = "team/app";

async fn with(size: u64) -> (Fake, World, Blob) {
    let blob = Blob::synthetic(5, size);
    let image = Image::build("ranges").layer(blob.clone()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    (fake, world, blob)
}

async fn warm(size: u64) -> (Fake, World, Blob) {
    let (fake, world, blob) = with(size).await;
    let body = world.client().blob(NAME, &blob.digest).open().await;
    body.hashed().await.is_whole(&blob.digest, size);
    world.downloads_over().await;
    (fake, world, blob)
}

fn is_part(reply: &Response, blob: &Blob, first: u64, last: u64) {
    assert_eq!((reply.status, reply.end), (206, End::Clean), "{:?}", reply.headers);
    assert_eq!(reply.must("Content-Range"), format!("bytes {first}-{last}/{}", blob.len()));
    assert_eq!(reply.must("Content-Length"), (last + 1 - first).to_string());
    assert_eq!(reply.must("Content-Type"), "application/octet-stream");
    assert_eq!(reply.must("Accept-Ranges"), "bytes");
    assert_eq!(reply.must("ETag"), format!("\"{}\"", blob.digest));
    assert_eq!(reply.must("Docker-Content-Digest"), blob.digest);
    assert!(reply.body == blob.data.slice(first..last + 1), "bytes {first}-{last} are others");
}

/// What single ranges must give, on a blob of a MiB.
const SINGLE: [(&str, u64, u64); 9] = [
    ("0-0", 0, 0),
    ("0-1", 0, 1),
    ("0-", 0, MIB - 1),
    ("100-199", 100, 199),
    ("1000000-", 1_000_000, MIB - 1),
    ("-1", MIB - 1, MIB - 1),
    ("-70000", MIB - 70_000, MIB - 1),
    ("500000-1048576", 500_000, MIB - 1),
    ("0-99999999999999999999999", 0, MIB - 1),
];

#[tokio::test]
async fn single_ranges_of_a_warm_blob() {
    let (fake, world, blob) = warm(MIB).await;
    let mark = fake.mark();
    for (range, first, last) in SINGLE {
        let reply = world.client().blob(NAME, &blob.digest).range(range).send().await;
        is_part(&reply, &blob, first, last);
        let head = world.client().blob_head(NAME, &blob.digest).range(range).send().await;
        assert!([200, 206].contains(&head.status), "{head:?}");
    }
    let more = format!("-{}", MIB + 5);
    let reply = world.client().blob(NAME, &blob.digest).range(&more).send().await;
    is_part(&reply, &blob, 0, MIB - 1);
    fake.since(mark).expect_none("it is here");
    world.finish().await;
}

#[tokio::test]
async fn single_ranges_of_a_cold_blob() {
    for (range, first, last) in SINGLE {
        let (fake, world, blob) = with(MIB).await;
        let reply = world.client().blob(NAME, &blob.digest).range(range).send().await;
        is_part(&reply, &blob, first, last);
        fake.quiet().await;
        assert!(fake.blob_bytes(&blob.digest) <= MIB + MIB / 10, "range {range} costs too much");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_range_of_a_blob_in_flight_is_served_as_soon_as_it_is_there() {
    let (fake, world, blob) = with(4 * MIB).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(2 * MIB, &gate));
    let whole = world.client().blob(NAME, &blob.digest).open().await;
    gate.reached().await;
    let reply = world.client().blob(NAME, &blob.digest).range("1000-99999").send().await;
    is_part(&reply, &blob, 1000, 99_999);
    let mut later = world.client().blob(NAME, &blob.digest).range("1000000-3000000").open().await;
    assert_eq!(later.take(500_000).await, blob.data.slice(1_000_000..1_500_000));
    gate.open();
    let rest = later.rest().await;
    assert!(rest.body == blob.data.slice(1_500_000..3_000_001), "other bytes across the gate");
    whole.hashed().await.is_whole(&blob.digest, blob.len());
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len());
    world.finish().await;
}

#[tokio::test]
async fn chunked_readers_get_206_on_every_request_and_may_leave_early() {
    // containerd's parallel mode: open-ended ranges, each dropped after its chunk.
    let (fake, world, blob) = with(4 * MIB).await;
    let client = world.client();
    let mut got = Vec::new();
    for chunk in 0..8 {
        let start = chunk * MIB / 2;
        let range = format!("{start}-");
        let mut body = client.blob(NAME, &blob.digest).range(&range).open().await;
        assert_eq!(body.status, 206);
        let told = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
        assert_eq!(body.header("Content-Range"), Some(told.as_str()));
        got.extend_from_slice(&body.take(MIB / 2).await);
    }
    assert!(got == blob.bytes(), "the chunks do not make the blob");
    fake.log().of(Kind::Blob).expect(1, "one download");
    world.finish().await;
}

#[tokio::test]
async fn multipart_has_one_part_per_range_in_order() {
    let (_fake, world, blob) = warm(MIB).await;
    let cases: [(&str, &[(u64, u64)]); 4] = [
        ("0-9,20-29", &[(0, 9), (20, 29)]),
        ("500-599,100-199,150-160", &[(500, 599), (100, 199), (150, 160)]),
        ("0-0,-1", &[(0, 0), (MIB - 1, MIB - 1)]),
        ("0-99, 100-199 ,1048000-", &[(0, 99), (100, 199), (1_048_000, MIB - 1)]),
    ];
    for (range, expected) in cases {
        let reply = world.client().blob(NAME, &blob.digest).range(range).expect(206).await;
        assert_eq!(reply.must("Content-Length"), reply.body.len().to_string());
        assert_eq!(reply.header("Content-Range"), None);
        let got = parts(&reply);
        let want: Vec<_> = expected
            .iter()
            .map(|(first, last)| {
                let line = format!("bytes {first}-{last}/{MIB}");
                (line, blob.data.slice(*first..last + 1).to_vec())
            })
            .collect();
        assert!(got == want, "{range} gave {:?}", got.iter().map(|(l, _)| l).collect::<Vec<_>>());
    }
    world.finish().await;
}

#[tokio::test]
async fn multipart_of_a_cold_blob() {
    let (fake, world, blob) = with(MIB).await;
    let ranges = "100-199,1000000-1000099,0-9";
    let reply = world.client().blob(NAME, &blob.digest).range(ranges).expect(206).await;
    let got: Vec<_> = parts(&reply).into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(got[0], blob.data.slice(100..200));
    assert_eq!(got[1], blob.data.slice(1_000_000..1_000_100));
    assert_eq!(got[2], blob.data.slice(0..10));
    fake.log().of(Kind::Blob).gets().expect(1, "one download");
    world.finish().await;
}

#[tokio::test]
async fn a_thousand_and_24_ranges_are_served_and_one_more_is_400() {
    let (_fake, world, blob) = warm(MIB).await;
    let list = |count: u64| {
        let all: Vec<_> = (0..count).map(|n| format!("{}-{}", n * 1000, n * 1000 + 5)).collect();
        all.join(",")
    };
    let reply = world.client().blob(NAME, &blob.digest).range(&list(1024)).expect(206).await;
    let got = parts(&reply);
    assert_eq!(got.len(), 1024);
    for (n, (_, bytes)) in (0..).zip(&got) {
        assert_eq!(*bytes, blob.data.slice(n * 1000..n * 1000 + 6));
    }
    let reply = world.client().blob(NAME, &blob.digest).range(&list(1025)).expect(400).await;
    assert!(reply.must("Content-Type").starts_with("application/json"));
    world.finish().await;
}

#[tokio::test]
async fn ranges_that_cannot_be_are_416_and_nonsense_is_400() {
    let (_fake, world, blob) = warm(MIB).await;
    let get = |range: &str| world.client().blob(NAME, &blob.digest).range(range);
    for range in ["1048576-", "1048576-1048577", "99999999-", "18446744073709551615-", "-0"] {
        let reply = get(range).expect(416).await;
        assert_eq!(reply.must("Content-Range"), format!("bytes */{MIB}"), "{range}");
        reply.error("RANGE_INVALID");
    }
    for range in ["", "-", "a-b", "5-2", "1--2", "0x10-", "1-2-3", "-1-", "+1-2"] {
        let reply = get(range).expect(400).await;
        assert!(reply.must("Content-Type").starts_with("application/json"), "{range}");
    }
    let other_unit = world.client().blob(NAME, &blob.digest).header("Range", "lines=1-2");
    is_blob(&other_unit.expect(200).await, &blob);
    world.finish().await;
}

#[tokio::test]
async fn if_range_switches_the_range_off_unless_it_names_the_blob() {
    let (_fake, world, blob) = warm(MIB).await;
    let get = |condition: &str| {
        world.client().blob(NAME, &blob.digest).range("5-9").header("If-Range", condition)
    };
    is_part(&get(&format!("\"{}\"", blob.digest)).send().await, &blob, 5, 9);
    for other in [
        "\"something else\"".to_owned(),
        format!("W/\"{}\"", blob.digest),
        "Sun, 06 Nov 1994 08:49:37 GMT".to_owned(),
    ] {
        is_blob(&get(&other).expect(200).await, &blob);
    }
    world.finish().await;
}

#[tokio::test]
async fn if_none_match_is_answered_304_cold_and_warm() {
    let fake = Fake::start().await;
    let image = Image::single("etag");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    let client = world.client();
    let blob = &image.blobs[1];
    for _round in 0..2 {
        for request in [client.manifest(NAME, "latest"), client.manifest_head(NAME, "latest")] {
            let known = request.clone().header("If-None-Match", &format!("\"{}\"", image.digest));
            let reply = known.expect(304).await;
            assert!(reply.body.is_empty());
            assert_eq!(reply.must("ETag"), format!("\"{}\"", image.digest));
            assert_eq!(reply.must("Docker-Content-Digest"), image.digest);
            let bare = request.clone().header("If-None-Match", &image.digest);
            bare.expect(304).await;
            request.header("If-None-Match", "\"other\"").expect(200).await;
        }
        let etag = format!("\"other\", \"{}\"", blob.digest);
        let reply = client.blob(NAME, &blob.digest).header("If-None-Match", &etag);
        assert!(reply.expect(304).await.body.is_empty());
        is_blob(&client.blob(NAME, &blob.digest).expect(200).await, blob);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_range_on_a_manifest_gives_right_bytes() {
    // containerd asks "bytes=0-" even for manifests.
    let fake = Fake::start().await;
    let image = Image::single("ranged manifest");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    let reply = world.client().manifest(NAME, &image.digest).range("0-").send().await;
    assert!([200, 206].contains(&reply.status));
    assert_eq!(reply.body, image.bytes);
    assert_eq!(reply.must("Content-Type"), image.media_type);
    let part = world.client().manifest(NAME, &image.digest).range("10-19").send().await;
    match part.status {
        206 => assert_eq!(part.body, image.bytes.slice(10..20)),
        status => assert_eq!((status, part.body), (200, image.bytes.clone())),
    }
    world.finish().await;
}

#[tokio::test]
async fn ranges_of_an_empty_blob() {
    let image = Image::build("empty").layer(Blob::empty()).finish();
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let get = || world.client().blob(NAME, &Blob::empty().digest);
    let reply = get().range("0-").send().await;
    assert!([200, 416].contains(&reply.status), "{reply:?}");
    describes_blob(&get().expect(200).await, &Blob::empty());
    world.finish().await;
}

#[tokio::test]
async fn a_resume_after_a_cut_gets_the_rest() {
    let (fake, world, blob) = with(4 * MIB).await;
    let cut = fake.rule(When::blob().times(3), Then::close_at(2 * MIB));
    let first = world.client().blob(NAME, &blob.digest).send().await;
    cut.expect_hit();
    assert_ne!(first.end, End::Reset, "a broken body ends with FIN");
    let have = first.body.len();
    assert!(first.body == blob.data.slice(0..have.try_into().expect("small")), "other bytes");
    if first.end == End::Cut {
        fake.remove(&cut);
        let resume = world.client().blob(NAME, &blob.digest).range(&format!("{have}-"));
        let rest = resume.expect(206).await;
        assert_eq!(rest.body.len(), to_usize(blob.len()) - have);
        assert!(rest.body == blob.data.slice(have.try_into().expect("small")..blob.len()));
    }
    world.finish().await;
}
