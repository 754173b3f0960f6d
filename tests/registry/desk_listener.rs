//! The TCP listener of the admin API: who gets in, who is turned away before anything is looked at, and what is never shown.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::support::client::{Client, Response};
use crate::support::fake::Fake;
use crate::support::gate::within;
use crate::support::world::World;

async fn world() -> World {
    let fake = Fake::start().await;
    let builder = World::builder().upstream("docker.io", &fake);
    builder
        .set("admin_listen", "\"127.0.0.1:0\"")
        .set("admin_hosts", "[\"cache.test\"]")
        .start()
        .await
}

/// A client without the token.
fn stranger(world: &World) -> Client {
    Client::new(world.admin_address())
}

fn token(world: &World) -> String {
    let text = fs::read_to_string(world.data().join("admin-token")).expect("it was made");
    text.trim_end().to_owned()
}

#[track_caller]
fn is_refused(response: &Response, status: u16, reason: &str) {
    assert_eq!(response.status, status, "{response:?}");
    let error = response.json()["error"].clone();
    assert_eq!(error["reason"], reason, "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{error}");
}

#[tokio::test]
async fn the_token_is_made_for_the_owner_and_opens() {
    let world = world().await;
    let secret = token(&world);
    assert_eq!(secret.len(), 64);
    let mode = fs::metadata(world.data().join("admin-token")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let about = world.admin().get("/api/v1/").expect(200).await.json();
    assert_eq!(about["name"], "roadstead");
    let described = world.admin().get("/api/v1/openapi.json").expect(200).await.json();
    assert_eq!(described["openapi"], "3.1.0");
    // Neither it nor its hash is in the log or in the metrics.
    let metrics = world.observer().get("/metrics").expect(200).await.text();
    assert!(!metrics.contains(&secret));
    assert!(!world.log_lines().iter().any(|line| line.contains(&secret)));
    world.finish().await;
}

#[tokio::test]
async fn the_token_stays_over_restarts() {
    let mut world = world().await;
    let secret = token(&world);
    world.restart().await;
    assert_eq!(token(&world), secret);
    world.admin().get("/api/v1/").expect(200).await;
    world.finish().await;
}

#[tokio::test]
async fn without_the_right_token_nothing_is_told() {
    let world = world().await;
    let secret = token(&world);
    for path in ["/api/v1/", "/api/v1/images", "/api/v1/nothing", "/v2/", "/"] {
        let none = stranger(&world).get(path).send().await;
        is_refused(&none, 401, "token");
        assert_eq!(none.must("WWW-Authenticate"), "Bearer realm=\"roadstead\"");
        for wrong in [&secret[1..], "x", &format!("{secret}0"), &secret.to_uppercase()] {
            let client = stranger(&world).with("Authorization", &format!("Bearer {wrong}"));
            is_refused(&client.get(path).send().await, 401, "token");
        }
    }
    for strange in [format!("Basic {secret}"), secret.clone(), "Bearer".to_owned()] {
        let client = stranger(&world).with("Authorization", &strange);
        is_refused(&client.get("/api/v1/").send().await, 401, "token");
    }
    // A token in the address would be in logs and histories.
    let in_query = stranger(&world).get(&format!("/api/v1/?token={secret}")).send().await;
    is_refused(&in_query, 401, "token");
    let order = stranger(&world).request("POST", "/api/v1/pins?scope=docker.io").send().await;
    is_refused(&order, 401, "token");
    assert_eq!(
        world.admin().get("/api/v1/pins").expect(200).await.json()["rules"],
        serde_json::json!([])
    );
    world.finish().await;
}

#[tokio::test]
async fn names_that_lead_here_by_a_trick_are_refused() {
    let world = world().await;
    let port = world.admin_address().port();
    for host in [
        "localhost",
        &format!("localhost:{port}"),
        "cache.test",
        "CACHE.test:443",
        &format!("127.0.0.1:{port}"),
    ] {
        world.admin().with("Host", host).get("/api/v1/").expect(200).await;
    }
    for host in [
        "evil.test",
        &format!("evil.test:{port}"),
        "localhost.evil.test",
        "cache.test.evil.test",
        "10.1.2.3",
        "[::1]",
    ] {
        let answer = world.admin().with("Host", host).get("/api/v1/").send().await;
        is_refused(&answer, 403, "host");
        // Also without the token: it is not looked at.
        is_refused(&stranger(&world).with("Host", host).get("/api/v1/").send().await, 403, "host");
    }
    let absolute = world.admin().get("http://evil.test/api/v1/").send().await;
    is_refused(&absolute, 403, "host");
    world.finish().await;
}

#[tokio::test]
async fn a_page_of_a_browser_is_refused() {
    let world = world().await;
    for origin in ["null", "http://localhost", "https://evil.test"] {
        let client = world.admin().with("Origin", origin);
        is_refused(&client.get("/api/v1/").send().await, 403, "origin");
        is_refused(&client.request("POST", "/api/v1/gc").send().await, 403, "origin");
        is_refused(&client.request("OPTIONS", "/api/v1/gc").send().await, 403, "origin");
    }
    world.finish().await;
}

#[tokio::test]
async fn nothing_of_it_is_on_the_other_ports() {
    let world = world().await;
    let bearer = format!("Bearer {}", token(&world));
    for client in [world.client(), world.observer()] {
        for path in ["/api/v1/", "/api/v1/images", "/api/v1/openapi.json"] {
            for method in ["GET", "POST", "DELETE"] {
                let answer = client
                    .clone()
                    .with("Authorization", &bearer)
                    .request(method, path)
                    .send()
                    .await;
                assert!((400..500).contains(&answer.status), "{method} {path}: {answer:?}");
                assert!(!answer.text().contains("\"api\""), "{answer:?}");
            }
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn the_socket_needs_no_token_and_has_the_same_answers() {
    let world = world().await;
    let path = world.data().join("admin.sock");
    let mut stream = UnixStream::connect(path).await.expect("it listens");
    let request = b"GET /api/v1/usage HTTP/1.1\r\nHost: roadstead\r\n\r\n";
    stream.write_all(request).await.expect("it reads");
    let mut answer = String::new();
    let read = within("the answer", stream.read_to_string(&mut answer)).await;
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"min_free_bytes\""),
        "{answer}"
    );
    world.finish().await;
}

#[tokio::test]
async fn a_token_that_others_can_read_ends_the_start() {
    let world = world().await;
    let file = world.data().join("admin-token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let data = world.data();
    let said = world.refuses_to_start_again().await;
    assert!(said.contains("admin-token") && said.contains("600"), "{said}");
    assert!(!data.join("admin.sock").exists());
}

#[tokio::test]
async fn strangers_cannot_keep_the_places_taken() {
    let world = world().await;
    let mut strangers = Vec::new();
    for at in 0..40 {
        let mut connection = stranger(&world).connect().await;
        // A head that does not end, and a body that does not come behind a request that is refused.
        let sent: &[u8] = match at % 2 {
            0 => b"GET /api/v1/ HTTP/1.1\r\nHost: localhost\r\n",
            _ => b"POST /api/v1/import HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx",
        };
        connection.send(sent).await;
        strangers.push(connection);
    }
    for _ in 0..20 {
        let soon = std::time::Duration::from_secs(4);
        let answer = tokio::time::timeout(soon, world.admin().get("/api/v1/").send()).await;
        assert_eq!(answer.expect("at once").status, 200);
    }
    drop(strangers);
    world.finish().await;
}
