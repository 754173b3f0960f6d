//! Which crates may be in the dependency tree, and under which licences.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::{report, root};

/// Crates that must not come back, and why.
const BANNED: [(&str, &str); 6] = [
    ("openssl", "TLS is rustls"),
    ("openssl-sys", "TLS is rustls"),
    ("native-tls", "TLS is rustls"),
    ("aws-lc-rs", "the one crypto provider is ring"),
    ("aws-lc-sys", "the one crypto provider is ring"),
    ("boring", "the one crypto provider is ring"),
];
/// Crates that must occur in one version, because their types cross our rooms or their code is security.
const SINGLE: [&str; 8] =
    ["bytes", "http", "http-body", "hyper", "ring", "rustls", "rusqlite", "tokio"];

/// Licences that fit Apache-2.0 without further duties than notices.
const LICENCES: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Name, version and source of every package of the lock file.
fn locked() -> Vec<(String, String, Option<String>)> {
    let lock = fs::read_to_string(root().join("Cargo.lock"))
        .expect("the lock file is part of the project");
    let value = |package: &str, key: &str| {
        let line = package
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'));
        line.map(str::to_owned)
    };
    let packages = lock.split("[[package]]").skip(1);
    packages
        .map(|package| {
            let name = value(package, "name").expect("a package has a name");
            (
                name,
                value(package, "version").expect("a package has a version"),
                value(package, "source"),
            )
        })
        .collect()
}

#[test]
fn dependencies_are_those_that_we_chose() {
    let packages = locked();
    let mut findings = Vec::new();
    for (name, reason) in BANNED {
        let found = packages.iter().filter(|(package, _, _)| package == name);
        findings.extend(found.map(|(_, version, _)| format!("{name} {version}: {reason}")));
    }
    for name in SINGLE {
        let versions: Vec<&str> = packages
            .iter()
            .filter(|(package, _, _)| package == name)
            .map(|(_, version, _)| version.as_str())
            .collect();
        if versions.len() > 1 {
            findings.push(format!("{name} in several versions: {}", versions.join(", ")));
        }
    }
    let sources: BTreeSet<&str> =
        packages.iter().filter_map(|(_, _, source)| source.as_deref()).collect();
    if sources.len() != 1 || sources.iter().any(|source| !source.starts_with("registry+")) {
        findings.push(format!("packages come from one registry, found {sources:?}"));
    }
    report(&findings, "the dependency tree");
}

/// Is an SPDX expression allowed: each part of an AND has an alternative that is.
fn is_licence_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    expression
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

#[test]
fn licences_fit_ours() {
    let host = {
        let output =
            Command::new(env!("CARGO")).arg("-vV").output().expect("cargo built this test");
        let text = String::from_utf8(output.stdout).expect("cargo speaks UTF-8");
        let host = text.lines().find_map(|line| line.strip_prefix("host: "));
        host.expect("cargo names its host").to_owned()
    };
    // What this test was built from is on this machine, so nothing is fetched.
    let arguments =
        ["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &host];
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo built this test");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("cargo lists packages");
    assert!(packages.len() > 50, "only {} packages were listed", packages.len());
    let refused = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(is_licence_allowed));
    let findings: Vec<String> = refused
        .map(|package| {
            format!("{} {}: {}", package["name"], package["version"], package["license"])
        })
        .collect();
    report(&findings, "licences that are not on the list");
}

#[test]
fn licences_are_read_as_spdx_says() {
    assert!(
        is_licence_allowed("MIT OR Apache-2.0")
            && is_licence_allowed("(MIT OR GPL-3.0) AND Unicode-3.0")
    );
    assert!(!is_licence_allowed("GPL-3.0") && !is_licence_allowed("MIT AND MPL-2.0"));
}
