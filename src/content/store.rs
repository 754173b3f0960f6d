//! The room's surface: opening the store, finding content, and bringing downloads in.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use moka::sync::Cache;
use prometheus_client::registry::Registry;
use tokio_util::task::TaskTracker;

use super::error::{Error, OpenError};
use super::lock::{Locked, Locks, Slots};
use super::metrics::{Metrics, Mismatch};
use super::small::mark;
use super::space::{MinFree, Space};
use super::stage::Stage;
use crate::blobs::{Blobs, DirectoryLock, Disk, Opened, RealDisk};
use crate::clock::Clock;
use crate::metadata::{self, BlobRecord, Metadata, RepositoryKey};
use crate::oci::Digest;
use crate::span::Span;

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
}

impl Settings {
    /// The defaults for a data directory.
    pub fn new(data: PathBuf) -> Self {
        Self {
            data,
            min_free: MinFree::default(),
            manifest_cache_bytes: MANIFEST_CACHE_BYTES_DEFAULT,
        }
    }
}

/// What is known of a blob, with its bytes if the repository may have them.
#[derive(Clone, Debug)]
pub struct BlobLookup {
    pub record: BlobRecord,
    /// The whole content: present, of the recorded size, and a member of the repository.
    pub span: Option<Span>,
}

/// The store. Clones are handles to the same store.
#[derive(Clone)]
pub struct Content(Arc<Inner>);

struct Inner {
    blobs: Arc<Blobs>,
    metadata: Metadata,
    space: Arc<Space>,
    locks: Locks,
    slots: Slots,
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
        let rows = metadata::Settings::new(blobs.database_path());
        let metadata = Metadata::open(rows, clock, metrics_registry)?;
        let blobs = Arc::new(blobs);
        let space = Arc::new(Space::new(Arc::clone(&blobs), settings.min_free));
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
            slots: Slots::default(),
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

    /// What is known of the digest as content of the repository, with its bytes if they are here and the repository may have them.
    /// The file's length is checked; one that is missing or wrong makes the content "not present".
    pub async fn open_blob(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<BlobLookup, Error> {
        let mut record = self.metadata().blob(repository, digest).await?;
        let (true, Some(_proof), Some(size)) = (record.present, record.proof, record.size) else {
            return Ok(BlobLookup { record, span: None });
        };
        let (blobs, wanted) = (self.blobs(), *digest);
        let opened = self.blocking(move || blobs.open_published(&wanted)).await?;
        let opened = match opened {
            Some(opened) if opened.stat.size == size => Some(opened),
            _ => self.heal(digest, size).await?,
        };
        record.present = opened.is_some();
        let span = opened.map(|opened| Span::new(opened.file, 0, opened.stat.size));
        Ok(BlobLookup { record, span })
    }

    /// The file of a row "present" was missing or had another length. Looks again under the lock, because a commit may have come
    /// between row and file; what is still wrong is put aside, and the row says so.
    pub(super) async fn heal(&self, digest: &Digest, size: u64) -> Result<Option<Opened>, Error> {
        let (content, wanted) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&wanted).await;
            let blobs = content.blobs();
            let opened = content.blocking(move || blobs.open_published(&wanted)).await?;
            match opened {
                Some(opened) if opened.stat.size == size => Ok(Some(opened)),
                found => {
                    content.mark_absent(&locked, found.is_some()).await?;
                    Ok(None)
                }
            }
        })
        .await
    }

    /// Reads all of a digest's content and compares. `false`: it is not here, or was damaged and has been put aside. For whoever
    /// could not read a span to its end, and for a scrub.
    pub async fn verify(&self, digest: &Digest) -> Result<bool, Error> {
        let size = match self.metadata().object(digest).await? {
            Some(object) if object.present => object.size,
            _ => return Ok(false),
        };
        let (content, digest) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&digest).await;
            let blobs = content.blobs();
            let sound = content
                .blocking(move || match blobs.open_published(&digest)? {
                    Some(opened) if size.is_none_or(|size| size == opened.stat.size) => {
                        Ok(Some(blobs.is_sound(&opened, &digest)))
                    }
                    Some(_) => Ok(Some(false)),
                    None => Ok(None),
                })
                .await?;
            if sound != Some(true) {
                content.mark_absent(&locked, sound.is_some()).await?;
            }
            Ok(sound == Some(true))
        })
        .await
    }

    /// The content of a locked digest is not here, or damaged: row first, then the bytes. A file that cannot be moved does no harm
    /// any more, and the next download renames over it.
    pub(super) async fn mark_absent(&self, locked: &Locked, damaged: bool) -> Result<(), Error> {
        let digest = *locked.digest();
        tracing::warn!(%digest, damaged, "stored content is gone or damaged; it will be fetched again");
        if damaged {
            self.metrics().count_mismatch(Mismatch::Disk);
        }
        self.manifests().invalidate(&digest);
        self.metadata().set_absent(&digest, damaged).await?;
        if damaged {
            let blobs = self.blobs();
            let moved = self.blocking(move || blobs.quarantine(&digest)).await;
            if let Err(error) = moved {
                tracing::warn!(%digest, %error, "damaged content could not be put into quarantine");
            }
        }
        Ok(())
    }

    /// Is there room for `size` bytes (`None`: not known) above `min_free`? Cheap enough for every request.
    pub fn admits(&self, size: Option<u64>) -> bool {
        self.0.space.admits(size)
    }

    /// Free bytes on the disk, and how many of them are left to others.
    pub fn free_space(&self) -> (u64, u64) {
        self.0.space.figures()
    }

    /// Begins to store a download. `NoSpace` below `min_free`, `Busy` while another stage of the digest lives.
    pub async fn stage(&self, digest: &Digest, size: Option<u64>) -> Result<Stage, Error> {
        let slot = self.0.slots.take(digest).ok_or(Error::Busy)?;
        let mut promise = self.0.space.promise(size).ok_or(Error::NoSpace)?;
        let (blobs, tasks) = (self.blobs(), self.0.tasks.clone());
        self.blocking(move || {
            let partial = blobs
                .create_download(slot.digest(), size)
                .inspect_err(|error| promise.space().note_failure(error))?;
            if partial.is_allocated() {
                promise.reserved();
            }
            // If the caller has gone meanwhile, the stage is dropped with the result, and its file with it.
            Ok(Stage::new(blobs, partial, promise, slot, tasks))
        })
        .await
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
            content.metadata().set_stored(&digest, size, Some(mark(stat))).await?;
            drop(locked);
            Ok(Span::new(file, 0, size))
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
