//! Who fetches which bytes of a download: the main fetcher in order, side fetchers where clients wait.
//!
//! What must hold: a byte that was handed to the writer, or that a bounded claim has promised, is claimed by nobody else, so nothing is
//! fetched twice; a claim that ends gives back what it did not bring. The one exception has a budget: a bounded claim may be cut where
//! a client waits far ahead of its cursor, and what its upstream has under way then is lost. Pure: no clock, no network.

use super::interval::IntervalSet;
use crate::upstream::BlobRange;

const MIB: u64 = 1024 * 1024;
/// A client whose position is at most this far ahead of a running fetcher waits for it.
pub(super) const CLOSE_BYTES: u64 = 2 * MIB;
/// The first part that is fetched for a client who reads somewhere on his own; each further one of a sequential reader is twice as large.
pub(super) const SEGMENT_MIN: u64 = MIB;
/// The largest bounded part.
pub(super) const SEGMENT_MAX: u64 = 16 * MIB;
/// Side fetchers of one download.
pub(super) const SIDES_MAX: usize = 8;
/// A body that runs into bytes that are here already is read on if they are no more than this.
pub(super) const SKIP_MAX: u64 = MIB;
/// A blob of at most this is fetched as one, whoever wants which part of it.
pub(super) const WHOLE_MAX: u64 = 4 * MIB;
/// Cutting claims may cost this share of the blob: 1/32.
const CUT_SHARE: u64 = 32;

/// Bytes that a fetcher has to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: u64,
    pub(super) from: u64,
    /// One past the last byte; `None` is all that comes.
    pub(super) to: Option<u64>,
    pub(super) main: bool,
}

impl Part {
    /// The same for all of the blob.
    pub(super) fn whole(self) -> Self {
        Self { from: 0, to: None, ..self }
    }

    /// What upstream is asked for. The whole needs no range, and an upstream without ranges gives it gladly.
    pub(super) fn range(&self, size: Option<u64>) -> BlobRange {
        match self.to {
            Some(to) if self.from == 0 && Some(to) == size => BlobRange::WHOLE,
            Some(to) => BlobRange::part(self.from, to),
            None => BlobRange::rest(self.from),
        }
    }
}

/// What the main fetcher does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Fetch(Part),
    /// Everything that is missing is on its way through side fetchers.
    Wait,
    /// Every byte was handed over.
    Done,
}

/// What a fetcher does with the next bytes of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Keep(u64),
    Skip(u64),
    /// Nothing more of this body is wanted.
    Stop,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    id: u64,
    cursor: u64,
    /// `None`: goes on as long as its body does, and reserves nothing.
    end: Option<u64>,
    main: bool,
}

/// See the file's text.
#[derive(Debug)]
pub(super) struct Claims {
    /// Of the whole, once it is known.
    size: Option<u64>,
    /// Handed to the writer, or reserved by a bounded claim.
    taken: IntervalSet,
    claims: Vec<Claim>,
    next_id: u64,
    /// Upstream gives ranges, as far as is known.
    ranges: bool,
    /// The main fetcher asks for bounded parts, because clients read in several places.
    bounded: bool,
    segment: u64,
    /// Where a client leads the download, if not at the beginning.
    lead: Option<u64>,
    cut: u64,
    received: u64,
}

impl Claims {
    /// A download of which `present` is here. `lead`: a client waits for the bytes from there on, and more such clients will come.
    pub(super) fn new(size: Option<u64>, present: IntervalSet, lead: Option<u64>) -> Self {
        let far = size.is_some_and(|size| size > WHOLE_MAX);
        let lead = lead.filter(|_| far);
        Self {
            size,
            taken: present,
            claims: Vec::new(),
            next_id: 0,
            ranges: true,
            bounded: lead.is_some(),
            segment: CLOSE_BYTES,
            lead,
            cut: 0,
            received: 0,
        }
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Bytes handed to the writer.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    fn claim(&mut self, from: u64, to: Option<u64>, main: bool) -> Part {
        let id = self.next_id;
        self.next_id += 1;
        self.claims.push(Claim { id, cursor: from, end: to, main });
        if let Some(to) = to {
            self.taken.insert(from, to);
        }
        Part { id, from, to, main }
    }

    /// What the main fetcher is to bring next; there is at most one main claim at a time.
    pub(super) fn next_main(&mut self) -> Next {
        let end = self.size.unwrap_or(u64::MAX);
        let lead = self.lead.take().and_then(|from| self.taken.first_gap(from, end));
        let Some(gap) = lead.or_else(|| self.taken.first_gap(0, end)) else {
            return if self.claims.is_empty() { Next::Done } else { Next::Wait };
        };
        let open = !self.ranges || (!self.bounded && gap.end == end);
        if open {
            return Next::Fetch(self.claim(gap.start, None, true));
        }
        let to = gap.end.min(gap.start.saturating_add(self.segment));
        self.segment = (self.segment * 2).min(SEGMENT_MAX);
        Next::Fetch(self.claim(gap.start, Some(to), true))
    }

    /// A claim for a main body that was opened before there was this table: `part` was asked for, and the body begins at `from`.
    pub(super) fn adopt(&mut self, part: Part, from: u64) -> Part {
        self.lead = None;
        match part.to {
            Some(to) if from == part.from && self.taken.covered_to(from) == from => {
                let to = self.taken.next_start(from).map_or(to, |next| to.min(next));
                self.claim(from, Some(to), true)
            }
            Some(_) if from != part.from => {
                self.ranges = false;
                self.claim(from, None, true)
            }
            _ => self.claim(from, None, true),
        }
    }

    /// The body of a claim begins at `from`, because upstream gave the whole instead of the part: the claim goes over all of it.
    pub(super) fn widen(&mut self, id: u64, from: u64) {
        self.ranges = false;
        let Some(claim) = self.claims.iter_mut().find(|claim| claim.id == id) else {
            return;
        };
        if let Some(end) = claim.end.take() {
            self.taken.remove(claim.cursor, end);
        }
        claim.cursor = from;
    }

    /// Upstream gives no ranges: the main fetcher brings everything.
    pub(super) fn no_ranges(&mut self) {
        self.ranges = false;
    }

    /// The body of a download of unknown size has ended.
    pub(super) fn end_at(&mut self, size: u64) {
        self.size.get_or_insert(size);
    }

    /// What to do with the next `length` bytes of the body of claim `id`, at its cursor.
    pub(super) fn take(&mut self, id: u64, length: u64) -> Step {
        let Some(claim) = self.claims.iter_mut().find(|claim| claim.id == id) else {
            return Step::Stop;
        };
        let at = claim.cursor;
        if let Some(end) = claim.end {
            let keep = length.min(end.saturating_sub(at));
            claim.cursor += keep;
            self.received += keep;
            return if keep == 0 { Step::Stop } else { Step::Keep(keep) };
        }
        let size = self.size.unwrap_or(u64::MAX);
        let run_to = self.taken.covered_to(at);
        if run_to == at && at < size {
            let next = self.taken.next_start(at).unwrap_or(size).min(size);
            let keep = length.min(next - at);
            claim.cursor += keep;
            self.received += keep;
            self.taken.insert(at, at + keep);
            return Step::Keep(keep);
        }
        if at >= size || (self.ranges && run_to - at > SKIP_MAX) {
            return Step::Stop;
        }
        // What another one has promised and not begun to bring comes here anyway, and earlier if that one hangs.
        if let Some(other) =
            self.claims.iter_mut().find(|other| other.id != id && other.cursor == at)
            && let Some(end) = other.end.filter(|end| *end > at)
        {
            other.end = Some(at);
            self.taken.remove(at, end);
            return self.take(id, length);
        }
        if run_to >= size {
            return Step::Stop;
        }
        let skip = length.min(run_to - at);
        self.claims
            .iter_mut()
            .filter(|claim| claim.id == id)
            .for_each(|claim| claim.cursor += skip);
        Step::Skip(skip)
    }

    /// Where the body of claim `id` has to go on.
    pub(super) fn cursor(&self, id: u64) -> Option<u64> {
        self.claims.iter().find(|claim| claim.id == id).map(|claim| claim.cursor)
    }

    /// Has the claim brought all that it can?
    pub(super) fn is_over(&self, id: u64) -> bool {
        self.claims.iter().find(|claim| claim.id == id).is_none_or(|claim| match claim.end {
            Some(end) => claim.cursor >= end,
            None => self.size.is_some_and(|size| self.taken.covered_to(claim.cursor) >= size),
        })
    }

    /// The claim is over; what it has not brought is free again.
    pub(super) fn release(&mut self, id: u64) {
        if let Some(index) = self.claims.iter().position(|claim| claim.id == id) {
            let claim = self.claims.swap_remove(index);
            if let Some(end) = claim.end {
                self.taken.remove(claim.cursor, end);
            }
        }
    }

    /// Forgets all claims, and everything but what is `present`: the writer cannot take what is under way. From here on in order.
    pub(super) fn restart(&mut self, present: IntervalSet) {
        self.claims.clear();
        self.taken = present;
        self.bounded = false;
        self.lead = None;
    }

    /// Does a running fetcher come to `position` soon?
    fn is_close(&self, position: u64) -> bool {
        self.claims.iter().any(|claim| {
            let ahead = position.checked_sub(claim.cursor);
            let reaches = claim.main || claim.end.is_none_or(|end| position < end);
            reaches && ahead.is_some_and(|ahead| ahead <= CLOSE_BYTES)
        })
    }

    /// A part for a client at `position` who wants bytes up to `end` and whose turn it is to get `segment` bytes; `None`: what he needs
    /// is here, or comes soon, or cannot be had faster.
    pub(super) fn next_side(&mut self, position: u64, end: u64, segment: u64) -> Option<Part> {
        let from = self.wants_side(position, end, segment)?;
        let size = self.size?;
        let holder = self
            .claims
            .iter_mut()
            .find(|claim| claim.end.is_some_and(|held| claim.cursor < from && from < held));
        if let Some(holder) = holder {
            let held = holder.end.replace(from)?;
            self.cut += held - from;
            self.taken.remove(from, held);
        }
        let gap = self.taken.first_gap(from, size)?;
        let to = gap.end.min(from.saturating_add(segment));
        self.bounded = true;
        self.segment = CLOSE_BYTES;
        Some(self.claim(from, Some(to), false))
    }

    /// Where such a part would begin.
    pub(super) fn wants_side(&self, position: u64, end: u64, segment: u64) -> Option<u64> {
        let size = self.size?;
        let sides = self.claims.iter().filter(|claim| !claim.main).count();
        if !self.ranges || sides >= SIDES_MAX || size <= WHOLE_MAX {
            return None;
        }
        // Inside of what a fetcher has promised, but far ahead of its cursor?
        let far = self.claims.iter().find(|claim| {
            let inside = claim.end.is_some_and(|held| claim.cursor < position && position < held);
            inside && position - claim.cursor > CLOSE_BYTES
        });
        if let Some(end) = far.and_then(|claim| claim.end) {
            let affordable = self.cut + (end - position) <= size / CUT_SHARE;
            return affordable.then_some(position);
        }
        let from = self.taken.covered_to(position);
        let due = from == position || from - position <= segment / 2;
        (due && from < end.min(size) && !self.is_close(from)).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims(size: u64, lead: Option<u64>) -> Claims {
        Claims::new(Some(size), IntervalSet::default(), lead)
    }

    fn part(next: Next) -> (u64, Option<u64>, u64) {
        match next {
            Next::Fetch(part) => (part.from, part.to, part.id),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_download_is_one_open_request() {
        let mut claims = claims(100 * MIB, None);
        let (from, to, id) = part(claims.next_main());
        assert_eq!((from, to), (0, None));
        assert_eq!(claims.take(id, 1000), Step::Keep(1000));
        assert_eq!(claims.take(id, u64::MAX), Step::Keep(100 * MIB - 1000));
        assert_eq!(claims.take(id, 1), Step::Stop);
        claims.release(id);
        assert_eq!(claims.next_main(), Next::Done);
    }

    #[test]
    fn a_reader_far_ahead_gets_a_part_and_the_main_fetcher_goes_around_it() {
        let mut claims = claims(100 * MIB, None);
        let (.., main) = part(claims.next_main());
        assert_eq!(claims.next_side(CLOSE_BYTES, 100 * MIB, SEGMENT_MIN), None);
        let side = claims.next_side(50 * MIB, 100 * MIB, SEGMENT_MIN).unwrap();
        assert_eq!((side.from, side.to), (50 * MIB, Some(51 * MIB)));
        // Before he runs dry, the next part.
        assert_eq!(claims.next_side(50 * MIB, 100 * MIB, SEGMENT_MIN), None);
        let ahead = claims.next_side(50 * MIB + MIB / 2, 100 * MIB, 2 * MIB).unwrap();
        assert_eq!((ahead.from, ahead.to), (51 * MIB, Some(53 * MIB)));
        assert_eq!(claims.take(main, 60 * MIB), Step::Keep(50 * MIB));
        assert_eq!(claims.take(main, 10 * MIB), Step::Stop);
        claims.release(main);
        assert_eq!(part(claims.next_main()).0, 53 * MIB);
    }

    #[test]
    fn a_part_that_was_only_promised_is_taken_over() {
        let mut claims = claims(20 * MIB, None);
        let main = part(claims.next_main()).2;
        let side = claims.next_side(10 * MIB, 20 * MIB, SEGMENT_MIN).unwrap();
        assert_eq!(claims.take(main, 10 * MIB), Step::Keep(10 * MIB));
        assert_eq!(claims.take(main, 3 * MIB), Step::Keep(3 * MIB));
        assert_eq!(claims.take(side.id, 5), Step::Stop);
    }

    #[test]
    fn a_short_run_is_read_through_and_a_whole_body_skips_any() {
        let mut present = IntervalSet::default();
        present.insert(MIB, 2 * MIB);
        present.insert(3 * MIB, 8 * MIB);
        let mut claims = Claims::new(Some(10 * MIB), present, None);
        let id = claims.claim(0, None, true).id;
        assert_eq!(claims.take(id, 5 * MIB), Step::Keep(MIB));
        assert_eq!(claims.take(id, 4 * MIB), Step::Skip(MIB));
        assert_eq!(claims.take(id, 3 * MIB), Step::Keep(MIB));
        assert_eq!(claims.take(id, 2 * MIB), Step::Stop);
        claims.no_ranges();
        assert_eq!(claims.take(id, 9 * MIB), Step::Skip(5 * MIB));
        assert_eq!(claims.take(id, 9 * MIB), Step::Keep(2 * MIB));
    }

    #[test]
    fn claims_are_cut_for_those_far_ahead_within_the_budget() {
        let mut claims = claims(160 * MIB, Some(0));
        // Parts of the main fetcher grow: 2, 4, 8, 16 MiB.
        for _ in 0..3 {
            let (.., id) = part(claims.next_main());
            while claims.take(id, u64::MAX) != Step::Stop {}
            claims.release(id);
        }
        assert_eq!(part(claims.next_main()).1, Some(30 * MIB));
        assert_eq!(claims.next_side(20 * MIB, 160 * MIB, MIB), None, "10 MiB would be lost");
        let side = claims.next_side(27 * MIB, 160 * MIB, MIB).unwrap();
        assert_eq!((side.from, side.to), (27 * MIB, Some(28 * MIB)));
        assert_eq!(claims.cut, 3 * MIB);
        assert_eq!(claims.taken.first_gap(0, 160 * MIB), Some(28 * MIB..160 * MIB));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Main,
        Side(u64),
        Take(usize, u64),
        Release(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            2 => Just(Act::Main),
            3 => (0u64..64).prop_map(Act::Side),
            6 => (0usize..9, 1u64..8).prop_map(|(which, length)| Act::Take(which, length)),
            2 => (0usize..9).prop_map(Act::Release),
        ];
        prop::collection::vec(act, 0..60)
    }

    proptest! {
        #[test]
        fn no_byte_is_kept_twice_and_all_of_them_come(acts in acts(), lead in prop::option::of(0u64..64)) {
            let size = 64 * MIB;
            let mut claims = claims(size, lead.map(|lead| lead * MIB));
            let mut kept = IntervalSet::default();
            let mut open: Vec<Part> = Vec::new();
            let mut drain = |claims: &mut Claims, part: Part, length: u64| {
                let at = claims.cursor(part.id).unwrap();
                let step = claims.take(part.id, length);
                if let Step::Keep(length) = step {
                    let before = kept.total();
                    kept.insert(at, at + length);
                    prop_assert_eq!(kept.total(), before + length, "a byte was kept twice");
                }
                Ok(step)
            };
            for act in acts {
                match act {
                    Act::Main => {
                        if !open.iter().any(|part| part.main) && let Next::Fetch(part) = claims.next_main() {
                            open.push(part);
                        }
                    }
                    Act::Side(at) => open.extend(claims.next_side(at * MIB, size, SEGMENT_MIN)),
                    Act::Take(which, length) if !open.is_empty() => {
                        drain(&mut claims, open[which % open.len()], length * MIB / 3)?;
                    }
                    Act::Release(which) if !open.is_empty() => {
                        let part = open.swap_remove(which % open.len());
                        claims.release(part.id);
                    }
                    Act::Take(..) | Act::Release(_) => {}
                }
            }
            for part in open.drain(..) {
                while drain(&mut claims, part, MIB)? != Step::Stop {}
                claims.release(part.id);
            }
            while let Next::Fetch(part) = claims.next_main() {
                while drain(&mut claims, part, MIB)? != Step::Stop {}
                claims.release(part.id);
            }
            prop_assert_eq!(claims.next_main(), Next::Done);
            prop_assert_eq!(kept.total(), size);
        }
    }
}
