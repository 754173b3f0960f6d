//! The configuration as plain values: what the operator decided, with every default filled in.
//!
//! Nothing here knows of a file, a variable or an argument, and nothing here acts. Limits and words that belong to a room are that
//! room's types, with its defaults; its settings as a whole are made from these values in one place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::carry::Schedule;
use crate::content::{KeepRule, MinFree};
use crate::oci::{HostFamily, RegistryName};
use crate::proxy::UpstreamPolicy;
use crate::registry::CatalogPolicy;
use crate::server::{self, Fallback};
use crate::upstream::{self, CredentialSource, ProxyEnv};

use super::error::Mistake;
use super::secret::Secret;

/// The data directory unless the operator says otherwise.
pub(super) const DATA: &str = "roadstead-data";
/// The upstream of names that say no registry: what docker means by them.
pub(super) const DEFAULT_UPSTREAM: &str = "docker.io";
/// How long running answers may go on after the order to stop; under the 30 s after which Kubernetes kills.
pub(super) const DRAIN: Duration = Duration::from_secs(25);

/// Everything the operator decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The data plane.
    pub listen: SocketAddr,
    /// Health and metrics.
    pub observe: SocketAddr,
    /// The admin API besides its socket; `None` is nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// Names besides `localhost` and the listener's own address under which it is asked there, in lower case.
    pub admin_hosts: Vec<String>,
    /// Who may talk to the data plane.
    pub clients: Vec<IpNet>,
    pub fallback: Fallback,
    pub limits: server::Limits,
    /// How long running answers may go on after the order to stop.
    pub drain: Duration,
    /// The data directory.
    pub data: PathBuf,
    pub min_free: MinFree,
    pub manifest_cache_bytes: u64,
    /// Everything that is stored is read again within this time; `None` is never.
    pub scrub_period: Option<Duration>,
    /// All that is stored has at most so many bytes.
    pub max_size: Option<u64>,
    /// What was not used for so long goes.
    pub max_unused: Option<Duration>,
    /// What was used less long ago is not evicted.
    pub young_for: Duration,
    /// What was deleted stays for so long.
    pub delete_grace: Duration,
    /// The upstream of names that say no registry. One of `upstreams`.
    pub default_upstream: RegistryName,
    /// A roadstead that is asked before all others.
    pub parent: Option<Parent>,
    /// Sorted by name; no name, alias, host or listener occurs twice.
    pub upstreams: Vec<UpstreamConfig>,
    /// Never ask any upstream.
    pub offline: bool,
    /// Images that are followed.
    pub schedules: Vec<Schedule>,
    pub catalog: CatalogPolicy,
    pub log: LogSettings,
    /// HTTP proxies of the environment, for upstreams that name none.
    pub system_proxy: ProxyEnv,
    /// The value of `PATH`: where credential helpers are looked for.
    pub search_path: Option<String>,
    /// What is allowed and still worth a word.
    pub warnings: Vec<Mistake>,
}

/// One registry that is served here.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// Its identity, and the name under which clients ask for it.
    pub name: RegistryName,
    /// Scheme, host, port and path prefix; no trailing slash, no credentials.
    pub url: String,
    /// Copies that are asked before it, in order. Written as `url`.
    pub mirrors: Vec<String>,
    /// The parent, if this registry is asked there.
    pub parent: Option<Parent>,
    /// The address is the one that the product knows for this name.
    pub well_known: bool,
    pub aliases: Vec<RegistryName>,
    /// Families of hosts (`*.pkg.dev`): each matching host is an upstream of its own, at `https://<host>`, with these settings.
    pub patterns: Vec<HostFamily>,
    /// Host headers that mean this upstream.
    pub hosts: Vec<RegistryName>,
    /// A listener of its own.
    pub listen: Option<SocketAddr>,
    pub credential: CredentialSource,
    /// The age from which the login of a credential helper is renewed in the background.
    pub credential_refresh: Duration,
    /// Hosts besides the registry's own that may be given the credential.
    pub realms: Vec<String>,
    /// Certificates (PEM) to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// An HTTP proxy; may hold credentials.
    pub proxy: Option<Secret>,
    /// Addresses that redirects and token services may have although they are not public.
    pub allow_addresses: Vec<IpNet>,
    /// At so many requests left, those that nobody needs are not made.
    pub quota_reserve: u64,
    /// Names of one component get `library/` in front.
    pub library: bool,
    /// What came through it has at most so many bytes.
    pub max_size: Option<u64>,
    /// What came through it and was not used for so long goes.
    pub max_unused: Option<Duration>,
    /// The newest revisions of each tag that are kept; 0 is none.
    pub keep_revisions: u32,
    /// The same by the rules for tags, in their order.
    pub keep_rules: Vec<KeepRule>,
    pub policy: UpstreamPolicy,
    pub limits: upstream::Limits,
}

impl UpstreamConfig {
    /// The address of its HTTP proxy without the user and password that it may hold.
    pub fn shown_proxy(&self) -> Option<String> {
        self.proxy.as_ref().map(|proxy| upstream::shown(proxy.reveal()))
    }
}

/// A roadstead above this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Scheme, host, port and path prefix; no trailing slash, no credentials.
    pub url: String,
    /// Certificates (PEM) to trust for it besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// How the log looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    /// The level of our own lines: error, warn, info, debug, trace.
    pub level: String,
    /// Directives of `tracing` (`roadstead::upstream=debug,info`) that replace the level.
    pub filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned(), filter: None }
    }
}

impl Config {
    /// The keys whose change takes effect only at the next start, of those that `new` changes.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let listeners = |config: &Self| {
            let own = config.upstreams.iter();
            own.filter_map(|upstream| Some((upstream.listen?, upstream.name.clone())))
                .collect::<Vec<_>>()
        };
        let changes = [
            ("listen", self.listen != new.listen),
            ("observe", self.observe != new.observe),
            ("admin_listen", self.admin_listen != new.admin_listen),
            ("admin_hosts", self.admin_hosts != new.admin_hosts),
            ("clients", self.clients != new.clients),
            ("fallback", self.fallback != new.fallback),
            ("limits", self.limits != new.limits),
            ("drain", self.drain != new.drain),
            ("data", self.data != new.data),
            ("min_free", self.min_free != new.min_free),
            ("manifest_cache", self.manifest_cache_bytes != new.manifest_cache_bytes),
            ("log_format", self.log.format != new.log.format),
            ("upstream listen", listeners(self) != listeners(new)),
        ];
        let changed = changes.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(key, _)| key).collect()
    }
}
