//! The client of one address: what it is made of, and where its URLs are.
//!
//! The verbs are in `manifest.rs`, `blob.rs` and `listing.rs`; how a question gets its answer is in `ask.rs`; which address is asked is
//! decided in `failover.rs`. What must hold: an address that is not the registry's own has no credential of it.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Response, Url};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::credentials::{self, Credential, Credentials};
use super::docker_config::RegistryHosts;
use super::endpoint::{Endpoint, Role};
use super::error::{BuildError, Cause, Error};
use super::failover::Turn;
use super::keeper::Means;
use super::memory::Memory;
use super::metrics::{Kind, Metrics};
use super::quota::{Quota, Spending};
use super::realm::RealmRule;
use super::settings::{Limits, ProxyEnv, Settings};
use super::throttle::Throttle;
use super::token::Tokens;
use super::transport::{self, Deadline, Transport};
use super::trust;
use crate::clock::Clock;
use crate::oci::{Reference, RepositoryName};

/// What all upstreams of a process share.
#[derive(Clone, Debug)]
pub struct Shared {
    pub clock: Arc<dyn Clock>,
    /// Token requests and reads of credential files run here.
    pub tasks: TaskTracker,
    /// Goes into `Via` of every request, so that a loop is found; a token of RFC 9110.
    pub instance_id: String,
    pub metrics: Metrics,
    pub proxies: ProxyEnv,
    /// The value of `PATH`: where credential helpers are looked for.
    pub search_path: Option<String>,
    /// Ends the runs of credential helpers.
    pub shutdown: CancellationToken,
}

/// One address of a registry, and what is needed to ask it: its own connections, tokens, limits and memory.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) endpoint: Endpoint,
    /// The registry's name, for an endpoint that has many.
    pub(super) ns: Option<String>,
    pub(super) origin: Url,
    /// Path up to the repository name, with slashes at both ends.
    base: String,
    /// What the registry's own scopes have before the repository name: empty, or a path with a slash at its end.
    scope_prefix: String,
    pub(super) limits: Limits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) transport: Transport,
    pub(super) credentials: Arc<Credentials>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) memory: Memory,
    pub(super) throttle: Throttle,
    pub(super) quota: Quota,
    /// Places for small requests.
    pub(super) questions: Semaphore,
    /// Places for downloads; each is held as long as its body.
    pub(super) downloads: Arc<Semaphore>,
}

/// Could an upstream be set up from these settings? Nothing is dialled; reads the files with authorities, so it blocks for a moment.
///
/// # Errors
/// As `Upstream::new` has them for these settings.
pub fn check(settings: &Settings) -> Result<(), BuildError> {
    checked_host(&settings.url)?;
    for mirror in &settings.mirrors {
        checked_host(mirror)?;
    }
    if let Some(proxy) = &settings.proxy {
        check_proxy(proxy)?;
    }
    let parents = settings.parent.as_ref().and_then(|parent| parent.ca_file.as_ref());
    for file in settings.ca_file.iter().chain(parents) {
        trust::authorities_in(&file.path)?;
    }
    match &settings.parent {
        Some(parent) => checked_host(&parent.url).map(drop),
        None => Ok(()),
    }
}

/// The credential helpers that these settings need and that cannot be run: they are not there, or no programs. Without their arguments,
/// which may hold a secret. Blocks.
pub fn missing_helpers(settings: &Settings, search_path: Option<&str>) -> Vec<String> {
    let host = checked_host(&settings.url).unwrap_or_default();
    let hosts = RegistryHosts::new(&[settings.name.as_str(), &host]);
    let programs = credentials::programs(&settings.credential, &hosts);
    let missing = programs.iter().filter(|program| program.find(search_path).is_none());
    missing.map(|program| program.path.display().to_string()).collect()
}

/// Could this be the address of an HTTP proxy?
///
/// # Errors
/// [`BuildError::Proxy`].
pub fn check_proxy(text: &str) -> Result<(), BuildError> {
    transport::checked_proxy(text).map(drop)
}

impl Client {
    /// Sets up the client of one address, `settings.url`, of the upstream `settings.name`; nothing is dialled. Reads its files, so it
    /// blocks for a moment.
    ///
    /// # Errors
    /// [`BuildError`] for settings that cannot work.
    pub(super) fn new(settings: Settings, role: Role, shared: &Shared) -> Result<Self, BuildError> {
        let host = checked_host(&settings.url)?;
        let limits = transport::sane(&settings.limits);
        let meter = shared.metrics.of(&settings.name, &host);
        let meter = if role == Role::Origin { meter } else { meter.of_a_copy() };
        let (proxies, id) = (&shared.proxies, &shared.instance_id);
        let transport = Transport::new(&settings, proxies, id, meter.clone(), &shared.tasks)?;
        let hosts = RegistryHosts::new(&[settings.name.as_str(), &host]);
        let means = Means {
            clock: Arc::clone(&shared.clock),
            tasks: shared.tasks.clone(),
            shutdown: shared.shutdown.clone(),
            meter: meter.clone(),
            search_path: shared.search_path.clone(),
            limit: limits.helper,
            refresh: settings.credential_refresh,
        };
        let quota = Quota::new(settings.quota_reserve, Arc::clone(&shared.clock), meter.clone());
        let (base, scope_prefix) = base_path(settings.url.path());
        let rule = RealmRule::new(&settings.url, &settings.realms);
        let tokens = Tokens::new(
            transport.clone(),
            rule,
            limits.clone(),
            Arc::clone(&shared.clock),
            shared.tasks.clone(),
        );
        let clock = Arc::clone(&shared.clock);
        let ns = (role != Role::Origin).then(|| settings.name.to_string());
        Ok(Self {
            endpoint: Endpoint::new(settings.name, host, role, clock, meter),
            ns,
            origin: settings.url,
            base,
            scope_prefix,
            clock: Arc::clone(&shared.clock),
            transport,
            credentials: Arc::new(Credentials::new(settings.credential, hosts, means)),
            tokens: Arc::new(tokens),
            memory: Memory::new(),
            throttle: Throttle::default(),
            quota,
            questions: Semaphore::new(limits.parallel),
            downloads: Arc::new(Semaphore::new(limits.parallel)),
            limits,
        })
    }

    /// May anybody read the repository? See `Upstream::public`.
    pub(super) async fn public(
        &self,
        repository: &RepositoryName,
        reference: Option<&Reference>,
        spending: Spending,
        turn: Turn<'_>,
    ) -> Result<bool, Error> {
        let nobody = Arc::new(Credential::anonymous());
        match self.visible(&nobody, repository, reference, (spending, turn)).await {
            Ok(()) => return Ok(true),
            Err(Error::Denied) => return Ok(false),
            Err(Error::Absent) => {}
            Err(error) => return Err(error),
        }
        let who = self.credentials.current(repository, turn.deadline).await?;
        if who.login.is_none() {
            return Err(Error::Absent);
        }
        match self.visible(&who, repository, reference, (spending, turn)).await {
            // Denied to us as well: it is there, and not for everybody.
            Ok(()) | Err(Error::Denied) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Can `who` see the repository?
    async fn visible(
        &self,
        who: &Arc<Credential>,
        repository: &RepositoryName,
        reference: Option<&Reference>,
        (spending, turn): (Spending, Turn<'_>),
    ) -> Result<(), Error> {
        let _place = self.place(turn.deadline).await?;
        match reference {
            Some(reference) => {
                self.visible_manifest(who, repository, reference, (spending, turn)).await
            }
            None => self.visible_list(who, repository, turn).await,
        }
    }

    /// The body of a small answer, whole and not encoded. A label without a code is only a label: JSON begins with a brace.
    pub(super) async fn small_body(
        &self,
        kind: Kind,
        response: Response,
        deadline: Deadline,
    ) -> Result<Bytes, Error> {
        let labelled = transport::is_encoded(response.headers());
        if transport::is_html(response.headers()) {
            return Err(HTML);
        }
        let limit = self.limits.manifest_bytes;
        let body = self.transport.body(kind, response, limit, deadline).await?;
        if labelled && !body.trim_ascii_start().starts_with(b"{") {
            return Err(ENCODED);
        }
        Ok(body)
    }

    /// A place among the small requests of this upstream.
    pub(super) async fn place(&self, deadline: Deadline) -> Result<SemaphorePermit<'_>, Error> {
        let place = timeout(deadline.remaining(), self.questions.acquire()).await;
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }

    /// `/v2/<repository>/<rest>`; all parts are safe in a path by their types.
    pub(super) fn url(&self, repository: &RepositoryName, rest: &str) -> Url {
        let mut url = self.origin.clone();
        url.set_path(&format!("{}{repository}/{rest}", self.base));
        url.set_query(with_ns(None, self.ns.as_deref()).as_deref());
        url
    }

    pub(super) fn ping_url(&self) -> Url {
        let mut url = self.origin.clone();
        let end = self.base.len() - self.scope_prefix.len();
        url.set_path(&self.base[..end]);
        url.set_query(with_ns(None, self.ns.as_deref()).as_deref());
        url
    }

    /// The scope that a challenge without one means.
    pub(super) fn default_scope(&self, repository: &RepositoryName) -> String {
        format!("repository:{}{repository}:pull", self.scope_prefix)
    }
}

pub(super) const ENCODED: Error = Error::Junk("an encoded body, though identity was asked for");
pub(super) const HTML: Error = Error::Junk("an HTML page");

/// The query of a question to an endpoint that must be told which registry is meant. Plain registries ignore it.
pub(super) fn with_ns(query: Option<&str>, ns: Option<&str>) -> Option<String> {
    let Some(ns) = ns else {
        return query.map(str::to_owned);
    };
    let others = query.unwrap_or_default().split('&');
    let others = others.filter(|pair| !pair.is_empty() && !pair.starts_with("ns="));
    let own = format!("ns={ns}");
    Some(others.chain([own.as_str()]).collect::<Vec<_>>().join("&"))
}

/// All places at this upstream are taken.
pub(super) fn busy() -> Error {
    Error::Unreachable(Cause::Busy)
}

fn checked_host(url: &Url) -> Result<String, BuildError> {
    let refused = |reason| Err(BuildError::Url { reason });
    if !matches!(url.scheme(), "http" | "https") {
        return refused("want http or https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refused("user and password belong into username and password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refused("a query or fragment makes no sense here");
    }
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        (Some(host), None) => Ok(host.to_owned()),
        (None, _) => refused("there is no host"),
    }
}

/// The path before repository names, and the part of it that belongs to the names as the registry sees them.
fn base_path(path: &str) -> (String, String) {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let join = |parts: &[&str]| parts.iter().map(|part| format!("{part}/")).collect::<String>();
    match parts.iter().position(|part| *part == "v2") {
        Some(at) => (format!("/{}", join(&parts)), join(&parts[at + 1..])),
        None => (format!("/{}v2/", join(&parts)), String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_before_and_after_v2() {
        let of = |path: &str| base_path(path);
        assert_eq!(of("/"), ("/v2/".into(), String::new()));
        assert_eq!(of("/registry/"), ("/registry/v2/".into(), String::new()));
        assert_eq!(of("/v2"), ("/v2/".into(), String::new()));
        assert_eq!(of("/v2/hub-mirror"), ("/v2/hub-mirror/".into(), "hub-mirror/".into()));
        assert_eq!(of("/a//v2/b/c/"), ("/a/v2/b/c/".into(), "b/c/".into()));
    }

    #[test]
    fn a_mirror_is_told_which_registry_is_meant() {
        let of = |query, ns| with_ns(query, ns);
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some("n=1"), None).as_deref(), Some("n=1"));
        assert_eq!(of(None, Some("r.example:5000")).as_deref(), Some("ns=r.example:5000"));
        let followed = of(Some("n=1&ns=other.example&last=x"), Some("r.example"));
        assert_eq!(followed.as_deref(), Some("n=1&last=x&ns=r.example"));
    }

    #[test]
    fn urls_that_cannot_work_are_refused() {
        let host = |url: &str| checked_host(&url.parse().unwrap());
        assert_eq!(host("https://ghcr.io").unwrap(), "ghcr.io");
        assert_eq!(host("http://localhost:5001/x").unwrap(), "localhost:5001");
        assert_eq!(host("https://r.example:443").unwrap(), "r.example");
        for bad in [
            "ftp://r.example",
            "https://u:p@r.example",
            "https://r.example/?x=1",
            "https://r.example/#x",
            "data:x",
        ] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
