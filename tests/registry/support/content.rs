//! Content for tests: blobs and images made from a seed, so that every run sees the same bytes.
//!
//! What must hold: a synthetic blob of any size costs no memory, and any two of its regions differ (a stamp every 64 bytes), so
//! that bytes from a wrong offset are seen. Digests are computed here with `sha2` alone, never with the product's own code.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
pub const SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
pub const OCTET_STREAM: &str = "application/octet-stream";
pub const MIB: u64 = 1024 * 1024;

/// The distance between two stamps of a synthetic blob.
const STAMP_EVERY: u64 = 64;
/// The random block that synthetic blobs repeat between their stamps.
const BLOCK: usize = 1024 * 1024;
/// How much is produced at once while hashing.
const PIECE: u64 = 1024 * 1024;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// `sha256:<hex>` of these bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// `sha512:<hex>` of these bytes.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

/// The tag under which referrers of this digest are kept where the referrers API is missing (`sha256-<hex>`).
pub fn fallback_tag(digest: &str) -> String {
    digest.replace(':', "-")
}

/// A hash that grows with a body.
#[derive(Default)]
pub struct Hasher(Sha256);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> String {
        format!("sha256:{}", hex(&self.0.finalize()))
    }
}

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Random bytes that depend on the seed alone.
pub fn noise(seed: &str, len: usize) -> Bytes {
    let mut state =
        u64::from_le_bytes(Sha256::digest(seed.as_bytes())[..8].try_into().expect("eight bytes"));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = mix(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    Bytes::from(bytes)
}

/// A blob that exists only as its seed and size.
#[derive(Clone, Debug)]
pub struct Synthetic {
    seed: u64,
    size: u64,
    block: Bytes,
}

impl Synthetic {
    pub fn new(seed: u64, size: u64) -> Self {
        Self { seed, size, block: noise(&format!("synthetic {seed}"), BLOCK) }
    }

    /// The bytes of this range, which must lie inside the blob.
    pub fn bytes(&self, range: Range<u64>) -> Bytes {
        assert!(range.end <= self.size, "{range:?} is outside a blob of {} bytes", self.size);
        let aligned = range.start - range.start % STAMP_EVERY;
        let mut bytes = Vec::with_capacity(to_usize(range.end - aligned) + BLOCK);
        let mut at = to_usize(aligned % to_u64(BLOCK));
        while bytes.len() < to_usize(range.end - aligned) {
            bytes.extend_from_slice(&self.block[at..]);
            at = 0;
        }
        bytes.truncate(to_usize(range.end - aligned));
        let mut offset = aligned;
        for stamped in bytes.chunks_mut(to_usize(STAMP_EVERY)) {
            let stamp = mix(self.seed ^ offset).to_le_bytes();
            let room = stamped.len().min(stamp.len());
            stamped[..room].copy_from_slice(&stamp[..room]);
            offset += STAMP_EVERY;
        }
        Bytes::from(bytes).slice(to_usize(range.start - aligned)..)
    }
}

pub fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("fits the address space")
}

pub fn to_u64(n: usize) -> u64 {
    u64::try_from(n).expect("usize fits u64")
}

/// The bytes of a blob, or the recipe for them.
#[derive(Clone, Debug)]
pub enum Data {
    Whole(Bytes),
    Synthetic(Synthetic),
}

impl Data {
    pub fn len(&self) -> u64 {
        match self {
            Self::Whole(bytes) => to_u64(bytes.len()),
            Self::Synthetic(synthetic) => synthetic.size,
        }
    }

    pub fn slice(&self, range: Range<u64>) -> Bytes {
        match self {
            Self::Whole(bytes) => bytes.slice(to_usize(range.start)..to_usize(range.end)),
            Self::Synthetic(synthetic) => synthetic.bytes(range),
        }
    }
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

/// Seed and size of a synthetic blob, and its digest.
type Known = ((u64, u64), Arc<str>);

/// A blob with its digest and the media type that manifests give it.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub media_type: String,
    pub data: Data,
    /// `urls` of a foreign layer; the upstream then does not hold the bytes.
    pub urls: Vec<String>,
}

impl Blob {
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            digest: sha256(&bytes),
            media_type: media_type.to_owned(),
            data: Data::Whole(bytes),
            urls: Vec::new(),
        }
    }

    /// A layer of this many random bytes.
    pub fn layer(seed: &str, len: usize) -> Self {
        Self::new(OCI_LAYER, noise(seed, len))
    }

    pub fn sha512(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: sha512(&bytes), ..Self::new(media_type, bytes) }
    }

    pub fn empty() -> Self {
        Self::new(OCTET_STREAM, Bytes::new())
    }

    /// A blob of any size that costs no memory. Its digest is computed once per process and seed.
    pub fn synthetic(seed: u64, size: u64) -> Self {
        static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
        let synthetic = Synthetic::new(seed, size);
        let known = {
            let known = KNOWN.lock().expect("no holder of this lock panics");
            known.iter().find(|(key, _)| *key == (seed, size)).map(|(_, d)| Arc::clone(d))
        };
        let digest = known.unwrap_or_else(|| {
            let mut hasher = Hasher::default();
            let mut at = 0;
            while at < size {
                let end = (at + PIECE).min(size);
                hasher.update(&synthetic.bytes(at..end));
                at = end;
            }
            let digest: Arc<str> = hasher.finish().into();
            let mut known = KNOWN.lock().expect("no holder of this lock panics");
            known.push(((seed, size), Arc::clone(&digest)));
            digest
        });
        Self {
            digest: digest.to_string(),
            media_type: OCI_LAYER.to_owned(),
            data: Data::Synthetic(synthetic),
            urls: Vec::new(),
        }
    }

    pub fn foreign(mut self, url: &str) -> Self {
        DOCKER_FOREIGN_LAYER.clone_into(&mut self.media_type);
        self.urls.push(url.to_owned());
        self
    }

    pub fn len(&self) -> u64 {
        self.data.len()
    }

    /// All bytes; only for blobs that are small enough.
    pub fn bytes(&self) -> Bytes {
        self.data.slice(0..self.len())
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = json!({
            "mediaType": self.media_type, "digest": self.digest, "size": self.len(),
        });
        if !self.urls.is_empty() {
            descriptor["urls"] = json!(self.urls);
        }
        descriptor
    }
}

/// A manifest with everything below it.
#[derive(Clone, Debug)]
pub struct Image {
    pub digest: String,
    pub media_type: String,
    pub bytes: Bytes,
    pub blobs: Vec<Blob>,
    pub children: Vec<Image>,
    /// The digest of the manifest that this one refers to.
    pub subject: Option<String>,
    pub artifact_type: Option<String>,
}

impl Image {
    pub fn build(seed: &str) -> ImageBuilder {
        ImageBuilder {
            seed: seed.to_owned(),
            docker: false,
            layers: Vec::new(),
            config: None,
            artifact_type: None,
            subject: None,
            size: None,
            media_type: None,
            sha512: false,
        }
    }

    /// A plain OCI image with a config and two small layers.
    pub fn single(seed: &str) -> Self {
        Self::build(seed).layers(2).finish()
    }

    /// An image of exactly eleven objects: manifest, config, nine layers.
    pub fn of_eleven_objects(seed: &str) -> Self {
        Self::build(seed).layers(9).finish()
    }

    /// An index with two platforms and the attestation of the first.
    pub fn index(seed: &str) -> Self {
        let amd64 = Self::single(&format!("{seed} amd64"));
        let arm64 = Self::single(&format!("{seed} arm64"));
        let attestation = Self::build(&format!("{seed} attestation"))
            .layer(Blob::new("application/vnd.in-toto+json", noise(&format!("{seed} toto"), 700)))
            .finish();
        let mut proof = attestation.descriptor();
        proof["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        proof["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": amd64.digest,
        });
        let manifests = vec![amd64.platform("amd64"), arm64.platform("arm64"), proof];
        Self::index_of(OCI_INDEX, manifests, vec![amd64, arm64, attestation])
    }

    /// A Docker manifest list with two platforms.
    pub fn docker_list(seed: &str) -> Self {
        let amd64 = Self::build(&format!("{seed} amd64")).docker().layers(1).finish();
        let arm64 = Self::build(&format!("{seed} arm64")).docker().layers(1).finish();
        let manifests = vec![amd64.platform("amd64"), arm64.platform("arm64")];
        Self::index_of(DOCKER_LIST, manifests, vec![amd64, arm64])
    }

    /// An index whose only child is an index.
    pub fn nested_index(seed: &str) -> Self {
        let inner = Self::index(seed);
        Self::index_of(OCI_INDEX, vec![inner.descriptor()], vec![inner])
    }

    /// A signed schema 1 manifest; its digest is the one of the raw bytes.
    pub fn schema1(seed: &str) -> Self {
        let layer = Blob::new(OCTET_STREAM, noise(&format!("{seed} schema 1"), 3000));
        let document = json!({
            "schemaVersion": 1, "name": "old/image", "tag": "latest", "architecture": "amd64",
            "fsLayers": [{"blobSum": layer.digest}],
            "history": [{"v1Compatibility": "{\"id\":\"0123\"}"}],
            "signatures": [{"header": {"alg": "ES256"}, "signature": "c2ln", "protected": "e30"}],
        });
        let bytes = serde_json::to_vec_pretty(&document).expect("a Value is always JSON");
        Self::from_bytes(SCHEMA1_SIGNED, bytes, vec![layer], Vec::new())
    }

    /// An artifact of this type that refers to `subject`.
    pub fn artifact(seed: &str, artifact_type: &str, subject: &Self) -> Self {
        Self::build(seed)
            .artifact_type(artifact_type)
            .subject(subject)
            .layer(Blob::new("application/spdx+json", noise(&format!("{seed} sbom"), 900)))
            .finish()
    }

    /// Any document as a manifest of any type, with the blobs that it names.
    pub fn from_bytes(
        media_type: &str,
        bytes: impl Into<Bytes>,
        blobs: Vec<Blob>,
        children: Vec<Self>,
    ) -> Self {
        let bytes = bytes.into();
        Self {
            digest: sha256(&bytes),
            media_type: media_type.to_owned(),
            bytes,
            blobs,
            children,
            subject: None,
            artifact_type: None,
        }
    }

    /// An index of these images, in this order.
    pub fn index_with(children: Vec<Self>) -> Self {
        let architectures = ["amd64", "arm64", "riscv64", "s390x"];
        let named = children.iter().zip(architectures.iter().cycle());
        let manifests = named.map(|(child, name)| child.platform(name)).collect();
        Self::index_of(OCI_INDEX, manifests, children)
    }

    fn index_of(media_type: &str, manifests: Vec<Value>, children: Vec<Self>) -> Self {
        let document = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        let bytes = serde_json::to_vec_pretty(&document).expect("a Value is always JSON");
        Self::from_bytes(media_type, bytes, Vec::new(), children)
    }

    /// The descriptor under which an index or a referrers list names this manifest.
    pub fn descriptor(&self) -> Value {
        let mut descriptor = json!({
            "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len(),
        });
        if let Some(kind) = &self.artifact_type {
            descriptor["artifactType"] = json!(kind);
        }
        descriptor
    }

    fn platform(&self, architecture: &str) -> Value {
        let mut descriptor = self.descriptor();
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    /// This manifest and all below it, parents first.
    pub fn manifests(&self) -> Vec<&Self> {
        let below = self.children.iter().flat_map(Self::manifests);
        std::iter::once(self).chain(below).collect()
    }

    /// All blobs of this manifest and of those below it.
    pub fn all_blobs(&self) -> Vec<&Blob> {
        self.manifests().into_iter().flat_map(|image| &image.blobs).collect()
    }
}

/// See [`Image::build`].
pub struct ImageBuilder {
    seed: String,
    docker: bool,
    layers: Vec<Blob>,
    config: Option<Blob>,
    artifact_type: Option<String>,
    subject: Option<(Value, String)>,
    size: Option<usize>,
    media_type: Option<String>,
    sha512: bool,
}

impl ImageBuilder {
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// This many small layers, each with its own bytes.
    pub fn layers(mut self, count: usize) -> Self {
        for n in 0..count {
            let mut layer = Blob::layer(&format!("{} layer {n}", self.seed), 2000 + n);
            if self.docker {
                DOCKER_LAYER.clone_into(&mut layer.media_type);
            }
            self.layers.push(layer);
        }
        self
    }

    pub fn layer(mut self, layer: Blob) -> Self {
        self.layers.push(layer);
        self
    }

    pub fn config(mut self, config: Blob) -> Self {
        self.config = Some(config);
        self
    }

    pub fn artifact_type(mut self, artifact_type: &str) -> Self {
        self.artifact_type = Some(artifact_type.to_owned());
        self.config = Some(Blob::new(OCI_EMPTY, "{}"));
        self
    }

    pub fn subject(mut self, subject: &Image) -> Self {
        let mut descriptor = subject.descriptor();
        descriptor.as_object_mut().expect("made as an object").remove("artifactType");
        self.subject = Some((descriptor, subject.digest.clone()));
        self
    }

    /// Pads the manifest to exactly this many bytes.
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(to_usize(size));
        self
    }

    /// A manifest of a type that nobody knows yet.
    pub fn media_type(mut self, media_type: &str) -> Self {
        self.media_type = Some(media_type.to_owned());
        self
    }

    /// Names the manifest by its sha512.
    pub fn sha512(mut self) -> Self {
        self.sha512 = true;
        self
    }

    pub fn finish(self) -> Image {
        let default = if self.docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
        let media_type = self.media_type.unwrap_or_else(|| default.to_owned());
        let config_type = if self.docker { DOCKER_CONFIG } else { OCI_CONFIG };
        let config = self.config.unwrap_or_else(|| {
            let document = json!({
                "architecture": "amd64", "os": "linux", "created_by": self.seed,
                "rootfs": {"type": "layers", "diff_ids": []},
            });
            Blob::new(config_type, document.to_string())
        });
        let layers: Vec<Value> = self.layers.iter().map(Blob::descriptor).collect();
        let mut document = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(),
            "layers": layers, "annotations": {"org.example.seed": self.seed},
        });
        if let Some(kind) = &self.artifact_type {
            document["artifactType"] = json!(kind);
        }
        if let Some((subject, _)) = &self.subject {
            document["subject"] = subject.clone();
        }
        if let Some(size) = self.size {
            document["annotations"]["org.example.padding"] = json!("");
            let bare = document.to_string().len();
            document["annotations"]["org.example.padding"] = json!("x".repeat(size - bare));
        }
        // Whitespace and order are not canonical on purpose unless the size was asked for: bytes must survive as they are.
        let bytes =
            if self.size.is_some() { document.to_string() } else { format!("{document:#}\n") };
        let mut blobs = vec![config];
        blobs.extend(self.layers);
        let mut image = Image::from_bytes(&media_type, bytes, blobs, Vec::new());
        if self.sha512 {
            image.digest = sha512(&image.bytes);
        }
        image.subject = self.subject.map(|(_, digest)| digest);
        image.artifact_type = self.artifact_type;
        image
    }
}
