//! `/v2/<name>/referrers/<digest>` (OCI distribution spec 1.1, "Listing Referrers").
//!
//! The content type is exactly that of an index, without parameters: clients take anything else for "not supported".

use http::{HeaderValue, Response};

use super::super::body::Payload;
use super::super::dispatch::{Answered, Exchange, Refused};
use super::super::{headers, reply};
use crate::oci::{Digest, MediaType};
use crate::registry::{ReferrersReply, Repository};

pub(in crate::server) async fn list(
    exchange: &Exchange<'_>,
    repository: &Repository,
    digest: &Digest,
    artifact_type: Option<&str>,
) -> Result<Answered, Refused> {
    let found = exchange.registry.referrers(repository, digest, artifact_type).await?;
    Ok(Answered::new(respond(found.value), found.report))
}

fn respond(found: ReferrersReply) -> Response<Payload> {
    let payload = Payload::Bytes(found.body);
    let length = payload.length();
    let mut response = Response::new(payload);
    *response.status_mut() = reply::OK;
    let fields = response.headers_mut();
    headers::describe(fields, HeaderValue::from_static(MediaType::OCI_INDEX), length);
    if found.filtered {
        fields.insert(headers::OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    response
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_index_with_its_exact_type() {
        for filtered in [true, false] {
            let response = respond(ReferrersReply { body: Bytes::from_static(b"{}"), filtered });
            assert_eq!(
                response.headers()["content-type"],
                "application/vnd.oci.image.index.v1+json"
            );
            assert_eq!(response.headers()["content-length"], "2");
            assert_eq!(response.headers().contains_key("oci-filters-applied"), filtered);
        }
    }
}
