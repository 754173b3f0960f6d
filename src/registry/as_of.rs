//! A moment of the past as the first component of a repository's path: `asof-20261101`, `asof-20261101t1200z`, `asof-20261101t120000z`.
//!
//! The component is legal in names of images, so any client can say it. Times are UTC. A date alone is the last moment of that day, because
//! people mean "as it was that day"; a second is its last moment too, because timelines are shown in
//! seconds. Names that only look similar (`asof-org/app`) are ordinary names.

use crate::clock::Timestamp;

const MARK: &str = "asof-";
/// The forms that are wanted, for the client.
pub(super) const FORMS: &str = "want asof-YYYYMMDD (the end of that day), asof-YYYYMMDDtHHMMz or asof-YYYYMMDDtHHMMSSz, in UTC";

/// Does the path begin with a component that means a moment, well written or not?
pub(super) fn is_marked(path: &str) -> bool {
    path.strip_prefix(MARK)
        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// The moment that a path begins with, and the rest of the path. The error is for the client.
pub(super) fn split(path: &str) -> Result<Option<(Timestamp, &str)>, String> {
    if !is_marked(path) {
        return Ok(None);
    }
    let (component, rest) = path.split_once('/').unwrap_or((path, ""));
    let text = &component[MARK.len()..];
    let moment = moment(text).ok_or_else(|| format!("{component:?} is no moment; {FORMS}"))?;
    Ok(Some((moment, rest)))
}

fn moment(text: &str) -> Option<Timestamp> {
    let (date, time) = match text.split_once('t') {
        Some((date, time)) => (date, Some(time.strip_suffix('z')?)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if date.len() != 8 || !digits(date) || !time.is_none_or(digits) {
        return None;
    }
    let time = match time {
        None => "23:59:59.999".to_owned(),
        Some(time) if time.len() == 4 => format!("{}:{}:00", &time[..2], &time[2..]),
        Some(time) if time.len() == 6 => {
            format!("{}:{}:{}.999", &time[..2], &time[2..4], &time[4..])
        }
        Some(_other) => return None,
    };
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    format!("{year}-{month}-{day}T{time}Z").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_in_each_of_its_forms() {
        for (path, time, rest) in [
            ("asof-20261101/docker.io/a", "2026-11-01T23:59:59.999Z", "docker.io/a"),
            ("asof-20261101t1200z/a/b", "2026-11-01T12:00:00Z", "a/b"),
            ("asof-20261101t120005z/a", "2026-11-01T12:00:05.999Z", "a"),
            ("asof-20240229", "2024-02-29T23:59:59.999Z", ""),
        ] {
            assert_eq!(split(path), Ok(Some((time.parse().unwrap(), rest))), "{path}");
        }
    }

    #[test]
    fn what_only_looks_similar_is_a_name() {
        for path in ["asof-org/app", "asof/20261101", "library/asof-20261101", "asof-", ""] {
            assert_eq!(split(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn what_is_no_moment_says_what_is_wanted() {
        for path in [
            "asof-2026/a",
            "asof-20261301/a",
            "asof-20260230/a",
            "asof-20261101t/a",
            "asof-20261101tz/a",
            "asof-20261101t1200/a",
            "asof-20261101t2460z/a",
            "asof-20261101t12z/a",
            "asof-20261101t12000z/a",
            "asof-20261101z/a",
            "asof-2026-11-01/a",
            "asof-20261101t12:00z/a",
            "asof-2026110\u{661}/a",
        ] {
            let error = split(path).unwrap_err();
            assert!(error.contains("asof-YYYYMMDD"), "{path}: {error}");
        }
    }
}
