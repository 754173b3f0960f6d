//! Faults of the writer for tests: any of its steps can be made to fail.
//!
//! Not part of the program's surface; public so that tests of the whole can reach it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

/// What a failing step reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `SQLITE_FULL`
    Full,
    /// `SQLITE_IOERR_WRITE`
    Io,
    /// `SQLITE_BUSY`
    Busy,
}

/// Which steps of the writer fail. A step is the begin of a transaction, one operation in it, or its commit.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first step that fails, counted from 1 since the plan was made.
    pub at: u64,
    /// Only that one, or all from there on.
    pub lasting: bool,
    pub fault: Fault,
}

#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    counted: u64,
    injected: u64,
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, plan: Option<Plan>) {
        let mut state = self.state();
        *state = State { plan, ..State::default() };
    }

    pub(super) fn injected(&self) -> u64 {
        self.state().injected
    }

    /// To be called before each step.
    pub(super) fn check(&self) -> rusqlite::Result<()> {
        let mut state = self.state();
        let Some(plan) = state.plan else {
            return Ok(());
        };
        state.counted += 1;
        if state.counted != plan.at && !(plan.lasting && state.counted > plan.at) {
            return Ok(());
        }
        state.injected += 1;
        let code = match plan.fault {
            Fault::Full => ffi::SQLITE_FULL,
            Fault::Io => ffi::SQLITE_IOERR_WRITE,
            Fault::Busy => ffi::SQLITE_BUSY,
        };
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
    }
}
