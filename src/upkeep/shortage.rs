//! Why nothing more can go: what keeps the content that would be next, summed up for somebody who waits for room.
//!
//! It looks at a bounded part of the store and changes nothing. `gc` without taking anything tells the same of each object.

use std::collections::BTreeMap;

use super::service::Upkeep;
use super::settings::{Settings, WHY_OBJECTS};
use crate::clock::Timestamp;
use crate::content::{Error, HOLDERS_MAX, KeepVerdict, verdict};
use crate::metadata::Usage;

/// Later than anything was used.
const EVER: Timestamp = Timestamp::from_millis(i64::MAX);

/// The reasons of what would be next, in words.
pub(super) async fn why(upkeep: &Upkeep, settings: &Settings) -> Result<String, Error> {
    let rows = upkeep.content().metadata();
    if upkeep.asks_nobody() {
        return Ok("offline: nothing could come back".to_owned());
    }
    let page = rows.idle(EVER, None, WHY_OBJECTS).await?;
    let (rules, now) = (rows.rules(), upkeep.clock().now());
    let young = now.minus(settings.young_for);
    let mut kept = BTreeMap::<&'static str, Usage>::new();
    let looked_at = page.len();
    for object in page {
        let holders = rows.holders(&object.digest, HOLDERS_MAX).await?;
        let by = match verdict(&holders, &rules, &settings.keep, now) {
            KeepVerdict::Kept(hold) => words(hold.by()),
            KeepVerdict::Free | KeepVerdict::Last if object.since >= young => {
                "used within young_for"
            }
            KeepVerdict::Free | KeepVerdict::Last => "in use",
        };
        let usage = kept.entry(by).or_default();
        usage.objects += 1;
        usage.bytes = usage.bytes.saturating_add(object.size);
    }
    let more = usize::try_from(WHY_OBJECTS).is_ok_and(|most| looked_at >= most);
    Ok(sentence(kept, more))
}

/// `by` of a hold, as something is by it.
fn words(by: &'static str) -> &'static str {
    match by {
        "pin" => "pinned",
        "freeze" => "of a frozen tag",
        "last_revisions" => "kept by keep_revisions",
        "set" => "in a pinned set",
        "offline" => "of an upstream that is offline",
        "shared" => "needed by too many images to tell",
        other => other,
    }
}

/// The largest part first. `more`: there is more than was looked at.
fn sentence(kept: BTreeMap<&'static str, Usage>, more: bool) -> String {
    if kept.is_empty() {
        return "nothing is stored that could go".to_owned();
    }
    let mut parts: Vec<(&str, Usage)> = kept.into_iter().collect();
    parts.sort_by_key(|(_, usage)| std::cmp::Reverse(usage.bytes));
    let part = |(by, Usage { objects, bytes }): &(&str, Usage)| {
        let noun = if *objects == 1 { "object" } else { "objects" };
        format!("{objects} {noun} ({bytes} bytes) {by}")
    };
    let parts: Vec<String> = parts.iter().map(part).collect();
    let of = if more { "of what was unused for longest, " } else { "of what is stored, " };
    format!("{of}{}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_are_summed_up_with_the_largest_first() {
        assert_eq!(sentence(BTreeMap::new(), false), "nothing is stored that could go");
        let kept = BTreeMap::from([
            (words("pin"), Usage { objects: 1, bytes: 7 }),
            (words("set"), Usage { objects: 3, bytes: 9 }),
        ]);
        assert_eq!(
            sentence(kept, false),
            "of what is stored, 3 objects (9 bytes) in a pinned set, 1 object (7 bytes) pinned"
        );
    }
}
