//! Blob bodies: ranges, lengths, stalls and breaks; and asking whether a blob is there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::stub::*;
use crate::upstream::BlobRange;
use crate::upstream::{BlobBody, Cause, Error, Spending};

const WHOLE: &str = "0123456789";

async fn read(body: &mut BlobBody) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn partial(from: usize) -> Reply {
    let range = format!("bytes {from}-9/10");
    reply(206, &WHOLE[from..]).with("content-range", range)
}

/// Resumes at 4 and gives what the body says of itself, and its bytes.
async fn resume(
    script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> (Stub, Result<(u64, Option<u64>, Vec<u8>), Error>) {
    let stub = Stub::start("127.0.0.1", script).await;
    let answer = async {
        let mut body = anonymous(&stub).blob(&name(), &digest(), BlobRange::rest(4)).await?;
        let bytes = read(&mut body).await?;
        Ok((body.from, body.total, bytes))
    }
    .await;
    (stub, answer)
}

#[tokio::test]
async fn a_whole_blob_with_its_length() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, WHOLE)).await;
    let upstream = anonymous(&stub);
    let mut body = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert_eq!((body.from, body.total), (0, Some(10)));
    assert_eq!(read(&mut body).await.unwrap(), WHOLE.as_bytes());
    assert_eq!(body.chunk().await.unwrap(), None);
    assert!(stub.seen()[0].is("GET", &blob_path()));
    assert_eq!(stub.seen()[0].header("range"), None);
}

#[tokio::test]
async fn a_chunked_blob_has_no_length() {
    let raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n";
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Raw(raw.to_vec())).await;
    let mut body = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert_eq!(body.total, None);
    assert_eq!(read(&mut body).await.unwrap(), WHOLE.as_bytes());
}

#[tokio::test]
async fn a_range_that_is_honoured() {
    let (stub, answer) = resume(|_seen| partial(4)).await;
    assert_eq!(answer.unwrap(), (4, Some(10), b"456789".to_vec()));
    assert_eq!(stub.seen()[0].header("range"), Some("bytes=4-"));
}

#[tokio::test]
async fn a_range_that_is_ignored_begins_at_zero() {
    let (stub, answer) = resume(|_seen| reply(200, WHOLE)).await;
    assert_eq!(answer.unwrap(), (0, Some(10), WHOLE.as_bytes().to_vec()));
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn a_range_that_is_wrong_or_refused_is_asked_again_from_zero() {
    let refusals: [fn() -> Reply; 6] = [
        || partial(5),
        || reply(206, "456789"),
        || {
            reply(206, "x")
                .with("content-type", "multipart/byteranges; boundary=x")
                .with("content-range", "bytes 4-9/10")
        },
        || reply(416, ""),
        || reply(400, "<?xml version='1.0'?><Error/>"),
        || reply(403, "<Error>Request has expired</Error>"),
    ];
    for refusal in refusals {
        let store = Stub::start("127.0.0.2", move |seen| match seen.header("range") {
            Some(_) => refusal(),
            None => reply(200, WHOLE),
        })
        .await;
        let target = store.origin();
        let (_stub, answer) = resume(move |_seen| redirect_to(target.clone())).await;
        assert_eq!(answer.unwrap(), (0, Some(10), WHOLE.as_bytes().to_vec()), "{:?}", refusal());
    }
}

#[tokio::test]
async fn a_cut_body_is_an_error_and_not_an_end() {
    let raw = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234";
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Raw(raw.to_vec())).await;
    let mut body = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert_eq!(read(&mut body).await, Err(Error::Unreachable(Cause::Reset)));
    let raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n";
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Raw(raw.to_vec())).await;
    let mut body = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert_eq!(read(&mut body).await, Err(Error::Unreachable(Cause::Reset)));
}

#[tokio::test]
async fn a_range_that_gives_another_number_of_bytes_is_an_error() {
    let long = b"HTTP/1.1 206 P\r\ncontent-range: bytes 4-9/10\r\ntransfer-encoding: chunked\r\n\r\n7\r\n4567890\r\n0\r\n\r\n";
    let (_stub, answer) = resume(|_seen| Reply::Raw(long.to_vec())).await;
    assert!(matches!(answer, Err(Error::Junk(_))), "{answer:?}");
    let short = b"HTTP/1.1 206 P\r\ncontent-range: bytes 4-9/10\r\ntransfer-encoding: chunked\r\n\r\n2\r\n45\r\n0\r\n\r\n";
    let (_stub, answer) = resume(|_seen| Reply::Raw(short.to_vec())).await;
    assert_eq!(answer, Err(Error::Unreachable(Cause::Reset)));
}

#[tokio::test]
async fn silence_within_a_body_ends_it_in_time() {
    let raw = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234";
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Stall(raw.to_vec())).await;
    let mut body = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    let started = Instant::now();
    assert_eq!(body.chunk().await.unwrap().as_deref(), Some(&b"01234"[..]));
    assert_eq!(body.chunk().await, Err(Error::Unreachable(Cause::Timeout)));
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_silent_upstream_ends_in_time() {
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Stall(Vec::new())).await;
    let mut settings = settings(&stub.origin(), crate::upstream::CredentialSource::None);
    settings.limits.headers = Duration::from_millis(100);
    let started = Instant::now();
    let error = build(settings).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Timeout));
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_code_that_is_only_a_label_is_none() {
    let stub =
        Stub::start("127.0.0.1", |_seen| reply(200, "blob").with("content-encoding", "gzip")).await;
    let mut body = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    assert_eq!(body.chunk().await.unwrap().unwrap(), "blob");
}

#[tokio::test]
async fn pages_are_junk() {
    let replies: [fn() -> Reply; 2] = [
        || reply(200, "<html>login</html>").with("content-type", "text/html; charset=utf-8"),
        || reply(204, ""),
    ];
    for answer in replies {
        let stub = Stub::start("127.0.0.1", move |_seen| answer()).await;
        let error = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap_err();
        assert!(matches!(error, Error::Junk(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_burst_of_server_errors_passes() {
    for (failures, fine) in [(2, true), (3, false)] {
        let asked = AtomicUsize::new(0);
        let stub = Stub::start("127.0.0.1", move |_seen| {
            let failed = asked.fetch_add(1, Ordering::SeqCst) < failures;
            if failed { reply(502, "<html>bad gateway</html>") } else { reply(200, WHOLE) }
        })
        .await;
        let answer = anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await;
        assert_eq!(answer.is_ok(), fine, "{answer:?}");
        assert_eq!(stub.seen().len(), 3);
    }
}

#[tokio::test]
async fn a_closed_connection_is_replaced() {
    let asked = AtomicUsize::new(0);
    let stub = Stub::start("127.0.0.1", move |_seen| {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Reply::Close } else { reply(200, WHOLE) }
    })
    .await;
    anonymous(&stub).blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
}

#[tokio::test]
async fn nobody_home_is_unreachable() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, WHOLE)).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let upstream = build(settings(&url, crate::upstream::CredentialSource::None));
    let error = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Connect));
    drop(stub);
}

#[tokio::test]
async fn downloads_at_once_are_limited_for_as_long_as_their_bodies() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, WHOLE)).await;
    let mut settings = settings(&stub.origin(), crate::upstream::CredentialSource::None);
    settings.limits.parallel = 1;
    settings.limits.answer = Duration::from_millis(300);
    let upstream = build(settings);
    let first = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
    let second = upstream.blob(&name(), &digest(), BlobRange::WHOLE).await;
    assert!(matches!(second, Err(Error::Unreachable(Cause::Busy))), "{second:?}");
    upstream.manifest_head(&name(), &tag()).await.unwrap();
    drop(first);
    upstream.blob(&name(), &digest(), BlobRange::WHOLE).await.unwrap();
}

#[tokio::test]
async fn is_it_there_by_head_and_by_redirect() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, WHOLE)).await;
    assert_eq!(
        anonymous(&stub).blob_head(&name(), &digest(), Spending::Needed).await,
        Ok(Some(10))
    );
    assert_eq!(stub.seen().len(), 1);
    let stub =
        Stub::start("127.0.0.1", |_seen| redirect_to("http://127.0.0.9:1/signed-for-get")).await;
    assert_eq!(anonymous(&stub).blob_head(&name(), &digest(), Spending::Needed).await, Ok(None));
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn a_refused_head_is_asked_by_get() {
    for status in [401, 403, 404, 405, 500] {
        let stub = Stub::start("127.0.0.1", move |seen| match seen.method.as_str() {
            "HEAD" => reply(status, ""),
            _ => reply(200, WHOLE),
        })
        .await;
        assert_eq!(
            anonymous(&stub).blob_head(&name(), &digest(), Spending::Needed).await,
            Ok(Some(10)),
            "{status}"
        );
    }
    let stub = Stub::start("127.0.0.1", |_seen| reply(404, "")).await;
    assert_eq!(
        anonymous(&stub).blob_head(&name(), &digest(), Spending::Needed).await,
        Err(Error::Absent)
    );
    let stub = Stub::start("127.0.0.1", |seen| match seen.method.as_str() {
        "HEAD" => Reply::Close,
        _ => redirect_to("/elsewhere"),
    })
    .await;
    assert_eq!(anonymous(&stub).blob_head(&name(), &digest(), Spending::Needed).await, Ok(None));
}

#[tokio::test]
async fn a_head_without_a_length_is_still_a_yes() {
    let raw = b"HTTP/1.1 200 OK\r\n\r\n";
    let stub = Stub::start("127.0.0.1", |_seen| Reply::Raw(raw.to_vec())).await;
    assert_eq!(anonymous(&stub).blob_head(&name(), &digest(), Spending::Needed).await, Ok(None));
}

#[tokio::test]
async fn only_the_empty_blob_has_no_bytes() {
    let stub = Stub::start("127.0.0.1", |_seen| reply(200, "")).await;
    let upstream = anonymous(&stub);
    assert_eq!(upstream.blob_head(&name(), &digest(), Spending::Needed).await, Ok(None));
    let empty = crate::oci::Digest::sha256_of(b"");
    assert_eq!(upstream.blob_head(&name(), &empty, Spending::Needed).await, Ok(Some(0)));
}
