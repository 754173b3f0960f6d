//! The server's metrics: requests, bytes, times and connections.
//!
//! Labels come from closed sets (kind, outcome, status) or are the names of upstreams, of which so many are told apart: clients choose
//! the members of a pattern. What a request counts is found without a lock, a hash of labels or an allocation: the handles of the
//! families' members are kept in tables by label.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::names::Names;
use crate::oci::RegistryName;
use crate::registry::Outcome;

/// From a manifest out of memory to a layer over a slow line, in seconds.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// Kinds and outcomes.
const KINDS: usize = 9;
const OUTCOMES: usize = 9;
/// The label of all upstreams that get none of their own.
const OTHER: &str = "other";

/// What a request was for, in logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Ping,
    Manifest,
    Blob,
    Tags,
    Catalog,
    Referrers,
    Health,
    Metrics,
    /// No known path, or no request at all.
    Other,
}

/// The server's families. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    served_bytes: Family<BytesLabels, Counter>,
    request_seconds: Family<TimeLabels, Histogram>,
    first_byte_seconds: Family<TimeLabels, Histogram>,
    connections: Gauge,
    refused_connections: Family<ReasonLabels, Counter>,
    limits_reached: Family<LimitLabels, Counter>,
    handles: Arc<Handles>,
}

/// The members of the families that requests count in, by label.
#[derive(Debug)]
struct Handles {
    times: Box<[[Times; OUTCOMES]; KINDS]>,
    upstreams: Names<Handle>,
    /// Requests that are about no upstream, and those about the upstreams without a label of their own.
    none: Handle,
    other: Handle,
}

#[derive(Debug, Default)]
struct Times {
    whole: OnceLock<Histogram>,
    first_byte: OnceLock<Histogram>,
}

/// What is counted for one upstream.
#[derive(Debug, Default)]
struct Handle {
    requests: [[OnceLock<Box<ByStatus>>; OUTCOMES]; KINDS],
    bytes: [OnceLock<Counter>; KINDS],
}

/// A chain of counters, one for each status that was seen. It only grows, and there are few.
#[derive(Debug)]
struct ByStatus {
    status: u16,
    requests: Counter,
    next: OnceLock<Box<ByStatus>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    kind: Kind,
    outcome: OutcomeLabel,
    upstream: UpstreamLabel,
    status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    upstream: UpstreamLabel,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    kind: Kind,
    outcome: OutcomeLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct OutcomeLabel(Outcome);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum UpstreamLabel {
    None,
    Name(RegistryName),
    Other,
}

/// A finished request, as the counters see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'a> {
    pub(super) kind: Kind,
    pub(super) outcome: Outcome,
    pub(super) upstream: Option<&'a RegistryName>,
    pub(super) status: u16,
    pub(super) bytes: u64,
    pub(super) whole: Duration,
    pub(super) first_byte: Option<Duration>,
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            requests: Family::default(),
            served_bytes: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            first_byte_seconds: Family::new_with_constructor(histogram),
            connections: Gauge::default(),
            refused_connections: Family::default(),
            limits_reached: Family::default(),
            handles: Arc::new(Handles::new()),
        };
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register(
            "served_bytes",
            "Bytes of bodies handed to clients",
            metrics.served_bytes.clone(),
        );
        registry.register(
            "request_seconds",
            "From a request's headers to the last byte of its answer",
            metrics.request_seconds.clone(),
        );
        registry.register(
            "first_byte_seconds",
            "From a request's headers to the first byte of its answer",
            metrics.first_byte_seconds.clone(),
        );
        registry.register("connections", "Open client connections", metrics.connections.clone());
        registry.register(
            "refused_connections",
            "Connections that were ended by a limit of ours",
            metrics.refused_connections.clone(),
        );
        registry.register(
            "limits_reached",
            "Connections and requests that went beyond a limit, by the name of its key",
            metrics.limits_reached.clone(),
        );
        metrics
    }

    pub(super) fn finished(&self, sample: &Sample<'_>) {
        let (kind, outcome) = (sample.kind, sample.outcome);
        let (handle, upstream) = self.handle(sample.upstream);
        let counters = &handle.requests[place_of_kind(kind)][place_of_outcome(outcome)];
        let make = || {
            let (outcome, upstream) = (OutcomeLabel(outcome), upstream.label());
            let status = sample.status.into();
            self.requests.get_or_create_owned(&RequestLabels { kind, outcome, upstream, status })
        };
        ByStatus::find(counters, sample.status, make).inc();
        if sample.bytes > 0 {
            let make = || {
                let upstream = upstream.label();
                self.served_bytes.get_or_create_owned(&BytesLabels { upstream, kind })
            };
            handle.bytes[place_of_kind(kind)].get_or_init(make).inc_by(sample.bytes);
        }
        let times = &self.handles.times[place_of_kind(kind)][place_of_outcome(outcome)];
        let labels = TimeLabels { kind, outcome: OutcomeLabel(outcome) };
        let make = || self.request_seconds.get_or_create_owned(&labels);
        times.whole.get_or_init(make).observe(sample.whole.as_secs_f64());
        if let Some(first_byte) = sample.first_byte {
            let make = || self.first_byte_seconds.get_or_create_owned(&labels);
            times.first_byte.get_or_init(make).observe(first_byte.as_secs_f64());
        }
    }

    /// Where requests about an upstream count, and under which label.
    fn handle<'a>(&self, name: Option<&'a RegistryName>) -> (&Handle, Upstream<'a>) {
        let Some(name) = name else { return (&self.handles.none, Upstream::None) };
        match self.handles.upstreams.get(name) {
            Some(handle) => (handle, Upstream::Name(name)),
            None => (&self.handles.other, Upstream::Other),
        }
    }

    /// A connection is open until the answer is dropped.
    pub(super) fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// A client went beyond a limit of ours; `limit` is the name of its key.
    pub(super) fn limit_reached(&self, limit: &'static str) {
        self.limits_reached.get_or_create(&LimitLabels { limit }).inc();
    }

    /// A connection was ended by one of our limits.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused_connections.get_or_create(&ReasonLabels { reason }).inc();
    }
}

impl Handles {
    fn new() -> Self {
        Self {
            times: Box::default(),
            upstreams: Names::new(),
            none: Handle::default(),
            other: Handle::default(),
        }
    }
}

impl ByStatus {
    /// The counter of `status` in the chain that begins at `first`, made by `make` if it is new.
    fn find(first: &OnceLock<Box<Self>>, status: u16, make: impl Fn() -> Counter) -> &Counter {
        let mut link = first;
        loop {
            let at = link
                .get_or_init(|| Box::new(Self { status, requests: make(), next: OnceLock::new() }));
            if at.status == status {
                return &at.requests;
            }
            link = &at.next;
        }
    }
}

fn place_of_kind(kind: Kind) -> usize {
    match kind {
        Kind::Ping => 0,
        Kind::Manifest => 1,
        Kind::Blob => 2,
        Kind::Tags => 3,
        Kind::Catalog => 4,
        Kind::Referrers => 5,
        Kind::Health => 6,
        Kind::Metrics => 7,
        Kind::Other => 8,
    }
}

fn place_of_outcome(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Hit => 0,
        Outcome::Joined => 1,
        Outcome::Miss => 2,
        Outcome::Revalidated => 3,
        Outcome::Stale => 4,
        Outcome::Bypass => 5,
        Outcome::Refused => 6,
        Outcome::Error => 7,
        Outcome::Deleted => 8,
    }
}

/// The label of an upstream before it costs anything.
#[derive(Clone, Copy, Debug)]
enum Upstream<'a> {
    None,
    Name(&'a RegistryName),
    Other,
}

impl Upstream<'_> {
    fn label(self) -> UpstreamLabel {
        match self {
            Self::None => UpstreamLabel::None,
            Self::Name(name) => UpstreamLabel::Name(name.clone()),
            Self::Other => UpstreamLabel::Other,
        }
    }
}

/// Counts an open connection while it lives.
#[derive(Debug)]
pub(super) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Catalog => "catalog",
            Self::Referrers => "referrers",
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Other => "other",
        }
    }
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

impl EncodeLabelValue for OutcomeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}

impl EncodeLabelValue for UpstreamLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let name = match self {
            Self::None => "",
            Self::Name(name) => name.as_str(),
            Self::Other => OTHER,
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::NAMES_MAX;
    use super::*;

    #[test]
    fn upstreams_beyond_the_limit_are_counted_together() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        for number in 0..NAMES_MAX + 3 {
            let upstream = format!("r{number}.pkg.dev").parse().unwrap();
            metrics.finished(&Sample { upstream: Some(&upstream), ..sample() });
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let line = |upstream: &str| {
            format!(
                r#"requests_total{{kind="blob",outcome="hit",upstream="{upstream}",status="206"}}"#
            )
        };
        assert!(page.contains(&(line("r499.pkg.dev") + " 1\n")), "{page}");
        assert!(page.contains(&(line(OTHER) + " 3\n")), "{page}");
        assert!(!page.contains("r500.pkg.dev"));
    }

    #[test]
    fn each_status_has_its_own_counter() {
        let metrics = Metrics::new(&mut Registry::default());
        for status in [200, 404, 200, 206, 404, 200] {
            metrics.finished(&Sample { status, ..sample() });
        }
        let count = |status| {
            let labels = RequestLabels {
                kind: Kind::Blob,
                outcome: OutcomeLabel(Outcome::Hit),
                upstream: UpstreamLabel::None,
                status,
            };
            metrics.requests.get_or_create(&labels).get()
        };
        assert_eq!([count(200), count(404), count(206), count(500)], [3, 2, 1, 0]);
    }

    fn sample() -> Sample<'static> {
        Sample {
            kind: Kind::Blob,
            outcome: Outcome::Hit,
            upstream: None,
            status: 206,
            bytes: 7,
            whole: Duration::from_millis(3),
            first_byte: Some(Duration::from_millis(1)),
        }
    }

    #[test]
    fn a_finished_request_is_counted_under_its_labels() {
        let mut registry = Registry::with_prefix("roadstead");
        let metrics = Metrics::new(&mut registry);
        let upstream: RegistryName = "docker.io".parse().unwrap();
        let sample = Sample { upstream: Some(&upstream), ..sample() };
        metrics.finished(&sample);
        metrics.finished(&Sample { upstream: None, status: 404, bytes: 0, ..sample });
        let open = metrics.connection();
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            r#"roadstead_requests_total{kind="blob",outcome="hit",upstream="docker.io",status="206"} 1"#,
            r#"roadstead_requests_total{kind="blob",outcome="hit",upstream="",status="404"} 1"#,
            r#"roadstead_served_bytes_total{upstream="docker.io",kind="blob"} 7"#,
            r#"roadstead_request_seconds_count{kind="blob",outcome="hit"} 2"#,
            r#"roadstead_first_byte_seconds_count{kind="blob",outcome="hit"} 2"#,
            "roadstead_connections 1",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
        drop(open);
        assert_eq!(metrics.connections.get(), 0);
    }
}
