//! Where bytes and rows meet.
//!
//! What must hold:
//! - A row "present" implies the file: rows are set only after the file is durable under its final name, and both happen under the
//!   digest's lock. A file without a row is possible after a crash and harmless: nobody is served from it, and the next download
//!   of the digest renames over it. It is not adopted, because that would mean reading it whole while a client waits.
//! - A client is given bytes of a repository only with a proof that the upstream showed them there.
//! - Damage heals: a file that is missing, has another length, or (manifests) another digest than its row says makes the row
//!   "absent" and goes to quarantine, and the caller sees "not present".
//! - Dropping a future at any await loses no committed file and leaves no lock held: what takes several steps runs in a task of
//!   its own.
//!
//! This room deliberately knows nothing of upstreams, freshness or HTTP, never hashes a download (who writes a stage has hashed it),
//! and removes nothing that is whole: eviction belongs to upkeep.

#[cfg(test)]
mod crash_tests;
mod error;
#[cfg(test)]
mod fault_tests;
mod lock;
mod metrics;
mod small;
mod space;
mod stage;
mod store;
#[cfg(test)]
mod tests;

pub use error::{Error, OpenError};
pub use metrics::{Metrics, Mismatch};
pub use small::StoredManifest;
pub use space::{MIN_FREE_BYTES_MAX, MIN_FREE_PERCENT, MinFree};
pub use stage::Stage;
pub use store::{BlobLookup, Content, MANIFEST_CACHE_BYTES_DEFAULT, Settings};
