//! One of the addresses at which an upstream is asked: who it is, and how it is.
//!
//! An [`Endpoint`] is what answers carry, so that a tag's move can name its source and a wrong body can be blamed on who gave it. What
//! must hold: every question that was let through ends in exactly one word about the endpoint's health, also if its future is dropped;
//! a change of that health is told once, in the log and in the metrics. The rules are in `health.rs`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{Cause, Error};
use super::health::{self, Change, Health, Ticket};
use super::metrics::Meter;
use crate::clock::Clock;
use crate::oci::RegistryName;

/// What an endpoint is to its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// Another roadstead that is asked first for everything.
    Parent,
    /// A copy of the registry.
    Mirror,
    /// The registry itself: the only one whose refusals are decisions.
    Origin,
}

/// One address of an upstream. Cheap to clone; its text is host and port.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    upstream: RegistryName,
    host: String,
    role: Role,
    clock: Arc<dyn Clock>,
    meter: Meter,
    health: Mutex<Health>,
    /// A loop was told.
    loop_told: AtomicBool,
}

/// A question on its way. Dropped without a word, it says nothing about the endpoint.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    endpoint: &'a Endpoint,
    ticket: Option<Ticket>,
}

/// Orders the bodies that went wrong.
static TROUBLES: AtomicU64 = AtomicU64::new(1);

impl Endpoint {
    pub(super) fn new(
        upstream: RegistryName,
        host: String,
        role: Role,
        clock: Arc<dyn Clock>,
        meter: Meter,
    ) -> Self {
        let health = Mutex::new(Health::new(role != Role::Origin));
        let loop_told = AtomicBool::new(false);
        // What was told of the endpoint of before a reload is not true of this one.
        meter.endpoint_unknown();
        Self(Arc::new(Inner { upstream, host, role, clock, meter, health, loop_told }))
    }

    /// Host, with its port if that is not the scheme's own.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Is this the registry itself, whose word on its tags is final?
    pub fn is_origin(&self) -> bool {
        self.0.role == Role::Origin
    }

    pub(super) fn role(&self) -> Role {
        self.0.role
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // The machine's methods leave it whole, so a poisoned lock is still a good state.
        self.0.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn would_admit(&self) -> bool {
        self.health().would_admit(self.0.clock.now())
    }

    pub(super) fn admit(&self) -> Option<Pass<'_>> {
        let ticket = self.health().admit(self.0.clock.now())?;
        Some(Pass { endpoint: self, ticket: Some(ticket) })
    }

    pub(super) fn admit_anyway(&self) -> Pass<'_> {
        let ticket = self.health().admit_anyway();
        Pass { endpoint: self, ticket: Some(ticket) }
    }

    pub(super) fn rank(&self) -> u64 {
        self.health().rank(self.0.clock.now())
    }

    /// The endpoint itself spoke, whatever it said: also a server error comes soon, and may come with one repository of many. A cache whose
    /// registry is gone gives one for what it does not have, and all the rest as ever.
    pub(super) fn spoke(&self) {
        let change = self.health().answered();
        if change == Change::Closed {
            self.0.meter.endpoint_up(true);
            tracing::info!(
                upstream = %self.0.upstream, endpoint = %self,
                "an endpoint of an upstream answers again"
            );
        }
    }

    fn failed(&self, ticket: Ticket, error: &Error) {
        self.0.meter.endpoint_failed(error.reason());
        let change = self.health().failed(ticket, error, self.0.clock.now());
        if let Change::Opened { time } = change {
            self.0.meter.endpoint_up(false);
            tracing::warn!(
                upstream = %self.0.upstream, endpoint = %self, reason = error.reason(),
                for_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                "an endpoint of an upstream does not answer; it is left alone until it does"
            );
        }
    }

    /// The request came back although nobody sent it on to us: this endpoint is ourselves, or leads to us and to nobody else.
    pub(super) fn names_ourselves(&self) {
        if !self.0.loop_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                upstream = %self.0.upstream, endpoint = %self, reason = Cause::Loop.reason(),
                "an endpoint of an upstream leads back here: this roadstead names itself"
            );
        }
    }

    /// A body broke off, stalled, or had another length than it announced.
    pub(super) fn body_broke(&self, error: &Error) {
        self.0.meter.endpoint_failed(error.reason());
        self.health().broke(self.0.clock.now(), next_trouble());
        tracing::debug!(
            upstream = %self.0.upstream, endpoint = %self, reason = error.reason(), "a body broke off"
        );
    }

    /// A body came to its end.
    pub(super) fn body_ended(&self) {
        self.health().whole();
    }

    /// What it gave is not what it was asked for.
    pub(super) fn blamed(&self) {
        self.0.meter.endpoint_failed("digest_mismatch");
        self.health().blamed(self.0.clock.now(), next_trouble());
        tracing::warn!(
            upstream = %self.0.upstream, endpoint = %self,
            "an endpoint of an upstream gave content that is not what its digest says"
        );
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Left alone to its end, it would be told as down for ever.
        let health = self.health.get_mut().unwrap_or_else(PoisonError::into_inner);
        if health.is_open() {
            self.meter.endpoint_unknown();
        }
    }
}

fn next_trouble() -> u64 {
    TROUBLES.fetch_add(1, Ordering::Relaxed)
}

impl Pass<'_> {
    /// The question has ended so.
    pub(super) fn ended<T>(mut self, outcome: &Result<T, Error>) {
        // That it spoke was noted when it did; all other ends say nothing.
        if let Err(error) = outcome
            && health::is_failure(error)
            && let Some(ticket) = self.ticket.take()
        {
            self.endpoint.failed(ticket, error);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.endpoint.health().abandoned(ticket);
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} {:?})", self.0.host, self.0.role)
    }
}

/// Answers can be compared in tests; who gave them is a part of that.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl Eq for Endpoint {}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::upstream::metrics::Metrics;

    #[test]
    fn what_is_no_more_is_not_told_as_down() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let name: RegistryName = "r.example".parse().unwrap();
        let make = || {
            let clock = ManualClock::starting_at(Timestamp::from_millis(1_000_000));
            let meter = metrics.of(&name, "mirror");
            Endpoint::new(name.clone(), "mirror".into(), Role::Mirror, Arc::new(clock), meter)
        };
        let down = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text.lines()
                .any(|line| line.starts_with("upstream_endpoint_up{") && line.ends_with(" 0"))
        };
        let fail = |endpoint: &Endpoint| {
            let refused: Result<(), Error> = Err(Error::Unreachable(Cause::Connect));
            endpoint.admit().unwrap().ended(&refused);
        };
        let before = make();
        fail(&before);
        assert!(down());
        let after = make();
        assert!(!down(), "a reload begins anew");
        fail(&after);
        assert!(down());
        drop(after);
        assert!(!down(), "it is configured no more");
        drop(before);
    }
}
