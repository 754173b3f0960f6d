//! Manifests that are ready: the short way of a request, without a wait.
//!
//! What must hold: the answer is, to the last header, the one that the long way in `dispatch.rs` would have given, and the record says the
//! same. Whatever is out of the ordinary (an encoded path, a `Via`, a client that is not admitted, a name that is not known) goes the long
//! way, which alone refuses.

use http::header::{HeaderMap, VIA};
use http::request::Parts;
use http::{HeaderValue, Response};

use super::access::What;
use super::body::Payload;
use super::dispatch::{Link, host, one_host};
use super::metrics::Kind;
use super::record::Record;
use super::route;
use super::service::Service;
use super::{headers, reply};
use crate::carry::Served;
use crate::oci::RegistryName;
use crate::registry::{Addressing, Ready};

/// `Docker-Content-Digest`, `ETag`, `Content-Type`, `Content-Length`, `Cache-Status`, the version, `OCI-Namespace` and the request id.
const FIELDS: usize = 8;

/// The answer, if the request asks for a manifest that is ready.
pub(super) fn answer(
    service: &Service,
    link: &Link,
    listener: Option<&RegistryName>,
    parts: &Parts,
    record: &mut Record,
) -> Option<Response<Payload>> {
    let uri = &parts.uri;
    let asked = route::spot_manifest(&parts.method, uri.path(), uri.query(), service.limits())?;
    let plain = one_host(parts).is_ok() && !parts.headers.contains_key(VIA);
    if !plain || !service.guard().admits(link.client) {
        return None;
    }
    let addressing = Addressing {
        ns: asked.ns.as_deref(),
        path: asked.path,
        mount: asked.mount,
        host: host(parts),
        listener,
        via: None,
    };
    let found = service.registry().hot_manifest(&addressing, asked.reference)?;
    let (ready, report) = (found.value, found.report);
    record.asked(Kind::Manifest, Some(What::Reference(ready.reference().clone())));
    let repository = ready.repository();
    record.located(&repository.upstream, &repository.name);
    let mut fields = ready.prepared(|| prepare(&ready));
    fields.insert(headers::CACHE_STATUS, headers::hit(report.ttl));
    headers::namespace(&mut fields, asked.ns.as_deref());
    let manifest = ready.manifest();
    if service.recorder().is_recording() {
        let (tag, digest) = (ready.reference().tag(), &manifest.digest);
        let served = Served { client: link.client, repository, tag, digest };
        service.recorder().note(&served);
    }
    let mut response = Response::new(Payload::Empty);
    if headers::holds_already(&parts.headers, &manifest.digest) {
        fields.remove(http::header::CONTENT_TYPE);
        fields.remove(http::header::CONTENT_LENGTH);
        *response.status_mut() = reply::NOT_MODIFIED;
    } else {
        *response.body_mut() = Payload::Bytes(manifest.bytes.clone());
    }
    *response.headers_mut() = fields;
    record.answered(response.status(), report.outcome, report.reason);
    Some(response)
}

/// The fields that are the same in every answer, and the places of the others.
fn prepare(ready: &Ready) -> HeaderMap {
    let manifest = ready.manifest();
    let mut fields = HeaderMap::with_capacity(FIELDS);
    headers::identify(&mut fields, &manifest.digest);
    let length = u64::try_from(manifest.bytes.len()).unwrap_or(u64::MAX);
    headers::describe(&mut fields, headers::value(manifest.media_type.as_str()), length);
    let later = HeaderValue::from_static("");
    fields.insert(headers::CACHE_STATUS, later.clone());
    fields.insert(headers::API_VERSION, headers::API_VERSION_2);
    fields.insert(headers::REQUEST_ID, later);
    fields
}
