//! Reading a docker `config.json` (also podman's `auth.json` and the dockerconfigjson of a Kubernetes secret).
//!
//! Pure: text in, the credentials for one registry out. What must hold: an entry for another registry is never returned; a config whose
//! credential lies in a helper program is told as such, not taken for anonymous. Helper programs are not run here.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::settings::Secret;

/// All names of Docker Hub; in config files it is mostly `https://index.docker.io/v1/`.
const HUB: [&str; 4] =
    ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io"];
/// The user name that says "the password is an identity token" (docker's credential helpers).
const IDENTITY_USER: &str = "<token>";

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

/// A login and the repositories that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The namespace below the registry, such as `org/team`; empty is the whole registry.
    pub(super) namespace: String,
    pub(super) login: Login,
}

/// The names under which one registry may stand in a config file: lower-case hosts with their ports.
#[derive(Clone, Debug)]
pub(super) struct RegistryHosts(Vec<String>);

impl RegistryHosts {
    pub(super) fn new(names: &[&str]) -> Self {
        let mut hosts: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        if hosts.iter().any(|host| HUB.contains(&host.as_str())) {
            hosts.extend(HUB.map(str::to_owned));
        }
        Self(hosts)
    }

    /// Kubernetes allows `*` within a label of the host.
    fn matches(&self, pattern: &str) -> bool {
        self.0.iter().any(|host| host_matches(pattern, host))
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
    if let Some(helper) = helper_of(&config, hosts) {
        return Err(needs_helper(helper));
    }
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
        match login(value)? {
            Some(login) => found.push(Entry { namespace, login }),
            // docker leaves an empty entry behind when it moves the secret to the store.
            None => {
                if let Some(store) = config.get("credsStore").and_then(Value::as_str) {
                    return Err(needs_helper(store));
                }
            }
        }
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

fn needs_helper(helper: &str) -> String {
    let name: String = helper
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .take(64)
        .collect();
    format!(
        "the credential lies in the helper docker-credential-{name}, and helpers are not run; use username with password_file"
    )
}

fn helper_of<'a>(config: &'a Map<String, Value>, hosts: &RegistryHosts) -> Option<&'a str> {
    let helpers = config.get("credHelpers")?.as_object()?;
    let ours = |key: &str| hosts.matches(&split_key(key).0);
    let (_key, helper) = helpers.iter().find(|(key, _helper)| ours(key))?;
    helper.as_str().filter(|helper| !helper.is_empty())
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

/// One label with at most a few `*`, each for any number of characters.
fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == label;
    };
    label.strip_prefix(head).is_some_and(|left| {
        left.char_indices()
            .map(|(at, _)| at)
            .chain([left.len()])
            .any(|at| label_matches(rest, &left[at..]))
    })
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
        Ok(most_specific(&found, "org/repo").map(|entry| entry.login.clone()))
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
        let user = |repository| match &most_specific(&found, repository).unwrap().login {
            Login::Basic { username, .. } => username.clone(),
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
        let helper = r#"{"auths":{"ghcr.io":{}},"credHelpers":{"ghcr.io":"pass; rm"}}"#;
        let message = of("ghcr.io", helper).unwrap_err();
        assert!(message.contains("docker-credential-passrm") && message.contains("password_file"));
        assert_eq!(of("quay.io", helper).unwrap(), None);
        let store = r#"{"auths":{"https://index.docker.io/v1/":{}},"credsStore":"desktop"}"#;
        assert!(of("docker.io", store).unwrap_err().contains("docker-credential-desktop"));
        assert_eq!(of("quay.io", store).unwrap(), None);
        let both =
            r#"{"auths":{"ghcr.io":{"username":"u","password":"p"}},"credsStore":"desktop"}"#;
        assert_eq!(of("ghcr.io", both).unwrap(), Some(basic("u", "p")));
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
