//! Looking at all bytes that are stored, for a scrub, an operator, or whoever could not read a span to its end.

use std::io;

use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::open::{Depth, Examined};
use super::small::mark;
use super::store::Content;
use crate::blobs::{self, Blobs, Opened};
use crate::clock::Timestamp;
use crate::metadata::{ObjectRecord, StoredObject};
use crate::oci::Digest;

/// What a look at stored content found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All bytes were read and are what the digest names.
    Sound,
    Damaged,
    /// A row says that it is here, and there is no file.
    Missing,
    /// There is no such row any more.
    Gone,
}

/// What an unlocked look found.
enum Seen {
    Sound(Opened),
    /// Missing, wrong or changed meanwhile.
    Doubtful(Verdict),
}

impl Content {
    /// Reads all of a digest's content under its lock and compares. `false`: it is not here, or was damaged and has been put aside. For
    /// whoever could not read a span to its end: if the bytes cannot be read now either, that is an error, and they count as not
    /// present for a moment.
    pub async fn verify(&self, digest: &Digest) -> Result<bool, Error> {
        let examined = self.examine(digest, Depth::Bytes, &CancellationToken::new()).await;
        if let Err(Error::Disk(_)) = &examined {
            self.unreadable().note(digest);
        }
        Ok(matches!(examined?, Examined::Sound(_)))
    }

    /// The same at a pace, without holding the digest's lock while it reads: what looks wrong is looked at again under the lock before
    /// it is put aside. `pace` is called with the number of bytes after each piece, on a thread that may block, so it may sleep. When
    /// `cancel` fires the look ends with an error.
    pub async fn verify_paced(
        &self,
        digest: &Digest,
        pace: impl FnMut(usize) + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<Verdict, Error> {
        match self.see(digest, pace, cancel).await? {
            None => Ok(Verdict::Gone),
            Some(Seen::Sound(opened)) => {
                self.metadata().set_verified(digest, mark(opened.stat)).await?;
                Ok(Verdict::Sound)
            }
            Some(Seen::Doubtful(_)) => {
                Ok(match self.examine(digest, Depth::Bytes, cancel).await? {
                    Examined::Sound(_) => Verdict::Sound,
                    Examined::Damaged => Verdict::Damaged,
                    Examined::Missing => Verdict::Missing,
                    Examined::Gone => Verdict::Gone,
                })
            }
        }
    }

    /// The same look, which changes nothing.
    pub async fn examine_paced(
        &self,
        digest: &Digest,
        pace: impl FnMut(usize) + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<Verdict, Error> {
        Ok(match self.see(digest, pace, cancel).await? {
            None => Verdict::Gone,
            Some(Seen::Sound(_)) => Verdict::Sound,
            Some(Seen::Doubtful(verdict)) => verdict,
        })
    }

    async fn see(
        &self,
        digest: &Digest,
        mut pace: impl FnMut(usize) + Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<Option<Seen>, Error> {
        let Some(object) = self.metadata().peek(digest).await?.filter(|object| object.present)
        else {
            return Ok(None);
        };
        let (blobs, digest, cancel) = (self.blobs(), *digest, cancel.clone());
        let seen = self.blocking(move || {
            let mut each = |bytes| {
                pace(bytes);
                !cancel.is_cancelled()
            };
            see(&blobs, &digest, &object, &mut each)
        });
        seen.await.map(Some)
    }

    /// Content that is here, in the order of the digests, after `after`; at most `limit`.
    pub async fn objects(
        &self,
        after: Option<&Digest>,
        limit: u32,
    ) -> Result<Vec<StoredObject>, Error> {
        Ok(self.metadata().objects(after, limit).await?)
    }

    /// Content that is here and was last known to be right before `before`, the oldest first; at most `limit`.
    pub async fn oldest_verified(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<StoredObject>, Error> {
        Ok(self.metadata().oldest_verified(before, limit).await?)
    }
}

/// Blocks. An error says that the bytes could not be read, or that the caller's patience ended.
fn see(
    blobs: &Blobs,
    digest: &Digest,
    object: &ObjectRecord,
    each: &mut dyn FnMut(usize) -> bool,
) -> io::Result<Seen> {
    let opened = match blobs.open_published(digest) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(Seen::Doubtful(Verdict::Missing)),
        Err(error) if blobs::is_no_file(&error) => return Ok(Seen::Doubtful(Verdict::Damaged)),
        Err(error) => return Err(error),
    };
    let right_size = object.size.is_none_or(|size| size == opened.stat.size);
    // A file that changes while it is read is as doubtful as one that is wrong.
    let sound =
        right_size && blobs.is_sound(&opened, digest, each)? && blobs.is_unchanged(&opened)?;
    Ok(if sound { Seen::Sound(opened) } else { Seen::Doubtful(Verdict::Damaged) })
}
