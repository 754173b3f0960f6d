//! Taking a bundle in: a tar with an OCI image layout, or what `docker save` wrote, verified before a row knows of it.
//!
//! What must hold: the tar is read once, from its first byte to its last, with bounded memory; a bundle that is bad in any way is refused
//! whole, with the member that is wrong; until the one transaction at the end nothing of it is served and no set has it. What was stored by
//! then is held by nothing, so it is collected later unless the next try finds it.
//!
//! The room trusts no name, size or link of a bundle, and deliberately makes nothing of files that it does not know.

mod closure;
mod commit;
mod feed;
mod intake;
mod layout;
mod legacy;
mod names;
mod referrers;
mod service;
mod tar;
#[cfg(test)]
mod tests;

pub use service::{ImportOrder, Incoming};
