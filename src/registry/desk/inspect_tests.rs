//! Trees added up: shared layers, absent ones, foreign ones, cut ones.

use super::*;
use crate::clock::Timestamp;
use crate::metadata::TagLink;

fn digest(name: &str) -> Digest {
    Digest::sha256_of(name.as_bytes())
}

fn node(name: &str, parent: Option<&str>, role: Option<Role>, size: u64, present: bool) -> Node {
    Node {
        digest: digest(name),
        parent: parent.map(digest),
        role,
        media_type: None,
        platform: None,
        size: Some(size),
        present,
        quarantined: false,
        foreign: false,
        accessed: None,
        removed: None,
    }
}

/// An index of two platforms that share a layer; the second one's own layer is not here.
fn tree() -> Vec<Node> {
    let (child, layer) = (Some(Role::Child), Some(Role::Layer));
    vec![
        node("index", None, None, 10, true),
        Node { platform: Some("linux/amd64".into()), ..node("one", Some("index"), child, 5, true) },
        Node { platform: Some("linux/arm64".into()), ..node("two", Some("index"), child, 6, true) },
        node("shared", Some("one"), layer, 100, true),
        node("shared", Some("two"), layer, 100, true),
        node("own", Some("two"), layer, 1000, false),
    ]
}

#[test]
fn what_is_shared_counts_once_and_each_platform_for_itself() {
    let nodes = tree();
    let all = sums(nodes.iter());
    assert_eq!(all, Sums { bytes_present: 121, bytes_known: 1121, missing: 1 });
    let platforms = platforms(&nodes, false);
    let told: Vec<_> = platforms
        .iter()
        .map(|one| (one.platform.as_str(), one.complete, one.bytes_present))
        .collect();
    assert_eq!(told, [("linux/amd64", true, 105), ("linux/arm64", false, 106)]);
    assert_eq!(parts(&nodes, "application/vnd.oci.image.index.v1+json").len(), 5);
}

#[test]
fn a_tree_that_was_cut_is_not_complete() {
    assert!(platforms(&tree(), true).iter().all(|one| !one.complete));
    assert!(platforms(&[], false).is_empty());
}

#[test]
fn each_state_has_its_word() {
    let base = node("x", None, None, 1, false);
    let moment = Some(Timestamp::from_millis(1));
    for (node, want) in [
        (Node { present: true, removed: moment, ..base.clone() }, "present"),
        (Node { quarantined: true, ..base.clone() }, "quarantined"),
        (Node { removed: moment, ..base.clone() }, "removed"),
        (Node { foreign: true, ..base.clone() }, "foreign"),
        (base.clone(), "absent"),
    ] {
        assert_eq!(state(&node), want);
    }
    let foreign = Node { foreign: true, ..base };
    assert_eq!(sums([&foreign].into_iter()), Sums::default());
}

#[test]
fn roles_are_told_apart() {
    let index = "application/vnd.oci.image.index.v1+json";
    let root = parts(&tree(), index);
    let roles: Vec<_> = root.iter().map(|part| part.role.as_str()).collect();
    assert_eq!(roles, ["index", "manifest", "manifest", "layer", "layer"]);
    let manifest = parts(&tree()[..1], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest[0].role, "manifest");
}

#[test]
fn who_needs_it_is_named_with_its_tags() {
    let link = |tag: &str, until| TagLink {
        tag: tag.parse().unwrap(),
        since: Timestamp::from_millis(1),
        until,
        newer: 0,
        first: true,
        last_before_absent: false,
    };
    let key = RepositoryKey { upstream: "r.test".parse().unwrap(), name: "a/b".parse().unwrap() };
    let past = Some(Timestamp::from_millis(2));
    let holder = |revision: &str, unlinked| Holder {
        repository: key.clone(),
        revision: digest(revision),
        unlinked,
        over_subject: false,
        sets: Vec::new(),
        links: vec![link("v1", None), link("old", past)],
    };
    let revisions = vec![holder("self", None), holder("index", None), holder("going", past)];
    let holders = Holders { revisions, ..Holders::default() };
    let needs: Vec<Hold> = needed_by(&holders, &digest("self")).map(of_need).collect();
    let want = format!("r.test/a/b@{} (v1)", digest("index"));
    assert_eq!(needs, [Hold { by: "revision".into(), what: want }]);
    assert_eq!(current_tags(&holders, &key, &digest("self")), ["v1"]);
}
