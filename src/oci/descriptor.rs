//! Descriptors: the edges from a manifest to its content (OCI image spec, "Content Descriptors").
//!
//! Only the fields that the program acts on are read; the manifest's bytes are stored and served as they came, so nothing is lost.

use std::fmt;

use super::digest::Digest;
use super::media_type::MediaType;

/// A pointer from a manifest to content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: MediaType,
    pub digest: Digest,
    /// Bytes of the content as the manifest claims them; the content's digest has the last word.
    pub size: u64,
    /// Present on children of an index.
    pub platform: Option<Platform>,
    /// The artifact type that an index lists for a child (referrers API).
    pub artifact_type: Option<String>,
    /// True if the content may be fetched from elsewhere (`urls`, or a foreign-layer type). Such a descriptor is no proof that the
    /// repository holds the content.
    pub foreign: bool,
}

/// The platform of an index child (OCI image index spec).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// What BuildKit writes for children that nobody runs.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    /// `os/architecture[/variant]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}
