//! Lists of tags and referrers: upstream's word when it can be asked, else what is known here.
//!
//! What must hold: a referrers list is never made up. An empty index is answered only if upstream said just now that there is nothing;
//! a policy engine reads it as "unsigned".

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::error::Error;
use super::shared::Shared;
use super::source::Proxied;
use crate::oci::{self, Digest, ManifestKind, MediaType, Tag};
use crate::upstream;

/// Tags of one repository that a list may hold; what goes beyond is cut, with a warning.
pub const TAGS_MAX: usize = 100_000;
/// How long a client waits for upstream's referrers before it gets the last good ones, or none; docker asks for them in the middle of a
/// pull, and the server gives up after 2 s.
pub const REFERRERS_WAIT: Duration = Duration::from_millis(1500);

/// Where a list comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    Upstream,
    /// Upstream told a moment ago.
    Remembered,
    /// What is known here, because upstream cannot be asked.
    Known(&'static str),
}

/// The part of a list of tags that a client asks for. What is known here is read no further: a client turns the pages of a long list,
/// and reading it whole for each would cost its square.
#[derive(Clone, Copy, Debug)]
pub struct TagsWanted<'a> {
    /// Only those behind this one.
    pub after: Option<&'a str>,
    /// No more than these; at most [`TAGS_MAX`] in any case.
    pub limit: usize,
}

impl Shared {
    /// Tags of the repository in lexical order: all of them, or at least those wanted.
    pub(super) async fn tags(
        self: &Arc<Self>,
        repository: &Proxied,
        wanted: TagsWanted<'_>,
    ) -> Result<(Arc<Vec<String>>, Listed), Error> {
        if repository.moment().is_some() {
            let (tags, _known) = self.known_tags(repository, wanted, "as_of").await?;
            return Ok((tags, Listed::Remembered));
        }
        let fresh_for = repository.policy().tags.fresh_for;
        if let Some((when, tags)) = self.tag_lists.get(repository.key()) {
            if self.within(when, fresh_for) {
                return Ok((tags, Listed::Remembered));
            }
            if repository.upstream().is_sparing() {
                return Ok((tags, Listed::Known("limited")));
            }
        }
        if self.is_offline(repository) {
            return self.known_tags(repository, wanted, "offline").await;
        }
        let work = {
            let (shared, repository) = (Arc::clone(self), repository.clone());
            async move { shared.ask_tags(&repository).await }
        };
        let key = repository.key().clone();
        match self.once(|shared| &shared.lists, key, work).await.0 {
            Ok(tags) => Ok((tags, Listed::Upstream)),
            Err(error @ (upstream::Error::Absent | upstream::Error::Denied)) => Err(error.into()),
            Err(error) => {
                let known = self.known_tags(repository, wanted, error.reason()).await;
                known.map_err(|_nothing_known| error.into())
            }
        }
    }

    async fn ask_tags(&self, repository: &Proxied) -> Result<Arc<Vec<String>>, upstream::Error> {
        let asked = self.now();
        let upstream = repository.upstream();
        let mut tags = upstream.tags(repository.name(), TAGS_MAX).await?;
        // An upstream's list is input like any other: what is no tag is not passed on.
        tags.retain(|tag| tag.parse::<Tag>().is_ok());
        tags.sort_unstable();
        tags.dedup();
        let tags = Arc::new(tags);
        self.tag_lists.insert(repository.key().clone(), (asked, Arc::clone(&tags)));
        Ok(tags)
    }

    /// What is known of the tags wanted; an error if no tag of the repository is known.
    async fn known_tags(
        &self,
        repository: &Proxied,
        wanted: TagsWanted<'_>,
        reason: &'static str,
    ) -> Result<(Arc<Vec<String>>, Listed), Error> {
        let tags = self.read_tags(repository, wanted).await?;
        // Behind the last one there is none, and yet the repository is here.
        if tags.is_empty() {
            let any = TagsWanted { after: None, limit: 1 };
            if wanted.after.is_none() || self.read_tags(repository, any).await?.is_empty() {
                return Err(Error::Offline);
            }
        }
        let tags = tags.iter().map(ToString::to_string).collect();
        Ok((Arc::new(tags), Listed::Known(reason)))
    }

    async fn read_tags(
        &self,
        repository: &Proxied,
        wanted: TagsWanted<'_>,
    ) -> Result<Vec<Tag>, Error> {
        let limit = u32::try_from(wanted.limit.min(TAGS_MAX)).unwrap_or(u32::MAX);
        let (metadata, key) = (self.content().metadata(), repository.key());
        let tags = match repository.moment() {
            Some(then) => metadata.tags_at(key, wanted.after, limit, then).await,
            None => metadata.tags(key, wanted.after, limit).await,
        };
        tags.map_err(|error| {
            tracing::warn!(?error, "the tags cannot be read");
            Error::Store("the tags cannot be read".to_owned())
        })
    }

    /// The referrers of `subject` as an OCI index.
    pub(super) async fn referrers(
        self: &Arc<Self>,
        repository: &Proxied,
        subject: &Digest,
    ) -> Result<(Bytes, Listed), Error> {
        let last_good = self.last_good(repository, subject).await;
        if let Some((body, true)) = &last_good {
            return Ok((body.clone(), Listed::Remembered));
        }
        // An old "nothing" may have become untrue; only what lists something outlives an outage.
        let last_good = last_good.map(|(body, _)| body).filter(|body| lists_something(body));
        if self.is_offline(repository) {
            return last_good.map(|body| (body, Listed::Known("offline"))).ok_or(Error::Offline);
        }
        if let Some(body) = last_good.clone().filter(|_| repository.upstream().is_sparing()) {
            return Ok((body, Listed::Known("limited")));
        }
        let (sender, answer) = tokio::sync::oneshot::channel();
        let (shared, asked, digest) = (Arc::clone(self), repository.clone(), *subject);
        let shutdown = self.parts.shutdown.clone();
        // In a task of its own: a slow answer is too late for this client and in time for the next.
        self.parts.tasks.spawn(async move {
            tokio::select! {
                result = shared.ask_referrers(&asked, &digest) => drop(sender.send(result)),
                () = shutdown.cancelled() => {}
            }
        });
        let result = match tokio::time::timeout(REFERRERS_WAIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::TimedOut),
        };
        match (result, last_good) {
            (Ok(body), _) => Ok((body, Listed::Upstream)),
            (Err(error @ (Error::Absent | Error::Denied(_))), _) => Err(error),
            (Err(error), Some(body)) => Ok((body, Listed::Known(error.reason()))),
            (Err(error), None) => Err(error),
        }
    }

    /// The last index that upstream gave, and whether it is fresh.
    async fn last_good(&self, repository: &Proxied, subject: &Digest) -> Option<(Bytes, bool)> {
        let metadata = self.content().metadata();
        let (index, when) = metadata.referrers(repository.key(), subject).await.ok()??;
        let body = self.content().get(&index, oci::MANIFEST_SIZE_LIMIT_DEFAULT).await.ok()??;
        Some((body, self.within(when, repository.policy().tags.fresh_for)))
    }

    async fn ask_referrers(
        self: &Arc<Self>,
        repository: &Proxied,
        subject: &Digest,
    ) -> Result<Bytes, Error> {
        let answer = repository.upstream().referrers(repository.name(), subject).await?;
        let body = match answer.filter(|body| is_index(body)) {
            Some(body) => body,
            None => self.referrers_by_tag(repository, subject).await?,
        };
        let digest = Digest::sha256_of(&body);
        let metadata = self.content().metadata();
        if self.content().put(&digest, body.clone()).await.is_ok() {
            let noted =
                metadata.set_referrers(repository.key(), subject, &digest, self.now()).await;
            if let Err(error) = noted {
                tracing::warn!(?error, "a list of referrers could not be recorded");
            }
        }
        Ok(body)
    }

    /// The referrers tag schema (OCI distribution spec 1.1): an index under the tag `sha256-<hex>`.
    async fn referrers_by_tag(
        self: &Arc<Self>,
        repository: &Proxied,
        subject: &Digest,
    ) -> Result<Bytes, Error> {
        let mut text = format!("{}-{}", subject.algorithm().as_str(), subject.hex());
        // The spec cuts the parts so that the result is a tag: 32 characters of algorithm and 64 of hash.
        text.truncate(subject.algorithm().as_str().len() + 1 + 64);
        let Ok(tag) = text.parse::<Tag>() else {
            return Ok(empty_index());
        };
        match self.tag(repository, &tag).await {
            Ok((_, super::tags::Tagged::Stale { reason, .. })) => Err(Error::Unreachable {
                reason,
                message: "upstream cannot be asked for referrers".to_owned(),
            }),
            Ok((manifest, _)) if is_index(&manifest.bytes) => Ok(manifest.bytes),
            // A manifest of another kind under that tag is no list of referrers.
            Ok(_) | Err(Error::Absent) => Ok(empty_index()),
            Err(error) => Err(error),
        }
    }
}

fn is_index(body: &[u8]) -> bool {
    let manifest = oci::Manifest::parse(body, Some(MediaType::OCI_INDEX));
    manifest.is_ok_and(|manifest| manifest.kind == ManifestKind::Index)
}

fn lists_something(index: &[u8]) -> bool {
    let manifest = oci::Manifest::parse(index, Some(MediaType::OCI_INDEX));
    manifest.is_ok_and(|manifest| !manifest.children.is_empty())
}

/// An OCI index that lists nothing.
pub(super) fn empty_index() -> Bytes {
    let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [] });
    Bytes::from(index.to_string())
}

/// The index with only those descriptors whose `artifactType` is the one asked for.
pub fn filter_referrers(index: &Bytes, artifact_type: &str) -> Option<Bytes> {
    let mut document: Value = serde_json::from_slice(index).ok()?;
    let manifests = document.get_mut("manifests")?.as_array_mut()?;
    manifests.retain(|descriptor| {
        descriptor.get("artifactType").and_then(Value::as_str) == Some(artifact_type)
    });
    Some(Bytes::from(document.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_index_is_an_index() {
        assert!(is_index(&empty_index()));
        assert!(!is_index(b"{}"));
        assert!(!is_index(b"<html>"));
    }

    #[test]
    fn the_filter_keeps_what_was_asked_for() {
        let digest = Digest::sha256_of(b"x").to_string();
        let entry = |kind: &str| json!({"mediaType": "a/b", "digest": digest, "size": 1, "artifactType": kind});
        let index = json!({"schemaVersion": 2, "manifests": [entry("x/sig"), entry("x/sbom")], "annotations": {"k": "v"}});
        let filtered = filter_referrers(&Bytes::from(index.to_string()), "x/sig").unwrap();
        let value: Value = serde_json::from_slice(&filtered).unwrap();
        assert_eq!(value["manifests"].as_array().unwrap().len(), 1);
        assert_eq!(value["annotations"]["k"], "v");
    }
}
