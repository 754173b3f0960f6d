//! Finds out who has the store, and lets a command talk to him; ends on Ctrl-C.

use std::fs::{self, File};
use std::future::pending;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::admin::{Client, Reach, Trouble};
use super::arguments::Store;
use super::command::{FAILED, INTERRUPTED, WRONG_USAGE, complain, fail, refuse_config};
use super::words::clean;
use crate::app::{AccessError, Config, Opening, Secret, StoreAccess, may_hold_password};

/// A token is some dozens of characters.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Signals within this time are one: timeout(1) sends its own twice.
const ONE_SIGNAL: Duration = Duration::from_millis(500);
/// How long a command may take to end in good order after a signal. What it waits for is a disk that writes down what it was given.
const ORDERLY_TIME: Duration = Duration::from_secs(60);

/// Why a command did not do what it should.
#[derive(Debug)]
pub(super) enum Failure {
    /// The admin API did not.
    Trouble(Trouble),
    /// Standard output, or who reads it.
    Output(io::Error),
    /// Something of this command's own, in a sentence, with its exit code.
    Told { code: u8, line: String },
}

/// What a command comes to.
pub(super) type Done = Result<ExitCode, Failure>;

/// Does `work` with a client of the store that the arguments name.
pub(super) fn with_client(
    arguments: &Store,
    opening: Opening,
    work: impl AsyncFnOnce(&Client<'_>) -> Done,
) -> ExitCode {
    let runtime = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads: {error}")),
    };
    runtime.block_on(async {
        let interrupted = match Interrupts::watch() {
            Ok(interrupted) => interrupted,
            Err(error) => return fail(&format!("no signals: {error}")),
        };
        if let (Some(url), Some(file)) = (&arguments.admin, &arguments.token_file) {
            return match listener(url, file) {
                Ok(reach) => finish(work, &Client::new(reach), &interrupted).await,
                Err(line) => wrong_usage(&line),
            };
        }
        let config = match Config::load(&arguments.sources()) {
            Ok(config) => config,
            Err(errors) => return refuse_config(errors.mistakes()),
        };
        match StoreAccess::open(&config, opening).await {
            Ok(StoreAccess::Running { socket, pid }) => {
                let by =
                    pid.map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}"));
                let client = Client::new(Reach::Socket { path: socket, by });
                finish(work, &client, &interrupted).await
            }
            Ok(StoreAccess::Stopped(store)) => {
                if let Some(lost) = store.lost_metadata() {
                    let lost = lost.display();
                    complain(&format!(
                        "the metadata file could not be used and was moved to {lost}"
                    ));
                }
                let code = finish(work, &Client::new(Reach::Stopped(&store)), &interrupted).await;
                store.close().await;
                code
            }
            Err(error @ AccessError::NoStore { .. }) => wrong_usage(&error.to_string()),
            Err(error) => fail(&error.to_string()),
        }
    })
}

/// Does the work, and says what became of it.
async fn finish(
    work: impl AsyncFnOnce(&Client<'_>) -> Done,
    client: &Client<'_>,
    interrupted: &CancellationToken,
) -> ExitCode {
    let done = tokio::select! {
        done = work(client) => done,
        () = interrupted.cancelled() => {
            complain("interrupted; nothing is left half done");
            return ExitCode::from(INTERRUPTED);
        }
    };
    match done {
        Ok(code) => code,
        Err(Failure::Told { code, line }) => {
            complain(&line);
            ExitCode::from(code)
        }
        // The reader has what he wanted.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(Failure::Output(error)) => fail(&format!("standard output cannot be written: {error}")),
        Err(Failure::Trouble(trouble)) => {
            complain(&clean(&trouble.to_string()));
            if let Trouble::Refused(refusal) = &trouble {
                for hold in &refusal.holds {
                    complain(&clean(&format!("  {}: {}", hold.by, hold.what)));
                }
            }
            ExitCode::from(if is_misuse(&trouble) { WRONG_USAGE } else { FAILED })
        }
    }
}

/// Was a name or a value refused because it is none, whatever is stored?
fn is_misuse(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Refused(refusal) => {
            matches!(
                refusal.reason.as_str(),
                "image" | "scope" | "digest" | "value" | "query" | "list"
            )
        }
        _ => false,
    }
}

fn wrong_usage(line: &str) -> ExitCode {
    complain(line);
    ExitCode::from(WRONG_USAGE)
}

/// The listener that a URL names, with the token for it.
fn listener(url: &str, token_file: &Path) -> Result<Reach<'static>, String> {
    let authority = authority(url)?;
    let token = read_token(token_file)
        .map_err(|reason| format!("--token-file {}: {reason}", token_file.display()))?;
    Ok(Reach::Tcp { authority, token })
}

/// Host and port of `http://HOST:PORT`.
fn authority(url: &str) -> Result<String, String> {
    let wanted = "want http://HOST:PORT";
    // What may be a password is not repeated.
    let shown = if may_hold_password(url) { "URL" } else { url };
    if url.starts_with("https://") {
        return Err(format!(
            "--admin {shown}: the admin API speaks plain HTTP; go through a tunnel (ssh -L 5011:127.0.0.1:5011 HOST)"
        ));
    }
    let rest = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let parsed = rest.and_then(|rest| rest.parse::<http::uri::Authority>().ok());
    match parsed {
        Some(parsed) if parsed.as_str().contains('@') => {
            Err(format!("--admin: there are no users here, only the token; {wanted}"))
        }
        Some(parsed)
            if parsed.port_u16().is_some_and(|port| port > 0) && !parsed.host().is_empty() =>
        {
            Ok(parsed.as_str().to_owned())
        }
        _ => Err(format!("--admin {shown:?}: {wanted}")),
    }
}

/// The token in a file: one line of visible ASCII.
fn read_token(file: &Path) -> Result<Secret, String> {
    let mut text = String::new();
    let file = File::open(file).map_err(|error| error.to_string())?;
    let read = file.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    let too_long = u64::try_from(text.len()).unwrap_or(u64::MAX) > TOKEN_BYTES_MAX;
    let token = Secret::new(text.trim());
    let text = zeroize::Zeroizing::new(text);
    if too_long || text.trim().is_empty() || !token.reveal().bytes().all(|b| b.is_ascii_graphic()) {
        return Err(
            "it holds no token; want the admin-token of that server's data directory".to_owned()
        );
    }
    Ok(token)
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// `None`: nohup(1) wants the command to outlive its terminal.
    hangup: Option<Signal>,
}

impl Interrupts {
    fn new() -> io::Result<Self> {
        // Whoever takes a signal that is ignored ends what should go on.
        let hangup = match ignores(SignalKind::hangup()) {
            Some(false) => Some(signal(SignalKind::hangup())?),
            Some(true) | None => None,
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
        })
    }

    /// The token is cancelled at the first signal, and then the command ends in good order: what it has half done is taken back. It may be
    /// unable to, because whoever reads its output stands still, or its disk; so a second signal ends the process at once, as does a while
    /// without one. A store that is open here suffers that as it suffers any kill.
    fn watch() -> io::Result<CancellationToken> {
        // Not by the command's own runtime, whose tasks end before the last wait of all, for what blocks.
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _entered = runtime.enter();
            Self::new()?
        };
        let interrupted = CancellationToken::new();
        let token = interrupted.clone();
        let watch = async move {
            signals.next().await;
            token.cancel();
            let first = Instant::now();
            let again = async {
                while first.elapsed() < ONE_SIGNAL {
                    signals.next().await;
                }
            };
            drop(timeout(ORDERLY_TIME, again).await);
            exit_now();
        };
        let thread = thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(watch))?;
        Ok(interrupted)
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
        }
    }
}

/// Does this process ignore a signal? `None`: the system does not tell (proc(5), `SigIgn`).
fn ignores(signal: SignalKind) -> Option<bool> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    ignored_by(&status, signal)
}

fn ignored_by(status: &str, signal: SignalKind) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    let bit = u32::try_from(signal.as_raw_value()).ok()?.checked_sub(1)?;
    Some(mask.checked_shr(bit)? & 1 == 1)
}

#[expect(clippy::exit, reason = "the thread that would end it in good order does not come to it")]
fn exit_now() {
    std::process::exit(i32::from(INTERRUPTED));
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Command, Stdio};
    use std::sync::mpsc::{self, RecvTimeoutError};

    use clap::Parser as _;
    use rustix::process::{Pid, Signal as Kind, kill_process};
    use tokio_util::task::TaskTracker;

    use super::*;

    /// The name by which the child's part is found in the test binary.
    const CHILD: &str = "cli::reach::tests::child_that_blocks";
    /// What the child says when it blocks, among the words of the test harness.
    const MARK: &str = "it blocks";
    const PATIENCE: Duration = Duration::from_secs(30);

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        store: Store,
    }

    /// Not a test by itself: the parent runs it by name.
    #[test]
    #[ignore = "the child of a_second_signal_ends_what_its_own_runtime_waits_for"]
    fn child_that_blocks() {
        let token = tempfile::NamedTempFile::new().unwrap();
        fs::write(token.path(), "token").unwrap();
        let file = token.path().to_str().unwrap();
        let only = Only::parse_from(["x", "--admin", "http://127.0.0.1:1", "--token-file", file]);
        with_client(&only.store, Opening::AsItIs, async |_client| {
            let (begun, begins) = tokio::sync::oneshot::channel();
            TaskTracker::new().spawn_blocking(move || {
                begun.send(()).unwrap();
                let (_never, wait) = mpsc::channel::<()>();
                wait.recv_timeout(2 * PATIENCE).unwrap_err();
            });
            begins.await.unwrap();
            writeln!(io::stdout(), "{MARK}").unwrap();
            // Not for ever, in case that nobody ends it.
            tokio::time::sleep(PATIENCE).await;
            Ok(ExitCode::SUCCESS)
        });
    }

    #[test]
    fn a_second_signal_ends_what_its_own_runtime_waits_for() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", CHILD, "--nocapture"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains(MARK)), "it ends early");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Kind::INT).unwrap();
        // The command itself is over when it has said so.
        let mut complaints = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(complaints.any(|line| line.unwrap().contains("interrupted")));
        let (over, is_over) = mpsc::channel::<()>();
        thread::spawn(move || {
            complaints.for_each(drop);
            drop(over);
        });
        let begun = Instant::now();
        while is_over.recv_timeout(ONE_SIGNAL / 4) == Err(RecvTimeoutError::Timeout)
            && begun.elapsed() < PATIENCE
        {
            kill_process(pid, Kind::INT).unwrap();
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(i32::from(INTERRUPTED)));
    }

    #[test]
    fn the_system_tells_which_signals_are_ignored() {
        let of = |mask: &str| {
            let status = format!("SigBlk:\t0000000000000000\nSigIgn:\t{mask}\nSigCgt:\t1\n");
            ignored_by(&status, SignalKind::hangup())
        };
        assert_eq!(of("0000000000001001"), Some(true));
        assert_eq!(of("0000000000001000"), Some(false));
        assert_eq!((of(""), of("xyz"), ignored_by("", SignalKind::hangup())), (None, None, None));
        assert!(ignores(SignalKind::hangup()).is_some());
    }

    #[test]
    fn a_url_names_a_host_and_a_port() {
        for (url, wanted) in [
            ("http://127.0.0.1:5011", "127.0.0.1:5011"),
            ("http://[::1]:5011/", "[::1]:5011"),
            ("http://edge.example:80", "edge.example:80"),
        ] {
            assert_eq!(authority(url).as_deref(), Ok(wanted));
        }
        for (url, said) in [
            ("127.0.0.1:5011", "http://HOST:PORT"),
            ("http://127.0.0.1", "http://HOST:PORT"),
            ("http://:5011", "http://HOST:PORT"),
            ("http://a:0", "http://HOST:PORT"),
            ("http://a:5011/api/v1", "http://HOST:PORT"),
            ("http://a:99999", "http://HOST:PORT"),
            ("http://a b:1", "http://HOST:PORT"),
            ("unix:///admin.sock", "http://HOST:PORT"),
            ("https://a:5011", "tunnel"),
            ("http://me:geheim@a:1", "no users"),
            ("http://me:geheim:5011", "http://HOST:PORT"),
            ("https://me:geheim@a:1", "tunnel"),
        ] {
            let error = authority(url).unwrap_err();
            assert!(error.contains(said) && !error.contains("geheim"), "{url}: {error}");
        }
    }

    #[test]
    fn a_token_is_one_line_of_a_file() {
        let home = tempfile::TempDir::new().unwrap();
        let file = home.path().join("token");
        let read = |text: &[u8]| {
            fs::write(&file, text).unwrap();
            read_token(&file).map(|token| token.reveal().to_owned())
        };
        assert_eq!(read(b"abc-123_X=\r\n").as_deref(), Ok("abc-123_X="));
        for bad in
            [&b""[..], b" \n", b"two words", b"a\nb", "grün".as_bytes(), b"\xff", &[b'x'; 5000]]
        {
            let error = read(bad).unwrap_err();
            assert!(!error.contains("two words"), "{error}");
        }
        assert!(read_token(home.path()).is_err() && read_token(&home.path().join("no")).is_err());
    }
}
