//! Recording: everything that clients pull between a start and a stop becomes a set, closed over references.
//!
//! What must hold: a recording goes on over restarts until it is stopped, and whoever asked for either may go at any moment: there is never
//! a row that nobody fills, nor notes without a row. How the set is closed stands in `closing.rs`.

use ipnet::IpNet;

use super::closing::Closing;
use super::error::{Error, Reason};
use super::filter::Filter;
use super::model::SetInfo;
use super::recorder::{Left, RECORDINGS_MAX};
use super::service::{Carry, Job};
use super::sets::info;
use crate::metadata::{SET_DETAIL_BYTES_MAX, SetKind, SetRecord};
use crate::oci::{PlatformPattern, SetName};
use crate::story;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOrder {
    pub name: SetName,
    /// Only clients of these networks; empty: all.
    pub clients: Vec<IpNet>,
    /// Only these upstreams, as people name them; empty: all.
    pub upstreams: Vec<String>,
}

impl Carry {
    /// Begins a recording, which goes on over restarts until it is stopped.
    ///
    /// # Errors
    /// There is a set of that name, too many recordings run, a registry is not configured here, the filter is too long, or the rows cannot
    /// be written.
    pub async fn record(&self, order: RecordOrder) -> Result<SetInfo, Error> {
        let named = |text: &String| match self.inner().desk.registry_named(text)? {
            (name, true) => Ok(name),
            (name, false) => {
                let message = format!("{name} is not configured, so nothing is pulled of it here");
                Err(Error::new(Reason::UnknownRegistry, message))
            }
        };
        let upstreams = order.upstreams.iter().map(named).collect::<Result<_, Error>>()?;
        let filter = Filter { clients: order.clients, upstreams, ..Filter::default() };
        if filter.to_string().len() > SET_DETAIL_BYTES_MAX {
            let message = format!(
                "clients and registries of a recording may take {SET_DETAIL_BYTES_MAX} bytes, written one after the other; name larger networks, or all registries"
            );
            return Err(Error::new(Reason::Value, message));
        }
        let (carry, name) = (self.clone(), order.name);
        self.to_the_end(async move { carry.begin_record(name, filter).await }).await
    }

    async fn begin_record(&self, name: SetName, filter: Filter) -> Result<SetInfo, Error> {
        let metadata = self.content().metadata();
        let full = || {
            let message =
                format!("{RECORDINGS_MAX} recordings run already; stop one of them first");
            Error::new(Reason::Busy, message)
        };
        if self.recorder().count() >= RECORDINGS_MAX {
            return Err(full());
        }
        let added = metadata.add_set(name.clone(), SetKind::Record, filter.to_string()).await?;
        let Some(set) = added else {
            return Err(match self.find_set(&name).await? {
                Some(SetRecord { kind: SetKind::Record, until: None, .. }) => Error::new(
                    Reason::SetExists,
                    format!(
                        "{name} is being recorded already; `roadstead record stop {name}` ends it"
                    ),
                ),
                Some(_) => Error::new(
                    Reason::SetExists,
                    format!(
                        "there is a set named {name}; take another name, or forget that one with `roadstead set rm {name}`"
                    ),
                ),
                None => Error::new(
                    Reason::TooManySets,
                    "there are too many sets; forget some with `roadstead set rm`",
                ),
            });
        };
        if !self.recorder().begin(set.id, filter) {
            metadata.remove_set(set.id).await?;
            return Err(full());
        }
        tracing::info!(name = %set.name, filter = %set.detail, "recording what clients pull");
        Ok(info(set))
    }

    /// Goes on with the recordings that ran when the program ended. To be called before clients are served.
    pub async fn resume(&self) {
        let sets = match self.content().metadata().sets().await {
            Ok(sets) => sets,
            Err(error) => {
                tracing::error!(?error, "recordings cannot go on, because the sets cannot be read");
                return;
            }
        };
        for set in sets {
            if set.kind != SetKind::Record || set.until.is_some() {
                continue;
            }
            match set.detail.parse() {
                Ok(filter) if self.recorder().begin(set.id, Filter::clone(&filter)) => {
                    tracing::info!(name = %set.name, filter = %set.detail, "recording goes on");
                }
                Ok(_) | Err(_) => tracing::error!(
                    name = %set.name, filter = %set.detail,
                    "a recording cannot go on: it was begun by another version, or there are too many"
                ),
            }
        }
    }

    /// Ends a recording and fetches what is missing, so that the set is complete for the platforms: those that are named, else those that
    /// clients asked for, else this machine's. `fetch`: without it nothing is asked of an upstream, and the story tells what is missing.
    /// A recording that has ended is closed once more, for what was missing then.
    ///
    /// # Errors
    /// There is no recording of that name, or the rows cannot be used; then it goes on.
    pub async fn stop_record(
        &self,
        name: &SetName,
        platforms: Vec<PlatformPattern>,
        fetch: bool,
    ) -> Result<Job, Error> {
        let (carry, wanted) = (self.clone(), name.clone());
        self.to_the_end(async move {
            let ended = carry.end_record(&wanted).await?;
            let (story, job) = story::begin(carry.inner().shutdown.child_token());
            let closing = Closing::new(carry.clone(), ended, platforms, fetch, story);
            carry.inner().tasks.spawn(closing.run());
            Ok(job)
        })
        .await
    }

    /// Notes nothing more, and tells what has no row.
    async fn end_record(&self, name: &SetName) -> Result<(SetRecord, Left), Error> {
        let set = self.set_named(name.as_str()).await?;
        if set.kind != SetKind::Record {
            return Err(Error::new(Reason::Set, format!("{name} is no recording but an import")));
        }
        let metadata = self.content().metadata();
        if set.until.is_none() {
            let now = self.inner().clock.now();
            metadata.change_set(set.id, Some(now), None).await?;
        }
        let mut left = self.recorder().end(set.id);
        // Whoever writes behind the answers may be at it; a row that is there already changes nothing.
        match metadata.add_members(set.id, left.members.clone()).await {
            Ok(unknown) => left.members = unknown,
            Err(error) => tracing::warn!(?error, "the last of a recording cannot be written"),
        }
        tracing::info!(%name, "recording ended");
        Ok((set, left))
    }

    /// Does something that must not stop half-way because whoever asked for it went away.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let stopping = |_shutdown| Err(Error::new(Reason::Store, "the program is stopping"));
        self.inner().tasks.spawn(work).await.unwrap_or_else(stopping)
    }
}
