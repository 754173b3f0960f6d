//! Small facts that are written in batches: confirmations of tags, access times, and what was asked for in vain.
//!
//! Every revalidation and every hit would be a write otherwise. A confirmation counts at once, because readers look in here too; a
//! crash costs one HEAD request, or a little precision of the access time.
//!
//! What must hold: a hit on content that was touched a moment ago takes no lock and allocates nothing; everybody who does take the
//! lock holds it for a bounded time, however many entries there are; all of it is bounded, and what does not fit is dropped.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::model::RepositoryKey;
use super::recent::Recent;
use super::sets::WantedWhat;
use super::wanted_rows::Miss;
use crate::clock::Timestamp;
use crate::oci::{Digest, Tag};

/// As many entries ask for a flush before its time.
pub(super) const FLUSH_ENTRIES: usize = 10_000;
/// More entries than this are never kept, however long the disk refuses them.
const ENTRIES_MAX: usize = 50_000;
/// The same for what was asked for in vain: whoever asks for one name after the other costs nobody a confirmation.
const MISSES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: Mutex<Entries>,
    recent: Recent,
}

#[derive(Debug, Default)]
struct Entries {
    /// By repository and tag, so that a look needs no key of its own.
    confirmed: HashMap<RepositoryKey, HashMap<Tag, Timestamp>>,
    confirmations: usize,
    touched: HashMap<Digest, Timestamp>,
    missed: HashMap<(RepositoryKey, WantedWhat), Miss>,
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

/// Some of the entries, as they were when they were asked for.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) confirmed: Vec<(RepositoryKey, Tag, Timestamp)>,
    pub(super) touched: Vec<(Digest, Timestamp)>,
    pub(super) missed: Vec<(RepositoryKey, WantedWhat, Miss)>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.confirmed.is_empty() && self.touched.is_empty() && self.missed.is_empty()
    }
}

impl Entries {
    fn len(&self) -> usize {
        self.confirmations + self.touched.len() + self.missed.len()
    }

    fn added(&self, before: usize) -> Added {
        match self.len() {
            now if now == before => Added::Other,
            1 => Added::First,
            now if now % FLUSH_ENTRIES == 0 => Added::Enough,
            _ => Added::Other,
        }
    }

    fn confirmed(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Timestamp> {
        self.confirmed.get(repository)?.get(tag).copied()
    }

    fn confirmed_mut(&mut self, repository: &RepositoryKey, tag: &Tag) -> Option<&mut Timestamp> {
        self.confirmed.get_mut(repository)?.get_mut(tag)
    }
}

impl Pending {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn confirm(&self, repository: &RepositoryKey, tag: &Tag, at: Timestamp) -> Added {
        let mut entries = self.entries();
        let before = entries.len();
        if let Some(known) = entries.confirmed_mut(repository, tag) {
            *known = at.max(*known);
        } else if before < ENTRIES_MAX {
            let tags = entries.confirmed.entry(repository.clone()).or_default();
            tags.insert(tag.clone(), at);
            entries.confirmations += 1;
        }
        entries.added(before)
    }

    /// The confirmation of a tag that is not written yet.
    pub(super) fn confirmed(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Timestamp> {
        self.entries().confirmed(repository, tag)
    }

    pub(super) fn touch(&self, digest: &Digest, at: Timestamp) -> Added {
        if self.recent.holds(digest, at) {
            return Added::Other;
        }
        let mut entries = self.entries();
        let before = entries.len();
        if let Some(known) = entries.touched.get_mut(digest) {
            *known = at.max(*known);
        } else if before < ENTRIES_MAX {
            entries.touched.insert(*digest, at);
        } else {
            return Added::Other;
        }
        self.recent.note(digest, at);
        entries.added(before)
    }

    /// Something was asked for in vain.
    pub(super) fn miss(
        &self,
        repository: &RepositoryKey,
        what: WantedWhat,
        unreachable: bool,
        at: Timestamp,
    ) -> Added {
        let mut entries = self.entries();
        let before = entries.len();
        let full = entries.missed.len() >= MISSES_MAX;
        match entries.missed.entry((repository.clone(), what)) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.last = at.max(known.last);
                known.times += 1;
                known.unreachable = unreachable;
            }
            Entry::Vacant(free) if !full => {
                free.insert(Miss { first: at, last: at, times: 1, unreachable });
            }
            Entry::Vacant(_) => {}
        }
        entries.added(before)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries().len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }

    /// A copy of at most `limit` entries; they count until [`Pending::written`] takes them out. Each kind has a share, because there may
    /// always be new ones of the others.
    pub(super) fn batch(&self, limit: usize) -> Batch {
        let entries = self.entries();
        let missed = entries.missed.iter().take((limit / 4).max(1));
        let missed: Vec<_> = missed
            .map(|((repository, what), miss)| (repository.clone(), what.clone(), *miss))
            .collect();
        let limit = limit.saturating_sub(missed.len());
        let share = entries.touched.len().min(limit / 2);
        let confirmed: Vec<_> = entries
            .confirmed
            .iter()
            .flat_map(|(repository, tags)| tags.iter().map(move |(tag, at)| (repository, tag, at)))
            .take(limit - share)
            .map(|(repository, tag, at)| (repository.clone(), tag.clone(), *at))
            .collect();
        let room = limit - confirmed.len();
        let touched = entries.touched.iter().take(room).map(|(key, at)| (*key, *at)).collect();
        Batch { confirmed, touched, missed }
    }

    /// Takes out what a batch has written, except entries that have changed since.
    pub(super) fn written(&self, batch: &Batch) {
        let mut entries = self.entries();
        for (repository, tag, at) in &batch.confirmed {
            if entries.confirmed(repository, tag) != Some(*at) {
                continue;
            }
            if let Some(tags) = entries.confirmed.get_mut(repository) {
                tags.remove(tag);
                if tags.is_empty() {
                    entries.confirmed.remove(repository);
                }
                entries.confirmations -= 1;
            }
        }
        for (digest, at) in &batch.touched {
            if entries.touched.get(digest) == Some(at) {
                entries.touched.remove(digest);
            }
        }
        for (repository, what, written) in &batch.missed {
            let key = (repository.clone(), what.clone());
            if let Entry::Occupied(mut known) = entries.missed.entry(key) {
                match known.get().times.saturating_sub(written.times) {
                    0 => drop(known.remove()),
                    more => known.get_mut().times = more,
                }
            }
        }
        if entries.len() == 0 {
            // The room of a rush is given back.
            *entries = Entries::default();
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
        let batch = pending.batch(10);
        pending.confirm(&repository, &tag, at(7));
        pending.written(&batch);
        assert_eq!(pending.confirmed(&repository, &tag), Some(at(7)));
        pending.written(&pending.batch(10));
        assert!(pending.is_empty());
        assert_eq!(pending.confirmed(&repository, &tag), None);
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
        assert_eq!(pending.batch(usize::MAX).touched.len(), ENTRIES_MAX);
        // What was dropped is not taken for known.
        let dropped = Digest::sha256_of(&ENTRIES_MAX.to_be_bytes());
        pending.written(&pending.batch(usize::MAX));
        assert_eq!(pending.touch(&dropped, at(1)), Added::First);
    }

    #[test]
    fn a_batch_is_as_small_as_wanted_and_several_are_all_of_it() {
        let (pending, repository) = (Pending::default(), repository());
        for number in 0..250_u32 {
            let tag: Tag = format!("v{number}").parse().unwrap();
            pending.confirm(&repository, &tag, at(1));
            pending.touch(&Digest::sha256_of(&number.to_be_bytes()), at(1));
        }
        let (mut confirmed, mut touched) = (0, 0);
        for _slice in 0..5 {
            let batch = pending.batch(100);
            assert_eq!(batch.confirmed.len(), 50);
            assert_eq!(batch.confirmed.len() + batch.touched.len(), 100);
            confirmed += batch.confirmed.len();
            touched += batch.touched.len();
            pending.written(&batch);
        }
        assert_eq!((confirmed, touched), (250, 250));
        assert!(pending.is_empty() && pending.batch(1).is_empty());
    }

    #[test]
    fn misses_are_added_up_and_have_a_bound_of_their_own() {
        let (pending, repository) = (Pending::default(), repository());
        let tag = |number: usize| WantedWhat::Tag(format!("v{number}").parse().unwrap());
        for number in 0..=MISSES_MAX {
            pending.miss(&repository, tag(number), false, at(1));
        }
        assert_eq!(pending.len(), MISSES_MAX);
        let latest: Tag = "latest".parse().unwrap();
        assert_eq!(pending.confirm(&repository, &latest, at(1)), Added::Other);
        assert_eq!(pending.confirmed(&repository, &latest), Some(at(1)), "it has room");
        let batch = pending.batch(4 * MISSES_MAX);
        assert_eq!((batch.missed.len(), batch.confirmed.len()), (MISSES_MAX, 1));
        // One comes again while they are written.
        pending.miss(&repository, tag(5), true, at(2));
        pending.written(&batch);
        let left = pending.batch(8).missed;
        let miss = Miss { first: at(1), last: at(2), times: 1, unreachable: true };
        assert_eq!(left, [(repository, tag(5), miss)]);
    }

    #[test]
    fn what_was_touched_a_moment_ago_is_no_entry_again() {
        let (pending, digest) = (Pending::default(), Digest::sha256_of(b"x"));
        assert_eq!(pending.touch(&digest, at(0)), Added::First);
        pending.written(&pending.batch(1));
        assert_eq!(pending.touch(&digest, at(59_000)), Added::Other);
        assert!(pending.is_empty());
        assert_eq!(pending.touch(&digest, at(60_000)), Added::First);
    }
}
