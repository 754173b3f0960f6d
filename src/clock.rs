//! The one door to wall time, so that a test can hold it.
//!
//! Durations and deadlines inside a process use tokio's monotonic clock; only what is stored or compared with stored times goes
//! through here.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in wall time: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero if the clock went backwards in between.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The moment `duration` later.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The moment `duration` earlier.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, if there are any: `2026-11-01T12:00:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(moment) => fmt::Display::fmt(&moment, f),
            // Beyond the years that the format can say.
            Err(_out_of_range) => write!(f, "{} ms after 1970", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A text that is no moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTimestamp;

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    /// Reads RFC 3339 (`2026-11-01T12:00:00Z`, any offset), a date with a time of day, which is UTC (`2026-11-01T12:00`), or a date, which
    /// is its first moment in UTC.
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        if let Ok(moment) = text.parse::<jiff::Timestamp>() {
            return Ok(Self(moment.as_millisecond()));
        }
        let civil = text
            .parse::<jiff::civil::DateTime>()
            .map_err(|_neither| InvalidTimestamp)?
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map_err(|_out_of_range| InvalidTimestamp)?;
        // A zone in brackets would be dropped without a word.
        if text.contains('[') {
            return Err(InvalidTimestamp);
        }
        Ok(Self(civil.timestamp().as_millisecond()))
    }
}

impl fmt::Display for InvalidTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("want a date (2026-11-01) or a date and time in UTC (2026-11-01T12:00:00Z)")
    }
}

impl std::error::Error for InvalidTimestamp {}

/// Units of time and their length in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
/// The longest duration that anybody may name: what is longer is a slip of the pen.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDuration(String);

/// Reads a span of time with its units, as operators write it: `500ms`, `60s`, `24h`, `7d`, `1h30m`, `0`. At most 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let refuse = || InvalidDuration(text.to_owned());
    let mut rest = text.trim();
    let mut millis = 0_u64;
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (count, after) = rest.split_at(digits);
        let count = count.parse::<u64>().map_err(|_no_number| refuse())?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let unit = DURATION_UNITS.iter().find(|(unit, _)| *unit == &after[..end]);
        let (_, length) = unit.ok_or_else(refuse)?;
        let part = count.checked_mul(*length).ok_or_else(refuse)?;
        millis = millis.checked_add(part).ok_or_else(refuse)?;
        rest = &after[end..];
    }
    let duration = Duration::from_millis(millis);
    if duration > DURATION_MAX { Err(refuse()) } else { Ok(duration) }
}

impl fmt::Display for InvalidDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.0;
        write!(f, "{text:?} is no duration; want one such as \"60s\", \"5m\", \"24h\", \"1h30m\"")
    }
}

impl std::error::Error for InvalidDuration {}

/// A source of wall time.
pub trait Clock: Send + Sync + fmt::Debug {
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Microseconds since the Unix epoch, for log lines: nothing is compared with them, so no test has to hold them.
    #[expect(clippy::disallowed_methods, reason = "this is the door that the ban points to")]
    pub fn micros(self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the door that the ban points to")]
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A clock that moves only when told to.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    pub fn starting_at(moment: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(moment.as_millis())))
    }

    /// Sets the clock back, as an administrator does.
    pub fn set_back(&self, duration: Duration) {
        self.0.fetch_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Moves the clock forward.
    pub fn advance(&self, duration: Duration) {
        self.0.fetch_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_and_later_end_at_the_ends_of_time() {
        let (moment, second) = (Timestamp::from_millis(5000), Duration::from_secs(1));
        assert_eq!(moment.plus(second).as_millis(), 6000);
        assert_eq!(moment.minus(second).as_millis(), 4000);
        let long = Duration::from_secs(u64::MAX);
        assert_eq!(moment.plus(long).as_millis(), i64::MAX);
        assert_eq!(moment.minus(long).as_millis(), 5000 - i64::MAX);
    }

    #[test]
    fn a_clock_that_goes_backwards_gives_no_negative_age() {
        let (early, late) = (Timestamp::from_millis(5), Timestamp::from_millis(9));
        assert_eq!(late.since(early), Duration::from_millis(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        let moment = Timestamp::from_millis(1_793_534_400_000);
        assert_eq!(moment.to_string(), "2026-11-01T12:00:00Z");
        for text in [
            "2026-11-01T12:00:00Z",
            "2026-11-01T13:00:00+01:00",
            "2026-11-01T12:00",
            "2026-11-01 12:00:00",
        ] {
            assert_eq!(text.parse(), Ok(moment), "{text}");
        }
        assert_eq!("2026-11-01".parse(), Ok(Timestamp::from_millis(1_793_491_200_000)));
        for text in
            ["", "yesterday", "2026-13-01", "12:00", "1793534400", "2026-11-01[Europe/Berlin]"]
        {
            assert_eq!(text.parse::<Timestamp>(), Err(InvalidTimestamp), "{text}");
        }
        let far = Timestamp::from_millis(i64::MAX);
        assert!(!far.to_string().is_empty());
    }

    #[test]
    fn a_held_clock_moves_only_when_told() {
        let clock = ManualClock::starting_at(Timestamp::from_millis(1000));
        let other = clock.clone();
        other.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), Timestamp::from_millis(3000));
    }
}
