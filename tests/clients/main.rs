//! The real clients of Debian 12 against the real binary: docker, containerd, podman, skopeo and buildah pull
//! through roadstead from a real `docker-registry`, cold, warm and with the upstream stopped, and then what was before a tag moved.
//!
//! What must hold: every process of a test lives in that test's own directory and is ended by its id; nothing
//! leaves the loopback interface; a client that is not installed is named on stderr (and is a failure when
//! `TESTS_REQUIRE_CLIENTS=1` is set). What this does not do: speak the protocol by hand. Headers, ranges and
//! answers to bad input are the business of `tests/registry/`; here the clients decide what is right.

#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "a helper of a test fails by panicking, and shows the logs of its processes"
)]

mod archives;
mod buildah;
mod containerd;
mod docker;
mod export;
mod leftovers;
mod podman;
mod skopeo;
mod support;
mod takeover;
