//! Bundles by other clocks than ours: whatever ours says, and in whatever order they come, their own order counts.

use super::tests::{at, digest, open_at, repository, revision, tag, tagged};
use super::*;
use crate::oci::Digest;

/// What our clock says when something happens.
enum Step {
    /// A bundle says that `latest` points there since then.
    Told(i64, &'static str, i64),
    /// We see it ourselves.
    Seen(i64, &'static str),
}

use Step::{Seen, Told};

/// The bytes of its manifest are to be here.
fn bundle(now: i64, text: &str, told: i64) -> ImportCommit {
    let told = ImportedTag {
        repository: repository("a"),
        tag: tag("latest"),
        moves: vec![(digest(text), at(told))],
        source: "import b".to_owned(),
    };
    ImportCommit {
        revisions: vec![revision("a", text, &["l"], now)],
        tags: vec![told],
        set: "b".parse().unwrap(),
        detail: String::new(),
        members: Vec::new(),
        public: vec![repository("a")],
        at: at(now),
    }
}

async fn import(store: &Metadata, now: i64, text: &str, told: i64) -> bool {
    store.set_present(&digest(text), text.len() as u64).await.unwrap();
    store.import(bundle(now, text, told)).await.unwrap().moved == [true]
}

async fn moves(store: &Metadata) -> Vec<(Digest, i64, Option<i64>)> {
    let newest_first = store.timeline(&repository("a"), &tag("latest"), 99).await.unwrap();
    let moves = newest_first.into_iter().rev();
    moves
        .map(|entry| {
            let told = entry.told.map(crate::clock::Timestamp::as_millis);
            (entry.digest.unwrap(), entry.since.as_millis(), told)
        })
        .collect()
}

#[tokio::test]
async fn bundles_come_in_the_order_of_their_own_clock() {
    let delta_at = |now| Told(now, "m2", 1000);
    let base_at = |now| Told(now, "m1", 900);
    let back_at = |now| Told(now, "m1", 1040);
    let ahead_at = |now| Told(now, "m2", 9_000_000);
    let cases: [(&str, Vec<Step>, &str); 19] = [
        ("behind, then right", vec![base_at(400), delta_at(500), base_at(2000)], "m2"),
        ("behind all the time", vec![base_at(400), delta_at(500), base_at(510)], "m2"),
        ("right in between", vec![base_at(400), delta_at(500), base_at(950)], "m2"),
        ("the base after the delta", vec![delta_at(500), base_at(510)], "m2"),
        ("the same, now right", vec![delta_at(500), base_at(2000)], "m2"),
        ("the same twice", vec![delta_at(500), delta_at(510), base_at(520)], "m2"),
        ("one after another", vec![base_at(400), delta_at(401), Told(402, "m3", 1100)], "m3"),
        ("back on purpose", vec![base_at(400), delta_at(500), Told(510, "m1", 1100)], "m1"),
        ("the same, now right", vec![base_at(400), delta_at(500), Told(2000, "m1", 1100)], "m1"),
        ("seen by our clock since", vec![base_at(400), delta_at(500), Seen(600, "m3")], "m3"),
        (
            "and then the base, now right",
            vec![base_at(400), delta_at(500), Seen(600, "m3"), base_at(2000)],
            "m3",
        ),
        // Their clock was ahead when the first came, and somebody set it.
        ("theirs was ahead", vec![Told(400, "m1", 9_000_000), Told(500, "m2", 450)], "m2"),
        (
            "and what it left is nothing new",
            vec![Told(400, "m1", 9_000_000), Told(500, "m2", 450), Told(600, "m1", 9_000_000)],
            "m2",
        ),
        // What came from it since then is in the order of the clocks that are right, also back.
        (
            "not held by it",
            vec![base_at(950), ahead_at(1010), Told(1030, "m3", 1020), back_at(1050)],
            "m1",
        ),
        (
            "nor if we saw it",
            vec![base_at(950), ahead_at(1010), Seen(1030, "m3"), back_at(1050)],
            "m1",
        ),
        (
            "and the wrong one once more",
            vec![base_at(950), ahead_at(1010), Seen(1030, "m3"), back_at(1050), ahead_at(1060)],
            "m1",
        ),
        ("seen later here", vec![Seen(700, "m3"), Told(800, "m2", 650)], "m3"),
        // It went and came back, and what lay between comes last.
        ("there again", vec![base_at(2000), back_at(2010), delta_at(2020)], "m1"),
        ("there again, behind", vec![base_at(400), back_at(410), delta_at(420)], "m1"),
    ];
    for (name, steps, last) in cases {
        let root = tempfile::tempdir().unwrap();
        let store = open_at(root.path());
        for step in steps {
            match step {
                Told(now, text, told) => drop(import(&store, now, text, told).await),
                Seen(now, text) => {
                    let seen = tagged(revision("a", text, &["l"], now), "latest");
                    store.commit_revision(seen).await.unwrap();
                }
            }
        }
        let record = store.tag(&repository("a"), &tag("latest")).await.unwrap().unwrap();
        assert_eq!(record.digest, Some(digest(last)), "{name}");
        let times: Vec<_> = moves(&store).await.into_iter().map(|(_, since, _)| since).collect();
        assert!(times.is_sorted(), "{name}: {times:?}");
        store.close().await;
    }
}

#[tokio::test]
async fn what_was_told_is_kept_where_our_clock_was_behind_and_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    assert!(import(&store, 400, "m1", 300).await);
    assert!(import(&store, 500, "m2", 1000).await);
    let seen = [(digest("m1"), 300, None), (digest("m2"), 500, Some(1000))];
    assert_eq!(moves(&store).await, seen);
    // A past is put before: the rows are written anew, with all that is in them.
    assert!(!import(&store, 2000, "m0", 100).await);
    let whole = [(digest("m0"), 100, None), seen[0], seen[1]];
    assert_eq!(moves(&store).await, whole);
    store.close().await;
}

#[tokio::test]
async fn a_move_that_our_clock_was_ahead_of_is_not_in_the_timeline_twice() {
    let root = tempfile::tempdir().unwrap();
    let store = open_at(root.path());
    store.commit_revision(tagged(revision("a", "m3", &["l"], 700), "latest")).await.unwrap();
    // Somebody set our clock back since then.
    assert!(import(&store, 500, "m2", 800).await);
    let all = [(digest("m3"), 700, None), (digest("m2"), 500, Some(800))];
    assert_eq!(moves(&store).await, all);
    store.close().await;
}

/// Where tags point, from what is hot and from the rows.
async fn pointing(store: &Metadata, names: [&str; 3]) -> [Option<Digest>; 3] {
    let mut found = [None; 3];
    for (name, found) in names.into_iter().zip(&mut found) {
        let record = store.tag(&repository("a"), &tag(name)).await.unwrap();
        *found = record.and_then(|record| record.digest);
    }
    found
}

#[tokio::test]
async fn an_import_among_others_is_whole_or_not_at_all_whatever_step_of_the_writer_fails() {
    const NAMES: [&str; 3] = ["before", "latest", "behind"];
    let mut refused = 0;
    for fault in [testing::Fault::Full, testing::Fault::Busy] {
        for step in 1.. {
            let root = tempfile::tempdir().unwrap();
            let store = open_at(root.path());
            let first = tagged(revision("a", "m1", &["l"], 100), "latest");
            store.commit_revision(first).await.unwrap();
            store.set_present(&digest("m2"), 2).await.unwrap();
            assert_eq!(pointing(&store, NAMES).await, [None, Some(digest("m1")), None]);
            // The writer is held until all of them wait for it, so that they come as one group.
            let (release, held) = std::sync::mpsc::channel::<()>();
            let key = repository("a");
            let point = async |name: &str| {
                store.move_tag(&key, &tag(name), Some(digest("m1")), "x", at(300)).await.is_ok()
            };
            let importing = async { store.import(bundle(400, "m2", 350)).await.is_ok() };
            let releasing = async {
                store.fail_writes(Some(testing::Plan { at: step, lasting: false, fault }));
                release.send(()).unwrap();
            };
            let holding = store.inspect(move |_rows| held.recv().unwrap());
            let ((), before, imported, behind, ()) =
                tokio::join!(holding, point("before"), importing, point("behind"), releasing);
            let is_over = store.failed_writes() == 0;
            store.fail_writes(None);
            let m1 = |pointed: bool| pointed.then(|| digest("m1"));
            let latest = digest(if imported { "m2" } else { "m1" });
            let wanted = [m1(before), Some(latest), m1(behind)];
            assert_eq!(pointing(&store, NAMES).await, wanted, "{fault:?} at {step}");
            store.close().await;
            let store = open_at(root.path());
            assert_eq!(pointing(&store, NAMES).await, wanted, "{fault:?} at {step}");
            assert_eq!(store.sets().await.unwrap().len(), usize::from(imported));
            let revision = store.revision(&key, &digest("m2")).await.unwrap();
            assert_eq!(revision.is_some(), imported, "{fault:?} at {step}");
            store.close().await;
            refused += usize::from(!imported);
            if is_over {
                assert!(before && imported && behind);
                break;
            }
        }
    }
    assert!(refused >= 6, "the begin, the import and the commit, with both faults: {refused}");
}
