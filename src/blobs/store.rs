//! The data directory: opening it, and the write protocol.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::disk::{Disk, FileStat, Volume};
use super::error::OpenError;
use crate::oci::{Algorithm, Digest};

const LOCK_NAME: &str = "LOCK";
/// What `LOCK` begins with, so that the lock file of another program is not taken for ours.
const LOCK_MARK: &str = "roadstead ";
/// More of `LOCK` is never read.
const LOCK_BYTES_MAX: u64 = 64;
const DATABASE_NAME: &str = "roadstead.db";
pub(super) const BLOBS_NAME: &str = "blobs";
const PARTIAL_NAME: &str = "partial";
pub(super) const QUARANTINE_NAME: &str = "quarantine";
/// What may lie in a directory that is about to become ours: the work of an opening that was cut short, and what `mkfs` leaves.
const OWN_NAMES: [&str; 6] =
    [LOCK_NAME, DATABASE_NAME, BLOBS_NAME, PARTIAL_NAME, QUARANTINE_NAME, "lost+found"];
pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The content files of one data directory.
///
/// Callers make sure that at most one of them at a time publishes, quarantines or removes a given digest.
#[derive(Debug)]
pub struct Blobs {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) root: PathBuf,
    /// Numbers the scratch files; unique because `LOCK` is held and those of others are removed at the start.
    scratch: AtomicU64,
}

/// Holds `LOCK` until it is dropped.
#[derive(Debug)]
pub struct DirectoryLock(File);

impl Drop for DirectoryLock {
    /// Closing would do, were it not for a process that is being started just now: between fork and exec it shares the lock.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the lock of the data directory could not be given back");
        }
    }
}

/// A file under `partial/` that is being written. It stays on the disk until it is published or discarded.
pub struct Partial {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) allocated: bool,
    pub(super) download: Option<Download>,
    /// A sync failed: what was written until then may be gone, whatever a later sync says.
    pub(super) lost: AtomicBool,
}

/// What makes a partial file one that can be continued.
#[derive(Debug)]
pub(super) struct Download {
    /// As it was announced; a download of unknown size is not continued.
    pub(super) size: Option<u64>,
    pub(super) record: PathBuf,
    /// There is a record on the disk.
    pub(super) recorded: AtomicBool,
}

/// A published file.
#[derive(Debug)]
pub struct Opened {
    pub file: Arc<File>,
    pub stat: FileStat,
}

impl Blobs {
    /// Makes `root` ours: creates what is missing, refuses directories that are foreign, in use or on a network file system, takes
    /// the lock and removes what nobody can continue. Reads no content and no record, only the names under `partial/`.
    pub fn open(disk: Arc<dyn Disk>, root: &Path) -> Result<(Self, DirectoryLock), OpenError> {
        let blobs = Self { disk, root: root.to_owned(), scratch: AtomicU64::new(0) };
        blobs.at(root, blobs.disk.create_dir(root))?;
        blobs.check_file_system()?;
        blobs.check_owner()?;
        let lock = blobs.take_lock()?;
        for directory in blobs.directories() {
            blobs.at(&directory, blobs.disk.create_dir(&directory))?;
        }
        blobs.check_one_file_system()?;
        for directory in [root.to_owned(), root.join(BLOBS_NAME)] {
            blobs.at(&directory, blobs.disk.sync_dir(&directory))?;
        }
        blobs.remove_litter()?;
        Ok((blobs, lock))
    }

    pub(super) fn at<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, OpenError> {
        result.map_err(|source| OpenError::Io { path: path.to_owned(), source })
    }

    fn check_file_system(&self) -> Result<(), OpenError> {
        let found = self.at(&self.root, self.disk.file_system(&self.root))?;
        match found.network_name() {
            Some(kind) => Err(OpenError::NetworkFileSystem { directory: self.root.clone(), kind }),
            None => Ok(()),
        }
    }

    /// A directory that holds files is ours if its `LOCK` says so or the database is there; `metadata` looks into that one.
    fn check_owner(&self) -> Result<(), OpenError> {
        let names = self.at(&self.root, self.disk.list(&self.root))?;
        let strange =
            names.iter().find(|name| !OWN_NAMES.iter().any(|own| name.as_os_str() == *own));
        let Some(strange) = strange else {
            return Ok(());
        };
        if names.iter().any(|name| name == DATABASE_NAME) || self.read_lock().starts_with(LOCK_MARK)
        {
            return Ok(());
        }
        Err(OpenError::Foreign {
            directory: self.root.clone(),
            example: strange.to_string_lossy().into_owned(),
        })
    }

    /// The text in `LOCK`, empty if there is none that can be read.
    fn read_lock(&self) -> String {
        let path = self.root.join(LOCK_NAME);
        let read = || -> io::Result<Vec<u8>> {
            let file = self.disk.open(&path)?;
            let size = self.disk.stat(&file)?.size.min(LOCK_BYTES_MAX);
            let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
            self.disk.read_at(&file, 0, &mut text)?;
            Ok(text)
        };
        read().ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    }

    fn take_lock(&self) -> Result<DirectoryLock, OpenError> {
        let path = self.root.join(LOCK_NAME);
        let file = match self.disk.lock(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = self.read_lock();
                return Err(OpenError::Held {
                    directory: self.root.clone(),
                    pid: text.strip_prefix(LOCK_MARK).and_then(|rest| rest.trim().parse().ok()),
                });
            }
            // The directory is what has to change hands, not only the file in it.
            Err(error) => return self.at(&self.root, Err(error)),
        };
        // Padded to a fixed length: a shorter pid overwrites a longer one without a moment in which the file is empty.
        let text = format!("{LOCK_MARK}{:<20}\n", std::process::id());
        self.at(&path, self.disk.write_at(&file, 0, text.as_bytes()))?;
        Ok(DirectoryLock(file))
    }

    /// The directories between which files are renamed.
    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        let blobs = self.root.join(BLOBS_NAME);
        let small = [PARTIAL_NAME, QUARANTINE_NAME].map(|name| self.root.join(name));
        let content = ALGORITHMS.map(|algorithm| blobs.join(algorithm.as_str()));
        small.into_iter().chain(content)
    }

    /// A disk mounted under `blobs/` would make every publication fail, so it is refused at once.
    fn check_one_file_system(&self) -> Result<(), OpenError> {
        let mut first = None;
        for part in self.directories() {
            let device = self.at(&part, self.disk.stat_path(&part))?.device;
            if *first.get_or_insert(device) != device {
                return Err(OpenError::Split { directory: self.root.clone(), part });
            }
        }
        Ok(())
    }

    /// The file in which `metadata` keeps its rows.
    pub fn database_path(&self) -> PathBuf {
        self.root.join(DATABASE_NAME)
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_directory(digest).join(digest.hex())
    }

    fn blob_directory(&self, digest: &Digest) -> PathBuf {
        self.root.join(BLOBS_NAME).join(digest.algorithm().as_str())
    }

    /// Begins a small write.
    pub fn create_scratch(&self, size: u64) -> io::Result<Partial> {
        self.create(self.scratch_path(), Some(size), None)
    }

    /// A name for a small write that no other has.
    pub(super) fn scratch_path(&self) -> PathBuf {
        self.partial_directory().join(format!("w-{}", self.next_number()))
    }

    /// A number that no other caller has in the life of this process.
    pub(super) fn next_number(&self) -> u64 {
        self.scratch.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn partial_directory(&self) -> PathBuf {
        self.root.join(PARTIAL_NAME)
    }

    pub(super) fn create(
        &self,
        path: PathBuf,
        size: Option<u64>,
        download: Option<Download>,
    ) -> io::Result<Partial> {
        let file = match self.disk.create(&path) {
            // Nobody else writes here, so a file in the way is a leftover that could not be removed when it should have been.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.unlink(&path)?;
                self.disk.create(&path)?
            }
            other => other?,
        };
        let lost = AtomicBool::new(false);
        let mut partial = Partial { file: Arc::new(file), path, allocated: false, download, lost };
        if let Some(size) = size {
            match self.disk.allocate(&partial.file, size) {
                Ok(allocated) => partial.allocated = allocated,
                Err(error) => {
                    self.discard(&partial);
                    return Err(error);
                }
            }
        }
        Ok(partial)
    }

    /// Fills all of `buffer` from `offset`.
    pub fn read_at(&self, partial: &Partial, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(&partial.file, offset, buffer)
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, partial: &Partial, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(&partial.file, offset, bytes)
    }

    /// Writes all of `parts` at `offset`, one behind the other.
    pub fn write_parts_at(
        &self,
        partial: &Partial,
        offset: u64,
        parts: &[&[u8]],
    ) -> io::Result<()> {
        self.disk.write_parts_at(&partial.file, offset, parts)
    }

    /// Gives a verified file its final name, durably, replacing what stands there (the same content, or damage). The caller has
    /// hashed what it wrote; a length other than `size` is `InvalidData`.
    ///
    /// After an error the partial file may or may not have its final name; if it has, its content was durable before.
    pub fn publish(&self, partial: &Partial, digest: &Digest, size: u64) -> io::Result<FileStat> {
        self.sync(partial)?;
        let stat = self.disk.stat(&partial.file)?;
        if stat.size != size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the file has {} bytes, not {size}", stat.size),
            ));
        }
        self.rename_durably(&partial.path, &self.blob_path(digest))?;
        self.remove_record(partial);
        Ok(stat)
    }

    /// Makes what was written durable; never after a failure, because the next call would say yes to bytes that are gone.
    pub(super) fn sync(&self, partial: &Partial) -> io::Result<()> {
        if partial.lost.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier sync of the file has failed"));
        }
        self.disk.sync_data(&partial.file).inspect_err(|_error| {
            partial.lost.store(true, Ordering::SeqCst);
        })
    }

    /// Rename and directory sync in one helper, so that no caller can forget the second.
    pub(super) fn rename_durably(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)?;
        self.disk.sync_dir(to.parent().expect("every name of the store is in a directory"))
    }

    /// Removes a partial file that will not be published; best effort, the next start removes what is left.
    pub fn discard(&self, partial: &Partial) {
        self.remove_record(partial);
        self.unlink_or_warn(&partial.path);
    }

    pub(super) fn unlink_or_warn(&self, path: &Path) {
        if let Err(error) = self.unlink_if_there(path) {
            tracing::warn!(path = %path.display(), %error, "an unfinished file could not be removed");
        }
    }

    pub(super) fn unlink_if_there(&self, path: &Path) -> io::Result<()> {
        match self.disk.unlink(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens published content; `None` if there is none. That the directory is gone (unmounted, moved away) is an error, and tells
    /// nothing about the content; what is no regular file is `InvalidData`.
    pub fn open_published(&self, digest: &Digest) -> io::Result<Option<Opened>> {
        match self.disk.open(&self.blob_path(digest)) {
            Ok(file) => {
                let stat = self.disk.stat(&file)?;
                let file = Arc::new(file);
                Ok(Some(Opened { file, stat }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = self.blob_directory(digest);
                match self.disk.stat_path(&directory) {
                    Ok(_there) => Ok(None),
                    Err(error) => {
                        let text =
                            format!("the store's own directory {}: {error}", directory.display());
                        Err(io::Error::other(text))
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Opens published content if that takes no wait for the disk. `None` tells nothing of it: ask [`Blobs::open_published`].
    pub fn open_cached(&self, digest: &Digest) -> io::Result<Option<Opened>> {
        let Some(file) = self.disk.open_cached(&self.blob_path(digest))? else {
            return Ok(None);
        };
        let stat = self.disk.stat(&file)?;
        Ok(Some(Opened { file: Arc::new(file), stat }))
    }

    /// Reads all of an opened file, whose length the caller has checked.
    pub fn read(&self, opened: &Opened) -> io::Result<Vec<u8>> {
        let size = usize::try_from(opened.stat.size).map_err(io::Error::other)?;
        let mut bytes = vec![0; size];
        self.disk.read_at(&opened.file, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Room on the file system of the store.
    pub fn volume(&self) -> io::Result<Volume> {
        self.disk.volume(&self.root)
    }
}

impl Partial {
    /// A file that is written already.
    pub(super) fn of(file: File, path: PathBuf) -> Self {
        let lost = AtomicBool::new(false);
        Self { file: Arc::new(file), path, allocated: false, download: None, lost }
    }

    /// The file, to be read while it grows.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Is it a download whose bytes can be recorded?
    pub fn can_be_continued(&self) -> bool {
        self.download.as_ref().is_some_and(|download| download.size.is_some())
    }

    /// Is the room for the whole file reserved on the disk?
    pub fn is_allocated(&self) -> bool {
        self.allocated
    }
}

impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partial").field("path", &self.path).finish()
    }
}
