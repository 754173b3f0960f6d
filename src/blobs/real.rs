//! The disk of the machine, through std and rustix.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Advice, CWD, FallocateFlags, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::beneath;
use super::disk::{Disk, Entries, FileStat, Volume};
use super::file_system::FileSystem;

/// Directories of ours are for the owner alone: whoever reads the files needs nobody's permission for a private image.
const DIRECTORY_MODE: u32 = 0o700;
/// The same for files, whatever the directory that was there before us lets through.
const FILE_MODE: u32 = 0o600;

/// The unit of `st_blocks`, whatever the file system's own blocks are (inode(7)).
const STAT_BLOCK_BYTES: u64 = 512;

/// The most that one vectored write takes (IOV_MAX of Linux, writev(2)).
const SLICES_MAX: usize = 1024;

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

    fn open_cached(&self, path: &Path) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        // A name that is not in memory, a kernel before 5.12, a guard that does not know the call, or what `open` says better.
        let Ok(opened) = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) else {
            return Ok(None);
        };
        let file = File::from(opened);
        Ok(file.metadata()?.is_file().then_some(file))
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

    fn write_parts_at(&self, file: &File, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        write_parts(parts, |slices, done| Ok(rustix::io::pwritev(file, slices, offset + done)?))
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

    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<File> {
        beneath::open_file(root, path)
    }

    fn entries_beneath(&self, root: &Path, path: &Path) -> io::Result<Entries> {
        beneath::entries(root, path)
    }

    fn link(&self, root: &Path, path: &Path, to: &Path) -> io::Result<()> {
        beneath::link(root, path, to)
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

/// Writes all of `parts` with as few calls as it takes: `write` is given what is left and how much was written, and may write less
/// than that.
fn write_parts(
    parts: &[&[u8]],
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    for parts in parts.chunks(SLICES_MAX) {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = slices.as_mut_slice();
        // Empty parts go; a call for nothing would look like a disk that takes nothing.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match write(left, done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    done += u64::try_from(written).map_err(io::Error::other)?;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
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
    fn parts_are_written_whole_however_little_goes_at_a_time() {
        let whole: Vec<u8> = (0..=255).cycle().take(3 * SLICES_MAX + 100).collect();
        let mut parts: Vec<&[u8]> = whole[..2 * SLICES_MAX].chunks(1).collect();
        parts.extend([&[][..], &whole[2 * SLICES_MAX..], &[]]);
        for most in [1, 7, 4096] {
            let (mut file, mut calls) = (Vec::new(), 0);
            write_parts(&parts, |slices, done| {
                assert!(!slices.is_empty() && slices.len() <= SLICES_MAX);
                assert_eq!(done, u64::try_from(file.len()).unwrap());
                calls += 1;
                if calls % 3 == 0 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let before = file.len();
                file.extend(slices.iter().flat_map(|slice| slice.iter().copied()).take(most));
                Ok(file.len() - before)
            })
            .unwrap();
            assert_eq!(file, whole, "{most} bytes at a time");
        }
    }

    #[test]
    fn a_disk_that_stops_in_the_middle_of_parts_is_an_error() {
        for (answer, kind) in
            [(Ok(0), io::ErrorKind::WriteZero), (Err(Errno::NOSPC), io::ErrorKind::StorageFull)]
        {
            let mut answers = [Ok(3), answer].into_iter();
            let error = write_parts(&[b"ab", b"cd", b"ef"], |slices, done| {
                assert_eq!(done, if slices.len() == 3 { 0 } else { 3 });
                Ok(answers.next().unwrap()?)
            })
            .unwrap_err();
            assert_eq!(error.kind(), kind);
        }
        write_parts(&[], |_, _| unreachable!("there is nothing to write")).unwrap();
        write_parts(&[b""], |_, _| unreachable!("there is nothing to write")).unwrap();
    }

    #[test]
    fn parts_land_in_the_file_where_they_belong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let file = RealDisk.create(&path).unwrap();
        RealDisk.write_at(&file, 0, b"0123456789").unwrap();
        RealDisk.write_parts_at(&file, 2, &[b"ab", b"", b"c"]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"01abc56789");
    }

    #[test]
    fn what_is_in_memory_is_opened_at_once_and_only_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), b"content").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        let file = RealDisk.open_cached(&path("file")).unwrap().expect("it was just written");
        assert_eq!(RealDisk.stat(&file).unwrap().size, 7);
        drop(std::os::unix::net::UnixListener::bind(path("socket")).unwrap());
        for other in ["link", "socket", "missing", "."] {
            assert!(RealDisk.open_cached(&path(other)).unwrap().is_none(), "{other}");
        }
    }

    #[test]
    fn the_volume_under_a_directory_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let volume = RealDisk.volume(directory.path()).unwrap();
        assert!(volume.total > 0 && volume.free <= volume.total);
    }
}
