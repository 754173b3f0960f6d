//! The write protocol and the opening of a directory, on a real disk and on one that fails.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::testing::{Fault, FaultyDisk, Operation, Plan};
use super::*;
use crate::oci::{Algorithm, Digest};

const CONTENT: &[u8] = b"a layer of an image";

fn real() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

fn open(disk: Arc<dyn Disk>, root: &Path) -> (Blobs, DirectoryLock) {
    Blobs::open(disk, root).unwrap()
}

fn store(blobs: &Blobs, content: &[u8]) -> io::Result<Digest> {
    let digest = Digest::sha256_of(content);
    let size = content.len() as u64;
    let partial = blobs.create_download(&digest, Some(size))?;
    let written =
        blobs.write_at(&partial, 0, content).and_then(|()| blobs.publish(&partial, &digest, size));
    if written.is_err() {
        blobs.discard(&partial);
    }
    written.map(|_stat| digest)
}

fn read(blobs: &Blobs, digest: &Digest) -> Option<Vec<u8>> {
    let opened = blobs.open_published(digest).unwrap()?;
    Some(blobs.read(&opened).unwrap())
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn published_content_is_found_under_the_layout_of_an_oci_image() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let digest = store(&blobs, CONTENT).unwrap();
    assert_eq!(read(&blobs, &digest).unwrap(), CONTENT);
    let path = root.path().join("blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(path).unwrap(), CONTENT);
    assert!(names(&root.path().join("partial")).is_empty());

    let long = Digest::of(Algorithm::Sha512, CONTENT);
    let partial = blobs.create_scratch(CONTENT.len() as u64).unwrap();
    blobs.write_at(&partial, 0, CONTENT).unwrap();
    blobs.publish(&partial, &long, CONTENT.len() as u64).unwrap();
    assert_eq!(names(&root.path().join("blobs/sha512")), [long.hex()]);
}

#[test]
fn reserving_room_leaves_the_length_as_the_progress() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let digest = Digest::sha256_of(CONTENT);
    let partial = blobs.create_download(&digest, Some(1 << 20)).unwrap();
    assert_eq!(partial.file().metadata().unwrap().len(), 0);
    blobs.write_at(&partial, 0, CONTENT).unwrap();
    assert_eq!(partial.file().metadata().unwrap().len(), CONTENT.len() as u64);
}

#[test]
fn a_file_of_another_length_is_not_published() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let digest = Digest::sha256_of(CONTENT);
    let partial = blobs.create_download(&digest, None).unwrap();
    blobs.write_at(&partial, 0, &CONTENT[1..]).unwrap();
    let error = blobs.publish(&partial, &digest, CONTENT.len() as u64).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(blobs.open_published(&digest).unwrap().is_none());
}

#[test]
fn publishing_again_replaces_what_stands_there() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let digest = Digest::sha256_of(CONTENT);
    let path = root.path().join("blobs/sha256").join(digest.hex());
    fs::write(&path, b"damage").unwrap();
    store(&blobs, CONTENT).unwrap();
    assert_eq!(fs::read(path).unwrap(), CONTENT);
}

#[test]
fn damage_goes_to_quarantine_and_a_second_time_is_no_error() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let digest = store(&blobs, CONTENT).unwrap();
    blobs.quarantine(&digest).unwrap();
    blobs.quarantine(&digest).unwrap();
    assert!(blobs.open_published(&digest).unwrap().is_none());
    let kept = root.path().join("quarantine").join(format!("sha256-{}", digest.hex()));
    assert_eq!(fs::read(kept).unwrap(), CONTENT);
}

#[test]
fn a_start_removes_files_without_a_record_and_keeps_content() {
    let root = tempfile::tempdir().unwrap();
    let digest = {
        let (blobs, _lock) = open(real(), root.path());
        let other = Digest::sha256_of(b"never finished");
        let partial = blobs.create_download(&other, Some(99)).unwrap();
        blobs.write_at(&partial, 0, b"never").unwrap();
        store(&blobs, CONTENT).unwrap()
    };
    assert_eq!(names(&root.path().join("partial")).len(), 1);
    let (blobs, _lock) = open(real(), root.path());
    assert!(names(&root.path().join("partial")).is_empty());
    assert_eq!(read(&blobs, &digest).unwrap(), CONTENT);
}

#[test]
fn a_leftover_in_the_way_of_a_download_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, _lock) = open(real(), root.path());
    let digest = Digest::sha256_of(CONTENT);
    let leftover = blobs.create_download(&digest, None).unwrap();
    blobs.write_at(&leftover, 0, &[7; 999]).unwrap();
    store(&blobs, CONTENT).unwrap();
    assert_eq!(read(&blobs, &digest).unwrap(), CONTENT);
}

#[test]
fn a_second_opener_learns_the_pid() {
    let root = tempfile::tempdir().unwrap();
    let (_blobs, lock) = open(real(), root.path());
    let error = Blobs::open(real(), root.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::Held { .. }), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    assert!(!text.contains('\n'));
    drop(lock);
    Blobs::open(real(), root.path()).unwrap();
}

#[test]
fn a_directory_of_others_is_refused_untouched() {
    let cases: [&[&str]; 3] = [&["docker"], &["000003.log", "LOCK"], &["blobs", "oci-layout"]];
    for case in cases {
        let root = tempfile::tempdir().unwrap();
        for name in case {
            fs::write(root.path().join(name), b"").unwrap();
        }
        let error = Blobs::open(real(), root.path()).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        assert_eq!(names(root.path()), case);
    }
}

#[test]
fn a_start_that_was_cut_short_leaves_a_directory_that_is_ours() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    fs::create_dir(root.path().join("blobs")).unwrap();
    drop(open(real(), root.path()));
    // Without the database, but with our mark in the lock file, other files do no harm.
    fs::write(root.path().join("notes.txt"), b"").unwrap();
    drop(open(real(), root.path()));
}

#[test]
fn a_network_file_system_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(real());
    disk.set_file_system(FileSystem::from_magic(0x6969));
    let error = Blobs::open(disk, root.path()).unwrap_err();
    assert!(error.to_string().contains("network file system (nfs)"), "{error}");
}

#[test]
fn a_disk_mounted_on_a_part_of_the_directory_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(open(real(), root.path()));
    let part = root.path().join("blobs/sha256");
    let disk = FaultyDisk::new(real());
    disk.set_elsewhere(real().stat_path(&part).unwrap().inode);
    let error = Blobs::open(disk, root.path()).unwrap_err();
    assert!(matches!(error, OpenError::Split { .. }), "{error}");
    assert!(error.to_string().contains(part.to_str().unwrap()));
}

#[test]
fn a_directory_that_may_not_be_written_names_uid_and_cure() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(real());
    disk.fail(Plan { at: 1, lasting: false, fault: Fault::Denied, only: Some(Operation::Lock) });
    let text = Blobs::open(disk, root.path()).unwrap_err().to_string();
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let cure = format!("run: chown -R {uid}:{gid} {}", root.path().display());
    assert!(text.contains(&format!("uid {uid} ")), "{text}");
    assert!(text.ends_with(&cure), "{text}");
}

#[test]
fn every_operation_of_opening_may_fail_and_the_next_opening_works() {
    for at in 1.. {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(real());
        disk.fail(Plan { at, lasting: false, fault: Fault::Io, only: None });
        let result = Blobs::open(Arc::clone(&disk) as Arc<dyn Disk>, root.path());
        if disk.injected() == 0 {
            assert!(result.is_ok());
            assert!(at > 8, "only {at} operations were counted");
            return;
        }
        // A fault while reading the lock file is no fault of the opening, any other is.
        drop(result);
        drop(open(real(), root.path()));
    }
}

/// The invariant of the room: what stands under `blobs/` is what its name says, also after a loss of power.
fn assert_names_tell_the_truth(root: &Path) {
    let directory = root.join("blobs/sha256");
    for name in names(&directory) {
        let content = fs::read(directory.join(&name)).unwrap();
        assert_eq!(Digest::sha256_of(&content).hex(), name);
    }
}

#[test]
fn every_operation_of_publishing_may_fail_with_the_power_cut_after_it() {
    for lasting in [false, true] {
        for fault in [Fault::NoSpace, Fault::Io] {
            for at in 1.. {
                let root = tempfile::tempdir().unwrap();
                let disk = FaultyDisk::new(real());
                let (blobs, lock) = open(Arc::clone(&disk) as Arc<dyn Disk>, root.path());
                disk.fail(Plan { at, lasting, fault, only: None });
                let result = store(&blobs, CONTENT);
                let injected = disk.injected();
                disk.heal();
                drop((blobs, lock));
                disk.cut_power().unwrap();
                assert_names_tell_the_truth(root.path());
                let (blobs, _lock) = open(real(), root.path());
                if let Ok(digest) = &result {
                    assert_eq!(read(&blobs, digest).unwrap(), CONTENT);
                }
                let digest = store(&blobs, CONTENT).unwrap();
                assert_eq!(read(&blobs, &digest).unwrap(), CONTENT);
                assert!(names(&root.path().join("partial")).is_empty());
                if injected == 0 {
                    assert!(result.is_ok());
                    assert!(at > 6, "only {at} operations were counted");
                    break;
                }
            }
        }
    }
}

#[test]
fn the_power_cut_takes_what_was_not_synced() {
    let root = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(real());
    let path = root.path().join("file");
    let file = disk.create(&path).unwrap();
    disk.write_at(&file, 0, CONTENT).unwrap();
    disk.cut_power().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");

    disk.write_at(&file, 0, CONTENT).unwrap();
    disk.sync_data(&file).unwrap();
    disk.rename(&path, &root.path().join("other")).unwrap();
    disk.cut_power().unwrap();
    assert_eq!(names(root.path()), ["file"]);

    disk.rename(&path, &root.path().join("other")).unwrap();
    disk.sync_dir(root.path()).unwrap();
    disk.cut_power().unwrap();
    assert_eq!(fs::read(root.path().join("other")).unwrap(), CONTENT);
}
