//! The one service that the faces talk to: finds the repository for a name and answers in domain terms.

mod as_of;
mod deletion;
pub mod desk;
mod error;
mod locate;
mod reply;
mod service;
mod unknown;

pub use crate::proxy::Ready;
pub use deletion::Removal;
pub use error::{Error, Refusal};
pub use locate::{Addressing, Family, Repository, Upstream, Upstreams};
pub use reply::{
    Answer, BlobBody, BlobHead, BlobReply, BlobStream, CatalogReply, ManifestReply, Outcome, Page,
    ReferrersReply, Reply, Report, StreamError, TagsReply,
};
pub use service::{CatalogPolicy, PAGE_MAX, Registry};
