//! roadstead beside its peers: starts them all on loopback, measures them in turn, and prints a table of medians.
//!
//! `benches/run` is the way to start it, `docs/performance.md` tells the method. What must hold: the servers are measured in turn, so
//! that what disturbs one disturbs all; nothing is left out in silence; nobody and nothing is left over, also when the run is
//! interrupted. In its tiny size this is a check that runs in CI: all figures are there and all bytes are right, whatever they cost.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

mod bench;
mod client;
mod cold;
mod figures;
mod image;
mod options;
mod origin;
mod peers;
mod process;
mod store;
mod table;
mod targets;
mod warm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use bench::{Bench, load_average};
use options::{Measure, Options, USAGE};
use table::eprint;

/// Whatever went wrong, in words.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Set to `1` where a peer that is missing is a failure.
const REQUIRE: &str = "TESTS_REQUIRE_CLIENTS";
/// How often files are removed that are still being made, and how long after each other.
const REMOVALS_MAX: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    match Options::read(std::env::args().skip(1)) {
        Ok(options) if options.help => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(options) => watched(options).unwrap_or_else(|error| failed(&error)),
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    eprint(&format!("error: {error}"));
    ExitCode::FAILURE
}

/// Runs in a thread of its own, so that an interruption ends the servers and removes their files.
fn watched(options: Options) -> Result<ExitCode> {
    fs::create_dir_all(&options.directory)?;
    let home = tempfile::Builder::new().prefix("bench-").tempdir_in(&options.directory)?;
    let path = std::path::absolute(home.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, end) = oneshot::channel();
    let ended = runtime.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        thread::spawn(move || done.send(run(options, &path)));
        tokio::select! {
            result = end => result.map_err(|_panicked| Error::from("the harness panicked"))?,
            _ = interrupted.recv() => Err("interrupted".into()),
            _ = terminated.recv() => Err("terminated".into()),
            _ = hung_up.recv() => Err("the terminal has gone".into()),
        }
    });
    process::end_all();
    remove(home.keep())?;
    ended
}

/// Removes the files of the run. After an interruption the harness may still be making some.
fn remove(home: PathBuf) -> Result<()> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match fs::remove_dir_all(&home) {
            Err(_busy) if attempts < REMOVALS_MAX => thread::park_timeout(REMOVAL_PAUSE),
            removed => {
                return removed.map_err(|error| format!("{}: {error}", home.display()).into());
            }
        }
    }
}

fn run(options: Options, home: &Path) -> Result<ExitCode> {
    let required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
    let load_before = load_average();
    let mut bench = Bench::new(options, home, required)?;
    for measure in bench.options.only.clone() {
        match measure {
            Measure::Manifests => warm::manifests(&mut bench),
            Measure::Blobs => warm::blobs(&mut bench),
            Measure::Cold => cold::one(&mut bench),
            Measure::Many => cold::many(&mut bench),
            Measure::Slow => cold::slow(&mut bench),
            Measure::Image => cold::image(&mut bench),
            Measure::Start => store::start(&mut bench),
            Measure::Growth => store::growth(&mut bench),
        }
        if process::is_over() {
            return Err("interrupted".into());
        }
    }
    bench.remember();
    let head = bench.head(&load_before);
    let table = &bench.table;
    if bench.options.markdown {
        println!("{}\n\n{}", head.join(". "), table.markdown());
    } else {
        println!("{}\n\n{}", head.join("\n"), table.text());
    }
    if let Some(file) = &bench.options.json {
        fs::write(file, format!("{:#}\n", table.json(&head)))?;
    }
    let mut wrong = table.holes();
    if bench.options.tiny {
        wrong.extend(table.broken());
    }
    for line in &wrong {
        eprint(&format!("wrong: {line}"));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
