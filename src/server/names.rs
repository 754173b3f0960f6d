//! A table from upstreams to what is kept for each, read without a lock on the hot path.
//!
//! It only grows, up to a fixed number of names: clients choose the members of a pattern.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::oci::RegistryName;

/// Upstreams that are told apart; all others are one.
pub(super) const NAMES_MAX: usize = 500;
/// Places in the table, at least twice as many, so that looks stay short; a power of two.
const SLOTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Names<V> {
    slots: Box<[OnceLock<Box<Entry<V>>>]>,
    taken: AtomicUsize,
    /// Keyed, so that nobody can choose names that share a place.
    hasher: RandomState,
}

#[derive(Debug)]
struct Entry<V> {
    name: RegistryName,
    value: V,
}

impl<V: Default> Names<V> {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| OnceLock::new()).collect(),
            taken: AtomicUsize::new(0),
            hasher: RandomState::new(),
        }
    }

    /// What is kept for `name`; nothing when it is new and the table is full.
    pub(super) fn get(&self, name: &RegistryName) -> Option<&V> {
        let hash = self.hasher.hash_one(name);
        // The lowest bits are as good as any; what of the number does not fit is not needed.
        let start = usize::try_from(hash & u64::from(u32::MAX)).unwrap_or_default() % SLOTS;
        let (after, before) = (&self.slots[start..], &self.slots[..start]);
        for slot in after.iter().chain(before) {
            let entry = match slot.get() {
                Some(entry) => entry,
                // A name stands in the first place that was free, so it is nowhere else.
                None if !self.take_place() => return None,
                None => {
                    let mut mine = false;
                    let entry = slot.get_or_init(|| {
                        mine = true;
                        Box::new(Entry { name: name.clone(), value: V::default() })
                    });
                    if !mine {
                        self.taken.fetch_sub(1, Ordering::Relaxed);
                    }
                    entry
                }
            };
            if entry.name == *name {
                return Some(&entry.value);
            }
        }
        None
    }

    fn take_place(&self) -> bool {
        let more = |taken| (taken < NAMES_MAX).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn name(number: usize) -> RegistryName {
        format!("r{number}.pkg.dev").parse().unwrap()
    }

    #[test]
    fn names_that_clients_choose_do_not_grow_without_end() {
        let names = Names::<AtomicUsize>::new();
        for number in 0..NAMES_MAX {
            names.get(&name(number)).unwrap().store(number, Ordering::Relaxed);
        }
        assert!(names.get(&name(NAMES_MAX)).is_none());
        for number in 0..NAMES_MAX {
            assert_eq!(names.get(&name(number)).unwrap().load(Ordering::Relaxed), number);
        }
    }

    #[test]
    fn threads_that_meet_a_name_first_find_the_same() {
        // While several threads meet the last name at once, the table may seem full to one of them.
        const NAMES: usize = NAMES_MAX - 4;
        let names = Names::<AtomicUsize>::new();
        let count = |reverse: bool| {
            for number in 0..NAMES {
                let number = if reverse { NAMES - 1 - number } else { number };
                names.get(&name(number)).unwrap().fetch_add(1, Ordering::Relaxed);
            }
        };
        thread::scope(|scope| {
            for reverse in [false, true, false, true] {
                let count = &count;
                scope.spawn(move || count(reverse));
            }
        });
        for number in 0..NAMES {
            assert_eq!(names.get(&name(number)).unwrap().load(Ordering::Relaxed), 4);
        }
        assert_eq!(names.taken.load(Ordering::Relaxed), NAMES);
    }
}
