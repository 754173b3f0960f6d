//! One lock per digest, and one stage per digest.
//!
//! Whoever publishes, quarantines or changes the presence of a digest holds its lock meanwhile. Entries exist only while somebody
//! holds or waits, so the table is as large as the work in progress.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::oci::Digest;

type DigestMutex = tokio::sync::Mutex<()>;

/// The locks that somebody holds or waits for.
#[derive(Clone, Debug, Default)]
pub(super) struct Locks(Arc<Mutex<HashMap<Digest, Arc<DigestMutex>>>>);

/// Interest in a lock; the last one to go removes the entry.
#[derive(Debug)]
struct Ticket {
    locks: Locks,
    digest: Digest,
    mutex: Option<Arc<DigestMutex>>,
}

/// The digest is this one's alone until it is dropped.
#[derive(Debug)]
pub(super) struct Locked {
    // Fields drop in this order: the lock is given back before the interest in it.
    _guard: OwnedMutexGuard<()>,
    ticket: Ticket,
}

impl Locks {
    fn entries(&self) -> MutexGuard<'_, HashMap<Digest, Arc<DigestMutex>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the lock of `digest`. A caller that is dropped while it waits leaves nothing behind.
    pub(super) async fn lock(&self, digest: &Digest) -> Locked {
        let mutex = Arc::clone(self.entries().entry(*digest).or_default());
        let ticket =
            Ticket { locks: self.clone(), digest: *digest, mutex: Some(Arc::clone(&mutex)) };
        let guard = mutex.lock_owned().await;
        Locked { _guard: guard, ticket }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }
}

impl Locked {
    pub(super) fn digest(&self) -> &Digest {
        &self.ticket.digest
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut entries = self.locks.entries();
        // Clones are made only under this mutex, so a count of one means that nobody else is interested.
        drop(self.mutex.take());
        if entries.get(&self.digest).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            entries.remove(&self.digest);
        }
    }
}

/// The digests that are being staged.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Arc<Mutex<HashSet<Digest>>>);

/// The right to stage a digest.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    digest: Digest,
}

impl Slots {
    fn entries(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has somebody got it?
    pub(super) fn is_taken(&self, digest: &Digest) -> bool {
        self.entries().contains(digest)
    }

    /// `None` if somebody has it.
    pub(super) fn take(&self, digest: &Digest) -> Option<Slot> {
        self.entries().insert(*digest).then(|| Slot { slots: self.clone(), digest: *digest })
    }
}

impl Slot {
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.entries().remove(&self.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_per_digest_and_no_entry_without_work() {
        let locks = Locks::default();
        let (one, two) = (Digest::sha256_of(b"1"), Digest::sha256_of(b"2"));
        let first = locks.lock(&one).await;
        let other = locks.lock(&two).await;
        assert_eq!(other.digest(), &two);
        let mut second = Box::pin(locks.lock(&one));
        assert!(futures_util::poll!(&mut second).is_pending());
        let mut cancelled = Box::pin(locks.lock(&one));
        assert!(futures_util::poll!(&mut cancelled).is_pending());
        drop(cancelled);
        assert_eq!(locks.len(), 2);
        drop(first);
        let second = second.await;
        drop(other);
        assert_eq!(locks.len(), 1);
        drop(second);
        assert_eq!(locks.len(), 0);
    }

    #[tokio::test]
    async fn a_waiter_that_goes_last_takes_the_entry_with_it() {
        let locks = Locks::default();
        let one = Digest::sha256_of(b"1");
        let first = locks.lock(&one).await;
        let mut waiter = Box::pin(locks.lock(&one));
        assert!(futures_util::poll!(&mut waiter).is_pending());
        drop(first);
        drop(waiter);
        assert_eq!(locks.len(), 0);
    }

    #[test]
    fn a_slot_is_free_again_after_its_drop() {
        let slots = Slots::default();
        let one = Digest::sha256_of(b"1");
        let slot = slots.take(&one);
        assert!(slot.is_some());
        assert!(slots.take(&one).is_none());
        drop(slot);
        assert!(slots.take(&one).is_some());
    }
}
