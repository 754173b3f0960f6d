//! What can go wrong here, as decisions for the caller.
//!
//! [`Error`] is the answer of an open store: whichever it is, the pull goes on without the cache. [`OpenError`] ends the start of
//! the program; each prints as one line that says what to do. `rusqlite::Error` stays inside the room.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ErrorCode;

/// A failed read or write of an open store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Another program holds the database, such as an operator's shell in a transaction.
    Busy,
    /// There is no room on the disk.
    Full,
    /// Anything else, in words for the log.
    Failed(Arc<str>),
}

impl Error {
    /// One stable word for logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Full => "full",
            Self::Failed(_) => "failed",
        }
    }

    pub(super) fn closed() -> Self {
        Self::Failed("the metadata store is closed".into())
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DiskFull) => Self::Full,
            _ => Self::Failed(error.to_string().into()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("the metadata store is locked by another program"),
            Self::Full => f.write_str("no room for the metadata store"),
            Self::Failed(text) => write!(f, "metadata store: {text}"),
        }
    }
}

impl std::error::Error for Error {}

/// Why a database cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// A newer program has written it.
    NewerSchema { path: PathBuf, found: i64, supported: i64 },
    /// A database of another program.
    Foreign { path: PathBuf },
    /// Not a database, or one that cannot be read.
    Damaged { path: PathBuf, reason: String },
    /// The file cannot be read or written.
    Io { path: PathBuf, source: io::Error },
    /// SQLite refuses for another reason, such as a full disk.
    Failed { path: PathBuf, reason: String },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewerSchema { path, found, supported } => write!(
                f,
                "{}: schema version {found} is newer than this program supports ({supported}); run a newer roadstead, or choose \
                 another directory with --data",
                path.display()
            ),
            Self::Foreign { path } => write!(
                f,
                "{}: a database of another program; choose another directory with --data",
                path.display()
            ),
            Self::Damaged { path, reason } => write!(
                f,
                "{}: not a readable database ({reason}); move it away and start again: tags and permissions are learned anew \
                 from the upstreams",
                path.display()
            ),
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Failed { path, reason } => write!(f, "{}: {reason}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_sqlite_become_decisions() {
        let of = |code| {
            Error::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None))
        };
        assert_eq!(of(rusqlite::ffi::SQLITE_FULL), Error::Full);
        assert_eq!(of(rusqlite::ffi::SQLITE_BUSY), Error::Busy);
        assert_eq!(of(rusqlite::ffi::SQLITE_IOERR).reason(), "failed");
        assert_eq!(of(rusqlite::ffi::SQLITE_CORRUPT).reason(), "failed");
    }
}
