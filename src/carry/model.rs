//! What is answered about images as wholes: plain data, as the admin API sends it and the commands print it.
//!
//! Images are named in full (`docker.io/library/nginx:1.27`), digests as `sha256:…`, platforms as `os/architecture[/variant]`, times in
//! RFC 3339.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Can an image be replayed with the cable cut?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedImage {
    pub image: String,
    /// `None`: nothing is known of it.
    pub digest: Option<String>,
    /// What was asked for is complete: the platforms that were named, or at least one.
    pub complete: bool,
    pub platforms: Vec<CheckedPlatform>,
    /// What is not here, of the platforms that were asked for.
    pub missing: Vec<MissingPart>,
    /// Bytes that are here, and that are not as far as their size is known.
    pub bytes_present: u64,
    pub bytes_missing: u64,
    /// Signatures and other manifests that refer to it and are here whole.
    pub referrers: u64,
    /// Why it would not be served although it is here, or why nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One platform of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedPlatform {
    /// `unknown` for an image that is no part of an index and whose configuration is not here.
    pub platform: String,
    pub digest: String,
    pub complete: bool,
    pub bytes_present: u64,
    pub bytes_missing: u64,
}

/// A descriptor whose content is not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPart {
    pub digest: String,
    /// `manifest`, `index`, `config`, `layer` or `referrer`.
    pub role: String,
    pub platform: Option<String>,
    pub size: Option<u64>,
    /// `absent`, `damaged` or `removed`.
    pub state: String,
}

/// Which upstreams are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineInfo {
    /// None is: by the configuration or `serve --offline`.
    pub configured: bool,
    /// None is: switched at run time.
    pub all: bool,
    /// Those that are not asked, by configuration or switch; a family of hosts is one, as `*.pkg.dev`.
    pub upstreams: Vec<String>,
}

/// Something that clients asked for and did not get, because it was not here and upstream was not asked or did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedInfo {
    /// What `warm --file` takes.
    pub image: String,
    /// `manifest` or `blob`.
    pub kind: String,
    pub first: Timestamp,
    pub last: Timestamp,
    pub times: u64,
    /// `offline` or `unreachable`.
    pub reason: String,
}

/// A named set of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetInfo {
    pub name: String,
    /// `record` or `import`.
    pub kind: String,
    pub since: Timestamp,
    /// `None`: it is being recorded.
    pub until: Option<Timestamp>,
    /// Its content is kept, whatever limits say.
    pub pinned: bool,
    pub images: u64,
    /// What it is of: the filter of a recording, the name of a bundle.
    pub detail: String,
}

/// One image of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    pub image: String,
    pub digest: String,
    pub at: Timestamp,
}

/// What is to be written out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportOrder {
    /// As people name them; with a digest, that revision under that tag.
    pub images: Vec<String>,
    pub sets: Vec<String>,
    /// `os/architecture[/variant]`; empty: every platform that is complete here.
    pub platforms: Vec<String>,
    /// Without signatures and other manifests that refer to the images.
    pub without_referrers: bool,
    /// Digests that the other side has already (a receipt).
    pub base: Vec<String>,
}

/// What a bundle will hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportPlan {
    pub images: Vec<ExportedImage>,
    /// Objects in the bundle, and the bytes of the whole tar.
    pub objects: u64,
    pub bytes: u64,
    /// Objects that the other side has already.
    pub left_out: u64,
    /// Every digest of these images, sorted: with those of `base`, what the other side has after the import.
    pub receipt: Vec<String>,
}

/// One image of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedImage {
    pub image: String,
    pub digest: String,
    pub platforms: Vec<String>,
    pub bytes: u64,
}
