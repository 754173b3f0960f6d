//! What a bundle will hold, file by file, and how long it becomes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;

use bytes::Bytes;

use crate::carry::error::{Error, Reason};
use crate::carry::model::{ExportOrder, ExportPlan, ExportedImage};
use crate::carry::service::Carry;
use crate::carry::settings::BUNDLE_OBJECTS_MAX;
use crate::carry::tree::{Wish, referrer_tags, unreadable};
use crate::metadata::RepositoryKey;
use crate::oci::{Digest, Manifest, PlatformPattern, RECEIPT_DIGESTS_MAX, Tag};
use crate::registry::desk::Hold;

use super::archive;
use super::choice::{Choice, Lack, Tree};
use super::documents::{self, Listed, Loadable};
use super::roots::Root;

/// Things that are missing and are told one by one.
const LACKS_TOLD: usize = 100;

/// A file of the bundle.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) source: Source,
}

/// Where its bytes are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Memory(Bytes),
    Content(Digest),
}

/// A bundle before it is written.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) told: ExportPlan,
    pub(super) files: Vec<File>,
}

/// Content of the images, whether or not the other side has it.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) repository: RepositoryKey,
    pub(super) size: u64,
    is_manifest: bool,
}

/// Everything that belongs to the images of an order.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    images: Vec<ExportedImage>,
    named: BTreeMap<String, Listed>,
    /// What refers to an image and has no name.
    referring: BTreeMap<Digest, Listed>,
    loadable: BTreeMap<Loadable, BTreeSet<String>>,
    pub(super) objects: BTreeMap<Digest, Object>,
}

/// What goes into a bundle of one revision, whatever tags it has.
struct Whole {
    choice: Choice,
    listed: Listed,
    /// What refers to it: by the tags that it has for that, or without a name.
    referrers: Vec<(Vec<Tag>, Listed)>,
    /// All of it.
    objects: Vec<(Digest, Object)>,
}

impl Carry {
    /// Finds everything that the order means.
    ///
    /// # Errors
    ///
    /// A name cannot be read or is not known, or an image is not complete; then everything that is missing is told.
    pub(super) async fn gather(&self, order: &ExportOrder) -> Result<Gathered, Error> {
        let wish =
            Wish { platforms: platforms(&order.platforms)?, referrers: !order.without_referrers };
        let roots = self.roots(order).await?;
        let (mut known, mut lacking) =
            (HashMap::<(RepositoryKey, Digest), Whole>::new(), Vec::new());
        for root in &roots {
            let key = (root.key.clone(), root.digest);
            if known.contains_key(&key) {
                continue;
            }
            match self.whole(root, &wish).await? {
                Ok(whole) => drop(known.insert(key, whole)),
                Err(lacks) => lacking.push((root.name(), lacks)),
            }
        }
        if !lacking.is_empty() {
            return Err(incomplete(&lacking));
        }
        let mut gathered = Gathered::default();
        for root in &roots {
            if let Some(whole) = known.get(&(root.key.clone(), root.digest)) {
                self.add(&mut gathered, root, whole).await?;
            }
            if gathered.objects.len() > BUNDLE_OBJECTS_MAX {
                let message = format!(
                    "a bundle holds at most {BUNDLE_OBJECTS_MAX} objects; write fewer images out at a time"
                );
                return Err(Error::new(Reason::Value, message));
            }
        }
        let Gathered { named, referring, .. } = &mut gathered;
        let named: HashSet<Digest> = named.values().map(|listed| listed.digest).collect();
        referring.retain(|digest, _| !named.contains(digest));
        Ok(gathered)
    }

    async fn whole(&self, root: &Root, wish: &Wish) -> Result<Result<Whole, Vec<Lack>>, Error> {
        let members = self.tree(&root.key, &root.digest, wish).await?;
        let tree = Tree::new(root.digest, members);
        let choice = match tree.choose(&wish.platforms, wish.referrers) {
            Ok(choice) => choice,
            Err(lacks) => return Ok(Err(lacks)),
        };
        let Some(listed) = listed(&tree, &root.digest) else {
            return Ok(Err(tree.choose(&[], false).err().unwrap_or_default()));
        };
        let mut chosen = choice.objects.clone();
        let referrers = match wish.referrers {
            true => self.referrers(&root.key, &tree, &mut chosen).await?,
            false => Vec::new(),
        };
        let objects = chosen.into_iter().filter_map(|digest| {
            let member = tree.get(&digest)?;
            let repository = root.key.clone();
            let (size, is_manifest) = (member.size?, member.is_manifest);
            Some((digest, Object { repository, size, is_manifest }))
        });
        let objects = objects.collect();
        Ok(Ok(Whole { choice, listed, referrers, objects }))
    }

    /// What refers to something that is chosen and is here whole; that is chosen then, too.
    async fn referrers(
        &self,
        key: &RepositoryKey,
        tree: &Tree,
        chosen: &mut BTreeSet<Digest>,
    ) -> Result<Vec<(Vec<Tag>, Listed)>, Error> {
        let mut waiting = Vec::new();
        for digest in tree.referrers() {
            if let (Some(objects), Some(mut listed)) = (tree.whole(&digest), listed(tree, &digest))
            {
                let stored = self.content().manifest(key, &digest).await.map_err(unreadable)?;
                let document = stored.and_then(|stored| {
                    Manifest::parse(&stored.bytes, Some(stored.media_type.as_str())).ok()
                });
                let subject = document.as_ref().and_then(|document| document.subject.as_ref());
                let subject = subject.map(|subject| subject.digest);
                listed.artifact_type = document.and_then(|document| document.artifact_type);
                waiting.push((subject, objects, listed));
            }
        }
        // What is signed may be a signature, so this goes on until nothing comes any more.
        let (mut found, mut asked) = (Vec::new(), HashSet::new());
        let mut tags = HashMap::<Digest, Vec<Tag>>::new();
        loop {
            let manifests: Vec<Digest> = chosen
                .iter()
                .filter(|digest| tree.get(digest).is_some_and(|member| member.is_manifest))
                .filter(|digest| asked.insert(**digest))
                .copied()
                .collect();
            for digest in &manifests {
                for tag in referrer_tags(digest) {
                    let record = self.content().metadata().tag(key, &tag).await?;
                    if let Some(digest) = record.and_then(|record| record.digest) {
                        tags.entry(digest).or_default().push(tag);
                    }
                }
            }
            let (now, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(subject, _, listed)| {
                    subject.is_some_and(|subject| chosen.contains(&subject))
                        || tags.contains_key(&listed.digest)
                });
            if now.is_empty() {
                return Ok(found);
            }
            for (_, objects, listed) in now {
                chosen.extend(objects);
                let tags = tags.get(&listed.digest).cloned().unwrap_or_default();
                found.push((tags, listed));
            }
            waiting = later;
        }
    }

    async fn add(&self, gathered: &mut Gathered, root: &Root, whole: &Whole) -> Result<(), Error> {
        let Whole { choice, listed, referrers, objects } = whole;
        let bytes = objects.iter().map(|(_, object)| object.size).sum();
        gathered.images.push(ExportedImage {
            image: root.name(),
            digest: root.digest.to_string(),
            platforms: choice.platforms.clone(),
            bytes,
        });
        gathered.named.insert(root.name(), Listed { since: root.since, ..listed.clone() });
        if let Some(loadable) = &choice.loadable {
            let tags = gathered.loadable.entry(loadable.clone()).or_default();
            tags.extend(
                root.tag.iter().map(|tag| format!("{}:{tag}", documents::short(&root.key))),
            );
        }
        for (tags, listed) in referrers {
            for tag in tags {
                let since = self.since(&root.key, tag, &listed.digest).await?;
                let name = format!("{}:{tag}", root.key);
                let named = gathered.named.entry(name);
                named.or_insert_with(|| Listed { since, ..listed.clone() });
            }
            if tags.is_empty() {
                gathered.referring.insert(listed.digest, listed.clone());
            }
        }
        for (digest, object) in objects {
            gathered.objects.entry(*digest).or_insert_with(|| object.clone());
        }
        Ok(())
    }
}

impl Gathered {
    /// The files of the bundle, without what the other side has.
    pub(super) fn plan(&self, base: &HashSet<Digest>) -> Result<Plan, Error> {
        let left_out = |digest: &Digest| {
            base.contains(digest)
                && self.objects.get(digest).is_none_or(|object| !object.is_manifest)
        };
        let referring: Vec<Listed> = self.referring.values().cloned().collect();
        let loadable = self
            .loadable
            .iter()
            .filter(|(image, _)| !left_out(&image.config) && !image.layers.iter().any(left_out));
        let loadable =
            loadable.map(|(image, tags)| (image.clone(), tags.iter().cloned().collect()));
        let heads = [
            ("oci-layout", Some(Bytes::from_static(documents::LAYOUT))),
            ("index.json", Some(documents::index(&self.named, &referring))),
            ("manifest.json", documents::docker(&loadable.collect())),
        ];
        let heads = heads.into_iter().filter_map(|(path, bytes)| Some((path, bytes?)));
        let mut files: Vec<File> = heads
            .map(|(path, bytes)| File {
                path: path.to_owned(),
                size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
                source: Source::Memory(bytes),
            })
            .collect();
        for manifests in [true, false] {
            let those = self.objects.iter().filter(|(_, object)| object.is_manifest == manifests);
            files.extend(those.filter(|(digest, _)| !left_out(digest)).map(|(digest, object)| {
                let source = Source::Content(*digest);
                File { path: digest.layout_path(), size: object.size, source }
            }));
        }
        let bytes = length(&files).map_err(|error| Error::new(Reason::Value, error.to_string()))?;
        let left = self.objects.keys().filter(|digest| left_out(digest)).count();
        let told = ExportPlan {
            images: self.images.clone(),
            objects: number(self.objects.len() - left),
            bytes,
            left_out: number(left),
            receipt: self.objects.keys().map(ToString::to_string).collect(),
        };
        Ok(Plan { told, files })
    }
}

fn length(files: &[File]) -> io::Result<u64> {
    files.iter().try_fold(number(archive::END.len()), |sum, file| {
        let more = archive::length(&file.path, file.size)?;
        sum.checked_add(more).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
    })
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn listed(tree: &Tree, digest: &Digest) -> Option<Listed> {
    let member = tree.get(digest).filter(|member| member.present)?;
    Some(Listed {
        digest: *digest,
        media_type: member.media_type.clone()?,
        size: member.size?,
        artifact_type: None,
        since: None,
    })
}

fn platforms(texts: &[String]) -> Result<Vec<PlatformPattern>, Error> {
    let read = |text: &String| {
        let refuse = |error| Error::new(Reason::Value, format!("platform {text:?}: {error}"));
        text.parse().map_err(refuse)
    };
    texts.iter().map(read).collect()
}

/// The digests that the other side has.
pub(super) fn base(texts: &[String]) -> Result<HashSet<Digest>, Error> {
    if texts.len() > RECEIPT_DIGESTS_MAX {
        let message = format!("base has more than {RECEIPT_DIGESTS_MAX} digests");
        return Err(Error::new(Reason::Value, message));
    }
    let read = |text: &String| {
        let refuse = |error| Error::new(Reason::Digest, format!("base: {text:?}: {error}"));
        text.parse().map_err(refuse)
    };
    texts.iter().map(read).collect()
}

/// Refuses an order with what is missing.
fn incomplete(lacking: &[(String, Vec<Lack>)]) -> Error {
    let names: Vec<&str> = lacking.iter().take(LACKS_TOLD).map(|(name, _)| name.as_str()).collect();
    let (names, count) = (names.join(", "), lacking.len());
    let all = lacking.iter().flat_map(|(name, lacks)| lacks.iter().map(move |lack| (name, lack)));
    let things = all.clone().count();
    let told = if things > LACKS_TOLD {
        format!("; the first {LACKS_TOLD} of {things}")
    } else {
        String::new()
    };
    let message = match count {
        1 => format!(
            "{names} is not complete here, so nothing is written out; `roadstead warm` fetches what is missing{told}:"
        ),
        _ => format!(
            "{count} images are not complete here, so nothing is written out; `roadstead warm` fetches what is missing of {names}{told}:"
        ),
    };
    let holds = all.take(LACKS_TOLD).map(|(name, lack)| Hold {
        by: lack.state.to_owned(),
        what: format!("{name}: {}", lack.what),
    });
    Error { holds: holds.collect(), ..Error::new(Reason::Incomplete, message) }
}
