//! The record of one request: filled while it is answered, written to the log and the metrics when it is over.
//!
//! It is dropped exactly once, when the answer's last byte has left or can no longer leave, whatever became of the request; so there
//! is one line per request, also for those whose client went away. The clock is read at the begin, at the first byte of a body that
//! takes time, and at the end.

use std::net::IpAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::access::{AccessLine, AccessLog, GONE, What};
use super::metrics::{Kind, Metrics, Sample};
use crate::oci::{RegistryName, RepositoryName};
use crate::registry::{Outcome, Report};

/// Of a path that is no route, so much is logged.
const STRANGE_PATH_CHARS_MAX: usize = 120;
/// The same of a method, which may be any token; those that are registered are shorter.
const METHOD_BYTES_MAX: usize = 32;
/// So much of an answer leaves with one write, or is in the socket's buffer soon after.
const ONE_WRITE_BYTES: u64 = 64 << 10;

/// Where records end up.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) metrics: Metrics,
    pub(super) log: AccessLog,
}

#[derive(Debug)]
pub(super) struct Record {
    ledger: Arc<Ledger>,
    started: Instant,
    line: AccessLine,
    /// The first byte leaves with the last one.
    at_once: bool,
}

impl Record {
    pub(super) fn begin(ledger: Arc<Ledger>, client: IpAddr, method: Method, id: Arc<str>) -> Self {
        let started = Instant::now();
        let line = AccessLine::begin(client, shortened(method), id, started);
        Self { ledger, started, line, at_once: false }
    }

    pub(super) fn id(&self) -> &Arc<str> {
        &self.line.id
    }

    pub(super) fn asked(&mut self, kind: Kind, what: Option<What>) {
        self.line.kind = kind;
        self.line.reference = what;
    }

    /// Notes a path that is no route: cut, and quoted where it is written.
    pub(super) fn strange(&mut self, path: &str) {
        let path = path.chars().take(STRANGE_PATH_CHARS_MAX).collect();
        self.line.reference = Some(What::Path(path));
    }

    pub(super) fn located(&mut self, upstream: &RegistryName, name: &RepositoryName) {
        self.line.upstream = Some(upstream.clone());
        self.line.repository = Some(name.clone());
    }

    /// The answer's head is ready.
    pub(super) fn answered(
        &mut self,
        status: StatusCode,
        outcome: Outcome,
        reason: Option<&'static str>,
    ) {
        self.line.status = status.as_u16();
        self.line.outcome = outcome;
        self.line.reason = reason;
    }

    pub(super) fn reported(&mut self, status: StatusCode, report: &Report) {
        // Almost always it is the one that is there already.
        if report.upstream.is_some() && report.upstream != self.line.upstream {
            self.line.upstream.clone_from(&report.upstream);
        }
        self.answered(status, report.outcome, report.reason);
    }

    /// The request went beyond a limit; `limit` is the name of its key.
    pub(super) fn limit_reached(&self, limit: &'static str) {
        self.ledger.metrics.limit_reached(limit);
    }

    /// The body of the answer is in memory, `length` bytes of it. What fits into one write has its first byte when it has its last,
    /// and an answer without a body has both when it is over; that spares a look at the clock.
    pub(super) fn in_memory(&mut self, length: u64) {
        self.at_once = length <= ONE_WRITE_BYTES;
    }

    pub(super) fn sent(&mut self, count: u64) {
        if !self.at_once && self.line.first_byte.is_none() {
            self.line.first_byte = Some(self.started.elapsed());
        }
        self.line.bytes += count;
    }

    /// The client went away before `count` of the bytes that were counted could leave.
    pub(super) fn unsent(&mut self, count: u64) {
        self.line.bytes = self.line.bytes.saturating_sub(count);
        self.left();
    }

    /// The body cannot be completed: the answer ends before its announced length.
    pub(super) fn cut(&mut self, reason: &'static str) {
        self.line.outcome = Outcome::Error;
        self.line.reason = Some(reason);
    }

    /// The client did not take the whole body. That is its right (containerd does it for every chunk) and no error of ours; a body
    /// that was cut before keeps its reason.
    pub(super) fn left(&mut self) {
        self.at_once = false;
        if self.line.outcome != Outcome::Error {
            self.line.reason = Some(GONE);
        }
    }
}

/// The method as far as it is logged.
fn shortened(method: Method) -> Method {
    match method.as_str().as_bytes().get(..METHOD_BYTES_MAX) {
        Some(start) if start.len() < method.as_str().len() => {
            Method::from_bytes(start).expect("a part of a token is a token")
        }
        _ => method,
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let line = &mut self.line;
        line.ended = Instant::now();
        line.whole = line.ended.saturating_duration_since(self.started);
        if self.at_once {
            line.first_byte = Some(line.whole);
        }
        self.ledger.metrics.finished(&Sample {
            kind: line.kind,
            outcome: line.outcome,
            upstream: line.upstream.as_ref(),
            status: line.status,
            bytes: line.bytes,
            whole: line.whole,
            first_byte: line.first_byte,
        });
        // Probes every few seconds would drown the rest.
        if !matches!(line.kind, Kind::Health | Kind::Metrics) && AccessLog::is_enabled() {
            self.ledger.log.send(line.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply;
    use super::*;

    #[test]
    fn a_method_is_logged_as_far_as_it_could_be_one() {
        let logged = |text: &str| {
            let method = Method::from_bytes(text.as_bytes()).unwrap();
            shortened(method).as_str().to_owned()
        };
        for known in ["GET", "HEAD", "UPDATEREDIRECTREF", &"M".repeat(METHOD_BYTES_MAX)] {
            assert_eq!(logged(known), known);
        }
        // A header may be of tens of kilobytes, and all of it a method; lines wait by the thousand.
        assert_eq!(logged(&"M".repeat(60_000)), "M".repeat(METHOD_BYTES_MAX));
    }

    #[test]
    fn a_client_that_leaves_hides_no_failure() {
        let mut registry = prometheus_client::registry::Registry::default();
        let ledger =
            Arc::new(Ledger { metrics: Metrics::new(&mut registry), log: AccessLog::default() });
        let begin = || {
            Record::begin(
                Arc::clone(&ledger),
                IpAddr::from([127, 0, 0, 1]),
                Method::GET,
                "x".into(),
            )
        };
        let outcome = |record: &Record| (record.line.outcome, record.line.reason);
        let mut record = begin();
        record.answered(reply::OK, Outcome::Miss, None);
        record.cut("digest_mismatch");
        record.left();
        assert_eq!(outcome(&record), (Outcome::Error, Some("digest_mismatch")));
        let mut record = begin();
        record.answered(reply::OK, Outcome::Hit, None);
        record.left();
        assert_eq!(outcome(&record), (Outcome::Hit, Some(GONE)));
    }
}
