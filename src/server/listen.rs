//! The listeners: opened early with clear errors, served late, drained with a deadline.
//!
//! A place is taken before a connection is accepted, so that excess clients wait in the kernel's queue and cost nothing. When all
//! places are taken, connections without a request make room. The observability port has places of its own and outlives the data
//! plane's drain, so that probes see what happens.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::dispatch::{Link, Plane};
use super::error::BindError;
use super::guard::canonical;
use super::hub::Hub;
use super::serve::serve;
use super::service::{Service, State};
use super::settings::{OBSERVE_CONNECTIONS, Settings};
use crate::oci::RegistryName;

/// Connections that wait in the kernel; the system's own ceiling (net.core.somaxconn) is the same by default.
const BACKLOG: u32 = 4096;
/// Descriptors that are not for client connections: upstreams, files, the database.
const DESCRIPTORS_RESERVED: u64 = 512;
/// Places that are left even where descriptors are scarce.
const CONNECTIONS_MIN: u32 = 64;
/// How often idle connections are asked for room while all places are taken.
const PRESSURE_PAUSE: Duration = Duration::from_millis(250);
/// First and longest pause after an accept that failed for want of something.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long tasks may take to end after they were cut.
const CUT_TIME: Duration = Duration::from_secs(1);

/// All listeners, open and not yet served.
#[derive(Debug)]
pub struct Server {
    data: TcpListener,
    observe: TcpListener,
    extra: Vec<(TcpListener, RegistryName)>,
    settings: Settings,
    addresses: Addresses,
}

#[derive(Clone, Debug)]
struct Addresses {
    data: SocketAddr,
    observe: SocketAddr,
    extra: Vec<(SocketAddr, RegistryName)>,
}

/// The connections of one plane.
#[derive(Debug)]
struct Places {
    semaphore: Arc<Semaphore>,
    count: u32,
    hub: Arc<Hub>,
}

impl Server {
    /// Opens all listeners; needs a running runtime.
    #[expect(
        clippy::unused_async,
        reason = "sockets register with the runtime that runs this; being async says so"
    )]
    pub async fn bind(settings: &Settings) -> Result<Self, BindError> {
        let (data, data_address) = open(settings.listen, "listen")?;
        let (observe, observe_address) = open(settings.observe, "observe")?;
        let mut extra = Vec::with_capacity(settings.extra.len());
        let mut extra_addresses = Vec::with_capacity(settings.extra.len());
        for (address, upstream) in &settings.extra {
            let (listener, address) = open(*address, "upstream.listen")?;
            extra.push((listener, upstream.clone()));
            extra_addresses.push((address, upstream.clone()));
        }
        Ok(Self {
            data,
            observe,
            extra,
            settings: settings.clone(),
            addresses: Addresses {
                data: data_address,
                observe: observe_address,
                extra: extra_addresses,
            },
        })
    }

    /// Where the data plane really listens (port 0 is the system's choice).
    pub fn data_address(&self) -> SocketAddr {
        self.addresses.data
    }

    pub fn observe_address(&self) -> SocketAddr {
        self.addresses.observe
    }

    /// The listeners of single upstreams, in the order of the settings.
    pub fn extra_addresses(&self) -> &[(SocketAddr, RegistryName)] {
        &self.addresses.extra
    }

    /// Serves until `shutdown`, then lets running requests finish for at most `drain`. Returns when every connection has ended.
    pub async fn serve(
        self,
        state: State,
        shutdown: CancellationToken,
        tasks: TaskTracker,
        drain: Duration,
    ) {
        let data = Places::new(affordable(self.settings.limits.connections));
        let observe = Places::new(OBSERVE_CONNECTIONS);
        let observe_shutdown = CancellationToken::new();
        let service = Arc::new(Service::new(state, self.settings));
        let mut listeners = vec![(self.data, Plane::Data { upstream: None })];
        for (listener, upstream) in self.extra {
            listeners.push((listener, Plane::Data { upstream: Some(upstream) }));
        }
        for (listener, plane) in listeners {
            let accepting = data.accepting(listener, plane, &service, &tasks);
            tasks.spawn(accepting.run(shutdown.clone()));
        }
        let accepting = observe.accepting(self.observe, Plane::Observe, &service, &tasks);
        tasks.spawn(accepting.run(observe_shutdown.clone()));

        shutdown.cancelled().await;
        service.stop_being_ready();
        data.end(drain).await;
        observe_shutdown.cancel();
        observe.end(Duration::ZERO).await;
    }
}

/// Opens one listener.
fn open(
    address: SocketAddr,
    setting: &'static str,
) -> Result<(TcpListener, SocketAddr), BindError> {
    let attempt = || -> io::Result<(TcpListener, SocketAddr)> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    attempt().map_err(|source| BindError { address, setting, source })
}

/// As many connections as the process has descriptors for, after asking for all that it may have.
fn affordable(wanted: u32) -> u32 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_refused) => limit.current,
    };
    let Some(current) = current else {
        return wanted;
    };
    let left = u32::try_from(current.saturating_sub(DESCRIPTORS_RESERVED)).unwrap_or(u32::MAX);
    let places = wanted.min(left.max(CONNECTIONS_MIN));
    if places < wanted {
        tracing::warn!(
            descriptors = current,
            connections = places,
            "fewer connections than configured: raise the limit of open files"
        );
    }
    places
}

impl Places {
    fn new(count: u32) -> Self {
        Self {
            semaphore: Arc::new(Semaphore::new(
                usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS),
            )),
            count,
            hub: Arc::default(),
        }
    }

    fn accepting(
        &self,
        listener: TcpListener,
        plane: Plane,
        service: &Arc<Service>,
        tasks: &TaskTracker,
    ) -> Accepting {
        Accepting {
            listener,
            plane,
            service: Arc::clone(service),
            tasks: tasks.clone(),
            semaphore: Arc::clone(&self.semaphore),
            hub: Arc::clone(&self.hub),
        }
    }

    /// Drains for at most `time`, cuts what is left, and waits until all places are free.
    async fn end(&self, time: Duration) {
        self.hub.drain();
        if timeout(time, self.all_free()).await.is_ok() {
            return;
        }
        self.hub.cut_all();
        if timeout(CUT_TIME, self.all_free()).await.is_err() {
            tracing::warn!("a connection did not end although it was cut");
        }
    }

    async fn all_free(&self) {
        // The semaphore is never closed; the permits are given back at once.
        drop(self.semaphore.acquire_many(self.count).await);
    }
}

/// The loop of one listener.
#[derive(Debug)]
struct Accepting {
    listener: TcpListener,
    plane: Plane,
    service: Arc<Service>,
    tasks: TaskTracker,
    semaphore: Arc<Semaphore>,
    hub: Arc<Hub>,
}

impl Accepting {
    async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.accept_all() => {}
        }
    }

    async fn accept_all(&self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let Some(place) = self.place().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    backoff = BACKOFF_MIN;
                    self.spawn(stream, peer, place);
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for a moment");
                    self.service.metrics().refused("accept");
                    self.hub.press(true);
                    sleep(backoff).await;
                    self.hub.press(false);
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// A free place; none only if the server is gone.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Some(place);
        }
        loop {
            self.hub.press(true);
            let place = timeout(PRESSURE_PAUSE, Arc::clone(&self.semaphore).acquire_owned()).await;
            self.hub.press(false);
            if let Ok(place) = place {
                return place.ok();
            }
        }
    }

    fn spawn(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let link = Link {
            client: canonical(peer.ip()),
            plane: self.plane.clone(),
            connection: Connection::new(),
        };
        let (service, hub) = (Arc::clone(&self.service), Arc::clone(&self.hub));
        self.tasks.spawn(async move {
            serve(stream, service, link, hub).await;
            drop(place);
        });
    }
}

/// Did the accept fail because of that one client?
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
