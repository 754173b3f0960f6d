//! Requests about images as wholes: check, warm, record, sets, export, import, takeover, and the offline switch.
//!
//! Some of them have a body: a list of images, an order as JSON, or the bytes of a bundle.

use std::net::IpAddr;
use std::path::PathBuf;

use bytes::Bytes;
use http::Response;
use http::header::HeaderValue;
use http_body_util::{BodyExt as _, Limited};
use ipnet::IpNet;
use serde_json::json;

use super::api::{Admin, JSON_LINES, Refused, whole, with};
use super::body::Body;
use super::query::{Query, Read};
use super::routes::{Asked, Route, Unread, list_limit, route};
use super::upload::Upload;
use crate::carry::{
    self, ExportOrder, ImageList, ImportOrder, RecordOrder, TakeoverOrder, WarmOrder,
};
use crate::clock::Timestamp;
use crate::oci::{LOCKFILE_BYTES_MAX, PlatformPattern, SetName};
use crate::registry::desk::{Error, Reason};
use crate::server::reply;

const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");

/// What is asked of [`carry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Check {
        images: Vec<String>,
        sets: Vec<String>,
        platforms: Vec<PlatformPattern>,
    },
    /// The body is the list.
    Warm {
        platforms: Vec<PlatformPattern>,
        all_platforms: bool,
        referrers: bool,
    },
    Wanted {
        since: Option<Timestamp>,
        after: Option<String>,
        limit: u32,
    },
    ForgetWanted,
    Offline,
    Switch {
        upstream: Option<String>,
        offline: bool,
    },
    Sets,
    Members {
        set: String,
        after: Option<String>,
        limit: u32,
    },
    PinSet {
        set: String,
        pinned: bool,
    },
    RemoveSet {
        set: String,
    },
    Record(RecordOrder),
    StopRecord {
        name: SetName,
        platforms: Vec<PlatformPattern>,
        fetch: bool,
    },
    /// The body is the order as JSON.
    Export {
        plan: bool,
    },
    /// The body is the bundle.
    Import(ImportOrder),
    Takeover(TakeoverOrder),
}

/// A table is read by its lines, so each route keeps one.
#[rustfmt::skip]
pub(super) const ROUTES: &[Route] = &[
    route("GET", "/check", &["image", "set", "platform"], check),
    route("POST", "/warm", &["platform", "all_platforms", "referrers"], warm),
    route("GET", "/wanted", &["since", "after", "limit"], wanted),
    route("DELETE", "/wanted", &[], |_| order(Order::ForgetWanted)),
    route("GET", "/offline", &[], |_| order(Order::Offline)),
    route("POST", "/offline", &["upstream"], |q| switch(q, true)),
    route("DELETE", "/offline", &["upstream"], |q| switch(q, false)),
    route("GET", "/sets", &[], |_| order(Order::Sets)),
    route("DELETE", "/sets", &["set"], |q| order(Order::RemoveSet { set: q.required("set")? })),
    route("GET", "/members", &["set", "after", "limit"], members),
    route("POST", "/sets/pin", &["set"], |q| order(Order::PinSet { set: q.required("set")?, pinned: true })),
    route("DELETE", "/sets/pin", &["set"], |q| order(Order::PinSet { set: q.required("set")?, pinned: false })),
    route("POST", "/records", &["name", "client", "upstream"], record),
    route("POST", "/records/stop", &["name", "platform", "fetch"], stop_record),
    route("POST", "/export", &["plan"], |q| order(Order::Export { plan: q.flag("plan")? })),
    route("POST", "/import", &["set", "name", "public"], import),
    route("POST", "/takeover", &["folder", "upstream", "set", "copy", "public"], takeover),
];

fn order(order: Order) -> Read<Asked> {
    Ok(Asked::Carry(order))
}

fn platforms(query: &mut Query) -> Read<Vec<PlatformPattern>> {
    let refuse = |text: &String, error| format!("platform {text:?}: {error}");
    let texts = query.all("platform");
    texts.iter().map(|text| text.parse().map_err(|error| refuse(text, error))).collect()
}

fn set_name(name: &str, text: Option<String>) -> Read<Option<SetName>> {
    let refuse = |text: &str, error| format!("{name} {text:?}: {error}");
    text.map(|text| text.parse().map_err(|error| refuse(&text, error))).transpose()
}

fn check(query: &mut Query) -> Read<Asked> {
    let (images, sets) = (query.all("image"), query.all("set"));
    if images.is_empty() && sets.is_empty() {
        return Err("want an image or a set".to_owned());
    }
    order(Order::Check { images, sets, platforms: platforms(query)? })
}

fn warm(query: &mut Query) -> Read<Asked> {
    let (all_platforms, referrers) = (query.flag("all_platforms")?, query.flag("referrers")?);
    order(Order::Warm { platforms: platforms(query)?, all_platforms, referrers })
}

fn wanted(query: &mut Query) -> Read<Asked> {
    let (since, after) = (query.moment("since")?, query.optional("after")?);
    order(Order::Wanted { since, after, limit: list_limit(query)? })
}

fn switch(query: &mut Query, offline: bool) -> Read<Asked> {
    order(Order::Switch { upstream: query.optional("upstream")?, offline })
}

fn members(query: &mut Query) -> Read<Asked> {
    let (set, after) = (query.required("set")?, query.optional("after")?);
    order(Order::Members { set, after, limit: list_limit(query)? })
}

fn record(query: &mut Query) -> Read<Asked> {
    let name = set_name("name", Some(query.required("name")?))?.ok_or("name is missing")?;
    let network = |text: &String| {
        let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        parsed.map_err(|_invalid| {
            format!("client {text:?} is no address and no network such as 10.0.0.0/8")
        })
    };
    let clients = query.all("client").iter().map(network).collect::<Read<_>>()?;
    order(Order::Record(RecordOrder { name, clients, upstreams: query.all("upstream") }))
}

fn stop_record(query: &mut Query) -> Read<Asked> {
    let name = set_name("name", Some(query.required("name")?))?.ok_or("name is missing")?;
    order(Order::StopRecord { name, platforms: platforms(query)?, fetch: query.flag("fetch")? })
}

fn import(query: &mut Query) -> Read<Asked> {
    let set = set_name("set", query.optional("set")?)?;
    let (name, public) = (query.optional("name")?, query.flag("public")?);
    order(Order::Import(ImportOrder { set, name, public }))
}

fn takeover(query: &mut Query) -> Read<Asked> {
    let set = set_name("set", query.optional("set")?)?;
    let folder = PathBuf::from(query.required("folder")?);
    if !folder.is_absolute() {
        return Err("folder is an absolute path".to_owned());
    }
    let (upstream, copy) = (query.required("upstream")?, query.flag("copy")?);
    let public = query.flag("public")?;
    order(Order::Takeover(TakeoverOrder { folder, upstream, set, copy, public }))
}

impl Admin {
    /// Does what is asked; `body` is what came with it.
    pub(super) async fn carry(
        &self,
        order: Order,
        body: Upload,
    ) -> Result<Response<Body>, Refused> {
        let carry = self.images();
        Ok(match order {
            Order::Check { images, sets, platforms } => {
                whole(&json!({ "images": carry.check(&images, &sets, &platforms).await? }))
            }
            Order::Warm { platforms, all_platforms, referrers } => {
                let images = ImageList::read(&text(body).await?).map_err(|invalid| {
                    let message = format!("line {}: {}", invalid.line, invalid.reason);
                    Error::new(Reason::List, message)
                })?;
                let order = WarmOrder { images, platforms, all_platforms, referrers };
                story(carry.warm(order)?)
            }
            Order::Wanted { since, after, limit } => {
                whole(&carry.wanted(since, after.as_deref(), limit).await?)
            }
            Order::ForgetWanted => whole(&json!({ "removed": carry.forget_wanted().await? })),
            Order::Offline => whole(&carry.offline()),
            Order::Switch { upstream, offline } => {
                whole(&carry.switch(upstream.as_deref(), offline).await?)
            }
            Order::Sets => whole(&json!({ "sets": carry.sets().await? })),
            Order::Members { set, after, limit } => {
                whole(&carry.members(&set, after.as_deref(), limit).await?)
            }
            Order::PinSet { set, pinned } => whole(&carry.pin_set(&set, pinned).await?),
            Order::RemoveSet { set } => {
                whole(&json!({ "removed": u64::from(carry.remove_set(&set).await?) }))
            }
            Order::Record(order) => whole(&carry.record(order).await?),
            Order::StopRecord { name, platforms, fetch } => {
                story(carry.stop_record(&name, platforms, fetch).await?)
            }
            Order::Export { plan } => {
                let order: ExportOrder =
                    serde_json::from_str(&text(body).await?).map_err(|error| {
                        Refused::Unread(Unread::Query(format!(
                            "the order is not what is wanted: {error}"
                        )))
                    })?;
                if plan {
                    whole(&carry.plan_export(&order).await?)
                } else {
                    with(reply::OK, TAR, Body::bundle(carry.export(&order).await?))
                }
            }
            Order::Import(order) => story(carry.import(order, Box::pin(body)).await?),
            Order::Takeover(order) => {
                // A path names a file of this machine, which is no business of whoever comes from another one.
                if self.is_behind_a_gate() {
                    let message = "a folder can be taken over through the socket in the data directory, or with no server running; not over admin_listen";
                    return Err(Error::new(Reason::Value, message).into());
                }
                story(carry.takeover(order).await?)
            }
        })
    }
}

/// A body that is a text.
async fn text(body: Upload) -> Result<String, Refused> {
    let unread = |message: String| Refused::Unread(Unread::Query(message));
    let read = Limited::new(body, LOCKFILE_BYTES_MAX).collect().await;
    let bytes: Bytes = read.map_err(|error| unread(format!("the body: {error}")))?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|_invalid| unread("the body is no UTF-8".to_owned()))
}

fn story(job: carry::Job) -> Response<Body> {
    with(reply::OK, JSON_LINES, Body::images(job))
}
