//! What every client does: pull all images cold, pull them again from the cache, and once more with the upstream
//! gone and roadstead started anew on what it had stored, each time with an empty store of its own.

use std::net::SocketAddr;
use std::time::Instant;

use super::images::{Image, Library, Platform};
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

    /// Pulls `image` as it was at `moment` (`20261101t120000z`) by the name with which roadstead serves the past, and fails the test
    /// unless it is exactly that image. Only for clients that are told no mirrors for it.
    fn pull_as_of(&mut self, _image: &Image, _roadstead: SocketAddr, _moment: &str) {}

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
    let mut product = Roadstead::start(scene, &upstream);
    let mut client = start(scene, &product);
    let images = library.images();

    pull_all(&mut client, images, "cold");
    let every_platform = client.wants_every_platform();
    let cold = upstream.requests(|requests| {
        let mut wanted = images.iter().flat_map(|image| objects(image, every_platform));
        wanted.all(|object| object.fetches(requests) > 0)
    });
    assert_fetched_once(images, &cold, every_platform);

    client.wipe();
    pull_all(&mut client, images, "warm");
    let warm = upstream.requests(|_| true);
    assert_no_content(&warm[cold.len()..]);
    assert_tells_of(&product, &["miss", "hit", "revalidated"]);

    client.wipe();
    upstream.cut_off();
    product.restart();
    pull_all(&mut client, images, "cut off");
    for image in images {
        if let Some(said) = client.says(image) {
            assert_eq!(said.trim(), image.says, "what {} says", image.reference());
        }
    }
    assert_tells_of(&product, &["hit", "stale"]);
    client.wipe();
    let moment = jiff::Timestamp::now().strftime("%Y%m%dt%H%M%Sz").to_string();
    for image in images {
        client.pull_as_of(image, product.address(), &moment);
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
