//! What the room counts. Labels are the upstream's configured name, the kind of question and the status, nothing that grows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::clock::Timestamp;
use crate::oci::RegistryName;

/// Upper bounds of the time to the first byte, in seconds; the last but one is the limit for headers.
const TTFB_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The families of the room, shared by all upstreams.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<KindLabels, Counter>,
    last_success: Family<UpstreamLabels, Gauge>,
    credential_ok: Family<UpstreamLabels, Gauge>,
    ratelimit_remaining: Family<UpstreamLabels, Gauge>,
    ttfb: Family<UpstreamLabels, Histogram, fn() -> Histogram>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Manifest,
    Blob,
    Token,
    Tags,
    Referrers,
    Ping,
}

/// The metrics of one upstream.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    upstream: Arc<str>,
    metrics: Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: Arc<str>,
    kind: &'static str,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    upstream: Arc<str>,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: Arc<str>,
}

impl Metrics {
    /// Registers the room's families.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            bytes: Family::default(),
            last_success: Family::default(),
            credential_ok: Family::default(),
            ratelimit_remaining: Family::default(),
            ttfb: Family::new_with_constructor(|| Histogram::new(TTFB_BUCKETS)),
        };
        registry.register(
            "upstream_requests",
            "Requests to upstreams and their token services by status, or by the reason of a failure without one",
            metrics.requests.clone(),
        );
        registry.register(
            "upstream_bytes",
            "Body bytes received from upstreams",
            metrics.bytes.clone(),
        );
        registry.register(
            "upstream_last_success_timestamp_seconds",
            "Unix time of the last good answer of an upstream",
            metrics.last_success.clone(),
        );
        registry.register(
            "upstream_credential_ok",
            "1 if the credential (or anonymity) of an upstream was last accepted, 0 if it is in trouble",
            metrics.credential_ok.clone(),
        );
        registry.register(
            "upstream_ratelimit_remaining",
            "Requests left as an upstream last told (ratelimit-remaining)",
            metrics.ratelimit_remaining.clone(),
        );
        registry.register(
            "upstream_ttfb_seconds",
            "Time from a request to the headers of its answer",
            metrics.ttfb.clone(),
        );
        metrics
    }

    /// The metrics of the upstream `name`.
    pub(super) fn of(&self, name: &RegistryName) -> Meter {
        Meter { upstream: name.as_str().into(), metrics: self.clone() }
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Token => "token",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Ping => "ping",
        }
    }
}

impl Meter {
    /// One exchange ended; `status` is the HTTP status or the stable word of the failure.
    pub(super) fn request(&self, kind: Kind, status: impl fmt::Display) {
        let labels = RequestLabels {
            upstream: Arc::clone(&self.upstream),
            kind: kind.as_str(),
            status: status.to_string(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
    }

    pub(super) fn bytes(&self, kind: Kind, count: usize) {
        let labels = KindLabels { upstream: Arc::clone(&self.upstream), kind: kind.as_str() };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.metrics.bytes.get_or_create(&labels).inc_by(count);
    }

    pub(super) fn first_byte(&self, after: Duration) {
        let family = &self.metrics.ttfb;
        family.get_or_create(&self.labels()).observe(after.as_secs_f64());
    }

    pub(super) fn success(&self, at: Timestamp) {
        let family = &self.metrics.last_success;
        family.get_or_create(&self.labels()).set(at.as_millis() / 1000);
    }

    pub(super) fn credential(&self, ok: bool) {
        let family = &self.metrics.credential_ok;
        family.get_or_create(&self.labels()).set(i64::from(ok));
    }

    pub(super) fn ratelimit_remaining(&self, left: u32) {
        let family = &self.metrics.ratelimit_remaining;
        family.get_or_create(&self.labels()).set(i64::from(left));
    }

    fn labels(&self) -> UpstreamLabels {
        UpstreamLabels { upstream: Arc::clone(&self.upstream) }
    }
}
