//! The registry service: locate, ask the proxy, and say how it went.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use prometheus_client::registry::Registry as MetricRegistry;

use super::as_of;
use super::error::{Error, Refusal};
use super::locate::{Addressing, Repository, Upstreams};
use super::reply::{
    Answer, BlobBody, BlobHead, BlobReply, CatalogReply, ManifestReply, Outcome, Page,
    ReferrersReply, Reply, Report, StreamError, TagsReply,
};
use super::unknown::Unknown;
use crate::clock::Timestamp;
use crate::content::Content;
use crate::metadata::{RepositoryKey, WantedWhat};
use crate::oci::{Digest, RangeSpec, Reference, RegistryName, RepositoryName, Tag};
use crate::proxy::{
    self, Found, HotAnswer, Listed, Manifest, Proxy, Ready, Revision, Tagged, TagsWanted,
};

/// Entries of one page at the most, and if the client does not say; clients page on by the `Link` header.
pub const PAGE_MAX: usize = 10_000;
const SECOND: Duration = Duration::from_secs(1);

/// Which repositories `_catalog` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CatalogPolicy {
    /// Those that anybody may read upstream.
    #[default]
    Public,
    All,
    /// None.
    Off,
}

/// The one service that the faces talk to.
#[derive(Debug)]
pub struct Registry {
    upstreams: ArcSwap<Upstreams>,
    catalog: ArcSwap<CatalogPolicy>,
    proxy: Proxy,
    content: Content,
    unknown: Unknown,
}

impl Registry {
    pub fn new(
        upstreams: Upstreams,
        catalog: CatalogPolicy,
        proxy: Proxy,
        content: Content,
        metrics: &mut MetricRegistry,
    ) -> Self {
        let unknown = Unknown::new(metrics);
        let (upstreams, catalog) =
            (ArcSwap::from_pointee(upstreams), ArcSwap::from_pointee(catalog));
        Self { upstreams, catalog, proxy, content, unknown }
    }

    /// Puts a new set of upstreams in force; requests under way keep the old one.
    pub fn replace(&self, upstreams: Upstreams, catalog: CatalogPolicy) {
        self.upstreams.store(Arc::new(upstreams));
        self.catalog.store(Arc::new(catalog));
    }

    pub(super) fn upstreams(&self) -> Arc<Upstreams> {
        self.upstreams.load_full()
    }

    pub(super) fn content(&self) -> &Content {
        &self.content
    }

    pub(super) fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The repository that the request means.
    pub fn locate(&self, addressing: &Addressing<'_>) -> Result<Repository, Refusal> {
        let located = self.upstreams.load().locate(addressing);
        let located = located.and_then(|repository| {
            self.has_come(repository.proxied().moment())?;
            Ok(repository)
        });
        located.map_err(|error| {
            let mut reason = "name_invalid";
            if let Error::UnknownRegistry { name } = &error {
                self.unknown.note(name);
                reason = "unknown_registry";
            }
            Refusal { error, report: Report::of(None, Outcome::Refused, Some(reason)) }
        })
    }

    /// Is a moment that a client names one of the past?
    fn has_come(&self, then: Option<Timestamp>) -> Result<(), Error> {
        let now = self.proxy.now();
        match then {
            // A second that is named is its last moment, and has come when it has begun.
            Some(then) if then.since(now) >= SECOND => {
                let forms = as_of::FORMS;
                let message = format!("{then} is still to come, it is {now} here; {forms}");
                Err(Error::NameInvalid { message })
            }
            _ => Ok(()),
        }
    }

    /// What a ping names besides a moment of the past: `ns`, the path behind `/v2/` and the mount before it.
    ///
    /// # Errors
    /// The moment is none, or still to come.
    pub fn pinged<'a>(&self, addressing: &Addressing<'a>) -> Result<Addressing<'a>, Error> {
        let (then, present) = addressing.without_moment()?;
        self.has_come(then)?;
        Ok(present)
    }

    /// Is this the name of a registry that is served here?
    pub fn knows(&self, name: &str) -> bool {
        self.upstreams.load().knows(name)
    }

    /// The manifest `reference`, a tag or a digest as it came, where the answer is ready in memory and every rule allows it. Never waits
    /// and notes nothing: `None` says only that [`Registry::locate`] and [`Registry::manifest`] have to be asked.
    pub fn hot_manifest(
        &self,
        addressing: &Addressing<'_>,
        reference: &str,
    ) -> Option<Reply<Arc<Ready>>> {
        if addressing.is_of_the_past() {
            return None;
        }
        let upstreams = self.upstreams.load();
        let spot = upstreams.spot(addressing).ok()?;
        let HotAnswer { ready, left } =
            self.proxy.hot_manifest(spot.source(), &spot.name(), reference)?;
        let plain = Report::of(Some(&ready.repository().upstream), Outcome::Hit, None);
        Some(Reply { value: ready, report: Report { ttl: left, ..plain } })
    }

    /// A manifest by tag or digest.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Answer<ManifestReply> {
        match reference {
            Reference::Tag(tag) => match self.proxy.tag(repository.proxied(), tag).await {
                Ok((manifest, tagged)) => {
                    Ok(Reply { value: manifest.into(), report: of_tag(repository, tagged) })
                }
                Err(error) => {
                    self.note_missed(repository, &error, || WantedWhat::Tag(tag.clone()));
                    Err(refuse(repository, Error::ManifestAbsent, error))
                }
            },
            Reference::Digest(digest) => {
                let answer = self.proxy.revision(repository.proxied(), digest).await;
                self.of_revision(repository, digest, answer)
            }
        }
    }

    /// A manifest by digest that is or was what `tag` points at.
    pub async fn tagged_manifest(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &Digest,
    ) -> Answer<ManifestReply> {
        let answer = self.proxy.tagged_revision(repository.proxied(), tag, digest).await;
        self.of_revision(repository, digest, answer)
    }

    fn of_revision(
        &self,
        repository: &Repository,
        digest: &Digest,
        answer: Result<(Manifest, Revision), proxy::Error>,
    ) -> Answer<ManifestReply> {
        match answer {
            Ok((manifest, how)) => {
                let outcome = found_by_digest(how);
                Ok(Reply {
                    value: manifest.into(),
                    report: Report::of(Some(repository.upstream()), outcome, None),
                })
            }
            Err(error) => {
                self.note_missed(repository, &error, || WantedWhat::Revision(*digest));
                Err(refuse(repository, Error::ManifestAbsent, error))
            }
        }
    }

    /// Remembers what a client did not get for want of an upstream, so that it can be fetched while there is one.
    fn note_missed(
        &self,
        repository: &Repository,
        error: &proxy::Error,
        what: impl FnOnce() -> WantedWhat,
    ) {
        let unreachable = match error {
            proxy::Error::Offline => false,
            proxy::Error::Unreachable { .. }
            | proxy::Error::Limited { .. }
            | proxy::Error::TimedOut => true,
            _ => return,
        };
        // What was cannot be fetched any more.
        if repository.proxied().moment().is_some() {
            return;
        }
        let what = what();
        if !matches!(&what, WantedWhat::Tag(tag) if is_speculative(tag)) {
            self.content.metadata().miss(repository.proxied().key(), what, unreachable);
        }
    }

    /// A blob; its bytes may still be on their way. `wanted` are the ranges that the client asks for, if not the whole.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: Option<&[RangeSpec]>,
    ) -> Answer<BlobReply> {
        match self.proxy.blob(repository.proxied(), digest, wanted).await {
            Ok(blob) => {
                let report = Report::of(Some(repository.upstream()), of_blob(blob.found), None);
                let body = blob.body;
                let open = move |range| -> super::reply::BlobStream {
                    Box::pin(body.stream(range).map(|frame| frame.map_err(StreamError)))
                };
                let value =
                    BlobReply { digest: *digest, size: blob.size, body: BlobBody::new(open) };
                Ok(Reply { value, report })
            }
            Err(error) => {
                self.note_missed(repository, &error, || WantedWhat::Blob(*digest));
                Err(refuse(repository, Error::BlobAbsent, error))
            }
        }
    }

    /// What is known of a blob without its bytes.
    pub async fn blob_head(&self, repository: &Repository, digest: &Digest) -> Answer<BlobHead> {
        match self.proxy.blob_size(repository.proxied(), digest).await {
            Ok((size, found)) => {
                let report = Report::of(Some(repository.upstream()), of_blob(found), None);
                Ok(Reply { value: BlobHead { digest: *digest, size }, report })
            }
            Err(error) => {
                self.note_missed(repository, &error, || WantedWhat::Blob(*digest));
                Err(refuse(repository, Error::BlobAbsent, error))
            }
        }
    }

    /// A page of the repository's tags.
    pub async fn tags(&self, repository: &Repository, page: &Page) -> Answer<TagsReply> {
        let limit = page_size(page);
        // One more tells whether there is another page.
        let wanted = TagsWanted { after: page.last.as_deref(), limit: limit.saturating_add(1) };
        match self.proxy.tags(repository.proxied(), wanted).await {
            Ok((all, listed)) => {
                let from =
                    page.last.as_ref().map_or(0, |last| all.partition_point(|tag| tag <= last));
                let tags: Vec<String> = all[from..].iter().take(limit).cloned().collect();
                let more = !tags.is_empty() && from + tags.len() < all.len();
                Ok(Reply { value: TagsReply { tags, more }, report: of_list(repository, listed) })
            }
            Err(error) => Err(refuse(repository, Error::RepositoryAbsent, error)),
        }
    }

    /// A page of the repositories that are here, in the form in which clients name them.
    pub async fn catalog(&self, page: &Page) -> Answer<CatalogReply> {
        let policy = **self.catalog.load();
        let report = Report::of(None, Outcome::Hit, None);
        let limit = page_size(page);
        if policy == CatalogPolicy::Off {
            let message = "the catalog is switched off here (catalog = \"off\")".to_owned();
            let report = Report::of(None, Outcome::Refused, Some("catalog_off"));
            return Err(Refusal { error: Error::Denied { message }, report });
        }
        if limit == 0 {
            return Ok(Reply {
                value: CatalogReply { repositories: Vec::new(), more: false },
                report,
            });
        }
        let after = page.last.as_deref().map(catalog_key).transpose()?;
        let ask = u32::try_from(limit + 1).unwrap_or(u32::MAX);
        let metadata = self.content.metadata();
        match metadata.repositories(after.as_ref(), ask, policy == CatalogPolicy::Public).await {
            Ok(keys) => {
                let more = keys.len() > limit;
                let repositories = keys.iter().take(limit).map(ToString::to_string).collect();
                Ok(Reply { value: CatalogReply { repositories, more }, report })
            }
            Err(error) => {
                tracing::warn!(?error, "the catalog cannot be read");
                let message = "the catalog cannot be read".to_owned();
                let report = Report::of(None, Outcome::Error, Some("store"));
                Err(Refusal { error: Error::Internal { message }, report })
            }
        }
    }

    /// The referrers of a manifest.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Answer<ReferrersReply> {
        match self.proxy.referrers(repository.proxied(), digest).await {
            Ok((index, listed)) => {
                let filtered =
                    artifact_type.and_then(|wanted| proxy::filter_referrers(&index, wanted));
                let value = ReferrersReply {
                    filtered: filtered.is_some(),
                    body: filtered.unwrap_or(index),
                };
                Ok(Reply { value, report: of_list(repository, listed) })
            }
            Err(error) => Err(refuse(repository, Error::ManifestAbsent, error)),
        }
    }
}

impl Report {
    /// A report with an outcome and nothing more.
    pub fn of(
        upstream: Option<&RegistryName>,
        outcome: Outcome,
        reason: Option<&'static str>,
    ) -> Self {
        Self {
            upstream: upstream.cloned(),
            outcome,
            reason,
            ttl: None,
            stale_for: None,
            missing_children: 0,
        }
    }
}

impl From<Manifest> for ManifestReply {
    fn from(manifest: Manifest) -> Self {
        Self { digest: manifest.digest, media_type: manifest.media_type, bytes: manifest.bytes }
    }
}

fn of_tag(repository: &Repository, tagged: Tagged) -> Report {
    let report = |outcome, ttl: Option<Duration>| {
        let plain = Report::of(Some(repository.upstream()), outcome, None);
        Report { ttl, ..plain }
    };
    match tagged {
        Tagged::Fresh { left } => report(Outcome::Hit, left),
        Tagged::Revalidated { fresh_for } => report(Outcome::Revalidated, Some(fresh_for)),
        Tagged::Fetched { fresh_for, stored: true } => report(Outcome::Miss, Some(fresh_for)),
        Tagged::Fetched { stored: false, .. } => report(Outcome::Bypass, None),
        Tagged::Joined { fresh_for } => report(Outcome::Joined, Some(fresh_for)),
        Tagged::Stale { reason, stale_for, missing_children } => {
            let plain = report(Outcome::Stale, None);
            Report { reason: Some(reason), stale_for: Some(stale_for), missing_children, ..plain }
        }
        // The freeze needs no word from upstream; only lost bytes cost a fetch.
        Tagged::Frozen { how } => {
            Report { reason: Some("frozen"), ..report(found_by_digest(how), None) }
        }
    }
}

/// Is it a tag that clients ask for without knowing that there is one: the referrers of a digest, or its signatures
/// (`sha256-<hex>`, `sha256-<hex>.sig`)?
fn is_speculative(tag: &Tag) -> bool {
    let Some((algorithm, rest)) = tag.as_str().split_once('-') else {
        return false;
    };
    let hex = rest.split('.').next().unwrap_or_default();
    format!("{algorithm}:{hex}").parse::<Digest>().is_ok()
}

fn found_by_digest(how: Revision) -> Outcome {
    match how {
        Revision::Stored => Outcome::Hit,
        Revision::Renewed => Outcome::Revalidated,
        Revision::Joined => Outcome::Joined,
        Revision::Fetched { stored: true } => Outcome::Miss,
        Revision::Fetched { stored: false } => Outcome::Bypass,
    }
}

fn of_blob(found: Found) -> Outcome {
    match found {
        Found::Stored => Outcome::Hit,
        Found::Joined => Outcome::Joined,
        Found::Fetched => Outcome::Miss,
        Found::PastTheStore => Outcome::Bypass,
    }
}

fn of_list(repository: &Repository, listed: Listed) -> Report {
    let (outcome, reason) = match listed {
        Listed::Upstream => (Outcome::Miss, None),
        Listed::Remembered => (Outcome::Hit, None),
        Listed::Known("offline") => (Outcome::Hit, Some("offline")),
        Listed::Known(reason) => (Outcome::Stale, Some(reason)),
    };
    Report::of(Some(repository.upstream()), outcome, reason)
}

/// Translates the proxy's decision; `absent` is what absence means for what was asked. The client is told which upstream it is about.
pub(super) fn refuse(repository: &Repository, absent: Error, error: proxy::Error) -> Refusal {
    let reason = error.reason();
    let about = |message: String| format!("{}: {message}", repository.upstream());
    let (outcome, error) = match error {
        proxy::Error::Absent => (Outcome::Refused, absent),
        proxy::Error::Denied(message) => {
            (Outcome::Refused, Error::Denied { message: about(message) })
        }
        proxy::Error::Offline => (Outcome::Refused, Error::OfflineMiss),
        proxy::Error::NotThen(message) => (Outcome::Refused, Error::NotThen { message }),
        proxy::Error::Limited { retry_after } => (Outcome::Error, Error::Limited { retry_after }),
        proxy::Error::Unreachable { message, .. } => {
            (Outcome::Error, Error::Unreachable { message: about(message) })
        }
        proxy::Error::TimedOut => (Outcome::Error, Error::TimedOut),
        proxy::Error::Overloaded(message) => (Outcome::Error, Error::Overloaded { message }),
        proxy::Error::Store(message) => (Outcome::Error, Error::Internal { message }),
    };
    Refusal { error, report: Report::of(Some(repository.upstream()), outcome, Some(reason)) }
}

fn page_size(page: &Page) -> usize {
    page.n.map_or(PAGE_MAX, |n| usize::try_from(n).unwrap_or(PAGE_MAX).min(PAGE_MAX))
}

/// Reads back a name of the catalog, which a client sends as `last`. Another text is refused: to begin again for it would let a client
/// that follows it go round for ever.
fn catalog_key(text: &str) -> Result<RepositoryKey, Refusal> {
    let key = || {
        let (upstream, name) = text.split_once('/')?;
        let name = name.parse::<RepositoryName>().ok()?;
        Some(RepositoryKey { upstream: upstream.parse().ok()?, name })
    };
    key().ok_or_else(|| {
        let message = "last is no name of this catalog: want registry/repository".to_owned();
        let report = Report::of(None, Outcome::Refused, Some("malformed"));
        Refusal { error: Error::NameInvalid { message }, report }
    })
}

#[cfg(test)]
impl Registry {
    pub(crate) fn rows(&self) -> &crate::metadata::Metadata {
        self.content.metadata()
    }

    /// A registry without upstreams over an empty store that goes with the test; for tests of the faces.
    pub(crate) fn serving_nothing() -> Self {
        use tokio_util::sync::CancellationToken;
        use tokio_util::task::TaskTracker;

        use crate::clock::{Clock, SystemClock};

        let (mut metrics, tasks) = (MetricRegistry::default(), TaskTracker::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let data = tempfile::tempdir().unwrap();
        let settings = crate::content::Settings::new(data.path().to_owned());
        let content =
            Content::open(settings, Arc::clone(&clock), tasks.clone(), &mut metrics).unwrap();
        let parts = proxy::Parts {
            content: content.clone(),
            clock: Arc::clone(&clock),
            tasks,
            shutdown: CancellationToken::new(),
            metrics: proxy::Metrics::new(&mut metrics, clock),
        };
        Self::new(
            Upstreams::default(),
            CatalogPolicy::default(),
            Proxy::new(parts),
            content,
            &mut metrics,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_name_a_digest_are_asked_for_without_knowing_of_them() {
        let hex = "ab".repeat(32);
        for (tag, speculative) in [
            ("latest".to_owned(), false),
            (format!("sha256-{hex}"), true),
            (format!("sha256-{hex}.sig"), true),
            (format!("sha512-{hex}.att"), false),
            ("sha256-12".to_owned(), false),
            (format!("v1-{hex}"), false),
        ] {
            assert_eq!(is_speculative(&tag.parse().unwrap()), speculative, "{tag}");
        }
    }
}
