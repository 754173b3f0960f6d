//! Content that is read and written whole: manifests and indexes of referrers.

use bytes::Bytes;

use super::error::Error;
use super::store::Content;
use crate::blobs::{self, Blobs, FileStat};
use crate::metadata::{FileMark, Proof, RepositoryKey, RevisionCommit};
use crate::oci::{Digest, MediaType};

/// A manifest, byte for byte as upstream gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    pub digest: Digest,
    pub media_type: MediaType,
    pub bytes: Bytes,
    pub proof: Proof,
}

/// What was found under the name of a digest.
enum Found {
    Whole(Bytes),
    Missing,
    Damaged,
}

impl Content {
    /// A revision of the repository with its bytes, from memory or verified against its digest. `None`: no revision here, or its
    /// bytes are gone (what was damaged is in quarantine then).
    pub async fn manifest(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, Error> {
        let Some(record) = self.metadata().revision(repository, digest).await? else {
            return Ok(None);
        };
        if !record.present {
            return Ok(None);
        }
        let bytes = if let Some(bytes) = self.manifests().get(digest) {
            bytes
        } else {
            let Some(bytes) = self.read_whole(digest, record.size).await? else {
                return Ok(None);
            };
            self.manifests().insert(*digest, bytes.clone());
            bytes
        };
        Ok(Some(StoredManifest {
            digest: *digest,
            media_type: record.media_type,
            bytes,
            proof: record.proof,
        }))
    }

    /// Content of at most `limit` bytes, verified against its digest. `None`: not here, or longer. Asks for no repository: the
    /// caller knows that the digest may be shown.
    pub async fn get(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, Error> {
        match self.metadata().object(digest).await? {
            Some(object) if object.present => match object.size {
                Some(size) if size <= limit => self.read_whole(digest, size).await,
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Reads content of known size. What is not whole is looked at again under the lock, because a commit may have come between
    /// row and file, and a disk may have had a bad moment; what is still wrong is put aside.
    async fn read_whole(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>, Error> {
        if let Ok(Found::Whole(bytes)) = self.look(digest, size).await? {
            return Ok(Some(bytes));
        }
        let (content, digest) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&digest).await;
            let damaged = match content.look(&digest, size).await? {
                Ok(Found::Whole(bytes)) => return Ok(Some(bytes)),
                Ok(Found::Missing) => false,
                Ok(Found::Damaged) => true,
                Err(error) => {
                    content.cannot_read(&digest, &error);
                    return Ok(None);
                }
            };
            // Evicted since it was looked up: nothing is wrong with it.
            if content.is_present(&digest).await? {
                content.mark_absent(&locked, damaged).await;
            }
            Ok(None)
        })
        .await
    }

    async fn look(&self, digest: &Digest, size: u64) -> Result<std::io::Result<Found>, Error> {
        let (blobs, digest) = (self.blobs(), *digest);
        self.blocking(move || Ok(read_verified(&blobs, &digest, size))).await
    }

    /// Stores a manifest, bytes first, rows after, and answers when both are there. `bytes` are what `commit.digest` names: the
    /// caller has hashed them.
    pub async fn store_revision(&self, commit: RevisionCommit, bytes: Bytes) -> Result<(), Error> {
        debug_assert_eq!(Digest::of(commit.digest.algorithm(), &bytes), commit.digest);
        let content = self.clone();
        self.detached(async move {
            let digest = commit.digest;
            let locked = content.lock(&digest).await;
            let stat = content.write_whole(&digest, bytes.clone()).await?;
            content.metadata().commit_stored_revision(commit, Some(mark(stat))).await?;
            content.manifests().insert(digest, bytes);
            drop(locked);
            content.press_if_above().await;
            Ok(())
        })
        .await
    }

    /// Stores small content that is no manifest of a repository. `bytes` are what `digest` names.
    pub async fn put(&self, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        debug_assert_eq!(Digest::of(digest.algorithm(), &bytes), *digest);
        let (content, digest) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&digest).await;
            let stat = content.write_whole(&digest, bytes).await?;
            content.metadata().set_stored(&digest, stat.size, Some(mark(stat))).await?;
            drop(locked);
            Ok(())
        })
        .await
    }

    /// The write protocol for bytes in memory; under the digest's lock.
    async fn write_whole(&self, digest: &Digest, bytes: Bytes) -> Result<FileStat, Error> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mut promise = self.space().promise(Some(size)).ok_or(Error::NoSpace)?;
        let (blobs, digest) = (self.blobs(), *digest);
        let written = self
            .blocking(move || {
                let result = write_scratch(&blobs, &digest, &bytes, size);
                match &result {
                    Ok(_) => promise.reserved(),
                    Err(error) => promise.space().note_failure(error),
                }
                result
            })
            .await?;
        Ok(written)
    }
}

fn write_scratch(
    blobs: &Blobs,
    digest: &Digest,
    bytes: &[u8],
    size: u64,
) -> std::io::Result<FileStat> {
    let partial = blobs.create_scratch(size)?;
    blobs
        .write_at(&partial, 0, bytes)
        .and_then(|()| blobs.publish(&partial, digest, size))
        .inspect_err(|_error| blobs.discard(&partial))
}

fn read_verified(blobs: &Blobs, digest: &Digest, size: u64) -> std::io::Result<Found> {
    let opened = match blobs.open_published(digest) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(Found::Missing),
        Err(error) if blobs::is_no_file(&error) => return Ok(Found::Damaged),
        Err(error) => return Err(error),
    };
    if opened.stat.size != size {
        return Ok(Found::Damaged);
    }
    let bytes = match blobs.read(&opened) {
        // It became shorter since it was opened.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Ok(Found::Damaged);
        }
        read => read?,
    };
    if Digest::of(digest.algorithm(), &bytes) == *digest {
        Ok(Found::Whole(bytes.into()))
    } else {
        Ok(Found::Damaged)
    }
}

pub(super) fn mark(stat: FileStat) -> FileMark {
    FileMark { modified_nanos: stat.modified_nanos, inode: stat.inode }
}
