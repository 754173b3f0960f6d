//! Which addresses may be dialled (SSRF).
//!
//! An upstream's answers name hosts: redirect targets and realms. What must hold: none of them makes us dial loopback, private,
//! link-local or otherwise special addresses, unless the configured upstream itself lies in such a zone (a registry in a private
//! network with its object store beside it). Literal addresses are checked before a request, names where they are resolved for the
//! connection, so that a second look-up cannot change the answer. Hosts that the operator named (the upstream, its proxy, its
//! `realms`) are dialled wherever they are. Through an HTTP proxy only literal addresses can be checked: the proxy resolves names.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What kind of network an address belongs to; the value is a bit of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    Public = 1,
    /// RFC 1918, carrier-grade NAT (RFC 6598), unique local IPv6.
    Private = 2,
    Loopback = 4,
    /// Where the metadata services of clouds are.
    LinkLocal = 8,
    /// Unspecified, multicast, broadcast, documentation and reserved ranges: never dialled for an answer's sake.
    Special = 16,
}

/// The rule of one upstream.
#[derive(Clone, Debug)]
pub(super) struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The upstream's own host.
    own: String,
    /// Other hosts that the operator named.
    named: Vec<String>,
    /// Hosts of HTTP proxies: connections go there, but no answer may lead there.
    proxies: Vec<String>,
    /// The zones that answers may send us to.
    allowed: AtomicU8,
}

/// Every address of a host is refused by the rule.
#[derive(Debug)]
pub(super) struct Refused;

impl Guard {
    /// `named` and `proxies` are hosts without ports.
    pub(super) fn new(upstream: &Url, named: Vec<String>, proxies: Vec<String>) -> Self {
        let guard = Self(Arc::new(Inner {
            own: upstream.host_str().unwrap_or_default().to_owned(),
            named,
            proxies,
            allowed: AtomicU8::new(Zone::Public as u8),
        }));
        if let Some(address) = literal(upstream) {
            guard.settle(address);
        }
        guard
    }

    /// May this URL be dialled, as far as it shows? Names are judged when they are resolved.
    pub(super) fn admits(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        if host.is_empty() || self.is_named(host) {
            return !host.is_empty();
        }
        match literal(url) {
            Some(address) => self.allows(address),
            None if is_localhost(host) => self.allows(Ipv4Addr::LOCALHOST.into()),
            None => !self.0.proxies.iter().any(|proxy| proxy == host),
        }
    }

    fn is_named(&self, host: &str) -> bool {
        host == self.0.own || self.0.named.iter().any(|named| named == host)
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.0.allowed.load(Ordering::Relaxed) & zone(address) as u8 != 0
    }

    /// The upstream itself lies at `address`: what stands beside it may be dialled, too. From loopback one may also go to the
    /// private network, never the other way round.
    fn settle(&self, address: IpAddr) {
        let zones = match zone(address) {
            Zone::Loopback => Zone::Loopback as u8 | Zone::Private as u8,
            Zone::Private => Zone::Private as u8,
            Zone::Public | Zone::LinkLocal | Zone::Special => return,
        };
        self.0.allowed.fetch_or(zones, Ordering::Relaxed);
    }

    /// The addresses of `host` that may be dialled.
    fn filter(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if host == self.0.own {
            found.iter().for_each(|address| self.settle(address.ip()));
        }
        if self.is_named(host) || self.0.proxies.iter().any(|proxy| proxy == host) {
            return Ok(found);
        }
        let allowed: Vec<_> =
            found.into_iter().filter(|address| self.allows(address.ip())).collect();
        if allowed.is_empty() {
            return Err(Refused);
        }
        Ok(allowed)
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            // Port 0 is replaced by the URL's.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((&*host, 0)).await?.collect();
            if found.is_empty() {
                return Err("the name has no address".into());
            }
            let allowed = guard.filter(&host, found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Names that mean this machine wherever they are resolved (RFC 6761, 6.3).
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

/// The address that stands in the URL itself. The URL parser has already turned forms such as `2130706433` into addresses.
fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.parse().ok()
}

/// Looks through IPv6 forms that carry an IPv4 address, because the packet goes to that one.
pub(super) fn zone(address: IpAddr) -> Zone {
    match address {
        IpAddr::V4(address) => zone_v4(address),
        IpAddr::V6(address) => match carried_v4(address) {
            Some(address) => zone_v4(address),
            None => zone_v6(address),
        },
    }
}

fn zone_v4(address: Ipv4Addr) -> Zone {
    let [a, b, c, _] = address.octets();
    if address.is_loopback() {
        Zone::Loopback
    } else if address.is_link_local() {
        Zone::LinkLocal
    } else if address.is_private() || (a == 100 && b & 0xc0 == 64) {
        Zone::Private
    } else if a == 0
        || a >= 224
        || address.is_documentation()
        || (a == 198 && b & 0xfe == 18)
        || (a == 192 && b == 0 && c == 0)
    {
        Zone::Special
    } else {
        Zone::Public
    }
}

fn zone_v6(address: Ipv6Addr) -> Zone {
    let [first, second, ..] = address.segments();
    // The metadata service of AWS is a unique local address; it counts as what it is.
    const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if address.is_loopback() {
        Zone::Loopback
    } else if first & 0xffc0 == 0xfe80 || address == AWS_METADATA {
        Zone::LinkLocal
    } else if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 {
        Zone::Private
    } else if address.is_unspecified()
        || first & 0xff00 == 0xff00
        || (first == 0x2001 && second == 0xdb8)
        || first == 0x100
        // Teredo (RFC 4380) hides an address in a way of its own; of the prefix for local NAT64 (RFC 8215) only the usual form is read.
        || (first == 0x2001 && second == 0)
        || (first == 0x64 && second == 0xff9b)
    {
        Zone::Special
    } else {
        Zone::Public
    }
}

/// IPv4-mapped, -translated (RFC 2765) and -compatible addresses, NAT64 (RFC 6052, RFC 8215 with a prefix of 96 bits) and 6to4
/// (RFC 3056).
fn carried_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0 | 1, 0, 0, 0, high, low] => Some(join(high, low)),
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => Some(join(high, low)),
        _ => None,
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all addresses of the host are private or special")
    }
}

impl StdError for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(upstream: &str) -> Guard {
        Guard::new(&upstream.parse().unwrap(), vec!["named.example".into()], Vec::new())
    }

    fn admits(guard: &Guard, url: &str) -> bool {
        guard.admits(&url.parse().unwrap())
    }

    #[test]
    fn zones_of_addresses() {
        let cases = [
            ("8.8.8.8", Zone::Public),
            ("10.1.2.3", Zone::Private),
            ("172.31.0.1", Zone::Private),
            ("192.168.1.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("100.128.0.1", Zone::Public),
            ("127.8.8.8", Zone::Loopback),
            ("169.254.169.254", Zone::LinkLocal),
            ("0.0.0.0", Zone::Special),
            ("224.0.0.1", Zone::Special),
            ("255.255.255.255", Zone::Special),
            ("198.18.0.1", Zone::Special),
            ("::1", Zone::Loopback),
            ("::", Zone::Special),
            ("fe80::1", Zone::LinkLocal),
            ("fd00:ec2::254", Zone::LinkLocal),
            ("fd12::1", Zone::Private),
            ("ff02::1", Zone::Special),
            ("2606:4700::1", Zone::Public),
            ("::ffff:127.0.0.1", Zone::Loopback),
            ("::ffff:10.0.0.1", Zone::Private),
            ("64:ff9b::a9fe:a9fe", Zone::LinkLocal),
            ("2002:7f00:1::", Zone::Loopback),
            ("::7f00:1", Zone::Loopback),
            ("64:ff9b:1::a9fe:a9fe", Zone::LinkLocal),
            ("64:ff9b:1::808:808", Zone::Public),
            ("64:ff9b:1:a9fe:a9:fe00::", Zone::Special),
            ("::ffff:0:127.0.0.1", Zone::Loopback),
            ("2001:0:808:808::1", Zone::Special),
        ];
        for (address, want) in cases {
            assert_eq!(zone(address.parse().unwrap()), want, "{address}");
        }
    }

    #[test]
    fn answers_of_a_public_upstream_reach_nothing_private() {
        let guard = guard("https://registry.example");
        for url in [
            "http://127.0.0.1/x",
            "http://2130706433/x",
            "http://0x7f.1/x",
            "http://[::1]/x",
            "http://[::ffff:10.0.0.1]/x",
            "http://169.254.169.254/latest",
            "http://10.0.0.1:5000/x",
            "http://0.0.0.0/x",
        ] {
            assert!(!admits(&guard, url), "{url}");
        }
        assert!(admits(&guard, "https://93.184.216.34/x"));
        assert!(admits(&guard, "https://cdn.example/x"));
    }

    #[test]
    fn the_operators_proxy_is_dialled_and_is_no_place_for_answers_to_lead_to() {
        let proxies = vec!["10.0.0.8".to_owned(), "proxy.example".to_owned()];
        let url = "https://registry.example".parse().unwrap();
        let guard = Guard::new(&url, Vec::new(), proxies);
        let at = SocketAddr::new("10.0.0.9".parse().unwrap(), 0);
        assert!(guard.filter("proxy.example", vec![at]).is_ok());
        assert!(!admits(&guard, "https://10.0.0.8:8443/admin"));
        assert!(!admits(&guard, "https://proxy.example:8443/admin"));
        let url = "https://proxy.example".parse().unwrap();
        let guard = Guard::new(&url, Vec::new(), vec!["proxy.example".into()]);
        assert!(admits(&guard, "https://proxy.example/v2/"));
    }

    #[test]
    fn localhost_is_known_by_its_name_because_a_proxy_would_resolve_it() {
        let public = guard("https://registry.example");
        for url in ["https://localhost/x", "https://LOCALHOST.:8443/x", "https://a.localhost/x"] {
            assert!(!admits(&public, url), "{url}");
            assert!(admits(&guard("http://127.0.0.1:5000"), url), "{url}");
        }
        assert!(admits(&guard("http://localhost:5000"), "http://localhost:5000/x"));
        assert!(admits(&public, "https://localhost.example/x"));
    }

    #[test]
    fn the_upstreams_name_opens_no_metadata_service() {
        let guard = guard("https://registry.example");
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
        let own = vec![at("169.254.169.254"), at("0.0.0.0")];
        assert!(guard.filter("registry.example", own).is_ok());
        for url in ["https://169.254.169.254/x", "https://0.0.0.0/x"] {
            assert!(!admits(&guard, url), "{url}");
        }
    }

    #[test]
    fn an_upstream_opens_the_zone_it_lies_in() {
        let private = guard("http://10.0.0.1:5000");
        assert!(admits(&private, "http://192.168.0.1/x"));
        assert!(!admits(&private, "http://127.0.0.1/x"));
        assert!(!admits(&private, "http://169.254.169.254/x"));
        let loopback = guard("http://127.0.0.1:5000");
        assert!(admits(&loopback, "http://127.0.0.2/x"));
        assert!(admits(&loopback, "http://10.0.0.1/x"));
        assert!(!admits(&loopback, "http://169.254.169.254/x"));
    }

    #[test]
    fn names_are_judged_by_their_addresses() {
        let guard = guard("https://registry.example");
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
        assert!(guard.filter("rebound.example", vec![at("127.0.0.1")]).is_err());
        let mixed = vec![at("10.0.0.1"), at("93.184.216.34")];
        assert_eq!(guard.filter("mixed.example", mixed).unwrap(), vec![at("93.184.216.34")]);
        assert!(guard.filter("named.example", vec![at("10.0.0.1")]).is_ok());
        assert!(guard.filter("registry.example", vec![at("10.0.0.9")]).is_ok());
        assert!(guard.filter("rebound.example", vec![at("10.0.0.1")]).is_ok());
        assert!(guard.filter("rebound.example", vec![at("127.0.0.1")]).is_err());
    }
}
