//! The commands about images as wholes: check, warm, wanted, offline, record, sets, export, import.

pub(super) mod arguments;
mod check;
mod export;
mod import;
mod lists;
mod offline;
mod record;
mod sets;
mod source;
mod story;
mod wanted;
mod warm;

pub(super) use check::check;
pub(super) use export::export;
pub(super) use import::import;
pub(super) use offline::switch;
pub(super) use record::record;
pub(super) use sets::sets;
pub(super) use wanted::wanted;
pub(super) use warm::warm;
