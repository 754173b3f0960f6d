//! From the command line to an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use super::arguments::{Cli, Command, Verify};
use super::{banner, serve, store};
use crate::app::{Config, JobKind, Mistake, Sources};

/// It could not be done.
pub(super) const FAILED: u8 = 1;
/// The arguments or the configuration are wrong. The same as clap's.
pub(super) const WRONG_USAGE: u8 = 2;
/// Ended by Ctrl-C or SIGTERM, as shells tell it (128 and the number of SIGINT).
pub(super) const INTERRUPTED: u8 = 130;

/// Runs the program with the arguments of the process.
pub fn run() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(refusal) => {
            // Help and version come this way too; they print on standard output. Nobody can be told that telling failed.
            drop(refusal.print());
            return ExitCode::from(u8::try_from(refusal.exit_code()).unwrap_or(WRONG_USAGE));
        }
    };
    match command {
        Command::Serve(options) => serve::serve(&options.into_sources()),
        Command::CheckConfig(options) => check_config(&options.into_sources()),
        Command::Verify(Verify { repair, store }) => {
            store::run(&store, if repair { JobKind::Repair } else { JobKind::Verify })
        }
        Command::Reindex(store) => store::run(&store, JobKind::Reindex),
    }
}

fn check_config(sources: &Sources) -> ExitCode {
    let config = match Config::load(sources) {
        Ok(config) => config,
        Err(errors) => return refuse_config(errors.mistakes()),
    };
    for warning in &config.warnings {
        complain(&format!("warning: {warning}"));
    }
    let mistakes = config.check_upstreams();
    if !mistakes.is_empty() {
        return refuse_config(&mistakes);
    }
    let mut lines = vec!["the configuration is valid".to_owned(), banner::upstreams(&config)];
    lines.extend(banner::proxies(&config));
    say(&lines.join("\n"));
    ExitCode::SUCCESS
}

/// Tells every mistake of a configuration.
pub(super) fn refuse_config(mistakes: &[Mistake]) -> ExitCode {
    let count = mistakes.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    complain(&format!("{count} {noun} in the configuration:"));
    for mistake in mistakes {
        complain(&mistake.to_string());
    }
    ExitCode::from(WRONG_USAGE)
}

/// Lines for standard output. A reader that is gone is no reason to stop.
pub(super) fn say(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "standard output is closed");
    }
}

/// A line for standard error, with the program's name.
pub(super) fn complain(line: &str) {
    let mut out = io::stderr().lock();
    if let Err(error) = writeln!(out, "roadstead: {line}") {
        tracing::debug!(%error, "standard error is closed");
    }
}
