//! The figures of this room.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::limits::{MAX_SIZE, MIN_FREE, UPSTREAM_MAX_SIZE};
use crate::clock::{Clock, Timestamp};
use crate::content::Verdict;

/// No object is stored, or nobody has looked yet.
const NONE: i64 = i64::MIN;

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    bytes: Counter,
    objects: Family<Labels, Counter>,
    swept: Counter,
    adopted: Counter,
    oldest: Arc<AtomicI64>,
    evicted: Family<Reason, Counter>,
    evicted_bytes: Family<Reason, Counter>,
    collected: Counter,
    collected_bytes: Counter,
    failures: Counter,
    unmet: Family<Limit, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: &'static str,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry, clock: Arc<dyn Clock>) -> Self {
        let metrics = Self {
            bytes: Counter::default(),
            objects: Family::default(),
            swept: Counter::default(),
            adopted: Counter::default(),
            oldest: Arc::new(AtomicI64::new(NONE)),
            evicted: Family::default(),
            evicted_bytes: Family::default(),
            collected: Counter::default(),
            collected_bytes: Counter::default(),
            failures: Counter::default(),
            unmet: Family::default(),
        };
        metrics.register_leaving(registry);
        registry.register(
            "scrub_bytes",
            "Stored bytes that were read again by scrub and verify",
            metrics.bytes.clone(),
        );
        registry.register(
            "scrub_objects",
            "Stored objects that were read again by scrub and verify, by what was found",
            metrics.objects.clone(),
        );
        registry.register(
            "swept_downloads",
            "Unfinished downloads that nobody continued and that were removed",
            metrics.swept.clone(),
        );
        registry.register(
            "adopted_objects",
            "Files without a row that were sound and got one",
            metrics.adopted.clone(),
        );
        let oldest = Arc::clone(&metrics.oldest);
        registry.register_collector(Box::new(OldestCollector { oldest, clock }));
        metrics
    }

    fn register_leaving(&self, registry: &mut Registry) {
        registry.register(
            "evicted_objects",
            "Stored objects that were evicted, by the limit that wanted it",
            self.evicted.clone(),
        );
        registry.register(
            "evicted_bytes",
            "Stored bytes that were evicted, by the limit that wanted it",
            self.evicted_bytes.clone(),
        );
        registry.register(
            "collected_objects",
            "Objects that nothing needed any more and that were forgotten",
            self.collected.clone(),
        );
        registry.register(
            "collected_bytes",
            "Stored bytes that nothing needed any more and that were removed",
            self.collected_bytes.clone(),
        );
        registry.register(
            "eviction_failures",
            "Objects that could not be evicted or collected because the disk or the rows failed",
            self.failures.clone(),
        );
        registry.register(
            "eviction_limit_unmet",
            "Limits that cannot be met, because everything that is left is young or kept",
            self.unmet.clone(),
        );
        for limit in [MIN_FREE, MAX_SIZE, UPSTREAM_MAX_SIZE] {
            self.unmet(limit, 0);
        }
    }

    pub(super) fn evicted(&self, reason: &'static str, bytes: u64) {
        self.evicted.get_or_create(&Reason { reason }).inc();
        self.evicted_bytes.get_or_create(&Reason { reason }).inc_by(bytes);
    }

    pub(super) fn collected(&self, bytes: u64) {
        self.collected.inc();
        self.collected_bytes.inc_by(bytes);
    }

    /// Something that was to leave could not.
    pub(super) fn stuck(&self) {
        self.failures.inc();
    }

    /// So many limits of a kind cannot be met.
    pub(super) fn unmet(&self, limit: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.unmet.get_or_create(&Limit { limit }).set(count);
    }

    pub(super) fn read(&self, bytes: usize) {
        self.bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub(super) fn looked(&self, verdict: Verdict) {
        let result = match verdict {
            Verdict::Sound => "sound",
            Verdict::Damaged => "damaged",
            Verdict::Missing => "missing",
            Verdict::Gone => return,
        };
        self.objects.get_or_create(&Labels { result }).inc();
    }

    /// Something could not be read; what it is, is not known.
    pub(super) fn failed(&self) {
        self.objects.get_or_create(&Labels { result: "unreadable" }).inc();
    }

    pub(super) fn swept(&self, count: usize) {
        self.swept.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    pub(super) fn adopted(&self, count: u64) {
        self.adopted.inc_by(count);
    }

    /// When the object was verified that was verified longest ago.
    pub(super) fn oldest(&self, verified: Option<Timestamp>) {
        self.oldest.store(verified.map_or(NONE, Timestamp::as_millis), Ordering::Relaxed);
    }
}

/// The age grows while nobody looks.
#[derive(Debug)]
struct OldestCollector {
    oldest: Arc<AtomicI64>,
    clock: Arc<dyn Clock>,
}

impl Collector for OldestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let oldest = self.oldest.load(Ordering::Relaxed);
        let age = match oldest {
            NONE => 0,
            millis => self.clock.now().since(Timestamp::from_millis(millis)).as_secs(),
        };
        let gauge = ConstGauge::new(age);
        let metric = encoder.encode_descriptor(
            "scrub_oldest_seconds",
            "How long ago the object was verified that was verified longest ago",
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(metric)
    }
}
