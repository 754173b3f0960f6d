//! Rows: tags and revisions, page by page, for those who list.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::model::{NamedRevision, NamedTag, RepositoryKey, TagRecord, Within};
use super::operation::{object_id, repository_id};
use super::query::{self, Result, STATE_PRESENT};
use crate::clock::Timestamp;
use crate::oci::{Digest, Tag};

/// Tags of a part of the store in the order of upstream, repository and name. What is left of the repository of `after` is one
/// statement, what comes after it another: so a page costs what is on it, however long the lists are.
pub(super) fn tags(
    rows: &Connection,
    within: Option<&Within>,
    after: Option<&(RepositoryKey, Tag)>,
    limit: u32,
) -> Result<Vec<NamedTag>> {
    let (first, name) = match (within, after) {
        (Some(Within::Repository(key)), None) => (Some(key), ""),
        (Some(Within::Repository(key)), Some((repository, tag))) if key == repository => {
            (Some(key), tag.as_str())
        }
        // Of another repository than the one that is asked for: it comes before, or after it.
        (Some(Within::Repository(key)), Some((repository, _))) => {
            return if repository < key { tags(rows, within, None, limit) } else { Ok(Vec::new()) };
        }
        (_, Some((repository, tag))) => (Some(repository), tag.as_str()),
        (_, None) => (None, ""),
    };
    let mut found = match first {
        Some(repository) if covers(within, repository) => {
            of_repository(rows, repository, name, limit)?
        }
        _ => Vec::new(),
    };
    let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
    if left > 0 && !matches!(within, Some(Within::Repository(_))) {
        let upstream = match within {
            Some(Within::Upstream(upstream)) => Some(upstream.as_str()),
            _ => None,
        };
        found.extend(after_repository(rows, upstream, after.map(|(key, _)| key), left)?);
    }
    Ok(found)
}

fn covers(within: Option<&Within>, repository: &RepositoryKey) -> bool {
    match within {
        None => true,
        Some(Within::Upstream(upstream)) => *upstream == repository.upstream,
        Some(Within::Repository(key)) => key == repository,
    }
}

fn of_repository(
    rows: &Connection,
    repository: &RepositoryKey,
    after: &str,
    limit: u32,
) -> Result<Vec<NamedTag>> {
    rows.prepare_cached(
        "SELECT p.upstream, p.name, t.name, o.digest, t.moved, t.confirmed, t.source, o.state, \
         o.accessed FROM repositories p CROSS JOIN tags t ON t.repository = p.id \
         LEFT JOIN objects o ON o.id = t.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND t.name > ?3 ORDER BY t.name LIMIT ?4",
    )?
    .query_map(
        params![repository.upstream.as_str(), repository.name.as_str(), after, limit],
        named_tag,
    )?
    .collect()
}

fn after_repository(
    rows: &Connection,
    upstream: Option<&str>,
    after: Option<&RepositoryKey>,
    limit: u32,
) -> Result<Vec<NamedTag>> {
    let name = after.map_or("", |key| key.name.as_str());
    if let Some(upstream) = upstream {
        // One that comes before the upstream counts as none, and after one that comes behind it there is nothing.
        let name = match after.map(|key| key.upstream.as_str().cmp(upstream)) {
            Some(std::cmp::Ordering::Greater) => return Ok(Vec::new()),
            Some(std::cmp::Ordering::Equal) => name,
            _ => "",
        };
        return rows
            .prepare_cached(
                "SELECT p.upstream, p.name, t.name, o.digest, t.moved, t.confirmed, t.source, \
                 o.state, o.accessed FROM repositories p CROSS JOIN tags t ON t.repository = p.id \
                 LEFT JOIN objects o ON o.id = t.object \
                 WHERE p.upstream = ?1 AND p.name > ?2 ORDER BY p.name, t.name LIMIT ?3",
            )?
            .query_map(params![upstream, name, limit], named_tag)?
            .collect();
    }
    let upstream = after.map_or("", |key| key.upstream.as_str());
    rows.prepare_cached(
        "SELECT p.upstream, p.name, t.name, o.digest, t.moved, t.confirmed, t.source, o.state, \
         o.accessed FROM repositories p CROSS JOIN tags t ON t.repository = p.id \
         LEFT JOIN objects o ON o.id = t.object \
         WHERE (p.upstream, p.name) > (?1, ?2) ORDER BY p.upstream, p.name, t.name LIMIT ?3",
    )?
    .query_map(params![upstream, name, limit], named_tag)?
    .collect()
}

fn named_tag(row: &Row<'_>) -> Result<NamedTag> {
    Ok(NamedTag {
        repository: RepositoryKey { upstream: query::text(row, 0)?, name: query::text(row, 1)? },
        tag: query::text(row, 2)?,
        record: TagRecord {
            digest: query::optional_digest(row, 3)?,
            moved: query::timestamp(row, 4)?,
            confirmed: query::timestamp(row, 5)?,
            source: row.get(6)?,
        },
        present: row.get::<_, Option<i64>>(7)? == Some(STATE_PRESENT),
        accessed: row.get::<_, Option<i64>>(8)?.map(Timestamp::from_millis),
    })
}

/// Revisions of a repository in the order in which the store came to know their digests.
pub(super) fn revisions(
    rows: &Connection,
    repository: &RepositoryKey,
    after: Option<&Digest>,
    limit: u32,
) -> Result<Vec<NamedRevision>> {
    let Some(id) = repository_id(rows, repository)? else {
        return Ok(Vec::new());
    };
    let after = match after {
        None => 0,
        Some(digest) => match object_id(rows, digest)? {
            Some(object) => object,
            None => return Ok(Vec::new()),
        },
    };
    rows.prepare_cached(
        "SELECT o.digest, r.media_type, o.size, o.state, r.committed, r.unlinked \
         FROM revisions r JOIN objects o ON o.id = r.object \
         WHERE r.repository = ?1 AND r.object > ?2 ORDER BY r.object LIMIT ?3",
    )?
    .query_map(params![id, after, limit], |row| {
        Ok(NamedRevision {
            digest: query::digest(row, 0)?,
            media_type: query::text(row, 1)?,
            size: query::optional_size(row, 2)?,
            present: row.get::<_, i64>(3)? == STATE_PRESENT,
            committed: query::timestamp(row, 4)?,
            unlinked: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
        })
    })?
    .collect()
}

/// Is it a revision of the repository? Its object.
pub(super) fn revision(
    rows: &Connection,
    repository: &RepositoryKey,
    digest: &Digest,
) -> Result<Option<i64>> {
    rows.prepare_cached(
        "SELECT r.object FROM objects o JOIN repositories p ON p.upstream = ?2 AND p.name = ?3 \
         JOIN revisions r ON r.repository = p.id AND r.object = o.id WHERE o.digest = ?1",
    )?
    .query_row(
        params![digest.to_key(), repository.upstream.as_str(), repository.name.as_str()],
        |row| row.get(0),
    )
    .optional()
}
