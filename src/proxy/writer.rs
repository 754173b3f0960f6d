//! The writer of a flight: gathers what the fetchers bring, writes it, publishes it, and hashes it in order.
//!
//! What must hold: bytes are published only after they are in the file; each byte is hashed once, in order, from memory when it is next in
//! line and from the disk when it was there before; however the writer ends, the file is handed over whole, kept for the next download,
//! or removed. A disk that fails ends the writer and not the flight: [`super::passer::Passer`] takes its place.
//!
//! Writing and hashing block, so they are done on the blocking pool, in *turns*: a turn begins when bytes are waiting, ends when none are
//! (or after [`TURN_BYTES`], so that others have theirs), and a download that waits for its upstream holds no thread. Chunks are
//! written from where they were received, many with one call. The bytes are made durable beside all this, by a checkpoint at a time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fill::Running;
use super::interval::{IntervalSet, length};
use super::queue::{Message, Receiver, Waiting};
use crate::content::Stage;
use crate::oci::{Digest, DigestHasher};

/// Bytes that the writer gathers, if they are waiting, before it writes and publishes them: large writes cost half of small ones.
pub(super) const WRITE_BYTES: usize = 512 * 1024;
/// New bytes between two records of what is here, each of which makes them durable.
pub(super) const CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;
/// Less than this is not worth keeping when a download breaks off.
pub(super) const KEEP_BYTES_MIN: u64 = 1024 * 1024;
/// Bytes that are read back at a time in order to hash them.
const READ_BYTES: usize = 512 * 1024;
/// Bytes after which a writer that could go on lets others have the thread.
const TURN_BYTES: u64 = 16 * 1024 * 1024;
/// Threads that write and hash at a time, for all downloads. More of them would only wait for the same disk, and take the threads that
/// readers need.
pub(super) const WRITERS_MAX: usize = 32;
/// Checkpoints that run at a time, for all downloads; a download that finds no place tries again after its next bytes.
pub(super) const CHECKPOINTS_MAX: usize = 8;

/// What all writers share.
#[derive(Clone, Debug)]
pub(super) struct Writers {
    /// See [`WRITERS_MAX`].
    turns: Arc<Semaphore>,
    /// See [`CHECKPOINTS_MAX`].
    checkpoints: Arc<Semaphore>,
}

impl Default for Writers {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { turns: places(WRITERS_MAX), checkpoints: places(CHECKPOINTS_MAX) }
    }
}

/// How the writer ended.
pub(super) enum Written {
    Whole {
        file: Filled,
        length: u64,
        digest: Digest,
    },
    /// The disk failed. The file is nobody's any more, but what was published can still be read.
    Broken(Prefix),
    /// Nobody brings the rest; what is here was kept, or removed.
    Unfinished,
}

/// The hash of the first bytes.
pub(super) struct Prefix {
    hasher: DigestHasher,
    length: u64,
}

/// See the file's text.
pub(super) struct Writer {
    pub(super) stage: Stage,
    pub(super) digest: Digest,
    /// What is in the file.
    pub(super) covered: IntervalSet,
    /// Size of the whole, if it is known; only then can another download continue this one.
    pub(super) total: Option<u64>,
    pub(super) running: Arc<Running>,
    pub(super) writers: Writers,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

/// The file of a writer that has ended. Its last checkpoint may still be running.
pub(super) struct Filled {
    stage: Arc<Stage>,
    checkpoint: Option<Checkpoint>,
}

/// The outcome of a checkpoint that is running.
type Checkpoint = oneshot::Receiver<io::Result<()>>;

/// The writer at work.
struct Work {
    file: Filled,
    /// What the whole has to be.
    digest: Digest,
    covered: IntervalSet,
    total: Option<u64>,
    running: Arc<Running>,
    writers: Writers,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    prefix: Prefix,
    since_checkpoint: u64,
    /// What is being written, with offsets.
    chunks: Vec<(u64, Bytes)>,
    /// For bytes that are read back.
    buffer: Vec<u8>,
    /// Everything was handed over; the whole has this many bytes.
    end: Option<u64>,
}

/// How a turn ended.
enum Turn {
    /// There will be another one.
    Over,
    /// All bytes are in the file and in the hash.
    Whole {
        length: u64,
        digest: Digest,
    },
    BrokenOff {
        worthless: bool,
    },
}

impl Writer {
    /// Runs until the queue ends.
    pub(super) async fn run(self, mut queue: Receiver) -> Written {
        let digest = self.digest;
        let mut work = Work::new(self);
        let end = loop {
            if !work.is_behind() {
                queue.ready().await;
            }
            let place = Arc::clone(&work.writers.turns).acquire_owned().await;
            let turn = work.tasks.clone().spawn_blocking(move || {
                let end = work.turn(&mut queue);
                drop(place);
                (work, queue, end)
            });
            let Ok((then, rest, end)) = turn.await else {
                return Written::Unfinished;
            };
            (work, queue) = (then, rest);
            if !matches!(end, Ok(Turn::Over)) {
                break end;
            }
        };
        match end {
            Ok(Turn::Whole { length, digest }) => {
                Written::Whole { file: work.file, length, digest }
            }
            Ok(Turn::BrokenOff { worthless }) => {
                work.leave(worthless).await;
                Written::Unfinished
            }
            Ok(Turn::Over) => Written::Unfinished,
            Err(error) => {
                tracing::warn!(%digest, %error, "a download cannot be written; its clients are served past the store");
                // A full disk makes room from such leftovers when somebody else needs it; a broken one loses them anyway.
                let prefix = work.leave(false).await;
                Written::Broken(prefix)
            }
        }
    }
}

impl Filled {
    /// The stage, as soon as nothing works on it any more; `None` if that was cut short by the end of everything.
    pub(super) async fn settle(self) -> Option<Stage> {
        if let Some(running) = self.checkpoint {
            // A sync that failed makes the stage refuse to be kept or committed; nothing else about it matters now.
            drop(running.await);
        }
        Arc::into_inner(self.stage)
    }
}

impl Work {
    fn new(writer: Writer) -> Self {
        let Writer { stage, digest, covered, total, running, writers, tasks, shutdown } = writer;
        Self {
            file: Filled { stage: Arc::new(stage), checkpoint: None },
            digest,
            covered,
            total,
            running,
            writers,
            tasks,
            shutdown,
            prefix: Prefix { hasher: DigestHasher::new(digest.algorithm()), length: 0 },
            since_checkpoint: 0,
            chunks: Vec::new(),
            buffer: Vec::new(),
            end: None,
        }
    }

    /// Leaves what is here to the next download, if that is worth it.
    async fn leave(self, worthless: bool) -> Prefix {
        let Self { file, covered, total, prefix, tasks, .. } = self;
        let kept = !worthless && total.is_some() && covered.total() >= KEEP_BYTES_MIN;
        if let Some(stage) = file.settle().await.filter(|_| kept) {
            // Whether it ran or the runtime has ended: nobody waits for more.
            drop(tasks.spawn_blocking(move || stage.keep(&covered.to_vec())).await);
        }
        prefix
    }

    /// Writes and hashes as long as there is something to do. Blocks.
    fn turn(&mut self, queue: &mut Receiver) -> io::Result<Turn> {
        let mut moved = 0;
        while moved < TURN_BYTES {
            let waiting = if self.end.is_some() { Waiting::Nothing } else { queue.take() };
            match (waiting, self.end) {
                (Waiting::Message(Message::Chunk(offset, bytes)), _) => {
                    moved += self.write(offset, bytes, queue)?;
                }
                (Waiting::Message(Message::End(length)), _) => self.end = Some(length),
                (Waiting::Message(Message::Discard), _) => {
                    return Ok(Turn::BrokenOff { worthless: true });
                }
                (Waiting::Closed, _) => return Ok(Turn::BrokenOff { worthless: false }),
                (Waiting::Nothing, _) if self.is_behind() => {
                    if self.shutdown.is_cancelled() {
                        return Ok(Turn::BrokenOff { worthless: false });
                    }
                    moved += self.hash_more()?;
                }
                (Waiting::Nothing, None) => return Ok(Turn::Over),
                (Waiting::Nothing, Some(length)) if self.prefix.length == length => {
                    return Ok(self.whole(length));
                }
                (Waiting::Nothing, Some(_)) => {
                    return Ok(Turn::BrokenOff { worthless: false });
                }
            }
        }
        Ok(Turn::Over)
    }

    fn whole(&self, length: u64) -> Turn {
        let digest = self.prefix.hasher.clone().finish();
        // From here, because clients wait for their last bytes, and not for what the other threads have to do first.
        if digest == self.digest {
            self.running.flight.verify(length);
        }
        Turn::Whole { length, digest }
    }

    /// Are there bytes next in line that were not hashed when they were written?
    fn is_behind(&self) -> bool {
        self.covered.covered_to(self.prefix.length) > self.prefix.length
    }

    /// Hashes a piece of what is in the file; how many bytes it has.
    fn hash_more(&mut self) -> io::Result<u64> {
        let from = self.prefix.length;
        let run = self.covered.covered_to(from) - from;
        let length = usize::try_from(run).unwrap_or(usize::MAX).min(READ_BYTES);
        self.buffer.resize(length, 0);
        self.file.stage.read_at(from, &mut self.buffer)?;
        self.prefix.update([self.buffer.as_slice()], &self.running);
        if !self.is_behind() {
            self.buffer = Vec::new();
        }
        Ok(self.prefix.length - from)
    }

    /// Writes this chunk and those that wait behind it: sorted, because several fetchers bring them, and in runs as long as possible.
    /// How many bytes these are.
    fn write(&mut self, offset: u64, bytes: Bytes, queue: &mut Receiver) -> io::Result<u64> {
        let mut gathered = bytes.len();
        let mut chunks = std::mem::take(&mut self.chunks);
        chunks.push((offset, bytes));
        while gathered < WRITE_BYTES {
            match queue.take() {
                Waiting::Message(Message::Chunk(offset, bytes)) => {
                    gathered += bytes.len();
                    chunks.push((offset, bytes));
                }
                Waiting::Message(other) => {
                    queue.put_back(other);
                    break;
                }
                Waiting::Nothing | Waiting::Closed => break,
            }
        }
        chunks.sort_by_key(|(offset, _)| *offset);
        for run in chunks.chunk_by(|(at, bytes), (next, _)| at + length(bytes) == *next) {
            self.write_run(run)?;
        }
        chunks.clear();
        self.chunks = chunks;
        queue.written();
        self.checkpoint()?;
        Ok(u64::try_from(gathered).unwrap_or(u64::MAX))
    }

    /// Writes chunks that lie one behind the other, and publishes them.
    fn write_run(&mut self, run: &[(u64, Bytes)]) -> io::Result<()> {
        let Some((start, _)) = run.first() else {
            return Ok(());
        };
        let parts: Vec<&[u8]> = run.iter().map(|(_, bytes)| bytes.as_ref()).collect();
        let end = start + parts.iter().map(|part| length(part)).sum::<u64>();
        self.file.stage.write_parts_at(*start, &parts)?;
        self.covered.insert(*start, end);
        // First, so that whoever was given the bytes can tell later whether they were right.
        if *start == self.prefix.length {
            self.prefix.update(parts, &self.running);
        }
        self.running.flight.advance(*start, end);
        self.since_checkpoint += end - start;
        Ok(())
    }

    /// Begins a checkpoint if one is due and none is running.
    fn checkpoint(&mut self) -> io::Result<()> {
        if let Some(mut running) = self.file.checkpoint.take() {
            match running.try_recv() {
                Ok(outcome) => outcome?,
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.file.checkpoint = Some(running);
                    return Ok(());
                }
                // It never ran, because everything is ending.
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
        if self.since_checkpoint < CHECKPOINT_BYTES || self.total.is_none() {
            return Ok(());
        }
        let Ok(place) = Arc::clone(&self.writers.checkpoints).try_acquire_owned() else {
            return Ok(());
        };
        self.since_checkpoint = 0;
        let (done, outcome) = oneshot::channel();
        let (stage, present) = (Arc::clone(&self.file.stage), self.covered.to_vec());
        drop(self.tasks.spawn_blocking(move || {
            let checkpoint = stage.checkpoint(&present);
            drop(place);
            // Whoever is told that it is over may be the only one to hold the stage.
            drop(stage);
            drop(done.send(checkpoint));
        }));
        self.file.checkpoint = Some(outcome);
        Ok(())
    }
}

impl Prefix {
    /// The next bytes.
    pub(super) fn update<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        running: &Running,
    ) {
        for bytes in parts {
            self.hasher.update(bytes);
            self.length += length(bytes);
        }
        running.flight.hash(self.length, &self.hasher);
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
