//! Finds the repository that a request means.
//!
//! What must hold: the client chooses among configured upstreams and nothing else (design promise 13). `ns` and path prefixes are
//! look-up keys; a name that looks like a registry and is not configured is unknown, never sent to Docker Hub as a repository name.
//! The order is fixed: a moment of the past, then `ns`, mount, path prefix, `Host`, listener, default.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::as_of;
use super::error::Error;
use crate::clock::Timestamp;
use crate::metadata::RepositoryKey;
use crate::oci::{HostFamily, RegistryName, RepositoryName, looks_like_host};
use crate::proxy::{Proxied, Source};

/// Upstreams made on demand from one pattern that are kept. Clients may make up names, so the one not asked for longest goes first, and
/// takes nothing with it but its connections and tokens.
const FAMILY_MAX: usize = 64;
/// Repositories of Docker Hub that anybody may name without a namespace live under this one.
const LIBRARY: &str = "library";

/// One configured upstream.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub source: Arc<Source>,
    /// Other names under which clients know it.
    pub aliases: Vec<RegistryName>,
    /// `Host` header values that mean it.
    pub hosts: Vec<RegistryName>,
    /// One-component names live under `library/`.
    pub library: bool,
}

/// A family of upstreams, whose members are made when they are first named.
pub struct Family {
    hosts: HostFamily,
    make: Make,
    members: Mutex<Members>,
}

/// The members of a family with the number of the request that last named each.
#[derive(Default)]
struct Members {
    by_name: HashMap<RegistryName, (Arc<Source>, u64)>,
    requests: u64,
}

/// Sets up one member of a family; the error is for the log.
type Make = Box<dyn Fn(&RegistryName) -> Result<Arc<Source>, String> + Send + Sync>;

/// The set of upstreams in force; a reload makes a new one.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_name: HashMap<RegistryName, Arc<Upstream>>,
    by_host: HashMap<RegistryName, Arc<Upstream>>,
    families: Vec<Family>,
    default: Option<RegistryName>,
}

/// Where the client said that the repository is; all parts are as they came, unchecked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addressing<'a> {
    /// The value of `?ns=`.
    pub ns: Option<&'a str>,
    /// The repository path between `/v2/` and `/manifests/`, `/blobs/` and so on.
    pub path: &'a str,
    /// What stands before `/v2/`, without slashes at its ends (`p` in `/p/v2/...`).
    pub mount: Option<&'a str>,
    /// The `Host` header.
    pub host: Option<&'a str>,
    /// The upstream of the listener that the connection came through, if it has one.
    pub listener: Option<&'a RegistryName>,
    /// The other roadsteads that the request came through, as the value of a `Via` header.
    pub via: Option<&'a str>,
}

/// A repository of a configured upstream.
#[derive(Clone, Debug)]
pub struct Repository {
    proxied: Proxied,
    asked: String,
    fallback: bool,
}

/// What a name stands for.
#[derive(Clone)]
struct Target {
    source: Arc<Source>,
    library: bool,
}

/// What a request means before the name of its repository is checked.
pub(super) struct Spot<'a> {
    target: Target,
    /// The repository's name, without what names the upstream.
    path: &'a str,
    fallback: bool,
}

impl Repository {
    pub fn upstream(&self) -> &RegistryName {
        &self.proxied.key().upstream
    }

    /// Upstream and name, as rows know it.
    pub fn key(&self) -> &RepositoryKey {
        self.proxied.key()
    }

    /// Was it asked for as it stood at a moment of the past?
    pub fn is_of_the_past(&self) -> bool {
        self.proxied.moment().is_some()
    }

    /// The name as upstream knows it.
    pub fn name(&self) -> &RepositoryName {
        self.proxied.name()
    }

    /// The name in the client's own form of addressing, for `name` members and Links.
    pub fn asked(&self) -> &str {
        &self.asked
    }

    /// Does the operator let clients delete what came through this upstream?
    pub fn allows_delete(&self) -> bool {
        self.proxied.allows_delete()
    }

    /// Does the form of addressing show that the client has the upstream to fall back on (`ns`, or a bare Docker Hub name)?
    pub fn client_has_fallback(&self) -> bool {
        self.fallback
    }

    pub(super) fn proxied(&self) -> &Proxied {
        &self.proxied
    }
}

impl<'a> Addressing<'a> {
    /// The moment that is meant, which stands before everything else, and the rest.
    pub(super) fn without_moment(&self) -> Result<(Option<Timestamp>, Self), Error> {
        let split = |text| as_of::split(text).map_err(|message| Error::NameInvalid { message });
        if let Some((then, path)) = split(self.path)? {
            return Ok((Some(then), Self { path, ..*self }));
        }
        match self.mount.map(split).transpose()?.flatten() {
            Some((then, rest)) => {
                let mount = Some(rest).filter(|rest| !rest.is_empty());
                Ok((Some(then), Self { mount, ..*self }))
            }
            None => Ok((None, *self)),
        }
    }

    /// Is a moment of the past meant?
    pub(super) fn is_of_the_past(&self) -> bool {
        as_of::is_marked(self.path) || self.mount.is_some_and(as_of::is_marked)
    }
}

impl Family {
    pub fn new(
        hosts: HostFamily,
        make: impl Fn(&RegistryName) -> Result<Arc<Source>, String> + Send + Sync + 'static,
    ) -> Self {
        Self { hosts, make: Box::new(make), members: Mutex::default() }
    }

    fn member(&self, name: &RegistryName) -> Option<Arc<Source>> {
        if !self.hosts.has_member(name) {
            return None;
        }
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.requests += 1;
        let now = members.requests;
        if let Some((source, last)) = members.by_name.get_mut(name) {
            *last = now;
            return Some(Arc::clone(source));
        }
        match (self.make)(name) {
            Ok(source) => {
                members.make_room();
                let entry = (Arc::clone(&source), now);
                members.by_name.insert(name.clone(), entry);
                Some(source)
            }
            Err(error) => {
                tracing::error!(%name, %error, "a registry of a pattern cannot be set up");
                None
            }
        }
    }
}

impl Members {
    fn make_room(&mut self) {
        if self.by_name.len() < FAMILY_MAX {
            return;
        }
        let oldest = self.by_name.iter().min_by_key(|(_, (_, last))| *last);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            tracing::warn!(%name, limit = FAMILY_MAX, "many registries of one pattern; the one not asked for longest is dropped");
            self.by_name.remove(&name);
        }
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({})", self.hosts)
    }
}

impl Upstreams {
    /// The configuration has checked that no two upstreams share a name, an alias or a host.
    pub fn new(upstreams: Vec<Upstream>, families: Vec<Family>, default: RegistryName) -> Self {
        let mut set = Self { families, default: Some(default), ..Self::default() };
        for upstream in upstreams {
            let upstream = Arc::new(upstream);
            let names = std::iter::once(upstream.source.upstream().name()).chain(&upstream.aliases);
            for name in names {
                set.by_name.insert(name.clone(), Arc::clone(&upstream));
            }
            for host in &upstream.hosts {
                set.by_host.insert(host.clone(), Arc::clone(&upstream));
            }
        }
        set
    }

    fn find(&self, name: &RegistryName) -> Option<Target> {
        if let Some(upstream) = self.by_name.get(name) {
            return Some(upstream.target());
        }
        let source = self.families.iter().find_map(|family| family.member(name))?;
        Some(Target { source, library: false })
    }

    fn find_text(&self, text: &str) -> Option<Target> {
        // Most texts are in the canonical form, and then there is nothing to make.
        if let Some(upstream) = self.by_name.get(text) {
            return Some(upstream.target());
        }
        let folds = text.bytes().any(|byte| byte.is_ascii_uppercase());
        if self.families.is_empty() && !folds {
            return None;
        }
        self.find(&text.parse().ok()?)
    }

    /// Is this the name of an upstream, or of one that a pattern allows?
    pub(super) fn knows(&self, text: &str) -> bool {
        self.find_text(text).is_some()
    }

    /// The name of the upstream that `text` names, by any of its names.
    pub(super) fn name_of(&self, text: &str) -> Option<RegistryName> {
        self.find_text(text).map(|target| target.source.upstream().name().clone())
    }

    /// The upstream of names that say none.
    pub(super) fn default_name(&self) -> Option<RegistryName> {
        self.name_of(self.default.as_ref()?.as_str())
    }

    /// Do one-component names of this upstream live under `library/`?
    pub(super) fn has_library(&self, name: &RegistryName) -> bool {
        self.find(name).is_some_and(|target| target.library)
    }

    /// The repository that the request means, at the moment that it names, if it names one.
    pub(super) fn locate(&self, addressing: &Addressing<'_>) -> Result<Repository, Error> {
        let (then, present) = addressing.without_moment()?;
        let Spot { target, path, fallback } = self.spot(&present)?;
        let found = target.repository(path, addressing.path, fallback)?;
        let proxied = found.proxied.asked_via(addressing.via).as_of(then);
        Ok(Repository { proxied, ..found })
    }

    /// The upstream that the request means, and what the repository is called there.
    pub(super) fn spot<'a>(&self, addressing: &Addressing<'a>) -> Result<Spot<'a>, Error> {
        // A registry that is told its own name has been told nothing, unless that name stands for an upstream: under a borrowed name
        // (DNS, a rewriting proxy) another upstream's repository of the same name must not be taken for it.
        let ns = addressing
            .ns
            .filter(|ns| !ns.is_empty() && (Some(*ns) != addressing.host || self.knows(ns)));
        if let Some(ns) = ns {
            let target = self.find_text(ns).ok_or_else(|| unknown(ns))?;
            // BuildKit and k3s send `ns` and a path prefix at once.
            let path = match addressing.path.split_once('/') {
                Some((first, rest)) if self.same(first, &target) => rest,
                _ => addressing.path,
            };
            return Ok(Spot { target, path, fallback: true });
        }
        if let Some(mount) = addressing.mount {
            let target = self.find_text(mount).ok_or_else(|| unknown(mount))?;
            return Ok(Spot { target, path: addressing.path, fallback: false });
        }
        if let Some((first, rest)) = addressing.path.split_once('/') {
            if let Some(target) = self.find_text(first) {
                return Ok(Spot { target, path: rest, fallback: false });
            }
            if looks_like_host(first) {
                return Err(unknown(first));
            }
        }
        self.bare(addressing)
    }

    /// A name without any mark: `Host`, then the listener, then the default.
    fn bare<'a>(&self, addressing: &Addressing<'a>) -> Result<Spot<'a>, Error> {
        let spot = |target| Spot { target, path: addressing.path, fallback: true };
        let by_host = addressing.host.and_then(|host| self.by_host(host));
        if let Some(target) =
            by_host.or_else(|| addressing.listener.and_then(|name| self.find(name)))
        {
            return Ok(spot(target));
        }
        let Some(name) = &self.default else {
            return Err(unknown(""));
        };
        let target = self.find(name).ok_or_else(|| unknown(name.as_str()))?;
        Ok(spot(target))
    }

    fn by_host(&self, host: &str) -> Option<Target> {
        if self.by_host.is_empty() {
            return None;
        }
        let full = host.parse::<RegistryName>().ok()?;
        let without_port = || host.split(':').next()?.parse::<RegistryName>().ok();
        let upstream = self.by_host.get(&full).or_else(|| self.by_host.get(&without_port()?))?;
        Some(upstream.target())
    }

    fn same(&self, text: &str, target: &Target) -> bool {
        self.find_text(text)
            .is_some_and(|other| other.source.upstream().name() == target.source.upstream().name())
    }
}

impl Upstream {
    fn target(&self) -> Target {
        Target { source: Arc::clone(&self.source), library: self.library }
    }
}

impl<'a> Spot<'a> {
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.target.source
    }

    /// The repository's name as the upstream knows it; nobody has checked it.
    pub(super) fn name(&self) -> Cow<'a, str> {
        if self.target.library && !self.path.contains('/') {
            Cow::Owned(format!("{LIBRARY}/{}", self.path))
        } else {
            Cow::Borrowed(self.path)
        }
    }
}

impl Target {
    fn repository(&self, path: &str, asked: &str, fallback: bool) -> Result<Repository, Error> {
        let invalid =
            |error: crate::oci::InvalidName| Error::NameInvalid { message: error.to_string() };
        let mut name = path.parse::<RepositoryName>().map_err(invalid)?;
        if self.library && name.components().count() == 1 {
            name = format!("{LIBRARY}/{name}").parse().map_err(invalid)?;
        }
        let proxied = Proxied::new(Arc::clone(&self.source), name);
        Ok(Repository { proxied, asked: asked.to_owned(), fallback })
    }
}

fn unknown(name: &str) -> Error {
    Error::UnknownRegistry { name: name.to_owned() }
}
