//! What an operator says about one upstream, with the defaults and limits of the room.
//!
//! What must hold: nothing here prints a secret; a [`Settings`] can be compared, so that a reload rebuilds only what changed.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use zeroize::Zeroizing;

use super::credentials::Stamp;
use super::quota::QUOTA_RESERVE;
use crate::oci::{MANIFEST_SIZE_LIMIT_DEFAULT, RegistryName};

/// TCP and TLS set-up of one connection.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// From a request's end to the headers of its answer, for each hop.
pub(super) const HEADERS: Duration = Duration::from_secs(10);
/// From a question to the headers of its final answer: tokens, redirects and retries included.
pub(super) const ANSWER: Duration = Duration::from_secs(12);
/// A small answer (manifest, a page of tags) with its body: a client waits 15 s for a cold answer.
pub(super) const EXCHANGE: Duration = Duration::from_secs(14);
/// All pages of a list of tags or referrers.
pub(super) const LISTING: Duration = Duration::from_secs(30);
/// Longest silence within a body. There is no limit on the whole of a blob.
pub(super) const IDLE_BODY: Duration = Duration::from_secs(20);
/// One token request with its retries. It runs on its own, so a caller that gives up earlier leaves a token for the next.
pub(super) const TOKEN: Duration = Duration::from_secs(15);
/// One run of a credential helper.
pub(super) const HELPER: Duration = Duration::from_secs(10);
/// The age from which a helper's login is asked for anew behind the answers: the protocol tells no end, Google's live for an hour.
pub const CREDENTIAL_REFRESH: Duration = Duration::from_secs(3600);
/// go-containerregistry reads 64 KiB of a token answer, oras-go 128.
pub(super) const TOKEN_BYTES: u64 = 128 * 1024;
/// How much of an error body is read.
pub(super) const ERROR_BODY_BYTES: u64 = 64 * 1024;
/// Redirects that one request follows.
pub(super) const REDIRECTS: usize = 10;
/// Tries of one request on failures that may pass.
pub(super) const ATTEMPTS: usize = 3;
/// Pages of tags or referrers.
pub(super) const TAG_PAGES: usize = 1000;
/// Downloads from one upstream at once, and as many small requests beside them.
pub(super) const PARALLEL: usize = 64;
/// The first pause between tries; doubled each time, with full jitter.
pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// The longest pause between tries.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// TCP and TLS set-up of one connection to a mirror or the parent: one that swallows packets must not cost more.
pub(super) const MIRROR_CONNECT: Duration = Duration::from_secs(1);
/// An answer of an endpoint while there is another one to ask.
pub(super) const MIRROR_ANSWER: Duration = Duration::from_secs(3);

/// One configured registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The name under which clients know it; its identity.
    pub name: RegistryName,
    /// Scheme, host and port of the registry, such as `https://registry-1.docker.io`. A path is put before `/v2/`, unless it has a
    /// component `v2` of its own: then repository names follow it (`https://harbor.example.com/v2/hub-mirror`), as with containerd's
    /// `override_path`.
    pub url: Url,
    /// Copies of the registry, asked in order before it and without the credential. Written as `url`.
    pub mirrors: Vec<Url>,
    /// Another roadstead that is asked before all of them.
    pub parent: Option<Parent>,
    pub credential: CredentialSource,
    /// Hosts, besides the registry's own and those of its registrable domain, whose token service may get our credential.
    pub realms: Vec<String>,
    /// More authorities to trust, in PEM, beside those of the system.
    pub ca_file: Option<CaFile>,
    /// The HTTP proxy for this upstream; it wins over [`ProxyEnv`].
    pub proxy: Option<String>,
    /// The age from which the login of a credential helper is renewed in the background.
    pub credential_refresh: Duration,
    /// Addresses that redirects and token services may have although they are not public.
    pub allow_addresses: Vec<IpNet>,
    /// At so many requests left, those that nobody needs are not made.
    pub quota_reserve: u64,
    pub limits: Limits,
}

/// A roadstead above this one. It is told the upstream's name with `?ns=`, as mirrors are.
#[derive(Clone, PartialEq, Eq)]
pub struct Parent {
    /// Written as the `url` of an upstream.
    pub url: Url,
    /// More authorities to trust for it.
    pub ca_file: Option<CaFile>,
}

/// A file with authorities, in the state in which it was found: settings that are made again after it changed are not equal.
#[derive(Clone, PartialEq, Eq)]
pub struct CaFile {
    pub(super) path: PathBuf,
    stamp: Option<Stamp>,
}

/// Where the credential for an upstream comes from. Files are read again when they change.
#[derive(Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// Anonymous.
    None,
    Basic {
        username: String,
        password: Secret,
    },
    /// The password is the file's content without line ends at its end.
    PasswordFile {
        username: String,
        path: PathBuf,
    },
    /// A docker `config.json`; a registry without an entry in it is asked anonymously.
    DockerConfig {
        path: PathBuf,
    },
    /// A program that speaks the protocol of docker's credential helpers; it must have a login.
    Helper(Program),
}

/// A credential helper. Its arguments are the operator's own and may hold a secret, so they are not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    /// An absolute path, or a name that is looked for in the directories of `PATH`.
    pub path: PathBuf,
    /// What stands before the word `get`.
    pub arguments: Vec<String>,
}

/// The room's limits; `Default` has the documented values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP and TLS set-up of one connection.
    pub connect: Duration,
    /// From a request's end to the headers of its answer, for each hop.
    pub headers: Duration,
    /// From a question to the headers of its final answer: tokens, redirects and retries included.
    pub answer: Duration,
    /// A small answer with its body.
    pub exchange: Duration,
    /// All pages of a list.
    pub listing: Duration,
    /// Longest silence within a body.
    pub idle_body: Duration,
    /// One token request with its retries.
    pub token: Duration,
    /// One run of a credential helper.
    pub helper: Duration,
    /// Largest manifest, and largest page of tags or referrers, in bytes.
    pub manifest_bytes: u64,
    pub token_bytes: u64,
    pub error_body_bytes: u64,
    pub redirects: usize,
    pub attempts: usize,
    pub tag_pages: usize,
    /// Downloads at once, and as many small requests beside them.
    pub parallel: usize,
    pub backoff_first: Duration,
    pub backoff_max: Duration,
}

/// The proxies of the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`), as `app` read them. They do not apply to loopback.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyEnv {
    pub http: Option<String>,
    pub https: Option<String>,
    pub no_proxy: Option<String>,
}

/// A text that cannot be printed and is wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Settings {
    /// An upstream that is asked anonymously, with the defaults of the room.
    pub fn new(name: RegistryName, url: Url) -> Self {
        Self {
            name,
            url,
            mirrors: Vec::new(),
            parent: None,
            credential: CredentialSource::None,
            realms: Vec::new(),
            ca_file: None,
            proxy: None,
            credential_refresh: CREDENTIAL_REFRESH,
            allow_addresses: Vec::new(),
            quota_reserve: QUOTA_RESERVE,
            limits: Limits::default(),
        }
    }
}

impl CaFile {
    /// Looks at the file without reading it; one that is missing is told when it is read.
    pub fn at(path: PathBuf) -> Self {
        let stamp = Stamp::of(&path);
        Self { path, stamp }
    }
}

impl fmt::Debug for CaFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: CONNECT,
            headers: HEADERS,
            answer: ANSWER,
            exchange: EXCHANGE,
            listing: LISTING,
            idle_body: IDLE_BODY,
            token: TOKEN,
            helper: HELPER,
            manifest_bytes: MANIFEST_SIZE_LIMIT_DEFAULT,
            token_bytes: TOKEN_BYTES,
            error_body_bytes: ERROR_BODY_BYTES,
            redirects: REDIRECTS,
            attempts: ATTEMPTS,
            tag_pages: TAG_PAGES,
            parallel: PARALLEL,
            backoff_first: BACKOFF_FIRST,
            backoff_max: BACKOFF_MAX,
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Basic { username, password } => f
                .debug_struct("Basic")
                .field("username", username)
                .field("password", password)
                .finish(),
            Self::PasswordFile { username, path } => f
                .debug_struct("PasswordFile")
                .field("username", username)
                .field("path", path)
                .finish(),
            Self::DockerConfig { path } => {
                f.debug_struct("DockerConfig").field("path", path).finish()
            }
            Self::Helper(program) => f.debug_tuple("Helper").field(program).finish(),
        }
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parent")
            .field("url", &without_userinfo(self.url.as_str()))
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mirrors: Vec<String> =
            self.mirrors.iter().map(|url| without_userinfo(url.as_str())).collect();
        f.debug_struct("Settings")
            .field("name", &self.name)
            .field("url", &without_userinfo(self.url.as_str()))
            .field("mirrors", &mirrors)
            .field("parent", &self.parent)
            .field("credential", &self.credential)
            .field("realms", &self.realms)
            .field("ca_file", &self.ca_file)
            .field("proxy", &self.proxy.as_deref().map(without_userinfo))
            .field("credential_refresh", &self.credential_refresh)
            .field("allow_addresses", &self.allow_addresses)
            .field("quota_reserve", &self.quota_reserve)
            .field("limits", &self.limits)
            .finish()
    }
}

impl fmt::Debug for ProxyEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyEnv")
            .field("http", &self.http.as_deref().map(without_userinfo))
            .field("https", &self.https.as_deref().map(without_userinfo))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

impl ProxyEnv {
    /// One line for each proxy that is set, without the user and password that it may hold.
    pub fn lines(&self) -> Vec<String> {
        let line = |scheme: &str, proxy: &Option<String>| {
            proxy.as_deref().map(|proxy| format!("{scheme} upstreams through {}", shown(proxy)))
        };
        let mut lines: Vec<String> =
            [line("https", &self.https), line("http", &self.http)].into_iter().flatten().collect();
        if let Some(list) = self.no_proxy.as_deref().filter(|_| !lines.is_empty()) {
            lines.push(format!("no proxy for {list}"));
        }
        lines
    }
}

/// The address of a proxy, fit for everybody's eyes.
pub fn shown(proxy: &str) -> String {
    without_userinfo(proxy).replacen("***@", "", 1)
}

/// Could a text that was meant as an address hold a password? It does before an `@`; and where the `@` was forgotten
/// (`http://me:secretproxy:3128`) there is more than a port behind the host, and nobody can tell what. An IPv6 address without its brackets
/// is none.
pub fn may_hold_password(text: &str) -> bool {
    if text.contains('@') {
        return true;
    }
    // Slashes are forgotten as easily.
    let (has_scheme, rest) =
        text.split_once(":/").map_or((false, text), |(_scheme, rest)| (true, rest));
    let rest = rest.trim_start_matches('/');
    // Brackets are around a host and nothing else; one within a password hides nothing.
    let is_bracketed = rest.starts_with('[');
    let host_end = rest.find(']').filter(|_| is_bracketed).map_or(0, |end| end + 1);
    let Some((_host, after)) = rest[host_end..].split_once(':') else {
        return false;
    };
    let port = after.split(['/', '?', '#', ':']).next().unwrap_or_default();
    let has_port = port.bytes().all(|byte| byte.is_ascii_digit());
    let has_more = after.contains(':');
    if has_scheme {
        // In an address a port is a number and no other colon is needed, so what else there is may be of a password with a slash in it.
        return !has_port || has_more;
    }
    let is_number =
        |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'[' | b']' | b'/');
    // A name with a port and a tag has two as well, and so have the paths of Rust.
    let is_name = has_port && (port.is_empty() || after[port.len()..].starts_with('/'));
    has_more && !is_name && !rest.bytes().all(is_number)
}

/// A URL text without what stands before the last `@` of its authority; works on texts that are no URL at all.
fn without_userinfo(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let joined = if scheme.is_empty() { "" } else { "://" };
    match rest.rsplit_once('@') {
        Some((_userinfo, host)) => format!("{scheme}{joined}***@{host}"),
        None if may_hold_password(text) => format!("{scheme}{joined}***"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_whose_at_is_missing_may_hold_a_password() {
        for (text, wanted) in [
            ("http://me:secret@proxy:3128", true),
            ("http://me:secretproxy:3128", true),
            ("me:secretproxy:3128", true),
            ("http://me:se/cretproxy:3128", true),
            ("http://me:sec retproxy:3128/", true),
            ("http://me:secretproxy", true),
            ("http://[::1]:secret:3128", true),
            ("http://me:secret]proxy:3128", true),
            ("http://[me:secretproxy:3128", true),
            ("socks5://me:secret:1080/path", true),
            ("http://proxy:3128", false),
            ("proxy:3128", false),
            ("http://tp://me:secretproxy:3128", true),
            ("me:se/cretproxy:3128", true),
            ("https://registry.example.com:99999/a", false),
            ("localhost:5000/library/nginx:1.27", false),
            ("http://[fd00::1]:3128/x", false),
            ("[fd00::1]:3128", false),
            ("http:///me:secretproxy:3128", true),
            ("http:/me:secretproxy:3128", true),
            ("http//me:secretproxy:3128", true),
            ("me:12:3128", true),
            ("::1:5000", false),
            ("roadstead::upstream=debug,info", false),
            ("fd00::/8", false),
            ("library/*:v1", false),
            ("ghcr.io", false),
            ("", false),
        ] {
            assert_eq!(may_hold_password(text), wanted, "{text}");
        }
        assert_eq!(shown("http://me:secretproxy:3128"), "http://***");
    }

    #[test]
    fn settings_print_no_secret() {
        let url = "https://u:hunter2@example.com".parse().unwrap();
        let settings = Settings {
            mirrors: vec!["https://u:hunter2@mirror.example".parse().unwrap()],
            parent: Some(Parent {
                url: "https://u:hunter2@parent.example".parse().unwrap(),
                ca_file: None,
            }),
            credential: CredentialSource::Basic {
                username: "bot".into(),
                password: "hunter2".into(),
            },
            proxy: Some("http://p:hunter2@proxy:3128".into()),
            ..Settings::new("example.com".parse().unwrap(), url)
        };
        let helper = CredentialSource::Helper(Program {
            path: "/bin/login".into(),
            arguments: vec!["hunter2".into()],
        });
        let proxies = ProxyEnv {
            http: Some("p:hunter2@proxy".into()),
            https: Some("http://a@b:hunter2@proxy".into()),
            no_proxy: None,
        };
        let text = format!(
            "{settings:?} {proxies:?} {} {helper:?} {} {:?}",
            proxies.lines().join(" "),
            Secret::from("hunter2"),
            Secret::from("hunter2")
        );
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("***@example.com") && text.contains("***@proxy:3128"));
    }
}
