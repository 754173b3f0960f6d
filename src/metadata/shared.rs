//! What the writer thread and the callers share: hot records, pending entries, figures.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::ended::Ended;
use super::hot::{Generation, Hot, Key, Record};
use super::metrics::Metrics;
use super::model::{RepositoryKey, TagRecord};
use super::pending::Pending;
use super::recovery;
use super::rules::{Current, Rules};
use super::testing::Faults;
use crate::clock::Timestamp;
use crate::oci::Tag;

/// Damage in the database is said in the log no more often than this.
const DAMAGE_SAID_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hot: Hot,
    pub(super) pending: Pending,
    pub(super) ended: Ended,
    pub(super) metrics: Metrics,
    pub(super) faults: Faults,
    pub(super) rules: Current,
    path: PathBuf,
    /// When damage was last said in the log.
    damage_said: Mutex<Option<Instant>>,
}

impl Shared {
    pub(super) fn new(path: PathBuf, hot_records_max: u64, metrics: Metrics, rules: Rules) -> Self {
        Self {
            path,
            hot: Hot::new(hot_records_max),
            pending: Pending::default(),
            ended: Ended::default(),
            metrics,
            faults: Faults::default(),
            rules: Current::new(rules),
            damage_said: Mutex::default(),
        }
    }

    /// If the failure shows damage in the database, says so and leaves a mark for the next start, once in a while: the reads of a
    /// whole pull may meet it.
    pub(super) fn note_damage(&self, error: &rusqlite::Error) {
        let damaged = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
        if !error.sqlite_error_code().is_some_and(|code| damaged.contains(&code)) {
            return;
        }
        let now = Instant::now();
        let mut said = self.damage_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| now.duration_since(said) >= DAMAGE_SAID_EVERY) {
            *said = Some(now);
            recovery::suspect(&self.path);
            tracing::error!(
                %error,
                "the metadata store is damaged; pulls go on past it. Restart roadstead: what cannot be used is moved aside and begun anew"
            );
        }
    }

    /// Puts a hot record in after its COMMIT, which ends the hold of its key.
    pub(super) fn settle(&self, key: Key, record: Option<Record>) {
        let known = key.clone();
        self.hot.settle(key, || record.map(|record| self.with_pending(&known, record)));
    }

    /// Shows a confirmation in the hot record, if there is one.
    pub(super) fn confirm_hot(&self, repository: &RepositoryKey, tag: &Tag, at: Timestamp) {
        let key = Key::Tag(repository.clone(), tag.clone());
        self.hot.update(key, |record| match record {
            Record::Tag(tag) => Record::Tag(confirmed(tag, Some(at))),
            other => other,
        });
    }

    pub(super) fn finish_load(&self, key: Key, generation: Generation, record: Record) {
        let known = key.clone();
        self.hot.finish_load(key, generation, || self.with_pending(&known, record));
    }

    /// A tag is as confirmed as the entries that are not written yet say.
    fn with_pending(&self, key: &Key, record: Record) -> Record {
        match (key, record) {
            (Key::Tag(repository, name), Record::Tag(tag)) => {
                Record::Tag(confirmed(tag, self.pending.confirmed(repository, name)))
            }
            (_, record) => record,
        }
    }
}

/// The record with a later confirmation, if `at` is one.
pub(super) fn confirmed(mut tag: TagRecord, at: Option<Timestamp>) -> TagRecord {
    tag.confirmed = at.map_or(tag.confirmed, |at| at.max(tag.confirmed));
    tag
}
