//! What work on images tells while it runs: the lines of the admin API's streams, and what the commands print.

use serde::{Deserialize, Serialize};

/// Which work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    Warm,
    Record,
    Import,
    Takeover,
}

/// One line of a story. The last one is `ended` or `aborted`; a story without either was cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// How much there is to do, as far as it is known.
    Begun { work: Work, images: u64, bytes: u64 },
    /// How much is done, of what is known by now.
    Progress { images: u64, objects: u64, bytes: u64, of_bytes: u64 },
    /// What became of one image.
    Image {
        /// In full, as clients may name it.
        image: String,
        digest: Option<String>,
        fate: Fate,
        /// Its bytes: fetched, taken in, or found here.
        bytes: u64,
        /// Why it failed, or what else there is to know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Something was left out: of a foreign store, with the file or the name that it has there, or of a recording.
    LeftOut { what: String, reason: String },
    /// The work is done; some images may have failed.
    Ended(Report),
    /// The work was given up.
    Aborted { reason: String },
}

/// What became of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// All of it was here.
    Here,
    /// What was missing was fetched.
    Fetched,
    /// It was taken in.
    Taken,
    /// It was taken in, and its tag stays where it is, because it was seen there later.
    TagKept,
    /// It is not complete.
    Failed,
}

/// What the work came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub images: u64,
    pub failed: u64,
    /// Objects that are here now and were not before, and their bytes.
    pub objects: u64,
    pub bytes: u64,
    /// Objects that were here already, and their bytes.
    pub here: u64,
    pub here_bytes: u64,
    /// Things of a foreign store or a recording that were left out.
    pub left_out: u64,
}

impl Report {
    /// Did everything come to a good end?
    pub fn is_whole(&self) -> bool {
        self.failed == 0 && self.left_out == 0
    }
}
