//! The bounded cache of hot records.
//!
//! What must hold: a record in here is never older than the last write that was answered, and whoever has seen a new record never
//! sees the old one again. The writer holds the keys that it changed from before its COMMIT until it puts the new records in, before
//! its answers; meanwhile they are read from the database. A reader that loads a record notes the key's generation before it reads,
//! and puts the record in only if the generation has not moved since and nobody holds the key. All of it under the same small lock.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;

use super::model::{ObjectRecord, Proof, RepositoryKey, TagRecord};
use crate::clock::Timestamp;
use crate::oci::{Digest, MediaType, Tag};

/// Generations are kept per shard of keys, so that their number is fixed; a write to a neighbour only costs a loader its place.
const SHARDS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Tag(RepositoryKey, Tag),
    Object(Digest),
    Member(RepositoryKey, Digest),
    Visibility(RepositoryKey),
}

/// Only what exists is kept: a client that asks for random names fills nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Tag(TagRecord),
    Object(ObjectRecord),
    Member(Member),
    Visibility(bool, Timestamp),
}

/// Content as a member of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) proof: Proof,
    /// As a manifest of this repository says.
    pub(super) size: Option<u64>,
    /// The media type, if it is a revision of this repository.
    pub(super) revision: Option<MediaType>,
}

pub(super) struct Hot {
    cache: Cache<Key, Record>,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    generation: u64,
    /// Keys whose commit is on its way.
    held: HashSet<Key>,
}

/// The state of a key before it is read from the database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generation(u64);

impl Hot {
    pub(super) fn new(records_max: u64) -> Self {
        Self {
            cache: Cache::new(records_max),
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let shards = u64::try_from(SHARDS).expect("a small constant");
        let shard = usize::try_from(self.hasher.hash_one(key) % shards).expect("below SHARDS");
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Record> {
        self.cache.get(key)
    }

    /// To be called before reading `key` from the database.
    pub(super) fn begin_load(&self, key: &Key) -> Generation {
        Generation(self.shard(key).generation)
    }

    /// Puts in what was read unless it may be out of date; `record` is evaluated under the lock.
    pub(super) fn finish_load(
        &self,
        key: Key,
        generation: Generation,
        record: impl FnOnce() -> Record,
    ) -> bool {
        let shard = self.shard(&key);
        let valid = shard.generation == generation.0 && !shard.held.contains(&key);
        if valid {
            self.cache.insert(key, record());
        }
        valid
    }

    /// Takes a record out before its COMMIT, and keeps it out until [`Hot::settle`].
    pub(super) fn hold(&self, key: &Key) {
        let mut shard = self.shard(key);
        shard.generation += 1;
        self.cache.invalidate(key);
        shard.held.insert(key.clone());
    }

    /// Ends a hold, after COMMIT with the new record; `record` is evaluated under the lock.
    pub(super) fn settle(&self, key: Key, record: impl FnOnce() -> Option<Record>) {
        let mut shard = self.shard(&key);
        shard.generation += 1;
        shard.held.remove(&key);
        if let Some(record) = record() {
            self.cache.insert(key, record);
        }
    }

    /// Changes a record if it is in here.
    pub(super) fn update(&self, key: Key, change: impl FnOnce(Record) -> Record) {
        let mut shard = self.shard(&key);
        shard.generation += 1;
        if let Some(record) = self.cache.get(&key) {
            self.cache.insert(key, change(record));
        }
    }

    #[cfg(test)]
    pub(super) fn forget(&self, key: &Key) {
        self.cache.invalidate(key);
    }
}

impl fmt::Debug for Hot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hot").field("records", &self.cache.entry_count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(size: u64) -> Record {
        Record::Object(ObjectRecord { size: Some(size), present: true, mark: None })
    }

    fn key() -> Key {
        Key::Object(Digest::sha256_of(b"x"))
    }

    #[test]
    fn a_load_that_began_before_a_commit_is_dropped() {
        let hot = Hot::new(100);
        let generation = hot.begin_load(&key());
        hot.hold(&key());
        assert!(!hot.finish_load(key(), generation, || object(1)));
        hot.settle(key(), || Some(object(2)));
        assert!(!hot.finish_load(key(), generation, || object(1)));
        assert_eq!(hot.get(&key()), Some(object(2)));
    }

    #[test]
    fn a_load_that_began_during_a_commit_is_dropped() {
        let hot = Hot::new(100);
        hot.settle(key(), || Some(object(1)));
        hot.hold(&key());
        assert_eq!(hot.get(&key()), None, "the old record is not shown any more");
        let generation = hot.begin_load(&key());
        assert!(!hot.finish_load(key(), generation, || object(1)));
        hot.settle(key(), || None);
        assert!(!hot.finish_load(key(), generation, || object(1)));
        assert_eq!(hot.get(&key()), None);
    }

    #[test]
    fn an_undisturbed_load_stays() {
        let hot = Hot::new(100);
        hot.hold(&key());
        hot.settle(key(), || None);
        let generation = hot.begin_load(&key());
        assert!(hot.finish_load(key(), generation, || object(1)));
        assert_eq!(hot.get(&key()), Some(object(1)));
    }

    #[test]
    fn an_update_changes_what_is_there_and_makes_nothing() {
        let hot = Hot::new(100);
        hot.update(key(), |_| object(3));
        assert_eq!(hot.get(&key()), None);
        hot.settle(key(), || Some(object(1)));
        let generation = hot.begin_load(&key());
        hot.update(key(), |_| object(3));
        assert_eq!(hot.get(&key()), Some(object(3)));
        assert!(!hot.finish_load(key(), generation, || object(1)));
    }
}
