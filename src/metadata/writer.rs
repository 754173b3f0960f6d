//! The one thread that writes.
//!
//! It takes what is in its queue, up to a limit, and commits it as one transaction, each operation in a savepoint of its own, so that
//! one that fails fails alone. One that changes much is a transaction of its own, without a savepoint. While a commit waits for the disk
//! the next group gathers in the queue. If the transaction as a whole fails, its operations are tried once more one by one. Before COMMIT
//! the hot records are taken out, after it the new ones go in, and then the answers go out.
//! Whatever fails, the thread lives on.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::Error;
use super::hot::{Key, Record};
use super::operation::{self, Applied, Context, Failure, Operation, Outcome};
use super::pending::Batch;
use super::presence;
use super::query;
use super::queue::{Received, Receiver};
use super::rule_rows;
use super::set_rows::{self, SetChange};
use super::shared::Shared;
use super::wanted_rows;

/// Operations in one transaction.
const GROUP_MAX: usize = 256;
/// How long small facts wait to be written together.
const FLUSH_AFTER: Duration = Duration::from_secs(2);
/// Small facts in one transaction. Between two of them the operations that wait have their turn: nobody's pull waits for access times.
const FLUSH_SLICE: usize = 64;
/// So many transactions of small facts may come before bytes are taken; with more, nobody's pull waits for that.
const USES_SLICES_MAX: usize = 4;
/// When a group is tried one by one, as many failures in a row end the trying: the disk is broken, not the operation.
const SINGLE_FAILURES_MAX: u32 = 3;

/// Of a flush or the end.
pub(super) type Answer = oneshot::Sender<Result<(), Error>>;
/// Of an operation.
type Reply = oneshot::Sender<Result<Outcome, Error>>;

pub(super) enum Message {
    Run(Operation, Reply),
    /// There is something in the pending entries.
    Pending,
    /// Write the pending entries now.
    Flush(Option<Answer>),
    /// Write what is left and end.
    Close(Answer),
    #[cfg(test)]
    Inspect(Box<dyn FnOnce(&Connection) + Send>),
}

/// Starts the writer.
pub(super) fn spawn(
    connection: Connection,
    queue: Receiver<Message>,
    shared: Arc<Shared>,
) -> std::io::Result<JoinHandle<()>> {
    let clearing = Clearing::Due;
    let writer =
        Writer { connection, shared, durable: None, uses_written: true, clearing, failing: false };
    thread::Builder::new().name("metadata-write".to_owned()).spawn(move || writer.run(&queue))
}

struct Writer {
    connection: Connection,
    shared: Arc<Shared>,
    /// What `synchronous` was last set to: FULL or not.
    durable: Option<bool>,
    /// What was used before the operations that are being written is in the rows.
    uses_written: bool,
    clearing: Clearing,
    /// The last write failed; said once in the log, and once when it is over.
    failing: bool,
}

/// Are there members of sets that were removed, which whoever removed them did not see to the end?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clearing {
    Nothing,
    /// The next flush finds out; until then whoever removes a set takes them out.
    Later,
    /// To be found out, and if there are, a slice of them goes between two groups.
    Due,
}

/// A flush on its way.
#[derive(Default)]
struct Flush {
    /// Transactions that are left of it; none: there is no flush.
    slices: usize,
    answers: Vec<Answer>,
}

/// What a turn of the loop has to do.
#[derive(Default)]
struct Turn {
    group: Vec<(Operation, Reply)>,
    flush: bool,
    flush_answers: Vec<Answer>,
    close: Option<Answer>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Message>) {
        let mut flush_at: Option<Instant> = None;
        let mut flush = Flush::default();
        loop {
            let limit = if flush.slices > 0 || self.clearing == Clearing::Due {
                Some(Duration::ZERO)
            } else {
                flush_at.map(|at| at.saturating_duration_since(Instant::now()))
            };
            let mut turn = Turn::default();
            match queue.receive(limit) {
                Received::Message(message) => self.gather(&mut turn, message, queue),
                Received::TimedOut => {}
                Received::Closed => return self.end(flush, None),
            }
            if !turn.group.is_empty() {
                self.commit_group(turn.group);
            }
            if turn.flush || flush_at.is_some_and(|at| at <= Instant::now()) {
                // At least one turn, because ends that could not be written wait for it too.
                flush.slices = self.slices().max(1);
                flush.answers.extend(turn.flush_answers);
                flush_at = None;
                if self.clearing == Clearing::Later {
                    self.clearing = Clearing::Due;
                }
            }
            if let Some(answer) = turn.close {
                return self.end(flush, Some(answer));
            }
            if self.clearing == Clearing::Due {
                self.clearing = self.clear();
            }
            if flush.slices > 0 {
                self.flush_one(&mut flush);
            }
            let waiting = self.clearing == Clearing::Later
                || !(self.shared.pending.is_empty() && self.shared.ended.is_empty());
            if flush.slices == 0 && flush_at.is_none() && waiting {
                flush_at = Some(Instant::now() + FLUSH_AFTER);
            }
        }
    }

    fn slices(&self) -> usize {
        self.shared.pending.len().div_ceil(FLUSH_SLICE)
    }

    /// Takes what is already in the queue, up to a group.
    fn gather(&self, turn: &mut Turn, first: Message, queue: &Receiver<Message>) {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Run(operation, answer) => turn.group.push((operation, answer)),
                Message::Pending => {}
                Message::Flush(answer) => {
                    turn.flush = true;
                    turn.flush_answers.extend(answer);
                }
                Message::Close(answer) => {
                    turn.close = Some(answer);
                    return;
                }
                #[cfg(test)]
                Message::Inspect(look) => look(&self.connection),
            }
            next = (turn.group.len() < GROUP_MAX).then(|| queue.take()).flatten();
        }
    }

    /// Writes what is left, moves the log into the database and closes it.
    fn end(mut self, mut flush: Flush, answer: Option<Answer>) {
        flush.answers.extend(answer);
        let answers = std::mem::take(&mut flush.answers);
        let result = self.flush();
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the metadata store was closed with its log still full");
        }
        drop(self.connection);
        for answer in answers {
            reply(answer, result.clone());
        }
    }

    /// In their order, as few transactions as may be.
    fn commit_group(&mut self, mut group: Vec<(Operation, Reply)>) {
        while !group.is_empty() {
            let alone = group.iter().position(|(operation, _)| operation.stands_alone());
            let rest = group.split_off(alone.map_or(group.len(), |position| position.max(1)));
            self.commit_together(group);
            group = rest;
        }
    }

    fn commit_together(&mut self, group: Vec<(Operation, Reply)>) {
        let (operations, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        self.uses_written = self.write_uses(&operations);
        if self.clearing == Clearing::Nothing && operations.iter().any(Operation::clears) {
            self.clearing = Clearing::Later;
        }
        let written = self.transaction(&operations);
        self.note(written.as_ref().err());
        let results = match written {
            Ok(results) => results,
            // Whoever holds the database holds it for all of them.
            Err(Error::Busy) => vec![Err(Error::Busy); operations.len()],
            Err(error) if operations.len() == 1 => vec![Err(error)],
            Err(_) => self.one_by_one(&operations),
        };
        // In their order, and before the answers.
        for (operation, result) in operations.iter().zip(&results) {
            self.shared.ended.note(operation, result.is_ok());
        }
        for (answer, result) in answers.into_iter().zip(results) {
            reply(answer, result);
        }
    }

    /// Whoever takes what is unused must see what was used before he asked. Writes that, if there is not too much of it, and tells whether
    /// all of it is written; otherwise nothing is taken this time.
    fn write_uses(&mut self, operations: &[Operation]) -> bool {
        let asks = |operation: &Operation| matches!(operation, Operation::Remove(removal) if removal.wants_uses_written());
        if !operations.iter().any(asks) || self.shared.pending.is_empty() {
            return true;
        }
        self.slices() <= USES_SLICES_MAX && self.flush().is_ok()
    }

    /// A slice of the members of sets that were removed, if there are any.
    fn clear(&mut self) -> Clearing {
        match set_rows::is_clearing(&self.connection) {
            Ok(true) => {}
            Ok(false) => return Clearing::Nothing,
            Err(_unreadable) => return Clearing::Later,
        }
        let slice = Operation::ChangeSet(Box::new(SetChange::Clear));
        let written = self.transaction(std::slice::from_ref(&slice));
        self.note(written.as_ref().err());
        let is_written = written.is_ok_and(|results| results.iter().all(Result::is_ok));
        if is_written { Clearing::Due } else { Clearing::Later }
    }

    /// Tries once more to write the ends that could not be written. What fails waits on.
    fn write_ended(&mut self) -> Result<(), Error> {
        for operation in self.shared.ended.waiting() {
            let results = self.transaction(std::slice::from_ref(&operation));
            self.note(results.as_ref().err());
            results?.into_iter().collect::<Result<Vec<_>, _>>()?;
            self.shared.ended.note(&operation, true);
        }
        Ok(())
    }

    fn one_by_one(&mut self, operations: &[Operation]) -> Vec<Result<Outcome, Error>> {
        let mut failures = 0;
        let mut results = Vec::with_capacity(operations.len());
        for operation in operations {
            let last: Option<&Result<Outcome, Error>> = results.last();
            let result = match last {
                Some(Err(error)) if failures >= SINGLE_FAILURES_MAX => Err(error.clone()),
                _ => {
                    let written = self.transaction(std::slice::from_ref(operation));
                    self.note(written.as_ref().err());
                    written.and_then(|mut results| results.pop().unwrap_or(Ok(Outcome::Done)))
                }
            };
            failures = if result.is_err() { failures + 1 } else { 0 };
            results.push(result);
        }
        results
    }

    /// One transaction over all of `operations`. An error is one of the whole: nothing was committed.
    fn transaction(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<Outcome, Error>>, Error> {
        self.set_durable(operations.iter().any(Operation::must_last))?;
        self.begin()?;
        let epoch = self.shared.rules.epoch();
        let mut context = Context { epoch, uses_written: self.uses_written };
        let written = self.apply_all(operations, &mut context);
        // As they will be, so that nothing has to be read after the COMMIT.
        let rules = match context.epoch == epoch {
            true => Ok(None),
            false => {
                rule_rows::image(&self.connection, context.epoch).map(Some).map_err(Error::from)
            }
        };
        let (written, rules) = match rules {
            Ok(rules) => (written, rules),
            Err(error) => (Err(error), None),
        };
        let keys: Vec<Key> = written
            .iter()
            .flat_map(|(_, records)| records.iter().map(|(key, _)| key.clone()))
            .collect();
        for key in &keys {
            self.shared.hot.hold(key);
        }
        match self.finish(written) {
            Ok((results, records)) => {
                if let Some(rules) = rules {
                    self.shared.rules.replace(rules);
                }
                self.install(records);
                Ok(results)
            }
            Err(error) => {
                // What was hot is as true as before, but it is simpler to read it again.
                for key in keys {
                    self.shared.settle(key, None);
                }
                Err(error)
            }
        }
    }

    fn set_durable(&mut self, durable: bool) -> Result<(), Error> {
        if self.durable != Some(durable) {
            let level = if durable { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.durable = Some(durable);
        }
        Ok(())
    }

    fn begin(&self) -> rusqlite::Result<()> {
        self.shared.faults.check()?;
        self.step("BEGIN IMMEDIATE")
    }

    fn step(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    /// Commits, or takes everything back.
    fn finish<T>(&self, written: Result<T, Error>) -> Result<T, Error> {
        let committed = written.and_then(|value| {
            self.shared.faults.check()?;
            self.step("COMMIT")?;
            Ok(value)
        });
        // SQLite may have rolled back by itself, and then there is nothing to take back.
        if committed.is_err()
            && !self.connection.is_autocommit()
            && let Err(error) = self.step("ROLLBACK")
        {
            tracing::warn!(%error, "a failed transaction could not be taken back");
        }
        committed
    }

    #[expect(clippy::type_complexity, reason = "results of the operations, and records to install")]
    fn apply_all(
        &self,
        operations: &[Operation],
        context: &mut Context,
    ) -> Result<(Vec<Result<Outcome, Error>>, Vec<(Key, Option<Record>)>), Error> {
        let mut changed = HashSet::new();
        let mut results = Vec::with_capacity(operations.len());
        let mut records = Vec::new();
        for operation in operations {
            let result = self.apply(operation, context)?;
            results.push(result.map(|applied| {
                for (position, key) in applied.changed.into_iter().enumerate() {
                    if changed.insert(key.clone()) {
                        let worth = operation.warms() && operation::worth_reading(position, &key);
                        records.push((key, worth));
                    }
                }
                applied.outcome
            }));
        }
        let records = records
            .into_iter()
            .map(|(key, worth)| {
                // What cannot be read is forgotten; a reader will say what is wrong with it.
                let record = if worth { self.read_back(&key).ok().flatten() } else { None };
                (key, record)
            })
            .collect();
        Ok((results, records))
    }

    /// One operation in its savepoint, unless the whole transaction is its own. The outer error means that the transaction is lost.
    fn apply(
        &self,
        operation: &Operation,
        context: &mut Context,
    ) -> rusqlite::Result<Result<Applied, Error>> {
        let alone = operation.stands_alone();
        if !alone {
            self.step("SAVEPOINT operation")?;
        }
        let applied = self
            .shared
            .faults
            .check()
            .map_err(Failure::from)
            .and_then(|()| operation.apply(&self.connection, context));
        match applied {
            Ok(done) => {
                if !alone {
                    self.step("RELEASE operation")?;
                }
                Ok(Ok(done))
            }
            Err(Failure::Sql(error)) if self.connection.is_autocommit() => Err(error),
            Err(failure) => {
                if alone {
                    self.step("ROLLBACK")?;
                    self.step("BEGIN IMMEDIATE")?;
                } else {
                    self.step("ROLLBACK TO operation")?;
                    self.step("RELEASE operation")?;
                }
                if let Failure::Sql(error) = &failure {
                    self.shared.note_damage(error);
                }
                let refused = matches!(failure, Failure::Rejected(_));
                let error = Error::from(failure);
                if !refused {
                    self.shared.metrics.count_failure(&error);
                }
                Ok(Err(error))
            }
        }
    }

    fn read_back(&self, key: &Key) -> rusqlite::Result<Option<Record>> {
        let rows = &self.connection;
        Ok(match key {
            Key::Tag(repository, tag) => query::tag(rows, repository, tag)?.map(Record::Tag),
            Key::Object(digest) => query::object(rows, digest)?.map(Record::Object),
            Key::Member(repository, digest) => {
                query::lookup(rows, repository, digest)?.member.map(Record::Member)
            }
            Key::Visibility(repository) => query::visibility(rows, repository)?
                .map(|(public, checked)| Record::Visibility(public, checked)),
        })
    }

    /// After COMMIT, before the answers.
    fn install(&self, records: Vec<(Key, Option<Record>)>) {
        for (key, record) in records {
            self.shared.settle(key, record);
        }
        // The figures are for the metrics page only; the next group sets them again.
        if let Ok(usage) = query::usage(&self.connection) {
            self.shared.metrics.set_usage(usage);
        }
    }

    /// One transaction of a flush, and its answers after the last or a failure. What fails stays pending.
    fn flush_one(&mut self, flush: &mut Flush) {
        let mut result = self.flush_slice();
        flush.slices = if result.is_ok() { flush.slices - 1 } else { 0 };
        if flush.slices == 0 {
            result = result.and(self.write_ended());
            for answer in flush.answers.drain(..) {
                reply(answer, result.clone());
            }
        }
    }

    /// Writes all pending entries as they are now.
    fn flush(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for _slice in 0..self.slices() {
            result = self.flush_slice();
            if result.is_err() {
                break;
            }
        }
        result.and(self.write_ended())
    }

    fn flush_slice(&mut self) -> Result<(), Error> {
        let batch = self.shared.pending.batch(FLUSH_SLICE);
        if batch.is_empty() {
            return Ok(());
        }
        let result = self.write_batch(&batch);
        self.note(result.as_ref().err());
        result
    }

    fn write_batch(&mut self, batch: &Batch) -> Result<(), Error> {
        self.set_durable(false)?;
        self.begin()?;
        let written = self.write_slice(batch).inspect_err(|error| self.shared.note_damage(error));
        let written = written.map_err(Error::from);
        self.finish(written)?;
        for (repository, tag, at) in &batch.confirmed {
            self.shared.confirm_hot(repository, tag, *at);
        }
        self.shared.pending.written(batch);
        Ok(())
    }

    fn write_slice(&self, batch: &Batch) -> rusqlite::Result<()> {
        self.shared.faults.check()?;
        for (repository, tag, at) in &batch.confirmed {
            operation::confirm(&self.connection, repository, tag, *at)?;
        }
        for (digest, at) in &batch.touched {
            presence::touch_digest(&self.connection, digest, *at)?;
        }
        for (repository, what, miss) in &batch.missed {
            wanted_rows::add(&self.connection, repository, what, miss)?;
        }
        Ok(())
    }

    /// Counts failed transactions, and says in the log when they begin and when they are over.
    fn note(&mut self, failure: Option<&Error>) {
        if let Some(error) = failure {
            self.shared.metrics.count_failure(error);
            if !self.failing {
                tracing::warn!(%error, "the metadata store cannot write; pulls go on without it");
            }
        } else if self.failing {
            tracing::info!("the metadata store takes writes again");
        }
        self.failing = failure.is_some();
    }
}

/// The caller may have gone; the write stands all the same.
fn reply<T>(answer: oneshot::Sender<Result<T, Error>>, result: Result<T, Error>) {
    if answer.send(result).is_err() {
        tracing::trace!("nobody waits for the answer to a write");
    }
}
