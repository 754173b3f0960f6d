//! The environment: `ROADSTEAD_*` variables into entries, and an answer to those of other programs.
//!
//! The rule: `ROADSTEAD_`, then the key in capitals; everything that is no letter and no digit becomes `_`, and `__` stands between a
//! table and what is in it. `listen` is `ROADSTEAD_LISTEN`; `url` of `[upstream."ghcr.io"]` is `ROADSTEAD_UPSTREAM__GHCR_IO__URL`;
//! `images` of the first `[[warm]]` is `ROADSTEAD_WARM__0__IMAGES`;
//! `pattern` of its first tag rule is `ROADSTEAD_UPSTREAM__GHCR_IO__TAG__0__PATTERN`. Lists are separated by commas. An upstream that is
//! neither built in nor in the file nor an argument gets its name from `ROADSTEAD_UPSTREAM__<ANY>__NAME`.
//!
//! Nothing here reads the environment of the process: the variables are handed in.

use std::collections::BTreeMap;

use crate::app::wellknown::WELL_KNOWN;
use crate::oci::RegistryName;
use crate::upstream::{self, ProxyEnv};

use super::draft::{Entry, Path};
use super::error::{Mistake, Place};
use super::hints::nearest;
use super::keys::{KEYS, Key, Scope};
use super::values::Raw;

/// What all our variables begin with.
const PREFIX: &str = "ROADSTEAD_";
/// The variable that names the configuration file; read where the sources are gathered.
pub(super) const CONFIG: &str = "ROADSTEAD_CONFIG";
const UPSTREAM: &str = "UPSTREAM__";
const WARM: &str = "WARM__";

/// What the environment says, and what is wrong with it.
#[derive(Default)]
pub(super) struct Environment {
    pub(super) entries: Vec<Entry>,
    pub(super) tables: Vec<(RegistryName, Place)>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) proxy: ProxyEnv,
    pub(super) warnings: Vec<Mistake>,
}

/// Reads all variables. `known` are the upstreams of the file and of the arguments.
pub(super) fn read(variables: &[(String, String)], known: &[RegistryName]) -> Environment {
    let mut found = Environment::default();
    found.proxy = system_proxy(variables, &mut found.warnings);
    let names = Names::new(variables, known, &mut found);
    for (variable, value) in variables {
        if let Some(text) = translation(variable, value) {
            found.mistake(variable, String::new(), text);
        }
        let Some(rest) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        if variable == CONFIG || is_service_link(variable, value) {
            continue;
        }
        if value.contains('\u{fffd}') {
            found.mistake(variable, String::new(), "is not UTF-8 text".to_owned());
            continue;
        }
        match (rest.strip_prefix(UPSTREAM), list(rest)) {
            (Some(rest), _) => found.upstream(variable, rest, value, &names),
            (None, Some((index, key))) => {
                found.entry(variable, Path::Warm(index, key.to_owned()), value);
            }
            (None, None) => found.top(variable, rest, value),
        }
    }
    found
}

/// The directories in which programs are found.
pub(super) fn search_path(variables: &[(String, String)]) -> Option<String> {
    variables.iter().find(|(variable, _)| variable == "PATH").map(|(_, value)| value.clone())
}

/// The variable of a key of the top scope, or the end of the variable of a key of an upstream.
pub(super) fn spelled(name: &str) -> String {
    name.split('.').map(mangled).collect::<Vec<_>>().join("__")
}

/// A name as it is spelled within a variable.
fn mangled(name: &str) -> String {
    let letter = |c: char| {
        if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }
    };
    name.chars().map(letter).collect()
}

/// Upstreams by the spelling of their names.
struct Names(BTreeMap<String, Vec<RegistryName>>);

impl Names {
    fn new(
        variables: &[(String, String)],
        known: &[RegistryName],
        found: &mut Environment,
    ) -> Self {
        let mut names = BTreeMap::<String, Vec<RegistryName>>::new();
        let mut add = |spelling: String, name: RegistryName| {
            let list = names.entry(spelling).or_default();
            if !list.contains(&name) {
                list.push(name);
            }
        };
        let built_in = WELL_KNOWN.iter().filter_map(|entry| entry.name.parse().ok());
        for name in built_in.chain(known.iter().cloned()) {
            add(mangled(name.as_str()), name);
        }
        for (variable, value) in variables {
            let rest = variable.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(UPSTREAM));
            let Some(spelling) = rest.and_then(|rest| rest.strip_suffix("__NAME")) else {
                continue;
            };
            match value.parse::<RegistryName>() {
                Ok(name) => {
                    found.tables.push((name.clone(), Place::Environment(variable.clone())));
                    add(spelling.to_owned(), name);
                }
                Err(invalid) => {
                    found.mistake(variable, String::new(), format!("{value:?} is {invalid}"))
                }
            }
        }
        Self(names)
    }
}

impl Environment {
    fn mistake(&mut self, variable: &str, key: String, text: String) {
        let place = Place::Environment(variable.to_owned());
        self.mistakes.push(Mistake::new(place, key, text));
    }

    fn entry(&mut self, variable: &str, path: Path, value: &str) {
        let place = Place::Environment(variable.to_owned());
        self.entries.push(Entry { path, raw: Raw::Loose(value.to_owned()), place });
    }

    fn top(&mut self, variable: &str, rest: &str, value: &str) {
        let named = |key: &&Key| key.is_in(Scope::Top) && spelled(key.name) == rest;
        match KEYS.iter().find(named) {
            Some(key) => self.entry(variable, Path::Top(key.name.to_owned()), value),
            None => self.unknown(variable, rest),
        }
    }

    fn upstream(&mut self, variable: &str, rest: &str, value: &str, names: &Names) {
        let Some((spelling, key)) = split(rest) else {
            return self.unknown(variable, &format!("{UPSTREAM}{rest}"));
        };
        if matches!(&key, Split::Name) {
            return;
        }
        match names.0.get(spelling).map(Vec::as_slice) {
            Some([name]) => {
                let path = match key {
                    Split::Rule(index, key) => Path::Rule(name.clone(), index, key.to_owned()),
                    Split::Key(key) => Path::Upstream(name.clone(), key.to_owned()),
                    Split::Name => return,
                };
                self.entry(variable, path, value);
            }
            Some(several) => {
                let several: Vec<&str> = several.iter().map(RegistryName::as_str).collect();
                let text = format!("may mean any of {}; use the file for them", several.join(", "));
                self.mistake(variable, String::new(), text);
            }
            None => {
                let text = format!(
                    "no upstream is spelled {spelling}; for a new one set {PREFIX}{UPSTREAM}{spelling}__NAME to its name, or use --upstream or the file"
                );
                self.mistake(variable, String::new(), text);
            }
        }
    }

    fn unknown(&mut self, variable: &str, rest: &str) {
        let all: Vec<String> = KEYS
            .iter()
            .map(|key| {
                if key.is_in(Scope::Top) {
                    spelled(key.name)
                } else if key.is_in(Scope::Warm) {
                    format!("{WARM}0__{}", spelled(key.name))
                } else {
                    format!("{UPSTREAM}<NAME>__{}", spelled(key.name))
                }
            })
            .collect();
        let text = match nearest(rest, all.iter().map(String::as_str)) {
            Some(near) => format!("unknown variable; did you mean {PREFIX}{near}?"),
            None => "unknown variable; a key is spelled ROADSTEAD_<KEY>, one of an upstream ROADSTEAD_UPSTREAM__<NAME>__<KEY>".to_owned(),
        };
        self.mistake(variable, String::new(), text);
    }
}

/// The number of a list of images and its key, of `WARM__<N>__<KEY>`.
fn list(rest: &str) -> Option<(usize, &'static str)> {
    let (index, spelling) = rest.strip_prefix(WARM)?.split_once("__")?;
    let key = KEYS.iter().find(|key| key.is_in(Scope::Warm) && spelled(key.name) == spelling)?;
    Some((index.parse().ok()?, key.name))
}

/// What an upstream's variable ends with.
enum Split {
    Name,
    Key(&'static str),
    Rule(usize, &'static str),
}

/// The spelling of the upstream's name and the key of `<NAME>__<KEY>`. The longest key wins, because a name may hold `__`.
fn split(rest: &str) -> Option<(&str, Split)> {
    if let Some(name) = rest.strip_suffix("__NAME") {
        return Some((name, Split::Name));
    }
    let mut best: Option<(&str, Split)> = None;
    for key in KEYS {
        let spelling = format!("__{}", spelled(key.name));
        let Some(before) = rest.strip_suffix(spelling.as_str()) else {
            continue;
        };
        let rule = before
            .rsplit_once("__TAG__")
            .and_then(|(name, index)| Some((name, index.parse().ok()?)));
        let candidate = match rule {
            Some((name, index)) if key.is_in(Scope::Rule) => (name, Split::Rule(index, key.name)),
            _ if key.is_in(Scope::Upstream) => (before, Split::Key(key.name)),
            _ => continue,
        };
        if best.as_ref().is_none_or(|(name, _)| candidate.0.len() < name.len()) {
            best = Some(candidate);
        }
    }
    best
}

/// Kubernetes gives each pod a family of variables for each service; a service named `roadstead` must not stop the pod.
fn is_service_link(variable: &str, value: &str) -> bool {
    let is_port = |text: &str| {
        let mut parts = text.split('_');
        let number = parts.next().is_some_and(|part| part.parse::<u16>().is_ok());
        let protocol = parts.next().is_some_and(|part| matches!(part, "TCP" | "UDP" | "SCTP"));
        let rest = parts.next().is_none_or(|part| matches!(part, "PROTO" | "PORT" | "ADDR"));
        number && protocol && rest && parts.next().is_none()
    };
    variable.ends_with("_SERVICE_HOST")
        || variable.ends_with("_SERVICE_PORT")
        || variable.contains("_SERVICE_PORT_")
        || (variable.ends_with("_PORT")
            && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)))
        || variable.rsplit_once("_PORT_").is_some_and(|(_, rest)| is_port(rest))
        || variable.find("_PORT_").is_some_and(|at| is_port(&variable[at + "_PORT_".len()..]))
}

/// What a variable of distribution (registry:2) is called here. Ignoring it would leave the operator in the belief that it works.
fn translation(variable: &str, value: &str) -> Option<String> {
    let rest = variable.strip_prefix("REGISTRY_")?;
    let say = |here: &str| Some(format!("is a variable of distribution (registry:2); {here}"));
    // The value may be an address with a password in it.
    let shown = if upstream::may_hold_password(value) { "..." } else { value };
    match rest {
        "PROXY_REMOTEURL" => match remote(value) {
            Some(name) => say(&format!(
                "the upstream {name} is built in, so remove the variable; to use another address for it, set ROADSTEAD_UPSTREAM__{}__URL",
                mangled(name)
            )),
            None => say(&format!(
                "here: ROADSTEAD_UPSTREAM__DOCKER_IO__URL={shown} if it mirrors Docker Hub, else --upstream NAME={shown}"
            )),
        },
        "PROXY_USERNAME" => say(&format!("here: ROADSTEAD_UPSTREAM__DOCKER_IO__USERNAME={shown}")),
        "PROXY_PASSWORD" => say(
            "here: ROADSTEAD_UPSTREAM__DOCKER_IO__PASSWORD_FILE (a file), or ROADSTEAD_UPSTREAM__DOCKER_IO__PASSWORD",
        ),
        "PROXY_TTL" => say(
            "here: ROADSTEAD_TAG_FRESH_FOR, the time that a tag is believed without asking; content is never deleted by age",
        ),
        "STORAGE_FILESYSTEM_ROOTDIRECTORY" => say(&format!(
            "here: ROADSTEAD_DATA={shown} (another layout: begin with an empty directory)"
        )),
        "HTTP_ADDR" => {
            let address =
                if value.starts_with(':') { format!("0.0.0.0{value}") } else { value.to_owned() };
            say(&format!("here: ROADSTEAD_LISTEN={address}"))
        }
        "HTTP_DEBUG_ADDR" => say("here: ROADSTEAD_OBSERVE, where metrics always are"),
        "AUTH" | "AUTH_HTPASSWD_PATH" | "AUTH_HTPASSWD_REALM" | "AUTH_TOKEN_REALM" => say(
            "clients are not authenticated here, because a challenge breaks docker's mirrors; ROADSTEAD_CLIENTS says which networks may pull",
        ),
        "HTTP_TLS_CERTIFICATE" | "HTTP_TLS_KEY" => say(
            "roadstead does not speak TLS to clients yet; remove it and put a TLS proxy in front",
        ),
        _ if rest.starts_with("PROXY_") => say("it has no counterpart here; remove it"),
        _ if rest.starts_with("STORAGE_") => say(
            "content lives in the directory ROADSTEAD_DATA and is bounded by ROADSTEAD_MIN_FREE; remove it",
        ),
        _ => None,
    }
}

/// The built-in upstream whose address this is.
fn remote(url: &str) -> Option<&'static str> {
    let url = url.trim_end_matches('/');
    WELL_KNOWN.iter().find(|entry| entry.url == url).map(|entry| entry.name)
}

/// The proxies of the environment; lower case wins, as in curl. Those of a kind that is not supported are named and ignored, because
/// they are there for all programs and not for us.
fn system_proxy(variables: &[(String, String)], warnings: &mut Vec<Mistake>) -> ProxyEnv {
    let variable = |name: &str| {
        let named = |wanted: &str| {
            let found =
                variables.iter().find(|(variable, value)| variable == wanted && !value.is_empty());
            found.cloned()
        };
        named(name).or_else(|| named(&name.to_ascii_uppercase()))
    };
    let mut proxy = |name: &str| {
        let (variable, value) = variable(name).or_else(|| variable("all_proxy"))?;
        // `proxy:3128` without a scheme is common, and means http.
        let url = match value.contains("://") {
            true => value,
            false => format!("http://{value}"),
        };
        match Raw::Loose(url.clone()).proxy_url() {
            Ok(_) => Some(url),
            Err(_) => {
                let text = "is ignored: want the address of an http or https proxy".to_owned();
                warnings.push(Mistake::new(Place::Environment(variable), "", text));
                None
            }
        }
    };
    let (http, https) = (proxy("http_proxy"), proxy("https_proxy"));
    warnings.dedup();
    ProxyEnv { http, https, no_proxy: variable("no_proxy").map(|(_, value)| value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(variables: &[(&str, &str)]) -> Environment {
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        read(&variables, &["a-b.example.com:5001".parse().unwrap()])
    }

    #[test]
    fn variables_find_their_keys() {
        let found = read_all(&[
            ("ROADSTEAD_LISTEN", "0.0.0.0:5000"),
            ("ROADSTEAD_LIMITS__HEADER_BYTES", "32KiB"),
            ("ROADSTEAD_UPSTREAM__DOCKER_IO__URL", "https://hub.example.com"),
            ("ROADSTEAD_UPSTREAM__A_B_EXAMPLE_COM_5001__LIMITS__CONNECT", "1s"),
            ("ROADSTEAD_UPSTREAM__DOCKER_IO__TAG__0__PATTERN", "v*"),
            ("ROADSTEAD_UPSTREAM__DOCKER_IO__TAG__0__FRESH_FOR", "1h"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(found.mistakes, []);
        let paths: Vec<String> = found.entries.iter().map(|entry| entry.path.display()).collect();
        let wanted = [
            "listen",
            "limits.header_bytes",
            "upstream.\"docker.io\".url",
            "upstream.\"a-b.example.com:5001\".limits.connect",
            "upstream.\"docker.io\".tag[0].pattern",
            "upstream.\"docker.io\".tag[0].fresh_for",
        ];
        assert_eq!(paths, wanted);
    }

    #[test]
    fn a_new_upstream_gets_its_name_from_a_variable() {
        let found = read_all(&[
            ("ROADSTEAD_UPSTREAM__CORP__NAME", "registry.corp.example:5443"),
            ("ROADSTEAD_UPSTREAM__CORP__USERNAME", "me"),
        ]);
        assert_eq!(found.mistakes, []);
        assert_eq!(found.tables[0].0.as_str(), "registry.corp.example:5443");
        assert_eq!(
            found.entries[0].path.display(),
            "upstream.\"registry.corp.example:5443\".username"
        );
        let found = read_all(&[("ROADSTEAD_UPSTREAM__CORP__USERNAME", "me")]);
        assert!(found.mistakes[0].text().contains("ROADSTEAD_UPSTREAM__CORP__NAME"));
    }

    #[test]
    fn unknown_variables_are_mistakes_with_a_hint() {
        let found =
            read_all(&[("ROADSTEAD_LISTN", "x"), ("ROADSTEAD_UPSTREAM__DOCKER_IO__URLL", "x")]);
        assert_eq!(found.entries.len(), 0);
        assert_eq!(found.mistakes.len(), 2);
        assert!(found.mistakes[0].text().contains("ROADSTEAD_LISTEN"), "{}", found.mistakes[0]);
    }

    #[test]
    fn a_kubernetes_service_named_roadstead_is_no_mistake() {
        let found = read_all(&[
            ("ROADSTEAD_SERVICE_HOST", "10.0.0.1"),
            ("ROADSTEAD_SERVICE_PORT", "5000"),
            ("ROADSTEAD_SERVICE_PORT_HTTP", "5000"),
            ("ROADSTEAD_PORT", "tcp://10.0.0.1:5000"),
            ("ROADSTEAD_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
            ("ROADSTEAD_PORT_5000_TCP_ADDR", "10.0.0.1"),
            ("ROADSTEAD_METRICS_PORT_5010_TCP_PORT", "5010"),
            ("ROADSTEAD_METRICS_SERVICE_HOST", "10.0.0.2"),
        ]);
        assert_eq!(found.mistakes, []);
        assert_eq!(
            read_all(&[("ROADSTEAD_PORT", "5000")]).mistakes.len(),
            1,
            "an operator's slip is still one"
        );
    }

    #[test]
    fn variables_of_distribution_are_translated() {
        let cases = [
            ("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io", "built in"),
            (
                "REGISTRY_PROXY_REMOTEURL",
                "https://hub.example.com",
                "ROADSTEAD_UPSTREAM__DOCKER_IO__URL=https://hub.example.com",
            ),
            ("REGISTRY_PROXY_TTL", "168h", "ROADSTEAD_TAG_FRESH_FOR"),
            (
                "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY",
                "/var/lib/registry",
                "ROADSTEAD_DATA=/var/lib/registry",
            ),
            ("REGISTRY_STORAGE_DELETE_ENABLED", "true", "ROADSTEAD_DATA"),
            ("REGISTRY_HTTP_ADDR", ":5000", "ROADSTEAD_LISTEN=0.0.0.0:5000"),
            ("REGISTRY_AUTH", "htpasswd", "ROADSTEAD_CLIENTS"),
        ];
        for (name, value, here) in cases {
            let found = read_all(&[(name, value)]);
            assert!(
                found.mistakes.iter().any(|mistake| mistake.text().contains(here)),
                "{name}: {:?}",
                found.mistakes
            );
        }
        assert_eq!(
            read_all(&[("REGISTRY_AUTH_FILE", "/run/auth.json"), ("REGISTRY", "x")]).mistakes,
            []
        );
    }

    #[test]
    fn no_mistake_prints_a_secret() {
        let found = read_all(&[
            ("REGISTRY_PROXY_PASSWORD", "geheim"),
            ("REGISTRY_PROXY_REMOTEURL", "https://me:geheim@hub.example.com"),
        ]);
        assert_eq!(found.mistakes.len(), 2);
        assert!(!format!("{:?}", found.mistakes).contains("geheim"));
    }

    #[test]
    fn lower_case_proxies_win_and_do_not_print() {
        let found = read_all(&[
            ("HTTP_PROXY", "http://a:1"),
            ("http_proxy", "http://me:geheim@b:1"),
            ("ALL_PROXY", "c:1"),
            ("NO_PROXY", ".local"),
        ]);
        assert_eq!(found.proxy.http.as_deref(), Some("http://me:geheim@b:1"));
        assert_eq!(found.proxy.https.as_deref(), Some("http://c:1"));
        assert_eq!(found.proxy.no_proxy.as_deref(), Some(".local"));
        assert!(!format!("{:?}", found.proxy).contains("geheim"));
        assert_eq!(found.warnings, []);
        let found = read_all(&[("ALL_PROXY", "socks5://me:geheim@c:1")]);
        assert_eq!((found.proxy.http, found.proxy.https), (None, None));
        assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
        assert!(!found.warnings[0].to_string().contains("geheim"));
    }
    #[test]
    fn a_proxy_that_the_client_would_refuse_is_ignored_as_well() {
        for value in ["http://me:ge#heim@proxy.example:3128", "http://me:geheim@[bad"] {
            let found = read_all(&[("HTTPS_PROXY", value)]);
            assert_eq!(found.proxy.https, None, "{value}");
            let said: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
            assert!(said[0].contains("HTTPS_PROXY"), "{said:?}");
            assert!(!format!("{said:?}").contains("heim"), "{said:?}");
        }
    }
}
