//! What the desk answers: plain data, as the admin API sends it and the commands print it.
//!
//! Images are named in full (`docker.io/library/nginx:1.27`), digests as `sha256:…`, times in RFC 3339.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed<T> {
    pub items: Vec<T>,
    /// Hand it in as `after` for the next page; none on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A tag in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagInfo {
    pub image: String,
    /// What clients get: for a frozen tag the revision at which it was frozen. `None`: absent upstream.
    pub digest: Option<String>,
    /// Its manifest is here.
    pub present: bool,
    pub moved: Timestamp,
    pub confirmed: Timestamp,
    pub used: Option<Timestamp>,
    pub pinned: bool,
    pub frozen: bool,
}

/// What is known of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub image: String,
    pub digest: String,
    pub media_type: String,
    /// Tags of the repository that point at it now.
    pub tags: Vec<String>,
    /// Everything below it that is known, breadth first, itself first.
    pub content: Vec<Part>,
    /// There is more than was looked at.
    pub truncated: bool,
    /// Bytes of it that are here, and of all that are known; foreign layers apart.
    pub bytes_present: u64,
    pub bytes_known: u64,
    /// Everything known of it is here. For an index see each platform.
    pub complete: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<PlatformInfo>,
    pub holds: Vec<Hold>,
}

/// One platform of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformInfo {
    pub platform: String,
    pub digest: String,
    /// Its manifest and all that it names are here.
    pub complete: bool,
    pub bytes_present: u64,
}

/// One object of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub digest: String,
    /// `manifest`, `index`, `config` or `layer`.
    pub role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    pub size: Option<u64>,
    /// `present`, `absent`, `quarantined`, `foreign`, or `removed` (its bytes were taken away by force).
    pub state: String,
}

/// Something that keeps content here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// `pin`, `freeze`, `last_revisions`, `set`, `tag`, `revision`, `offline`, `young` or `in_use`.
    pub by: String,
    /// The image or the rule that holds it, in words.
    pub what: String,
}

/// The timeline of a tag, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub id: i64,
    /// `None`: absent upstream.
    pub digest: Option<String>,
    pub since: Timestamp,
    /// `None`: until now.
    pub until: Option<Timestamp>,
    /// The host that said so.
    pub source: String,
    pub present: bool,
    /// It is what clients get now.
    pub served: bool,
}

/// What would happen now if a client asked for an image, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub image: String,
    /// The upstream, and the addresses that would be asked, in order.
    pub upstream: String,
    pub endpoints: Vec<EndpointInfo>,
    pub offline: bool,
    /// The verdict in a word: `fresh`, `stale`, `check`, `fetch`, `frozen`, `absent`, `refused`.
    pub verdict: String,
    /// The same in a sentence or two, for people.
    pub sentences: Vec<String>,
    pub fresh_until: Option<Timestamp>,
    /// The rule for tags that is in force, if it is not the upstream's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    pub digest: Option<String>,
    pub bytes_present: u64,
    pub missing: u64,
    pub holds: Vec<Hold>,
}

/// An address of an upstream, and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    pub url: String,
    /// `parent`, `mirror` or `registry`.
    pub role: String,
    /// It is being asked; false while it is left alone after failures.
    pub in_use: bool,
}

/// A pin or a freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    pub id: i64,
    pub scope: String,
    pub since: Timestamp,
    pub until: Option<Timestamp>,
    pub reason: String,
}

/// What a deletion took out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    pub tags: Vec<String>,
    pub revisions: Vec<String>,
    /// Objects whose bytes were taken away at once, by force.
    pub removed: Vec<String>,
    /// Images that are incomplete now.
    pub incomplete: Vec<String>,
    /// When their content goes, unless something holds it.
    pub collected_after: Option<Timestamp>,
}

/// What asking upstream for a tag now found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    pub image: String,
    pub before: Option<String>,
    pub now: Option<String>,
    /// `confirmed`, `moved`, `first_seen`, `absent`, `denied`, or `unreachable`.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// One line of a lockfile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    pub image: String,
    pub digest: String,
    pub at: Timestamp,
}

/// What is stored, and what may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageInfo {
    pub objects: u64,
    pub bytes: u64,
    pub max_bytes: Option<u64>,
    pub free_bytes: u64,
    pub min_free_bytes: u64,
    /// Objects that wait for their end.
    pub doomed: u64,
    pub upstreams: Vec<UpstreamUsage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamUsage {
    /// `None`: of unknown origin.
    pub upstream: Option<String>,
    pub objects: u64,
    pub bytes: u64,
    pub max_bytes: Option<u64>,
}
