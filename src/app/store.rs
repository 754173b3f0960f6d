//! The store without a server: how a command reaches it, whether or not a server runs.
//!
//! What must hold: a directory that is no store of ours is neither made nor changed; whoever holds the directory's lock is the one to
//! talk to, and without one the same handlers run here, under the lock.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::Config;
use super::rooms;
use crate::blobs;
use crate::clock::SystemClock;
use crate::content::{self, Content, OpenError};
use crate::metadata;
use crate::server::{Admin, SOCKET_NAME};
use crate::upkeep::{Parts, Upkeep};

/// Names of which one is in every store.
const STORE_NAMES: [&str; 2] = ["LOCK", "roadstead.db"];
/// Bytes on their way between a command and the handlers in the same process.
const PIPE_BYTES: usize = 64 * 1024;

/// How the store of a configuration is reached.
#[derive(Debug)]
pub enum StoreAccess {
    /// A process works on it and may listen on this socket.
    Running { socket: PathBuf, pid: Option<u32> },
    /// Nobody does; it is open here now.
    Stopped(StoppedStore),
}

/// A store that is open in this process, with the admin API and nothing else over it.
#[derive(Debug)]
pub struct StoppedStore {
    content: Content,
    admin: Admin,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Why there is no access.
#[derive(Debug)]
pub enum AccessError {
    /// There is no store at this place.
    NoStore {
        directory: PathBuf,
        reason: String,
    },
    Open(OpenError),
    /// The runtime is shutting down.
    Interrupted,
}

impl StoreAccess {
    /// Finds out whether a process works on the store, and opens it if none does.
    ///
    /// With `repair`, a metadata file that is damaged is moved aside and a new one begun; without, it is an error.
    pub async fn open(config: &Config, repair: bool) -> Result<Self, AccessError> {
        let tasks = TaskTracker::new();
        let (data, tracker) = (config.data.clone(), tasks.clone());
        let settings = content::Settings { begin_anew: repair, ..rooms::content(config) };
        let mut registry = Registry::default();
        let open = move || {
            check(&data)?;
            let clock = Arc::new(SystemClock);
            let content = Content::open(settings, clock, tracker, &mut registry)?;
            Ok((content, registry))
        };
        let opened =
            tasks.spawn_blocking(open).await.map_err(|_shutdown| AccessError::Interrupted)?;
        let (content, mut registry) = match opened {
            Ok(opened) => opened,
            Err(AccessError::Open(OpenError::Directory(blobs::OpenError::Held {
                pid, ..
            }))) => {
                return Ok(Self::Running { socket: config.data.join(SOCKET_NAME), pid });
            }
            Err(error) => return Err(error),
        };
        let stop = CancellationToken::new();
        let parts = Parts {
            content: content.clone(),
            clock: Arc::new(SystemClock),
            tasks: tasks.clone(),
            shutdown: stop.clone(),
            settings: rooms::upkeep(config),
        };
        let admin = Admin::new(Upkeep::new(parts, &mut registry));
        Ok(Self::Stopped(StoppedStore { content, admin, tasks, stop }))
    }
}

/// Is there something that may be a store? Opening makes what is missing, and nothing may be made here.
fn check(directory: &std::path::Path) -> Result<(), AccessError> {
    let no_store = |reason: &dyn fmt::Display| AccessError::NoStore {
        directory: directory.to_owned(),
        reason: reason.to_string(),
    };
    let mut names = std::fs::read_dir(directory).map_err(|error| no_store(&error))?;
    let is_own = |name: &std::ffi::OsStr| STORE_NAMES.iter().any(|own| name == *own);
    if names.any(|entry| entry.is_ok_and(|entry| is_own(&entry.file_name()))) {
        Ok(())
    } else {
        Err(no_store(&"it holds no roadstead.db"))
    }
}

impl StoppedStore {
    /// A connection to the admin API.
    pub fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (admin, stop) = (self.admin.clone(), self.stop.clone());
        self.tasks.spawn(async move { admin.serve(theirs, stop).await });
        ours
    }

    /// The metadata file that could not be used and was moved here.
    pub fn lost_metadata(&self) -> Option<PathBuf> {
        self.content.lost_metadata().map(ToOwned::to_owned)
    }

    /// Ends what runs and gives the directory back.
    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.content.close().await;
    }
}

impl From<OpenError> for AccessError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStore { directory, reason } => write!(
                f,
                "there is no store in {}: {reason}; name the data directory with --data",
                directory.display()
            ),
            Self::Open(error) => {
                fmt::Display::fmt(error, f)?;
                if matches!(error, OpenError::Metadata(metadata::OpenError::Damaged { .. })) {
                    f.write_str(
                        "; `roadstead reindex` moves it aside and rebuilds what the files tell",
                    )?;
                }
                Ok(())
            }
            Self::Interrupted => f.write_str("stopped while opening the store"),
        }
    }
}

impl std::error::Error for AccessError {}
