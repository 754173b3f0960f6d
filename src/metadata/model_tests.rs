//! The store against a model of it: random steps, and after each the same answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;

use super::hot::Key;
use super::tests::{at, digest, open_at, proof, repository, revision, tag, tagged};
use super::*;

/// What the store promises, as maps.
#[derive(Debug, Default)]
struct Model {
    tags: BTreeMap<(usize, usize), (Option<usize>, i64)>,
    timeline: BTreeMap<(usize, usize), Vec<Option<usize>>>,
    revisions: BTreeSet<(usize, usize)>,
    members: BTreeSet<(usize, usize)>,
    present: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Step {
    Commit { repository: usize, object: usize, children: Vec<usize>, tag: Option<usize> },
    Move { repository: usize, tag: usize, object: Option<usize> },
    Present { object: usize },
    Absent { object: usize, quarantined: bool },
    Prove { repository: usize, object: usize },
    Confirm { repository: usize, tag: usize },
    Forget { repository: usize, object: usize, tag: usize },
    Flush,
    Reopen,
}

const REPOSITORIES: [&str; 2] = ["a", "b"];
const TAGS: [&str; 2] = ["latest", "v1"];
const OBJECTS: usize = 5;

fn name(object: usize) -> String {
    format!("object {object}")
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (repository, tag, object) = (0..2_usize, 0..2_usize, 0..OBJECTS);
    let children = prop::collection::vec(object.clone(), 0..3);
    let some_tag = prop::option::of(tag.clone());
    let commit = (repository.clone(), object.clone(), children, some_tag).prop_map(
        |(repository, object, children, tag)| Step::Commit { repository, object, children, tag },
    );
    let some_object = prop::option::of(object.clone());
    let step = prop_oneof![
        4 => commit,
        3 => (repository.clone(), tag.clone(), some_object)
            .prop_map(|(repository, tag, object)| Step::Move { repository, tag, object }),
        2 => object.clone().prop_map(|object| Step::Present { object }),
        2 => (object.clone(), any::<bool>())
            .prop_map(|(object, quarantined)| Step::Absent { object, quarantined }),
        1 => (repository.clone(), object.clone())
            .prop_map(|(repository, object)| Step::Prove { repository, object }),
        1 => (repository.clone(), tag.clone())
            .prop_map(|(repository, tag)| Step::Confirm { repository, tag }),
        2 => (repository, object, tag)
            .prop_map(|(repository, object, tag)| Step::Forget { repository, object, tag }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

impl Model {
    fn point(&mut self, repository: usize, tag: usize, object: Option<usize>, now: i64) {
        let key = (repository, tag);
        match self.tags.get_mut(&key) {
            Some((known, confirmed)) if *known == object => *confirmed = now,
            None if object.is_none() => {}
            _ => {
                self.tags.insert(key, (object, now));
                self.timeline.entry(key).or_default().push(object);
            }
        }
    }

    async fn take(&mut self, store: &mut Metadata, root: &Path, step: &Step, now: i64) {
        match step {
            Step::Commit { repository, object, children, tag } => {
                let names: Vec<_> = children.iter().map(|child| name(*child)).collect();
                let layers: Vec<_> = names.iter().map(String::as_str).collect();
                let owner = REPOSITORIES[*repository];
                let mut commit = revision(owner, &name(*object), &layers, now);
                if let Some(tag) = tag {
                    commit = tagged(commit, TAGS[*tag]);
                }
                store.commit_revision(commit).await.unwrap();
                self.present.insert(*object);
                self.revisions.insert((*repository, *object));
                for member in children.iter().chain([object]) {
                    self.members.insert((*repository, *member));
                }
                if let Some(tag) = tag {
                    self.point(*repository, *tag, Some(*object), now);
                }
            }
            Step::Move { repository: owner, tag: moved, object } => {
                let to = object.map(|object| digest(&name(object)));
                let (key, moved_tag) = (repository(REPOSITORIES[*owner]), tag(TAGS[*moved]));
                let result = store.move_tag(&key, &moved_tag, to, "x", at(now)).await;
                let allowed =
                    object.is_none_or(|object| self.revisions.contains(&(*owner, object)));
                assert_eq!(result.is_ok(), allowed);
                if allowed {
                    self.point(*owner, *moved, *object, now);
                }
            }
            other => self.take_small(store, root, other, now).await,
        }
    }

    async fn take_small(&mut self, store: &mut Metadata, root: &Path, step: &Step, now: i64) {
        match step {
            Step::Commit { .. } | Step::Move { .. } => unreachable!("taken before"),
            Step::Present { object } => {
                let size = name(*object).len() as u64;
                store.set_present(&digest(&name(*object)), size).await.unwrap();
                self.present.insert(*object);
            }
            Step::Absent { object, quarantined } => {
                store.set_absent(&digest(&name(*object)), *quarantined).await.unwrap();
                self.present.remove(object);
            }
            Step::Prove { repository: owner, object } => {
                let key = repository(REPOSITORIES[*owner]);
                store.prove(&key, &digest(&name(*object)), None, proof(now)).await.unwrap();
                self.members.insert((*owner, *object));
            }
            Step::Confirm { repository: owner, tag: confirmed } => {
                store.confirm_tag(
                    &repository(REPOSITORIES[*owner]),
                    &tag(TAGS[*confirmed]),
                    at(now),
                );
                if let Some((_, known)) = self.tags.get_mut(&(*owner, *confirmed)) {
                    *known = now;
                }
            }
            Step::Forget { repository: owner, object, tag: forgotten } => {
                let key = repository(REPOSITORIES[*owner]);
                store.shared().hot.forget(&Key::Object(digest(&name(*object))));
                store.shared().hot.forget(&Key::Member(key.clone(), digest(&name(*object))));
                store.shared().hot.forget(&Key::Tag(key, tag(TAGS[*forgotten])));
            }
            Step::Flush => store.flush().await.unwrap(),
            Step::Reopen => {
                store.close().await;
                *store = open_at(root);
            }
        }
    }

    async fn compare(&self, store: &Metadata) {
        for (owner, name_of_owner) in REPOSITORIES.iter().enumerate() {
            let key = repository(name_of_owner);
            for (position, name_of_tag) in TAGS.iter().enumerate() {
                let found = store.tag(&key, &tag(name_of_tag)).await.unwrap();
                let found = found.map(|record| (record.digest, record.confirmed.as_millis()));
                let expected = self.tags.get(&(owner, position)).map(|(object, confirmed)| {
                    (object.map(|object| digest(&name(object))), *confirmed)
                });
                assert_eq!(found, expected);
                let moves = store.timeline(&key, &tag(name_of_tag), 99).await.unwrap();
                let open = moves.iter().filter(|entry| entry.until.is_none()).count();
                assert_eq!(open, moves.len().min(1));
                let found: Vec<_> = moves.iter().rev().map(|entry| entry.digest).collect();
                let expected = self.timeline.get(&(owner, position)).cloned().unwrap_or_default();
                let expected: Vec<_> = expected
                    .into_iter()
                    .map(|object| object.map(|object| digest(&name(object))))
                    .collect();
                assert_eq!(found, expected);
            }
            for object in 0..OBJECTS {
                let digest = digest(&name(object));
                let blob = store.blob(&key, &digest).await.unwrap();
                assert_eq!(blob.present, self.present.contains(&object));
                assert_eq!(blob.proof.is_some(), self.members.contains(&(owner, object)));
                let is_revision = self.revisions.contains(&(owner, object));
                assert_eq!(blob.revision, is_revision);
                let found = store.revision(&key, &digest).await.unwrap();
                assert_eq!(found.is_some(), is_revision);
            }
        }
        let size = |object: &usize| name(*object).len() as u64;
        let usage = store.usage().await.unwrap();
        assert_eq!(usage.objects, self.present.len() as u64);
        assert_eq!(usage.bytes, self.present.iter().map(size).sum::<u64>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let root = tempfile::tempdir().unwrap();
            let mut store = open_at(root.path());
            let mut model = Model::default();
            for (number, step) in steps.iter().enumerate() {
                let now = i64::try_from(number).unwrap() + 1;
                model.take(&mut store, root.path(), step, now).await;
                model.compare(&store).await;
            }
            store.close().await;
        });
    }
}
