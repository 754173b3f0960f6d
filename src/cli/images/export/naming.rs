//! The last step of an export to files: everything is written and on the disk, and gets its names.
//!
//! What must hold: either all files of the bundle have their names, or none has; what had these names before is gone in the first case and
//! back in the second. The sums come last and go first, so whoever finds them finds all parts. A kill in between leaves parts without
//! sums, and what was there before beside them under hidden names. Nothing is replaced unless the order says so, whenever it came; it
//! deliberately replaces no directory but a layout that is replaced as a whole, or an empty one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::command::complain;
use crate::cli::staged::staged_path;
use crate::cli::words::clean;

use super::target::{Place, is_empty, is_layout};

/// Names that are being given. Dropped before [`Naming::settle`] has said that all is well, it takes back what it did.
#[derive(Debug)]
pub(super) struct Naming<'a> {
    place: &'a Place,
    given: Vec<PathBuf>,
    /// What was there before: under which name it is now, and which it had.
    aside: Vec<(PathBuf, PathBuf)>,
}

impl<'a> Naming<'a> {
    /// Puts aside what an earlier export left under the names of a tar, or of a layout; without `force` there is nothing to put aside but an
    /// empty directory.
    pub(super) fn new(place: &'a Place, is_tar: bool, force: bool) -> io::Result<Self> {
        let mut naming = Self { place, given: Vec::new(), aside: Vec::new() };
        // The sums have the last of the names.
        for path in place.taken(is_tar)?.into_iter().rev() {
            let kind = fs::symlink_metadata(&path).map_err(|error| at(&path, &error))?;
            // Whatever else is there is somebody's, and in the way of the name.
            let may_go = match kind.is_dir() {
                true if is_tar || path != place.path() => false,
                true => is_empty(&path)? || (force && is_layout(&path)),
                false => force,
            };
            if !may_go {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let hidden = staged_path(&place.directory, &name);
            fs::rename(&path, &hidden).map_err(|error| at(&path, &error))?;
            naming.aside.push((hidden, path));
        }
        Ok(naming)
    }

    /// Gives a file or a directory its name, which nothing may have now.
    pub(super) fn give(&mut self, from: &Path, name: &str) -> io::Result<()> {
        let path = self.place.at(name);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(at(&path, &io::Error::other("it came meanwhile, and was left alone")));
        }
        fs::rename(from, &path).map_err(|error| at(&path, &error))?;
        self.given.push(path);
        Ok(())
    }

    /// All names so far are on the disk before anything else is.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.place.directory)?.sync_all()
    }

    /// All names are given; what was there before goes.
    pub(super) fn settle(mut self) -> io::Result<()> {
        self.sync()?;
        self.given.clear();
        for (hidden, _path) in std::mem::take(&mut self.aside) {
            if let Err(error) = remove(&hidden) {
                left_over(&hidden, &format!("of an earlier export, cannot be removed ({error})"));
            }
        }
        Ok(())
    }
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        for path in self.given.drain(..).rev() {
            if let Err(error) = remove(&path) {
                left_over(
                    &path,
                    &format!("of a bundle that is not whole, cannot be removed ({error})"),
                );
            }
        }
        for (hidden, path) in self.aside.drain(..).rev() {
            if let Err(error) = fs::rename(&hidden, &path) {
                let path = path.display();
                left_over(&hidden, &format!("was {path} and could not be put back ({error})"));
            }
        }
    }
}

/// Nobody else tells who gave the order: what is logged in a command goes nowhere.
fn left_over(path: &Path, what: &str) {
    complain(&clean(&format!("left over: {}, {what}", path.display())));
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
