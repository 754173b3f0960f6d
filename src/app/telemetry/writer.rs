//! A thread that writes log lines, so that a slow or stuck reader of the log never stops a request.
//!
//! Lines of requests come as values and become text here, in one buffer that is kept; all other lines come as text, in the same queue,
//! so that the order is kept. The queue is bounded in bytes. When it is full, lines are dropped and counted, and the count is logged when
//! there is room again. To wake a thread costs a request more than its line, so after each batch the thread gathers for a moment;
//! a line that comes when there was none is written at once.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::lines::{Formatter, Style};
use crate::server::AccessLine;

/// Lines on their way may take this much memory.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// So long lines of requests are gathered after a batch.
const GATHER: Duration = Duration::from_millis(20);
/// With so many bytes gathered the thread does not wait longer.
const GATHER_BYTES: usize = QUEUE_BYTES_MAX / 4;
/// So much text is written at once; a batch of more takes several writes.
const WRITE_BYTES: usize = 256 << 10;
/// A batch with room for more lines than this, which a burst leaves behind, is given back.
const KEEP_LINES: usize = 2048;
/// A sink that takes nothing at this moment, and would not wait, is asked again after so long: it tells of no event to wait for.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// How long the end waits for the last lines.
const FINISH_WAIT: Duration = Duration::from_secs(2);

/// The writing side: a thread and the queue before it.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Queue,
}

/// Where lines are put. A write is a whole line.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
    /// Lines that found no room, ever.
    dropped: Counter,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    bytes: usize,
    /// One of them does not wait.
    urgent: bool,
    /// Lines that found no room since the last report.
    dropped: u64,
    /// What the thread does.
    thread: Activity,
}

#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are the large one, and a box for each would be freed by another thread than made it"
)]
#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    Access(AccessLine),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Activity {
    /// It writes, or was woken to.
    #[default]
    Awake,
    /// It sleeps for a moment, while lines of requests gather.
    Gathering,
    /// It sleeps until there is a line.
    Asleep,
}

/// What the thread keeps between batches.
struct Desk<W> {
    sink: W,
    formatter: Formatter,
    lines: Vec<Line>,
    text: Vec<u8>,
}

impl Writer {
    /// Starts the thread. It ends with the process. `report` is told how many lines were dropped since it was last told.
    pub(super) fn start(
        sink: impl Write + Send + 'static,
        style: Style,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Queue(Arc::new(Shared::default()));
        let source = queue.clone();
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || {
            let formatter = Formatter::new(style);
            let mut desk = Desk { sink, formatter, lines: Vec::new(), text: Vec::new() };
            loop {
                source.write_batch(&mut desk, &report);
            }
        })?;
        Ok(Self { queue })
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Waits until all lines are written, but not for ever. So does whoever drops it.
    pub(super) fn finish(self) {
        drop(self);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let shared = &self.queue.0;
        let mut state = shared.state();
        shared.wake(&mut state);
        let is_busy =
            |state: &mut State| state.thread == Activity::Awake || !state.lines.is_empty();
        drop(shared.emptied.wait_timeout_while(state, FINISH_WAIT, is_busy));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete in itself, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it sleeps.
    fn wake(&self, state: &mut State) {
        if state.thread != Activity::Awake {
            state.thread = Activity::Awake;
            self.filled.notify_one();
        }
    }
}

impl Queue {
    /// Lines that found no room, ever.
    pub(super) fn dropped(&self) -> &Counter {
        &self.0.dropped
    }

    /// Takes the line of a request at once, or drops it.
    pub(super) fn send(&self, line: AccessLine) {
        let bytes = size_of::<Line>() + line.heap_bytes();
        let mut state = self.0.state();
        if self.put(&mut state, Line::Access(line), bytes)
            && (state.thread == Activity::Asleep || state.bytes >= GATHER_BYTES)
        {
            self.0.wake(&mut state);
        }
    }

    /// Did the line find room?
    fn put(&self, state: &mut State, line: Line, bytes: usize) -> bool {
        if state.bytes + bytes > QUEUE_BYTES_MAX {
            state.dropped += 1;
            self.0.dropped.inc();
            return false;
        }
        state.bytes += bytes;
        state.lines.push(line);
        true
    }

    /// Waits for lines, writes all of them, reports those that were dropped meanwhile, and gathers.
    fn write_batch<W: Write>(&self, desk: &mut Desk<W>, report: &impl Fn(u64)) {
        let mut state = self.0.state();
        while state.lines.is_empty() {
            state.thread = Activity::Asleep;
            self.0.emptied.notify_all();
            let woken = self.0.filled.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.thread = Activity::Awake;
        mem::swap(&mut state.lines, &mut desk.lines);
        (state.bytes, state.urgent) = (0, false);
        let dropped = mem::take(&mut state.dropped);
        drop(state);
        let written = desk.write();
        if dropped > 0 && written.is_ok() {
            report(dropped);
        }
        let mut state = self.0.state();
        if state.urgent || state.bytes >= GATHER_BYTES {
            return;
        }
        state.thread = Activity::Gathering;
        self.0.emptied.notify_all();
        let gathers = |state: &mut State| state.thread == Activity::Gathering;
        drop(self.0.filled.wait_timeout_while(state, GATHER, gathers));
    }
}

impl<W: Write> Desk<W> {
    /// Writes the lines that were taken.
    fn write(&mut self) -> io::Result<()> {
        let mut lines = mem::take(&mut self.lines);
        let mut written = Ok(());
        self.formatter.begin();
        for line in lines.drain(..) {
            match line {
                Line::Text(text) => self.text.extend_from_slice(&text),
                Line::Access(line) => self.formatter.write(&line, &mut self.text),
            }
            if self.text.len() >= WRITE_BYTES {
                written = written.and(self.put_out());
            }
        }
        written = written.and(self.put_out());
        if lines.capacity() <= KEEP_LINES {
            self.lines = lines;
        }
        written
    }

    fn put_out(&mut self) -> io::Result<()> {
        // A log that cannot be written has nobody to be told of it.
        let written = self.write_all().and_then(|()| self.sink.flush());
        self.text.clear();
        written
    }

    /// Standard error may be a terminal or a pipe that another process has made not to wait; this thread waits all the same.
    fn write_all(&mut self) -> io::Result<()> {
        let mut rest = &self.text[..];
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::park_timeout(ASK_AGAIN)
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Write for Queue {
    /// Takes the line at once, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        if self.put(&mut state, Line::Text(line.to_vec()), size_of::<Line>() + line.len()) {
            state.urgent = true;
            self.0.wake(&mut state);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
pub(super) mod tests;
