//! Reading the answer of a token service, and how long its token may be used.
//!
//! Pure. What must hold: a token never counts as everlasting, whatever its lifetime says; the token itself is opaque and never parsed.

use std::time::Duration;

use serde_json::Value;

use super::settings::Secret;
use crate::clock::Timestamp;

/// Lifetime if none is declared, or none that makes sense (distribution spec, token authentication).
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);
/// No token is kept longer.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// A token is not used in the last part of its life: so many percent of it, at most [`MARGIN_MAX`].
const MARGIN_PERCENT: u32 = 15;
const MARGIN_MAX: Duration = Duration::from_secs(30);
/// `issued_at` is believed if it leaves at least this much; else the clocks differ and the life begins with the receipt.
const REMAINDER_MIN: Duration = Duration::from_secs(10);

/// What a token service granted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) token: Secret,
    pub(super) refresh_token: Option<Secret>,
    /// How long from now on the token may be used.
    pub(super) usable: Duration,
    /// From when on a new one is fetched behind the back of requests; less than `usable`.
    pub(super) renew_after: Duration,
}

/// Reads the body; `None` is no token answer.
pub(super) fn read(body: &[u8], now: Timestamp) -> Option<Grant> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let text =
        |name: &str| answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let declared = lifetime(answer.get("expires_in"));
    let left = text("issued_at")
        .and_then(rfc3339)
        .map_or(declared, |issued| remainder(declared, issued, now));
    let margin = (left * MARGIN_PERCENT / 100).min(MARGIN_MAX);
    let usable = left.saturating_sub(margin);
    Some(Grant {
        token: token.into(),
        refresh_token: text("refresh_token").map(Into::into),
        usable,
        renew_after: usable.saturating_sub(margin),
    })
}

/// Numbers, floats and numeric strings are understood; zero, negative and absurd values are the default or the maximum.
fn lifetime(value: Option<&Value>) -> Duration {
    let seconds = match value {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    match seconds {
        Some(seconds) if seconds >= LIFETIME_MAX.as_secs_f64() => LIFETIME_MAX,
        Some(seconds) if seconds >= 1.0 => Duration::from_secs_f64(seconds),
        _ => LIFETIME_DEFAULT,
    }
}

/// A service may hand out a token that it issued a while ago.
fn remainder(declared: Duration, issued: Timestamp, now: Timestamp) -> Duration {
    if issued > now {
        return declared;
    }
    match declared.checked_sub(now.since(issued)) {
        Some(left) if left >= REMAINDER_MIN.min(declared) => left,
        _ => declared,
    }
}

/// A moment in RFC 3339, with fractions and any offset; leap seconds count as the second before.
fn rfc3339(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
    };
    let separators = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    if !separators.iter().all(|(at, c)| text.get(*at..at + 1) == Some(c)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let rest = text.get(19..)?;
    let rest = rest
        .strip_prefix('.')
        .map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = if rest.starts_with('-') { -1 } else { 1 };
            let (hours, minutes) = rest.strip_prefix(['+', '-'])?.split_once(':')?;
            sign * (hours.parse::<u8>().map(i64::from).ok()? * 60
                + minutes.parse::<u8>().map(i64::from).ok()?)
        }
    };
    let seconds =
        days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second.min(59);
    Some(Timestamp::from_millis((seconds - offset * 60) * 1000))
}

/// Days from 1970-01-01 in the Gregorian calendar (Hinnant's `days_from_civil`): the year begins in March, so that the leap day is
/// its last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn grant(body: &str) -> Grant {
        read(body.as_bytes(), NOW).expect(body)
    }

    fn usable(body: &str) -> u64 {
        grant(body).usable.as_secs()
    }

    #[test]
    fn the_first_token_that_is_not_empty() {
        assert_eq!(grant(r#"{"token":"a","access_token":"b"}"#).token, "a".into());
        assert_eq!(grant(r#"{"access_token":"b"}"#).token, "b".into());
        assert_eq!(grant(r#"{"token":"a","access_token":""}"#).token, "a".into());
        assert_eq!(grant(r#"{"token":"","access_token":"b"}"#).token, "b".into());
        assert_eq!(grant(r#"{"token":null,"access_token":"b"}"#).token, "b".into());
        assert_eq!(grant(r#"{"token":7,"access_token":"b"}"#).token, "b".into());
        for none in [
            r#"{"token":""}"#,
            "{}",
            "[]",
            "<html>",
            "",
            r#"{"token":"a b"}"#,
            r#"{"token":"a\r\nX: y"}"#,
        ] {
            assert_eq!(read(none.as_bytes(), NOW), None, "{none}");
        }
    }

    #[test]
    fn lifetimes_are_bounded_both_ways() {
        assert_eq!(usable(r#"{"token":"a"}"#), 51);
        assert_eq!(usable(r#"{"token":"a","expires_in":300}"#), 270);
        assert_eq!(usable(r#"{"token":"a","expires_in":"300"}"#), 270);
        assert_eq!(usable(r#"{"token":"a","expires_in":300.7}"#), 270);
        assert_eq!(usable(r#"{"token":"a","expires_in":1e12}"#), 3570);
        for odd in ["0", "-1", "null", "\"soon\"", "[]", "0.5", "\"NaN\""] {
            assert_eq!(usable(&format!(r#"{{"token":"a","expires_in":{odd}}}"#)), 51, "{odd}");
        }
        let short = grant(r#"{"token":"a","expires_in":2}"#);
        assert!(short.usable > Duration::from_secs(1) && short.renew_after < short.usable);
    }

    #[test]
    fn the_moment_of_issue_counts_unless_the_clocks_differ() {
        let at = |seconds: i64, text: &str| {
            let now = Timestamp::from_millis((1_700_000_000 + seconds) * 1000);
            let body = format!(r#"{{"token":"a","expires_in":300,"issued_at":"{text}"}}"#);
            read(body.as_bytes(), now).unwrap().usable.as_secs()
        };
        let issued = "2023-11-14T22:13:20.123456789Z";
        assert_eq!(at(0, issued), 270);
        assert_eq!(at(200, issued), 85);
        assert_eq!(at(295, issued), 270);
        assert_eq!(at(9999, issued), 270);
        assert_eq!(at(-500, issued), 270);
        assert_eq!(at(200, "yesterday"), 270);
    }

    #[test]
    fn moments_are_read() {
        let read = |text| rfc3339(text).map(Timestamp::as_millis);
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("2023-11-14T22:13:20Z"), Some(1_700_000_000_000));
        assert_eq!(read("2023-11-15T00:13:20+02:00"), Some(1_700_000_000_000));
        assert_eq!(read("2024-02-29T00:00:00-00:30"), Some(1_709_166_600_000));
        for bad in [
            "",
            "2023",
            "2023-11-14 22:13",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20",
            "é023-11-14T22:13:20Z",
            "2023-11-14T22:13:20+x",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_grant_prints_no_token() {
        let grant = grant(r#"{"token":"hunter2","refresh_token":"hunter2"}"#);
        assert!(!format!("{grant:?}").contains("hunter2"));
        assert!(grant.refresh_token.is_some());
    }
}
