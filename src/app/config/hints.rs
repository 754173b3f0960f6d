//! What to say about a key that does not exist: the nearest one that does, or the translation of another program's word.

use super::keys::{KEYS, Scope, key};

/// A word of another program: how it is spelled (dots for nesting, `.*` for all below), and what it is here.
struct Foreign {
    word: &'static str,
    here: &'static str,
}

const fn foreign(word: &'static str, here: &'static str) -> Foreign {
    Foreign { word, here }
}

const URL: &str =
    "an upstream's address is `url` in its table: [upstream.\"docker.io\"] url = \"https://...\"";
const FRESH: &str = "how long a tag is believed without asking is `fresh_for` in [upstream.\"...\"]; content is never deleted by age";
const USER: &str = "it is `username` in [upstream.\"...\"]";
const PASSWORD: &str = "it is `password_file` (or `password`) in [upstream.\"...\"]";
const DATA: &str = "the data directory is `data`";
const LISTEN: &str = "it is `listen` = \"ADDRESS:PORT\"";
const CLIENT_SIDE: &str = "clients are told of roadstead in their own configuration; copies that roadstead asks before a registry are `mirrors` in its table: [upstream.\"docker.io\"]";
const TABLES: &str = "each registry is a table of its own: [upstream.\"ghcr.io\"]";
const NO_TLS: &str = "roadstead does not speak TLS to clients yet; put a TLS proxy in front, or let clients use http";
const NO_AUTH: &str = "roadstead does not authenticate clients, because a challenge breaks docker's mirrors; `clients` says which networks may pull";
const NOT_NEEDED: &str = "nothing like it is needed here; leave it out";
const NO_S3: &str =
    "content lives in a local directory, `data`; object stores are not supported yet";
const VERIFY: &str = "certificates are always checked; trust a private authority with `ca_file`, or use an http:// `url`";
const SPACE: &str =
    "the cache is bounded by the disk space that stays free, `min_free`, and by `max_size`";

/// The words of distribution (registry:2), of its kin and of habit. Longer ones first where one ends with another.
const FOREIGN: [Foreign; 70] = [
    foreign("mirrors.*", CLIENT_SIDE),
    foreign("proxy.remoteurl", URL),
    foreign("proxy.username", USER),
    foreign("proxy.password", PASSWORD),
    foreign("proxy.ttl", FRESH),
    foreign("proxy.exec.*", "use `credential_helper` in [upstream.\"...\"]"),
    foreign("proxy.cachewritetimeout", NOT_NEEDED),
    foreign("storage.filesystem.rootdirectory", DATA),
    foreign("storage.s3.*", NO_S3),
    foreign("storage.gcs.*", NO_S3),
    foreign("storage.azure.*", NO_S3),
    foreign(
        "storage.inmemory.*",
        "content lives in a local directory, `data`; a tmpfs serves as memory",
    ),
    foreign("storage.*", NOT_NEEDED),
    foreign("http.addr", LISTEN),
    foreign("http.debug.addr", "health and metrics are at `observe`"),
    foreign("http.debug.*", "metrics are always on, at /metrics of `observe`"),
    foreign("http.tls.*", NO_TLS),
    foreign("http.draintimeout", "it is `drain`"),
    foreign("http.*", NOT_NEEDED),
    foreign("log.level", "it is `log_level`, outside any table"),
    foreign("log.formatter", "it is `log_format`, outside any table"),
    foreign("log.format", "it is `log_format`, outside any table"),
    foreign("log.filter", "it is `log_filter`, outside any table"),
    foreign("log.*", NOT_NEEDED),
    foreign("auth.*", NO_AUTH),
    foreign("redis.*", NOT_NEEDED),
    foreign("health.*", NOT_NEEDED),
    foreign("notifications.*", "notifications are not supported yet"),
    foreign("catalog.maxentries", NOT_NEEDED),
    foreign("version", "leave it out: the file has no version"),
    foreign("remoteurl", URL),
    foreign("remote_url", URL),
    foreign("remote", URL),
    foreign("upstream_url", URL),
    foreign("endpoint", URL),
    foreign("ttl", FRESH),
    foreign("tag_ttl", FRESH),
    foreign("cache_ttl", FRESH),
    foreign("max_age", FRESH),
    foreign("expire", FRESH),
    foreign("rootdirectory", DATA),
    foreign("root_directory", DATA),
    foreign("data_dir", DATA),
    foreign("cache_dir", DATA),
    foreign("storage_dir", DATA),
    foreign("directory", DATA),
    foreign("addr", LISTEN),
    foreign("address", LISTEN),
    foreign("bind", LISTEN),
    foreign("port", LISTEN),
    foreign("metrics_addr", "health and metrics are at `observe`"),
    foreign("registry_mirrors", CLIENT_SIDE),
    foreign("mirror", CLIENT_SIDE),
    foreign("registries", TABLES),
    foreign("registry.*", TABLES),
    foreign("registry", TABLES),
    foreign("upstreams", TABLES),
    foreign("user", USER),
    foreign("pass", PASSWORD),
    foreign("token", PASSWORD),
    foreign("tls.*", NO_TLS),
    foreign("insecure", VERIFY),
    foreign("skip_verify", VERIFY),
    foreign("tls_verify", VERIFY),
    foreign("tlsverify", VERIFY),
    foreign("ca", "it is `ca_file`"),
    foreign("cache_size", SPACE),
    foreign("include", "it is `allow` in [upstream.\"...\"]"),
    foreign("exclude", "it is `deny` in [upstream.\"...\"]"),
    foreign("loglevel", "it is `log_level`"),
];

/// The translation of a key that is a word of another program. `name` is the key with dots; words match at its end.
pub(super) fn translation(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let matches = |word: &str| match word.strip_suffix(".*") {
        Some(table) => {
            name.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')) || name == table
        }
        None => name.strip_suffix(word).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    let found = FOREIGN.iter().find(|entry| matches(entry.word));
    found.map(|entry| entry.here)
}

/// What to say about an unknown key of a scope.
pub(super) fn unknown(scope: Scope, name: &str) -> String {
    if let Some(here) = translation(name) {
        return format!("unknown key; {here}");
    }
    for (other, place) in [
        (Scope::Top, "outside the upstream tables"),
        (Scope::Upstream, "in [upstream.\"...\"]"),
        (Scope::Rule, "in [[upstream.\"...\".tag]]"),
        (Scope::Warm, "in [[warm]]"),
    ] {
        if other != scope && key(other, name).is_some() {
            return format!("unknown key here; `{name}` belongs {place}");
        }
    }
    let siblings = KEYS.iter().filter(|key| key.is_in(scope)).map(|key| key.name);
    match nearest(name, siblings) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => "unknown key; config/roadstead.toml has them all".to_owned(),
    }
}

/// The candidate that is the fewest slips of the pen away, if that is near enough to be meant.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).len();
    let near = candidates.map(|candidate| {
        // `fresh` for `fresh_for` is a shorter word, not a slip.
        let is_shorter = candidate.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
        let slips = if is_shorter { 1 } else { distance(name, candidate) };
        (slips, candidate)
    });
    let near =
        near.filter(|(slips, candidate)| *slips <= last(candidate).max(last(name)).div_ceil(3));
    near.min_by_key(|(slips, _)| *slips).map(|(_, candidate)| candidate)
}

/// Levenshtein's distance; names are short.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_pen_find_their_key() {
        for (slip, key) in [
            ("lisen", "listen"),
            ("min-free", "min_free"),
            ("log_fromat", "log_format"),
            ("limits.conections", "limits.connections"),
        ] {
            assert!(
                unknown(Scope::Top, slip).contains(&format!("`{key}`")),
                "{slip}: {}",
                unknown(Scope::Top, slip)
            );
        }
        assert!(unknown(Scope::Upstream, "fresh").contains("`fresh_for`"));
        assert!(unknown(Scope::Top, "completely_different").contains("has them all"));
    }

    #[test]
    fn a_key_of_another_scope_is_sent_there() {
        assert!(unknown(Scope::Top, "fresh_for").contains("[upstream."));
        assert!(unknown(Scope::Upstream, "clients").contains("outside"));
        assert!(unknown(Scope::Upstream, "pattern").contains("tag]]"));
    }

    #[test]
    fn words_of_others_are_translated() {
        let cases = [
            ("ttl", "`fresh_for`"),
            ("proxy.ttl", "`fresh_for`"),
            ("remoteurl", "`url`"),
            ("proxy.remoteurl", "`url`"),
            ("rootdirectory", "`data`"),
            ("storage.filesystem.rootdirectory", "`data`"),
            ("storage.delete.enabled", "nothing like it"),
            ("http.addr", "`listen`"),
            ("http.debug.addr", "`observe`"),
            ("registry-mirrors", "[upstream."),
            ("auth.htpasswd.realm", "`clients`"),
            ("version", "leave it out"),
        ];
        for (word, here) in cases {
            assert!(
                translation(word).is_some_and(|text| text.contains(here)),
                "{word}: {:?}",
                translation(word)
            );
        }
        for entry in &FOREIGN {
            assert!(
                key(Scope::Top, entry.word).is_none() && key(Scope::Upstream, entry.word).is_none(),
                "{} is a key of ours",
                entry.word
            );
        }
    }
}
