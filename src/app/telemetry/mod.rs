//! The log: what is written, how it looks, and a writer that nobody waits for.

mod log;
mod writer;

pub use log::{Telemetry, TelemetryError};
