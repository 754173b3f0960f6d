//! The images of [`super::life`]: manifests that share blobs, indexes that share manifests, and what refers to them.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use roadstead::metadata::RepositoryKey;
use roadstead::oci::{Digest, MediaType, Tag};
use serde_json::{Value, json};

pub const REPOSITORIES: [&str; 3] = ["docker.io/library/a", "docker.io/library/b", "ghcr.io/o/c"];
pub const TAGS: [&str; 2] = ["latest", "v1"];
pub const BLOBS: usize = 9;
/// The first six are manifests, then two indexes over some of them, and two that refer to a manifest and to an index.
pub const IMAGES: usize = 10;
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What the rules of the test may say.
pub fn scope(number: usize) -> String {
    let repository = REPOSITORIES[number % REPOSITORIES.len()];
    match number % 4 {
        0 => format!("{repository}:latest"),
        1 => format!("{repository}:v*"),
        2 => repository.to_owned(),
        _ => format!("{repository}@{}", digest_of(number % IMAGES)),
    }
}

pub fn blob(number: usize) -> Vec<u8> {
    format!("blob {number} ").repeat(20 + number).into_bytes()
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256_of(bytes)
}

/// Images below an index.
pub fn children(number: usize) -> Vec<usize> {
    match number {
        6 => vec![0, 1],
        7 => vec![1, 2],
        _ => Vec::new(),
    }
}

/// What an image refers to.
pub fn subject(number: usize) -> Option<usize> {
    match number {
        8 => Some(0),
        9 => Some(6),
        _ => None,
    }
}

/// Images that refer to one.
pub fn referrers(number: usize) -> Vec<usize> {
    (0..IMAGES).filter(|other| subject(*other) == Some(number)).collect()
}

/// Blobs of a manifest; neighbours share some. The last is its configuration.
pub fn blobs(number: usize) -> Vec<usize> {
    match number {
        0..6 => vec![number, number + 1, 8],
        6 | 7 => Vec::new(),
        _ => vec![number - 5, 7],
    }
}

/// The bytes of an image and their digest; made once, because the model asks for them all the time.
static MADE: LazyLock<Vec<(Vec<u8>, Digest)>> = LazyLock::new(|| {
    (0..IMAGES).fold(Vec::new(), |mut made, number| {
        let bytes = manifest(number, &made).to_string().into_bytes();
        let digest = digest(&bytes);
        made.push((bytes, digest));
        made
    })
});

/// A manifest over blobs, or an index over images that were made before.
fn manifest(number: usize, made: &[(Vec<u8>, Digest)]) -> Value {
    let described = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": digest(bytes).to_string(), "size": bytes.len() });
    let of_image = |other: usize| described(kind(other), &made[other].0);
    let of_blob = |(kind, other): (&str, usize)| described(kind, &blob(other));
    let mut document = json!({ "schemaVersion": 2, "mediaType": kind(number), "annotations": { "image": number.to_string() } });
    let mut layers = blobs(number);
    if let Some(config) = layers.pop() {
        document["config"] = of_blob((MediaType::OCI_CONFIG, config));
        document["layers"] = layers.into_iter().map(|layer| of_blob((LAYER, layer))).collect();
    } else {
        document["manifests"] = children(number).into_iter().map(of_image).collect();
    }
    if let Some(subject) = subject(number) {
        document["subject"] = of_image(subject);
    }
    document
}

fn kind(number: usize) -> &'static str {
    if children(number).is_empty() { MediaType::OCI_MANIFEST } else { MediaType::OCI_INDEX }
}

pub fn image(number: usize) -> Vec<u8> {
    MADE[number].0.clone()
}

pub fn digest_of(number: usize) -> Digest {
    MADE[number].1
}

/// An image as a list of others describes it.
pub fn descriptor(number: usize) -> Value {
    let (bytes, digest) = &MADE[number];
    json!({ "mediaType": kind(number), "digest": digest.to_string(), "size": bytes.len() })
}

/// Which image it is.
pub fn number_of(object: &Digest) -> Option<usize> {
    MADE.iter().position(|(_, digest)| digest == object)
}

/// What an import that brings referrers of an image keeps so that they are found without an upstream.
pub fn list_of_referrers(number: usize) -> Option<Digest> {
    let listed: Vec<Value> = referrers(number).into_iter().map(listed).collect();
    let list =
        json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": listed });
    (!listed.is_empty()).then(|| digest(list.to_string().as_bytes()))
}

/// As a list of referrers has it (OCI distribution spec, "Listing Referrers").
fn listed(number: usize) -> Value {
    let mut descriptor = descriptor(number);
    descriptor["artifactType"] = json!(MediaType::OCI_CONFIG);
    descriptor["annotations"] = json!({ "image": number.to_string() });
    descriptor
}

/// Every image and blob.
pub fn objects() -> Vec<Digest> {
    let images = (0..IMAGES).map(digest_of);
    images.chain((0..BLOBS).map(|number| digest(&blob(number)))).collect()
}

/// What goes with an image: its children, and what refers to it.
pub fn goes_with(number: usize) -> Vec<usize> {
    children(number).into_iter().chain(referrers(number)).collect()
}

/// The image, everything below it, and all of that which refers to any of it.
pub fn family(number: usize) -> BTreeSet<Digest> {
    let mut all = closure(number);
    all.extend(goes_with(number).into_iter().flat_map(family));
    all
}

/// The image and everything below it.
pub fn closure(number: usize) -> BTreeSet<Digest> {
    let mut all = BTreeSet::from([digest_of(number)]);
    all.extend(blobs(number).into_iter().map(|layer| digest(&blob(layer))));
    all.extend(children(number).into_iter().flat_map(closure));
    all
}

pub fn repository(number: usize) -> RepositoryKey {
    let (upstream, name) = REPOSITORIES[number].split_once('/').unwrap();
    RepositoryKey { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() }
}

pub fn tag(number: usize) -> Tag {
    TAGS[number].parse().unwrap()
}

/// A name for a message.
pub fn name_of(object: &Digest) -> String {
    let list = (0..IMAGES).find(|number| list_of_referrers(*number).as_ref() == Some(object));
    let blobs = (0..BLOBS).find(|number| digest(&blob(*number)) == *object);
    number_of(object)
        .map(|number| format!("image {number}"))
        .or_else(|| list.map(|number| format!("the list of what refers to image {number}")))
        .or_else(|| blobs.map(|number| format!("blob {number}")))
        .unwrap_or_else(|| object.to_string())
}
