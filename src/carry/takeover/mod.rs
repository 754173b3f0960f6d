//! Taking over the storage folder of registry:2 and 3 (distribution), hosted or pull-through, by hard links or copies.
//!
//! What must hold:
//! - The folder is input: names, links and manifests in it are checked before anything is done with them, no symbolic link in it is
//!   followed, and nothing in it is written.
//! - Only what was hashed is taken in; what is damaged, missing or unreadable is left out and named, with the images that need it.
//! - Memory is bounded by the largest repository, and that by a limit. A repository's rows are written in slices, bytes first: a takeover
//!   that is cut short leaves whole revisions behind, and the next one goes on, because what is here is not read again.
//!
//! What a folder does not tell is not made up: it has no times but those of its files, and no trace of what was deleted in it.

mod book;
mod layout;
mod order;
mod repository;
mod tags;
mod work;

pub use order::TakeoverOrder;
