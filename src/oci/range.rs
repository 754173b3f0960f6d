//! The `Range` header (RFC 9110, 14.2) as registries' clients use it.
//!
//! Parsing and resolving are apart: the header is checked before the size of the blob is known, and resolved against the size later.
//! An end past the last byte is clamped, because regclient asks one byte too far.

use std::fmt;

/// Ranges in one request. zstd:chunked and stargz ask for up to 1024 in one header.
pub const RANGES_PER_REQUEST_MAX: usize = 1024;

/// One range of a `Range` header, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `a-b`, both inclusive.
    Closed { first: u64, last: u64 },
    /// `a-`
    From(u64),
    /// `-n`: the last n bytes.
    Suffix(u64),
}

/// Bytes `start..end` of an object, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Why a `Range` header cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// More ranges than [`RANGES_PER_REQUEST_MAX`]: answer 400, on which lazy pullers split their list.
    TooMany,
    /// A `bytes` range set that violates the grammar: answer 400.
    Malformed,
    /// A range that lies beyond the object: answer 416.
    Unsatisfiable,
}

/// Reads a `Range` header value. `Ok(None)` means: not a byte range, ignore the header (RFC 9110 allows only that for unknown units).
pub fn parse_range(value: &str) -> Result<Option<Vec<RangeSpec>>, RangeError> {
    let Some((unit, set)) = value.split_once('=') else {
        return Ok(None);
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ok(None);
    }
    let mut specs = Vec::new();
    for item in set.split(',') {
        let item = item.trim();
        // The list grammar of RFC 9110, 5.6.1 lets a recipient skip empty members.
        if item.is_empty() {
            continue;
        }
        if specs.len() == RANGES_PER_REQUEST_MAX {
            return Err(RangeError::TooMany);
        }
        specs.push(parse_spec(item)?);
    }
    if specs.is_empty() { Err(RangeError::Malformed) } else { Ok(Some(specs)) }
}

fn parse_spec(item: &str) -> Result<RangeSpec, RangeError> {
    let (first, last) = item.split_once('-').ok_or(RangeError::Malformed)?;
    let (first, last) = (first.trim(), last.trim());
    match (first.is_empty(), last.is_empty()) {
        (true, true) => Err(RangeError::Malformed),
        (true, false) => number(last).map(RangeSpec::Suffix),
        (false, true) => number(first).map(RangeSpec::From),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                Err(RangeError::Malformed)
            } else {
                Ok(RangeSpec::Closed { first, last })
            }
        }
    }
}

/// Digits only; a number too large for the address space is as good as the largest one.
fn number(text: &str) -> Result<u64, RangeError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeError::Malformed);
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

impl RangeSpec {
    /// The bytes that this range names in an object of `size` bytes.
    pub fn resolve(self, size: u64) -> Result<ByteRange, RangeError> {
        let (start, end) = match self {
            Self::Closed { first, last } => (first, last.saturating_add(1).min(size)),
            Self::From(first) => (first, size),
            Self::Suffix(count) => (size.saturating_sub(count), size),
        };
        if start < end { Ok(ByteRange { start, end }) } else { Err(RangeError::Unsatisfiable) }
    }
}

impl ByteRange {
    /// Number of bytes.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The value of a `Content-Range` header (RFC 9110, 14.4).
    pub fn content_range(&self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end - 1)
    }
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "too many ranges in one request, or too much overlap between them",
            Self::Malformed => "malformed Range header",
            Self::Unsatisfiable => "range lies beyond the end of the blob",
        })
    }
}

impl std::error::Error for RangeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_resolve() {
        let specs = parse_range("bytes=0-0, 5-, -3").unwrap().unwrap();
        let resolved: Vec<_> = specs.iter().map(|spec| spec.resolve(10).unwrap()).collect();
        let range = |start, end| ByteRange { start, end };
        assert_eq!(resolved, [range(0, 1), range(5, 10), range(7, 10)]);
        assert_eq!(resolved[1].content_range(10), "bytes 5-9/10");
    }

    #[test]
    fn an_end_past_the_object_is_clamped() {
        let spec = parse_range("bytes=4-10").unwrap().unwrap()[0];
        assert_eq!(spec.resolve(10), Ok(ByteRange { start: 4, end: 10 }));
        assert_eq!(
            parse_range("bytes=-99").unwrap().unwrap()[0].resolve(10),
            Ok(ByteRange { start: 0, end: 10 })
        );
    }

    #[test]
    fn what_lies_beyond_is_unsatisfiable() {
        for text in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(
                parse_range(text).unwrap().unwrap()[0].resolve(10),
                Err(RangeError::Unsatisfiable),
                "{text}"
            );
        }
        assert_eq!(RangeSpec::From(0).resolve(0), Err(RangeError::Unsatisfiable));
    }

    #[test]
    fn the_text_holds_for_every_limit() {
        // A smaller limit of the operator and a flood of overlaps end in the same refusal.
        assert!(!RangeError::TooMany.to_string().contains("1024"));
    }

    #[test]
    fn malformed_and_foreign_headers() {
        for text in [
            "bytes=",
            "bytes=,",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=+1-2",
            "bytes=1",
            "bytes=1--2",
        ] {
            assert_eq!(parse_range(text), Err(RangeError::Malformed), "{text}");
        }
        assert_eq!(parse_range("items=0-5"), Ok(None));
        assert_eq!(parse_range("nonsense"), Ok(None));
        assert_eq!(
            parse_range(&format!("bytes={}", "0-1,".repeat(1025))),
            Err(RangeError::TooMany)
        );
        assert_eq!(
            parse_range(&format!("bytes={}", "0-1,".repeat(1024))).unwrap().unwrap().len(),
            1024
        );
    }
}
