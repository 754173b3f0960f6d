//! Where a bundle goes: its names, what is in their way, and whether there is room.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use crate::cli::staged::directory_of;
use crate::cli::words::size;

/// The ending of a file that is to be a tar.
const TAR: &str = "tar";
/// A layout has this file (OCI image spec), and nothing else is replaced by one.
const LAYOUT_FILE: &str = "oci-layout";
/// Parts have numbers of this many digits, so that a shell lists them in order.
const PART_DIGITS: usize = 3;
const PARTS_MAX: u64 = 999;
/// Smaller parts are a typing error.
const PART_BYTES_MIN: u64 = 64 * 1024;
/// What a line in the receipt and one in the sums need.
const LINES_BYTES: u64 = 512;

/// Where a bundle goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Stdout,
    Tar { place: Place, split: Option<u64> },
    Folder(Place),
}

/// A directory and a name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) name: String,
}

impl Target {
    /// What the arguments mean; nothing is looked at but whether standard output is a terminal.
    pub(super) fn new(output: &Path, split: Option<u64>) -> Result<Self, String> {
        let shown = output.display();
        if split.is_some_and(|split| split < PART_BYTES_MIN) {
            return Err(format!("--split: want at least {}", size(PART_BYTES_MIN)));
        }
        if output == Path::new("-") {
            if split.is_some() {
                return Err("--split: standard output is one stream; want a file".to_owned());
            }
            if io::stdout().is_terminal() {
                return Err(
                    "a tar is nothing for a terminal; want -o FILE.tar, or a pipe".to_owned()
                );
            }
            return Ok(Self::Stdout);
        }
        let name = output.file_name().and_then(OsStr::to_str);
        // These would need quoting in the file of sums.
        let name = name.filter(|name| !name.contains(['\\', '\n', '\r']));
        let Some(name) = name else {
            return Err(format!("-o {shown}: want a plain name for the file or directory"));
        };
        let place = Place { directory: directory_of(output).to_owned(), name: name.to_owned() };
        if output.extension() == Some(OsStr::new(TAR)) {
            return Ok(Self::Tar { place, split });
        }
        if split.is_some() {
            return Err(format!("--split: {shown} is to be a directory; want -o NAME.tar"));
        }
        Ok(Self::Folder(place))
    }

    /// Looks for what is in the way.
    pub(super) fn look(&self, force: bool) -> Result<(), String> {
        let Some(place) = self.place() else {
            return Ok(());
        };
        let is_tar = matches!(self, Self::Tar { .. });
        let found = place.taken(is_tar).map_err(|error| told(&place.directory, &error))?;
        for path in &found {
            let kind = fs::symlink_metadata(path).map_err(|error| told(path, &error))?;
            let shown = path.display();
            let is_ours = *path == place.path();
            if kind.is_dir() && !(is_ours && matches!(self, Self::Folder(_))) {
                return Err(format!("{shown} is a directory, and it was left alone"));
            }
            if kind.is_dir() && is_mount(path) {
                let name = &place.name;
                return Err(format!(
                    "{shown} is a mount point, in whose place nothing can be put; want a name in it, such as {shown}/{name}.{TAR}"
                ));
            }
            if kind.is_dir() && !is_layout(path) {
                if !is_empty(path).map_err(|error| told(path, &error))? {
                    return Err(format!("{shown} is no OCI layout, and it was left alone"));
                }
                continue;
            }
            if is_ours && !kind.is_dir() && matches!(self, Self::Folder(_)) {
                return Err(format!(
                    "{shown} is no directory, and it was left alone; a tar has a name that ends in .{TAR}"
                ));
            }
            if !force {
                return Err(format!("{shown} is there already; --force replaces it"));
            }
        }
        Ok(())
    }

    /// Is there room for a bundle of `bytes` with this many objects?
    pub(super) fn has_room(&self, bytes: u64, objects: u64) -> Result<(), String> {
        let Some(place) = self.place() else {
            return Ok(());
        };
        if let Self::Tar { split: Some(split), .. } = self
            && bytes.div_ceil(*split) > PARTS_MAX
        {
            return Err(format!(
                "--split: {} would be more than {PARTS_MAX} parts of {}; want larger ones",
                size(bytes),
                size(*split)
            ));
        }
        let directory = &place.directory;
        let system =
            rustix::fs::statvfs(directory).map_err(|errno| told(directory, &errno.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        let block = if matches!(self, Self::Folder(_)) { system.f_frsize } else { 0 };
        let lists = objects.saturating_mul(LINES_BYTES.saturating_add(block));
        let wanted = bytes.saturating_add(lists);
        if wanted > free {
            return Err(format!(
                "{} has {} free, and {} are wanted; nothing was written",
                directory.display(),
                size(free),
                size(wanted)
            ));
        }
        Ok(())
    }

    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Stdout => None,
            Self::Tar { place, .. } | Self::Folder(place) => Some(place),
        }
    }
}

impl Place {
    pub(super) fn path(&self) -> PathBuf {
        self.at(&self.name)
    }

    /// Another name in the same directory, as people type it.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        if self.directory == Path::new(".") { name.into() } else { self.directory.join(name) }
    }

    /// The same with something behind the name.
    pub(super) fn beside(&self, ending: &str) -> PathBuf {
        self.at(&format!("{}.{ending}", self.name))
    }

    /// The file for a part; the first is 1.
    pub(super) fn part(&self, number: usize) -> String {
        format!("{}.{number:0PART_DIGITS$}", self.name)
    }

    /// What an earlier export of this name left, or something else that is in the way: the bundle, its sums, its receipt, and the parts
    /// of a tar.
    pub(super) fn taken(&self, is_tar: bool) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let rest = name.strip_prefix(&self.name);
            let is_part = |rest: &str| {
                let digits = rest.strip_prefix('.').unwrap_or_default();
                is_tar
                    && digits.len() == PART_DIGITS
                    && digits.bytes().all(|byte| byte.is_ascii_digit())
            };
            if rest.is_some_and(|rest| matches!(rest, "" | ".sha256" | ".receipt") || is_part(rest))
            {
                found.push(self.at(name));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Is another file system mounted there, or a directory once more? A system that does not tell says no.
fn is_mount(path: &Path) -> bool {
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Is a directory an image layout?
pub(super) fn is_layout(path: &Path) -> bool {
    path.join(LAYOUT_FILE).is_file()
}

pub(super) fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// What went wrong where.
pub(super) fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_what_it_becomes() {
        let place = |directory: &str, name: &str| Place {
            directory: directory.into(),
            name: name.to_owned(),
        };
        for (text, split, wanted) in [
            ("a.tar", None, Target::Tar { place: place(".", "a.tar"), split: None }),
            (
                "/x/a.tar",
                Some(1 << 20),
                Target::Tar { place: place("/x", "a.tar"), split: Some(1 << 20) },
            ),
            ("x/a.tar.gz", None, Target::Folder(place("x", "a.tar.gz"))),
            ("layout/", None, Target::Folder(place(".", "layout"))),
            ("-x", None, Target::Folder(place(".", "-x"))),
        ] {
            assert_eq!(Target::new(Path::new(text), split), Ok(wanted), "{text}");
        }
        for (text, split) in [
            ("..", None),
            ("/", None),
            ("a\nb", None),
            ("dir", Some(1 << 20)),
            ("-", Some(1 << 20)),
            ("a.tar", Some(1)),
        ] {
            assert!(Target::new(Path::new(text), split).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_there_stays_unless_it_may_go() {
        let home = tempfile::TempDir::new().unwrap();
        let at = |name: &str| Target::new(&home.path().join(name), None).unwrap();
        let tar = at("a.tar");
        assert_eq!(tar.look(false), Ok(()));
        for name in ["a.tar", "a.tar.001", "a.tar.sha256", "a.tar.receipt"] {
            fs::write(home.path().join(name), "old").unwrap();
            assert!(tar.look(false).unwrap_err().contains(name), "{name}");
            assert_eq!(tar.look(true), Ok(()), "{name}");
            fs::remove_file(home.path().join(name)).unwrap();
        }
        for name in ["a.tar.1", "a.tar.old", "ba.tar", "a.tar.0001"] {
            fs::write(home.path().join(name), "another's").unwrap();
            assert_eq!(tar.look(false), Ok(()), "{name}");
        }
        fs::create_dir(home.path().join("b.tar")).unwrap();
        assert!(at("b.tar").look(true).unwrap_err().contains("directory"));

        let folder = at("layout");
        fs::create_dir(home.path().join("layout")).unwrap();
        assert_eq!(folder.look(false), Ok(()), "an empty directory is in nobody's way");
        fs::write(home.path().join("layout/diary"), "dear diary").unwrap();
        assert!(folder.look(true).unwrap_err().contains("no OCI layout"));
        fs::write(home.path().join("layout/oci-layout"), "{}").unwrap();
        assert!(folder.look(false).unwrap_err().contains("--force"));
        assert_eq!(folder.look(true), Ok(()));
        fs::remove_file(home.path().join("layout/oci-layout")).unwrap();
        fs::remove_file(home.path().join("layout/diary")).unwrap();
        fs::write(home.path().join("layout.001"), "another's").unwrap();
        assert_eq!(folder.look(false), Ok(()), "a directory has no parts");
        fs::write(home.path().join("file"), "").unwrap();
        assert!(at("file").look(true).unwrap_err().contains("no directory"));
        assert!(at("absent/a.tar").look(true).unwrap_err().contains("absent"));
    }

    #[test]
    fn room_and_the_number_of_parts_have_limits() {
        let home = tempfile::TempDir::new().unwrap();
        let path = home.path().join("a.tar");
        let tar = Target::new(&path, None).unwrap();
        assert_eq!(tar.has_room(1024, 1), Ok(()));
        assert!(tar.has_room(1 << 60, 1).unwrap_err().contains("free"));
        assert!(tar.has_room(0, 1 << 55).is_err() && tar.has_room(u64::MAX, u64::MAX).is_err());
        let parts = Target::new(&path, Some(1 << 20)).unwrap();
        assert!(parts.has_room(1000 << 20, 1).unwrap_err().contains("parts"));
        assert_eq!(Target::Stdout.has_room(u64::MAX, u64::MAX), Ok(()));
    }
}
