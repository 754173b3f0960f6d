//! One HTTP exchange: the reqwest client of an upstream, its limits, and what its failures mean.
//!
//! What must hold: no redirect is followed here, no cookie kept, no body decoded, no Referer sent, no proxy used that was not
//! configured; every wait is bounded; a URL never appears in an error. Whom TLS trusts is in `trust.rs`.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VIA};
use http::{HeaderMap, HeaderValue, Method};
use reqwest::{NoProxy, Proxy, Response, Url};
use rustls_pki_types::CertificateDer;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::error::{BuildError, Cause, Error};
use super::guard::{Exceptions, Guard, Refused};
use super::metrics::{Kind, Meter};
use super::settings::{Limits, ProxyEnv, Settings};
use super::trust;

const USER_AGENT: &str =
    concat!("roadstead/", env!("CARGO_PKG_VERSION"), " (+https://github.com/roadstead/roadstead)");
/// How long an idle connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// HTTP/2 connections with running streams are probed, or a connection that a middlebox forgot would swallow every request until TCP
/// gives up.
const HTTP2_PROBE: Duration = Duration::from_secs(20);
const HTTP2_PROBE_ANSWER: Duration = Duration::from_secs(5);
/// Header fields of one answer; no registry and no CDN comes near it. Their bytes over HTTP/1.1 have a ceiling in hyper, of 400 KiB.
const HEADER_FIELDS: usize = 100;
/// Header bytes of one answer over HTTP/2, where the library's own ceiling is near what signed URLs and policies need.
const HTTP2_HEADER_BYTES: u32 = 64 * 1024;
/// Bytes that an upstream may send ahead on one HTTP/2 stream: a download gets no more than this per round trip, so the library's 2 MiB
/// were 20 MiB/s over 100 ms. A stream that nobody reads may hold as much in memory.
const HTTP2_STREAM_BYTES: u32 = 8 * 1024 * 1024;
/// The same for a connection with all its streams. Bodies that are read slowly fill it, so it has room for one more than three of them.
const HTTP2_CONNECTION_BYTES: u32 = 4 * HTTP2_STREAM_BYTES;
const TCP_PROBE: Duration = Duration::from_secs(30);
/// How long we read the rest of an answer that nobody needs, so that its connection can be used again.
const DRAIN: Duration = Duration::from_millis(500);
/// Beyond this a rest is not worth reading.
const DRAIN_BYTES: u64 = 64 * 1024;
/// Loopback is never behind a proxy of the environment.
const NEVER_PROXIED: &str = "localhost,127.0.0.0/8,::1";

/// The HTTP client of one upstream; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Transport(Arc<Inner>);

struct Inner {
    recipe: Arc<Recipe>,
    /// Made with the first request: the system's authorities take longer to read than everything else at the start.
    client: OnceCell<reqwest::Client>,
    tasks: TaskTracker,
    meter: Meter,
    via: HeaderValue,
    headers_limit: Duration,
}

/// What a client is made of; all of it was checked.
struct Recipe {
    guard: Guard,
    connect_limit: Duration,
    proxies: Vec<Proxy>,
    authorities: Vec<CertificateDer<'static>>,
}

/// One request to one URL.
pub(super) struct Outgoing<'a> {
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: &'a HeaderMap,
    /// A secret or public Authorization; marked sensitive before it is sent.
    pub(super) authorization: Option<&'a HeaderValue>,
    pub(super) body: Option<String>,
}

/// The moment until which a caller waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(super) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// This moment, or the end of `limit` if that comes first.
    pub(super) fn within(self, limit: Duration) -> Self {
        Self(self.0.min(Instant::now() + limit))
    }

    /// The time for a stage that has a limit of its own.
    pub(super) fn stage(self, limit: Duration) -> Duration {
        self.remaining().min(limit)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the recipe nor the client: both print the proxy's password.
        f.debug_struct("Inner")
            .field("via", &self.via)
            .field("headers_limit", &self.headers_limit)
            .finish_non_exhaustive()
    }
}

impl Recipe {
    /// Blocks while the system's authorities are read.
    fn client(&self) -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(self.connect_limit)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(TCP_PROBE)
            .http1_max_headers(HEADER_FIELDS)
            .http2_max_header_list_size(HTTP2_HEADER_BYTES)
            .http2_initial_stream_window_size(HTTP2_STREAM_BYTES)
            .http2_initial_connection_window_size(HTTP2_CONNECTION_BYTES)
            .http2_keep_alive_interval(HTTP2_PROBE)
            .http2_keep_alive_timeout(HTTP2_PROBE_ANSWER)
            .dns_resolver(self.guard.clone())
            .tls_backend_preconfigured(trust::client_config(&self.authorities)?);
        for proxy in &self.proxies {
            builder = builder.proxy(proxy.clone());
        }
        let client = builder.build();
        client.map_err(|error| error.without_url().to_string())
    }
}

impl Transport {
    pub(super) fn new(
        settings: &Settings,
        proxies: &ProxyEnv,
        instance_id: &str,
        meter: Meter,
        tasks: &TaskTracker,
    ) -> Result<Self, BuildError> {
        let on_the_way = [&settings.proxy, &proxies.http, &proxies.https];
        let on_the_way = on_the_way.into_iter().flatten();
        let recipe = Recipe {
            guard: Guard::new(
                &settings.name,
                &settings.url,
                Exceptions {
                    named: settings.realms.iter().map(|text| host_of(text)).collect(),
                    proxies: on_the_way.map(|text| host_of(text)).collect(),
                    addresses: settings.allow_addresses.clone(),
                },
            ),
            connect_limit: settings.limits.connect,
            proxies: configured_proxies(settings.proxy.as_deref(), proxies)?,
            authorities: match &settings.ca_file {
                Some(file) => trust::authorities_in(&file.path)?,
                None => Vec::new(),
            },
        };
        let via = HeaderValue::try_from(format!("1.1 {instance_id}"))
            .map_err(|_invalid| BuildError::InstanceId)?;
        trust::read_ahead(tasks);
        Ok(Self(Arc::new(Inner {
            recipe: Arc::new(recipe),
            client: OnceCell::new(),
            tasks: tasks.clone(),
            meter,
            via,
            headers_limit: settings.limits.headers,
        })))
    }

    async fn client(&self) -> Result<&reqwest::Client, Error> {
        let make = || async {
            let recipe = Arc::clone(&self.0.recipe);
            let made = self.0.tasks.spawn_blocking(move || recipe.client()).await;
            let made = made.unwrap_or_else(|_stopped| Err("shutting down".into()));
            made.map_err(|reason| {
                let text = format!("the HTTP client cannot be made: {reason}");
                Error::Unreachable(Cause::Other(text.into()))
            })
        };
        self.0.client.get_or_try_init(make).await
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// Sends one request and waits for the headers of its answer.
    ///
    /// # Errors
    /// [`Error::Unreachable`], or [`Error::Junk`] if the URL leads to an address that may not be dialled.
    pub(super) async fn exchange(
        &self,
        outgoing: Outgoing<'_>,
        deadline: Deadline,
    ) -> Result<Response, Error> {
        let kind = outgoing.kind;
        let started = Instant::now();
        let limit = deadline.stage(self.0.headers_limit);
        let outcome = match timeout(limit, self.send(outgoing)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(Error::Unreachable(Cause::Timeout)),
        };
        match &outcome {
            Ok(response) => {
                self.0.meter.request(kind, response.status().as_u16());
                self.0.meter.first_byte(started.elapsed());
            }
            Err(error) => self.0.meter.request(kind, error.reason()),
        }
        outcome
    }

    async fn send(&self, outgoing: Outgoing<'_>) -> Result<Response, Error> {
        let request = self.build(outgoing)?;
        let answer = self.client().await?.execute(request).await;
        answer.map_err(|error| failure(&error))
    }

    fn build(&self, outgoing: Outgoing<'_>) -> Result<reqwest::Request, Error> {
        self.0.recipe.guard.admits(&outgoing.url).map_err(Refused::error)?;
        let mut request = reqwest::Request::new(outgoing.method, outgoing.url);
        let headers = request.headers_mut();
        headers.extend(outgoing.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        headers.insert(VIA, self.via(outgoing.headers.get(VIA)));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(value) = outgoing.authorization {
            let mut value = value.clone();
            value.set_sensitive(true);
            headers.insert(http::header::AUTHORIZATION, value);
        }
        if let Some(form) = outgoing.body {
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, form_type);
            *request.body_mut() = Some(form.into());
        }
        Ok(request)
    }

    /// Us, behind those through whom the request came.
    fn via(&self, before: Option<&HeaderValue>) -> HeaderValue {
        let own = &self.0.via;
        let joined = before.map(|before| [before.as_bytes(), b", ", own.as_bytes()].concat());
        let joined = joined.and_then(|joined| HeaderValue::from_bytes(&joined).ok());
        joined.unwrap_or_else(|| own.clone())
    }

    /// A whole body of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or how the body broke.
    pub(super) async fn body(
        &self,
        kind: Kind,
        mut response: Response,
        limit: u64,
        deadline: Deadline,
    ) -> Result<Bytes, Error> {
        if content_length(response.headers()).is_some_and(|length| length > limit) {
            return Err(Error::TooLarge);
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut whole = BytesMut::new();
        loop {
            let chunk = match timeout(deadline.remaining(), response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(whole.freeze()),
                Ok(Err(error)) => return Err(failure(&error)),
                Err(_elapsed) => return Err(Error::Unreachable(Cause::Timeout)),
            };
            self.0.meter.bytes(kind, chunk.len());
            if chunk.len() > limit.saturating_sub(whole.len()) {
                return Err(Error::TooLarge);
            }
            whole.extend_from_slice(&chunk);
        }
    }

    /// Reads the rest of an answer that nobody needs if it is short, so that its connection serves the next request.
    pub(super) async fn drain(&self, kind: Kind, response: Response, deadline: Deadline) {
        let short = content_length(response.headers()).is_none_or(|length| length <= DRAIN_BYTES);
        if short && response.content_length() != Some(0) {
            let until = Deadline::after(deadline.stage(DRAIN));
            // The rest is of no interest, and neither is how it ends.
            drop(self.body(kind, response, DRAIN_BYTES, until).await);
        }
    }
}

/// `Content-Length` as it stands in the headers; reqwest tells that of the body, which an answer to HEAD does not have.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Is the body encoded although identity was asked for?
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        !value.is_empty() && !value.eq_ignore_ascii_case(b"identity")
    })
}

/// Does the answer call itself an HTML page? No registry answers in HTML; captive portals, firewalls and login pages do.
pub(super) fn is_html(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let essence = value.as_bytes().split(|byte| *byte == b';').next();
        essence.is_some_and(|essence| {
            let essence = essence.trim_ascii();
            essence.eq_ignore_ascii_case(b"text/html")
                || essence.eq_ignore_ascii_case(b"application/xhtml+xml")
        })
    })
}

/// What a failed exchange or a broken body means.
pub(super) fn failure(error: &reqwest::Error) -> Error {
    if error.is_timeout() {
        return Error::Unreachable(Cause::Timeout);
    }
    let mut cause = None;
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return refused.error();
        }
        if error.is::<rustls::Error>() {
            return Error::Unreachable(Cause::Tls);
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            cause = cause.or_else(|| http_cause(error));
        }
        next = match error.downcast_ref::<io::Error>() {
            // `source` of an I/O error skips the error that it wraps.
            Some(error) => error.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    if error.is_connect() {
        return Error::Unreachable(Cause::Connect);
    }
    Error::Unreachable(cause.unwrap_or(Cause::Reset))
}

/// A peer that does not speak HTTP is told apart from a connection that broke.
fn http_cause(error: &hyper::Error) -> Option<Cause> {
    error.is_parse().then(|| Cause::Other(error.to_string().into()))
}

fn configured_proxies(own: Option<&str>, env: &ProxyEnv) -> Result<Vec<Proxy>, BuildError> {
    if let Some(own) = own {
        return Ok(vec![Proxy::all(checked_proxy(own)?).map_err(|_invalid| BuildError::Proxy)?]);
    }
    let exempt = match env.no_proxy.as_deref() {
        Some(list) => NoProxy::from_string(&format!("{list},{NEVER_PROXIED}")),
        None => NoProxy::from_string(NEVER_PROXIED),
    };
    let mut proxies = Vec::new();
    // An empty variable is no proxy.
    let set = |proxy: &Option<String>| proxy.clone().filter(|text| !text.trim().is_empty());
    if let Some(http) = &set(&env.http) {
        let proxy = Proxy::http(checked_proxy(http)?).map_err(|_invalid| BuildError::Proxy)?;
        proxies.push(proxy.no_proxy(exempt.clone()));
    }
    if let Some(https) = &set(&env.https) {
        let proxy = Proxy::https(checked_proxy(https)?).map_err(|_invalid| BuildError::Proxy)?;
        proxies.push(proxy.no_proxy(exempt));
    }
    Ok(proxies)
}

/// curl and Go accept a proxy without a scheme; so do we.
pub(super) fn checked_proxy(text: &str) -> Result<Url, BuildError> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url: Url = full.parse().map_err(|_invalid| BuildError::Proxy)?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(url)
    } else {
        Err(BuildError::Proxy)
    }
}

/// The host, without port, user and path, of what an operator may write.
fn host_of(text: &str) -> String {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = full.parse::<Url>().ok();
    url.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

/// Checks the limits that others rely on; see `settings.rs`.
pub(super) fn sane(limits: &Limits) -> Limits {
    Limits {
        attempts: limits.attempts.max(1),
        parallel: limits.parallel.clamp(1, tokio::sync::Semaphore::MAX_PERMITS),
        tag_pages: limits.tag_pages.max(1),
        ..limits.clone()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn encodings_and_pages_are_told() {
        assert!(is_encoded(&headers(&[("content-encoding", "gzip")])));
        assert!(!is_encoded(&headers(&[("content-encoding", "identity")])));
        assert!(!is_encoded(&headers(&[])));
        assert!(is_html(&headers(&[("content-type", "Text/HTML; charset=utf-8")])));
        assert!(!is_html(&headers(&[("content-type", "text/plain")])));
    }

    #[test]
    fn only_http_proxies_are_accepted() {
        for good in ["http://proxy:3128", "proxy:3128", "https://u:p@proxy"] {
            assert!(checked_proxy(good).is_ok(), "{good}");
        }
        for bad in ["socks5://proxy:1080", "", "http://", "://"] {
            assert!(checked_proxy(bad).is_err(), "{bad}");
        }
        assert_eq!(host_of("u:p@proxy:3128"), "proxy");
        assert_eq!(host_of("https://sso.example/x"), "sso.example");
    }
}
