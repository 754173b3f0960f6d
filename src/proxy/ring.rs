//! The last bytes of a download that has lost its disk, kept in memory for those who follow it.
//!
//! What must hold: chunks are in the order of their offsets and never overlap; nothing here decides who may read. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::interval::length;

/// Bytes that are kept for followers; the download waits when there are more that somebody needs.
pub(super) const RING_BYTES: u64 = 4 * 1024 * 1024;
/// A follower that takes nothing for this long while another one waits is left behind.
pub(super) const RING_STALL: Duration = Duration::from_secs(5);

/// See the file's text.
#[derive(Debug, Default)]
pub(super) struct Ring {
    chunks: VecDeque<(u64, Bytes)>,
    bytes: u64,
    /// One past the last byte that was ever here, or where the first one will be.
    end: u64,
}

impl Ring {
    /// A ring whose first byte will be at `start`.
    pub(super) fn new(start: u64) -> Self {
        Self { end: start, ..Self::default() }
    }

    /// Adds bytes behind all others.
    pub(super) fn push(&mut self, offset: u64, bytes: Bytes) {
        debug_assert!(offset >= self.end);
        let length = length(&bytes);
        self.end = offset + length;
        self.bytes += length;
        self.chunks.push_back((offset, bytes));
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= RING_BYTES
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Where the oldest chunk begins and ends.
    pub(super) fn oldest(&self) -> Option<(u64, u64)> {
        self.chunks.front().map(|(start, bytes)| (*start, start + length(bytes)))
    }

    /// Forgets the oldest chunk.
    pub(super) fn drop_oldest(&mut self) {
        if let Some((_, bytes)) = self.chunks.pop_front() {
            self.bytes -= length(&bytes);
        }
    }

    /// The bytes from `position` to the end of the chunk that holds it.
    pub(super) fn get(&self, position: u64) -> Option<Bytes> {
        let behind = self.chunks.partition_point(|(start, _)| *start <= position);
        let (start, bytes) = self.chunks.get(behind.checked_sub(1)?)?;
        let skip = usize::try_from(position - start).ok()?;
        (skip < bytes.len()).then(|| bytes.slice(skip..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_by_position_until_they_are_dropped() {
        let mut ring = Ring::new(10);
        ring.push(10, Bytes::from_static(b"abc"));
        ring.push(13, Bytes::from_static(b"de"));
        ring.push(20, Bytes::from_static(b"f"));
        assert_eq!((ring.get(9), ring.get(15), ring.get(21)), (None, None, None));
        assert_eq!(ring.get(11).unwrap(), "bc");
        assert_eq!((ring.get(14).unwrap(), ring.get(20).unwrap()), ("e".into(), "f".into()));
        assert_eq!((ring.oldest(), ring.end()), (Some((10, 13)), 21));
        ring.drop_oldest();
        assert_eq!((ring.get(11), ring.oldest(), ring.bytes), (None, Some((13, 15)), 3));
    }
}
