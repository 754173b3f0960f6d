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
/// Of the disk itself, which tells nobody how much it is.
pub(super) const QUOTA: &str = "quota";

/// Something was refused, nobody knows for want of how much, although `min_free` was met: this much more is wanted at least.
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
    /// The same, because the disk takes no more whatever it shows as free.
    Quota { bytes: u64 },
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
            (Self::Quota { .. }, _) => QUOTA,
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
            Goal::Stored { bytes } | Goal::Quota { bytes } => {
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

    /// What makes room under a quota that the disk does not show. As much goes as was refused: the next refusal takes the next step, and
    /// what the disk refuses for another reason costs no more than clients asked it to take.
    pub(super) fn under_quota(&self, refused: Option<Refused>) -> Option<Aim> {
        let Refused { bytes, .. } = refused.filter(|refused| is_hidden(self.room, *refused))?;
        let bytes = bytes.clamp(FREE_EXTRA_MIN, FREE_EXTRA_MAX);
        let goal = Goal::Quota { bytes: self.stored_from(None).saturating_sub(bytes) };
        Some(Aim { from: None, goal })
    }

    /// Is a limit of bytes exceeded, or has it just been and hardly anything went?
    pub(super) fn is_full(&self, from: Option<&RegistryName>, limit: u64, was_full: bool) -> bool {
        let stored = self.stored_from(from);
        stored > limit || (was_full && stored > share(limit, OPEN_PERCENT))
    }
}

/// What is to be free beyond `min_free`: what was refused would fit into it. Free space is not what [`Figures::under_quota`] is about.
pub(super) fn extra(room: Room, refused: Option<Refused>) -> u64 {
    let Some(refused) = refused.filter(|refused| !is_hidden(room, *refused)) else {
        return 0;
    };
    let is_open = refused.is_a_guess && room.free >= room.min_free;
    let least = if is_open { FREE_EXTRA_MIN } else { 0 };
    refused.bytes.clamp(least, FREE_EXTRA_MAX)
}

/// Did the disk refuse what fits by its own figures?
fn is_hidden(room: Room, refused: Refused) -> bool {
    refused.is_a_guess && room.free >= room.min_free.saturating_add(refused.bytes)
}

/// Was more refused than anybody gets room for, and that much is free? Then in bytes.
pub(super) fn most(room: Room, refused: Option<Refused>) -> Option<u64> {
    let is_met = room.free >= room.min_free.saturating_add(FREE_EXTRA_MAX);
    refused.filter(|refused| is_met && refused.bytes > FREE_EXTRA_MAX).map(|_| FREE_EXTRA_MAX)
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
        assert_eq!(extra(room(5000), None), 0);
        let wanted = extra(room(5000), refused(7_000));
        let found = figures(5000, &[("docker.io", 90_000)]);
        let aims = found.aims(&settings, OPEN, wanted, NOW);
        assert_eq!(aims, [aim(None, Goal::Free { bytes: 8_000 })]);
        assert_eq!(found.under_quota(refused(7_000)), None);
        assert_eq!(found.under_quota(refused(10)), None, "somebody else has made room by now");
        assert_eq!(extra(room(5000), refused(u64::MAX)), FREE_EXTRA_MAX);
        let met = figures(8_000, &[("docker.io", 90_000)]);
        assert_eq!(met.aims(&settings, OPEN, wanted, NOW), []);
    }

    #[test]
    fn who_wants_more_than_anybody_gets_is_told_how_much_that_is() {
        let refused = |bytes| Some(Refused { bytes, is_a_guess: false });
        let met = room(1000 + FREE_EXTRA_MAX);
        assert_eq!(most(met, refused(FREE_EXTRA_MAX + 1)), Some(FREE_EXTRA_MAX));
        assert_eq!(most(met, refused(FREE_EXTRA_MAX)), None);
        assert_eq!(most(met, None), None);
        let short = room(999 + FREE_EXTRA_MAX);
        assert_eq!(most(short, refused(u64::MAX)), None, "so much could not even go");
    }

    #[test]
    fn a_size_that_nobody_knows_gets_some_room_at_once() {
        let refused = Some(Refused { bytes: 1000, is_a_guess: true });
        assert_eq!(extra(room(1999), refused), FREE_EXTRA_MIN);
        assert_eq!(extra(room(500), refused), 1000, "the reserve itself comes first");
        assert_eq!(figures(1999, &[]).under_quota(refused), None);
        let huge = Some(Refused { bytes: u64::MAX, is_a_guess: true });
        assert_eq!(extra(room(1999), huge), FREE_EXTRA_MAX);
    }

    #[test]
    fn under_a_quota_as_much_goes_as_was_refused_however_much_seems_free() {
        let tib = 1 << 40;
        let found = figures(tib, &[("docker.io", tib), ("quay.io", 5)]);
        let refused = |bytes| Some(Refused { bytes, is_a_guess: true });
        let goes = |bytes| {
            assert_eq!(extra(found.room, refused(bytes)), 0);
            let aim = found.under_quota(refused(bytes)).expect("there is room by the figures");
            assert_eq!(aim.goal.limit(None), QUOTA);
            found.missing(&aim).expect("in bytes")
        };
        assert_eq!(goes(10), FREE_EXTRA_MIN);
        assert_eq!(goes(7 * FREE_EXTRA_MIN), 7 * FREE_EXTRA_MIN);
        assert_eq!(goes(tib / 2), FREE_EXTRA_MAX, "whoever claims to have more is not believed");
        assert_eq!(found.under_quota(None), None);
        let silent = Figures { room: Room::default(), ..found };
        assert_eq!(silent.under_quota(refused(10)), None, "the file system does not answer");
    }
}
