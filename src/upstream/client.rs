//! The upstream itself: what it is made of, and where its URLs are.
//!
//! The verbs are in `manifest.rs`, `blob.rs` and `listing.rs`; how a question gets its answer is in `ask.rs`.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Response, Url};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::credentials::{Credential, Credentials};
use super::docker_config::RegistryHosts;
use super::error::{BuildError, Cause, Error};
use super::memory::Memory;
use super::metrics::{Kind, Metrics};
use super::realm::RealmRule;
use super::settings::{Limits, ProxyEnv, Settings};
use super::token::Tokens;
use super::transport::{self, Deadline, Transport};
use super::trust;
use crate::clock::Clock;
use crate::oci::{Reference, RegistryName, RepositoryName};

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
}

/// One foreign registry. Made once per configured upstream and shared.
#[derive(Debug)]
pub struct Upstream {
    name: RegistryName,
    host: String,
    pub(super) origin: Url,
    /// Path up to the repository name, with slashes at both ends.
    base: String,
    /// What the registry's own scopes have before the repository name: empty, or a path with a slash at its end.
    scope_prefix: String,
    pub(super) limits: Limits,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: TaskTracker,
    pub(super) transport: Transport,
    pub(super) credentials: Arc<Credentials>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) memory: Memory,
    /// Places for small requests.
    pub(super) questions: Semaphore,
    /// Places for downloads; each is held as long as its body.
    pub(super) downloads: Arc<Semaphore>,
}

/// Could an upstream be set up from these settings? Nothing is dialled; reads the `ca_file`, so it blocks for a moment.
///
/// # Errors
/// As [`Upstream::new`] has them for these settings.
pub fn check(settings: &Settings) -> Result<(), BuildError> {
    checked_host(&settings.url)?;
    if let Some(proxy) = &settings.proxy {
        check_proxy(proxy)?;
    }
    match &settings.ca_file {
        Some(file) => trust::authorities_in(&file.path).map(drop),
        None => Ok(()),
    }
}

/// Could this be the address of an HTTP proxy?
///
/// # Errors
/// [`BuildError::Proxy`].
pub fn check_proxy(text: &str) -> Result<(), BuildError> {
    transport::checked_proxy(text).map(drop)
}

impl Upstream {
    /// Sets up an upstream; nothing is dialled. Reads its `ca_file` and credential file, so it blocks for a moment.
    ///
    /// # Errors
    /// [`BuildError`] for settings that cannot work.
    pub fn new(settings: Settings, shared: &Shared) -> Result<Self, BuildError> {
        let host = checked_host(&settings.url)?;
        let limits = transport::sane(&settings.limits);
        let meter = shared.metrics.of(&settings.name);
        let (proxies, id) = (&shared.proxies, &shared.instance_id);
        let transport = Transport::new(&settings, proxies, id, meter, &shared.tasks)?;
        let hosts = RegistryHosts::new(&[settings.name.as_str(), &host]);
        let (base, scope_prefix) = base_path(settings.url.path());
        let rule = RealmRule::new(&settings.url, &settings.realms);
        let tokens = Tokens::new(
            transport.clone(),
            rule,
            limits.clone(),
            Arc::clone(&shared.clock),
            shared.tasks.clone(),
        );
        Ok(Self {
            name: settings.name,
            host,
            origin: settings.url,
            base,
            scope_prefix,
            clock: Arc::clone(&shared.clock),
            tasks: shared.tasks.clone(),
            transport,
            credentials: Arc::new(Credentials::new(settings.credential, hosts)),
            tokens: Arc::new(tokens),
            memory: Memory::new(),
            questions: Semaphore::new(limits.parallel),
            downloads: Arc::new(Semaphore::new(limits.parallel)),
            limits,
        })
    }

    /// The name under which clients know it.
    pub fn name(&self) -> &RegistryName {
        &self.name
    }

    /// The host that is asked, with its port if that is not the scheme's own: for logs and for the source of a tag's move.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Tells one credential from another without telling the credential; `None` means that we ask anonymously. It covers all logins
    /// that the configuration has for this upstream, as last read.
    pub fn credential_fingerprint(&self) -> Option<[u8; 16]> {
        self.credentials.fingerprint()
    }

    /// May anybody read the repository? Asks without any credential: for the manifest if a reference is known, else for a page of
    /// tags. What only we can see is not public, also where upstream hides it behind a 404.
    ///
    /// # Errors
    /// [`Error::Absent`] if not even we can see it, so that there is nothing to judge; else whatever kept upstream from deciding, but
    /// never [`Error::Denied`].
    pub async fn public(
        &self,
        repository: &RepositoryName,
        reference: Option<&Reference>,
    ) -> Result<bool, Error> {
        let deadline = Deadline::after(self.limits.answer);
        let nobody = Arc::new(Credential::anonymous());
        match self.visible(&nobody, repository, reference, deadline).await {
            Ok(()) => return Ok(true),
            Err(Error::Denied) => return Ok(false),
            Err(Error::Absent) => {}
            Err(error) => return Err(error),
        }
        let who = self.credentials.current(repository, &self.tasks).await?;
        if who.login.is_none() {
            return Err(Error::Absent);
        }
        match self.visible(&who, repository, reference, deadline).await {
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
        deadline: Deadline,
    ) -> Result<(), Error> {
        let _place = self.place(deadline).await?;
        match reference {
            Some(reference) => self.visible_manifest(who, repository, reference, deadline).await,
            None => self.visible_list(who, repository, deadline).await,
        }
    }

    /// The body of a small answer, whole and not encoded.
    pub(super) async fn small_body(
        &self,
        kind: Kind,
        response: Response,
        deadline: Deadline,
    ) -> Result<Bytes, Error> {
        if transport::is_encoded(response.headers()) {
            return Err(ENCODED);
        }
        if transport::is_html(response.headers()) {
            return Err(HTML);
        }
        let limit = self.limits.manifest_bytes;
        self.transport.body(kind, response, limit, deadline).await
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
        url
    }

    pub(super) fn ping_url(&self) -> Url {
        let mut url = self.origin.clone();
        let end = self.base.len() - self.scope_prefix.len();
        url.set_path(&self.base[..end]);
        url
    }

    /// The scope that a challenge without one means.
    pub(super) fn default_scope(&self, repository: &RepositoryName) -> String {
        format!("repository:{}{repository}:pull", self.scope_prefix)
    }
}

pub(super) const ENCODED: Error = Error::Junk("an encoded body, though identity was asked for");
pub(super) const HTML: Error = Error::Junk("an HTML page");

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
