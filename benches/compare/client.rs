//! The clients: one that drains bodies and throws them away in the kernel, and one that asks for heads.
//!
//! What must hold: a client costs as little as it can, because it shares the machine with the server, and it takes nothing on trust: a
//! status other than 200, a length that differs or a body that ends early is an error. With [`Take::Compare`] every byte is looked at.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::Result;
use crate::image::MANIFEST_TYPE;

/// `MSG_TRUNC` of Linux: TCP throws the bytes away instead of copying them (tcp(7)).
const MSG_TRUNC: i32 = 0x20;
/// Bytes thrown away in one call.
const DISCARD_BYTES: usize = 1 << 20;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const COMPARE_BYTES: usize = 256 * 1024;
/// A server that gives nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(120);

/// What is done with a body.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Take<'a> {
    Discard,
    Compare(&'a [u8]),
}

/// A complete answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) length: u64,
    /// From the request to the first byte of the body.
    pub(crate) first_byte: Duration,
    /// From the request to the last byte.
    pub(crate) whole: Duration,
}

/// A connection that is kept alive.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    address: SocketAddr,
    /// Address space that the kernel is told to fill and does not.
    nowhere: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self { stream, address, nowhere: Vec::with_capacity(DISCARD_BYTES) })
    }

    /// Asks for `path` and takes the whole body.
    pub(crate) fn get(&mut self, path: &str, take: Take<'_>) -> Result<Answer> {
        self.get_watched(path, take, &AtomicU64::new(0))
    }

    /// The same; `progress` is the number of bytes of the body that are here.
    pub(crate) fn get_watched(
        &mut self,
        path: &str,
        take: Take<'_>,
        progress: &AtomicU64,
    ) -> Result<Answer> {
        let asked = Instant::now();
        self.stream.write_all(request("GET", path, self.address).as_bytes())?;
        let mut buffer = Vec::with_capacity(HEAD_BYTES_MAX);
        let mut chunk = [0; 4096];
        let head = loop {
            if let Some(head) = Head::read(&buffer)? {
                break head;
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(format!("{path}: no answer").into()),
                n => buffer.extend_from_slice(&chunk[..n]),
            }
        };
        if head.status != 200 {
            return Err(format!("{path}: status {}", head.status).into());
        }
        let mut body = Taken { take, at: 0, length: head.length, path };
        body.bytes(&buffer[head.bytes..])?;
        let mut first_byte = (body.at > 0).then(|| asked.elapsed());
        progress.store(body.at, Ordering::Relaxed);
        let mut scratch = match take {
            Take::Compare(_) => vec![0; COMPARE_BYTES],
            Take::Discard => Vec::new(),
        };
        while body.at < head.length {
            match take {
                Take::Discard => body.at += self.discard(head.length - body.at)?,
                Take::Compare(_) => {
                    let n = self.stream.read(&mut scratch)?;
                    if n == 0 {
                        return Err(short(path, body.at, head.length));
                    }
                    body.bytes(&scratch[..n])?;
                }
            }
            first_byte.get_or_insert_with(|| asked.elapsed());
            progress.store(body.at, Ordering::Relaxed);
        }
        let whole = asked.elapsed();
        Ok(Answer { length: head.length, first_byte: first_byte.unwrap_or(whole), whole })
    }

    /// Throws away what is here, at most `left` bytes; waits for the first of them.
    fn discard(&mut self, left: u64) -> Result<u64> {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(DISCARD_BYTES);
        let flags = if cfg!(target_os = "linux") { MSG_TRUNC } else { 0 };
        let place = &mut self.nowhere.spare_capacity_mut()[..wanted];
        let n = SockRef::from(&self.stream).recv_with_flags(place, flags)?;
        if n == 0 {
            return Err("a body ended early".into());
        }
        Ok(u64::try_from(n)?)
    }
}

/// A body on its way.
struct Taken<'a> {
    take: Take<'a>,
    at: u64,
    length: u64,
    path: &'a str,
}

impl Taken<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let start = usize::try_from(self.at)?;
        self.at += u64::try_from(bytes.len())?;
        if self.at > self.length {
            return Err(format!("{}: more than {} bytes", self.path, self.length).into());
        }
        match self.take {
            Take::Compare(right) if right.get(start..start + bytes.len()) != Some(bytes) => {
                Err(format!("{}: wrong bytes behind {start}", self.path).into())
            }
            _ => Ok(()),
        }
    }
}

fn short(path: &str, at: u64, length: u64) -> crate::Error {
    format!("{path}: {at} bytes of {length}").into()
}

fn request(method: &str, path: &str, address: SocketAddr) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: {MANIFEST_TYPE}, */*\r\n\r\n")
}

/// The head of an answer.
struct Head {
    status: u16,
    length: u64,
    /// Its own bytes.
    bytes: usize,
}

impl Head {
    /// `None` while it is not here as a whole.
    fn read(buffer: &[u8]) -> Result<Option<Self>> {
        let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else {
            let fits = buffer.len() < HEAD_BYTES_MAX;
            return if fits { Ok(None) } else { Err("a head without an end".into()) };
        };
        let text = std::str::from_utf8(&buffer[..end])?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim())
        });
        let length = length.ok_or("an answer without Content-Length")?;
        Ok(Some(Self { status: status.parse()?, length: length.parse()?, bytes: end + 4 }))
    }
}

/// What a load came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Requests, or bytes.
    pub(crate) count: u64,
    pub(crate) seconds: f64,
}

/// Several connections take a body again and again until `time` is over; counts bytes.
pub(crate) fn drain(
    address: SocketAddr,
    path: &str,
    connections: usize,
    time: Duration,
) -> Result<Load> {
    let started = Instant::now();
    let one = || -> Result<u64> {
        let mut client = Client::connect(address)?;
        let mut bytes = 0;
        while bytes == 0 || started.elapsed() < time {
            bytes += client.get(path, Take::Discard)?.length;
        }
        Ok(bytes)
    };
    let count = at_once(connections, |_| one())?.into_iter().sum();
    Ok(Load { count, seconds: started.elapsed().as_secs_f64() })
}

/// Runs `one` in so many threads at once; the first error is the error of all.
pub(crate) fn at_once<T: Send>(
    threads: usize,
    one: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let one = &one;
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(move || one(number))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a client panicked".into())))
            .collect()
    })
}

/// HEAD again and again on so many connections until `time` is over; counts requests. (wrk waits for the body of a HEAD.)
pub(crate) fn heads(
    address: SocketAddr,
    path: &str,
    connections: usize,
    time: Duration,
) -> Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = request("HEAD", path, address);
    let started = Instant::now();
    let all = async {
        let mut running = JoinSet::new();
        for _ in 0..connections {
            let asked = asked.clone();
            running.spawn(async move { heads_on_one(address, &asked, started, time).await });
        }
        let mut count = 0;
        while let Some(one) = running.join_next().await {
            count += one??;
        }
        Ok::<u64, crate::Error>(count)
    };
    let count = runtime.block_on(async { tokio::time::timeout(time + SILENCE, all).await })??;
    Ok(Load { count, seconds: started.elapsed().as_secs_f64() })
}

async fn heads_on_one(
    address: SocketAddr,
    asked: &str,
    started: Instant,
    time: Duration,
) -> Result<u64> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut buffer, mut count) = (vec![0; HEAD_BYTES_MAX], 0);
    while started.elapsed() < time {
        stream.write_all(asked.as_bytes()).await?;
        let mut filled = 0;
        loop {
            let n = stream.read(&mut buffer[filled..]).await?;
            if n == 0 {
                return Err("a connection ended instead of an answer".into());
            }
            filled += n;
            if buffer[..filled].ends_with(b"\r\n\r\n") {
                break;
            }
        }
        if !buffer.starts_with(b"HTTP/1.1 200 ") {
            let head = String::from_utf8_lossy(&buffer[..filled]).into_owned();
            return Err(format!("an answer to HEAD: {head}").into());
        }
        count += 1;
    }
    Ok(count)
}
