//! The record of one request: filled while it is answered, written to the log and the metrics when it is over.
//!
//! It is dropped exactly once, when the answer's last byte has left or can no longer leave, whatever became of the request; so there
//! is one line per request, also for those whose client went away. No header, query or credential enters it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::metrics::{Kind, Metrics, Sample};
use super::reply;
use crate::oci::{Digest, Reference, RegistryName, Tag};
use crate::registry::{Outcome, Report, Repository};

/// Where the lines go.
pub(super) const TARGET: &str = "roadstead::access";
/// The reason of a request whose client went away.
const GONE: &str = "client_gone";
/// Of a path that is no route, so much is logged.
const STRANGE_PATH_CHARS_MAX: usize = 120;

#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    client: IpAddr,
    method: Method,
    id: Arc<str>,
    started: Instant,
    kind: Kind,
    upstream: Option<RegistryName>,
    repository: Option<String>,
    reference: Option<What>,
    status: u16,
    outcome: Outcome,
    reason: Option<&'static str>,
    bytes: u64,
    first_byte: Option<Duration>,
}

/// What was asked within the repository.
#[derive(Clone, Debug)]
pub(super) enum What {
    Reference(Reference),
    Revision(Tag, Digest),
    Digest(Digest),
    /// A path that is no route.
    Path(String),
}

impl Record {
    pub(super) fn begin(
        metrics: Arc<Metrics>,
        client: IpAddr,
        method: Method,
        id: Arc<str>,
    ) -> Self {
        Self {
            metrics,
            client,
            method,
            id,
            started: Instant::now(),
            kind: Kind::Other,
            upstream: None,
            repository: None,
            reference: None,
            status: reply::CLIENT_GONE,
            outcome: Outcome::Error,
            reason: Some(GONE),
            bytes: 0,
            first_byte: None,
        }
    }

    pub(super) fn id(&self) -> &Arc<str> {
        &self.id
    }

    pub(super) fn asked(&mut self, kind: Kind, what: Option<What>) {
        self.kind = kind;
        self.reference = what;
    }

    /// Notes a path that is no route: cut, and quoted where it is written.
    pub(super) fn strange(&mut self, path: &str) {
        self.reference = Some(What::Path(path.chars().take(STRANGE_PATH_CHARS_MAX).collect()));
    }

    pub(super) fn located(&mut self, repository: &Repository) {
        self.upstream = Some(repository.upstream().clone());
        self.repository = Some(repository.name().to_string());
    }

    /// The answer's head is ready.
    pub(super) fn answered(
        &mut self,
        status: StatusCode,
        outcome: Outcome,
        reason: Option<&'static str>,
    ) {
        self.status = status.as_u16();
        self.outcome = outcome;
        self.reason = reason;
    }

    pub(super) fn reported(&mut self, status: StatusCode, report: &Report) {
        if report.upstream.is_some() {
            self.upstream.clone_from(&report.upstream);
        }
        self.answered(status, report.outcome, report.reason);
    }

    /// The request went beyond a limit; `limit` is the name of its key.
    pub(super) fn limit_reached(&self, limit: &'static str) {
        self.metrics.limit_reached(limit);
    }

    /// An answer without a body has its first byte now.
    pub(super) fn without_body(&mut self) {
        self.first_byte = Some(self.started.elapsed());
    }

    pub(super) fn sent(&mut self, count: u64) {
        if self.first_byte.is_none() {
            self.first_byte = Some(self.started.elapsed());
        }
        self.bytes += count;
    }

    /// The body cannot be completed: the answer ends before its announced length.
    pub(super) fn cut(&mut self, reason: &'static str) {
        self.outcome = Outcome::Error;
        self.reason = Some(reason);
    }

    /// The client did not take the whole body. That is its right (containerd does it for every chunk) and no error of ours; a body
    /// that was cut before keeps its reason.
    pub(super) fn left(&mut self) {
        if self.outcome != Outcome::Error {
            self.reason = Some(GONE);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let whole = self.started.elapsed();
        self.metrics.finished(&Sample {
            kind: self.kind,
            outcome: self.outcome,
            upstream: self.upstream.as_ref(),
            status: self.status,
            bytes: self.bytes,
            whole,
            first_byte: self.first_byte,
        });
        // Probes every few seconds would drown the rest.
        if matches!(self.kind, Kind::Health | Kind::Metrics)
            || !tracing::enabled!(target: TARGET, tracing::Level::INFO)
        {
            return;
        }
        tracing::info!(
            target: TARGET,
            client = %self.client,
            method = %self.method,
            kind = self.kind.as_str(),
            upstream = self.upstream.as_ref().map(RegistryName::as_str),
            repository = self.repository.as_deref(),
            reference = self.reference.as_ref().map(What::text),
            status = self.status,
            outcome = self.outcome.as_str(),
            reason = self.reason,
            bytes = self.bytes,
            ms = millis(whole),
            first_byte_ms = self.first_byte.map(millis),
            id = &*self.id,
        );
    }
}

impl What {
    fn text(&self) -> String {
        match self {
            Self::Reference(reference) => reference.to_string(),
            Self::Revision(tag, digest) => format!("{tag}/{digest}"),
            Self::Digest(digest) => digest.to_string(),
            Self::Path(path) => {
                let mut text = String::with_capacity(path.len());
                for letter in path.chars() {
                    // What could forge a line or colour a terminal is written in its escaped form.
                    if letter.is_ascii_graphic() {
                        text.push(letter);
                    } else {
                        write!(text, "{}", letter.escape_unicode()).expect("a String takes all");
                    }
                }
                text
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_path_cannot_forge_a_line() {
        let text = What::Path("/a\n b\u{1b}[31m\u{e9}".into()).text();
        assert_eq!(text, "/a\\u{a}\\u{20}b\\u{1b}[31m\\u{e9}");
    }

    #[test]
    fn a_client_that_leaves_hides_no_failure() {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let begin = || {
            Record::begin(
                Arc::clone(&metrics),
                IpAddr::from([127, 0, 0, 1]),
                Method::GET,
                "x".into(),
            )
        };
        let mut record = begin();
        record.answered(reply::OK, Outcome::Miss, None);
        record.cut("digest_mismatch");
        record.left();
        assert_eq!((record.outcome, record.reason), (Outcome::Error, Some("digest_mismatch")));
        let mut record = begin();
        record.answered(reply::OK, Outcome::Hit, None);
        record.left();
        assert_eq!((record.outcome, record.reason), (Outcome::Hit, Some(GONE)));
    }
}
