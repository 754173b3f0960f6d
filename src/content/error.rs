//! What can go wrong here, as decisions for the caller: whichever [`Error`] it is, the pull goes on without the cache. [`OpenError`]
//! ends the start of the program and prints as one line.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::patience::Shortage;
use crate::blobs;
use crate::metadata;

/// A failed operation of an open store.
#[derive(Clone, Debug)]
pub enum Error {
    /// There is no room, or less than is to be left free: pass the content through.
    NoSpace,
    /// The same for who has waited for room, with what he waited for and why in vain.
    NoRoom(Arc<Shortage>),
    /// The digest is being downloaded already.
    Busy,
    /// The disk failed.
    Disk(Arc<io::Error>),
    /// The rows could not be read or written.
    Metadata(metadata::Error),
}

impl Error {
    /// One stable word for logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSpace | Self::NoRoom(_) => "no_space",
            Self::Busy => "busy",
            Self::Disk(_) => "disk",
            Self::Metadata(_) => "metadata",
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if blobs::is_no_space(&error) { Self::NoSpace } else { Self::Disk(Arc::new(error)) }
    }
}

impl From<metadata::Error> for Error {
    fn from(error: metadata::Error) -> Self {
        Self::Metadata(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace => f.write_str("no room in the store"),
            Self::NoRoom(shortage) => write!(f, "no room in the store: {shortage}"),
            Self::Busy => f.write_str("the digest is being stored already"),
            Self::Disk(error) => write!(f, "disk: {error}"),
            Self::Metadata(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Disk(error) => Some(error.as_ref()),
            Self::Metadata(error) => Some(error),
            _ => None,
        }
    }
}

/// Why the store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    Directory(blobs::OpenError),
    Metadata(metadata::OpenError),
}

impl From<blobs::OpenError> for OpenError {
    fn from(error: blobs::OpenError) -> Self {
        Self::Directory(error)
    }
}

impl From<metadata::OpenError> for OpenError {
    /// A database that may not be read or written is a matter of the directory's owner, and has the same cure.
    fn from(error: metadata::OpenError) -> Self {
        match error {
            metadata::OpenError::Io { path, source }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let path = path.parent().map(Path::to_owned).unwrap_or(path);
                Self::Directory(blobs::OpenError::Io { path, source })
            }
            other => Self::Metadata(other),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(error) => fmt::Display::fmt(error, f),
            Self::Metadata(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Directory(error) => Some(error),
            Self::Metadata(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_may_not_be_opened_has_the_cure_of_the_directory() {
        let io = |kind: io::ErrorKind| metadata::OpenError::Io {
            path: "/data/roadstead.db".into(),
            source: kind.into(),
        };
        let denied = OpenError::from(io(io::ErrorKind::PermissionDenied)).to_string();
        assert!(denied.contains("run: chown -R ") && denied.ends_with(" /data"), "{denied}");
        let other = OpenError::from(io(io::ErrorKind::IsADirectory)).to_string();
        assert!(other.starts_with("/data/roadstead.db: "), "{other}");
    }

    #[test]
    fn want_of_room_is_told_from_other_failures() {
        let of = |kind: io::ErrorKind| Error::from(io::Error::from(kind)).reason();
        assert_eq!(of(io::ErrorKind::StorageFull), "no_space");
        assert_eq!(of(io::ErrorKind::QuotaExceeded), "no_space");
        assert_eq!(of(io::ErrorKind::ReadOnlyFilesystem), "disk");
    }
}
