//! The socket under hyper: counts, notes who waits for whom, and gives hyper's own refusals the shape of ours.
//!
//! hyper answers what it cannot parse with an empty 400, 414 or 431 before any handler is called. Clients and operators are owed the
//! error format of the OCI distribution spec there too, so such an answer is replaced on its way out. The socket is shared with the
//! task of the connection, which ends it in good order (see `serve.rs`).
//!
//! Where hyper writes a blank, the part of a file for which it stands is sent instead, by `sendfile` (see `slots.rs`). The writer has to
//! be vectored: otherwise hyper would copy the blank, and the connection would end in confusion.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::connection::Connection;
use super::reply;
use super::slots::{Slots, Turn};
use crate::span::{Chunk, Span};

/// A client that takes all it is given has a worker of the runtime for this many bytes, then others have their turn.
const TURN_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that are copied at a time where a file cannot be sent.
const COPY_BYTES: u64 = 64 * 1024;

/// hyper's end of the socket.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    connection: Arc<Connection>,
    /// What goes out in place of an answer that hyper made by itself.
    replacement: Bytes,
    /// Bytes that left since this connection last waited.
    turn: usize,
}

impl Wire {
    pub(super) fn new(stream: Arc<TcpStream>, connection: Arc<Connection>) -> Self {
        Self { stream, connection, replacement: Bytes::new(), turn: 0 }
    }

    /// Runs `write` when the socket takes bytes, and notes how that went.
    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if self.turn >= TURN_BYTES {
            self.turn = 0;
            self.connection.note_yielded();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let Poll::Ready(ready) = self.stream.poll_write_ready(cx) else {
                self.turn = 0;
                self.connection.note_blocked();
                return Poll::Pending;
            };
            ready?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(count) => {
                    self.turn = self.turn.saturating_add(count);
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

/// Reads what is there. Bytes that left room in the buffer were all there were: then the socket is not ready any more, and hyper's next look
/// costs no system call. That is said by the readiness as it was before the read, so what came since is not lost. (tokio does the same in
/// its own `poll_read`, but not in `try_read_buf`.)
fn read(stream: &TcpStream, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    let mut drained = None;
    let result = stream.try_io(Interest::READABLE, || {
        let count = stream.try_read_buf(buffer)?;
        if count > 0 && buffer.remaining() > 0 {
            drained = Some(count);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    });
    drained.map_or(result, Ok)
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match read(&self.stream, buffer) {
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
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let connection = Arc::clone(&self.connection);
        match connection.slots().turn(slices) {
            Turn::Memory => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                if first.is_some_and(|first| self.intercept(first)) {
                    return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
                }
                match slices {
                    // An answer without a body; `send` costs less than `writev`.
                    [whole] => self.poll_with(cx, |stream| stream.try_write(whole)),
                    _ => self.poll_with(cx, |stream| stream.try_write_vectored(slices)),
                }
            }
            Turn::File(memory, part) => {
                self.poll_with(cx, |stream| write(stream, memory, &part, connection.slots()))
            }
            Turn::Confused => {
                tracing::error!("the parts of files of a connection do not fit its answers");
                Poll::Ready(Err(io::Error::other("a part of a file has lost its place")))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.replacement.has_remaining() {
            let replacement = self.replacement.clone();
            let count = ready!(self.poll_with(cx, |stream| stream.try_write(&replacement)))?;
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

/// Writes `memory` and, if all of it went, the beginning of the part that follows. Tells how many bytes went in all.
fn write(
    stream: &TcpStream,
    memory: &[IoSlice<'_>],
    part: &Span,
    slots: &Slots,
) -> io::Result<usize> {
    let total: usize = memory.iter().map(|slice| slice.len()).sum();
    if total > 0 {
        let written = stream.try_io(Interest::WRITABLE, || send_with_more(stream, memory))?;
        if written < total {
            return Ok(written);
        }
    }
    match stream.try_io(Interest::WRITABLE, || send_part(stream, part)) {
        Ok(sent) => {
            slots.sent(sent);
            Ok(total + sent)
        }
        // It comes again when the rest is tried.
        Err(_later) if total > 0 => Ok(total),
        Err(error) => {
            if is_of_the_file(&error) {
                tracing::error!(%error, "content could not be read while it was sent");
            }
            Err(error)
        }
    }
}

fn send_part(stream: &TcpStream, part: &Span) -> io::Result<usize> {
    match part.send(stream.as_fd()) {
        // A file system without it. What is copied is in the page cache, or was a moment ago.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let bytes = Chunk::File(part.slice(0, COPY_BYTES)).read()?;
            Ok(rustix::net::send(stream, &bytes, SendFlags::NOSIGNAL)?)
        }
        sent => sent,
    }
}

/// Holds the segment back for what follows at once.
fn send_with_more(stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
    let sent = rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags);
    Ok(sent?)
}

/// Does the error speak of the file, and not of the socket?
fn is_of_the_file(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    error.kind() == io::ErrorKind::UnexpectedEof || errno == Some(rustix::io::Errno::IO)
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The client may be waited for a moment longer; its files need not.
        self.connection.slots().clear();
    }
}

/// Sends our FIN. A socket that is gone already needs none.
pub(super) fn shutdown_write(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).shutdown(Shutdown::Write) {
        tracing::trace!(%error, "the connection was gone before its FIN");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::task::Waker;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::server::settings::Limits;
    use crate::span::ContentFile;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_sent_is_copied() {
        let (mut client, stream) = pair().await;
        // Not every file system has sendfile, and this one is on every machine.
        let file = Arc::new(File::open("/proc/self/limits").unwrap());
        let part = Span::new(ContentFile::new(file, None), 0, 100);
        assert_eq!(part.send(&stream).unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert_eq!(send_part(&stream, &part).unwrap(), 100);
        let mut received = [0; 100];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(Chunk::File(part).read().unwrap(), received.as_slice());
    }

    #[tokio::test]
    async fn after_its_turn_a_connection_lets_others_go_first() {
        let (_client, stream) = pair().await;
        let connection = Connection::new(&Limits::default());
        let stream = Arc::new(stream);
        stream.writable().await.unwrap();
        let mut wire = Wire::new(stream, Arc::clone(&connection));
        connection.begin();
        wire.turn = TURN_BYTES;
        let mut cx = Context::from_waker(Waker::noop());
        let mut write = || Pin::new(&mut wire).poll_write(&mut cx, b"more");
        assert!(write().is_pending());
        assert!(connection.is_waiting() && !connection.is_blocked(), "nobody else is to blame");
        assert!(matches!(write(), Poll::Ready(Ok(4))));
        assert!(!connection.is_waiting());
    }
}
