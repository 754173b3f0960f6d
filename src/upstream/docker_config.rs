//! Reading a docker `config.json` (also podman's `auth.json` and the dockerconfigjson of a Kubernetes secret).
//!
//! Pure: text in, the credentials for one registry out. What must hold: an entry for another registry is never returned; a config whose
//! credential lies in a helper program is told as such, not taken for anonymous. Helper programs are run in `helper.rs`. The order is
//! docker's, `credHelpers` before `credsStore`, but that a login which stands in the file itself needs no store.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::settings::{Program, Secret};

/// All names of Docker Hub; in config files it is mostly `https://index.docker.io/v1/`.
const HUB: [&str; 4] =
    ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io"];
/// The name of Docker Hub in credential helpers.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// The user name that says "the password is an identity token" (docker's credential helpers).
pub(super) const IDENTITY_USER: &str = "<token>";

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    Basic {
        username: String,
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken`).
    Identity {
        username: String,
        token: Secret,
    },
    /// A ready bearer token (`registrytoken`).
    Registry(Secret),
}

/// A login, or who has it, and the repositories that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The namespace below the registry, such as `org/team`; empty is the whole registry.
    pub(super) namespace: String,
    pub(super) held: Held,
}

/// Where a login is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Here(Login),
    /// A helper program has it, under this name of the server.
    By {
        program: Program,
        server: String,
    },
}

/// The names under which one registry may stand in a config file: lower-case hosts with their ports.
#[derive(Clone, Debug)]
pub(super) struct RegistryHosts {
    all: Vec<String>,
    /// As a helper is asked for it.
    server: String,
}

impl RegistryHosts {
    /// The last name is the host that is really asked.
    pub(super) fn new(names: &[&str]) -> Self {
        let mut all: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let mut server = all.last().cloned().unwrap_or_default();
        if all.iter().any(|host| HUB.contains(&host.as_str())) {
            all.extend(HUB.map(str::to_owned));
            HUB_SERVER.clone_into(&mut server);
        }
        Self { all, server }
    }

    /// The name under which docker asks a helper for this registry.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Kubernetes allows `*` within a label of the host.
    fn matches(&self, pattern: &str) -> bool {
        self.all.iter().any(|host| host_matches(pattern, host))
    }
}

/// The logins of one registry, the most specific namespace first.
///
/// # Errors
/// One line for the operator, without any content of the file.
pub(super) fn entries(text: &[u8], hosts: &RegistryHosts) -> Result<Vec<Entry>, String> {
    let Ok(Value::Object(config)) = serde_json::from_slice::<Value>(text) else {
        return Err("it is not a JSON object".into());
    };
    let bare = !["auths", "credHelpers", "credsStore"].iter().any(|key| config.contains_key(*key));
    let auths = match config.get("auths") {
        Some(Value::Object(auths)) => Some(auths),
        // The old `.dockercfg` is the map itself.
        None if bare => Some(&config),
        _ => None,
    };
    let mut found = Vec::new();
    for (key, value) in auths.into_iter().flatten() {
        let (host, namespace) = split_key(key);
        if !hosts.matches(&host) {
            continue;
        }
        // docker leaves an empty entry behind when it moves the secret to the store.
        if let Some(login) = login(value)? {
            found.push(Entry { namespace, held: Held::Here(login) });
        }
    }
    let whole = |entry: &Entry| entry.namespace.is_empty();
    let helper = match helper_of(&config, hosts) {
        Some((key, helper)) => {
            found.retain(|entry| !whole(entry));
            Some((helper, server_of(key, hosts)))
        }
        None if found.iter().any(whole) => None,
        None => store_of(&config).map(|store| (store, hosts.server.clone())),
    };
    if let Some((name, server)) = helper {
        let program =
            Program::named(name).ok_or("the name of its helper is no name of a program")?;
        found.push(Entry { namespace: String::new(), held: Held::By { program, server } });
    }
    found.sort_by_key(|entry| std::cmp::Reverse(entry.namespace.len()));
    Ok(found)
}

/// Does `namespace` hold `repository`, counting whole path components?
pub(super) fn holds(namespace: &str, repository: &str) -> bool {
    match repository.strip_prefix(namespace) {
        Some(rest) => namespace.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// The helper that `credHelpers` names for this registry, with its key there.
fn helper_of<'a>(
    config: &'a Map<String, Value>,
    hosts: &RegistryHosts,
) -> Option<(&'a str, &'a str)> {
    let helpers = config.get("credHelpers")?.as_object()?;
    let ours = |key: &str| hosts.matches(&split_key(key).0);
    let (key, helper) = helpers.iter().find(|(key, _helper)| ours(key))?;
    Some((key, helper.as_str().filter(|helper| !helper.is_empty())?))
}

fn store_of(config: &Map<String, Value>) -> Option<&str> {
    config.get("credsStore").and_then(Value::as_str).filter(|store| !store.is_empty())
}

/// docker asks with the name that stands in the file; a pattern is no name.
fn server_of(key: &str, hosts: &RegistryHosts) -> String {
    let host = split_key(key).0;
    if HUB.contains(&host.as_str()) || host.contains('*') { hosts.server.clone() } else { host }
}

/// `https://index.docker.io/v1/` -> (`index.docker.io`, ``); `quay.io/org/repo` -> (`quay.io`, `org/repo`).
fn split_key(key: &str) -> (String, String) {
    let rest = key.split_once("://").map_or(key, |(_scheme, rest)| rest).trim_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = match path.split_once('/').unwrap_or((path, "")) {
        ("v1" | "v2", rest) => rest,
        _ => path,
    };
    (host.to_ascii_lowercase(), path.trim_matches('/').to_owned())
}

fn host_matches(pattern: &str, host: &str) -> bool {
    if !pattern.contains('*') {
        return pattern == host;
    }
    let (pattern, host): (Vec<_>, Vec<_>) =
        (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len()
        && pattern.iter().zip(&host).all(|(pattern, label)| label_matches(pattern, label))
}

/// One label, each `*` for any number of characters. Taking each middle piece at its first place finds a match if there is one, so the
/// time does not explode with the number of stars.
fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut left) = label.strip_prefix(head) else {
        return false;
    };
    for piece in middle.split('*') {
        match left.find(piece) {
            Some(at) => left = &left[at + piece.len()..],
            None => return false,
        }
    }
    left.ends_with(tail)
}

fn login(value: &Value) -> Result<Option<Login>, String> {
    let member =
        |name: &str| value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let pair = match member("auth") {
        Some(auth) => Some(
            decode_auth(auth).ok_or("an `auth` of this registry is not base64 of user:password")?,
        ),
        None => member("username")
            .map(|user| (user.to_owned(), member("password").unwrap_or_default().into())),
    };
    if let Some(token) = member("registrytoken") {
        return Ok(Some(Login::Registry(token.into())));
    }
    if let Some(token) = member("identitytoken") {
        let username = pair.map(|(user, _password)| user).unwrap_or_default();
        let token = token.into();
        return Ok(Some(Login::Identity { username, token }));
    }
    Ok(pair.filter(|(user, password)| !user.is_empty() || !password.expose().is_empty()).map(
        |(username, password)| {
            if username == IDENTITY_USER {
                Login::Identity { username, token: password }
            } else {
                Login::Basic { username, password }
            }
        },
    ))
}

/// Base64 in either alphabet, padded or not, with line ends; split at the first colon; NULs stripped as docker does.
fn decode_auth(text: &str) -> Option<(String, Secret)> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    let standard: String = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| match c {
            '-' => '+',
            '_' => '/',
            other => other,
        })
        .collect();
    let decoded = zeroize::Zeroizing::new(ENGINE.decode(standard).ok()?);
    let decoded = std::str::from_utf8(&decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.trim_matches('\0').to_owned(), password.trim_matches('\0').into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most_specific<'a>(entries: &'a [Entry], repository: &str) -> Option<&'a Entry> {
        let ours = |entry: &&Entry| holds(&entry.namespace, repository);
        entries.iter().find(ours)
    }

    fn basic(username: &str, password: &str) -> Login {
        Login::Basic { username: username.into(), password: password.into() }
    }

    fn of(host: &str, config: &str) -> Result<Option<Login>, String> {
        let found = entries(config.as_bytes(), &RegistryHosts::new(&[host]))?;
        Ok(most_specific(&found, "org/repo").map(|entry| match &entry.held {
            Held::Here(login) => login.clone(),
            Held::By { .. } => panic!("a helper has it"),
        }))
    }

    /// The helper and the server that it is asked for.
    fn helper(hosts: &[&str], config: &str) -> Option<(String, String)> {
        let found = entries(config.as_bytes(), &RegistryHosts::new(hosts)).unwrap();
        match &most_specific(&found, "org/repo")?.held {
            Held::By { program, server } => {
                Some((program.path.to_str().unwrap().to_owned(), server.clone()))
            }
            Held::Here(_) => None,
        }
    }

    #[test]
    fn auth_in_every_spelling_of_base64() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let padded = encode("bot:pa:ss?>");
        let bare = padded.trim_end_matches('=').to_owned();
        let url = bare.replace('+', "-").replace('/', "_");
        let line = format!("{padded}\\n");
        let nul = encode("bot:pa:ss?>\0\0");
        for auth in [padded, bare, url, line, nul] {
            let config = format!(r#"{{"auths":{{"ghcr.io":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(of("ghcr.io", &config).unwrap(), Some(basic("bot", "pa:ss?>")), "{auth}");
        }
        let broken = r#"{"auths":{"ghcr.io":{"auth":"!!!"}}}"#;
        assert!(!of("ghcr.io", broken).unwrap_err().contains("!!!"));
    }

    #[test]
    fn docker_hub_has_many_names() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://registry-1.docker.io/v2/",
            "https://index.docker.io/v1",
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"username":"u","password":"p"}}}}}}"#);
            assert_eq!(of("docker.io", &config).unwrap(), Some(basic("u", "p")), "{key}");
            assert_eq!(of("ghcr.io", &config).unwrap(), None, "{key}");
        }
    }

    #[test]
    fn the_most_specific_namespace_wins() {
        let config = r#"{"auths":{"quay.io":{"username":"all","password":"p"},
            "quay.io/org":{"username":"org","password":"p"},"quay.io/org/repo":{"username":"repo","password":"p"},
            "quay.io/org/re":{"username":"wrong","password":"p"}}}"#;
        let found = entries(config.as_bytes(), &RegistryHosts::new(&["quay.io"])).unwrap();
        let user = |repository| match &most_specific(&found, repository).unwrap().held {
            Held::Here(Login::Basic { username, .. }) => username.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(user("org/repo"), "repo");
        assert_eq!(user("org/repo/deeper"), "repo");
        assert_eq!(user("org/other"), "org");
        assert_eq!(user("else"), "all");
    }

    #[test]
    fn tokens_of_both_kinds() {
        let identity =
            r#"{"auths":{"a.azurecr.io":{"auth":"MDAwMDo=","identitytoken":"refresh"}}}"#;
        let want = Login::Identity { username: "0000".into(), token: "refresh".into() };
        assert_eq!(of("a.azurecr.io", identity).unwrap(), Some(want));
        let ready = r#"{"auths":{"r.example:5000":{"registrytoken":"ready"}}}"#;
        assert_eq!(of("r.example:5000", ready).unwrap(), Some(Login::Registry("ready".into())));
        assert_eq!(of("r.example", ready).unwrap(), None);
        let helper_like = r#"{"auths":{"x.example":{"username":"<token>","password":"refresh"}}}"#;
        assert!(matches!(of("x.example", helper_like).unwrap(), Some(Login::Identity { .. })));
    }

    #[test]
    fn helpers_are_told_and_not_taken_for_anonymous() {
        let some = |name: &str, server: &str| {
            Some((format!("docker-credential-{name}"), server.to_owned()))
        };
        let own =
            r#"{"auths":{"ghcr.io":{}},"credHelpers":{"ghcr.io":"gh"},"credsStore":"desktop"}"#;
        assert_eq!(helper(&["ghcr.io"], own), some("gh", "ghcr.io"));
        assert_eq!(helper(&["quay.io"], own), some("desktop", "quay.io"));
        let hub = r#"{"auths":{"https://index.docker.io/v1/":{}},"credsStore":"desktop"}"#;
        let server = "https://index.docker.io/v1/";
        assert_eq!(helper(&["docker.io", "registry-1.docker.io"], hub), some("desktop", server));
        let hub = r#"{"credHelpers":{"docker.io":"hub"}}"#;
        assert_eq!(helper(&["docker.io", "registry-1.docker.io"], hub), some("hub", server));
        assert_eq!(helper(&["quay.io"], hub), None);
        let family = r#"{"credHelpers":{"*-docker.pkg.dev":"gcloud"}}"#;
        let host = "eu-docker.pkg.dev";
        assert_eq!(helper(&[host], family), some("gcloud", host));
        assert_eq!(
            helper(&["ecr", "1.ecr.example"], r#"{"credsStore":"x"}"#),
            some("x", "1.ecr.example")
        );
    }

    #[test]
    fn a_login_in_the_file_needs_no_store_and_a_helper_wins_over_it() {
        let login = r#""auths":{"ghcr.io":{"username":"u","password":"p"}}"#;
        let both = format!(r#"{{{login},"credsStore":"desktop"}}"#);
        assert_eq!(of("ghcr.io", &both).unwrap(), Some(basic("u", "p")));
        let both = format!(r#"{{{login},"credHelpers":{{"ghcr.io":"gh"}}}}"#);
        assert!(helper(&["ghcr.io"], &both).is_some());
    }

    #[test]
    fn a_name_that_is_no_program_is_refused() {
        for bad in ["pass; rm -rf /", "../../bin/sh", "$(id)", "a b"] {
            for config in [
                format!(r#"{{"credHelpers":{{"ghcr.io":"{bad}"}}}}"#),
                format!(r#"{{"credsStore":"{bad}"}}"#),
            ] {
                let message = of("ghcr.io", &config).unwrap_err();
                assert!(!message.contains(bad), "{message}");
            }
        }
    }

    #[test]
    fn old_and_kubernetes_forms() {
        let bare = r#"{"https://r.example/v1/":{"username":"u","password":"p","email":"x"}}"#;
        assert_eq!(of("r.example", bare).unwrap(), Some(basic("u", "p")));
        let wild = r#"{"auths":{"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"p"}}}"#;
        assert_eq!(of("1.dkr.ecr.eu-west-1.amazonaws.com", wild).unwrap(), Some(basic("AWS", "p")));
        assert_eq!(of("x.y.dkr.ecr.eu-west-1.amazonaws.com", wild).unwrap(), None);
        let within = r#"{"auths":{"*registry*.example":{"username":"u","password":"p"}}}"#;
        assert!(of("my-registry-2.example", within).unwrap().is_some());
        assert!(of("registry.sub.example", within).unwrap().is_none());
    }

    #[test]
    fn what_is_no_config_is_an_error_without_its_content() {
        for text in ["", "[]", "{\"auths\"", "\"hunter2\""] {
            let error = of("ghcr.io", text).unwrap_err();
            assert!(!error.contains("hunter2"));
        }
        for empty in ["{}", r#"{"auths":{}}"#, r#"{"auths":null}"#, r#"{"auths":{"ghcr.io":null}}"#]
        {
            assert_eq!(of("ghcr.io", empty).unwrap(), None, "{empty}");
        }
    }
}
