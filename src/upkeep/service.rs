//! The room's surface: one value that knows the store, the settings in force, and who may run a job.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::evict::Evictor;
use super::metrics::Metrics;
use super::settings::Settings;
use super::worker::Worker;
use crate::clock::Clock;
use crate::content::Content;

/// What upkeep is made of.
#[derive(Debug)]
pub struct Parts {
    pub content: Content,
    pub clock: Arc<dyn Clock>,
    pub tasks: TaskTracker,
    /// The worker and all jobs end when it is cancelled.
    pub shutdown: CancellationToken,
    pub settings: Settings,
}

/// Background work over one store. Clones are handles to the same.
#[derive(Clone)]
pub struct Upkeep(Arc<Inner>);

struct Inner {
    content: Content,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    settings: Mutex<Settings>,
    metrics: Metrics,
    /// The right to run a job.
    slot: Arc<Semaphore>,
    /// Somebody waits for that right, which a walk in the background may give back.
    wanted: Notify,
    /// The worker looks at once.
    wake: Notify,
    /// The eviction does.
    wake_eviction: Notify,
    started: AtomicBool,
}

impl Upkeep {
    /// Does nothing by itself before [`Upkeep::start`]; jobs run without it too.
    pub fn new(parts: Parts, registry: &mut Registry) -> Self {
        let metrics = Metrics::new(registry, Arc::clone(&parts.clock));
        Self(Arc::new(Inner {
            content: parts.content,
            clock: parts.clock,
            tasks: parts.tasks,
            shutdown: parts.shutdown,
            settings: Mutex::new(parts.settings),
            metrics,
            slot: Arc::new(Semaphore::new(1)),
            wanted: Notify::new(),
            wake: Notify::new(),
            wake_eviction: Notify::new(),
            started: AtomicBool::new(false),
        }))
    }

    /// Starts the workers, which first look a while later. To be called when the program serves; a second call does nothing.
    pub fn start(&self) {
        if !self.0.started.swap(true, Ordering::Relaxed) {
            self.0.tasks.spawn(Worker::new(self.clone()).run());
            self.0.tasks.spawn(Evictor::new(self.clone()).run());
        }
    }

    /// Puts other settings in force; the worker looks at them at once.
    pub fn configure(&self, settings: Settings) {
        let mut current = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != settings {
            *current = settings;
            drop(current);
            self.wake();
        }
    }

    /// Makes the workers look now at what is due, for whoever knows that something changed.
    pub fn wake(&self) {
        self.0.wake.notify_one();
        self.0.wake_eviction.notify_one();
    }

    pub(super) async fn eviction_woken(&self) {
        self.0.wake_eviction.notified().await;
    }

    pub(super) async fn woken(&self) {
        self.0.wake.notified().await;
    }

    pub(super) fn settings(&self) -> Settings {
        self.0.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Is no upstream asked at all, by the configuration or by a switch? Then nothing that goes could come back.
    pub(super) fn asks_nobody(&self) -> bool {
        self.settings().keep.offline || self.0.content.metadata().rules().switched_off().all
    }

    pub(super) fn content(&self) -> &Content {
        &self.0.content
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(super) fn shutdown(&self) -> &CancellationToken {
        &self.0.shutdown
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn slot(&self) -> &Arc<Semaphore> {
        &self.0.slot
    }

    pub(super) fn wanted(&self) -> &Notify {
        &self.0.wanted
    }
}

impl fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upkeep").field("settings", &self.settings()).finish_non_exhaustive()
    }
}
