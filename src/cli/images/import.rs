//! `roadstead import`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::time::{Instant, interval};

use super::arguments::Import;
use super::source::Source;
use super::story;
use crate::app::Opening;
use crate::app::images::{Event, ExportPlan};
use crate::cli::admin::{Ask, Client, Lines, Trouble};
use crate::cli::command::{FAILED, WRONG_USAGE, complain, fail, say};
use crate::cli::reach::{Done, Failure, with_client};
use crate::cli::staged;
use crate::cli::story::LINE_EVERY;
use crate::cli::upload::{Sent, Upload};
use crate::cli::words::clean;
use crate::clock::{Clock, SystemClock};
use crate::oci::Receipt;

/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(200);
const BAR: &str = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const COUNTER: &str = "{spinner} {bytes} {bytes_per_sec}";

pub(in crate::cli) fn import(arguments: &Import) -> ExitCode {
    let source = match Source::find(&arguments.source) {
        Ok(source) => source,
        Err(reason) => return fail(&clean(&reason)),
    };
    if let Err(line) = agree(arguments, &source) {
        complain(line);
        return ExitCode::from(WRONG_USAGE);
    }
    with_client(&arguments.store, Opening::Make, async |client| {
        take_in(client, arguments, &source).await
    })
}

/// Do the options belong to what is imported?
fn agree(arguments: &Import, source: &Source) -> Result<(), &'static str> {
    match (matches!(source, Source::Registry(_)), &arguments.upstream) {
        (true, None) => Err(
            "registry:FOLDER wants --upstream, the registry whose images these are, such as docker.io",
        ),
        (true, Some(_)) if arguments.name.is_some() => {
            Err("--as is for a bundle, not for registry:FOLDER")
        }
        (false, Some(_)) => Err("--upstream is for registry:FOLDER; a bundle names its registries"),
        (false, None) if arguments.copy => Err("--copy is for registry:FOLDER"),
        _ => Ok(()),
    }
}

async fn take_in(client: &Client<'_>, arguments: &Import, source: &Source) -> Done {
    let set = match &arguments.set {
        Some(set) => set.to_string(),
        None => {
            let now = SystemClock.now().to_string();
            let day: String = now.chars().take(10).filter(char::is_ascii_digit).collect();
            format!("{}-{day}", source.stem())
        }
    };
    let json = arguments.store.json;
    if !json {
        say(&format!("importing {}, {}", clean(&arguments.source), client.through()));
    }
    let mut lines = match (source, source.upload()) {
        (_, Some(upload)) => {
            let ask = Ask::post("/import")
                .with("set", &set)
                .with_some("name", arguments.name.as_deref())
                .with_flag("public", arguments.public);
            let upload =
                upload.map_err(|error| told(format!("no thread to read with: {error}")))?;
            send(client, ask, upload, source).await?
        }
        (Source::Registry(folder), None) => {
            let folder =
                folder.to_str().ok_or_else(|| told("the folder's name is no UTF-8".to_owned()))?;
            let ask = Ask::post("/takeover")
                .with("folder", folder)
                .with_some("upstream", arguments.upstream.as_deref())
                .with("set", &set)
                .with_flag("copy", arguments.copy)
                .with_flag("public", arguments.public);
            client.begin(ask).await?
        }
        (_, None) => return Err(told("there is nothing to read".to_owned())),
    };
    let Some(Event::Ended(report)) = story::follow(&mut lines, json).await? else {
        return Ok(ExitCode::from(FAILED));
    };
    if !json {
        say(&format!("the images are the set {set}, which is pinned"));
    }
    if let Some(file) = &arguments.receipt {
        write_receipt(client, &set, file).await?;
    }
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Sends the bundle, and shows how far it is.
async fn send(
    client: &Client<'_>,
    ask: Ask,
    upload: Upload,
    source: &Source,
) -> Result<Lines<Event>, Failure> {
    let sent = upload.sent();
    let total = match source {
        Source::Files { size, .. } => *size,
        _ => None,
    };
    let answered = tokio::select! {
        answered = client.upload(ask, upload) => answered,
        never = show(&sent, total) => match never {},
    };
    answered.map_err(|trouble| match sent.failure() {
        // The other side can only tell that the body broke.
        Some(reason) => told(format!("{}; nothing was taken in", clean(reason))),
        None => Failure::Trouble(trouble),
    })
}

async fn show(sent: &Sent, total: Option<u64>) -> std::convert::Infallible {
    let bar = Bar::new(total);
    let mut last_line = Instant::now();
    let mut ticks = interval(BAR_EVERY);
    loop {
        ticks.tick().await;
        bar.0.set_position(sent.bytes());
        if bar.0.is_hidden() && last_line.elapsed() >= LINE_EVERY {
            last_line = Instant::now();
            complain(&format!("{} sent", HumanBytes(sent.bytes())));
        }
    }
}

/// A bar on a terminal, which goes with this.
struct Bar(ProgressBar);

impl Bar {
    fn new(total: Option<u64>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), BAR),
            None => (ProgressBar::no_length(), COUNTER),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.expect("the template is a constant that a test reads"));
        Self(bar)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Asks what the images of the set have, and writes it down for `export --base`.
async fn write_receipt(client: &Client<'_>, set: &str, file: &Path) -> Result<(), Failure> {
    let order = json!({ "sets": [set] }).to_string();
    let ask = Ask::post("/export").with_flag("plan", true).with_body(order);
    let (_, plan): (String, ExportPlan) = client.ask(ask).await?;
    let mut receipt = Receipt::default();
    for digest in &plan.receipt {
        let digest = digest.parse().map_err(|_invalid| Failure::Trouble(Trouble::Strange))?;
        receipt.insert(digest).map_err(|full| told(full.to_string()))?;
    }
    staged::write(file, &receipt.to_string()).map_err(|error| {
        told(format!(
            "the images are in, but the receipt {} cannot be written: {error}",
            file.display()
        ))
    })
}

fn told(line: String) -> Failure {
    Failure::Told { code: FAILED, line }
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
}
