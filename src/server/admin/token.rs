//! The token of the TCP listener: a file in the data directory that is the owner's alone.
//!
//! What must hold: a file that others may read is no secret and is refused, not mended; a token that is made is whole on the disk before
//! anybody can read it; the text itself is in memory only while it is read.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::gate::Token;

/// The file in the data directory.
pub const TOKEN_FILE: &str = "admin-token";
/// Random bytes of a token that is made here.
const TOKEN_BYTES: usize = 32;
/// A token of the operator's own has at least so many characters, and at most so many.
const TOKEN_LENGTH_MIN: usize = 24;
const TOKEN_LENGTH_MAX: usize = 1024;

/// Reads the token in `directory`, and makes one if there is none. The caller holds the directory's lock. Blocks for a moment.
pub(super) fn read_or_make(directory: &Path) -> io::Result<Token> {
    let path = directory.join(TOKEN_FILE);
    match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(directory, &path)?;
            read(&path)
        }
        read => read,
    }
}

fn read(path: &Path) -> io::Result<Token> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    // Who can put a link here can put a file here, but a device or a pipe could keep us waiting.
    let file = OpenOptions::new().read(true).custom_flags(nonblocking()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(invalid("it is no regular file".to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(invalid(format!(
            "others than its owner may use it (mode {mode:o}); chmod it to 600"
        )));
    }
    let mut text = Zeroizing::new(String::new());
    let limit = u64::try_from(TOKEN_LENGTH_MAX).unwrap_or(u64::MAX).saturating_add(2);
    file.take(limit).read_to_string(&mut text)?;
    let token = text.trim_end_matches(['\r', '\n']);
    let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain || !(TOKEN_LENGTH_MIN..=TOKEN_LENGTH_MAX).contains(&token.len()) {
        return Err(invalid(format!(
            "it holds no token: one line of {TOKEN_LENGTH_MIN} to {TOKEN_LENGTH_MAX} printable characters without spaces; remove the file, and a new one is made at the next start"
        )));
    }
    Ok(Token::new(token))
}

fn nonblocking() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default()
}

fn make(directory: &Path, path: &Path) -> io::Result<()> {
    let mut secret = Zeroizing::new(String::with_capacity(TOKEN_BYTES * 2 + 1));
    for byte in Zeroizing::new(rand::random::<[u8; TOKEN_BYTES]>()).iter() {
        secret.push_str(&format!("{byte:02x}"));
    }
    secret.push('\n');
    let partial = directory.join(format!("{TOKEN_FILE}.new"));
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;

    fn write(dir: &TempDir, text: &str, mode: u32) {
        let path = dir.path().join(TOKEN_FILE);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_token_is_made_once_and_is_the_owners_alone() {
        let dir = TempDir::new().unwrap();
        let token = read_or_make(dir.path()).unwrap();
        let path = dir.path().join(TOKEN_FILE);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), TOKEN_BYTES * 2 + 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(token, Token::new(text.trim_end()));
        assert_eq!(read_or_make(dir.path()).unwrap(), token, "the next start has the same");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
        let other = TempDir::new().unwrap();
        assert_ne!(read_or_make(other.path()).unwrap(), token);
    }

    #[test]
    fn half_a_token_of_a_crash_is_replaced() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("admin-token.new"), "half").unwrap();
        read_or_make(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_others_may_read_is_refused() {
        let dir = TempDir::new().unwrap();
        let secret = "an-operators-own-token-0123456789";
        for mode in [0o640, 0o604, 0o620, 0o644, 0o660] {
            write(&dir, secret, mode);
            let error = read_or_make(dir.path()).unwrap_err().to_string();
            assert!(error.contains("600") && !error.contains(secret), "{mode:o}: {error}");
        }
        write(&dir, &format!("{secret}\n"), 0o600);
        assert_eq!(read_or_make(dir.path()).unwrap(), Token::new(secret));
        write(&dir, secret, 0o400);
        assert_eq!(read_or_make(dir.path()).unwrap(), Token::new(secret));
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_replaced() {
        let dir = TempDir::new().unwrap();
        let long = "x".repeat(TOKEN_LENGTH_MAX + 1);
        for text in [
            "",
            "\n",
            "short",
            "two words are not one token",
            "line one-0123456789\nline two-0123456789",
            &long,
        ] {
            write(&dir, text, 0o600);
            let error = read_or_make(dir.path()).unwrap_err().to_string();
            assert!(error.contains("token"), "{text}: {error}");
            assert_eq!(fs::read_to_string(dir.path().join(TOKEN_FILE)).unwrap(), text);
        }
    }
}
