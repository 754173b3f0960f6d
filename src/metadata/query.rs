//! Reads: one function per question, one statement each.

use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::hot::Member;
use super::model::{
    FileMark, ObjectRecord, Proof, RepositoryKey, StoredObject, TagRecord, TimelineEntry, Usage,
};
use crate::clock::Timestamp;
use crate::oci::{Digest, Tag};

pub(super) type Result<T> = rusqlite::Result<T>;

/// `objects.state` of content that is here.
pub(super) const STATE_PRESENT: i64 = 1;

/// What one statement tells of a digest in a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) object: Option<ObjectRecord>,
    pub(super) member: Option<Member>,
}

pub(super) fn tag(
    connection: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
) -> Result<Option<TagRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT o.digest, t.moved, t.confirmed, t.source FROM tags t \
         JOIN repositories p ON p.id = t.repository LEFT JOIN objects o ON o.id = t.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND t.name = ?3",
    )?;
    let parameters = params![repository.upstream.as_str(), repository.name.as_str(), tag.as_str()];
    statement
        .query_row(parameters, |row| {
            Ok(TagRecord {
                digest: optional_digest(row, 0)?,
                moved: timestamp(row, 1)?,
                confirmed: timestamp(row, 2)?,
                source: row.get(3)?,
            })
        })
        .optional()
}

pub(super) fn lookup(
    connection: &Connection,
    repository: &RepositoryKey,
    digest: &Digest,
) -> Result<Lookup> {
    let mut statement = connection.prepare_cached(
        "SELECT o.size, o.state, o.modified, o.inode, m.proved, m.credential, m.size, r.media_type \
         FROM objects o \
         LEFT JOIN repositories p ON p.upstream = ?2 AND p.name = ?3 \
         LEFT JOIN membership m ON m.object = o.id AND m.repository = p.id \
         LEFT JOIN revisions r ON r.repository = p.id AND r.object = o.id \
         WHERE o.digest = ?1",
    )?;
    let parameters =
        params![digest.to_key(), repository.upstream.as_str(), repository.name.as_str()];
    let found = statement
        .query_row(parameters, |row| {
            let proved: Option<i64> = row.get(4)?;
            let member = match proved {
                None => None,
                Some(proved) => Some(Member {
                    proof: Proof {
                        proved: Timestamp::from_millis(proved),
                        credential: row.get(5)?,
                    },
                    size: optional_size(row, 6)?,
                    revision: match row.get_ref(7)?.as_str_or_null()? {
                        Some(text) => Some(parsed(7, text)?),
                        None => None,
                    },
                }),
            };
            Ok(Lookup { object: Some(object_record(row)?), member })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Did an upstream, or an operator, show this object where anybody may have it, or under `repository`?
pub(super) fn is_shown(
    connection: &Connection,
    digest: &Digest,
    repository: &RepositoryKey,
) -> Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM objects o JOIN membership m ON m.object = o.id \
             JOIN repositories p ON p.id = m.repository \
             WHERE o.digest = ?1 AND (m.credential IS NULL OR p.upstream = ?2 AND p.name = ?3)",
        )?
        .exists(params![digest.to_key(), repository.upstream.as_str(), repository.name.as_str()])
}

pub(super) fn object(connection: &Connection, digest: &Digest) -> Result<Option<ObjectRecord>> {
    connection
        .prepare_cached("SELECT size, state, modified, inode FROM objects WHERE digest = ?1")?
        .query_row([digest.to_key()], object_record)
        .optional()
}

/// Of a row that begins with size, state, modification time and inode.
fn object_record(row: &Row<'_>) -> Result<ObjectRecord> {
    let mark = match (row.get::<_, Option<i64>>(2)?, row.get::<_, Option<i64>>(3)?) {
        (Some(modified_nanos), Some(inode)) => {
            Some(FileMark { modified_nanos, inode: inode.cast_unsigned() })
        }
        _ => None,
    };
    let present = row.get::<_, i64>(1)? == STATE_PRESENT;
    Ok(ObjectRecord { size: optional_size(row, 0)?, present, mark })
}

/// Content that is here, in the order of the digests' keys, after `after`.
pub(super) fn objects(
    connection: &Connection,
    after: Option<&Digest>,
    limit: u32,
) -> Result<Vec<StoredObject>> {
    let after = after.map(Digest::to_key).unwrap_or_default();
    connection
        .prepare_cached(
            "SELECT digest, size, verified FROM objects WHERE state = 1 AND digest > ?1 \
             ORDER BY digest LIMIT ?2",
        )?
        .query_map(params![after, limit], stored_object)?
        .collect()
}

/// Content that is here and was last known to be right before `before`, the oldest first.
pub(super) fn oldest_verified(
    connection: &Connection,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<StoredObject>> {
    connection
        .prepare_cached(
            "SELECT digest, size, verified FROM objects WHERE state = 1 AND verified < ?1 \
             ORDER BY verified LIMIT ?2",
        )?
        .query_map(params![before.as_millis(), limit], stored_object)?
        .collect()
}

fn stored_object(row: &Row<'_>) -> Result<StoredObject> {
    let verified = row.get::<_, Option<i64>>(2)?.map(Timestamp::from_millis);
    Ok(StoredObject { digest: digest(row, 0)?, size: unsigned(row, 1)?, verified })
}

pub(super) fn tags(
    connection: &Connection,
    repository: &RepositoryKey,
    after: &str,
    limit: u32,
) -> Result<Vec<Tag>> {
    let mut statement = connection.prepare_cached(
        "SELECT t.name FROM tags t JOIN repositories p ON p.id = t.repository \
         WHERE p.upstream = ?1 AND p.name = ?2 AND t.name > ?3 AND t.object IS NOT NULL \
         ORDER BY t.name LIMIT ?4",
    )?;
    let parameters = params![repository.upstream.as_str(), repository.name.as_str(), after, limit];
    statement.query_map(parameters, |row| text(row, 0))?.collect()
}

pub(super) fn repositories(
    connection: &Connection,
    after: Option<&RepositoryKey>,
    limit: u32,
    public_only: bool,
) -> Result<Vec<RepositoryKey>> {
    // Two statements, because only the one that says so can use the index of public ones.
    let mut statement = if public_only {
        connection.prepare_cached(
            "SELECT p.upstream, p.name FROM repositories p INDEXED BY repositories_public \
             WHERE (p.upstream, p.name) > (?1, ?2) AND p.public = 1 \
             AND EXISTS (SELECT 1 FROM revisions r WHERE r.repository = p.id) \
             ORDER BY p.upstream, p.name LIMIT ?3",
        )?
    } else {
        connection.prepare_cached(
            "SELECT p.upstream, p.name FROM repositories p WHERE (p.upstream, p.name) > (?1, ?2) \
             AND EXISTS (SELECT 1 FROM revisions r WHERE r.repository = p.id) \
             ORDER BY p.upstream, p.name LIMIT ?3",
        )?
    };
    let (upstream, name) = after.map_or(("", ""), |key| (key.upstream.as_str(), key.name.as_str()));
    statement
        .query_map(params![upstream, name, limit], |row| {
            Ok(RepositoryKey { upstream: text(row, 0)?, name: text(row, 1)? })
        })?
        .collect()
}

pub(super) fn timeline(
    connection: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    limit: u32,
) -> Result<Vec<TimelineEntry>> {
    let mut statement = connection.prepare_cached(
        "SELECT o.digest, l.since, l.until, l.told, l.source FROM timeline l \
         JOIN repositories p ON p.id = l.repository LEFT JOIN objects o ON o.id = l.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND l.tag = ?3 ORDER BY l.id DESC LIMIT ?4",
    )?;
    let parameters =
        params![repository.upstream.as_str(), repository.name.as_str(), tag.as_str(), limit];
    statement.query_map(parameters, super::timeline::entry)?.collect()
}

pub(super) fn was_tagged(
    connection: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    digest: &Digest,
    by: Timestamp,
) -> Result<bool> {
    let mut statement = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM timeline l JOIN repositories p ON p.id = l.repository \
         JOIN objects o ON o.id = l.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND l.tag = ?3 AND o.digest = ?4 \
         AND l.since <= ?5)",
    )?;
    let parameters = params![
        repository.upstream.as_str(),
        repository.name.as_str(),
        tag.as_str(),
        digest.to_key(),
        by.as_millis()
    ];
    statement.query_row(parameters, |row| row.get(0))
}

/// Children of a revision that are not here; those that upstream itself need not have are not missed.
pub(super) fn missing_children(
    connection: &Connection,
    repository: &RepositoryKey,
    digest: &Digest,
) -> Result<u64> {
    let mut statement = connection.prepare_cached(
        "SELECT count(DISTINCT e.child) FROM objects o \
         JOIN repositories p ON p.upstream = ?2 AND p.name = ?3 \
         JOIN revisions r ON r.repository = p.id AND r.object = o.id \
         JOIN edges e ON e.parent = o.id AND e.is_foreign = 0 \
         JOIN objects c ON c.id = e.child \
         WHERE o.digest = ?1 AND c.state <> 1",
    )?;
    let parameters =
        params![digest.to_key(), repository.upstream.as_str(), repository.name.as_str()];
    statement.query_row(parameters, |row| unsigned(row, 0))
}

pub(super) fn referrers(
    connection: &Connection,
    repository: &RepositoryKey,
    subject: &Digest,
) -> Result<Option<(Digest, Timestamp)>> {
    let mut statement = connection.prepare_cached(
        "SELECT o.digest, f.learned FROM referrers f JOIN repositories p ON p.id = f.repository \
         JOIN objects o ON o.id = f.object \
         WHERE p.upstream = ?1 AND p.name = ?2 AND f.subject = ?3",
    )?;
    let parameters =
        params![repository.upstream.as_str(), repository.name.as_str(), subject.to_key()];
    statement.query_row(parameters, |row| Ok((digest(row, 0)?, timestamp(row, 1)?))).optional()
}

pub(super) fn visibility(
    connection: &Connection,
    repository: &RepositoryKey,
) -> Result<Option<(bool, Timestamp)>> {
    let mut statement = connection.prepare_cached(
        "SELECT public, public_checked FROM repositories \
         WHERE upstream = ?1 AND name = ?2 AND public IS NOT NULL AND public_checked IS NOT NULL",
    )?;
    let parameters = params![repository.upstream.as_str(), repository.name.as_str()];
    statement.query_row(parameters, |row| Ok((row.get(0)?, timestamp(row, 1)?))).optional()
}

pub(super) fn usage(connection: &Connection) -> Result<Usage> {
    connection
        .prepare_cached("SELECT objects, bytes FROM usage WHERE id = 1")?
        .query_row([], |row| Ok(Usage { objects: unsigned(row, 0)?, bytes: unsigned(row, 1)? }))
}

/// Digests and sizes of all content that is here, in the order of their keys.
#[cfg(test)]
pub(super) fn present(connection: &Connection) -> Result<Vec<(Digest, u64)>> {
    connection
        .prepare("SELECT digest, size FROM objects WHERE state = 1 ORDER BY digest")?
        .query_map([], |row| Ok((digest(row, 0)?, unsigned(row, 1)?)))?
        .collect()
}

pub(super) fn timestamp(row: &Row<'_>, index: usize) -> Result<Timestamp> {
    row.get(index).map(Timestamp::from_millis)
}

pub(super) fn unsigned(row: &Row<'_>, index: usize) -> Result<u64> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_negative| rusqlite::Error::IntegralValueOutOfRange(index, value))
}

pub(super) fn optional_size(row: &Row<'_>, index: usize) -> Result<Option<u64>> {
    let value: Option<i64> = row.get(index)?;
    value
        .map(|value| {
            u64::try_from(value)
                .map_err(|_negative| rusqlite::Error::IntegralValueOutOfRange(index, value))
        })
        .transpose()
}

pub(super) fn text<T: FromStr>(row: &Row<'_>, index: usize) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(index)?.as_str()?;
    parsed(index, text)
}

pub(super) fn parsed<T: FromStr>(index: usize, text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    })
}

pub(super) fn digest(row: &Row<'_>, index: usize) -> Result<Digest> {
    Digest::from_key(row.get_ref(index)?.as_blob()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Blob, Box::new(error))
    })
}

pub(super) fn optional_digest(row: &Row<'_>, index: usize) -> Result<Option<Digest>> {
    match row.get_ref(index)?.as_blob_or_null()? {
        Some(_) => digest(row, index).map(Some),
        None => Ok(None),
    }
}
