//! One connection of an admin client: one request, one answer, and an end to both.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api::Admin;
use super::upload::{self, Upload};
use crate::server::settings::{HEADER_TIME, IDLE_BODY};

/// The request line and headers; our own client sends a hundred bytes.
const HEADER_BYTES: usize = 16 * 1024;
/// After the order to stop, the last lines of a job have this long to leave.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Admin {
    /// Answers the one request of a connection. Ends soon after `shutdown`, and when the client goes or takes no byte for a while.
    pub async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        shutdown: CancellationToken,
    ) {
        let (leave, left) = mpsc::channel(1);
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
            let leave = leave.clone();
            async move {
                let (parts, body) = request.into_parts();
                Ok::<_, Infallible>(self.answer(&parts, Upload::new(body, leave)).await)
            }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .max_buf_size(HEADER_BYTES)
            .keep_alive(false);
        let io = TokioIo::new(Patient::new(stream, IDLE_BODY));
        let mut connection = pin!(builder.serve_connection(io, service));
        let ended = tokio::select! {
            ended = &mut connection => ended,
            never = upload::drain(left) => match never {},
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match timeout(LAST_LINES, connection).await {
                    Ok(ended) => ended,
                    Err(_elapsed) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the admin API ended early");
        }
    }
}

/// A stream that fails when the other side takes no byte for a while.
struct Patient<S> {
    stream: S,
    patience: Duration,
    /// Since the stream takes no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, ended)
    }
}
