//! One foreign registry: authentication, retry, limits, health. The only room that knows reqwest.
//!
//! An [`Upstream`] is one configured registry, asked at one or several [`Endpoint`]s: the parent, its mirrors, itself. Its verbs (manifest, blob, tags, referrers) speak in domain terms and fail with an
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
mod endpoint;
mod error;
mod failover;
mod guard;
mod health;
mod helper;
mod keeper;
mod listing;
mod manifest;
mod memory;
mod metrics;
mod quota;
mod realm;
mod redirect;
mod refused;
mod retry;
mod settings;
mod throttle;
mod token;
mod token_body;
mod transport;
mod trust;

#[cfg(test)]
mod corpus_tests;
#[cfg(test)]
mod tests;

pub use blob::{BlobBody, BlobRange};
pub use client::{Shared, check, check_proxy, missing_helpers};
pub use endpoint::Endpoint;
pub use error::{BuildError, Cause, Error};
pub use failover::Upstream;
pub use manifest::{FetchedManifest, ManifestHead};
pub use metrics::Metrics;
pub use quota::{QUOTA_RESERVE, Spending};
pub use reqwest::Url;
pub use settings::{
    CREDENTIAL_REFRESH, CaFile, CredentialSource, Limits, Parent, Program, ProxyEnv, Secret,
    Settings, may_hold_password, shown,
};
