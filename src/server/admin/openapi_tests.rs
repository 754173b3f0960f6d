//! The description against the routes and the answers: what it says must be so, and what is so must be in it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::OPENAPI;
use crate::carry::{
    CheckedImage, CheckedPlatform, ExportOrder, ExportPlan, ExportedImage, MemberInfo, MissingPart,
    OfflineInfo, SetInfo, WantedInfo,
};
use crate::clock::Timestamp;
use crate::registry::desk::{
    Deletion, EndpointInfo, Explanation, HistoryEntry, Hold, Inspection, LIST_LIMIT_DEFAULT,
    LIST_LIMIT_MAX, LOCKED_MAX, Listed, Locked, Part, PlatformInfo, Refreshed, RuleInfo, TagInfo,
    UpstreamUsage, UsageInfo,
};
use crate::server::admin::routes;

fn description() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

fn texts<'a>(values: &'a Value, key: &str) -> Vec<&'a str> {
    values.as_array().into_iter().flatten().filter_map(|value| value[key].as_str()).collect()
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let description = description();
    let mut described = BTreeMap::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let parameters = texts(&operation["parameters"], "name");
            described.insert((path.clone(), method.to_uppercase()), parameters);
        }
    }
    let mut routed = BTreeMap::new();
    for route in routes::all() {
        routed.insert((route.path.to_owned(), route.method.to_owned()), route.parameters.to_vec());
    }
    assert_eq!(described, routed);
}

#[test]
fn the_limits_are_those_of_the_desk() {
    let description = description();
    let parameter = |path: &str, name: &str| {
        let all = description["paths"][path]["get"]["parameters"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()["schema"].clone()
    };
    let limit = parameter("/images", "limit");
    assert_eq!(limit["default"], LIST_LIMIT_DEFAULT);
    assert_eq!(limit["maximum"], LIST_LIMIT_MAX);
    assert_eq!(parameter("/locked", "image")["maxItems"], LOCKED_MAX);
}

#[test]
fn every_reference_leads_somewhere() {
    let description = description();
    let mut seen = 0;
    for part in OPENAPI.split("\"$ref\": \"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(description.pointer(pointer).is_some(), "{pointer}");
        seen += 1;
    }
    assert!(seen > 40, "only {seen} references were found");
}

/// The fields of an answer in which nothing is left out.
fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn list<T: serde::Serialize>(item: T) -> Value {
    json!(Listed { items: vec![item], next: Some(String::new()) })
}

/// One of each answer, with every field that may be left out.
#[expect(clippy::too_many_lines, reason = "a list of values reads best in one piece")]
fn answers() -> Vec<(&'static str, Value)> {
    let (text, moment) = (String::new, Timestamp::default());
    let hold = Hold { by: text(), what: text() };
    let part = Part {
        digest: text(),
        role: text(),
        media_type: Some(text()),
        platform: Some(text()),
        size: None,
        state: text(),
    };
    let platform =
        PlatformInfo { platform: text(), digest: text(), complete: true, bytes_present: 0 };
    let tag = TagInfo {
        image: text(),
        digest: None,
        present: true,
        moved: moment,
        confirmed: moment,
        used: None,
        pinned: true,
        frozen: true,
    };
    let entry = HistoryEntry {
        id: 1,
        digest: None,
        since: moment,
        until: None,
        source: text(),
        present: true,
        served: true,
    };
    let inspection = Inspection {
        image: text(),
        digest: text(),
        media_type: text(),
        tags: Vec::new(),
        content: vec![part.clone()],
        truncated: false,
        bytes_present: 0,
        bytes_known: 0,
        complete: true,
        platforms: vec![platform.clone()],
        holds: vec![hold.clone()],
    };
    let endpoint = EndpointInfo { url: text(), role: text(), in_use: true };
    let explanation = Explanation {
        image: text(),
        upstream: text(),
        endpoints: vec![endpoint.clone()],
        offline: false,
        verdict: text(),
        sentences: Vec::new(),
        fresh_until: None,
        rule: Some(text()),
        digest: None,
        bytes_present: 0,
        missing: 0,
        holds: Vec::new(),
    };
    let rule = RuleInfo { id: 1, scope: text(), since: moment, until: None, reason: text() };
    let refreshed =
        Refreshed { image: text(), before: None, now: None, outcome: text(), detail: Some(text()) };
    let locked = Locked { image: text(), digest: text(), at: moment };
    let upstream = UpstreamUsage { upstream: None, objects: 0, bytes: 0, max_bytes: None };
    let usage = UsageInfo {
        objects: 0,
        bytes: 0,
        max_bytes: None,
        free_bytes: 0,
        min_free_bytes: 0,
        doomed: 0,
        upstreams: vec![upstream.clone()],
    };
    let set = SetInfo {
        name: text(),
        kind: text(),
        since: moment,
        until: None,
        pinned: false,
        images: 0,
        detail: text(),
    };
    let member = MemberInfo { image: text(), digest: text(), at: moment };
    let wanted = WantedInfo {
        image: text(),
        kind: text(),
        first: moment,
        last: moment,
        times: 0,
        reason: text(),
    };
    let checked_platform = CheckedPlatform {
        platform: text(),
        digest: text(),
        complete: true,
        bytes_present: 0,
        bytes_missing: 0,
    };
    let missing =
        MissingPart { digest: text(), role: text(), platform: None, size: None, state: text() };
    let checked = CheckedImage {
        image: text(),
        digest: None,
        complete: true,
        platforms: Vec::new(),
        missing: Vec::new(),
        bytes_present: 0,
        bytes_missing: 0,
        referrers: 0,
        reason: Some(text()),
    };
    let exported = ExportedImage { image: text(), digest: text(), platforms: Vec::new(), bytes: 0 };
    vec![
        ("CheckedImage", json!(checked)),
        ("CheckedPlatform", json!(checked_platform)),
        ("SetInfo", json!(set)),
        ("MemberPage", list(member.clone())),
        ("MemberInfo", json!(member)),
        ("WantedPage", list(wanted.clone())),
        ("WantedInfo", json!(wanted)),
        ("OfflineInfo", json!(OfflineInfo::default())),
        ("MissingPart", json!(missing)),
        ("TagPage", list(tag.clone())),
        ("TagInfo", json!(tag)),
        ("HistoryPage", list(entry.clone())),
        ("HistoryEntry", json!(entry)),
        ("Inspection", json!(inspection)),
        ("Part", json!(part)),
        ("PlatformInfo", json!(platform)),
        ("Hold", json!(hold)),
        ("Explanation", json!(explanation)),
        ("EndpointInfo", json!(endpoint)),
        ("RuleInfo", json!(rule)),
        ("Deletion", json!(Deletion::default())),
        ("Refreshed", json!(refreshed)),
        ("Locked", json!(locked)),
        ("UsageInfo", json!(usage)),
        ("UpstreamUsage", json!(upstream)),
        ("ExportOrder", json!(ExportOrder::default())),
        ("ExportPlan", json!(ExportPlan::default())),
        ("ExportedImage", json!(exported)),
    ]
}

#[test]
fn every_answer_has_the_fields_that_are_described() {
    let description = description();
    for (name, answer) in answers() {
        let schema = &description["components"]["schemas"][name];
        assert_eq!(fields(&answer), fields(&schema["properties"]), "{name}");
        let required: BTreeSet<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(required.is_subset(&fields(&answer)), "{name}");
    }
}

/// The page for people has every path and every word of a refusal.
#[test]
fn the_page_names_every_path_and_every_reason() {
    let page = include_str!("../../../docs/admin-api.md");
    for route in routes::all().filter(|route| route.path != "/") {
        let shown = format!("{} /api/v1{}", route.method, route.path);
        assert!(page.contains(&shown), "{shown} is not in docs/admin-api.md");
    }
    for reason in super::REASONS {
        assert!(page.contains(&format!("`{reason}`")), "{reason} is not in docs/admin-api.md");
    }
}
