//! What was touched a moment ago.
//!
//! A hit on hot content must not be an entry, a lock and a row each time. This is a table of fixed size that forgets: each digest has
//! a few places, and who needs one takes the oldest. It may say "not recent" of something that is, which costs an entry; it says
//! "recent" wrongly only of another digest with the same 54 bits, which costs a little precision of an access time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::oci::Digest;

/// How long a touch stands for those after it.
pub(super) const RECENT_FOR: Duration = Duration::from_secs(60);
/// Digests with the same places; a power of two. With [`PLACES`] of 8 bytes each the table takes 512 KiB.
const BUCKETS: usize = 16 * 1024;
/// Places of a digest, in one line of the processor's cache.
const PLACES: usize = 4;
/// A place holds the second of the touch in its low bits, and bits of the digest above.
const TIME_BITS: u32 = 24;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

#[derive(Debug)]
pub(super) struct Recent(Box<[[AtomicU64; PLACES]]>);

impl Default for Recent {
    fn default() -> Self {
        let empty = || std::array::from_fn(|_place| AtomicU64::default());
        Self((0..BUCKETS).map(|_bucket| empty()).collect())
    }
}

impl Recent {
    /// The places of a digest, and the bits that stand for it in there. A digest is as good as random.
    fn places(&self, digest: &Digest) -> (&[AtomicU64; PLACES], u64) {
        let mut bits = [0; 8];
        bits.copy_from_slice(&digest.value()[..8]);
        let bits = u64::from_be_bytes(bits);
        let buckets = u64::try_from(BUCKETS).expect("a small constant");
        let bucket = usize::try_from(bits % buckets).expect("below BUCKETS");
        (&self.0[bucket], bits & !TIME_MASK)
    }

    /// Was it touched less than [`RECENT_FOR`] before `at`?
    pub(super) fn holds(&self, digest: &Digest, at: Timestamp) -> bool {
        let (places, bits) = self.places(digest);
        let now = second(at);
        places.iter().any(|place| {
            let held = place.load(Ordering::Relaxed);
            held != 0 && held & !TIME_MASK == bits && age(held, now) < RECENT_FOR.as_secs()
        })
    }

    /// It is touched. Two who note at once may take each other's place; the loser is an entry more.
    pub(super) fn note(&self, digest: &Digest, at: Timestamp) {
        let (places, bits) = self.places(digest);
        let now = second(at);
        let taken = places.iter().max_by_key(|place| {
            let held = place.load(Ordering::Relaxed);
            match held {
                held if held & !TIME_MASK == bits => u64::MAX,
                0 => u64::MAX - 1,
                held => age(held, now),
            }
        });
        if let Some(place) = taken {
            place.store(bits | now, Ordering::Relaxed);
        }
    }
}

/// Seconds that go round within half a year.
fn second(at: Timestamp) -> u64 {
    at.as_millis().div_euclid(1000).cast_unsigned() & TIME_MASK
}

/// Seconds since then; a time to come is long ago.
fn age(held: u64, now: u64) -> u64 {
    now.wrapping_sub(held) & TIME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn digest(number: u32) -> Digest {
        Digest::sha256_of(&number.to_be_bytes())
    }

    #[test]
    fn it_is_recent_for_a_moment_and_a_clock_set_back_forgets() {
        let recent = Recent::default();
        assert!(!recent.holds(&digest(1), at(0)));
        recent.note(&digest(1), at(0));
        assert!(recent.holds(&digest(1), at(0)) && recent.holds(&digest(1), at(59)));
        assert!(!recent.holds(&digest(1), at(60)) && !recent.holds(&digest(1), at(-1)));
        assert!(!recent.holds(&digest(2), at(0)));
        recent.note(&digest(1), at(70));
        assert!(recent.holds(&digest(1), at(129)));
    }

    #[test]
    fn it_holds_a_working_set_and_what_is_new_pushes_out_what_is_old() {
        let recent = Recent::default();
        let held = |range: std::ops::Range<u32>, now| {
            range.filter(|number| recent.holds(&digest(*number), at(now))).count()
        };
        for number in 0..20_000 {
            recent.note(&digest(number), at(0));
        }
        assert!(held(0..20_000, 1) > 19_500);
        for number in 20_000..120_000 {
            recent.note(&digest(number), at(30));
        }
        assert!(held(0..20_000, 31) < 2_000);
        assert!(held(20_000..120_000, 31) > 60_000);
    }
}
