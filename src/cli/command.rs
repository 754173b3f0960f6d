//! From the command line to an exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use super::arguments::{Cli, Command, Verify};
use super::job::Job;
use super::request::RuleKind;
use super::{banner, images, job, list, lock, request, serve};
use crate::app::{Config, Mistake, Sources};

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
        Command::Ls(list) => list::tags(&list),
        Command::History(image) => list::history(&image),
        Command::Inspect(image) => request::inspect(&image),
        Command::Explain(image) => request::explain(&image),
        Command::Pin(rule) => request::rule(RuleKind::Pin, &rule),
        Command::Unpin(gone) => request::rule_gone(RuleKind::Pin, &gone),
        Command::Freeze(rule) => request::rule(RuleKind::Freeze, &rule),
        Command::Unfreeze(gone) => request::rule_gone(RuleKind::Freeze, &gone),
        Command::Lock(lock) => lock::lock(&lock),
        Command::Delete(delete) => request::delete(&delete),
        Command::Refresh(image) => request::refresh(&image),
        Command::Du(store) => request::usage(&store),
        Command::Purge(purge) => job::purge(&purge),
        Command::Gc(gc) => job::run(&gc.store, &Job::Gc { dry_run: gc.dry_run }),
        Command::CheckOffline(check) => images::check(&check),
        Command::Warm(warm) => images::warm(&warm),
        Command::Wanted(wanted) => images::wanted(&wanted),
        Command::Offline(switch) => images::switch(&switch, true),
        Command::Online(switch) => images::switch(&switch, false),
        Command::Record(record) => images::record(&record),
        Command::Set(sets) => images::sets(&sets),
        Command::Export(export) => images::export(&export),
        Command::Import(import) => images::import(&import),
        Command::Verify(Verify { repair: true, store }) => job::run(&store, &Job::Repair),
        Command::Verify(Verify { repair: false, store }) => job::run(&store, &Job::Verify),
        Command::Reindex(store) => job::run(&store, &Job::Reindex),
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

/// Text for standard output, as it is.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Lines for standard output. A reader that is gone is no reason to stop.
pub(super) fn say(text: &str) {
    if let Err(error) = print(&format!("{text}\n")) {
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

/// Says what could not be done.
pub(super) fn fail(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(FAILED)
}
