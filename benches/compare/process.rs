//! The servers as processes: started in groups of their own, ended by their ids whatever happens, and looked at through `/proc`.
//!
//! What must hold: whoever is started is known to [`end_all`] until it is reaped, so that an interrupted run leaves nobody behind. CPU
//! is user and system time of the whole tree, in ticks of 10 ms, with the children that have ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::Result;

/// `USER_HZ`, which is 100 on all platforms of Linux that we build for.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long a server may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
/// Lines of a log that are shown when its server fails.
const TAIL: usize = 15;

/// Whom we have started and not yet reaped; `None` after [`end_all`].
static RUNNING: Mutex<Option<Vec<Pid>>> = Mutex::new(Some(Vec::new()));

fn running() -> MutexGuard<'static, Option<Vec<Pid>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills everybody, for good: nobody can be started after this.
pub(crate) fn end_all() {
    for pid in running().take().into_iter().flatten() {
        // Whoever has ended meanwhile is not reaped yet, so the id is nobody else's.
        kill_process_group(pid, Signal::KILL).ok();
    }
}

/// Has [`end_all`] been called? Then nothing that is measured counts.
pub(crate) fn is_over() -> bool {
    running().is_none()
}

/// Starts `command` in a process group of its own.
fn spawn(command: &mut Command) -> Result<Child> {
    let mut running = running();
    let known = running.as_mut().ok_or("interrupted")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.process_group(0).spawn().map_err(|error| format!("{program}: {error}"))?;
    known.push(Pid::from_child(&child));
    Ok(child)
}

fn forget(child: &Child) {
    if let Some(known) = running().as_mut() {
        known.retain(|pid| *pid != Pid::from_child(child));
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let pid = Pid::from_child(&child);
    let output = child.wait_with_output()?;
    if let Some(known) = running().as_mut() {
        known.retain(|known| *known != pid);
    }
    Ok(output)
}

/// A path of a program, looked for where Debian puts daemons too.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    system
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// A running server, which ends with its owner.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a server that writes its words to a file in `home`. It sees nothing of our environment but the search path.
    pub(crate) fn start(command: &mut Command, home: &Path) -> Result<Self> {
        let log = home.join("output");
        let file = File::create(&log)?;
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).current_dir(home);
        Ok(Self { child: spawn(command)?, log })
    }

    /// The end of what it said.
    pub(crate) fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Has it ended?
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        let deadline = Instant::now() + PATIENCE;
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_process_group(group, Signal::TERM).ok();
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::park_timeout(POLL);
            }
            if matches!(self.child.try_wait(), Ok(None)) {
                kill_process_group(group, Signal::KILL).ok();
                self.child.wait().ok();
            }
        }
        forget(&self.child);
    }
}

/// The process and all that descend from it. Threads of ours fork nobody but through the first thread (nginx's master).
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(id) = found.get(next).copied() {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        next += 1;
    }
    found
}

/// CPU seconds of a server so far: user and system, of its whole tree.
pub(crate) fn cpu_seconds(root: u32) -> Result<f64> {
    let mut ticks = 0u64;
    for id in tree(root) {
        let stat = match fs::read_to_string(format!("/proc/{id}/stat")) {
            Ok(stat) => stat,
            // A child that has ended counts with its parent.
            Err(_ended) if id != root => continue,
            Err(error) => return Err(format!("the server is gone: {error}").into()),
        };
        // The name in parentheses may hold anything; behind it comes the state, which is field 3 (proc_pid_stat(5)).
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let numbers: Vec<u64> =
            fields.split_whitespace().skip(11).take(4).filter_map(|n| n.parse().ok()).collect();
        if numbers.len() < 4 {
            return Err(format!("/proc/{id}/stat is {stat:?}").into());
        }
        ticks += numbers.iter().sum::<u64>();
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Memory of a server's tree now, in bytes: anonymous, and all that is resident.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) anonymous: u64,
    pub(crate) resident: u64,
}

impl Memory {
    pub(crate) fn of(root: u32) -> Self {
        let mut sum = Self::default();
        for id in tree(root) {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let bytes = |key: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(key))?;
                line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
            };
            sum.anonymous += bytes("RssAnon:").unwrap_or_default();
            sum.resident += bytes("VmRSS:").unwrap_or_default();
        }
        sum
    }

    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            anonymous: self.anonymous.max(other.anonymous),
            resident: self.resident.max(other.resident),
        }
    }
}
