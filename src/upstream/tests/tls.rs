//! TLS: our own authorities, HTTP/2 where it is offered, and no way down to plain http.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls_pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::stub::*;
use crate::oci::Digest;
use crate::upstream::{BlobRange, BuildError, CaFile, Cause, CredentialSource, Error, Upstream};

struct Secured {
    url: String,
    ca: PathBuf,
    _directory: tempfile::TempDir,
    _tasks: TaskTracker,
}

/// A TLS server for 127.0.0.1 with a certificate of its own. It tells the protocol version in the body; `/v2/away/…` leads to http.
async fn secured() -> Secured {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, certified.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let tasks = TaskTracker::new();
    let inner = tasks.clone();
    tasks.spawn(async move {
        while let Ok((stream, _peer)) = listener.accept().await {
            let acceptor = acceptor.clone();
            inner.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let service =
                        service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
                    drop(builder.serve_connection(TokioIo::new(stream), service).await);
                }
            });
        }
    });
    Secured { url, ca, _directory: directory, _tasks: tasks }
}

/// More than one stream may send ahead.
const LARGE: usize = 16 * 1024 * 1024;

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path().contains("/large/blobs/") {
        return Response::new(Full::new(vec![0; LARGE].into()));
    }
    if request.uri().path().contains("/away/") {
        let builder = Response::builder().status(307).header("location", "http://127.0.0.1/x");
        return builder.body(Full::default()).unwrap();
    }
    let body = format!(r#"{{"version":"{:?}"}}"#, request.version());
    Response::new(Full::new(body.into()))
}

fn trusting(server: &Secured) -> Arc<Upstream> {
    let mut settings = settings(&server.url, CredentialSource::None);
    settings.ca_file = Some(CaFile::at(server.ca.clone()));
    build(settings)
}

#[tokio::test]
async fn our_own_authority_is_trusted_and_http2_is_spoken() {
    let server = secured().await;
    let manifest = trusting(&server).manifest(&name(), &tag()).await.unwrap();
    assert_eq!(manifest.bytes, r#"{"version":"HTTP/2.0"}"#);
}

#[tokio::test]
async fn bodies_that_nobody_reads_leave_the_connection_to_others() {
    let server = secured().await;
    let upstream = trusting(&server);
    let (large, digest) = ("large".parse().unwrap(), Digest::sha256_of(b"large"));
    let mut unread = Vec::new();
    for _ in 0..3 {
        let mut blob = upstream.blob(&large, &digest, BlobRange::WHOLE).await.unwrap();
        assert!(blob.chunk().await.unwrap().is_some());
        unread.push(blob);
    }
    let mut other = upstream.blob(&large, &digest, BlobRange::WHOLE).await.unwrap();
    let mut read = 0;
    while let Some(chunk) = other.chunk().await.unwrap() {
        read += chunk.len();
    }
    assert_eq!(read, LARGE);
}

#[tokio::test]
async fn an_unknown_authority_is_a_tls_failure() {
    let server = secured().await;
    let upstream = build(settings(&server.url, CredentialSource::None));
    let error = upstream.manifest(&name(), &tag()).await.unwrap_err();
    assert_eq!(error, Error::Unreachable(Cause::Tls));
}

#[tokio::test]
async fn https_never_leads_to_http() {
    let server = secured().await;
    let error = trusting(&server).manifest(&"away/x".parse().unwrap(), &tag()).await.unwrap_err();
    assert!(matches!(error, Error::Junk(_)), "{error:?}");
}

#[tokio::test]
async fn a_bad_ca_file_is_told_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    for content in
        [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")]
    {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let mut settings = settings("https://r.example", CredentialSource::None);
        settings.ca_file = Some(CaFile::at(path.clone()));
        let error = Upstream::new(settings, &shared().0).unwrap_err();
        assert!(
            matches!(&error, BuildError::CaFile { .. }) && error.to_string().contains("ca.pem"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_proxy_is_used_if_configured_and_never_for_loopback_of_the_environment() {
    let proxy = Stub::start("127.0.0.1", |seen| {
        assert!(seen.path.starts_with("http://r.example/v2/"), "{}", seen.path);
        reply(200, MANIFEST)
    })
    .await;
    let mut through = settings("http://r.example", CredentialSource::None);
    through.proxy = Some(proxy.origin());
    build(through).manifest(&name(), &tag()).await.unwrap();
    assert_eq!(proxy.seen().len(), 1);

    let stub = Stub::start("127.0.0.1", |_seen| reply(200, MANIFEST)).await;
    let (mut shared, _registry) = shared();
    shared.proxies.http = Some(proxy.origin());
    let direct = Upstream::new(settings(&stub.origin(), CredentialSource::None), &shared).unwrap();
    direct.manifest(&name(), &tag()).await.unwrap();
    let distant =
        Upstream::new(settings("http://r.example", CredentialSource::None), &shared).unwrap();
    distant.manifest(&name(), &tag()).await.unwrap();
    assert_eq!((stub.seen().len(), proxy.seen().len()), (1, 2));

    let mut wrong = settings("http://r.example", CredentialSource::None);
    wrong.proxy = Some("socks5://proxy".into());
    assert_eq!(Upstream::new(wrong, &shared).unwrap_err(), BuildError::Proxy);
}
