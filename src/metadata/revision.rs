//! Writes: a manifest with everything that is learned with it.

use rusqlite::{Connection, OptionalExtension, params};

use super::hot::Key;
use super::model::{FileMark, RevisionCommit};
use super::operation::{
    Changed, Failure, KIND_BLOB, KIND_MANIFEST, Standing, add_member, ensure_object,
    ensure_repository, move_tag,
};
use super::presence;
use crate::oci::{Algorithm, Descriptor, Digest, Role};

/// Longest text from a manifest that is kept in a row beside it (artifact type, platform); the manifest itself has it all.
const TEXT_BYTES_MAX: usize = 255;
const KIND_INDEX: i64 = 2;

/// Records a manifest whose bytes are durable now.
pub(super) fn commit(
    rows: &Connection,
    commit: &RevisionCommit,
    mark: Option<FileMark>,
) -> Result<Changed, Failure> {
    let RevisionCommit { repository, digest, media_type, at, .. } = commit;
    let object = ensure_object(rows, digest, kind(commit), Some(media_type), *at)?;
    presence::set_present(rows, object, (commit.size, mark), Some(&repository.upstream), *at)?;
    relate(rows, object, commit, Standing::Renewed)
}

/// Records a manifest whose bytes were stored before; if they are not here any more, that is an error.
pub(super) fn commit_present(
    rows: &Connection,
    commit: &RevisionCommit,
    standing: Standing,
) -> Result<Changed, Failure> {
    let found: Option<i64> = rows
        .prepare_cached("SELECT id FROM objects WHERE digest = ?1 AND state = 1")?
        .query_row([commit.digest.to_key()], |row| row.get(0))
        .optional()?;
    let object = found.ok_or(Failure::Rejected("a manifest is not here any more"))?;
    relate(rows, object, commit, standing)
}

fn kind(commit: &RevisionCommit) -> i64 {
    let has_children = commit.children.iter().any(|(role, _)| *role == Role::Child);
    if has_children || commit.media_type.is_index() { KIND_INDEX } else { KIND_MANIFEST }
}

/// What is known of a manifest that is here: what it is, whose revision, what it points at, and the tag by which it came.
fn relate(
    rows: &Connection,
    object: i64,
    commit: &RevisionCommit,
    standing: Standing,
) -> Result<Changed, Failure> {
    let RevisionCommit { repository, digest, media_type, proof, at, .. } = commit;
    let id = ensure_repository(rows, repository)?;
    describe(rows, object, kind(commit), commit)?;
    add_member(rows, id, object, Some(commit.size), (*proof, standing))?;
    rows.prepare_cached(
        "INSERT INTO revisions (repository, object, media_type, committed) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT DO UPDATE SET unlinked = NULL",
    )?
    .execute(params![id, object, media_type.as_str(), at.as_millis()])?;

    let mut changed = vec![Key::Object(*digest), Key::Member(repository.clone(), *digest)];
    for (position, (role, child)) in commit.children.iter().enumerate() {
        let child_object = ensure_object(
            rows,
            &child.digest,
            child_kind(*role, child),
            Some(&child.media_type),
            *at,
        )?;
        add_edge(rows, (object, child_object), *role, position, child)?;
        // An index may name anything as its child, and many registries take it unseen: only what a manifest names as its own content is
        // proved by it. A child manifest is proved when it is fetched.
        if !child.foreign && *role != Role::Child {
            add_member(rows, id, child_object, claimed_size(child), (*proof, standing))?;
            changed.push(Key::Member(repository.clone(), child.digest));
        }
    }
    presence::relink(rows, id, object)?;
    presence::touch(rows, object, *at)?;
    if let Some(moved) = &commit.tag {
        move_tag(rows, id, &moved.tag, Some(object), &moved.source, *at)?;
        changed.push(Key::Tag(repository.clone(), moved.tag.clone()));
    }
    Ok(changed)
}

fn child_kind(role: Role, child: &Descriptor) -> i64 {
    match role {
        Role::Child if child.media_type.is_index() => KIND_INDEX,
        Role::Child => KIND_MANIFEST,
        Role::Config | Role::Layer => KIND_BLOB,
    }
}

/// The size that a descriptor claims. Zero stands for "unknown" where it cannot be true: schema 1 names layers without sizes.
fn claimed_size(descriptor: &Descriptor) -> Option<u64> {
    let empty = |algorithm: Algorithm| Digest::of(algorithm, b"");
    let known = descriptor.size > 0 || descriptor.digest == empty(descriptor.digest.algorithm());
    known.then_some(descriptor.size)
}

/// Short enough to be kept in a row?
fn kept(text: &str) -> Option<&str> {
    (text.len() <= TEXT_BYTES_MAX).then_some(text)
}

/// A manifest says more of itself than the descriptor by which it was known.
fn describe(
    rows: &Connection,
    object: i64,
    kind: i64,
    commit: &RevisionCommit,
) -> rusqlite::Result<()> {
    rows.prepare_cached(
        "UPDATE objects SET kind = ?2, media_type = ?3, artifact_type = ?4, subject = ?5 WHERE id = ?1",
    )?
    .execute(params![
        object,
        kind,
        commit.media_type.as_str(),
        commit.artifact_type.as_deref().and_then(kept),
        commit.subject.as_ref().map(Digest::to_key),
    ])?;
    Ok(())
}

fn add_edge(
    rows: &Connection,
    (parent, child): (i64, i64),
    role: Role,
    position: usize,
    descriptor: &Descriptor,
) -> rusqlite::Result<()> {
    let role = match role {
        Role::Config => 0,
        Role::Layer => 1,
        Role::Child => 2,
    };
    let platform = descriptor.platform.as_ref().map(ToString::to_string);
    rows.prepare_cached(
        "INSERT INTO edges (parent, child, role, position, is_foreign, platform) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
    )?
    .execute(params![
        parent,
        child,
        role,
        i64::try_from(position).unwrap_or(i64::MAX),
        descriptor.foreign,
        platform.as_deref().and_then(kept),
    ])?;
    Ok(())
}
