//! The requests of the admin API and their answers (docs/admin-api.md).

use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::accept::Guest;
use super::body::Body;
use super::gate::{self, Gate, Shut};
use super::routes::{self, Asked, Kind, ROOT, Unread};
use super::upload::Upload;
use crate::carry::Carry;
use crate::registry::desk::{self, Desk};
use crate::server::reply::{self, admin as status};
use crate::upkeep::{Busy, Job, JobKind, Upkeep};

/// The number in the path: it changes when answers change in a way that breaks programs.
const VERSION: u32 = 1;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"roadstead\"");
/// The description of all this (OpenAPI 3.1), held against the routes by a test.
pub(super) const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// Every word that a refusal may have.
#[cfg(test)]
const REASONS: [&str; 27] = [
    "host",
    "origin",
    "token",
    "no_such_path",
    "method",
    "query",
    "busy",
    "image",
    "scope",
    "digest",
    "value",
    "unknown_registry",
    "unknown_image",
    "absent",
    "unknown_digest",
    "unknown_rule",
    "held",
    "offline",
    "too_many_rules",
    "incomplete",
    "bundle",
    "list",
    "set",
    "set_exists",
    "too_many_sets",
    "room",
    "store",
];

/// The handlers, and what they work on. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Admin {
    upkeep: Upkeep,
    desk: Desk,
    carry: Carry,
    /// On a TCP connection: what a request needs, and the address that it came to.
    gate: Option<(Arc<Gate>, IpAddr)>,
    /// Whose connection it is, until he is let in.
    guest: Option<Arc<Guest>>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Shut(Shut),
    Unread(Unread),
    Desk(desk::Error),
    Busy(Busy),
}

impl Admin {
    /// For the owner of the data: the unix socket, or a command on a stopped store.
    pub fn new(upkeep: Upkeep, desk: Desk, carry: Carry) -> Self {
        Self { upkeep, desk, carry, gate: None, guest: None }
    }

    /// The same for a connection that came over TCP to the address `local`.
    pub(super) fn behind(&self, gate: &Arc<Gate>, local: IpAddr) -> Self {
        Self { gate: Some((Arc::clone(gate), local)), ..self.clone() }
    }

    /// The same for a connection that may lose its place until its request was let in.
    pub(super) fn for_guest(self, guest: Guest) -> Self {
        Self { guest: Some(Arc::new(guest)), ..self }
    }

    /// Answers one request. Its body is read only where the route has one.
    pub(super) async fn answer(&self, parts: &Parts, body: Upload) -> Response<Body> {
        match self.try_answer(parts, body).await {
            Ok(response) => response,
            Err(refused) => refused.response(),
        }
    }

    async fn try_answer(&self, parts: &Parts, body: Upload) -> Result<Response<Body>, Refused> {
        match &self.gate {
            Some((gate, local)) => gate.admits(parts, *local).map_err(Refused::Shut)?,
            // A unix socket has no origin: whoever sends one is a browser that was led here.
            None if gate::is_of_a_page(&parts.headers) => return Err(Refused::Shut(Shut::Origin)),
            None => {}
        }
        if let Some(guest) = &self.guest
            && !guest.let_in()
        {
            // The connection ends at once, so nothing is begun.
            pending::<()>().await;
        }
        let (method, path) = (parts.method.as_str(), parts.uri.path());
        let asked = routes::read(method, path, parts.uri.query().unwrap_or_default());
        let asked = asked.map_err(Refused::Unread)?;
        // Without the parameters: a reason or a name is nobody's business but the store's.
        tracing::info!(method, path, "a request to the admin API");
        match asked {
            Asked::Carry(order) => self.carry(order, body).await,
            asked => {
                body.refuse();
                self.handle(asked).await
            }
        }
    }

    async fn handle(&self, asked: Asked) -> Result<Response<Body>, Refused> {
        let desk = &self.desk;
        Ok(match asked {
            Asked::Carry(_) => return Err(Refused::Unread(Unread::NoSuchPath)),
            Asked::About => {
                let version = env!("CARGO_PKG_VERSION");
                let pid = std::process::id();
                whole(
                    &json!({ "name": "roadstead", "version": version, "api": VERSION, "pid": pid }),
                )
            }
            Asked::OpenApi => {
                with(reply::OK, JSON, Body::whole(Bytes::from_static(OPENAPI.as_bytes())))
            }
            Asked::Images { within, after, limit } => {
                whole(&desk.images(within.as_deref(), after.as_deref(), limit).await?)
            }
            Asked::Inspect { image } => whole(&desk.inspect(&image).await?),
            Asked::History { image, before, limit } => {
                whole(&desk.history(&image, before, limit).await?)
            }
            Asked::Explain { image } => whole(&desk.explain(&image).await?),
            Asked::Locked { images } => whole(&json!({ "images": desk.locked(&images).await? })),
            Asked::Usage => whole(&desk.usage().await?),
            Asked::Rules(Kind::Pin) => whole(&json!({ "rules": desk.pins() })),
            Asked::Rules(Kind::Freeze) => whole(&json!({ "rules": desk.freezes() })),
            Asked::AddRule { kind, scope, until, reason } => whole(&match kind {
                Kind::Pin => desk.pin(&scope, until, &reason).await?,
                Kind::Freeze => desk.freeze(&scope, until, &reason).await?,
            }),
            Asked::RemoveRule { kind, which } => {
                let removed = match kind {
                    Kind::Pin => desk.unpin(&which).await?,
                    Kind::Freeze => desk.unfreeze(&which).await?,
                };
                whole(&json!({ "removed": removed }))
            }
            Asked::DeleteImage { image, force } => whole(&desk.delete_image(&image, force).await?),
            Asked::DeleteBlob { digest, force } => whole(&desk.delete_blob(&digest, force).await?),
            Asked::Refresh { image } => whole(&desk.refresh(&image).await?),
            Asked::Verify { repair: false } => self.begin(JobKind::Verify).await?,
            Asked::Verify { repair: true } => self.begin(JobKind::Repair).await?,
            Asked::Reindex => self.begin(JobKind::Reindex).await?,
            Asked::Collect { dry_run: false } => self.begin(JobKind::Gc).await?,
            Asked::Collect { dry_run: true } => self.begin(JobKind::GcDryRun).await?,
            Asked::Purge { within, extent } => {
                let within = desk.known_within(&within, extent).await?;
                story(self.upkeep.purge(within).await)?
            }
        })
    }

    /// Images as wholes.
    pub(super) fn images(&self) -> &Carry {
        &self.carry
    }

    pub(super) fn is_behind_a_gate(&self) -> bool {
        self.gate.is_some()
    }

    async fn begin(&self, kind: JobKind) -> Result<Response<Body>, Refused> {
        story(self.upkeep.begin(kind).await)
    }
}

impl From<desk::Error> for Refused {
    fn from(error: desk::Error) -> Self {
        Self::Desk(error)
    }
}

impl Refused {
    fn reason(&self) -> &'static str {
        // A new word also goes into `REASONS`, by which the documentation is checked.
        match self {
            Self::Shut(Shut::Host) => "host",
            Self::Shut(Shut::Origin) => "origin",
            Self::Shut(Shut::NoToken | Shut::WrongToken) => "token",
            Self::Unread(Unread::NoSuchPath) => "no_such_path",
            Self::Unread(Unread::Method(_)) => "method",
            Self::Unread(Unread::Query(_)) => "query",
            Self::Desk(error) => error.reason.as_str(),
            Self::Busy(_) => "busy",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Shut(Shut::Host | Shut::Origin) => status::FORBIDDEN,
            Self::Shut(Shut::NoToken | Shut::WrongToken) => status::UNAUTHORIZED,
            Self::Unread(Unread::NoSuchPath) => status::NOT_FOUND,
            Self::Unread(Unread::Method(_)) => status::NOT_ALLOWED,
            Self::Unread(Unread::Query(_)) => status::BAD_REQUEST,
            Self::Desk(error) => status::of(error.reason),
            Self::Busy(_) => status::BUSY,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Shut(Shut::Host) => "the Host header names neither localhost, nor the address of this listener, nor a name of `admin_hosts`".to_owned(),
            Self::Shut(Shut::Origin) => {
                "requests with an Origin header are refused: this is no API for web pages".to_owned()
            }
            Self::Shut(Shut::NoToken) => {
                "want Authorization: Bearer and the token in the file admin-token in the data directory".to_owned()
            }
            Self::Shut(Shut::WrongToken) => {
                "the token is not the one in the file admin-token in the data directory".to_owned()
            }
            Self::Unread(Unread::NoSuchPath) => {
                format!("no such path; the API lives below {ROOT}/, and {ROOT}/openapi.json describes it")
            }
            Self::Unread(Unread::Method(allowed)) => format!("the method here is {allowed}"),
            Self::Unread(Unread::Query(message)) => message.clone(),
            Self::Desk(error) => error.message.clone(),
            Self::Busy(busy) => busy.to_string(),
        }
    }

    fn response(&self) -> Response<Body> {
        let mut error = json!({ "reason": self.reason(), "message": self.message() });
        if let Self::Desk(desk::Error { holds, .. }) = self
            && !holds.is_empty()
        {
            error["holds"] = json!(holds);
        }
        let mut response = json_of(self.status(), &json!({ "error": error }));
        match self {
            Self::Unread(Unread::Method(allowed)) => {
                let allowed = HeaderValue::from_str(allowed);
                let allowed = allowed.expect("the table's methods are plain words");
                response.headers_mut().insert(ALLOW, allowed);
            }
            Self::Shut(Shut::NoToken | Shut::WrongToken) => {
                response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
            }
            _ => {}
        }
        response
    }
}

fn story(job: Result<Job, Busy>) -> Result<Response<Body>, Refused> {
    let job = job.map_err(Refused::Busy)?;
    Ok(with(reply::OK, JSON_LINES, Body::story(job)))
}

pub(super) fn whole(value: &impl Serialize) -> Response<Body> {
    json_of(reply::OK, value)
}

fn json_of(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).expect("answers are plain data with text keys");
    text.push(b'\n');
    with(code, JSON, Body::whole(Bytes::from(text)))
}

pub(super) fn with(code: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod openapi_tests;
