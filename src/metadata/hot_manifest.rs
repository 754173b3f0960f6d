//! What is in memory about one manifest, in one look and without a question to the database.
//!
//! What must hold: a view with a current stamp tells nothing that a write which was answered has changed. The stamp is taken before the
//! records, and a generation moves after its record, so a view of which a part is old has a stamp that is not current any more.

use super::hot::{Key, Member, Record, Stamp};
use super::model::{HotManifest, ObjectRecord, RepositoryKey};
use super::store::Metadata;
use crate::oci::{Digest, Tag};

impl Metadata {
    /// The manifest of this digest in the repository, to which `tag` points if one is named. Asks the memory alone and never waits:
    /// `None` says only that not all of it is there. What is made of the answer is good while its stamp [is current](Self::is_current).
    pub fn hot_manifest(
        &self,
        repository: &RepositoryKey,
        tag: Option<&Tag>,
        digest: &Digest,
    ) -> Option<HotManifest> {
        let shared = self.shared();
        let object = Key::Object(*digest);
        let member = Key::Member(repository.clone(), *digest);
        let visibility = Key::Visibility(repository.clone());
        let tag = tag.map(|tag| Key::Tag(repository.clone(), tag.clone()));
        let keys = [&object, &member, &visibility, tag.as_ref().unwrap_or(&object)];
        // Before any of them is looked up, and before it is known that no end waits to be written.
        let stamp = shared.hot.stamp(&keys);
        let get = |key| shared.hot.get(key);
        let tag = match tag.as_ref().map(get) {
            None => None,
            Some(Some(Record::Tag(record))) if record.digest == Some(*digest) => Some(record),
            Some(_) => return None,
        };
        let Some(Record::Object(ObjectRecord { present: true, .. })) = get(&object) else {
            return None;
        };
        let Some(Record::Member(Member { proof, revision: Some(media_type), .. })) = get(&member)
        else {
            return None;
        };
        let visibility = match get(&visibility) {
            Some(Record::Visibility(public, checked)) => Some((public, checked)),
            _ => None,
        };
        self.is_current(&stamp).then_some(HotManifest { tag, media_type, proof, visibility, stamp })
    }

    /// Has nothing changed that the stamp covers? Once a write was answered that changes it, this says no. Costs a few loads.
    pub fn is_current(&self, stamp: &Stamp) -> bool {
        // An end that could not be written overrules what is in memory.
        self.shared().ended.is_empty() && self.shared().hot.is_current(stamp)
    }
}
