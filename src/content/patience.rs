//! Waiting for room: who takes content in on purpose is not refused at once, but waits while somebody makes room.
//!
//! What must hold:
//! - The wait is for an event, the end of a look that knew of the refusal: refusal and beginning are told apart under one lock, so that none
//!   is missed.
//! - A look after which nothing has gone ends the wait, with the reason that it gave; so does silence, and so does nobody who looks.
//! - Whoever goes meanwhile leaves nothing behind but the order to make room that he gave.
//!
//! This deliberately reserves nothing: room that is made may be taken by a pull, and then the next look makes more. A pull never waits.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::leave::Refused;
use super::space::Space;
use super::store::Content;
use crate::oci::RegistryName;

/// Who waits for room gives up when nothing went for this long. Less than the time for which a client that sends a bundle is content to see
/// no byte taken.
pub const ROOM_PATIENCE: Duration = Duration::from_secs(240);
/// Times in a row that there is room and it is gone again before it could be had.
const RACES_MAX: u32 = 16;

/// What has happened so far, and who waits; under the lock of the refusals.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Looks that have begun.
    begun: u64,
    /// Removals of files, whoever removed them.
    pub(super) removals: u64,
    /// Those who wait, the bytes that they say they want, and those that they have in their hands.
    waiting: u64,
    announced: u64,
    awaited: u64,
}

/// The last look that ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended {
    number: u64,
    /// Somebody looks when there is no room.
    evicting: bool,
    /// Why not more could go.
    why: Arc<str>,
}

/// The right, and the promise, to look whenever there is no room, until it is dropped.
#[derive(Debug)]
pub struct Evicting(Arc<Space>);

/// A look at what can go. Ends when it is dropped.
#[derive(Debug)]
pub struct Look {
    space: Arc<Space>,
    number: u64,
    refused: Option<Refused>,
    awaited: u64,
    why: Option<String>,
}

/// Room that somebody waited for in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What was to be taken in.
    pub size: u64,
    /// Bytes that are missing; 0 if it is not the disk that is full.
    pub missing: u64,
    pub why: Why,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// This is the most that fits above `min_free`, whatever goes.
    TooLarge { limit: u64 },
    /// No server works on the store.
    NobodyEvicts,
    /// All that may go has gone; what keeps the rest, in words.
    Kept(Arc<str>),
    /// Nothing went for [`ROOM_PATIENCE`].
    Silence,
}

/// What somebody waits for.
#[derive(Debug)]
pub(super) struct Wanted {
    size: u64,
    /// The bytes are there, and not only announced.
    is_real: bool,
    from: Option<RegistryName>,
    cancel: CancellationToken,
}

/// When somebody was refused.
#[derive(Clone, Copy, Debug)]
struct Mark {
    look: u64,
    removals: u64,
}

enum Answer {
    Room,
    Refused(Mark),
    /// The disk does not answer, or it is not room that is wanting.
    Unknown,
}

/// One who waits, until it is dropped.
struct Waiting {
    space: Arc<Space>,
    announced: u64,
    awaited: u64,
}

impl Wanted {
    /// Bytes of which somebody says that there are so many.
    pub(super) fn told(size: u64) -> Self {
        Self { size, is_real: false, from: None, cancel: CancellationToken::new() }
    }

    /// Bytes that are there; the wait ends with `Interrupted` when `cancel` fires.
    pub(super) fn real(size: u64, cancel: CancellationToken) -> Self {
        Self { size, is_real: true, from: None, cancel }
    }
}

impl Content {
    /// From now on somebody looks whenever there is no room. Those who wait are told when he goes.
    pub fn evicting(&self) -> Evicting {
        self.space().evicting()
    }

    /// Waits until `size` bytes that come from an upstream would be stored ([`Content::admits`]). `false`: they would be at once.
    ///
    /// # Errors
    /// As [`Content::receive`].
    pub async fn await_room(&self, size: u64, from: &RegistryName) -> Result<bool, Error> {
        let wanted = Wanted { from: Some(from.clone()), ..Wanted::told(size) };
        let mut tries = 0_u32;
        let admitted = || {
            tries += 1;
            let (leftovers, space) = (self.leftovers(), Arc::clone(self.space()));
            let from = from.clone();
            self.blocking(move || {
                if space.is_closed(Some(&from)) {
                    return Ok(None);
                }
                if !space.fits(size) {
                    leftovers.make_room(Some(size));
                }
                Ok(space.fits(size).then_some(()))
            })
        };
        self.patiently(wanted, admitted).await?;
        Ok(tries > 1)
    }

    /// Tries until there is room, waiting in between for what makes some. `None` and `NoSpace` say that there is none; an attempt refuses
    /// nothing itself, or the look that it presses for would not know who waits.
    pub(super) async fn patiently<T, F>(
        &self,
        wanted: Wanted,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Option<T>, Error>>,
    {
        let space = self.space();
        let (mut waiting, mut in_vain, mut races) = (None, None, 0);
        loop {
            match attempt().await {
                Ok(Some(got)) => return Ok(got),
                Ok(None) | Err(Error::NoSpace) => {}
                Err(error) => return Err(error),
            }
            if waiting.is_none() {
                // Before anybody hears of it: room for so much must not be made.
                if let Some(limit) = space.most_that_fits().filter(|limit| wanted.size > *limit) {
                    return Err(space.no_room(&wanted, Why::TooLarge { limit }));
                }
                waiting = Some(Waiting::new(space, &wanted));
            }
            let mark = match space.ask(&wanted) {
                Answer::Refused(mark) => mark,
                Answer::Room if races < RACES_MAX => {
                    races += 1;
                    continue;
                }
                Answer::Room | Answer::Unknown => return Err(Error::NoSpace),
            };
            if let Some(why) = in_vain {
                return Err(space.no_room(&wanted, why));
            }
            races = 0;
            in_vain = tokio::select! {
                biased;
                () = wanted.cancel.cancelled() => {
                    return Err(io::Error::from(io::ErrorKind::Interrupted).into());
                }
                in_vain = space.wait(mark) => in_vain,
            };
        }
    }
}

impl Space {
    pub(super) fn evicting(self: &Arc<Self>) -> Evicting {
        self.ended.send_modify(|ended| ended.evicting = true);
        Evicting(Arc::clone(self))
    }

    /// Does anybody wait for room?
    pub(super) fn is_awaited(&self) -> bool {
        self.state().looks.waiting > 0
    }

    /// What fits above `min_free` on an empty file system, if it answers.
    fn most_that_fits(&self) -> Option<u64> {
        let volume = self.sample(&mut self.state())?;
        Some(volume.total.saturating_sub(self.wanted(volume, 0)))
    }

    /// Is there room? If not, it is asked for.
    fn ask(&self, wanted: &Wanted) -> Answer {
        let mut state = self.state();
        let closed = wanted.from.is_some() && self.is_closed(wanted.from.as_ref());
        if closed {
            self.press();
        } else if self.has_room(&mut state, Some(wanted.size)) {
            return Answer::Room;
        } else if state.is_out_of_descriptors() {
            return Answer::Unknown;
        }
        if self.sample(&mut state).is_none() {
            return Answer::Unknown;
        }
        Answer::Refused(Mark { look: state.looks.begun, removals: state.looks.removals })
    }

    /// Waits for the end of a look that began after the refusal. `None`: something went.
    async fn wait(&self, mark: Mark) -> Option<Why> {
        let mut ended = self.ended.subscribe();
        let mut seen = mark.removals;
        loop {
            let over = ended.wait_for(|ended| ended.number > mark.look || !ended.evicting);
            let over = timeout(ROOM_PATIENCE, over).await.map(|ended| match ended {
                Ok(ended) if ended.evicting => Why::Kept(Arc::clone(&ended.why)),
                // The sender is this value's own.
                Ok(_) | Err(_) => Why::NobodyEvicts,
            });
            let removals = self.state().looks.removals;
            match over {
                Ok(_) if removals != mark.removals => return None,
                Ok(why) => return Some(why),
                Err(_elapsed) if removals == seen => return Some(Why::Silence),
                Err(_elapsed) => seen = removals,
            }
        }
    }

    fn no_room(&self, wanted: &Wanted, why: Why) -> Error {
        let size = wanted.size;
        let mut state = self.state();
        let missing = self
            .sample(&mut state)
            .map_or(0, |volume| self.wanted(volume, size).saturating_sub(state.unpromised(volume)));
        Error::NoRoom(Arc::new(Shortage { size, missing, why }))
    }
}

impl Waiting {
    fn new(space: &Arc<Space>, wanted: &Wanted) -> Self {
        let (announced, awaited) = if wanted.is_real { (0, wanted.size) } else { (wanted.size, 0) };
        let mut state = space.state();
        let looks = &mut state.looks;
        looks.waiting += 1;
        looks.announced = looks.announced.saturating_add(announced);
        looks.awaited = looks.awaited.saturating_add(awaited);
        drop(state);
        Self { space: Arc::clone(space), announced, awaited }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.space.state();
        let looks = &mut state.looks;
        looks.waiting -= 1;
        looks.announced = looks.announced.saturating_sub(self.announced);
        looks.awaited = looks.awaited.saturating_sub(self.awaited);
    }
}

impl Evicting {
    /// Waits until something was refused for want of room, or a commit came near to a limit; at once if that was so since the last look
    /// began.
    pub async fn pressed(&self) {
        self.0.pressure.notified().await;
    }

    /// Begins a look, which knows of everything that was refused until now.
    pub fn look(&self) -> Look {
        // Taken back first: what is refused from here on presses again.
        let _pressed = futures_util::FutureExt::now_or_never(self.0.pressure.notified());
        let mut state = self.0.state();
        state.looks.begun += 1;
        let (number, awaited) = (state.looks.begun, state.looks.awaited);
        let (announced, unreserved) = (state.looks.announced, state.unreserved);
        let mut refused = state.refused.take();
        drop(state);
        if let Some(refused) = &mut refused {
            // Room for all who wait, or one would take it from the other.
            refused.bytes = refused.bytes.max(announced.saturating_add(unreserved));
        }
        Look { space: Arc::clone(&self.0), number, refused, awaited, why: None }
    }
}

impl Drop for Evicting {
    fn drop(&mut self) {
        self.0.ended.send_modify(|ended| ended.evicting = false);
    }
}

impl Look {
    /// What was refused since the look before began.
    pub fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Bytes that those who waited for room at its beginning have in their hands: so many are wanted, whatever was refused.
    pub fn awaited(&self) -> u64 {
        self.awaited
    }

    /// Does anybody wait for room?
    pub fn is_awaited(&self) -> bool {
        self.space.is_awaited()
    }

    /// Notes why not more can go, for those who wait.
    pub fn explain(&mut self, why: String) {
        self.why = Some(why);
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let why = self.why.take().map_or_else(|| "it was cut short".into(), Arc::from);
        let number = self.number;
        self.space.ended.send_modify(|ended| (ended.number, ended.why) = (number, why));
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, missing, why } = self;
        if let Why::TooLarge { limit } = why {
            return write!(
                f,
                "it has {size} bytes, and {limit} are the most that fit above min_free"
            );
        }
        match missing {
            0 => f.write_str("the store is closed because a limit cannot be met")?,
            missing => write!(f, "{missing} bytes are missing")?,
        }
        match why {
            Why::TooLarge { .. } => Ok(()),
            Why::NobodyEvicts => f.write_str(
                ", and nothing makes room because no server works on the store; start one and try again",
            ),
            Why::Kept(why) => write!(f, ", and eviction could free nothing more: {why}"),
            Why::Silence => {
                write!(f, ", and nothing went for {} s; try again", ROOM_PATIENCE.as_secs())
            }
        }
    }
}
