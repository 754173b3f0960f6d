//! What is wrong with a configuration: every mistake at once, each with its place and key.

use std::fmt;
use std::path::PathBuf;

use crate::upstream;

/// Where a value was written. The order is that of the report.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the configuration file, counted from one; zero is the file as a whole.
    File { path: PathBuf, line: usize },
    /// A variable of the environment.
    Environment(String),
    /// An argument of the command line.
    Argument(&'static str),
    /// Nobody wrote it: a built-in default, or the whole.
    BuiltIn,
}

/// One mistake, or one thing worth a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    pub place: Place,
    /// The key as it is written in the file, such as `upstream."ghcr.io".url`; empty if no key is meant.
    pub key: String,
    text: String,
}

/// All mistakes of a configuration, in the order of their places. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Mistake>);

impl ConfigErrors {
    /// The mistakes in the order of their places, each once; `None` if there are none.
    pub(crate) fn of(mut mistakes: Vec<Mistake>) -> Option<Self> {
        mistakes.sort();
        mistakes.dedup();
        (!mistakes.is_empty()).then_some(Self(mistakes))
    }

    /// The mistakes, at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Argument(name) => write!(f, "argument {name}"),
            Self::BuiltIn => f.write_str("configuration"),
        }
    }
}

/// In place of a text that quotes what may be an address with a password, put where none belongs.
const WITHHELD: &str =
    "is not what is wanted here; it is not shown, because it may hold a password";
/// What may follow an address in a sentence.
const SENTENCE_MARKS: [char; 6] = [',', ';', '.', ':', ')', '`'];
/// In place of a name that may be one.
const NAME_WITHHELD: &str = "\"...\"";

impl Mistake {
    /// What quotes a text that may hold a password, in the sense of [`upstream::may_hold_password`], is told without it.
    pub(crate) fn new(place: Place, key: impl Into<String>, text: impl Into<String>) -> Self {
        let (mut key, mut text) = (key.into(), text.into());
        if quotes_password(&text) {
            WITHHELD.clone_into(&mut text);
        }
        if quotes_password(&key) {
            let table = key.split(['"', '.']).next().unwrap_or_default();
            key = format!("{table}.{NAME_WITHHELD}");
        }
        Self { place, key, text }
    }

    /// The same with a word on what is wanted there, which holds also of what is told without its text.
    pub(super) fn explained(self, doc: &'static str) -> Self {
        Self { text: format!("{} ({doc})", self.text), ..self }
    }

    /// What is wrong and what to do. Never holds the value of a secret.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Is there a word in the text, or something in quotes, that may hold a password?
pub(super) fn quotes_password(text: &str) -> bool {
    let mut word = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for found in text.chars() {
        let ends = match found {
            _ if escaped => false,
            '"' => true,
            _ => found.is_whitespace() && !quoted,
        };
        if ends {
            let whole = if quoted { &word } else { word.trim_end_matches(SENTENCE_MARKS) };
            if upstream::may_hold_password(whole) {
                return true;
            }
            word.clear();
        } else {
            word.push(found);
        }
        quoted ^= found == '"' && !escaped;
        // As `{:?}` writes a text; in the words of a sentence there are none.
        escaped = found == '\\' && quoted && !escaped;
    }
    upstream::may_hold_password(word.trim_end_matches(SENTENCE_MARKS))
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        if self.key.is_empty() {
            write!(f, "{}: {text}", self.place)
        } else {
            write!(f, "{}: {}: {text}", self.place, self.key)
        }
    }
}

impl fmt::Display for ConfigErrors {
    /// One mistake per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        Mistake::new(Place::BuiltIn, "", text).to_string()
    }

    #[test]
    fn what_may_hold_a_password_is_not_quoted() {
        for value in [
            "http://me:secretproxy:3128",
            "http://me:sec ret proxy:3128",
            "http://me:se\"cret:3128",
            "http://me:se/cret:3128",
            "http://me:secret@proxy:3128",
            "me:secretproxy:3128",
        ] {
            let quoted = told(&format!("{value:?} is no address; want one such as \"http://a:1\""));
            assert!(quoted.contains("not shown") && !quoted.contains("cret"), "{quoted}");
            let mistake = Mistake::new(Place::BuiltIn, format!("upstream.{value:?}.url"), "is it");
            let shown = format!("{mistake} {mistake:?}");
            assert!(shown.contains("upstream.\"...\"") && !shown.contains("cret"), "{shown}");
        }
        let word = told("http://me:secret:3128 is this roadstead itself");
        assert!(!word.contains("secret"), "{word}");
    }

    #[test]
    fn what_is_no_address_is_quoted() {
        for text in [
            "\"http://localhost:99999\" is no address of a server; want one such as \"http://proxy:3128\"",
            "\"::1:5000\" is no address; want ADDRESS:PORT such as \"127.0.0.1:5000\" or \"[::1]:5000\"",
            "http://localhost:5000, or (http://other:5000), is this roadstead, which listens on 0.0.0.0:5000",
        ] {
            assert!(told(text).ends_with(text), "{}", told(text));
        }
    }
}
