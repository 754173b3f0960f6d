//! A list of images as people write it: one per line, `#` begins a comment, or a lockfile.
//!
//! Nothing here knows a registry: a name is only looked at for what no name has. What it means is found out by the desk.

use std::fmt;

use super::settings::IMAGES_MAX;
use crate::oci::{LOCKFILE_BYTES_MAX, Lockfile};
use crate::registry::desk::IMAGE_BYTES_MAX;

/// The first word of a lockfile, which no image is named.
const LOCKFILE: &str = "roadstead-lock";

/// Images in the order of their lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageList {
    /// As they were typed, with the number of the line (the first is 1).
    pub lines: Vec<(usize, String)>,
}

/// Why a text is no list, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidList {
    pub line: usize,
    pub reason: String,
}

impl ImageList {
    /// Reads a list or a lockfile; of a lockfile each image is meant by its digest, under its tag. A list of nothing is a list.
    ///
    /// # Errors
    ///
    /// A line is no name, there are more than [`IMAGES_MAX`] of them, or the text is longer than [`LOCKFILE_BYTES_MAX`].
    pub fn read(text: &str) -> Result<Self, InvalidList> {
        if text.len() > LOCKFILE_BYTES_MAX {
            let reason = format!("the list is longer than {LOCKFILE_BYTES_MAX} bytes");
            return Err(InvalidList { line: 1, reason });
        }
        // Some editors put a byte order mark in front.
        let plain = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = plain.lines().enumerate().map(|(index, line)| (index + 1, words(line)));
        let mut lines = lines.filter(|(_, words)| !words.is_empty()).peekable();
        if lines.peek().is_some_and(|(_, words)| words[0] == LOCKFILE) {
            text.parse::<Lockfile>()
                .map_err(|invalid| InvalidList { line: invalid.line, reason: invalid.reason })?;
            // Every other line was found to have a name and a digest.
            let locked = lines.skip(1).filter_map(|(line, words)| {
                let [name, digest, ..] = words[..] else { return None };
                Some((line, format!("{name}@{digest}")))
            });
            return Ok(Self { lines: locked.collect() });
        }
        let mut list = Self::default();
        for (line, words) in lines {
            let name = one(&words).map_err(|reason| InvalidList { line, reason })?;
            if list.lines.len() >= IMAGES_MAX {
                let reason = format!("a list holds at most {IMAGES_MAX} images");
                return Err(InvalidList { line, reason });
            }
            list.lines.push((line, name.to_owned()));
        }
        Ok(list)
    }

    /// Images that were typed one by one rather than written in a list; their numbers are their places.
    pub fn of(images: impl IntoIterator<Item = String>) -> Self {
        Self { lines: images.into_iter().enumerate().map(|(at, name)| (at + 1, name)).collect() }
    }

    /// The names, without the numbers of their lines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|(_, name)| name.as_str())
    }
}

/// The words of a line before a comment.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().take_while(|word| !word.starts_with('#')).collect()
}

/// The only word of a line, if it may be a name.
fn one<'a>(words: &[&'a str]) -> Result<&'a str, String> {
    let [name] = words else {
        return Err(format!(
            "want one image, such as nginx:1.27, and nothing behind it but a comment (#); found {} words",
            words.len()
        ));
    };
    if name.len() > IMAGE_BYTES_MAX {
        return Err(format!("the name is longer than {IMAGE_BYTES_MAX} bytes"));
    }
    match name
        .chars()
        .find(|found| !found.is_ascii_graphic() || r#""'`,;|<>\()[]{}"#.contains(*found))
    {
        Some(found) => Err(format!("{name:?} is no image: no name has {found:?} in it")),
        None => Ok(name),
    }
}

impl fmt::Display for InvalidList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for InvalidList {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Digest;

    fn read(text: &str) -> Vec<(usize, String)> {
        ImageList::read(text).unwrap().lines
    }

    #[test]
    fn people_write_one_image_in_a_line() {
        let text =
            "\u{feff}# base\r\n\r\nnginx:1.27  # the proxy\r\n\tghcr.io/org/app@sha256:ab\n[::1]#x";
        let wrong = ImageList::read(text).unwrap_err();
        assert_eq!(wrong.line, 5, "{wrong}");
        let text = text.replace("[::1]#x", "a/b");
        let wanted = [(3, "nginx:1.27"), (4, "ghcr.io/org/app@sha256:ab"), (5, "a/b")];
        assert_eq!(read(&text), wanted.map(|(line, name)| (line, name.to_owned())));
        assert_eq!(read("# nothing\n"), []);
    }

    #[test]
    fn a_lockfile_means_its_digests() {
        let digest = Digest::sha256_of(b"x");
        let text = format!(
            "# ours\nroadstead-lock 1\n\nghcr.io/a/b:v2 {digest} 2026-11-01T12:00:00Z # kept\nghcr.io/a/a {digest} 2026-11-01T12:00:00Z\n"
        );
        let wanted =
            [(4, format!("ghcr.io/a/b:v2@{digest}")), (5, format!("ghcr.io/a/a@{digest}"))];
        assert_eq!(read(&text), wanted);
        for (wrong, line) in [
            (text.replace("roadstead-lock 1", "roadstead-lock 9"), 2),
            (text.replace("ghcr.io/a/a ", ""), 5),
        ] {
            assert_eq!(ImageList::read(&wrong).unwrap_err().line, line, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let long = "x".repeat(IMAGE_BYTES_MAX + 1);
        for (text, said) in [
            ("nginx 1.27", "found 2 words"),
            ("\"nginx\"", "has '\"' in it"),
            ("nginx,redis", "has ',' in it"),
            ("nginx:ä", "has 'ä' in it"),
            ("ng\u{0}inx", "in it"),
            (&*long, "longer"),
        ] {
            let wrong = ImageList::read(&format!("redis\n\n{text}\n")).unwrap_err();
            assert!(wrong.line == 3 && wrong.reason.contains(said), "{wrong}");
            assert!(wrong.to_string().starts_with("line 3: "));
        }
        let many = "a\n".repeat(IMAGES_MAX + 1);
        assert_eq!(ImageList::read(&many).unwrap_err().line, IMAGES_MAX + 1);
        assert_eq!(read(&many[2..]).len(), IMAGES_MAX);
        let long = format!("#{}", "x".repeat(LOCKFILE_BYTES_MAX));
        assert!(ImageList::read(&long).unwrap_err().reason.contains("longer"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "(roadstead-lock 1\n)?[a-z0-9:/@. \t\r\n#-]{0,200}") {
            if let Ok(list) = ImageList::read(&text) {
                let lines = text.lines().count();
                prop_assert!(list.lines.iter().all(|(line, name)| *line <= lines && !name.is_empty()));
            }
        }
    }
}
