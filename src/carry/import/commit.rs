//! What a verified bundle becomes: revisions, tags with their timelines, members of a set, in one transaction; and the story of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::closure::Closure;
use super::intake::{Gathered, bad};
use super::layout::{Named, Root, give_names};
use super::names::Document;
use super::referrers;
use super::service::ImportOrder;
use super::{layout, legacy};
use crate::carry::error::Error;
use crate::carry::events::{Event, Fate, Report, Work};
use crate::carry::place::short_name;
use crate::carry::service::{Carry, Job};
use crate::clock::Timestamp;
use crate::metadata::{ImportCommit, ImportedTag, Proof, RepositoryKey, RevisionCommit, SetMember};
use crate::oci::{Digest, SetName};
use crate::registry::desk::Image;
use crate::story;

/// How many images the note of a set names.
const DETAIL_IMAGES: usize = 3;

/// A bundle that is in.
#[derive(Debug)]
pub(super) struct Taken {
    images: Vec<Event>,
    report: Report,
}

/// An image with everything of it that is here.
struct Whole {
    name: Named,
    digest: Digest,
    since: Option<Timestamp>,
    /// Manifests, those that others list first.
    included: Vec<Digest>,
    bytes: u64,
    /// Some of it was not here before.
    news: bool,
    /// It refers to another image, and has no name of its own.
    refers: bool,
}

/// Verifies what was gathered, and takes it in.
pub(super) async fn commit(
    carry: &Carry,
    order: &ImportOrder,
    name: Option<&Image>,
    mut gathered: Gathered,
) -> Result<Taken, Error> {
    let mut roots = if gathered.documents.contains_key(&Document::Index) {
        layout::roots(&gathered, &carry.inner().desk)?
    } else {
        legacy::roots(carry, &mut gathered).await?
    };
    let mut all = Closure::new(carry.content(), &gathered);
    for root in &roots {
        all.read(root).await?;
    }
    let refers = referring(&roots, &all);
    give_names(&mut roots, name, &refers)?;
    let places = place(&roots, &all)?;
    let closures = closures(&places, &all).await?;
    let wholes = wholes(&places, &closures, &gathered);
    let at = carry.inner().clock.now();
    let set = set_name(order, at);
    let source = format!("import {set}");
    let proofs = proofs(carry, &closures, order, at).await?;
    let mut revisions = Vec::new();
    let mut known = HashSet::new();
    for whole in &wholes {
        let key = &whole.name.key;
        let fresh = whole.included.iter().filter(|digest| known.insert((key.clone(), **digest)));
        let (closure, proof) = (&closures[key], proofs[key]);
        revisions.extend(fresh.filter_map(|digest| revision(closure, key, digest, proof)));
    }
    let import = ImportCommit {
        revisions,
        tags: tags(&wholes, &source, at)?,
        set: set.clone(),
        detail: detail(&wholes),
        members: members(&wholes, at),
        public: if order.public { repositories(&wholes) } else { Vec::new() },
        at,
    };
    let tagged: Vec<(RepositoryKey, String)> =
        import.tags.iter().map(|tag| (tag.repository.clone(), tag.tag.to_string())).collect();
    let imported = carry.content().metadata().import(import).await?;
    let moved = tagged.into_iter().zip(imported.moved).collect();
    let mut included = Vec::new();
    for whole in &wholes {
        included.extend(whole.included.iter().map(|digest| (whole.name.key.clone(), *digest)));
    }
    referrers::note(carry, &closures, included).await;
    let report = report(&gathered, &wholes);
    tracing::info!(
        set = %set,
        images = report.images,
        objects = report.objects,
        bytes = report.bytes,
        "a bundle was taken in"
    );
    Ok(Taken { images: events(&wholes, &moved), report })
}

/// Roots without a name that refer to something in the bundle.
fn referring(roots: &[Root], closure: &Closure<'_>) -> HashSet<Digest> {
    let nameless = roots.iter().filter(|root| root.name.is_none());
    let subject_of = |root: &Root| {
        let document = closure.document(&root.digest)?;
        document.manifest.subject.as_ref().map(|subject| subject.digest)
    };
    let refers =
        |root: &&Root| subject_of(root).is_some_and(|subject| closure.document(&subject).is_some());
    nameless.filter(refers).map(|root| root.digest).collect()
}

/// A manifest of the list in a repository.
struct Place<'a> {
    root: &'a Root,
    name: Named,
    refers: bool,
}

/// Finds the repositories of all manifests. What refers to another manifest belongs where that one is.
fn place<'a>(roots: &'a [Root], all: &Closure<'_>) -> Result<Vec<Place<'a>>, Error> {
    let mut found: Vec<Place<'a>> = Vec::new();
    let mut homes: HashMap<Digest, HashSet<RepositoryKey>> = HashMap::new();
    let mut add = |root: &'a Root, name: Named, refers, homes: &mut HashMap<_, HashSet<_>>| {
        for digest in all.included(&root.digest) {
            homes.entry(digest).or_default().insert(name.key.clone());
        }
        found.push(Place { root, name, refers });
    };
    for root in roots {
        if let Some(name) = &root.name {
            add(root, name.clone(), false, &mut homes);
        }
    }
    let mut waiting: Vec<&Root> = roots.iter().filter(|root| root.name.is_none()).collect();
    loop {
        let before = waiting.len();
        let mut left = Vec::new();
        for root in waiting {
            let document = all.document(&root.digest);
            let subject = document.and_then(|document| document.manifest.subject.as_ref());
            match subject.and_then(|subject| homes.get(&subject.digest)).cloned() {
                Some(keys) => {
                    let mut keys: Vec<RepositoryKey> = keys.into_iter().collect();
                    keys.sort_unstable();
                    for key in keys {
                        add(root, Named { key, tag: None }, true, &mut homes);
                    }
                }
                None => left.push(root),
            }
        }
        match left.first() {
            None => return Ok(found),
            Some(root) if left.len() == before => {
                // Their homes are wanting because what they refer to is not whole; that is the better reason.
                all.check()?;
                let why =
                    format!("{} refers to nothing that has a name in the bundle", root.digest);
                return Err(bad("index.json", &why));
            }
            Some(_) => waiting = left,
        }
    }
}

/// What each repository gets must be whole with what counts as here for that repository.
async fn closures<'a>(
    places: &[Place<'_>],
    all: &'a Closure<'a>,
) -> Result<BTreeMap<RepositoryKey, Closure<'a>>, Error> {
    let mut closures = BTreeMap::new();
    for Place { root, name, .. } in places {
        let closure = closures.entry(name.key.clone()).or_insert_with(|| all.of(name.key.clone()));
        closure.read(root).await?;
    }
    closures.values().try_for_each(Closure::check)?;
    Ok(closures)
}

/// The proof that each repository gets.
async fn proofs(
    carry: &Carry,
    closures: &BTreeMap<RepositoryKey, Closure<'_>>,
    order: &ImportOrder,
    at: Timestamp,
) -> Result<HashMap<RepositoryKey, Proof>, Error> {
    let mut proofs = HashMap::new();
    for key in closures.keys() {
        proofs.insert(key.clone(), carry.proof_of_import(key, at, order.public).await?);
    }
    Ok(proofs)
}

fn wholes(
    places: &[Place<'_>],
    closures: &BTreeMap<RepositoryKey, Closure<'_>>,
    gathered: &Gathered,
) -> Vec<Whole> {
    let whole = |place: &Place<'_>| {
        let Place { root, name, refers } = place;
        let closure = &closures[&name.key];
        let included = closure.included(&root.digest);
        let objects = closure.objects(&included);
        let bytes = objects.values().sum();
        let news = objects.keys().any(|digest| gathered.new.contains_key(digest));
        let (name, refers, digest, since) = (name.clone(), *refers, root.digest, root.since);
        Whole { name, digest, since, included, bytes, news, refers }
    };
    places.iter().map(whole).collect()
}

fn set_name(order: &ImportOrder, at: Timestamp) -> SetName {
    order.set.clone().unwrap_or_else(|| {
        let day: String = at.to_string().chars().take(10).filter(char::is_ascii_digit).collect();
        format!("import-{day}").parse().expect("a word and digits are a name of a set")
    })
}

fn revision(
    closure: &Closure<'_>,
    key: &RepositoryKey,
    digest: &Digest,
    proof: Proof,
) -> Option<RevisionCommit> {
    let document = closure.document(digest)?;
    let manifest = &document.manifest;
    Some(RevisionCommit {
        repository: key.clone(),
        digest: *digest,
        media_type: manifest.media_type.clone(),
        size: document.size,
        children: manifest.children.clone(),
        subject: manifest.subject.as_ref().map(|subject| subject.digest),
        artifact_type: manifest.artifact_type.clone(),
        proof,
        at: proof.proved,
        tag: None,
    })
}

/// One move for each tag.
fn tags(wholes: &[Whole], source: &str, at: Timestamp) -> Result<Vec<ImportedTag>, Error> {
    let mut tags: BTreeMap<(RepositoryKey, String), ImportedTag> = BTreeMap::new();
    for whole in wholes {
        let Some(tag) = &whole.name.tag else {
            continue;
        };
        let since = whole.since.unwrap_or(at);
        let (repository, tag) = (whole.name.key.clone(), tag.clone());
        let named = format!("{repository}:{tag}");
        let place = (repository.clone(), tag.to_string());
        let moves = vec![(whole.digest, since)];
        let imported = ImportedTag { repository, tag, moves, source: source.to_owned() };
        if let Some(before) = tags.insert(place, imported)
            && before.moves.first().is_some_and(|(digest, _)| *digest != whole.digest)
        {
            return Err(bad("index.json", &format!("{named} is the name of two different images")));
        }
    }
    Ok(tags.into_values().collect())
}

fn members(wholes: &[Whole], at: Timestamp) -> Vec<SetMember> {
    let member = |whole: &Whole| SetMember {
        repository: whole.name.key.clone(),
        digest: whole.digest,
        tag: whole.name.tag.clone(),
        at,
    };
    wholes.iter().map(member).collect()
}

fn repositories(wholes: &[Whole]) -> Vec<RepositoryKey> {
    let mut keys: Vec<RepositoryKey> = wholes.iter().map(|whole| whole.name.key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn full(whole: &Whole) -> String {
    short_name(&whole.name.key, whole.name.tag.as_ref(), &whole.digest)
}

/// What the set is of, in short.
fn detail(wholes: &[Whole]) -> String {
    let named: Vec<String> = wholes.iter().filter(|whole| !whole.refers).map(full).collect();
    let shown = named.iter().take(DETAIL_IMAGES).cloned().collect::<Vec<_>>().join(", ");
    let text = match named.len().saturating_sub(DETAIL_IMAGES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    };
    // A name has 1024 bytes at most; what is too long for a row is cut at a character.
    let max = crate::metadata::SET_DETAIL_BYTES_MAX;
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

fn report(gathered: &Gathered, wholes: &[Whole]) -> Report {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let old = gathered.content.iter().filter(|(digest, _)| !gathered.new.contains_key(digest));
    let old: Vec<u64> = old.map(|(_, held)| held.size).collect();
    Report {
        images: count(wholes.iter().filter(|whole| !whole.refers).count()),
        objects: count(gathered.new.len()),
        bytes: gathered.new.values().sum(),
        here: count(old.len()),
        here_bytes: old.iter().sum(),
        ..Report::default()
    }
}

fn events(wholes: &[Whole], moved: &HashMap<(RepositoryKey, String), bool>) -> Vec<Event> {
    let named = wholes.iter().filter(|whole| !whole.refers);
    let event = |whole: &Whole| {
        let tag = whole.name.tag.as_ref().map(ToString::to_string);
        let kept = tag.is_some_and(|tag| moved.get(&(whole.name.key.clone(), tag)) == Some(&false));
        let (fate, reason) = match (kept, whole.news) {
            (true, _) => (Fate::TagKept, Some("the tag was seen to move later here".to_owned())),
            (false, true) => (Fate::Taken, None),
            (false, false) => (Fate::Here, None),
        };
        let (image, digest) = (full(whole), Some(whole.digest.to_string()));
        Event::Image { image, digest, fate, bytes: whole.bytes, reason }
    };
    named.map(event).collect()
}

impl Taken {
    /// Tells it to whoever ordered it.
    pub(super) fn tell(self, carry: &Carry) -> Job {
        let inner = carry.inner();
        let (story, job) = story::begin(inner.shutdown.child_token());
        let Self { images, report } = self;
        inner.tasks.spawn(async move {
            let bytes = report.bytes.saturating_add(report.here_bytes);
            let begun = Event::Begun { work: Work::Import, images: report.images, bytes };
            for event in std::iter::once(begun).chain(images).chain([Event::Ended(report)]) {
                if story.tell(event).await.is_err() {
                    return;
                }
            }
        });
        job
    }
}
