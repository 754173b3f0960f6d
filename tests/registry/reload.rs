//! SIGHUP: upstreams, credentials and policies change at once; a bad file changes nothing; running answers go on.

use crate::support::client::End;
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Mode, Then, When};
use crate::support::gate::Gate;
use crate::support::pull::{is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";

#[tokio::test]
async fn an_upstream_can_be_added_and_removed() {
    let (hub, other) = (Fake::start().await, Fake::start().await);
    let image = Image::single("added");
    other.push(NAME, "latest", &image);
    let mut world = World::with(&hub).await;
    let name = format!("other.example.com/{NAME}");
    world.client().manifest(&name, "latest").expect(404).await.error("NAME_UNKNOWN");
    let added = world.reload_with(|builder| builder.upstream("other.example.com", &other));
    added.expect("a good file");
    pull(&world.client(), &name, "latest", &image).await;
    let removed = world.reload_with(|builder| builder.without_upstream("other.example.com"));
    removed.expect("a good file");
    world.client().manifest(&name, "latest").expect(404).await.error("NAME_UNKNOWN");
    world.client().blob(&name, &image.blobs[0].digest).expect(404).await;
    world.finish().await;
    other.stop().await;
}

#[tokio::test]
async fn a_bad_file_keeps_what_was() {
    let fake = Fake::start().await;
    let image = Image::single("kept");
    fake.push(NAME, "latest", &image);
    let mut world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &image).await;
    for (key, value) in [("no_such_key", "1"), ("tag_fresh_for", "\"often\""), ("clients", "7")] {
        let refused = world.reload_with(|builder| builder.set(key, value));
        assert!(refused.is_err(), "{key} = {value} was taken");
        pull(&world.client(), NAME, "latest", &image).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn a_policy_changes_at_once() {
    let fake = Fake::start().await;
    let (old, new) = (Image::single("old"), Image::single("new"));
    fake.push(NAME, "latest", &old);
    let mut world = World::with(&fake).await;
    pull(&world.client(), NAME, "latest", &old).await;
    fake.push(NAME, "latest", &new);
    is_manifest(&world.client().manifest(NAME, "latest").expect(200).await, &old);
    world.reload_with(|builder| builder.fresh_for("0s")).expect("a good file");
    is_manifest(&world.client().manifest(NAME, "latest").expect(200).await, &new);
    let deny = "deny = [\"team/*\"]";
    let denied = world.reload_with(|builder| builder.upstream_with("docker.io", &fake, deny));
    denied.expect("a good file");
    world.client().manifest(NAME, "latest").expect(403).await;
    world.finish().await;
}

#[tokio::test]
async fn a_credential_changes_at_once() {
    let fake = Fake::start().await;
    let image = Image::single("credential");
    fake.push(NAME, "latest", &image);
    fake.auth(|auth| {
        auth.mode = Mode::Basic;
        auth.users = vec![("joe".to_owned(), "right-password".to_owned())];
    });
    let wrong = "username = \"joe\"\npassword = \"wrong-password\"\nprivate = \"shared\"";
    let mut world = World::builder().upstream_with("docker.io", &fake, wrong).start().await;
    assert_ne!(world.client().manifest(NAME, "latest").send().await.status, 200);
    let right = wrong.replace("wrong-", "right-");
    let changed = world.reload_with(|builder| builder.upstream_with("docker.io", &fake, &right));
    changed.expect("a good file");
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}

#[tokio::test]
async fn a_new_address_keeps_the_content_and_asks_again() {
    let (old, new) = (Fake::start().await, Fake::start().await);
    let image = Image::single("moved house");
    old.push(NAME, "latest", &image);
    new.push(NAME, "latest", &image);
    let mut world = World::with(&old).await;
    pull(&world.client(), NAME, "latest", &image).await;
    let moved = world.reload_with(|builder| builder.upstream("docker.io", &new));
    moved.expect("a good file");
    pull(&world.client(), NAME, "latest", &image).await;
    new.log().expect(1, "the tag is revalidated, and nothing is fetched");
    old.stop().await;
    world.finish().await;
}

#[tokio::test]
async fn running_answers_go_on() {
    let fake = Fake::start().await;
    let blob = Blob::synthetic(31, 4 * MIB);
    fake.push(NAME, "latest", &Image::build("running").layer(blob.clone()).finish());
    let mut world = World::with(&fake).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    let gate = Gate::new();
    fake.rule(When::blob(), Then::gate_at(MIB, &gate));
    let mut body = world.client().blob(NAME, &blob.digest).open().await;
    body.take(1000).await;
    world.reload_with(|builder| builder.fresh_for("5s")).expect("a good file");
    gate.open();
    let rest = body.rest().await;
    assert_eq!(rest.end, End::Clean);
    assert!(rest.body == blob.data.slice(1000..blob.len()));
    world.finish().await;
}

#[tokio::test]
async fn the_last_reload_is_on_the_metrics_page() {
    let fake = Fake::start().await;
    let mut world = World::with(&fake).await;
    world.reload_with(|builder| builder.set("nonsense", "1")).expect_err("a bad file");
    let metrics = world.metrics().await;
    let reloads: Vec<_> =
        metrics.names().into_iter().filter(|name| name.contains("reload")).collect();
    assert!(!reloads.is_empty(), "{:?}", metrics.names());
    world.finish().await;
}
