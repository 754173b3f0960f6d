//! One foreign registry: authentication, retry, limits, health. The only room that knows reqwest.
//!
//! An [`Upstream`] is one configured registry. Its verbs (manifest, blob, tags, referrers) speak in domain terms and fail with an
//! [`Error`] that is a decision for the caller: upstream has decided (absent, denied), or cannot be asked (everything else). What must
//! hold everywhere in this room: a credential goes to the configured registry and to realms that the rule in `realm.rs` admits, to
//! nobody else; every stage of an exchange has a time limit and every body a size limit, except that a blob may take as long as it
//! keeps flowing; nothing that upstream says (a redirect, a realm, a Link) makes us dial a private address that the operator did not
//! name; no signed URL, token or password reaches a log line or an error.
//!
//! Not here: storage, our repositories, freshness, and which client may see what.

mod ask;
mod blob;
mod challenge;
mod classify;
mod client;
mod credentials;
mod docker_config;
mod error;
mod guard;
mod listing;
mod manifest;
mod memory;
mod metrics;
mod realm;
mod redirect;
mod refused;
mod retry;
mod settings;
mod token;
mod token_body;
mod transport;
mod trust;

#[cfg(test)]
mod tests;

pub use blob::BlobBody;
pub use client::{Shared, Upstream, check, check_proxy};
pub use error::{BuildError, Cause, Error};
pub use manifest::{FetchedManifest, ManifestHead};
pub use metrics::Metrics;
pub use reqwest::Url;
pub use settings::{CaFile, CredentialSource, Limits, ProxyEnv, Secret, Settings};
