//! Why a request is refused, in domain terms. Status codes exist only in the server's reply table.

use std::time::Duration;

use super::reply::Report;

/// A refusal: what the client is told and what the log says.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub error: Error,
    pub report: Report,
}

/// Each variant is a decision for the caller. The message texts are public: they reach clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The registry that the client named is not configured.
    UnknownRegistry {
        name: String,
    },
    NameInvalid {
        message: String,
    },
    /// The request came to us from ourselves (RFC 5842, 508).
    Loop,
    /// Upstream has no such repository, or does not tell.
    RepositoryAbsent,
    ManifestAbsent,
    BlobAbsent,
    /// Nothing of that name is known here; upstream was not asked.
    NotStored,
    /// Not here, and upstream may not be asked.
    OfflineMiss,
    /// It was not so at the moment that was asked for, or is not here any more; the message says which.
    NotThen {
        message: String,
    },
    /// Upstream denies, or the operator's rules do; the message says which.
    Denied {
        message: String,
    },
    /// Upstream limits us.
    Limited {
        retry_after: Option<Duration>,
    },
    /// Upstream cannot be asked, or answers junk; the message says how.
    Unreachable {
        message: String,
    },
    /// Upstream did not answer within the time that a client will wait.
    TimedOut,
    /// Too much is under way here; another host may have a place.
    Overloaded {
        message: String,
    },
    /// Our own trouble.
    Internal {
        message: String,
    },
}
