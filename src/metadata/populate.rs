//! Makes a store of any size, for benches and for tests of growth.
//!
//! Not part of the program's surface; public so that benches can reach it. What must hold: the rows are what pulls of the same images
//! would have left, and all of it follows from the plan, so that a bench can name any tag, manifest or blob without looking. The
//! content is generated from its number, and the digests are those of the content. This deliberately makes no files: `place` may.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use rusqlite::{CachedStatement, Connection, params};

use super::connection::open_writer;
use super::model::{FileMark, RepositoryKey, Usage};
use super::operation::{KIND_BLOB, KIND_MANIFEST};
use super::query::{self, STATE_PRESENT};
use crate::clock::Timestamp;
use crate::oci::{Digest, RegistryName, Tag};

/// Layers that many images have in common, as base images are.
pub const BASES: u32 = 64;
/// Of so many tags one is in the first repository, which has a long list of them.
const FIRST_REPOSITORY_SHARE: u32 = 10;
/// Times are spread over as long before the plan's moment.
const PAST_MILLIS: u64 = 20 * 24 * 3600 * 1000;
/// Page cache while rows are made: the index of digests is written at random places.
const CACHE_KIB: i64 = 512 * 1024;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A store of images: image `n` is a manifest with a config, layers of its own, and one of the [`BASES`]. The first `tags` images are
/// what the tags of the same numbers point at; later ones are what tag `n % tags` pointed at before. All repositories are public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub upstream: RegistryName,
    /// All tags are confirmed now, and everything else happened in the weeks before.
    pub now: Timestamp,
    /// At least one.
    pub repositories: u32,
    /// At least one.
    pub tags: u32,
    /// At least as many as tags.
    pub images: u32,
    /// Blobs beside the [`BASES`], spread over the images in their order: `blobs / images` is how many each has of its own.
    pub blobs: u32,
    /// Of each blob; at least 16.
    pub blob_bytes: u32,
}

/// Something of the store, as its digest names it.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    pub digest: Digest,
    pub bytes: &'a [u8],
    /// The image to which it belongs; none for a base.
    pub image: Option<u32>,
}

/// Told of each item before its row is made: may store its bytes, and answers with the mark of the file.
pub type Place<'a> = dyn FnMut(Item<'_>) -> io::Result<Option<FileMark>> + 'a;

impl Plan {
    /// An image for each tag, blobs of 256 bytes.
    pub fn new(upstream: RegistryName, now: Timestamp, blobs: u32, tags: u32) -> Self {
        let repositories = (tags / FIRST_REPOSITORY_SHARE).max(1);
        Self { seed: 1, upstream, now, repositories, tags, images: tags, blobs, blob_bytes: 256 }
    }

    /// The repository in which an image is.
    pub fn repository(&self, image: u32) -> RepositoryKey {
        let name = format!("library/image-{:06}", self.repository_of(image));
        RepositoryKey {
            upstream: self.upstream.clone(),
            name: name.parse().expect("a name of lower-case letters and digits"),
        }
    }

    fn repository_of(&self, image: u32) -> u32 {
        let tag = image % self.tags;
        match self.repositories {
            all @ 2.. if !tag.is_multiple_of(FIRST_REPOSITORY_SHARE) => {
                1 + (tag - tag / FIRST_REPOSITORY_SHARE - 1) % (all - 1)
            }
            _ => 0,
        }
    }

    /// The tag that points at an image, or did.
    pub fn tag(&self, image: u32) -> Tag {
        format!("v{:06}", image % self.tags).parse().expect("a letter and digits")
    }

    /// Numbers of the blobs of an image: its config, its own layers, and a base. One that has none of its own has only the base.
    pub fn blobs_of(&self, image: u32) -> Vec<u32> {
        let first = |image: u32| {
            let blob = u64::from(image) * u64::from(self.blobs) / u64::from(self.images.max(1));
            BASES + u32::try_from(blob).expect("at most as many as blobs")
        };
        let base = self.repository_of(image) % BASES;
        (first(image)..first(image + 1)).chain([base]).collect()
    }

    /// The bytes of a blob.
    pub fn blob(&self, number: u32) -> Vec<u8> {
        let size = usize::try_from(self.blob_bytes).expect("a small number").max(16);
        let mut bytes = Vec::with_capacity(size + 8);
        bytes.extend_from_slice(&u64::from(number).to_be_bytes());
        let mut state = self.mixed(u64::from(number));
        while bytes.len() < size {
            state = mix(state);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(size);
        bytes
    }

    /// The bytes of the manifest of an image.
    pub fn manifest(&self, image: u32) -> Vec<u8> {
        let children = self.blobs_of(image);
        let children: Vec<_> = children.iter().map(|blob| self.blob(*blob)).collect();
        let digests: Vec<_> = children.iter().map(|bytes| Digest::sha256_of(bytes)).collect();
        self.manifest_of(image, &digests)
    }

    fn manifest_of(&self, image: u32, children: &[Digest]) -> Vec<u8> {
        let size = self.blob_bytes.max(16);
        let described = |media_type: &str, digest: &Digest| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        };
        let (config, layers) = children.split_first().expect("an image has a base");
        let layers: Vec<_> = layers.iter().map(|layer| described(LAYER_TYPE, layer)).collect();
        let mut text = format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":"#);
        text.push_str(&described(CONFIG_TYPE, config));
        write!(
            text,
            r#","layers":[{}],"annotations":{{"n":"{}-{image}"}}}}"#,
            layers.join(","),
            self.seed
        )
        .expect("a string takes everything");
        text.into_bytes()
    }

    fn mixed(&self, number: u64) -> u64 {
        mix(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number)
    }

    /// A moment of the past that belongs to an object.
    fn moment(&self, object: u32) -> i64 {
        let back = self.mixed(u64::from(object) << 32) % PAST_MILLIS;
        self.now.as_millis() - i64::try_from(back).expect("a few weeks")
    }
}

/// The step of splitmix64.
fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Makes the rows of `plan` in a database that is new or empty, and answers what is in it. Blocks: about 10 s of CPU for a million blobs.
pub fn populate(path: &Path, plan: &Plan, place: &mut Place<'_>) -> io::Result<Usage> {
    let rows = open_writer(path).map_err(io::Error::other)?;
    let usage = query::usage(&rows).map_err(io::Error::other)?;
    if usage != Usage::default() || plan.tags == 0 || plan.images < plan.tags {
        return Err(io::Error::other("the store is not empty, or the plan makes no sense"));
    }
    let indexes = prepare(&rows).map_err(io::Error::other)?;
    fill(&rows, plan, place)?;
    finish(&rows, &indexes, &plan.upstream).map_err(io::Error::other)
}

/// Nothing is safe from here to the end; a store that was not finished is thrown away. Indexes are made at the end, in one go.
fn prepare(rows: &Connection) -> rusqlite::Result<Vec<String>> {
    rows.pragma_update(None, "journal_mode", "OFF")?;
    rows.pragma_update(None, "synchronous", "OFF")?;
    rows.pragma_update(None, "foreign_keys", false)?;
    rows.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let indexes: Vec<(String, String)> = rows
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    rows.execute_batch("BEGIN EXCLUSIVE")?;
    for (name, _) in &indexes {
        rows.execute_batch(&format!("DROP INDEX {name}"))?;
    }
    Ok(indexes.into_iter().map(|(_, sql)| sql).collect())
}

fn finish(
    rows: &Connection,
    indexes: &[String],
    upstream: &RegistryName,
) -> rusqlite::Result<Usage> {
    for sql in indexes {
        rows.execute_batch(sql)?;
    }
    // All of it came through the one upstream, as the rows of the objects say.
    rows.execute(
        "INSERT INTO origins (id, upstream, objects, bytes) \
         SELECT 1, ?1, count(*), coalesce(sum(size), 0) FROM objects WHERE state = 1",
        [upstream.as_str()],
    )?;
    rows.execute_batch(
        "UPDATE usage SET (objects, bytes) = \
         (SELECT count(*), coalesce(sum(size), 0) FROM objects WHERE state = 1); COMMIT",
    )?;
    rows.pragma_update(None, "journal_mode", "WAL")?;
    query::usage(rows)
}

fn fill(rows: &Connection, plan: &Plan, place: &mut Place<'_>) -> io::Result<()> {
    let mut filler = Filler::new(rows, plan, place).map_err(io::Error::other)?;
    for number in 0..plan.repositories {
        filler.add_repository(number)?;
    }
    let mut bases = Vec::new();
    for number in 0..BASES {
        let bytes = plan.blob(number);
        bases.push(filler.add_object(&bytes, None, KIND_BLOB)?);
    }
    for image in 0..plan.images {
        filler.add_image(image, &bases)?;
    }
    // The moves of a tag in their order: the highest number is the first that it pointed at.
    for tag in 0..plan.tags {
        filler.add_timeline(tag)?;
    }
    Ok(())
}

/// The statements, and the numbers of the rows.
struct Filler<'a> {
    plan: &'a Plan,
    place: &'a mut Place<'a>,
    repository: CachedStatement<'a>,
    object: CachedStatement<'a>,
    edge: CachedStatement<'a>,
    member: CachedStatement<'a>,
    revision: CachedStatement<'a>,
    tag: CachedStatement<'a>,
    timeline: CachedStatement<'a>,
    objects: u32,
    /// The row of each image.
    images: Vec<u32>,
}

impl<'a> Filler<'a> {
    fn new(
        rows: &'a Connection,
        plan: &'a Plan,
        place: &'a mut Place<'_>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            plan,
            place,
            repository: rows.prepare_cached(
                "INSERT INTO repositories (id, upstream, name, public, public_checked) \
                 VALUES (?1, ?2, ?3, 1, ?4)",
            )?,
            object: rows.prepare_cached(
                "INSERT INTO objects (id, digest, kind, state, size, media_type, created, verified, \
                 accessed, modified, inode, idle, origin) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?7, ?8, ?9, ?7, 1)",
            )?,
            edge: rows.prepare_cached("INSERT INTO edges VALUES (?1, ?2, ?3, ?4, 0, NULL)")?,
            member: rows.prepare_cached(
                "INSERT INTO membership (object, repository, proved, size) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT DO NOTHING",
            )?,
            revision: rows.prepare_cached("INSERT INTO revisions (repository, object, media_type, committed) VALUES (?1, ?2, ?3, ?4)")?,
            tag: rows.prepare_cached("INSERT INTO tags VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?,
            timeline: rows.prepare_cached(
                "INSERT INTO timeline (repository, tag, object, since, until, source) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?,
            objects: 0,
            images: Vec::new(),
        })
    }

    fn add_repository(&mut self, number: u32) -> io::Result<()> {
        let plan = self.plan;
        let key = RepositoryKey {
            upstream: plan.upstream.clone(),
            name: format!("library/image-{number:06}").parse().map_err(io::Error::other)?,
        };
        let (upstream, name) = (key.upstream.as_str(), key.name.as_str());
        self.repository
            .execute(params![number + 1, upstream, name, plan.now.as_millis()])
            .map_err(io::Error::other)?;
        Ok(())
    }

    fn add_object(
        &mut self,
        bytes: &[u8],
        image: Option<u32>,
        kind: i64,
    ) -> io::Result<(u32, Digest)> {
        let digest = Digest::sha256_of(bytes);
        let mark = (self.place)(Item { digest, bytes, image })?;
        self.objects += 1;
        let (id, moment) = (self.objects, self.plan.moment(self.objects));
        // Rows of files that were not made are as long as those of others.
        let mark = mark.unwrap_or(FileMark {
            modified_nanos: moment.saturating_mul(1_000_000),
            inode: u64::from(id),
        });
        let media_type = if kind == KIND_BLOB { LAYER_TYPE } else { MANIFEST_TYPE };
        self.object
            .execute(params![
                id,
                digest.to_key(),
                kind,
                STATE_PRESENT,
                i64::try_from(bytes.len()).map_err(io::Error::other)?,
                media_type,
                moment,
                mark.modified_nanos,
                mark.inode.cast_signed(),
            ])
            .map_err(io::Error::other)?;
        Ok((id, digest))
    }

    fn add_image(&mut self, image: u32, bases: &[(u32, Digest)]) -> io::Result<()> {
        let plan = self.plan;
        let mut children = Vec::new();
        for number in plan.blobs_of(image) {
            children.push(match usize::try_from(number).ok().and_then(|base| bases.get(base)) {
                Some(base) => *base,
                None => self.add_object(&plan.blob(number), Some(image), KIND_BLOB)?,
            });
        }
        let digests: Vec<Digest> = children.iter().map(|(_, digest)| *digest).collect();
        let bytes = plan.manifest_of(image, &digests);
        let (manifest, _) = self.add_object(&bytes, Some(image), KIND_MANIFEST)?;
        self.images.push(manifest);
        let size = i64::try_from(bytes.len()).map_err(io::Error::other)?;
        self.relate(image, manifest, size, &children).map_err(io::Error::other)
    }

    fn relate(
        &mut self,
        image: u32,
        manifest: u32,
        size: i64,
        children: &[(u32, Digest)],
    ) -> rusqlite::Result<()> {
        let plan = self.plan;
        let (repository, proved) = (plan.repository_of(image) + 1, plan.moment(manifest));
        self.member.execute(params![manifest, repository, proved, size])?;
        self.revision.execute(params![repository, manifest, MANIFEST_TYPE, proved])?;
        for (position, (child, _)) in children.iter().enumerate() {
            let role = i64::from(position > 0);
            let position = i64::try_from(position).unwrap_or(i64::MAX);
            self.edge.execute(params![manifest, child, role, position])?;
            self.member.execute(params![child, repository, proved, plan.blob_bytes.max(16)])?;
        }
        Ok(())
    }

    fn add_timeline(&mut self, tag: u32) -> io::Result<()> {
        let plan = self.plan;
        let (repository, name) = (plan.repository_of(tag) + 1, plan.tag(tag));
        let (name, source) = (name.as_str(), plan.upstream.as_str());
        let mut numbers = (tag..plan.images).step_by(usize::try_from(plan.tags).unwrap_or(1));
        let mut since = plan.now.as_millis() - i64::try_from(PAST_MILLIS).unwrap_or(0);
        let mut add = || -> rusqlite::Result<()> {
            while let Some(image) = numbers.next_back() {
                let object = self.images[usize::try_from(image).unwrap_or(usize::MAX)];
                let until = (image != tag).then_some(since + 1000);
                self.timeline.execute(params![repository, name, object, since, until, source])?;
                if until.is_none() {
                    let confirmed = plan.now.as_millis();
                    self.tag
                        .execute(params![repository, name, object, since, confirmed, source])?;
                }
                since += 1000;
            }
            Ok(())
        };
        add().map_err(io::Error::other)
    }
}
