//! Writing a bundle as it comes: through a reader of tars, which sees what is in it, into the files that it becomes.
//!
//! Everything here blocks. What is read is checked as if the other side were not to be trusted: names, lengths, and in a directory the
//! digests too.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::Archive;
use tokio::sync::mpsc::Receiver;

use crate::cli::staged::{Staged, staged_path};
use crate::oci::{Algorithm, Digest, DigestHasher, Receipt};

use super::naming::Naming;
use super::target::{Place, Target};

/// Files of a layout that are no content (OCI image spec, and docker's).
const DOCUMENTS: [&str; 3] = ["oci-layout", "index.json", "manifest.json"];
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    /// The files of the bundle; one, or its parts.
    pub(super) parts: usize,
}

/// The bytes of a bundle as they come from the other side.
#[derive(Debug)]
pub(super) struct Feed {
    frames: Receiver<Bytes>,
    frame: Bytes,
    left: u64,
}

impl Feed {
    /// `length` bytes will come.
    pub(super) fn new(frames: Receiver<Bytes>, length: u64) -> Self {
        Self { frames, frame: Bytes::new(), left: length }
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.frame.is_empty() {
            match self.frames.blocking_recv() {
                Some(frame) => self.frame = frame,
                None if self.left == 0 => return Ok(0),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.frame.len().min(buffer.len());
        let some = self.frame.split_to(count);
        buffer[..count].copy_from_slice(&some);
        let count_left = u64::try_from(count).ok().and_then(|count| self.left.checked_sub(count));
        self.left = count_left.ok_or_else(|| io::Error::other("more came than was announced"))?;
        Ok(count)
    }
}

/// Writes the whole bundle to its target. `force`: an earlier export may be replaced. `receipt` is what the other side has already, and is
/// written with what is in the bundle.
///
/// # Errors
///
/// The bundle broke off, is none, or a file cannot be written; nothing is left over then.
pub(super) fn write(
    target: &Target,
    force: bool,
    mut feed: Feed,
    receipt: Receipt,
) -> io::Result<Written> {
    match target {
        Target::Stdout => {
            let mut out = io::stdout().lock();
            copy(&mut feed, &mut out)?;
            out.flush()?;
            Ok(Written { parts: 1 })
        }
        Target::Tar { place, split } => tar((place, force), *split, feed, receipt),
        Target::Folder(place) => folder((place, force), feed, receipt),
    }
}

fn tar(
    (place, force): (&Place, bool),
    split: Option<u64>,
    feed: Feed,
    mut receipt: Receipt,
) -> io::Result<Written> {
    let mut parts = Parts::new(place, split);
    let mut archive = Archive::new(Tee { feed, parts: &mut parts });
    for entry in archive.entries()? {
        if let Member::Content(digest) = member(&entry?.path()?)? {
            receipt.insert(digest).map_err(io::Error::other)?;
        }
    }
    let mut rest = archive.into_inner();
    copy(&mut rest, &mut io::sink())?;
    let parts = parts.end()?;
    let sums: String = parts.iter().map(|part| line(&part.digest, &part.name)).collect();
    let lists = Lists::stage(place, &sums, &receipt)?;
    let mut naming = Naming::new(place, true, force)?;
    for part in &parts {
        naming.give(part.staged.path(), &part.name)?;
    }
    lists.publish(naming)?;
    Ok(Written { parts: parts.len() })
}

fn folder((place, force): (&Place, bool), feed: Feed, mut receipt: Receipt) -> io::Result<Written> {
    let staged = StagedFolder::new(place)?;
    let (mut sums, mut archive) = (Vec::new(), Archive::new(feed));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let member = member(&name)?;
        let path = staged.0.join(&name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = File::create_new(&path)?;
        let algorithm = match &member {
            Member::Content(digest) => digest.algorithm(),
            Member::Document => Algorithm::Sha256,
        };
        // sha256sum reads no other sums, whatever a name says.
        let (mut sum, mut own) =
            (DigestHasher::new(Algorithm::Sha256), DigestHasher::new(algorithm));
        let mut out = Hashing {
            file,
            sum: &mut sum,
            own: (algorithm != Algorithm::Sha256).then_some(&mut own),
        };
        copy(&mut entry, &mut out)?;
        let sum = sum.finish();
        if let Member::Content(digest) = member {
            let found = if algorithm == Algorithm::Sha256 { sum } else { own.finish() };
            if found != digest {
                return Err(io::Error::other(format!("{digest} came damaged")));
            }
            receipt.insert(digest).map_err(io::Error::other)?;
        }
        sums.push((name, sum));
    }
    copy(&mut archive.into_inner(), &mut io::sink())?;
    let sums =
        sums.iter().map(|(name, sum)| line(sum, &format!("{}/{}", place.name, name.display())));
    let lists = Lists::stage(place, &sums.collect::<String>(), &receipt)?;
    // One wait for all files rather than one for each.
    rustix::fs::syncfs(File::open(&staged.0)?)?;
    let mut naming = Naming::new(place, false, force)?;
    naming.give(&staged.0, &place.name)?;
    lists.publish(naming)?;
    Ok(Written { parts: 1 })
}

/// A line as sha256sum writes it.
fn line(digest: &Digest, name: &str) -> String {
    format!("{}  {name}\n", digest.hex())
}

/// What a name in a bundle stands for.
enum Member {
    Document,
    Content(Digest),
}

fn member(path: &Path) -> io::Result<Member> {
    let name = path.to_str().unwrap_or_default();
    if DOCUMENTS.contains(&name) {
        return Ok(Member::Document);
    }
    let content = name.strip_prefix("blobs/").and_then(|rest| rest.split_once('/'));
    let digest = content.and_then(|(algorithm, hex)| Digest::from_parts(algorithm, hex).ok());
    let strange = || io::Error::other(format!("{name:?} has no place in a bundle"));
    digest.map(Member::Content).ok_or_else(strange)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..count])?;
    }
}

/// Whatever is read goes into the parts.
struct Tee<'a> {
    feed: Feed,
    parts: &'a mut Parts,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.feed.read(buffer)?;
        self.parts.put(&buffer[..count])?;
        Ok(count)
    }
}

/// A file of the bundle that waits for its name.
struct Part {
    staged: Staged,
    name: String,
    digest: Digest,
}

/// The files that a tar is cut into.
struct Parts {
    place: Place,
    limit: Option<u64>,
    done: Vec<Part>,
    open: Option<(Staged, DigestHasher, u64)>,
}

impl Parts {
    fn new(place: &Place, limit: Option<u64>) -> Self {
        Self { place: place.clone(), limit, done: Vec::new(), open: None }
    }

    fn name(&self) -> String {
        match self.limit {
            Some(_) => self.place.part(self.done.len() + 1),
            None => self.place.name.clone(),
        }
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => {
                    let staged = Staged::new(&self.place.directory, &self.name())?;
                    (staged, DigestHasher::new(Algorithm::Sha256), 0)
                }
            };
            let (staged, hasher, length) = &mut open;
            let room = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(*length));
            let count = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            let (some, rest) = bytes.split_at(count);
            staged.file.write_all(some)?;
            hasher.update(some);
            *length = length.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            bytes = rest;
            let full = self.limit.is_some_and(|limit| *length >= limit);
            self.open = Some(open);
            if full {
                self.close()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some((staged, hasher, _)) = self.open.take() {
            let name = self.name();
            self.done.push(Part { staged, name, digest: hasher.finish() });
        }
        Ok(())
    }

    /// All parts, on the disk. They are waited for when everything has come: a slow medium takes longer to write gigabytes than the other
    /// side waits for a reader.
    fn end(mut self) -> io::Result<Vec<Part>> {
        self.close()?;
        for part in &self.done {
            part.staged.file.sync_all()?;
        }
        Ok(self.done)
    }
}

/// A file, its sum for `sha256sum`, and one by another algorithm if its name has that.
struct Hashing<'a> {
    file: File,
    sum: &'a mut DigestHasher,
    own: Option<&'a mut DigestHasher>,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.sum.update(&bytes[..count]);
        if let Some(own) = &mut self.own {
            own.update(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The sums and the receipt, before they have their names.
struct Lists {
    sums: (Staged, String),
    receipt: (Staged, String),
}

impl Lists {
    fn stage(place: &Place, sums: &str, receipt: &Receipt) -> io::Result<Self> {
        let stage = |ending: &str, text: &str| {
            let name = format!("{}.{ending}", place.name);
            let staged = Staged::new(&place.directory, &name)?;
            (&staged.file).write_all(text.as_bytes())?;
            staged.file.sync_all()?;
            Ok::<_, io::Error>((staged, name))
        };
        Ok(Self { sums: stage("sha256", sums)?, receipt: stage("receipt", &receipt.to_string())? })
    }

    /// Ends the naming of a bundle: the sums are the last to get their name.
    fn publish(self, mut naming: Naming<'_>) -> io::Result<()> {
        let Self { sums, receipt } = self;
        naming.give(receipt.0.path(), &receipt.1)?;
        naming.sync()?;
        naming.give(sums.0.path(), &sums.1)?;
        naming.settle()
    }
}

/// A directory that is removed unless it got its final name.
struct StagedFolder(PathBuf);

impl StagedFolder {
    fn new(place: &Place) -> io::Result<Self> {
        let path = staged_path(&place.directory, &place.name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        // With its final name there is nothing under this one.
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "a staged directory was left over");
        }
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
