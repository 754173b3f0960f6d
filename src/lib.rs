//! roadstead: a pull-through caching proxy registry for container images.
//!
//! The program is made of rooms with walls between them; `docs/architecture.md` describes them, and `tests/tidy.rs` holds the walls.

pub mod app;
pub mod blobs;
pub mod carry;
pub mod cli;
pub mod clock;
pub mod content;
#[cfg(test)]
#[path = "../tests/corpus/reader.rs"]
mod corpus;
pub mod metadata;
pub mod oci;
pub mod proxy;
pub mod registry;
pub mod server;
pub mod span;
pub mod story;
pub mod upkeep;
pub mod upstream;
