//! The worker: looks now and then at what is due, and does it at an even pace.
//!
//! One task for all of it, so that the store is read by one of them at a time. Times that were stored are compared with the wall
//! clock; how often the worker looks is a matter of the monotonic one.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::pace::{Pace, due_after, rate};
use super::service::Upkeep;
use super::settings::{
    ADOPT_EVERY, AFTER_FAILURE, FIRST_LOOK, LOOK_EVERY, PAGE, SCRUB_FILE_BYTES, SWEEP_EVERY,
};
use crate::clock::Timestamp;
use crate::content::{Error, Haste, StoredObject, Verdict};
use crate::oci::Digest;

pub(super) struct Worker {
    upkeep: Upkeep,
    pace: Arc<Mutex<Pace>>,
    swept: Option<Timestamp>,
    adopted: Option<Timestamp>,
    /// What the scrub read last. If the same is due again at once, nothing of it could be recorded.
    last_page: Vec<Digest>,
}

impl Worker {
    pub(super) fn new(upkeep: Upkeep) -> Self {
        let pace = Arc::new(Mutex::new(Pace::new(super::settings::SCRUB_RATE_MIN)));
        Self { upkeep, pace, swept: None, adopted: None, last_page: Vec::new() }
    }

    /// Works until the program stops.
    pub(super) async fn run(mut self) {
        let stop = self.upkeep.shutdown().clone();
        // What a lost metadata file takes away is wanted back at once.
        let lost = self.upkeep.content().lost_metadata().is_some();
        let mut pause = if lost { Duration::ZERO } else { FIRST_LOOK };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
                () = self.upkeep.woken() => {}
            }
            pause = match self.look(&stop).await {
                Ok(pause) => pause.min(LOOK_EVERY),
                Err(error) if stop.is_cancelled() => {
                    tracing::debug!(%error, "upkeep was interrupted");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "upkeep failed; it goes on later");
                    AFTER_FAILURE
                }
            };
        }
    }

    /// Does what is due; answers after which time something more may be. One kind of work that fails does not keep the others back.
    async fn look(&mut self, stop: &CancellationToken) -> Result<Duration, Error> {
        let swept = self.sweep().await;
        let adopted = self.adopt(stop).await;
        let pause = self.scrub(stop).await;
        swept.and(adopted).and(pause)
    }

    fn is_due(&self, last: Option<Timestamp>, every: Duration) -> bool {
        let now = self.upkeep.clock().now();
        // A clock that was set back must not put it off for ever.
        last.is_none_or(|last| now.since(last) >= every || last > now)
    }

    /// Removes what earlier downloads left and nobody continued.
    async fn sweep(&mut self) -> Result<(), Error> {
        if !self.is_due(self.swept, SWEEP_EVERY) {
            return Ok(());
        }
        // Also if it fails: the next one comes in any case.
        self.swept = Some(self.upkeep.clock().now());
        let swept = self.upkeep.content().sweep_unfinished().await?;
        self.upkeep.metrics().swept(swept);
        if swept > 0 {
            tracing::info!(swept, "unfinished downloads that nobody continued were removed");
        }
        Ok(())
    }

    /// Takes in files without a row. It is a job like those on demand, so it waits while one of them runs; and because it takes its time,
    /// it makes way for one, and comes again later.
    async fn adopt(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        if !self.is_due(self.adopted, ADOPT_EVERY) {
            return Ok(());
        }
        let upkeep = self.upkeep.clone();
        // From here on, so that nobody who waits is overlooked.
        let mut wanted = pin!(upkeep.wanted().notified());
        let Some(slot) = upkeep.take_slot().await else {
            return Ok(());
        };
        let lost = self.upkeep.content().lost_metadata().is_some() && self.adopted.is_none();
        if lost {
            tracing::warn!(
                "the metadata file was lost; stored content is taken in again, in the background"
            );
        }
        let progress = Progress::new();
        // What was lost is wanted back at once; else it is a look for what a crash may have left.
        let haste = if lost { Haste::Full } else { Haste::Background };
        let heard = |_adopted| progress.note();
        let walk = stop.child_token();
        let mut adopting = pin!(upkeep.content().adopt_orphans(haste, &heard, &walk));
        let report = tokio::select! {
            report = &mut adopting => report,
            () = &mut wanted, if !lost => {
                walk.cancel();
                adopting.await
            }
        };
        drop(slot);
        let report = report?;
        if walk.is_cancelled() {
            return Ok(());
        }
        self.adopted = Some(self.upkeep.clock().now());
        self.upkeep.metrics().adopted(report.adopted);
        if lost || report.adopted > 0 || report.damaged > 0 {
            tracing::info!(
                adopted = report.adopted,
                damaged = report.damaged,
                bytes = report.bytes,
                "files without a row were taken in"
            );
        }
        Ok(())
    }

    /// Reads a page of what was verified longest ago, as far as it is due.
    async fn scrub(&mut self, stop: &CancellationToken) -> Result<Duration, Error> {
        let now = self.upkeep.clock().now();
        let soon = now.plus(Duration::from_millis(1));
        let page = self.upkeep.content().oldest_verified(soon, PAGE).await?;
        self.upkeep.metrics().oldest(page.first().and_then(|object| object.verified));
        let (Some(period), Some(first)) = (self.upkeep.settings().scrub_period, page.first())
        else {
            return Ok(LOOK_EVERY);
        };
        let is_due = |object: &&StoredObject| age(object, now) >= due_after(period);
        let due: Vec<Digest> = page.iter().take_while(is_due).map(|object| object.digest).collect();
        if due.is_empty() {
            self.last_page.clear();
            return Ok(due_after(period).saturating_sub(age(first, now)));
        }
        if due == self.last_page {
            tracing::warn!("scrub cannot record what it read; it goes on later");
            self.last_page.clear();
            return Ok(AFTER_FAILURE);
        }
        let stored = self.upkeep.content().metadata().usage().await?;
        self.pace().set_rate(rate(stored, age(first, now), period));
        for digest in &due {
            if stop.is_cancelled() || self.upkeep.settings().scrub_period != Some(period) {
                return Ok(Duration::ZERO);
            }
            // A page may take hours.
            self.sweep().await?;
            match self.scrub_one(digest, stop).await {
                // One file that cannot even be opened must not keep the others from being read.
                Err(Error::Disk(error)) if !stop.is_cancelled() => {
                    self.upkeep.metrics().failed();
                    tracing::warn!(%digest, %error, "scrub could not look at stored content");
                }
                other => other?,
            }
        }
        self.last_page = due;
        Ok(Duration::ZERO)
    }

    async fn scrub_one(&self, digest: &Digest, stop: &CancellationToken) -> Result<(), Error> {
        let begin = self.pace().spend(SCRUB_FILE_BYTES, Instant::now());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep_until(begin) => {}
        }
        let (pace, metrics) = (Arc::clone(&self.pace), self.upkeep.metrics().clone());
        let (runtime, stopped) = (Handle::current(), stop.clone());
        let wait = move |bytes: usize| {
            metrics.read(bytes);
            let next =
                pace.lock().unwrap_or_else(PoisonError::into_inner).spend(bytes, Instant::now());
            // On the thread that reads, which may block; the order to stop ends the wait.
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = sleep_until(next) => {}
                }
            });
        };
        let verdict = self.upkeep.content().verify_paced(digest, wait, stop).await?;
        self.upkeep.metrics().looked(verdict);
        match verdict {
            Verdict::Sound | Verdict::Gone => {}
            Verdict::Damaged => tracing::warn!(
                %digest,
                "scrub found damaged content; it is in quarantine now and the next pull fetches it; damage that comes again means a failing disk"
            ),
            Verdict::Missing => {
                tracing::warn!(%digest, "scrub found that a file is gone; the next pull fetches it");
            }
        }
        Ok(())
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Since when nobody has looked at the content; one that was never looked at is as old as can be.
fn age(object: &StoredObject, now: Timestamp) -> Duration {
    object.verified.map_or(Duration::MAX, |verified| now.since(verified))
}

/// Says now and then how far an adoption is.
struct Progress(Mutex<(u64, Instant)>);

/// How often it says so.
const PROGRESS_LOG_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    fn new() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }

    fn note(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        if state.1.elapsed() >= PROGRESS_LOG_EVERY {
            state.1 = Instant::now();
            tracing::info!(files = state.0, "taking in files without a row");
        }
    }
}
