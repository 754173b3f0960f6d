//! The targets of `docs/performance.md`, each with its row, and whether a run meets it.
//!
//! Against another server the ratio of each round counts, and of these the median: what disturbs one round disturbs both.

use crate::figures as f;
use crate::peers::{DIRECT, NGINX, REGISTRY, REGISTRY_CACHE, ROADSTEAD};
use crate::table::{Key, Table, figure, median};

/// What roadstead's figure may be at most.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// So much.
    Value(f64),
    /// So many times that of another column.
    Times(&'static str, f64),
    /// So much more than that of another column.
    Above(&'static str, f64),
    /// So many times that of another row.
    Row(Key, f64),
}

/// A bound on a row of roadstead's column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) key: Key,
    pub(crate) bound: Bound,
    /// It is no matter of speed and holds in every run.
    pub(crate) exact: bool,
}

/// How a run stands to a target.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) met: bool,
    pub(crate) value: f64,
    pub(crate) words: String,
}

const fn speed(key: Key, bound: Bound) -> Target {
    Target { key, bound, exact: false }
}

const fn exact(key: Key, bound: f64) -> Target {
    Target { key, bound: Bound::Value(bound), exact: true }
}

/// All targets.
pub(crate) const ALL: [Target; 24] = [
    speed(f::GET_TAG.cpu, Bound::Times(NGINX, 1.0)),
    speed(f::HEAD_TAG.cpu, Bound::Times(NGINX, 1.0)),
    speed(f::GET_DIGEST.cpu, Bound::Times(NGINX, 1.0)),
    speed(f::HEAD_DIGEST.cpu, Bound::Times(NGINX, 1.0)),
    speed(f::BLOB_1.cpu, Bound::Times(NGINX, 0.85)),
    speed(f::BLOB_1.cpu, Bound::Times(REGISTRY, 0.4)),
    speed(f::BLOB_8.cpu, Bound::Times(NGINX, 0.85)),
    speed(f::BLOB_8.cpu, Bound::Times(REGISTRY, 0.4)),
    speed(f::BLOB_64.cpu, Bound::Times(NGINX, 0.85)),
    speed(f::BLOB_64.cpu, Bound::Times(REGISTRY, 0.4)),
    speed(f::COLD.cpu, Bound::Times(REGISTRY_CACHE, 0.5)),
    exact(f::COLD.upstream, 1.0),
    exact(f::MANY.upstream, 1.0),
    speed(f::MANY.ratio, Bound::Value(1.1)),
    speed(f::SLOW_IDEAL, Bound::Value(1.02)),
    speed(f::SLOW_FIRST, Bound::Above(DIRECT, 20.0)),
    speed(f::SLOW_LATE, Bound::Value(30.0)),
    exact(f::SLOW_UPSTREAM, 1.0),
    exact(f::IMAGE_REQUESTS, 11.0),
    speed(f::START, Bound::Value(30.0)),
    speed(f::ANONYMOUS, Bound::Value(40.0)),
    speed(f::GROWN_GET.cpu, Bound::Row(f::SMALL_GET.cpu, 1.05)),
    speed(f::GROWN_HEAD.cpu, Bound::Row(f::SMALL_HEAD.cpu, 1.05)),
    speed(f::GROWN_BLOB.cpu, Bound::Row(f::SMALL_BLOB.cpu, 1.05)),
];

impl Target {
    /// The bound in words.
    pub(crate) fn words(&self) -> String {
        match self.bound {
            Bound::Value(value) => format!("<= {value}"),
            Bound::Times(column, factor) => format!("<= {factor} x {column}"),
            Bound::Above(column, more) => format!("<= {column} + {more}"),
            Bound::Row(_, factor) => format!("<= {factor} x with 10 blobs"),
        }
    }

    /// `None` if one of the figures was not taken.
    pub(crate) fn judge(&self, table: &Table) -> Option<Verdict> {
        let ours = table.samples(self.key, ROADSTEAD);
        let (value, bound) = match self.bound {
            Bound::Value(bound) => (median(ours), bound),
            Bound::Times(column, factor) => (ratio(ours, table.samples(self.key, column)), factor),
            Bound::Above(column, more) => {
                (median(ours), median(table.samples(self.key, column)) + more)
            }
            Bound::Row(key, factor) => (ratio(ours, table.samples(key, ROADSTEAD)), factor),
        };
        let met = value <= bound;
        (value.is_finite() && bound.is_finite()).then(|| Verdict {
            met,
            value,
            words: figure(value),
        })
    }
}

/// The median of the ratios of the rounds.
fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    median(&ratios)
}
