//! The content that is served: random blobs and images of them, as files that nginx and the origin can serve as they are.
//!
//! The tree below `root` is that of the paths of the protocol: `v2/<name>/manifests/<tag or digest>` and `v2/<name>/blobs/<digest>`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use crate::Result;

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The repository of all images.
pub(crate) const REPOSITORY: &str = "bench/img";
const CONFIG_BYTES: u64 = 1500;
/// Bytes made in one step.
const PIECE: usize = 1 << 20;

/// Where contents are made. Each blob differs from all others of the run.
#[derive(Debug)]
pub(crate) struct Contents {
    root: PathBuf,
    random: SmallRng,
}

/// A blob on disk.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// `sha256:...`
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) file: PathBuf,
}

/// A manifest and what it points at.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) tag: String,
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

impl Image {
    pub(crate) fn by_tag(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{}", self.tag)
    }

    pub(crate) fn by_digest(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{}", self.manifest.digest)
    }

    /// Config and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

impl Blob {
    pub(crate) fn path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.digest)
    }

    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        Ok(fs::read(&self.file)?)
    }
}

impl Contents {
    /// An empty tree at `root`.
    pub(crate) fn new(root: PathBuf) -> Result<Self> {
        for part in ["manifests", "blobs"] {
            fs::create_dir_all(root.join("v2").join(REPOSITORY).join(part))?;
        }
        Ok(Self { root, random: SmallRng::seed_from_u64(0x0c1) })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn directory(&self, part: &str) -> PathBuf {
        self.root.join("v2").join(REPOSITORY).join(part)
    }

    /// A blob of random bytes.
    pub(crate) fn blob(&mut self, size: u64) -> Result<Blob> {
        let unnamed = self.directory("blobs").join("new");
        let mut file = fs::File::create(&unnamed)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            self.random.fill_bytes(&mut piece[..length]);
            hash.update(&piece[..length]);
            file.write_all(&piece[..length])?;
            left -= u64::try_from(length)?;
        }
        let digest = named(hash);
        let file = self.directory("blobs").join(&digest);
        fs::rename(unnamed, &file)?;
        Ok(Blob { digest, size, file })
    }

    /// An image with layers of these sizes.
    pub(crate) fn image(&mut self, tag: &str, layers: &[u64]) -> Result<Image> {
        let config = self.blob(CONFIG_BYTES)?;
        let layers = layers.iter().map(|size| self.blob(*size)).collect::<Result<Vec<_>>>()?;
        let descriptor = |media_type: &str, blob: &Blob| serde_json::json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size});
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect::<Vec<_>>(),
        });
        let bytes = serde_json::to_vec_pretty(&manifest)?;
        let digest = named(Sha256::new().chain_update(&bytes));
        let file = self.directory("manifests").join(&digest);
        fs::write(&file, &bytes)?;
        fs::hard_link(&file, self.directory("manifests").join(tag))?;
        let size = u64::try_from(bytes.len())?;
        Ok(Image { tag: tag.to_owned(), manifest: Blob { digest, size, file }, config, layers })
    }

    /// Gives back the disk of layers that nobody asks for any more.
    pub(crate) fn forget(&self, image: &Image) -> Result<()> {
        for layer in &image.layers {
            fs::remove_file(&layer.file)?;
        }
        Ok(())
    }
}

fn named(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
