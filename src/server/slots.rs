//! The parts of files that hyper holds for one connection.
//!
//! hyper carries nothing but memory. A part of a file travels as a *blank*: a slice of the part's length whose bytes mean nothing. The
//! wrapper under hyper ([`super::io::Wire`]) knows a blank by its address, and sends the part of the file that stands first in the
//! connection's queue. What must hold: bytes leave a connection in the order in which its bodies yield them, so the first slot belongs
//! to the first blank; and a blank itself never leaves. The queue and what hyper wants to write are therefore compared at each write, in
//! address and length, and whatever does not fit together ends the connection.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::span::{Span, WINDOW_BYTES};

/// Slots of a connection. hyper flushes before it takes a new body, and holds at most 16 buffers of one.
const SLOTS_MAX: usize = 32;
/// What blanks are slices of. Nobody reads or writes it, so the kernel never gives it memory.
static BLANK: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    vec![0; usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX)].into_boxed_slice()
});

/// The queue of one connection. All of its users are in one task; the lock is for the compiler.
#[derive(Debug, Default)]
pub(super) struct Slots {
    queue: Mutex<VecDeque<Slot>>,
    /// Bytes that were on their way when the connection ended.
    lost: AtomicU64,
}

#[derive(Debug)]
struct Slot {
    /// What has not left yet.
    span: Span,
    /// Bytes of the blank that went before.
    sent: usize,
}

/// What hyper wants to write, as far as it can go at once.
#[derive(Debug)]
pub(super) enum Turn<'a> {
    /// All of it is memory.
    Memory,
    /// A part of a file, after these slices of memory.
    File(&'a [IoSlice<'a>], Span),
    /// The queue and the blanks do not fit together.
    Confused,
}

impl Slots {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Slot>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blank that stands for `span`, which hyper gets next. `None` if it is larger than a window, or there are too many.
    pub(super) fn push(&self, span: Span) -> Option<Bytes> {
        let blank = BLANK.get(..usize::try_from(span.length()).ok()?)?;
        let mut queue = self.queue();
        (queue.len() < SLOTS_MAX).then(|| {
            queue.push_back(Slot { span, sent: 0 });
            Bytes::from_static(blank)
        })
    }

    /// Looks at what hyper wants to write.
    pub(super) fn turn<'a>(&self, slices: &'a [IoSlice<'a>]) -> Turn<'a> {
        let first = slices.iter().position(|slice| is_blank(slice));
        match (self.queue().front(), first) {
            (None, None) => Turn::Memory,
            (Some(slot), Some(at))
                if slices[at].as_ptr().addr() == BLANK.as_ptr().addr() + slot.sent
                    && u64::try_from(slices[at].len())
                        .is_ok_and(|left| left == slot.span.length()) =>
            {
                Turn::File(&slices[..at], slot.span.clone())
            }
            _ => Turn::Confused,
        }
    }

    /// The next `count` bytes of the first part have left.
    pub(super) fn sent(&self, count: usize) {
        let mut queue = self.queue();
        if let Some(slot) = queue.front_mut() {
            slot.sent += count;
            slot.span = slot.span.slice(u64::try_from(count).unwrap_or(u64::MAX), u64::MAX);
            if slot.span.length() == 0 {
                queue.pop_front();
            }
        }
    }

    /// Nothing more leaves.
    pub(super) fn clear(&self) {
        let mut queue = self.queue();
        let lost: u64 = queue.drain(..).map(|slot| slot.span.length()).sum();
        self.lost.fetch_add(lost, Relaxed);
    }

    /// Bytes of files that hyper took and that have not left, and if the connection has ended, never will.
    pub(super) fn unsent(&self) -> u64 {
        let queued: u64 = self.queue().iter().map(|slot| slot.span.length()).sum();
        queued + self.lost.load(Relaxed)
    }
}

fn is_blank(slice: &[u8]) -> bool {
    !slice.is_empty() && BLANK.as_ptr_range().contains(&slice.as_ptr())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::span::ContentFile;

    fn span(length: u64) -> Span {
        Span::new(ContentFile::new(Arc::new(tempfile::tempfile().unwrap()), None), 0, length)
    }

    fn slices<'a>(parts: &[&'a [u8]]) -> Vec<IoSlice<'a>> {
        parts.iter().map(|part| IoSlice::new(part)).collect()
    }

    #[test]
    fn the_first_blank_is_the_first_part() {
        let slots = Slots::default();
        let (first, second) = (slots.push(span(10)).unwrap(), slots.push(span(20)).unwrap());
        let whole = slices(&[b"head", &first, b"", b"between", &second]);
        let Turn::File(before, part) = slots.turn(&whole) else { panic!("a file") };
        assert_eq!((before.len(), part.length()), (1, 10));
        slots.sent(4);
        let rest = slices(&[&first[4..], b"between", &second]);
        let Turn::File(before, part) = slots.turn(&rest) else { panic!("its rest") };
        assert_eq!((before.len(), part.length()), (0, 6));
        slots.sent(6);
        let rest = slices(&[b"between", &second]);
        let Turn::File(before, part) = slots.turn(&rest) else { panic!("the other") };
        assert_eq!((before.len(), part.length()), (1, 20));
        slots.sent(20);
        assert!(matches!(slots.turn(&slices(&[b"tail"])), Turn::Memory));
    }

    #[test]
    fn a_blank_without_its_slot_is_never_memory() {
        let slots = Slots::default();
        let blank = slots.push(span(10)).unwrap();
        for confused in [
            slices(&[&blank[1..]]),
            slices(&[&blank[..9]]),
            slices(&[b"head", &blank[9..]]),
            slices(&[b"a copy of a blank"]),
        ] {
            assert!(matches!(slots.turn(&confused), Turn::Confused), "{confused:?}");
        }
        slots.sent(10);
        assert!(matches!(slots.turn(&slices(&[b"head", &blank])), Turn::Confused));
    }

    #[test]
    fn slots_are_bounded() {
        let slots = Slots::default();
        assert!(slots.push(span(WINDOW_BYTES + 1)).is_none());
        let blanks: Vec<_> = (0..SLOTS_MAX).map(|_| slots.push(span(WINDOW_BYTES))).collect();
        assert!(blanks.iter().all(Option::is_some) && slots.push(span(1)).is_none());
        slots.clear();
        assert!(matches!(slots.turn(&[]), Turn::Memory));
    }
}
