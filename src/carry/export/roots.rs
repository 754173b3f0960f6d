//! What an order names: images one by one, and those of sets.

use crate::carry::error::{Error, Reason};
use crate::carry::place::short_name;
use crate::carry::service::Carry;
use crate::carry::settings::IMAGES_MAX;
use crate::clock::Timestamp;
use crate::metadata::{RepositoryKey, SetMember};
use crate::oci::{Digest, Tag};

use super::super::model::ExportOrder;

/// Moves of a tag that are looked through for the one to the revision that is written out.
const MOVES_MAX: u32 = 1000;

/// An image that is written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) key: RepositoryKey,
    /// `None`: it is known by its digest alone.
    pub(super) tag: Option<Tag>,
    pub(super) digest: Digest,
    /// Since when the tag is known to point there.
    pub(super) since: Option<Timestamp>,
}

impl Root {
    /// In full, and unlike all others of one bundle.
    pub(super) fn name(&self) -> String {
        short_name(&self.key, self.tag.as_ref(), &self.digest)
    }
}

impl Carry {
    /// The images of an order in the order of their names, each once.
    pub(super) async fn roots(&self, order: &ExportOrder) -> Result<Vec<Root>, Error> {
        let mut roots = Vec::new();
        if order.images.len() > IMAGES_MAX {
            return Err(too_many());
        }
        for text in &order.images {
            roots.push(self.named(text).await?);
        }
        for set in &order.sets {
            self.of_set(set, &mut roots).await?;
        }
        if roots.is_empty() {
            return Err(Error::new(Reason::Value, "there is no image to write out"));
        }
        Ok(distinct(roots))
    }

    async fn named(&self, text: &str) -> Result<Root, Error> {
        let desk = &self.inner().desk;
        let image = desk.image(text)?;
        let digest = desk.revision_of(&image).await?;
        let (key, tag) = (image.key().clone(), image.tag_meant());
        self.root(key, tag, digest).await
    }

    async fn root(
        &self,
        key: RepositoryKey,
        tag: Option<Tag>,
        digest: Digest,
    ) -> Result<Root, Error> {
        let since = match &tag {
            Some(tag) => self.since(&key, tag, &digest).await?,
            None => None,
        };
        Ok(Root { key, tag, digest, since })
    }

    /// When the tag was last seen to begin to point at the digest; by the clock of whoever told us, where that was ahead of ours, and not
    /// before what was told of earlier moves.
    pub(super) async fn since(
        &self,
        key: &RepositoryKey,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<Option<Timestamp>, Error> {
        let moves = self.content().metadata().timeline(key, tag, MOVES_MAX).await?;
        let Some(newest) = moves.iter().position(|entry| entry.digest == Some(*digest)) else {
            return Ok(None);
        };
        // The newest comes first.
        let told = moves[newest..].iter().filter_map(|entry| entry.told).max();
        Ok(Some(told.map_or(moves[newest].since, |told| told.max(moves[newest].since))))
    }

    async fn of_set(&self, name: &str, roots: &mut Vec<Root>) -> Result<(), Error> {
        let members = self.members_named(name).await?;
        if members.is_empty() {
            return Err(Error::new(Reason::Set, format!("the set {name} has no images")));
        }
        if roots.len() + members.len() > IMAGES_MAX {
            return Err(too_many());
        }
        for SetMember { repository, digest, tag, .. } in members {
            roots.push(self.root(repository, tag, digest).await?);
        }
        Ok(())
    }
}

fn too_many() -> Error {
    Error::new(Reason::Value, format!("a bundle holds at most {IMAGES_MAX} images"))
}

/// Sorted by name. Of two revisions under one tag, the one to which the tag moved last keeps the name, and the others are known by their
/// digests.
fn distinct(mut roots: Vec<Root>) -> Vec<Root> {
    let order = |root: &Root| (root.name(), root.since, root.digest);
    roots.sort_by_cached_key(order);
    roots.dedup();
    let mut found: Vec<Root> = Vec::with_capacity(roots.len());
    for root in roots {
        if let Some(last) = found.last_mut()
            && last.tag.is_some()
            && last.name() == root.name()
            && last.digest != root.digest
        {
            (last.tag, last.since) = (None, None);
        }
        found.push(root);
    }
    found.sort_by_cached_key(order);
    found.dedup_by(|one, other| one.name() == other.name());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(tag: Option<&str>, seed: &str, since: i64) -> Root {
        Root {
            key: RepositoryKey {
                upstream: "docker.io".parse().unwrap(),
                name: "team/app".parse().unwrap(),
            },
            tag: tag.map(|tag| tag.parse().unwrap()),
            digest: Digest::sha256_of(seed.as_bytes()),
            since: tag.map(|_| Timestamp::from_millis(since)),
        }
    }

    #[test]
    fn one_name_is_one_image_whatever_order_they_came_in() {
        let (old, new) = (root(Some("v1"), "old", 1), root(Some("v1"), "new", 2));
        let other = root(Some("v2"), "old", 1);
        let wanted = vec![other.clone(), root(None, "old", 0), new.clone()];
        let mut wanted = wanted;
        wanted.sort_by_key(Root::name);
        for roots in [
            vec![old.clone(), new.clone(), other.clone(), new.clone()],
            vec![new.clone(), other.clone(), old.clone(), old.clone()],
            vec![other, new, root(None, "old", 0), old],
        ] {
            assert_eq!(distinct(roots), wanted);
        }
    }
}
