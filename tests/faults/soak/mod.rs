//! A storm of random faults, then calm, from a printed seed.
//!
//! In the first phase a crowd pulls from three upstreams while answers are cut, corrupted, delayed and refused, upstreams and the
//! product stop and start, tags move, content is deleted and damaged, disks fail and time passes. Every answer is judged by a
//! reference model: wrong bytes to a clean end, and a failure for which the model knows no reason, end the test. In the second phase
//! nothing is wrong any more, and everything has to be right at once; then the upstreams stop, and it has to be right again.
//!
//! `SOAK_SEED` and `SOAK_OPERATIONS` in the environment choose another plan and a longer one; the plan depends on nothing else.

mod crowd;
mod model;
mod plan;
mod scene;
mod storm;
