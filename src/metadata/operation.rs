//! Writes: what each operation does to the rows, inside the writer's transaction.
//!
//! An operation returns the keys of the hot records that it may have changed; the writer reads them back with the same statements
//! that a reader would use, so that cache and database cannot tell different stories.

use rusqlite::{Connection, OptionalExtension, params};

use super::error::Error;
use super::hot::Key;
use super::model::{ClockSeen, Deleted, FileMark, Proof, Purged, RepositoryKey, RevisionCommit};
use super::removal::{Removal, Taken, doom};
use super::rules::{Rule, RuleKind, Switch};
use super::set_rows::SetChange;
use super::sets::{ImportCommit, Imported, SetMember, SetRecord};
use super::{idle, import, presence, revision, rule_rows, wanted_rows};
use crate::clock::Timestamp;
use crate::oci::{Digest, MediaType, Scope, Tag};

/// Children of one manifest whose records are worth keeping hot; a pull asks for them next.
const HOT_CHILDREN_MAX: usize = 64;

pub(super) const KIND_BLOB: i64 = 0;
pub(super) const KIND_MANIFEST: i64 = 1;
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
    NoteClock(ClockSeen),
    PutBack {
        now: Timestamp,
        ahead: Timestamp,
    },
    Remove(Box<Removal>),
    ChangeSet(Box<SetChange>),
    /// With since when each of its tags is frozen.
    Import(Box<ImportCommit>, Vec<Option<Timestamp>>),
    ForgetWanted,
    Switch {
        what: Switch,
        offline: bool,
        at: Timestamp,
    },
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
    Set(Option<Box<SetRecord>>),
    /// Members whose revisions are not known.
    Unknown(Vec<SetMember>),
    Imported(Imported),
    Counted(u64),
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
            Self::Import(..) | Self::Switch { .. } => true,
            Self::Remove(removal) => removal.must_last(),
            Self::ChangeSet(change) => change.must_last(),
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
            Self::Import(import, _) => import::facts(import),
            Self::SetPresent { digest, .. } | Self::SetAbsent { digest, .. } => {
                vec![Key::Object(*digest)]
            }
            Self::SetVisibility { repository, .. } => vec![Key::Visibility(repository.clone())],
            _ => Vec::new(),
        }
    }

    /// May it change so much that it must be a transaction of its own? A savepoint would keep a copy of every page that it changes in
    /// memory, and SQLite walks over all of them after each statement that it could have to take back.
    pub(super) fn stands_alone(&self) -> bool {
        matches!(self, Self::Import(..))
    }

    /// Does it leave members of a set that was removed?
    pub(super) fn clears(&self) -> bool {
        matches!(self, Self::ChangeSet(change) if change.clears())
    }

    /// Is what it changed likely to be asked for next? Upkeep walks over everything, and must not push out what clients want.
    pub(super) fn warms(&self) -> bool {
        !matches!(self, Self::SetVerified { .. } | Self::Remove(_) | Self::Import(..))
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
            Self::NoteClock(seen) => {
                idle::note_clock(rows, *seen)?;
                Ok(Applied::telling(Outcome::Done))
            }
            Self::Postpone { digests, to } => {
                idle::postpone(rows, digests, *to)?;
                Ok(Applied::telling(Outcome::Done))
            }
            Self::Remove(removal) => removal.apply(rows, context),
            Self::ChangeSet(change) => change.apply(rows, context),
            Self::Import(import, frozen) => import::apply(rows, (import, frozen), context),
            Self::ForgetWanted => {
                Ok(Applied::telling(Outcome::Counted(wanted_rows::forget(rows)?)))
            }
            Self::Switch { what, offline, at } => {
                context.epoch += 1;
                rule_rows::switch(rows, what, *offline, *at)?;
                Ok(Applied::telling(Outcome::Done))
            }
            _ => self.learn(rows).map(Applied::from),
        }
    }

    /// Those that bring in what is known of content.
    fn learn(&self, rows: &Connection) -> Result<Changed, Failure> {
        match self {
            Self::CommitRevision(commit, mark) => revision::commit(rows, commit, *mark),
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
                add_member(rows, id, object, *size, (*proof, Standing::Renewed))?;
                Ok(vec![Key::Member(repository.clone(), *digest)])
            }
            Self::SetReferrers { repository, subject, index, at } => {
                set_referrers(rows, repository, subject, index, *at)
            }
            Self::SetVisibility { repository, public, at } => {
                set_visibility(rows, repository, *public, *at)?;
                Ok(vec![Key::Visibility(repository.clone())])
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// Is `key` one that a group should read back for the cache, given how many it has to read? The others are only forgotten.
pub(super) fn worth_reading(position: usize, key: &Key) -> bool {
    position < HOT_CHILDREN_MAX || !matches!(key, Key::Member(..))
}

/// What becomes of a proof that stands when another one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Upstream was asked just now, or the operator says that anybody may read the repository.
    Renewed,
    /// What was shown by a credential stays bound to it.
    Kept,
}

pub(super) fn add_member(
    rows: &Connection,
    repository: i64,
    object: i64,
    size: Option<u64>,
    (proof, standing): (Proof, Standing),
) -> rusqlite::Result<()> {
    rows.prepare_cached(
        "INSERT INTO membership (object, repository, proved, credential, size) \
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET \
         proved = iif(?6, excluded.proved, proved), \
         credential = iif(?6, excluded.credential, credential), \
         size = coalesce(excluded.size, size)",
    )?
    .execute(params![
        object,
        repository,
        proof.proved.as_millis(),
        proof.credential,
        size.map(stored),
        standing == Standing::Renewed,
    ])?;
    presence::settle_origin(rows, object, repository)
}

/// Points the tag at `object` (`None`: absent from here on). An unchanged one is confirmed; a changed one closes the open row of the
/// timeline and opens the next. A tag that was never seen is not recorded as absent.
pub(super) fn move_tag(
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

pub(super) fn set_visibility(
    rows: &Connection,
    repository: &RepositoryKey,
    public: bool,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let id = ensure_repository(rows, repository)?;
    rows.prepare_cached("UPDATE repositories SET public = ?2, public_checked = ?3 WHERE id = ?1")?
        .execute(params![id, public, at.as_millis()])?;
    Ok(())
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

pub(super) fn ensure_repository(rows: &Connection, key: &RepositoryKey) -> rusqlite::Result<i64> {
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
pub(super) fn ensure_object(
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
pub(super) fn revision_id(
    rows: &Connection,
    repository: i64,
    digest: &Digest,
) -> Result<i64, Failure> {
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
