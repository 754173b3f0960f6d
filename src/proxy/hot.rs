//! Manifests that are answered from memory, without a wait and almost without work.
//!
//! An entry is made after a request was answered the long way, and holds what that way found: the manifest, and the facts by which it
//! was allowed. What must hold: an entry decides nothing by itself. Each use asks again whether the facts are as they were (the
//! stamp of the metadata, which a write outdates before it is answered), whether the upstream and its rules are those of the entry (a
//! reload makes new ones), and what the policy says at this moment. Whoever does not get a plain yes goes the long way.
//!
//! The table is bounded by bytes. An entry is found by texts as they came from the client, so that a look-up makes nothing. Only names
//! under which something was served are in here, and the hash has a secret key, so nobody can fill the table or choose what collides.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use super::policy::{Attempt, Known, Verdict, decide};
use super::revisions::Manifest;
use super::settings::{PROOF_FOR, Private, TagPolicy, UpstreamPolicy};
use super::shared::Shared;
use super::source::{Proxied, Source};
use crate::clock::Timestamp;
use crate::metadata::{CredentialFingerprint, HotManifest, Proof, RepositoryKey};
use crate::oci::Reference;
use crate::upstream::Upstream;

/// Bytes that all entries together may take. The manifests among them are mostly those of the manifest cache, which are not held twice.
const HOT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The table is split, so that one that is changed keeps few readers waiting. A manifest that is larger than a part is never in it.
const PARTS: usize = 8;
/// What an entry takes beside the bytes of its manifest, about: itself, names, policy, and what a face prepares for it.
const ENTRY_BYTES: usize = 3 * 1024;

/// A manifest with everything by which it may be shown again.
pub struct Ready {
    repository: RepositoryKey,
    reference: Reference,
    /// The reference as it is asked for.
    reference_text: Box<str>,
    manifest: Manifest,
    /// Whose rules these are. Weak: an upstream that was replaced must not live on in here.
    source: Weak<Source>,
    facts: HotManifest,
    /// For a tag: its policy, and was it confirmed by another host than those of the present upstream?
    tag: Option<(TagPolicy, bool)>,
    /// The operator's rules under which it was no frozen tag.
    rules_epoch: u64,
    /// The upstream is not asked: by the configuration, or under those rules.
    shut: bool,
    /// Since the last look of the one who makes room.
    used: AtomicBool,
    prepared: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Ready {
    pub fn repository(&self) -> &RepositoryKey {
        &self.repository
    }

    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What a face makes of the manifest once and keeps with it; `make` runs at the first call. One face, one type: another type than
    /// the first one's is made anew each time.
    pub fn prepared<T: Any + Send + Sync + Clone>(&self, make: impl Fn() -> T) -> T {
        let kept = self.prepared.get_or_init(|| Box::new(make())).downcast_ref::<T>();
        kept.map_or_else(&make, T::clone)
    }

    fn names(&self) -> Names<'_> {
        let RepositoryKey { upstream, name } = &self.repository;
        [upstream.as_str(), name.as_str(), &self.reference_text]
    }

    fn weight(&self) -> usize {
        self.manifest.bytes.len().saturating_add(ENTRY_BYTES)
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("repository", &self.repository)
            .field("reference", &self.reference)
            .field("digest", &self.manifest.digest)
            .finish_non_exhaustive()
    }
}

/// The texts by which an entry is found: upstream, repository, and tag or digest.
type Names<'a> = [&'a str; 3];

/// The hash of the names, under the secret key of the table.
type Place = u64;

/// Places are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, place: u64) {
        self.0 = place;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The table of entries.
pub(super) struct Hot {
    parts: [RwLock<Part>; PARTS],
    hasher: RandomState,
    part_bytes_max: usize,
}

#[derive(Default)]
struct Part {
    /// Two names of the same place take turns; nobody can choose them so, and by chance it does not happen.
    entries: HashMap<Place, Arc<Ready>, BuildHasherDefault<AsItIs>>,
    /// Each place of `entries` once; who was used lately gets another round.
    order: VecDeque<Place>,
    bytes: usize,
}

impl Default for Hot {
    fn default() -> Self {
        Self::new(HOT_BYTES_MAX)
    }
}

impl Hot {
    fn new(bytes_max: usize) -> Self {
        Self {
            parts: std::array::from_fn(|_| RwLock::default()),
            hasher: RandomState::new(),
            part_bytes_max: bytes_max / PARTS,
        }
    }

    fn part(&self, names: &Names<'_>) -> (&RwLock<Part>, Place) {
        let place = self.hasher.hash_one(names);
        // The map looks at the ends of a hash; the part is told by its middle.
        let [_, _, _, middle, ..] = place.to_le_bytes();
        (&self.parts[usize::from(middle) % PARTS], place)
    }

    fn get(&self, names: &Names<'_>) -> Option<Arc<Ready>> {
        let (part, place) = self.part(names);
        let part = part.read().unwrap_or_else(PoisonError::into_inner);
        part.entries.get(&place).filter(|ready| ready.names() == *names).map(Arc::clone)
    }

    fn insert(&self, ready: Ready) {
        let weight = ready.weight();
        if weight > self.part_bytes_max {
            return;
        }
        let (part, place) = self.part(&ready.names());
        let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
        match part.entries.insert(place, Arc::new(ready)) {
            Some(before) => part.bytes -= before.weight(),
            None => part.order.push_back(place),
        }
        part.bytes += weight;
        part.make_room(self.part_bytes_max);
    }
}

impl Part {
    fn make_room(&mut self, bytes_max: usize) {
        // After one round nobody is left who was used, unless he is used at this moment.
        let mut rounds = 2 * self.order.len();
        while self.bytes > bytes_max {
            let Some(place) = self.order.pop_front() else { return };
            rounds = rounds.saturating_sub(1);
            let spare = |ready: &Arc<Ready>| ready.used.swap(false, Relaxed) && rounds > 0;
            if self.entries.get(&place).is_some_and(spare) {
                self.order.push_back(place);
            } else if let Some(gone) = self.entries.remove(&place) {
                self.bytes -= gone.weight();
            }
        }
    }
}

impl fmt::Debug for Hot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hot")
    }
}

/// An answer out of memory.
#[derive(Debug)]
pub struct HotAnswer {
    pub ready: Arc<Ready>,
    /// For a tag: the freshness left, if it ends.
    pub left: Option<Duration>,
}

impl Shared {
    /// The manifest `reference` of the repository `name`, if nothing stands in the way of answering at once.
    pub(super) fn hot_manifest(
        &self,
        source: &Arc<Source>,
        name: &str,
        reference: &str,
    ) -> Option<HotAnswer> {
        let ready = self.hot.get(&[source.upstream().name().as_str(), name, reference])?;
        let same_rules = std::ptr::eq(ready.source.as_ptr(), Arc::as_ptr(source));
        // A freeze counts from its answer on. What ends one by itself adds nothing: frozen tags are not in here.
        // That an upstream is not asked any more asks less of an entry; that it is asked again asks more.
        let thawed = (ready.tag.is_none() && !ready.shut)
            || ready.rules_epoch == self.content().metadata().rules_epoch();
        if !same_rules || !thawed || !self.content().metadata().is_current(&ready.facts.stamp) {
            return None;
        }
        let now = self.now();
        let (caller, facts) = (Caller::of(source.upstream()), &ready.facts);
        let (policy, shut) = (source.policy(), ready.shut);
        if !may_show((policy, shut), caller, &facts.proof, facts.visibility, now) {
            return None;
        }
        let left = match (&ready.tag, &ready.facts.tag) {
            (Some((policy, elsewhere)), Some(record)) => {
                let known =
                    Known { confirmed: record.confirmed, failed: None, elsewhere: *elsewhere };
                match decide(now, Some(known), policy, shut, Attempt::NotTried) {
                    Verdict::Fresh { left } => left,
                    _ => return None,
                }
            }
            _ => None,
        };
        if !ready.used.load(Relaxed) {
            ready.used.store(true, Relaxed);
        }
        self.content().metadata().touch(&ready.manifest.digest, now);
        Some(HotAnswer { ready, left })
    }

    /// Keeps an answer that came from the store, so that the next one need not go so far. Everything by which it is shown again is looked
    /// up here, and again at each use.
    pub(super) fn remember(
        &self,
        repository: &Proxied,
        reference: &Reference,
        manifest: &Manifest,
    ) {
        // What a tag was is not what it is.
        if repository.moment().is_some() {
            return;
        }
        let source = repository.source();
        let (key, tag) = (repository.key(), reference.tag());
        let rules = self.content().metadata().rules();
        if tag.is_some_and(|tag| rules.frozen(key, tag, self.now()).is_some()) {
            return;
        }
        let Some(facts) = self.content().metadata().hot_manifest(key, tag, &manifest.digest) else {
            return;
        };
        // The rules that do not change with time are asked once for each set of rules.
        if !source.admits(repository.name()) || facts.media_type != manifest.media_type {
            return;
        }
        let tag = tag.zip(facts.tag.as_ref()).map(|(tag, record)| {
            let elsewhere = !source.upstream().has_endpoint_at(&record.source);
            (source.tag_policy(repository.name(), tag).clone(), elsewhere)
        });
        self.hot.insert(Ready {
            repository: key.clone(),
            reference: reference.clone(),
            reference_text: reference.to_string().into(),
            manifest: manifest.clone(),
            source: Arc::downgrade(source),
            facts,
            tag,
            rules_epoch: rules.epoch(),
            shut: source.policy().offline || rules.is_offline(&key.upstream),
            used: AtomicBool::new(false),
            prepared: OnceLock::new(),
        });
    }
}

/// Who we are upstream at this moment.
#[derive(Clone, Copy, Debug)]
enum Caller {
    /// A helper has not said it yet.
    Unsettled,
    Anonymous,
    With(CredentialFingerprint),
}

impl Caller {
    fn of(upstream: &Upstream) -> Self {
        if upstream.is_unsettled() {
            return Self::Unsettled;
        }
        upstream.credential_fingerprint().map_or(Self::Anonymous, Self::With)
    }
}

/// The gate and the proof of membership, as far as they can be answered with what is known; see `permission.rs`, whose rules these are.
fn may_show(
    (policy, shut): (&UpstreamPolicy, bool),
    caller: Caller,
    proof: &Proof,
    visibility: Option<(bool, Timestamp)>,
    now: Timestamp,
) -> bool {
    let within = |when: Timestamp| when <= now && now.since(when) < PROOF_FOR;
    match caller {
        // The gate asks first.
        Caller::Unsettled => false,
        Caller::Anonymous => proof.credential.is_none() || shut,
        Caller::With(credential) if policy.private == Private::Shared => {
            let holds = |then| then == credential && within(proof.proved);
            proof.credential.is_none_or(holds) || shut
        }
        // The repository has to be public, and then every proof holds.
        Caller::With(_) => {
            visibility.is_some_and(|(public, checked)| public && (within(checked) || shut))
        }
    }
}

#[cfg(test)]
#[path = "hot_tests.rs"]
mod tests;
