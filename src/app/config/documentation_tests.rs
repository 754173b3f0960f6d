//! The documentation against the table of keys: what it says must exist, and what exists must be in it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::environment;
use super::keys::{KEYS, Key, Scope};
use super::{Config, Overrides, Sources};

/// The reference of all keys.
const REFERENCE: &str = include_str!("../../../docs/configuration.md");

fn project(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn text(file: &str) -> String {
    std::fs::read_to_string(project(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn rows(scope: Scope, variable: &str) -> String {
    let mut table = String::from("| key | variable | meaning |\n|---|---|---|\n");
    let shown = |key: &&Key| key.is_in(scope);
    for key in KEYS.iter().filter(shown) {
        let spelled = environment::spelled(key.name);
        writeln!(table, "| `{}` | `{variable}{spelled}` | {} |", key.name, key.doc).unwrap();
    }
    table
}

#[test]
fn the_reference_has_every_key() {
    let tables = [
        rows(Scope::Top, "ROADSTEAD_"),
        rows(Scope::Upstream, "ROADSTEAD_UPSTREAM__<NAME>__"),
        rows(Scope::Rule, "ROADSTEAD_UPSTREAM__<NAME>__TAG__<N>__"),
        rows(Scope::Warm, "ROADSTEAD_WARM__<N>__"),
    ];
    for table in tables {
        assert!(REFERENCE.contains(&table), "docs/configuration.md must hold this table:\n{table}");
    }
}

/// The words of a text that are variables of ours.
fn variables(text: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let words = text.match_indices("ROADSTEAD_").map(|(at, _)| {
        let rest = &text[at..];
        &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]
    });
    // A pattern such as ROADSTEAD_UPSTREAM__<NAME>__URL ends with its separator.
    words.filter(|word| !word.ends_with('_')).collect()
}

#[test]
fn the_variables_that_documentation_and_deployment_name_exist() {
    let files = [
        "README.md",
        "deploy/Dockerfile",
        "deploy/compose.yaml",
        "deploy/kubernetes.yaml",
        "deploy/roadstead.service",
        "config/roadstead.toml",
        "docs/architecture.md",
    ];
    let mut seen = 0;
    for file in files {
        for variable in variables(&text(file)) {
            let sources = Sources {
                environment: vec![(variable.to_owned(), "x".to_owned())],
                ..Sources::default()
            };
            let refusal = Config::load(&sources).err().map(|errors| errors.to_string());
            let unknown = refusal.is_some_and(|text| {
                text.contains("unknown variable") || text.contains("no upstream is")
            });
            assert!(!unknown, "{file} names {variable}, which does not exist");
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} variables were found");
}

#[test]
fn the_configuration_of_the_kubernetes_manifest_is_valid() {
    let manifest = text("deploy/kubernetes.yaml");
    let after = manifest.split_once("  roadstead.toml: |\n").expect("the manifest has the file").1;
    let lines = after.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    // The commented part must be valid too, once its files are there.
    let uncomment = |line: &str| {
        let line = line.trim_start();
        let example =
            line.strip_prefix("# ").filter(|rest| rest.starts_with('[') || rest.contains(" = "));
        example.unwrap_or(line).to_owned()
    };
    let file: Vec<String> = lines.map(uncomment).collect();
    let document = super::document::parse(Path::new("roadstead.toml"), &file.join("\n"));
    let config = Config::assemble(&Sources::default(), document).unwrap();
    assert_eq!(config.log.format, super::LogFormat::Json);
    assert!(config.warnings[0].text().contains("/run/secrets/roadstead/docker.io"));
}

#[test]
fn the_snippet_of_the_readme_is_valid() {
    let readme = text("README.md");
    let snippet = readme
        .split("```toml\n")
        .find(|part| part.starts_with("listen"))
        .expect("the README has one");
    let snippet = snippet.split("```").next().unwrap();
    let document = super::document::parse(Path::new("README.md"), snippet);
    let config = Config::assemble(&Sources::default(), document).unwrap();
    assert_eq!(config.upstreams.len(), Config::default().upstreams.len() + 1);
}

#[test]
fn the_options_that_the_readme_names_are_those_of_the_overrides() {
    // One line of the README lists the options; a new one must be named there.
    let readme = text("README.md");
    let line = readme.lines().find(|line| line.starts_with("Options: ")).unwrap();
    let overrides = format!("{:?}", Overrides::default());
    let fields = overrides.split(['{', ',']).filter_map(|part| part.split_once(':'));
    for (field, _) in fields {
        let option = field.trim().replace('_', "-");
        let option = option.strip_suffix('s').filter(|name| *name == "upstream").unwrap_or(&option);
        assert!(line.contains(&format!("--{option}")), "--{option} is not in: {line}");
    }
}

/// The names of the metrics that the rooms register.
fn metrics() -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![project("src")];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let is_source = path.extension().is_some_and(|extension| extension == "rs");
            if path.is_dir() {
                pending.push(path);
            } else if is_source && !path.ends_with("documentation_tests.rs") {
                let source = std::fs::read_to_string(path).unwrap();
                for call in [".register(", ".encode_descriptor("] {
                    let names_after = source.split(call).skip(1).filter_map(|after| {
                        let quoted = after.trim_start().strip_prefix('"')?;
                        Some(quoted.split_once('"')?.0.trim_start_matches("roadstead_").to_owned())
                    });
                    names.extend(names_after);
                }
            }
        }
    }
    names
}

#[test]
fn the_page_on_metrics_has_them_all() {
    let page = text("docs/logging.md");
    let names = metrics();
    assert!(names.len() > 20, "only {} metrics were found", names.len());
    for name in names {
        let shown = [format!("`{name}`"), format!("`{name}_total`"), format!("`{name}_info`")];
        assert!(shown.iter().any(|shown| page.contains(shown)), "{name} is not in docs/logging.md");
    }
}
