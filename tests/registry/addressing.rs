//! How a request finds its repository: `ns`, aliases, path prefix, both, Host, listeners, the default upstream, and who is unknown.

use crate::support::client::Client;
use crate::support::content::Image;
use crate::support::fake::{Fake, Kind, Origin};
use crate::support::gate::within;
use crate::support::pull::{is_manifest, pull};
use crate::support::world::World;

const HUB: &str = "docker.io";
const OTHER: &str = "registry.example.com:5443";

/// Two upstreams that hold different images under the same name.
struct Two {
    hub: Fake,
    other: Fake,
    hub_image: Image,
    other_image: Image,
}

impl Two {
    async fn new() -> Self {
        let (hub, other) = (Fake::start().await, Fake::start().await);
        let (hub_image, other_image) = (Image::single("of the hub"), Image::single("of the other"));
        hub.push("library/app", "latest", &hub_image);
        hub.push("team/app", "latest", &hub_image);
        other.push("app", "latest", &other_image);
        other.push("team/app", "latest", &other_image);
        Self { hub, other, hub_image, other_image }
    }

    async fn world(&self) -> World {
        World::builder().upstream(HUB, &self.hub).upstream(OTHER, &self.other).start().await
    }
}

async fn gives(client: &Client, path: &str, image: &Image) {
    let reply = client.get(path).expect(200).await;
    is_manifest(&reply, image);
}

#[tokio::test]
async fn ns_names_the_upstream_and_is_echoed() {
    let two = Two::new().await;
    let world = two.world().await;
    let client = world.client();
    for ns in [HUB, "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
        let path = format!("/v2/team/app/manifests/latest?ns={ns}");
        let reply = client.get(&path).expect(200).await;
        is_manifest(&reply, &two.hub_image);
        assert!(reply.must("OCI-Namespace").eq_ignore_ascii_case(ns), "{reply:?}");
    }
    gives(&client, &format!("/v2/team/app/manifests/latest?ns={OTHER}"), &two.other_image).await;
    let encoded = "/v2/team/app/manifests/latest?ns=registry.example.com%3A5443&x=y";
    gives(&client, encoded, &two.other_image).await;
    let plain = client.manifest("team/app", "latest").expect(200).await;
    assert_eq!(plain.header("OCI-Namespace"), None);
    two.hub.log().gets().of(Kind::Manifest).expect(1, "all aliases are one upstream");
    world.finish().await;
}

#[tokio::test]
async fn a_path_prefix_names_the_upstream() {
    let two = Two::new().await;
    let world = two.world().await;
    let client = world.client();
    for (path, image) in [
        ("docker.io/team/app", &two.hub_image),
        ("index.docker.io/team/app", &two.hub_image),
        ("registry.example.com:5443/team/app", &two.other_image),
        ("registry.example.com:5443/app", &two.other_image),
        ("docker.io/library/app", &two.hub_image),
        ("docker.io/app", &two.hub_image),
        ("app", &two.hub_image),
        ("library/app", &two.hub_image),
        ("team/app", &two.hub_image),
    ] {
        pull(&client, path, "latest", image).await;
    }
    two.hub.log().filter(|entry| entry.repository == "app").expect_none("library/ is added");
    world.finish().await;
}

#[tokio::test]
async fn a_prefix_that_repeats_ns_is_stripped() {
    let two = Two::new().await;
    let world = two.world().await;
    for (path, ns, image) in [
        ("docker.io/team/app", HUB, &two.hub_image),
        ("index.docker.io/library/app", HUB, &two.hub_image),
        ("docker.io/app", "index.docker.io", &two.hub_image),
        ("registry.example.com:5443/app", OTHER, &two.other_image),
    ] {
        gives(&world.client(), &format!("/v2/{path}/manifests/latest?ns={ns}"), image).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn library_is_added_for_docker_hub_only_and_never_by_redirect() {
    let two = Two::new().await;
    let world = two.world().await;
    let client = world.client();
    gives(&client, &format!("/v2/app/manifests/latest?ns={OTHER}"), &two.other_image).await;
    gives(&client, "/v2/app/manifests/latest?ns=docker.io", &two.hub_image).await;
    two.other
        .log()
        .filter(|entry| entry.repository.starts_with("library/"))
        .expect_none("no library/");
    world.finish().await;
}

#[tokio::test]
async fn a_mount_before_v2_names_the_upstream() {
    let two = Two::new().await;
    let world = two.world().await;
    let client = world.client();
    gives(&client, "/registry.example.com:5443/v2/team/app/manifests/latest", &two.other_image)
        .await;
    gives(&client, "/docker.io/v2/library/app/manifests/latest", &two.hub_image).await;
    client.get("/nobody/v2/team/app/manifests/latest").expect(404).await.error("NAME_UNKNOWN");
    world.finish().await;
}

#[tokio::test]
async fn a_host_header_or_a_listener_can_mean_an_upstream() {
    let two = Two::new().await;
    let settings = "hosts = [\"mirror.corp\"]\nlisten = \"127.0.0.1:0\"";
    let world = World::builder()
        .upstream(HUB, &two.hub)
        .upstream_with(OTHER, &two.other, settings)
        .start()
        .await;
    let path = "/v2/team/app/manifests/latest";
    for host in ["mirror.corp", "MIRROR.corp", "mirror.corp:5000"] {
        let reply = world.client().get(path).header("Host", host).expect(200).await;
        is_manifest(&reply, &two.other_image);
    }
    let reply = world.client().get(path).header("Host", "unrelated.corp").expect(200).await;
    is_manifest(&reply, &two.hub_image);
    gives(&world.client_of(OTHER), path, &two.other_image).await;
    let explicit = format!("{path}?ns=docker.io");
    gives(&world.client_of(OTHER), &explicit, &two.hub_image).await;
    world.finish().await;
}

#[tokio::test]
async fn the_default_upstream_can_be_another() {
    let two = Two::new().await;
    let world = World::builder()
        .upstream(HUB, &two.hub)
        .upstream(OTHER, &two.other)
        .set("default_upstream", &format!("{OTHER:?}"))
        .start()
        .await;
    gives(&world.client(), "/v2/team/app/manifests/latest", &two.other_image).await;
    gives(&world.client(), "/v2/app/manifests/latest", &two.other_image).await;
    gives(&world.client(), "/v2/docker.io/app/manifests/latest", &two.hub_image).await;
    world.finish().await;
}

#[tokio::test]
async fn unknown_registries_are_404_and_nobody_is_dialled() {
    let two = Two::new().await;
    // A server that would be dialled if a client could choose the host.
    let canary = Fake::start().await;
    let address = canary.address(Origin::Registry);
    let world = two.world().await;
    let client = world.client();
    for path in [
        format!("/v2/team/app/manifests/latest?ns={address}"),
        format!("/v2/{address}/team/app/manifests/latest"),
        "/v2/team/app/manifests/latest?ns=quay.io".to_owned(),
        "/v2/quay.io/team/app/manifests/latest".to_owned(),
        "/v2/localhost/app/manifests/latest".to_owned(),
        "/v2/localhost:5001/app/manifests/latest".to_owned(),
        "/v2/team.example/app/manifests/latest".to_owned(),
        format!("/v2/quay.io/team/app/blobs/{}", two.hub_image.digest),
        "/v2/quay.io/team/app/tags/list".to_owned(),
    ] {
        let message = client.get(&path).expect(404).await.error("NAME_UNKNOWN");
        assert!(message.contains("[upstream."), "it says what to do: {message}");
        client.head(&path).expect(404).await;
    }
    let reply = client
        .get("/v2/team/app/manifests/latest")
        .header("Host", &address.to_string())
        .expect(200)
        .await;
    is_manifest(&reply, &two.hub_image);
    assert_eq!(canary.connections(), 0);
    two.other.log().expect_none("the other upstream was not meant");
    two.hub.log().filter(|entry| entry.repository != "team/app").expect_none("no guessing");
    let metrics = world.metrics().await;
    let unknown = "roadstead_unknown_registry_total";
    assert!(metrics.sum(unknown, &[("registry", "quay.io")]) >= 3.0, "{:?}", metrics.names());
    world.finish().await;
}

#[tokio::test]
async fn at_most_a_hundred_unknown_names_become_labels() {
    let two = Two::new().await;
    let world = two.world().await;
    for n in 0..150 {
        let path = format!("/v2/a/b/manifests/latest?ns=r{n}.example.com");
        world.client().get(&path).expect(404).await;
    }
    let metrics = world.metrics().await;
    let name = "roadstead_unknown_registry_total";
    let count = metrics.names().iter().filter(|other| **other == name).count();
    assert!((2..=101).contains(&count), "{count} labels");
    assert!(metrics.sum(name, &[("registry", "other")]) >= 50.0);
    assert_eq!(two.hub.connections(), 0);
    world.finish().await;
}

#[tokio::test]
async fn a_request_that_comes_back_to_us_is_a_loop() {
    let fake = Fake::start().await;
    let image = Image::single("loop");
    fake.push("team/app", "latest", &image);
    let world = World::with(&fake).await;
    pull(&world.client(), "team/app", "latest", &image).await;
    let via = fake.log().0[0].header("via").expect("requests to upstream carry Via").to_owned();
    let get = world.client().manifest("team/app", "other").header("Via", &via);
    let reply = within("the answer to a loop", get.send()).await;
    assert_eq!(reply.status, 508, "{reply:?}");
    fake.log().about("other").expect_none("a loop ends here");
    world.finish().await;
}

#[tokio::test]
async fn a_family_of_hosts_is_made_on_demand_from_its_pattern_only() {
    let two = Two::new().await;
    let table =
        "\n[upstream.\"pkg.dev\"]\nurl = \"http://127.0.0.1:9\"\npatterns = [\"*.pkg.dev\"]\n";
    let world = World::builder().upstream(HUB, &two.hub).tables(table).start().await;
    for path in ["/v2/?ns=europe-docker.pkg.dev", "/v2/europe-docker.pkg.dev/"] {
        world.client().get(path).expect(200).await;
    }
    for path in ["/v2/?ns=a.b.pkg.dev", "/v2/?ns=pkg.dev.evil.com", "/v2/?ns=evilpkg.dev"] {
        world.client().get(path).expect(404).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_configured_ns_is_obeyed_even_if_the_client_calls_us_by_that_name() {
    let two = Two::new().await;
    let world = two.world().await;
    let client = world.client().with("Host", OTHER).ns(OTHER);
    gives(&client, "/v2/team/app/manifests/latest", &two.other_image).await;
    world.finish().await;
}

#[tokio::test]
async fn names_that_somebody_makes_up_do_not_shut_a_pattern_for_others() {
    let hub = Fake::start().await;
    let family =
        "\n[upstream.\"pkg.dev\"]\nurl = \"http://127.0.0.1:9\"\npatterns = [\"*.pkg.dev\"]\n";
    let world = World::builder().upstream(HUB, &hub).tables(family).start().await;
    let client = world.client();
    for number in 0..70 {
        let path = format!("/v2/?ns=made-up-{number}.pkg.dev");
        client.get(&path).expect(200).await;
    }
    client.get("/v2/?ns=europe-docker.pkg.dev").expect(200).await;
    world.finish().await;
}
