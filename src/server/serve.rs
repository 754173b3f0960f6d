//! One connection from accept to its end: hyper, the deadlines around it, and the last words.
//!
//! What must hold: a connection ends with FIN and never with RST, because containerd resumes after the one and fails the whole pull
//! after the other. A socket that is closed with unread bytes sends RST, so what the client still sends is read and thrown away for
//! a moment. SO_LINGER is never touched.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::body::Body;
use super::connection::{Connection, Expiry};
use super::dispatch::{Link, dispatch};
use super::hub::Hub;
use super::io::{Wire, shutdown_write};
use super::reply;
use super::service::Service;
use super::settings::Limits;

/// How long an ended connection is read from before it is closed.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// How many bytes are thrown away in that time.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER_BUFFER_BYTES: usize = 4096;
/// Under pressure a connection without a request for this long is ended.
const IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(1);

/// Why the exchange of requests ended.
#[derive(Debug)]
enum End {
    /// hyper is done, well or not.
    Done(Result<(), hyper::Error>),
    Expired(Expiry),
    /// All connections were taken and this one did nothing.
    Pressure,
    /// The time to drain is over.
    Cut,
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, service: Arc<Service>, link: Link, hub: Arc<Hub>) {
    let _open = service.metrics().connection();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, client = %link.client, "cannot set TCP_NODELAY");
    }
    let (service, link) = (&*service, &link);
    let handler = |request| dispatch(service, link, request);
    let end = converse(Arc::new(stream), service.limits(), &link.connection, &hub, handler).await;
    if let End::Done(Err(error)) = &end {
        tracing::debug!(client = %link.client, %error, "a connection ended early");
    }
    if let Some(reason) = end.limit() {
        service.metrics().refused(reason);
    }
    if let Some(limit) = end.limit_key() {
        service.metrics().limit_reached(limit);
    }
}

/// Answers the requests of one connection with `handler`, and parts from the client in good order.
async fn converse<H, F>(
    stream: Arc<TcpStream>,
    limits: &Limits,
    connection: &Arc<Connection>,
    hub: &Hub,
    handler: H,
) -> End
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let end = exchange(&stream, limits, connection, hub, handler).await;
    // Whoever makes room has sent nothing that could lie unread, and whoever reads nothing need not be waited for.
    if matches!(end, End::Cut | End::Pressure | End::Expired(Expiry::SlowReader | Expiry::Trickle))
    {
        return end;
    }
    tokio::select! {
        () = part(&stream, connection.is_finished(), last_words(&end, connection)) => {}
        () = hub.cut() => {}
    }
    end
}

/// Runs hyper under the deadlines of [`Connection`]. Everything that moves a deadline happens within a poll of hyper, so looking
/// after each poll is enough; a timer that was set too early is set again when it fires.
async fn exchange<H, F>(
    stream: &Arc<TcpStream>,
    limits: &Limits,
    connection: &Arc<Connection>,
    hub: &Hub,
    handler: H,
) -> End
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let wire = Wire::new(Arc::clone(stream), Arc::clone(connection));
    let handler = service_fn(|request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut hyper = pin!(builder(limits).serve_connection(TokioIo::new(wire), handler));
    let mut attention = pin!(hub.attention());
    let mut timer = pin!(sleep_until(Instant::now() + limits.header_time));
    let mut draining = false;
    std::future::poll_fn(|cx| {
        while attention.as_mut().poll(cx).is_ready() {
            attention.set(hub.attention());
            if hub.is_cut() {
                return Poll::Ready(End::Cut);
            }
            if hub.is_pressed() && idle_for(connection) >= IDLE_UNDER_PRESSURE {
                return Poll::Ready(End::Pressure);
            }
        }
        if hub.is_draining() && !draining {
            draining = true;
            hyper.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = hyper.as_mut().poll(cx) {
            return Poll::Ready(End::Done(result));
        }
        while let Some((at, expiry)) = connection.deadline(limits) {
            if at <= Instant::now() {
                return Poll::Ready(End::Expired(expiry));
            }
            if at < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    })
    .await
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // Scripts that close their sending side after the request still want the answer.
        .half_close(true)
        // The deadlines are ours, see `connection.rs`.
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        // Also the ceiling of what is queued for a slow reader, besides one frame.
        .max_buf_size(limits.header_bytes);
    builder
}

fn idle_for(connection: &Connection) -> Duration {
    connection.idle_since().map_or(Duration::ZERO, |since| since.elapsed())
}

/// What a client is told whose bytes never became a request, where hyper did not tell it.
fn last_words(end: &End, connection: &Connection) -> Option<Bytes> {
    let unanswered = connection.is_clean() && connection.is_mid_header();
    match end {
        End::Expired(Expiry::Header) => Some(reply::wire_answer(reply::HEADER_TIMEOUT)),
        End::Done(Err(error))
            if unanswered && !error.is_incomplete_message() && error.is_parse() =>
        {
            Some(reply::wire_answer(reply::NOT_HTTP))
        }
        _ => None,
    }
}

/// Says the last words, sends FIN and reads on for a moment, until the client sends its own; it has none to send if it is `finished`.
pub(super) async fn part(stream: &TcpStream, finished: bool, last_words: Option<Bytes>) {
    if let Some(words) = last_words {
        // A few hundred bytes into an empty socket buffer; a client that left no room for them gets none.
        if let Err(error) = stream.try_write(&words) {
            tracing::trace!(%error, "no room for last words");
        }
    }
    shutdown_write(stream);
    if finished {
        return;
    }
    let drained = timeout(LINGER_TIME, async {
        let mut buffer = vec![0; LINGER_BUFFER_BYTES];
        let mut total = 0;
        while total < LINGER_BYTES && stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => total += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_gone) => break,
            }
        }
    });
    if drained.await.is_err() {
        tracing::trace!("the client sent no FIN in time");
    }
}

impl End {
    /// What of ours ended the connection, for the metrics.
    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Done(Err(error)) if error.is_parse_too_large() => Some("header_bytes"),
            Self::Done(Err(error)) if error.is_parse() => Some("malformed"),
            Self::Done(_) => None,
            Self::Expired(Expiry::Header) => Some("header_timeout"),
            Self::Expired(Expiry::Idle) => Some("idle"),
            Self::Expired(Expiry::SlowReader) => Some("slow_reader"),
            Self::Expired(Expiry::Trickle) => Some("trickling_reader"),
            Self::Pressure => Some("pressure"),
            Self::Cut => Some("shutdown"),
        }
    }

    /// The limit that a client went beyond, by the name of its key.
    fn limit_key(&self) -> Option<&'static str> {
        match self {
            Self::Done(Err(error)) if error.is_parse_too_large() => Some("header_bytes"),
            Self::Expired(Expiry::Header) => Some("header_time"),
            Self::Expired(Expiry::SlowReader) => Some("idle_body"),
            Self::Expired(Expiry::Trickle) => Some("min_rate"),
            Self::Done(_) | Self::Expired(Expiry::Idle) | Self::Pressure | Self::Cut => None,
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "file_tests.rs"]
mod file_tests;
