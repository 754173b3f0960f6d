//! What the program says of itself, and the page on which all rooms' metrics stand.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::telemetry::Log;
use crate::clock::Timestamp;

#[derive(Clone, Debug)]
pub(super) struct AppMetrics {
    last_reload: Gauge,
    last_reload_good: Gauge,
}

impl AppMetrics {
    /// The configuration was read at `now`.
    pub(super) fn new(registry: &mut Registry, log: &Log, now: Timestamp) -> Self {
        let metrics = Self { last_reload: Gauge::default(), last_reload_good: Gauge::default() };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        registry.register("build", "The running program", Info::new(vec![("version", version)]));
        let help = "When the configuration was last read, in seconds since the epoch";
        registry.register(
            "config_last_reload_timestamp_seconds",
            help,
            metrics.last_reload.clone(),
        );
        let help = "1 if the configuration that was last read is in force, 0 if it was refused";
        registry.register("config_last_reload_successful", help, metrics.last_reload_good.clone());
        let help = "Log lines that were dropped because the reader of the log is too slow";
        registry.register("log_lines_dropped", help, log.dropped());
        metrics.reloaded(now, true);
        metrics
    }

    pub(super) fn reloaded(&self, now: Timestamp, good: bool) {
        self.last_reload.set(now.as_millis() / 1000);
        self.last_reload_good.set(i64::from(good));
    }
}

/// All metrics in the OpenMetrics text format.
pub(super) fn page(registry: &Registry) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail; a metric that cannot be encoded ends the page where it stands.
    if encode(&mut page, registry).is_err() {
        tracing::error!("the metrics page could not be written to its end");
    }
    page
}
