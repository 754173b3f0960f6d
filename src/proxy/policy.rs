//! The decision on a tag: a pure function of the time, what is known, the operator's policy and what upstream just said.
//!
//! It is called before upstream is asked and again after. What must hold: absence and denial are obeyed, everything else that goes
//! wrong upstream is bridged with the last good revision as long as the policy allows, and a tag that is recorded as absent is never
//! brought back by an outage.

use std::time::Duration;

use super::settings::{RECENTLY_CONFIRMED, TagPolicy, WhenAbsent};
use crate::clock::Timestamp;

/// What upstream said to the last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    NotTried,
    /// An outage: no connection, a timeout, a 5xx, junk.
    Unreachable,
    /// Upstream limits us (429).
    Limited,
    /// Trouble of our own credential. For a repository that is not public, bridging ends this long after the last confirmation.
    Credential {
        grace: Option<Duration>,
    },
    /// A real 404.
    Absent,
    /// A real 401 or 403, although our credential was accepted.
    Denied,
}

/// What is known of a tag that points at something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) confirmed: Timestamp,
    /// When the last check failed, if that was after the last confirmation.
    pub(super) failed: Option<Timestamp>,
    /// Another host than the upstream's present one said so: the operator changed the URL, which ends all freshness.
    pub(super) elsewhere: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Serve what is here; upstream is not asked. `left` is the freshness left, if it ends.
    Fresh {
        left: Option<Duration>,
    },
    /// Serve what is here and check behind the answer.
    ServeThenCheck {
        stale_for: Duration,
    },
    /// Ask upstream; the client waits at most this long for it (`None`: a cold tag, as long as an answer may take).
    Check {
        wait: Option<Duration>,
    },
    /// Serve the last good revision although upstream did not confirm it.
    Stale {
        stale_for: Duration,
    },
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Absent,
    Denied,
    Unavailable,
    Offline,
}

/// Decides on a tag. `known` is `None` for a tag never seen and for one recorded as absent.
pub(super) fn decide(
    now: Timestamp,
    known: Option<Known>,
    policy: &TagPolicy,
    offline: bool,
    attempt: Attempt,
) -> Verdict {
    let Some(known) = known else {
        return match attempt {
            Attempt::NotTried if offline => Verdict::Refuse(Refusal::Offline),
            Attempt::NotTried => Verdict::Check { wait: None },
            Attempt::Absent => Verdict::Refuse(Refusal::Absent),
            Attempt::Denied => Verdict::Refuse(Refusal::Denied),
            Attempt::Unreachable | Attempt::Limited | Attempt::Credential { .. } => {
                Verdict::Refuse(Refusal::Unavailable)
            }
        };
    };
    let age = now.since(known.confirmed);
    let stale_for = age.saturating_sub(policy.fresh_for);
    match attempt {
        Attempt::NotTried => before_asking(now, known, policy, offline),
        Attempt::Absent if policy.when_absent == WhenAbsent::Keep => Verdict::Stale { stale_for },
        Attempt::Absent => Verdict::Refuse(Refusal::Absent),
        Attempt::Denied => Verdict::Refuse(Refusal::Denied),
        Attempt::Credential { grace: Some(grace) } if age > grace => {
            Verdict::Refuse(Refusal::Unavailable)
        }
        Attempt::Unreachable | Attempt::Limited | Attempt::Credential { .. } => {
            bridge(stale_for, policy)
        }
    }
}

fn before_asking(now: Timestamp, known: Known, policy: &TagPolicy, offline: bool) -> Verdict {
    if offline || (policy.immutable && !known.elsewhere) {
        return Verdict::Fresh { left: None };
    }
    let age = now.since(known.confirmed);
    // A confirmation from the future (the clock was set back) is no freshness.
    let believable = known.confirmed <= now && !known.elsewhere;
    if believable && age < policy.fresh_for {
        return Verdict::Fresh { left: Some(policy.fresh_for - age) };
    }
    let stale_for = age.saturating_sub(policy.fresh_for);
    if believable && stale_for < policy.stale_while_revalidate {
        return Verdict::ServeThenCheck { stale_for };
    }
    let failed_lately =
        |failed: Timestamp| failed <= now && now.since(failed) < policy.retry_after_failure;
    if known.failed.is_some_and(failed_lately) {
        return bridge(stale_for, policy);
    }
    let wait =
        if age < RECENTLY_CONFIRMED { policy.wait_recent.min(policy.wait) } else { policy.wait };
    Verdict::Check { wait: Some(wait) }
}

/// The last good revision, if the policy lets it bridge an outage for so long.
fn bridge(stale_for: Duration, policy: &TagPolicy) -> Verdict {
    match policy.stale_if_error {
        Some(limit) if stale_for > limit => Verdict::Refuse(Refusal::Unavailable),
        _ => Verdict::Stale { stale_for },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn known(age: u64) -> Option<Known> {
        let confirmed =
            Timestamp::from_millis(NOW.as_millis() - i64::try_from(age).unwrap() * 1000);
        Some(Known { confirmed, failed: None, elsewhere: false })
    }

    fn failed(age: u64, failed_ago: i64) -> Option<Known> {
        let failed = Some(Timestamp::from_millis(NOW.as_millis() - failed_ago * 1000));
        known(age).map(|known| Known { failed, ..known })
    }

    fn elsewhere(age: u64) -> Option<Known> {
        known(age).map(|known| Known { elsewhere: true, ..known })
    }

    /// fresh for 60 s, stale for at most an hour.
    fn policy() -> TagPolicy {
        TagPolicy {
            fresh_for: seconds(60),
            stale_if_error: Some(seconds(3600)),
            ..TagPolicy::default()
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table reads best in one piece")]
    fn before_upstream_is_asked() {
        let swr = TagPolicy { stale_while_revalidate: seconds(30), ..policy() };
        let immutable = TagPolicy { immutable: true, ..policy() };
        let fresh = |left| Verdict::Fresh { left: Some(seconds(left)) };
        let table = [
            ("never seen", None, policy(), false, Verdict::Check { wait: None }),
            ("never seen, offline", None, policy(), true, Verdict::Refuse(Refusal::Offline)),
            ("fresh", known(10), policy(), false, fresh(50)),
            (
                "just not fresh",
                known(60),
                policy(),
                false,
                Verdict::Check { wait: Some(seconds(3)) },
            ),
            (
                "confirmed long ago",
                known(7200),
                policy(),
                false,
                Verdict::Check { wait: Some(seconds(10)) },
            ),
            ("stale, offline", known(7200), policy(), true, Verdict::Fresh { left: None }),
            ("immutable", known(7200), immutable.clone(), false, Verdict::Fresh { left: None }),
            (
                "confirmed by the old URL",
                elsewhere(10),
                policy(),
                false,
                Verdict::Check { wait: Some(seconds(3)) },
            ),
            (
                "immutable at the old URL",
                elsewhere(10),
                immutable.clone(),
                false,
                Verdict::Check { wait: Some(seconds(3)) },
            ),
            ("the old URL, offline", elsewhere(10), policy(), true, Verdict::Fresh { left: None }),
            (
                "revalidated behind",
                known(70),
                swr.clone(),
                false,
                Verdict::ServeThenCheck { stale_for: seconds(10) },
            ),
            ("too old for that", known(95), swr, false, Verdict::Check { wait: Some(seconds(3)) }),
            (
                "check failed lately",
                failed(100, 5),
                policy(),
                false,
                Verdict::Stale { stale_for: seconds(40) },
            ),
            (
                "check failed before",
                failed(100, 31),
                policy(),
                false,
                Verdict::Check { wait: Some(seconds(3)) },
            ),
            (
                "failed, too stale",
                failed(9000, 5),
                policy(),
                false,
                Verdict::Refuse(Refusal::Unavailable),
            ),
            (
                "failure in the future",
                failed(100, -5),
                policy(),
                false,
                Verdict::Check { wait: Some(seconds(3)) },
            ),
        ];
        for (name, known, policy, offline, want) in table {
            assert_eq!(decide(NOW, known, &policy, offline, Attempt::NotTried), want, "{name}");
        }
    }

    #[test]
    fn a_confirmation_from_the_future_is_not_fresh() {
        let future = Known { confirmed: NOW.plus(seconds(500)), failed: None, elsewhere: false };
        assert!(matches!(
            decide(NOW, Some(future), &policy(), false, Attempt::NotTried),
            Verdict::Check { .. }
        ));
    }

    #[test]
    fn after_upstream_was_asked() {
        let keep = TagPolicy { when_absent: WhenAbsent::Keep, ..policy() };
        let endless = TagPolicy { stale_if_error: None, ..policy() };
        let stale = |seconds_| Verdict::Stale { stale_for: seconds(seconds_) };
        let no = Verdict::Refuse;
        let private = Attempt::Credential { grace: Some(seconds(86_400)) };
        let public = Attempt::Credential { grace: None };
        let table = [
            ("cold, absent", None, policy(), Attempt::Absent, no(Refusal::Absent)),
            ("cold, denied", None, policy(), Attempt::Denied, no(Refusal::Denied)),
            ("cold, outage", None, policy(), Attempt::Unreachable, no(Refusal::Unavailable)),
            ("cold, limited", None, policy(), Attempt::Limited, no(Refusal::Unavailable)),
            ("outage", known(100), policy(), Attempt::Unreachable, stale(40)),
            ("limited", known(100), policy(), Attempt::Limited, stale(40)),
            (
                "outage, too stale",
                known(9000),
                policy(),
                Attempt::Unreachable,
                no(Refusal::Unavailable),
            ),
            (
                "outage, no end",
                known(900_000),
                endless.clone(),
                Attempt::Unreachable,
                stale(899_940),
            ),
            ("absent", known(100), policy(), Attempt::Absent, no(Refusal::Absent)),
            ("absent, kept", known(100), keep.clone(), Attempt::Absent, stale(40)),
            ("denied", known(100), policy(), Attempt::Denied, no(Refusal::Denied)),
            ("denied is not kept", known(100), keep, Attempt::Denied, no(Refusal::Denied)),
            ("our credential, within grace", known(100), policy(), private, stale(40)),
            (
                "our credential, past grace",
                known(90_000),
                endless.clone(),
                private,
                no(Refusal::Unavailable),
            ),
            ("our credential, public", known(90_000), endless, public, stale(89_940)),
        ];
        for (name, known, policy, attempt, want) in table {
            assert_eq!(decide(NOW, known, &policy, false, attempt), want, "{name}");
        }
    }
}
