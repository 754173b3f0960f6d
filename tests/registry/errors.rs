//! What each client is told when something cannot be served: the table of answers, in OCI JSON, without a challenge, in time.

use crate::support::client::{Client, Response};
use crate::support::content::{Blob, Image, fallback_tag};
use crate::support::fake::{Fake, Hidden, Kind, Mode, Then, When};
use crate::support::gate::within;
use crate::support::world::World;

const NAME: &str = "team/app";
/// Agents of clients as they are in the wild.
const DOCKER: &str =
    "docker/20.10.24 go/go1.19.8 git-commit/5d6db84 kernel/6.1 os/linux arch/amd64";
const CONTAINERD: &str = "containerd/1.6.20~ds1";
const PODMAN: &str = "containers/5.24.1 (github.com/containers/image)";
const CRANE: &str = "crane/0.20 go-containerregistry/0.20";

/// The ways in which an upstream cannot be asked.
fn outages() -> Vec<Then> {
    vec![
        Then::status(500),
        Then::status(502),
        Then::status(503),
        Then::status(504),
        Then::Drop { reset: false },
        Then::Drop { reset: true },
        Then::Raw("SSH-2.0-OpenSSH_9.2\r\n\r\n".into()),
    ]
}

async fn world_of(fake: &Fake) -> World {
    World::with(fake).await
}

fn is_refusal(reply: &Response) {
    let kind = reply.must("Content-Type");
    assert!(kind.starts_with("application/json"), "{reply:?}");
    let error = &reply.json()["errors"][0];
    for member in ["code", "message"] {
        assert!(error[member].as_str().is_some_and(|text| !text.is_empty()), "{reply:?}");
    }
    assert_eq!(reply.header("WWW-Authenticate"), None, "no challenge");
    assert!(!reply.must("X-Request-Id").is_empty());
}

/// Asks for something that is not here, as this client.
async fn ask(client: &Client, agent: &str, ns: bool, path: &str) -> Response {
    let path = if ns { format!("{path}?ns=docker.io") } else { path.to_owned() };
    let get = client.get(&path).header("User-Agent", agent);
    let reply = within("an answer", get.send()).await;
    is_refusal(&reply);
    let head = client.head(&path).header("User-Agent", agent).send().await;
    assert_eq!(head.status, reply.status, "HEAD and GET alike");
    assert!(head.body.is_empty());
    reply
}

fn blob_path() -> String {
    format!("/v2/{NAME}/blobs/{}", Blob::layer("nowhere", 10).digest)
}

const MANIFEST: &str = "/v2/team/app/manifests/latest";

#[tokio::test]
async fn absent_is_404_with_its_own_code() {
    let fake = Fake::start().await;
    fake.push(NAME, "other", &Image::single("other"));
    let world = world_of(&fake).await;
    let client = world.client();
    for (agent, ns) in [(DOCKER, false), (CONTAINERD, true), (PODMAN, false), (CRANE, false)] {
        let reply = ask(&client, agent, ns, MANIFEST).await.expect("absent", 404);
        reply.error("MANIFEST_UNKNOWN");
        ask(&client, agent, ns, &blob_path()).await.expect("absent", 404).error("BLOB_UNKNOWN");
        let reply = ask(&client, agent, ns, "/v2/no/such/manifests/latest").await;
        reply.expect("absent", 404);
    }
    world.finish().await;
}

#[tokio::test]
async fn absence_in_every_dialect_is_absence() {
    for hidden in [Hidden::NameUnknown, Hidden::NotFound, Hidden::Plain, Hidden::Numeric] {
        let fake = Fake::start().await;
        fake.auth(|auth| auth.hidden = hidden);
        let world = world_of(&fake).await;
        ask(&world.client(), CRANE, false, MANIFEST).await.expect("absent", 404);
        world.finish().await;
    }
}

#[tokio::test]
async fn denied_is_403_for_manifests_and_404_for_blobs_of_clients_with_a_fallback() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("denied"));
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
    });
    fake.private(NAME, &["somebody"]);
    let world = world_of(&fake).await;
    let client = world.client();
    for (agent, ns) in [(DOCKER, false), (CONTAINERD, true), (PODMAN, false)] {
        ask(&client, agent, ns, MANIFEST).await.expect("denied", 403).error("DENIED");
        ask(&client, agent, ns, &blob_path()).await.expect("denied", 404);
    }
    let prefixed = "/v2/docker.io/team/app/manifests/latest";
    ask(&client, CRANE, false, prefixed).await.expect("denied", 403).error("DENIED");
    world.finish().await;
}

#[tokio::test]
async fn an_outage_is_502_for_manifests_and_fast() {
    for outage in outages() {
        let what = format!("{outage:?}");
        let fake = Fake::start().await;
        fake.rule(When::any().early(), outage);
        let world = world_of(&fake).await;
        let client = world.client();
        for (agent, ns) in [(DOCKER, false), (CONTAINERD, true), (PODMAN, false), (CRANE, false)] {
            let reply = ask(&client, agent, ns, MANIFEST).await;
            assert_eq!(reply.status, 502, "{what}: {reply:?}");
            assert!(reply.error("UNAVAILABLE").contains("docker.io"), "it says where: {reply:?}");
            assert_eq!(reply.header("Retry-After"), None);
        }
        world.finish().await;
    }
}

#[tokio::test]
async fn an_outage_is_404_for_blobs_of_classic_docker_and_502_for_others() {
    let image = Image::single("outage");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let world = world_of(&fake).await;
    let client = world.client();
    client.get(MANIFEST).expect(200).await;
    fake.stop().await;
    let path = format!("/v2/{NAME}/blobs/{}", image.blobs[1].digest);
    ask(&client, DOCKER, false, &path).await.expect("classic docker waits on 5xx", 404);
    ask(&client, CONTAINERD, true, &path).await.expect("the next host is asked", 502);
    ask(&client, PODMAN, false, &path).await.expect("the plain truth", 502);
    ask(&client, CRANE, false, &path).await.expect("the plain truth", 502);
    world.finish().await;
}

#[tokio::test]
async fn a_rate_limit_is_503_with_a_fallback_and_429_without() {
    let fake = Fake::start().await;
    fake.rule(When::any().early(), Then::limited(Some("3600")));
    let world = world_of(&fake).await;
    let client = world.client();
    for (agent, ns) in [(DOCKER, false), (CONTAINERD, true), (PODMAN, false)] {
        let reply = ask(&client, agent, ns, MANIFEST).await.expect("limited", 503);
        assert_eq!(reply.header("Retry-After"), None, "podman multiplies it");
    }
    let prefixed = "/v2/docker.io/team/app/manifests/latest";
    let reply = ask(&client, CRANE, false, prefixed).await.expect("limited", 429);
    reply.error("TOOMANYREQUESTS");
    let after: u32 = reply.must("Retry-After").parse().expect("seconds");
    assert!(after <= 5, "{after}");
    world.finish().await;
}

#[tokio::test]
async fn without_fallback_everybody_gets_the_plain_truth() {
    let fake = Fake::start().await;
    let limit = fake.rule(When::any().early(), Then::limited(Some("2")));
    let world =
        World::builder().upstream("docker.io", &fake).set("fallback", "\"none\"").start().await;
    let client = world.client();
    ask(&client, CONTAINERD, true, MANIFEST).await.expect("limited", 429);
    fake.remove(&limit);
    fake.stop().await;
    for (agent, ns) in [(DOCKER, false), (CONTAINERD, true)] {
        let reply = ask(&client, agent, ns, "/v2/team/x/manifests/latest").await;
        assert!([502, 503].contains(&reply.status), "404 means absent only: {reply:?}");
        let path = blob_path().replace("team/app", "team/y");
        let reply = ask(&client, agent, ns, &path).await;
        assert!([502, 503].contains(&reply.status), "404 means absent only: {reply:?}");
    }
    world.finish().await;
}

#[tokio::test]
async fn referrers_are_404_in_every_trouble() {
    let digest = Image::single("subject").digest;
    let mut troubles = outages();
    troubles.extend([Then::limited(None), Then::status(401), Then::status(403)]);
    for trouble in troubles {
        let what = format!("{trouble:?}");
        let fake = Fake::start().await;
        fake.rule(When::any().early(), trouble);
        let world = world_of(&fake).await;
        for path in [
            format!("/v2/{NAME}/referrers/{digest}"),
            format!("/v2/{NAME}/manifests/{}", fallback_tag(&digest)),
        ] {
            for (agent, ns) in [(DOCKER, false), (CONTAINERD, true), (CRANE, false)] {
                let reply = ask(&world.client(), agent, ns, &path).await;
                assert_eq!(reply.status, 404, "{what} {agent}: {reply:?}");
            }
        }
        world.finish().await;
    }
}

#[tokio::test]
async fn a_hanging_upstream_is_answered_504_within_its_time() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("hang"));
    fake.rule(When::any().early(), Then::Hang);
    let limits = "[limits]\nanswer = \"1s\"\n";
    let world = World::builder()
        .upstream_with("docker.io", &fake, "wait = \"500ms\"\nwait_recent = \"500ms\"")
        .tables(limits)
        .start()
        .await;
    let before = tokio::time::Instant::now();
    let reply = world.client().get(MANIFEST).send().await;
    assert!([502, 504].contains(&reply.status), "{reply:?}");
    is_refusal(&reply);
    let blob = world.client().get(&blob_path()).send().await;
    assert!([502, 504].contains(&blob.status), "{blob:?}");
    assert!(before.elapsed().as_secs() < 10, "took {:?}", before.elapsed());
    world.finish().await;
}

#[tokio::test]
async fn write_verbs_are_405_in_oci_json() {
    let fake = Fake::start().await;
    let world = world_of(&fake).await;
    let digest = Blob::layer("push", 10).digest;
    for path in [
        MANIFEST.to_owned(),
        format!("/v2/{NAME}/blobs/uploads/"),
        format!("/v2/{NAME}/blobs/uploads/?mount={digest}&from=x/y"),
        format!("/v2/{NAME}/blobs/{digest}"),
        "/v2/".to_owned(),
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let reply = world.client().request(method, &path).body("{}").expect(405).await;
            reply.error("UNSUPPORTED");
            let allow = reply.must("Allow");
            assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
        }
    }
    let strange = world.client().request("BREW", MANIFEST).send().await;
    assert!([405, 400, 501].contains(&strange.status), "{strange:?}");
    assert_eq!(fake.connections(), 0, "nothing but GET and HEAD goes upstream");
    world.finish().await;
}

#[tokio::test]
async fn a_request_id_of_an_error_is_in_the_log() {
    let fake = Fake::start().await;
    let world = world_of(&fake).await;
    let reply = world.client().get("/v2/no/such/manifests/latest").expect(404).await;
    let id = reply.must("X-Request-Id").to_owned();
    within("the line in the log", async {
        while !world.log_lines().iter().any(|line| line.contains(&id)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(reply.text().contains(&id), "and in the error's detail: {}", reply.text());
    world.finish().await;
}

#[tokio::test]
async fn no_error_text_gives_a_secret_away() {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &Image::single("secrets"));
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.users = vec![("joe".to_owned(), "hush-hush-hush".to_owned())];
    });
    let settings = "username = \"joe\"\npassword = \"hush-hush-hush\"\nprivate = \"shared\"";
    let world = World::builder().upstream_with("docker.io", &fake, settings).start().await;
    world.client().get(MANIFEST).expect(200).await;
    fake.rule(When::kind(Kind::Manifest), Then::status(500));
    fake.expire_tokens();
    let reply = world.client().get("/v2/team/app/manifests/other").send().await;
    for secret in fake.secrets() {
        assert!(!reply.text().contains(&secret), "{}", reply.text());
    }
    world.finish().await;
}
