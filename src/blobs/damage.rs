//! Looking at stored content, and putting aside what is damaged.
//!
//! What must hold: only bytes that were read and differ condemn a file; that it could not be opened for want of descriptors or
//! permission says nothing about it and is an error here. The quarantine is for the operator, and bounded.

use std::io;
use std::path::PathBuf;

use super::disk::Entries;
use super::real;
use super::store::{ALGORITHMS, BLOBS_NAME, Blobs, Opened, QUARANTINE_NAME};
use crate::oci::{Algorithm, Digest, DigestHasher};

/// Content is read in pieces of this size.
const READ_BYTES: usize = 1024 * 1024;
/// The cache lets go of what was read in steps of this size.
const LET_GO_BYTES: u64 = 16 * 1024 * 1024;
/// Damaged files that are kept; the oldest go first.
pub const QUARANTINE_KEPT: usize = 100;
/// Bytes of damaged files that are kept; the newest is kept whatever its size.
pub const QUARANTINE_KEPT_BYTES: u64 = 1024 * 1024 * 1024;

/// The names under `blobs/`, as they are read from the disk.
pub struct Names {
    left: Vec<(Algorithm, PathBuf)>,
    entries: Option<(Algorithm, Entries)>,
}

impl Blobs {
    /// Is an opened file, read to its end, what the digest names? `each` hears of every piece that was read and may wait; `false`
    /// from it ends the look with `Interrupted`. An error says that the bytes could not be read.
    pub fn is_sound(
        &self,
        opened: &Opened,
        digest: &Digest,
        each: &mut dyn FnMut(usize) -> bool,
    ) -> io::Result<bool> {
        let mut hasher = DigestHasher::new(digest.algorithm());
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        let mut let_go = LET_GO_BYTES;
        real::read_in_order(&opened.file);
        while offset < opened.stat.size {
            let left = usize::try_from(opened.stat.size - offset).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(READ_BYTES)];
            match self.disk.read_at(&opened.file, offset, part) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            hasher.update(part);
            offset += u64::try_from(part.len()).unwrap_or(u64::MAX);
            if offset >= let_go {
                real::let_go(&opened.file, offset);
                let_go += LET_GO_BYTES;
            }
            if !each(part.len()) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        real::let_go(&opened.file, offset);
        Ok(hasher.finish() == *digest)
    }

    /// Takes content away for good; readers that have it open read on. `false`: there was none. The caller has seen to it that no row
    /// says that it is here. The name may be back after a loss of power.
    pub fn remove(&self, digest: &Digest) -> io::Result<bool> {
        match self.disk.unlink(&self.blob_path(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes damaged content out of `blobs/` and keeps it for the operator, the last of each digest and [`QUARANTINE_KEPT`] in all.
    pub fn quarantine(&self, digest: &Digest) -> io::Result<()> {
        let directory = self.root.join(QUARANTINE_NAME);
        let target = directory.join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()));
        let source = self.blob_path(digest);
        let moved = self.rename_durably(&source, &target).or_else(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                return Ok(());
            }
            // A directory and a file do not replace each other; the rest of the name is free for sure.
            let number = self.next_number();
            let other = directory.join(format!(
                "{}-{}.{number}-{}",
                digest.algorithm().as_str(),
                digest.hex(),
                std::process::id()
            ));
            match error.kind() {
                io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::DirectoryNotEmpty
                | io::ErrorKind::AlreadyExists => self.rename_durably(&source, &other),
                _ => Err(error),
            }
        });
        self.bound_quarantine();
        moved
    }

    /// Removes the oldest files of the quarantine beyond its bounds; best effort.
    fn bound_quarantine(&self) {
        let directory = self.root.join(QUARANTINE_NAME);
        let Ok(names) = self.disk.list(&directory) else {
            return;
        };
        let mut kept: Vec<_> = names
            .into_iter()
            .filter_map(|name| {
                let path = directory.join(name);
                let stat = self.disk.stat_path(&path).ok()?;
                Some((stat.changed_nanos, stat.size, path))
            })
            .collect();
        kept.sort_unstable_by(|one, other| other.cmp(one));
        let mut bytes = 0_u64;
        for (place, (_changed, size, path)) in kept.into_iter().enumerate() {
            bytes = bytes.saturating_add(size);
            if place >= QUARANTINE_KEPT || (place > 0 && bytes > QUARANTINE_KEPT_BYTES) {
                self.unlink_or_warn(&path);
            }
        }
    }

    /// The names under `blobs/`, in no order.
    pub fn names(&self) -> Names {
        let blobs = self.root.join(BLOBS_NAME);
        let directory = |algorithm: Algorithm| (algorithm, blobs.join(algorithm.as_str()));
        Names { left: ALGORITHMS.map(directory).to_vec(), entries: None }
    }

    /// At most `limit` further digests; none at the end. Names that are no digest are passed over.
    pub fn next_names(&self, names: &mut Names, limit: usize) -> io::Result<Vec<Digest>> {
        let mut found = Vec::new();
        while found.len() < limit {
            let Some((algorithm, entries)) = &mut names.entries else {
                let Some((algorithm, path)) = names.left.pop() else { break };
                names.entries = Some((algorithm, self.disk.entries(&path)?));
                continue;
            };
            match entries.next() {
                Some(name) => {
                    let parsed = Digest::from_parts(algorithm.as_str(), &name?.to_string_lossy());
                    found.extend(parsed.ok());
                }
                None => names.entries = None,
            }
        }
        Ok(found)
    }

    /// The same file with the same bytes, as far as its marks tell?
    pub fn is_unchanged(&self, opened: &Opened) -> io::Result<bool> {
        let stat = self.disk.stat(&opened.file)?;
        Ok((stat.size, stat.modified_nanos, stat.inode)
            == (opened.stat.size, opened.stat.modified_nanos, opened.stat.inode))
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("left", &self.left).finish_non_exhaustive()
    }
}
