//! One image from the inside: what belongs to it, what of it is here, and what keeps it.

use std::collections::{HashMap, HashSet};

use super::error::Error;
use super::image::Image;
use super::model::{Hold, Inspection, Part, PlatformInfo};
use super::service::Desk;
use super::settings::TREE_MAX;
use crate::content::{HOLDERS_MAX, Hold as Kept, KeepVerdict, verdict};
use crate::metadata::{Holder, Holders, Node, RepositoryKey};
use crate::oci::{Digest, MediaType, Role, Tag};

/// What the tree of an image adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) bytes_present: u64,
    pub(super) bytes_known: u64,
    /// Objects that are not here and belong here.
    pub(super) missing: u64,
}

impl Desk {
    /// What is known of an image.
    pub async fn inspect(&self, text: &str) -> Result<Inspection, Error> {
        let image = self.image(text)?.meant();
        let digest = self.revision_of(&image).await?;
        let nodes = self.metadata().tree(&image.key, &digest, TREE_MAX).await?;
        let holders = self.metadata().holders(&digest, HOLDERS_MAX).await?;
        let truncated = nodes.len() >= usize::try_from(TREE_MAX).unwrap_or(usize::MAX);
        let sums = sums(nodes.iter());
        let media_type = match self.metadata().revision(&image.key, &digest).await? {
            Some(revision) => revision.media_type.to_string(),
            None => return Err(image.unknown()),
        };
        Ok(Inspection {
            image: image.to_string(),
            digest: digest.to_string(),
            tags: current_tags(&holders, &image.key, &digest),
            content: parts(&nodes, &media_type),
            truncated,
            bytes_present: sums.bytes_present,
            bytes_known: sums.bytes_known,
            complete: sums.missing == 0 && !truncated,
            platforms: platforms(&nodes, truncated),
            holds: self.holds(&holders, &digest),
            media_type,
        })
    }

    /// What keeps an object: the policy's word first, then whoever needs it, then the tags that point at it.
    pub(super) fn holds(&self, holders: &Holders, digest: &Digest) -> Vec<Hold> {
        let policy = &self.settings().policy;
        let mut holds = Vec::new();
        if let KeepVerdict::Kept(kept) = verdict(holders, &self.rules(), policy, self.now()) {
            holds.push(of_policy(&kept));
        }
        holds.extend(needed_by(holders, digest).map(of_need));
        for holder in holders.revisions.iter().filter(|holder| holder.revision == *digest) {
            let current = holder.links.iter().filter(|link| link.until.is_none());
            holds.extend(current.map(|link| Hold {
                by: "tag".to_owned(),
                what: format!("{}:{}", holder.repository, link.tag),
            }));
        }
        holds
    }

    /// What the tree of a revision adds up to.
    pub(super) async fn sums_of(&self, image: &Image, digest: &Digest) -> Result<Sums, Error> {
        let nodes = self.metadata().tree(&image.key, digest, TREE_MAX).await?;
        Ok(sums(nodes.iter()))
    }
}

pub(super) fn of_policy(kept: &Kept) -> Hold {
    Hold { by: kept.by().to_owned(), what: kept.to_string() }
}

/// Revisions that need the object and do not wait for their own end.
pub(super) fn needed_by<'a>(
    holders: &'a Holders,
    digest: &Digest,
) -> impl Iterator<Item = &'a Holder> {
    let digest = *digest;
    holders
        .revisions
        .iter()
        .filter(|holder| holder.unlinked.is_none() && !holder.over_subject)
        .filter(move |holder| holder.revision != digest)
}

pub(super) fn of_need(holder: &Holder) -> Hold {
    Hold { by: "revision".to_owned(), what: named(holder) }
}

/// A revision, with the tags by which people know it.
pub(super) fn named(holder: &Holder) -> String {
    let mut name = format!("{}@{}", holder.repository, holder.revision);
    let current = holder.links.iter().filter(|link| link.until.is_none());
    let tags: Vec<&str> = current.map(|link| link.tag.as_str()).collect();
    if !tags.is_empty() {
        name.push_str(&format!(" ({})", tags.join(", ")));
    }
    name
}

/// Tags of the repository that point at the revision now.
fn current_tags(holders: &Holders, key: &RepositoryKey, digest: &Digest) -> Vec<String> {
    let here = |holder: &&Holder| holder.repository == *key && holder.revision == *digest;
    let links = holders.revisions.iter().filter(here).flat_map(|holder| &holder.links);
    let mut tags: Vec<&Tag> =
        links.filter(|link| link.until.is_none()).map(|link| &link.tag).collect();
    tags.sort();
    tags.into_iter().map(ToString::to_string).collect()
}

/// Each object once, in the order of the tree.
fn parts(nodes: &[Node], media_type: &str) -> Vec<Part> {
    let mut seen = HashSet::new();
    let each = nodes.iter().filter(|node| seen.insert(node.digest));
    each.map(|node| part(node, media_type)).collect()
}

fn part(node: &Node, of_the_root: &str) -> Part {
    let own = node.media_type.as_ref().map(ToString::to_string);
    let media_type = if node.parent.is_none() { Some(of_the_root.to_owned()) } else { own };
    let is_index = media_type.as_deref().is_some_and(is_index);
    let role = match node.role {
        Some(Role::Config) => "config",
        Some(Role::Layer) => "layer",
        Some(Role::Child) | None if is_index => "index",
        Some(Role::Child) | None => "manifest",
    };
    Part {
        digest: node.digest.to_string(),
        role: role.to_owned(),
        media_type,
        platform: node.platform.clone(),
        size: node.size,
        state: state(node).to_owned(),
    }
}

fn is_index(media_type: &str) -> bool {
    media_type.parse().is_ok_and(|media_type: MediaType| media_type.is_index())
}

fn state(node: &Node) -> &'static str {
    match node {
        Node { present: true, .. } => "present",
        Node { quarantined: true, .. } => "quarantined",
        Node { removed: Some(_), .. } => "removed",
        Node { foreign: true, .. } => "foreign",
        _ => "absent",
    }
}

/// Each object counts once; what upstream itself need not have is apart, unless it is here.
fn sums<'a>(nodes: impl Iterator<Item = &'a Node>) -> Sums {
    let mut seen = HashSet::new();
    let mut sums = Sums::default();
    for node in nodes.filter(|node| seen.insert(node.digest)) {
        if node.foreign && !node.present {
            continue;
        }
        let size = node.size.unwrap_or(0);
        sums.bytes_known = sums.bytes_known.saturating_add(size);
        if node.present {
            sums.bytes_present = sums.bytes_present.saturating_add(size);
        } else {
            sums.missing += 1;
        }
    }
    sums
}

/// The children of an index, each with what is below it. One that was cut off is not known to be complete.
fn platforms(nodes: &[Node], truncated: bool) -> Vec<PlatformInfo> {
    let Some(root) = nodes.first() else {
        return Vec::new();
    };
    let mut below = HashMap::<Digest, Vec<&Node>>::new();
    for node in nodes {
        if let Some(parent) = node.parent {
            below.entry(parent).or_default().push(node);
        }
    }
    let children = below.get(&root.digest).into_iter().flatten();
    let children = children.filter(|node| node.role == Some(Role::Child));
    let each = children.map(|child| {
        let (mut tree, mut open) = (vec![*child], vec![child.digest]);
        let mut seen = HashSet::from([child.digest]);
        while let Some(digest) = open.pop() {
            for node in below.get(&digest).into_iter().flatten() {
                tree.push(node);
                if seen.insert(node.digest) {
                    open.push(node.digest);
                }
            }
        }
        let sums = sums(tree.into_iter());
        PlatformInfo {
            platform: child.platform.clone().unwrap_or_else(|| "unknown".to_owned()),
            digest: child.digest.to_string(),
            complete: sums.missing == 0 && !truncated,
            bytes_present: sums.bytes_present,
        }
    });
    each.collect()
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
