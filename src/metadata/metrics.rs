//! The figures of this room.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::error::Error;
use super::model::Usage;

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    objects: Gauge,
    bytes: Gauge,
    write_failures: Family<Reason, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            objects: Gauge::default(),
            bytes: Gauge::default(),
            write_failures: Family::default(),
        };
        registry.register(
            "store_objects",
            "Blobs and manifests in the store",
            metrics.objects.clone(),
        );
        registry.register(
            "store_bytes",
            "Bytes of blobs and manifests in the store",
            metrics.bytes.clone(),
        );
        registry.register(
            "metadata_write_failures",
            "Writes to the metadata store that failed, by reason",
            metrics.write_failures.clone(),
        );
        metrics
    }

    pub(super) fn set_usage(&self, usage: Usage) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.objects.set(gauge(usage.objects));
        self.bytes.set(gauge(usage.bytes));
    }

    pub(super) fn count_failure(&self, error: &Error) {
        let reason = error.reason();
        self.write_failures.get_or_create(&Reason { reason }).inc();
    }
}
