//! Reading the members of a bundle, on a thread that may block: hashed and stored as they come, in any order.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Write};

use flate2::write::MultiGzDecoder;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::names::{self, Document, Place};
use super::tar::{Archive, Broken, Kind, Member};
use crate::carry::error::{Error, Reason};
use crate::content::{self, Arrival, Content, Held};
use crate::oci::{Algorithm, Digest, DigestHasher, MANIFEST_SIZE_LIMIT_DEFAULT};

/// Members that a bundle may have: more objects than the largest set of images, and the directories of `docker save`.
const MEMBERS_MAX: usize = 200_000;
/// Bytes that are read, hashed and written at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// What a gzip stream begins with (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A file of a bundle, verified as far as its name says what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The sha256 of what it decompresses to, if it is compressed by gzip and its name does not tell its digest.
    pub(super) unpacked: Option<Digest>,
}

/// Everything that a bundle had in it.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) documents: BTreeMap<Document, Vec<u8>>,
    /// Files by name.
    pub(super) parts: HashMap<String, Part>,
    /// What each link names.
    pub(super) links: HashMap<String, String>,
    /// The content of the bundle, all of it here now.
    pub(super) content: HashMap<Digest, Held>,
    /// What was not here before.
    pub(super) new: HashMap<Digest, u64>,
}

/// Reads all of it.
///
/// Waits for room where there is none, until `gone` is cancelled.
pub(super) fn gather(
    source: impl Read,
    content: &Content,
    (handle, gone): (&Handle, &CancellationToken),
) -> Result<Gathered, Error> {
    let mut source = BufReader::with_capacity(PIECE_BYTES, source);
    let begins = io::BufRead::fill_buf(&mut source).map_err(|error| stream(&error))?;
    if begins.starts_with(&GZIP_MAGIC) {
        let source = flate2::bufread::MultiGzDecoder::new(source);
        return Intake::new(source, content, (handle, gone)).run();
    }
    Intake::new(source, content, (handle, gone)).run()
}

struct Intake<'a, R> {
    archive: Archive<R>,
    content: &'a Content,
    handle: &'a Handle,
    /// Nobody wants it any more.
    gone: &'a CancellationToken,
    gathered: Gathered,
    buffer: Vec<u8>,
}

impl<'a, R: Read> Intake<'a, R> {
    fn new(
        source: R,
        content: &'a Content,
        (handle, gone): (&'a Handle, &'a CancellationToken),
    ) -> Self {
        let (gathered, buffer) = (Gathered::default(), vec![0; PIECE_BYTES]);
        Self { archive: Archive::new(source), content, handle, gone, gathered, buffer }
    }

    fn run(mut self) -> Result<Gathered, Error> {
        let mut members = 0;
        while let Some(member) = self.archive.next().map_err(broken)? {
            members += 1;
            if members > MEMBERS_MAX {
                return Err(bad(
                    &member.name,
                    &format!("it is one of more than {MEMBERS_MAX} members"),
                ));
            }
            let name = names::tidied(&member.name)
                .ok_or_else(|| bad(&member.name, "its name leads out of the bundle, or is none"))?
                .to_owned();
            self.member(&name, &member)?;
        }
        if members == 0 {
            return Err(Error::new(Reason::Bundle, "the bundle is empty"));
        }
        self.links_lead_somewhere()?;
        Ok(self.gathered)
    }

    fn member(&mut self, name: &str, member: &Member) -> Result<(), Error> {
        let target = match &member.kind {
            Kind::Directory => return Self::no_file(name),
            Kind::File => return self.file(name, member.size),
            Kind::Symbolic(target) => names::beside(name, target),
            Kind::Hard(target) => names::tidied(target).map(ToOwned::to_owned),
        };
        let target = target.ok_or_else(|| bad(name, "the link leads out of the bundle"))?;
        Self::known(name)?;
        if self.gathered.parts.contains_key(name) {
            return Err(bad(name, "it is there twice, as a file and as a link"));
        }
        match self.gathered.links.insert(name.to_owned(), target.clone()) {
            Some(before) if before != target => {
                Err(bad(name, "it is there twice, with different contents"))
            }
            _ => Ok(()),
        }
    }

    /// A directory has no name that a file has.
    fn no_file(name: &str) -> Result<(), Error> {
        match names::place(name) {
            Some(_) => Err(bad(name, "it is a directory, and a file of this name belongs there")),
            None => Ok(()),
        }
    }

    fn known(name: &str) -> Result<Place, Error> {
        names::place(name).ok_or_else(|| {
            bad(name, "no file of this name belongs into a bundle, an OCI image layout or what docker save writes")
        })
    }

    fn file(&mut self, name: &str, size: u64) -> Result<(), Error> {
        let place = Self::known(name)?;
        if self.gathered.links.contains_key(name) {
            return Err(bad(name, "it is there twice, as a file and as a link"));
        }
        match place {
            Place::Document(document) => {
                let text = self.small(name, size)?;
                match self.gathered.documents.insert(document, text.clone()) {
                    Some(before) if before != text => {
                        Err(bad(name, "it is there twice, with different contents"))
                    }
                    _ => Ok(()),
                }
            }
            Place::Relic => self.small(name, size).map(drop),
            Place::Blob(digest) => {
                let part = self.blob(name, size, Some(digest))?;
                self.note(name, part)
            }
            Place::Part => {
                let part = self.blob(name, size, None)?;
                self.note(name, part)
            }
        }
    }

    fn note(&mut self, name: &str, part: Part) -> Result<(), Error> {
        match self.gathered.parts.insert(name.to_owned(), part) {
            Some(before) if before.digest != part.digest => {
                Err(bad(name, "it is there twice, with different contents"))
            }
            _ => Ok(()),
        }
    }

    /// A text, in memory.
    fn small(&mut self, name: &str, size: u64) -> Result<Vec<u8>, Error> {
        if size > MANIFEST_SIZE_LIMIT_DEFAULT {
            let limit = MANIFEST_SIZE_LIMIT_DEFAULT;
            return Err(bad(
                name,
                &format!("it has {size} bytes, and {limit} are the most that such a text may have"),
            ));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < text.len() {
            filled += self.archive.read(&mut text[filled..]).map_err(broken)?;
        }
        Ok(text)
    }

    /// Content: hashed, and stored unless it is here. `named`: the digest that its name tells.
    fn blob(&mut self, name: &str, size: u64, named: Option<Digest>) -> Result<Part, Error> {
        let failed = |error| cannot_store(name, size, &error);
        let here = match named {
            Some(digest) => self.handle.block_on(self.content.hold(&digest)).map_err(failed)?,
            None => None,
        };
        let mut arrival = match here {
            Some(_) => None,
            None => Some(self.receive(name, size)?),
        };
        let algorithm = named.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let (digest, unpacked) =
            self.copy(name, size, (algorithm, named.is_none()), arrival.as_mut())?;
        if let Some(named) = named.filter(|named| *named != digest) {
            return Err(bad(name, &format!("its bytes have the digest {digest}, not {named}")));
        }
        let held = match (here, arrival) {
            (Some(held), _) => held,
            (None, None) => return Err(bad(name, "it is neither here nor stored")),
            (None, Some(arrival)) => {
                let before = self.handle.block_on(self.content.hold(&digest)).map_err(failed)?;
                if before.is_none() {
                    self.gathered.new.insert(digest, size);
                }
                self.handle.block_on(self.content.admit(arrival, &digest)).map_err(failed)?
            }
        };
        self.gathered.content.insert(digest, held);
        Ok(Part { digest, size, unpacked })
    }

    /// Room for a member, which is waited for.
    fn receive(&self, name: &str, size: u64) -> Result<Arrival, Error> {
        self.handle.block_on(async {
            tokio::select! {
                arrival = self.content.receive(size) => {
                    arrival.map_err(|error| cannot_store(name, size, &error))
                }
                () = self.gone.cancelled() => {
                    Err(stream(&io::Error::other("nobody waits for it any more")))
                }
            }
        })
    }

    /// Reads the member to its end; the digest of its bytes, and of what they decompress to if that is wanted and they do.
    fn copy(
        &mut self,
        name: &str,
        size: u64,
        (algorithm, unpack): (Algorithm, bool),
        mut arrival: Option<&mut Arrival>,
    ) -> Result<(Digest, Option<Digest>), Error> {
        let mut hasher = DigestHasher::new(algorithm);
        let mut unpacking: Option<MultiGzDecoder<Hashing>> = None;
        let mut first = true;
        loop {
            let read = self.archive.read(&mut self.buffer).map_err(broken)?;
            if read == 0 {
                break;
            }
            let bytes = &self.buffer[..read];
            if std::mem::take(&mut first) && unpack && bytes.starts_with(&GZIP_MAGIC) {
                unpacking =
                    Some(MultiGzDecoder::new(Hashing(DigestHasher::new(Algorithm::Sha256))));
            }
            hasher.update(bytes);
            if let Some(unpacking) = &mut unpacking {
                unpacking
                    .write_all(bytes)
                    .map_err(|error| bad(name, &format!("it is damaged: {error}")))?;
            }
            if let Some(arrival) = arrival.as_deref_mut() {
                arrival.write(bytes).map_err(|error| cannot_store(name, size, &error.into()))?;
            }
        }
        let unpacked = match unpacking {
            Some(unpacking) => {
                let hashing = unpacking
                    .finish()
                    .map_err(|error| bad(name, &format!("it is damaged: {error}")))?;
                Some(hashing.0.finish())
            }
            None => None,
        };
        Ok((hasher.finish(), unpacked))
    }

    /// Each link names a file, and one whose name tells a digest names that content.
    fn links_lead_somewhere(&self) -> Result<(), Error> {
        let Gathered { parts, links, .. } = &self.gathered;
        for name in links.keys() {
            let Some(part) = names::follow(name, parts, links) else {
                return Err(bad(name, "the link leads nowhere, or in a circle"));
            };
            if let Some(Place::Blob(digest)) = names::place(name)
                && part.digest != digest
            {
                return Err(bad(
                    name,
                    &format!("it is a link to content of the digest {}", part.digest),
                ));
            }
        }
        Ok(())
    }
}

/// Hashes what is written.
struct Hashing(DigestHasher);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bundle is refused for one of its members.
pub(super) fn bad(name: &str, why: &str) -> Error {
    Error::new(
        Reason::Bundle,
        format!("the bundle is refused, and nothing of it was taken in: {name}: {why}"),
    )
}

fn broken(broken: Broken) -> Error {
    match broken {
        Broken::Bad(why) => Error::new(
            Reason::Bundle,
            format!("the bundle is refused, and nothing of it was taken in: {why}"),
        ),
        Broken::Stream(error) => stream(&error),
    }
}

/// The bundle did not come to its end.
pub(super) fn stream(error: &io::Error) -> Error {
    Error::new(
        Reason::Bundle,
        format!(
            "the bundle did not come whole: {error}; nothing of it was taken in, and the next try does not store again what came"
        ),
    )
}

pub(super) fn cannot_store(name: &str, size: u64, error: &content::Error) -> Error {
    match error {
        content::Error::NoSpace => Error::new(
            Reason::Room,
            format!(
                "there is no room for {name} ({size} bytes) above min_free; nothing was taken in, and the next try does not store again what came"
            ),
        ),
        content::Error::NoRoom(shortage) => Error::new(
            Reason::Room,
            format!(
                "there is no room for {name} ({size} bytes): {shortage}; nothing was taken in, and the next try does not store again what came"
            ),
        ),
        error => {
            tracing::warn!(%error, name, "a member of a bundle cannot be stored");
            Error::new(
                Reason::Store,
                format!("{name} cannot be stored: {error}; nothing was taken in"),
            )
        }
    }
}
