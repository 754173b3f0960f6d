//! The admin API over a socket, on a real store: who gets in, what he is told, and what is left behind.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::carry::{self, Carry};
use crate::clock::{ManualClock, Timestamp};
use crate::content::{self, Content, MinFree};
use crate::oci::Digest;
use crate::registry::desk;
use crate::server::settings::HEADER_TIME;
use crate::upkeep::{Parts, Settings, Upkeep};

const PATIENCE: Duration = Duration::from_secs(30);

struct Desk {
    dir: TempDir,
    content: Content,
    tasks: TaskTracker,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Desk {
    fn open() -> Self {
        let dir = TempDir::new().unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let clock = Arc::new(ManualClock::starting_at(Timestamp::from_millis(1)));
        let mut registry = Registry::default();
        let mut settings = content::Settings::new(dir.path().to_owned());
        settings.min_free = MinFree::Bytes(0);
        let content =
            Content::open(settings, Arc::clone(&clock) as _, tasks.clone(), &mut registry).unwrap();
        let parts = Parts {
            content: content.clone(),
            clock,
            tasks: tasks.clone(),
            shutdown: stop.clone(),
            settings: Settings::default(),
        };
        let clock = Arc::clone(&parts.clock);
        let nothing = Arc::new(crate::registry::Registry::serving_nothing());
        let desk = desk::Desk::new(nothing, clock, desk::Settings::default());
        let carry = Carry::new(carry::Parts {
            desk: desk.clone(),
            clock: Arc::clone(&parts.clock),
            tasks: tasks.clone(),
            shutdown: stop.clone(),
            settings: carry::Settings::default(),
            metrics: carry::Metrics::default(),
        });
        let admin = Admin::new(Upkeep::new(parts, &mut registry), desk, carry);
        let socket = AdminSocket::bind(dir.path()).unwrap();
        let serving = tasks.spawn(socket.serve(admin, stop.clone(), tasks.clone()));
        Self { dir, content, tasks, stop, serving }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET_NAME)
    }

    /// Two hundred objects without files: more findings than the queue of a job holds.
    async fn fill(&self) {
        for number in 0..200_u32 {
            let bytes = Bytes::copy_from_slice(&number.to_be_bytes());
            self.content.put(&Digest::sha256_of(&bytes), bytes).await.unwrap();
        }
        for file in fs::read_dir(self.dir.path().join("blobs/sha256")).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }

    async fn send(&self, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// The whole answer to a request line with some headers.
    async fn ask(&self, line: &str, headers: &str) -> String {
        let stream = self.send(&format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")).await;
        whole(stream).await
    }

    async fn finish(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.serving).await.expect("it stops").unwrap();
        assert!(!self.dir.path().join(SOCKET_NAME).exists(), "the socket is left");
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.expect("no connection is left");
        self.content.close().await;
    }
}

async fn whole(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    // What the server did not read of a request that it refused comes back as a reset behind the answer.
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn it_says_who_it_is() {
    let desk = Desk::open();
    let answer = desk.ask("GET /api/v1/", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains(r#""name":"roadstead""#) && answer.contains(env!("CARGO_PKG_VERSION")));
    assert!(answer.contains("connection: close"), "{answer}");
    let mode = fs::metadata(desk.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    desk.finish().await;
}

#[tokio::test]
async fn what_it_does_not_know_is_refused() {
    let desk = Desk::open();
    for (line, headers, status, reason) in [
        ("GET /api/v1/", "Origin: http://evil.example\r\n", "403", "origin"),
        ("POST /api/v1/verify", "Origin: null\r\n", "403", "origin"),
        ("GET /v2/", "", "404", "no_such_path"),
        ("GET /api/v1/verify", "", "405", "method"),
        ("POST /api/v1/verify?repair=maybe", "", "400", "query"),
    ] {
        let answer = desk.ask(line, headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        assert!(answer.contains(&format!(r#""reason":"{reason}""#)), "{line}: {answer}");
    }
    assert!(desk.ask("DELETE /api/v1/reindex", "").await.contains("allow: POST"));
    let long = format!("X-Long: {}\r\n", "x".repeat(20_000));
    let answer = desk.ask("GET /api/v1/", &long).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let junk = whole(desk.send("\x16\x03\x01 hello\r\n\r\n").await).await;
    assert!(junk.starts_with("HTTP/1.1 400 "), "{junk}");
    desk.finish().await;
}

#[tokio::test]
async fn a_body_nobody_asked_for_is_not_read() {
    let desk = Desk::open();
    let answer = desk.ask("POST /api/v1/reindex", "Content-Length: 1000000000\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""event":"ended""#),
        "{answer}"
    );
    desk.finish().await;
}

#[tokio::test]
async fn a_job_is_told_line_by_line_to_its_end() {
    let desk = Desk::open();
    desk.fill().await;
    let answer = desk.ask("POST /api/v1/verify", "").await;
    assert!(answer.contains("content-type: application/x-ndjson"), "{answer}");
    let lines: Vec<&str> = answer.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines[0].contains(r#""event":"begun","job":"verify","objects":200"#), "{}", lines[0]);
    let last = lines.last().unwrap();
    assert!(last.contains(r#""event":"ended""#) && last.contains(r#""missing":200"#), "{last}");
    desk.finish().await;
}

#[tokio::test]
async fn a_second_job_is_refused_until_the_client_of_the_first_goes() {
    let desk = Desk::open();
    desk.fill().await;
    // Its answer is not read; a small buffer of the socket takes some lines and the queue some more.
    let mut first = desk.send("POST /api/v1/verify HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    drop(first);
    let answer = desk.ask("POST /api/v1/verify?repair=true", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""missing":200"#), "{answer}");
    desk.finish().await;
}

#[tokio::test]
async fn a_stop_ends_silent_clients_too() {
    let desk = Desk::open();
    let mut silent = desk.send("").await;
    let mut half = desk.send("POST /api/v1/ver").await;
    desk.ask("GET /api/v1/", "").await;
    desk.finish().await;
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end");
        assert!(
            read.is_ok() || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
        );
    }
}

#[tokio::test]
async fn the_socket_of_a_dead_process_is_replaced() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(SOCKET_NAME);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a listener that dies leaves its name");
    let socket = AdminSocket::bind(dir.path()).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    drop(UnixStream::connect(&path).await.unwrap());
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_path_that_is_too_long_is_an_error_and_no_panic() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let error = AdminSocket::bind(&deep).unwrap_err();
    assert!(error.to_string().contains("107"), "{error}");
    let nowhere = AdminSocket::bind(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}

/// Has the other side ended the connection? Nothing is waited for.
fn is_over(stream: &UnixStream) -> bool {
    match stream.try_read(&mut [0; 1024]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

#[tokio::test]
async fn heads_that_do_not_end_give_their_places_to_others() {
    let desk = Desk::open();
    // One is let in and sends a bundle; more than there are places besides only begin.
    let busy = "POST /api/v1/import HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    let mut busy = desk.send(busy).await;
    let mut said = [0; 12];
    timeout(PATIENCE, busy.read_exact(&mut said)).await.expect("it is let in").unwrap();
    assert_eq!(&said, b"HTTP/1.1 100");
    let mut slow = Vec::new();
    for _ in 0..40 {
        slow.push(desk.send("GET /api/v1/ HTTP/1.1\r\nHost: x\r\n").await);
    }
    let soon = HEADER_TIME / 2;
    for _ in 0..40 {
        let answer = timeout(soon, desk.ask("GET /api/v1/", "")).await.expect("at once");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // Those that came first went first.
    let over = whole(slow.swap_remove(0)).await;
    assert_eq!(over, "", "it had no request yet");
    let mut rest = [0; 1024];
    while let Ok(count) = busy.try_read(&mut rest) {
        assert!(count > 0, "whoever was let in keeps his place");
    }
    assert!(!is_over(&busy), "whoever was let in keeps his place");
    drop((busy, slow));
    desk.finish().await;
}
