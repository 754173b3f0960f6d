//! What all client tests share: a directory per test, processes that are watched and ended, images made on the
//! spot, the upstream registry, roadstead itself, and the journey that every client makes.

mod availability;
mod http;
mod images;
mod journey;
mod moving;
mod process;
mod product;
pub(crate) mod registries;
mod scene;
mod upstream;

pub(crate) use availability::requirements_met;
pub(crate) use images::{Image, Library, digest_of};
pub(crate) use journey::{Client, cold_warm_and_cut_off};
pub(crate) use process::Watched;
pub(crate) use product::Roadstead;
pub(crate) use scene::{Scene, serial};
pub(crate) use upstream::Upstream;
