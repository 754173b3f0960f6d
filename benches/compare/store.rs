//! Large stores: how fast a server starts on one, and whether a hit in it costs more.

use std::fs;
use std::path::Path;
use std::time::Duration;

use roadstead::clock::{Clock as _, SystemClock};
use roadstead::content::populate::{Plan, populate};

use crate::Result;
use crate::bench::Bench;
use crate::client::{Client, Take};
use crate::figures as f;
use crate::image::Blob;
use crate::peers::{Kind, Server, UPSTREAM, host};
use crate::table::{Key, eprint};
use crate::warm::{Method, requests};

/// Starts of each server in one round.
const STARTS: usize = 3;
/// Bytes of a blob in a store of many.
const BLOB_BYTES: u64 = 1024;
/// Blobs and tags of the store that a large one is compared with.
const FEW: u32 = 10;

/// A store of rows, and of the files of all its images if wanted.
fn make(data: &Path, blobs: u64, tags: u64, with_files: bool) -> Result<()> {
    let (blobs, tags) = (u32::try_from(blobs)?, u32::try_from(tags.max(1))?);
    let plan = Plan::new(UPSTREAM.parse()?, SystemClock.now(), blobs, tags);
    populate(data, &plan, if with_files { u32::MAX } else { 0 })?;
    Ok(())
}

/// Starts with many blobs in store: a hosted registry, nginx as a cache, and roadstead.
pub(crate) fn start(bench: &mut Bench) {
    eprint("making stores of many blobs");
    let mut starting = Vec::new();
    for (column, kind) in kinds(bench) {
        let column_many = format!("{column} many");
        match prepare(bench, &column_many, &kind) {
            Ok(()) => starting.push((column, column_many, kind)),
            Err(error) => bench.table.fail(format!("{}, {column}: {error}", f::START.0)),
        }
    }
    for round in 0..bench.options.scale.rounds * STARTS {
        eprint(&format!("{}, round {}", f::START.0, round + 1));
        for (column, directory, kind) in &starting {
            starts(bench, f::START, column, directory, kind);
        }
    }
}

fn starts(bench: &mut Bench, row: Key, column: &str, directory: &str, kind: &Kind) {
    match bench.ground.start(directory, kind) {
        Ok((server, took)) => {
            bench.table.add(row, column, took.as_secs_f64() * 1e3);
            drop(server);
        }
        Err(error) => bench.table.fail(format!("{}, {column}: {error}", row.0)),
    }
}

/// Those whose starts are measured: their columns and what they are.
fn kinds(bench: &Bench) -> Vec<(String, Kind)> {
    let all = bench.servers.iter().filter(|server| match server.kind {
        Kind::NginxCache | Kind::Registry { cache: false } => true,
        Kind::Roadstead { log, .. } => !log,
        Kind::NginxStatic { .. } | Kind::Registry { .. } => false,
    });
    all.map(|server| (server.column.clone(), server.kind.clone())).collect()
}

fn prepare(bench: &mut Bench, directory: &str, kind: &Kind) -> Result<()> {
    let stored = bench.options.scale.stored;
    let home = bench.ground.directory(directory);
    match kind {
        Kind::Roadstead { .. } => make(&home.join("data"), stored, stored / 5, true),
        Kind::Registry { .. } => {
            let blobs = many_blobs(bench, stored)?;
            host(&home.join("store"), std::slice::from_ref(&bench.image), &blobs)?;
            remove(&blobs)
        }
        _ => {
            let blobs = many_blobs(bench, stored)?;
            let (server, _) = bench.ground.start(directory, kind)?;
            let mut client = Client::connect(server.address)?;
            for blob in &blobs {
                client.get(&blob.path(), Take::Discard)?;
            }
            drop(server);
            remove(&blobs)
        }
    }
}

fn many_blobs(bench: &mut Bench, count: u64) -> Result<Vec<Blob>> {
    (0..count).map(|_| bench.contents.blob(BLOB_BYTES)).collect()
}

fn remove(blobs: &[Blob]) -> Result<()> {
    blobs.iter().try_for_each(|blob| Ok(fs::remove_file(&blob.file)?))
}

/// The cost of a hit with a million blobs in store against ten, for each roadstead.
pub(crate) fn growth(bench: &mut Bench) {
    for (column, kind) in kinds(bench) {
        let Kind::Roadstead { program, log, .. } = kind else {
            continue;
        };
        // A scrub would find that the files were never made, and be busy with saying so.
        let kind = Kind::Roadstead { program, log, scrub: false };
        if let Err(error) = grow(bench, &column, &kind) {
            bench.table.fail(format!("growth, {column}: {error}"));
        }
    }
}

fn grow(bench: &mut Bench, column: &str, kind: &Kind) -> Result<()> {
    eprint("making a store of a million blobs");
    let (few, many) = (format!("{column} few"), format!("{column} million"));
    let scale = bench.options.scale;
    make(&bench.ground.directory(&few).join("data"), FEW.into(), FEW.into(), true)?;
    make(&bench.ground.directory(&many).join("data"), scale.grown, scale.grown_tags, false)?;
    for _ in 0..scale.rounds * STARTS {
        starts(bench, f::GROWN_START, column, &many, kind);
    }
    let renamed = |(mut server, _): (Server, Duration)| {
        column.clone_into(&mut server.column);
        server
    };
    let few = bench.ground.start(&few, kind).map(renamed)?;
    let many = bench.ground.start(&many, kind).map(renamed)?;
    for server in [&few, &many] {
        bench.pull(server, &bench.image)?;
    }
    let (tag, digest) = (bench.image.by_tag(), bench.image.by_digest());
    let blob = bench.image.config.path();
    let loads = [
        (f::SMALL_GET, f::GROWN_GET, Method::Get, &tag),
        (f::SMALL_HEAD, f::GROWN_HEAD, Method::Head, &digest),
        (f::SMALL_BLOB, f::GROWN_BLOB, Method::Get, &blob),
    ];
    for (small, grown, method, path) in loads {
        for round in 0..scale.rounds {
            eprint(&format!("{}, round {}", grown.rate.0, round + 1));
            let mut table = std::mem::take(&mut bench.table);
            requests(bench, &few, small, method, path, &mut table);
            requests(bench, &many, grown, method, path, &mut table);
            bench.table = table;
        }
    }
    Ok(())
}
