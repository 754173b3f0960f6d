//! Images as wholes: is one complete, fetch it, keep it in a named set, write it out as a bundle, take bundles and foreign stores in.
//!
//! What must hold:
//! - What is taken in is verified before a row knows of it, and the rows of one bundle are one transaction: a bundle that is bad, or that
//!   was cut short, leaves nothing that anybody is served.
//! - What is written out is exactly what is here: the same content gives the same bytes.
//! - Nothing here is in the way of a request: what is fetched is fetched by `proxy` as for a client, with its limits and its manners.
//! - Work belongs to whoever asked for it and ends when he goes; what was fetched or taken in by then is not done again.
//!
//! This room deliberately knows no HTTP and no command line, dials nobody itself, and decides nothing about who may read what.

mod check;
mod closing;
mod error;
mod events;
mod export;
mod fetch;
mod filter;
mod import;
mod list;
mod manners;
mod metrics;
mod model;
mod place;
mod record;
mod recorder;
mod schedule;
mod service;
mod sets;
mod settings;
#[cfg(test)]
mod shelf;
mod takeover;
mod tree;
mod wanted;
mod warm;

pub use events::{Event, Fate, Report, Work};
pub use export::Bundle;
pub use import::{ImportOrder, Incoming};
pub use list::{ImageList, InvalidList};
pub use metrics::Metrics;
pub use model::{
    CheckedImage, CheckedPlatform, ExportOrder, ExportPlan, ExportedImage, MemberInfo, MissingPart,
    OfflineInfo, SetInfo, WantedInfo,
};
pub use record::RecordOrder;
pub use recorder::{RECORDINGS_MAX, Recorder, Served};
pub use service::{Carry, Job, Parts};
pub use settings::{SCHEDULE_EVERY_DEFAULT, SCHEDULE_EVERY_MIN, Schedule, Settings};
pub use takeover::TakeoverOrder;
pub use warm::WarmOrder;
