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

    /// All members of a set, as export, check and the end of a recording want them.
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
