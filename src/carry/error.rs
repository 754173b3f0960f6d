//! Why this room refuses; the desk's words, so that programs read one vocabulary.

pub(super) use crate::registry::desk::{Error, Reason};
