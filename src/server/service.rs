//! What all requests share: the registry, the settings, the metrics and the source of request ids.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::access::AccessLog;
use super::guard::Guard;
use super::metrics::Metrics;
use super::record::Ledger;
use super::settings::{Fallback, Limits, Settings};
use crate::carry::Recorder;
use crate::registry::Registry;

/// Letters of a request id that tell one run of the program from another.
const RUN_LETTERS: usize = 8;

/// What the server is given to serve.
#[derive(Clone, Debug)]
pub struct State {
    pub registry: Arc<Registry>,
    /// Notes what clients are served while somebody records.
    pub recorder: Recorder,
    /// Writes the page of `/metrics`.
    pub metrics_page: MetricsPage,
    pub metrics: Metrics,
    /// Where the lines of finished requests go.
    pub access_log: AccessLog,
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
    ledger: Arc<Ledger>,
    guard: Guard,
    fallback: Fallback,
    limits: Limits,
    /// The same number twice in two runs of the program must not be the same id.
    run: [u8; RUN_LETTERS],
    requests: AtomicU64,
}

impl Service {
    pub(super) fn new(state: State, settings: Settings) -> Self {
        let mut letters = [0; uuid::fmt::Simple::LENGTH];
        uuid::Uuid::new_v4().simple().encode_lower(&mut letters);
        let mut run = [0; RUN_LETTERS];
        run.copy_from_slice(&letters[..RUN_LETTERS]);
        Self {
            ledger: Arc::new(Ledger {
                metrics: state.metrics.clone(),
                log: state.access_log.clone(),
            }),
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
        let mut digits = itoa::Buffer::new();
        let number = digits.format(self.requests.fetch_add(1, Ordering::Relaxed) + 1);
        let mut text = [0; RUN_LETTERS + 1 + <u64 as itoa::Integer>::MAX_STR_LEN];
        let end = RUN_LETTERS + 1 + number.len();
        text[..RUN_LETTERS].copy_from_slice(&self.run);
        text[RUN_LETTERS] = b'-';
        text[RUN_LETTERS + 1..end].copy_from_slice(number.as_bytes());
        std::str::from_utf8(&text[..end]).expect("letters and digits").into()
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.state.registry
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.state.recorder
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.ledger.metrics
    }

    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
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
