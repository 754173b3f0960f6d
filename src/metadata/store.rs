//! The room's surface: the store as the other rooms see it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use prometheus_client::registry::Registry;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::connection;
use super::error::{Error, OpenError};
use super::hot::{Key, Member, Record};
use super::metrics::Metrics;
use super::model::*;
use super::operation::{Operation, Outcome};
use super::pending::Added;
use super::query;
use super::queue::{self, Sender};
use super::reader::{self, Read};
use super::recovery;
use super::shared::{Shared, confirmed};
use super::testing;
use super::writer::{self, Message};
use crate::clock::{Clock, Timestamp};
use crate::oci::{Digest, MediaType, Tag};

/// Records kept in memory: a few MiB.
pub const HOT_RECORDS_MAX_DEFAULT: u64 = 10_000;
/// Threads that read what is not hot.
pub const READER_THREADS_DEFAULT: usize = 2;
/// More would only wait for each other and hold memory.
const READER_THREADS_MAX: usize = 8;
/// Writes that wait for the writer; more callers wait outside.
const WRITE_QUEUE_MAX: usize = 1024;
/// Reads that wait for a reader; more callers wait outside.
const READ_QUEUE_MAX: usize = 1024;

/// Where the store is and how much memory it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The database file; its directory exists, is on a local file system, and is used by no other process (`content` sees to it).
    pub path: PathBuf,
    pub hot_records_max: u64,
    /// At least one and at most eight are started.
    pub reader_threads: usize,
    /// Moves a database that is damaged aside and begins a new one; else it is an error, and nothing is changed.
    pub begin_anew: bool,
}

impl Settings {
    /// The defaults for a database at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            hot_records_max: HOT_RECORDS_MAX_DEFAULT,
            reader_threads: READER_THREADS_DEFAULT,
            begin_anew: true,
        }
    }
}

/// The metadata store. Clones are handles to the same store.
///
/// A future that is dropped before its answer has either not begun or will be carried out whole. Without [`Metadata::close`], the
/// threads end when the last handle is gone.
#[derive(Clone)]
pub struct Metadata(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    writer: Sender<Message>,
    readers: Sender<Read>,
    threads: Mutex<Threads>,
    clock: Arc<dyn Clock>,
    lost: Option<PathBuf>,
}

#[derive(Default)]
struct Threads {
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
}

impl Metadata {
    /// Opens or makes the database and starts the threads. Reads a constant number of pages, however large it is. A database that is
    /// damaged is moved aside, and a new one begun ([`Metadata::lost`]); one of another program or a newer version is refused. Blocks.
    pub fn open(
        settings: Settings,
        clock: Arc<dyn Clock>,
        metrics_registry: &mut Registry,
    ) -> Result<Self, OpenError> {
        let path = &settings.path;
        let (found, lost) = match recovery::open(path) {
            Err(OpenError::Damaged { reason, .. }) if settings.begin_anew => {
                let aside = recovery::move_aside(path, clock.now())?;
                recovery::say_lost(&aside, &reason);
                (recovery::open(path)?, Some(aside))
            }
            opened => (opened?, None),
        };
        let metrics = Metrics::new(metrics_registry);
        let records_max = settings.hot_records_max;
        let shared = Arc::new(Shared::new(path.clone(), records_max, metrics, found.rules));
        shared.metrics.set_usage(found.usage);
        let (readers, read_queue) = queue::bounded(READ_QUEUE_MAX);
        let (writer, write_queue) = queue::bounded(WRITE_QUEUE_MAX);
        let read_queue = Arc::new(Mutex::new(read_queue));
        let mut threads = Threads::default();
        let io_error = |source| OpenError::Io { path: path.clone(), source };
        for number in 0..settings.reader_threads.clamp(1, READER_THREADS_MAX) {
            let connection = connection::open_reader(path)?;
            let queue = Arc::clone(&read_queue);
            let thread = reader::spawn(connection, queue, number).map_err(io_error)?;
            threads.readers.push(thread);
        }
        let thread =
            writer::spawn(found.connection, write_queue, Arc::clone(&shared)).map_err(io_error)?;
        threads.writer = Some(thread);
        let threads = Mutex::new(threads);
        Ok(Self(Arc::new(Inner { shared, writer, readers, threads, clock, lost })))
    }

    /// Where a database was moved that could not be used when this one was opened; this one began empty.
    pub fn lost(&self) -> Option<&Path> {
        self.0.lost.as_deref()
    }

    /// Writes what is pending, closes the database and ends the threads. Later calls on any handle fail; a second close does nothing.
    pub async fn close(&self) {
        let first = self.0.readers.close();
        self.0.writer.close();
        if !first {
            return;
        }
        let threads =
            std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut readers_ended = Vec::new();
        for _ in &threads.readers {
            // The reads before it in the queue are still answered.
            let (ended, wait) = oneshot::channel();
            let last = Read::Run(Box::new(move |_| drop(ended)));
            if self.0.readers.signal(last) && self.0.readers.signal(Read::End) {
                readers_ended.push(wait);
            }
        }
        for wait in readers_ended {
            let _closed: Result<(), _> = wait.await;
        }
        let (answer, wait) = oneshot::channel();
        if self.0.writer.signal(Message::Close(answer))
            && let Ok(Err(error)) = wait.await
        {
            tracing::warn!(%error, "confirmations and access times could not be written at the end");
        }
        // Each thread has nothing left to do but to return.
        for thread in threads.readers.into_iter().chain(threads.writer) {
            if thread.join().is_err() {
                tracing::error!("a thread of the metadata store ended in a panic");
            }
        }
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, wait) = oneshot::channel();
        let shared = Arc::clone(&self.0.shared);
        let read = Read::Run(Box::new(move |connection| {
            if answer.is_closed() {
                return;
            }
            let result = query(connection).inspect_err(|error| shared.note_damage(error));
            // The caller may go while the read runs; then nobody wants the result.
            drop(answer.send(result.map_err(Error::from)));
        }));
        self.0.readers.send(read).await.map_err(|_closed| Error::closed())?;
        wait.await.map_err(|_closed| Error::closed())?
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    async fn write(&self, operation: Operation) -> Result<(), Error> {
        self.run(operation).await.map(drop)
    }

    /// Carries out a write and answers what it tells.
    pub(super) async fn run(&self, operation: Operation) -> Result<Outcome, Error> {
        let (answer, wait) = oneshot::channel();
        self.0
            .writer
            .send(Message::Run(operation, answer))
            .await
            .map_err(|_closed| Error::closed())?;
        wait.await.map_err(|_closed| Error::closed())?
    }

    /// What the tag points at; `None` if it was never seen.
    pub async fn tag(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, Error> {
        let shared = &self.0.shared;
        let key = Key::Tag(repository.clone(), tag.clone());
        if let Some(Record::Tag(record)) = shared.hot.get(&key) {
            return Ok(Some(shared.ended.tag(&key, record)));
        }
        // Looked up before the read: an entry that is written and taken out in between is in what is read.
        let pending = shared.pending.confirmed(repository, tag);
        let generation = shared.hot.begin_load(&key);
        let (owner, name) = (repository.clone(), tag.clone());
        let record = self
            .read(move |rows| query::tag(rows, &owner, &name))
            .await?
            .map(|record| confirmed(record, pending));
        if let Some(record) = &record {
            shared.finish_load(key.clone(), generation, Record::Tag(record.clone()));
        }
        Ok(record.map(|record| shared.ended.tag(&key, record)))
    }

    /// The manifest of this digest in the repository; `None` if upstream never showed it there as a manifest.
    pub async fn revision(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Option<RevisionRecord>, Error> {
        let (object, member) = self.lookup(repository, digest).await?;
        let (Some(object), Some(member)) = (object, member) else {
            return Ok(None);
        };
        Ok(member.revision.map(|media_type: MediaType| RevisionRecord {
            digest: *digest,
            media_type,
            size: object.size.or(member.size).unwrap_or(0),
            present: object.present,
            proof: member.proof,
        }))
    }

    /// What is known of the digest as content of the repository.
    pub async fn blob(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<BlobRecord, Error> {
        let (object, member) = self.lookup(repository, digest).await?;
        let verified = object.and_then(|object| object.size);
        let claimed = member.as_ref().and_then(|member| member.size);
        Ok(BlobRecord {
            size: verified.or(claimed),
            present: object.is_some_and(|object| object.present),
            proof: member.as_ref().map(|member| member.proof),
            revision: member.is_some_and(|member| member.revision.is_some()),
            mark: object.and_then(|object| object.mark),
        })
    }

    async fn lookup(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<(Option<ObjectRecord>, Option<Member>), Error> {
        let (hot, ended) = (&self.0.shared.hot, &self.0.shared.ended);
        let object_key = Key::Object(*digest);
        let member_key = Key::Member(repository.clone(), *digest);
        if let (Some(Record::Object(object)), Some(Record::Member(member))) =
            (hot.get(&object_key), hot.get(&member_key))
        {
            return Ok((Some(ended.object(&object_key, object)), Some(member)));
        }
        let generations = (hot.begin_load(&object_key), hot.begin_load(&member_key));
        let (owner, digest) = (repository.clone(), *digest);
        let found = self.read(move |rows| query::lookup(rows, &owner, &digest)).await?;
        let shared = &self.0.shared;
        if let Some(object) = found.object {
            shared.finish_load(object_key.clone(), generations.0, Record::Object(object));
        }
        if let Some(member) = &found.member {
            shared.finish_load(member_key, generations.1, Record::Member(member.clone()));
        }
        Ok((found.object.map(|object| ended.object(&object_key, object)), found.member))
    }

    /// What is known of the digest apart from any repository. Tells nothing about who may have it.
    pub async fn object(&self, digest: &Digest) -> Result<Option<ObjectRecord>, Error> {
        let shared = &self.0.shared;
        let key = Key::Object(*digest);
        if let Some(Record::Object(object)) = shared.hot.get(&key) {
            return Ok(Some(shared.ended.object(&key, object)));
        }
        let generation = shared.hot.begin_load(&key);
        let digest = *digest;
        let object = self.read(move |rows| query::object(rows, &digest)).await?;
        if let Some(object) = object {
            shared.finish_load(key.clone(), generation, Record::Object(object));
        }
        Ok(object.map(|object| shared.ended.object(&key, object)))
    }

    /// Tags that point at something, in the order of their bytes, after `after`.
    pub async fn tags(
        &self,
        repository: &RepositoryKey,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Tag>, Error> {
        let (repository, after) = (repository.clone(), after.unwrap_or_default().to_owned());
        self.read(move |rows| query::tags(rows, &repository, &after, limit)).await
    }

    /// Repositories with at least one revision, in order, after `after`; with `public_only`, those that anybody may read.
    pub async fn repositories(
        &self,
        after: Option<&RepositoryKey>,
        limit: u32,
        public_only: bool,
    ) -> Result<Vec<RepositoryKey>, Error> {
        let after = after.cloned();
        let read =
            move |rows: &Connection| query::repositories(rows, after.as_ref(), limit, public_only);
        let mut found = self.read(read).await?;
        if public_only {
            let ended = &self.0.shared.ended;
            found.retain(|key| ended.private_since(&Key::Visibility(key.clone())).is_none());
        }
        Ok(found)
    }

    /// The moves of a tag, the newest first.
    pub async fn timeline(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        limit: u32,
    ) -> Result<Vec<TimelineEntry>, Error> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.read(move |rows| query::timeline(rows, &repository, &tag, limit)).await
    }

    /// Does the tag point at the digest, or did it ever?
    pub async fn was_tagged(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<bool, Error> {
        let (repository, tag, digest) = (repository.clone(), tag.clone(), *digest);
        let ever = Timestamp::from_millis(i64::MAX);
        self.read(move |rows| query::was_tagged(rows, &repository, &tag, &digest, ever)).await
    }

    /// The same at a moment: did the tag point at the digest then, or before?
    pub async fn was_tagged_by(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        digest: &Digest,
        by: Timestamp,
    ) -> Result<bool, Error> {
        let (repository, tag, digest) = (repository.clone(), tag.clone(), *digest);
        self.read(move |rows| query::was_tagged(rows, &repository, &tag, &digest, by)).await
    }

    /// How many of the things that the revision points at directly are not here (foreign ones apart); 0 if it is no revision.
    pub async fn missing_children(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<u64, Error> {
        let (repository, digest) = (repository.clone(), *digest);
        self.read(move |rows| query::missing_children(rows, &repository, &digest)).await
    }

    /// The last good index of referrers, and when it was learned. Its bytes are content like any other.
    pub async fn referrers(
        &self,
        repository: &RepositoryKey,
        subject: &Digest,
    ) -> Result<Option<(Digest, Timestamp)>, Error> {
        let (repository, subject) = (repository.clone(), *subject);
        self.read(move |rows| query::referrers(rows, &repository, &subject)).await
    }

    /// May anybody read the repository upstream, and when was that found out? `None`: not known.
    pub async fn visibility(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Option<(bool, Timestamp)>, Error> {
        let shared = &self.0.shared;
        let key = Key::Visibility(repository.clone());
        if let Some(since) = shared.ended.private_since(&key) {
            return Ok(Some((false, since)));
        }
        if let Some(Record::Visibility(public, checked)) = shared.hot.get(&key) {
            return Ok(Some((public, checked)));
        }
        let generation = shared.hot.begin_load(&key);
        let repository = repository.clone();
        let found = self.read(move |rows| query::visibility(rows, &repository)).await?;
        if let Some((public, checked)) = found {
            shared.finish_load(key, generation, Record::Visibility(public, checked));
        }
        Ok(found)
    }

    /// What is stored, from counters that are kept with every change.
    pub async fn usage(&self) -> Result<Usage, Error> {
        self.read(query::usage).await
    }

    /// Records a manifest whose bytes are durable: presence, references, revision, membership of it and of its config and layers
    /// that are not foreign, and the tag with its timeline, in one transaction. A tag that pointed there before is only confirmed.
    /// With a tag, the answer means that it survives a loss of power.
    pub async fn commit_revision(&self, commit: RevisionCommit) -> Result<(), Error> {
        self.commit_stored_revision(commit, None).await
    }

    /// [`Metadata::commit_revision`] with the mark of the file that holds it.
    pub async fn commit_stored_revision(
        &self,
        commit: RevisionCommit,
        mark: Option<FileMark>,
    ) -> Result<(), Error> {
        self.write(Operation::CommitRevision(Box::new(commit), mark)).await
    }

    /// Points a tag at a revision that is recorded already, or records that upstream has it no more (`None`). A tag that was never
    /// seen is not recorded as absent; a digest that is no revision of the repository is an error.
    pub async fn move_tag(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        digest: Option<Digest>,
        source: &str,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.write(Operation::MoveTag {
            repository: repository.clone(),
            tag: tag.clone(),
            digest,
            source: source.to_owned(),
            at,
        })
        .await
    }

    /// Upstream says that the tag is where it was. Counts for readers at once; written with others within seconds.
    pub fn confirm_tag(&self, repository: &RepositoryKey, tag: &Tag, at: Timestamp) {
        let added = self.0.shared.pending.confirm(repository, tag, at);
        self.0.shared.confirm_hot(repository, tag, at);
        self.tell_writer(added);
    }

    /// The content is used. Touching a manifest touches what it points at. Written with others within seconds, in steps of minutes.
    pub fn touch(&self, digest: &Digest, at: Timestamp) {
        let added = self.0.shared.pending.touch(digest, at);
        self.tell_writer(added);
    }

    pub(super) fn tell_writer(&self, added: Added) {
        let message = match added {
            Added::First => Message::Pending,
            Added::Enough => Message::Flush(None),
            Added::Other => return,
        };
        // A full queue means that the writer is awake, and it looks at the pending entries before it sleeps.
        self.0.writer.signal(message);
    }

    /// Writes pending confirmations and access times now.
    pub async fn flush(&self) -> Result<(), Error> {
        let (answer, wait) = oneshot::channel();
        self.0
            .writer
            .send(Message::Flush(Some(answer)))
            .await
            .map_err(|_closed| Error::closed())?;
        wait.await.map_err(|_closed| Error::closed())?
    }

    /// The content is here; the caller has made the file durable before.
    pub async fn set_present(&self, digest: &Digest, size: u64) -> Result<(), Error> {
        self.set_stored(digest, size, None).await
    }

    /// [`Metadata::set_present`] with the mark of the file.
    pub async fn set_stored(
        &self,
        digest: &Digest,
        size: u64,
        mark: Option<FileMark>,
    ) -> Result<(), Error> {
        self.write(Operation::SetPresent { digest: *digest, size, mark, at: self.0.clock.now() })
            .await
    }

    /// The content is not here any more; `quarantined`: because it was damaged.
    pub async fn set_absent(&self, digest: &Digest, quarantined: bool) -> Result<(), Error> {
        self.write(Operation::SetAbsent { digest: *digest, quarantined }).await
    }

    /// All bytes of the file were read and are right: keeps the time, and the file's marks. Content that is not here stays so.
    pub async fn set_verified(&self, digest: &Digest, mark: FileMark) -> Result<(), Error> {
        self.write(Operation::SetVerified { digest: *digest, mark, at: self.0.clock.now() }).await
    }

    /// Upstream has shown the digest under the repository; `size` if it said one.
    pub async fn prove(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        size: Option<u64>,
        proof: Proof,
    ) -> Result<(), Error> {
        self.write(Operation::Prove {
            repository: repository.clone(),
            digest: *digest,
            size,
            proof,
        })
        .await
    }

    /// Keeps the last good index of referrers of `subject`, whose bytes the caller has stored.
    pub async fn set_referrers(
        &self,
        repository: &RepositoryKey,
        subject: &Digest,
        index: &Digest,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.write(Operation::SetReferrers {
            repository: repository.clone(),
            subject: *subject,
            index: *index,
            at,
        })
        .await
    }

    /// Keeps the verdict whether anybody may read the repository upstream.
    pub async fn set_visibility(
        &self,
        repository: &RepositoryKey,
        public: bool,
        at: Timestamp,
    ) -> Result<(), Error> {
        self.write(Operation::SetVisibility { repository: repository.clone(), public, at }).await
    }

    /// Makes steps of the writer fail, for tests.
    #[doc(hidden)]
    pub fn fail_writes(&self, plan: Option<testing::Plan>) {
        self.0.shared.faults.set(plan);
    }

    /// Steps of the writer that failed since the last plan was made.
    #[doc(hidden)]
    pub fn failed_writes(&self) -> u64 {
        self.0.shared.faults.injected()
    }

    #[cfg(test)]
    pub(crate) async fn present(&self) -> Result<Vec<(Digest, u64)>, Error> {
        self.read(query::present).await
    }

    /// Runs `look` on the writer's own connection.
    #[cfg(test)]
    pub(super) async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> T {
        let (answer, wait) = oneshot::channel();
        let look = Box::new(move |connection: &Connection| drop(answer.send(look(connection))));
        assert!(self.0.writer.send(Message::Inspect(look)).await.is_ok());
        wait.await.unwrap()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").field("shared", &self.0.shared).finish_non_exhaustive()
    }
}
