//! Credential helpers: running a program that gives our login, by the protocol of docker's credential helpers (`get`: the server on its
//! standard input, JSON on its standard output).
//!
//! What must hold: a program is started by its path, never through a shell; it has a time limit, what it writes has a size limit, and
//! only so many run at once; a program that is not waited for any more (too slow, too talkative, shutdown) is killed with all that it
//! started, and reaped; nothing that it writes to its standard output is ever shown. This is the only place that starts programs.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::docker_config::{IDENTITY_USER, Login};
use super::settings::{Program, Secret};

/// The longest answer of a helper.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// How much of the first line on standard error goes into the log.
const COMPLAINT_CHARS_MAX: usize = 200;
/// Programs that run at once, of all upstreams: the members of a family are chosen by clients, and each has a run of its own.
const RUNS_MAX: usize = 16;
/// A killed program is waited for so long; its end is only a matter of the kernel.
const REAP: Duration = Duration::from_secs(2);
/// A program file that is being written cannot be run for a moment; so many tries, with a pause between them.
const BUSY_TRIES: usize = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// What a helper says, with a status that is not zero, for a server that it does not know.
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";
/// What the names of all helpers begin with.
const PREFIX: &str = "docker-credential-";

static PLACES: Semaphore = Semaphore::const_new(RUNS_MAX);

/// What a helper gave.
#[derive(Debug)]
pub(super) enum Answer {
    Login(Login),
    /// It has nothing for the server.
    NotFound,
}

/// Why a helper gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// A stable word.
    pub(super) reason: &'static str,
    /// Ends the sentence that begins with the helper's name; holds nothing that the helper said.
    pub(super) text: String,
    /// The first line of its standard error, for the log.
    pub(super) complaint: String,
}

/// The document of the protocol; the server's name is not needed.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    username: String,
    secret: String,
}

/// A running program; dropped before its end it is killed with its process group.
struct Running(Child);

impl Program {
    /// A helper by the short name of docker's `credHelpers`, or by its full name. `None` if it could mean anything but one program.
    pub fn named(name: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        let sound = !short.is_empty() && short.chars().all(plain);
        sound.then(|| Self { path: format!("{PREFIX}{short}").into(), arguments: Vec::new() })
    }

    /// The file's name: for messages.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        printable(&name.to_string_lossy())
    }

    /// The whole command, as it would be run.
    pub fn command(&self) -> String {
        let words = self.arguments.iter().map(String::as_str);
        let path = self.path.to_string_lossy();
        std::iter::once(&*path).chain(words).chain(["get"]).collect::<Vec<_>>().join(" ")
    }

    /// The file to run: a path as it is, a name by the directories of `search_path` (those of `PATH`). Looks at the disk.
    pub fn find(&self, search_path: Option<&str>) -> Option<PathBuf> {
        if self.path.is_absolute() {
            return is_program(&self.path).then(|| self.path.clone());
        }
        let directories = search_path.unwrap_or_default().split(':').map(Path::new);
        let candidates =
            directories.filter(|path| path.is_absolute()).map(|path| path.join(&self.path));
        candidates.into_iter().find(|path| is_program(path))
    }
}

fn is_program(path: &Path) -> bool {
    let metadata = std::fs::metadata(path);
    metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Asks a helper for the login of `server`. May be dropped at any time.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn run(
    program: &Program,
    server: &str,
    search_path: Option<String>,
    limit: Duration,
    tasks: &TaskTracker,
) -> Result<Answer, Failure> {
    let place = timeout(limit, PLACES.acquire()).await;
    let _place = place.ok().and_then(Result::ok).ok_or_else(|| {
        Failure::new(
            "busy",
            format!("had to wait for others longer than {} s", limit.as_secs_f32()),
        )
    })?;
    let mut running = started(program, search_path, tasks)
        .await
        .map_err(|error| Failure::new("not_started", format!("could not be started: {error}")))?;
    let outcome = timeout(limit, running.converse(server)).await;
    let outcome = outcome.unwrap_or_else(|_elapsed| {
        Err(Failure::new("timeout", format!("took longer than {} s", limit.as_secs_f32())))
    });
    if outcome.is_err() {
        running.end().await;
    }
    let (status, output, complaint) = outcome?;
    read(status, &output)
        .map_err(|failure| Failure { complaint: first_line(&complaint), ..failure })
}

/// Starts a program; one whose file is just being written is tried again.
async fn started(
    program: &Program,
    search_path: Option<String>,
    tasks: &TaskTracker,
) -> io::Result<Running> {
    let mut tries = 1;
    loop {
        let (wanted, search_path) = (program.clone(), search_path.clone());
        // Starting a program looks at the disk, which a worker of the runtime must not wait for.
        let started = tasks.spawn_blocking(move || start(&wanted, search_path.as_deref())).await;
        match started.unwrap_or_else(|_stopped| Err(io::ErrorKind::Interrupted.into())) {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
            {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            started => return started,
        }
    }
}

/// Blocks.
fn start(program: &Program, search_path: Option<&str>) -> io::Result<Running> {
    let path = program.find(search_path).ok_or(io::ErrorKind::NotFound)?;
    let child = Command::new(path)
        .args(&program.arguments)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok(Running(child))
}

impl Running {
    /// Everything from the question to the program's end.
    async fn converse(
        &mut self,
        server: &str,
    ) -> Result<(ExitStatus, Zeroizing<Vec<u8>>, Vec<u8>), Failure> {
        let (stdin, stdout, stderr) =
            (self.0.stdin.take(), self.0.stdout.take(), self.0.stderr.take());
        let ((), output, complaint) =
            tokio::try_join!(tell(stdin, server), hear(stdout), hear_complaint(stderr))?;
        let status = self.0.wait().await;
        let status = status.map_err(|error| {
            Failure::new("not_started", format!("could not be waited for: {error}"))
        })?;
        Ok((status, output, complaint))
    }

    /// Kills it if it still runs, and waits until it is gone.
    async fn end(&mut self) {
        self.kill();
        // What is not gone by then is reaped by the runtime.
        drop(timeout(REAP, self.0.wait()).await);
    }

    /// The group has the number of its leader, and that number is nobody else's as long as the leader was not waited for.
    fn kill(&self) {
        let leader = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(leader) = leader
            && let Err(error) = kill_process_group(leader, Signal::KILL)
        {
            tracing::debug!(%error, "a credential helper could not be killed");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn tell(stdin: Option<ChildStdin>, server: &str) -> Result<(), Failure> {
    if let Some(mut stdin) = stdin {
        // A helper that does not want to know closes its end.
        drop(stdin.write_all(server.as_bytes()).await);
    }
    Ok(())
}

async fn hear(stdout: Option<ChildStdout>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Large enough from the beginning, so that no copy of a secret is left behind by growth.
    let mut output = Zeroizing::new(Vec::with_capacity(OUTPUT_BYTES_MAX + 1));
    if let Some(mut stdout) = stdout {
        while output.len() <= OUTPUT_BYTES_MAX {
            let room = u64::try_from(OUTPUT_BYTES_MAX + 1 - output.len()).unwrap_or(0);
            match (&mut stdout).take(room).read_buf(&mut *output).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    return Err(Failure::new("junk", format!("could not be read: {error}")));
                }
            }
        }
    }
    if output.len() > OUTPUT_BYTES_MAX {
        return Err(Failure::new("too_large", "wrote more than 64 KiB".to_owned()));
    }
    Ok(output)
}

/// The beginning of standard error; the rest is read and forgotten, so that nobody blocks on a full pipe.
async fn hear_complaint(stderr: Option<ChildStderr>) -> Result<Vec<u8>, Failure> {
    let mut kept = Vec::new();
    if let Some(mut stderr) = stderr {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut piece).await {
            let room = piece.len().saturating_sub(kept.len()).min(count);
            kept.extend_from_slice(&piece[..room]);
        }
    }
    Ok(kept)
}

/// What a program that ended has said.
fn read(status: ExitStatus, output: &[u8]) -> Result<Answer, Failure> {
    if !status.success() {
        if output.trim_ascii() == NOT_FOUND {
            return Ok(Answer::NotFound);
        }
        return Err(Failure::new("exit", format!("failed ({status})")));
    }
    let document: Result<Document, serde_json::Error> = serde_json::from_slice(output);
    let Ok(Document { username, secret }) = document else {
        return Err(Failure::new("junk", "gave something that is no login".to_owned()));
    };
    let secret = Secret::new(secret);
    Ok(match (username.is_empty(), secret.expose().is_empty()) {
        (true, true) => Answer::NotFound,
        _ if username == IDENTITY_USER => {
            Answer::Login(Login::Identity { username, token: secret })
        }
        _ => Answer::Login(Login::Basic { username, password: secret }),
    })
}

impl Failure {
    fn new(reason: &'static str, text: String) -> Self {
        Self { reason, text, complaint: String::new() }
    }
}

fn first_line(text: &[u8]) -> String {
    let line = text.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
    printable(&String::from_utf8_lossy(line))
}

/// Without what could disturb a log or a terminal.
fn printable(text: &str) -> String {
    let show = |c: char| if c.is_control() { ' ' } else { c };
    text.trim_end().chars().take(COMPLAINT_CHARS_MAX).map(show).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn script(directory: &Path, text: &str) -> Program {
        let path = directory.join("helper.sh");
        fs::write(&path, text).unwrap();
        // Run by the shell: a file that was just written may be busy for a moment.
        Program { path: "/bin/sh".into(), arguments: vec![path.to_str().unwrap().to_owned()] }
    }

    async fn ask(text: &str, limit: Duration) -> Result<Answer, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let program = script(directory.path(), text);
        run(&program, "r.example", None, limit, &TaskTracker::new()).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_login_and_an_identity_token() {
        let answer = ask(
            r#"[ "$1" = get ] && printf '{"ServerURL":"%s","Username":"AWS","Secret":"%s-secret"}' x "$(cat)""#,
            LONG,
        );
        let want = Login::Basic { username: "AWS".into(), password: "r.example-secret".into() };
        assert!(matches!(answer.await, Ok(Answer::Login(login)) if login == want));
        let answer = ask(r#"echo '{"Username":"<token>","Secret":"t","More":1}'"#, LONG).await;
        assert!(matches!(answer, Ok(Answer::Login(Login::Identity { .. }))));
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_apart_from_what_failed() {
        let not_found = r#"echo 'credentials not found in native keychain'; exit 1"#;
        assert!(matches!(ask(not_found, LONG).await, Ok(Answer::NotFound)));
        let nothing = r#"echo '{"Username":"","Secret":""}'"#;
        assert!(matches!(ask(nothing, LONG).await, Ok(Answer::NotFound)));
        let cases = [
            ("echo hunter2; echo 'no\tnetwork\nmore' >&2; exit 3", "exit"),
            ("echo hunter2", "junk"),
            (r#"echo '{"Username":"u"}'"#, "junk"),
            ("echo 'credentials not found in native keychain'", "junk"),
            ("yes hunter2", "too_large"),
            ("exit 0", "junk"),
        ];
        for (text, reason) in cases {
            let failure = ask(text, LONG).await.unwrap_err();
            assert_eq!(failure.reason, reason, "{text}");
            assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
        }
        let failure = ask(cases[0].0, LONG).await.unwrap_err();
        assert_eq!(failure.complaint, "no network");
        let missing = Program { path: "/nonexistent/helper".into(), arguments: Vec::new() };
        let failure = run(&missing, "r", None, LONG, &TaskTracker::new()).await.unwrap_err();
        assert_eq!(failure.reason, "not_started");
    }

    /// Has the process with the number in this file ended, with all that it started? A zombie has not.
    fn is_gone(file: &Path) -> bool {
        let Ok(id) = fs::read_to_string(file) else { return false };
        !Path::new("/proc").join(id.trim()).exists()
    }

    async fn until_gone(file: &Path) {
        let wait = async {
            while !is_gone(file) {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, wait).await.expect("the program ends");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let (leader, child) = (directory.path().join("leader"), directory.path().join("child"));
        // The files get their names when they are whole, the leader's last.
        let text = format!(
            "sleep 1000 & echo $! > {child}.new; mv {child}.new {child}; \
             echo $$ > {leader}.new; mv {leader}.new {leader}; wait",
            leader = leader.display(),
            child = child.display()
        );
        let program = script(directory.path(), &text);
        let tasks = TaskTracker::new();
        let failure = run(&program, "r", None, Duration::from_secs(5), &tasks).await;
        assert_eq!(failure.unwrap_err().reason, "timeout");
        until_gone(&leader).await;
        // Dropped in the middle.
        fs::remove_file(&leader).unwrap();
        let started = async {
            while fs::read_to_string(&leader).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = run(&program, "r", None, LONG, &tasks) => panic!("{answer:?}"),
            () = started => {}
        }
        until_gone(&leader).await;
        until_gone(&child).await;
    }

    #[tokio::test]
    async fn no_more_than_so_many_run_at_once() {
        let all = PLACES.acquire_many(u32::try_from(RUNS_MAX).unwrap()).await.unwrap();
        let login = r#"echo '{"Username":"u","Secret":"s"}'"#;
        let failure = ask(login, Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(failure.reason, "busy");
        let (answer, ()) = tokio::join!(ask(login, LONG), async { drop(all) });
        assert!(matches!(answer, Ok(Answer::Login(_))));
    }

    #[tokio::test]
    async fn no_descriptor_of_ours_is_inherited() {
        let directory = tempfile::tempdir().unwrap();
        let kept = fs::File::open(directory.path()).unwrap();
        let text = r#"printf '{"Username":"%s","Secret":"s"}' "$(ls -l /proc/$$/fd | grep -c -e socket -e sock -e "$(dirname "$0")"'$')""#;
        let program = script(directory.path(), text);
        let answer = run(&program, "r", None, LONG, &TaskTracker::new()).await.unwrap();
        let Answer::Login(Login::Basic { username, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!(username, "0");
        drop(kept);
    }

    #[test]
    fn names_become_programs() {
        let path = |name| Program::named(name).map(|program| program.path);
        assert_eq!(path("ecr-login"), Some("docker-credential-ecr-login".into()));
        assert_eq!(path("docker-credential-gcr"), Some("docker-credential-gcr".into()));
        for bad in ["", "pass; rm", "../x", "a/b", "$(x)", "a b", "docker-credential-"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn programs_are_found_in_absolute_directories_only() {
        let directory = tempfile::tempdir().unwrap();
        let program = Program::named("x").unwrap();
        let file = directory.path().join(&program.path);
        fs::write(&file, "").unwrap();
        let search = format!(":.:relative:/nonexistent:{}", directory.path().display());
        assert_eq!(program.find(Some(&search)), None, "it may not be run");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(program.find(Some(&search)), Some(file));
        assert_eq!(program.find(None), None);
        assert_eq!(program.command(), "docker-credential-x get");
    }
}
