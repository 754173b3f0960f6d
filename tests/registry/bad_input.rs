//! Malformed, overlong and hostile input: a 4xx in OCI JSON, and neither disk nor upstream is touched.

use crate::support::client::Connection;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::Fake;
use crate::support::pull::{is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";

async fn quiet_world() -> (Fake, World) {
    let fake = Fake::start().await;
    let world = World::with(&fake).await;
    (fake, world)
}

/// Nothing was asked upstream and nothing was written.
async fn nothing_happened(fake: &Fake, world: World) {
    assert_eq!(fake.connections(), 0, "upstream was asked:{}", fake.log().lines());
    assert!(world.partial_files().is_empty());
    let blobs = world.data().join("blobs");
    let mut names = Vec::new();
    for dir in std::fs::read_dir(blobs).into_iter().flatten().flatten() {
        names.extend(std::fs::read_dir(dir.path()).into_iter().flatten().flatten());
    }
    assert!(names.is_empty(), "{names:?}");
    world.finish().await;
}

/// Sends one line as it is; gives the status and the whole answer.
async fn raw(world: &World, target: &str) -> (u16, String) {
    let mut connection = world.client().connect().await;
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    connection.send(request.as_bytes()).await;
    let text = String::from_utf8_lossy(&connection.drain().await).into_owned();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, text)
}

#[tokio::test]
async fn names_that_are_none_are_400() {
    let (fake, world) = quiet_world().await;
    let long = "a/".repeat(200) + "b";
    let digest = Blob::layer("x", 1).digest;
    for name in [
        "UPPER/case",
        "team/App",
        "team//app",
        "/team/app",
        "team/app/",
        "-team/app",
        "team/app-",
        "team/a..b",
        "team/.app",
        "team/a___b",
        "te%20am/app",
        "team/app%00",
        "t\u{e9}am/app",
        "team/app;x",
        "team/app\\x",
        "..",
        "../../etc/passwd",
        "team/../../app",
        "team/./app",
        "%2e%2e/app",
        "team%2fapp",
        "team%2Fapp",
        long.as_str(),
    ] {
        for path in [
            format!("/v2/{name}/manifests/latest"),
            format!("/v2/{name}/blobs/{digest}"),
            format!("/v2/{name}/tags/list"),
            format!("/v2/{name}/referrers/{digest}"),
        ] {
            let (status, text) = raw(&world, &path).await;
            assert!([400, 404].contains(&status), "{path} gave {text}");
            assert!(text.to_lowercase().contains("application/json"), "{path} gave {text}");
        }
    }
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn tags_and_digests_that_are_none_are_400() {
    let (fake, world) = quiet_world().await;
    let long = "t".repeat(129);
    let hex = "a".repeat(64);
    let upper = format!("sha256:{}", "A".repeat(64));
    let odd = format!("sha256:{}", "g".repeat(64));
    let long_hex = format!("sha256:{hex}0");
    let short = format!("sha512:{hex}");
    let unknown = format!("md5:{hex}");
    for reference in [
        "-latest",
        ".latest",
        "la test",
        "la%20test",
        "lat\u{e9}st",
        "a%00b",
        "%2e%2e",
        "a%2fb",
        "a@b",
        long.as_str(),
    ] {
        let (status, text) = raw(&world, &format!("/v2/{NAME}/manifests/{reference}")).await;
        assert!([400, 404].contains(&status), "{reference} gave {text}");
    }
    for digest in [
        "sha256:",
        "sha256",
        ":",
        "sha256:12",
        &upper,
        &odd,
        &long_hex,
        &short,
        &unknown,
        "sha256:../../../../etc/passwd",
        "sha256:%2e%2e%2f",
        "latest",
    ] {
        for kind in ["blobs", "referrers"] {
            let (status, text) = raw(&world, &format!("/v2/{NAME}/{kind}/{digest}")).await;
            assert!([400, 404].contains(&status), "{kind} {digest} gave {text}");
        }
    }
    let reply = world.client().get(&format!("/v2/{NAME}/blobs/sha256:12")).expect(400).await;
    reply.error("DIGEST_INVALID");
    let reply = world.client().get(&format!("/v2/{NAME}/manifests/-x")).expect(400).await;
    assert!(["TAG_INVALID", "MANIFEST_INVALID"].iter().any(|code| reply.text().contains(code)));
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn overlong_targets_and_headers_are_4xx() {
    let (fake, world) = quiet_world().await;
    let (status, _) = raw(&world, &format!("/v2/{}/manifests/latest", "a".repeat(20_000))).await;
    assert!((400..500).contains(&status), "{status}");
    let (status, _) = raw(&world, &format!("/v2/?ns={}", "a".repeat(20_000))).await;
    assert!((400..500).contains(&status), "{status}");
    let mut connection = world.client().connect().await;
    let head = "GET /v2/ HTTP/1.1\r\nHost: x\r\n".to_owned() + &"X-A: b\r\n".repeat(40_000);
    connection.try_send(head.as_bytes()).await;
    connection.try_send(b"\r\n").await;
    let text = String::from_utf8_lossy(&connection.drain().await).into_owned();
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn a_range_header_of_64_kib_is_read() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(3, MIB);
    let image = Image::build("ranged").layer(blob.clone()).finish();
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    // 1024 ranges with leading zeros: one header of almost 64 KiB.
    let list: Vec<_> = (0..1024).map(|n| format!("{n:029}-{n:029}")).collect();
    let header = list.join(",");
    assert!((60_000..64_000).contains(&header.len()), "{}", header.len());
    let reply = world.client().blob(NAME, &blob.digest).range(&header).send().await;
    assert!([206, 400].contains(&reply.status), "{}", reply.status);
    world.finish().await;
}

#[tokio::test]
async fn queries_that_are_nonsense_change_nothing() {
    let fake = Fake::start().await;
    let image = Image::single("queries");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    for query in ["", "x", "=", "&&&", "a=b&a=c", "n=5", "%00", "x=%zz"] {
        let path = format!("/v2/{NAME}/manifests/latest?{query}");
        let reply = world.client().get(&path).send().await;
        match reply.status {
            200 => is_manifest(&reply, &image),
            status => assert_eq!(status, 400, "{query}"),
        }
    }
    for twice in ["ns=docker.io&ns=evil.example.com", "ns=evil.example.com&ns=docker.io"] {
        let path = format!("/v2/{NAME}/manifests/latest?{twice}");
        let status = world.client().get(&path).send().await.status;
        assert!([200, 400, 404].contains(&status), "{twice}: {status}");
    }
    world.finish().await;
}

/// RFC 9112, 3.2: with two of them, whoever stands before us may have looked at the other.
#[tokio::test]
async fn two_hosts_in_one_request_are_refused() {
    let (fake, world) = quiet_world().await;
    let mut connection = world.client().connect().await;
    let request =
        "GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n";
    connection.send(request.as_bytes()).await;
    let text = String::from_utf8_lossy(&connection.drain().await).into_owned();
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    assert!(text.contains("\"errors\""), "{text}");
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn a_namespace_that_is_no_registry_name_is_not_repeated_in_a_header() {
    let (fake, world) = quiet_world().await;
    for ns in ["n%C3%A9.test", "a%20b", "%3Cscript%3E"] {
        let (status, text) = raw(&world, &format!("/v2/team/app/manifests/v1?ns={ns}")).await;
        assert_eq!(status, 404, "{text}");
        assert!(!text.to_lowercase().contains("oci-namespace"), "{text}");
    }
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn a_tls_hello_on_the_plain_port_is_answered_with_http() {
    let (fake, world) = quiet_world().await;
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend_from_slice(&[0x5a; 502]);
    let mut connection = world.client().connect().await;
    connection.send(&hello).await;
    let answer = connection.drain().await;
    assert!(answer.starts_with(b"HTTP/"), "{answer:?}");
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn garbage_is_answered_or_dropped_and_harms_nobody() {
    let (fake, world) = quiet_world().await;
    let cases: [&[u8]; 12] = [
        b"\r\n\r\n",
        b"\0\0\0\0\0\0\0\0",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET /v2/\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET  /v2/  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://evil.example.com/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"CONNECT evil.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ];
    let mut open: Vec<Connection> = Vec::new();
    for bytes in cases {
        let mut connection = world.client().connect().await;
        connection.send(bytes).await;
        open.push(connection);
    }
    world.client().get("/v2/").expect(200).await;
    drop(open);
    world.client().get("/v2/").expect(200).await;
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn smuggling_finds_no_gap() {
    let (fake, world) = quiet_world().await;
    let inner = "GET /v2/smuggled/x/manifests/latest HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = inner.len();
    let requests = [
        format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"
        ),
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: +{length}\r\n\r\n{inner}"),
        format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"
        ),
    ];
    for request in requests {
        let mut connection = world.client().connect().await;
        connection.send(request.as_bytes()).await;
        // A clean request behind it shows whether the connection still stands, and ends it.
        connection.try_send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        let text = String::from_utf8_lossy(&connection.drain().await).into_owned();
        assert!(!text.contains("smuggled"), "{request:?} gave {text}");
    }
    let asked = fake.log().filter(|entry| entry.repository.contains("smuggled"));
    asked.expect_none("the inner request is no request");
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn a_body_on_a_get_is_no_second_request() {
    let fake = Fake::start().await;
    let image = Image::single("bodies");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    let evil = "GET /v2/evil/x/manifests/latest HTTP/1.1\r\nHost: x\r\n\r\n";
    let request = world.client().manifest(NAME, "latest").body(evil);
    let mut connection = world.client().connect().await;
    connection.send(&request.bytes()).await;
    let (reply, mut connection) = connection.incoming(false).await.rest_and_connection().await;
    match reply.status {
        200 => is_manifest(&reply, &image),
        status => assert!((400..500).contains(&status), "{status}"),
    }
    // Whether the connection stays open or not: what comes next is an answer to what was asked next.
    let next = world.client().get("/livez").header("Connection", "close");
    if connection.try_send(&next.bytes()).await {
        let text = String::from_utf8_lossy(&connection.drain().await).into_owned();
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 200"), "{text}");
    }
    fake.log().filter(|entry| entry.repository.contains("evil")).expect_none("no second request");
    world.finish().await;
}

#[tokio::test]
async fn a_huge_body_on_a_refused_request_costs_nothing() {
    let (fake, world) = quiet_world().await;
    let mut connection = world.client().connect().await;
    let head = format!(
        "PUT /v2/{NAME}/manifests/latest HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n"
    );
    connection.send(head.as_bytes()).await;
    connection.try_send(&[0; 100_000]).await;
    let reply = connection.incoming(false).await;
    assert_eq!(reply.status, 405);
    drop(reply);
    nothing_happened(&fake, world).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let fake = Fake::start().await;
    let image = Image::single("pipeline");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    let blob = &image.blobs[1];
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend(world.client().manifest(NAME, "latest").bytes());
        all.extend(world.client().blob(NAME, &blob.digest).bytes());
        all.extend(world.client().get("/v2/").bytes());
    }
    let mut connection = world.client().connect().await;
    connection.send(&all).await;
    for _ in 0..3 {
        for expected in [image.bytes.clone(), blob.bytes(), "{}".into()] {
            let incoming = connection.incoming(false).await;
            let (reply, next) = incoming.rest_and_connection().await;
            assert_eq!((reply.status, reply.body), (200, expected));
            connection = next;
        }
    }
    drop(connection);
    world.finish().await;
}

#[tokio::test]
async fn many_idle_connections_harm_nobody() {
    let fake = Fake::start().await;
    let image = Image::single("idle");
    fake.push(NAME, "latest", &image);
    let world = World::with(&fake).await;
    let mut idle = Vec::new();
    for n in 0..300 {
        let mut connection = world.client().connect().await;
        if n % 2 == 0 {
            connection.send(b"GET /v2/team/app/manif").await;
        }
        idle.push(connection);
    }
    pull(&world.client(), NAME, "latest", &image).await;
    drop(idle);
    world.finish().await;
}

#[tokio::test]
async fn connections_are_limited_and_the_limit_is_not_for_ever() {
    let fake = Fake::start().await;
    let limits =
        "[limits]\nconnections = 4\nheader_time = \"300ms\"\nidle_connection = \"300ms\"\n";
    let world = World::builder().upstream("docker.io", &fake).tables(limits).start().await;
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(world.client().connect().await);
    }
    // The silent ones are ended by their time limit; then there is room again.
    let reply = world.client().get("/v2/").send().await;
    assert!([200, 503].contains(&reply.status), "{reply:?}");
    drop(idle);
    world.finish().await;
}

#[tokio::test]
async fn slow_heads_and_silent_connections_are_ended() {
    let fake = Fake::start().await;
    let limits = "[limits]\nheader_time = \"200ms\"\nidle_connection = \"200ms\"\n";
    let world = World::builder().upstream("docker.io", &fake).tables(limits).start().await;
    let silent = world.client().connect().await;
    let mut slow = world.client().connect().await;
    slow.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Never: ").await;
    let kept = world.client().get("/v2/").open().await;
    let (reply, kept) = kept.rest_and_connection().await;
    assert_eq!(reply.status, 200);
    for connection in [silent, slow, kept] {
        let rest = connection.drain().await;
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_ended_and_the_download_is_not() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(77, 32 * MIB);
    fake.push(NAME, "latest", &Image::build("stuck").layer(blob.clone()).finish());
    let limits = "[limits]\nidle_body = \"1500ms\"\n";
    let world = World::builder().upstream("docker.io", &fake).tables(limits).start().await;
    let client = world.client();
    client.manifest(NAME, "latest").expect(200).await;
    let mut stuck = client.blob(NAME, &blob.digest).open().await;
    stuck.take(1000).await;
    let body = client.blob(NAME, &blob.digest).open().await;
    body.hashed().await.is_whole(&blob.digest, blob.len());
    let gone =
        // The scrape itself is on a connection.
        |metrics: &crate::support::world::Metrics| metrics.sum("roadstead_connections", &[]) < 1.5;
    world.metrics_where("the stuck reader to be cut off", gone).await;
    assert_ne!(stuck.hashed().await.end, crate::support::client::End::Clean);
    assert_eq!(fake.blob_bytes(&blob.digest), blob.len());
    world.finish().await;
}

#[tokio::test]
async fn strangers_may_not_pull() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("strangers"));
    let world = World::builder()
        .upstream("docker.io", &fake)
        .set("clients", "[\"192.0.2.0/24\"]")
        .start()
        .await;
    let reply = world.client().manifest(NAME, "latest").expect(403).await;
    assert!(reply.error("DENIED").contains("clients"));
    world.client().blob(NAME, &Blob::layer("x", 1).digest).expect(403).await;
    assert_eq!(fake.connections(), 0);
    world.finish().await;
}
