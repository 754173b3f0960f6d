//! Finds out who has the store, and lets a command talk to him; ends on Ctrl-C.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::admin::{Client, Reach, Trouble};
use super::arguments::Store;
use super::command::{FAILED, INTERRUPTED, WRONG_USAGE, complain, fail, refuse_config};
use super::words::clean;
use crate::app::{AccessError, Config, Opening, Secret, StoreAccess};

/// A token is some dozens of characters.
const TOKEN_BYTES_MAX: u64 = 4096;

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
        let mut interrupts = match Interrupts::new() {
            Ok(interrupts) => interrupts,
            Err(error) => return fail(&format!("no signals: {error}")),
        };
        if let (Some(url), Some(file)) = (&arguments.admin, &arguments.token_file) {
            return match listener(url, file) {
                Ok(reach) => finish(work, &Client::new(reach), &mut interrupts).await,
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
                finish(work, &client, &mut interrupts).await
            }
            Ok(StoreAccess::Stopped(store)) => {
                if let Some(lost) = store.lost_metadata() {
                    let lost = lost.display();
                    complain(&format!(
                        "the metadata file could not be used and was moved to {lost}"
                    ));
                }
                let code =
                    finish(work, &Client::new(Reach::Stopped(&store)), &mut interrupts).await;
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
    interrupts: &mut Interrupts,
) -> ExitCode {
    let done = tokio::select! {
        done = work(client) => done,
        () = interrupts.next() => {
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
    if url.starts_with("https://") {
        return Err(format!(
            "--admin {url}: the admin API speaks plain HTTP; go through a tunnel (ssh -L 5011:127.0.0.1:5011 HOST)"
        ));
    }
    let rest = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let parsed = rest.and_then(|rest| rest.parse::<http::uri::Authority>().ok());
    match parsed {
        // What is before an @ may be a password, so it is not repeated.
        Some(parsed) if parsed.as_str().contains('@') => {
            Err(format!("--admin: there are no users here, only the token; {wanted}"))
        }
        Some(parsed)
            if parsed.port_u16().is_some_and(|port| port > 0) && !parsed.host().is_empty() =>
        {
            Ok(parsed.as_str().to_owned())
        }
        _ => Err(format!("--admin {url:?}: {wanted}")),
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

/// Ctrl-C and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
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
    use std::fs;

    use super::*;

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
