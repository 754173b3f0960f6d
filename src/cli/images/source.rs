//! What is to be imported: a file, the parts of one, a directory, standard input, or the storage of another registry.
//!
//! What must hold: nothing is sent of which this side knows that it is wrong to the end: the last bytes of a file that a `.sha256` beside it
//! names leave only when all of it was right, and the other side takes nothing in before it has all.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::cli::upload::{PIECE_BYTES, Pieces, Upload};
use crate::oci::{Algorithm, Digest, DigestHasher};

/// What stands before the folder of another registry.
const REGISTRY: &str = "registry:";
/// Ends of the names of parts: `.001` and so on.
const PART_DIGITS: usize = 3;
const PARTS_MAX: u32 = 999;
/// A list of checksums has a line for each part.
const SUMS_BYTES_MAX: u64 = 1024 * 1024;
/// Longest part of a set's name that is taken from a file's.
const STEM_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Files {
        /// In order.
        parts: Vec<Part>,
        /// `None`: one of them is no plain file.
        size: Option<u64>,
    },
    Directory(PathBuf),
    Input,
    /// The storage of registry:2 or 3.
    Registry(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    path: PathBuf,
    /// What a list beside it says.
    sum: Option<Digest>,
}

impl Source {
    /// Finds out what an argument means.
    pub(super) fn find(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Input);
        }
        if let Some(folder) = text.strip_prefix(REGISTRY) {
            let folder = fs::canonicalize(folder).map_err(|error| format!("{folder}: {error}"))?;
            return Ok(Self::Registry(folder));
        }
        let path = PathBuf::from(text);
        let first = numbered(&path, 1);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(Self::Directory(path)),
            Ok(_) => match whole_of(&path) {
                Some(whole) => Self::files(&whole, parts_of(&whole)),
                None => Self::files(&path, vec![path.clone()]),
            },
            Err(_) if first.exists() => Self::files(&path, parts_of(&path)),
            Err(error) => Err(format!("{text}: {error}")),
        }
    }

    /// `whole`: the name before it was split.
    fn files(whole: &Path, paths: Vec<PathBuf>) -> Result<Self, String> {
        let sums = sums(&with_end(whole, ".sha256"))?;
        let mut size = Some(0_u64);
        let mut parts = Vec::with_capacity(paths.len());
        let mut named = sums.clone().unwrap_or_default();
        for path in paths {
            let found =
                fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            size = size.filter(|_| found.is_file()).map(|sum| sum.saturating_add(found.len()));
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let sum = named.remove(&name.unwrap_or_default());
            if sums.is_some() && sum.is_none() {
                let (path, sums) = (path.display(), with_end(whole, ".sha256"));
                return Err(format!(
                    "{path} has no line in {}; remove that file, or fetch both again",
                    sums.display()
                ));
            }
            parts.push(Part { path, sum });
        }
        match named.keys().next() {
            Some(missing) => {
                Err(format!("{missing} is missing beside the other parts of {}", whole.display()))
            }
            None => Ok(Self::Files { parts, size }),
        }
    }

    /// A word for a set's name.
    pub(super) fn stem(&self) -> String {
        let path = match self {
            Self::Files { parts, .. } => parts.first().map(|part| part.path.as_path()),
            Self::Directory(path) | Self::Registry(path) => Some(path.as_path()),
            Self::Input => None,
        };
        let name =
            path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let name = name.split(".tar").next().unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' };
        let name: String = name.chars().map(plain).take(STEM_MAX).collect();
        let name = name.trim_matches(['-', '.', '_']);
        if name.is_empty() { "import".to_owned() } else { name.to_owned() }
    }

    /// The bytes as the body of a request; `None` for what the server reads itself.
    pub(super) fn upload(&self) -> Option<io::Result<Upload>> {
        Some(match self.clone() {
            Self::Files { parts, size } => {
                Upload::new(size, move |pieces| parts.iter().try_for_each(|part| part.read(pieces)))
            }
            Self::Directory(path) => Upload::new(None, move |pieces| pack(&path, pieces)),
            Self::Input => Upload::new(None, |pieces| {
                pour(&mut io::stdin().lock(), pieces)
                    .map_err(|error| format!("standard input: {error}"))
            }),
            Self::Registry(_) => return None,
        })
    }
}

impl Part {
    fn read(&self, pieces: &mut Pieces) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {error}", self.path.display());
        let mut file = File::open(&self.path).map_err(failed)?;
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        // The last piece is held back until the sum is right.
        let (mut held, mut buffer) = (Vec::new(), vec![0; PIECE_BYTES]);
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            if read == 0 {
                break;
            }
            pieces.write_all(&held).map_err(failed)?;
            if self.sum.is_some() {
                hasher.update(&buffer[..read]);
            }
            held.clear();
            held.extend_from_slice(&buffer[..read]);
        }
        let found = hasher.finish();
        if let Some(sum) = self.sum.filter(|sum| *sum != found) {
            let path = self.path.display();
            return Err(format!(
                "{path} is damaged: its sum is {}, and the list beside it says {}; fetch it again",
                found.hex(),
                sum.hex()
            ));
        }
        pieces.write_all(&held).map_err(failed)
    }
}

/// Hands on what comes when it comes: whoever writes may be slow.
fn pour(from: &mut impl Read, pieces: &mut Pieces) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                pieces.write_all(&buffer[..read])?;
                pieces.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A directory as a tar.
fn pack(path: &Path, pieces: &mut Pieces) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let mut builder = tar::Builder::new(&mut *pieces);
    // A link is sent as one; what it names outside is nobody's business.
    builder.follow_symlinks(false);
    builder.mode(tar::HeaderMode::Deterministic);
    builder.append_dir_all(".", path).map_err(failed)?;
    builder.finish().map_err(failed)
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn numbered(whole: &Path, number: u32) -> PathBuf {
    with_end(whole, &format!(".{number:0PART_DIGITS$}"))
}

/// The name before it was split, if this is a part.
fn whole_of(part: &Path) -> Option<PathBuf> {
    let end = part.extension()?.to_str()?;
    let is_number = end.len() == PART_DIGITS && end.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| part.with_extension(""))
}

fn parts_of(whole: &Path) -> Vec<PathBuf> {
    let paths = (1..=PARTS_MAX).map(|number| numbered(whole, number));
    paths.take_while(|path| path.exists()).collect()
}

/// Reads what `sha256sum` writes: a sum, two characters, a name. `None`: there is no such file.
fn sums(path: &Path) -> Result<Option<BTreeMap<String, Digest>>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut text = String::new();
    file.take(SUMS_BYTES_MAX).read_to_string(&mut text).map_err(|error| failed(&error))?;
    let mut sums = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let read = || {
            let (sum, name) = line.split_once(' ')?;
            let name = name.strip_prefix([' ', '*'])?;
            let name = Path::new(name).file_name()?.to_str()?;
            Some((name.to_owned(), Digest::from_parts("sha256", sum).ok()?))
        };
        let (name, sum) = read().ok_or_else(|| {
            failed(&format_args!("line {}: want a sha256 sum and a name", number + 1))
        })?;
        sums.insert(name, sum);
    }
    Ok(Some(sums))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_order_with_their_sums_and_a_missing_one_is_named() {
        let home = tempfile::TempDir::new().unwrap();
        let whole = home.path().join("b.tar");
        let mut lines = String::new();
        for (number, text) in ["one", "two", "three"].iter().enumerate() {
            let path = numbered(&whole, u32::try_from(number).unwrap() + 1);
            fs::write(&path, text).unwrap();
            let sum = Digest::sha256_of(text.as_bytes()).hex();
            lines.push_str(&format!("{sum}  b.tar.{:03}\n", number + 1));
        }
        fs::write(with_end(&whole, ".sha256"), &lines).unwrap();
        for named in ["b.tar", "b.tar.001", "b.tar.002"] {
            let source = Source::find(home.path().join(named).to_str().unwrap()).unwrap();
            let Source::Files { parts, size } = &source else { panic!("{source:?}") };
            assert_eq!((parts.len(), *size), (3, Some(11)), "{named}");
            assert!(parts.iter().all(|part| part.sum.is_some()));
            assert_eq!(source.stem(), "b");
        }
        fs::remove_file(numbered(&whole, 3)).unwrap();
        let error = Source::find(whole.to_str().unwrap()).unwrap_err();
        assert!(error.contains("b.tar.003 is missing"), "{error}");
        fs::write(with_end(&whole, ".sha256"), "zz  b.tar.001\n").unwrap();
        let error = Source::find(whole.to_str().unwrap()).unwrap_err();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn names_of_sets_come_from_names_of_files() {
        let of = |name: &str| Source::Directory(name.into()).stem();
        assert_eq!(of("/x/café images.tar.gz"), "caf--images");
        assert_eq!(of("/x/..."), "import");
        assert_eq!(Source::Input.stem(), "import");
    }
}
