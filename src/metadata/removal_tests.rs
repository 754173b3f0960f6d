//! Deletions, purges, and what goes after them.

use super::hot::Key;
use super::life_tests::{index, other};
use super::tests::*;
use super::*;
use crate::clock::Timestamp;
use crate::oci::Digest;

fn idle_now() -> InUse {
    InUse::new(|| false)
}

/// What waits for its end, in the order of the digests.
async fn doomed(store: &Metadata) -> Vec<Digest> {
    let found = store.doomed(at(i64::MAX), 999).await.unwrap();
    let mut found: Vec<_> = found.into_iter().map(|doomed| doomed.digest).collect();
    found.sort_unstable();
    found
}

fn digests(texts: &[&str]) -> Vec<Digest> {
    let mut found: Vec<_> = texts.iter().map(|text| digest(text)).collect();
    found.sort_unstable();
    found
}

async fn unlinked(store: &Metadata, name: &str) -> Vec<Digest> {
    let found = store.revision_records(&repository(name), None, 99).await.unwrap();
    let found = found.into_iter().filter(|revision| revision.unlinked.is_some());
    let mut found: Vec<_> = found.map(|revision| revision.digest).collect();
    found.sort_unstable();
    found
}

/// Takes out what nothing holds, until nothing changes; tells how many rows went.
async fn collect(store: &Metadata) -> usize {
    let mut gone = 0;
    loop {
        let mut went = false;
        for doomed in store.doomed(at(i64::MAX), 999).await.unwrap() {
            let why = Why::Unheld { rules: store.rules_epoch() };
            match store.take(&doomed.digest, why, idle_now()).await.unwrap() {
                Taken::Stays => store.spare(&doomed.digest).await.unwrap(),
                _ => {
                    assert!(store.forget(&doomed.digest).await.unwrap());
                    (went, gone) = (true, gone + 1);
                }
            }
        }
        if !went {
            return gone;
        }
    }
}

async fn no_row_dangles(store: &Metadata) {
    let broken: i64 = store
        .inspect(|rows| {
            rows.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))
                .unwrap()
        })
        .await;
    assert_eq!(broken, 0);
}

/// `a:latest` was m1, then m2; `a:old` is m1; m3 was only asked by its digest.
async fn store_of_three(root: &std::path::Path) -> Metadata {
    let store = open_at(root);
    for (text, millis, name) in [
        ("m1", 10, Some("latest")),
        ("m2", 20, Some("latest")),
        ("m1", 30, Some("old")),
        ("m3", 40, None),
    ] {
        let own = format!("l-{text}");
        let commit = revision("a", text, &["shared", &own], millis);
        let commit = match name {
            Some(name) => tagged(commit, name),
            None => commit,
        };
        store.commit_revision(commit).await.unwrap();
    }
    store
}

#[tokio::test]
async fn a_deleted_tag_goes_with_its_timeline_and_what_it_alone_linked_waits() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    let (here, latest) = (repository("a"), tag("latest"));
    assert!(store.hot_manifest(&here, Some(&latest), &digest("m2")).is_some());
    let told = store.delete_tag(&here, &latest).await.unwrap();
    let expected =
        Deleted { found: true, tags: vec![latest.clone()], revisions: vec![digest("m2")] };
    assert_eq!(told, expected);
    assert!(store.hot_manifest(&here, Some(&latest), &digest("m2")).is_none());
    assert_eq!(store.tag(&here, &latest).await.unwrap(), None);
    assert!(store.history(&here, &latest, None, 9).await.unwrap().is_empty());
    assert!(!store.was_tagged(&here, &latest, &digest("m1")).await.unwrap());
    assert_eq!(unlinked(&store, "a").await, digests(&["m2"]));
    assert_eq!(doomed(&store).await, digests(&["m2"]));
    // It is served by its digest as long as it waits.
    assert!(store.revision(&here, &digest("m2")).await.unwrap().unwrap().present);
    assert_eq!(store.delete_tag(&here, &latest).await.unwrap(), Deleted::default());
    assert_eq!(store.delete_tag(&repository("no"), &latest).await.unwrap(), Deleted::default());
    // A confirmation that was on its way makes no tag.
    store.confirm_tag(&here, &latest, at(99));
    store.flush().await.unwrap();
    assert_eq!(store.tag(&here, &latest).await.unwrap(), None);

    // Upstream showed it again: it stays.
    store.commit_revision(revision("a", "m2", &["shared", "l-m2"], 50)).await.unwrap();
    assert_eq!(unlinked(&store, "a").await, []);
    assert_eq!(collect(&store).await, 0);
    assert_eq!(doomed(&store).await, []);
    store.close().await;
}

#[tokio::test]
async fn an_index_takes_its_children_along_and_a_move_of_the_tag_brings_them_back() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    store.commit_revision(tagged(index("a", "i", &["c1", "c2"], 1), "latest")).await.unwrap();
    for text in ["c1", "c2"] {
        store.commit_revision(revision("a", text, &["base"], 2)).await.unwrap();
    }
    store.commit_revision(tagged(revision("a", "c2", &["base"], 3), "child")).await.unwrap();
    let mut signature = revision("a", "sig", &["sb"], 4);
    signature.subject = Some(digest("c1"));
    store.commit_revision(signature).await.unwrap();
    store.commit_revision(tagged(revision("a", "next", &[], 5), "latest")).await.unwrap();
    // A child that an index needs does not wait for the loss of a tag of its own.
    let told = store.delete_tag(&here, &tag("child")).await.unwrap();
    assert!(told.found && told.revisions.is_empty());
    let told = store.delete_link(&here, &tag("latest"), &digest("i")).await.unwrap();
    assert!(told.tags.is_empty(), "it points elsewhere now");
    let mut revisions = told.revisions;
    revisions.sort_unstable();
    assert_eq!(revisions, digests(&["i", "c1", "c2", "sig"]));
    store.move_tag(&here, &tag("latest"), Some(digest("i")), "x", at(6)).await.unwrap();
    assert_eq!(unlinked(&store, "a").await, []);
    assert_eq!(collect(&store).await, 0);
    assert!(store.object(&digest("sig")).await.unwrap().unwrap().present);
    assert_eq!(store.tree(&here, &digest("i"), 9).await.unwrap().len(), 5);
    no_row_dangles(&store).await;
    store.close().await;
}

#[tokio::test]
async fn one_link_leaves_a_hole_and_takes_the_tag_if_it_is_there_now() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    let (here, latest) = (repository("a"), tag("latest"));
    let told = store.delete_link(&here, &latest, &digest("m1")).await.unwrap();
    assert_eq!(told, Deleted { found: true, ..Deleted::default() }, "another tag links to it");
    assert_eq!(store.tag_at(&here, &latest, at(15)).await.unwrap(), None);
    assert_eq!(store.tag(&here, &latest).await.unwrap().unwrap().digest, Some(digest("m2")));
    let told = store.delete_link(&here, &latest, &digest("m2")).await.unwrap();
    assert_eq!((told.tags, told.revisions), (vec![latest.clone()], vec![digest("m2")]));
    assert_eq!(store.tag(&here, &latest).await.unwrap(), None);
    let told = store.delete_link(&here, &latest, &digest("m2")).await.unwrap();
    assert!(!told.found);
    // The tag begins anew, and what comes after a hole may be what a freeze serves.
    store.commit_revision(tagged(revision("a", "m4", &[], 60), "latest")).await.unwrap();
    store.commit_revision(tagged(revision("a", "m5", &[], 70), "latest")).await.unwrap();
    store.commit_revision(tagged(revision("a", "m6", &[], 80), "latest")).await.unwrap();
    store.delete_link(&here, &latest, &digest("m5")).await.unwrap();
    let frozen = store.frozen_at(&here, &latest, at(75)).await.unwrap().unwrap();
    assert_eq!(frozen.digest, Some(digest("m6")));
    let held = store.holders(&digest("m6"), 9).await.unwrap();
    assert!(held.revisions[0].links[0].first);
    assert_eq!(store.first_seen(&here, &latest).await.unwrap(), Some(at(60)));
    store.close().await;
}

#[tokio::test]
async fn a_deleted_revision_leaves_the_repository_with_what_it_alone_proved() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    let (here, elsewhere) = (repository("a"), repository("b"));
    store.commit_revision(revision("b", "m1", &["shared", "l-m1"], 50)).await.unwrap();
    store.set_present(&digest("index of referrers"), 3).await.unwrap();
    store.set_referrers(&here, &digest("m2"), &digest("index of referrers"), at(55)).await.unwrap();
    // An index of referrers that another one replaces waits for its end.
    store.set_present(&digest("newer index"), 3).await.unwrap();
    store.set_referrers(&here, &digest("m2"), &digest("newer index"), at(56)).await.unwrap();
    assert_eq!(doomed(&store).await, digests(&["index of referrers"]));
    assert!(store.hot_manifest(&here, Some(&tag("latest")), &digest("m2")).is_some());
    let stamp = store.hot_manifest(&here, None, &digest("m2")).unwrap().stamp;
    let told = store.delete_revision(&here, &digest("m2")).await.unwrap();
    assert_eq!((told.tags, told.revisions), (vec![tag("latest")], vec![digest("m2")]));
    assert!(!store.is_current(&stamp) && store.hot_manifest(&here, None, &digest("m2")).is_none());
    assert_eq!(store.revision(&here, &digest("m2")).await.unwrap(), None);
    assert_eq!(store.referrers(&here, &digest("m2")).await.unwrap(), None);
    let member = async |key: &RepositoryKey, text: &str| {
        store.blob(key, &digest(text)).await.unwrap().proof.is_some()
    };
    assert!(!member(&here, "m2").await && !member(&here, "l-m2").await);
    assert!(member(&here, "shared").await, "others of the repository name it");
    let told = store.delete_revision(&here, &digest("m1")).await.unwrap();
    assert_eq!(told.tags, [tag("old")]);
    assert!(!member(&here, "m1").await && member(&elsewhere, "m1").await);
    assert!(!store.delete_revision(&here, &digest("m1")).await.unwrap().found);
    // m1 stays for the other repository; what nothing holds goes.
    assert_eq!(collect(&store).await, 4);
    for text in ["m2", "l-m2", "index of referrers", "newer index"] {
        assert!(store.object(&digest(text)).await.unwrap().is_none(), "{text}");
    }
    assert!(store.object(&digest("m1")).await.unwrap().is_some());
    assert_eq!(doomed(&store).await, []);
    no_row_dangles(&store).await;
    store.close().await;
}

#[tokio::test]
async fn what_nothing_holds_goes_from_the_top_down() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    store.commit_revision(tagged(index("a", "i", &["c1"], 1), "latest")).await.unwrap();
    store.commit_revision(revision("a", "c1", &["base", "own"], 2)).await.unwrap();
    store.commit_revision(revision("a", "keeper", &["base"], 3)).await.unwrap();
    for text in ["base", "own"] {
        store.set_present(&digest(text), 9).await.unwrap();
    }
    // While something refers to it, an object stays, whoever asks.
    assert!(!store.forget(&digest("own")).await.unwrap());
    let unheld = Why::Unheld { rules: 0 };
    assert_eq!(store.take(&digest("own"), unheld, idle_now()).await.unwrap(), Taken::Stays);
    store.delete_tag(&here, &tag("latest")).await.unwrap();
    assert!(!store.forget(&digest("i")).await.unwrap(), "its bytes are here");
    assert_eq!(collect(&store).await, 3);
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.objects, usage.bytes), (2, 9 + 6), "the keeper and the base");
    assert!(store.blob(&here, &digest("own")).await.unwrap().proof.is_none());
    assert!(store.blob(&here, &digest("base")).await.unwrap().present);
    assert_eq!(store.usage_by_upstream().await.unwrap().len(), 1);
    no_row_dangles(&store).await;
    store.close().await;
}

#[tokio::test]
async fn what_is_kept_for_another_reason_is_looked_at_again() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    store.delete_tag(&repository("a"), &tag("latest")).await.unwrap();
    assert_eq!(store.doomed(at(1_001), 9).await.unwrap().len(), 1);
    assert_eq!(store.doomed(at(1_000), 9).await.unwrap().len(), 0, "not before its time");
    // Only a pin can keep it: that may be taken back.
    store.spare(&digest("m2")).await.unwrap();
    assert_eq!(doomed(&store).await, digests(&["m2"]));
    // Held by rows: done.
    store.commit_revision(tagged(revision("a", "m2", &[], 5), "v2")).await.unwrap();
    store.spare(&digest("m2")).await.unwrap();
    store.spare(&digest("nobody")).await.unwrap();
    assert_eq!(doomed(&store).await, []);
    store.close().await;
}

#[tokio::test]
async fn what_others_hold_leaves_the_repository_in_which_it_waited() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    let here = repository("a");
    store.commit_revision(revision("b", "m2", &["shared", "l-m2"], 50)).await.unwrap();
    let retire = async |before| store.retire(&here, &digest("m2"), at(before)).await.unwrap();
    assert!(!retire(9_999).await, "it is linked");
    store.delete_tag(&here, &tag("latest")).await.unwrap();
    assert!(!retire(1_000).await, "not before its time");
    store.commit_revision(index("a", "i", &["m2"], 60)).await.unwrap();
    store.delete_link(&here, &tag("old"), &digest("m1")).await.unwrap();
    assert!(!retire(9_999).await, "an index needs it");
    store.delete_revision(&here, &digest("i")).await.unwrap();
    assert!(retire(9_999).await && !retire(9_999).await);
    assert_eq!(store.revision(&here, &digest("m2")).await.unwrap(), None);
    assert!(store.blob(&here, &digest("l-m2")).await.unwrap().proof.is_none());
    assert!(store.revision(&repository("b"), &digest("m2")).await.unwrap().unwrap().present);
    no_row_dangles(&store).await;
    store.close().await;
}

#[tokio::test]
async fn a_purge_takes_all_of_an_upstream_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    for number in 0..300_u32 {
        let text = format!("m{number}");
        let commit = revision("big", &text, &["shared", &format!("l{number}")], 1);
        store.commit_revision(tagged(commit, &format!("v{number}"))).await.unwrap();
    }
    store.commit_revision(tagged(revision("small", "m1", &["shared"], 2), "x")).await.unwrap();
    let there = other("ghcr.io", tagged(revision("big", "m1", &["shared"], 3), "x"));
    let elsewhere = there.repository.clone();
    store.commit_revision(there).await.unwrap();
    store.set_visibility(&repository("big"), true, at(1)).await.unwrap();
    assert!(store.hot_manifest(&repository("big"), Some(&tag("v299")), &digest("m299")).is_some());

    let (mut slices, mut sum) = (0, Purged::default());
    let within = Within::Upstream("docker.io".parse().unwrap());
    loop {
        let purged = store.purge(&within).await.unwrap();
        assert!(purged.tags <= 256 && purged.revisions <= 256);
        slices += 1;
        sum.repositories += purged.repositories;
        sum.tags += purged.tags;
        sum.revisions += purged.revisions;
        if !purged.more {
            break;
        }
    }
    assert_eq!((sum.repositories, sum.tags, sum.revisions), (2, 301, 301));
    assert!(slices > 3);
    assert_eq!(store.visibility(&repository("big")).await.unwrap(), None);
    assert!(store.hot_manifest(&repository("big"), Some(&tag("v299")), &digest("m299")).is_none());
    assert_eq!(store.tag(&repository("big"), &tag("v299")).await.unwrap(), None);
    assert_eq!(store.revision(&repository("big"), &digest("m1")).await.unwrap(), None);
    assert!(store.blob(&repository("big"), &digest("shared")).await.unwrap().proof.is_none());
    assert!(store.revision(&elsewhere, &digest("m1")).await.unwrap().unwrap().present);
    assert_eq!(store.repositories(None, 9, false).await.unwrap(), vec![elsewhere.clone()]);
    // What the other upstream has stays, with all that it refers to.
    assert_eq!(collect(&store).await, 299 + 299);
    assert!(store.blob(&elsewhere, &digest("shared")).await.unwrap().proof.is_some());
    no_row_dangles(&store).await;
    // One repository; nothing is left of it either, and a second time there is nothing to do.
    let within = Within::Repository(elsewhere.clone());
    while store.purge(&within).await.unwrap().more {}
    assert_eq!(store.purge(&within).await.unwrap(), Purged::default());
    collect(&store).await;
    assert_eq!(store.usage().await.unwrap(), Usage::default());
    let left: i64 = store
        .inspect(|rows| {
            rows.query_row("SELECT count(*) FROM objects", [], |row| row.get(0)).unwrap()
        })
        .await;
    assert_eq!(left, 0);
    store.close().await;
}

#[tokio::test]
async fn bytes_are_taken_only_on_evidence_that_still_holds() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let x = digest("x");
    let minute = 60_000;
    store.set_present(&x, 5).await.unwrap();
    let since = store.idle(at(minute), None, 9).await.unwrap()[0].since;
    let unused = |since: Timestamp, rules| Why::Unused { since, rules };
    let busy = InUse::new(|| true);
    assert_eq!(store.take(&x, unused(since, 0), busy.clone()).await.unwrap(), Taken::Stays);
    assert_eq!(store.take(&x, unused(at(0), 0), idle_now()).await.unwrap(), Taken::Stays);
    assert_eq!(store.take(&x, unused(since, 1), idle_now()).await.unwrap(), Taken::Stays);
    // Used meanwhile: a use that is not written yet counts too.
    store.touch(&x, at(10 * minute));
    assert_eq!(store.take(&x, unused(since, 0), idle_now()).await.unwrap(), Taken::Stays);
    // So many other uses wait to be written that nobody can know.
    for number in 0..400 {
        store.touch(&digest(&format!("other {number}")), at(1));
    }
    let since = at(10 * minute);
    assert_eq!(store.take(&x, unused(since, 0), idle_now()).await.unwrap(), Taken::Stays);
    store.flush().await.unwrap();
    // A pin that came meanwhile.
    let scope = "docker.io".parse().unwrap();
    store.add_rule(RuleKind::Pin, scope, None, String::new()).await.unwrap();
    assert_eq!(store.take(&x, unused(since, 0), idle_now()).await.unwrap(), Taken::Stays);
    assert!(store.object(&x).await.unwrap().unwrap().present);
    assert_eq!(store.take(&x, unused(since, 1), idle_now()).await.unwrap(), Taken::Gone(5));
    assert!(!store.object(&x).await.unwrap().unwrap().present);
    assert_eq!(store.usage().await.unwrap(), Usage::default());
    assert_eq!(store.take(&x, unused(since, 1), idle_now()).await.unwrap(), Taken::NotHere);
    assert_eq!(store.take(&digest("y"), Why::Ordered, busy.clone()).await.unwrap(), Taken::NotHere);
    // On an order, whoever uses it; the row says so until the content is here again.
    store.commit_revision(revision("a", "m", &["x"], 1)).await.unwrap();
    store.set_present(&x, 5).await.unwrap();
    assert_eq!(store.take(&x, Why::Ordered, busy).await.unwrap(), Taken::Gone(5));
    let removed = async || store.tree(&repository("a"), &digest("m"), 9).await.unwrap()[1].removed;
    assert_eq!(removed().await, Some(at(1_000)));
    assert!(store.is_unwanted(&x).await.unwrap());
    store.set_present(&x, 5).await.unwrap();
    assert_eq!(removed().await, None);
    assert!(!store.is_unwanted(&x).await.unwrap());
    store.close().await;
}

#[tokio::test]
async fn rows_that_nobody_needs_are_found_in_slices() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    store.commit_revision(revision("a", "m", &["l"], 1)).await.unwrap();
    store.prove(&repository("a"), &digest("member"), None, proof(1)).await.unwrap();
    for text in ["stray", "here"] {
        store.set_present(&digest(text), 1).await.unwrap();
    }
    store.set_absent(&digest("stray"), false).await.unwrap();
    let (found, next) = store.strays(0, at(1_001)).await.unwrap();
    assert_eq!((found, next), (vec![digest("stray")], None));
    assert!(store.strays(0, at(1_000)).await.unwrap().0.is_empty(), "not before its time");
    assert!(store.forget(&digest("stray")).await.unwrap());
    assert!(store.shared().hot.get(&Key::Object(digest("stray"))).is_none());
    assert_eq!(store.strays(0, at(9_999)).await.unwrap(), (Vec::new(), None));
    store.close().await;
}

#[tokio::test]
async fn a_deletion_that_cannot_be_written_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    let (here, latest) = (repository("a"), tag("latest"));
    for step in 1..=3 {
        let fault = testing::Fault::Io;
        store.fail_writes(Some(testing::Plan { at: step, lasting: true, fault }));
        assert!(store.delete_tag(&here, &latest).await.is_err());
        assert!(store.delete_revision(&here, &digest("m2")).await.is_err());
        store.fail_writes(None);
        assert_eq!(store.tag(&here, &latest).await.unwrap().unwrap().digest, Some(digest("m2")));
        assert!(store.revision(&here, &digest("m2")).await.unwrap().is_some());
    }
    assert_eq!(doomed(&store).await, []);
    store.close().await;
}

#[tokio::test]
async fn a_tag_that_moves_to_what_was_about_to_go_makes_it_young() {
    let root = tempfile::tempdir().unwrap();
    let store = store_of_three(root.path()).await;
    let (here, later) = (repository("a"), at(10_000_000));
    store.set_present(&digest("l-m3"), 3).await.unwrap();
    let page = store.idle(at(i64::MAX), None, 99).await.unwrap();
    let looked_at = page.iter().find(|idle| idle.digest == digest("m3")).unwrap();
    store.move_tag(&here, &tag("new"), Some(digest("m3")), "docker.io", later).await.unwrap();
    let why = Why::Unused { since: looked_at.since, rules: store.rules_epoch() };
    assert_eq!(store.take(&digest("m3"), why, idle_now()).await.unwrap(), Taken::Stays);
    store.close().await;
}
