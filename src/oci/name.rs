//! Repository names, tags and references, checked on entry.
//!
//! The grammar is that of the OCI distribution spec 1.1 ("Pulling manifests"). Path traversal, percent signs, upper-case names and
//! overlong input cannot be represented, so no later room has to think of them.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::Digest;

/// Longest repository name in bytes; distribution's limit, which every client respects.
const NAME_BYTES_MAX: usize = 255;
/// Longest tag in bytes (OCI distribution spec: 128).
const TAG_BYTES_MAX: usize = 128;

/// The name of a repository within one registry, such as `library/nginx`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// The name under which a registry is configured and known to clients: a host with an optional port (`ghcr.io`, `localhost:5001`),
/// or a single word. Always lower-case. It is an identity to look up, never an address to dial.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryName(Arc<str>);

/// A mutable name for a manifest within a repository.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// What stands behind `/manifests/`: a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// The text is no repository name, tag or reference; holds which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidName(&'static str);

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path components, at least one.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl RegistryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does the name look like a host (a dot, a port, or `localhost`)? Docker reads the first path component of an image name as
    /// a registry under the same rule.
    pub fn is_host_like(&self) -> bool {
        looks_like_host(&self.0)
    }
}

/// A name is looked up by its text: they hash alike and are equal alike.
impl Borrow<str> for RegistryName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Would docker read `component`, the first of an image name, as a registry host?
pub fn looks_like_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Reference {
    /// The tag, if this is one.
    pub fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }
}

/// One path component: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.chunk_by(|a, b| alphanumeric(a) == alphanumeric(b)).all(|run| {
        alphanumeric(&run[0])
            || matches!(run, b"." | b"_" | b"__")
            || run.iter().all(|byte| *byte == b'-')
    })
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= NAME_BYTES_MAX && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName(
                "not a repository name: want lower-case path components, at most 255 bytes",
            ))
        }
    }
}

impl FromStr for RegistryName {
    type Err = InvalidName;

    /// Upper-case letters are folded, because DNS names compare without case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.to_ascii_lowercase();
        let (host, port) =
            text.split_once(':').map_or((&*text, None), |(host, port)| (host, Some(port)));
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| {
                    byte.is_ascii_lowercase()
                        || byte.is_ascii_digit()
                        || matches!(byte, b'-' | b'_')
                })
        };
        let port_valid =
            port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number != 0));
        if text.len() <= NAME_BYTES_MAX && host.split('.').all(label) && port_valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName(
                "not a registry name: want a host with an optional port, such as ghcr.io",
            ))
        }
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let bytes = text.as_bytes();
        let valid = bytes.len() <= TAG_BYTES_MAX
            && bytes.first().is_some_and(word)
            && bytes.iter().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName("not a tag: want [A-Za-z0-9_][A-Za-z0-9._-]{0,127}"))
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    /// A colon decides: no tag holds one and every digest does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            let invalid =
                InvalidName("not a digest: want sha256:<64 lower-case hex digits> or sha512:<128>");
            text.parse().map(Self::Digest).map_err(|_unit| invalid)
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => fmt::Display::fmt(tag, f),
            Self::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_repositories_parse() {
        for good in
            ["nginx", "library/nginx", "a/b/c/d", "a.b", "a_b", "a__b", "a---b", "x1.y2-z3/w", "0"]
        {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good:?} must parse");
        }
    }

    #[test]
    fn hostile_names_do_not_parse() {
        let long = "a/".repeat(127) + "aa";
        let cases = [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", "A", "a..b", "a___b", "a._b", "-a", "a-",
            "a%2fb", "a b", "é", "a\0b", &long,
        ];
        for bad in cases {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?} must not parse");
        }
    }

    #[test]
    fn registry_names_fold_case_and_keep_the_port() {
        assert_eq!("GHCR.io".parse::<RegistryName>().unwrap().as_str(), "ghcr.io");
        assert_eq!("localhost:5001".parse::<RegistryName>().unwrap().as_str(), "localhost:5001");
        for bad in [
            "", ":5000", "a:", "a:0", "a:70000", "a..b", "a/b", "-a", "http://a", "a b", "[::1]",
            "a@b",
        ] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad:?} must not parse");
        }
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        assert!(matches!("v1.2_3-x".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(Digest::sha256_of(b"").to_string().parse(), Ok(Reference::Digest(_))));
        for bad in ["", ".x", "-x", "a/b", "a:b", "sha256:00", &"a".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} must not parse");
        }
    }
}
