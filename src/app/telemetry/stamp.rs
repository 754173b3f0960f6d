//! The time at the beginning of a line, as the log's other lines have it: UTC in RFC 3339 with microseconds.

use std::io::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::SystemClock;

const MICROS: u64 = 1_000_000;
const DAY: u64 = 86_400;

/// Writes times; the text of the last second is kept.
#[derive(Debug)]
pub(super) struct Stamp {
    /// The same moment on both clocks.
    moment: Instant,
    micros: u64,
    second: u64,
    /// Date and time of that second, up to the point.
    text: Vec<u8>,
}

impl Stamp {
    pub(super) fn new() -> Self {
        let mut stamp = Self {
            moment: Instant::now(),
            micros: SystemClock.micros(),
            second: 0,
            text: Vec::new(),
        };
        stamp.keep(stamp.micros / MICROS);
        stamp
    }

    /// Compares the clocks, so that steps of the wall clock are followed. Once per batch of lines.
    pub(super) fn compare(&mut self) {
        self.moment = Instant::now();
        self.micros = SystemClock.micros();
    }

    /// Writes the wall time of `moment`.
    pub(super) fn write(&mut self, moment: Instant, out: &mut Vec<u8>) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let ago = micros(self.moment.saturating_duration_since(moment));
        let ahead = micros(moment.saturating_duration_since(self.moment));
        self.write_micros(self.micros.saturating_sub(ago).saturating_add(ahead), out);
    }

    fn write_micros(&mut self, micros: u64, out: &mut Vec<u8>) {
        if micros / MICROS != self.second {
            self.keep(micros / MICROS);
        }
        out.extend_from_slice(&self.text);
        let mut digits = *b"000000Z";
        let mut rest = micros % MICROS;
        for digit in digits[..6].iter_mut().rev() {
            *digit += u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
        out.extend_from_slice(&digits);
    }

    fn keep(&mut self, second: u64) {
        self.second = second;
        self.text.clear();
        let (year, month, day) = date(second / DAY);
        let (hour, minute) = (second % DAY / 3600, second % 3600 / 60);
        let second = second % 60;
        let text = &mut self.text;
        write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.")
            .expect("a Vec takes all");
    }
}

/// Year, month and day of a day since the epoch (H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days).
fn date(day: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last of its year.
    let day = day + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn text(micros: u64) -> String {
        let mut out = Vec::new();
        Stamp::new().write_micros(micros, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text(951_782_399_999_999), "2000-02-28T23:59:59.999999Z");
        assert_eq!(text(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(text(1_795_413_296_012_345), "2026-11-23T05:54:56.012345Z");
    }

    #[test]
    fn dates_are_those_of_another_calendar() {
        let mut day = 0;
        while day < 100 * 366 {
            let other = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(day * DAY));
            let mut parts = other.split(' ').skip(1);
            let (number, month, year) =
                (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            let names = "JanFebMarAprMayJunJulAugSepOctNovDec";
            let month = names.find(month).unwrap() / 3 + 1;
            assert_eq!(&text(day * DAY * MICROS)[..10], format!("{year}-{month:02}-{number}"));
            day += 1;
        }
    }

    #[test]
    fn a_moment_keeps_its_distance_to_the_anchor() {
        let mut stamp = Stamp::new();
        stamp.micros = 951_782_400_000_000;
        let mut write = |moment| {
            let mut out = Vec::new();
            stamp.write(moment, &mut out);
            String::from_utf8(out).unwrap()
        };
        let moment = Instant::now();
        let (early, late) = (write(moment), write(moment + Duration::from_micros(1500)));
        let micros = |text: &str| text[20..26].parse::<u64>().unwrap();
        assert_eq!(micros(&late) - micros(&early), 1500, "{early} {late}");
    }
}
