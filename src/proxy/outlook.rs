//! What would happen to a request now, told without asking anybody; and a check of a tag on order.
//!
//! What must hold: the outlook is the decision of `policy.rs` on the same facts, so that it cannot say otherwise than a pull does; it
//! changes nothing, and no credential is in it.

use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::policy::{Attempt, Known, Refusal, Verdict, decide};
use super::service::Proxy;
use super::settings::Private;
use super::shared::Shared;
use super::source::Proxied;
use super::tags::Checked;
use crate::clock::Timestamp;
use crate::oci::{Digest, Reference, Tag};

/// What the rules and the record of a tag lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub prospect: Prospect,
    /// The upstream is not asked.
    pub offline: bool,
    /// The pattern of the rule for tags that is in force, if it is not the upstream's own policy.
    pub rule: Option<String>,
}

/// What a request would meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// The operator's rules are against it; why, in words.
    Denied(String),
    /// Nothing is known of it, and upstream would be asked.
    Unknown,
    /// Upstream said lately that it does not exist; it is asked again then.
    AbsentUntil(Timestamp),
    /// It is known to be absent; upstream would be asked again.
    AbsentSince(Timestamp),
    /// Upstream denies it; it would be asked again, unless it is not asked at all.
    DeniedSince(Timestamp),
    /// Served from here without a question; for how long.
    Fresh(Option<Duration>),
    /// Served from here, and checked behind the answer.
    ServedThenChecked(Duration),
    /// Upstream is asked, and the client waits at most so long before it gets what is here.
    Checked(Option<Duration>),
    /// Served from here because the last check failed, at that moment.
    Bridged { failed: Option<Timestamp>, stale_for: Duration },
    /// It cannot be served: too stale, or offline and never seen.
    Refused(&'static str),
}

/// What a check on order found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refreshing {
    Confirmed(Digest),
    Moved(Digest),
    /// Upstream has no such tag.
    Absent,
    /// Upstream, or the operator's rules, deny it.
    Denied(String),
    /// Upstream could not be asked, or made no sense.
    Unreachable(String),
}

impl Proxy {
    /// What a request for a tag would meet now. Asks the rows and nobody else.
    pub async fn outlook(&self, repository: &Proxied, tag: &Tag) -> Result<Outlook, Error> {
        self.shared().outlook(repository, tag).await
    }

    /// Why a repository is not served at all, as far as that is known without asking anybody.
    pub async fn barred(&self, repository: &Proxied) -> Option<String> {
        self.shared().barred(repository).await
    }

    /// Is the upstream of this repository not asked?
    pub fn is_offline(&self, repository: &Proxied) -> bool {
        self.shared().is_offline(repository)
    }

    /// Is so little left of the upstream's quota that only what somebody waits for is asked?
    pub fn is_sparing(&self, repository: &Proxied) -> bool {
        repository.upstream().is_sparing()
    }

    /// Asks upstream for a tag now, however fresh it is, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Offline`] if upstream may not be asked.
    pub async fn check_now(&self, repository: &Proxied, tag: &Tag) -> Result<Refreshing, Error> {
        if self.is_offline(repository) {
            return Err(Error::Offline);
        }
        let shared = self.shared();
        match shared.gate(repository, Some(&Reference::Tag(tag.clone()))).await {
            Ok(()) => {}
            Err(Error::Denied(why)) => return Ok(Refreshing::Denied(why)),
            Err(Error::Absent) => return Ok(Refreshing::Absent),
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => return Ok(Refreshing::Unreachable(error.to_string())),
        }
        let key = (repository.key().clone(), tag.clone());
        let identity = repository.upstream().credential_fingerprint();
        let (all, asked, wanted) = (Arc::clone(shared), repository.clone(), tag.clone());
        let check = async move { all.check(&asked, &wanted).await };
        let (checked, _joined) = shared.once(|shared| &shared.checks, (key, identity), check).await;
        Ok(match checked {
            Ok(Checked::Confirmed { digest, .. }) => Refreshing::Confirmed(digest),
            Ok(Checked::Moved { manifest, .. }) => Refreshing::Moved(manifest.digest),
            Err(error) => match Error::from(error) {
                Error::Absent => Refreshing::Absent,
                Error::Denied(why) => Refreshing::Denied(why),
                other => Refreshing::Unreachable(other.to_string()),
            },
        })
    }
}

impl Shared {
    async fn barred(&self, repository: &Proxied) -> Option<String> {
        let (source, upstream) = (repository.source(), &repository.key().upstream);
        if !source.admits(repository.name()) {
            return Some(format!("allow and deny of [upstream.\"{upstream}\"] do not admit it"));
        }
        let behind_credential = repository.upstream().credential_fingerprint().is_some();
        if !behind_credential || repository.policy().private == Private::Shared {
            return None;
        }
        let known =
            self.content().metadata().visibility(repository.key()).await.unwrap_or_default();
        let private = known.filter(|(public, _)| !public);
        private.map(|(_, since)| {
            format!(
                "it is not public, as was found out at {since}, and private = \"refuse\" in [upstream.\"{upstream}\"]"
            )
        })
    }

    async fn outlook(&self, repository: &Proxied, tag: &Tag) -> Result<Outlook, Error> {
        let offline = self.is_offline(repository);
        let rule = repository.source().tag_pattern(repository.name(), tag).map(ToOwned::to_owned);
        let of = |prospect| Outlook { prospect, offline, rule: rule.clone() };
        if let Some(why) = self.barred(repository).await {
            return Ok(of(Prospect::Denied(why)));
        }
        let policy = repository.source().tag_policy(repository.name(), tag);
        let record =
            self.content().metadata().tag(repository.key(), tag).await.map_err(|error| {
                tracing::warn!(?error, "the metadata cannot be asked");
                Error::Store("the metadata cannot be asked".to_owned())
            })?;
        let key = (repository.key().clone(), tag.clone());
        let remembered = self.absent.get(&key).filter(|when| self.within(*when, policy.absent_for));
        let record = match record {
            Some(record) if record.digest.is_some() => record,
            absent => {
                return Ok(of(match (absent, remembered) {
                    (Some(record), _) if record.is_denied() => Prospect::DeniedSince(record.moved),
                    _ if offline => Prospect::Refused("offline"),
                    (_, Some(when)) => Prospect::AbsentUntil(when.plus(policy.absent_for)),
                    (Some(record), None) => Prospect::AbsentSince(record.moved),
                    (None, None) => Prospect::Unknown,
                }));
            }
        };
        let failed = self.failed.get(&key).filter(|failed| *failed >= record.confirmed);
        let elsewhere = !repository.upstream().has_endpoint_at(&record.source);
        let known = Known { confirmed: record.confirmed, failed, elsewhere };
        let verdict = decide(self.now(), Some(known), policy, offline, Attempt::NotTried);
        Ok(of(foretold(verdict, failed)))
    }
}

fn foretold(verdict: Verdict, failed: Option<Timestamp>) -> Prospect {
    match verdict {
        Verdict::Fresh { left } => Prospect::Fresh(left),
        Verdict::ServeThenCheck { stale_for } => Prospect::ServedThenChecked(stale_for),
        Verdict::Check { wait } => Prospect::Checked(wait),
        Verdict::Stale { stale_for } => Prospect::Bridged { failed, stale_for },
        Verdict::Refuse(Refusal::Offline) => Prospect::Refused("offline"),
        Verdict::Refuse(Refusal::Absent) => Prospect::Refused("absent"),
        Verdict::Refuse(Refusal::Denied) => Prospect::Refused("denied"),
        Verdict::Refuse(Refusal::Unavailable) => Prospect::Refused("too stale"),
    }
}
