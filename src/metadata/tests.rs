//! The verbs of the store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;

use super::hot::Key;
use super::*;
use crate::clock::{ManualClock, Timestamp};
use crate::oci::{Descriptor, Digest, MediaType, Role, Tag};

pub(super) const fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub(super) fn open_at(path: &Path) -> Metadata {
    open_with(Settings::new(path.join("roadstead.db")))
}

pub(super) fn open_with(settings: Settings) -> Metadata {
    let clock = Arc::new(ManualClock::starting_at(at(1_000)));
    Metadata::open(settings, clock, &mut Registry::default()).unwrap()
}

pub(super) fn repository(name: &str) -> RepositoryKey {
    RepositoryKey { upstream: "docker.io".parse().unwrap(), name: name.parse().unwrap() }
}

pub(super) fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

pub(super) fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

fn layer(text: &str) -> (Role, Descriptor) {
    let descriptor = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".parse().unwrap(),
        digest: digest(text),
        size: text.len() as u64,
        platform: None,
        artifact_type: None,
        foreign: false,
    };
    (Role::Layer, descriptor)
}

pub(super) fn proof(millis: i64) -> Proof {
    Proof { proved: at(millis), credential: None }
}

/// A revision named by `text` that points at the layers named by `layers`.
pub(super) fn revision(name: &str, text: &str, layers: &[&str], millis: i64) -> RevisionCommit {
    RevisionCommit {
        repository: repository(name),
        digest: digest(text),
        media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
        size: text.len() as u64,
        children: layers.iter().map(|text| layer(text)).collect(),
        subject: None,
        artifact_type: None,
        proof: proof(millis),
        at: at(millis),
        tag: None,
    }
}

pub(super) fn tagged(mut commit: RevisionCommit, name: &str) -> RevisionCommit {
    commit.tag = Some(TagMove { tag: tag(name), source: "registry-1.docker.io".to_owned() });
    commit
}

#[tokio::test]
async fn a_revision_brings_its_tag_its_children_and_nothing_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("library/nginx");
    let mut commit = tagged(revision("library/nginx", "m1", &["l1", "l2"], 7), "latest");
    commit.children[1].1.foreign = true;
    commit.proof.credential = Some([3; 16]);
    store.commit_revision(commit).await.unwrap();

    for pass in ["hot", "cold"] {
        let record = store.tag(&here, &tag("latest")).await.unwrap().unwrap();
        assert_eq!(record.digest, Some(digest("m1")), "{pass}");
        assert_eq!((record.moved, record.confirmed), (at(7), at(7)));
        assert_eq!(record.source, "registry-1.docker.io");
        let found = store.revision(&here, &digest("m1")).await.unwrap().unwrap();
        assert!(found.present);
        assert_eq!(found.size, 2);
        assert_eq!(found.media_type.as_str(), MediaType::OCI_MANIFEST);
        assert_eq!(found.proof.credential, Some([3; 16]));
        let blob = store.blob(&here, &digest("l1")).await.unwrap();
        assert_eq!((blob.size, blob.present), (Some(2), false));
        assert_eq!(blob.proof.unwrap().proved, at(7));
        assert!(!blob.revision);
        let foreign = store.blob(&here, &digest("l2")).await.unwrap();
        assert_eq!((foreign.proof, foreign.size), (None, None));
        assert!(store.blob(&here, &digest("m1")).await.unwrap().revision);
        assert_eq!(store.missing_children(&here, &digest("m1")).await.unwrap(), 1);
        for key in [
            Key::Tag(here.clone(), tag("latest")),
            Key::Object(digest("m1")),
            Key::Member(here.clone(), digest("l1")),
        ] {
            store.shared().hot.forget(&key);
        }
    }

    let other = repository("library/redis");
    assert_eq!(store.tag(&other, &tag("latest")).await.unwrap(), None);
    assert_eq!(store.revision(&other, &digest("m1")).await.unwrap(), None);
    let blob = store.blob(&other, &digest("m1")).await.unwrap();
    assert_eq!((blob.present, blob.proof), (true, None));
    assert_eq!(store.revision(&here, &digest("l1")).await.unwrap(), None);
    store.close().await;
}

#[tokio::test]
async fn an_unchanged_tag_is_confirmed_and_a_moved_one_gets_a_row() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    for (text, millis) in [("m1", 10), ("m1", 20), ("m2", 30), ("m1", 40)] {
        let commit = tagged(revision("a", text, &[], millis), "latest");
        store.commit_revision(commit).await.unwrap();
    }
    store.move_tag(&here, &latest, None, "mirror", at(50)).await.unwrap();
    store.move_tag(&here, &latest, Some(digest("m2")), "mirror", at(45)).await.unwrap();
    let entries = store.timeline(&here, &latest, 10).await.unwrap();
    let moves: Vec<_> = entries
        .iter()
        .map(|entry| {
            let millis = |moment: Timestamp| moment.as_millis();
            (entry.digest, millis(entry.since), entry.until.map(millis))
        })
        .collect();
    let expected = [
        (Some(digest("m2")), 45, None),
        // The clock went back by five: the span is empty, never negative.
        (None, 50, Some(50)),
        (Some(digest("m1")), 40, Some(50)),
        (Some(digest("m2")), 30, Some(40)),
        (Some(digest("m1")), 10, Some(30)),
    ];
    assert_eq!(moves, expected);
    assert_eq!(entries[0].source, "mirror");
    assert_eq!(store.timeline(&here, &latest, 2).await.unwrap().len(), 2);
    for (text, expected) in [("m1", true), ("m2", true), ("m3", false)] {
        let was = store.was_tagged(&here, &latest, &digest(text)).await;
        assert_eq!(was.unwrap(), expected);
    }
    store.close().await;
}

#[tokio::test]
async fn a_tag_moves_only_to_a_revision_of_its_repository() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    let nowhere = store.move_tag(&here, &latest, Some(digest("m1")), "x", at(1));
    assert!(matches!(nowhere.await, Err(Error::Failed(_))));
    store.commit_revision(revision("b", "m1", &["l1"], 1)).await.unwrap();
    store.commit_revision(revision("a", "m2", &[], 1)).await.unwrap();
    let elsewhere = store.move_tag(&here, &latest, Some(digest("m1")), "x", at(1));
    assert!(matches!(elsewhere.await, Err(Error::Failed(_))));
    // A tag that was never seen leaves no trace when it is absent.
    store.move_tag(&here, &latest, None, "x", at(1)).await.unwrap();
    assert_eq!(store.tag(&here, &latest).await.unwrap(), None);
    assert!(store.timeline(&here, &latest, 9).await.unwrap().is_empty());
    store.move_tag(&here, &latest, Some(digest("m2")), "x", at(2)).await.unwrap();
    let record = store.tag(&here, &latest).await.unwrap().unwrap();
    assert_eq!(record.digest, Some(digest("m2")));
    store.close().await;
}

#[tokio::test]
async fn a_lie_about_a_size_stays_in_its_repository() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let mut lie = revision("liar", "m1", &["layer"], 1);
    lie.children[0].1.size = 999;
    store.commit_revision(lie).await.unwrap();
    store.commit_revision(revision("honest", "m2", &["layer"], 1)).await.unwrap();
    let size = async |name| {
        let record = store.blob(&repository(name), &digest("layer")).await;
        record.unwrap().size
    };
    assert_eq!((size("honest").await, size("liar").await), (Some(5), Some(999)));
    // The verified length has the last word everywhere, also after the content has gone.
    store.set_present(&digest("layer"), 5).await.unwrap();
    assert_eq!((size("honest").await, size("liar").await), (Some(5), Some(5)));
    store.set_absent(&digest("layer"), false).await.unwrap();
    assert_eq!((size("honest").await, size("liar").await), (Some(5), Some(5)));
    store.close().await;
}

#[tokio::test]
async fn a_size_of_zero_is_unknown_unless_the_content_is_empty() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let mut commit = revision("a", "m1", &["layer", ""], 1);
    commit.children[0].1.size = 0;
    store.commit_revision(commit).await.unwrap();
    let here = repository("a");
    assert_eq!(store.blob(&here, &digest("layer")).await.unwrap().size, None);
    assert_eq!(store.blob(&here, &digest("")).await.unwrap().size, Some(0));
    store.close().await;
}

#[tokio::test]
async fn the_first_media_type_of_a_revision_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    store.commit_revision(revision("a", "m1", &[], 1)).await.unwrap();
    let mut again = revision("a", "m1", &[], 2);
    again.media_type = MediaType::DOCKER_MANIFEST.parse().unwrap();
    store.commit_revision(again).await.unwrap();
    let found = store.revision(&repository("a"), &digest("m1")).await;
    let found = found.unwrap().unwrap();
    assert_eq!(found.media_type.as_str(), MediaType::OCI_MANIFEST);
    assert_eq!(found.proof.proved, at(2));
    store.close().await;
}

#[tokio::test]
async fn lists_come_in_pages_and_in_order() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    for name in ["1.10", "1.9", "latest", "B", "_x"] {
        let commit = tagged(revision("a", "m1", &[], 1), name);
        store.commit_revision(commit).await.unwrap();
    }
    let here = repository("a");
    store.move_tag(&here, &tag("1.9"), None, "x", at(2)).await.unwrap();
    let page = async |after, limit| -> Vec<String> {
        let tags = store.tags(&here, after, limit).await.unwrap();
        tags.iter().map(|tag| tag.as_str().to_owned()).collect()
    };
    assert_eq!(page(None, 2).await, ["1.10", "B"]);
    assert_eq!(page(Some("B"), 2).await, ["_x", "latest"]);
    assert!(page(Some("latest"), 2).await.is_empty());
    assert!(page(None, 0).await.is_empty());

    for name in ["c", "b/x", "b"] {
        store.commit_revision(revision(name, "m1", &[], 1)).await.unwrap();
    }
    // Known, but without a revision.
    store.set_visibility(&repository("d"), true, at(1)).await.unwrap();
    store.set_visibility(&repository("b"), true, at(1)).await.unwrap();
    store.set_visibility(&repository("c"), false, at(1)).await.unwrap();
    let names = |keys: Vec<RepositoryKey>| -> Vec<String> {
        keys.iter().map(|key| key.name.as_str().to_owned()).collect()
    };
    let all = store.repositories(None, 3, false).await.unwrap();
    assert_eq!(names(all.clone()), ["a", "b", "b/x"]);
    let rest = store.repositories(all.last(), 3, false).await.unwrap();
    assert_eq!(names(rest), ["c"]);
    let public = store.repositories(None, 9, true).await.unwrap();
    assert_eq!(names(public), ["b"]);
    store.close().await;
}

#[tokio::test]
async fn verdicts_and_referrers_are_replaced() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    assert_eq!(store.visibility(&here).await.unwrap(), None);
    for (public, millis) in [(true, 1), (false, 2)] {
        store.set_visibility(&here, public, at(millis)).await.unwrap();
        let expected = Some((public, at(millis)));
        assert_eq!(store.visibility(&here).await.unwrap(), expected);
        store.shared().hot.forget(&Key::Visibility(here.clone()));
        assert_eq!(store.visibility(&here).await.unwrap(), expected);
    }
    let subject = digest("m1");
    assert_eq!(store.referrers(&here, &subject).await.unwrap(), None);
    for (index, millis) in [("i1", 1), ("i2", 2)] {
        store.set_referrers(&here, &subject, &digest(index), at(millis)).await.unwrap();
        let found = store.referrers(&here, &subject).await.unwrap();
        assert_eq!(found, Some((digest(index), at(millis))));
    }
    assert_eq!(store.referrers(&repository("b"), &subject).await.unwrap(), None);
    store.close().await;
}

#[tokio::test]
async fn a_proof_makes_a_member_and_keeps_the_size() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, blob) = (repository("a"), digest("b1"));
    store.prove(&here, &blob, Some(44), proof(1)).await.unwrap();
    store.prove(&here, &blob, None, proof(2)).await.unwrap();
    let record = store.blob(&here, &blob).await.unwrap();
    assert_eq!((record.size, record.present), (Some(44), false));
    assert_eq!(record.proof.unwrap().proved, at(2));
    store.close().await;
}

#[tokio::test]
async fn a_confirmation_counts_at_once_and_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    store.commit_revision(tagged(revision("a", "m1", &[], 1), "latest")).await.unwrap();
    let confirmed = async |store: &Metadata| {
        let record = store.tag(&here, &latest).await.unwrap().unwrap();
        (record.moved, record.confirmed)
    };
    store.confirm_tag(&here, &latest, at(5));
    assert_eq!(confirmed(&store).await, (at(1), at(5)));
    // Also if the record is not hot and the row is not written yet.
    store.shared().hot.forget(&Key::Tag(here.clone(), latest.clone()));
    assert_eq!(confirmed(&store).await, (at(1), at(5)));
    // A write of the same tag does not take it back.
    store.move_tag(&here, &latest, Some(digest("m1")), "x", at(3)).await.unwrap();
    assert_eq!(confirmed(&store).await, (at(1), at(5)));
    store.flush().await.unwrap();
    store.shared().hot.forget(&Key::Tag(here.clone(), latest.clone()));
    assert_eq!(confirmed(&store).await, (at(1), at(5)));
    store.confirm_tag(&here, &latest, at(9));
    store.close().await;
    let store = open_at(root.path());
    assert_eq!(confirmed(&store).await, (at(1), at(9)));
    store.close().await;
}

#[tokio::test]
async fn pending_entries_are_written_without_being_asked() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    store.commit_revision(tagged(revision("a", "m1", &[], 1), "latest")).await.unwrap();
    store.confirm_tag(&here, &latest, at(5));
    let written = async || {
        store
            .inspect(|rows| rows.query_row("SELECT confirmed FROM tags", [], |row| row.get(0)))
            .await
    };
    let limit = tokio::time::Instant::now() + Duration::from_secs(30);
    while written().await != Ok(5) {
        assert!(tokio::time::Instant::now() < limit, "nothing was written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    store.close().await;
}

#[tokio::test]
async fn touching_a_manifest_touches_its_children_in_steps() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    store.commit_revision(revision("a", "m1", &["l1", "absent"], 0)).await.unwrap();
    for text in ["l1", "other"] {
        store.set_present(&digest(text), 1).await.unwrap();
    }
    let accessed = async |store: &Metadata, text: &str| -> i64 {
        let key = digest(text).to_key();
        store
            .inspect(move |rows| {
                let sql = "SELECT accessed FROM objects WHERE digest = ?1";
                rows.query_row(sql, [key], |row| row.get(0)).unwrap()
            })
            .await
    };
    let minute = 60_000;
    for (touched, expected) in [(4 * minute, 0), (6 * minute, 6 * minute), (9 * minute, 6 * minute)]
    {
        store.touch(&digest("m1"), at(touched));
        store.touch(&digest("nobody knows it"), at(touched));
        store.flush().await.unwrap();
        assert_eq!(accessed(&store, "m1").await, expected);
        assert_eq!(accessed(&store, "l1").await, expected.max(1_000));
        assert_eq!(accessed(&store, "absent").await, 0, "what is not here is not used");
        assert_eq!(accessed(&store, "other").await, 1_000);
    }
    store.touch(&digest("m1"), at(99 * minute));
    store.close().await;
    let store = open_at(root.path());
    assert_eq!(accessed(&store, "l1").await, 99 * minute);
    store.close().await;
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let other = store.clone();
    store.close().await;
    other.close().await;
    assert!(matches!(other.usage().await, Err(Error::Failed(_))));
    let write = other.set_present(&digest("x"), 1).await;
    assert!(matches!(write, Err(Error::Failed(_))));
    other.touch(&digest("x"), at(1));
}

#[tokio::test]
async fn the_connections_are_set_up_as_designed() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let pragma = async |name: &'static str| -> String {
        store
            .inspect(move |rows| {
                rows.pragma_query_value(None, name, |row| {
                    let value: rusqlite::types::Value = row.get(0)?;
                    Ok(match value {
                        rusqlite::types::Value::Text(text) => text,
                        rusqlite::types::Value::Integer(number) => number.to_string(),
                        other => format!("{other:?}"),
                    })
                })
                .unwrap()
            })
            .await
    };
    assert_eq!(pragma("journal_mode").await, "wal");
    assert_eq!(pragma("cache_size").await, "-2048");
    assert_eq!(pragma("foreign_keys").await, "1");
    assert_eq!(pragma("application_id").await, "1382306676");
    assert_eq!(pragma("user_version").await, SCHEMA_VERSION.to_string());
    assert_eq!(pragma("mmap_size").await, "0");
    store.commit_revision(tagged(revision("a", "m1", &[], 1), "latest")).await.unwrap();
    assert_eq!(pragma("synchronous").await, "2", "a tag moved");
    store.set_present(&digest("x"), 1).await.unwrap();
    assert_eq!(pragma("synchronous").await, "1");
    store.close().await;
}

#[tokio::test]
async fn a_write_whose_caller_is_gone_is_carried_out() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, blob) = (repository("a"), digest("b1"));
    {
        let mut write = Box::pin(store.prove(&here, &blob, None, proof(1)));
        assert!(futures_util::poll!(&mut write).is_pending());
    }
    // The writer works in order, so an answered write comes after it.
    store.set_present(&digest("x"), 1).await.unwrap();
    assert!(store.blob(&here, &blob).await.unwrap().proof.is_some());
    store.close().await;
}
