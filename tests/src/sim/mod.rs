//! A whole cluster in one thread, from one seed: the code that runs in production over a simulated clock, network and
//! disk. A run is a function of its seed, on every machine and in every build. Nothing in a world may go by a clock, start
//! a thread, touch a file, or draw chance from anywhere but the seed.
//!
//! `docs/simulation.md` says what is simulated, what goes wrong and what is checked.

pub mod campaign;
mod checks;
mod clients;
mod damage;
mod ends;
mod failing;
mod faults;
mod lives;
mod looks;
mod machine;
mod merges;
pub mod mutants;
mod network;
mod parts;
mod peers;
mod pending;
mod phases;
mod plan;
mod requests;
mod rng;
mod sessions;
mod splits;
mod stale;
pub mod stories;
mod trace;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use polyraft::GroupId;

pub use self::checks::Failure;
pub use self::plan::{ByFault, Fault, Plan};
use self::rng::Rng;
use self::trace::Trace;
pub use self::world::Counts;
use self::world::World;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the seed decided.
    pub plan: Plan,
    /// Over everything that happened: the same for the same seed.
    pub hash: u64,
    /// Simulated time, in microseconds.
    pub micros: u64,
    /// What happened, in numbers.
    pub counts: Counts,
    /// The rule that was broken, if one was.
    pub failure: Option<Failure>,
    /// The groups whose events tell the story of that; none: those of all.
    pub concerned: Vec<GroupId>,
    /// The events in words, if they were asked for.
    pub lines: Vec<String>,
}

/// Runs one seed. `words` asks for the events of these groups in words; of all groups, if it is empty.
pub fn run(seed: u64, words: Option<Vec<GroupId>>) -> Report {
    listen_for_panics();
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(seed, &mut rng);
    let mut world = World::new(plan.clone(), rng, Trace::new(words));
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    IS_SIMULATING.set(false);
    if ran.is_err() {
        let what = PANIC.take().unwrap_or_default();
        world.fail(Failure {
            checker: "panic",
            what,
            group: None,
        });
    }
    Report {
        hash: world.trace.hash(),
        micros: world.now,
        counts: world.counts.clone(),
        failure: world.failure.clone(),
        concerned: world.concerned(),
        lines: std::mem::take(&mut world.trace).into_lines(),
        plan,
    }
}

thread_local! {
    /// What the last panic of this thread said, while a world runs on it.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static IS_SIMULATING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Panics of simulated nodes are findings, not noise on the terminal.
fn listen_for_panics() {
    static LISTEN: Once = Once::new();
    IS_SIMULATING.set(true);
    LISTEN.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IS_SIMULATING.get() {
                PANIC.set(Some(panic.to_string()));
            } else {
                usual(panic);
            }
        }));
    });
}
