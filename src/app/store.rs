//! The store without a server: how a command reaches it, whether or not a server runs.
//!
//! What must hold: a directory that is no store of ours is neither made nor changed; whoever holds the directory's lock is the one to
//! talk to, and without one the same handlers run here, under the lock.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::Config;
use super::rooms;
use super::run::StartError;
use super::upstreams::UpstreamSet;
use crate::blobs;
use crate::carry::{self, Carry};
use crate::clock::{Clock, SystemClock};
use crate::content::{self, Content, OpenError};
use crate::metadata;
use crate::proxy::{self, Proxy};
use crate::registry::Registry as Service;
use crate::registry::desk::{self, Desk};
use crate::server::{Admin, SOCKET_NAME};
use crate::upkeep::{Parts, Upkeep};
use crate::upstream;

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

/// How a store that nobody works on is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// There must be one, and it must be sound.
    AsItIs,
    /// There must be one; a metadata file that is damaged is moved aside and a new one begun.
    Repair,
    /// Where nothing is, one is made: what is taken in may be the first that is there.
    Make,
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
    /// The upstreams of the configuration cannot be set up.
    Upstreams(String),
    /// The runtime is shutting down.
    Interrupted,
}

impl StoreAccess {
    /// Finds out whether a process works on the store, and opens it if none does.
    ///
    /// # Errors
    /// There is no store and none is to be made, or it cannot be opened.
    pub async fn open(config: &Config, opening: Opening) -> Result<Self, AccessError> {
        let tasks = TaskTracker::new();
        let (data, tracker) = (config.data.clone(), tasks.clone());
        let settings =
            content::Settings { begin_anew: opening == Opening::Repair, ..rooms::content(config) };
        let mut registry = Registry::default();
        let open = move || {
            check(&data, opening)?;
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
        let upkeep = Upkeep::new(parts, &mut registry);
        match desk(config, &content, (&tasks, &stop), &mut registry) {
            Ok(desk) => {
                let carry = Carry::new(carry::Parts {
                    desk: desk.clone(),
                    clock: Arc::new(SystemClock),
                    tasks: tasks.clone(),
                    shutdown: stop.clone(),
                    settings: carry::Settings::default(),
                    metrics: carry::Metrics::new(&mut registry),
                });
                let admin = Admin::new(upkeep, desk, carry);
                Ok(Self::Stopped(StoppedStore { content, admin, tasks, stop }))
            }
            Err(error) => {
                content.close().await;
                Err(AccessError::Upstreams(error.to_string()))
            }
        }
    }
}

/// The desk over a store that no server has open: it knows all names of the configuration and asks nobody.
fn desk(
    config: &Config,
    content: &Content,
    (tasks, stop): (&TaskTracker, &CancellationToken),
    metrics: &mut Registry,
) -> Result<Desk, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let asks_nobody = Config { offline: true, ..config.clone() };
    let mut set = UpstreamSet::new(upstream::Shared {
        clock: Arc::clone(&clock),
        tasks: tasks.clone(),
        instance_id: "roadstead-at-rest".to_owned(),
        metrics: upstream::Metrics::new(metrics),
        proxies: config.system_proxy.clone(),
        search_path: config.search_path.clone(),
        shutdown: stop.clone(),
    });
    let upstreams = set.build(&asks_nobody)?;
    let proxy = Proxy::new(proxy::Parts {
        content: content.clone(),
        clock: Arc::clone(&clock),
        tasks: tasks.clone(),
        shutdown: stop.clone(),
        metrics: proxy::Metrics::new(metrics, Arc::clone(&clock)),
    });
    let service = Service::new(upstreams, config.catalog, proxy, content.clone(), metrics);
    let settings = desk::Settings { at_rest: true, ..rooms::desk(config) };
    Ok(Desk::new(Arc::new(service), clock, settings))
}

/// Is there something that may be a store, or may one be made here? Opening makes what is missing.
fn check(directory: &std::path::Path, opening: Opening) -> Result<(), AccessError> {
    let no_store = |reason: &dyn fmt::Display| AccessError::NoStore {
        directory: directory.to_owned(),
        reason: reason.to_string(),
    };
    let mut names = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound && opening == Opening::Make => {
            return Ok(());
        }
        names => names.map_err(|error| no_store(&error))?.peekable(),
    };
    if opening == Opening::Make && names.peek().is_none() {
        return Ok(());
    }
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
            Self::Upstreams(error) => f.write_str(error),
            Self::Interrupted => f.write_str("stopped while opening the store"),
        }
    }
}

impl std::error::Error for AccessError {}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_store_is_made_only_where_nothing_is_and_somebody_wants_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Config { data: dir.path().join(name), ..Config::default() };
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        std::fs::write(dir.path().join("other/photo.jpg"), "").unwrap();
        for (name, opening, opens) in [
            ("none", Opening::AsItIs, false),
            ("none", Opening::Repair, false),
            ("empty", Opening::AsItIs, false),
            ("other", Opening::Make, false),
            ("none", Opening::Make, true),
            ("none", Opening::AsItIs, true),
            ("empty", Opening::Make, true),
        ] {
            match StoreAccess::open(&at(name), opening).await {
                Ok(StoreAccess::Stopped(store)) => {
                    assert!(opens, "{name} {opening:?}");
                    store.close().await;
                }
                Err(AccessError::NoStore { .. }) => assert!(!opens, "{name} {opening:?}"),
                other => panic!("{name} {opening:?}: {other:?}"),
            }
        }
        assert_eq!(std::fs::read_dir(dir.path().join("other")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_store_at_rest_has_the_same_answers_and_asks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("LOCK"), "").unwrap();
        let config = Config { data: dir.path().to_owned(), ..Config::default() };
        let StoreAccess::Stopped(store) =
            StoreAccess::open(&config, Opening::AsItIs).await.unwrap()
        else {
            panic!("nobody else has it");
        };
        for (line, status, word) in [
            ("GET /api/v1/usage", "200", "\"objects\":0"),
            ("GET /api/v1/images?within=docker.io", "200", "\"items\":[]"),
            ("GET /api/v1/explain?image=nginx", "200", "No server runs"),
            ("POST /api/v1/pins?scope=nginx", "200", "docker.io/library/nginx"),
            ("POST /api/v1/refresh?image=nginx", "409", "\"reason\":\"offline\""),
            ("GET /api/v1/inspect?image=nginx", "404", "\"reason\":\"unknown_image\""),
        ] {
            let mut stream = store.connect();
            let request = format!("{line} HTTP/1.1\r\nHost: roadstead\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
            assert!(answer.contains(word), "{line}: {answer}");
        }
        store.close().await;
    }
}
