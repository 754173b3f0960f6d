//! The registry that all caches fetch from: files, sent with sendfile, counted to the byte, and throttled on demand.
//!
//! It runs within the harness, so its CPU is nobody's figure. A thread for each connection; it knows GET and HEAD of whole files and
//! of one range, and nothing else. The throttle is that of one line that all connections share.

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::image::MANIFEST_TYPE;

/// Bytes given to the kernel in one call; those of a throttled line.
const PIECE: u64 = 1 << 20;
const THROTTLED_PIECE: u64 = 64 * 1024;
/// A sender that wakes up late makes up for so much: a line has a queue in front of it, which does not run dry at once.
const QUEUE: Duration = Duration::from_millis(200);

/// The origin, for as long as the process lives.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    line: Mutex<Line>,
    requests: AtomicU64,
    pings: AtomicU64,
    bytes: AtomicU64,
    running: AtomicU64,
}

/// What was asked for so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// For manifests and blobs, GET and HEAD.
    pub(crate) requests: u64,
    /// For `/v2/`.
    pub(crate) pings: u64,
    /// Of bodies, as far as they were taken.
    pub(crate) bytes: u64,
    /// Answers that are under way.
    pub(crate) running: u64,
}

/// The line to the world: bytes per second, and when it is free again.
#[derive(Debug, Default)]
struct Line {
    rate: Option<u64>,
    free: Option<Instant>,
}

impl Origin {
    /// Serves the tree at `root` on a free port.
    pub(crate) fn start(root: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            line: Mutex::default(),
            requests: AtomicU64::new(0),
            pings: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            running: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                let shared = Arc::clone(&serving);
                // A peer that goes away in the middle is no error of ours.
                thread::spawn(move || shared.serve(stream).ok());
            }
        });
        Ok(Self { address, shared })
    }

    pub(crate) fn counts(&self) -> Counts {
        let Shared { requests, pings, bytes, running, .. } = &*self.shared;
        Counts {
            requests: requests.load(Ordering::SeqCst),
            pings: pings.load(Ordering::SeqCst),
            bytes: bytes.load(Ordering::SeqCst),
            running: running.load(Ordering::SeqCst),
        }
    }

    /// From now on the line takes so many bytes per second; `None` is as many as it can.
    pub(crate) fn throttle(&self, rate: Option<u64>) {
        let mut line = self.shared.line.lock().unwrap_or_else(PoisonError::into_inner);
        *line = Line { rate, free: None };
    }
}

/// One request.
struct Asked {
    head: bool,
    path: String,
    range: Option<(u64, Option<u64>)>,
}

impl Asked {
    /// `None` at the end of the connection.
    fn read(reader: &mut impl io::BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let mut asked = Self {
            head: method == "HEAD",
            path: path.split('?').next().unwrap_or("").replace("%3A", ":"),
            range: None,
        };
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                return Ok(Some(asked));
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("range") {
                let range = value.trim().strip_prefix("bytes=").and_then(|r| r.split_once('-'));
                asked.range =
                    range.and_then(|(start, last)| Some((start.parse().ok()?, last.parse().ok())));
            }
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(asked) = Asked::read(&mut reader)? {
            let count = if asked.path == "/v2/" { &self.pings } else { &self.requests };
            count.fetch_add(1, Ordering::SeqCst);
            self.running.fetch_add(1, Ordering::SeqCst);
            let answered = self.answer(&stream, &asked);
            self.running.fetch_sub(1, Ordering::SeqCst);
            answered?;
        }
        Ok(())
    }

    fn answer(&self, mut stream: &TcpStream, asked: &Asked) -> io::Result<()> {
        if asked.path == "/v2/" {
            let ping =
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
            return stream.write_all(if asked.head { &ping[..ping.len() - 2] } else { ping });
        }
        let file = self.root.join(asked.path.trim_start_matches('/'));
        let file = match File::open(&file) {
            Ok(opened) if opened.metadata()?.is_file() && !asked.path.contains("..") => opened,
            _ => return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        };
        let size = file.metadata()?.len();
        let (start, end) = match asked.range {
            Some((start, last)) if start < size => {
                (start, last.map_or(size, |last| size.min(last.saturating_add(1))).max(start))
            }
            _ => (0, size),
        };
        let part = asked.range.is_some_and(|(start, _)| start < size);
        stream.write_all(head(&asked.path, part, (start, end, size), &file)?.as_bytes())?;
        if asked.head { Ok(()) } else { self.send(stream, &file, start, end) }
    }

    fn send(&self, stream: &TcpStream, file: &File, start: u64, end: u64) -> io::Result<()> {
        let mut at = start;
        while at < end {
            let piece = self.wait_for_line(end - at);
            let piece = usize::try_from(piece).unwrap_or(usize::MAX);
            let sent = rustix::fs::sendfile(stream, file, Some(&mut at), piece)?;
            if sent == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes.fetch_add(u64::try_from(sent).unwrap_or(0), Ordering::SeqCst);
        }
        Ok(())
    }

    /// How many bytes may be sent now. On a throttled line bytes are sent when their time has passed, as a receiver sees them.
    fn wait_for_line(&self, left: u64) -> u64 {
        let (piece, due) = {
            let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(rate) = line.rate else { return left.min(PIECE) };
            let piece = left.min(THROTTLED_PIECE);
            let now = Instant::now();
            let takes = Duration::from_nanos(piece * 1_000_000_000 / rate);
            let free = line.free.filter(|free| *free + QUEUE > now).unwrap_or(now);
            let due = free + takes;
            line.free = Some(due);
            (piece, due)
        };
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return piece;
            }
            thread::park_timeout(left);
        }
    }
}

fn head(
    path: &str,
    part: bool,
    (start, end, size): (u64, u64, u64),
    file: &File,
) -> io::Result<String> {
    let status = if part { "206 Partial Content" } else { "200 OK" };
    let is_manifest = path.contains("/manifests/");
    let media_type = if is_manifest { MANIFEST_TYPE } else { "application/octet-stream" };
    let name = path.rsplit('/').next().unwrap_or_default();
    let digest = match name.strip_prefix("sha256:") {
        Some(_) => name.to_owned(),
        None => digest_of(file)?,
    };
    let range = if part {
        format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1)
    } else {
        String::new()
    };
    Ok(format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\n\
         Docker-Content-Digest: {digest}\r\nETag: \"{digest}\"\r\n{range}\r\n",
        end - start
    ))
}

/// The digest of a manifest that is asked for by its tag.
fn digest_of(file: &File) -> io::Result<String> {
    use sha2::{Digest as _, Sha256};
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}
