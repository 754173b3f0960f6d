//! What is known about content: repositories, tags and their timelines, revisions, references, membership, presence, access times.
//!
//! What must hold: an answer to a write is given after its COMMIT; a read that begins after that answer sees the write; one
//! revision with its tag, timeline, references and membership is one transaction; a row that says "present" is written only by
//! those who have made the file durable before; an end that cannot be written (a tag gone, a repository private, content absent) is
//! kept in memory and overrules the rows until it can be. The store is SQLite in WAL mode: one writer thread that commits in groups, a few
//! reader threads, and a bounded cache of hot records in front. No SQL runs on a runtime worker, and no other room knows SQL.
//!
//! Whatever takes a holder of an object away (a deletion, a purge, a row that goes) enqueues the object in the same transaction, and a row
//! goes only when nothing points at it. The operator's rules are in memory, replaced after COMMIT and before the answer.
//!
//! A failing disk fails single writes, never the process: the writer goes on and works again when the disk does. This room
//! deliberately knows nothing of files of content, HTTP or upstreams, and decides nothing about freshness or permission.

mod connection;
mod ended;
mod error;
#[cfg(test)]
mod fault_tests;
mod holders;
mod hot;
mod hot_manifest;
#[cfg(test)]
mod hot_race_tests;
mod idle;
mod import;
#[cfg(test)]
mod import_tests;
mod life;
#[cfg(test)]
mod life_tests;
mod listing;
mod metrics;
mod model;
#[cfg(test)]
mod model_tests;
mod operation;
mod pending;
#[cfg(test)]
mod plan_tests;
#[doc(hidden)]
pub mod populate;
#[cfg(test)]
mod populate_tests;
mod presence;
mod purge;
mod query;
mod queue;
mod reader;
mod recent;
mod recovery;
mod removal;
#[cfg(test)]
mod removal_tests;
mod revision;
mod rule_rows;
mod rules;
mod schema;
#[cfg(test)]
mod schema_tests;
mod set_rows;
mod sets;
#[cfg(test)]
mod sets_tests;
mod shared;
mod store;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod timeline;
mod walk;
mod wanted_rows;
mod writer;

pub use error::{Error, OpenError};
pub use hot::Stamp;
pub use model::{
    BlobRecord, ClockSeen, CredentialFingerprint, Deleted, Doomed, FileMark, Holder, Holders,
    HotManifest, Idle, Moment, NamedRevision, NamedTag, Node, ObjectRecord, Proof, Purged,
    RepositoryKey, RevisionCommit, RevisionRecord, StoredObject, TagLink, TagMove, TagRecord,
    TimelineEntry, Usage, Within,
};
pub use removal::{InUse, Taken, Why};
pub use rules::{RULE_REASON_BYTES_MAX, RULES_MAX, Rule, RuleKind, Rules, Switch, Switches};
pub use schema::SCHEMA_VERSION;
pub use sets::{
    ImportCommit, Imported, ImportedTag, SET_DETAIL_BYTES_MAX, SETS_MAX, SetKind, SetMember,
    SetRecord, WANTED_MAX, Wanted, WantedWhat,
};
pub use store::{HOT_RECORDS_MAX_DEFAULT, Metadata, READER_THREADS_DEFAULT, Settings};
