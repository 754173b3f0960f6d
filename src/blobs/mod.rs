//! Bytes by digest on a disk.
//!
//! What must hold: a name under `blobs/` implies verified, durable content. It gets there by one way only: written under `partial/`,
//! hashed by the caller, `fdatasync`, rename, directory sync. Everything that touches content files goes through [`Disk`], the seam
//! at which tests let any operation fail.
//!
//! The tree, flat as in an OCI image layout:
//!
//! ```text
//! LOCK                     flock of the process that owns the directory, with its pid
//! roadstead.db (+ -wal, -shm, .v<N>.bak)   owned by `metadata`, not touched here
//! blobs/<algorithm>/<hex>  verified content, manifests too
//! partial/d-<algorithm>-<hex>              the running download of that digest
//! partial/w-<number>       a small write on its way
//! quarantine/<algorithm>-<hex>             what stood under that name and was damaged
//! ```
//!
//! This room deliberately knows nothing of repositories, rows, locks per digest or async: callers serialise per digest and call it
//! on a thread that may block.

mod disk;
mod error;
mod file_system;
mod real;
mod store;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use disk::{Disk, FileStat, Volume};
pub use error::OpenError;
pub use file_system::FileSystem;
pub use real::RealDisk;
pub(crate) use store::is_no_space;
pub use store::{Blobs, DirectoryLock, Opened, Partial};
