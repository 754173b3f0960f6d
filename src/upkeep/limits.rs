//! Which limits are exceeded, and how much has to go: arithmetic over figures, without a store.
//!
//! What must hold: what is above its limit is brought down to [`LOW_PERCENT`] of it, and what is below is left alone. This
//! deliberately does not choose what goes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::settings::{LOW_PERCENT, OPEN_PERCENT, Settings};
use crate::clock::Timestamp;
use crate::content::{Refused, Room};
use crate::metadata::Usage;
use crate::oci::RegistryName;

/// The names of the limits, in the log and the metrics.
pub(super) const MIN_FREE: &str = "min_free";
pub(super) const MAX_SIZE: &str = "max_size";
pub(super) const UPSTREAM_MAX_SIZE: &str = "upstream_max_size";
pub(super) const MAX_UNUSED: &str = "max_unused";

/// Something was refused, nobody knows for want of how much, although `min_free` was met: this much more is wanted at least. Doubled while that is not enough.
const FREE_EXTRA_MIN: u64 = 16 * 1024 * 1024;
/// What was refused gets this much at most, which is more than a layer has: whoever claims to have more must not empty the store.
const FREE_EXTRA_MAX: u64 = 32 * 1024 * 1024 * 1024;

/// One thing that eviction is to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    /// What came through this upstream; `None`: everything.
    pub(super) from: Option<RegistryName>,
    pub(super) goal: Goal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// So much of the file system is free.
    Free { bytes: u64 },
    /// So much is stored at most.
    Stored { bytes: u64 },
    /// Nothing is left that was last used before.
    Unused { before: Timestamp },
}

/// What is stored and free.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) room: Room,
    pub(super) by_upstream: Vec<(Option<RegistryName>, Usage)>,
}

impl Goal {
    /// The limit that wants it.
    pub(super) fn limit(self, from: Option<&RegistryName>) -> &'static str {
        match (self, from) {
            (Self::Free { .. }, _) => MIN_FREE,
            (Self::Unused { .. }, _) => MAX_UNUSED,
            (Self::Stored { .. }, Some(_)) => UPSTREAM_MAX_SIZE,
            (Self::Stored { .. }, None) => MAX_SIZE,
        }
    }
}

impl Figures {
    /// Bytes that came through an upstream, or all.
    pub(super) fn stored_from(&self, from: Option<&RegistryName>) -> u64 {
        let Some(from) = from else {
            return self.by_upstream.iter().map(|(_, usage)| usage.bytes).sum();
        };
        let own = self.by_upstream.iter().find(|(name, _)| name.as_ref() == Some(from));
        own.map_or(0, |(_, usage)| usage.bytes)
    }

    /// Bytes that have to go for a goal; `None` if that cannot be told in bytes.
    pub(super) fn missing(&self, aim: &Aim) -> Option<u64> {
        match aim.goal {
            // A file system that does not answer is not helped by eviction.
            Goal::Free { .. } if self.room == Room::default() => Some(0),
            Goal::Free { bytes } => Some(bytes.saturating_sub(self.room.free)),
            Goal::Stored { bytes } => {
                Some(self.stored_from(aim.from.as_ref()).saturating_sub(bytes))
            }
            Goal::Unused { .. } => None,
        }
    }

    /// What is to be reached now: ages first, then single upstreams, then the whole, so that the later ones have less to do. What is closed
    /// (the whole store, single upstreams) goes on until it opens.
    pub(super) fn aims(
        &self,
        settings: &Settings,
        (closed_all, closed): (bool, &BTreeSet<RegistryName>),
        extra: u64,
        now: Timestamp,
    ) -> Vec<Aim> {
        let mut aims = Vec::new();
        let unused = |from: Option<&RegistryName>, age: Duration| Aim {
            from: from.cloned(),
            goal: Goal::Unused { before: now.minus(age) },
        };
        aims.extend(settings.max_unused.map(|age| unused(None, age)));
        let names = || self.by_upstream.iter().filter_map(|(name, _)| name.as_ref());
        for name in names() {
            let own = settings.limits(name).and_then(|limits| limits.max_unused);
            let sooner = own.filter(|own| settings.max_unused.is_none_or(|all| *own < all));
            aims.extend(sooner.map(|age| unused(Some(name), age)));
        }
        for name in names() {
            let limit = settings.limits(name).and_then(|limits| limits.max_size);
            let above =
                limit.filter(|limit| self.is_full(Some(name), *limit, closed.contains(name)));
            let goal = above.map(|limit| Goal::Stored { bytes: low(limit) });
            aims.extend(goal.map(|goal| Aim { from: Some(name.clone()), goal }));
        }
        if let Some(limit) =
            settings.max_size.filter(|limit| self.is_full(None, *limit, closed_all))
        {
            aims.push(Aim { from: None, goal: Goal::Stored { bytes: low(limit) } });
        }
        let wanted = self.room.min_free.saturating_add(extra);
        if self.room.free < wanted && self.room != Room::default() {
            let margin = self.room.min_free / 100 * (100 - LOW_PERCENT);
            let bytes = wanted.max(self.room.min_free.saturating_add(margin));
            aims.push(Aim { from: None, goal: Goal::Free { bytes } });
        }
        aims
    }

    /// Is a limit of bytes exceeded, or has it just been and hardly anything went?
    pub(super) fn is_full(&self, from: Option<&RegistryName>, limit: u64, was_full: bool) -> bool {
        let stored = self.stored_from(from);
        stored > limit || (was_full && stored > share(limit, OPEN_PERCENT))
    }
}

/// What is to be free beyond `min_free`: what was refused would fit into it. If that is a guess, it is more each time it was not enough;
/// `before` is the answer to the refusal before.
pub(super) fn extra(before: u64, room: Room, refused: Option<Refused>) -> u64 {
    let Some(Refused { bytes, is_a_guess }) = refused else {
        return 0;
    };
    let known = bytes.min(FREE_EXTRA_MAX);
    if !is_a_guess {
        return known;
    }
    let was_enough_room = room.free >= room.min_free.saturating_add(before);
    let tried = if was_enough_room {
        before.saturating_mul(2).clamp(FREE_EXTRA_MIN, FREE_EXTRA_MAX)
    } else {
        before
    };
    known.max(tried)
}

/// Down to here eviction goes.
fn low(limit: u64) -> u64 {
    share(limit, LOW_PERCENT)
}

fn share(limit: u64, percent: u64) -> u64 {
    limit / 100 * percent + limit % 100 * percent / 100
}

#[cfg(test)]
mod tests {
    use super::super::settings::UpstreamLimits;
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(10_000_000);

    const OPEN: (bool, &BTreeSet<RegistryName>) = (false, &BTreeSet::new());

    #[test]
    fn what_is_closed_is_brought_down_until_it_opens() {
        let settings = Settings {
            max_size: Some(1000),
            upstreams: vec![limits("docker.io", Some(1000), None)],
            ..Settings::default()
        };
        let found = figures(5000, &[("docker.io", 990)]);
        let closed = BTreeSet::from(["docker.io".parse().unwrap()]);
        assert_eq!(found.aims(&settings, OPEN, 0, NOW), []);
        assert!(found.is_full(None, 1000, true), "it stays closed as it is");
        let goal = Goal::Stored { bytes: 950 };
        let wanted = [aim(Some("docker.io"), goal), aim(None, goal)];
        assert_eq!(found.aims(&settings, (true, &closed), 0, NOW), wanted);
    }

    fn figures(free: u64, by_upstream: &[(&str, u64)]) -> Figures {
        let usage = |bytes: u64| Usage { objects: 1, bytes };
        let named = |(name, bytes): &(&str, u64)| (Some(name.parse().unwrap()), usage(*bytes));
        Figures {
            room: Room { free, min_free: 1000 },
            by_upstream: by_upstream.iter().map(named).collect(),
        }
    }

    fn limits(name: &str, max_size: Option<u64>, max_unused: Option<u64>) -> UpstreamLimits {
        let max_unused = max_unused.map(Duration::from_secs);
        UpstreamLimits { name: name.parse().unwrap(), max_size, max_unused }
    }

    fn aim(from: Option<&str>, goal: Goal) -> Aim {
        Aim { from: from.map(|name| name.parse().unwrap()), goal }
    }

    #[test]
    fn a_limit_is_left_alone_until_it_is_exceeded_and_then_brought_to_95_percent() {
        let settings = Settings { max_size: Some(2000), ..Settings::default() };
        let full = figures(1000, &[("docker.io", 2000)]);
        assert_eq!(full.aims(&settings, OPEN, 0, NOW), []);
        let above = figures(1000, &[("docker.io", 1500), ("ghcr.io", 501)]);
        let stored = aim(None, Goal::Stored { bytes: 1900 });
        assert_eq!(above.aims(&settings, OPEN, 0, NOW), std::slice::from_ref(&stored));
        assert_eq!(above.missing(&stored), Some(101));
        let short = figures(999, &[("docker.io", 10)]);
        let free = aim(None, Goal::Free { bytes: 1050 });
        assert_eq!(short.aims(&settings, OPEN, 0, NOW), std::slice::from_ref(&free));
        assert_eq!(short.missing(&free), Some(51));
        assert_eq!(full.aims(&settings, OPEN, 100, NOW), [aim(None, Goal::Free { bytes: 1100 })]);
        let silent = Figures { room: Room::default(), ..full };
        assert_eq!(silent.aims(&settings, OPEN, 100, NOW), [], "the file system does not answer");
        assert_eq!(silent.missing(&free), Some(0));
    }

    #[test]
    fn an_upstream_has_limits_of_its_own_and_the_shorter_age_counts() {
        let settings = Settings {
            max_unused: Some(Duration::from_secs(100)),
            upstreams: vec![
                limits("docker.io", Some(10), Some(50)),
                limits("ghcr.io", Some(1000), Some(500)),
            ],
            ..Settings::default()
        };
        let found = figures(5000, &[("docker.io", 11), ("ghcr.io", 1000), ("quay.io", 9999)]);
        let unused = |seconds: i64| Goal::Unused {
            before: Timestamp::from_millis(NOW.as_millis() - seconds * 1000),
        };
        let wanted = [
            aim(None, unused(100)),
            aim(Some("docker.io"), unused(50)),
            aim(Some("docker.io"), Goal::Stored { bytes: 9 }),
        ];
        assert_eq!(found.aims(&settings, OPEN, 0, NOW), wanted);
        let words: Vec<_> = wanted.iter().map(|aim| aim.goal.limit(aim.from.as_ref())).collect();
        assert_eq!(words, [MAX_UNUSED, MAX_UNUSED, UPSTREAM_MAX_SIZE]);
    }

    #[test]
    fn what_was_full_opens_with_some_room() {
        let stored = |bytes| figures(5000, &[("docker.io", bytes)]);
        for (bytes, was_full, wanted) in [
            (1001, false, true),
            (1000, false, false),
            (1000, true, true),
            (981, true, true),
            (980, true, false),
        ] {
            assert_eq!(stored(bytes).is_full(None, 1000, was_full), wanted, "{bytes} {was_full}");
        }
    }

    const fn room(free: u64) -> Room {
        Room { free, min_free: 1000 }
    }

    #[test]
    fn what_was_refused_gets_its_size_however_often_it_was_refused() {
        let settings = Settings::default();
        let refused = |bytes| Some(Refused { bytes, is_a_guess: false });
        assert_eq!(extra(9_999, room(5000), None), 0);
        let mut wanted = 0;
        for _ in 0..40 {
            wanted = extra(wanted, room(5000), refused(7_000));
            let found = figures(5000, &[("docker.io", 90_000)]);
            let aims = found.aims(&settings, OPEN, wanted, NOW);
            assert_eq!(aims, [aim(None, Goal::Free { bytes: 8_000 })]);
        }
        assert_eq!(extra(0, room(5000), refused(u64::MAX)), FREE_EXTRA_MAX);
        let met = figures(8_000, &[("docker.io", 90_000)]);
        assert_eq!(met.aims(&settings, OPEN, wanted, NOW), []);
    }

    #[test]
    fn a_refusal_that_is_a_guess_asks_for_more_each_time() {
        let refused = Some(Refused { bytes: 10, is_a_guess: true });
        let first = extra(0, room(5000), refused);
        assert_eq!(first, FREE_EXTRA_MIN);
        assert_eq!(extra(first, room(5000), refused), first, "it was not even reached");
        assert_eq!(extra(first, room(1000 + first), refused), 2 * first);
        assert_eq!(extra(u64::MAX, room(u64::MAX), refused), FREE_EXTRA_MAX);
        assert_eq!(extra(0, room(500), refused), 10, "the reserve itself comes first");
    }
}
