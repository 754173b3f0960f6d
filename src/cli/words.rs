//! Sizes, moments, ages and texts of others, as the commands print them for people.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::HumanBytes;

use crate::clock::Timestamp;

/// Digits of a digest that are enough to tell images apart by eye.
const DIGEST_DIGITS: usize = 12;
/// Less than the smallest unit: time to come is rounded up to it.
const ROUNDED_UP: Duration = Duration::from_millis(999);
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `3.00 MiB`.
pub(super) fn size(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// `1 tag`, `2 tags`; the plural adds an s.
pub(super) fn count(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// `2026-11-01 12:00:00Z`: in UTC, to the second, and as `--until` reads it.
pub(super) fn moment(at: Timestamp) -> String {
    // A moment that RFC 3339 cannot say is told in other words, which stay.
    let text = at.to_string();
    match text.split_once('T') {
        Some((date, time)) => {
            let time = time.trim_end_matches('Z').split('.').next().unwrap_or_default();
            format!("{date} {time}Z")
        }
        None => text,
    }
}

/// `3 h ago`, `in 2 days`, `just now`.
pub(super) fn age(at: Timestamp, now: Timestamp) -> String {
    if at > now {
        // What lasts seven days lasts them a moment later too.
        match span(at.since(now) + ROUNDED_UP) {
            Some(span) => format!("in {span}"),
            None => "now".to_owned(),
        }
    } else {
        match span(now.since(at)) {
            Some(span) => format!("{span} ago"),
            None => "just now".to_owned(),
        }
    }
}

/// `2026-11-01 12:00:00Z (3 h ago)`.
pub(super) fn moment_and_age(at: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", moment(at), age(at, now))
}

/// The largest unit that leaves a number to think about; less than a second is none.
fn span(duration: Duration) -> Option<String> {
    let seconds = duration.as_secs();
    Some(match seconds {
        0 => return None,
        1..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..172_800 => format!("{} h", seconds / HOUR),
        _ => format!("{} days", seconds / DAY),
    })
}

/// `sha256:0123456789ab`: enough to compare by eye. What is no digest stays as it is.
pub(super) fn short(digest: &str) -> &str {
    match digest.split_once(':') {
        Some((algorithm, _)) => digest.get(..algorithm.len() + 1 + DIGEST_DIGITS).unwrap_or(digest),
        None => digest,
    }
}

/// A text of somebody else, without what would move the cursor or turn the direction of writing. Line feeds go as well.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(harmful) { text.replace(harmful, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_says_when_and_how_long_ago() {
        let noon: Timestamp = "2026-11-01T12:00:00.250Z".parse().unwrap();
        let said = |seconds: i64| {
            moment_and_age(noon, Timestamp::from_millis(noon.as_millis() + seconds * 1000))
        };
        for (seconds, age) in [
            (0, "just now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3_599, "59 min ago"),
            (3_600, "1 h ago"),
            (172_799, "47 h ago"),
            (172_800, "2 days ago"),
            (-5, "in 5 s"),
            (-86_400 * 30, "in 30 days"),
        ] {
            assert_eq!(said(seconds), format!("2026-11-01 12:00:00Z ({age})"));
        }
        assert_eq!(moment(noon).parse::<Timestamp>().unwrap().to_string(), "2026-11-01T12:00:00Z");
        assert!(!moment(Timestamp::from_millis(i64::MAX)).is_empty());
    }

    #[test]
    fn a_digest_is_cut_where_it_can_be() {
        assert_eq!(short("sha256:0123456789abcdef"), "sha256:0123456789ab");
        for whole in ["sha256:01", "absent", "", "sha256:01234567890é"] {
            assert_eq!(short(whole), whole);
        }
    }

    #[test]
    fn no_text_of_others_steers_the_terminal() {
        assert_eq!(
            clean("a\x1b[2Jb\r\nc\u{202e}d\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}"
        );
        assert!(matches!(clean("grün"), Cow::Borrowed("grün")));
        assert_eq!(count(1, "tag") + &count(2, "tag"), "1 tag2 tags");
    }
}
