//! The one table of what can be asked: path, method, parameters, and how they are read.
//!
//! Reading touches nothing. `docs/openapi.json` describes the same table; a test holds them against each other.

use super::images::{self, Order};
use super::query::{Query, Read};
use crate::registry::desk::{Extent, LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX, Until, Which};

/// Below this live all paths.
pub(super) const ROOT: &str = "/api/v1";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    About,
    OpenApi,
    Images { within: Option<String>, after: Option<String>, limit: u32 },
    Inspect { image: String },
    History { image: String, before: Option<i64>, limit: u32 },
    Explain { image: String },
    Locked { images: Vec<String> },
    Usage,
    Rules(Kind),
    AddRule { kind: Kind, scope: String, until: Until, reason: String },
    RemoveRule { kind: Kind, which: Which },
    DeleteImage { image: String, force: bool },
    DeleteBlob { digest: String, force: bool },
    Refresh { image: String },
    Verify { repair: bool },
    Reindex,
    Purge { within: String, extent: Option<Extent> },
    Collect { dry_run: bool },
    Carry(Order),
}

/// Which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pin,
    Freeze,
}

/// One thing that can be asked.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static str,
    /// Below [`ROOT`].
    pub(super) path: &'static str,
    pub(super) parameters: &'static [&'static str],
    pub(super) read: fn(&mut Query) -> Read<Asked>,
}

pub(super) const fn route(
    method: &'static str,
    path: &'static str,
    parameters: &'static [&'static str],
    read: fn(&mut Query) -> Read<Asked>,
) -> Route {
    Route { method, path, parameters, read }
}

const RULE_PARAMETERS: &[&str] = &["scope", "until", "for", "reason"];

/// A table is read by its lines, so each route keeps one.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    route("GET", "/", &[], |_| Ok(Asked::About)),
    route("GET", "/openapi.json", &[], |_| Ok(Asked::OpenApi)),
    route("GET", "/images", &["within", "after", "limit"], images),
    route("GET", "/inspect", &["image"], |q| Ok(Asked::Inspect { image: q.required("image")? })),
    route("GET", "/history", &["image", "before", "limit"], history),
    route("GET", "/explain", &["image"], |q| Ok(Asked::Explain { image: q.required("image")? })),
    route("GET", "/locked", &["image"], locked),
    route("GET", "/usage", &[], |_| Ok(Asked::Usage)),
    route("GET", "/pins", &[], |_| Ok(Asked::Rules(Kind::Pin))),
    route("POST", "/pins", RULE_PARAMETERS, |q| add_rule(q, Kind::Pin)),
    route("DELETE", "/pins", &["id", "scope"], |q| remove_rule(q, Kind::Pin)),
    route("GET", "/freezes", &[], |_| Ok(Asked::Rules(Kind::Freeze))),
    route("POST", "/freezes", RULE_PARAMETERS, |q| add_rule(q, Kind::Freeze)),
    route("DELETE", "/freezes", &["id", "scope"], |q| remove_rule(q, Kind::Freeze)),
    route("DELETE", "/images", &["image", "force"], |q| Ok(Asked::DeleteImage { image: q.required("image")?, force: q.flag("force")? })),
    route("DELETE", "/blobs", &["digest", "force"], |q| Ok(Asked::DeleteBlob { digest: q.required("digest")?, force: q.flag("force")? })),
    route("POST", "/refresh", &["image"], |q| Ok(Asked::Refresh { image: q.required("image")? })),
    route("POST", "/verify", &["repair"], |q| Ok(Asked::Verify { repair: q.flag("repair")? })),
    route("POST", "/reindex", &[], |_| Ok(Asked::Reindex)),
    route("POST", "/purge", &["within", "kind"], purge),
    route("POST", "/gc", &["dry_run"], |q| Ok(Asked::Collect { dry_run: q.flag("dry_run")? })),
];

/// Why a request was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    NoSuchPath,
    /// Holds the methods that are.
    Method(String),
    Query(String),
}

/// Every route.
pub(super) fn all() -> impl Iterator<Item = &'static Route> + Clone {
    ROUTES.iter().chain(images::ROUTES)
}

/// Reads what a request asks.
pub(super) fn read(method: &str, path: &str, query: &str) -> Result<Asked, Unread> {
    let path = match path.strip_prefix(ROOT).ok_or(Unread::NoSuchPath)? {
        "" => "/",
        path => path,
    };
    let mut here = all().filter(|route| route.path == path).peekable();
    if here.peek().is_none() {
        return Err(Unread::NoSuchPath);
    }
    let route = here.clone().find(|route| route.method == canonical(method));
    let route = route.ok_or_else(|| Unread::Method(methods(here)))?;
    let understood = || {
        let mut query = Query::read(query)?;
        let asked = (route.read)(&mut query)?;
        query.end(route.parameters)?;
        Ok(asked)
    };
    understood().map_err(Unread::Query)
}

/// HEAD is GET without a body.
fn canonical(method: &str) -> &str {
    if method == "HEAD" { "GET" } else { method }
}

fn methods<'a>(routes: impl Iterator<Item = &'a Route>) -> String {
    let methods: Vec<&str> = routes
        .map(|route| if route.method == "GET" { "GET, HEAD" } else { route.method })
        .collect();
    methods.join(", ")
}

fn images(query: &mut Query) -> Read<Asked> {
    let (within, after) = (query.optional("within")?, query.optional("after")?);
    Ok(Asked::Images { within, after, limit: list_limit(query)? })
}

fn history(query: &mut Query) -> Read<Asked> {
    let (image, before) = (query.required("image")?, query.id("before")?);
    Ok(Asked::History { image, before, limit: list_limit(query)? })
}

pub(super) fn list_limit(query: &mut Query) -> Read<u32> {
    query.limit("limit", LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)
}

fn locked(query: &mut Query) -> Read<Asked> {
    match query.all("image") {
        images if images.is_empty() => Err("the parameter image is missing".to_owned()),
        images => Ok(Asked::Locked { images }),
    }
}

fn purge(query: &mut Query) -> Read<Asked> {
    let within = query.required("within")?;
    let extent = match query.optional("kind")?.as_deref() {
        None => None,
        Some("registry") => Some(Extent::Registry),
        Some("repository") => Some(Extent::Repository),
        Some(_) => return Err("kind is registry or repository".to_owned()),
    };
    Ok(Asked::Purge { within, extent })
}

fn add_rule(query: &mut Query, kind: Kind) -> Read<Asked> {
    let scope = query.required("scope")?;
    let until = match (query.moment("until")?, query.duration("for")?) {
        (Some(_), Some(_)) => return Err("until and for exclude each other".to_owned()),
        (Some(moment), None) => Until::Moment(moment),
        (None, Some(duration)) => Until::For(duration),
        (None, None) => Until::Revoked,
    };
    let reason = query.optional("reason")?.unwrap_or_default();
    Ok(Asked::AddRule { kind, scope, until, reason })
}

fn remove_rule(query: &mut Query, kind: Kind) -> Read<Asked> {
    let which = match (query.id("id")?, query.optional("scope")?) {
        (Some(id), None) => Which::Id(id),
        (None, Some(scope)) => Which::Scope(scope),
        _ => return Err("want either id or scope".to_owned()),
    };
    Ok(Asked::RemoveRule { kind, which })
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
