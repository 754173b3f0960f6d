//! Deletion by clients, where the operator allows it.
//!
//! What must hold: only who may pull from the repository may delete in it, and what a pin, a freeze or a present revision wants stays; the
//! desk's words say what that is. There is no force here: that is the operator's. What was deleted is not found by the next request.

use super::desk::{Hold, HoldsAsked, holds};
use super::error::{Error, Refusal};
use super::locate::Repository;
use super::reply::{Answer, Outcome, Reply, Report};
use super::service::Registry;
use crate::metadata;
use crate::oci::{Digest, Tag};

/// Things that keep content which a refusal names; the others are counted.
const NAMED_MAX: usize = 10;

/// What a client wants to go.
#[derive(Clone, Copy, Debug)]
pub enum Removal<'a> {
    /// The tag with its whole timeline.
    Tag(&'a Tag),
    /// One revision of a tag; the tag too, if it points at it now.
    Link(&'a Tag, &'a Digest),
    /// The revision, with the tags that point at it now.
    Revision(&'a Digest),
}

impl Registry {
    /// Takes something out of a repository whose upstream [allows it](Repository::allows_delete), which the caller has asked. The content
    /// stays for the grace time.
    pub async fn delete(&self, repository: &Repository, what: Removal<'_>) -> Answer<()> {
        // No tag and no digest: they may be gone upstream, which is no reason to keep them here.
        if let Err(error) = self.proxy().gate(repository.proxied()).await {
            return Err(super::service::refuse(repository, Error::NotStored, error));
        }
        let report = |outcome, reason| Report::of(Some(repository.upstream()), outcome, reason);
        let refused =
            |error, reason| Err(Refusal { error, report: report(Outcome::Refused, Some(reason)) });
        match self.removed(repository, what).await {
            Ok(Removed::Gone) => Ok(Reply { value: (), report: report(Outcome::Deleted, None) }),
            Ok(Removed::Unknown) => refused(Error::NotStored, "absent"),
            Ok(Removed::Held(holds)) => {
                refused(Error::Denied { message: in_words(&holds) }, "held")
            }
            Err(error) => {
                tracing::warn!(?error, "a deletion failed");
                let error = Error::Internal { message: "the deletion failed".to_owned() };
                Err(Refusal { error, report: report(Outcome::Error, Some("store")) })
            }
        }
    }

    async fn removed(
        &self,
        repository: &Repository,
        what: Removal<'_>,
    ) -> Result<Removed, metadata::Error> {
        let (metadata, key) = (self.content().metadata(), repository.proxied().key());
        let known = match what {
            Removal::Tag(tag) => metadata.tag(key, tag).await?.is_some(),
            Removal::Link(tag, digest) => metadata.was_tagged(key, tag, digest).await?,
            Removal::Revision(digest) => metadata.revision(key, digest).await?.is_some(),
        };
        if !known {
            return Ok(Removed::Unknown);
        }
        let asked = match what {
            Removal::Tag(tag) => HoldsAsked::Tag(tag),
            Removal::Link(tag, digest) => HoldsAsked::Link(tag, digest),
            Removal::Revision(digest) => HoldsAsked::Revision(digest),
        };
        let holds = holds(metadata, key, asked, self.proxy().now()).await?;
        if !holds.is_empty() {
            return Ok(Removed::Held(holds));
        }
        let deleted = match what {
            Removal::Tag(tag) => metadata.delete_tag(key, tag).await?,
            Removal::Link(tag, digest) => metadata.delete_link(key, tag, digest).await?,
            Removal::Revision(digest) => metadata.delete_revision(key, digest).await?,
        };
        if !deleted.found {
            return Ok(Removed::Unknown);
        }
        tracing::info!(
            upstream = %key.upstream, repository = %key.name, tags = deleted.tags.len(),
            revisions = deleted.revisions.len(), "deleted for a client"
        );
        Ok(Removed::Gone)
    }
}

/// How a deletion went.
enum Removed {
    Gone,
    Unknown,
    Held(Vec<Hold>),
}

fn in_words(holds: &[Hold]) -> String {
    let named: Vec<&str> = holds.iter().take(NAMED_MAX).map(|hold| hold.what.as_str()).collect();
    let mut text = format!("it is kept: {}", named.join("; "));
    if holds.len() > NAMED_MAX {
        text += &format!("; and {} more", holds.len() - NAMED_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_keeps_it() {
        let hold = |number: usize| Hold { by: "pin".to_owned(), what: format!("pin {number}") };
        let holds: Vec<Hold> = (1..=NAMED_MAX + 2).map(hold).collect();
        assert_eq!(in_words(&holds[..2]), "it is kept: pin 1; pin 2");
        let text = in_words(&holds);
        assert!(text.ends_with("pin 10; and 2 more"), "{text}");
    }
}
