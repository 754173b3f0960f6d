//! HTTP/2 over TLS: the same replies and the same faults, carried by hyper. RST and FIN both become a stream reset.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::super::content::to_u64;
use super::log::{End, Origin};
use super::message::{Pump, Reply, Req, Step};
use super::{Fake, Plan};

type Body = UnsyncBoxBody<Bytes, io::Error>;

pub(super) async fn serve(
    fake: &Fake,
    origin: Origin,
    connection: u64,
    stream: TlsStream<TcpStream>,
) -> io::Result<()> {
    let service = service_fn(|request| answer(fake.clone(), origin, connection, request));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

async fn answer(
    fake: Fake,
    origin: Origin,
    connection: u64,
    request: Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let req = Req {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or("").to_owned(),
        headers,
        body,
        http2: true,
    };
    let number = fake.logged(origin, connection, &req);
    match fake.plan(number, origin, &req).await {
        Plan::Reply(reply) => respond(&fake, number, &req, *reply),
        Plan::Hang => std::future::pending().await,
        Plan::Drop { .. } | Plan::Raw(_) => {
            fake.over(number, End::Cut);
            Err(io::Error::other("dropped as the test wanted"))
        }
    }
}

fn respond(fake: &Fake, number: usize, req: &Req, reply: Reply) -> io::Result<Response<Body>> {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    if let Some(length) = reply.claimed() {
        response = response.header("content-length", length);
    }
    if req.is_head() || matches!(reply.status, 204 | 304) {
        fake.over(number, End::Whole);
        let empty =
            Full::new(Bytes::new()).map_err(|never: Infallible| match never {}).boxed_unsync();
        return response.body(empty).map_err(io::Error::other);
    }
    let state = (fake.clone(), Pump::new(&reply));
    let stream = futures_util::stream::try_unfold(state, move |(fake, mut pump)| async move {
        loop {
            match pump.step() {
                Step::Send(bytes) => {
                    fake.sent(number, to_u64(bytes.len()));
                    return Ok(Some((Frame::data(bytes), (fake, pump))));
                }
                Step::Cut { .. } => {
                    fake.over(number, End::Cut);
                    return Err(io::Error::other("cut as the test wanted"));
                }
                Step::Pass(gate) => gate.pass().await,
                Step::Stall => std::future::pending().await,
                Step::Pause(pause) => tokio::time::sleep(pause).await,
                Step::Done => {
                    fake.over(number, End::Whole);
                    return Ok(None);
                }
            }
        }
    });
    let body = StreamBody::new(stream).boxed_unsync();
    response.body(body).map_err(io::Error::other)
}
