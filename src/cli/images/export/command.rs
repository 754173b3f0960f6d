//! The command: what is asked for, what it will be, and the way there.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::app::images::{ExportOrder, ExportPlan};
use crate::cli::admin::{Ask, Client, Download};
use crate::cli::command::{FAILED, WRONG_USAGE, complain, print, say};
use crate::cli::images::arguments::Export;
use crate::cli::images::lists;
use crate::cli::reach::{Done, Failure, with_client};
use crate::cli::table::{Side, Table};
use crate::cli::words::{clean, count, short, size};
use crate::oci::{RECEIPT_BYTES_MAX, Receipt};

use super::progress::Progress;
use super::target::Target;
use super::write::{Feed, Written, write};
use crate::app::Opening;

/// Frames that wait to be written.
const FRAMES_WAITING: usize = 8;

pub(in crate::cli) fn export(arguments: &Export) -> ExitCode {
    let (order, base) = match order(arguments) {
        Ok(order) => order,
        Err(line) => return wrong(&line),
    };
    let target = match &arguments.output {
        None => None,
        Some(output) => match Target::new(output, arguments.split) {
            Ok(target) => Some(target),
            Err(line) => return wrong(&line),
        },
    };
    let order = serde_json::to_vec(&order).expect("it is plain data with text keys");
    let order = Bytes::from(order);
    with_client(&arguments.store, Opening::AsItIs, async |client| match &target {
        Some(target) if !arguments.dry_run => {
            target.look(arguments.force).map_err(failed)?;
            write_out(client, arguments, order, target, base).await
        }
        Some(_) | None => tell(client, arguments, order).await,
    })
}

fn wrong(line: &str) -> ExitCode {
    complain(&clean(line));
    ExitCode::from(WRONG_USAGE)
}

fn failed(line: String) -> Failure {
    Failure::Told { code: FAILED, line: clean(&line).into_owned() }
}

/// What is asked for, with what the other side has already.
fn order(arguments: &Export) -> Result<(ExportOrder, Receipt), String> {
    let list = lists::images(&arguments.images, arguments.file.as_deref())?;
    let images: Vec<String> = list.names().map(ToOwned::to_owned).collect();
    if images.is_empty() && arguments.set.is_empty() {
        return Err("no image to write out: the list is empty".to_owned());
    }
    let base = match &arguments.base {
        None => Receipt::default(),
        Some(file) => {
            let receipt = read(file, RECEIPT_BYTES_MAX)?.parse();
            receipt.map_err(|error| format!("{}: {error}", file.display()))?
        }
    };
    let order = ExportOrder {
        images,
        sets: arguments.set.iter().map(ToString::to_string).collect(),
        platforms: arguments.platforms.iter().map(ToString::to_string).collect(),
        without_referrers: arguments.no_referrers,
        base: base.digests().map(ToString::to_string).collect(),
    };
    Ok((order, base))
}

/// A text of at most so many bytes; `-` is standard input.
fn read(path: &Path, limit: usize) -> Result<String, String> {
    let told = |error: io::Error| format!("{}: {error}", path.display());
    let source: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).map_err(told)?),
    };
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut text = String::new();
    source.take(most.saturating_add(1)).read_to_string(&mut text).map_err(told)?;
    if text.len() > limit {
        return Err(format!("{}: it is longer than {}", path.display(), size(most)));
    }
    Ok(text)
}

fn plan_of(order: Bytes) -> Ask {
    Ask::post("/export").with_flag("plan", true).with_body(order)
}

/// Only tells what a bundle would hold.
async fn tell(client: &Client<'_>, arguments: &Export, order: Bytes) -> Done {
    let (text, plan): (String, ExportPlan) = client.ask(plan_of(order)).await?;
    if arguments.store.json {
        print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        ("IMAGE", Side::Left),
        ("DIGEST", Side::Left),
        ("SIZE", Side::Right),
        ("PLATFORMS", Side::Left),
    ];
    let rows = plan.images.iter().map(|image| {
        let platforms = image.platforms.join(", ");
        vec![image.image.clone(), short(&image.digest).to_owned(), size(image.bytes), platforms]
    });
    let table = Table::new(&columns).page(&rows.collect::<Vec<_>>());
    print(&format!("{table}\n{}\n", summary(&plan)))?;
    Ok(ExitCode::SUCCESS)
}

/// `2 images, 14 objects, 31.20 MiB; 5 objects are left out, the receipt has them`.
fn summary(plan: &ExportPlan) -> String {
    let images = u64::try_from(plan.images.len()).unwrap_or(u64::MAX);
    let (images, objects) = (count(images, "image"), count(plan.objects, "object"));
    let mut text = format!("{images}, {objects}, {}", size(plan.bytes));
    if plan.left_out > 0 {
        let left_out = count(plan.left_out, "object");
        text.push_str(&format!("; {left_out} left out, as the receipt has them"));
    }
    text
}

async fn write_out(
    client: &Client<'_>,
    arguments: &Export,
    order: Bytes,
    target: &Target,
    base: Receipt,
) -> Done {
    let (text, plan): (String, ExportPlan) = client.ask(plan_of(order.clone())).await?;
    let objects = plan.objects.saturating_add(plan.left_out);
    let mut whole = base.clone();
    for digest in &plan.receipt {
        let digest = digest.parse().map_err(|_invalid| crate::cli::admin::Trouble::Strange)?;
        whole.insert(digest).map_err(|full| failed(format!("{full}; write fewer images out")))?;
    }
    match (target, arguments.store.json) {
        (Target::Stdout, _) => complain(&summary(&plan)),
        (_, true) => print(&format!("{text}\n"))?,
        (_, false) => print(&format!("{}\n", summary(&plan)))?,
    }
    target.has_room(plan.bytes, objects).map_err(failed)?;
    let download = client.open(Ask::post("/export").with_body(order)).await?;
    let length = download.length;
    if length != plan.bytes {
        complain(&format!("something moved meanwhile: it is {} now", size(length)));
        target.has_room(length, objects).map_err(failed)?;
    }
    let Written { parts } = pour(download, target, (base, arguments.force)).await?;
    if let (Some(place), false) = (target.place(), arguments.store.json) {
        let parts = match parts {
            1 => String::new(),
            parts => format!(" in {parts} parts"),
        };
        say(&clean(&format!(
            "{}: {}{parts}; its sums are in {}, and {} is for the next --base",
            place.path().display(),
            size(length),
            place.beside("sha256").display(),
            place.beside("receipt").display(),
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the answer here and writes it where that may block.
async fn pour(
    mut download: Download,
    target: &Target,
    (base, force): (Receipt, bool),
) -> Result<Written, Failure> {
    let length = download.length;
    let (frames, receiver) = mpsc::channel(FRAMES_WAITING);
    let (owned, feed) = (target.clone(), Feed::new(receiver, length));
    let (done, written) = oneshot::channel();
    let work = move || drop(done.send(write(&owned, force, feed, base)));
    if matches!(target, Target::Stdout) {
        // No task of the runtime, which would wait for it: whoever reads standard output may stand still for ever.
        let writer = thread::Builder::new().name("export".to_owned()).spawn(work);
        writer.map_err(|error| failed(format!("no thread: {error}")))?;
    } else {
        TaskTracker::new().spawn_blocking(work);
    }
    let (mut progress, mut broke) = (Progress::begin(length), None);
    loop {
        match download.next().await {
            Ok(None) => break,
            Ok(Some(data)) => {
                progress.add(data.len());
                // The writer has given up, and says why.
                if frames.send(data).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                broke = Some(error);
                break;
            }
        }
    }
    drop(frames);
    let written = written.await;
    let (done, broke) = (progress.done(), broke);
    drop(progress);
    match (written, broke) {
        (Ok(Ok(written)), None) => Ok(written),
        (_, Some(error)) => {
            tracing::debug!(%error, "the answer broke off");
            let (done, length) = (size(done), size(length));
            Err(failed(format!(
                "the bundle broke off after {done} of {length}, and nothing of it was kept; the server's log says why"
            )))
        }
        (Ok(Err(error)), None) => Err(failed(not_written(target, &error))),
        (Err(error), None) => Err(failed(format!("the writer ended: {error}"))),
    }
}

fn not_written(target: &Target, error: &io::Error) -> String {
    match (target.place(), error.kind()) {
        (None, io::ErrorKind::BrokenPipe) => {
            "standard output was closed before all of the bundle was written".to_owned()
        }
        (None, _) => format!("standard output: {error}"),
        (Some(place), io::ErrorKind::FileTooLarge) => format!(
            "{}: {error}; --split 2GiB writes smaller files. Nothing was kept",
            place.path().display()
        ),
        (Some(place), _) => {
            let (path, told) = (place.path().display().to_string(), error.to_string());
            // The names that could not be given begin with it.
            let named = if told.starts_with(&path) { told } else { format!("{path}: {told}") };
            format!("{named}; nothing was kept")
        }
    }
}
