//! The line that each request leaves in the access log, as plain values, and the way it takes to whoever writes it.
//!
//! A line is made on the hot path and written elsewhere: names are shared, numbers are numbers, and no text is put together before
//! [`AccessLine::describe`]. The macros of `tracing` want the fields named once more, for its events and filters; a test holds them together. No header, query or credential
//! enters a line, and whoever writes it must escape texts: a path that is no route may hold anything.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::metrics::Kind;
use super::reply;
use crate::oci::{Digest, Reference, RegistryName, RepositoryName, Tag};
use crate::registry::Outcome;

/// The target of the lines, by which filters name them.
pub const ACCESS_TARGET: &str = "roadstead::access";
/// The reason of a request whose client went away.
pub(super) const GONE: &str = "client_gone";

/// One finished request.
#[derive(Debug)]
pub struct AccessLine {
    pub(super) client: IpAddr,
    pub(super) method: Method,
    pub(super) kind: Kind,
    pub(super) upstream: Option<RegistryName>,
    pub(super) repository: Option<RepositoryName>,
    pub(super) reference: Option<What>,
    pub(super) status: u16,
    pub(super) outcome: Outcome,
    pub(super) reason: Option<&'static str>,
    pub(super) bytes: u64,
    pub(super) whole: Duration,
    pub(super) first_byte: Option<Duration>,
    pub(super) id: Arc<str>,
    pub(super) ended: Instant,
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

/// Takes the fields of a line one after the other.
pub trait AccessFields {
    fn address(&mut self, name: &'static str, value: IpAddr);
    /// A word without spaces, quotes or control characters, written as it is.
    fn word(&mut self, name: &'static str, value: &str);
    /// A text that may hold anything.
    fn text(&mut self, name: &'static str, value: &str);
    fn number(&mut self, name: &'static str, value: u64);
}

/// Where lines go. Without a taker they are events of `tracing`, which costs several times as much.
#[derive(Clone, Default)]
pub struct AccessLog(Option<Arc<dyn Fn(AccessLine) + Send + Sync>>);

impl AccessLog {
    /// `take` is called on the runtime's workers for each request whose line the log's filter lets through; it must not wait.
    pub fn new(take: impl Fn(AccessLine) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    /// Does anybody want lines? The answer is cached by `tracing` until the filter changes.
    pub(super) fn is_enabled() -> bool {
        // The fields are named because a filter may ask for them; they are those of the event below.
        tracing::event_enabled!(
            target: ACCESS_TARGET,
            tracing::Level::INFO,
            client, method, kind, upstream, repository, reference, status, outcome, reason, bytes, ms, first_byte_ms, id
        )
    }

    /// Sends a line on its way. To be asked first: [`AccessLog::is_enabled`].
    pub(super) fn send(&self, line: AccessLine) {
        match &self.0 {
            Some(take) => take(line),
            None => line.tell(),
        }
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "AccessLog" } else { "AccessLog(events)" })
    }
}

impl AccessLine {
    /// The line of a request that has just begun: if nothing more becomes known of it, its client went away.
    pub(super) fn begin(client: IpAddr, method: Method, id: Arc<str>, now: Instant) -> Self {
        Self {
            client,
            method,
            kind: Kind::Other,
            upstream: None,
            repository: None,
            reference: None,
            status: reply::CLIENT_GONE,
            outcome: Outcome::Error,
            reason: Some(GONE),
            bytes: 0,
            whole: Duration::ZERO,
            first_byte: None,
            id,
            ended: now,
        }
    }

    /// Takes the line out of a record that is over.
    pub(super) fn take(&mut self) -> Self {
        Self {
            client: self.client,
            method: std::mem::take(&mut self.method),
            kind: self.kind,
            upstream: self.upstream.take(),
            repository: self.repository.take(),
            reference: self.reference.take(),
            status: self.status,
            outcome: self.outcome,
            reason: self.reason,
            bytes: self.bytes,
            whole: self.whole,
            first_byte: self.first_byte,
            id: Arc::clone(&self.id),
            ended: self.ended,
        }
    }

    /// When the request was over.
    pub fn ended(&self) -> Instant {
        self.ended
    }

    /// Bytes that the line holds outside of itself and alone, about.
    pub fn heap_bytes(&self) -> usize {
        let name = self.repository.as_ref().map_or(0, |name| name.as_str().len());
        let reference = match &self.reference {
            Some(What::Path(path)) => path.len(),
            Some(What::Reference(Reference::Tag(tag)) | What::Revision(tag, _)) => {
                tag.as_str().len()
            }
            Some(What::Reference(Reference::Digest(_)) | What::Digest(_)) | None => 0,
        };
        self.method.as_str().len() + name + reference + self.id.len()
    }

    /// Hands over all fields in their order; those that do not apply are left out.
    pub fn describe(&self, fields: &mut impl AccessFields) {
        fields.address("client", self.client);
        fields.word("method", self.method.as_str());
        fields.text("kind", self.kind.as_str());
        if let Some(upstream) = &self.upstream {
            fields.text("upstream", upstream.as_str());
        }
        if let Some(repository) = &self.repository {
            fields.text("repository", repository.as_str());
        }
        match &self.reference {
            Some(What::Reference(Reference::Tag(tag))) => fields.text("reference", tag.as_str()),
            Some(what) => fields.text("reference", &what.text()),
            None => {}
        }
        fields.number("status", self.status.into());
        fields.text("outcome", self.outcome.as_str());
        if let Some(reason) = self.reason {
            fields.text("reason", reason);
        }
        fields.number("bytes", self.bytes);
        fields.number("ms", millis(self.whole));
        if let Some(first_byte) = self.first_byte {
            fields.number("first_byte_ms", millis(first_byte));
        }
        fields.text("id", &self.id);
    }

    /// The line as an event.
    pub(crate) fn tell(&self) {
        tracing::info!(
            target: ACCESS_TARGET,
            client = %self.client,
            method = %self.method,
            kind = self.kind.as_str(),
            upstream = self.upstream.as_ref().map(RegistryName::as_str),
            repository = self.repository.as_ref().map(RepositoryName::as_str),
            reference = self.reference.as_ref().map(What::text),
            status = self.status,
            outcome = self.outcome.as_str(),
            reason = self.reason,
            bytes = self.bytes,
            ms = millis(self.whole),
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
impl AccessLine {
    /// Lines of all shapes: the first has all fields, the second none that may be left out.
    pub(crate) fn examples() -> Vec<Self> {
        let begin = |client: &str, method, id: &str| {
            Self::begin(client.parse().unwrap(), method, id.into(), Instant::now())
        };
        let mut full = begin("10.0.0.7", Method::GET, "0ae67463-1");
        full.kind = Kind::Manifest;
        full.upstream = Some("ghcr.io".parse().unwrap());
        full.repository = Some("team/app".parse().unwrap());
        full.reference = Some(What::Reference("v1.2".parse().unwrap()));
        (full.status, full.outcome, full.reason) = (200, Outcome::Hit, Some("limited"));
        (full.bytes, full.whole) = (1692, Duration::from_micros(1_500_999));
        full.first_byte = Some(Duration::from_millis(3));
        let bare = begin("::1", Method::HEAD, "0ae67463-2");
        let digest = Digest::sha256_of(b"content");
        let others = [
            What::Reference(Reference::Digest(digest)),
            What::Revision("v1".parse().unwrap(), digest),
            What::Digest(Digest::of(crate::oci::Algorithm::Sha512, b"content")),
            What::Path("/v2/\"\\\n\u{1b}[31m\u{202e}".to_owned()),
        ];
        let with = |what| {
            let mut line = begin("fe80::1:2", Method::from_bytes(b"M-SEARCH").unwrap(), "x");
            line.reference = Some(what);
            (line.reason, line.bytes) = (None, u64::MAX);
            line
        };
        [full, bare].into_iter().chain(others.map(with)).collect()
    }

    /// A line with whatever a client or a mistake may put into it.
    pub(crate) fn odd(path: &str, id: &str, (status, bytes, micros): (u16, u64, u64)) -> Self {
        let mut line = Self::begin([127, 0, 0, 1].into(), Method::GET, id.into(), Instant::now());
        line.reference = Some(What::Path(path.to_owned()));
        (line.status, line.bytes) = (status, bytes);
        line.whole = Duration::from_micros(micros);
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_client_makes_long_counts_as_memory() {
        let method = |length| Method::from_bytes(&vec![b'M'; length]).unwrap();
        let line = |method, path: &str| {
            let client = IpAddr::from([127, 0, 0, 1]);
            let mut line = AccessLine::begin(client, method, "x".into(), Instant::now());
            line.reference = Some(What::Path(path.to_owned()));
            line.heap_bytes()
        };
        assert_eq!(line(method(60_000), "") - line(method(1), ""), 59_999);
        assert_eq!(line(method(1), &"p".repeat(400)) - line(method(1), ""), 400);
    }

    #[test]
    fn a_strange_path_cannot_forge_a_line() {
        let text = What::Path("/a\n b\u{1b}[31m\u{e9}".into()).text();
        assert_eq!(text, "/a\\u{a}\\u{20}b\\u{1b}[31m\\u{e9}");
    }
}
