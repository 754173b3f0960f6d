//! The whole server over real sockets, as far as it goes without an upstream: ping, health, bad input, limits, drain.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::carry::Recorder;
use crate::registry::Registry;
use crate::server::{AccessLog, Limits, Metrics, MetricsPage};

struct Fixture {
    data: SocketAddr,
    observe: SocketAddr,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Fixture {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let mut settings = Settings { listen: any, observe: any, ..Settings::default() };
        change(&mut settings);
        let server = Server::bind(&settings).await.unwrap();
        let mut metrics_registry = prometheus_client::registry::Registry::with_prefix("roadstead");
        let metrics = Metrics::new(&mut metrics_registry);
        let metrics_registry = Mutex::new(metrics_registry);
        let ready = Arc::new(AtomicBool::new(true));
        let registry = Arc::new(Registry::serving_nothing());
        let state = State {
            recorder: Recorder::idle(&registry),
            registry,
            metrics_page: MetricsPage::new(move || {
                let mut page = String::new();
                prometheus_client::encoding::text::encode(
                    &mut page,
                    &metrics_registry.lock().unwrap(),
                )
                .unwrap();
                page
            }),
            metrics,
            access_log: AccessLog::default(),
            ready: Arc::clone(&ready),
            instance_id: "roadstead-test".to_owned(),
        };
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (data, observe) = (server.data_address(), server.observe_address());
        tasks.spawn(server.serve(
            state,
            shutdown.clone(),
            tasks.clone(),
            Duration::from_millis(500),
        ));
        Self { data, observe, ready, shutdown, tasks }
    }

    /// Sends a request as it is and reads to the server's FIN.
    async fn raw(&self, address: SocketAddr, request: &str) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(20), client.read_to_end(&mut answer))
            .await
            .expect("an answer")
            .expect("FIN, not RST");
        String::from_utf8(answer).unwrap()
    }

    async fn ask(&self, method: &str, target: &str, headers: &str) -> Answer {
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        Answer::parse(&self.raw(self.data, &request).await)
    }

    async fn observe(&self, target: &str) -> Answer {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        Answer::parse(&self.raw(self.observe, &request).await)
    }

    /// Stops the server; fails if anything is left over.
    async fn finish(self) {
        self.shutdown.cancel();
        self.tasks.close();
        timeout(Duration::from_secs(20), self.tasks.wait()).await.expect("no task is left over");
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self { status, headers, body: body.to_owned() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        assert_eq!(self.header("content-length"), self.body.len().to_string(), "{self:?}");
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert!(body["errors"][0]["message"].is_string(), "{self:?}");
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn ping_says_that_a_registry_is_here() {
    let fixture = Fixture::start(|_| {}).await;
    for target in ["/v2", "/v2/", "/v2/?unknown=1", "http://x/v2/"] {
        let answer = fixture.ask("GET", target, "").await;
        assert_eq!((answer.status, &*answer.body), (200, "{}"), "{target}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
        assert_eq!(answer.header("www-authenticate"), "");
    }
    let head = fixture.ask("HEAD", "/v2/", "").await;
    assert_eq!((head.status, &*head.body, head.header("content-length")), (200, "", "2"));
    let coded = fixture.ask("GET", "/v2/", "Accept-Encoding: gzip, zstd\r\n").await;
    assert_eq!((coded.header("content-encoding"), coded.header("content-length")), ("", "2"));
    fixture.finish().await;
}

#[tokio::test]
async fn unknown_registries_are_404_in_every_form() {
    let fixture = Fixture::start(|_| {}).await;
    for target in ["/v2/?ns=unknown.example", "/v2/unknown.example/", "/unknown/v2/"] {
        let answer = fixture.ask("GET", target, "").await;
        assert_eq!((answer.status, &*answer.code()), (404, "NAME_UNKNOWN"), "{target}");
        assert!(answer.body.contains("unknown"), "{answer:?}");
    }
    let answer = fixture.ask("GET", "/v2/?ns=Docker.IO", "").await;
    assert_eq!(answer.header("oci-namespace"), "Docker.IO");
    fixture.finish().await;
}

#[tokio::test]
async fn health_is_on_both_ports_and_follows_readiness() {
    let fixture = Fixture::start(|_| {}).await;
    for target in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(fixture.ask("GET", target, "").await.status, 200);
        assert_eq!(fixture.observe(target).await.status, 200);
    }
    fixture.ready.store(false, Ordering::Relaxed);
    assert_eq!(fixture.ask("GET", "/readyz", "").await.status, 503);
    assert_eq!(fixture.observe("/readyz").await.status, 503);
    assert_eq!(fixture.observe("/livez").await.status, 200);
    let strange = fixture.observe("/").await;
    assert_eq!(strange.status, 404);
    assert!(strange.body.contains("/metrics"), "{}", strange.body);
    let page = fixture.observe("/metrics").await;
    assert!(page.header("content-type").starts_with("application/openmetrics-text"));
    assert!(
        page.body.contains(
            r#"roadstead_requests_total{kind="health",outcome="hit",upstream="",status="503"}"#
        ),
        "{}",
        page.body
    );
    assert_eq!(fixture.observe("/v2/").await.status, 404, "no data on this port");
    assert_eq!(fixture.ask("GET", "/metrics", "").await.status, 404, "no metrics on the other");
    fixture.finish().await;
}

#[tokio::test]
async fn bad_input_gets_a_4xx_in_oci_json() {
    let fixture = Fixture::start(|_| {}).await;
    let digest = format!("sha256:{}", "0".repeat(64));
    let long_path = format!("/v2/{}/tags/list", "a".repeat(3000));
    let long_query = format!("/v2/?x={}", "a".repeat(5000));
    let cases = [
        ("GET", "/", "", 404, "UNKNOWN"),
        ("GET", "/v1/_ping", "", 404, "UNKNOWN"),
        ("GET", "/v2/foo/bar/", "", 404, "UNKNOWN"),
        ("GET", "/v2/foo/", "", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/_catalog?last=nothing", "", 400, "NAME_INVALID"),
        ("GET", "/v1/search?q=x", "", 404, "UNKNOWN"),
        ("GET", "/v2/A%2f..%2f/tags/list", "", 400, "NAME_INVALID"),
        ("GET", "/v2/../../etc/passwd", "", 400, "NAME_INVALID"),
        ("GET", "/v2/a/manifests/.bad", "", 400, "TAG_INVALID"),
        ("GET", "/v2/a/blobs/sha256:00", "", 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/tags/list?n=x", "", 400, "PAGINATION_NUMBER_INVALID"),
        ("GET", &*long_path, "", 414, "NAME_INVALID"),
        ("GET", &*long_query, "", 414, "NAME_INVALID"),
        ("PUT", "/v2/a/manifests/x", "Content-Length: 0\r\n", 405, "UNSUPPORTED"),
        ("POST", "/v2/a/blobs/uploads/", "", 405, "UNSUPPORTED"),
        ("DELETE", "/v2/a/manifests/x", "", 405, "UNSUPPORTED"),
        ("OPTIONS", "*", "", 405, "UNSUPPORTED"),
        ("CONNECT", "x:80", "", 405, "UNSUPPORTED"),
        ("GET", "/v2/a/manifests/x", "Via: 1.1 roadstead-test\r\n", 508, "UNAVAILABLE"),
    ];
    for (method, target, headers, status, code) in cases {
        let answer = fixture.ask(method, target, headers).await;
        assert_eq!((answer.status, &*answer.code()), (status, code), "{method} {target}");
        let id = answer.header("x-request-id");
        assert!(!id.is_empty() && answer.body.contains(id), "{answer:?}");
        if status == 405 {
            assert_eq!(answer.header("allow"), "GET, HEAD");
        }
    }
    // HEAD is GET without a body, also when it is refused.
    let target = format!("/v2/a/blobs/{}x", digest);
    let (get, head) =
        (fixture.ask("GET", &target, "").await, fixture.ask("HEAD", &target, "").await);
    assert_eq!(
        (get.status, get.header("content-type")),
        (head.status, head.header("content-type"))
    );
    assert!(head.body.is_empty() && !head.header("content-length").is_empty());
    fixture.finish().await;
}

#[tokio::test]
async fn a_request_body_is_not_read_and_closes_the_connection() {
    let fixture = Fixture::start(|_| {}).await;
    let smuggled = "GET /v2/x/manifests/secret HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [
        format!("Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()),
        format!(
            "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{smuggled}\r\n0\r\n\r\n",
            smuggled.len()
        ),
        format!("Content-Length: 1000000000\r\n\r\n{smuggled}"),
        "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n".to_owned(),
    ] {
        let answer =
            fixture.raw(fixture.data, &format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{framing}")).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one answer and the end: {answer}");
        let answer = Answer::parse(&answer);
        assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    }
    fixture.finish().await;
}

/// What the log says, as lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_request_is_one_line_without_secrets() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    // With one dispatcher alive tracing asks the thread that meets a callsite first, which may be one of another test, without any.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _scope = tracing::subscriber::set_default(subscriber);
    let fixture = Fixture::start(|_| {}).await;
    let secrets = "Authorization: Basic c2VjcmV0\r\nCookie: secret=1\r\n";
    fixture.ask("GET", "/v2/?token=secret", secrets).await;
    fixture.ask("HEAD", "/v2/a/manifests/.secret%0a", secrets).await;
    fixture.ask("GET", "/livez", secrets).await;
    fixture.finish().await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let access: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["target"] == "roadstead::access")
        .collect();
    assert_eq!(access.len(), 2, "probes are not logged: {text}");
    let (ping, bad) = (&access[0]["fields"], &access[1]["fields"]);
    assert_eq!(
        (ping["kind"].as_str(), ping["status"].as_u64(), ping["bytes"].as_u64()),
        (Some("ping"), Some(200), Some(2))
    );
    assert_eq!(
        (ping["outcome"].as_str(), ping["client"].as_str()),
        (Some("hit"), Some("127.0.0.1"))
    );
    assert_eq!(
        (bad["method"].as_str(), bad["outcome"].as_str(), bad["reason"].as_str()),
        (Some("HEAD"), Some("refused"), Some("malformed"))
    );
    assert_eq!(bad["bytes"].as_u64(), Some(0));
    assert!(ping["id"] != bad["id"]);
    assert!(
        !text.contains("c2VjcmV0") && !text.contains("token=") && !text.contains("Cookie"),
        "{text}"
    );
}

#[tokio::test]
async fn clients_of_other_networks_are_refused_but_may_probe() {
    let fixture =
        Fixture::start(|settings| settings.clients = vec!["10.0.0.0/8".parse().unwrap()]).await;
    for target in ["/v2/", "/v2/a/manifests/x", "/v2/_catalog", "/nothing"] {
        let answer = fixture.ask("GET", target, "X-Forwarded-For: 10.0.0.1\r\n").await;
        assert_eq!((answer.status, &*answer.code()), (403, "DENIED"), "{target}");
        assert!(answer.body.contains("`clients`"), "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), "");
    }
    assert_eq!(fixture.ask("GET", "/livez", "").await.status, 200);
    fixture.finish().await;
}

#[tokio::test]
async fn idle_connections_make_room_when_all_places_are_taken() {
    let fixture =
        Fixture::start(|settings| settings.limits = Limits { connections: 4, ..Limits::default() })
            .await;
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(TcpStream::connect(fixture.data).await.unwrap());
    }
    let answer = timeout(Duration::from_secs(20), fixture.ask("GET", "/v2/", ""))
        .await
        .expect("a place is found");
    assert_eq!(answer.status, 200);
    assert_eq!(fixture.observe("/livez").await.status, 200);
    drop(idle);
    fixture.finish().await;
}

#[tokio::test]
async fn a_drain_closes_the_door_and_ends_in_time() {
    let fixture = Fixture::start(|_| {}).await;
    let mut idle = TcpStream::connect(fixture.data).await.unwrap();
    idle.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 1024];
    assert!(idle.read(&mut buffer).await.unwrap() > 0);
    // A request that never comes to its end is cut by the deadline.
    let mut unfinished = TcpStream::connect(fixture.data).await.unwrap();
    unfinished.write_all(b"GET /v2/ HTTP/1.1\r\n").await.unwrap();
    let (data, ready) = (fixture.data, Arc::clone(&fixture.ready));
    fixture.finish().await;
    assert!(!ready.load(Ordering::Relaxed));
    assert_eq!(idle.read(&mut buffer).await.unwrap(), 0);
    assert!(TcpStream::connect(data).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let address = holder.local_addr().unwrap();
    let settings = Settings { listen: any, observe: address, ..Settings::default() };
    let error = Server::bind(&settings).await.unwrap_err();
    assert_eq!(error.setting, "observe");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(error.to_string().contains("in use"), "{error}");
}
