//! The TCP listener of the admin API, off unless the operator names an address: behind a token, for tools on other machines.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{Accept, serve_all};
use super::api::Admin;
use super::gate::Gate;
use super::token;
use crate::server::error::BindError;
use crate::server::guard::canonical;
use crate::server::listen;

/// The configuration key of the address.
const SETTING: &str = "admin_listen";

/// The listener, open and not yet served.
#[derive(Debug)]
pub struct AdminListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminListener {
    /// Opens the listener. Needs a running runtime.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let (listener, address) = listen::open(address, SETTING)?;
        Ok(Self { listener, address })
    }

    /// Where it really listens (port 0 is the system's choice).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads the token in the data directory, or makes it; then all is there that serving needs. `hosts` are names besides `localhost` and
    /// the listener's own address that clients may use. The caller holds the directory's lock. Blocks for a moment.
    pub fn with_token(self, directory: &Path, hosts: Vec<String>) -> io::Result<GuardedListener> {
        let token = token::read_or_make(directory)?;
        let gate = Arc::new(Gate { token, hosts });
        Ok(GuardedListener { listener: self.listener, gate })
    }
}

/// A listener and what a request needs to get through.
#[derive(Debug)]
pub struct GuardedListener {
    listener: TcpListener,
    gate: Arc<Gate>,
}

impl GuardedListener {
    /// Serves until `shutdown`.
    pub async fn serve(self, admin: Admin, shutdown: CancellationToken, tasks: TaskTracker) {
        serve_all(&self, &admin, &shutdown, &tasks).await;
    }
}

impl Accept for GuardedListener {
    const NAME: &'static str = "the admin listener";
    type Stream = tokio::net::TcpStream;

    async fn accept(&self, admin: &Admin) -> io::Result<(Self::Stream, Admin)> {
        let (stream, _peer) = self.listener.accept().await?;
        let local = canonical(stream.local_addr()?.ip());
        Ok((stream, admin.behind(&self.gate, local)))
    }
}
