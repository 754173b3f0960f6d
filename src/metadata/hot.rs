//! The bounded cache of hot records.
//!
//! What must hold: a record in here is never older than the last write that was answered, and whoever has seen a new record never
//! sees the old one again. The writer holds the keys that it changed from before its COMMIT until it puts the new records in, before
//! its answers; meanwhile they are read from the database. A reader that loads a record notes the key's generation before it reads,
//! and puts the record in only if the generation has not moved since and nobody holds the key. All of it under the same small lock.
//!
//! What others make of several records they keep with a [`Stamp`], taken before the records are looked up. It is current until one of
//! them changes, and asking costs a few loads: a generation moves only after what it stands for has changed here, and before the writer
//! goes on to its COMMIT or its answer. So whatever carries a current stamp is no older than the last write that was answered.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;

use super::model::{ObjectRecord, Proof, RepositoryKey, TagRecord};
use crate::clock::Timestamp;
use crate::oci::{Digest, MediaType, Tag};

/// Generations are kept per shard of keys, so that their number is fixed; a write to a neighbour only costs a loader its place.
const SHARDS: usize = 256;
/// Records that one stamp covers: a tag, what it points at, the membership of that, and who may read the repository.
const STAMPED_MAX: usize = 4;

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
    /// Moved under the shard's lock, as the last thing that a change does.
    generations: [AtomicU64; SHARDS],
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    /// Keys whose commit is on its way.
    held: HashSet<Key>,
}

/// A shard under its lock.
struct Locked<'a> {
    shard: MutexGuard<'a, Shard>,
    generation: &'a AtomicU64,
}

impl Locked<'_> {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn advance(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// The state of a key before it is read from the database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generation(u64);

/// The state of several records when something was made of them; see [`Metadata::is_current`](super::Metadata::is_current).
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The shard and its generation; places that are not needed repeat the first.
    seen: [(u8, u64); STAMPED_MAX],
}

impl Hot {
    pub(super) fn new(records_max: u64) -> Self {
        Self {
            cache: Cache::new(records_max),
            shards: std::array::from_fn(|_| Mutex::default()),
            generations: std::array::from_fn(|_| AtomicU64::new(0)),
            hasher: RandomState::new(),
        }
    }

    fn shard_of(&self, key: &Key) -> u8 {
        let [shard, ..] = self.hasher.hash_one(key).to_le_bytes();
        shard
    }

    fn lock(&self, key: &Key) -> Locked<'_> {
        let shard = usize::from(self.shard_of(key));
        Locked {
            shard: self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner),
            generation: &self.generations[shard],
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Record> {
        self.cache.get(key)
    }

    /// To be called before what `keys` stand for is looked up in here. At least one and at most [`STAMPED_MAX`] of them count.
    pub(super) fn stamp(&self, keys: &[&Key]) -> Stamp {
        let mut seen = [(0, 0); STAMPED_MAX];
        for (place, key) in seen.iter_mut().zip(keys.iter().cycle()) {
            let shard = self.shard_of(key);
            *place = (shard, self.generations[usize::from(shard)].load(Ordering::Acquire));
        }
        Stamp { seen }
    }

    /// Has none of the records changed since?
    pub(super) fn is_current(&self, stamp: &Stamp) -> bool {
        stamp.seen.iter().all(|(shard, generation)| {
            self.generations[usize::from(*shard)].load(Ordering::Acquire) == *generation
        })
    }

    /// To be called before reading `key` from the database.
    pub(super) fn begin_load(&self, key: &Key) -> Generation {
        Generation(self.lock(key).generation())
    }

    /// Puts in what was read unless it may be out of date; `record` is evaluated under the lock.
    pub(super) fn finish_load(
        &self,
        key: Key,
        generation: Generation,
        record: impl FnOnce() -> Record,
    ) -> bool {
        let locked = self.lock(&key);
        let valid = locked.generation() == generation.0 && !locked.shard.held.contains(&key);
        if valid {
            self.cache.insert(key, record());
        }
        valid
    }

    /// Takes a record out before its COMMIT, and keeps it out until [`Hot::settle`].
    pub(super) fn hold(&self, key: &Key) {
        let mut locked = self.lock(key);
        self.cache.invalidate(key);
        locked.shard.held.insert(key.clone());
        locked.advance();
    }

    /// Ends a hold, after COMMIT with the new record; `record` is evaluated under the lock.
    pub(super) fn settle(&self, key: Key, record: impl FnOnce() -> Option<Record>) {
        let mut locked = self.lock(&key);
        locked.shard.held.remove(&key);
        if let Some(record) = record() {
            self.cache.insert(key, record);
        }
        locked.advance();
    }

    /// Changes a record if it is in here.
    pub(super) fn update(&self, key: Key, change: impl FnOnce(Record) -> Record) {
        let locked = self.lock(&key);
        if let Some(record) = self.cache.get(&key) {
            self.cache.insert(key, change(record));
        }
        locked.advance();
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
