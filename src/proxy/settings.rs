//! What an operator may say about one upstream's tags and repositories.
//!
//! Every default is a named constant here; `config/roadstead.toml` documents them. Nothing in this file decides anything: see
//! `policy.rs`.

use std::time::Duration;

use crate::oci::TagPattern;

/// Freshness of tags of the built-in public upstreams: their images move rarely, and Docker Hub counts requests.
pub const FRESH_FOR_PUBLIC: Duration = Duration::from_secs(60);
/// Freshness of tags of upstreams that the operator adds: a CI job pushes there and the next one pulls.
pub const FRESH_FOR_ADDED: Duration = Duration::from_secs(5);
/// How long a client waits for a revalidation before it gets the last good revision.
pub const WAIT: Duration = Duration::from_secs(10);
/// The same if the tag was confirmed within [`RECENTLY_CONFIRMED`].
pub const WAIT_RECENT: Duration = Duration::from_secs(3);
/// A tag confirmed within this time is worth a shorter wait only.
pub const RECENTLY_CONFIRMED: Duration = Duration::from_secs(3600);
/// After a failed check nobody waits for this long.
pub const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// How long an absent tag is remembered (in memory): a build pushes and then pulls.
pub const ABSENT_FOR: Duration = Duration::from_secs(5);
/// How long content of a repository that is not public is served while our credential is in trouble.
pub const CREDENTIAL_GRACE: Duration = Duration::from_secs(24 * 3600);
/// How long a proof of membership in a private repository, or the verdict that a repository is public, holds.
pub const PROOF_FOR: Duration = Duration::from_secs(24 * 3600);

/// The operator's word on one upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamPolicy {
    pub tags: TagPolicy,
    /// First match wins; each overrides parts of `tags`.
    pub tag_rules: Vec<TagRule>,
    pub private: Private,
    /// Globs of repository names as the upstream knows them; empty means all.
    pub allow: Vec<String>,
    /// Globs that win over `allow`.
    pub deny: Vec<String>,
    pub credential_grace: Duration,
    /// Never ask this upstream; serve what is here.
    pub offline: bool,
    /// Clients may delete tags and manifests here.
    pub allow_delete: bool,
}

/// How long a tag may be believed.
#[derive(Clone, Debug, PartialEq)]
pub struct TagPolicy {
    /// No upstream request at all for this long after the last confirmation.
    pub fresh_for: Duration,
    pub wait: Duration,
    pub wait_recent: Duration,
    pub retry_after_failure: Duration,
    pub absent_for: Duration,
    /// How long past freshness a revision bridges an outage; `None` is without end.
    pub stale_if_error: Option<Duration>,
    /// Past freshness, answer at once with what is here and check behind the answer; zero is off.
    pub stale_while_revalidate: Duration,
    pub when_absent: WhenAbsent,
    /// Once known, never asked again.
    pub immutable: bool,
}

/// A part of a [`TagPolicy`] for tags that match a pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct TagRule {
    pub pattern: TagPattern,
    pub overrides: TagPolicyOverrides,
}

/// What a [`TagRule`] changes; `None` leaves the upstream's value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TagPolicyOverrides {
    pub fresh_for: Option<Duration>,
    pub wait: Option<Duration>,
    pub wait_recent: Option<Duration>,
    pub retry_after_failure: Option<Duration>,
    pub absent_for: Option<Duration>,
    /// `Some(None)` is "without end".
    pub stale_if_error: Option<Option<Duration>>,
    pub stale_while_revalidate: Option<Duration>,
    pub when_absent: Option<WhenAbsent>,
    pub immutable: Option<bool>,
}

/// What to do when upstream says that a known tag is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAbsent {
    /// Refuse the tag; its content stays addressable by digest.
    Obey,
    /// Go on serving the last good revision.
    Keep,
}

/// Who may read through a credential of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Private {
    /// Only repositories that anybody may read upstream.
    Refuse,
    /// Everybody whom the listener admits: the operator said so.
    Shared,
}

impl Default for TagPolicy {
    fn default() -> Self {
        Self {
            fresh_for: FRESH_FOR_ADDED,
            wait: WAIT,
            wait_recent: WAIT_RECENT,
            retry_after_failure: RETRY_AFTER_FAILURE,
            absent_for: ABSENT_FOR,
            stale_if_error: None,
            stale_while_revalidate: Duration::ZERO,
            when_absent: WhenAbsent::Obey,
            immutable: false,
        }
    }
}

impl Default for UpstreamPolicy {
    fn default() -> Self {
        Self {
            tags: TagPolicy::default(),
            tag_rules: Vec::new(),
            private: Private::Refuse,
            allow: Vec::new(),
            deny: Vec::new(),
            credential_grace: CREDENTIAL_GRACE,
            offline: false,
            allow_delete: false,
        }
    }
}

impl TagPolicy {
    /// This policy with the parts that a rule changes.
    pub fn with(&self, rule: &TagPolicyOverrides) -> Self {
        Self {
            fresh_for: rule.fresh_for.unwrap_or(self.fresh_for),
            wait: rule.wait.unwrap_or(self.wait),
            wait_recent: rule.wait_recent.unwrap_or(self.wait_recent),
            retry_after_failure: rule.retry_after_failure.unwrap_or(self.retry_after_failure),
            absent_for: rule.absent_for.unwrap_or(self.absent_for),
            stale_if_error: rule.stale_if_error.unwrap_or(self.stale_if_error),
            stale_while_revalidate: rule
                .stale_while_revalidate
                .unwrap_or(self.stale_while_revalidate),
            when_absent: rule.when_absent.unwrap_or(self.when_absent),
            immutable: rule.immutable.unwrap_or(self.immutable),
        }
    }
}
