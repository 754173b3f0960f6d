//! Content that lies in somebody else's folder: reading it, and giving it a name here by a hard link or a copy.
//!
//! What must hold: the folder is never written, neither its files nor their times (a hard link adds to the count of links, and that is
//! all). What gets a name here was read and hashed first, and what has the name afterwards is the file that was read.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::disk::{Disk, Entries, FileStat};
use super::error::is_no_space;
use super::real;
use super::store::{Blobs, Opened, Partial};
use crate::oci::{Digest, DigestHasher};

/// Content is copied in pieces of this size.
const COPY_BYTES: usize = 1024 * 1024;
/// Hard links that are refused one after the other, with none made between them, until no other is tried: each costs the reading of a file
/// that is read again for its copy.
const REFUSALS_MAX: u32 = 8;

/// A tree of files that another program wrote. All paths are relative to its root. Its methods block.
#[derive(Debug)]
pub struct Folder {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Hard links that were refused since one was made.
    refusals: AtomicU32,
}

/// A file of a folder that was opened.
#[derive(Debug)]
pub struct FolderFile {
    path: PathBuf,
    opened: Opened,
}

/// What came of a copy.
#[derive(Debug)]
pub enum Copied {
    /// It has the bytes that the digest names.
    Sound(Partial),
    Damaged,
    /// The folder's file could not be read.
    Unreadable(io::Error),
}

impl Folder {
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names in a directory. What is no directory is `NotADirectory`, a symbolic link `InvalidData`.
    pub fn entries(&self, path: &Path) -> io::Result<Entries> {
        self.disk.entries_beneath(&self.root, path)
    }

    /// Opens a regular file; anything else is `InvalidData`.
    pub fn open(&self, path: &Path) -> io::Result<FolderFile> {
        let file = self.disk.open_beneath(&self.root, path)?;
        let stat = self.disk.stat(&file)?;
        Ok(FolderFile { path: path.to_owned(), opened: Opened { file: Arc::new(file), stat } })
    }

    /// Reads a small file whole; one of more than `limit` bytes is `FileTooLarge`.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, FileStat)> {
        let FolderFile { opened, .. } = self.open(path)?;
        if opened.stat.size > limit {
            let text =
                format!("it has {} bytes, and more than {limit} are not read", opened.stat.size);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let mut bytes = vec![0; usize::try_from(opened.stat.size).map_err(io::Error::other)?];
        self.disk.read_at(&opened.file, 0, &mut bytes)?;
        Ok((bytes, opened.stat))
    }

    /// Is a hard link worth a try?
    fn is_linkable(&self, file: &FolderFile, device: u64) -> bool {
        file.opened.stat.device == device && self.refusals.load(Ordering::Relaxed) < REFUSALS_MAX
    }

    /// A hard link was refused. The file may be the reason (it has as many names as it may have, or its owner is another one), and then
    /// the next one is tried; the file systems may be, and then none is.
    fn note_refusal(&self, error: &io::Error) {
        let count = match error.kind() {
            io::ErrorKind::TooManyLinks => return,
            // As between two mounts of one file system, or on one that knows no hard links.
            io::ErrorKind::CrossesDevices | io::ErrorKind::Unsupported => REFUSALS_MAX,
            _ => 1,
        };
        let before = self.refusals.fetch_add(count, Ordering::Relaxed);
        if before < REFUSALS_MAX && before + count >= REFUSALS_MAX {
            tracing::info!(%error, "files are copied, because no hard link can be made to them");
        }
    }
}

impl FolderFile {
    pub fn size(&self) -> u64 {
        self.opened.stat.size
    }

    pub fn opened(&self) -> &Opened {
        &self.opened
    }
}

impl Blobs {
    /// A folder of another program.
    pub fn folder(&self, root: PathBuf) -> Folder {
        Folder { disk: Arc::clone(&self.disk), root, refusals: AtomicU32::new(0) }
    }

    /// May a file of the folder get a name here by a hard link, as far as one can tell before it is tried?
    pub fn can_link(&self, folder: &Folder, file: &FolderFile) -> io::Result<bool> {
        let here = self.disk.stat_path(&self.partial_directory())?;
        Ok(folder.is_linkable(file, here.device))
    }

    /// Gives a file of the folder, which the caller has hashed, a name under `partial/`. `None`: the system does not allow it, and a copy
    /// will do; nothing was changed. `InvalidData`: the name in the folder stands for another file now.
    pub fn link(&self, folder: &Folder, file: &FolderFile) -> io::Result<Option<Partial>> {
        let path = self.scratch_path();
        self.unlink_if_there(&path)?;
        if let Err(error) = self.disk.link(&folder.root, &file.path, &path) {
            if is_no_space(&error) || error.kind() == io::ErrorKind::NotFound {
                return Err(error);
            }
            tracing::debug!(%error, path = %file.path.display(), "no hard link can be made to a file, so it is copied");
            folder.note_refusal(&error);
            return Ok(None);
        }
        folder.refusals.store(0, Ordering::Relaxed);
        match self.linked(&path, &file.opened.stat) {
            Ok(file) => Ok(Some(Partial::of(file, path))),
            Err(error) => {
                self.unlink_or_warn(&path);
                Err(error)
            }
        }
    }

    fn linked(&self, path: &Path, wanted: &FileStat) -> io::Result<File> {
        let file = self.disk.open(path)?;
        let stat = self.disk.stat(&file)?;
        let same = (stat.inode, stat.device, stat.size, stat.modified_nanos)
            == (wanted.inode, wanted.device, wanted.size, wanted.modified_nanos);
        if same {
            return Ok(file);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "it was changed while it was read"))
    }

    /// Copies a file of the folder to a name under `partial/` and hashes it on the way. `each` hears of every piece; `false` from it ends
    /// the copy with `Interrupted`. An error is one of this store's disk.
    pub fn copy(
        &self,
        file: &FolderFile,
        digest: &Digest,
        each: &mut dyn FnMut(usize) -> bool,
    ) -> io::Result<Copied> {
        let partial = self.create_scratch(file.size())?;
        let copied = self.copy_to(&partial, file, digest, each);
        if copied.as_ref().is_ok_and(Option::is_none) {
            return Ok(Copied::Sound(partial));
        }
        self.discard(&partial);
        copied.map(|flaw| flaw.unwrap_or(Copied::Damaged))
    }

    /// What is wrong with it; `None`: nothing.
    fn copy_to(
        &self,
        partial: &Partial,
        file: &FolderFile,
        digest: &Digest,
        each: &mut dyn FnMut(usize) -> bool,
    ) -> io::Result<Option<Copied>> {
        let mut hasher = DigestHasher::new(digest.algorithm());
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        real::read_in_order(&file.opened.file);
        while offset < file.size() {
            let left = usize::try_from(file.size() - offset).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(COPY_BYTES)];
            match self.disk.read_at(&file.opened.file, offset, part) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Some(Copied::Damaged));
                }
                Err(error) => return Ok(Some(Copied::Unreadable(error))),
                Ok(()) => {}
            }
            hasher.update(part);
            self.write_at(partial, offset, part)?;
            offset += u64::try_from(part.len()).unwrap_or(u64::MAX);
            if !each(part.len()) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        real::let_go(&file.opened.file, offset);
        Ok((hasher.finish() != *digest).then_some(Copied::Damaged))
    }

    /// [`Blobs::publish`] for what came from a folder. A hard link to what has the name already leaves both names when it is renamed
    /// (rename(2)), so the other one goes afterwards.
    pub fn publish_foreign(
        &self,
        partial: &Partial,
        digest: &Digest,
        size: u64,
    ) -> io::Result<FileStat> {
        let published = self.publish(partial, digest, size);
        match &published {
            Ok(_stat) => self.unlink_or_warn(&partial.path),
            Err(_error) => self.discard(partial),
        }
        published
    }
}
