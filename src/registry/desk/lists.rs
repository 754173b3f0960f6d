//! What is here, in pages: tags, timelines, lockfiles, figures.

use super::error::{Error, Reason};
use super::image::{self, Image};
use super::model::{HistoryEntry, Listed, Locked, TagInfo, UpstreamUsage, UsageInfo};
use super::service::{Desk, Standing};
use super::settings::{LIST_LIMIT_MAX, LOCKED_MAX};
use crate::clock::Timestamp;
use crate::metadata::{NamedTag, RepositoryKey, RuleKind, Rules, Within};
use crate::oci::{RegistryName, Tag};

/// Objects that wait for their end are counted so far.
const DOOMED_COUNTED: u32 = 100_000;

impl Desk {
    /// Tags that are known, absent ones included, in the order of their names; `after` is the `next` of the page before.
    pub async fn images(
        &self,
        within: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Listed<TagInfo>, Error> {
        let upstreams = self.upstreams();
        let within = within.map(|text| image::within(text, &upstreams)).transpose()?;
        let after = after.map(place_in_list).transpose()?;
        let limit = limit.clamp(1, LIST_LIMIT_MAX);
        let place = within.as_ref().map(|(within, _configured)| within);
        // One more tells whether there is another page.
        let mut found = self.metadata().tag_records(place, after.as_ref(), limit + 1).await?;
        if let (true, None, Some((within, configured))) = (found.is_empty(), &after, &within) {
            // An empty list is an answer for a registry that is served here.
            if !(*configured && matches!(within, Within::Upstream(_))) {
                return Err(image::nothing_within(within, *configured));
            }
        }
        let more = found.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            found.pop();
        }
        let next =
            found.last().filter(|_| more).map(|last| format!("{}:{}", last.repository, last.tag));
        let rules = self.rules();
        let mut items = Vec::with_capacity(found.len());
        for named in found {
            items.push(self.tag_info(&rules, named).await?);
        }
        Ok(Listed { items, next })
    }

    async fn tag_info(&self, rules: &Rules, named: NamedTag) -> Result<TagInfo, Error> {
        let NamedTag { repository, tag, record, mut present, mut accessed } = named;
        let now = self.now();
        let (moved, confirmed) = (record.moved, record.confirmed);
        let frozen = match rules.frozen(&repository, &tag, now) {
            Some(since) => {
                Some((since, self.metadata().frozen_at(&repository, &tag, since).await?))
            }
            None => None,
        };
        let current = record.digest;
        let standing = Standing { record, frozen };
        let digest = standing.digest();
        if digest != current {
            // The row tells of the revision that upstream has.
            accessed = None;
            present = match &digest {
                Some(digest) => self.is_present(&repository, digest).await?,
                None => false,
            };
        }
        let pinned = digest.is_some_and(|digest| {
            rules.pin_of(&repository, &digest, std::iter::once(&tag), now).is_some()
        });
        Ok(TagInfo {
            image: format!("{repository}:{tag}"),
            digest: digest.map(|digest| digest.to_string()),
            present,
            moved,
            confirmed,
            used: accessed,
            pinned,
            frozen: standing.frozen.is_some(),
        })
    }

    async fn is_present(
        &self,
        key: &RepositoryKey,
        digest: &crate::oci::Digest,
    ) -> Result<bool, Error> {
        Ok(self.metadata().revision(key, digest).await?.is_some_and(|revision| revision.present))
    }

    /// The timeline of a tag, the newest first; `before` is the `next` of the page before.
    pub async fn history(
        &self,
        text: &str,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Listed<HistoryEntry>, Error> {
        let image = self.image(text)?.meant();
        let (Some(tag), None) = (&image.tag, &image.digest) else {
            let message = format!(
                "{image} names a revision, which has no timeline; name a tag, such as {}:latest",
                image.key
            );
            return Err(Error::new(Reason::Image, message));
        };
        let standing = self.standing(&image.key, tag).await?.ok_or_else(|| image.unknown())?;
        let limit = limit.clamp(1, LIST_LIMIT_MAX);
        let mut found = self.metadata().history(&image.key, tag, before, limit + 1).await?;
        let more = found.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            found.pop();
        }
        let next = found.last().filter(|_| more).map(|last| last.id.to_string());
        let items = found.into_iter().map(|moment| {
            let served = match &standing.frozen {
                Some((_, Some(entry))) => {
                    entry.since == moment.entry.since && entry.digest == moment.entry.digest
                }
                Some((_, None)) | None => moment.entry.until.is_none(),
            };
            HistoryEntry {
                id: moment.id,
                digest: moment.entry.digest.map(|digest| digest.to_string()),
                since: moment.entry.since,
                until: moment.entry.until,
                source: moment.entry.source,
                present: moment.present,
                served: served && moment.entry.digest.is_some(),
            }
        });
        Ok(Listed { items: items.collect(), next })
    }

    /// The revisions that these images are now, for a lockfile: all of them, or the first that cannot be told.
    pub async fn locked(&self, texts: &[String]) -> Result<Vec<Locked>, Error> {
        if texts.is_empty() || texts.len() > LOCKED_MAX {
            let message = format!("{} images; want 1 to {LOCKED_MAX} at a time", texts.len());
            return Err(Error::new(Reason::Value, message));
        }
        let mut locked = Vec::with_capacity(texts.len());
        for text in texts {
            let image: Image = self.image(text)?.meant();
            let digest = self.revision_of(&image).await?;
            let name = Image { digest: None, ..image };
            locked.push(Locked {
                image: name.to_string(),
                digest: digest.to_string(),
                at: self.now(),
            });
        }
        Ok(locked)
    }

    /// What is stored, and what may be.
    pub async fn usage(&self) -> Result<UsageInfo, Error> {
        let (metadata, settings) = (self.metadata(), self.settings());
        let (usage, room) = (metadata.usage().await?, self.content().room());
        let limit_of = |name: &RegistryName| {
            let mut limits = settings.max_bytes_by_upstream.iter();
            limits.find(|(limited, _)| limited == name).map(|(_, bytes)| *bytes)
        };
        let upstreams =
            metadata.usage_by_upstream().await?.into_iter().map(|(name, usage)| UpstreamUsage {
                max_bytes: name.as_ref().and_then(limit_of),
                upstream: name.map(|name| name.to_string()),
                objects: usage.objects,
                bytes: usage.bytes,
            });
        let end = Timestamp::from_millis(i64::MAX);
        let doomed = metadata.doomed(end, DOOMED_COUNTED).await?.len();
        Ok(UsageInfo {
            objects: usage.objects,
            bytes: usage.bytes,
            max_bytes: settings.max_bytes,
            free_bytes: room.free,
            min_free_bytes: room.min_free,
            doomed: u64::try_from(doomed).unwrap_or(u64::MAX),
            upstreams: upstreams.collect(),
        })
    }

    /// The rules of a kind, those that are over included.
    pub(super) fn rules_of(&self, kind: RuleKind) -> Vec<crate::metadata::Rule> {
        self.rules().all().iter().filter(|rule| rule.kind == kind).cloned().collect()
    }
}

/// Reads back where a page ended.
fn place_in_list(text: &str) -> Result<(RepositoryKey, Tag), Error> {
    let place = || {
        let (upstream, rest) = text.split_once('/')?;
        let (name, tag) = rest.rsplit_once(':')?;
        let key = RepositoryKey { upstream: upstream.parse().ok()?, name: name.parse().ok()? };
        Some((key, tag.parse().ok()?))
    };
    place().ok_or_else(|| {
        let message =
            "after is no place in this list; hand in `next` of the page before as it came";
        Error::new(Reason::Value, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_list_is_read_as_it_was_written() {
        let (key, tag) = place_in_list("localhost:5001/a/b:v1").unwrap();
        assert_eq!(format!("{key}:{tag}"), "localhost:5001/a/b:v1");
        for text in ["", "nginx", "docker.io/a", "docker.io/A:b", "docker.io/a:", "a b/c:d"] {
            assert_eq!(place_in_list(text).unwrap_err().reason, Reason::Value, "{text}");
        }
    }
}
