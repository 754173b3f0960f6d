//! The room's surface: opening the store, finding content, and bringing downloads in.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use moka::sync::Cache;
use prometheus_client::registry::Registry;
use tokio_util::task::TaskTracker;

use super::error::{Error, OpenError};
use super::leave::Marks;
use super::lock::{Locked, Locks, Slots};
use super::metrics::Metrics;
use super::small::mark;
use super::space::{MinFree, Space};
use super::stage::Stage;
use super::unfinished::Leftovers;
use super::unreadable::Unreadable;
use crate::blobs::{Blobs, DirectoryLock, Disk, RealDisk};
use crate::clock::Clock;
use crate::metadata::{self, Metadata};
use crate::oci::{Digest, RegistryName};
use crate::span::{ContentFile, Leases, Span};

/// Bytes of manifests that are kept in memory.
pub const MANIFEST_CACHE_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
/// What an entry of the manifest cache costs beside its bytes, roughly.
const MANIFEST_CACHE_ENTRY_BYTES: usize = 256;

/// Where the store is and what it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The data directory; made if it does not exist.
    pub data: PathBuf,
    pub min_free: MinFree,
    pub manifest_cache_bytes: u64,
    /// Moves a metadata file that is damaged aside and begins a new one; else it is an error, and nothing is changed.
    pub begin_anew: bool,
}

impl Settings {
    /// The defaults for a data directory.
    pub fn new(data: PathBuf) -> Self {
        Self {
            data,
            min_free: MinFree::default(),
            manifest_cache_bytes: MANIFEST_CACHE_BYTES_DEFAULT,
            begin_anew: true,
        }
    }
}

/// The store. Clones are handles to the same store.
#[derive(Clone)]
pub struct Content(Arc<Inner>);

struct Inner {
    blobs: Arc<Blobs>,
    metadata: Metadata,
    space: Arc<Space>,
    locks: Locks,
    leftovers: Arc<Leftovers>,
    slots: Slots,
    leases: Leases,
    marks: Mutex<Marks>,
    unreadable: Unreadable,
    manifests: Cache<Digest, Bytes>,
    metrics: Metrics,
    tasks: TaskTracker,
    /// Given back by `close`, or with the last handle.
    directory_lock: Mutex<Option<DirectoryLock>>,
}

impl Content {
    /// Opens the store in a directory of the machine, making what is missing. Takes the same time however much is stored. Blocks:
    /// to be called before serving.
    pub fn open(
        settings: Settings,
        clock: Arc<dyn Clock>,
        tasks: TaskTracker,
        metrics_registry: &mut Registry,
    ) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk), settings, clock, tasks, metrics_registry)
    }

    /// The same on another disk. The rows are on the machine's own disk in any case.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        settings: Settings,
        clock: Arc<dyn Clock>,
        tasks: TaskTracker,
        metrics_registry: &mut Registry,
    ) -> Result<Self, OpenError> {
        let (blobs, directory_lock) = Blobs::open(disk, &settings.data)?;
        let mut rows = metadata::Settings::new(blobs.database_path());
        rows.begin_anew = settings.begin_anew;
        let metadata = Metadata::open(rows, Arc::clone(&clock), metrics_registry)?;
        let blobs = Arc::new(blobs);
        let space = Arc::new(Space::new(Arc::clone(&blobs), settings.min_free));
        let slots = Slots::default();
        let leftovers =
            Leftovers::new(Arc::clone(&blobs), slots.clone(), Arc::clone(&space), clock);
        let leftovers = Arc::new(leftovers);
        let metrics = Metrics::new(metrics_registry, Arc::clone(&space));
        let manifests = Cache::builder()
            .max_capacity(settings.manifest_cache_bytes)
            .weigher(|_digest: &Digest, bytes: &Bytes| {
                let weight = bytes.len().saturating_add(MANIFEST_CACHE_ENTRY_BYTES);
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .build();
        Ok(Self(Arc::new(Inner {
            blobs,
            metadata,
            space,
            locks: Locks::default(),
            leftovers,
            slots,
            leases: Leases::default(),
            marks: Mutex::default(),
            unreadable: Unreadable::default(),
            manifests,
            metrics,
            tasks,
            directory_lock: Mutex::new(Some(directory_lock)),
        })))
    }

    /// Writes what is pending, closes the rows and gives the directory back. To be called when no task uses the store any more.
    pub async fn close(&self) {
        self.0.metadata.close().await;
        let lock = self.0.directory_lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lock);
    }

    /// Was the metadata file unusable when the store was opened? Then a new one was begun, and this is where the old one is now.
    pub fn lost_metadata(&self) -> Option<&Path> {
        self.0.metadata.lost()
    }

    /// The rows.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Counters of this room that others add to.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn blobs(&self) -> Arc<Blobs> {
        Arc::clone(&self.0.blobs)
    }

    pub(super) fn space(&self) -> &Arc<Space> {
        &self.0.space
    }

    pub(super) fn manifests(&self) -> &Cache<Digest, Bytes> {
        &self.0.manifests
    }

    pub(super) fn unreadable(&self) -> &Unreadable {
        &self.0.unreadable
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.0.slots
    }

    pub(super) fn leases(&self) -> &Leases {
        &self.0.leases
    }

    pub(super) fn marks(&self) -> MutexGuard<'_, Marks> {
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    pub(super) fn leftovers(&self) -> Arc<Leftovers> {
        Arc::clone(&self.0.leftovers)
    }

    pub(super) async fn lock(&self, digest: &Digest) -> Locked {
        self.0.locks.lock(digest).await
    }

    /// Runs `work` where it may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        match self.0.tasks.spawn_blocking(work).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(io::Error::other(error).into()),
        }
    }

    /// Runs `work` to its end even if the caller goes.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.0.tasks.spawn(work).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error).into()),
        }
    }

    /// May `size` bytes (`None`: not known) that come from an upstream be stored: is there room above `min_free`, and is nothing closed
    /// ([`Content::set_closed`])? Cheap enough for every request. If there is no room, unfinished downloads that nobody goes on with
    /// make some behind the answer, for the requests after this one.
    pub fn admits(&self, size: Option<u64>, from: Option<&RegistryName>) -> bool {
        if self.0.space.is_closed(from) {
            return false;
        }
        let admitted = self.0.space.admits(size);
        if !admitted {
            self.0.leftovers.make_room_behind(size, &self.0.tasks);
        }
        admitted
    }

    /// Makes a whole and verified download durable and present. The file must have `size` bytes.
    ///
    /// `Metadata`: the file is stored, but no row knows of it, so it is fetched again next time. It is left in place because a failed
    /// COMMIT may yet turn out to have happened after a crash. Whoever reads from [`Stage::file`] goes on reading in any case.
    pub async fn commit(&self, stage: Stage, size: u64) -> Result<Span, Error> {
        let content = self.clone();
        self.detached(async move {
            let digest = *stage.digest();
            let locked = content.lock(&digest).await;
            let (file, stat) = content.blocking(move || stage.publish(size)).await?;
            content.unreadable().forget(&digest);
            content.metadata().set_stored(&digest, size, Some(mark(stat))).await?;
            let lease = content.leases().take(digest.value());
            drop(locked);
            content.press_if_above().await;
            Ok(Span::new(ContentFile::leased(file, size, lease), 0, size))
        })
        .await
    }

    #[cfg(test)]
    pub(super) fn locks_held(&self) -> usize {
        self.0.locks.len()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("blobs", &self.0.blobs)
            .field("metadata", &self.0.metadata)
            .finish_non_exhaustive()
    }
}
