//! Is the machine's clock right? Nobody tells, so a clock is believed that went on for a day without a step.
//!
//! What must hold: a clock that was set back, or far forward, begins anew; what was seen outlives the process, so that a machine that is
//! restarted every day gets there; what is remembered never says more than what was seen, also if it cannot be written. This deliberately
//! knows nothing of clocks that are a little wrong: those do no harm.

use super::settings::{CLOCK_BELIEVED_AFTER, CLOCK_NOTED_EVERY, CLOCK_STEP_MAX};
use crate::clock::Timestamp;
use crate::metadata::{ClockSeen, Metadata};

/// What was seen of the clock.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// The rows were asked what earlier processes saw.
    recalled: bool,
    seen: Option<ClockSeen>,
    /// What the rows say.
    noted: Option<ClockSeen>,
}

impl Trust {
    /// Looks at the clock, and keeps what it sees in the rows. Rows that cannot be read or written cost trust and nothing else.
    pub(super) async fn look(&mut self, rows: &Metadata, now: Timestamp) {
        if !self.recalled {
            match rows.clock_seen().await {
                Ok(noted) => (self.recalled, self.noted) = (true, noted),
                Err(error) => {
                    tracing::debug!(%error, "what was seen of the clock cannot be read");
                    return;
                }
            }
            self.seen = self.seen.or(self.noted);
        }
        self.is_believed(now);
        if let Some(seen) = self.to_note() {
            match rows.note_clock(seen).await {
                Ok(()) => self.noted = Some(seen),
                Err(error) => tracing::debug!(%error, "what was seen of the clock is not written"),
            }
        }
    }

    /// Has it gone on for long enough to be believed rather than what is dated after it?
    pub(super) fn is_believed(&mut self, now: Timestamp) -> bool {
        let goes_on = |seen: &ClockSeen| seen.last <= now && now.since(seen.last) <= CLOCK_STEP_MAX;
        let since = self.seen.filter(goes_on).map_or(now, |seen| seen.since);
        self.seen = Some(ClockSeen { since, last: now });
        now.since(since) >= CLOCK_BELIEVED_AFTER
    }

    /// A step is told at once, or the next process would go on from before it; that the clock goes on, now and then.
    fn to_note(&self) -> Option<ClockSeen> {
        self.seen.filter(|seen| {
            self.noted.is_none_or(|noted| {
                noted.since != seen.since || seen.last.since(noted.last) >= CLOCK_NOTED_EVERY
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_millis(hours * HOUR)
    }

    #[test]
    fn a_clock_is_believed_when_it_went_on_for_a_day() {
        let mut trust = Trust::default();
        for (hours, believed) in [
            (0, false),
            (12, false),
            (23, false),
            (24, true),
            (36, true),
            // Set back, which begins anew.
            (35, false),
            (47, false),
            (58, false),
            (59, true),
            // Set forward, maybe to a time that is still long past.
            (4_000, false),
            (4_012, false),
            (4_024, true),
        ] {
            assert_eq!(trust.is_believed(at(hours)), believed, "{hours}");
        }
    }

    #[test]
    fn what_goes_on_is_noted_every_hour_and_a_step_at_once() {
        let mut trust = Trust::default();
        let minute = |minutes: i64| Timestamp::from_millis(minutes * HOUR / 60);
        for (minutes, noted) in [
            (600, true),
            (601, false),
            (659, false),
            (660, true),
            (700, false),
            // Set back a little.
            (690, true),
            (691, false),
            (750, true),
            (750 + 13 * 60, true),
        ] {
            trust.is_believed(minute(minutes));
            let found = trust.to_note();
            assert_eq!(found.is_some(), noted, "{minutes}");
            trust.noted = found.or(trust.noted);
        }
    }
}
