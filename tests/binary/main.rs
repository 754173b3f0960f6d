//! The real binary as an operator sees it: what it prints, how it refuses, how it stops, what kill -9 and a crowd of clients do to it.
//!
//! The upstream is the fake of the `registry` suite, in this process; roadstead is a process of its own. Tests wait for lines, exits
//! and bytes, never for time to pass; every process is killed by its pid when its guard drops.

#![expect(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test binary that shares the support modules of another one"
)]

mod commands;
mod crash;
mod descriptors;
mod export;
mod images;
mod import;
mod interrupted;
mod limits;
mod memory;
mod mount;
mod process;
mod record;
mod start;
mod store;
mod takeover;

/// The support modules of the `registry` suite that do not need the product in this process.
#[path = "../registry/support"]
mod support {
    pub mod client;
    pub mod content;
    pub mod fake;
    pub mod gate;
}
