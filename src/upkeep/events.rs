//! What a job tells while it runs: the lines of the admin API's streams, and what the commands print.

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

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
}

impl Report {
    /// Is everything as it should be?
    pub fn is_sound(&self) -> bool {
        self.damaged == 0 && self.missing == 0 && self.unknown == 0
    }

    pub(super) fn count(&mut self, finding: Finding) {
        match finding {
            Finding::Damaged => self.damaged += 1,
            Finding::Missing => self.missing += 1,
            Finding::Unknown => self.unknown += 1,
        }
    }
}

/// Where the content of a digest lies, relative to the data directory (docs/storage-layout.md).
pub(super) fn file_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
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

    #[test]
    fn a_file_is_named_as_the_layout_says() {
        let digest = Digest::sha256_of(b"x");
        assert_eq!(file_of(&digest), format!("blobs/sha256/{}", digest.hex()));
    }
}
