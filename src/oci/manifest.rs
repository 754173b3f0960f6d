//! Reading manifests: just enough to know what they point at.
//!
//! What must hold: the bytes are never rewritten; a document is accepted only if it is one kind of manifest and no other
//! (CVE-2021-41190: a document that is both an index and an image is refused); reading never recurses deeper than serde_json's own
//! limit. Unknown media types pass: an artifact of tomorrow has the same shape.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;

use super::descriptor::{Descriptor, Platform};
use super::digest::Digest;
use super::media_type::MediaType;

/// Largest manifest that is accepted unless configured otherwise. Clients refuse above 4 MiB; some registries allow more.
pub const MANIFEST_SIZE_LIMIT_DEFAULT: u64 = 8 * 1024 * 1024;
/// The configured limit may not go below what the OCI distribution spec tells registries to accept.
pub const MANIFEST_SIZE_LIMIT_MIN: u64 = 4 * 1024 * 1024;

/// What a manifest is and what it points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The type under which it is stored and served.
    pub media_type: MediaType,
    pub kind: ManifestKind,
    /// Everything that it points at, in document order: config first, then layers, blobs or children.
    pub children: Vec<(Role, Descriptor)>,
    /// The manifest that this one refers to (OCI image spec 1.1, `subject`); no edge that keeps content.
    pub subject: Option<Descriptor>,
    /// `artifactType`, or the config's media type for an image manifest without one (OCI distribution spec, referrers).
    pub artifact_type: Option<String>,
    /// Children of an index that BuildKit added to describe another child, each with the one that it names
    /// (`vnd.docker.reference.digest`).
    pub attestations: HashMap<Digest, Digest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestKind {
    Index,
    Image,
    /// The OCI artifact manifest of the 1.1 release candidates.
    Artifact,
    /// Docker schema 1, signed or not.
    Schema1,
}

/// Why a manifest points at something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Config,
    Layer,
    Child,
}

/// The bytes are not a manifest; holds the reason in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidManifest(&'static str);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    blobs: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    fs_layers: Option<Vec<RawFsLayer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
    platform: Option<RawPlatform>,
    #[serde(default)]
    urls: Vec<String>,
    annotations: Option<RawAnnotations>,
}

/// BuildKit's (docs/attestations/attestation-storage.md there).
#[derive(Deserialize)]
struct RawAnnotations {
    #[serde(rename = "vnd.docker.reference.digest")]
    reference: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFsLayer {
    blob_sum: String,
}

impl Manifest {
    /// Reads `bytes`, which came with `content_type`. The document's own `mediaType` wins over a generic or missing header, and a
    /// header that names a manifest type must agree with the document's shape.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, InvalidManifest> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|_error| InvalidManifest("not the JSON of a manifest"))?;
        let declared = match &document.media_type {
            Some(text) if !text.is_empty() => Some(
                text.parse::<MediaType>()
                    .map_err(|_unit| InvalidManifest("its mediaType is not a media type"))?,
            ),
            _ => None,
        };
        let header = content_type.and_then(|text| text.parse::<MediaType>().ok());
        let kind = document.kind(declared.as_ref().or(header.as_ref()))?;
        let media_type = document.resolve_type(kind, declared, header)?;
        let children = document.children(kind)?;
        let attestations = document.attestations();
        let subject = document.subject.as_ref().map(RawDescriptor::check).transpose()?;
        let artifact_type = document.artifact_type.filter(|text| !text.is_empty()).or_else(|| {
            let (_, config) = children.iter().find(|(role, _)| *role == Role::Config)?;
            Some(config.media_type.as_str().to_owned())
        });
        Ok(Self { media_type, kind, children, subject, artifact_type, attestations })
    }

    /// The manifest that a child of an index describes, if it is an attestation of BuildKit: such a child goes with that manifest and is
    /// nothing that runs. A child of platform `unknown/unknown` that names none is an image like one without a platform.
    pub fn attested_by(&self, child: &Descriptor) -> Option<&Digest> {
        let is_unknown = child.platform.as_ref().is_some_and(Platform::is_unknown);
        self.attestations.get(&child.digest).filter(|_named| is_unknown)
    }
}

impl Document {
    /// The shape decides, and only one shape may be there.
    fn kind(&self, hint: Option<&MediaType>) -> Result<ManifestKind, InvalidManifest> {
        let image = self.layers.is_some() || self.config.is_some();
        let shapes =
            (self.manifests.is_some(), image, self.blobs.is_some(), self.fs_layers.is_some());
        // The artifact manifests of ORAS have no schemaVersion, but they name their type.
        let typed = self.media_type.as_ref().is_some_and(|text| !text.is_empty());
        let version = self.schema_version.or(if typed { Some(2) } else { None }).unwrap_or(0);
        match (version, shapes) {
            (2, (true, false, false, false)) => Ok(ManifestKind::Index),
            (2, (false, true, false, false)) => Ok(ManifestKind::Image),
            (2, (false, false, true, false)) => Ok(ManifestKind::Artifact),
            (1, (false, false, false, true)) => Ok(ManifestKind::Schema1),
            // An index without children and an artifact without blobs may omit the list; then only the type tells.
            (2, (false, false, false, false)) => match hint {
                Some(hint) if hint.is_index() => Ok(ManifestKind::Index),
                Some(hint) if hint.essence() == MediaType::OCI_ARTIFACT => {
                    Ok(ManifestKind::Artifact)
                }
                _ => Err(InvalidManifest("it has neither config, layers, manifests nor blobs")),
            },
            (1 | 2, _) => {
                Err(InvalidManifest("it has the members of more than one kind of manifest"))
            }
            _ => Err(InvalidManifest("its schemaVersion is neither 1 nor 2")),
        }
    }

    fn resolve_type(
        &self,
        kind: ManifestKind,
        declared: Option<MediaType>,
        header: Option<MediaType>,
    ) -> Result<MediaType, InvalidManifest> {
        if declared.as_ref().is_some_and(|declared| !agrees(declared, kind)) {
            return Err(InvalidManifest("its mediaType belongs to another kind of manifest"));
        }
        if let Some(header) = header.filter(MediaType::is_manifest) {
            if !agrees(&header, kind) {
                return Err(InvalidManifest(
                    "the Content-Type belongs to another kind of manifest",
                ));
            }
            // Signed schema 1 has no mediaType member, so there the header is all there is.
            return Ok(declared.unwrap_or(header));
        }
        Ok(declared.unwrap_or_else(|| {
            MediaType::known(match kind {
                ManifestKind::Index => MediaType::OCI_INDEX,
                ManifestKind::Image => MediaType::OCI_MANIFEST,
                ManifestKind::Artifact => MediaType::OCI_ARTIFACT,
                ManifestKind::Schema1 => MediaType::DOCKER_SCHEMA1_SIGNED,
            })
        }))
    }

    fn children(&self, kind: ManifestKind) -> Result<Vec<(Role, Descriptor)>, InvalidManifest> {
        if kind == ManifestKind::Schema1 {
            return self.fs_layers.iter().flatten().map(RawFsLayer::check).collect();
        }
        let config = self.config.iter().map(|raw| (Role::Config, raw));
        let layers = self.layers.iter().chain(&self.blobs).flatten().map(|raw| (Role::Layer, raw));
        let manifests = self.manifests.iter().flatten().map(|raw| (Role::Child, raw));
        config.chain(layers).chain(manifests).map(|(role, raw)| Ok((role, raw.check()?))).collect()
    }

    /// An annotation that names nothing describes nothing; that is no mistake of the index.
    fn attestations(&self) -> HashMap<Digest, Digest> {
        let named = |raw: &RawDescriptor| {
            let reference = raw.annotations.as_ref()?.reference.as_ref()?.as_str()?;
            Some((raw.digest.parse().ok()?, reference.parse().ok()?))
        };
        self.manifests.iter().flatten().filter_map(named).collect()
    }
}

/// A type that the program does not know agrees with every kind.
fn agrees(media_type: &MediaType, kind: ManifestKind) -> bool {
    match media_type.essence() {
        MediaType::OCI_INDEX | MediaType::DOCKER_LIST => kind == ManifestKind::Index,
        MediaType::OCI_MANIFEST | MediaType::DOCKER_MANIFEST => kind == ManifestKind::Image,
        MediaType::OCI_ARTIFACT => kind == ManifestKind::Artifact,
        MediaType::DOCKER_SCHEMA1 | MediaType::DOCKER_SCHEMA1_SIGNED => {
            kind == ManifestKind::Schema1
        }
        _ => true,
    }
}

impl RawDescriptor {
    fn check(&self) -> Result<Descriptor, InvalidManifest> {
        let text =
            if self.media_type.is_empty() { MediaType::OCTET_STREAM } else { &self.media_type };
        let media_type: MediaType = text
            .parse()
            .map_err(|_unit| InvalidManifest("a descriptor has an invalid mediaType"))?;
        let digest = self
            .digest
            .parse()
            .map_err(|_unit| InvalidManifest("a descriptor has an invalid digest"))?;
        let foreign = !self.urls.is_empty() || media_type.is_foreign_layer();
        let platform = self.platform.as_ref().map(|raw| Platform {
            os: raw.os.clone(),
            architecture: raw.architecture.clone(),
            variant: raw.variant.clone(),
        });
        let artifact_type = self.artifact_type.clone();
        Ok(Descriptor { media_type, digest, size: self.size, platform, artifact_type, foreign })
    }
}

impl RawFsLayer {
    /// Schema 1 names layers without their sizes; zero stands for "unknown" and is never compared.
    fn check(&self) -> Result<(Role, Descriptor), InvalidManifest> {
        let digest: Digest =
            self.blob_sum.parse().map_err(|_unit| InvalidManifest("a blobSum is no digest"))?;
        let media_type = MediaType::known(MediaType::OCTET_STREAM);
        let descriptor = Descriptor {
            media_type,
            digest,
            size: 0,
            platform: None,
            artifact_type: None,
            foreign: false,
        };
        Ok((Role::Layer, descriptor))
    }
}

impl fmt::Display for InvalidManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a manifest: {}", self.0)
    }
}

impl std::error::Error for InvalidManifest {}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":7}}"#)
    }

    fn parse(text: &str, header: Option<&str>) -> Result<Manifest, InvalidManifest> {
        Manifest::parse(text.as_bytes(), header)
    }

    #[test]
    fn an_image_points_at_config_and_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{},{}]}}"#,
            descriptor(MediaType::OCI_CONFIG),
            descriptor("application/vnd.oci.image.layer.v1.tar+zstd"),
            descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        );
        let manifest = parse(&text, Some(MediaType::OCI_MANIFEST)).unwrap();
        let roles: Vec<_> =
            manifest.children.iter().map(|(role, child)| (*role, child.foreign)).collect();
        assert_eq!(roles, [(Role::Config, false), (Role::Layer, false), (Role::Layer, true)]);
        assert_eq!(manifest.media_type.as_str(), MediaType::OCI_MANIFEST);
        assert_eq!(manifest.artifact_type.as_deref(), Some(MediaType::OCI_CONFIG));
    }

    #[test]
    fn the_documents_own_type_wins_over_a_generic_header() {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
            MediaType::DOCKER_LIST
        );
        for header in
            [None, Some("text/plain"), Some("application/json"), Some(MediaType::DOCKER_LIST)]
        {
            assert_eq!(parse(&text, header).unwrap().media_type.as_str(), MediaType::DOCKER_LIST);
        }
        assert!(parse(&text, Some(MediaType::OCI_MANIFEST)).is_err());
    }

    #[test]
    fn a_document_of_two_kinds_is_refused() {
        let text = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(parse(text, Some(MediaType::OCI_INDEX)).is_err());
        let text =
            format!(r#"{{"schemaVersion":2,"mediaType":"{}","layers":[]}}"#, MediaType::OCI_INDEX);
        assert!(parse(&text, None).is_err());
    }

    #[test]
    fn junk_is_no_manifest() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "{}",
            "[]",
            "null",
            "<html>",
            r#"{"schemaVersion":3,"layers":[]}"#,
            r#"{"schemaVersion":2}"#,
            &deep,
        ] {
            assert!(parse(text, None).is_err());
        }
        let text = r#"{"schemaVersion":2,"layers":[{"digest":"sha256:../x","size":1}]}"#;
        assert!(parse(text, None).is_err());
        let text = format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{D}","size":-1}}]}}"#);
        assert!(parse(&text, None).is_err());
    }

    #[test]
    fn schema_1_lists_its_layers() {
        let text = format!(r#"{{"schemaVersion":1,"fsLayers":[{{"blobSum":"{D}"}}]}}"#);
        let manifest = parse(&text, Some(MediaType::DOCKER_SCHEMA1_SIGNED)).unwrap();
        assert_eq!((manifest.kind, manifest.children.len()), (ManifestKind::Schema1, 1));
    }

    #[test]
    fn an_empty_index_is_told_by_its_type() {
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{}"}}"#, MediaType::OCI_INDEX);
        assert_eq!(parse(&text, None).unwrap().kind, ManifestKind::Index);
    }
}
