//! What the operator wants kept (pins) or held still (freezes): rows, and their image in memory.
//!
//! There are few of them and every resolved tag asks, so all of them are in memory, replaced after COMMIT and before the writer's answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::model::RepositoryKey;
use crate::clock::Timestamp;
use crate::oci::{Digest, Scope, Tag};

/// Pins and freezes together; more would make each look slow.
pub const RULES_MAX: usize = 10_000;
/// Longest reason that somebody gives for a rule, in bytes.
pub const RULE_REASON_BYTES_MAX: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// The content is kept.
    Pin,
    /// The tags stay where they were at `since`; their moves are recorded and not served.
    Freeze,
}

/// One rule of the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub id: i64,
    pub kind: RuleKind,
    pub scope: Scope,
    pub since: Timestamp,
    /// In force before this moment; `None`: until it is taken back.
    pub until: Option<Timestamp>,
    pub reason: String,
}

/// All rules at one moment.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    all: Arc<[Rule]>,
    epoch: u64,
}

/// The rules as they are now.
#[derive(Debug, Default)]
pub(super) struct Current {
    rules: RwLock<Rules>,
    epoch: AtomicU64,
}

impl Current {
    pub(super) fn new(all: Vec<Rule>) -> Self {
        Self { rules: RwLock::new(Rules::new(all, 0)), epoch: AtomicU64::new(0) }
    }

    pub(super) fn get(&self) -> Rules {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number moves after the rules have changed, and before the answer to the change.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn replace(&self, rules: Rules) {
        let epoch = rules.epoch;
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        self.epoch.store(epoch, Ordering::Release);
    }
}

impl Rules {
    /// Rules by id, as the rows or a test has them.
    pub fn new(all: Vec<Rule>, epoch: u64) -> Self {
        Self { all: all.into(), epoch }
    }

    /// Counts the changes since the start.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All of them, those that are over included, by id.
    pub fn all(&self) -> &[Rule] {
        &self.all
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those of a kind that are in force at `now`.
    pub fn in_force(&self, kind: RuleKind, now: Timestamp) -> impl Iterator<Item = &Rule> {
        let holds =
            move |rule: &&Rule| rule.kind == kind && rule.until.is_none_or(|until| now < until);
        self.all.iter().filter(holds)
    }

    /// Since when the tag is frozen: the earliest of the freezes in force that cover it.
    pub fn frozen(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        now: Timestamp,
    ) -> Option<Timestamp> {
        self.in_force(RuleKind::Freeze, now)
            .filter(|rule| rule.scope.covers_tag(&repository.upstream, &repository.name, tag))
            .map(|rule| rule.since)
            .min()
    }

    /// A pin in force that covers the revision, by itself or by a tag that points at it now.
    pub fn pin_of<'a>(
        &'a self,
        repository: &RepositoryKey,
        digest: &Digest,
        tags: impl Iterator<Item = &'a Tag> + Clone,
        now: Timestamp,
    ) -> Option<&'a Rule> {
        let RepositoryKey { upstream, name } = repository;
        let covers = |rule: &&Rule| {
            rule.scope.covers_revision(upstream, name, digest)
                || tags.clone().any(|tag| rule.scope.covers_tag(upstream, name, tag))
        };
        self.in_force(RuleKind::Pin, now).find(covers)
    }
}
