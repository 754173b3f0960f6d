//! Rows: what is here counts in the sums, and what is used becomes young.
//!
//! What must hold: `usage` and `origins` are the sums over the rows with `state = 1`, at the end of every transaction. An object counts
//! for one upstream, the one through which its bytes came; what came before anybody said through which one counts for none until
//! somebody does.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::model::FileMark;
use super::operation::{STATE_ABSENT, object_id, stored};
use super::query::{Result, STATE_PRESENT};
use crate::clock::Timestamp;
use crate::oci::{Digest, RegistryName};

/// Access times are kept in steps, so that a hit is rarely a write.
const ACCESS_STEP: Duration = Duration::from_secs(5 * 60);
/// Objects that one use of a manifest makes young; an image with more ages in parts.
const TOUCHED_MAX: usize = 4096;
/// Memberships among which the latest proof is looked for.
const MEMBERSHIPS_MAX: u32 = 64;
const STATE_QUARANTINED: i64 = 2;

/// Sets the state, and the sums of what is here with it. `upstream`: through which the bytes came, if that is known; else what the
/// object's membership tells.
pub(super) fn set_present(
    rows: &Connection,
    object: i64,
    (size, mark): (u64, Option<FileMark>),
    upstream: Option<&RegistryName>,
    at: Timestamp,
) -> Result<()> {
    count_out(rows, object)?;
    rows.prepare_cached(
        "UPDATE objects SET state = 1, size = ?2, verified = ?3, accessed = max(accessed, ?3), \
         idle = max(idle, ?3), modified = ?4, inode = ?5, removed = NULL WHERE id = ?1",
    )?
    .execute(params![
        object,
        stored(size),
        at.as_millis(),
        mark.map(|mark| mark.modified_nanos),
        mark.map(|mark| mark.inode.cast_signed()),
    ])?;
    count_in(rows, object, upstream)
}

pub(super) fn set_absent(rows: &Connection, digest: &Digest, quarantined: bool) -> Result<()> {
    let Some(object) = object_id(rows, digest)? else {
        return Ok(());
    };
    count_out(rows, object)?;
    let state = if quarantined { STATE_QUARANTINED } else { STATE_ABSENT };
    rows.prepare_cached(
        "UPDATE objects SET state = ?2, modified = NULL, inode = NULL, origin = NULL WHERE id = ?1",
    )?
    .execute(params![object, state])?;
    Ok(())
}

/// The object, if it is here, counts no more. To be called before its state, size or origin changes.
pub(super) fn count_out(rows: &Connection, object: i64) -> Result<()> {
    if let Some((size, origin)) = counted(rows, object)? {
        add(rows, origin, -1, -size)?;
    }
    Ok(())
}

/// The object is here now and counts, for `upstream`, or else for the one that its membership tells.
pub(super) fn count_in(
    rows: &Connection,
    object: i64,
    upstream: Option<&RegistryName>,
) -> Result<()> {
    let Some((size, _)) = counted(rows, object)? else {
        return Ok(());
    };
    let origin = match upstream {
        Some(upstream) => Some(ensure_origin(rows, upstream.as_str())?),
        None => {
            member_of(rows, object)?.map(|upstream| ensure_origin(rows, &upstream)).transpose()?
        }
    };
    set_origin(rows, object, origin)?;
    add(rows, origin, 1, size)
}

/// The object is content of the repository: if it is here and nobody said through which upstream, it was this one.
pub(super) fn settle_origin(rows: &Connection, object: i64, repository: i64) -> Result<()> {
    let Some((size, None)) = counted(rows, object)? else {
        return Ok(());
    };
    let upstream: String = rows
        .prepare_cached("SELECT upstream FROM repositories WHERE id = ?1")?
        .query_row([repository], |row| row.get(0))?;
    let origin = ensure_origin(rows, &upstream)?;
    set_origin(rows, object, Some(origin))?;
    add_to_origin(rows, origin, 1, size)
}

/// Size and origin of an object that is here.
fn counted(rows: &Connection, object: i64) -> Result<Option<(i64, Option<i64>)>> {
    rows.prepare_cached("SELECT size, origin FROM objects WHERE id = ?1 AND state = ?2")?
        .query_row([object, STATE_PRESENT], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn set_origin(rows: &Connection, object: i64, origin: Option<i64>) -> Result<()> {
    rows.prepare_cached("UPDATE objects SET origin = ?2 WHERE id = ?1")?
        .execute(params![object, origin])?;
    Ok(())
}

/// The upstream that showed the object last.
fn member_of(rows: &Connection, object: i64) -> Result<Option<String>> {
    let shown: Vec<(i64, String)> = rows
        .prepare_cached(
            "SELECT m.proved, p.upstream FROM membership m \
             JOIN repositories p ON p.id = m.repository WHERE m.object = ?1 LIMIT ?2",
        )?
        .query_map(params![object, MEMBERSHIPS_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    Ok(shown.into_iter().max_by_key(|(proved, _)| *proved).map(|(_, upstream)| upstream))
}

fn ensure_origin(rows: &Connection, upstream: &str) -> Result<i64> {
    let known = rows
        .prepare_cached("SELECT id FROM origins WHERE upstream = ?1")?
        .query_row([upstream], |row| row.get(0))
        .optional()?;
    match known {
        Some(id) => Ok(id),
        None => rows
            .prepare_cached("INSERT INTO origins (upstream, objects, bytes) VALUES (?1, 0, 0)")?
            .insert([upstream]),
    }
}

fn add(rows: &Connection, origin: Option<i64>, objects: i64, bytes: i64) -> Result<()> {
    rows.prepare_cached("UPDATE usage SET objects = objects + ?1, bytes = bytes + ?2")?
        .execute(params![objects, bytes])?;
    match origin {
        Some(origin) => add_to_origin(rows, origin, objects, bytes),
        None => Ok(()),
    }
}

fn add_to_origin(rows: &Connection, origin: i64, objects: i64, bytes: i64) -> Result<()> {
    rows.prepare_cached(
        "UPDATE origins SET objects = objects + ?2, bytes = bytes + ?3 WHERE id = ?1",
    )?
    .execute([origin, objects, bytes])?;
    Ok(())
}

/// A tag links to the revision again, or upstream showed it again: it waits for its end no more, nor does what went with it.
pub(super) fn relink(rows: &Connection, repository: i64, object: i64) -> Result<()> {
    let mut relink = rows.prepare_cached(
        "UPDATE revisions SET unlinked = NULL \
         WHERE repository = ?1 AND object = ?2 AND unlinked IS NOT NULL",
    )?;
    relink.execute([repository, object])?;
    let mut open = below(rows, object)?;
    while let Some(next) = open.pop() {
        if relink.execute([repository, next])? > 0 {
            open.extend(below(rows, next)?);
        }
    }
    Ok(())
}

/// What goes with a revision: children of an index, and what refers to it over `subject`.
pub(super) fn below(rows: &Connection, object: i64) -> Result<Vec<i64>> {
    let mut found: Vec<i64> = rows
        .prepare_cached("SELECT child FROM edges WHERE parent = ?1 AND role = 2")?
        .query_map([object], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut referrers = rows.prepare_cached(
        "SELECT r.id FROM objects o JOIN objects r INDEXED BY objects_subject \
         ON r.subject = o.digest WHERE o.id = ?1",
    )?;
    for referrer in referrers.query_map([object], |row| row.get(0))? {
        found.push(referrer?);
    }
    Ok(found)
}

/// Writes a batched access time.
pub(super) fn touch_digest(rows: &Connection, digest: &Digest, at: Timestamp) -> Result<()> {
    let Some(object) = object_id(rows, digest)? else {
        return Ok(());
    };
    let before = at.minus(ACCESS_STEP).as_millis();
    let lately = rows
        .prepare_cached(
            "SELECT 1 FROM objects WHERE id = ?1 AND state = 1 AND accessed > ?2 AND idle > ?2",
        )?
        .exists([object, before])?;
    // Whoever used it a moment ago has made all of it young.
    if lately { Ok(()) } else { touch(rows, object, at) }
}

/// The object is used, and with it everything below it and what refers to that: an image ages as one. What is not here stays as it is,
/// and what is below it is used all the same.
pub(super) fn touch(rows: &Connection, object: i64, at: Timestamp) -> Result<()> {
    let (at, before) = (at.as_millis(), at.minus(ACCESS_STEP).as_millis());
    let mut used = rows.prepare_cached(
        "UPDATE objects SET accessed = max(accessed, ?2), idle = max(idle, ?2) \
         WHERE id = ?1 AND state = 1 AND (accessed <= ?3 OR idle <= ?3)",
    )?;
    let mut below = rows.prepare_cached("SELECT child FROM edges WHERE parent = ?1")?;
    let mut referrers = rows.prepare_cached(
        "SELECT r.id FROM objects o JOIN objects r INDEXED BY objects_subject \
         ON r.subject = o.digest WHERE o.id = ?1 LIMIT ?2",
    )?;
    let limit = i64::try_from(TOUCHED_MAX).unwrap_or(i64::MAX);
    let (mut open, mut seen) = (VecDeque::from([object]), HashSet::from([object]));
    while let Some(object) = open.pop_front() {
        used.execute(params![object, at, before])?;
        let children = below.query_map([object], |row| row.get(0))?;
        let children: Vec<i64> = children.collect::<Result<_>>()?;
        let referring = referrers.query_map([object, limit], |row| row.get(0))?;
        let referring: Vec<i64> = referring.collect::<Result<_>>()?;
        for next in children.into_iter().chain(referring) {
            if seen.len() >= TOUCHED_MAX {
                return Ok(());
            }
            if seen.insert(next) {
                open.push_back(next);
            }
        }
    }
    Ok(())
}
