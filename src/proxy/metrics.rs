//! What the proxy counts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::clock::{Clock, Timestamp};
use crate::metadata::RepositoryKey;
use crate::oci::{RegistryName, Tag};

/// A tag counts as being served stale for this long after its last stale answer.
const STALE_WINDOW: Duration = Duration::from_secs(300);
/// Stale tags whose age is remembered; beyond that the oldest age is of a sample.
const STALE_TAGS_MAX: u64 = 10_000;

/// When upstream last confirmed the tags that were served stale lately.
type StaleTags = Arc<Cache<(RepositoryKey, Tag), Timestamp>>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByUpstream {
    upstream: String,
}

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) flights: Gauge,
    stale_answers: Family<ByUpstream, Counter>,
    tag_moves: Family<ByUpstream, Counter>,
    stale_tags: StaleTags,
}

impl Metrics {
    pub fn new(registry: &mut Registry, clock: Arc<dyn Clock>) -> Self {
        let stale_tags = Cache::builder().max_capacity(STALE_TAGS_MAX).time_to_live(STALE_WINDOW);
        let metrics = Self {
            flights: Gauge::default(),
            stale_answers: Family::default(),
            tag_moves: Family::default(),
            stale_tags: Arc::new(stale_tags.build()),
        };
        registry.register("flights", "Downloads that are running", metrics.flights.clone());
        let help = "Tags answered although upstream could not confirm them";
        registry.register("stale_answers", help, metrics.stale_answers.clone());
        registry.register("tag_moves", "Recorded moves of tags", metrics.tag_moves.clone());
        let oldest = OldestStale { tags: Arc::clone(&metrics.stale_tags), clock };
        registry.register_collector(Box::new(oldest));
        metrics
    }

    pub(super) fn tag_moved(&self, upstream: &RegistryName) {
        self.tag_moves.get_or_create(&ByUpstream { upstream: upstream.to_string() }).inc();
    }

    pub(super) fn stale_answer(&self, key: &RepositoryKey, tag: &Tag, confirmed: Timestamp) {
        self.stale_answers.get_or_create(&ByUpstream { upstream: key.upstream.to_string() }).inc();
        self.stale_tags.insert((key.clone(), tag.clone()), confirmed);
    }

    pub(super) fn confirmed(&self, key: &RepositoryKey, tag: &Tag) {
        self.stale_tags.invalidate(&(key.clone(), tag.clone()));
    }
}

/// The age of the oldest tag that is being served stale, computed when somebody looks.
#[derive(Debug)]
struct OldestStale {
    tags: StaleTags,
    clock: Arc<dyn Clock>,
}

impl Collector for OldestStale {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = self.clock.now();
        let oldest = self.tags.iter().map(|(_, confirmed)| now.since(confirmed).as_secs()).max();
        let gauge = ConstGauge::new(oldest.unwrap_or(0));
        let help = "Seconds since upstream last confirmed the oldest tag served stale in the last five minutes";
        let metric =
            encoder.encode_descriptor("stale_oldest_seconds", help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}
