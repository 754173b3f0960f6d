//! The seam between the store and the operating system.
//!
//! Each method is one system call or close to it, so that a test can let the Nth of them fail. All but `open_cached` and `stat` block. Files are plain
//! [`File`]s because readers keep them (a [`crate::span::Span`] outlives the name of its file).

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use super::file_system::FileSystem;

/// Names in a directory, as they are read.
pub type Entries = Box<dyn Iterator<Item = io::Result<OsString>> + Send>;

/// What the store asks of a file system.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a directory and its missing parents, private to this user; one that exists is left as it is.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates a file that does not exist yet, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Opens a file for reading. What is no regular file (a symlink, a pipe, a directory) is `InvalidData`, at once.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Opens as [`Disk::open`] does if that takes no wait for the disk. `None` tells nothing of the file: ask there.
    fn open_cached(&self, path: &Path) -> io::Result<Option<File>>;

    /// Opens a file that exists for reading and writing; as particular as [`Disk::open`].
    fn open_writable(&self, path: &Path) -> io::Result<File>;

    /// Opens or creates a file and takes its exclusive lock without waiting; `WouldBlock` if another process holds it. The lock
    /// ends with the file, or with the process however that ends.
    fn lock(&self, path: &Path) -> io::Result<File>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes all of `parts` at `offset`, one behind the other, as one write: nothing is copied to put them together.
    fn write_parts_at(&self, file: &File, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Fills all of `buffer` from `offset`; a shorter file is `UnexpectedEof`.
    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Reserves room for `size` bytes without changing the file's length. `false` if the file system has no such operation.
    fn allocate(&self, file: &File, size: u64) -> io::Result<bool>;

    /// Makes the file's bytes and length durable. After a failure the bytes count as lost, whatever a second call says.
    fn sync_data(&self, file: &File) -> io::Result<()>;

    fn stat(&self, file: &File) -> io::Result<FileStat>;

    /// What has the name, without opening it.
    fn stat_path(&self, path: &Path) -> io::Result<FileStat>;
    /// Gives the file the name `to`, replacing what stood there; durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// The same, one by one: for directories of which nobody wants all names in memory.
    fn entries(&self, path: &Path) -> io::Result<Entries>;

    /// Opens a regular file of somebody else's tree for reading. No symbolic link below `root` is followed; one, and what is no regular
    /// file, is `InvalidData`, at once.
    fn open_beneath(&self, root: &Path, path: &Path) -> io::Result<File>;

    /// Names in a directory of such a tree.
    fn entries_beneath(&self, root: &Path, path: &Path) -> io::Result<Entries>;

    /// Gives a file of such a tree the name `to` as well, which must be free. What cannot be linked (another file system, more links than
    /// it counts, a file of somebody else) is an error.
    fn link(&self, root: &Path, path: &Path, to: &Path) -> io::Result<()>;

    /// The size of the file system under `path` and what is free on it.
    fn volume(&self, path: &Path) -> io::Result<Volume>;

    /// The type of the file system under `path`.
    fn file_system(&self, path: &Path) -> io::Result<FileSystem>;
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Length in bytes.
    pub size: u64,
    /// Bytes that it takes on the disk, reserved ones included; less than its length if it has holes.
    pub allocated: u64,
    /// Time of the last change of content, nanoseconds since the Unix epoch.
    pub modified_nanos: i64,
    /// Time of the last change of anything, also of the name, nanoseconds since the Unix epoch.
    pub changed_nanos: i64,
    pub inode: u64,
    /// The file system that it is on.
    pub device: u64,
}

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    pub total: u64,
    /// Free for a process without privileges; zero if no file can be created for want of inodes.
    pub free: u64,
}
