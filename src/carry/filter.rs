//! Which answers a recording is of, and what it was closed over: the text that stands in the row of its set.
//!
//! What must hold: what was written is read back as the same, so that a recording goes on after a restart as it began. People read the text
//! too (`client=10.0.0.0/8 upstream=docker.io platform=linux/amd64`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::oci::{PlatformPattern, RegistryName};

const CLIENT: &str = "client";
const UPSTREAM: &str = "upstream";
const PLATFORM: &str = "platform";

/// Which answers are noted, and for which platforms the set was closed when the recording ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Networks of clients; empty: all.
    pub(super) clients: Vec<IpNet>,
    /// Registries; empty: all.
    pub(super) upstreams: Vec<RegistryName>,
    /// Empty until the recording ends.
    pub(super) platforms: Vec<PlatformPattern>,
}

/// The text is of another version of the program, or of no recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InvalidFilter;

impl Filter {
    pub(super) fn covers(&self, client: IpAddr, upstream: &RegistryName) -> bool {
        let client = client.to_canonical();
        let meant =
            self.clients.is_empty() || self.clients.iter().any(|network| network.contains(&client));
        meant && (self.upstreams.is_empty() || self.upstreams.contains(upstream))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = self.clients.iter().map(|client| format!("{CLIENT}={client}"));
        let upstreams = self.upstreams.iter().map(|upstream| format!("{UPSTREAM}={upstream}"));
        let platforms = self.platforms.iter().map(|platform| format!("{PLATFORM}={platform}"));
        let words: Vec<String> = clients.chain(upstreams).chain(platforms).collect();
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let mut filter = Self::default();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or(InvalidFilter)?;
            match key {
                CLIENT => filter.clients.push(value.parse().map_err(|_invalid| InvalidFilter)?),
                UPSTREAM => filter.upstreams.push(value.parse().map_err(|_invalid| InvalidFilter)?),
                PLATFORM => filter.platforms.push(value.parse().map_err(|_invalid| InvalidFilter)?),
                _ => return Err(InvalidFilter),
            }
        }
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        text.parse().unwrap()
    }

    #[test]
    fn a_text_is_read_back_as_it_was_written() {
        for text in [
            "",
            "client=10.0.0.0/8",
            "client=fd00::/8 client=192.0.2.7/32 upstream=docker.io upstream=localhost:5001",
            "upstream=ghcr.io platform=linux/arm/v7 platform=linux/amd64",
        ] {
            assert_eq!(filter(text).to_string(), text);
        }
        for text in ["docker.io", "client=x", "upstream=", "platform=linux", "colour=red"] {
            assert_eq!(text.parse::<Filter>(), Err(InvalidFilter), "{text}");
        }
    }

    #[test]
    fn both_the_client_and_the_registry_must_be_meant() {
        let (docker, other): (RegistryName, RegistryName) =
            ("docker.io".parse().unwrap(), "ghcr.io".parse().unwrap());
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(filter("").covers(at("203.0.113.1"), &other));
        let some = filter("client=10.0.0.0/8 client=fd00::/8 upstream=docker.io");
        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            assert!(some.covers(at(inside), &docker), "{inside}");
            assert!(!some.covers(at(inside), &other), "{inside}");
        }
        assert!(!some.covers(at("192.168.0.1"), &docker));
        assert!(filter("platform=linux/amd64").covers(at("192.168.0.1"), &docker));
    }
}
