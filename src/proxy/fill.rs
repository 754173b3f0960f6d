//! Fills a flight: fetches a blob from upstream into the store, whatever becomes of the clients.
//!
//! It runs in its own tracked task. What must hold: nothing is committed before length and digest are right; however the task ends, also
//! by being dropped, the flight ends with it. The main fetcher walks through what is missing in order; side fetchers bring what clients
//! wait for elsewhere. What breaks is continued where it stopped, at any source that still gives it, with an effort that is bounded; what
//! an earlier download left is continued too. A disk that fails detaches the flight: its clients get the rest through memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::claims::{Claims, Next, Part};
use super::fetch::{End, Fetcher};
use super::flight::{Failure, Flight};
use super::givers::Givers;
use super::interval::IntervalSet;
use super::passer::Passer;
use super::queue::{Message, Receiver, Sender, queue};
use super::source::Proxied;
use super::writer::{Prefix, Writer, Writers, Written};
use crate::content::{self, Content, Mismatch, Stage};
use crate::oci::{ByteRange, Digest};
use crate::span::ContentFile;
use crate::upstream::{self, BlobBody};

/// Breaks in a row, each after less than [`PROGRESS_BYTES`], before a flight gives up, or its side fetchers, or a
/// body past the store.
pub(super) const BARREN_ATTEMPTS_MAX: u32 = 5;
/// Bytes between two breaks that count as progress.
pub(super) const PROGRESS_BYTES: u64 = 1024 * 1024;
/// Pause before a body is continued, doubled with each further break in a row.
pub(super) const RESUME_PAUSE: Duration = Duration::from_millis(50);

/// The least that an answer with less than was asked must bring to count as progress.
const PIECE_BYTES_MIN: u64 = 256 * 1024;
/// Downloads that may go on in memory without the disk at a time, slow readers of those that have ended included. The clients of
/// others go upstream one by one.
pub(super) const RINGS_MAX: usize = 32;

/// Waits for the file of an earlier download of the digest to go, and how often.
const STAGE_WAIT: Duration = Duration::from_millis(20);
const STAGE_WAITS_MAX: u32 = 50;

/// What a fill needs beside its flight.
#[derive(Clone, Debug)]
pub(super) struct Filler {
    pub(super) content: Content,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    /// See [`RINGS_MAX`].
    pub(super) rings: Arc<Semaphore>,
    pub(super) writers: Writers,
}

/// What is to be fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) digest: Digest,
    /// The size that a descriptor tells.
    pub(super) expected: Option<u64>,
    /// The first client waits for the bytes from here on, and may not want those before.
    pub(super) lead: Option<u64>,
}

/// Ends the flight if the task that fills it is dropped.
struct Guard<'a>(&'a Flight);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fail(Failure::Abandoned);
    }
}

/// A download whose size and beginning are known.
struct Begun {
    stage: Stage,
    /// As upstream or a descriptor says.
    total: Option<u64>,
    present: IntervalSet,
    /// The body that was opened to learn this, and what it brings.
    first: Option<(Part, BlobBody)>,
}

impl Filler {
    /// Downloads what is ordered into the store.
    pub(super) async fn run(&self, running: &Arc<Running>, order: Order) {
        let flight = &running.flight;
        let _guard = Guard(flight);
        let end = tokio::select! {
            end = self.fetch(running, order) => end,
            () = self.shutdown.cancelled() => Err(Failure::Abandoned),
        };
        if let Err(failure) = end {
            if matches!(failure, Failure::DigestMismatch) {
                self.content.metrics().count_mismatch(Mismatch::Upstream);
                running.givers.blame();
            }
            tracing::warn!(digest = %order.digest, reason = failure.reason(), "download failed");
            flight.fail(failure);
        }
    }

    async fn fetch(&self, running: &Arc<Running>, order: Order) -> Result<(), Failure> {
        let begun = self.begin(running, order).await?;
        let Begun { stage, total, present, first } = begun;
        let (chunks, queue) = queue();
        let writer = Writer {
            stage,
            digest: order.digest,
            covered: present,
            total,
            running: Arc::clone(running),
            writers: self.writers.clone(),
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        };
        // A task of its own, because it stores what is whole and leaves the rest to the next download even if this one is dropped.
        let mut writer = self.tasks.spawn(store(writer, queue, self.content.clone()));
        let (brought, written) = tokio::select! {
            biased;
            written = &mut writer => (Ok(()), written),
            brought = self.bring_all(running, &order.digest, &chunks, first) => {
                if matches!(brought, Err(Failure::Store)) {
                    // A writer that has ended needs no word.
                    drop(chunks.send(Message::Discard).await);
                }
                drop(chunks);
                (brought, writer.await)
            }
        };
        match written.map_err(|_panic| Failure::Abandoned)? {
            None => Ok(()),
            Some(Written::Whole { .. }) => Err(Failure::DigestMismatch),
            Some(Written::Broken(prefix)) => self.detached(running, &order.digest, prefix).await,
            Some(Written::Unfinished) => Err(brought.err().unwrap_or(Failure::Abandoned)),
        }
    }

    /// Goes on without the disk, for those who follow.
    async fn detached(
        &self,
        running: &Arc<Running>,
        digest: &Digest,
        prefix: Prefix,
    ) -> Result<(), Failure> {
        let flight = &running.flight;
        let place = Arc::clone(&self.rings).try_acquire_owned();
        if !place.is_ok_and(|place| flight.detach(place)) {
            return Err(Failure::Store);
        }
        let file = flight.file().ok_or(Failure::Store)?;
        let (chunks, queue) = queue();
        let (running_too, shutdown) = (Arc::clone(running), self.shutdown.clone());
        let passer = Passer { prefix, file, running: running_too, shutdown };
        let mut passer = self.tasks.spawn_blocking(move || passer.run(queue));
        let (brought, passed) = tokio::select! {
            biased;
            passed = &mut passer => (Ok(()), passed),
            brought = self.bring_all(running, digest, &chunks, None) => {
                drop(chunks);
                (brought, passer.await)
            }
            () = flight.deserted() => return Err(Failure::Store),
        };
        match passed.map_err(|_panic| Failure::Abandoned)? {
            Ok(Some((length, found))) if found == *digest => {
                flight.verify(length);
                Ok(())
            }
            Ok(Some(_)) => Err(Failure::DigestMismatch),
            Ok(None) => Err(brought.err().unwrap_or(Failure::Abandoned)),
            Err(error) => {
                tracing::warn!(%digest, %error, "what was written of a download cannot be read");
                Err(Failure::Store)
            }
        }
    }

    /// Finds out what there is to do, and gets the file for it.
    async fn begin(&self, running: &Running, order: Order) -> Result<Begun, Failure> {
        let Order { digest, expected, lead } = order;
        let left = self.content.unfinished(&digest).await.unwrap_or_else(|error| {
            tracing::warn!(%digest, ?error, "an unfinished download cannot be looked at");
            None
        });
        let left = left.filter(|left| expected.is_none_or(|expected| expected == left.size));
        let known = expected.or(left.as_ref().map(|left| left.size));
        let here = set(left.iter().flat_map(|left| left.present.iter().cloned()));
        let mut ranges = true;
        let mut first = match Claims::new(known, here, lead).next_main() {
            Next::Fetch(part) => match running.open(&digest, part.range(known)).await {
                Ok(body) => Some((part, body)),
                Err(Some(upstream::Error::Junk(_))) if part.to.is_some() => {
                    ranges = false;
                    Some(open_whole(running, &digest, part).await?)
                }
                Err(error) => return Err(failure(error)),
            },
            // Everything is here, it only was not looked at; whoever asks was found to have it before he came here.
            Next::Wait | Next::Done => None,
        };
        // Parts of something else help nobody: the digest decides what the whole is.
        let other = first.take_if(|(part, body)| {
            let differs = body.total.is_some_and(|told| known.is_some_and(|known| told != known));
            differs && *part != part.whole()
        });
        if let Some((part, body)) = other {
            // One download has one place at its upstream.
            drop(body);
            first = Some(open_whole(running, &digest, part).await?);
        }
        let total = first.as_ref().and_then(|(_, body)| body.total).or(known);
        let stage = self.stage(&digest, total).await?;
        let present = set(stage.present().iter().cloned());
        let mut claims = Claims::new(total, present.clone(), lead);
        if !ranges {
            claims.no_ranges();
        }
        let first = first.map(|(part, body)| (claims.adopt(part, body.from), body));
        // A size on which upstream and the descriptor disagree is announced to nobody: the digest decides first.
        let announced = total.filter(|total| expected.is_none_or(|expected| expected == *total));
        let file = ContentFile::new(stage.file(), total);
        running.flight.start(file, announced, present.clone(), claims);
        Ok(Begun { stage, total, present, first })
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

    /// Runs fetchers until every byte was handed over, and says so to the writer.
    async fn bring_all(
        &self,
        running: &Running,
        digest: &Digest,
        chunks: &Sender,
        first: Option<(Part, BlobBody)>,
    ) -> Result<(), Failure> {
        let flight = &running.flight;
        let fetcher = Fetcher { running, digest, content: &self.content, chunks };
        let mut fetchers = FuturesUnordered::new();
        let (mut main, mut effort) = (first.is_some(), Effort::default());
        fetchers.extend(first.map(|(part, body)| fetcher.run(part, Some(body), Duration::ZERO)));
        loop {
            if !main {
                match flight.next_main() {
                    Next::Fetch(part) => {
                        main = true;
                        fetchers.push(fetcher.run(part, None, effort.main_pause()));
                    }
                    Next::Wait => {}
                    Next::Done => break,
                }
            }
            while effort.sides_go_on()
                && let Some(part) = flight.next_side()
            {
                fetchers.push(fetcher.run(part, None, effort.side_pause()));
            }
            let (part, end) = tokio::select! {
                Some(ended) = fetchers.next() => ended,
                () = flight.demand() => continue,
            };
            let received = flight.claims(|claims| {
                claims.release(part.id);
                claims.received()
            });
            main &= !part.main;
            match end {
                End::Done => {}
                End::Short => effort.short(part.main, received)?,
                End::NoRanges => flight.claims(Claims::no_ranges),
                End::Broken(error) => {
                    let reason = error.reason();
                    tracing::info!(%digest, received, reason, "upstream broke off; continuing");
                    effort.broken(part.main, received, error)?;
                }
                End::NoRoom => return Err(Failure::Store),
                // The writer says more.
                End::Gone => return Ok(()),
            }
        }
        let size = flight.claims(|claims| claims.size()).ok_or(Failure::Abandoned)?;
        drop(chunks.send(Message::End(size)).await);
        Ok(())
    }
}

/// Runs the writer, and commits the whole if it is the right one; how the writer ended, if not so. The clients have their last bytes
/// before the commit, so the end of the flight does not end this.
async fn store(writer: Writer, queue: Receiver, content: Content) -> Option<Written> {
    let wanted = writer.digest;
    let (file, length) = match writer.run(queue).await {
        Written::Whole { file, length, digest } if digest == wanted => (file, length),
        other => return Some(other),
    };
    if let Some(stage) = file.settle().await
        && let Err(error) = content.commit(stage, length).await
    {
        // Every client of this flight has its bytes; only the next one pays.
        tracing::warn!(digest = %wanted, ?error, "a verified download could not be committed");
    }
    None
}

/// How often bodies broke without bringing much.
#[derive(Debug, Default)]
struct Effort {
    main: u32,
    sides: u32,
    received: u64,
}

impl Effort {
    fn main_pause(&self) -> Duration {
        pause(self.main)
    }

    fn side_pause(&self) -> Duration {
        pause(self.sides)
    }

    fn sides_go_on(&self) -> bool {
        self.sides < BARREN_ATTEMPTS_MAX
    }

    /// A body was shorter than asked, as it said, and `received` bytes had come in all.
    fn short(&mut self, main: bool, received: u64) -> Result<(), Failure> {
        if received - self.received < PIECE_BYTES_MIN {
            return self.broken(main, received, upstream::Error::Junk("short_body"));
        }
        (self.main, self.sides, self.received) = (0, 0, received);
        Ok(())
    }

    /// A body broke when `received` bytes had come in all. The error, if that was once too often.
    fn broken(&mut self, main: bool, received: u64, error: upstream::Error) -> Result<(), Failure> {
        if received - self.received >= PROGRESS_BYTES {
            (self.main, self.sides) = (0, 0);
        }
        self.received = received;
        if main {
            self.main += 1;
        } else {
            self.sides += 1;
        }
        if self.main >= BARREN_ATTEMPTS_MAX {
            return Err(Failure::Upstream(error));
        }
        Ok(())
    }
}

fn pause(breaks: u32) -> Duration {
    breaks.checked_sub(1).map_or(Duration::ZERO, |more| RESUME_PAUSE * 2u32.pow(more))
}

async fn open_whole(
    running: &Running,
    digest: &Digest,
    part: Part,
) -> Result<(Part, BlobBody), Failure> {
    let body = running.open(digest, part.whole().range(None)).await.map_err(failure)?;
    Ok((part.whole(), body))
}

fn failure(error: Option<upstream::Error>) -> Failure {
    error.map_or(Failure::Abandoned, Failure::Upstream)
}

fn set(parts: impl Iterator<Item = std::ops::Range<u64>>) -> IntervalSet {
    let mut set = IntervalSet::default();
    parts.for_each(|part| set.insert(part.start, part.end));
    set
}

/// A flight together with the clients' sources, as the proxy's table of running downloads holds it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) flight: Flight,
    pub(super) givers: Givers,
    sources: std::sync::Mutex<Vec<Proxied>>,
    /// Cancelled when the download is over, and what came of it is in the store as far as it goes there.
    pub(super) ended: CancellationToken,
}

/// A client's place in a flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) running: Arc<Running>,
    /// The number of the client's source.
    pub(super) source: usize,
    given_up: AtomicBool,
}

impl Running {
    pub(super) fn new() -> Arc<Self> {
        let (givers, sources) = (Givers::default(), std::sync::Mutex::default());
        let ended = CancellationToken::new();
        Arc::new(Self { flight: Flight::new(), givers, sources, ended })
    }

    /// Joins with `source`; `None` if the flight takes nobody any more.
    pub(super) fn join(self: &Arc<Self>, source: &Proxied) -> Option<Seat> {
        let mut sources = self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let index = self.flight.join(source.key())?;
        if index == sources.len() {
            sources.push(source.clone());
        }
        drop(sources);
        Some(Seat { running: Arc::clone(self), source: index, given_up: AtomicBool::new(false) })
    }

    pub(super) fn source(&self, index: usize) -> Option<Proxied> {
        self.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(index).cloned()
    }
}

/// A stream's place in a flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Following {
    running: Arc<Running>,
    id: u64,
}

impl Following {
    /// Tells the flight that somebody wants these bytes, from their beginning on.
    pub(super) fn new(running: &Arc<Running>, range: ByteRange) -> Self {
        Self { running: Arc::clone(running), id: running.flight.follow(range) }
    }

    /// Everything before `position` was taken.
    pub(super) fn moved(&self, position: u64) {
        self.running.flight.moved(self.id, position);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.running.flight.unfollow(self.id);
    }
}

impl Seat {
    /// The client needs the flight no more, though the seat lives on.
    pub(super) fn give_up(&self) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            self.running.flight.leave();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_up();
    }
}
