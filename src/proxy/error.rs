//! Why the proxy cannot answer. Each variant is a decision for the caller.

use std::fmt;
use std::time::Duration;

use crate::upstream;

#[derive(Clone, Debug)]
pub enum Error {
    /// Upstream says that it does not exist.
    Absent,
    /// Upstream denies, or the operator's rules do; the text is for the client.
    Denied(String),
    /// Upstream may not be asked, and it is not here.
    Offline,
    /// Of a moment of the past: it was not so then, or its bytes are not here any more. The text is for the client.
    NotThen(String),
    Limited {
        retry_after: Option<Duration>,
    },
    /// Upstream cannot be asked or answers junk: a stable word and a text for the client.
    Unreachable {
        reason: &'static str,
        message: String,
    },
    TimedOut,
    /// Too much is under way here; a text for the client.
    Overloaded(String),
    /// The store is in trouble and there was no way around it.
    Store(String),
}

impl Error {
    /// The word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Denied(_) => "denied",
            Self::Offline => "offline",
            Self::NotThen(_) => "not_then",
            Self::Limited { .. } => "limited",
            Self::Unreachable { reason, .. } => reason,
            Self::TimedOut => "timeout",
            Self::Overloaded(_) => "overloaded",
            Self::Store(_) => "store",
        }
    }
}

impl fmt::Display for Error {
    /// For the operator.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("upstream does not have it"),
            Self::Offline => f.write_str("it is not here, and the upstream is not asked (offline)"),
            Self::Denied(text)
            | Self::Overloaded(text)
            | Self::Store(text)
            | Self::NotThen(text)
            | Self::Unreachable { message: text, .. } => f.write_str(text),
            Self::Limited { retry_after: Some(after) } => {
                write!(f, "upstream limits us; it wants {} s of patience", after.as_secs())
            }
            Self::Limited { retry_after: None } => f.write_str("upstream limits us"),
            Self::TimedOut => f.write_str("upstream did not answer in time"),
        }
    }
}

impl From<upstream::Error> for Error {
    fn from(error: upstream::Error) -> Self {
        let reason = error.reason();
        match error {
            upstream::Error::Absent => Self::Absent,
            upstream::Error::Denied => {
                Self::Denied("upstream denies access, or has no such repository".to_owned())
            }
            upstream::Error::Limited { retry_after } => Self::Limited { retry_after },
            upstream::Error::Unreachable(upstream::Cause::Timeout) => Self::TimedOut,
            upstream::Error::Unreachable(cause @ upstream::Cause::Busy) => {
                Self::Overloaded(format!("roadstead is overloaded: {cause}"))
            }
            upstream::Error::Credential(text) => Self::Unreachable {
                reason,
                message: format!("roadstead's own credential for upstream fails: {text}"),
            },
            upstream::Error::Unreachable(cause) => Self::Unreachable {
                reason,
                message: format!("upstream cannot be reached: {cause}"),
            },
            upstream::Error::Junk(what) => Self::Unreachable {
                reason,
                message: format!("upstream's answer makes no sense: {what}"),
            },
            upstream::Error::TooLarge => Self::Unreachable {
                reason,
                message: "upstream's answer exceeds the configured limit".to_owned(),
            },
            upstream::Error::HeadUnusable => {
                Self::Unreachable { reason, message: "upstream refuses to answer HEAD".to_owned() }
            }
        }
    }
}
