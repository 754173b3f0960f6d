//! The read API of the OCI distribution spec 1.1 and the Docker registry v2 API, one file per resource.
//!
//! Each file asks the registry for a value and turns it into a head and a payload; the turning is pure, so that cold and warm, GET
//! and HEAD cannot differ. Conditions and ranges are checked before the registry is asked. No status code is decided here.

pub(super) mod blobs;
pub(super) mod catalog;
mod listing;
pub(super) mod manifests;
pub(super) mod referrers;
pub(super) mod tags;
