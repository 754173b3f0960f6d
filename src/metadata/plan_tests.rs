//! No statement on a request's path reads a table from end to end, or is planned more than once.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, StatementStatus};

use super::connection::{open_reader, open_writer};

/// The statements of reads and writes stand in these files, each as the literal behind `prepare_cached(`.
const SOURCES: [&str; 14] = [
    include_str!("holders.rs"),
    include_str!("idle.rs"),
    include_str!("import.rs"),
    include_str!("listing.rs"),
    include_str!("operation.rs"),
    include_str!("presence.rs"),
    include_str!("purge.rs"),
    include_str!("query.rs"),
    include_str!("removal.rs"),
    include_str!("revision.rs"),
    include_str!("rule_rows.rs"),
    include_str!("set_rows.rs"),
    include_str!("timeline.rs"),
    include_str!("wanted_rows.rs"),
];
/// Fewer than this means that they are not found any more.
const STATEMENTS_MIN: usize = 140;
/// Steps of plans that read everything, and why they may.
const MAY_READ_ALL: [(&str, &str); 9] = [
    ("SCAN usage", "it has one row"),
    ("SCAN CONSTANT ROW", "it is no table"),
    ("SCAN origins USING INDEX sqlite_autoindex_origins_1", "it has a row for each upstream"),
    ("SCAN rules", "there are few, and all of them are wanted"),
    ("SCAN rules USING COVERING INDEX", "there are few"),
    ("SCAN switches", "there are few, and all of them are wanted"),
    ("SCAN sets USING INDEX sqlite_autoindex_sets_1", "all of them are wanted"),
    ("SCAN sets USING COVERING INDEX sqlite_autoindex_sets_1", "there are few"),
    ("SCAN sets", "there are few, and it is asked for when one was removed or the store opens"),
];
/// Steps that sort or gather, and why they may.
const MAY_GATHER: [(&str, &str); 1] =
    [("USE TEMP B-TREE FOR count(DISTINCT)", "of the children of one manifest")];

/// The literal at the beginning of `text`, as the compiler would read it.
fn literal(text: &str) -> Option<String> {
    let mut characters = text.trim_start().strip_prefix('"')?.chars();
    let mut found = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(found),
            '\\' => match characters.next()? {
                '\n' => {
                    let rest = characters.as_str().trim_start();
                    characters = rest.chars();
                }
                other => found.push(other),
            },
            other => found.push(other),
        }
    }
}

fn statements() -> Vec<String> {
    let found: Vec<String> = SOURCES
        .iter()
        .flat_map(|source| source.split("prepare_cached(").skip(1))
        .map(|rest| literal(rest).expect("a statement is a literal"))
        .collect();
    assert!(found.len() >= STATEMENTS_MIN, "only {} statements are found", found.len());
    found
}

fn plan(rows: &Connection, sql: &str) -> Vec<String> {
    let mut statement = rows.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    for parameter in 1..=statement.parameter_count() {
        statement.raw_bind_parameter(parameter, 1).unwrap();
    }
    let mut steps = statement.raw_query();
    let mut found = Vec::new();
    while let Some(step) = steps.next().unwrap() {
        found.push(step.get::<_, String>(3).unwrap());
    }
    found
}

fn reads_all(step: &str) -> bool {
    let may = |list: &[(&str, &str)]| list.iter().any(|(known, _why)| step == *known);
    (step.starts_with("SCAN") && !may(&MAY_READ_ALL))
        || (step.starts_with("USE TEMP") && !may(&MAY_GATHER))
}

fn opened(root: &Path) -> Connection {
    open_writer(&root.join("roadstead.db")).unwrap()
}

#[test]
fn no_statement_reads_a_whole_table_or_sorts() {
    let root = tempfile::tempdir().unwrap();
    let rows = opened(root.path());
    let mut findings = Vec::new();
    for sql in statements() {
        let steps = plan(&rows, &sql);
        findings.extend(
            steps.iter().filter(|step| reads_all(step)).map(|step| format!("{step}: {sql}")),
        );
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn the_look_at_plans_finds_what_it_looks_for() {
    let root = tempfile::tempdir().unwrap();
    let rows = opened(root.path());
    for sql in [
        "SELECT count(*) FROM objects WHERE size = ?1",
        "SELECT name FROM tags WHERE name > ?1 ORDER BY name LIMIT 10",
        "SELECT digest FROM objects WHERE digest > ?1 ORDER BY created LIMIT 10",
    ] {
        assert!(plan(&rows, sql).iter().any(|step| reads_all(step)), "{sql}");
    }
    assert_eq!(literal("\n  \"a \\\n   b\", x").as_deref(), Some("a b"));
}

/// How often the statement is planned again when its parameters change.
fn replans(rows: &Connection, sql: &str) -> i32 {
    let mut statement = rows.prepare(sql).unwrap();
    for value in ["a", "b", "c"] {
        for parameter in 1..=statement.parameter_count() {
            statement.raw_bind_parameter(parameter, value).unwrap();
        }
        // Whatever such parameters come to, the statement has been planned for them.
        drop(statement.raw_query().next());
    }
    statement.get_status(StatementStatus::RePrepare)
}

#[test]
fn no_statement_is_planned_again_for_another_value() {
    let root = tempfile::tempdir().unwrap();
    drop(opened(root.path()));
    let rows = open_reader(&root.path().join("roadstead.db")).unwrap();
    let selects: Vec<_> =
        statements().into_iter().filter(|sql| sql.starts_with("SELECT")).collect();
    for sql in &selects {
        assert_eq!(replans(&rows, sql), 0, "{sql}");
    }
    // It is the setting of the connection that sees to it.
    rows.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, false).unwrap();
    assert!(selects.iter().any(|sql| replans(&rows, sql) > 0));
}
