//! Opening what is stored: is the file the one that was stored?

use std::io;

use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::lock::Locked;
use super::metrics::Mismatch;
use super::small::mark;
use super::store::Content;
use crate::blobs::{self, Blobs, Opened};
use crate::metadata::{BlobRecord, ObjectRecord, RepositoryKey};
use crate::oci::Digest;
use crate::span::{ContentFile, Lease, Span};

/// What is known of a blob, with its bytes if the repository may have them.
#[derive(Clone, Debug)]
pub struct BlobLookup {
    pub record: BlobRecord,
    /// The whole content: present, of the recorded size, and a member of the repository.
    pub span: Option<Span>,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// At the bytes only if the marks differ.
    Marks,
    Bytes,
}

/// What a look at all bytes under the digest's lock found.
#[derive(Debug)]
pub(super) enum Examined {
    /// With new marks in the row.
    Sound(Opened),
    /// Put aside.
    Damaged,
    Missing,
    /// No row says that it should be here.
    Gone,
}

impl Content {
    /// What is known of the digest as content of the repository, with its bytes if they are here and the repository may have them.
    ///
    /// The file's length, modification time and inode are compared with those at its storing. If they differ, all of it is read
    /// first: one that is right is served, one that is wrong is put aside and "not present". A file that cannot be opened is "not
    /// present" for this caller, and looked at behind the answer.
    pub async fn open_blob(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<BlobLookup, Error> {
        let mut record = self.metadata().blob(repository, digest).await?;
        let (true, Some(_proof), Some(_size)) = (record.present, record.proof, record.size) else {
            return Ok(BlobLookup { record, span: None });
        };
        let BlobRecord { size, present, mark, .. } = record;
        let opened = self.open_unchanged(digest, ObjectRecord { size, present, mark }).await?;
        record.present = opened.is_some();
        let span = opened.map(|opened| self.leased_span(digest, opened));
        Ok(BlobLookup { record, span })
    }

    fn leased_span(&self, digest: &Digest, opened: Opened) -> Span {
        let (size, lease) = (opened.stat.size, self.leases().take(digest.value()));
        Span::new(ContentFile::leased(opened.file, size, lease), 0, size)
    }

    /// The whole content of a digest if it is here, whichever repository has it. For whoever has asked before whether it may be shown, and
    /// holds a lease since: what was deleted or purged meanwhile is still here for him.
    pub async fn open_leased(&self, digest: &Digest) -> Result<Option<Span>, Error> {
        let Some(object) = self.metadata().object(digest).await?.filter(|object| object.present)
        else {
            return Ok(None);
        };
        let opened = self.open_unchanged(digest, object).await?;
        Ok(opened.map(|opened| self.leased_span(digest, opened)))
    }

    /// Whatever limits say, the content of a digest does not go from now on until the lease is dropped; an operator's order goes before it.
    /// Whoever had begun to take it away is done when this answers, so that what is found to be here afterwards stays. Costs no open file.
    pub async fn lease(&self, digest: &Digest) -> Lease {
        let lease = self.leases().take(digest.value());
        drop(self.lock(digest).await);
        lease
    }

    pub(super) async fn open_unchanged(
        &self,
        digest: &Digest,
        object: ObjectRecord,
    ) -> Result<Option<Opened>, Error> {
        if self.unreadable().holds(digest) {
            return Ok(None);
        }
        let (blobs, wanted) = (self.blobs(), *digest);
        // The usual case, without the way to the blocking pool and back.
        match blobs.open_cached(digest) {
            Ok(Some(opened)) if is_the_same(&object, &opened) => return Ok(Some(opened)),
            Ok(_not_so_simple) => {}
            Err(error) => {
                self.cannot_read(digest, &error);
                return Ok(None);
            }
        }
        match self.blocking(move || Ok(blobs.open_published(&wanted))).await? {
            Ok(Some(opened)) if is_the_same(&object, &opened) => Ok(Some(opened)),
            Err(error) if !blobs::is_no_file(&error) => {
                self.cannot_read(digest, &error);
                Ok(None)
            }
            _missing_or_changed => {
                match self.examine(digest, Depth::Marks, &CancellationToken::new()).await {
                    Ok(Examined::Sound(opened)) => Ok(Some(opened)),
                    Ok(_) => Ok(None),
                    Err(Error::Disk(error)) => {
                        self.cannot_read(digest, &error);
                        Ok(None)
                    }
                    Err(error) => {
                        tracing::warn!(%digest, %error, "stored content could not be looked at; it counts as absent for now");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// A file could not be opened or read: not present for this caller. The file stays, because that says nothing about its bytes.
    pub(super) fn cannot_read(&self, digest: &Digest, error: &io::Error) {
        tracing::warn!(%digest, %error, "stored content cannot be read; it counts as absent for now");
        self.space().note_failure(error);
    }

    /// Looks at a digest's content under its lock. One caller at a time looks; those who wait for it find what it
    /// has recorded. The look goes on if the caller goes; if `cancel` fires it ends with an error and has changed nothing.
    pub(super) async fn examine(
        &self,
        digest: &Digest,
        depth: Depth,
        cancel: &CancellationToken,
    ) -> Result<Examined, Error> {
        let (content, digest, cancel) = (self.clone(), *digest, cancel.clone());
        self.detached(async move {
            let locked = content.lock(&digest).await;
            content.examine_locked(&locked, depth, cancel).await
        })
        .await
    }

    async fn examine_locked(
        &self,
        locked: &Locked,
        depth: Depth,
        cancel: CancellationToken,
    ) -> Result<Examined, Error> {
        let digest = *locked.digest();
        let Some(object) = self.metadata().object(&digest).await?.filter(|object| object.present)
        else {
            return Ok(Examined::Gone);
        };
        let blobs = self.blobs();
        let look = move || {
            let mut each = |_bytes| !cancel.is_cancelled();
            match look_once(&blobs, &digest, &object, depth, &mut each) {
                // A disk may have a bad moment.
                Err(error) if !blobs::is_circumstance(&error) => {
                    look_once(&blobs, &digest, &object, depth, &mut each)
                }
                seen => seen,
            }
        };
        match self.blocking(look).await? {
            Look::Unchanged(opened) => Ok(Examined::Sound(opened)),
            Look::Sound(opened) => {
                // Without the new marks in the row the next caller looks again, and that is all.
                if let Err(error) = self.metadata().set_verified(&digest, mark(opened.stat)).await {
                    tracing::warn!(%digest, %error, "a good look at stored content could not be recorded");
                }
                Ok(Examined::Sound(opened))
            }
            Look::Wrong => {
                self.mark_absent(locked, true).await;
                Ok(Examined::Damaged)
            }
            Look::Missing => {
                self.mark_absent(locked, false).await;
                Ok(Examined::Missing)
            }
        }
    }

    /// The content of a locked digest is not here, or damaged: row first, then the bytes. Best effort: a row that cannot be written
    /// is overruled in memory, and one without a file is found out again; a file that cannot be moved is found out again, too.
    pub(super) async fn mark_absent(&self, locked: &Locked, damaged: bool) {
        let digest = *locked.digest();
        tracing::warn!(%digest, damaged, "stored content is gone or damaged; it will be fetched again");
        if damaged {
            self.metrics().count_mismatch(Mismatch::Disk);
        }
        self.manifests().invalidate(&digest);
        if let Err(error) = self.metadata().set_absent(&digest, damaged).await {
            tracing::warn!(%digest, %error, "absent content could not be recorded as such");
        }
        if damaged {
            let blobs = self.blobs();
            let moved = self.blocking(move || blobs.quarantine(&digest)).await;
            if let Err(error) = moved {
                tracing::warn!(%digest, %error, "damaged content could not be put into quarantine");
            }
        }
    }
}

/// Does the file look as it did when it was stored? A row of an older version has no marks, only the length.
pub(super) fn is_the_same(object: &ObjectRecord, opened: &Opened) -> bool {
    object.size == Some(opened.stat.size)
        && object.mark.is_none_or(|recorded| recorded == mark(opened.stat))
}

enum Look {
    Unchanged(Opened),
    Sound(Opened),
    Wrong,
    Missing,
}

/// Blocks. An error says that the bytes could not be read, or that `each` ended the look: nothing is known of them.
fn look_once(
    blobs: &Blobs,
    digest: &Digest,
    object: &ObjectRecord,
    depth: Depth,
    each: &mut dyn FnMut(usize) -> bool,
) -> io::Result<Look> {
    let opened = match blobs.open_published(digest) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(Look::Missing),
        Err(error) if blobs::is_no_file(&error) => return Ok(Look::Wrong),
        Err(error) => return Err(error),
    };
    if depth == Depth::Marks && object.mark.is_some() && is_the_same(object, &opened) {
        return Ok(Look::Unchanged(opened));
    }
    let right_size = object.size.is_none_or(|size| size == opened.stat.size);
    if right_size && blobs.is_sound(&opened, digest, each)? {
        return Ok(Look::Sound(opened));
    }
    Ok(Look::Wrong)
}
