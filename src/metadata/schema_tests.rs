//! Opening what others left: older and newer schemas, foreign databases, junk.

use std::fs;
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

fn database(root: &Path) -> PathBuf {
    root.join("roadstead.db")
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
    let steps = [MIGRATIONS[0], LATER];
    for _again in 0..2 {
        let migrated = open_writer_with(&path, &steps).unwrap();
        assert_eq!(value(&migrated, "PRAGMA user_version"), 2);
        assert_eq!(value(&migrated, "SELECT min(pins) FROM objects"), 7);
        assert_eq!(value(&migrated, "SELECT count(*) FROM tags"), 1);
    }
    let copy = root.path().join("roadstead.db.v1.bak");
    assert!(!root.path().join("roadstead.db.v1.bak.partial").exists());
    // The copy is a whole store of the old version: put back, it works with the old program.
    fs::rename(&copy, &path).unwrap();
    let store = open_at(root.path());
    let record = store.tag(&repository("a"), &tag("latest")).await.unwrap();
    assert_eq!(record.unwrap().digest, Some(digest("m1")));
    store.close().await;
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_older_store_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let broken = "CREATE TABLE half (id INTEGER); INSERT INTO nothing VALUES (1);";
    let error = open_writer_with(&path, &[MIGRATIONS[0], LATER, broken]).unwrap_err();
    assert!(matches!(error, OpenError::Failed { .. }), "{error}");
    let left = Connection::open(&path).unwrap();
    assert_eq!(value(&left, "PRAGMA user_version"), 2, "the first step stands");
    let half = "SELECT count(*) FROM sqlite_schema WHERE name = 'half'";
    assert_eq!(value(&left, half), 0);
    drop(left);
    // A later program goes on from there; the copy of the first attempt is not lost.
    open_writer_with(&path, &[MIGRATIONS[0], LATER, "CREATE TABLE done (id INTEGER);"]).unwrap();
    assert!(root.path().join("roadstead.db.v1.bak").exists());
    assert!(root.path().join("roadstead.db.v2.bak").exists());
}

#[tokio::test]
async fn a_newer_store_is_refused_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    drop(open_writer_with(&path, &[MIGRATIONS[0], LATER]).unwrap());
    let error = open(path).unwrap_err();
    assert!(matches!(error, OpenError::NewerSchema { found: 2, supported: 1, .. }), "{error}");
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
async fn junk_is_refused_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    filled(root.path()).await;
    let path = database(root.path());
    let good = fs::read(&path).unwrap();
    let mut bad_header = good.clone();
    bad_header[16..100].fill(0xAA);
    let mut bad_schema = good.clone();
    bad_schema[100..4096].fill(0xAA);
    let cases: [&[u8]; 4] = [b"x", b"not a database at all", &bad_header, &bad_schema];
    for case in cases {
        fs::write(&path, case).unwrap();
        let error = open(path.clone()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
    fs::write(&path, &good).unwrap();
    open(path).unwrap().close().await;
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
