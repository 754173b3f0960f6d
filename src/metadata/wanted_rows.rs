//! Rows: what was asked for in vain. `usage.wanted` counts them, so that their number has a bound.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::model::RepositoryKey;
use super::query::{self, Result};
use super::sets::{WANTED_MAX, Wanted, WantedWhat};
use crate::clock::Timestamp;

const KIND_TAG: i64 = 0;
const KIND_REVISION: i64 = 1;
const KIND_BLOB: i64 = 2;

/// How often and when something was asked for in vain since it was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Miss {
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
    pub(super) times: u64,
    pub(super) unreachable: bool,
}

/// Kind and text, as the rows have them.
fn stored(what: &WantedWhat) -> (i64, Value) {
    match what {
        WantedWhat::Tag(tag) => (KIND_TAG, Value::Blob(tag.as_str().as_bytes().to_vec())),
        WantedWhat::Revision(digest) => (KIND_REVISION, Value::Blob(digest.to_key())),
        WantedWhat::Blob(digest) => (KIND_BLOB, Value::Blob(digest.to_key())),
    }
}

/// Adds misses to the row, which is made if there is none; then the one that was not asked for longest may go.
pub(super) fn add(
    rows: &Connection,
    repository: &RepositoryKey,
    what: &WantedWhat,
    miss: &Miss,
) -> Result<()> {
    let ((kind, what), Miss { first, last, times, unreachable }) = (stored(what), miss);
    let (upstream, name) = (repository.upstream.as_str(), repository.name.as_str());
    let times = i64::try_from(*times).unwrap_or(i64::MAX);
    let known = rows
        .prepare_cached(
            "UPDATE wanted SET last = max(last, ?5), times = times + ?6, unreachable = ?7 \
             WHERE upstream = ?1 AND name = ?2 AND kind = ?3 AND what = ?4",
        )?
        .execute(params![upstream, name, kind, what, last.as_millis(), times, unreachable])?;
    if known > 0 {
        return Ok(());
    }
    rows.prepare_cached(
        "INSERT INTO wanted (upstream, name, kind, what, first, last, times, unreachable) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        upstream,
        name,
        kind,
        what,
        first.as_millis(),
        last.as_millis(),
        times,
        unreachable
    ])?;
    let count: i64 = rows
        .prepare_cached("UPDATE usage SET wanted = wanted + 1 RETURNING wanted")?
        .query_row([], |row| row.get(0))?;
    if usize::try_from(count).is_ok_and(|count| count > WANTED_MAX) {
        drop_oldest(rows)?;
    }
    Ok(())
}

fn drop_oldest(rows: &Connection) -> Result<()> {
    let oldest: Option<(String, String, i64, Value)> = rows
        .prepare_cached(
            "SELECT upstream, name, kind, what FROM wanted WHERE last > ?1 ORDER BY last LIMIT 1",
        )?
        .query_row([i64::MIN], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((upstream, name, kind, what)) = oldest else {
        return Ok(());
    };
    rows.prepare_cached(
        "DELETE FROM wanted WHERE upstream = ?1 AND name = ?2 AND kind = ?3 AND what = ?4",
    )?
    .execute(params![upstream, name, kind, what])?;
    rows.prepare_cached("UPDATE usage SET wanted = wanted - 1")?.execute([])?;
    Ok(())
}

/// What was asked for since, and is not here now, in the order of repositories and kinds.
pub(super) fn page(
    rows: &Connection,
    since: Timestamp,
    after: Option<(&RepositoryKey, &WantedWhat)>,
    limit: u32,
) -> Result<Vec<Wanted>> {
    let (upstream, name, (kind, what)) = match after {
        None => ("", "", (KIND_TAG, Value::Blob(Vec::new()))),
        Some((repository, what)) => {
            (repository.upstream.as_str(), repository.name.as_str(), stored(what))
        }
    };
    rows.prepare_cached(
        "SELECT w.upstream, w.name, w.kind, w.what, w.first, w.last, w.times, w.unreachable \
         FROM wanted w \
         WHERE (w.upstream, w.name, w.kind, w.what) > (?1, ?2, ?3, ?4) AND w.last >= ?5 \
         AND NOT EXISTS (SELECT 1 FROM repositories p \
             JOIN tags t ON t.repository = p.id AND t.name = CAST(w.what AS TEXT) \
             JOIN objects o ON o.id = t.object \
             WHERE w.kind = 0 AND p.upstream = w.upstream AND p.name = w.name AND o.state = 1) \
         AND NOT EXISTS (SELECT 1 FROM objects o \
             JOIN repositories p ON p.upstream = w.upstream AND p.name = w.name \
             JOIN membership m ON m.object = o.id AND m.repository = p.id \
             WHERE w.kind > 0 AND o.digest = w.what AND o.state = 1) \
         ORDER BY w.upstream, w.name, w.kind, w.what LIMIT ?6",
    )?
    .query_map(params![upstream, name, kind, what, since.as_millis(), limit], wanted)?
    .collect()
}

fn wanted(row: &Row<'_>) -> Result<Wanted> {
    let what = match row.get(2)? {
        KIND_TAG => {
            let text: Vec<u8> = row.get(3)?;
            WantedWhat::Tag(query::parsed(3, &String::from_utf8_lossy(&text))?)
        }
        KIND_REVISION => WantedWhat::Revision(query::digest(row, 3)?),
        _ => WantedWhat::Blob(query::digest(row, 3)?),
    };
    Ok(Wanted {
        repository: RepositoryKey { upstream: query::text(row, 0)?, name: query::text(row, 1)? },
        what,
        first: query::timestamp(row, 4)?,
        last: query::timestamp(row, 5)?,
        times: query::unsigned(row, 6)?,
        unreachable: row.get(7)?,
    })
}

/// Takes all of it out, and tells how much it was.
pub(super) fn forget(rows: &Connection) -> Result<u64> {
    let count = rows.prepare_cached("DELETE FROM wanted")?.execute([])?;
    rows.prepare_cached("UPDATE usage SET wanted = 0")?.execute([])?;
    Ok(u64::try_from(count).unwrap_or(u64::MAX))
}
