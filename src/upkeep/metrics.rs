//! The figures of this room.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry, clock: Arc<dyn Clock>) -> Self {
        let metrics = Self {
            bytes: Counter::default(),
            objects: Family::default(),
            swept: Counter::default(),
            adopted: Counter::default(),
            oldest: Arc::new(AtomicI64::new(NONE)),
        };
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
