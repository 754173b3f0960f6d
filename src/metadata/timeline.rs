//! Rows: where a tag was at a moment, and its moves.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::model::{Moment, RepositoryKey, TimelineEntry, is_denial};
use super::operation::repository_id;
use super::query::{self, Result, STATE_PRESENT};
use crate::clock::Timestamp;
use crate::oci::Tag;

/// Of a row that begins with digest, since, until, told and source.
pub(super) fn entry(row: &Row<'_>) -> Result<TimelineEntry> {
    Ok(TimelineEntry {
        digest: query::optional_digest(row, 0)?,
        since: query::timestamp(row, 1)?,
        until: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_millis),
        told: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis),
        source: row.get(4)?,
    })
}

/// The last entry that began before or at `at`, unless it was over by then: the one that came after it was deleted.
pub(super) fn tag_at(
    rows: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    at: Timestamp,
) -> Result<Option<TimelineEntry>> {
    let found = rows
        .prepare_cached(
            "SELECT o.digest, l.since, l.until, l.told, l.source FROM timeline l \
             JOIN repositories p ON p.id = l.repository LEFT JOIN objects o ON o.id = l.object \
             WHERE p.upstream = ?1 AND p.name = ?2 AND l.tag = ?3 AND l.since <= ?4 \
             ORDER BY l.id DESC LIMIT 1",
        )?
        .query_row(
            params![
                repository.upstream.as_str(),
                repository.name.as_str(),
                tag.as_str(),
                at.as_millis()
            ],
            entry,
        )
        .optional()?;
    Ok(found.filter(|entry| entry.until.is_none_or(|until| at < until)))
}

/// What the tag pointed at then, else the first that it pointed at afterwards.
pub(super) fn frozen_at(
    rows: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    since: Timestamp,
) -> Result<Option<TimelineEntry>> {
    if let Some(entry) = tag_at(rows, repository, tag, since)?
        && entry.digest.is_some()
    {
        return Ok(Some(entry));
    }
    rows.prepare_cached(
        "SELECT o.digest, l.since, l.until, l.told, l.source FROM timeline l \
         JOIN repositories p ON p.id = l.repository JOIN objects o ON o.id = l.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND l.tag = ?3 AND l.since > ?4 \
         ORDER BY l.id LIMIT 1",
    )?
    .query_row(
        params![
            repository.upstream.as_str(),
            repository.name.as_str(),
            tag.as_str(),
            since.as_millis()
        ],
        entry,
    )
    .optional()
}

/// When the tag was first seen to point at something.
pub(super) fn first_seen(
    rows: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
) -> Result<Option<Timestamp>> {
    rows.prepare_cached(
        "SELECT l.since FROM timeline l JOIN repositories p ON p.id = l.repository \
         WHERE p.upstream = ?1 AND p.name = ?2 AND l.tag = ?3 AND l.object IS NOT NULL \
         ORDER BY l.id LIMIT 1",
    )?
    .query_row(
        params![repository.upstream.as_str(), repository.name.as_str(), tag.as_str()],
        |row| query::timestamp(row, 0),
    )
    .optional()
}

/// Tags that pointed at something then, in the order of their bytes, but for those that upstream denies now: as of then, too, they are
/// refused. Each name costs three looks into an index at the most.
pub(super) fn tags_at(
    rows: &Connection,
    repository: &RepositoryKey,
    after: &str,
    limit: u32,
    at: Timestamp,
) -> Result<Vec<Tag>> {
    let Some(id) = repository_id(rows, repository)? else {
        return Ok(Vec::new());
    };
    let mut next =
        rows.prepare_cached("SELECT min(tag) FROM timeline WHERE repository = ?1 AND tag > ?2")?;
    let mut then = rows.prepare_cached(
        "SELECT object IS NOT NULL, until FROM timeline \
         WHERE repository = ?1 AND tag = ?2 AND since <= ?3 ORDER BY id DESC LIMIT 1",
    )?;
    let mut now = rows.prepare_cached(
        "SELECT source FROM timeline WHERE repository = ?1 AND tag = ?2 AND until IS NULL \
         AND object IS NULL ORDER BY id DESC LIMIT 1",
    )?;
    let (mut found, mut name) = (Vec::new(), after.to_owned());
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    while found.len() < limit {
        let Some(tag) = next.query_row(params![id, name], |row| row.get::<_, Option<String>>(0))?
        else {
            break;
        };
        let pointed = then
            .query_row(params![id, tag, at.as_millis()], |row| {
                let until: Option<i64> = row.get(1)?;
                Ok(row.get::<_, bool>(0)? && until.is_none_or(|until| at.as_millis() < until))
            })
            .optional()?;
        let mut is_denied = || {
            let source = now.query_row(params![id, tag], |row| row.get::<_, String>(0)).optional();
            Ok::<_, rusqlite::Error>(source?.is_some_and(|source| is_denial(&source)))
        };
        if pointed == Some(true) && !is_denied()? {
            found.push(query::parsed(0, &tag)?);
        }
        name = tag;
    }
    Ok(found)
}

/// The moves of a tag, the newest first.
pub(super) fn history(
    rows: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    before: i64,
    limit: u32,
) -> Result<Vec<Moment>> {
    rows.prepare_cached(
        "SELECT o.digest, l.since, l.until, l.told, l.source, l.id, o.state FROM timeline l \
         JOIN repositories p ON p.id = l.repository LEFT JOIN objects o ON o.id = l.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND l.tag = ?3 AND l.id < ?4 \
         ORDER BY l.id DESC LIMIT ?5",
    )?
    .query_map(
        params![
            repository.upstream.as_str(),
            repository.name.as_str(),
            tag.as_str(),
            before,
            limit
        ],
        |row| {
            let present = row.get::<_, Option<i64>>(6)? == Some(STATE_PRESENT);
            Ok(Moment { id: row.get(5)?, entry: entry(row)?, present })
        },
    )?
    .collect()
}
