//! The clients of all upstreams, from the configuration.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::config::Config;
use super::rooms;
use super::run::StartError;
use crate::oci::RegistryName;
use crate::proxy::Source;
use crate::registry::{self, Upstreams};
use crate::upstream::{self, Upstream};

/// The clients of all upstreams, kept over reloads so that tokens and connections survive them.
#[derive(Debug)]
pub(super) struct UpstreamSet {
    shared: upstream::Shared,
    by_name: HashMap<RegistryName, (upstream::Settings, Arc<Upstream>)>,
}

impl UpstreamSet {
    pub(super) fn new(shared: upstream::Shared) -> Self {
        Self { shared, by_name: HashMap::new() }
    }

    /// The upstreams of `config`. Clients whose settings did not change stay as they are; on an error nothing changes.
    pub(super) fn build(&mut self, config: &Config) -> Result<Upstreams, StartError> {
        let failed = |name: &RegistryName, reason: &dyn fmt::Display| StartError::Upstream {
            name: name.clone(),
            reason: reason.to_string(),
        };
        let (mut by_name, mut upstreams, mut families) = (HashMap::new(), Vec::new(), Vec::new());
        for own in &config.upstreams {
            let settings = rooms::upstream(own, None).map_err(|error| failed(&own.name, &error))?;
            let client = match self.by_name.get(&own.name) {
                Some((kept, client)) if *kept == settings => Arc::clone(client),
                _ => Arc::new(
                    Upstream::new(settings.clone(), &self.shared)
                        .map_err(|error| failed(&own.name, &error))?,
                ),
            };
            by_name.insert(own.name.clone(), (settings, Arc::clone(&client)));
            let source = Source::new(client, rooms::policy(config, own))
                .map_err(|error| failed(&own.name, &error))?;
            upstreams.push(registry::Upstream {
                source: Arc::new(source),
                aliases: own.aliases.clone(),
                hosts: own.hosts.clone(),
                library: own.library,
            });
            families.extend(rooms::families(config, own, &self.shared));
        }
        self.by_name = by_name;
        Ok(Upstreams::new(upstreams, families, config.default_upstream.clone()))
    }
}
