//! The figures of this room. `store_bytes` and `store_objects` come from `metadata`, which counts them.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::space::Space;

/// Where bytes were found not to be what their digest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// In a file of the store.
    Disk,
    /// In what an upstream sent.
    Upstream,
}

/// Counters that others add to as well.
#[derive(Clone, Debug)]
pub struct Metrics {
    digest_mismatches: Family<Kind, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry, space: Arc<Space>) -> Self {
        let metrics = Self { digest_mismatches: Family::default() };
        registry.register(
            "digest_mismatches",
            "Content that was not what its digest names, by where it was found",
            metrics.digest_mismatches.clone(),
        );
        registry.register_collector(Box::new(SpaceCollector(space)));
        metrics
    }

    /// Counts content that was not what its digest names.
    pub fn count_mismatch(&self, found: Mismatch) {
        let kind = match found {
            Mismatch::Disk => "disk",
            Mismatch::Upstream => "upstream",
        };
        self.digest_mismatches.get_or_create(&Kind { kind }).inc();
    }
}

/// Room on the disk as it is when somebody looks.
#[derive(Debug)]
struct SpaceCollector(Arc<Space>);

impl Collector for SpaceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (free, reserve) = self.0.figures();
        let disabled = u64::from(self.0.is_closed(None) || !self.0.admits(None));
        let gauges = [
            ("store_free_bytes", "Free bytes on the store's disk", free),
            (
                "store_reserve_bytes",
                "Free bytes that the cache leaves to others (min_free)",
                reserve,
            ),
            (
                "caching_disabled",
                "1 while content passes through uncached for want of room",
                disabled,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
