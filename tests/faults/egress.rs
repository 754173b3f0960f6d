//! Where the product may dial, and what it shows there.
//!
//! The upstream is a public name behind an HTTP proxy, which forwards to the fake: so it lies outside, and everything on loopback is a
//! place where its answers must not lead. The proxy and a canary see every attempt.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::content::{Blob, Image};
use crate::support::fake::{
    Delivery, Fake, Kind, LinkForm, LocationForm, Mode, Origin, Realm, Reply, Then, When,
};
use crate::support::pull::pull;
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const PUBLIC: &str = "registry.public.example";
const PASSWORD: &str = "correct-horse-battery";

/// Something that listens and must not be spoken to.
struct Canary {
    address: SocketAddr,
    heard: Arc<Mutex<usize>>,
    stop: CancellationToken,
}

impl Canary {
    async fn at(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let (heard, stop) = (Arc::new(Mutex::new(0)), CancellationToken::new());
        let (count, until) = (Arc::clone(&heard), stop.clone());
        TaskTracker::new().spawn(async move {
            while let Some(accepted) = until.run_until_cancelled(listener.accept()).await {
                drop(accepted);
                *count.lock().expect("nobody panics here") += 1;
            }
        });
        Self { address, heard, stop }
    }

    #[track_caller]
    fn saw_nothing(&self, what: &str) {
        assert_eq!(*self.heard.lock().expect("nobody panics here"), 0, "{what} was dialled");
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An HTTP proxy: it takes the public name to the fake's registry, and goes everywhere else that it is asked to.
struct Forward {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
}

impl Forward {
    async fn to(fake: &Fake) -> Self {
        // One request on one connection is all that this proxy understands.
        fake.switch(|switch| switch.keep_alive = false);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let (registry, log, until) =
            (fake.address(Origin::Registry), Arc::clone(&asked), stop.clone());
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            while let Some(Ok((client, _))) = until.run_until_cancelled(listener.accept()).await {
                let (log, until) = (Arc::clone(&log), until.clone());
                tasks.spawn(async move {
                    let _done: Option<Option<()>> =
                        until.run_until_cancelled(forward(client, registry, &log)).await;
                });
            }
        });
        Self { address, asked, stop }
    }

    /// The hosts that were asked for.
    fn hosts(&self) -> Vec<String> {
        let mut hosts = self.asked.lock().expect("nobody panics here").clone();
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One request on one connection.
async fn forward(
    mut client: TcpStream,
    registry: SocketAddr,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let (method, rest) = head.split_once(' ')?;
    let (target, rest) = rest.split_once(' ')?;
    let (host, path) = target.strip_prefix("http://")?.split_once('/').unwrap_or((target, ""));
    asked.lock().expect("nobody panics here").push(host.to_owned());
    let mut server = if host == PUBLIC {
        TcpStream::connect(registry).await.ok()?
    } else {
        TcpStream::connect(host).await.ok()?
    };
    let (version, headers) = rest.split_once("\r\n")?;
    let request = format!("{method} /{path} {version}\r\nConnection: close\r\n{headers}");
    server.write_all(request.as_bytes()).await.ok()?;
    tokio::io::copy(&mut server, &mut client).await.ok()?;
    client.shutdown().await.ok()
}

fn world_behind(fake: &Fake, proxy: &Forward, settings: &str) -> WorldBuilder {
    let table = format!(
        "\n[upstream.\"docker.io\"]\nurl = \"http://{PUBLIC}\"\nproxy = \"http://proxy-user:geheim@{}\"\n{settings}\n",
        proxy.address
    );
    // The fake is told under another name too, so that its secrets are looked for in the log.
    World::builder().upstream("fake.example", fake).tables(&table)
}

async fn pushed(image: &Image) -> Fake {
    let fake = Fake::start().await;
    fake.push(NAME, "latest", image);
    fake
}

/// Spellings of the canary's address, and other places that are nobody's business.
fn places(canary: &Canary) -> Vec<String> {
    let port = canary.address.port();
    vec![
        format!("http://127.0.0.5:{port}/x"),
        format!("http://2130706437:{port}/x"),
        format!("http://0177.0.0.5:{port}/x"),
        format!("http://127.5:{port}/x"),
        format!("http://[::ffff:127.0.0.5]:{port}/x"),
        format!("http://[64:ff9b::7f00:5]:{port}/x"),
        format!("http://[2002:7f00:5::]:{port}/x"),
        format!("http://localhost:{port}/x"),
        format!("http://LOCALHOST.:{port}/x"),
        format!("http://a.localhost:{port}/x"),
        format!("http://0.0.0.0:{port}/x"),
        format!("http://[::1]:{port}/x"),
        format!("http://[fe80::1%25lo]:{port}/x"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[fd00:ec2::254]/latest/meta-data/".to_owned(),
        "http://10.0.0.1/x".to_owned(),
        "http://100.64.0.1/x".to_owned(),
        "ftp://127.0.0.5/x".to_owned(),
        "file:///etc/passwd".to_owned(),
    ]
}

#[tokio::test]
async fn no_redirect_leads_inside() {
    let image = Image::single("redirects");
    let fake = pushed(&image).await;
    let (canary, proxy) = (Canary::at("127.0.0.5").await, Forward::to(&fake).await);
    let world = world_behind(&fake, &proxy, "").start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let layer = &image.all_blobs()[0].digest;
    for place in places(&canary) {
        fake.switch(|switch| switch.delivery = Delivery::To(place.clone()));
        let reply = world.client().blob("docker.io/team/app", layer).send().await;
        assert_eq!(reply.status, 502, "{place}: {reply:?}");
        let rule = fake.rule(When::manifest(), Then::reply(Reply::redirect(307, place.clone())));
        let reply = world.client().manifest("docker.io/team/app", "other").send().await;
        assert_eq!(reply.status, 502, "{place}: {reply:?}");
        fake.remove(&rule);
        canary.saw_nothing(&place);
        assert_eq!(proxy.hosts(), [PUBLIC], "{place}");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_refusal_says_which_setting_and_tells_no_signature() {
    let image = Image::single("refusal");
    let fake = pushed(&image).await;
    let (canary, proxy) = (Canary::at("127.0.0.5").await, Forward::to(&fake).await);
    let world = world_behind(&fake, &proxy, "").start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let place = format!("http://127.0.0.5:{}/x?X-Amz-Signature=hush-hush", canary.address.port());
    fake.switch(|switch| switch.delivery = Delivery::To(place));
    let layer = &image.all_blobs()[0].digest;
    let reply = world.client().blob("docker.io/team/app", layer).expect(502).await;
    let message = reply.error("UNAVAILABLE");
    assert!(message.contains("loopback") && message.contains("allow_addresses"), "{message}");
    let lines = world.log_lines();
    let told = lines.iter().find(|line| line.contains("allow_addresses of"));
    let told = told.expect("the log says it");
    assert!(told.contains("loopback") && told.contains("docker.io"), "{told}");
    assert!(told.contains("127.0.0.5"), "{told}");
    for secret in ["hush-hush", "geheim"] {
        assert!(!message.contains(secret) && !lines.iter().any(|line| line.contains(secret)));
    }
    canary.saw_nothing("the store");
    world.finish().await;
}

#[tokio::test]
async fn a_private_store_is_dialled_where_the_operator_said_so() {
    let image = Image::build("private store").layer(Blob::layer("private store", 70_000)).finish();
    for (settings, top) in [("allow_addresses = [\"127.0.0.3\"]", "[]"), ("", "[\"127.0.0.0/8\"]")]
    {
        let fake = pushed(&image).await;
        fake.auth(|auth| {
            auth.mode = Mode::Basic;
            auth.users = vec![("joe".to_owned(), PASSWORD.to_owned())];
        });
        fake.switch(|switch| {
            switch.delivery = Delivery::Redirect { status: 307, form: LocationForm::Absolute };
        });
        let proxy = Forward::to(&fake).await;
        let login = format!(
            "username = \"joe\"\npassword = {PASSWORD:?}\nprivate = \"shared\"\n{settings}"
        );
        let world = world_behind(&fake, &proxy, &login).set("allow_addresses", top).start().await;
        pull(&world.client(), NAME, "latest", &image).await;
        let store = fake.log().of(Kind::Store);
        assert!(!store.is_empty());
        store.no_authorization();
        fake.log().at(Origin::Foreign).expect_none("nobody sent us there");
        world.finish().await;
    }
}

#[tokio::test]
async fn no_realm_inside_is_asked_and_none_outside_gets_the_password() {
    let image = Image::single("realms");
    for login in
        ["", "username = \"joe\"\npassword = \"correct-horse-battery\"\nprivate = \"shared\""]
    {
        let fake = pushed(&image).await;
        let (canary, proxy) = (Canary::at("127.0.0.5").await, Forward::to(&fake).await);
        let world = world_behind(&fake, &proxy, login).start().await;
        for place in places(&canary) {
            fake.auth(|auth| {
                auth.mode = Mode::Bearer;
                auth.realm = Realm::Text(place.clone());
                auth.users = vec![("joe".to_owned(), PASSWORD.to_owned())];
            });
            let reply = world.client().manifest("docker.io/team/app", "latest").send().await;
            assert!([403, 502].contains(&reply.status), "{place}: {reply:?}");
            canary.saw_nothing(&place);
        }
        assert_eq!(proxy.hosts(), [PUBLIC]);
        fake.log().no_authorization();
        world.finish().await;
    }
}

#[tokio::test]
async fn paging_links_and_foreign_layers_lead_nowhere() {
    let canary = Canary::at("127.0.0.5").await;
    let url = format!("http://127.0.0.5:{}/layer", canary.address.port());
    let layer = Blob::layer("foreign", 5000).foreign(&url);
    let digest = layer.digest.clone();
    let image = Image::build("foreign").layer(layer).finish();
    let fake = pushed(&image).await;
    let proxy = Forward::to(&fake).await;
    let world = world_behind(&fake, &proxy, "").start().await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let reply = world.client().blob("docker.io/team/app", &digest).send().await;
    assert_eq!(reply.status, 404, "{reply:?}");
    fake.switch(|switch| (switch.link, switch.tags_page) = (LinkForm::Foreign, Some(1)));
    fake.push(NAME, "second", &image);
    world.client().get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
    fake.rule(
        When::kind(Kind::Tags),
        Then::set(
            "Link",
            &format!("<http://127.0.0.5:{}/v2/>; rel=\"next\"", canary.address.port()),
        ),
    );
    world.client().get("/v2/docker.io/team/app/tags/list?n=1").expect(200).await;
    canary.saw_nothing("a link");
    fake.log().at(Origin::Foreign).expect_none("a link to a stranger");
    assert_eq!(proxy.hosts(), [PUBLIC]);
    world.finish().await;
}

#[tokio::test]
async fn an_https_upstream_never_leads_down_to_http() {
    let image = Image::single("downgrade");
    let fake = Fake::start_tls(false).await;
    fake.push(NAME, "latest", &image);
    let canary = Canary::at("127.0.0.5").await;
    let login = "username = \"joe\"\npassword = \"correct-horse-battery\"\nprivate = \"shared\"";
    let world = World::builder().upstream_with("docker.io", &fake, login).start().await;
    let plain = format!("http://127.0.0.5:{}/x", canary.address.port());
    fake.auth(|auth| auth.users = vec![("joe".to_owned(), PASSWORD.to_owned())]);
    let redirect = fake.rule(When::manifest(), Then::reply(Reply::redirect(302, plain.clone())));
    let reply = world.client().manifest("docker.io/team/app", "latest").send().await;
    assert_eq!(reply.status, 502, "{reply:?}");
    fake.remove(&redirect);
    fake.auth(|auth| (auth.mode, auth.realm) = (Mode::Bearer, Realm::Text(plain)));
    let reply = world.client().manifest("docker.io/team/app", "other").send().await;
    assert_eq!(reply.status, 502, "{reply:?}");
    canary.saw_nothing("plain http");
    fake.log().no_authorization();
    world.finish().await;
}
