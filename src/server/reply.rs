//! The reply table: which refusal becomes which status code, for whom. Status codes exist only here.
//!
//! A mirror is judged by how fast and how harmlessly its clients get past it when it cannot help, so the answer depends on what was
//! asked and on whether the client has another source. Clients without one get the plain truth: for them 404 means absent and
//! nothing else. Two rules have no exception on the data plane: no 401 (a challenge makes clients hand over passwords), and nothing about referrers
//! but 404, because docker fails the whole pull on anything else.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use super::caller::{Agent, Caller};
use super::route::RouteError;
use crate::oci::{ErrorCode, RangeError, Reference, RegistryName, Tag};
use crate::registry;

/// Longest `Retry-After` that we pass on: podman multiplies it, regctl obeys without a ceiling, and we absorb the repeats.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

pub(super) const OK: StatusCode = StatusCode::OK;
/// A deletion: the content itself goes after the grace time.
pub(super) const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
pub(super) const PARTIAL: StatusCode = StatusCode::PARTIAL_CONTENT;
pub(super) const NOT_MODIFIED: StatusCode = StatusCode::NOT_MODIFIED;
/// Readiness while starting or draining.
pub(super) const NOT_READY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
/// Answers of the admin API, whose clients are our own commands.
pub(super) mod admin {
    use http::StatusCode;

    use crate::registry::desk::Reason;

    pub(in crate::server) const BAD_REQUEST: StatusCode = StatusCode::BAD_REQUEST;
    /// The one challenge that roadstead sends: only the operator's programs ever see it.
    pub(in crate::server) const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;
    pub(in crate::server) const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
    pub(in crate::server) const NOT_FOUND: StatusCode = StatusCode::NOT_FOUND;
    pub(in crate::server) const NOT_ALLOWED: StatusCode = StatusCode::METHOD_NOT_ALLOWED;
    /// One job at a time.
    pub(in crate::server) const BUSY: StatusCode = StatusCode::CONFLICT;

    /// What the desk refuses.
    pub(in crate::server) fn of(reason: Reason) -> StatusCode {
        match reason {
            Reason::Image
            | Reason::Scope
            | Reason::Digest
            | Reason::Value
            | Reason::List
            | Reason::Bundle => BAD_REQUEST,
            Reason::UnknownRegistry
            | Reason::UnknownImage
            | Reason::Absent
            | Reason::UnknownDigest
            | Reason::UnknownRule
            | Reason::Set => NOT_FOUND,
            Reason::Held
            | Reason::Offline
            | Reason::TooManyRules
            | Reason::SetExists
            | Reason::TooManySets
            | Reason::Incomplete
            | Reason::Busy => StatusCode::CONFLICT,
            Reason::Room => StatusCode::INSUFFICIENT_STORAGE,
            Reason::Store => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
/// In the log only: the client went away before it was answered (nginx's number).
pub(super) const CLIENT_GONE: u16 = 499;
/// In the log only: the headers of a request did not come in time.
pub(super) const HEADER_TIMEOUT: StatusCode = StatusCode::REQUEST_TIMEOUT;

/// What the request was about, as far as it changes a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Manifest,
    /// A tag in which cosign keeps a signature: `sha256-<hex>.sig` and the like.
    SignatureTag,
    /// The tag in which referrers live where the API does not exist: `sha256-<hex>`. docker asks it on every pull.
    ReferrersTag,
    Referrers,
    Blob,
    Tags,
    Catalog,
    Other,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Problem {
    Registry(registry::Error),
    Route(RouteError),
    Range {
        error: RangeError,
        size: Option<u64>,
    },
    /// The client's address is outside the `clients` networks.
    Forbidden(IpAddr),
    /// A deletion, which the settings of this upstream do not allow.
    DeletionOff(RegistryName),
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    pub(super) message: Cow<'static, str>,
    pub(super) retry_after: Option<Duration>,
    /// The size to name in the `Content-Range` of a 416.
    pub(super) size: Option<u64>,
    /// Name the methods that exist.
    pub(super) allow: bool,
}

impl Subject {
    pub(super) fn of_reference(reference: &Reference) -> Self {
        match reference {
            Reference::Digest(_) => Self::Manifest,
            Reference::Tag(tag) => Self::of_tag(tag),
        }
    }

    fn of_tag(tag: &Tag) -> Self {
        // The tag of a sha512 digest would be longer than a tag may be; clients cut it to 128 bytes.
        for (prefix, digits) in [("sha256-", 64), ("sha512-", 121)] {
            let Some(rest) = tag.as_str().strip_prefix(prefix) else {
                continue;
            };
            let Some((hex, suffix)) = rest.split_at_checked(digits) else {
                continue;
            };
            if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return match suffix.bytes().next() {
                    None => Self::ReferrersTag,
                    Some(b'.') => Self::SignatureTag,
                    Some(_) => Self::Manifest,
                };
            }
        }
        Self::Manifest
    }

    fn is_referrers(self) -> bool {
        matches!(self, Self::Referrers | Self::ReferrersTag)
    }

    /// The code of "it does not exist".
    fn absent_code(self) -> ErrorCode {
        match self {
            Self::Manifest | Self::SignatureTag | Self::ReferrersTag | Self::Referrers => {
                ErrorCode::ManifestUnknown
            }
            Self::Blob => ErrorCode::BlobUnknown,
            Self::Tags | Self::Catalog => ErrorCode::NameUnknown,
            Self::Other => ErrorCode::Unknown,
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Manifest | Self::SignatureTag => "manifest",
            Self::ReferrersTag | Self::Referrers => "referrers",
            Self::Blob => "blob",
            Self::Tags => "tag list",
            Self::Catalog => "catalog",
            Self::Other => "answer",
        }
    }
}

impl Verdict {
    fn new(status: StatusCode, code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), retry_after: None, size: None, allow: false }
    }

    /// The error body of the OCI distribution spec 1.1 ("Error Codes").
    pub(super) fn body(&self, request: &str, reason: Option<&str>) -> Bytes {
        let mut detail = json!({ "request": request });
        if let Some(reason) = reason {
            detail["reason"] = reason.into();
        }
        error_body(self.code, &self.message, &detail)
    }
}

fn error_body(code: ErrorCode, message: &str, detail: &serde_json::Value) -> Bytes {
    json!({ "errors": [{ "code": code.as_str(), "message": message, "detail": detail }] })
        .to_string()
        .into()
}

/// The table.
pub(super) fn judge(problem: &Problem, subject: Subject, caller: Caller) -> Verdict {
    match problem {
        Problem::Registry(error) => judge_registry(error, subject, caller),
        Problem::Route(error) => judge_route(*error),
        Problem::Range { error, size } => judge_range(*error, *size),
        Problem::DeletionOff(upstream) => {
            let mut verdict = Verdict::new(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorCode::Unsupported,
                format!(
                    "nobody may delete here; the operator can set allow_delete = true in [upstream.\"{upstream}\"]"
                ),
            );
            verdict.allow = true;
            verdict
        }
        Problem::Forbidden(address) => Verdict::new(
            StatusCode::FORBIDDEN,
            ErrorCode::Denied,
            format!(
                "{address} may not pull here: it is in none of the networks of the `clients` setting"
            ),
        ),
    }
}

fn judge_registry(error: &registry::Error, subject: Subject, caller: Caller) -> Verdict {
    use registry::Error;
    match error {
        Error::UnknownRegistry { name } => Verdict::new(
            StatusCode::NOT_FOUND,
            ErrorCode::NameUnknown,
            format!(
                "no registry {name:?} is configured here; the operator can add [upstream.{name:?}]"
            ),
        ),
        Error::NameInvalid { message } => {
            Verdict::new(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, message.clone())
        }
        Error::RepositoryAbsent => Verdict::new(
            StatusCode::NOT_FOUND,
            if subject == Subject::Blob { ErrorCode::BlobUnknown } else { ErrorCode::NameUnknown },
            "the upstream registry knows no such repository, or does not show it",
        ),
        Error::ManifestAbsent => Verdict::new(
            StatusCode::NOT_FOUND,
            ErrorCode::ManifestUnknown,
            "manifest unknown to the upstream registry",
        ),
        Error::BlobAbsent => Verdict::new(
            StatusCode::NOT_FOUND,
            ErrorCode::BlobUnknown,
            "blob unknown to this repository",
        ),
        Error::NotStored => Verdict::new(
            StatusCode::NOT_FOUND,
            ErrorCode::ManifestUnknown,
            "nothing of that name is known here",
        ),
        Error::OfflineMiss => {
            Verdict::new(StatusCode::NOT_FOUND, subject.absent_code(), "offline, not cached")
        }
        Error::NotThen { message } => {
            Verdict::new(StatusCode::NOT_FOUND, subject.absent_code(), message.clone())
        }
        Error::Denied { message } => denied(message, subject, caller),
        Error::Limited { retry_after } => limited(*retry_after, subject, caller),
        Error::Loop => trouble(
            StatusCode::LOOP_DETECTED,
            "the request came back to this proxy: an upstream's url leads here",
            subject,
            caller,
        ),
        Error::Unreachable { message } => {
            trouble(StatusCode::BAD_GATEWAY, message, subject, caller)
        }
        Error::TimedOut => trouble(
            StatusCode::GATEWAY_TIMEOUT,
            "the upstream registry did not answer in time",
            subject,
            caller,
        ),
        Error::Overloaded { message } => {
            trouble(StatusCode::SERVICE_UNAVAILABLE, message, subject, caller)
        }
        Error::Internal { message } => {
            trouble(StatusCode::INTERNAL_SERVER_ERROR, message, subject, caller)
        }
    }
}

/// A decision of upstream or of the operator. Clients with a fallback go upstream with credentials of their own.
fn denied(message: &str, subject: Subject, caller: Caller) -> Verdict {
    let hidden = subject.is_referrers()
        || caller.has_fallback && matches!(subject, Subject::Blob | Subject::SignatureTag);
    if hidden {
        absent(message, subject)
    } else {
        Verdict::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message.to_owned())
    }
}

/// Upstream's rate limit. With a fallback 429 is the worst answer: containerd repeats it at once, podman waits half a minute.
fn limited(retry_after: Option<Duration>, subject: Subject, caller: Caller) -> Verdict {
    const MESSAGE: &str = "the upstream registry limits the rate of our requests";
    if caller.has_fallback || subject.is_referrers() {
        return trouble(StatusCode::SERVICE_UNAVAILABLE, MESSAGE, subject, caller);
    }
    let mut verdict =
        Verdict::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, MESSAGE);
    verdict.retry_after = Some(retry_after.unwrap_or(RETRY_AFTER_MAX).min(RETRY_AFTER_MAX));
    verdict
}

/// It may exist, but cannot be had now.
fn trouble(status: StatusCode, message: &str, subject: Subject, caller: Caller) -> Verdict {
    // Classic docker waits 50 to 75 s on a blob's 5xx before it goes to Docker Hub, and no time at all on a 404.
    let hidden = subject.is_referrers()
        || caller.has_fallback
            && (subject == Subject::SignatureTag
                || subject == Subject::Blob && caller.agent == Agent::DockerClassic);
    if hidden {
        absent(message, subject)
    } else {
        Verdict::new(status, ErrorCode::Unavailable, message.to_owned())
    }
}

/// "Not here" instead of the plain truth, which the message still tells.
fn absent(message: &str, subject: Subject) -> Verdict {
    Verdict::new(
        StatusCode::NOT_FOUND,
        subject.absent_code(),
        format!("{} not available here: {message}", subject.noun()),
    )
}

fn judge_route(error: RouteError) -> Verdict {
    let bad = |code, message| Verdict::new(StatusCode::BAD_REQUEST, code, message);
    match error {
        RouteError::NotFound => Verdict::new(
            StatusCode::NOT_FOUND,
            ErrorCode::Unknown,
            "no such path; the API lives below /v2/",
        ),
        RouteError::NotObserved => Verdict::new(
            StatusCode::NOT_FOUND,
            ErrorCode::Unknown,
            "no such path; here are /metrics, /livez and /readyz, clients pull from the other port",
        ),
        RouteError::Host => bad(ErrorCode::Unknown, "want exactly one Host header"),
        RouteError::Method => {
            let mut verdict = Verdict::new(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorCode::Unsupported,
                "this is a pull-through cache: only GET and HEAD exist, push to the upstream registry",
            );
            verdict.allow = true;
            verdict
        }
        RouteError::TooLong | RouteError::QueryTooLong => {
            Verdict::new(StatusCode::URI_TOO_LONG, ErrorCode::NameInvalid, "path or query too long")
        }
        RouteError::Malformed => bad(ErrorCode::NameInvalid, "bad encoding in path or query"),
        RouteError::Name => bad(
            ErrorCode::NameInvalid,
            "not a repository name: want lower-case path components, at most 255 bytes",
        ),
        RouteError::Tag => {
            bad(ErrorCode::TagInvalid, "not a tag: want [A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
        }
        RouteError::Digest => bad(
            ErrorCode::DigestInvalid,
            "not a digest: want sha256:<64 lower-case hex digits> or sha512:<128>",
        ),
        RouteError::Page => bad(ErrorCode::PaginationNumberInvalid, "n is not a number"),
    }
}

fn judge_range(error: RangeError, size: Option<u64>) -> Verdict {
    let status = match error {
        RangeError::Unsatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        // Lazy pullers halve their list, or ask for one range, on a 400.
        RangeError::TooMany | RangeError::Malformed => StatusCode::BAD_REQUEST,
    };
    let mut verdict = Verdict::new(status, ErrorCode::RangeInvalid, error.to_string());
    verdict.size = size.filter(|_| error == RangeError::Unsatisfiable);
    verdict
}

/// If `head` is the head of an answer that hyper made by itself, the answer to send in its place.
pub(super) fn wire_refusal(head: &[u8]) -> Option<Bytes> {
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5))?;
    let status = StatusCode::from_bytes(status).ok().filter(|status| status.is_client_error())?;
    Some(wire_answer(status))
}

/// A whole answer to something that never became a request, after which the connection ends.
pub(super) fn wire_answer(status: StatusCode) -> Bytes {
    let message = match status {
        StatusCode::URI_TOO_LONG => "path or query too long",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "the headers are too large",
        StatusCode::REQUEST_TIMEOUT => "the headers did not come in time",
        StatusCode::SERVICE_UNAVAILABLE => "too many connections; try again in a moment",
        _ => "not an HTTP/1.1 request; this port speaks plain HTTP, without TLS",
    };
    let code = match status {
        StatusCode::SERVICE_UNAVAILABLE => ErrorCode::Unavailable,
        _ => ErrorCode::Unknown,
    };
    let body = error_body(code, message, &serde_json::Value::Null);
    let mut answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\ndocker-distribution-api-version: registry/2.0\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error"),
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(&body);
    answer.into()
}

/// What a connection gets for which there is no place.
pub(super) const NO_PLACE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
/// What a connection gets that sent something which is not HTTP/1.
pub(super) const NOT_HTTP: StatusCode = StatusCode::BAD_REQUEST;

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
