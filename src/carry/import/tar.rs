//! Reading a tar from a stream: ustar, GNU long names, PAX records (POSIX.1-2024, pax; tar(5)).
//!
//! The blocks are read with the `tar` crate's header; the walk is our own, because every length here has a limit, because a tar that
//! ends early must be told from one that ends, and because nothing may stand behind its end.

use std::io::{self, Read};

use ::tar::{EntryType, Header};

/// Everything in a tar is a multiple of this.
const BLOCK: usize = 512;
/// Longest name, of a member or of what a link names.
const NAME_BYTES_MAX: u64 = 4096;
/// Longest list of PAX records before a member.
const PAX_BYTES_MAX: u64 = 64 * 1024;
/// Headers that may stand before one member: a long name, a long link, PAX records, each once or twice.
const PREFIXES_MAX: u32 = 8;

/// One thing in the tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// As it stands there.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Of its bytes.
    pub(super) size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// A name relative to the link's own directory.
    Symbolic(String),
    /// A name of a member.
    Hard(String),
}

/// Why it cannot be read on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The stream broke.
    Stream(io::Error),
    /// The tar is bad, in words that name the member.
    Bad(String),
}

pub(super) struct Archive<R> {
    source: R,
    /// Of the member that is being read, for complaints.
    name: String,
    /// Bytes of it that were not read yet, and of the filling behind it.
    rest: u64,
    filling: u64,
}

/// What the headers before a member say of it.
#[derive(Default)]
struct Prefix {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, name: String::new(), rest: 0, filling: 0 }
    }

    /// The next member; what is left of the one before is passed over. `None`: the tar has ended, and nothing but zeros is behind it.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Broken> {
        self.pass_over()?;
        let mut prefix = Prefix::default();
        for _ in 0..PREFIXES_MAX {
            let Some(block) = self.block()? else {
                self.finish()?;
                return Ok(None);
            };
            let header = Header::from_byte_slice(&block);
            if header.cksum().ok() != Some(checksum(&block)) {
                let where_ = if self.name.is_empty() {
                    "it".to_owned()
                } else {
                    format!("what follows {:?}", self.name)
                };
                return Err(Broken::Bad(format!(
                    "{where_} is no tar: the checksum of a header is wrong"
                )));
            }
            let size = header.entry_size().map_err(|_invalid| self.bad("its size is no number"))?;
            match header.entry_type() {
                EntryType::GNULongName => prefix.name = Some(self.text(size)?),
                EntryType::GNULongLink => prefix.link = Some(self.text(size)?),
                EntryType::XHeader => self.pax(size, &mut prefix)?,
                EntryType::XGlobalHeader => {
                    let mut global = Prefix::default();
                    self.pax(size, &mut global)?;
                    if global.name.is_some() || global.link.is_some() || global.size.is_some() {
                        return Err(self.bad("a global header gives all members one name or size"));
                    }
                }
                _ => return self.member(header, size, prefix).map(Some),
            }
        }
        Err(self.bad("too many headers before a member"))
    }

    fn member(&mut self, header: &Header, size: u64, prefix: Prefix) -> Result<Member, Broken> {
        let name = prefix.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let name =
            utf8(name).map_err(|shown| Broken::Bad(format!("{shown}: its name is no UTF-8")))?;
        self.name.clone_from(&name);
        let size = prefix.size.unwrap_or(size);
        let link =
            prefix.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let target = || match utf8(link.unwrap_or_default()) {
            Ok(link) if !link.is_empty() => Ok(link),
            _ => Err(Broken::Bad(format!("{name}: the link names nothing"))),
        };
        let refuse = |what: &str| Err(Broken::Bad(format!("{name}: it is {what}")));
        let kind = match header.entry_type() {
            _ if prefix.sparse => return refuse("a sparse file"),
            EntryType::Regular if name.ends_with('/') => Kind::Directory,
            EntryType::Regular => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symbolic(target()?),
            EntryType::Link => Kind::Hard(target()?),
            EntryType::GNUSparse => return refuse("a sparse file"),
            EntryType::Char | EntryType::Block => return refuse("a device"),
            EntryType::Fifo => return refuse("a pipe"),
            _ => return refuse("of a kind that no image is made of"),
        };
        if kind != Kind::File && size > 0 {
            return Err(Broken::Bad(format!("{name}: a directory or a link has no bytes")));
        }
        self.expect(size);
        Ok(Member { name, kind, size })
    }

    /// The next bytes of the member; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Broken> {
        let room = usize::try_from(self.rest).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..room]).map_err(Broken::Stream)?;
        if read == 0 {
            return Err(self.truncated());
        }
        self.rest -= u64::try_from(read).unwrap_or(u64::MAX);
        Ok(read)
    }

    fn expect(&mut self, size: u64) {
        self.rest = size;
        self.filling = size.wrapping_neg() % 512;
    }

    fn pass_over(&mut self) -> Result<(), Broken> {
        let mut buffer = [0; 4096];
        while self.read(&mut buffer)? > 0 {}
        self.rest = std::mem::take(&mut self.filling);
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// The next block; `None` if it is of zeros, with which a tar ends.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Broken> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]).map_err(Broken::Stream)? {
                0 => return Err(self.truncated()),
                read => filled += read,
            }
        }
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    fn finish(&mut self) -> Result<(), Broken> {
        let mut buffer = [0; 4096];
        loop {
            match self.source.read(&mut buffer).map_err(Broken::Stream)? {
                0 => return Ok(()),
                read if buffer[..read].iter().all(|byte| *byte == 0) => {}
                _ => {
                    return Err(Broken::Bad(
                        "something stands behind the end of the tar".to_owned(),
                    ));
                }
            }
        }
    }

    /// A name that stands in a member of its own.
    fn text(&mut self, size: u64) -> Result<Vec<u8>, Broken> {
        let mut text = self.whole(size, NAME_BYTES_MAX)?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn whole(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, Broken> {
        if size > limit {
            return Err(self.bad("the header before a member is longer than any name"));
        }
        self.expect(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read(&mut bytes[filled..])?;
        }
        self.pass_over()?;
        Ok(bytes)
    }

    fn pax(&mut self, size: u64, prefix: &mut Prefix) -> Result<(), Broken> {
        let bytes = self.whole(size, PAX_BYTES_MAX)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let [key, value, behind] =
                pax_record(rest).ok_or_else(|| self.bad("a PAX record is damaged"))?;
            rest = behind;
            match key {
                b"path" => prefix.name = Some(value.to_vec()),
                b"linkpath" => prefix.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    prefix.size = Some(size.ok_or_else(|| self.bad("a size is no number"))?);
                }
                _ if key.starts_with(b"GNU.sparse.") => prefix.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn truncated(&self) -> Broken {
        match self.name.as_str() {
            "" => Broken::Bad("it ends before its first member".to_owned()),
            name => Broken::Bad(format!("it is cut off: it ends in {name:?} or behind it")),
        }
    }

    fn bad(&self, what: &str) -> Broken {
        match self.name.as_str() {
            "" => Broken::Bad(what.to_owned()),
            name => Broken::Bad(format!("behind {name:?}: {what}")),
        }
    }
}

/// The sum of a header's bytes with blanks in place of the sum.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let own = 148..156;
    let bytes = block.iter().enumerate();
    bytes.map(|(at, byte)| u32::from(if own.contains(&at) { b' ' } else { *byte })).sum()
}

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Key and value of the first record (`LENGTH KEY=VALUE\n`), and what follows it.
fn pax_record(bytes: &[u8]) -> Option<[&[u8]; 3]> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some([&record[..equals], &record[equals + 1..], bytes.get(length..)?])
}
