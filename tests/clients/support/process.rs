//! A child process whose output is read line by line, that can be waited for without polling, and that never
//! outlives its owner.
//!
//! What must hold: a child is ended by its own id and only while nobody has reaped it, so that the id cannot
//! belong to somebody else. Everything that waits has a deadline and shows the output when it passes.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// How long a daemon may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the readers may take to see the end of the output after the child has ended. A grandchild that
/// inherited the pipe keeps it open; its later words are not waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Lines of output shown when something fails.
const TAIL: usize = 60;

/// Where a line came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// What the watching threads know.
#[derive(Default)]
struct Known {
    lines: Vec<(Stream, String)>,
    open_streams: usize,
    ended: bool,
}

/// The meeting point of the watching threads and the test.
#[derive(Default)]
struct Board {
    known: Mutex<Known>,
    changed: Condvar,
}

impl Board {
    /// The knowledge. A test that panicked while it held the lock left it in order: nothing is half done under it.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `met` is true; false when the time is over first.
    fn wait(&self, limit: Duration, met: impl Fn(&Known) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut known = self.lock();
        while !met(&known) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(known, left);
            known = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A running child.
pub(crate) struct Watched {
    name: String,
    child: Child,
    board: Arc<Board>,
    status: Option<ExitStatus>,
}

/// What a command left when it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The output of a command that must succeed.
    #[track_caller]
    pub(crate) fn success(self, what: &str) -> String {
        assert!(self.status.success(), "{what}: {}\n{}\n{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

impl Watched {
    /// Starts `command` with no stdin and with its output watched.
    #[track_caller]
    pub(crate) fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let board = Arc::new(Board::default());
        board.lock().open_streams = 2;
        watch(&board, Stream::Out, child.stdout.take().expect("stdout was piped"));
        watch(&board, Stream::Err, child.stderr.take().expect("stderr was piped"));
        let pid = pid_of(&child);
        let waiter = Arc::clone(&board);
        // WNOWAIT leaves the ended child unreaped: its id stays ours until `Child::wait` gives it back.
        thread::spawn(move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
            waiter.lock().ended = true;
            waiter.changed.notify_all();
        });
        Self { name: name.to_owned(), child, board, status: None }
    }

    /// Runs `command` to its end; fails the test when it takes longer than `limit`.
    #[track_caller]
    pub(crate) fn run(name: &str, command: &mut Command, limit: Duration) -> Finished {
        let mut child = Self::start(name, command);
        assert!(child.wait_end(limit), "{name} did not end within {limit:?}\n{}", child.tail());
        child.board.wait(LAST_WORDS, |known| known.open_streams == 0);
        let status = child.reap();
        let known = child.board.lock();
        let text = |stream| {
            let lines = known.lines.iter().filter(|(from, _)| *from == stream);
            lines.map(|(_, line)| format!("{line}\n")).collect::<String>()
        };
        Finished { status, stdout: text(Stream::Out), stderr: text(Stream::Err) }
    }

    /// Waits for a line for which `pick` gives something. `None` when the child ended, or `limit` passed, without it.
    pub(crate) fn line<T>(&self, limit: Duration, pick: impl Fn(&str) -> Option<T>) -> Option<T> {
        let find = |known: &Known| known.lines.iter().find_map(|(_, line)| pick(line));
        let over = |known: &Known| known.ended && known.open_streams == 0;
        self.board.wait(limit, |known| find(known).is_some() || over(known));
        find(&self.board.lock())
    }

    /// Waits until the lines so far satisfy `met`; false when `limit` passed first.
    pub(crate) fn wait_lines(&self, limit: Duration, met: impl Fn(&[String]) -> bool) -> bool {
        self.board.wait(limit, |known| met(&Self::texts(known)))
    }

    /// All lines so far, in the order in which they were read.
    pub(crate) fn lines(&self) -> Vec<String> {
        Self::texts(&self.board.lock())
    }

    fn texts(known: &Known) -> Vec<String> {
        known.lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// Waits for the end of the child; false when `limit` passed first.
    fn wait_end(&self, limit: Duration) -> bool {
        self.board.wait(limit, |known| known.ended)
    }

    /// Sends a signal to the child unless it was reaped.
    fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // The child may have ended on its own; unreaped, its id still takes the signal.
            kill_process(pid_of(&self.child), signal).expect("an unreaped child takes a signal");
        }
    }

    /// The status of an ended child.
    fn reap(&mut self) -> ExitStatus {
        *self.status.get_or_insert_with(|| self.child.wait().expect("a child can be waited for"))
    }

    /// Asks the child to end and waits; `None` when it had to be killed.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let willing = self.wait_end(PATIENCE);
        if !willing {
            self.signal(Signal::KILL);
        }
        let status = self.reap();
        (willing && status.signal() != Some(Signal::KILL.as_raw())).then_some(status)
    }

    /// Kills the child at once, as a power cut would, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.reap();
    }

    /// The last lines of the output.
    pub(crate) fn tail(&self) -> String {
        let known = self.board.lock();
        let skipped = known.lines.len().saturating_sub(TAIL);
        let lines = known.lines.iter().skip(skipped);
        lines.map(|(_, line)| format!("{}: {line}\n", self.name)).collect()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.stop();
        }
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// The id of a child.
fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Reads a stream line by line until its end, in a thread of its own.
fn watch(board: &Arc<Board>, stream: Stream, source: impl Read + Send + 'static) {
    let board = Arc::clone(board);
    thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            board.lock().lines.push((stream, text));
            board.changed.notify_all();
            line.clear();
        }
        board.lock().open_streams -= 1;
        board.changed.notify_all();
    });
}
