//! The names of images, as people type them, and what they mean here.
//!
//! What must hold: a name means the same repository as on the data plane (bare names go to the default upstream, one-component names of
//! Docker Hub get `library/`); whatever is no name is refused with the form that is wanted. A registry that is not configured any more may
//! still have content here, so its names are read too; who finds nothing under them says that it is unknown.

use std::fmt;

use super::error::{Error, Reason};
use crate::metadata::{RepositoryKey, Within};
use crate::oci::{
    Digest, RegistryName, RepositoryName, SCOPE_BYTES_MAX, Scope, Tag, looks_like_host,
};
use crate::proxy::Proxied;
use crate::registry::as_of;
use crate::registry::locate::{Addressing, Repository, Upstreams};
use crate::registry::{self};

/// Longest name of an image: a registry and a repository (255 bytes each), a tag (128), the longest digest (135), and the marks between.
pub const IMAGE_BYTES_MAX: usize = 1024;
/// The tag that docker means when none is said.
const TAG_DEFAULT: &str = "latest";
/// What makes a component of a scope a pattern.
const GLOB_MARKS: [char; 5] = ['*', '?', '[', '{', '\\'];
/// What is wanted in place of a name that cannot be read.
const WANTED: &str = "want [REGISTRY/]REPOSITORY[:TAG][@DIGEST], such as nginx:1.27, docker.io/library/nginx or ghcr.io/org/app@sha256:...";

/// An image that somebody named.
#[derive(Clone, Debug)]
pub struct Image {
    pub(super) key: RepositoryKey,
    /// `None`: its registry is not configured.
    pub(super) repository: Option<Repository>,
    pub(super) tag: Option<Tag>,
    pub(super) digest: Option<Digest>,
}

/// The parts of a name.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    name: &'a str,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl Image {
    pub fn key(&self) -> &RepositoryKey {
        &self.key
    }

    /// As the proxy is asked for it; `None`: its registry is not configured.
    pub fn proxied(&self) -> Option<&Proxied> {
        self.repository.as_ref().map(Repository::proxied)
    }

    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Is the text written like the name of an image? What it means, and whether its registry is configured, is not looked at.
    pub fn check(text: &str) -> Result<(), Error> {
        let Parts { name, .. } = split(text)?;
        if name.chars().all(|found| found.is_ascii_graphic()) {
            return Ok(());
        }
        Err(Error::new(Reason::Image, format!("{:?} is no image; {WANTED}", shown(text))))
    }

    /// Reads a name.
    pub(super) fn read(text: &str, upstreams: &Upstreams) -> Result<Self, Error> {
        let Parts { name, tag, digest } = split(text)?;
        let (key, repository) = repository(text, name, upstreams)?;
        Ok(Self { key, repository, tag, digest })
    }

    /// The tag that is meant: the one that was said, or `latest` if neither tag nor digest was.
    pub fn tag_meant(&self) -> Option<Tag> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(TAG_DEFAULT.parse().expect("it is a tag")),
        }
    }

    /// The same image with the tag that is meant, for answers.
    pub(super) fn meant(self) -> Self {
        Self { tag: self.tag_meant(), ..self }
    }

    /// Nothing is known of it.
    pub(super) fn unknown(&self) -> Error {
        match self.repository {
            None => not_configured(self.key.upstream.as_str()),
            Some(_) => Error::new(
                Reason::UnknownImage,
                format!(
                    "nothing is known of {self}: it was never pulled through here, or it was deleted"
                ),
            ),
        }
    }
}

impl fmt::Display for Image {
    /// In full.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A registry with everything in it, or one repository. The flag says whether the registry is configured.
pub(super) fn within(text: &str, upstreams: &Upstreams) -> Result<(Within, bool), Error> {
    let text_ok = !text.is_empty() && text.len() <= IMAGE_BYTES_MAX;
    let refuse = || {
        let what = "want a registry such as docker.io, or a repository such as ghcr.io/org/app";
        Error::new(
            Reason::Image,
            format!("{:?} is neither a registry nor a repository; {what}", shown(text)),
        )
    };
    if !text_ok {
        return Err(refuse());
    }
    if !text.contains('/') {
        if let Some(name) = upstreams.name_of(text) {
            return Ok((Within::Upstream(name), true));
        }
        if let Some(name) = registry_alone(text) {
            return Ok((Within::Upstream(name), false));
        }
    }
    let Parts { name, tag, digest } = split(text)?;
    if tag.is_some() || digest.is_some() {
        return Err(refuse());
    }
    let (key, repository) = repository(text, name, upstreams)?;
    Ok((Within::Repository(key), repository.is_some()))
}

/// The scope of a rule, with the full name of its registry and repository.
pub(super) fn scope(text: &str, upstreams: &Upstreams) -> Result<Scope, Error> {
    let refuse = |why: &dyn fmt::Display| {
        Error::new(Reason::Scope, format!("{:?} is no scope: {why}", shown(text)))
    };
    if text.len() > SCOPE_BYTES_MAX {
        return Err(refuse(&format_args!("it is longer than {SCOPE_BYTES_MAX} bytes")));
    }
    let (first, rest) = match text.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (text, None),
    };
    let (upstream, rest) = match (upstreams.name_of(first), rest) {
        (Some(name), rest) => (name, rest.map(ToOwned::to_owned)),
        (None, Some(_)) if looks_like_host(first) => return Err(not_configured(first)),
        (None, None) if registry_alone(first).is_some() => return Err(not_configured(first)),
        (None, _) if first.is_empty() => return Err(refuse(&"a name is missing")),
        (None, _) => {
            let name = upstreams.default_name().ok_or_else(|| not_configured(""))?;
            (name, Some(text.to_owned()))
        }
    };
    let full = match rest {
        None => upstream.to_string(),
        Some(rest) => {
            let library = if upstreams.has_library(&upstream) && is_one_name(&rest) {
                "library/"
            } else {
                ""
            };
            format!("{upstream}/{library}{rest}")
        }
    };
    full.parse().map_err(|error| refuse(&error))
}

/// A text without a slash that can only be a registry: `localhost:5001` and `ghcr.io` are, `postgres:16` is a tag.
fn registry_alone(text: &str) -> Option<RegistryName> {
    let host = text.split(':').next().unwrap_or_default();
    if looks_like_host(host) { text.parse().ok() } else { None }
}

/// Is what stands before the tag or digest a single component and no pattern?
fn is_one_name(rest: &str) -> bool {
    let name = rest.split(['@', ':']).next().unwrap_or_default();
    !name.is_empty() && !name.contains('/') && !name.contains(GLOB_MARKS)
}

/// A digest that stands alone.
pub(super) fn digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|_invalid| {
        let wanted = "want sha256:<64 lower-case hex digits> or sha512:<128>";
        Error::new(Reason::Digest, format!("{:?} is no digest; {wanted}", shown(text)))
    })
}

/// What is no name of a registry that is served here.
pub(super) fn not_configured(name: &str) -> Error {
    let name = shown(name);
    let message = format!(
        "{name:?} is no registry that is configured here; add [upstream.{name:?}] to the configuration, or check the spelling"
    );
    Error::new(Reason::UnknownRegistry, message)
}

/// Nothing is known of a registry or a repository.
pub(super) fn nothing_within(within: &Within, configured: bool) -> Error {
    let name = match within {
        Within::Upstream(name) => name.to_string(),
        Within::Repository(key) => key.to_string(),
    };
    let upstream = match within {
        Within::Upstream(name) => name,
        Within::Repository(key) => &key.upstream,
    };
    if !configured {
        return not_configured(upstream.as_str());
    }
    let message = format!(
        "nothing is known of {name}: nothing of it was ever pulled through here, or it was deleted"
    );
    Error::new(Reason::UnknownImage, message)
}

/// The rows are in trouble.
pub(super) fn unreadable() -> Error {
    Error::new(Reason::Store, "the metadata cannot be read now; the log says why")
}

fn split(text: &str) -> Result<Parts<'_>, Error> {
    let refuse = |why: &dyn fmt::Display| {
        Error::new(Reason::Image, format!("{:?} is no image: {why}; {WANTED}", shown(text)))
    };
    if text.len() > IMAGE_BYTES_MAX {
        return Err(refuse(&format_args!("it is longer than {IMAGE_BYTES_MAX} bytes")));
    }
    if text.contains("://") {
        return Err(refuse(&"names have no scheme such as https:// or docker://"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest.parse().map_err(|_invalid| {
                refuse(&"what follows the @ is no digest (sha256:<64 lower-case hex digits>)")
            })?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    // The colon of a port stands before a slash.
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last..].split_once(':') {
        Some((component, tag)) => {
            let tag = tag.parse().map_err(|error| refuse(&error))?;
            (&rest[..last + component.len()], Some(tag))
        }
        None => (rest, None),
    };
    if name.is_empty() {
        return Err(refuse(&"the name of a repository is missing"));
    }
    Ok(Parts { name, tag, digest })
}

/// The repository of a name; without what the data plane needs if its registry is not configured.
fn repository(
    text: &str,
    name: &str,
    upstreams: &Upstreams,
) -> Result<(RepositoryKey, Option<Repository>), Error> {
    let refuse = |why: &dyn fmt::Display| {
        Error::new(Reason::Image, format!("{:?} is no image: {why}; {WANTED}", shown(text)))
    };
    if as_of::is_marked(name) {
        return Err(refuse(&"moments of the past are for pulls, and `history` lists them here"));
    }
    // A registry alone would be taken for a repository of the default one.
    if !name.contains('/') && upstreams.name_of(name).is_some() {
        return Err(refuse(&"this is a registry, and the repository is missing"));
    }
    match upstreams.locate(&Addressing { path: name, ..Addressing::default() }) {
        Ok(found) => {
            let key =
                RepositoryKey { upstream: found.upstream().clone(), name: found.name().clone() };
            Ok((key, Some(found)))
        }
        Err(registry::Error::UnknownRegistry { name: unknown }) => {
            let key = name.split_once('/').and_then(|(upstream, rest)| {
                let name = rest.parse::<RepositoryName>().ok()?;
                Some(RepositoryKey { upstream: upstream.parse().ok()?, name })
            });
            key.map(|key| (key, None)).ok_or_else(|| not_configured(&unknown))
        }
        Err(registry::Error::NameInvalid { message }) => Err(refuse(&message)),
        Err(_other) => Err(refuse(&"it cannot be located")),
    }
}

/// What was typed, short enough for a message.
fn shown(text: &str) -> String {
    const SHOWN: usize = 200;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(SHOWN).collect();
    short.push('…');
    short
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
