//! The images of [`super::life`]: manifests that share blobs, indexes that share manifests, and what refers to them.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]

use std::collections::BTreeSet;

use roadstead::metadata::RepositoryKey;
use roadstead::oci::{Digest, Role, Tag};

pub const REPOSITORIES: [&str; 3] = ["docker.io/library/a", "docker.io/library/b", "ghcr.io/o/c"];
pub const TAGS: [&str; 2] = ["latest", "v1"];
pub const BLOBS: usize = 9;
/// The first six are manifests, then two indexes over some of them, and two that refer to a manifest and to an index.
pub const IMAGES: usize = 10;

/// What the rules of the test may say.
pub fn scope(number: usize) -> String {
    let repository = REPOSITORIES[number % REPOSITORIES.len()];
    match number % 4 {
        0 => format!("{repository}:latest"),
        1 => format!("{repository}:v*"),
        2 => repository.to_owned(),
        _ => format!("{repository}@{}", digest(&image(number % IMAGES))),
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

/// Blobs of a manifest; neighbours share some.
pub fn blobs(number: usize) -> Vec<usize> {
    match number {
        0..6 => vec![number, number + 1, 8],
        6 | 7 => Vec::new(),
        _ => vec![7, number - 5],
    }
}

pub fn below(number: usize) -> Vec<(Role, Vec<u8>)> {
    let manifests = children(number).into_iter().map(|child| (Role::Child, image(child)));
    let layers = blobs(number).into_iter().map(|layer| (Role::Layer, blob(layer)));
    manifests.chain(layers).collect()
}

pub fn image(number: usize) -> Vec<u8> {
    let names: Vec<String> =
        below(number).iter().map(|(_, bytes)| digest(bytes).to_string()).collect();
    format!("{{\"image\":{number},\"below\":{names:?}}}").into_bytes()
}

/// Every image and blob.
pub fn objects() -> Vec<Digest> {
    let images = (0..IMAGES).map(|number| digest(&image(number)));
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
    let mut all = BTreeSet::from([digest(&image(number))]);
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
    let images = (0..IMAGES).find(|number| digest(&image(*number)) == *object);
    let blobs = (0..BLOBS).find(|number| digest(&blob(*number)) == *object);
    images
        .map(|number| format!("image {number}"))
        .or_else(|| blobs.map(|number| format!("blob {number}")))
        .unwrap_or_else(|| object.to_string())
}
