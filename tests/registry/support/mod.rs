//! What the themes stand on: generated content, the fake upstream, a raw client, and the world that joins them with the product.

pub mod client;
pub mod content;
pub mod fake;
pub mod gate;
mod log_capture;
pub mod multipart;
pub mod product;
pub mod pull;
pub mod world;
