//! Which registries are not asked, as the configuration says, why one is not, and the registry or family that a name means.

use super::error::{Error, Reason};
use super::image;
use super::service::Desk;
use crate::metadata::{Switch, Within};
use crate::oci::{HostFamily, InvalidHostFamily, RegistryName};

/// What a family of hosts begins with, and no registry does.
const FAMILY_MARK: char = '*';

impl Desk {
    /// What the configuration says is not asked: everything, and which registries and families by themselves.
    pub fn configured_offline(&self) -> (bool, Vec<Switch>) {
        let settings = self.settings();
        let upstreams = settings.policy.upstreams.iter().filter(|upstream| upstream.offline);
        let names = upstreams.flat_map(|upstream| {
            let families = upstream.families.iter().cloned().map(Switch::Family);
            std::iter::once(Switch::Upstream(upstream.name.clone())).chain(families)
        });
        (settings.policy.offline, names.collect())
    }

    /// What a text names that can be switched, and whether it is configured: a family as its pattern is written, else as
    /// [`Self::registry_named`].
    ///
    /// # Errors
    /// It names nothing.
    pub fn switch_named(&self, text: &str) -> Result<(Switch, bool), Error> {
        if !text.starts_with(FAMILY_MARK) {
            let (name, configured) = self.registry_named(text)?;
            return Ok((Switch::Upstream(name), configured));
        }
        let family = text
            .parse::<HostFamily>()
            .map_err(|invalid: InvalidHostFamily| Error::new(Reason::Value, invalid.to_string()))?;
        let settings = self.settings();
        let mut families = settings.policy.upstreams.iter().flat_map(|upstream| &upstream.families);
        let configured = families.any(|known| *known == family);
        Ok((Switch::Family(family), configured))
    }

    /// Why an upstream is not asked, in a sentence for each of the ways; none if it is asked.
    pub(super) fn why_offline(&self, upstream: &RegistryName) -> Vec<String> {
        let configured = self.settings().policy.is_offline(upstream);
        let configured =
            configured.then(|| format!("{upstream} is not asked, by the configuration."));
        let rules = self.rules();
        let told = |switch| match switch {
            Switch::All => {
                "All upstreams are switched off; `roadstead online` takes that back.".to_owned()
            }
            Switch::Upstream(name) => {
                format!("{name} is switched off; `roadstead online {name}` takes that back.")
            }
            Switch::Family(family) => format!(
                "{upstream} is switched off with its family; `roadstead online '{family}'` takes that back."
            ),
        };
        let switched = rules.switched_off().of(upstream).map(told);
        configured.into_iter().chain(switched).collect()
    }

    /// The registry that a text names, by any of its names, and whether it is configured. A host of a family is one by itself.
    ///
    /// # Errors
    /// It names none.
    pub fn registry_named(&self, text: &str) -> Result<(RegistryName, bool), Error> {
        let refuse = || {
            let message =
                format!("{text:?} is no registry; want one that is configured, such as docker.io");
            Error::new(Reason::Value, message)
        };
        match image::within(text, &self.upstreams()) {
            Ok((Within::Upstream(name), configured)) => Ok((name, configured)),
            Ok((Within::Repository(_), _)) | Err(_) => Err(refuse()),
        }
    }
}
