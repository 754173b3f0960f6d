//! Content digests: `algorithm:hex`, checked on entry.
//!
//! What must hold: a [`Digest`] always names a supported algorithm with a value of the right length, so its text form is safe in a
//! path, a header and a URL. Only sha256 and sha512 exist here, the two registered algorithms of the OCI image spec ("Digests").

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// Bytes of the longest supported hash value.
const VALUE_BYTES_MAX: usize = 64;

/// A registered digest algorithm (OCI image spec, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The word before the colon, which is also the directory name in an OCI image layout.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the raw hash value in bytes.
    pub fn value_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }
}

/// The identity of immutable content: algorithm and hash value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    value: [u8; VALUE_BYTES_MAX],
}

/// The text is not a digest that this program supports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDigest;

impl Digest {
    /// Hashes `bytes` with sha256, the algorithm under which the program names what it fetched by tag.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// Hashes `bytes` with `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw hash value.
    pub fn value(&self) -> &[u8] {
        &self.value[..self.algorithm.value_bytes()]
    }

    /// Where the content lies in an image layout, and below the data directory: `blobs/<algorithm>/<hex>` (OCI image spec, "Image Layout").
    pub fn layout_path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.as_str(), self.hex())
    }

    /// The hash value in lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(self.algorithm.value_bytes() * 2);
        for byte in self.value() {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        text
    }

    /// One byte of algorithm and then the raw value: the compact form in the metadata store.
    pub fn to_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + self.algorithm.value_bytes());
        key.push(self.algorithm.code());
        key.extend_from_slice(self.value());
        key
    }

    /// The inverse of [`Digest::to_key`].
    pub fn from_key(key: &[u8]) -> Result<Self, InvalidDigest> {
        let (code, value) = key.split_first().ok_or(InvalidDigest)?;
        let algorithm = match code {
            1 => Algorithm::Sha256,
            2 => Algorithm::Sha512,
            _ => return Err(InvalidDigest),
        };
        Self::from_value(algorithm, value)
    }

    /// Reads the two halves of an on-disk name (`sha256` and the hex text).
    pub fn from_parts(algorithm: &str, hex: &str) -> Result<Self, InvalidDigest> {
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(InvalidDigest),
        };
        let bytes = hex.as_bytes();
        if bytes.len() != algorithm.value_bytes() * 2 {
            return Err(InvalidDigest);
        }
        let mut value = [0; VALUE_BYTES_MAX];
        for (slot, pair) in value.iter_mut().zip(bytes.chunks_exact(2)) {
            *slot = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self { algorithm, value })
    }

    fn from_value(algorithm: Algorithm, raw: &[u8]) -> Result<Self, InvalidDigest> {
        if raw.len() != algorithm.value_bytes() {
            return Err(InvalidDigest);
        }
        let mut value = [0; VALUE_BYTES_MAX];
        value[..raw.len()].copy_from_slice(raw);
        Ok(Self { algorithm, value })
    }
}

/// Only lower-case hexadecimal is a digest: the OCI grammar has one spelling for one value.
fn nibble(byte: u8) -> Result<u8, InvalidDigest> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(InvalidDigest),
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest)?;
        Self::from_parts(algorithm, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for InvalidDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a digest: want sha256:<64 lower-case hex digits> or sha512:<128>")
    }
}

impl std::error::Error for InvalidDigest {}

/// An incremental hash that ends in a [`Digest`].
#[derive(Clone, Debug)]
pub struct DigestHasher(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl DigestHasher {
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Inner::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Inner::Sha512(sha2::Sha512::new()),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(hasher) => hasher.update(bytes),
            Inner::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let mut value = [0; VALUE_BYTES_MAX];
        let algorithm = match self.0 {
            Inner::Sha256(hasher) => {
                value[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            Inner::Sha512(hasher) => {
                value.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_file_is_named_as_the_layout_says() {
        let digest = Digest::sha256_of(b"x");
        assert_eq!(digest.layout_path(), format!("blobs/sha256/{}", digest.hex()));
    }

    #[test]
    fn the_digest_of_nothing_is_the_well_known_one() {
        assert_eq!(Digest::sha256_of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::sha256_of(b""));
    }

    #[test]
    fn sha512_keeps_its_full_length() {
        let digest = Digest::of(Algorithm::Sha512, b"");
        assert_eq!(digest.to_string().len(), "sha512:".len() + 128);
        assert_eq!(Digest::from_key(&digest.to_key()).unwrap(), digest);
    }

    #[test]
    fn only_one_spelling_is_a_digest() {
        let upper = EMPTY.replace("e3b0", "E3B0");
        let cases = [
            "",
            ":",
            "sha256",
            "sha256:",
            "sha256:zz",
            "md5:00",
            &EMPTY[..70],
            &upper,
            "sha256:../../x",
        ];
        for bad in cases {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} must not parse");
        }
        assert!(format!("{EMPTY}0").parse::<Digest>().is_err());
    }

    #[test]
    fn a_hash_in_pieces_is_the_hash_of_the_whole() {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        hasher.update(b"road");
        hasher.update(b"stead");
        assert_eq!(hasher.finish(), Digest::sha256_of(b"roadstead"));
    }
}
