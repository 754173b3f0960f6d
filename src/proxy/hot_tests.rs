//! The table: found by texts, bounded by bytes.

use bytes::Bytes;

use super::*;
use crate::metadata::{Metadata, Proof, RevisionCommit, Settings};
use crate::oci::{Digest, MediaType};

/// Facts of a stored manifest, as only the metadata can make them.
async fn facts(directory: &std::path::Path) -> HotManifest {
    let clock = Arc::new(crate::clock::ManualClock::default());
    let settings = Settings::new(directory.join("roadstead.db"));
    let mut metrics = prometheus_client::registry::Registry::default();
    let metadata = Metadata::open(settings, clock, &mut metrics).unwrap();
    let digest = Digest::sha256_of(b"x");
    let commit = RevisionCommit {
        repository: repository("team/app"),
        digest,
        media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
        size: 1,
        children: Vec::new(),
        subject: None,
        artifact_type: None,
        proof: Proof { proved: Timestamp::from_millis(1), credential: None },
        at: Timestamp::from_millis(1),
        tag: None,
    };
    metadata.commit_revision(commit).await.unwrap();
    let facts = metadata.hot_manifest(&repository("team/app"), None, &digest).unwrap();
    metadata.close().await;
    facts
}

fn repository(name: &str) -> RepositoryKey {
    RepositoryKey { upstream: "docker.io".parse().unwrap(), name: name.parse().unwrap() }
}

fn ready(facts: &HotManifest, name: &str, reference: &str, bytes: usize) -> Ready {
    let bytes = Bytes::from(vec![0; bytes]);
    Ready {
        repository: repository(name),
        reference: reference.parse().unwrap(),
        reference_text: reference.into(),
        manifest: Manifest {
            digest: Digest::sha256_of(&bytes),
            media_type: facts.media_type.clone(),
            bytes,
        },
        source: Weak::new(),
        facts: facts.clone(),
        tag: None,
        rules_epoch: 0,
        shut: false,
        used: AtomicBool::new(false),
        prepared: OnceLock::new(),
    }
}

impl Hot {
    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.read().unwrap().bytes).sum()
    }
}

#[tokio::test]
async fn an_entry_is_found_by_its_own_texts_alone() {
    let directory = tempfile::tempdir().unwrap();
    let facts = facts(directory.path()).await;
    let hot = Hot::default();
    let digest = Digest::sha256_of(b"x").to_string();
    hot.insert(ready(&facts, "team/app", "latest", 10));
    hot.insert(ready(&facts, "team/app", &digest, 11));
    let found = |names: [&str; 3]| hot.get(&names).map(|ready| ready.manifest.bytes.len());
    assert_eq!(found(["docker.io", "team/app", "latest"]), Some(10));
    assert_eq!(found(["docker.io", "team/app", &digest]), Some(11));
    for names in [
        ["docker.io", "team/app", "Latest"],
        ["docker.io", "team/ap", "platest"],
        ["docker.io", "team", "app/latest"],
        ["ghcr.io", "team/app", "latest"],
        ["docker.io", "team/app", ""],
    ] {
        assert_eq!(found(names), None, "{names:?}");
    }
    hot.insert(ready(&facts, "team/app", "latest", 12));
    assert_eq!(found(["docker.io", "team/app", "latest"]), Some(12), "replaced");
    assert_eq!(hot.bytes(), 2 * ENTRY_BYTES + 23, "and counted once");
}

#[tokio::test]
async fn the_table_is_bounded_by_bytes_and_keeps_what_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let facts = facts(directory.path()).await;
    let bytes_max = 64 * ENTRY_BYTES;
    let hot = Hot::new(bytes_max);
    hot.insert(ready(&facts, "team/app", "used", 100));
    for number in 0..2000 {
        let used = hot.get(&["docker.io", "team/app", "used"]);
        used.expect("it is asked for all the time").used.store(true, Relaxed);
        hot.insert(ready(&facts, "team/app", &format!("v{number}"), 100));
        assert!(hot.bytes() <= bytes_max);
    }
    for part in &hot.parts {
        let part = part.read().unwrap();
        assert_eq!(part.order.len(), part.entries.len());
    }
    hot.insert(ready(&facts, "team/app", "huge", bytes_max / PARTS));
    assert!(hot.get(&["docker.io", "team/app", "huge"]).is_none());
}

#[tokio::test]
async fn what_a_face_prepares_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let ready = ready(&facts(directory.path()).await, "team/app", "latest", 1);
    assert_eq!(ready.prepared(|| "first".to_owned()), "first");
    assert_eq!(ready.prepared(|| "second".to_owned()), "first");
    assert_eq!(ready.prepared(|| 7_u8), 7, "another type is made each time");
}

#[test]
fn who_may_be_shown_what_without_a_question() {
    let day = i64::try_from(PROOF_FOR.as_millis()).unwrap();
    let now = Timestamp::from_millis(10 * day);
    let ago = |millis: i64| Timestamp::from_millis(10 * day - millis);
    let (ours, other) = ([1; 16], [2; 16]);
    let shared = || UpstreamPolicy { private: Private::Shared, ..UpstreamPolicy::default() };
    let refuse = UpstreamPolicy::default;
    let offline = |policy: UpstreamPolicy| UpstreamPolicy { offline: true, ..policy };
    let proved = |millis, credential| Proof { proved: ago(millis), credential };
    let (young, old) = (day - 1, day);
    let public = |millis| Some((true, ago(millis)));
    let private = Some((false, ago(0)));
    let (nobody, we) = (Caller::Anonymous, Caller::With(ours));
    let table = [
        ("anonymous, proved so", refuse(), nobody, proved(9 * day, None), None, true),
        (
            "proved by a credential that is gone",
            refuse(),
            nobody,
            proved(0, Some(ours)),
            None,
            false,
        ),
        ("the same offline", offline(refuse()), nobody, proved(0, Some(ours)), None, true),
        ("who are we?", refuse(), Caller::Unsettled, proved(0, None), public(0), false),
        ("public", refuse(), we, proved(9 * day, Some(other)), public(young), true),
        ("public, an old verdict", refuse(), we, proved(0, Some(ours)), public(old), false),
        ("the same offline", offline(refuse()), we, proved(0, Some(ours)), public(old), true),
        ("a verdict from the future", refuse(), we, proved(0, Some(ours)), public(-1), false),
        ("private", refuse(), we, proved(0, Some(ours)), private, false),
        ("private, offline", offline(refuse()), we, proved(0, Some(ours)), private, false),
        ("no verdict", refuse(), we, proved(0, None), None, false),
        ("no verdict, offline", offline(refuse()), we, proved(0, None), None, false),
        ("shared, proved by us", shared(), we, proved(young, Some(ours)), private, true),
        ("shared, an old proof", shared(), we, proved(old, Some(ours)), private, false),
        ("shared, another's proof", shared(), we, proved(0, Some(other)), private, false),
        ("shared, proved by nobody", shared(), we, proved(9 * day, None), None, true),
        ("shared, offline", offline(shared()), we, proved(old, Some(other)), None, true),
    ];
    for (name, policy, caller, proof, visibility, want) in table {
        assert_eq!(
            may_show((&policy, policy.offline), caller, &proof, visibility, now),
            want,
            "{name}"
        );
    }
}
