//! Tag lists and the catalog: paging in the client's own form of addressing, from upstream when it is up and from here when not.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::client::{Client, Response};
use crate::support::content::Image;
use crate::support::fake::{Edit, Fake, Hidden, Kind, LinkForm, Mode, Origin, Then, When};
use crate::support::pull::pull;
use crate::support::world::World;

const NAME: &str = "team/app";

async fn with_tags(count: usize) -> (Fake, World, Image) {
    let fake = Fake::start().await;
    let image = Image::single("tags");
    for n in 0..count {
        fake.push(NAME, &format!("v{n:03}"), &image);
    }
    let world = World::with(&fake).await;
    (fake, world, image)
}

fn names(reply: &Response, member: &str) -> Vec<String> {
    let document = reply.json();
    let list = document[member].as_array().unwrap_or_else(|| panic!("no list in {document}"));
    list.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// The path of the next page.
fn next(reply: &Response) -> Option<String> {
    let link = reply.header("Link")?;
    let path = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
    Some(path.unwrap_or_else(|| panic!("a strange Link: {link}")).to_owned())
}

/// Follows all Links; gives the pages.
async fn pages(client: &Client, path: &str, member: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut path = Some(path.to_owned());
    while let Some(asked) = path {
        let reply = client.get(&asked).expect(200).await;
        assert_eq!(reply.must("Content-Type"), "application/json");
        pages.push(names(&reply, member));
        path = next(&reply);
        assert!(pages.len() <= 100, "the pages do not end");
    }
    pages
}

#[tokio::test]
async fn tags_are_listed_whole_and_in_pages() {
    let (_fake, world, _image) = with_tags(25).await;
    let client = world.client();
    let all: Vec<String> = (0..25).map(|n| format!("v{n:03}")).collect();
    let reply = client.get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
    assert_eq!(reply.json(), json!({"name": NAME, "tags": all}));
    assert_eq!(reply.header("Link"), None);
    let pages = pages(&client, &format!("/v2/{NAME}/tags/list?n=10"), "tags").await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 5]);
    assert_eq!(pages.concat(), all);
    let after = client.get(&format!("/v2/{NAME}/tags/list?last=v022&n=5")).expect(200).await;
    assert_eq!(names(&after, "tags"), ["v023", "v024"]);
    let head = client.head(&format!("/v2/{NAME}/tags/list")).expect(200).await;
    assert_eq!(head.must("Content-Length"), reply.body.len().to_string());
    world.finish().await;
}

#[tokio::test]
async fn n_may_be_anything() {
    let (_fake, world, _image) = with_tags(5).await;
    let get = |query: &str| world.client().get(&format!("/v2/{NAME}/tags/list?{query}"));
    for huge in ["n=1000", "n=4294967296", "n=18446744073709551615", "n=99999999999999999999999999"]
    {
        assert_eq!(names(&get(huge).expect(200).await, "tags").len(), 5, "{huge}");
    }
    let zero = get("n=0").send().await;
    assert!([200, 400].contains(&zero.status), "{zero:?}");
    for bad in ["n=-1", "n=abc", "n=1e3"] {
        get(bad).expect(400).await.error("PAGINATION_NUMBER_INVALID");
    }
    for ignored in ["last=", "x=y", "last=zzz"] {
        get(ignored).expect(200).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn names_and_links_are_in_the_client_s_own_form() {
    let fake = Fake::start().await;
    let image = Image::single("forms");
    for tag in ["a", "b", "c"] {
        fake.push("library/app", tag, &image);
    }
    let world = World::with(&fake).await;
    for (base, query, name) in [
        ("/v2/library/app", "", "library/app"),
        ("/v2/app", "", "app"),
        ("/v2/docker.io/library/app", "", "docker.io/library/app"),
        ("/v2/library/app", "&ns=docker.io", "library/app"),
        ("/docker.io/v2/library/app", "", "library/app"),
    ] {
        let path = format!("{base}/tags/list?n=2{query}");
        let reply = world.client().get(&path).expect(200).await;
        assert_eq!(reply.json()["name"], name, "{path}");
        let link = next(&reply).expect("a next page");
        assert!(link.starts_with(base), "{link} for {path}");
        assert!(query.is_empty() || link.contains("ns=docker.io"), "{link} for {path}");
        assert_eq!(names(&world.client().get(&link).expect(200).await, "tags"), ["c"]);
    }
    world.finish().await;
}

#[tokio::test]
async fn all_pages_of_upstream_are_read() {
    for link in [LinkForm::Relative, LinkForm::Absolute] {
        let (fake, world, _image) = with_tags(25).await;
        fake.switch(|switch| {
            switch.tags_page = Some(7);
            switch.link = link;
        });
        let reply = world.client().get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
        assert_eq!(names(&reply, "tags").len(), 25, "{link:?}");
        world.finish().await;
    }
}

#[tokio::test]
async fn links_that_lead_nowhere_end_and_foreign_ones_are_not_followed() {
    for link in [LinkForm::Repeating, LinkForm::Foreign, LinkForm::None] {
        let (fake, world, _image) = with_tags(25).await;
        fake.switch(|switch| {
            switch.tags_page = Some(7);
            switch.link = link;
        });
        let reply = world.client().get(&format!("/v2/{NAME}/tags/list")).send().await;
        assert!([200, 502].contains(&reply.status), "{reply:?}");
        fake.log().at(Origin::Foreign).expect_none("a foreign link is not followed");
        assert!(fake.log().of(Kind::Tags).len() <= 5, "{link:?}:{}", fake.log().lines());
        world.finish().await;
    }
}

#[tokio::test]
async fn odd_tag_lists_are_read() {
    let bodies = [
        ("{\"name\":\"x\",\"tags\":null}", 0),
        ("{\"name\":\"x\"}", 0),
        ("{\"name\":\"x\",\"tags\":[\"b\",\"a\",\"a\"],\"manifest\":{},\"child\":[]}", 2),
    ];
    for (body, count) in bodies {
        let (fake, world, _image) = with_tags(1).await;
        let edits = vec![
            Edit::Body(body.into()),
            Edit::Header("Content-Type", Some("text/plain; charset=utf-8".to_owned())),
        ];
        fake.rule(When::kind(Kind::Tags), Then::Alter(edits));
        let reply = world.client().get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
        let listed = reply.json()["tags"].as_array().map_or(0, Vec::len);
        assert_eq!(listed, count, "{body}");
        world.finish().await;
    }
}

#[tokio::test]
async fn when_upstream_is_gone_the_tags_that_we_know_are_listed() {
    let (fake, mut world, image) = with_tags(3).await;
    pull(&world.client(), NAME, "v001", &image).await;
    fake.stop().await;
    world.restart().await;
    let reply = world.client().get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
    assert_eq!(reply.json(), json!({"name": NAME, "tags": ["v001"]}));
    let unknown = world.client().get("/v2/no/such/tags/list").send().await;
    assert!([404, 502].contains(&unknown.status), "{unknown:?}");
    world.finish().await;
}

#[tokio::test]
async fn what_we_know_is_listed_in_pages_too_and_ends_with_an_empty_one() {
    let (fake, mut world, image) = with_tags(5).await;
    for tag in ["v000", "v001", "v003"] {
        pull(&world.client(), NAME, tag, &image).await;
    }
    fake.stop().await;
    world.restart().await;
    let client = world.client();
    let path = format!("/v2/{NAME}/tags/list");
    let pages = pages(&client, &format!("{path}?n=1"), "tags").await;
    assert_eq!(pages, [["v000"], ["v001"], ["v003"]]);
    let behind = client.get(&format!("{path}?last=v001")).expect(200).await;
    assert_eq!(names(&behind, "tags"), ["v003"]);
    let end = client.get(&format!("{path}?last=v003&n=7")).expect(200).await;
    assert_eq!((names(&end, "tags").len(), end.header("Link")), (0, None));
    let none = client.get(&format!("{path}?n=0")).expect(200).await;
    assert_eq!((names(&none, "tags").len(), none.header("Link")), (0, None));
    let unknown = client.get("/v2/no/such/tags/list?last=v000").send().await;
    assert!([404, 502].contains(&unknown.status), "{unknown:?}");
    world.finish().await;
}

#[tokio::test]
async fn the_tags_of_an_absent_repository_are_404() {
    let (_fake, world, _image) = with_tags(1).await;
    let reply = world.client().get("/v2/no/such/tags/list").expect(404).await;
    reply.error("NAME_UNKNOWN");
    world.finish().await;
}

#[tokio::test]
async fn the_catalog_lists_what_is_here_in_pages() {
    let fake = Fake::start().await;
    let image = Image::single("catalog");
    let all: Vec<String> = (0..12).map(|n| format!("team/app{n:02}")).collect();
    for name in &all {
        fake.push(name, "latest", &image);
    }
    fake.push("team/never-pulled", "latest", &image);
    let world = World::with(&fake).await;
    let client = world.client();
    for name in &all {
        client.manifest(name, "latest").expect(200).await;
    }
    let reply = client.get("/v2/_catalog").expect(200).await;
    assert_eq!(reply.must("Content-Type"), "application/json");
    let listed = names(&reply, "repositories");
    assert_eq!(listed.len(), 12);
    for (listed, name) in listed.iter().zip(&all) {
        assert!(listed.ends_with(name.as_str()), "{listed}");
        client.manifest(listed, "latest").expect(200).await;
    }
    let pages = pages(&client, "/v2/_catalog?n=5", "repositories").await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [5, 5, 2]);
    assert_eq!(pages.concat(), listed);
    client.get("/v2/_catalog?n=x").expect(400).await;
    fake.log().of(Kind::Catalog).expect_none("the catalog is local");
    world.finish().await;
}

const JOE: &str = "username = \"joe\"\npassword = \"pass-of-joe\"";

/// A public and a private repository, and our credential for both.
async fn half_hidden(private: &str) -> (Fake, World) {
    let fake = Fake::start().await;
    let image = Image::single("hidden");
    fake.push(NAME, "latest", &image);
    fake.push("team/secret", "latest", &image);
    fake.auth(|auth| {
        auth.mode = Mode::Bearer;
        auth.hidden = Hidden::Denied;
        auth.users = vec![("joe".to_owned(), "pass-of-joe".to_owned())];
    });
    fake.private("team/secret", &["joe"]);
    let settings = format!("{JOE}\nprivate = {private:?}");
    let world = World::builder().upstream_with("docker.io", &fake, &settings).start().await;
    (fake, world)
}

async fn catalog(world: &World) -> Vec<String> {
    names(&world.client().get("/v2/_catalog").expect(200).await, "repositories")
}

#[tokio::test]
async fn the_catalog_lists_what_anybody_may_read() {
    let (_fake, world) = half_hidden("refuse").await;
    world.client().manifest(NAME, "latest").expect(200).await;
    world.client().manifest("team/secret", "latest").expect(403).await;
    let listed = catalog(&world).await;
    assert!(listed.len() == 1 && listed[0].ends_with(NAME), "{listed:?}");
    world.finish().await;
}

#[tokio::test]
async fn the_catalog_hides_what_not_everybody_may_read() {
    let (_fake, mut world) = half_hidden("shared").await;
    for name in [NAME, "team/secret"] {
        world.client().manifest(name, "latest").expect(200).await;
    }
    let listed = catalog(&world).await;
    assert!(listed.iter().all(|name| !name.contains("secret")), "{listed:?}");
    world.restart_with(|builder| builder.set("catalog", "\"all\"")).await;
    assert_eq!(catalog(&world).await.len(), 2);
    world.restart_with(|builder| builder.set("catalog", "\"off\"")).await;
    let off = world.client().get("/v2/_catalog").send().await;
    // An empty list or a refusal: both tell nothing.
    let told = off.status == 200 && off.json()["repositories"] != json!([]);
    assert!(!told, "{off:?}");
    world.finish().await;
}

#[tokio::test]
async fn sixteen_clients_are_one_list() {
    let (fake, world, _image) = with_tags(3).await;
    let client = world.client();
    let path = format!("/v2/{NAME}/tags/list");
    let asked: Vec<_> = (0..16).map(|_| client.get(&path)).collect();
    let replies = join_all(asked.iter().map(|request| request.send())).await;
    for reply in replies {
        let reply = reply.expect("the list", 200);
        assert_eq!(names(&reply, "tags"), ["v000", "v001", "v002"]);
    }
    fake.log().of(Kind::Tags).expect(1, "one list for all");
    world.finish().await;
}
