//! Requests with something wrong in their bytes: malformed, smuggling, too long, with bodies that nobody asked for. Each gets one
//! answer in HTTP with an error in JSON, or ends its own connection; what hides behind it is never read as a request.

use super::rude_clients::{NAME, Scene, refusal};
use crate::support::client::{Connection, Response};

/// Sends bytes as they are and reads until the server has closed.
async fn raw(scene: &Scene, bytes: &[u8]) -> String {
    let mut connection = scene.client().connect().await;
    connection.try_send(bytes).await;
    String::from_utf8_lossy(&connection.drain().await).into_owned()
}

fn status(answer: &str) -> u16 {
    let word = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A request that hides in the body of another.
const HIDDEN: &str = "GET /v2/smuggled/x/manifests/latest HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn nothing_can_be_smuggled() {
    let scene = Scene::with("header_time = \"1s\"\nidle_connection = \"1s\"").await;
    let length = HIDDEN.len();
    let chunk = format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    let heads = [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{HIDDEN}"),
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {length}\r\nContent-Length: 0\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {length}\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {length}, {length}\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {length}, 0\r\n\r\n{HIDDEN}"),
        format!("Content-Length: +{length}\r\n\r\n{HIDDEN}"),
        format!("Content-Length: -1\r\n\r\n{HIDDEN}"),
        format!("Content-Length: 0x{length:x}\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {length}a\r\n\r\n{HIDDEN}"),
        format!("Content-Length: 18446744073709551616\r\n\r\n{HIDDEN}"),
        format!("Content-Length : {length}\r\n\r\n{HIDDEN}"),
        format!("Content-Length\t: {length}\r\n\r\n{HIDDEN}"),
        format!(" Content-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("X: y\r\n Content-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: chunked, identity\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: identity\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: gzip, chunked\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: xchunked\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: chunked\x0b\r\n\r\n{chunk}"),
        format!("Transfer-Encoding\u{a0}: chunked\r\n\r\n{chunk}"),
        format!("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{HIDDEN}"),
        format!("Transfer-Encoding: chunked\r\n\r\n-1\r\n{HIDDEN}"),
        format!("Transfer-Encoding: chunked\r\n\r\n0;{}\r\n\r\n{HIDDEN}", "x".repeat(50_000)),
        format!("Transfer-Encoding: chunked\r\n\r\n0\nX: y\n\n{HIDDEN}"),
        format!("X: a\rContent-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("X: a\0b\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
        format!("Content-Length: {length}\n\n{HIDDEN}"),
    ];
    for head in heads {
        for method in ["GET", "HEAD", "POST"] {
            let request = format!("{method} /v2/ HTTP/1.1\r\nHost: x\r\n{head}");
            let answer = raw(&scene, request.as_bytes()).await;
            let shown: String = request.chars().take(200).collect();
            assert!([200, 400, 405, 408, 501].contains(&status(&answer)), "{shown:?}: {answer}");
            let answers = answer.to_lowercase().matches("docker-distribution-api-version").count();
            assert_eq!(answers, 1, "{shown:?} got {answers} answers: {answer}");
        }
    }
    scene.over().await;
}

#[tokio::test]
async fn what_is_not_http_1_is_told_so() {
    let scene = Scene::with("header_time = \"1s\"").await;
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend_from_slice(&[0x5a; 502]);
    let cases: [(&[u8], &[u16]); 12] = [
        (&hello, &[400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400]),
        (b"GET /v2/\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/0.9\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: a\r\nConnection: close\r\n\r\n", &[400]),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", &[400, 405]),
        (b"SSH-2.0-OpenSSH_9.2\r\n", &[400]),
        (b"\0\0\0\0\0\0\0\0\r\n\r\n", &[400]),
        (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nBad\xffName: y\r\n\r\n", &[400]),
        (b"\xc3\xa9 /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
    ];
    for (bytes, wanted) in cases {
        let answer = raw(&scene, bytes).await;
        let shown = String::from_utf8_lossy(bytes);
        assert!(wanted.contains(&status(&answer)), "{shown:?} got {answer}");
        refusal(answer.as_bytes(), status(&answer));
    }
    scene.over().await;
}

#[tokio::test]
async fn old_and_odd_requests_that_are_legal() {
    let scene = Scene::with("").await;
    // HTTP/1.0 ends after its answer, unless it asks to be kept.
    let answer = raw(&scene, b"GET /v2/ HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 200 ") && answer.ends_with("{}"), "{answer}");
    let kept = b"GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /v2/ HTTP/1.0\r\n\r\n";
    assert_eq!(raw(&scene, kept).await.matches(" 200 OK").count(), 2);
    // An absolute target wins over the Host field (RFC 9112, 3.2.2), and is looked up, never dialled.
    let absolute = "GET http://evil.example/v2/team/app/manifests/latest HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    let answer = raw(&scene, absolute.as_bytes()).await;
    assert_eq!(status(&answer), 200, "{answer}");
    // Nobody is told to go on with a body that nobody wants.
    let expecting = "PUT /v2/team/app/manifests/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let answer = raw(&scene, expecting.as_bytes()).await;
    assert_eq!(status(&answer), 405, "{answer}");
    // No protocol is changed to.
    for protocol in ["websocket", "h2c"] {
        let upgrade = format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nUpgrade: {protocol}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        let answer = raw(&scene, upgrade.as_bytes()).await;
        assert_eq!(status(&answer), 200, "{protocol}: {answer}");
    }
    // Empty lines before a request are skipped (RFC 9112, 2.2), and a bare line feed may end a line.
    let lines = b"\r\n\r\nGET /v2/ HTTP/1.1\nHost: x\nConnection: close\n\n";
    assert_eq!(status(&raw(&scene, lines).await), 200);
    scene.over().await;
}

#[tokio::test]
async fn ten_requests_in_one_packet() {
    let scene = Scene::with("").await;
    let client = scene.client();
    let blob = &scene.image.blobs[1];
    let requests = [
        (client.manifest(NAME, "latest"), 200),
        (client.head(&format!("/v2/{NAME}/blobs/{}", blob.digest)), 200),
        (client.get(&format!("/v2/{NAME}/manifests/-bad")), 400),
        (client.blob(NAME, &blob.digest), 200),
        (client.get("/v2/unknown.example/x/manifests/y"), 404),
        (client.head("/v2/unknown.example/x/manifests/y"), 404),
        (client.request("DELETE", "/v2/team/app/manifests/latest"), 405),
        (client.blob(NAME, &blob.digest).range("5-9"), 206),
        (client.manifest_head(NAME, "latest"), 200),
        (client.get("/v2/"), 200),
    ];
    let packet: Vec<u8> = requests.iter().flat_map(|(request, _)| request.bytes()).collect();
    let mut connection = client.connect().await;
    connection.send(&packet).await;
    let mut replies: Vec<Response> = Vec::new();
    for (number, (request, wanted)) in requests.iter().enumerate() {
        let is_head = request.bytes().starts_with(b"HEAD");
        let (reply, next) = connection.incoming(is_head).await.rest_and_connection().await;
        assert_eq!(reply.status, *wanted, "request {number}: {reply:?}");
        replies.push(reply);
        connection = next;
    }
    assert_eq!(replies[0].body, scene.image.bytes);
    assert_eq!(replies[3].body, blob.bytes());
    assert_eq!(replies[7].body, blob.bytes().slice(5..10));
    assert_eq!(replies[9].text(), "{}");
    drop(connection);
    scene.over().await;
}

#[tokio::test]
async fn header_fields_have_a_limit_each_way() {
    let scene = Scene::with("").await;
    let with = |fields: &str| {
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n").into_bytes()
    };
    let many = |count: usize| with(&"X-A: b\r\n".repeat(count));
    // As many as roadstead reads, the two above included.
    assert_eq!(status(&raw(&scene, &many(98)).await), 200);
    for count in [99, 1000, 10_000] {
        refusal(raw(&scene, &many(count)).await.as_bytes(), 431);
    }
    refusal(raw(&scene, &with(&format!("X: {}\r\n", "x".repeat(1 << 20)))).await.as_bytes(), 431);
    refusal(raw(&scene, &with(&format!("{}: x\r\n", "x".repeat(1 << 20)))).await.as_bytes(), 431);
    assert!(scene.reached("header_bytes").await >= 5.0);
    scene.over().await;
}

#[tokio::test]
async fn a_range_header_may_have_64_kib_and_not_a_mebibyte() {
    let scene = Scene::with("").await;
    let blob = &scene.image.blobs[1];
    let list: Vec<_> = (0..1024).map(|n| format!("{n:029}-{n:029}")).collect();
    let reply = scene.client().blob(NAME, &blob.digest).range(&list.join(",")).expect(206).await;
    assert_eq!(reply.text().matches("Content-Range: ").count(), 1024);
    let one_more = format!("{},5-6", list.join(","));
    let reply = scene.client().blob(NAME, &blob.digest).range(&one_more).expect(400).await;
    reply.error("RANGE_INVALID");
    assert_eq!(scene.reached("ranges").await, 1.0);
    let huge = scene.client().blob(NAME, &blob.digest).range(&"0-0,".repeat(1 << 18)).bytes();
    refusal(raw(&scene, &huge).await.as_bytes(), 431);
    scene.over().await;
}

#[tokio::test]
async fn paths_and_queries_of_every_length_and_letter() {
    let scene = Scene::with("").await;
    for length in [5000, 60_000, 70_000, 1 << 20] {
        let long = "a".repeat(length);
        for target in [format!("/v2/{long}/manifests/x"), format!("/v2/?x={long}")] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = raw(&scene, request.as_bytes()).await;
            assert!([414, 431].contains(&status(&answer)), "{length}: {answer:.200}");
            refusal(answer.as_bytes(), status(&answer));
        }
    }
    assert!(scene.reached("path_bytes").await >= 1.0 && scene.reached("query_bytes").await >= 1.0);
    let letters: [&[u8]; 14] = [
        b"%00",
        b"%",
        b"%2",
        b"%zz",
        b"%ff",
        b"%c0%af",
        b"%e2%80%8b",
        b"\xc3\xa9",
        b"\xff\xfe",
        b"a\0b",
        b"%2e%2e%2f",
        b"..;/",
        b"\\",
        b"{}|^`",
    ];
    for junk in letters {
        for (before, after) in [
            ("/v2/team/", "/manifests/latest"),
            ("/v2/team/app/manifests/", ""),
            ("/v2/team/app/blobs/sha256:", ""),
            ("/v2/team/app/tags/list?last=", ""),
            ("/v2/?ns=", ""),
            ("/", "/v2/team/app/manifests/latest"),
        ] {
            let mut request = format!("GET {before}").into_bytes();
            request.extend_from_slice(junk);
            request.extend_from_slice(after.as_bytes());
            request.extend_from_slice(b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = raw(&scene, &request).await;
            let shown = String::from_utf8_lossy(&request).into_owned();
            // Where the letters are legal, nothing of that name is there; a list may begin after any name.
            let fine = before.ends_with("last=") && status(&answer) == 200;
            assert!(fine || [400, 404].contains(&status(&answer)), "{shown:?}: {answer}");
            assert!(answer.contains("application/json"), "{answer}");
        }
    }
    // The list of tags is asked upstream, so this one test does.
    let Scene { world, .. } = scene;
    world.finish().await;
}

/// Sends pieces until the server takes no more; gives how many bytes went.
async fn push(connection: &mut Connection, piece: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most && connection.try_send(piece).await {
        sent += piece.len();
    }
    sent
}

#[tokio::test]
async fn a_body_nobody_asked_for_is_not_read_for_ever() {
    const MOST: usize = 256 << 20;
    let scene = Scene::with("").await;
    let path = format!("/v2/{NAME}/manifests/latest");
    let piece = vec![b'x'; 64 * 1024];
    let chunk = [b"10000\r\n".as_slice(), &piece, b"\r\n"].concat();
    for (method, framing, body) in [
        ("GET", "Content-Length: 1073741824", &piece),
        ("GET", "Transfer-Encoding: chunked", &chunk),
        ("HEAD", "Content-Length: 1073741824", &piece),
        ("HEAD", "Transfer-Encoding: chunked", &chunk),
        ("POST", "Transfer-Encoding: chunked", &chunk),
    ] {
        let mut connection = scene.client().connect().await;
        connection
            .send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n").as_bytes())
            .await;
        let sent = push(&mut connection, body, MOST).await;
        assert!(sent < MOST, "{method} {framing}: {sent} bytes were taken");
        scene.serves_others().await;
    }
    // The answer comes although the body does not, and says that it is the last one.
    let mut connection = scene.client().connect().await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\nabc");
    connection.send(head.as_bytes()).await;
    let (reply, connection) = connection.incoming(false).await.rest_and_connection().await;
    assert_eq!((reply.status, &reply.body), (200, &scene.image.bytes));
    assert_eq!(reply.must("Connection"), "close");
    assert_eq!(connection.drain().await, "");
    scene.over().await;
}
