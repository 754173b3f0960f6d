//! The store that is made for benches is one that the program could have made.

use std::path::Path;

use rusqlite::Connection;

use super::connection::open_reader;
use super::populate::{BASES, Plan, populate};
use crate::clock::Timestamp;

fn plan() -> Plan {
    Plan {
        repositories: 7,
        images: 130,
        ..Plan::new(
            "docker.io".parse().unwrap(),
            Timestamp::from_millis(1_800_000_000_000),
            501,
            60,
        )
    }
}

fn made(path: &Path) -> Connection {
    populate(path, &plan(), &mut |_| Ok(None)).unwrap();
    open_reader(path).unwrap()
}

fn value(rows: &Connection, sql: &str) -> i64 {
    rows.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn its_rows_fit_together() {
    let root = tempfile::tempdir().unwrap();
    let rows = made(&root.path().join("roadstead.db"));
    let text = |sql: &str| rows.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    assert_eq!(text("PRAGMA journal_mode"), "wal");
    assert_eq!(value(&rows, "SELECT count(*) FROM pragma_foreign_key_check"), 0);
    let objects = i64::from(BASES) + 501 + 130;
    assert_eq!(value(&rows, "SELECT objects FROM usage"), objects);
    assert_eq!(value(&rows, "SELECT count(*) FROM objects WHERE state = 1"), objects);
    assert_eq!(
        value(&rows, "SELECT (SELECT bytes FROM usage) - (SELECT sum(size) FROM objects)"),
        0
    );
    assert_eq!(value(&rows, "SELECT count(*) FROM tags"), 60);
    assert_eq!(value(&rows, "SELECT count(*) FROM revisions"), 130);
    assert_eq!(value(&rows, "SELECT count(*) FROM timeline"), 130);
    assert_eq!(value(&rows, "SELECT count(*) FROM timeline WHERE until IS NULL"), 60);
    let current = "SELECT count(*) FROM tags t JOIN timeline l ON l.repository = t.repository \
                   AND l.tag = t.name AND l.until IS NULL AND l.object = t.object";
    assert_eq!(value(&rows, current), 60);
    assert_eq!(value(&rows, "SELECT count(*) FROM edges"), 501 + 130);
    let unproved = "SELECT count(*) FROM edges e JOIN revisions r ON r.object = e.parent \
                    LEFT JOIN membership m ON m.object = e.child AND m.repository = r.repository \
                    WHERE m.object IS NULL";
    assert_eq!(value(&rows, unproved), 0);
}

#[test]
fn it_follows_from_the_plan_and_keeps_every_index() {
    let root = tempfile::tempdir().unwrap();
    let dump = |rows: &Connection| {
        let sql = "SELECT hex(digest), accessed FROM objects ORDER BY digest";
        let mut rows = rows.prepare(sql).unwrap();
        let pairs = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        pairs.collect::<Result<Vec<(String, i64)>, _>>().unwrap()
    };
    let (one, two) = (made(&root.path().join("one.db")), made(&root.path().join("two.db")));
    assert_eq!(dump(&one), dump(&two));
    let empty = super::connection::open_writer(&root.path().join("empty.db")).unwrap();
    let schema = "SELECT group_concat(sql, ';') FROM (SELECT sql FROM sqlite_schema ORDER BY name)";
    let text = |rows: &Connection| rows.query_row(schema, [], |row| row.get::<_, String>(0));
    assert_eq!(text(&one).unwrap(), text(&empty).unwrap());
    // What holds something is not written over.
    assert!(populate(&root.path().join("one.db"), &plan(), &mut |_| Ok(None)).is_err());
}
