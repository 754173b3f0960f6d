//! What a refusal means: the table from status, right and body to a decision.
//!
//! Pure. What must hold: only the registry's own word makes [`Error::Absent`] or [`Error::Denied`]; a firewall's page, a store's XML, an
//! expired credential or a broken token service never do. Codes of error bodies are open-ended and never the only evidence.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::error::{Cause, Error};

/// How many codes and characters of an error body are kept.
const CODES_MAX: usize = 8;
const TEXT_BYTES_MAX: usize = 2048;
/// The reason in a roadstead's error body when its upstream said that there is no such thing.
const ABSENT_REASON: &str = "absent";

/// By what right the refused question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Without Authorization: upstream offered no way that we could go.
    Clean { has_credential: bool },
    /// With a token that was just issued.
    Token,
    /// With our user and password.
    Basic,
    /// With a token that the operator configured.
    Ready,
}

/// Who gave the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    /// The registry.
    Registry,
    /// A host that the registry redirected to.
    Elsewhere,
}

/// An error body, as far as it is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// A JSON object: a registry or its token service speaks.
    pub(super) json: bool,
    /// An HTML or XML page: something else speaks.
    pub(super) markup: bool,
    /// The upper-case codes of an OCI error body.
    pub(super) codes: Vec<String>,
    /// It says that something has expired.
    pub(super) expired: bool,
    /// A roadstead says that the registry behind it does not have it; it gives 404 for other reasons as well.
    pub(super) absent: bool,
}

/// One refused answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal<'a> {
    pub(super) status: StatusCode,
    pub(super) speaker: Speaker,
    pub(super) body: &'a ErrorBody,
    /// The `error` of a Bearer challenge.
    pub(super) challenge_error: Option<&'a str>,
    pub(super) retry_after: Option<Duration>,
}

impl ErrorBody {
    /// `html` is what the headers said.
    pub(super) fn read(html: bool, body: &[u8]) -> Self {
        let markup = html || body.trim_ascii_start().starts_with(b"<");
        let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_BYTES_MAX)]);
        let lower = text.to_ascii_lowercase();
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let reason = parsed.as_ref().and_then(|value| value.pointer("/errors/0/detail/reason"));
        let absent = reason.is_some_and(|reason| reason == ABSENT_REASON);
        let codes = parsed
            .as_ref()
            .and_then(|value| value.get("errors")?.as_array())
            .into_iter()
            .flatten()
            .take(CODES_MAX)
            .filter_map(|error| error.get("code")?.as_str())
            .map(str::to_ascii_uppercase)
            .collect();
        Self {
            json: parsed.is_some_and(|value| value.is_object()),
            markup,
            codes,
            expired: lower.contains("expired"),
            absent,
        }
    }

    /// Does a 400 complain about the question itself, so that another token would not help?
    pub(super) fn blames_the_question(&self) -> bool {
        const QUESTION: [&str; 7] = [
            "MANIFEST_INVALID",
            "MANIFEST_UNKNOWN",
            "NAME_INVALID",
            "TAG_INVALID",
            "DIGEST_INVALID",
            "PAGINATION_NUMBER_INVALID",
            "UNSUPPORTED",
        ];
        self.codes.iter().any(|code| QUESTION.contains(&code.as_str()))
    }
}

/// What a final answer that is no success means.
pub(super) fn refusal(refusal: &Refusal<'_>, standing: Standing) -> Error {
    let status = refusal.status;
    let trouble = Error::Unreachable(Cause::Status(status.as_u16()));
    match status.as_u16() {
        401 => unauthorised(refusal, standing),
        403 => forbidden(refusal, standing),
        404 | 410 if refusal.body.markup => trouble,
        // A store behind the registry that lost the object is in trouble; a registry behind the registry speaks JSON.
        404 | 410 if refusal.speaker == Speaker::Elsewhere && !refusal.body.json => trouble,
        404 | 410 => Error::Absent,
        429 => Error::Limited { retry_after: refusal.retry_after },
        451 => Error::Denied,
        508 => Error::Unreachable(Cause::Loop),
        300..=399 => Error::Junk("a redirect that leads nowhere"),
        _ => trouble,
    }
}

fn unauthorised(refusal: &Refusal<'_>, standing: Standing) -> Error {
    if refusal.speaker == Speaker::Elsewhere {
        return Error::Unreachable(Cause::Status(401));
    }
    match standing {
        // We came as nobody, and nobody is not let in: a decision.
        Standing::Clean { has_credential: false } => Error::Denied,
        Standing::Clean { has_credential: true } => {
            Error::credential("upstream offers no way of authentication that our credential fits")
        }
        Standing::Token if refusal.challenge_error == Some("invalid_token") => Error::credential(
            "upstream refuses the tokens of its own token service (is our clock right?)",
        ),
        Standing::Token => Error::Denied,
        Standing::Basic => Error::credential("upstream refuses our user and password"),
        Standing::Ready => Error::credential("upstream refuses the configured token"),
    }
}

fn forbidden(refusal: &Refusal<'_>, standing: Standing) -> Error {
    let body = refusal.body;
    if body.expired && !matches!(standing, Standing::Clean { has_credential: false }) {
        return Error::credential("upstream says that our credential has expired");
    }
    let unused = standing == Standing::Clean { has_credential: true };
    if unused && refusal.speaker == Speaker::Registry && body.json {
        return Error::credential("upstream denies us without asking for our credential");
    }
    let word_of_registry = match (refusal.speaker, standing) {
        (Speaker::Elsewhere, _) | (Speaker::Registry, Standing::Clean { .. }) => body.json,
        (Speaker::Registry, _) => true,
    };
    if word_of_registry && !body.markup {
        Error::Denied
    } else {
        Error::Unreachable(Cause::Status(403))
    }
}

/// What a token service's refusal means.
pub(super) fn token_refusal(
    status: StatusCode,
    body: &ErrorBody,
    retry_after: Option<Duration>,
    with_credential: bool,
) -> Error {
    match status.as_u16() {
        429 => Error::Limited { retry_after },
        401 | 403 if with_credential => Error::credential(format!(
            "the token service refuses our credential (status {})",
            status.as_u16()
        )),
        // GHCR and GitLab say so for what anonymity may not read.
        401 if !body.markup => Error::Denied,
        403 if body.json => Error::Denied,
        300..=399 => Error::credential("the token service sends us elsewhere"),
        other => Error::credential(format!("the token service failed (status {other})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str =
        r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    const ANONYMOUS: Standing = Standing::Clean { has_credential: false };

    fn verdict(status: u16, body: &str, standing: Standing) -> Error {
        spoken(status, body, standing, Speaker::Registry, None)
    }

    fn spoken(
        status: u16,
        body: &str,
        standing: Standing,
        speaker: Speaker,
        error: Option<&str>,
    ) -> Error {
        let body = ErrorBody::read(false, body.as_bytes());
        let what = Refusal {
            status: StatusCode::from_u16(status).unwrap(),
            speaker,
            body: &body,
            challenge_error: error,
            retry_after: None,
        };
        refusal(&what, standing)
    }

    fn status(status: u16) -> Error {
        Error::Unreachable(Cause::Status(status))
    }

    #[test]
    fn absence_is_the_registrys_word() {
        let bodies = [
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#,
            r#"{"errors":[{"code":"NOT_FOUND"}]}"#,
            r#"{"errors":[{"code":"404"}]}"#,
            r#"{"errors":[{"code":404}]}"#,
            "",
            "File not found.",
        ];
        for body in bodies {
            assert_eq!(verdict(404, body, Standing::Token), Error::Absent, "{body}");
        }
        assert_eq!(verdict(404, "<html>nginx</html>", ANONYMOUS), status(404));
        assert_eq!(spoken(404, "<Error/>", ANONYMOUS, Speaker::Elsewhere, None), status(404));
        assert_eq!(spoken(404, DENIED, ANONYMOUS, Speaker::Elsewhere, None), Error::Absent);
    }

    #[test]
    fn denial_needs_an_accepted_credential() {
        assert_eq!(verdict(401, DENIED, Standing::Token), Error::Denied);
        assert_eq!(verdict(401, "", ANONYMOUS), Error::Denied);
        assert!(matches!(verdict(401, DENIED, Standing::Basic), Error::Credential(_)));
        assert!(matches!(verdict(401, DENIED, Standing::Ready), Error::Credential(_)));
        let ours = Standing::Clean { has_credential: true };
        assert!(matches!(verdict(401, DENIED, ours), Error::Credential(_)));
        let refused = spoken(401, "", Standing::Token, Speaker::Registry, Some("invalid_token"));
        assert!(matches!(refused, Error::Credential(_)));
        let scope = spoken(401, "", Standing::Token, Speaker::Registry, Some("insufficient_scope"));
        assert_eq!(scope, Error::Denied);
        assert_eq!(spoken(401, "", Standing::Token, Speaker::Elsewhere, None), status(401));
    }

    #[test]
    fn a_firewalls_403_is_trouble() {
        assert_eq!(verdict(403, DENIED, ANONYMOUS), Error::Denied);
        assert_eq!(verdict(403, "blocked", ANONYMOUS), status(403));
        assert_eq!(verdict(403, "", ANONYMOUS), status(403));
        assert_eq!(verdict(403, "<html>blocked</html>", Standing::Token), status(403));
        assert_eq!(verdict(403, "", Standing::Token), Error::Denied);
        let unused = Standing::Clean { has_credential: true };
        assert!(matches!(verdict(403, DENIED, unused), Error::Credential(_)));
        assert_eq!(verdict(403, "", unused), status(403));
        assert_eq!(verdict(403, DENIED, Standing::Basic), Error::Denied);
        assert_eq!(spoken(403, "<Error/>", Standing::Token, Speaker::Elsewhere, None), status(403));
    }

    #[test]
    fn an_expired_credential_is_our_trouble() {
        let ecr = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
        assert!(matches!(verdict(403, ecr, Standing::Basic), Error::Credential(_)));
        assert_eq!(verdict(403, ecr, ANONYMOUS), Error::Denied);
    }

    #[test]
    fn the_rest_of_the_table() {
        assert_eq!(verdict(429, "", ANONYMOUS), Error::Limited { retry_after: None });
        for other in [400, 405, 406, 416, 500, 502, 503, 504] {
            assert_eq!(verdict(other, "", ANONYMOUS), status(other));
        }
        assert_eq!(verdict(508, "", ANONYMOUS), Error::Unreachable(Cause::Loop));
        assert_eq!(verdict(451, "", ANONYMOUS), Error::Denied);
        assert!(matches!(verdict(304, "", ANONYMOUS), Error::Junk(_)));
    }

    #[test]
    fn token_services_refuse_in_many_ways() {
        let of = |code: u16, text: &str, ours: bool| {
            let body = ErrorBody::read(false, text.as_bytes());
            token_refusal(StatusCode::from_u16(code).unwrap(), &body, None, ours)
        };
        assert_eq!(of(403, DENIED, false), Error::Denied);
        assert_eq!(
            of(401, r#"{"details":"incorrect username or password"}"#, false),
            Error::Denied
        );
        assert!(matches!(of(403, "<html>", false), Error::Credential(_)));
        for code in [400, 401, 403, 404, 405, 500, 503] {
            assert!(matches!(of(code, DENIED, true), Error::Credential(_)), "{code}");
        }
        assert_eq!(of(429, "", true), Error::Limited { retry_after: None });
        assert!(matches!(of(307, "", true), Error::Credential(_)));
    }

    #[test]
    fn bodies_of_every_kind_are_read() {
        let body = |text: &str| ErrorBody::read(false, text.as_bytes());
        assert_eq!(body(DENIED).codes, vec!["DENIED"]);
        assert!(body("{\"message\":\"x\"}").json && !body("true").json && !body("").json);
        assert!(body(" \n<?xml?>").markup && ErrorBody::read(true, b"x").markup);
        assert!(body(r#"{"errors":[{"code":"MANIFEST_INVALID"}]}"#).blames_the_question());
        assert!(!body("").blames_the_question() && !body(DENIED).blames_the_question());
    }
}
