//! A lockfile: which digest each image had, and when, as lines that diff well and that people can edit.
//!
//! ```text
//! roadstead-lock 1
//! docker.io/library/nginx:1.27 sha256:<64 hex digits> 2026-11-01T12:00:00Z
//! ```
//!
//! The first line names the format and its version. Each other line is one image in full (registry, repository, tag), the digest that it
//! had, and when; single spaces, sorted by image, so that a change is the lines that changed. An image that was locked by its digest has
//! no tag. Reading takes any white space between the fields, empty lines, and comments from a `#` that begins a line or follows a space;
//! what it cannot read it refuses with the number of the line. Comments are not kept. Nothing here touches a file.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{Digest, InvalidName, RegistryName, RepositoryName, Tag};
use crate::clock::Timestamp;

/// First word of the first line.
const MAGIC: &str = "roadstead-lock";
/// The version that is written, and the only one that is read.
const VERSION: &str = "1";
/// The longest text: room for every image at its usual length.
pub const LOCKFILE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The most images.
pub const LOCKFILE_IMAGES_MAX: usize = 100_000;

/// An image in full: `docker.io/library/nginx:1.27`, or without a tag if it is known by its digest alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedName {
    pub upstream: RegistryName,
    pub repository: RepositoryName,
    pub tag: Option<Tag>,
}

/// An image and what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedImage {
    pub name: LockedName,
    pub digest: Digest,
    /// When the tag was known to point at the digest.
    pub at: Timestamp,
}

/// Images with one revision each, sorted by name; those without a tag may have several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lockfile {
    images: BTreeMap<Key, LockedImage>,
}

/// One line per tag, and one per digest that has none.
type Key = (LockedName, Option<String>);

/// Why a text is no lockfile, and in which line (the first is 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLockfile {
    pub line: usize,
    pub reason: String,
}

/// No lockfile holds more than [`LOCKFILE_IMAGES_MAX`] images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockfileFull;

impl Lockfile {
    /// Adds an image. One with the same name and a tag is replaced, and handed out.
    ///
    /// # Errors
    ///
    /// There are [`LOCKFILE_IMAGES_MAX`] others already.
    pub fn insert(&mut self, image: LockedImage) -> Result<Option<LockedImage>, LockfileFull> {
        let digest = image.name.tag.is_none().then(|| image.digest.to_string());
        let key = (image.name.clone(), digest);
        if self.images.len() >= LOCKFILE_IMAGES_MAX && !self.images.contains_key(&key) {
            return Err(LockfileFull);
        }
        Ok(self.images.insert(key, image))
    }

    /// The images, sorted by name.
    pub fn images(&self) -> impl Iterator<Item = &LockedImage> {
        self.images.values()
    }

    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }
}

impl FromStr for LockedName {
    type Err = String;

    /// Reads a name in full; nothing is added to a short one, because that needs a configuration.
    fn from_str(text: &str) -> Result<Self, String> {
        let told = |error: InvalidName| format!("{text:?}: {error}");
        let (upstream, rest) = text.split_once('/').ok_or_else(|| {
            format!("{text:?} has no registry; want a name in full, docker.io/library/nginx:1.27")
        })?;
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse().map_err(told)?)),
            None => (rest, None),
        };
        Ok(Self {
            upstream: upstream.parse().map_err(told)?,
            repository: repository.parse().map_err(told)?,
            tag,
        })
    }
}

impl fmt::Display for LockedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{}", tag.as_str()))
    }
}

impl fmt::Display for LockedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.digest, self.at)
    }
}

impl fmt::Display for Lockfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC} {VERSION}")?;
        self.images().try_for_each(|image| writeln!(f, "{image}"))
    }
}

impl FromStr for Lockfile {
    type Err = InvalidLockfile;

    fn from_str(text: &str) -> Result<Self, InvalidLockfile> {
        if text.len() > LOCKFILE_BYTES_MAX {
            let reason = format!("the file is longer than {LOCKFILE_BYTES_MAX} bytes");
            return Err(InvalidLockfile { line: 1, reason });
        }
        // Some editors put a byte order mark in front.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, fields(line)));
        let found = lines.find(|(_, fields)| !fields.is_empty());
        match found.as_ref().map(|(line, fields)| (*line, &fields[..])) {
            Some((_, [MAGIC, VERSION])) => {}
            Some((line, [MAGIC, version])) => {
                let reason = format!(
                    "version {version:?} of the format is not known; this program reads {VERSION}"
                );
                return Err(InvalidLockfile { line, reason });
            }
            other => {
                let line = other.map_or(1, |(line, _)| line);
                let reason = format!("no lockfile begins so; want \"{MAGIC} {VERSION}\"");
                return Err(InvalidLockfile { line, reason });
            }
        }
        let mut lockfile = Self::default();
        let mut seen = BTreeMap::new();
        for (line, fields) in lines.filter(|(_, fields)| !fields.is_empty()) {
            let wrong = |reason: String| InvalidLockfile { line, reason };
            let image = image(&fields).map_err(wrong)?;
            let name = image.name.clone();
            match lockfile.insert(image) {
                Ok(None) => {
                    seen.insert(name, line);
                }
                Ok(Some(_)) => {
                    let first = seen.get(&name).copied().unwrap_or_default();
                    return Err(wrong(format!("{name} is in line {first} already")));
                }
                Err(full) => return Err(wrong(full.to_string())),
            }
        }
        Ok(lockfile)
    }
}

/// The words of a line before a comment.
fn fields(line: &str) -> Vec<&str> {
    line.split_whitespace().take_while(|word| !word.starts_with('#')).collect()
}

fn image(fields: &[&str]) -> Result<LockedImage, String> {
    let [name, digest, at] = fields else {
        let count = fields.len();
        return Err(format!("want three words, NAME DIGEST TIME; found {count}"));
    };
    Ok(LockedImage {
        name: name.parse()?,
        digest: digest.parse().map_err(|error| format!("{digest:?}: {error}"))?,
        at: at.parse().map_err(|error| format!("{at:?} is no time; {error}"))?,
    })
}

impl fmt::Display for InvalidLockfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for InvalidLockfile {}

impl fmt::Display for LockfileFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a lockfile holds at most {LOCKFILE_IMAGES_MAX} images")
    }
}

impl std::error::Error for LockfileFull {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(name: &str, seed: &str) -> String {
        format!("{name} {} 2026-11-01T12:00:00Z", Digest::sha256_of(seed.as_bytes()))
    }

    #[test]
    fn it_is_written_sorted_and_read_back() {
        let mut lockfile = Lockfile::default();
        for (name, seed) in
            [("ghcr.io/a/b:v2", "x"), ("docker.io/library/nginx:1.27", "y"), ("ghcr.io/a/b", "z")]
        {
            let image = LockedImage {
                name: name.parse().unwrap(),
                digest: Digest::sha256_of(seed.as_bytes()),
                at: Timestamp::from_millis(1_793_534_400_000),
            };
            assert_eq!(lockfile.insert(image), Ok(None));
        }
        let text = lockfile.to_string();
        let wanted = [
            "roadstead-lock 1".to_owned(),
            line("docker.io/library/nginx:1.27", "y"),
            line("ghcr.io/a/b", "z"),
            line("ghcr.io/a/b:v2", "x"),
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
        assert_eq!(text.parse(), Ok(lockfile));
    }

    #[test]
    fn people_may_edit_it() {
        let edited = format!(
            "\u{feff}# by hand\r\n\r\n  roadstead-lock   1  # the format\r\n{}\t# keep\r\n\r\n# old\r\n{}\r\n{}",
            line("ghcr.io/a/b:v1", "x").replace(' ', "   "),
            line("ghcr.io/a/b", "x"),
            line("ghcr.io/a/b", "y"),
        );
        let lockfile: Lockfile = edited.parse().unwrap();
        assert_eq!(lockfile.images().count(), 3, "revisions without a tag stand side by side");
        assert!(lockfile.images().any(|image| image.name.to_string() == "ghcr.io/a/b:v1"));
        assert!("roadstead-lock 1".parse::<Lockfile>().unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let good = line("ghcr.io/a/b:v1", "x");
        let digest = Digest::sha256_of(b"x");
        for (text, at, said) in [
            (String::new(), 1, "roadstead-lock 1"),
            ("\n\nhello world\n".to_owned(), 3, "roadstead-lock 1"),
            ("roadstead-lock\n".to_owned(), 1, "roadstead-lock 1"),
            ("roadstead-lock 2\n".to_owned(), 1, "version \"2\""),
            (format!("{good}\n"), 1, "roadstead-lock 1"),
            (format!("roadstead-lock 1\n{good}\n\n{good}\n"), 4, "in line 2 already"),
            ("roadstead-lock 1\nghcr.io/a/b:v1\n".to_owned(), 2, "found 1"),
            (format!("roadstead-lock 1\n{good} more\n"), 2, "found 4"),
            (format!("roadstead-lock 1\nnginx:1 {digest} 2026-11-01\n"), 2, "no registry"),
            (format!("roadstead-lock 1\n-/a:1 {digest} 2026-11-01\n"), 2, "not a registry name"),
            (format!("roadstead-lock 1\na.b/A:1 {digest} 2026-11-01\n"), 2, "not a repository"),
            (format!("roadstead-lock 1\na.b/c:-1 {digest} 2026-11-01\n"), 2, "not a tag"),
            (format!("roadstead-lock 1\na.b/c: {digest} 2026-11-01\n"), 2, "not a tag"),
            ("roadstead-lock 1\na.b/c:1 sha256:ab 2026-11-01\n".to_owned(), 2, "sha256:ab"),
            (format!("roadstead-lock 1\na.b/c:1 {digest} yesterday\n"), 2, "no time"),
            (format!("roadstead-lock 1\na.b/c@{digest} {digest} 2026-11-01\n"), 2, "repository"),
        ] {
            let error = text.parse::<Lockfile>().unwrap_err();
            assert_eq!(error.line, at, "{text}: {error}");
            assert!(error.reason.contains(said), "{text}: {error}");
            assert!(error.to_string().starts_with(&format!("line {at}: ")), "{error}");
        }
    }

    #[test]
    fn it_has_a_limit() {
        let long = format!("roadstead-lock 1\n#{}", "x".repeat(LOCKFILE_BYTES_MAX));
        assert!(long.parse::<Lockfile>().unwrap_err().reason.contains("longer"));
        let mut full = Lockfile::default();
        let image = |number: usize| LockedImage {
            name: format!("a.b/c:{number}").parse().unwrap(),
            digest: Digest::sha256_of(b"x"),
            at: Timestamp::default(),
        };
        for number in 0..LOCKFILE_IMAGES_MAX {
            assert_eq!(full.insert(image(number)), Ok(None));
        }
        assert_eq!(full.insert(image(LOCKFILE_IMAGES_MAX)), Err(LockfileFull));
        assert!(full.insert(image(7)).unwrap().is_some(), "one that is there may change");
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "(roadstead-lock 1\n)?[a-z0-9:/@. \t\r\n#-]{0,200}") {
            if let Ok(lockfile) = text.parse::<Lockfile>() {
                prop_assert_eq!(lockfile.to_string().parse::<Lockfile>(), Ok(lockfile));
            }
        }
    }
}
