//! The walls and doors of the house, as a test: which room may use which, where each outside thing may be touched, and how files look.
//!
//! `docs/architecture.md` tells the reasons. A new arrow or door is a change of the constants below, so that it is seen and argued.
//! Test code is free of walls and doors: `tests/`, `tests.rs`, `*_tests.rs`, `testing.rs` and items under `#[cfg(test)]`.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use code::{code_of, is_word, line_of, named_rooms, occurrences, without_comments_and_texts};

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/dependencies.rs"]
mod dependencies;

/// Rooms from the bottom up, each with the rooms that it may use. The leaves `oci`, `clock` and `span` are open to all others.
const ROOMS: [(&str, &[&str]); 15] = [
    ("clock", &[]),
    ("oci", &["clock"]),
    ("span", &[]),
    ("story", &[]),
    ("blobs", &[]),
    ("metadata", &[]),
    ("content", &["metadata", "blobs"]),
    ("upstream", &[]),
    ("proxy", &["upstream", "content", "metadata"]),
    ("registry", &["proxy", "content", "metadata"]),
    ("upkeep", &["content", "metadata"]),
    ("carry", &["registry", "proxy", "content", "metadata"]),
    ("server", &["carry", "registry", "upkeep"]),
    (
        "app",
        &[
            "server", "carry", "registry", "upkeep", "proxy", "upstream", "content", "metadata",
            "blobs",
        ],
    ),
    ("cli", &["app"]),
];
const LEAVES: [&str; 4] = ["oci", "clock", "span", "story"];

/// A thing of the outside, and the places (beginnings of paths below `src/`) that may touch it.
struct Door {
    thing: &'static [&'static str],
    places: &'static [&'static str],
    reason: &'static str,
}

const DOORS: [Door; 15] = [
    Door {
        thing: &["reqwest"],
        places: &["upstream/"],
        reason: "only upstream talks to foreign registries",
    },
    Door {
        thing: &["rustls", "webpki_root_certs"],
        places: &["upstream/"],
        reason: "TLS towards registries is upstream's",
    },
    Door { thing: &["rusqlite"], places: &["metadata/"], reason: "only metadata knows SQL" },
    Door {
        thing: &["hyper"],
        places: &["server/", "upstream/transport.rs", "cli/admin.rs"],
        reason: "only server speaks HTTP to clients; upstream may look into the errors of its own client, cli speaks to the admin socket",
    },
    Door {
        thing: &["hyper_util"],
        places: &["server/", "cli/admin.rs"],
        reason: "only server speaks HTTP to clients, and cli to the admin socket",
    },
    Door {
        thing: &["StatusCode::"],
        places: &["server/reply.rs", "upstream/"],
        reason: "answers get their status in one table",
    },
    Door {
        thing: &["println", "print", "eprintln", "eprint", "stdout"],
        places: &["cli/", "upstream/helper.rs"],
        reason: "only cli prints; the standard output of a helper is its own",
    },
    Door {
        thing: &["std::env", "env::var", "env::var_os", "env::vars", "env::vars_os"],
        places: &["app/"],
        reason: "only app reads the environment",
    },
    Door { thing: &["clap"], places: &["cli/"], reason: "only cli knows the command line" },
    Door {
        thing: &["toml", "tracing_subscriber"],
        places: &["app/"],
        reason: "configuration and logging are set up by app",
    },
    Door {
        thing: &["tokio::spawn", "task::spawn", "task::spawn_blocking", "tokio::fs"],
        places: &[],
        reason: "tasks go through the tracker that app hands in, so that they can be counted",
    },
    Door {
        thing: &["tokio::process", "process::Command"],
        places: &["upstream/helper.rs"],
        reason: "programs are started where they are limited, killed and reaped",
    },
    Door {
        thing: &["SystemTime::now"],
        places: &["clock.rs"],
        reason: "wall time comes from clock::Clock",
    },
    Door { thing: &["unsafe"], places: &["span.rs"], reason: "only a span may need it" },
    Door {
        thing: &["memmap2", "libc"],
        places: &["span.rs"],
        reason: "system calls that no crate has are argued in one place",
    },
];

/// Lines of a file; a longer one holds more than one idea.
const FILE_LINES_MAX: usize = 600;
/// Lines of a file of tests, which is a list.
const TEST_FILE_LINES_MAX: usize = 1000;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a directory of the project, sorted, as paths relative to the project.
fn files_below(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(directory)];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a directory can be listed").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root()).expect("it lies in the project");
                found.push(relative.to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text_of(file: &Path) -> String {
    fs::read_to_string(root().join(file))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Is the whole file test code?
fn is_test_file(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let in_test_directory =
        file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "testing");
    name == "tests.rs" || name == "testing.rs" || name.ends_with("_tests.rs") || in_test_directory
}

/// The room of a file below `src/`.
fn room_of(file: &Path) -> Option<String> {
    let inside = file.strip_prefix("src").ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

/// Fails with all findings at once.
fn report(findings: &[String], rule: &str) {
    let mut text = String::new();
    for finding in findings {
        writeln!(text, "  {finding}").expect("a string takes everything");
    }
    assert!(findings.is_empty(), "{rule}\n{text}");
}

#[test]
fn rooms_use_only_what_lies_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    let mut findings = Vec::new();
    for file in files_below("src").into_iter().filter(|file| !is_test_file(file)) {
        let Some(room) = room_of(&file) else {
            continue;
        };
        let Some(may_use) = allowed.get(room.as_str()) else {
            findings.push(format!("{}: {room} is no room of this house", file.display()));
            continue;
        };
        let code = code_of(&file);
        for at in occurrences(&code, "crate::").chain(occurrences(&code, "roadstead::")) {
            let after = code[at..].split_once("::").map_or("", |(_, after)| after);
            for used in named_rooms(after) {
                let is_leaf = LEAVES.contains(&used.as_str()) && !LEAVES.contains(&room.as_str());
                let is_known = allowed.contains_key(used.as_str());
                if used != room && is_known && !is_leaf && !may_use.contains(&used.as_str()) {
                    findings.push(format!(
                        "{}:{}: {room} uses {used}",
                        file.display(),
                        line_of(&code, at)
                    ));
                }
            }
        }
    }
    report(&findings, "arrows point down only (docs/architecture.md, the rooms)");
}

#[test]
fn no_path_climbs_out_of_its_room() {
    let mut findings = Vec::new();
    for file in files_below("src").into_iter().filter(|file| !is_test_file(file)) {
        // src/room/mod.rs is one deep, src/room/part.rs two.
        let is_root = file.file_name().is_some_and(|name| name == "mod.rs");
        let depth = file.components().count() - 1 - usize::from(is_root);
        let code = code_of(&file);
        let climb = "super::".repeat(depth);
        for at in occurrences(&code, &climb).filter(|_| room_of(&file).is_some()) {
            findings.push(format!("{}:{}", file.display(), line_of(&code, at)));
        }
    }
    report(
        &findings,
        "another room is named from the root (crate::room), never by climbing with super",
    );
}

#[test]
fn outside_things_have_one_door() {
    let mut findings = Vec::new();
    for file in files_below("src").into_iter().filter(|file| !is_test_file(file)) {
        let code = code_of(&file);
        let inside = file.strip_prefix("src").expect("it is below src");
        for door in &DOORS {
            let may = door.places.iter().any(|place| inside.to_string_lossy().starts_with(place));
            for thing in door.thing.iter().filter(|_| !may) {
                let lines = occurrences(&code, thing).map(|at| line_of(&code, at));
                findings
                    .extend(lines.map(|line| {
                        format!("{}:{line}: {thing}: {}", file.display(), door.reason)
                    }));
            }
        }
    }
    report(&findings, "each outside thing has one door (docs/architecture.md, the doors)");
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    let mut findings = Vec::new();
    for file in ["src", "tests", "benches"].into_iter().flat_map(files_below) {
        let text = text_of(&file);
        if !text.starts_with("//! ") {
            findings.push(format!("{}: does not begin with //!", file.display()));
        }
        let lines = text.lines().count();
        let lines_max = if is_test_file(&file) { TEST_FILE_LINES_MAX } else { FILE_LINES_MAX };
        if lines > lines_max {
            findings.push(format!("{}: {lines} lines, at most {lines_max}", file.display()));
        }
        for (number, line) in text.lines().enumerate() {
            for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
                if occurrences(line, mark).next().is_some() && !line.contains(&format!("{mark}(#"))
                {
                    findings.push(format!(
                        "{}:{}: {mark} without the number of an issue",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    report(&findings, "files are short, say what they are for, and are finished");
}

#[test]
fn room_files_hold_only_their_surface() {
    let mut findings = Vec::new();
    for file in files_below("src") {
        if file.file_name().is_none_or(|name| name != "mod.rs") {
            continue;
        }
        let code = without_comments_and_texts(&text_of(&file));
        // Statements end with a semicolon; attributes belong to the statement behind them.
        for statement in code.split(';') {
            let mut statement = statement.trim();
            while let Some(rest) = statement.strip_prefix("#[") {
                statement = rest.split_once(']').map_or("", |(_, rest)| rest).trim();
            }
            let visible = statement.strip_prefix("pub").unwrap_or(statement).trim_start();
            let bare = visible
                .strip_prefix('(')
                .and_then(|rest| rest.split_once(')'))
                .map_or(visible, |(_, rest)| rest.trim_start());
            let is_re_export = bare.starts_with("use ") && statement.starts_with("pub");
            if !statement.is_empty() && !bare.starts_with("mod ") && !is_re_export {
                let first = statement.lines().next().unwrap_or_default();
                findings.push(format!("{}: {first}", file.display()));
            }
        }
    }
    report(
        &findings,
        "mod.rs holds docs, mod lines and re-exports; everything else has a file of its own",
    );
}

/// The files that a file declares with `mod name;`.
fn declared(file: &Path) -> Vec<PathBuf> {
    let text = text_of(file);
    let code = without_comments_and_texts(&text);
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let parent = file.parent().unwrap_or(Path::new(""));
    let is_root = matches!(stem, "mod" | "lib" | "main")
        || parent == Path::new("tests")
        || parent == Path::new("benches");
    let directory = if is_root { parent.to_owned() } else { parent.join(stem) };
    let mut found = Vec::new();
    for at in occurrences(&code, "mod") {
        let rest = code[at + 3..].trim_start();
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        if rest[name.len()..].trim_start().starts_with(';') {
            found.push(directory.join(format!("{name}.rs")));
            found.push(directory.join(&name).join("mod.rs"));
        }
    }
    // #[path = "x.rs"] names a file beside this one.
    for (at, _) in text.match_indices("#[path = \"") {
        let name = text[at + 10..].split('"').next().unwrap_or_default();
        let beside = parent.join(name);
        found.push(
            fs::canonicalize(root().join(&beside))
                .ok()
                .and_then(|path| Some(path.strip_prefix(root()).ok()?.to_owned()))
                .unwrap_or(beside),
        );
    }
    found
}

#[test]
fn no_file_is_dead() {
    let all: BTreeSet<PathBuf> =
        ["src", "tests", "benches"].into_iter().flat_map(files_below).collect();
    let is_start = |file: &&PathBuf| {
        let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
        matches!(
            parts[..],
            ["src", "lib.rs" | "main.rs"]
                | ["tests" | "benches", _]
                | ["tests" | "benches", _, "main.rs"]
        )
    };
    let mut pending: Vec<PathBuf> = all.iter().filter(is_start).cloned().collect();
    let mut reached = BTreeSet::new();
    while let Some(file) = pending.pop() {
        if all.contains(&file) && reached.insert(file.clone()) {
            pending.extend(declared(&file));
        }
    }
    let findings: Vec<String> =
        all.difference(&reached).map(|file| file.display().to_string()).collect();
    report(&findings, "every file is declared by a mod line");
}
