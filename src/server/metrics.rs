//! The server's metrics: requests, bytes, times and connections.
//!
//! Labels come from closed sets (kind, outcome, status) or are the names of upstreams, of which so many are told apart: clients choose
//! the members of a pattern.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::oci::RegistryName;
use crate::registry::Outcome;

/// From a manifest out of memory to a layer over a slow line, in seconds.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// Upstreams that get a label of their own; all others are counted together.
const NAMES_MAX: usize = 500;
/// The label of all others.
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
    names: Arc<RwLock<HashSet<RegistryName>>>,
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
            names: Arc::default(),
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
        let outcome = OutcomeLabel(sample.outcome);
        let upstream = self.label(sample.upstream);
        let kind = sample.kind;
        let status = sample.status.into();
        let labels = RequestLabels { kind, outcome, upstream, status };
        self.requests.get_or_create(&labels).inc();
        if sample.bytes > 0 {
            let upstream = labels.upstream;
            self.served_bytes.get_or_create(&BytesLabels { upstream, kind }).inc_by(sample.bytes);
        }
        let labels = TimeLabels { kind, outcome };
        self.request_seconds.get_or_create(&labels).observe(sample.whole.as_secs_f64());
        if let Some(first_byte) = sample.first_byte {
            self.first_byte_seconds.get_or_create(&labels).observe(first_byte.as_secs_f64());
        }
    }

    fn label(&self, name: Option<&RegistryName>) -> UpstreamLabel {
        let Some(name) = name else { return UpstreamLabel::None };
        // A set is whole whoever held it.
        if self.names.read().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return UpstreamLabel::Name(name.clone());
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_MAX && !names.contains(name) {
            return UpstreamLabel::Other;
        }
        names.insert(name.clone());
        UpstreamLabel::Name(name.clone())
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
    use super::*;

    #[test]
    fn names_that_clients_choose_do_not_grow_without_end() {
        let metrics = Metrics::new(&mut Registry::default());
        let label =
            |number: usize| metrics.label(Some(&format!("r{number}.pkg.dev").parse().unwrap()));
        for number in 0..NAMES_MAX {
            assert!(matches!(label(number), UpstreamLabel::Name(_)));
        }
        assert_eq!(label(NAMES_MAX), UpstreamLabel::Other);
        assert!(matches!(label(7), UpstreamLabel::Name(_)));
        assert_eq!(metrics.label(None), UpstreamLabel::None);
    }

    #[test]
    fn a_finished_request_is_counted_under_its_labels() {
        let mut registry = Registry::with_prefix("roadstead");
        let metrics = Metrics::new(&mut registry);
        let upstream: RegistryName = "docker.io".parse().unwrap();
        let sample = Sample {
            kind: Kind::Blob,
            outcome: Outcome::Hit,
            upstream: Some(&upstream),
            status: 206,
            bytes: 7,
            whole: Duration::from_millis(3),
            first_byte: Some(Duration::from_millis(1)),
        };
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
