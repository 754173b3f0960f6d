//! The configuration as an operator meets it: layers, mistakes, checks, and the documented file.

use std::collections::BTreeSet;
use std::path::Path as FilePath;
use std::time::Duration;

use super::document::{self, Document};
use super::keys::{KEYS, Scope};
use super::*;
use crate::proxy::{Private, WhenAbsent};
use crate::upstream::CredentialSource;

/// The documented file, as it is delivered.
const DOCUMENTED: &str = include_str!("../../../config/roadstead.toml");

fn sources(environment: &[(&str, &str)], arguments: Overrides) -> Sources {
    let own = |text: &str| text.to_owned();
    Sources {
        file: None,
        environment: environment.iter().map(|(name, value)| (own(name), own(value))).collect(),
        arguments,
    }
}

fn document(text: &str) -> Document {
    document::parse(FilePath::new("test.toml"), text)
}

fn load(text: &str) -> Result<Config, ConfigErrors> {
    Config::assemble(&Sources::default(), document(text))
}

fn good(text: &str) -> Config {
    load(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The lines of the report of a file that must be refused.
fn mistakes(text: &str) -> Vec<String> {
    let errors = load(text).expect_err("the file must be refused");
    errors.mistakes().iter().map(ToString::to_string).collect()
}

fn upstream<'a>(config: &'a Config, name: &str) -> &'a UpstreamConfig {
    let found = config.upstreams.iter().find(|upstream| upstream.name.as_str() == name);
    found.unwrap_or_else(|| panic!("{name} is not configured"))
}

#[test]
fn nothing_at_all_is_a_configuration() {
    let config = good("");
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.observe.to_string(), "127.0.0.1:5010");
    assert_eq!(config.data, FilePath::new("roadstead-data"));
    assert_eq!(config.default_upstream.as_str(), "docker.io");
    assert_eq!(config.warnings, []);
    let hub = upstream(&config, "docker.io");
    assert_eq!(hub.url, "https://registry-1.docker.io");
    assert_eq!(hub.policy.tags.fresh_for, Duration::from_secs(60));
    assert_eq!(hub.credential, CredentialSource::None);
    assert!(hub.library);
    for name in [
        "ghcr.io",
        "quay.io",
        "registry.k8s.io",
        "gcr.io",
        "pkg.dev",
        "mcr.microsoft.com",
        "public.ecr.aws",
        "nvcr.io",
    ] {
        assert!(upstream(&config, name).well_known, "{name}");
    }
    assert_eq!(upstream(&config, "pkg.dev").patterns, ["*.pkg.dev".parse().unwrap()]);
    assert_eq!(upstream(&config, "registry.redhat.io").realms, ["sso.redhat.com"]);
}

#[test]
fn the_documented_file_is_the_default() {
    assert_eq!(good(DOCUMENTED), Config::default());
}

#[test]
fn the_documented_file_has_every_key_and_its_examples_are_valid() {
    let mut section = "";
    let mut seen = BTreeSet::new();
    let mut uncommented = String::new();
    for line in DOCUMENTED.lines() {
        let example = line.strip_prefix('#').filter(|rest| {
            rest.starts_with('[') || rest.starts_with(|c: char| c.is_ascii_lowercase())
        });
        let line = example.unwrap_or(line);
        // Each example alone is valid; a password in two ways is not, so only one of them is kept for the test.
        let is_other_way =
            ["password =", "docker_config =", "password_file = \"/run/secrets/docker.io\""]
                .iter()
                .any(|key| line.starts_with(key));
        // No such certificates on the machine of the test.
        let is_absent_file = line.starts_with("ca_file =") || line.starts_with("parent_ca_file =");
        if line.starts_with('[') {
            section = line;
        }
        if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let prefix =
                if section.ends_with(".limits]") || section == "[limits]" { "limits." } else { "" };
            let scope = match section {
                "" | "[limits]" => Scope::Top,
                "[[warm]]" => Scope::Warm,
                rule if rule.starts_with("[[") => Scope::Rule,
                _ => Scope::Upstream,
            };
            let name = format!("{prefix}{key}");
            assert!(keys::key(scope, &name).is_some(), "{name} of {section} is no key");
            seen.insert((scope == Scope::Top, name));
        }
        if !is_other_way && !is_absent_file {
            uncommented.push_str(if line.starts_with("username = \"me\"") { "" } else { line });
        }
        uncommented.push('\n');
    }
    for key in KEYS {
        let is_there = seen.contains(&(key.is_in(Scope::Top), key.name.to_owned()));
        assert!(is_there, "{} is not in config/roadstead.toml", key.name);
    }
    let config = good(&uncommented);
    assert_eq!(upstream(&config, "docker.io").policy.tag_rules.len(), 1);
    assert_eq!(config.schedules.len(), 1);
    assert_eq!(upstream(&config, "registry.example.com:5443").policy.private, Private::Shared);
}

#[test]
fn mirrors_and_a_parent_are_taken() {
    let file = "parent = \"http://central.example:5000/\"\n\
        [upstream.\"docker.io\"]\nmirrors = [\"https://m1.example\", \"http://edge:5000/prefix/\"]\n\
        [upstream.\"ghcr.io\"]\nparent = false\n\
        [upstream.\"central.example\"]\nurl = \"http://central.example:5000\"\n";
    let config = good(file);
    assert_eq!(config.parent.as_ref().unwrap().url, "http://central.example:5000");
    let hub = upstream(&config, "docker.io");
    assert_eq!(hub.mirrors, ["https://m1.example", "http://edge:5000/prefix"]);
    assert_eq!(hub.parent, config.parent);
    assert_eq!(upstream(&config, "pkg.dev").parent, config.parent);
    assert_eq!(upstream(&config, "ghcr.io").parent, None);
    assert_eq!(upstream(&config, "central.example").parent, None, "it is the parent itself");
    let environment = [
        ("ROADSTEAD_PARENT", ""),
        ("ROADSTEAD_UPSTREAM__QUAY_IO__MIRRORS", "https://a.example, https://b.example"),
    ];
    let layered = sources(&environment, Overrides::default());
    let config = Config::assemble(&layered, document(file)).unwrap();
    assert_eq!(
        (config.parent.clone(), upstream(&config, "docker.io").parent.clone()),
        (None, None)
    );
    assert_eq!(upstream(&config, "quay.io").mirrors.len(), 2);
}

#[test]
fn mirrors_and_parents_that_make_no_sense_are_told() {
    let file = "listen = \"0.0.0.0:5000\"\nparent = \"http://127.0.0.1:5000\"\n\
        [upstream.\"docker.io\"]\nmirrors = [\"https://m.example\", \"https://registry-1.docker.io:443\", \"https://m.example/\", \"http://localhost:5000\"]\n\
        [upstream.\"ghcr.io\"]\nmirrors = [\"https://me:secret@m.example\"]\n\
        [upstream.\"quay.io\"]\nmirrors = [\"ftp://m.example\"]\n";
    insta::assert_snapshot!(mistakes(file).join("\n"), @r#"
    test.toml:2: parent: http://127.0.0.1:5000 is this roadstead itself, which listens on 0.0.0.0:5000; name the one above it
    test.toml:4: upstream."docker.io".mirrors: http://localhost:5000 is this roadstead itself, which listens on 0.0.0.0:5000
    test.toml:4: upstream."docker.io".mirrors: https://m.example is named twice
    test.toml:4: upstream."docker.io".mirrors: https://registry-1.docker.io:443 is the registry itself, which is asked last anyway
    test.toml:6: upstream."ghcr.io".mirrors: must not hold credentials: it is asked without any (addresses of copies that are asked before it, in order)
    test.toml:8: upstream."quay.io".mirrors: scheme "ftp" is not known; want http or https (addresses of copies that are asked before it, in order)
    "#);
    let parents = "parent = \"https://p.example\"\n[upstream.\"ghcr.io\"]\nmirrors = [\"https://p.example\"]\n";
    let told = mistakes(parents).join("\n");
    assert!(told.contains("is the `parent`"), "{told}");
    let told = mistakes("parent_ca_file = \"/none.pem\"\n").join("\n");
    assert!(told.contains("parent_ca_file: is for the `parent`, and there is none"), "{told}");
    let told = mistakes("parent = \"https://p.example\"\nparent_ca_file = \"/none.pem\"\n");
    assert!(told.len() == 1 && told[0].contains("parent_ca_file: /none.pem"), "{told:?}");
}

#[test]
fn arguments_beat_the_environment_beats_the_file() {
    let file = "listen = \"127.0.0.1:1\"\nobserve = \"127.0.0.1:2\"\ndata = \"a\"\n[upstream.\"ghcr.io\"]\nurl = \"https://file.example\"\nfresh_for = \"1m\"\n";
    let environment = [
        ("ROADSTEAD_OBSERVE", "127.0.0.1:3"),
        ("ROADSTEAD_DATA", "b"),
        ("ROADSTEAD_UPSTREAM__GHCR_IO__URL", "https://environment.example"),
    ];
    let arguments = Overrides {
        data: Some("c".into()),
        upstreams: vec!["quay.io=http://127.0.0.1:9".to_owned(), "localhost:5001".to_owned()],
        ..Overrides::default()
    };
    let config = Config::assemble(&sources(&environment, arguments), document(file)).unwrap();
    assert_eq!(config.listen.port(), 1);
    assert_eq!(config.observe.port(), 3);
    assert_eq!(config.data, FilePath::new("c"));
    let ghcr = upstream(&config, "ghcr.io");
    assert_eq!(ghcr.url, "https://environment.example");
    assert_eq!(ghcr.policy.tags.fresh_for, Duration::from_secs(60));
    assert_eq!(upstream(&config, "quay.io").url, "http://127.0.0.1:9");
    assert_eq!(upstream(&config, "localhost:5001").url, "https://localhost:5001");
}

#[test]
fn freshness_follows_the_address() {
    let config = good(
        "[upstream.\"docker.io\"]\nurl = \"https://hub.example.com\"\n[upstream.\"my.example.com\"]\n",
    );
    let seconds = |name: &str| upstream(&config, name).policy.tags.fresh_for.as_secs();
    assert_eq!((seconds("docker.io"), seconds("ghcr.io"), seconds("my.example.com")), (5, 60, 5));
    assert!(!upstream(&config, "docker.io").well_known);
    assert_eq!(
        upstream(&config, "docker.io").realms,
        [""; 0],
        "the known realm belongs to the known address"
    );
    assert!(upstream(&config, "docker.io").library, "the name still is Docker Hub's");

    let file = "tag_fresh_for = \"7s\"\n[upstream.\"ghcr.io\"]\nfresh_for = \"9s\"\n";
    let config = good(file);
    let seconds =
        |config: &Config, name: &str| upstream(config, name).policy.tags.fresh_for.as_secs();
    assert_eq!((seconds(&config, "docker.io"), seconds(&config, "ghcr.io")), (7, 9));
    let arguments = Overrides { tag_fresh_for: Some("0s".to_owned()), ..Overrides::default() };
    let config = Config::assemble(&sources(&[], arguments), document(file)).unwrap();
    assert_eq!((seconds(&config, "docker.io"), seconds(&config, "ghcr.io")), (0, 0));
}

#[test]
fn tag_rules_keep_their_order() {
    let config = good(
        "[[upstream.\"docker.io\".tag]]\npattern = \"v*\"\nimmutable = true\n[[upstream.\"docker.io\".tag]]\npattern = \"library/*:latest\"\nfresh_for = \"5s\"\nstale_if_error = \"unlimited\"\nwhen_absent = \"keep\"\n",
    );
    let rules = &upstream(&config, "docker.io").policy.tag_rules;
    assert_eq!(
        rules.iter().map(|rule| rule.pattern.as_str()).collect::<Vec<_>>(),
        ["v*", "library/*:latest"]
    );
    assert_eq!(rules[0].overrides.immutable, Some(true));
    assert_eq!(rules[1].overrides.stale_if_error, Some(None));
    assert_eq!(rules[1].overrides.when_absent, Some(WhenAbsent::Keep));
}

#[test]
fn all_mistakes_are_told_at_once_with_line_and_key() {
    let file = "listen = 5000\nlisten_on = \"x\"\nttl = \"168h\"\n[limits]\nconnections = 0\n[upstream.\"ghcr.io\"]\nfresh = \"1s\"\nurl = \"ghcr.io\"\nwait = 5\n";
    insta::assert_snapshot!(mistakes(file).join("\n"), @r#"
    test.toml:1: listen: 5000 is a port alone; write "127.0.0.1:5000" (address and port where clients pull)
    test.toml:2: listen_on: unknown key; did you mean `listen`?
    test.toml:3: ttl: unknown key; how long a tag is believed without asking is `fresh_for` in [upstream."..."]; content is never deleted by age
    test.toml:5: limits.connections: 0 is out of range; want a whole number of at least 1 (client connections at a time)
    test.toml:7: upstream."ghcr.io".fresh: unknown key; did you mean `fresh_for`?
    test.toml:8: upstream."ghcr.io".url: "ghcr.io" is no address of a server; want one such as "https://registry.example.com" (address of the registry; without it https://<name>)
    test.toml:9: upstream."ghcr.io".wait: 5 has no unit; write "5s" for seconds (time that a client waits for the check of a tag)
    "#);
}

#[test]
fn the_words_of_others_are_translated_line_by_line() {
    let file = "version = \"0.1\"\n[proxy]\nremoteurl = \"https://registry-1.docker.io\"\nttl = \"168h\"\n[storage.filesystem]\nrootdirectory = \"/var/lib/registry\"\n[http]\naddr = \":5000\"\n[mirrors.\"docker.io\"]\nendpoint = [\"http://127.0.0.1:5000\"]\n[log]\nlevel = \"debug\"\n";
    insta::assert_snapshot!(mistakes(file).join("\n"), @r#"
    test.toml:1: version: unknown key; leave it out: the file has no version
    test.toml:3: proxy.remoteurl: unknown key; an upstream's address is `url` in its table: [upstream."docker.io"] url = "https://..."
    test.toml:4: proxy.ttl: unknown key; how long a tag is believed without asking is `fresh_for` in [upstream."..."]; content is never deleted by age
    test.toml:6: storage.filesystem.rootdirectory: unknown key; the data directory is `data`
    test.toml:8: http.addr: unknown key; it is `listen` = "ADDRESS:PORT"
    test.toml:10: mirrors.docker.io.endpoint: unknown key; clients are told of roadstead in their own configuration; copies that roadstead asks before a registry are `mirrors` in its table: [upstream."docker.io"]
    test.toml:12: log.level: unknown key; it is `log_level`, outside any table
    "#);
}

#[test]
fn broken_toml_is_told_with_its_line() {
    let found = mistakes("listen = \"127.0.0.1:5000\"\nobserve = \n");
    assert!(found[0].starts_with("test.toml:2: "), "{found:?}");
    assert_eq!(found.len(), 1, "{found:?}");
    let found = mistakes("data = \"a\"\ndata = \"b\"\n");
    assert!(found[0].starts_with("test.toml:2: "), "{found:?}");
}

#[test]
fn slips_of_tables_have_an_answer() {
    let cases = [
        ("[upstream.ghcr.io]\nurl = \"https://a.example\"\n", "[upstream.\"ghcr.io\"]"),
        (
            "[upstream.registry.k8s.io]\nurl = \"https://a.example\"\n",
            "[upstream.\"registry.k8s.io\"]",
        ),
        ("[upstream]\nurl = \"https://a.example\"\n", "[upstream.\"ghcr.io\"]"),
        ("[[upstream]]\nname = \"ghcr.io\"\n", "[upstream.\"ghcr.io\"]"),
        ("[upstream.\"*.pkg.dev\"]\n", "patterns"),
        ("[upstream.\"docker.io\".tag]\npattern = \"v*\"\n", "two brackets"),
        ("[[upstream.\"docker.io\".tag]]\nimmutable = true\n", "needs a `pattern`"),
        ("[upstream.\"docker.io\"]\ntags = 1\n", "unknown key"),
        ("limits = 3\n", "want a table"),
        ("[listen]\naddress = \"x\"\n", "want a string"),
        ("[upstream.\"a/b\"]\n", "not a registry name"),
        (
            "[upstream.\"index.docker.io\"]\nusername = \"me\"\npassword = \"x\"\n",
            "write [upstream.\"docker.io\"]",
        ),
    ];
    for (file, hint) in cases {
        let found = mistakes(file);
        assert!(found.iter().any(|line| line.contains(hint)), "{file}\n{found:?}");
    }
}

#[test]
fn credentials_must_fit_together() {
    let table = |lines: &str| format!("[upstream.\"ghcr.io\"]\n{lines}\n");
    for bad in [
        "username = \"me\"",
        "password = \"geheim\"",
        "password_file = \"/nowhere\"",
        "username = \"me\"\npassword = \"geheim\"\npassword_file = \"/nowhere\"",
        "username = \"me\"\ndocker_config = \"/nowhere\"",
        "username = \"me\"\npassword = \"\"",
        "username = \"me\"\npassword = 5",
    ] {
        let found = mistakes(&table(bad));
        assert!(!found.concat().contains("geheim"), "{found:?}");
    }
    let config = good(&table("username = \"me\"\npassword = \"geheim\"\nprivate = \"shared\""));
    assert!(!format!("{config:?}").contains("geheim"));
    assert!(config.warnings[0].text().contains("everybody"), "{:?}", config.warnings);
    let config = good(&table("username = \"me\"\npassword_file = \"/nowhere/at/all\""));
    assert!(config.warnings[0].text().contains("cannot be read now"), "a file may come later");
    let config = good(&table(
        "docker_config = \"/nowhere/at/all\"\nproxy = \"http://me:geheim@proxy:3128\"",
    ));
    assert!(matches!(
        upstream(&config, "ghcr.io").credential,
        CredentialSource::DockerConfig { .. }
    ));
    assert!(!format!("{config:?}").contains("geheim"));
}

#[test]
fn a_helper_that_cannot_be_found_is_a_warning_without_its_arguments() {
    let table = |lines: &str| format!("[upstream.\"ghcr.io\"]\n{lines}\n");
    let config = good(&table("credential_helper = [\"/nowhere/login\", \"--token=geheim\"]"));
    let text = config.warnings[0].text();
    assert!(text.contains("`/nowhere/login`") && !text.contains("geheim"), "{text}");
    assert!(config.warnings[0].key.ends_with("credential_helper"), "{:?}", config.warnings);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    std::fs::write(&file, r#"{"credHelpers":{"ghcr.io":"gh"}}"#).unwrap();
    let config = good(&table(&format!("docker_config = {file:?}")));
    let text = config.warnings[0].text();
    assert!(text.contains("`docker-credential-gh`"), "{text}");
    let there = good(&table("credential_helper = [\"/bin/sh\", \"-c\", \"exit 0\"]"));
    assert!(there.warnings.is_empty(), "{:?}", there.warnings);
    for bad in [
        "credential_helper = \"../login\"",
        "credential_helper = \"ecr-login\"\nusername = \"me\"",
        "credential_helper = \"ecr-login\"\ndocker_config = \"/nowhere\"",
        "credential_refresh = \"0s\"",
        "allow_addresses = [\"10.0.0.0/33\"]",
        "quota_reserve = -1",
    ] {
        assert!(!mistakes(&table(bad)).is_empty(), "{bad}");
    }
    let both = good(
        "allow_addresses = [\"10.0.0.0/8\"]\n[upstream.\"ghcr.io\"]\nallow_addresses = [\"192.0.2.1\"]",
    );
    assert_eq!(upstream(&both, "ghcr.io").allow_addresses.len(), 2);
    assert_eq!(upstream(&both, "quay.io").allow_addresses.len(), 1);
}

#[test]
fn no_name_host_or_listener_means_two_things() {
    let cases = [
        ("[upstream.\"a.example\"]\naliases = [\"ghcr.io\"]\n", "the name of ghcr.io"),
        (
            "[upstream.\"a.example\"]\naliases = [\"x.example\"]\n[upstream.\"b.example\"]\naliases = [\"x.example\"]\n",
            "an alias of a.example",
        ),
        (
            "[upstream.\"a.example\"]\nhosts = [\"x.example\"]\n[upstream.\"b.example\"]\nhosts = [\"x.example\"]\n",
            "a host of a.example",
        ),
        ("observe = \"127.0.0.1:5000\"\n", "is taken by `listen`"),
        ("listen = \"0.0.0.0:5010\"\n", "is taken by `listen`"),
        ("listen = \"[::]:5010\"\n", "is taken by `listen`"),
        ("[upstream.\"a.example\"]\nlisten = \"127.0.0.1:5010\"\n", "is taken by `observe`"),
        ("[upstream.\"a.example\"]\npatterns = [\"*.pkg.dev\"]\n", "*.pkg.dev belongs to"),
        ("default_upstream = \"nowhere.example\"\n", "is not configured"),
        ("builtin_upstreams = false\n", "nothing to serve"),
        ("builtin_upstreams = false\n[upstream.\"ghcr.io\"]\n", "docker.io is not configured"),
        ("clients = []\n", "nobody could pull"),
        ("[upstream.\"docker.io\"]\nwait = \"1m\"\n", "longer than limits.answer"),
        ("[upstream.\"hub\"]\n", "needs a `url`"),
        ("[upstream.\"ghcr.io\"]\nallow = [\"a[\"]\n", "unclosed"),
    ];
    for (file, hint) in cases {
        let found = mistakes(file);
        assert!(found.iter().any(|line| line.contains(hint)), "{file}\n{found:?}");
    }
    good("listen = \"127.0.0.1:0\"\nobserve = \"127.0.0.1:0\"\n");
    good("listen = \"127.0.0.1:5000\"\nobserve = \"127.0.0.2:5000\"\n");
    good("builtin_upstreams = false\ndefault_upstream = \"ghcr.io\"\n[upstream.\"ghcr.io\"]\n");
    let config = good("default_upstream = \"index.docker.io\"\n");
    assert_eq!(config.default_upstream.as_str(), "docker.io", "an alias is told by its name");
}

#[test]
fn a_name_without_a_dot_is_warned_about() {
    let config = good("[upstream.\"hub\"]\nurl = \"https://hub.example.com\"\naliases = [\"h\"]\n");
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("test.toml:1") && warnings[0].contains("hub/"), "{warnings:?}");
}

#[test]
fn an_exception_that_opens_the_metadata_of_clouds_is_warned_about() {
    let config = good(
        "allow_addresses = [\"0.0.0.0/0\", \"10.1.2.3/8\"]\n[upstream.\"ghcr.io\"]\nallow_addresses = [\"169.254.0.0/16\"]\n",
    );
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("test.toml:1") && warnings[0].contains("0.0.0.0/0"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("test.toml:3") && warnings[1].contains("169.254."),
        "{warnings:?}"
    );
}

#[test]
fn switched_off_built_ins_keep_what_is_known_of_a_name() {
    let config = good(
        "builtin_upstreams = false\ndefault_upstream = \"registry.redhat.io\"\n[upstream.\"registry.redhat.io\"]\n",
    );
    assert_eq!(config.upstreams.len(), 1);
    assert_eq!(upstream(&config, "registry.redhat.io").realms, ["sso.redhat.com"]);
}

#[test]
fn a_mistake_that_is_not_shown_says_what_is_wanted() {
    let told = mistakes("listen = \"0.0.0.0:5000:tcp\"\n");
    assert!(told[0].contains("not shown"), "{told:?}");
    assert!(told[0].contains("(address and port where clients pull)"), "{told:?}");
}

#[test]
fn mistakes_of_all_sources_are_told_together() {
    let environment =
        [("ROADSTEAD_LISTEN", "x"), ("ROADSTEAD_NONSENSE", "1"), ("REGISTRY_HTTP_ADDR", ":5000")];
    let arguments = Overrides {
        tag_fresh_for: Some("soon".to_owned()),
        upstreams: vec!["http://x".to_owned()],
        ..Overrides::default()
    };
    let errors = Config::assemble(&sources(&environment, arguments), document("nonsense = 1\n"))
        .unwrap_err();
    insta::assert_snapshot!(errors.to_string(), @r#"
    test.toml:1: nonsense: unknown key; config/roadstead.toml has them all
    environment REGISTRY_HTTP_ADDR: is a variable of distribution (registry:2); here: ROADSTEAD_LISTEN=0.0.0.0:5000
    environment ROADSTEAD_LISTEN: listen: "x" is no address; want ADDRESS:PORT such as "127.0.0.1:5000" or "[::1]:5000" (address and port where clients pull)
    environment ROADSTEAD_NONSENSE: unknown variable; a key is spelled ROADSTEAD_<KEY>, one of an upstream ROADSTEAD_UPSTREAM__<NAME>__<KEY>
    argument --tag-fresh-for: tag_fresh_for: "soon" is no duration; want one such as "60s", "5m", "24h", "1h30m" (fresh_for of every upstream that has none of its own)
    argument --upstream: "http://x" is no NAME or NAME=URL; want one such as ghcr.io or hub.example.com=https://10.0.0.5:5000
    "#);
}

#[test]
fn a_file_that_cannot_be_read_is_one_mistake() {
    let file = |name: &str| Sources { file: Some(name.into()), ..Sources::default() };
    let absent = Config::load(&file("/nowhere/at/all.toml")).unwrap_err().to_string();
    assert!(absent.starts_with("/nowhere/at/all.toml: cannot be read"), "{absent}");
    let yaml = Config::load(&file("/etc/distribution/config.yml")).unwrap_err().to_string();
    assert!(yaml.contains("TOML, not YAML"), "{yaml}");
}

#[test]
fn what_needs_a_restart_is_told() {
    let old = Config::default();
    let new = good(
        "listen = \"127.0.0.1:1\"\nlog_level = \"debug\"\n[upstream.\"ghcr.io\"]\nfresh_for = \"1s\"\n",
    );
    assert_eq!(old.needs_restart(&new), ["listen"]);
}

#[test]
fn what_would_end_the_start_is_a_mistake_with_its_line() {
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, "no certificate").unwrap();
    let said = mistakes(&format!(
        "[upstream.\"a.test\"]\nurl = \"http://256.1.1.1\"\n[upstream.\"b.test\"]\nca_file = {:?}\n[upstream.\"c.test\"]\nca_file = \"/no/such/file\"\n",
        ca.to_str().unwrap()
    ));
    let parts =
        [("test.toml:2", ".url"), ("test.toml:4", "ca.pem"), ("test.toml:6", "/no/such/file")];
    for (line, (place, part)) in said.iter().zip(parts) {
        assert!(line.starts_with(place) && line.contains(part), "{said:?}");
    }
    assert_eq!(said.len(), 3, "{said:?}");
}

#[test]
fn no_more_ranges_are_promised_than_are_served() {
    let limit = |ranges: usize| format!("[limits]\nranges = {ranges}\n");
    let most = crate::oci::RANGES_PER_REQUEST_MAX;
    assert_eq!(good(&limit(most)).limits.ranges, most);
    let said = mistakes(&limit(most + 1));
    assert!(said[0].contains("limits.ranges") && said[0].contains("1024"), "{said:?}");
}

#[test]
fn sources_print_no_value_of_the_environment() {
    let environment = [("ROADSTEAD_UPSTREAM__GHCR_IO__PASSWORD", "geheim")];
    let printed = format!("{:?}", sources(&environment, Overrides::default()));
    assert!(printed.contains("PASSWORD") && !printed.contains("geheim"), "{printed}");
}
