//! The directory of one test, the environment of its processes, and the proof that nothing of it is left.
//!
//! What must hold: every process started by a scene carries the scene's mark in its environment (its children
//! inherit it) and knows no proxy, home or registry of the machine. Names outside loopback lead to a closed port,
//! so that a client that turns its back on the mirror fails instead of asking the real registry.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::availability::find;

/// The environment variable that tells whose process this is.
const MARK: &str = "CLIENT_TEST_SCENE";
/// A proxy that refuses every connection: port 1 of the loopback address.
const NOWHERE: &str = "http://127.0.0.1:1";
/// How long shims and mounts may need to go after their daemon has ended.
const SETTLING: Duration = Duration::from_secs(20);
/// How often `/proc` is read while something is still settling.
const GLANCE: Duration = Duration::from_millis(50);

/// One test's directory.
pub(crate) struct Scene {
    directory: TempDir,
}

impl Scene {
    /// Makes the directory. It is short, because the path of a unix socket has 107 bytes.
    pub(crate) fn new(client: &str) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("rs-{client}-")).tempdir();
        let scene = Self { directory: directory.expect("the temporary directory is writable") };
        for name in ["home", "tmp"] {
            fs::create_dir(scene.path(name)).expect("a fresh directory is writable");
        }
        scene
    }

    /// The scene's directory.
    fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A path inside the scene.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Writes a small file and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let parent = path.parent().expect("a path inside the scene has a parent");
        fs::create_dir_all(parent).expect("the scene is writable");
        fs::write(&path, text).expect("the scene is writable");
        path
    }

    /// A command with the scene's environment and nothing of the machine's but `PATH`. It ends with the thread that
    /// starts it, even if the test runner is killed and nobody is left to end it.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let found = program.to_str().and_then(find);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]);
        command.arg(found.unwrap_or_else(|| program.to_owned()));
        let path = env::var("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", format!("/usr/bin:/bin:/usr/sbin:/sbin:{path}"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("HTTPS_PROXY", NOWHERE)
            .env("HTTP_PROXY", NOWHERE)
            .env("NO_PROXY", "127.0.0.1,localhost")
            .env(MARK, self.root());
        command
    }

    /// Removes what a client stored under `name`, with whatever is still mounted there.
    pub(crate) fn remove(&self, name: &str) {
        let path = self.path(name);
        unmount_below(&path);
        if path.exists() {
            fs::remove_dir_all(&path)
                .unwrap_or_else(|error| panic!("removing {}: {error}", path.display()));
        }
    }

    /// What of the scene is still alive: processes that carry its mark or name it, and mounts below it.
    pub(crate) fn remains(&self) -> BTreeSet<String> {
        let processes = processes_of(self.root()).into_iter();
        let mut found: BTreeSet<_> =
            processes.map(|(pid, words)| format!("process {pid}: {words}")).collect();
        found.extend(
            mounts_below(self.root()).iter().map(|path| format!("mount {}", path.display())),
        );
        found
    }

    /// Ends what a daemon that had to be killed left behind: the processes whose command line names `home`, and the
    /// mounts below it.
    pub(crate) fn end_strays(&self, home: &str) {
        let home = self.path(home);
        for (pid, words) in processes_of(&home) {
            eprintln!("killing {words}");
            if let Err(error) = kill_process(pid, Signal::KILL) {
                eprintln!("it has ended meanwhile: {error}");
            }
        }
        unmount_below(&home);
    }

    /// Waits until nothing is left; what is left when the time is over.
    pub(crate) fn settled(&self, limit: Duration) -> BTreeSet<String> {
        let deadline = Instant::now() + limit;
        loop {
            let remains = self.remains();
            if remains.is_empty() || Instant::now() >= deadline {
                return remains;
            }
            glance();
        }
    }

    /// Ends the scene: fails the test when a process or a mount is left over.
    pub(crate) fn finish(self) {
        let remains = self.settled(SETTLING);
        assert!(remains.is_empty(), "left over: {remains:#?}");
        let root = self.root().to_owned();
        drop(self);
        assert!(!root.exists(), "the scene is gone");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A failed test must not leave mounts that keep its directory from being removed.
        unmount_below(self.directory.path());
    }
}

/// One of the tests that run a container engine with a containerd of its own at a time: two of them on two cores
/// would only wait for each other's disk.
pub(crate) fn serial() -> MutexGuard<'static, ()> {
    static ENGINES: Mutex<()> = Mutex::new(());
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets a moment pass.
#[expect(
    clippy::disallowed_methods,
    reason = "the processes and mounts of others announce their end in /proc only"
)]
fn glance() {
    thread::sleep(GLANCE);
}

/// The processes whose environment or command line names `path`, with their command lines; this one excepted.
fn processes_of(path: &Path) -> Vec<(Pid, String)> {
    let needle = path.to_str().expect("a temporary directory has a readable name");
    let own = rustix::process::getpid();
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = id.filter(|pid| *pid != own) else {
            continue;
        };
        // A process may end between two reads; what cannot be read is gone.
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
        let words = text(read("cmdline"));
        if words.contains(needle) || text(read("environ")).contains(needle) {
            found.push((pid, words));
        }
    }
    found
}

/// The mount points at or below `root`, deepest first.
fn mounts_below(root: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(root)).collect();
    below.sort();
    below.reverse();
    below
}

/// Unmounts everything at or below `root`.
fn unmount_below(root: &Path) {
    for point in mounts_below(root) {
        let done = Command::new("umount").arg("--lazy").arg(&point).status();
        if !done.as_ref().is_ok_and(ExitStatus::success) {
            eprintln!("unmounting {}: {done:?}", point.display());
        }
    }
}
