//! Our credential for one upstream: where it comes from, and its fingerprint.
//!
//! What must hold: files are looked at before every use and read again when they changed, off the runtime's workers; a file that
//! cannot be used is [`Error::Credential`], never silent anonymity; nothing here can be printed. The fingerprint goes into the store
//! beside proofs of membership, so it is stretched: who reads the store cannot try passwords cheaply.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::docker_config::{self, Login, RegistryHosts};
use super::error::Error;
use super::settings::{CredentialSource, Secret};
use crate::oci::{Digest, RepositoryName};

/// Largest file with a password or with docker's config.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Rounds of sha256 in a fingerprint: a few milliseconds, once per change of the credential.
const FINGERPRINT_ROUNDS: usize = 10_000;
const FINGERPRINT_BYTES: usize = 16;

pub(super) type Fingerprint = [u8; FINGERPRINT_BYTES];

/// With what we ask for one repository.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    /// `None`: anonymous.
    pub(super) login: Option<Login>,
    pub(super) fingerprint: Option<Fingerprint>,
}

/// The credentials of one upstream.
#[derive(Debug)]
pub(super) struct Credentials {
    source: CredentialSource,
    hosts: RegistryHosts,
    loaded: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// The state of the file when it was read; `None` if there was none.
    stamp: Option<Stamp>,
    /// The most specific namespace first.
    logins: Result<Vec<(String, Arc<Credential>)>, Arc<str>>,
}

/// Tells a changed file: a replaced one has another inode, an edited one another time or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Credential {
    pub(super) fn anonymous() -> Self {
        Self { login: None, fingerprint: None }
    }

    fn of(login: Login) -> Self {
        let fingerprint = Some(fingerprint(&login));
        Self { login: Some(login), fingerprint }
    }

    /// The value of a Basic Authorization (RFC 7617), if this is a user with a password.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        match &self.login {
            Some(Login::Basic { username, password }) => {
                let pair = Zeroizing::new(format!("{username}:{}", password.expose()));
                let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
                sensitive(&text)
            }
            _ => None,
        }
    }
}

/// A header value that does not show itself in debug output.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.login.is_some() { "credential ***" } else { "anonymous" })
    }
}

impl Credentials {
    /// Reads the files once; a file that is missing now may come later and is no error yet. Blocks.
    pub(super) fn new(source: CredentialSource, hosts: RegistryHosts) -> Self {
        let loaded = load(&source, &hosts);
        Self { source, hosts, loaded: ArcSwap::from_pointee(loaded) }
    }

    /// The credential for a repository, as the file says now.
    ///
    /// # Errors
    /// [`Error::Credential`] if the file cannot be read or understood.
    pub(super) async fn current(
        self: &Arc<Self>,
        repository: &RepositoryName,
        tasks: &TaskTracker,
    ) -> Result<Arc<Credential>, Error> {
        if self.source.path().is_some() {
            let credentials = Arc::clone(self);
            let refreshed = tasks.spawn_blocking(move || credentials.refresh()).await;
            refreshed.map_err(|_stopped| {
                Error::credential("the credential file was not read: shutting down")
            })?;
        }
        let loaded = self.loaded.load();
        let logins =
            loaded.logins.as_ref().map_err(|message| Error::Credential(Arc::clone(message)))?;
        let found = logins
            .iter()
            .find(|(namespace, _credential)| docker_config::holds(namespace, repository.as_str()));
        Ok(match found {
            Some((_namespace, credential)) => Arc::clone(credential),
            None => Arc::new(Credential::anonymous()),
        })
    }

    /// One fingerprint over all logins for this upstream, as last read; `None` means that it is asked anonymously.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        let loaded = self.loaded.load();
        match loaded.logins.as_deref() {
            Ok([]) => None,
            Ok([(namespace, only)]) if namespace.is_empty() => only.fingerprint,
            Ok(several) => {
                let mut text = Vec::new();
                for (namespace, credential) in several {
                    text.extend_from_slice(namespace.as_bytes());
                    text.push(0);
                    text.extend(credential.fingerprint.into_iter().flatten());
                }
                Some(truncated(&Digest::sha256_of(&text)))
            }
            // Nothing may pass as proved anonymously while the credential cannot be read.
            Err(message) => Some(truncated(&Digest::sha256_of(message.as_bytes()))),
        }
    }

    fn refresh(&self) {
        let Some(path) = self.source.path() else {
            return;
        };
        if Stamp::of(path) != self.loaded.load().stamp {
            self.loaded.store(Arc::new(load(&self.source, &self.hosts)));
        }
    }
}

impl Stamp {
    /// The state of the file now; `None` if there is none.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let of = |metadata: Metadata| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        std::fs::metadata(path).ok().map(of)
    }
}

impl CredentialSource {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::None | Self::Basic { .. } => None,
            Self::PasswordFile { path, .. } | Self::DockerConfig { path } => Some(path),
        }
    }
}

fn load(source: &CredentialSource, hosts: &RegistryHosts) -> Loaded {
    // The stamp is taken first: a change during the read is seen as a change the next time.
    let stamp = source.path().and_then(Stamp::of);
    let logins = match source {
        CredentialSource::None => Ok(Vec::new()),
        CredentialSource::Basic { username, password } => {
            Ok(whole_registry(username, password.clone()))
        }
        CredentialSource::PasswordFile { username, path } => {
            read(path).and_then(|text| match password_in(&text) {
                Some(password) => Ok(whole_registry(username, password)),
                None => Err(format!("password_file {} holds no line of text", path.display())),
            })
        }
        CredentialSource::DockerConfig { path } => read(path).and_then(|text| {
            let entries = docker_config::entries(&text, hosts)
                .map_err(|reason| format!("docker config {}: {reason}", path.display()))?;
            let credential = |entry: docker_config::Entry| {
                (entry.namespace, Arc::new(Credential::of(entry.login)))
            };
            Ok(entries.into_iter().map(credential).collect())
        }),
    };
    Loaded { stamp, logins: logins.map_err(Into::into) }
}

/// An empty pair is no credential: as `Basic Og==` it would be refused by some realms.
fn whole_registry(username: &str, password: Secret) -> Vec<(String, Arc<Credential>)> {
    if username.is_empty() && password.expose().is_empty() {
        return Vec::new();
    }
    let login = Login::Basic { username: username.to_owned(), password };
    vec![(String::new(), Arc::new(Credential::of(login)))]
}

fn password_in(text: &[u8]) -> Option<Secret> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches(['\n', '\r']);
    (!text.is_empty() && !text.contains(['\n', '\r', '\0'])).then(|| text.into())
}

fn read(path: &PathBuf) -> Result<Zeroizing<Vec<u8>>, String> {
    let attempt = || -> io::Result<Zeroizing<Vec<u8>>> {
        let mut text = Zeroizing::new(Vec::new());
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = attempt().map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(format!("{} is larger than 1 MiB", path.display()));
    }
    Ok(text)
}

fn fingerprint(login: &Login) -> Fingerprint {
    let (kind, username, secret) = match login {
        Login::Basic { username, password } => ("basic", username.as_str(), password),
        Login::Identity { username, token } => ("identity", username.as_str(), token),
        Login::Registry(token) => ("registry", "", token),
    };
    let seed = Zeroizing::new(format!("{kind}\0{username}\0{}", secret.expose()));
    let mut digest = Digest::sha256_of(seed.as_bytes());
    for _round in 0..FINGERPRINT_ROUNDS {
        digest = Digest::sha256_of(digest.value());
    }
    truncated(&digest)
}

fn truncated(digest: &Digest) -> Fingerprint {
    let mut fingerprint = [0; FINGERPRINT_BYTES];
    fingerprint.copy_from_slice(&digest.value()[..FINGERPRINT_BYTES]);
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> RegistryHosts {
        RegistryHosts::new(&["r.example"])
    }

    fn repository() -> RepositoryName {
        "org/repo".parse().unwrap()
    }

    fn password(credential: &Credential) -> String {
        match &credential.login {
            Some(Login::Basic { password, .. }) => password.expose().to_owned(),
            other => panic!("{}", other.is_some()),
        }
    }

    #[tokio::test]
    async fn a_changed_password_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        let tasks = TaskTracker::new();
        let source = CredentialSource::PasswordFile { username: "bot".into(), path: path.clone() };
        let credentials = Arc::new(Credentials::new(source, hosts()));
        let missing = credentials.current(&repository(), &tasks).await.unwrap_err();
        assert!(matches!(missing, Error::Credential(_)));
        assert!(credentials.fingerprint().is_some());

        std::fs::write(&path, "one\r\n").unwrap();
        let first = credentials.current(&repository(), &tasks).await.unwrap();
        assert_eq!(password(&first), "one");
        let before = credentials.fingerprint();
        assert_eq!(before, first.fingerprint);

        let other = directory.path().join("other");
        std::fs::write(&other, "two\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let second = credentials.current(&repository(), &tasks).await.unwrap();
        assert_eq!(password(&second), "two");
        assert_ne!(credentials.fingerprint(), before);

        std::fs::write(&path, "\n").unwrap();
        assert!(credentials.current(&repository(), &tasks).await.is_err());
    }

    #[tokio::test]
    async fn docker_config_by_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let config = r#"{"auths":{"r.example/org":{"username":"u","password":"p"}}}"#;
        std::fs::write(&path, config).unwrap();
        let source = CredentialSource::DockerConfig { path };
        let credentials = Arc::new(Credentials::new(source, hosts()));
        let tasks = TaskTracker::new();
        let ours = credentials.current(&repository(), &tasks).await.unwrap();
        assert!(ours.login.is_some());
        let other = credentials.current(&"other".parse().unwrap(), &tasks).await.unwrap();
        assert!(other.login.is_none() && other.fingerprint.is_none());
        assert!(credentials.fingerprint().is_some());
    }

    #[test]
    fn an_empty_pair_is_anonymous() {
        let source = CredentialSource::Basic { username: String::new(), password: "".into() };
        assert_eq!(Credentials::new(source, hosts()).fingerprint(), None);
        assert_eq!(Credentials::new(CredentialSource::None, hosts()).fingerprint(), None);
    }

    #[test]
    fn credentials_do_not_print() {
        let source = CredentialSource::Basic { username: "bot".into(), password: "hunter2".into() };
        let credentials = Credentials::new(source, hosts());
        let text = format!("{credentials:?}");
        assert!(!text.contains("hunter2"), "{text}");
        let header =
            Credential::of(Login::Basic { username: "bot".into(), password: "hunter2".into() });
        assert_eq!(header.basic().unwrap().to_str().unwrap(), "Basic Ym90Omh1bnRlcjI=");
        assert!(!format!("{:?}", header.basic()).contains("Ym90"));
    }
}
