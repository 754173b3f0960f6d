//! The answers of the admin API as people read them: pure functions from plain data to text.

use std::fmt::Write as _;

use super::request::RuleKind;
use super::table::{Side, Table};
use super::words::{age, clean, count, moment, moment_and_age, short, size};
use crate::app::{
    Deletion, EndpointInfo, Explanation, HistoryEntry, Hold, Inspection, Part, PlatformInfo,
    Refreshed, RuleInfo, TagInfo, UpstreamUsage, UsageInfo,
};
use crate::clock::Timestamp;

/// In place of a digest where upstream has nothing.
const ABSENT: &str = "absent upstream";
/// In place of what there is none of.
const NONE: &str = "-";

pub(super) fn tag_table() -> Table {
    Table::new(&[
        ("IMAGE", Side::Left),
        ("DIGEST", Side::Left),
        ("SINCE", Side::Left),
        ("CHECKED", Side::Left),
        ("USED", Side::Left),
        ("NOTES", Side::Left),
    ])
}

pub(super) fn tag_row(tag: &TagInfo, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend((tag.digest.is_some() && !tag.present).then_some("not here"));
    notes.extend(tag.pinned.then_some("pinned"));
    notes.extend(tag.frozen.then_some("frozen"));
    vec![
        tag.image.clone(),
        tag.digest.as_deref().map_or(ABSENT, short).to_owned(),
        moment_and_age(tag.moved, now),
        age(tag.confirmed, now),
        tag.used.map_or_else(|| NONE.to_owned(), |used| age(used, now)),
        notes.join(", "),
    ]
}

pub(super) fn history_table() -> Table {
    Table::new(&[
        ("SINCE", Side::Left),
        ("UNTIL", Side::Left),
        ("DIGEST", Side::Left),
        ("SAID BY", Side::Left),
        ("NOTES", Side::Left),
    ])
}

pub(super) fn history_row(entry: &HistoryEntry, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(entry.served.then_some("served now"));
    notes.extend((entry.digest.is_some() && !entry.present).then_some("not here"));
    vec![
        moment_and_age(entry.since, now),
        entry.until.map_or_else(|| "now".to_owned(), moment),
        entry.digest.as_deref().unwrap_or(ABSENT).to_owned(),
        entry.source.clone(),
        notes.join(", "),
    ]
}

/// Lines of `name: value`.
struct Facts(String);

impl Facts {
    fn new() -> Self {
        Self(String::new())
    }

    fn fact(&mut self, name: &str, value: &str) {
        let name = format!("{name}:");
        self.line(&format!("{name:<12} {}", clean(value)));
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(clean(line).trim_end());
        self.0.push('\n');
    }

    /// A table after an empty line; none if it has no rows.
    fn table(&mut self, columns: &[(&'static str, Side)], rows: &[Vec<String>]) {
        if !rows.is_empty() {
            self.0.push('\n');
            self.0.push_str(&Table::new(columns).page(rows));
        }
    }

    fn holds(&mut self, holds: &[Hold]) {
        let rows: Vec<_> = holds
            .iter()
            .map(|Hold { by, what }| vec![by.replace('_', " "), what.clone()])
            .collect();
        self.table(&[("KEPT BY", Side::Left), ("WHAT", Side::Left)], &rows);
    }
}

pub(super) fn inspection(inspection: &Inspection) -> String {
    let Inspection { image, digest, media_type, tags, bytes_present, bytes_known, .. } = inspection;
    let mut facts = Facts::new();
    facts.fact("image", image);
    facts.fact("digest", digest);
    facts.fact("type", media_type);
    facts.fact("tags", &if tags.is_empty() { NONE.to_owned() } else { tags.join(", ") });
    let more = if inspection.truncated { "; there is more than was looked at" } else { "" };
    let here = if inspection.complete { "all of it" } else { "not all of it" };
    let (present, known) = (size(*bytes_present), size(*bytes_known));
    facts.fact("here", &format!("{here}, {present} of {known} known{more}"));
    let platforms = inspection.platforms.iter().map(|platform: &PlatformInfo| {
        let here = if platform.complete { "complete" } else { "incomplete" };
        let bytes = size(platform.bytes_present);
        vec![platform.platform.clone(), platform.digest.clone(), bytes, here.to_owned()]
    });
    let platforms: Vec<_> = platforms.collect();
    let columns = [
        ("PLATFORM", Side::Left),
        ("MANIFEST", Side::Left),
        ("HERE", Side::Right),
        ("STATE", Side::Left),
    ];
    facts.table(&columns, &platforms);
    let content: Vec<_> = inspection.content.iter().map(part_row).collect();
    let columns = [
        ("CONTENT", Side::Left),
        ("DIGEST", Side::Left),
        ("SIZE", Side::Right),
        ("STATE", Side::Left),
        ("PLATFORM", Side::Left),
    ];
    facts.table(&columns, &content);
    facts.holds(&inspection.holds);
    facts.0
}

fn part_row(part: &Part) -> Vec<String> {
    vec![
        part.role.clone(),
        part.digest.clone(),
        part.size.map_or_else(|| NONE.to_owned(), size),
        part.state.clone(),
        part.platform.clone().unwrap_or_default(),
    ]
}

pub(super) fn explanation(explanation: &Explanation, now: Timestamp) -> String {
    let mut facts = Facts::new();
    facts.fact("image", &explanation.image);
    facts.fact("verdict", &explanation.verdict);
    for sentence in &explanation.sentences {
        facts.line(&format!("{:<12} {sentence}", ""));
    }
    let offline = if explanation.offline { " (offline: it is not asked)" } else { "" };
    facts.fact("upstream", &format!("{}{offline}", explanation.upstream));
    if let Some(rule) = &explanation.rule {
        facts.fact("rule", rule);
    }
    if let Some(until) = explanation.fresh_until {
        let word = if until > now { "fresh until" } else { "stale since" };
        facts.fact(word, &moment_and_age(until, now));
    }
    facts.fact("digest", explanation.digest.as_deref().unwrap_or(NONE));
    let missing = match explanation.missing {
        0 => "nothing known is missing".to_owned(),
        missing => format!("{} missing", count(missing, "object")),
    };
    facts.fact("here", &format!("{}; {missing}", size(explanation.bytes_present)));
    let endpoints: Vec<_> = explanation
        .endpoints
        .iter()
        .map(|EndpointInfo { url, role, in_use }| {
            let state = if *in_use { "" } else { "left alone after failures" };
            vec![url.clone(), role.clone(), state.to_owned()]
        })
        .collect();
    facts.table(
        &[("ASKED IN ORDER", Side::Left), ("ROLE", Side::Left), ("NOTES", Side::Left)],
        &endpoints,
    );
    facts.holds(&explanation.holds);
    facts.0
}

pub(super) fn rule(kind: RuleKind, rule: &RuleInfo, now: Timestamp) -> String {
    let RuleInfo { id, scope, until, .. } = rule;
    let (noun, done) = kind.words();
    let until = until.map_or_else(
        || format!("until `roadstead un{noun} {id}`"),
        |until| format!("until {}", moment_and_age(until, now)),
    );
    format!("{done} {} {until}\n", clean(scope))
}

pub(super) fn rules(rules: &[RuleInfo], now: Timestamp) -> String {
    let row = |rule: &RuleInfo| {
        let until = rule.until.map(|until| match until > now {
            true => moment_and_age(until, now),
            false => format!("over since {}", moment(until)),
        });
        vec![
            rule.id.to_string(),
            rule.scope.clone(),
            moment_and_age(rule.since, now),
            until.unwrap_or_else(|| NONE.to_owned()),
            rule.reason.clone(),
        ]
    };
    let columns = [
        ("ID", Side::Right),
        ("SCOPE", Side::Left),
        ("SINCE", Side::Left),
        ("UNTIL", Side::Left),
        ("REASON", Side::Left),
    ];
    Table::new(&columns).page(&rules.iter().map(row).collect::<Vec<_>>())
}

pub(super) fn deletion(deletion: &Deletion, now: Timestamp) -> String {
    let Deletion { tags, revisions, removed, incomplete, collected_after } = deletion;
    let mut facts = Facts::new();
    for (what, names) in [
        ("tag gone", tags),
        ("revision gone", revisions),
        ("bytes gone", removed),
        ("incomplete now", incomplete),
    ] {
        for name in names {
            facts.line(&format!("{what}: {name}"));
        }
    }
    if facts.0.is_empty() {
        facts.line("nothing was there to take out");
    }
    if let Some(after) = collected_after {
        let after = moment_and_age(*after, now);
        facts.line(&format!("the content goes after {after}, unless something holds it"));
    }
    if !incomplete.is_empty() {
        facts.line(
            "what is incomplete fetches what it lacks with the next pull that reaches upstream",
        );
    }
    facts.0
}

pub(super) fn refreshed(refreshed: &Refreshed) -> String {
    let Refreshed { image, before, now, outcome, detail } = refreshed;
    let digest = |digest: &Option<String>| digest.as_deref().unwrap_or(NONE).to_owned();
    let (before, now) = (digest(before), digest(now));
    let mut text = match outcome.as_str() {
        "confirmed" => format!("{image} is what it was: {now}"),
        "moved" if refreshed.before.is_none() => format!("{image} is back upstream: {now}"),
        "moved" => format!("{image} moved: {before} -> {now}"),
        "first_seen" => format!("{image} is {now}, seen for the first time"),
        "absent" => format!("{image} is absent upstream (it was {before})"),
        "denied" => format!("{image}: upstream denies it"),
        "unreachable" => format!("{image}: upstream cannot be asked; it stays {now}"),
        other => format!("{image}: {other}, {now}"),
    };
    if let Some(detail) = detail {
        text = format!("{text} ({detail})");
    }
    format!("{}\n", clean(&text))
}

pub(super) fn usage(usage: &UsageInfo) -> String {
    let row = |upstream: &UpstreamUsage| {
        vec![
            upstream.upstream.clone().unwrap_or_else(|| "(unknown)".to_owned()),
            upstream.objects.to_string(),
            size(upstream.bytes),
            upstream.max_bytes.map_or_else(|| NONE.to_owned(), size),
        ]
    };
    let mut rows: Vec<_> = usage.upstreams.iter().map(row).collect();
    rows.push(vec![
        "total".to_owned(),
        usage.objects.to_string(),
        size(usage.bytes),
        usage.max_bytes.map_or_else(|| NONE.to_owned(), size),
    ]);
    let columns = [
        ("REGISTRY", Side::Left),
        ("OBJECTS", Side::Right),
        ("SIZE", Side::Right),
        ("LIMIT", Side::Right),
    ];
    let mut text = Table::new(&columns).page(&rows);
    let (free, wanted) = (size(usage.free_bytes), size(usage.min_free_bytes));
    let short = if usage.free_bytes < usage.min_free_bytes { ": too little" } else { "" };
    writeln!(text, "\nfree on the disk: {free}, wanted at least {wanted}{short}")
        .expect("a string takes everything");
    if usage.doomed > 0 {
        let doomed = count(usage.doomed, "object");
        writeln!(text, "waiting for their end: {doomed} (`roadstead gc --dry-run` tells which)")
            .expect("a string takes everything");
    }
    text
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
