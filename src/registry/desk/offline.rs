//! Which registries are not asked, as the configuration says, and the registry that a name means.

use super::error::{Error, Reason};
use super::image;
use super::service::Desk;
use crate::metadata::Within;
use crate::oci::RegistryName;

impl Desk {
    /// What the configuration says is not asked: everything, and which registries by themselves.
    pub fn configured_offline(&self) -> (bool, Vec<RegistryName>) {
        let settings = self.settings();
        let upstreams = settings.policy.upstreams.iter().filter(|upstream| upstream.offline);
        (settings.policy.offline, upstreams.map(|upstream| upstream.name.clone()).collect())
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
