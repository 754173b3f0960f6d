//! Writes: what is known of an upstream or a repository goes, a slice at a time, so that pulls have their turn in between.
//!
//! What must hold: each slice leaves the rows whole: tags go with their timelines, a revision with what it proved, the repository
//! last. Content is not touched: what lost the last thing that held it waits for its end.

use rusqlite::{Connection, OptionalExtension, params};

use super::hot::Key;
use super::model::{Purged, RepositoryKey, Within};
use super::operation::{Applied, Changed, Outcome, repository_id};
use super::query::{self, Result};
use super::removal::{Done, doom, drop_member, leave};
use crate::clock::Timestamp;
use crate::oci::{Digest, Tag};

/// Rows of each kind that one slice takes out.
const SLICE: usize = 256;
const SLICE_ROWS: i64 = 256;

pub(super) fn purge(rows: &Connection, within: &Within, at: Timestamp) -> Done {
    let (mut changed, mut told) = (Vec::new(), Purged::default());
    let next: Option<(i64, RepositoryKey)> = match within {
        Within::Upstream(upstream) => rows
            .prepare_cached(
                "SELECT id, upstream, name FROM repositories WHERE upstream = ?1 LIMIT 1",
            )?
            .query_row([upstream.as_str()], |row| {
                let key =
                    RepositoryKey { upstream: query::text(row, 1)?, name: query::text(row, 2)? };
                Ok((row.get(0)?, key))
            })
            .optional()?,
        Within::Repository(key) => repository_id(rows, key)?.map(|id| (id, key.clone())),
    };
    let Some((id, repository)) = next else {
        return Ok(Applied { changed, outcome: Outcome::Purged(told) });
    };
    told.more = true;
    let emptied = purge_tags(rows, (id, &repository), &mut changed, &mut told)?
        && purge_revisions(rows, (id, &repository), at, &mut changed, &mut told)?
        && purge_members(rows, (id, &repository), at, &mut changed)?;
    if emptied {
        rows.prepare_cached("DELETE FROM repositories WHERE id = ?1")?.execute([id])?;
        changed.push(Key::Visibility(repository));
        told.repositories += 1;
        told.more = matches!(within, Within::Upstream(_));
    }
    Ok(Applied { changed, outcome: Outcome::Purged(told) })
}

/// Each of these answers whether nothing of its kind is left.
fn purge_tags(
    rows: &Connection,
    (id, repository): (i64, &RepositoryKey),
    changed: &mut Changed,
    told: &mut Purged,
) -> Result<bool> {
    let tags: Vec<Tag> = rows
        .prepare_cached("SELECT name FROM tags WHERE repository = ?1 LIMIT ?2")?
        .query_map([id, SLICE_ROWS], |row| query::text(row, 0))?
        .collect::<Result<_>>()?;
    let all = tags.len() < SLICE;
    let mut moves =
        rows.prepare_cached("DELETE FROM timeline WHERE repository = ?1 AND tag = ?2")?;
    let mut current =
        rows.prepare_cached("DELETE FROM tags WHERE repository = ?1 AND name = ?2")?;
    for tag in tags {
        moves.execute(params![id, tag.as_str()])?;
        current.execute(params![id, tag.as_str()])?;
        told.tags += 1;
        changed.push(Key::Tag(repository.clone(), tag));
    }
    if all {
        // Of tags of which a part was deleted before.
        rows.prepare_cached("DELETE FROM timeline WHERE repository = ?1")?.execute([id])?;
    }
    Ok(all)
}

fn purge_revisions(
    rows: &Connection,
    (id, repository): (i64, &RepositoryKey),
    at: Timestamp,
    changed: &mut Changed,
    told: &mut Purged,
) -> Result<bool> {
    let objects: Vec<i64> = rows
        .prepare_cached("SELECT object FROM revisions WHERE repository = ?1 LIMIT ?2")?
        .query_map([id, SLICE_ROWS], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let all = objects.len() < SLICE;
    for object in objects {
        leave(rows, (id, repository), object, at, changed)?;
        doom(rows, object, at)?;
        told.revisions += 1;
    }
    Ok(all)
}

fn purge_members(
    rows: &Connection,
    (id, repository): (i64, &RepositoryKey),
    at: Timestamp,
    changed: &mut Changed,
) -> Result<bool> {
    let kept: Vec<i64> = rows
        .prepare_cached("SELECT object FROM referrers WHERE repository = ?1")?
        .query_map([id], |row| row.get(0))?
        .collect::<Result<_>>()?;
    for index in kept {
        doom(rows, index, at)?;
    }
    rows.prepare_cached("DELETE FROM referrers WHERE repository = ?1")?.execute([id])?;
    let members: Vec<(i64, Digest)> = rows
        .prepare_cached(
            "SELECT m.object, o.digest FROM membership m JOIN objects o ON o.id = m.object \
             WHERE m.repository = ?1 LIMIT ?2",
        )?
        .query_map([id, SLICE_ROWS], |row| Ok((row.get(0)?, query::digest(row, 1)?)))?
        .collect::<Result<_>>()?;
    let all = members.len() < SLICE;
    for (object, digest) in members {
        drop_member(rows, id, object)?;
        doom(rows, object, at)?;
        changed.push(Key::Member(repository.clone(), digest));
    }
    Ok(all)
}
