//! Manifests by digest: from the store, or fetched, verified and stored.
//!
//! What must hold: bytes are never changed; a manifest reaches a client or the store only after it was hashed against the digest that
//! names it and read as a manifest; a store in trouble costs the next client a fetch, never this one his answer.

use std::sync::Arc;

use bytes::Bytes;

use super::error::Error;
use super::shared::Shared;
use super::source::Proxied;
use crate::content::{Mismatch, StoredManifest};
use crate::metadata::{RevisionCommit, TagMove};
use crate::oci::{self, Digest, ManifestKind, MediaType, Reference, Tag};
use crate::upstream::{self, Endpoint, FetchedManifest};

/// A manifest, byte for byte as upstream gave it.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
}

/// A manifest that was just fetched.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) manifest: Manifest,
    /// It is in the store now.
    pub(super) stored: bool,
}

/// What an endpoint says that a tag points at: read, hashed and not stored yet.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) digest: Digest,
    pub(super) endpoint: Endpoint,
    /// It is a cache that could not confirm it.
    pub(super) stale: bool,
    document: oci::Manifest,
    bytes: Bytes,
}

/// How a manifest was found by its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    Stored,
    /// Its proof of membership was renewed for this request.
    Renewed,
    Joined,
    Fetched {
        stored: bool,
    },
}

impl From<StoredManifest> for Manifest {
    fn from(stored: StoredManifest) -> Self {
        Self { digest: stored.digest, media_type: stored.media_type, bytes: stored.bytes }
    }
}

impl Shared {
    /// The manifest `digest` of `repository`.
    pub(super) async fn revision(
        self: &Arc<Self>,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<(Manifest, Revision), Error> {
        if let Some(stored) = self.stored(repository, digest).await {
            if self.holds(repository, &stored.proof) || self.is_shut(repository) {
                return Ok((stored.into(), Revision::Stored));
            }
            return self.renew(repository, stored).await;
        }
        if self.is_offline(repository) {
            return Err(Error::Offline);
        }
        Ok(self.fetch_revision(repository, digest).await?)
    }

    /// The stored manifest, whatever its proof says; trouble in the store is a miss.
    pub(super) async fn stored(
        &self,
        repository: &Proxied,
        digest: &Digest,
    ) -> Option<StoredManifest> {
        self.content().manifest(repository.key(), digest).await.unwrap_or_else(|error| {
            tracing::warn!(?error, %digest, "the store cannot be asked; going upstream");
            None
        })
    }

    /// Asks upstream whether the repository still shows a manifest that is here.
    async fn renew(
        self: &Arc<Self>,
        repository: &Proxied,
        stored: StoredManifest,
    ) -> Result<(Manifest, Revision), Error> {
        if let Some(error) = self.failed_lately(repository)
            && self.bridges(repository, &stored.proof, &error)
        {
            return Ok((stored.into(), Revision::Stored));
        }
        let reference = Reference::Digest(stored.digest);
        match repository.upstream().manifest_head(repository.name(), &reference).await {
            Ok(_head) => {
                self.unrenewed.invalidate(repository.key());
                let size = stored.bytes.len() as u64;
                self.record_proof(repository, &stored.digest, Some(size)).await;
                Ok((stored.into(), Revision::Renewed))
            }
            Err(upstream::Error::HeadUnusable) if repository.upstream().is_sparing() => {
                let sparing = upstream::Error::Limited { retry_after: None };
                self.bridge(repository, stored, sparing)
            }
            Err(upstream::Error::HeadUnusable) => {
                match self.fetch_revision(repository, &stored.digest).await {
                    Ok(found) => Ok(found),
                    Err(error) => self.bridge(repository, stored, error),
                }
            }
            Err(error) => self.bridge(repository, stored, error),
        }
    }

    /// A manifest that is here and whose proof could not be renewed.
    fn bridge(
        &self,
        repository: &Proxied,
        stored: StoredManifest,
        error: upstream::Error,
    ) -> Result<(Manifest, Revision), Error> {
        if !self.bridges(repository, &stored.proof, &error) {
            return Err(error.into());
        }
        self.note_failure(repository, &error);
        tracing::warn!(
            reason = error.reason(),
            "a proof of membership could not be renewed; bridging"
        );
        Ok((stored.into(), Revision::Stored))
    }

    async fn fetch_revision(
        self: &Arc<Self>,
        repository: &Proxied,
        digest: &Digest,
    ) -> Result<(Manifest, Revision), upstream::Error> {
        let identity = repository.upstream().credential_fingerprint();
        let key = (repository.key().clone(), *digest, identity);
        let work = {
            let (shared, repository, digest) = (Arc::clone(self), repository.clone(), *digest);
            async move { shared.fetch(&repository, &digest, None).await }
        };
        let (fetched, joined) = self.once(|shared| &shared.fetches, key, work).await;
        let fetched = fetched?;
        let how =
            if joined { Revision::Joined } else { Revision::Fetched { stored: fetched.stored } };
        Ok((fetched.manifest, how))
    }

    /// Fetches by digest, verifies and stores, moving `tag` to it if there is one.
    pub(super) async fn fetch(
        &self,
        repository: &Proxied,
        digest: &Digest,
        tag: Option<TagMove>,
    ) -> Result<Fetched, upstream::Error> {
        let reference = Reference::Digest(*digest);
        let answer = repository.upstream().manifest(repository.name(), &reference).await?;
        let document = read(&answer)?;
        if Digest::of(digest.algorithm(), &answer.bytes) != *digest {
            // A signed schema 1 manifest under its payload digest is no damage.
            if document.kind != ManifestKind::Schema1 {
                self.content().metrics().count_mismatch(Mismatch::Upstream);
                repository.upstream().blame(&answer.endpoint);
            }
            return Err(upstream::Error::Junk("digest_mismatch"));
        }
        let FetchedManifest { bytes, endpoint, stale, .. } = answer;
        let offer = Offer { digest: *digest, endpoint, stale, document, bytes };
        Ok(self.keep(repository, offer, tag).await)
    }

    /// Asks what `tag` points at; our own hash names it. With `beyond`, only the endpoints behind that one are asked.
    pub(super) async fn offer(
        &self,
        repository: &Proxied,
        tag: &Tag,
        beyond: Option<&Endpoint>,
    ) -> Result<Offer, upstream::Error> {
        let (upstream, reference) = (repository.upstream(), Reference::Tag(tag.clone()));
        let answer = match beyond {
            None => upstream.manifest(repository.name(), &reference).await?,
            Some(beyond) => upstream.manifest_beyond(beyond, repository.name(), &reference).await?,
        };
        let document = read(&answer)?;
        let lies = |told: &Digest| Digest::of(told.algorithm(), &answer.bytes) != *told;
        // The digest that registries name for signed schema 1 is over its payload, not over the bytes on the wire.
        if document.kind != ManifestKind::Schema1 && answer.digest_header.as_ref().is_some_and(lies)
        {
            self.content().metrics().count_mismatch(Mismatch::Upstream);
            return Err(upstream::Error::Junk("digest_mismatch"));
        }
        let digest = Digest::sha256_of(&answer.bytes);
        let FetchedManifest { bytes, endpoint, stale, .. } = answer;
        Ok(Offer { digest, endpoint, stale, document, bytes })
    }

    /// Stores what was offered, and moves the tag to it if there is one.
    pub(super) async fn accept(
        &self,
        repository: &Proxied,
        offer: Offer,
        tag: Option<&Tag>,
    ) -> Fetched {
        let source = offer.endpoint.host().to_owned();
        let tag = tag.map(|tag| TagMove { tag: tag.clone(), source });
        self.keep(repository, offer, tag).await
    }

    /// Stores a verified manifest with everything that follows from it, in one transaction.
    async fn keep(&self, repository: &Proxied, offer: Offer, tag: Option<TagMove>) -> Fetched {
        let Offer { digest, endpoint, document, bytes, .. } = offer;
        let media_type = document.media_type.clone();
        let commit = RevisionCommit {
            repository: repository.key().clone(),
            digest,
            media_type: document.media_type,
            size: bytes.len() as u64,
            children: document.children,
            subject: document.subject.map(|subject| subject.digest),
            artifact_type: document.artifact_type,
            proof: self.proof_now(repository),
            at: self.now(),
            tag,
        };
        let stored = match self.content().store_revision(commit, bytes.clone()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(?error, %digest, "a manifest could not be stored; serving it all the same");
                false
            }
        };
        // What a copy shows, it may show by a right of its own.
        let seen_by_nobody = repository.upstream().credential_fingerprint().is_none();
        if stored && seen_by_nobody && endpoint.is_origin() {
            self.note_public(repository).await;
        }
        Fetched { manifest: Manifest { digest, media_type, bytes }, stored }
    }

    /// What we read without a credential anybody may read; the catalog wants to know.
    async fn note_public(&self, repository: &Proxied) {
        let metadata = self.content().metadata();
        if !matches!(metadata.visibility(repository.key()).await, Ok(Some((true, _)))) {
            let noted = metadata.set_visibility(repository.key(), true, self.now()).await;
            if let Err(error) = noted {
                tracing::debug!(?error, "the visibility of a repository could not be recorded");
            }
        }
    }
}

fn read(answer: &FetchedManifest) -> Result<oci::Manifest, upstream::Error> {
    oci::Manifest::parse(&answer.bytes, answer.content_type.as_deref()).map_err(|error| {
        tracing::warn!(%error, "upstream answered with something that is no manifest");
        upstream::Error::Junk("not_a_manifest")
    })
}
