//! The client of the admin API: one request on a connection that is given, and the lines of its answer.
//!
//! The other end is the socket of a running server, or the same handlers in this process. Neither is trusted with memory: lines and
//! errors have a limit.

use std::fmt;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;

use crate::app::{Event, JobKind};

/// A line of an answer is a few hundred bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// An error's body.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// The story of a job, line by line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    ended: bool,
}

/// Why there is no line.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The API refused, with these words.
    Refused(String),
    Connection(hyper::Error),
    /// The answer is none that this program understands.
    Strange,
}

/// Begins a job over `stream`. The connection lives in `tasks` until the answer is dropped.
pub(super) async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tasks: &TaskTracker,
    kind: JobKind,
) -> Result<Lines, Trouble> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the admin API ended early");
        }
    });
    let path = match kind {
        JobKind::Verify => "/api/v1/verify",
        JobKind::Repair => "/api/v1/verify?repair=true",
        JobKind::Reindex => "/api/v1/reindex",
    };
    let request = Request::builder().method(Method::POST).uri(path).header("Host", "roadstead");
    let request = request.body(Empty::<Bytes>::new()).expect("the request is made of constants");
    let response = sender.send_request(request).await?;
    if response.status().is_success() {
        let body = response.into_body();
        Ok(Lines { body, buffer: Vec::new(), ended: false })
    } else {
        Err(Trouble::Refused(refusal(response).await))
    }
}

/// What an error says.
async fn refusal(response: Response<Incoming>) -> String {
    let status = response.status();
    let told = async {
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await.ok()?;
        let error: Value = serde_json::from_slice(&body.to_bytes()).ok()?;
        Some(error["error"]["message"].as_str()?.to_owned())
    };
    told.await.unwrap_or_else(|| format!("the admin API answered {status}"))
}

impl Lines {
    /// The next line as it came, and what it says; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<(String, Event)>, Trouble> {
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
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message) => f.write_str(message),
            Self::Connection(error) => write!(f, "the connection to the store broke: {error}"),
            Self::Strange => f.write_str("the answer is of another version of roadstead"),
        }
    }
}
