//! What the fake holds: repositories, switches, tokens, signed URLs, rules and the log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::Value;

use super::super::content::Blob;
use super::auth::{Auth, Token};
use super::log::{Entry, Origin};
use super::rules::Rule;

/// How a blob reaches the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Direct,
    /// To the blob store on another host.
    Redirect {
        status: u16,
        form: LocationForm,
    },
    /// Through this many more redirects first.
    Hops(u32),
    /// Redirects that come back to themselves.
    Loop,
    MissingLocation,
    /// To this URL.
    To(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocationForm {
    Absolute,
    /// `/artifacts-downloads/...` on the registry's own host, signed (Google).
    Relative,
    SchemeRelative,
}

/// How a `Range` is treated, by the registry and by the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeMode {
    Honour,
    /// 206 with at most this many bytes, which it says.
    Short(u64),
    /// 200 with everything.
    Ignore,
    /// 206 that begins one byte late and says so.
    WrongStart,
    WrongTotal,
    NoContentRange,
    Refuse416,
    /// 400 with XML, as a CDN answers a resume (registry.k8s.io).
    BadRequestXml,
}

impl RangeMode {
    /// No part of a blob can be had, but the whole.
    pub const UNUSABLE: [Self; 5] = [
        Self::Ignore,
        Self::Refuse416,
        Self::BadRequestXml,
        Self::WrongStart,
        Self::NoContentRange,
    ];
}

/// What HEAD of a blob says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobHead {
    Ok,
    Status(u16),
    /// 404 until a GET came (Harbor's proxy projects).
    NotFoundUntilGet,
    NoLength,
    /// To the store, as GET.
    Redirect,
}

/// What an unsuitable `Accept` gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptMode {
    Ignore,
    /// 404 MANIFEST_UNKNOWN (GHCR, distribution).
    NotFound,
    /// The first child instead of the index (Docker Hub).
    FirstChild,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkForm {
    Relative,
    Absolute,
    /// On a host of somebody else.
    Foreign,
    /// Always the first page again.
    Repeating,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferrersMode {
    Index,
    /// 200 with the right type and a filter that was applied.
    Filtering,
    Status(u16),
    /// 303 to a host of somebody else (GHCR).
    RedirectForeign,
    Html,
    /// 200, but not an index by type.
    WrongType,
}

/// How the blob store answers a request that carries `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreAuth {
    /// 400 `InvalidArgument` in XML (S3).
    S3,
    /// 403 `AuthenticationFailed` in XML (Azure).
    Azure,
}

/// The switches that are not about authentication; change them with `Fake::switch`.
#[derive(Clone, Debug)]
pub struct Switches {
    pub delivery: Delivery,
    pub range: RangeMode,
    pub blob_head: BlobHead,
    pub accept: AcceptMode,
    pub link: LinkForm,
    /// Entries per page of a tag list, whatever the client asks.
    pub tags_page: Option<usize>,
    pub referrers: ReferrersMode,
    pub store_auth: StoreAuth,
    /// A signed URL is good for GET only (GHCR).
    pub get_only_urls: bool,
    /// A signed URL is good once.
    pub single_use_urls: bool,
    pub keep_alive: bool,
    /// Bytes that a socket may hold before they are on their way; `None` is the system's own choice.
    pub send_buffer: Option<usize>,
    /// `ratelimit-*` headers; GET of a manifest costs one.
    pub ratelimit: Option<u64>,
    /// Header names in upper case.
    pub loud_headers: bool,
    /// No `Docker-Content-Digest` on GET of a manifest (ECR).
    pub no_digest_on_get: bool,
    /// The type that manifests are said to have, whatever they are.
    pub manifest_type: Option<String>,
    pub etag: EtagForm,
    /// Manifests are redirected to another host (registry.k8s.io).
    pub manifests_elsewhere: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtagForm {
    Quoted,
    Bare,
    Weak,
    Absent,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            delivery: Delivery::Direct,
            range: RangeMode::Honour,
            blob_head: BlobHead::Ok,
            accept: AcceptMode::Ignore,
            link: LinkForm::Relative,
            tags_page: None,
            referrers: ReferrersMode::Index,
            store_auth: StoreAuth::S3,
            get_only_urls: false,
            single_use_urls: false,
            keep_alive: true,
            send_buffer: None,
            ratelimit: None,
            loud_headers: false,
            no_digest_on_get: false,
            manifest_type: None,
            etag: EtagForm::Quoted,
            manifests_elsewhere: false,
        }
    }
}

/// A manifest as the fake holds it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    pub(super) first_child: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Repository {
    pub(super) manifests: HashMap<String, Stored>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) blobs: HashMap<String, Blob>,
    pub(super) referrers: HashMap<String, Vec<Value>>,
    /// Who may read; `None` is everybody.
    pub(super) readers: Option<HashSet<String>>,
    /// Blobs that somebody has fetched with GET (see [`BlobHead::NotFoundUntilGet`]).
    pub(super) fetched: HashSet<String>,
}

/// A URL that the registry has signed.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub(super) signature: String,
    pub(super) blob: Blob,
    pub(super) dead: bool,
}

/// Where the four origins listen.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) scheme: &'static str,
    pub(super) list: Vec<(Origin, SocketAddr)>,
}

impl Addresses {
    pub(super) fn of(&self, origin: Origin) -> SocketAddr {
        let found = self.list.iter().find(|(o, _)| *o == origin);
        found.expect("all four origins have an address").1
    }

    pub(super) fn url(&self, origin: Origin, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.of(origin))
    }
}

pub(super) struct State {
    pub(super) addresses: Addresses,
    pub(super) repositories: BTreeMap<String, Repository>,
    pub(super) auth: Auth,
    pub(super) switches: Switches,
    pub(super) tokens: Vec<Token>,
    pub(super) signed: Vec<Signed>,
    pub(super) rules: Vec<Rule>,
    pub(super) log: Vec<Entry>,
    pub(super) connections: u64,
    pub(super) open_connections: u64,
    /// Requests being answered now, and the most at any time.
    pub(super) running: Vec<(Origin, u64, u64)>,
}

impl State {
    pub(super) fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            repositories: BTreeMap::new(),
            auth: Auth::default(),
            switches: Switches::default(),
            tokens: Vec::new(),
            signed: Vec::new(),
            rules: Vec::new(),
            log: Vec::new(),
            connections: 0,
            open_connections: 0,
            running: Vec::new(),
        }
    }

    /// Is this repository absent, or private and not this user's?
    pub(super) fn hides(&self, name: &str, user: Option<&str>) -> bool {
        match self.repositories.get(name) {
            None => true,
            Some(repository) => repository
                .readers
                .as_ref()
                .is_some_and(|readers| !user.is_some_and(|user| readers.contains(user))),
        }
    }

    pub(super) fn began(&mut self, origin: Origin) {
        if let Some((_, now, most)) = self.running.iter_mut().find(|(o, ..)| *o == origin) {
            *now += 1;
            *most = (*most).max(*now);
        } else {
            self.running.push((origin, 1, 1));
        }
    }

    pub(super) fn ended(&mut self, origin: Origin) {
        if let Some((_, now, _)) = self.running.iter_mut().find(|(o, ..)| *o == origin) {
            *now -= 1;
        }
    }
}
