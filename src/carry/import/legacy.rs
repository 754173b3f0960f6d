//! What `docker save` wrote before it wrote OCI image layouts, and what others write like it: configurations and layers without a manifest.
//! The manifest (Docker schema 2) is made of them here.
//!
//! What must hold: layers and configuration stay byte for byte, so the image keeps its ID, which is the digest of its configuration; each
//! layer is what the configuration says it is; the same archive gives the same manifest.

use serde::{Deserialize, Serialize};

use super::intake::{Gathered, Part, bad};
use super::layout::{Root, named};
use super::names::{self, Document, Place};
use crate::carry::error::Error;
use crate::carry::service::Carry;
use crate::carry::settings::IMAGES_MAX;
use crate::content;
use crate::oci::{Digest, MANIFEST_SIZE_LIMIT_DEFAULT, MediaType};

const LIST: &str = "manifest.json";
/// Docker's media types (distribution, "Image Manifest Version 2, Schema 2"); a layer that is not compressed is read by docker, containerd
/// and skopeo alike.
const CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar";
const GZIP_LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker itself refuses images of more than 127 layers; others allow some more.
const LAYERS_MAX: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Schema2 {
    schema_version: u32,
    media_type: &'static str,
    config: Described,
    layers: Vec<Described>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    media_type: &'static str,
    size: u64,
    digest: String,
}

impl Described {
    fn new(media_type: &'static str, part: Part) -> Self {
        Self { media_type, size: part.size, digest: part.digest.to_string() }
    }
}

/// The images of the archive, whose manifests are stored and in `gathered` then.
pub(super) async fn roots(carry: &Carry, gathered: &mut Gathered) -> Result<Vec<Root>, Error> {
    let Some(text) = gathered.documents.get(&Document::Manifest) else {
        let old = gathered.documents.contains_key(&Document::Repositories);
        let why = if old {
            "it is missing; archives of docker before 1.10 cannot be read: load it into a docker and save it again"
        } else {
            "neither it nor index.json is there, so this is no bundle, no OCI image layout and nothing that docker save wrote"
        };
        return Err(bad(LIST, why));
    };
    let entries: Vec<Entry> = serde_json::from_slice(text)
        .map_err(|error| bad(LIST, &format!("it cannot be read: {error}")))?;
    if entries.is_empty() || entries.len() > IMAGES_MAX {
        return Err(bad(
            LIST,
            &format!("it lists {} images; want 1 to {IMAGES_MAX}", entries.len()),
        ));
    }
    let mut roots = Vec::new();
    for entry in &entries {
        let manifest = build(carry, gathered, entry).await?;
        let (digest, size) = store(carry, gathered, manifest).await?;
        let media_type: MediaType = MediaType::DOCKER_MANIFEST.parse().expect("it is a media type");
        let root = Root { digest, size, media_type, name: None, bare_tag: None, since: None };
        let names = entry.repo_tags.as_deref().unwrap_or_default();
        for name in names {
            let name = named(&carry.inner().desk, name, None)?;
            roots.push(Root { name: Some(name), ..root.clone() });
        }
        if names.is_empty() {
            roots.push(root);
        }
    }
    Ok(roots)
}

async fn build(carry: &Carry, gathered: &Gathered, entry: &Entry) -> Result<Vec<u8>, Error> {
    let layers = entry.layers.as_deref().unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(bad(LIST, &format!("{} has more than {LAYERS_MAX} layers", entry.config)));
    }
    let config = part(gathered, &entry.config)?;
    let text = carry.content().get(&config.digest, MANIFEST_SIZE_LIMIT_DEFAULT).await;
    let text = text.map_err(|error| not_stored(&error))?.ok_or_else(|| {
        bad(&entry.config, "it is larger than a configuration may be, or cannot be read")
    })?;
    let read: Config = serde_json::from_slice(&text).map_err(|error| {
        bad(&entry.config, &format!("it is no configuration of an image: {error}"))
    })?;
    // Named by its digest, so that it can be looked for.
    if let Some(stem) = entry.config.strip_suffix(".json")
        && stem.len() == config.digest.hex().len()
        && stem != config.digest.hex()
    {
        return Err(bad(&entry.config, &format!("its bytes have the digest {}", config.digest)));
    }
    let diff_ids = read.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        return Err(bad(
            &entry.config,
            &format!("it names {} layers, and {LIST} {}", diff_ids.len(), layers.len()),
        ));
    }
    let layers = layers.iter().zip(&diff_ids).map(|(name, diff_id)| {
        let layer = part(gathered, name)?;
        Ok(Described::new(layer_type(name, layer, diff_id)?, layer))
    });
    let manifest = Schema2 {
        schema_version: 2,
        media_type: MediaType::DOCKER_MANIFEST,
        config: Described::new(CONFIG_TYPE, config),
        layers: layers.collect::<Result<_, Error>>()?,
    };
    Ok(serde_json::to_vec(&manifest).expect("a manifest is plain data with text keys"))
}

/// How the layer is compressed, if it is what the configuration names.
fn layer_type(name: &str, layer: Part, diff_id: &str) -> Result<&'static str, Error> {
    let wanted: Digest = diff_id
        .parse()
        .map_err(|_invalid| bad(name, &format!("its configuration names it {diff_id:?}")))?;
    if layer.digest == wanted {
        return Ok(LAYER_TYPE);
    }
    match layer.unpacked {
        Some(unpacked) if unpacked == wanted => Ok(GZIP_LAYER_TYPE),
        unpacked => {
            let found = unpacked.unwrap_or(layer.digest);
            Err(bad(
                name,
                &format!("it is the layer {found}, and its configuration names {wanted}"),
            ))
        }
    }
}

/// The file of this name, over links.
fn part(gathered: &Gathered, name: &str) -> Result<Part, Error> {
    let tidied = names::tidied(name).ok_or_else(|| bad(LIST, &format!("{name:?} is no name")))?;
    if !matches!(names::place(tidied), Some(Place::Part | Place::Blob(_))) {
        return Err(bad(LIST, &format!("{name:?} is no configuration and no layer")));
    }
    let found = names::follow(tidied, &gathered.parts, &gathered.links);
    found.copied().ok_or_else(|| bad(LIST, &format!("{name} is not in the archive")))
}

/// Stores a manifest that was made here.
async fn store(
    carry: &Carry,
    gathered: &mut Gathered,
    manifest: Vec<u8>,
) -> Result<(Digest, u64), Error> {
    let (digest, size) =
        (Digest::sha256_of(&manifest), u64::try_from(manifest.len()).unwrap_or(u64::MAX));
    if gathered.content.contains_key(&digest) {
        return Ok((digest, size));
    }
    let content = carry.content();
    let here = content.hold(&digest).await.map_err(|error| not_stored(&error))?;
    let held = if let Some(held) = here {
        held
    } else {
        gathered.new.insert(digest, size);
        let mut arrival = content.receive(size).await.map_err(|error| not_stored(&error))?;
        let write = move || arrival.write(&manifest).map(|()| arrival);
        let written = carry.inner().tasks.spawn_blocking(write).await;
        let written = written.map_err(std::io::Error::other).flatten();
        let arrival = written.map_err(|error| not_stored(&error.into()))?;
        content.admit(arrival, &digest).await.map_err(|error| not_stored(&error))?
    };
    gathered.content.insert(digest, held);
    Ok((digest, size))
}

fn not_stored(error: &content::Error) -> Error {
    super::intake::cannot_store("a manifest", 0, error)
}
