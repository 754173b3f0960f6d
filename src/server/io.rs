//! The socket under hyper: counts, notes who waits for whom, and gives hyper's own refusals the shape of ours.
//!
//! hyper answers what it cannot parse with an empty 400, 414 or 431 before any handler is called. Clients and operators are owed the
//! error format of the OCI distribution spec there too, so such an answer is replaced on its way out. The socket is shared with the
//! task of the connection, which ends it in good order (see `serve.rs`).

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connection::Connection;
use super::reply;

/// hyper's end of the socket.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    connection: Arc<Connection>,
    /// What goes out in place of an answer that hyper made by itself.
    replacement: Bytes,
}

impl Wire {
    pub(super) fn new(stream: Arc<TcpStream>, connection: Arc<Connection>) -> Self {
        Self { stream, connection, replacement: Bytes::new() }
    }

    /// Runs `write` when the socket takes bytes, and notes how that went.
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(ready) = self.stream.poll_write_ready(cx) else {
                self.connection.note_blocked();
                return Poll::Pending;
            };
            ready?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.connection.note_written(count);
                    return Poll::Ready(Ok(count));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// If hyper speaks for itself, swallows its words and prepares ours.
    fn intercept(&mut self, first: &[u8]) -> bool {
        if !self.connection.is_clean() || first.is_empty() {
            return false;
        }
        match reply::wire_refusal(first) {
            Some(refusal) => {
                self.replacement = refusal;
                true
            }
            None => false,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.connection.note_read(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.intercept(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        self.poll_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty());
        if first.is_some_and(|first| self.intercept(first)) {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        self.poll_with(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.replacement.has_remaining() {
            let count = ready!(self.poll_with(cx, |stream| stream.try_write(&self.replacement)))?;
            self.replacement.advance(count);
        }
        self.connection.note_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        shutdown_write(&self.stream);
        Poll::Ready(Ok(()))
    }
}

/// Sends our FIN. A socket that is gone already needs none.
pub(super) fn shutdown_write(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).shutdown(Shutdown::Write) {
        tracing::trace!(%error, "the connection was gone before its FIN");
    }
}
