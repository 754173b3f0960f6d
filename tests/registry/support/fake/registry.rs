//! The registry API of the fake and its blob store: the usual answers, before any rule alters them.

use std::ops::Range;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::content::{Blob, OCI_INDEX};
use super::auth::{Mode, Verdict};
use super::log::{Kind, Origin, Target};
use super::message::{Framing, Reply, Req};
use super::state::{
    AcceptMode, BlobHead, Delivery, EtagForm, LinkForm, LocationForm, RangeMode, ReferrersMode,
    State, StoreAuth,
};

/// What the registry's four list-like defaults use when the client asks for no page size.
const PAGE: usize = 1000;

impl State {
    /// Credentials first; `Some` is the refusal.
    pub(super) fn gatekeeper(&mut self, req: &Req, target: &Target) -> Option<Reply> {
        let user = match self.authenticate(req, &target.repository) {
            Verdict::Refused(reply) => return Some(reply),
            Verdict::Granted { user } => user,
        };
        let hidden =
            !target.repository.is_empty() && self.hides(&target.repository, user.as_deref());
        hidden.then(|| self.auth.hide(&self.addresses, &target.repository))
    }

    /// The usual answer of any origin.
    pub(super) fn usual(&mut self, origin: Origin, req: &Req, target: &Target) -> Reply {
        if target.kind == Kind::Token {
            return self.token(origin, req);
        }
        if target.kind == Kind::Store {
            return self.store(req, &target.reference);
        }
        if target.kind == Kind::Hop {
            return self.hop(&req.path, &target.reference);
        }
        if origin == Origin::Cdn && target.kind == Kind::Manifest {
            return self.manifest(req, target);
        }
        if origin != Origin::Registry {
            return Reply::text(404, "nothing here");
        }
        if !matches!(req.method.as_str(), "GET" | "HEAD") {
            return Reply::error(405, "UNSUPPORTED", "the fake is read-only");
        }
        let mut reply = match target.kind {
            Kind::Ping => Reply::json(200, &json!({})),
            Kind::Catalog => self.catalog(req),
            Kind::Manifest if self.switches.manifests_elsewhere => {
                Reply::redirect(307, self.addresses.url(Origin::Cdn, &req.path))
            }
            Kind::Manifest => self.manifest(req, target),
            Kind::Blob => self.blob(req, target),
            Kind::Tags => self.tags(req, target),
            Kind::Referrers => self.referrers(req, target),
            _ => Reply::text(404, "404 page not found"),
        };
        reply = reply
            .with("Docker-Distribution-Api-Version", "registry/2.0")
            .with("Set-Cookie", "sid=must-never-come-back; Path=/; HttpOnly");
        if self.auth.mode == Mode::ChallengeOnSuccess {
            reply = reply.with("WWW-Authenticate", "bearer realm=x,service=y");
        }
        reply
    }

    fn manifest(&mut self, req: &Req, target: &Target) -> Reply {
        let Some(repository) = self.repositories.get(&target.repository) else {
            return self.auth.hide(&self.addresses, &target.repository);
        };
        let unknown = || Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        let mut digest = match repository.tags.get(&target.reference) {
            Some(digest) => digest.clone(),
            None => target.reference.clone(),
        };
        let Some(mut stored) = repository.manifests.get(&digest).cloned() else {
            return unknown();
        };
        let accept: Vec<&str> =
            req.headers.iter().filter(|(k, _)| k == "accept").map(|(_, v)| v.as_str()).collect();
        if !accept.iter().any(|line| line.contains(&stored.media_type)) {
            match (self.switches.accept, &stored.first_child) {
                (AcceptMode::NotFound, _) => return unknown(),
                (AcceptMode::FirstChild, Some(child)) => {
                    digest = child.clone();
                    stored = repository.manifests[&digest].clone();
                }
                _ => {}
            }
        }
        let media_type = self.switches.manifest_type.clone().unwrap_or(stored.media_type);
        let mut reply = Reply::new(200).with("Content-Type", media_type).data(stored.bytes);
        if req.is_head() || !self.switches.no_digest_on_get {
            reply = reply.with("Docker-Content-Digest", digest.clone());
        }
        let etag = match self.switches.etag {
            EtagForm::Quoted => Some(format!("\"{digest}\"")),
            EtagForm::Bare => Some(digest.clone()),
            EtagForm::Weak => Some(format!("W/\"{digest}\"")),
            EtagForm::Absent => None,
        };
        if let Some(etag) = etag {
            if req.header("if-none-match").is_some_and(|known| known.contains(&digest)) {
                return Reply::new(304).with("ETag", etag);
            }
            reply = reply.with("ETag", etag);
        }
        if let Some(left) = &mut self.switches.ratelimit {
            if !req.is_head() {
                *left = left.saturating_sub(1);
            }
            reply = reply
                .with("ratelimit-limit", "100;w=21600")
                .with("ratelimit-remaining", format!("{left};w=21600"));
        }
        reply
    }

    fn blob(&mut self, req: &Req, target: &Target) -> Reply {
        let unknown = || Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
        let Some(repository) = self.repositories.get_mut(&target.repository) else {
            return self.auth.hide(&self.addresses, &target.repository);
        };
        let Some(blob) = repository.blobs.get(&target.reference).cloned() else {
            return unknown();
        };
        if req.is_head() {
            match self.switches.blob_head {
                BlobHead::Ok => return direct(&blob, req, RangeMode::Ignore),
                BlobHead::Status(status) => return Reply::error(status, "UNAUTHORIZED", "no HEAD"),
                BlobHead::NotFoundUntilGet if !repository.fetched.contains(&blob.digest) => {
                    return unknown();
                }
                BlobHead::NotFoundUntilGet => return direct(&blob, req, RangeMode::Ignore),
                BlobHead::NoLength => {
                    let mut reply = direct(&blob, req, RangeMode::Ignore);
                    reply.framing = Framing::UntilClose;
                    return reply;
                }
                BlobHead::Redirect => {}
            }
        } else {
            repository.fetched.insert(blob.digest.clone());
        }
        self.deliver(req, &blob)
    }

    fn deliver(&mut self, req: &Req, blob: &Blob) -> Reply {
        let digest = blob.digest.clone();
        let redirect = |status, location: String| {
            Reply::redirect(status, location).with("Docker-Content-Digest", digest.clone())
        };
        match self.switches.delivery.clone() {
            Delivery::Direct => direct(blob, req, self.switches.range),
            Delivery::Redirect { status, form } => {
                let location = self.sign(blob, form);
                redirect(status, location)
            }
            Delivery::Hops(count) => {
                redirect(307, self.addresses.url(Origin::Cdn, &format!("/hop/{count}/{digest}")))
            }
            Delivery::Loop => {
                redirect(307, self.addresses.url(Origin::Cdn, &format!("/hop/loop/{digest}")))
            }
            Delivery::MissingLocation => Reply::new(307),
            Delivery::To(location) => redirect(307, location),
        }
    }

    /// A fresh signed URL for this blob.
    fn sign(&mut self, blob: &Blob, form: LocationForm) -> String {
        use super::state::Signed;
        let signature = format!("sig{}x{:016x}", self.signed.len(), rand::random::<u64>());
        let entry = Signed { signature: signature.clone(), blob: blob.clone(), dead: false };
        self.signed.push(entry);
        let digest = &blob.digest;
        let address = self.addresses.of(Origin::Cdn);
        match form {
            LocationForm::Absolute => self.addresses.url(
                Origin::Cdn,
                &format!("/data/{digest}?X-Amz-Expires=60&X-Amz-Signature={signature}"),
            ),
            LocationForm::SchemeRelative => {
                format!("//{address}/data/{digest}?X-Amz-Signature={signature}")
            }
            LocationForm::Relative => {
                format!("/artifacts-downloads/{digest}?X-Goog-Signature={signature}")
            }
        }
    }

    fn hop(&mut self, path: &str, digest: &str) -> Reply {
        let left = path.split('/').nth(2).unwrap_or("");
        let next = match left.parse::<u32>() {
            Ok(0) | Err(_) if left != "loop" => {
                let blob = self.repositories.values().find_map(|r| r.blobs.get(digest)).cloned();
                match blob {
                    Some(blob) => self.sign(&blob, LocationForm::Absolute),
                    None => return Reply::xml(404, "NoSuchKey"),
                }
            }
            Ok(left) => self
                .addresses
                .url(Origin::Cdn, &format!("/hop/{}/{digest}", left.saturating_sub(1))),
            Err(_) => self.addresses.url(Origin::Cdn, &format!("/hop/loop/{digest}")),
        };
        Reply::redirect(307, next)
    }

    /// The blob store behind redirects.
    fn store(&mut self, req: &Req, digest: &str) -> Reply {
        if req.header("authorization").is_some() {
            return match self.switches.store_auth {
                StoreAuth::S3 => Reply::xml(400, "InvalidArgument"),
                StoreAuth::Azure => Reply::xml(403, "AuthenticationFailed"),
            };
        }
        let signature =
            req.parameter("X-Amz-Signature").or_else(|| req.parameter("X-Goog-Signature"));
        let single_use = self.switches.single_use_urls;
        let get_only = self.switches.get_only_urls;
        let signed = self.signed.iter_mut().find(|signed| {
            Some(&signed.signature) == signature.as_ref() && signed.blob.digest == digest
        });
        let Some(signed) = signed.filter(|signed| !signed.dead) else {
            return Reply::xml(403, "AccessDenied");
        };
        if get_only && req.is_head() {
            return Reply::xml(403, "SignatureDoesNotMatch");
        }
        signed.dead = single_use;
        let blob = signed.blob.clone();
        let mut reply = direct(&blob, req, self.switches.range);
        reply.remove("Docker-Content-Digest");
        reply
    }

    fn tags(&mut self, req: &Req, target: &Target) -> Reply {
        let Some(repository) = self.repositories.get(&target.repository) else {
            return self.auth.hide(&self.addresses, &target.repository);
        };
        let all: Vec<String> = repository.tags.keys().cloned().collect();
        let (page, link) = self.page(req, &all);
        let document = json!({"name": target.repository, "tags": page});
        let reply = Reply::json(200, &document);
        match link {
            Some(link) => reply.with("Link", link),
            None => reply,
        }
    }

    fn catalog(&mut self, req: &Req) -> Reply {
        let all: Vec<String> = self.repositories.keys().cloned().collect();
        let (page, link) = self.page(req, &all);
        let reply = Reply::json(200, &json!({"repositories": page}));
        match link {
            Some(link) => reply.with("Link", link),
            None => reply,
        }
    }

    fn page(&self, req: &Req, all: &[String]) -> (Vec<String>, Option<String>) {
        let asked = req.parameter("n").and_then(|n| n.parse().ok()).unwrap_or(PAGE);
        let size = self.switches.tags_page.unwrap_or(asked).min(asked).max(1);
        let last = req.parameter("last").unwrap_or_default();
        let rest: Vec<&String> = all.iter().filter(|name| **name > last).collect();
        let page: Vec<String> = rest.iter().take(size).map(|name| (*name).clone()).collect();
        let more = rest.len() > page.len();
        let next = |last: &str| format!("{}?n={asked}&last={last}", req.path);
        let end = page.last().cloned().unwrap_or_default();
        let link = match self.switches.link {
            LinkForm::Repeating => {
                let first = all.get(size.min(all.len()) - 1).cloned().unwrap_or_default();
                Some(next(&first))
            }
            LinkForm::Relative if more => Some(next(&end)),
            LinkForm::Absolute if more => Some(self.addresses.url(Origin::Registry, &next(&end))),
            LinkForm::Foreign if more => Some(self.addresses.url(Origin::Foreign, &next(&end))),
            _ => None,
        };
        (page, link.map(|url| format!("<{url}>; rel=\"next\"")))
    }

    fn referrers(&mut self, req: &Req, target: &Target) -> Reply {
        let mode = self.switches.referrers;
        let Some(repository) = self.repositories.get(&target.repository) else {
            return self.auth.hide(&self.addresses, &target.repository);
        };
        let mut list: Vec<Value> =
            repository.referrers.get(&target.reference).cloned().unwrap_or_default();
        let wanted = req.parameter("artifactType");
        let mut reply = Reply::new(200);
        match mode {
            ReferrersMode::Status(status) => return Reply::error(status, "UNSUPPORTED", "no"),
            ReferrersMode::Html => return Reply::html(200),
            ReferrersMode::RedirectForeign => {
                let url = self.addresses.url(Origin::Foreign, "/-/v2/packages/x");
                return Reply::redirect(303, url);
            }
            ReferrersMode::Filtering => {
                if let Some(wanted) = wanted {
                    list.retain(|descriptor| descriptor["artifactType"] == json!(wanted));
                    reply = reply.with("OCI-Filters-Applied", "artifactType");
                }
            }
            ReferrersMode::Index | ReferrersMode::WrongType => {}
        }
        let media_type =
            if mode == ReferrersMode::WrongType { "application/json" } else { OCI_INDEX };
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list});
        reply.with("Content-Type", media_type).data(Bytes::from(index.to_string()))
    }
}

/// A blob with its headers, in the way that this range mode has.
fn direct(blob: &Blob, req: &Req, mode: RangeMode) -> Reply {
    let size = blob.len();
    let mut reply = Reply::new(200)
        .with("Content-Type", "application/octet-stream")
        .with("Docker-Content-Digest", blob.digest.clone())
        .with("ETag", format!("\"{}\"", blob.digest))
        .with("Accept-Ranges", "bytes")
        .data(blob.data.clone());
    let Some(range) = req.header("range").and_then(|text| range_of(text, size)) else {
        return reply;
    };
    let Range { start, end } = range;
    match mode {
        RangeMode::Ignore => return reply,
        RangeMode::Refuse416 => {
            return Reply::new(416).with("Content-Range", format!("bytes */{size}"));
        }
        RangeMode::BadRequestXml => return Reply::xml(400, "BadRequest"),
        _ if start >= size => {
            return Reply::new(416).with("Content-Range", format!("bytes */{size}"));
        }
        RangeMode::WrongStart => {
            reply.part = start + 1..end;
            let told = format!("bytes {}-{}/{size}", start + 1, end - 1);
            reply = reply.with("Content-Range", told);
        }
        RangeMode::WrongTotal => {
            reply.part = start..end;
            let told = format!("bytes {start}-{}/{}", end - 1, size + 7);
            reply = reply.with("Content-Range", told);
        }
        RangeMode::NoContentRange => reply.part = start..end,
        RangeMode::Honour | RangeMode::Short(_) => {
            let most = if let RangeMode::Short(most) = mode { most } else { size };
            let end = end.min(start.saturating_add(most));
            reply.part = start..end;
            reply = reply.with("Content-Range", format!("bytes {start}-{}/{size}", end - 1));
        }
    }
    reply.status = 206;
    reply
}

/// A single `bytes=a-b` or `bytes=a-`; everything else is no range for the fake.
fn range_of(text: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = match end {
        "" => size,
        end => end.parse::<u64>().ok()?.saturating_add(1).min(size),
    };
    Some(start..end.max(start))
}
