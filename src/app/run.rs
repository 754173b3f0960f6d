//! Builds the rooms, runs them, reloads and drains them.
//!
//! What must hold: nothing is asked of an upstream at start; a reload that fails changes nothing; after a stop no task is left, and
//! if one is, its number is told.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::registry::Registry as MetricRegistry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::config::Config;
use super::metrics::{AppMetrics, page};
use super::rooms;
use super::telemetry::Log;
use super::upstreams::UpstreamSet;
use crate::blobs::{Disk, RealDisk};
use crate::carry::{self, Carry};
use crate::clock::{Clock, SystemClock};
use crate::content::{self, Content};
use crate::oci::RegistryName;
use crate::proxy::{self, Proxy};
use crate::registry::Registry;
use crate::registry::desk::Desk;
use crate::server::{self, Admin, AdminListener, AdminSocket, MetricsPage, Server, State};
use crate::upkeep::{self, Upkeep};
use crate::upstream;

/// After the drain, tasks in the background have this long to notice that it is over.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// The program as a whole.
#[derive(Debug)]
pub struct App;

/// A program that serves.
#[derive(Debug)]
pub struct Running {
    data: SocketAddr,
    observe: SocketAddr,
    extra: Vec<(SocketAddr, RegistryName)>,
    admin: Option<SocketAddr>,
    desk: Desk,
    carry: Carry,
    registry: Arc<Registry>,
    content: Content,
    upkeep: Upkeep,
    metrics: AppMetrics,
    clock: Arc<dyn Clock>,
    set: Mutex<UpstreamSet>,
    tasks: TaskTracker,
    /// No new connections; running answers may finish.
    drain: CancellationToken,
    /// Downloads and checks in the background end now.
    abort: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

/// How a stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Tasks that did not end in time.
    pub tasks_left: usize,
}

/// Why the program cannot start, in one line that says what to do.
#[derive(Debug)]
pub enum StartError {
    Store(content::OpenError),
    Listen(server::BindError),
    Upstream {
        name: RegistryName,
        reason: String,
    },
    /// The secret of the admin API's TCP listener.
    Token {
        file: PathBuf,
        source: std::io::Error,
    },
    /// The runtime is shutting down.
    Interrupted,
}

impl App {
    /// Builds all rooms and serves until [`Running::stop`].
    pub async fn start(config: Config, log: Log) -> Result<Running, StartError> {
        Self::start_all(config, (Arc::new(SystemClock), Arc::new(RealDisk)), log).await
    }

    /// The same with another clock and another disk, for tests that hold time and break disks; the log is what they make of `tracing`.
    pub async fn start_on(
        config: Config,
        clock: Arc<dyn Clock>,
        disk: Arc<dyn Disk>,
    ) -> Result<Running, StartError> {
        Self::start_all(config, (clock, disk), Log::default()).await
    }

    async fn start_all(
        config: Config,
        (clock, disk): (Arc<dyn Clock>, Arc<dyn Disk>),
        log: Log,
    ) -> Result<Running, StartError> {
        let (tasks, drain, abort) =
            (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let instance_id = format!("roadstead-{}", Uuid::new_v4().simple());
        let mut metrics = MetricRegistry::with_prefix("roadstead");
        let app_metrics = AppMetrics::new(&mut metrics, &log, clock.now());
        let server_metrics = server::Metrics::new(&mut metrics);
        let proxy_metrics = proxy::Metrics::new(&mut metrics, Arc::clone(&clock));
        let process = (&clock, &tasks, &abort, instance_id.as_str());
        let mut set = UpstreamSet::new(upstream_parts(&config, process, &mut metrics));
        let upstreams = set.build(&config)?;
        // The ports come first: a second start on the same ports then leaves the first one's directory alone.
        let listeners = Server::bind(&rooms::server(&config)).await.map_err(StartError::Listen)?;
        let admin_listener = bind_admin(&config)?;
        let (content, mut metrics) = open_store(&config, (&clock, disk), &tasks, metrics).await?;
        let upkeep =
            Upkeep::new(upkeep_parts(&config, &content, &clock, (&tasks, &drain)), &mut metrics);
        let proxy = Proxy::new(proxy::Parts {
            content: content.clone(),
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            shutdown: abort.clone(),
            metrics: proxy_metrics,
        });
        let registry =
            Registry::new(upstreams, config.catalog, proxy, content.clone(), &mut metrics);
        let registry = Arc::new(registry);
        let desk = Desk::new(Arc::clone(&registry), Arc::clone(&clock), rooms::desk(&config));
        let carry = Carry::new(carry_parts(&config, &desk, &clock, (&tasks, &drain), &mut metrics));
        // Before anybody is answered, so that what is recorded has no gap at a restart.
        carry.resume().await;
        let admin = Admin::new(upkeep.clone(), desk.clone(), carry.clone());
        let admin_address =
            start_admin(&config, (admin, admin_listener), &content, (&tasks, &drain)).await?;
        let state = State {
            registry: Arc::clone(&registry),
            recorder: carry.recorder().clone(),
            metrics_page: MetricsPage::new(move || page(&metrics)),
            metrics: server_metrics,
            access_log: log.access(),
            ready: Arc::new(AtomicBool::new(true)),
            instance_id,
        };
        let (data, observe) = (listeners.data_address(), listeners.observe_address());
        let extra = listeners.extra_addresses().to_vec();
        let serving =
            tasks.spawn(listeners.serve(state, drain.clone(), tasks.clone(), config.drain));
        upkeep.start();
        carry.start();
        Ok(Running {
            data,
            observe,
            extra,
            admin: admin_address,
            desk,
            carry,
            registry,
            content,
            upkeep,
            metrics: app_metrics,
            clock,
            set: Mutex::new(set),
            tasks,
            drain,
            abort,
            serving,
        })
    }
}

/// What all upstreams have in common.
fn upstream_parts(
    config: &Config,
    (clock, tasks, abort, id): (&Arc<dyn Clock>, &TaskTracker, &CancellationToken, &str),
    metrics: &mut MetricRegistry,
) -> upstream::Shared {
    upstream::Shared {
        clock: Arc::clone(clock),
        tasks: tasks.clone(),
        instance_id: id.to_owned(),
        metrics: upstream::Metrics::new(metrics),
        proxies: config.system_proxy.clone(),
        search_path: config.search_path.clone(),
        shutdown: abort.clone(),
    }
}

fn carry_parts(
    config: &Config,
    desk: &Desk,
    clock: &Arc<dyn Clock>,
    (tasks, drain): (&TaskTracker, &CancellationToken),
    metrics: &mut MetricRegistry,
) -> carry::Parts {
    carry::Parts {
        desk: desk.clone(),
        clock: Arc::clone(clock),
        tasks: tasks.clone(),
        shutdown: drain.clone(),
        settings: rooms::carry(config),
        metrics: carry::Metrics::new(metrics),
    }
}

fn upkeep_parts(
    config: &Config,
    content: &Content,
    clock: &Arc<dyn Clock>,
    (tasks, drain): (&TaskTracker, &CancellationToken),
) -> upkeep::Parts {
    upkeep::Parts {
        content: content.clone(),
        clock: Arc::clone(clock),
        tasks: tasks.clone(),
        shutdown: drain.clone(),
        settings: rooms::upkeep(config),
    }
}

fn bind_admin(config: &Config) -> Result<Option<AdminListener>, StartError> {
    config.admin_listen.map(AdminListener::bind).transpose().map_err(StartError::Listen)
}

/// The admin API: on the listener if there is one, which must have its token, and on the socket if it can be made, because a server
/// without one serves as well. Tells where the listener is. On an error the store is closed.
async fn start_admin(
    config: &Config,
    (admin, listener): (Admin, Option<AdminListener>),
    content: &Content,
    (tasks, drain): (&TaskTracker, &CancellationToken),
) -> Result<Option<SocketAddr>, StartError> {
    let address = listener.as_ref().map(AdminListener::address);
    if let Some(listener) = listener {
        let (data, hosts) = (config.data.clone(), config.admin_hosts.clone());
        let reading = tasks.spawn_blocking(move || listener.with_token(&data, hosts)).await;
        let guarded = match reading {
            Ok(Ok(guarded)) => guarded,
            Ok(Err(source)) => {
                content.close().await;
                let file = config.data.join(server::TOKEN_FILE);
                return Err(StartError::Token { file, source });
            }
            Err(_shutdown) => return Err(StartError::Interrupted),
        };
        tasks.spawn(guarded.serve(admin.clone(), drain.clone(), tasks.clone()));
    }
    match AdminSocket::bind(&config.data) {
        Ok(socket) => {
            tasks.spawn(socket.serve(admin.clone(), drain.clone(), tasks.clone()));
        }
        Err(error) => {
            let directory = config.data.display();
            tracing::warn!(%directory, %error, "there is no admin socket; commands cannot reach this process");
        }
    }
    Ok(address)
}

/// Opening may wait for the disk, so it happens on the blocking pool.
async fn open_store(
    config: &Config,
    (clock, disk): (&Arc<dyn Clock>, Arc<dyn Disk>),
    tasks: &TaskTracker,
    mut metrics: MetricRegistry,
) -> Result<(Content, MetricRegistry), StartError> {
    let (settings, clock, tracker) = (rooms::content(config), Arc::clone(clock), tasks.clone());
    let open = move || {
        let content = Content::open_on(disk, settings, clock, tracker, &mut metrics)?;
        Ok((content, metrics))
    };
    let opened = tasks.spawn_blocking(open).await;
    opened.map_err(|_shutdown| StartError::Interrupted)?.map_err(StartError::Store)
}

impl Running {
    /// Where clients pull.
    pub fn data_address(&self) -> SocketAddr {
        self.data
    }

    /// Where metrics and health are.
    pub fn observe_address(&self) -> SocketAddr {
        self.observe
    }

    /// The listeners of single upstreams.
    pub fn extra_addresses(&self) -> &[(SocketAddr, RegistryName)] {
        &self.extra
    }

    /// Where the admin API listens besides its socket, if it does.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The store, for tests that break it.
    #[doc(hidden)]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The registry service, for tests that drop its answers half-way.
    #[doc(hidden)]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Tasks of the program that are alive; one of them serves.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Puts the upstreams, credentials and policies of `config` in force. What belongs to listeners and the store waits for a start.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        match set.build(&config) {
            Ok(upstreams) => {
                self.upkeep.configure(rooms::upkeep(&config));
                self.desk.configure(rooms::desk(&config));
                self.carry.configure(rooms::carry(&config));
                self.registry.replace(upstreams, config.catalog);
                self.metrics.reloaded(self.clock.now(), true);
                Ok(())
            }
            Err(error) => {
                self.metrics.reloaded(self.clock.now(), false);
                Err(error)
            }
        }
    }

    /// A configuration could not even be read.
    pub fn reload_refused(&self) {
        self.metrics.reloaded(self.clock.now(), false);
    }

    /// Makes the background look now at what is due, for tests that hold time.
    #[doc(hidden)]
    pub fn wake_upkeep(&self) {
        self.upkeep.wake();
    }

    /// Makes the lists of the configuration due now, for tests that hold time.
    #[doc(hidden)]
    pub fn wake_lists(&self) {
        self.carry.wake();
    }

    /// Stops accepting, lets running answers finish until the drain deadline of the configuration, ends the background, closes the
    /// store.
    pub async fn stop(self) -> Stopped {
        self.drain.cancel();
        if self.serving.await.is_err() {
            tracing::error!("the server ended by a panic");
        }
        self.abort.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(LAST_TASKS, self.tasks.wait()).await;
        let tasks_left = if ended.is_ok() { 0 } else { self.tasks.len() };
        self.content.close().await;
        Stopped { tasks_left }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => fmt::Display::fmt(error, f),
            Self::Listen(error) => fmt::Display::fmt(error, f),
            Self::Upstream { name, reason } => {
                write!(f, "upstream \"{name}\" cannot be set up: {reason}")
            }
            Self::Token { file, source } => {
                write!(f, "the token of admin_listen, {}, cannot be used: {source}", file.display())
            }
            Self::Interrupted => f.write_str("stopped while starting"),
        }
    }
}

impl std::error::Error for StartError {}
