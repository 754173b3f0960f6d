//! What belongs to an image: the descriptors below it, by the documents that are here, for the platforms that are wanted.
//!
//! What must hold: each object counts once; a walk ends, however documents point at each other; nothing is asked of an upstream. What is
//! found to be here is what a client would get: its row says so, its repository holds it, and its file is the one that was stored.

use std::collections::{HashMap, HashSet, VecDeque};

use serde::Deserialize;

use super::error::{Error, Reason};
use super::service::Carry;
use super::settings::TREE_MAX;
use crate::content::{self, Content};
use crate::metadata::RepositoryKey;
use crate::oci::{
    self, Descriptor, Digest, MANIFEST_SIZE_LIMIT_DEFAULT, MediaType, Platform, PlatformPattern,
    Role, Tag,
};

/// Largest configuration that is read for the platform in it.
const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What cosign puts behind the digest in the tags under which it stores signatures, attestations and bills of materials; without any of
/// them it is the tag of the OCI distribution spec for registries without the referrers API.
const REFERRER_TAGS: [&str; 4] = ["", ".sig", ".att", ".sbom"];

/// One object of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) digest: Digest,
    /// `None`: the image itself, or a manifest that refers to it.
    pub(super) role: Option<Role>,
    /// It is a manifest or an index.
    pub(super) is_manifest: bool,
    pub(super) media_type: Option<MediaType>,
    /// By the index that lists it, else by the configuration of the image, if that is here. Configuration and layers have that of
    /// their manifest, and so has an attestation of BuildKit that names one.
    pub(super) platform: Option<String>,
    /// Verified if it is here, else as its parent claims.
    pub(super) size: Option<u64>,
    pub(super) present: bool,
    /// Not here because it is damaged and put aside, or because an operator took it away by force.
    pub(super) damaged: bool,
    pub(super) removed: bool,
    /// It refers to the image (signatures, attestations), or belongs to what does.
    pub(super) of_referrer: bool,
    /// The tag of the repository by which it refers to something (cosign), if it is found by one.
    pub(super) tag: Option<Tag>,
    /// Of a manifest that is here: what it lists and is in the tree, in the order of the document. Some of it may come elsewhere in the
    /// tree too.
    pub(super) children: Vec<Digest>,
}

impl Member {
    pub(super) fn is_index(&self) -> bool {
        self.media_type.as_ref().is_some_and(MediaType::is_index)
    }

    /// Why it is not here: `damaged`, `removed` or `absent`.
    pub(super) fn lack(&self) -> &'static str {
        match self {
            Self { damaged: true, .. } => "damaged",
            Self { removed: true, .. } => "removed",
            _ => "absent",
        }
    }
}

/// Which parts of an image are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Empty: all that an index lists.
    pub(super) platforms: Vec<PlatformPattern>,
    /// With signatures, attestations and whatever else refers to it, as far as it is known.
    pub(super) referrers: bool,
}

impl Carry {
    /// The image and everything below it, parents before children. A child of an index whose platform is not wanted is left out, with
    /// all below it; BuildKit's attestations (platform `unknown/unknown`) go with the manifest that they name. A manifest that is not
    /// here is in the list, and what is below it is not, because nobody knows it. Foreign layers that are not here are left out: nobody
    /// expects them to be.
    ///
    /// # Errors
    ///
    /// The store is in trouble, or more than [`TREE_MAX`] objects belong to the image.
    pub(super) async fn tree(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        wish: &Wish,
    ) -> Result<Vec<Member>, Error> {
        walk(self.content(), repository, digest, wish).await
    }
}

/// Something to look at.
struct Visit {
    digest: Digest,
    role: Option<Role>,
    is_manifest: bool,
    media_type: Option<MediaType>,
    platform: Option<String>,
    claimed: Option<u64>,
    foreign: bool,
    of_referrer: bool,
    tag: Option<Tag>,
}

struct Walk<'a> {
    content: &'a Content,
    repository: &'a RepositoryKey,
    wish: &'a Wish,
    found: Vec<Member>,
    seen: HashSet<Digest>,
    open: VecDeque<Visit>,
    /// What refers to the image comes after all that belongs to it, so that what both have counts as the image's.
    referring: VecDeque<Visit>,
}

pub(super) async fn walk(
    content: &Content,
    repository: &RepositoryKey,
    digest: &Digest,
    wish: &Wish,
) -> Result<Vec<Member>, Error> {
    let mut walk = Walk {
        content,
        repository,
        wish,
        found: Vec::new(),
        seen: HashSet::new(),
        open: VecDeque::from([Visit::of(*digest)]),
        referring: VecDeque::new(),
    };
    while let Some(visit) = walk.next() {
        walk.visit(visit).await?;
    }
    walk.tell_why_absent().await?;
    Ok(walk.found)
}

impl Visit {
    /// A manifest that nothing lists.
    fn of(digest: Digest) -> Self {
        Self {
            digest,
            role: None,
            is_manifest: true,
            media_type: None,
            platform: None,
            claimed: None,
            foreign: false,
            of_referrer: false,
            tag: None,
        }
    }

    fn listed(role: Role, descriptor: &Descriptor, within: &Member) -> Self {
        let platform = descriptor.platform.as_ref().map(ToString::to_string);
        Self {
            digest: descriptor.digest,
            role: Some(role),
            is_manifest: role == Role::Child,
            media_type: Some(descriptor.media_type.clone()),
            platform: platform.or_else(|| within.platform.clone()),
            claimed: Some(descriptor.size),
            foreign: descriptor.foreign,
            of_referrer: within.of_referrer,
            tag: None,
        }
    }
}

impl Walk<'_> {
    fn next(&mut self) -> Option<Visit> {
        self.open.pop_front().or_else(|| self.referring.pop_front())
    }

    async fn visit(&mut self, visit: Visit) -> Result<(), Error> {
        if !self.seen.insert(visit.digest) {
            return Ok(());
        }
        if self.found.len() >= usize::try_from(TREE_MAX).unwrap_or(usize::MAX) {
            let message = format!("more than {TREE_MAX} objects belong to {}", self.repository);
            return Err(Error::new(Reason::Value, message));
        }
        let lookup = self.content.open_blob(self.repository, &visit.digest).await;
        let lookup = lookup.map_err(unreadable)?;
        let size = lookup.span.as_ref().map(crate::span::Span::length);
        if size.is_none() && visit.foreign {
            return Ok(());
        }
        let mut member = Member {
            digest: visit.digest,
            role: visit.role,
            is_manifest: visit.is_manifest,
            media_type: visit.media_type,
            platform: visit.platform,
            size: size.or(visit.claimed).or(lookup.record.size),
            present: size.is_some(),
            damaged: false,
            removed: false,
            of_referrer: visit.of_referrer,
            tag: visit.tag,
            children: Vec::new(),
        };
        if member.is_manifest {
            self.read(&mut member).await?;
        }
        let refers = member.is_manifest && self.wish.referrers;
        let digest = member.digest;
        self.found.push(member);
        if refers {
            self.find_referrers(&digest).await?;
        }
        Ok(())
    }

    /// Reads a manifest that is here, and opens what it lists.
    async fn read(&mut self, member: &mut Member) -> Result<(), Error> {
        let stored = match member.present {
            true => {
                self.content.manifest(self.repository, &member.digest).await.map_err(unreadable)?
            }
            false => None,
        };
        let Some(stored) = stored else {
            member.present = false;
            return Ok(());
        };
        let document = oci::Manifest::parse(&stored.bytes, Some(stored.media_type.as_str()));
        member.media_type = Some(stored.media_type);
        let Ok(document) = document else {
            tracing::warn!(digest = %member.digest, "a stored manifest cannot be read as one");
            member.present = false;
            return Ok(());
        };
        if member.platform.is_none() {
            member.platform = self.platform_of(&document).await?;
        }
        let listed = |digest: &Digest| {
            let mut children = document.children.iter();
            children.find(|(_, child)| child.digest == *digest).map(|(_, child)| child)
        };
        for (role, descriptor) in &document.children {
            let mut visit = Visit::listed(*role, descriptor, member);
            if let Some(named) = document.attested_by(descriptor) {
                let Some(named) = listed(named).filter(|named| self.wants(named, member)) else {
                    continue;
                };
                visit.platform = named.platform.as_ref().map(ToString::to_string);
                visit.of_referrer = true;
            } else if *role == Role::Child && !self.wants(descriptor, member) {
                continue;
            }
            if document.kind == oci::ManifestKind::Schema1 {
                // It names no sizes.
                visit.claimed = None;
            }
            member.children.push(visit.digest);
            let open = if visit.of_referrer { &mut self.referring } else { &mut self.open };
            open.push_back(visit);
        }
        Ok(())
    }

    /// Is a child of an index meant? One that names no platform may be for any of them.
    fn wants(&self, child: &Descriptor, parent: &Member) -> bool {
        let platforms = &self.wish.platforms;
        platforms.is_empty()
            || parent.of_referrer
            || child
                .platform
                .as_ref()
                .is_none_or(|platform| platforms.iter().any(|pattern| pattern.matches(platform)))
    }

    /// The platform of an image that no index lists with one.
    async fn platform_of(&self, document: &oci::Manifest) -> Result<Option<String>, Error> {
        let config = document.children.iter().find(|(role, _)| *role == Role::Config);
        let Some((_, config)) = config else {
            return Ok(None);
        };
        let bytes = self.content.get(&config.digest, CONFIG_BYTES_MAX).await.map_err(unreadable)?;
        Ok(bytes.and_then(|bytes| platform_in(&bytes)).map(|platform| platform.to_string()))
    }

    /// Opens what is known to refer to a manifest: what upstream listed, what is here and says so itself, and what stands under cosign's
    /// tags.
    async fn find_referrers(&mut self, digest: &Digest) -> Result<(), Error> {
        let metadata = self.content.metadata();
        if let Some((index, _learned)) = metadata.referrers(self.repository, digest).await? {
            let bytes = self.content.get(&index, MANIFEST_SIZE_LIMIT_DEFAULT).await;
            let index = bytes
                .map_err(unreadable)?
                .and_then(|bytes| oci::Manifest::parse(&bytes, Some(MediaType::OCI_INDEX)).ok());
            for (_, descriptor) in index.iter().flat_map(|index| &index.children) {
                self.referring.push_back(Visit {
                    media_type: Some(descriptor.media_type.clone()),
                    claimed: Some(descriptor.size),
                    of_referrer: true,
                    ..Visit::of(descriptor.digest)
                });
            }
        }
        for found in metadata.referring(self.repository, digest, TREE_MAX).await? {
            self.referring.push_back(Visit { of_referrer: true, ..Visit::of(found) });
        }
        for tag in referrer_tags(digest) {
            let record = metadata.tag(self.repository, &tag).await?;
            if let Some(found) = record.and_then(|record| record.digest) {
                let tag = Some(tag);
                self.referring.push_back(Visit { of_referrer: true, tag, ..Visit::of(found) });
            }
        }
        Ok(())
    }

    /// Looks up why objects are not here, where the rows know more than that.
    async fn tell_why_absent(&mut self) -> Result<(), Error> {
        let absent = |member: &Member| !member.present;
        if !self.found.iter().any(absent) {
            return Ok(());
        }
        let roots = self.found.iter().filter(|member| member.role.is_none());
        let roots: Vec<Digest> = roots.map(|member| member.digest).collect();
        let mut known = HashMap::new();
        for root in roots {
            let nodes = self.content.metadata().tree(self.repository, &root, TREE_MAX).await?;
            known.extend(
                nodes
                    .into_iter()
                    .map(|node| (node.digest, (node.quarantined, node.removed.is_some()))),
            );
        }
        for member in self.found.iter_mut().filter(|member| !member.present) {
            let (damaged, removed) = known.get(&member.digest).copied().unwrap_or_default();
            (member.damaged, member.removed) = (damaged, removed);
        }
        Ok(())
    }
}

/// The tags under which something that refers to the digest may stand.
pub(super) fn referrer_tags(digest: &Digest) -> impl Iterator<Item = Tag> {
    let plain = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
    // A sha512 digest is too long for a tag with anything behind it.
    REFERRER_TAGS.into_iter().filter_map(move |behind| format!("{plain}{behind}").parse().ok())
}

/// The platform that the configuration of an image names (OCI image spec, "Image Configuration").
pub(super) fn platform_in(config: &[u8]) -> Option<Platform> {
    #[derive(Deserialize)]
    struct Config {
        os: String,
        architecture: String,
        variant: Option<String>,
    }
    let Config { os, architecture, variant } = serde_json::from_slice(config).ok()?;
    let named = !os.is_empty() && !architecture.is_empty();
    let variant = variant.filter(|variant| !variant.is_empty());
    named.then_some(Platform { os, architecture, variant })
}

/// A store that cannot be read, as the desk says it.
pub(super) fn unreadable(error: content::Error) -> Error {
    match error {
        content::Error::Metadata(error) => error.into(),
        error => Error::new(Reason::Store, format!("the store cannot be read now: {error}")),
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
