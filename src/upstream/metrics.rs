//! What the room counts. Labels are the upstream's name, its endpoints' hosts, the kind of question and the status, nothing that grows
//! without end.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
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

/// Upstreams that get a label of their own: clients choose the members of a pattern, and must not fill memory with them.
const NAMES_MAX: usize = 500;
/// The label of all others.
const OTHER: &str = "other";

/// The families of the room, shared by all upstreams.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<KindLabels, Counter>,
    last_success: Family<UpstreamLabels, Gauge>,
    credential_ok: Family<UpstreamLabels, Gauge>,
    ratelimit_remaining: Family<CredentialLabels, Gauge>,
    helper_failures: Family<ReasonLabels, Counter>,
    ttfb: Family<UpstreamLabels, Histogram, fn() -> Histogram>,
    endpoint_requests: Family<EndpointLabels, Counter>,
    endpoint_bytes: Family<EndpointLabels, Counter>,
    endpoint_failures: Family<FailureLabels, Counter>,
    endpoint_up: Family<EndpointLabels, Gauge>,
    /// The names with a label; those of the configuration come first.
    names: Arc<Mutex<HashSet<Arc<str>>>>,
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

/// The metrics of one endpoint of an upstream.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    upstream: Arc<str>,
    endpoint: Arc<str>,
    /// Its credential and its limits are not those of the upstream.
    is_copy: bool,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    upstream: Arc<str>,
    endpoint: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    upstream: Arc<str>,
    endpoint: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CredentialLabels {
    upstream: Arc<str>,
    credential: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    upstream: Arc<str>,
    reason: &'static str,
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
            helper_failures: Family::default(),
            ttfb: Family::new_with_constructor(|| Histogram::new(TTFB_BUCKETS)),
            endpoint_requests: Family::default(),
            endpoint_bytes: Family::default(),
            endpoint_failures: Family::default(),
            endpoint_up: Family::default(),
            names: Arc::default(),
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
            "upstream_credential_helper_failures",
            "Runs of a credential helper that gave no credential",
            metrics.helper_failures.clone(),
        );
        registry.register(
            "upstream_ttfb_seconds",
            "Time from a request to the headers of its answer",
            metrics.ttfb.clone(),
        );
        metrics.register_endpoints(registry);
        metrics
    }

    fn register_endpoints(&self, registry: &mut Registry) {
        registry.register(
            "upstream_endpoint_requests",
            "Requests to the endpoints of upstreams (parent, mirrors, the registry itself)",
            self.endpoint_requests.clone(),
        );
        registry.register(
            "upstream_endpoint_bytes",
            "Body bytes received from the endpoints of upstreams",
            self.endpoint_bytes.clone(),
        );
        registry.register(
            "upstream_endpoint_failures",
            "Questions that an endpoint did not answer, and bodies from it that went wrong",
            self.endpoint_failures.clone(),
        );
        registry.register(
            "upstream_endpoint_up",
            "1 if an endpoint of an upstream is asked in its turn, 0 while it is left alone because it did not answer",
            self.endpoint_up.clone(),
        );
    }

    /// The metrics of the upstream `name` at the host `endpoint`.
    pub(super) fn of(&self, name: &RegistryName, endpoint: &str) -> Meter {
        let upstream = self.label(name);
        let endpoint = if &*upstream == OTHER { OTHER } else { endpoint };
        Meter { upstream, endpoint: endpoint.into(), is_copy: false, metrics: self.clone() }
    }

    fn label(&self, name: &RegistryName) -> Arc<str> {
        // A set is whole whoever held it.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name.as_str()) {
            return Arc::clone(known);
        }
        if names.len() >= NAMES_MAX {
            return OTHER.into();
        }
        let label: Arc<str> = name.as_str().into();
        names.insert(Arc::clone(&label));
        label
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
    /// The same for a mirror or the parent.
    pub(super) fn of_a_copy(self) -> Self {
        Self { is_copy: true, ..self }
    }

    /// One exchange ended; `status` is the HTTP status or the stable word of the failure.
    pub(super) fn request(&self, kind: Kind, status: impl fmt::Display) {
        let labels = RequestLabels {
            upstream: Arc::clone(&self.upstream),
            kind: kind.as_str(),
            status: status.to_string(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        self.metrics.endpoint_requests.get_or_create(&self.endpoint_labels()).inc();
    }

    pub(super) fn bytes(&self, kind: Kind, count: usize) {
        let labels = KindLabels { upstream: Arc::clone(&self.upstream), kind: kind.as_str() };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.metrics.bytes.get_or_create(&labels).inc_by(count);
        self.metrics.endpoint_bytes.get_or_create(&self.endpoint_labels()).inc_by(count);
    }

    /// The endpoint gave no answer, or a body that went wrong.
    pub(super) fn endpoint_failed(&self, reason: &'static str) {
        let (upstream, endpoint) = (Arc::clone(&self.upstream), Arc::clone(&self.endpoint));
        let labels = FailureLabels { upstream, endpoint, reason };
        self.metrics.endpoint_failures.get_or_create(&labels).inc();
    }

    pub(super) fn endpoint_up(&self, up: bool) {
        let family = &self.metrics.endpoint_up;
        family.get_or_create(&self.endpoint_labels()).set(i64::from(up));
    }

    /// Nobody knows yet, or any more, how the endpoint is.
    pub(super) fn endpoint_unknown(&self) {
        self.metrics.endpoint_up.remove(&self.endpoint_labels());
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
        if self.is_copy {
            return;
        }
        let family = &self.metrics.credential_ok;
        family.get_or_create(&self.labels()).set(i64::from(ok));
    }

    pub(super) fn ratelimit_remaining(&self, credential: &'static str, left: u64) {
        if self.is_copy {
            return;
        }
        let labels = CredentialLabels { upstream: Arc::clone(&self.upstream), credential };
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        self.metrics.ratelimit_remaining.get_or_create(&labels).set(left);
    }

    pub(super) fn helper_failed(&self, reason: &'static str) {
        let labels = ReasonLabels { upstream: Arc::clone(&self.upstream), reason };
        self.metrics.helper_failures.get_or_create(&labels).inc();
    }

    /// The label of the upstream.
    pub(super) fn upstream(&self) -> &str {
        &self.upstream
    }

    fn endpoint_labels(&self) -> EndpointLabels {
        EndpointLabels {
            upstream: Arc::clone(&self.upstream),
            endpoint: Arc::clone(&self.endpoint),
        }
    }

    fn labels(&self) -> UpstreamLabels {
        UpstreamLabels { upstream: Arc::clone(&self.upstream) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_clients_choose_do_not_grow_without_end() {
        let metrics = Metrics::new(&mut Registry::default());
        let of = |number: usize| {
            let name = format!("r{number}.pkg.dev");
            metrics.of(&name.parse().unwrap(), &name)
        };
        for number in 0..NAMES_MAX {
            assert_eq!(of(number).upstream(), format!("r{number}.pkg.dev"));
        }
        let more = of(NAMES_MAX);
        assert_eq!((more.upstream(), &*more.endpoint), (OTHER, OTHER));
        assert_eq!(of(7).upstream(), "r7.pkg.dev");
        assert_eq!(metrics.names.lock().unwrap().len(), NAMES_MAX);
    }
}
