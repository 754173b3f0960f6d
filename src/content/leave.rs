//! How content leaves: state first, bytes second, row last; under the digest's lock, and never while somebody reads it.

use super::error::Error;
use super::lock::Locked;
use super::store::Content;
use crate::clock::Timestamp;
use crate::metadata::{InUse, Taken, Why};
use crate::oci::{Digest, RegistryName};

/// What was true when somebody decided that content may go; if it is not true any more, the content stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Its place in the queue of what is unused ([`crate::metadata::Idle::since`]).
    pub since: Timestamp,
    /// [`crate::metadata::Rules::epoch`] of the rules that were looked at.
    pub rules: u64,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Its bytes are gone, as many as this.
    Gone(u64),
    /// Somebody reads or downloads it, it was used meanwhile, or the rules changed.
    Stays,
    /// It was not here.
    NotHere,
}

/// Bytes of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub free: u64,
    /// What is left to others.
    pub min_free: u64,
}

/// What was refused for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// The largest size, with what was promised to others by then and not on the disk yet: so much more than [`Room::min_free`] has to be
    /// free.
    pub bytes: u64,
    /// The size of something was not known, or the disk was full although its figures say otherwise: nobody can tell whether that is
    /// enough.
    pub is_a_guess: bool,
}

/// Bytes above which a commit presses.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    all: Option<u64>,
    by_upstream: Vec<(RegistryName, u64)>,
}

impl Content {
    /// Takes the bytes of an object away; what is known of it stays, so that the next pull fetches it again. An error of the disk says
    /// that the file is still there and counts no more; a later walk over the files without a row takes it in again.
    pub async fn evict(&self, digest: &Digest, evidence: Evidence) -> Result<Left, Error> {
        let Evidence { since, rules } = evidence;
        self.let_go(digest, Why::Unused { since, rules }).await
    }

    /// Takes the bytes away on an operator's order, whoever needs them; the row remembers when. Readers read on.
    pub async fn remove(&self, digest: &Digest) -> Result<Left, Error> {
        self.let_go(digest, Why::Ordered).await
    }

    /// Takes away an object that nothing holds, its row included; what it held waits for its end from now on.
    pub async fn collect(&self, digest: &Digest, rules: u64) -> Result<Left, Error> {
        self.let_go(digest, Why::Unheld { rules }).await
    }

    /// Row first, then the file, then what is left of the row. A crash in between leaves a file without a row, or a row of what is not
    /// here; both are looked at again.
    async fn let_go(&self, digest: &Digest, why: Why) -> Result<Left, Error> {
        let (content, digest) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&digest).await;
            let (leases, slots) = (content.leases().clone(), content.slots().clone());
            let in_use =
                InUse::new(move || leases.holds(digest.value()) || slots.is_taken(&digest));
            let taken = content.metadata().take(&digest, why, in_use).await?;
            if taken == Taken::Stays {
                return Ok(Left::Stays);
            }
            if let Err(error) = content.unlink(&locked).await {
                // Nobody ordered it to go: it is served on, and counts, until its file can be removed.
                if matches!((why, taken), (Why::Unused { .. }, Taken::Gone(_))) {
                    content.metadata().regret(&digest).await?;
                }
                return Err(error);
            }
            if matches!(why, Why::Unheld { .. }) {
                content.metadata().forget(&digest).await?;
            }
            drop(locked);
            Ok(match taken {
                Taken::Gone(bytes) => Left::Gone(bytes),
                Taken::Stays | Taken::NotHere => Left::NotHere,
            })
        })
        .await
    }

    /// A file that somebody was about to remove when the process ended.
    pub(super) async fn remove_leftover(&self, digest: &Digest) -> Result<(), Error> {
        let (content, digest) = (self.clone(), *digest);
        self.detached(async move {
            let locked = content.lock(&digest).await;
            // Looked at again, because a download may have been committed since.
            if content.metadata().is_unwanted(&digest).await? {
                tracing::info!(%digest, "a file of content that was removed is taken away");
                content.unlink(&locked).await?;
            }
            drop(locked);
            Ok(())
        })
        .await
    }

    /// The file of a locked digest of which no row says that it is here.
    async fn unlink(&self, locked: &Locked) -> Result<(), Error> {
        let (blobs, digest) = (self.blobs(), *locked.digest());
        self.manifests().invalidate(&digest);
        let there = self.blocking(move || blobs.remove(&digest)).await.inspect_err(|error| {
            tracing::warn!(%digest, %error, "a file could not be removed");
        })?;
        if there {
            self.space().note_removal();
        }
        Ok(())
    }

    /// The file system's figures now; zeros if it does not answer.
    pub fn room(&self) -> Room {
        let (free, min_free) = self.space().figures();
        Room { free, min_free }
    }

    /// Bytes above which a commit presses: of all that is stored, and by upstream.
    pub fn set_marks(&self, all: Option<u64>, by_upstream: Vec<(RegistryName, u64)>) {
        *self.marks() = Marks { all, by_upstream };
    }

    /// A limit that cannot be met: what would be stored passes through instead, all of it or that of some upstreams. Blobs, that is:
    /// manifests are small, and nothing can be served without them.
    pub fn set_closed(&self, all: bool, upstreams: Vec<RegistryName>) {
        self.space().close(all, upstreams);
    }

    /// Something was stored: presses if that came near to a limit.
    pub(super) async fn press_if_above(&self) {
        self.space().press_if_near();
        let marks = self.marks().clone();
        if marks.all.is_none() && marks.by_upstream.is_empty() {
            return;
        }
        let Ok(usage) = self.metadata().usage_by_upstream().await else {
            return;
        };
        let all: u64 = usage.iter().map(|(_, usage)| usage.bytes).sum();
        let bytes_of = |name: &RegistryName| {
            usage
                .iter()
                .find(|(known, _)| known.as_ref() == Some(name))
                .map_or(0, |(_, usage)| usage.bytes)
        };
        let above = marks.all.is_some_and(|mark| all > mark)
            || marks.by_upstream.iter().any(|(name, mark)| bytes_of(name) > *mark);
        if above {
            self.space().press();
        }
    }
}
