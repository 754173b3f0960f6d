//! The words of the trade, checked on entry.
//!
//! Every name, tag, digest, media type and range that enters the program becomes one of these types at the door, so that no other
//! room ever handles a raw string from a client or an upstream. Nothing here does I/O or knows of any other room but the clock's
//! moments.

#[cfg(test)]
mod corpus_tests;
mod descriptor;
mod digest;
mod error_code;
mod lockfile;
mod manifest;
mod media_type;
mod name;
mod pattern;
mod platform_pattern;
mod range;
mod receipt;
mod scope;
mod set_name;

pub use descriptor::{Descriptor, Platform};
pub use digest::{Algorithm, Digest, DigestHasher, InvalidDigest};
pub use error_code::ErrorCode;
pub use lockfile::{
    InvalidLockfile, LOCKFILE_BYTES_MAX, LOCKFILE_IMAGES_MAX, LockedImage, LockedName, Lockfile,
    LockfileFull,
};
pub use manifest::{
    InvalidManifest, MANIFEST_SIZE_LIMIT_DEFAULT, MANIFEST_SIZE_LIMIT_MIN, Manifest, ManifestKind,
    Role,
};
pub use media_type::{InvalidMediaType, MediaType};
pub use name::{InvalidName, Reference, RegistryName, RepositoryName, Tag, looks_like_host};
pub use pattern::{HostFamily, InvalidHostFamily, InvalidTagPattern, TagPattern};
pub use platform_pattern::{InvalidPlatform, PlatformPattern};
pub use range::{ByteRange, RANGES_PER_REQUEST_MAX, RangeError, RangeSpec, parse_range};
pub use receipt::{InvalidReceipt, RECEIPT_BYTES_MAX, RECEIPT_DIGESTS_MAX, Receipt, ReceiptFull};
pub use scope::{InvalidScope, SCOPE_BYTES_MAX, Scope};
pub use set_name::{InvalidSetName, SetName};
