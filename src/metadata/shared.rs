//! What the writer thread and the callers share: hot records, pending entries, figures.

use super::hot::{Generation, Hot, Key, Record};
use super::metrics::Metrics;
use super::model::{RepositoryKey, TagRecord};
use super::pending::Pending;
use super::testing::Faults;
use crate::clock::Timestamp;
use crate::oci::Tag;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hot: Hot,
    pub(super) pending: Pending,
    pub(super) metrics: Metrics,
    pub(super) faults: Faults,
}

impl Shared {
    pub(super) fn new(hot_records_max: u64, metrics: Metrics) -> Self {
        Self {
            hot: Hot::new(hot_records_max),
            pending: Pending::default(),
            metrics,
            faults: Faults::default(),
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
