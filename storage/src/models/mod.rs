//! Owns models of what the threads of a lane do to each other: a scheduler runs them in many orders, by seed. A failure prints the
//! schedule; `shuttle::replay` runs it again. Must never depend on time.
//!
//! `RUSTFLAGS='--cfg polyraft_shuttle --cfg polyraft_mutants' cargo test -p polyraft-storage --lib models`

mod barrier;
mod disk;
mod segments;

use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner};

/// Schedules per model.
const SCHEDULES: usize = 10_000;

/// Runs a model in many orders, the same ones in each run.
fn in_many_orders(model: impl Fn() + Send + Sync + 'static) {
    let scheduler = RandomScheduler::new_from_seed(1, SCHEDULES);
    Runner::new(scheduler, Config::default()).run(model);
}

/// Shows that a model fails with a deliberate fault.
#[cfg(polyraft_mutants)]
fn notices(mutant: polyraft_raft::mutants::Mutant, model: fn()) {
    use polyraft_raft::mutants::set;

    // Only with this fault, and only on this thread: all threads of a model run on the one that starts it.
    set(Some(mutant));
    let failed = std::panic::catch_unwind(|| in_many_orders(model)).is_err();
    set(None);
    assert!(failed, "{mutant:?} was not noticed");
}
