//! Who may use the admin API over TCP: whoever knows the token, and no page of a browser.
//!
//! What must hold: the token is compared in a time that says nothing about it, and is in memory as a hash alone; a name that leads here by
//! a trick of DNS (rebinding) is refused before the token is looked at; who is refused learns nothing about paths. On the unix socket the
//! file's mode is the lock, and only the `Origin` is looked at.

use std::fmt;
use std::hint::black_box;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;

use crate::oci::Digest;

/// The scheme of RFC 6750, compared without case as all schemes are (RFC 9110, 11.1).
const SCHEME: &str = "bearer";

/// The secret of the TCP listener; only its hash is kept.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(Digest);

/// What a request over TCP must have.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) token: Token,
    /// Names besides `localhost` under which this machine may be asked, in lower case.
    pub(super) hosts: Vec<String>,
}

/// Why a request does not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    Host,
    Origin,
    NoToken,
    WrongToken,
}

impl Token {
    pub(super) fn new(secret: &str) -> Self {
        Self(Digest::sha256_of(secret.as_bytes()))
    }

    /// Hashes have one length, so the comparison takes the same time for all of them.
    fn is(&self, offered: &[u8]) -> bool {
        let offered = Digest::sha256_of(offered);
        let pairs = self.0.value().iter().zip(offered.value());
        black_box(pairs.fold(0_u8, |differences, (ours, theirs)| differences | (ours ^ theirs)))
            == 0
    }
}

impl fmt::Debug for Token {
    /// Even a hash could be compared with guesses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Gate {
    /// Looks at a request that came to the address `local` of this machine.
    pub(super) fn admits(&self, parts: &Parts, local: IpAddr) -> Result<(), Shut> {
        if !self.knows_host(parts, local) {
            return Err(Shut::Host);
        }
        if is_of_a_page(&parts.headers) {
            return Err(Shut::Origin);
        }
        let mut values = parts.headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Shut::NoToken);
        };
        let offered = bearer(value.as_bytes()).ok_or(Shut::NoToken)?;
        if self.token.is(offered) { Ok(()) } else { Err(Shut::WrongToken) }
    }

    /// One `Host`, and the authority of the request line if there is one: `localhost`, the address that was dialled, or a name that the
    /// operator gave. Ports may differ, because they are forwarded.
    fn knows_host(&self, parts: &Parts, local: IpAddr) -> bool {
        let mut named = parts.headers.get_all(HOST).iter();
        let (Some(host), None) = (named.next(), named.next()) else {
            return false;
        };
        let knows = |text: &str| self.knows_name(host_of(text), local);
        host.to_str().is_ok_and(knows)
            && parts.uri.authority().is_none_or(|authority| knows(authority.as_str()))
    }

    fn knows_name(&self, name: &str, local: IpAddr) -> bool {
        let name = name.to_ascii_lowercase();
        match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) => {
                address.to_canonical() == local.to_canonical() || self.hosts.contains(&name)
            }
            Err(_name) => name == "localhost" || self.hosts.contains(&name),
        }
    }
}

/// A page of a browser says where it comes from.
pub(super) fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
}

/// The host of `host:port` or `[::1]:port`.
fn host_of(text: &str) -> &str {
    let end = if text.starts_with('[') { text.find(']').map(|at| at + 1) } else { text.find(':') };
    &text[..end.unwrap_or(text.len())]
}

/// What follows the scheme.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    let token = rest.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn gate() -> Gate {
        Gate { token: Token::new(SECRET), hosts: vec!["cache.example.com".to_owned()] }
    }

    fn asked(uri: &str, headers: &[(&str, &str)]) -> Result<(), Shut> {
        let mut request = http::Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        gate().admits(&request.body(()).unwrap().into_parts().0, LOCAL)
    }

    #[test]
    fn the_token_opens_and_nothing_else_does() {
        let with = |authorization: &str| {
            asked("/", &[("host", "localhost"), ("authorization", authorization)])
        };
        assert_eq!(with(&format!("Bearer {SECRET}")), Ok(()));
        assert_eq!(with(&format!("bearer  {SECRET} ")), Ok(()));
        assert_eq!(asked("/", &[("host", "localhost")]), Err(Shut::NoToken));
        for strange in ["Bearer", "Bearer ", "Basic YTpi", SECRET, "Bearer\u{e9}"] {
            assert_eq!(with(strange), Err(Shut::NoToken), "{strange}");
        }
        for wrong in ["x", &SECRET[1..], &format!("{SECRET}0"), &SECRET.to_uppercase()] {
            assert_eq!(with(&format!("Bearer {wrong}")), Err(Shut::WrongToken), "{wrong}");
        }
        let right = format!("Bearer {SECRET}");
        let twice =
            [("host", "localhost"), ("authorization", "Bearer x"), ("authorization", &right)];
        assert_eq!(asked("/", &twice), Err(Shut::NoToken));
    }

    #[test]
    fn only_our_own_names_lead_here() {
        let right = format!("Bearer {SECRET}");
        let to = |host: &str| asked("/", &[("host", host), ("authorization", &right)]);
        for ours in [
            "localhost",
            "LOCALHOST:9",
            "10.0.0.7",
            "10.0.0.7:5011",
            "cache.example.com",
            "Cache.Example.com:80",
        ] {
            assert_eq!(to(ours), Ok(()), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example",
            "10.0.0.8",
            "127.0.0.1",
            "[::1]:1",
            "[",
            "a@localhost",
        ] {
            assert_eq!(to(other), Err(Shut::Host), "{other}");
        }
        assert_eq!(asked("/", &[("authorization", &right)]), Err(Shut::Host));
        let two = [("host", "localhost"), ("host", "localhost"), ("authorization", &right)];
        assert_eq!(asked("/", &two), Err(Shut::Host));
        let one = [("host", "localhost"), ("authorization", right.as_str())];
        assert_eq!(asked("http://evil.example/", &one), Err(Shut::Host));
        assert_eq!(asked("http://localhost/", &one), Ok(()));
    }

    #[test]
    fn a_page_is_refused_even_with_the_token() {
        let right = format!("Bearer {SECRET}");
        for origin in ["null", "http://localhost", "https://evil.example"] {
            let headers = [("host", "localhost"), ("origin", origin), ("authorization", &right)];
            assert_eq!(asked("/", &headers), Err(Shut::Origin), "{origin}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        let printed = format!("{:?}", gate());
        assert!(
            !printed.contains(SECRET)
                && !printed.contains(&Digest::sha256_of(SECRET.as_bytes()).hex())
        );
    }
}
