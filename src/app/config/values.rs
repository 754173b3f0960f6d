//! Values as operators write them: durations, sizes, addresses, names, lists.
//!
//! Each parser says what it wants when it refuses. A value from the environment is a bare text ([`Raw::Loose`]) that is read as
//! whatever the key wants; a value from the file has a type that must fit, because `"5"` for a number is more often a mistake than a
//! habit.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::clock;
use crate::oci::{HostFamily, InvalidHostFamily, InvalidTagPattern, RegistryName, TagPattern};
use crate::upstream::Program;

/// A value as it was written, before a key gives it a meaning.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Integer(String),
    Boolean(bool),
    List(Vec<Raw>),
    /// From the environment or the command line: a text that may stand for any type.
    Loose(String),
    /// A type that no key wants; holds its name.
    Other(&'static str),
}

/// What a parser says: the value, or what is wrong with it.
pub(super) type Parsed<T> = Result<T, String>;

/// Units of size and their length in bytes. The short binary forms are those of Kubernetes.
const SIZE_UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl Raw {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Loose(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }

    /// A text, as it is.
    pub(super) fn text(&self) -> Parsed<&str> {
        match self {
            Self::Text(text) | Self::Loose(text) => Ok(text),
            other => Err(format!("want a string in quotes, found {}", other.kind())),
        }
    }

    /// A text that is not empty.
    pub(super) fn filled(&self) -> Parsed<&str> {
        match self.text()? {
            "" => Err("must not be empty".to_owned()),
            text => Ok(text),
        }
    }

    pub(super) fn path(&self) -> Parsed<PathBuf> {
        self.filled().map(PathBuf::from)
    }

    pub(super) fn boolean(&self) -> Parsed<bool> {
        match self {
            Self::Boolean(value) => Ok(*value),
            Self::Loose(text) if matches!(&**text, "true" | "1" | "yes" | "on") => Ok(true),
            Self::Loose(text) if matches!(&**text, "false" | "0" | "no" | "off") => Ok(false),
            Self::Loose(text) => Err(format!("{text:?} is no boolean; want true or false")),
            other => Err(format!("want true or false, found {}", other.kind())),
        }
    }

    /// A whole number of at least `min`.
    pub(super) fn count<T: TryFrom<u64>>(&self, min: u64) -> Parsed<T> {
        let digits = match self {
            Self::Integer(digits) | Self::Loose(digits) => digits,
            other => return Err(format!("want a whole number, found {}", other.kind())),
        };
        let number = digits.replace('_', "").parse::<u64>();
        number
            .ok()
            .filter(|number| *number >= min)
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                format!("{digits} is out of range; want a whole number of at least {min}")
            })
    }

    /// Each item of a list; a text from the environment is split at commas.
    pub(super) fn list<T>(&self, item: impl Fn(&Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        match self {
            Self::List(items) => items.iter().map(item).collect(),
            Self::Loose(text) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| item(&Self::Loose(part.to_owned())))
                .collect(),
            other => Err(format!("want a list such as [\"a\", \"b\"], found {}", other.kind())),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Parsed<T> {
        let text = self.text()?;
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("{text:?} is none of {}", known.join(", "))
        })
    }

    /// A span of time with its unit: `500ms`, `60s`, `5m`, `24h`, `7d`, `1h30m`, `0s`.
    pub(super) fn duration(&self) -> Parsed<Duration> {
        match self {
            Self::Integer(digits) => {
                Err(format!("{digits} has no unit; write \"{digits}s\" for seconds"))
            }
            other => clock::parse_duration(other.text()?).map_err(|refusal| refusal.to_string()),
        }
    }

    /// A span of time above zero.
    pub(super) fn timeout(&self) -> Parsed<Duration> {
        match self.duration()? {
            Duration::ZERO => Err("must be longer than zero".to_owned()),
            timeout => Ok(timeout),
        }
    }

    /// A number of bytes with its unit: `64KiB`, `20GiB`, `0B`.
    pub(super) fn size(&self) -> Parsed<u64> {
        match self {
            Self::Integer(digits) => Err(format!(
                "{digits} has no unit; write \"{digits}B\" for bytes, or KiB, MiB, GiB"
            )),
            other => size(other.text()?),
        }
    }

    /// A [`Self::size`] that fits the machine's word and is at least `min`.
    pub(super) fn size_from<T: TryFrom<u64>>(&self, min: u64) -> Parsed<T> {
        let bytes = self.size()?;
        Some(bytes)
            .filter(|bytes| *bytes >= min)
            .and_then(|bytes| T::try_from(bytes).ok())
            .ok_or_else(|| format!("{bytes} bytes are out of range; want at least {min} bytes"))
    }

    /// An address to listen on. Only numbers: a name would be resolved once and then be wrong.
    pub(super) fn address(&self) -> Parsed<SocketAddr> {
        if let Self::Integer(port) = self {
            return Err(format!("{port} is a port alone; write \"127.0.0.1:{port}\""));
        }
        let text = self.text()?;
        text.parse().map_err(|_no_address| {
            let port = text.strip_prefix(':').unwrap_or(text);
            if port.parse::<u16>().is_ok() {
                format!("{text:?} is a port alone; write \"127.0.0.1:{port}\", or \"0.0.0.0:{port}\" for all interfaces")
            } else {
                format!("{text:?} is no address; want ADDRESS:PORT such as \"127.0.0.1:5000\" or \"[::1]:5000\"")
            }
        })
    }

    /// A range of addresses; an address alone is a range of one.
    pub(super) fn network(&self) -> Parsed<IpNet> {
        let text = self.text()?;
        IpNet::from_str(text)
            .or_else(|_no_network| IpAddr::from_str(text).map(IpNet::from))
            .map_err(|_no_address| {
                format!("{text:?} is no address range; want one such as \"10.0.0.0/8\"")
            })
    }

    pub(super) fn registry_name(&self) -> Parsed<RegistryName> {
        let text = self.text()?;
        text.parse().map_err(|invalid| format!("{text:?} is {invalid}"))
    }

    /// The host of a token service.
    pub(super) fn host(&self) -> Parsed<String> {
        let text = self.text()?;
        if text.contains("://") || text.contains('/') {
            return Err(format!(
                "{text:?} is a URL; want the host alone, such as \"auth.example.com\""
            ));
        }
        self.registry_name().map(|name| name.as_str().to_owned())
    }

    /// A program: a name, a path, or a list of a path and its arguments.
    pub(super) fn program(&self) -> Parsed<Program> {
        let words = match self {
            Self::List(_) | Self::Loose(_) => self.list(|word| word.filled().map(str::to_owned))?,
            other => vec![other.filled()?.to_owned()],
        };
        let Some((first, arguments)) = words.split_first() else {
            return Err("must not be empty".to_owned());
        };
        let arguments = arguments.to_vec();
        if first.starts_with('/') {
            return Ok(Program { path: PathBuf::from(first), arguments });
        }
        let named = Program::named(first).ok_or_else(|| {
            format!(
                "{first:?} is no program; want a name such as \"docker-credential-ecr-login\", or a path with arguments such as [\"/usr/bin/login\", \"--now\"]"
            )
        })?;
        Ok(Program { arguments, ..named })
    }

    /// A glob that compiles.
    pub(super) fn glob(&self) -> Parsed<String> {
        let text = self.filled()?;
        globset::Glob::new(text).map_err(|invalid| invalid.to_string())?;
        Ok(text.to_owned())
    }

    /// A pattern of tags.
    pub(super) fn tag_pattern(&self) -> Parsed<TagPattern> {
        self.filled()?.parse().map_err(|invalid: InvalidTagPattern| invalid.to_string())
    }

    /// The pattern of a family of hosts.
    pub(super) fn family(&self) -> Parsed<HostFamily> {
        self.text()?.parse().map_err(|invalid: InvalidHostFamily| invalid.to_string())
    }

    /// The address of a registry. It has no credentials, no query and no `/v2`.
    pub(super) fn registry_url(&self) -> Parsed<String> {
        let text = self.text()?;
        let url = web_address(text, "https://registry.example.com")?;
        let path = url.path().trim_end_matches('/');
        if url.query().is_some() || text.contains('#') {
            return Err("must have no query and no fragment".to_owned());
        }
        if path.ends_with("/v2") || path == "v2" {
            return Err("leave off /v2: it is part of the protocol, not of the address".to_owned());
        }
        let authority = url.authority().map_or("", http::uri::Authority::as_str);
        let scheme = url.scheme_str().unwrap_or("https");
        let url = format!("{scheme}://{}{path}", authority.to_ascii_lowercase());
        // What the client of upstreams does not take either must not get that far.
        let parsed = url.parse::<crate::upstream::Url>();
        parsed.map_err(|invalid| format!("{text:?}: {invalid}"))?;
        Ok(url)
    }

    /// The address of a copy of a registry, which is asked without any credential.
    pub(super) fn copy_url(&self) -> Parsed<String> {
        if self.text()?.contains('@') {
            return Err("must not hold credentials: it is asked without any".to_owned());
        }
        self.registry_url()
    }

    /// The address of another roadstead; an empty text is none.
    pub(super) fn parent_url(&self) -> Parsed<Option<String>> {
        match self.text()? {
            "" => Ok(None),
            _ => self.copy_url().map(Some),
        }
    }

    /// The address of an HTTP proxy, which may carry credentials and is therefore never part of an error, not in pieces either: nobody can
    /// tell where they are in what is no address.
    pub(super) fn proxy_url(&self) -> Parsed<String> {
        let text = self.text()?;
        let bare = text.rsplit_once('@').map_or_else(
            || text.to_owned(),
            |(before, host)| {
                let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
                format!("{scheme}://{host}")
            },
        );
        web_address(&bare, "").map_err(|_quoting| {
            "is no address of an http or https proxy; want one such as \"http://proxy.example.com:3128\" (it is not shown, because it may hold a password)"
        })?;
        crate::upstream::check_proxy(text).map_err(|_invalid| {
            "is no URL; write what is special in its user and password as %XX".to_owned()
        })?;
        Ok(text.to_owned())
    }
}

/// An `http` or `https` address with a host, a valid port and no credentials.
fn web_address(text: &str, example: &str) -> Parsed<http::Uri> {
    if text.contains('@') {
        return Err("must not hold credentials; use username and password_file".to_owned());
    }
    let wanted = || format!("{text:?} is no address of a server; want one such as {example:?}");
    let uri: http::Uri = text.parse().map_err(|_invalid| wanted())?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) => {
            let host_end = authority.as_str().rfind(']').map_or(0, |end| end + 1);
            let has_port = authority.as_str()[host_end..].contains(':');
            let port_valid = !has_port || authority.port_u16().is_some_and(|port| port != 0);
            if authority.host().is_empty() || !port_valid {
                return Err(wanted());
            }
            Ok(uri)
        }
        (Some(scheme), Some(_)) => {
            Err(format!("scheme {scheme:?} is not known; want http or https"))
        }
        _ => Err(wanted()),
    }
}

/// The number at the head of a text and the rest; no number is `None`.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok().map(|number| (number, &text[end..]))
}

/// A number of bytes as people write it: `64KiB`, `20GiB`, `0`.
///
/// # Errors
///
/// The text is none; told in words.
pub fn size(text: &str) -> Result<u64, String> {
    let refuse =
        || format!("{text:?} is no size; want one such as \"64KiB\", \"512MiB\", \"20GiB\"");
    let (count, unit) = number(text.trim()).ok_or_else(refuse)?;
    let unit = unit.trim();
    if count == 0 && unit.is_empty() {
        return Ok(0);
    }
    let (_, length) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
    count.checked_mul(*length).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loose(text: &str) -> Raw {
        Raw::Loose(text.to_owned())
    }

    #[test]
    fn durations_need_a_unit_and_may_be_composed() {
        let cases = [
            ("0s", 0),
            ("0", 0),
            ("500ms", 500),
            ("60s", 60_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
        ];
        for (text, millis) in cases {
            assert_eq!(loose(text).duration(), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in
            ["", "5", "s", "5 s", "-5s", "1.5h", "5x", "5m3", "99999999999999999999s", "1000000d"]
        {
            assert!(loose(bad).duration().is_err(), "{bad:?} must not parse");
        }
        let unitless = Raw::Integer("5".to_owned()).duration().unwrap_err();
        assert!(unitless.contains("\"5s\""), "{unitless}");
    }

    #[test]
    fn sizes_need_a_unit() {
        let cases = [
            ("0", 0),
            ("64KiB", 65_536),
            ("20GiB", 20 << 30),
            ("20Gi", 20 << 30),
            ("1 TB", 1_000_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(loose(text).size(), Ok(bytes), "{text}");
        }
        for bad in ["", "20", "GiB", "20gib", "-1B", "1.5GiB", "99999999TiB"] {
            assert!(loose(bad).size().is_err(), "{bad:?} must not parse");
        }
    }

    #[test]
    fn addresses_are_numbers_with_a_port() {
        for good in ["127.0.0.1:5000", "[::1]:5000", "0.0.0.0:0"] {
            assert!(loose(good).address().is_ok(), "{good}");
        }
        for bad in ["localhost:5000", "127.0.0.1", "5000", ":5000", "1.2.3.4:70000", ""] {
            assert!(loose(bad).address().is_err(), "{bad:?} must not parse");
        }
        assert!(loose(":5000").address().unwrap_err().contains("127.0.0.1:5000"));
    }

    #[test]
    fn registry_urls_are_normalised_and_checked() {
        let cases = [
            ("https://Registry.Example.com/", "https://registry.example.com"),
            ("http://127.0.0.1:5001", "http://127.0.0.1:5001"),
            ("https://[::1]:5001/a/b/", "https://[::1]:5001/a/b"),
        ];
        for (text, url) in cases {
            assert_eq!(loose(text).registry_url().as_deref(), Ok(url));
        }
        let bad = [
            "registry.example.com",
            "ftp://registry.example.com",
            "https://user:geheim@registry.example.com",
            "https://registry.example.com?x=1",
            "https://registry.example.com#x",
            "https://registry.example.com/v2/",
            "https://registry.example.com:0",
            "https://registry.example.com:99999",
            "https://",
            "",
        ];
        for text in bad {
            let refusal = loose(text).registry_url();
            assert!(refusal.is_err(), "{text:?} must not parse");
            assert!(!refusal.unwrap_err().contains("geheim"));
        }
    }

    #[test]
    fn a_proxy_may_hold_credentials_and_never_prints_them() {
        let url = "http://me:geheim@proxy.example.com:3128";
        assert_eq!(loose(url).proxy_url().as_deref(), Ok(url));
        for bad in [
            "socks5://me:geheim@proxy.example.com",
            "http://me:geheimproxy:3128",
            "me:geheimproxy:3128",
            "http:///me:geheimproxy",
            "geheim",
        ] {
            let refusal = loose(bad).proxy_url().unwrap_err();
            assert!(!refusal.contains("geheim") && refusal.contains("http or https"), "{refusal}");
        }
    }

    #[test]
    fn programs_are_names_or_paths_with_arguments() {
        let list = |words: &[&str]| {
            Raw::List(words.iter().map(|word| Raw::Text((*word).to_owned())).collect())
        };
        let shown = |raw: Raw| raw.program().map(|program| program.command());
        assert_eq!(
            shown(Raw::Text("ecr-login".to_owned())).as_deref(),
            Ok("docker-credential-ecr-login get")
        );
        assert_eq!(
            shown(loose("docker-credential-gcr")).as_deref(),
            Ok("docker-credential-gcr get")
        );
        let path = list(&["/opt/a b/login", "--profile", "ci"]);
        assert_eq!(shown(path).as_deref(), Ok("/opt/a b/login --profile ci get"));
        assert_eq!(shown(loose("/bin/x,-v")).as_deref(), Ok("/bin/x -v get"));
        for bad in ["", "../x", "./x", "sh -c id", "$(id)", "~/bin/x"] {
            assert!(Raw::Text(bad.to_owned()).program().is_err(), "{bad:?} must not parse");
        }
        assert!(list(&[]).program().is_err() && list(&["/x", ""]).program().is_err());
    }

    #[test]
    fn the_environment_may_spell_any_type() {
        assert_eq!(loose("true").boolean(), Ok(true));
        assert_eq!(loose("7").count::<u32>(1), Ok(7));
        assert_eq!(
            loose("a, b,").list(|raw| raw.text().map(str::to_owned)),
            Ok(vec!["a".to_owned(), "b".to_owned()])
        );
        assert!(Raw::Text("true".to_owned()).boolean().is_err(), "the file has types");
        assert!(loose("300").count::<u8>(0).is_err());
        assert!(loose("0").count::<u8>(1).is_err());
    }
}
