//! The documents at the head of a bundle: what is in it, in the words of the OCI image layout and in those of `docker save`.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use crate::clock::Timestamp;
use crate::metadata::RepositoryKey;
use crate::oci::{Digest, MediaType};

/// By which skopeo, and whoever follows the OCI image spec, finds an image in a layout ("Pre-Defined Annotation Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// By which containerd does.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Since when the tag was seen to point there, so that whoever takes the bundle in moves no tag back.
const SINCE: &str = "dev.roadstead.since";
/// OCI image spec 1.1, "oci-layout file".
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A descriptor of `index.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    pub(super) size: u64,
    /// Of a manifest that refers to an image.
    pub(super) artifact_type: Option<String>,
    pub(super) since: Option<Timestamp>,
}

/// An image that docker can run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loadable {
    pub(super) config: Digest,
    /// From the lowest up; the same one may come twice.
    pub(super) layers: Vec<Digest>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'a str,
    manifests: Vec<Descriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// `index.json`: those with a name in the order of their names, then those without.
pub(super) fn index(named: &BTreeMap<String, Listed>, others: &[Listed]) -> Bytes {
    let named = named.iter().map(|(name, listed)| descriptor(Some(name), listed));
    let others = others.iter().map(|listed| descriptor(None, listed));
    let index = Index {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX,
        manifests: named.chain(others).collect(),
    };
    json(&index)
}

fn descriptor<'a>(name: Option<&String>, listed: &'a Listed) -> Descriptor<'a> {
    let mut annotations = BTreeMap::new();
    if let Some(name) = name {
        annotations.insert(REF_NAME, name.clone());
        annotations.insert(CONTAINERD_NAME, name.clone());
    }
    if let Some(since) = listed.since {
        annotations.insert(SINCE, since.to_string());
    }
    Descriptor {
        media_type: listed.media_type.as_str(),
        digest: listed.digest.to_string(),
        size: listed.size,
        artifact_type: listed.artifact_type.as_deref(),
        annotations,
    }
}

/// `manifest.json`: each image once, with all its tags. `None` if there is no image that docker can run: an empty list would make
/// `docker load` succeed with nothing.
pub(super) fn docker(images: &BTreeMap<Loadable, Vec<String>>) -> Option<Bytes> {
    if images.is_empty() {
        return None;
    }
    let images = images.iter().map(|(image, tags)| DockerImage {
        config: image.config.layout_path(),
        repo_tags: tags.clone(),
        layers: image.layers.iter().map(Digest::layout_path).collect(),
    });
    Some(json(&images.collect::<Vec<_>>()))
}

/// The name of a repository as docker shows it: nothing in front of what it takes for granted.
pub(super) fn short(key: &RepositoryKey) -> String {
    let name = key.name.as_str();
    if key.upstream.as_str() != "docker.io" {
        return key.to_string();
    }
    let bare = name.strip_prefix("library/").filter(|rest| !rest.contains('/'));
    bare.unwrap_or(name).to_owned()
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("it is plain data with text keys").into()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn listed(seed: &str, since: Option<i64>) -> Listed {
        Listed {
            digest: Digest::sha256_of(seed.as_bytes()),
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            size: 7,
            artifact_type: since.is_none().then(|| "application/vnd.example".to_owned()),
            since: since.map(Timestamp::from_millis),
        }
    }

    #[test]
    fn an_index_names_what_has_a_name() {
        let named = BTreeMap::from([
            ("docker.io/library/nginx:1.27".to_owned(), listed("b", Some(0))),
            ("docker.io/a/b:1".to_owned(), listed("a", Some(1000))),
        ]);
        let bytes = index(&named, &[listed("c", None)]);
        assert_eq!(bytes, index(&named, &[listed("c", None)]));
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        let first = &read["manifests"][0];
        assert_eq!(first["annotations"][REF_NAME], "docker.io/a/b:1");
        assert_eq!(first["annotations"][CONTAINERD_NAME], "docker.io/a/b:1");
        assert_eq!(first["annotations"][SINCE], "1970-01-01T00:00:01Z");
        assert_eq!((&first["size"], &first["artifactType"]), (&7.into(), &Value::Null));
        assert_eq!(read["manifests"][2]["artifactType"], "application/vnd.example");
        assert_eq!(read["manifests"][2]["annotations"], Value::Null);
        assert_eq!(read["schemaVersion"], 2);
        let layout: Value = serde_json::from_slice(LAYOUT).unwrap();
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
    }

    #[test]
    fn docker_gets_paths_and_short_names() {
        let (config, layer) = (Digest::sha256_of(b"c"), Digest::sha256_of(b"l"));
        let image = Loadable { config, layers: vec![layer, layer] };
        let bytes = docker(&BTreeMap::from([(image, vec!["nginx:1".to_owned()])])).unwrap();
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read[0]["Config"], format!("blobs/sha256/{}", config.hex()));
        assert_eq!(read[0]["Layers"][1], format!("blobs/sha256/{}", layer.hex()));
        assert_eq!(read[0]["RepoTags"][0], "nginx:1");
        assert_eq!(docker(&BTreeMap::new()), None);
    }

    #[test]
    fn names_are_as_short_as_docker_writes_them() {
        for (upstream, name, wanted) in [
            ("docker.io", "library/nginx", "nginx"),
            ("docker.io", "team/app", "team/app"),
            ("docker.io", "library/a/b", "library/a/b"),
            ("ghcr.io", "library/nginx", "ghcr.io/library/nginx"),
        ] {
            let (upstream, name) = (upstream.parse().unwrap(), name.parse().unwrap());
            assert_eq!(short(&RepositoryKey { upstream, name }), wanted);
        }
    }
}
