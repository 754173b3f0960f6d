//! A raw HTTP/1.1 client: it sends exactly what the test says and shows exactly what came back.
//!
//! It adds no header but `Host`, follows nothing, decodes nothing but chunks, and tells a clean end from a cut one. It can read
//! slowly, stop in the middle, pipeline, and send garbage. Every wait has a limit, so a hanging server fails the test.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard};

use bytes::{Buf as _, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::content::{Hasher, sha256, to_u64, to_usize};
use super::gate::within;

/// How much a body reader takes at once.
const PIECE: usize = 64 * 1024;
/// The largest body that is read into memory.
const BODY_MAX: usize = 256 << 20;
/// Answers that are kept for [`answers_since`].
const ANSWERS_KEPT: usize = 20_000;
/// As much of an error's body is kept.
const ANSWER_BODY_KEPT: usize = 16 * 1024;

/// What this process's clients were told lately: heads, and the bodies of what is not a success. With the number of the first.
static ANSWERS: Mutex<(usize, VecDeque<String>)> = Mutex::new((0, VecDeque::new()));

fn answers() -> MutexGuard<'static, (usize, VecDeque<String>)> {
    ANSWERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn remember(answer: String) {
    let (first, kept) = &mut *answers();
    kept.push_back(answer);
    if kept.len() > ANSWERS_KEPT {
        kept.pop_front();
        *first += 1;
    }
}

/// A place among the answers, for [`answers_since`].
pub fn answers_position() -> usize {
    let (first, kept) = &*answers();
    first + kept.len()
}

/// What clients of this process were told since then, so that a test can look for a secret in it.
pub fn answers_since(position: usize) -> Vec<String> {
    let (first, kept) = &*answers();
    kept.iter().skip(position.saturating_sub(*first)).cloned().collect()
}

/// Makes requests to one address, each on a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    headers: Vec<(String, String)>,
    ns: Option<String>,
    source: Option<IpAddr>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, headers: Vec::new(), ns: None, source: None }
    }

    /// Comes from another address of this machine: `127.0.0.<last>`.
    pub fn at_loopback(mut self, last: u8) -> Self {
        self.source = Some([127, 0, 0, last].into());
        self
    }

    /// Sends this header with every request.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends `?ns=` with every request, as containerd does.
    pub fn ns(mut self, ns: &str) -> Self {
        self.ns = Some(ns.to_owned());
        self
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn request(&self, method: &str, path: &str) -> Request {
        let path = match &self.ns {
            Some(ns) if path.contains('?') => format!("{path}&ns={ns}"),
            Some(ns) => format!("{path}?ns={ns}"),
            None => path.to_owned(),
        };
        Request {
            client: self.clone(),
            method: method.to_owned(),
            path,
            headers: self.headers.clone(),
            body: Bytes::new(),
        }
    }

    pub fn get(&self, path: &str) -> Request {
        self.request("GET", path)
    }

    pub fn head(&self, path: &str) -> Request {
        self.request("HEAD", path)
    }

    /// A manifest by tag or digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Request {
        self.get(&format!("/v2/{repository}/manifests/{reference}"))
    }

    pub fn manifest_head(&self, repository: &str, reference: &str) -> Request {
        self.head(&format!("/v2/{repository}/manifests/{reference}"))
    }

    pub fn blob(&self, repository: &str, digest: &str) -> Request {
        self.get(&format!("/v2/{repository}/blobs/{digest}"))
    }

    pub fn blob_head(&self, repository: &str, digest: &str) -> Request {
        self.head(&format!("/v2/{repository}/blobs/{digest}"))
    }

    /// A bare connection.
    pub async fn connect(&self) -> Connection {
        self.try_connect().await.expect("the server listens")
    }

    /// The same when the server may be gone.
    pub async fn try_connect(&self) -> io::Result<Connection> {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            if let Some(source) = self.source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            socket.connect(self.address).await
        };
        let stream = within("a connection", connect).await?;
        Ok(Connection { stream, buffer: BytesMut::new() })
    }
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request {
    client: Client,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Request {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn range(self, range: &str) -> Self {
        self.header("Range", &format!("bytes={range}"))
    }

    /// A body with its length.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// The bytes that go over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text.push_str(&format!("Host: {}\r\n", self.client.address));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Sends and reads the head of the answer; the body is still to come.
    pub async fn open(&self) -> Incoming {
        let mut connection = self.client.connect().await;
        connection.send(&self.bytes()).await;
        connection.incoming(self.is_head()).await
    }

    /// The same when anything may happen to the connection. The error tells that no answer came.
    pub async fn try_open(&self) -> io::Result<Incoming> {
        let mut connection = self.client.try_connect().await?;
        connection.try_send(&self.bytes()).await;
        connection.try_incoming(self.is_head()).await
    }

    /// Sends and reads what comes of the answer, if there is one.
    pub async fn try_send(&self) -> io::Result<Response> {
        Ok(self.try_open().await?.rest().await)
    }

    /// Sends and reads the whole answer.
    pub async fn send(&self) -> Response {
        self.open().await.rest().await
    }

    /// Sends and fails unless the whole answer came with this status.
    pub async fn expect(&self, status: u16) -> Response {
        let response = self.send().await;
        let what = format!("{} {}", self.method, self.path);
        response.expect(&what, status)
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As announced.
    Clean,
    /// FIN before the announced end.
    Cut,
    /// RST.
    Reset,
}

/// A connection on which anything can be sent.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    pub async fn send(&mut self, bytes: &[u8]) {
        let write = self.stream.write_all(bytes);
        within("the request to be taken", write).await.expect("the server reads");
    }

    /// The same when the server may hang up meanwhile; says whether all was taken.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        within("the request to be taken or refused", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Reads the head of an answer.
    pub async fn incoming(self, to_head: bool) -> Incoming {
        self.try_incoming(to_head).await.expect("an answer comes before the connection ends")
    }

    /// The same when the connection may end before.
    pub async fn try_incoming(mut self, to_head: bool) -> io::Result<Incoming> {
        let head = within("the head of an answer", self.read_head()).await?;
        let text = String::from_utf8_lossy(&head).into_owned();
        remember(text.clone());
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or("").to_owned();
        assert!(status_line.starts_with("HTTP/1.1 "), "a strange status line: {status_line:?}");
        let status = status_line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut incoming = Incoming {
            connection: self,
            status: status.expect("a status line has a number"),
            headers,
            left: Left::Nothing,
            end: None,
        };
        incoming.left = incoming.framing(to_head);
        Ok(incoming)
    }

    async fn read_head(&mut self) -> io::Result<BytesMut> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(self.buffer.split_to(end + 4));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let got = String::from_utf8_lossy(&self.buffer).into_owned();
                return Err(io::Error::other(format!("the connection ended after {got:?}")));
            }
        }
    }

    /// Sends our FIN; answers can still come.
    pub async fn finish_sending(&mut self) {
        self.stream.shutdown().await.expect("the connection is open");
    }

    /// So many bytes of whatever comes; fewer if the connection ends before.
    pub async fn read_up_to(&mut self, count: usize) -> Bytes {
        within("bytes", async {
            while self.buffer.len() < count {
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        })
        .await;
        let count = count.min(self.buffer.len());
        self.buffer.split_to(count).freeze()
    }

    /// Everything until the server closes; an RST counts as an end too.
    pub async fn drain(mut self) -> Bytes {
        within("the server to close the connection", async {
            while let Ok(1..) = self.stream.read_buf(&mut self.buffer).await {}
        })
        .await;
        self.buffer.freeze()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Bytes(u64),
    Chunks,
    UntilClose,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Incoming {
    connection: Connection,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    left: Left,
    end: Option<End>,
}

impl Incoming {
    fn framing(&self, to_head: bool) -> Left {
        if to_head || matches!(self.status, 100..=199 | 204 | 304) {
            return Left::Nothing;
        }
        if self.header("transfer-encoding").is_some() {
            return Left::Chunks;
        }
        match self.header("content-length") {
            Some("0") => Left::Nothing,
            Some(length) => Left::Bytes(length.parse().expect("Content-Length is a number")),
            None => Left::UntilClose,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// How the body ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Some more bytes of the body; `None` when it has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.next_up_to(PIECE).await
    }

    /// At most so many.
    pub async fn next_up_to(&mut self, most: usize) -> Option<Bytes> {
        if self.end.is_some() {
            return None;
        }
        let piece = match self.left {
            Left::Nothing => Ok(Bytes::new()),
            Left::Bytes(left) => self.some(most.min(to_usize(left))).await,
            Left::Chunks => self.chunk().await,
            Left::UntilClose => self.some(most).await,
        };
        match piece {
            Err(error) => {
                let reset = error.kind() == io::ErrorKind::ConnectionReset;
                self.end = Some(if reset { End::Reset } else { End::Cut });
                None
            }
            Ok(bytes) if bytes.is_empty() => {
                let clean = matches!(self.left, Left::Nothing | Left::Chunks | Left::UntilClose);
                self.end = Some(if clean { End::Clean } else { End::Cut });
                None
            }
            Ok(bytes) => {
                if let Left::Bytes(left) = &mut self.left {
                    *left -= to_u64(bytes.len());
                    if *left == 0 {
                        self.left = Left::Nothing;
                    }
                }
                Some(bytes)
            }
        }
    }

    async fn some(&mut self, most: usize) -> io::Result<Bytes> {
        let Connection { stream, buffer } = &mut self.connection;
        if buffer.is_empty() {
            let mut piece = vec![0; most];
            let count = within("more of the body", stream.read(&mut piece)).await?;
            piece.truncate(count);
            return Ok(Bytes::from(piece));
        }
        let most = most.min(buffer.len());
        Ok(buffer.split_to(most).freeze())
    }

    async fn chunk(&mut self) -> io::Result<Bytes> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        while self.connection.buffer.len() < size + 2 {
            let Connection { stream, buffer } = &mut self.connection;
            if within("more of a chunk", stream.read_buf(buffer)).await? == 0 {
                return Err(io::Error::other("the connection ended inside a chunk"));
            }
        }
        let bytes = self.connection.buffer.split_to(size).freeze();
        self.connection.buffer.advance(2);
        Ok(bytes)
    }

    async fn line(&mut self) -> io::Result<String> {
        let Connection { stream, buffer } = &mut self.connection;
        loop {
            if let Some(end) = buffer.windows(2).position(|window| window == b"\r\n") {
                let line = buffer.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if within("a chunk", stream.read_buf(buffer)).await? == 0 {
                return Err(io::Error::other("the connection ended between chunks"));
            }
        }
    }

    /// Exactly this many bytes of the body, which must come.
    pub async fn take(&mut self, count: u64) -> Bytes {
        let mut all = BytesMut::new();
        while all.len() < to_usize(count) {
            let wanted = to_usize(count) - all.len();
            let piece = self.next_up_to(wanted.min(PIECE)).await;
            all.extend_from_slice(&piece.expect("the body is long enough and not cut here"));
        }
        all.freeze()
    }

    /// Reads the rest of the body into memory.
    pub async fn rest(self) -> Response {
        self.rest_and_connection().await.0
    }

    /// The same, and the connection for the next request.
    pub async fn rest_and_connection(mut self) -> (Response, Connection) {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next().await {
            all.extend_from_slice(&bytes);
            assert!(all.len() < BODY_MAX, "a body without end, or one for `hashed`");
        }
        let end = self.end.expect("the loop ends with the body");
        if self.status >= 300 {
            let kept = &all[..all.len().min(ANSWER_BODY_KEPT)];
            remember(String::from_utf8_lossy(kept).into_owned());
        }
        let response =
            Response { status: self.status, headers: self.headers, body: all.freeze(), end };
        (response, self.connection)
    }

    /// Reads the rest of the body through a hash, keeping nothing.
    pub async fn hashed(mut self) -> Hashed {
        let mut hasher = Hasher::default();
        let mut size = 0;
        while let Some(bytes) = self.next().await {
            hasher.update(&bytes);
            size += to_u64(bytes.len());
        }
        let end = self.end.expect("the loop ends with the body");
        Hashed { status: self.status, digest: hasher.finish(), size, end }
    }
}

/// A body of which only hash and size were kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    pub status: u16,
    pub digest: String,
    pub size: u64,
    pub end: End,
}

impl Hashed {
    /// Fails unless this was the whole blob, bit for bit.
    #[track_caller]
    pub fn is_whole(&self, digest: &str, size: u64) {
        let want = Self { status: 200, digest: digest.to_owned(), size, end: End::Clean };
        assert_eq!(*self, want);
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub end: End,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// A header that must be there.
    #[track_caller]
    pub fn must(&self, name: &str) -> &str {
        match self.header(name) {
            Some(value) => value,
            None => panic!("there is no {name} in {self:?}"),
        }
    }

    #[track_caller]
    pub fn expect(self, what: &str, status: u16) -> Self {
        assert_eq!(self.status, status, "{what} gave {self:#?}");
        assert_eq!(self.end, End::Clean, "{what} did not end as announced: {self:#?}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(document) => document,
            Err(error) => panic!("{error} in {:?}", self.body),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn digest(&self) -> String {
        sha256(&self.body)
    }

    /// Fails unless this is an OCI error document with this code; gives its message.
    #[track_caller]
    pub fn error(&self, code: &str) -> String {
        let kind = self.must("Content-Type");
        assert!(kind.starts_with("application/json"), "an error of type {kind}: {self:?}");
        let document = self.json();
        let error = &document["errors"][0];
        assert_eq!(error["code"], code, "{document}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{document}");
        error["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// The value of a header, when there is exactly one.
fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut all = headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
    let first = all.next()?;
    assert!(all.next().is_none(), "more than one {name} in {headers:?}");
    Some(&first.1)
}
