//! The end of connections over real sockets: what the client sees when a body breaks, when it reads too slowly, when it sends too much.

use std::io;
use std::sync::Mutex;

use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::task::TaskTracker;

use super::*;
use crate::oci::ByteRange;
use crate::registry::StreamError;
use crate::server::body::Payload;
use crate::server::parts::{Parts, Source};

const FRAME: usize = 64 * 1024;
const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// A server of one connection; resolves to how it ended.
struct Fixture {
    client: TcpStream,
    hub: Arc<Hub>,
    end: Arc<Mutex<Option<End>>>,
    tasks: TaskTracker,
}

impl Fixture {
    async fn start(limits: Limits, answer: fn() -> Response<Payload>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let (client, accepted) =
            tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
        let (stream, _) = accepted.unwrap();
        socket2::SockRef::from(&stream).set_send_buffer_size(16 * 1024).unwrap();
        let (hub, end, tasks) =
            (Arc::new(Hub::default()), Arc::new(Mutex::new(None)), TaskTracker::new());
        tasks.spawn({
            let (hub, end) = (Arc::clone(&hub), Arc::clone(&end));
            async move {
                let connection = Connection::new(&limits);
                let handler = |_request| {
                    let in_flight = connection.begin();
                    async move { answer().map(|payload| Body::new(payload, None, Some(in_flight))) }
                };
                let ended = converse(Arc::new(stream), &limits, &connection, &hub, handler).await;
                *end.lock().unwrap() = Some(ended);
            }
        });
        Self { client: client.unwrap(), hub, end, tasks }
    }

    /// Everything until the server's FIN; a reset is an error.
    async fn read_all(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        timeout(Duration::from_secs(20), self.client.read_to_end(&mut bytes))
            .await
            .expect("the server ends it")?;
        Ok(bytes)
    }

    async fn ended(self) -> End {
        drop(self.client);
        self.tasks.close();
        timeout(Duration::from_secs(20), self.tasks.wait())
            .await
            .expect("the connection's task ends");
        self.end.lock().unwrap().take().expect("it noted its end")
    }
}

fn payload(length: u64, source: Source) -> Response<Payload> {
    let parts = Parts::one(ByteRange { start: 0, end: length }, source);
    let mut response = Response::new(Payload::Parts(parts));
    response.headers_mut().insert("content-length", length.into());
    response
}

/// Announces ten frames, gives four and breaks.
fn broken() -> Response<Payload> {
    payload(
        10 * u64::try_from(FRAME).unwrap(),
        Box::new(|_| {
            let frames = (0..4).map(|_| Ok(Bytes::from(vec![b'x'; FRAME]).into()));
            Box::pin(stream::iter(frames.chain([Err(StreamError("digest_mismatch"))])))
        }),
    )
}

/// More than all buffers between two sockets hold.
fn endless() -> Response<Payload> {
    payload(
        1 << 40,
        Box::new(|_| Box::pin(stream::repeat_with(|| Ok(Bytes::from(vec![0; FRAME]).into())))),
    )
}

fn small() -> Response<Payload> {
    let mut response = Response::new(Payload::Bytes(Bytes::from_static(b"{}")));
    response.headers_mut().insert("content-length", 2.into());
    response
}

/// Never answers with a byte of the body.
fn stuck() -> Response<Payload> {
    payload(10, Box::new(|_| stream::pending().boxed()))
}

fn body_of(answer: &[u8]) -> &[u8] {
    let at = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    &answer[at + 4..]
}

#[tokio::test]
async fn a_broken_body_ends_with_fin_after_all_that_was_there() {
    let mut fixture = Fixture::start(Limits::default(), broken).await;
    fixture.client.write_all(ASK).await.unwrap();
    // While the answer is on its way hyper reads nothing, so this request lies unread in the server's socket: the case in which a
    // plain close would send RST.
    fixture.client.readable().await.unwrap();
    fixture.client.write_all(ASK).await.unwrap();
    let answer = fixture.read_all().await.expect("FIN, not RST");
    assert_eq!(body_of(&answer).len(), 4 * FRAME);
    assert!(matches!(fixture.ended().await, End::Done(Err(_))));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut() {
    let limits = Limits { idle_body: Duration::from_millis(300), ..Limits::default() };
    let mut fixture = Fixture::start(limits, endless).await;
    fixture.client.write_all(ASK).await.unwrap();
    fixture.client.readable().await.unwrap();
    fixture.tasks.close();
    timeout(Duration::from_secs(20), fixture.tasks.wait())
        .await
        .expect("it is cut although the client holds on");
    assert!(matches!(fixture.ended().await, End::Expired(Expiry::SlowReader)));
}

#[tokio::test]
async fn a_slow_upstream_is_not_a_slow_reader() {
    let limits = Limits {
        idle_body: Duration::from_millis(50),
        header_time: Duration::from_millis(50),
        idle_connection: Duration::from_millis(50),
        ..Limits::default()
    };
    let mut fixture = Fixture::start(limits, stuck).await;
    fixture.client.write_all(ASK).await.unwrap();
    let mut head = [0; 15];
    fixture.client.read_exact(&mut head).await.unwrap();
    let wait =
        timeout(Duration::from_millis(400), fixture.client.read_to_end(&mut Vec::new())).await;
    assert!(wait.is_err(), "no deadline runs while the answer is on its way");
    fixture.hub.cut_all();
    assert!(matches!(fixture.ended().await, End::Cut));
}

#[tokio::test]
async fn an_idle_connection_ends_and_a_request_resets_the_clock() {
    let limits = Limits { idle_connection: Duration::from_millis(200), ..Limits::default() };
    let mut fixture = Fixture::start(limits, small).await;
    for _ in 0..2 {
        fixture.client.write_all(ASK).await.unwrap();
        let mut answer = vec![0; 4096];
        let count = fixture.client.read(&mut answer).await.unwrap();
        assert!(answer[..count].ends_with(b"{}"));
    }
    assert_eq!(fixture.read_all().await.unwrap(), b"");
    assert!(matches!(fixture.ended().await, End::Expired(Expiry::Idle)));
}

#[tokio::test]
async fn headers_that_trickle_in_get_a_408() {
    let limits = Limits { header_time: Duration::from_millis(200), ..Limits::default() };
    let mut fixture = Fixture::start(limits, small).await;
    fixture.client.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let answer = fixture.read_all().await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "));
    assert!(serde_json::from_slice::<serde_json::Value>(body_of(&answer)).is_ok());
    assert!(matches!(fixture.ended().await, End::Expired(Expiry::Header)));
}

#[tokio::test]
async fn what_is_not_http_gets_an_answer_that_is() {
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(40);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let header = b"GET / HTTP/1.1\r\nbad header\r\n\r\n".to_vec();
    let smuggled =
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n".to_vec();
    for (bytes, status) in [(hello, 400), (preface, 400), (header, 400), (smuggled, 400)] {
        let mut fixture = Fixture::start(Limits::default(), small).await;
        fixture.client.write_all(&bytes).await.unwrap();
        let answer = fixture.read_all().await.expect("FIN, not RST");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        let body: serde_json::Value = serde_json::from_slice(body_of(&answer)).unwrap();
        assert!(body["errors"][0]["message"].is_string());
        let end = fixture.ended().await;
        assert_eq!(end.limit(), Some("malformed"));
    }
}

#[tokio::test]
async fn headers_beyond_the_limit_get_a_431_and_64_kib_pass() {
    for (size, status) in [(64 * 1024, 200), (100 * 1024, 431)] {
        let mut fixture = Fixture::start(Limits::default(), small).await;
        let range = "0-1,".repeat(size / 4);
        let request = format!(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes={range}\r\n\r\n"
        );
        let (read, mut write) = fixture.client.split();
        let mut read = read;
        let mut answer = Vec::new();
        let (_sent, received) =
            tokio::join!(write.write_all(request.as_bytes()), read.read_to_end(&mut answer));
        received.expect("FIN, not RST");
        assert!(
            answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn pipelined_requests_and_half_closed_clients_are_answered() {
    let mut fixture = Fixture::start(Limits::default(), small).await;
    fixture.client.write_all(&ASK.repeat(3)).await.unwrap();
    fixture.client.shutdown().await.unwrap();
    let answer = fixture.read_all().await.unwrap();
    assert_eq!(String::from_utf8(answer).unwrap().matches("HTTP/1.1 200 OK").count(), 3);
    assert!(matches!(fixture.ended().await, End::Done(Ok(()))));
}

#[tokio::test]
async fn pressure_ends_idle_connections_only() {
    let idle = Fixture::start(Limits::default(), small).await;
    let mut busy = Fixture::start(Limits::default(), stuck).await;
    busy.client.write_all(ASK).await.unwrap();
    busy.client.readable().await.unwrap();
    let ended = timeout(Duration::from_secs(20), async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while idle.end.lock().unwrap().is_none() {
            ticks.tick().await;
            idle.hub.press(true);
            busy.hub.press(true);
        }
    });
    ended.await.expect("an idle connection makes room");
    assert!(matches!(idle.ended().await, End::Pressure));
    assert!(busy.end.lock().unwrap().is_none());
    busy.hub.cut_all();
    assert!(matches!(busy.ended().await, End::Cut));
}

#[tokio::test]
async fn draining_ends_idle_connections_and_lets_answers_finish() {
    let mut idle = Fixture::start(Limits::default(), small).await;
    idle.client.write_all(ASK).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = idle.client.read(&mut answer).await.unwrap();
    assert!(answer[..count].ends_with(b"{}"));
    idle.hub.drain();
    assert_eq!(idle.read_all().await.unwrap(), b"");
    assert!(matches!(idle.ended().await, End::Done(Ok(()))));
    let mut busy = Fixture::start(Limits::default(), broken).await;
    busy.client.write_all(ASK).await.unwrap();
    busy.client.readable().await.unwrap();
    busy.hub.drain();
    assert_eq!(body_of(&busy.read_all().await.unwrap()).len(), 4 * FRAME);
}
