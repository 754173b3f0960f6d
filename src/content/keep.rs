//! What keeps content here: one pure decision over what holds an object, the operator's rules and the policy.
//!
//! Eviction, collection, the dry run of `gc`, the explanations and the refusal of deletions all ask here, so that they say the same. What
//! must hold: when in doubt the content is kept; nothing is read, written or remembered. It deliberately says nothing of age and use
//! (the queue knows those) nor of grace times.

use std::fmt;

use crate::clock::Timestamp;
use crate::metadata::{Holder, Holders, RepositoryKey, Rule, RuleKind, Rules, TagLink};
use crate::oci::{HostFamily, RegistryName, SetName, Tag, TagPattern};

/// Revisions that are asked for when somebody decides on an object; one that more than these need is kept.
pub const HOLDERS_MAX: u32 = 256;

/// What the operator's configuration says about keeping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepPolicy {
    /// No upstream is asked at all, so nothing that goes can come back.
    pub offline: bool,
    /// By name; families stand for their members.
    pub upstreams: Vec<UpstreamKeep>,
}

/// The same for one upstream, or for a family of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamKeep {
    pub name: RegistryName,
    /// Families of hosts that have the same policy, as `*.pkg.dev`.
    pub families: Vec<HostFamily>,
    /// It is not asked.
    pub offline: bool,
    /// The newest distinct revisions of each tag that are kept as if pinned; 0 is none.
    pub revisions: u32,
    /// In order; the first that matches a tag counts.
    pub rules: Vec<KeepRule>,
}

/// How many revisions of some tags are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepRule {
    pub pattern: TagPattern,
    /// `None`: as many as the upstream says.
    pub revisions: Option<u32>,
}

/// May the content go?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepVerdict {
    /// Nothing keeps it.
    Free,
    /// Nothing keeps it, and it is gone upstream: it goes when nothing else is left to go.
    Last,
    Kept(Hold),
}

/// What keeps it, the first reason found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A pin covers a revision that needs it.
    Pin { rule: i64, scope: String, image: String },
    /// A frozen tag serves a revision that needs it.
    Freeze { image: String, since: Timestamp },
    /// It belongs to one of the newest revisions of a tag.
    LastRevisions { image: String, revisions: u32 },
    /// A kept set has a revision that needs it.
    Set { name: SetName, image: String },
    /// Its upstream is not asked; `None`: none is.
    Offline { upstream: Option<RegistryName> },
    /// More revisions need it than were looked at.
    Shared,
}

impl KeepPolicy {
    /// The policy of an upstream, by its name or by a family that it belongs to.
    pub fn upstream(&self, name: &RegistryName) -> Option<&UpstreamKeep> {
        let named = self.upstreams.iter().find(|upstream| upstream.name == *name);
        named.or_else(|| self.upstreams.iter().find(|upstream| upstream.has_member(name)))
    }

    /// Is the upstream not asked?
    pub fn is_offline(&self, name: &RegistryName) -> bool {
        self.offline || self.upstream(name).is_some_and(|upstream| upstream.offline)
    }

    /// How many of the newest revisions of a tag are kept.
    pub fn revisions(&self, repository: &RepositoryKey, tag: &Tag) -> u32 {
        self.upstream(&repository.upstream).map_or(0, |upstream| {
            let rule =
                upstream.rules.iter().find(|rule| rule.pattern.covers(&repository.name, tag));
            rule.and_then(|rule| rule.revisions).unwrap_or(upstream.revisions)
        })
    }
}

impl UpstreamKeep {
    /// Is the name that of a host of one of the families?
    fn has_member(&self, name: &RegistryName) -> bool {
        self.families.iter().any(|family| family.has_member(name))
    }
}

/// Decides on an object by what holds it. An order to delete, which counts also while upstream is not asked, comes with rules
/// [without switches](Rules::without_switches).
pub fn verdict(
    holders: &Holders,
    rules: &Rules,
    policy: &KeepPolicy,
    now: Timestamp,
) -> KeepVerdict {
    if let Some(hold) = offline(holders, rules, policy) {
        return KeepVerdict::Kept(hold);
    }
    for holder in &holders.revisions {
        if let Some(hold) = hold_by(holder, rules, policy, now) {
            return KeepVerdict::Kept(hold);
        }
    }
    if holders.more {
        return KeepVerdict::Kept(Hold::Shared);
    }
    let mut links = holders.revisions.iter().flat_map(|holder| &holder.links);
    let gone = links.clone().any(|link| link.last_before_absent);
    // Whoever can still be asked for it by another tag gives it again.
    if gone && !links.any(|link| link.until.is_none()) {
        KeepVerdict::Last
    } else {
        KeepVerdict::Free
    }
}

fn offline(holders: &Holders, rules: &Rules, policy: &KeepPolicy) -> Option<Hold> {
    if policy.offline || rules.switched_off().all {
        return Some(Hold::Offline { upstream: None });
    }
    let of_revisions = holders.revisions.iter().map(|holder| &holder.repository.upstream);
    let mut all = holders.upstreams.iter().chain(of_revisions);
    all.find(|name| policy.is_offline(name) || rules.is_offline(name))
        .map(|name| Hold::Offline { upstream: Some(name.clone()) })
}

fn hold_by(holder: &Holder, rules: &Rules, policy: &KeepPolicy, now: Timestamp) -> Option<Hold> {
    let Holder { repository, revision, links, .. } = holder;
    // What a tag pointed at last before it vanished upstream is what its pin is for.
    let current = links.iter().filter(|link| is_current(link));
    if let Some(rule) = rules.pin_of(repository, revision, current.map(|link| &link.tag), now) {
        let image = format!("{repository}@{revision}");
        return Some(Hold::Pin { rule: rule.id, scope: rule.scope.to_string(), image });
    }
    if let Some(name) = holder.sets.first() {
        let image = format!("{repository}@{revision}");
        return Some(Hold::Set { name: name.clone(), image });
    }
    links.iter().find_map(|link| {
        let image = || format!("{repository}:{}", link.tag);
        if let Some(since) = rules.frozen(repository, &link.tag, now)
            && serves_when_frozen(link, since)
        {
            return Some(Hold::Freeze { image: image(), since });
        }
        let revisions = policy.revisions(repository, &link.tag);
        (link.newer < revisions).then(|| Hold::LastRevisions { image: image(), revisions })
    })
}

/// Pins and freezes in force for whose sake a revision may not leave a tag: the tag's, where they want this very revision and not another
/// one, and the pins that name the revision itself.
pub fn rules_on_link<'a>(
    holder: &Holder,
    tag: &Tag,
    rules: &'a Rules,
    now: Timestamp,
) -> Vec<&'a Rule> {
    let Holder { repository, revision, links, .. } = holder;
    let RepositoryKey { upstream, name } = repository;
    let is_any = |wanted: &dyn Fn(&TagLink) -> bool| {
        links.iter().any(|link| link.tag == *tag && wanted(link))
    };
    let pinned = is_any(&is_current);
    let frozen = rules.frozen(repository, tag, now);
    let frozen = frozen.is_some_and(|since| is_any(&|link| serves_when_frozen(link, since)));
    let of_tag = |kind, wanted: bool| {
        let of_kind = rules.in_force(kind, now);
        of_kind.filter(move |rule| {
            wanted && rule.scope.covers_tag(upstream, name, tag)
                || kind == RuleKind::Pin && rule.scope.covers_revision(upstream, name, revision)
        })
    };
    of_tag(RuleKind::Pin, pinned).chain(of_tag(RuleKind::Freeze, frozen)).collect()
}

/// Is it what the tag points at, or pointed at last before it vanished upstream?
fn is_current(link: &TagLink) -> bool {
    link.until.is_none() || link.last_before_absent
}

/// Is it what the tag pointed at when it was frozen, or may it be the first afterwards?
fn serves_when_frozen(link: &TagLink, since: Timestamp) -> bool {
    let was_current = link.since <= since && link.until.is_none_or(|until| since < until);
    was_current || (link.first && link.since > since)
}

impl Hold {
    /// The kind of it in a word: `pin`, `freeze`, `last_revisions`, `set`, `offline` or `shared`.
    pub fn by(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Freeze { .. } => "freeze",
            Self::LastRevisions { .. } => "last_revisions",
            Self::Set { .. } => "set",
            Self::Offline { .. } => "offline",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin { rule, scope, image } => {
                write!(f, "pin {rule} of {scope} keeps {image}")
            }
            Self::Freeze { image, since } => write!(f, "{image} is frozen since {since}"),
            Self::LastRevisions { image, revisions: 1 } => {
                write!(f, "it is the newest revision of {image}")
            }
            Self::LastRevisions { image, revisions } => {
                write!(f, "it is one of the {revisions} newest revisions of {image}")
            }
            Self::Set { name, image } => write!(f, "set {name} keeps {image}"),
            Self::Offline { upstream: None } => f.write_str("offline: nothing could come back"),
            Self::Offline { upstream: Some(name) } => write!(f, "{name} is offline"),
            Self::Shared => {
                write!(f, "more than {HOLDERS_MAX} revisions need it")
            }
        }
    }
}
