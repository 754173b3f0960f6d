//! Named sets of images: recorded or imported, to be listed, checked, pinned and exported.

use super::error::{Error, Reason};
use super::model::{MemberInfo, SetInfo};
use super::place::{NoPlace, Place, short_name};
use super::service::Carry;
use crate::metadata::{SetKind, SetMember, SetRecord};
use crate::oci::SetName;
use crate::registry::desk::{LIST_LIMIT_MAX, Listed};

/// Members of a set that are read at a time.
const MEMBERS_PAGE: u32 = 1000;

impl Carry {
    /// All of them, by name.
    pub async fn sets(&self) -> Result<Vec<SetInfo>, Error> {
        let sets = self.content().metadata().sets().await?;
        Ok(sets.into_iter().map(info).collect())
    }

    /// The images of a set, by name.
    pub async fn members(
        &self,
        set: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Listed<MemberInfo>, Error> {
        let set = self.set_named(set).await?;
        let after = after.map(place_in_list).transpose()?;
        let limit = limit.clamp(1, LIST_LIMIT_MAX);
        let metadata = self.content().metadata();
        // One more tells whether there is another page.
        let mut found = metadata.set_members(set.id, after.as_ref(), limit + 1).await?;
        let more = found.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            found.pop();
        }
        let next = found.last().filter(|_| more).map(|last| Place::of(last).to_string());
        let items = found.iter().map(|member| MemberInfo {
            image: short_name(&member.repository, member.tag.as_ref(), &member.digest),
            digest: member.digest.to_string(),
            at: member.at,
        });
        Ok(Listed { items: items.collect(), next })
    }

    /// Keeps the content of a set whatever limits say, or no longer.
    pub async fn pin_set(&self, set: &str, pinned: bool) -> Result<SetInfo, Error> {
        let SetRecord { id, name, .. } = self.set_named(set).await?;
        self.content().metadata().change_set(id, None, Some(pinned)).await?;
        tracing::info!(set = %name, pinned, "a set was pinned or unpinned");
        Ok(info(self.set_named(set).await?))
    }

    /// Forgets a set; its content is then kept by nothing that the set kept it by. One that is being recorded ends.
    pub async fn remove_set(&self, set: &str) -> Result<bool, Error> {
        let SetRecord { id, name, .. } = self.set_named(set).await?;
        let carry = self.clone();
        // Not half of it: a recording without its row would run on until the program ends.
        self.to_the_end(async move {
            let removed = carry.content().metadata().remove_set(id).await?;
            // What waits for its row waits in vain.
            carry.recorder().end(id);
            tracing::info!(set = %name, "a set was removed");
            Ok(removed)
        })
        .await
    }

    /// The set of a name.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn set_named(&self, name: &str) -> Result<SetRecord, Error> {
        let found = match name.parse() {
            Ok(name) => self.find_set(&name).await?,
            Err(_is_no_name) => None,
        };
        found.ok_or_else(|| {
            let message = format!("there is no set {name:?}; `roadstead set ls` lists them");
            Error::new(Reason::Set, message)
        })
    }

    /// All members of the set of a name: those of a set that is removed meanwhile are less from one page to the next, and no answer.
    pub(super) async fn members_named(&self, name: &str) -> Result<Vec<SetMember>, Error> {
        let set = self.set_named(name).await?;
        let members = self.members_of(&set).await?;
        if self.set_named(name).await?.id == set.id {
            return Ok(members);
        }
        Err(Error::new(Reason::Set, format!("the set {name} was removed meanwhile")))
    }

    /// All members of a set that nobody removes.
    pub(super) async fn members_of(&self, set: &SetRecord) -> Result<Vec<SetMember>, Error> {
        let mut members: Vec<SetMember> = Vec::new();
        loop {
            let metadata = self.content().metadata();
            let page = metadata.set_members(set.id, members.last(), MEMBERS_PAGE).await?;
            let last = page.len() < usize::try_from(MEMBERS_PAGE).unwrap_or(usize::MAX);
            members.extend(page);
            if last {
                return Ok(members);
            }
        }
    }

    /// The set of a name, if there is one.
    pub(super) async fn find_set(&self, name: &SetName) -> Result<Option<SetRecord>, Error> {
        let sets = self.content().metadata().sets().await?;
        Ok(sets.into_iter().find(|set| set.name == *name))
    }
}

pub(super) fn info(set: SetRecord) -> SetInfo {
    let SetRecord { id: _, name, kind, since, until, kept, members, detail } = set;
    let kind = match kind {
        SetKind::Record => "record",
        SetKind::Import => "import",
    };
    let (name, kind) = (name.to_string(), kind.to_owned());
    SetInfo { name, kind, since, until, pinned: kept, images: members, detail }
}

/// The member behind which a page begins.
fn place_in_list(text: &str) -> Result<SetMember, NoPlace> {
    let Place { repository, tag, digest } = text.parse()?;
    let digest = digest.ok_or(NoPlace)?;
    Ok(SetMember { repository, digest, tag, at: crate::clock::Timestamp::default() })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::super::metrics::Metrics;
    use super::super::service::Parts;
    use super::super::settings::Settings;
    use super::*;
    use crate::clock::{Clock, ManualClock, Timestamp};
    use crate::metadata::{Proof, RepositoryKey, RevisionCommit};
    use crate::oci::{Digest, MediaType};
    use crate::registry::{Registry, desk};

    struct Woken(Notify);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.notify_one();
        }
    }

    async fn set_of_one(carry: &Carry) -> i64 {
        let rows = carry.content().metadata();
        let repository = RepositoryKey {
            upstream: "docker.io".parse().unwrap(),
            name: "team/app".parse().unwrap(),
        };
        let (digest, at) = (Digest::sha256_of(b"x"), Timestamp::from_millis(5_000));
        let revision = RevisionCommit {
            repository: repository.clone(),
            digest,
            media_type: MediaType::OCI_MANIFEST.parse().unwrap(),
            size: 1,
            children: Vec::new(),
            subject: None,
            artifact_type: None,
            proof: Proof { proved: at, credential: None },
            at,
            tag: None,
        };
        rows.commit_revision(revision).await.unwrap();
        let set = rows.add_set("s".parse().unwrap(), SetKind::Import, String::new());
        let id = set.await.unwrap().unwrap().id;
        let member = SetMember { repository, digest, tag: None, at };
        assert!(rows.add_members(id, vec![member]).await.unwrap().is_empty());
        id
    }

    #[tokio::test]
    async fn a_set_that_goes_while_it_is_read_is_not_taken_for_a_smaller_one() {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let clock: Arc<dyn Clock> =
            Arc::new(ManualClock::starting_at(Timestamp::from_millis(5_000)));
        let registry = Arc::new(Registry::serving_nothing());
        let desk = desk::Desk::new(registry, Arc::clone(&clock), desk::Settings::default());
        let (settings, metrics) = (Settings::default(), Metrics::default());
        let carry = Carry::new(Parts { desk, clock, tasks, shutdown, settings, metrics });
        let mut refused = 0;
        for polls in 1.. {
            let id = set_of_one(&carry).await;
            let woken = Arc::new(Woken(Notify::new()));
            let waker = Waker::from(Arc::clone(&woken));
            let mut reading = pin!(carry.members_named("s"));
            let mut poll = |_: &mut Context<'_>| {
                Poll::Ready(reading.as_mut().poll(&mut Context::from_waker(&waker)))
            };
            let mut early = Poll::Pending;
            for _poll in 0..polls {
                early = poll_fn(&mut poll).await;
                if early.is_ready() {
                    break;
                }
                woken.0.notified().await;
            }
            carry.content().metadata().remove_set(id).await.unwrap();
            let is_early = early.is_ready();
            let read = match early {
                Poll::Ready(read) => read,
                Poll::Pending => reading.await,
            };
            match read {
                Ok(members) => assert_eq!(members.len(), 1, "after {polls} polls"),
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.reason, Reason::Set);
                }
            }
            if is_early {
                break;
            }
        }
        assert!(refused > 0);
    }
}
