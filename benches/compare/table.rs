//! The figures: samples by row and column, their medians, and the table as text, markdown and JSON.
//!
//! What must hold: nothing is left out in silence. A figure that could not be taken is a hole with a reason, and a run with holes fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::targets::{self, Verdict};

/// What a row is about, and in which unit.
pub(crate) type Key = (&'static str, &'static str);

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<String>,
    rows: Vec<Row>,
    failures: Vec<String>,
}

/// A line of the table.
#[derive(Debug)]
struct Row {
    key: Key,
    cells: BTreeMap<String, Vec<f64>>,
}

impl Table {
    pub(crate) fn new(columns: Vec<String>) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Adds a sample.
    pub(crate) fn add(&mut self, key: Key, column: &str, value: f64) {
        self.cell(key, column).push(value);
    }

    /// Notes that this cell is expected, so that it is a hole until a sample comes.
    pub(crate) fn cell(&mut self, key: Key, column: &str) -> &mut Vec<f64> {
        let at = self.rows.iter().position(|row| row.key == key).unwrap_or_else(|| {
            self.rows.push(Row { key, cells: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[at].cells.entry(column.to_owned()).or_default()
    }

    /// Notes why figures are missing.
    pub(crate) fn fail(&mut self, what: String) {
        eprint(&format!("failed: {what}"));
        self.failures.push(what);
    }

    /// The samples of a cell; none if there are none.
    pub(crate) fn samples(&self, key: Key, column: &str) -> &[f64] {
        let row = self.rows.iter().find(|row| row.key == key);
        row.and_then(|row| row.cells.get(column)).map_or(&[], Vec::as_slice)
    }

    /// What is wrong with the run: failures, empty cells, figures that cannot be.
    pub(crate) fn holes(&self) -> Vec<String> {
        let mut found = self.failures.clone();
        for row in &self.rows {
            for (column, samples) in &row.cells {
                let (measure, unit) = row.key;
                if samples.is_empty() {
                    found.push(format!("{measure}, {unit}: nothing of {column}"));
                }
                for sample in samples.iter().filter(|sample| !sample.is_finite() || **sample < 0.0)
                {
                    found.push(format!("{measure}, {unit}: {column} is {sample}"));
                }
            }
        }
        found
    }

    /// What must hold in every run, however small, and does not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let exact = targets::ALL.iter().filter(|target| target.exact);
        exact
            .filter_map(|target| match target.judge(self)? {
                Verdict { met: true, .. } => None,
                verdict => Some(format!("{}, {}: {}", target.key.0, target.key.1, verdict.words)),
            })
            .collect()
    }

    /// The columns in which there is something, in their order.
    fn used_columns(&self) -> Vec<&String> {
        let used = |column: &&String| self.rows.iter().any(|row| row.cells.contains_key(*column));
        self.columns.iter().filter(used).collect()
    }

    /// Head and lines of the table, all cells as text.
    fn cells(&self) -> Vec<Vec<String>> {
        let columns = self.used_columns();
        let mut head = vec!["measure".to_owned(), "unit".to_owned()];
        head.extend(columns.iter().map(|column| (*column).clone()));
        head.extend(["target for roadstead".to_owned(), "met".to_owned()]);
        let mut lines = vec![head];
        for row in &self.rows {
            let mut line = vec![row.key.0.to_owned(), row.key.1.to_owned()];
            for column in &columns {
                let samples = row.cells.get(*column);
                line.push(match samples {
                    Some(samples) if samples.is_empty() => "?".to_owned(),
                    Some(samples) => figure(median(samples)),
                    None => String::new(),
                });
            }
            let targets = targets::ALL.iter().filter(|target| target.key == row.key);
            let judged: Vec<_> =
                targets.filter_map(|target| Some((target.words(), target.judge(self)?))).collect();
            line.push(
                judged.iter().map(|(words, _)| words.as_str()).collect::<Vec<_>>().join("; "),
            );
            let verdicts = judged.iter().map(|(_, verdict)| {
                format!("{} ({})", if verdict.met { "yes" } else { "no" }, verdict.words)
            });
            line.push(verdicts.collect::<Vec<_>>().join("; "));
            lines.push(line);
        }
        lines
    }

    /// The table with its columns under each other.
    pub(crate) fn text(&self) -> String {
        let lines = self.cells();
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        let mut text = String::new();
        let figures = 2..widths.len() - 2;
        for line in &lines {
            for (column, cell) in line.iter().enumerate() {
                let width = widths[column];
                if figures.contains(&column) {
                    write!(text, "{cell:>width$}  ").ok();
                } else {
                    write!(text, "{cell:<width$}  ").ok();
                }
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    /// The table as it stands in the documentation.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, line) in self.cells().iter().enumerate() {
            writeln!(text, "| {} |", line.join(" | ")).ok();
            if number == 0 {
                let figures = line.len() - 4;
                writeln!(text, "|---|---|{}---|---|", "--:|".repeat(figures)).ok();
            }
        }
        text
    }

    /// Everything with every sample.
    pub(crate) fn json(&self, head: &[String]) -> serde_json::Value {
        let rows = self.rows.iter().map(|row| {
            let medians: BTreeMap<&String, f64> =
                row.cells.iter().map(|(column, samples)| (column, median(samples))).collect();
            serde_json::json!({
                "measure": row.key.0, "unit": row.key.1, "medians": medians, "samples": row.cells,
            })
        });
        let targets = targets::ALL.iter().filter_map(|target| {
            let verdict = target.judge(self)?;
            Some(serde_json::json!({
                "measure": target.key.0, "unit": target.key.1, "target": target.words(),
                "value": verdict.value, "met": verdict.met,
            }))
        });
        serde_json::json!({
            "head": head,
            "rows": rows.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}

/// The middle of the samples, or the mean of the two in the middle; not a number if there are none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// Three digits, or all before the point.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A line for whoever waits.
#[expect(clippy::print_stderr, reason = "progress goes beside the table, which is on stdout")]
pub(crate) fn eprint(text: &str) {
    eprintln!("{text}");
}
