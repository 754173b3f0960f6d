//! The reply table, line by line, and the rules that hold for all of it.

use super::*;
use crate::registry::Error;

const AGENTS: [Agent; 7] = [
    Agent::DockerClassic,
    Agent::DockerContainerd,
    Agent::Containerd,
    Agent::ContainersImage,
    Agent::Soci,
    Agent::Lazy,
    Agent::Other,
];
const SUBJECTS: [Subject; 8] = [
    Subject::Manifest,
    Subject::SignatureTag,
    Subject::ReferrersTag,
    Subject::Referrers,
    Subject::Blob,
    Subject::Tags,
    Subject::Catalog,
    Subject::Other,
];

fn all_errors() -> Vec<Error> {
    let message = || "why".to_owned();
    vec![
        Error::UnknownRegistry { name: "x.example".into() },
        Error::NameInvalid { message: message() },
        Error::Loop,
        Error::RepositoryAbsent,
        Error::ManifestAbsent,
        Error::BlobAbsent,
        Error::OfflineMiss,
        Error::NotStored,
        Error::NotThen { message: message() },
        Error::Denied { message: message() },
        Error::Limited { retry_after: None },
        Error::Overloaded { message: "m".to_owned() },
        Error::Limited { retry_after: Some(Duration::from_secs(3600)) },
        Error::Unreachable { message: message() },
        Error::TimedOut,
        Error::Internal { message: message() },
    ]
}

fn ask(error: &Error, subject: Subject, agent: Agent, has_fallback: bool) -> Verdict {
    judge(&Problem::Registry(error.clone()), subject, Caller { agent, has_fallback })
}

/// Statuses by subject: manifest, signature tag, referrers tag, referrers, blob for classic docker, blob for others, tags.
type Line = [u16; 7];

fn line(error: &Error, has_fallback: bool) -> Line {
    let status = |subject, agent| ask(error, subject, agent, has_fallback).status.as_u16();
    for agent in AGENTS {
        if agent != Agent::DockerClassic {
            assert_eq!(
                status(Subject::Blob, agent),
                status(Subject::Blob, Agent::Other),
                "{error:?} {agent:?}"
            );
        }
        for subject in SUBJECTS {
            if subject != Subject::Blob {
                assert_eq!(
                    status(subject, agent),
                    status(subject, Agent::Other),
                    "{error:?} {agent:?} {subject:?}"
                );
            }
        }
    }
    let other = Agent::Other;
    [
        status(Subject::Manifest, other),
        status(Subject::SignatureTag, other),
        status(Subject::ReferrersTag, other),
        status(Subject::Referrers, other),
        status(Subject::Blob, Agent::DockerClassic),
        status(Subject::Blob, other),
        status(Subject::Tags, other),
    ]
}

#[test]
fn the_table_for_clients_with_a_fallback() {
    for error in all_errors() {
        let wanted: Line = match error {
            Error::UnknownRegistry { .. }
            | Error::RepositoryAbsent
            | Error::ManifestAbsent
            | Error::BlobAbsent
            | Error::NotStored
            | Error::OfflineMiss
            | Error::NotThen { .. } => [404; 7],
            Error::NameInvalid { .. } => [400; 7],
            Error::Denied { .. } => [403, 404, 404, 404, 404, 404, 403],
            Error::Limited { .. } => [503, 404, 404, 404, 404, 503, 503],
            Error::Unreachable { .. } => [502, 404, 404, 404, 404, 502, 502],
            Error::TimedOut => [504, 404, 404, 404, 404, 504, 504],
            Error::Overloaded { .. } => [503, 404, 404, 404, 404, 503, 503],
            Error::Loop => [508, 404, 404, 404, 404, 508, 508],
            Error::Internal { .. } => [500, 404, 404, 404, 404, 500, 500],
        };
        assert_eq!(line(&error, true), wanted, "{error:?}");
    }
}

#[test]
fn the_table_for_clients_without_a_fallback() {
    for error in all_errors() {
        let wanted: Line = match error {
            Error::UnknownRegistry { .. }
            | Error::RepositoryAbsent
            | Error::ManifestAbsent
            | Error::BlobAbsent
            | Error::NotStored
            | Error::OfflineMiss
            | Error::NotThen { .. } => [404; 7],
            Error::NameInvalid { .. } => [400; 7],
            Error::Denied { .. } => [403, 403, 404, 404, 403, 403, 403],
            Error::Limited { .. } => [429, 429, 404, 404, 429, 429, 429],
            Error::Unreachable { .. } => [502, 502, 404, 404, 502, 502, 502],
            Error::TimedOut => [504, 504, 404, 404, 504, 504, 504],
            Error::Overloaded { .. } => [503, 503, 404, 404, 503, 503, 503],
            Error::Loop => [508, 508, 404, 404, 508, 508, 508],
            Error::Internal { .. } => [500, 500, 404, 404, 500, 500, 500],
        };
        assert_eq!(line(&error, false), wanted, "{error:?}");
    }
}

#[test]
fn rules_without_exception() {
    for error in all_errors() {
        for subject in SUBJECTS {
            for agent in AGENTS {
                for has_fallback in [true, false] {
                    let verdict = ask(&error, subject, agent, has_fallback);
                    let status = verdict.status.as_u16();
                    assert_ne!(status, 401, "never a challenge");
                    assert!(!(has_fallback && status == 429), "never 429 with a fallback");
                    assert_eq!(
                        verdict.retry_after.is_some(),
                        status == 429,
                        "Retry-After with 429 only"
                    );
                    assert!(verdict.retry_after.is_none_or(|wait| wait <= RETRY_AFTER_MAX));
                    assert!(!verdict.message.is_empty());
                    let classic_blob = subject == Subject::Blob && agent == Agent::DockerClassic;
                    assert!(
                        !(has_fallback && classic_blob && status >= 500),
                        "a blob's 5xx costs a minute"
                    );
                    if status == 404
                        && !matches!(error, Error::UnknownRegistry { .. } | Error::RepositoryAbsent)
                    {
                        assert!(!matches!(
                            verdict.code,
                            ErrorCode::Denied | ErrorCode::Unavailable
                        ));
                    }
                }
            }
        }
    }
}

#[test]
fn codes_and_messages() {
    let other = Agent::Other;
    let verdict = ask(&Error::OfflineMiss, Subject::Blob, other, true);
    assert_eq!((verdict.code, &*verdict.message), (ErrorCode::BlobUnknown, "offline, not cached"));
    assert_eq!(
        ask(&Error::RepositoryAbsent, Subject::Manifest, other, true).code,
        ErrorCode::NameUnknown
    );
    assert_eq!(
        ask(&Error::RepositoryAbsent, Subject::Blob, other, true).code,
        ErrorCode::BlobUnknown
    );
    let hidden = ask(
        &Error::Unreachable { message: "connection refused".into() },
        Subject::Blob,
        Agent::DockerClassic,
        true,
    );
    assert_eq!(hidden.code, ErrorCode::BlobUnknown);
    assert!(hidden.message.contains("connection refused"), "the message tells the truth");
    let limited = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        ask(&Error::Limited { retry_after }, Subject::Manifest, other, false).retry_after
    };
    assert_eq!(limited(2), Some(Duration::from_secs(2)));
    assert_eq!(limited(600), Some(RETRY_AFTER_MAX));
}

#[test]
fn problems_of_our_own_door() {
    let caller = Caller { agent: Agent::Other, has_fallback: true };
    let judged = |problem: Problem| {
        let verdict = judge(&problem, Subject::Other, caller);
        (verdict.status.as_u16(), verdict.code)
    };
    let route = |error| judged(Problem::Route(error));
    assert_eq!(route(RouteError::NotFound), (404, ErrorCode::Unknown));
    assert_eq!(route(RouteError::Method), (405, ErrorCode::Unsupported));
    let off = Problem::DeletionOff("ghcr.io".parse().unwrap());
    assert_eq!(judged(off), (405, ErrorCode::Unsupported));
    assert_eq!(route(RouteError::TooLong), (414, ErrorCode::NameInvalid));
    assert_eq!(route(RouteError::Malformed), (400, ErrorCode::NameInvalid));
    assert_eq!(route(RouteError::Name), (400, ErrorCode::NameInvalid));
    assert_eq!(route(RouteError::Tag), (400, ErrorCode::TagInvalid));
    assert_eq!(route(RouteError::Digest), (400, ErrorCode::DigestInvalid));
    assert_eq!(route(RouteError::Page), (400, ErrorCode::PaginationNumberInvalid));
    let range = |error| judged(Problem::Range { error, size: Some(7) });
    assert_eq!(range(RangeError::Malformed), (400, ErrorCode::RangeInvalid));
    assert_eq!(range(RangeError::TooMany), (400, ErrorCode::RangeInvalid));
    assert_eq!(range(RangeError::Unsatisfiable), (416, ErrorCode::RangeInvalid));
    let forbidden =
        judge(&Problem::Forbidden("8.8.8.8".parse().unwrap()), Subject::Manifest, caller);
    assert_eq!((forbidden.status.as_u16(), forbidden.code), (403, ErrorCode::Denied));
    assert!(forbidden.message.contains("8.8.8.8") && forbidden.message.contains("`clients`"));
}

#[test]
fn tags_of_referrers_and_signatures_are_known_by_their_shape() {
    let hex = "a".repeat(64);
    let subject = |text: &str| Subject::of_reference(&text.parse().unwrap());
    assert_eq!(subject(&format!("sha256-{hex}")), Subject::ReferrersTag);
    for suffix in [".sig", ".att", ".sbom"] {
        assert_eq!(subject(&format!("sha256-{hex}{suffix}")), Subject::SignatureTag);
    }
    let long = format!("sha512-{}", "0".repeat(121));
    assert_eq!(subject(&long), Subject::ReferrersTag, "cut to the length of a tag");
    for plain in [
        "latest",
        "sha256-",
        "sha256-zz",
        &format!("sha256-{}", "a".repeat(63)),
        &format!("sha256:{hex}"),
    ] {
        assert_eq!(subject(plain), Subject::Manifest, "{plain}");
    }
}

#[test]
fn bodies_are_oci_json() {
    let verdict = ask(&Error::ManifestAbsent, Subject::Manifest, Agent::Other, true);
    let body: serde_json::Value =
        serde_json::from_slice(&verdict.body("r-1", Some("absent"))).unwrap();
    assert_eq!(body["errors"][0]["code"], "MANIFEST_UNKNOWN");
    assert_eq!(body["errors"][0]["detail"], json!({ "request": "r-1", "reason": "absent" }));
    assert!(body["errors"][0]["message"].is_string());
}

#[test]
fn only_a_refusal_of_hyper_is_replaced() {
    let answer = wire_refusal(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n").unwrap();
    let text = std::str::from_utf8(&answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 431 "));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("content-length: {}", body.len()))
            && head.contains("connection: close")
    );
    assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    for other in
        [&b"HTTP/1.1 200 OK\r\n"[..], b"HTTP/1.1 100 Continue\r\n\r\n", b"blob", b"", b"HTTP/1.1 "]
    {
        assert_eq!(wire_refusal(other), None);
    }
}
