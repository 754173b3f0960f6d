//! What is left of a download is what was written, whatever fails and whenever the power is cut.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{RECORD_BYTES_MAX, Record};
use super::testing::{Fault, FaultyDisk, Operation, Plan};
use super::*;
use crate::clock::Timestamp;
use crate::oci::Digest;

const SIZE: u64 = 100_000;
const NOW: Timestamp = Timestamp::from_millis(1_000);

fn real() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

fn open(disk: Arc<dyn Disk>, root: &Path) -> (Blobs, DirectoryLock) {
    Blobs::open(disk, root).unwrap()
}

fn digest() -> Digest {
    Digest::sha256_of(b"some layer")
}

/// The byte that belongs at an offset.
fn content(part: Range<u64>) -> Vec<u8> {
    part.map(|offset| u8::try_from(offset % 251 + 1).unwrap()).collect()
}

fn only(part: Range<u64>) -> [Range<u64>; 1] {
    [part]
}

fn file_of(root: &Path) -> PathBuf {
    root.join("partial").join(format!("d-sha256-{}", digest().hex()))
}

fn record_of(root: &Path) -> PathBuf {
    root.join("partial").join(format!("d-sha256-{}.map", digest().hex()))
}

fn count(root: &Path) -> usize {
    fs::read_dir(root.join("partial")).unwrap().count()
}

fn put(blobs: &Blobs, partial: &Partial, part: Range<u64>) -> io::Result<()> {
    blobs.write_at(partial, part.start, &content(part))
}

/// A download of which two parts are here.
fn leave(blobs: &Blobs) -> io::Result<()> {
    let partial = blobs.create_download(&digest(), Some(SIZE))?;
    put(blobs, &partial, 0..10_000)?;
    blobs.checkpoint(&partial, &only(0..10_000), NOW)?;
    put(blobs, &partial, 50_000..60_000)?;
    blobs.checkpoint(&partial, &[0..10_000, 50_000..60_000], NOW)
}

fn present(blobs: &Blobs) -> Option<Vec<Range<u64>>> {
    match blobs.leftover(&digest()).unwrap() {
        Leftover::Whole { size, present, .. } => {
            assert_eq!(size, SIZE);
            Some(present)
        }
        Leftover::Nothing | Leftover::Junk => None,
    }
}

/// The promise: what the record names is what was written.
fn assert_tells_the_truth(blobs: &Blobs) -> Vec<Range<u64>> {
    let Some(parts) = present(blobs) else {
        return Vec::new();
    };
    let adopted = blobs.adopt(&digest(), SIZE).unwrap().unwrap();
    assert_eq!(adopted.present, parts);
    for part in &parts {
        let mut bytes = vec![0; usize::try_from(part.end - part.start).unwrap()];
        blobs.read_at(&adopted.partial, part.start, &mut bytes).unwrap();
        assert!(bytes == content(part.clone()), "{part:?}");
    }
    parts
}

#[test]
fn a_download_goes_on_after_a_restart_and_ends_without_its_record() {
    let root = tempfile::tempdir().unwrap();
    {
        let (blobs, _lock) = open(real(), root.path());
        leave(&blobs).unwrap();
    }
    let (blobs, _lock) = open(real(), root.path());
    assert_eq!(assert_tells_the_truth(&blobs), [0..10_000, 50_000..60_000]);
    assert!(blobs.adopt(&digest(), SIZE + 1).unwrap().is_none(), "of another size");
    let mut adopted = blobs.adopt(&digest(), SIZE).unwrap().unwrap();
    assert!(adopted.allocated >= 20_000);
    blobs.reserve_rest(&mut adopted.partial, SIZE);
    assert_tells_the_truth(&blobs);
    for part in [10_000..50_000, 60_000..SIZE] {
        put(&blobs, &adopted.partial, part).unwrap();
    }
    blobs.publish(&adopted.partial, &digest(), SIZE).unwrap();
    assert_eq!(count(root.path()), 0);
    let opened = blobs.open_published(&digest()).unwrap().unwrap();
    assert!(blobs.read(&opened).unwrap() == content(0..SIZE));
}

#[test]
fn a_start_keeps_pairs_and_removes_everything_else() {
    let root = tempfile::tempdir().unwrap();
    {
        let (blobs, _lock) = open(real(), root.path());
        leave(&blobs).unwrap();
        // Without a record.
        blobs.create_download(&Digest::sha256_of(b"other"), Some(9)).unwrap();
        blobs.create_scratch(9).unwrap();
    }
    let partial = root.path().join("partial");
    let stray = format!("d-sha256-{}.map", Digest::sha256_of(b"third").hex());
    for name in [&stray, "notes.txt", "d-sha256-zz", "d-sha256-zz.map", "w-12.map"] {
        fs::write(partial.join(name), b"x").unwrap();
    }
    let (blobs, _lock) = open(real(), root.path());
    assert_eq!(count(root.path()), 2);
    assert_eq!(blobs.leftovers().unwrap(), [digest()]);
    assert!(present(&blobs).is_some());
}

#[test]
fn ten_thousand_leftovers_are_opened_by_name_only() {
    let root = tempfile::tempdir().unwrap();
    drop(open(real(), root.path()));
    let partial = root.path().join("partial");
    for number in 0..10_000_u32 {
        let name = format!("d-sha256-{}", Digest::sha256_of(&number.to_be_bytes()).hex());
        fs::write(partial.join(format!("{name}.map")), b"").unwrap();
        fs::write(partial.join(name), b"").unwrap();
    }
    // A fault in the first read of a file under the directory would show.
    let disk = FaultyDisk::new(real());
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Read) });
    let (blobs, _lock) = open(Arc::clone(&disk) as _, root.path());
    disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Unlink) });
    assert_eq!(blobs.leftovers().unwrap().len(), 10_000);
    assert_eq!(disk.injected(), 0);
}

#[test]
fn a_record_that_does_not_fit_is_junk_and_the_next_download_begins_anew() {
    let good = |root: &Path| Record::decode(&fs::read(record_of(root)).unwrap()).unwrap();
    type Harm = fn(&Path, Record);
    let put = |root: &Path, record: &Record| fs::write(record_of(root), record.encode()).unwrap();
    let harms: [(&str, Harm); 8] = [
        ("empty", |root, _| fs::write(record_of(root), b"").unwrap()),
        ("junk", |root, _| fs::write(record_of(root), [7; 500]).unwrap()),
        ("too long", |root, _| {
            fs::write(record_of(root), vec![0; RECORD_BYTES_MAX + 1]).unwrap();
        }),
        ("endless", |root, _| {
            fs::File::options()
                .write(true)
                .open(record_of(root))
                .unwrap()
                .set_len(1 << 40)
                .unwrap();
        }),
        ("a directory", |root, _| {
            fs::remove_file(record_of(root)).unwrap();
            fs::create_dir(record_of(root)).unwrap();
        }),
        ("a short file", |root, _| {
            let file = fs::File::options().write(true).open(file_of(root)).unwrap();
            file.set_len(59_999).unwrap();
        }),
        ("a long file", |root, _| {
            let file = fs::File::options().write(true).open(file_of(root)).unwrap();
            file.set_len(SIZE + 1).unwrap();
        }),
        ("another file", |root, _| {
            let bytes = fs::read(file_of(root)).unwrap();
            let other = root.join("partial/other");
            fs::write(&other, bytes).unwrap();
            fs::rename(other, file_of(root)).unwrap();
        }),
    ];
    for (name, harm) in harms {
        let root = tempfile::tempdir().unwrap();
        let (blobs, _lock) = open(real(), root.path());
        leave(&blobs).unwrap();
        let record = good(root.path());
        put(root.path(), &record);
        assert!(present(&blobs).is_some(), "the record as it was is right");
        harm(root.path(), record);
        assert_eq!(blobs.leftover(&digest()).unwrap(), Leftover::Junk, "{name}");
        assert!(blobs.adopt(&digest(), SIZE).unwrap().is_none(), "{name}");
        if name == "a directory" {
            continue;
        }
        leave(&blobs).unwrap();
        assert_eq!(assert_tells_the_truth(&blobs).len(), 2, "{name}");
        blobs.remove_leftover(&digest()).unwrap();
        assert_eq!(count(root.path()), 0, "{name}");
    }
}

#[test]
fn want_of_descriptors_condemns_nothing() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(real());
    let (blobs, _lock) = open(Arc::clone(&disk) as _, root.path());
    leave(&blobs).unwrap();
    for fault in [Fault::TooManyFiles, Fault::Denied] {
        for at in 1..=2 {
            disk.fail(Plan { at, lasting: false, fault, only: Some(Operation::Open) });
            assert!(blobs.leftover(&digest()).is_err());
        }
        disk.fail(Plan { at: 3, lasting: false, fault, only: Some(Operation::Open) });
        assert!(blobs.adopt(&digest(), SIZE).is_err());
    }
    disk.heal();
    assert_eq!(assert_tells_the_truth(&blobs).len(), 2);
}

#[test]
fn no_second_sync_is_believed_after_one_that_failed() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(real());
    let (blobs, lock) = open(Arc::clone(&disk) as _, root.path());
    let partial = blobs.create_download(&digest(), Some(SIZE)).unwrap();
    put(&blobs, &partial, 0..SIZE).unwrap();
    disk.fail(Plan { at: 1, lasting: false, fault: Fault::Io, only: Some(Operation::SyncData) });
    assert!(blobs.checkpoint(&partial, &only(0..SIZE), NOW).is_err());
    assert!(blobs.checkpoint(&partial, &only(0..SIZE), NOW).is_err());
    assert!(blobs.publish(&partial, &digest(), SIZE).is_err());
    drop((blobs, lock));
    disk.cut_power().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    assert_eq!((count(root.path()), present(&blobs)), (0, None));
}

#[test]
fn what_cannot_be_recorded_is_refused_or_left_out() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let partial = blobs.create_download(&digest(), Some(SIZE)).unwrap();
    for wrong in
        [only(0..SIZE + 1).to_vec(), only(5..5).to_vec(), vec![10..20, 0..5], vec![0..10, 9..20]]
    {
        let error = blobs.checkpoint(&partial, &wrong, NOW).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    let partial = blobs.create_download(&digest(), None).unwrap();
    assert!(!partial.can_be_continued());
    blobs.checkpoint(&partial, &only(0..10), NOW).unwrap();
    assert_eq!(count(root.path()), 1, "of unknown size there is no record");
}

/// A whole life: begun, recorded twice, found again, gone on with, published.
fn life(blobs: &Blobs) -> io::Result<()> {
    leave(blobs)?;
    let adopted = blobs.adopt(&digest(), SIZE)?.ok_or(io::ErrorKind::NotFound)?;
    put(blobs, &adopted.partial, 10_000..50_000)?;
    blobs.checkpoint(&adopted.partial, &only(0..60_000), NOW)?;
    put(blobs, &adopted.partial, 60_000..SIZE)?;
    blobs.publish(&adopted.partial, &digest(), SIZE).map(drop)
}

#[test]
fn every_operation_may_fail_with_the_power_cut_after_it() {
    let mut left = 0;
    for (lasting, renames) in [(false, 0), (false, 1), (false, 9), (true, 1)] {
        for fault in [Fault::NoSpace, Fault::Io] {
            for at in 1.. {
                let root = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(real());
                let (blobs, lock) = open(Arc::clone(&disk) as _, root.path());
                disk.fail(Plan { at, lasting, fault, only: None });
                let result = life(&blobs);
                let injected = disk.injected();
                disk.heal();
                // Before the power goes the record tells the truth, and after it.
                assert_tells_the_truth(&blobs);
                drop((blobs, lock));
                disk.cut_power_after(renames).unwrap();
                let (blobs, _lock) = open(real(), root.path());
                left += assert_tells_the_truth(&blobs).len();
                assert!(blobs.open_published(&digest()).unwrap().is_some() || result.is_err());
                blobs.remove_leftover(&digest()).unwrap();
                life(&blobs).unwrap();
                assert_eq!(count(root.path()), 0);
                if injected == 0 {
                    assert!(result.is_ok());
                    assert!(at > 30, "only {at} operations were counted");
                    break;
                }
            }
        }
    }
    assert!(left > 50, "a loss of power left only {left} parts in all");
}

#[test]
fn after_a_loss_of_power_one_of_the_records_stands() {
    for renames in 0..4 {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(real());
        let (blobs, lock) = open(Arc::clone(&disk) as _, root.path());
        leave(&blobs).unwrap();
        let partial = blobs.adopt(&digest(), SIZE).unwrap().unwrap().partial;
        put(&blobs, &partial, 10_000..50_000).unwrap();
        blobs.checkpoint(&partial, &only(0..60_000), NOW).unwrap();
        // Written after the last record, so it is not promised and not durable.
        put(&blobs, &partial, 60_000..SIZE).unwrap();
        drop((blobs, lock));
        disk.cut_power_after(renames).unwrap();
        let (blobs, _lock) = open(real(), root.path());
        let expected = match renames {
            0 => vec![],
            1 => only(0..10_000).to_vec(),
            2 => vec![0..10_000, 50_000..60_000],
            _ => only(0..60_000).to_vec(),
        };
        assert_eq!(assert_tells_the_truth(&blobs), expected);
    }
}
