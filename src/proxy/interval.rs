//! Which bytes of a download are here: a set of half-open intervals.
//!
//! What must hold: intervals never touch or overlap, so the set is as small as it can be. Today's fills are sequential and keep one
//! interval; ranges fetched ahead will add others.

use std::collections::BTreeMap;

/// A set of bytes, kept as disjoint intervals `start -> end` (end excluded).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct IntervalSet(BTreeMap<u64, u64>);

impl IntervalSet {
    /// Adds the bytes `start..end`.
    pub(super) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        // Everything that touches the new interval melts into it.
        while let Some((&left, &right)) = self.0.range(..=end).next_back() {
            if right < start {
                break;
            }
            start = start.min(left);
            end = end.max(right);
            self.0.remove(&left);
        }
        self.0.insert(start, end);
    }

    /// The end of the run of bytes that begins at `position`; `position` itself if that byte is not here.
    pub(super) fn covered_to(&self, position: u64) -> u64 {
        match self.0.range(..=position).next_back() {
            Some((_, &end)) if end > position => end,
            _ => position,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn touching_intervals_melt() {
        let mut set = IntervalSet::default();
        set.insert(10, 20);
        set.insert(30, 40);
        assert_eq!((set.covered_to(9), set.covered_to(10), set.covered_to(20)), (9, 20, 20));
        set.insert(20, 30);
        assert_eq!(set.0.len(), 1);
        assert_eq!(set.covered_to(15), 40);
        set.insert(5, 5);
        assert_eq!(set.0.len(), 1);
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(parts in prop::collection::vec((0u64..60, 0u64..20), 0..12)) {
            let mut set = IntervalSet::default();
            let mut model = [false; 100];
            for (start, length) in parts {
                set.insert(start, start + length);
                for byte in start..start + length {
                    model[usize::try_from(byte).unwrap()] = true;
                }
            }
            for position in 0..100u64 {
                let from = usize::try_from(position).unwrap();
                let run = model[from..].iter().take_while(|here| **here).count();
                prop_assert_eq!(set.covered_to(position), position + run as u64);
            }
        }
    }
}
