//! Mirrors, parents, health and breakers: whoever has it gives it, the registry alone decides, and what is dead costs nothing.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::support::client::{End, Response};
use crate::support::content::{Blob, Image, MIB};
use crate::support::fake::{Fake, Kind, Mode, Reply, Then, When};
use crate::support::pull::{is_blob, is_manifest, is_stale, pull};
use crate::support::world::{World, WorldBuilder};

const NAME: &str = "team/app";
const UPSTREAM: &str = "docker.io";

fn mirrors(urls: &[String]) -> String {
    format!("mirrors = {urls:?}")
}

/// A world with one mirror in which every request for a tag is a revalidation.
async fn mirrored(origin: &Fake, mirror: &Fake) -> World {
    let settings = mirrors(&[mirror.url()]);
    World::builder().upstream_with(UPSTREAM, origin, &settings).fresh_for("0s").start().await
}

/// A roadstead below another one.
fn below(parent: &World, origin: &Fake) -> WorldBuilder {
    let parent = format!("\"http://{}\"", parent.client().address());
    World::builder().upstream(UPSTREAM, origin).set("parent", &parent)
}

async fn latest(world: &World) -> Response {
    world.client().manifest(NAME, "latest").send().await
}

/// Takes connections and never says a word.
fn silence() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    (listener, url)
}

#[tokio::test]
async fn a_mirror_spares_the_registry() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let image = Image::index("spared");
    mirror.push(NAME, "latest", &image);
    origin.push(NAME, "latest", &image);
    let world = mirrored(&origin, &mirror).await;
    pull(&world.client(), NAME, "latest", &image).await;
    pull(&world.client(), NAME, "latest", &image).await;
    origin.log().expect_none("the mirror has it all");
    assert!(mirror.log().0.iter().all(|entry| entry.query == "ns=docker.io"));
    let metrics = world.metrics().await;
    let endpoint = mirror.url().replace("http://", "");
    let of = [("upstream", UPSTREAM), ("endpoint", endpoint.as_str())];
    let asked = metrics.sum("roadstead_upstream_endpoint_requests_total", &of);
    assert!((asked - f64::from(u32::try_from(mirror.log().len()).expect("few"))).abs() < 0.5);
    assert!(metrics.sum("roadstead_upstream_endpoint_bytes_total", &of) > 0.0);
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn what_a_mirror_does_not_give_the_registry_gives() {
    let image = Image::build("not there").layers(2).finish();
    let troubles = [
        Then::status(404),
        Then::status(401),
        Then::status(403),
        Then::limited(Some("3600")),
        Then::status(500),
        Then::status(503),
        Then::status(508),
        Then::reply(Reply::html(200)),
        Then::reply(Reply::html(404)),
        Then::Drop { reset: false },
        Then::Drop { reset: true },
        Then::Raw("garbage that is not HTTP\r\n\r\n".into()),
    ];
    for trouble in troubles {
        let what = format!("{trouble:?}");
        let (origin, mirror) = (Fake::start().await, Fake::start().await);
        origin.push(NAME, "latest", &image);
        mirror.push(NAME, "other", &Image::single("other"));
        let rule = mirror.rule(When::any(), trouble);
        let world = mirrored(&origin, &mirror).await;
        pull(&world.client(), NAME, "latest", &image).await;
        let reply = latest(&world).await;
        is_manifest(&reply, &image);
        assert_eq!(reply.header("Warning"), None, "{what}: {reply:?}");
        world.client().manifest(NAME, "absent").expect(404).await;
        rule.expect_hit();
        world.finish().await;
        mirror.stop().await;
    }
}

#[tokio::test]
async fn a_mirror_that_is_gone_costs_one_refusal_and_is_asked_again_later() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let image = Image::build("gone").layers(5).finish();
    origin.push(NAME, "latest", &image);
    mirror.push(NAME, "latest", &image);
    let world = mirrored(&origin, &mirror).await;
    mirror.stop().await;
    let begun = Instant::now();
    pull(&world.client(), NAME, "latest", &image).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let endpoint = mirror.url().replace("http://", "");
    let of = [("upstream", UPSTREAM), ("endpoint", endpoint.as_str())];
    let metrics = world.metrics().await;
    assert!(metrics.sum("roadstead_upstream_endpoint_requests_total", &of) < 1.5);
    assert!(metrics.has("roadstead_upstream_endpoint_up", &of));
    assert!(metrics.sum("roadstead_upstream_endpoint_up", &of) < 0.5);
    mirror.switch_on().await;
    let mark = origin.mark();
    is_manifest(&latest(&world).await, &image);
    mirror.log().expect_none("its time is not over");
    world.advance(Duration::from_secs(1));
    is_manifest(&latest(&world).await, &image);
    mirror.log().expect(1, "it is back");
    origin.since(mark).expect(1, "while the mirror was left alone");
    assert!(world.metrics().await.sum("roadstead_upstream_endpoint_up", &of) > 0.5);
    let told = |text: &str| {
        let lines = world.log_lines();
        lines.iter().filter(|line| line.contains(text) && line.contains(&endpoint)).count()
    };
    assert_eq!(told("it is left alone until it does"), 1);
    assert_eq!(told("answers again"), 1);
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn a_blob_that_breaks_at_a_mirror_is_continued_at_the_registry() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let blob = Blob::synthetic(7, 4 * MIB);
    let image = Image::build("continued").layer(blob.clone()).finish();
    origin.push(NAME, "latest", &image);
    mirror.push(NAME, "latest", &image);
    for fault in [Then::reset_at(MIB), Then::close_at(MIB)] {
        let rule = mirror.rule(When::blob().about(&blob.digest), fault);
        let world = mirrored(&origin, &mirror).await;
        let mark = origin.mark();
        latest(&world).await.expect("the manifest", 200);
        let body = world.client().blob(NAME, &blob.digest).open().await;
        body.hashed().await.is_whole(&blob.digest, blob.len());
        rule.expect_hit();
        let rest = origin.since(mark).of(Kind::Blob);
        rest.expect(1, "the rest comes from the registry");
        assert!(rest.0[0].header("range").is_some(), "{}", rest.lines());
        world.downloads_over().await;
        assert!(world.has_stored(&blob.digest));
        mirror.remove(&rule);
        world.finish().await;
    }
    mirror.stop().await;
}

#[tokio::test]
async fn a_mirror_that_gives_a_wrong_blob_stands_behind_the_registry() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    for (size, room) in [(MIB, true), (MIB, false), (100, false)] {
        let wrong = Blob::synthetic(size + u64::from(room), size);
        let image = Image::build("wrong").layer(wrong.clone()).finish();
        origin.push(NAME, "latest", &image);
        mirror.push(NAME, "latest", &image);
        let lie = mirror.rule(When::blob().about(&wrong.digest), Then::corrupt_at(size / 2));
        let settings = mirrors(&[mirror.url()]);
        let mut builder = World::builder().upstream_with(UPSTREAM, &origin, &settings);
        if !room {
            builder = builder.set("min_free", "\"1000TiB\"");
        }
        let world = builder.start().await;
        latest(&world).await.expect("the manifest", 200);
        let mark = origin.mark();
        let first = world.client().blob(NAME, &wrong.digest).send().await;
        assert!(first.status != 200 || first.end != End::Clean, "{first:?}");
        lie.expect_hit();
        let body = world.client().blob(NAME, &wrong.digest).open().await;
        body.hashed().await.is_whole(&wrong.digest, wrong.len());
        origin.since(mark).of(Kind::Blob).gets().expect(1, "it comes first now");
        mirror.remove(&lie);
        world.finish().await;
    }
    mirror.stop().await;
}

#[tokio::test]
async fn a_tag_never_goes_back_on_a_mirrors_word() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let (old, new) = (Image::single("old"), Image::single("new"));
    for fake in [&origin, &mirror] {
        fake.push_untagged(NAME, &new);
        fake.push(NAME, "latest", &old);
    }
    let world = mirrored(&origin, &mirror).await;
    is_manifest(&latest(&world).await, &old);
    for fake in [&origin, &mirror] {
        fake.tag(NAME, "latest", &new.digest);
    }
    is_manifest(&latest(&world).await, &new);
    origin.log().expect_none("a mirror's news are news");
    // The mirror is restored from a backup. With and without a HEAD that tells the digest.
    mirror.tag(NAME, "latest", &old.digest);
    is_manifest(&latest(&world).await, &new);
    let rule = mirror.rule(When::manifest().head(), Then::status(405));
    is_manifest(&latest(&world).await, &new);
    mirror.remove(&rule);
    assert_eq!(latest(&world).await.header("Warning"), None, "the registry confirmed it");
    origin.stop().await;
    is_stale(&latest(&world).await, &new);
    origin.switch_on().await;
    origin.tag(NAME, "latest", &old.digest);
    world.advance(Duration::from_secs(60));
    is_manifest(&latest(&world).await, &old);
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn where_mirrors_disagree_the_registry_decides() {
    for head in [true, false] {
        let (origin, first, second) =
            (Fake::start().await, Fake::start().await, Fake::start().await);
        let (old, new) = (Image::single("old"), Image::single("new"));
        for fake in [&origin, &first, &second] {
            fake.push_untagged(NAME, &old);
            fake.push(NAME, "latest", &new);
        }
        // It lags behind, and what it still has was never seen here.
        second.tag(NAME, "latest", &old.digest);
        let settings = mirrors(&[first.url(), second.url()]);
        let world =
            World::builder().upstream_with(UPSTREAM, &origin, &settings).fresh_for("0s").start();
        let world = world.await;
        is_manifest(&latest(&world).await, &new);
        let silent = first.rule(When::manifest(), Then::status(503));
        is_manifest(&latest(&world).await, &old);
        first.remove(&silent);
        if !head {
            for fake in [&origin, &first, &second] {
                fake.rule(When::manifest().head(), Then::status(405));
            }
        }
        let reply = latest(&world).await;
        is_manifest(&reply, &new);
        assert_eq!(reply.header("Warning"), None, "{reply:?}");
        // Without the registry the word of one of them is enough for what is here.
        second.tag(NAME, "latest", &new.digest);
        first.tag(NAME, "latest", &old.digest);
        origin.stop().await;
        let reply = latest(&world).await;
        is_manifest(&reply, &new);
        assert_eq!(reply.header("Warning"), None, "{reply:?}");
        world.finish().await;
        first.stop().await;
        second.stop().await;
    }
}

#[tokio::test]
async fn a_tag_that_is_gone_is_not_brought_back_by_a_mirror_that_lags() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let image = Image::single("deleted");
    for fake in [&origin, &mirror] {
        fake.push(NAME, "latest", &image);
    }
    let world = mirrored(&origin, &mirror).await;
    is_manifest(&latest(&world).await, &image);
    for fake in [&origin, &mirror] {
        fake.untag(NAME, "latest");
    }
    assert_eq!(latest(&world).await.status, 404);
    mirror.tag(NAME, "latest", &image.digest);
    world.advance(Duration::from_secs(6));
    assert_eq!(latest(&world).await.status, 404);
    origin.stop().await;
    world.advance(Duration::from_secs(60));
    assert_eq!(latest(&world).await.status, 502, "an outage is no reason either");
    let next = Image::single("pushed anew");
    mirror.push(NAME, "latest", &next);
    is_manifest(&latest(&world).await, &next);
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn the_registry_alone_says_absent_or_denied() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let image = Image::single("decisions");
    origin.push(NAME, "latest", &image);
    let world = mirrored(&origin, &mirror).await;
    is_manifest(&latest(&world).await, &image);
    origin.stop().await;
    // The mirror has never heard of it: that is no end of the tag.
    is_stale(&latest(&world).await, &image);
    assert_eq!(world.client().manifest(NAME, "never-seen").send().await.status, 502);
    world.advance(Duration::from_secs(60));
    origin.switch_on().await;
    origin.untag(NAME, "latest");
    assert_eq!(latest(&world).await.status, 404);
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn edge_region_and_world_ask_the_registry_once() {
    let origin = Fake::start().await;
    let image = Image::index("edge, region, world");
    origin.push(NAME, "latest", &image);
    let top = World::with(&origin).await;
    let region = below(&top, &origin).start().await;
    let edges = [below(&region, &origin).start().await, below(&region, &origin).start().await];
    for edge in &edges {
        pull(&edge.client(), NAME, "latest", &image).await;
    }
    let objects = image.manifests().len() + image.all_blobs().len();
    origin.log().expect(objects, "each object once");
    let chains: Vec<usize> = origin
        .log()
        .0
        .iter()
        .map(|entry| entry.header("via").unwrap_or_default().matches("roadstead-").count())
        .collect();
    assert!(chains.iter().all(|chain| *chain == 3), "{chains:?}");
    // The registry is gone, and a new edge still gets everything.
    origin.stop().await;
    top.advance(Duration::from_secs(7200));
    region.advance(Duration::from_secs(7200));
    let late = below(&region, &origin).start().await;
    pull(&late.client(), NAME, "latest", &image).await;
    let missing = late.client().manifest(NAME, "never-seen").send().await;
    assert_eq!(missing.status, 502, "nobody can say that it is absent: {missing:?}");
    late.finish().await;
    for edge in edges {
        edge.finish().await;
    }
    region.finish().await;
    top.finish().await;
}

#[tokio::test]
async fn a_parent_that_is_gone_is_passed_by() {
    let origin = Fake::start().await;
    let image = Image::build("without the parent").layers(4).finish();
    origin.push(NAME, "latest", &image);
    let parent = World::with(&origin).await;
    let edge = below(&parent, &origin).fresh_for("0s").start().await;
    is_manifest(&latest(&edge).await, &image);
    let mark = origin.mark();
    parent.finish().await;
    let begun = Instant::now();
    pull(&edge.client(), NAME, "latest", &image).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(origin.since(mark).len() >= image.all_blobs().len());
    edge.finish().await;
}

#[tokio::test]
async fn a_parents_404_counts_only_if_it_says_absent_and_nobody_else_can_be_asked() {
    let (far, near) = (Fake::start().await, Fake::start().await);
    let image = Image::single("parent's word");
    far.push(NAME, "latest", &image);
    near.push(NAME, "latest", &image);
    // The parent reaches the registry at an address that the edge does not reach.
    let parent = World::builder().upstream(UPSTREAM, &far).fresh_for("0s").start().await;
    let mut edge = below(&parent, &near).fresh_for("0s").start().await;
    is_manifest(&latest(&edge).await, &image);
    near.stop().await;
    assert_eq!(edge.client().manifest(NAME, "absent").send().await.status, 404);
    // The parent's own trouble, and its not knowing the registry at all, end nothing.
    far.stop().await;
    is_stale(&latest(&edge).await, &image);
    let other = World::builder().upstream("other.example", &far);
    let stranger = other.set("default_upstream", "\"other.example\"").start().await;
    let address = format!("\"http://{}\"", stranger.client().address());
    edge.reload_with(|builder| builder.set("parent", &address)).expect("a good file");
    edge.advance(Duration::from_secs(60));
    is_stale(&latest(&edge).await, &image);
    // Without the registry, a parent that says absent ends the tag.
    far.switch_on().await;
    far.untag(NAME, "latest");
    let address = format!("\"http://{}\"", parent.client().address());
    edge.reload_with(|builder| builder.set("parent", &address)).expect("a good file");
    parent.advance(Duration::from_secs(60));
    edge.advance(Duration::from_secs(60));
    assert_eq!(latest(&edge).await.status, 404);
    edge.finish().await;
    parent.finish().await;
    stranger.finish().await;
}

#[tokio::test]
async fn a_parent_without_its_registry_still_gives_what_it_has() {
    let origin = Fake::start().await;
    let image = Image::single("kept above");
    origin.push(NAME, "latest", &image);
    let parent = World::with(&origin).await;
    pull(&parent.client(), NAME, "latest", &image).await;
    origin.stop().await;
    let edge = below(&parent, &origin).start().await;
    for number in 0..5 {
        let reply = edge.client().manifest(NAME, &format!("cold-{number}")).send().await;
        assert_eq!(reply.status, 502);
    }
    pull(&edge.client(), NAME, "latest", &image).await;
    edge.finish().await;
    parent.finish().await;
}

#[tokio::test]
async fn two_that_mirror_each_other_do_not_go_in_circles() {
    let origin = Fake::start().await;
    let (image, other) = (Image::single("circle"), Image::single("other circle"));
    origin.push(NAME, "latest", &image);
    origin.push("team/other", "latest", &other);
    let mut one = World::with(&origin).await;
    let url = |world: &World| format!("http://{}", world.client().address());
    let to_one = mirrors(&[url(&one)]);
    let two = World::builder().upstream_with(UPSTREAM, &origin, &to_one).start().await;
    let to_two = mirrors(&[url(&two)]);
    one.reload_with(|builder| builder.upstream_with(UPSTREAM, &origin, &to_two))
        .expect("a good file");
    pull(&one.client(), NAME, "latest", &image).await;
    pull(&two.client(), "team/other", "latest", &other).await;
    origin.log().about("latest").expect(2, "each image's tag is asked once");
    let asked = async || {
        let sum = |metrics: &crate::support::world::Metrics| {
            metrics.sum("roadstead_requests_total", &[("kind", "manifest")])
        };
        sum(&one.metrics().await) + sum(&two.metrics().await)
    };
    origin.stop().await;
    let before = asked().await;
    let begun = Instant::now();
    let reply = one.client().manifest(NAME, "new").send().await;
    assert_eq!(reply.status, 502, "{reply:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // One from the client, one from the first to the second, one back that is turned away.
    assert!(asked().await - before < 3.5, "{}", asked().await - before);
    // Both at once wait for each other for a moment and no longer.
    let (at_one, at_two) = (one.client(), two.client());
    let both = [at_one.manifest(NAME, "both"), at_two.manifest(NAME, "both")];
    let (first, second) = tokio::join!(both[0].send(), both[1].send());
    assert!(first.status >= 500 && second.status >= 500, "{} {}", first.status, second.status);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    one.finish().await;
    two.finish().await;
}

#[tokio::test]
async fn an_upstream_that_is_ourselves_is_told_as_such() {
    let origin = Fake::start().await;
    let image = Image::single("ourselves");
    origin.push(NAME, "latest", &image);
    let mut world = World::with(&origin).await;
    let own = format!("\"http://{}\"", world.client().address());
    world.reload_with(|builder| builder.set("parent", &own)).expect("the port was 0 in the file");
    pull(&world.client(), NAME, "latest", &image).await;
    let lines = world.log_lines();
    let told = lines.iter().filter(|line| line.contains("this roadstead names itself")).count();
    assert_eq!(told, 1, "once, not with every request");
    let circle = format!("[upstream.\"docker.io\"]\nurl = {own}\n");
    let changed = world.reload_with(|builder| {
        builder.without_upstream(UPSTREAM).set("parent", "\"\"").tables(&circle)
    });
    changed.expect("a good file");
    let reply = world.client().manifest(NAME, "other").expect(502).await;
    let text = reply.text();
    assert!(text.contains("names itself") && text.contains("\"reason\":\"loop\""), "{text}");
    world.finish().await;
}

#[tokio::test]
async fn when_everything_is_silent_a_cold_answer_takes_at_most_fifteen_seconds() {
    let origin = Fake::start().await;
    let image = Image::build("silence").layers(1).finish();
    let (_parent, parent) = silence();
    let ((_one, one), (_two, two)) = (silence(), silence());
    origin.push(NAME, "latest", &image);
    let mut world = World::builder().upstream(UPSTREAM, &origin).fresh_for("0s").start().await;
    pull(&world.client(), NAME, "latest", &image).await;
    let hang = origin.rule(When::any(), Then::Hang);
    let settings = mirrors(&[one, two]);
    let silent = world.reload_with(|builder| {
        let builder = builder.upstream_with(UPSTREAM, &origin, &settings);
        builder.set("parent", &format!("{parent:?}"))
    });
    silent.expect("a good file");
    let begun = Instant::now();
    let cached = world.client();
    let cached = async {
        let blob = &image.blobs[0];
        is_blob(&cached.blob(NAME, &blob.digest).expect(200).await, blob);
        is_manifest(&cached.manifest(NAME, &image.digest).expect(200).await, &image);
        begun.elapsed()
    };
    assert!(cached.await < Duration::from_secs(1), "what is here is served at once");
    let (client, nowhere) = (world.client(), Blob::layer("nowhere", 10).digest);
    let (tag, digest) = (client.manifest(NAME, "cold"), client.manifest(NAME, &nowhere));
    let (blob, stale) = (client.blob(NAME, &nowhere), client.manifest(NAME, "latest"));
    let cold = async { tokio::join!(tag.send(), digest.send(), blob.send()) };
    let stale = async {
        is_stale(&stale.send().await, &image);
        begun.elapsed()
    };
    let ((tag, digest, blob), stale) = tokio::join!(cold, stale);
    for reply in [tag, digest, blob] {
        assert!(matches!(reply.status, 502 | 504), "{reply:?}");
    }
    assert!(begun.elapsed() < Duration::from_millis(15_500), "{:?}", begun.elapsed());
    assert!(stale < Duration::from_secs(5), "{stale:?}");
    hang.expect_hit();
    // All are known to be silent now, but for the registry, which may be slow thrice.
    let begun = Instant::now();
    is_stale(&latest(&world).await, &image);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    world.finish().await;
}

#[tokio::test]
async fn a_dead_registry_costs_milliseconds() {
    let origin = Fake::start().await;
    let image = Image::single("dead");
    origin.push(NAME, "latest", &image);
    let world = World::with(&origin).await;
    latest(&world).await.expect("cold", 200);
    origin.stop().await;
    for number in 0..3 {
        let reply = world.client().manifest(NAME, &format!("cold-{number}")).send().await;
        assert_eq!(reply.status, 502);
    }
    let asked =
        async || world.metrics().await.sum("roadstead_upstream_endpoint_requests_total", &[]);
    let (before, begun) = (asked().await, Instant::now());
    for number in 0..20 {
        let reply = world.client().manifest(NAME, &format!("other-{number}")).send().await;
        assert_eq!(reply.status, 502);
        assert!(reply.text().contains("\"reason\":\"breaker\""), "{}", reply.text());
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(asked().await - before < 0.5, "it is left alone");
    is_manifest(&latest(&world).await, &image);
    origin.switch_on().await;
    origin.push(NAME, "back", &image);
    world.advance(Duration::from_secs(1));
    for _ in 0..2 {
        is_manifest(&world.client().manifest(NAME, "back").expect(200).await, &image);
    }
    world.finish().await;
}

#[tokio::test]
async fn many_failures_at_once_do_not_make_a_registry_look_dead() {
    let origin = Fake::start().await;
    let image = Image::single("many at once");
    origin.push(NAME, "latest", &image);
    let limits = "[upstream.\"docker.io\".limits]\nheaders = \"2s\"\n";
    let world = World::builder().upstream(UPSTREAM, &origin).tables(limits).start().await;
    let silent = origin.rule(When::any().times(32), Then::Hang);
    let client = world.client();
    let burst: Vec<_> =
        (0..32).map(|number| client.manifest(NAME, &format!("burst-{number}"))).collect();
    let all = burst.iter().map(|request| request.send()).collect::<FuturesUnordered<_>>();
    let replies: Vec<Response> = all.collect().await;
    assert!(replies.iter().all(|reply| reply.status >= 500));
    assert_eq!(silent.hits(), 32);
    is_manifest(&latest(&world).await, &image);
    world.finish().await;
}

#[tokio::test]
async fn one_thing_that_fails_does_not_take_the_rest_with_it() {
    let origin = Fake::start().await;
    let (image, broken) = (Image::single("sound"), Image::single("broken"));
    origin.push(NAME, "latest", &image);
    origin.push("team/broken", "latest", &broken);
    let world = World::with(&origin).await;
    for trouble in [Then::status(503), Then::Drop { reset: true }] {
        let rule = origin.rule(When::manifest().repository("team/broken"), trouble);
        for _ in 0..5 {
            assert_eq!(world.client().manifest("team/broken", "latest").send().await.status, 502);
        }
        origin.remove(&rule);
        is_manifest(&latest(&world).await, &image);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_mirror_opens_no_private_repository() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let image = Image::single("private");
    for fake in [&origin, &mirror] {
        fake.push(NAME, "latest", &image);
    }
    origin.auth(|auth| {
        auth.mode = Mode::Basic;
        auth.users = vec![("joe".to_owned(), "the-password".to_owned())];
    });
    origin.private(NAME, &["joe"]);
    let settings =
        format!("username = \"joe\"\npassword = \"the-password\"\n{}", mirrors(&[mirror.url()]));
    let world = World::builder().upstream_with(UPSTREAM, &origin, &settings).start().await;
    assert_eq!(latest(&world).await.status, 403, "the registry says who may read");
    mirror.log().expect_none("it says nothing about that");
    origin.stop().await;
    assert_ne!(latest(&world).await.status, 200);
    mirror.log().no_authorization();
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn mirrors_change_with_a_reload_and_an_upstream_can_do_without_the_parent() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let image = Image::single("reloaded");
    origin.push(NAME, "latest", &image);
    mirror.push(NAME, "latest", &image);
    let (_silent, silent) = silence();
    let mut world = World::builder()
        .upstream_with(UPSTREAM, &origin, "parent = false")
        .set("parent", &format!("{silent:?}"))
        .fresh_for("0s")
        .start()
        .await;
    let begun = Instant::now();
    is_manifest(&latest(&world).await, &image);
    assert!(begun.elapsed() < Duration::from_secs(1), "the parent was not asked");
    let settings = format!("parent = false\n{}", mirrors(&[mirror.url()]));
    let added = world.reload_with(|builder| builder.upstream_with(UPSTREAM, &origin, &settings));
    added.expect("a good file");
    let mark = origin.mark();
    is_manifest(&latest(&world).await, &image);
    origin.since(mark).expect_none("the mirror confirms it");
    mirror.log().expect(1, "a HEAD");
    let own = format!("parent = false\n{}", mirrors(&[origin.url()]));
    let refused = world.reload_with(|builder| builder.upstream_with(UPSTREAM, &origin, &own));
    assert!(refused.expect_err("a mistake").contains("is the registry itself"));
    world.finish().await;
    mirror.stop().await;
}

#[tokio::test]
async fn a_body_from_a_dying_mirror_is_whole_or_cut() {
    let (origin, mirror) = (Fake::start().await, Fake::start().await);
    let blob = Blob::synthetic(9, 2 * MIB);
    let image = Image::build("dying").layer(blob.clone()).finish();
    mirror.push(NAME, "latest", &image);
    let world = mirrored(&origin, &mirror).await;
    latest(&world).await.expect("the mirror has it", 200);
    // The registry does not have the blob, and the mirror never gets past its middle.
    mirror.rule(When::blob().about(&blob.digest), Then::reset_at(MIB));
    let reply = world.client().blob(NAME, &blob.digest).send().await;
    assert!(reply.end != End::Clean || reply.body == blob.bytes(), "{:?}", reply.end);
    world.downloads_over().await;
    world.finish().await;
    mirror.stop().await;
}
