//! The body of a request to the admin API: a few lines, or a bundle of many gigabytes.
//!
//! What must hold: an answer reaches a client that is still sending, so what nobody read is taken and thrown away for a while before the
//! connection ends (closing a socket with unread bytes in it resets it, and the answer is lost); a client that sends nothing for a while has
//! gone.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::Stream;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};

/// A client that sends no byte of a body for this long has gone. Whoever feeds it may be slow: a tape, `docker save`, another machine.
const SEND_PATIENCE: Duration = Duration::from_secs(300);
/// A client that has its answer and sends on all the same is heard for this long, and for as long as it pauses no longer than that.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_PAUSE: Duration = Duration::from_secs(5);

/// The body, as a stream of bytes and as an HTTP body. What is left of it when it is dropped is drained by the connection.
#[derive(Debug)]
pub(super) struct Upload {
    body: Option<Incoming>,
    ended: bool,
    /// Where the rest goes.
    leave: mpsc::Sender<Incoming>,
    /// Since the client sends nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    /// A connection has one request, so there is always room for one body in `leave`.
    pub(super) fn new(body: Incoming, leave: mpsc::Sender<Incoming>) -> Self {
        Self { body: Some(body), ended: false, leave, stalled: None }
    }

    /// Nobody wants it, and what comes of it is left in the socket.
    pub(super) fn refuse(mut self) {
        drop(self.body.take());
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some(body) = self.body.as_mut().filter(|_| !self.ended) else {
            return Poll::Ready(None);
        };
        loop {
            let read = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => {
                    let stalled =
                        self.stalled.get_or_insert_with(|| Box::pin(sleep(SEND_PATIENCE)));
                    if stalled.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let seconds = SEND_PATIENCE.as_secs();
                    let silent = format!("the client sent nothing for {seconds} s");
                    Some(Err(io::Error::new(io::ErrorKind::TimedOut, silent)))
                }
                Poll::Ready(None) => None,
                Poll::Ready(Some(Err(error))) => Some(Err(io::Error::other(error))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) if bytes.has_remaining() => Some(Ok(bytes)),
                    Ok(_) | Err(_) => continue,
                },
            };
            self.stalled = None;
            self.ended = !matches!(read, Some(Ok(_)));
            return Poll::Ready(read);
        }
    }
}

impl Stream for Upload {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_bytes(cx)
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.poll_bytes(cx).map(|read| read.map(|read| read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
            && !body.is_end_stream()
        {
            // A connection that is over drains nothing.
            drop(self.leave.try_send(body));
        }
    }
}

/// Throws away what is left of the request's body, beside the answer. Never returns: the connection decides when it ends.
pub(super) async fn drain(mut left: mpsc::Receiver<Incoming>) -> Infallible {
    if let Some(mut body) = left.recv().await {
        let emptied = async {
            loop {
                let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
                let Ok(Some(Ok(_frame))) = timeout(LINGER_PAUSE, frame).await else {
                    return;
                };
            }
        };
        if timeout(LINGER, emptied).await.is_err() {
            tracing::debug!("a client sends on although it has its answer");
        }
    }
    pending().await
}
