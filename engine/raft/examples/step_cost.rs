//! Measures what one step costs in a steady state, in nanoseconds. Run it with
//! `cargo run --release -p polyraft-raft --example step_cost`.

#[path = "../tests/steady/mod.rs"]
mod steady;

use std::io::{Write as _, stdout};
use std::time::Instant;

use polyraft_raft::*;

const ROUNDS: u64 = 2_000_000;

fn report(what: &str, steps: u64, start: Instant) -> std::io::Result<()> {
    let nanos = start.elapsed().as_nanos() as f64 / (ROUNDS * steps) as f64;
    writeln!(stdout(), "{what:<60} {nanos:6.1} ns per step")
}

fn main() -> std::io::Result<()> {
    let (settings, alive) = (Settings::default(), steady::alive());
    let mut env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let mut out = Outbox::default();
    let mut leader = steady::replica(&env, &mut out);
    steady::elect(&mut leader, &env, &mut out);
    let start = Instant::now();
    for round in 0..ROUNDS {
        env.now = Tick(round);
        out.clear();
        let through = steady::propose(&mut leader, &env, &mut out);
        leader.step(&env, Event::Durable { through }, &mut out);
        steady::acknowledge(&mut leader, &env, &mut out);
    }
    let what = "leader: propose, flush to 2, durable, 2 x matched, applied";
    report(what, 6, start)?;

    let mut follower = steady::replica(&env, &mut out);
    steady::follow(&mut follower, &env, 1, &mut out);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        out.clear();
        let before = follower.last().index;
        let message = steady::append(&follower, 1, 8);
        steady::tell(&mut follower, &env, 2, message, &mut out);
        let through = out.writes.last().expect("the entries").id;
        follower.step(&env, Event::Durable { through }, &mut out);
        follower.step(&env, Event::Applied { through: before }, &mut out);
    }
    let what = "follower: append, durable with acknowledgement, applied";
    report(what, 3, start)
}
