//! The proxy tag service: what a tag points at, as fresh as the policy wants and as long as an outage needs.
//!
//! What must hold: one check per tag runs at a time, however many ask; a check runs to its end even if everybody who waited for it
//! has gone; a tag moves in one transaction with the revision it moves to, before anybody is answered; absence and denial are recorded,
//! so that no later outage brings the tag back. The decisions are in `policy.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::policy::{Attempt, Known, Refusal, Verdict, decide};
use super::revisions::{Fetched, Manifest, Offer, Revision};
use super::settings::{TagPolicy, WhenAbsent};
use super::shared::Shared;
use super::source::Proxied;
use crate::clock::Timestamp;
use crate::metadata::{TagMove, TagRecord};
use crate::oci::{Digest, Reference, Tag};
use crate::upstream::{self, Endpoint, ManifestHead};

/// What a check of a tag with upstream found.
#[derive(Clone, Debug)]
pub(super) enum Checked {
    /// The tag points at what it pointed at before.
    Confirmed { digest: Digest, source: String },
    /// It points at something else, or was never seen.
    Moved { manifest: Manifest, stored: bool },
}

/// How a tag was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tagged {
    /// Known, and fresh for this much longer; `None` is without end (offline, immutable).
    Fresh { left: Option<Duration> },
    /// Upstream confirmed it just now.
    Revalidated { fresh_for: Duration },
    /// Fetched just now.
    Fetched { fresh_for: Duration, stored: bool },
    /// Fetched by a check that another client had started.
    Joined { fresh_for: Duration },
    /// Not confirmed; the word says why, the duration how long past its freshness.
    Stale { reason: &'static str, stale_for: Duration, missing_children: u64 },
    /// The operator holds it where it was, whatever upstream says; `how` that revision was found.
    Frozen { how: Revision },
}

/// A tag that is being resolved.
pub(super) struct Asked<'a> {
    pub(super) repository: &'a Proxied,
    pub(super) tag: &'a Tag,
    pub(super) policy: &'a TagPolicy,
    /// The record, if it points at something.
    pub(super) known: Option<(Digest, Known)>,
}

/// What copies said of a known tag that was not the last word.
#[derive(Default)]
struct Heard {
    /// The last of them that was asked.
    beyond: Option<Endpoint>,
    /// One of them has what the tag left behind: another one that confirms it may be the one that lags.
    disputed: bool,
    /// The tag is what it was, as one of them says against another.
    confirmed: Option<Checked>,
}

impl Heard {
    /// Is this endpoint's confirmation the last word?
    fn settles(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_origin() || !self.disputed
    }

    /// A copy's confirmation counts where the registry itself cannot be asked.
    fn confirmed_despite(self, error: upstream::Error) -> Result<Checked, upstream::Error> {
        if error.is_decision() { Err(error) } else { self.confirmed.ok_or(error) }
    }
}

impl Shared {
    /// What `tag` points at.
    pub(super) async fn tag(
        self: &Arc<Self>,
        repository: &Proxied,
        tag: &Tag,
    ) -> Result<(Manifest, Tagged), Error> {
        if let Some(then) = repository.moment() {
            return self.tag_then(repository, tag, then).await;
        }
        let policy = repository.source().tag_policy(repository.name(), tag);
        let key = (repository.key().clone(), tag.clone());
        let record =
            self.content().metadata().tag(repository.key(), tag).await.unwrap_or_else(|error| {
                tracing::warn!(?error, "the metadata cannot be asked; going upstream");
                None
            });
        let failed = self.failed.get(&key);
        let denied = record.as_ref().is_some_and(TagRecord::is_denied);
        let known = record.and_then(|record| {
            let failed = failed.filter(|failed| *failed >= record.confirmed);
            let elsewhere = !repository.upstream().has_endpoint_at(&record.source);
            Some((record.digest?, Known { confirmed: record.confirmed, failed, elsewhere }))
        });
        let now = self.now();
        let offline = self.is_offline(repository);
        let remembered = self.absent.get(&key).filter(|when| self.within(*when, policy.absent_for));
        let asked = Asked { repository, tag, policy, known };
        if let Some(digest) = self.frozen_revision(repository, tag).await? {
            return self.frozen(&asked, &digest, (denied, remembered.is_some())).await;
        }
        if known.is_none() && remembered.is_some() && !offline {
            return Err(Error::Absent);
        }
        let view = known.map(|(_, known)| known);
        match decide(now, view, policy, offline, Attempt::NotTried) {
            Verdict::Fresh { left } => self.fresh(&asked, left).await,
            Verdict::ServeThenCheck { stale_for } => {
                if !repository.upstream().is_sparing() {
                    drop(self.start_check(&asked));
                }
                self.stale(&asked, "while_revalidate", stale_for).await
            }
            Verdict::Check { wait } => self.ask(&asked, wait).await,
            Verdict::Stale { stale_for } => self.stale(&asked, "failed_lately", stale_for).await,
            Verdict::Refuse(refusal) => Err(refused(refusal, None)),
        }
    }

    /// What `tag` pointed at then, by what is recorded and stored here.
    async fn tag_then(
        self: &Arc<Self>,
        repository: &Proxied,
        tag: &Tag,
        then: Timestamp,
    ) -> Result<(Manifest, Tagged), Error> {
        let (metadata, key) = (self.content().metadata(), repository.key());
        let unreadable = |error| {
            tracing::warn!(?error, "the timeline cannot be read");
            Error::Store("the timeline cannot be read".to_owned())
        };
        let entry = metadata.tag_at(key, tag, then).await.map_err(unreadable)?;
        let known = entry.is_some();
        if let Some(digest) = entry.and_then(|entry| entry.digest) {
            self.no_denial_since(repository, tag).await?;
            let (manifest, _how) = self.revision(repository, &digest).await?;
            return Ok((manifest, Tagged::Fresh { left: None }));
        }
        let first = metadata.first_seen(key, tag).await.map_err(unreadable)?;
        Err(Error::NotThen(match first {
            Some(first) if !known && first > then => {
                format!("{tag} was first seen here at {first}, after {then}")
            }
            Some(_earlier) => format!("{tag} was not there at {then}"),
            None => format!("{tag} was never seen here"),
        }))
    }

    async fn fresh(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        left: Option<Duration>,
    ) -> Result<(Manifest, Tagged), Error> {
        let Some((digest, _)) = asked.known else {
            return Err(Error::Absent);
        };
        match self.revision(asked.repository, &digest).await {
            Ok((manifest, Revision::Stored | Revision::Renewed)) => {
                Ok((manifest, Tagged::Fresh { left }))
            }
            Ok((manifest, _fetched_again)) => {
                let fresh_for = left.unwrap_or(asked.policy.fresh_for);
                Ok((manifest, Tagged::Fetched { fresh_for, stored: true }))
            }
            // The bytes are gone here and upstream no longer has the digest: then the tag itself decides.
            Err(Error::Absent) if !self.is_offline(asked.repository) => self.ask(asked, None).await,
            Err(error) => Err(error),
        }
    }

    /// Asks upstream, alone or with others, and waits at most `wait`.
    async fn ask(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        wait: Option<Duration>,
    ) -> Result<(Manifest, Tagged), Error> {
        // A check that succeeds after this moment outdates the note that it took too long.
        let began = self.now();
        let (mut result, joined) = self.start_check(asked);
        let answer = async {
            match result.wait_for(Option::is_some).await {
                Ok(value) => value.clone(),
                Err(_closed) => None,
            }
        };
        let answer = match wait {
            Some(wait) => tokio::time::timeout(wait, answer).await,
            None => Ok(answer.await),
        };
        let gone = || upstream::Error::Unreachable(upstream::Cause::Other("shutting down".into()));
        match answer {
            Ok(answer) => match answer.unwrap_or_else(|| Err(gone())) {
                Ok(checked) => self.checked(asked, checked, joined).await,
                Err(error) => self.unchecked(asked, &error).await,
            },
            // The check goes on; until it ends nobody else waits for it.
            Err(_elapsed) => {
                let key = (asked.repository.key().clone(), asked.tag.clone());
                self.failed.insert(key, began);
                self.unchecked(asked, &upstream::Error::Unreachable(upstream::Cause::Timeout)).await
            }
        }
    }

    async fn checked(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        checked: Checked,
        joined: bool,
    ) -> Result<(Manifest, Tagged), Error> {
        let fresh_for = asked.policy.fresh_for;
        match checked {
            Checked::Confirmed { digest, .. } => {
                let (manifest, _how) = self.revision(asked.repository, &digest).await?;
                Ok((manifest, Tagged::Revalidated { fresh_for }))
            }
            Checked::Moved { manifest, .. } if joined => {
                Ok((manifest, Tagged::Joined { fresh_for }))
            }
            Checked::Moved { manifest, stored } => {
                Ok((manifest, Tagged::Fetched { fresh_for, stored }))
            }
        }
    }

    /// Upstream did not confirm the tag: bridge or refuse.
    async fn unchecked(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        error: &upstream::Error,
    ) -> Result<(Manifest, Tagged), Error> {
        let attempt = self.attempt(asked.repository, error);
        let view = asked.known.map(|(_, known)| known);
        match decide(self.now(), view, asked.policy, self.is_offline(asked.repository), attempt) {
            Verdict::Stale { stale_for } => self.stale(asked, error.reason(), stale_for).await,
            Verdict::Refuse(refusal) => Err(refused(refusal, Some(error))),
            // After an attempt the policy knows only these two; anything else would ask again for ever.
            Verdict::Fresh { .. } | Verdict::ServeThenCheck { .. } | Verdict::Check { .. } => {
                Err(error.clone().into())
            }
        }
    }

    async fn stale(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        reason: &'static str,
        stale_for: Duration,
    ) -> Result<(Manifest, Tagged), Error> {
        let Some((digest, known)) = asked.known else {
            return Err(Error::Absent);
        };
        let (manifest, _how) = self.revision(asked.repository, &digest).await?;
        let key = asked.repository.key();
        let missing_children =
            self.content().metadata().missing_children(key, &digest).await.unwrap_or(0);
        self.parts.metrics.stale_answer(key, asked.tag, known.confirmed);
        Ok((manifest, Tagged::Stale { reason, stale_for, missing_children }))
    }

    fn attempt(&self, repository: &Proxied, error: &upstream::Error) -> Attempt {
        match error {
            upstream::Error::Absent => Attempt::Absent,
            upstream::Error::Denied => Attempt::Denied,
            upstream::Error::Limited { .. } => Attempt::Limited,
            upstream::Error::Credential(_) => {
                let private = repository.source().shares_private();
                Attempt::Credential { grace: private.then(|| repository.policy().credential_grace) }
            }
            upstream::Error::Unreachable(_)
            | upstream::Error::Junk(_)
            | upstream::Error::TooLarge
            | upstream::Error::HeadUnusable => Attempt::Unreachable,
        }
    }

    pub(super) fn start_check(
        self: &Arc<Self>,
        asked: &Asked<'_>,
    ) -> (tokio::sync::watch::Receiver<Option<Result<Checked, upstream::Error>>>, bool) {
        let identity = asked.repository.upstream().credential_fingerprint();
        let key = ((asked.repository.key().clone(), asked.tag.clone()), identity);
        let (shared, repository, tag) =
            (Arc::clone(self), asked.repository.clone(), asked.tag.clone());
        self.begin(
            |shared| &shared.checks,
            key,
            async move { shared.check(&repository, &tag).await },
        )
    }

    /// One check of a tag with upstream, and everything that is recorded of it.
    pub(super) async fn check(
        self: Arc<Self>,
        repository: &Proxied,
        tag: &Tag,
    ) -> Result<Checked, upstream::Error> {
        let metadata = self.content().metadata();
        // Read again: an earlier check may have ended between the caller's look and this one's start.
        let record = metadata.tag(repository.key(), tag).await.unwrap_or_default();
        let result = self.compare(repository, tag, record.as_ref()).await;
        let key = (repository.key().clone(), tag.clone());
        let now = self.now();
        match &result {
            Ok(checked) => {
                self.record_outcome(repository, tag, checked, record.as_ref()).await;
                self.failed.invalidate(&key);
                self.absent.invalidate(&key);
                self.parts.metrics.confirmed(repository.key(), tag);
            }
            Err(upstream::Error::Absent) => {
                self.absent.insert(key, now);
                if repository.source().tag_policy(repository.name(), tag).when_absent
                    == WhenAbsent::Obey
                {
                    let source = repository.upstream().host().to_owned();
                    self.record_end(repository, tag, record, &source).await;
                }
            }
            Err(upstream::Error::Denied) => {
                let source = TagRecord::denied_by(repository.upstream().host());
                self.record_end(repository, tag, record, &source).await;
            }
            Err(error) => {
                tracing::warn!(
                    upstream = %repository.key().upstream, repository = %repository.name(), %tag,
                    reason = error.reason(), detail = ?error, "a tag could not be checked with upstream"
                );
                self.failed.insert(key, now);
            }
        }
        result
    }

    /// What a check found: a move was written with its revision; a confirmation is noted in passing, unless another host than before
    /// gives it.
    async fn record_outcome(
        &self,
        repository: &Proxied,
        tag: &Tag,
        checked: &Checked,
        record: Option<&TagRecord>,
    ) {
        let (digest, source) = match checked {
            Checked::Confirmed { digest, source } => (digest, source),
            Checked::Moved { manifest, .. } => {
                let from = record.and_then(|record| record.digest).map(|digest| digest.to_string());
                tracing::info!(
                    upstream = %repository.key().upstream, repository = %repository.name(), %tag,
                    from = from.as_deref().unwrap_or("nothing"), to = %manifest.digest, "tag moved"
                );
                self.parts.metrics.tag_moved(&repository.key().upstream);
                return;
            }
        };
        let (metadata, now) = (self.content().metadata(), self.now());
        let upstream = repository.upstream();
        if record.is_some_and(|record| upstream.has_endpoint_at(&record.source)) {
            metadata.confirm_tag(repository.key(), tag, now);
        } else if let Err(error) =
            metadata.move_tag(repository.key(), tag, Some(*digest), source, now).await
        {
            tracing::warn!(?error, %tag, "the confirmation of a tag could not be recorded");
        }
    }

    /// From here on the tag is absent, or denied, as `source` tells: the timeline says so, and no outage brings it back.
    async fn record_end(
        &self,
        repository: &Proxied,
        tag: &Tag,
        record: Option<TagRecord>,
        source: &str,
    ) {
        let Some(record) =
            record.filter(|record| record.digest.is_some() || record.source != source)
        else {
            return;
        };
        let metadata = self.content().metadata();
        if record.digest.is_none() {
            // It has ended before, in another way.
            let noted = metadata.move_tag(repository.key(), tag, None, source, self.now()).await;
            if let Err(error) = noted {
                tracing::warn!(?error, %tag, "how a tag ended could not be recorded");
            }
            return;
        }
        tracing::info!(
            upstream = %repository.key().upstream, repository = %repository.name(), %tag,
            "tag is gone upstream; its content stays addressable by digest"
        );
        if let Err(error) = metadata.move_tag(repository.key(), tag, None, source, self.now()).await
        {
            tracing::warn!(?error, %tag, "the end of a tag could not be recorded");
        }
        self.parts.metrics.tag_moved(&repository.key().upstream);
    }

    /// Compares what is known with upstream by the cheapest way that can be trusted. A copy may lag behind: what it could not confirm
    /// itself, and what the tag has left behind, is a reason to ask on, up to the registry itself, whose word alone moves a tag back and settles what copies disagree about.
    async fn compare(
        &self,
        repository: &Proxied,
        tag: &Tag,
        record: Option<&TagRecord>,
    ) -> Result<Checked, upstream::Error> {
        let known = record.and_then(|record| record.digest);
        let mut heard = Heard::default();
        let Some(known) = known else {
            return self.compare_content(repository, tag, record, heard).await;
        };
        let mut moved = false;
        loop {
            let head = match self.head(repository, tag, heard.beyond.as_ref()).await {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(error) => return heard.confirmed_despite(error),
            };
            let Some(told) = head.digest else { break };
            let lags = self
                .may_lag(repository, (tag, Some(known)), &told, (&head.endpoint, head.stale))
                .await;
            let source = head.endpoint.host().to_owned();
            if !lags && told != known {
                let tag_move = TagMove { tag: tag.clone(), source };
                if let Some(checked) = self.move_to(repository, &told, &tag_move).await? {
                    return Ok(checked);
                }
                moved = true;
                break;
            }
            if !lags {
                let confirmed = Checked::Confirmed { digest: known, source };
                if heard.settles(&head.endpoint) {
                    return Ok(confirmed);
                }
                heard.confirmed = Some(confirmed);
            }
            heard.disputed |= told != known && !head.stale;
            heard.beyond = Some(head.endpoint);
        }
        // Nobody whose word counts says that the tag moved, and what is here is good.
        if !moved && repository.upstream().is_sparing() {
            return heard.confirmed_despite(upstream::Error::Limited { retry_after: None });
        }
        self.compare_content(repository, tag, record, heard).await
    }

    /// The same by what the tag points at.
    async fn compare_content(
        &self,
        repository: &Proxied,
        tag: &Tag,
        record: Option<&TagRecord>,
        mut heard: Heard,
    ) -> Result<Checked, upstream::Error> {
        let known = record.and_then(|record| record.digest);
        // What a copy could not confirm is better than nothing for a tag that was never seen.
        let mut unconfirmed = None;
        loop {
            let offer = match self.offer(repository, tag, heard.beyond.as_ref()).await {
                Ok(offer) => offer,
                Err(error) if error.is_decision() => return Err(error),
                Err(error) => match unconfirmed.take() {
                    Some(offer) => return Ok(self.moved(repository, offer, tag).await),
                    None => return heard.confirmed_despite(error),
                },
            };
            let (digest, endpoint, stale) = (offer.digest, offer.endpoint.clone(), offer.stale);
            if self.may_lag(repository, (tag, known), &digest, (&endpoint, stale)).await {
                heard.disputed |= known.is_some_and(|known| known != digest) && !stale;
                unconfirmed = unconfirmed.or_else(|| record.is_none().then_some(offer));
            } else if known == Some(digest) {
                // Its bytes may have been lost here.
                self.accept(repository, offer, None).await;
                let source = endpoint.host().to_owned();
                let confirmed = Checked::Confirmed { digest, source };
                if heard.settles(&endpoint) {
                    return Ok(confirmed);
                }
                heard.confirmed = Some(confirmed);
            } else {
                return Ok(self.moved(repository, offer, tag).await);
            }
            heard.beyond = Some(endpoint);
        }
    }

    async fn moved(&self, repository: &Proxied, offer: Offer, tag: &Tag) -> Checked {
        let Fetched { manifest, stored } = self.accept(repository, offer, Some(tag)).await;
        Checked::Moved { manifest, stored }
    }

    /// What HEAD says; `None` if only GET can tell.
    async fn head(
        &self,
        repository: &Proxied,
        tag: &Tag,
        beyond: Option<&Endpoint>,
    ) -> Result<Option<ManifestHead>, upstream::Error> {
        let (upstream, reference) = (repository.upstream(), Reference::Tag(tag.clone()));
        let head = match beyond {
            None => upstream.manifest_head(repository.name(), &reference).await,
            Some(beyond) => {
                upstream.manifest_head_beyond(beyond, repository.name(), &reference).await
            }
        };
        match head {
            Ok(head) => Ok(Some(head)),
            Err(upstream::Error::HeadUnusable) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Is this the word of a copy that may not know better: unconfirmed, or something that the tag has left behind?
    async fn may_lag(
        &self,
        repository: &Proxied,
        (tag, known): (&Tag, Option<Digest>),
        told: &Digest,
        (endpoint, stale): (&Endpoint, bool),
    ) -> bool {
        if endpoint.is_origin() || !stale && known == Some(*told) {
            return false;
        }
        let lags = stale || {
            let past = self.content().metadata().was_tagged(repository.key(), tag, told).await;
            past.unwrap_or_else(|error| {
                tracing::warn!(?error, "the timeline cannot be read; the registry itself is asked");
                true
            })
        };
        if lags {
            tracing::debug!(
                upstream = %repository.key().upstream, repository = %repository.name(), %tag,
                %endpoint, %told, stale, "a copy may lag behind; asking on"
            );
        }
        lags
    }

    /// Moves the tag to a digest that a HEAD named. `None`: upstream does not have it by digest, so the tag itself must be fetched. The
    /// same if it has something else there: HEAD lied, or named the payload digest of a signed schema 1 manifest.
    async fn move_to(
        &self,
        repository: &Proxied,
        digest: &Digest,
        tag_move: &TagMove,
    ) -> Result<Option<Checked>, upstream::Error> {
        if let Some(stored) = self.stored(repository, digest).await {
            let metadata = self.content().metadata();
            let (tag, source) = (&tag_move.tag, &tag_move.source);
            let moved =
                metadata.move_tag(repository.key(), tag, Some(*digest), source, self.now()).await;
            if let Err(error) = &moved {
                tracing::warn!(?error, %tag, "a tag move could not be recorded");
            }
            return Ok(Some(Checked::Moved { manifest: stored.into(), stored: moved.is_ok() }));
        }
        match self.fetch(repository, digest, Some(tag_move.clone())).await {
            Ok(fetched) => {
                Ok(Some(Checked::Moved { manifest: fetched.manifest, stored: fetched.stored }))
            }
            Err(upstream::Error::Absent | upstream::Error::Denied | upstream::Error::Junk(_)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) fn refused(refusal: Refusal, error: Option<&upstream::Error>) -> Error {
    match (refusal, error) {
        (Refusal::Absent, _) => Error::Absent,
        (Refusal::Offline, _) => Error::Offline,
        (Refusal::Denied | Refusal::Unavailable, Some(error)) => error.clone().into(),
        (Refusal::Denied, None) => Error::Denied("upstream denies access".to_owned()),
        (Refusal::Unavailable, None) => Error::Unreachable {
            reason: "failed_lately",
            message:
                "upstream could not be asked a moment ago, and what is known is too old to serve"
                    .to_owned(),
        },
    }
}
