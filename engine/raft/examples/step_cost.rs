//! Measures what one step costs in a steady state, in nanoseconds. Run it with
//! `cargo run --release -p polyraft-raft --example step_cost`.

use std::io::{Write as _, stdout};
use std::time::Instant;

use polyraft_raft::*;

const ROUNDS: u64 = 2_000_000;

struct OneByte;

impl LogExtents for OneByte {
    fn extent(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        let entries = max_bytes.clamp(1, end.0 - first.0);
        (Index(first.0 + entries), entries)
    }
}

fn report(what: &str, steps: u64, start: Instant) -> std::io::Result<()> {
    let nanos = start.elapsed().as_nanos() as f64 / (ROUNDS * steps) as f64;
    writeln!(stdout(), "{what:<60} {nanos:6.1} ns per step")
}

fn main() -> std::io::Result<()> {
    let settings = Settings::default();
    let mut alive = NodeSet::new(NodeId(1));
    alive.insert(NodeId(2));
    alive.insert(NodeId(3));
    let mut env = Env {
        now: Tick(0),
        settings: &settings,
        alive: &alive,
    };
    let mut out = Outbox::default();
    let restored = Restored::empty(Configuration::simple((1..=3).map(NodeId)));
    let mut leader = Group::new(GroupId(1), NodeId(1), 1, &env, restored.clone(), &mut out);
    leader.step(&env, Event::Campaign, &mut out);
    let reply = Message::PreVoteReply {
        term: Term(1),
        granted: true,
    };
    leader.step(
        &env,
        Event::Message {
            from: NodeId(2),
            message: reply,
        },
        &mut out,
    );
    leader.step(
        &env,
        Event::Durable {
            through: WriteId(1),
        },
        &mut out,
    );
    let reply = Message::VoteReply {
        term: Term(1),
        granted: true,
    };
    leader.step(
        &env,
        Event::Message {
            from: NodeId(2),
            message: reply,
        },
        &mut out,
    );

    let start = Instant::now();
    for round in 0..ROUNDS {
        env.now = Tick(round);
        out.clear();
        leader.step(&env, Event::Propose { count: 8 }, &mut out);
        leader.step(&env, Event::Flush { log: &OneByte }, &mut out);
        leader.step(
            &env,
            Event::Durable {
                through: WriteId(3 + round),
            },
            &mut out,
        );
        let matched = leader.last().index;
        for node in [2, 3] {
            let message = Message::Matched {
                term: Term(1),
                matched,
                commit: leader.committed(),
            };
            leader.step(
                &env,
                Event::Message {
                    from: NodeId(node),
                    message,
                },
                &mut out,
            );
        }
        leader.step(
            &env,
            Event::Applied {
                through: leader.committed(),
            },
            &mut out,
        );
    }
    report(
        "leader: propose, flush to 2, durable, 2 x matched, applied",
        6,
        start,
    )?;

    let mut follower = Group::new(GroupId(1), NodeId(1), 1, &env, restored, &mut out);
    follower.step(
        &env,
        Event::Claimed {
            by: NodeId(2),
            term: Term(1),
        },
        &mut out,
    );
    let start = Instant::now();
    for round in 0..ROUNDS {
        out.clear();
        let prev = follower.last();
        let first = prev.index.next();
        let entries = EntryRange {
            term: Term(1),
            first,
            end: Index(first.0 + 8),
        };
        let message = Message::Append {
            term: Term(1),
            prev,
            entries,
            commit: prev.index,
        };
        follower.step(
            &env,
            Event::Message {
                from: NodeId(2),
                message,
            },
            &mut out,
        );
        follower.step(
            &env,
            Event::Durable {
                through: WriteId(2 + round),
            },
            &mut out,
        );
        follower.step(
            &env,
            Event::Applied {
                through: prev.index,
            },
            &mut out,
        );
    }
    report(
        "follower: append, durable with acknowledgement, applied",
        3,
        start,
    )
}
