//! Is an endpoint worth asking? A breaker that real traffic moves, and the memory of bodies that went wrong.
//!
//! Pure: events and times in, answers out. What must hold: nothing is ever probed; failures that were under way together count once, or
//! one moment of trouble under load would look like many; one answer closes the breaker; while it is open one question at a time is let
//! through when its time is over; a clock that was set back closes it. A body that broke, or that was not what its digest says, opens no
//! breaker: it puts the endpoint behind the others for a while where there are others.

use std::time::Duration;

use super::error::{Cause, Error};
use crate::clock::Timestamp;

/// Questions in a row that fail before a registry itself is left alone.
pub(super) const BREAKER_FAILURES: u32 = 3;
/// For so long it is left alone at first; doubled each time that it fails again.
pub(super) const BREAKER_OPEN: Duration = Duration::from_secs(1);
/// The longest time for which it is left alone.
pub(super) const BREAKER_OPEN_MAX: Duration = Duration::from_secs(15);
/// An endpoint whose content was wrong stands behind the others for so long at first.
pub(super) const BLAMED: Duration = Duration::from_secs(60);
/// The longest time of that.
pub(super) const BLAMED_MAX: Duration = Duration::from_secs(600);

/// The state of one endpoint.
#[derive(Debug)]
pub(super) struct Health {
    /// Is there another way to what this endpoint has? Then one failure without an answer is enough.
    spare: bool,
    failures: u32,
    /// Grows with every answer and with every failure that counts: what began before it is part of it.
    epoch: u64,
    open: Option<Open>,
    open_for: Duration,
    aside: Option<Aside>,
    aside_for: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    since: Timestamp,
    until: Timestamp,
    /// A question was let through then, and has not ended.
    trial: Option<Timestamp>,
}

/// Bodies from here went wrong.
#[derive(Clone, Copy, Debug)]
struct Aside {
    since: Timestamp,
    until: Timestamp,
    /// Grows with every such event of the process: who went wrong last stands last.
    order: u64,
    /// The content was wrong, which a later body cannot excuse.
    blamed: bool,
}

/// A question that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    epoch: u64,
    trial: bool,
}

/// What an event changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// From now on it is left alone.
    Opened {
        time: Duration,
    },
    /// It is asked again.
    Closed,
}

impl Health {
    pub(super) fn new(spare: bool) -> Self {
        Self {
            spare,
            failures: 0,
            epoch: 0,
            open: None,
            open_for: BREAKER_OPEN,
            aside: None,
            aside_for: BREAKER_OPEN,
        }
    }

    /// Would a question be let through now?
    pub(super) fn would_admit(&self, now: Timestamp) -> bool {
        // A trial that takes long may have met the one thing that hangs; the next one is not held up by it.
        let free = |began| now < began || now.since(began) >= BREAKER_OPEN;
        self.open.is_none_or(|open| open.is_over(now) && open.trial.is_none_or(free))
    }

    /// Has it failed so lately that it is left alone, or was when it was last asked?
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Lets a question through, or not. Its end must be told: [`Health::answered`], [`Health::failed`] or [`Health::abandoned`].
    pub(super) fn admit(&mut self, now: Timestamp) -> Option<Ticket> {
        if !self.would_admit(now) {
            return None;
        }
        if let Some(open) = &mut self.open {
            open.trial = Some(now);
        }
        Some(Ticket { epoch: self.epoch, trial: self.open.is_some() })
    }

    /// Lets a question through whatever the breaker says.
    pub(super) fn admit_anyway(&self) -> Ticket {
        Ticket { epoch: self.epoch, trial: false }
    }

    /// It gave an answer, whatever that says. Questions under way that fail all the same have failed behind it: at a store that it
    /// redirects to, at its token service, or within the answer.
    pub(super) fn answered(&mut self) -> Change {
        self.epoch += 1;
        self.failures = 0;
        self.open_for = BREAKER_OPEN;
        match self.open.take() {
            Some(_open) => Change::Closed,
            None => Change::None,
        }
    }

    /// A question got no answer.
    pub(super) fn failed(&mut self, ticket: Ticket, error: &Error, now: Timestamp) -> Change {
        if ticket.epoch != self.epoch {
            return Change::None;
        }
        let Some(tolerance) = self.tolerance(error) else {
            self.abandoned(ticket);
            return Change::None;
        };
        self.epoch += 1;
        self.failures = self.failures.saturating_add(1);
        if self.open.is_some() {
            // What was let through failed as well.
            self.open_for = (self.open_for * 2).min(BREAKER_OPEN_MAX);
            self.open = Some(Open::from(now, self.open_for));
            return Change::None;
        }
        if self.failures < tolerance {
            return Change::None;
        }
        self.open = Some(Open::from(now, self.open_for));
        Change::Opened { time: self.open_for }
    }

    /// A question was given up by those who asked it.
    pub(super) fn abandoned(&mut self, ticket: Ticket) {
        if let Some(open) =
            self.open.as_mut().filter(|_| ticket.trial && ticket.epoch == self.epoch)
        {
            open.trial = None;
        }
    }

    /// How many such failures in a row are enough. A registry is not left alone for broken connections: they cost little, may come with
    /// one repository of many, and there is no other way to the rest.
    fn tolerance(&self, error: &Error) -> Option<u32> {
        let silent =
            matches!(error, Error::Unreachable(Cause::Connect | Cause::Tls | Cause::Timeout));
        match (self.spare, silent) {
            (true, true) => Some(1),
            (true, false) | (false, true) => Some(BREAKER_FAILURES),
            (false, false) => None,
        }
    }

    /// A body broke off. `order` is larger than that of any such event before.
    pub(super) fn broke(&mut self, now: Timestamp, order: u64) {
        let blamed = self.aside.is_some_and(|aside| aside.blamed && !aside.is_over(now));
        if blamed {
            return;
        }
        self.put_aside(now, order, false, BREAKER_OPEN, BREAKER_OPEN_MAX);
    }

    /// A body was not what its digest says.
    pub(super) fn blamed(&mut self, now: Timestamp, order: u64) {
        self.put_aside(now, order, true, BLAMED, BLAMED_MAX);
    }

    fn put_aside(
        &mut self,
        now: Timestamp,
        order: u64,
        blamed: bool,
        first: Duration,
        most: Duration,
    ) {
        self.aside_for = match self.aside {
            Some(_again) => (self.aside_for * 2).clamp(first, most),
            None => first,
        };
        self.aside = Some(Aside { since: now, until: now.plus(self.aside_for), order, blamed });
    }

    /// A body came to its end.
    pub(super) fn whole(&mut self) {
        if self.aside.is_some_and(|aside| !aside.blamed) {
            self.aside = None;
        }
    }

    /// Where it stands among the endpoints that may give a body: those that gave no trouble lately first.
    pub(super) fn rank(&self, now: Timestamp) -> u64 {
        self.aside.filter(|aside| !aside.is_over(now)).map_or(0, |aside| aside.order)
    }
}

impl Open {
    fn from(now: Timestamp, time: Duration) -> Self {
        Self { since: now, until: now.plus(time), trial: None }
    }

    fn is_over(self, now: Timestamp) -> bool {
        now < self.since || now >= self.until
    }
}

impl Aside {
    fn is_over(self, now: Timestamp) -> bool {
        now < self.since || now >= self.until
    }
}

/// Does this end of a question say that the endpoint itself cannot be asked? A refusal, a limit and an odd answer are answers; that all
/// our places are taken, that the request came back to us, or that it was not let through says nothing about the other side.
pub(super) fn is_failure(error: &Error) -> bool {
    match error {
        Error::Unreachable(cause) => match cause {
            Cause::Connect | Cause::Tls | Cause::Timeout | Cause::Reset | Cause::Other(_) => true,
            // For the count of failures; that it spoke was noted before.
            Cause::Status(status) => *status >= 500,
            Cause::Loop | Cause::Busy | Cause::Breaker => false,
        },
        Error::Absent
        | Error::Denied
        | Error::Credential(_)
        | Error::Limited { .. }
        | Error::Junk(_)
        | Error::TooLarge
        | Error::HeadUnusable => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_000_000);
    const REFUSED: Error = Error::Unreachable(Cause::Connect);
    const BROKEN: Error = Error::Unreachable(Cause::Reset);

    fn after(millis: u64) -> Timestamp {
        START.plus(Duration::from_millis(millis))
    }

    fn fail(health: &mut Health, error: &Error, now: Timestamp) -> Change {
        let ticket = health.admit(now).expect("it is let through");
        health.failed(ticket, error, now)
    }

    #[test]
    fn a_registry_is_left_alone_after_three_failures_in_a_row() {
        let mut health = Health::new(false);
        assert_eq!(fail(&mut health, &REFUSED, START), Change::None);
        assert_eq!(fail(&mut health, &REFUSED, START), Change::None);
        assert_eq!(health.answered(), Change::None);
        for _ in 1..BREAKER_FAILURES {
            assert_eq!(fail(&mut health, &REFUSED, START), Change::None);
        }
        let opened = fail(&mut health, &REFUSED, START);
        assert_eq!(opened, Change::Opened { time: BREAKER_OPEN });
        assert!(health.admit(after(999)).is_none());
    }

    #[test]
    fn a_mirror_that_does_not_answer_is_left_alone_at_once() {
        let mut health = Health::new(true);
        assert_eq!(fail(&mut health, &BROKEN, START), Change::None);
        assert!(matches!(fail(&mut health, &REFUSED, START), Change::Opened { .. }));
    }

    #[test]
    fn broken_connections_close_no_registry() {
        let mut health = Health::new(false);
        for _ in 0..10 {
            assert_eq!(fail(&mut health, &BROKEN, START), Change::None);
        }
        let mut mirror = Health::new(true);
        for _ in 1..BREAKER_FAILURES {
            assert_eq!(fail(&mut mirror, &BROKEN, START), Change::None);
        }
        assert!(matches!(fail(&mut mirror, &BROKEN, START), Change::Opened { .. }));
    }

    #[test]
    fn a_trial_that_hangs_holds_nobody_up() {
        let mut health = Health::new(false);
        for _ in 0..BREAKER_FAILURES {
            fail(&mut health, &REFUSED, START);
        }
        health.admit(after(1000)).expect("its time is over");
        assert!(health.admit(after(1999)).is_none());
        assert!(health.admit(after(2000)).is_some());
        assert_eq!(health.answered(), Change::Closed);
    }

    #[test]
    fn failures_at_the_same_time_count_once() {
        let mut health = Health::new(false);
        let tickets: Vec<Ticket> = (0..64).map(|_| health.admit(START).unwrap()).collect();
        for ticket in tickets {
            assert_eq!(health.failed(ticket, &REFUSED, START), Change::None);
        }
        assert!(health.would_admit(START));
    }

    #[test]
    fn what_fails_behind_an_answer_does_not_count() {
        let mut health = Health::new(true);
        let ticket = health.admit(START).unwrap();
        health.answered();
        assert_eq!(health.failed(ticket, &REFUSED, START), Change::None);
        assert!(health.would_admit(START));
    }

    #[test]
    fn one_question_at_a_time_tries_whether_it_is_back() {
        let mut health = Health::new(true);
        fail(&mut health, &REFUSED, START);
        let trial = health.admit(after(1000)).expect("its time is over");
        assert!(health.admit(after(1000)).is_none(), "one is enough");
        health.abandoned(trial);
        let trial = health.admit(after(1000)).expect("nobody tries any more");
        assert_eq!(health.failed(trial, &REFUSED, after(1000)), Change::None);
        assert!(health.admit(after(2999)).is_none(), "twice as long");
        let trial = health.admit(after(3000));
        assert!(trial.is_some());
        assert_eq!(health.answered(), Change::Closed);
        assert!(health.admit(after(3000)).is_some() && health.admit(after(3000)).is_some());
        fail(&mut health, &REFUSED, after(4000));
        assert!(health.would_admit(after(5000)), "it begins anew with a short time");
    }

    #[test]
    fn the_times_grow_to_a_limit() {
        let mut health = Health::new(true);
        let mut now = START;
        for want in [1, 2, 4, 8, 15, 15] {
            fail(&mut health, &REFUSED, now);
            let want = Duration::from_secs(want);
            assert!(!health.would_admit(now.plus(want - Duration::from_millis(1))));
            now = now.plus(want);
            assert!(health.would_admit(now));
        }
    }

    #[test]
    fn a_clock_that_was_set_back_closes_it() {
        let mut health = Health::new(true);
        fail(&mut health, &REFUSED, START);
        health.broke(START, 1);
        assert!(!health.would_admit(START) && health.rank(START) == 1);
        let before = Timestamp::from_millis(START.as_millis() - 1);
        assert!(health.would_admit(before) && health.rank(before) == 0);
    }

    #[test]
    fn a_late_failure_of_before_is_no_second_one() {
        let mut health = Health::new(true);
        let late = health.admit(START).unwrap();
        fail(&mut health, &REFUSED, START);
        let trial = health.admit(after(1000)).unwrap();
        assert_eq!(health.failed(late, &REFUSED, after(1000)), Change::None);
        health.abandoned(late);
        assert!(!health.would_admit(after(1000)), "the trial is still under way");
        health.abandoned(trial);
        assert!(health.would_admit(after(1000)));
    }

    #[test]
    fn who_broke_last_stands_last_until_a_body_is_whole() {
        let (mut one, mut other) = (Health::new(true), Health::new(false));
        one.broke(START, 1);
        assert!(one.rank(START) > other.rank(START));
        other.broke(START, 2);
        assert!(one.rank(START) < other.rank(START));
        assert_eq!(one.rank(after(1000)), 0);
        one.broke(after(1000), 3);
        assert_eq!(one.rank(after(2999)), 3, "twice as long");
        one.whole();
        assert_eq!(one.rank(after(1001)), 0);
        assert!(one.would_admit(after(1001)), "no breaker");
    }

    #[test]
    fn wrong_content_is_not_excused_by_the_next_body() {
        let mut health = Health::new(true);
        health.blamed(START, 1);
        health.whole();
        health.broke(after(10), 2);
        assert_eq!(health.rank(after(59_999)), 1);
        assert_eq!(health.rank(after(60_000)), 0);
        health.blamed(after(60_000), 3);
        assert_eq!(health.rank(after(179_999)), 3, "twice as long");
    }

    #[test]
    fn only_silence_and_server_errors_are_failures() {
        for failure in [REFUSED, BROKEN, Error::Unreachable(Cause::Status(503))] {
            assert!(is_failure(&failure), "{failure}");
        }
        let answers = [
            Error::Absent,
            Error::Denied,
            Error::Limited { retry_after: None },
            Error::credential("x"),
            Error::Junk("x"),
            Error::Unreachable(Cause::Status(403)),
            Error::Unreachable(Cause::Loop),
            Error::Unreachable(Cause::Busy),
            Error::Unreachable(Cause::Breaker),
        ];
        for answer in answers {
            assert!(!is_failure(&answer), "{answer}");
        }
    }
}
