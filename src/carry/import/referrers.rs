//! Lists of referrers for what a bundle brought, so that signatures are found where no upstream can be asked for them.
//!
//! What must hold: a list that upstream gave loses nothing and gets no younger; nothing is listed that is not here. Best effort: an import
//! without them is whole.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::closure::Closure;
use crate::carry::service::Carry;
use crate::clock::Timestamp;
use crate::content;
use crate::metadata::RepositoryKey;
use crate::oci::{Digest, MANIFEST_SIZE_LIMIT_DEFAULT, MediaType};

/// A list that was made of a bundle is as old as can be: whoever can ask upstream does.
const NEVER: Timestamp = Timestamp::from_millis(0);

/// Notes which manifests refer to which.
pub(super) async fn note(
    carry: &Carry,
    closures: &BTreeMap<RepositoryKey, Closure<'_>>,
    included: Vec<(RepositoryKey, Digest)>,
) {
    let mut lists: BTreeMap<(RepositoryKey, Digest), BTreeMap<String, Value>> = BTreeMap::new();
    for (key, digest) in included {
        let Some(document) = closures.get(&key).and_then(|closure| closure.document(&digest))
        else {
            continue;
        };
        let Some(subject) = &document.manifest.subject else {
            continue;
        };
        let annotations = annotations(carry, &digest).await;
        let mut descriptor = json!({
            "mediaType": document.manifest.media_type.as_str(),
            "digest": digest.to_string(),
            "size": document.size,
        });
        if let Some(kind) = &document.manifest.artifact_type {
            descriptor["artifactType"] = json!(kind);
        }
        if let Some(annotations) = annotations {
            descriptor["annotations"] = annotations;
        }
        lists.entry((key, subject.digest)).or_default().insert(digest.to_string(), descriptor);
    }
    for ((key, subject), found) in lists {
        if let Err(error) = keep(carry, &key, &subject, found).await {
            tracing::warn!(%error, %subject, "a list of referrers of a bundle could not be kept");
        }
    }
}

/// Of the manifest, as a list of referrers repeats them (OCI distribution spec, "Listing Referrers").
async fn annotations(carry: &Carry, digest: &Digest) -> Option<Value> {
    let bytes = carry.content().get(digest, MANIFEST_SIZE_LIMIT_DEFAULT).await.ok()??;
    let mut document: Value = serde_json::from_slice(&bytes).ok()?;
    document.get_mut("annotations").map(Value::take).filter(Value::is_object)
}

async fn keep(
    carry: &Carry,
    key: &RepositoryKey,
    subject: &Digest,
    found: BTreeMap<String, Value>,
) -> Result<(), content::Error> {
    let (content, metadata) = (carry.content(), carry.content().metadata());
    let known = metadata.referrers(key, subject).await?;
    let mut manifests = Vec::new();
    let mut learned = NEVER;
    if let Some((index, when)) = known
        && let Some(bytes) = content.get(&index, MANIFEST_SIZE_LIMIT_DEFAULT).await?
        && let Ok(mut index) = serde_json::from_slice::<Value>(&bytes)
        && let Some(Value::Array(listed)) = index.get_mut("manifests").map(Value::take)
    {
        (manifests, learned) = (listed, when);
    }
    let is_listed = |digest: &str, manifests: &[Value]| {
        manifests.iter().any(|listed| listed.get("digest").and_then(Value::as_str) == Some(digest))
    };
    let before = manifests.len();
    for (digest, descriptor) in found {
        if !is_listed(&digest, &manifests) {
            manifests.push(descriptor);
        }
    }
    if manifests.len() == before {
        return Ok(());
    }
    let list = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests,
    });
    let bytes = Bytes::from(list.to_string());
    let index = Digest::sha256_of(&bytes);
    content.put(&index, bytes).await?;
    metadata.set_referrers(key, subject, &index, learned).await?;
    Ok(())
}
