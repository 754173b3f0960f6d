//! The room against scripted registries, realms and stores on loopback.

mod auth;
mod blobs;
mod expiry;
mod lists;
mod manifests;
mod mirrors;
mod redirects;
mod stub;
mod tls;
