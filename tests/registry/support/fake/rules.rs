//! Rules: which requests are answered otherwise than usual, and how.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::super::gate::Gate;
use super::Fake;
use super::log::{Entry, Kind, Origin};
use super::message::{Edit, Fault, Framing, Reply};

/// Which requests a rule is for. Starts from a kind and is narrowed.
#[derive(Clone, Debug, Default)]
pub struct When {
    kind: Option<Kind>,
    origin: Option<Origin>,
    method: Option<&'static str>,
    repository: Option<String>,
    reference: Option<String>,
    glob: Option<String>,
    skip: u64,
    times: Option<u64>,
    early: bool,
    range: Option<bool>,
    authorized: Option<bool>,
}

impl When {
    pub fn any() -> Self {
        Self::default()
    }

    pub fn kind(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }

    pub fn manifest() -> Self {
        Self::kind(Kind::Manifest)
    }

    /// Blobs as the registry is asked for them.
    pub fn blob() -> Self {
        Self::kind(Kind::Blob)
    }

    /// Blobs as the store behind a redirect is asked for them.
    pub fn store() -> Self {
        Self::kind(Kind::Store)
    }

    pub fn token() -> Self {
        Self::kind(Kind::Token)
    }

    pub fn at(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    pub fn get(mut self) -> Self {
        self.method = Some("GET");
        self
    }

    pub fn head(mut self) -> Self {
        self.method = Some("HEAD");
        self
    }

    pub fn post(mut self) -> Self {
        self.method = Some("POST");
        self
    }

    pub fn repository(mut self, name: &str) -> Self {
        self.repository = Some(name.to_owned());
        self
    }

    /// A tag or a digest.
    pub fn about(mut self, reference: &str) -> Self {
        self.reference = Some(reference.to_owned());
        self
    }

    /// A path where `*` stands for any text.
    pub fn path(mut self, glob: &str) -> Self {
        self.glob = Some(glob.to_owned());
        self
    }

    /// From the nth matching request on, counted from 1.
    pub fn starting_at(mut self, nth: u64) -> Self {
        self.skip = nth - 1;
        self
    }

    /// At most this many times.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Before the fake looks at credentials. Without this a rule sees only what authentication let through.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Only with, or only without, a `Range` header.
    pub fn ranged(mut self, ranged: bool) -> Self {
        self.range = Some(ranged);
        self
    }

    /// Only with, or only without, an `Authorization` header.
    pub fn authorized(mut self, authorized: bool) -> Self {
        self.authorized = Some(authorized);
        self
    }

    fn fits(&self, entry: &Entry) -> bool {
        let same = |want: &Option<String>, have: &str| want.as_ref().is_none_or(|w| w == have);
        self.kind.is_none_or(|kind| kind == entry.kind)
            && self.origin.is_none_or(|origin| origin == entry.origin)
            && self.method.is_none_or(|method| method == entry.method)
            && same(&self.repository, &entry.repository)
            && same(&self.reference, &entry.reference)
            && self.glob.as_ref().is_none_or(|glob| matches(glob, &entry.path))
            && self.range.is_none_or(|ranged| ranged == entry.header("range").is_some())
            && self.authorized.is_none_or(|wanted| wanted == entry.authorization.is_some())
    }
}

fn matches(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

type Action = Arc<dyn Fn(&Fake) + Send + Sync>;

/// What happens to a request that a rule fits.
#[derive(Clone)]
pub enum Then {
    /// This instead of the usual answer.
    Answer(Box<Reply>),
    /// The usual answer, altered.
    Alter(Vec<Edit>),
    /// The connection ends without a byte: FIN, or RST.
    Drop { reset: bool },
    /// These bytes, and the connection ends.
    Raw(Bytes),
    /// No answer ever; the request hangs until the client goes or the fake stops.
    Hang,
    /// The usual answer, after the gate is open.
    Hold(Gate),
    /// The usual answer, and then this, before the answer goes out.
    Run(Action),
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(reply) => write!(f, "Answer({})", reply.status),
            Self::Alter(edits) => write!(f, "Alter({edits:?})"),
            Self::Drop { reset } => write!(f, "Drop {{ reset: {reset} }}"),
            Self::Raw(bytes) => write!(f, "Raw({bytes:?})"),
            Self::Hang => f.write_str("Hang"),
            Self::Hold(_) => f.write_str("Hold"),
            Self::Run(_) => f.write_str("Run"),
        }
    }
}

impl Then {
    pub fn reply(reply: Reply) -> Self {
        Self::Answer(Box::new(reply))
    }

    /// An OCI error with this status.
    pub fn status(status: u16) -> Self {
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            404 => "NOT_FOUND",
            405 => "UNSUPPORTED",
            429 => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        Self::reply(Reply::error(status, code, "as the test wanted"))
    }

    /// 429 in JSON; `retry_after` as it stands in the header.
    pub fn limited(retry_after: Option<&str>) -> Self {
        let mut reply =
            Reply::error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.");
        if let Some(after) = retry_after {
            reply = reply.with("Retry-After", after);
        }
        Self::reply(reply)
    }

    /// 429 as Docker Hub's abuse limit gives it: text, bare LF, connection closed.
    pub fn limited_with_bare_lf() -> Self {
        Self::Raw(Bytes::from_static(
            b"HTTP/1.1 429 Too Many Requests\nContent-Type: text/plain\nRetry-After: 60\n\
              Connection: close\nContent-Length: 30\n\nToo Many Requests (HAP429).   ",
        ))
    }

    pub fn edit(edit: Edit) -> Self {
        Self::Alter(vec![edit])
    }

    pub fn set(name: &'static str, value: &str) -> Self {
        Self::edit(Edit::Header(name, Some(value.to_owned())))
    }

    pub fn unset(name: &'static str) -> Self {
        Self::edit(Edit::Header(name, None))
    }

    pub fn fault(fault: Fault) -> Self {
        Self::edit(Edit::Fault(fault))
    }

    pub fn gate_at(at: u64, gate: &Gate) -> Self {
        Self::fault(Fault::GateAt(at, gate.clone()))
    }

    pub fn hold(gate: &Gate) -> Self {
        Self::Hold(gate.clone())
    }

    pub fn close_at(at: u64) -> Self {
        Self::fault(Fault::CloseAt(at))
    }

    pub fn reset_at(at: u64) -> Self {
        Self::fault(Fault::ResetAt(at))
    }

    pub fn stall_at(at: u64) -> Self {
        Self::fault(Fault::StallAt(at))
    }

    pub fn corrupt_at(at: u64) -> Self {
        Self::fault(Fault::CorruptAt(at))
    }

    pub fn drip(bytes: u64, every: Duration) -> Self {
        Self::fault(Fault::Drip(bytes, every))
    }

    pub fn chunked() -> Self {
        Self::edit(Edit::Framing(Framing::Chunked))
    }

    /// A chunked body that ends cleanly although bytes are missing.
    pub fn chunked_end_at(at: u64) -> Self {
        Self::Alter(vec![Edit::Framing(Framing::Chunked), Edit::Fault(Fault::EndAt(at))])
    }

    pub fn run(action: impl Fn(&Fake) + Send + Sync + 'static) -> Self {
        Self::Run(Arc::new(action))
    }
}

/// A rule in force. The handle tells how often it was used.
#[derive(Clone, Debug)]
pub struct Rule {
    when: Arc<When>,
    then: Arc<Then>,
    seen: Arc<AtomicU64>,
    used: Arc<AtomicU64>,
}

impl Rule {
    pub fn new(when: When, then: Then) -> Self {
        Self {
            when: Arc::new(when),
            then: Arc::new(then),
            seen: Arc::default(),
            used: Arc::default(),
        }
    }

    /// How many requests got this treatment.
    pub fn hits(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// Fails the test if the rule was never used: a fault that did not happen proves nothing.
    #[track_caller]
    pub fn expect_hit(&self) {
        assert!(self.hits() > 0, "no request met the rule {:?} -> {:?}", self.when, self.then);
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.used, &other.used)
    }

    pub(super) fn take(&self, entry: &Entry, early: bool) -> Option<Then> {
        if self.when.early != early || !self.when.fits(entry) {
            return None;
        }
        let nth = self.seen.fetch_add(1, Ordering::SeqCst);
        let limit = self.when.times.unwrap_or(u64::MAX);
        if nth < self.when.skip || nth - self.when.skip >= limit {
            return None;
        }
        self.used.fetch_add(1, Ordering::SeqCst);
        Some(self.then.as_ref().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(matches("/v2/*/blobs/*", "/v2/a/b/blobs/sha256:0"));
        assert!(matches("/v2/", "/v2/"));
        assert!(!matches("/v2/", "/v2/x"));
        assert!(!matches("/v2/*/blobs/*", "/v2/a/manifests/latest"));
        assert!(!matches("*/latest", "/v2/a/manifests/latest2"));
    }
}
