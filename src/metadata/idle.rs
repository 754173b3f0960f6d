//! Rows: what is unused and for how long, through which upstream content came, and whether the clock that dates it is right.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::model::{ClockSeen, Idle, Usage};
use super::query::{self, Result};
use crate::clock::Timestamp;
use crate::oci::{Digest, RegistryName};

/// Rows that one transaction puts back.
const PUT_BACK_SLICE: i64 = 256;

/// Content that is here, the longest unused first.
pub(super) fn queue(
    rows: &Connection,
    before: Timestamp,
    from: Option<&RegistryName>,
    limit: u32,
) -> Result<Vec<Idle>> {
    let before = before.as_millis();
    let Some(upstream) = from else {
        return rows
            .prepare_cached(
                "SELECT digest, size, idle FROM objects INDEXED BY objects_idle \
                 WHERE state = 1 AND idle < ?1 ORDER BY idle LIMIT ?2",
            )?
            .query_map(params![before, limit], idle)?
            .collect();
    };
    let origin: Option<i64> = rows
        .prepare_cached("SELECT id FROM origins WHERE upstream = ?1")?
        .query_row([upstream.as_str()], |row| row.get(0))
        .optional()?;
    rows.prepare_cached(
        "SELECT digest, size, idle FROM objects INDEXED BY objects_origin \
         WHERE state = 1 AND origin = ?1 AND idle < ?2 ORDER BY idle LIMIT ?3",
    )?
    .query_map(params![origin, before, limit], idle)?
    .collect()
}

fn idle(row: &Row<'_>) -> Result<Idle> {
    Ok(Idle {
        digest: query::digest(row, 0)?,
        size: query::unsigned(row, 1)?,
        since: query::timestamp(row, 2)?,
    })
}

pub(super) fn postpone(rows: &Connection, digests: &[Digest], to: Timestamp) -> Result<()> {
    let mut statement = rows.prepare_cached(
        "UPDATE objects SET idle = max(idle, ?2) WHERE digest = ?1 AND state = 1",
    )?;
    for digest in digests {
        statement.execute(params![digest.to_key(), to.as_millis()])?;
    }
    Ok(())
}

/// Puts times that are later than `ahead` back to `now`: places in the queue, and when something began to wait for its end. A slice at a
/// time, from the ends of the indexes; tells whether there was any.
pub(super) fn put_back(rows: &Connection, now: Timestamp, ahead: Timestamp) -> Result<bool> {
    let (now, ahead) = (now.as_millis(), ahead.as_millis());
    let used = rows
        .prepare_cached(
            "UPDATE objects SET idle = ?1, accessed = min(accessed, ?1) WHERE id IN \
             (SELECT id FROM objects INDEXED BY objects_idle \
             WHERE state = 1 AND idle > ?2 LIMIT ?3)",
        )?
        .execute([now, ahead, PUT_BACK_SLICE])?;
    let waiting: Vec<i64> = rows
        .prepare_cached("SELECT object FROM doomed WHERE since > ?1 LIMIT ?2")?
        .query_map([ahead, PUT_BACK_SLICE], |row| row.get(0))?
        .collect::<Result<_>>()?;
    // Whatever is unlinked is doomed at the same moment, or later.
    let mut unlinked = rows
        .prepare_cached("UPDATE revisions SET unlinked = ?2 WHERE object = ?1 AND unlinked > ?2")?;
    let mut doomed = rows.prepare_cached("UPDATE doomed SET since = ?2 WHERE object = ?1")?;
    for object in &waiting {
        unlinked.execute([*object, now])?;
        doomed.execute([*object, now])?;
    }
    Ok(used > 0 || !waiting.is_empty())
}

pub(super) fn clock_seen(rows: &Connection) -> Result<Option<ClockSeen>> {
    rows.prepare_cached("SELECT since, last FROM clock WHERE id = 1")?
        .query_row([], |row| {
            Ok(ClockSeen { since: query::timestamp(row, 0)?, last: query::timestamp(row, 1)? })
        })
        .optional()
}

pub(super) fn note_clock(rows: &Connection, seen: ClockSeen) -> Result<()> {
    rows.prepare_cached("INSERT OR REPLACE INTO clock (id, since, last) VALUES (1, ?1, ?2)")?
        .execute([seen.since.as_millis(), seen.last.as_millis()])?;
    Ok(())
}

/// The sums of all origins, in the order of their names.
pub(super) fn usage(rows: &Connection) -> Result<Vec<(RegistryName, Usage)>> {
    rows.prepare_cached("SELECT upstream, objects, bytes FROM origins ORDER BY upstream")?
        .query_map([], |row| {
            let objects = query::unsigned(row, 1)?;
            Ok((query::text(row, 0)?, Usage { objects, bytes: query::unsigned(row, 2)? }))
        })?
        .collect()
}
