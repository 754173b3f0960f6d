//! What the parts of the proxy share: the store, the clock, the tracker, and the tables of what is under way.
//!
//! What must hold: work for a client that others may profit from runs in a tracked task of its own ([`Shared::once`]), so that a
//! client who leaves takes nothing with him; its callers share one result.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::Reader;
use super::fill::{RINGS_MAX, Running};
use super::hot::Hot;
use super::metrics::Metrics;
use super::revisions::Fetched;
use super::source::Proxied;
use super::writer::Writers;
use crate::clock::{Clock, Timestamp};
use crate::content::Content;
use crate::metadata::RepositoryKey;
use crate::oci::{Digest, Tag};
use crate::span::FramePool;
use crate::upstream;

/// Absent tags that are remembered; the oldest are forgotten first.
const ABSENT_TAGS_MAX: u64 = 10_000;
/// Failed checks that are remembered.
const FAILED_CHECKS_MAX: u64 = 10_000;
/// Bytes of tag lists that are remembered, roughly; one of 100,000 tags of a hundred letters still fits.
const TAG_LISTS_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What a tag of a list costs beside its letters.
const TAG_COST: usize = 40;
/// The longest that any of these in-memory records lives, whatever the policies say.
const MEMORY_MAX: Duration = Duration::from_secs(3600);

pub(super) type TagKey = (RepositoryKey, Tag);
/// As whom upstream is asked: after a reload nobody joins what was begun with another credential.
pub(super) type Identity = Option<[u8; 16]>;

/// Handed in by `app`.
#[derive(Clone, Debug)]
pub struct Parts {
    pub content: Content,
    pub clock: Arc<dyn Clock>,
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
    pub metrics: Metrics,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) parts: Parts,
    pub(super) reader: Reader,
    /// Manifests that are answered from memory.
    pub(super) hot: Hot,
    pub(super) downloads: Mutex<HashMap<Digest, Arc<Running>>>,
    /// Places for downloads that have lost their disk.
    pub(super) rings: Arc<Semaphore>,
    /// Places for the writers of downloads.
    pub(super) writers: Writers,
    pub(super) checks: Table<(TagKey, Identity), super::tags::Checked>,
    pub(super) fetches: Table<(RepositoryKey, Digest, Identity), Fetched>,
    /// When upstream said that a tag does not exist.
    pub(super) absent: Cache<TagKey, Timestamp>,
    /// When the last check of a tag failed.
    pub(super) failed: Cache<TagKey, Timestamp>,
    /// Who may read a repository is being asked; `None` is no verdict.
    pub(super) verdicts: Table<(RepositoryKey, Identity), Option<bool>>,
    pub(super) lists: Table<RepositoryKey, Arc<Vec<String>>>,
    /// When a verdict or a proof of the repository could last not be renewed, and why.
    pub(super) unrenewed: Cache<RepositoryKey, (Timestamp, upstream::Error)>,
    pub(super) tag_lists: Cache<RepositoryKey, (Timestamp, Arc<Vec<String>>)>,
}

/// Work that is under way, by key. The value becomes `Some` when it is done.
pub(super) type Table<K, V> =
    Mutex<HashMap<K, watch::Receiver<Option<Result<V, upstream::Error>>>>>;

/// What a list of tags takes in memory.
fn list_weight(tags: &[String]) -> u32 {
    let bytes = tags.iter().map(|tag| tag.len() + TAG_COST).sum::<usize>();
    u32::try_from(bytes + TAG_COST).unwrap_or(u32::MAX)
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let memory =
            |capacity| Cache::builder().max_capacity(capacity).time_to_live(MEMORY_MAX).build();
        let reader = Reader { tasks: parts.tasks.clone(), frames: FramePool::default() };
        Self {
            parts,
            reader,
            hot: Hot::default(),
            downloads: Mutex::default(),
            rings: Arc::new(Semaphore::new(RINGS_MAX)),
            writers: Writers::default(),
            checks: Mutex::default(),
            fetches: Mutex::default(),
            absent: memory(ABSENT_TAGS_MAX),
            failed: memory(FAILED_CHECKS_MAX),
            verdicts: Mutex::default(),
            lists: Mutex::default(),
            unrenewed: Cache::builder()
                .max_capacity(FAILED_CHECKS_MAX)
                .time_to_live(MEMORY_MAX)
                .build(),
            tag_lists: Cache::builder()
                .max_capacity(TAG_LISTS_BYTES_MAX)
                .weigher(|_key: &RepositoryKey, (_when, tags): &(Timestamp, Arc<Vec<String>>)| {
                    list_weight(tags)
                })
                .time_to_live(MEMORY_MAX)
                .build(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// Is the upstream not asked, by the configuration or because somebody switched it off? Asked anew each time: a switch counts from
    /// its answer on.
    pub(super) fn is_shut(&self, repository: &Proxied) -> bool {
        let upstream = &repository.key().upstream;
        repository.policy().offline || self.content().metadata().is_offline(upstream)
    }

    /// Is its content served from the store alone? What was is no matter for upstream; who may have it still is.
    pub(super) fn is_offline(&self, repository: &Proxied) -> bool {
        repository.moment().is_some() || self.is_shut(repository)
    }

    /// Is `when` less than `time` ago? What is dated in the future (the clock was set back) is of no known age.
    pub(super) fn within(&self, when: Timestamp, time: Duration) -> bool {
        let now = self.now();
        when <= now && now.since(when) < time
    }

    pub(super) fn content(&self) -> &Content {
        &self.parts.content
    }

    /// Runs `work` for `key` in a tracked task, or waits for the one that is under way; the flag tells which. The result is gone
    /// from the table before anybody sees it, so the next caller starts afresh.
    pub(super) async fn once<K, V, W>(
        self: &Arc<Self>,
        table: impl Fn(&Self) -> &Table<K, V> + Send + 'static,
        key: K,
        work: W,
    ) -> (Result<V, upstream::Error>, bool)
    where
        K: Clone + Eq + Hash + Send + 'static,
        V: Clone + Send + Sync + 'static,
        W: Future<Output = Result<V, upstream::Error>> + Send + 'static,
    {
        let (mut result, joined) = self.begin(table, key, work);
        let gone =
            || Err(upstream::Error::Unreachable(upstream::Cause::Other("shutting down".into())));
        match result.wait_for(Option::is_some).await {
            Ok(value) => (value.as_ref().map_or_else(gone, Clone::clone), joined),
            Err(_closed) => (gone(), joined),
        }
    }

    /// Like [`Shared::once`] without waiting.
    pub(super) fn begin<K, V, W>(
        self: &Arc<Self>,
        table: impl Fn(&Self) -> &Table<K, V> + Send + 'static,
        key: K,
        work: W,
    ) -> (watch::Receiver<Option<Result<V, upstream::Error>>>, bool)
    where
        K: Clone + Eq + Hash + Send + 'static,
        V: Clone + Send + Sync + 'static,
        W: Future<Output = Result<V, upstream::Error>> + Send + 'static,
    {
        let mut running = table(self).lock().unwrap_or_else(PoisonError::into_inner);
        // A receiver whose sender is gone without a value belongs to a task that was dropped: it is replaced.
        if let Some(result) = running.get(&key).filter(|result| result.has_changed().is_ok()) {
            return (result.clone(), true);
        }
        let (done, result) = watch::channel(None);
        running.insert(key.clone(), result.clone());
        drop(running);
        let shared = Arc::clone(self);
        let shutdown = self.parts.shutdown.clone();
        self.parts.tasks.spawn(async move {
            let gone = upstream::Error::Unreachable(upstream::Cause::Other("shutting down".into()));
            let value = tokio::select! {
                value = work => value,
                () = shutdown.cancelled() => Err(gone),
            };
            table(&shared).lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            done.send_replace(Some(value));
        });
        (result, false)
    }
}
