//! Why the desk refuses: a stable word for programs, a sentence for people that says what to do, and what stands in the way.

use std::fmt;

use super::model::Hold;
use crate::metadata;

/// A refusal; nothing was changed, unless the message says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub reason: Reason,
    /// For people; it repeats what they typed and says what is wanted instead.
    pub message: String,
    /// What keeps the thing that was to go.
    pub holds: Vec<Hold>,
}

/// The word for programs; it never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The text names no image.
    Image,
    /// The text is no scope of a rule.
    Scope,
    Digest,
    /// A time, a duration or another text is out of bounds.
    Value,
    UnknownRegistry,
    UnknownImage,
    /// The tag is known and upstream no longer has it.
    Absent,
    UnknownDigest,
    UnknownRule,
    /// Something keeps it.
    Held,
    /// Upstream may not be asked.
    Offline,
    TooManyRules,
    /// Some of what an image needs is not here.
    Incomplete,
    /// A bundle or a folder is damaged, or is none.
    Bundle,
    /// A text of several lines has a mistake; the message names the line.
    List,
    /// There is no set of that name, or none that fits: it is no recording, or has no images.
    Set,
    /// There is a set of that name already.
    SetExists,
    /// Of sets.
    TooManySets,
    /// The disk has no room for it.
    Room,
    /// Work of this kind runs already.
    Busy,
    /// The rows cannot be read or written.
    Store,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Scope => "scope",
            Self::Digest => "digest",
            Self::Value => "value",
            Self::UnknownRegistry => "unknown_registry",
            Self::UnknownImage => "unknown_image",
            Self::Absent => "absent",
            Self::UnknownDigest => "unknown_digest",
            Self::UnknownRule => "unknown_rule",
            Self::Held => "held",
            Self::Offline => "offline",
            Self::TooManyRules => "too_many_rules",
            Self::Incomplete => "incomplete",
            Self::Bundle => "bundle",
            Self::List => "list",
            Self::Set => "set",
            Self::SetExists => "set_exists",
            Self::TooManySets => "too_many_sets",
            Self::Room => "room",
            Self::Busy => "busy",
            Self::Store => "store",
        }
    }
}

impl Error {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), holds: Vec::new() }
    }
}

impl From<metadata::Error> for Error {
    fn from(error: metadata::Error) -> Self {
        tracing::warn!(?error, "the rows cannot be used for the admin API");
        Self::new(Reason::Store, "the metadata cannot be read or written now; the log says why")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
