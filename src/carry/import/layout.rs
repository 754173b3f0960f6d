//! The images of an OCI image layout (OCI image spec, image-layout): what `index.json` lists, and how the images are called.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::intake::{Gathered, bad};
use super::names::Document;
use crate::carry::error::{Error, Reason};
use crate::carry::settings::IMAGES_MAX;
use crate::clock::Timestamp;
use crate::metadata::RepositoryKey;
use crate::oci::{Digest, Manifest, ManifestKind, MediaType, Tag};
use crate::registry::desk::{Desk, Image};

/// The name of an image in full, as containerd and docker write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// A name or a tag (OCI image spec, annotations).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// When the tag moved there, as our own bundles tell it.
pub(super) const SINCE: &str = "dev.roadstead.since";
/// The major version of the layout that is understood.
const LAYOUT_MAJOR: &str = "1.";
const INDEX: &str = "index.json";

/// A manifest that a bundle lists.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) digest: Digest,
    /// What the list says of it.
    pub(super) size: u64,
    pub(super) media_type: MediaType,
    pub(super) name: Option<Named>,
    /// A tag without a repository.
    pub(super) bare_tag: Option<Tag>,
    /// When the tag moved there.
    pub(super) since: Option<Timestamp>,
}

/// Where an image belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) key: RepositoryKey,
    pub(super) tag: Option<Tag>,
}

#[derive(Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads `index.json`.
pub(super) fn roots(gathered: &Gathered, desk: &Desk) -> Result<Vec<Root>, Error> {
    let Some(layout) = gathered.documents.get(&Document::Layout) else {
        return Err(bad("oci-layout", "it is missing beside index.json"));
    };
    let layout: Layout = serde_json::from_slice(layout)
        .map_err(|error| bad("oci-layout", &format!("it cannot be read: {error}")))?;
    if !layout.version.starts_with(LAYOUT_MAJOR) {
        return Err(bad(
            "oci-layout",
            &format!("its version {:?} is not understood", layout.version),
        ));
    }
    let text = gathered.documents.get(&Document::Index).map(Vec::as_slice).unwrap_or_default();
    // One document is one kind of manifest, here as well.
    let checked = Manifest::parse(text, Some(MediaType::OCI_INDEX))
        .map_err(|error| bad(INDEX, &error.to_string()))?;
    if checked.kind != ManifestKind::Index {
        return Err(bad(INDEX, "it is no index"));
    }
    let index: Index = serde_json::from_slice(text)
        .map_err(|error| bad(INDEX, &format!("it cannot be read: {error}")))?;
    if index.manifests.is_empty() {
        return Err(bad(INDEX, "it lists nothing"));
    }
    if index.manifests.len() > IMAGES_MAX {
        return Err(bad(INDEX, &format!("it lists more than {IMAGES_MAX} manifests")));
    }
    index.manifests.into_iter().map(|entry| entry.read(desk)).collect()
}

impl Entry {
    fn read(self, desk: &Desk) -> Result<Root, Error> {
        let Self { media_type, digest, size, annotations } = self;
        let parsed: Digest =
            digest.parse().map_err(|_invalid| bad(INDEX, &format!("{digest:?} is no digest")))?;
        let media_type: MediaType = media_type
            .parse()
            .map_err(|_invalid| bad(INDEX, &format!("{media_type:?} is no media type")))?;
        let annotation =
            |key: &str| annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
        let since = annotation(SINCE)
            .map(|text| text.parse::<Timestamp>())
            .transpose()
            .map_err(|error| bad(INDEX, &format!("{SINCE} of {digest}: {error}")))?;
        let mut root = Root { digest: parsed, size, media_type, name: None, bare_tag: None, since };
        let reference = annotation(REF_NAME);
        let full =
            annotation(CONTAINERD_NAME).or(reference.filter(|text| text.contains(['/', ':', '@'])));
        match (full, reference) {
            (Some(full), _) => root.name = Some(named(desk, full, Some(&parsed))?),
            // What is no name in full is a tag, or a word of the tool that wrote it.
            (None, Some(bare)) => root.bare_tag = bare.parse().ok(),
            (None, None) => {}
        }
        Ok(root)
    }
}

/// Reads the name that a bundle gives an image.
///
/// # Errors
/// It is none, its registry is not configured, or it names another digest than the one that it stands at.
pub(super) fn named(desk: &Desk, text: &str, digest: Option<&Digest>) -> Result<Named, Error> {
    let image = desk.image(text)?;
    is_configured(&image)?;
    if let (Some(named), Some(digest)) = (image.digest(), digest)
        && named != digest
    {
        return Err(bad(INDEX, &format!("{text} is the name of {digest}")));
    }
    Ok(Named { key: image.key().clone(), tag: image.tag_meant() })
}

fn is_configured(image: &Image) -> Result<(), Error> {
    if image.proxied().is_some() {
        return Ok(());
    }
    let upstream = &image.key().upstream;
    Err(Error::new(
        Reason::UnknownRegistry,
        format!(
            "{image}: {upstream} is no registry that is configured here; add [upstream.{:?}] to the configuration, then import again; nothing was taken in",
            upstream.as_str()
        ),
    ))
}

/// Gives the images that have no name the one that was ordered, and finds out what nobody named. Manifests that refer to others
/// (`refers`) need no name.
pub(super) fn give_names(
    roots: &mut [Root],
    order: Option<&Image>,
    refers: &HashSet<Digest>,
) -> Result<(), Error> {
    let nameless: Vec<&mut Root> = roots
        .iter_mut()
        .filter(|root| root.name.is_none() && !refers.contains(&root.digest))
        .collect();
    let Some(image) = order else {
        return match nameless.first() {
            None => Ok(()),
            Some(root) => {
                let tag = root.bare_tag.as_ref().map(|tag| format!(" (only the tag {tag})"));
                let tag = tag.unwrap_or_default();
                Err(bad(
                    INDEX,
                    &format!(
                        "{} has no name{tag}; say it with --as, such as --as ghcr.io/org/app:1",
                        root.digest
                    ),
                ))
            }
        };
    };
    is_configured(image)?;
    if nameless.is_empty() {
        return Err(Error::new(
            Reason::Value,
            format!(
                "every image of the bundle has a name, so none is called {image}; import it without --as"
            ),
        ));
    }
    let mut given = HashSet::new();
    for root in nameless {
        if image.digest().is_some_and(|digest| *digest != root.digest) {
            return Err(bad(INDEX, &format!("{image} is to be the name of {}", root.digest)));
        }
        let own = root.bare_tag.clone().filter(|_| image.tag().is_none());
        let tag = own.or_else(|| image.tag_meant());
        if !given.insert(tag.clone()) {
            return Err(bad(
                INDEX,
                &format!(
                    "more than one image has no name, and {image} is one name; cannot tell them apart"
                ),
            ));
        }
        root.name = Some(Named { key: image.key().clone(), tag });
    }
    Ok(())
}
