//! What every client does: pull all images cold, pull them again from the cache, and once more with the upstream
//! gone and roadstead started anew on what it had stored, each time with an empty store of its own. In between a tag
//! moves, and at the end both of its revisions are pulled as of their time, from what is left.

use std::time::Instant;

use super::images::{Image, Library, Platform};
use super::moving::{Moving, outlive, this_second};
use super::product::Roadstead;
use super::scene::Scene;
use super::upstream::{Request, Upstream};

/// A client with a store of its own.
pub(crate) trait Client {
    /// Pulls `image` through roadstead and fails the test unless the client then holds exactly that image.
    fn pull(&mut self, image: &Image);

    /// Forgets everything that was ever pulled.
    fn wipe(&mut self);

    /// Runs `image`, which was pulled, and gives what it prints, or reads that from the unpacked files; `None` when
    /// the client unpacks nothing.
    fn says(&mut self, image: &Image) -> Option<String>;

    /// True when the client fetches the images of other platforms too.
    fn wants_every_platform(&self) -> bool {
        false
    }

    /// Pulls `name`, which begins with roadstead's own address and for which no mirror is set, over plain HTTP, and fails the test unless
    /// the client then holds exactly `image`.
    fn pull_by_name(&mut self, name: &str, image: &Image);

    /// Ends whatever the client runs.
    fn finish(self);
}

/// The whole journey of one client; `start` brings it up beside the running roadstead.
pub(crate) fn cold_warm_and_cut_off<'a, C: Client + 'a>(
    scene: &'a Scene,
    start: impl FnOnce(&'a Scene, &Roadstead<'_>) -> C,
) {
    let library = Library::shared();
    let mut upstream = Upstream::start(scene, &library);
    let mut moving = Moving::start(scene);
    let mut product = Roadstead::start(scene, &upstream, Some(&moving));
    let mut client = start(scene, &product);
    let images = library.images();

    pull_all(&mut client, images, "cold");
    let every_platform = client.wants_every_platform();
    let cold = upstream.requests(|requests| {
        let mut wanted = images.iter().flat_map(|image| objects(image, every_platform));
        wanted.all(|object| object.fetches(requests) > 0)
    });
    assert_fetched_once(images, &cold, every_platform);
    let first = moving.push("before");
    let now = format!("{}/{}", product.address(), first.reference());
    client.pull_by_name(&now, &first);
    let then = this_second();

    client.wipe();
    pull_all(&mut client, images, "warm");
    let warm = upstream.requests(|_| true);
    assert_no_content(&warm[cold.len()..]);
    assert_tells_of(&product, &["miss", "hit", "revalidated"]);
    outlive(&then);
    let second = moving.push("after");
    assert_ne!(first.digest, second.digest, "the tag moves");
    client.pull_by_name(&now, &second);

    client.wipe();
    upstream.cut_off();
    moving.cut_off();
    product.restart();
    pull_all(&mut client, images, "cut off");
    for image in images {
        if let Some(said) = client.says(image) {
            assert_eq!(said.trim(), image.says, "what {} says", image.reference());
        }
    }
    assert_tells_of(&product, &["hit", "stale"]);
    client.wipe();
    let as_of = |second: &str, image: &Image| {
        format!("{}/asof-{second}/{}", product.address(), image.reference())
    };
    client.pull_by_name(&as_of(&then, &first), &first);
    let today = this_second();
    client.pull_by_name(&as_of(&today, &second), &second);
    // An index and a docker manifest, by names of the past; the large one would tell nothing more.
    for image in &images[..2] {
        client.pull_by_name(&as_of(&today, image), image);
    }
    client.finish();
    product.finish();
}

/// The metrics know each of these outcomes.
fn assert_tells_of(product: &Roadstead<'_>, outcomes: &[&str]) {
    for outcome in outcomes {
        assert!(product.requests_with(outcome) > 0, "the metrics tell of a {outcome}");
    }
}

/// Pulls every image.
fn pull_all(client: &mut impl Client, images: &[Image], phase: &str) {
    for image in images {
        let started = Instant::now();
        client.pull(image);
        eprintln!("{phase}: {} in {:?}", image.reference(), started.elapsed());
    }
}

/// An object of an image: what it is, and the ends of the paths that name it.
struct Object {
    what: String,
    paths: Vec<String>,
}

impl Object {
    fn new(image: &Image, kind: &str, names: &[&str]) -> Self {
        let path = |name: &&str| match kind {
            // A blob may be asked for through any repository that holds it.
            "blobs" => format!("/blobs/{name}"),
            _ => format!("/{}/{kind}/{name}", image.repository),
        };
        let paths = names.iter().map(path).collect();
        Self { what: format!("{kind}/{} of {}", names[0], image.reference()), paths }
    }

    /// How often it was fetched.
    fn fetches(&self, requests: &[Request]) -> usize {
        let got = |request: &&Request| self.paths.iter().any(|path| request.got(path));
        requests.iter().filter(got).count()
    }
}

/// The objects of an image that a client needs.
fn objects(image: &Image, every_platform: bool) -> Vec<Object> {
    let mut objects = vec![Object::new(image, "manifests", &[image.tag, &image.digest])];
    let foreign = image.foreign.as_ref().filter(|_| every_platform);
    for platform in [Some(&image.native), foreign].into_iter().flatten() {
        let Platform { manifest, config, layers } = platform;
        if *manifest != image.digest {
            objects.push(Object::new(image, "manifests", &[manifest]));
        }
        let blobs = layers.iter().chain([config]);
        objects.extend(blobs.map(|blob| Object::new(image, "blobs", &[blob])));
    }
    objects
}

/// A cold pull asks upstream for each object once, whatever the client asked of roadstead, and for nothing that
/// nobody wanted.
fn assert_fetched_once(images: &[Image], requests: &[Request], every_platform: bool) {
    let wanted = images.iter().flat_map(|image| objects(image, every_platform));
    for object in wanted {
        let fetches = object.fetches(requests);
        assert_eq!(fetches, 1, "{} is fetched once: {requests:#?}", object.what);
    }
    for image in images.iter().filter(|_| !every_platform) {
        if let Some(foreign) = &image.foreign {
            let other = Object::new(image, "manifests", &[&foreign.manifest]);
            assert_eq!(other.fetches(requests), 0, "nobody wants {}: {requests:#?}", other.what);
        }
    }
}

/// A warm pull may ask about tags (HEAD) and nothing else.
fn assert_no_content(requests: &[Request]) {
    let content = requests.iter().filter(|request| {
        request.path.contains("/blobs/")
            || (request.method == "GET" && request.path.contains("/manifests/"))
    });
    let content: Vec<_> = content.collect();
    assert!(content.is_empty(), "a warm pull fetches nothing: {content:#?}");
}
