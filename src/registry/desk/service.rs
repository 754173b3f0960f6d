//! The desk: who asks it, what it knows of the settings, and what all its answers share.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::error::{Error, Reason};
use super::image::{self, Image};
use super::settings::Settings;
use crate::clock::{Clock, Timestamp};
use crate::content::Content;
use crate::metadata::{Metadata, RepositoryKey, Rules, TagRecord, TimelineEntry, Within};
use crate::oci::{Digest, Tag};
use crate::proxy::Proxy;
use crate::registry::Registry;
use crate::registry::locate::Upstreams;

/// What the operator asks and orders. Clones are handles to the same.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    settings: ArcSwap<Settings>,
}

/// What a name must be, where one that is the other would take too much or too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Registry,
    Repository,
}

/// What a tag is for those who ask for it now.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// What upstream says of it.
    pub(super) record: TagRecord,
    /// Since when it is frozen, and what it serves for that.
    pub(super) frozen: Option<(Timestamp, Option<TimelineEntry>)>,
}

impl Standing {
    /// The revision that clients get.
    pub(super) fn digest(&self) -> Option<Digest> {
        if self.record.is_denied() {
            return None;
        }
        match &self.frozen {
            Some((_, Some(entry))) => entry.digest,
            Some((_, None)) | None => self.record.digest,
        }
    }
}

impl Desk {
    pub fn new(registry: Arc<Registry>, clock: Arc<dyn Clock>, settings: Settings) -> Self {
        Self(Arc::new(Inner { registry, clock, settings: ArcSwap::from_pointee(settings) }))
    }

    /// Puts other settings in force.
    pub fn configure(&self, settings: Settings) {
        self.0.settings.store(Arc::new(settings));
    }

    /// A registry or a repository of which something is known, for a purge; it need not be configured any more. With an
    /// extent, the name must have it: an alias of a registry looks like a repository, and the other way round.
    pub async fn known_within(&self, text: &str, extent: Option<Extent>) -> Result<Within, Error> {
        let (within, configured) = image::within(text, &self.upstreams())?;
        let refusal = match (&within, extent) {
            (Within::Upstream(name), Some(Extent::Repository)) => Some(format!(
                "{text:?} is no repository but a registry, {name}, with all that is in it"
            )),
            (Within::Repository(key), Some(Extent::Registry)) => {
                Some(format!("{text:?} is no registry; as a repository it is {key}"))
            }
            _ => None,
        };
        if let Some(message) = refusal {
            return Err(Error::new(Reason::Image, message));
        }
        let metadata = self.metadata();
        let has_tags = !metadata.tag_records(Some(&within), None, 1).await?.is_empty();
        let known = has_tags
            || match &within {
                Within::Repository(key) => {
                    !metadata.revision_records(key, None, 1).await?.is_empty()
                }
                // What was only ever pulled by digest has no tags.
                Within::Upstream(_) if configured => true,
                Within::Upstream(name) => {
                    let first =
                        "0".parse().expect("it is a repository's name, and none sorts before it");
                    let before = RepositoryKey { upstream: name.clone(), name: first };
                    let next = metadata.repositories(Some(&before), 1, false).await?;
                    next.first().is_some_and(|key| key.upstream == *name)
                }
            };
        if known { Ok(within) } else { Err(image::nothing_within(&within, configured)) }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.0.settings.load_full()
    }

    pub(super) fn upstreams(&self) -> Arc<Upstreams> {
        self.0.registry.upstreams()
    }

    /// Who fetches for clients, and fetches for operators by the same rules.
    pub fn proxy(&self) -> &Proxy {
        self.0.registry.proxy()
    }

    pub fn content(&self) -> &Content {
        self.0.registry.content()
    }

    pub(super) fn metadata(&self) -> &Metadata {
        self.content().metadata()
    }

    pub(super) fn rules(&self) -> Rules {
        self.metadata().rules()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// The image that a text names.
    ///
    /// # Errors
    /// It is no name, or its registry is neither configured nor one that a name can be read of.
    pub fn image(&self, text: &str) -> Result<Image, Error> {
        Image::read(text, &self.upstreams())
    }

    /// What a tag is now; `None` if it was never seen.
    pub(super) async fn standing(
        &self,
        key: &RepositoryKey,
        tag: &Tag,
    ) -> Result<Option<Standing>, Error> {
        let Some(record) = self.metadata().tag(key, tag).await? else {
            return Ok(None);
        };
        let frozen = match self.rules().frozen(key, tag, self.now()) {
            Some(since) => Some((since, self.metadata().frozen_at(key, tag, since).await?)),
            None => None,
        };
        Ok(Some(Standing { record, frozen }))
    }

    /// The revision that an image means: what its tag serves, or the digest that it names, which must be known under that name.
    pub async fn revision_of(&self, image: &Image) -> Result<Digest, Error> {
        let metadata = self.metadata();
        if let (Some(tag), Some(digest)) = (&image.tag, &image.digest) {
            if metadata.tag(&image.key, tag).await?.is_none() {
                return Err(image.unknown());
            }
            if !metadata.was_tagged(&image.key, tag, digest).await? {
                return Err(never_of_the_tag(image));
            }
        }
        if let Some(digest) = image.digest {
            let known = metadata.revision(&image.key, &digest).await?;
            return known.map(|_record| digest).ok_or_else(|| image.unknown());
        }
        let tag = image.tag_meant().ok_or_else(|| image.unknown())?;
        let standing = self.standing(&image.key, &tag).await?.ok_or_else(|| image.unknown())?;
        standing.digest().ok_or_else(|| {
            let message = format!(
                "{image} is absent upstream since {}; `roadstead history {image}` has what it pointed at before",
                standing.record.moved
            );
            Error::new(Reason::Absent, message)
        })
    }
}

/// The digest may be in the repository and was never what the tag pointed at.
pub(super) fn never_of_the_tag(image: &Image) -> Error {
    let name = &image.key;
    let (tag, digest) = (image.tag.as_ref(), image.digest.as_ref());
    let (tag, digest) = (tag.map_or("", Tag::as_str), digest.map(ToString::to_string));
    let message = format!(
        "{name}:{tag} never pointed at {}; `roadstead history {name}:{tag}` lists what it pointed at",
        digest.unwrap_or_default()
    );
    Error::new(Reason::UnknownImage, message)
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("settings", &self.settings()).finish_non_exhaustive()
    }
}
