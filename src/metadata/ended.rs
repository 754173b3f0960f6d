//! Ends that could not be written: a tag that is gone upstream, a repository that is private now, content that is not here any more.
//!
//! What must hold: whoever asks after the failed write is told the end and not what the rows still say, or an outage would bring
//! back what upstream has ended. Entries overrule rows and hot records until a later write of the same fact succeeds; the writer
//! tries them again with its batches. The map is bounded. A process that dies before loses them: the rows are all that is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hot::Key;
use super::model::{ObjectRecord, TagRecord};
use super::operation::Operation;
use crate::clock::Timestamp;
use crate::oci::Digest;

/// More ends than this are not remembered.
const ENDED_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Ended {
    entries: Mutex<HashMap<Key, Operation>>,
    /// There are entries; spares every read the lock.
    some: AtomicBool,
}

impl Ended {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Operation>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.some.load(Ordering::SeqCst)
    }

    /// The write of an operation has succeeded or failed; to be called in the order of the writes.
    pub(super) fn note(&self, operation: &Operation, written: bool) {
        let end = (!written).then(|| operation.end()).flatten();
        if end.is_none() && (!written || self.is_empty()) {
            return;
        }
        let mut entries = self.entries();
        if let Some(key) = end {
            if entries.len() < ENDED_MAX || entries.contains_key(&key) {
                entries.insert(key, operation.clone());
            } else {
                tracing::error!("too many ends wait to be written; one of them is forgotten");
            }
        } else {
            for key in operation.facts() {
                entries.remove(&key);
            }
        }
        self.some.store(!entries.is_empty(), Ordering::SeqCst);
    }

    /// What waits to be written.
    pub(super) fn waiting(&self) -> Vec<Operation> {
        if self.is_empty() { Vec::new() } else { self.entries().values().cloned().collect() }
    }

    /// The record as it is with the end that waits, if one does.
    pub(super) fn tag(&self, key: &Key, record: TagRecord) -> TagRecord {
        if self.is_empty() {
            return record;
        }
        match self.entries().get(key) {
            Some(Operation::MoveTag { source, at, .. }) if record.digest.is_some() => TagRecord {
                digest: None,
                moved: *at,
                confirmed: record.confirmed.max(*at),
                source: source.clone(),
            },
            _ => record,
        }
    }

    pub(super) fn object(&self, key: &Key, mut record: ObjectRecord) -> ObjectRecord {
        if !self.is_empty() && self.entries().contains_key(key) {
            record.present = false;
        }
        record
    }

    /// Does it wait to be written that the content is not here?
    pub(super) fn is_absent(&self, digest: &Digest) -> bool {
        !self.is_empty() && self.entries().contains_key(&Key::Object(*digest))
    }

    /// When the repository became private, if that waits to be written.
    pub(super) fn private_since(&self, key: &Key) -> Option<Timestamp> {
        if self.is_empty() {
            return None;
        }
        match self.entries().get(key) {
            Some(Operation::SetVisibility { at, .. }) => Some(*at),
            _ => None,
        }
    }
}
