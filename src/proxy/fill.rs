//! The writer of a flight: fetches a blob from upstream into the store, whatever becomes of the clients.
//!
//! It runs in its own tracked task. What must hold: bytes are hashed in order and published to followers only after they are in the
//! file; nothing is committed before length and digest are right; however the task ends, also by being dropped, the flight ends with
//! it. A broken body is continued where it stopped, because followers have its beginning already. Serving clients past a store that
//! has no room is not done here: the flight fails with [`Failure::Store`] and the clients are bridged by `bypass`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::flight::{Failure, Flight};
use super::source::Proxied;
use crate::content::{self, Content, Mismatch, Stage};
use crate::oci::{Digest, DigestHasher};
use crate::upstream::{self, BlobBody};

/// Bytes that the writer gathers before it writes, hashes and publishes them: large writes cost half of small ones.
const WRITE_BYTES: usize = 512 * 1024;
/// Chunks between the network and the writer; with chunks of at most a few hundred KiB this bounds a flight's memory.
const QUEUE_CHUNKS: usize = 8;
/// Breaks in a row, each after less than [`PROGRESS_BYTES`], before the flight gives up.
const BARREN_ATTEMPTS_MAX: u32 = 5;
/// Bytes between two breaks that count as progress.
const PROGRESS_BYTES: u64 = 1024 * 1024;
/// Pause before the body is continued, multiplied by the number of breaks in a row.
const RESUME_PAUSE: Duration = Duration::from_millis(50);

/// Waits for the file of an earlier download of the digest to go, and how often.
const STAGE_WAIT: Duration = Duration::from_millis(20);
const STAGE_WAITS_MAX: u32 = 50;

/// What a fill needs beside its flight.
#[derive(Clone, Debug)]
pub(super) struct Filler {
    pub(super) content: Content,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

/// Ends the flight if the task that fills it is dropped.
struct Guard<'a>(&'a Flight);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fail(Failure::Abandoned);
    }
}

impl Filler {
    /// Downloads `digest` into the store for `flight`. `sources` are in the order in which they joined the flight; more may join
    /// while this runs, so it asks for each through `source_of`.
    pub(super) async fn run(
        &self,
        flight: &Flight,
        digest: &Digest,
        expected: Option<u64>,
        source_of: impl Fn(usize) -> Option<Proxied>,
    ) {
        let _guard = Guard(flight);
        let end = tokio::select! {
            end = self.fetch(flight, digest, expected, source_of) => end,
            () = self.shutdown.cancelled() => Err(Failure::Abandoned),
        };
        if let Err(failure) = end {
            if matches!(failure, Failure::DigestMismatch) {
                self.content.metrics().count_mismatch(Mismatch::Upstream);
            }
            tracing::warn!(%digest, reason = failure.reason(), "download failed");
            flight.fail(failure);
        }
    }

    async fn fetch(
        &self,
        flight: &Flight,
        digest: &Digest,
        expected: Option<u64>,
        source_of: impl Fn(usize) -> Option<Proxied>,
    ) -> Result<(), Failure> {
        let (source, body) = self.connect(flight, digest, source_of).await?;
        let total = body.total.or(expected);
        let stage = self.stage(digest, total).await?;
        // A size on which upstream and the descriptor disagree is announced to nobody: the digest decides first.
        let announced = total.filter(|total| expected.is_none_or(|expected| expected == *total));
        flight.start(stage.file(), announced);
        let written = self.stream(flight, (&source, digest), body, total, stage).await?;
        if total.is_some_and(|total| total != written.length) {
            return Err(Failure::LengthMismatch);
        }
        if written.digest != *digest {
            return Err(Failure::DigestMismatch);
        }
        flight.verify(written.length);
        match self.content.commit(written.stage, written.length).await {
            Ok(_span) => Ok(()),
            Err(error) => {
                // Every client of this flight has its bytes; only the next one pays.
                tracing::warn!(%digest, ?error, "a verified download could not be committed");
                Ok(())
            }
        }
    }

    async fn stage(&self, digest: &Digest, size: Option<u64>) -> Result<Stage, Failure> {
        let mut waits = 0;
        loop {
            match self.content.stage(digest, size).await {
                Ok(stage) => return Ok(stage),
                // The file of a download that has just failed is being removed; that is no reason to do without the store.
                Err(content::Error::Busy) if waits < STAGE_WAITS_MAX => {
                    waits += 1;
                    tokio::time::sleep(STAGE_WAIT).await;
                }
                Err(error) => {
                    tracing::warn!(%digest, ?error, "cannot store a download; clients are served past the store");
                    return Err(Failure::Store);
                }
            }
        }
    }

    /// Asks one source after the other until one gives a body.
    async fn connect(
        &self,
        flight: &Flight,
        digest: &Digest,
        source_of: impl Fn(usize) -> Option<Proxied>,
    ) -> Result<(Proxied, BlobBody), Failure> {
        let mut last = Failure::Abandoned;
        while let Some(index) = flight.next_source() {
            let Some(source) = source_of(index) else {
                continue;
            };
            match source.upstream().blob(source.name(), digest, 0).await {
                Ok(body) => return Ok((source, body)),
                Err(error @ (upstream::Error::Absent | upstream::Error::Denied)) => {
                    flight.refuse(index, error.clone());
                    last = Failure::Upstream(error);
                }
                Err(error) => last = Failure::Upstream(error),
            }
        }
        Err(last)
    }

    /// Moves the body into the file, continuing it when it breaks. `total` is what upstream or a descriptor says.
    async fn stream(
        &self,
        flight: &Flight,
        (source, digest): (&Proxied, &Digest),
        mut body: BlobBody,
        total: Option<u64>,
        stage: Stage,
    ) -> Result<Written, Failure> {
        // The writer's handle on the flight is the file and the channel; the flight itself is told by `progress`.
        let (chunks, queue) = mpsc::channel(QUEUE_CHUNKS);
        let (progress, mut published) = tokio::sync::watch::channel(0u64);
        let hasher = DigestHasher::new(digest.algorithm());
        let writer = self.tasks.spawn_blocking(move || write_all(stage, hasher, queue, &progress));
        let room = || total.is_some() || self.content.admits(Some(0));
        let pump = async {
            let mut received = 0u64;
            let mut barren = 0u32;
            loop {
                let before = received;
                let broken = pump(&mut body, &chunks, &mut received, total, room).await?;
                let Some(error) = broken else { break };
                barren = if received - before >= PROGRESS_BYTES { 0 } else { barren + 1 };
                if barren >= BARREN_ATTEMPTS_MAX {
                    return Err(Failure::Upstream(error));
                }
                tracing::info!(%digest, received, reason = error.reason(), "upstream broke off; continuing");
                tokio::time::sleep(RESUME_PAUSE * barren).await;
                body = resume(source, digest, received, total, error).await?;
            }
            drop(chunks);
            Ok(())
        };
        let publish = async {
            let mut from = 0;
            while published.changed().await.is_ok() {
                let to = *published.borrow_and_update();
                flight.advance(from, to);
                from = to;
            }
        };
        let (pumped, ()) = tokio::join!(pump, publish);
        let written = writer.await.map_err(|_panic| Failure::Abandoned)?;
        pumped?;
        written.map_err(|error| {
            tracing::warn!(%digest, %error, "cannot write a download");
            Failure::Store
        })
    }
}

/// Hands the body's chunks to the writer. `Ok(None)` is the end of the body, `Ok(Some(error))` a break that may be continued. A body of
/// unknown size goes on only as long as there is `room`: nothing was reserved for it, and it may have no end.
async fn pump(
    body: &mut BlobBody,
    chunks: &mpsc::Sender<Bytes>,
    received: &mut u64,
    total: Option<u64>,
    room: impl Fn() -> bool,
) -> Result<Option<upstream::Error>, Failure> {
    // A server that ignored our Range sends what we have once more.
    let mut skip = received.saturating_sub(body.from);
    loop {
        let mut chunk = match body.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) if total.is_some_and(|total| *received < total) => {
                return Ok(Some(upstream::Error::Junk("short_body")));
            }
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error)),
        };
        if skip > 0 {
            let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            drop(chunk.split_to(cut));
            skip -= cut as u64;
        }
        *received += chunk.len() as u64;
        if total.is_some_and(|total| *received > total) {
            return Err(Failure::LengthMismatch);
        }
        if !room() {
            return Err(Failure::Store);
        }
        if !chunk.is_empty() && chunks.send(chunk).await.is_err() {
            // The writer is gone; what it says when it is joined is the reason.
            return Ok(None);
        }
    }
}

/// Asks upstream for the rest of a body that broke after `received` bytes; `cause` is why it broke.
async fn resume(
    source: &Proxied,
    digest: &Digest,
    received: u64,
    total: Option<u64>,
    cause: upstream::Error,
) -> Result<BlobBody, Failure> {
    let body = match source.upstream().blob(source.name(), digest, received).await {
        Ok(body) => body,
        // The first error tells more than the failure to mend it.
        Err(_later) => return Err(Failure::Upstream(cause)),
    };
    let same_whole = body.total.is_none() || total.is_none() || body.total == total;
    if body.from > received || !same_whole {
        return Err(Failure::Upstream(cause));
    }
    Ok(body)
}

/// What the writer made.
struct Written {
    stage: Stage,
    length: u64,
    digest: Digest,
}

/// Gathers chunks, hashes and writes them, and says how far it came; blocks, so it runs on the blocking pool.
fn write_all(
    stage: Stage,
    mut hasher: DigestHasher,
    mut queue: mpsc::Receiver<Bytes>,
    progress: &tokio::sync::watch::Sender<u64>,
) -> std::io::Result<Written> {
    let mut length = 0u64;
    let mut batch = Vec::with_capacity(WRITE_BYTES);
    while let Some(chunk) = queue.blocking_recv() {
        batch.extend_from_slice(&chunk);
        while batch.len() < WRITE_BYTES {
            match queue.try_recv() {
                Ok(chunk) => batch.extend_from_slice(&chunk),
                Err(_empty_or_closed) => break,
            }
        }
        stage.write_at(length, &batch)?;
        hasher.update(&batch);
        length += batch.len() as u64;
        batch.clear();
        progress.send_replace(length);
    }
    Ok(Written { stage, length, digest: hasher.finish() })
}

/// A flight together with the clients' sources, as the proxy's table of running downloads holds it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) flight: Flight,
    pub(super) sources: std::sync::Mutex<Vec<Proxied>>,
}

impl Running {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { flight: Flight::new(), sources: std::sync::Mutex::new(Vec::new()) })
    }

    /// Joins with `source`; `None` if the flight has failed.
    pub(super) fn join(&self, source: &Proxied) -> Option<usize> {
        let mut sources = self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let index = self.flight.join(source.key())?;
        if index == sources.len() {
            sources.push(source.clone());
        }
        Some(index)
    }

    pub(super) fn source(&self, index: usize) -> Option<Proxied> {
        self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(index).cloned()
    }
}
