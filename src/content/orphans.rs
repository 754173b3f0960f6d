//! Files under `blobs/` that no row calls present: read, and taken into the rows if they are right.
//!
//! They are left by a crash between file and row, and are all there is after the metadata store was lost.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::metrics::Mismatch;
use super::small::mark;
use super::store::Content;
use crate::blobs::{Blobs, Names, Opened};
use crate::oci::Digest;

/// Names that are in memory at a time.
const PAGE: usize = 256;

/// A file that was adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub digest: Digest,
    pub size: u64,
}

/// What became of the files without a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdoptReport {
    pub adopted: u64,
    /// Put into quarantine.
    pub damaged: u64,
    /// That were read.
    pub bytes: u64,
}

impl Content {
    /// Hashes the files that no row calls present: one that is right becomes present, one that is wrong goes to quarantine. `progress`
    /// hears of each that was adopted. A file that cannot be read just now is passed over. Ends early when `cancel` fires.
    pub async fn adopt_orphans(
        &self,
        progress: &(dyn Fn(Adopted) + Sync),
        cancel: &CancellationToken,
    ) -> Result<AdoptReport, Error> {
        let mut report = AdoptReport::default();
        let mut names = self.blobs().names();
        loop {
            let page;
            (names, page) = self.next_page(names).await?;
            if page.is_empty() {
                return Ok(report);
            }
            for digest in page {
                if cancel.is_cancelled() {
                    return Ok(report);
                }
                match self.adopt(&digest, cancel).await {
                    Ok(None) => {}
                    Ok(Some((size, sound))) => {
                        report.bytes += size;
                        if sound {
                            report.adopted += 1;
                            progress(Adopted { digest, size });
                        } else {
                            report.damaged += 1;
                        }
                    }
                    Err(Error::Disk(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error @ Error::Metadata(_)) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%digest, %error, "a file without a row could not be read");
                    }
                }
            }
        }
    }

    /// Counts the files that no row calls present, without reading them. Ends early when `cancel` fires.
    pub async fn count_orphans(&self, cancel: &CancellationToken) -> Result<u64, Error> {
        let (mut names, mut count) = (self.blobs().names(), 0);
        loop {
            let page;
            (names, page) = self.next_page(names).await?;
            if page.is_empty() || cancel.is_cancelled() {
                return Ok(count);
            }
            for digest in page {
                count += u64::from(!self.is_present(&digest).await?);
            }
        }
    }

    /// The next digests that have files, and where the walk goes on; no digest is the end.
    async fn next_page(&self, mut names: Names) -> Result<(Names, Vec<Digest>), Error> {
        let blobs = self.blobs();
        let page = self.blocking(move || {
            let page = blobs.next_names(&mut names, PAGE)?;
            Ok((names, page))
        });
        page.await
    }

    async fn is_present(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.metadata().object(digest).await?.is_some_and(|object| object.present))
    }

    /// The size of the file, and whether it is sound; `None` if it is nothing to adopt.
    async fn adopt(
        &self,
        digest: &Digest,
        cancel: &CancellationToken,
    ) -> Result<Option<(u64, bool)>, Error> {
        if self.is_present(digest).await? {
            return Ok(None);
        }
        let (blobs, digest, cancel) = (self.blobs(), *digest, cancel.clone());
        let read = self.blocking(move || read(&blobs, &digest, &cancel)).await?;
        let Some((opened, sound)) = read else {
            return Ok(None);
        };
        let content = self.clone();
        self.detached(async move {
            let locked = content.lock(&digest).await;
            // A download may have been committed while the file was read.
            let (blobs, opened) = (content.blobs(), Arc::new(opened));
            let (same, size) = (Arc::clone(&opened), opened.stat.size);
            let there = content.blocking(move || is_there(&blobs, &digest, &same)).await?;
            if content.is_present(&digest).await? || !there {
                return Ok(None);
            }
            if sound {
                content.metadata().set_stored(&digest, size, Some(mark(opened.stat))).await?;
            } else {
                tracing::warn!(%digest, "a file without a row is not what its name says; it is put aside");
                content.metrics().count_mismatch(Mismatch::Disk);
                let blobs = content.blobs();
                content.blocking(move || blobs.quarantine(&digest)).await?;
            }
            drop(locked);
            Ok(Some((size, sound)))
        })
        .await
    }
}

/// Blocks. An error says that the bytes could not be read; then nothing is known of them.
fn read(
    blobs: &Blobs,
    digest: &Digest,
    cancel: &CancellationToken,
) -> io::Result<Option<(Opened, bool)>> {
    let Some(opened) = blobs.open_published(digest)? else {
        return Ok(None);
    };
    let sound = blobs.is_sound(&opened, digest, &mut |_bytes| !cancel.is_cancelled())?;
    Ok(Some((opened, sound)))
}

/// Is what was read still what has the name?
fn is_there(blobs: &Blobs, digest: &Digest, read: &Opened) -> io::Result<bool> {
    let Some(now) = blobs.open_published(digest)? else {
        return Ok(false);
    };
    Ok(mark(now.stat) == mark(read.stat) && now.stat.size == read.stat.size)
}
