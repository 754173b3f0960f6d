//! Why a data directory cannot be used. Operations on an open store report plain [`io::Error`]s.

use std::fmt;
use std::io;
use std::path::PathBuf;

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
