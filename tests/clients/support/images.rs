//! The images that the clients pull, made on the spot and pushed into a `docker-registry`.
//!
//! Three shapes: an OCI index of two platforms with three compressed layers each, a docker schema 2 manifest, and
//! an OCI manifest with one uncompressed layer of 200 MiB that no compression can make smaller. All of them run
//! (busybox) and say who they are. What this does not do: cover odd media types; the in-process suite does.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;
use std::{env, fs};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::availability::BUSYBOX;
use super::http::{Answer, Body, exchange};
use super::upstream::Upstream;

/// Content of the large layer, in bytes; its tar is a little longer.
const LARGE: u64 = 200 << 20;
/// The block of a tar archive in bytes.
const TAR_BLOCK: u64 = 512;

/// One platform's image.
#[derive(Clone, Debug)]
pub(crate) struct Platform {
    /// The digest of its manifest.
    pub(crate) manifest: String,
    /// Its config, which is also the image id of docker, podman and buildah.
    pub(crate) config: String,
    /// Its layers, in order.
    pub(crate) layers: Vec<String>,
}

/// One image in the upstream registry.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The registry that the clients believe it comes from.
    pub(crate) registry: &'static str,
    /// The repository, with `library/`.
    pub(crate) repository: &'static str,
    pub(crate) tag: &'static str,
    /// What the tag names: an index or a manifest.
    pub(crate) digest: String,
    /// The image for the machine that runs the test.
    pub(crate) native: Platform,
    /// The image for some other machine, when the tag names an index.
    pub(crate) foreign: Option<Platform>,
    /// What the native image prints when it runs.
    pub(crate) says: String,
}

impl Image {
    /// The full reference, such as `quay.io/team/app:v1`.
    pub(crate) fn reference(&self) -> String {
        format!("{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// The storage of an upstream registry that holds every image. Shared by all tests that run at the same time and
/// only read by them; removed with the last of them.
pub(crate) struct Library {
    directory: TempDir,
    images: Vec<Image>,
}

impl Library {
    /// The library, made now if nobody holds one.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Library>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Self::make());
            *shared = Arc::downgrade(&made);
            made
        })
    }

    /// The images, smallest first.
    pub(crate) fn images(&self) -> &[Image] {
        &self.images
    }

    /// The root directory of the registry's storage.
    pub(crate) fn storage(&self) -> PathBuf {
        self.directory.path().join("registry")
    }

    fn make() -> Self {
        let started = Instant::now();
        let directory = tempfile::Builder::new().prefix("rs-library-").tempdir();
        let directory = directory.expect("the temporary directory is writable");
        let storage = directory.path().join("registry");
        fs::create_dir(&storage).expect("a fresh directory is writable");
        let registry = Upstream::writable(directory.path(), &storage);
        let images = push_all(&registry, directory.path());
        registry.finish();
        eprintln!("images made in {:?}", started.elapsed());
        Self { directory, images }
    }
}

/// Makes and pushes every image.
fn push_all(registry: &Upstream, work: &Path) -> Vec<Image> {
    let push = Push { address: registry.address() };
    let busybox = fs::read(BUSYBOX).expect("busybox was found");
    let root = system(&busybox, "shared by two images");
    let (architecture, other) = architectures();
    let native = push.platform(&Kind::OCI, "library/multi", architecture, &root, "multi");
    let foreign = push.platform(&Kind::OCI, "library/multi", other, &root, "multi");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": Kind::INDEX,
        "manifests": [foreign.descriptor(other), native.descriptor(architecture)],
    });
    let digest = push.manifest("library/multi", "v1", Kind::INDEX, index.to_string().as_bytes());
    let multi = Image {
        registry: "docker.io",
        repository: "library/multi",
        tag: "v1",
        digest,
        says: says("multi", architecture),
        native: native.platform,
        foreign: Some(foreign.platform),
    };
    let app = push.platform(&Kind::DOCKER, "team/app", architecture, &root, "app");
    push.manifest("team/app", "v1", Kind::DOCKER.manifest, &app.bytes);
    let app = Image {
        registry: "quay.io",
        repository: "team/app",
        tag: "v1",
        digest: app.platform.manifest.clone(),
        says: says("app", architecture),
        native: app.platform,
        foreign: None,
    };
    // Not the root layer of the others: a client may know an uncompressed layer by what it already unpacked.
    let large = push_large(&push, work, architecture, &system(&busybox, "of the large image"));
    vec![multi, app, large]
}

/// Pushes an image of this machine's platform that says `name` to `team/moving:v1`, wherever that pointed.
pub(super) fn push_revision(address: SocketAddr, registry: &'static str, name: &str) -> Image {
    let push = Push { address };
    let busybox = fs::read(BUSYBOX).expect("busybox was found");
    let root = system(&busybox, "of the moving image");
    let (architecture, _) = architectures();
    let pushed = push.platform(&Kind::OCI, "team/moving", architecture, &root, name);
    push.manifest("team/moving", "v1", Kind::OCI.manifest, &pushed.bytes);
    Image {
        registry,
        repository: "team/moving",
        tag: "v1",
        digest: pushed.platform.manifest.clone(),
        says: says(name, architecture),
        native: pushed.platform,
        foreign: None,
    }
}

/// The image with the large layer.
fn push_large(push: &Push, work: &Path, architecture: &str, root: &[u8]) -> Image {
    let file = work.join("large.tar");
    let layer = write_large_layer(&file);
    let small = [root.to_vec(), greeting("large", architecture)];
    let mut layers: Vec<_> = small.iter().map(|tar| push.bytes("library/large", tar)).collect();
    let mut source = BufReader::new(File::open(&file).expect("the layer was written"));
    push.blob("library/large", &layer, &mut source);
    fs::remove_file(&file).expect("the layer can be removed");
    layers.push(layer);
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest.clone()).collect();
    let layers = layers.into_iter().map(|blob| (Kind::PLAIN_LAYER, blob)).collect();
    let parts = Parts { architecture, layers, diff_ids };
    let pushed = push.assemble(&Kind::OCI, "library/large", parts);
    push.manifest("library/large", "v1", Kind::OCI.manifest, &pushed.bytes);
    Image {
        registry: "docker.io",
        repository: "library/large",
        tag: "v1",
        digest: pushed.platform.manifest.clone(),
        says: says("large", architecture),
        native: pushed.platform,
        foreign: None,
    }
}

/// The media types of one family of image formats.
struct Kind {
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

impl Kind {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    const OCI: Self = Self {
        manifest: "application/vnd.oci.image.manifest.v1+json",
        config: "application/vnd.oci.image.config.v1+json",
        layer: "application/vnd.oci.image.layer.v1.tar+gzip",
    };
    const DOCKER: Self = Self {
        manifest: "application/vnd.docker.distribution.manifest.v2+json",
        config: "application/vnd.docker.container.image.v1+json",
        layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    };
}

/// A blob in the registry.
struct Blob {
    digest: String,
    size: u64,
}

/// What a config and a manifest are made of; layers carry their media type.
struct Parts<'a> {
    architecture: &'a str,
    layers: Vec<(&'static str, Blob)>,
    diff_ids: Vec<String>,
}

/// A platform whose blobs are in the registry.
struct Pushed {
    platform: Platform,
    media_type: &'static str,
    bytes: Vec<u8>,
}

impl Pushed {
    fn descriptor(&self, architecture: &str) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.platform.manifest,
            "size": self.bytes.len(),
            "platform": { "architecture": architecture, "os": "linux" },
        })
    }
}

/// Pushes into one registry by its HTTP API (OCI distribution specification 1.1, "Push").
struct Push {
    address: SocketAddr,
}

impl Push {
    /// Pushes the layers, the config and the manifest of a small image, the manifest under its digest.
    fn platform(
        &self,
        kind: &Kind,
        repository: &str,
        architecture: &str,
        root: &[u8],
        name: &str,
    ) -> Pushed {
        let notes = archive(&[("etc/layer", Entry::Text("a layer that only this image has"))]);
        let tars = [root.to_vec(), greeting(name, architecture), notes];
        let layers = tars.iter().map(|tar| (kind.layer, self.bytes(repository, &gzip(tar))));
        let layers = layers.collect();
        let diff_ids = tars.iter().map(|tar| digest_of(tar)).collect();
        let pushed = self.assemble(kind, repository, Parts { architecture, layers, diff_ids });
        self.manifest(repository, &pushed.platform.manifest, kind.manifest, &pushed.bytes);
        pushed
    }

    /// Pushes the config of an image and builds its manifest.
    fn assemble(&self, kind: &Kind, repository: &str, parts: Parts<'_>) -> Pushed {
        let config = json!({
            "architecture": parts.architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": { "Cmd": ["/bin/cat", "/etc/greeting"], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": parts.diff_ids },
            "history": parts.diff_ids.iter().map(|id| json!({ "created_by": id })).collect::<Vec<_>>(),
        });
        let config = self.bytes(repository, config.to_string().as_bytes());
        let describe = |media_type: &str, blob: &Blob| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
        let layers = parts.layers.iter().map(|(media_type, blob)| describe(media_type, blob));
        let bytes = json!({
            "schemaVersion": 2,
            "mediaType": kind.manifest,
            "config": describe(kind.config, &config),
            "layers": layers.collect::<Vec<_>>(),
        });
        let bytes = bytes.to_string().into_bytes();
        let platform = Platform {
            manifest: digest_of(&bytes),
            config: config.digest,
            layers: parts.layers.into_iter().map(|(_, blob)| blob.digest).collect(),
        };
        Pushed { platform, media_type: kind.manifest, bytes }
    }

    /// Pushes a small blob.
    fn bytes(&self, repository: &str, bytes: &[u8]) -> Blob {
        let size = u64::try_from(bytes.len()).expect("a length fits");
        let blob = Blob { digest: digest_of(bytes), size };
        self.blob(repository, &blob, &mut &*bytes);
        blob
    }

    /// Pushes a blob: an upload session, then all of its bytes in one PUT.
    fn blob(&self, repository: &str, blob: &Blob, source: &mut dyn Read) {
        let target = format!("/v2/{repository}/blobs/uploads/");
        let session = self.ask("POST", &target, None, 202);
        let location = session.header("Location").expect("a session has a location");
        let here = format!("http://{}", self.address);
        let location = location.strip_prefix(&here).unwrap_or(location);
        let target = format!("{location}&digest={}", blob.digest);
        let body = Body { media_type: "application/octet-stream", length: blob.size, source };
        self.ask("PUT", &target, Some(body), 201);
    }

    /// Pushes a manifest under a tag or its digest and gives its digest.
    fn manifest(&self, repository: &str, name: &str, media_type: &str, bytes: &[u8]) -> String {
        let target = format!("/v2/{repository}/manifests/{name}");
        let length = u64::try_from(bytes.len()).expect("a length fits");
        let body = Body { media_type, length, source: &mut &*bytes };
        self.ask("PUT", &target, Some(body), 201);
        digest_of(bytes)
    }

    fn ask(&self, method: &str, target: &str, body: Option<Body<'_>>, expected: u16) -> Answer {
        let answer = exchange(self.address, method, target, body);
        let answer = answer.unwrap_or_else(|error| panic!("{method} {target}: {error}"));
        assert_eq!(answer.status, expected, "{method} {target}: {}", answer.body);
        answer
    }
}

/// One entry of a layer.
enum Entry<'a> {
    Program(&'a [u8]),
    Text(&'a str),
    Link(&'a str),
}

/// An uncompressed tar with these entries.
fn archive(entries: &[(&str, Entry<'_>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mtime(0);
        let added = match entry {
            Entry::Program(bytes) => append(&mut tar, &mut header, path, 0o755, bytes),
            Entry::Text(text) => append(&mut tar, &mut header, path, 0o644, text.as_bytes()),
            Entry::Link(to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, to)
            }
        };
        added.expect("a tar in memory takes an entry");
    }
    tar.into_inner().expect("a tar in memory can be ended")
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    header: &mut tar::Header,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    header.set_mode(mode);
    header.set_size(u64::try_from(bytes.len()).expect("a length fits"));
    tar.append_data(header, path, bytes)
}

/// The layer with the programs.
fn system(busybox: &[u8], note: &str) -> Vec<u8> {
    archive(&[
        ("bin/busybox", Entry::Program(busybox)),
        ("bin/cat", Entry::Link("busybox")),
        ("etc/system", Entry::Text(note)),
    ])
}

/// The layer whose text the image prints.
fn greeting(name: &str, architecture: &str) -> Vec<u8> {
    archive(&[("etc/greeting", Entry::Text(&says(name, architecture)))])
}

fn says(name: &str, architecture: &str) -> String {
    format!("{name} runs on {architecture}")
}

/// This machine's architecture, then another, in the words of image configs.
fn architectures() -> (&'static str, &'static str) {
    match env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory takes bytes");
    encoder.finish().expect("memory takes bytes")
}

/// The sha256 digest of bytes, as registries write it.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    written(&Sha256::digest(bytes))
}

fn written(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes text");
        text
    })
}

/// Writes the tar with the large file and gives its digest and size.
fn write_large_layer(path: &Path) -> Blob {
    let file = BufWriter::new(File::create(path).expect("the library is writable"));
    let mut tar = tar::Builder::new(Hashing { file, hash: Sha256::new(), size: 0 });
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(LARGE);
    let noise = Noise { state: 0x9E37_79B9_7F4A_7C15 };
    tar.append_data(&mut header, "data/noise", noise.take(LARGE))
        .expect("the disk takes the layer");
    let mut written_to = tar.into_inner().expect("the disk takes the layer");
    written_to.flush().expect("the disk takes the layer");
    assert_eq!(written_to.size % TAR_BLOCK, 0, "a tar is a row of blocks");
    Blob { digest: written(&written_to.hash.finalize()), size: written_to.size }
}

/// A file that is hashed while it is written.
struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += u64::try_from(bytes.len()).expect("a length fits");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Endless incompressible bytes, the same in every run (Marsaglia's xorshift64).
struct Noise {
    state: u64,
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for chunk in buffer.chunks_mut(size_of::<u64>()) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            chunk.copy_from_slice(&self.state.to_le_bytes()[..chunk.len()]);
        }
        Ok(buffer.len())
    }
}
