//! A refused answer, and the challenge in it.
//!
//! Reading only; what to do about it is decided in `ask.rs`, what it means in `classify.rs`.

use std::time::Duration;

use http::StatusCode;
use reqwest::Url;

use super::ask::Failure;
use super::challenge::{self, Challenge, Scheme};
use super::classify::{self, ErrorBody, Refusal, Speaker, Standing};
use super::error::{Cause, Error};
use super::memory::{Bearer, Way};
use super::redirect;

/// A refused answer, read to its end.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) challenges: Vec<Challenge>,
    pub(super) body: ErrorBody,
    pub(super) retry_after: Option<Duration>,
    pub(super) speaker: Speaker,
    /// No redirect led to it.
    pub(super) direct: bool,
    /// It comes from another roadstead, which says 404 for many reasons and names the reason.
    pub(super) explained: bool,
}

/// What the question was, as far as a challenge is filled in from it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// A relative realm is resolved against it.
    pub(super) url: &'a Url,
    /// What a challenge without a scope means; its part before the actions tells our scope among several.
    pub(super) default_scope: &'a str,
}

impl Refused {
    /// Could another pass change this refusal? `clean` is that nothing was shown.
    pub(super) fn is_about_the_pass(&self, clean: bool) -> bool {
        if self.speaker == Speaker::Elsewhere {
            return false;
        }
        match self.status.as_u16() {
            401 | 403 => true,
            // ECR Public answers an expired token so.
            400 => !clean && !self.body.blames_the_question(),
            _ => false,
        }
    }

    pub(super) fn failure(&self, standing: Standing) -> Failure {
        let refusal = Refusal {
            status: self.status,
            speaker: self.speaker,
            body: &self.body,
            challenge_error: challenge::bearer(&self.challenges)
                .and_then(|challenge| challenge.error.as_deref()),
            retry_after: self.retry_after,
        };
        let error = match classify::refusal(&refusal, standing) {
            Error::Absent if self.explained && !self.body.absent => {
                Error::Unreachable(Cause::Status(self.status.as_u16()))
            }
            error => error,
        };
        tracing::debug!(
            status = self.status.as_u16(),
            codes = ?self.body.codes,
            reason = error.reason(),
            "upstream refused"
        );
        let elsewhere = self.speaker == Speaker::Elsewhere;
        Failure { status: Some(self.status), error, elsewhere }
    }

    /// The Bearer that a refusal of a token asks for; only to be compared, never remembered.
    pub(super) fn demand(&self, asked: Asked<'_>) -> Option<Bearer> {
        bearer_of(challenge::bearer(&self.challenges)?, asked)
    }

    /// The way in that the registry itself names.
    pub(super) fn way(&self, asked: Asked<'_>) -> Option<Way> {
        match self.speaker {
            Speaker::Registry => way_of(&self.challenges, asked),
            Speaker::Elsewhere => None,
        }
    }
}

/// The challenge to answer, made ready for the token service.
pub(super) fn way_of(challenges: &[Challenge], asked: Asked<'_>) -> Option<Way> {
    let chosen = challenge::choose(challenges)?;
    match chosen.scheme {
        Scheme::Basic => Some(Way::Basic),
        Scheme::Bearer => bearer_of(chosen, asked).map(Way::Bearer),
        Scheme::Other => None,
    }
}

/// Resolves the realm and fills in the scope. Of several scopes the one for the repository is asked: some token services fail on more
/// than one.
fn bearer_of(challenge: &Challenge, asked: Asked<'_>) -> Option<Bearer> {
    let mut realm = asked.url.join(challenge.realm.as_deref()?.trim()).ok()?;
    if !matches!(realm.scheme(), "http" | "https") || !realm.has_host() {
        return None;
    }
    redirect::strip(&mut realm);
    let default = asked.default_scope;
    let scope = challenge.scope.as_deref().unwrap_or(default).trim();
    let repository = default.rsplit_once(':').map_or(default, |(head, _actions)| head);
    let own = scope.split_ascii_whitespace().find(|scope| {
        scope.strip_prefix(repository).is_some_and(|actions| actions.starts_with(':'))
    });
    Some(Bearer {
        realm,
        service: challenge.service.clone(),
        scope: own.unwrap_or(scope).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use http::header::WWW_AUTHENTICATE;
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn bearer(line: &'static str) -> Option<Bearer> {
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(line));
        let asked = Asked {
            url: &"https://r.example/v2/a/b/manifests/x".parse().unwrap(),
            default_scope: "repository:a/b:pull",
        };
        match way_of(&challenge::parse(&headers), asked) {
            Some(Way::Bearer(bearer)) => Some(bearer),
            _ => None,
        }
    }

    #[test]
    fn realms_are_resolved_and_stripped() {
        let realm = |line| bearer(line).map(|bearer| bearer.realm.to_string());
        let relative = realm(r#"Bearer realm="/v2/token""#);
        assert_eq!(relative.as_deref(), Some("https://r.example/v2/token"));
        let decorated = realm(r#"Bearer realm="https://u:p@a.example/t?x=1#f""#);
        assert_eq!(decorated.as_deref(), Some("https://a.example/t?x=1"));
        assert_eq!(realm(r#"Bearer realm="ftp://a.example/""#), None);
        assert_eq!(realm(r#"Bearer realm="data:x""#), None);
    }

    #[test]
    fn the_challenges_scope_wins_and_one_is_asked() {
        let scope = |line| bearer(line).map(|bearer| bearer.scope).unwrap();
        let cases = [
            (r#"Bearer realm="/t""#, "repository:a/b:pull"),
            (r#"Bearer realm="/t",scope="*""#, "*"),
            (r#"Bearer realm="/t",scope="repository:b:pull""#, "repository:b:pull"),
            (
                r#"Bearer realm="/t",scope="repository:x:pull repository:a/b:pull,push""#,
                "repository:a/b:pull,push",
            ),
            (
                r#"Bearer realm="/t",scope="repository:x:pull repository:a/bc:pull""#,
                "repository:x:pull repository:a/bc:pull",
            ),
        ];
        for (line, want) in cases {
            assert_eq!(scope(line), want, "{line}");
        }
    }
}
