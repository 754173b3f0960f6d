//! The log: what is written, how it looks, and a writer that nobody waits for.

mod lines;
#[cfg(test)]
mod lines_tests;
mod log;
mod stamp;
mod writer;

pub use log::{Log, Telemetry, TelemetryError};
