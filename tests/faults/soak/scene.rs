//! What the numbers of a plan stand for: three upstreams, their repositories, images and tags.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::support::content::{Blob, Data, Image};
use crate::support::fake::{Delivery, Fake, LocationForm, Mode, Switches};
use crate::support::world::{World, WorldBuilder};

use super::plan::{IMAGES, REPOSITORIES, TAGS, UPSTREAMS};

/// How clients address the upstreams.
const NAMES: [&str; UPSTREAMS] = ["docker.io", "two.test", "private.test"];
const TAG_NAMES: [&str; TAGS] = ["latest", "stable", "v1"];
const USER: &str = "robot";
const PASSWORD: &str = "geheim-in-the-soak";
/// Limits that make a hanging upstream cost little, and a busy machine nothing.
const LIMITS: &str = "limits.attempts = 2\nlimits.backoff_first = \"5ms\"\nlimits.backoff_max = \"20ms\"\n\
    limits.headers = \"1500ms\"\nlimits.answer = \"5s\"\nlimits.exchange = \"6s\"\nlimits.idle_body = \"1s\"\n\
    limits.token = \"1500ms\"\nretry_after_failure = \"0s\"\nabsent_for = \"0s\"\nwait = \"8s\"\nwait_recent = \"8s\"\n";

pub(super) struct Scene {
    pub(super) fakes: Vec<Fake>,
    pub(super) repositories: Vec<Repository>,
}

pub(super) struct Repository {
    pub(super) upstream: usize,
    pub(super) name: String,
    pub(super) images: Vec<Image>,
}

impl Repository {
    fn new(number: usize) -> Self {
        let name = format!("team/app-{number}");
        let mut own = Self { upstream: number % UPSTREAMS, name, images: Vec::new() };
        own.build();
        own
    }

    /// Makes the images of one more build; gives their numbers.
    pub(super) fn build(&mut self) -> Range<usize> {
        let first = self.images.len();
        let build = first / IMAGES;
        let name = &self.name;
        let made = (0..IMAGES).map(|image| image_of(&format!("{name} build {build}"), image));
        self.images.extend(made);
        first..self.images.len()
    }

    /// The number of an image that a plan names by its place in a build and how many builds ago that was.
    pub(super) fn pick(&self, image: usize) -> usize {
        let newest = self.images.len() / IMAGES - 1;
        newest.saturating_sub(image / IMAGES) * IMAGES + image % IMAGES
    }

    /// The image at which a tag points when everything is as it should be; the last of each build has no tag.
    pub(super) fn tagged(&self, tag: usize) -> &Image {
        &self.images[self.pick(tag)]
    }

    /// The name as clients say it.
    pub(super) fn asked(&self) -> String {
        match self.upstream {
            0 => self.name.clone(),
            upstream => format!("{}/{}", NAMES[upstream], self.name),
        }
    }

    /// The bytes under the digest of a blob.
    pub(super) fn blob(&self, digest: &str) -> Option<&Data> {
        let blobs = self.images.iter().rev().flat_map(Image::all_blobs);
        blobs.filter(|blob| blob.digest == digest).map(|blob| &blob.data).next()
    }

    pub(super) fn image_of(&self, digest: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.digest == digest)
    }
}

/// Everything below an image, by digest.
pub(super) fn content_of(image: &Image) -> Vec<(String, Data)> {
    let manifests = image.manifests();
    let manifests = manifests.iter().map(|one| (one.digest.clone(), one.bytes.clone().into()));
    let blobs = image.all_blobs();
    let blobs = blobs.iter().map(|blob| (blob.digest.clone(), blob.data.clone()));
    manifests.chain(blobs).collect()
}

fn whole(seed: &str, size: usize) -> Blob {
    Blob::layer(seed, size)
}

/// Four kinds of images; the first of every repository shares its base with those of all others.
fn image_of(build: &str, image: usize) -> Image {
    let seed = format!("soak {build} {image}");
    match image {
        0 => Image::build(&seed)
            .layer(whole("base of all", 200_000))
            .layers(2)
            .layer(whole(&seed, 300_000))
            .finish(),
        1 => Image::index(&seed),
        2 => Image::build(&seed)
            .layer(whole(&format!("{seed} -1"), 65_535))
            .layer(whole(&format!("{seed} 0"), 65_536))
            .layer(whole(&format!("{seed} +1"), 65_537))
            .layer(whole(&seed, 700_000))
            .finish(),
        _ => {
            let one = Image::build(&seed).layer(Blob::empty()).layer(whole(&seed, 150_000));
            let two = Image::build(&format!("{seed} arm64")).docker().layers(3);
            Image::index_with(vec![one.finish(), two.finish()])
        }
    }
}

pub(super) fn tag_name(tag: usize) -> &'static str {
    TAG_NAMES[tag]
}

impl Scene {
    /// The upstreams with everything pushed: one plain, one with tokens and redirects, one that is private.
    pub(super) async fn new() -> Self {
        let mut fakes = Vec::new();
        for upstream in 0..UPSTREAMS {
            let fake = Fake::start().await;
            if upstream > 0 {
                fake.auth(|auth| auth.mode = Mode::Bearer);
                let form = LocationForm::Absolute;
                fake.switch(|switch: &mut Switches| {
                    switch.delivery = Delivery::Redirect { status: 307, form };
                });
            }
            fakes.push(fake);
        }
        fakes[2].auth(|auth| auth.users = vec![(USER.to_owned(), PASSWORD.to_owned())]);
        let scene = Self { fakes, repositories: (0..REPOSITORIES).map(Repository::new).collect() };
        scene.push_all();
        scene
    }

    pub(super) fn fake(&self, repository: usize) -> &Fake {
        &self.fakes[self.repositories[repository].upstream]
    }

    /// Everything there ever was, and the tags at the newest build.
    pub(super) fn push_all(&self) {
        for (number, repository) in self.repositories.iter().enumerate() {
            for image in &repository.images {
                self.fake(number).push_untagged(&repository.name, image);
            }
            for tag in 0..TAGS {
                let digest = &repository.tagged(tag).digest;
                self.fake(number).tag(&repository.name, tag_name(tag), digest);
            }
            if repository.upstream == 2 {
                self.fake(number).private(&repository.name, &[USER]);
            }
        }
    }

    /// Deletes what only this image holds, given the images that stay.
    pub(super) fn delete(&self, repository: usize, image: usize, others: &[usize]) {
        let (fake, own) = (self.fake(repository), &self.repositories[repository]);
        let kept: BTreeSet<String> = others
            .iter()
            .flat_map(|other| content_of(&own.images[*other]))
            .map(|(digest, _)| digest)
            .collect();
        for one in own.images[image].manifests() {
            fake.delete_manifest(&own.name, &one.digest);
        }
        for blob in own.images[image].all_blobs() {
            if !kept.contains(&blob.digest) {
                fake.delete_blob(&own.name, &blob.digest);
            }
        }
    }

    pub(super) fn world(&self) -> WorldBuilder {
        let private =
            format!("private = \"shared\"\nusername = {USER:?}\npassword = {PASSWORD:?}\n{LIMITS}");
        let settings = [LIMITS, LIMITS, &private];
        let upstreams = NAMES.iter().zip(&self.fakes).zip(settings);
        upstreams.fold(
            World::builder().fresh_for("60s").set("drain", "\"300ms\""),
            |builder, ((name, fake), settings)| builder.upstream_with(name, fake, settings),
        )
    }
}
