//! The record beside an unfinished download: which of its bytes are here.
//!
//! What must hold: a record is input like any other. It is of bounded size, its sum is right, and its intervals are in order, apart
//! and inside the announced size; whatever is not so is no record. Whether it fits its file is for the reader of both to check.
//!
//! ```text
//! magic 8 | version 4 | intervals 4 | size 8 | inode 8 | written 8 | (start 8, end 8)... | sha256 of all before 32    (big endian)
//! ```

use std::ops::Range;

use crate::clock::Timestamp;
use crate::oci::Digest;

const MAGIC: &[u8; 8] = b"RdStPart";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
const INTERVAL_BYTES: usize = 16;
const SUM_BYTES: usize = 32;
/// Intervals in one record. A download in more pieces than that keeps the longest ones.
pub const INTERVALS_RECORDED_MAX: usize = 1024;
/// No record is longer.
pub(super) const RECORD_BYTES_MAX: usize =
    HEAD_BYTES + INTERVALS_RECORDED_MAX * INTERVAL_BYTES + SUM_BYTES;

/// What is known of an unfinished download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Size of the whole, as it was announced.
    pub(super) size: u64,
    /// Of the file that holds the bytes: a record never speaks for another file of the same name.
    pub(super) inode: u64,
    pub(super) written: Timestamp,
    /// Bytes that were durable when this was written.
    pub(super) present: Vec<Range<u64>>,
}

impl Record {
    /// Are these intervals that a record may hold: not empty, in order, apart, inside `size`?
    pub(super) fn is_valid(size: u64, present: &[Range<u64>]) -> bool {
        let inside = present.iter().all(|part| part.start < part.end && part.end <= size);
        inside && present.windows(2).all(|pair| pair[0].end <= pair[1].start)
    }

    /// The longest intervals if there are too many, still in order.
    pub(super) fn cut(mut present: Vec<Range<u64>>) -> Vec<Range<u64>> {
        if present.len() > INTERVALS_RECORDED_MAX {
            present.sort_unstable_by_key(|part| std::cmp::Reverse(part.end - part.start));
            present.truncate(INTERVALS_RECORDED_MAX);
            present.sort_unstable_by_key(|part| part.start);
        }
        present
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.present.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(RECORD_BYTES_MAX);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&self.inode.to_be_bytes());
        bytes.extend_from_slice(&self.written.as_millis().to_be_bytes());
        for part in &self.present {
            bytes.extend_from_slice(&part.start.to_be_bytes());
            bytes.extend_from_slice(&part.end.to_be_bytes());
        }
        let sum = Digest::sha256_of(&bytes);
        bytes.extend_from_slice(sum.value());
        bytes
    }

    /// `None`: this is no record.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > RECORD_BYTES_MAX {
            return None;
        }
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        let (head, parts) = body.split_at_checked(HEAD_BYTES)?;
        if !head.starts_with(MAGIC) || Digest::sha256_of(body).value() != sum {
            return None;
        }
        let version = u32::from_be_bytes(head[8..12].try_into().ok()?);
        let count = u32::from_be_bytes(head[12..16].try_into().ok()?);
        let (parts, rest) = parts.as_chunks::<INTERVAL_BYTES>();
        if version != VERSION || !rest.is_empty() || usize::try_from(count).ok()? != parts.len() {
            return None;
        }
        let size = number(&head[16..24])?;
        let interval = |part: &[u8; INTERVAL_BYTES]| Some(number(&part[..8])?..number(&part[8..])?);
        let present = parts.iter().map(interval).collect::<Option<Vec<_>>>()?;
        if !Self::is_valid(size, &present) {
            return None;
        }
        let written = i64::from_be_bytes(head[32..40].try_into().ok()?);
        Some(Self {
            size,
            inode: number(&head[24..32])?,
            written: Timestamp::from_millis(written),
            present,
        })
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(part: Range<u64>) -> Vec<Range<u64>> {
        vec![part]
    }

    fn record(present: Vec<Range<u64>>) -> Record {
        Record { size: 1000, inode: 7, written: Timestamp::from_millis(-5), present }
    }

    /// The record of a wrong body with a right sum, as a program of another time might write it.
    fn summed(mut body: Vec<u8>) -> Vec<u8> {
        let sum = Digest::sha256_of(&body);
        body.extend_from_slice(sum.value());
        body
    }

    #[test]
    fn what_goes_in_comes_out() {
        for present in [vec![], only(0..1000), vec![0..10, 10..20, 500..501, 999..1000]] {
            let record = record(present);
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }

    #[test]
    fn intervals_out_of_order_or_place_are_no_record() {
        let wrong = [only(5..5), only(0..1001), vec![0..10, 5..20], vec![20..30, 0..10]];
        for present in wrong {
            assert!(!Record::is_valid(1000, &present));
            assert_eq!(Record::decode(&record(present).encode()), None);
        }
        #[expect(clippy::reversed_empty_ranges, reason = "as it may stand in a file")]
        let backwards = record(only(9..3));
        assert_eq!(Record::decode(&backwards.encode()), None);
    }

    #[test]
    fn another_version_count_or_magic_is_no_record() {
        let good = record(vec![0..10, 20..30]).encode();
        let body = good[..good.len() - SUM_BYTES].to_vec();
        assert!(Record::decode(&summed(body.clone())).is_some());
        for (at, value) in [(0, b'X'), (11, 9), (15, 1), (12, 255)] {
            let mut changed = body.clone();
            changed[at] = value;
            assert_eq!(Record::decode(&summed(changed)), None, "byte {at}");
        }
        let mut longer = body.clone();
        longer.push(0);
        assert_eq!(Record::decode(&summed(longer)), None);
        assert_eq!(Record::decode(&summed(b"RdStPart".to_vec())), None);
    }

    #[test]
    fn too_many_intervals_are_cut_to_the_longest() {
        let mut present: Vec<_> = (0..5000_u64).map(|n| n * 10..n * 10 + 1).collect();
        present[4321].end += 5;
        let cut = Record::cut(present);
        assert_eq!(cut.len(), INTERVALS_RECORDED_MAX);
        assert!(cut.contains(&(43210..43216)) && Record::is_valid(50_000, &cut));
        let full = Record { size: 50_000, ..record(cut) };
        let bytes = full.encode();
        assert_eq!(bytes.len(), RECORD_BYTES_MAX);
        assert_eq!(Record::decode(&bytes), Some(full));
    }

    proptest! {
        #[test]
        fn junk_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Record::decode(&bytes), None);
            prop_assert_eq!(Record::decode(&summed(bytes)), None);
        }

        #[test]
        fn any_changed_byte_is_found(at in 0usize..104, flip in 1u8..) {
            let mut bytes = record(vec![0..10, 20..30]).encode();
            let place = at % bytes.len();
            bytes[place] ^= flip;
            prop_assert_eq!(Record::decode(&bytes), None);
            bytes.truncate(place);
            prop_assert_eq!(Record::decode(&bytes), None);
        }
    }
}
