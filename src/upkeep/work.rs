//! What the jobs do: read what the rows call present, and take in what no row knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{MissedTickBehavior, interval};

use super::events::{Event, Finding, JobKind, Report};
use super::job::{Order, Story};
use super::service::Upkeep;
use super::settings::{PAGE, PROGRESS_EVERY};
use crate::content::{Error, Haste, StoredObject, Verdict};
use crate::metadata::Within;
use crate::story::Stopped;

/// One job at work.
pub(super) struct Work<'a> {
    pub(super) upkeep: &'a Upkeep,
    pub(super) kind: JobKind,
    pub(super) story: Story,
    /// What a purge is about.
    pub(super) within: Option<Within>,
    read: Arc<Read>,
    pub(super) report: Report,
}

/// How much was read, counted on the thread that reads.
#[derive(Debug, Default)]
struct Read {
    objects: AtomicU64,
    bytes: AtomicU64,
}

/// Why the work did not come to its end.
pub(super) enum Failure {
    Stopped,
    Store(Error),
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(upkeep: &'a Upkeep, (kind, within): Order, story: Story) -> Self {
        let report = Report {
            repaired: matches!(kind, JobKind::Repair | JobKind::Reindex),
            ..Report::default()
        };
        Self { upkeep, kind, story, within, read: Arc::default(), report }
    }

    pub(super) async fn run(mut self) {
        tracing::info!(job = ?self.kind, "a job over the store begins");
        let done = self.work().await;
        self.report.objects = self.read.objects.load(Ordering::Relaxed);
        self.report.bytes = self.read.bytes.load(Ordering::Relaxed);
        let Report { objects, bytes, damaged, missing, adopted, .. } = self.report;
        let (last, outcome) = match done {
            Ok(()) => (Event::Ended(self.report), "ended".to_owned()),
            Err(Failure::Stopped) => {
                let reason = "roadstead is stopping".to_owned();
                (Event::Aborted { reason }, "stopped".to_owned())
            }
            Err(Failure::Store(error)) => {
                (Event::Aborted { reason: error.to_string() }, error.to_string())
            }
        };
        tracing::info!(job = ?self.kind, outcome, objects, bytes, damaged, missing, adopted, "a job over the store is over");
        match last {
            Event::Ended(_) => drop(self.story.tell(last).await),
            // The order to stop counts more than a reader that is slow.
            last => self.story.mention(last),
        }
    }

    async fn work(&mut self) -> Result<(), Failure> {
        let usage = self.upkeep.content().metadata().usage().await.map_err(Error::from)?;
        let (objects, bytes) = match self.kind {
            JobKind::Reindex | JobKind::Gc | JobKind::GcDryRun | JobKind::Purge => (0, 0),
            JobKind::Verify | JobKind::Repair => (usage.objects, usage.bytes),
        };
        self.story.tell(Event::Begun { job: self.kind, objects, bytes }).await?;
        if matches!(self.kind, JobKind::Verify | JobKind::Repair) {
            self.verify().await?;
        }
        match self.kind {
            JobKind::Verify => self.count_orphans().await,
            JobKind::Repair | JobKind::Reindex => self.adopt().await,
            JobKind::Gc | JobKind::GcDryRun => self.collect_and_evict().await,
            JobKind::Purge => self.purge().await,
        }
    }

    /// Reads everything that a row calls present, in the order of digests.
    async fn verify(&mut self) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.upkeep.content().objects(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.digest);
            for object in &page {
                self.verify_one(object).await?;
            }
        }
    }

    async fn verify_one(&mut self, object: &StoredObject) -> Result<(), Failure> {
        let (content, digest) = (self.upkeep.content(), &object.digest);
        let (read, metrics) = (Arc::clone(&self.read), self.upkeep.metrics().clone());
        let count = move |bytes: usize| {
            metrics.read(bytes);
            read.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        let cancel = self.story.stopped();
        let verdict = match self.kind {
            JobKind::Verify => self.watched(content.examine_paced(digest, count, cancel)).await,
            _ => self.watched(content.verify_paced(digest, count, cancel)).await,
        };
        if self.story.is_stopped() {
            return Err(Failure::Stopped);
        }
        self.read.objects.fetch_add(1, Ordering::Relaxed);
        let (finding, reason) = match verdict {
            Ok(verdict) => {
                self.upkeep.metrics().looked(verdict);
                match verdict {
                    Verdict::Sound | Verdict::Gone => return Ok(()),
                    Verdict::Damaged => (Finding::Damaged, None),
                    Verdict::Missing => (Finding::Missing, None),
                }
            }
            Err(error) => {
                self.upkeep.metrics().failed();
                tracing::warn!(%digest, %error, "stored content could not be looked at");
                (Finding::Unknown, Some(error.to_string()))
            }
        };
        self.report.count(finding);
        let (digest, file) = (digest.to_string(), digest.layout_path());
        let size = object.size;
        self.story.tell(Event::Found { finding, digest, file, size, reason }).await?;
        Ok(())
    }

    /// Waits for `work`, telling the progress meanwhile. The work itself ends soon after the job is stopped.
    async fn watched<T>(&self, work: impl Future<Output = T>) -> T {
        let mut ticks = interval(PROGRESS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = ticks.tick() => self.story.mention(self.progress()),
            }
        }
    }

    fn progress(&self) -> Event {
        Event::Progress {
            objects: self.read.objects.load(Ordering::Relaxed),
            bytes: self.read.bytes.load(Ordering::Relaxed),
        }
    }

    /// Counts files that no row knows.
    async fn count_orphans(&mut self) -> Result<(), Failure> {
        let counting = self.upkeep.content().count_orphans(self.story.stopped());
        let orphans = self.watched(counting).await;
        if self.story.is_stopped() {
            return Err(Failure::Stopped);
        }
        self.report.orphans = orphans?;
        Ok(())
    }

    /// Takes in files that no row knows.
    async fn adopt(&mut self) -> Result<(), Failure> {
        let read = Arc::clone(&self.read);
        let count = move |adopted: crate::content::Adopted| {
            read.objects.fetch_add(1, Ordering::Relaxed);
            read.bytes.fetch_add(adopted.size, Ordering::Relaxed);
        };
        let adopting =
            self.upkeep.content().adopt_orphans(Haste::Full, &count, self.story.stopped());
        let report = self.watched(adopting).await;
        if self.story.is_stopped() {
            return Err(Failure::Stopped);
        }
        let report = report?;
        self.upkeep.metrics().adopted(report.adopted);
        self.report.adopted = report.adopted;
        self.report.damaged += report.damaged;
        Ok(())
    }
}
