//! Owns the workloads whose every operation is a place to lose power: small ones, each for one part of the log.
//! Must never depend on anything but its own code: a workload is the same in each run.

use std::collections::BTreeMap;

use polyraft_storage::sim::model::Op;

use super::run::Step;

/// A workload, with what its log must have done for it to be worth anything.
pub struct Workload {
    /// What it is about.
    pub name: &'static str,
    pub(super) shards: usize,
    pub(super) lanes: usize,
    pub(super) steps: Vec<Step>,
    pub(super) needs: Needs,
}

/// At least so many of each, summed over the lanes since the last restart.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    pub(super) checkpoints: u64,
    pub(super) recycled: u64,
    pub(super) relocated: u64,
}

/// Writes a workload down.
#[derive(Default)]
struct Script {
    steps: Vec<Step>,
    /// Last index by group.
    last: BTreeMap<u64, u64>,
    unique: u64,
}

impl Script {
    fn op(&mut self, op: Op) -> &mut Self {
        self.steps.push(Step::Op(op));
        self
    }

    fn step(&mut self, step: Step) -> &mut Self {
        self.steps.push(step);
        self
    }

    fn create(&mut self, group: u64) -> &mut Self {
        self.last.insert(group, 0);
        self.op(Op::Create(group))
    }

    /// `count` entries of about `bytes` bytes that no other entry is equal to.
    fn append(&mut self, group: u64, term: u64, count: u64, bytes: usize) -> &mut Self {
        let payloads = (0..count).map(|at| {
            self.unique += 1;
            let mut payload = format!("{:06} ", self.unique).into_bytes();
            let filler = b'a' + (self.unique % 26) as u8;
            payload.resize(7 + bytes + at as usize % 3, filler);
            payload
        });
        let payloads = payloads.collect();
        *self.last.entry(group).or_default() += count;
        self.op(Op::Append {
            group,
            term,
            payloads,
        })
    }

    fn state(&mut self, group: u64, term: u64, commit: u64) -> &mut Self {
        self.op(Op::State {
            group,
            term,
            vote: 1 + term % 3,
            commit,
        })
    }

    /// Cuts the last `count` entries.
    fn truncate(&mut self, group: u64, count: u64) -> &mut Self {
        let last = self.last.entry(group).or_default();
        *last -= count;
        let from = *last + 1;
        self.op(Op::Truncate { group, from })
    }

    /// Keeps the last `count` entries.
    fn purge(&mut self, group: u64, count: u64) -> &mut Self {
        let through = self.last[&group] - count;
        self.op(Op::Purge { group, through })
    }

    /// Installs a snapshot of what this log never had.
    fn skip_to(&mut self, group: u64, through: u64) -> &mut Self {
        self.last.insert(group, through);
        self.op(Op::Purge { group, through })
    }

    /// The turn ends and becomes durable.
    fn turn(&mut self) -> &mut Self {
        self.step(Step::Submit).step(Step::Flush)
    }

    /// The turn ends, becomes durable, and background work goes on a little.
    fn tended(&mut self) -> &mut Self {
        self.turn()
            .step(Step::Maintain)
            .step(Step::Flush)
            .step(Step::Tend)
    }

    fn end(&mut self, name: &'static str, shards: usize, lanes: usize, needs: Needs) -> Workload {
        Workload {
            name,
            shards,
            lanes,
            steps: std::mem::take(&mut self.steps),
            needs,
        }
    }
}

/// All of them.
pub fn all() -> Vec<Workload> {
    vec![
        votes_and_entries(),
        truncations(),
        rotation_and_recycling(),
        relocation(),
        removal(),
        large_turns(),
        turns_in_flight(),
        shards_and_lanes(),
        restarts(),
        full_disk(),
        forged_batches(),
        checkpoints_in_flight(),
    ]
}

/// Hard states and entries of two groups, in one turn and in turns of their own.
fn votes_and_entries() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).turn();
    for term in 1..6 {
        script.state(1, term, 0).turn();
        script.append(1, term, 2, 30).state(2, term, term).turn();
        script.append(1, term, 1, 700).append(2, term, 3, 10).turn();
    }
    script.state(1, 6, 9).turn();
    script.end("votes and entries", 1, 1, Needs::default())
}

/// Suffixes that are cut and replaced: in the same turn, in later ones, inside a block, at its edges, over several blocks.
fn truncations() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).turn();
    script.append(1, 1, 6, 40).append(2, 1, 2, 300).turn();
    for term in 2..8 {
        script.append(1, term, 4, 60).turn();
        script.truncate(1, 2).turn();
        script.append(1, term, 2, 50).turn();
        script
            .truncate(1, 4)
            .state(1, term, 1)
            .append(1, term, 3, 900);
        script.append(2, term, 1, 20).turn();
        script.truncate(1, 5).append(1, term, 1, 10).truncate(1, 1);
        script.append(1, term, 4, 20).tended();
    }
    script.step(Step::Checkpoint).step(Step::Settle);
    script.truncate(1, 3).turn();
    script.append(1, 9, 2, 10).turn();
    script.end("truncations", 1, 1, Needs::default())
}

/// Two groups that fill segments and purge them.
fn rotation_and_recycling() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).turn();
    for at in 0..75 {
        let term = 1 + at / 20;
        script.append(1, term, 2, 300);
        if at % 3 == 0 {
            script.append(2, term, 1, 2500);
        }
        if at % 4 == 3 {
            script.purge(1, 2).purge(2, 1);
        }
        if at % 20 == 0 {
            script.state(1, term, at);
        }
        script.tended();
    }
    let needs = Needs {
        checkpoints: 3,
        recycled: 2,
        ..Needs::default()
    };
    script.end("rotation and recycling", 1, 1, needs)
}

/// A lagging group that keeps a little of every segment, and a busy one that moves on.
fn relocation() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).create(3).turn();
    script.append(2, 1, 3, 100).tended();
    for at in 0..70 {
        script.append(1, 1 + at / 30, 3, 500);
        match at % 10 {
            4 => _ = script.append(2, 1 + at / 30, 1, 80),
            5 => _ = script.append(3, 1, 4, 20).truncate(3, 2),
            9 => _ = script.purge(1, 1),
            _ => {}
        }
        script.tended();
    }
    script.step(Step::Settle);
    let needs = Needs {
        checkpoints: 3,
        recycled: 1,
        relocated: 2,
    };
    script.end("relocation", 1, 1, needs)
}

/// Groups that are removed, come back, and skip to a snapshot, with checkpoints in between.
fn removal() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).create(3).turn();
    for at in 0..12 {
        script.append(1, 1, 2, 40).append(2, 1, 1, 40).tended();
        script.op(Op::Tombstone(2)).turn();
        if at % 3 == 1 {
            script.step(Step::Checkpoint);
        }
        script.create(2).append(2, 2, 2, 10).tended();
        let target = script.last[&3] + 7;
        script.append(3, 1, 1, 10).skip_to(3, target).turn();
        script.append(3, 9, 2, 500).step(Step::Submit);
        if at % 4 == 2 {
            script.op(Op::Tombstone(2)).create(2);
        }
        script.op(Op::Tombstone(2)).step(Step::Submit).tended();
        script.create(2).step(Step::Maintain).turn();
    }
    script.op(Op::Tombstone(1)).turn();
    script.end(
        "removal",
        1,
        1,
        Needs {
            checkpoints: 2,
            ..Needs::default()
        },
    )
}

/// Turns that need several batches, and batches that need several pages.
fn large_turns() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).create(3).turn();
    for at in 0..8 {
        for group in [1, 2, 1, 3, 2] {
            script.append(group, 1 + at / 4, 2, 2600);
        }
        script.state(3, 1 + at, at).tended();
        script.append(2, 1 + at / 4, 5, 900).tended();
        script.purge(1, 1).purge(2, 2).tended();
    }
    script.end(
        "large turns",
        1,
        1,
        Needs {
            checkpoints: 1,
            ..Needs::default()
        },
    )
}

/// Several turns under way at once, checkpoints and relocation meanwhile.
fn turns_in_flight() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).create(3).step(Step::Submit);
    script.append(3, 1, 3, 60).step(Step::Submit);
    for at in 0..72u64 {
        let term = 1 + at / 16;
        script.append(1, term, 2, 400);
        match at % 6 {
            1 => _ = script.append(2, term, 1, 1800).state(2, term, at),
            3 => _ = script.truncate(1, 1),
            4 => _ = script.purge(1, 1),
            5 => _ = script.append(3, term, 1, 30),
            _ => {}
        }
        script.step(Step::Submit).step(Step::Maintain);
        if at % 3 == 1 {
            script.step(Step::Pump);
        }
        if at % 9 == 7 {
            script.step(Step::Pump).step(Step::Pump);
        }
        script.step(Step::Tend);
    }
    script.step(Step::Settle);
    let needs = Needs {
        checkpoints: 1,
        ..Needs::default()
    };
    script.end("turns in flight", 1, 1, needs)
}

/// Four shards on two lanes: turns of two shards share a batch, a checkpoint needs both.
fn shards_and_lanes() -> Workload {
    let mut script = Script::default();
    let groups = 1..9;
    for group in groups.clone() {
        script.create(group);
    }
    script.turn();
    for at in 0..40 {
        for group in groups.clone().filter(|group| (at + group) % 3 != 0) {
            script.append(group, 1 + at / 9, 1, 150 * group as usize);
            if (at + group) % 7 == 0 {
                script.state(group, 1 + at / 9, at).purge(group, 1);
            }
        }
        match at % 4 {
            0 => script.step(Step::Submit).step(Step::Pump),
            1 => script.step(Step::Submit),
            _ => script.tended(),
        };
    }
    script.step(Step::Settle);
    let needs = Needs {
        checkpoints: 2,
        ..Needs::default()
    };
    script.end("shards and lanes", 4, 2, needs)
}

/// A node that stops and starts, properly and not, and remembers its peers.
fn restarts() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).turn();
    for life in 0..8 {
        script.step(Step::Peer(life));
        for at in 0..4 {
            script.append(1, 1 + life, 2, 200 + 900 * at).tended();
            script
                .append(2, 1 + life, 1, 50)
                .state(2, 1 + life, at as u64);
            script.turn();
        }
        script.truncate(1, 3).purge(2, 2).turn();
        if life % 3 == 1 {
            script.step(Step::Checkpoint).step(Step::Settle);
        }
        let clean = life % 2 == 0;
        script.step(Step::Restart { clean });
    }
    script.append(1, 20, 1, 10).turn();
    script.end("restarts", 1, 1, Needs::default())
}

/// A disk that fills up, refuses entries while votes and purges go on, and has room again.
fn full_disk() -> Workload {
    let mut script = Script::default();
    script.step(Step::Capacity(3 << 16));
    script.create(1).create(2).tended();
    for at in 0..40 {
        script.append(1, 1, 1, 900).tended();
        if at % 8 == 7 {
            script.state(2, 1 + at / 8, at).turn();
        }
    }
    script.step(Step::Capacity(5 << 16));
    for _ in 0..4 {
        script.step(Step::Tend);
    }
    script.turn();
    script.purge(1, 2).state(1, 2, 30).turn();
    script.step(Step::Checkpoint).step(Step::Settle);
    script.append(1, 2, 2, 100).tended();
    script.step(Step::Settle);
    script.end(
        "full disk",
        1,
        1,
        Needs {
            checkpoints: 1,
            ..Needs::default()
        },
    )
}

/// Entries whose bytes look like batches of this very log, where a batch could begin once their segment is used again. Only the
/// salt, which nobody outside knows, tells them apart.
fn forged_batches() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).turn();
    for at in 0..90u64 {
        if at % 3 == 1 {
            script.append(1, 1, 1, 30);
        } else {
            // Each turn is a batch, so its number is known; when the place is used again is tried out.
            let ahead = 12 + at % 29;
            let payload = forged_payload(at + 2 + ahead);
            script.op(Op::Append {
                group: 1,
                term: 1,
                payloads: vec![payload],
            });
            *script.last.entry(1).or_default() += 1;
        }
        script.purge(1, 0).tended();
    }
    let needs = Needs {
        checkpoints: 3,
        recycled: 3,
        ..Needs::default()
    };
    script.end("forged batches", 1, 1, needs)
}

/// A payload that has a batch at the beginning of each page but the first, when it is the only record of its turn.
fn forged_payload(lsn: u64) -> Vec<u8> {
    const PAGE: usize = 4096;
    /// The headers of the batch and of the block.
    const BEFORE: usize = 64 + 48;
    let mut payload = vec![b'.'; 3 * PAGE - BEFORE];
    for page in 1..3 {
        let batch = forged_batch(lsn + page as u64 - 1);
        let at = page * PAGE - BEFORE;
        payload[at..at + batch.len()].copy_from_slice(&batch);
    }
    payload
}

/// A batch that removes group 2, in a segment whose salt is 0.
fn forged_batch(lsn: u64) -> Vec<u8> {
    let mut record = b"PR\x01\x05".to_vec();
    record.extend([0; 4]);
    record.extend(2u64.to_le_bytes());
    record.extend(crc32c::crc32c(&[]).to_le_bytes());
    record.extend(crc32c::crc32c(&record).to_le_bytes());
    let mut batch = b"PRBT".to_vec();
    batch.extend(1u32.to_le_bytes());
    for value in [0, lsn, lsn - 1] {
        batch.extend(u64::to_le_bytes(value));
    }
    batch.extend((record.len() as u32).to_le_bytes());
    batch.extend(1u32.to_le_bytes());
    batch.extend(1u64.to_le_bytes());
    batch.extend(crc32c::crc32c(&record).to_le_bytes());
    batch.extend([0; 8]);
    batch.extend(crc32c::crc32c(&batch).to_le_bytes());
    batch.extend(record);
    batch
}

/// Checkpoints that are made while the newest turns, some of them without entries, are not durable yet.
fn checkpoints_in_flight() -> Workload {
    let mut script = Script::default();
    script.create(1).create(2).create(3).turn();
    for at in 0..12 {
        script
            .append(1, 1 + at, 2, 60)
            .append(2, 1 + at, 2, 30)
            .turn();
        script.step(Step::Checkpoint);
        match at % 4 {
            0 => script.state(1, 1 + at, at).state(2, 1 + at, at),
            1 => script.truncate(1, 1).state(2, 1 + at, at),
            2 => script.purge(2, 1).op(Op::Tombstone(3)),
            _ => script.create(3).append(3, 1, 1, 20).state(1, 1 + at, at),
        };
        script.step(Step::Submit);
        script.step(Step::Maintain).step(Step::Maintain);
        script.step(Step::Tend);
        if at % 3 == 0 {
            script.append(1, 1 + at, 1, 3000).step(Step::Submit);
            script.step(Step::Maintain).step(Step::Tend);
        }
        script.tended();
        script.step(Step::Settle);
    }
    let needs = Needs {
        checkpoints: 10,
        ..Needs::default()
    };
    script.end("checkpoints in flight", 1, 1, needs)
}
