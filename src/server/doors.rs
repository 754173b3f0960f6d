//! Doors into this room for the micro-benchmarks.
//!
//! Not part of the program's surface; public so that `benches/micro.rs` can reach what is private. Nothing else goes through here.

use http::Method;

use super::route::{decode_path, parse};
use super::settings::Limits;

/// Reads what a request asks for, as the server does first of all with each. Can it be answered?
pub fn is_route(method: &Method, path: &str, query: Option<&str>, limits: &Limits) -> bool {
    decode_path(path, limits).is_ok_and(|path| parse(method, &path, query, limits).is_ok())
}
