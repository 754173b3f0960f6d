//! What we remember of an upstream's ways: how it wants to be authenticated, and whether its HEAD can be trusted. When it wants to be
//! left alone is in `throttle.rs`.
//!
//! What must hold: challenges are remembered only from requests without Authorization that were not redirected (the caller sees to
//! it); per repository, because Artifactory has a realm for each; a repository that was never asked is answered from the upstream's
//! common form only while all its challenges had that one form. Everything is bounded and in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Url;
use tokio::time::Instant;

use super::credentials::Credential;
use crate::oci::{Reference, RepositoryName};

/// Challenges kept per upstream.
const CHALLENGES_MAX: u64 = 4096;
/// HEAD on manifests is left alone for this long once GET gave what HEAD refused.
const HEAD_UNUSABLE_FOR: Duration = Duration::from_secs(3600);
/// How soon after a refused HEAD a GET counts as the proof: a tag may also be pushed in between.
const HEAD_PROOF_WITHIN: Duration = Duration::from_secs(5);
const HEADS_MAX: u64 = 1024;

/// How a question is authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Basic,
    Bearer(Bearer),
}

/// A Bearer challenge, with its realm resolved and its scope filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bearer {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: String,
}

/// What a question needs: some registries want another scope for lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Need {
    Pull,
    List,
}

#[derive(Debug)]
pub(super) struct Memory {
    ways: moka::sync::Cache<(RepositoryName, Need), Way>,
    common: Mutex<Common>,
    refused_heads: moka::sync::Cache<(RepositoryName, Reference), ()>,
    head_unusable_until: Mutex<Option<Instant>>,
}

/// Whose limit a question counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    Anonymous,
    Ours,
}

/// The form that all challenges of an upstream had so far.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Common {
    Unknown,
    Basic,
    /// The scope was the default one for the repository.
    Bearer {
        realm: Url,
        service: Option<String>,
    },
    None,
}

impl Asker {
    pub(super) fn of(who: &Credential) -> Self {
        if who.login.is_some() { Self::Ours } else { Self::Anonymous }
    }

    /// The word for metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Ours => "own",
        }
    }
}

impl Bearer {
    pub(super) fn differs_in_scope_only(&self, other: &Self) -> bool {
        self.realm == other.realm && self.service == other.service && self.scope != other.scope
    }
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            ways: moka::sync::Cache::new(CHALLENGES_MAX),
            common: Mutex::new(Common::Unknown),
            refused_heads: moka::sync::Cache::builder()
                .max_capacity(HEADS_MAX)
                .time_to_live(HEAD_PROOF_WITHIN)
                .build(),
            head_unusable_until: Mutex::new(None),
        }
    }

    /// How to authenticate before being asked; `None` is a clean request. `default_scope` is what a challenge without a scope means.
    pub(super) fn way(
        &self,
        repository: &RepositoryName,
        need: Need,
        default_scope: &str,
    ) -> Option<Way> {
        self.ways
            .get(&(repository.clone(), need))
            .or_else(|| self.ways.get(&(repository.clone(), Need::Pull)))
            .or_else(|| match &*lock(&self.common) {
                Common::Basic => Some(Way::Basic),
                Common::Bearer { realm, service } => Some(Way::Bearer(Bearer {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope: default_scope.to_owned(),
                })),
                Common::Unknown | Common::None => None,
            })
    }

    /// Keeps a challenge of a clean request.
    pub(super) fn learn(
        &self,
        repository: &RepositoryName,
        need: Need,
        way: &Way,
        default_scope: &str,
    ) {
        self.ways.insert((repository.clone(), need), way.clone());
        let form = match way {
            Way::Basic => Common::Basic,
            Way::Bearer(bearer) if bearer.scope == default_scope => {
                Common::Bearer { realm: bearer.realm.clone(), service: bearer.service.clone() }
            }
            // A list's wider scope says nothing about pulls.
            Way::Bearer(_) if need == Need::List => return,
            Way::Bearer(_) => Common::None,
        };
        let mut common = lock(&self.common);
        *common = match &*common {
            Common::Unknown => form,
            known if *known == form => form,
            _ => Common::None,
        };
    }

    /// Forgets a challenge that did not lead to a token; the next request is clean.
    pub(super) fn forget(&self, repository: &RepositoryName, need: Need) {
        self.ways.invalidate(&(repository.clone(), need));
        self.ways.invalidate(&(repository.clone(), Need::Pull));
        *lock(&self.common) = Common::Unknown;
    }

    /// Is HEAD on manifests worth a request?
    pub(super) fn head_usable(&self) -> bool {
        lock(&self.head_unusable_until).is_none_or(|until| until <= Instant::now())
    }

    /// HEAD was refused in a way that only a GET can judge.
    pub(super) fn head_refused(&self, repository: &RepositoryName, reference: &Reference) {
        self.refused_heads.insert((repository.clone(), reference.clone()), ());
    }

    /// A GET ended: if it gave what HEAD had just refused, HEAD is of no use at this upstream.
    pub(super) fn get_ended(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        found: bool,
    ) {
        let refused = self.refused_heads.remove(&(repository.clone(), reference.clone()));
        if refused.is_some() && found {
            *lock(&self.head_unusable_until) = Some(Instant::now() + HEAD_UNUSABLE_FOR);
        }
    }
}

/// No holder of these locks can panic half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: &str = "repository:a:pull";

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    fn bearer(realm: &str, scope: &str) -> Way {
        Way::Bearer(Bearer {
            realm: realm.parse().unwrap(),
            service: Some("s".into()),
            scope: scope.into(),
        })
    }

    #[test]
    fn the_common_form_answers_for_new_repositories() {
        let memory = Memory::new();
        assert_eq!(memory.way(&name("a"), Need::Pull, SCOPE), None);
        memory.learn(&name("a"), Need::Pull, &bearer("https://r/t", SCOPE), SCOPE);
        let want = bearer("https://r/t", "repository:b:pull");
        assert_eq!(memory.way(&name("b"), Need::Pull, "repository:b:pull"), Some(want));
    }

    #[test]
    fn a_realm_for_each_repository_has_no_common_form() {
        let memory = Memory::new();
        memory.learn(&name("a"), Need::Pull, &bearer("https://r/a/t", SCOPE), SCOPE);
        memory.learn(
            &name("b"),
            Need::Pull,
            &bearer("https://r/b/t", "repository:b:pull"),
            "repository:b:pull",
        );
        assert_eq!(memory.way(&name("c"), Need::Pull, "repository:c:pull"), None);
        assert_eq!(memory.way(&name("a"), Need::Pull, SCOPE), Some(bearer("https://r/a/t", SCOPE)));
        let odd = Memory::new();
        odd.learn(&name("a"), Need::Pull, &bearer("https://r/t", "*"), SCOPE);
        assert_eq!(odd.way(&name("c"), Need::Pull, "repository:c:pull"), None);
    }

    #[test]
    fn lists_have_a_memory_of_their_own_and_fall_back() {
        let memory = Memory::new();
        memory.learn(&name("a"), Need::Pull, &bearer("https://r/t", SCOPE), SCOPE);
        assert_eq!(memory.way(&name("a"), Need::List, SCOPE), Some(bearer("https://r/t", SCOPE)));
        let wide = bearer("https://r/t", "repository:a:metadata_read");
        memory.learn(&name("a"), Need::List, &wide, SCOPE);
        assert_eq!(memory.way(&name("a"), Need::List, SCOPE), Some(wide));
        assert_eq!(memory.way(&name("a"), Need::Pull, SCOPE), Some(bearer("https://r/t", SCOPE)));
        memory.forget(&name("a"), Need::List);
        assert_eq!(memory.way(&name("a"), Need::List, SCOPE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn head_is_given_up_only_if_get_works() {
        let memory = Memory::new();
        let (repository, tag) = (name("a"), "v1".parse().unwrap());
        memory.head_refused(&repository, &tag);
        memory.get_ended(&repository, &tag, false);
        memory.get_ended(&repository, &tag, true);
        assert!(memory.head_usable());
        memory.head_refused(&repository, &tag);
        memory.get_ended(&repository, &tag, true);
        assert!(!memory.head_usable());
        tokio::time::advance(HEAD_UNUSABLE_FOR).await;
        assert!(memory.head_usable());
    }
}
