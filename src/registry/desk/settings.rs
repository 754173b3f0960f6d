//! What the desk is told of the configuration, and its limits.

use std::time::Duration;

use crate::content::KeepPolicy;
use crate::oci::RegistryName;

/// Entries of a page if nobody says how many, and at the most.
pub const LIST_LIMIT_DEFAULT: u32 = 100;
pub const LIST_LIMIT_MAX: u32 = 1000;
/// Images that are locked by one request.
pub const LOCKED_MAX: usize = 64;
/// Objects of an image that an inspection looks at; an index of twenty platforms has some hundreds.
pub(super) const TREE_MAX: u32 = 4096;

/// What the desk needs to know of what others do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What the configuration says about keeping.
    pub policy: KeepPolicy,
    /// How long what was deleted can still be pulled by digest.
    pub delete_grace: Duration,
    /// What may be stored: of everything, and of what came from single upstreams.
    pub max_bytes: Option<u64>,
    pub max_bytes_by_upstream: Vec<(RegistryName, u64)>,
    /// No server runs: nobody asks upstream.
    pub at_rest: bool,
}
