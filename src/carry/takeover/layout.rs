//! The layout of distribution's storage folder (registry/storage/paths.go), as far as it is read.
//!
//! ```text
//! docker/registry/v2/blobs/<algorithm>/<2 hex>/<hex>/data
//! docker/registry/v2/repositories/<name>/_layers/<algorithm>/<hex>/link
//!                                       /_manifests/revisions/<algorithm>/<hex>/link
//!                                       /_manifests/tags/<tag>/current/link
//!                                       /_manifests/tags/<tag>/index/<algorithm>/<hex>/link
//!                                       /_uploads/...            not read: nothing of it was ever finished
//! ```
//!
//! A link is a file that holds the text of a digest. One that is gone says that its thing was deleted, expired or collected; that is no
//! damage. Everything here blocks; directories are read name by name, so that their size costs no memory.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::content::{Flaw, Folder};
use crate::oci::{Digest, RepositoryName, Tag};

/// Where the repositories are.
pub(super) const REPOSITORIES: &str = "docker/registry/v2/repositories";
const BLOBS: &str = "docker/registry/v2/blobs";
/// Longer links are none: the longest digest has 135 bytes.
const LINK_BYTES_MAX: u64 = 256;
/// What one tag ever pointed at, as far as it is read; more is left out.
const MOVES_MAX: usize = 10_000;
const NANOS_PER_MILLI: i64 = 1_000_000;

type Names = Box<dyn Iterator<Item = io::Result<std::ffi::OsString>> + Send>;

/// Something in the folder that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Odd {
    /// The path from the folder on.
    pub(super) what: String,
    pub(super) reason: String,
}

/// The file of a digest's content.
pub(super) fn blob_path(digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    let (algorithm, first) = (digest.algorithm().as_str(), &hex[..2]);
    PathBuf::from(format!("{BLOBS}/{algorithm}/{first}/{hex}/data"))
}

/// What is wrong, in words.
pub(super) fn words(flaw: &Flaw) -> String {
    match flaw {
        Flaw::Missing => "it is not in the folder".to_owned(),
        Flaw::Damaged => "it is damaged: its bytes are not what its name says".to_owned(),
        Flaw::Unreadable(why) => why.clone(),
    }
}

/// A name for a message; whoever wrote the folder may have put anything into it.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

fn odd(path: &Path, reason: impl Into<String>) -> Odd {
    Odd { what: shown(path), reason: reason.into() }
}

/// What an error at a path says; `None`: it is not there. An error that says nothing of the folder is given back.
fn odd_of(path: &Path, error: io::Error) -> io::Result<Option<Odd>> {
    Ok(match Flaw::of(error)? {
        Flaw::Missing => None,
        flaw => Some(odd(path, words(&flaw))),
    })
}

/// The names in a directory; none where there is no such directory.
fn names(folder: &Folder, path: &Path) -> io::Result<Result<Option<Names>, Odd>> {
    match folder.entries(path) {
        Ok(names) => Ok(Ok(Some(names))),
        Err(error) => Ok(odd_of(path, error)?.map_or(Ok(None), Err)),
    }
}

/// What the link at a path says and when it was written; none where there is no link.
fn link(folder: &Folder, path: &Path) -> io::Result<Result<Option<(Digest, Timestamp)>, Odd>> {
    let (bytes, stat) = match folder.read(path, LINK_BYTES_MAX) {
        Ok(read) => read,
        Err(error) => return Ok(odd_of(path, error)?.map_or(Ok(None), Err)),
    };
    let text = str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    let written = Timestamp::from_millis(stat.modified_nanos.div_euclid(NANOS_PER_MILLI));
    Ok(match text {
        Some(digest) => Ok(Some((digest, written))),
        None if bytes.is_empty() => Err(odd(path, "the link is empty")),
        None => Err(odd(path, "the link holds no digest")),
    })
}

/// The repositories of a folder, however deep their names nest.
pub(super) struct Repositories {
    folder: Arc<Folder>,
    open: Vec<Level>,
}

/// A directory that is being read.
struct Level {
    /// The name of the repository that it is; empty for the root.
    name: String,
    names: Names,
    /// It turned out to be a repository, and that was told.
    told: bool,
}

pub(super) type Found<T> = Result<T, Odd>;

impl Repositories {
    pub(super) fn of(folder: Arc<Folder>) -> io::Result<Self> {
        let names = folder.entries(Path::new(REPOSITORIES))?;
        Ok(Self { folder, open: vec![Level { name: String::new(), names, told: false }] })
    }

    /// Looks at a name in the directory that is being read.
    fn look(&mut self, name: &OsStr) -> io::Result<Option<Found<RepositoryName>>> {
        let Some(level) = self.open.last_mut() else {
            return Ok(None);
        };
        let path = Path::new(REPOSITORIES).join(&level.name).join(name);
        let Some(text) = name.to_str() else {
            return Ok(Some(Err(odd(&path, "the name is no text"))));
        };
        match text {
            "_uploads" => return Ok(None),
            "_manifests" | "_layers" if level.told => return Ok(None),
            "_manifests" | "_layers" => {
                level.told = true;
                let name = level.name.parse::<RepositoryName>();
                return Ok(Some(name.map_err(|_empty| odd(&path, "it is in no repository"))));
            }
            _ => {}
        }
        let name =
            if level.name.is_empty() { text.to_owned() } else { format!("{}/{text}", level.name) };
        if let Err(error) = name.parse::<RepositoryName>() {
            return Ok(Some(Err(odd(&path, format!("it is no name of a repository: {error}")))));
        }
        Ok(match names(&self.folder, &path)? {
            Ok(Some(names)) => {
                self.open.push(Level { name, names, told: false });
                None
            }
            Ok(None) => None,
            Err(odd) => Some(Err(odd)),
        })
    }
}

impl Iterator for Repositories {
    type Item = io::Result<Found<RepositoryName>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let level = self.open.last_mut()?;
            match level.names.next() {
                None => drop(self.open.pop()),
                Some(Ok(name)) => {
                    if let Some(found) = self.look(&name).transpose() {
                        return Some(found);
                    }
                }
                Some(Err(error)) => {
                    let path = Path::new(REPOSITORIES).join(&level.name);
                    self.open.pop();
                    if let Some(odd) = odd_of(&path, error).transpose() {
                        return Some(odd.map(Err));
                    }
                }
            }
        }
    }
}

/// The links in one of the directories that have them by algorithm and hex.
pub(super) struct Links {
    folder: Arc<Folder>,
    path: PathBuf,
    algorithms: Option<Names>,
    /// The algorithm whose names are being read.
    open: Option<(PathBuf, String, Names)>,
    /// What its directory says instead.
    odd: Option<Odd>,
}

impl Links {
    fn of(folder: Arc<Folder>, path: PathBuf) -> io::Result<Self> {
        let (algorithms, odd) = match names(&folder, &path)? {
            Ok(names) => (names, None),
            Err(odd) => (None, Some(odd)),
        };
        Ok(Self { folder, path, algorithms, open: None, odd })
    }

    /// The revisions of a repository.
    pub(super) fn of_revisions(folder: Arc<Folder>, name: &RepositoryName) -> io::Result<Self> {
        Self::of(folder, PathBuf::from(format!("{REPOSITORIES}/{name}/_manifests/revisions")))
    }

    /// The blobs of a repository.
    pub(super) fn of_layers(folder: Arc<Folder>, name: &RepositoryName) -> io::Result<Self> {
        Self::of(folder, PathBuf::from(format!("{REPOSITORIES}/{name}/_layers")))
    }

    /// The next algorithm. `None`: there is none.
    fn descend(&mut self) -> Option<io::Result<Option<Odd>>> {
        let name = match self.algorithms.as_mut()?.next()? {
            Ok(name) => name,
            Err(error) => {
                self.algorithms = None;
                return Some(odd_of(&self.path, error));
            }
        };
        let path = self.path.join(&name);
        let Some(text) = name.to_str().filter(|text| matches!(*text, "sha256" | "sha512")) else {
            return Some(Ok(Some(odd(&path, "it is no algorithm of a digest"))));
        };
        Some(names(&self.folder, &path).map(|found| match found {
            Ok(Some(names)) => {
                self.open = Some((path, text.to_owned(), names));
                None
            }
            Ok(None) => None,
            Err(odd) => Some(odd),
        }))
    }

    /// What is under one name.
    fn look(
        &self,
        directory: &Path,
        algorithm: &str,
        name: &OsStr,
    ) -> io::Result<Option<Found<(Digest, Timestamp)>>> {
        let path = directory.join(name);
        let digest = name.to_str().and_then(|hex| Digest::from_parts(algorithm, hex).ok());
        let Some(digest) = digest else {
            return Ok(Some(Err(odd(&path, "it is no digest"))));
        };
        let path = path.join("link");
        Ok(match link(&self.folder, &path)? {
            Ok(Some((says, written))) if says == digest => Some(Ok((digest, written))),
            Ok(Some((says, _written))) => {
                Some(Err(odd(&path, format!("the link says {says}, and its name another digest"))))
            }
            Ok(None) => None,
            Err(odd) => Some(Err(odd)),
        })
    }
}

impl Iterator for Links {
    type Item = io::Result<Found<(Digest, Timestamp)>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(odd) = self.odd.take() {
            return Some(Ok(Err(odd)));
        }
        loop {
            let Some((path, algorithm, mut names)) = self.open.take() else {
                if let Some(odd) = self.descend()?.transpose() {
                    return Some(odd.map(Err));
                }
                continue;
            };
            let found = match names.next() {
                None => continue,
                Some(Ok(name)) => self.look(&path, &algorithm, &name),
                Some(Err(error)) => {
                    if let Some(odd) = odd_of(&path, error).transpose() {
                        return Some(odd.map(Err));
                    }
                    continue;
                }
            };
            self.open = Some((path, algorithm, names));
            if let Some(found) = found.transpose() {
                return Some(found);
            }
        }
    }
}

/// A tag and what its directory says.
#[derive(Debug)]
pub(super) struct FolderTag {
    pub(super) tag: Tag,
    pub(super) current: (Digest, Timestamp),
    /// What it points at or did, in no order, with when its link was last written.
    pub(super) index: Vec<(Digest, Timestamp)>,
    /// What in its directory is not as it should be.
    pub(super) odds: Vec<Odd>,
}

/// The tags of a repository.
pub(super) struct Tags {
    folder: Arc<Folder>,
    path: PathBuf,
    names: Option<Names>,
    odd: Option<Odd>,
}

impl Tags {
    pub(super) fn of(folder: Arc<Folder>, name: &RepositoryName) -> io::Result<Self> {
        let path = PathBuf::from(format!("{REPOSITORIES}/{name}/_manifests/tags"));
        let (names, odd) = match names(&folder, &path)? {
            Ok(names) => (names, None),
            Err(odd) => (None, Some(odd)),
        };
        Ok(Self { folder, path, names, odd })
    }

    fn look(&self, name: &OsStr) -> io::Result<Found<FolderTag>> {
        let path = self.path.join(name);
        let Some(tag) = name.to_str().and_then(|text| text.parse::<Tag>().ok()) else {
            return Ok(Err(odd(&path, "it is no name of a tag")));
        };
        let current = match link(&self.folder, &path.join("current/link"))? {
            Ok(Some(current)) => current,
            Ok(None) => return Ok(Err(odd(&path, "the tag has no current link"))),
            Err(odd) => return Ok(Err(odd)),
        };
        let (mut index, mut odds) = (Vec::new(), Vec::new());
        for found in Links::of(Arc::clone(&self.folder), path.join("index"))? {
            if index.len() + odds.len() >= MOVES_MAX {
                let reason = format!("the tag has more than {MOVES_MAX} links; no more are read");
                odds.push(odd(&path, reason));
                break;
            }
            match found? {
                Ok(link) => index.push(link),
                Err(odd) => odds.push(odd),
            }
        }
        Ok(Ok(FolderTag { tag, current, index, odds }))
    }
}

impl Iterator for Tags {
    type Item = io::Result<Found<FolderTag>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(odd) = self.odd.take() {
            return Some(Ok(Err(odd)));
        }
        loop {
            match self.names.as_mut()?.next()? {
                Ok(name) => return Some(self.look(&name)),
                Err(error) => {
                    self.names = None;
                    if let Some(odd) = odd_of(&self.path, error).transpose() {
                        return Some(odd.map(Err));
                    }
                }
            }
        }
    }
}
