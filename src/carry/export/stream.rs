//! The bytes of a bundle on their way out: read where reading may block, a frame at a time, and compared with what was promised.

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio_util::task::TaskTracker;

use super::archive;
use super::plan::{File, Source};
use crate::content::Content;
use crate::oci::{Digest, DigestHasher};
use crate::span::{FramePool, Span};
use crate::story::{Stopped, Story};

/// Frames that wait for their reader; with those on their way through the server, a bundle needs some 4 MiB.
pub(super) const FRAMES_WAITING: usize = 8;
/// Small pieces are put together up to here.
const TOGETHER_BYTES: usize = 64 * 1024;

/// Writes files to whoever reads the story.
#[derive(Debug)]
pub(super) struct Pour {
    pub(super) content: Content,
    pub(super) tasks: TaskTracker,
    pub(super) story: Story<Result<Bytes, String>>,
    pub(super) small: BytesMut,
    pub(super) pool: FramePool,
}

/// Why a bundle ends early.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nobody reads it any more, or the program stops.
    Stopped,
    /// Content is not what it was when the bundle was planned.
    Content { digest: Digest, why: String },
    /// A header could not be made.
    Header(io::Error),
}

impl Pour {
    /// All files and the end of the tar. An error is told as the last thing.
    pub(super) async fn all(mut self, files: &[File]) -> Result<(), Ended> {
        let done = self.write(files).await;
        if let Err(error @ (Ended::Content { .. } | Ended::Header(_))) = &done {
            // A reader that has gone does not need to know.
            let _gone = self.story.tell(Err(error.to_string())).await;
        }
        done
    }

    async fn write(&mut self, files: &[File]) -> Result<(), Ended> {
        for file in files {
            let head = archive::head(&file.path, file.size).map_err(Ended::Header)?;
            self.put(head.into()).await?;
            match &file.source {
                Source::Memory(bytes) => self.put(bytes.clone()).await?,
                Source::Content(digest) => self.content(digest, file.size).await?,
            }
            self.put(Bytes::from_static(archive::filling(file.size))).await?;
        }
        self.put(Bytes::from_static(archive::END)).await?;
        self.flush().await
    }

    /// The bundle's leases hold it, and that its repository may show it was asked when they were taken.
    async fn content(&mut self, digest: &Digest, size: u64) -> Result<(), Ended> {
        let ended = |why: String| Ended::Content { digest: *digest, why };
        let found = self.content.open_leased(digest).await;
        let found = found.map_err(|error| ended(error.to_string()))?;
        let span = found.ok_or_else(|| ended("it is not here any more".to_owned()))?;
        if span.length() != size {
            return Err(ended(format!("it has {} bytes, not {size}", span.length())));
        }
        span.read_in_order();
        let (mut offset, mut hasher) = (0, DigestHasher::new(digest.algorithm()));
        while offset < size {
            let read = self.frame(&span, offset, hasher).await;
            let (frame, hashed) = match read {
                Ok(read) => read,
                Err(error) => {
                    self.look_again(digest).await;
                    return Err(ended(format!("it cannot be read: {error}")));
                }
            };
            hasher = hashed;
            offset += u64::try_from(frame.len()).unwrap_or(u64::MAX);
            self.put(frame).await?;
        }
        if hasher.finish() != *digest {
            self.look_again(digest).await;
            return Err(ended("its bytes are damaged".to_owned()));
        }
        Ok(())
    }

    /// Reads and hashes where that may block.
    async fn frame(
        &self,
        span: &Span,
        offset: u64,
        mut hasher: DigestHasher,
    ) -> io::Result<(Bytes, DigestHasher)> {
        let (span, pool) = (span.clone(), self.pool.clone());
        let read = self.tasks.spawn_blocking(move || {
            let frame = span.read_frame(offset, &pool)?;
            hasher.update(&frame);
            Ok((frame, hasher))
        });
        read.await.map_err(io::Error::other)?
    }

    /// Damage heals: what is wrong is put aside, and the next client's pull, or `warm`, fetches it again.
    async fn look_again(&self, digest: &Digest) {
        if let Err(error) = self.content.verify(digest).await {
            tracing::warn!(%digest, %error, "content that an export could not read cannot be looked at either");
        }
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), Ended> {
        if self.small.len() + bytes.len() <= TOGETHER_BYTES {
            self.small.extend_from_slice(&bytes);
            return Ok(());
        }
        self.flush().await?;
        if bytes.len() <= TOGETHER_BYTES {
            self.small.extend_from_slice(&bytes);
            return Ok(());
        }
        Ok(self.story.tell(Ok(bytes)).await?)
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        if self.small.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.small).freeze();
        Ok(self.story.tell(Ok(bytes)).await?)
    }
}

impl From<Stopped> for Ended {
    fn from(_stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("nobody reads it any more"),
            Self::Content { digest, why } => write!(f, "{digest}: {why}"),
            Self::Header(error) => write!(f, "a header of the tar: {error}"),
        }
    }
}
