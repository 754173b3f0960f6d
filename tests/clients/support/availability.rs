//! Whether a client can be tried on this machine, and saying so when it cannot.
//!
//! A test that is left out must be seen: the line goes straight to the process's stderr, past the capture of the
//! test runner. With `TESTS_REQUIRE_CLIENTS=1` nothing may be left out.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Set to `1` where a missing client is a failure.
const REQUIRE: &str = "TESTS_REQUIRE_CLIENTS";
/// Where Debian keeps daemons that a plain user's `PATH` does not name.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// The runnable content of every image.
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// True when `client` can be tried: root, its programs, the upstream and busybox are here. Otherwise says what is
/// missing and gives false, or fails the test when clients are required.
pub(crate) fn requirements_met(client: &str, programs: &[&str]) -> bool {
    let missing = programs.iter().chain(&["docker-registry"]).find(|name| find(name).is_none());
    let why = if !rustix::process::geteuid().is_root() {
        "not root".to_owned()
    } else if let Some(program) = missing {
        format!("{program} not found")
    } else if !Path::new(BUSYBOX).exists() {
        "busybox not found".to_owned()
    } else {
        return true;
    };
    left_out(client, &why);
    false
}

/// Says that `client` was left out and why, or fails the test when clients are required.
pub(crate) fn left_out(client: &str, why: &str) {
    assert!(env::var_os(REQUIRE).is_none_or(|value| value != "1"), "{client} is required: {why}");
    writeln!(io::stderr(), "left out: {client} ({why})").expect("stderr takes a line");
}

/// The full path of a program. Debian's own directories come first: they hold the versions under test, whatever
/// else the machine has.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    SYSTEM_DIRECTORIES
        .iter()
        .map(PathBuf::from)
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
