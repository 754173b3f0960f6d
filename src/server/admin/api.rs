//! The requests of the admin API and their answers (docs/admin-api.md).

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;
use crate::server::reply::{self, admin as status};
use crate::upkeep::{Busy, JobKind, Upkeep};

/// The number in the path: it changes when answers change in a way that breaks programs.
const VERSION: u32 = 1;
const ROOT: &str = "/api/v1";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// The handlers, and what they work on. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Admin {
    upkeep: Upkeep,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    About,
    Begin(JobKind),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refused {
    Origin,
    NoSuchPath,
    Method { allowed: &'static str },
    Query(String),
    Busy(Busy),
}

impl Admin {
    pub fn new(upkeep: Upkeep) -> Self {
        Self { upkeep }
    }

    /// Answers one request; its body was not read, and never is.
    pub(super) async fn answer(&self, parts: &Parts) -> Response<Body> {
        let asked = match read(parts) {
            Ok(asked) => asked,
            Err(refused) => return refused.response(),
        };
        tracing::info!(method = %parts.method, path = parts.uri.path(), "a request to the admin API");
        match asked {
            Asked::About => {
                let version = env!("CARGO_PKG_VERSION");
                let pid = std::process::id();
                let about =
                    json!({ "name": "roadstead", "version": version, "api": VERSION, "pid": pid });
                whole(reply::OK, &about)
            }
            Asked::Begin(kind) => match self.upkeep.begin(kind).await {
                Ok(job) => with(reply::OK, JSON_LINES, Body::story(job)),
                Err(busy) => Refused::Busy(busy).response(),
            },
        }
    }
}

/// Reads what a request asks; touches nothing.
fn read(parts: &Parts) -> Result<Asked, Refused> {
    // A unix socket has no host and no origin: whoever sends one is a browser that was led here.
    if parts.headers.contains_key(ORIGIN) {
        return Err(Refused::Origin);
    }
    let query = parts.uri.query().unwrap_or_default();
    let path = parts.uri.path().strip_prefix(ROOT).ok_or(Refused::NoSuchPath)?;
    let (allowed, asked) = match path {
        "" | "/" => ("GET, HEAD", none(query).map(|()| Asked::About)),
        "/verify" => (
            "POST",
            flag(query, "repair")
                .map(|repair| Asked::Begin(if repair { JobKind::Repair } else { JobKind::Verify })),
        ),
        "/reindex" => ("POST", none(query).map(|()| Asked::Begin(JobKind::Reindex))),
        _ => return Err(Refused::NoSuchPath),
    };
    if !allowed.split(", ").any(|method| parts.method.as_str() == method) {
        return Err(Refused::Method { allowed });
    }
    asked
}

/// A query without parameters.
fn none(query: &str) -> Result<(), Refused> {
    if query.is_empty() { Ok(()) } else { Err(Refused::Query(unknown(query))) }
}

/// A query of at most one parameter, which is `true` or `false`; what is misspelt is refused, because it would mean "no".
fn flag(query: &str, name: &str) -> Result<bool, Refused> {
    let value = match query.split_once('=') {
        _ if query.is_empty() => return Ok(false),
        Some((found, value)) if found == name => value,
        _ => return Err(Refused::Query(unknown(query))),
    };
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Refused::Query(format!("{name} is true or false"))),
    }
}

fn unknown(query: &str) -> String {
    format!("{query:?} is no parameter here")
}

impl Refused {
    fn response(&self) -> Response<Body> {
        let (code, reason, message) = match self {
            Self::Origin => (
                status::FORBIDDEN,
                "origin",
                "requests with an Origin header are refused: this is no API for web pages"
                    .to_owned(),
            ),
            Self::NoSuchPath => (
                status::NOT_FOUND,
                "no_such_path",
                format!("no such path; the API lives below {ROOT}/"),
            ),
            Self::Method { allowed } => {
                (status::NOT_ALLOWED, "method", format!("the method here is {allowed}"))
            }
            Self::Query(message) => (status::BAD_REQUEST, "query", message.clone()),
            Self::Busy(busy) => (status::BUSY, "busy", busy.to_string()),
        };
        let mut response =
            whole(code, &json!({ "error": { "reason": reason, "message": message } }));
        if let Self::Method { allowed } = self {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

fn whole(code: StatusCode, value: &Value) -> Response<Body> {
    let mut text = value.to_string();
    text.push('\n');
    with(code, JSON, Body::whole(Bytes::from(text)))
}

fn with(code: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, uri: &str) -> Result<Asked, Refused> {
        let (parts, ()) =
            http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
        read(&parts)
    }

    #[test]
    fn every_path_has_its_method_and_its_parameters() {
        assert_eq!(asked("GET", "/api/v1/"), Ok(Asked::About));
        assert_eq!(asked("HEAD", "/api/v1"), Ok(Asked::About));
        for (uri, kind) in [
            ("/api/v1/verify", JobKind::Verify),
            ("/api/v1/verify?repair=false", JobKind::Verify),
            ("/api/v1/verify?repair=true", JobKind::Repair),
            ("/api/v1/reindex", JobKind::Reindex),
        ] {
            assert_eq!(asked("POST", uri), Ok(Asked::Begin(kind)), "{uri}");
            assert_eq!(asked("GET", uri), Err(Refused::Method { allowed: "POST" }), "{uri}");
        }
        for uri in
            ["/", "/v2/", "/api/v2/verify", "/api/v1verify", "/api/v1/verify/", "/api/v1//reindex"]
        {
            assert_eq!(asked("POST", uri), Err(Refused::NoSuchPath), "{uri}");
        }
        for uri in [
            "/api/v1/verify?repair",
            "/api/v1/verify?repair=",
            "/api/v1/verify?repair=yes",
            "/api/v1/verify?repair=true&repair=false",
            "/api/v1/verify?repiar=true",
            "/api/v1/reindex?repair=true",
        ] {
            assert!(matches!(asked("POST", uri), Err(Refused::Query(_))), "{uri}");
        }
    }

    #[test]
    fn a_page_of_a_browser_does_not_get_through() {
        let request = http::Request::post("/api/v1/verify").header(ORIGIN, "null");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(read(&parts), Err(Refused::Origin));
        assert_eq!(Refused::Origin.response().status(), status::FORBIDDEN);
    }
}
