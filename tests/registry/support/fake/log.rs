//! The ordered log of everything that was asked of the fake, and the assertions that tests make on it.
//!
//! Secrets are kept as fingerprints: a log line of a failing test gives no token away, and equality is all that is needed.

use super::super::content::sha256;
use super::message::Req;

/// Which of the fake's addresses was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The registry proper.
    Registry,
    /// The token service: same host, other port.
    Realm,
    /// The blob store: another loopback address, and it refuses `Authorization`.
    Cdn,
    /// Somebody else's host: gets nothing unless a test points a switch at it, and then it collects what it is given.
    Foreign,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ping,
    Manifest,
    Blob,
    Tags,
    Catalog,
    Referrers,
    Token,
    /// The place to which a blob was redirected.
    Store,
    /// An intermediate redirect.
    Hop,
    Other,
}

/// How the reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Still being answered.
    Open,
    /// All that was to be sent was written.
    Whole,
    /// The fake broke it off, as it was told.
    Cut,
    /// The client went away before the end.
    Gone,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Entry {
    pub origin: Origin,
    pub connection: u64,
    pub kind: Kind,
    pub method: String,
    pub path: String,
    pub query: String,
    pub repository: String,
    /// Tag, digest, or empty.
    pub reference: String,
    /// As they came; the value of `Authorization` and the signature of a URL are fingerprints.
    pub headers: Vec<(String, String)>,
    /// Fingerprint of the credential, with its scheme.
    pub authorization: Option<String>,
    pub http2: bool,
    /// Zero until the answer begins.
    pub status: u16,
    /// Body bytes written.
    pub sent: u64,
    pub end: End,
}

impl Entry {
    pub fn new(origin: Origin, connection: u64, target: Target, req: &Req) -> Self {
        let headers: Vec<_> = req
            .headers
            .iter()
            .map(|(name, value)| match name.as_str() {
                "authorization" => (name.clone(), fingerprint(value)),
                _ => (name.clone(), value.clone()),
            })
            .collect();
        Self {
            origin,
            connection,
            kind: target.kind,
            method: req.method.clone(),
            path: req.path.clone(),
            query: req.query.clone(),
            repository: target.repository,
            reference: target.reference,
            authorization: req.header("authorization").map(fingerprint),
            headers,
            http2: req.http2,
            status: 0,
            sent: 0,
            end: End::Open,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn is_get(&self) -> bool {
        self.method == "GET"
    }

    /// A short line for messages of failing tests.
    pub fn line(&self) -> String {
        let Self { origin, connection, method, path, query, status, sent, end, .. } = self;
        let range = self.header("range").unwrap_or("-");
        let auth = self.authorization.as_deref().unwrap_or("-");
        format!(
            "{origin:?}#{connection} {method} {path}?{query} range={range} auth={auth} -> {status} {sent} {end:?}"
        )
    }
}

/// The scheme and a short hash of a credential.
pub fn fingerprint(value: &str) -> String {
    let scheme = value.split(' ').next().unwrap_or("");
    format!("{scheme} {}", &sha256(value.as_bytes())["sha256:".len()..][..12])
}

/// What a path is about.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Kind,
    pub repository: String,
    pub reference: String,
}

impl Target {
    pub fn of(path: &str) -> Self {
        let plain = |kind| Self { kind, repository: String::new(), reference: String::new() };
        if path.trim_end_matches('/').ends_with("/token") || path.ends_with("/auth") {
            return plain(Kind::Token);
        }
        for (prefix, kind) in
            [("/data/", Kind::Store), ("/artifacts-downloads/", Kind::Store), ("/hop/", Kind::Hop)]
        {
            if let Some(rest) = path.strip_prefix(prefix) {
                let digest = rest.rsplit('/').next().unwrap_or(rest).to_owned();
                return Self { reference: digest, ..plain(kind) };
            }
        }
        let Some(rest) = path.strip_prefix("/v2") else {
            return plain(Kind::Other);
        };
        let rest = rest.trim_start_matches('/');
        match rest {
            "" => return plain(Kind::Ping),
            "_catalog" => return plain(Kind::Catalog),
            _ => {}
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Self { repository: name.to_owned(), ..plain(Kind::Tags) };
        }
        for (middle, kind) in [
            ("/manifests/", Kind::Manifest),
            ("/blobs/", Kind::Blob),
            ("/referrers/", Kind::Referrers),
        ] {
            if let Some((name, reference)) = rest.rsplit_once(middle) {
                let (repository, reference) = (name.to_owned(), reference.to_owned());
                return Self { kind, repository, reference };
            }
        }
        plain(Kind::Other)
    }
}

/// A copy of the log, or of the part since a mark, with the questions that tests ask.
#[derive(Clone, Debug, Default)]
pub struct Log(pub Vec<Entry>);

impl Log {
    pub fn of(&self, kind: Kind) -> Self {
        self.filter(|entry| entry.kind == kind)
    }

    pub fn at(&self, origin: Origin) -> Self {
        self.filter(|entry| entry.origin == origin)
    }

    pub fn gets(&self) -> Self {
        self.filter(Entry::is_get)
    }

    pub fn heads(&self) -> Self {
        self.filter(|entry| entry.method == "HEAD")
    }

    /// Requests about this tag or digest.
    pub fn about(&self, reference: &str) -> Self {
        self.filter(|entry| entry.reference == reference)
    }

    pub fn filter(&self, keep: impl Fn(&Entry) -> bool) -> Self {
        Self(self.0.iter().filter(|entry| keep(entry)).cloned().collect())
    }

    /// What counts as "upstream requests" of a pull: challenge, token and redirect hops are apart.
    pub fn content(&self) -> Self {
        self.at(Origin::Registry)
            .filter(|entry| !matches!(entry.kind, Kind::Token | Kind::Store | Kind::Hop))
            .filter(|entry| entry.status != 401)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Body bytes sent in all of these.
    pub fn sent(&self) -> u64 {
        self.0.iter().map(|entry| entry.sent).sum()
    }

    pub fn lines(&self) -> String {
        self.0.iter().fold(String::new(), |text, entry| text + "\n  " + &entry.line())
    }

    /// Fails with the log's lines unless there are exactly this many.
    #[track_caller]
    pub fn expect(&self, count: usize, what: &str) {
        assert_eq!(self.len(), count, "{what}; the requests were:{}", self.lines());
    }

    /// The same for "none".
    #[track_caller]
    pub fn expect_none(&self, what: &str) {
        self.expect(0, what);
    }

    #[track_caller]
    pub fn no_authorization(&self) {
        self.filter(|entry| entry.authorization.is_some())
            .expect_none("no credential may be seen here");
    }

    #[track_caller]
    pub fn no_referer_or_cookie(&self) {
        self.filter(|entry| entry.header("referer").or(entry.header("cookie")).is_some())
            .expect_none("no Referer and no Cookie may be seen here");
    }
}
