//! Pull-through: the proxy tag service, revision fill, and one flight per digest.

mod blobs;
mod body;
mod bypass;
mod claims;
mod error;
mod fetch;
mod fill;
mod flight;
mod frozen;
mod givers;
mod hot;
mod interval;
mod listing;
mod metrics;
mod outlook;
mod passer;
mod permission;
mod policy;
mod queue;
mod revisions;
mod ring;
mod service;
mod settings;
mod shared;
mod source;
mod tags;
mod writer;

pub use blobs::{Blob, Found};
pub use body::{Body, Frames};
pub use error::Error;
pub use hot::{HotAnswer, Ready};
pub use listing::{Listed, REFERRERS_WAIT, TAGS_MAX, TagsWanted, filter_referrers};
pub use metrics::Metrics;
pub use outlook::{Outlook, Prospect, Refreshing};
pub use revisions::{Manifest, Revision};
pub use service::Proxy;
pub use settings::{
    ABSENT_FOR, CREDENTIAL_GRACE, FRESH_FOR_ADDED, FRESH_FOR_PUBLIC, PROOF_FOR, Private,
    RECENTLY_CONFIRMED, RETRY_AFTER_FAILURE, TagPolicy, TagPolicyOverrides, TagRule,
    UpstreamPolicy, WAIT, WAIT_RECENT, WhenAbsent,
};
pub use shared::Parts;
pub use source::{Proxied, Source};
pub use tags::Tagged;
