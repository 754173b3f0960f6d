//! What upstream leaves us of requests, and what is not worth one of the last.
//!
//! Docker Hub and others tell with each manifest how many more they will give. What must hold: the figure belongs to the credential with
//! which it was asked, and is forgotten when its window has passed; at the reserve only those requests stop that nobody needs
//! ([`Spending::Optional`]): HEADs are free at Docker Hub and go on, a moved tag or an image never seen may spend the last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::client::Client;
use super::error::Error;
use super::memory::Asker;
use super::metrics::Meter;
use crate::clock::{Clock, Timestamp};

/// Requests that are kept back for moved tags and new images.
pub const QUOTA_RESERVE: u64 = 10;
/// How long a figure counts that came without its window.
const WINDOW_DEFAULT: Duration = Duration::from_secs(60);
/// No window is longer: Docker Hub's is six hours.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 3600);
/// A reset further away than this is a time of day (Unix time), not a number of seconds.
const RESET_IS_EPOCH: u64 = 1_000_000_000;

static REMAINING: [HeaderName; 2] = [
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-remaining"),
];
static LIMIT: [HeaderName; 2] =
    [HeaderName::from_static("ratelimit-limit"), HeaderName::from_static("x-ratelimit-limit")];
static RESET: [HeaderName; 2] =
    [HeaderName::from_static("ratelimit-reset"), HeaderName::from_static("x-ratelimit-reset")];
static COMBINED: HeaderName = HeaderName::from_static("ratelimit");

/// Is an answer worth one of the last requests?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spending {
    /// Somebody waits for it and there is nothing else to give him.
    Needed,
    /// There is an answer without it; at the reserve the request is not made.
    Optional,
}

/// The quotas of one address.
#[derive(Debug)]
pub(super) struct Quota {
    reserve: u64,
    clock: Arc<dyn Clock>,
    meter: Meter,
    anonymous: Mutex<Option<Left>>,
    ours: Mutex<Option<Left>>,
}

/// What an answer told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    remaining: u64,
    limit: Option<u64>,
    window: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    told: Told,
    at: Timestamp,
}

impl Quota {
    pub(super) fn new(reserve: u64, clock: Arc<dyn Clock>, meter: Meter) -> Self {
        Self { reserve, clock, meter, anonymous: Mutex::new(None), ours: Mutex::new(None) }
    }

    /// Keeps what the headers of an answer tell, if they tell anything.
    pub(super) fn note(&self, asker: Asker, headers: &HeaderMap) {
        let at = self.clock.now();
        if let Some(told) = told(headers, at) {
            self.meter.ratelimit_remaining(asker.as_str(), told.remaining);
            *self.left(asker) = Some(Left { told, at });
        }
    }

    /// Is so little left that optional requests stop? Gives the time until it is forgotten.
    pub(super) fn low(&self, asker: Asker) -> Option<Duration> {
        let mut left = self.left(asker);
        let Left { told, at } = (*left)?;
        let now = self.clock.now();
        // A clock that was set back says nothing about the window.
        if now < at || now.since(at) >= told.window {
            *left = None;
            return None;
        }
        // Of a small limit (a few requests a second) not more than half is kept back.
        let reserve = told.limit.map_or(self.reserve, |limit| self.reserve.min(limit / 2));
        (told.remaining <= reserve).then(|| told.window.saturating_sub(now.since(at)))
    }

    /// Stops an optional request at the reserve.
    ///
    /// # Errors
    /// [`Error::Limited`].
    pub(super) fn allows(&self, asker: Asker, spending: Spending) -> Result<(), Error> {
        match self.low(asker) {
            Some(left) if spending == Spending::Optional => {
                Err(Error::Limited { retry_after: Some(left) })
            }
            _ => Ok(()),
        }
    }

    fn left(&self, asker: Asker) -> MutexGuard<'_, Option<Left>> {
        let left = match asker {
            Asker::Anonymous => &self.anonymous,
            Asker::Ours => &self.ours,
        };
        // No holder of this lock can panic half-way through a change.
        left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// See `Upstream::is_sparing`.
    pub(super) fn is_sparing(&self) -> bool {
        let ours = self.credentials.fingerprint().is_some();
        self.quota.low(if ours { Asker::Ours } else { Asker::Anonymous }).is_some()
    }
}

/// Reads `ratelimit-remaining: 76;w=21600` (Docker Hub), the `x-ratelimit-*` of others, and the `RateLimit` of the IETF's drafts in both of
/// its forms (`limit=100, remaining=76, reset=30`; `"default";r=76;t=30`).
fn told(headers: &HeaderMap, now: Timestamp) -> Option<Told> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let any = |names: &[HeaderName; 2]| names.iter().find_map(text);
    let (remaining, window, limit) = match any(&REMAINING) {
        Some(remaining) => {
            (number(remaining)?, parameter(remaining, "w"), any(&LIMIT).and_then(number))
        }
        None => {
            let combined = text(&COMBINED)?;
            let first = |names: [&str; 2]| names.iter().find_map(|name| parameter(combined, name));
            (first(["remaining", "r"])?, first(["reset", "t"]), first(["limit", "q"]))
        }
    };
    let window =
        window.or_else(|| any(&RESET).and_then(number).map(|reset| seconds_to(reset, now)));
    let window = window.map_or(WINDOW_DEFAULT, Duration::from_secs).min(WINDOW_MAX);
    Some(Told { remaining, limit, window })
}

/// The number at the head of a value.
fn number(text: &str) -> Option<u64> {
    text.split([';', ',']).next()?.trim().parse().ok()
}

/// `name=number` among the parts of a value.
fn parameter(text: &str, name: &str) -> Option<u64> {
    text.split([';', ',']).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        let same = key.trim().eq_ignore_ascii_case(name);
        same.then(|| value.trim().parse().ok()).flatten()
    })
}

fn seconds_to(reset: u64, now: Timestamp) -> u64 {
    if reset < RESET_IS_EPOCH {
        return reset;
    }
    reset.saturating_sub(u64::try_from(now.as_millis() / 1000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::clock::ManualClock;
    use crate::upstream::metrics::Metrics;

    const NOW: Timestamp = Timestamp::from_millis(1_795_305_600_000);

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn read(pairs: &[(&'static str, &'static str)]) -> Option<(u64, Option<u64>, u64)> {
        let told = told(&headers(pairs), NOW)?;
        Some((told.remaining, told.limit, told.window.as_secs()))
    }

    #[test]
    fn the_headers_of_many_registries_are_read() {
        let hub = [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")];
        assert_eq!(read(&hub), Some((76, Some(100), 21_600)));
        assert_eq!(read(&[("ratelimit-remaining", "0")]), Some((0, None, 60)));
        let old = [("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "1795305630")];
        assert_eq!(read(&old), Some((5, None, 30)));
        let new = [("ratelimit-remaining", "5"), ("ratelimit-reset", "30")];
        assert_eq!(read(&new), Some((5, None, 30)));
        assert_eq!(
            read(&[("ratelimit", "limit=100, remaining=50, reset=7")]),
            Some((50, Some(100), 7))
        );
        assert_eq!(read(&[("ratelimit", "\"default\";r=50;t=30")]), Some((50, None, 30)));
        assert_eq!(read(&[("ratelimit-remaining", "1;w=99999999")]), Some((1, None, 86_400)));
        for junk in ["many", "", "-1", "1.5;w=x", ";;;", "=,="] {
            assert_eq!(read(&[("ratelimit-remaining", junk)]), None, "{junk}");
            assert_eq!(read(&[("ratelimit", junk)]), None, "{junk}");
        }
        assert_eq!(read(&[]), None);
    }

    fn keeper(reserve: u64) -> (Quota, ManualClock) {
        let clock = ManualClock::starting_at(NOW);
        let meter =
            Metrics::new(&mut Registry::default()).of(&"r.example".parse().unwrap(), "r.example");
        (Quota::new(reserve, Arc::new(clock.clone()), meter), clock)
    }

    #[test]
    fn at_the_reserve_what_is_optional_stops_until_the_window_has_passed() {
        let (quota, clock) = keeper(10);
        quota.note(Asker::Ours, &headers(&[("ratelimit-remaining", "11;w=100")]));
        assert!(quota.allows(Asker::Ours, Spending::Optional).is_ok());
        quota.note(Asker::Ours, &headers(&[("ratelimit-remaining", "10;w=100")]));
        let left = Some(Duration::from_secs(100));
        assert_eq!(
            quota.allows(Asker::Ours, Spending::Optional),
            Err(Error::Limited { retry_after: left })
        );
        assert!(quota.allows(Asker::Ours, Spending::Needed).is_ok());
        assert!(quota.allows(Asker::Anonymous, Spending::Optional).is_ok());
        // An answer that tells nothing changes nothing.
        quota.note(Asker::Ours, &HeaderMap::new());
        assert!(quota.low(Asker::Ours).is_some());
        clock.advance(Duration::from_secs(100));
        assert!(quota.allows(Asker::Ours, Spending::Optional).is_ok());
    }

    #[test]
    fn a_small_limit_is_not_all_reserve() {
        let (quota, _clock) = keeper(10);
        let told = [("ratelimit-limit", "5;w=1"), ("ratelimit-remaining", "4;w=1")];
        quota.note(Asker::Anonymous, &headers(&told));
        assert_eq!(quota.low(Asker::Anonymous), None);
        let told = [("ratelimit-limit", "5;w=1"), ("ratelimit-remaining", "2;w=1")];
        quota.note(Asker::Anonymous, &headers(&told));
        assert!(quota.low(Asker::Anonymous).is_some());
        let (quota, _clock) = keeper(0);
        quota.note(Asker::Ours, &headers(&[("ratelimit-remaining", "1")]));
        assert_eq!(quota.low(Asker::Ours), None);
    }
}
