//! Writing images out: one tar with an OCI image layout in it, which roadstead, skopeo, containerd and `docker load` read.
//!
//! What must hold:
//! - The same content, the same history of its tags and the same order of it give the same bytes, whatever order the names came in: nothing
//!   in a bundle tells of this machine, its clock or its users.
//! - The length is known before the first byte goes out, and a bundle that cannot be completed ends before it.
//! - What a bundle holds does not go while it is written, and what is written has the bytes that its digest names.
//! - An image that is not complete is no part of any bundle: the whole order is refused, with what is missing.
//!
//! The layout (OCI image spec 1.1, "Image Layout"): `oci-layout`; `index.json` with a descriptor for each name and one without a name for
//! each manifest that refers to an image; `manifest.json`, by which every `docker load` finds the images that docker can run; then the
//! manifests and then all other content, each by digest.

mod archive;
mod choice;
mod documents;
mod plan;
mod roots;
mod service;
mod stream;

pub use service::Bundle;
