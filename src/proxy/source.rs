//! One upstream with the operator's word on it, and a repository there.

use std::sync::Arc;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::settings::{Private, TagPolicy, UpstreamPolicy};
use crate::clock::Timestamp;
use crate::metadata::RepositoryKey;
use crate::oci::{RepositoryName, Tag, TagPattern};
use crate::upstream::Upstream;

/// An upstream and the compiled policy for it.
#[derive(Debug)]
pub struct Source {
    upstream: Arc<Upstream>,
    policy: UpstreamPolicy,
    tag_rules: Vec<(TagPattern, TagPolicy)>,
    allow: Option<GlobSet>,
    deny: GlobSet,
}

/// A repository of an upstream, as the proxy is asked for it.
#[derive(Clone, Debug)]
pub struct Proxied {
    key: RepositoryKey,
    source: Arc<Source>,
    /// The upstream, asked for the request that named the repository.
    upstream: Upstream,
    /// The moment of the past that is asked for.
    as_of: Option<Timestamp>,
}

impl Source {
    /// Compiles the globs of `policy` over repositories; an invalid one is named in the error.
    pub fn new(upstream: Arc<Upstream>, policy: UpstreamPolicy) -> Result<Self, globset::Error> {
        let rules = policy.tag_rules.iter();
        let tag_rules =
            rules.map(|rule| (rule.pattern.clone(), policy.tags.with(&rule.overrides))).collect();
        let allow = if policy.allow.is_empty() { None } else { Some(glob_set(&policy.allow)?) };
        let deny = glob_set(&policy.deny)?;
        Ok(Self { upstream, policy, tag_rules, allow, deny })
    }

    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    pub(super) fn policy(&self) -> &UpstreamPolicy {
        &self.policy
    }

    /// The policy for one tag: the first rule that matches, else the upstream's.
    pub(super) fn tag_policy(&self, name: &RepositoryName, tag: &Tag) -> &TagPolicy {
        self.tag_rule(name, tag).map_or(&self.policy.tags, |(_, policy)| policy)
    }

    /// The pattern of the rule that decides on a tag, if one does.
    pub(super) fn tag_pattern(&self, name: &RepositoryName, tag: &Tag) -> Option<&str> {
        self.tag_rule(name, tag).map(|(pattern, _)| pattern.as_str())
    }

    fn tag_rule(&self, name: &RepositoryName, tag: &Tag) -> Option<&(TagPattern, TagPolicy)> {
        self.tag_rules.iter().find(|(pattern, _)| pattern.covers(name, tag))
    }

    /// Do the operator's `allow` and `deny` globs admit this repository?
    pub(super) fn admits(&self, name: &RepositoryName) -> bool {
        self.allow.as_ref().is_none_or(|allow| allow.is_match(name.as_str()))
            && !self.deny.is_match(name.as_str())
    }

    /// Do we read through a credential that opens private repositories to our clients?
    pub(super) fn shares_private(&self) -> bool {
        self.policy.private == Private::Shared && self.upstream.credential_fingerprint().is_some()
    }
}

fn glob_set(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut builder = GlobSetBuilder::new();
    for pattern in patterns {
        builder.add(Glob::new(pattern)?);
    }
    builder.build()
}

impl Proxied {
    pub fn new(source: Arc<Source>, name: RepositoryName) -> Self {
        let upstream = Upstream::clone(&source.upstream);
        let key = RepositoryKey { upstream: upstream.name().clone(), name };
        Self { key, source, upstream, as_of: None }
    }

    /// The same for a request that came through other roadsteads, which `via` names as the header of that name does.
    #[must_use]
    pub fn asked_via(self, via: Option<&str>) -> Self {
        match via {
            Some(via) => Self { upstream: self.upstream.asked_via(Some(via.into())), ..self },
            None => self,
        }
    }

    /// The same as it was at a moment of the past, from the store alone.
    #[must_use]
    pub fn as_of(self, as_of: Option<Timestamp>) -> Self {
        Self { as_of, ..self }
    }

    /// The moment of the past that is asked for.
    pub fn moment(&self) -> Option<Timestamp> {
        self.as_of
    }

    pub fn key(&self) -> &RepositoryKey {
        &self.key
    }

    /// The name as the upstream knows it.
    pub fn name(&self) -> &RepositoryName {
        &self.key.name
    }

    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// May clients delete what came through the upstream?
    pub fn allows_delete(&self) -> bool {
        // The past is only read.
        self.policy().allow_delete && self.as_of.is_none()
    }

    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    pub(super) fn policy(&self) -> &UpstreamPolicy {
        &self.source.policy
    }
}
