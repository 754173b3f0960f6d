//! From the stream of a request to the thread that reads: pieces through a bounded channel.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::service::Incoming;

/// Pieces that wait for the reader; each is as large as what came in one read.
const PIECES: usize = 8;

enum Piece {
    Bytes(Bytes),
    /// The stream is over; without this it was cut short.
    End,
}

/// The end that is fed.
pub(super) struct Feed(mpsc::Sender<Piece>);

/// The end that is read, on a thread that may block.
pub(super) struct Source {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

pub(super) fn pair() -> (Feed, Source) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (Feed(sender), Source { pieces, piece: Bytes::new(), ended: false })
}

impl Feed {
    /// Hands on all of a stream; ends early, and well, when nobody reads any more.
    ///
    /// # Errors
    /// The stream broke.
    pub(super) async fn fill(self, mut bundle: Incoming) -> io::Result<()> {
        loop {
            let piece = tokio::select! {
                () = self.0.closed() => return Ok(()),
                piece = bundle.next() => piece,
            };
            let (piece, last) = match piece {
                Some(bytes) => (Piece::Bytes(bytes?), false),
                None => (Piece::End, true),
            };
            if self.0.send(piece).await.is_err() || last {
                return Ok(());
            }
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
