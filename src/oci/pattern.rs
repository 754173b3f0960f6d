//! Patterns that an operator writes for more than one tag or host.
//!
//! What must hold: a pattern that exists is a good one, so that whoever matches with it has no error to handle. A [`Scope`](super::Scope)
//! names its registry and has a pattern for each part of a name; a [`TagPattern`] is one glob over `name:tag`, so its `*` may span the
//! colon. The two share nothing but the crate that reads globs.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};

use super::{RepositoryName, Tag};

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
}
