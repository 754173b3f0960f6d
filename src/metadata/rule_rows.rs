//! Rows of the operator's rules. What does not parse any more (a scope of a newer version) is left out of the image and said in the log.

use rusqlite::{Connection, Row, params};

use super::operation::Failure;
use super::query::{self, Result};
use super::rules::{RULES_MAX, Rule, RuleKind};
use crate::clock::Timestamp;
use crate::oci::Scope;

const KIND_PIN: i64 = 0;
const KIND_FREEZE: i64 = 1;

/// All of them, by id.
pub(super) fn all(rows: &Connection) -> Result<Vec<Rule>> {
    let mut statement =
        rows.prepare_cached("SELECT id, kind, scope, since, until, reason FROM rules ORDER BY id")?;
    let found = statement.query_map([], read)?.collect::<Result<Vec<_>>>()?;
    Ok(found.into_iter().flatten().collect())
}

fn read(row: &Row<'_>) -> Result<Option<Rule>> {
    let id = row.get(0)?;
    let kind = match row.get(1)? {
        KIND_PIN => RuleKind::Pin,
        KIND_FREEZE => RuleKind::Freeze,
        other => {
            tracing::error!(id, kind = other, "a rule of unknown kind is passed over");
            return Ok(None);
        }
    };
    let text: String = row.get(2)?;
    let scope: Scope = match text.parse() {
        Ok(scope) => scope,
        Err(error) => {
            tracing::error!(id, %error, "a rule that cannot be read is passed over");
            return Ok(None);
        }
    };
    Ok(Some(Rule {
        id,
        kind,
        scope,
        since: query::timestamp(row, 3)?,
        until: row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis),
        reason: row.get(5)?,
    }))
}

pub(super) fn add(
    rows: &Connection,
    kind: RuleKind,
    scope: &Scope,
    (since, until): (Timestamp, Option<Timestamp>),
    reason: &str,
) -> std::result::Result<Rule, Failure> {
    let count: i64 =
        rows.prepare_cached("SELECT count(*) FROM rules")?.query_row([], |row| row.get(0))?;
    if usize::try_from(count).is_ok_and(|count| count >= RULES_MAX) {
        return Err(Failure::Rejected("there are too many rules"));
    }
    let number = match kind {
        RuleKind::Pin => KIND_PIN,
        RuleKind::Freeze => KIND_FREEZE,
    };
    let id = rows
        .prepare_cached(
            "INSERT INTO rules (kind, scope, since, until, reason) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .insert(params![
            number,
            scope.as_str(),
            since.as_millis(),
            until.map(Timestamp::as_millis),
            reason
        ])?;
    Ok(Rule { id, kind, scope: scope.clone(), since, until, reason: reason.to_owned() })
}

pub(super) fn remove(rows: &Connection, id: i64) -> Result<bool> {
    let removed = rows.prepare_cached("DELETE FROM rules WHERE id = ?1")?.execute([id])?;
    Ok(removed > 0)
}
