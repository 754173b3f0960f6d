//! Writes: what an import brings, all of it in one operation.
//!
//! What must hold: a tag goes where the import says unless it was seen to move later here, and its timeline stays in the order of time:
//! what the import knows from before our first look comes before it, what it knows from after our last one comes after it, and what
//! lies between is left to what was seen here. What a repository had by a credential stays bound to it, unless the operator says that
//! anybody may read the repository.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::hot::Key;
use super::operation::{
    Applied, Changed, Context, Failure, Outcome, Standing, move_tag, repository_id, revision_id,
    set_visibility,
};
use super::query::Result;
use super::sets::{ImportCommit, Imported, ImportedTag};
use super::{presence, revision, set_rows};
use crate::clock::Timestamp;

/// See [`super::operation::Operation::facts`]: the manifests are here. That a tag is gone upstream is of more weight than an import.
pub(super) fn facts(import: &ImportCommit) -> Changed {
    let objects = import.revisions.iter().map(|commit| Key::Object(commit.digest));
    objects.chain(import.public.iter().cloned().map(Key::Visibility)).collect()
}

pub(super) fn apply(
    rows: &Connection,
    (import, frozen): (&ImportCommit, &[Option<Timestamp>]),
    context: &mut Context,
) -> std::result::Result<Applied, Failure> {
    let (mut changed, mut told) = (Changed::new(), Imported::default());
    let public: HashSet<_> = import.public.iter().collect();
    for commit in &import.revisions {
        let is_public = public.contains(&commit.repository);
        let standing = if is_public { Standing::Renewed } else { Standing::Kept };
        changed.extend(revision::commit_present(rows, commit, standing)?);
    }
    for repository in &import.public {
        set_visibility(rows, repository, true, import.at)?;
        changed.push(Key::Visibility(repository.clone()));
    }
    for (tag, frozen) in import.tags.iter().zip(frozen) {
        told.moved.push(take_tag(rows, tag, *frozen, import.at)?);
        changed.push(Key::Tag(tag.repository.clone(), tag.tag.clone()));
    }
    let set = set_rows::of_import(rows, import)?;
    set_rows::add_members(rows, set, &import.members)?;
    context.epoch += 1;
    Ok(Applied { changed, outcome: Outcome::Imported(told) })
}

/// A span of a timeline; the object is none where the tag was absent.
struct Span {
    object: Option<i64>,
    since: Timestamp,
    until: Option<i64>,
    source: String,
}

/// Brings in where a tag was and is. `false`: it stays where it was.
fn take_tag(
    rows: &Connection,
    tag: &ImportedTag,
    frozen: Option<Timestamp>,
    at: Timestamp,
) -> std::result::Result<bool, Failure> {
    let repository = repository_id(rows, &tag.repository)?
        .ok_or(Failure::Rejected("the repository of a tag has no revision"))?;
    let mut moves: Vec<(i64, Timestamp)> = Vec::with_capacity(tag.moves.len());
    for (digest, since) in &tag.moves {
        let object = revision_id(rows, repository, digest)?;
        // Whatever clock wrote it: nothing was seen after now, or before what was seen before it.
        let since = moves.last().map_or(*since, |(_, before)| (*before).max(*since)).min(at);
        if moves.last().is_none_or(|(before, _)| *before != object) {
            moves.push((object, since));
        }
    }
    let Some((points_at, moved)) = moves.last().copied() else {
        return Err(Failure::Rejected("a tag points at nothing"));
    };
    let known = spans(rows, repository, tag)?;
    let is_known = rows
        .prepare_cached("SELECT 1 FROM tags WHERE repository = ?1 AND name = ?2")?
        .exists(params![repository, tag.tag.as_str()])?;
    if let Some(first) = known.first().map(|first| first.since) {
        let before: Vec<_> = moves.iter().copied().filter(|(_, since)| *since < first).collect();
        put_before(rows, repository, tag, &before, &known)?;
    }
    let last = known.last().map(|last| (last.object, last.since));
    // A frozen tag is served as it was when it was frozen, so that is not learned anew.
    let after = |frozen: Timestamp| Timestamp::from_millis(frozen.as_millis().saturating_add(1));
    let thawed = frozen.filter(|_| last.is_some()).map(after);
    let mut now = last.and_then(|(object, _)| object);
    for (object, since) in moves {
        // Times may be the same, or the same by now if our clock is behind that of whoever saw the move: what the tag has left is then
        // nothing that it comes back to.
        let is_left = known.iter().rev().skip(1).any(|span| span.object == Some(object));
        let is_later =
            last.is_none_or(|(_, last)| since > last && since < at || since >= last && !is_left);
        if is_later && (now != Some(object) || !is_known) {
            let since = thawed.map_or(since, |thawed| since.max(thawed));
            move_tag(rows, repository, &tag.tag, Some(object), &tag.source, since)?;
            now = Some(object);
        }
    }
    if is_known || now == Some(points_at) && last.is_none_or(|(_, last)| moved >= last) {
        return Ok(now == Some(points_at));
    }
    // Somebody took the tag out here, and now somebody brings it back.
    move_tag(rows, repository, &tag.tag, Some(points_at), &tag.source, at)?;
    Ok(true)
}

fn spans(rows: &Connection, repository: i64, tag: &ImportedTag) -> Result<Vec<Span>> {
    rows.prepare_cached(
        "SELECT object, since, until, source FROM timeline \
         WHERE repository = ?1 AND tag = ?2 ORDER BY id",
    )?
    .query_map(params![repository, tag.tag.as_str()], |row| {
        Ok(Span {
            object: row.get(0)?,
            since: Timestamp::from_millis(row.get(1)?),
            until: row.get(2)?,
            source: row.get(3)?,
        })
    })?
    .collect()
}

/// Puts moves before all that is known of a tag: its rows are written again behind them, because their order is that of their numbers.
fn put_before(
    rows: &Connection,
    repository: i64,
    tag: &ImportedTag,
    moves: &[(i64, Timestamp)],
    known: &[Span],
) -> Result<()> {
    let (Some(first), false) = (known.first(), moves.is_empty()) else {
        return Ok(());
    };
    rows.prepare_cached("DELETE FROM timeline WHERE repository = ?1 AND tag = ?2")?
        .execute(params![repository, tag.tag.as_str()])?;
    let mut insert = rows.prepare_cached(
        "INSERT INTO timeline (repository, tag, object, since, until, source) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let ends = moves.iter().skip(1).map(|(_, since)| *since).chain([first.since]);
    for ((object, since), until) in moves.iter().zip(ends) {
        insert.execute(params![
            repository,
            tag.tag.as_str(),
            object,
            since.as_millis(),
            until.as_millis(),
            tag.source
        ])?;
        presence::relink(rows, repository, *object)?;
    }
    for Span { object, since, until, source } in known {
        insert.execute(params![
            repository,
            tag.tag.as_str(),
            object,
            since.as_millis(),
            until,
            source
        ])?;
    }
    Ok(())
}
