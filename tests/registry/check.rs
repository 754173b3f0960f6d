//! Can an image be replayed with the cable cut? The answer names what is missing, exactly, and asks nobody.

use std::fs;

use roadstead::clock::Timestamp;
use roadstead::metadata::{RepositoryKey, SetKind, SetMember};
use serde_json::{Value, json};

use crate::support::content::Image;
use crate::support::fake::Fake;
use crate::support::world::World;
use crate::warm::{builder, warm};

const NAME: &str = "team/app";

async fn check(world: &World, query: &str) -> Vec<Value> {
    let path = format!("/api/v1/check?{query}");
    let answer = world.admin().get(&path).expect(200).await.json();
    answer["images"].as_array().expect("images").clone()
}

fn missing(image: &Value) -> Vec<(&str, &str, &str)> {
    let parts = image["missing"].as_array().expect("a list").iter();
    parts
        .map(|part| {
            let of = |key: &str| part[key].as_str().expect("a word");
            (of("role"), of("digest"), of("state"))
        })
        .collect()
}

#[tokio::test]
async fn each_platform_has_its_verdict() {
    let fake = Fake::start().await;
    let image = Image::index("checked");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    warm(&world, "platform=linux/amd64", NAME).await;
    let mark = fake.mark();
    let arm64 = &image.children[1];

    let found =
        check(&world, &format!("image={NAME}&image=docker.io/{NAME}@{}", image.digest)).await;
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["image"], format!("docker.io/{NAME}:latest"));
    for image in &found {
        assert_eq!((&image["complete"], &image["reason"]), (&json!(true), &Value::Null));
        assert_eq!(missing(image), [("manifest", &*arm64.digest, "absent")]);
        let verdicts: Vec<_> = image["platforms"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|platform| (platform["platform"].as_str(), platform["complete"].as_bool()))
            .collect();
        let want = [(Some("linux/amd64"), Some(true)), (Some("linux/arm64"), Some(false))];
        assert_eq!(verdicts, want);
        assert_eq!(image["referrers"], 1, "the attestation");
    }
    for (platforms, complete) in [
        ("platform=linux/amd64", true),
        ("platform=linux/arm64", false),
        ("platform=linux/amd64&platform=linux/arm64", false),
    ] {
        let found = check(&world, &format!("image={NAME}&{platforms}")).await;
        assert_eq!(found[0]["complete"], complete, "{platforms}");
    }
    assert_eq!(fake.mark(), mark, "nobody was asked");
    world.finish().await;
}

#[tokio::test]
async fn what_was_taken_away_or_lost_is_named() {
    let fake = Fake::start().await;
    let image = Image::build("lost").layers(3).finish();
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    warm(&world, "", NAME).await;
    assert_eq!(check(&world, &format!("image={NAME}")).await[0]["complete"], true);
    let [config, removed, lost, damaged] = &image.blobs[..] else { panic!("it has four") };
    let path = format!("/api/v1/blobs?force=true&digest={}", removed.digest);
    world.admin().request("DELETE", &path).expect(200).await;
    fs::remove_file(world.blob_file(&lost.digest)).expect("it is there");
    fs::write(world.blob_file(&damaged.digest), b"another length").expect("it can be written");
    for _again in 0..2 {
        let found = check(&world, &format!("image={NAME}")).await;
        assert_eq!(found[0]["complete"], false);
        let want = [
            ("layer", &*removed.digest, "removed"),
            ("layer", &*lost.digest, "absent"),
            ("layer", &*damaged.digest, "damaged"),
        ];
        assert_eq!(missing(&found[0]), want);
        assert_eq!(found[0]["bytes_missing"], removed.len() + lost.len() + damaged.len());
        assert_eq!(found[0]["bytes_present"], image.bytes.len() as u64 + config.len());
    }
    let (_, report) = warm(&world, "", NAME).await;
    assert_eq!(report["objects"], 3);
    assert_eq!(check(&world, &format!("image={NAME}")).await[0]["complete"], true);
    fs::remove_file(world.blob_file(&image.digest)).expect("it is there");
    let found = check(&world, &format!("image={NAME}")).await;
    assert_eq!(missing(&found[0]), [("manifest", &*image.digest, "absent")]);
    assert_eq!(found[0]["complete"], false, "a manifest in memory is gone with the next start");
    world.finish().await;
}

#[tokio::test]
async fn what_nobody_knows_is_said_and_what_is_no_name_refused() {
    let fake = Fake::start().await;
    let image = Image::single("known");
    fake.push(NAME, "latest", &image);
    let world = builder(&fake).start().await;
    warm(&world, "", NAME).await;
    let query = format!("image={NAME}:v9&image=team/none&image={NAME}&image=quay.io/a/b:1");
    let found = check(&world, &query).await;
    for (at, said) in [(0, "nothing is known"), (1, "nothing is known"), (3, "quay.io")] {
        assert_eq!((&found[at]["complete"], &found[at]["digest"]), (&json!(false), &Value::Null));
        let reason = found[at]["reason"].as_str().expect("a reason");
        assert!(reason.contains(said), "{reason}");
    }
    assert_eq!(found[2]["complete"], true);
    for (query, status) in [
        ("", 400),
        ("image=Team/App", 400),
        ("image=team/app&platform=amd64", 400),
        ("image=", 400),
    ] {
        world.admin().get(&format!("/api/v1/check?{query}")).expect(status).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn all_images_of_a_set_are_checked() {
    let fake = Fake::start().await;
    let (whole, part) = (Image::single("whole"), Image::single("part"));
    fake.push(NAME, "v1", &whole);
    fake.push(NAME, "v2", &part);
    let world = builder(&fake).start().await;
    warm(&world, "", &format!("{NAME}:v1")).await;
    world.client().manifest(NAME, "v2").expect(200).await;
    let metadata = world.metadata();
    let name = "job-1".parse().expect("a name of a set");
    let set = metadata.add_set(name, SetKind::Record, String::new()).await.expect("it is written");
    let repository = RepositoryKey {
        upstream: "docker.io".parse().expect("a name"),
        name: NAME.parse().expect("a name"),
    };
    let member = |image: &Image, tag: Option<&str>| SetMember {
        repository: repository.clone(),
        digest: image.digest.parse().expect("a digest"),
        tag: tag.map(|tag| tag.parse().expect("a tag")),
        at: Timestamp::default(),
    };
    let members = vec![member(&whole, Some("v1")), member(&part, None)];
    metadata.add_members(set.expect("it is new").id, members).await.expect("they are written");
    let found = check(&world, "set=job-1").await;
    let mut told: Vec<_> =
        found.iter().map(|image| (image["image"].to_string(), image["complete"].clone())).collect();
    told.sort_by_key(|(image, _)| !image.contains(":v1@"));
    let want = [
        (format!("\"docker.io/{NAME}:v1@{}\"", whole.digest), json!(true)),
        (format!("\"docker.io/{NAME}@{}\"", part.digest), json!(false)),
    ];
    assert_eq!(told, want);
    let error = world.admin().get("/api/v1/check?set=job-2").send().await;
    assert!(error.status >= 400 && error.text().contains("there is no set"), "{error:?}");
    world.finish().await;
}

#[tokio::test]
async fn what_would_not_be_served_says_why() {
    let fake = Fake::start().await;
    let image = Image::single("not served");
    fake.push(NAME, "latest", &image);
    let mut world = builder(&fake).upstream("ghcr.io", &fake).start().await;
    warm(&world, "", &format!("{NAME}\nghcr.io/{NAME}")).await;
    world
        .restart_with(|builder| {
            let denied = builder.upstream_with("docker.io", &fake, "deny = [\"team/*\"]");
            denied.without_upstream("ghcr.io")
        })
        .await;
    let found = check(&world, &format!("image={NAME}&image=ghcr.io/{NAME}")).await;
    for (image, said) in found.iter().zip(["deny", "not configured"]) {
        assert_eq!(image["complete"], true, "all of it is here");
        let reason = image["reason"].as_str().expect("a reason");
        assert!(reason.contains(said), "{reason}");
    }
    world.finish().await;
}
