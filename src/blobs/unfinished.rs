//! Downloads that were broken off: a partial file and its record.
//!
//! What must hold: the bytes that a record names are durable before the record has its name, and a record speaks only for the file
//! beside it. At the opening names alone are looked at; a record is read when somebody asks for its digest. A record that is junk
//! or does not fit its file is worth nothing, and neither is the file then. Callers make sure that one of them at a time works on
//! a digest.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::{OpenError, is_circumstance};
use super::record::{RECORD_BYTES_MAX, Record};
use super::store::{Blobs, Download, Partial};
use crate::clock::Timestamp;
use crate::oci::Digest;

const RECORD_SUFFIX: &str = ".map";

/// What a name under `partial/` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Download(Digest),
    Record(Digest),
    /// A small write, or a file of others.
    Other,
}

/// What is left of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// No record. There may be a file.
    Nothing,
    /// A record that says nothing, or a file that does not fit it.
    Junk,
    Whole {
        /// Size of the whole, as it was announced.
        size: u64,
        /// The bytes that are here, as disjoint intervals in order.
        present: Vec<Range<u64>>,
        /// When the record was written.
        written: Timestamp,
        /// Bytes that the file takes on the disk.
        allocated: u64,
    },
}

/// A download that goes on.
#[derive(Debug)]
pub struct Adopted {
    pub partial: Partial,
    pub present: Vec<Range<u64>>,
    /// Bytes that the file takes on the disk already.
    pub allocated: u64,
}

impl Name {
    fn of(name: &OsStr) -> Self {
        let parse = |text: &str| {
            let (algorithm, hex) = text.strip_prefix("d-")?.split_once('-')?;
            Digest::from_parts(algorithm, hex).ok()
        };
        let Some(text) = name.to_str() else {
            return Self::Other;
        };
        match text.strip_suffix(RECORD_SUFFIX) {
            Some(text) => parse(text).map_or(Self::Other, Self::Record),
            None => parse(text).map_or(Self::Other, Self::Download),
        }
    }
}

impl Blobs {
    fn download_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("d-{}-{}", digest.algorithm().as_str(), digest.hex());
        self.partial_directory().join(name)
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("d-{}-{}{RECORD_SUFFIX}", digest.algorithm().as_str(), digest.hex());
        self.partial_directory().join(name)
    }

    fn download(&self, digest: &Digest, size: Option<u64>, recorded: bool) -> Download {
        let record = self.record_path(digest);
        Download { size, record, recorded: AtomicBool::new(recorded) }
    }

    /// Removes what nobody can continue: small writes, files without a record, records without a file, files of others. One that
    /// cannot be removed only costs its room.
    pub(super) fn remove_litter(&self) -> Result<(), OpenError> {
        let directory = self.partial_directory();
        let names: HashSet<OsString> =
            self.at(&directory, self.disk.list(&directory))?.into_iter().collect();
        for name in &names {
            let partner = match Name::of(name) {
                Name::Download(digest) => self.record_path(&digest),
                Name::Record(digest) => self.download_path(&digest),
                Name::Other => directory.clone(),
            };
            if !partner.file_name().is_some_and(|partner| names.contains(partner)) {
                self.unlink_or_warn(&directory.join(name));
            }
        }
        Ok(())
    }

    /// Begins the download of `digest` from nothing; what is left of an earlier one goes. With a size, room for it is reserved, so
    /// that a full disk shows before the first byte.
    pub fn create_download(&self, digest: &Digest, size: Option<u64>) -> io::Result<Partial> {
        self.unlink_if_there(&self.record_path(digest))?;
        self.create(self.download_path(digest), size, Some(self.download(digest, size, false)))
    }

    /// What is left of a download of `digest`. An error is one of the circumstances (no descriptors, no permission).
    pub fn leftover(&self, digest: &Digest) -> io::Result<Leftover> {
        match self.read_leftover(digest) {
            Err(error) if is_circumstance(&error) => Err(error),
            Err(error) => {
                tracing::debug!(%digest, %error, "the record of an unfinished download cannot be read");
                Ok(Leftover::Junk)
            }
            found => found,
        }
    }

    fn read_leftover(&self, digest: &Digest) -> io::Result<Leftover> {
        let file = match self.disk.open(&self.record_path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leftover::Nothing),
            Err(error) => return Err(error),
        };
        let length = usize::try_from(self.disk.stat(&file)?.size).unwrap_or(usize::MAX);
        if length > RECORD_BYTES_MAX {
            return Ok(Leftover::Junk);
        }
        let mut bytes = vec![0; length];
        self.disk.read_at(&file, 0, &mut bytes)?;
        let Some(record) = Record::decode(&bytes) else {
            return Ok(Leftover::Junk);
        };
        let stat = self.disk.stat(&self.disk.open(&self.download_path(digest))?)?;
        let end = record.present.last().map_or(0, |part| part.end);
        if stat.inode != record.inode || stat.size > record.size || stat.size < end {
            return Ok(Leftover::Junk);
        }
        let Record { size, present, written, .. } = record;
        Ok(Leftover::Whole { size, present, written, allocated: stat.allocated })
    }

    /// Goes on with what is left of a download of that `size`. `None`: nothing is left that fits; a new download can be created.
    pub fn adopt(&self, digest: &Digest, size: u64) -> io::Result<Option<Adopted>> {
        let Leftover::Whole { size: announced, present, allocated, .. } = self.leftover(digest)?
        else {
            return Ok(None);
        };
        if announced != size {
            return Ok(None);
        }
        let path = self.download_path(digest);
        let file = match self.disk.open_writable(&path) {
            Ok(file) => Arc::new(file),
            Err(error) if is_circumstance(&error) => return Err(error),
            Err(_damaged) => return Ok(None),
        };
        let download = Some(self.download(digest, Some(size), true));
        let partial =
            Partial { file, path, allocated: false, download, lost: AtomicBool::new(false) };
        Ok(Some(Adopted { partial, present, allocated }))
    }

    /// Reserves the room that an adopted download still needs. Without it the download goes on all the same.
    pub fn reserve_rest(&self, partial: &mut Partial, size: u64) {
        partial.allocated = self.disk.allocate(&partial.file, size).unwrap_or(false);
    }

    /// Makes what was written durable, and then records that the bytes `present` are here. Intervals that overlap, are out of order
    /// or beyond the size are `InvalidInput`. A download of unknown size has no record; nothing is done for it.
    pub fn checkpoint(
        &self,
        partial: &Partial,
        present: &[Range<u64>],
        now: Timestamp,
    ) -> io::Result<()> {
        let Some((download, size)) =
            partial.download.as_ref().and_then(|download| Some((download, download.size?)))
        else {
            return Ok(());
        };
        if !Record::is_valid(size, present) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "intervals out of order"));
        }
        self.sync(partial)?;
        let inode = self.disk.stat(&partial.file)?.inode;
        let present = Record::cut(present.to_vec());
        let bytes = Record { size, inode, written: now, present }.encode();
        let scratch = self.create_scratch(0)?;
        // Without the second sync a loss of power could leave the name without the record; which of two records it leaves does not
        // matter, so the directory is not synced.
        self.write_at(&scratch, 0, &bytes)
            .and_then(|()| self.sync(&scratch))
            .and_then(|()| self.disk.rename(&scratch.path, &download.record))
            .inspect_err(|_error| self.discard(&scratch))?;
        download.recorded.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// A download that ends, published or not, needs no record any more; best effort, because one without a file is litter.
    pub(super) fn remove_record(&self, partial: &Partial) {
        if let Some(download) = &partial.download
            && download.recorded.load(Ordering::SeqCst)
        {
            self.unlink_or_warn(&download.record);
        }
    }

    /// Removes what is left of a download, the record first: a file without one is litter, the other way round is a lie.
    pub fn remove_leftover(&self, digest: &Digest) -> io::Result<()> {
        self.unlink_if_there(&self.record_path(digest))?;
        self.unlink_if_there(&self.download_path(digest))
    }

    /// The digests of which a file or a record is under `partial/`, in no order.
    pub fn leftovers(&self) -> io::Result<Vec<Digest>> {
        let mut found = HashSet::new();
        for name in self.disk.list(&self.partial_directory())? {
            match Name::of(&name) {
                Name::Download(digest) | Name::Record(digest) => {
                    found.insert(digest);
                }
                Name::Other => {}
            }
        }
        Ok(found.into_iter().collect())
    }
}
