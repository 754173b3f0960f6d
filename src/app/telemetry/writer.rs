//! A thread that writes log lines, so that a slow or stuck reader of the log never stops a request.
//!
//! The queue is bounded in bytes. When it is full, lines are dropped and counted, and the count is logged when there is room again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Lines on their way may take this much memory.
const QUEUE_BYTES_MAX: usize = 4 << 20;
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
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that found no room since the last report.
    dropped: u64,
    /// The thread has taken lines that are not written yet.
    writing: bool,
}

impl Writer {
    /// Starts the thread. It ends with the process.
    pub(super) fn start(mut sink: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Queue(Arc::new(Shared::default()));
        let source = queue.clone();
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || {
            loop {
                source.write_batch(&mut sink);
            }
        })?;
        Ok(Self { queue })
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Waits until all lines are written, but not for ever.
    pub(super) fn finish(self) {
        let shared = &self.queue.0;
        let is_busy = |state: &mut State| state.writing || !state.lines.is_empty();
        let state = shared.state();
        drop(shared.emptied.wait_timeout_while(state, FINISH_WAIT, is_busy));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete in itself, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Waits for lines, writes all of them, and reports those that were dropped meanwhile.
    fn write_batch(&self, sink: &mut impl Write) {
        let mut state = self.0.state();
        while state.lines.is_empty() {
            let woken = self.0.filled.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        let lines = std::mem::take(&mut state.lines);
        let dropped = std::mem::take(&mut state.dropped);
        state.bytes = 0;
        state.writing = true;
        drop(state);
        let batch: Vec<u8> = lines.into_iter().flatten().collect();
        // A log that cannot be written has nobody to be told of it.
        let written = sink.write_all(&batch).and_then(|()| sink.flush());
        if dropped > 0 && written.is_ok() {
            tracing::warn!(dropped, "log lines were dropped: the reader of the log is too slow");
        }
        self.0.state().writing = false;
        self.0.emptied.notify_all();
    }
}

impl Write for Queue {
    /// Takes the line at once, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        if state.bytes + line.len() > QUEUE_BYTES_MAX {
            state.dropped += 1;
        } else {
            state.bytes += line.len();
            state.lines.push_back(line.to_vec());
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A sink that the test can read.
    #[derive(Clone)]
    pub(crate) struct Shared(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that says when it is asked to write and waits for permission.
    struct Gate {
        asked: mpsc::Sender<usize>,
        permit: mpsc::Receiver<()>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked.send(bytes.len()).unwrap();
            self.permit.recv().unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let sink = Shared(Arc::new(Mutex::new(Vec::new())));
        let writer = Writer::start(sink.clone()).unwrap();
        let mut queue = writer.queue();
        for number in 0..1000 {
            writeln!(queue, "line {number}").unwrap();
        }
        writer.finish();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let wanted: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_stuck_reader_stops_nobody_and_costs_bounded_memory() {
        let (asked, was_asked) = mpsc::channel();
        let (permit, permits) = mpsc::channel();
        let writer = Writer::start(Gate { asked, permit: permits }).unwrap();
        let mut queue = writer.queue();
        queue.write_all(b"first\n").unwrap();
        was_asked.recv().unwrap();
        let line = vec![b'x'; 64 << 10];
        for _ in 0..1000 {
            queue.write_all(&line).unwrap();
        }
        let state = queue.0.state();
        assert!(state.bytes <= QUEUE_BYTES_MAX);
        assert!(state.dropped >= 900, "{} dropped", state.dropped);
        drop(state);
        permit.send(()).unwrap();
        let rest = was_asked.recv().unwrap();
        assert!(rest <= QUEUE_BYTES_MAX);
        permit.send(()).unwrap();
        writer.finish();
    }
}
