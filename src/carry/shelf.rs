//! A store with images in it, for the tests of this room: what an upstream would have shown, put in without one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::clock::{ManualClock, Timestamp};
use crate::content::{self, Content, MinFree};
use crate::metadata::{Proof, RepositoryKey, RevisionCommit, TagMove};
use crate::oci::{Digest, Manifest, MediaType};

pub(super) struct Shelf {
    pub(super) content: Content,
    pub(super) key: RepositoryKey,
    tasks: TaskTracker,
    root: TempDir,
}

/// A manifest as bytes.
#[derive(Clone)]
pub(super) struct Paper(pub(super) Bytes, &'static str);

impl Paper {
    pub(super) fn image(document: &Value) -> Self {
        Self(document.to_string().into(), MediaType::OCI_MANIFEST)
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::sha256_of(&self.0)
    }

    pub(super) fn descriptor(&self) -> Value {
        json!({ "mediaType": self.1, "digest": self.digest().to_string(), "size": self.0.len() })
    }

    pub(super) fn on(&self, os: &str, architecture: &str) -> Value {
        let mut descriptor = self.descriptor();
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    }

    pub(super) fn attesting(&self, subject: &Self) -> Value {
        let mut descriptor = self.on("unknown", "unknown");
        descriptor["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": subject.digest().to_string(),
        });
        descriptor
    }
}

pub(super) fn blob(bytes: &[u8], media_type: &str) -> Value {
    let digest = Digest::sha256_of(bytes).to_string();
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
}

pub(super) fn config_of(architecture: &str) -> Vec<u8> {
    json!({ "os": "linux", "architecture": architecture }).to_string().into_bytes()
}

/// An image of one platform.
pub(super) fn image(config: &[u8], layers: &[&[u8]]) -> Paper {
    image_with(config, layers, &Value::Null)
}

/// One that refers to something.
pub(super) fn image_with(config: &[u8], layers: &[&[u8]], subject: &Value) -> Paper {
    let layer = |bytes: &&[u8]| blob(bytes, "application/vnd.oci.image.layer.v1.tar");
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": blob(config, MediaType::OCI_CONFIG),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    if !subject.is_null() {
        document["subject"] = subject.clone();
    }
    Paper(document.to_string().into(), MediaType::OCI_MANIFEST)
}

pub(super) fn index(manifests: &[Value]) -> Paper {
    let document = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests,
    });
    Paper(document.to_string().into(), MediaType::OCI_INDEX)
}

impl Shelf {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut settings = content::Settings::new(root.path().join("data"));
        settings.min_free = MinFree::Bytes(0);
        let (tasks, mut registry) = (TaskTracker::new(), Registry::default());
        let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(1_000)));
        let content = Content::open(settings, clock, tasks.clone(), &mut registry).unwrap();
        let key = RepositoryKey {
            upstream: "docker.io".parse().unwrap(),
            name: "library/app".parse().unwrap(),
        };
        Self { content, key, tasks, root }
    }

    /// Stores a manifest, which makes what it lists content of the repository, whether it is here or not.
    pub(super) async fn put(&self, paper: &Paper, tag: Option<&str>) {
        let document = Manifest::parse(&paper.0, Some(paper.1)).unwrap();
        let source = "registry-1.docker.io".to_owned();
        let commit = RevisionCommit {
            repository: self.key.clone(),
            digest: paper.digest(),
            media_type: document.media_type,
            size: paper.0.len() as u64,
            children: document.children,
            subject: document.subject.map(|subject| subject.digest),
            artifact_type: document.artifact_type,
            proof: Proof { proved: Timestamp::from_millis(1_000), credential: None },
            at: Timestamp::from_millis(1_000),
            tag: tag.map(|tag| TagMove { tag: tag.parse().unwrap(), source }),
        };
        self.content.store_revision(commit, paper.0.clone()).await.unwrap();
    }

    pub(super) async fn put_blobs(&self, blobs: &[&[u8]]) {
        for bytes in blobs {
            self.content
                .put(&Digest::sha256_of(bytes), Bytes::copy_from_slice(bytes))
                .await
                .unwrap();
        }
    }

    pub(super) fn file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        find(&self.root.path().join("data/blobs"), &hex).expect("it is here")
    }

    pub(super) async fn close(self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.content.close().await;
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) }
    })
}
