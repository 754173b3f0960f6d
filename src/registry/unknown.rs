//! Makes visible what clients ask for and nobody configured.
//!
//! What must hold: a client cannot fill memory, the metrics or the log with names of its own making.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// Names that get a label of their own; the rest is counted as "other".
const NAMES_MAX: usize = 100;
/// One log line per name in this time.
const LOG_EVERY: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByRegistry {
    registry: String,
}

/// Counts and logs requests for registries that are not configured.
#[derive(Debug)]
pub(super) struct Unknown {
    counts: Family<ByRegistry, Counter>,
    logged: Mutex<BTreeMap<String, Instant>>,
}

impl Unknown {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let unknown = Self { counts: Family::default(), logged: Mutex::default() };
        let help =
            "Requests for registries that are not configured; at most 100 names, then \"other\"";
        registry.register("unknown_registry", help, unknown.counts.clone());
        unknown
    }

    pub(super) fn note(&self, name: &str) {
        let (label, log) = self.remember(name, Instant::now());
        self.counts.get_or_create(&ByRegistry { registry: label.clone() }).inc();
        if log {
            tracing::warn!(
                registry = label,
                "clients ask for a registry that is not configured; to serve it, add [upstream.\"{label}\"] to the configuration"
            );
        }
    }

    /// The label for `name`, and whether it is time to log it.
    fn remember(&self, name: &str, now: Instant) -> (String, bool) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        // Only what could be configured gets a label: a client's junk must not reach the log.
        let label = match name.parse::<crate::oci::RegistryName>() {
            Ok(name) if logged.contains_key(name.as_str()) || logged.len() < NAMES_MAX => {
                name.as_str().to_owned()
            }
            _ => "other".to_owned(),
        };
        if label == "other" {
            return (label, false);
        }
        let due = logged.get(&label).is_none_or(|last| now.duration_since(*last) >= LOG_EVERY);
        if due {
            logged.insert(label.clone(), now);
        }
        (label, due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_logged_once_an_hour() {
        let unknown = Unknown::new(&mut Registry::default());
        let start = Instant::now();
        assert_eq!(unknown.remember("r.test", start), ("r.test".to_owned(), true));
        assert_eq!(unknown.remember("R.test", start), ("r.test".to_owned(), false));
        assert_eq!(unknown.remember("r.test", start + LOG_EVERY), ("r.test".to_owned(), true));
    }

    #[test]
    fn after_a_hundred_names_and_for_junk_it_is_other() {
        let unknown = Unknown::new(&mut Registry::default());
        let now = Instant::now();
        for number in 0..NAMES_MAX {
            assert!(unknown.remember(&format!("r{number}.test"), now).1);
        }
        assert_eq!(unknown.remember("one-more.test", now), ("other".to_owned(), false));
        assert_eq!(unknown.remember("a b\n", now), ("other".to_owned(), false));
        assert_eq!(unknown.remember("r7.test", now), ("r7.test".to_owned(), false));
    }
}
