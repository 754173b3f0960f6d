//! A disk for tests: any operation can be made to fail, and the power can be cut.
//!
//! Not part of the program's surface; public so that tests of the whole can reach it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, Entries, FileStat, Volume};
use super::file_system::FileSystem;
use super::store::Blobs;
use crate::oci::Digest;

/// Larger files that a rename replaces are kept as links, smaller ones in memory.
const KEPT_BYTES_MAX: u64 = 64 * 1024;

/// The operations of [`Disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    CreateDir,
    Create,
    Open,
    Lock,
    Write,
    Read,
    Allocate,
    SyncData,
    Stat,
    Rename,
    SyncDir,
    Unlink,
    List,
    OpenBeneath,
    ListBeneath,
    Link,
    Volume,
    FileSystem,
}

/// What a failing operation reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ENOSPC
    NoSpace,
    /// EDQUOT
    Quota,
    /// EIO
    Io,
    /// EROFS
    ReadOnly,
    /// EACCES
    Denied,
    /// EMFILE
    TooManyFiles,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NoSpace, Self::Quota, Self::Io, Self::ReadOnly, Self::Denied, Self::TooManyFiles];

    /// The error as the system reports it.
    pub fn error(self) -> io::Error {
        use rustix::io::Errno;
        let errno = match self {
            Self::NoSpace => Errno::NOSPC,
            Self::Quota => Errno::DQUOT,
            Self::Io => Errno::IO,
            Self::ReadOnly => Errno::ROFS,
            Self::Denied => Errno::ACCESS,
            Self::TooManyFiles => Errno::MFILE,
        };
        io::Error::from_raw_os_error(errno.raw_os_error())
    }
}

/// Which operations fail.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first operation that fails, counted from 1 since the plan was made.
    pub at: u64,
    /// Only that one, or all from there on.
    pub lasting: bool,
    pub fault: Fault,
    /// Counts and fails only operations of this kind.
    pub only: Option<Operation>,
}

/// Wraps a disk. A failing write still writes its first half, as a torn write would.
#[derive(Debug)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    /// Operations since the plan was made, of the planned kind if it has one.
    counted: u64,
    injected: u64,
    volume: Option<Volume>,
    /// Of a disk that fills: its size, and what of it is somebody else's.
    filling: Option<(u64, u64)>,
    file_system: Option<FileSystem>,
    elsewhere: Option<u64>,
    unreserved: bool,
    syncs_held: bool,
    unlinks_held: bool,
    unsynced: Unsynced,
}

/// What a loss of power would take away.
#[derive(Debug, Default)]
struct Unsynced {
    /// Files by inode with what of them is not durable.
    dirty: HashMap<u64, Dirty>,
    /// Names by inode, as they are now.
    paths: HashMap<u64, PathBuf>,
    /// Renames whose directory is not synced, in order, with a link to what the target was before.
    renames: Vec<Rename>,
    links: u64,
}

/// What of a file is not durable.
#[derive(Debug, Default)]
struct Dirty {
    /// Written since the last sync.
    written: Vec<Range<u64>>,
    /// Written before a sync that failed: nothing makes these bytes durable any more, but to write them again.
    lost: Vec<Range<u64>>,
    /// The length that is durable.
    length: u64,
}

#[derive(Debug)]
struct Rename {
    from: PathBuf,
    to: PathBuf,
    replaced: Option<Replaced>,
}

/// What a name stood for before a rename.
#[derive(Debug)]
enum Replaced {
    Link(PathBuf),
    /// Of a small file: a link beside it would be taken for litter by whoever counts what is left.
    Bytes(Vec<u8>),
}

/// What the files of a store take on the disk.
fn allocated(root: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for part in ["blobs/sha256", "blobs/sha512", "partial", "quarantine"] {
        let Ok(entries) = fs::read_dir(root.join(part)) else { continue };
        for entry in entries {
            // One that is gone meanwhile takes nothing.
            sum += entry?.metadata().map_or(0, |about| about.blocks() * 512);
        }
    }
    Ok(sum)
}

impl FaultyDisk {
    pub fn new(inner: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default(), released: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes syncs of files wait, as those of a slow disk do, or lets them go on.
    pub fn hold_syncs(&self, held: bool) {
        self.state().syncs_held = held;
        self.released.notify_all();
    }

    /// Makes removals of files wait, or lets them go on.
    pub fn hold_unlinks(&self, held: bool) {
        self.state().unlinks_held = held;
        self.released.notify_all();
    }

    /// Makes operations fail from now on; replaces an earlier plan.
    pub fn fail(&self, plan: Plan) {
        let mut state = self.state();
        state.plan = Some(plan);
        (state.counted, state.injected) = (0, 0);
    }

    /// No operation fails any more.
    pub fn heal(&self) {
        self.state().plan = None;
    }

    /// Operations that failed since the last plan was made. Zero after a whole run: the loop over N is through.
    pub fn injected(&self) -> u64 {
        self.state().injected
    }

    /// Operations since the last plan was made, of the planned kind if it has one; also those that did not fail.
    pub fn counted(&self) -> u64 {
        self.state().counted
    }

    /// Reports this volume instead of the real one.
    pub fn set_volume(&self, volume: Option<Volume>) {
        self.state().volume = volume;
    }

    /// Reports a volume of this size, on which the files below the asked directory take what they have allocated, and others this much.
    pub fn fill_up(&self, total: u64, others: u64) {
        self.state().filling = Some((total, others));
    }

    /// Reports this type instead of the real one.
    pub fn set_file_system(&self, file_system: FileSystem) {
        self.state().file_system = Some(file_system);
    }

    /// Reports the file or directory with this inode as being on another file system.
    pub fn set_elsewhere(&self, inode: u64) {
        self.state().elsewhere = Some(inode);
    }

    /// Reserves no room any more, as a file system without such an operation, so that a lack of room shows in the middle of a file.
    pub fn reserve_nothing(&self) {
        self.state().unreserved = true;
    }

    /// Leaves the files as a loss of power may leave them: content that was not synced is gone, renames whose directory was not
    /// synced did not happen. For use when nothing works on the disk any more.
    pub fn cut_power(&self) -> io::Result<()> {
        self.cut_power_after(0)
    }

    /// The same, but as many renames of those whose directory was not synced did happen, in their order: a loss of power may take
    /// any number of them.
    pub fn cut_power_after(&self, renames: usize) -> io::Result<()> {
        let mut state = self.state();
        let unsynced = std::mem::take(&mut state.unsynced);
        for (inode, dirty) in &unsynced.dirty {
            let Some(path) = unsynced.paths.get(inode) else { continue };
            let Ok(file) = OpenOptions::new().write(true).open(path) else { continue };
            if file.metadata()?.ino() != *inode {
                continue;
            }
            for part in dirty.written.iter().chain(&dirty.lost) {
                let length = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
                file.write_all_at(&vec![0; length], part.start)?;
            }
            file.set_len(dirty.length)?;
        }
        for (number, rename) in unsynced.renames.into_iter().enumerate().rev() {
            if number < renames {
                if let Some(Replaced::Link(link)) = rename.replaced {
                    fs::remove_file(link)?;
                }
                continue;
            }
            fs::rename(&rename.to, &rename.from)?;
            match rename.replaced {
                Some(Replaced::Link(link)) => fs::rename(link, &rename.to)?,
                Some(Replaced::Bytes(bytes)) => fs::write(&rename.to, bytes)?,
                None => {}
            }
        }
        Ok(())
    }

    fn check(&self, operation: Operation) -> io::Result<()> {
        let mut state = self.state();
        let Some(plan) = state.plan else {
            return Ok(());
        };
        if plan.only.is_some_and(|only| only != operation) {
            return Ok(());
        }
        state.counted += 1;
        let due = state.counted == plan.at || (plan.lasting && state.counted > plan.at);
        if due {
            state.injected += 1;
            return Err(plan.fault.error());
        }
        Ok(())
    }

    /// What is not durable of the file with this state.
    fn dirty<T>(&self, before: FileStat, note: impl FnOnce(&mut Dirty) -> T) -> T {
        let mut state = self.state();
        let fresh = || Dirty { length: before.size, ..Dirty::default() };
        note(state.unsynced.dirty.entry(before.inode).or_insert_with(fresh))
    }

    fn inode(&self, file: &File) -> io::Result<u64> {
        Ok(self.inner.stat(file)?.inode)
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check(Operation::CreateDir)?;
        self.inner.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Create)?;
        let file = self.inner.create(path)?;
        let inode = self.inode(&file)?;
        let mut state = self.state();
        // The number may have belonged to a file that is gone.
        state.unsynced.dirty.remove(&inode);
        state.unsynced.paths.insert(inode, path.to_owned());
        drop(state);
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Open)?;
        self.inner.open(path)
    }

    fn open_cached(&self, path: &Path) -> io::Result<Option<File>> {
        self.check(Operation::Open)?;
        self.inner.open_cached(path)
    }

    fn open_writable(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Open)?;
        let file = self.inner.open_writable(path)?;
        let inode = self.inode(&file)?;
        self.state().unsynced.paths.insert(inode, path.to_owned());
        Ok(file)
    }

    fn lock(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Lock)?;
        self.inner.lock(path)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_parts_at(file, offset, &[bytes])
    }

    fn write_parts_at(&self, file: &File, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let written = offset..offset + u64::try_from(length).map_err(io::Error::other)?;
        let before = self.inner.stat(file)?;
        self.dirty(before, |dirty| {
            // What is written anew can be made durable anew; that a half of it may be lost is left out.
            dirty.lost.retain(|part| !(written.start <= part.start && part.end <= written.end));
            dirty.written.push(written.clone());
        });
        let outcome = match self.check(Operation::Write) {
            Ok(()) => self.inner.write_parts_at(file, offset, parts),
            Err(error) => {
                let mut left = length / 2;
                let cut = |part: &&'_ [u8]| {
                    let taken = part.len().min(left);
                    left -= taken;
                    taken
                };
                let lengths: Vec<usize> = parts.iter().map(cut).collect();
                let half: Vec<&[u8]> =
                    parts.iter().zip(lengths).map(|(part, taken)| &part[..taken]).collect();
                self.inner.write_parts_at(file, offset, &half).and(Err(error))
            }
        };
        // Once more: a sync that ran meanwhile may have taken the first note for something that it has made durable.
        self.dirty(before, |dirty| dirty.written.push(written));
        outcome
    }

    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(Operation::Read)?;
        self.inner.read_at(file, offset, buffer)
    }

    fn allocate(&self, file: &File, size: u64) -> io::Result<bool> {
        self.check(Operation::Allocate)?;
        if self.state().unreserved {
            return Ok(false);
        }
        self.inner.allocate(file, size)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let held = self.released.wait_while(self.state(), |state| state.syncs_held);
        drop(held.unwrap_or_else(PoisonError::into_inner));
        let before = self.inner.stat(file)?;
        // Only what was written before is made durable; others may be writing.
        let known = self.state().unsynced.dirty.contains_key(&before.inode);
        let written = if known {
            self.dirty(before, |dirty| std::mem::take(&mut dirty.written))
        } else {
            Vec::new()
        };
        let outcome = self.check(Operation::SyncData).and_then(|()| self.inner.sync_data(file));
        let mut state = self.state();
        if let Some(dirty) = state.unsynced.dirty.get_mut(&before.inode) {
            match &outcome {
                Ok(()) => dirty.length = before.size,
                Err(_lost) => dirty.lost.extend(written),
            }
            if dirty.lost.is_empty() && dirty.written.is_empty() {
                state.unsynced.dirty.remove(&before.inode);
            }
        }
        drop(state);
        outcome
    }

    fn stat(&self, file: &File) -> io::Result<FileStat> {
        self.check(Operation::Stat)?;
        self.inner.stat(file)
    }

    fn stat_path(&self, path: &Path) -> io::Result<FileStat> {
        self.check(Operation::Stat)?;
        let mut stat = self.inner.stat_path(path)?;
        if self.state().elsewhere == Some(stat.inode) {
            stat.device = !stat.device;
        }
        Ok(stat)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Operation::Rename)?;
        let mut state = self.state();
        let replaced = match fs::metadata(to) {
            Ok(found) if found.len() <= KEPT_BYTES_MAX => Some(Replaced::Bytes(fs::read(to)?)),
            Ok(_large) => {
                state.unsynced.links += 1;
                let name = format!(".replaced-{}", state.unsynced.links);
                let link = to.with_file_name(name);
                fs::hard_link(to, &link)?;
                Some(Replaced::Link(link))
            }
            Err(_nothing) => None,
        };
        self.inner.rename(from, to)?;
        let known = state.unsynced.paths.values_mut().find(|path| *path == from);
        if let Some(path) = known {
            to.clone_into(path);
        }
        state.unsynced.renames.push(Rename { from: from.to_owned(), to: to.to_owned(), replaced });
        drop(state);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(Operation::SyncDir)?;
        self.inner.sync_dir(path)?;
        let mut state = self.state();
        let (durable, open): (Vec<_>, Vec<_>) = std::mem::take(&mut state.unsynced.renames)
            .into_iter()
            .partition(|rename| rename.to.parent() == Some(path));
        state.unsynced.renames = open;
        drop(state);
        for rename in durable {
            if let Some(Replaced::Link(link)) = rename.replaced {
                fs::remove_file(link)?;
            }
        }
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.check(Operation::Unlink)?;
        let held = self.released.wait_while(self.state(), |state| state.unlinks_held);
        drop(held.unwrap_or_else(PoisonError::into_inner));
        self.inner.unlink(path)?;
        // A removal is durable at once here, so how the name came to be is of no matter any more.
        self.state().unsynced.renames.retain(|rename| rename.to != path);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.check(Operation::List)?;
        self.inner.list(path)
    }

    fn entries(&self, path: &Path) -> io::Result<Entries> {
        self.check(Operation::List)?;
        self.inner.entries(path)
    }

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<File> {
        self.check(Operation::OpenBeneath)?;
        self.inner.open_beneath(root, path)
    }

    fn entries_beneath(&self, root: &Path, path: &Path) -> io::Result<Entries> {
        self.check(Operation::ListBeneath)?;
        self.inner.entries_beneath(root, path)
    }

    fn link(&self, root: &Path, path: &Path, to: &Path) -> io::Result<()> {
        self.check(Operation::Link)?;
        self.inner.link(root, path, to)
    }

    fn volume(&self, path: &Path) -> io::Result<Volume> {
        self.check(Operation::Volume)?;
        let (volume, filling) = {
            let state = self.state();
            (state.volume, state.filling)
        };
        match (volume, filling) {
            (Some(volume), _) => Ok(volume),
            (None, Some((total, others))) => {
                let free = total.saturating_sub(others).saturating_sub(allocated(path)?);
                Ok(Volume { total, free })
            }
            (None, None) => self.inner.volume(path),
        }
    }

    fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        self.check(Operation::FileSystem)?;
        match self.state().file_system {
            Some(file_system) => Ok(file_system),
            None => self.inner.file_system(path),
        }
    }
}

impl Blobs {
    /// Gives `bytes` the name of `digest` without making either durable, for stores that are made for a bench.
    pub fn place(&self, digest: &Digest, bytes: &[u8]) -> io::Result<FileStat> {
        let partial = self.create_scratch(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        self.write_at(&partial, 0, bytes)?;
        let stat = self.disk.stat(&partial.file)?;
        self.disk.rename(&partial.path, &self.blob_path(digest))?;
        Ok(stat)
    }
}
