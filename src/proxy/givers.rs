//! Who gave the bytes of a blob, so that wrong bytes are told of those who may have given them.
//!
//! What must hold: who gave everything is blamed for it; where several gave parts, nobody knows whose were wrong, and the copies of the
//! registry are doubted before the registry is.

use std::sync::{Mutex, PoisonError};

use super::source::Proxied;
use crate::upstream::{BlobBody, Endpoint};

/// The endpoints that gave bodies of one blob.
#[derive(Debug, Default)]
pub(super) struct Givers(Mutex<Vec<(Proxied, Endpoint)>>);

impl Givers {
    /// This body is one of them.
    pub(super) fn note(&self, source: &Proxied, body: &BlobBody) {
        // No holder of this lock can panic half-way through a change.
        let mut givers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if givers.iter().all(|(_, endpoint)| endpoint != body.endpoint()) {
            givers.push((source.clone(), body.endpoint().clone()));
        }
    }

    /// The whole is not what its digest says.
    pub(super) fn blame(&self) {
        let givers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = givers.len() == 1;
        for (source, endpoint) in givers.iter().filter(|(_, one)| alone || !one.is_origin()) {
            source.upstream().blame(endpoint);
        }
    }
}
