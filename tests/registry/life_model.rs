//! The small model that [`super::life`] compares the store with.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roadstead::clock::Timestamp;
use roadstead::metadata::RuleKind;
use roadstead::oci::Digest;

use super::life_images::{
    REPOSITORIES, TAGS, children, closure, digest_of, family, goes_with, list_of_referrers,
    number_of, referrers,
};

/// The newest revisions of each tag that are kept at ghcr.io.
pub const LAST: usize = 2;
pub const YOUNG: Duration = Duration::from_secs(3600);
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Uses are written in steps, so an age is only known to within this.
pub const COARSE: Duration = Duration::from_secs(600);

/// Since when a tag points at which image.
pub type Move = (Timestamp, Option<usize>);

/// Of a set: repository, image, and the tag by which it got there.
pub type Member = (usize, usize, Option<usize>);

/// A set that is recorded, was recorded, or was imported.
#[derive(Clone, Debug, Default)]
pub struct Set {
    pub imported: bool,
    pub recording: bool,
    pub kept: bool,
    pub members: BTreeSet<Member>,
}

/// What should be true.
#[derive(Default)]
pub struct Model {
    /// By repository and tag: since when it pointed at which image, the oldest first.
    pub timelines: BTreeMap<(usize, usize), Vec<Move>>,
    /// What a tag points at, or did before it vanished upstream; what was deleted is nothing.
    pub current: BTreeMap<(usize, usize), usize>,
    /// Tags of which something was deleted: what they served at a moment is not known any more.
    pub cut: BTreeSet<(usize, usize)>,
    /// Revisions of repositories that are not deleted.
    pub live: BTreeSet<(usize, usize)>,
    pub rules: Vec<(i64, RuleKind, String, Timestamp)>,
    /// Revisions that were deleted, and since when they may go.
    pub dead: BTreeMap<(usize, usize), Timestamp>,
    pub now: Timestamp,
    /// When an object was used last, as far as that was certainly written.
    pub used: BTreeMap<Digest, Timestamp>,
    /// The latest moment at which it may have been.
    pub maybe_used: BTreeMap<Digest, Timestamp>,
    /// Whose bytes were taken away by force; they come back with a pull, and with nothing else.
    pub removed: BTreeSet<Digest>,
    /// By number of the name.
    pub sets: BTreeMap<usize, Set>,
    /// Of which images there is a list of what refers to them, in which repositories.
    pub lists: BTreeSet<(usize, usize)>,
}

impl Model {
    pub fn pull(&mut self, repository: usize, number: usize, tag: Option<usize>, now: Timestamp) {
        self.live.insert((repository, number));
        self.dead.remove(&(repository, number));
        for child in children(number) {
            self.live.insert((repository, child));
            self.dead.remove(&(repository, child));
        }
        if let Some(tag) = tag {
            let timeline = self.timelines.entry((repository, tag)).or_default();
            if timeline.last().is_none_or(|last| last.1 != Some(number)) {
                timeline.push((now, Some(number)));
            }
            self.current.insert((repository, tag), number);
        }
        for object in closure(number) {
            self.removed.remove(&object);
            self.used.insert(object, now);
        }
        // A use is one of what refers to it, too, as far as that is known.
        self.maybe_used.extend(family(number).into_iter().map(|object| (object, now)));
    }

    /// Manifests that came with a bundle, into one repository and one set.
    pub fn import(
        &mut self,
        repository: usize,
        (included, set): (&BTreeSet<usize>, usize),
        now: Timestamp,
    ) {
        for &number in included {
            self.live.insert((repository, number));
            self.dead.remove(&(repository, number));
            let blobs = closure(number).into_iter().filter(|object| number_of(object).is_none());
            for object in blobs.chain([digest_of(number)]) {
                self.used.insert(object, now);
            }
        }
        let set = self.sets.entry(set).or_insert_with(|| Set { imported: true, ..Set::default() });
        set.kept = true;
    }

    /// Revisions that wait for their end because what they belong to or refer to was deleted, which is back.
    pub fn may_return(
        &self,
        repository: usize,
        numbers: impl IntoIterator<Item = usize>,
    ) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open: Vec<usize> = numbers.into_iter().flat_map(goes_with).collect();
        while let Some(next) = open.pop() {
            if self.dead.contains_key(&(repository, next)) && found.insert(next) {
                open.extend(goes_with(next));
            }
        }
        found
    }

    /// The images that need an object, as far as they are not deleted.
    pub fn needing(&self, object: &Digest) -> BTreeSet<(usize, usize)> {
        self.live.iter().filter(|(_, number)| closure(*number).contains(object)).copied().collect()
    }

    pub fn is_needed(&self, repository: usize, number: usize) -> bool {
        let linked = self.timelines.iter().any(|((of, _), timeline)| {
            *of == repository && timeline.iter().any(|(_, image)| *image == Some(number))
        });
        let in_set = self.sets.values().any(|set| {
            set.members.iter().any(|member| (member.0, member.1) == (repository, number))
        });
        let index = |parent: &(usize, usize)| {
            parent.0 == repository && children(parent.1).contains(&number)
        };
        linked || in_set || self.live.iter().any(index)
    }

    /// Revisions that lost a link go, unless something else needs them, and then what was there for them.
    pub fn unlink(&mut self, repository: usize, numbers: &[usize]) {
        for &number in numbers {
            if !self.is_needed(repository, number) && self.live.remove(&(repository, number)) {
                self.bury(repository, number);
                self.unlink(repository, &goes_with(number));
            }
        }
    }

    /// An object waits once, for all repositories, since it lost something last.
    pub fn bury(&mut self, repository: usize, number: usize) {
        self.dead.insert((repository, number), self.now);
        self.lists.remove(&(repository, number));
        self.wait_again(number);
    }

    pub fn wait_again(&mut self, number: usize) {
        let below = children(number);
        for ((_, dead), since) in &mut self.dead {
            if *dead == number || below.contains(dead) {
                *since = self.now;
            }
        }
    }

    pub fn delete_tag(&mut self, repository: usize, tag: usize) {
        let timeline = self.timelines.remove(&(repository, tag)).unwrap_or_default();
        self.current.remove(&(repository, tag));
        self.cut.insert((repository, tag));
        let images: Vec<usize> = timeline.into_iter().filter_map(|(_, image)| image).collect();
        self.unlink(repository, &images);
    }

    /// What a recording has by its digest alone stays as it would have without the recording.
    pub fn forget(&mut self, set: usize) {
        let Some(set) = self.sets.remove(&set) else {
            return;
        };
        for (repository, number, tag) in set.members {
            if set.imported || tag.is_some() {
                self.unlink(repository, &[number]);
            }
        }
    }

    /// The revision leaves its repository.
    pub fn leave(&mut self, repository: usize, number: usize) {
        self.live.remove(&(repository, number));
        self.dead.remove(&(repository, number));
        self.lists.remove(&(repository, number));
        for set in self.sets.values_mut() {
            set.members.retain(|member| (member.0, member.1) != (repository, number));
        }
    }

    /// Does a rule speak of the repository, or of something in it?
    pub fn is_pinned(&self, at: usize) -> bool {
        self.rules.iter().any(|(_, _, scope, _)| scope.starts_with(REPOSITORIES[at]))
    }

    /// Revisions whose deletion is so long ago that nothing of them is left after a `gc`.
    pub fn must_be_gone(&self, now: Timestamp) -> Vec<(usize, usize)> {
        let due = self.dead.iter().filter(|((at, _), since)| {
            now.since(**since) > GRACE + Duration::from_secs(1) && !self.is_pinned(*at)
        });
        due.map(|(revision, _)| *revision).collect()
    }

    /// An image that is kept, with what is below it and what refers to it and is known for certain.
    fn with_referrers(&self, number: usize) -> BTreeSet<Digest> {
        let known = |other: &usize| self.live.iter().any(|(_, live)| live == other);
        let mut all = closure(number);
        let mut open = vec![number];
        while let Some(next) = open.pop() {
            let referring: Vec<usize> = referrers(next).into_iter().filter(known).collect();
            all.extend(referring.iter().flat_map(|other| closure(*other)));
            open.extend(children(next).into_iter().chain(referring));
        }
        all
    }

    /// What must be here if it was.
    pub fn kept(&self, now: Timestamp) -> BTreeSet<Digest> {
        let images = self.kept_images();
        let lists = self.lists.intersection(&self.live).map(|(_, number)| *number);
        let lists = lists.filter(|number| images.contains(number));
        let lists: Vec<Digest> = lists.filter_map(list_of_referrers).collect();
        let mut kept: BTreeSet<Digest> =
            images.into_iter().flat_map(|number| self.with_referrers(number)).collect();
        kept.extend(lists);
        let young = self.used.iter().filter(|(_, used)| now.since(**used) + COARSE < YOUNG);
        kept.extend(young.map(|(object, _)| *object));
        kept
    }

    /// What may be here although everything else is gone: also what refers to something that is kept and waits for its own end.
    pub fn may_be_kept(&self, now: Timestamp) -> BTreeSet<Digest> {
        let mut all = self.kept(now);
        all.extend(self.kept_images().into_iter().flat_map(family));
        all
    }

    /// Top down from the rules, where the code goes bottom up from the object.
    fn kept_images(&self) -> BTreeSet<usize> {
        let mut kept = BTreeSet::new();
        for ((repository, tag), timeline) in &self.timelines {
            let name = REPOSITORIES[*repository];
            let key = &(*repository, *tag);
            for (_, kind, scope, since) in &self.rules {
                let covers = scope == name
                    || *scope == format!("{name}:{}", TAGS[*tag])
                    || (*scope == format!("{name}:v*") && TAGS[*tag].starts_with('v'));
                if !covers {
                    continue;
                }
                match kind {
                    RuleKind::Pin => {
                        kept.extend(self.current.get(key).copied());
                    }
                    RuleKind::Freeze if self.cut.contains(key) => {}
                    RuleKind::Freeze => {
                        let then = timeline.iter().rev().find(|(moved, _)| moved <= since);
                        let first = timeline.iter().find(|(moved, _)| moved > since);
                        let served = match then {
                            Some((_, image)) => *image,
                            None => first.and_then(|(_, image)| *image),
                        };
                        kept.extend(served);
                    }
                }
            }
            if name.starts_with("ghcr.io") {
                let mut newest = Vec::new();
                for number in timeline.iter().rev().filter_map(|(_, image)| *image) {
                    if !newest.contains(&number) {
                        newest.push(number);
                    }
                }
                kept.extend(newest.into_iter().take(LAST));
            }
        }
        for (repository, number) in &self.live {
            let name = REPOSITORIES[*repository];
            let by_digest = format!("{name}@{}", digest_of(*number));
            let pinned = self.rules.iter().any(|(_, kind, scope, _)| {
                *kind == RuleKind::Pin && (*scope == name || *scope == by_digest)
            });
            if pinned {
                kept.insert(*number);
            }
        }
        let sets = self.sets.values().filter(|set| set.kept);
        kept.extend(sets.flat_map(|set| set.members.iter().map(|member| member.1)));
        kept
    }
}
