//! One request: read what it asks, ask the registry within the time that the client will wait, and turn the answer into a response.
//!
//! Every way out passes through `finish`, so that the request id, the record and the closing of a connection with unread bytes
//! cannot be forgotten. A body that comes with a request is never read: the answer closes the connection (no request smuggling).

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ALLOW, CONNECTION, HeaderValue, RANGE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, Method, Response, Version};
use hyper::body::{Body as _, Incoming};

use super::access::What;
use super::body::{Body, Payload};
use super::caller::{Agent, Caller};
use super::connection::Connection;
use super::metrics::Kind;
use super::record::Record;
use super::reply::{self, Problem, Subject};
use super::route::{self, Asked, Health, PageAsked, Route, RouteError};
use super::service::Service;
use super::settings::{Fallback, Limits};
use super::{headers, hot, observe, v2};
use crate::carry::Recorder;
use crate::oci::{RangeError, Reference, RegistryName};
use crate::registry::{Addressing, Error, Outcome, Refusal, Registry, Removal, Report, Repository};

/// The connection that a request came through.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) client: IpAddr,
    pub(super) plane: Plane,
    pub(super) connection: Arc<Connection>,
}

/// Which face a listener shows.
#[derive(Clone, Debug)]
pub(super) enum Plane {
    /// The data plane, perhaps of one upstream.
    Data { upstream: Option<RegistryName> },
    /// Health and metrics.
    Observe,
}

/// What the handlers of resources see of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange<'a> {
    pub(super) registry: &'a Registry,
    pub(super) recorder: &'a Recorder,
    pub(super) client: IpAddr,
    pub(super) limits: &'a Limits,
    pub(super) headers: &'a HeaderMap,
    pub(super) head: bool,
    /// The path as it came.
    pub(super) path: &'a str,
    pub(super) ns: Option<&'a str>,
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Answered {
    response: Response<Payload>,
    report: Report,
}

/// No answer.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) problem: Problem,
    pub(super) report: Option<Report>,
}

impl Answered {
    pub(super) fn new(response: Response<Payload>, report: Report) -> Self {
        Self { response, report }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem, report: None }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { problem: Problem::Registry(refusal.error), report: Some(refusal.report) }
    }
}

/// The answer to one request. Most are ready as soon as they are asked for; the others' long way is boxed, because hyper moves what it
/// is given, and keeps a place of that size for each connection.
#[must_use]
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and is moved once")]
pub(super) enum Answer<'a> {
    Ready(Option<Response<Body>>),
    Coming(Pin<Box<dyn Future<Output = Response<Body>> + Send + 'a>>),
}

impl Future for Answer<'_> {
    type Output = Response<Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ready(response) => {
                Poll::Ready(response.take().expect("nobody polls a future after its end"))
            }
            Self::Coming(future) => future.as_mut().poll(cx),
        }
    }
}

/// Answers one request. Dropped by hyper when the connection ends before there is an answer; the record is written then too.
pub(super) fn dispatch<'a>(
    service: &'a Service,
    link: &'a Link,
    request: http::Request<Incoming>,
) -> Answer<'a> {
    let in_flight = link.connection.begin();
    let (parts, body) = request.into_parts();
    // What follows a CONNECT was meant for a tunnel.
    let unread = !body.is_end_stream() || parts.method == Method::CONNECT;
    drop(body);
    let head = parts.method == Method::HEAD;
    let mut record = Box::new(Record::begin(
        Arc::clone(service.ledger()),
        link.client,
        parts.method.clone(),
        service.next_id(),
    ));
    let finish = move |mut response: Response<Payload>, mut record: Box<Record>| {
        if unread {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().insert(headers::REQUEST_ID, headers::value(record.id()));
        response.map(|payload| {
            let payload = headers::for_head(payload, head);
            if !matches!(payload, Payload::Parts(_)) || payload.length() == 0 {
                record.in_memory(payload.length());
            }
            Body::new(payload, Some(record), Some(in_flight))
        })
    };
    let listener = match &link.plane {
        Plane::Observe => {
            let response = observe::answer(service, &parts, &mut record);
            return Answer::Ready(Some(finish(response, record)));
        }
        Plane::Data { upstream } => upstream.as_ref(),
    };
    if let Some(response) = hot::answer(service, link, listener, &parts, &mut record) {
        return Answer::Ready(Some(finish(response, record)));
    }
    Answer::Coming(Box::pin(async move {
        let response = data(service, link, listener, &parts, &mut record).await;
        finish(response, record)
    }))
}

/// A request to the data plane.
async fn data(
    service: &Service,
    link: &Link,
    listener: Option<&RegistryName>,
    parts: &Parts,
    record: &mut Record,
) -> Response<Payload> {
    let limits = service.limits();
    let raw = parts.uri.path();
    let path = route::decode_path(raw, limits);
    let asked = path
        .as_deref()
        .map_err(|error| *error)
        .and_then(|path| route::parse(&parts.method, path, parts.uri.query(), limits))
        .and_then(|asked| one_host(parts).map(|()| asked));
    if let Ok(Asked { route: Route::Health(health), .. }) = &asked {
        return self_report(service, *health, record);
    }
    let ns = asked.as_ref().ok().and_then(|asked| asked.ns.as_deref());
    let agent = Agent::of(&parts.headers, ns.is_some());
    let exchange = Exchange {
        registry: service.registry(),
        recorder: service.recorder(),
        client: link.client,
        limits,
        headers: &parts.headers,
        head: parts.method == Method::HEAD,
        path: raw,
        ns,
    };
    // What is known of the caller before its repository is found, and all that is ever known if none is.
    let mut caller = caller(service.fallback(), agent, ns.is_some(), None);
    let subject = asked.as_ref().map_or(Subject::Other, |asked| match asked.deletes {
        // Nothing of a deletion is hidden from clients that have another source: they ordered it here.
        true => Subject::Manifest,
        false => subject_of(&asked.route),
    });
    let outcome = match &asked {
        _ if !service.guard().admits(link.client) => Err(Problem::Forbidden(link.client).into()),
        Err(error) => Err(strange(*error, raw, record)),
        Ok(asked) => {
            note(&asked.route, record);
            match find(service, listener, parts, asked) {
                // Where nobody is known to allow it, nothing is deleted.
                Err(_) if asked.deletes => Err(Problem::Route(RouteError::Method).into()),
                Err(refused) => Err(refused),
                Ok(Found::Ping) => Ok(pong()),
                Ok(Found::Catalog(page)) => {
                    within(limits.answer, v2::catalog::list(&exchange, page)).await
                }
                Ok(Found::Repository(repository)) => {
                    record.located(repository.upstream(), repository.name());
                    caller =
                        self::caller(service.fallback(), agent, ns.is_some(), Some(&repository));
                    let time = budget(limits, agent, subject, &parts.headers);
                    if asked.deletes {
                        within(time, delete(&exchange, &repository, &asked.route)).await
                    } else {
                        within(time, read(&exchange, &repository, &asked.route)).await
                    }
                }
            }
        }
    };
    let mut response = match outcome {
        Ok(answered) => accept(answered, record),
        Err(refused) => refuse(&refused, subject, caller, record),
    };
    let fields = response.headers_mut();
    fields.insert(headers::API_VERSION, headers::API_VERSION_2);
    headers::namespace(fields, ns);
    response
}

/// What a route is about, once the registry has looked.
#[derive(Debug)]
enum Found<'a> {
    Ping,
    Catalog(&'a PageAsked),
    Repository(Repository),
}

/// Looks up what a route names; asks nobody outside.
fn find<'a>(
    service: &Service,
    listener: Option<&RegistryName>,
    parts: &Parts,
    asked: &'a Asked<'_>,
) -> Result<Found<'a>, Refused> {
    let registry = service.registry();
    let path = match &asked.route {
        Route::Ping { prefix } => return ping(registry, asked, *prefix, host(parts)),
        Route::Health(_) => return Err(Problem::Route(RouteError::NotFound).into()),
        _ if headers::is_loop(&parts.headers, service.instance_id()) => {
            let report = Report::of(None, Outcome::Error, Some("loop"));
            return Err(Refused { problem: Problem::Registry(Error::Loop), report: Some(report) });
        }
        Route::Catalog { page } => return Ok(Found::Catalog(page)),
        Route::Manifest { path, .. }
        | Route::TaggedManifest { path, .. }
        | Route::Blob { path, .. }
        | Route::Tags { path, .. }
        | Route::Referrers { path, .. } => path,
    };
    let via = headers::passed(&parts.headers);
    let addressing = Addressing {
        ns: asked.ns.as_deref(),
        path,
        mount: asked.mount,
        host: host(parts),
        listener,
        via: via.as_deref(),
    };
    Ok(Found::Repository(registry.locate(&addressing)?))
}

/// A request that is no route of ours.
fn strange(error: RouteError, path: &str, record: &mut Record) -> Refused {
    record.strange(path);
    Problem::Route(error).into()
}

/// Asks the registry for what a route names.
async fn read(
    exchange: &Exchange<'_>,
    repository: &Repository,
    route: &Route<'_>,
) -> Result<Answered, Refused> {
    match route {
        Route::Manifest { reference, .. } => {
            v2::manifests::get(exchange, repository, reference).await
        }
        Route::TaggedManifest { tag, digest, .. } => {
            v2::manifests::get_tagged(exchange, repository, tag, digest).await
        }
        Route::Blob { digest, .. } => v2::blobs::get(exchange, repository, digest).await,
        Route::Tags { page, .. } => v2::tags::list(exchange, repository, page).await,
        Route::Referrers { digest, artifact_type, .. } => {
            v2::referrers::list(exchange, repository, digest, artifact_type.as_deref()).await
        }
        Route::Health(_) | Route::Ping { .. } | Route::Catalog { .. } => {
            Err(Problem::Route(RouteError::NotFound).into())
        }
    }
}

/// Takes out what a route names.
async fn delete(
    exchange: &Exchange<'_>,
    repository: &Repository,
    route: &Route<'_>,
) -> Result<Answered, Refused> {
    let what = match route {
        Route::Manifest { reference: Reference::Tag(tag), .. } => Removal::Tag(tag),
        Route::Manifest { reference: Reference::Digest(digest), .. } => Removal::Revision(digest),
        Route::TaggedManifest { tag, digest, .. } => Removal::Link(tag, digest),
        _ => return Err(Problem::Route(RouteError::Method).into()),
    };
    v2::manifests::delete(exchange, repository, what).await
}

/// Waits for an answer as long as the client will. The work behind it is the registry's and goes on.
async fn within(
    time: Duration,
    answer: impl Future<Output = Result<Answered, Refused>>,
) -> Result<Answered, Refused> {
    match tokio::time::timeout(time, answer).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(Problem::Registry(Error::TimedOut).into()),
    }
}

/// How long this client waits for headers before it does something foolish.
fn budget(limits: &Limits, agent: Agent, subject: Subject, fields: &HeaderMap) -> Duration {
    let time = match agent {
        Agent::Soci => limits.answer_soci,
        Agent::Lazy if fields.contains_key(RANGE) => limits.answer_lazy,
        _ => limits.answer,
    };
    match subject {
        Subject::Referrers | Subject::ReferrersTag => time.min(limits.answer_referrers),
        _ => time,
    }
}

/// Has this client another source? `ns` is sent to mirrors only, and a `containers/` client has the upstream behind its mirrors.
fn caller(
    fallback: Fallback,
    agent: Agent,
    ns_given: bool,
    repository: Option<&Repository>,
) -> Caller {
    let has_fallback = match fallback {
        Fallback::None => false,
        Fallback::Clients => {
            ns_given
                || agent.is_mirror_client()
                || repository.is_some_and(Repository::client_has_fallback)
        }
    };
    Caller { agent, has_fallback }
}

/// With several `Host` fields, whoever stands before us may have looked at another one than we would; HTTP/1.1 demands one.
pub(super) fn one_host(parts: &Parts) -> Result<(), RouteError> {
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_second)) => Err(RouteError::Host),
        (None, None) if parts.version == Version::HTTP_11 => Err(RouteError::Host),
        _ => Ok(()),
    }
}

/// The host that the client believes to talk to (RFC 9112, 3.2.2: an absolute target wins over the field).
pub(super) fn host(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()),
    }
}

/// Is the registry that a ping names served here?
fn ping<'a>(
    registry: &Registry,
    asked: &Asked<'_>,
    prefix: Option<&str>,
    host: Option<&str>,
) -> Result<Found<'a>, Refused> {
    // Whoever tells a registry its own name has told it nothing.
    let ns = asked.ns.as_deref().filter(|ns| Some(*ns) != host);
    let path = prefix.unwrap_or_default();
    let named = Addressing { ns, path, mount: asked.mount, ..Addressing::default() };
    let Addressing { ns, path, mount, .. } = registry.pinged(&named).map_err(Problem::Registry)?;
    let prefix = Some(path).filter(|path| !path.is_empty());
    if [ns, prefix, mount].into_iter().flatten().all(|name| registry.knows(name)) {
        return Ok(Found::Ping);
    }
    // More than one component is no name of a registry, but a path that does not exist.
    if prefix.is_some_and(|prefix| prefix.contains('/')) {
        return Err(Problem::Route(RouteError::NotFound).into());
    }
    let name = prefix.or(ns).or(mount).unwrap_or_default().to_owned();
    Err(Problem::Registry(Error::UnknownRegistry { name }).into())
}

/// `/v2/` says that a registry is here, whatever the state of its upstream; podman and crane skip mirrors that say anything else.
fn pong() -> Answered {
    let mut response = Response::new(Payload::Bytes("{}".into()));
    *response.status_mut() = reply::OK;
    let length = response.body().length();
    headers::describe(response.headers_mut(), headers::JSON, length);
    Answered::new(response, own_report(Outcome::Hit))
}

/// Health on the data plane: anybody may ask, as probes come from anywhere.
fn self_report(service: &Service, health: Health, record: &mut Record) -> Response<Payload> {
    record.asked(Kind::Health, None);
    let response = observe::health(service, health);
    record.answered(response.status(), Outcome::Hit, None);
    response
}

fn own_report(outcome: Outcome) -> Report {
    Report {
        upstream: None,
        outcome,
        reason: None,
        ttl: None,
        stale_for: None,
        missing_children: 0,
    }
}

fn accept(answered: Answered, record: &mut Record) -> Response<Payload> {
    let Answered { mut response, report } = answered;
    headers::explain(response.headers_mut(), &report);
    record.reported(response.status(), &report);
    response
}

/// Turns a refusal into a response by the table.
pub(super) fn refuse(
    refused: &Refused,
    subject: Subject,
    caller: Caller,
    record: &mut Record,
) -> Response<Payload> {
    let verdict = reply::judge(&refused.problem, subject, caller);
    if let Some(limit) = limit_of(&refused.problem) {
        record.limit_reached(limit);
    }
    let reason =
        refused.report.as_ref().map_or(own_reason(&refused.problem), |report| report.reason);
    let payload = Payload::Bytes(verdict.body(record.id(), reason));
    let length = payload.length();
    let mut response = Response::new(payload);
    *response.status_mut() = verdict.status;
    let fields = response.headers_mut();
    headers::describe(fields, headers::JSON, length);
    if let Some(wait) = verdict.retry_after {
        fields.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    if let Some(size) = verdict.size {
        headers::content_range(fields, &format!("bytes */{size}"));
        headers::accept_ranges(fields);
    }
    if verdict.allow {
        fields.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    match &refused.report {
        Some(report) => {
            headers::explain(fields, report);
            record.reported(verdict.status, report);
        }
        None => record.answered(verdict.status, own_outcome(&refused.problem), reason),
    }
    // A range that cannot be satisfied is a refusal, however the blob itself was found.
    if matches!(refused.problem, Problem::Range { .. }) {
        record.answered(verdict.status, Outcome::Refused, own_reason(&refused.problem));
    }
    response
}

/// The limit that a request went beyond, by the name of its key.
fn limit_of(problem: &Problem) -> Option<&'static str> {
    match problem {
        Problem::Route(RouteError::TooLong) => Some("path_bytes"),
        Problem::Route(RouteError::QueryTooLong) => Some("query_bytes"),
        Problem::Range { error: RangeError::TooMany, .. } => Some("ranges"),
        Problem::Registry(Error::TimedOut) => Some("answer"),
        _ => None,
    }
}

/// The outcome of a refusal that the registry did not report on.
fn own_outcome(problem: &Problem) -> Outcome {
    match problem {
        Problem::Registry(
            Error::TimedOut | Error::Internal { .. } | Error::Unreachable { .. } | Error::Loop,
        ) => Outcome::Error,
        Problem::Registry(_)
        | Problem::Route(_)
        | Problem::Range { .. }
        | Problem::DeletionOff(_)
        | Problem::Forbidden(_) => Outcome::Refused,
    }
}

/// The same for the reason.
fn own_reason(problem: &Problem) -> Option<&'static str> {
    Some(match problem {
        Problem::Registry(Error::TimedOut) => "timed_out",
        Problem::Registry(Error::Loop) => "loop",
        Problem::Registry(Error::UnknownRegistry { .. }) => "unknown_registry",
        Problem::Registry(_) => return None,
        Problem::Route(RouteError::Method) => "method",
        Problem::Route(RouteError::NotFound | RouteError::NotObserved) => "no_such_path",
        Problem::Route(_) => "malformed",
        Problem::Range { .. } => "range",
        Problem::DeletionOff(_) => "deletion_off",
        Problem::Forbidden(_) => "client_not_allowed",
    })
}

/// Fills the record with what was asked.
fn note(route: &Route<'_>, record: &mut Record) {
    match route {
        Route::Health(_) => record.asked(Kind::Health, None),
        Route::Ping { .. } => record.asked(Kind::Ping, None),
        Route::Catalog { .. } => record.asked(Kind::Catalog, None),
        Route::Manifest { reference, .. } => {
            record.asked(Kind::Manifest, Some(What::Reference(reference.clone())))
        }
        Route::TaggedManifest { tag, digest, .. } => {
            record.asked(Kind::Manifest, Some(What::Revision(tag.clone(), *digest)));
        }
        Route::Blob { digest, .. } => record.asked(Kind::Blob, Some(What::Digest(*digest))),
        Route::Tags { .. } => record.asked(Kind::Tags, None),
        Route::Referrers { digest, .. } => {
            record.asked(Kind::Referrers, Some(What::Digest(*digest)))
        }
    }
}

fn subject_of(route: &Route<'_>) -> Subject {
    match route {
        Route::Manifest { reference, .. } => Subject::of_reference(reference),
        Route::TaggedManifest { tag, .. } => Subject::of_reference(&Reference::Tag(tag.clone())),
        Route::Blob { .. } => Subject::Blob,
        Route::Tags { .. } => Subject::Tags,
        Route::Catalog { .. } => Subject::Catalog,
        Route::Referrers { .. } => Subject::Referrers,
        Route::Ping { .. } | Route::Health(_) => Subject::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_wait_as_long_as_they_say() {
        let limits = Limits::default();
        let mut ranged = HeaderMap::new();
        ranged.insert(RANGE, HeaderValue::from_static("bytes=0-1"));
        let plain = HeaderMap::new();
        assert_eq!(budget(&limits, Agent::Containerd, Subject::Blob, &ranged), limits.answer);
        assert_eq!(budget(&limits, Agent::Soci, Subject::Manifest, &plain), limits.answer_soci);
        assert_eq!(budget(&limits, Agent::Lazy, Subject::Blob, &ranged), limits.answer_lazy);
        assert_eq!(budget(&limits, Agent::Lazy, Subject::Blob, &plain), limits.answer);
        for subject in [Subject::Referrers, Subject::ReferrersTag] {
            assert_eq!(budget(&limits, Agent::Other, subject, &plain), limits.answer_referrers);
        }
    }

    #[test]
    fn the_fallback_is_told_from_the_request_unless_the_operator_says_none() {
        let has = |fallback, agent, ns| caller(fallback, agent, ns, None).has_fallback;
        assert!(has(Fallback::Clients, Agent::Other, true));
        assert!(has(Fallback::Clients, Agent::ContainersImage, false));
        assert!(!has(Fallback::Clients, Agent::DockerClassic, false));
        assert!(!has(Fallback::None, Agent::ContainersImage, true));
    }
}
