//! Rows of the operator's rules. What does not parse any more (a scope of a newer version) is left out of the image and said in the log.

use rusqlite::{Connection, Row, params};

use super::operation::Failure;
use super::query::{self, Result};
use super::rules::{RULES_MAX, Rule, RuleKind, Rules, Switch, Switches};
use crate::clock::Timestamp;
use crate::oci::{HostFamily, RegistryName, Scope};

const KIND_PIN: i64 = 0;
const KIND_FREEZE: i64 = 1;
/// Stands for all upstreams among those that are switched off.
const ALL: &str = "";

/// All that is in force, as it is in memory.
pub(super) fn image(rows: &Connection, epoch: u64) -> Result<Rules> {
    Ok(Rules::new(all(rows)?, epoch).with_switches(switches(rows)?))
}

/// All of them, by id.
fn all(rows: &Connection) -> Result<Vec<Rule>> {
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

fn switches(rows: &Connection) -> Result<Switches> {
    let mut statement = rows.prepare_cached("SELECT upstream FROM switches ORDER BY upstream")?;
    let found = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>>>()?;
    let (mut all, mut upstreams, mut families) = (false, Vec::new(), Vec::new());
    for name in found {
        // No name of a registry has a star, and no family is without one.
        if name == ALL {
            all = true;
        } else if let Ok(family) = name.parse::<HostFamily>() {
            families.push(family);
        } else {
            match name.parse::<RegistryName>() {
                Ok(name) => upstreams.push(name),
                Err(error) => {
                    tracing::error!(name, %error, "a switch that cannot be read is passed over");
                }
            }
        }
    }
    Ok(Switches { all, upstreams: upstreams.into(), families: families.into() })
}

/// Switches upstreams off or on. All of them on is each of them on; a family on leaves what is off by its own name.
pub(super) fn switch(
    rows: &Connection,
    what: &Switch,
    offline: bool,
    at: Timestamp,
) -> std::result::Result<(), Failure> {
    let name = match what {
        Switch::All => ALL,
        Switch::Upstream(name) => name.as_str(),
        Switch::Family(family) => family.as_str(),
    };
    match (offline, what) {
        (true, _) => {
            let count: i64 = rows
                .prepare_cached("SELECT count(*) FROM switches")?
                .query_row([], |row| row.get(0))?;
            if usize::try_from(count).is_ok_and(|count| count >= RULES_MAX) {
                return Err(Failure::Rejected("too many upstreams are switched off"));
            }
            rows.prepare_cached(
                "INSERT INTO switches (upstream, since) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?
            .execute(params![name, at.as_millis()])?;
        }
        (false, Switch::Upstream(_) | Switch::Family(_)) => {
            rows.prepare_cached("DELETE FROM switches WHERE upstream = ?1")?.execute([name])?;
        }
        (false, Switch::All) => {
            rows.prepare_cached("DELETE FROM switches")?.execute([])?;
        }
    }
    Ok(())
}
