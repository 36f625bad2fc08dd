//! Random clusters: from one seed, messages are lost, doubled and reordered, disks are late, nodes crash and
//! links break, while safety is checked at every step. Then everything heals, and must serve.
//! `SEED=n` replays one run, `SEEDS=n` runs that many.

use polyraft_raft::{Configuration, Event, Index, MemberChange, NodeId, Role, Settings};

use crate::cluster::Cluster;

const STEPS: usize = 4000;

/// A small generator of our own, so that a seed means the same run for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.roll(from.len() as u64) as usize])
    }
}

fn settings(dice: &mut Dice) -> Settings {
    Settings {
        max_append_entries: 1 + dice.roll(8) as u32,
        max_append_bytes: 10 + dice.roll(100),
        inflight_messages: 1 + dice.roll(6) as u32,
        inflight_entries: 1 + dice.roll(30),
        inflight_bytes: 10 + dice.roll(300),
        ..Settings::default()
    }
}

/// Mostly plain voters; sometimes a learner or a witness, sometimes two halves that decide together.
fn members(dice: &mut Dice, nodes: u64) -> Configuration {
    let all: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    let split = 1 + dice.roll(nodes) as usize;
    match dice.roll(8) {
        0 | 1 if nodes > 1 => {
            let (voters, learner) = all.split_at(all.len() - 1);
            Configuration::joint(voters.to_vec(), [], learner.to_vec(), [])
        }
        2 => {
            let overlap = dice.roll(split as u64) as usize;
            let (incoming, outgoing) = (&all[..split], &all[overlap..]);
            Configuration::joint(incoming.to_vec(), outgoing.to_vec(), [], [])
        }
        3 | 4 if nodes > 1 => {
            let witness = all[all.len() - 1];
            Configuration::simple(all).with_witnesses([witness])
        }
        _ => Configuration::simple(all),
    }
}

fn act(cluster: &mut Cluster, dice: &mut Dice) {
    let running = cluster.running();
    let all = cluster.ids();
    match dice.roll(1000) {
        0..450 if !cluster.network.is_empty() => {
            // Mostly in order, sometimes any.
            let len = cluster.network.len() as u64;
            let at = if dice.roll(3) > 0 { 0 } else { dice.roll(len) } as usize;
            match dice.roll(20) {
                0 => drop(cluster.network.remove(at)),
                1 => cluster.duplicate(at),
                _ => cluster.deliver(at),
            }
        }
        450..650 => {
            if let Some(id) = dice.pick(&running) {
                cluster.persist(id, 1 + dice.roll(4) as usize);
            }
        }
        650..770 => {
            let id = cluster
                .leader()
                .filter(|_| dice.roll(10) > 0)
                .or_else(|| dice.pick(&running));
            if let Some(id) = id {
                cluster.step(
                    id,
                    Event::Propose {
                        count: 1 + dice.roll(4) as u32,
                    },
                );
            }
        }
        770..900 => {
            let waiting: Vec<(NodeId, NodeId)> = cluster
                .notes
                .iter()
                .filter(|(_, n)| !n.is_empty())
                .map(|(&pair, _)| pair)
                .collect();
            if let Some((observer, observed)) = dice.pick(&waiting) {
                cluster.deliver_note(observer, observed);
            }
        }
        900..960 => cluster.advance(dice.roll(60_000)),
        960..980 => {
            if let Some(id) = dice.pick(&running) {
                cluster.finish_applying(id);
                let through = cluster.group(id).applied().min(cluster.held_everywhere());
                cluster.purge(id, Index(through.0.saturating_sub(dice.roll(8))));
            }
        }
        980..984 => {
            if let Some(id) = dice.pick(&running) {
                cluster.crash(id);
            }
        }
        984..991 => {
            let down: Vec<NodeId> = all
                .iter()
                .copied()
                .filter(|id| !running.contains(id))
                .collect();
            if let Some(id) = dice.pick(&down) {
                cluster.restart(id, Index(dice.roll(1 << 16)));
            }
        }
        991..994 => {
            let (a, b) = (dice.roll(all.len() as u64), dice.roll(all.len() as u64));
            if a != b {
                cluster.cut(all[a as usize], all[b as usize]);
            }
        }
        994..999 => {
            let (a, b) = (dice.roll(all.len() as u64), dice.roll(all.len() as u64));
            if a != b {
                cluster.heal(all[a as usize], all[b as usize]);
            }
        }
        999 => {
            if let Some(id) = dice.pick(&running) {
                cluster.step(id, Event::Campaign);
            }
            let changes = [dice.pick(&all), dice.pick(&all)];
            let changes: Vec<MemberChange> = changes
                .into_iter()
                .flatten()
                .map(|node| match (dice.roll(3), cluster.is_witness(node)) {
                    (0, false) => MemberChange::Voter(node),
                    (0, true) => MemberChange::Witness(node),
                    (1, false) => MemberChange::Learner(node),
                    (1, true) => MemberChange::WitnessLearner(node),
                    _ => MemberChange::Remove(node),
                })
                .collect();
            let count = 1 + dice.roll(2) as usize;
            if let Some(leader) = cluster.leader() {
                let changes = &changes[..count.min(changes.len())];
                cluster.step(leader, Event::ChangeMembers { changes });
            }
            let (leader, to) = (cluster.leader(), dice.pick(&all));
            if let (Some(leader), Some(to)) = (leader, to) {
                cluster.step(leader, Event::Transfer { to });
            }
        }
        _ => {}
    }
}

/// Everything works again: within two seconds of virtual time, all that is left and a new proposal must be
/// applied everywhere, and the cluster must come to rest.
fn heal(cluster: &mut Cluster) {
    let all = cluster.ids();
    for &a in &all {
        for &b in &all {
            if a < b {
                cluster.heal(a, b);
            }
        }
        if !cluster.running().contains(&a) {
            cluster.restart(a, Index::ZERO);
        }
    }
    let end = cluster.now.after(2_000_000);
    let mut target = None;
    loop {
        cluster.settle();
        if target.is_none()
            && let Some(leader) = cluster.leader()
        {
            cluster.step(leader, Event::Propose { count: 3 });
            target = Some((
                leader,
                cluster.group(leader).term(),
                cluster.group(leader).last().index,
            ));
            continue;
        }
        if target.is_some_and(|(leader, term, _)| {
            cluster.group(leader).role() != Role::Leader || cluster.group(leader).term() != term
        }) {
            target = None;
            continue;
        }
        // Who is no member any more may be behind, and may not know it.
        let members: Vec<NodeId> = match target {
            Some((leader, ..)) => cluster.group(leader).configuration().nodes().collect(),
            None => all.clone(),
        };
        let (quiet, done) = (
            members.iter().all(|&id| cluster.group(id).is_quiet()),
            target.is_some_and(|(_, _, last)| {
                let has_all = |id: &NodeId| cluster.group(*id).applied() >= last;
                members.iter().all(has_all)
            }),
        );
        if quiet && done {
            assert!(!cluster.is_handing_over(), "a handover has no end");
            return;
        }
        let next = cluster.next_deadline().unwrap_or_else(|| {
            let status: Vec<_> = all.iter().map(|&id| cluster.status_line(id)).collect();
            panic!("no deadline, but work is left: {status:#?}")
        });
        if next > end {
            let mut status: Vec<_> = all.iter().map(|&id| cluster.status_line(id)).collect();
            status.extend(all.iter().flat_map(|&id| cluster.progress_lines(id)));
            let trace = cluster
                .trace
                .split_off(cluster.trace.len().saturating_sub(20));
            panic!("not healed in time: {status:#?}, last of all {trace:#?}");
        }
        cluster.advance(next.since(cluster.now));
    }
}

/// One run; how many entries it committed.
pub fn run(seed: u64) -> usize {
    let mut dice = Dice(seed);
    let nodes = [1, 2, 3, 3, 3, 4, 5, 5][dice.roll(8) as usize];
    let settings = settings(&mut dice);
    let members = members(&mut dice, nodes);
    let mut cluster = Cluster::with(nodes, seed, settings, members);
    for step in 0..STEPS {
        act(&mut cluster, &mut dice);
        cluster.trace.clear();
        if step % 200 == 0 {
            cluster.check_logs();
        }
    }
    heal(&mut cluster);
    cluster.check_logs();
    cluster.committed.len()
}

#[test]
fn random_clusters_stay_safe_and_heal() {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(300),
    };
    let mut committed = 0;
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| run(seed));
        committed += outcome.unwrap_or_else(|_| {
            panic!("replay with: SEED={seed} cargo test -p polyraft-raft --test behaviour random")
        });
    }
    // A run that did nothing proves nothing.
    assert!(
        committed > 50 * (seeds.end - seeds.start) as usize,
        "only {committed} entries committed"
    );
}
