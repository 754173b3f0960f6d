//! Content that lies in the folder of another program is taken in: hashed, then hard linked or copied.
//!
//! What must hold: the rules for everything else that comes in hold here too: under the digest's lock, durable before the row, and nothing
//! that was not hashed. That the folder's file is bad is an answer; that the store cannot take it is an error.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::patience::Wanted;
use super::small::mark;
use super::store::Content;
use crate::blobs::{self, Blobs, Copied, Folder, FolderFile, Partial};
use crate::oci::Digest;
use crate::span::Lease;

/// What became of a file that was to be taken in.
#[derive(Debug)]
pub enum TakenIn {
    /// It was here before, and stays at least for as long as somebody has the lease.
    Here { size: u64, lease: Lease },
    /// It is here now, and stays as long.
    Taken { size: u64, linked: bool, lease: Lease },
    /// The folder has it not, or not as it should be.
    Flawed(Flaw),
}

/// What is wrong with a file of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is not there.
    Missing,
    /// Its bytes are not what its name says.
    Damaged,
    /// It cannot be read, is no file, or is too large; the reason in words.
    Unreadable(String),
}

/// A file that was hashed and has a name under `partial/`.
struct Staged {
    partial: Partial,
    size: u64,
    linked: bool,
}

impl Flaw {
    /// What an error at a folder's file says of it. An error that says nothing of the file (no descriptors, no memory) is given back.
    pub fn of(error: io::Error) -> io::Result<Self> {
        match error.kind() {
            io::ErrorKind::NotFound => Ok(Self::Missing),
            io::ErrorKind::UnexpectedEof => Ok(Self::Damaged),
            io::ErrorKind::PermissionDenied => {
                Ok(Self::Unreadable("it may not be read by this user".to_owned()))
            }
            io::ErrorKind::Interrupted => Err(error),
            _ if blobs::is_circumstance(&error) => Err(error),
            _ => Ok(Self::Unreadable(error.to_string())),
        }
    }
}

impl Content {
    /// A folder of another program, on the disk of this store.
    pub fn folder(&self, root: PathBuf) -> Folder {
        self.blobs().folder(root)
    }

    /// Makes the content of `digest` present from a file of a folder, by a hard link where the file system allows it and `copy` does not
    /// forbid it. A copy for which there is no room waits while eviction makes some. What is here is not read. Ends with `Interrupted` when
    /// `cancel` fires; what was taken in by then stays.
    ///
    /// # Errors
    /// There is no room, or the store's own disk or rows failed; the folder's file may be sound.
    pub async fn take_in(
        &self,
        folder: &Arc<Folder>,
        path: &Path,
        digest: &Digest,
        copy: bool,
        cancel: &CancellationToken,
    ) -> Result<TakenIn, Error> {
        // Before the look, so that what is seen here does not go.
        let lease = self.leases().take(digest.value());
        if let Some(size) = self.size_here(digest).await? {
            return Ok(TakenIn::Here { size, lease });
        }
        let (content, digest) = (self.clone(), *digest);
        let (folder, path, cancel) = (Arc::clone(folder), path.to_owned(), cancel.clone());
        self.detached(async move {
            let blobs = content.blobs();
            let opened = content.blocking(move || {
                let opened = folder.open(&path).map(|file| (folder, file));
                opened.map_or_else(|error| Flaw::of(error).map(Err), |opened| Ok(Ok(opened)))
            });
            let (folder, file) = match opened.await? {
                Ok(opened) => opened,
                Err(flaw) => return Ok(TakenIn::Flawed(flaw)),
            };
            let staged = content.stage_foreign((folder, file), &digest, copy, cancel).await?;
            let Staged { partial, size, linked } = match staged {
                Ok(staged) => staged,
                Err(flaw) => return Ok(TakenIn::Flawed(flaw)),
            };
            let locked = content.lock(&digest).await;
            // A download may have been committed meanwhile; its file stays.
            let here = content.size_here(&digest).await;
            if let Ok(None) = here {
                let space = Arc::clone(content.space());
                let publish = move || {
                    let published = blobs.publish_foreign(&partial, &digest, size);
                    published.inspect_err(|error| space.note_failure(error))
                };
                let stat = content.blocking(publish).await?;
                content.unreadable().forget(&digest);
                content.metadata().set_stored(&digest, size, Some(mark(stat))).await?;
            } else {
                let discard = move || {
                    blobs.discard(&partial);
                    Ok(())
                };
                content.blocking(discard).await?;
            }
            drop(locked);
            if let Some(size) = here? {
                return Ok(TakenIn::Here { size, lease });
            }
            content.press_if_above().await;
            Ok(TakenIn::Taken { size, linked, lease })
        })
        .await
    }

    /// The size of what is present.
    async fn size_here(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let object = self.metadata().object(digest).await?;
        Ok(object.filter(|object| object.present).and_then(|object| object.size))
    }

    /// Hashes a file and gives it a name under `partial/`.
    async fn stage_foreign(
        &self,
        (folder, file): (Arc<Folder>, FolderFile),
        digest: &Digest,
        copy: bool,
        cancel: CancellationToken,
    ) -> Result<Result<Staged, Flaw>, Error> {
        let (blobs, digest) = (self.blobs(), *digest);
        let size = file.size();
        let (file, linked) = if copy {
            (file, None)
        } else {
            let (blobs, cancel) = (Arc::clone(&blobs), cancel.clone());
            let link = move || link(&blobs, &folder, file, &digest, &cancel);
            match self.blocking(link).await? {
                Ok(linked) => linked,
                Err(flaw) => return Ok(Err(flaw)),
            }
        };
        if let Some(partial) = linked {
            return Ok(Ok(Staged { partial, size, linked: true }));
        }
        let file = Arc::new(file);
        let wanted = Wanted::real(size, cancel.clone());
        self.patiently(wanted, || self.copy_foreign(Arc::clone(&file), digest, size, &cancel)).await
    }

    /// `None`: there is no room.
    async fn copy_foreign(
        &self,
        file: Arc<FolderFile>,
        digest: Digest,
        size: u64,
        cancel: &CancellationToken,
    ) -> Result<Option<Result<Staged, Flaw>>, Error> {
        let Some(mut promise) = self.space().promise_if_fits(size) else {
            return Ok(None);
        };
        let (blobs, cancel) = (self.blobs(), cancel.clone());
        self.blocking(move || {
            let copied = blobs.copy(&file, &digest, &mut |_bytes| !cancel.is_cancelled());
            match copied {
                Ok(Copied::Sound(partial)) => {
                    promise.reserved();
                    Ok(Some(Ok(Staged { partial, size, linked: false })))
                }
                Ok(Copied::Damaged) => Ok(Some(Err(Flaw::Damaged))),
                Ok(Copied::Unreadable(error)) => Flaw::of(error).map(|flaw| Some(Err(flaw))),
                Err(error) => {
                    promise.space().note_failure(&error);
                    Err(error)
                }
            }
        })
        .await
    }
}

/// Hashes and links. The file comes back for a copy where no link is possible. Blocks.
fn link(
    blobs: &Blobs,
    folder: &Folder,
    file: FolderFile,
    digest: &Digest,
    cancel: &CancellationToken,
) -> io::Result<Result<(FolderFile, Option<Partial>), Flaw>> {
    if !blobs.can_link(folder, &file)? {
        return Ok(Ok((file, None)));
    }
    match blobs.is_sound(file.opened(), digest, &mut |_bytes| !cancel.is_cancelled()) {
        Ok(true) => {}
        Ok(false) => return Ok(Err(Flaw::Damaged)),
        Err(error) => return Flaw::of(error).map(Err),
    }
    match blobs.link(folder, &file) {
        Ok(partial) => Ok(Ok((file, partial))),
        Err(error) if blobs::is_no_file(&error) => Ok(Err(Flaw::Unreadable(error.to_string()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err(Flaw::Missing)),
        Err(error) => Err(error),
    }
}
