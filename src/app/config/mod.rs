//! The configuration: read from a file, the environment and the command line, checked as a whole, and told in plain values.
//!
//! All mistakes are reported at once, with place and key. Nothing here starts anything, and nothing but the gathering of the sources
//! touches the process.

#[cfg(test)]
mod corpus_tests;
mod document;
#[cfg(test)]
mod documentation_tests;
mod draft;
mod endpoints;
mod environment;
mod error;
mod finish;
mod hints;
mod keys;
mod load;
mod model;
mod secret;
#[cfg(test)]
mod tests;
mod values;
#[cfg(test)]
mod warm_tests;

pub use error::{ConfigErrors, Mistake, Place};
pub use load::{Overrides, Sources};
pub use model::{Config, LogFormat, LogSettings, Parent, UpstreamConfig};
pub use secret::Secret;
pub use values::size;
