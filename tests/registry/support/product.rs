//! The only file of the suite that knows the product's Rust surface: load a configuration, start, reload, stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;

use roadstead::app::{App, Config, Overrides, Running, Sources};
pub use roadstead::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
pub use roadstead::blobs::{Disk, RealDisk};
pub use roadstead::clock::{Clock, ManualClock, Timestamp};
pub use roadstead::metadata::Metadata;
pub use roadstead::metadata::testing::{Fault as RowFault, Plan as RowPlan};
use roadstead::metadata::{RepositoryKey, SetKind, SetMember};
use roadstead::oci::{ByteRange, RangeSpec};
use roadstead::registry::Addressing;

/// Makes a set of revisions under their tags, as a recording does: the full name of a repository, a tag, a digest.
pub async fn set_of(metadata: &Metadata, name: &str, members: &[(&str, &str, &str)]) {
    let name = name.parse().expect("it is the name of a set");
    let made = metadata.add_set(name, SetKind::Record, String::new()).await;
    let set = made.expect("rows can be written").expect("there is none of that name");
    let members = members.iter().map(|(repository, tag, digest)| {
        let (upstream, repository) = repository.split_once('/').expect("a full name");
        SetMember {
            repository: RepositoryKey {
                upstream: upstream.parse().expect("a registry"),
                name: repository.parse().expect("a repository"),
            },
            digest: digest.parse().expect("a digest"),
            tag: Some(tag.parse().expect("a tag")),
            at: set.since,
        }
    });
    metadata.add_members(set.id, members.collect()).await.expect("rows can be written");
}

/// What one request asks for, without HTTP around it.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A tag or a digest.
    Manifest(String),
    Blob(String),
    /// A part of a blob.
    Part(String, std::ops::Range<u64>),
}

/// A running product.
pub struct Product(Running);

fn debug(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// What the product is told of the environment: only where programs are.
fn load(file: &Path, search_path: Option<&Path>) -> Result<Config, String> {
    let path = search_path.map(|path| ("PATH".to_owned(), path.display().to_string()));
    let sources = Sources {
        file: Some(file.to_owned()),
        environment: path.into_iter().collect(),
        arguments: Overrides::default(),
    };
    Config::load(&sources).map_err(|errors| errors.to_string())
}

impl Product {
    /// Starts with the configuration in this file, a `PATH` and nothing else of an environment, this clock and this disk.
    pub async fn start(
        (file, search_path): (&Path, Option<&Path>),
        clock: &ManualClock,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, String> {
        let started = App::start_on(load(file, search_path)?, Arc::new(clock.clone()), disk).await;
        started.map(Self).map_err(|error| error.to_string())
    }

    pub fn data_address(&self) -> SocketAddr {
        self.0.data_address()
    }

    pub fn observe_address(&self) -> SocketAddr {
        self.0.observe_address()
    }

    /// The admin API's listener, which the configuration must switch on.
    pub fn admin_address(&self) -> SocketAddr {
        self.0.admin_address().expect("the configuration has admin_listen")
    }

    /// The listener of an upstream that has its own.
    pub fn extra_address(&self, upstream: &str) -> SocketAddr {
        let mut all = self.0.extra_addresses().iter();
        let found = all.find(|(_, name)| name.as_str() == upstream);
        found.expect("the configuration gives it a listener").0
    }

    /// What SIGHUP does.
    pub fn reload(&self, (file, search_path): (&Path, Option<&Path>)) -> Result<(), String> {
        match load(file, search_path) {
            Ok(config) => self.0.reload(config).map_err(|error| error.to_string()),
            Err(errors) => {
                self.0.reload_refused();
                Err(errors)
            }
        }
    }

    /// Makes the background look at what is due.
    pub fn wake_upkeep(&self) {
        self.0.wake_upkeep();
    }

    /// Makes the lists of images that are followed due now.
    pub fn wake_lists(&self) {
        self.0.wake_lists();
    }

    /// Asks as the server does for a client, and takes the whole answer; a test may drop it at any poll.
    pub fn ask(
        &self,
        repository: &str,
        asked: Asked,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + use<> {
        let (registry, path) = (Arc::clone(self.0.registry()), repository.to_owned());
        async move {
            let addressing = Addressing { path: &path, ..Addressing::default() };
            let repository = registry.locate(&addressing).map_err(debug)?;
            let (digest, part) = match asked {
                Asked::Manifest(reference) => {
                    let reference = reference.parse().map_err(debug)?;
                    let reply = registry.manifest(&repository, &reference).await;
                    return Ok(reply.map_err(debug)?.value.bytes.to_vec());
                }
                Asked::Blob(digest) => (digest, None),
                Asked::Part(digest, part) => (digest, Some(part)),
            };
            let digest = digest.parse().map_err(debug)?;
            let closed = |part: &std::ops::Range<u64>| RangeSpec::Closed {
                first: part.start,
                last: part.end - 1,
            };
            let asked = part.as_ref().map(closed);
            let asked = asked.as_ref().map(std::slice::from_ref);
            let blob = registry.blob(&repository, &digest, asked).await.map_err(debug)?.value;
            let std::ops::Range { start, end } = part.unwrap_or(0..blob.size);
            let mut frames = blob.body.stream(ByteRange { start, end });
            let mut bytes = Vec::new();
            while let Some(frame) = frames.next().await {
                bytes.extend_from_slice(&frame.map_err(debug)?.read().map_err(debug)?);
            }
            Ok(bytes)
        }
    }

    /// Tasks that are alive.
    pub fn tasks(&self) -> usize {
        self.0.tasks()
    }

    /// The rows.
    pub fn metadata(&self) -> Metadata {
        self.0.content().metadata().clone()
    }

    /// Makes steps of the writer of rows fail.
    pub fn fail_rows(&self, plan: Option<RowPlan>) {
        self.0.content().metadata().fail_writes(plan);
    }

    /// Steps that failed since the last plan was made.
    pub fn failed_rows(&self) -> u64 {
        self.0.content().metadata().failed_writes()
    }

    /// What SIGTERM does; gives the number of tasks that did not end.
    pub async fn stop(self) -> usize {
        self.0.stop().await.tasks_left
    }
}
