//! Collection: what lost the last thing that held it goes after the grace time, bytes first, row last.
//!
//! What must hold: it looks at what changed, never at the store as a whole; what something holds is spared; what cannot go yet is looked at
//! once per pass and stays in the queue. A delete is an order, so being offline keeps nothing here; pins and freezes do.

use std::collections::HashSet;

use super::events::Fate;
use super::evict::Decision;
use super::service::Upkeep;
use super::settings::{STEP_OBJECTS, STEP_WORK, Settings};
use crate::clock::Timestamp;
use crate::content::{Error, HOLDERS_MAX, KeepPolicy, KeepVerdict, Left, verdict};
use crate::metadata::{Doomed, Holder, Holders, Rules};
use crate::oci::Digest;
use tokio::time::Instant;

/// A pass stops looking at what cannot go yet beyond so many objects; the next one begins again.
const STUCK_MAX: usize = 10_000;

/// One pass over what waits for its end.
pub(super) struct Collector<'a> {
    upkeep: &'a Upkeep,
    /// What lost its hold after this waits.
    before: Timestamp,
    /// Tells and takes nothing.
    dry: bool,
    /// Looked at in this pass, and still in the queue.
    seen: HashSet<Digest>,
    /// Of those, what goes after something else that goes; looked at again when something went.
    after_others: Vec<Digest>,
    went: bool,
}

/// What is to be done with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// Something holds it for good.
    Spare(String),
    /// A rule keeps it, which may be taken back.
    Keep(String),
    /// Its time has not come.
    Wait(String),
    /// What needs it goes first.
    After(String),
    Take,
}

impl<'a> Collector<'a> {
    pub(super) fn new(upkeep: &'a Upkeep, settings: &Settings, dry: bool) -> Self {
        let before = upkeep.clock().now().minus(settings.delete_grace);
        Self { upkeep, before, dry, seen: HashSet::new(), after_others: Vec::new(), went: false }
    }

    /// Looks at a few; `None` after the last.
    pub(super) async fn step(&mut self) -> Result<Option<Vec<Decision>>, Error> {
        if self.seen.len() >= STUCK_MAX {
            return Ok(None);
        }
        let rows = self.upkeep.content().metadata();
        let seen = u32::try_from(self.seen.len()).unwrap_or(u32::MAX);
        let page = rows.doomed(self.before, STEP_OBJECTS.saturating_add(seen)).await?;
        let fresh = page.into_iter().filter(|doomed| !self.seen.contains(&doomed.digest));
        let fresh: Vec<Doomed> = fresh.collect();
        if fresh.is_empty() {
            return Ok(self.again().then(Vec::new));
        }
        let (begun, mut decisions) = (Instant::now(), Vec::with_capacity(fresh.len()));
        for doomed in fresh {
            decisions.push(self.one(&doomed).await?);
            if begun.elapsed() >= STEP_WORK {
                break;
            }
        }
        Ok(Some(decisions))
    }

    /// Is there something to look at again, because what it waited for went?
    fn again(&mut self) -> bool {
        let again = self.went && !self.after_others.is_empty();
        self.went = false;
        for digest in self.after_others.drain(..).filter(|_| again) {
            self.seen.remove(&digest);
        }
        again
    }

    async fn one(&mut self, doomed: &Doomed) -> Result<Decision, Error> {
        let content = self.upkeep.content();
        let rules = content.metadata().rules();
        let holders = content.metadata().holders(&doomed.digest, HOLDERS_MAX).await?;
        let now = self.upkeep.clock().now();
        let size = doomed.size.filter(|_| doomed.present).unwrap_or(0);
        let end = end(&doomed.digest, &holders, &rules, self.before, now);
        if self.dry {
            self.seen.insert(doomed.digest);
        }
        let kept = matches!(end, End::Keep(_));
        let (fate, reason) = match end {
            End::Spare(reason) | End::Keep(reason) => {
                let waits = !self.dry && self.retire(doomed, &holders, &rules, now).await? || kept;
                if waits {
                    // It waits on from now, which is in the window again if the clock was set back.
                    self.seen.insert(doomed.digest);
                }
                if !self.dry {
                    content.metadata().spare(&doomed.digest).await?;
                }
                (Fate::Kept, reason)
            }
            End::Wait(reason) => {
                self.seen.insert(doomed.digest);
                (Fate::Waits, reason)
            }
            End::After(reason) => {
                self.seen.insert(doomed.digest);
                self.after_others.push(doomed.digest);
                (Fate::Waits, reason)
            }
            End::Take if self.dry => (Fate::Collected, NOTHING.to_owned()),
            End::Take => self.take(doomed, rules.epoch()).await,
        };
        Ok(Decision { fate, digest: doomed.digest, size, since: doomed.since, reason })
    }

    /// What stays for others' sake leaves the repositories where its grace time is over, unless a pin there keeps it. Does it still wait
    /// in one?
    async fn retire(
        &self,
        doomed: &Doomed,
        holders: &Holders,
        rules: &Rules,
        now: Timestamp,
    ) -> Result<bool, Error> {
        let waiting = holders
            .revisions
            .iter()
            .filter(|holder| holder.revision == doomed.digest && holder.unlinked.is_some());
        let mut waits = false;
        for Holder { repository, revision, unlinked, .. } in waiting {
            let due = unlinked.is_some_and(|unlinked| unlinked < self.before);
            let pinned = rules.pin_of(repository, revision, std::iter::empty(), now).is_some();
            let rows = self.upkeep.content().metadata();
            waits |= !due || pinned || !rows.retire(repository, revision, self.before).await?;
        }
        Ok(waits)
    }

    async fn take(&mut self, doomed: &Doomed, rules: u64) -> (Fate, String) {
        match self.upkeep.content().collect(&doomed.digest, rules).await {
            Ok(Left::Gone(bytes)) => {
                self.upkeep.metrics().collected(bytes);
                self.went = true;
                (Fate::Collected, NOTHING.to_owned())
            }
            Ok(Left::NotHere) => {
                self.upkeep.metrics().collected(0);
                self.went = true;
                (Fate::Collected, NOTHING.to_owned())
            }
            Ok(Left::Stays) => {
                // As what is kept, it waits on from now, which is in the window again if the clock was set back.
                self.seen.insert(doomed.digest);
                let reason = "it is in use, or something holds it again".to_owned();
                match self.upkeep.content().metadata().spare(&doomed.digest).await {
                    Ok(()) => (Fate::Waits, reason),
                    Err(error) => self.stuck(doomed, &error.into()),
                }
            }
            // The others go on; this one is tried again by the next pass.
            Err(error) => self.stuck(doomed, &error),
        }
    }

    fn stuck(&mut self, doomed: &Doomed, error: &Error) -> (Fate, String) {
        self.seen.insert(doomed.digest);
        self.upkeep.metrics().stuck();
        tracing::warn!(digest = %doomed.digest, %error, "content could not be collected");
        (Fate::Failed, error.to_string())
    }
}

const NOTHING: &str = "nothing needs it";

/// Decides on an object that lost something that held it, a grace time ago at least.
fn end(
    digest: &Digest,
    holders: &Holders,
    rules: &Rules,
    before: Timestamp,
    now: Timestamp,
) -> End {
    // What only has referrers does not need them: pins keep them, and nothing else does.
    let needing = || holders.revisions.iter().filter(|holder| !holder.over_subject);
    if let Some(holder) = needing().find(|holder| holder.unlinked.is_none()) {
        return End::Spare(format!("{} needs it", image(holder)));
    }
    // An order to delete counts also while upstream is not asked.
    match verdict(holders, &rules.without_switches(), &KeepPolicy::default(), now) {
        KeepVerdict::Kept(hold) => return End::Keep(hold.to_string()),
        KeepVerdict::Free | KeepVerdict::Last => {}
    }
    let waits = |holder: &&Holder| holder.unlinked.is_some_and(|unlinked| unlinked >= before);
    if let Some(holder) = needing().find(waits) {
        return End::Wait(format!("{} was deleted not long ago", image(holder)));
    }
    // It goes after the revision that needs it, which then puts it into the queue again.
    if let Some(holder) = needing().find(|holder| holder.revision != *digest) {
        return End::After(format!("{} goes first", image(holder)));
    }
    if needing().next().is_none()
        && let Some(upstream) = holders.upstreams.first()
    {
        return End::Spare(format!("{upstream} showed it, apart from any image"));
    }
    End::Take
}

fn image(holder: &Holder) -> String {
    format!("{}@{}", holder.repository, holder.revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{RepositoryKey, Rule, RuleKind};

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const BEFORE: Timestamp = Timestamp::from_millis(500_000);

    fn holder(revision: &[u8], unlinked: Option<i64>) -> Holder {
        Holder {
            repository: RepositoryKey {
                upstream: "docker.io".parse().unwrap(),
                name: "a/b".parse().unwrap(),
            },
            revision: Digest::sha256_of(revision),
            unlinked: unlinked.map(Timestamp::from_millis),
            over_subject: false,
            sets: Vec::new(),
            links: Vec::new(),
        }
    }

    #[test]
    fn what_is_held_is_spared_what_may_be_free_later_waits_and_the_rest_goes() {
        let own = Digest::sha256_of(b"own");
        let pin = Rule {
            id: 1,
            kind: RuleKind::Pin,
            scope: "docker.io/a/*".parse().unwrap(),
            since: Timestamp::default(),
            until: None,
            reason: String::new(),
        };
        let (none, pinned) = (Rules::default(), Rules::new(vec![pin], 1));
        let due = Some(499_999);
        let young = Some(500_000);
        let table = [
            ("nothing", vec![], false, &none, "take"),
            ("itself, linked", vec![holder(b"own", None)], false, &none, "spare"),
            ("itself, due", vec![holder(b"own", due)], false, &none, "take"),
            ("itself, young", vec![holder(b"own", young)], false, &none, "waits"),
            ("itself, due and pinned", vec![holder(b"own", due)], false, &pinned, "kept"),
            ("a parent that stays", vec![holder(b"parent", None)], false, &pinned, "spare"),
            ("a parent that is due", vec![holder(b"parent", due)], false, &none, "after"),
            (
                "one due and one that stays",
                vec![holder(b"own", due), holder(b"parent", None)],
                false,
                &none,
                "spare",
            ),
            ("more than were looked at", vec![holder(b"own", due)], true, &none, "kept"),
        ];
        for (name, revisions, more, rules, wanted) in table {
            let holders = Holders { revisions, upstreams: Vec::new(), more };
            let word = match end(&own, &holders, rules, BEFORE, NOW) {
                End::Take => "take",
                End::Spare(_) => "spare",
                End::Wait(_) => "waits",
                End::After(_) => "after",
                End::Keep(_) => "kept",
            };
            assert_eq!(word, wanted, "{name}");
        }
    }
}
