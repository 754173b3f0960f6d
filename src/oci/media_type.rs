//! Media types, checked so that they can go into a header unchanged.
//!
//! A registry passes any media type through (promise: bytes and types pass unchanged), so this is a bounded, header-safe string with
//! the few questions that the program asks of it, not an enumeration.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest media type in bytes, parameters included. RFC 6838 allows 127 + 1 + 127 for the type itself.
const MEDIA_TYPE_BYTES_MAX: usize = 512;

/// A media type as it stands in a manifest or a `Content-Type` header (RFC 9110, 8.3.1), parameters included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

/// The text is not a `type/subtype` in visible ASCII of at most 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMediaType;

impl MediaType {
    pub const OCI_INDEX: &'static str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &'static str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_ARTIFACT: &'static str = "application/vnd.oci.artifact.manifest.v1+json";
    pub const OCI_CONFIG: &'static str = "application/vnd.oci.image.config.v1+json";
    pub const DOCKER_LIST: &'static str =
        "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &'static str =
        "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_SCHEMA1: &'static str = "application/vnd.docker.distribution.manifest.v1+json";
    pub const DOCKER_SCHEMA1_SIGNED: &'static str =
        "application/vnd.docker.distribution.manifest.v1+prettyjws";
    pub const OCTET_STREAM: &'static str = "application/octet-stream";

    /// A media type known at compile time; the constants of this type go through here.
    pub(super) fn known(text: &'static str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The type without parameters, as written.
    pub fn essence(&self) -> &str {
        self.0.split_once(';').map_or(&*self.0, |(essence, _)| essence.trim_end())
    }

    /// Is this one of the manifest types that the program knows (index, image, artifact or schema 1)?
    pub fn is_manifest(&self) -> bool {
        self.is_index()
            || matches!(
                self.essence(),
                Self::OCI_MANIFEST
                    | Self::OCI_ARTIFACT
                    | Self::DOCKER_MANIFEST
                    | Self::DOCKER_SCHEMA1
                    | Self::DOCKER_SCHEMA1_SIGNED
            )
    }

    /// Is this an OCI index or a Docker manifest list?
    pub fn is_index(&self) -> bool {
        matches!(self.essence(), Self::OCI_INDEX | Self::DOCKER_LIST)
    }

    /// May descriptors of this type point away from the registry (`urls`)? Such content proves nothing about the repository.
    pub fn is_foreign_layer(&self) -> bool {
        let essence = self.essence();
        essence.starts_with("application/vnd.docker.image.rootfs.foreign.")
            || essence.starts_with("application/vnd.oci.image.layer.nondistributable.")
    }
}

impl FromStr for MediaType {
    type Err = InvalidMediaType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (kind, rest) = text.split_once('/').ok_or(InvalidMediaType)?;
        let visible = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        let token = |part: &str| !part.is_empty() && !part.contains([' ', '/', ',', '"']);
        let subtype = rest.split(';').next().unwrap_or_default().trim_end();
        if text.len() <= MEDIA_TYPE_BYTES_MAX && visible && token(kind) && token(subtype) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidMediaType)
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InvalidMediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a media type")
    }
}

impl std::error::Error for InvalidMediaType {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_proper_type_passes_unchanged() {
        for good in
            ["text/plain", "application/vnd.acme.thing+json; charset=utf-8", MediaType::OCI_INDEX]
        {
            assert_eq!(good.parse::<MediaType>().unwrap().as_str(), good);
        }
        assert!(
            "application/vnd.oci.image.index.v1+json; charset=utf-8"
                .parse::<MediaType>()
                .unwrap()
                .is_index()
        );
    }

    #[test]
    fn header_injection_is_no_media_type() {
        for bad in [
            "",
            "text",
            "/x",
            "x/",
            "a/b\r\nX: y",
            "a/b\u{e9}",
            "a b/c",
            &format!("a/{}", "b".repeat(600)),
        ] {
            assert!(bad.parse::<MediaType>().is_err(), "{bad:?} must not parse");
        }
    }
}
