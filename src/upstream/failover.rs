//! The upstream itself: its endpoints, and which of them is asked.
//!
//! The order is parent, mirrors as configured, the registry itself (the origin). What must hold: what an endpoint gives counts, because
//! all bytes are verified by their digest, and refusals count only from the origin; who failed is left alone for a moment (`health.rs`)
//! while another can be asked; all turns of a question end within its time; the origin's credential goes to the origin alone. A tag that
//! a copy gives may be old: the caller, who knows the tag's past, asks on with [`Upstream::manifest_head_beyond`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::blob::{BlobBody, BlobRange};
use super::client::{Client, Shared};
use super::endpoint::{Endpoint, Pass, Role};
use super::error::{BuildError, Cause, Error};
use super::manifest::{FetchedManifest, ManifestHead};
use super::quota::Spending;
use super::settings::{CredentialSource, Limits, MIRROR_ANSWER, MIRROR_CONNECT, Settings, shown};
use super::transport::Deadline;
use crate::oci::{self, Digest, MediaType, Reference, RegistryName, RepositoryName};

/// One foreign registry. A handle; clones are the same upstream.
#[derive(Clone, Debug)]
pub struct Upstream {
    inner: Arc<Inner>,
    /// Through whom the request came that asks, for `Via`.
    via: Option<Arc<str>>,
}

#[derive(Debug)]
struct Inner {
    name: RegistryName,
    /// In the order in which they are asked; the last one is the origin.
    clients: Vec<Client>,
}

/// One question's turn at one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    pub(super) deadline: Deadline,
    /// One page of a list.
    pub(super) page: Duration,
    /// Nobody is left to be asked after this one: failures that may pass are tried again.
    pub(super) last: bool,
    pub(super) via: Option<&'a str>,
}

/// Whom a question may be put to, and how.
#[derive(Clone, Copy, Debug)]
struct Plan<'a> {
    time: Duration,
    who: Who<'a>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Who<'a> {
    All,
    Only(Role),
    /// Those behind this one in the order.
    Beyond(&'a Endpoint),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In order.
    Small,
    /// In order, page by page.
    List,
    /// Whoever gave no trouble lately first. `sure` is that somebody is asked even if all are left alone.
    Body { sure: bool },
}

/// What was heard so far from those who did not give what was asked for.
#[derive(Debug, Default)]
struct Heard {
    origin: Option<Error>,
    parent: Option<Error>,
    head_unusable: bool,
    came_back: bool,
}

impl Upstream {
    /// Sets up an upstream; nothing is dialled. Reads its files with authorities and credentials, so it blocks for a moment.
    ///
    /// # Errors
    /// [`BuildError`] for settings that cannot work.
    pub fn new(settings: Settings, shared: &Shared) -> Result<Self, BuildError> {
        let mut clients = Vec::new();
        if let Some(parent) = &settings.parent {
            let above = Settings {
                url: parent.url.clone(),
                ca_file: parent.ca_file.clone(),
                ..copy_of(&settings)
            };
            clients.push(Client::new(above, Role::Parent, shared)?);
        }
        for mirror in &settings.mirrors {
            let copy = Settings { url: mirror.clone(), ..copy_of(&settings) };
            clients.push(Client::new(copy, Role::Mirror, shared)?);
        }
        let name = settings.name.clone();
        clients.push(Client::new(settings, Role::Origin, shared)?);
        Ok(Self { inner: Arc::new(Inner { name, clients }), via: None })
    }

    /// The same upstream, asked for a request that came through other roadsteads. `via` is the value of `Via` that names them.
    #[must_use]
    pub fn asked_via(&self, via: Option<Arc<str>>) -> Self {
        Self { inner: Arc::clone(&self.inner), via }
    }

    /// The name under which clients know it.
    pub fn name(&self) -> &RegistryName {
        &self.inner.name
    }

    /// The registry's own host, with its port if that is not the scheme's own.
    pub fn host(&self) -> &str {
        self.origin().endpoint.host()
    }

    /// Is this the host of one of its endpoints, as configured now?
    pub fn has_endpoint_at(&self, host: &str) -> bool {
        self.inner.clients.iter().any(|client| client.endpoint.host() == host)
    }

    /// Whom it asks, in order: address, role in a word, and whether it is being asked now or left alone after failures.
    pub fn endpoints(&self) -> Vec<(String, &'static str, bool)> {
        let each = self.inner.clients.iter().map(|client| {
            let role = match client.endpoint.role() {
                Role::Parent => "parent",
                Role::Mirror => "mirror",
                Role::Origin => "registry",
            };
            (shown(client.origin.as_str()), role, client.endpoint.would_admit())
        });
        each.collect()
    }

    /// What this endpoint gave was not what its digest says. It stands behind the others from now on, where there are others.
    pub fn blame(&self, endpoint: &Endpoint) {
        endpoint.blamed();
    }

    /// Tells one credential from another without telling the credential; `None` means that we ask anonymously. It covers all logins
    /// that the configuration has for this upstream, as last read.
    pub fn credential_fingerprint(&self) -> Option<[u8; 16]> {
        self.origin().credentials.fingerprint()
    }

    /// Sees to it that the login of a helper is known, if it was never asked for, so that
    /// [`credential_fingerprint`](Self::credential_fingerprint) tells who we are. Waits at most `patience`, and not again while the helper
    /// is in trouble.
    pub async fn settle_credential(&self, patience: Duration) {
        self.origin().settle_credential(patience).await;
    }

    /// Is it not known yet who we are, because a helper has not answered?
    pub fn is_unsettled(&self) -> bool {
        self.origin().is_unsettled()
    }

    /// Is so little left of the registry's own quota (`quota_reserve`) that requests which nobody needs should not be made? What a copy
    /// could still give does not count: nobody knows before it is asked whether the question ends at the registry.
    pub fn is_sparing(&self) -> bool {
        self.origin().is_sparing()
    }

    /// May anybody read the repository? Asks the registry itself without any credential: for the manifest if a reference is known, else
    /// for a page of tags. What only we can see is not public, also where upstream hides it behind a 404.
    ///
    /// # Errors
    /// [`Error::Absent`] if not even we can see it, so that there is nothing to judge; else whatever kept upstream from deciding, but
    /// never [`Error::Denied`]. At the quota's reserve an optional question costs no GET of a manifest.
    pub async fn public(
        &self,
        repository: &RepositoryName,
        reference: Option<&Reference>,
        spending: Spending,
    ) -> Result<bool, Error> {
        let plan =
            Plan { time: self.limits().answer, who: Who::Only(Role::Origin), kind: Kind::Small };
        self.ask_in_turn(plan, |client, turn| {
            client.public(repository, reference, spending, turn).boxed()
        })
        .await
    }

    /// Does the parent show the repository? For when the registry itself cannot be asked; the word of a copy is worth this one moment.
    ///
    /// # Errors
    /// Whatever kept the parent from showing it; [`Cause::Breaker`] if there is none.
    pub async fn public_at_parent(
        &self,
        repository: &RepositoryName,
        reference: Option<&Reference>,
    ) -> Result<bool, Error> {
        let plan = Plan { time: MIRROR_ANSWER, who: Who::Only(Role::Parent), kind: Kind::Small };
        self.ask_in_turn(plan, |client, turn| {
            client.public(repository, reference, Spending::Needed, turn).boxed()
        })
        .await
    }

    /// The bytes of a manifest. Docker Hub counts this against the pull limit.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::TooLarge`] above `Limits::manifest_bytes`.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        self.manifest_of(Who::All, repository, reference).await
    }

    /// The same from the endpoints behind `beyond` in the order.
    ///
    /// # Errors
    /// As [`Upstream::manifest`].
    pub async fn manifest_beyond(
        &self,
        beyond: &Endpoint,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        self.manifest_of(Who::Beyond(beyond), repository, reference).await
    }

    async fn manifest_of(
        &self,
        who: Who<'_>,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, Error> {
        let plan = Plan { time: self.limits().exchange, who, kind: Kind::Small };
        self.ask_in_turn(plan, |client, turn| {
            async move {
                let manifest = client.manifest(repository, reference, turn).await?;
                if !client.endpoint.is_origin() {
                    sound(&manifest, reference)?;
                }
                Ok(manifest)
            }
            .boxed()
        })
        .await
    }

    /// Asks with HEAD what a tag points at, or whether a manifest is there. Ends within `Limits::answer`.
    ///
    /// # Errors
    /// [`Error::HeadUnusable`] if HEAD was refused (400, 401, 403, 404, 405, 5xx, or the connection closed), or was found to be of no
    /// use within the last hour: the caller does one GET and believes that.
    pub async fn manifest_head(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        self.head_of(Who::All, repository, reference).await
    }

    /// The same from the endpoints behind `beyond` in the order.
    ///
    /// # Errors
    /// As [`Upstream::manifest_head`].
    pub async fn manifest_head_beyond(
        &self,
        beyond: &Endpoint,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        self.head_of(Who::Beyond(beyond), repository, reference).await
    }

    async fn head_of(
        &self,
        who: Who<'_>,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, Error> {
        let plan = Plan { time: self.limits().answer, who, kind: Kind::Small };
        self.ask_in_turn(plan, |client, turn| {
            async move {
                let head = client.manifest_head(repository, reference, turn).await?;
                // Without a digest it says nothing that the next one could not say better.
                if head.digest.is_none() && !client.endpoint.is_origin() {
                    return Err(Error::HeadUnusable);
                }
                Ok(head)
            }
            .boxed()
        })
        .await
    }

    /// Begins to fetch a part of a blob from the endpoint whose bodies gave no trouble lately. The body may begin at 0 instead, if upstream
    /// gives no ranges: see [`BlobBody::from`]. An upstream that answers an open range with an error or with another part is asked for the
    /// whole; a bounded one fails then.
    ///
    /// # Errors
    /// As [`Error`] says. Headers come within `Limits::answer`.
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: BlobRange,
    ) -> Result<BlobBody, Error> {
        // A download that broke off has clients who wait for the rest, and its own limit of tries.
        let kind = Kind::Body { sure: range.from > 0 };
        let plan = Plan { time: self.limits().answer, who: Who::All, kind };
        self.ask_in_turn(plan, |client, turn| client.blob(repository, digest, range, turn).boxed())
            .await
    }

    /// Does the registry have this blob in this repository? Gives its size, if told. A redirect counts as yes. HEAD is a bonus at many
    /// registries: if it is refused, a GET is dropped after its headers.
    ///
    /// # Errors
    /// [`Error::Absent`] only if GET says so; [`Error::Limited`] if that GET is optional and the registry's quota is at its reserve.
    pub async fn blob_head(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        spending: Spending,
    ) -> Result<Option<u64>, Error> {
        let plan = Plan { time: self.limits().answer, who: Who::All, kind: Kind::Small };
        self.ask_in_turn(plan, |client, turn| {
            client.blob_head(repository, digest, spending, turn).boxed()
        })
        .await
    }

    /// The tags of a repository, at most `limit` of them, in upstream's order and without repeats. Names that are no tags are left out.
    /// A mirror that knows of none is not believed.
    ///
    /// # Errors
    /// As [`Error`] says; a list that breaks off between pages is an error.
    pub async fn tags(
        &self,
        repository: &RepositoryName,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let plan = Plan { time: self.limits().listing, who: Who::All, kind: Kind::List };
        self.ask_in_turn(plan, |client, turn| {
            async move {
                let tags = client.tags(repository, limit, turn).await?;
                if tags.is_empty() && client.endpoint.role() == Role::Mirror {
                    return Err(Error::Absent);
                }
                Ok(tags)
            }
            .boxed()
        })
        .await
    }

    /// The index of what refers to `digest`, all pages in one; `None` if upstream does not have the referrers API, so that the caller
    /// looks at the tag `sha256-<hex>`. That there is nothing is believed of the registry itself and of the parent only: a mirror may not
    /// have been told.
    ///
    /// # Errors
    /// Outages, limits and credential troubles; never [`Error::Absent`] or [`Error::Denied`].
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Bytes>, Error> {
        let plan = Plan { time: self.limits().listing, who: Who::All, kind: Kind::List };
        self.ask_in_turn(plan, |client, turn| {
            async move {
                let index = client.referrers(repository, digest, turn).await?;
                let counts = match (client.endpoint.role(), &index) {
                    (Role::Origin, _) | (Role::Parent, Some(_)) => true,
                    (Role::Parent, None) => false,
                    (Role::Mirror, index) => {
                        index.as_ref().is_some_and(|index| lists_something(index))
                    }
                };
                if counts { Ok(index) } else { Err(Error::Junk("no list of referrers")) }
            }
            .boxed()
        })
        .await
    }

    pub(super) fn origin(&self) -> &Client {
        self.inner.clients.last().expect("an upstream has its origin")
    }

    fn limits(&self) -> &Limits {
        &self.origin().limits
    }

    /// Puts a question to one endpoint after the other until one gives what was asked for, or the origin decides.
    async fn ask_in_turn<'a, T, A>(&'a self, plan: Plan<'a>, ask: A) -> Result<T, Error>
    where
        A: Fn(&'a Client, Turn<'a>) -> BoxFuture<'a, Result<T, Error>>,
    {
        let deadline = Deadline::after(plan.time);
        let mut waiting = self.line(plan);
        let mut heard = Heard::default();
        while !waiting.is_empty() {
            let client = waiting.remove(0);
            let Some(pass) = self.pass(client, plan, &waiting) else { continue };
            let somebody = waiting.iter().any(|client| client.endpoint.would_admit());
            if somebody || plan.kind != (Kind::Body { sure: true }) {
                waiting.retain(|client| client.endpoint.would_admit());
            }
            let turn = self.turn(plan, deadline, waiting.len());
            let short = turn.deadline.remaining()
                < plan.time.min(client.limits.headers).min(MIRROR_CONNECT);
            let outcome = ask(client, turn).await;
            match &outcome {
                // It was not given the time that an answer may take.
                Err(Error::Unreachable(Cause::Timeout)) if short => drop(pass),
                _ => pass.ended(&outcome),
            }
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if self.via.is_none() && error == Error::Unreachable(Cause::Loop) {
                client.endpoint.names_ourselves();
            }
            let role = client.endpoint.role();
            if role == Role::Origin && matches!(error, Error::Absent | Error::Denied) {
                return Err(error);
            }
            tracing::debug!(
                upstream = %self.name(), endpoint = %client.endpoint, reason = error.reason(),
                left = waiting.len(), "an endpoint did not give what it was asked for"
            );
            heard.note(role, error);
        }
        Err(heard.verdict(self.credential_fingerprint().is_some()))
    }

    /// Who may be asked, in order. Those who are left alone now are not among them.
    fn line(&self, plan: Plan<'_>) -> Vec<&Client> {
        let clients = &self.inner.clients;
        let mut line: Vec<&Client> = match plan.who {
            Who::All => clients.iter().collect(),
            Who::Only(role) => {
                clients.iter().filter(|client| client.endpoint.role() == role).collect()
            }
            Who::Beyond(endpoint) => {
                let at = clients.iter().position(|client| client.endpoint.is(endpoint));
                // An endpoint of before a reload has the origin behind it.
                clients.iter().skip(at.map_or(clients.len() - 1, |at| at + 1)).collect()
            }
        };
        if let Kind::Body { .. } = plan.kind {
            line.sort_by_key(|client| client.endpoint.rank());
        }
        let admitted: Vec<&Client> =
            line.iter().copied().filter(|client| client.endpoint.would_admit()).collect();
        match plan.kind {
            Kind::Body { sure: true } if admitted.is_empty() => line,
            _ => admitted,
        }
    }

    /// Lets the question through to this endpoint, unless another question is just finding out whether it is back.
    fn pass<'a>(&self, client: &'a Client, plan: Plan<'_>, behind: &[&Client]) -> Option<Pass<'a>> {
        let somebody_else = behind.iter().any(|client| client.endpoint.would_admit());
        match client.endpoint.admit() {
            None if plan.kind == (Kind::Body { sure: true }) && !somebody_else => {
                Some(client.endpoint.admit_anyway())
            }
            pass => pass,
        }
    }

    /// With somebody left to ask, nobody gets more than a share of the time.
    fn turn(&self, plan: Plan<'_>, deadline: Deadline, left: usize) -> Turn<'_> {
        let (last, via) = (left == 0, self.via.as_deref());
        if last {
            return Turn { deadline, page: plan.time, last, via };
        }
        let parties = u32::try_from(left).unwrap_or(u32::MAX).saturating_add(1);
        let share = deadline.remaining() / parties;
        let limit = if plan.kind == Kind::List { share } else { share.min(MIRROR_ANSWER) };
        Turn { deadline: deadline.within(limit), page: MIRROR_ANSWER, last, via }
    }
}

impl Heard {
    fn note(&mut self, role: Role, error: Error) {
        self.head_unusable |= error == Error::HeadUnusable;
        self.came_back |= error == Error::Unreachable(Cause::Loop);
        match role {
            Role::Origin => self.origin = Some(error),
            Role::Parent => self.parent = Some(error),
            Role::Mirror => {}
        }
    }

    /// What it comes to when nobody gave what was asked for and the origin decided nothing. That the parent does not see what we might see
    /// with a credential is no decision.
    fn verdict(self, has_credential: bool) -> Error {
        let trouble = self.origin.unwrap_or(Error::Unreachable(Cause::Breaker));
        match trouble {
            _ if self.parent == Some(Error::Absent) && !has_credential => Error::Absent,
            // A GET may get what HEAD did not.
            _ if self.head_unusable => Error::HeadUnusable,
            Error::Unreachable(Cause::Breaker) if self.came_back => Error::Unreachable(Cause::Loop),
            trouble => trouble,
        }
    }
}

/// The settings of a copy of this upstream: nothing that is for the registry alone. Its answers may lead where those of the registry may
/// (`allow_addresses`); no request is kept back, because the reserve is of the registry's quota.
fn copy_of(settings: &Settings) -> Settings {
    let connect = settings.limits.connect.min(MIRROR_CONNECT);
    Settings {
        credential: CredentialSource::None,
        realms: Vec::new(),
        proxy: None,
        mirrors: Vec::new(),
        parent: None,
        quota_reserve: 0,
        limits: Limits { connect, ..settings.limits.clone() },
        ..settings.clone()
    }
}

/// Is this what a copy was asked for? What is not is no reason to fail while the next one can be asked. Who gives a signed schema 1 manifest
/// under the digest of its payload is the registry itself.
fn sound(manifest: &FetchedManifest, reference: &Reference) -> Result<(), Error> {
    let is = |digest: &Digest| Digest::of(digest.algorithm(), &manifest.bytes) == *digest;
    let told = manifest.digest_header.as_ref().is_none_or(is);
    let right = match reference {
        Reference::Digest(digest) => is(digest),
        Reference::Tag(_) => told,
    };
    if !right {
        manifest.endpoint.blamed();
        return Err(Error::Junk("digest_mismatch"));
    }
    oci::Manifest::parse(&manifest.bytes, manifest.content_type.as_deref())
        .map(drop)
        .map_err(|_invalid| Error::Junk("not_a_manifest"))
}

fn lists_something(index: &[u8]) -> bool {
    let manifest = oci::Manifest::parse(index, Some(MediaType::OCI_INDEX));
    manifest.is_ok_and(|manifest| !manifest.children.is_empty())
}
