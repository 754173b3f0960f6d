//! Paced background workers over the store: scrub, sweeps, the adoption of files without rows, eviction,
//! collection, and the same work on demand.
//!
//! What must hold:
//! - No request ever waits for this room, and it never calls one: both meet only in rows, states and locks of `content`.
//! - Nothing is read at the start; a store that is empty or freshly verified costs one look at an index now and then.
//! - The worker and every job end promptly when told to, between two pieces of a file; what they had begun is then done again later.
//! - Nothing that is kept (`content::verdict`) is evicted, and nothing that something holds is collected.
//! - One job (verify, reindex, gc, purge) at a time. A job belongs to whoever asked for it and ends when he goes.
//!
//! This room deliberately knows no upstream and no HTTP, opens no file itself, and decides nothing about what is worth keeping:
//! what it condemns is what does not have the bytes of its name, and what it takes away is what `content` and the rows let go.

mod collect;
mod events;
mod evict;
#[cfg(test)]
mod evict_tests;
mod gc;
mod job;
mod limits;
mod metrics;
mod pace;
mod service;
mod settings;
mod shortage;
#[cfg(test)]
mod tests;
mod trust;
mod work;
mod worker;

pub use events::{Event, Fate, Finding, JobKind, Report};
pub use job::{Busy, Job};
pub use service::{Parts, Upkeep};
pub use settings::{
    DELETE_GRACE_DEFAULT, MAX_SIZE_MIN, SCRUB_PERIOD_DEFAULT, SCRUB_PERIOD_MIN, SCRUB_RATE_MAX,
    SCRUB_RATE_MIN, Settings, UpstreamLimits, YOUNG_FOR_DEFAULT,
};
