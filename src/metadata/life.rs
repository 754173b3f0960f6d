//! The life of content: what holds it, what may go, what goes, and what was at a moment of the past.

use rusqlite::Connection;

use super::error::Error;
use super::hot::Key;
use super::model::*;
use super::operation::{Operation, Outcome};
use super::removal::{InUse, Removal, Taken, Why};
use super::rules::{RULE_REASON_BYTES_MAX, Rule, RuleKind, Rules};
use super::shared::confirmed;
use super::store::Metadata;
use super::{holders, idle, listing, query, removal, timeline};
use crate::clock::Timestamp;
use crate::oci::{Digest, RegistryName, Scope, Tag};

impl Metadata {
    /// What a tag pointed at then: the entry of its timeline that began last before or at `at`. `None`: it was not seen before, or what it
    /// pointed at was deleted from it. With [`Metadata::first_seen`] for "the first after".
    pub async fn tag_at(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        at: Timestamp,
    ) -> Result<Option<TimelineEntry>, Error> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.read(move |rows| timeline::tag_at(rows, &repository, &tag, at)).await
    }

    /// When the tag was first seen to point at something.
    pub async fn first_seen(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
    ) -> Result<Option<Timestamp>, Error> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.read(move |rows| timeline::first_seen(rows, &repository, &tag)).await
    }

    /// The revision that a frozen tag serves: what it pointed at when it was frozen, else the first that it pointed at afterwards.
    pub async fn frozen_at(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        since: Timestamp,
    ) -> Result<Option<TimelineEntry>, Error> {
        let (repository, tag) = (repository.clone(), tag.clone());
        self.read(move |rows| timeline::frozen_at(rows, &repository, &tag, since)).await
    }

    /// Tags that pointed at something then, in the order of their bytes, after `after`.
    pub async fn tags_at(
        &self,
        repository: &RepositoryKey,
        after: Option<&str>,
        limit: u32,
        at: Timestamp,
    ) -> Result<Vec<Tag>, Error> {
        let (repository, after) = (repository.clone(), after.unwrap_or_default().to_owned());
        self.read(move |rows| timeline::tags_at(rows, &repository, &after, limit, at)).await
    }

    /// The moves of a tag, the newest first, those before `before` (an id of a [`Moment`]).
    pub async fn history(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Moment>, Error> {
        let (repository, tag) = (repository.clone(), tag.clone());
        let before = before.unwrap_or(i64::MAX);
        self.read(move |rows| timeline::history(rows, &repository, &tag, before, limit)).await
    }

    /// Tags with what they point at, absent ones included, in the order of upstream, repository and name, after `after`; those of
    /// `within` alone, if it is given.
    pub async fn tag_records(
        &self,
        within: Option<&Within>,
        after: Option<&(RepositoryKey, Tag)>,
        limit: u32,
    ) -> Result<Vec<NamedTag>, Error> {
        let (within, after) = (within.cloned(), after.cloned());
        let read =
            move |rows: &Connection| listing::tags(rows, within.as_ref(), after.as_ref(), limit);
        let mut found = self.read(read).await?;
        let shared = self.shared();
        for named in &mut found {
            let pending = shared.pending.confirmed(&named.repository, &named.tag);
            let key = Key::Tag(named.repository.clone(), named.tag.clone());
            let record = shared.ended.tag(&key, confirmed(named.record.clone(), pending));
            named.present &= record.digest.is_some();
            named.record = record;
        }
        Ok(found)
    }

    /// Revisions of a repository, in the order in which the store came to know their digests, after `after`, which must be known.
    pub async fn revision_records(
        &self,
        repository: &RepositoryKey,
        after: Option<&Digest>,
        limit: u32,
    ) -> Result<Vec<NamedRevision>, Error> {
        let (repository, after) = (repository.clone(), after.copied());
        self.read(move |rows| listing::revisions(rows, &repository, after.as_ref(), limit)).await
    }

    /// A revision with everything below it, as far as its manifests are known, breadth first; at most `limit` nodes. Each reference is
    /// a node; what is below an object is told once. Empty if it is no revision of the repository.
    pub async fn tree(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        limit: u32,
    ) -> Result<Vec<Node>, Error> {
        let (repository, digest) = (repository.clone(), *digest);
        let mut found =
            self.read(move |rows| holders::tree(rows, &repository, &digest, limit)).await?;
        let ended = &self.shared().ended;
        for node in found.iter_mut().filter(|node| node.present) {
            node.present = !ended.is_absent(&node.digest);
        }
        Ok(found)
    }

    /// Revisions of the repository that refer to the digest over `subject`, at most `limit`.
    pub async fn referring(
        &self,
        repository: &RepositoryKey,
        subject: &Digest,
        limit: u32,
    ) -> Result<Vec<Digest>, Error> {
        let (repository, subject) = (repository.clone(), *subject);
        self.read(move |rows| holders::referring(rows, &repository, &subject, limit)).await
    }

    /// What holds an object: the revisions that are it or need it, over every path of references, and the upstreams that showed it.
    pub async fn holders(&self, digest: &Digest, limit: u32) -> Result<Holders, Error> {
        let digest = *digest;
        self.read(move |rows| holders::holders(rows, &digest, limit)).await
    }

    /// Content that is here and was last used before `before`, the longest unused first; with an upstream, what came from it. What was
    /// used until now is written before.
    pub async fn idle(
        &self,
        before: Timestamp,
        from: Option<&RegistryName>,
        limit: u32,
    ) -> Result<Vec<Idle>, Error> {
        self.flush().await?;
        let from = from.cloned();
        self.read(move |rows| idle::queue(rows, before, from.as_ref(), limit)).await
    }

    /// Puts content that is kept at the end of the queue, so that it is looked at again when everything else was.
    pub async fn postpone(&self, digests: Vec<Digest>, to: Timestamp) -> Result<(), Error> {
        self.run(Operation::Postpone { digests, to }).await.map(drop)
    }

    /// Times of use and of waiting that are later than `ahead` were written by a clock that was wrong: they become now. A slice at a
    /// time; call it until it is false.
    pub async fn put_back(&self, ahead: Timestamp) -> Result<bool, Error> {
        match self.run(Operation::PutBack { now: self.now(), ahead }).await? {
            Outcome::Changed(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    /// What [`Metadata::note_clock`] noted last.
    pub async fn clock_seen(&self) -> Result<Option<ClockSeen>, Error> {
        self.read(idle::clock_seen).await
    }

    /// Notes what was seen of the machine's clock, in place of what was noted before.
    pub async fn note_clock(&self, seen: ClockSeen) -> Result<(), Error> {
        self.run(Operation::NoteClock(seen)).await.map(drop)
    }

    /// What is stored, by the upstream through which it came; content of unknown origin apart, if there is any.
    pub async fn usage_by_upstream(&self) -> Result<Vec<(Option<RegistryName>, Usage)>, Error> {
        let read = |rows: &Connection| Ok((idle::usage(rows)?, query::usage(rows)?));
        let (by_upstream, mut unknown) = self.read(read).await?;
        for (_, usage) in &by_upstream {
            unknown.objects = unknown.objects.saturating_sub(usage.objects);
            unknown.bytes = unknown.bytes.saturating_sub(usage.bytes);
        }
        let rest = (unknown != Usage::default()).then_some((None, unknown));
        Ok(by_upstream.into_iter().map(|(name, usage)| (Some(name), usage)).chain(rest).collect())
    }

    /// Takes a tag with its whole timeline out. Revisions that no other tag, past or present, links to and no index needs begin to
    /// wait for their end. Tells those.
    pub async fn delete_tag(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
    ) -> Result<Deleted, Error> {
        let (repository, tag, at) = (repository.clone(), tag.clone(), self.now());
        self.delete(Removal::Tag { repository, tag, at }).await
    }

    /// Takes one revision out of a tag's timeline; the tag itself goes if it points at it now.
    pub async fn delete_link(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        digest: &Digest,
    ) -> Result<Deleted, Error> {
        let (repository, tag, at) = (repository.clone(), tag.clone(), self.now());
        self.delete(Removal::Link { repository, tag, digest: *digest, at }).await
    }

    /// Takes a revision out of a repository, with the tags that point at it now, all links to it, and what it alone proved to be content
    /// of the repository.
    pub async fn delete_revision(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Deleted, Error> {
        let (repository, at) = (repository.clone(), self.now());
        self.delete(Removal::Revision { repository, digest: *digest, at }).await
    }

    async fn delete(&self, removal: Removal) -> Result<Deleted, Error> {
        match self.run(Operation::Remove(Box::new(removal))).await? {
            Outcome::Deleted(deleted) => Ok(deleted),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes out what is known of an upstream, or of one repository of it, a slice at a time. Call it until `more` is false.
    pub async fn purge(&self, within: &Within) -> Result<Purged, Error> {
        let removal = Removal::Purge { within: within.clone(), at: self.now() };
        match self.run(Operation::Remove(Box::new(removal))).await? {
            Outcome::Purged(purged) => Ok(purged),
            other => Err(unexpected(&other)),
        }
    }

    /// Objects that lost something that held them before `before`, the oldest first.
    pub async fn doomed(&self, before: Timestamp, limit: u32) -> Result<Vec<Doomed>, Error> {
        self.read(move |rows| removal::doomed(rows, before, limit)).await
    }

    /// The object is held after all. If rows hold it, and it waits in no repository, it waits for its end no more; if it is kept for another
    /// reason, such as a pin, which may be taken back, it waits from now on again.
    pub async fn spare(&self, digest: &Digest) -> Result<(), Error> {
        let removal = Removal::Spare { digest: *digest, at: self.now() };
        self.run(Operation::Remove(Box::new(removal))).await.map(drop)
    }

    /// Takes a revision that waits for its end since before `before` out of its repository, although something elsewhere holds the
    /// object, which stays. Tells whether it went; one that an index of the repository needs does not.
    pub async fn retire(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        before: Timestamp,
    ) -> Result<bool, Error> {
        let (repository, at) = (repository.clone(), self.now());
        let removal = Removal::Retire { repository, digest: *digest, before, at };
        match self.run(Operation::Remove(Box::new(removal))).await? {
            Outcome::Changed(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes out the row of an object that is not here and that nothing holds, with its references; what it held waits for its end
    /// from now on. Tells whether it went.
    pub async fn forget(&self, digest: &Digest) -> Result<bool, Error> {
        let removal = Removal::Forget { digest: *digest, at: self.now() };
        match self.run(Operation::Remove(Box::new(removal))).await? {
            Outcome::Changed(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    /// Content is about to be stored that nothing holds yet. If nothing does when the grace time of deletions is over, it is collected.
    pub async fn await_holder(&self, digest: &Digest) -> Result<(), Error> {
        let removal = Removal::Await { digest: *digest, at: self.now() };
        self.run(Operation::Remove(Box::new(removal))).await.map(drop)
    }

    /// Content that is not here, that nothing refers to and no repository knows, and that was learned of before `before`: a slice of all
    /// rows, those that come after place `after` (0 at first), and the place to go on from, if there is more.
    pub async fn strays(
        &self,
        after: i64,
        before: Timestamp,
    ) -> Result<(Vec<Digest>, Option<i64>), Error> {
        self.read(move |rows| removal::strays(rows, after, before)).await
    }

    /// Says that the bytes of an object are not here any more, if what was looked at is still so and nobody is using it. For `content`,
    /// which then removes the file, under the digest's lock.
    pub async fn take(&self, digest: &Digest, why: Why, in_use: InUse) -> Result<Taken, Error> {
        let removal = Removal::Take { digest: *digest, why, in_use, at: self.now() };
        match self.run(Operation::Remove(Box::new(removal))).await? {
            Outcome::Taken(taken) => Ok(taken),
            other => Err(unexpected(&other)),
        }
    }

    /// What [`Metadata::take`] has taken is here all the same, because its file cannot be removed. For `content`, under the digest's lock.
    pub async fn regret(&self, digest: &Digest) -> Result<(), Error> {
        let removal = Removal::Regret { digest: *digest };
        self.run(Operation::Remove(Box::new(removal))).await.map(drop)
    }

    /// Is the content not here because somebody removes or removed it on purpose? Then a file of it is a leftover.
    pub async fn is_unwanted(&self, digest: &Digest) -> Result<bool, Error> {
        let digest = *digest;
        self.read(move |rows| removal::is_unwanted(rows, &digest)).await
    }

    /// The rules in force and those that are over.
    pub fn rules(&self) -> Rules {
        self.shared().rules.get()
    }

    /// Is the upstream switched off now? Says nothing of what the configuration says.
    pub fn is_offline(&self, upstream: &RegistryName) -> bool {
        self.shared().rules.is_offline(upstream)
    }

    /// [`Rules::epoch`] of them, without a lock.
    pub fn rules_epoch(&self) -> u64 {
        self.shared().rules.epoch()
    }

    /// Adds a rule and answers it with its id. From the answer on it counts. A reason that is too long, or one rule too many, is an
    /// error.
    pub async fn add_rule(
        &self,
        kind: RuleKind,
        scope: Scope,
        until: Option<Timestamp>,
        reason: String,
    ) -> Result<Rule, Error> {
        if reason.len() > RULE_REASON_BYTES_MAX {
            return Err(Error::Failed("the reason of the rule is too long".into()));
        }
        let (at, scope) = (self.now(), Box::new(scope));
        match self.run(Operation::AddRule { kind, scope, at, until, reason }).await? {
            Outcome::Rule(rule) => Ok(*rule),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a rule back; `false` if there is none of this id.
    pub async fn remove_rule(&self, id: i64) -> Result<bool, Error> {
        match self.run(Operation::RemoveRule(id)).await? {
            Outcome::Changed(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }
}

/// An operation told something of another.
pub(super) fn unexpected(outcome: &Outcome) -> Error {
    Error::Failed(format!("the writer answered {outcome:?}").into())
}
