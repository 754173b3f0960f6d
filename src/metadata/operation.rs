//! Writes: what each operation does to the rows, inside the writer's transaction.
//!
//! An operation returns the keys of the hot records that it may have changed; the writer reads them back with the same statements
//! that a reader would use, so that cache and database cannot tell different stories.

use rusqlite::{Connection, OptionalExtension, params};

use super::error::Error;
use super::hot::Key;
use super::idle;
use super::model::{Deleted, FileMark, Proof, Purged, RepositoryKey, RevisionCommit};
use super::presence;
use super::removal::{Removal, Taken, doom};
use super::rule_rows;
use super::rules::{Rule, RuleKind};
use crate::clock::Timestamp;
use crate::oci::{Algorithm, Descriptor, Digest, MediaType, Platform, Role, Scope, Tag};

/// Longest text from a manifest that is kept in a row beside it (artifact type, platform); the manifest itself has it all.
const TEXT_BYTES_MAX: usize = 255;
/// Children of one manifest whose records are worth keeping hot; a pull asks for them next.
const HOT_CHILDREN_MAX: usize = 64;

pub(super) const KIND_BLOB: i64 = 0;
pub(super) const KIND_MANIFEST: i64 = 1;
const KIND_INDEX: i64 = 2;
pub(super) const STATE_ABSENT: i64 = 0;

#[derive(Clone, Debug)]
pub(super) enum Operation {
    CommitRevision(Box<RevisionCommit>, Option<FileMark>),
    MoveTag {
        repository: RepositoryKey,
        tag: Tag,
        digest: Option<Digest>,
        source: String,
        at: Timestamp,
    },
    SetPresent {
        digest: Digest,
        size: u64,
        mark: Option<FileMark>,
        at: Timestamp,
    },
    SetAbsent {
        digest: Digest,
        quarantined: bool,
    },
    SetVerified {
        digest: Digest,
        mark: FileMark,
        at: Timestamp,
    },
    Prove {
        repository: RepositoryKey,
        digest: Digest,
        size: Option<u64>,
        proof: Proof,
    },
    SetReferrers {
        repository: RepositoryKey,
        subject: Digest,
        index: Digest,
        at: Timestamp,
    },
    SetVisibility {
        repository: RepositoryKey,
        public: bool,
        at: Timestamp,
    },
    AddRule {
        kind: RuleKind,
        scope: Box<Scope>,
        at: Timestamp,
        until: Option<Timestamp>,
        reason: String,
    },
    RemoveRule(i64),
    Postpone {
        digests: Vec<Digest>,
        to: Timestamp,
    },
    PutBack {
        now: Timestamp,
        ahead: Timestamp,
    },
    Remove(Box<Removal>),
}

/// What the writer hands to the operations of one transaction.
#[derive(Debug)]
pub(super) struct Context {
    /// [`super::rules::Rules::epoch`] as it is with the changes of the transaction so far.
    pub(super) epoch: u64,
    /// What was used until now is in the rows.
    pub(super) uses_written: bool,
}

/// What an operation tells its caller.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Done,
    /// Did it change anything?
    Changed(bool),
    Rule(Box<Rule>),
    Deleted(Deleted),
    Purged(Purged),
    Taken(Taken),
}

/// What an operation did.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) changed: Changed,
    pub(super) outcome: Outcome,
}

impl Applied {
    pub(super) fn telling(outcome: Outcome) -> Self {
        Self { changed: Vec::new(), outcome }
    }
}

impl From<Changed> for Applied {
    fn from(changed: Changed) -> Self {
        Self { changed, outcome: Outcome::Done }
    }
}

/// Why an operation failed.
#[derive(Debug)]
pub(super) enum Failure {
    Sql(rusqlite::Error),
    /// It asks for something that would make no sense; its neighbours in the group are not concerned.
    Rejected(&'static str),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Sql(error) => error.into(),
            Failure::Rejected(reason) => Self::Failed(reason.into()),
        }
    }
}

/// The hot records that changed.
pub(super) type Changed = Vec<Key>;

impl Operation {
    /// Must it survive a loss of power once it was answered?
    pub(super) fn must_last(&self) -> bool {
        match self {
            Self::CommitRevision(commit, _) => commit.tag.is_some(),
            Self::MoveTag { .. } | Self::AddRule { .. } | Self::RemoveRule(_) => true,
            Self::Remove(removal) => removal.must_last(),
            _ => false,
        }
    }

    /// The fact that it ends, if it ends one.
    pub(super) fn end(&self) -> Option<Key> {
        match self {
            Self::MoveTag { digest: None, .. }
            | Self::SetVisibility { public: false, .. }
            | Self::SetAbsent { .. } => self.facts().pop(),
            _ => None,
        }
    }

    /// The facts of which it says how they are now; an end of one of them that was not written is of no matter any more.
    pub(super) fn facts(&self) -> Vec<Key> {
        match self {
            Self::CommitRevision(commit, _) => {
                let tag = commit.tag.as_ref();
                let tag = tag.map(|tag| Key::Tag(commit.repository.clone(), tag.tag.clone()));
                tag.into_iter().chain([Key::Object(commit.digest)]).collect()
            }
            Self::MoveTag { repository, tag, .. } => {
                vec![Key::Tag(repository.clone(), tag.clone())]
            }
            Self::Remove(removal) => removal.facts(),
            Self::SetPresent { digest, .. } | Self::SetAbsent { digest, .. } => {
                vec![Key::Object(*digest)]
            }
            Self::SetVisibility { repository, .. } => vec![Key::Visibility(repository.clone())],
            _ => Vec::new(),
        }
    }

    /// Is what it changed likely to be asked for next? Upkeep walks over everything, and must not push out what clients want.
    pub(super) fn warms(&self) -> bool {
        !matches!(self, Self::SetVerified { .. } | Self::Remove(_))
    }

    pub(super) fn apply(
        &self,
        rows: &Connection,
        context: &mut Context,
    ) -> Result<Applied, Failure> {
        match self {
            Self::AddRule { kind, scope, at, until, reason } => {
                context.epoch += 1;
                let rule = rule_rows::add(rows, *kind, scope, (*at, *until), reason)?;
                Ok(Applied::telling(Outcome::Rule(Box::new(rule))))
            }
            Self::RemoveRule(id) => {
                context.epoch += 1;
                Ok(Applied::telling(Outcome::Changed(rule_rows::remove(rows, *id)?)))
            }
            Self::PutBack { now, ahead } => {
                let any = idle::put_back(rows, *now, *ahead)?;
                Ok(Applied::telling(Outcome::Changed(any)))
            }
            Self::Postpone { digests, to } => {
                idle::postpone(rows, digests, *to)?;
                Ok(Applied::telling(Outcome::Done))
            }
            Self::Remove(removal) => removal.apply(rows, context),
            _ => self.learn(rows).map(Applied::from),
        }
    }

    /// Those that bring in what is known of content.
    fn learn(&self, rows: &Connection) -> Result<Changed, Failure> {
        match self {
            Self::CommitRevision(commit, mark) => commit_revision(rows, commit, *mark),
            Self::MoveTag { repository, tag, digest, source, at } => {
                let found = repository_id(rows, repository)?;
                let Some(id) = found else {
                    return match digest {
                        Some(_) => Err(Failure::Rejected("the repository has no revision")),
                        None => Ok(Vec::new()),
                    };
                };
                let object = match digest {
                    Some(digest) => Some(revision_id(rows, id, digest)?),
                    None => None,
                };
                move_tag(rows, id, tag, object, source, *at)?;
                // Whoever decided that it may go did not know of this tag, which may be pinned.
                if let Some(object) = object {
                    presence::touch(rows, object, *at)?;
                }
                Ok(vec![Key::Tag(repository.clone(), tag.clone())])
            }
            Self::SetPresent { digest, size, mark, at } => {
                let id = ensure_object(rows, digest, KIND_BLOB, None, *at)?;
                presence::set_present(rows, id, (*size, *mark), None, *at)?;
                Ok(vec![Key::Object(*digest)])
            }
            Self::SetAbsent { digest, quarantined } => {
                presence::set_absent(rows, digest, *quarantined)?;
                Ok(vec![Key::Object(*digest)])
            }
            Self::SetVerified { digest, mark, at } => {
                rows.prepare_cached(
                    "UPDATE objects SET verified = ?2, modified = ?3, inode = ?4 \
                     WHERE digest = ?1 AND state = 1",
                )?
                .execute(params![
                    digest.to_key(),
                    at.as_millis(),
                    mark.modified_nanos,
                    mark.inode.cast_signed()
                ])?;
                Ok(vec![Key::Object(*digest)])
            }
            Self::Prove { repository, digest, size, proof } => {
                let id = ensure_repository(rows, repository)?;
                let object = ensure_object(rows, digest, KIND_BLOB, None, proof.proved)?;
                add_member(rows, id, object, *size, *proof)?;
                Ok(vec![Key::Member(repository.clone(), *digest)])
            }
            Self::SetReferrers { repository, subject, index, at } => {
                set_referrers(rows, repository, subject, index, *at)
            }
            Self::SetVisibility { repository, public, at } => {
                let id = ensure_repository(rows, repository)?;
                rows.prepare_cached(
                    "UPDATE repositories SET public = ?2, public_checked = ?3 WHERE id = ?1",
                )?
                .execute(params![id, public, at.as_millis()])?;
                Ok(vec![Key::Visibility(repository.clone())])
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn commit_revision(
    rows: &Connection,
    commit: &RevisionCommit,
    mark: Option<FileMark>,
) -> Result<Changed, Failure> {
    let RevisionCommit { repository, digest, media_type, proof, at, .. } = commit;
    let has_children = commit.children.iter().any(|(role, _)| *role == Role::Child);
    let kind = if has_children || media_type.is_index() { KIND_INDEX } else { KIND_MANIFEST };
    let id = ensure_repository(rows, repository)?;
    let object = ensure_object(rows, digest, kind, Some(media_type), *at)?;
    describe(rows, object, kind, commit)?;
    presence::set_present(rows, object, (commit.size, mark), Some(&repository.upstream), *at)?;
    add_member(rows, id, object, Some(commit.size), *proof)?;
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
            add_member(rows, id, child_object, claimed_size(child), *proof)?;
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

/// Is `key` one that a group should read back for the cache, given how many it has to read? The others are only forgotten.
pub(super) fn worth_reading(position: usize, key: &Key) -> bool {
    position < HOT_CHILDREN_MAX || !matches!(key, Key::Member(..))
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
    let platform = descriptor.platform.as_ref().map(|platform| {
        let Platform { os, architecture, variant } = platform;
        match variant {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        }
    });
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

fn add_member(
    rows: &Connection,
    repository: i64,
    object: i64,
    size: Option<u64>,
    proof: Proof,
) -> rusqlite::Result<()> {
    rows.prepare_cached(
        "INSERT INTO membership (object, repository, proved, credential, size) \
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET \
         proved = excluded.proved, credential = excluded.credential, \
         size = coalesce(excluded.size, size)",
    )?
    .execute(params![
        object,
        repository,
        proof.proved.as_millis(),
        proof.credential,
        size.map(stored),
    ])?;
    presence::settle_origin(rows, object, repository)
}

/// Points the tag at `object` (`None`: absent from here on). An unchanged one is confirmed; a changed one closes the open row of the
/// timeline and opens the next. A tag that was never seen is not recorded as absent.
fn move_tag(
    rows: &Connection,
    repository: i64,
    tag: &Tag,
    object: Option<i64>,
    source: &str,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let at = at.as_millis();
    let known: Option<Option<i64>> = rows
        .prepare_cached("SELECT object FROM tags WHERE repository = ?1 AND name = ?2")?
        .query_row(params![repository, tag.as_str()], |row| row.get(0))
        .optional()?;
    if known.is_none() && object.is_none() {
        return Ok(());
    }
    if known == Some(object) {
        rows.prepare_cached(
            "UPDATE tags SET confirmed = max(confirmed, ?3), source = ?4 WHERE repository = ?1 AND name = ?2",
        )?
        .execute(params![repository, tag.as_str(), at, source])?;
        return Ok(());
    }
    rows.prepare_cached(
        "INSERT INTO tags (repository, name, object, moved, confirmed, source) \
         VALUES (?1, ?2, ?3, ?4, ?4, ?5) ON CONFLICT DO UPDATE SET \
         object = excluded.object, moved = excluded.moved, confirmed = excluded.confirmed, \
         source = excluded.source",
    )?
    .execute(params![repository, tag.as_str(), object, at, source])?;
    rows.prepare_cached(
        "UPDATE timeline SET until = max(since, ?3) \
         WHERE repository = ?1 AND tag = ?2 AND until IS NULL",
    )?
    .execute(params![repository, tag.as_str(), at])?;
    rows.prepare_cached(
        "INSERT INTO timeline (repository, tag, object, since, until, source) \
         VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
    )?
    .execute(params![repository, tag.as_str(), object, at, source])?;
    if let Some(object) = object {
        presence::relink(rows, repository, object)?;
    }
    Ok(())
}

fn set_referrers(
    rows: &Connection,
    repository: &RepositoryKey,
    subject: &Digest,
    index: &Digest,
    at: Timestamp,
) -> Result<Changed, Failure> {
    let id = ensure_repository(rows, repository)?;
    let object = ensure_object(rows, index, KIND_BLOB, None, at)?;
    let before: Option<i64> = rows
        .prepare_cached("SELECT object FROM referrers WHERE repository = ?1 AND subject = ?2")?
        .query_row(params![id, subject.to_key()], |row| row.get(0))
        .optional()?;
    if let Some(before) = before.filter(|before| *before != object) {
        doom(rows, before, at)?;
    }
    rows.prepare_cached(
        "INSERT INTO referrers (repository, subject, object, learned) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT DO UPDATE SET object = excluded.object, learned = excluded.learned",
    )?
    .execute(params![id, subject.to_key(), object, at.as_millis()])?;
    presence::settle_origin(rows, object, id)?;
    Ok(Vec::new())
}

pub(super) fn stored(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(super) fn repository_id(
    rows: &Connection,
    key: &RepositoryKey,
) -> rusqlite::Result<Option<i64>> {
    rows.prepare_cached("SELECT id FROM repositories WHERE upstream = ?1 AND name = ?2")?
        .query_row([key.upstream.as_str(), key.name.as_str()], |row| row.get(0))
        .optional()
}

fn ensure_repository(rows: &Connection, key: &RepositoryKey) -> rusqlite::Result<i64> {
    if let Some(id) = repository_id(rows, key)? {
        return Ok(id);
    }
    rows.prepare_cached("INSERT INTO repositories (upstream, name) VALUES (?1, ?2)")?
        .insert([key.upstream.as_str(), key.name.as_str()])
}

pub(super) fn object_id(rows: &Connection, digest: &Digest) -> rusqlite::Result<Option<i64>> {
    rows.prepare_cached("SELECT id FROM objects WHERE digest = ?1")?
        .query_row([digest.to_key()], |row| row.get(0))
        .optional()
}

/// The row of a digest, made as "not here" if there is none.
fn ensure_object(
    rows: &Connection,
    digest: &Digest,
    kind: i64,
    media_type: Option<&MediaType>,
    at: Timestamp,
) -> rusqlite::Result<i64> {
    if let Some(id) = object_id(rows, digest)? {
        return Ok(id);
    }
    rows.prepare_cached(
        "INSERT INTO objects (digest, kind, state, media_type, created, accessed, idle) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?5)",
    )?
    .insert(params![
        digest.to_key(),
        kind,
        STATE_ABSENT,
        media_type.map(MediaType::as_str),
        at.as_millis()
    ])
}

/// The object behind a revision of the repository.
fn revision_id(rows: &Connection, repository: i64, digest: &Digest) -> Result<i64, Failure> {
    rows.prepare_cached(
        "SELECT r.object FROM revisions r JOIN objects o ON o.id = r.object \
         WHERE r.repository = ?1 AND o.digest = ?2",
    )?
    .query_row(params![repository, digest.to_key()], |row| row.get(0))
    .optional()?
    .ok_or(Failure::Rejected("the digest is no revision of the repository"))
}

/// Writes a batched confirmation.
pub(super) fn confirm(
    rows: &Connection,
    repository: &RepositoryKey,
    tag: &Tag,
    at: Timestamp,
) -> rusqlite::Result<()> {
    rows.prepare_cached(
        "UPDATE tags SET confirmed = ?4 WHERE name = ?3 AND confirmed < ?4 AND repository = \
         (SELECT id FROM repositories WHERE upstream = ?1 AND name = ?2)",
    )?
    .execute(params![
        repository.upstream.as_str(),
        repository.name.as_str(),
        tag.as_str(),
        at.as_millis()
    ])?;
    Ok(())
}
