//! The timeline of a tag, made of what the folder tells: a set of digests without an order, and the times of their files.
//!
//! A link's time is when the tag was last set to its digest: at the last push of it (hosted), or at the last pull that found it there
//! (pull-through). So a tag that went back and forth is seen to have been at each digest once, the last time.

use crate::clock::Timestamp;
use crate::oci::Digest;

/// The moves of a tag, the oldest first. The last is what it points at, whatever the times say: a copied folder may have any.
pub(super) fn moves(
    current: (Digest, Timestamp),
    index: &[(Digest, Timestamp)],
    now: Timestamp,
) -> Vec<(Digest, Timestamp)> {
    // The link of the index, because the current one is also written when a cache finds the tag unchanged.
    let indexed = index.iter().find(|(digest, _)| *digest == current.0);
    let (digest, since) = *indexed.unwrap_or(&current);
    let before = index.iter().filter(|(other, _)| *other != digest).copied();
    let mut moves: Vec<_> = before.map(|(other, at)| (other, at.min(now))).collect();
    moves.sort_by_key(|(other, at)| (*at, *other));
    let since = moves.last().map_or(since, |(_, last)| since.max(*last));
    moves.push((digest, since.min(now)));
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn the_index_is_put_in_order_and_the_current_one_is_last() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::sha256_of(text));
        let index = [(c, at(30)), (a, at(10)), (b, at(20))];
        let now = at(1000);
        assert_eq!(moves((c, at(99)), &index, now), [(a, at(10)), (b, at(20)), (c, at(30))]);
        // It went back, and its link was not written again.
        assert_eq!(moves((a, at(99)), &index, now), [(b, at(20)), (c, at(30)), (a, at(30))]);
        // Without an index there is one move.
        assert_eq!(moves((a, at(7)), &[], now), [(a, at(7))]);
        assert_eq!(moves((a, at(7)), &[(b, at(9))], now), [(b, at(9)), (a, at(9))]);
        // Nothing was seen after now.
        let future = [(a, at(5000)), (b, at(6000))];
        assert_eq!(moves((a, at(5000)), &future, now), [(b, at(1000)), (a, at(1000))]);
    }
}
