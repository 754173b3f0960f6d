//! Rows: named sets of revisions.
//!
//! What must hold: a member is a link to a revision of its repository, as a tag's is: the revision stays as long as the set does, and what
//! takes the revision out takes the member out. `sets.members` counts them at the end of every transaction. Whatever makes a set keep more
//! than it did moves the epoch of the rules, so that nobody takes what was looked at before. A set that was removed is none from then on:
//! it is not listed, its name is free, and its members link to nothing. They go in slices, so that pulls have their turn in between, also
//! after a crash.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::model::RepositoryKey;
use super::operation::{Applied, Context, Failure, Outcome, object_id, repository_id};
use super::presence;
use super::query::{self, Result};
use super::removal::unlink;
use super::sets::{ImportCommit, SETS_MAX, SetKind, SetMember, SetRecord};
use crate::clock::Timestamp;
use crate::oci::{SetName, Tag};

const KIND_RECORD: i64 = 0;
const KIND_IMPORT: i64 = 1;
/// Added to the kind of a set that was removed and still has members; `until` says when.
pub(super) const KIND_REMOVED: i64 = 2;
/// Members that one slice takes out.
pub(super) const SLICE: usize = 256;
/// Kept sets of one revision that are told.
const KEEPING_MAX: i64 = 64;

#[derive(Clone, Debug)]
pub(super) enum SetChange {
    Add {
        name: SetName,
        kind: SetKind,
        detail: String,
        at: Timestamp,
    },
    Change {
        id: i64,
        until: Option<Timestamp>,
        kept: Option<bool>,
    },
    Members {
        id: i64,
        members: Vec<SetMember>,
    },
    Without {
        id: i64,
        members: Vec<SetMember>,
    },
    Describe {
        id: i64,
        detail: String,
    },
    Remove {
        id: i64,
        at: Timestamp,
    },
    /// A slice of the members of sets that were removed; tells whether there may be more.
    Clear,
}

impl SetChange {
    /// Must it survive a loss of power once it was answered? Members are noted by the way.
    pub(super) fn must_last(&self) -> bool {
        !matches!(self, Self::Members { .. } | Self::Without { .. } | Self::Clear)
    }

    /// See [`super::operation::Operation::clears`].
    pub(super) fn clears(&self) -> bool {
        matches!(self, Self::Remove { .. } | Self::Clear)
    }

    pub(super) fn apply(
        &self,
        rows: &Connection,
        context: &mut Context,
    ) -> std::result::Result<Applied, Failure> {
        let changed = match self {
            Self::Add { name, kind, detail, at } => {
                let set = add(rows, name, *kind, (*at, None), detail)?;
                return Ok(Applied::telling(Outcome::Set(set.map(Box::new))));
            }
            Self::Change { id, until, kept } => {
                if *kept == Some(true) {
                    context.epoch += 1;
                }
                change(rows, *id, *until, *kept)?
            }
            Self::Members { id, members } => {
                let (added, unknown) = add_members(rows, *id, members)?;
                if added > 0 && is_kept(rows, *id)? {
                    context.epoch += 1;
                }
                return Ok(Applied::telling(Outcome::Unknown(unknown)));
            }
            Self::Without { id, members } => remove_members(rows, *id, members)? > 0,
            Self::Describe { id, detail } => describe(rows, *id, detail)?,
            Self::Remove { id, at } => remove(rows, *id, *at)?,
            Self::Clear => clear(rows)?,
        };
        Ok(Applied::telling(Outcome::Changed(changed)))
    }
}

/// Makes a set that keeps nothing yet; `None` if there is one of that name, or too many.
fn add(
    rows: &Connection,
    name: &SetName,
    kind: SetKind,
    (since, until): (Timestamp, Option<Timestamp>),
    detail: &str,
) -> Result<Option<SetRecord>> {
    let count: i64 =
        rows.prepare_cached("SELECT count(*) FROM sets")?.query_row([], |row| row.get(0))?;
    let full = usize::try_from(count).is_ok_and(|count| count >= SETS_MAX);
    if full || by_name(rows, name)?.is_some() {
        return Ok(None);
    }
    let number = match kind {
        SetKind::Record => KIND_RECORD,
        SetKind::Import => KIND_IMPORT,
    };
    let id = rows
        .prepare_cached(
            "INSERT INTO sets (name, kind, since, until, kept, members, detail) \
             VALUES (?1, ?2, ?3, ?4, 0, 0, ?5)",
        )?
        .insert(params![
            name.as_str(),
            number,
            since.as_millis(),
            until.map(Timestamp::as_millis),
            detail
        ])?;
    let (name, detail) = (name.clone(), detail.to_owned());
    Ok(Some(SetRecord { id, name, kind, since, until, kept: false, members: 0, detail }))
}

fn by_name(rows: &Connection, name: &SetName) -> Result<Option<(i64, SetKind)>> {
    rows.prepare_cached("SELECT id, kind FROM sets WHERE name = ?1")?
        .query_row([name.as_str()], |row| Ok((row.get(0)?, kind(row.get(1)?))))
        .optional()
}

fn kind(number: i64) -> SetKind {
    if number == KIND_IMPORT { SetKind::Import } else { SetKind::Record }
}

/// The set of an import, which is kept: a new one, or the one that has the name.
pub(super) fn of_import(
    rows: &Connection,
    import: &ImportCommit,
) -> std::result::Result<i64, Failure> {
    let (name, detail) = (&import.set, import.detail.as_str());
    let id = match by_name(rows, name)? {
        Some((id, SetKind::Import)) => {
            describe(rows, id, detail)?;
            id
        }
        Some((id, SetKind::Record)) => id,
        None => {
            let times = (import.at, Some(import.at));
            add(rows, name, SetKind::Import, times, detail)?
                .ok_or(Failure::Rejected("there are too many sets"))?
                .id
        }
    };
    change(rows, id, None, Some(true))?;
    Ok(id)
}

fn change(
    rows: &Connection,
    id: i64,
    until: Option<Timestamp>,
    kept: Option<bool>,
) -> Result<bool> {
    let changed = rows
        .prepare_cached(
            "UPDATE sets SET until = coalesce(?2, until), kept = coalesce(?3, kept) \
             WHERE id = ?1 AND kind < ?4",
        )?
        .execute(params![id, until.map(Timestamp::as_millis), kept, KIND_REMOVED])?;
    Ok(changed > 0)
}

fn is_kept(rows: &Connection, id: i64) -> Result<bool> {
    rows.prepare_cached("SELECT 1 FROM sets WHERE id = ?1 AND kept = 1")?.exists([id])
}

fn describe(rows: &Connection, id: i64, detail: &str) -> Result<bool> {
    let mut describe =
        rows.prepare_cached("UPDATE sets SET detail = ?2 WHERE id = ?1 AND kind < ?3")?;
    Ok(describe.execute(params![id, detail, KIND_REMOVED])? > 0)
}

/// Adds those whose revisions are known, and tells how many were new, and which are not known. A set that is gone gets none.
pub(super) fn add_members(
    rows: &Connection,
    id: i64,
    members: &[SetMember],
) -> Result<(u64, Vec<SetMember>)> {
    let mut set = rows.prepare_cached("SELECT 1 FROM sets WHERE id = ?1 AND kind < ?2")?;
    if !set.exists([id, KIND_REMOVED])? {
        return Ok((0, Vec::new()));
    }
    let mut revision =
        rows.prepare_cached("SELECT 1 FROM revisions WHERE repository = ?1 AND object = ?2")?;
    let mut insert = rows.prepare_cached(
        "INSERT INTO set_members (belongs, repository, tag, object, added) \
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
    )?;
    let (mut added, mut unknown) = (0, Vec::new());
    for member in members {
        let SetMember { repository, digest, tag, at } = member;
        let known = match (repository_id(rows, repository)?, object_id(rows, digest)?) {
            (Some(repository), Some(object)) if revision.exists([repository, object])? => {
                Some((repository, object))
            }
            _ => None,
        };
        let Some((repository, object)) = known else {
            unknown.push(member.clone());
            continue;
        };
        let tag = tag.as_ref().map_or("", Tag::as_str);
        if insert.execute(params![id, repository, tag, object, at.as_millis()])? > 0 {
            added += 1;
            presence::relink(rows, repository, object)?;
        }
    }
    count(rows, id, added)?;
    Ok((u64::try_from(added).unwrap_or(0), unknown))
}

/// Takes members out. Their revisions stay what they are: others of the set have them as a part.
fn remove_members(rows: &Connection, id: i64, members: &[SetMember]) -> Result<i64> {
    let mut delete = rows.prepare_cached(
        "DELETE FROM set_members WHERE belongs = ?1 AND repository = ?2 AND tag = ?3 AND object = ?4",
    )?;
    let mut removed = 0;
    for SetMember { repository, digest, tag, .. } in members {
        let (Some(repository), Some(object)) =
            (repository_id(rows, repository)?, object_id(rows, digest)?)
        else {
            continue;
        };
        let tag = tag.as_ref().map_or("", Tag::as_str);
        removed += i64::from(delete.execute(params![id, repository, tag, object])? > 0);
    }
    count(rows, id, -removed)?;
    Ok(removed)
}

/// The set has so many members more.
fn count(rows: &Connection, id: i64, more: i64) -> Result<()> {
    rows.prepare_cached("UPDATE sets SET members = members + ?2 WHERE id = ?1")?
        .execute([id, more])?;
    Ok(())
}

/// Takes a set out, whose members go later.
fn remove(rows: &Connection, id: i64, at: Timestamp) -> Result<bool> {
    // No set that somebody makes can have that name: none begins with a mark.
    let name = format!("-removed-{id}");
    let removed = rows
        .prepare_cached(
            "UPDATE sets SET kind = kind + ?2, name = ?3, kept = 0, until = ?4 \
             WHERE id = ?1 AND kind < ?2",
        )?
        .execute(params![id, KIND_REMOVED, name, at.as_millis()])?;
    Ok(removed > 0)
}

/// Are there members of sets that were removed?
pub(super) fn is_clearing(rows: &Connection) -> Result<bool> {
    rows.prepare_cached("SELECT 1 FROM sets WHERE kind >= ?1 LIMIT 1")?.exists([KIND_REMOVED])
}

/// Takes out some members of a set that was removed, and the set with the last of them. Revisions begin to wait for their end, as of the
/// removal, if nothing else links to them. What a recording has by its digest alone was pulled that way, which leaves no link, and it stays
/// as it would have without the recording.
fn clear(rows: &Connection) -> Result<bool> {
    let set: Option<(i64, i64, i64)> = rows
        .prepare_cached("SELECT id, kind, until FROM sets WHERE kind >= ?1 LIMIT 1")?
        .query_row([KIND_REMOVED], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((id, kind, at)) = set else {
        return Ok(false);
    };
    let slice: Vec<(i64, String, i64)> = rows
        .prepare_cached(
            "SELECT repository, tag, object FROM set_members WHERE belongs = ?1 LIMIT ?2",
        )?
        .query_map(params![id, i64::try_from(SLICE).unwrap_or(i64::MAX)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect::<Result<_>>()?;
    let mut delete = rows.prepare_cached(
        "DELETE FROM set_members WHERE belongs = ?1 AND repository = ?2 AND tag = ?3 AND object = ?4",
    )?;
    let mut unlinked = BTreeMap::<i64, BTreeSet<i64>>::new();
    for (repository, tag, object) in &slice {
        delete.execute(params![id, repository, tag, object])?;
        if kind == KIND_REMOVED + KIND_IMPORT || !tag.is_empty() {
            unlinked.entry(*repository).or_default().insert(*object);
        }
    }
    if slice.len() < SLICE {
        rows.prepare_cached("DELETE FROM sets WHERE id = ?1")?.execute([id])?;
    } else {
        count(rows, id, -i64::try_from(slice.len()).unwrap_or(i64::MAX))?;
    }
    for (repository, objects) in unlinked {
        let (objects, at) = (objects.into_iter().collect(), Timestamp::from_millis(at));
        unlink(rows, repository, objects, at, &mut Vec::new())?;
    }
    Ok(true)
}

/// The revision leaves its repository, and with that all sets.
pub(super) fn leave(rows: &Connection, repository: i64, object: i64) -> Result<()> {
    let sets: Vec<i64> = rows
        .prepare_cached(
            "DELETE FROM set_members WHERE object = ?1 AND repository = ?2 RETURNING belongs",
        )?
        .query_map([object, repository], |row| row.get(0))?
        .collect::<Result<_>>()?;
    sets.into_iter().try_for_each(|set| count(rows, set, -1))
}

/// The kept sets of which the revision is a member.
pub(super) fn keeping(rows: &Connection, (repository, object): (i64, i64)) -> Result<Vec<SetName>> {
    let names: BTreeSet<SetName> = rows
        .prepare_cached(
            "SELECT s.name FROM set_members m JOIN sets s ON s.id = m.belongs \
             WHERE m.object = ?1 AND m.repository = ?2 AND s.kept = 1 LIMIT ?3",
        )?
        .query_map([object, repository, KEEPING_MAX], |row| query::text(row, 0))?
        .collect::<Result<_>>()?;
    Ok(names.into_iter().collect())
}

/// All sets, by name.
pub(super) fn all(rows: &Connection) -> Result<Vec<SetRecord>> {
    rows.prepare_cached(
        "SELECT id, name, kind, since, until, kept, members, detail FROM sets WHERE kind < ?1 \
         ORDER BY name",
    )?
    .query_map([KIND_REMOVED], |row| {
        Ok(SetRecord {
            id: row.get(0)?,
            name: query::text(row, 1)?,
            kind: kind(row.get(2)?),
            since: query::timestamp(row, 3)?,
            until: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis),
            kept: row.get(5)?,
            members: query::unsigned(row, 6)?,
            detail: row.get(7)?,
        })
    })?
    .collect()
}

/// Members by repository and tag. A page costs what is on it, and a look for each repository of the set.
pub(super) fn members(
    rows: &Connection,
    id: i64,
    after: Option<&SetMember>,
    limit: u32,
) -> Result<Vec<SetMember>> {
    let mut statement = rows.prepare_cached(
        "SELECT m.tag, o.digest, m.added FROM set_members m JOIN objects o ON o.id = m.object \
         WHERE m.belongs = ?1 AND m.repository = ?2 AND (m.tag, m.object) > (?3, ?4) \
         ORDER BY m.tag, m.object LIMIT ?5",
    )?;
    let mut found = Vec::new();
    for (repository, number) in repositories(rows, id)? {
        let (tag, object) = match after {
            Some(after) if repository < after.repository => continue,
            Some(after) if repository == after.repository => {
                let tag = after.tag.as_ref().map_or("", Tag::as_str);
                (tag, object_id(rows, &after.digest)?.unwrap_or(0))
            }
            _ => ("", 0),
        };
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        if left == 0 {
            break;
        }
        let members = statement
            .query_map(params![id, number, tag, object, left], |row| member(row, &repository))?;
        for member in members {
            found.push(member?);
        }
    }
    Ok(found)
}

fn member(row: &Row<'_>, repository: &RepositoryKey) -> Result<SetMember> {
    let tag: String = row.get(0)?;
    let tag = if tag.is_empty() { None } else { Some(query::parsed(0, &tag)?) };
    Ok(SetMember {
        repository: repository.clone(),
        digest: query::digest(row, 1)?,
        tag,
        at: query::timestamp(row, 2)?,
    })
}

/// The repositories of a set, by name; each costs a look into an index.
fn repositories(rows: &Connection, id: i64) -> Result<BTreeMap<RepositoryKey, i64>> {
    let mut next = rows.prepare_cached(
        "SELECT min(repository) FROM set_members WHERE belongs = ?1 AND repository > ?2",
    )?;
    let mut name = rows.prepare_cached("SELECT upstream, name FROM repositories WHERE id = ?1")?;
    let (mut found, mut last) = (BTreeMap::new(), 0_i64);
    while let Some(repository) = next.query_row([id, last], |row| row.get::<_, Option<i64>>(0))? {
        let key = name.query_row([repository], |row| {
            Ok(RepositoryKey { upstream: query::text(row, 0)?, name: query::text(row, 1)? })
        })?;
        found.insert(key, repository);
        last = repository;
    }
    Ok(found)
}
