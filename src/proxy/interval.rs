//! Which bytes of a download are here: a set of half-open intervals.
//!
//! What must hold: intervals never touch or overlap, so the set is as small as it can be. It is sparse, because clients read where they
//! like: one interval per place at which a download was begun.

use std::collections::BTreeMap;
use std::ops::Range;

/// How many bytes these are.
pub(super) fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

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

    /// Takes the bytes `start..end` out.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&left, &right)) = self.0.range(..end).next_back() {
            if right <= start {
                break;
            }
            self.0.remove(&left);
            if left < start {
                self.0.insert(left, start);
            }
            if right > end {
                self.0.insert(end, right);
            }
        }
    }

    /// The start of the first interval that begins at `position` or behind it.
    pub(super) fn next_start(&self, position: u64) -> Option<u64> {
        self.0.range(position..).next().map(|(&start, _)| start)
    }

    /// The first bytes at `from` or behind it that are not here, up to the next ones that are, within `0..size`.
    pub(super) fn first_gap(&self, from: u64, size: u64) -> Option<Range<u64>> {
        let start = self.covered_to(from);
        let end = self.next_start(start).map_or(size, |next| next.min(size));
        (start < end).then_some(start..end)
    }

    /// Bytes in the set.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// The intervals, in order.
    pub(super) fn to_vec(&self) -> Vec<Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end).collect()
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

    /// What a member of the set is: bytes put in, or taken out.
    fn changes() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
        prop::collection::vec((prop::bool::weighted(0.7), 0u64..60, 0u64..20), 0..12)
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(changes in changes(), size in 0u64..100) {
            let mut set = IntervalSet::default();
            let mut model = [false; 100];
            for (add, start, length) in changes {
                if add { set.insert(start, start + length) } else { set.remove(start, start + length) }
                for byte in start..start + length {
                    model[usize::try_from(byte).unwrap()] = add;
                }
            }
            let at = |position: u64| model[usize::try_from(position).unwrap()];
            for position in 0..100u64 {
                let run = (position..100).take_while(|byte| at(*byte)).count() as u64;
                prop_assert_eq!(set.covered_to(position), position + run);
                let start = |byte: &u64| at(*byte) && (*byte == 0 || !at(*byte - 1));
                prop_assert_eq!(set.next_start(position), (position..100).find(start));
            }
            prop_assert_eq!(set.total(), model.iter().filter(|here| **here).count() as u64);
            let listed: Vec<u64> = set.to_vec().into_iter().flatten().collect();
            prop_assert_eq!(listed, (0..100).filter(|byte| at(*byte)).collect::<Vec<_>>());
            let mut missing = Vec::new();
            while let Some(gap) = set.first_gap(0, size) {
                set.insert(gap.start, gap.end);
                missing.extend(gap);
            }
            prop_assert_eq!(missing, (0..size).filter(|byte| !at(*byte)).collect::<Vec<_>>());
        }
    }
}
