//! Places in the lists of images: a repository with a tag, a digest, or both, as text.

use std::fmt;
use std::str::FromStr;

use super::error::{Error, Reason};
use crate::metadata::{RepositoryKey, SetMember};
use crate::oci::{Digest, Tag};

/// `docker.io/library/nginx:1.27@sha256:...`; of tag and digest, one may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) repository: RepositoryKey,
    pub(super) tag: Option<Tag>,
    pub(super) digest: Option<Digest>,
}

/// The text is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlace;

impl Place {
    /// Of a member of a set, with its digest.
    pub(super) fn of(member: &SetMember) -> Self {
        let SetMember { repository, digest, tag, .. } = member;
        Self { repository: repository.clone(), tag: tag.clone(), digest: Some(*digest) }
    }
}

/// How an image is called where it stands for itself: by its tag, or by its digest if it has none.
pub(super) fn short_name(repository: &RepositoryKey, tag: Option<&Tag>, digest: &Digest) -> String {
    match tag {
        Some(tag) => format!("{repository}:{tag}"),
        None => format!("{repository}@{digest}"),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let read = || {
            let (rest, digest) = match text.split_once('@') {
                Some((rest, digest)) => (rest, Some(digest.parse().ok()?)),
                None => (text, None),
            };
            let (upstream, rest) = rest.split_once('/')?;
            // A colon before the slash is a port's; no name of a repository has one.
            let (name, tag) = match rest.split_once(':') {
                Some((name, tag)) => (name, Some(tag.parse().ok()?)),
                None => (rest, None),
            };
            let (upstream, name) = (upstream.parse().ok()?, name.parse().ok()?);
            let known = tag.is_some() || digest.is_some();
            known.then_some(Self { repository: RepositoryKey { upstream, name }, tag, digest })
        };
        read().ok_or(NoPlace)
    }
}

impl From<NoPlace> for Error {
    fn from(_: NoPlace) -> Self {
        let message =
            "after is no place in this list; hand in `next` of the page before as it came";
        Self::new(Reason::Value, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let digest = Digest::sha256_of(b"x");
        for text in [
            "localhost:5001/a/b:v1".to_owned(),
            format!("docker.io/library/nginx@{digest}"),
            format!("docker.io/library/nginx:1.27@{digest}"),
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "nginx:1", "docker.io/a", "docker.io/A:b", "docker.io/a:", "docker.io/a@x"]
        {
            assert_eq!(text.parse::<Place>(), Err(NoPlace), "{text}");
        }
    }
}
