//! A guard around one roadstead process.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::content::Image;

/// Longest wait for a line or an exit; a slow machine needs a second, a hang needs an end.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_roadstead")
}

/// A command with nothing of our environment that could steer roadstead.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null());
    command
}

/// Runs to the end; answers exit status, stdout and stderr.
pub fn run(mut command: Command) -> (ExitStatus, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}

/// A running roadstead.
pub struct Roadstead {
    child: Child,
    lines: Receiver<String>,
    pub seen: Vec<String>,
    pub log: PathBuf,
    pub data: SocketAddr,
    pub observe: SocketAddr,
}

impl Roadstead {
    /// Pulls an image through it, and waits until all of it is stored.
    pub async fn pulled(&self, image: &Image) {
        let client = Client::new(self.data);
        client.get("/v2/up.test/team/app/manifests/v1").expect(200).await;
        for blob in image.all_blobs() {
            let body = client.blob("up.test/team/app", &blob.digest).open().await;
            assert_eq!(body.rest().await.digest(), blob.digest);
        }
        // A blob is stored a moment after its last byte went out.
        let is_busy = |text: String| {
            let flights =
                |line: &str| line.starts_with("roadstead_flights ") && !line.ends_with(" 0");
            text.lines().any(flights)
        };
        let observe = Client::new(self.observe);
        while is_busy(observe.get("/metrics").expect(200).await.text()) {
            tokio::task::yield_now().await;
        }
    }

    /// Starts `serve` on free ports with `arguments` added, and waits until it says where it listens.
    pub fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_as(command(directory), directory, arguments)
    }

    /// The same with at most this many open files.
    pub fn start_with_files(directory: &Path, files: u32, arguments: &[&str]) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]).arg(binary());
        shell.current_dir(directory).env_clear().stdin(Stdio::null());
        shell.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        Self::start_as(shell, directory, arguments)
    }

    fn start_as(mut command: Command, directory: &Path, arguments: &[&str]) -> Self {
        let log = directory.join("roadstead.log");
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--observe", "127.0.0.1:0"])
            .args(arguments);
        let log_file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut started =
            Self { child, lines, seen: Vec::new(), log, data: nowhere, observe: nowhere };
        started.data = started.wait_for_address("listening on http://");
        started.observe = started.wait_for_address("observability on http://");
        started
    }

    fn wait_for_address(&mut self, prefix: &str) -> SocketAddr {
        let line = self.wait_for_line(prefix);
        let rest = &line[line.find(prefix).unwrap() + prefix.len()..];
        let address = rest.split(|c: char| c.is_whitespace() || c == '/').next().unwrap();
        address.parse().unwrap_or_else(|_| panic!("no address in {line:?}"))
    }

    pub fn wait_for_line(&mut self, part: &str) -> String {
        if let Some(line) = self.seen.iter().find(|line| line.contains(part)) {
            return line.clone();
        }
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(_) => panic!(
                    "no line with {part:?}; stdout: {:?}; log: {}",
                    self.seen,
                    self.log_text()
                ),
            }
        }
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log holds `part`.
    pub fn wait_for_log(&self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log_text().contains(part) {
            assert!(Instant::now() < deadline, "no {part:?} in the log: {}", self.log_text());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of the process.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut rest = String::new();
                while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
                    rest.push_str(&line);
                    rest.push('\n');
                }
                return (status, rest);
            }
            assert!(Instant::now() < deadline, "does not stop; log: {}", self.log_text());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Open descriptors, from /proc.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// From now on it may hold this many descriptors and no more.
    pub fn limit_descriptors(&self, count: u64) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        let limit = rustix::process::Rlimit { current: Some(count), maximum: Some(count) };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit).unwrap();
    }

    /// Anonymous resident memory in bytes (`RssAnon`), from /proc.
    pub fn anonymous_memory(&self) -> u64 {
        let mut status = String::new();
        let path = format!("/proc/{}/status", self.pid());
        fs::File::open(path).unwrap().read_to_string(&mut status).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }
}

impl Drop for Roadstead {
    fn drop(&mut self) {
        // An exited child is no error here: the guard only makes sure that nothing is left.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let text = self.log_text();
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            println!("--- roadstead's log\n{}", tail.join("\n"));
        }
    }
}
