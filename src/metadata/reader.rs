//! The reader threads.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;

use super::queue::{Received, Receiver};

/// One read, with the way to its answer inside.
pub(super) enum Read {
    Run(Box<dyn FnOnce(&Connection) + Send>),
    /// Ends one thread.
    End,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run(_) => "Run",
            Self::End => "End",
        })
    }
}

/// Starts a thread that takes its reads from a queue shared with its siblings.
pub(super) fn spawn(
    connection: Connection,
    queue: Arc<Mutex<Receiver<Read>>>,
    number: usize,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(format!("metadata-read-{number}"))
        .spawn(move || run(&connection, &queue))
}

fn run(connection: &Connection, queue: &Mutex<Receiver<Read>>) {
    loop {
        // Only one sibling waits in the queue itself; the others wait for the mutex.
        let received = queue.lock().unwrap_or_else(PoisonError::into_inner).receive(None);
        match received {
            Received::Message(Read::Run(read)) => read(connection),
            Received::Message(Read::End) | Received::Closed => return,
            Received::TimedOut => {}
        }
    }
}
