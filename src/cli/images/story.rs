//! The story of work on images for people: what became of each is a line on standard output, the progress is on standard error, as a bar
//! on a terminal and as a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::app::images::{Event, Fate, Report, Work};
use crate::cli::admin::{Ask, Client, Lines, Trouble};
use crate::cli::command::{FAILED, complain, say};
use crate::cli::reach::Done;
use crate::cli::story::LINE_EVERY;
use crate::cli::words::{clean, count, short};

const BAR: &str = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}  {msg}";

/// Begins work and tells its story to the end; `title` says what is done.
pub(super) async fn tell(client: &Client<'_>, ask: Ask, json: bool, title: &str) -> Done {
    let mut lines = client.begin::<Event>(ask).await?;
    if !json {
        say(&format!("{title}, {}", client.through()));
    }
    let last = follow(&mut lines, json).await?;
    Ok(match last {
        Some(Event::Ended(report)) if report.is_whole() => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    })
}

/// Tells a story that has begun, to its end; answers the last event.
pub(super) async fn follow(lines: &mut Lines<Event>, json: bool) -> Result<Option<Event>, Trouble> {
    let mut story = Story::begin(io::stderr().is_terminal());
    let mut last = None;
    while let Some((line, event)) = lines.next().await? {
        if json {
            say(&line);
        } else {
            story.tell(&event);
        }
        last = Some(event);
    }
    story.end();
    if !matches!(last, Some(Event::Ended(_) | Event::Aborted { .. })) {
        complain("the work was cut short: the other side went away");
    }
    Ok(last)
}

struct Story {
    terminal: bool,
    bar: ProgressBar,
    last_line: Instant,
    work: Work,
    images: u64,
}

impl Story {
    fn begin(terminal: bool) -> Self {
        let (bar, last_line) = (ProgressBar::hidden(), Instant::now());
        Self { terminal, bar, last_line, work: Work::Warm, images: 0 }
    }

    fn tell(&mut self, event: &Event) {
        match event {
            Event::Begun { work, images, bytes } => {
                (self.work, self.images) = (*work, *images);
                if self.terminal {
                    self.bar = bar(*bytes);
                }
            }
            Event::Progress { images, objects, bytes, of_bytes } => {
                self.bar.set_length(*of_bytes);
                self.bar.set_position(*bytes);
                self.progress(format!(
                    "{images} of {}, {}",
                    count(self.images, "image"),
                    count(*objects, "object")
                ));
            }
            Event::Image { image, digest, fate, bytes, reason } => {
                self.line(&became(image, digest.as_deref(), *fate, *bytes, reason.as_deref()));
            }
            Event::LeftOut { what, reason } => self.line(&format!("left out  {what}  ({reason})")),
            Event::Ended(report) => {
                self.end();
                say(&ended(self.work, report));
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
    fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn progress(&mut self, words: String) {
        if !self.terminal && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let (bytes, of) = (self.bar.position(), self.bar.length().unwrap_or(0));
            complain(&format!("{words}, {} of {}", HumanBytes(bytes), HumanBytes(of)));
        } else {
            self.bar.set_message(words);
        }
    }
}

fn bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template(BAR).expect("the template is a constant that a test reads"),
    );
    bar
}

fn became(
    image: &str,
    digest: Option<&str>,
    fate: Fate,
    bytes: u64,
    reason: Option<&str>,
) -> String {
    let word = match fate {
        Fate::Here => "here",
        Fate::Fetched => "fetched",
        Fate::Taken => "taken",
        Fate::TagKept => "tag kept",
        Fate::Failed => "failed",
    };
    let mut line = format!("{word:<8}  {image}");
    // A name with a digest says it already.
    if let Some(digest) = digest.filter(|digest| !image.contains(*digest)) {
        line.push_str(&format!("  {}", short(digest)));
    }
    if fate != Fate::Failed || bytes > 0 {
        line.push_str(&format!("  {}", HumanBytes(bytes)));
    }
    if let Some(reason) = reason {
        line.push_str(&format!("  ({reason})"));
    }
    line
}

/// The last lines: the figures, and what to do now.
fn ended(work: Work, report: &Report) -> String {
    let Report { images, failed, objects, bytes, here, here_bytes, left_out } = *report;
    let (verb, again) = match work {
        Work::Warm | Work::Record => {
            ("fetched", "the same command tries again, and fetches only what is missing")
        }
        Work::Import | Work::Takeover => ("taken in", "what is here is not written again"),
    };
    let mut first = format!(
        "{}: {} {verb}, {}; {here} here already, {}",
        count(images, "image"),
        count(objects, "object"),
        HumanBytes(bytes),
        HumanBytes(here_bytes)
    );
    if left_out > 0 {
        first.push_str(&format!("; {left_out} left out"));
    }
    if failed == 0 {
        return first;
    }
    format!("{first}\n{failed} not complete; {again}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }

    #[test]
    fn a_line_tells_what_became_of_an_image() {
        let digest = "sha256:0123456789abcdef";
        assert_eq!(
            became("a.b/c:1", Some(digest), Fate::Fetched, 2048, None),
            "fetched   a.b/c:1  sha256:0123456789ab  2.00 KiB"
        );
        let full = format!("a.b/c@{digest}");
        assert_eq!(
            became(&full, Some(digest), Fate::Here, 0, Some("not confirmed")),
            format!("here      {full}  0 B  (not confirmed)")
        );
        assert_eq!(
            became("a.b/c:1", None, Fate::Failed, 0, Some("upstream has no tag 1")),
            "failed    a.b/c:1  (upstream has no tag 1)"
        );
    }

    #[test]
    fn the_end_has_the_figures() {
        let report =
            Report { images: 3, failed: 1, objects: 2, bytes: 1 << 20, ..Report::default() };
        insta::assert_snapshot!(ended(Work::Warm, &report), @r"
        3 images: 2 objects fetched, 1.00 MiB; 0 here already, 0 B
        1 not complete; the same command tries again, and fetches only what is missing
        ");
        let report = Report { images: 1, objects: 1, here: 4, left_out: 2, ..Report::default() };
        insta::assert_snapshot!(
            ended(Work::Takeover, &report),
            @"1 image: 1 object taken in, 0 B; 4 here already, 0 B; 2 left out"
        );
    }
}
