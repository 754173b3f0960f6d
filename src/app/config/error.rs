//! What is wrong with a configuration: every mistake at once, each with its place and key.

use std::fmt;
use std::path::PathBuf;

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
    /// What is wrong and what to do. Never holds the value of a secret.
    pub text: String,
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

/// In place of a text that quotes something with an `@`: an address with a password may have been put where none belongs.
const WITHHELD: &str = "is not what is wanted here; it is not shown, because what stands before an @ may be a password";

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.text.contains('@') { WITHHELD } else { &self.text };
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
