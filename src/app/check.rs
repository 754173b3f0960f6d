//! What can be checked of a configuration without starting: the clients of all upstreams are made, and dropped.
//!
//! Nothing is asked of any upstream, and nothing is written.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::{Config, Mistake, Place};
use super::rooms;
use crate::clock::SystemClock;
use crate::upstream::{Metrics, Shared, Upstream};

impl Config {
    /// What would keep upstreams from being set up, such as a `ca_file` without a certificate. Reads the files that they name.
    pub fn check_upstreams(&self) -> Vec<Mistake> {
        let shared = Shared {
            clock: Arc::new(SystemClock),
            tasks: TaskTracker::new(),
            instance_id: "check".to_owned(),
            metrics: Metrics::new(&mut Registry::default()),
            proxies: self.system_proxy.clone(),
            search_path: self.search_path.clone(),
            shutdown: CancellationToken::new(),
        };
        let refusals = self.upstreams.iter().filter_map(|own| {
            let made = rooms::upstream(own, None);
            let refusal = made.and_then(|settings| Upstream::new(settings, &shared)).err()?;
            let key = format!("upstream.\"{}\"", own.name);
            Some(Mistake::new(Place::BuiltIn, key, refusal.to_string()))
        });
        refusals.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_upstreams_can_be_set_up() {
        assert_eq!(Config::default().check_upstreams(), []);
    }

    #[test]
    fn a_file_without_certificates_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut config = Config::default();
        config.upstreams[0].ca_file = Some(file.path().to_owned());
        let found = config.check_upstreams();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].text().contains("certificate"), "{}", found[0]);
    }
}
