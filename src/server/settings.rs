//! What an operator may say about the HTTP side, and every limit that it keeps.
//!
//! Each default is a named constant with its reason; the configuration file documents them. Nothing here does I/O.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::oci::{RANGES_PER_REQUEST_MAX, RegistryName};

/// Where clients pull from unless the operator says otherwise: this machine only.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), LISTEN_PORT);
const LISTEN_PORT: u16 = 5000;
/// Where metrics and health are read.
pub const OBSERVE_DEFAULT: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), OBSERVE_PORT);
const OBSERVE_PORT: u16 = 5010;

/// Loopback, the private ranges of RFC 1918 and RFC 4193, and the link-local ones.
pub const CLIENTS_DEFAULT: [&str; 8] = [
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
];

/// Open connections on the data plane. A cluster of a thousand nodes keeps a few each.
pub const CONNECTIONS: u32 = 8192;
/// Open connections of one client address, so that one client cannot take all places. A node keeps a few dozen; a company behind one
/// address a few hundred. IPv6 clients are counted by their /64, which is what one host is given.
pub const CONNECTIONS_PER_CLIENT: u32 = 1024;
/// Open connections on the observability port: probes and a handful of scrapers.
pub const OBSERVE_CONNECTIONS: u32 = 64;
/// All headers of a request with its first line: one `Range` header of 64 KiB, as lazy pullers send it, and 16 KiB for the rest.
pub const HEADER_BYTES: usize = 80 * 1024;
/// Header fields of one request; hyper's own ceiling, which real clients miss by far (containerd sends eight).
pub const HEADERS: usize = 100;
/// From the first byte of a request (or the opening of the connection) to the end of its headers.
pub const HEADER_TIME: Duration = Duration::from_secs(10);
/// Between two requests. Clients close at up to 120 s (BuildKit); closing later than they do avoids the race.
pub const IDLE_CONNECTION: Duration = Duration::from_secs(150);
/// A reader that takes no byte for this long is cut.
pub const IDLE_BODY: Duration = Duration::from_secs(60);
/// A reader that takes less than this per second, on average over `IDLE_BODY` of waiting for it, is cut: one byte now and then would
/// hold a connection and an open file for ever. A layer of 100 MiB takes a day at this rate; no client is that patient.
pub const MIN_RATE: u64 = 1024;
/// Nothing that a registry serves needs a longer path: mount, registry, name (255) and digest (135).
pub const PATH_BYTES: usize = 2048;
/// Longest query string.
pub const QUERY_BYTES: usize = 4096;
/// From the end of the request's headers to those of the answer; containerd and most others wait at least 30 s.
pub const ANSWER: Duration = Duration::from_secs(15);
/// The same for the SOCI snapshotter, which gives up after 3 s.
pub const ANSWER_SOCI: Duration = Duration::from_millis(2500);
/// The same for a ranged request of another lazy puller; nydusd gives up after 5 s.
pub const ANSWER_LAZY: Duration = Duration::from_secs(4);
/// The same for referrers, which docker asks on every pull: better none than a slow pull.
pub const ANSWER_REFERRERS: Duration = Duration::from_secs(2);

/// The whole of what the server is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The data plane.
    pub listen: SocketAddr,
    /// Health and metrics, read-only.
    pub observe: SocketAddr,
    /// Listeners whose every request means one upstream.
    pub extra: Vec<(SocketAddr, RegistryName)>,
    /// The networks whose clients may pull.
    pub clients: Vec<IpNet>,
    pub fallback: Fallback,
    pub limits: Limits,
}

/// Do clients have another source when we refuse?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Told from each request.
    #[default]
    Clients,
    /// None has one: 404 means absent and nothing else, 429 and 5xx pass through.
    None,
}

/// Ceilings and times; each default is the constant of the same name.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub connections: u32,
    pub connections_per_client: u32,
    pub header_bytes: usize,
    pub header_time: Duration,
    pub idle_connection: Duration,
    pub idle_body: Duration,
    /// Bytes per second; 0 is off.
    pub min_rate: u64,
    pub ranges: usize,
    pub path_bytes: usize,
    pub query_bytes: usize,
    pub answer: Duration,
    pub answer_soci: Duration,
    pub answer_lazy: Duration,
    pub answer_referrers: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: LISTEN_DEFAULT,
            observe: OBSERVE_DEFAULT,
            extra: Vec::new(),
            clients: default_clients(),
            fallback: Fallback::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            connections_per_client: CONNECTIONS_PER_CLIENT,
            header_bytes: HEADER_BYTES,
            header_time: HEADER_TIME,
            idle_connection: IDLE_CONNECTION,
            idle_body: IDLE_BODY,
            min_rate: MIN_RATE,
            ranges: RANGES_PER_REQUEST_MAX,
            path_bytes: PATH_BYTES,
            query_bytes: QUERY_BYTES,
            answer: ANSWER,
            answer_soci: ANSWER_SOCI,
            answer_lazy: ANSWER_LAZY,
            answer_referrers: ANSWER_REFERRERS,
        }
    }
}

/// [`CLIENTS_DEFAULT`] as networks.
fn default_clients() -> Vec<IpNet> {
    CLIENTS_DEFAULT
        .iter()
        .map(|text| text.parse().expect("the networks of this list are checked by a test"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_networks_parse() {
        assert_eq!(default_clients().len(), CLIENTS_DEFAULT.len());
    }

    #[test]
    fn the_defaults_keep_their_promises() {
        let limits = Limits::default();
        assert!(limits.header_bytes > 64 * 1024, "a Range of 64 KiB fits");
        assert!(limits.idle_connection > Duration::from_secs(130), "longer than any client");
    }
}
