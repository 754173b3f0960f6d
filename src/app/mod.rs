//! Reads the configuration, builds all rooms, runs and drains them; the logging and the metric registry.

mod check;
mod config;
pub mod images;
mod metrics;
mod process;
mod rooms;
mod run;
mod store;
mod telemetry;
mod upstreams;
mod wellknown;

pub use config::{
    Config, ConfigErrors, LogFormat, LogSettings, Mistake, Overrides, Parent, Place, Secret,
    Sources, UpstreamConfig, size,
};
pub use process::raise_file_limit;
pub use run::{App, Running, StartError, Stopped};
pub use store::{AccessError, Opening, StoppedStore, StoreAccess};
pub use telemetry::{Log, Telemetry, TelemetryError};

pub use crate::registry::desk::{
    Deletion, EndpointInfo, Explanation, HistoryEntry, Hold, Inspection, Listed, Locked, Part,
    PlatformInfo, Refreshed, RuleInfo, TagInfo, UpstreamUsage, UsageInfo,
};
pub use crate::upkeep::{Event, Fate, Finding, JobKind, Report};
pub use crate::upstream::may_hold_password;
