//! A set of images in one line: `REGISTRY[/REPOSITORY][:TAG | @DIGEST]`, where repository and tag may be glob patterns.
//!
//! `docker.io` is all of a registry, `ghcr.io/org/*` its repositories below `org/`, `docker.io/library/nginx:1.*` some tags of one
//! repository. The registry is never a pattern: what is pinned or frozen is named on purpose. A `*` stops at no slash, as in the rules of
//! the configuration.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};

use super::{Digest, RegistryName, RepositoryName, Tag};

/// Longest text of a scope: a registry, a repository and a tag or digest of full length, with room for the marks of patterns.
pub const SCOPE_BYTES_MAX: usize = 1024;

/// Which repositories, tags or revisions are meant.
#[derive(Clone)]
pub struct Scope {
    text: String,
    upstream: RegistryName,
    repository: Option<GlobMatcher>,
    reference: ScopeReference,
}

#[derive(Clone)]
enum ScopeReference {
    Any,
    Tags(GlobMatcher),
    Revision(Digest),
}

/// Why a text is no scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidScope(String);

impl Scope {
    /// As it was written, in the canonical form of the registry's name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn upstream(&self) -> &RegistryName {
        &self.upstream
    }

    /// Does it name one revision by its digest?
    pub fn digest(&self) -> Option<&Digest> {
        match &self.reference {
            ScopeReference::Revision(digest) => Some(digest),
            ScopeReference::Any | ScopeReference::Tags(_) => None,
        }
    }

    pub fn covers_repository(&self, upstream: &RegistryName, name: &RepositoryName) -> bool {
        self.upstream == *upstream
            && self.repository.as_ref().is_none_or(|pattern| pattern.is_match(name.as_str()))
    }

    /// Is the tag of a repository meant, by a pattern or because all of them are? One revision by its digest means no tag.
    pub fn covers_tag(&self, upstream: &RegistryName, name: &RepositoryName, tag: &Tag) -> bool {
        self.covers_repository(upstream, name)
            && match &self.reference {
                ScopeReference::Any => true,
                ScopeReference::Tags(pattern) => pattern.is_match(tag.as_str()),
                ScopeReference::Revision(_) => false,
            }
    }

    /// Is the revision of a repository meant, whatever tags point at it?
    pub fn covers_revision(
        &self,
        upstream: &RegistryName,
        name: &RepositoryName,
        digest: &Digest,
    ) -> bool {
        self.covers_repository(upstream, name)
            && match &self.reference {
                ScopeReference::Any => true,
                ScopeReference::Tags(_) => false,
                ScopeReference::Revision(wanted) => wanted == digest,
            }
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        if text.len() > SCOPE_BYTES_MAX {
            return Err(InvalidScope(format!("it is longer than {SCOPE_BYTES_MAX} bytes")));
        }
        let (upstream, rest) = match text.split_once('/') {
            Some((upstream, rest)) => (upstream, Some(rest)),
            None => (text, None),
        };
        let upstream: RegistryName =
            upstream.parse().map_err(|error| InvalidScope(format!("{upstream:?}: {error}")))?;
        let (repository, reference) = match rest {
            None => (None, ScopeReference::Any),
            Some(rest) => {
                let (repository, reference) = split(rest)?;
                (Some(glob(repository)?), reference)
            }
        };
        let text = rest.map_or_else(|| upstream.to_string(), |rest| format!("{upstream}/{rest}"));
        Ok(Self { text, upstream, repository, reference })
    }
}

/// The repository's part, and what follows it.
fn split(rest: &str) -> Result<(&str, ScopeReference), InvalidScope> {
    if let Some((repository, digest)) = rest.split_once('@') {
        let digest =
            digest.parse().map_err(|error| InvalidScope(format!("{digest:?}: {error}")))?;
        return Ok((repository, ScopeReference::Revision(digest)));
    }
    match rest.split_once(':') {
        Some((repository, tags)) => Ok((repository, ScopeReference::Tags(glob(tags)?))),
        None => Ok((rest, ScopeReference::Any)),
    }
}

fn glob(text: &str) -> Result<GlobMatcher, InvalidScope> {
    if text.is_empty() {
        return Err(InvalidScope("a name is missing".to_owned()));
    }
    let glob = Glob::new(text).map_err(|error| InvalidScope(format!("{text:?}: {error}")))?;
    Ok(glob.compile_matcher())
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.text)
    }
}

impl PartialEq for Scope {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Scope {}

impl fmt::Display for InvalidScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; want REGISTRY[/REPOSITORY][:TAG or @DIGEST], where repository and tag may be patterns such as \"library/*\" and \"1.*\"",
            self.0
        )
    }
}

impl std::error::Error for InvalidScope {}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(scope: &str, image: &str) -> bool {
        let (upstream, rest) = image.split_once('/').unwrap();
        let (name, tag) = rest.split_once(':').unwrap();
        let scope: Scope = scope.parse().unwrap();
        scope.covers_tag(&upstream.parse().unwrap(), &name.parse().unwrap(), &tag.parse().unwrap())
    }

    #[test]
    fn a_scope_covers_what_it_says() {
        let nginx = "docker.io/library/nginx:1.27";
        for scope in [
            "docker.io",
            "docker.io/library/nginx",
            "docker.io/library/*",
            "docker.io/*nginx",
            "docker.io/library/nginx:1.27",
            "docker.io/library/nginx:1.*",
            "docker.io/*:1.2?",
        ] {
            assert!(covers(scope, nginx), "{scope}");
        }
        for scope in [
            "ghcr.io",
            "docker.io/library/ngin",
            "docker.io/nginx",
            "docker.io/library/nginx:1",
            "docker.io/library/nginx:2.*",
        ] {
            assert!(!covers(scope, nginx), "{scope}");
        }
    }

    #[test]
    fn a_digest_means_the_revision_and_no_tag() {
        let digest = Digest::sha256_of(b"x");
        let scope: Scope = format!("ghcr.io/a/b@{digest}").parse().unwrap();
        let (upstream, name) = ("ghcr.io".parse().unwrap(), "a/b".parse().unwrap());
        assert_eq!(scope.digest(), Some(&digest));
        assert!(scope.covers_revision(&upstream, &name, &digest));
        assert!(!scope.covers_revision(&upstream, &name, &Digest::sha256_of(b"y")));
        assert!(!scope.covers_tag(&upstream, &name, &"v1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_scope_says_why() {
        for text in [
            "",
            "/a",
            "docker.io/",
            "docker.io/a:",
            "docker.io/a@sha256:ab",
            "docker.io/[a",
            "*.io/a",
            &format!("docker.io/{}", "a".repeat(SCOPE_BYTES_MAX)),
        ] {
            let error = text.parse::<Scope>().unwrap_err().to_string();
            assert!(error.contains("REGISTRY"), "{text}: {error}");
        }
        assert_eq!("Docker.IO/a:b".parse::<Scope>().unwrap().to_string(), "docker.io/a:b");
    }
}
