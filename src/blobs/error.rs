//! Why a data directory cannot be used. Operations on an open store report plain [`io::Error`]s.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Each variant prints as one line that says what to do.
#[derive(Debug)]
pub enum OpenError {
    /// Another process works on the directory.
    Held {
        directory: PathBuf,
        /// As that process wrote it into `LOCK`; `None` if it has not yet.
        pid: Option<u32>,
    },
    /// The directory holds files and none of them is ours.
    Foreign {
        directory: PathBuf,
        /// One of the files, as an example.
        example: String,
    },
    NetworkFileSystem {
        directory: PathBuf,
        kind: &'static str,
    },
    /// Parts of the directory are on different file systems, between which nothing can be renamed.
    Split {
        directory: PathBuf,
        part: PathBuf,
    },
    Io {
        /// The path that the failing operation was about.
        path: PathBuf,
        source: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { directory, pid } => {
                let directory = directory.display();
                write!(f, "data directory {directory} is in use by ")?;
                match pid {
                    Some(pid) => write!(f, "the process with pid {pid}")?,
                    None => f.write_str("another process")?,
                }
                f.write_str("; stop it, or choose another directory with --data")
            }
            Self::Foreign { directory, example } => write!(
                f,
                "data directory {} is not empty and not a roadstead store (it holds {example:?}); choose an empty directory \
                 with --data",
                directory.display()
            ),
            Self::NetworkFileSystem { directory, kind } => write!(
                f,
                "data directory {} is on a network file system ({kind}), which has no shared memory for the metadata store; \
                 choose a directory on a local disk with --data",
                directory.display()
            ),
            Self::Split { directory, part } => write!(
                f,
                "data directory {}: {} is on another file system; mount one file system under the whole directory",
                directory.display(),
                part.display()
            ),
            Self::Io { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                let uid = rustix::process::geteuid().as_raw();
                let gid = rustix::process::getegid().as_raw();
                let path = path.display();
                write!(
                    f,
                    "data directory: uid {uid} may not write {path}; run: chown -R {uid}:{gid} {path}"
                )
            }
            Self::Io { path, source }
                if matches!(
                    source.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
                ) =>
            {
                write!(
                    f,
                    "data directory: {} is not a directory; choose another with --data",
                    path.display()
                )
            }
            Self::Io { path, source } => {
                write!(f, "data directory: {}: {source}", path.display())
            }
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

/// Did the write fail for want of room (also quota)? Then content passes through uncached for a while.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Is what has the name no file at all? Then it is not the content, whatever it is; every other failure to open or read says nothing
/// about the bytes.
pub(crate) fn is_no_file(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

/// Are there no file descriptors left, here or in the whole system?
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Is the failure one of the circumstances, which says nothing about the file? Nothing is condemned because of it.
pub(crate) fn is_circumstance(error: &io::Error) -> bool {
    const CIRCUMSTANCES: [Errno; 8] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::INTR,
        Errno::AGAIN,
        Errno::ACCESS,
        Errno::PERM,
    ];
    error.kind() == io::ErrorKind::Interrupted
        || errno(error).is_some_and(|errno| CIRCUMSTANCES.contains(&errno))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}
