//! Opening what others left: older and newer schemas, foreign databases, junk.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prometheus_client::registry::Registry;
use rusqlite::Connection;

use super::connection::open_writer_with;
use super::schema::MIGRATIONS;
use super::tests::{digest, open_at, repository, revision, tag, tagged};
use super::*;
use crate::clock::SystemClock;

/// A step that a later version might have: a new column with a value in old rows, and a new table.
const LATER: &str = "ALTER TABLE objects ADD COLUMN pins INTEGER NOT NULL DEFAULT 7;
CREATE TABLE pins (id INTEGER PRIMARY KEY, reason TEXT) STRICT;";

/// The steps of today and those of another time.
fn and(later: &[&'static str]) -> Vec<&'static str> {
    MIGRATIONS.iter().chain(later).copied().collect()
}

fn database(root: &Path) -> PathBuf {
    root.join("roadstead.db")
}

/// The copy that is left of a store of that version.
fn copy_of(root: &Path, version: i64) -> PathBuf {
    root.join(format!("roadstead.db.v{version}.bak"))
}

fn open(path: PathBuf) -> Result<Metadata, OpenError> {
    let settings = Settings::new(path);
    Metadata::open(settings, Arc::new(SystemClock), &mut Registry::default())
}

fn value(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// A store of the current version with one tag in it.
async fn filled(root: &Path) {
    let store = open_at(root);
    store.commit_revision(tagged(revision("a", "m1", &["l1"], 1), "latest")).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn an_older_store_is_migrated_and_a_copy_is_kept() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let steps = and(&[LATER]);
    for _again in 0..2 {
        let migrated = open_writer_with(&path, &steps).unwrap();
        assert_eq!(value(&migrated, "PRAGMA user_version"), SCHEMA_VERSION + 1);
        assert_eq!(value(&migrated, "SELECT min(pins) FROM objects"), 7);
        assert_eq!(value(&migrated, "SELECT count(*) FROM tags"), 1);
    }
    let copy = copy_of(root.path(), SCHEMA_VERSION);
    assert!(!copy.with_extension("bak.partial").exists());
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o077, 0);
    // The copy is a whole store of the old version: put back, it works with the old program.
    fs::rename(&copy, &path).unwrap();
    let store = open_at(root.path());
    let record = store.tag(&repository("a"), &tag("latest")).await.unwrap();
    assert_eq!(record.unwrap().digest, Some(digest("m1")));
    store.close().await;
}

#[tokio::test]
async fn a_store_of_the_first_version_is_opened_with_all_that_is_in_it() {
    let root = tempfile::tempdir().unwrap();
    let path = database(root.path());
    {
        let rows = open_writer_with(&path, &MIGRATIONS[..1]).unwrap();
        assert_eq!(value(&rows, "PRAGMA user_version"), 1);
        let key = |last: &str| format!("x'01{}{last}'", "00".repeat(31));
        let sql = format!(
            "INSERT INTO objects (digest, kind, state, size, created, verified, accessed) VALUES
            ({}, 0, 1, 10, 5, 7, 5), ({}, 0, 1, 20, 6, NULL, 6);
            UPDATE usage SET objects = 2, bytes = 30;",
            key("00"),
            key("01")
        );
        rows.execute_batch(&sql).unwrap();
    }
    let store = open(path).unwrap();
    let found = store.oldest_verified(crate::clock::Timestamp::from_millis(100), 9).await.unwrap();
    let sizes: Vec<_> = found.iter().map(|object| object.size).collect();
    assert_eq!(sizes, [20, 10], "the time of storing stands for a look");
    // Without marks, from the time before they were compared.
    let object = store.object(&found[0].digest).await.unwrap().unwrap();
    assert!(object.present && object.mark.is_none());
    store.close().await;
    assert!(root.path().join("roadstead.db.v1.bak").exists());
}

/// Rows as version 3 left them: two upstreams share a layer, which the second showed last.
const OF_VERSION_3: &str = "
INSERT INTO repositories (id, upstream, name, public, public_checked) VALUES
    (1, 'docker.io', 'a', 1, 5), (2, 'ghcr.io', 'b', NULL, NULL);
INSERT INTO objects (id, digest, kind, state, size, created, verified, accessed) VALUES
    (1, DIGEST1, 1, 1, 10, 1, 1, 11), (2, DIGEST2, 0, 1, 200, 2, 2, 22),
    (3, DIGEST3, 0, 0, 3000, 3, NULL, 33), (4, DIGEST4, 0, 1, 40000, 4, 4, 44);
INSERT INTO edges VALUES (1, 2, 1, 0, 0, NULL), (1, 3, 1, 1, 0, NULL);
INSERT INTO membership (object, repository, proved) VALUES (1, 1, 5), (2, 1, 5), (2, 2, 6), (3, 1, 5);
INSERT INTO revisions (repository, object, media_type, committed) VALUES (1, 1, 'application/vnd.oci.image.manifest.v1+json', 5);
INSERT INTO tags VALUES (1, 'latest', 1, 5, 7, 'x');
INSERT INTO timeline (repository, tag, object, since, until, source) VALUES (1, 'latest', 1, 5, NULL, 'x');
UPDATE usage SET objects = 3, bytes = 40210;
";

/// The digests in those rows.
fn old_rows(path: &Path, version: usize) -> [crate::oci::Digest; 4] {
    let digests = ["m1", "l1", "l2", "alone"].map(digest);
    let rows = open_writer_with(path, &MIGRATIONS[..version]).unwrap();
    let mut sql = OF_VERSION_3.to_owned();
    for (number, digest) in (1..).zip(&digests) {
        let key: String = digest.to_key().iter().map(|byte| format!("{byte:02x}")).collect();
        sql = sql.replace(&format!("DIGEST{number}"), &format!("x'{key}'"));
    }
    rows.execute_batch(&sql).unwrap();
    digests
}

#[tokio::test]
async fn a_store_of_the_fifth_version_keeps_its_timelines_and_learns_of_its_clock() {
    let root = tempfile::tempdir().unwrap();
    let path = database(root.path());
    let digests = old_rows(&path, 5);
    let store = open(path.clone()).unwrap();
    let moves = store.timeline(&repository("a"), &tag("latest"), 9).await.unwrap();
    let moves: Vec<_> =
        moves.iter().map(|entry| (entry.digest, entry.since.as_millis(), entry.told)).collect();
    assert_eq!(moves, [(Some(digests[0]), 5, None)]);
    assert_eq!(store.clock_seen().await.unwrap(), None);
    let at = crate::clock::Timestamp::from_millis;
    for last in [7, 8] {
        store.note_clock(ClockSeen { since: at(5), last: at(last) }).await.unwrap();
    }
    store.close().await;
    let store = open(path).unwrap();
    assert_eq!(store.clock_seen().await.unwrap(), Some(ClockSeen { since: at(5), last: at(8) }));
    store.close().await;
    assert!(copy_of(root.path(), 5).exists());
}

#[tokio::test]
async fn a_store_of_the_third_version_keeps_all_and_learns_what_is_unused_and_whence_it_came() {
    let root = tempfile::tempdir().unwrap();
    let path = database(root.path());
    let digests = old_rows(&path, 3);
    let store = open(path).unwrap();
    let here = repository("a");
    let record = store.tag(&here, &tag("latest")).await.unwrap().unwrap();
    assert_eq!(record.digest, Some(digests[0]));
    assert_eq!(store.history(&here, &tag("latest"), None, 9).await.unwrap().len(), 1);
    assert_eq!(store.tree(&here, &digests[0], 9).await.unwrap().len(), 3);
    let far = crate::clock::Timestamp::from_millis(100);
    let idle = store.idle(far, None, 9).await.unwrap();
    let queue: Vec<_> = idle.iter().map(|idle| (idle.digest, idle.since.as_millis())).collect();
    assert_eq!(queue, [(digests[0], 11), (digests[1], 22), (digests[3], 44)]);
    let usage = store.usage_by_upstream().await.unwrap();
    let usage: Vec<_> = usage
        .iter()
        .map(|(name, usage)| (name.as_ref().map(|name| name.as_str()), usage.objects, usage.bytes))
        .collect();
    let expected = [(Some("docker.io"), 1, 10), (Some("ghcr.io"), 1, 200), (None, 1, 40_000)];
    assert_eq!(usage, expected);
    let revisions = store.revision_records(&here, None, 9).await.unwrap();
    assert!(revisions.len() == 1 && revisions[0].unlinked.is_none());
    assert!(store.rules().is_empty() && store.doomed(far, 9).await.unwrap().is_empty());
    // The sums are kept from here on.
    store.set_absent(&digests[1], false).await.unwrap();
    store.set_absent(&digests[3], false).await.unwrap();
    assert_eq!(store.usage_by_upstream().await.unwrap()[1].1, Usage::default());
    store.close().await;
    assert!(root.path().join("roadstead.db.v3.bak").exists());
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_older_store_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let broken = "CREATE TABLE half (id INTEGER); INSERT INTO nothing VALUES (1);";
    let error = open_writer_with(&path, &and(&[LATER, broken])).unwrap_err();
    assert!(matches!(error, OpenError::Failed { .. }), "{error}");
    let left = Connection::open(&path).unwrap();
    assert_eq!(value(&left, "PRAGMA user_version"), SCHEMA_VERSION + 1, "the first step stands");
    let half = "SELECT count(*) FROM sqlite_schema WHERE name = 'half'";
    assert_eq!(value(&left, half), 0);
    drop(left);
    // A later program goes on from there; the copy of the first attempt is not lost.
    let done = and(&[LATER, "CREATE TABLE done (id INTEGER);"]);
    open_writer_with(&path, &done).unwrap();
    assert!(copy_of(root.path(), SCHEMA_VERSION).exists());
    assert!(copy_of(root.path(), SCHEMA_VERSION + 1).exists());
}

#[tokio::test]
async fn a_newer_store_is_refused_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    drop(open_writer_with(&path, &and(&[LATER])).unwrap());
    let error = open(path).unwrap_err();
    assert!(
        matches!(error, OpenError::NewerSchema { found, supported: SCHEMA_VERSION, .. } if found > SCHEMA_VERSION),
        "{error}"
    );
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn a_database_of_another_program_is_refused_unchanged() {
    for id in [0, 0x1234] {
        let root = tempfile::tempdir().unwrap();
        let path = database(root.path());
        let other = Connection::open(&path).unwrap();
        let sql = format!("CREATE TABLE theirs (x); PRAGMA application_id = {id};");
        other.execute_batch(&sql).unwrap();
        drop(other);
        let before = fs::read(&path).unwrap();
        let error = open(path.clone()).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[tokio::test]
async fn a_damaged_database_is_moved_aside_and_a_new_one_begun() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let good = fs::read(&path).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let cases = [
        ("a byte", b"x".to_vec()),
        ("text", b"not a database at all".to_vec()),
        ("zeros", vec![0; good.len()]),
        ("header", changed(&|bytes| bytes[16..60].fill(0xAA))),
        ("schema", changed(&|bytes| bytes[100..4096].fill(0xAA))),
        ("schema zeroed", changed(&|bytes| bytes[100..4096].fill(0))),
        ("all pages but the first", changed(&|bytes| bytes[4096..].fill(0xAA))),
        ("cut", changed(&|bytes| bytes.truncate(good.len() / 2))),
        ("cut to a page", changed(&|bytes| bytes.truncate(4096))),
        ("cut in the header", changed(&|bytes| bytes.truncate(50))),
    ];
    for (number, (name, bytes)) in cases.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        let store = open(path.clone()).unwrap();
        let kept = store.lost().unwrap_or_else(|| panic!("{name}")).to_owned();
        assert_eq!(&fs::read(kept).unwrap(), bytes, "{name}");
        assert_eq!(store.usage().await.unwrap(), Usage::default(), "{name}");
        store.set_present(&digest("new"), 3).await.unwrap();
        store.close().await;
        let again = open(path.clone()).unwrap();
        assert_eq!((again.lost(), again.usage().await.unwrap().objects), (None, 1));
        again.close().await;
        let aside = fs::read_dir(root.path()).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().contains(".db.damaged-")
        });
        assert!(aside.count() > number);
    }
    fs::write(&path, &good).unwrap();
    let store = open(path).unwrap();
    assert!(store.lost().is_none() && store.usage().await.unwrap().objects == 1);
    store.close().await;
}

#[tokio::test]
async fn junk_in_the_log_costs_the_log_and_no_more() {
    for suffix in ["-wal", "-shm"] {
        let root = tempfile::tempdir().unwrap();
        filled(root.path()).await;
        let path = database(root.path());
        fs::write(root.path().join(format!("roadstead.db{suffix}")), [0xAA; 50_000]).unwrap();
        let store = open(path).unwrap();
        assert!(store.lost().is_none() && store.usage().await.unwrap().objects == 1);
        store.close().await;
    }
}

#[tokio::test]
async fn damage_under_a_running_store_is_an_error_and_the_next_start_begins_anew() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let store = open(path.clone()).unwrap();
    let length = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xAA; length - 4096], 4096).unwrap();
    for _again in 0..3 {
        let read = store.tag(&repository("a"), &tag("latest")).await;
        assert!(matches!(read, Err(Error::Failed(_))), "{read:?}");
    }
    assert!(store.set_present(&digest("new"), 3).await.is_err());
    store.close().await;
    // Closing our own descriptor would have dropped the locks of a store in use.
    drop(file);
    let store = open(path).unwrap();
    assert!(store.lost().is_some());
    store.close().await;
}

#[tokio::test]
async fn damage_deep_in_a_table_is_found_at_the_start_after_it_was_met() {
    let root = tempfile::tempdir().unwrap();
    let path = database(root.path());
    let store = open_at(root.path());
    for number in 0..500 {
        store.set_present(&digest(&format!("layer {number}")), 7).await.unwrap();
    }
    store.close().await;
    let rows = Connection::open(&path).unwrap();
    let leaf = value(
        &rows,
        "SELECT pageno FROM dbstat WHERE name = 'objects' AND pagetype = 'leaf' ORDER BY pageno LIMIT 1 OFFSET 2",
    );
    drop(rows);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xAA; 4096], (leaf.cast_unsigned() - 1) * 4096).unwrap();
    drop(file);

    // Nobody has met it yet, and a start reads next to nothing.
    let store = open(path.clone()).unwrap();
    assert!(store.lost().is_none());
    let mut failed = 0;
    for number in 0..500 {
        let found = store.object(&digest(&format!("layer {number}"))).await;
        failed += u32::from(found.is_err());
    }
    assert!(failed > 0);
    store.close().await;
    let careful = Settings { begin_anew: false, ..Settings::new(path.clone()) };
    let refused = Metadata::open(careful, Arc::new(SystemClock), &mut Registry::default());
    let refused = refused.unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
    assert_eq!(refused.to_string().lines().count(), 1, "{refused}");
    let store = open(path.clone()).unwrap();
    assert!(store.lost().is_some());
    store.close().await;
    let store = open(path).unwrap();
    assert!(store.lost().is_none());
    store.close().await;
    assert!(!root.path().join("roadstead.db.suspect").exists());
}

#[tokio::test]
async fn a_table_that_is_gone_is_damage() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let rows = Connection::open(&path).unwrap();
    rows.execute_batch("DROP TABLE referrers; DELETE FROM usage").unwrap();
    drop(rows);
    let store = open(path).unwrap();
    assert!(store.lost().is_some());
    store.close().await;
}

#[tokio::test]
async fn an_empty_file_is_a_start_that_was_cut_short() {
    let root = tempfile::tempdir().unwrap();
    let path = database(root.path());
    fs::write(&path, b"").unwrap();
    filled(root.path()).await;
    open(path).unwrap().close().await;
}

#[test]
fn a_file_that_is_no_file_is_an_error_of_the_system() {
    let root = tempfile::tempdir().unwrap();
    let path = database(root.path());
    fs::create_dir(&path).unwrap();
    let error = open(path).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}
