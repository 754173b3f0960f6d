//! Content that could not be read to its end a moment ago.
//!
//! A file that can be opened looks well until a bad place of the disk is read. Whoever met one comes back for the rest, and must find
//! the content "not present", or it would read the same bad place again. Only for a moment: a disk that failed may come back.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::oci::Digest;

/// Content counts as not present for this long; enough for the download that replaces it to begin.
pub(super) const UNREADABLE_FOR: Duration = Duration::from_secs(10);
/// More are not remembered.
const UNREADABLE_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Unreadable(Mutex<HashMap<Digest, Instant>>);

impl Unreadable {
    fn entries(&self) -> MutexGuard<'_, HashMap<Digest, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its bytes could not be read.
    pub(super) fn note(&self, digest: &Digest) {
        let now = Instant::now();
        let mut entries = self.entries();
        entries.retain(|_digest, until| now < *until);
        if entries.len() < UNREADABLE_MAX {
            entries.insert(*digest, now + UNREADABLE_FOR);
        }
    }

    /// Could its bytes not be read a moment ago?
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.entries().get(digest).is_some_and(|until| Instant::now() < *until)
    }

    /// It has new bytes.
    pub(super) fn forget(&self, digest: &Digest) {
        self.entries().remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_remembered_for_a_moment() {
        let unreadable = Unreadable::default();
        let (one, two) = (Digest::sha256_of(b"1"), Digest::sha256_of(b"2"));
        unreadable.note(&one);
        assert!(unreadable.holds(&one) && !unreadable.holds(&two));
        tokio::time::advance(UNREADABLE_FOR).await;
        assert!(!unreadable.holds(&one));
        unreadable.note(&two);
        assert_eq!(unreadable.entries().len(), 1, "what is over goes");
        unreadable.forget(&two);
        assert!(!unreadable.holds(&two));
    }
}
