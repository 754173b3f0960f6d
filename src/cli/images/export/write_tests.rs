//! Bundles by hand, written as they come, good and bad.

use super::*;

use tempfile::TempDir;
use tokio::sync::mpsc;

fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn bundle(files: &[(String, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn good() -> (Vec<u8>, [Digest; 2]) {
    let (large, odd) = (vec![7; 200_000], &b"odd"[..]);
    let digests = [Digest::sha256_of(&large), Digest::of(Algorithm::Sha512, odd)];
    let [first, second] = digests.map(|digest| path_of(&digest));
    let files = [("oci-layout".to_owned(), &b"{}"[..]), (first, &large[..]), (second, odd)];
    (bundle(&files), digests)
}

/// Writes bytes that were announced as `length` many, over whatever there is.
fn written(target: &Target, bytes: &[u8], length: usize, base: &[Digest]) -> io::Result<Written> {
    told_to(true, target, (bytes, length), base)
}

fn told_to(
    force: bool,
    target: &Target,
    (bytes, length): (&[u8], usize),
    base: &[Digest],
) -> io::Result<Written> {
    let pieces: Vec<Bytes> = bytes.chunks(70_001).map(Bytes::copy_from_slice).collect();
    let (sender, receiver) = mpsc::channel(pieces.len().max(1));
    for piece in pieces {
        sender.try_send(piece).unwrap();
    }
    drop(sender);
    let mut receipt = Receipt::default();
    for digest in base {
        receipt.insert(*digest).unwrap();
    }
    write(target, force, Feed::new(receiver, length as u64), receipt)
}

fn names(home: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(home)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every line of a file of sums is right.
fn sums_hold(home: &Path, file: &str) -> usize {
    let text = fs::read_to_string(home.join(file)).unwrap();
    for line in text.lines() {
        let (hex, name) = line.split_once("  ").unwrap();
        assert_eq!(Digest::sha256_of(&fs::read(home.join(name)).unwrap()).hex(), hex, "{name}");
    }
    text.lines().count()
}

#[test]
fn a_tar_is_what_came_with_its_sums_and_its_receipt() {
    let (home, (bytes, digests)) = (TempDir::new().unwrap(), good());
    let target = Target::new(&home.path().join("a.tar"), None).unwrap();
    let before = Digest::sha256_of(b"over there");
    assert_eq!(written(&target, &bytes, bytes.len(), &[before]).unwrap().parts, 1);
    assert_eq!(names(home.path()), ["a.tar", "a.tar.receipt", "a.tar.sha256"]);
    assert_eq!(fs::read(home.path().join("a.tar")).unwrap(), bytes);
    assert_eq!(sums_hold(home.path(), "a.tar.sha256"), 1);
    let receipt: Receipt =
        fs::read_to_string(home.path().join("a.tar.receipt")).unwrap().parse().unwrap();
    assert!(digests.iter().chain([&before]).all(|digest| receipt.contains(digest)));
    assert_eq!(receipt.digests().count(), 3);
}

#[test]
fn parts_put_together_are_the_tar_and_what_was_before_goes() {
    let (home, (bytes, _)) = (TempDir::new().unwrap(), good());
    let path = home.path().join("a.tar");
    let part = 64 * 1024;
    for stale in ["a.tar", "a.tar.009", "a.tar.002"] {
        fs::write(home.path().join(stale), "an earlier export").unwrap();
    }
    let target = Target::new(&path, Some(part)).unwrap();
    let parts = written(&target, &bytes, bytes.len(), &[]).unwrap().parts;
    assert_eq!(parts, bytes.len().div_ceil(65_536));
    let mut whole = Vec::new();
    for number in 1..=parts {
        let some = fs::read(home.path().join(format!("a.tar.{number:03}"))).unwrap();
        assert!(some.len() == 65_536 || number == parts);
        whole.extend(some);
    }
    assert_eq!(whole, bytes);
    assert_eq!(names(home.path()).len(), parts + 2, "{:?}", names(home.path()));
    assert_eq!(sums_hold(home.path(), "a.tar.sha256"), parts);
}

#[test]
fn a_directory_is_a_layout_and_replaces_one() {
    let (home, (bytes, digests)) = (TempDir::new().unwrap(), good());
    let target = Target::new(&home.path().join("layout"), None).unwrap();
    fs::create_dir_all(home.path().join("layout/blobs/sha256")).unwrap();
    fs::write(home.path().join("layout/oci-layout"), "old").unwrap();
    written(&target, &bytes, bytes.len(), &[]).unwrap();
    assert_eq!(names(home.path()), ["layout", "layout.receipt", "layout.sha256"]);
    assert_eq!(fs::read(home.path().join("layout/oci-layout")).unwrap(), b"{}");
    for digest in digests {
        let content = fs::read(home.path().join("layout").join(path_of(&digest))).unwrap();
        assert_eq!(Digest::of(digest.algorithm(), &content), digest);
    }
    assert_eq!(sums_hold(home.path(), "layout.sha256"), 3);
}

/// Every file below a directory with what is in it.
fn files(home: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![home.to_owned()]);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Somebody made a directory there after it was looked at.
#[test]
fn a_name_that_cannot_be_given_takes_the_others_back() {
    let (bytes, _) = good();
    for (split, in_the_way) in [
        (Some(64 * 1024), "a.tar.001"),
        (Some(64 * 1024), "a.tar.003"),
        (Some(64 * 1024), "a.tar.receipt"),
        (Some(64 * 1024), "a.tar.sha256"),
        (None, "a.tar.receipt"),
        (None, "a.tar.sha256"),
    ] {
        for earlier in [&[][..], &["a.tar", "a.tar.001", "a.tar.002", "a.tar.007", "a.tar.sha256"]]
        {
            let home = TempDir::new().unwrap();
            fs::create_dir(home.path().join(in_the_way)).unwrap();
            for name in earlier.iter().filter(|name| **name != in_the_way) {
                fs::write(home.path().join(name), format!("the earlier {name}")).unwrap();
            }
            let before = files(home.path());
            let target = Target::new(&home.path().join("a.tar"), split).unwrap();
            let error = written(&target, &bytes, bytes.len(), &[]).unwrap_err().to_string();
            assert!(error.contains(in_the_way), "{error}");
            assert_eq!(files(home.path()), before, "{in_the_way}");
        }
    }
}

#[test]
fn a_layout_that_cannot_be_whole_leaves_the_earlier_one() {
    let (bytes, _) = good();
    for earlier in ["layout", "layout/blobs"] {
        for in_the_way in ["layout.receipt", "layout.sha256"] {
            let home = TempDir::new().unwrap();
            fs::create_dir_all(home.path().join(earlier)).unwrap();
            if earlier != "layout" {
                fs::write(home.path().join("layout/oci-layout"), "{}").unwrap();
            }
            fs::create_dir(home.path().join(in_the_way)).unwrap();
            let before = files(home.path());
            let target = Target::new(&home.path().join("layout"), None).unwrap();
            let error = written(&target, &bytes, bytes.len(), &[]).unwrap_err().to_string();
            assert!(error.contains(in_the_way), "{error}");
            assert_eq!(files(home.path()), before, "{in_the_way}");
        }
    }
}

/// The way was free when it was looked at, and that may be an hour ago.
#[test]
fn what_came_meanwhile_stays() {
    let (bytes, _) = good();
    let bytes = (&bytes[..], bytes.len());
    for (name, came, force) in [
        ("a.tar", "a.tar", false),
        ("a.tar", "a.tar.sha256", false),
        ("layout", "layout.receipt", false),
        ("layout", "layout/oci-layout", false),
        ("layout", "layout/diary", false),
        ("layout", "layout/diary", true),
    ] {
        let home = TempDir::new().unwrap();
        let path = home.path().join(came);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "another's").unwrap();
        let before = files(home.path());
        let target = Target::new(&home.path().join(name), None).unwrap();
        assert!(told_to(force, &target, bytes, &[]).is_err(), "{name}: {came}");
        assert_eq!(files(home.path()), before, "{name}: {came}");
    }
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join("layout")).unwrap();
    let target = Target::new(&home.path().join("layout"), None).unwrap();
    told_to(false, &target, bytes, &[]).expect("an empty directory is in nobody's way");
    assert_eq!(names(home.path()), ["layout", "layout.receipt", "layout.sha256"]);
}

#[test]
fn what_is_no_bundle_leaves_nothing() {
    let (bytes, _) = good();
    let digest = Digest::sha256_of(b"right");
    let strange = |path: &str| bundle(&[(path.to_owned(), b"x")]);
    let mut more = bytes.clone();
    more.extend([0; 512]);
    for (what, bytes, length) in [
        ("nothing", Vec::new(), 10),
        ("cut", bytes[..100_000].to_vec(), bytes.len()),
        ("cut at the end", bytes[..bytes.len() - 1024].to_vec(), bytes.len()),
        ("more than announced", more, bytes.len()),
        ("no tar", vec![b'x'; 4096], 4096),
        ("a strange name", strange("etc/passwd"), 2048),
        ("a strange blob", strange("blobs/sha256/abc"), 2048),
        ("no plain path", strange("blobs/sha256"), 2048),
    ] {
        for name in ["a.tar", "layout"] {
            let home = TempDir::new().unwrap();
            let target = Target::new(&home.path().join(name), None).unwrap();
            assert!(written(&target, &bytes, length, &[]).is_err(), "{what} as {name}");
            assert_eq!(names(home.path()), [""; 0], "{what} as {name}");
        }
    }
    let home = TempDir::new().unwrap();
    let target = Target::new(&home.path().join("layout"), None).unwrap();
    let wrong = bundle(&[(path_of(&digest), b"wrong")]);
    let error = written(&target, &wrong, wrong.len(), &[]).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(names(home.path()), [""; 0]);
}

#[test]
fn no_name_leads_out_of_the_directory() {
    for path in ["../x", "/etc/passwd", "blobs/../../x", "blobs/sha256/../x", ""] {
        assert!(member(Path::new(path)).is_err(), "{path}");
    }
}
