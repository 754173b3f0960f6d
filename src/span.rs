//! Content files, regions of them, and the ways to read and to send them.
//!
//! Made by `blobs` and by a running download, carried to the server, which sends it. What must hold: the file under a span is never
//! truncated, and bytes that a span covers are never overwritten; it only grows, or loses its name, so a span stays readable for as long
//! as it is held. This is the only file of the program that may hold `unsafe`, and the only one that knows mappings.
//!
//! What is in the page cache is sent by the kernel ([`Span::sendable`], [`Span::send`]) and never comes into this program. Whoever wants
//! to look at bytes, be it for TLS, HTTP/2 or a hash, takes [`Span::read_frame`], which blocks and belongs on the blocking pool, or
//! [`Span::read_cached`], which does not. Nobody reads through a mapping: there a page that cannot be read is a SIGBUS, the end of the
//! process, whereas all of these make an error of it.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};

/// Bytes of the largest frame that is read into memory: large enough that the system calls do not count, small enough that a stalled
/// client holds little.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Bytes of the largest window that is sent from a file, and of one `sendfile`: the socket is a fast client's for no longer than that.
pub const WINDOW_BYTES: u64 = 1024 * 1024;
/// Free buffers that a pool keeps: 4 MiB, enough for the frames in motion on a busy machine.
const FREE_FRAMES_MAX: usize = 16;
/// `cachestat(2)`, Linux 6.5; the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// An open file of the store or of a running download.
#[derive(Debug)]
pub struct ContentFile {
    file: Arc<File>,
    size: Option<u64>,
    /// For [`Span::resident_pages`] alone, and never read. `None` inside: it cannot be mapped.
    mapping: OnceLock<Option<MmapRaw>>,
    _lease: Option<Lease>,
}

/// Places of a [`Leases`] table; a power of two. Of 100 files in use, one other in 160 looks as if it were, too.
const LEASES: usize = 16 * 1024;

/// How many open files of each digest are in use: a count at a place that the digest names, so that a lease costs two additions and no
/// lock. Two digests may have the same place; then each is as much in use as both.
#[derive(Clone, Debug)]
pub struct Leases(Arc<[AtomicU32]>);

/// The file is in use until this is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    place: usize,
}

impl Default for Leases {
    fn default() -> Self {
        Self((0..LEASES).map(|_place| AtomicU32::default()).collect())
    }
}

impl Leases {
    /// A digest is as good as random: its first bytes are the place.
    fn place(value: &[u8]) -> usize {
        let bytes = value.iter().take(4);
        bytes.fold(0, |place, byte| place << 8 | usize::from(*byte)) % LEASES
    }

    /// `value` is the raw value of the digest.
    pub fn take(&self, value: &[u8]) -> Lease {
        let place = Self::place(value);
        self.0[place].fetch_add(1, Ordering::SeqCst);
        Lease { leases: self.clone(), place }
    }

    /// Is a file of the digest in use, or one of a digest that has the same place?
    pub fn holds(&self, value: &[u8]) -> bool {
        self.0[Self::place(value)].load(Ordering::SeqCst) > 0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.0[self.place].fetch_sub(1, Ordering::SeqCst);
    }
}

impl ContentFile {
    /// The caller promises that the file is never truncated or overwritten, and grows up to `size` at most.
    pub fn new(file: Arc<File>, size: Option<u64>) -> Arc<Self> {
        Arc::new(Self { file, size, mapping: OnceLock::new(), _lease: None })
    }

    /// The same for a file of the store, which is in use for as long as somebody has this.
    pub fn leased(file: Arc<File>, size: u64, lease: Lease) -> Arc<Self> {
        let (size, mapping, _lease) = (Some(size), OnceLock::new(), Some(lease));
        Arc::new(Self { file, size, mapping, _lease })
    }

    /// The mapping of the whole size, made when first asked for. It may reach beyond the end of a file that is still growing.
    fn mapping(&self) -> Option<&MmapRaw> {
        let map = || {
            let length = usize::try_from(self.size?).ok().filter(|length| *length > 0)?;
            MmapOptions::new().len(length).map_raw_read_only(&*self.file).ok()
        };
        self.mapping.get_or_init(map).as_ref()
    }
}

/// Bytes `start..end` of a file.
#[derive(Clone, Debug)]
pub struct Span {
    file: Arc<ContentFile>,
    start: u64,
    end: u64,
}

/// What bodies are made of.
#[derive(Clone, Debug)]
pub enum Chunk {
    Memory(Bytes),
    /// Bytes of a file that were in the page cache a moment ago, so that sending them should not wait for the disk.
    File(Span),
}

impl Chunk {
    /// Number of bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::File(span) => span.length(),
        }
    }

    /// The bytes themselves, for whoever looks at them; blocks. A file shorter than promised is an error.
    pub fn read(self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes),
            Self::File(span) => {
                let length = usize::try_from(span.length()).map_err(io::Error::other)?;
                let mut bytes = vec![0; length];
                span.file.file.read_exact_at(&mut bytes, span.start)?;
                Ok(bytes.into())
            }
        }
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

impl Span {
    /// The caller promises that the file holds these bytes and never changes them.
    pub fn new(file: Arc<ContentFile>, start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { file, start, end }
    }

    /// Number of bytes.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The bytes `start..end` counted from the beginning of this span, cut to its length.
    pub fn slice(&self, start: u64, end: u64) -> Self {
        let clamp = |offset: u64| self.start.saturating_add(offset).min(self.end);
        let (start, end) = (clamp(start), clamp(end));
        Self { file: Arc::clone(&self.file), start, end: end.max(start) }
    }

    /// Reads one frame, at most [`FRAME_BYTES`], from `offset` within the span; blocks. A file shorter than the span is an error
    /// (`UnexpectedEof`), never a short success: the store promised those bytes.
    pub fn read_frame(&self, offset: u64, pool: &FramePool) -> io::Result<Bytes> {
        let left = self.length().saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(FRAME_BYTES);
        let mut frame = pool.take();
        self.file.file.read_exact_at(&mut frame.buffer[..wanted], self.start + offset)?;
        Ok(Bytes::from_owner(frame).slice(..wanted))
    }

    /// All of a span of at most [`FRAME_BYTES`], if that needs no disk. Does not block.
    pub fn read_cached(&self, pool: &FramePool) -> Option<Bytes> {
        let wanted = usize::try_from(self.length()).ok().filter(|wanted| *wanted <= FRAME_BYTES)?;
        let mut frame = pool.take();
        let buffer = &mut frame.buffer[..wanted];
        self.read_now(self.start, buffer).then(|| Bytes::from_owner(frame).slice(..wanted))
    }

    /// Fills all of `buffer` from the page cache; `false` if that needs the disk, or the file is shorter.
    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let wanted = buffer.len();
        let mut buffers = [IoSliceMut::new(buffer)];
        let file = &*self.file.file;
        let read = rustix::io::preadv2(file, &mut buffers, offset, ReadWriteFlags::NOWAIT);
        read.is_ok_and(|read| read == wanted)
    }

    /// The first bytes of the span, at most [`WINDOW_BYTES`], if sending them needs no disk. Does not block.
    pub fn sendable(&self) -> Option<Self> {
        let window = self.slice(0, WINDOW_BYTES);
        let last = window.end.checked_sub(1).filter(|last| *last >= window.start)?;
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        let pages = last / page - window.start / page + 1;
        let cached = window.cached_pages().or_else(|| window.resident_pages(page))?;
        // What the disk is still reading counts as cached, but is not read at once: it comes in order, so the last byte is asked. A
        // file that was cut behind our back has none.
        (cached >= pages && window.read_now(last, &mut [0])).then_some(window)
    }

    /// How many pages of the span are in the page cache, or on their way there. `None` if the kernel cannot tell.
    fn cached_pages(&self) -> Option<u64> {
        let range = CacheRange { offset: self.start, length: self.length() };
        let mut found = CacheCounts::default();
        let file = self.file.file.as_raw_fd();
        #[expect(unsafe_code, reason = "no crate of ours has this system call")]
        // SAFETY: the descriptor is open for the length of the call, as `self` holds the file. Both pointers are to live values of the
        // layout that cachestat(2) documents; the kernel reads the first, writes the second within its bounds, and keeps neither.
        let result =
            unsafe { libc::syscall(SYS_CACHESTAT, file, &raw const range, &raw mut found, 0_u32) };
        (result == 0).then_some(found.cached)
    }

    /// The same by `mincore(2)`, for kernels before 6.5 and guards that do not know the newer call: exact, and some twenty times as
    /// dear.
    fn resident_pages(&self, page: u64) -> Option<u64> {
        let mapping = self.file.mapping()?;
        let start = self.start - self.start % page;
        let length = usize::try_from(self.end - start).ok()?;
        let first = usize::try_from(start).ok()?;
        if first.checked_add(length)? > mapping.len() {
            return None;
        }
        let mut found = vec![0_u8; length.div_ceil(usize::try_from(page).ok()?)];
        let address = mapping.as_mut_ptr().wrapping_add(first);
        #[expect(unsafe_code, reason = "no crate of ours has this system call")]
        // SAFETY: `address..address + length` lies in the mapping, which `self` holds and nobody moves or resizes; it begins on a page,
        // as `start` does. The kernel reads no memory there, it looks into its tables, so it does not matter what the file has at these
        // places, or whether it has them at all. It writes one byte per page into `found`, which has as many, and keeps no pointer.
        let result = unsafe { libc::mincore(address.cast(), length, found.as_mut_ptr()) };
        let resident = found.iter().filter(|page| **page & 1 == 1).count();
        (result == 0).then(|| u64::try_from(resident).unwrap_or(0))
    }

    /// Tells the kernel that this open file is read in order, so that it reads further ahead, and into large pages: to send those costs
    /// half of what it costs to send small ones. (WILLNEED and readahead(2) fetch more at once, but into the smallest pages.) A hint: a
    /// refusal is of no matter.
    pub fn read_in_order(&self) {
        let _hint = rustix::fs::fadvise(&*self.file.file, 0, None, Advice::Sequential);
    }

    /// Sends the first bytes, at most [`WINDOW_BYTES`], to a socket without copying them, and tells how many went. A file shorter
    /// than the span is `UnexpectedEof`; `Unsupported` if this file cannot be sent like that.
    pub fn send(&self, socket: impl AsFd) -> io::Result<usize> {
        let wanted = self.length().min(WINDOW_BYTES);
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        let mut offset = self.start;
        match rustix::fs::sendfile(socket, &*self.file.file, Some(&mut offset), count) {
            Ok(0) if count > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => Ok(sent),
            Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            Err(errno) => {
                if errno == Errno::IO {
                    self.forget_cached();
                }
                Err(errno.into())
            }
        }
    }

    /// Lets the kernel drop the file's pages. One that could not be read stays in the page cache, and counts as cached: without this,
    /// every later look would find the window sendable, and the place would never be read where its error can be healed. All of the
    /// file, because a hint for a part spares the large pages at its edges.
    fn forget_cached(&self) {
        let _hint = rustix::fs::fadvise(&*self.file.file, 0, None, Advice::DontNeed);
    }
}

/// Argument of cachestat(2).
#[repr(C)]
struct CacheRange {
    offset: u64,
    length: u64,
}

/// Result of cachestat(2), in pages.
#[repr(C)]
#[derive(Default)]
struct CacheCounts {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Buffers for frames, used again and again: fresh ones for every frame would be spread over the allocator's arenas and kept there.
/// Clones share one pool.
#[derive(Clone, Debug, Default)]
pub struct FramePool(Arc<Mutex<Vec<Box<[u8]>>>>);

/// A buffer that goes back to its pool when the last `Bytes` on it is dropped.
#[derive(Debug)]
struct Frame {
    buffer: Box<[u8]>,
    pool: FramePool,
}

impl FramePool {
    fn take(&self) -> Frame {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let buffer = free.unwrap_or_else(|| vec![0; FRAME_BYTES].into_boxed_slice());
        Frame { buffer, pool: self.clone() }
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_FRAMES_MAX {
            free.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn a_file_is_in_use_until_the_last_span_of_it_is_gone() {
        let leases = Leases::default();
        let (one, other) = ([1, 2, 3, 4, 5], [4, 3, 2, 1, 5]);
        let file = Arc::new(tempfile::tempfile().unwrap());
        let leased = ContentFile::leased(Arc::clone(&file), 9, leases.take(&one));
        let span = Span::new(leased, 0, 9);
        let part = span.slice(1, 2);
        let second = leases.take(&one);
        assert!(leases.holds(&one) && !leases.holds(&other));
        drop(span);
        drop(second);
        assert!(leases.holds(&one), "a part of it is still on its way");
        drop(part);
        assert!(!leases.holds(&one));
    }

    fn file_of(bytes: &[u8], size: u64) -> (Arc<File>, Arc<ContentFile>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let file = Arc::new(file);
        (Arc::clone(&file), ContentFile::new(file, Some(size)))
    }

    fn span_of(bytes: &[u8]) -> Span {
        let size = bytes.len() as u64;
        Span::new(file_of(bytes, size).1, 0, size)
    }

    fn sample(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
    }

    #[test]
    fn slices_nest_and_are_cut_to_the_span() {
        let (span, pool) = (span_of(b"0123456789").slice(2, 8), FramePool::default());
        assert_eq!(span.slice(1, 3).read_frame(0, &pool).unwrap(), "34");
        assert_eq!(span.slice(5, 99).read_frame(0, &pool).unwrap(), "7");
        assert_eq!(span.slice(9, 99).length(), 0);
        assert_eq!(span.slice(1, 3).read_cached(&pool).unwrap(), "34");
    }

    #[test]
    fn a_file_shorter_than_its_span_is_an_error() {
        let (file, content) = file_of(b"0123", 9);
        let (longer, pool) = (Span::new(content, 0, 9), FramePool::default());
        let error = longer.read_frame(2, &pool).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(longer.read_cached(&pool).is_none() && longer.sendable().is_none());
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(longer.send(&ours).unwrap(), 4, "all that is there");
        let error = longer.slice(4, 9).send(&ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(0).unwrap();
        assert!(longer.slice(0, 2).sendable().is_none(), "somebody cut the file");
    }

    #[test]
    fn a_growing_file_is_sent_as_far_as_it_is_there() {
        let bytes = sample(5 * 4096 / 2);
        let size = bytes.len() as u64;
        let (file, content) = file_of(&bytes[..100], size);
        assert_eq!(Span::new(Arc::clone(&content), 7, 100).sendable().unwrap().length(), 93);
        let whole = Span::new(Arc::clone(&content), 0, size);
        assert!(whole.sendable().is_none(), "it is not there yet");
        assert_eq!(whole.resident_pages(PAGE), Some(1), "the mapping reaches beyond the end");
        file.write_all_at(&bytes[100..], 100).unwrap();
        assert_eq!(whole.sendable().unwrap().length(), size);
        assert_eq!(whole.resident_pages(PAGE), Some(3));
    }

    #[test]
    fn a_window_is_bounded() {
        let bytes = sample(usize::try_from(WINDOW_BYTES).unwrap() + 5000);
        let span = span_of(&bytes).slice(3, u64::MAX);
        assert_eq!(span.sendable().unwrap().length(), WINDOW_BYTES);
        assert!(span.slice(9, 9).sendable().is_none());
        let (_file, content) = file_of(&bytes, 10);
        assert_eq!(Span::new(content, 5, 11).resident_pages(PAGE), None, "beyond the mapping");
    }

    #[test]
    fn what_is_sent_are_the_bytes() {
        let bytes = sample(100_000);
        let span = span_of(&bytes);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut at, mut received) = (0, Vec::new());
        while at < span.length() {
            match span.slice(at, u64::MAX).send(&ours) {
                Ok(sent) => at += sent as u64,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let mut some = vec![0; usize::try_from(at).unwrap() - received.len()];
            theirs.read_exact(&mut some).unwrap();
            received.extend(some);
        }
        assert_eq!(received, bytes);
    }

    #[test]
    fn what_is_not_in_the_page_cache_is_not_sendable() {
        let (file, content) = file_of(&sample(8192), 16 * PAGE);
        file.set_len(16 * PAGE).unwrap();
        // The kernel has no pages for a hole that nobody has read.
        let (here, hole) =
            (Span::new(Arc::clone(&content), 1, 2 * PAGE), Span::new(content, PAGE, 4 * PAGE));
        assert_eq!(here.sendable().unwrap().length(), 2 * PAGE - 1);
        assert!(hole.sendable().is_none());
        assert!(here.slice(0, PAGE).sendable().is_some());
        assert_eq!(here.resident_pages(PAGE), Some(2), "the older way finds the same");
        assert_eq!(hole.resident_pages(PAGE), Some(1));
    }

    #[test]
    fn what_the_kernel_has_let_go_is_read_and_then_sendable_again() {
        let path = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes = sample(100_000);
        std::fs::write(path.path(), &bytes).unwrap();
        let file = Arc::new(File::open(path.path()).unwrap());
        file.sync_data().unwrap();
        rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        let size = bytes.len() as u64;
        let (span, pool) =
            (Span::new(ContentFile::new(file, Some(size)), 0, size), FramePool::default());
        assert!(span.sendable().is_none() && span.read_cached(&pool).is_none());
        span.read_in_order();
        assert_eq!(span.read_frame(0, &pool).unwrap(), bytes);
        assert_eq!(span.read_cached(&pool).unwrap(), bytes);
        assert!(span.sendable().is_some());
    }

    /// Lets no later call of cachestat(2) of this thread through, as the guards of containers do that do not know it.
    fn forbid_cachestat(errno: i32) {
        let op = |code: u32, jt, jf, k| libc::sock_filter {
            code: u16::try_from(code).unwrap(),
            jt,
            jf,
            k,
        };
        let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
        // The number of the call is the first word of what a filter sees (seccomp(2)).
        let mut program = [
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            op(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                0,
                1,
                u32::try_from(SYS_CACHESTAT).unwrap(),
            ),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
            op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog {
            len: u16::try_from(program.len()).unwrap(),
            filter: program.as_mut_ptr(),
        };
        #[expect(unsafe_code, reason = "no crate of ours has this system call")]
        // SAFETY: both calls are about this thread alone. The kernel copies the program, which lives until they have returned.
        let results = unsafe {
            (
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
            )
        };
        assert_eq!(results, (0, 0), "{}", io::Error::last_os_error());
    }

    #[test]
    fn without_cachestat_the_older_way_is_taken() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let guarded = std::thread::spawn(move || {
                forbid_cachestat(errno);
                let (file, content) = file_of(&sample(8192), 16 * PAGE);
                file.set_len(16 * PAGE).unwrap();
                let here = Span::new(Arc::clone(&content), 1, 2 * PAGE);
                assert!(here.cached_pages().is_none(), "the guard holds");
                assert_eq!(here.sendable().unwrap().length(), 2 * PAGE - 1);
                assert!(Span::new(content, PAGE, 4 * PAGE).sendable().is_none(), "a hole");
                let unmapped = Span::new(ContentFile::new(file, None), 0, PAGE);
                assert!(unmapped.sendable().is_none(), "nobody can tell");
            });
            guarded.join().unwrap();
        }
    }

    #[test]
    fn a_frame_goes_back_when_its_last_slice_is_dropped() {
        let (span, pool) = (span_of(b"0123"), FramePool::default());
        let frame = span.read_frame(0, &pool).unwrap();
        let part = frame.slice(1..2);
        drop(frame);
        assert!(pool.0.lock().unwrap().is_empty());
        drop(part);
        assert_eq!(pool.0.lock().unwrap().len(), 1);
        assert_eq!(span.read_frame(1, &pool).unwrap(), "123");
        assert_eq!(pool.0.lock().unwrap().len(), 1);
    }
}
