//! Keeps every log line of this process, so that a test can look for a secret in it, or for a word that must be there.

use std::io;
use std::sync::{Mutex, MutexGuard, Once};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Everything of the product down to its finest level, and the warnings of its libraries.
const FILTER: &str = "roadstead=trace,warn";

/// Sets the process's log up, once.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(FILTER))
            .with_ansi(false)
            .with_writer(Sink)
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("nobody else sets the log up");
    });
}

fn lines() -> MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A place in the log, for [`since`].
pub fn position() -> usize {
    lines().len()
}

pub fn since(position: usize) -> Vec<String> {
    lines()[position..].to_vec()
}

struct Sink;

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lines().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
