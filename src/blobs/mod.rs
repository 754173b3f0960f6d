//! Bytes by digest on a disk.
//!
//! What must hold: a name under `blobs/` implies verified, durable content. It gets there by one way only: written under `partial/`,
//! hashed by the caller, `fdatasync`, rename, directory sync (a hard link to a file of somebody else's folder comes the same way, only that
//! nobody writes it). Everything that touches content files goes through [`Disk`], the seam
//! at which tests let any operation fail.
//!
//! The tree, flat as in an OCI image layout:
//!
//! ```text
//! LOCK                     flock of the process that owns the directory, with its pid
//! roadstead.db (+ -wal, -shm, .v<N>.bak)   owned by `metadata`, not touched here
//! blobs/<algorithm>/<hex>  verified content, manifests too
//! partial/d-<algorithm>-<hex>              a download of that digest, running or broken off
//! partial/d-<algorithm>-<hex>.map          the record of it: which bytes are here
//! partial/w-<number>       a small write, or a member of a bundle, on its way
//! quarantine/<algorithm>-<hex>             what stood under that name and was damaged; the newest of them
//! ```
//!
//! This room deliberately knows nothing of repositories, rows, locks per digest or async: callers serialise per digest and call it
//! on a thread that may block.

mod beneath;
#[cfg(test)]
mod corpus_tests;
mod damage;
mod disk;
mod error;
mod file_system;
mod folder;
mod real;
mod record;
mod store;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod unfinished;
#[cfg(test)]
mod unfinished_tests;

pub use damage::{Names, QUARANTINE_KEPT, QUARANTINE_KEPT_BYTES};
pub use disk::{Disk, Entries, FileStat, Volume};
pub use error::OpenError;
pub(crate) use error::{is_circumstance, is_no_file, is_no_space, is_out_of_descriptors};
pub use file_system::FileSystem;
pub use folder::{Copied, Folder, FolderFile};
pub use real::RealDisk;
pub use record::INTERVALS_RECORDED_MAX;
pub use store::{Blobs, DirectoryLock, Opened, Partial};
pub use unfinished::{Adopted, Leftover};
