//! The name that an operator gives to a set of images.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name of a set, in bytes.
const SET_NAME_BYTES_MAX: usize = 128;

/// Letters, digits, `_`, `.` and `-`, not beginning with a mark: it stands in file names and on command lines.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SetName(Arc<str>);

/// The text is no name of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidSetName;

impl SetName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SetName {
    type Err = InvalidSetName;

    fn from_str(text: &str) -> Result<Self, InvalidSetName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && text.len() <= SET_NAME_BYTES_MAX && text.bytes().all(plain) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSetName)
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InvalidSetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "want at most {SET_NAME_BYTES_MAX} letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
        )
    }
}

impl std::error::Error for InvalidSetName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_a_file_name_and_on_a_command_line() {
        for text in ["ci", "rollout-2026.11_23", "1"] {
            assert_eq!(text.parse::<SetName>().unwrap().as_str(), text);
        }
        let long = "x".repeat(SET_NAME_BYTES_MAX + 1);
        for text in ["", "-x", ".x", "a/b", "a b", "ä", "a\n", &long] {
            assert_eq!(text.parse::<SetName>(), Err(InvalidSetName), "{text:?}");
        }
    }
}
