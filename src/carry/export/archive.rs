//! The tar around the files: headers that depend on name and size alone, and how long it all becomes.

use std::io;

use tar::{Builder, EntryType, Header};

/// Everything in a tar is a multiple of this (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK_BYTES: u64 = 512;
/// A tar ends with two blocks of zeros.
pub(super) const END: &[u8] = &[0; 1024];
/// What fills a last block.
const FILLING: &[u8] = &[0; 512];
/// Owner reads and writes, all others read.
const MODE: u32 = 0o644;

/// The blocks in front of a file's bytes. A name that the header cannot hold (that of a sha512 digest) has blocks of its own, as GNU tar
/// writes them.
pub(super) fn head(path: &str, size: u64) -> io::Result<Vec<u8>> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(MODE);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    let mut builder = Builder::new(Vec::new());
    // The bytes follow from elsewhere, so the builder is given none.
    builder.append_data(&mut header, path, io::empty())?;
    Ok(builder.get_ref().clone())
}

/// What follows a file's bytes up to the next block.
pub(super) fn filling(size: u64) -> &'static [u8] {
    let rest = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
    &FILLING[..usize::try_from(rest).unwrap_or(0)]
}

/// Bytes of a whole file with what stands before and behind it.
pub(super) fn length(path: &str, size: u64) -> io::Result<u64> {
    let head = u64::try_from(head(path, size)?.len()).map_err(io::Error::other)?;
    let body = size.checked_next_multiple_of(BLOCK_BYTES);
    let whole = body.and_then(|body| body.checked_add(head));
    whole.ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const LARGE: u64 = 9 * 1024 * 1024 * 1024;

    fn named(algorithm: &str, digits: usize) -> String {
        format!("blobs/{algorithm}/{}", "0123456789abcdef".repeat(digits / 16))
    }

    #[test]
    fn a_reader_finds_what_was_written_and_nothing_of_this_machine() {
        let files = [
            ("oci-layout".to_owned(), vec![b'x'; 30]),
            (named("sha256", 64), Vec::new()),
            (named("sha512", 128), vec![b'y'; 512]),
            (named("sha256", 64), vec![b'z'; 513]),
        ];
        let (mut bytes, mut wanted) = (Vec::new(), 0);
        for (path, content) in &files {
            let size = u64::try_from(content.len()).unwrap();
            bytes.extend(head(path, size).unwrap());
            bytes.extend_from_slice(content);
            bytes.extend_from_slice(filling(size));
            wanted += length(path, size).unwrap();
        }
        assert_eq!(u64::try_from(bytes.len()).unwrap(), wanted);
        assert_eq!(head(&files[2].0, 7).unwrap(), head(&files[2].0, 7).unwrap());
        bytes.extend_from_slice(END);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o644, 0));
            assert!(header.username_bytes().is_none_or(<[u8]>::is_empty));
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            seen.push((path, content));
        }
        assert_eq!(seen, files);
    }

    #[test]
    fn a_file_may_be_larger_than_eight_gibibytes() {
        let path = named("sha256", 64);
        let head = head(&path, LARGE).unwrap();
        let header = Header::from_byte_slice(&head);
        assert_eq!(header.entry_size().unwrap(), LARGE);
        assert_eq!(length(&path, LARGE).unwrap(), LARGE + 512);
        assert_eq!(length(&path, LARGE - 1).unwrap(), LARGE + 512);
        assert!(length(&path, u64::MAX).is_err());
        assert_eq!((filling(LARGE).len(), filling(LARGE - 1).len(), filling(1).len()), (0, 1, 511));
    }
}
