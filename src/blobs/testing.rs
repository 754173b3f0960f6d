//! A disk for tests: any operation can be made to fail, and the power can be cut.
//!
//! Not part of the program's surface; public so that tests of the whole can reach it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, FileStat, Volume};
use super::file_system::FileSystem;

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
    Volume,
    FileSystem,
}

/// What a failing operation reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// ENOSPC
    NoSpace,
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
    fn error(self) -> io::Error {
        use rustix::io::Errno;
        let errno = match self {
            Self::NoSpace => Errno::NOSPC,
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
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    /// Operations since the plan was made, of the planned kind if it has one.
    counted: u64,
    injected: u64,
    volume: Option<Volume>,
    file_system: Option<FileSystem>,
    elsewhere: Option<u64>,
    unsynced: Unsynced,
}

/// What a loss of power would take away.
#[derive(Debug, Default)]
struct Unsynced {
    /// Files by inode whose bytes are not durable.
    dirty: HashSet<u64>,
    /// Files whose sync failed: nothing makes their bytes durable any more.
    lost: HashSet<u64>,
    /// Names by inode, as they are now.
    paths: HashMap<u64, PathBuf>,
    /// Renames whose directory is not synced, in order, with a link to what the target was before.
    renames: Vec<Rename>,
    links: u64,
}

#[derive(Debug)]
struct Rename {
    from: PathBuf,
    to: PathBuf,
    replaced: Option<PathBuf>,
}

impl FaultyDisk {
    pub fn new(inner: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { inner, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Reports this volume instead of the real one.
    pub fn set_volume(&self, volume: Option<Volume>) {
        self.state().volume = volume;
    }

    /// Reports this type instead of the real one.
    pub fn set_file_system(&self, file_system: FileSystem) {
        self.state().file_system = Some(file_system);
    }

    /// Reports the file or directory with this inode as being on another file system.
    pub fn set_elsewhere(&self, inode: u64) {
        self.state().elsewhere = Some(inode);
    }

    /// Leaves the files as a loss of power may leave them: content that was not synced is gone, renames whose directory was not
    /// synced did not happen. For use when nothing works on the disk any more.
    pub fn cut_power(&self) -> io::Result<()> {
        let mut state = self.state();
        let unsynced = std::mem::take(&mut state.unsynced);
        for inode in unsynced.dirty.iter().chain(&unsynced.lost) {
            if let Some(path) = unsynced.paths.get(inode)
                && let Ok(file) = OpenOptions::new().write(true).open(path)
            {
                file.set_len(0)?;
            }
        }
        for rename in unsynced.renames.into_iter().rev() {
            fs::rename(&rename.to, &rename.from)?;
            if let Some(replaced) = rename.replaced {
                fs::rename(replaced, &rename.to)?;
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
        state.unsynced.lost.remove(&inode);
        state.unsynced.paths.insert(inode, path.to_owned());
        drop(state);
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Open)?;
        self.inner.open(path)
    }

    fn lock(&self, path: &Path) -> io::Result<File> {
        self.check(Operation::Lock)?;
        self.inner.lock(path)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inode = self.inode(file)?;
        self.state().unsynced.dirty.insert(inode);
        if let Err(error) = self.check(Operation::Write) {
            self.inner.write_at(file, offset, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.inner.write_at(file, offset, bytes)
    }

    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(Operation::Read)?;
        self.inner.read_at(file, offset, buffer)
    }

    fn allocate(&self, file: &File, size: u64) -> io::Result<bool> {
        self.check(Operation::Allocate)?;
        self.inner.allocate(file, size)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let inode = self.inode(file)?;
        if let Err(error) = self.check(Operation::SyncData) {
            self.state().unsynced.lost.insert(inode);
            return Err(error);
        }
        self.inner.sync_data(file)?;
        self.state().unsynced.dirty.remove(&inode);
        Ok(())
    }

    fn stat(&self, file: &File) -> io::Result<FileStat> {
        self.check(Operation::Stat)?;
        let mut stat = self.inner.stat(file)?;
        if self.state().elsewhere == Some(stat.inode) {
            stat.device = !stat.device;
        }
        Ok(stat)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(Operation::Rename)?;
        let mut state = self.state();
        let replaced = if to.exists() {
            state.unsynced.links += 1;
            let name = format!(".replaced-{}", state.unsynced.links);
            let link = to.with_file_name(name);
            fs::hard_link(to, &link)?;
            Some(link)
        } else {
            None
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
        for link in durable.into_iter().filter_map(|rename| rename.replaced) {
            fs::remove_file(link)?;
        }
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.check(Operation::Unlink)?;
        self.inner.unlink(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.check(Operation::List)?;
        self.inner.list(path)
    }

    fn volume(&self, path: &Path) -> io::Result<Volume> {
        self.check(Operation::Volume)?;
        match self.state().volume {
            Some(volume) => Ok(volume),
            None => self.inner.volume(path),
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
