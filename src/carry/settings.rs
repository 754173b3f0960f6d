//! What the configuration says about images that are followed, and the limits of this room.

use std::time::Duration;

use crate::oci::PlatformPattern;

/// Images that one order may name.
pub(super) const IMAGES_MAX: usize = 100_000;
/// Objects of one bundle; more is written out in several.
pub(super) const BUNDLE_OBJECTS_MAX: usize = 200_000;
/// Descriptors below one image; more is no image that anybody runs.
pub(super) const TREE_MAX: u32 = 100_000;

/// How often a list is warmed unless it says so itself.
pub const SCHEDULE_EVERY_DEFAULT: Duration = Duration::from_secs(6 * 3600);
/// No list is warmed more often: what is to be fresher is a matter of `fresh_for`.
pub const SCHEDULE_EVERY_MIN: Duration = Duration::from_secs(60);

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Lists of images that are warmed by themselves.
    pub schedules: Vec<Schedule>,
}

/// Images that are fetched again and again, so that their tags are never far behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// As clients name them.
    pub images: Vec<String>,
    pub every: Duration,
    /// Empty: the platform of this machine.
    pub platforms: Vec<PlatformPattern>,
    pub referrers: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        let (images, platforms) = (Vec::new(), Vec::new());
        Self { images, every: SCHEDULE_EVERY_DEFAULT, platforms, referrers: false }
    }
}
