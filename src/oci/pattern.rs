//! Patterns that an operator writes for more than one tag or host.
//!
//! What must hold: a pattern that exists is a good one, so that whoever matches with it has no error to handle. A [`Scope`](super::Scope)
//! names its registry and has a pattern for each part of a name; a [`TagPattern`] is one glob over `name:tag`, so its `*` may span the
//! colon. The two share nothing but the crate that reads globs.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};

use super::{RegistryName, RepositoryName, Tag};

/// What stands for the label in a family of hosts.
const STAR: &str = "*";

/// A glob over the tags of one upstream: over `name:tag` if it contains a colon (`library/*:latest`), else over the tag alone (`v*`).
#[derive(Clone)]
pub struct TagPattern {
    matcher: GlobMatcher,
    /// Does it say which repositories are meant?
    qualified: bool,
}

/// Why a text is no [`TagPattern`]; names the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidTagPattern(globset::Error);

/// A family of hosts with one suffix: `*.pkg.dev` are all hosts with exactly one label before `.pkg.dev`, without a port.
///
/// The suffix has at least two labels, so that no client can choose a domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostFamily(String);

/// Why a text is no [`HostFamily`]; names the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidHostFamily(String);

impl TagPattern {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.matcher.glob().glob()
    }

    /// Is the tag of the repository meant?
    pub fn covers(&self, name: &RepositoryName, tag: &Tag) -> bool {
        if self.qualified {
            self.matcher.is_match(format!("{name}:{tag}"))
        } else {
            self.matcher.is_match(tag.as_str())
        }
    }
}

impl FromStr for TagPattern {
    type Err = InvalidTagPattern;

    fn from_str(text: &str) -> Result<Self, InvalidTagPattern> {
        let matcher = Glob::new(text).map_err(InvalidTagPattern)?.compile_matcher();
        Ok(Self { matcher, qualified: text.contains(':') })
    }
}

impl fmt::Debug for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TagPattern({})", self.as_str())
    }
}

impl PartialEq for TagPattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for TagPattern {}

impl fmt::Display for InvalidTagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for InvalidTagPattern {}

impl HostFamily {
    /// In lower case, with its star.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is that a host of the family? The star stands for one label, as in a certificate.
    pub fn has_member(&self, name: &RegistryName) -> bool {
        let suffix = &self.0[STAR.len()..];
        name.as_str()
            .strip_suffix(suffix)
            .is_some_and(|label| !label.is_empty() && !label.contains(['.', ':']))
    }
}

impl FromStr for HostFamily {
    type Err = InvalidHostFamily;

    fn from_str(text: &str) -> Result<Self, InvalidHostFamily> {
        let text = text.to_ascii_lowercase();
        let rest = text.strip_prefix(STAR).and_then(|suffix| suffix.strip_prefix('.'));
        let is_domain = |rest: &str| {
            rest.contains('.') && !rest.contains(':') && rest.parse::<RegistryName>().is_ok()
        };
        if rest.is_some_and(is_domain) { Ok(Self(text)) } else { Err(InvalidHostFamily(text)) }
    }
}

impl fmt::Display for HostFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostFamily({})", self.0)
    }
}

impl fmt::Display for InvalidHostFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.0;
        write!(f, "{text:?} is no family of hosts; want \"*.\" and a domain, such as \"*.pkg.dev\"")
    }
}

impl std::error::Error for InvalidHostFamily {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_pattern_is_of_the_tag_alone_unless_it_has_a_colon() {
        let (name, tag) = ("library/nginx".parse().unwrap(), "v1.27".parse().unwrap());
        for (pattern, wanted) in [
            ("v*", true),
            ("v1.2?", true),
            ("1*", false),
            ("library/nginx", false),
            ("library/*:v1.*", true),
            ("*:v1.27", true),
            ("lib*", false),
            ("lib*:*", true),
            ("nginx:v*", false),
        ] {
            let pattern: TagPattern = pattern.parse().unwrap();
            assert_eq!(pattern.covers(&name, &tag), wanted, "{pattern:?}");
        }
    }

    #[test]
    fn what_is_no_glob_is_named() {
        let error = "v[".parse::<TagPattern>().unwrap_err().to_string();
        assert!(error.contains("v["), "{error}");
    }

    #[test]
    fn a_family_has_hosts_with_one_label_more() {
        let family: HostFamily = "*.PKG.dev".parse().unwrap();
        assert_eq!(family.as_str(), "*.pkg.dev");
        for (name, wanted) in [
            ("europe-docker.pkg.dev", true),
            ("pkg.dev", false),
            ("a.b.pkg.dev", false),
            ("a.pkg.dev:443", false),
            ("apkg.dev", false),
            ("a.pkg.dev.example.com", false),
        ] {
            assert_eq!(family.has_member(&name.parse().unwrap()), wanted, "{name}");
        }
    }

    #[test]
    fn families_are_closed() {
        for bad in
            ["*", "*.dev", "pkg.dev", "*.*.dev", "a.*.dev", "**.pkg.dev", "*.pkg.dev:5000", ""]
        {
            let error = bad.parse::<HostFamily>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?} is no family")), "{error}");
        }
    }
}
