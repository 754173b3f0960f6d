//! Frozen tags: what they answer while a freeze of the operator is in force; and what a denial does to the past.
//!
//! What must hold: the answer is the revision that the tag had when it was frozen, whatever upstream says of the tag, absence included;
//! only a denial is obeyed. The check with upstream goes on behind the answer, as often as freshness wants, so that moves are in the
//! timeline and a denial is learned. A tag that was never seen is fetched as usual, and is the frozen one from then on.

use std::sync::Arc;

use super::error::Error;
use super::policy::{Attempt, Refusal, Verdict, decide};
use super::revisions::Manifest;
use super::shared::Shared;
use super::source::Proxied;
use super::tags::{Asked, Tagged, refused};
use crate::metadata::TagRecord;
use crate::oci::{Digest, Tag};
use crate::upstream;

/// What a request for a frozen tag does about upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The answer needs no check, and none is due.
    Answer,
    /// The answer, and a check behind it.
    AnswerThenCheck,
    /// Upstream denied the tag, so it has to say something else first.
    AskFirst,
    Refuse(Refusal),
}

/// Decides on a frozen tag whose revision is known. `verdict` is what the policy says before anybody is asked; `spare`: upstream is
/// not to be asked more than is needed, or said lately that the tag does not exist.
fn step(verdict: Verdict, denied: bool, spare: bool) -> Step {
    match verdict {
        Verdict::Refuse(refusal) if denied => Step::Refuse(refusal),
        _ if denied => Step::AskFirst,
        Verdict::ServeThenCheck { .. } | Verdict::Check { .. } if !spare => Step::AnswerThenCheck,
        _ => Step::Answer,
    }
}

impl Shared {
    /// The revision that a freeze in force makes the tag answer. `None`: it is not frozen, or was never seen.
    ///
    /// # Errors
    /// [`Error::Store`]: what it was cannot be read, and nothing else may be answered.
    pub(super) async fn frozen_revision(
        &self,
        repository: &Proxied,
        tag: &Tag,
    ) -> Result<Option<Digest>, Error> {
        let metadata = self.content().metadata();
        let Some(since) = metadata.rules().frozen(repository.key(), tag, self.now()) else {
            return Ok(None);
        };
        match metadata.frozen_at(repository.key(), tag, since).await {
            Ok(entry) => Ok(entry.and_then(|entry| entry.digest)),
            Err(error) => {
                tracing::warn!(?error, "the timeline cannot be read");
                Err(Error::Store("what a frozen tag pointed at cannot be read".to_owned()))
            }
        }
    }

    /// Answers a tag that is frozen at `digest`. `denied`: upstream denied it when it was asked last; `absent_lately`: it said lately that
    /// the tag does not exist.
    pub(super) async fn frozen(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        digest: &Digest,
        (denied, absent_lately): (bool, bool),
    ) -> Result<(Manifest, Tagged), Error> {
        let repository = asked.repository;
        let view = asked.known.map(|(_, known)| known);
        let offline = self.is_shut(repository);
        let verdict = decide(self.now(), view, asked.policy, offline, Attempt::NotTried);
        let spare = offline || absent_lately || repository.upstream().is_sparing();
        match step(verdict, denied, spare) {
            Step::Answer => {}
            Step::AnswerThenCheck => drop(self.start_check(asked)),
            Step::AskFirst => self.denial_is_over(asked).await?,
            Step::Refuse(refusal) => return Err(refused(refusal, None)),
        }
        let (manifest, how) = self.revision(repository, digest).await?;
        Ok((manifest, Tagged::Frozen { how }))
    }

    /// Asks upstream for a tag that it denied: an error unless it says something else now.
    async fn denial_is_over(self: &Arc<Self>, asked: &Asked<'_>) -> Result<(), Error> {
        let (mut result, _joined) = self.start_check(asked);
        let result = result.wait_for(Option::is_some).await;
        match result.ok().and_then(|value| value.clone()) {
            // What it points at is in the timeline now, and makes no difference.
            Some(Ok(_) | Err(upstream::Error::Absent)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(refused(Refusal::Denied, None)),
        }
    }

    /// A tag that upstream denies today is not given as it was, either: who may have something is a question of today.
    pub(super) async fn no_denial_since(
        self: &Arc<Self>,
        repository: &Proxied,
        tag: &Tag,
    ) -> Result<(), Error> {
        let record = self.content().metadata().tag(repository.key(), tag).await;
        let denied = record.map(|record| record.as_ref().is_some_and(TagRecord::is_denied));
        match denied {
            Ok(false) => Ok(()),
            Ok(true) if self.is_shut(repository) => Err(refused(Refusal::Denied, None)),
            Ok(true) => {
                let today = repository.clone().as_of(None);
                let policy = today.source().tag_policy(today.name(), tag);
                let asked = Asked { repository: &today, tag, policy, known: None };
                self.denial_is_over(&asked).await
            }
            Err(error) => {
                tracing::warn!(?error, "the metadata cannot be asked");
                Err(Error::Store("the metadata cannot be asked".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NO_TIME: Duration = Duration::ZERO;
    const CHECK: Verdict = Verdict::Check { wait: None };

    #[test]
    fn the_answer_waits_for_nobody() {
        let fresh = Verdict::Fresh { left: None };
        let stale = Verdict::Stale { stale_for: NO_TIME };
        let behind = Verdict::ServeThenCheck { stale_for: NO_TIME };
        for (verdict, want) in [
            (fresh, Step::Answer),
            (stale, Step::Answer),
            (behind, Step::AnswerThenCheck),
            (CHECK, Step::AnswerThenCheck),
            // Absent upstream, and nobody is to be asked.
            (Verdict::Refuse(Refusal::Offline), Step::Answer),
        ] {
            assert_eq!(step(verdict, false, false), want, "{verdict:?}");
            assert_eq!(step(verdict, false, true), Step::Answer, "{verdict:?} sparing");
        }
    }

    #[test]
    fn a_denial_is_obeyed_until_upstream_takes_it_back() {
        for spare in [false, true] {
            assert_eq!(step(CHECK, true, spare), Step::AskFirst);
            let offline = Verdict::Refuse(Refusal::Offline);
            assert_eq!(step(offline, true, spare), Step::Refuse(Refusal::Offline));
        }
    }
}
