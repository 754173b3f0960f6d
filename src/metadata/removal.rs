//! Writes that take something away: deletions, purges, bytes that go, rows that go after them.
//!
//! What must hold: whatever takes a holder away enqueues the objects concerned (`doomed`), in the same transaction; a row goes only when
//! nothing points at it, so no reference ever dangles; every hot record of what went is told, so that the next request knows.
//! An object is held here, whatever pins say, by a revision that stays, a link, a set, an object that refers to it, a kept index of referrers
//! of a revision that stays, or a proof that it is content of a repository.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::hot::Key;
use super::model::{Deleted, Doomed, RepositoryKey, Within};
use super::operation::{
    Applied, Changed, Context, Failure, KIND_BLOB, Outcome, ensure_object, object_id, repository_id,
};
use super::presence::{self, below};
use super::purge;
use super::query::{self, Result, STATE_PRESENT};
use super::set_rows::{self, KIND_REMOVED};
use crate::clock::Timestamp;
use crate::oci::{Digest, Tag};

/// Rows that a slice of the look for strays passes.
const STRAYS_SLICE: i64 = 4096;

#[derive(Clone, Debug)]
pub(super) enum Removal {
    Tag { repository: RepositoryKey, tag: Tag, at: Timestamp },
    Link { repository: RepositoryKey, tag: Tag, digest: Digest, at: Timestamp },
    Revision { repository: RepositoryKey, digest: Digest, at: Timestamp },
    Purge { within: Within, at: Timestamp },
    Retire { repository: RepositoryKey, digest: Digest, before: Timestamp, at: Timestamp },
    Spare { digest: Digest, at: Timestamp },
    Forget { digest: Digest, at: Timestamp },
    Await { digest: Digest, at: Timestamp },
    Take { digest: Digest, why: Why, in_use: InUse, at: Timestamp },
    Regret { digest: Digest },
}

/// Why the bytes of an object may go; what is asked is looked at again in the writer's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is unused: its place in the queue and the rules are those that were looked at.
    Unused { since: Timestamp, rules: u64 },
    /// An operator wants it.
    Ordered,
    /// Nothing holds it, under the rules that were looked at.
    Unheld { rules: u64 },
}

/// What became of the bytes of an object, as far as the rows say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They count no more; the file, of so many bytes, may go.
    Gone(u64),
    /// What was looked at is not so any more.
    Stays,
    /// They were not here, and nothing speaks for them.
    NotHere,
}

/// Does somebody read or download the object right now?
#[derive(Clone)]
pub struct InUse(Arc<dyn Fn() -> bool + Send + Sync>);

impl InUse {
    pub fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }
}

impl fmt::Debug for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InUse")
    }
}

pub(super) type Done = std::result::Result<Applied, Failure>;

impl Removal {
    /// Must it survive a loss of power once it was answered? Bytes that are taken for granted again are found to be missing.
    pub(super) fn must_last(&self) -> bool {
        !matches!(
            self,
            Self::Spare { .. }
                | Self::Forget { .. }
                | Self::Await { .. }
                | Self::Take { .. }
                | Self::Regret { .. }
        )
    }

    /// See [`super::operation::Operation::facts`]: a tag that is deleted is absent for another reason.
    pub(super) fn facts(&self) -> Changed {
        match self {
            Self::Tag { repository, tag, .. } => vec![Key::Tag(repository.clone(), tag.clone())],
            _ => Vec::new(),
        }
    }

    /// Does it depend on what was used until now?
    pub(super) fn wants_uses_written(&self) -> bool {
        matches!(self, Self::Take { why: Why::Unused { .. }, .. })
    }

    pub(super) fn apply(&self, rows: &Connection, context: &Context) -> Done {
        match self {
            Self::Tag { repository, tag, at } => delete_tag(rows, repository, tag, *at),
            Self::Link { repository, tag, digest, at } => {
                delete_link(rows, repository, tag, digest, *at)
            }
            Self::Revision { repository, digest, at } => {
                delete_revision(rows, repository, digest, *at)
            }
            Self::Purge { within, at } => purge::purge(rows, within, *at),
            Self::Retire { repository, digest, before, at } => {
                retire(rows, repository, digest, (*before, *at))
            }
            Self::Spare { digest, at } => spare(rows, digest, *at),
            Self::Forget { digest, at } => forget(rows, digest, *at),
            Self::Await { digest, at } => {
                let object = ensure_object(rows, digest, KIND_BLOB, None, *at)?;
                doom(rows, object, *at)?;
                Ok(Applied::telling(Outcome::Done))
            }
            Self::Take { digest, why, in_use, at } => {
                take(rows, (digest, *at), *why, in_use, context)
            }
            Self::Regret { digest } => regret(rows, digest),
        }
    }
}

fn deleted(changed: Changed, deleted: Deleted) -> Applied {
    Applied { changed, outcome: Outcome::Deleted(deleted) }
}

fn delete_tag(rows: &Connection, repository: &RepositoryKey, tag: &Tag, at: Timestamp) -> Done {
    let mut told = Deleted::default();
    let Some(id) = repository_id(rows, repository)? else {
        return Ok(deleted(Vec::new(), told));
    };
    let objects = rows
        .prepare_cached("SELECT object FROM timeline WHERE repository = ?1 AND tag = ?2")?
        .query_map(params![id, tag.as_str()], |row| row.get(0))?
        .collect::<Result<BTreeSet<Option<i64>>>>()?;
    let known = rows
        .prepare_cached("DELETE FROM tags WHERE repository = ?1 AND name = ?2")?
        .execute(params![id, tag.as_str()])?;
    rows.prepare_cached("DELETE FROM timeline WHERE repository = ?1 AND tag = ?2")?
        .execute(params![id, tag.as_str()])?;
    told.found = known > 0 || !objects.is_empty();
    if told.found {
        told.tags.push(tag.clone());
    }
    unlink(rows, id, objects.into_iter().flatten().collect(), at, &mut told.revisions)?;
    Ok(deleted(vec![Key::Tag(repository.clone(), tag.clone())], told))
}

fn delete_link(
    rows: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    digest: &Digest,
    at: Timestamp,
) -> Done {
    let mut told = Deleted::default();
    let (Some(id), Some(object)) = (repository_id(rows, repository)?, object_id(rows, digest)?)
    else {
        return Ok(deleted(Vec::new(), told));
    };
    let links = rows
        .prepare_cached("DELETE FROM timeline WHERE repository = ?1 AND tag = ?2 AND object = ?3")?
        .execute(params![id, tag.as_str(), object])?;
    let current = rows
        .prepare_cached("DELETE FROM tags WHERE repository = ?1 AND name = ?2 AND object = ?3")?
        .execute(params![id, tag.as_str(), object])?;
    told.found = links > 0 || current > 0;
    if current > 0 {
        told.tags.push(tag.clone());
    }
    if told.found {
        unlink(rows, id, vec![object], at, &mut told.revisions)?;
    }
    Ok(deleted(vec![Key::Tag(repository.clone(), tag.clone())], told))
}

fn delete_revision(
    rows: &Connection,
    repository: &RepositoryKey,
    digest: &Digest,
    at: Timestamp,
) -> Done {
    let mut told = Deleted::default();
    let (Some(id), Some(object)) = (repository_id(rows, repository)?, object_id(rows, digest)?)
    else {
        return Ok(deleted(Vec::new(), told));
    };
    told.found = rows
        .prepare_cached("SELECT 1 FROM revisions WHERE repository = ?1 AND object = ?2")?
        .exists([id, object])?;
    if !told.found {
        return Ok(deleted(Vec::new(), told));
    }
    told.tags = rows
        .prepare_cached("SELECT name FROM tags WHERE object = ?1 AND repository = ?2")?
        .query_map([object, id], |row| query::text(row, 0))?
        .collect::<Result<_>>()?;
    rows.prepare_cached("DELETE FROM tags WHERE object = ?1 AND repository = ?2")?
        .execute([object, id])?;
    rows.prepare_cached("DELETE FROM timeline WHERE object = ?1 AND repository = ?2")?
        .execute([object, id])?;
    let mut changed: Changed =
        told.tags.iter().map(|tag| Key::Tag(repository.clone(), tag.clone())).collect();
    told.revisions.push(*digest);
    leave(rows, (id, repository), object, at, &mut changed)?;
    unlink(rows, id, below(rows, object)?, at, &mut told.revisions)?;
    doom(rows, object, at)?;
    Ok(deleted(changed, told))
}

/// Takes a revision out of a repository, with what it alone proved to be content there, and what is kept of its referrers. What it
/// proved waits for its end.
pub(super) fn leave(
    rows: &Connection,
    (id, repository): (i64, &RepositoryKey),
    object: i64,
    at: Timestamp,
    changed: &mut Changed,
) -> Result<()> {
    rows.prepare_cached("DELETE FROM revisions WHERE repository = ?1 AND object = ?2")?
        .execute([id, object])?;
    set_rows::leave(rows, id, object)?;
    let mut contents = rows.prepare_cached(
        "SELECT e.child, c.digest FROM edges e JOIN objects c ON c.id = e.child \
         WHERE e.parent = ?1 AND e.role <> 2 AND e.is_foreign = 0",
    )?;
    let found = contents
        .query_map([object], |row| Ok((row.get(0)?, query::digest(row, 1)?)))?
        .collect::<Result<Vec<(i64, Digest)>>>()?;
    let mut proved_else = rows.prepare_cached(
        "SELECT 1 FROM edges e CROSS JOIN revisions r ON r.repository = ?2 AND r.object = e.parent \
         WHERE e.child = ?1 AND e.role <> 2 AND e.is_foreign = 0 \
         UNION ALL SELECT 1 FROM revisions WHERE repository = ?2 AND object = ?1 LIMIT 1",
    )?;
    for (child, digest) in found {
        if !proved_else.exists([child, id])? {
            drop_member(rows, id, child)?;
            doom(rows, child, at)?;
            changed.push(Key::Member(repository.clone(), digest));
        }
    }
    if !proved_else.exists([object, id])? {
        drop_member(rows, id, object)?;
    }
    let digest: Digest = rows
        .prepare_cached("SELECT digest FROM objects WHERE id = ?1")?
        .query_row([object], |row| query::digest(row, 0))?;
    changed.push(Key::Member(repository.clone(), digest));
    let kept: Option<i64> = rows
        .prepare_cached(
            "DELETE FROM referrers WHERE repository = ?1 AND subject = ?2 RETURNING object",
        )?
        .query_row(params![id, digest.to_key()], |row| row.get(0))
        .optional()?;
    match kept {
        Some(index) => doom(rows, index, at),
        None => Ok(()),
    }
}

pub(super) fn drop_member(rows: &Connection, repository: i64, object: i64) -> Result<()> {
    rows.prepare_cached("DELETE FROM membership WHERE object = ?1 AND repository = ?2")?
        .execute([object, repository])?;
    Ok(())
}

/// Revisions that lost a link or a parent begin to wait for their end, unless something else in the repository holds them: another
/// link, a set, or an index that stays. With them goes what was there for them alone.
pub(super) fn unlink(
    rows: &Connection,
    repository: i64,
    mut open: Vec<i64>,
    at: Timestamp,
    told: &mut Vec<Digest>,
) -> Result<()> {
    let mut linked = rows.prepare_cached(
        "SELECT 1 FROM timeline INDEXED BY timeline_object \
         WHERE object = ?1 AND repository = ?2 \
         UNION ALL SELECT 1 FROM set_members m CROSS JOIN sets s ON s.id = m.belongs \
         WHERE m.object = ?1 AND m.repository = ?2 AND s.kind < ?3 LIMIT 1",
    )?;
    let mut needed = rows.prepare_cached(
        "SELECT 1 FROM edges e CROSS JOIN revisions r ON r.repository = ?2 AND r.object = e.parent \
         WHERE e.child = ?1 AND r.unlinked IS NULL LIMIT 1",
    )?;
    let mut unlink = rows.prepare_cached(
        "UPDATE revisions SET unlinked = ?3 \
         WHERE object = ?1 AND repository = ?2 AND unlinked IS NULL",
    )?;
    let mut digest = rows.prepare_cached("SELECT digest FROM objects WHERE id = ?1")?;
    while let Some(object) = open.pop() {
        if linked.exists([object, repository, KIND_REMOVED])?
            || needed.exists([object, repository])?
        {
            continue;
        }
        if unlink.execute([object, repository, at.as_millis()])? == 0 {
            continue;
        }
        doom(rows, object, at)?;
        told.push(digest.query_row([object], |row| query::digest(row, 0))?);
        open.extend(below(rows, object)?);
    }
    Ok(())
}

/// The object lost something that held it.
pub(super) fn doom(rows: &Connection, object: i64, at: Timestamp) -> Result<()> {
    rows.prepare_cached(
        "INSERT INTO doomed (object, since) VALUES (?1, ?2) \
         ON CONFLICT DO UPDATE SET since = max(since, excluded.since)",
    )?
    .execute([object, at.as_millis()])?;
    Ok(())
}

pub(super) fn doomed(rows: &Connection, before: Timestamp, limit: u32) -> Result<Vec<Doomed>> {
    rows.prepare_cached(
        "SELECT o.digest, d.since, o.size, o.state FROM doomed d JOIN objects o ON o.id = d.object \
         WHERE d.since < ?1 ORDER BY d.since, d.object LIMIT ?2",
    )?
    .query_map(params![before.as_millis(), limit], |row| {
        Ok(Doomed {
            digest: query::digest(row, 0)?,
            since: query::timestamp(row, 1)?,
            size: query::optional_size(row, 2)?,
            present: row.get::<_, i64>(3)? == STATE_PRESENT,
        })
    })?
    .collect()
}

/// Is the object held by rows?
fn is_held(rows: &Connection, object: i64) -> Result<bool> {
    let questions = [
        rows.prepare_cached("SELECT 1 FROM edges WHERE child = ?1 LIMIT 1")?,
        rows.prepare_cached(
            "SELECT 1 FROM revisions WHERE object = ?1 AND unlinked IS NULL LIMIT 1",
        )?,
        rows.prepare_cached("SELECT 1 FROM timeline WHERE object = ?1 LIMIT 1")?,
        rows.prepare_cached("SELECT 1 FROM tags WHERE object = ?1 LIMIT 1")?,
        rows.prepare_cached("SELECT 1 FROM set_members WHERE object = ?1 LIMIT 1")?,
        rows.prepare_cached(
            "SELECT 1 FROM membership m WHERE m.object = ?1 AND NOT EXISTS \
             (SELECT 1 FROM revisions r WHERE r.repository = m.repository AND r.object = ?1) \
             LIMIT 1",
        )?,
        rows.prepare_cached(
            "SELECT 1 FROM referrers f JOIN objects s ON s.digest = f.subject \
             JOIN revisions r ON r.repository = f.repository AND r.object = s.id \
             WHERE f.object = ?1 AND r.unlinked IS NULL LIMIT 1",
        )?,
    ];
    for mut question in questions {
        if question.exists([object])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Is a file of the digest one that somebody was about to remove?
pub(super) fn is_unwanted(rows: &Connection, digest: &Digest) -> Result<bool> {
    let found: Option<(i64, bool, bool)> = rows
        .prepare_cached(
            "SELECT o.id, o.removed IS NOT NULL, d.object IS NOT NULL FROM objects o \
             LEFT JOIN doomed d ON d.object = o.id WHERE o.digest = ?1 AND o.state <> 1",
        )?
        .query_row([digest.to_key()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    match found {
        Some((_, true, _)) => Ok(true),
        Some((object, false, true)) => Ok(!is_held(rows, object)?),
        _ => Ok(false),
    }
}

/// What is held by rows waits no more. What is not, and is kept for another reason, is looked at again later: a pin may be taken back.
/// So is what waits in a repository where a pin keeps it, although others hold it.
fn spare(rows: &Connection, digest: &Digest, at: Timestamp) -> Done {
    let Some(object) = object_id(rows, digest)? else {
        return Ok(Applied::telling(Outcome::Done));
    };
    let waits = rows
        .prepare_cached(
            "SELECT 1 FROM revisions WHERE object = ?1 AND unlinked IS NOT NULL LIMIT 1",
        )?
        .exists([object])?;
    if is_held(rows, object)? && !waits {
        rows.prepare_cached("DELETE FROM doomed WHERE object = ?1")?.execute([object])?;
    } else {
        rows.prepare_cached("UPDATE doomed SET since = max(since, ?2) WHERE object = ?1")?
            .execute([object, at.as_millis()])?;
    }
    Ok(Applied::telling(Outcome::Done))
}

/// An object that others hold leaves a repository in which it waited for its end.
fn retire(
    rows: &Connection,
    repository: &RepositoryKey,
    digest: &Digest,
    (before, at): (Timestamp, Timestamp),
) -> Done {
    let (Some(id), Some(object)) = (repository_id(rows, repository)?, object_id(rows, digest)?)
    else {
        return Ok(Applied::telling(Outcome::Changed(false)));
    };
    let due = rows
        .prepare_cached(
            "SELECT 1 FROM revisions WHERE repository = ?1 AND object = ?2 AND unlinked < ?3",
        )?
        .exists([id, object, before.as_millis()])?;
    let needed = rows
        .prepare_cached(
            "SELECT 1 FROM edges e CROSS JOIN revisions r ON r.repository = ?1 \
             AND r.object = e.parent WHERE e.child = ?2 AND r.unlinked IS NULL LIMIT 1",
        )?
        .exists([id, object])?;
    if !due || needed {
        return Ok(Applied::telling(Outcome::Changed(false)));
    }
    let mut changed = Vec::new();
    leave(rows, (id, repository), object, at, &mut changed)?;
    Ok(Applied { changed, outcome: Outcome::Changed(true) })
}

fn forget(rows: &Connection, digest: &Digest, at: Timestamp) -> Done {
    let state: Option<(i64, i64)> = rows
        .prepare_cached("SELECT id, state FROM objects WHERE digest = ?1")?
        .query_row([digest.to_key()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let object = match state {
        Some((object, state)) if state != STATE_PRESENT && !is_held(rows, object)? => object,
        _ => return Ok(Applied::telling(Outcome::Changed(false))),
    };
    let mut changed = vec![Key::Object(*digest)];
    let repositories: Vec<(i64, RepositoryKey)> = rows
        .prepare_cached(
            "SELECT p.id, p.upstream, p.name FROM revisions r \
             JOIN repositories p ON p.id = r.repository WHERE r.object = ?1",
        )?
        .query_map([object], |row| {
            let key = RepositoryKey { upstream: query::text(row, 1)?, name: query::text(row, 2)? };
            Ok((row.get(0)?, key))
        })?
        .collect::<Result<_>>()?;
    // What it needed has waited as long as itself. What of it does not wait was asked for again since then, and stays.
    let waited: Option<i64> = rows
        .prepare_cached("SELECT since FROM doomed WHERE object = ?1")?
        .query_row([object], |row| row.get(0))
        .optional()?;
    let since = waited.map_or(at, Timestamp::from_millis);
    for (id, repository) in &repositories {
        leave(rows, (*id, repository), object, since, &mut changed)?;
    }
    let children: Vec<i64> = rows
        .prepare_cached("SELECT child FROM edges WHERE parent = ?1")?
        .query_map([object], |row| row.get(0))?
        .collect::<Result<_>>()?;
    for child in children {
        doom(rows, child, since)?;
    }
    for mut statement in [
        rows.prepare_cached("DELETE FROM edges WHERE parent = ?1")?,
        rows.prepare_cached("DELETE FROM referrers WHERE object = ?1")?,
        rows.prepare_cached("DELETE FROM doomed WHERE object = ?1")?,
        rows.prepare_cached("DELETE FROM objects WHERE id = ?1")?,
    ] {
        statement.execute([object])?;
    }
    Ok(Applied { changed, outcome: Outcome::Changed(true) })
}

fn take(
    rows: &Connection,
    (digest, at): (&Digest, Timestamp),
    why: Why,
    in_use: &InUse,
    context: &Context,
) -> Done {
    let telling = |taken| Ok(Applied::telling(Outcome::Taken(taken)));
    let found: Option<(i64, i64, Option<i64>, i64)> = rows
        .prepare_cached("SELECT id, state, size, idle FROM objects WHERE digest = ?1")?
        .query_row([digest.to_key()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((object, state, size, idle)) = found else {
        return telling(Taken::NotHere);
    };
    let may = match why {
        Why::Unused { since, rules } => {
            context.uses_written && since.as_millis() == idle && rules == context.epoch
        }
        Why::Ordered => true,
        Why::Unheld { rules } => rules == context.epoch && !is_held(rows, object)?,
    };
    if !may || (in_use.0)() && why != Why::Ordered {
        return telling(Taken::Stays);
    }
    if state != STATE_PRESENT {
        return telling(Taken::NotHere);
    }
    presence::count_out(rows, object)?;
    let removed = match why {
        Why::Ordered => Some(at.as_millis()),
        _ => None,
    };
    rows.prepare_cached(
        "UPDATE objects SET state = 0, modified = NULL, inode = NULL, origin = NULL, \
         removed = ?2 WHERE id = ?1",
    )?
    .execute(params![object, removed])?;
    let size = u64::try_from(size.unwrap_or(0)).unwrap_or(0);
    Ok(Applied { changed: vec![Key::Object(*digest)], outcome: Outcome::Taken(Taken::Gone(size)) })
}

/// Bytes that were taken, and that nobody ordered to go, are here after all: everything is as it was but for the file's mark.
fn regret(rows: &Connection, digest: &Digest) -> Done {
    let object: Option<i64> = rows
        .prepare_cached(
            "UPDATE objects SET state = 1 \
             WHERE digest = ?1 AND state = 0 AND size IS NOT NULL AND removed IS NULL RETURNING id",
        )?
        .query_row([digest.to_key()], |row| row.get(0))
        .optional()?;
    let Some(object) = object else {
        return Ok(Applied::telling(Outcome::Done));
    };
    presence::count_in(rows, object, None)?;
    Ok(Applied { changed: vec![Key::Object(*digest)], outcome: Outcome::Done })
}

/// Rows of content that is not here, that nothing refers to and no repository knows, among those that come after row `after`; and the
/// row to go on from.
pub(super) fn strays(
    rows: &Connection,
    after: i64,
    before: Timestamp,
) -> Result<(Vec<Digest>, Option<i64>)> {
    let last: Option<i64> =
        rows.prepare_cached("SELECT max(id) FROM objects")?.query_row([], |row| row.get(0))?;
    let end = after.saturating_add(STRAYS_SLICE);
    let found = rows
        .prepare_cached(
            "SELECT o.digest FROM objects o WHERE o.id > ?1 AND o.id <= ?2 AND o.state <> 1 \
             AND o.created < ?3 \
             AND NOT EXISTS (SELECT 1 FROM edges e WHERE e.child = o.id) \
             AND NOT EXISTS (SELECT 1 FROM membership m WHERE m.object = o.id) \
             AND NOT EXISTS (SELECT 1 FROM revisions r WHERE r.object = o.id) \
             AND NOT EXISTS (SELECT 1 FROM referrers f WHERE f.object = o.id)",
        )?
        .query_map(params![after, end, before.as_millis()], |row| query::digest(row, 0))?
        .collect::<Result<_>>()?;
    Ok((found, last.is_some_and(|last| end < last).then_some(end)))
}
