//! A job's story for people: findings as lines on standard output, the progress on standard error as a bar on a terminal and as a line
//! now and then elsewhere.

use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::command::{complain, say};
use crate::app::{Event, Finding, JobKind, Report};

/// Without a terminal the progress is a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// With a total there is a bar, without one (files that no row knows) only what was read.
const BAR: &str = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const COUNTER: &str = "{spinner} {bytes} {bytes_per_sec}";

/// Who tells it.
pub(super) struct Story {
    kind: JobKind,
    terminal: bool,
    bar: ProgressBar,
    last_line: Instant,
}

impl Story {
    pub(super) fn begin(kind: JobKind, terminal: bool) -> Self {
        Self { kind, terminal, bar: ProgressBar::hidden(), last_line: Instant::now() }
    }

    /// The first line: what is done, and how.
    pub(super) fn title(&self, through: &str) -> String {
        let doing = match self.kind {
            JobKind::Verify => "reading everything that is stored",
            JobKind::Repair => "reading everything that is stored and repairing what is damaged",
            JobKind::Reindex => "taking in stored files that the metadata does not know",
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
            Event::Progress { objects, bytes } => self.progress(*objects, *bytes),
            Event::Found { finding, digest, file, size, reason } => {
                let mut line = found(*finding, digest, file, *size);
                if let Some(reason) = reason {
                    line = format!("{line}  ({reason})");
                }
                self.bar.suspend(|| say(&line));
            }
            Event::Ended(report) => {
                self.end();
                say(&ended(self.kind, report));
            }
            Event::Aborted { reason } => {
                self.end();
                complain(&format!("not finished: {reason}"));
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn show_bar(&mut self, total: u64) {
        if !self.terminal {
            return;
        }
        let (bar, template) = if total > 0 {
            (ProgressBar::new(total), BAR)
        } else {
            (ProgressBar::no_length(), COUNTER)
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template(template)
                .expect("the template is a constant that a test reads"),
        );
        self.bar = bar;
    }

    fn progress(&mut self, objects: u64, bytes: u64) {
        self.bar.set_position(bytes);
        if !self.terminal && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            complain(&format!("{objects} objects, {} read", HumanBytes(bytes)));
        }
    }
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
fn ended(kind: JobKind, report: &Report) -> String {
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
    if kind != JobKind::Verify {
        lines.push(format!("{adopted} files that the metadata did not know were taken in"));
    }
    match kind {
        JobKind::Verify if damaged + missing > 0 => lines.push(
            "nothing was changed; `roadstead verify --repair` puts damaged files aside, and the next pull fetches what is missing"
                .to_owned(),
        ),
        JobKind::Repair if damaged + missing > 0 => lines.push(
            "damaged files are in quarantine/, and the next pull fetches what is missing".to_owned(),
        ),
        JobKind::Reindex => lines.push(
            "tags, their timelines, and which repository may serve what cannot be rebuilt from the files: they come back with the first \
             pull that reaches upstream, which downloads nothing that is here"
                .to_owned(),
        ),
        JobKind::Verify | JobKind::Repair => {}
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_valid() {
        for template in [BAR, COUNTER] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn the_end_says_what_to_do() {
        let sound = Report { objects: 3, bytes: 3 << 20, ..Report::default() };
        assert_eq!(
            ended(JobKind::Verify, &sound),
            "3 objects read, 3.00 MiB: 0 damaged, 0 missing"
        );
        let damaged = Report { damaged: 1, missing: 2, ..sound };
        assert!(ended(JobKind::Verify, &damaged).contains("--repair"));
        assert!(ended(JobKind::Repair, &damaged).contains("next pull"));
        assert!(ended(JobKind::Reindex, &sound).contains("tags"));
        let unknown = Report { unknown: 1, ..sound };
        assert!(ended(JobKind::Verify, &unknown).contains("1 could not"));
    }

    #[test]
    fn a_finding_names_the_file() {
        insta::assert_snapshot!(
            found(Finding::Damaged, "sha256:ab", "blobs/sha256/ab", 2048),
            @"damaged  sha256:ab  blobs/sha256/ab  2.00 KiB"
        );
    }
}
