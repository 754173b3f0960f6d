//! Hits: requests for manifests, and bodies of blobs.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::bench::{Bench, GIB};
use crate::client::{Load, drain, heads};
use crate::figures::{
    BLOB_1, BLOB_8, BLOB_64, Bodies, GET_DIGEST, GET_TAG, HEAD_DIGEST, HEAD_TAG, Requests,
};
use crate::image::MANIFEST_TYPE;
use crate::peers::Server;
use crate::process::{find, run};
use crate::table::{Table, eprint};

/// wrk calls an answer that takes longer an error. It makes no difference to the load.
const WRK_TIMEOUT: &str = "60s";

/// A method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    Get,
    Head,
}

/// Manifests by tag and by digest, GET and HEAD.
pub(crate) fn manifests(bench: &mut Bench) {
    let (tag, digest) = (bench.image.by_tag(), bench.image.by_digest());
    let loads = [
        (GET_TAG, Method::Get, &tag),
        (HEAD_TAG, Method::Head, &tag),
        (GET_DIGEST, Method::Get, &digest),
        (HEAD_DIGEST, Method::Head, &digest),
    ];
    for (row, method, path) in loads {
        for round in 0..bench.options.scale.rounds {
            eprint(&format!("{}, round {}", row.rate.0, round + 1));
            for index in 0..bench.servers.len() {
                let mut table = std::mem::take(&mut bench.table);
                requests(bench, &bench.servers[index], row, method, path, &mut table);
                bench.table = table;
            }
        }
    }
}

/// A load of requests on one server, as a sample of a row in its column. Without wrk there is no GET.
pub(crate) fn requests(
    bench: &Bench,
    server: &Server,
    row: Requests,
    method: Method,
    path: &str,
    table: &mut Table,
) {
    if method == Method::Get && find("wrk").is_none() {
        return;
    }
    table.cell(row.rate, &server.column);
    table.cell(row.cpu, &server.column);
    let (load, connections) = (bench.options.scale.load, bench.options.scale.connections);
    let done = bench.spend(Some(server), || match method {
        Method::Get => wrk(server.address, path, connections, load),
        Method::Head => heads(server.address, path, connections, load),
    });
    match done {
        Ok((Load { count, seconds }, spent)) => {
            table.add(row.rate, &server.column, count as f64 / seconds);
            table.add(row.cpu, &server.column, spent.cpu * 1e6 / count as f64);
        }
        Err(error) => table.fail(format!("{}, {}: {error}", row.rate.0, server.column)),
    }
}

/// GET again and again, by wrk in one thread.
fn wrk(address: SocketAddr, path: &str, connections: usize, time: Duration) -> Result<Load> {
    let mut command = Command::new(find("wrk").ok_or("wrk not found")?);
    command.args(["-t1", &format!("-c{connections}"), &format!("-d{}s", time.as_secs().max(1))]);
    command.args(["--timeout", WRK_TIMEOUT]);
    command.args(["-H", &format!("Accept: {MANIFEST_TYPE}, */*")]);
    let output = run(command.arg(format!("http://{address}{path}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bad = |line: &&str| line.contains("Non-2xx") || line.contains("Socket errors");
    if !output.status.success() || text.lines().any(|line| bad(&line)) {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("wrk: {text}{words}").into());
    }
    // "    51667 requests in 1.01s, 95.20MB read"
    let (count, _) = text.split_once(" requests in ").ok_or(format!("wrk said {text:?}"))?;
    let count: u64 = count.rsplit(char::is_whitespace).next().unwrap_or_default().parse()?;
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    let rate: f64 = rate.ok_or(format!("wrk said {text:?}"))?.trim().parse()?;
    if count == 0 {
        return Err("wrk got no answer".into());
    }
    Ok(Load { count, seconds: count as f64 / rate })
}

/// The large blob on one and on eight connections, a small one on 64.
pub(crate) fn blobs(bench: &mut Bench) {
    let (large, small) = (bench.image.layers[0].path(), bench.image.layers[1].path());
    for (row, connections, path) in
        [(BLOB_1, 1, &large), (BLOB_8, 8, &large), (BLOB_64, 64, &small)]
    {
        for round in 0..bench.options.scale.rounds {
            eprint(&format!("{}, round {}", row.rate.0, round + 1));
            for index in bench.without_log() {
                body(bench, index, row, connections, path);
            }
        }
    }
}

fn body(bench: &mut Bench, index: usize, row: Bodies, connections: usize, path: &str) {
    let server = &bench.servers[index];
    let column = server.column.clone();
    bench.table.cell(row.rate, &column);
    bench.table.cell(row.cpu, &column);
    let server = &bench.servers[index];
    let time = bench.options.scale.drain;
    let done = bench.spend(Some(server), || drain(server.address, path, connections, time));
    match done {
        Ok((Load { count, seconds }, spent)) => {
            let size = count as f64 / GIB;
            bench.table.add(row.rate, &column, size / seconds);
            bench.table.add(row.cpu, &column, spent.cpu / size);
        }
        Err(error) => bench.table.fail(format!("{}, {column}: {error}", row.rate.0)),
    }
}
