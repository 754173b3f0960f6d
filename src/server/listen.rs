//! The listeners: opened early with clear errors, served late, drained with a deadline.
//!
//! What must hold: whoever connects is served or told that there is no place, and never left in the kernel's queue (see `places.rs`);
//! an accept that fails, for want of descriptors for example, ends no listener and spins no processor. The observability port has
//! places of its own and outlives the data plane's drain, so that probes see what happens.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::dispatch::{Link, Plane};
use super::error::BindError;
use super::guard::canonical;
use super::places::{Full, Place, Places};
use super::reply;
use super::serve::{part, serve};
use super::service::{Service, State};
use super::settings::{OBSERVE_CONNECTIONS, Settings};
use crate::oci::RegistryName;

/// Connections that wait in the kernel; the system's own ceiling (net.core.somaxconn) is the same by default.
const BACKLOG: u32 = 4096;
/// Descriptors that are not for client connections: upstreams, files, the database.
const DESCRIPTORS_RESERVED: u64 = 512;
/// Places that are left even where descriptors are scarce.
const CONNECTIONS_MIN: u32 = 64;
/// First and longest pause after an accept that failed for want of something.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Doublings of the first pause after which it is the longest one.
const BACKOFF_DOUBLINGS: u32 = 7;
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
        let limits = &self.settings.limits;
        let data = Places::new(affordable(limits.connections), limits.connections_per_client);
        let observe = Places::new(OBSERVE_CONNECTIONS, OBSERVE_CONNECTIONS);
        let observe_shutdown = CancellationToken::new();
        let service = Arc::new(Service::new(state, self.settings));
        let mut listeners = vec![(self.data, Plane::Data { upstream: None })];
        for (listener, upstream) in self.extra {
            listeners.push((listener, Plane::Data { upstream: Some(upstream) }));
        }
        for (listener, plane) in listeners {
            let accepting = accepting(listener, plane, &service, &tasks, &data);
            tasks.spawn(accepting.run(shutdown.clone()));
        }
        let accepting = accepting(self.observe, Plane::Observe, &service, &tasks, &observe);
        tasks.spawn(accepting.run(observe_shutdown.clone()));

        shutdown.cancelled().await;
        service.stop_being_ready();
        data.end(drain, CUT_TIME).await;
        observe_shutdown.cancel();
        observe.end(Duration::ZERO, CUT_TIME).await;
    }
}

/// Opens one listener.
pub(super) fn open(
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

/// The loop of one listener.
#[derive(Debug)]
struct Accepting {
    listener: TcpListener,
    plane: Plane,
    service: Arc<Service>,
    tasks: TaskTracker,
    places: Arc<Places>,
}

fn accepting(
    listener: TcpListener,
    plane: Plane,
    service: &Arc<Service>,
    tasks: &TaskTracker,
    places: &Arc<Places>,
) -> Accepting {
    let (service, tasks) = (Arc::clone(service), tasks.clone());
    Accepting { listener, plane, service, tasks, places: Arc::clone(places) }
}

impl Accepting {
    async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.accept_all() => {}
        }
    }

    async fn accept_all(&self) {
        let mut trouble = Trouble::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    trouble.over();
                    let client = canonical(peer.ip());
                    match self.places.take(client).await {
                        Ok(place) => self.spawn(stream, client, place),
                        Err(full) => self.turn_away(stream, client, full),
                    }
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    self.service.metrics().refused("accept");
                    let pause = trouble.pause(&error);
                    self.places.hub().press(true);
                    sleep(pause).await;
                    self.places.hub().press(false);
                }
            }
        }
    }

    fn spawn(&self, stream: TcpStream, client: IpAddr, place: Place) {
        let connection = Connection::new(self.service.limits());
        let link = Link { client, plane: self.plane.clone(), connection };
        let (service, hub) = (Arc::clone(&self.service), Arc::clone(self.places.hub()));
        self.tasks.spawn(async move {
            serve(stream, service, link, hub).await;
            drop(place);
        });
    }

    /// Says in HTTP that there is no place, to so many at once; the rest are closed.
    fn turn_away(&self, stream: TcpStream, client: IpAddr, full: Full) {
        let metrics = self.service.metrics();
        metrics.refused(full.limit());
        metrics.limit_reached(full.limit());
        let Some(leave) = self.places.turn_away(client, full) else {
            return;
        };
        let hub = Arc::clone(self.places.hub());
        self.tasks.spawn(async move {
            let words = reply::wire_answer(reply::NO_PLACE);
            tokio::select! {
                () = part(&stream, false, Some(words)) => {}
                () = hub.drained() => {}
            }
            drop(leave);
        });
    }
}

/// Accepts that fail one after the other for want of descriptors or memory: paused for longer and longer, and told once.
#[derive(Debug, Default)]
struct Trouble {
    failures: u32,
}

impl Trouble {
    /// An accept failed; how long to wait for the next.
    fn pause(&mut self, error: &io::Error) -> Duration {
        if self.failures == 0 {
            tracing::error!(%error, "connections cannot be accepted; trying again and again");
        }
        let doublings = self.failures.min(BACKOFF_DOUBLINGS);
        self.failures = self.failures.saturating_add(1);
        (BACKOFF_MIN * 2_u32.pow(doublings)).min(BACKOFF_MAX)
    }

    /// An accept succeeded.
    fn over(&mut self) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "connections are accepted again");
            self.failures = 0;
        }
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
