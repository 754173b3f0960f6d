//! The long jobs: ask for one, and tell its story to the end.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use super::admin::{Ask, Client, Lines, Trouble};
use super::arguments::{Purge, Store};
use super::command::{FAILED, WRONG_USAGE, complain, say};
use super::reach::{Done, with_client};
use super::story::Story;
use crate::app::{Event, Opening};
use crate::oci::looks_like_host;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Verify,
    Repair,
    Reindex,
    Gc {
        dry_run: bool,
    },
    /// The kind is `registry` or `repository`.
    Purge {
        within: String,
        kind: &'static str,
    },
}

impl Job {
    fn ask(&self) -> Ask {
        match self {
            Self::Verify => Ask::post("/verify"),
            Self::Repair => Ask::post("/verify").with_flag("repair", true),
            Self::Reindex => Ask::post("/reindex"),
            Self::Gc { dry_run } => Ask::post("/gc").with_flag("dry_run", *dry_run),
            Self::Purge { within, kind } => {
                Ask::post("/purge").with("within", within).with("kind", kind)
            }
        }
    }

    /// What sets right what is wrong is not stopped by damaged metadata.
    fn opening(&self) -> Opening {
        match self {
            Self::Repair | Self::Reindex => Opening::Repair,
            Self::Verify | Self::Gc { .. } | Self::Purge { .. } => Opening::AsItIs,
        }
    }
}

/// Takes out a registry or a repository.
pub(super) fn purge(arguments: &Purge) -> ExitCode {
    let Purge { repository, upstream, store } = arguments;
    let (within, kind) = match (upstream, repository.as_deref()) {
        (Some(upstream), _) => (upstream.as_str(), "registry"),
        // A whole registry goes only where it is called one.
        (None, Some(name)) if !name.contains('/') && looks_like_host(name) => {
            complain(&format!(
                "{name} is a registry; `roadstead purge --upstream {name}` takes out all of it"
            ));
            return ExitCode::from(WRONG_USAGE);
        }
        // An alias may look like a repository, so the other side is told what is meant.
        (None, name) => (name.unwrap_or_default(), "repository"),
    };
    run(store, &Job::Purge { within: within.to_owned(), kind })
}

/// Runs a job over the store that the arguments name.
pub(super) fn run(arguments: &Store, job: &Job) -> ExitCode {
    with_client(arguments, job.opening(), async |client| tell(client, arguments.json, job).await)
}

/// Begins the job and tells its story to the end.
async fn tell(client: &Client<'_>, json: bool, job: &Job) -> Done {
    let mut lines = client.begin(job.ask()).await?;
    let last = if json {
        repeat(&mut lines).await
    } else {
        narrate(&mut lines, job, &client.through()).await
    }?;
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
async fn narrate(lines: &mut Lines, job: &Job, through: &str) -> Result<Option<Event>, Trouble> {
    let mut story = Story::begin(job, io::stderr().is_terminal());
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
