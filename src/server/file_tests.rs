//! Bodies out of files over real sockets: the bytes that arrive are the file's, whatever the socket takes at a time, and nothing of
//! the file is left behind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;

use futures_util::stream;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::task::TaskTracker;

use super::*;
use crate::oci::ByteRange;
use crate::server::access::AccessLog;
use crate::server::body::Payload;
use crate::server::metrics::Metrics;
use crate::server::parts::{Multipart, Parts, Source};
use crate::server::record::{Ledger, Record};
use crate::span::{Chunk, ContentFile, Span};

/// Larger than what the buffers between two sockets hold.
const BLOB_BYTES: u64 = 3 * 1024 * 1024 + 777;
const TIME: Duration = Duration::from_secs(20);

/// A file with a name, as the store has it.
struct Blob {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Blob {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> =
            (0..BLOB_BYTES).map(|at| u8::try_from(at * 131 % 65_521 % 251).unwrap()).collect();
        fs::write(directory.path().join("blob"), &bytes).unwrap();
        Self { directory, bytes }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("blob")
    }

    fn span(&self) -> Span {
        let file = Arc::new(File::open(self.path()).unwrap());
        Span::new(ContentFile::new(file, Some(BLOB_BYTES)), 0, BLOB_BYTES)
    }

    fn slice(&self, range: ByteRange) -> &[u8] {
        &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }
}

/// Gives ranges of `span` in windows, as the proxy does.
fn windows(span: Span) -> Source {
    Box::new(move |range| {
        let span = span.slice(range.start, range.end);
        Box::pin(stream::unfold((span, 0), |(span, at)| async move {
            let window = span.slice(at, at + crate::span::WINDOW_BYTES);
            let next = at + window.length();
            (window.length() > 0).then(|| (Ok(Chunk::File(window)), (span, next)))
        }))
    })
}

type Answer = dyn Fn() -> Payload + Send + Sync;

/// A connection to a server that gives the same answer to each request.
struct Fixture {
    client: TcpStream,
    end: Arc<Mutex<Option<End>>>,
    tasks: TaskTracker,
}

impl Fixture {
    async fn start(buffer: usize, answer: Arc<Answer>) -> Self {
        Self::recorded(buffer, answer, None).await
    }

    /// Asked for a blob, which it has begun to send.
    async fn sending(blob: &Blob) -> Self {
        let (span, range) = (blob.span(), ByteRange { start: 0, end: BLOB_BYTES });
        let answer = move || Payload::Parts(Parts::one(range, windows(span.clone())));
        let mut fixture = Self::start(16 * 1024, Arc::new(answer)).await;
        fixture.client.write_all(ASK).await.unwrap();
        fixture.client.readable().await.unwrap();
        fixture
    }

    /// The first request has this record.
    async fn recorded(buffer: usize, answer: Arc<Answer>, record: Option<Box<Record>>) -> Self {
        let record = Mutex::new(record);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(u32::try_from(buffer).unwrap()).unwrap();
        let (client, accepted) =
            tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
        let (stream, _) = accepted.unwrap();
        socket2::SockRef::from(&stream).set_send_buffer_size(buffer).unwrap();
        let (end, tasks) = (Arc::new(Mutex::new(None)), TaskTracker::new());
        let noted = Arc::clone(&end);
        tasks.spawn(async move {
            let (hub, limits) = (Hub::default(), Limits::default());
            let connection = Connection::new(&limits);
            let handler = |_request| {
                let (in_flight, payload) = (connection.begin(), answer());
                let mut response = Response::new(());
                response.headers_mut().insert("content-length", payload.length().into());
                let record = record.lock().unwrap().take();
                async move { response.map(|()| Body::new(payload, record, Some(in_flight))) }
            };
            let ended = converse(Arc::new(stream), &limits, &connection, &hub, handler).await;
            *noted.lock().unwrap() = Some(ended);
        });
        Self { client: client.unwrap(), end, tasks }
    }

    /// Asks `times` at once, says that no more comes, and reads everything; a reset is an error.
    async fn ask(&mut self, times: usize) -> Vec<u8> {
        self.client.write_all(&ASK.repeat(times)).await.unwrap();
        self.client.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        let read = timeout(TIME, self.client.read_to_end(&mut bytes));
        read.await.expect("the server ends it").expect("FIN, not RST");
        bytes
    }

    async fn ended(self) -> End {
        drop(self.client);
        self.tasks.close();
        timeout(TIME, self.tasks.wait()).await.expect("the connection's task ends");
        self.end.lock().unwrap().take().expect("it noted its end")
    }
}

const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// The bodies of answers that follow each other.
fn bodies(mut answers: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !answers.is_empty() {
        let head = answers.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let text = std::str::from_utf8(&answers[..head]).unwrap().to_ascii_lowercase();
        let length = text.split_once("content-length: ").unwrap().1;
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        let body = &answers[head + 4..];
        let (body, rest) = body.split_at(length.min(body.len()));
        found.push(body);
        answers = rest;
    }
    found
}

/// Descriptors and mappings of this process that are of the file.
fn held(path: &Path) -> usize {
    let name = path.to_str().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let link = fs::read_link(entry.ok()?.path()).ok()?;
        link.to_str().is_some_and(|link| link.starts_with(name)).then_some(())
    });
    links.count() + maps.lines().filter(|line| line.contains(name)).count()
}

#[tokio::test]
async fn pipelined_answers_from_one_file_arrive_in_order() {
    let blob = Blob::new();
    let span = blob.span();
    let range = ByteRange { start: 4097, end: 1_500_001 };
    let answer = move || Payload::Parts(Parts::one(range, windows(span.clone())));
    let mut fixture = Fixture::start(16 * 1024, Arc::new(answer)).await;
    let answers = fixture.ask(3).await;
    assert!(matches!(fixture.ended().await, End::Done(Ok(()))));
    let bodies = bodies(&answers);
    assert_eq!(bodies.len(), 3);
    assert!(bodies.iter().all(|body| *body == blob.slice(range)));
}

#[tokio::test]
async fn parts_that_overlap_are_each_their_own_bytes() {
    let (blob, framing) = (Blob::new(), Multipart::new());
    let (span, frame) = (blob.span(), framing.clone());
    let ranges = [(0, 100), (50, 2_000_000), (0, 100), (50, 60), (0, BLOB_BYTES)]
        .map(|(start, end)| ByteRange { start, end });
    let answer =
        move || Payload::Parts(Parts::many(&ranges, BLOB_BYTES, &frame, windows(span.clone())));
    let mut fixture = Fixture::start(16 * 1024, Arc::new(answer)).await;
    let answers = fixture.ask(1).await;
    let mut rest = bodies(&answers)[0];
    for range in ranges {
        let head = rest.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let wanted = blob.slice(range);
        assert!(rest[head..].starts_with(wanted), "{range:?}");
        rest = &rest[head + wanted.len()..];
    }
    assert!(rest.ends_with(b"--\r\n") && rest.len() < 100);
}

#[tokio::test]
async fn a_file_that_loses_its_name_is_sent_to_its_end() {
    let blob = Blob::new();
    let mut fixture = Fixture::sending(&blob).await;
    fs::remove_file(blob.path()).unwrap();
    let answers = fixture.ask(1).await;
    assert!(bodies(&answers).iter().all(|body| *body == blob.bytes));
    assert_eq!(bodies(&answers).len(), 2);
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let blob = Blob::new();
    let span = Mutex::new(Some(blob.span()));
    let range = ByteRange { start: 0, end: BLOB_BYTES };
    let answer = move || {
        let span = span.lock().unwrap().take().expect("there is one request");
        Payload::Parts(Parts::one(range, windows(span)))
    };
    let mut fixture = Fixture::start(16 * 1024, Arc::new(answer)).await;
    fixture.client.write_all(ASK).await.unwrap();
    let mut some = vec![0; 100_000];
    fixture.client.read_exact(&mut some).await.unwrap();
    assert_eq!(held(&blob.path()), 1, "its descriptor, and no mapping");
    assert!(matches!(fixture.ended().await, End::Done(Err(_))));
    assert_eq!(held(&blob.path()), 0);
}

#[tokio::test]
async fn what_a_client_did_not_take_of_the_last_window_is_not_counted() {
    let blob = Blob::new();
    let span = blob.span();
    let range = ByteRange { start: 0, end: 1_000_000 };
    let answer = move || Payload::Parts(Parts::one(range, windows(span.clone())));
    let mut registry = prometheus_client::registry::Registry::default();
    let ledger =
        Arc::new(Ledger { metrics: Metrics::new(&mut registry), log: AccessLog::default() });
    let client = std::net::IpAddr::from([127, 0, 0, 1]);
    let record = Record::begin(ledger, client, http::Method::GET, "x".into());
    let mut fixture = Fixture::recorded(16 * 1024, Arc::new(answer), Some(Box::new(record))).await;
    fixture.client.write_all(ASK).await.unwrap();
    let mut some = vec![0; 100_000];
    fixture.client.read_exact(&mut some).await.unwrap();
    assert!(matches!(fixture.ended().await, End::Done(Err(_))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find(|line| line.starts_with("served_bytes_total{"));
    let counted: u64 = line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!((99_000..900_000).contains(&counted), "{counted} of a million");
}

#[tokio::test]
async fn a_file_that_somebody_cuts_ends_the_connection_short() {
    let blob = Blob::new();
    let mut fixture = Fixture::sending(&blob).await;
    File::options().write(true).open(blob.path()).unwrap().set_len(2_000_000).unwrap();
    let mut answer = Vec::new();
    let read = timeout(TIME, fixture.client.read_to_end(&mut answer));
    read.await.expect("the server ends it").expect("FIN, not RST");
    let body = bodies(&answer)[0];
    assert!(body.len() <= 2_000_000 && body.len() > 1_500_000, "{}", body.len());
    assert_eq!(body, &blob.bytes[..body.len()]);
    assert!(matches!(fixture.ended().await, End::Done(Err(_))));
}

#[tokio::test]
async fn a_growing_file_is_sent_as_it_grows() {
    let blob = Blob::new();
    let grown = tempfile::tempfile().unwrap();
    let file = Arc::new(grown);
    let content = ContentFile::new(Arc::clone(&file), Some(BLOB_BYTES));
    let bytes = Arc::new(blob.bytes.clone());
    let source = move || -> Source {
        let (file, content, bytes) = (Arc::clone(&file), Arc::clone(&content), Arc::clone(&bytes));
        Box::new(move |range: ByteRange| {
            let (file, content, bytes) =
                (Arc::clone(&file), Arc::clone(&content), Arc::clone(&bytes));
            Box::pin(stream::unfold(range.start, move |at| {
                let end = (at + 123_457).min(range.end);
                let place = |at| usize::try_from(at).unwrap();
                file.write_all_at(&bytes[place(at)..place(end)], at).unwrap();
                let span = Span::new(Arc::clone(&content), at, end);
                async move { (at < end).then_some((Ok(Chunk::File(span)), end)) }
            }))
        })
    };
    let range = ByteRange { start: 0, end: BLOB_BYTES };
    let answer = move || Payload::Parts(Parts::one(range, source()));
    let mut fixture = Fixture::start(16 * 1024, Arc::new(answer)).await;
    let answers = fixture.ask(1).await;
    assert_eq!(bodies(&answers)[0], blob.bytes);
}

/// Chunks of a body, from the file or from memory, and what they are together.
fn chunks(blob: &Blob, span: &Span, cuts: &[(u64, u64, bool)]) -> (Vec<Chunk>, Vec<u8>) {
    let (mut chunks, mut wanted) = (Vec::new(), Vec::new());
    for (start, length, from_file) in cuts {
        let range = ByteRange { start: *start, end: start + length };
        wanted.extend_from_slice(blob.slice(range));
        chunks.push(if *from_file {
            Chunk::File(span.slice(range.start, range.end))
        } else {
            Chunk::Memory(Bytes::copy_from_slice(blob.slice(range)))
        });
    }
    (chunks, wanted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mixture_through_any_socket_is_exact(
        cuts in prop::collection::vec((0..2_000_000_u64, 1..40_000_u64, any::<bool>()), 1..60),
        buffer in 2_000..60_000_usize,
        reads in prop::collection::vec(1..50_000_usize, 1..8),
        times in 1..4_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let blob = Blob::new();
        let span = blob.span();
        let (chunks, wanted) = chunks(&blob, &span, &cuts);
        let length = u64::try_from(wanted.len()).unwrap();
        let answer = move || {
            let chunks = chunks.clone();
            let source: Source = Box::new(move |_| Box::pin(stream::iter(chunks.clone().into_iter().map(Ok))));
            Payload::Parts(Parts::one(ByteRange { start: 0, end: length }, source))
        };
        let answers = runtime.block_on(async {
            let mut fixture = Fixture::start(buffer, Arc::new(answer)).await;
            fixture.client.write_all(&ASK.repeat(times)).await.unwrap();
            fixture.client.shutdown().await.unwrap();
            let (mut answers, mut room) = (Vec::new(), vec![0; 50_000]);
            for size in reads.iter().cycle() {
                let count = timeout(TIME, fixture.client.read(&mut room[..*size])).await.unwrap().unwrap();
                if count == 0 { break; }
                answers.extend_from_slice(&room[..count]);
            }
            answers
        });
        let bodies = bodies(&answers);
        prop_assert_eq!(bodies.len(), times);
        prop_assert!(bodies.iter().all(|body| *body == wanted));
    }
}
