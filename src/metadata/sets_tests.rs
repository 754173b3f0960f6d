//! Sets, imports, what was asked for in vain, and switches, in the rows.

use std::path::Path;

use super::set_rows::SLICE;
use super::tests::{at, digest, open_at, repository, revision, tag, tagged};
use super::*;
use crate::clock::Timestamp;
use crate::oci::{Digest, RegistryName, SetName, Tag};

fn name(text: &str) -> SetName {
    text.parse().unwrap()
}

fn member(text: &str, label: Option<&str>) -> SetMember {
    let (repository, tag) = (repository("a"), label.map(tag));
    SetMember { repository, digest: digest(text), tag, at: at(9) }
}

/// An import of revisions of `a` whose bytes are here, with the moves of `latest`.
async fn import_of(store: &Metadata, revisions: &[&str], moves: &[(&str, i64)]) -> ImportCommit {
    for text in revisions {
        store.set_present(&digest(text), text.len() as u64).await.unwrap();
    }
    let commits = revisions.iter().map(|text| revision("a", text, &["l"], 500));
    let moves: Vec<_> = moves.iter().map(|(text, when)| (digest(text), at(*when))).collect();
    let imported = |moves| ImportedTag {
        repository: repository("a"),
        tag: tag("latest"),
        moves,
        source: "import b".to_owned(),
    };
    let tags = if moves.is_empty() { Vec::new() } else { vec![imported(moves)] };
    ImportCommit {
        revisions: commits.collect(),
        tags,
        set: name("b"),
        detail: "b.tar".to_owned(),
        members: revisions.iter().map(|text| member(text, Some("latest"))).collect(),
        public: vec![repository("a")],
        at: at(500),
    }
}

/// The timeline of `latest`, the oldest first.
async fn spans(store: &Metadata) -> Vec<(Option<Digest>, i64, Option<i64>, String)> {
    let entries = store.timeline(&repository("a"), &tag("latest"), 99).await.unwrap();
    let span = |entry: TimelineEntry| {
        let until = entry.until.map(Timestamp::as_millis);
        (entry.digest, entry.since.as_millis(), until, entry.source)
    };
    entries.into_iter().rev().map(span).collect()
}

fn span(
    text: &str,
    since: i64,
    until: Option<i64>,
    imported: bool,
) -> (Option<Digest>, i64, Option<i64>, String) {
    let source = if imported { "import b" } else { "registry-1.docker.io" };
    (Some(digest(text)), since, until, source.to_owned())
}

async fn pulled(store: &Metadata, text: &str, when: i64) {
    store.commit_revision(tagged(revision("a", text, &["l"], when), "latest")).await.unwrap();
}

async fn latest(store: &Metadata) -> TagRecord {
    store.tag(&repository("a"), &tag("latest")).await.unwrap().unwrap()
}

#[tokio::test]
async fn an_import_brings_everything_at_once() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let epoch = store.rules_epoch();
    let import = import_of(&store, &["m1", "m2"], &[("m1", 100), ("m2", 200)]).await;
    let imported = store.import(import.clone()).await.unwrap();
    assert_eq!(imported.moved, [true]);
    assert!(store.rules_epoch() > epoch, "nobody takes what was looked at before");
    let record = latest(&store).await;
    assert_eq!(
        (record.digest, record.moved, record.confirmed),
        (Some(digest("m2")), at(200), at(200))
    );
    assert_eq!(
        spans(&store).await,
        [span("m1", 100, Some(200), true), span("m2", 200, None, true)]
    );
    assert_eq!(store.visibility(&repository("a")).await.unwrap(), Some((true, at(500))));
    let found = store.revision(&repository("a"), &digest("m1")).await.unwrap().unwrap();
    assert!(found.present && found.proof.credential.is_none());
    let sets = store.sets().await.unwrap();
    assert_eq!(sets.len(), 1);
    let set = &sets[0];
    assert_eq!((set.kind, set.kept, set.members), (SetKind::Import, true, 2));
    assert_eq!((set.since, set.until, set.detail.as_str()), (at(500), Some(at(500)), "b.tar"));
    let holders = store.holders(&digest("l"), 9).await.unwrap();
    assert!(holders.revisions.iter().all(|holder| holder.sets == [name("b")]), "{holders:?}");
    // The same again changes nothing, and one under the same name adds to the set.
    assert_eq!(store.import(import).await.unwrap().moved, [true]);
    assert_eq!(spans(&store).await.len(), 2);
    let more = import_of(&store, &["m3"], &[]).await;
    store.import(ImportCommit { detail: "c.tar".to_owned(), ..more }).await.unwrap();
    let sets = store.sets().await.unwrap();
    assert_eq!((sets.len(), sets[0].members, sets[0].detail.as_str()), (1, 3, "c.tar"));
    store.close().await;
}

#[tokio::test]
async fn the_mark_of_a_file_survives_the_import_of_its_manifest() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let import = import_of(&store, &["m1"], &[("m1", 100)]).await;
    let mark = FileMark { modified_nanos: 5, inode: 6 };
    store.set_stored(&digest("m1"), 2, Some(mark)).await.unwrap();
    store.import(import).await.unwrap();
    assert_eq!(store.object(&digest("m1")).await.unwrap().unwrap().mark, Some(mark));
    assert_eq!(store.usage().await.unwrap().objects, 1);
    let usage = store.usage_by_upstream().await.unwrap();
    assert_eq!((usage.len(), usage[0].1.objects), (1, 1), "it counts for its registry");
    store.close().await;
}

#[tokio::test]
async fn an_import_that_cannot_be_whole_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let whole = import_of(&store, &["m1", "m2"], &[("m1", 100)]).await;
    store.set_absent(&digest("m2"), false).await.unwrap();
    let strange = ImportedTag { moves: vec![(digest("x"), at(1))], ..whole.tags[0].clone() };
    let nowhere = ImportedTag { moves: Vec::new(), ..whole.tags[0].clone() };
    let present = vec![whole.revisions[0].clone()];
    for import in [
        whole.clone(),
        ImportCommit { revisions: present.clone(), tags: vec![strange], ..whole.clone() },
        ImportCommit { revisions: present.clone(), tags: vec![nowhere], ..whole.clone() },
        ImportCommit { detail: "x".repeat(SET_DETAIL_BYTES_MAX + 1), ..whole.clone() },
    ] {
        assert!(matches!(store.import(import).await, Err(Error::Failed(_))));
        assert_eq!(store.tag(&repository("a"), &tag("latest")).await.unwrap(), None);
        assert_eq!(store.revision(&repository("a"), &digest("m1")).await.unwrap(), None);
        assert!(store.sets().await.unwrap().is_empty());
        assert_eq!(store.visibility(&repository("a")).await.unwrap(), None);
    }
    store.close().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table reads best in one piece")]
async fn timelines_are_joined_in_the_order_of_time() {
    struct Case {
        name: &'static str,
        /// Seen here: what and when.
        seen: &'static [(&'static str, i64)],
        moves: &'static [(&'static str, i64)],
        moved: bool,
        want: &'static [(&'static str, i64, Option<i64>, bool)],
    }
    let cases = [
        Case {
            name: "later than what was seen here",
            seen: &[("m1", 100)],
            moves: &[("m2", 200)],
            moved: true,
            want: &[("m1", 100, Some(200), false), ("m2", 200, None, true)],
        },
        Case {
            name: "seen to move later here",
            seen: &[("m1", 100), ("m2", 300)],
            moves: &[("m3", 200)],
            moved: false,
            want: &[("m1", 100, Some(300), false), ("m2", 300, None, false)],
        },
        Case {
            name: "a past that nobody here has seen",
            seen: &[("m2", 300)],
            moves: &[("m1", 50), ("m3", 100)],
            moved: false,
            want: &[
                ("m1", 50, Some(100), true),
                ("m3", 100, Some(300), true),
                ("m2", 300, None, false),
            ],
        },
        Case {
            name: "before and after",
            seen: &[("m2", 200)],
            moves: &[("m1", 100), ("m2", 250), ("m3", 400)],
            moved: true,
            want: &[
                ("m1", 100, Some(200), true),
                ("m2", 200, Some(400), false),
                ("m3", 400, None, true),
            ],
        },
        Case {
            name: "the same place, told as of earlier",
            seen: &[("m1", 300)],
            moves: &[("m1", 100)],
            moved: true,
            want: &[("m1", 100, Some(300), true), ("m1", 300, None, false)],
        },
        Case {
            name: "from a clock that is ahead",
            seen: &[("m1", 100)],
            moves: &[("m2", 9_000_000)],
            moved: true,
            want: &[("m1", 100, Some(500), false), ("m2", 500, None, true)],
        },
        Case {
            name: "in the same moment",
            seen: &[("m1", 100)],
            moves: &[("m2", 100)],
            moved: true,
            want: &[("m1", 100, Some(100), false), ("m2", 100, None, true)],
        },
    ];
    for case in cases {
        let root = tempfile::tempdir().unwrap();
        let store = open_at(root.path());
        for (text, when) in case.seen {
            pulled(&store, text, *when).await;
        }
        let import = import_of(&store, &["m1", "m2", "m3"], case.moves).await;
        let imported = store.import(import).await.unwrap();
        assert_eq!(imported.moved, [case.moved], "{}", case.name);
        let want: Vec<_> = case.want.iter().map(|(a, b, c, d)| span(a, *b, *c, *d)).collect();
        assert_eq!(spans(&store).await, want, "{}", case.name);
        let record = latest(&store).await;
        let last = want.last().unwrap();
        assert_eq!((record.digest, record.moved.as_millis()), (last.0, last.1), "{}", case.name);
        store.close().await;
    }
}

#[tokio::test]
async fn an_import_brings_back_what_was_taken_out_or_is_absent() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    pulled(&store, "m1", 100).await;
    store.move_tag(&repository("a"), &tag("latest"), None, "x", at(200)).await.unwrap();
    let early = import_of(&store, &["m1"], &[("m1", 150)]).await;
    assert_eq!(store.import(early).await.unwrap().moved, [false], "it was seen to go later");
    assert_eq!(latest(&store).await.digest, None);
    let late = import_of(&store, &["m1"], &[("m1", 300)]).await;
    assert_eq!(store.import(late).await.unwrap().moved, [true]);
    assert_eq!(latest(&store).await.digest, Some(digest("m1")));
    // Deleted here by an operator, and brought again by one.
    pulled(&store, "m2", 400).await;
    store.delete_link(&repository("a"), &tag("latest"), &digest("m2")).await.unwrap();
    assert_eq!(store.tag(&repository("a"), &tag("latest")).await.unwrap(), None);
    let again = import_of(&store, &["m1"], &[("m1", 50)]).await;
    assert_eq!(store.import(again).await.unwrap().moved, [true]);
    assert_eq!(latest(&store).await.digest, Some(digest("m1")));
    store.close().await;
}

/// A store with a revision of `a` that only the set `s` holds, and the id of that.
async fn set_of_one(root: &Path) -> (Metadata, i64) {
    let store = open_at(root);
    pulled(&store, "m1", 100).await;
    let set = store.add_set(name("s"), SetKind::Record, "all".to_owned()).await.unwrap().unwrap();
    assert!(!set.kept && set.until.is_none());
    let unknown = SetMember { digest: digest("x"), ..member("m1", None) };
    let members = vec![member("m1", Some("latest")), member("m1", None), unknown];
    store.add_members(set.id, members.clone()).await.unwrap();
    store.add_members(set.id, members).await.unwrap();
    (store, set.id)
}

#[tokio::test]
async fn a_member_is_a_link_to_its_revision_until_the_set_goes() {
    let root = tempfile::tempdir().unwrap();
    let (store, id) = set_of_one(root.path()).await;
    assert_eq!(store.sets().await.unwrap()[0].members, 2);
    let deleted = store.delete_tag(&repository("a"), &tag("latest")).await.unwrap();
    assert!(deleted.found && deleted.revisions.is_empty(), "the set holds it");
    let holders = store.holders(&digest("m1"), 9).await.unwrap();
    assert!(holders.revisions[0].unlinked.is_none() && holders.revisions[0].sets.is_empty());
    store.change_set(id, Some(at(700)), Some(true)).await.unwrap();
    let set = store.sets().await.unwrap().remove(0);
    assert_eq!((set.until, set.kept), (Some(at(700)), true));
    assert_eq!(store.holders(&digest("m1"), 9).await.unwrap().revisions[0].sets, [name("s")]);
    assert!(!store.forget(&digest("m1")).await.unwrap());
    assert!(store.remove_set(id).await.unwrap());
    assert!(!store.remove_set(id).await.unwrap());
    let holders = store.holders(&digest("m1"), 9).await.unwrap();
    assert!(holders.revisions[0].unlinked.is_some() && holders.revisions[0].sets.is_empty());
    let doomed = store.doomed(at(i64::MAX), 9).await.unwrap();
    assert!(doomed.iter().any(|doomed| doomed.digest == digest("m1")), "{doomed:?}");
    store.close().await;
}

#[tokio::test]
async fn what_was_pulled_by_its_digest_alone_outlives_its_recording() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    pulled(&store, "m1", 100).await;
    pulled(&store, "m2", 200).await;
    // As if it had never had a tag.
    store.delete_tag(&repository("a"), &tag("latest")).await.unwrap();
    for (kind, stays) in [(SetKind::Record, true), (SetKind::Import, false)] {
        let set = store.add_set(name("s"), kind, String::new()).await.unwrap().unwrap();
        let members = vec![member("m1", None), member("m2", Some("latest"))];
        store.add_members(set.id, members).await.unwrap();
        for text in ["m1", "m2"] {
            let holders = store.holders(&digest(text), 9).await.unwrap();
            assert!(holders.revisions[0].unlinked.is_none(), "{text} is linked");
        }
        store.remove_set(set.id).await.unwrap();
        for (text, stays) in [("m1", stays), ("m2", false)] {
            let holders = store.holders(&digest(text), 9).await.unwrap();
            assert_eq!(holders.revisions[0].unlinked.is_none(), stays, "{kind:?} {text}");
        }
    }
    store.close().await;
}

/// A set that is kept with more members than a slice has: revisions that nothing else links to.
async fn large_set(store: &Metadata) -> (i64, Vec<String>) {
    let texts: Vec<String> = (0..SLICE + 50).map(|number| format!("m{number}")).collect();
    let mut members = Vec::new();
    for text in &texts {
        store.commit_revision(revision("a", text, &["l"], 100)).await.unwrap();
        members.push(member(text, Some("latest")));
    }
    let set = store.add_set(name("s"), SetKind::Import, String::new()).await.unwrap().unwrap();
    store.add_members(set.id, members).await.unwrap();
    store.change_set(set.id, None, Some(true)).await.unwrap();
    (set.id, texts)
}

/// How many of the revisions wait for their end.
async fn waiting(store: &Metadata, texts: &[String]) -> usize {
    let mut waiting = 0;
    for text in texts {
        let holders = store.holders(&digest(text), 9).await.unwrap();
        assert!(holders.revisions[0].sets.is_empty(), "{text} is kept by a set that is none");
        let unlinked = holders.revisions[0].unlinked;
        assert!(unlinked.is_none_or(|since| since == at(1_000)), "as of the removal");
        waiting += usize::from(unlinked.is_some());
    }
    waiting
}

#[tokio::test]
async fn a_large_set_is_removed_in_slices() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (id, texts) = large_set(&store).await;
    assert!(store.remove_set(id).await.unwrap());
    assert!(store.sets().await.unwrap().is_empty());
    assert_eq!(waiting(&store, &texts).await, texts.len());
    let rows = "SELECT (SELECT count(*) FROM sets) + (SELECT count(*) FROM set_members)";
    let left: i64 = store.inspect(|c| c.query_row(rows, [], |row| row.get(0))).await.unwrap();
    assert_eq!(left, 0);
    store.close().await;
}

#[tokio::test]
async fn a_set_whose_removal_was_cut_short_is_none_and_the_rest_goes_later() {
    for restart in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let mut store = open_at(root.path());
        let (id, texts) = large_set(&store).await;
        let m0 = store.holders(&digest("m0"), 9).await.unwrap();
        assert_eq!(m0.revisions[0].sets, [name("s")]);
        // The removal and one slice of the members are three steps of the writer each.
        let plan = testing::Plan { at: 7, lasting: true, fault: testing::Fault::Full };
        store.fail_writes(Some(plan));
        assert!(store.remove_set(id).await.unwrap(), "it is none from here on");
        assert!(store.failed_writes() > 0);
        assert_eq!(waiting(&store, &texts).await, SLICE);
        assert!(store.sets().await.unwrap().is_empty());
        store.fail_writes(None);
        assert!(!store.remove_set(id).await.unwrap());
        assert!(!store.change_set(id, None, Some(true)).await.unwrap());
        assert!(!store.describe_set(id, "x".to_owned()).await.unwrap());
        store.add_members(id, vec![member("m0", Some("again"))]).await.unwrap();
        // Nothing of it is a link any more, whatever the order in which the members go.
        store.add_set(name("s"), SetKind::Record, String::new()).await.unwrap().unwrap();
        if restart {
            store.close().await;
            store = open_at(root.path());
        }
        for _turn in 0..1_000 {
            if waiting(&store, &texts).await == texts.len() {
                break;
            }
            store.flush().await.unwrap();
        }
        assert_eq!(waiting(&store, &texts).await, texts.len());
        let sets = store.sets().await.unwrap();
        assert_eq!((sets.len(), sets[0].members), (1, 0), "another one has the name");
        store.close().await;
    }
}

#[tokio::test]
async fn a_set_that_is_being_removed_has_no_name_that_a_set_can_have() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (id, texts) = large_set(&store).await;
    store.fail_writes(Some(testing::Plan { at: 4, lasting: true, fault: testing::Fault::Full }));
    assert!(store.remove_set(id).await.unwrap());
    store.fail_writes(None);
    let taken = store.inspect(move |c| {
        c.query_row("SELECT name FROM sets WHERE id = ?1", [id], |row| row.get::<_, String>(0))
    });
    let taken = taken.await.unwrap();
    assert_eq!(taken.parse::<SetName>(), Err(crate::oci::InvalidSetName), "nobody meets it");
    assert!(store.sets().await.unwrap().is_empty() && waiting(&store, &texts).await == 0);
    store.close().await;
}

#[tokio::test]
async fn what_only_a_removed_set_links_to_loses_its_last_link_with_its_tag() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    pulled(&store, "m1", 100).await;
    let set = store.add_set(name("s"), SetKind::Record, String::new()).await.unwrap().unwrap();
    store.add_members(set.id, vec![member("m1", None)]).await.unwrap();
    let plan = testing::Plan { at: 4, lasting: true, fault: testing::Fault::Full };
    store.fail_writes(Some(plan));
    assert!(store.remove_set(set.id).await.unwrap());
    store.fail_writes(None);
    let deleted = store.delete_tag(&repository("a"), &tag("latest")).await.unwrap();
    assert_eq!(deleted.revisions, [digest("m1")]);
    store.close().await;
}

#[tokio::test]
async fn what_leaves_its_repository_leaves_its_sets() {
    for purge in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let (store, id) = set_of_one(root.path()).await;
        if purge {
            let within = Within::Upstream("docker.io".parse().unwrap());
            while store.purge(&within).await.unwrap().more {}
        } else {
            store.delete_revision(&repository("a"), &digest("m1")).await.unwrap();
        }
        assert_eq!(store.sets().await.unwrap()[0].members, 0);
        assert!(store.set_members(id, None, 9).await.unwrap().is_empty());
        store.close().await;
    }
}

#[tokio::test]
async fn keeping_more_outdates_what_was_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let (store, id) = set_of_one(root.path()).await;
    pulled(&store, "m2", 200).await;
    let before = store.rules_epoch();
    store.add_members(id, vec![member("m2", None)]).await.unwrap();
    assert_eq!(store.rules_epoch(), before, "it keeps nothing yet");
    store.change_set(id, None, Some(true)).await.unwrap();
    let pinned = store.rules_epoch();
    assert!(pinned > before);
    store.add_members(id, vec![member("m2", None)]).await.unwrap();
    assert_eq!(store.rules_epoch(), pinned, "nothing is new");
    store.add_members(id, vec![member("m2", Some("latest"))]).await.unwrap();
    assert!(store.rules_epoch() > pinned);
    assert!(!store.change_set(999, None, Some(true)).await.unwrap());
    store.close().await;
}

#[tokio::test]
async fn members_come_in_pages_by_repository_and_tag() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let mut all = Vec::new();
    // Known in another order than that of their names.
    for repository_name in ["c", "a", "b"] {
        for label in ["v2", "v1"] {
            let text = format!("{repository_name}{label}");
            let commit = tagged(revision(repository_name, &text, &[], 5), label);
            store.commit_revision(commit).await.unwrap();
            let (repository, tag): (_, Tag) = (repository(repository_name), tag(label));
            all.push(SetMember { repository, digest: digest(&text), tag: Some(tag), at: at(5) });
        }
    }
    let set = store.add_set(name("s"), SetKind::Record, String::new()).await.unwrap().unwrap();
    assert_eq!(store.add_set(name("s"), SetKind::Import, String::new()).await.unwrap(), None);
    store.add_members(set.id, all.clone()).await.unwrap();
    all.sort_by(|a, b| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag)));
    let mut found: Vec<SetMember> = Vec::new();
    loop {
        let page = store.set_members(set.id, found.last(), 4).await.unwrap();
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    assert_eq!(found, all);
    store.close().await;
}

fn wanted_tag(text: &str) -> WantedWhat {
    WantedWhat::Tag(tag(text))
}

#[tokio::test]
async fn misses_are_added_up_listed_and_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    for _ in 0..3 {
        store.miss(&here, wanted_tag("v1"), false);
    }
    store.miss(&here, WantedWhat::Blob(digest("l")), true);
    store.flush().await.unwrap();
    store.miss(&here, wanted_tag("v1"), true);
    store.miss(&repository("b"), WantedWhat::Revision(digest("m")), false);
    let all = store.wanted(at(0), None, 9).await.unwrap();
    let told: Vec<_> = all.iter().map(|one| (&one.what, one.times, one.unreachable)).collect();
    let want = [wanted_tag("v1"), WantedWhat::Blob(digest("l")), WantedWhat::Revision(digest("m"))];
    assert_eq!(told, [(&want[0], 4, true), (&want[1], 1, true), (&want[2], 1, false)]);
    assert_eq!((all[0].first, all[0].last), (at(1000), at(1000)));
    let mut paged = Vec::new();
    while let [next] = &store
        .wanted(at(0), paged.last().map(|last: &Wanted| (&last.repository, &last.what)), 1)
        .await
        .unwrap()[..]
    {
        paged.push(next.clone());
    }
    assert_eq!(paged, all);
    assert!(store.wanted(at(1001), None, 9).await.unwrap().is_empty());
    store.miss(&here, wanted_tag("v2"), false);
    store.close().await;

    let store = open_at(root.path());
    assert_eq!(store.wanted(at(0), None, 9).await.unwrap().len(), 4, "it survives the end");
    store.miss(&here, wanted_tag("v3"), false);
    assert_eq!(store.forget_wanted().await.unwrap(), 5);
    assert!(store.wanted(at(0), None, 9).await.unwrap().is_empty());
    store.close().await;
}

#[tokio::test]
async fn what_is_here_now_is_wanted_no_more() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let here = repository("a");
    for what in
        [wanted_tag("latest"), WantedWhat::Revision(digest("m1")), WantedWhat::Blob(digest("l"))]
    {
        store.miss(&here, what.clone(), false);
        store.miss(&repository("b"), what, false);
    }
    assert_eq!(store.wanted(at(0), None, 9).await.unwrap().len(), 6);
    pulled(&store, "m1", 100).await;
    let of_a = |all: Vec<Wanted>| all.into_iter().filter(|one| one.repository == here).count();
    assert_eq!(of_a(store.wanted(at(0), None, 9).await.unwrap()), 1, "the layer is missing");
    store.set_present(&digest("l"), 1).await.unwrap();
    let left = store.wanted(at(0), None, 9).await.unwrap();
    assert_eq!((left.len(), of_a(left)), (3, 0), "the other repository has nothing");
    store.close().await;
}

#[tokio::test]
async fn the_oldest_miss_goes_when_there_are_too_many() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    store.miss(&repository("a"), wanted_tag("old"), false);
    store.flush().await.unwrap();
    let full = i64::try_from(WANTED_MAX).unwrap();
    store
        .inspect(move |rows| {
            rows.execute("UPDATE usage SET wanted = ?1", [full]).unwrap();
            rows.execute("UPDATE wanted SET last = 5", []).unwrap();
        })
        .await;
    store.miss(&repository("a"), wanted_tag("new"), false);
    let left = store.wanted(at(0), None, 9).await.unwrap();
    assert_eq!(left.iter().map(|one| one.what.clone()).collect::<Vec<_>>(), [wanted_tag("new")]);
    store.close().await;
}

#[tokio::test]
async fn a_switch_counts_at_once_and_survives() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let (hub, ghcr) = ("docker.io".parse().unwrap(), "ghcr.io".parse().unwrap());
    let epoch = store.rules_epoch();
    let switch = |name: &str| Switch::Upstream(name.parse().unwrap());
    store.switch(switch("ghcr.io"), true).await.unwrap();
    assert!(store.is_offline(&ghcr) && !store.is_offline(&hub) && store.rules_epoch() > epoch);
    store.close().await;

    let store = open_at(root.path());
    assert!(store.is_offline(&ghcr) && store.rules().is_offline(&ghcr));
    assert!(!store.rules().without_switches().is_offline(&ghcr));
    store.switch(Switch::All, true).await.unwrap();
    assert!(store.is_offline(&hub));
    let off = store.rules().switched_off().clone();
    assert!(off.all && off.upstreams[..] == [ghcr] && off.families.is_empty(), "{off:?}");
    let ghcr = "ghcr.io".parse().unwrap();
    store.switch(switch("ghcr.io"), false).await.unwrap();
    assert!(store.is_offline(&ghcr), "all of them are off");
    store.switch(switch("docker.io"), true).await.unwrap();
    store.switch(Switch::All, false).await.unwrap();
    assert!(!store.is_offline(&hub) && !store.is_offline(&ghcr), "all on is each of them on");
    store.close().await;
}

#[tokio::test]
async fn a_family_is_switched_as_one() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    let name = |text: &str| text.parse::<RegistryName>().unwrap();
    let (eu, us, deep) = (name("eu.pkg.dev"), name("us.pkg.dev"), name("a.b.pkg.dev"));
    let family = || Switch::Family("*.pkg.dev".parse().unwrap());
    let own = || Switch::Upstream(name("eu.pkg.dev"));
    let epoch = store.rules_epoch();
    store.switch(family(), true).await.unwrap();
    assert!(store.rules_epoch() > epoch, "answers in memory are asked anew");
    store.switch(own(), true).await.unwrap();
    store.close().await;

    let store = open_at(root.path());
    assert!(store.is_offline(&eu) && store.is_offline(&us));
    assert!(!store.is_offline(&deep) && !store.is_offline(&name("pkg.dev")));
    let rules = store.rules();
    let off = rules.switched_off();
    assert_eq!(off.of(&eu).collect::<Vec<_>>(), [own(), family()]);
    assert_eq!(off.of(&us).collect::<Vec<_>>(), [family()]);
    assert!(off.has(&family()) && !off.has(&Switch::Upstream(us.clone())));
    // One host on is of no use while its family is off, and a family on leaves what is off by itself.
    store.switch(Switch::Upstream(us.clone()), false).await.unwrap();
    assert!(store.is_offline(&us));
    store.switch(family(), false).await.unwrap();
    assert!(store.is_offline(&eu) && !store.is_offline(&us));
    store.switch(family(), true).await.unwrap();
    store.switch(Switch::All, false).await.unwrap();
    assert!(!store.is_offline(&eu) && !store.is_offline(&us), "all on is each of them on");
    store.close().await;
}
