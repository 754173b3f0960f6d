//! What an operator may say about upkeep, and every limit that it keeps.

use std::time::Duration;

/// Everything that is stored is read again within this time: often enough to find decay while upstream still has the content, and
/// rare enough to cost next to nothing (1 TiB in 30 days is 0.8 MiB/s at twice the pace).
pub const SCRUB_PERIOD_DEFAULT: Duration = Duration::from_secs(30 * 24 * 3600);
/// The shortest period: what wants to read everything sooner is a verify, not a scrub.
pub const SCRUB_PERIOD_MIN: Duration = Duration::from_secs(3600);
/// The scrub never reads faster, in bytes per second, however late it is: half of what a plain hard disk gives.
pub const SCRUB_RATE_MAX: u64 = 64 * 1024 * 1024;
/// Nor slower, so that a small store is read in one go.
pub const SCRUB_RATE_MIN: u64 = 1024 * 1024;
/// What the scrub counts for a file beside its bytes: it is opened, and its row is written. Keeps a store of a million small files from
/// being read as fast as the machine can.
pub(super) const SCRUB_FILE_BYTES: usize = 16 * 1024;

/// The first look of the worker comes this long after the start, when the first clients have been served.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(30);
/// The worker looks at least this often at what is due, whatever it expects: a machine that slept has another time when it wakes.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(600);
/// After work that failed (the disk, the rows) the worker waits this long.
pub(super) const AFTER_FAILURE: Duration = Duration::from_secs(600);
/// Unfinished downloads are swept this often.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// Files without a row are looked for this often, and at the first look: a crash leaves some, and so does an adoption cut short.
pub(super) const ADOPT_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Objects that are taken from the rows at a time.
pub(super) const PAGE: u32 = 256;

/// Whoever asks for a job while another one runs waits this long: the other one may be ending.
pub(super) const BUSY_PATIENCE: Duration = Duration::from_secs(2);
/// Events of a job that wait for its reader.
pub(super) const EVENTS_MAX: usize = 64;
/// A reader that takes no event for this long is gone.
pub(super) const READER_PATIENCE: Duration = Duration::from_secs(60);
/// A running job tells its progress this often.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What the operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Everything that is stored is read again within this time; `None` is never.
    pub scrub_period: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { scrub_period: Some(SCRUB_PERIOD_DEFAULT) }
    }
}
