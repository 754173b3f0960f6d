//! The records, in the words of the other rooms.

use std::fmt;

use super::hot::Stamp;
use crate::clock::Timestamp;
use crate::oci::{Descriptor, Digest, MediaType, RegistryName, RepositoryName, Role, SetName, Tag};

/// A repository of one upstream: the key of everything that is permission, tag or revision.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RepositoryKey {
    pub upstream: RegistryName,
    /// The name as the upstream knows it (with `library/`).
    pub name: RepositoryName,
}

impl fmt::Display for RepositoryKey {
    /// The full name, `docker.io/library/nginx`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.name)
    }
}

/// Tells credentials of ours apart without holding them.
pub type CredentialFingerprint = [u8; 16];

/// When, and with which credential of ours, an upstream showed content under a repository.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    pub proved: Timestamp,
    /// `None` is anonymous.
    pub credential: Option<CredentialFingerprint>,
}

impl fmt::Debug for Proof {
    /// A fingerprint belongs in no log: it could be compared with guesses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof")
            .field("proved", &self.proved)
            .field("anonymous", &self.credential.is_none())
            .finish()
    }
}

/// What stands behind the host in the source of a tag that upstream denies, where a tag that is merely absent names the host alone.
const DENIED: &str = " (denied)";

/// What a tag points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// `None`: absent upstream from `moved` on.
    pub digest: Option<Digest>,
    pub moved: Timestamp,
    /// When upstream last said so; never before `moved`.
    pub confirmed: Timestamp,
    /// The host that said so when the tag moved; for a denial, see [`TagRecord::denied_by`].
    pub source: String,
}

/// Is that the source of a tag that upstream denies?
pub(super) fn is_denial(source: &str) -> bool {
    source.ends_with(DENIED)
}

impl TagRecord {
    /// The source to record when `host` denies a tag.
    pub fn denied_by(host: &str) -> String {
        format!("{host}{DENIED}")
    }

    /// Did upstream deny the tag, rather than say that it does not exist?
    pub fn is_denied(&self) -> bool {
        self.digest.is_none() && is_denial(&self.source)
    }
}

/// A manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionRecord {
    pub digest: Digest,
    /// As first seen in this repository.
    pub media_type: MediaType,
    pub size: u64,
    /// The bytes are here.
    pub present: bool,
    pub proof: Proof,
}

/// A manifest whose bytes are here, with everything that decides whether and for how long it may be shown; all of it was in memory.
#[derive(Clone, Debug)]
pub struct HotManifest {
    /// What the tag said, if one was named; it points at the manifest.
    pub tag: Option<TagRecord>,
    pub media_type: MediaType,
    pub proof: Proof,
    /// May anybody read the repository, and when was that found out? `None`: not in memory.
    pub visibility: Option<(bool, Timestamp)>,
    /// All this is so as long as it is current.
    pub stamp: Stamp,
}

/// What is known of a digest as content of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobRecord {
    /// The verified length if the content was ever here, else what a manifest of this repository says.
    pub size: Option<u64>,
    /// The bytes are here, by whichever repository they came.
    pub present: bool,
    /// `None`: not known to be content of this repository.
    pub proof: Option<Proof>,
    /// It is a manifest of this repository, which the blob endpoint does not serve.
    pub revision: bool,
    /// See [`ObjectRecord::mark`].
    pub mark: Option<FileMark>,
}

/// What is known of a digest apart from any repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRecord {
    /// The verified length; `None` if the content was never here.
    pub size: Option<u64>,
    pub present: bool,
    /// The file's, if the content is here and they were recorded.
    pub mark: Option<FileMark>,
}

/// Content that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredObject {
    pub digest: Digest,
    pub size: u64,
    /// When its bytes were last known to be right: at a look at all of them, or when they were stored.
    pub verified: Option<Timestamp>,
}

/// A span of time in which a tag pointed at one digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEntry {
    /// `None`: absent upstream.
    pub digest: Option<Digest>,
    pub since: Timestamp,
    /// `None`: until now.
    pub until: Option<Timestamp>,
    /// When it began by the clock of whoever saw it, where that was ahead of ours and `since` is when we were told; or when it began
    /// once more, of which somebody else told us.
    pub told: Option<Timestamp>,
    pub source: String,
}

/// A verified manifest and everything that is learned with it.
#[derive(Clone, Debug)]
pub struct RevisionCommit {
    pub repository: RepositoryKey,
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: u64,
    /// What it points at, in document order. Foreign ones and children of an index become references but no members.
    pub children: Vec<(Role, Descriptor)>,
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
    pub proof: Proof,
    pub at: Timestamp,
    /// The tag by which it was fetched, if it was.
    pub tag: Option<TagMove>,
}

/// A tag that points at the revision that it comes with.
#[derive(Clone, Debug)]
pub struct TagMove {
    pub tag: Tag,
    /// The host that said so.
    pub source: String,
}

/// How the file looked when it was stored, for a later check whether somebody touched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMark {
    /// Time of the last change of content, nanoseconds since the Unix epoch.
    pub modified_nanos: i64,
    pub inode: u64,
}

/// What is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub objects: u64,
    pub bytes: u64,
}

/// A part of what is known: an upstream with everything in it, or one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Within {
    Upstream(RegistryName),
    Repository(RepositoryKey),
}

/// A [`TimelineEntry`] with its place in the order of all moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub id: i64,
    pub entry: TimelineEntry,
    /// The bytes of the revision are here.
    pub present: bool,
}

/// A tag and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTag {
    pub repository: RepositoryKey,
    pub tag: Tag,
    pub record: TagRecord,
    /// The manifest's bytes are here.
    pub present: bool,
    /// When the manifest was last used.
    pub accessed: Option<Timestamp>,
}

/// A revision of a repository, for those who list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRevision {
    pub digest: Digest,
    pub media_type: MediaType,
    pub size: Option<u64>,
    pub present: bool,
    pub committed: Timestamp,
    /// Since when no tag links to it and it waits for its end.
    pub unlinked: Option<Timestamp>,
}

/// One object of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub digest: Digest,
    /// The object that points at it; `None`: the revision itself.
    pub parent: Option<Digest>,
    pub role: Option<Role>,
    pub media_type: Option<MediaType>,
    /// `os/architecture[/variant]` by the index that lists it.
    pub platform: Option<String>,
    /// Verified, else claimed.
    pub size: Option<u64>,
    pub present: bool,
    pub quarantined: bool,
    /// Upstream itself need not have it.
    pub foreign: bool,
    pub accessed: Option<Timestamp>,
    /// When an operator took its bytes away although something needed it.
    pub removed: Option<Timestamp>,
}

/// What holds an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Revisions that are the object or need it.
    pub revisions: Vec<Holder>,
    /// Upstreams under which the object is known to be content.
    pub upstreams: Vec<RegistryName>,
    /// There are more revisions than were asked for.
    pub more: bool,
}

/// A revision that is or needs an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub repository: RepositoryKey,
    pub revision: Digest,
    /// Since when it waits for its end; `None`: it stays.
    pub unlinked: Option<Timestamp>,
    /// It does not need the object: the object, or what needs it, only refers to it.
    pub over_subject: bool,
    pub links: Vec<TagLink>,
    /// Kept sets that it is a member of.
    pub sets: Vec<SetName>,
}

/// A tag that points at a revision or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagLink {
    pub tag: Tag,
    pub since: Timestamp,
    /// `None`: it points there now.
    pub until: Option<Timestamp>,
    /// Other revisions that the tag pointed at later, each counted once.
    pub newer: u32,
    /// The tag pointed at nothing before.
    pub first: bool,
    /// The tag is absent upstream now, and this is the last thing it pointed at.
    pub last_before_absent: bool,
}

/// Content that was not used for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    pub digest: Digest,
    pub size: u64,
    /// Its place in the queue: when it was last used, or looked at and kept.
    pub since: Timestamp,
}

/// What a deletion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// There was something to delete.
    pub found: bool,
    pub tags: Vec<Tag>,
    /// Revisions that wait for their end, or are out of the repository.
    pub revisions: Vec<Digest>,
}

/// What a slice of a purge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub repositories: u64,
    pub tags: u64,
    pub revisions: u64,
    pub more: bool,
}

/// What was seen of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSeen {
    /// It goes on without a step since then, ...
    pub since: Timestamp,
    /// ... as far as was seen until then.
    pub last: Timestamp,
}

/// An object that may have lost the last thing that held it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    pub digest: Digest,
    pub since: Timestamp,
    pub size: Option<u64>,
    pub present: bool,
}
