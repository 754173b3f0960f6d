//! The end of putting together: computed defaults, and the checks that need more than one key.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::app::rooms;
use crate::carry::Schedule;
use crate::content::KeepRule;
use crate::oci::{HostFamily, RegistryName};
use crate::proxy::{Private, TagPolicy, TagRule, UpstreamPolicy};
use crate::upstream::{self, BuildError, CredentialSource};

use super::draft::{Draft, Path, UpstreamDraft};
use super::endpoints;
use super::error::{Mistake, Place};
use super::model::*;

/// The metadata service of nearly all clouds.
const CLOUD_METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// Makes the configuration and notes everything that does not fit together.
pub(super) fn finish(draft: Draft, mistakes: &mut Vec<Mistake>) -> Config {
    let mut checks = Checks { draft: &draft, mistakes, warnings: draft.config.warnings.clone() };
    let upstreams: Vec<UpstreamConfig> =
        draft.upstreams.iter().map(|(name, upstream)| checks.upstream(name, upstream)).collect();
    for (path, text) in endpoints::mistakes(&draft, &upstreams) {
        checks.mistake(&path, text);
    }
    checks.names(&upstreams);
    checks.listeners(&upstreams);
    checks.admin();
    checks.clients();
    checks.eviction(&upstreams);
    checks.addresses(&Path::Top("allow_addresses".to_owned()), &draft.allow_addresses);
    let default_upstream = checks.default_upstream(&upstreams);
    let schedules = checks.lists(&upstreams);
    let mut warnings = checks.warnings;
    warnings.sort();
    let parent = draft.parent.clone();
    let parent = parent.map(|url| Parent { url, ca_file: draft.parent_ca_file.clone() });
    Config { upstreams, default_upstream, parent, schedules, warnings, ..draft.config }
}

struct Checks<'a> {
    draft: &'a Draft,
    mistakes: &'a mut Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl Checks<'_> {
    fn at(&self, path: &Path, text: String) -> Mistake {
        Mistake::new(self.draft.place(path), path.display(), text)
    }

    fn mistake(&mut self, path: &Path, text: impl Into<String>) {
        let mistake = self.at(path, text.into());
        self.mistakes.push(mistake);
    }

    fn warning(&mut self, path: &Path, text: impl Into<String>) {
        let warning = self.at(path, text.into());
        self.warnings.push(warning);
    }

    /// Images that are followed must be of registries that are served.
    fn lists(&mut self, upstreams: &[UpstreamConfig]) -> Vec<Schedule> {
        for (index, schedule) in &self.draft.warm {
            let path = Path::Warm(*index, "images".to_owned());
            // What was refused is told already.
            let is_told = self.mistakes.iter().any(|mistake| mistake.key == path.display());
            if schedule.images.is_empty() && !is_told {
                let mut paths = self.draft.places.keys();
                let own = |other: &&Path| matches!(other, Path::Warm(of, _) if of == index);
                let place = paths.find(own).cloned().unwrap_or(path.clone());
                self.mistake(&place, "the list names no images");
            }
            for image in &schedule.images {
                let Some((registry, _)) = image.split_once('/') else { continue };
                let Ok(name) = registry.parse::<RegistryName>() else { continue };
                let is_served = |upstream: &UpstreamConfig| {
                    upstream.name == name
                        || upstream.aliases.contains(&name)
                        || upstream.patterns.iter().any(|family| family.has_member(&name))
                };
                if name.is_host_like() && !upstreams.iter().any(is_served) {
                    let text = format!(
                        "{image:?}: {name} is no registry that is served here; add [upstream.\"{name}\"], or check the spelling"
                    );
                    self.mistake(&path, text);
                }
            }
        }
        self.draft.warm.values().cloned().collect()
    }

    fn upstream(&mut self, name: &RegistryName, draft: &UpstreamDraft) -> UpstreamConfig {
        let path = |key: &str| Path::Upstream(name.clone(), key.to_owned());
        let known_url = draft.known.map(|known| known.url);
        let url = draft
            .url
            .clone()
            .unwrap_or_else(|| known_url.map_or_else(|| format!("https://{name}"), str::to_owned));
        let well_known = known_url == Some(url.as_str());
        if draft.url.is_none() && !well_known && !name.is_host_like() {
            self.mistake(
                &Path::Table(name.clone()),
                format!("{name} is no host, so it needs a `url`"),
            );
        }
        if !name.is_host_like() {
            self.warning(&Path::Table(name.clone()), shadow(name));
        }
        for alias in draft.aliases.iter().filter(|alias| !alias.is_host_like()) {
            self.warning(&path("aliases"), shadow(alias));
        }
        let credential = self.credential(name, draft);
        if credential != CredentialSource::None {
            self.credential_use(name, draft, &url);
        }
        // The built-in token services belong to the built-in address: another address must not make us send a credential there.
        let known_realms = draft.known.filter(|_| well_known).map_or(&[][..], |known| known.realms);
        let realms = draft
            .realms
            .clone()
            .unwrap_or_else(|| known_realms.iter().map(|&realm| realm.to_owned()).collect());
        self.addresses(&path("allow_addresses"), &draft.allow_addresses);
        let parent = endpoints::parent_of(self.draft, draft, &url);
        let config = UpstreamConfig {
            name: name.clone(),
            url,
            mirrors: draft.mirrors.clone(),
            parent,
            well_known,
            aliases: draft.aliases.clone(),
            patterns: draft.patterns.clone(),
            hosts: draft.hosts.clone(),
            listen: draft.listen,
            credential,
            credential_refresh: draft.credential_refresh,
            realms,
            ca_file: draft.ca_file.clone(),
            proxy: draft.proxy.clone(),
            allow_addresses: self
                .draft
                .allow_addresses
                .iter()
                .chain(&draft.allow_addresses)
                .copied()
                .collect(),
            quota_reserve: draft.quota_reserve,
            library: draft.library,
            max_size: draft.max_size,
            max_unused: draft.max_unused,
            keep_revisions: draft.keep_revisions,
            keep_rules: keep_rules(draft),
            policy: self.policy(name, draft, well_known),
            limits: draft.limits.clone(),
        };
        self.set_up(&config);
        config
    }

    /// What would end the start must be told here, with its line.
    fn set_up(&mut self, config: &UpstreamConfig) {
        let settings = rooms::upstream(config, None);
        if let Ok(settings) = &settings {
            self.helpers(config, settings);
        }
        let checked = settings.and_then(|settings| upstream::check(&settings));
        let (key, text) = match checked {
            Ok(()) => return,
            Err(BuildError::Url { .. }) => {
                let text = format!("{:?} is no address of a server", config.url);
                ("url", text)
            }
            Err(BuildError::CaFile { path, reason }) => {
                let text = format!("{}: {reason}", path.display());
                if config.ca_file.as_ref() != Some(&path) {
                    return self.mistake(&Path::Top("parent_ca_file".to_owned()), text);
                }
                ("ca_file", text)
            }
            Err(other) => ("proxy", other.to_string()),
        };
        let path = Path::Upstream(config.name.clone(), key.to_owned());
        self.mistake(&path, text);
    }

    /// A helper that is not there now may come later, so it is no mistake.
    fn helpers(&mut self, config: &UpstreamConfig, settings: &upstream::Settings) {
        let search_path = self.draft.config.search_path.as_deref();
        let key = match config.credential {
            CredentialSource::Helper(_) => "credential_helper",
            _ => "docker_config",
        };
        for helper in upstream::missing_helpers(settings, search_path) {
            let path = Path::Upstream(config.name.clone(), key.to_owned());
            self.warning(
                &path,
                format!("the credential helper `{helper}` cannot be found now, neither in PATH nor as a file that may be run; it is looked for again at each use"),
            );
        }
    }

    fn credential(&mut self, name: &RegistryName, draft: &UpstreamDraft) -> CredentialSource {
        let path = |key: &str| Path::Upstream(name.clone(), key.to_owned());
        let ways = [
            ("password", draft.password.is_some()),
            ("password_file", draft.password_file.is_some()),
            ("docker_config", draft.docker_config.is_some()),
            ("credential_helper", draft.credential_helper.is_some()),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            self.mistake(&path(second), format!("`{first}` is set as well; choose one"));
            return CredentialSource::None;
        }
        if let Some(file) = draft.password_file.as_ref().or(draft.docker_config.as_ref())
            && let Err(error) = std::fs::File::open(file)
        {
            let key = if draft.password_file.is_some() { "password_file" } else { "docker_config" };
            self.warning(
                &path(key),
                format!(
                    "{} cannot be read now: {error}; it is tried again at each use",
                    file.display()
                ),
            );
        }
        if let Some(program) = &draft.credential_helper {
            if draft.username.is_some() {
                self.mistake(
                    &path("username"),
                    "`credential_helper` names the user itself; choose one",
                );
            }
            return CredentialSource::Helper(program.clone());
        }
        match (
            draft.username.clone(),
            draft.password.clone(),
            draft.password_file.clone(),
            draft.docker_config.clone(),
        ) {
            (None, None, None, None) => CredentialSource::None,
            (Some(username), Some(password), _, _) => {
                CredentialSource::Basic { username, password }
            }
            (Some(username), _, Some(path), _) => CredentialSource::PasswordFile { username, path },
            (None, _, _, Some(path)) => CredentialSource::DockerConfig { path },
            (Some(_), _, _, Some(_)) => {
                self.mistake(
                    &path("username"),
                    "`docker_config` names the user itself; choose one",
                );
                CredentialSource::None
            }
            (Some(_), None, None, None) => {
                self.mistake(
                    &path("username"),
                    "has no password; set `password_file` or `password`",
                );
                CredentialSource::None
            }
            (None, Some(_), _, _) => {
                self.mistake(&path("password"), "has no user; set `username`");
                CredentialSource::None
            }
            (None, None, Some(_), _) => {
                self.mistake(&path("password_file"), "has no user; set `username`");
                CredentialSource::None
            }
        }
    }

    /// What an operator should know who gave us a credential.
    fn credential_use(&mut self, name: &RegistryName, draft: &UpstreamDraft, url: &str) {
        if draft.private == Private::Shared {
            let text =
                "everybody whom `clients` admits can now pull whatever this credential can read";
            self.warning(&Path::Upstream(name.clone(), "private".to_owned()), text);
        }
        let host = url.strip_prefix("http://");
        let is_remote =
            |host: &str| !["127.", "localhost", "[::1]"].iter().any(|near| host.starts_with(near));
        if host.is_some_and(is_remote) {
            let text = "the credential travels unencrypted to an http:// address";
            self.warning(&Path::Upstream(name.clone(), "url".to_owned()), text);
        }
    }

    fn policy(
        &mut self,
        name: &RegistryName,
        draft: &UpstreamDraft,
        well_known: bool,
    ) -> UpstreamPolicy {
        let argument = self.draft.place(&Path::Top("tag_fresh_for".to_owned()));
        let for_all = self.draft.tag_fresh_for;
        let usual =
            if well_known { crate::proxy::FRESH_FOR_PUBLIC } else { crate::proxy::FRESH_FOR_ADDED };
        let forced = for_all.filter(|_| matches!(argument, Place::Argument(_)));
        let mut tags = TagPolicy { fresh_for: for_all.unwrap_or(usual), ..TagPolicy::default() }
            .with(&draft.tags);
        tags.fresh_for = forced.unwrap_or(tags.fresh_for);
        self.wait(&Path::Upstream(name.clone(), "wait".to_owned()), tags.wait);
        let mut tag_rules = Vec::new();
        for (&index, rule) in &draft.rules {
            let path = Path::Rule(name.clone(), index, "pattern".to_owned());
            self.wait(
                &Path::Rule(name.clone(), index, "wait".to_owned()),
                tags.with(&rule.overrides).wait,
            );
            match rule.pattern.clone() {
                Some(pattern) => {
                    tag_rules.push(TagRule { pattern, overrides: rule.overrides.clone() })
                }
                None => self.mistake(
                    &path,
                    "a rule for tags needs a `pattern`, such as \"v*\" or \"library/*:latest\"",
                ),
            }
        }
        UpstreamPolicy {
            tags,
            tag_rules,
            private: draft.private,
            allow: draft.allow.clone(),
            deny: draft.deny.clone(),
            credential_grace: draft.credential_grace,
            offline: draft.offline,
            allow_delete: draft.allow_delete,
        }
    }

    fn wait(&mut self, path: &Path, wait: Duration) {
        let answer = self.draft.config.limits.answer;
        if wait > answer {
            self.mistake(
                path,
                format!(
                    "{wait:?} is longer than limits.answer, {answer:?}: the client would be gone"
                ),
            );
        }
    }

    /// No name, alias or host may mean two upstreams.
    fn names(&mut self, upstreams: &[UpstreamConfig]) {
        let mut owners = BTreeMap::<&RegistryName, (&RegistryName, &str)>::new();
        for upstream in upstreams {
            owners.insert(&upstream.name, (&upstream.name, "the name"));
        }
        for upstream in upstreams {
            for alias in &upstream.aliases {
                self.claim(&mut owners, upstream, alias, "an alias", "aliases");
            }
        }
        // Host headers are another name space: they may repeat a name of their own upstream.
        for upstream in upstreams {
            for host in &upstream.hosts {
                self.claim(&mut owners, upstream, host, "a host", "hosts");
            }
        }
        let mut families = BTreeMap::<&HostFamily, &RegistryName>::new();
        for upstream in upstreams {
            for pattern in &upstream.patterns {
                if let Some(other) = families.insert(pattern, &upstream.name)
                    && *other != upstream.name
                {
                    let path = Path::Upstream(upstream.name.clone(), "patterns".to_owned());
                    self.mistake(&path, format!("{pattern} belongs to {other} already"));
                }
            }
        }
    }

    fn claim<'a>(
        &mut self,
        owners: &mut BTreeMap<&'a RegistryName, (&'a RegistryName, &'static str)>,
        upstream: &'a UpstreamConfig,
        name: &'a RegistryName,
        role: &'static str,
        key: &str,
    ) {
        let Some((owner, owned_as)) = owners.get(name).copied() else {
            owners.insert(name, (&upstream.name, role));
            return;
        };
        if *owner == upstream.name {
            return;
        }
        let path = Path::Upstream(upstream.name.clone(), key.to_owned());
        let built_in = upstream.known_alias(name);
        if built_in && owned_as == "the name" {
            // The operator wrote a table for what is an alias of a built-in upstream.
            let text = format!(
                "{name} is another name of {}; write [upstream.\"{}\"], or give that one `aliases` without it",
                upstream.name, upstream.name
            );
            self.mistake(&Path::Table(name.clone()), text);
        } else {
            self.mistake(&path, format!("{name} is {owned_as} of {owner} already"));
        }
    }

    /// No two listeners on one address. Port 0 is a new port each time.
    fn listeners(&mut self, upstreams: &[UpstreamConfig]) {
        let config = &self.draft.config;
        let mut taken = vec![(config.listen, Path::Top("listen".to_owned()))];
        let own = upstreams.iter().filter_map(|upstream| {
            let path = Path::Upstream(upstream.name.clone(), "listen".to_owned());
            Some((upstream.listen?, path))
        });
        let admin =
            config.admin_listen.map(|address| (address, Path::Top("admin_listen".to_owned())));
        let observe = (config.observe, Path::Top("observe".to_owned()));
        for (address, path) in std::iter::once(observe).chain(admin).chain(own) {
            if let Some((_, other)) = taken.iter().find(|(other, _)| overlap(*other, address)) {
                let text = format!("{address} is taken by `{}`", other.display());
                self.mistake(&path, text);
            }
            taken.push((address, path));
        }
    }

    /// The token is as safe as the way that it goes.
    fn admin(&mut self) {
        let config = &self.draft.config;
        match config.admin_listen {
            Some(address) if !address.ip().is_loopback() => {
                let text = format!(
                    "{address} can be reached from other machines, and the token travels unencrypted; put TLS in front of it, or listen on 127.0.0.1"
                );
                self.warning(&Path::Top("admin_listen".to_owned()), text);
            }
            None if !config.admin_hosts.is_empty() => {
                let text = "is for `admin_listen`, and that is off";
                self.mistake(&Path::Top("admin_hosts".to_owned()), text);
            }
            _ => {}
        }
    }

    /// What goes after a time must not be what is never evicted before that time.
    fn eviction(&mut self, upstreams: &[UpstreamConfig]) {
        let young_for = self.draft.config.young_for;
        let own = upstreams.iter().map(|upstream| {
            let path = Path::Upstream(upstream.name.clone(), "max_unused".to_owned());
            (path, upstream.max_unused)
        });
        let all = (Path::Top("max_unused".to_owned()), self.draft.config.max_unused);
        for (path, max_unused) in std::iter::once(all).chain(own) {
            if let Some(max_unused) = max_unused.filter(|max_unused| *max_unused < young_for) {
                let text = format!(
                    "{max_unused:?} is shorter than young_for, {young_for:?}, before which nothing is evicted"
                );
                self.mistake(&path, text);
            }
        }
    }

    fn clients(&mut self) {
        if self.draft.config.clients.is_empty() {
            self.mistake(&Path::Top("clients".to_owned()), "is empty, so nobody could pull; leave it out for this machine and private networks, or name ranges");
        }
    }

    /// What an operator hardly means by an exception.
    fn addresses(&mut self, path: &Path, networks: &[IpNet]) {
        for network in networks.iter().filter(|network| network.contains(&CLOUD_METADATA)) {
            let text = format!(
                "{network} holds {CLOUD_METADATA}, where clouds give their machines' credentials: any answer of an upstream may lead there now"
            );
            self.warning(path, text);
        }
    }

    fn default_upstream(&mut self, upstreams: &[UpstreamConfig]) -> RegistryName {
        let wanted = &self.draft.config.default_upstream;
        let path = Path::Top("default_upstream".to_owned());
        if upstreams.is_empty() {
            let text = "nothing to serve: builtin_upstreams is false and there is no [upstream.\"...\"] table";
            self.mistake(&Path::Top("builtin_upstreams".to_owned()), text);
            return wanted.clone();
        }
        let is_wanted = |upstream: &&UpstreamConfig| {
            upstream.name == *wanted || upstream.aliases.contains(wanted)
        };
        match upstreams.iter().find(is_wanted) {
            Some(upstream) => upstream.name.clone(),
            None => {
                let names: Vec<&str> =
                    upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
                self.mistake(&path, format!("{wanted} is not configured; choose one of {}, or add [upstream.\"{wanted}\"]", names.join(", ")));
                wanted.clone()
            }
        }
    }
}

/// How many revisions the rules for tags keep. Every rule is there, because the first that matches a tag counts.
fn keep_rules(draft: &UpstreamDraft) -> Vec<KeepRule> {
    let rules = draft.rules.values();
    // A rule without a pattern is a mistake that is told elsewhere.
    rules
        .filter_map(|rule| {
            Some(KeepRule { pattern: rule.pattern.clone()?, revisions: rule.keep_revisions })
        })
        .collect()
}

impl UpstreamConfig {
    /// Is this alias one that the product gave?
    fn known_alias(&self, alias: &RegistryName) -> bool {
        crate::app::wellknown::well_known(self.name.as_str())
            .is_some_and(|known| known.aliases.contains(&alias.as_str()))
    }
}

/// Do two listeners want the same port of the same interface?
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    // [::] takes the port of IPv4 as well.
    let same_family = a.is_ipv4() == b.is_ipv4();
    let dual = [a, b].iter().any(|address| address.is_ipv6() && address.ip().is_unspecified());
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || (everywhere && (same_family || dual)))
}

fn shadow(name: &RegistryName) -> String {
    format!(
        "{name} has no dot, no port and is not localhost: names that begin with {name}/ no longer reach the default upstream"
    )
}
