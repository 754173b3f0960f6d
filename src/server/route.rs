//! What a request asks for: `(method, path, query)` becomes one value that cannot be illegal, or a [`RouteError`].
//!
//! Pure, and the only reader of request paths. What must hold: whatever comes out is bounded, free of encoded separators, dots and
//! control bytes, and its tags and digests obey their grammar. A repository path may have components called `manifests`, `blobs`
//! or `tags`, so paths are read from the right. Whether a repository or a mount exists is the registry's business.

use std::borrow::Cow;

use http::Method;

use super::settings::Limits;
use crate::oci::{Digest, Reference, Tag};
use crate::registry::Page;

/// Longest path between `/v2/` and the operation: a registry name, a slash and a repository name of 255 bytes each.
const REPOSITORY_PATH_BYTES_MAX: usize = 511;
/// Longest `artifactType`: a media type with room (RFC 6838 allows 255 bytes).
const ARTIFACT_TYPE_BYTES_MAX: usize = 512;

/// A request that can be answered.
#[derive(Debug, PartialEq)]
pub(super) struct Asked<'a> {
    /// What stands before `/v2/`, without slashes at its ends.
    pub(super) mount: Option<&'a str>,
    /// The value of `?ns=`.
    pub(super) ns: Option<Cow<'a, str>>,
    pub(super) route: Route<'a>,
    /// What it names is to go. Only manifests are ever deleted.
    pub(super) deletes: bool,
}

#[derive(Debug, PartialEq)]
pub(super) enum Route<'a> {
    Health(Health),
    /// `/v2/`, or `/v2/<prefix>/` from clients that put the registry into the path.
    Ping {
        prefix: Option<&'a str>,
    },
    Catalog {
        page: PageAsked,
    },
    Manifest {
        path: &'a str,
        reference: Reference,
    },
    /// A revision of a tag: `/v2/<name>/manifests/<tag>/<digest>`.
    TaggedManifest {
        path: &'a str,
        tag: Tag,
        digest: Digest,
    },
    Blob {
        path: &'a str,
        digest: Digest,
    },
    Tags {
        path: &'a str,
        page: PageAsked,
    },
    Referrers {
        path: &'a str,
        digest: Digest,
        artifact_type: Option<Cow<'a, str>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Live,
    Ready,
}

/// `n` and `last` of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageAsked {
    pub(super) n: Option<u64>,
    pub(super) last: Option<String>,
}

impl PageAsked {
    pub(super) fn to_page(&self) -> Page {
        Page { n: self.n, last: self.last.clone() }
    }
}

/// Why a request names nothing that could be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    /// Not a path of this server.
    NotFound,
    /// Not a path of the observability port.
    NotObserved,
    /// Several `Host` fields, or none in HTTP/1.1 (RFC 9112, 3.2).
    Host,
    /// Anything but GET and HEAD, and DELETE of a manifest: a proxy has no write path.
    Method,
    /// A path beyond its limit.
    TooLong,
    /// A query beyond its limit.
    QueryTooLong,
    /// Bad percent-encoding, or a value with control bytes.
    Malformed,
    Name,
    Tag,
    Digest,
    /// A bad `n`.
    Page,
}

/// The path with its percent-encoding undone, once. Only bytes that names, tags and digests are made of may be encoded: an
/// encoded slash, dot, percent sign or control byte is refused, because whoever sends it hopes that we and others read it differently.
pub(super) fn decode_path<'a>(path: &'a str, limits: &Limits) -> Result<Cow<'a, str>, RouteError> {
    if path.len() > limits.path_bytes {
        return Err(RouteError::TooLong);
    }
    let decoded = percent_decode(path)?;
    if let Cow::Owned(_) = decoded {
        let legal = path.match_indices('%').all(|(at, _)| {
            path.get(at + 1..at + 3)
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .is_some_and(|byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':')
                })
        });
        if !legal {
            return Err(RouteError::Malformed);
        }
    }
    Ok(decoded)
}

/// Reads a request; `path` is what [`decode_path`] gave.
pub(super) fn parse<'a>(
    method: &Method,
    path: &'a str,
    query: Option<&'a str>,
    limits: &Limits,
) -> Result<Asked<'a>, RouteError> {
    let query = query.unwrap_or_default();
    if query.len() > limits.query_bytes {
        return Err(RouteError::QueryTooLong);
    }
    if method == Method::DELETE {
        return match read(path, query) {
            Ok(asked)
                if matches!(asked.route, Route::Manifest { .. } | Route::TaggedManifest { .. }) =>
            {
                Ok(Asked { deletes: true, ..asked })
            }
            _ => Err(RouteError::Method),
        };
    }
    if method != Method::GET && method != Method::HEAD {
        return Err(RouteError::Method);
    }
    read(path, query)
}

/// What path and query name.
fn read<'a>(path: &'a str, query: &'a str) -> Result<Asked<'a>, RouteError> {
    let health = match path {
        "/livez" | "/healthz" => Some(Health::Live),
        "/readyz" => Some(Health::Ready),
        _ => None,
    };
    if let Some(health) = health {
        return Ok(Asked { mount: None, ns: None, route: Route::Health(health), deletes: false });
    }
    let (mount, rest) = split_mount(path).ok_or(RouteError::NotFound)?;
    let ns = query_value(query, "ns")?;
    let route = match rest {
        "" => Route::Ping { prefix: None },
        "_catalog" => Route::Catalog { page: page(query)? },
        _ => match operation(rest, query)? {
            Some(route) => route,
            None => prefix_ping(rest)?,
        },
    };
    Ok(Asked { mount, ns, route, deletes: false })
}

/// The parts of a path that [`parse`] would take for a manifest, as texts whose grammar nobody has checked.
#[derive(Debug, PartialEq)]
pub(super) struct Spotted<'a> {
    pub(super) mount: Option<&'a str>,
    pub(super) ns: Option<Cow<'a, str>>,
    pub(super) path: &'a str,
    pub(super) reference: &'a str,
}

/// Reads a request as far as is needed to look for the manifest among those that are ready: texts that are wrong are not among them. `None`:
/// [`parse`] has to read it. `path` is as it came.
pub(super) fn spot_manifest<'a>(
    method: &Method,
    path: &'a str,
    query: Option<&'a str>,
    limits: &Limits,
) -> Option<Spotted<'a>> {
    let query = query.unwrap_or_default();
    let legal = path.len() <= limits.path_bytes
        && query.len() <= limits.query_bytes
        && (method == Method::GET || method == Method::HEAD)
        && !path.contains('%');
    if !legal {
        return None;
    }
    let (mount, rest) = split_mount(path)?;
    let (front, reference) = rest.rsplit_once('/')?;
    let (path, verb) = front.rsplit_once('/')?;
    if verb != "manifests" || path.is_empty() || reference.is_empty() {
        return None;
    }
    let ns = if query.is_empty() { None } else { query_value(query, "ns").ok()? };
    Some(Spotted { mount, ns, path, reference })
}

/// Parts the path into what stands before the first `v2` component and what stands after it.
fn split_mount(path: &str) -> Option<(Option<&str>, &str)> {
    let path = path.strip_prefix('/')?;
    if path == "v2" {
        return Some((None, ""));
    }
    if let Some(rest) = path.strip_prefix("v2/") {
        return Some((None, rest));
    }
    let (mount, rest) =
        path.split_once("/v2/").or_else(|| path.strip_suffix("/v2").map(|mount| (mount, "")))?;
    is_repository_path(mount).then_some((Some(mount), rest))
}

/// Reads what stands after `/v2/` from the right; `None` if it ends in no operation.
fn operation<'a>(rest: &'a str, query: &'a str) -> Result<Option<Route<'a>>, RouteError> {
    let Some((front, last)) = rest.rsplit_once('/') else {
        return Ok(None);
    };
    let (path, verb) = front.rsplit_once('/').unwrap_or(("", front));
    let route = match (verb, last) {
        (_, "") => return longer_operation(path, verb, last),
        ("manifests", _) => {
            Route::Manifest { path: repository_path(path)?, reference: reference(last)? }
        }
        ("tags", "list") => Route::Tags { path: repository_path(path)?, page: page(query)? },
        // An upload: the write path that a mirror does not have.
        ("blobs", "uploads") => return Err(RouteError::Method),
        ("blobs", _) => Route::Blob { path: repository_path(path)?, digest: digest(last)? },
        ("referrers", _) => Route::Referrers {
            path: repository_path(path)?,
            digest: digest(last)?,
            artifact_type: artifact_type(query)?,
        },
        _ => return longer_operation(path, verb, last),
    };
    Ok(Some(route))
}

/// The two operations whose verb stands third from the right.
fn longer_operation<'a>(
    front: &'a str,
    middle: &'a str,
    last: &'a str,
) -> Result<Option<Route<'a>>, RouteError> {
    let (path, verb) = front.rsplit_once('/').unwrap_or(("", front));
    match verb {
        // Only a digest tells a revision of a tag from a repository below one that is called `manifests`.
        "manifests" if last.contains(':') => Ok(Some(Route::TaggedManifest {
            path: repository_path(path)?,
            tag: middle.parse().map_err(|_invalid| RouteError::Tag)?,
            digest: digest(last)?,
        })),
        "blobs" if middle == "uploads" => Err(RouteError::Method),
        _ => Ok(None),
    }
}

fn prefix_ping(rest: &str) -> Result<Route<'_>, RouteError> {
    let prefix = rest.strip_suffix('/').unwrap_or(rest);
    Ok(Route::Ping { prefix: Some(repository_path(prefix)?) })
}

fn repository_path(path: &str) -> Result<&str, RouteError> {
    if is_repository_path(path) { Ok(path) } else { Err(RouteError::Name) }
}

/// Could this be a registry, a repository or both? The exact grammar is applied where it is known which part is which.
fn is_repository_path(path: &str) -> bool {
    let legal =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    path.len() <= REPOSITORY_PATH_BYTES_MAX
        && path
            .split('/')
            .all(|component| !matches!(component, "" | "." | "..") && component.bytes().all(legal))
}

fn reference(text: &str) -> Result<Reference, RouteError> {
    text.parse().map_err(
        |_invalid| {
            if text.contains(':') { RouteError::Digest } else { RouteError::Tag }
        },
    )
}

fn digest(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(|_invalid| RouteError::Digest)
}

fn page(query: &str) -> Result<PageAsked, RouteError> {
    let n = match query_value(query, "n")?.as_deref() {
        None => None,
        // A number beyond the address space is as good as the largest one; the registry has its own ceiling.
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(text.parse().unwrap_or(u64::MAX))
        }
        Some(_) => return Err(RouteError::Page),
    };
    let last = query_value(query, "last")?.map(Cow::into_owned);
    Ok(PageAsked { n, last })
}

fn artifact_type(query: &str) -> Result<Option<Cow<'_, str>>, RouteError> {
    let value = query_value(query, "artifactType")?;
    match &value {
        Some(text) if text.len() > ARTIFACT_TYPE_BYTES_MAX || !text.is_ascii() => {
            Err(RouteError::Malformed)
        }
        _ => Ok(value),
    }
}

/// The first value of `key`; none if it is absent or empty. Keys that nobody asks for are never looked at (clients add their own).
/// `+` stands for itself: media types hold it and nothing here holds a space.
fn query_value<'a>(query: &'a str, key: &str) -> Result<Option<Cow<'a, str>>, RouteError> {
    let raw = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find_map(|(name, value)| (name == key).then_some(value));
    let Some(raw) = raw.filter(|raw| !raw.is_empty()) else {
        return Ok(None);
    };
    let value = percent_decode(raw)?;
    if value.chars().any(char::is_control) {
        return Err(RouteError::Malformed);
    }
    Ok(Some(value))
}

/// Undoes percent-encoding strictly: a percent sign without two hex digits, or bytes that are not UTF-8, are refused.
fn percent_decode(text: &str) -> Result<Cow<'_, str>, RouteError> {
    let strict = text.match_indices('%').all(|(at, _)| {
        text.as_bytes()
            .get(at + 1..at + 3)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !strict {
        return Err(RouteError::Malformed);
    }
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map_err(|_invalid| RouteError::Malformed)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
