//! The proxy as the registry sees it.

use std::sync::Arc;

use bytes::Bytes;

use super::blobs::{Blob, Found};
use super::error::Error;
use super::hot::HotAnswer;
use super::listing::{Listed, TagsWanted};
use super::revisions::{Manifest, Revision};
use super::shared::{Parts, Shared};
use super::source::{Proxied, Source};
use super::tags::Tagged;
use crate::clock::Timestamp;
use crate::oci::{Digest, RangeSpec, Reference, Tag};

/// Pull-through of repositories of configured upstreams. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proxy(Arc<Shared>);

impl Proxy {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Shared::new(parts)))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// The moment by the proxy's clock.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// May the repository be served at all?
    ///
    /// # Errors
    /// Why not, as a pull would be told.
    pub async fn gate(&self, repository: &Proxied) -> Result<(), Error> {
        self.0.gate(repository, None).await
    }

    /// What a tag points at, as fresh as the policy wants.
    pub async fn tag(&self, repository: &Proxied, tag: &Tag) -> Result<(Manifest, Tagged), Error> {
        self.0.gate(repository, Some(&Reference::Tag(tag.clone()))).await?;
        let answer = self.0.tag(repository, tag).await?;
        self.0.content().metadata().touch(&answer.0.digest, self.0.now());
        if !matches!(answer.1, Tagged::Stale { .. } | Tagged::Frozen { .. }) {
            self.0.remember(repository, &Reference::Tag(tag.clone()), &answer.0);
        }
        Ok(answer)
    }

    /// A manifest by its digest.
    pub async fn revision(
        &self,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<(Manifest, Revision), Error> {
        self.0.gate(repository, Some(&Reference::Digest(*digest))).await?;
        let answer = self.0.revision(repository, digest).await?;
        self.0.content().metadata().touch(digest, self.0.now());
        self.0.remember(repository, &Reference::Digest(*digest), &answer.0);
        Ok(answer)
    }

    /// The manifest `reference`, a tag or a digest as text, of the repository `name`, if it was served lately and everything by which it
    /// may be served again is in memory. Never waits; `None` says only that [`Proxy::tag`] or [`Proxy::revision`] has to be asked.
    pub fn hot_manifest(
        &self,
        source: &Arc<Source>,
        name: &str,
        reference: &str,
    ) -> Option<HotAnswer> {
        self.0.hot_manifest(source, name, reference)
    }

    /// A manifest that is or was what `tag` points at, or had been at the moment of the past that is asked for.
    pub async fn tagged_revision(
        &self,
        repository: &Proxied,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<(Manifest, Revision), Error> {
        self.0.gate(repository, Some(&Reference::Digest(*digest))).await?;
        let (metadata, key) = (self.0.content().metadata(), repository.key());
        let was = match repository.moment() {
            Some(then) => metadata.was_tagged_by(key, tag, digest, then).await,
            None => metadata.was_tagged(key, tag, digest).await,
        };
        match was {
            Ok(true) => {
                let answer = self.0.revision(repository, digest).await?;
                self.0.content().metadata().touch(digest, self.0.now());
                Ok(answer)
            }
            Ok(false) => Err(Error::Absent),
            Err(error) => {
                tracing::warn!(?error, "the timeline cannot be read");
                Err(Error::Store("the timeline cannot be read".to_owned()))
            }
        }
    }

    /// A blob with its bytes, here or on their way. With ranges `wanted`, the answer comes as soon as the first of them can be
    /// served, wherever in the blob that is.
    pub async fn blob(
        &self,
        repository: &Proxied,
        digest: &Digest,
        wanted: Option<&[RangeSpec]>,
    ) -> Result<Blob, Error> {
        self.0.gate(repository, None).await?;
        let blob = self.0.blob(repository, digest, wanted).await?;
        self.0.content().metadata().touch(digest, self.0.now());
        Ok(blob)
    }

    /// The size of a blob.
    pub async fn blob_size(
        &self,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<(u64, Found), Error> {
        self.0.gate(repository, None).await?;
        let answer = self.0.blob_size(repository, digest).await?;
        // Whoever asks for the size has the content, or is about to fetch it: it is in use like content that is read.
        self.0.content().metadata().touch(digest, self.0.now());
        Ok(answer)
    }

    /// Tags in lexical order: all of them, or at least those that `wanted` asks for.
    pub async fn tags(
        &self,
        repository: &Proxied,
        wanted: TagsWanted<'_>,
    ) -> Result<(Arc<Vec<String>>, Listed), Error> {
        self.0.gate(repository, None).await?;
        self.0.tags(repository, wanted).await
    }

    /// The referrers of a manifest as an OCI index.
    pub async fn referrers(
        &self,
        repository: &Proxied,
        subject: &Digest,
    ) -> Result<(Bytes, Listed), Error> {
        self.0.gate(repository, Some(&Reference::Digest(*subject))).await?;
        self.0.referrers(repository, subject).await
    }
}
