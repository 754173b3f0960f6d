//! The wire: listeners, connections, and the carrying out of a reply byte by byte.
//!
//! HTTP/1.1 is written by hand, because replies must be as wrong as a test wants; HTTP/2 (over TLS, by ALPN) is hyper's.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::super::content::to_u64;
use super::log::{End, Origin};
use super::message::{Framing, Pump, Reply, Req, Step};
use super::{Fake, Plan};

/// A request head larger than this ends the connection.
const HEAD_LIMIT: usize = 256 * 1024;
/// Waiting connections per listener.
const BACKLOG: u32 = 1024;

/// A listener and the reservation of its port: a bound socket that does not listen, so that while the fake is stopped nobody else
/// gets the port and connections are refused.
pub(super) struct Port {
    pub(super) address: SocketAddr,
    _reserved: TcpSocket,
}

impl Port {
    pub(super) fn reserve(host: [u8; 4]) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((host, 0).into())?;
        Ok(Self { address: socket.local_addr()?, _reserved: socket })
    }

    pub(super) fn listen(&self) -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        socket.listen(BACKLOG)
    }
}

pub(super) async fn accept(
    fake: Fake,
    origin: Origin,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: CancellationToken,
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((tcp, _peer)) = accepted else { continue };
        let (fake, tls, stop) = (fake.clone(), tls.clone(), stop.clone());
        let tracker = fake.tracker();
        tracker.spawn(async move {
            let number = fake.connected();
            let serving = serve(&fake, origin, number, tcp, tls);
            let _ended: Option<io::Result<()>> = stop.run_until_cancelled(serving).await;
            fake.disconnected();
        });
    }
}

async fn serve(
    fake: &Fake,
    origin: Origin,
    connection: u64,
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    if let Some(bytes) = fake.send_buffer() {
        socket2::SockRef::from(&tcp).set_send_buffer_size(bytes)?;
    }
    let Some(tls) = tls else {
        return http1(fake, origin, connection, Wire::Plain(tcp)).await;
    };
    let stream = tls.accept(tcp).await?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return super::http2::serve(fake, origin, connection, stream).await;
    }
    http1(fake, origin, connection, Wire::Tls(Box::new(stream))).await
}

/// A connection with or without TLS.
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Ends with RST instead of FIN once dropped.
    fn reset(&self) -> io::Result<()> {
        socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO))
    }

    /// Will dropping it send RST? Then there must be no FIN before.
    fn is_reset(&self) -> bool {
        socket2::SockRef::from(self.tcp()).linger().is_ok_and(|linger| linger.is_some())
    }

    /// Returns when the client has closed. Bytes of a next request are left alone.
    async fn gone(&self) {
        let mut byte = [0];
        match self.tcp().peek(&mut byte).await {
            Ok(0) | Err(_) => {}
            // A pipelined request, or TLS's own goodbye: with TLS there is no pipelining here.
            Ok(_) if matches!(self, Self::Tls(_)) => {}
            Ok(_) => std::future::pending().await,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}

async fn http1(fake: &Fake, origin: Origin, connection: u64, mut wire: Wire) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    while let Some(req) = read_request(&mut wire, &mut buffer).await? {
        let number = fake.logged(origin, connection, &req);
        let plan = tokio::select! {
            plan = fake.plan(number, origin, &req) => plan,
            () = wire.gone() => {
                fake.over(number, End::Gone);
                return Ok(());
            }
        };
        match plan {
            Plan::Hang => {
                wire.gone().await;
                fake.over(number, End::Gone);
                return Ok(());
            }
            Plan::Drop { reset } => {
                fake.over(number, End::Cut);
                return if reset { wire.reset() } else { wire.shutdown().await };
            }
            Plan::Raw(bytes) => {
                wire.write_all(&bytes).await?;
                fake.over(number, End::Cut);
                return wire.shutdown().await;
            }
            Plan::Reply(reply) => {
                let close = reply.close || reply.framing == Framing::UntilClose;
                let (end, again) = send(fake, number, &mut wire, &req, &reply).await;
                fake.over(number, end);
                if end == End::Cut && wire.is_reset() {
                    return Ok(());
                }
                if close || !again {
                    return wire.shutdown().await;
                }
            }
        }
    }
    Ok(())
}

async fn read_request(wire: &mut Wire, buffer: &mut BytesMut) -> io::Result<Option<Req>> {
    let head = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break buffer.split_to(end + 4);
        }
        if buffer.len() > HEAD_LIMIT || wire.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or("").split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut req = Req {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Bytes::new(),
        http2: false,
    };
    let length: usize = req.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    while buffer.len() < length {
        if wire.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    req.body = buffer.split_to(length).freeze();
    Ok(Some(req))
}

/// Writes a reply; tells how it ended and whether the connection can be used again.
async fn send(
    fake: &Fake,
    number: usize,
    wire: &mut Wire,
    req: &Req,
    reply: &Reply,
) -> (End, bool) {
    let head = head_of(fake, reply);
    if wire.write_all(head.as_bytes()).await.is_err() {
        return (End::Gone, false);
    }
    if req.is_head() || matches!(reply.status, 204 | 304) {
        return (End::Whole, wire.flush().await.is_ok());
    }
    let end = send_body(fake, number, wire, reply).await.unwrap_or(End::Gone);
    let honest = matches!(reply.framing, Framing::Length | Framing::Chunked);
    (end, honest && end == End::Whole)
}

fn head_of(fake: &Fake, reply: &Reply) -> String {
    let mut head = format!("HTTP/1.1 {} Fake\r\n", reply.status);
    let mut line = |name: &str, value: &str| {
        let name = if fake.loud() { name.to_uppercase() } else { name.to_owned() };
        head.push_str(&format!("{name}: {value}\r\n"));
    };
    for (name, value) in &reply.headers {
        line(name, value);
    }
    match (reply.framing, reply.claimed()) {
        (Framing::Twice(off), Some(length)) => {
            line("Content-Length", &length.to_string());
            line("Content-Length", &(length + off).to_string());
        }
        (_, Some(length)) => line("Content-Length", &length.to_string()),
        (Framing::Chunked, _) => line("Transfer-Encoding", "chunked"),
        _ => {}
    }
    if reply.close || reply.framing == Framing::UntilClose {
        line("Connection", "close");
    }
    head.push_str("\r\n");
    head
}

async fn send_body(fake: &Fake, number: usize, wire: &mut Wire, reply: &Reply) -> io::Result<End> {
    let chunked = reply.framing == Framing::Chunked;
    let mut pump = Pump::new(reply);
    loop {
        match pump.step() {
            Step::Send(bytes) => {
                if chunked {
                    wire.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
                }
                wire.write_all(&bytes).await?;
                if chunked {
                    wire.write_all(b"\r\n").await?;
                }
                fake.sent(number, to_u64(bytes.len()));
            }
            Step::Cut { reset } => {
                wire.flush().await?;
                if reset {
                    wire.reset()?;
                }
                return Ok(End::Cut);
            }
            Step::Pass(gate) => {
                wire.flush().await?;
                tokio::select! {
                    () = gate.pass() => {}
                    () = wire.gone() => return Ok(End::Gone),
                }
            }
            Step::Stall => {
                wire.flush().await?;
                wire.gone().await;
                return Ok(End::Gone);
            }
            Step::Pause(pause) => {
                wire.flush().await?;
                tokio::time::sleep(pause).await;
            }
            Step::Done => {
                if chunked {
                    wire.write_all(b"0\r\n\r\n").await?;
                }
                wire.flush().await?;
                return Ok(End::Whole);
            }
        }
    }
}

/// Runs the four accept loops until stopped.
pub(super) fn listen_all(
    fake: &Fake,
    ports: &[(Origin, Arc<Port>)],
    tls: Option<&TlsAcceptor>,
    stop: &CancellationToken,
) -> io::Result<()> {
    for (origin, port) in ports {
        let listener = port.listen()?;
        let task = accept(fake.clone(), *origin, listener, tls.cloned(), stop.clone());
        fake.tracker().spawn(task);
    }
    Ok(())
}
