//! What the operator wants kept (pins), held still (freezes) or not asked (switches): rows, and their image in memory.
//!
//! There are few of them and every resolved tag asks, so all of them are in memory, replaced after COMMIT and before the writer's answer.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::model::RepositoryKey;
use crate::clock::Timestamp;
use crate::oci::{Digest, HostFamily, RegistryName, Scope, Tag};

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
    switches: Switches,
    epoch: u64,
}

/// What is switched off and on as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// All upstreams.
    All,
    Upstream(RegistryName),
    /// Every host of the family, those that nobody has named yet included.
    Family(HostFamily),
}

/// What is switched off, each by itself: an upstream may be so in more than one way, and is asked again when none of them is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    pub all: bool,
    /// By name.
    pub upstreams: Arc<[RegistryName]>,
    /// By name.
    pub families: Arc<[HostFamily]>,
}

/// The rules as they are now.
#[derive(Debug, Default)]
pub(super) struct Current {
    rules: RwLock<Rules>,
    epoch: AtomicU64,
}

impl Current {
    /// The rules that the rows had at the start.
    pub(super) fn new(rules: Rules) -> Self {
        let epoch = AtomicU64::new(rules.epoch);
        Self { rules: RwLock::new(rules), epoch }
    }

    pub(super) fn get(&self) -> Rules {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// [`Rules::is_offline`] of them, without a copy.
    pub(super) fn is_offline(&self, upstream: &RegistryName) -> bool {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).is_offline(upstream)
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

impl Switches {
    /// Is that very switch thrown? A host of a family that is off is not by itself.
    pub fn has(&self, switch: &Switch) -> bool {
        match switch {
            Switch::All => self.all,
            Switch::Upstream(name) => self.upstreams.contains(name),
            Switch::Family(family) => self.families.contains(family),
        }
    }

    /// The switches because of which an upstream is not asked.
    pub fn of<'a>(&'a self, upstream: &'a RegistryName) -> impl Iterator<Item = Switch> + 'a {
        let all = self.all.then_some(Switch::All);
        let own = self.upstreams.iter().filter(move |name| *name == upstream);
        let families = self.families.iter().filter(move |family| family.has_member(upstream));
        let own = own.cloned().map(Switch::Upstream);
        all.into_iter().chain(own).chain(families.cloned().map(Switch::Family))
    }
}

impl fmt::Display for Switch {
    /// As `roadstead offline` takes it; all of them are `all`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Upstream(name) => name.fmt(f),
            Self::Family(family) => family.fmt(f),
        }
    }
}

impl Rules {
    /// Rules by id, as the rows or a test has them.
    pub fn new(all: Vec<Rule>, epoch: u64) -> Self {
        Self { all: all.into(), switches: Switches::default(), epoch }
    }

    /// The same rules with upstreams switched off.
    pub(super) fn with_switches(self, switches: Switches) -> Self {
        Self { switches, ..self }
    }

    /// Counts the changes since the start.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// All of them, those that are over included, by id.
    pub fn all(&self) -> &[Rule] {
        &self.all
    }

    /// The same with nothing switched off.
    #[must_use]
    pub fn without_switches(&self) -> Self {
        Self { switches: Switches::default(), ..self.clone() }
    }

    /// Is the upstream switched off, by itself, with its family or with all of them?
    pub fn is_offline(&self, upstream: &RegistryName) -> bool {
        let Switches { all, upstreams, families } = &self.switches;
        *all || upstreams.contains(upstream)
            || families.iter().any(|family| family.has_member(upstream))
    }

    /// All that is switched off.
    pub fn switched_off(&self) -> &Switches {
        &self.switches
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
