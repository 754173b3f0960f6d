//! The product from outside: every test starts it in this process beside a fake upstream and speaks HTTP to it.
//!
//! One module per theme; `support` holds the fake, the client and the world. Tests wait for events and never sleep for luck; all
//! ports are 0 and all addresses loopback.

#![expect(
    unreachable_pub,
    reason = "a test binary has no outside; pub marks what a support module offers"
)]
#![expect(dead_code, unused_imports, reason = "the faults suite uses what is left of the support")]
#![expect(clippy::panic, reason = "a panic is how a test says no")]
#![expect(
    clippy::disallowed_methods,
    reason = "the fans and tasks of a test are few, and end with it"
)]

mod support;

mod addressing;
mod asof;
mod auth;
mod bad_input;
mod carried;
mod check;
mod delete;
mod desk;
mod desk_listener;
mod disk;
mod errors;
mod eviction;
mod export;
mod fake_self;
mod fake_self_auth;
mod flight;
mod freeze;
mod hot;
mod import;
mod import_meanwhile;
mod life;
mod life_carry;
mod life_house;
mod life_images;
mod life_model;
mod lists;
mod membership;
mod metrics;
mod oddities;
mod offline;
mod outages;
mod ping;
mod profiles;
mod pull;
mod ranges;
mod record;
mod referrers;
mod reload;
mod room;
mod scrub;
mod shutdown;
mod tags;
mod takeover;
mod uses;
mod warm;
