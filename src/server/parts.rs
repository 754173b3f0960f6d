//! The bytes of a blob answer as a plan: whole, one range, or several as `multipart/byteranges` (RFC 9110, 14.6).
//!
//! What must hold: one part per requested range, in the order asked, never merged (clients count them), and a length that is known
//! before the first byte. Nothing is read here: a part's stream is opened when its turn comes.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use crate::oci::{ByteRange, MediaType, RangeError, RangeSpec};
use crate::registry::BlobStream;

/// Opens the stream of one range; called once per part, in order.
pub(super) type Source = Box<dyn Fn(ByteRange) -> BlobStream + Send + Sync>;

/// Overlapping ranges may ask for this many times the blob in all. Honest clients ask for each byte once; without a ceiling one
/// small request orders a thousand copies of a large blob.
const OVERLAP_MAX: u64 = 16;

/// What of a blob goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    Whole,
    One(ByteRange),
    Many(Vec<ByteRange>),
}

impl Selection {
    /// Resolves the ranges of a request against the size. Those that lie beyond the end are left out; if none is left, the request
    /// cannot be satisfied (RFC 9110, 14.2). A blob without bytes is answered whole, as Go's server does: clients that put a range
    /// on every request must be able to pull it.
    pub(super) fn of(specs: Option<&[RangeSpec]>, size: u64) -> Result<Self, RangeError> {
        let Some(specs) = specs.filter(|_| size > 0) else {
            return Ok(Self::Whole);
        };
        let ranges: Vec<ByteRange> =
            specs.iter().filter_map(|spec| spec.resolve(size).ok()).collect();
        let total = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.length()));
        match (&*ranges, specs.len()) {
            ([], _) => Err(RangeError::Unsatisfiable),
            ([range], 1) => Ok(Self::One(*range)),
            _ if total > size.saturating_mul(OVERLAP_MAX) => Err(RangeError::TooMany),
            // Several were asked for, so a multi-part answer it is, even if one is left.
            _ => Ok(Self::Many(ranges)),
        }
    }
}

/// The framing of a multi-part answer.
#[derive(Clone, Debug)]
pub(super) struct Multipart {
    boundary: String,
}

impl Multipart {
    /// The boundary must not occur in the content, hence the random one.
    pub(super) fn new() -> Self {
        Self { boundary: uuid::Uuid::new_v4().simple().to_string() }
    }

    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    fn preamble(&self, range: ByteRange, size: u64, first: bool) -> Bytes {
        let line_break = if first { "" } else { "\r\n" };
        format!(
            "{line_break}--{}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
            self.boundary,
            MediaType::OCTET_STREAM,
            range.content_range(size)
        )
        .into()
    }

    fn tail(&self) -> Bytes {
        format!("\r\n--{}--\r\n", self.boundary).into()
    }
}

/// The pieces that go out, in order.
pub(super) struct Parts {
    source: Source,
    pieces: VecDeque<Piece>,
    length: u64,
}

/// One piece of a body.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    Text(Bytes),
    Content(ByteRange),
}

impl Parts {
    /// One range without framing.
    pub(super) fn one(range: ByteRange, source: Source) -> Self {
        Self { source, pieces: VecDeque::from([Piece::Content(range)]), length: range.length() }
    }

    /// Several ranges of a blob of `size` bytes.
    pub(super) fn many(
        ranges: &[ByteRange],
        size: u64,
        framing: &Multipart,
        source: Source,
    ) -> Self {
        let mut pieces = VecDeque::with_capacity(ranges.len() * 2 + 1);
        for (index, range) in ranges.iter().enumerate() {
            pieces.push_back(Piece::Text(framing.preamble(*range, size, index == 0)));
            pieces.push_back(Piece::Content(*range));
        }
        pieces.push_back(Piece::Text(framing.tail()));
        // A manifest may tell any size, and overlapping parts a multiple of it.
        let length = pieces.iter().map(Piece::length).fold(0, u64::saturating_add);
        Self { source, pieces, length }
    }

    /// Bytes that all pieces have together, framing included.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        self.pieces.pop_front()
    }

    pub(super) fn open(&self, range: ByteRange) -> BlobStream {
        (self.source)(range)
    }
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Self::Content(range) => range.length(),
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("pieces", &self.pieces)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::parse_range;

    fn select(header: &str, size: u64) -> Result<Selection, RangeError> {
        Selection::of(parse_range(header).unwrap().as_deref(), size)
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn selections_follow_the_request() {
        assert_eq!(Selection::of(None, 10), Ok(Selection::Whole));
        assert_eq!(select("bytes=0-", 10), Ok(Selection::One(range(0, 10))));
        assert_eq!(select("bytes=4-10", 10), Ok(Selection::One(range(4, 10))));
        assert_eq!(select("bytes=-3", 10), Ok(Selection::One(range(7, 10))));
        let overlapping = vec![range(5, 9), range(0, 6), range(5, 9)];
        assert_eq!(select("bytes=5-8,0-5,5-8", 10), Ok(Selection::Many(overlapping)));
    }

    #[test]
    fn ranges_beyond_the_end() {
        assert_eq!(select("bytes=10-", 10), Err(RangeError::Unsatisfiable));
        assert_eq!(select("bytes=10-,20-30", 10), Err(RangeError::Unsatisfiable));
        assert_eq!(select("bytes=0-1,20-30", 10), Ok(Selection::Many(vec![range(0, 2)])));
    }

    #[test]
    fn an_empty_blob_is_answered_whole() {
        assert_eq!(select("bytes=0-", 0), Ok(Selection::Whole));
        assert_eq!(select("bytes=5-7", 0), Ok(Selection::Whole));
    }

    #[test]
    fn the_largest_size_that_can_be_told_overflows_nothing() {
        let Ok(Selection::Many(ranges)) = select("bytes=0-,0-", u64::MAX) else {
            panic!("two parts");
        };
        let source: Source = Box::new(|_range| Box::pin(futures_util::stream::empty()));
        let parts = Parts::many(&ranges, u64::MAX, &Multipart::new(), source);
        assert_eq!(parts.length(), u64::MAX);
    }

    #[test]
    fn a_flood_of_overlapping_ranges_is_refused() {
        let flood = format!("bytes={}", vec!["0-"; 1000].join(","));
        assert_eq!(select(&flood, 1 << 40), Err(RangeError::TooMany));
        assert!(select("bytes=0-,0-,0-,0-", 10).is_ok());
    }
}
