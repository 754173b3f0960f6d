//! The figures of this room.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::events::Fate;
use crate::clock::Timestamp;

/// What was warmed, by order and by schedule.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    images: Family<Outcome, Counter>,
    objects: Counter,
    bytes: Counter,
    running: Gauge,
    runs: Family<Outcome, Counter>,
    last_whole: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// A run that goes on, until it is dropped.
#[derive(Debug)]
pub(super) struct Going(Gauge);

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "warm_images",
            "Images that were warmed, by what became of them",
            metrics.images.clone(),
        );
        registry.register(
            "warm_objects",
            "Objects that were fetched to warm images",
            metrics.objects.clone(),
        );
        registry.register(
            "warm_bytes",
            "Bytes that were fetched to warm images",
            metrics.bytes.clone(),
        );
        registry.register(
            "warm_running",
            "Orders to warm that are at work",
            metrics.running.clone(),
        );
        registry.register(
            "warm_schedule_runs",
            "Runs of the lists in the configuration, by whether all of their images are here",
            metrics.runs.clone(),
        );
        registry.register(
            "warm_schedule_last_whole_timestamp_seconds",
            "When a list of the configuration was last warmed with all of its images here",
            metrics.last_whole.clone(),
        );
        metrics
    }

    pub(super) fn image(&self, fate: Fate) {
        let result = match fate {
            Fate::Here => "here",
            Fate::Failed => "failed",
            Fate::Fetched | Fate::Taken | Fate::TagKept => "fetched",
        };
        self.images.get_or_create(&Outcome { result }).inc();
    }

    pub(super) fn object(&self, bytes: u64) {
        self.objects.inc();
        self.bytes.inc_by(bytes);
    }

    pub(super) fn going(&self) -> Going {
        self.running.inc();
        Going(self.running.clone())
    }

    pub(super) fn schedule(&self, whole: bool, now: Timestamp) {
        let result = if whole { "whole" } else { "failed" };
        self.runs.get_or_create(&Outcome { result }).inc();
        if whole {
            self.last_whole.set(now.as_millis() / 1000);
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.0.dec();
    }
}
