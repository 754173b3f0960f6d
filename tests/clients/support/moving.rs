//! An image whose tag moves, in a small registry of the test's own: what was pulled before is what "as of" has to give.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::images::{Image, push_revision};
use super::scene::Scene;
use super::upstream::Upstream;

/// How long to wait between two looks at the clock.
const LOOK: Duration = Duration::from_millis(20);

/// The registry of the moving image.
pub(crate) struct Moving {
    registry: Upstream,
}

impl Moving {
    /// The name by which roadstead knows it.
    pub(crate) const REGISTRY: &str = "ghcr.io";

    /// The registry, with nothing in it.
    pub(crate) fn start(scene: &Scene) -> Self {
        let home = scene.path("moving");
        let storage = home.join("registry");
        fs::create_dir_all(&storage).expect("the scene is writable");
        Self { registry: Upstream::writable(&home, &storage) }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.registry.address()
    }

    /// Makes the tag point at a new image that says so.
    pub(crate) fn push(&self, says: &str) -> Image {
        push_revision(self.registry.address(), Self::REGISTRY, says)
    }

    /// Kills it.
    pub(crate) fn cut_off(&mut self) {
        self.registry.cut_off();
    }
}

/// The second that it is now, in the form of names of the past.
pub(crate) fn this_second() -> String {
    jiff::Timestamp::now().strftime("%Y%m%dt%H%M%Sz").to_string()
}

/// Returns when `second` is over: a named second lasts until its end.
#[expect(clippy::disallowed_methods, reason = "the event is that time passes")]
pub(crate) fn outlive(second: &str) {
    while this_second() == second {
        thread::sleep(LOOK);
    }
}
