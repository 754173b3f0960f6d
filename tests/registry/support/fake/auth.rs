//! How the fake asks for credentials, hands out tokens and lets them die.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::log::Origin;
use super::message::{Reply, Req, form_values};
use super::state::{Addresses, State};

/// What the registry asks of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    None,
    Bearer,
    Basic,
    /// Bearer and Basic in one header line; a token is what counts.
    BearerAndBasicOneLine,
    /// Bearer and a bare Basic in two header lines.
    BearerAndBasicTwoLines,
    /// `WWW-Authenticate` is there and empty.
    EmptyHeader,
    /// 401 without a challenge; only `/v2/` has one (Google).
    NoHeaderExceptPing,
    /// Open, yet with a challenge on every 200 (Quay, zot).
    ChallengeOnSuccess,
    /// A scheme that the client cannot speak.
    DigestOnly,
}

/// Which token service the challenge names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Realm {
    /// The fake's own, on the registry's host and another port.
    Own,
    /// One for each first path component, on the registry's own port (Artifactory).
    PerRepository,
    /// A path without scheme and host.
    Relative,
    /// With a query string of its own that must come back.
    WithQuery,
    /// The foreign origin: takes whatever it is given and answers with a token.
    Foreign,
    Text(String),
}

/// The `scope` of the challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `repository:<name>:pull`.
    Repository,
    Missing,
    /// The name without its first component (Artifactory).
    WithoutFirstComponent,
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Quoted,
    /// Lower-case scheme and bare words (zot).
    Unquoted,
}

/// How a rejected token is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// 401 with the Bearer challenge and `error="invalid_token"`.
    Bearer,
    /// 401 `Basic` to any request that carries `Authorization` (Harbor).
    BasicOnly,
    /// 401 with another realm, which serves nobody (NVCR).
    OtherRealm,
    /// 400 without a challenge (ECR Public).
    BadRequest,
    /// 403 DENIED (ECR).
    Denied,
    /// 401 without a challenge.
    NoChallenge,
}

/// What an anonymous token request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// A token; it is worth nothing for private repositories.
    Allowed,
    /// This status at the token service.
    Refused(u16),
}

/// How a repository that is absent, or hidden from the caller, is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// 401 `insufficient_scope` (Docker Hub).
    Unauthorized,
    /// 403 DENIED.
    Denied,
    /// 404 NAME_UNKNOWN.
    NameUnknown,
    /// 404 NOT_FOUND (Harbor).
    NotFound,
    /// 404 in plain text (Akamai).
    Plain,
    /// 404 whose code is `"404"` (Red Hat).
    Numeric,
}

/// The document with which the token service answers.
#[derive(Clone)]
pub enum TokenBody {
    /// `token` and `access_token`, `expires_in` and `issued_at` (Docker Hub).
    Full {
        expires_in: u64,
    },
    /// `token` and nothing else (Quay, GHCR).
    TokenOnly,
    /// `access_token` and nothing else (ACR).
    AccessTokenOnly,
    /// `token`, and an empty `access_token` (Harbor).
    EmptyAccessToken,
    Custom(Arc<dyn Fn(&str) -> Value + Send + Sync>),
}

/// All switches of authentication; change them with `Fake::auth`.
#[derive(Clone)]
pub struct Auth {
    pub mode: Mode,
    pub realm: Realm,
    pub service: Option<String>,
    pub scope: Scope,
    pub style: Style,
    /// These lines instead of a challenge made from the switches above.
    pub challenge: Option<Vec<String>>,
    /// What `/v2/` says, for a challenge that must not be reused (GHCR's placeholder).
    pub ping_scope: Option<String>,
    pub users: Vec<(String, String)>,
    pub anonymous: Anonymous,
    pub token_body: TokenBody,
    /// A token is good for this many requests.
    pub uses: Option<u64>,
    pub rejection: Rejection,
    /// Only the first `scope` of a token request counts (docker_auth).
    pub first_scope_only: bool,
    /// More than one `scope` is answered 400 (GCR).
    pub one_scope_or_400: bool,
    /// The token service's answer to wrong credentials.
    pub bad_credentials: u16,
    /// What POST gets at the token service; `None` is the OAuth2 flow.
    pub post: Option<u16>,
    pub hidden: Hidden,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: Mode::None,
            realm: Realm::Own,
            service: Some("fake.test".to_owned()),
            scope: Scope::Repository,
            style: Style::Quoted,
            challenge: None,
            ping_scope: None,
            users: Vec::new(),
            anonymous: Anonymous::Allowed,
            token_body: TokenBody::Full { expires_in: 300 },
            uses: None,
            rejection: Rejection::Bearer,
            first_scope_only: false,
            one_scope_or_400: false,
            bad_credentials: 401,
            post: Some(404),
            hidden: Hidden::NameUnknown,
        }
    }
}

/// A token that the fake has handed out.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    grants: BTreeSet<String>,
    user: Option<String>,
    left: Option<u64>,
    pub(super) dead: bool,
}

/// May this request go on?
pub(super) enum Verdict {
    Granted { user: Option<String> },
    Refused(Reply),
}

impl Auth {
    fn user_of(&self, header: &str) -> Option<Result<String, ()>> {
        let packed = header.strip_prefix("Basic ").or_else(|| header.strip_prefix("basic "))?;
        let plain = STANDARD.decode(packed.trim()).unwrap_or_default();
        let plain = String::from_utf8_lossy(&plain).into_owned();
        Some(self.check(plain.split_once(':').unwrap_or((&plain, ""))))
    }

    fn check(&self, (name, password): (&str, &str)) -> Result<String, ()> {
        let known = self.users.iter().any(|(n, p)| n == name && p == password);
        if known { Ok(name.to_owned()) } else { Err(()) }
    }

    fn realm_url(&self, addresses: &Addresses, repository: &str) -> String {
        let first = repository.split('/').next().unwrap_or("none");
        match &self.realm {
            Realm::Own => addresses.url(Origin::Realm, "/token"),
            Realm::PerRepository => {
                addresses.url(Origin::Registry, &format!("/api/docker/{first}/v2/token"))
            }
            Realm::Relative => "/service/token".to_owned(),
            Realm::WithQuery => addresses.url(Origin::Realm, "/token?tenant=acme&flag"),
            Realm::Foreign => addresses.url(Origin::Foreign, "/token"),
            Realm::Text(text) => text.clone(),
        }
    }

    fn scope_text(&self, repository: &str) -> Option<String> {
        if repository.is_empty() {
            return self.ping_scope.clone();
        }
        match &self.scope {
            Scope::Repository => Some(format!("repository:{repository}:pull")),
            Scope::Missing => None,
            Scope::WithoutFirstComponent => {
                let short = repository.split_once('/').map_or(repository, |(_, rest)| rest);
                Some(format!("repository:{short}:pull"))
            }
            Scope::Text(text) => Some(text.clone()),
        }
    }

    fn challenge(
        &self,
        addresses: &Addresses,
        repository: &str,
        error: Option<&str>,
    ) -> Vec<String> {
        if let Some(lines) = &self.challenge {
            return lines.clone();
        }
        let mut parameters = vec![("realm", self.realm_url(addresses, repository))];
        parameters.extend(self.service.clone().map(|service| ("service", service)));
        parameters.extend(self.scope_text(repository).map(|scope| ("scope", scope)));
        parameters.extend(error.map(|error| ("error", error.to_owned())));
        let text = |quote: &str| {
            let pairs: Vec<_> =
                parameters.iter().map(|(k, v)| format!("{k}={quote}{v}{quote}")).collect();
            pairs.join(",")
        };
        let bearer = match self.style {
            Style::Quoted => format!("Bearer {}", text("\"")),
            Style::Unquoted => format!("bearer {}", text("")),
        };
        match self.mode {
            Mode::Basic => vec!["Basic realm=\"Fake Realm\",service=\"fake.test\"".to_owned()],
            Mode::BearerAndBasicOneLine => vec![format!("{bearer},Basic realm=\"Fake Realm\"")],
            Mode::BearerAndBasicTwoLines => vec![bearer, "Basic".to_owned()],
            Mode::EmptyHeader => vec![String::new()],
            Mode::NoHeaderExceptPing if !repository.is_empty() => Vec::new(),
            Mode::DigestOnly => vec!["Digest realm=\"x\", nonce=\"y\"".to_owned()],
            _ => vec![bearer],
        }
    }

    fn unauthorized(&self, addresses: &Addresses, repository: &str, error: Option<&str>) -> Reply {
        let reply = Reply::error(401, "UNAUTHORIZED", "authentication required");
        self.challenge(addresses, repository, error)
            .into_iter()
            .fold(reply, |reply, line| reply.with("WWW-Authenticate", line))
    }

    pub(super) fn hide(&self, addresses: &Addresses, repository: &str) -> Reply {
        match self.hidden {
            Hidden::Unauthorized => {
                self.unauthorized(addresses, repository, Some("insufficient_scope"))
            }
            Hidden::Denied => {
                Reply::error(403, "DENIED", "requested access to the resource is denied")
            }
            Hidden::NameUnknown => {
                Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry")
            }
            Hidden::NotFound => Reply::error(404, "NOT_FOUND", "repository not found"),
            Hidden::Plain => Reply::text(404, "Not Found"),
            Hidden::Numeric => Reply::error(404, "404", "Not Found"),
        }
    }

    fn rejected(&self, addresses: &Addresses, repository: &str) -> Reply {
        let bare = Reply::error(401, "UNAUTHORIZED", "authentication required");
        match self.rejection {
            Rejection::Bearer => self.unauthorized(addresses, repository, Some("invalid_token")),
            Rejection::BasicOnly => bare.with("WWW-Authenticate", "Basic realm=\"harbor\""),
            Rejection::OtherRealm => {
                let realm = addresses.url(Origin::Realm, "/other/token");
                bare.with("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"x\""))
            }
            Rejection::BadRequest => Reply::text(400, "Bad Request"),
            Rejection::Denied => {
                Reply::error(403, "DENIED", "Your authorization token has expired. Reauthenticate.")
            }
            Rejection::NoChallenge => bare,
        }
    }
}

impl State {
    /// Looks at the credentials of a request to the registry.
    pub(super) fn authenticate(&mut self, req: &Req, repository: &str) -> Verdict {
        let auth = self.auth.clone();
        let addresses = self.addresses.clone();
        let header = req.header("authorization").map(str::to_owned);
        match (auth.mode, header) {
            (Mode::None | Mode::ChallengeOnSuccess, _) => Verdict::Granted { user: None },
            (Mode::Basic, Some(header)) => match auth.user_of(&header) {
                Some(Ok(user)) => Verdict::Granted { user: Some(user) },
                // An expired login of ECR is a 403.
                _ if auth.rejection != Rejection::Bearer => {
                    Verdict::Refused(auth.rejected(&addresses, repository))
                }
                _ => Verdict::Refused(auth.unauthorized(&addresses, repository, None)),
            },
            (_, None) => Verdict::Refused(auth.unauthorized(&addresses, repository, None)),
            (_, Some(header)) => self.judge_token(&auth, &addresses, &header, repository),
        }
    }

    fn judge_token(
        &mut self,
        auth: &Auth,
        addresses: &Addresses,
        header: &str,
        repository: &str,
    ) -> Verdict {
        let text = header.strip_prefix("Bearer ").unwrap_or("");
        let Some(token) = self.tokens.iter_mut().find(|token| token.text == text && !token.dead)
        else {
            return Verdict::Refused(auth.rejected(addresses, repository));
        };
        if let Some(left) = &mut token.left {
            if *left == 0 {
                token.dead = true;
                return Verdict::Refused(auth.rejected(addresses, repository));
            }
            *left -= 1;
        }
        if repository.is_empty() || token.grants.contains(repository) {
            return Verdict::Granted { user: token.user.clone() };
        }
        if auth.hidden == Hidden::Unauthorized || !self.hides(repository, None) {
            let error = Some("insufficient_scope");
            return Verdict::Refused(auth.unauthorized(addresses, repository, error));
        }
        Verdict::Refused(auth.hide(addresses, repository))
    }

    /// The token service.
    pub(super) fn token(&mut self, origin: Origin, req: &Req) -> Reply {
        let auth = self.auth.clone();
        let form = String::from_utf8_lossy(&req.body).into_owned();
        let posted = req.method == "POST";
        if origin == Origin::Foreign {
            return Reply::json(200, &json!({"token": "from-a-foreign-realm", "expires_in": 300}));
        }
        if req.path.starts_with("/other/") {
            return Reply::error(403, "DENIED", "this realm serves nobody");
        }
        if auth.realm == Realm::WithQuery && req.parameter("tenant").as_deref() != Some("acme") {
            return Reply::error(400, "BAD_REQUEST", "the realm's own query was lost");
        }
        if let (true, Some(status)) = (posted, auth.post) {
            return Reply::error(status, "UNSUPPORTED", "no OAuth2 here");
        }
        let scopes: Vec<String> = if posted {
            let joined = form_values(&form, "scope").join(" ");
            joined.split_whitespace().map(str::to_owned).collect()
        } else {
            let all = req.parameters("scope");
            all.iter().flat_map(|scope| scope.split(' ')).map(str::to_owned).collect()
        };
        if auth.one_scope_or_400 && scopes.len() > 1 {
            return Reply::error(400, "BAD_REQUEST", "one scope at a time");
        }
        let user = match token_user(&auth, req, &form) {
            Some(Ok(user)) => Some(user),
            Some(Err(())) => {
                return Reply::error(
                    auth.bad_credentials,
                    "UNAUTHORIZED",
                    "incorrect username or password",
                );
            }
            None => None,
        };
        if let (None, Anonymous::Refused(status)) = (&user, auth.anonymous) {
            return Reply::error(status, "DENIED", "anonymous callers get nothing");
        }
        let scopes = if auth.first_scope_only { &scopes[..scopes.len().min(1)] } else { &scopes };
        let grants = scopes.iter().filter_map(|s| self.granted(&auth, s, user.as_deref()));
        let grants: BTreeSet<String> = grants.flatten().collect();
        self.issue(&auth, grants, user)
    }

    fn issue(&mut self, auth: &Auth, grants: BTreeSet<String>, user: Option<String>) -> Reply {
        let text = format!("tok-{}-{:016x}", self.tokens.len(), rand::random::<u64>());
        self.tokens.push(Token { text: text.clone(), grants, user, left: auth.uses, dead: false });
        let document = match &auth.token_body {
            TokenBody::Full { expires_in } => json!({
                "token": text, "access_token": text, "expires_in": expires_in,
                "issued_at": "2026-01-01T00:00:00.123456789Z",
            }),
            TokenBody::TokenOnly => json!({"token": text}),
            TokenBody::AccessTokenOnly => json!({"access_token": text}),
            TokenBody::EmptyAccessToken => {
                json!({"token": text, "access_token": "", "expires_in": 1800})
            }
            TokenBody::Custom(make) => make(&text),
        };
        Reply::json(200, &document)
    }

    /// The repositories that a scope opens to this user.
    fn granted(&self, auth: &Auth, scope: &str, user: Option<&str>) -> Option<Vec<String>> {
        let (kind, rest) = scope.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        if kind != "repository" || !actions.split(',').any(|action| action == "pull") {
            return None;
        }
        let meant = |known: &&String| match auth.scope {
            Scope::WithoutFirstComponent => known.ends_with(&format!("/{name}")),
            _ => *known == name,
        };
        // A token for a name that does not exist is handed out as well: that is how registries hide.
        let mut names: Vec<String> = self.repositories.keys().filter(meant).cloned().collect();
        if names.is_empty() && auth.hidden != Hidden::Unauthorized {
            names.push(name.to_owned());
        }
        names.retain(|name| !self.hides(name, user) || !self.repositories.contains_key(name));
        Some(names)
    }
}

fn token_user(auth: &Auth, req: &Req, form: &str) -> Option<Result<String, ()>> {
    if let Some(header) = req.header("authorization") {
        return Some(auth.user_of(header).unwrap_or(Err(())));
    }
    let name = form_values(form, "username").into_iter().next()?;
    let password = form_values(form, "password").into_iter().next().unwrap_or_default();
    Some(auth.check((&name, &password)))
}
