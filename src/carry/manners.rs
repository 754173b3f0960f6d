//! How much may be asked of upstreams that have had enough, and of a store that is full: they are waited for a while, and then left alone,
//! upstreams for the rest of the run.
//!
//! What must hold: nobody asks before the time that upstream named is over; an upstream that wants more patience than a run has, or says
//! so again and again, is not asked any more; the others are asked meanwhile. The proxy has its own quiet times below this: here is decided
//! whether a run waits or goes on without.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::oci::RegistryName;

/// The longest time that a run waits for an upstream that limits us; whoever wants more is left alone.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The wait where upstream names none.
const PAUSE: Duration = Duration::from_secs(5);
/// Limits in a row, with no answer between them, that a run puts up with.
const LIMITS_MAX: u32 = 3;

/// After a wait for room in vain nobody waits for as much, or more, for this long: each wait costs the others their turn.
const NO_ROOM_FOR: Duration = Duration::from_secs(60);

/// What the upstreams of one run said, and the store.
#[derive(Debug, Default)]
pub(super) struct Manners {
    upstreams: Mutex<HashMap<RegistryName, Standing>>,
}

/// Room for what comes from an upstream that was waited for in vain.
#[derive(Debug)]
struct NoRoom {
    since: Instant,
    size: u64,
    why: String,
}

#[derive(Debug, Default)]
struct Standing {
    /// Nobody asks before.
    until: Option<Instant>,
    limits: u32,
    /// Nobody asks any more, and why.
    closed: Option<String>,
    /// Each has limits of its own, so that there may be room for what comes from another one.
    no_room: Option<NoRoom>,
}

impl Manners {
    fn upstreams(&self) -> MutexGuard<'_, HashMap<RegistryName, Standing>> {
        // Each change is one assignment after another that cannot panic.
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the upstream is not asked any more.
    pub(super) fn closed(&self, name: &RegistryName) -> Option<String> {
        self.upstreams().get(name)?.closed.clone()
    }

    /// Waits until the upstream may be asked.
    ///
    /// # Errors
    ///
    /// It is not asked any more, and why.
    pub(super) async fn turn(&self, name: &RegistryName) -> Result<(), String> {
        loop {
            let until = match self.upstreams().get(name) {
                Some(Standing { closed: Some(why), .. }) => return Err(why.clone()),
                Some(Standing { until: Some(until), .. }) if *until > Instant::now() => *until,
                _ => return Ok(()),
            };
            sleep_until(until).await;
        }
    }

    /// Would a turn not come at once?
    pub(super) fn waits(&self, name: &RegistryName) -> bool {
        self.upstreams().get(name).is_some_and(|standing| {
            standing.closed.is_some() || standing.until.is_some_and(|until| until > Instant::now())
        })
    }

    /// The upstream answered.
    pub(super) fn answered(&self, name: &RegistryName) {
        if let Some(standing) = self.upstreams().get_mut(name) {
            standing.limits = 0;
        }
    }

    /// The upstream limits us, and wants this much patience.
    pub(super) fn limited(&self, name: &RegistryName, retry_after: Option<Duration>) {
        let mut upstreams = self.upstreams();
        let standing = upstreams.entry(name.clone()).or_default();
        let now = Instant::now();
        let wait = retry_after.unwrap_or(PAUSE);
        // What was under way when the first was told hears the same, which is no further limit.
        if standing.until.is_none_or(|until| until <= now) {
            standing.limits += 1;
        }
        if wait > PATIENCE {
            standing.closed = Some(format!("{name} limits us for another {} s", wait.as_secs()));
        } else if standing.limits > LIMITS_MAX {
            standing.closed = Some(format!("{name} limits us again and again"));
        }
        let until = now + wait.min(PATIENCE);
        standing.until = Some(standing.until.map_or(until, |other| other.max(until)));
    }

    /// Why nobody waits for room for so many bytes from the upstream just now.
    pub(super) fn no_room(&self, name: &RegistryName, size: u64) -> Option<String> {
        let counts =
            |no_room: &&NoRoom| size >= no_room.size && no_room.since.elapsed() < NO_ROOM_FOR;
        let upstreams = self.upstreams();
        let no_room = upstreams.get(name)?.no_room.as_ref().filter(counts)?;
        Some(no_room.why.clone())
    }

    /// Room for so many bytes from the upstream was waited for in vain.
    pub(super) fn waited_in_vain(&self, name: &RegistryName, size: u64, why: String) {
        let no_room = NoRoom { since: Instant::now(), size, why };
        self.upstreams().entry(name.clone()).or_default().no_room = Some(no_room);
    }

    /// The upstream is not to be asked any more in this run.
    pub(super) fn close(&self, name: &RegistryName, why: String) {
        self.upstreams().entry(name.clone()).or_default().closed.get_or_insert(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> RegistryName {
        "docker.io".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_waited_for_and_too_many_are_not() {
        let (manners, begun) = (Manners::default(), Instant::now());
        assert_eq!(manners.turn(&name()).await, Ok(()));
        let second = Duration::from_secs(1);
        manners.limited(&name(), Some(second * 20));
        manners.limited(&name(), Some(second));
        let other: RegistryName = "ghcr.io".parse().unwrap();
        assert_eq!(manners.turn(&other).await, Ok(()));
        assert!(manners.waits(&name()) && !manners.waits(&other));
        assert_eq!(begun.elapsed(), Duration::ZERO, "others are not waited for");
        assert_eq!(manners.turn(&name()).await, Ok(()));
        assert_eq!(begun.elapsed(), second * 20);
        for _limit in 1..LIMITS_MAX {
            manners.limited(&name(), None);
            assert_eq!(manners.turn(&name()).await, Ok(()));
        }
        manners.answered(&name());
        for _limit in 0..LIMITS_MAX {
            manners.limited(&name(), None);
            assert_eq!(manners.turn(&name()).await, Ok(()));
        }
        manners.limited(&name(), None);
        let why = manners.turn(&name()).await.unwrap_err();
        assert!(why.contains("docker.io limits us again"), "{why}");
        assert_eq!(manners.closed(&name()), Some(why));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_room_that_was_waited_for_in_vain() {
        let manners = Manners::default();
        let (hub, quay) = (name(), "quay.io".parse().unwrap());
        assert_eq!(manners.no_room(&hub, u64::MAX), None);
        manners.waited_in_vain(&hub, 10, "all is pinned".to_owned());
        let found = [9, 10, 11].map(|size| manners.no_room(&hub, size));
        let why = Some("all is pinned".to_owned());
        assert_eq!(found, [None, why.clone(), why]);
        assert_eq!(manners.no_room(&quay, 11), None, "what came from there may go");
        tokio::time::advance(NO_ROOM_FOR).await;
        assert_eq!(manners.no_room(&hub, 10), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_too_much_patience_is_left_alone() {
        let manners = Manners::default();
        manners.limited(&name(), Some(PATIENCE));
        assert_eq!(manners.closed(&name()), None);
        manners.limited(&name(), Some(PATIENCE * 2));
        assert_eq!(
            manners.turn(&name()).await,
            Err("docker.io limits us for another 120 s".into())
        );
        manners.close(&name(), "another reason".to_owned());
        assert!(manners.closed(&name()).unwrap().contains("120 s"), "the first reason stays");
    }
}
