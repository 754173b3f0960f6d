//! The room's surface: one value that knows the store, the names and who fetches.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::Error;
use super::events::Event;
use super::metrics::Metrics;
use super::recorder::Recorder;
use super::settings::Settings;
use crate::clock::{Clock, Timestamp};
use crate::content::Content;
use crate::metadata::{Proof, RepositoryKey};
use crate::proxy::Proxy;
use crate::registry::desk::Desk;
use crate::story;

/// Work on images, told as it goes.
pub type Job = story::Job<Event>;

/// What the room is made of.
#[derive(Debug)]
pub struct Parts {
    pub desk: Desk,
    pub clock: Arc<dyn Clock>,
    pub tasks: TaskTracker,
    /// All work ends when it is cancelled.
    pub shutdown: CancellationToken,
    pub settings: Settings,
    pub metrics: Metrics,
}

/// Images as wholes. Clones are handles to the same.
#[derive(Clone)]
pub struct Carry(Arc<Inner>);

pub(super) struct Inner {
    pub(super) desk: Desk,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    pub(super) settings: ArcSwap<Settings>,
    pub(super) recorder: Recorder,
    pub(super) metrics: Metrics,
    /// The settings are others.
    pub(super) changed: Notify,
    /// All lists are due.
    pub(super) hurry: Notify,
    /// The right to take something in; one at a time, because each may fill the disk.
    pub(super) taking_in: Arc<Semaphore>,
}

impl Carry {
    /// Does nothing by itself before [`Carry::start`].
    pub fn new(parts: Parts) -> Self {
        let recorder = Recorder::new(
            parts.desk.content().metadata().clone(),
            Arc::clone(&parts.clock),
            parts.tasks.clone(),
            parts.shutdown.clone(),
        );
        Self(Arc::new(Inner {
            recorder,
            desk: parts.desk,
            clock: parts.clock,
            tasks: parts.tasks,
            shutdown: parts.shutdown,
            settings: ArcSwap::from_pointee(parts.settings),
            metrics: parts.metrics,
            changed: Notify::new(),
            hurry: Notify::new(),
            taking_in: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Puts other settings in force.
    pub fn configure(&self, settings: Settings) {
        self.0.settings.store(Arc::new(settings));
        self.0.changed.notify_one();
    }

    /// Who is to be told what clients are served.
    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    pub(super) fn content(&self) -> &Content {
        self.0.desk.content()
    }

    pub(super) fn proxy(&self) -> &Proxy {
        self.0.desk.proxy()
    }

    /// See `Proxied::proof_of_import`, which knows the credential of the repository's upstream.
    pub(super) async fn proof_of_import(
        &self,
        key: &RepositoryKey,
        at: Timestamp,
        public: bool,
    ) -> Result<Proof, Error> {
        let image = self.0.desk.image(&key.to_string())?;
        Ok(match image.proxied() {
            Some(repository) => repository.proof_of_import(at, public).await,
            None => Proof { proved: at, credential: None },
        })
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }
}

impl fmt::Debug for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carry").field("settings", &self.0.settings.load()).finish_non_exhaustive()
    }
}
