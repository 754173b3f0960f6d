//! `roadstead lock`: which digests images have now, as a lockfile.
//!
//! A file is written whole or not at all, and only where nothing or a lockfile was.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;

use super::admin::{Ask, Client, Trouble};
use super::arguments;
use super::command::{FAILED, WRONG_USAGE, complain, print};
use super::reach::{Failure, with_client};
use super::staged::write;
use super::words::count;
use crate::app::{Locked, Opening};
use crate::oci::{LOCKFILE_BYTES_MAX, LockedImage, Lockfile};

/// Images of one request: the API takes no more than twice as many.
const IMAGES_PER_REQUEST: usize = 32;
/// Bytes of their names in one request, of which encoding may make three times as many: a request line has 16 KiB.
const NAME_BYTES_PER_REQUEST: usize = 4096;

#[derive(Deserialize)]
struct Answer {
    images: Vec<Locked>,
}

pub(super) fn lock(arguments: &arguments::Lock) -> ExitCode {
    // The file is read before anything is asked: what is no lockfile is left alone.
    let before = match arguments.output.as_deref().map(read).transpose() {
        Ok(before) => before.flatten(),
        Err(line) => {
            complain(&line);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let mut images = arguments.images.clone();
    if images.is_empty() {
        match &before {
            Some(lockfile) if !lockfile.is_empty() => images.extend(lockfile.images().map(asked)),
            _ => {
                complain("no image to lock: name some, or a file that has some");
                return ExitCode::from(WRONG_USAGE);
            }
        }
    }
    with_client(&arguments.store, Opening::AsItIs, async |client| {
        let locked = ask(client, &images).await?;
        let (lockfile, lines) = gathered(&locked)?;
        match &arguments.output {
            Some(path) => {
                let text = lockfile.to_string();
                write(path, &text).map_err(|error| told(path, &error.to_string()))?;
                let images =
                    count(u64::try_from(lockfile.images().count()).unwrap_or(u64::MAX), "image");
                let path = path.display();
                complain(&format!("{images} in {path}"));
            }
            None if !arguments.store.json => print(&lockfile.to_string())?,
            None => {}
        }
        if arguments.store.json {
            print(&lines)?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// How an image of a lockfile is asked for again: what has no tag stays what it is.
fn asked(image: &LockedImage) -> String {
    match image.name.tag {
        Some(_) => image.name.to_string(),
        None => format!("{}@{}", image.name, image.digest),
    }
}

async fn ask(client: &Client<'_>, images: &[String]) -> Result<Vec<Locked>, Trouble> {
    let mut locked = Vec::with_capacity(images.len());
    let mut rest = images;
    while !rest.is_empty() {
        let (some, others) = rest.split_at(fitting(rest));
        rest = others;
        let ask = some.iter().fold(Ask::get("/locked"), |ask, image| ask.with("image", image));
        let (_, answer): (_, Answer) = client.ask(ask).await?;
        locked.extend(answer.images);
    }
    Ok(locked)
}

/// How many images go into one request: at least one.
pub(super) fn fitting(images: &[String]) -> usize {
    let mut bytes = 0;
    let fits = images.iter().take(IMAGES_PER_REQUEST).take_while(|image| {
        bytes += image.len();
        bytes <= NAME_BYTES_PER_REQUEST
    });
    fits.count().max(1)
}

/// The lockfile, and the same as JSON lines.
fn gathered(locked: &[Locked]) -> Result<(Lockfile, String), Failure> {
    let mut lockfile = Lockfile::default();
    let mut lines = String::new();
    for Locked { image, digest, at } in locked {
        let strange = || Failure::Trouble(Trouble::Strange);
        let name = image.parse().map_err(|_invalid| strange())?;
        let digest = digest.parse().map_err(|_invalid| strange())?;
        let inserted = lockfile.insert(LockedImage { name, digest, at: *at });
        inserted.map_err(|full| Failure::Told { code: FAILED, line: full.to_string() })?;
    }
    for image in lockfile.images() {
        let (image, digest, at) = (image.name.to_string(), image.digest.to_string(), image.at);
        let line = serde_json::to_string(&Locked { image, digest, at });
        lines.push_str(&line.expect("it is plain data with text keys"));
        lines.push('\n');
    }
    Ok((lockfile, lines))
}

fn told(path: &Path, reason: &str) -> Failure {
    Failure::Told { code: FAILED, line: format!("{}: {reason}", path.display()) }
}

/// The lockfile that is there; `None` if nothing is, or what is no file (a pipe, a terminal).
fn read(path: &Path) -> Result<Option<Lockfile>, String> {
    let wrong = |reason: String| format!("{}: {reason}", path.display());
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Err(wrong("it is a directory".to_owned())),
        Ok(metadata) if !metadata.is_file() || metadata.len() == 0 => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    }
    let mut text = Vec::new();
    let limit = u64::try_from(LOCKFILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text));
    read.map_err(|error| wrong(error.to_string()))?;
    let lockfile = String::from_utf8_lossy(&text).parse::<Lockfile>();
    lockfile.map(Some).map_err(|error| wrong(format!("{error}; the file was left alone")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const TEXT: &str = "roadstead-lock 1\n";

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode_and_its_links() {
        let home = tempfile::TempDir::new().unwrap();
        let file = home.path().join("images.lock");
        write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let link = home.path().join("link");
        symlink("images.lock", &link).unwrap();
        write(&link, TEXT).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), TEXT);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(home.path()), ["images.lock", "link"], "nothing is left over");
        assert!(write(&home.path().join("no/images.lock"), TEXT).is_err());
        assert!(write(home.path(), TEXT).is_err());
        assert_eq!(names(home.path()), ["images.lock", "link"]);
    }

    #[test]
    fn what_is_no_lockfile_is_left_alone() {
        let home = tempfile::TempDir::new().unwrap();
        let file = home.path().join("file");
        assert_eq!(read(&file), Ok(None));
        fs::write(&file, "").unwrap();
        assert_eq!(read(&file), Ok(None), "an empty file is none yet");
        fs::write(&file, TEXT).unwrap();
        assert!(read(&file).unwrap().is_some());
        for text in [&b"holiday"[..], b"\xff\xfe", b"roadstead-lock 1\nx\n"] {
            fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err();
            assert!(error.contains("line ") && error.contains("left alone"), "{error}");
        }
        assert!(read(home.path()).unwrap_err().contains("directory"));
        assert!(read(Path::new("/dev/null")).unwrap().is_none());
    }

    #[test]
    fn an_answer_becomes_a_lockfile() {
        let digest = crate::oci::Digest::sha256_of(b"x").to_string();
        let at = crate::clock::Timestamp::default();
        let locked = |image: &str| Locked { image: image.to_owned(), digest: digest.clone(), at };
        let (lockfile, lines) = gathered(&[locked("b.c/d:1"), locked("a.b/c")]).unwrap();
        let again: Vec<String> = lockfile.images().map(asked).collect();
        assert_eq!(again, [format!("a.b/c@{digest}"), "b.c/d:1".to_owned()]);
        assert_eq!(lines.lines().count(), 2);
        assert!(gathered(&[locked("no name")]).is_err());
    }

    #[test]
    fn requests_stay_short() {
        let images = |count: usize, length: usize| vec!["x".repeat(length); count];
        assert_eq!(fitting(&images(100, 20)), IMAGES_PER_REQUEST);
        assert_eq!(fitting(&images(3, 20)), 3);
        assert_eq!(fitting(&images(100, 1000)), 4);
        assert_eq!(fitting(&images(2, 10_000)), 1);
    }
}
