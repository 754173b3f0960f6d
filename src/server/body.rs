//! Bodies of answers as hyper takes them.
//!
//! What must hold: a body that ends cleanly has exactly its announced length, and one that cannot be completed is an error, on which
//! the connection ends with FIN after everything that was handed over before. hyper drops a body as soon as its last frame is queued,
//! so the record of the request rides on the bytes of that frame and is written when they have left. Nothing here knows of status
//! codes or headers. A part of a file goes to the connection's slots, and to hyper as a blank of its length (see `slots.rs`).

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::connection::{Connection, InFlight};
use super::parts::{Parts, Piece};
use super::record::Record;
use crate::registry::BlobStream;
use crate::span::Chunk;

/// What an answer carries, before it is tied to a connection.
#[derive(Debug)]
pub(super) enum Payload {
    Empty,
    Bytes(Bytes),
    Parts(Parts),
}

impl Payload {
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => length(bytes),
            Self::Parts(parts) => parts.length(),
        }
    }
}

/// A body in the hands of hyper.
#[derive(Debug)]
pub(super) struct Body {
    payload: Payload,
    /// The stream of the piece that is going out, and how much of the piece is left.
    current: Option<(Open, u64)>,
    remaining: u64,
    failure: Option<&'static str>,
    record: Option<Box<Record>>,
    connection: Option<Arc<Connection>>,
    _in_flight: Option<InFlight>,
}

struct Open(BlobStream);

/// The body ended before its announced length; the word says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut(pub(super) &'static str);

impl Body {
    pub(super) fn new(
        payload: Payload,
        record: Option<Box<Record>>,
        in_flight: Option<InFlight>,
    ) -> Self {
        Self {
            remaining: payload.length(),
            payload,
            current: None,
            failure: None,
            record,
            connection: in_flight.as_ref().map(InFlight::connection),
            _in_flight: in_flight,
        }
    }

    /// What comes next of the payload, without accounting.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunk, &'static str>>> {
        loop {
            if let Some((Open(stream), left)) = &mut self.current {
                match ready!(stream.as_mut().poll_next(cx)) {
                    Some(Ok(chunk)) if chunk.length() == 0 => continue,
                    Some(Ok(chunk)) => {
                        let Some(rest) = left.checked_sub(chunk.length()) else {
                            return Poll::Ready(Some(Err("overrun")));
                        };
                        *left = rest;
                        if rest == 0 {
                            self.current = None;
                        }
                        return Poll::Ready(Some(Ok(chunk)));
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.0))),
                    None => return Poll::Ready(Some(Err("short"))),
                }
            }
            match &mut self.payload {
                Payload::Empty => return Poll::Ready(None),
                Payload::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.payload = Payload::Empty;
                    return Poll::Ready(Some(Ok(bytes.into())));
                }
                Payload::Parts(parts) => match parts.next_piece() {
                    None => return Poll::Ready(None),
                    Some(Piece::Text(text)) => return Poll::Ready(Some(Ok(text.into()))),
                    Some(Piece::Content(range)) => {
                        self.current = Some((Open(parts.open(range)), range.length()));
                    }
                },
            }
        }
    }

    /// A chunk as hyper takes it.
    fn bytes(&self, chunk: Chunk) -> Option<Bytes> {
        match chunk {
            Chunk::Memory(bytes) => Some(bytes),
            Chunk::File(span) => self.connection.as_ref()?.slots().push(span),
        }
    }

    /// Counts a frame, and ties the record to the last one.
    fn account(&mut self, bytes: Bytes) -> Bytes {
        let count = length(&bytes);
        self.remaining = self.remaining.saturating_sub(count);
        if let Some(record) = &mut self.record {
            record.sent(count);
        }
        if self.remaining > 0 {
            return bytes;
        }
        match self.record.take() {
            Some(record) => {
                let connection = self.connection.clone();
                Bytes::from_owner(LastFrame { bytes, record, connection })
            }
            None => bytes,
        }
    }

    /// Notes the failure and waits one turn, so that hyper sends what it has before it hears of it: it drops queued frames on an error.
    fn fail(
        &mut self,
        reason: &'static str,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(record) = &mut self.record {
            record.cut(reason);
        }
        self.failure = Some(reason);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(reason) = self.failure {
            // Frames are on their way while the socket is full, or others have their turn; what ends that wakes the connection's task,
            // and thus us.
            if self.connection.as_ref().is_some_and(|connection| connection.is_waiting()) {
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Cut(reason))));
        }
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        match ready!(self.poll_piece(cx)) {
            Some(Ok(chunk)) => match self.bytes(chunk) {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(self.account(bytes))))),
                None => self.fail("no_slot", cx),
            },
            Some(Err(reason)) => self.fail(reason, cx),
            None => self.fail("short", cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0 && self.failure.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that is dropped with bytes left belongs to a client that went away, unless it failed before.
        if self.remaining > 0
            && let Some(record) = &mut self.record
        {
            record.left();
        }
    }
}

/// The bytes of a body's last frame; the record is written when they have been sent or the connection is gone.
struct LastFrame {
    bytes: Bytes,
    record: Box<Record>,
    connection: Option<Arc<Connection>>,
}

impl Drop for LastFrame {
    fn drop(&mut self) {
        // What left the connection's queue was sent; what is still there, or was when the connection ended, never will be.
        let unsent = self.connection.as_ref().map_or(0, |connection| connection.slots().unsent());
        if unsent > 0 {
            self.record.unsent(unsent);
        }
    }
}

impl AsRef<[u8]> for LastFrame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Open")
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body was cut: {}", self.0)
    }
}

impl std::error::Error for Cut {}

fn length(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use futures_util::stream;
    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::oci::ByteRange;
    use crate::registry::StreamError;
    use crate::server::parts::{Multipart, Source};

    const CONTENT: &[u8] = b"0123456789abcdef";

    /// Serves ranges of [`CONTENT`] in frames of three bytes.
    fn source() -> Source {
        Box::new(|range: ByteRange| {
            let bytes = &CONTENT
                [usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            let frames: Vec<_> =
                bytes.chunks(3).map(|chunk| Ok(Bytes::from_static(chunk).into())).collect();
            Box::pin(stream::iter(frames))
        })
    }

    fn scripted(frames: Vec<Result<&'static [u8], StreamError>>) -> Source {
        Box::new(move |_| {
            let frames: Vec<_> = frames
                .iter()
                .map(|frame| frame.map(|bytes| Bytes::from_static(bytes).into()))
                .collect();
            Box::pin(stream::iter(frames))
        })
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    fn body(parts: Parts) -> Body {
        Body::new(Payload::Parts(parts), None, None)
    }

    async fn collect(parts: Parts) -> Vec<u8> {
        let length = parts.length();
        let body = body(parts);
        assert_eq!(body.size_hint().exact(), Some(length));
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(u64::try_from(bytes.len()).unwrap(), length);
        bytes.to_vec()
    }

    #[tokio::test]
    async fn one_range_is_its_bytes() {
        assert_eq!(collect(Parts::one(range(2, 9), source())).await, b"2345678");
    }

    #[tokio::test]
    async fn many_ranges_are_framed_in_order_and_of_the_announced_length() {
        let framing = Multipart::new();
        let ranges = [range(10, 16), range(0, 1), range(0, 16)];
        let bytes = collect(Parts::many(&ranges, 16, &framing, source())).await;
        let text = String::from_utf8(bytes).unwrap();
        let boundary = framing.content_type().split_once("boundary=").unwrap().1.to_owned();
        let part = |range: &str, content: &str| {
            format!(
                "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}/16\r\n\r\n{content}\r\n"
            )
        };
        let wanted = part("10-15", "abcdef")
            + &part("0-0", "0")
            + &part("0-15", "0123456789abcdef")
            + &format!("--{boundary}--\r\n");
        assert_eq!(text, wanted);
    }

    /// Polls until the body ends, noting what came.
    fn script(mut body: Body) -> VecDeque<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = VecDeque::new();
        for _ in 0..20 {
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => seen.push_back("pending".to_owned()),
                Poll::Ready(None) => {
                    seen.push_back("end".to_owned());
                    return seen;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    seen.push_back(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap());
                }
                Poll::Ready(Some(Err(cut))) => {
                    seen.push_back(cut.0.to_owned());
                    return seen;
                }
            }
        }
        panic!("the body never ends: {seen:?}");
    }

    #[test]
    fn an_error_comes_one_turn_after_the_last_frame() {
        let frames = vec![Ok(&b"abc"[..]), Err(StreamError("digest_mismatch"))];
        let body = body(Parts::one(range(0, 10), scripted(frames)));
        assert!(!body.is_end_stream());
        assert_eq!(script(body), ["abc", "pending", "digest_mismatch"]);
    }

    #[test]
    fn a_stream_of_the_wrong_length_is_never_a_clean_end() {
        let short = body(Parts::one(range(0, 10), scripted(vec![Ok(b"abc")])));
        assert_eq!(script(short), ["abc", "pending", "short"]);
        let long = body(Parts::one(range(0, 4), scripted(vec![Ok(b"abc"), Ok(b"de")])));
        assert_eq!(script(long), ["abc", "pending", "overrun"]);
        let empty_frames =
            body(Parts::one(range(0, 3), scripted(vec![Ok(b""), Ok(b"abc"), Ok(b"")])));
        assert_eq!(script(empty_frames), ["abc", "end"]);
    }

    #[test]
    fn plain_payloads() {
        assert!(Body::new(Payload::Empty, None, None).is_end_stream());
        let body = Body::new(Payload::Bytes(Bytes::from_static(b"{}")), None, None);
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(script(body), ["{}", "end"]);
    }
}
