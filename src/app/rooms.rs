//! From the configuration to the settings of each room; the one place that knows both.

use std::sync::Arc;

use super::config::{Config, Parent, UpstreamConfig};
use crate::oci::{HostFamily, RegistryName};
use crate::proxy::UpstreamPolicy;
use crate::{carry, content, registry, server, upkeep, upstream};

pub(super) fn server(config: &Config) -> server::Settings {
    let own = config.upstreams.iter();
    server::Settings {
        listen: config.listen,
        observe: config.observe,
        extra: own.filter_map(|upstream| Some((upstream.listen?, upstream.name.clone()))).collect(),
        clients: config.clients.clone(),
        fallback: config.fallback,
        limits: config.limits.clone(),
    }
}

pub(super) fn content(config: &Config) -> content::Settings {
    content::Settings {
        data: config.data.clone(),
        min_free: config.min_free,
        manifest_cache_bytes: config.manifest_cache_bytes,
        begin_anew: true,
    }
}

pub(super) fn upkeep(config: &Config) -> upkeep::Settings {
    let limits = |upstream: &UpstreamConfig| upkeep::UpstreamLimits {
        name: upstream.name.clone(),
        max_size: upstream.max_size,
        max_unused: upstream.max_unused,
    };
    upkeep::Settings {
        scrub_period: config.scrub_period,
        max_size: config.max_size,
        max_unused: config.max_unused,
        young_for: config.young_for,
        delete_grace: config.delete_grace,
        upstreams: config.upstreams.iter().map(limits).collect(),
        keep: Arc::new(keep(config)),
    }
}

/// What is kept whatever the limits.
pub(super) fn keep(config: &Config) -> content::KeepPolicy {
    let upstream = |upstream: &UpstreamConfig| content::UpstreamKeep {
        name: upstream.name.clone(),
        families: upstream.patterns.clone(),
        offline: upstream.policy.offline,
        revisions: upstream.keep_revisions,
        rules: upstream.keep_rules.clone(),
    };
    content::KeepPolicy {
        offline: config.offline,
        upstreams: config.upstreams.iter().map(upstream).collect(),
    }
}

/// Which images are followed.
pub(super) fn carry(config: &Config) -> carry::Settings {
    carry::Settings { schedules: config.schedules.clone() }
}

/// What the desk is told; a command on a stopped store says so itself.
pub(super) fn desk(config: &Config) -> registry::desk::Settings {
    let limit = |upstream: &UpstreamConfig| Some((upstream.name.clone(), upstream.max_size?));
    registry::desk::Settings {
        policy: keep(config),
        delete_grace: config.delete_grace,
        max_bytes: config.max_size,
        max_bytes_by_upstream: config.upstreams.iter().filter_map(limit).collect(),
        at_rest: false,
    }
}

/// The settings of one upstream. `member` is the host of a family's member, which takes everything else from its family.
pub(super) fn upstream(
    config: &UpstreamConfig,
    member: Option<&RegistryName>,
) -> Result<upstream::Settings, upstream::BuildError> {
    let url = member.map_or_else(|| config.url.clone(), |host| format!("https://{host}"));
    let url = address(&url)?;
    Ok(upstream::Settings {
        name: member.unwrap_or(&config.name).clone(),
        url,
        mirrors: config.mirrors.iter().map(|mirror| address(mirror)).collect::<Result<_, _>>()?,
        parent: config.parent.as_ref().map(parent).transpose()?,
        credential: config.credential.clone(),
        realms: config.realms.clone(),
        ca_file: config.ca_file.clone().map(upstream::CaFile::at),
        proxy: config.proxy.as_ref().map(|proxy| proxy.reveal().to_owned()),
        credential_refresh: config.credential_refresh,
        allow_addresses: config.allow_addresses.clone(),
        quota_reserve: config.quota_reserve,
        limits: config.limits.clone(),
    })
}

fn parent(config: &Parent) -> Result<upstream::Parent, upstream::BuildError> {
    let ca_file = config.ca_file.clone().map(upstream::CaFile::at);
    Ok(upstream::Parent { url: address(&config.url)?, ca_file })
}

fn address(text: &str) -> Result<upstream::Url, upstream::BuildError> {
    text.parse().map_err(|_error| upstream::BuildError::Url { reason: "it is no URL" })
}

/// The policy of one upstream; a process that is offline has only offline upstreams.
pub(super) fn policy(config: &Config, upstream: &UpstreamConfig) -> UpstreamPolicy {
    UpstreamPolicy { offline: upstream.policy.offline || config.offline, ..upstream.policy.clone() }
}

/// Upstreams that are made on demand for one pattern (`*.pkg.dev`).
pub(super) fn families(
    config: &Config,
    upstream_config: &UpstreamConfig,
    shared: &upstream::Shared,
) -> Vec<registry::Family> {
    let family = |family: &HostFamily| {
        let (own, shared) = (upstream_config.clone(), shared.clone());
        let policy = policy(config, upstream_config);
        registry::Family::new(family.clone(), move |host| {
            let settings = upstream(&own, Some(host)).map_err(|error| error.to_string())?;
            let member =
                upstream::Upstream::new(settings, &shared).map_err(|error| error.to_string())?;
            let source = crate::proxy::Source::new(Arc::new(member), policy.clone());
            source.map(Arc::new).map_err(|error| error.to_string())
        })
    };
    upstream_config.patterns.iter().map(family).collect()
}
