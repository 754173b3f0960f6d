//! Files that get their final name only when they are whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Puts `text` in the place of the file, so that a reader finds the old one or the new one.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    match fs::metadata(path) {
        // A pipe or a terminal has no other name to be prepared under.
        Ok(metadata) if !metadata.is_file() => {
            return OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
        }
        Ok(_) | Err(_) => {}
    }
    // The file that a link names is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_absent| path.to_owned());
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let directory = directory_of(&path);
    let staged = Staged::new(directory, &name)?;
    (&staged.file).write_all(text.as_bytes())?;
    if let Ok(metadata) = fs::metadata(&path) {
        staged.file.set_permissions(metadata.permissions())?;
    }
    staged.file.sync_all()?;
    staged.become_file(&path)?;
    File::open(directory)?.sync_all()
}

/// Where a file lies, or will.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    }
}

/// A name that nobody else has, beside the one that a file or directory gets when it is whole.
pub(super) fn staged_path(directory: &Path, name: &str) -> PathBuf {
    // Not the number of the process: in a container that is 1 each time, so what a kill left over would be in the way for ever.
    directory.join(format!(".{name}.{:016x}", rand::random::<u64>()))
}

/// A file that is removed unless it got its final name.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) file: File,
    path: PathBuf,
}

impl Staged {
    /// Makes it beside the file that it becomes.
    pub(super) fn new(directory: &Path, name: &str) -> io::Result<Self> {
        let path = staged_path(directory, name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    /// Where it is until then.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, in place of what had it.
    pub(super) fn become_file(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After the rename there is nothing under this name.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "a staged file was left over");
        }
    }
}
