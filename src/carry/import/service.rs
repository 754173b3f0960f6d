//! The order to take a bundle in, from its first byte to its last event.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::runtime::Handle;

use super::{commit, feed, intake};
use crate::carry::error::{Error, Reason};
use crate::carry::service::{Carry, Job};
use crate::oci::SetName;

/// The bytes of a bundle as they come.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// How a bundle is to be taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOrder {
    /// The set that the images become, which is pinned. `None`: named after the day.
    pub set: Option<SetName>,
    /// The name of an image that the bundle does not name, as people write it.
    pub name: Option<String>,
    /// Record that anybody may read the repositories, which upstream was asked for otherwise.
    pub public: bool,
}

impl Carry {
    /// Reads the bundle to its end, verifies everything, and takes all of it in or nothing; answers when that is done. Bytes that were
    /// verified are kept for a while when it is cut short, so that the next try does not write them again. Where there is no room it
    /// waits while eviction makes some, and reads nothing meanwhile.
    ///
    /// # Errors
    /// `Busy` while another one is taken in, `Bundle` for a bad bundle with the member that is, `Incomplete` if something is neither in it
    /// nor here, `Room` and `Store` for the disk. Nothing was taken in then.
    pub async fn import(&self, order: ImportOrder, bundle: Incoming) -> Result<Job, Error> {
        let inner = self.inner();
        let Ok(permit) = Arc::clone(&inner.taking_in).try_acquire_owned() else {
            return Err(Error::new(
                Reason::Busy,
                "something else is being taken in just now; try again when it is done",
            ));
        };
        let name = order.name.as_deref().map(|name| inner.desk.image(name)).transpose()?;
        let (feed, source) = feed::pair();
        let (content, handle) = (self.content().clone(), Handle::current());
        // Whoever goes while it waits for room ends the wait.
        let gone = inner.shutdown.child_token();
        let _goes = gone.clone().drop_guard();
        let gathering = inner.tasks.spawn_blocking(move || {
            let gathered = intake::gather(source, &content, (&handle, &gone));
            (gathered, permit)
        });
        let filling = async {
            tokio::select! {
                filled = feed.fill(bundle) => filled,
                () = inner.shutdown.cancelled() => Err(io::Error::other("the program stops")),
            }
        };
        let (gathered, filled) = tokio::join!(gathering, filling);
        let (gathered, permit) =
            gathered.map_err(|error| Error::new(Reason::Store, error.to_string()))?;
        // What broke the stream says more than that it broke.
        filled.map_err(|error| intake::stream(&error))?;
        let taken = commit::commit(self, &order, name.as_ref(), gathered?).await?;
        drop(permit);
        Ok(taken.tell(self))
    }
}
