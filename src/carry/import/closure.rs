//! Is what a bundle lists whole? Reads the manifests, compares what they say of what they name with what is here, and puts them in order.
//!
//! What must hold: each object counts once; a walk ends, however documents point at each other; nothing that is only here, and not in the
//! bundle, can make a good bundle bad; what a bundle only names opens nobody's private content to anybody else.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::intake::{Gathered, bad, cannot_store};
use super::layout::Root;
use crate::carry::error::{Error, Reason};
use crate::carry::settings::TREE_MAX;
use crate::content::{Content, Held};
use crate::metadata::RepositoryKey;
use crate::oci::{
    Descriptor, Digest, MANIFEST_SIZE_LIMIT_DEFAULT, Manifest, ManifestKind, MediaType, Role,
};

/// Indexes within indexes; nobody nests more than two.
const DEPTH_MAX: u32 = 16;
/// Descriptors in all manifests of a bundle, which are in memory together: three for each member that a bundle may have.
const DESCRIPTORS_MAX: usize = 600_000;
/// Missing objects that a refusal names.
const MISSING_TOLD: usize = 20;

/// A manifest that is here.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) manifest: Arc<Manifest>,
    pub(super) size: u64,
    /// It came with the bundle.
    bundled: bool,
    /// What it needs and is not here.
    missing: Vec<(Role, Digest)>,
}

/// What is known so far.
#[derive(Debug)]
pub(super) struct Closure<'a> {
    content: &'a Content,
    gathered: &'a Gathered,
    /// Whose manifests are looked at: what is here only by another repository's credential is not here for it. And all that was read for
    /// whomever, so that nothing is read twice. `None`: all that is here counts, to find out what refers to what.
    of: Option<(RepositoryKey, &'a Closure<'a>)>,
    /// In the manifests that were read.
    descriptors: usize,
    documents: HashMap<Digest, Document>,
    /// What is here and not in the bundle, if it is.
    here: HashMap<Digest, Option<Held>>,
}

/// Something that is to be looked at.
struct Open {
    digest: Digest,
    size: u64,
    media_type: MediaType,
    depth: u32,
    /// What names it, for complaints.
    by: String,
}

impl<'a> Closure<'a> {
    pub(super) fn new(content: &'a Content, gathered: &'a Gathered) -> Self {
        let (documents, here) = (HashMap::new(), HashMap::new());
        Self { content, gathered, of: None, descriptors: 0, documents, here }
    }

    /// The same for one repository.
    pub(super) fn of(&'a self, repository: RepositoryKey) -> Self {
        Self { of: Some((repository, self)), ..Self::new(self.content, self.gathered) }
    }

    pub(super) fn document(&self, digest: &Digest) -> Option<&Document> {
        self.documents.get(digest)
    }

    /// Reads what `index.json` lists, and everything below it.
    pub(super) async fn read(&mut self, root: &Root) -> Result<(), Error> {
        if !self.gathered.content.contains_key(&root.digest) {
            return Err(bad(
                "index.json",
                &format!("it lists {}, which is not in the bundle", root.digest),
            ));
        }
        let Root { digest, size, media_type, .. } = root;
        let media_type = media_type.clone();
        let first = Open {
            digest: *digest,
            size: *size,
            media_type,
            depth: 0,
            by: "index.json".to_owned(),
        };
        let mut open = VecDeque::from([first]);
        let mut seen = HashSet::new();
        while let Some(next) = open.pop_front() {
            if next.depth > DEPTH_MAX {
                return Err(bad(
                    &next.digest.layout_path(),
                    "the indexes above it are nested too deeply",
                ));
            }
            if u32::try_from(seen.len()).unwrap_or(u32::MAX) >= TREE_MAX {
                return Err(bad(
                    &digest.layout_path(),
                    "it has more descriptors below it than any image",
                ));
            }
            let known = self.documents.contains_key(&next.digest);
            self.look(&next).await?;
            if !seen.insert(next.digest) {
                continue;
            }
            let Some(document) = self.documents.get(&next.digest) else {
                continue;
            };
            let children: Vec<(Role, Descriptor)> = document.manifest.children.clone();
            let by = next.digest.layout_path();
            for (role, child) in children {
                if role == Role::Child && child.media_type.is_manifest() {
                    let Descriptor { media_type, digest, size, .. } = child;
                    let depth = next.depth + 1;
                    open.push_back(Open { digest, size, media_type, depth, by: by.clone() });
                } else if !known {
                    self.leaf(&next.digest, role, &child).await?;
                }
            }
        }
        Ok(())
    }

    /// Reads a manifest, unless it was read before; compares what names it with it in any case.
    async fn look(&mut self, open: &Open) -> Result<(), Error> {
        let bundled = self.gathered.content.get(&open.digest).map(|held| held.size);
        let Some(size) = (match bundled {
            Some(size) => Some(size),
            None => self.size_here(&open.digest).await?,
        }) else {
            return Ok(());
        };
        let Open { digest, media_type, by, .. } = open;
        let name = digest.layout_path();
        if open.size != size {
            return Err(bad(&name, &format!("it has {size} bytes, and {by} says {}", open.size)));
        }
        if !self.documents.contains_key(digest) {
            let manifest = match self.parsed(digest, media_type, size).await? {
                Ok(manifest) => manifest,
                Err(why) if bundled.is_some() => return Err(bad(&name, &why)),
                // It is no part of the bundle, so it is as if it were not here.
                Err(_why) => return Ok(()),
            };
            let bundled = bundled.is_some();
            self.documents
                .insert(*digest, Document { manifest, size, bundled, missing: Vec::new() });
        }
        let found = &self.documents[digest].manifest.media_type;
        if found.essence() != media_type.essence() {
            return Err(bad(&name, &format!("it is {found}, and {by} says {media_type}")));
        }
        Ok(())
    }

    /// The manifest, or what is wrong with it.
    async fn parsed(
        &mut self,
        digest: &Digest,
        media_type: &MediaType,
        size: u64,
    ) -> Result<Result<Arc<Manifest>, String>, Error> {
        if let Some(known) = self.of.as_ref().and_then(|(_, all)| all.documents.get(digest)) {
            return Ok(Ok(Arc::clone(&known.manifest)));
        }
        let bytes = self.content.get(digest, MANIFEST_SIZE_LIMIT_DEFAULT).await;
        let bytes = bytes.map_err(|error| cannot_store(&digest.layout_path(), size, &error))?;
        let Some(bytes) = bytes else {
            return Ok(Err("it is larger than a manifest may be, or cannot be read".to_owned()));
        };
        let manifest = match Manifest::parse(&bytes, Some(media_type.as_str())) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.descriptors = self.descriptors.saturating_add(manifest.children.len());
        if self.descriptors > DESCRIPTORS_MAX {
            let why = format!("with it the manifests list more than {DESCRIPTORS_MAX} objects");
            return Err(bad(&digest.layout_path(), &why));
        }
        Ok(Ok(Arc::new(manifest)))
    }

    /// Something that is no manifest: is it here, and as large as the manifest says?
    async fn leaf(&mut self, by: &Digest, role: Role, child: &Descriptor) -> Result<(), Error> {
        let bundled = self.gathered.content.get(&child.digest).map(|held| held.size);
        let found = match bundled {
            Some(size) => Some(size),
            None => self.size_here(&child.digest).await?,
        };
        // Schema 1 says no sizes.
        let of_schema1 = self.documents[by].manifest.kind == ManifestKind::Schema1;
        match found {
            Some(size) if size != child.size && !of_schema1 => Err(bad(
                &child.digest.layout_path(),
                &format!("it has {size} bytes, and {} says {}", by.layout_path(), child.size),
            )),
            None if !child.foreign => {
                let missing = (role, child.digest);
                self.documents.get_mut(by).expect("it was read").missing.push(missing);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn size_here(&mut self, digest: &Digest) -> Result<Option<u64>, Error> {
        if !self.here.contains_key(digest) {
            let failed = |error| cannot_store(&digest.layout_path(), 0, &error);
            let counts = match &self.of {
                Some((key, _)) => {
                    let shown = self.content.metadata().is_shown(digest, key).await;
                    shown.map_err(|error| failed(error.into()))?
                }
                None => true,
            };
            let held = match counts {
                true => self.content.hold(digest).await.map_err(failed)?,
                false => None,
            };
            self.here.insert(*digest, held);
        }
        Ok(self.here.get(digest).and_then(Option::as_ref).map(|held| held.size))
    }

    /// What each manifest of the bundle needs and nobody has; nothing if all of them are whole.
    pub(super) fn check(&self) -> Result<(), Error> {
        let mut whole = HashMap::new();
        let mut missing: Vec<String> = Vec::new();
        let mut digests: Vec<&Digest> = self.documents.keys().collect();
        digests.sort_unstable();
        for digest in digests {
            let document = &self.documents[digest];
            if !document.bundled || self.is_whole(digest, &mut whole) {
                continue;
            }
            let needs =
                |what: &str, child: &Digest| format!("{what} {child}, which {digest} needs");
            if document.manifest.kind == ManifestKind::Index {
                let children = document.manifest.children.iter().map(|(_, child)| &child.digest);
                let absent = children.filter(|child| !self.documents.contains_key(*child));
                missing.extend(absent.map(|child| needs("the manifest", child)));
                if document.manifest.children.is_empty() {
                    return Err(bad(&digest.layout_path(), "it is an index of nothing"));
                }
            }
            missing.extend(document.missing.iter().map(|(role, child)| {
                needs(if *role == Role::Config { "the configuration" } else { "the layer" }, child)
            }));
        }
        if missing.is_empty()
            && self
                .documents
                .iter()
                .all(|(digest, document)| !document.bundled || self.is_whole(digest, &mut whole))
        {
            return Ok(());
        }
        let count = missing.len();
        missing.truncate(MISSING_TOLD);
        let mut told = missing.join("; ");
        if count > MISSING_TOLD {
            told = format!("{told}; and {} more", count - MISSING_TOLD);
        }
        if told.is_empty() {
            "no platform of an index in it is complete".clone_into(&mut told);
        }
        Err(Error::new(
            Reason::Incomplete,
            format!(
                "the bundle is refused, and nothing of it was taken in: neither in it nor here: {told}. If it is a delta (export --base), import its base first"
            ),
        ))
    }

    /// Is everything here that a platform needs?
    fn is_whole(&self, digest: &Digest, known: &mut HashMap<Digest, bool>) -> bool {
        if let Some(whole) = known.get(digest) {
            return *whole;
        }
        // Against circles, which digests rule out.
        known.insert(*digest, false);
        let whole = self.documents.get(digest).is_some_and(|document| {
            if document.manifest.kind != ManifestKind::Index {
                return document.missing.is_empty();
            }
            // Attestations stand beside images and are none.
            let manifest = &document.manifest;
            let children = manifest.children.iter();
            let platforms = children.filter(|(_, child)| manifest.attested_by(child).is_none());
            platforms.fold(false, |whole, (_, child)| self.is_whole(&child.digest, known) || whole)
        });
        known.insert(*digest, whole);
        whole
    }

    /// The manifests of an image that are whole, those that others list first.
    pub(super) fn included(&self, root: &Digest) -> Vec<Digest> {
        let (mut whole, mut seen, mut order) = (HashMap::new(), HashSet::new(), Vec::new());
        self.include(root, &mut whole, &mut seen, &mut order);
        order
    }

    fn include(
        &self,
        digest: &Digest,
        whole: &mut HashMap<Digest, bool>,
        seen: &mut HashSet<Digest>,
        order: &mut Vec<Digest>,
    ) {
        if !self.is_whole(digest, whole) || !seen.insert(*digest) {
            return;
        }
        let children = &self.documents[digest].manifest.children;
        for (_, child) in children.iter().filter(|(role, _)| *role == Role::Child) {
            self.include(&child.digest, whole, seen, order);
        }
        order.push(*digest);
    }

    /// Everything of an image that is here, with its size; each object once.
    pub(super) fn objects(&self, included: &[Digest]) -> HashMap<Digest, u64> {
        let mut objects = HashMap::new();
        for digest in included {
            let document = &self.documents[digest];
            objects.insert(*digest, document.size);
            let leaves = document.manifest.children.iter();
            for (_, child) in leaves.filter(|(role, _)| *role != Role::Child) {
                let bundled = self.gathered.content.get(&child.digest);
                let here = || self.here.get(&child.digest).and_then(Option::as_ref);
                if let Some(held) = bundled.or_else(here) {
                    objects.insert(child.digest, held.size);
                }
            }
        }
        objects
    }
}
