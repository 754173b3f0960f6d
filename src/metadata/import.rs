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
    told: Option<Timestamp>,
    source: String,
}

/// A move of which an import tells.
#[derive(Clone, Copy)]
struct Move {
    object: i64,
    /// Nothing was seen after now, whatever clock wrote it.
    since: Timestamp,
    /// What that clock wrote.
    told: Timestamp,
}

impl Move {
    fn ahead(self) -> Option<Timestamp> {
        Some(self.told).filter(|told| *told > self.since)
    }

    /// Does it come after all that is known? Moves that other clocks saw are in the order that those tell, so that the same bundles in any
    /// order, and with any clock here, end at the same place. Where one of two moments is ahead of our now and the other is not, some
    /// clock is wrong, and where they are the same they tell nothing: then what the tag has left is nothing that it comes back to.
    fn is_news(self, known: &[Span], at: Timestamp) -> bool {
        let Some(last) = known.last() else {
            return true;
        };
        let is_left = known.iter().rev().skip(1).any(|span| span.object == Some(self.object));
        match self.reached(known, at) {
            Some(reached) => self.told > reached || self.told == reached && !is_left,
            None => self.since >= last.since && !is_left,
        }
    }

    /// Until when the tag is known, if that can be compared with when this was. What is ahead of our now and was left since then counts
    /// only for what is ahead, too: a clock that was wrong once would hold the tag for ever.
    fn reached(self, known: &[Span], at: Timestamp) -> Option<Timestamp> {
        let (last, before) = known.split_last()?;
        let before = before.iter().filter_map(|span| span.told);
        let counting = before.filter(|told| self.told > at || *told <= at);
        let reached = counting.chain(last.told).fold(last.since, Timestamp::max);
        (self.told < at && reached < at || self.told > at && reached > at).then_some(reached)
    }
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
    let mut moves: Vec<Move> = Vec::with_capacity(tag.moves.len());
    for (digest, told) in &tag.moves {
        let object = revision_id(rows, repository, digest)?;
        // Nothing was seen before what was seen before it.
        let told = moves.last().map_or(*told, |before| before.told.max(*told));
        if moves.last().is_none_or(|before| before.object != object) {
            moves.push(Move { object, since: told.min(at), told });
        }
    }
    let Some(newest) = moves.last().copied() else {
        return Err(Failure::Rejected("a tag points at nothing"));
    };
    let known = spans(rows, repository, tag)?;
    let is_known = rows
        .prepare_cached("SELECT 1 FROM tags WHERE repository = ?1 AND name = ?2")?
        .exists(params![repository, tag.tag.as_str()])?;
    if let Some(first) = known.first().map(|first| first.since) {
        // After a clock that was ahead, what is cut to our now may be both, and comes last.
        let is_before = |one: &Move| one.since < first && !one.is_news(&known, at);
        let before: Vec<_> = moves.iter().copied().filter(is_before).collect();
        put_before(rows, repository, tag, &before, &known)?;
    }
    let last = known.last().map(|last| (last.object, last.since));
    // A frozen tag is served as it was when it was frozen, so that is not learned anew.
    let after = |frozen: Timestamp| Timestamp::from_millis(frozen.as_millis().saturating_add(1));
    let thawed = frozen.filter(|_| last.is_some()).map(after);
    let mut now = last.and_then(|(object, _)| object);
    for one in moves {
        if one.is_news(&known, at) && (now != Some(one.object) || !is_known) {
            let since = thawed.map_or(one.since, |thawed| one.since.max(thawed));
            put_after(rows, repository, tag, Move { since, ..one })?;
            now = Some(one.object);
        } else if now == Some(one.object)
            && one.reached(&known, at).is_some_and(|reached| one.told > reached)
        {
            // It left and came back, of which we saw nothing. What lay between may come later, and is over.
            note_told(rows, repository, tag, one.told)?;
        }
    }
    let points_at = now == Some(newest.object);
    if is_known || points_at && last.is_none_or(|(_, last)| newest.since >= last) {
        return Ok(points_at);
    }
    // Somebody took the tag out here, and now somebody brings it back.
    put_after(rows, repository, tag, Move { since: at, ..newest })?;
    Ok(true)
}

/// Moves the tag, and keeps what the other clock told.
fn put_after(rows: &Connection, repository: i64, tag: &ImportedTag, to: Move) -> Result<()> {
    move_tag(rows, repository, &tag.tag, Some(to.object), &tag.source, to.since)?;
    to.ahead().map_or(Ok(()), |told| note_told(rows, repository, tag, told))
}

fn note_told(rows: &Connection, repository: i64, tag: &ImportedTag, told: Timestamp) -> Result<()> {
    rows.prepare_cached(
        "UPDATE timeline SET told = ?3 WHERE repository = ?1 AND tag = ?2 AND until IS NULL",
    )?
    .execute(params![repository, tag.tag.as_str(), told.as_millis()])?;
    Ok(())
}

fn spans(rows: &Connection, repository: i64, tag: &ImportedTag) -> Result<Vec<Span>> {
    rows.prepare_cached(
        "SELECT object, since, until, told, source FROM timeline \
         WHERE repository = ?1 AND tag = ?2 ORDER BY id",
    )?
    .query_map(params![repository, tag.tag.as_str()], |row| {
        Ok(Span {
            object: row.get(0)?,
            since: Timestamp::from_millis(row.get(1)?),
            until: row.get(2)?,
            told: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis),
            source: row.get(4)?,
        })
    })?
    .collect()
}

/// Puts moves before all that is known of a tag: its rows are written again behind them, because their order is that of their numbers.
fn put_before(
    rows: &Connection,
    repository: i64,
    tag: &ImportedTag,
    moves: &[Move],
    known: &[Span],
) -> Result<()> {
    let (Some(first), false) = (known.first(), moves.is_empty()) else {
        return Ok(());
    };
    rows.prepare_cached("DELETE FROM timeline WHERE repository = ?1 AND tag = ?2")?
        .execute(params![repository, tag.tag.as_str()])?;
    let mut insert = rows.prepare_cached(
        "INSERT INTO timeline (repository, tag, object, since, until, told, source) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let ends = moves.iter().skip(1).map(|next| next.since).chain([first.since]);
    for (one, until) in moves.iter().zip(ends) {
        insert.execute(params![
            repository,
            tag.tag.as_str(),
            one.object,
            one.since.as_millis(),
            until.as_millis(),
            one.ahead().map(Timestamp::as_millis),
            tag.source
        ])?;
        presence::relink(rows, repository, one.object)?;
    }
    for Span { object, since, until, told, source } in known {
        insert.execute(params![
            repository,
            tag.tag.as_str(),
            object,
            since.as_millis(),
            until,
            told.map(Timestamp::as_millis),
            source
        ])?;
    }
    Ok(())
}
