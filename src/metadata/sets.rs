//! Named sets of revisions, what was asked for in vain, and which upstreams are switched off: rows for those who carry images.

use super::error::Error;
use super::life::unexpected;
use super::model::{RepositoryKey, RevisionCommit};
use super::operation::{Operation, Outcome};
use super::rules::Switch;
use super::set_rows::{self, SetChange};
use super::store::Metadata;
use super::wanted_rows;
use crate::clock::Timestamp;
use crate::oci::{Digest, SetName, Tag};

/// Things asked for in vain that are remembered; the one not asked for longest goes first.
pub const WANTED_MAX: usize = 100_000;
/// Sets that there may be.
pub const SETS_MAX: usize = 10_000;
/// Longest text of what a set is of, in bytes.
pub const SET_DETAIL_BYTES_MAX: usize = 1024;

/// How a set came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    Record,
    Import,
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRecord {
    pub id: i64,
    pub name: SetName,
    pub kind: SetKind,
    pub since: Timestamp,
    /// `None`: it is being recorded.
    pub until: Option<Timestamp>,
    /// Its members are kept, whatever limits say.
    pub kept: bool,
    pub members: u64,
    pub detail: String,
}

/// A revision of a set, under the tag by which it got there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetMember {
    pub repository: RepositoryKey,
    pub digest: Digest,
    pub tag: Option<Tag>,
    pub at: Timestamp,
}

/// A tag that an import brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedTag {
    pub repository: RepositoryKey,
    pub tag: Tag,
    /// What it pointed at and since when, the oldest first; the last is what it points at.
    pub moves: Vec<(Digest, Timestamp)>,
    pub source: String,
}

/// Everything that one import brings; one transaction. The bytes are here and present.
#[derive(Clone, Debug)]
pub struct ImportCommit {
    /// Children before those that list them; none has a tag.
    pub revisions: Vec<RevisionCommit>,
    pub tags: Vec<ImportedTag>,
    pub set: SetName,
    pub detail: String,
    pub members: Vec<SetMember>,
    /// Repositories that anybody may read, by the operator's word.
    pub public: Vec<RepositoryKey>,
    pub at: Timestamp,
}

/// What became of an import's tags, in their order: `false` where the tag stays where it was because it was seen to move later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub moved: Vec<bool>,
}

/// Something that was asked for in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub repository: RepositoryKey,
    pub what: WantedWhat,
    pub first: Timestamp,
    pub last: Timestamp,
    pub times: u64,
    /// Upstream did not answer, rather than not being asked.
    pub unreachable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WantedWhat {
    Tag(Tag),
    Revision(Digest),
    Blob(Digest),
}

impl Metadata {
    /// Makes a set; `None` if there is one of that name, or too many. A detail that is too long is an error.
    pub async fn add_set(
        &self,
        name: SetName,
        kind: SetKind,
        detail: String,
    ) -> Result<Option<SetRecord>, Error> {
        check_detail(&detail)?;
        let change = SetChange::Add { name, kind, detail, at: self.now() };
        match self.run(Operation::ChangeSet(Box::new(change))).await? {
            Outcome::Set(set) => Ok(set.map(|set| *set)),
            other => Err(unexpected(&other)),
        }
    }

    /// All sets by name.
    pub async fn sets(&self) -> Result<Vec<SetRecord>, Error> {
        self.read(set_rows::all).await
    }

    /// Ends a recording, and sets whether the members are kept; `None`: stays as it is. Tells whether there is such a set.
    pub async fn change_set(
        &self,
        id: i64,
        until: Option<Timestamp>,
        kept: Option<bool>,
    ) -> Result<bool, Error> {
        self.change(SetChange::Change { id, until, kept }).await
    }

    /// Takes the set's rows away; its members are then kept by nothing that it kept them by, and those that nothing else links to wait
    /// for their end, unless they were recorded as pulled by their digest alone. Tells whether there was such a set. It is none from its
    /// own transaction on; its members go in slices, before the answer unless one of them cannot be written now: then behind it.
    pub async fn remove_set(&self, id: i64) -> Result<bool, Error> {
        let removed = self.change(SetChange::Remove { id, at: self.now() }).await?;
        let mut more = removed;
        while more {
            more = self.change(SetChange::Clear).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the members of a set that was removed go later");
                false
            });
        }
        Ok(removed)
    }

    /// Adds members; known ones change nothing. Gives back those whose revisions are not known, which are left out.
    pub async fn add_members(
        &self,
        id: i64,
        members: Vec<SetMember>,
    ) -> Result<Vec<SetMember>, Error> {
        let change = SetChange::Members { id, members };
        match self.run(Operation::ChangeSet(Box::new(change))).await? {
            Outcome::Unknown(members) => Ok(members),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes members out because others of the set have them as a part; they wait for no end for that.
    pub async fn remove_members(&self, id: i64, members: Vec<SetMember>) -> Result<(), Error> {
        self.change(SetChange::Without { id, members }).await.map(drop)
    }

    /// Says anew what a set is of; [`SET_DETAIL_BYTES_MAX`] at the most. Tells whether there is such a set.
    pub async fn describe_set(&self, id: i64, detail: String) -> Result<bool, Error> {
        check_detail(&detail)?;
        self.change(SetChange::Describe { id, detail }).await
    }

    async fn change(&self, change: SetChange) -> Result<bool, Error> {
        match self.run(Operation::ChangeSet(Box::new(change))).await? {
            Outcome::Changed(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    /// Members by repository and tag, after one of them.
    pub async fn set_members(
        &self,
        id: i64,
        after: Option<&SetMember>,
        limit: u32,
    ) -> Result<Vec<SetMember>, Error> {
        let after = after.cloned();
        self.read(move |rows| set_rows::members(rows, id, after.as_ref(), limit)).await
    }

    /// Takes an import in: all of it or nothing. A set of that name gets the members too. A revision whose bytes are not here, or a tag
    /// that points at what is no revision of its repository, is an error.
    pub async fn import(&self, import: ImportCommit) -> Result<Imported, Error> {
        check_detail(&import.detail)?;
        let (rules, now) = (self.rules(), self.now());
        let frozen = |tag: &ImportedTag| rules.frozen(&tag.repository, &tag.tag, now);
        let frozen = import.tags.iter().map(frozen).collect();
        match self.run(Operation::Import(Box::new(import), frozen)).await? {
            Outcome::Imported(imported) => Ok(imported),
            other => Err(unexpected(&other)),
        }
    }

    /// Notes that something was asked for in vain. Never waits and may be lost in a crash; repeated ones are added up.
    pub fn miss(&self, repository: &RepositoryKey, what: WantedWhat, unreachable: bool) {
        let added = self.shared().pending.miss(repository, what, unreachable, self.now());
        self.tell_writer(added);
    }

    /// What was asked for in vain since a moment and is not here now, by repository and what, after one of them. What was asked for until
    /// now is written before.
    pub async fn wanted(
        &self,
        since: Timestamp,
        after: Option<(&RepositoryKey, &WantedWhat)>,
        limit: u32,
    ) -> Result<Vec<Wanted>, Error> {
        self.flush().await?;
        let after = after.map(|(repository, what)| (repository.clone(), what.clone()));
        self.read(move |rows| {
            let after = after.as_ref().map(|(repository, what)| (repository, what));
            wanted_rows::page(rows, since, after, limit)
        })
        .await
    }

    /// Forgets all of it, and tells how much it was.
    pub async fn forget_wanted(&self) -> Result<u64, Error> {
        // So that what waits is counted too.
        self.flush().await?;
        match self.run(Operation::ForgetWanted).await? {
            Outcome::Counted(count) => Ok(count),
            other => Err(unexpected(&other)),
        }
    }

    /// Switches upstreams off or on; from the answer on [`super::Rules::is_offline`] says so. All of them on is each of them on; a family
    /// on leaves what is off by its own name.
    pub async fn switch(&self, what: Switch, offline: bool) -> Result<(), Error> {
        let at = self.now();
        self.run(Operation::Switch { what, offline, at }).await.map(drop)
    }
}

fn check_detail(detail: &str) -> Result<(), Error> {
    if detail.len() > SET_DETAIL_BYTES_MAX {
        return Err(Error::Failed("the detail of the set is too long".into()));
    }
    Ok(())
}
