//! The work as a whole: one repository after the other, what is told of it, and how it ends.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::layout::{Odd, Repositories, blob_path};
use super::order::TakeoverOrder;
use crate::carry::events::{Event, Report, Work};
use crate::carry::service::Carry;
use crate::clock::Timestamp;
use crate::content::{self, Flaw, Folder, TakenIn};
use crate::metadata::{self, ImportCommit, Imported, SET_DETAIL_BYTES_MAX};
use crate::oci::{Digest, RegistryName, SetName};
use crate::span::Lease;
use crate::story::{Stopped, Story};

/// Files that are hashed at a time.
const FILES_AT_A_TIME: usize = 4;
/// Names that are read from the folder at a time.
const PAGE: usize = 256;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Objects that are remembered so that each is counted once, eight bytes each; of more the counts are a little too high.
const COUNTED_MAX: usize = 2_000_000;

/// A takeover that runs.
pub(super) struct Takeover {
    carry: Carry,
    pub(super) order: TakeoverOrder,
    pub(super) upstream: RegistryName,
    pub(super) set: SetName,
    detail: String,
    pub(super) folder: Arc<Folder>,
    story: Story<Event>,
    pub(super) report: Report,
    counted: HashSet<u64>,
    linked: u64,
    told: Instant,
}

/// Why it ends before the end.
pub(super) enum Stop {
    /// Nobody wants it any more, or the program stops.
    Stopped,
    /// It cannot go on; the reason in words.
    Aborted(String),
}

/// A file that is here now.
pub(super) struct Got {
    pub(super) size: u64,
    /// It was not here before.
    pub(super) fresh: bool,
    /// It stays at least as long as this.
    pub(super) lease: Lease,
}

impl From<Stopped> for Stop {
    fn from(_stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<content::Error> for Stop {
    fn from(error: content::Error) -> Self {
        match error {
            content::Error::NoSpace => Self::Aborted(
                "there is no room in the store; what was taken in by now stays: make room and run it again, and it goes on".to_owned(),
            ),
            content::Error::NoRoom(shortage) => Self::Aborted(format!(
                "there is no room in the store: {shortage}; what was taken in by now stays: make room and run it again, and it goes on"
            )),
            content::Error::Disk(error) if error.kind() == io::ErrorKind::Interrupted => Self::Stopped,
            content::Error::Metadata(error) => error.into(),
            error => Self::Aborted(format!("the store cannot take it in ({error}); run it again, and it goes on")),
        }
    }
}

impl From<metadata::Error> for Stop {
    fn from(error: metadata::Error) -> Self {
        Self::Aborted(format!("the rows cannot be written ({error}); run it again, and it goes on"))
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Aborted(format!(
            "the folder cannot be read now ({error}); run it again, and it goes on"
        ))
    }
}

impl Takeover {
    pub(super) fn new(
        carry: Carry,
        (order, upstream, set): (TakeoverOrder, RegistryName, SetName),
        folder: Arc<Folder>,
        story: Story<Event>,
    ) -> Self {
        let mut detail = format!("takeover of {}", order.folder.display());
        while detail.len() > SET_DETAIL_BYTES_MAX {
            detail.pop();
        }
        Self {
            carry,
            order,
            upstream,
            set,
            detail,
            folder,
            story,
            report: Report::default(),
            counted: HashSet::new(),
            linked: 0,
            told: Instant::now(),
        }
    }

    /// Does all of it and tells the end.
    pub(super) async fn run(mut self) {
        let ended = self.all().await;
        let Report { images, failed, objects, bytes, here, left_out, .. } = self.report;
        let (folder, linked) = (self.folder.root().display().to_string(), self.linked);
        let event = match ended {
            Ok(()) => {
                tracing::info!(%folder, upstream = %self.upstream, images, failed, objects, linked, bytes, here, left_out, "a registry's folder was taken over");
                Event::Ended(self.report)
            }
            Err(Stop::Stopped) => {
                tracing::info!(%folder, images, objects, "a takeover was stopped; the next one goes on");
                let reason = "it was stopped; run it again, and it goes on".to_owned();
                Event::Aborted { reason }
            }
            Err(Stop::Aborted(reason)) => {
                tracing::warn!(%folder, images, objects, %reason, "a takeover was given up");
                Event::Aborted { reason }
            }
        };
        if self.story.tell(event).await.is_err() {
            tracing::debug!(%folder, "nobody heard the end of a takeover");
        }
    }

    async fn all(&mut self) -> Result<(), Stop> {
        self.tell(Event::Begun { work: Work::Takeover, images: 0, bytes: 0 }).await?;
        let folder = Arc::clone(&self.folder);
        let mut repositories = self.blocking(move || Repositories::of(folder)).await?;
        loop {
            let found;
            (repositories, found) = self.page(repositories, PAGE).await?;
            if found.is_empty() {
                return Ok(());
            }
            for found in found {
                match found {
                    Ok(name) => self.repository(name).await?,
                    Err(odd) => self.leave_out(odd).await?,
                }
            }
        }
    }

    pub(super) fn content(&self) -> &content::Content {
        self.carry.content()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.carry.inner().clock.now()
    }

    pub(super) fn carry(&self) -> &Carry {
        &self.carry
    }

    /// Runs `work` where it may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Stop> {
        if self.story.is_stopped() {
            return Err(Stop::Stopped);
        }
        let done = self.carry.inner().tasks.spawn_blocking(work).await;
        Ok(done.map_err(io::Error::other)??)
    }

    /// The next of what is read from the folder; empty at the end.
    pub(super) async fn page<I, T>(&self, mut items: I, limit: usize) -> Result<(I, Vec<T>), Stop>
    where
        I: Iterator<Item = io::Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.blocking(move || {
            let page = items.by_ref().take(limit).collect::<io::Result<Vec<T>>>()?;
            Ok((items, page))
        })
        .await
    }

    pub(super) async fn tell(&self, event: Event) -> Result<(), Stop> {
        Ok(self.story.tell(event).await?)
    }

    /// Tells that something is not taken over.
    pub(super) async fn leave_out(&mut self, odd: Odd) -> Result<(), Stop> {
        self.report.left_out += 1;
        let Odd { what, reason } = odd;
        self.tell(Event::LeftOut { what, reason }).await
    }

    /// Reads a small file of the folder, which is to be the content of `digest`.
    pub(super) async fn read_verified(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Result<Vec<u8>, Flaw>, Stop> {
        let (folder, digest) = (Arc::clone(&self.folder), *digest);
        self.blocking(move || match folder.read(&blob_path(&digest), limit) {
            Ok((bytes, _)) if Digest::of(digest.algorithm(), &bytes) == digest => Ok(Ok(bytes)),
            Ok(_other) => Ok(Err(Flaw::Damaged)),
            Err(error) => Flaw::of(error).map(Err),
        })
        .await
    }

    /// Makes contents present, several at a time; the answers in the order of the digests.
    pub(super) async fn take_all(
        &mut self,
        digests: &[Digest],
    ) -> Result<Vec<Result<Got, Flaw>>, Stop> {
        let (content, folder) = (self.content().clone(), Arc::clone(&self.folder));
        let (copy, cancel) = (self.order.copy, self.story.stopped().clone());
        let take = |digest: Digest| {
            let (content, folder, cancel) = (content.clone(), Arc::clone(&folder), cancel.clone());
            let path: PathBuf = blob_path(&digest);
            async move {
                let path: &Path = &path;
                (digest, content.take_in(&folder, path, &digest, copy, &cancel).await)
            }
        };
        // In their order: answers wait for those before them, and so few files are under way that it costs nothing.
        let mut taking =
            futures_util::stream::iter(digests.iter().copied().map(take)).buffered(FILES_AT_A_TIME);
        let mut got = Vec::with_capacity(digests.len());
        while let Some((digest, taken)) = taking.next().await {
            got.push(self.count(&digest, taken?));
            self.mention();
        }
        Ok(got)
    }

    fn count(&mut self, digest: &Digest, taken: TakenIn) -> Result<Got, Flaw> {
        match taken {
            TakenIn::Taken { size, linked, lease } => {
                self.is_first(digest);
                self.report.objects += 1;
                self.report.bytes += size;
                self.linked += u64::from(linked);
                Ok(Got { size, fresh: true, lease })
            }
            TakenIn::Here { size, lease } => {
                if self.is_first(digest) {
                    self.report.here += 1;
                    self.report.here_bytes += size;
                }
                Ok(Got { size, fresh: false, lease })
            }
            TakenIn::Flawed(flaw) => Err(flaw),
        }
    }

    /// Is the object met for the first time?
    fn is_first(&mut self, digest: &Digest) -> bool {
        let first = digest.value().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
        self.counted.len() >= COUNTED_MAX && !self.counted.contains(&first)
            || self.counted.insert(first)
    }

    fn mention(&mut self) {
        if self.told.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.told = Instant::now();
        let Report { images, objects, bytes, here, here_bytes, .. } = self.report;
        let (objects, bytes) = (objects + here, bytes + here_bytes);
        self.story.mention(Event::Progress { images, objects, bytes, of_bytes: bytes });
    }

    /// Writes a slice of a repository's rows.
    pub(super) async fn commit(&self, slice: ImportCommit) -> Result<Imported, Stop> {
        Ok(self.content().metadata().import(slice).await?)
    }

    /// A slice of rows without any.
    pub(super) fn slice(&self) -> ImportCommit {
        ImportCommit {
            revisions: Vec::new(),
            tags: Vec::new(),
            set: self.set.clone(),
            detail: self.detail.clone(),
            members: Vec::new(),
            public: Vec::new(),
            at: self.now(),
        }
    }
}
