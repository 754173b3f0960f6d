//! The addresses at which upstreams are asked, checked against each other and against our own.
//!
//! Pure. A mirror that is the registry itself, or is named twice, would be asked twice for what it does not have; a parent that is
//! ourselves would ask itself.

use std::net::{IpAddr, SocketAddr};

use crate::upstream::Url;

use super::draft::{Draft, Path, UpstreamDraft};
use super::model::{Parent, UpstreamConfig};

/// The parent for one upstream, unless it does without, or is itself at the parent's address.
pub(super) fn parent_of(draft: &Draft, own: &UpstreamDraft, url: &str) -> Option<Parent> {
    let parent = draft.parent.clone().filter(|parent| own.parent && !same(parent, url))?;
    Some(Parent { url: parent, ca_file: draft.parent_ca_file.clone() })
}

/// What is wrong with the addresses, and at which keys.
pub(super) fn mistakes(draft: &Draft, upstreams: &[UpstreamConfig]) -> Vec<(Path, String)> {
    let listeners: Vec<SocketAddr> = std::iter::once(draft.config.listen)
        .chain(upstreams.iter().filter_map(|upstream| upstream.listen))
        .collect();
    let ours = |url: &str| listeners.iter().copied().find(|listener| leads_to(url, *listener));
    let mut found = Vec::new();
    match (&draft.parent, &draft.parent_ca_file) {
        (Some(parent), _) => {
            if let Some(listener) = ours(parent) {
                let text = format!(
                    "{parent} is this roadstead itself, which listens on {listener}; name the one above it"
                );
                found.push((Path::Top("parent".to_owned()), text));
            }
        }
        (None, Some(_)) => {
            let text = "is for the `parent`, and there is none".to_owned();
            found.push((Path::Top("parent_ca_file".to_owned()), text));
        }
        (None, None) => {}
    }
    for upstream in upstreams {
        let path = Path::Upstream(upstream.name.clone(), "mirrors".to_owned());
        for (index, mirror) in upstream.mirrors.iter().enumerate() {
            let earlier = &upstream.mirrors[..index];
            let text = if same(mirror, &upstream.url) {
                format!("{mirror} is the registry itself, which is asked last anyway")
            } else if earlier.iter().any(|earlier| same(earlier, mirror)) {
                format!("{mirror} is named twice")
            } else if upstream.parent.as_ref().is_some_and(|parent| same(&parent.url, mirror)) {
                format!("{mirror} is the `parent`, which is asked first anyway")
            } else if let Some(listener) = ours(mirror) {
                format!("{mirror} is this roadstead itself, which listens on {listener}")
            } else {
                continue;
            };
            found.push((path.clone(), text));
        }
    }
    found
}

/// Two spellings of one address: a port may be that of the scheme.
fn same(one: &str, other: &str) -> bool {
    match (one.parse::<Url>(), other.parse::<Url>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// Does the address lead to the listener? Names are not looked up; what is found out only when it is asked is a loop (508).
fn leads_to(url: &str, listener: SocketAddr) -> bool {
    let Ok(url) = url.parse::<Url>() else {
        return false;
    };
    let Some(host) = url.host_str() else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = match host.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_name) if host == "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        Err(_name) => None,
    };
    let same_host = address.is_some_and(|address| {
        let near = address.is_loopback() || address.is_unspecified();
        address == listener.ip()
            || near
                && (listener.ip().is_unspecified()
                    || host == "localhost" && listener.ip().is_loopback())
    });
    listener.port() != 0 && url.port_or_known_default() == Some(listener.port()) && same_host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_address_in_its_forms() {
        let to = |url: &str, listener: &str| leads_to(url, listener.parse().unwrap());
        for own in ["http://127.0.0.1:5000", "http://localhost:5000/p", "http://0.0.0.0:5000"] {
            assert!(to(own, "0.0.0.0:5000"), "{own}");
        }
        assert!(to("http://[::1]:5000", "[::]:5000") && to("http://[::1]:5000", "[::1]:5000"));
        assert!(to("http://localhost:5000", "127.0.0.1:5000"));
        assert!(to("http://10.0.0.1", "10.0.0.1:80"));
        assert!(!to("http://127.0.0.1:5001", "0.0.0.0:5000"));
        assert!(!to("http://127.0.0.2:5000", "127.0.0.1:5000"));
        assert!(!to("http://central:5000", "0.0.0.0:5000"));
        assert!(!to("http://10.0.0.1:5000", "0.0.0.0:5000"), "it may be another machine");
        assert!(!to("http://127.0.0.1:0", "127.0.0.1:0"));
    }
}
