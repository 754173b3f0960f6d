//! The disk of the machine, through std and rustix.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;

use super::disk::{Disk, Entries, FileStat, Volume};
use super::file_system::FileSystem;

/// Directories of ours are for the owner alone: whoever reads the files needs nobody's permission for a private image.
const DIRECTORY_MODE: u32 = 0o700;
/// The same for files, whatever the directory that was there before us lets through.
const FILE_MODE: u32 = 0o600;

/// The unit of `st_blocks`, whatever the file system's own blocks are (inode(7)).
const STAT_BLOCK_BYTES: u64 = 512;

/// The machine's own file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        open_file(OpenOptions::new().read(true), path)
    }

    fn open_writable(&self, path: &Path) -> io::Result<File> {
        open_file(OpenOptions::new().read(true).write(true), path)
    }

    fn lock(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    fn allocate(&self, file: &File, size: u64) -> io::Result<bool> {
        if size == 0 {
            return Ok(true);
        }
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn stat(&self, file: &File) -> io::Result<FileStat> {
        file.metadata().map(|metadata| file_stat(&metadata))
    }

    fn stat_path(&self, path: &Path) -> io::Result<FileStat> {
        fs::metadata(path).map(|metadata| file_stat(&metadata))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn entries(&self, path: &Path) -> io::Result<Entries> {
        Ok(Box::new(fs::read_dir(path)?.map(|entry| Ok(entry?.file_name()))))
    }

    fn volume(&self, path: &Path) -> io::Result<Volume> {
        let found = rustix::fs::statvfs(path)?;
        Ok(Volume {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: usable(
                found.f_bavail.saturating_mul(found.f_frsize),
                found.f_files,
                found.f_favail,
            ),
        })
    }

    fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        let magic = rustix::fs::statfs(path)?.f_type & 0xFFFF_FFFF;
        let magic = u32::try_from(magic).map_err(io::Error::other)?;
        Ok(FileSystem::from_magic(magic))
    }
}

/// Opens what has to be a file of ours. A symlink is not followed, and a pipe is not waited for.
fn open_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("both are small constants");
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "it is no regular file");
    match options.custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_strange) => Err(strange()),
        Err(error) => {
            let is_strange = fs::symlink_metadata(path).is_ok_and(|found| !found.is_file());
            Err(if is_strange { strange() } else { error })
        }
    }
}

fn file_stat(metadata: &fs::Metadata) -> FileStat {
    FileStat {
        size: metadata.len(),
        allocated: metadata.blocks().saturating_mul(STAT_BLOCK_BYTES),
        modified_nanos: nanos(metadata.mtime(), metadata.mtime_nsec()),
        changed_nanos: nanos(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
        device: metadata.dev(),
    }
}

fn nanos(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// Lets the kernel forget what was read of a file before `offset`; a hint, so a refusal is of no matter.
pub(super) fn let_go(file: &File, offset: u64) {
    let _hint = rustix::fs::fadvise(file, 0, std::num::NonZeroU64::new(offset), Advice::DontNeed);
}

/// Tells the kernel that the file will be read from its beginning to its end; a hint.
pub(super) fn read_in_order(file: &File) {
    let _hint = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
}

/// Free bytes that a new file can have. File systems that make inodes as they need them report no inodes at all.
fn usable(free: u64, inodes: u64, inodes_free: u64) -> u64 {
    if inodes > 0 && inodes_free == 0 { 0 } else { free }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_inodes_has_no_room() {
        assert_eq!(usable(4096, 100, 0), 0);
        assert_eq!(usable(4096, 100, 1), 4096);
        assert_eq!(usable(4096, 0, 0), 4096);
    }

    #[test]
    fn the_volume_under_a_directory_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let volume = RealDisk.volume(directory.path()).unwrap();
        assert!(volume.total > 0 && volume.free <= volume.total);
    }
}
