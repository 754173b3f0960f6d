//! The client of the admin API: one request on a connection of its own, and its answer, whole or line by line.
//!
//! The other end is the socket of a running server, a TCP listener, or the same handlers in this process. None is trusted with memory or
//! time: answers, lines and errors have a limit, and so has the wait for a connection and for the head of an answer.

use std::error::Error;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::upload::{Sent, Upload};
use crate::app::{Event, Hold, Secret, StoppedStore};

/// Where the API lives.
const ROOT: &str = "/api/v1";
/// A line of a job's story is a few hundred bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// An answer that is no story: the longest is the plan of a bundle of two hundred thousand objects.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// An error's body.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// A listener that does not take a connection within this time is not there.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The head of an answer; refreshing a tag over a slow line with mirrors takes longest.
const HEAD_TIME: Duration = Duration::from_secs(120);
/// What stays as it is in a parameter (RFC 3986, unreserved).
const PARAMETER: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where the admin API is.
#[derive(Debug)]
pub(super) enum Reach<'a> {
    /// The socket of the server that has the store; `by` tells who that is.
    Socket { path: PathBuf, by: String },
    /// A store that is open in this process.
    Stopped(&'a StoppedStore),
    /// A listener somewhere.
    Tcp { authority: String, token: Secret },
}

/// Asks one place.
#[derive(Debug)]
pub(super) struct Client<'a> {
    reach: Reach<'a>,
    /// Connections live here until their answers are dropped.
    tasks: TaskTracker,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    method: Method,
    /// Path and query, encoded.
    target: String,
    body: Bytes,
}

/// The story of a job, line by line.
#[derive(Debug)]
pub(super) struct Lines<E = Event> {
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
    says: PhantomData<E>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The API refused.
    Refused(Refusal),
    /// Whoever answered is no admin API.
    Foreign {
        status: u16,
    },
    /// Nobody took the connection at this place.
    Unreachable {
        place: String,
        error: io::Error,
    },
    Connection(hyper::Error),
    /// The head of the answer did not come in time.
    Silent(Duration),
    /// The answer is none that this program understands.
    Strange,
}

/// What the API said, in a word, a sentence, and what stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) message: String,
    #[serde(default)]
    pub(super) holds: Vec<Hold>,
}

#[derive(Deserialize)]
struct RefusalBody {
    error: Refusal,
}

impl Ask {
    pub(super) fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn post(path: &str) -> Self {
        Self::new(Method::POST, path)
    }

    pub(super) fn delete(path: &str) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn new(method: Method, path: &str) -> Self {
        Self { method, target: format!("{ROOT}{path}"), body: Bytes::new() }
    }

    /// The same with a parameter more.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.target.push(if self.target.contains('?') { '&' } else { '?' });
        self.target.push_str(name);
        self.target.push('=');
        self.target.extend(utf8_percent_encode(value, PARAMETER));
        self
    }

    /// The same with a body.
    pub(super) fn with_body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// The same with a parameter more if there is a value.
    pub(super) fn with_some(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The same with `name=true` if it is so.
    pub(super) fn with_flag(self, name: &str, set: bool) -> Self {
        self.with_some(name, set.then_some("true"))
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(reach: Reach<'a>) -> Self {
        Self { reach, tasks: TaskTracker::new() }
    }

    /// How the work is done, for people.
    pub(super) fn through(&self) -> String {
        match &self.reach {
            Reach::Socket { by, .. } => format!("through the running roadstead ({by})"),
            Reach::Stopped(_) => "directly: no server runs".to_owned(),
            Reach::Tcp { authority, .. } => format!("through the roadstead at {authority}"),
        }
    }

    /// Asks, and reads the whole answer: as it came, on one line, and what it says.
    pub(super) async fn ask<T: DeserializeOwned>(&self, ask: Ask) -> Result<(String, T), Trouble> {
        let body = self.send(ask).await?.into_body();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => Trouble::Connection(*error),
            Err(_longer_than_the_limit) => Trouble::Strange,
        })?;
        let bytes = body.to_bytes();
        let text = std::str::from_utf8(&bytes).map_err(|_invalid| Trouble::Strange)?.trim();
        let answer = serde_json::from_str(text).map_err(|_invalid| Trouble::Strange)?;
        // Only white space between the fields can be a line feed.
        Ok((text.replace(['\n', '\r'], " "), answer))
    }

    /// Begins a job.
    pub(super) async fn begin<E>(&self, ask: Ask) -> Result<Lines<E>, Trouble> {
        let body = self.send(ask).await?.into_body();
        Ok(Lines { body, buffer: Vec::new(), ended: false, says: PhantomData })
    }

    /// Begins a download, whose length must be known.
    pub(super) async fn open(&self, ask: Ask) -> Result<Download, Trouble> {
        let body = self.send(ask).await?.into_body();
        let length = body.size_hint().exact().ok_or(Trouble::Strange)?;
        Ok(Download { length, body })
    }

    /// Begins a job whose request has a long body. The answer comes when the other side has all of it, or refuses it.
    pub(super) async fn upload<E>(&self, ask: Ask, upload: Upload) -> Result<Lines<E>, Trouble> {
        let sent = upload.sent();
        let body = self.send_body(ask, upload, Some(sent)).await?.into_body();
        Ok(Lines { body, buffer: Vec::new(), ended: false, says: PhantomData })
    }

    async fn send(&self, ask: Ask) -> Result<Response<Incoming>, Trouble> {
        let body = Full::new(ask.body.clone());
        self.send_body(ask, body, None).await
    }

    /// `sent`: what the body tells of itself, if it may take long.
    async fn send_body<B>(
        &self,
        ask: Ask,
        body: B,
        sent: Option<Arc<Sent>>,
    ) -> Result<Response<Incoming>, Trouble>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        match &self.reach {
            Reach::Socket { path, by } => {
                let place =
                    || format!("the store is in use by {by}, whose socket {}", path.display());
                let stream = connect(UnixStream::connect(path), place).await?;
                self.exchange(stream, ask, body, sent).await
            }
            Reach::Stopped(store) => self.exchange(store.connect(), ask, body, sent).await,
            Reach::Tcp { authority, .. } => {
                let place = || format!("http://{authority}");
                let stream = connect(TcpStream::connect(authority.as_str()), place).await?;
                self.exchange(stream, ask, body, sent).await
            }
        }
    }

    async fn exchange<B>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        ask: Ask,
        body: B,
        sent: Option<Arc<Sent>>,
    ) -> Result<Response<Incoming>, Trouble>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the admin API ended early");
            }
        });
        let mut request = Request::builder().method(ask.method).uri(&ask.target);
        match &self.reach {
            Reach::Tcp { authority, token } => {
                let bearer = HeaderValue::try_from(format!("Bearer {}", token.reveal()));
                let mut bearer = bearer.expect("a token was checked when it was read");
                bearer.set_sensitive(true);
                request = request.header(HOST, authority).header(AUTHORIZATION, bearer);
            }
            Reach::Socket { .. } | Reach::Stopped(_) => request = request.header(HOST, "roadstead"),
        }
        let request = request.body(body);
        let request = request.expect("what is typed was encoded, and the rest is constants");
        let answer = sender.send_request(request);
        let response = match sent {
            None => timeout(HEAD_TIME, answer)
                .await
                .map_err(|_elapsed| Trouble::Silent(HEAD_TIME))??,
            Some(sent) => tokio::select! {
                response = answer => response?,
                silent = sent.until_silent() => return Err(Trouble::Silent(silent)),
            },
        };
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }
}

/// Waits for a connection, but not for ever.
async fn connect<S>(
    connecting: impl Future<Output = io::Result<S>>,
    place: impl FnOnce() -> String,
) -> Result<S, Trouble> {
    let connected = timeout(CONNECT_TIME, connecting).await;
    let connected = connected.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
    connected.map_err(|error| Trouble::Unreachable { place: place(), error })
}

/// What an error says.
async fn refusal(response: Response<Incoming>) -> Trouble {
    let status = response.status().as_u16();
    let told = async {
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await.ok()?;
        serde_json::from_slice::<RefusalBody>(&body.to_bytes()).ok()
    };
    match timeout(HEAD_TIME, told).await {
        Ok(Some(body)) => Trouble::Refused(body.error),
        Ok(None) | Err(_) => Trouble::Foreign { status },
    }
}

/// An answer of known length that is no text.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) length: u64,
    body: Incoming,
}

impl Download {
    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl<E: DeserializeOwned> Lines<E> {
    /// The next line as it came, and what it says; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<(String, E)>, Trouble> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                let text = String::from_utf8(line).map_err(|_invalid| Trouble::Strange)?;
                let text = text.trim_end().to_owned();
                let event = serde_json::from_str(&text).map_err(|_invalid| Trouble::Strange)?;
                return Ok(Some((text, event)));
            }
            if self.ended {
                return if self.buffer.is_empty() { Ok(None) } else { Err(Trouble::Strange) };
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Trouble::Strange);
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => self.ended = true,
            }
        }
    }
}

impl From<hyper::Error> for Trouble {
    fn from(error: hyper::Error) -> Self {
        Self::Connection(error)
    }
}

impl fmt::Display for Trouble {
    /// What is wrong, and what to do about it if that is not said already.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => {
                f.write_str(&refusal.message)?;
                if refusal.reason == "no_such_path" {
                    f.write_str("; the server is of an older version")?;
                }
                Ok(())
            }
            Self::Foreign { status } => write!(
                f,
                "what answered ({status}) is no admin API of roadstead; check the address (admin_listen is not listen)"
            ),
            Self::Unreachable { place, error } => {
                write!(f, "{place} cannot be reached: {error}")
            }
            Self::Connection(error) => write!(f, "the connection to the store broke: {error}"),
            Self::Silent(waited) => {
                let seconds = waited.as_secs();
                write!(f, "no answer within {seconds} s; whether it was done is not known")
            }
            Self::Strange => f.write_str("the answer is of another version of roadstead"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::cli::upload::{FINISH_TIME, STALL_TIME};

    /// Much more than pieces that wait and what the connection holds.
    const BODY: usize = 8 * 1024 * 1024;
    const BEGINNING: usize = 2 * 1024 * 1024;
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn parameters_are_encoded() {
        let ask = Ask::delete("/images")
            .with("image", "a.b/c:1&force=true #é%")
            .with_some("after", None)
            .with_flag("dry_run", false)
            .with_flag("force", true);
        assert_eq!(ask.method, Method::DELETE);
        assert_eq!(
            ask.target,
            "/api/v1/images?image=a.b%2Fc%3A1%26force%3Dtrue%20%23%C3%A9%25&force=true"
        );
        assert!(http::Uri::try_from(&ask.target).is_ok());
    }

    #[test]
    fn trouble_says_what_to_do() {
        let refused = |reason: &str| {
            let (reason, message) = (reason.to_owned(), "it is so".to_owned());
            Trouble::Refused(Refusal { reason, message, holds: Vec::new() }).to_string()
        };
        assert_eq!(refused("held"), "it is so");
        assert!(refused("no_such_path").contains("older version"));
        let foreign = Trouble::Foreign { status: 404 }.to_string();
        assert!(foreign.contains("404") && foreign.contains("admin_listen"), "{foreign}");
    }

    /// Sends a body, known by its size or not, to another side that does this. The reading thread waits for `first`; when it has handed on
    /// more than the connection holds, it drops `then`.
    async fn sent(
        known: bool,
        (first, then): (mpsc::Receiver<()>, mpsc::Sender<()>),
        other: impl AsyncFnOnce(DuplexStream),
    ) -> Result<(), Trouble> {
        let client = Client::new(Reach::Socket { path: PathBuf::new(), by: "the test".to_owned() });
        let size = known.then_some(u64::try_from(BODY).unwrap());
        let upload = Upload::new(size, move |pieces| {
            first.recv().unwrap_err();
            let failed = |error: io::Error| error.to_string();
            pieces.write_all(&vec![7; BEGINNING]).map_err(failed)?;
            drop(then);
            pieces.write_all(&vec![7; BODY - BEGINNING]).map_err(failed)
        });
        let upload = upload.unwrap();
        let (told, (ours, theirs)) = (upload.sent(), duplex(64 * 1024));
        let exchanged = client.exchange(ours, Ask::post("/import"), upload, Some(told));
        let (exchanged, ()) = tokio::join!(exchanged, other(theirs));
        exchanged.map(drop)
    }

    /// A source that has everything at once.
    fn quick() -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        (mpsc::channel().1, mpsc::channel().0)
    }

    /// Reads all of a request with its body, in whatever framing.
    async fn read_all(stream: &mut DuplexStream) {
        let (mut seen, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        let is_whole = |seen: &[u8]| {
            let head = seen.windows(4).position(|end| end == b"\r\n\r\n");
            let chunked = seen.windows(7).take(400).any(|word| word == b"chunked");
            head.is_some_and(|head| match chunked {
                true => seen.ends_with(b"\r\n0\r\n\r\n"),
                false => seen.len() == head + 4 + BODY,
            })
        };
        while !is_whole(&seen) {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "it ends early");
            seen.extend_from_slice(&buffer[..read]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_all_of_a_body_has_half_an_hour_to_answer() {
        for known in [true, false] {
            let answered = sent(known, quick(), async |mut stream| {
                read_all(&mut stream).await;
                sleep(FINISH_TIME - MINUTE).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            });
            assert!(answered.await.is_ok(), "known size: {known}");
            let begun = Instant::now();
            let silent = sent(known, quick(), async |mut stream| {
                read_all(&mut stream).await;
                sleep(2 * FINISH_TIME).await;
            });
            match silent.await {
                Err(Trouble::Silent(waited)) => assert_eq!(waited, FINISH_TIME),
                other => panic!("known size: {known}: {other:?}"),
            }
            assert!(begun.elapsed() >= FINISH_TIME);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_has_gone_and_a_slow_source_is_no_reason_to_give_up() {
        for known in [true, false] {
            let (then, begun) = mpsc::channel();
            let stalled = sent(known, (mpsc::channel().1, then), async |stream| {
                // A thread that waits keeps the paused clock from running.
                let begun = TaskTracker::new().spawn_blocking(move || begun.recv()).await;
                begun.unwrap().unwrap_err();
                sleep(2 * STALL_TIME).await;
                drop(stream);
            });
            match stalled.await {
                Err(Trouble::Silent(waited)) => assert_eq!(waited, STALL_TIME),
                other => panic!("known size: {known}: {other:?}"),
            }
            let (come, comes) = mpsc::channel::<()>();
            let slow = sent(known, (comes, mpsc::channel().0), async |mut stream| {
                sleep(3 * STALL_TIME).await;
                drop(come);
                read_all(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            });
            assert!(slow.await.is_ok(), "known size: {known}");
        }
    }
}
