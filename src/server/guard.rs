//! Which networks may pull: the first lock of a mirror that must not challenge its clients.
//!
//! Only the address of the connection counts; no header can change it.

use std::net::IpAddr;

use ipnet::IpNet;

/// The networks of the `clients` setting.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    clients: Vec<IpNet>,
}

impl Guard {
    pub(super) fn new(clients: Vec<IpNet>) -> Self {
        Self { clients }
    }

    pub(super) fn admits(&self, address: IpAddr) -> bool {
        let address = canonical(address);
        self.clients.iter().any(|network| network.contains(&address))
    }
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::settings::Settings;

    #[test]
    fn the_default_admits_private_networks_only() {
        let guard = Guard::new(Settings::default().clients);
        for inside in [
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(guard.admits(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8", "0.0.0.0"] {
            assert!(!guard.admits(outside.parse().unwrap()), "{outside}");
        }
        assert!(!Guard::new(Vec::new()).admits("127.0.0.1".parse().unwrap()));
    }
}
