//! The header fields of answers, and the conditions in requests.
//!
//! What must hold: `Content-Length` is always explicit (hyper adds none to a HEAD), tags are quoted strong ones made of the digest,
//! and nothing that a client or an upstream sent enters a field unchecked. No content coding ever: sizes and digests are of the bytes.

use std::time::Duration;

use bytes::BytesMut;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE, VIA, WARNING,
};

use super::body::Payload;
use crate::oci::{Digest, RangeError, RangeSpec, RegistryName, parse_range};
use crate::registry::{Outcome, Report};

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");
pub(super) const API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");
pub(super) const API_VERSION_2: HeaderValue = HeaderValue::from_static("registry/2.0");
pub(super) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
pub(super) const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What stands before the freshness left in `Cache-Status`.
const TTL: &str = "; ttl=";

/// The longest chain of roadsteads: more than that go in a circle, whatever their names are.
const ROADSTEADS_MAX: usize = 16;
/// The longest name that a roadstead gives itself, behind its prefix.
const INSTANCE_CHARS_MAX: usize = 64;

/// `Content-Type` and `Content-Length` of a payload.
pub(super) fn describe(headers: &mut HeaderMap, content_type: HeaderValue, length: u64) {
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}

/// What names immutable content: its digest and its entity tag.
pub(super) fn identify(headers: &mut HeaderMap, digest: &Digest) {
    let text = digest.to_string();
    let tag = value(&format!("\"{text}\""));
    headers.insert(DOCKER_CONTENT_DIGEST, value(&text));
    headers.insert(ETAG, tag);
}

pub(super) fn accept_ranges(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
}

pub(super) fn content_range(headers: &mut HeaderMap, text: &str) {
    headers.insert(CONTENT_RANGE, value(text));
}

/// A header value of text that is visible ASCII by construction; anything else becomes an empty one.
pub(super) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_invalid| HeaderValue::from_static(""))
}

/// `Cache-Status` (RFC 9211) and, on a stale answer, `Warning` (RFC 9111, 5.5 tells how; clients show its text to users).
pub(super) fn explain(headers: &mut HeaderMap, report: &Report) {
    if let Some(status) = cache_status(report) {
        headers.insert(CACHE_STATUS, value(&status));
    }
    if let Some(warning) = warning(report) {
        headers.insert(WARNING, value(&warning));
    }
}

/// What [`explain`] says of a hit, without the work: `Cache-Status` alone.
pub(super) fn hit(ttl: Option<Duration>) -> HeaderValue {
    const PLAIN: &str = "roadstead; hit";
    let Some(ttl) = ttl else {
        return HeaderValue::from_static(PLAIN);
    };
    let mut digits = itoa::Buffer::new();
    let parts = [PLAIN, TTL, digits.format(ttl.as_secs())];
    let mut text = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        text.extend_from_slice(part.as_bytes());
    }
    HeaderValue::from_maybe_shared(text.freeze()).expect("letters and digits")
}

/// The registry that the client named by `ns`. What is no name of a registry is not repeated: it may be anything.
pub(super) fn namespace(headers: &mut HeaderMap, ns: Option<&str>) {
    if let Some(ns) = ns.filter(|ns| ns.parse::<RegistryName>().is_ok()) {
        headers.insert(OCI_NAMESPACE, value(ns));
    }
}

/// None where no upstream was found: there was no cache to ask.
fn cache_status(report: &Report) -> Option<String> {
    report.upstream.as_ref()?;
    let mut text = match report.outcome {
        Outcome::Hit => "roadstead; hit",
        Outcome::Joined => "roadstead; fwd=uri-miss; collapsed",
        Outcome::Miss => "roadstead; fwd=uri-miss; stored",
        Outcome::Revalidated | Outcome::Stale => "roadstead; fwd=stale",
        Outcome::Bypass => "roadstead; fwd=bypass",
        Outcome::Refused | Outcome::Error => "roadstead; fwd=miss",
        Outcome::Deleted => return None,
    }
    .to_owned();
    // Seconds left, negative once they are used up.
    if let Some(stale_for) = report.stale_for {
        match stale_for.as_secs() {
            0 => text += "; ttl=0",
            seconds => text += &format!("; ttl=-{seconds}"),
        }
    } else if let Some(ttl) = report.ttl {
        text += &format!("; ttl={}", ttl.as_secs());
    }
    if let Some(reason) = report.reason {
        text += &format!("; detail={reason}");
    } else if report.outcome == Outcome::Revalidated {
        text += "; detail=revalidated";
    }
    Some(text)
}

fn warning(report: &Report) -> Option<String> {
    if report.outcome != Outcome::Stale {
        return None;
    }
    let mut text = "served stale".to_owned();
    if let Some(upstream) = &report.upstream {
        text += &format!(", {upstream} could not confirm it");
    }
    if let Some(reason) = report.reason {
        text += &format!(" ({reason})");
    }
    if let Some(stale_for) = report.stale_for {
        text += &format!(", {} s past its freshness", stale_for.as_secs());
    }
    if report.missing_children > 0 {
        text += &format!(", {} of its parts are not here", report.missing_children);
    }
    let text: String = text.chars().filter(|letter| !matches!(letter, '"' | '\\')).collect();
    Some(format!("299 - \"{text}\""))
}

/// Does the client hold this content already (`If-None-Match`, RFC 9110, 13.1.2)? Unquoted digests count too: distribution sends them.
pub(super) fn holds_already(headers: &HeaderMap, digest: &Digest) -> bool {
    let mut members = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .peekable();
    if members.peek().is_none() {
        return false;
    }
    let text = digest.to_string();
    members.any(|member| {
        let tag = member.strip_prefix("W/").unwrap_or(member);
        member == "*" || tag.trim_matches('"') == text
    })
}

/// The ranges that a request asks for. An `If-Range` that does not name this content with a strong tag switches them off; a date
/// cannot match, because we give none (RFC 9110, 13.1.5).
pub(super) fn ranges(
    headers: &HeaderMap,
    digest: &Digest,
    limit: usize,
) -> Result<Option<Vec<RangeSpec>>, RangeError> {
    let mut values = headers.get_all(RANGE).iter();
    let Some(header) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(RangeError::Malformed);
    }
    let text = header.to_str().map_err(|_invalid| RangeError::Malformed)?;
    let specs = parse_range(text)?;
    if specs.as_ref().is_some_and(|specs| specs.len() > limit) {
        return Err(RangeError::TooMany);
    }
    match headers.get(IF_RANGE) {
        Some(condition) if condition.as_bytes() != format!("\"{digest}\"").as_bytes() => Ok(None),
        _ => Ok(specs),
    }
}

/// Did this request pass through us before, or through so many of our kind that it goes in a circle? Every request of ours to an upstream
/// names us in `Via` (RFC 9110, 7.6.3), behind those through whom the request came to us.
pub(super) fn is_loop(headers: &HeaderMap, instance_id: &str) -> bool {
    via(headers).any(|word| word == instance_id)
        || via(headers).filter(|word| is_instance(word)).count() > ROADSTEADS_MAX
}

/// The roadsteads that a request came through, as the value of the `Via` header with which it is passed on. Others are left out: they take
/// no part in loops of ours, and upstream need not know of them.
pub(super) fn passed(headers: &HeaderMap) -> Option<String> {
    let passed: Vec<String> =
        via(headers).filter(|word| is_instance(word)).map(|word| format!("1.1 {word}")).collect();
    (!passed.is_empty()).then(|| passed.join(", "))
}

fn via(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ' ', '\t']))
}

/// Is this how a roadstead names itself?
fn is_instance(word: &str) -> bool {
    let id = word.strip_prefix("roadstead-");
    id.is_some_and(|id| {
        (1..=INSTANCE_CHARS_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The length that a HEAD announces is that of the GET.
pub(super) fn for_head(payload: Payload, head: bool) -> Payload {
    if head { Payload::Empty } else { payload }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Outcome) -> Report {
        Report {
            upstream: Some("docker.io".parse().unwrap()),
            outcome,
            reason: None,
            ttl: None,
            stale_for: None,
            missing_children: 0,
        }
    }

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn cache_status_of_every_outcome() {
        let text = |report: &Report| cache_status(report).unwrap();
        let hit = Report { ttl: Some(Duration::from_secs(42)), ..report(Outcome::Hit) };
        assert_eq!(text(&hit), "roadstead; hit; ttl=42");
        assert_eq!(text(&report(Outcome::Miss)), "roadstead; fwd=uri-miss; stored");
        assert_eq!(text(&report(Outcome::Joined)), "roadstead; fwd=uri-miss; collapsed");
        assert_eq!(text(&report(Outcome::Revalidated)), "roadstead; fwd=stale; detail=revalidated");
        let bypass = Report { reason: Some("no_space"), ..report(Outcome::Bypass) };
        assert_eq!(text(&bypass), "roadstead; fwd=bypass; detail=no_space");
        let nowhere = Report { upstream: None, ..report(Outcome::Refused) };
        assert_eq!(cache_status(&nowhere), None);
        let just_stale =
            Report { stale_for: Some(Duration::from_millis(10)), ..report(Outcome::Stale) };
        assert_eq!(text(&just_stale), "roadstead; fwd=stale; ttl=0");
    }

    #[test]
    fn the_short_text_of_a_hit_is_the_long_one() {
        for ttl in [None, Some(0), Some(9), Some(3599), Some(u64::MAX)] {
            let ttl = ttl.map(Duration::from_secs);
            let long = cache_status(&Report { ttl, ..report(Outcome::Hit) }).unwrap();
            assert_eq!(hit(ttl), long);
        }
    }

    #[test]
    fn a_stale_answer_says_so_twice() {
        let stale = Report {
            reason: Some("unreachable"),
            stale_for: Some(Duration::from_secs(90)),
            missing_children: 2,
            ..report(Outcome::Stale)
        };
        let mut headers = HeaderMap::new();
        explain(&mut headers, &stale);
        assert_eq!(headers[CACHE_STATUS], "roadstead; fwd=stale; ttl=-90; detail=unreachable");
        assert_eq!(
            headers[WARNING],
            "299 - \"served stale, docker.io could not confirm it (unreachable), 90 s past its freshness, 2 of its parts are not here\""
        );
        let mut headers = HeaderMap::new();
        explain(&mut headers, &report(Outcome::Hit));
        assert!(!headers.contains_key(WARNING));
    }

    #[test]
    fn if_none_match_in_its_forms() {
        let digest = Digest::sha256_of(b"");
        for good in [
            format!("\"{digest}\""),
            format!("{digest}"),
            format!("W/\"{digest}\""),
            format!("\"x\", \"{digest}\""),
            "*".into(),
        ] {
            assert!(holds_already(&with(IF_NONE_MATCH, &[&good]), &digest), "{good}");
        }
        let two_lines = with(IF_NONE_MATCH, &["\"x\"", &format!("\"{digest}\"")]);
        assert!(holds_already(&two_lines, &digest));
        for bad in ["", "\"x\"", "sha256:00", "\"*\""] {
            assert!(!holds_already(&with(IF_NONE_MATCH, &[bad]), &digest), "{bad}");
        }
        assert!(!holds_already(&HeaderMap::new(), &digest));
    }

    #[test]
    fn if_range_decides_about_the_ranges() {
        let digest = Digest::sha256_of(b"");
        let asked = |condition: Option<&str>| {
            let mut headers = with(RANGE, &["bytes=1-2"]);
            if let Some(condition) = condition {
                headers.insert(IF_RANGE, HeaderValue::from_str(condition).unwrap());
            }
            ranges(&headers, &digest, 1024).unwrap().is_some()
        };
        assert!(asked(None));
        assert!(asked(Some(&format!("\"{digest}\""))));
        assert!(!asked(Some("\"other\"")));
        assert!(!asked(Some(&format!("W/\"{digest}\""))), "a weak tag is not enough");
        assert!(!asked(Some("Sun, 06 Nov 1994 08:49:37 GMT")));
    }

    #[test]
    fn bad_range_headers() {
        let digest = Digest::sha256_of(b"");
        let asked = |values: &[&str]| ranges(&with(RANGE, values), &digest, 4);
        assert_eq!(asked(&["bytes=0-1", "bytes=2-3"]), Err(RangeError::Malformed));
        assert_eq!(asked(&["bytes=x"]), Err(RangeError::Malformed));
        assert_eq!(asked(&["bytes=0-,0-,0-,0-,0-"]), Err(RangeError::TooMany));
        assert_eq!(asked(&["lines=1-2"]), Ok(None));
        let mut binary = HeaderMap::new();
        binary.insert(RANGE, HeaderValue::from_bytes(b"bytes=\xff-").unwrap());
        assert_eq!(ranges(&binary, &digest, 4), Err(RangeError::Malformed));
    }

    #[test]
    fn a_loop_is_seen_in_any_via() {
        let id = "roadstead-7f";
        assert!(is_loop(&with(VIA, &["1.1 other, 1.1 roadstead-7f (comment)"]), id));
        assert!(is_loop(&with(VIA, &["1.1 other", "1.1 roadstead-7f"]), id));
        assert!(!is_loop(&with(VIA, &["1.1 roadstead-7fa"]), id));
        assert!(!is_loop(&HeaderMap::new(), id));
        let many = |count| vec!["1.1 roadstead-a"; count].join(", ");
        assert!(!is_loop(&with(VIA, &[&many(ROADSTEADS_MAX)]), id));
        assert!(is_loop(&with(VIA, &[&many(ROADSTEADS_MAX + 1)]), id));
    }

    #[test]
    fn only_roadsteads_are_passed_on() {
        let passed_on = |values: &[&str]| passed(&with(VIA, values));
        assert_eq!(passed_on(&[]), None);
        assert_eq!(passed_on(&["1.1 proxy.corp (squid), 1.0 fred"]), None);
        let chain = passed_on(&["1.1 roadstead-a1, 1.1 proxy", "1.1 roadstead-b2"]);
        assert_eq!(chain.as_deref(), Some("1.1 roadstead-a1, 1.1 roadstead-b2"));
        let long = format!("1.1 roadstead-{}", "a".repeat(INSTANCE_CHARS_MAX + 1));
        for odd in [long.as_str(), "1.1 roadstead-", "1.1 roadstead-a;b", "1.1 roadstead-\u{e9}"] {
            assert_eq!(passed_on(&[odd]), None, "{odd}");
        }
    }
}
