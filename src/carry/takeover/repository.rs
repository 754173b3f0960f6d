//! One repository of a folder: manifests with what they need, then indexes, then tags, then what only a link speaks for.

use std::collections::HashSet;
use std::sync::Arc;

use super::book::{Book, Known, REVISIONS_MAX};
use super::layout::{FolderTag, Links, Odd, Tags};
use super::tags::moves;
use super::work::{Got, Stop, Takeover};
use crate::carry::events::{Event, Fate};
use crate::content::Flaw;
use crate::metadata::{ImportCommit, ImportedTag, Proof, RepositoryKey, RevisionCommit, SetMember};
use crate::oci::{
    Descriptor, Digest, MANIFEST_SIZE_LIMIT_DEFAULT, Manifest, ManifestKind, MediaType,
    RepositoryName, Role,
};
use crate::span::Lease;

/// Revisions whose rows are written at a time.
const REVISIONS_AT_A_TIME: usize = 64;
/// Links that are read from the folder at a time.
const LINKS_AT_A_TIME: usize = 1024;
/// Tags whose rows are written at a time.
const TAGS_AT_A_TIME: usize = 64;
/// Untagged revisions that become members of the set at a time.
const MEMBERS_AT_A_TIME: usize = 256;
/// Indexes in indexes in indexes; nobody makes deeper ones.
const NESTING_MAX: usize = 8;

/// The repository that is being worked on.
struct Repository {
    /// What the folder holds under a repository is proof that it belongs there.
    proof: Proof,
    /// As it is called in the folder.
    name: RepositoryName,
    key: RepositoryKey,
    book: Book,
    /// Rows that are not written yet, with the leases of what they need.
    slice: ImportCommit,
    leases: Vec<Lease>,
}

/// What one manifest is and needs.
struct Document {
    manifest: Manifest,
    size: u64,
}

impl Takeover {
    /// Takes a repository over.
    pub(super) async fn repository(&mut self, name: RepositoryName) -> Result<(), Stop> {
        let image = self.carry().inner().desk.image(&format!("{}/{name}", self.upstream));
        let key = match image {
            Ok(image) => image.key().clone(),
            Err(error) => {
                return self.leave_out(Odd { what: name.to_string(), reason: error.message }).await;
            }
        };
        let mut slice = self.slice();
        if self.order.public {
            slice.public.push(key.clone());
        }
        let (book, leases) = (Book::default(), Vec::new());
        let proof = self.carry().proof_of_import(&key, self.now(), self.order.public).await;
        let proof = proof.map_err(|error| Stop::Aborted(error.message))?;
        let mut repository = Repository { proof, name, key, book, slice, leases };
        Box::pin(self.revisions(&mut repository)).await?;
        Box::pin(self.tags(&mut repository)).await?;
        self.untagged(&mut repository).await?;
        Box::pin(self.layers(&mut repository)).await?;
        for (_digest, odd) in repository.book.troubles(&repository.key.to_string()) {
            self.leave_out(odd).await?;
        }
        Ok(())
    }

    async fn revisions(&mut self, repository: &mut Repository) -> Result<(), Stop> {
        let (folder, name) = (Arc::clone(&self.folder), repository.name.clone());
        let mut links = self.blocking(move || Links::of_revisions(folder, &name)).await?;
        let mut indexes = Vec::new();
        let mut too_many: u64 = 0;
        loop {
            let page;
            (links, page) = self.page(links, LINKS_AT_A_TIME).await?;
            if page.is_empty() {
                break;
            }
            for link in page {
                match link {
                    Err(odd) => self.leave_out(odd).await?,
                    Ok(_) if repository.book.revisions.len() >= REVISIONS_MAX => too_many += 1,
                    Ok((digest, _written)) => {
                        repository.book.revisions.insert(digest, Known::default());
                        self.revision(repository, digest, Some(&mut indexes)).await?;
                    }
                }
            }
        }
        if too_many > 0 {
            let what = repository.name.to_string();
            let reason =
                format!("{too_many} revisions are left out: it has more than {REVISIONS_MAX}");
            self.leave_out(Odd { what, reason }).await?;
        }
        self.indexes(repository, indexes).await?;
        self.write(repository).await?;
        Ok(())
    }

    /// Those that list other manifests come after them.
    async fn indexes(
        &mut self,
        repository: &mut Repository,
        mut left: Vec<Digest>,
    ) -> Result<(), Stop> {
        for _depth in 0..NESTING_MAX {
            let (now, mut later) = (std::mem::take(&mut left), Vec::new());
            let waiting: HashSet<Digest> = now.iter().copied().collect();
            for digest in now {
                let waits = match self.document(&digest).await? {
                    Ok(document) => {
                        let mut children = children_of(&document.manifest);
                        children.any(|child| {
                            child.digest != digest && {
                                let known = repository.book.revisions.get(&child.digest);
                                waiting.contains(&child.digest)
                                    && known.is_some_and(|known| !known.taken)
                            }
                        })
                    }
                    Err(_flaw) => false,
                };
                if waits {
                    later.push(digest);
                } else {
                    self.revision(repository, digest, None).await?;
                }
            }
            left = later;
            if left.is_empty() {
                return Ok(());
            }
        }
        for digest in left {
            let reason =
                "it is an index in an index in an index, and so on, without end".to_owned();
            repository.book.note_trouble(digest, Flaw::Unreadable(reason), digest);
            note_flaw(repository, digest, digest);
        }
        Ok(())
    }

    /// Takes one manifest in with what it needs. An index goes to `indexes` instead, if there is such a list.
    async fn revision(
        &mut self,
        repository: &mut Repository,
        digest: Digest,
        indexes: Option<&mut Vec<Digest>>,
    ) -> Result<(), Stop> {
        let document = match self.document(&digest).await? {
            Ok(document) => document,
            Err(flaw) => {
                repository.book.note_trouble(digest, flaw, digest);
                note_flaw(repository, digest, digest);
                return Ok(());
            }
        };
        if let Some(indexes) = indexes
            && document.manifest.kind == ManifestKind::Index
        {
            indexes.push(digest);
            return Ok(());
        }
        let mut needed = blobs_of(&document.manifest);
        // The manifest itself is the last.
        needed.push(digest);
        let got = self.take_all(&needed).await?;
        let mut known = Known { whole: true, taken: true, ..Known::default() };
        for (needs, got) in needed.iter().zip(got) {
            match got {
                Ok(Got { size, fresh, lease }) => {
                    known.bytes += size;
                    known.fresh |= fresh;
                    repository.leases.push(lease);
                }
                Err(flaw) => {
                    known.whole = false;
                    known.taken &= *needs != digest;
                    known.note_flaw(*needs);
                    repository.book.note_trouble(*needs, flaw, digest);
                }
            }
        }
        gather_children(&mut repository.book, &document.manifest, &mut known);
        if known.taken {
            let commit = self.commit_of(repository, digest, document);
            repository.slice.revisions.push(commit);
        }
        repository.book.revisions.insert(digest, known);
        if repository.slice.revisions.len() >= REVISIONS_AT_A_TIME {
            self.write(repository).await?;
        }
        Ok(())
    }

    /// Reads and verifies a manifest: from here if it is here, else from the folder.
    async fn document(&self, digest: &Digest) -> Result<Result<Document, Flaw>, Stop> {
        let limit = MANIFEST_SIZE_LIMIT_DEFAULT;
        let bytes = match self.content().get(digest, limit).await? {
            Some(bytes) => bytes.to_vec(),
            None => match self.read_verified(digest, limit).await? {
                Ok(bytes) => bytes,
                Err(flaw) => return Ok(Err(flaw)),
            },
        };
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(match Manifest::parse(&bytes, None) {
            Ok(mut manifest) => {
                if manifest.kind == ManifestKind::Schema1 && !is_signed(&bytes) {
                    manifest.media_type =
                        MediaType::DOCKER_SCHEMA1.parse().expect("it is a media type");
                }
                Ok(Document { manifest, size })
            }
            Err(invalid) => Err(Flaw::Unreadable(invalid.to_string())),
        })
    }

    fn commit_of(
        &self,
        repository: &Repository,
        digest: Digest,
        document: Document,
    ) -> RevisionCommit {
        let Document { manifest, size } = document;
        RevisionCommit {
            repository: repository.key.clone(),
            digest,
            media_type: manifest.media_type,
            size,
            children: manifest.children,
            subject: manifest.subject.map(|subject| subject.digest),
            artifact_type: manifest.artifact_type,
            proof: repository.proof,
            at: self.now(),
            tag: None,
        }
    }

    /// Writes the rows that wait, and lets what they need go.
    async fn write(&mut self, repository: &mut Repository) -> Result<Vec<bool>, Stop> {
        let slice = std::mem::replace(&mut repository.slice, self.slice());
        let idle = slice.revisions.is_empty() && slice.tags.is_empty();
        // The operator's word is of each slice.
        repository.slice.public.clone_from(&slice.public);
        if idle && slice.members.is_empty() {
            return Ok(Vec::new());
        }
        let imported = self.commit(slice).await?;
        repository.leases.clear();
        Ok(imported.moved)
    }

    async fn tags(&mut self, repository: &mut Repository) -> Result<(), Stop> {
        let (folder, name) = (Arc::clone(&self.folder), repository.name.clone());
        let mut tags = self.blocking(move || Tags::of(folder, &name)).await?;
        loop {
            let page;
            (tags, page) = self.page(tags, TAGS_AT_A_TIME).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut images = Vec::with_capacity(page.len());
            for tag in page {
                match tag {
                    Ok(tag) => images.extend(self.tag(repository, tag).await?),
                    Err(odd) => self.leave_out(odd).await?,
                }
            }
            let moved = self.write(repository).await?;
            for ((image, digest), moved) in images.into_iter().zip(moved) {
                self.tell_image(repository, image, digest, moved).await?;
            }
        }
    }

    /// Puts a tag among the rows that wait; the image that it is and what it points at.
    async fn tag(
        &mut self,
        repository: &mut Repository,
        tag: FolderTag,
    ) -> Result<Option<(String, Digest)>, Stop> {
        let FolderTag { tag, current, index, odds } = tag;
        for odd in odds {
            self.leave_out(odd).await?;
        }
        let image = format!("{}:{tag}", repository.key);
        let digest = current.0;
        if !repository.book.revisions.get(&digest).is_some_and(|known| known.taken) {
            self.fail_tag(repository, image, digest).await?;
            return Ok(None);
        }
        let known = |digest: &Digest| repository.book.revisions.get(digest);
        let index: Vec<_> = index
            .into_iter()
            .filter(|(digest, _)| known(digest).is_some_and(|known| known.taken))
            .collect();
        let now = self.now();
        let moves = moves(current, &index, now);
        for (digest, at) in &moves {
            if let Some(known) = repository.book.revisions.get_mut(digest) {
                known.is_tagged = true;
            }
            let (repository_key, tag) = (repository.key.clone(), Some(tag.clone()));
            let member = SetMember { repository: repository_key, digest: *digest, tag, at: *at };
            repository.slice.members.push(member);
        }
        let source = format!("takeover {}", self.set);
        let repository_key = repository.key.clone();
        repository.slice.tags.push(ImportedTag { repository: repository_key, tag, moves, source });
        Ok(Some((image, digest)))
    }

    /// A tag whose revision was not taken over.
    async fn fail_tag(
        &mut self,
        repository: &mut Repository,
        image: String,
        digest: Digest,
    ) -> Result<(), Stop> {
        let reason = repository.book.name_flaws(&digest, &image).unwrap_or_else(|| {
            format!("{digest} is no revision of the folder's repository: it expired or was deleted there")
        });
        if !repository.book.is_trouble(&digest) {
            self.leave_out(Odd { what: image.clone(), reason: reason.clone() }).await?;
        }
        self.report.images += 1;
        self.report.failed += 1;
        let (digest, reason) = (Some(digest.to_string()), Some(reason));
        self.tell(Event::Image { image, digest, fate: Fate::Failed, bytes: 0, reason }).await
    }

    /// Tells what became of an image that was taken over.
    async fn tell_image(
        &mut self,
        repository: &mut Repository,
        image: String,
        digest: Digest,
        moved: bool,
    ) -> Result<(), Stop> {
        let flaw = repository.book.name_flaws(&digest, &image);
        let known = repository.book.revisions.get(&digest).cloned().unwrap_or_default();
        let (fate, reason) = match known {
            Known { whole: false, .. } => {
                let reason =
                    flaw.unwrap_or_else(|| "no platform of it is in the folder".to_owned());
                (Fate::Failed, Some(reason))
            }
            _ if !moved => (
                Fate::TagKept,
                Some("the tag was seen to move later here, and stays where it is".to_owned()),
            ),
            Known { fresh: true, .. } => (Fate::Taken, flaw),
            Known { fresh: false, .. } => (Fate::Here, flaw),
        };
        self.report.images += 1;
        self.report.failed += u64::from(fate == Fate::Failed);
        let digest = Some(digest.to_string());
        self.tell(Event::Image { image, digest, fate, bytes: known.bytes, reason }).await
    }

    /// Revisions to which neither a tag nor an index leads are images by their digest.
    async fn untagged(&mut self, repository: &mut Repository) -> Result<(), Stop> {
        let alone = |known: &Known| known.taken && !known.is_child && !known.is_tagged;
        let revisions = repository.book.revisions.iter();
        let mut alone: Vec<Digest> =
            revisions.filter(|(_, known)| alone(known)).map(|(digest, _)| *digest).collect();
        alone.sort_unstable();
        for some in alone.chunks(MEMBERS_AT_A_TIME) {
            let (repository_key, at) = (&repository.key, self.now());
            let member = |digest: &Digest| {
                let repository = repository_key.clone();
                SetMember { repository, digest: *digest, tag: None, at }
            };
            repository.slice.members = some.iter().map(member).collect();
            self.write(repository).await?;
            for digest in some {
                let image = format!("{}@{digest}", repository.key);
                self.tell_image(repository, image, *digest, true).await?;
            }
        }
        Ok(())
    }

    /// Blobs that the repository links and no manifest of it names: of something that was pushed or fetched half, or whose manifest
    /// expired first.
    async fn layers(&mut self, repository: &mut Repository) -> Result<(), Stop> {
        let (folder, name) = (Arc::clone(&self.folder), repository.name.clone());
        let mut links = self.blocking(move || Links::of_layers(folder, &name)).await?;
        loop {
            let page;
            (links, page) = self.page(links, LINKS_AT_A_TIME).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut unnamed = Vec::new();
            for link in page {
                match link {
                    Ok((digest, _)) if self.is_unnamed(repository, &digest).await? => {
                        unnamed.push(digest);
                    }
                    Ok(_named) => {}
                    Err(odd) => self.leave_out(odd).await?,
                }
            }
            let got = self.take_all(&unnamed).await?;
            for (digest, got) in unnamed.into_iter().zip(got) {
                match got {
                    Ok(Got { size, lease, .. }) => {
                        let (rows, proof) = (self.content().metadata(), repository.proof);
                        rows.prove(&repository.key, &digest, Some(size), proof).await?;
                        drop(lease);
                    }
                    // Collecting leaves the links of what it takes.
                    Err(Flaw::Missing) => {}
                    Err(flaw) => {
                        let what = super::layout::blob_path(&digest).display().to_string();
                        let reason = format!("{}; no image needs it", super::layout::words(&flaw));
                        self.leave_out(Odd { what, reason }).await?;
                    }
                }
            }
        }
    }

    async fn is_unnamed(&self, repository: &Repository, digest: &Digest) -> Result<bool, Stop> {
        if repository.book.is_trouble(digest) {
            return Ok(false);
        }
        let record = self.content().metadata().blob(&repository.key, digest).await?;
        Ok(record.proof.is_none())
    }
}

/// A revision needs something that is wrong.
fn note_flaw(repository: &mut Repository, revision: Digest, wrong: Digest) {
    repository.book.revisions.entry(revision).or_default().note_flaw(wrong);
}

/// The manifests that an index lists.
fn children_of(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let is_child =
        |role: &Role, child: &Descriptor| *role == Role::Child && child.media_type.is_manifest();
    manifest
        .children
        .iter()
        .filter(move |(role, child)| is_child(role, child))
        .map(|(_, child)| child)
}

/// The blobs that a manifest needs, each once. An index may list blobs too (the build caches of BuildKit); what is fetched from elsewhere
/// is nobody's.
fn blobs_of(manifest: &Manifest) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let is_blob = |role: &Role, child: &Descriptor| {
        !child.foreign && (*role != Role::Child || !child.media_type.is_manifest())
    };
    let blobs = manifest.children.iter().filter(|(role, child)| is_blob(role, child));
    blobs.map(|(_, child)| child.digest).filter(|digest| seen.insert(*digest)).collect()
}

/// An index is what its children are: one platform that is whole is enough, and those that were never pulled are no damage.
fn gather_children(book: &mut Book, manifest: &Manifest, known: &mut Known) {
    let (mut any_child, mut any_whole) = (false, false);
    for child in children_of(manifest) {
        any_child = true;
        let Some(below) = book.revisions.get_mut(&child.digest) else {
            continue;
        };
        below.is_child = true;
        // Attestations stand beside images and are none.
        let is_platform = manifest.attested_by(child).is_none();
        any_whole |= below.whole && is_platform;
        known.fresh |= below.fresh;
        known.bytes += below.bytes;
        for flaw in &below.flaws {
            known.note_flaw(*flaw);
        }
    }
    known.whole &= !any_child || any_whole;
}

/// Has a schema 1 manifest signatures? Distribution stored them apart, and later not at all.
fn is_signed(bytes: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Signed {
        signatures: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Signed>(bytes).is_ok_and(|signed| signed.signatures.is_some())
}
