//! Timelines, holders, lists, the queue of what is unused, and rules.

use super::tests::*;
use super::*;
use crate::clock::Timestamp;
use crate::oci::{Descriptor, Digest, MediaType, Platform, Role, Scope};

pub(super) fn child(text: &str, platform: &str) -> (Role, Descriptor) {
    let descriptor = Descriptor {
        media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
        digest: digest(text),
        size: text.len() as u64,
        platform: Some(Platform {
            os: "linux".to_owned(),
            architecture: platform.to_owned(),
            variant: None,
        }),
        artifact_type: None,
        foreign: false,
    };
    (Role::Child, descriptor)
}

/// An index named by `text` with children.
pub(super) fn index(name: &str, text: &str, children: &[&str], millis: i64) -> RevisionCommit {
    let mut commit = revision(name, text, &[], millis);
    commit.media_type = MediaType::OCI_INDEX.parse().unwrap();
    commit.children = children.iter().map(|text| child(text, "amd64")).collect();
    commit
}

pub(super) fn other(upstream: &str, mut commit: RevisionCommit) -> RevisionCommit {
    commit.repository.upstream = upstream.parse().unwrap();
    commit
}

/// A store in which `a:latest` was m1 at 10, m2 at 20, absent at 30, m1 at 40.
async fn moved(root: &std::path::Path) -> Metadata {
    let store = open_at(root);
    for (text, millis) in [("m1", 10), ("m2", 20)] {
        let own = format!("l-{text}");
        let commit = tagged(revision("a", text, &["shared", &own], millis), "latest");
        store.commit_revision(commit).await.unwrap();
    }
    let (here, latest) = (repository("a"), tag("latest"));
    store.move_tag(&here, &latest, None, "x", at(30)).await.unwrap();
    store.move_tag(&here, &latest, Some(digest("m1")), "x", at(40)).await.unwrap();
    store
}

#[tokio::test]
async fn a_tag_is_where_it_was_at_every_moment() {
    let root = tempfile::tempdir().unwrap();
    let store = moved(root.path()).await;
    let (here, latest) = (repository("a"), tag("latest"));
    let cases = [
        (9, None),
        (10, Some(Some("m1"))),
        (19, Some(Some("m1"))),
        (20, Some(Some("m2"))),
        (30, Some(None)),
        (39, Some(None)),
        (40, Some(Some("m1"))),
        (9_999, Some(Some("m1"))),
    ];
    for (millis, expected) in cases {
        let found = store.tag_at(&here, &latest, at(millis)).await.unwrap();
        let expected: Option<Option<_>> = expected.map(|text| text.map(digest));
        assert_eq!(found.map(|entry| entry.digest), expected, "at {millis}");
        let listed = store.tags_at(&here, None, 9, at(millis)).await.unwrap();
        let there = matches!(expected, Some(Some(_)));
        assert_eq!(listed, if there { vec![latest.clone()] } else { Vec::new() }, "at {millis}");
    }
    let frozen = [(5, "m1"), (10, "m1"), (25, "m2"), (35, "m1"), (50, "m1")];
    for (since, expected) in frozen {
        let found = store.frozen_at(&here, &latest, at(since)).await.unwrap().unwrap();
        assert_eq!(found.digest, Some(digest(expected)), "frozen at {since}");
    }
    assert_eq!(store.first_seen(&here, &latest).await.unwrap(), Some(at(10)));
    assert_eq!(store.first_seen(&here, &tag("never")).await.unwrap(), None);
    assert_eq!(store.frozen_at(&here, &tag("never"), at(1)).await.unwrap(), None);
    assert_eq!(store.tags_at(&repository("no"), None, 9, at(99)).await.unwrap(), []);
    store.close().await;
}

#[tokio::test]
async fn the_moves_come_in_pages() {
    let root = tempfile::tempdir().unwrap();
    let store = moved(root.path()).await;
    let (here, latest) = (repository("a"), tag("latest"));
    let first = store.history(&here, &latest, None, 3).await.unwrap();
    let seen: Vec<_> = first.iter().map(|moment| (moment.entry.digest, moment.present)).collect();
    let m = |text| Some(digest(text));
    assert_eq!(seen, [(m("m1"), true), (None, false), (m("m2"), true)]);
    let rest = store.history(&here, &latest, Some(first[2].id), 3).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!((rest[0].entry.since, rest[0].entry.until), (at(10), Some(at(20))));
    store.close().await;
}

#[tokio::test]
async fn tags_of_all_repositories_come_in_order_and_in_pages() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let mut expected = Vec::new();
    for (upstream, name) in [("docker.io", "a"), ("docker.io", "b/c"), ("ghcr.io", "a")] {
        for version in ["1", "2", "3"] {
            let commit = tagged(revision(name, "m", &[], 1), version);
            store.commit_revision(other(upstream, commit)).await.unwrap();
            expected.push(format!("{upstream}/{name}:{version}"));
        }
    }
    store.set_visibility(&repository("empty"), true, at(1)).await.unwrap();
    let text = |named: &NamedTag| format!("{}:{}", named.repository, named.tag);
    let hub = Within::Upstream("docker.io".parse().unwrap());
    let one = Within::Repository(repository("b/c"));
    for (within, range) in [(None, 0..9), (Some(&hub), 0..6), (Some(&one), 3..6)] {
        for limit in 1..10 {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = store.tag_records(within, after.as_ref(), limit).await.unwrap();
                let Some(last) = page.last() else {
                    break;
                };
                assert!(page.len() <= limit as usize && page.iter().all(|named| named.present));
                after = Some((last.repository.clone(), last.tag.clone()));
                found.extend(page.iter().map(text));
            }
            assert_eq!(found, expected[range.clone()], "{within:?} by {limit}");
        }
    }
    // A place outside of what is asked for.
    let far = (repository("zzz"), tag("x"));
    assert!(store.tag_records(Some(&one), Some(&far), 9).await.unwrap().is_empty());
    let near = (repository("a"), tag("9"));
    assert_eq!(store.tag_records(Some(&one), Some(&near), 9).await.unwrap().len(), 3);
    // What waits to be written counts.
    store.confirm_tag(&repository("a"), &tag("1"), at(77));
    let page = store.tag_records(None, None, 1).await.unwrap();
    assert_eq!(page[0].record.confirmed, at(77));
    store.close().await;
}

#[tokio::test]
async fn an_image_is_told_with_all_that_is_below_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    store.commit_revision(revision("a", "m1", &["l1", "l2"], 1)).await.unwrap();
    store.commit_revision(index("a", "i", &["m1", "m2"], 2)).await.unwrap();
    store.set_present(&digest("l1"), 2).await.unwrap();
    let nodes = store.tree(&here, &digest("i"), 99).await.unwrap();
    let told: Vec<_> = nodes
        .iter()
        .map(|node| (node.digest, node.parent, node.present, node.platform.as_deref()))
        .collect();
    let (i, m1) = (Some(digest("i")), Some(digest("m1")));
    let expected = [
        (digest("i"), None, true, None),
        (digest("m1"), i, true, Some("linux/amd64")),
        (digest("m2"), i, false, Some("linux/amd64")),
        (digest("l1"), m1, true, None),
        (digest("l2"), m1, false, None),
    ];
    assert_eq!(told, expected);
    assert_eq!(nodes[4].size, Some(2), "as the manifest says");
    assert_eq!(store.tree(&here, &digest("i"), 2).await.unwrap().len(), 2);
    assert!(store.tree(&here, &digest("l1"), 9).await.unwrap().is_empty());
    assert!(store.tree(&repository("b"), &digest("i"), 9).await.unwrap().is_empty());
    let revisions = store.revision_records(&here, None, 9).await.unwrap();
    let digests: Vec<_> = revisions.iter().map(|revision| revision.digest).collect();
    assert_eq!(digests, [digest("m1"), digest("i")]);
    let rest = store.revision_records(&here, Some(&digest("m1")), 9).await.unwrap();
    assert_eq!(rest, revisions[1..]);
    store.close().await;
}

#[tokio::test]
async fn whatever_needs_an_object_holds_it_over_every_path() {
    let root = tempfile::tempdir().unwrap();
    let store = moved(root.path()).await;
    store.commit_revision(other("ghcr.io", index("b", "i", &["m1"], 50))).await.unwrap();
    let mut signature = revision("a", "sig", &["sig blob"], 60);
    signature.subject = Some(digest("m2"));
    store.commit_revision(signature).await.unwrap();

    let held = store.holders(&digest("shared"), 99).await.unwrap();
    let mut told: Vec<_> =
        held.revisions.iter().map(|holder| (holder.revision, holder.links.len())).collect();
    told.sort_unstable();
    let mut expected = vec![(digest("m1"), 2), (digest("m2"), 1), (digest("i"), 0)];
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert_eq!(held.upstreams, ["docker.io".parse().unwrap()]);
    assert!(!held.more);
    let of = |revision: &str| {
        held.revisions.iter().find(|holder| holder.revision == digest(revision)).unwrap()
    };
    let facts = |link: &TagLink| {
        let until = link.until.map(Timestamp::as_millis);
        (link.since.as_millis(), until, link.newer, link.first, link.last_before_absent)
    };
    let m1: Vec<_> = of("m1").links.iter().map(facts).collect();
    assert_eq!(m1, [(40, None, 0, true, false), (10, Some(20), 1, true, false)]);
    let m2: Vec<_> = of("m2").links.iter().map(facts).collect();
    assert_eq!(m2, [(20, Some(30), 1, false, false)]);

    // What refers to a revision is held by it.
    let held = store.holders(&digest("sig blob"), 99).await.unwrap();
    let revisions: Vec<_> = held.revisions.iter().map(|holder| holder.revision).collect();
    assert_eq!(revisions, [digest("sig"), digest("m2")]);
    let held = store.holders(&digest("shared"), 2).await.unwrap();
    assert!(held.more && held.revisions.len() == 2);
    assert_eq!(store.holders(&digest("nobody"), 9).await.unwrap(), Holders::default());

    store.move_tag(&repository("a"), &tag("latest"), None, "x", at(70)).await.unwrap();
    let held = store.holders(&digest("m1"), 99).await.unwrap();
    let gone = &held.revisions.iter().find(|held| held.revision == digest("m1")).unwrap().links[0];
    assert!(gone.last_before_absent && gone.until == Some(at(70)));
    store.close().await;
}

async fn queue(store: &Metadata, before: i64, from: Option<&str>) -> Vec<(Digest, i64)> {
    let from = from.map(|name| name.parse().unwrap());
    let found = store.idle(at(before), from.as_ref(), 99).await.unwrap();
    found.iter().map(|idle| (idle.digest, idle.since.as_millis())).collect()
}

#[tokio::test]
async fn what_is_unused_comes_in_order_and_an_image_as_one() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let minute = 60_000;
    for text in ["l1", "l2", "alone"] {
        store.set_present(&digest(text), 1).await.unwrap();
    }
    // A manifest that lists what is here makes it young.
    let commit = revision("a", "m1", &["l1", "l2"], 10 * minute);
    store.commit_revision(commit).await.unwrap();
    let mut signature = revision("a", "sig", &[], minute);
    signature.subject = Some(digest("m1"));
    store.commit_revision(signature).await.unwrap();
    assert_eq!(
        queue(&store, 10 * minute, None).await,
        [(digest("alone"), 1_000), (digest("sig"), minute)]
    );
    // A use of the index goes down the whole tree, over children that are not here, and to what refers to it.
    store.commit_revision(index("a", "i", &["m1"], 11 * minute)).await.unwrap();
    store.set_absent(&digest("m1"), false).await.unwrap();
    store.touch(&digest("i"), at(30 * minute));
    assert_eq!(queue(&store, 30 * minute, None).await, [(digest("alone"), 1_000)]);
    let all = queue(&store, 99 * minute, None).await;
    assert!(all[1..].iter().all(|(_, since)| *since == 30 * minute) && all.len() == 5);
    // What is kept goes to the end, and what is used after that goes behind it.
    store.postpone(vec![digest("alone"), digest("nobody")], at(40 * minute)).await.unwrap();
    assert_eq!(
        queue(&store, 99 * minute, None).await.last(),
        Some(&(digest("alone"), 40 * minute))
    );
    store.touch(&digest("alone"), at(41 * minute));
    assert_eq!(
        queue(&store, 99 * minute, None).await.last(),
        Some(&(digest("alone"), 41 * minute))
    );
    store.close().await;
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_has_dated_counts_from_now() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (year, hour) = (365 * 24 * 3_600_000, 3_600_000);
    // More than a slice.
    for number in 0..300_i64 {
        store.set_present(&digest(&number.to_string()), 1).await.unwrap();
        store.touch(&digest(&number.to_string()), at(year + number));
    }
    assert_eq!(queue(&store, hour, None).await, [], "nothing is ever unused");
    while store.put_back(at(hour)).await.unwrap() {}
    let now = store.idle(at(hour), None, 999).await.unwrap();
    assert_eq!(now.len(), 300);
    assert!(now.iter().all(|idle| idle.since == at(1_000)), "{now:?}");
    // What is not ahead stays where it is.
    store.touch(&digest("7"), at(hour));
    assert!(!store.put_back(at(hour)).await.unwrap());
    let now = store.idle(at(2 * hour), None, 999).await.unwrap();
    assert_eq!(now.last().map(|idle| (idle.digest, idle.since)), Some((digest("7"), at(hour))));
    store.close().await;
}

#[tokio::test]
async fn content_counts_for_the_upstream_through_which_it_came() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let usage = async |store: &Metadata| {
        let found = store.usage_by_upstream().await.unwrap();
        let total = store.usage().await.unwrap();
        assert_eq!(found.iter().map(|(_, usage)| usage.bytes).sum::<u64>(), total.bytes);
        assert_eq!(found.iter().map(|(_, usage)| usage.objects).sum::<u64>(), total.objects);
        found
            .into_iter()
            .map(|(name, usage)| (name.map(|name| name.to_string()), usage.objects, usage.bytes))
            .collect::<Vec<_>>()
    };
    let (hub, ghcr) = (|| Some("docker.io".to_owned()), || Some("ghcr.io".to_owned()));
    store.commit_revision(revision("a", "m1", &["layer"], 1)).await.unwrap();
    store.set_present(&digest("layer"), 100).await.unwrap();
    // Of nobody, until somebody says that it is content of his.
    store.set_present(&digest("orphan"), 7).await.unwrap();
    assert_eq!(usage(&store).await, [(hub(), 2, 102), (None, 1, 7)]);
    let there = other("ghcr.io", revision("b", "m9", &["layer", "orphan"], 5));
    store.commit_revision(there).await.unwrap();
    assert_eq!(usage(&store).await, [(hub(), 2, 102), (ghcr(), 2, 9)]);
    // It goes, and comes back through the other.
    store.set_absent(&digest("layer"), false).await.unwrap();
    assert_eq!(usage(&store).await, [(hub(), 1, 2), (ghcr(), 2, 9)]);
    store.set_present(&digest("layer"), 60).await.unwrap();
    assert_eq!(usage(&store).await, [(hub(), 1, 2), (ghcr(), 3, 69)]);
    store.set_present(&digest("layer"), 61).await.unwrap();
    assert_eq!(usage(&store).await, [(hub(), 1, 2), (ghcr(), 3, 70)]);
    assert_eq!(queue(&store, 9_999, Some("docker.io")).await, [(digest("m1"), 1)]);
    assert_eq!(queue(&store, 9_999, Some("ghcr.io")).await.len(), 3);
    assert!(queue(&store, 9_999, Some("quay.io")).await.is_empty());
    store.close().await;
}

#[tokio::test]
async fn rules_count_from_their_answer_on_and_survive_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (here, latest) = (repository("a"), tag("latest"));
    assert!(store.rules().is_empty() && store.rules_epoch() == 0);
    let scope = "docker.io/a:latest".parse::<Scope>().unwrap();
    let freeze =
        store.add_rule(RuleKind::Freeze, scope.clone(), None, "a release".to_owned()).await;
    let freeze = freeze.unwrap();
    assert_eq!((freeze.since, store.rules_epoch()), (at(1_000), 1));
    assert_eq!(store.rules().frozen(&here, &latest, at(2_000)), Some(at(1_000)));
    assert_eq!(store.rules().frozen(&here, &tag("v1"), at(2_000)), None);
    let until = Some(at(5_000));
    let pin = store.add_rule(RuleKind::Pin, scope, until, String::new()).await.unwrap();
    assert!(pin.id > freeze.id);
    store.close().await;

    let store = open_at(root.path());
    assert_eq!(store.rules().all(), [freeze.clone(), pin.clone()]);
    let pinned = |now| {
        let rules = store.rules();
        rules.pin_of(&here, &digest("m"), [&latest].into_iter(), at(now)).map(|rule| rule.id)
    };
    assert_eq!((pinned(4_999), pinned(5_000)), (Some(pin.id), None));
    assert!(store.remove_rule(freeze.id).await.unwrap());
    assert!(!store.remove_rule(freeze.id).await.unwrap());
    assert_eq!(store.rules().frozen(&here, &latest, at(2_000)), None);
    // A number is never used again.
    assert!(store.remove_rule(pin.id).await.unwrap());
    let scope: Scope = "ghcr.io".parse().unwrap();
    let next = store.add_rule(RuleKind::Pin, scope.clone(), None, String::new()).await.unwrap();
    assert!(next.id > pin.id);
    let long = "x".repeat(RULE_REASON_BYTES_MAX + 1);
    assert!(store.add_rule(RuleKind::Pin, scope, None, long).await.is_err());
    assert_eq!(store.rules().all().len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_rule_that_cannot_be_written_does_not_count() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let scope: Scope = "docker.io".parse().unwrap();
    for step in 1..=3 {
        let fault = testing::Fault::Full;
        store.fail_writes(Some(testing::Plan { at: step, lasting: true, fault }));
        let added = store.add_rule(RuleKind::Freeze, scope.clone(), None, String::new()).await;
        assert!(added.is_err() && store.rules().is_empty(), "step {step}");
        store.fail_writes(None);
    }
    store.add_rule(RuleKind::Freeze, scope, None, String::new()).await.unwrap();
    assert_eq!(store.rules().all().len(), 1);
    store.close().await;
}
