//! What clients asked for and did not get, and the switch that says which upstreams are asked.

use std::collections::{BTreeSet, HashMap};

use super::error::{Error, Reason};
use super::model::{OfflineInfo, WantedInfo};
use super::place::{NoPlace, Place};
use super::service::Carry;
use crate::clock::Timestamp;
use crate::metadata::{Holder, RepositoryKey, Switch, Switches, Wanted, WantedWhat};
use crate::oci::Digest;
use crate::registry::desk::{LIST_LIMIT_MAX, Listed};

/// Revisions among which one is looked for that needs a blob, the nearest first.
const HOLDERS_LOOKED_AT: u32 = 64;
/// What stands before the place of a blob, where a revision has nothing.
const BLOB: &str = "blob ";

impl Carry {
    /// What was missed since a moment and is not here now, by name, with the images that [`super::WarmOrder`] takes: a blob is named by a
    /// manifest of its repository that needs it, if one is known. An image is in a page once.
    pub async fn wanted(
        &self,
        since: Option<Timestamp>,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Listed<WantedInfo>, Error> {
        let limit = limit.clamp(1, LIST_LIMIT_MAX);
        let after = after.map(place_in_list).transpose()?;
        let after = after.as_ref().map(|(repository, what)| (repository, what));
        let since = since.unwrap_or(Timestamp::from_millis(i64::MIN));
        // One more tells whether there is another page.
        let mut found = self.content().metadata().wanted(since, after, limit + 1).await?;
        let more = found.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            found.pop();
        }
        let next = found.last().filter(|_| more).map(|last| place_of(&last.repository, &last.what));
        let mut items: Vec<WantedInfo> = Vec::with_capacity(found.len());
        let mut places = HashMap::new();
        for wanted in found {
            let info = self.wanted_info(wanted).await?;
            match places.get(&info.image) {
                Some(place) => add(&mut items[*place], &info),
                None => {
                    places.insert(info.image.clone(), items.len());
                    items.push(info);
                }
            }
        }
        Ok(Listed { items, next })
    }

    async fn wanted_info(&self, wanted: Wanted) -> Result<WantedInfo, Error> {
        let Wanted { repository, what, first, last, times, unreachable } = wanted;
        let of = |digest| Place { repository: repository.clone(), tag: None, digest: Some(digest) };
        let (place, kind) = match what {
            WantedWhat::Tag(tag) => {
                (Place { repository: repository.clone(), tag: Some(tag), digest: None }, "manifest")
            }
            WantedWhat::Revision(digest) => (of(digest), "manifest"),
            WantedWhat::Blob(digest) => match self.needed_by(&repository, &digest).await? {
                Some(revision) => (of(revision), "manifest"),
                None => (of(digest), "blob"),
            },
        };
        let reason = if unreachable { "unreachable" } else { "offline" };
        let (image, kind, reason) = (place.to_string(), kind.to_owned(), reason.to_owned());
        Ok(WantedInfo { image, kind, first, last, times, reason })
    }

    /// The nearest manifest of the repository that needs a blob.
    async fn needed_by(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Option<Digest>, Error> {
        let holders = self.content().metadata().holders(digest, HOLDERS_LOOKED_AT).await?;
        let needs = |holder: &&Holder| {
            holder.repository == *repository
                && !holder.over_subject
                && holder.revision != *digest
                && holder.unlinked.is_none()
        };
        Ok(holders.revisions.iter().find(needs).map(|holder| holder.revision))
    }

    /// Forgets what was missed; tells how many there were.
    pub async fn forget_wanted(&self) -> Result<u64, Error> {
        Ok(self.content().metadata().forget_wanted().await?)
    }

    /// Which upstreams are not asked.
    pub fn offline(&self) -> OfflineInfo {
        let (configured, by_configuration) = self.inner().desk.configured_offline();
        let rules = self.content().metadata().rules();
        let off = rules.switched_off();
        let by_configuration = by_configuration.iter().map(ToString::to_string);
        // By name, each once.
        let upstreams: BTreeSet<String> = by_configuration.chain(names(off)).collect();
        OfflineInfo { configured, all: off.all, upstreams: upstreams.into_iter().collect() }
    }

    /// Says at the start what was switched off before it: nobody else would tell why misses are not fetched.
    pub(super) fn say_switches(&self) {
        let rules = self.content().metadata().rules();
        let off = rules.switched_off();
        if *off != Switches::default() {
            let names: Vec<String> = names(off).collect();
            tracing::warn!(
                all = off.all,
                upstreams = names.join(", "),
                "upstreams are switched off since before the start; `roadstead online` takes that back"
            );
        }
    }

    /// Switches one upstream, a family of hosts as a whole, or all of them, from the next request on and over restarts. What the
    /// configuration says is offline stays so. What is not configured any more can only be switched on.
    pub async fn switch(
        &self,
        upstream: Option<&str>,
        offline: bool,
    ) -> Result<OfflineInfo, Error> {
        let metadata = self.content().metadata();
        let what = match upstream {
            None => Switch::All,
            Some(text) => {
                let (what, configured) = self.inner().desk.switch_named(text)?;
                let known = !offline && metadata.rules().switched_off().has(&what);
                if !configured && !known {
                    let message = match what {
                        Switch::Family(_) => format!(
                            "no upstream is configured with the family {what} (`patterns`), so it is not asked anyway"
                        ),
                        _ => format!("{what} is not configured, so it is not asked anyway"),
                    };
                    return Err(Error::new(Reason::UnknownRegistry, message));
                }
                what
            }
        };
        metadata.switch(what.clone(), offline).await?;
        tracing::info!(upstream = %what, offline, "an upstream was switched");
        Ok(self.offline())
    }
}

/// What is switched off besides all of them.
fn names(off: &Switches) -> impl Iterator<Item = String> {
    let upstreams = off.upstreams.iter().map(ToString::to_string);
    upstreams.chain(off.families.iter().map(ToString::to_string))
}

/// An image was missed in more than one way.
fn add(known: &mut WantedInfo, more: &WantedInfo) {
    known.first = known.first.min(more.first);
    if more.last > known.last {
        known.last = more.last;
        known.reason.clone_from(&more.reason);
    }
    known.times = known.times.saturating_add(more.times);
}

/// The place behind which the next page begins, as text.
fn place_of(repository: &RepositoryKey, what: &WantedWhat) -> String {
    let repository = repository.clone();
    match what {
        WantedWhat::Tag(tag) => {
            Place { repository, tag: Some(tag.clone()), digest: None }.to_string()
        }
        WantedWhat::Revision(digest) => {
            Place { repository, tag: None, digest: Some(*digest) }.to_string()
        }
        WantedWhat::Blob(digest) => {
            let place = Place { repository, tag: None, digest: Some(*digest) };
            format!("{BLOB}{place}")
        }
    }
}

fn place_in_list(text: &str) -> Result<(RepositoryKey, WantedWhat), NoPlace> {
    let (text, is_blob) = match text.strip_prefix(BLOB) {
        Some(text) => (text, true),
        None => (text, false),
    };
    let Place { repository, tag, digest } = text.parse()?;
    let what = match (tag, digest, is_blob) {
        (Some(tag), None, false) => WantedWhat::Tag(tag),
        (None, Some(digest), false) => WantedWhat::Revision(digest),
        (None, Some(digest), true) => WantedWhat::Blob(digest),
        _ => return Err(NoPlace),
    };
    Ok((repository, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_where_the_one_before_ended() {
        let repository = RepositoryKey {
            upstream: "localhost:5001".parse().unwrap(),
            name: "a/b".parse().unwrap(),
        };
        let digest = Digest::sha256_of(b"x");
        for what in [
            WantedWhat::Tag("v1".parse().unwrap()),
            WantedWhat::Revision(digest),
            WantedWhat::Blob(digest),
        ] {
            let text = place_of(&repository, &what);
            assert_eq!(place_in_list(&text), Ok((repository.clone(), what)));
        }
        assert_eq!(place_in_list("blob docker.io/a:v1"), Err(NoPlace));
        assert_eq!(place_in_list(&format!("docker.io/a:v1@{digest}")), Err(NoPlace));
    }
}
