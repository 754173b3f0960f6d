//! The data directory: opening it, and the write protocol.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, FileStat, Volume};
use super::error::OpenError;
use crate::oci::{Algorithm, Digest, DigestHasher};

const LOCK_NAME: &str = "LOCK";
/// What `LOCK` begins with, so that the lock file of another program is not taken for ours.
const LOCK_MARK: &str = "roadstead ";
/// More of `LOCK` is never read.
const LOCK_BYTES_MAX: u64 = 64;
const DATABASE_NAME: &str = "roadstead.db";
const BLOBS_NAME: &str = "blobs";
const PARTIAL_NAME: &str = "partial";
const QUARANTINE_NAME: &str = "quarantine";
/// What may lie in a directory that is about to become ours: the work of an opening that was cut short, and what `mkfs` leaves.
const OWN_NAMES: [&str; 6] =
    [LOCK_NAME, DATABASE_NAME, BLOBS_NAME, PARTIAL_NAME, QUARANTINE_NAME, "lost+found"];
/// Content is read in pieces of this size.
const READ_BYTES: usize = 1024 * 1024;
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The content files of one data directory.
///
/// Callers make sure that at most one of them at a time publishes, quarantines or removes a given digest.
#[derive(Debug)]
pub struct Blobs {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Numbers the scratch files; unique because `LOCK` is held and `partial/` is emptied at the start.
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
    file: Arc<File>,
    path: PathBuf,
    allocated: bool,
}

/// A published file.
#[derive(Debug)]
pub struct Opened {
    pub file: Arc<File>,
    pub stat: FileStat,
}

impl Blobs {
    /// Makes `root` ours: creates what is missing, refuses directories that are foreign, in use or on a network file system, takes
    /// the lock and removes unfinished writes. Reads no content, so it takes the same time for any number of blobs.
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
        blobs.remove_unfinished()?;
        Ok((blobs, lock))
    }

    fn at<T>(&self, path: &Path, result: io::Result<T>) -> Result<T, OpenError> {
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
            let stat = self.disk.open(&part).and_then(|directory| self.disk.stat(&directory));
            let device = self.at(&part, stat)?.device;
            if *first.get_or_insert(device) != device {
                return Err(OpenError::Split { directory: self.root.clone(), part });
            }
        }
        Ok(())
    }

    /// Unfinished downloads are not resumed yet; a file that cannot be removed only costs its room.
    fn remove_unfinished(&self) -> Result<(), OpenError> {
        let directory = self.root.join(PARTIAL_NAME);
        for name in self.at(&directory, self.disk.list(&directory))? {
            let path = directory.join(name);
            if let Err(error) = self.disk.unlink(&path) {
                tracing::warn!(path = %path.display(), %error, "an unfinished file could not be removed");
            }
        }
        Ok(())
    }

    /// The file in which `metadata` keeps its rows.
    pub fn database_path(&self) -> PathBuf {
        self.root.join(DATABASE_NAME)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_directory(digest).join(digest.hex())
    }

    fn blob_directory(&self, digest: &Digest) -> PathBuf {
        self.root.join(BLOBS_NAME).join(digest.algorithm().as_str())
    }

    /// Begins the download of `digest`. With a size, room for it is reserved, so that a full disk shows before the first byte.
    pub fn create_download(&self, digest: &Digest, size: Option<u64>) -> io::Result<Partial> {
        let name = format!("d-{}-{}", digest.algorithm().as_str(), digest.hex());
        self.create(self.root.join(PARTIAL_NAME).join(name), size)
    }

    /// Begins a small write.
    pub fn create_scratch(&self, size: u64) -> io::Result<Partial> {
        let number = self.scratch.fetch_add(1, Ordering::Relaxed);
        let name = format!("w-{number}");
        self.create(self.root.join(PARTIAL_NAME).join(name), Some(size))
    }

    fn create(&self, path: PathBuf, size: Option<u64>) -> io::Result<Partial> {
        let file = match self.disk.create(&path) {
            // Nobody else writes here, so a file in the way is a leftover that could not be removed when it should have been.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.unlink(&path)?;
                self.disk.create(&path)?
            }
            other => other?,
        };
        let mut partial = Partial { file: Arc::new(file), path, allocated: false };
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

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, partial: &Partial, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(&partial.file, offset, bytes)
    }

    /// Gives a verified file its final name, durably, replacing what stands there (the same content, or damage). The caller has
    /// hashed what it wrote; a length other than `size` is `InvalidData`.
    ///
    /// After an error the partial file may or may not have its final name; if it has, its content was durable before.
    pub fn publish(&self, partial: &Partial, digest: &Digest, size: u64) -> io::Result<FileStat> {
        self.disk.sync_data(&partial.file)?;
        let stat = self.disk.stat(&partial.file)?;
        if stat.size != size {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the file has {} bytes, not {size}", stat.size),
            ));
        }
        self.rename_durably(&partial.path, &self.blob_path(digest))?;
        Ok(stat)
    }

    /// Rename and directory sync in one helper, so that no caller can forget the second.
    fn rename_durably(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)?;
        self.disk.sync_dir(to.parent().expect("every name of the store is in a directory"))
    }

    /// Removes a partial file that will not be published; best effort, the next start removes what is left.
    pub fn discard(&self, partial: &Partial) {
        match self.disk.unlink(&partial.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = partial.path.display();
                tracing::warn!(%path, %error, "an unfinished file could not be removed");
            }
        }
    }

    /// Opens published content; `None` if there is none.
    pub fn open_published(&self, digest: &Digest) -> io::Result<Option<Opened>> {
        match self.disk.open(&self.blob_path(digest)) {
            Ok(file) => {
                let stat = self.disk.stat(&file)?;
                let file = Arc::new(file);
                Ok(Some(Opened { file, stat }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all of an opened file, whose length the caller has checked.
    pub fn read(&self, opened: &Opened) -> io::Result<Vec<u8>> {
        let size = usize::try_from(opened.stat.size).map_err(io::Error::other)?;
        let mut bytes = vec![0; size];
        self.disk.read_at(&opened.file, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Is an opened file, read to its end, what the digest names? One that cannot be read is not.
    pub fn is_sound(&self, opened: &Opened, digest: &Digest) -> bool {
        let mut hasher = DigestHasher::new(digest.algorithm());
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < opened.stat.size {
            let left = usize::try_from(opened.stat.size - offset).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(READ_BYTES)];
            if let Err(error) = self.disk.read_at(&opened.file, offset, part) {
                tracing::warn!(%digest, offset, %error, "stored content cannot be read");
                return false;
            }
            hasher.update(part);
            offset += u64::try_from(part.len()).unwrap_or(u64::MAX);
        }
        hasher.finish() == *digest
    }

    /// Takes damaged content out of `blobs/` and keeps it for the operator, the last of each digest.
    pub fn quarantine(&self, digest: &Digest) -> io::Result<()> {
        let name = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        let target = self.root.join(QUARANTINE_NAME).join(name);
        match self.rename_durably(&self.blob_path(digest), &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Room on the file system of the store.
    pub fn volume(&self) -> io::Result<Volume> {
        self.disk.volume(&self.root)
    }
}

impl Partial {
    /// The file, to be read while it grows.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
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

/// Did the write fail for want of room (also quota)? Then content passes through uncached for a while.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
