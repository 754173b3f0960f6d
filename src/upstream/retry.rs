//! When a failed request is tried again, and after what pause.
//!
//! Everything that this room sends is idempotent and is retried only before the first byte of its body went to the caller. What must
//! hold: the number of tries is limited, pauses have full jitter, and no pause is longer than the time that the caller still has.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use super::error::{Cause, Error};
use super::settings::Limits;
use super::transport::Deadline;
use crate::clock::Timestamp;

/// A `Retry-After` up to this is waited for; a longer one is handed to the caller.
const INLINE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Tries {
    left: usize,
    pause: Duration,
    pause_max: Duration,
    /// A kept connection may have been closed by its peer at the very moment of use; that try is not counted.
    fresh_connection: bool,
    /// A connection that breaks on a fresh connection, too, ends it.
    break_once: bool,
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The connection broke before the answer.
    Broken,
    /// A failure that may pass: no connection, 5xx.
    Passing,
    /// 429 with the time to wait, if told.
    Limited(Option<Duration>),
    /// Another try would end the same.
    Lasting,
}

impl Tries {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            left: limits.attempts.saturating_sub(1),
            pause: limits.backoff_first,
            pause_max: limits.backoff_max,
            fresh_connection: true,
            break_once: false,
        }
    }

    /// For HEAD: some registries close the connection on it, and their caller has GET.
    pub(super) fn break_once(&mut self) {
        self.break_once = true;
    }

    /// The pause before the next try; `None` ends it.
    pub(super) fn after(&mut self, trouble: Trouble, deadline: Deadline) -> Option<Duration> {
        let pause = match trouble {
            Trouble::Lasting | Trouble::Limited(None) => return None,
            Trouble::Broken if self.fresh_connection => {
                self.fresh_connection = false;
                return Some(Duration::ZERO);
            }
            Trouble::Broken if self.break_once => return None,
            Trouble::Broken | Trouble::Passing => jittered(self.pause),
            Trouble::Limited(Some(wait)) if wait > INLINE_WAIT_MAX => return None,
            // A little more than asked: the other side's clock ticks differently.
            Trouble::Limited(Some(wait)) => wait + jittered(self.pause),
        };
        if self.left == 0 || pause >= deadline.remaining() {
            return None;
        }
        self.left -= 1;
        self.pause = (self.pause * 2).min(self.pause_max);
        Some(pause)
    }
}

impl Trouble {
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::Unreachable(Cause::Reset) => Self::Broken,
            Error::Unreachable(Cause::Connect) => Self::Passing,
            // A timeout has used up the time; TLS and junk would end the same.
            _ => Self::Lasting,
        }
    }
}

/// Full jitter: anything up to the pause, so that many clients of one failing upstream do not come back together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.0..=1.0))
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); what is neither is absent.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let since_epoch = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let millis = i64::try_from(since_epoch.as_millis()).ok()?;
    Some(Timestamp::from_millis(millis).since(now))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn tries() -> (Tries, Deadline) {
        let tries = Tries::new(&Limits::default());
        (tries, Deadline::after(Duration::from_secs(100)))
    }

    #[tokio::test]
    async fn pauses_grow_and_end() {
        let (mut tries, deadline) = tries();
        assert!(tries.after(Trouble::Passing, deadline).unwrap() <= Duration::from_millis(200));
        assert!(tries.after(Trouble::Passing, deadline).unwrap() <= Duration::from_millis(400));
        assert_eq!(tries.after(Trouble::Passing, deadline), None);
    }

    #[tokio::test]
    async fn a_broken_connection_is_replaced_once_without_counting() {
        let (mut tries, deadline) = tries();
        assert_eq!(tries.after(Trouble::Broken, deadline), Some(Duration::ZERO));
        assert_eq!(tries.left, 2);
        tries.after(Trouble::Broken, deadline).unwrap();
        assert_eq!(tries.left, 1);
    }

    #[tokio::test]
    async fn only_short_limits_are_waited_for() {
        let (mut tries, deadline) = tries();
        let second = Duration::from_secs(1);
        assert!(tries.after(Trouble::Limited(Some(second)), deadline).unwrap() >= second);
        assert_eq!(tries.after(Trouble::Limited(Some(60 * second)), deadline), None);
        assert_eq!(tries.after(Trouble::Limited(None), deadline), None);
        let soon = Deadline::after(Duration::from_millis(10));
        assert_eq!(tries.after(Trouble::Limited(Some(second)), soon), None);
    }

    #[test]
    fn retry_after_in_both_forms() {
        let read = |value: &'static str, now| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            retry_after(&headers, Timestamp::from_millis(now))
        };
        assert_eq!(read("60", 0), Some(Duration::from_secs(60)));
        let date = "Thu, 01 Jan 1970 00:00:30 GMT";
        assert_eq!(read(date, 10_000), Some(Duration::from_secs(20)));
        assert_eq!(read(date, 40_000), Some(Duration::ZERO));
        for junk in ["soon", "-1", "", "1.5"] {
            assert_eq!(read(junk, 0), None, "{junk}");
        }
    }
}
