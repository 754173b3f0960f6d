//! A receipt: which content somebody has, so that a bundle for him leaves it out.
//!
//! ```text
//! roadstead-receipt 1
//! sha256:<64 hex digits>
//! ```
//!
//! The first line names the format and its version. Each other line is one digest; they are sorted, so that two receipts of the same
//! content are the same bytes. Reading takes any order, empty lines, and comments from a `#` that begins a line or follows a space; what it
//! cannot read it refuses with the number of the line. Nothing here touches a file.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::Digest;

/// First word of the first line.
const MAGIC: &str = "roadstead-receipt";
/// The version that is written, and the only one that is read.
const VERSION: &str = "1";
/// The most digests: as many as fit into one request with room to spare.
pub const RECEIPT_DIGESTS_MAX: usize = 400_000;
/// The longest text: room for every digest at the usual length.
pub const RECEIPT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Digests, each once, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    digests: BTreeSet<Digest>,
}

/// Why a text is no receipt, and in which line (the first is 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidReceipt {
    pub line: usize,
    pub reason: String,
}

/// No receipt holds more than [`RECEIPT_DIGESTS_MAX`] digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptFull;

impl Receipt {
    /// Adds a digest; one that is there already changes nothing.
    ///
    /// # Errors
    ///
    /// There are [`RECEIPT_DIGESTS_MAX`] others already.
    pub fn insert(&mut self, digest: Digest) -> Result<(), ReceiptFull> {
        if self.digests.len() >= RECEIPT_DIGESTS_MAX && !self.digests.contains(&digest) {
            return Err(ReceiptFull);
        }
        self.digests.insert(digest);
        Ok(())
    }

    pub fn contains(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    /// All of them, sorted.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.digests.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC} {VERSION}")?;
        self.digests.iter().try_for_each(|digest| writeln!(f, "{digest}"))
    }
}

impl FromStr for Receipt {
    type Err = InvalidReceipt;

    fn from_str(text: &str) -> Result<Self, InvalidReceipt> {
        if text.len() > RECEIPT_BYTES_MAX {
            let reason = format!("the receipt is longer than {RECEIPT_BYTES_MAX} bytes");
            return Err(InvalidReceipt { line: 1, reason });
        }
        // Some editors put a byte order mark in front.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let words = |line| {
            let words = str::split_whitespace(line);
            words.take_while(|word| !word.starts_with('#')).collect::<Vec<&str>>()
        };
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, words(line)));
        let mut lines = lines.filter(|(_, words)| !words.is_empty());
        match lines.next().as_ref().map(|(line, words)| (*line, &words[..])) {
            Some((_, [MAGIC, VERSION])) => {}
            Some((line, [MAGIC, version])) => {
                let reason = format!(
                    "version {version:?} of the format is not known; this program reads {VERSION}"
                );
                return Err(InvalidReceipt { line, reason });
            }
            other => {
                let line = other.map_or(1, |(line, _)| line);
                let reason = format!("no receipt begins so; want \"{MAGIC} {VERSION}\"");
                return Err(InvalidReceipt { line, reason });
            }
        }
        let mut receipt = Self::default();
        for (line, words) in lines {
            let wrong = |reason: String| InvalidReceipt { line, reason };
            let [word] = words[..] else {
                let count = words.len();
                return Err(wrong(format!("want one digest; found {count} words")));
            };
            let digest = word.parse().map_err(|error| wrong(format!("{word:?}: {error}")))?;
            receipt.insert(digest).map_err(|full| wrong(full.to_string()))?;
        }
        Ok(receipt)
    }
}

impl fmt::Display for InvalidReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for InvalidReceipt {}

impl fmt::Display for ReceiptFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a receipt holds at most {RECEIPT_DIGESTS_MAX} digests")
    }
}

impl std::error::Error for ReceiptFull {}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(seed: &str) -> Digest {
        Digest::sha256_of(seed.as_bytes())
    }

    #[test]
    fn it_is_written_sorted_and_read_back() {
        let mut receipt = Receipt::default();
        for seed in ["b", "a", "c", "a"] {
            receipt.insert(digest(seed)).unwrap();
        }
        let text = receipt.to_string();
        let mut lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!((text.lines().next(), lines.len()), (Some("roadstead-receipt 1"), 3));
        assert!(lines.is_sorted(), "{text}");
        lines.reverse();
        let edited = format!(
            "\u{feff}# by hand\n\nroadstead-receipt 1 # the format\r\n{}\n",
            lines.join(" # here\r\n\r\n")
        );
        assert_eq!(edited.parse(), Ok(receipt.clone()));
        assert_eq!(text.parse(), Ok(receipt.clone()));
        assert!(receipt.contains(&digest("a")) && !receipt.contains(&digest("d")));
        assert!("roadstead-receipt 1".parse::<Receipt>().unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let one = digest("x");
        for (text, at, said) in [
            (String::new(), 1, "roadstead-receipt 1"),
            ("\nroadstead-lock 1\n".to_owned(), 2, "roadstead-receipt 1"),
            ("roadstead-receipt 2\n".to_owned(), 1, "version \"2\""),
            (format!("{one}\n"), 1, "roadstead-receipt 1"),
            (format!("roadstead-receipt 1\n\n{one} {one}\n"), 3, "found 2 words"),
            (format!("roadstead-receipt 1\n{one}x\n"), 2, "not a digest"),
            ("roadstead-receipt 1\nsha256:../x\n".to_owned(), 2, "sha256:../x"),
        ] {
            let error = text.parse::<Receipt>().unwrap_err();
            assert_eq!(error.line, at, "{text}: {error}");
            assert!(error.reason.contains(said), "{text}: {error}");
        }
        let long = format!("roadstead-receipt 1\n#{}", "x".repeat(RECEIPT_BYTES_MAX));
        assert!(long.parse::<Receipt>().unwrap_err().reason.contains("longer"));
    }
}
