//! Which addresses may be dialled (SSRF).
//!
//! An upstream's answers name hosts: redirect targets and realms. What must hold: none of them makes us dial loopback, private,
//! link-local or otherwise special addresses, unless the configured upstream itself lies in such a zone with all its addresses (a
//! registry in a private network with its object store beside it), or the operator named the address (`allow_addresses`). Literal
//! addresses are checked before a request, names where they are resolved for the connection, so that a second look-up cannot change
//! the answer. Hosts that the operator named (the upstream, its proxy, its `realms`) are dialled wherever they are. Through an HTTP
//! proxy only literal addresses can be checked: the proxy resolves names.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::error::Error;
use crate::oci::RegistryName;

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

/// What the operator said about addresses, beside the upstream's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Exceptions {
    /// Hosts without ports that may lie anywhere.
    pub(super) named: Vec<String>,
    /// Hosts of HTTP proxies: connections go there, but no answer may lead there.
    pub(super) proxies: Vec<String>,
    /// Addresses that answers may lead to although they are not public.
    pub(super) addresses: Vec<IpNet>,
}

#[derive(Debug)]
struct Inner {
    /// For the log.
    upstream: RegistryName,
    /// The upstream's own host.
    own: String,
    exceptions: Exceptions,
    /// The zones that answers may send us to; [`OUTSIDE`] tells that the upstream was once seen at a public address.
    allowed: AtomicU8,
}

/// In the set of zones: the upstream has a public address, so its zone is not a private one whatever its name resolves to next.
const OUTSIDE: u8 = 128;

/// Every address of a host is refused by the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(Option<Zone>);

impl Guard {
    pub(super) fn new(name: &RegistryName, url: &Url, exceptions: Exceptions) -> Self {
        let guard = Self(Arc::new(Inner {
            upstream: name.clone(),
            own: url.host_str().unwrap_or_default().to_owned(),
            exceptions,
            allowed: AtomicU8::new(Zone::Public as u8),
        }));
        if let Some(address) = literal(url) {
            guard.settle(&[address]);
        }
        guard
    }

    /// May this URL be dialled, as far as it shows? Names are judged when they are resolved.
    ///
    /// # Errors
    /// What kind of address it leads to.
    pub(super) fn admits(&self, url: &Url) -> Result<(), Refused> {
        let host = url.host_str().unwrap_or_default();
        if self.is_named(host) && !host.is_empty() {
            return Ok(());
        }
        let verdict = match literal(url) {
            Some(address) => self.judge(address),
            None if host.is_empty() => Err(Refused(None)),
            None if is_localhost(host) => self.judge(Ipv4Addr::LOCALHOST.into()),
            None if self.is_proxy(host) => Err(Refused(None)),
            None => Ok(()),
        };
        verdict.inspect_err(|refused| self.tell(host, *refused))
    }

    fn is_named(&self, host: &str) -> bool {
        host == self.0.own || self.0.exceptions.named.iter().any(|named| named == host)
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.0.exceptions.proxies.iter().any(|proxy| proxy == host)
    }

    fn judge(&self, address: IpAddr) -> Result<(), Refused> {
        let zone = zone(address);
        let settled = self.0.allowed.load(Ordering::Relaxed) & zone as u8 != 0;
        if settled || self.is_excepted(address) { Ok(()) } else { Err(Refused(Some(zone))) }
    }

    /// An address that carries an IPv4 address is excepted with that one, too (NAT64).
    fn is_excepted(&self, address: IpAddr) -> bool {
        let carried = match address {
            IpAddr::V6(address) => carried_v4(address).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let mut networks = self.0.exceptions.addresses.iter();
        networks.any(|net| {
            net.contains(&address) || carried.is_some_and(|carried| net.contains(&carried))
        })
    }

    /// The upstream itself lies at these addresses: if none of them is public, what stands beside it may be dialled, too. From loopback
    /// one may also go to the private network, never the other way round. An upstream that was once public stays outside: whoever
    /// answers for its name must not be able to open our network by another answer.
    fn settle(&self, addresses: &[IpAddr]) {
        let opened = |address: &IpAddr| match zone(*address) {
            Zone::Loopback => Zone::Loopback as u8 | Zone::Private as u8,
            Zone::Private => Zone::Private as u8,
            Zone::Public | Zone::LinkLocal | Zone::Special => 0,
        };
        let outside = addresses.iter().any(|address| zone(*address) == Zone::Public);
        let zones = addresses.iter().map(opened).fold(0, |all, zones| all | zones);
        let settle = |before: u8| {
            let public = Zone::Public as u8;
            let outside = outside || before & OUTSIDE != 0;
            Some(if outside { public | OUTSIDE } else { public | before | zones })
        };
        // The closure never refuses, so there is no failure to look at.
        let _before: Result<u8, u8> =
            self.0.allowed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, settle);
    }

    /// The addresses of `host` that may be dialled.
    fn filter(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if host == self.0.own {
            let addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
            self.settle(&addresses);
        }
        if self.is_named(host) || self.is_proxy(host) {
            return Ok(found);
        }
        let mut refused = Refused(None);
        let mut allowed = found;
        allowed.retain(|address| {
            self.judge(address.ip()).inspect_err(|verdict| refused = *verdict).is_ok()
        });
        if allowed.is_empty() {
            self.tell(host, refused);
            return Err(refused);
        }
        Ok(allowed)
    }

    /// The host is that of a URL which may be a secret as a whole; it is not one itself.
    fn tell(&self, host: &str, refused: Refused) {
        let upstream = &self.0.upstream;
        tracing::warn!(
            %upstream,
            host,
            zone = refused.word(),
            "an answer of the upstream leads to an address that may not be dialled; if it may be, add it to allow_addresses of [upstream.\"{upstream}\"]"
        );
    }
}

impl Refused {
    fn word(self) -> &'static str {
        match self.0 {
            None => "proxy",
            Some(Zone::Public) => "public",
            Some(Zone::Private) => "private",
            Some(Zone::Loopback) => "loopback",
            Some(Zone::LinkLocal) => "link_local",
            Some(Zone::Special) => "special",
        }
    }

    /// What the caller is told.
    pub(super) fn error(self) -> Error {
        Error::Junk(match self.0 {
            Some(Zone::Private) => {
                "it leads to a private address, which allow_addresses of this upstream does not name"
            }
            Some(Zone::Loopback) => {
                "it leads to a loopback address, which allow_addresses of this upstream does not name"
            }
            Some(Zone::LinkLocal) => {
                "it leads to a link-local address, which allow_addresses of this upstream does not name"
            }
            Some(Zone::Special | Zone::Public) => {
                "it leads to a reserved address, which allow_addresses of this upstream does not name"
            }
            None => "it leads to the HTTP proxy itself",
        })
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
    let host = host.trim_end_matches('.');
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
    // Those of Azure (a public address that leads to the machine's own host) and Alibaba.
    const METADATA: [Ipv4Addr; 2] =
        [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];
    if address.is_loopback() {
        Zone::Loopback
    } else if address.is_link_local() || METADATA.contains(&address) {
        Zone::LinkLocal
    } else if address.is_private() || (a == 100 && b & 0xc0 == 64) {
        Zone::Private
    } else if a == 0
        || a >= 224
        || address.is_documentation()
        || (a == 198 && b & 0xfe == 18)
        || (a == 192 && b == 0 && c == 0)
        // The former relays of 6to4 (RFC 7526).
        || (a == 192 && b == 88 && c == 99)
    {
        Zone::Special
    } else {
        Zone::Public
    }
}

fn zone_v6(address: Ipv6Addr) -> Zone {
    let [first, second, ..] = address.segments();
    // The metadata services of AWS and Google are unique local addresses; they count as what they are.
    const METADATA: [Ipv6Addr; 2] = [
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
        Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    ];
    if address.is_loopback() {
        Zone::Loopback
    } else if first & 0xffc0 == 0xfe80 || METADATA.contains(&address) {
        Zone::LinkLocal
    } else if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 {
        Zone::Private
    } else if address.is_unspecified()
        || first & 0xff00 == 0xff00
        || (first == 0x2001 && second == 0xdb8)
        // More documentation (RFC 9637) and the segment identifiers of SRv6 (RFC 9602).
        || (first == 0x3fff && second < 0x1000)
        || first == 0x5f00
        || first == 0x100
        // The protocol assignments (RFC 2928), and among them Teredo (RFC 4380), which hides an address in a way of its own; of the prefix
        // for local NAT64 (RFC 8215) only the usual form is read.
        || (first == 0x2001 && second < 0x200)
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
        write!(f, "all addresses of the host are refused ({})", self.word())
    }
}

impl StdError for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(upstream: &str) -> Guard {
        excepting(upstream, &[])
    }

    fn excepting(upstream: &str, addresses: &[&str]) -> Guard {
        let exceptions = Exceptions {
            named: vec!["named.example".into()],
            proxies: Vec::new(),
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        };
        Guard::new(&name(), &upstream.parse().unwrap(), exceptions)
    }

    fn name() -> RegistryName {
        "registry.example".parse().unwrap()
    }

    fn admits(guard: &Guard, url: &str) -> bool {
        guard.admits(&url.parse().unwrap()).is_ok()
    }

    fn at(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 0)
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
            ("fd20:ce::254", Zone::LinkLocal),
            ("168.63.129.16", Zone::LinkLocal),
            ("100.100.100.200", Zone::LinkLocal),
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
            ("2001:20::1", Zone::Special),
            ("2001:200::1", Zone::Public),
            ("3fff::1", Zone::Special),
            ("192.88.99.1", Zone::Special),
            ("0.1.2.3", Zone::Special),
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
        let exceptions = Exceptions { proxies, ..Exceptions::default() };
        let url = "https://registry.example".parse().unwrap();
        let guard = Guard::new(&name(), &url, exceptions.clone());
        assert!(guard.filter("proxy.example", vec![at("10.0.0.9")]).is_ok());
        assert!(!admits(&guard, "https://10.0.0.8:8443/admin"));
        assert!(!admits(&guard, "https://proxy.example:8443/admin"));
        let url = "https://proxy.example".parse().unwrap();
        let guard = Guard::new(&name(), &url, exceptions);
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
        assert!(guard.filter("rebound.example", vec![at("127.0.0.1")]).is_err());
        let mixed = vec![at("10.0.0.1"), at("93.184.216.34")];
        assert_eq!(guard.filter("mixed.example", mixed).unwrap(), vec![at("93.184.216.34")]);
        assert!(guard.filter("named.example", vec![at("10.0.0.1")]).is_ok());
        assert!(guard.filter("registry.example", vec![at("10.0.0.9")]).is_ok());
        assert!(guard.filter("rebound.example", vec![at("10.0.0.1")]).is_ok());
        assert!(guard.filter("rebound.example", vec![at("127.0.0.1")]).is_err());
    }

    #[test]
    fn an_upstream_that_is_public_once_opens_nothing_by_another_answer_of_its_name() {
        let rebinding = guard("https://registry.example");
        rebinding.filter("registry.example", vec![at("93.184.216.34"), at("10.0.0.1")]).unwrap();
        assert!(!admits(&rebinding, "https://10.0.0.2/x"), "one public address is enough");
        rebinding.filter("registry.example", vec![at("10.0.0.1")]).unwrap();
        assert!(!admits(&rebinding, "https://10.0.0.2/x"), "it was public before");
        let moving = guard("https://registry.example");
        moving.filter("registry.example", vec![at("10.0.0.1")]).unwrap();
        assert!(admits(&moving, "https://10.0.0.2/x"));
        moving.filter("registry.example", vec![at("93.184.216.34")]).unwrap();
        assert!(!admits(&moving, "https://10.0.0.2/x"), "it is public now");
    }

    #[test]
    fn the_operator_excepts_addresses() {
        let guard = excepting("https://registry.example", &["10.1.0.0/16", "fd00:1::/32"]);
        assert!(admits(&guard, "https://10.1.2.3/x"));
        assert!(admits(&guard, "https://[fd00:1::5]/x"));
        assert!(admits(&guard, "https://[64:ff9b::a01:203]/x"), "the NAT64 form of 10.1.2.3");
        assert!(admits(&guard, "https://[::ffff:10.1.2.3]/x"));
        for url in [
            "https://10.2.0.1/x",
            "https://127.0.0.1/x",
            "https://[64:ff9b::a02:1]/x",
            "https://169.254.169.254/x",
        ] {
            assert!(!admits(&guard, url), "{url}");
        }
        let split = vec![at("10.1.0.9"), at("10.9.0.9")];
        assert_eq!(guard.filter("store.example", split).unwrap(), vec![at("10.1.0.9")]);
        assert!(guard.filter("store.example", vec![at("10.9.0.9")]).is_err());
    }

    #[test]
    fn a_refusal_names_the_zone_and_the_setting_and_not_the_url() {
        let guard = guard("https://registry.example");
        let url = "https://10.0.0.1/x?X-Amz-Signature=hush".parse().unwrap();
        let text = guard.admits(&url).unwrap_err().error().to_string();
        assert!(text.contains("private address") && text.contains("allow_addresses"), "{text}");
        assert!(!text.contains("hush") && !text.contains("10.0.0.1"), "{text}");
    }

    #[test]
    fn spellings_of_one_host() {
        let guard = guard("https://registry.example");
        for url in [
            "https://0177.0.0.1/x",
            "https://017700000001/x",
            "https://127.1/x",
            "https://LOCALHOST/x",
            "https://localhost../x",
            "https://[0:0:0:0:0:ffff:7f00:1]/x",
            "https://①②⑦.0.0.1/x",
        ] {
            let parsed = url.parse::<Url>();
            assert!(parsed.is_err() || !admits(&guard, url), "{url}");
        }
        assert!("https://[fe80::1%25eth0]/x".parse::<Url>().is_err(), "a zone id is no host");
        assert!(admits(&guard, "https://REGISTRY.example:8443/x"));
        // With a dot at its end it is another name, which is judged by its addresses.
        assert!(guard.filter("registry.example.", vec![at("10.0.0.1")]).is_err());
    }
}
