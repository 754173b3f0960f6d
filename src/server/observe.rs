//! The observability port: `/livez`, `/readyz` and `/metrics`, read-only.
//!
//! Live means that the process answers; ready means that it can serve: an upstream that is down or a full disk changes neither.

use http::request::Parts;
use http::{HeaderValue, Method, Response};

use super::body::Payload;
use super::caller::{Agent, Caller};
use super::dispatch::{Refused, refuse};
use super::headers;
use super::metrics::Kind;
use super::record::Record;
use super::reply::{self, Problem, Subject};
use super::route::{Health, RouteError};
use super::service::Service;
use crate::registry::Outcome;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Answers a request to the observability port.
pub(super) fn answer(service: &Service, parts: &Parts, record: &mut Record) -> Response<Payload> {
    let route = if parts.method != Method::GET && parts.method != Method::HEAD {
        Err(RouteError::Method)
    } else {
        match parts.uri.path() {
            "/livez" | "/healthz" => Ok((Kind::Health, health(service, Health::Live))),
            "/readyz" => Ok((Kind::Health, health(service, Health::Ready))),
            "/metrics" => Ok((Kind::Metrics, metrics(service))),
            _ => Err(RouteError::NotObserved),
        }
    };
    match route {
        Ok((kind, response)) => {
            record.asked(kind, None);
            record.answered(response.status(), Outcome::Hit, None);
            response
        }
        Err(error) => {
            record.strange(parts.uri.path());
            let caller = Caller { agent: Agent::Other, has_fallback: false };
            refuse(&Refused::from(Problem::Route(error)), Subject::Other, caller, record)
        }
    }
}

/// Health, on either port.
pub(super) fn health(service: &Service, health: Health) -> Response<Payload> {
    let ready = health == Health::Live || service.is_ready();
    let mut response = text(if ready { "ok\n" } else { "not ready\n" }.to_owned(), TEXT);
    *response.status_mut() = if ready { reply::OK } else { reply::NOT_READY };
    response
}

fn metrics(service: &Service) -> Response<Payload> {
    text(service.metrics_page(), OPEN_METRICS)
}

fn text(text: String, content_type: HeaderValue) -> Response<Payload> {
    let mut response = Response::new(Payload::Bytes(text.into()));
    *response.status_mut() = reply::OK;
    let length = response.body().length();
    headers::describe(response.headers_mut(), content_type, length);
    response
}
