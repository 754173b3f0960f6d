//! What all requests share: the registry, the settings, the metrics and the source of request ids.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::guard::Guard;
use super::metrics::Metrics;
use super::settings::{Fallback, Limits, Settings};
use crate::registry::Registry;

/// What the server is given to serve.
#[derive(Clone, Debug)]
pub struct State {
    pub registry: Arc<Registry>,
    /// Writes the page of `/metrics`.
    pub metrics_page: MetricsPage,
    pub metrics: Metrics,
    /// What `/readyz` says; the server takes it back when it begins to drain.
    pub ready: Arc<AtomicBool>,
    /// How requests of ours name us in `Via`.
    pub instance_id: String,
}

/// A function that writes the page of `/metrics` in the OpenMetrics text format.
#[derive(Clone)]
pub struct MetricsPage(Arc<dyn Fn() -> String + Send + Sync>);

impl MetricsPage {
    pub fn new(write: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    pub(super) fn write(&self) -> String {
        (self.0)()
    }
}

impl fmt::Debug for MetricsPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsPage")
    }
}

/// [`State`] and [`Settings`] as requests use them.
#[derive(Debug)]
pub(super) struct Service {
    state: State,
    /// Shared with the record of every request.
    metrics: Arc<Metrics>,
    guard: Guard,
    fallback: Fallback,
    limits: Limits,
    /// The same number twice in two runs of the program must not be the same id.
    run: u32,
    requests: AtomicU64,
}

impl Service {
    pub(super) fn new(state: State, settings: Settings) -> Self {
        let (run, _, _, _) = uuid::Uuid::new_v4().as_fields();
        Self {
            metrics: Arc::new(state.metrics.clone()),
            state,
            guard: Guard::new(settings.clients),
            fallback: settings.fallback,
            limits: settings.limits,
            run,
            requests: AtomicU64::new(0),
        }
    }

    /// A new request id, short enough to be read aloud.
    pub(super) fn next_id(&self) -> Arc<str> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{:08x}-{number}", self.run).into()
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.state.registry
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub(super) fn metrics_page(&self) -> String {
        self.state.metrics_page.write()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.ready.load(Ordering::Relaxed)
    }

    pub(super) fn stop_being_ready(&self) {
        self.state.ready.store(false, Ordering::Relaxed);
    }

    pub(super) fn instance_id(&self) -> &str {
        &self.state.instance_id
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.guard
    }

    pub(super) fn fallback(&self) -> Fallback {
        self.fallback
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }
}
