//! `roadstead verify` and `roadstead reindex`: find out who has the store, ask him, and tell what he says.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::admin::{self, Lines, Trouble};
use super::arguments::Store;
use super::command::{FAILED, INTERRUPTED, WRONG_USAGE, complain, refuse_config, say};
use super::story::Story;
use crate::app::{AccessError, Config, Event, JobKind, StoppedStore, StoreAccess};

/// Runs a job over the store that the arguments name.
pub(super) fn run(arguments: &Store, kind: JobKind) -> ExitCode {
    let config = match Config::load(&arguments.sources()) {
        Ok(config) => config,
        Err(errors) => return refuse_config(errors.mistakes()),
    };
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads: {error}")),
    };
    runtime.block_on(async {
        let mut interrupts = match Interrupts::new() {
            Ok(interrupts) => interrupts,
            Err(error) => return fail(&format!("no signals: {error}")),
        };
        match StoreAccess::open(&config, kind != JobKind::Verify).await {
            Ok(StoreAccess::Running { socket, pid }) => {
                let by =
                    pid.map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}"));
                match UnixStream::connect(&socket).await {
                    Ok(stream) => {
                        let through = format!("through the running roadstead ({by})");
                        follow(stream, arguments.json, kind, &through, &mut interrupts).await
                    }
                    Err(error) => fail(&format!(
                        "the store in {} is in use by {by}, which cannot be reached: {}: {error}",
                        config.data.display(),
                        socket.display(),
                    )),
                }
            }
            Ok(StoreAccess::Stopped(store)) => {
                let code = beside(&store, arguments.json, kind, &mut interrupts).await;
                store.close().await;
                code
            }
            Err(error) => {
                complain(&error.to_string());
                ExitCode::from(if matches!(error, AccessError::NoStore { .. }) {
                    WRONG_USAGE
                } else {
                    FAILED
                })
            }
        }
    })
}

/// Works on a store that is open in this process.
async fn beside(
    store: &StoppedStore,
    json: bool,
    kind: JobKind,
    interrupts: &mut Interrupts,
) -> ExitCode {
    if let Some(lost) = store.lost_metadata() {
        let lost = lost.display();
        complain(&format!("the metadata file could not be used and was moved to {lost}"));
    }
    follow(store.connect(), json, kind, "directly: no server runs", interrupts).await
}

/// Begins the job and tells its story to the end.
async fn follow(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    json: bool,
    kind: JobKind,
    through: &str,
    interrupts: &mut Interrupts,
) -> ExitCode {
    let tasks = TaskTracker::new();
    let told = tokio::select! {
        told = tell(stream, &tasks, json, kind, through) => told,
        () = interrupts.next() => {
            complain("interrupted; nothing is left half done");
            return ExitCode::from(INTERRUPTED);
        }
    };
    told.unwrap_or_else(|trouble| fail(&trouble.to_string()))
}

async fn tell(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    tasks: &TaskTracker,
    json: bool,
    kind: JobKind,
    through: &str,
) -> Result<ExitCode, Trouble> {
    let mut lines = admin::begin(stream, tasks, kind).await?;
    let last =
        if json { repeat(&mut lines).await } else { narrate(&mut lines, kind, through).await }?;
    if !matches!(last, Some(Event::Ended(_) | Event::Aborted { .. })) {
        complain("the work was cut short: the other side went away");
    }
    Ok(verdict(last.as_ref()))
}

/// For programs: the lines as they come.
async fn repeat(lines: &mut Lines) -> Result<Option<Event>, Trouble> {
    let mut last = None;
    while let Some((line, event)) = lines.next().await? {
        say(&line);
        last = Some(event);
    }
    Ok(last)
}

/// For people.
async fn narrate(
    lines: &mut Lines,
    kind: JobKind,
    through: &str,
) -> Result<Option<Event>, Trouble> {
    let mut story = Story::begin(kind, io::stderr().is_terminal());
    say(&story.title(through));
    let mut last = None;
    while let Some((_, event)) = lines.next().await? {
        story.tell(&event);
        last = Some(event);
    }
    story.end();
    Ok(last)
}

fn verdict(last: Option<&Event>) -> ExitCode {
    match last {
        Some(Event::Ended(report)) if report.is_sound() => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

fn fail(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(FAILED)
}

/// Ctrl-C and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
