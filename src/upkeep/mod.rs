//! Paced background workers over the store: scrub, sweeps, the adoption of files without rows, and the same work on demand.
//!
//! What must hold:
//! - No request ever waits for this room, and it never calls one: both meet only in rows, states and locks of `content`.
//! - Nothing is read at the start; a store that is empty or freshly verified costs one look at an index now and then.
//! - The worker and every job end promptly when told to, between two pieces of a file; what they had begun is then done again later.
//! - One job (verify, reindex) at a time. A job belongs to whoever asked for it and ends when he goes.
//!
//! This room deliberately knows no upstream and no HTTP, opens no file itself, and decides nothing about what is worth keeping:
//! what it condemns is what does not have the bytes of its name.

mod events;
mod job;
mod metrics;
mod pace;
mod service;
mod settings;
#[cfg(test)]
mod tests;
mod work;
mod worker;

pub use events::{Event, Finding, JobKind, Report};
pub use job::{Busy, Job};
pub use service::{Parts, Upkeep};
pub use settings::{
    SCRUB_PERIOD_DEFAULT, SCRUB_PERIOD_MIN, SCRUB_RATE_MAX, SCRUB_RATE_MIN, Settings,
};
