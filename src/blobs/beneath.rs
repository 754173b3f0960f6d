//! A tree that somebody else wrote: no name in it leads out of it.
//!
//! What must hold: below the root no symbolic link is followed, wherever it leads; nothing but a regular file is opened, so that neither
//! a pipe nor a device can hold the reader or be touched by him. Each component is opened from the one before, so that a tree that is
//! changed meanwhile leads nowhere else.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, linkat, open, openat, statat};
use rustix::io::Errno;

use super::disk::Entries;

/// Opens a regular file for reading.
pub(super) fn open_file(root: &Path, path: &Path) -> io::Result<File> {
    let (directory, name) = last(root, path)?;
    match kind(&statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?) {
        FileType::RegularFile => {}
        other => return Err(strange(other)),
    }
    // What was a file a moment ago may be a pipe now.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(openat(&directory, name, flags | OFlags::NOCTTY, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(strange(FileType::Unknown)) }
}

/// The names in a directory, one by one.
pub(super) fn entries(root: &Path, path: &Path) -> io::Result<Entries> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match last(root, path) {
        Ok((parent, name)) => directory(&parent, name, flags)?,
        Err(_root) if path.components().next().is_none() => open(root, flags, Mode::empty())?,
        Err(error) => return Err(error),
    };
    let names = Dir::read_from(opened)?.filter_map(|entry| match entry {
        Ok(entry) => {
            let name = entry.file_name().to_bytes();
            let own = name == b"." || name == b"..";
            (!own).then(|| Ok(OsString::from_vec(name.to_vec())))
        }
        Err(errno) => Some(Err(errno.into())),
    });
    Ok(Box::new(names))
}

/// Gives a file of the tree the name `to` as well.
pub(super) fn link(root: &Path, path: &Path, to: &Path) -> io::Result<()> {
    let (directory, name) = last(root, path)?;
    // Without a flag the last component is not followed either (linkat(2)).
    Ok(linkat(&directory, name, CWD, to, AtFlags::empty())?)
}

/// The directory of the last component, and that component.
fn last<'a>(root: &Path, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = open(root, flags, Mode::empty())?;
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            break;
        };
        if components.peek().is_none() {
            return Ok((at, name));
        }
        at = directory(&at, name, flags)?;
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leads out of the folder"))
}

fn directory(parent: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    match openat(parent, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
        // Of a link the kernel says only that it is no directory.
        Err(errno @ (Errno::NOTDIR | Errno::LOOP)) => {
            let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = found.is_ok_and(|found| kind(&found) == FileType::Symlink);
            Err(if is_link { strange(FileType::Symlink) } else { errno.into() })
        }
        opened => Ok(opened?),
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn strange(kind: FileType) -> io::Error {
    let what = match kind {
        FileType::Symlink => "it is a symbolic link, which is not followed",
        FileType::Directory => "it is a directory, and a file is wanted",
        FileType::Fifo => "it is a pipe and no file",
        _ => "it is no regular file",
    };
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_plain_file_is_opened_and_linked() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), "x").unwrap();
        assert_eq!(
            open_file(root.path(), Path::new("a/b/c")).unwrap().metadata().unwrap().len(),
            1
        );
        let to = root.path().join("to");
        link(root.path(), Path::new("a/b/c"), &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"x");
        let mut names: Vec<_> =
            entries(root.path(), Path::new("")).unwrap().map(Result::unwrap).collect();
        names.sort();
        assert_eq!(names, ["a", "to"]);
        assert_eq!(entries(root.path(), Path::new("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn no_link_is_followed_and_nothing_but_a_file_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(outside.path().join("d")).unwrap();
        fs::write(outside.path().join("d/secret"), "x").unwrap();
        symlink(outside.path().join("d"), root.path().join("out")).unwrap();
        symlink(outside.path().join("d/secret"), root.path().join("file")).unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for path in ["out/secret", "file", "dir", "pipe"] {
            let error = open_file(root.path(), Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{path}: {error}");
        }
        let kind = |error: io::Error| error.kind();
        let listed = |path| entries(root.path(), Path::new(path)).map(drop).map_err(kind);
        assert_eq!(listed("out"), Err(io::ErrorKind::InvalidData));
        assert_eq!(listed("pipe"), Err(io::ErrorKind::NotADirectory));
        for path in ["../x", "a/../../x", "/etc/passwd", ".."] {
            let error = open_file(root.path(), Path::new(path)).unwrap_err();
            let refused = [io::ErrorKind::InvalidInput, io::ErrorKind::NotFound];
            assert!(refused.contains(&error.kind()), "{path}: {error}");
        }
        // A link as the last component is linked as such, and its taker sees that it is no file.
        let to = root.path().join("to");
        link(root.path(), Path::new("file"), &to).unwrap();
        assert!(fs::symlink_metadata(&to).unwrap().is_symlink());
        link(root.path(), Path::new("out/secret"), &root.path().join("to2")).unwrap_err();
    }
}
