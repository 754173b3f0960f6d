//! Rows: what an image is made of, and what holds an object. Both walk over the references, each object once, and no further than a bound.

use std::collections::{BTreeSet, HashSet, VecDeque};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::listing;
use super::model::{Holder, Holders, Node, RepositoryKey, TagLink};
use super::operation::object_id;
use super::query::{self, Result, STATE_PRESENT};
use super::set_rows;
use crate::clock::Timestamp;
use crate::oci::{Digest, Role};

/// Objects that a walk upwards looks at; if there are more, `more` says so.
const WALKED_MAX: usize = 4096;
/// Memberships of an object that are looked at for the upstreams.
const MEMBERSHIPS_MAX: u32 = 4096;
/// Links of one revision that are told, the newest.
const LINKS_MAX: u32 = 256;
/// Later moves of a tag that are looked at for [`TagLink::newer`]: more can only make a revision older than it looks.
const NEWER_MAX: u32 = 1024;
const STATE_QUARANTINED: i64 = 2;

/// A revision with what is below it, breadth first.
pub(super) fn tree(
    rows: &Connection,
    repository: &RepositoryKey,
    digest: &Digest,
    limit: u32,
) -> Result<Vec<Node>> {
    let Some(object) = listing::revision(rows, repository, digest)? else {
        return Ok(Vec::new());
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let root = rows
        .prepare_cached(
            "SELECT digest, media_type, size, state, accessed, removed, id FROM objects \
             WHERE id = ?1",
        )?
        .query_row([object], |row| node(row, None))?;
    let mut found = vec![root];
    let (mut open, mut seen) = (VecDeque::from([(object, *digest)]), HashSet::from([object]));
    let mut children = rows.prepare_cached(
        "SELECT c.digest, c.media_type, c.size, c.state, c.accessed, c.removed, c.id, e.role, \
         e.platform, e.is_foreign, e.position, m.size FROM edges e \
         JOIN objects c ON c.id = e.child \
         LEFT JOIN repositories p ON p.upstream = ?2 AND p.name = ?3 \
         LEFT JOIN membership m ON m.object = c.id AND m.repository = p.id WHERE e.parent = ?1",
    )?;
    let (upstream, name) = (repository.upstream.as_str(), repository.name.as_str());
    while let Some((parent, parent_digest)) = open.pop_front() {
        let mut below: Vec<(i64, i64, Node)> = children
            .query_map(params![parent, upstream, name], |row| {
                let mut node = node(row, Some(parent_digest))?;
                node.role = Some(role(row.get(7)?));
                node.platform = row.get(8)?;
                node.foreign = row.get(9)?;
                node.size = node.size.or(query::optional_size(row, 11)?);
                Ok((row.get(10)?, row.get(6)?, node))
            })?
            .collect::<Result<_>>()?;
        below.sort_by_key(|(position, _, node)| (node.role != Some(Role::Config), *position));
        for (_, child, node) in below {
            if found.len() >= limit {
                return Ok(found);
            }
            if seen.insert(child) && seen.len() <= WALKED_MAX {
                open.push_back((child, node.digest));
            }
            found.push(node);
        }
    }
    Ok(found)
}

/// Revisions of the repository whose `subject` is the digest, in the order of their digests.
pub(super) fn referring(
    rows: &Connection,
    repository: &RepositoryKey,
    subject: &Digest,
    limit: u32,
) -> Result<Vec<Digest>> {
    let mut found = rows
        .prepare_cached(
            "SELECT s.digest FROM objects s INDEXED BY objects_subject \
             JOIN repositories p ON p.upstream = ?2 AND p.name = ?3 \
             JOIN revisions r ON r.repository = p.id AND r.object = s.id \
             WHERE s.subject = ?1 LIMIT ?4",
        )?
        .query_map(
            params![
                subject.to_key(),
                repository.upstream.as_str(),
                repository.name.as_str(),
                limit
            ],
            |row| query::digest(row, 0),
        )?
        .collect::<Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

fn role(number: i64) -> Role {
    match number {
        0 => Role::Config,
        1 => Role::Layer,
        _ => Role::Child,
    }
}

fn node(row: &Row<'_>, parent: Option<Digest>) -> Result<Node> {
    let state: i64 = row.get(3)?;
    let media_type = row.get_ref(1)?.as_str_or_null()?;
    Ok(Node {
        digest: query::digest(row, 0)?,
        parent,
        role: None,
        // What a manifest of another time says of a child may be no media type that we know to read.
        media_type: media_type.and_then(|text| text.parse().ok()),
        platform: None,
        size: query::optional_size(row, 2)?,
        present: state == STATE_PRESENT,
        quarantined: state == STATE_QUARANTINED,
        foreign: false,
        accessed: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis),
        removed: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
    })
}

/// The revisions that are the object or need it: over references, over `subject` (a referrer is held by what it refers to), and over
/// the kept index of referrers.
pub(super) fn holders(rows: &Connection, digest: &Digest, limit: u32) -> Result<Holders> {
    let mut found = Holders::default();
    let Some(object) = object_id(rows, digest)? else {
        return Ok(found);
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    upstreams(rows, object, &mut found)?;
    let (mut open, mut seen) = (VecDeque::from([(object, false)]), HashSet::from([object]));
    while let Some((object, over_subject)) = open.pop_front() {
        let left = limit.saturating_sub(found.revisions.len()).saturating_add(1);
        let mut revisions = revisions(rows, object, left, &mut found.more)?;
        revisions.iter_mut().for_each(|holder| holder.over_subject = over_subject);
        if revisions.len() >= left {
            revisions.truncate(left - 1);
            found.revisions.extend(revisions);
            found.more = true;
            return Ok(found);
        }
        found.revisions.extend(revisions);
        let (needing, subject) = above(rows, object)?;
        let needing = needing.into_iter().map(|above| (above, over_subject));
        for (above, over_subject) in needing.chain(subject.map(|subject| (subject, true))) {
            if seen.len() >= WALKED_MAX {
                found.more = true;
                return Ok(found);
            }
            if seen.insert(above) {
                open.push_back((above, over_subject));
            }
        }
    }
    Ok(found)
}

fn upstreams(rows: &Connection, object: i64, found: &mut Holders) -> Result<()> {
    let names: Vec<_> = rows
        .prepare_cached(
            "SELECT p.upstream FROM membership m JOIN repositories p ON p.id = m.repository \
             WHERE m.object = ?1 LIMIT ?2",
        )?
        .query_map(params![object, MEMBERSHIPS_MAX], |row| query::text(row, 0))?
        .collect::<Result<_>>()?;
    found.more |= names.len() >= usize::try_from(MEMBERSHIPS_MAX).unwrap_or(usize::MAX);
    found.upstreams = names.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    Ok(())
}

/// What needs the object, and what it refers to.
fn above(rows: &Connection, object: i64) -> Result<(Vec<i64>, Option<i64>)> {
    let mut found = Vec::new();
    let limit = i64::try_from(WALKED_MAX + 1).unwrap_or(i64::MAX);
    let mut parents = rows.prepare_cached("SELECT parent FROM edges WHERE child = ?1 LIMIT ?2")?;
    for parent in parents.query_map([object, limit], |row| row.get(0))? {
        found.push(parent?);
    }
    let subject = rows
        .prepare_cached(
            "SELECT s.id FROM objects o JOIN objects s ON s.digest = o.subject WHERE o.id = ?1",
        )?
        .query_row([object], |row| row.get(0))
        .optional()?;
    let mut referred = rows.prepare_cached(
        "SELECT s.id FROM referrers f JOIN objects s ON s.digest = f.subject \
         WHERE f.object = ?1 LIMIT ?2",
    )?;
    for subject in referred.query_map([object, limit], |row| row.get(0))? {
        found.push(subject?);
    }
    Ok((found, subject))
}

fn revisions(rows: &Connection, object: i64, limit: usize, more: &mut bool) -> Result<Vec<Holder>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = rows.prepare_cached(
        "SELECT p.upstream, p.name, o.digest, r.unlinked, r.repository FROM revisions r \
         JOIN repositories p ON p.id = r.repository JOIN objects o ON o.id = r.object \
         WHERE r.object = ?1 LIMIT ?2",
    )?;
    let found = statement.query_map([object, limit], |row| {
        let holder = Holder {
            repository: RepositoryKey {
                upstream: query::text(row, 0)?,
                name: query::text(row, 1)?,
            },
            revision: query::digest(row, 2)?,
            unlinked: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis),
            over_subject: false,
            sets: Vec::new(),
            links: Vec::new(),
        };
        Ok((row.get::<_, i64>(4)?, holder))
    })?;
    found
        .map(|found| {
            let (repository, mut holder) = found?;
            holder.links = links(rows, (repository, object), more)?;
            holder.sets = set_rows::keeping(rows, (repository, object))?;
            Ok(holder)
        })
        .collect()
}

fn links(
    rows: &Connection,
    (repository, object): (i64, i64),
    more: &mut bool,
) -> Result<Vec<TagLink>> {
    let mut statement = rows.prepare_cached(
        "SELECT id, tag, since, until FROM timeline INDEXED BY timeline_object \
         WHERE object = ?1 AND repository = ?2 ORDER BY id DESC LIMIT ?3",
    )?;
    let found: Vec<_> = statement
        .query_map(params![object, repository, LINKS_MAX], |row| {
            let link = TagLink {
                tag: query::text(row, 1)?,
                since: query::timestamp(row, 2)?,
                until: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_millis),
                newer: 0,
                first: false,
                last_before_absent: false,
            };
            Ok((row.get::<_, i64>(0)?, link))
        })?
        .collect::<Result<_>>()?;
    *more |= found.len() >= usize::try_from(LINKS_MAX).unwrap_or(usize::MAX);
    let mut finished = Vec::with_capacity(found.len());
    for (id, mut link) in found {
        let tag = link.tag.as_str();
        let newer: HashSet<i64> = rows
            .prepare_cached(
                "SELECT object FROM timeline WHERE repository = ?1 AND tag = ?2 AND id > ?3 \
                 AND object IS NOT NULL LIMIT ?4",
            )?
            .query_map(params![repository, tag, id, NEWER_MAX], |row| row.get(0))?
            .collect::<Result<_>>()?;
        let before: Option<(Option<i64>, Option<i64>)> = rows
            .prepare_cached(
                "SELECT object, until FROM timeline WHERE repository = ?1 AND tag = ?2 AND id < ?3 \
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row(params![repository, tag, id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let now: Option<Option<i64>> = rows
            .prepare_cached("SELECT object FROM tags WHERE repository = ?1 AND name = ?2")?
            .query_row(params![repository, tag], |row| row.get(0))
            .optional()?;
        link.last_before_absent = newer.is_empty() && now == Some(None);
        let others = newer.iter().filter(|newer| **newer != object).count();
        link.newer = u32::try_from(others).unwrap_or(u32::MAX);
        // What was there before may have been deleted, which leaves a hole.
        let since = link.since.as_millis();
        let follows = before
            .is_some_and(|(object, until)| object.is_some() && until.is_none_or(|it| it >= since));
        link.first = !follows;
        finished.push(link);
    }
    Ok(finished)
}
