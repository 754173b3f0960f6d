//! Where bytes and rows meet.
//!
//! What must hold:
//! - A row "present" implies the file: rows are set only after the file is durable under its final name, and both happen under the
//!   digest's lock. A file without a row is possible after a crash and harmless: nobody is served from it, and the next download
//!   of the digest renames over it. It is adopted only by whoever asks for that, because it means reading it whole.
//! - A client is given bytes of a repository only with a proof that the upstream showed them there.
//! - Damage heals: a file whose length, time or inode is not the recorded one is read and compared before anybody gets it; one that
//!   is missing or has another digest makes the row "absent" and goes to quarantine, and the caller sees "not present".
//! - A file that cannot be opened or read just now (no descriptors, no permission, a failing disk) is "not present" for this request,
//!   and the download that takes its place replaces it. It is condemned only after its bytes were read and differ: a device that
//!   comes back has lost nothing.
//! - A download that breaks off may leave its bytes to the next one of its digest; they were written by us, but nobody has verified
//!   them. They give way when room is short.
//! - Dropping a future at any await loses no committed file and leaves no lock held: what takes several steps runs in a task of
//!   its own.
//!
//! - Who takes content in on purpose waits while others make room, for an event and never for luck; a pull never waits.
//! - Content leaves in the order state, bytes, row, under the digest's lock, and what spoke for it is looked at again in the transaction
//!   that takes the state away. A crash in between leaves a file without a row, which is taken in again unless somebody wanted it gone.
//!
//! This room deliberately knows nothing of upstreams, freshness or HTTP, never hashes a download (who writes a stage has hashed it),
//! and decides nothing about what has to go: that belongs to upkeep and to operators.

mod arrival;
#[cfg(test)]
mod crash_tests;
mod error;
#[cfg(test)]
mod fault_tests;
mod foreign;
#[cfg(test)]
mod foreign_tests;
mod keep;
#[cfg(test)]
mod keep_tests;
mod leave;
#[cfg(test)]
mod leave_tests;
mod lock;
mod metrics;
mod open;
mod orphans;
mod patience;
#[cfg(test)]
mod patience_tests;
#[doc(hidden)]
pub mod populate;
mod scrub;
#[cfg(test)]
mod scrub_tests;
mod small;
mod space;
mod stage;
mod store;
#[cfg(test)]
mod tests;
mod unfinished;
#[cfg(test)]
mod unfinished_tests;
mod unreadable;

pub use crate::blobs::{Folder, INTERVALS_RECORDED_MAX};
pub use crate::metadata::StoredObject;
pub use arrival::{Arrival, Held};
pub use error::{Error, OpenError};
pub use foreign::{Flaw, TakenIn};
pub use keep::{
    HOLDERS_MAX, Hold, KeepPolicy, KeepRule, KeepVerdict, UpstreamKeep, rules_on_link, verdict,
};
pub use leave::{Evidence, Left, Refused, Room};
pub use metrics::{Metrics, Mismatch};
pub use open::BlobLookup;
pub use orphans::{AdoptReport, Adopted, Haste};
pub use patience::{Evicting, Look, ROOM_PATIENCE, Shortage, Why};
pub use scrub::Verdict;
pub use small::StoredManifest;
pub use space::{MIN_FREE_BYTES_MAX, MIN_FREE_PERCENT, MinFree};
pub use stage::Stage;
pub use store::{Content, MANIFEST_CACHE_BYTES_DEFAULT, Settings};
pub use unfinished::{UNFINISHED_KEPT, Unfinished};
