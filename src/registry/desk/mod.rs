//! What the operator asks and orders: lists, timelines, explanations, rules, deletions.
//!
//! What must hold: names mean what they mean on the data plane; an answer is of one moment as far as the rows are; a refusal has a stable
//! word, says what to type, and changed nothing. The desk asks nothing of an upstream but where a refresh was ordered, and shows nobody a
//! credential.

mod deletion;
mod error;
mod explain;
mod image;
mod inspect;
mod lists;
mod model;
mod offline;
mod rules;
mod service;
mod settings;

pub(super) use deletion::{delete, holds};
pub use error::{Error, Reason};
pub use image::{IMAGE_BYTES_MAX, Image};
pub use model::{
    Deletion, EndpointInfo, Explanation, HistoryEntry, Hold, Inspection, Listed, Locked, Part,
    PlatformInfo, Refreshed, RuleInfo, TagInfo, UpstreamUsage, UsageInfo,
};
pub use rules::{Until, Which};
pub use service::{Desk, Extent};
pub use settings::{LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX, LOCKED_MAX, Settings};
