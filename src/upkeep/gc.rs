//! `gc` and `purge` as jobs: the same work as in the background, told object by object.

use std::collections::BTreeSet;

use super::collect::Collector;
use super::events::{Event, JobKind};
use super::evict::{Decision, Round, figures};
use super::settings::STEP_REST;
use super::work::{Failure, Work};
use crate::content::Error;
use crate::story::Stopped;
use tokio::time::sleep;

/// Objects that a rehearsal of eviction looks at, per limit.
const REHEARSED_MAX: u32 = 1000;

impl Work<'_> {
    /// Collects what was deleted, then makes room as far as limits want it. Without taking anything, if it is a rehearsal.
    pub(super) async fn collect_and_evict(&mut self) -> Result<(), Failure> {
        let (upkeep, settings) = (self.upkeep, self.upkeep.settings());
        let dry = self.kind == JobKind::GcDryRun;
        let mut collector = Collector::new(upkeep, &settings, dry);
        while let Some(decisions) = self.unless_stopped(collector.step()).await? {
            self.tell_decisions(decisions).await?;
            sleep(STEP_REST).await;
        }
        let found = self.unless_stopped(figures(upkeep)).await?;
        let aims = found.aims(&settings, (false, &BTreeSet::new()), 0, upkeep.clock().now());
        for aim in aims {
            let mut round = Round::new(upkeep, &settings, aim);
            if dry || upkeep.asks_nobody() {
                let decisions = self.unless_stopped(round.rehearse(REHEARSED_MAX)).await?;
                self.tell_decisions(decisions).await?;
                continue;
            }
            loop {
                let step = self.unless_stopped(round.step()).await?;
                self.tell_decisions(step.decisions).await?;
                if step.over {
                    break;
                }
                sleep(STEP_REST).await;
            }
        }
        Ok(())
    }

    /// Takes out what is known of an upstream or a repository, slice by slice.
    pub(super) async fn purge(&mut self) -> Result<(), Failure> {
        let Some(within) = self.within.clone() else {
            let error = std::io::Error::other("a purge wants an upstream or a repository");
            return Err(Failure::Store(error.into()));
        };
        let rows = self.upkeep.content().metadata();
        loop {
            let purging = async { rows.purge(&within).await.map_err(Error::from) };
            let slice = self.unless_stopped(purging).await?;
            self.report.repositories += slice.repositories;
            self.report.tags += slice.tags;
            self.report.revisions += slice.revisions;
            let (repositories, tags) = (self.report.repositories, self.report.tags);
            let revisions = self.report.revisions;
            self.story.mention(Event::Purged { repositories, tags, revisions });
            if !slice.more {
                return Ok(());
            }
            sleep(STEP_REST).await;
        }
    }

    async fn tell_decisions(&mut self, decisions: Vec<Decision>) -> Result<(), Stopped> {
        for Decision { fate, digest, size, since, reason } in decisions {
            self.report.decided(fate, size);
            let digest = digest.to_string();
            self.story.tell(Event::Decided { fate, digest, size, since, reason }).await?;
        }
        Ok(())
    }

    /// The order to stop ends the wait, not what `content` has begun.
    async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            () = self.story.stopped().cancelled() => Err(Failure::Stopped),
            done = work => Ok(done?),
        }
    }
}
