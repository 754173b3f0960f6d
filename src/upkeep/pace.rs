//! How fast the scrub reads: a bucket of bytes, and the rate at which it fills.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::{SCRUB_FILE_BYTES, SCRUB_RATE_MAX, SCRUB_RATE_MIN};
use crate::metadata::Usage;

/// What was not used is saved up for this long, so that one slow read is made good and an idle hour is not.
const SAVED_MAX: Duration = Duration::from_secs(1);

/// Bytes so far over time.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    /// When the bytes read so far were earned.
    paid_until: Option<Instant>,
}

impl Pace {
    /// Of `rate` bytes per second.
    pub(super) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid_until: None }
    }

    pub(super) fn set_rate(&mut self, rate: u64) {
        self.rate = rate.max(1);
    }

    /// Notes `bytes` read just now, and answers when the next ones may be.
    pub(super) fn spend(&mut self, bytes: usize, now: Instant) -> Instant {
        let cost = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000);
        let nanos = u64::try_from(cost / u128::from(self.rate)).unwrap_or(u64::MAX);
        let earliest = now.checked_sub(SAVED_MAX).unwrap_or(now);
        let from = self.paid_until.map_or(now, |paid| paid.max(earliest));
        let paid = from + Duration::from_nanos(nanos);
        self.paid_until = Some(paid);
        paid
    }
}

/// The rate in bytes per second at which all that is stored, the oldest of which was verified `age` ago, is read before any of it is
/// older than `period`.
pub(super) fn rate(stored: Usage, age: Duration, period: Duration) -> u64 {
    let left = period.saturating_sub(age).as_secs().max(1);
    let each = u64::try_from(SCRUB_FILE_BYTES).unwrap_or(u64::MAX);
    let files = stored.objects.saturating_mul(each);
    (stored.bytes.saturating_add(files) / left).clamp(SCRUB_RATE_MIN, SCRUB_RATE_MAX)
}

/// Content is due when it was last verified this long ago. At half of the period the other half is left to do it at an even pace.
pub(super) fn due_after(period: Duration) -> Duration {
    period / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;
    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test(start_paused = true)]
    async fn bytes_over_time_are_the_rate() {
        let begin = Instant::now();
        let mut pace = Pace::new(1024 * 1024);
        let mut now = begin;
        for _ in 0..100 {
            now = pace.spend(MIB, now);
        }
        assert_eq!(now - begin, Duration::from_secs(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_read_is_made_good_and_a_long_pause_is_not() {
        let begin = Instant::now();
        let mut pace = Pace::new(1024 * 1024);
        pace.spend(MIB, begin);
        // Half a second late: the next piece may follow sooner.
        let late = begin + Duration::from_millis(1500);
        assert_eq!(pace.spend(MIB, late), begin + Duration::from_secs(2));
        let hour = begin + Duration::from_secs(3600);
        assert_eq!(pace.spend(MIB, hour), hour, "one second was saved up");
        assert_eq!(pace.spend(MIB, hour), hour + Duration::from_secs(1));
    }

    #[test]
    fn the_rate_finishes_the_period_within_its_limits() {
        let period = 30 * DAY;
        let half = due_after(period);
        let tib: u64 = 1 << 40;
        let stored = |bytes| Usage { objects: 1, bytes };
        let rate_of = |bytes, age, period| rate(stored(bytes), age, period);
        let steady = rate_of(tib, half, period);
        assert!(u128::from(steady) * u128::from((period - half).as_secs()) >= u128::from(tib) / 2);
        assert_eq!(rate_of(1, half, period), SCRUB_RATE_MIN);
        assert_eq!(rate_of(tib, period * 2, period), SCRUB_RATE_MAX, "late is as fast as may be");
        assert_eq!(rate_of(u64::MAX, Duration::ZERO, period), SCRUB_RATE_MAX);
        assert!(rate_of(tib, period - DAY, period) > steady, "the less time, the faster");
        let small = Usage { objects: 200_000_000, bytes: 0 };
        assert!(rate(small, half, period) > SCRUB_RATE_MIN, "files count");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_nothing_and_a_piece_without_end_do_no_harm() {
        let now = Instant::now();
        let mut pace = Pace::new(0);
        assert!(pace.spend(1, now) > now);
        pace.set_rate(SCRUB_RATE_MAX);
        assert!(pace.spend(0, now) >= now);
    }
}
