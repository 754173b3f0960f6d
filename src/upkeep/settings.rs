//! What an operator may say about upkeep, and every limit that it keeps.

use std::sync::Arc;
use std::time::Duration;

use crate::content::KeepPolicy;
use crate::oci::RegistryName;

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
/// A running job tells its progress this often.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What was used less long ago than this is never evicted: a pull takes its time, and its first layers must not go for its last.
pub const YOUNG_FOR_DEFAULT: Duration = Duration::from_secs(3600);
/// What was deleted can be pulled by digest for so long, and a running pull of it comes to its end.
pub const DELETE_GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The smallest limit of stored bytes: below it no image would fit.
pub const MAX_SIZE_MIN: u64 = 1024 * 1024;
/// Eviction goes on until so much of a limit is used, so that it does not begin again with the next download.
pub(super) const LOW_PERCENT: u64 = 95;
/// What was closed because a limit could not be met is open again below so much of it.
pub(super) const OPEN_PERCENT: u64 = 98;
/// The eviction looks at the limits this often, besides whenever room is short.
pub(super) const EVICT_EVERY: Duration = Duration::from_secs(60);
/// Between two rounds of eviction lies at least this much, so that what cannot be helped is not tried all the time.
pub(super) const EVICT_PAUSE: Duration = Duration::from_secs(1);
/// Objects that one step of eviction or collection looks at.
pub(super) const STEP_OBJECTS: u32 = 64;
/// Work of a step after which there is a rest.
pub(super) const STEP_WORK: Duration = Duration::from_millis(20);
/// The rest between two steps.
pub(super) const STEP_REST: Duration = Duration::from_millis(10);
/// A round goes on after failures until there are so many: then the disk is in trouble, and not a file.
pub(super) const FAILURES_MAX: usize = 64;
/// Objects that leave at the same time: their rows are written in one go.
pub(super) const STEP_PARALLEL: usize = 16;
/// Objects that are looked at to tell somebody who waits for room why there is none, those unused for longest.
pub(super) const WHY_OBJECTS: u32 = 256;
/// What was deleted is looked at this often.
pub(super) const COLLECT_EVERY: Duration = Duration::from_secs(3600);
/// A clock that went on for so long without being set is believed: what is dated later than now was then written by a wrong one.
/// A machine that starts without the time has it long before.
pub(super) const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A clock that went further between two looks was set forward, or the machine slept or was off: neither says that it is right now. Far
/// longer than the slowest round and a restart take.
pub(super) const CLOCK_STEP_MAX: Duration = Duration::from_secs(12 * 3600);
/// What was seen of the clock is written this often: what is dated in between may count as a little older than it is.
pub(super) const CLOCK_NOTED_EVERY: Duration = Duration::from_secs(3600);
/// What is dated ahead by no more than this is left alone: clocks are adjusted all the time.
pub(super) const CLOCK_LEEWAY: Duration = Duration::from_secs(60);
/// Rows of content that is not here and that nothing needs are forgotten after so long.
pub(super) const UNNEEDED_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Everything that is stored is read again within this time; `None` is never.
    pub scrub_period: Option<Duration>,
    /// All that is stored has at most so many bytes.
    pub max_size: Option<u64>,
    /// What was not used for so long goes.
    pub max_unused: Option<Duration>,
    /// What was used less long ago is not evicted.
    pub young_for: Duration,
    /// What was deleted stays for so long.
    pub delete_grace: Duration,
    /// Limits of single upstreams.
    pub upstreams: Vec<UpstreamLimits>,
    /// What is kept whatever the limits.
    pub keep: Arc<KeepPolicy>,
}

/// What one upstream, or each member of a family, may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// An upstream in [`KeepPolicy::upstreams`].
    pub name: RegistryName,
    /// What came through it has at most so many bytes.
    pub max_size: Option<u64>,
    /// What came through it and was not used for so long goes, if that is sooner than [`Settings::max_unused`].
    pub max_unused: Option<Duration>,
}

impl Settings {
    /// The limits of an upstream, by its name or by a family that it belongs to.
    pub(super) fn limits(&self, name: &RegistryName) -> Option<&UpstreamLimits> {
        let exact = self.upstreams.iter().find(|limits| limits.name == *name);
        exact.or_else(|| {
            let family = self.keep.upstream(name)?;
            self.upstreams.iter().find(|limits| limits.name == family.name)
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scrub_period: Some(SCRUB_PERIOD_DEFAULT),
            max_size: None,
            max_unused: None,
            young_for: YOUNG_FOR_DEFAULT,
            delete_grace: DELETE_GRACE_DEFAULT,
            upstreams: Vec::new(),
            keep: Arc::default(),
        }
    }
}
