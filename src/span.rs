//! A region of an immutable file that can be read.
//!
//! Made by `blobs` and by a running download, carried to the server, which sends it. The file under a span is never truncated or
//! overwritten once it is published, only unlinked, so a span stays readable for as long as it is held. Reads block: they belong on
//! the blocking pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of the largest frame: large enough that the system calls do not count, small enough that a stalled client holds little.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Free buffers that a pool keeps: 4 MiB, enough for the frames in motion on a busy machine.
const FREE_FRAMES_MAX: usize = 16;

/// Bytes `start..end` of a file.
#[derive(Clone, Debug)]
pub struct Span {
    file: Arc<File>,
    start: u64,
    end: u64,
}

impl Span {
    /// The caller promises that the file holds these bytes and never changes them.
    pub fn new(file: Arc<File>, start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { file, start, end }
    }

    /// Number of bytes.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The bytes `start..end` counted from the beginning of this span, cut to its length.
    pub fn slice(&self, start: u64, end: u64) -> Self {
        let clamp = |offset: u64| self.start.saturating_add(offset).min(self.end);
        let (start, end) = (clamp(start), clamp(end));
        Self { file: Arc::clone(&self.file), start, end: end.max(start) }
    }

    /// Reads one frame, at most [`FRAME_BYTES`], from `offset` within the span; blocks. A file shorter than the span is an error
    /// (`UnexpectedEof`), never a short success: the store promised those bytes.
    pub fn read_frame(&self, offset: u64, pool: &FramePool) -> io::Result<Bytes> {
        let left = self.length().saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_BYTES);
        let mut frame = pool.take();
        self.file.read_exact_at(&mut frame.buffer[..wanted], self.start + offset)?;
        Ok(Bytes::from_owner(frame).slice(..wanted))
    }
}

/// Buffers for frames, used again and again: fresh ones for every frame would be spread over the allocator's arenas and kept there.
/// Clones share one pool.
#[derive(Clone, Debug, Default)]
pub struct FramePool(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer that goes back to its pool when the last `Bytes` on it is dropped.
#[derive(Debug)]
struct Frame {
    buffer: Box<[u8]>,
    pool: FramePool,
}

impl FramePool {
    fn take(&self) -> Frame {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let buffer = free.unwrap_or_else(|| vec![0; FRAME_BYTES].into_boxed_slice());
        Frame { buffer, pool: self.clone() }
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_FRAMES_MAX {
            free.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn span_of(bytes: &[u8]) -> Span {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Span::new(Arc::new(file), 0, bytes.len() as u64)
    }

    #[test]
    fn slices_nest_and_are_cut_to_the_span() {
        let (span, pool) = (span_of(b"0123456789").slice(2, 8), FramePool::default());
        assert_eq!(span.slice(1, 3).read_frame(0, &pool).unwrap(), "34");
        assert_eq!(span.slice(5, 99).read_frame(0, &pool).unwrap(), "7");
        assert_eq!(span.slice(9, 99).length(), 0);
    }

    #[test]
    fn a_file_shorter_than_its_span_is_an_error() {
        let span = span_of(b"0123");
        let longer = Span { end: 9, ..span };
        assert_eq!(
            longer.read_frame(2, &FramePool::default()).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_frame_goes_back_when_its_last_slice_is_dropped() {
        let (span, pool) = (span_of(b"0123"), FramePool::default());
        let frame = span.read_frame(0, &pool).unwrap();
        let part = frame.slice(1..2);
        drop(frame);
        assert!(pool.0.lock().unwrap().is_empty());
        drop(part);
        assert_eq!(pool.0.lock().unwrap().len(), 1);
        assert_eq!(span.read_frame(1, &pool).unwrap(), "123");
        assert_eq!(pool.0.lock().unwrap().len(), 1);
    }
}
