//! Builds the rooms, runs them, reloads and drains them.
//!
//! What must hold: nothing is asked of an upstream at start; a reload that fails changes nothing; after a stop no task is left, and
//! if one is, its number is told.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
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
use crate::blobs::{Disk, RealDisk};
use crate::clock::{Clock, SystemClock};
use crate::content::{self, Content};
use crate::oci::RegistryName;
use crate::proxy::{self, Proxy, Source};
use crate::registry::{self, Registry, Upstreams};
use crate::server::{self, Admin, AdminSocket, MetricsPage, Server, State};
use crate::upkeep::{self, Upkeep};
use crate::upstream::{self, Upstream};

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
    /// The runtime is shutting down.
    Interrupted,
}

/// The clients of all upstreams, kept over reloads so that tokens and connections survive them.
#[derive(Debug)]
struct UpstreamSet {
    shared: upstream::Shared,
    by_name: HashMap<RegistryName, (upstream::Settings, Arc<Upstream>)>,
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
        let mut set = UpstreamSet {
            shared: upstream::Shared {
                clock: Arc::clone(&clock),
                tasks: tasks.clone(),
                instance_id: instance_id.clone(),
                metrics: upstream::Metrics::new(&mut metrics),
                proxies: config.system_proxy.clone(),
                search_path: config.search_path.clone(),
                shutdown: abort.clone(),
            },
            by_name: HashMap::new(),
        };
        let upstreams = set.build(&config)?;
        // The ports come first: a second start on the same ports then leaves the first one's directory alone.
        let listeners = Server::bind(&rooms::server(&config)).await.map_err(StartError::Listen)?;
        let (content, mut metrics) = open_store(&config, (&clock, disk), &tasks, metrics).await?;
        let parts = upkeep::Parts {
            content: content.clone(),
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            shutdown: drain.clone(),
            settings: rooms::upkeep(&config),
        };
        let upkeep = Upkeep::new(parts, &mut metrics);
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
        let state = State {
            registry: Arc::clone(&registry),
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
        start_upkeep(&config, &upkeep, &tasks, &drain);
        Ok(Running {
            data,
            observe,
            extra,
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

/// The background, and the admin API if its socket can be made: a server without one serves as well.
fn start_upkeep(config: &Config, upkeep: &Upkeep, tasks: &TaskTracker, drain: &CancellationToken) {
    match AdminSocket::bind(&config.data) {
        Ok(socket) => {
            let admin = Admin::new(upkeep.clone());
            tasks.spawn(socket.serve(admin, drain.clone(), tasks.clone()));
        }
        Err(error) => {
            let directory = config.data.display();
            tracing::warn!(%directory, %error, "there is no admin socket; commands cannot reach this process");
        }
    }
    upkeep.start();
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

impl UpstreamSet {
    /// The upstreams of `config`. Clients whose settings did not change stay as they are; on an error nothing changes.
    fn build(&mut self, config: &Config) -> Result<Upstreams, StartError> {
        let failed = |name: &RegistryName, reason: &dyn fmt::Display| StartError::Upstream {
            name: name.clone(),
            reason: reason.to_string(),
        };
        let (mut by_name, mut upstreams, mut families) = (HashMap::new(), Vec::new(), Vec::new());
        for own in &config.upstreams {
            let settings = rooms::upstream(own, None).map_err(|error| failed(&own.name, &error))?;
            let client = match self.by_name.get(&own.name) {
                Some((kept, client)) if *kept == settings => Arc::clone(client),
                _ => Arc::new(
                    Upstream::new(settings.clone(), &self.shared)
                        .map_err(|error| failed(&own.name, &error))?,
                ),
            };
            by_name.insert(own.name.clone(), (settings, Arc::clone(&client)));
            let source = Source::new(client, rooms::policy(config, own))
                .map_err(|error| failed(&own.name, &error))?;
            upstreams.push(registry::Upstream {
                source: Arc::new(source),
                aliases: own.aliases.clone(),
                hosts: own.hosts.clone(),
                library: own.library,
            });
            families.extend(rooms::families(config, own, &self.shared));
        }
        self.by_name = by_name;
        Ok(Upstreams::new(upstreams, families, config.default_upstream.clone()))
    }
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
            Self::Interrupted => f.write_str("stopped while starting"),
        }
    }
}

impl std::error::Error for StartError {}
