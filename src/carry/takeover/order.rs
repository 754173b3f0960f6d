//! What is ordered, and what is refused before anything is done.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::REPOSITORIES;
use super::work::Takeover;
use crate::carry::error::{Error, Reason};
use crate::carry::service::{Carry, Job};
use crate::content::Folder;
use crate::metadata::Within;
use crate::oci::{RegistryName, SetName};
use crate::registry::desk::Extent;
use crate::story;

/// What is to be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeoverOrder {
    /// The folder that `rootdirectory` names, with `docker/registry/v2` in it.
    pub folder: PathBuf,
    /// The registry that it was a cache of, or whose names its own repositories shall have; as people name it.
    pub upstream: String,
    /// The pinned set that the images become; `None`: `takeover-` and the registry's name.
    pub set: Option<SetName>,
    /// Copy even where a hard link is possible.
    pub copy: bool,
    /// Record that anybody may read the repositories, which upstream was asked for otherwise.
    pub public: bool,
}

impl Carry {
    /// Reads the folder, verifies each file against its digest, and takes in what is sound; the folder is not changed. Damaged files are
    /// left out and named, with what needs them. Dropping the job ends the work; what was taken in by then stays, and the next takeover
    /// of the folder goes on from there.
    ///
    /// # Errors
    /// The registry is not configured, the folder is no registry's or cannot be read, or something else is being taken in.
    pub async fn takeover(&self, order: TakeoverOrder) -> Result<Job, Error> {
        let upstream = self.configured(&order.upstream).await?;
        let permit = Arc::clone(&self.inner().taking_in).try_acquire_owned().map_err(|_busy| {
            Error::new(Reason::Busy, "something is being taken in already; one at a time")
        })?;
        let folder = Arc::new(self.content().folder(order.folder.clone()));
        let looked = {
            let folder = Arc::clone(&folder);
            self.inner().tasks.spawn_blocking(move || look(&folder)).await
        };
        looked.map_err(|_panic| refused(&order.folder, "it could not be looked at"))??;
        let set = order.set.clone().map_or_else(|| set_of(&upstream), Ok)?;
        let (story, job) = story::begin(self.inner().shutdown.child_token());
        let takeover = Takeover::new(self.clone(), (order, upstream, set), folder, story);
        self.inner().tasks.spawn(async move {
            takeover.run().await;
            drop(permit);
        });
        Ok(job)
    }

    /// The registry that people name so, which must be configured: what is taken over is served as its content.
    async fn configured(&self, text: &str) -> Result<RegistryName, Error> {
        let desk = &self.inner().desk;
        let Within::Upstream(name) = desk.known_within(text, Some(Extent::Registry)).await? else {
            return Err(Error::new(Reason::Image, format!("{text:?} is no registry")));
        };
        let some_image = desk.image(&format!("{name}/a/b"))?;
        if some_image.proxied().is_some() {
            return Ok(name);
        }
        let text = name.as_str();
        let message = format!(
            "{text:?} is no registry that is configured here; add [upstream.{text:?}] to the configuration first"
        );
        Err(Error::new(Reason::UnknownRegistry, message))
    }
}

/// Is this a registry's folder?
fn look(folder: &Folder) -> Result<(), Error> {
    let Err(error) = folder.entries(Path::new(REPOSITORIES)) else {
        return Ok(());
    };
    let why = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            format!("there is no {REPOSITORIES} in it")
        }
        io::ErrorKind::PermissionDenied => {
            return Err(refused(
                folder.root(),
                "it may not be read; run roadstead as a user who may, or give this one the right to",
            ));
        }
        _ => format!("{REPOSITORIES} in it cannot be read ({error})"),
    };
    let message = format!(
        "{why}; want the folder that `rootdirectory` of the registry's configuration names, often /var/lib/registry"
    );
    Err(refused(folder.root(), &message))
}

fn refused(folder: &Path, why: &str) -> Error {
    let message = format!("{} cannot be taken over: {why}", folder.display());
    Error::new(Reason::Bundle, message)
}

/// The set's name if none is said.
fn set_of(upstream: &RegistryName) -> Result<SetName, Error> {
    // A port's colon stands in no name of a set.
    let text = format!("takeover-{}", upstream.as_str().replace(|mark: char| !is_plain(mark), "-"));
    text.parse().map_err(|error| {
        Error::new(
            Reason::Value,
            format!("{text:?} cannot name a set: {error}; say which with --set"),
        )
    })
}

fn is_plain(mark: char) -> bool {
    mark.is_ascii_alphanumeric() || "_.-".contains(mark)
}
