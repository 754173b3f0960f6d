//! Misses: blobs that nobody has, with one client and with many, on a slow line, and a whole image.
//!
//! Each round has an image of its own, whose manifest is pulled first, as a client does. The bytes that clients get are looked at: those
//! of one of many clients while it is cold, and those of each cache once more when it has them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::bench::{Bench, GIB, Spent};
use crate::client::{Answer, Client, Take, at_once};
use crate::figures::{self as f, COLD, Fetch, MANY};
use crate::image::{Blob, Image};
use crate::peers::{DIRECT, Server};
use crate::table::{eprint, median};

/// Clients at once on one blob.
const CLIENTS: usize = 16;
/// The slow line, in bytes per second.
const SLOW_RATE: u64 = 32 << 20;
const POLL: Duration = Duration::from_micros(200);
/// Layers of the image that counts requests: with its manifest and its config 11 objects.
const IMAGE_LAYERS: usize = 9;

/// The origin, and all caches.
fn places(bench: &Bench) -> Vec<Option<usize>> {
    std::iter::once(None).chain(bench.caches().into_iter().map(Some)).collect()
}

fn column(bench: &Bench, place: Option<usize>) -> String {
    place.map_or_else(|| DIRECT.to_owned(), |index| bench.servers[index].column.clone())
}

/// An image with one large blob, whose manifest every cache has.
fn cold_image(bench: &mut Bench, tag: &str) -> Result<Image> {
    let image = bench.contents.image(tag, &[bench.options.scale.large])?;
    for index in bench.caches() {
        let mut client = Client::connect(bench.servers[index].address)?;
        client.get(&image.by_tag(), Take::Compare(&image.manifest.bytes()?))?;
        client.get(&image.config.path(), Take::Compare(&image.config.bytes()?))?;
    }
    Ok(image)
}

/// One client.
pub(crate) fn one(bench: &mut Bench) {
    fetches(bench, "cold", COLD, 1);
}

/// Sixteen clients at once.
pub(crate) fn many(bench: &mut Bench) {
    fetches(bench, "many", MANY, CLIENTS);
}

fn fetches(bench: &mut Bench, name: &str, row: Fetch, clients: usize) {
    for round in 0..bench.options.scale.rounds {
        eprint(&format!("{}, round {}", row.wall.0, round + 1));
        let image = match cold_image(bench, &format!("{name}-{round}")) {
            Ok(image) => image,
            Err(error) => return bench.table.fail(format!("{name}: {error}")),
        };
        let mut direct = None;
        for place in places(bench) {
            let column = column(bench, place);
            match fetch(bench, place, &image.layers[0], clients) {
                Ok((wall, answers, spent)) => {
                    let direct = *direct.get_or_insert(wall);
                    add(bench, &column, row, &answers, wall, spent);
                    bench.table.add(row.ratio, &column, wall / direct);
                }
                Err(error) => bench.table.fail(format!("{}, {column}: {error}", row.wall.0)),
            }
        }
        if let Err(error) = bench.contents.forget(&image) {
            bench.table.fail(format!("{name}: {error}"));
        }
    }
}

fn add(bench: &mut Bench, column: &str, row: Fetch, answers: &[Answer], wall: f64, spent: Spent) {
    let first: Vec<f64> = answers.iter().map(|a| a.first_byte.as_secs_f64() * 1e3).collect();
    let size = answers[0].length as f64;
    let table = &mut bench.table;
    table.add(row.wall, column, wall);
    table.add(row.first, column, median(&first));
    if answers.len() > 1 {
        table.add(row.first_max, column, first.iter().copied().fold(0.0, f64::max));
    }
    if column != DIRECT {
        table.add(row.upstream, column, spent.upstream as f64 / size);
        table.add(row.cpu, column, spent.cpu / (size / GIB));
        if answers.len() > 1 {
            let served = size * answers.len() as f64 / GIB;
            table.add(row.cpu_served, column, spent.cpu / served);
        }
    }
}

/// Wall seconds until the last client has the blob, what each of them saw, and what it cost. The bytes are right.
fn fetch(
    bench: &Bench,
    place: Option<usize>,
    blob: &Blob,
    clients: usize,
) -> Result<(f64, Vec<Answer>, Spent)> {
    let server = place.map(|index| &bench.servers[index]);
    let address = server.map_or(bench.origin.address, |server| server.address);
    let right = blob.bytes()?;
    let path = blob.path();
    let ((wall, answers), spent) = bench.spend(server, || {
        let started = Instant::now();
        let answers = at_once(clients, |number| {
            // Looking at bytes costs time that belongs to the servers: one of many does, and in a check all do.
            let looks = bench.options.tiny || (clients > 1 && number == 0);
            let take = if looks { Take::Compare(&right) } else { Take::Discard };
            Client::connect(address)?.get(&path, take)
        })?;
        Ok((started.elapsed().as_secs_f64(), answers))
    })?;
    if answers.iter().any(|answer| answer.length != blob.size) {
        return Err("a body of another length".into());
    }
    Client::connect(address)?.get(&path, Take::Compare(&right))?;
    Ok((wall, answers, spent))
}

/// A line of 32 MiB/s, and a client that comes when the first one has half of the blob.
pub(crate) fn slow(bench: &mut Bench) {
    for round in 0..bench.options.scale.rounds {
        eprint(&format!("{}, round {}", f::SLOW_IDEAL.0, round + 1));
        let image = match cold_image(bench, &format!("slow-{round}")) {
            Ok(image) => image,
            Err(error) => return bench.table.fail(format!("slow: {error}")),
        };
        for place in places(bench) {
            // For each anew: a line that has just rested would make up for that with the next one's bytes.
            bench.origin.throttle(Some(SLOW_RATE));
            let column = column(bench, place);
            let server = place.map(|index| &bench.servers[index]);
            let joined = slow_fetch(bench, server, &image.layers[0]);
            match joined {
                Ok((first, late, spent)) => {
                    let ideal = image.layers[0].size as f64 / SLOW_RATE as f64;
                    let millis = |time: Duration| time.as_secs_f64() * 1e3;
                    let table = &mut bench.table;
                    table.add(f::SLOW_IDEAL, &column, first.whole.as_secs_f64() / ideal);
                    table.add(f::SLOW_FIRST, &column, millis(first.first_byte));
                    if let Some((late, end)) = late {
                        table.add(f::SLOW_LATE, &column, millis(late.first_byte));
                        table.add(f::SLOW_LATE_END, &column, end);
                        let size = image.layers[0].size as f64;
                        table.add(f::SLOW_UPSTREAM, &column, spent.upstream as f64 / size);
                    }
                }
                Err(error) => bench.table.fail(format!("{}, {column}: {error}", f::SLOW_IDEAL.0)),
            }
        }
        bench.origin.throttle(None);
        if let Err(error) = bench.contents.forget(&image) {
            bench.table.fail(format!("slow: {error}"));
        }
    }
}

/// The late joiner's answer, and when it had all, as a multiple of the time that the first client took.
type Late = Option<(Answer, f64)>;

/// The first client's answer, the late one's unless there is no cache to join, and the cost.
fn slow_fetch(
    bench: &Bench,
    server: Option<&Server>,
    blob: &Blob,
) -> Result<(Answer, Late, Spent)> {
    let address = server.map_or(bench.origin.address, |server| server.address);
    let (path, right) = (blob.path(), blob.bytes()?);
    let (progress, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    let work = || -> Result<(Answer, Late)> {
        let answers = at_once(if server.is_some() { 2 } else { 1 }, |number| {
            if number == 0 {
                let answer = Client::connect(address)
                    .and_then(|mut c| c.get_watched(&path, Take::Compare(&right), &progress));
                failed.store(answer.is_err(), Ordering::Relaxed);
                return answer.map(|answer| (answer, started.elapsed()));
            }
            while progress.load(Ordering::Relaxed) < blob.size / 2 {
                if failed.load(Ordering::Relaxed) {
                    return Err("there is nobody to join".into());
                }
                thread::park_timeout(POLL);
            }
            let answer = Client::connect(address)?.get(&path, Take::Compare(&right))?;
            Ok((answer, started.elapsed()))
        })?;
        let (first, first_end) = answers[0];
        let late =
            answers.get(1).map(|(late, end)| (*late, end.as_secs_f64() / first_end.as_secs_f64()));
        Ok((first, late))
    };
    let ((first, late), spent) = bench.spend(server, work)?;
    Ok((first, late, spent))
}

/// How often upstream is asked for an image of eleven objects that nobody has.
pub(crate) fn image(bench: &mut Bench) {
    eprint(f::IMAGE_REQUESTS.0);
    let layers = vec![bench.options.scale.small; IMAGE_LAYERS];
    let image = match bench.contents.image("unseen", &layers) {
        Ok(image) => image,
        Err(error) => return bench.table.fail(format!("image: {error}")),
    };
    for index in bench.caches() {
        let server = &bench.servers[index];
        let column = server.column.clone();
        match bench.spend(Some(server), || eleven(server, &image)) {
            Ok(((), spent)) => {
                bench.table.add(f::IMAGE_REQUESTS, &column, spent.requests as f64);
                bench.table.add(f::IMAGE_PINGS, &column, spent.pings as f64);
            }
            Err(error) => {
                bench.table.fail(format!("{}, {column}: {error}", f::IMAGE_REQUESTS.0));
            }
        }
    }
}

/// One request for each object.
fn eleven(server: &Server, image: &Image) -> Result<()> {
    let mut client = Client::connect(server.address)?;
    client.get(&image.by_tag(), Take::Compare(&image.manifest.bytes()?))?;
    for blob in image.blobs() {
        client.get(&blob.path(), Take::Compare(&blob.bytes()?))?;
    }
    Ok(())
}
