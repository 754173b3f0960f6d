//! What a job tells while it runs: the lines of the admin API's streams, and what the commands print.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Which work a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// Reads all that is stored and tells what is wrong.
    Verify,
    /// The same, and what is damaged is put aside, rows are corrected, and sound files without a row get one.
    Repair,
    /// Gives sound files without a row one, and puts damaged ones aside.
    Reindex,
    /// Takes away what nothing needs any more, and makes room as far as limits want it.
    Gc,
    /// Tells what [`JobKind::Gc`] would take and why, and what keeps the rest.
    GcDryRun,
    /// Takes out what is known of an upstream or a repository ([`super::Upkeep::purge`]).
    Purge,
}

/// One line of a job's story. The last one is `ended` or `aborted`; a story without either was cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// What is stored by the rows, as far as it is known at the beginning.
    Begun { job: JobKind, objects: u64, bytes: u64 },
    /// How much was read so far.
    Progress { objects: u64, bytes: u64 },
    /// Something is not as it should be.
    Found {
        finding: Finding,
        digest: String,
        /// Relative to the data directory.
        file: String,
        size: u64,
        /// Why nothing is known of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Of an object that may go it was decided whether it goes (`gc`).
    Decided {
        fate: Fate,
        digest: String,
        /// Its bytes that are here.
        size: u64,
        /// Since when it waits for its end, or was unused.
        since: Timestamp,
        reason: String,
    },
    /// How much was taken out so far (`purge`).
    Purged { repositories: u64, tags: u64, revisions: u64 },
    /// The work is done.
    Ended(Report),
    /// The work was given up; nothing that was found is lost.
    Aborted { reason: String },
}

/// What is wrong with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The file does not have the bytes of its name.
    Damaged,
    /// A row says that it is here, and there is no file.
    Missing,
    /// It could not be looked at: the disk or the rows failed, or the process lacks something. Nothing is known of the content.
    Unknown,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Its bytes and what was known of it are gone.
    Collected,
    /// Its bytes are gone; what is known of it stays, so that the next pull fetches it again.
    Evicted,
    /// Something keeps it.
    Kept,
    /// Nothing keeps it, and its time has not come.
    Waits,
    /// It could not be decided, or the disk failed.
    Failed,
}

/// What a job did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Objects that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    pub damaged: u64,
    pub missing: u64,
    /// Objects that could not be looked at.
    pub unknown: u64,
    /// Files without a row that nobody has looked into (`verify` without repair).
    pub orphans: u64,
    /// Files without a row that were sound and have one now.
    pub adopted: u64,
    /// Was what is wrong corrected?
    pub repaired: bool,
    /// Objects that `gc` took away, by collection and by eviction, or would take; and their bytes.
    #[serde(default)]
    pub collected: u64,
    #[serde(default)]
    pub evicted: u64,
    #[serde(default)]
    pub freed: u64,
    /// Objects that something keeps, as far as `gc` looked.
    #[serde(default)]
    pub kept: u64,
    /// Objects whose time has not come.
    #[serde(default)]
    pub waiting: u64,
    /// Objects of which `gc` could decide nothing.
    #[serde(default)]
    pub failed: u64,
    /// What `purge` took out.
    #[serde(default)]
    pub repositories: u64,
    #[serde(default)]
    pub tags: u64,
    #[serde(default)]
    pub revisions: u64,
}

impl Report {
    /// Is everything as it should be?
    pub fn is_sound(&self) -> bool {
        self.damaged == 0 && self.missing == 0 && self.unknown == 0 && self.failed == 0
    }

    pub(super) fn count(&mut self, finding: Finding) {
        match finding {
            Finding::Damaged => self.damaged += 1,
            Finding::Missing => self.missing += 1,
            Finding::Unknown => self.unknown += 1,
        }
    }

    pub(super) fn decided(&mut self, fate: Fate, bytes: u64) {
        match fate {
            Fate::Collected => self.collected += 1,
            Fate::Evicted => self.evicted += 1,
            Fate::Kept => self.kept += 1,
            Fate::Waits => self.waiting += 1,
            Fate::Failed => self.failed += 1,
        }
        if matches!(fate, Fate::Collected | Fate::Evicted) {
            self.freed += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_it_is() {
        let line = |event: &Event| serde_json::to_string(event).unwrap();
        assert_eq!(
            line(&Event::Begun { job: JobKind::Repair, objects: 2, bytes: 7 }),
            r#"{"event":"begun","job":"repair","objects":2,"bytes":7}"#
        );
        let report = Report { objects: 2, bytes: 7, damaged: 1, ..Report::default() };
        let ended = line(&Event::Ended(report));
        assert!(ended.starts_with(r#"{"event":"ended","objects":2,"#), "{ended}");
        assert_eq!(serde_json::from_str::<Event>(&ended).unwrap(), Event::Ended(report));
        assert!(!report.is_sound());
    }
}
