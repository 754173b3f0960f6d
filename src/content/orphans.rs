//! Files under `blobs/` that no row calls present: read, and taken into the rows if they are right.
//!
//! They are left by a crash between file and row, and are all there is after the metadata store was lost. The walk over the names
//! keeps one page of them in memory and leaves the hot records alone, so that a million files cost requests nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::metrics::Mismatch;
use super::small::mark;
use super::store::Content;
use crate::blobs::{Blobs, Names, Opened};
use crate::oci::Digest;

/// Names that are in memory at a time.
const PAGE: usize = 256;

/// How much of the machine a walk may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Somebody waits for it.
    Full,
    /// After each page of names it rests several times as long as the page took, an adoption in it included.
    Background,
}

/// How many times as long as it worked a walk in the background rests.
const REST: u32 = 4;
/// It never rests longer at a time: a page with a large file in it took long because of the disk.
const REST_MAX: Duration = Duration::from_secs(1);

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

/// Some of the names under `blobs/`.
struct Page {
    /// Where the walk goes on.
    names: Names,
    /// The digests among them that no row calls present.
    absent: Vec<Digest>,
}

impl Content {
    /// Hashes the files that no row calls present: one that is right becomes present, one that is wrong goes to quarantine. `progress`
    /// hears of each that was adopted. A file that cannot be read just now is passed over. Ends early when `cancel` fires.
    pub async fn adopt_orphans(
        &self,
        haste: Haste,
        progress: &(dyn Fn(Adopted) + Sync),
        cancel: &CancellationToken,
    ) -> Result<AdoptReport, Error> {
        let mut report = AdoptReport::default();
        let mut names = self.blobs().names();
        loop {
            let (begun, page) = (Instant::now(), self.next_page(names).await?);
            let Some(page) = page else {
                return Ok(report);
            };
            names = page.names;
            for digest in page.absent {
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
            if haste == Haste::Background {
                tokio::select! {
                    () = cancel.cancelled() => return Ok(report),
                    () = sleep((begun.elapsed() * REST).min(REST_MAX)) => {}
                }
            }
        }
    }

    /// Counts the files that no row calls present, without reading them. Ends early when `cancel` fires.
    pub async fn count_orphans(&self, cancel: &CancellationToken) -> Result<u64, Error> {
        let (mut names, mut count) = (self.blobs().names(), 0);
        while let Some(page) = self.next_page(names).await?
            && !cancel.is_cancelled()
        {
            names = page.names;
            count += u64::try_from(page.absent.len()).unwrap_or(u64::MAX);
        }
        Ok(count)
    }

    /// What the next names say; `None` at the end.
    async fn next_page(&self, mut names: Names) -> Result<Option<Page>, Error> {
        let blobs = self.blobs();
        let page = self.blocking(move || {
            let page = blobs.next_names(&mut names, PAGE)?;
            Ok((names, page))
        });
        let (names, page) = page.await?;
        if page.is_empty() {
            return Ok(None);
        }
        let absent = self.metadata().absent_among(page).await?;
        Ok(Some(Page { names, absent }))
    }

    pub(super) async fn is_present(&self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.metadata().object(digest).await?.is_some_and(|object| object.present))
    }

    /// The size of the file, and whether it is sound; `None` if it is nothing to adopt.
    async fn adopt(
        &self,
        digest: &Digest,
        cancel: &CancellationToken,
    ) -> Result<Option<(u64, bool)>, Error> {
        if self.metadata().is_unwanted(digest).await? {
            return self.remove_leftover(digest).await.map(|()| None);
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
            // It may have been deleted while it was read; whoever removes it has its turn after this one.
            if content.metadata().is_unwanted(&digest).await? {
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
