//! Small facts that are written in batches: confirmations of tags and access times.
//!
//! Every revalidation and every hit would be a write otherwise. A confirmation counts at once, because readers look in here too; a
//! crash costs one HEAD request, or a little precision of the access time. Both maps are bounded: what does not fit is dropped.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::model::RepositoryKey;
use crate::clock::Timestamp;
use crate::oci::{Digest, Tag};

/// As many entries ask for a flush before its time.
pub(super) const FLUSH_ENTRIES: usize = 10_000;
/// More entries than this are never kept, however long the disk refuses them.
const ENTRIES_MAX: usize = 50_000;

#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    confirmed: HashMap<(RepositoryKey, Tag), Timestamp>,
    touched: HashMap<Digest, Timestamp>,
}

/// What the writer should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// The first entry since the last flush.
    First,
    /// There are enough for a flush.
    Enough,
    Other,
}

/// Entries as they were when a flush began.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) confirmed: Vec<(RepositoryKey, Tag, Timestamp)>,
    pub(super) touched: Vec<(Digest, Timestamp)>,
}

impl Entries {
    fn len(&self) -> usize {
        self.confirmed.len() + self.touched.len()
    }

    fn added(&self, before: usize) -> Added {
        match self.len() {
            now if now == before => Added::Other,
            1 => Added::First,
            now if now % FLUSH_ENTRIES == 0 => Added::Enough,
            _ => Added::Other,
        }
    }
}

impl Pending {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn confirm(&self, repository: &RepositoryKey, tag: &Tag, at: Timestamp) -> Added {
        let mut entries = self.entries();
        let before = entries.len();
        let key = (repository.clone(), tag.clone());
        if let Some(known) = entries.confirmed.get_mut(&key) {
            *known = at.max(*known);
        } else if before < ENTRIES_MAX {
            entries.confirmed.insert(key, at);
        }
        entries.added(before)
    }

    /// The confirmation of a tag that is not written yet.
    pub(super) fn confirmed(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Timestamp> {
        let entries = self.entries();
        if entries.confirmed.is_empty() {
            return None;
        }
        let key = (repository.clone(), tag.clone());
        entries.confirmed.get(&key).copied()
    }

    pub(super) fn touch(&self, digest: &Digest, at: Timestamp) -> Added {
        let mut entries = self.entries();
        let before = entries.len();
        if let Some(known) = entries.touched.get_mut(digest) {
            *known = at.max(*known);
        } else if before < ENTRIES_MAX {
            entries.touched.insert(*digest, at);
        }
        entries.added(before)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries().len() == 0
    }

    /// A copy of all entries; they count until [`Pending::written`] takes them out.
    pub(super) fn batch(&self) -> Batch {
        let entries = self.entries();
        Batch {
            confirmed: entries
                .confirmed
                .iter()
                .map(|((repository, tag), at)| (repository.clone(), tag.clone(), *at))
                .collect(),
            touched: entries.touched.iter().map(|(key, at)| (*key, *at)).collect(),
        }
    }

    /// Takes out what a batch has written, except entries that have changed since.
    pub(super) fn written(&self, batch: Batch) {
        let mut entries = self.entries();
        for (repository, tag, at) in batch.confirmed {
            let key = (repository, tag);
            if entries.confirmed.get(&key) == Some(&at) {
                entries.confirmed.remove(&key);
            }
        }
        for (digest, at) in batch.touched {
            if entries.touched.get(&digest) == Some(&at) {
                entries.touched.remove(&digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> RepositoryKey {
        RepositoryKey {
            upstream: "docker.io".parse().unwrap(),
            name: "library/nginx".parse().unwrap(),
        }
    }

    const fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_latest_confirmation_counts_until_it_is_written() {
        let (pending, repository) = (Pending::default(), repository());
        let tag: Tag = "latest".parse().unwrap();
        assert_eq!(pending.confirm(&repository, &tag, at(5)), Added::First);
        assert_eq!(pending.confirm(&repository, &tag, at(3)), Added::Other);
        assert_eq!(pending.confirmed(&repository, &tag), Some(at(5)));
        let batch = pending.batch();
        pending.confirm(&repository, &tag, at(7));
        pending.written(batch);
        assert_eq!(pending.confirmed(&repository, &tag), Some(at(7)));
        let batch = pending.batch();
        pending.written(batch);
        assert!(pending.is_empty());
    }

    #[test]
    fn entries_are_bounded_and_ask_for_a_flush() {
        let pending = Pending::default();
        let mut asked = 0;
        for number in 0..=ENTRIES_MAX {
            let digest = Digest::sha256_of(&number.to_be_bytes());
            asked += usize::from(pending.touch(&digest, at(1)) == Added::Enough);
        }
        assert_eq!(asked, ENTRIES_MAX / FLUSH_ENTRIES);
        assert_eq!(pending.batch().touched.len(), ENTRIES_MAX);
    }
}
