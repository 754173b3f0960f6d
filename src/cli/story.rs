//! A job's story for people: findings as lines on standard output, the progress on standard error as a bar on a terminal and as a line
//! now and then elsewhere.

use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::command::{complain, say};
use super::job::Job;
use super::words::{age, clean, count};
use crate::app::{Event, Fate, Finding, Report};
use crate::clock::{Clock, SystemClock};

/// Without a terminal the progress is a line this often.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(10);
/// With a total there is a bar, without one (files that no row knows) only what was read.
pub(super) const BAR: &str = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const COUNTER: &str = "{spinner} {bytes} {bytes_per_sec}";
/// Jobs that read no bytes tell their progress in words.
const WORDS: &str = "{spinner} {msg}";

/// Who tells it.
pub(super) struct Story<'a> {
    job: &'a Job,
    terminal: bool,
    bar: ProgressBar,
    last_line: Instant,
}

impl<'a> Story<'a> {
    pub(super) fn begin(job: &'a Job, terminal: bool) -> Self {
        Self { job, terminal, bar: ProgressBar::hidden(), last_line: Instant::now() }
    }

    /// The first line: what is done, and how.
    pub(super) fn title(&self, through: &str) -> String {
        let doing = match self.job {
            Job::Verify => "reading everything that is stored".to_owned(),
            Job::Repair => {
                "reading everything that is stored and repairing what is damaged".to_owned()
            }
            Job::Reindex => "taking in stored files that the metadata does not know".to_owned(),
            Job::Gc { dry_run: false } => "taking away what nothing needs any more".to_owned(),
            Job::Gc { dry_run: true } => "looking for what nothing needs any more".to_owned(),
            Job::Purge { within, .. } => format!("taking out everything that is known of {within}"),
        };
        format!("{doing}, {through}")
    }

    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::Begun { objects, bytes, .. } => {
                if *bytes > 0 {
                    say(&format!("{objects} objects, {}", HumanBytes(*bytes)));
                }
                self.show_bar(*bytes);
            }
            Event::Progress { objects, bytes } => {
                self.bar.set_position(*bytes);
                let words = match self.job {
                    Job::Gc { .. } => format!("{objects} objects looked at"),
                    _ => format!("{objects} objects, {} read", HumanBytes(*bytes)),
                };
                self.progress(words);
            }
            Event::Purged { repositories, tags, revisions } => {
                self.progress(purged(*repositories, *tags, *revisions));
            }
            Event::Found { finding, digest, file, size, reason } => {
                let mut line = found(*finding, digest, file, *size);
                if let Some(reason) = reason {
                    line = format!("{line}  ({reason})");
                }
                self.line(&line);
            }
            Event::Decided { fate, digest, size, since, reason } => {
                let line = decided(self.job, *fate, digest, *size);
                if let Some(line) = line {
                    let when = age(*since, SystemClock.now());
                    self.line(&format!("{line}  {when}: {reason}"));
                }
            }
            Event::Ended(report) => {
                self.end();
                say(&ended(self.job, report));
            }
            Event::Aborted { reason } => {
                self.end();
                complain(&clean(&format!("not finished: {reason}")));
            }
        }
    }

    fn line(&self, line: &str) {
        self.bar.suspend(|| say(&clean(line)));
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn show_bar(&mut self, total: u64) {
        if !self.terminal {
            return;
        }
        let reads = matches!(self.job, Job::Verify | Job::Repair | Job::Reindex);
        let (bar, template) = match (reads, total) {
            (false, _) => (ProgressBar::no_length(), WORDS),
            (true, 0) => (ProgressBar::no_length(), COUNTER),
            (true, total) => (ProgressBar::new(total), BAR),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(template)
                .expect("the template is a constant that a test reads"),
        );
        self.bar = bar;
    }

    fn progress(&mut self, words: String) {
        if !self.terminal && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            complain(&words);
        } else {
            self.bar.set_message(words);
        }
    }
}

fn purged(repositories: u64, tags: u64, revisions: u64) -> String {
    let repositories = match repositories {
        1 => "1 repository".to_owned(),
        many => format!("{many} repositories"),
    };
    format!("{repositories}, {}, {}", count(tags, "tag"), count(revisions, "revision"))
}

/// What became of an object; what stays is told only to who asked for reasons.
fn decided(job: &Job, fate: Fate, digest: &str, size: u64) -> Option<String> {
    let dry_run = matches!(job, Job::Gc { dry_run: true });
    let word = match (fate, dry_run) {
        (Fate::Collected, false) => "collected",
        (Fate::Collected, true) => "collect",
        (Fate::Evicted, false) => "evicted",
        (Fate::Evicted, true) => "evict",
        (Fate::Failed, _) => "failed",
        (Fate::Kept, true) => "keep",
        (Fate::Waits, true) => "wait",
        (Fate::Kept | Fate::Waits, false) => return None,
    };
    Some(format!("{word:<9}  {digest}  {}", HumanBytes(size)))
}

fn found(finding: Finding, digest: &str, file: &str, size: u64) -> String {
    let word = match finding {
        Finding::Damaged => "damaged",
        Finding::Missing => "missing",
        Finding::Unknown => "unknown",
    };
    format!("{word}  {digest}  {file}  {}", HumanBytes(size))
}

/// The last lines: the figures, and what to do now.
fn ended(job: &Job, report: &Report) -> String {
    match job {
        Job::Verify | Job::Repair | Job::Reindex => read_through(job, report),
        Job::Gc { dry_run } => collected(*dry_run, report),
        Job::Purge { .. } => {
            let Report { repositories, tags, revisions, .. } = *report;
            let purged = purged(repositories, tags, revisions);
            format!(
                "{purged} taken out; the content goes after delete_grace, unless something else needs it"
            )
        }
    }
}

fn collected(dry_run: bool, report: &Report) -> String {
    let Report { collected, evicted, freed, kept, waiting, failed, .. } = report;
    let (objects, freed) = (count(collected + evicted, "object"), HumanBytes(*freed));
    let first = if dry_run {
        format!("would take {objects}, {freed}: {collected} to collect, {evicted} to evict")
    } else {
        format!("took {objects}, {freed}: {collected} collected, {evicted} evicted")
    };
    let mut lines = vec![first];
    if kept + waiting > 0 {
        lines.push(format!("{kept} kept, {waiting} whose time has not come"));
        if !dry_run {
            lines.push("`roadstead gc --dry-run` tells what keeps them".to_owned());
        }
    }
    if *failed > 0 {
        lines.push(format!("{failed} could not be decided or taken; the log says why"));
    }
    lines.join("\n")
}

fn read_through(job: &Job, report: &Report) -> String {
    let Report { objects, bytes, damaged, missing, unknown, orphans, adopted, .. } = report;
    let mut lines = vec![format!(
        "{objects} objects read, {}: {damaged} damaged, {missing} missing",
        HumanBytes(*bytes)
    )];
    if *unknown > 0 {
        lines.push(format!("{unknown} could not be looked at; nothing is known of them"));
    }
    if *orphans > 0 {
        lines.push(format!(
            "{orphans} files that the metadata does not know; `roadstead reindex` takes in those that are sound"
        ));
    }
    if *job != Job::Verify {
        lines.push(format!("{adopted} files that the metadata did not know were taken in"));
    }
    match job {
        Job::Verify if damaged + missing > 0 => lines.push(
            "nothing was changed; `roadstead verify --repair` puts damaged files aside, and the next pull fetches what is missing"
                .to_owned(),
        ),
        Job::Repair if damaged + missing > 0 => lines.push(
            "damaged files are in quarantine/, and the next pull fetches what is missing".to_owned(),
        ),
        Job::Reindex => lines.push(
            "tags, their timelines, and which repository may serve what cannot be rebuilt from the files: they come back with the first \
             pull that reaches upstream, which downloads nothing that is here"
                .to_owned(),
        ),
        Job::Verify | Job::Repair | Job::Gc { .. } | Job::Purge { .. } => {}
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [BAR, COUNTER, WORDS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn the_end_says_what_to_do() {
        let sound = Report { objects: 3, bytes: 3 << 20, ..Report::default() };
        assert_eq!(ended(&Job::Verify, &sound), "3 objects read, 3.00 MiB: 0 damaged, 0 missing");
        let damaged = Report { damaged: 1, missing: 2, ..sound };
        assert!(ended(&Job::Verify, &damaged).contains("--repair"));
        assert!(ended(&Job::Repair, &damaged).contains("next pull"));
        assert!(ended(&Job::Reindex, &sound).contains("tags"));
        let unknown = Report { unknown: 1, ..sound };
        assert!(ended(&Job::Verify, &unknown).contains("1 could not"));
    }

    #[test]
    fn a_finding_names_the_file() {
        insta::assert_snapshot!(
            found(Finding::Damaged, "sha256:ab", "blobs/sha256/ab", 2048),
            @"damaged  sha256:ab  blobs/sha256/ab  2.00 KiB"
        );
    }

    #[test]
    fn a_collection_tells_what_goes_and_to_who_asks_what_stays() {
        let (now, dry) = (Job::Gc { dry_run: false }, Job::Gc { dry_run: true });
        let said = |job: &Job, fate: Fate| decided(job, fate, "sha256:ab", 2048);
        for (fate, done, would) in [
            (
                Fate::Collected,
                Some("collected  sha256:ab  2.00 KiB"),
                "collect    sha256:ab  2.00 KiB",
            ),
            (
                Fate::Evicted,
                Some("evicted    sha256:ab  2.00 KiB"),
                "evict      sha256:ab  2.00 KiB",
            ),
            (
                Fate::Failed,
                Some("failed     sha256:ab  2.00 KiB"),
                "failed     sha256:ab  2.00 KiB",
            ),
            (Fate::Kept, None, "keep       sha256:ab  2.00 KiB"),
            (Fate::Waits, None, "wait       sha256:ab  2.00 KiB"),
        ] {
            assert_eq!(said(&now, fate).as_deref(), done);
            assert_eq!(said(&dry, fate).as_deref(), Some(would));
        }
        let report = Report {
            collected: 2,
            evicted: 1,
            freed: 3 << 20,
            kept: 4,
            failed: 1,
            ..Report::default()
        };
        insta::assert_snapshot!(ended(&now, &report), @r"
        took 3 objects, 3.00 MiB: 2 collected, 1 evicted
        4 kept, 0 whose time has not come
        `roadstead gc --dry-run` tells what keeps them
        1 could not be decided or taken; the log says why
        ");
        let report = Report { collected: 1, waiting: 2, ..Report::default() };
        insta::assert_snapshot!(ended(&dry, &report), @r"
        would take 1 object, 0 B: 1 to collect, 0 to evict
        0 kept, 2 whose time has not come
        ");
    }

    #[test]
    fn a_purge_counts_what_it_took_out() {
        let report = Report { repositories: 1, tags: 2, revisions: 3, ..Report::default() };
        let purge = Job::Purge { within: "ghcr.io".to_owned(), kind: "registry" };
        let text = ended(&purge, &report);
        assert!(text.starts_with("1 repository, 2 tags, 3 revisions taken out"), "{text}");
        let title = Story::begin(&purge, false).title("by hand");
        assert_eq!(title, "taking out everything that is known of ghcr.io, by hand");
    }
}
