//! The one table of keys: what may be said, how it is read, what it sets, and a sentence for whoever asks.
//!
//! The file, the environment and the documentation are all checked against this table, so a key that is not here does not exist, and
//! a key that is here works everywhere.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::carry::{SCHEDULE_EVERY_MIN, Schedule};
use crate::content::MinFree;
use crate::oci::{MANIFEST_SIZE_LIMIT_MIN, PlatformPattern, RANGES_PER_REQUEST_MAX, RegistryName};
use crate::proxy::{Private, TagPolicyOverrides, WhenAbsent};
use crate::registry::CatalogPolicy;
use crate::registry::desk::Image;
use crate::server::Fallback;
use crate::upkeep::{MAX_SIZE_MIN, SCRUB_PERIOD_MIN};

use super::draft::{Draft, RuleDraft, UpstreamDraft};
use super::model::LogFormat;
use super::secret::Secret;
use super::values::{Parsed, Raw};

/// One key.
pub(super) struct Key {
    /// Its name within its scope, with dots for tables.
    pub(super) name: &'static str,
    pub(super) set: Setter,
    /// What it decides, in one sentence.
    pub(super) doc: &'static str,
}

/// Where a key may stand, and how its value gets into the draft.
pub(super) enum Setter {
    Top(fn(&mut Draft, &Raw) -> Parsed<()>),
    Upstream(fn(&mut UpstreamDraft, &Raw) -> Parsed<()>),
    /// In an upstream's table and in each of its tag rules.
    Tags(fn(&mut TagPolicyOverrides, &Raw) -> Parsed<()>),
    /// In a tag rule only.
    Rule(fn(&mut RuleDraft, &Raw) -> Parsed<()>),
    /// In a list of images that are followed.
    Warm(fn(&mut Schedule, &Raw) -> Parsed<()>),
}

/// The scopes of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Top,
    Upstream,
    Rule,
    Warm,
}

impl Key {
    pub(super) fn is_in(&self, scope: Scope) -> bool {
        match self.set {
            Setter::Top(_) => scope == Scope::Top,
            Setter::Upstream(_) => scope == Scope::Upstream,
            Setter::Tags(_) => matches!(scope, Scope::Upstream | Scope::Rule),
            Setter::Rule(_) => scope == Scope::Rule,
            Setter::Warm(_) => scope == Scope::Warm,
        }
    }
}

/// The key of that name.
pub(super) fn key(scope: Scope, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name && key.is_in(scope))
}

/// Do keys exist below this table?
pub(super) fn is_section(scope: Scope, name: &str) -> bool {
    let below = |key: &Key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    KEYS.iter().any(|key| key.is_in(scope) && below(key))
}

const fn top(
    name: &'static str,
    set: fn(&mut Draft, &Raw) -> Parsed<()>,
    doc: &'static str,
) -> Key {
    Key { name, set: Setter::Top(set), doc }
}

const fn upstream(
    name: &'static str,
    set: fn(&mut UpstreamDraft, &Raw) -> Parsed<()>,
    doc: &'static str,
) -> Key {
    Key { name, set: Setter::Upstream(set), doc }
}

const fn tags(
    name: &'static str,
    set: fn(&mut TagPolicyOverrides, &Raw) -> Parsed<()>,
    doc: &'static str,
) -> Key {
    Key { name, set: Setter::Tags(set), doc }
}

const fn rule(
    name: &'static str,
    set: fn(&mut RuleDraft, &Raw) -> Parsed<()>,
    doc: &'static str,
) -> Key {
    Key { name, set: Setter::Rule(set), doc }
}

const fn warm(
    name: &'static str,
    set: fn(&mut Schedule, &Raw) -> Parsed<()>,
    doc: &'static str,
) -> Key {
    Key { name, set: Setter::Warm(set), doc }
}

const FALLBACKS: [(&str, Fallback); 2] = [("clients", Fallback::Clients), ("none", Fallback::None)];
const CATALOGS: [(&str, CatalogPolicy); 3] =
    [("public", CatalogPolicy::Public), ("all", CatalogPolicy::All), ("off", CatalogPolicy::Off)];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];
const LEVELS: [(&str, &str); 5] = [
    ("error", "error"),
    ("warn", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
];
const PRIVATES: [(&str, Private); 2] = [("refuse", Private::Refuse), ("shared", Private::Shared)];
const ABSENTS: [(&str, WhenAbsent); 2] = [("obey", WhenAbsent::Obey), ("keep", WhenAbsent::Keep)];
/// The word for a duration without end.
const UNLIMITED: &str = "unlimited";
/// The word for a period without an end.
const OFF: &str = "off";
/// The smallest header limit: below it ordinary requests of lazy pullers would be refused.
const HEADER_BYTES_MIN: u64 = 8 << 10;
/// The smallest limit of a path or a query: the longest name and digest must fit.
const PATH_BYTES_MIN: u64 = 512;

fn min_free(raw: &Raw) -> Parsed<MinFree> {
    let text = raw.text()?;
    if text == "auto" {
        return Ok(MinFree::Default);
    }
    let Some(percent) = text.strip_suffix('%') else {
        let refusal = |_size| {
            format!(
                "{text:?} is neither \"auto\", nor a size such as \"20GiB\", nor a share such as \"10%\""
            )
        };
        return raw.size().map(MinFree::Bytes).map_err(refusal);
    };
    let percent = percent.trim().parse::<u8>().ok().filter(|percent| *percent < 100);
    percent
        .map(MinFree::Percent)
        .ok_or_else(|| format!("{text:?} is no share; want \"0%\" to \"99%\""))
}

fn filter(raw: &Raw) -> Parsed<Option<String>> {
    let text = raw.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
    parsed.map_err(|invalid| format!("{text:?}: {invalid}"))?;
    Ok(Some(text.to_owned()))
}

fn ranges(raw: &Raw) -> Parsed<usize> {
    let wanted = raw.count(1)?;
    if wanted > RANGES_PER_REQUEST_MAX {
        return Err(format!("at most {RANGES_PER_REQUEST_MAX} can be served"));
    }
    Ok(wanted)
}

fn endless(raw: &Raw) -> Parsed<Option<Duration>> {
    match raw {
        Raw::Text(text) | Raw::Loose(text) if text == UNLIMITED => Ok(None),
        raw => raw.duration().map(Some).map_err(|refusal| format!("{refusal}, or \"{UNLIMITED}\"")),
    }
}

fn admin_listen(raw: &Raw) -> Parsed<Option<SocketAddr>> {
    or_off(raw, Raw::address)
}

/// A name as the `Host` header has it, without a port.
fn admin_host(raw: &Raw) -> Parsed<String> {
    let text = raw.filled()?;
    let name = text.parse::<RegistryName>().ok().filter(|name| !name.as_str().contains(':'));
    let address = || {
        text.parse::<IpAddr>().ok().map(|address| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        })
    };
    name.map(|name| name.to_string()).or_else(address).ok_or_else(|| {
        format!("{text:?} is no name of a machine; want one such as \"cache.example.com\", without a port")
    })
}

/// A value, or the word for none.
fn or_off<T>(raw: &Raw, value: impl Fn(&Raw) -> Parsed<T>) -> Parsed<Option<T>> {
    match raw {
        Raw::Text(text) | Raw::Loose(text) if text == OFF => Ok(None),
        raw => value(raw).map(Some).map_err(|refusal| format!("{refusal}, or \"{OFF}\"")),
    }
}

fn max_size(raw: &Raw) -> Parsed<Option<u64>> {
    or_off(raw, |raw| raw.size_from(MAX_SIZE_MIN))
}

fn max_unused(raw: &Raw) -> Parsed<Option<Duration>> {
    or_off(raw, Raw::timeout)
}

/// What it means is found out when it is fetched; here it must be a name.
fn image(raw: &Raw) -> Parsed<String> {
    let text = raw.filled()?;
    let refuse = |_error| {
        format!(
            "{text:?} is no image; want one such as \"ghcr.io/org/app:1\", without a scheme and without spaces"
        )
    };
    Image::check(text).map(|()| text.to_owned()).map_err(refuse)
}

fn platform(raw: &Raw) -> Parsed<PlatformPattern> {
    let text = raw.filled()?;
    text.parse().map_err(|invalid| format!("{text:?} is no platform; {invalid}"))
}

fn every(raw: &Raw) -> Parsed<Duration> {
    match raw.duration()? {
        every if every < SCHEDULE_EVERY_MIN => {
            Err(format!("a list is warmed every {} s at most", SCHEDULE_EVERY_MIN.as_secs()))
        }
        every => Ok(every),
    }
}

fn scrub_period(raw: &Raw) -> Parsed<Option<Duration>> {
    match raw {
        Raw::Text(text) | Raw::Loose(text) if text == OFF => Ok(None),
        raw => match raw.duration() {
            Ok(period) if period >= SCRUB_PERIOD_MIN => Ok(Some(period)),
            Ok(_) => Err(format!("a period is at least 1h, or \"{OFF}\"")),
            Err(refusal) => Err(format!("{refusal}, or \"{OFF}\"")),
        },
    }
}

/// Every key, in the order of `config/roadstead.toml`. A table is read by its lines, so each key keeps one.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    top("listen", |d, v| v.address().map(|x| d.config.listen = x), "address and port where clients pull"),
    top("observe", |d, v| v.address().map(|x| d.config.observe = x), "address and port of /metrics, /livez and /readyz"),
    top("admin_listen", |d, v| admin_listen(v).map(|x| d.config.admin_listen = x), "address and port of the admin API besides its socket, behind the token in admin-token; \"off\" is none"),
    top("admin_hosts", |d, v| v.list(admin_host).map(|x| d.config.admin_hosts = x), "names under which admin_listen is asked, besides localhost and its own address"),
    top("clients", |d, v| v.list(Raw::network).map(|x| d.config.clients = x), "address ranges that may pull"),
    top("fallback", |d, v| v.word(&FALLBACKS).map(|x| d.config.fallback = x), "\"clients\" if clients of a mirror can go upstream themselves, else \"none\""),
    top("data", |d, v| v.path().map(|x| d.config.data = x), "directory of everything that is kept"),
    top("min_free", |d, v| min_free(v).map(|x| d.config.min_free = x), "disk space that stays free: a size, a share, or \"auto\" (10%, at most 20GiB)"),
    top("manifest_cache", |d, v| v.size().map(|x| d.config.manifest_cache_bytes = x), "memory for hot manifests"),
    top("scrub_period", |d, v| scrub_period(v).map(|x| d.config.scrub_period = x), "time within which everything that is stored is read again and checked, or \"off\""),
    top("max_size", |d, v| max_size(v).map(|x| d.config.max_size = x), "bytes of all that is stored, at most, or \"off\""),
    top("max_unused", |d, v| max_unused(v).map(|x| d.config.max_unused = x), "time after its last use at which content goes, or \"off\""),
    top("young_for", |d, v| v.duration().map(|x| d.config.young_for = x), "time after its last use for which content is never evicted"),
    top("delete_grace", |d, v| v.duration().map(|x| d.config.delete_grace = x), "time for which deleted content stays"),
    top("default_upstream", |d, v| v.registry_name().map(|x| d.config.default_upstream = x), "registry of names that say none"),
    top("parent", |d, v| v.parent_url().map(|x| d.parent = x), "address of another roadstead that is asked first; \"\" is none"),
    top("parent_ca_file", |d, v| v.path().map(|x| d.parent_ca_file = Some(x)), "certificates (PEM) to trust for the parent besides the system's"),
    top("builtin_upstreams", |d, v| v.boolean().map(|x| d.builtin_upstreams = x), "serve the well-known registries without being told"),
    top("tag_fresh_for", |d, v| v.duration().map(|x| d.tag_fresh_for = Some(x)), "fresh_for of every upstream that has none of its own"),
    top("allow_addresses", |d, v| v.list(Raw::network).map(|x| d.allow_addresses = x), "address ranges that are not public and that the answers of any upstream may lead to"),
    top("offline", |d, v| v.boolean().map(|x| d.config.offline = x), "never ask any upstream; serve what is here"),
    top("catalog", |d, v| v.word(&CATALOGS).map(|x| d.config.catalog = x), "what _catalog lists: \"public\", \"all\" or \"off\""),
    top("drain", |d, v| v.duration().map(|x| d.config.drain = x), "time for running answers after the order to stop"),
    top("log_format", |d, v| v.word(&FORMATS).map(|x| d.config.log.format = x), "\"text\" or \"json\""),
    top("log_level", |d, v| v.word(&LEVELS).map(|x| d.config.log.level = x.to_owned()), "level of roadstead's own lines"),
    top("log_filter", |d, v| filter(v).map(|x| d.config.log.filter = x), "tracing directives in place of log_level, such as \"roadstead::upstream=debug,info\""),
    top("limits.answer", |d, v| v.timeout().map(|x| d.config.limits.answer = x), "time within which a cold request is answered or refused"),
    top("limits.answer_soci", |d, v| v.timeout().map(|x| d.config.limits.answer_soci = x), "the same for the SOCI snapshotter"),
    top("limits.answer_lazy", |d, v| v.timeout().map(|x| d.config.limits.answer_lazy = x), "the same for ranges that other lazy pullers ask for"),
    top("limits.answer_referrers", |d, v| v.timeout().map(|x| d.config.limits.answer_referrers = x), "the same for referrers"),
    top("limits.connections", |d, v| v.count(1).map(|x| d.config.limits.connections = x), "client connections at a time"),
    top("limits.connections_per_client", |d, v| v.count(1).map(|x| d.config.limits.connections_per_client = x), "connections of one client address (IPv6: of one /64) at a time"),
    top("limits.header_bytes", |d, v| v.size_from(HEADER_BYTES_MIN).map(|x| d.config.limits.header_bytes = x), "size of a request's line and headers"),
    top("limits.header_time", |d, v| v.timeout().map(|x| d.config.limits.header_time = x), "time for a request's headers"),
    top("limits.idle_connection", |d, v| v.timeout().map(|x| d.config.limits.idle_connection = x), "time that a connection may be silent between requests"),
    top("limits.idle_body", |d, v| v.timeout().map(|x| d.config.limits.idle_body = x), "time that a reader may take no byte"),
    top("limits.min_rate", |d, v| v.size().map(|x| d.config.limits.min_rate = x), "bytes per second that a reader must take on average over idle_body; \"0\" is any"),
    top("limits.ranges", |d, v| ranges(v).map(|x| d.config.limits.ranges = x), "ranges in one request, at most 1024"),
    top("limits.path_bytes", |d, v| v.size_from(PATH_BYTES_MIN).map(|x| d.config.limits.path_bytes = x), "size of a path"),
    top("limits.query_bytes", |d, v| v.size_from(PATH_BYTES_MIN).map(|x| d.config.limits.query_bytes = x), "size of a query"),
    upstream("url", |u, v| v.registry_url().map(|x| u.url = Some(x)), "address of the registry; without it https://<name>"),
    upstream("mirrors", |u, v| v.list(Raw::copy_url).map(|x| u.mirrors = x), "addresses of copies that are asked before it, in order"),
    upstream("parent", |u, v| v.boolean().map(|x| u.parent = x), "ask the parent for it, if there is one"),
    upstream("aliases", |u, v| v.list(Raw::registry_name).map(|x| u.aliases = x), "other names that clients use for it"),
    upstream("patterns", |u, v| v.list(Raw::family).map(|x| u.patterns = x), "families of hosts that are registries of their own with these settings, such as \"*.pkg.dev\""),
    upstream("hosts", |u, v| v.list(Raw::registry_name).map(|x| u.hosts = x), "Host headers that mean this upstream"),
    upstream("listen", |u, v| v.address().map(|x| u.listen = Some(x)), "listener for this upstream alone"),
    upstream("username", |u, v| v.filled().map(|x| u.username = Some(x.to_owned())), "user of the credential"),
    upstream("password", |u, v| v.filled().map(|x| u.password = Some(crate::upstream::Secret::new(x))), "password of the credential; better password_file"),
    upstream("password_file", |u, v| v.path().map(|x| u.password_file = Some(x)), "file with the password, read again when it changes"),
    upstream("docker_config", |u, v| v.path().map(|x| u.docker_config = Some(x)), "docker config.json with the credential, read again when it changes"),
    upstream("credential_helper", |u, v| v.program().map(|x| u.credential_helper = Some(x)), "program that gives the credential (docker's protocol): a name found in PATH, or a path with its arguments"),
    upstream("credential_refresh", |u, v| v.timeout().map(|x| u.credential_refresh = x), "age from which a helper's credential is asked for anew"),
    upstream("realms", |u, v| v.list(Raw::host).map(|x| u.realms = Some(x)), "hosts of token services that may be given the credential"),
    upstream("ca_file", |u, v| v.path().map(|x| u.ca_file = Some(x)), "certificates (PEM) to trust besides the system's"),
    upstream("proxy", |u, v| v.proxy_url().map(|x| u.proxy = Some(Secret::new(x))), "HTTP proxy on the way to it, in place of the environment's"),
    upstream("allow_addresses", |u, v| v.list(Raw::network).map(|x| u.allow_addresses = x), "address ranges that are not public and that redirects and token services may lead to"),
    upstream("quota_reserve", |u, v| v.count(0).map(|x| u.quota_reserve = x), "requests left at which those that nobody needs are not made"),
    upstream("library", |u, v| v.boolean().map(|x| u.library = x), "names of one component mean library/<name>"),
    upstream("max_size", |u, v| max_size(v).map(|x| u.max_size = x), "bytes of what came through it, at most, or \"off\""),
    upstream("max_unused", |u, v| max_unused(v).map(|x| u.max_unused = x), "time after its last use at which what came through it goes, or \"off\"; the shorter of this and the key outside the tables counts"),
    upstream("keep_revisions", |u, v| v.count(0).map(|x| u.keep_revisions = x), "newest revisions of each tag that are kept as if pinned"),
    upstream("private", |u, v| v.word(&PRIVATES).map(|x| u.private = x), "\"refuse\" or \"shared\": what only the credential can read"),
    upstream("allow", |u, v| v.list(Raw::glob).map(|x| u.allow = x), "globs of repositories that may be pulled; empty is all"),
    upstream("deny", |u, v| v.list(Raw::glob).map(|x| u.deny = x), "globs of repositories that may not be pulled; wins over allow"),
    upstream("credential_grace", |u, v| v.duration().map(|x| u.credential_grace = x), "time that private content is served while the credential is in trouble"),
    upstream("offline", |u, v| v.boolean().map(|x| u.offline = x), "never ask this upstream; serve what is here"),
    upstream("allow_delete", |u, v| v.boolean().map(|x| u.allow_delete = x), "clients may delete tags and manifests from what is here"),
    tags("fresh_for", |t, v| v.duration().map(|x| t.fresh_for = Some(x)), "time that a tag is believed without asking"),
    tags("wait", |t, v| v.duration().map(|x| t.wait = Some(x)), "time that a client waits for the check of a tag"),
    tags("wait_recent", |t, v| v.duration().map(|x| t.wait_recent = Some(x)), "the same if the tag was confirmed within the hour"),
    tags("retry_after_failure", |t, v| v.duration().map(|x| t.retry_after_failure = Some(x)), "time after a failed check in which nobody waits"),
    tags("absent_for", |t, v| v.duration().map(|x| t.absent_for = Some(x)), "time that an absent tag is remembered"),
    tags("stale_if_error", |t, v| endless(v).map(|x| t.stale_if_error = Some(x)), "time that a tag bridges an outage, or \"unlimited\""),
    tags("stale_while_revalidate", |t, v| v.duration().map(|x| t.stale_while_revalidate = Some(x)), "time past freshness in which the check goes on behind the answer; \"0s\" is off"),
    tags("when_absent", |t, v| v.word(&ABSENTS).map(|x| t.when_absent = Some(x)), "\"obey\" or \"keep\": a known tag that upstream has no longer"),
    tags("immutable", |t, v| v.boolean().map(|x| t.immutable = Some(x)), "a known tag is never asked for again"),
    rule("keep_revisions", |r, v| v.count(0).map(|x| r.keep_revisions = Some(x)), "newest revisions of each tag that are kept as if pinned"),
    rule("pattern", |r, v| v.tag_pattern().map(|x| r.pattern = Some(x)), "glob of repository:tag, or of the tag alone"),
    upstream("limits.connect", |u, v| v.timeout().map(|x| u.limits.connect = x), "time for a connection, TLS included"),
    upstream("limits.headers", |u, v| v.timeout().map(|x| u.limits.headers = x), "time for a response's headers"),
    upstream("limits.answer", |u, v| v.timeout().map(|x| u.limits.answer = x), "time for the answer's headers, with tokens, redirects and retries"),
    upstream("limits.exchange", |u, v| v.timeout().map(|x| u.limits.exchange = x), "time for a manifest or a page of tags as a whole"),
    upstream("limits.listing", |u, v| v.timeout().map(|x| u.limits.listing = x), "time for all pages of a list"),
    upstream("limits.idle_body", |u, v| v.timeout().map(|x| u.limits.idle_body = x), "time that a body may bring no byte"),
    upstream("limits.token", |u, v| v.timeout().map(|x| u.limits.token = x), "time for one exchange with the token service"),
    upstream("limits.helper", |u, v| v.timeout().map(|x| u.limits.helper = x), "time for one run of a credential helper"),
    upstream("limits.manifest_bytes", |u, v| v.size_from(MANIFEST_SIZE_LIMIT_MIN).map(|x| u.limits.manifest_bytes = x), "size of a manifest; at least 4MiB"),
    upstream("limits.token_bytes", |u, v| v.size_from(1 << 10).map(|x| u.limits.token_bytes = x), "size of a token service's answer"),
    upstream("limits.error_body_bytes", |u, v| v.size_from(1 << 10).map(|x| u.limits.error_body_bytes = x), "part of an error's body that is read"),
    upstream("limits.redirects", |u, v| v.count(0).map(|x| u.limits.redirects = x), "redirects in a row"),
    upstream("limits.attempts", |u, v| v.count(1).map(|x| u.limits.attempts = x), "tries of one request, the first included"),
    upstream("limits.backoff_first", |u, v| v.duration().map(|x| u.limits.backoff_first = x), "first pause between tries; each is up to twice the one before"),
    upstream("limits.backoff_max", |u, v| v.duration().map(|x| u.limits.backoff_max = x), "longest pause between tries"),
    upstream("limits.tag_pages", |u, v| v.count(1).map(|x| u.limits.tag_pages = x), "pages of a tag list"),
    upstream("limits.parallel", |u, v| v.count(1).map(|x| u.limits.parallel = x), "requests at a time"),
    warm("images", |w, v| v.list(image).map(|x| w.images = x), "images as clients name them, which are fetched before anybody asks for them"),
    warm("every", |w, v| every(v).map(|x| w.every = x), "time between two looks at their tags"),
    warm("platforms", |w, v| v.list(platform).map(|x| w.platforms = x), "os/architecture[/variant] of images that have several; none is the one of this machine"),
    warm("referrers", |w, v| v.boolean().map(|x| w.referrers = x), "also fetch signatures, attestations and whatever else refers to them"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_occurs_twice_in_a_scope() {
        for scope in [Scope::Top, Scope::Upstream, Scope::Rule, Scope::Warm] {
            let mut names: Vec<&str> =
                KEYS.iter().filter(|key| key.is_in(scope)).map(|key| key.name).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "{scope:?}");
        }
    }

    #[test]
    fn free_space_is_a_size_a_share_or_auto() {
        let parse = |text: &str| min_free(&Raw::Text(text.to_owned()));
        assert_eq!(parse("auto"), Ok(MinFree::Default));
        assert_eq!(parse("10%"), Ok(MinFree::Percent(10)));
        assert_eq!(parse("20GiB"), Ok(MinFree::Bytes(20 << 30)));
        for bad in ["", "100%", "-1%", "10", "much"] {
            assert!(parse(bad).is_err(), "{bad:?} must not parse");
        }
    }

    #[test]
    fn a_scrub_has_a_period_or_is_off() {
        let parse = |text: &str| scrub_period(&Raw::Text(text.to_owned()));
        assert_eq!(parse("off"), Ok(None));
        assert_eq!(parse("7d"), Ok(Some(Duration::from_secs(7 * 86_400))));
        assert_eq!(parse("1h"), Ok(Some(SCRUB_PERIOD_MIN)));
        for bad in ["", "0s", "59m", "-1d", "never", "30"] {
            let refusal = parse(bad).unwrap_err();
            assert!(refusal.contains("off"), "{bad:?}: {refusal}");
        }
    }

    #[test]
    fn a_limit_is_a_size_or_a_time_or_off() {
        let text = |text: &str| Raw::Text(text.to_owned());
        assert_eq!(max_size(&text("off")), Ok(None));
        assert_eq!(max_size(&text("20GiB")), Ok(Some(20 << 30)));
        for bad in ["-5GB", "", "0", "1KiB", "much", "5", "1e9", "99999999999TiB"] {
            let refusal = max_size(&text(bad)).unwrap_err();
            assert!(refusal.contains("off"), "{bad:?}: {refusal}");
        }
        assert!(max_size(&Raw::Integer("5".to_owned())).unwrap_err().contains("unit"));
        assert_eq!(max_unused(&text("off")), Ok(None));
        assert_eq!(max_unused(&text("30d")), Ok(Some(Duration::from_secs(30 * 86_400))));
        for bad in ["-1d", "", "0s", "never", "30"] {
            let refusal = max_unused(&text(bad)).unwrap_err();
            assert!(refusal.contains("off"), "{bad:?}: {refusal}");
        }
    }

    #[test]
    fn a_list_names_images_and_platforms_and_has_its_time() {
        let text = |text: &str| Raw::Text(text.to_owned());
        assert_eq!(image(&text("ghcr.io/org/app:1")).as_deref(), Ok("ghcr.io/org/app:1"));
        for bad in ["", "docker://nginx", "nginx@sha256:12", "nginx:", "nginx 1"] {
            assert!(image(&text(bad)).is_err(), "{bad:?}");
        }
        assert!(platform(&text("linux/arm/v7")).is_ok());
        assert!(platform(&text("amd64")).unwrap_err().contains("os/architecture"));
        assert_eq!(every(&text("6h")), Ok(Duration::from_secs(6 * 3600)));
        assert!(every(&text("1s")).is_err() && every(&text("6")).is_err());
    }

    #[test]
    fn unlimited_is_a_duration_without_end() {
        assert_eq!(endless(&Raw::Text("unlimited".to_owned())), Ok(None));
        assert_eq!(endless(&Raw::Text("24h".to_owned())), Ok(Some(Duration::from_secs(86_400))));
        assert!(endless(&Raw::Text("for ever".to_owned())).unwrap_err().contains("unlimited"));
    }
}
