//! The rows of the table by name, for those who fill them and those who judge them.

use crate::table::Key;

/// A load of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    pub(crate) rate: Key,
    pub(crate) cpu: Key,
}

/// A load of bodies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bodies {
    pub(crate) rate: Key,
    pub(crate) cpu: Key,
}

/// Clients on a blob that nobody has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) upstream: Key,
    pub(crate) wall: Key,
    pub(crate) ratio: Key,
    pub(crate) cpu: Key,
    pub(crate) cpu_served: Key,
    pub(crate) first: Key,
    pub(crate) first_max: Key,
}

const fn requests(measure: &'static str) -> Requests {
    Requests { rate: (measure, "req/s"), cpu: (measure, "CPU us/req") }
}

const fn bodies(measure: &'static str) -> Bodies {
    Bodies { rate: (measure, "GiB/s"), cpu: (measure, "CPU s/GiB") }
}

const fn fetch(measure: &'static str) -> Fetch {
    Fetch {
        upstream: (measure, "upstream bytes / size"),
        wall: (measure, "wall s"),
        ratio: (measure, "wall / direct"),
        cpu: (measure, "CPU s/GiB of size"),
        cpu_served: (measure, "CPU s/GiB served"),
        first: (measure, "first byte ms, median"),
        first_max: (measure, "first byte ms, max"),
    }
}

pub(crate) const GET_TAG: Requests = requests("manifest GET by tag");
pub(crate) const HEAD_TAG: Requests = requests("manifest HEAD by tag");
pub(crate) const GET_DIGEST: Requests = requests("manifest GET by digest");
pub(crate) const HEAD_DIGEST: Requests = requests("manifest HEAD by digest");
pub(crate) const BLOB_1: Bodies = bodies("warm large blob, 1 connection");
pub(crate) const BLOB_8: Bodies = bodies("warm large blob, 8 connections");
pub(crate) const BLOB_64: Bodies = bodies("warm small blob, 64 connections");
pub(crate) const COLD: Fetch = fetch("cold blob, 1 client");
pub(crate) const MANY: Fetch = fetch("cold blob, 16 clients");
const SLOW: &str = "cold blob, 32 MiB/s upstream";
pub(crate) const SLOW_IDEAL: Key = (SLOW, "wall / ideal");
pub(crate) const SLOW_FIRST: Key = (SLOW, "first byte ms");
pub(crate) const SLOW_LATE: Key = (SLOW, "late joiner's first byte ms");
pub(crate) const SLOW_LATE_END: Key = (SLOW, "late joiner's end / first one's");
pub(crate) const SLOW_UPSTREAM: Key = (SLOW, "upstream bytes / size");
pub(crate) const IMAGE_REQUESTS: Key = ("never seen image of 11 objects", "upstream requests");
pub(crate) const IMAGE_PINGS: Key = ("never seen image of 11 objects", "upstream pings");
pub(crate) const START: Key = ("start with 20,000 blobs", "ready ms");
pub(crate) const SMALL_GET: Requests = requests("manifest GET by tag, 10 blobs in store");
pub(crate) const GROWN_GET: Requests = requests("manifest GET by tag, 1,000,000 blobs in store");
pub(crate) const SMALL_HEAD: Requests = requests("manifest HEAD by digest, 10 blobs in store");
pub(crate) const GROWN_HEAD: Requests =
    requests("manifest HEAD by digest, 1,000,000 blobs in store");
pub(crate) const SMALL_BLOB: Requests = requests("blob GET of 1.5 KB, 10 blobs in store");
pub(crate) const GROWN_BLOB: Requests = requests("blob GET of 1.5 KB, 1,000,000 blobs in store");
pub(crate) const GROWN_START: Key = ("start with 1,000,000 blobs", "ready ms");
pub(crate) const ANONYMOUS: Key = ("memory at the peak", "anonymous MiB");
pub(crate) const RESIDENT: Key = ("memory at the peak", "resident MiB");
