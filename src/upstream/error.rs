//! What can go wrong with an upstream, as decisions for the caller.
//!
//! [`Error`] says what to do: obey (absent, denied), or bridge with what is stored (all others). [`BuildError`] is for the start and for
//! a reload. The texts name hosts and settings, never a URL with a query, a token or a password.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why an upstream did not give what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Upstream does not have it: a real 404 (or 410) of the registry.
    Absent,
    /// Upstream's decision: 401 or 403 although the token service accepted our credential, or our anonymity. Missing and private look
    /// alike at Docker Hub, Quay and GHCR, so this may also mean that it does not exist.
    Denied,
    /// Our own trouble, to be bridged and to be loud about: an expired or wrong credential, a realm that may not have it, a token
    /// service that fails.
    Credential(Arc<str>),
    /// 429. The time is what upstream asked for, if it said.
    Limited { retry_after: Option<Duration> },
    /// Upstream cannot be asked now.
    Unreachable(Cause),
    /// An answer that no registry gives: an HTML page, a wrong range, an encoded body, a bad redirect. Bridged like an outage.
    Junk(&'static str),
    /// Larger than the configured limit.
    TooLarge,
    /// HEAD was refused where GET may work; the caller does one GET.
    HeadUnusable,
}

/// Why an upstream is unreachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection: refused, no route, or the name does not resolve.
    Connect,
    /// The TLS handshake failed: an unknown authority, an expired certificate, a wrong name.
    Tls,
    /// A stage took longer than its limit.
    Timeout,
    /// The connection broke before the answer or within its body.
    Reset,
    /// An HTTP status that is no answer to the question.
    Status(u16),
    /// The request came back to ourselves (508).
    Loop,
    /// All the places that we have for this upstream are taken: we are overloaded, not it.
    Busy,
    /// It failed so lately that it is left alone for a moment.
    Breaker,
    Other(Arc<str>),
}

/// Why an upstream cannot be set up; the text is one line that names the setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// `url` is no http or https URL with a host and without user, password, query or fragment.
    Url { reason: &'static str },
    /// `ca_file` cannot be read or holds no certificate.
    CaFile { path: PathBuf, reason: String },
    /// `proxy` is no http or https URL.
    Proxy,
    /// The id of this instance does not fit into a header.
    InstanceId,
}

impl Error {
    /// One stable word for logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Denied => "denied",
            Self::Credential(_) => "credential",
            Self::Limited { .. } => "limited",
            Self::Unreachable(cause) => cause.reason(),
            Self::Junk(_) => "junk",
            Self::TooLarge => "too_large",
            Self::HeadUnusable => "head_unusable",
        }
    }

    /// Has upstream decided? All others are to be bridged.
    pub fn is_decision(&self) -> bool {
        matches!(self, Self::Absent | Self::Denied)
    }

    pub(super) fn credential(message: impl Into<Arc<str>>) -> Self {
        Self::Credential(message.into())
    }
}

impl Cause {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Status(_) => "status",
            Self::Loop => "loop",
            Self::Busy => "overloaded",
            Self::Breaker => "breaker",
            Self::Other(_) => "unreachable",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not found upstream"),
            Self::Denied => f.write_str("denied by upstream, or not there"),
            Self::Credential(message) => f.write_str(message),
            Self::Limited { retry_after: Some(wait) } => {
                write!(f, "rate limited by upstream for {} s", wait.as_secs())
            }
            Self::Limited { retry_after: None } => f.write_str("rate limited by upstream"),
            Self::Unreachable(cause) => write!(f, "upstream cannot be asked: {cause}"),
            Self::Junk(what) => write!(f, "upstream gave no registry answer: {what}"),
            Self::TooLarge => f.write_str("upstream's answer is larger than the limit"),
            Self::HeadUnusable => f.write_str("upstream refuses HEAD"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => {
                f.write_str("no connection (refused, no route, or the name does not resolve)")
            }
            Self::Tls => f.write_str("TLS failed"),
            Self::Timeout => f.write_str("timed out"),
            Self::Reset => f.write_str("the connection broke"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Loop => f.write_str(
                "the request came back here: the url, a mirror or the parent of this roadstead names itself",
            ),
            Self::Busy => f.write_str("too many requests to it are under way"),
            Self::Breaker => {
                f.write_str("it failed several times in a row and is left alone for a moment")
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { reason } => write!(f, "url: {reason}"),
            Self::CaFile { path, reason } => {
                write!(f, "ca_file {}: {reason}", path.display())
            }
            Self::Proxy => f.write_str("proxy: not an http or https URL"),
            Self::InstanceId => f.write_str("the instance id is no text for a header"),
        }
    }
}

impl std::error::Error for Error {}
impl std::error::Error for BuildError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_one_word() {
        let errors = [
            Error::Absent,
            Error::Denied,
            Error::credential("x"),
            Error::Limited { retry_after: None },
            Error::Unreachable(Cause::Connect),
            Error::Unreachable(Cause::Tls),
            Error::Unreachable(Cause::Timeout),
            Error::Unreachable(Cause::Reset),
            Error::Unreachable(Cause::Status(503)),
            Error::Unreachable(Cause::Loop),
            Error::Unreachable(Cause::Busy),
            Error::Unreachable(Cause::Breaker),
            Error::Unreachable(Cause::Other("x".into())),
            Error::Junk("x"),
            Error::TooLarge,
            Error::HeadUnusable,
        ];
        let mut words: Vec<_> = errors.iter().map(Error::reason).collect();
        assert!(words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), errors.len());
    }
}
