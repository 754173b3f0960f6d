//! Our credential for one upstream: where it comes from, and its fingerprint.
//!
//! What must hold: files are looked at before every use and read again when they changed, off the runtime's workers; a file that
//! cannot be used is [`Error::Credential`], never silent anonymity; nothing here can be printed. The fingerprint goes into the store
//! beside proofs of membership, so it is stretched: who reads the store cannot try passwords cheaply. Logins of helper programs are kept
//! in `keeper.rs`.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use super::docker_config::{self, Held, Login, RegistryHosts};
use super::error::Error;
use super::keeper::{Keeper, Means, Question};
use super::settings::{CredentialSource, Program, Secret};
use super::transport::Deadline;
use crate::oci::{Digest, RepositoryName};

/// Largest file with a password or with docker's config.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Rounds of sha256 in a fingerprint: a few milliseconds, once per change of the credential.
const FINGERPRINT_ROUNDS: usize = 10_000;
const FINGERPRINT_BYTES: usize = 16;

pub(super) type Fingerprint = [u8; FINGERPRINT_BYTES];

/// With what we ask for one repository.
#[derive(Clone)]
pub(super) struct Credential {
    /// `None`: anonymous.
    pub(super) login: Option<Login>,
    /// Tells one identity from another: what upstream showed to one is proved for it alone.
    pub(super) fingerprint: Option<Fingerprint>,
    /// Tells one secret from another: a token that was had for one is not asked for with another.
    pub(super) secret: Option<Fingerprint>,
    /// Who has a newer one, if a helper gave it.
    pub(super) keeper: Weak<Keeper>,
}

/// The credentials of one upstream.
#[derive(Debug)]
pub(super) struct Credentials {
    source: CredentialSource,
    hosts: RegistryHosts,
    means: Means,
    loaded: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// The state of the file when it was read; `None` if there was none.
    stamp: Option<Stamp>,
    /// The most specific namespace first.
    logins: Result<Vec<(String, Holder)>, Arc<str>>,
}

/// Who has a login.
#[derive(Clone, Debug)]
enum Holder {
    Here(Arc<Credential>),
    Helper(Arc<Keeper>),
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
        Self { login: None, fingerprint: None, secret: None, keeper: Weak::new() }
    }

    fn of(login: Login) -> Self {
        let fingerprint = Some(fingerprint(&login));
        Self { login: Some(login), fingerprint, secret: fingerprint, keeper: Weak::new() }
    }

    /// The login that a helper gave for `identity`.
    pub(super) fn helped(login: Login, identity: Fingerprint, keeper: Weak<Keeper>) -> Self {
        Self { fingerprint: Some(identity), keeper, ..Self::of(login) }
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
    pub(super) fn new(source: CredentialSource, hosts: RegistryHosts, means: Means) -> Self {
        let loaded = load(&source, &hosts, &means, &[]);
        Self { source, hosts, means, loaded: ArcSwap::from_pointee(loaded) }
    }

    /// The credential for a repository, as the file or the helper says now.
    ///
    /// # Errors
    /// [`Error::Credential`] if the file cannot be read or understood, or the helper gives nothing.
    pub(super) async fn current(
        self: &Arc<Self>,
        repository: &RepositoryName,
        deadline: Deadline,
    ) -> Result<Arc<Credential>, Error> {
        if self.source.path().is_some() {
            let credentials = Arc::clone(self);
            let refreshed = self.means.tasks.spawn_blocking(move || credentials.refresh()).await;
            refreshed.map_err(|_stopped| {
                Error::credential("the credential file was not read: shutting down")
            })?;
        }
        let holder = {
            let loaded = self.loaded.load();
            let logins = loaded.logins.as_ref();
            let logins = logins.map_err(|message| Error::Credential(Arc::clone(message)))?;
            let holds = |namespace: &str| docker_config::holds(namespace, repository.as_str());
            let found = logins.iter().find(|(namespace, _holder)| holds(namespace));
            found.map(|(_namespace, holder)| holder.clone())
        };
        match holder {
            Some(Holder::Here(credential)) => Ok(credential),
            Some(Holder::Helper(keeper)) => keeper.current(deadline).await,
            None => Ok(Arc::new(Credential::anonymous())),
        }
    }

    /// Those who keep the logins of helpers.
    pub(super) fn keepers(&self) -> Vec<Arc<Keeper>> {
        self.loaded.load().keepers().cloned().collect()
    }

    /// One fingerprint over all logins for this upstream, as last read; `None` means that it is asked anonymously.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        let loaded = self.loaded.load();
        match loaded.logins.as_deref() {
            Ok([]) => None,
            Ok([(namespace, only)]) if namespace.is_empty() => only.fingerprint(),
            Ok(several) => {
                let mut text = Vec::new();
                for (namespace, holder) in several {
                    text.extend_from_slice(namespace.as_bytes());
                    text.push(0);
                    text.extend(holder.fingerprint().into_iter().flatten());
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
        let before = self.loaded.load();
        if Stamp::of(path) != before.stamp {
            // What a helper gave is as good as before if the file names the same helper.
            let keepers: Vec<_> = before.keepers().cloned().collect();
            let loaded = load(&self.source, &self.hosts, &self.means, &keepers);
            self.loaded.store(Arc::new(loaded));
        }
    }
}

impl Holder {
    fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Here(credential) => credential.fingerprint,
            Self::Helper(keeper) => keeper.fingerprint(),
        }
    }
}

impl Loaded {
    fn keepers(&self) -> impl Iterator<Item = &Arc<Keeper>> {
        self.logins.iter().flatten().filter_map(|(_namespace, holder)| match holder {
            Holder::Helper(keeper) => Some(keeper),
            Holder::Here(_) => None,
        })
    }
}

/// The helpers that this source would run, as far as it can be read now. Blocks.
pub(super) fn programs(source: &CredentialSource, hosts: &RegistryHosts) -> Vec<Program> {
    match source {
        CredentialSource::Helper(program) => vec![program.clone()],
        CredentialSource::DockerConfig { path } => {
            let entries = read(path).and_then(|text| docker_config::entries(&text, hosts));
            let program = |entry: docker_config::Entry| match entry.held {
                Held::By { program, .. } => Some(program),
                Held::Here(_) => None,
            };
            entries.unwrap_or_default().into_iter().filter_map(program).collect()
        }
        CredentialSource::None
        | CredentialSource::Basic { .. }
        | CredentialSource::PasswordFile { .. } => Vec::new(),
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
            Self::None | Self::Basic { .. } | Self::Helper(_) => None,
            Self::PasswordFile { path, .. } | Self::DockerConfig { path } => Some(path),
        }
    }
}

/// `keepers` are those of the load before.
fn load(
    source: &CredentialSource,
    hosts: &RegistryHosts,
    means: &Means,
    keepers: &[Arc<Keeper>],
) -> Loaded {
    let keeper = |question: Question| {
        let known = keepers.iter().find(|keeper| keeper.asks(&question)).cloned();
        Holder::Helper(known.unwrap_or_else(|| Keeper::new(question, means.clone())))
    };
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
            let holder = |entry: docker_config::Entry| {
                let holder = match entry.held {
                    Held::Here(login) => Holder::Here(Arc::new(Credential::of(login))),
                    Held::By { program, server } => {
                        keeper(Question { program, server, may_be_absent: true })
                    }
                };
                (entry.namespace, holder)
            };
            Ok(entries.into_iter().map(holder).collect())
        }),
        CredentialSource::Helper(program) => {
            let (program, server) = (program.clone(), hosts.server().to_owned());
            Ok(vec![(String::new(), keeper(Question { program, server, may_be_absent: false }))])
        }
    };
    Loaded { stamp, logins: logins.map_err(Into::into) }
}

/// An empty pair is no credential: as `Basic Og==` it would be refused by some realms.
fn whole_registry(username: &str, password: Secret) -> Vec<(String, Holder)> {
    if username.is_empty() && password.expose().is_empty() {
        return Vec::new();
    }
    let login = Login::Basic { username: username.to_owned(), password };
    vec![(String::new(), Holder::Here(Arc::new(Credential::of(login))))]
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
    stretched(seed.as_bytes())
}

/// A hash that is dear to try.
pub(super) fn stretched(seed: &[u8]) -> Fingerprint {
    let mut digest = Digest::sha256_of(seed);
    for _round in 0..FINGERPRINT_ROUNDS {
        digest = Digest::sha256_of(digest.value());
    }
    truncated(&digest)
}

pub(super) fn truncated(digest: &Digest) -> Fingerprint {
    let mut fingerprint = [0; FINGERPRINT_BYTES];
    fingerprint.copy_from_slice(&digest.value()[..FINGERPRINT_BYTES]);
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::keeper::tests::means;

    fn hosts() -> RegistryHosts {
        RegistryHosts::new(&["r.example"])
    }

    fn soon() -> Deadline {
        Deadline::after(std::time::Duration::from_secs(5))
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
        let source = CredentialSource::PasswordFile { username: "bot".into(), path: path.clone() };
        let credentials = Arc::new(Credentials::new(source, hosts(), means()));
        let missing = credentials.current(&repository(), soon()).await.unwrap_err();
        assert!(matches!(missing, Error::Credential(_)));
        assert!(credentials.fingerprint().is_some());

        std::fs::write(&path, "one\r\n").unwrap();
        let first = credentials.current(&repository(), soon()).await.unwrap();
        assert_eq!(password(&first), "one");
        let before = credentials.fingerprint();
        assert_eq!(before, first.fingerprint);

        let other = directory.path().join("other");
        std::fs::write(&other, "two\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let second = credentials.current(&repository(), soon()).await.unwrap();
        assert_eq!(password(&second), "two");
        assert_ne!(credentials.fingerprint(), before);

        std::fs::write(&path, "\n").unwrap();
        assert!(credentials.current(&repository(), soon()).await.is_err());
    }

    #[tokio::test]
    async fn docker_config_by_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let config = r#"{"auths":{"r.example/org":{"username":"u","password":"p"}}}"#;
        std::fs::write(&path, config).unwrap();
        let source = CredentialSource::DockerConfig { path };
        let credentials = Arc::new(Credentials::new(source, hosts(), means()));
        let ours = credentials.current(&repository(), soon()).await.unwrap();
        assert!(ours.login.is_some());
        let other = credentials.current(&"other".parse().unwrap(), soon()).await.unwrap();
        assert!(other.login.is_none() && other.fingerprint.is_none());
        assert!(credentials.fingerprint().is_some());
    }

    #[test]
    fn an_empty_pair_is_anonymous() {
        let source = CredentialSource::Basic { username: String::new(), password: "".into() };
        assert_eq!(Credentials::new(source, hosts(), means()).fingerprint(), None);
        assert_eq!(Credentials::new(CredentialSource::None, hosts(), means()).fingerprint(), None);
    }

    #[test]
    fn credentials_do_not_print() {
        let source = CredentialSource::Basic { username: "bot".into(), password: "hunter2".into() };
        let credentials = Credentials::new(source, hosts(), means());
        let text = format!("{credentials:?}");
        assert!(!text.contains("hunter2"), "{text}");
        let header =
            Credential::of(Login::Basic { username: "bot".into(), password: "hunter2".into() });
        assert_eq!(header.basic().unwrap().to_str().unwrap(), "Basic Ym90Omh1bnRlcjI=");
        assert!(!format!("{:?}", header.basic()).contains("Ym90"));
    }
}
