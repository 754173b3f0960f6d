//! A configuration while it is being put together: layer upon layer of values, each key set by the last layer that names it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::app::wellknown::{WellKnown, well_known};
use crate::carry::Schedule;
use crate::oci::{HostFamily, RegistryName, TagPattern};
use crate::proxy::{Private, TagPolicyOverrides};
use crate::upstream;

use super::error::Place;
use super::model::Config;
use super::secret::Secret;
use super::values::Raw;

/// A value, where it was written, and which key it is for.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Path,
    pub(super) raw: Raw,
    pub(super) place: Place,
}

/// A key's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Path {
    /// A key outside the upstream tables, with dots: `listen`, `limits.header_time`.
    Top(String),
    /// The table of an upstream itself.
    Table(RegistryName),
    /// A key of an upstream, with dots: `url`, `limits.connect`.
    Upstream(RegistryName, String),
    /// A key of one of an upstream's tag rules, counted from zero.
    Rule(RegistryName, usize, String),
    /// A key of one of the lists of images that are followed, counted from zero.
    Warm(usize, String),
}

/// All that the layers have set so far.
pub(super) struct Draft {
    /// The keys outside the upstream tables; its `upstreams` stays empty until the end.
    pub(super) config: Config,
    pub(super) builtin_upstreams: bool,
    /// Freshness of all upstreams that name none.
    pub(super) tag_fresh_for: Option<Duration>,
    pub(super) parent: Option<String>,
    pub(super) parent_ca_file: Option<PathBuf>,
    /// Addresses that the answers of all upstreams may lead to.
    pub(super) allow_addresses: Vec<IpNet>,
    pub(super) upstreams: BTreeMap<RegistryName, UpstreamDraft>,
    pub(super) warm: BTreeMap<usize, Schedule>,
    /// Where each key got its value.
    pub(super) places: BTreeMap<Path, Place>,
}

/// One upstream; `None` is the built-in or computed value.
pub(super) struct UpstreamDraft {
    pub(super) known: Option<&'static WellKnown>,
    pub(super) url: Option<String>,
    pub(super) mirrors: Vec<String>,
    /// Is it asked at the parent?
    pub(super) parent: bool,
    pub(super) aliases: Vec<RegistryName>,
    pub(super) patterns: Vec<HostFamily>,
    pub(super) hosts: Vec<RegistryName>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) username: Option<String>,
    pub(super) password: Option<upstream::Secret>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
    pub(super) credential_helper: Option<upstream::Program>,
    pub(super) credential_refresh: Duration,
    pub(super) realms: Option<Vec<String>>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) proxy: Option<Secret>,
    pub(super) allow_addresses: Vec<IpNet>,
    pub(super) quota_reserve: u64,
    pub(super) library: bool,
    pub(super) max_size: Option<u64>,
    pub(super) max_unused: Option<Duration>,
    pub(super) keep_revisions: u32,
    pub(super) allow: Vec<String>,
    pub(super) deny: Vec<String>,
    pub(super) private: Private,
    pub(super) credential_grace: Duration,
    pub(super) offline: bool,
    pub(super) allow_delete: bool,
    pub(super) tags: TagPolicyOverrides,
    pub(super) rules: BTreeMap<usize, RuleDraft>,
    pub(super) limits: upstream::Limits,
}

/// One rule for tags.
#[derive(Default)]
pub(super) struct RuleDraft {
    pub(super) pattern: Option<TagPattern>,
    pub(super) keep_revisions: Option<u32>,
    pub(super) overrides: TagPolicyOverrides,
}

impl Path {
    /// As it is written in the file.
    pub(super) fn display(&self) -> String {
        match self {
            Self::Top(key) => key.clone(),
            Self::Table(name) => format!("upstream.\"{name}\""),
            Self::Upstream(name, key) => format!("upstream.\"{name}\".{key}"),
            Self::Rule(name, index, key) => format!("upstream.\"{name}\".tag[{index}].{key}"),
            Self::Warm(index, key) => format!("warm[{index}].{key}"),
        }
    }

    pub(super) fn upstream(&self) -> Option<&RegistryName> {
        match self {
            Self::Top(_) | Self::Warm(..) => None,
            Self::Table(name) | Self::Upstream(name, _) | Self::Rule(name, _, _) => Some(name),
        }
    }
}

impl Draft {
    /// Where `path` got its value, or else where its upstream was first named.
    pub(super) fn place(&self, path: &Path) -> Place {
        let table = path.upstream().map(|name| Path::Table(name.clone()));
        let exact = self.places.get(path);
        let found = exact.or_else(|| self.places.get(&table?));
        found.cloned().unwrap_or(Place::BuiltIn)
    }

    /// The upstream of that name; a new one begins with what is known of the name.
    pub(super) fn upstream(&mut self, name: &RegistryName) -> &mut UpstreamDraft {
        let entry = self.upstreams.entry(name.clone());
        entry.or_insert_with(|| UpstreamDraft::new(name))
    }
}

impl UpstreamDraft {
    fn new(name: &RegistryName) -> Self {
        let known = well_known(name.as_str());
        let names = |list: Option<&'static [&'static str]>| {
            let names = list.unwrap_or_default().iter();
            names.map(|name| name.parse().expect("a built-in name is valid")).collect()
        };
        let policy = crate::proxy::UpstreamPolicy::default();
        Self {
            known,
            url: None,
            mirrors: Vec::new(),
            parent: true,
            aliases: names(known.map(|known| known.aliases)),
            patterns: known.map_or_else(Vec::new, |known| {
                let families = known.patterns.iter().map(|pattern| pattern.parse());
                families.map(|family| family.expect("it is a family")).collect()
            }),
            hosts: Vec::new(),
            listen: None,
            username: None,
            password: None,
            password_file: None,
            docker_config: None,
            credential_helper: None,
            credential_refresh: upstream::CREDENTIAL_REFRESH,
            realms: None,
            ca_file: None,
            proxy: None,
            allow_addresses: Vec::new(),
            quota_reserve: upstream::QUOTA_RESERVE,
            library: known.is_some_and(|known| known.library),
            max_size: None,
            max_unused: None,
            keep_revisions: 0,
            allow: policy.allow,
            deny: policy.deny,
            private: policy.private,
            credential_grace: policy.credential_grace,
            offline: policy.offline,
            allow_delete: policy.allow_delete,
            tags: TagPolicyOverrides::default(),
            rules: BTreeMap::new(),
            limits: upstream::Limits::default(),
        }
    }
}
