//! Bearer tokens: fetched once per scope and lifetime, shared by all requests that need the same one.
//!
//! What must hold: one token request at a time for one key, however many ask, and its failure is shared for a second, so that a failing
//! realm is not hammered; a fetch runs in a task of its own, so that a caller that leaves neither wastes nor breaks it; a token that was
//! refused is dropped only if no newer one has taken its place. Our credential goes to the realm only after `realm.rs` said so, and
//! never along a redirect. Tokens live in memory only and are wiped when dropped.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::classify;
use super::credentials::{Credential, Fingerprint, sensitive};
use super::docker_config::Login;
use super::error::{Cause, Error};
use super::memory::{Asker, Bearer};
use super::metrics::Kind;
use super::realm::RealmRule;
use super::redirect::{self, Hops, Walk};
use super::retry::{Tries, Trouble, retry_after};
use super::settings::{Limits, Secret};
use super::throttle::{Lane, Throttle};
use super::token_body::{self, Grant};
use super::transport::{Deadline, Outgoing, Transport};
use crate::clock::Clock;

/// Tokens kept per upstream.
const TOKENS_MAX: u64 = 4096;
/// Waiters and newcomers share a failure for this long.
const FAILURE_SHARED: Duration = Duration::from_secs(1);
/// Refresh tokens that services replaced, kept per upstream.
const REPLACED_MAX: usize = 64;
/// Who we are in an OAuth2 request.
const CLIENT_ID: &str = "roadstead";

/// What a token is for, and by whose right. Not the host alone: a token of one repository must not be shown for another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) bearer: Bearer,
}

#[derive(Debug)]
pub(super) struct Token {
    secret: Secret,
    usable_until: Instant,
    renew_from: Instant,
    /// Grows with every token of the upstream.
    pub(super) generation: u64,
}

/// A token for one request.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    pub(super) token: Arc<Token>,
    /// Was it fetched for this very request (or one at the same time)? Then there is no newer one to hope for.
    pub(super) fresh: bool,
}

/// The tokens of one upstream.
#[derive(Debug)]
pub(super) struct Tokens {
    transport: Transport,
    rule: RealmRule,
    limits: Limits,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
    kept: moka::sync::Cache<TokenKey, Arc<Token>>,
    flights: Mutex<HashMap<TokenKey, Flight>>,
    throttle: Throttle,
    generations: AtomicU64,
    /// Refresh tokens that a service gave in place of the configured one, by a hash of credential and realm.
    replaced: Mutex<HashMap<u64, Secret>>,
}

type Outcome = Option<Result<Arc<Token>, Error>>;

/// One running or just failed token request.
#[derive(Debug)]
struct Flight {
    outcome: watch::Receiver<Outcome>,
    /// Set when it failed.
    failed: Option<Instant>,
}

impl Token {
    /// The value of Authorization.
    pub(super) fn header(&self) -> Result<HeaderValue, Error> {
        bearer_header(&self.secret)
    }
}

/// The value of a Bearer Authorization.
pub(super) fn bearer_header(token: &Secret) -> Result<HeaderValue, Error> {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
    sensitive(&text).ok_or_else(|| Error::credential("the token is no text for a header"))
}

impl Tokens {
    pub(super) fn new(
        transport: Transport,
        rule: RealmRule,
        limits: Limits,
        clock: Arc<dyn Clock>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            transport,
            rule,
            limits,
            clock,
            tasks,
            kept: moka::sync::Cache::new(TOKENS_MAX),
            flights: Mutex::new(HashMap::new()),
            throttle: Throttle::default(),
            generations: AtomicU64::new(0),
            replaced: Mutex::new(HashMap::new()),
        }
    }

    /// A token for `key`: a kept one, that of a request under way, or a new one.
    ///
    /// # Errors
    /// As the token service decided or failed; see `classify.rs`.
    pub(super) async fn get(
        self: &Arc<Self>,
        key: &TokenKey,
        who: &Arc<Credential>,
        deadline: Deadline,
    ) -> Result<Issued, Error> {
        self.rule.admits(&key.bearer.realm, who.login.is_some())?;
        if let Some(token) = self.usable(key) {
            if token.renew_from <= Instant::now() {
                drop(self.fly(key, who));
            }
            let fresh = false;
            return Ok(Issued { token, fresh });
        }
        let mut outcome = self.fly(key, who);
        let wait = timeout(deadline.remaining(), outcome.wait_for(Option::is_some)).await;
        let token = match wait {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err(abandoned()))?,
            Ok(Err(_closed)) => return Err(abandoned()),
            Err(_elapsed) => return Err(Error::Unreachable(Cause::Timeout)),
        };
        Ok(Issued { token, fresh: true })
    }

    /// Can [`get`](Self::get) do without waiting for a limit of the token service to end? For those who have somebody else to ask.
    ///
    /// # Errors
    /// [`Error::Limited`] with the time that is left.
    pub(super) fn at_once(&self, key: &TokenKey, who: &Credential) -> Result<(), Error> {
        let quiet = self.throttle.quiet_for(Lane::new(Kind::Token, Asker::of(who)));
        match quiet.filter(|_| self.usable(key).is_none()) {
            Some(left) => Err(Error::Limited { retry_after: Some(left) }),
            None => Ok(()),
        }
    }

    /// Drops a token that the registry refused, unless another request has already replaced it.
    pub(super) fn reject(&self, key: &TokenKey, generation: u64) {
        let refused = self.kept.get(key).is_some_and(|kept| kept.generation <= generation);
        if refused {
            self.kept.invalidate(key);
        }
    }

    fn usable(&self, key: &TokenKey) -> Option<Arc<Token>> {
        let token = self.kept.get(key)?;
        (token.usable_until > Instant::now()).then_some(token)
    }

    /// Joins the request for `key` that is under way or just failed, or starts one.
    fn fly(self: &Arc<Self>, key: &TokenKey, who: &Arc<Credential>) -> watch::Receiver<Outcome> {
        let mut flights = lock(&self.flights);
        flights.retain(|_key, flight| flight.is_of_use());
        if let Some(flight) = flights.get(key) {
            return flight.outcome.clone();
        }
        // It may have landed between the caller's look at the cache and the lock.
        if let Some(token) = self.usable(key).filter(|token| token.renew_from > Instant::now()) {
            return watch::channel(Some(Ok(token))).1;
        }
        let (sender, outcome) = watch::channel(None);
        let flight = Flight { outcome: outcome.clone(), failed: None };
        flights.insert(key.clone(), flight);
        drop(flights);
        let (tokens, key, who) = (Arc::clone(self), key.clone(), Arc::clone(who));
        self.tasks.spawn(async move {
            let result = tokens.fetch(&key, &who).await;
            tokens.land(&key, &result);
            sender.send_replace(Some(result));
        });
        outcome
    }

    /// Keeps a token before its flight ends, so that nobody finds neither.
    fn land(&self, key: &TokenKey, result: &Result<Arc<Token>, Error>) {
        let mut flights = lock(&self.flights);
        match result {
            Ok(token) => {
                self.kept.insert(key.clone(), Arc::clone(token));
                flights.remove(key);
            }
            Err(_) => {
                if let Some(flight) = flights.get_mut(key) {
                    flight.failed = Some(Instant::now());
                }
            }
        }
    }

    async fn fetch(&self, key: &TokenKey, who: &Credential) -> Result<Arc<Token>, Error> {
        let deadline = Deadline::after(self.limits.token);
        let mut tries = Tries::new(&self.limits);
        let response = loop {
            let turn =
                self.throttle.enter(Lane::new(Kind::Token, Asker::of(who)), deadline).await?;
            let outcome = self.ask(key, who, deadline).await;
            let trouble = match &outcome {
                Ok(response) if response.status().is_server_error() => Trouble::Passing,
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    let wait = retry_after(response.headers(), self.clock.now());
                    turn.limited(wait);
                    Trouble::Limited(wait)
                }
                Ok(_) => {
                    turn.passed();
                    break outcome?;
                }
                Err(error) => Trouble::of(error),
            };
            match tries.after(trouble, deadline) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => break outcome?,
            }
        };
        let grant = self.read(response, who, deadline).await?;
        if let Some(replacement) = grant.refresh_token.clone() {
            self.replace(key, who, replacement);
        }
        let now = Instant::now();
        Ok(Arc::new(Token {
            secret: grant.token,
            usable_until: now + grant.usable,
            renew_from: now + grant.renew_after,
            generation: self.generations.fetch_add(1, Ordering::Relaxed),
        }))
    }

    /// A refresh token is posted (OAuth2); everything else is a GET, which every token service knows.
    async fn ask(
        &self,
        key: &TokenKey,
        who: &Credential,
        deadline: Deadline,
    ) -> Result<Response, Error> {
        match &who.login {
            Some(Login::Identity { token, .. }) => {
                let current = lock(&self.replaced).get(&replacement_key(key)).cloned();
                let token = current.as_ref().unwrap_or(token);
                let outgoing = Outgoing {
                    kind: Kind::Token,
                    method: Method::POST,
                    url: key.bearer.realm.clone(),
                    headers: &HeaderMap::new(),
                    authorization: None,
                    body: Some(form(&key.bearer, token)),
                };
                self.transport.exchange(outgoing, deadline).await
            }
            login => {
                let username = match login {
                    Some(Login::Basic { username, .. }) => Some(username.as_str()),
                    _ => None,
                };
                let basic = who.basic();
                let walk = Walk {
                    kind: Kind::Token,
                    method: Method::GET,
                    url: &question(&key.bearer, username),
                    headers: &HeaderMap::new(),
                    authorization: basic.as_ref(),
                    // The credential is for this realm; where it points to is another.
                    hops: if login.is_some() { Hops::SameOrigin } else { Hops::Anywhere },
                    hops_max: self.limits.redirects,
                    endpoint: None,
                };
                let arrival = redirect::walk(&self.transport, &walk, deadline).await?;
                Ok(arrival.response)
            }
        }
    }

    async fn read(
        &self,
        response: Response,
        who: &Credential,
        deadline: Deadline,
    ) -> Result<Grant, Error> {
        let status = response.status();
        if status != StatusCode::OK {
            let after = retry_after(response.headers(), self.clock.now());
            let html = super::transport::is_html(response.headers());
            let limit = self.limits.error_body_bytes;
            let body = self.transport.body(Kind::Token, response, limit, deadline).await;
            let body = classify::ErrorBody::read(html, &body.unwrap_or_default());
            return Err(classify::token_refusal(status, &body, after, who.login.is_some()));
        }
        let limit = self.limits.token_bytes;
        match self.transport.body(Kind::Token, response, limit, deadline).await {
            Ok(body) => token_body::read(&body, self.clock.now())
                .ok_or_else(|| Error::credential("the token service answered without a token")),
            Err(Error::TooLarge) => {
                Err(Error::credential("the token service's answer is too large"))
            }
            Err(error) => Err(error),
        }
    }

    fn replace(&self, key: &TokenKey, who: &Credential, replacement: Secret) {
        if matches!(who.login, Some(Login::Identity { .. })) {
            let mut replaced = lock(&self.replaced);
            if replaced.len() >= REPLACED_MAX {
                replaced.clear();
            }
            replaced.insert(replacement_key(key), replacement);
        }
    }
}

impl Flight {
    /// Running, or failed so lately that the failure still counts.
    fn is_of_use(&self) -> bool {
        match self.failed {
            Some(failed) => failed.elapsed() < FAILURE_SHARED,
            // A task that ended without a word (the runtime is going down) has dropped its sender.
            None => self.outcome.has_changed().is_ok(),
        }
    }
}

fn abandoned() -> Error {
    Error::Unreachable(Cause::Other("the token request was abandoned".into()))
}

fn replacement_key(key: &TokenKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key.fingerprint, &key.bearer.realm).hash(&mut hasher);
    hasher.finish()
}

/// The GET form; a query that the realm already has is kept.
fn question(bearer: &Bearer, username: Option<&str>) -> Url {
    let mut url = bearer.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &bearer.service {
            query.append_pair("service", service);
        }
        for scope in bearer.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
        if let Some(username) = username {
            query.append_pair("account", username);
        }
    }
    url
}

/// The POST form (distribution spec, OAuth2 token authentication).
fn form(bearer: &Bearer, refresh_token: &Secret) -> String {
    let mut url = bearer.realm.clone();
    url.set_query(None);
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("grant_type", "refresh_token");
        query.append_pair("client_id", CLIENT_ID);
        query.append_pair("service", bearer.service.as_deref().unwrap_or_default());
        query.append_pair("scope", &bearer.scope);
        query.append_pair("refresh_token", refresh_token.expose());
    }
    url.query().unwrap_or_default().to_owned()
}

/// No holder of these locks can panic half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::clock::SystemClock;
    use crate::upstream::metrics::Metrics;
    use crate::upstream::settings::{ProxyEnv, Settings};

    fn bearer(realm: &str, scope: &str) -> Bearer {
        Bearer {
            realm: realm.parse().unwrap(),
            service: Some("the service".into()),
            scope: scope.into(),
        }
    }

    /// Tokens of an upstream whose realm nobody listens at, with one kept token.
    fn with_kept(usable: Duration, renew: Duration) -> (Arc<Tokens>, TokenKey) {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url: Url = format!("http://{}", closed.local_addr().unwrap()).parse().unwrap();
        let settings = Settings::new("stub.example".parse().unwrap(), url.clone());
        let meter = Metrics::new(&mut Registry::default()).of(&settings.name, "stub.example");
        let transport =
            Transport::new(&settings, &ProxyEnv::default(), "id", meter, &TaskTracker::new())
                .unwrap();
        let rule = RealmRule::new(&url, &[]);
        let clock = Arc::new(SystemClock);
        let tokens = Tokens::new(transport, rule, Limits::default(), clock, TaskTracker::new());
        let key = TokenKey { fingerprint: None, bearer: bearer(url.as_str(), "s") };
        let now = Instant::now();
        let token = Token {
            secret: "t".into(),
            usable_until: now + usable,
            renew_from: now + renew,
            generation: 7,
        };
        tokens.kept.insert(key.clone(), Arc::new(token));
        (Arc::new(tokens), key)
    }

    async fn get(tokens: &Arc<Tokens>, key: &TokenKey) -> Result<Issued, Error> {
        let nobody = Arc::new(Credential::anonymous());
        tokens.get(key, &nobody, Deadline::after(Duration::from_secs(5))).await
    }

    #[tokio::test]
    async fn a_token_is_renewed_behind_the_back_of_requests() {
        let hour = Duration::from_secs(3600);
        let (tokens, key) = with_kept(hour, hour);
        assert!(!get(&tokens, &key).await.unwrap().fresh);
        assert!(tokens.flights.lock().unwrap().is_empty());
        let (tokens, key) = with_kept(hour, Duration::ZERO);
        assert_eq!(get(&tokens, &key).await.unwrap().token.generation, 7);
        assert_eq!(tokens.flights.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_token_past_its_time_is_not_used() {
        let (tokens, key) = with_kept(Duration::ZERO, Duration::ZERO);
        let error = get(&tokens, &key).await.unwrap_err();
        assert_eq!(error, Error::Unreachable(Cause::Connect));
    }

    #[tokio::test]
    async fn only_the_refused_token_is_dropped() {
        let hour = Duration::from_secs(3600);
        let (tokens, key) = with_kept(hour, hour);
        tokens.reject(&key, 6);
        assert!(tokens.usable(&key).is_some());
        tokens.reject(&key, 7);
        assert!(tokens.usable(&key).is_none());
    }

    #[test]
    fn the_question_keeps_the_realms_own_query() {
        let url = question(&bearer("https://a/t?x=1", "repository:a/b:pull"), Some("me@x"));
        assert_eq!(
            url.as_str(),
            "https://a/t?x=1&service=the+service&scope=repository%3Aa%2Fb%3Apull&account=me%40x"
        );
        let url = question(&bearer("https://public.ecr.aws/token/", "a b"), None);
        assert_eq!(
            url.as_str(),
            "https://public.ecr.aws/token/?service=the+service&scope=a&scope=b"
        );
    }

    #[test]
    fn the_form_has_one_scope_parameter() {
        let text = form(&bearer("https://a/t?x=1", "a b"), &"se&cret".into());
        assert_eq!(
            text,
            "grant_type=refresh_token&client_id=roadstead&service=the+service&scope=a+b&refresh_token=se%26cret"
        );
    }
}
