//! When upstream says that it is asked too much (429): who may ask again, and when.
//!
//! What must hold: nobody asks before the time that upstream named is over, or our own back-off where it named none; then one question
//! goes ahead and the others wait for what it finds, so that a storm of clients never becomes a storm upstream; an answer that was under
//! way when the limit came ends no quiet time. Limits are counted per credential and per kind of question, and HEAD apart from GET: Docker
//! Hub counts only the latter, so a pull that may not go on keeps no tag from being confirmed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::error::{Cause, Error};
use super::memory::Asker;
use super::metrics::Kind;
use super::transport::Deadline;

/// An upstream that wants to be left alone for longer is asked again after this.
const QUIET_MAX: Duration = Duration::from_secs(3600);
/// The first quiet time after a limit without a `Retry-After` that can be read; doubled each time until an answer comes.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest of them.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A quiet time that ends this soon is waited for; behind a longer one the question fails at once.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(2);
/// A connection that breaks, or an answer that is no HTTP, this soon after a limit is the limit again: the edges of Docker Hub do both.
const BURST: Duration = Duration::from_secs(5);

/// Questions that upstream counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    kind: Kind,
    asker: Asker,
    head: bool,
}

impl Lane {
    /// Questions that are asked with GET or POST.
    pub(super) fn new(kind: Kind, asker: Asker) -> Self {
        Self { kind, asker, head: false }
    }

    /// The same for this method.
    pub(super) fn with(self, method: &Method) -> Self {
        Self { head: method == Method::HEAD, ..self }
    }
}

/// The limits of one upstream.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    limits: Mutex<HashMap<Lane, Limit>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    /// When upstream last said so.
    told: Instant,
    /// Nobody asks before.
    until: Instant,
    /// The next quiet time of our own.
    pause: Duration,
    /// One question is on its way to see whether the limit is over.
    probing: bool,
}

/// The right to ask one question. Dropping it says nothing of the limit.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    throttle: &'a Throttle,
    lane: Lane,
    probe: bool,
}

enum Next {
    Go {
        probe: bool,
    },
    /// Until the quiet time is over.
    Quiet(Duration),
    /// Until the probe tells.
    Probed,
}

impl Throttle {
    /// Waits for a turn, at most [`WAIT_MAX`].
    ///
    /// # Errors
    /// [`Error::Limited`] with the time that is left.
    pub(super) async fn enter(&self, lane: Lane, deadline: Deadline) -> Result<Turn<'_>, Error> {
        let patience = Deadline::after(deadline.stage(WAIT_MAX));
        loop {
            // Listening begins before the look, so that no change is missed.
            let changed = self.changed.notified();
            let wait = patience.remaining();
            let left = match self.next(lane) {
                Next::Go { probe } => return Ok(Turn { throttle: self, lane, probe }),
                Next::Quiet(left) if left <= wait => left,
                Next::Quiet(left) => return Err(Error::Limited { retry_after: Some(left) }),
                Next::Probed if !wait.is_zero() => wait,
                Next::Probed => return Err(Error::Limited { retry_after: Some(PAUSE_FIRST) }),
            };
            // Either end is a reason to look again.
            drop(timeout(left, changed).await);
        }
    }

    /// Was upstream's word on this kind of question a limit a moment ago, whatever the method? A rude end does not tell.
    pub(super) fn in_burst(&self, lane: Lane) -> bool {
        let limits = self.lock();
        let told = [true, false].map(|head| limits.get(&Lane { head, ..lane }));
        told.iter().flatten().any(|limit| limit.told.elapsed() < BURST)
    }

    /// How long nobody may ask; `None` if somebody may.
    pub(super) fn quiet_for(&self, lane: Lane) -> Option<Duration> {
        let until = self.lock().get(&lane)?.until;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn next(&self, lane: Lane) -> Next {
        let now = Instant::now();
        match self.lock().get_mut(&lane) {
            None => Next::Go { probe: false },
            Some(limit) if now < limit.until => Next::Quiet(limit.until - now),
            Some(limit) if limit.probing => Next::Probed,
            Some(limit) => {
                limit.probing = true;
                Next::Go { probe: true }
            }
        }
    }

    /// No holder of this lock can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, HashMap<Lane, Limit>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Upstream limits us; `wait` is what it asked for, if that could be read.
    pub(super) fn limited(self, wait: Option<Duration>) {
        let now = Instant::now();
        let mut limits = self.throttle.lock();
        let limit = limits.entry(self.lane).or_insert(Limit {
            told: now,
            until: now,
            pause: PAUSE_FIRST,
            probing: false,
        });
        // The answers of one burst are one limit: they do not lengthen the back-off one by one.
        let again = now >= limit.until;
        // "At once" from one who has just refused is a date in the past by our clock, or no care: that is no time to wait.
        let quiet = match wait.filter(|wait| !wait.is_zero()) {
            Some(wait) => wait.min(QUIET_MAX),
            None if again => {
                let pause = limit.pause;
                limit.pause = (pause * 2).min(PAUSE_MAX);
                pause
            }
            None => Duration::ZERO,
        };
        limit.told = now;
        limit.until = limit.until.max(now + quiet);
    }

    /// Upstream gave an answer that is no limit.
    pub(super) fn passed(self) {
        if self.probe {
            self.throttle.lock().remove(&self.lane);
        }
    }

    /// How a question ended. One that got no answer says nothing of the limit, so that the next one finds out.
    pub(super) fn ended(self, error: Option<&Error>, answered: bool) {
        match error {
            Some(Error::Limited { retry_after }) if answered => self.limited(*retry_after),
            Some(Error::Unreachable(_)) if !answered => {}
            _ => self.passed(),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.probe {
            if let Some(limit) = self.throttle.lock().get_mut(&self.lane) {
                limit.probing = false;
            }
            self.throttle.changed.notify_waiters();
        }
    }
}

/// Could this failure be a limit that upstream's edge enforces in a rude way?
pub(super) fn may_be_a_limit(error: &Error) -> bool {
    matches!(error, Error::Unreachable(Cause::Reset | Cause::Other(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: Lane = Lane { kind: Kind::Manifest, asker: Asker::Ours, head: false };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    async fn enter(throttle: &Throttle) -> Result<Turn<'_>, Error> {
        throttle.enter(LANE, Deadline::after(seconds(60))).await
    }

    fn left(error: &Error) -> Duration {
        match error {
            Error::Limited { retry_after: Some(left) } => *left,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_times_pass_and_are_capped() {
        let throttle = Throttle::default();
        enter(&throttle).await.unwrap().limited(Some(seconds(86_400)));
        assert_eq!(left(&enter(&throttle).await.unwrap_err()), QUIET_MAX);
        let others = [
            Lane { asker: Asker::Anonymous, ..LANE },
            Lane { kind: Kind::Blob, ..LANE },
            LANE.with(&Method::HEAD),
        ];
        for lane in others {
            throttle.enter(lane, Deadline::after(seconds(1))).await.unwrap().passed();
        }
        tokio::time::advance(QUIET_MAX).await;
        enter(&throttle).await.unwrap().passed();
        assert!(throttle.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_time_the_pauses_are_our_own_and_an_answer_resets_them() {
        let throttle = Throttle::default();
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            enter(&throttle).await.unwrap().limited(None);
            let until = throttle.lock()[&LANE].until;
            assert_eq!(until - Instant::now(), seconds(pause));
            tokio::time::advance(seconds(pause)).await;
        }
        enter(&throttle).await.unwrap().passed();
        enter(&throttle).await.unwrap().limited(None);
        assert_eq!(throttle.lock()[&LANE].until - Instant::now(), PAUSE_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn at_once_is_no_time_to_wait() {
        let throttle = Throttle::default();
        for pause in [1, 2, 4] {
            enter(&throttle).await.unwrap().limited(Some(Duration::ZERO));
            assert_eq!(throttle.lock()[&LANE].until - Instant::now(), seconds(pause));
            tokio::time::advance(seconds(pause)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_without_an_answer_does_not_end_the_limit() {
        let throttle = Throttle::default();
        enter(&throttle).await.unwrap().limited(Some(seconds(3)));
        tokio::time::advance(seconds(3)).await;
        let silent = Error::Unreachable(Cause::Timeout);
        enter(&throttle).await.unwrap().ended(Some(&silent), false);
        let probe = enter(&throttle).await.unwrap();
        assert!(probe.probe, "the next one goes alone, too");
        probe.ended(Some(&Error::Unreachable(Cause::Status(503))), true);
        assert!(throttle.lock().is_empty(), "an answer that is no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_limits_is_one() {
        let throttle = Throttle::default();
        let (mut turns, mut late) = (Vec::new(), None);
        for _ in 0..20 {
            turns.push(enter(&throttle).await.unwrap());
        }
        late.replace(enter(&throttle).await.unwrap());
        turns.into_iter().for_each(|turn| turn.limited(None));
        assert_eq!(throttle.lock()[&LANE].pause, PAUSE_FIRST * 2);
        late.unwrap().passed();
        assert!(!throttle.lock().is_empty(), "it was on its way before the limit came");
        assert!(throttle.in_burst(LANE) && throttle.in_burst(LANE.with(&Method::HEAD)));
        tokio::time::advance(BURST).await;
        assert!(!throttle.in_burst(LANE));
    }

    #[tokio::test(start_paused = true)]
    async fn one_goes_ahead_and_the_others_wait_for_what_it_finds() {
        let throttle = Throttle::default();
        enter(&throttle).await.unwrap().limited(Some(seconds(1)));
        tokio::time::advance(seconds(1)).await;
        let probe = enter(&throttle).await.unwrap();
        let waited = Instant::now();
        left(&enter(&throttle).await.unwrap_err());
        assert_eq!(waited.elapsed(), WAIT_MAX);
        let (second, ()) = tokio::join!(enter(&throttle), async { probe.passed() });
        second.unwrap().passed();
        // A probe that is dropped makes room for the next.
        enter(&throttle).await.unwrap().limited(Some(seconds(1)));
        tokio::time::advance(seconds(1)).await;
        drop(enter(&throttle).await.unwrap());
        assert!(enter(&throttle).await.unwrap().probe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_quiet_time_is_waited_for() {
        let throttle = Throttle::default();
        enter(&throttle).await.unwrap().limited(Some(seconds(2)));
        let began = Instant::now();
        enter(&throttle).await.unwrap().passed();
        assert!(began.elapsed() >= seconds(2));
    }
}
