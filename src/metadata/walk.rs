//! Reads for those who walk over all that is stored: page after page, past the hot records, which are for requests.

use super::error::Error;
use super::hot::Key;
use super::model::{ObjectRecord, RepositoryKey, StoredObject};
use super::query;
use super::store::Metadata;
use crate::clock::Timestamp;
use crate::oci::Digest;

impl Metadata {
    /// Content that is here, in the order of the digests, after `after`.
    pub async fn objects(
        &self,
        after: Option<&Digest>,
        limit: u32,
    ) -> Result<Vec<StoredObject>, Error> {
        let after = after.copied();
        self.read(move |rows| query::objects(rows, after.as_ref(), limit)).await
    }

    /// Content that is here and was last known to be right before `before`, the oldest first.
    pub async fn oldest_verified(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<StoredObject>, Error> {
        self.read(move |rows| query::oldest_verified(rows, before, limit)).await
    }

    /// [`Metadata::object`] for one who looks at everything once.
    pub async fn peek(&self, digest: &Digest) -> Result<Option<ObjectRecord>, Error> {
        let digest = *digest;
        let object = self.read(move |rows| query::object(rows, &digest)).await?;
        let ended = &self.shared().ended;
        Ok(object.map(|object| ended.object(&Key::Object(digest), object)))
    }

    /// Does some repository have `digest` by an anonymous proof, or `repository` by any? What is here only by a credential of ours, or by
    /// nobody's word, is no news to others.
    pub async fn is_shown(
        &self,
        digest: &Digest,
        repository: &RepositoryKey,
    ) -> Result<bool, Error> {
        let (digest, repository) = (*digest, repository.clone());
        self.read(move |rows| query::is_shown(rows, &digest, &repository)).await
    }

    /// Those of `digests` that are not here.
    pub async fn absent_among(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Error> {
        let looked = self.read(move |rows| {
            let look = |digest: Digest| Ok((digest, query::object(rows, &digest)?));
            digests.into_iter().map(look).collect::<rusqlite::Result<Vec<_>>>()
        });
        let ended = &self.shared().ended;
        let is_here = |digest: &Digest, object| ended.object(&Key::Object(*digest), object).present;
        Ok(looked
            .await?
            .into_iter()
            .filter(|(digest, object)| !object.is_some_and(|object| is_here(digest, object)))
            .map(|(digest, _object)| digest)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::FileMark;
    use super::super::tests::{digest, open_at};
    use super::*;

    #[tokio::test]
    async fn a_walk_leaves_no_hot_records_behind() {
        let root = tempfile::tempdir().unwrap();
        let store = open_at(root.path());
        store.set_present(&digest("x"), 7).await.unwrap();
        let key = Key::Object(digest("x"));
        assert!(store.shared().hot.get(&key).is_some());
        store.shared().hot.forget(&key);
        let found = store.peek(&digest("x")).await.unwrap().unwrap();
        assert_eq!(store.objects(None, 9).await.unwrap().len(), 1);
        assert_eq!(
            store.absent_among(vec![digest("x"), digest("y")]).await.unwrap(),
            [digest("y")]
        );
        let mark = FileMark { modified_nanos: 1, inode: 2 };
        store.set_verified(&digest("x"), mark).await.unwrap();
        assert!(found.present && store.shared().hot.get(&key).is_none());
        // What was hot is not out of date either.
        assert_eq!(store.object(&digest("x")).await.unwrap().unwrap().mark, Some(mark));
        store.set_verified(&digest("x"), FileMark { inode: 3, ..mark }).await.unwrap();
        let mark = store.object(&digest("x")).await.unwrap().unwrap().mark.unwrap();
        assert_eq!(mark.inode, 3);
        store.close().await;
    }
}
