//! What happens in a soak, drawn from its seed alone: rounds of events, and what a crowd of clients asks in each.
//!
//! Nothing here looks at the product or at time, so a seed and a number of operations always give the same plan. Things are named by
//! number; the scene knows what they are. Images are counted from the newest build back, so that what is asked for is often cold.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::support::product::Fault;

/// How many there are of each thing; images are those of one build.
pub(super) const UPSTREAMS: usize = 3;
pub(super) const REPOSITORIES: usize = 6;
pub(super) const IMAGES: usize = 4;
pub(super) const TAGS: usize = 3;
/// Clients at a time, and what each asks in one round.
const CLIENTS: usize = 10;
const ASKS: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) rounds: Vec<Round>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub(super) events: Vec<Event>,
    pub(super) clients: Vec<Vec<Ask>>,
}

/// What goes wrong, or changes, at the beginning of a round. Troubles end with their round.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The next answers of an upstream are bad.
    Trouble {
        upstream: usize,
        place: Place,
        how: How,
        times: u64,
    },
    /// An upstream is gone for the round.
    Stop {
        upstream: usize,
    },
    /// A new build of all images of a repository is pushed, and nobody has any of it yet.
    Build {
        repository: usize,
    },
    ExpireTokens {
        upstream: usize,
    },
    ExpireUrls {
        upstream: usize,
    },
    Move {
        repository: usize,
        tag: usize,
        image: usize,
    },
    Untag {
        repository: usize,
        tag: usize,
    },
    /// An image is deleted upstream, with the tags that point to it.
    Delete {
        repository: usize,
        image: usize,
    },
    /// It is pushed again, untagged.
    Push {
        repository: usize,
        image: usize,
    },
    /// Content files cannot be written, read or opened for the round.
    Disk {
        at: u64,
        lasting: bool,
        fault: Fault,
    },
    /// The product is stopped after so many answers, and started again when the crowd is done.
    Restart {
        after: u64,
    },
    /// Time passes on all clocks.
    Pass {
        seconds: u64,
    },
    /// Somebody damages a stored file.
    Damage {
        repository: usize,
        image: usize,
        part: usize,
        how: Damage,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Manifest,
    Blob,
    /// Behind the redirect; the same as `Blob` where there is none.
    Store,
    Token,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Reset(u64),
    Close(u64),
    Short(u64),
    Corrupt(u64),
    Stall(u64),
    Hang,
    Drop,
    Status(u16),
    Limited,
    Html,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Damage {
    Flip,
    Shorten,
    Remove,
}

/// One request of a client, or a small errand of several.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Tag {
        repository: usize,
        tag: usize,
        head: bool,
    },
    Manifest {
        repository: usize,
        image: usize,
        child: usize,
        head: bool,
    },
    Blob {
        repository: usize,
        image: usize,
        part: usize,
        how: Reading,
    },
    /// A blob of another repository, to which this one gives no right.
    Stranger {
        repository: usize,
        of: usize,
        image: usize,
    },
    /// Tag, children and blobs, as a client pulls them.
    Pull {
        repository: usize,
        tag: usize,
    },
}

/// Places in a blob are in thousandths of its size.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    Whole,
    Head,
    Range(u64, u64),
    From(u64),
    Suffix(u64),
    Several(Vec<(u64, u64)>),
    /// Hangs up there.
    Leave(u64),
    /// Takes a pause after each piece.
    Slow,
}

impl Plan {
    pub(super) fn of(seed: u64, operations: usize) -> Self {
        let mut draw = Draw(SmallRng::seed_from_u64(seed));
        let rounds = operations.div_ceil(CLIENTS * ASKS);
        Self { rounds: (0..rounds).map(|number| draw.round(number)).collect() }
    }
}

struct Draw(SmallRng);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    fn number(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0.random_range(range)
    }

    fn chance(&mut self, of_hundred: u32) -> bool {
        self.0.random_ratio(of_hundred, 100)
    }

    fn round(&mut self, number: usize) -> Round {
        let mut round = Round::default();
        for _ in 0..=self.below(2) {
            round.events.push(Event::Build { repository: self.below(REPOSITORIES) });
        }
        for _ in 0..self.below(3) {
            let event = self.change();
            round.events.push(event);
        }
        // The first round fills the cache a little; later about every third is calm.
        if number > 0 && self.chance(70) {
            for _ in 0..=self.below(4) {
                let trouble = self.trouble();
                round.events.push(trouble);
            }
        }
        if self.chance(15) {
            round.events.push(Event::Stop { upstream: self.below(UPSTREAMS) });
        }
        if self.chance(20) {
            let fault = Fault::ALL[self.below(Fault::ALL.len())];
            let lasting = self.chance(50);
            round.events.push(Event::Disk { at: self.number(1..120), lasting, fault });
        }
        if self.chance(15) {
            round.events.push(Event::Restart { after: self.number(0..30) });
        }
        round.clients = (0..CLIENTS).map(|_| (0..ASKS).map(|_| self.ask()).collect()).collect();
        round
    }

    /// Mostly of the newest build, sometimes of the two before.
    fn image(&mut self) -> usize {
        let builds_ago = [0, 0, 0, 0, 0, 0, 0, 1, 1, 2][self.below(10)];
        builds_ago * IMAGES + self.below(IMAGES)
    }

    fn change(&mut self) -> Event {
        let (repository, tag) = (self.below(REPOSITORIES), self.below(TAGS));
        let (image, upstream) = (self.image(), self.below(UPSTREAMS));
        match self.below(16) {
            0..=3 => Event::Move { repository, tag, image },
            4 => Event::Untag { repository, tag },
            5 => Event::Delete { repository, image },
            6..=7 => Event::Push { repository, image },
            8..=10 => Event::Pass { seconds: self.number(1..400) },
            11 => Event::ExpireTokens { upstream },
            12 => Event::ExpireUrls { upstream },
            _ => {
                let how = [Damage::Flip, Damage::Shorten, Damage::Remove][self.below(3)];
                Event::Damage { repository, image, part: self.below(12), how }
            }
        }
    }

    fn trouble(&mut self) -> Event {
        let places = [Place::Manifest, Place::Blob, Place::Store, Place::Store, Place::Token];
        let place = places[self.below(places.len())];
        let at = [0, 1, 500, 65_536, 200_000][self.below(5)] + self.number(0..3);
        let status = [500, 502, 503, 504][self.below(4)];
        let how = match self.below(20) {
            0..=3 => How::Reset(at),
            4..=6 => How::Close(at),
            7..=8 => How::Short(at),
            9..=11 => How::Corrupt(at),
            12 => How::Stall(at),
            13 => How::Hang,
            14..=15 => How::Drop,
            16..=17 => How::Status(status),
            18 => How::Limited,
            _ => How::Html,
        };
        Event::Trouble { upstream: self.below(UPSTREAMS), place, how, times: self.number(1..10) }
    }

    fn ask(&mut self) -> Ask {
        let (repository, tag) = (self.below(REPOSITORIES), self.below(TAGS));
        let image = self.image();
        match self.below(20) {
            0..=4 => Ask::Tag { repository, tag, head: self.chance(40) },
            5..=7 => {
                let (child, head) = (self.below(4), self.chance(30));
                Ask::Manifest { repository, image, child, head }
            }
            8..=16 => Ask::Blob { repository, image, part: self.below(12), how: self.reading() },
            17 => Ask::Stranger { repository, of: self.below(REPOSITORIES), image },
            _ => Ask::Pull { repository, tag },
        }
    }

    fn reading(&mut self) -> Reading {
        let mut span = || {
            let from = self.number(0..1000);
            (from, self.number(from..1000))
        };
        let (from, to) = span();
        let several = vec![(from, to), span(), span()];
        match self.below(16) {
            0..=5 => Reading::Whole,
            6..=7 => Reading::Head,
            8..=9 => Reading::Range(from, to),
            10 => Reading::From(from),
            11 => Reading::Suffix(1 + from),
            12 => Reading::Several(several),
            13..=14 => Reading::Leave(from),
            _ => Reading::Slow,
        }
    }
}
