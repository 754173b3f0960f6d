//! One question to the registry, with everything that getting an answer takes: authentication, redirects, retries.
//!
//! The order of tries is that of the evidence in the field: a request goes out as the last clean challenge of its repository (or of the
//! upstream) says; if upstream refuses what came from a memory (400, 401 or 403, because registries differ in how they say it), the
//! token is renewed once; if that is refused, too, one clean request learns the challenge anew; then the refusal is believed. What must
//! hold: at most five requests, all within the deadline; a challenge is learned only from a clean and direct request; a refusal of a
//! redirect target is never answered with a credential.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, RANGE, VIA};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Url;

use super::blob::BlobRange;
use super::challenge;
use super::classify::{ErrorBody, Speaker, Standing};
use super::client::Client;
use super::credentials::Credential;
use super::docker_config::Login;
use super::endpoint::Role;
use super::error::Error;
use super::failover::Turn;
use super::memory::{Asker, Bearer, Need, Way};
use super::metrics::Kind;
use super::redirect::{self, Arrival, Hops, Lost, Walk};
use super::refused::{Asked, Refused, way_of};
use super::retry::{Tries, Trouble, retry_after};
use super::throttle::{self, Lane};
use super::token::{TokenKey, bearer_header};
use super::transport::{self, Deadline, Outgoing};
use crate::oci::RepositoryName;

/// How long the body of an error is waited for.
const ERROR_BODY: Duration = Duration::from_secs(2);

/// A question.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    pub(super) repository: &'a RepositoryName,
    pub(super) need: Need,
    pub(super) kind: Kind,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: Option<&'static str>,
    /// The part of a blob that is wanted.
    pub(super) range: BlobRange,
    pub(super) hops: Hops,
    /// Whose turn it is, and whether there is somebody else to ask.
    pub(super) turn: Turn<'a>,
}

/// Why there is no answer, with the status if there was one at the registry's end.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: Option<StatusCode>,
    pub(super) error: Error,
    /// It failed where the registry sent us to, not at the registry.
    pub(super) elsewhere: bool,
}

/// A question, who asks it, and until when.
#[derive(Clone, Copy)]
struct Case<'a> {
    who: &'a Arc<Credential>,
    ask: &'a Ask<'a>,
    deadline: Deadline,
    default_scope: &'a str,
}

/// What a request shows to be let in.
enum Pass {
    Clean,
    Basic(HeaderValue),
    Ready(HeaderValue),
    Token { header: HeaderValue, key: TokenKey, generation: u64, fresh: bool },
}

/// What was already tried for one question.
#[derive(Default)]
struct Progress {
    renewed: bool,
    learned: bool,
    /// The last refusal of something that we showed, and what that was.
    believed: Option<(Refused, Shown)>,
}

/// What was shown in vain.
enum Shown {
    Basic,
    Token { key: TokenKey, fresh: bool },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { status: None, error, elsewhere: false }
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        Self { status: None, error: lost.error, elsewhere: lost.elsewhere }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl<'a> Case<'a> {
    fn asked(self) -> Asked<'a> {
        Asked { url: &self.ask.url, default_scope: self.default_scope }
    }
}

impl Pass {
    fn header(&self) -> Option<&HeaderValue> {
        match self {
            Self::Clean => None,
            Self::Basic(header) | Self::Ready(header) | Self::Token { header, .. } => Some(header),
        }
    }

    fn standing(&self, who: &Credential) -> Standing {
        match self {
            Self::Clean => Standing::Clean { has_credential: who.login.is_some() },
            Self::Basic(_) => Standing::Basic,
            Self::Ready(_) => Standing::Ready,
            Self::Token { .. } => Standing::Token,
        }
    }
}

impl Client {
    /// Asks with our credential for the repository.
    pub(super) async fn ask(&self, ask: &Ask<'_>, deadline: Deadline) -> Result<Arrival, Failure> {
        match self.credentials.current(ask.repository, deadline).await {
            Ok(who) => self.ask_as(&who, ask, deadline).await,
            Err(error) => {
                self.transport.meter().credential(false);
                Err(error.into())
            }
        }
    }

    /// Asks as `who`; if upstream refuses a login that a helper gave, once more with a new one. A success, and a redirect that `ask.hops`
    /// stops, is an arrival.
    pub(super) async fn ask_as(
        &self,
        who: &Arc<Credential>,
        ask: &Ask<'_>,
        deadline: Deadline,
    ) -> Result<Arrival, Failure> {
        let outcome = self.ask_in_turn(who, ask, deadline).await;
        let Err(failure) = &outcome else {
            return outcome;
        };
        match who.renewed(&failure.error, deadline).await {
            Some(renewed) => self.ask_in_turn(&renewed, ask, deadline).await,
            None => outcome,
        }
    }

    /// Asks when the endpoint's limits let us. A limit that ends soon is waited for, unless there is somebody else to ask.
    async fn ask_in_turn(
        &self,
        who: &Arc<Credential>,
        ask: &Ask<'_>,
        deadline: Deadline,
    ) -> Result<Arrival, Failure> {
        let lane = Lane::new(ask.kind, Asker::of(who)).with(&ask.method);
        let mut left = self.limits.attempts;
        loop {
            let patience = if ask.turn.last { deadline } else { deadline.within(Duration::ZERO) };
            let turn = self.throttle.enter(lane, patience).await?;
            let mut outcome = self.authorised(who, ask, deadline).await;
            if let Err(failure) = &mut outcome
                // What a store does is not the doing of the registry's edge.
                && !failure.elsewhere
                && throttle::may_be_a_limit(&failure.error)
                && self.throttle.in_burst(lane)
            {
                *failure = Failure {
                    status: Some(StatusCode::TOO_MANY_REQUESTS),
                    error: Error::Limited { retry_after: None },
                    elsewhere: false,
                };
            }
            self.note(who, &outcome);
            // The limit of a token service is not the registry's; it is kept where tokens are. Who sends us elsewhere has answered.
            let failure = outcome.as_ref().err();
            let answered =
                failure.is_none_or(|failure| failure.status.is_some() || failure.elsewhere);
            turn.ended(failure.map(|failure| &failure.error), answered);
            left -= 1;
            match outcome {
                Err(Failure {
                    status: Some(_),
                    error: Error::Limited { retry_after: Some(wait) },
                    ..
                }) if ask.turn.last
                    && wait <= throttle::WAIT_MAX
                    && wait < deadline.remaining()
                    && left > 0 => {}
                outcome => return outcome,
            }
        }
    }

    /// Counts how a question ended.
    fn note(&self, who: &Credential, outcome: &Result<Arrival, Failure>) {
        // What an anonymous question shows says nothing about the health of a credential that we have.
        let tells = who.login.is_some() || self.credentials.fingerprint().is_none();
        let meter = self.transport.meter();
        match outcome.as_ref().map_err(|failure| &failure.error) {
            Ok(_arrival) => {
                meter.success(self.clock.now());
                if tells {
                    meter.credential(true);
                }
            }
            Err(Error::Credential(_)) if tells => meter.credential(false),
            Err(_) => {}
        }
    }

    async fn authorised(
        &self,
        who: &Arc<Credential>,
        ask: &Ask<'_>,
        deadline: Deadline,
    ) -> Result<Arrival, Failure> {
        let case = Case { who, ask, deadline, default_scope: &self.default_scope(ask.repository) };
        let mut progress = Progress::default();
        let mut pass = self.first_pass(case).await?;
        loop {
            let arrival = self.persist(ask, pass.header(), deadline).await?;
            if arrival.at_home && ask.kind == Kind::Manifest {
                let asker = if pass.header().is_some() { Asker::of(who) } else { Asker::Anonymous };
                self.quota.note(asker, arrival.response.headers());
            }
            if is_accepted(arrival.status()) {
                return Ok(arrival);
            }
            let refused = self.read_refusal(arrival, ask.kind, deadline).await;
            if !refused.is_about_the_pass(matches!(pass, Pass::Clean)) {
                return Err(refused.failure(pass.standing(who)));
            }
            pass = self.next_pass(&mut progress, pass, refused, case).await?;
        }
    }

    /// What to show before upstream has said anything.
    async fn first_pass(&self, case: Case<'_>) -> Result<Pass, Failure> {
        let Case { who, ask, .. } = case;
        if let Some(Login::Registry(token)) = &who.login {
            return Ok(Pass::Ready(bearer_header(token)?));
        }
        match self.memory.way(ask.repository, ask.need, case.default_scope) {
            None => Ok(Pass::Clean),
            Some(Way::Basic) => Ok(who.basic().map_or(Pass::Clean, Pass::Basic)),
            Some(Way::Bearer(bearer)) => match self.token_pass(bearer, case).await {
                Ok(pass) => Ok(pass),
                Err(error @ (Error::Limited { .. } | Error::Denied)) => Err(error.into()),
                // The realm may have moved: upstream itself is asked before this is believed.
                Err(_) => {
                    self.memory.forget(ask.repository, ask.need);
                    Ok(Pass::Clean)
                }
            },
        }
    }

    /// What to show after `pass` was refused.
    async fn next_pass(
        &self,
        progress: &mut Progress,
        pass: Pass,
        refused: Refused,
        case: Case<'_>,
    ) -> Result<Pass, Failure> {
        let standing = pass.standing(case.who);
        let hopeless = match &pass {
            Pass::Ready(_) => true,
            Pass::Clean | Pass::Basic(_) => progress.learned,
            Pass::Token { .. } => false,
        };
        if hopeless {
            return Err(refused.failure(standing));
        }
        match pass {
            Pass::Ready(_) | Pass::Clean => {
                progress.learned = true;
                self.learned_pass(progress, refused, case).await
            }
            Pass::Basic(_) => {
                self.memory.forget(case.ask.repository, case.ask.need);
                progress.believed = Some((refused, Shown::Basic));
                Ok(Pass::Clean)
            }
            Pass::Token { key, generation, fresh, .. } => {
                let demand = refused.demand(case.asked());
                let moved = demand.as_ref().is_some_and(|demand| *demand != key.bearer);
                let repeats = demand.is_some() && !moved;
                // A token that lacks a scope (lists want another at ACR) is good for what it was asked for.
                if !demand.is_some_and(|demand| key.bearer.differs_in_scope_only(&demand)) {
                    self.tokens.reject(&key, generation);
                }
                if !fresh && !progress.renewed && !moved {
                    progress.renewed = true;
                    let bearer = key.bearer.clone();
                    if let Ok(pass) = self.token_pass(bearer, case).await {
                        return Ok(pass);
                    }
                }
                let repeated = fresh && repeats;
                if progress.learned || repeated {
                    return Err(refused.failure(standing));
                }
                progress.believed = Some((refused, Shown::Token { key, fresh }));
                Ok(Pass::Clean)
            }
        }
    }

    /// What to show after a clean request was refused: its challenge is the one to remember, unless a redirect led to it.
    async fn learned_pass(
        &self,
        progress: &mut Progress,
        refused: Refused,
        case: Case<'_>,
    ) -> Result<Pass, Failure> {
        let standing = Pass::Clean.standing(case.who);
        let way = match refused.way(case.asked()) {
            Some(way) => Some(way),
            None => self.pinged_way(&refused, case).await,
        };
        let Some(way) = way else {
            return Err(refused.failure(standing));
        };
        if refused.direct {
            let ask = case.ask;
            self.memory.learn(ask.repository, ask.need, &way, case.default_scope);
        }
        let pass = match way {
            Way::Basic => match case.who.basic() {
                Some(header) => Pass::Basic(header),
                None => return Err(refused.failure(standing)),
            },
            Way::Bearer(bearer) => self.token_pass(bearer, case).await?,
        };
        // What was refused a moment ago, and cannot be had anew, need not be shown again.
        match progress.believed.take() {
            Some((before, Shown::Basic)) if matches!(pass, Pass::Basic(_)) => {
                Err(before.failure(Standing::Basic))
            }
            Some((before, Shown::Token { key, fresh: true })) if matches!(&pass, Pass::Token { key: again, .. } if *again == key) => {
                Err(before.failure(Standing::Token))
            }
            _ => Ok(pass),
        }
    }

    /// Some registries challenge only at `/v2/` (gcr.io, and Harbor for what it does not know). The scope there is not ours to use.
    async fn pinged_way(&self, refused: &Refused, case: Case<'_>) -> Option<Way> {
        if refused.status != StatusCode::UNAUTHORIZED && case.who.login.is_none() {
            return None;
        }
        let url = self.ping_url();
        let outgoing = Outgoing {
            kind: Kind::Ping,
            method: Method::GET,
            url: url.clone(),
            headers: &HeaderMap::new(),
            authorization: None,
            body: None,
        };
        let response = self.transport.exchange(outgoing, case.deadline).await.ok()?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return None;
        }
        let mut challenges = challenge::parse(response.headers());
        self.transport.drain(Kind::Ping, response, case.deadline).await;
        challenges.iter_mut().for_each(|challenge| challenge.scope = None);
        let asked = Asked { url: &url, ..case.asked() };
        way_of(&challenges, asked)
    }

    async fn token_pass(&self, bearer: Bearer, case: Case<'_>) -> Result<Pass, Error> {
        let Case { who, ask, deadline, .. } = case;
        let key = TokenKey { fingerprint: who.secret, bearer };
        if !ask.turn.last {
            self.tokens.at_once(&key, who)?;
        }
        let issued = self.tokens.get(&key, who, deadline).await?;
        Ok(Pass::Token {
            header: issued.token.header()?,
            key,
            generation: issued.token.generation,
            fresh: issued.fresh,
        })
    }

    /// One answer to the question as it is, over redirects and passing failures. HEAD is not repeated on 5xx: its caller has GET.
    async fn persist(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<Arrival, Lost> {
        let headers = ask.headers();
        let mut tries = Tries::new(&self.limits);
        if ask.method == Method::HEAD {
            tries.break_once();
        }
        loop {
            let walk = Walk {
                kind: ask.kind,
                method: ask.method.clone(),
                url: &ask.url,
                headers: &headers,
                authorization,
                hops: ask.hops,
                hops_max: self.limits.redirects,
                endpoint: Some(&self.endpoint),
            };
            let outcome = redirect::walk(&self.transport, &walk, deadline).await;
            let trouble = match &outcome {
                Ok(arrival) => self.trouble_of(arrival, ask),
                Err(lost) => Trouble::of(&lost.error),
            };
            let trouble = if ask.turn.last { trouble } else { Trouble::Lasting };
            match tries.after(trouble, deadline) {
                Some(pause) => {
                    if let Ok(arrival) = outcome {
                        self.transport.drain(ask.kind, arrival.response, deadline).await;
                    }
                    tokio::time::sleep(pause).await;
                }
                None => return outcome,
            }
        }
    }

    fn trouble_of(&self, arrival: &Arrival, ask: &Ask<'_>) -> Trouble {
        let status = arrival.status();
        match status.as_u16() {
            // A limit is waited for where the turns are given, by one for all.
            429 | 508 => Trouble::Lasting,
            500..=599 if ask.method == Method::GET => Trouble::Passing,
            // A signed URL went stale or its store hiccups: the registry gives a new one.
            401 | 403 | 404 if !arrival.at_home && ask.kind == Kind::Blob => Trouble::Passing,
            _ => Trouble::Lasting,
        }
    }

    async fn read_refusal(&self, arrival: Arrival, kind: Kind, deadline: Deadline) -> Refused {
        let status = arrival.status();
        let headers = arrival.response.headers();
        let challenges = challenge::parse(headers);
        let wait = retry_after(headers, self.clock.now());
        let html = transport::is_html(headers);
        let until = Deadline::after(deadline.stage(ERROR_BODY));
        let limit = self.limits.error_body_bytes;
        // An error body that is too long or breaks off says nothing; the status does.
        let body = self.transport.body(kind, arrival.response, limit, until).await;
        Refused {
            status,
            challenges,
            body: ErrorBody::read(html, &body.unwrap_or_default()),
            retry_after: wait,
            speaker: if arrival.at_home { Speaker::Registry } else { Speaker::Elsewhere },
            direct: arrival.direct,
            explained: self.endpoint.role() == Role::Parent,
        }
    }
}

impl Ask<'_> {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(via) = self.turn.via.and_then(|via| HeaderValue::from_str(via).ok()) {
            headers.insert(VIA, via);
        }
        if let Some(range) = self.range.header() {
            let range = HeaderValue::try_from(range);
            headers.insert(RANGE, range.expect("digits are a header value"));
        }
        headers
    }
}

/// Redirects arrive here only if the caller wanted them.
fn is_accepted(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}
