//! Everything that can go wrong beside a pull, and the pull that goes on.
//!
//! The same world, fake upstream and client as in the `registry` suite; one module per kind of fault. Tests wait for events and never
//! sleep for luck; all ports are 0 and all addresses loopback.

#![expect(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test binary that shares the support modules of another one"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "the fans and tasks of a test are few, and end with it"
)]

#[path = "../registry/support/mod.rs"]
mod support;

mod cancellation;
mod clocks;
mod credentials;
mod damage;
mod disk_faults;
mod egress;
mod full_disk;
mod lies;
mod mirrors;
mod quota;
mod ranges;
mod resume;
mod rude_clients;
mod rude_requests;
mod small_disk;
mod soak;
