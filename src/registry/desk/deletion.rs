//! Deletion: what may go, what it would break, and what is left broken if somebody insists.
//!
//! What must hold: without force nothing goes that a pin, a freeze or a present revision wants; a refusal lists what keeps it and changes
//! nothing; force says which images are incomplete afterwards. Tags and revisions leave at once, their content after the grace time.

use super::error::{Error, Reason};
use super::image::{self, Image};
use super::inspect::{named, needed_by, of_need, of_policy};
use super::model::{Deletion, Hold};
use super::service::{Desk, never_of_the_tag};
use crate::clock::Timestamp;
use crate::content::{HOLDERS_MAX, KeepVerdict, Left, rules_on_link, verdict};
use crate::metadata::{
    self, Deleted, Holder, Holders, Metadata, RepositoryKey, Rule, RuleKind, Rules,
};
use crate::oci::{Digest, Tag};
use crate::registry::Removal;

/// What keeps it: rules of the operator, and present revisions of the repository that need it.
pub(in crate::registry) async fn holds(
    metadata: &Metadata,
    key: &RepositoryKey,
    what: Removal<'_>,
    now: Timestamp,
) -> Result<Vec<Hold>, metadata::Error> {
    let rules = metadata.rules();
    Ok(match what {
        Removal::Tag(tag) => {
            let mut holds = rules_on_tag(&rules, now, key, tag);
            holds.extend(sets_on_tag(metadata, key, tag, None).await?);
            holds
        }
        Removal::Link(tag, digest) => {
            let holders = metadata.holders(digest, HOLDERS_MAX).await?;
            let mut own = holders.revisions.iter();
            let own = own.find(|own| own.repository == *key && own.revision == *digest);
            let mut holds = match own.filter(|_all_links_known| !holders.more) {
                Some(own) => {
                    rules_on_link(own, tag, &rules, now).into_iter().map(of_rule).collect()
                }
                // Nobody knows whether it is the one that is wanted.
                None => rules_on_tag(&rules, now, key, tag),
            };
            holds.extend(sets_on_tag(metadata, key, tag, Some(digest)).await?);
            holds
        }
        Removal::Revision(digest) => {
            let holders = metadata.holders(digest, HOLDERS_MAX).await?;
            let mut holds = rules_on_revision(&rules, now, key, (digest, &holders));
            holds.extend(needed_in(key, digest, &holders));
            holds
        }
    })
}

/// Takes it out of the rows, whatever keeps it.
pub(in crate::registry) async fn delete(
    metadata: &Metadata,
    key: &RepositoryKey,
    what: Removal<'_>,
) -> Result<Deleted, metadata::Error> {
    match what {
        Removal::Tag(tag) => metadata.delete_tag(key, tag).await,
        Removal::Link(tag, digest) => metadata.delete_link(key, tag, digest).await,
        Removal::Revision(digest) => metadata.delete_revision(key, digest).await,
    }
}

impl Desk {
    /// Deletes a tag (`repository:tag`), one revision of a tag (`repository:tag@digest`) or a revision (`repository@digest`).
    pub async fn delete_image(&self, text: &str, force: bool) -> Result<Deletion, Error> {
        let image = self.image(text)?;
        match (&image.tag, &image.digest) {
            (Some(tag), digest) => self.delete_tagged(&image, tag, digest.as_ref(), force).await,
            (None, Some(digest)) => self.delete_revision(&image, digest, force).await,
            (None, None) => {
                let name = &image.key;
                let message = format!(
                    "{name} is a whole repository; say which tag ({name}:latest) or revision ({name}@sha256:...), or purge it"
                );
                Err(Error::new(Reason::Image, message))
            }
        }
    }

    /// Deletes a tag, or one revision of it.
    async fn delete_tagged(
        &self,
        image: &Image,
        tag: &Tag,
        digest: Option<&Digest>,
        force: bool,
    ) -> Result<Deletion, Error> {
        if self.metadata().tag(&image.key, tag).await?.is_none() {
            return Err(image.unknown());
        }
        let what = match digest {
            None => Removal::Tag(tag),
            Some(digest) if self.metadata().was_tagged(&image.key, tag, digest).await? => {
                Removal::Link(tag, digest)
            }
            Some(_) => return Err(never_of_the_tag(image)),
        };
        refuse_held(image, holds(self.metadata(), &image.key, what, self.now()).await?, force)?;
        let deleted = delete(self.metadata(), &image.key, what).await?;
        self.done(image, deleted)
    }

    async fn delete_revision(
        &self,
        image: &Image,
        digest: &Digest,
        force: bool,
    ) -> Result<Deletion, Error> {
        if self.metadata().revision(&image.key, digest).await?.is_none() {
            return Err(image.unknown());
        }
        let holders = self.metadata().holders(digest, HOLDERS_MAX).await?;
        let needed = needed_in(&image.key, digest, &holders);
        let mut holds =
            rules_on_revision(&self.rules(), self.now(), &image.key, (digest, &holders));
        holds.extend(needed.iter().cloned());
        refuse_held(image, holds, force)?;
        let forced = if needed.is_empty() {
            Deletion::default()
        } else {
            // First, so that an order that is cut short can be given again: the revision is still known then.
            self.take_bytes(digest, Some(&image.key)).await?
        };
        let deleted = delete(self.metadata(), &image.key, Removal::Revision(digest)).await?;
        let Deletion { removed, incomplete, .. } = forced;
        Ok(Deletion { removed, incomplete, ..self.done(image, deleted)? })
    }

    /// Takes the bytes of a blob or manifest away, wherever it belongs.
    pub async fn delete_blob(&self, text: &str, force: bool) -> Result<Deletion, Error> {
        let digest = image::digest(text)?;
        let not_here = |message: String| Error::new(Reason::UnknownDigest, message);
        match self.metadata().object(&digest).await? {
            Some(object) if object.present => {}
            Some(_) => {
                return Err(not_here(format!("{digest} is known, and its bytes are not here")));
            }
            None => return Err(not_here(format!("nothing is known of {digest}"))),
        }
        let holders = self.metadata().holders(&digest, HOLDERS_MAX).await?;
        if !force {
            let policy = &self.settings().policy;
            let kept = match verdict(&holders, &self.rules(), policy, self.now()) {
                KeepVerdict::Kept(kept) => Some(of_policy(&kept)),
                KeepVerdict::Free | KeepVerdict::Last => None,
            };
            let needing = holders.revisions.iter().filter(|holder| !holder.over_subject);
            let live = needing.filter(|holder| holder.unlinked.is_none());
            let holds: Vec<Hold> = kept.into_iter().chain(live.map(of_need)).collect();
            refuse_held(&digest, holds, force)?;
        }
        let deletion = self.take_bytes(&digest, None).await?;
        if deletion.removed.is_empty() {
            return Err(not_here(format!("the bytes of {digest} are not here any more")));
        }
        Ok(deletion)
    }

    /// Takes bytes away at once, and tells who is incomplete for it; not the revision itself where it is `leaving` anyway.
    async fn take_bytes(
        &self,
        digest: &Digest,
        leaving: Option<&RepositoryKey>,
    ) -> Result<Deletion, Error> {
        let mut deletion = Deletion::default();
        let left = self.content().remove(digest).await.map_err(|error| {
            tracing::warn!(?error, %digest, "content could not be removed");
            Error::new(
                Reason::Store,
                format!("the bytes of {digest} could not be removed; the log says why"),
            )
        })?;
        if matches!(left, Left::Gone(_)) {
            tracing::info!(%digest, "the bytes of an object were removed on order");
            deletion.removed.push(digest.to_string());
        }
        // Asked afterwards: what came to need it meanwhile is incomplete as well.
        let holders = self.metadata().holders(digest, HOLDERS_MAX).await?;
        let leaves =
            |holder: &Holder| holder.revision == *digest && leaving == Some(&holder.repository);
        let needing = holders.revisions.iter().filter(|holder| !holder.over_subject);
        let stay = needing.filter(|holder| holder.unlinked.is_none());
        deletion.incomplete.extend(stay.filter(|holder| !leaves(holder)).map(named));
        if holders.more {
            deletion.incomplete.push("and more".to_owned());
        }
        Ok(deletion)
    }

    /// What was deleted, for the answer.
    fn done(&self, image: &Image, deleted: Deleted) -> Result<Deletion, Error> {
        if !deleted.found {
            return Err(image.unknown());
        }
        tracing::info!(%image, tags = deleted.tags.len(), revisions = deleted.revisions.len(), "deleted on order");
        let waits = !deleted.revisions.is_empty();
        Ok(Deletion {
            tags: deleted.tags.iter().map(|tag| format!("{}:{tag}", image.key)).collect(),
            revisions: deleted.revisions.iter().map(|one| format!("{}@{one}", image.key)).collect(),
            collected_after: waits.then(|| self.now().plus(self.settings().delete_grace)),
            ..Deletion::default()
        })
    }
}

/// Kept sets that want the tag where it is: they have the revision that it points at now, or the one that is to be taken out of it.
async fn sets_on_tag(
    metadata: &Metadata,
    key: &RepositoryKey,
    tag: &Tag,
    digest: Option<&Digest>,
) -> Result<Vec<Hold>, metadata::Error> {
    let record = metadata.tag(key, tag).await?;
    let Some(digest) = digest.copied().or(record.and_then(|record| record.digest)) else {
        return Ok(Vec::new());
    };
    let holders = metadata.holders(&digest, HOLDERS_MAX).await?;
    let own = holders
        .revisions
        .iter()
        .filter(|holder| holder.repository == *key && holder.revision == digest);
    let sets = own.flat_map(|holder| &holder.sets);
    let hold = |set| Hold { by: "set".to_owned(), what: format!("set {set}, which is pinned") };
    Ok(sets.map(hold).collect())
}

/// Pins and freezes that mean this tag.
fn rules_on_tag(rules: &Rules, now: Timestamp, key: &RepositoryKey, tag: &Tag) -> Vec<Hold> {
    let all = [RuleKind::Pin, RuleKind::Freeze].into_iter();
    let all = all.flat_map(|kind| rules.in_force(kind, now));
    all.filter(|rule| rule.scope.covers_tag(&key.upstream, &key.name, tag)).map(of_rule).collect()
}

fn of_rule(rule: &Rule) -> Hold {
    let by = match rule.kind {
        RuleKind::Pin => "pin",
        RuleKind::Freeze => "freeze",
    };
    Hold { by: by.to_owned(), what: format!("{by} {} of {}", rule.id, rule.scope) }
}

/// Pins that mean this revision, by itself or by a tag of the repository that points at it now, and freezes of such tags.
fn rules_on_revision(
    rules: &Rules,
    now: Timestamp,
    key: &RepositoryKey,
    (digest, holders): (&Digest, &Holders),
) -> Vec<Hold> {
    let here = holders
        .revisions
        .iter()
        .filter(|holder| holder.repository == *key && holder.revision == *digest);
    let only = Holders { revisions: here.cloned().collect(), ..Holders::default() };
    let rules = rules.without_switches();
    match verdict(&only, &rules, &crate::content::KeepPolicy::default(), now) {
        KeepVerdict::Kept(kept) => vec![of_policy(&kept)],
        KeepVerdict::Free | KeepVerdict::Last => Vec::new(),
    }
}

/// Revisions of the repository that need it and do not wait for their own end.
fn needed_in(key: &RepositoryKey, digest: &Digest, holders: &Holders) -> Vec<Hold> {
    needed_by(holders, digest).filter(|holder| holder.repository == *key).map(of_need).collect()
}

/// Without force, what is held stays.
fn refuse_held(what: &impl std::fmt::Display, holds: Vec<Hold>, force: bool) -> Result<(), Error> {
    if force || holds.is_empty() {
        return Ok(());
    }
    let message =
        format!("{what} is kept by {}; take that back first, or force it", summary(&holds));
    Err(Error { reason: Reason::Held, message, holds })
}

/// The first of them in words, and how many more.
fn summary(holds: &[Hold]) -> String {
    let first = holds.first().map_or("", |hold| hold.what.as_str());
    match holds.len() {
        0 | 1 => first.to_owned(),
        more => format!("{first} and {} more", more - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_goes_by_force_alone() {
        let hold = |what: &str| Hold { by: "pin".to_owned(), what: what.to_owned() };
        assert_eq!(refuse_held(&"x", Vec::new(), false), Ok(()));
        assert_eq!(refuse_held(&"x", vec![hold("a")], true), Ok(()));
        let error = refuse_held(&"x", vec![hold("a"), hold("b"), hold("c")], false).unwrap_err();
        assert_eq!((error.reason, error.holds.len()), (Reason::Held, 3));
        assert!(error.message.contains("a and 2 more"), "{error}");
    }
}
